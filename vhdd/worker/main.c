/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/worker.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/uuid.h"
#include "vhdd/worker/internal.h"
#include "vhdd/worker/sandbox.h"

#define LISTEN_FD     3
#define FILES_AT_ONCE CHANNEL_MAX_FDS
#define QUIT_MS       10000

/* --- params --- */

const char *param_text(const json_t *params, const char *key, struct error *err)
{
        const char *text = json_string_value(json_object_get(params, key));

        if (!text)
                fail(err, EINVAL, "the question has no '%s'", key);
        return text;
}

const char *param_text_or(const json_t *params, const char *key, const char *otherwise)
{
        const char *text = json_string_value(json_object_get(params, key));

        return text ? text : otherwise;
}

bool param_bool(const json_t *params, const char *key)
{
        return json_is_true(json_object_get(params, key));
}

uint64_t param_number(const json_t *params, const char *key, uint64_t otherwise)
{
        const json_t *value = json_object_get(params, key);
        json_int_t n = json_integer_value(value);

        return json_is_integer(value) && n >= 0 ? (uint64_t)n : otherwise;
}

/* --- the log --- */

struct rpc *worker_broker(struct worker *worker)
{
        MUTEX_GUARD(&worker->lock);
        return worker->rpc ? rpc_ref(worker->rpc) : NULL;
}

void worker_log(struct worker *worker, int level, const char *sentence)
{
        _cleanup_(rpc_unrefp) struct rpc *rpc = worker_broker(worker);

        if (rpc)
                rpc_send_event(
                        rpc, "log", json_pack("{s:i, s:s}", "level", level, "message", sentence));
        else if (level <= LOG_INFO)
                fprintf(stderr, "vhdd worker %s: %s\n", worker->vm_text, sentence);
}

static void on_server_log(void *opaque, enum nbd_log_level level, const char *sentence)
{
        static const int levels[] = {
                [NBD_LOG_ERROR] = LOG_ERROR,
                [NBD_LOG_INFO] = LOG_INFO,
                [NBD_LOG_DEBUG] = LOG_DEBUG,
        };

        if (level != NBD_LOG_DEBUG)
                worker_log(opaque, levels[level], sentence);
}

/* --- verbs --- */

int verb_hello(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        uint64_t protocol = param_number(params, "protocol", 0);

        if (protocol != WORKER_PROTOCOL)
                return fail(err, EPROTONOSUPPORT,
                        "the broker speaks version %llu, and this worker version %d",
                        (unsigned long long)protocol, WORKER_PROTOCOL);
        if (strcmp(param_text_or(params, "vm", ""), worker->vm_text) != 0)
                return fail(err, EINVAL, "this is the worker of vm %s", worker->vm_text);
        *ret = json_pack("{s:b, s:i, s:o, s:o, s:o, s:o}", "fresh", !worker->used, "pid",
                (int)getpid(), "chains", chains_to_json(worker), "exports", exports_to_json(worker),
                "switched", worker->switched[0] ? json_string(worker->switched) : json_null(),
                "merges", merges_to_json(worker));
        return 0;
}

/* Ends after its answer (run_job). */
int verb_quit(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        struct error local = ERROR_INIT;
        int r, r2;

        for (struct worker_chain *chain = worker->chains; chain; chain = chain->next)
                release_flushes(chain);
        merges_stop(worker, NULL);
        r = nbd_server_stop(
                worker->server, (unsigned)param_number(params, "timeout-ms", QUIT_MS), err);
        while (worker->exports) {
                struct worker_export *export = worker->exports;

                worker->exports = export->next;
                free(export->name);
                free(export);
        }
        forget_switch(worker);
        r2 = close_all(worker, &local);
        if (r == 0 && r2 < 0) {
                *err = local;
                r = r2;
        }
        return r;
}

static const struct {
        const char *method;
        verb_fn run;
} verbs[] = {
        {"hello", verb_hello},
        {"chain.open", verb_chain_open},
        {"chain.close", verb_chain_close},
        {"chain.resize", verb_chain_resize},
        {"chain.create-child", verb_chain_create_child},
        {"image.create-child", verb_image_create_child},
        {"image.settle", verb_image_settle},
        {"image.forget", verb_image_forget},
        {"snapshot.switch", verb_snapshot_switch},
        {"snapshot.flush", verb_snapshot_flush},
        {"snapshot.commit", verb_snapshot_commit},
        {"snapshot.switched", verb_snapshot_switched},
        {"merge.plan", verb_merge_plan},
        {"merge.begin", verb_merge_begin},
        {"compact.begin", verb_compact_begin},
        {"merge.pause", verb_merge_pause},
        {"merge.resume", verb_merge_resume},
        {"merge.limit", verb_merge_limit},
        {"merge.status", verb_merge_status},
        {"merge.finish", verb_merge_finish},
        {"merge.free", verb_merge_free},
        {"seal.begin", verb_seal_begin},
        {"seal.limit", verb_seal_limit},
        {"export.add", verb_export_add},
        {"export.remove", verb_export_remove},
        {"export.hide", verb_export_hide},
        {"export.changed", verb_export_changed},
        {"export.clients", verb_export_clients},
        {"changed", verb_changed},
        {"metrics", verb_metrics},
        {"quit", verb_quit},
};

static void run_job(struct worker *worker, struct job *job)
{
        struct error err = ERROR_INIT;
        json_t *result = NULL;
        int r = fail(&err, ENOSYS, "a worker has no '%.64s'", job->method);

        for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
                if (strcmp(verbs[i].method, job->method) != 0)
                        continue;
                error_clear(&err);
                r = verbs[i].run(worker, job->params, &result, &err);
                break;
        }
        if (r < 0) {
                json_decref(result);
                rpc_reply_error(job->rpc, job->id, &err);
        } else {
                rpc_reply(job->rpc, job->id, result, NULL, 0);
        }
        if (!strcmp(job->method, "quit")) /* nothing is left to lose, also if a flush failed */
                _exit(r < 0 ? 1 : 0);
}

static void job_free(struct job *job)
{
        rpc_unref(job->rpc);
        json_decref(job->params);
        free(job->method);
        free(job);
}

static void *job_main(void *opaque)
{
        struct worker *worker = opaque;

        for (;;) {
                struct job *job;

                pthread_mutex_lock(&worker->lock);
                while (!worker->jobs)
                        pthread_cond_wait(&worker->more_jobs, &worker->lock);
                job = worker->jobs;
                worker->jobs = job->next;
                if (!worker->jobs)
                        worker->jobs_end = &worker->jobs;
                pthread_mutex_unlock(&worker->lock);
                run_job(worker, job);
                job_free(job);
        }
        return NULL;
}

/* --- what is answered at once --- */

static void answer_client(struct worker *worker, struct rpc *rpc, int64_t id, const json_t *params,
        struct message *message)
{
        const char *text = param_text_or(params, "handoff", "");
        struct nbd_handoff handoff;
        struct error err = ERROR_INIT;
        int r = nbd_handoff_from_text(text, &handoff, &err);

        if (r == 0 && message->n_fds != 1)
                r = fail(&err, EPROTO, "a client came with %u descriptors", message->n_fds);
        if (r == 0)
                r = nbd_server_serve_handoff(worker->server, message->fds[0], &handoff, &err);
        if (r < 0) {
                rpc_reply_error(rpc, id, &err);
                return;
        }
        message_take_fd(message, 0); /* the server's now */
        rpc_reply(rpc, id, NULL, NULL, 0);
}

static void answer_files(struct worker *worker, struct rpc *rpc, int64_t id, const json_t *params)
{
        uint64_t offset = param_number(params, "offset", 0);
        json_t *paths = json_array();
        int fds[FILES_AT_ONCE];
        unsigned n = proxy_fs_list(worker->fs, offset, paths, fds, FILES_AT_ONCE);

        rpc_reply(rpc, id,
                json_pack("{s:o, s:o}", "paths", paths, "next",
                        n == FILES_AT_ONCE ? json_integer((json_int_t)(offset + n)) : json_null()),
                fds, n);
        while (n > 0)
                close(fds[--n]);
}

static void answer_clients(struct worker *worker, struct rpc *rpc, int64_t id, const json_t *params)
{
        struct error err = ERROR_INIT;
        json_t *result = NULL;

        if (verb_clients(worker, params, &result, &err) < 0)
                rpc_reply_error(rpc, id, &err);
        else
                rpc_reply(rpc, id, result, NULL, 0);
}

static void queue_job(
        struct worker *worker, struct rpc *rpc, int64_t id, const char *method, json_t *params)
{
        struct error err = ERROR_INIT;
        struct job *job = calloc(1, sizeof(*job));

        if (job)
                job->method = strdup(method);
        if (!job || !job->method) {
                free(job);
                fail(&err, ENOMEM, "the worker has no memory");
                rpc_reply_error(rpc, id, &err);
                return;
        }
        job->rpc = rpc_ref(rpc);
        job->id = id;
        job->params = json_incref(params);
        MUTEX_GUARD(&worker->lock);
        *worker->jobs_end = job;
        worker->jobs_end = &job->next;
        pthread_cond_signal(&worker->more_jobs);
}

static void on_request(void *opaque, struct rpc *rpc, int64_t id, const char *method,
        json_t *params, struct message *message)
{
        struct worker *worker = opaque;

        if (!strcmp(method, "client"))
                answer_client(worker, rpc, id, params, message);
        else if (!strcmp(method, "clients"))
                answer_clients(worker, rpc, id, params);
        else if (!strcmp(method, "files"))
                answer_files(worker, rpc, id, params);
        else
                queue_job(worker, rpc, id, method, params);
}

/* --- brokers --- */

/* What a broker asked for that is no more and nobody has begun. */
static void drop_jobs_of(struct worker *worker, const struct rpc *rpc)
{
        MUTEX_GUARD(&worker->lock);
        for (struct job **at = &worker->jobs; *at;) {
                struct job *job = *at;

                if (job->rpc != rpc) {
                        at = &job->next;
                        continue;
                }
                *at = job->next;
                job_free(job);
        }
        worker->jobs_end = &worker->jobs;
        while (*worker->jobs_end)
                worker->jobs_end = &(*worker->jobs_end)->next;
}

static void set_broker(struct worker *worker, struct rpc *rpc)
{
        struct rpc *old;

        pthread_mutex_lock(&worker->lock);
        old = worker->rpc;
        worker->rpc = rpc ? rpc_ref(rpc) : NULL;
        pthread_mutex_unlock(&worker->lock);
        proxy_fs_connect(worker->fs, rpc);
        rpc_unref(old);
}

static void *reader_main(void *opaque)
{
        rpc_run(opaque, NULL);
        return NULL;
}

static bool may_be_broker(const struct worker *worker, int fd)
{
        struct ucred cred;
        socklen_t size = sizeof(cred);

        return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) == 0 &&
                (cred.uid == 0 || cred.uid == worker->parent_uid);
}

/* One broker after the other: the newest is right, because the lock on the state directory lets only
 * one live. */
static int take_brokers(struct worker *worker)
{
        const struct rpc_handlers handlers = {.request = on_request, .opaque = worker};
        const struct timespec pause = {.tv_nsec = 100000000};
        struct rpc *rpc = NULL;
        pthread_t reader;

        for (;;) {
                int fd = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC);
                struct rpc *next = NULL;

                if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
                        continue;
                if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
                        nanosleep(&pause, NULL); /* a client or a chain will go */
                        continue;
                }
                if (fd < 0)
                        return 1;
                if (!may_be_broker(worker, fd) || rpc_new(fd, &handlers, &next, NULL) < 0) {
                        close(fd);
                        continue;
                }
                if (rpc) {
                        rpc_shutdown(rpc);
                        pthread_join(reader, NULL);
                        drop_jobs_of(worker, rpc);
                        rpc_unref(rpc);
                }
                rpc = next;
                set_broker(worker, rpc);
                if (pthread_create(&reader, NULL, reader_main, rpc) != 0)
                        return 1;
        }
}

/* --- the beginning --- */

static int parse_options(int argc, char **argv, struct worker *worker, struct sandbox *sandbox,
        unsigned *ret_threads)
{
        static const struct option options[] = {
                {"worker", required_argument, NULL, 'w'},
                {"threads", required_argument, NULL, 't'},
                {"uid", required_argument, NULL, 'u'},
                {"gid", required_argument, NULL, 'g'},
                {0},
        };
        int c;

        while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
                switch (c) {
                case 'w': snprintf(worker->vm_text, sizeof(worker->vm_text), "%s", optarg); break;
                case 't': *ret_threads = (unsigned)strtoul(optarg, NULL, 10); break;
                case 'u': sandbox->uid = (uid_t)strtoul(optarg, NULL, 10); break;
                case 'g': sandbox->gid = (gid_t)strtoul(optarg, NULL, 10); break;
                default: return -EINVAL;
                }
        }
        return uuid_parse(worker->vm_text, worker->vm) ? 0 : -EINVAL;
}

static int start_server(struct worker *worker, unsigned threads, struct error *err)
{
        const struct nbd_server_options options = {
                .threads = threads,
                .log = on_server_log,
                .event = on_client_event,
                .opaque = worker,
        };
        int r = nbd_server_new(&options, &worker->server, err);

        return r < 0 ? r : nbd_server_start(worker->server, err);
}

/* First what needs the machine (this boot's id, threads, a ring), then the locks behind us, then the
 * first message. */
static int start(
        struct worker *worker, struct sandbox *sandbox, unsigned threads, struct error *err)
{
        pthread_t thread;
        int r;

        worker->parent_uid = getuid();
        tzset(); /* gmtime_r would look for the time zone, of all things */
        r = proxy_fs_new(&worker->fs, err);
        worker->family = chain_family_new();
        if (r == 0 && !worker->family)
                r = fail(err, ENOMEM, "no memory for a family of chains");
        if (r == 0)
                r = sandbox_enter(sandbox, err);
        if (r == 0)
                r = start_server(worker, threads, err);
        if (r == 0)
                r = sandbox_seal(sandbox, err);
        if (r < 0)
                return r;
        if (sandbox->notes[0])
                worker_log(worker, LOG_INFO, sandbox->notes);
        r = pthread_create(&thread, NULL, job_main, worker);
        if (r != 0)
                return fail_os(err, r, "cannot start a thread");
        pthread_detach(thread);
        /* Once more, in our own name: SO_PEERCRED at the other end then tells who we are. */
        if (listen(LISTEN_FD, 8) < 0)
                return fail_os(err, errno, "descriptor %d is no socket to listen on", LISTEN_FD);
        return 0;
}

int worker_main(int argc, char **argv)
{
        struct worker *worker = calloc(1, sizeof(*worker));
        struct sandbox sandbox = SANDBOX_INIT("worker");
        struct error err = ERROR_INIT;
        unsigned threads = 0;

        if (!worker || parse_options(argc, argv, worker, &sandbox, &threads) < 0) {
                fprintf(stderr, "vhdd: --worker is for the daemon's own use\n");
                return 2;
        }
        pthread_mutex_init(&worker->lock, NULL);
        pthread_cond_init(&worker->more_jobs, NULL);
        worker->jobs_end = &worker->jobs;
        signal(SIGPIPE, SIG_IGN);
        if (start(worker, &sandbox, threads, &err) < 0) {
                fprintf(stderr, "vhdd worker %s: %s\n", worker->vm_text, err.message);
                return 3;
        }
        return take_brokers(worker);
}
