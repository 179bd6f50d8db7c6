/* SPDX-License-Identifier: Apache-2.0 */
/* A thread keeps the greeter alive; it is the one that starts it each time, because the process is
 * killed when the thread that started it ends. A second one reads its channel; what may block runs on
 * a pool. */
#include "vhdd/daemon/greeter.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/pool.h"
#include "nbd/server/handoff.h"
#include "vhdd/daemon/process.h"
#include "vhdd/ipc/rpc.h"

/* Clients that wait for an answer at a time: as many as the greeter has. */
#define MAX_ANSWERING 256u
#define START_MS      10000
#define COUNTERS_MS   2000
/* After the channel's end the process gets so long to end by itself. */
#define END_MS 5000
/* One that died at once is started again after a while, each time longer. */
#define SOON_MS      1000
#define PAUSE_MS     100u
#define PAUSE_MAX_MS 5000u

struct greeter {
        /* immutable */
        struct broker *broker;
        struct greeter_answers answers;
        int fds[GREETER_MAX_SOCKETS];
        size_t n_fds;
        struct pool *pool;
        pthread_t thread;

        pthread_mutex_t lock;
        pthread_cond_t changed;
        /* guarded by lock */
        struct rpc *rpc; /* to the process that lives; NULL: none */
        bool stopping;
        bool tried; /* the first start is over, with: */
        int first_r;
        struct error first_error;
};

/* ---- what it asks ---- */

struct question {
        struct pool_task task; /* first: the pool hands it back */
        struct greeter *greeter;
        struct rpc *rpc;
        int64_t id;
        char *method;
        json_t *params;
        int fd; /* or -1 */
};

static void free_question(struct question *question)
{
        rpc_unref(question->rpc);
        free(question->method);
        json_decref(question->params);
        cleanup_fd(&question->fd);
        free(question);
}

static int hand_over(const struct question *question, struct error *err)
{
        const struct greeter *greeter = question->greeter;
        const char *text = json_string_value(json_object_get(question->params, "handoff"));
        struct nbd_handoff handoff;
        int r;

        if (!text || question->fd < 0)
                return fail(err, EINVAL, "the greeter handed over no client");
        r = nbd_handoff_from_text(text, &handoff, err);
        if (r < 0)
                return r;
        return greeter->answers.hand_over(greeter->broker, &handoff, question->fd, err);
}

static int answer(const struct question *question, json_t **ret, struct error *err)
{
        const struct greeter *greeter = question->greeter;
        const char *name;

        if (strcmp(question->method, "list") == 0)
                return greeter->answers.list(greeter->broker, ret, err);
        if (strcmp(question->method, "client") == 0)
                return hand_over(question, err);
        if (strcmp(question->method, "lookup") != 0)
                return fail(err, ENOSYS, "the broker knows no '%s'", question->method);
        name = json_string_value(json_object_get(question->params, "name"));
        if (!name)
                return fail(err, EINVAL, "the greeter asked for nothing");
        return greeter->answers.lookup(greeter->broker, name, ret, err);
}

static void run_question(struct pool_task *task)
{
        struct question *question = (struct question *)task;
        struct error err = ERROR_INIT;
        json_t *result = NULL;

        if (answer(question, &result, &err) < 0)
                rpc_reply_error(question->rpc, question->id, &err);
        else
                rpc_reply(question->rpc, question->id, result, NULL, 0);
        free_question(question);
}

static void on_request(void *opaque, struct rpc *rpc, int64_t id, const char *method,
        json_t *params, struct message *message)
{
        struct greeter *greeter = opaque;
        struct question *question = calloc(1, sizeof(*question));
        struct error err = ERROR_INIT;

        if (question)
                question->method = strdup(method);
        if (!question || !question->method) {
                free(question);
                fail(&err, ENOMEM, "no memory to answer the greeter");
                rpc_reply_error(rpc, id, &err);
                return;
        }
        question->task.run = run_question;
        question->greeter = greeter;
        question->rpc = rpc_ref(rpc);
        question->id = id;
        question->params = json_incref(params);
        question->fd = message_take_fd(message, 0);
        pool_submit(greeter->pool, &question->task);
}

static void on_event(void *opaque, struct rpc *rpc, const char *name, const json_t *event)
{
        const struct greeter *greeter = opaque;
        const char *level = json_string_value(json_object_get(event, "level"));
        const char *message = json_string_value(json_object_get(event, "message"));

        if (strcmp(name, "log") != 0 || !level || !message)
                return;
        broker_log(greeter->broker,
                strcmp(level, "error") == 0 ? BROKER_LOG_ERROR : BROKER_LOG_DEBUG, "greeter", "%s",
                message);
}

/* ---- its life ---- */

struct life {
        struct rpc *rpc;
        int pidfd;
        pthread_t reader;
};

static int spawn(struct greeter *greeter, struct life *life, struct error *err)
{
        const struct rpc_handlers handlers = {
                .request = on_request, .event = on_event, .opaque = greeter};
        char uid[16], gid[16];
        const char *const args[] = {"vhdd", "--greeter", "--uid", uid, "--gid", gid, NULL};
        int ends[2], r = channel_pair(ends, err);
        pid_t pid;

        if (r < 0)
                return r;
        snprintf(uid, sizeof(uid), "%u", greeter->broker->worker_uid);
        snprintf(gid, sizeof(gid), "%u", greeter->broker->worker_gid);
        r = rpc_new(ends[0], &handlers, &life->rpc, err);
        if (r < 0)
                close(ends[0]);
        else
                r = process_spawn(greeter->broker, args, &ends[1], 1, &pid, &life->pidfd, err);
        close(ends[1]);
        if (r < 0)
                life->rpc = rpc_unref(life->rpc);
        return r;
}

static void *read_channel(void *arg)
{
        struct rpc *rpc = arg;
        struct error err = ERROR_INIT;

        pthread_setname_np(pthread_self(), "greeter-read");
        rpc_run(rpc, &err);
        /* However it ended: the process gets no answers any more, and sees that. */
        rpc_shutdown(rpc);
        return NULL;
}

/* The channel has ended, or ends now. Answers the process's exit as waitpid gives it. */
static int bury(struct life *life)
{
        int status = 0;

        rpc_shutdown(life->rpc);
        if (process_wait(life->pidfd, END_MS, &status) == 0) {
                process_kill(life->pidfd);
                process_wait(life->pidfd, -1, &status);
        }
        close(life->pidfd);
        life->rpc = rpc_unref(life->rpc);
        return status;
}

static int begin(struct greeter *greeter, struct life *life, struct error *err)
{
        int r = spawn(greeter, life, err);

        if (r < 0)
                return r;
        r = -pthread_create(&life->reader, NULL, read_channel, life->rpc);
        if (r < 0) {
                bury(life);
                return fail_os(err, -r, "cannot start a thread for the greeter");
        }
        r = rpc_call(life->rpc, "start", NULL, greeter->fds, (unsigned)greeter->n_fds, START_MS,
                NULL, err);
        if (r < 0) {
                rpc_shutdown(life->rpc);
                pthread_join(life->reader, NULL);
                bury(life);
        }
        return r;
}

/* The first one's fate is greeter_start's; later ones have nobody who waits. */
static void tell(struct greeter *greeter, int r, const struct error *err)
{
        pthread_mutex_lock(&greeter->lock);
        if (!greeter->tried) {
                greeter->first_r = r;
                greeter->first_error = *err;
                greeter->tried = true;
                pthread_cond_broadcast(&greeter->changed);
        } else if (r < 0) {
                broker_log_error(greeter->broker, "greeter", err);
        }
        pthread_mutex_unlock(&greeter->lock);
}

/* Whom counters and stop may speak to. False: it is to stop. */
static bool set_rpc(struct greeter *greeter, struct rpc *rpc)
{
        MUTEX_GUARD(&greeter->lock);

        greeter->rpc = rpc;
        return !greeter->stopping;
}

static void log_death(struct greeter *greeter, int status)
{
        MUTEX_GUARD(&greeter->lock);

        if (greeter->stopping)
                return;
        if (WIFSIGNALED(status))
                broker_log(greeter->broker, BROKER_LOG_ERROR, "greeter",
                        "it died of signal %d; another is started", WTERMSIG(status));
        else
                broker_log(greeter->broker, BROKER_LOG_ERROR, "greeter",
                        "it ended with status %d; another is started", WEXITSTATUS(status));
}

/* One process from beginning to end. */
static int live(struct greeter *greeter, struct error *err)
{
        struct life life = {.pidfd = -1};
        int r = begin(greeter, &life, err);

        tell(greeter, r, err);
        if (r < 0)
                return r;
        if (!set_rpc(greeter, life.rpc))
                rpc_shutdown(life.rpc);
        pthread_join(life.reader, NULL);
        set_rpc(greeter, NULL);
        log_death(greeter, bury(&life));
        return 0;
}

/* False: it is to stop. */
static bool pause_before_next(struct greeter *greeter, unsigned ms)
{
        struct timespec until;
        MUTEX_GUARD(&greeter->lock);

        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += ms / 1000;
        until.tv_nsec += (long)(ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
        }
        while (!greeter->stopping)
                if (pthread_cond_timedwait(&greeter->changed, &greeter->lock, &until) == ETIMEDOUT)
                        break;
        return !greeter->stopping;
}

static uint64_t clock_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void *keep_alive(void *arg)
{
        struct greeter *greeter = arg;
        unsigned pause_ms = 0;
        bool first = true;

        pthread_setname_np(pthread_self(), "greeter-keep");
        do {
                struct error err = ERROR_INIT;
                uint64_t begun_ms = clock_ms();

                if (live(greeter, &err) < 0 && first)
                        break;
                first = false;
                if (clock_ms() - begun_ms >= SOON_MS)
                        pause_ms = 0;
                else
                        pause_ms = pause_ms ? MIN_OF(pause_ms * 2, PAUSE_MAX_MS) : PAUSE_MS;
        } while (pause_before_next(greeter, pause_ms));
        return NULL;
}

/* ---- start and stop ---- */

static void free_greeter(struct greeter *greeter)
{
        pool_free(greeter->pool);
        pthread_cond_destroy(&greeter->changed);
        pthread_mutex_destroy(&greeter->lock);
        free(greeter);
}

static int make(struct broker *broker, const int *fds, size_t n_fds,
        const struct greeter_answers *answers, struct greeter **ret, struct error *err)
{
        struct greeter *greeter = calloc(1, sizeof(*greeter));
        pthread_condattr_t attr;
        int r;

        if (!greeter)
                return fail(err, ENOMEM, "no memory for the greeter");
        r = pool_new("greeter", MAX_ANSWERING, &greeter->pool, err);
        if (r < 0) {
                free(greeter);
                return r;
        }
        greeter->broker = broker;
        greeter->answers = *answers;
        memcpy(greeter->fds, fds, n_fds * sizeof(*fds));
        greeter->n_fds = n_fds;
        pthread_mutex_init(&greeter->lock, NULL);
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&greeter->changed, &attr);
        pthread_condattr_destroy(&attr);
        *ret = greeter;
        return 0;
}

/* Waits for the first one. */
static int first_result(struct greeter *greeter, struct error *err)
{
        MUTEX_GUARD(&greeter->lock);

        while (!greeter->tried)
                pthread_cond_wait(&greeter->changed, &greeter->lock);
        if (greeter->first_r < 0 && err)
                *err = greeter->first_error;
        return greeter->first_r;
}

int greeter_start(struct broker *broker, const int *fds, size_t n_fds,
        const struct greeter_answers *answers, struct greeter **ret, struct error *err)
{
        struct greeter *greeter = NULL;
        int r;

        if (n_fds == 0 || n_fds > GREETER_MAX_SOCKETS)
                return fail(err, EINVAL, "NBD clients come by 1 to %u sockets, not %zu",
                        GREETER_MAX_SOCKETS, n_fds);
        r = make(broker, fds, n_fds, answers, &greeter, err);
        if (r < 0)
                return r;
        r = -pthread_create(&greeter->thread, NULL, keep_alive, greeter);
        if (r < 0) {
                free_greeter(greeter);
                return fail_os(err, -r, "cannot start a thread for the greeter");
        }
        r = first_result(greeter, err);
        if (r < 0) {
                pthread_join(greeter->thread, NULL);
                free_greeter(greeter);
                return fail_prefix(err, r, "cannot start the greeter");
        }
        *ret = greeter;
        return 0;
}

struct greeter *greeter_stop(struct greeter *greeter)
{
        if (!greeter)
                return NULL;
        pthread_mutex_lock(&greeter->lock);
        greeter->stopping = true;
        if (greeter->rpc)
                rpc_shutdown(greeter->rpc);
        pthread_cond_broadcast(&greeter->changed);
        pthread_mutex_unlock(&greeter->lock);
        pthread_join(greeter->thread, NULL);
        free_greeter(greeter);
        return NULL;
}

int greeter_counters(struct greeter *greeter, json_t **ret, struct error *err)
{
        struct message answer_message = MESSAGE_INIT;
        struct rpc *rpc = NULL;
        int r;

        pthread_mutex_lock(&greeter->lock);
        if (greeter->rpc)
                rpc = rpc_ref(greeter->rpc);
        pthread_mutex_unlock(&greeter->lock);
        if (!rpc)
                return fail(err, EHOSTDOWN, "there is no greeter just now");
        r = rpc_call(rpc, "counters", NULL, NULL, 0, COUNTERS_MS, &answer_message, err);
        rpc_unref(rpc);
        if (r < 0)
                return r;
        *ret = json_incref(answer_message.json);
        message_done(&answer_message);
        return 0;
}
