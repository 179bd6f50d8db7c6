/* SPDX-License-Identifier: Apache-2.0 */
/* A life of a worker, as the broker sees it:
 *
 *      link_start: RUN/VMID.sock answers -> adopt()   else -> bring_up()
 *      one thread: rpc_run() until the channel ends -> wait for the pidfd -> died()
 *      link_restart -> bring_up(), with the same grants
 *
 * The channel's end alone says nothing: a successor comes only when the pidfd says that the process is
 * dead, because until then its last writes may still be on their way. */
#include "vhdd/daemon/link.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "nbd/server/handoff.h"
#include "vhdd/daemon/files.h"
#include "vhdd/daemon/process.h"
#include "vhdd/ipc/rpc.h"

#define PROTOCOL        1
#define HELLO_MS        15000
#define ADOPT_HELLO_MS  60000 /* it may have a flush to end first */
#define CLIENT_MS       10000
#define GO_AFTER_EOF_MS 5000 /* from closing its channel to being dead; then it is killed */
#define OLD_WORKER_MS   20000
#define SHORT_LIFE_MS   500
#define PAUSE_FIRST_MS  50
#define PAUSE_MAX_MS    5000

struct link {
        /* immutable after link_start */
        struct broker *broker;
        char vm_id[VHDD_VM_ID_SIZE];
        struct link_events events;
        struct files *files;

        /* owner: start, restart, quit, free; one at a time */
        pthread_t thread;
        bool has_thread;
        unsigned short_lives; /* one after the other, up to now */

        pthread_mutex_t lock;
        /* guarded by lock */
        struct rpc *rpc; /* NULL: no worker */
        pid_t pid;
        int pidfd;
        int64_t born_ms, died_ms;
        int64_t counted_ms; /* the birth of the one that short_lives knows of */
        bool silent;   /* no died(): it was asked to end, or never said hello */
        bool detached; /* the channel ends because we go */
};

static int64_t now_ms(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

static void pause_ms(int64_t ms)
{
        const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

        nanosleep(&pause, NULL);
}

/* --- the socket and the pid file --- */

/* Through the directory's descriptor: a socket's name may have 107 bytes, a state directory more. */
static int address_of(
        const struct link *link, int *ret_dir_fd, struct sockaddr_un *ret, struct error *err)
{
        int fd = open(link->broker->run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0)
                return fail_os(err, errno, "cannot open '%s'", link->broker->run_dir);
        *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
        snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s.sock", fd, link->vm_id);
        *ret_dir_fd = fd;
        return 0;
}

static void pid_path(const struct link *link, char *ret, size_t size)
{
        snprintf(ret, size, "%s/%s.pid", link->broker->run_dir, link->vm_id);
}

static int write_pid(const struct link *link, pid_t pid, struct error *err)
{
        char path[4200], text[64];
        _cleanup_fd_ int fd = -1;
        int n = snprintf(text, sizeof(text), "%d %llu\n", (int)pid,
                (unsigned long long)process_start_time(pid));

        pid_path(link, path, sizeof(path));
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0 || write(fd, text, (size_t)n) != n)
                return fail_os(err, errno, "cannot write '%s'", path);
        return 0;
}

static bool read_pid(const struct link *link, pid_t *ret_pid, uint64_t *ret_start)
{
        char path[4200], text[64] = "";
        _cleanup_fd_ int fd = -1;
        unsigned long long start;
        int pid;

        pid_path(link, path, sizeof(path));
        fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0 ||
                sscanf(text, "%d %llu", &pid, &start) != 2)
                return false;
        *ret_pid = pid;
        *ret_start = start;
        return true;
}

static void remove_traces(const struct link *link)
{
        char path[4200];

        pid_path(link, path, sizeof(path));
        unlink(path);
        snprintf(path, sizeof(path), "%s/%s.sock", link->broker->run_dir, link->vm_id);
        unlink(path);
}

/* A socket that listens at RUN/VMID.sock; the worker inherits it and keeps it beyond us. */
static int make_listener(const struct link *link, int *ret_fd, struct error *err)
{
        _cleanup_fd_ int dir_fd = -1, fd = -1;
        struct sockaddr_un address;
        int r = address_of(link, &dir_fd, &address, err);

        if (r < 0)
                return r;
        unlink(address.sun_path);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
                listen(fd, 8) < 0)
                return fail_os(err, errno, "cannot listen at '%s/%s.sock'", link->broker->run_dir,
                        link->vm_id);
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* -ENOENT: nobody listens there. */
static int connect_worker(const struct link *link, int *ret_fd, struct error *err)
{
        _cleanup_fd_ int dir_fd = -1, fd = -1;
        struct sockaddr_un address;
        int r = address_of(link, &dir_fd, &address, err);

        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket");
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
                if (errno == ENOENT || errno == ECONNREFUSED)
                        return fail(err, ENOENT, "no worker listens");
                return fail_os(err, errno, "cannot connect to '%s/%s.sock'", link->broker->run_dir,
                        link->vm_id);
        }
        *ret_fd = TAKE_FD(fd);
        return 0;
}

/* --- what the worker says by itself --- */

static void on_request(void *opaque, struct rpc *rpc, int64_t id, const char *method,
        json_t *params, struct message *message)
{
        struct link *link = opaque;
        struct files_answer answer;
        struct error err = ERROR_INIT;

        if (files_answer(link->files, method, params, &answer, &err) < 0) {
                if (err.code != ENOENT)
                        broker_log_error(link->broker, link->vm_id, &err);
                rpc_reply_error(rpc, id, &err);
                return;
        }
        rpc_reply(rpc, id, TAKE_PTR(answer.result), answer.fds, answer.n_fds);
        files_answer_done(&answer);
}

static void on_event(void *opaque, struct rpc *rpc, const char *name, const json_t *event)
{
        struct link *link = opaque;
        const char *text = json_string_value(json_object_get(event, "message"));
        json_int_t level = json_integer_value(json_object_get(event, "level"));

        if (!strcmp(name, "log") && text) {
                broker_log(link->broker,
                        level >= 0 && level <= BROKER_LOG_DEBUG ? (enum broker_log_level)level
                                                                : BROKER_LOG_INFO,
                        link->vm_id, "%s", text);
                return;
        }
        if (link->events.event)
                link->events.event(link->events.opaque, event);
}

/* --- a life --- */

static void tell_death(struct link *link, pid_t pid, int status)
{
        if (status >= 0 && WIFSIGNALED(status))
                broker_log(link->broker, BROKER_LOG_WARNING, link->vm_id,
                        "the worker (pid %d) was killed by signal %d", (int)pid, WTERMSIG(status));
        else
                broker_log(link->broker, BROKER_LOG_WARNING, link->vm_id,
                        "the worker (pid %d) ended%s", (int)pid,
                        status < 0       ? ""
                                : status ? " with an error"
                                         : " by itself");
}

static void *link_main(void *opaque)
{
        struct link *link = opaque;
        struct error err = ERROR_INIT;
        bool detached, silent;
        int pidfd, status = -1;
        struct rpc *rpc;
        pid_t pid;

        pthread_mutex_lock(&link->lock);
        rpc = rpc_ref(link->rpc);
        pidfd = link->pidfd;
        pid = link->pid;
        pthread_mutex_unlock(&link->lock);

        if (rpc_run(rpc, &err) < 0)
                broker_log_error(link->broker, link->vm_id, &err);
        rpc_unref(rpc);
        pthread_mutex_lock(&link->lock);
        detached = link->detached;
        pthread_mutex_unlock(&link->lock);
        if (detached)
                return NULL;
        if (!process_wait(pidfd, GO_AFTER_EOF_MS, &status)) {
                broker_log(link->broker, BROKER_LOG_ERROR, link->vm_id,
                        "the worker (pid %d) does not talk to us any more: it is killed", (int)pid);
                process_kill(pidfd);
                process_wait(pidfd, -1, &status);
        }
        pthread_mutex_lock(&link->lock);
        link->rpc = rpc_unref(link->rpc);
        link->pid = 0;
        close(link->pidfd);
        link->pidfd = -1;
        link->died_ms = now_ms();
        silent = link->silent;
        pthread_mutex_unlock(&link->lock);
        if (!silent) {
                tell_death(link, pid, status);
                link->events.died(link->events.opaque, status);
        }
        return NULL;
}

/* Takes @fd and @pidfd over in any case. */
static int begin_life(struct link *link, int fd, pid_t pid, int pidfd, struct error *err)
{
        const struct rpc_handlers handlers = {
                .request = on_request, .event = on_event, .opaque = link};
        struct rpc *rpc = NULL;
        int r = rpc_new(fd, &handlers, &rpc, err);

        if (r < 0) {
                close(fd);
                close(pidfd);
                return r;
        }
        pthread_mutex_lock(&link->lock);
        link->rpc = rpc;
        link->pid = pid;
        link->pidfd = pidfd;
        link->born_ms = now_ms();
        link->silent = true; /* until it has said hello */
        link->detached = false;
        pthread_mutex_unlock(&link->lock);
        r = pthread_create(&link->thread, NULL, link_main, link);
        if (r == 0) {
                link->has_thread = true;
                return 0;
        }
        pthread_mutex_lock(&link->lock);
        link->rpc = rpc_unref(link->rpc);
        link->pid = 0;
        close(link->pidfd);
        link->pidfd = -1;
        pthread_mutex_unlock(&link->lock);
        return fail_os(err, r, "cannot start a thread");
}

static void join(struct link *link)
{
        if (link->has_thread)
                pthread_join(link->thread, NULL);
        link->has_thread = false;
}

static struct rpc *current(struct link *link)
{
        MUTEX_GUARD(&link->lock);
        return link->rpc ? rpc_ref(link->rpc) : NULL;
}

static int say_hello(struct link *link, unsigned timeout_ms, json_t **ret, struct error *err)
{
        json_t *hello = NULL;
        int r = link_call(link, "hello",
                json_pack("{s:i, s:s}", "protocol", PROTOCOL, "vm", link->vm_id), timeout_ms,
                &hello, err);

        if (r < 0)
                return fail_prefix(err, r, "the worker of vm %s", link->vm_id);
        if (json_integer_value(json_object_get(hello, "pid")) != link_pid(link)) {
                json_decref(hello);
                return fail(err, EPROTO, "the worker of vm %s is another process than expected",
                        link->vm_id);
        }
        pthread_mutex_lock(&link->lock);
        link->silent = false;
        pthread_mutex_unlock(&link->lock);
        *ret = hello;
        return 0;
}

static int start_process(struct link *link, pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
        const struct broker_options *options = &link->broker->options;
        char threads[16], uid[16], gid[16];
        const char *args[] = {"vhdd", "--worker", link->vm_id, "--threads", threads, "--uid", uid,
                "--gid", gid, NULL};
        _cleanup_fd_ int listener = -1;
        int r = make_listener(link, &listener, err);

        if (r < 0)
                return r;
        snprintf(threads, sizeof(threads), "%u", options->threads);
        snprintf(uid, sizeof(uid), "%u", (unsigned)link->broker->worker_uid);
        snprintf(gid, sizeof(gid), "%u", (unsigned)link->broker->worker_gid);
        return process_spawn(link->broker, args, &listener, 1, ret_pid, ret_pidfd, err);
}

static void kill_silently(struct link *link)
{
        pthread_mutex_lock(&link->lock);
        link->silent = true;
        if (link->pidfd >= 0)
                process_kill(link->pidfd);
        pthread_mutex_unlock(&link->lock);
        join(link);
}

/* A new process that has said hello. */
static int bring_up(struct link *link, json_t **ret_hello, struct error *err)
{
        int fd = -1, pidfd = -1, status, r;
        pid_t pid;

        r = start_process(link, &pid, &pidfd, err);
        if (r < 0)
                return r;
        r = write_pid(link, pid, err);
        if (r == 0)
                r = connect_worker(link, &fd, err);
        if (r < 0) {
                process_kill(pidfd);
                process_wait(pidfd, -1, &status);
                close(pidfd);
                return r;
        }
        r = begin_life(link, fd, pid, pidfd, err);
        if (r < 0)
                return r;
        r = say_hello(link, HELLO_MS, ret_hello, err);
        if (r < 0)
                kill_silently(link);
        return r;
}

/* --- adopting --- */

static int take_files_back(struct link *link, struct error *err)
{
        json_int_t next = 0;

        do {
                struct message got = MESSAGE_INIT;
                struct rpc *rpc = current(link);
                const json_t *list, *at;
                json_t *path;
                size_t i;
                int r;

                if (!rpc)
                        return fail(err, EHOSTDOWN, "the worker ended");
                r = rpc_call(rpc, "files", json_pack("{s:I}", "offset", next), NULL, 0, HELLO_MS,
                        &got, err);
                rpc_unref(rpc);
                if (r < 0)
                        return r;
                list = json_object_get(got.json, "paths");
                at = json_object_get(got.json, "next");
                if (json_array_size(list) != got.n_fds ||
                        (json_is_integer(at) && json_integer_value(at) <= next)) {
                        message_done(&got);
                        return fail(err, EPROTO, "the worker's list of files is none");
                }
                json_array_foreach(list, i, path)
                {
                        if (json_is_string(path))
                                files_give_back(link->files, json_string_value(path),
                                        message_take_fd(&got, (unsigned)i));
                }
                next = json_is_integer(at) ? json_integer_value(at) : -1;
                message_done(&got);
        } while (next > 0);
        return 0;
}

/* The process behind the socket: what the kernel says (a worker listens anew, in its own name, when it
 * starts), or the pid file. */
static int find_process(
        const struct link *link, int fd, pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
        struct ucred cred;
        socklen_t size = sizeof(cred);
        uint64_t start;
        pid_t pid;
        int r = -ESRCH;

        if (read_pid(link, &pid, &start))
                r = process_open(pid, start, ret_pidfd);
        if (r < 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) == 0) {
                pid = cred.pid;
                r = process_open(pid, process_start_time(pid), ret_pidfd);
        }
        if (r < 0)
                return fail_os(
                        err, -r, "cannot tell which process the worker of vm %s is", link->vm_id);
        *ret_pid = pid;
        return 0;
}

/* Nobody listens any more, but it may still be dying. */
static int wait_for_old(const struct link *link, struct error *err)
{
        _cleanup_fd_ int pidfd = -1;
        uint64_t start;
        pid_t pid;
        int status;

        if (!read_pid(link, &pid, &start) || process_open(pid, start, &pidfd) < 0)
                return 0;
        if (process_wait(pidfd, OLD_WORKER_MS, &status))
                return 0;
        return fail(
                err, EBUSY, "the old worker of vm %s (pid %d) does not end", link->vm_id, (int)pid);
}

static int adopt(struct link *link, int fd, json_t **ret_hello, struct error *err)
{
        json_t *hello;
        int pidfd, r;
        pid_t pid = 0;

        r = find_process(link, fd, &pid, &pidfd, err);
        if (r < 0) {
                close(fd);
                return r;
        }
        r = begin_life(link, fd, pid, pidfd, err);
        if (r < 0)
                return r;
        r = say_hello(link, ADOPT_HELLO_MS, &hello, err);
        if (r == 0) {
                r = take_files_back(link, err);
                if (r < 0)
                        json_decref(hello);
        }
        if (r < 0)
                return fail_prefix(err, r, "cannot take over the worker (pid %d)", (int)pid);
        *ret_hello = hello;
        return 0;
}

/* --- the outside --- */

int link_start(struct broker *broker, const char *vm_id, const struct link_events *events,
        bool *ret_adopted, json_t **ret_hello, struct link **ret, struct error *err)
{
        struct link *link = calloc(1, sizeof(*link));
        json_t *hello = NULL;
        bool adopted;
        int fd, r;

        if (!link)
                return fail(err, ENOMEM, "no memory for a worker");
        link->broker = broker;
        link->events = *events;
        link->pidfd = -1;
        snprintf(link->vm_id, sizeof(link->vm_id), "%s", vm_id);
        pthread_mutex_init(&link->lock, NULL);
        r = files_new(vm_id, &link->files, err);
        if (r == 0)
                r = connect_worker(link, &fd, err);
        adopted = r == 0;
        if (adopted) {
                r = adopt(link, fd, &hello, err);
                if (r == -EHOSTDOWN) { /* it died while we talked to it: a new one is right */
                        join(link);
                        r = -ENOENT;
                }
        }
        if (r == -ENOENT) {
                adopted = false;
                error_clear(err);
                join(link);
                r = wait_for_old(link, err);
                if (r == 0)
                        r = bring_up(link, &hello, err);
        }
        if (r < 0) {
                link_free(link);
                return r;
        }
        *ret_adopted = adopted;
        if (ret_hello)
                *ret_hello = hello;
        else
                json_decref(hello);
        *ret = link;
        return 0;
}

bool link_is_left(struct broker *broker, const char *vm_id)
{
        struct link link = {.broker = broker};
        _cleanup_fd_ int pidfd = -1;
        uint64_t start;
        pid_t pid;

        snprintf(link.vm_id, sizeof(link.vm_id), "%s", vm_id);
        return read_pid(&link, &pid, &start) && process_open(pid, start, &pidfd) == 0;
}

/* Each life once: who asks again and again for one that is not started any more is no further death. */
static void count_life(struct link *link)
{
        if (link->counted_ms == link->born_ms)
                return;
        link->counted_ms = link->born_ms;
        link->short_lives =
                link->died_ms - link->born_ms < SHORT_LIFE_MS ? link->short_lives + 1 : 0;
}

int link_restart(struct link *link, json_t **ret_hello, struct error *err)
{
        json_t *hello = NULL;
        int r;

        if (link_is_alive(link))
                return fail(err, EALREADY, "the worker of vm %s lives", link->vm_id);
        join(link);
        count_life(link);
        if (link->short_lives >= LINK_MAX_DEATHS) {
                fail(err, EAGAIN, "the worker of vm %s died %u times, each time at once",
                        link->vm_id, link->short_lives);
                error_set_hint(err, "the log says why; then detach the disk that kills it");
                return -EAGAIN;
        }
        if (link->short_lives > 1) {
                unsigned doublings = MIN_OF(link->short_lives - 2, 10u);

                pause_ms(MIN_OF(PAUSE_MAX_MS, PAUSE_FIRST_MS << doublings));
        }
        r = bring_up(link, &hello, err);
        if (r < 0)
                return r;
        if (ret_hello)
                *ret_hello = hello;
        else
                json_decref(hello);
        return 0;
}

void link_forgive(struct link *link)
{
        link->short_lives = 0;
}

static int call(struct link *link, const char *method, json_t *params, const int *fds,
        unsigned n_fds, unsigned timeout_ms, json_t **ret, struct error *err)
{
        struct rpc *rpc = current(link);
        struct message got = MESSAGE_INIT;
        int r;

        if (!rpc) {
                json_decref(params);
                return fail(err, EHOSTDOWN, "the worker of vm %s does not run", link->vm_id);
        }
        r = rpc_call(rpc, method, params, fds, n_fds, timeout_ms, &got, err);
        rpc_unref(rpc);
        if (r < 0)
                return r;
        if (ret)
                *ret = json_incref(got.json);
        message_done(&got);
        return 0;
}

int link_call(struct link *link, const char *method, json_t *params, unsigned timeout_ms,
        json_t **ret, struct error *err)
{
        return call(link, method, params, NULL, 0, timeout_ms, ret, err);
}

int link_send_client(
        struct link *link, const struct nbd_handoff *handoff, int fd, struct error *err)
{
        _cleanup_free_ char *text = malloc(NBD_HANDOFF_TEXT_SIZE);
        int r;

        if (!text)
                return fail(err, ENOMEM, "no memory to hand a client over");
        nbd_handoff_to_text(handoff, text);
        r = call(link, "client", json_pack("{s:s}", "handoff", text), &fd, 1, CLIENT_MS, NULL, err);
        if (r == 0)
                close(fd);
        return r;
}

int link_grant(struct link *link, const char *path, unsigned access, uint64_t device,
        uint64_t inode, struct error *err)
{
        return files_grant(link->files, path, access, device, inode, err);
}

void link_revoke(struct link *link, const char *path)
{
        files_revoke(link->files, path);
}

void link_revoke_others(
        struct link *link, bool (*keep)(void *opaque, const char *path), void *opaque)
{
        files_revoke_others(link->files, keep, opaque);
}

void link_adopted(struct link *link)
{
        files_drop_returned(link->files);
}

pid_t link_pid(const struct link *link)
{
        pthread_mutex_t *lock = (pthread_mutex_t *)(uintptr_t)&link->lock;

        MUTEX_GUARD(lock);
        return link->pid;
}

bool link_is_alive(struct link *link)
{
        MUTEX_GUARD(&link->lock);
        return link->pid > 0;
}

struct link *link_free(struct link *link)
{
        struct rpc *rpc;

        if (!link)
                return NULL;
        pthread_mutex_lock(&link->lock);
        link->detached = link->silent = true;
        rpc = link->rpc ? rpc_ref(link->rpc) : NULL;
        pthread_mutex_unlock(&link->lock);
        if (rpc)
                rpc_shutdown(rpc);
        rpc_unref(rpc);
        join(link);
        rpc_unref(link->rpc);
        if (link->pidfd >= 0)
                close(link->pidfd);
        files_free(link->files);
        pthread_mutex_destroy(&link->lock);
        free(link);
        return NULL;
}

int link_quit(struct link *link, unsigned timeout_ms, struct error *err)
{
        int r = 0;

        pthread_mutex_lock(&link->lock);
        link->silent = true;
        pthread_mutex_unlock(&link->lock);
        if (link_is_alive(link))
                r = link_call(link, "quit", json_pack("{s:i}", "timeout-ms", (int)timeout_ms),
                        timeout_ms + 2000, NULL, err);
        if (r < 0)
                kill_silently(link);
        else
                join(link); /* killed there if it does not go */
        remove_traces(link);
        return r;
}

void link_kill(struct link *link)
{
        MUTEX_GUARD(&link->lock);
        if (link->pidfd >= 0)
                process_kill(link->pidfd);
}
