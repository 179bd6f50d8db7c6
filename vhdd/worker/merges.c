/* SPDX-License-Identifier: Apache-2.0 */
/* The merges of a worker's chains, and the compactions of their leaves: jobs that move blocks. The thread
 * that runs the verbs begins and ends one; in between it moves blocks on a thread of its own, beside
 * snapshots and clients.
 *
 *      merge.begin --> running --> done --merge.finish--> finished --merge.free--> gone
 *                       |   ^
 *                  pause|   |merge.resume
 *                error  v   |
 *              paused, failed              merge.free from anywhere: it stops, and is gone
 *
 * What sendfile queued for a client that takes nothing must leave before blocks move (E8). merge.begin waits
 * for that a moment, and is refused: the broker tries again. From the beginning to the end of a merge
 * replies are copied, so its end has nobody to wait for who can take long.
 *
 * A compaction (compact.begin) has nothing to finish. It changes the leaf alone, and so stands still from
 * a snapshot's switch to its commit; the leaf is another one then, and it fails with ESTALE.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/arith.h"
#include "base/uuid.h"
#include "merge/compact.h"
#include "merge/merge.h"
#include "merge/pace.h"
#include "vhdd/worker/internal.h"
#include "vhdd/worker/latency.h"
#include "vhdd/worker/layers.h"

#define PROGRESS_MS  500u
#define PATIENCE_MS  700u /* other verbs wait meanwhile */
#define NICE         10
#define COMPACT_STEP (UINT64_C(4) << 20) /* bytes: a snapshot waits for one at most */

enum merging_state { MERGING, MERGING_PAUSED, MERGING_FAILED, MERGING_DONE, MERGING_FINISHED };

static const char *const state_texts[] = {
        [MERGING] = "running",
        [MERGING_PAUSED] = "paused",
        [MERGING_FAILED] = "failed",
        [MERGING_DONE] = "done",
        [MERGING_FINISHED] = "finished",
};

struct worker_merge {
        struct worker_merge *next;
        /* immutable after begin */
        struct worker *worker;
        int64_t job;
        char *chain_name;
        /* The layers that go: the path of the lowest, and how many stand on it. Their numbers change when
         * another chain's merge takes a layer from beneath them. */
        char *lowest;
        unsigned n_above;

        /* owner: the thread that runs the verbs */
        struct worker_chain *chain; /* NULL: finished, or given up */
        bool shared; /* others stand on the layers that go: they leave the chains of the one above only */
        bool renumbered; /* the server counts the layers as they will be */
        bool has_thread;
        pthread_t thread;

        /* owner: the merge's thread while there is one */
        struct merge *merge; /* one of them */
        struct compact *compact;
        struct pace pace; /* of the compaction; a merge has its own */
        struct latency_watch clients;
        uint64_t told_ms, told_bytes;

        pthread_mutex_t lock;
        pthread_cond_t changed;
        /* guarded by lock */
        enum merging_state state;
        bool stop, pause;
        bool held, stepping; /* a compaction: between a snapshot's switch and commit; in a step */
        uint64_t rate;       /* that is allowed, or 0 */
        uint64_t speed;
        struct merge_progress progress;
        struct error why; /* of MERGING_FAILED */
        int code;
};

static uint64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static struct worker_merge *find_merge(const struct worker *worker, int64_t job)
{
        for (struct worker_merge *at = worker->merges; at; at = at->next)
                if (at->job == job)
                        return at;
        return NULL;
}

static int need_merge(
        struct worker *worker, const json_t *params, struct worker_merge **ret, struct error *err)
{
        uint64_t job = param_number(params, "job", 0);

        *ret = find_merge(worker, (int64_t)job);
        if (*ret)
                return 0;
        return fail(err, ENOENT, "the worker has no merge %llu", (unsigned long long)job);
}

/* --- telling --- */

static json_t *to_json(struct worker_merge *merging)
{
        MUTEX_GUARD(&merging->lock);
        return json_pack("{s:I, s:s, s:s, s:I, s:I, s:I, s:s?, s:i}", "job",
                (json_int_t)merging->job, "chain", merging->chain_name, "state",
                state_texts[merging->state], "bytes-done", (json_int_t)merging->progress.bytes_done,
                "bytes-total", (json_int_t)merging->progress.bytes_total, "speed",
                (json_int_t)merging->speed, "error",
                merging->state == MERGING_FAILED ? merging->why.message : NULL, "code",
                merging->state == MERGING_FAILED ? merging->code : 0);
}

static void tell(struct worker_merge *merging, const char *what)
{
        _cleanup_(rpc_unrefp) struct rpc *rpc = worker_broker(merging->worker);
        json_t *event = rpc ? to_json(merging) : NULL;

        if (!event)
                return;
        json_object_set_new(event, "what", json_string(what));
        rpc_send_event(rpc, "merge", event);
}

json_t *merges_to_json(const struct worker *worker)
{
        json_t *list = json_array();

        for (struct worker_merge *at = worker->merges; at; at = at->next)
                json_array_append_new(list, to_json(at));
        return list;
}

/* --- what the engine asks, on the merge's thread --- */

static bool may_go_on(void *opaque)
{
        struct worker_merge *merging = opaque;

        MUTEX_GUARD(&merging->lock);
        return !merging->stop && !merging->pause;
}

static uint64_t allowed_rate(void *opaque)
{
        struct worker_merge *merging = opaque;

        MUTEX_GUARD(&merging->lock);
        return merging->rate;
}

static void on_progress(void *opaque, const struct merge_progress *progress)
{
        struct worker_merge *merging = opaque;
        uint64_t now = now_ms(), since = now - merging->told_ms;
        bool due = since >= PROGRESS_MS;

        pthread_mutex_lock(&merging->lock);
        merging->progress = *progress;
        if (due)
                merging->speed = (progress->bytes_done - merging->told_bytes) * 1000 / since;
        pthread_mutex_unlock(&merging->lock);
        if (!due)
                return;
        merging->told_ms = now;
        merging->told_bytes = progress->bytes_done;
        tell(merging, "progress");
}

static bool look_at_clients(void *opaque, struct nbd_export_stats *ret)
{
        struct worker_merge *merging = opaque;

        nbd_server_chain_stats_get(merging->worker->server, merging->chain->chain, ret);
        return true;
}

static bool tell_latency(void *opaque, uint64_t *ret_now_us, uint64_t *ret_alone_us)
{
        struct worker_merge *merging = opaque;

        if (!latency_watch_ask(&merging->clients, ret_now_us, ret_alone_us))
                return false;
        /* A third more than it is: so the engine's swinging about twice the usual stays below it. */
        *ret_now_us += *ret_now_us / 3;
        return true;
}

/* --- the thread --- */

/* After a run that moved everything, was stopped, or failed. Answers whether it runs once more. */
static bool settle(struct worker_merge *merging, int r, const struct error *why)
{
        bool again;

        pthread_mutex_lock(&merging->lock);
        if (r == 0)
                merging->state = MERGING_DONE;
        else if (r == -ECANCELED)
                merging->state = MERGING_PAUSED;
        else
                merging->state = MERGING_FAILED;
        merging->why = *why;
        merging->code = -r;
        merging->speed = 0;
        /* A failure is told, and tried again when somebody says so. */
        if (merging->state == MERGING_FAILED)
                merging->pause = true;
        again = r == -ECANCELED && !merging->stop && !merging->pause;
        if (again)
                merging->state = MERGING;
        pthread_mutex_unlock(&merging->lock);
        if (again)
                return true;
        tell(merging, state_texts[merging->state]);
        if (r == 0)
                return false;
        pthread_mutex_lock(&merging->lock);
        while (merging->pause && !merging->stop)
                pthread_cond_wait(&merging->changed, &merging->lock);
        again = !merging->stop;
        if (again)
                merging->state = MERGING;
        pthread_mutex_unlock(&merging->lock);
        if (again)
                tell(merging, "running");
        return again;
}

/* Waits until no snapshot is on its way. false: it was told to stop. */
static bool step_begin(struct worker_merge *merging)
{
        MUTEX_GUARD(&merging->lock);
        while (merging->held && !merging->stop)
                pthread_cond_wait(&merging->changed, &merging->lock);
        merging->stepping = !merging->stop;
        return merging->stepping;
}

static void step_end(struct worker_merge *merging)
{
        MUTEX_GUARD(&merging->lock);
        merging->stepping = false;
        pthread_cond_broadcast(&merging->changed);
}

static int run_compact(
        struct worker_merge *merging, const struct merge_controls *controls, struct error *err)
{
        struct merge_progress progress = {0};
        uint64_t before = 0;
        int r, pace;

        pace_anew(&merging->pace);
        compact_progress(merging->compact, &before, &progress.bytes_total);
        do {
                if (!step_begin(merging))
                        return -ECANCELED;
                r = compact_step(merging->compact, err);
                step_end(merging);
                compact_progress(merging->compact, &progress.bytes_done, &progress.bytes_total);
                controls->progress(controls->opaque, &progress);
                pace_add(&merging->pace, progress.bytes_done - MIN_OF(before, progress.bytes_done));
                before = progress.bytes_done;
                pace = r > 0 ? pace_keep(&merging->pace, controls) : 0;
        } while (r > 0 && pace == 0);
        return r < 0 ? r : pace;
}

static void *merge_main(void *opaque)
{
        struct worker_merge *merging = opaque;
        const struct merge_controls controls = {
                .opaque = merging,
                .go_on = may_go_on,
                .progress = on_progress,
                .rate = allowed_rate,
                .latency = tell_latency,
        };
        struct error why;
        int r;

        setpriority(PRIO_PROCESS, 0, NICE);
        merging->told_ms = now_ms();
        latency_watch_begin(&merging->clients);
        do {
                error_clear(&why);
                if (!may_go_on(merging))
                        r = -ECANCELED;
                else if (merging->compact)
                        r = run_compact(merging, &controls, &why);
                else
                        r = merge_run(merging->merge, &controls, &why);
        } while (settle(merging, r, &why));
        return NULL;
}

static void stop_thread(struct worker_merge *merging)
{
        if (!merging->has_thread)
                return;
        pthread_mutex_lock(&merging->lock);
        merging->stop = true;
        pthread_cond_broadcast(&merging->changed);
        pthread_mutex_unlock(&merging->lock);
        pthread_join(merging->thread, NULL);
        merging->has_thread = false;
}

/* The engine's part is over, whichever way. */
static void let_go(struct worker_merge *merging)
{
        struct nbd_export_stats stats;

        stop_thread(merging);
        merging->merge = merge_free(merging->merge);
        merging->compact = compact_free(merging->compact);
        if (!merging->chain)
                return;
        /* What came since then the merge was in the way of: it is not counted as alone. */
        nbd_server_chain_stats_get(merging->worker->server, merging->chain->chain, &stats);
        latency_now(&merging->clients.latency, &stats, &merging->clients.seen_us);
        merging->chain->latency = merging->clients.latency;
        merging->chain = NULL;
}

static void drop_merge(struct worker *worker, struct worker_merge *merging)
{
        let_go(merging);
        for (struct worker_merge **at = &worker->merges; *at; at = &(*at)->next) {
                if (*at != merging)
                        continue;
                *at = merging->next;
                break;
        }
        pthread_cond_destroy(&merging->changed);
        pthread_mutex_destroy(&merging->lock);
        free(merging->chain_name);
        free(merging->lowest);
        free(merging);
}

void merges_stop(struct worker *worker, const struct worker_chain *chain)
{
        for (struct worker_merge *at = worker->merges, *next; at; at = next) {
                next = at->next;
                if (!chain || at->chain == chain)
                        drop_merge(worker, at);
        }
}

static struct worker_merge *merge_of(const struct worker *worker, const struct worker_chain *chain)
{
        for (struct worker_merge *at = worker->merges; at; at = at->next)
                if (at->chain == chain)
                        return at;
        return NULL;
}

/* The thread that runs the verbs may wait here: for a step. */
void merges_hold(struct worker *worker, const struct worker_chain *chain)
{
        struct worker_merge *merging = merge_of(worker, chain);

        if (!merging || !merging->compact)
                return;
        MUTEX_GUARD(&merging->lock);
        merging->held = true;
        while (merging->stepping)
                pthread_cond_wait(&merging->changed, &merging->lock);
}

void merges_let(struct worker *worker, const struct worker_chain *chain)
{
        struct worker_merge *merging = merge_of(worker, chain);

        if (!merging)
                return;
        MUTEX_GUARD(&merging->lock);
        merging->held = false;
        pthread_cond_broadcast(&merging->changed);
}

/* --- which layers --- */

static int find_layer(const struct chain *chain, const char *path, unsigned *ret, struct error *err)
{
        for (unsigned i = 0; path && i < chain_depth(chain); i++) {
                if (strcmp(chain_layer_path(chain, i), path) != 0)
                        continue;
                *ret = i;
                return 0;
        }
        return fail(err, ENOENT, "'%s' is no layer of this chain", path ? path : "");
}

/* The list holds neighbours, from the root's side. */
static int find_layers(const struct chain *chain, const json_t *list, unsigned *ret_first,
        unsigned *ret_last, struct error *err)
{
        unsigned layer = 0;
        json_t *path;
        size_t i;

        if (json_array_size(list) == 0)
                return fail(err, EINVAL, "a merge of no images");
        json_array_foreach((json_t *)list, i, path)
        {
                int r = find_layer(chain, json_string_value(path), &layer, err);

                if (r < 0)
                        return r;
                if (i == 0)
                        *ret_first = layer;
                else if (layer != *ret_last + 1)
                        return fail(err, ESTALE, "'%s' does not stand on the image before it",
                                json_string_value(path));
                *ret_last = layer;
        }
        return 0;
}

static json_t *layer_paths(const struct chain *chain, unsigned first, unsigned last)
{
        json_t *list = json_array();

        for (unsigned i = first; i <= last; i++)
                json_array_append_new(list, json_string(chain_layer_path(chain, i)));
        return list;
}

static int get_direction(const json_t *params, enum merge_direction *ret, struct error *err)
{
        const char *text = param_text_or(params, "direction", "");

        *ret = MERGE_CHEAPER;
        if (!strcmp(text, "down"))
                *ret = MERGE_DOWN;
        else if (!strcmp(text, "up"))
                *ret = MERGE_UP;
        else if (text[0])
                return fail(err, EINVAL, "'%.16s' is no direction", text);
        return 0;
}

/* --- planning --- */

struct ways {
        struct merge_plan up, down;
        bool can_up, can_down;
        struct error why_not_up, why_not_down;
};

/* The points in time of the layers @first .. @last are to go, and the layer above them stays as it reads.
 * Its content can come down into @first, or theirs can go up into it. */
static void look_both_ways(struct chain *chain, unsigned first, unsigned last, bool shared,
        enum merge_direction wanted, struct ways *ret)
{
        *ret = (struct ways){.why_not_up = ERROR_INIT, .why_not_down = ERROR_INIT};
        if (wanted != MERGE_UP && !shared)
                ret->can_down = merge_plan(chain, first + 1, last + 1, MERGE_DOWN, false,
                                        &ret->down, &ret->why_not_down) == 0;
        if (wanted != MERGE_DOWN)
                ret->can_up = merge_plan(chain, first, last, MERGE_UP, shared, &ret->up,
                                      &ret->why_not_up) == 0;
}

static int plan_to_json(
        const struct chain *chain, const struct ways *ways, json_t **ret, struct error *err)
{
        bool down = ways->can_down && (!ways->can_up || ways->down.bytes <= ways->up.bytes);
        const struct merge_plan *plan = down ? &ways->down : &ways->up;
        bool both = ways->can_down && ways->can_up;
        uint64_t other = down ? ways->up.bytes : ways->down.bytes;

        if (!ways->can_down && !ways->can_up) {
                *err = ways->why_not_down.message[0] ? ways->why_not_down : ways->why_not_up;
                return err->code ? -err->code : -EINVAL;
        }
        *ret = json_pack("{s:s, s:o, s:s, s:I, s:o, s:b}", "direction",
                merge_direction_to_string(plan->direction), "images",
                layer_paths(chain, plan->first, plan->last), "destination",
                chain_layer_path(chain, plan->destination), "bytes", (json_int_t)plan->bytes,
                "bytes-other-way", both ? json_integer((json_int_t)other) : json_null(),
                "keeps-sources", plan->keeps_sources);
        return 0;
}

int verb_merge_plan(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        struct worker_chain *chain;
        enum merge_direction wanted;
        unsigned first = 0, last = 0;
        struct ways ways;
        int r = find_chain(worker, param_text_or(params, "chain", NULL), &chain, err);

        if (r == 0)
                r = get_direction(params, &wanted, err);
        if (r == 0)
                r = find_layers(
                        chain->chain, json_object_get(params, "hidden"), &first, &last, err);
        if (r < 0)
                return r;
        if (last + 1 >= chain_depth(chain->chain))
                return fail(err, EINVAL, "nothing stands on '%s'",
                        chain_layer_path(chain->chain, last));
        look_both_ways(chain->chain, first, last, param_bool(params, "shared"), wanted, &ways);
        return plan_to_json(chain->chain, &ways, ret, err);
}

/* --- beginning --- */

static int make_plan(const struct worker_chain *chain, const json_t *params, struct merge_plan *ret,
        struct error *err)
{
        enum merge_direction wanted;
        unsigned first = 0, last = 0;
        int r = get_direction(params, &wanted, err);

        if (r == 0)
                r = find_layers(
                        chain->chain, json_object_get(params, "images"), &first, &last, err);
        if (r == 0)
                r = merge_plan(
                        chain->chain, first, last, wanted, param_bool(params, "shared"), ret, err);
        return r;
}

/* The chain, if no job has it and no job has that number. */
static int free_chain(
        struct worker *worker, const json_t *params, struct worker_chain **ret, struct error *err)
{
        uint64_t job = param_number(params, "job", 0);
        int r = find_chain(worker, param_text_or(params, "chain", NULL), ret, err);

        if (r == 0 && find_merge(worker, (int64_t)job))
                r = fail(err, EEXIST, "job %llu is there already", (unsigned long long)job);
        if (r == 0 && merge_of(worker, *ret))
                r = fail(err, EBUSY, "another job has the chain '%s'", (*ret)->name);
        return r;
}

/* A job, which has no engine and no thread yet. */
static int new_merge(struct worker *worker, struct worker_chain *chain, const json_t *params,
        struct worker_merge **ret, struct error *err)
{
        struct worker_merge *merging = calloc(1, sizeof(*merging));
        struct nbd_export_stats stats;

        if (merging)
                merging->chain_name = strdup(chain->name);
        if (!merging || !merging->chain_name) {
                free(merging);
                return fail(err, ENOMEM, "no memory for a job");
        }
        merging->worker = worker;
        merging->chain = chain;
        merging->job = (int64_t)param_number(params, "job", 0);
        merging->rate = param_number(params, "rate", 0);
        merging->pause = param_bool(params, "paused");
        merging->clients.look = look_at_clients;
        merging->clients.opaque = merging;
        merging->clients.latency = chain->latency;
        nbd_server_chain_stats_get(worker->server, chain->chain, &stats);
        latency_alone(&merging->clients.latency, &stats);
        pthread_mutex_init(&merging->lock, NULL);
        pthread_cond_init(&merging->changed, NULL);
        merging->next = worker->merges;
        worker->merges = merging;
        *ret = merging;
        return 0;
}

static int start_thread(struct worker_merge *merging, struct error *err)
{
        int r = pthread_create(&merging->thread, NULL, merge_main, merging);

        if (r != 0)
                return fail_os(err, r, "cannot start a thread for a job");
        merging->has_thread = true;
        return 0;
}

int verb_merge_begin(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *new_id = param_text_or(params, "new-id", NULL);
        struct merge_params how = {
                .force = param_bool(params, "force"), .patience_ms = PATIENCE_MS};
        struct worker_merge *merging;
        struct worker_chain *chain;
        struct merge_plan plan;
        char text[UUID_TEXT_SIZE];
        uint8_t id[16];
        int r = free_chain(worker, params, &chain, err);

        if (r == 0 && new_id && !uuid_parse(new_id, how.new_id))
                r = fail(err, EINVAL, "'%.64s' is no id", new_id);
        if (r == 0)
                r = make_plan(chain, params, &plan, err);
        if (r == 0)
                r = new_merge(worker, chain, params, &merging, err);
        if (r < 0)
                return r;
        merging->lowest = strdup(chain_layer_path(chain->chain, plan.first));
        merging->n_above = plan.last - plan.first;
        merging->shared = param_bool(params, "shared");
        merging->progress.bytes_total = plan.bytes;
        r = merging->lowest ? merge_begin(chain->chain, &plan, &how, &merging->merge, err)
                            : fail(err, ENOMEM, "no memory for a merge");
        if (r == 0) {
                merge_new_id(merging->merge, id);
                *ret = json_pack("{s:s?, s:I, s:o}", "new-id",
                        uuid_is_zero(id) ? NULL : uuid_format(id, text), "bytes-total",
                        (json_int_t)plan.bytes, "layers", layers_to_json(chain->chain));
                r = start_thread(merging, err);
        }
        if (r < 0) {
                json_decref(*ret);
                *ret = NULL;
                drop_merge(worker, merging);
        }
        return r;
}

int verb_compact_begin(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        struct worker_merge *merging;
        struct worker_chain *chain;
        struct compact_report report;
        uint64_t total = 0;
        int r = free_chain(worker, params, &chain, err);

        if (r == 0 && chain->uncommitted)
                r = fail(err, EBUSY, "a snapshot of it is not committed yet");
        if (r == 0)
                r = new_merge(worker, chain, params, &merging, err);
        if (r < 0)
                return r;
        r = compact_new(chain->chain, COMPACT_STEP, &merging->compact, err);
        if (r == 0) {
                compact_report_get(merging->compact, &report);
                compact_progress(merging->compact, &merging->progress.bytes_done, &total);
                merging->progress.bytes_total = total;
                r = start_thread(merging, err);
        }
        if (r < 0) {
                drop_merge(worker, merging);
                return r;
        }
        *ret = json_pack("{s:I, s:I}", "bytes-total", (json_int_t)total, "file-size",
                (json_int_t)report.file_size);
        return 0;
}

/* --- while it runs --- */

static int set_pause(struct worker *worker, const json_t *params, bool pause, struct error *err)
{
        struct worker_merge *merging;
        int r = need_merge(worker, params, &merging, err);

        if (r < 0)
                return r;
        MUTEX_GUARD(&merging->lock);
        merging->pause = pause;
        pthread_cond_broadcast(&merging->changed);
        return 0;
}

int verb_merge_pause(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        return set_pause(worker, params, true, err);
}

int verb_merge_resume(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        return set_pause(worker, params, false, err);
}

int verb_merge_limit(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        struct worker_merge *merging;
        int r = need_merge(worker, params, &merging, err);

        if (r < 0)
                return r;
        MUTEX_GUARD(&merging->lock);
        merging->rate = param_number(params, "rate", 0);
        return 0;
}

int verb_merge_status(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        *ret = json_pack("{s:o}", "merges", merges_to_json(worker));
        return 0;
}

/* --- the end --- */

static int get_children(
        const json_t *params, struct merge_child **ret, size_t *ret_n, struct error *err)
{
        const json_t *list = json_object_get(params, "children");
        size_t n = json_array_size(list);
        struct merge_child *children = calloc(n + 1, sizeof(*children));

        if (!children)
                return fail(err, ENOMEM, "no memory for %zu images", n);
        for (size_t i = 0; i < n; i++) {
                children[i].path = json_string_value(json_array_get(list, i));
                if (!children[i].path) {
                        free(children);
                        return fail(err, EINVAL, "'children' holds something that is no path");
                }
        }
        *ret = children;
        *ret_n = n;
        return 0;
}

static void set_state(
        struct worker_merge *merging, enum merging_state state, int code, const struct error *why)
{
        MUTEX_GUARD(&merging->lock);
        merging->state = state;
        merging->code = code;
        if (why)
                merging->why = *why;
}

/* What a copy was pushed into. */
static bool has_destination(const struct worker_merge *merging, const struct chain *chain)
{
        const struct chain *own = merging->chain->chain;
        unsigned first, unused;

        return find_layer(own, merging->lowest, &first, NULL) == 0 &&
                first + merging->n_above + 1 < chain_depth(own) &&
                find_layer(chain, chain_layer_path(own, first + merging->n_above + 1), &unused,
                        NULL) == 0;
}

/* Whatever the server calls a layer by its number: the layers leave every chain that has them, or, where
 * others stand on them, those of the one that got a copy. */
static void renumber(struct worker *worker, struct worker_merge *merging)
{
        unsigned first = 0;

        for (struct worker_chain *at = worker->chains; at && !merging->renumbered; at = at->next) {
                if (merging->shared && !has_destination(merging, at->chain))
                        continue;
                if (find_layer(at->chain, merging->lowest, &first, NULL) == 0)
                        nbd_server_merge_layers(
                                worker->server, at->chain, first, first + merging->n_above);
        }
        merging->renumbered = true;
}

static bool is_done(struct worker_merge *merging)
{
        MUTEX_GUARD(&merging->lock);
        return merging->state == MERGING_DONE;
}

int verb_merge_finish(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_free_ struct merge_child *children = NULL;
        struct worker_merge *merging;
        struct chain *chain;
        size_t n = 0;
        int r = need_merge(worker, params, &merging, err);

        if (r == 0 && (!is_done(merging) || !merging->merge))
                r = fail(err, EBUSY, "merge %lld is not done", (long long)merging->job);
        if (r == 0)
                r = get_children(params, &children, &n, err);
        if (r < 0)
                return r;
        stop_thread(merging); /* it has ended: this joins it */
        chain = merging->chain->chain;
        renumber(worker, merging);
        r = merge_finish(merging->merge, children, n, err);
        if (r == -EBUSY || r == -ENOSPC)
                return r;
        merging->merge = NULL; /* ended in any case */
        set_state(merging, r == 0 ? MERGING_FINISHED : MERGING_FAILED, -r, r < 0 ? err : NULL);
        if (r == 0)
                *ret = json_pack("{s:o}", "layers", layers_to_json(chain));
        let_go(merging);
        return r;
}

int verb_merge_free(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        struct worker_merge *merging = find_merge(worker, (int64_t)param_number(params, "job", 0));

        if (merging)
                drop_merge(worker, merging);
        return 0;
}
