/* SPDX-License-Identifier: Apache-2.0 */
/* A merge's pace: one thread copies, another one makes durable what was copied before, a batch of it at a
 * time, and a third one gives the space back (punching is slow, and nobody waits for it). So the disk
 * has writes to do while the rounds of rule E3 wait for it, and what is taken in the destination before
 * the sources have given it back is bounded: no more than three batches.
 *
 *      copier     unit, unit, unit ... | unit, unit ...        (chain_drain_copy)
 *      committer                       | rounds, grace, clears of the batch before
 *      giver                                                 | punches of the one before that
 */
#include "merge/merge.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/mutant.h"
#include "chain/drain.h"
#include "chain/seal.h"
#include "merge/heads.h"
#include "merge/pace.h"

#define BATCH_BYTES (UINT64_C(16) << 20)
#define BATCH_UNITS 256u

struct batch {
        uint64_t units[BATCH_UNITS];
        size_t n;
        uint64_t bytes;
};

struct merge {
        struct chain *chain;
        struct chain_drain *drain;
        struct merge_plan plan;
        uint8_t new_id[16];
        struct merge_progress progress;
        bool single_threaded;

        /* the copier's */
        struct batch *filling;
        struct pace pace;

        pthread_mutex_t lock;
        pthread_cond_t changed;
        /* guarded by lock */
        struct batch *committing; /* handed over; its n becomes 0 when it is done */
        bool busy, stop;
        bool giving, stop_giving; /* the giver has work; is to end when it has none */
        int result;               /* of the committer, once it failed */
        struct error why;
};

/* --- beginning */

static int check_seals(struct chain *chain, const struct merge_plan *plan, struct error *err)
{
        unsigned from = MIN_OF(plan->first, plan->destination);
        unsigned to = MAX_OF(plan->last, plan->destination);

        for (unsigned i = from; i <= to; i++) {
                struct image *image = (struct image *)(uintptr_t)chain_layer(chain, i);
                char sentence[ERROR_MESSAGE_MAX];

                if (image->writable)
                        continue;
                seal_warning(image, sentence, sizeof(sentence));
                if (!sentence[0])
                        continue;
                fail(err, ESTALE, "%s; nothing was merged", sentence);
                error_set_file(err, image->file->path);
                error_set_hint(err, "--force merges all the same");
                return -ESTALE;
        }
        return 0;
}

/* E12: what somebody vouched for is not there any more. */
static int remove_seal(const struct image *image, struct error *err)
{
        return seal_remove(image->file->fs, image->file->path, err);
}

/* Of all that are written to; up, the heads of sources that are kept stay as they are. */
static int remove_seals(const struct merge *merge, struct error *err)
{
        int r = remove_seal(chain_drain_destination(merge->drain), err);

        for (unsigned i = 0;
                r == 0 && i < chain_drain_n_sources(merge->drain) && !merge->plan.keeps_sources;
                i++)
                r = remove_seal(chain_drain_source(merge->drain, i), err);
        return r;
}

/* Those who stood on the top are told of another parent: their heads change. */
static int remove_childrens_seals(
        const struct merge *merge, const struct merge_child *children, size_t n, struct error *err)
{
        const struct image *child = chain_drain_child(merge->drain);
        struct fs *fs = chain_drain_destination(merge->drain)->file->fs;
        int r = 0;

        if (merge->plan.direction != MERGE_DOWN)
                return 0;
        if (child)
                r = remove_seal(child, err);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = seal_remove(fs, children[i].path, err);
        return r;
}

static unsigned drain_flags_of(const struct merge_plan *plan)
{
        unsigned flags = 0;

        if (plan->direction == MERGE_UP)
                flags |= DRAIN_UP;
        if (plan->keeps_sources)
                flags |= DRAIN_KEEP;
        if (plan->direction == MERGE_UP && plan->first == 0)
                flags |= DRAIN_ROOT;
        return flags;
}

static int begin(struct merge *merge, const struct merge_params *params, struct error *err)
{
        const struct merge_plan *plan = &merge->plan;
        int r = params->force ? 0 : check_seals(merge->chain, plan, err);

        if (r == 0)
                r = chain_drain_open(merge->chain, plan->first, plan->last, drain_flags_of(plan),
                        &merge->drain, err);
        if (r == 0)
                r = remove_seals(merge, err);
        if (r == 0)
                r = heads_begin(merge->drain, plan, params->new_id, merge->new_id, err);
        if (r == 0)
                r = chain_drain_start(merge->drain, err);
        return r;
}

int merge_begin(struct chain *chain, const struct merge_plan *plan,
        const struct merge_params *params, struct merge **ret, struct error *err)
{
        _cleanup_(merge_freep) struct merge *merge = calloc(1, sizeof(*merge));
        int r;

        if (!merge)
                return fail(err, ENOMEM, "no memory to merge");
        pthread_mutex_init(&merge->lock, NULL);
        pthread_cond_init(&merge->changed, NULL);
        merge->chain = chain;
        merge->plan = *plan;
        merge->single_threaded = chain_layer(chain, 0)->file->fs->single_threaded;
        merge->filling = calloc(1, sizeof(*merge->filling));
        merge->committing = calloc(1, sizeof(*merge->committing));
        if (!merge->filling || !merge->committing)
                return fail(err, ENOMEM, "no memory to merge");
        if (params->patience_ms) {
                r = chain_drain_expect(chain, params->patience_ms, err);
                if (r < 0)
                        return r;
        }
        r = begin(merge, params, err);
        if (params->patience_ms)
                chain_drain_unexpect(chain);
        if (r < 0)
                return r;
        merge->progress.bytes_total = plan->bytes;
        merge->progress.units_total = chain_drain_n_units(merge->drain);
        *ret = TAKE_PTR(merge);
        return 0;
}

void merge_new_id(const struct merge *merge, uint8_t ret[16])
{
        memcpy(ret, merge->new_id, 16);
}

struct merge *merge_free(struct merge *merge)
{
        if (!merge)
                return NULL;
        chain_drain_close(merge->drain);
        pthread_cond_destroy(&merge->changed);
        pthread_mutex_destroy(&merge->lock);
        free(merge->filling);
        free(merge->committing);
        free(merge);
        return NULL;
}

/* --- committing */

static bool clears_later(const struct merge *merge)
{
        return merge->plan.direction == MERGE_UP && !merge->plan.keeps_sources;
}

static int commit(struct merge *merge, const struct batch *batch, struct error *err)
{
        int r = 0;

        if (!clears_later(merge) || !MUTANT("drain-no-round-up"))
                r = chain_drain_flush(merge->drain, err);
        if (r == 0 && clears_later(merge)) {
                chain_drain_grace(merge->drain); /* D5 */
                for (size_t i = 0; r == 0 && i < batch->n; i++)
                        r = chain_drain_clear(merge->drain, batch->units[i], err);
                if (r == 0)
                        r = chain_drain_flush(merge->drain, err);
        }
        return r;
}

static void *giver_main(void *opaque)
{
        struct merge *merge = opaque;

        pthread_mutex_lock(&merge->lock);
        while (merge->giving || !merge->stop_giving) {
                if (!merge->giving) {
                        pthread_cond_wait(&merge->changed, &merge->lock);
                        continue;
                }
                pthread_mutex_unlock(&merge->lock);
                chain_drain_reclaim(merge->drain);
                pthread_mutex_lock(&merge->lock);
                merge->giving = false;
                pthread_cond_broadcast(&merge->changed);
        }
        pthread_mutex_unlock(&merge->lock);
        return NULL;
}

/* What was freed up to now is the giver's, once it is done with what it has. With the lock held. */
static void give_back(struct merge *merge)
{
        while (merge->giving)
                pthread_cond_wait(&merge->changed, &merge->lock);
        merge->giving = true;
        pthread_cond_broadcast(&merge->changed);
}

static void *committer_main(void *opaque)
{
        struct merge *merge = opaque;

        pthread_mutex_lock(&merge->lock);
        for (;;) {
                struct error why = ERROR_INIT;
                int r;

                if (!merge->busy && merge->stop)
                        break;
                if (!merge->busy) {
                        pthread_cond_wait(&merge->changed, &merge->lock);
                        continue;
                }
                pthread_mutex_unlock(&merge->lock);
                r = commit(merge, merge->committing, &why);
                pthread_mutex_lock(&merge->lock);
                if (r == 0)
                        give_back(merge);
                merge->busy = false;
                if (r < 0 && merge->result == 0) {
                        merge->result = r;
                        merge->why = why;
                }
                pthread_cond_broadcast(&merge->changed);
        }
        pthread_mutex_unlock(&merge->lock);
        return NULL;
}

static int result_of(struct merge *merge, struct error *err)
{
        if (merge->result < 0 && err)
                *err = merge->why;
        return merge->result;
}

/* Waits until the batch before is committed. With the lock held. */
static int wait_committed(struct merge *merge, struct error *err)
{
        while (merge->busy)
                pthread_cond_wait(&merge->changed, &merge->lock);
        return result_of(merge, err);
}

/* What was filled is the committer's now. */
static int hand_over(struct merge *merge, struct error *err)
{
        struct batch *batch = merge->filling;
        int r;

        if (batch->n == 0)
                return 0;
        if (merge->single_threaded) {
                r = commit(merge, batch, err);
                if (r == 0)
                        chain_drain_reclaim(merge->drain);
                batch->n = 0;
                batch->bytes = 0;
                return r;
        }
        MUTEX_GUARD(&merge->lock);
        r = wait_committed(merge, err);
        if (r < 0)
                return r;
        merge->filling = merge->committing;
        merge->committing = batch;
        merge->filling->n = 0;
        merge->filling->bytes = 0;
        merge->busy = true;
        pthread_cond_broadcast(&merge->changed);
        return 0;
}

static int finish_batches(struct merge *merge, struct error *err)
{
        int r = hand_over(merge, err);

        if (merge->single_threaded)
                return r;
        MUTEX_GUARD(&merge->lock);
        return r == 0 ? wait_committed(merge, err) : r;
}

/* --- pace */

static int keep_pace(struct merge *merge, const struct merge_controls *controls)
{
        if (controls && controls->progress)
                controls->progress(controls->opaque, &merge->progress);
        return pace_keep(&merge->pace, controls);
}

/* --- copying */

static uint64_t next_with_blocks(const struct merge *merge, uint64_t unit)
{
        while (unit < merge->progress.units_total && !chain_drain_has(merge->drain, unit))
                unit++;
        return unit;
}

static int move_unit(struct merge *merge, uint64_t unit, struct error *err)
{
        struct batch *batch = merge->filling;
        uint64_t bytes;
        int r = chain_drain_copy(merge->drain, unit, &bytes, err);

        merge->progress.bytes_done += bytes;
        pace_add(&merge->pace, bytes);
        batch->bytes += bytes;
        if (r == 0)
                batch->units[batch->n++] = unit;
        if (r == 0 && (batch->n == BATCH_UNITS || batch->bytes >= BATCH_BYTES))
                r = hand_over(merge, err);
        return r;
}

/* Once over all units. *ret_any: some were there. */
static int pass(struct merge *merge, const struct merge_controls *controls, bool *ret_any,
        struct error *err)
{
        uint64_t unit = next_with_blocks(merge, 0);
        int r = 0;

        *ret_any = false;
        while (r == 0 && unit < merge->progress.units_total) {
                uint64_t next = next_with_blocks(merge, unit + 1);

                *ret_any = true;
                merge->progress.units_done = unit;
                r = keep_pace(merge, controls);
                if (r < 0)
                        return fail(err, ECANCELED,
                                "the merge was stopped; what was moved stays moved");
                if (next < merge->progress.units_total)
                        chain_drain_prefetch(merge->drain, next);
                r = move_unit(merge, unit, err);
                unit = next;
        }
        return r;
}

/* A source may get blocks where it was passed already only before its units were drained: then once
 * more finds them. */
static int all_passes(struct merge *merge, const struct merge_controls *controls, struct error *err)
{
        bool any = true;
        int r = 0;

        while (r == 0 && any) {
                struct error ignored = ERROR_INIT;

                r = pass(merge, controls, &any, err);
                if (r == 0)
                        r = finish_batches(merge, err);
                else
                        finish_batches(merge, &ignored);
                if (merge->plan.keeps_sources)
                        break;
        }
        if (r == 0) {
                merge->progress.units_done = merge->progress.units_total;
                merge->progress.bytes_total = merge->progress.bytes_done;
                if (controls && controls->progress)
                        controls->progress(controls->opaque, &merge->progress);
        }
        return r;
}

static void end_thread(struct merge *merge, pthread_t thread, bool *stop)
{
        pthread_mutex_lock(&merge->lock);
        *stop = true;
        pthread_cond_broadcast(&merge->changed);
        pthread_mutex_unlock(&merge->lock);
        pthread_join(thread, NULL);
}

int merge_run(struct merge *merge, const struct merge_controls *controls, struct error *err)
{
        pthread_t committer, giver;
        int r;

        merge->filling->n = 0;
        merge->filling->bytes = 0;
        pace_anew(&merge->pace);
        merge->result = 0;
        merge->stop = merge->stop_giving = false;
        if (merge->single_threaded)
                return all_passes(merge, controls, err);
        r = pthread_create(&giver, NULL, giver_main, merge);
        if (r != 0)
                return fail_os(err, r, "cannot start a thread to merge with");
        r = pthread_create(&committer, NULL, committer_main, merge);
        if (r != 0) {
                end_thread(merge, giver, &merge->stop_giving);
                return fail_os(err, r, "cannot start a thread to merge with");
        }
        r = all_passes(merge, controls, err);
        end_thread(merge, committer, &merge->stop);
        end_thread(merge, giver, &merge->stop_giving);
        return r;
}

/* --- the end */

int merge_finish(struct merge *merge, const struct merge_child *children, size_t n_children,
        struct error *err)
{
        int r = chain_drain_may_end(merge->drain, err);

        if (r == 0)
                r = remove_childrens_seals(merge, children, n_children, err);
        if (r == 0)
                r = heads_finish(
                        merge->chain, merge->drain, &merge->plan, children, n_children, err);
        if (r == 0)
                r = chain_drain_remove(merge->drain, err);
        if (r == 0)
                merge->drain = NULL;
        if (r == -EBUSY || r == -ENOSPC)
                return r;
        merge_free(merge);
        return r;
}
