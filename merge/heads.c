/* SPDX-License-Identifier: Apache-2.0 */
#include "merge/heads.h"

#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "base/uuid.h"
#include "chain/relink.h"
#include "chain/reparent.h"
#include "formats/vhd/rehead.h"

/* Changes of several heads that belong together. */
struct change {
        struct intent *intent;
        struct vhd_rehead **reheads;
        size_t n;
};

static void change_done(struct change *change)
{
        for (size_t i = 0; i < change->n; i++)
                vhd_rehead_end(change->reheads[i], REHEAD_DROPPED);
        free(change->reheads);
        intent_free(change->intent);
}

static int change_init(struct change *change, size_t n, struct error *err)
{
        change->intent = intent_new();
        change->reheads = calloc(n + 1, sizeof(struct vhd_rehead *));
        return change->intent && change->reheads ? 0 : fail(err, ENOMEM, "no memory to merge");
}

static int change_add(struct change *change, struct image *image, const struct vhd_new_head *head,
        struct error *err)
{
        struct vhd_rehead *rehead;
        int r = vhd_rehead_begin(image, head, change->intent, &rehead, err);

        if (r == 0 && rehead)
                change->reheads[change->n++] = rehead;
        return r;
}

static int change_run(struct change *change, struct error *err)
{
        size_t n = change->n;

        change->n = 0;
        return n == 0 ? 0 : vhd_rehead_run(change->reheads, n, change->intent, err);
}

/* --- the beginning */

static const uint8_t merging = VHD_HIDDEN_MERGE;

static int begin_down(
        struct chain_drain *drain, const uint8_t new_id[16], uint8_t ret_id[16], struct error *err)
{
        struct image *to = chain_drain_destination(drain), *from = chain_drain_source(drain, 0);
        _cleanup_(change_done) struct change change = {0};
        struct vhd_new_head head = {.id = ret_id, .hidden = &merging}, link = {.parent_id = ret_id};
        int r;

        memcpy(ret_id, to->id, 16);
        if (to->type == IMAGE_RAW || to->merging || MUTANT("drain-begin-no-intent"))
                return 0;
        if (uuid_is_zero(new_id))
                uuid_random(ret_id);
        else
                memcpy(ret_id, new_id, 16);
        r = change_init(&change, 2, err);
        if (r == 0)
                r = change_add(&change, to, &head, err);
        if (r == 0)
                r = change_add(&change, from, &link, err);
        return r == 0 ? change_run(&change, err) : r;
}

static int begin_up(struct chain_drain *drain, struct error *err)
{
        unsigned n = chain_drain_n_sources(drain);
        _cleanup_(change_done) struct change change = {0};
        _cleanup_free_ uint8_t *ids = calloc(n, 16);
        struct vhd_new_head link = {0};
        int r = ids ? change_init(&change, n + 1, err) : fail(err, ENOMEM, "no memory to merge");

        if (chain_drain_source(drain, 0)->merging || MUTANT("drain-begin-no-intent"))
                return r;
        for (unsigned i = 0; r == 0 && i < n; i++) {
                struct vhd_new_head head = {.id = ids + 16 * i,
                        .hidden = &merging,
                        .parent_id = i > 0 ? ids + 16 * (i - 1) : NULL};

                uuid_random(ids + 16 * i);
                r = change_add(&change, chain_drain_source(drain, i), &head, err);
        }
        link.parent_id = ids ? ids + 16 * (n - 1) : NULL;
        if (r == 0)
                r = change_add(&change, chain_drain_destination(drain), &link, err);
        return r == 0 ? change_run(&change, err) : r;
}

/* Where the change was made before, what could not be taken away then (a daemon's worker without its broker)
 * would speak of heads that are others soon. */
static int clear_left(const struct chain_drain *drain, struct error *err)
{
        unsigned n = chain_drain_n_sources(drain);
        _cleanup_free_ struct file **files = calloc(n + 1, sizeof(struct file *));

        if (!files)
                return fail(err, ENOMEM, "no memory to merge");
        for (unsigned i = 0; i < n; i++)
                files[i] = chain_drain_source(drain, i)->file;
        files[n] = chain_drain_destination(drain)->file;
        return intent_clear(files, n + 1, err);
}

int heads_begin(struct chain_drain *drain, const struct merge_plan *plan, const uint8_t new_id[16],
        uint8_t ret_id[16], struct error *err)
{
        int r = clear_left(drain, err);

        memset(ret_id, 0, 16);
        if (r < 0)
                return r;
        if (plan->direction == MERGE_DOWN)
                return begin_down(drain, new_id, ret_id, err);
        return plan->keeps_sources ? 0 : begin_up(drain, err);
}

/* --- the end */

/* One that is open in some chain of ours. */
static int relink_open(struct chain *chain, struct image *child, const struct image *parent,
        const uint8_t *hidden, struct image *marked, struct error *err)
{
        _cleanup_(reparent_done) struct reparent reparent = {0};
        _cleanup_(change_done) struct change change = {0};
        struct vhd_new_head mark = {.hidden = hidden};
        struct image *reader = child;
        struct error why = ERROR_INIT;
        int r = chain_drain_upgrade(chain, &child, err);

        if (r < 0)
                return r;
        r = reparent_plan(child, parent, parent->id, &reparent, err);
        if (r == 0)
                r = change_init(&change, 2, err);
        if (r == 0 && marked)
                r = change_add(&change, marked, &mark, err);
        if (r == 0)
                r = change_add(&change, child, &reparent.head, err);
        if (r == 0)
                r = change_run(&change, err);
        if (child != reader) /* opened for this alone */
                (void)chain_drain_settle(chain, child, &why);
        return r;
}

static int relink_closed(
        struct chain *chain, const char *path, const struct image *parent, struct error *err)
{
        struct relink_params params = {
                .fs = parent->file->fs, .force = true, .below_is_durable = true};

        return relink(path, parent->file->path, &params, NULL, err);
}

/* Nobody else has it, and it can be told of that parent. */
static int probe_closed(const char *path, const struct image *parent, struct error *err)
{
        struct relink_params params = {
                .fs = parent->file->fs, .force = true, .dry_run = true, .below_is_durable = true};
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(params.fs, path, FILE_WRITE | FILE_NOFOLLOW, &file, err);

        if (r == 0)
                r = file_lock_set(file, FILE_LOCK_WRITE, err);
        if (r == 0)
                r = file_lock_set(file, FILE_LOCK_NONE, err);
        return r == 0 ? relink(path, parent->file->path, &params, NULL, err) : r;
}

/* One after the other: so all are looked at before the first is changed. */
static int relink_others(struct chain *chain, const struct image *parent,
        const struct merge_child *children, size_t n, struct error *err)
{
        struct image *open;
        int r = 0;

        for (size_t i = 0; r == 0 && i < n; i++) {
                r = chain_drain_find(chain, children[i].path, &open, err);
                if (r == 0 && !open)
                        r = probe_closed(children[i].path, parent, err);
        }
        for (size_t i = 0; r == 0 && i < n; i++) {
                r = chain_drain_find(chain, children[i].path, &open, err);
                if (r == 0)
                        r = open ? relink_open(chain, open, parent, NULL, NULL, err)
                                 : relink_closed(chain, children[i].path, parent, err);
        }
        return r;
}

static int set_mark(struct image *image, uint8_t hidden, struct error *err)
{
        _cleanup_(change_done) struct change change = {0};
        struct vhd_new_head head = {.hidden = &hidden};
        int r = change_init(&change, 1, err);

        if (r == 0)
                r = change_add(&change, image, &head, err);
        return r == 0 ? change_run(&change, err) : r;
}

/* What goes is empty and stands on what stays: a child of either reads the same, so the children may
 * change one after the other. */
static int finish_down(struct chain *chain, struct chain_drain *drain,
        const struct merge_child *children, size_t n_children, struct error *err)
{
        struct image *to = chain_drain_destination(drain), *child = chain_drain_child(drain);
        struct image *top = chain_drain_source(drain, chain_drain_n_sources(drain) - 1);
        uint8_t hidden = top->hidden;
        int r = relink_others(chain, to, children, n_children, err);

        if (r == 0)
                r = child ? relink_open(chain, child, to, &hidden, to, err)
                          : set_mark(to, hidden, err);
        return r;
}

static int finish_up(struct chain *chain, struct chain_drain *drain, struct error *err)
{
        struct image *to = chain_drain_destination(drain), *below = chain_drain_below(drain);
        _cleanup_(change_done) struct change change = {0};
        struct vhd_new_head head = {.root = true};
        int r;

        if (below)
                return relink_open(chain, to, below, NULL, NULL, err);
        r = change_init(&change, 1, err);
        if (r == 0)
                r = change_add(&change, to, &head, err);
        return r == 0 ? change_run(&change, err) : r;
}

int heads_finish(struct chain *chain, struct chain_drain *drain, const struct merge_plan *plan,
        const struct merge_child *children, size_t n_children, struct error *err)
{
        if (plan->direction == MERGE_DOWN)
                return finish_down(chain, drain, children, n_children, err);
        return finish_up(chain, drain, err);
}
