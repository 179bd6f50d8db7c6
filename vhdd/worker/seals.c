/* SPDX-License-Identifier: Apache-2.0 */
/* Sealing: an image that others stand on is read whole, and what it holds written down beside it
 * (chain/seal.h), by a thread that is less important than anything else here. One at a time.
 *
 *      seal.begin --> running --> done, failed         chain.close of its chain from anywhere: it is gone
 *
 * The image is the leaf of a chain that was opened for this alone. The worker writes NAME.vhdd-seal.new;
 * the broker looks once more and puts it in place.
 */
#include <linux/ioprio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "chain/seal.h"
#include "merge/pace.h"
#include "vhdd/worker/internal.h"
#include "vhdd/worker/latency.h"

#define PROGRESS_MS 500u
#define NICE        10

struct worker_seal {
        /* immutable after begin */
        struct worker *worker;
        int64_t job;
        struct worker_chain *chain; /* of its own */
        pthread_t thread;

        /* owner: its thread */
        struct pace pace;
        struct latency_watch clients;
        uint64_t told_ms, told_bytes;

        pthread_mutex_t lock;
        /* guarded by lock */
        struct worker_chain *watched; /* whose clients must not notice; NULL: none */
        bool stop;
        uint64_t rate, done, total, speed;
};

static uint64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* --- telling --- */

static void tell(struct worker_seal *seal, const char *what, json_t *more)
{
        _cleanup_(rpc_unrefp) struct rpc *rpc = worker_broker(seal->worker);
        json_t *event;

        pthread_mutex_lock(&seal->lock);
        event = json_pack("{s:s, s:I, s:I, s:I, s:I}", "what", what, "job", (json_int_t)seal->job,
                "bytes-done", (json_int_t)seal->done, "bytes-total", (json_int_t)seal->total,
                "speed", (json_int_t)seal->speed);
        pthread_mutex_unlock(&seal->lock);
        if (event && more)
                json_object_update(event, more);
        json_decref(more);
        if (rpc && event)
                rpc_send_event(rpc, "seal", event);
        else
                json_decref(event);
}

/* --- what the engine asks, on the seal's thread --- */

static bool may_go_on(void *opaque)
{
        struct worker_seal *seal = opaque;

        MUTEX_GUARD(&seal->lock);
        return !seal->stop;
}

static uint64_t allowed_rate(void *opaque)
{
        struct worker_seal *seal = opaque;

        MUTEX_GUARD(&seal->lock);
        return seal->rate;
}

static bool look_at_clients(void *opaque, struct nbd_export_stats *ret)
{
        struct worker_seal *seal = opaque;

        MUTEX_GUARD(&seal->lock);
        if (!seal->watched)
                return false;
        nbd_server_chain_stats_get(seal->worker->server, seal->watched->chain, ret);
        return true;
}

static bool tell_latency(void *opaque, uint64_t *ret_now_us, uint64_t *ret_alone_us)
{
        struct worker_seal *seal = opaque;

        if (!latency_watch_ask(&seal->clients, ret_now_us, ret_alone_us))
                return false;
        /* Twice what it is: a seal has time, and slows down before anybody could call it slow. */
        *ret_now_us *= 2;
        return true;
}

static void on_progress(void *opaque, uint64_t done, uint64_t total)
{
        struct worker_seal *seal = opaque;
        uint64_t now = now_ms(), since = now - seal->told_ms;

        pthread_mutex_lock(&seal->lock);
        seal->done = done;
        seal->total = total;
        if (since >= PROGRESS_MS)
                seal->speed = (done - seal->told_bytes) * 1000 / since;
        pthread_mutex_unlock(&seal->lock);
        if (since < PROGRESS_MS)
                return;
        seal->told_ms = now;
        seal->told_bytes = done;
        tell(seal, "progress", NULL);
}

static int keep_pace(void *opaque, uint64_t bytes, struct error *err)
{
        const struct merge_controls controls = {
                .opaque = opaque,
                .go_on = may_go_on,
                .rate = allowed_rate,
                .latency = tell_latency,
        };
        struct worker_seal *seal = opaque;

        pace_add(&seal->pace, bytes);
        if (pace_keep(&seal->pace, &controls) < 0)
                return fail(err, ECANCELED, "the seal was stopped");
        return 0;
}

/* --- the thread --- */

/* Whoever wants the disk gets it before us, and mostly the processor, too: not SCHED_IDLE, because for
 * moments we hold locks that a guest's request may wait for. What the machine does not know, or does not
 * allow, is no reason not to seal. */
static void become_idle(void)
{
        (void)syscall(
                SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0));
        (void)setpriority(PRIO_PROCESS, 0, NICE);
}

static void *seal_main(void *opaque)
{
        struct worker_seal *seal = opaque;
        const struct seal_watcher watcher = {
                .opaque = seal, .progress = on_progress, .pace = keep_pace, .beside = true};
        struct chain *chain = seal->chain->chain;
        /* Only for a file's locks and counters is a layer changed by those who look at it. */
        struct image *image = (struct image *)(uintptr_t)chain_layer(chain, chain_depth(chain) - 1);
        struct error err = ERROR_INIT;
        struct seal_facts facts;
        int r;

        become_idle();
        seal->told_ms = now_ms();
        latency_watch_begin(&seal->clients);
        r = seal_write(image, &watcher, &facts, &err);
        if (r == -ECANCELED)
                return NULL;
        if (r < 0)
                tell(seal, "failed", json_pack("{s:s, s:i}", "error", err.message, "code", -r));
        else
                tell(seal, "done",
                        json_pack("{s:I, s:I}", "file-size", (json_int_t)facts.file_size,
                                "changed-ns", (json_int_t)facts.changed_ns));
        return NULL;
}

static void end_seal(struct worker *worker)
{
        struct worker_seal *seal = worker->seal;

        pthread_mutex_lock(&seal->lock);
        seal->stop = true;
        pthread_mutex_unlock(&seal->lock);
        pthread_join(seal->thread, NULL);
        pthread_mutex_destroy(&seal->lock);
        free(seal);
        worker->seal = NULL;
}

void seal_stop(struct worker *worker, const struct worker_chain *chain)
{
        struct worker_seal *seal = worker->seal;

        if (!seal)
                return;
        if (seal->chain == chain) {
                end_seal(worker);
                return;
        }
        MUTEX_GUARD(&seal->lock);
        if (seal->watched == chain)
                seal->watched = NULL;
}

/* --- verbs --- */

static bool has_layer(const struct chain *chain, const char *path)
{
        for (unsigned i = 0; i < chain_depth(chain); i++)
                if (strcmp(chain_layer_path(chain, i), path) == 0)
                        return true;
        return false;
}

/* A chain that clients use and that reads the image; else one that they use: the disk is the same. */
static struct worker_chain *find_watched(
        struct worker *worker, const struct worker_chain *own, const char *path)
{
        struct worker_chain *any = NULL;

        for (struct worker_chain *at = worker->chains; at; at = at->next) {
                if (at == own || !chain_is_exported(worker, at))
                        continue;
                if (at->writable && has_layer(at->chain, path))
                        return at;
                any = any ? any : at;
        }
        return any;
}

int verb_seal_begin(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        struct worker_chain *chain;
        struct worker_seal *seal;
        struct nbd_export_stats stats;
        const char *path;
        int r = find_chain(worker, param_text_or(params, "chain", NULL), &chain, err);

        if (r == 0 && worker->seal)
                r = fail(err, EBUSY, "another image is being sealed");
        if (r < 0)
                return r;
        seal = calloc(1, sizeof(*seal));
        if (!seal)
                return fail(err, ENOMEM, "no memory for a seal");
        path = chain_layer_path(chain->chain, chain_depth(chain->chain) - 1);
        seal->worker = worker;
        seal->job = (int64_t)param_number(params, "job", 0);
        seal->chain = chain;
        seal->rate = param_number(params, "rate", 0);
        seal->total = chain_size(chain->chain);
        seal->watched = find_watched(worker, chain, path);
        seal->clients.look = look_at_clients;
        seal->clients.opaque = seal;
        pthread_mutex_init(&seal->lock, NULL);
        if (seal->watched) {
                seal->clients.latency = seal->watched->latency;
                if (look_at_clients(seal, &stats))
                        latency_alone(&seal->clients.latency, &stats);
        }
        r = pthread_create(&seal->thread, NULL, seal_main, seal);
        if (r != 0) {
                pthread_mutex_destroy(&seal->lock);
                free(seal);
                return fail_os(err, r, "cannot start a thread for a seal");
        }
        worker->seal = seal;
        *ret = json_pack("{s:I}", "bytes-total", (json_int_t)chain_size(chain->chain));
        return 0;
}

int verb_seal_limit(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        struct worker_seal *seal = worker->seal;

        if (!seal || seal->job != (int64_t)param_number(params, "job", 0))
                return fail(err, ENOENT, "the worker has no such seal");
        MUTEX_GUARD(&seal->lock);
        seal->rate = param_number(params, "rate", 0);
        return 0;
}
