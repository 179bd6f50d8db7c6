/* SPDX-License-Identifier: Apache-2.0 */
/* merge.h - taking layers out of a chain: their blocks move, one after the other, into the layer
 * below them or above them, while the chain is read and written (rules E7, E8, E11, E12).
 *
 *      merge_plan    which way, and how many bytes
 *      merge_begin   the images that change are opened for writing; new ids (E12); again after a cut
 *      merge_run     moves blocks until all are moved, or somebody says stop
 *      merge_finish  the emptied layers leave the chain; who stood on them stands on what is left
 *      merge_free    before that: stops, and the chain is as it was but for where blocks lie
 *      (unlinking the files of the removed layers, and names, are the caller's)
 *
 * Down: the layers @first .. @last are drained into the layer @first - 1, which stays. Up: the layers
 * @first .. @last are drained into the layer @last + 1, which stays. Layers count from the root, 0. The
 * leaf may be a source (down) or the destination (up) while clients write.
 *
 * At every instant, and after a power cut or a death at any, the chain reads the same. A merge that
 * was cut off is begun again with the same call: what is left to do is in the files.
 *
 * Units      bytes.
 * Ownership  merge_begin hands out; merge_finish or merge_free ends. The chain is the caller's and
 *            outlives the merge. One merge at a time for a chain.
 * Errors     0 or -errno with one sentence.
 *            -EIO     a source or destination cannot be read or written (its block stays where it is)
 *            -ENOSPC  the destination's file system is full: run again when there is room
 *            -ECANCELED  merge_controls.go_on said stop
 *            -ESTALE  a child or parent is not what the chain was opened with; a seal does not fit
 *            -EBUSY   one of the images is somebody else's
 * Threads    a merge belongs to one thread at a time; chain_* go on on any other thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "chain/chain.h"

struct merge;

enum merge_direction { MERGE_CHEAPER, MERGE_DOWN, MERGE_UP };
const char *merge_direction_to_string(enum merge_direction direction); /* "down", "up" */

struct merge_plan {
        enum merge_direction direction; /* MERGE_DOWN or MERGE_UP */
        unsigned first, last;           /* the layers that go, from the root */
        unsigned destination;           /* the layer that stays */
        uint64_t bytes;                 /* that are moved, at most: zeros are found on the way */
        uint64_t bytes_other_way;       /* UINT64_MAX: it cannot be done the other way */
        /* Up, where the destination becomes the root or stands on what the sources stood on: the
         * sources keep their bytes (a root is never emptied by a pull; or other images stand on it). */
        bool keeps_sources;
};

/* Layers @first .. @last are to go. @shared: other images stand on some of them (a push): up, and the
 * sources keep their bytes. Reads metadata only.
 *   -EINVAL   the layers are not there, or both ways are impossible: the sentence says why
 *             (a larger child over a parent that cannot grow) */
int merge_plan(struct chain *chain, unsigned first, unsigned last, enum merge_direction wanted,
        bool shared, struct merge_plan *ret, struct error *err);

/* The same, down; but where it is refused only because the disk is larger than a destination that is the
 * root, it answers what the plan will be once resize() (merge/resize.h) has made that as large, and
 * *ret_size says how large. 0: it need not grow. Who grows it knows that nobody else stands on it. */
int merge_plan_grown(struct chain *chain, unsigned first, unsigned last, struct merge_plan *ret,
        uint64_t *ret_size, struct error *err);

struct merge_params {
        /* Down: the destination's new id (E12), which the caller has written down before. Zeros: a
         * random one. Where the destination has the mark of a merge that was begun already, it keeps
         * the id that it has. Up: sources get random ones. */
        uint8_t new_id[16];
        bool force; /* although a seal says that an image changed behind its children's back */
        /* Milliseconds that the clients' replies have to leave their sockets; then -EBUSY. 0: as long as
         * it takes. What merge_finish() waits for afterwards is short. */
        unsigned patience_ms;
};

int merge_begin(struct chain *chain, const struct merge_plan *plan,
        const struct merge_params *params, struct merge **ret, struct error *err);
/* What the destination is called from now on (down), or zeros. */
void merge_new_id(const struct merge *merge, uint8_t ret[16]);

struct merge_progress {
        uint64_t bytes_done,
                bytes_total; /* total: as planned; done only grows, and may end below */
        uint64_t units_done, units_total;
};

struct merge_controls {
        void *opaque;
        /* Each optional. On merge_run's thread, every few MiB. */
        bool (*go_on)(void *opaque); /* false: stop at the next place where one can */
        void (*progress)(void *opaque, const struct merge_progress *progress);
        uint64_t (*rate)(void *opaque); /* bytes a second, now; 0: no limit */
        /* How long a guest's request took lately, in microseconds, now and without us: the merge gets
         * slower while the first is more than twice the second. */
        bool (*latency)(void *opaque, uint64_t *now_us, uint64_t *alone_us);
};

int merge_run(struct merge *merge, const struct merge_controls *controls, struct error *err);

/* An image elsewhere (another branch) that stands on the topmost layer that goes (down) or, in a push,
 * nobody. */
struct merge_child {
        const char *path;
};

/* After merge_run answered 0. The known children are relinked, one after the other, all being looked at before,
 * the layers leave the chain and are closed. Ends the merge in any case but -EBUSY and -ENOSPC. Up into a destination over
 * a root: it becomes a dynamic disk, a root itself. The chain's layer indices shrink. */
int merge_finish(struct merge *merge, const struct merge_child *children, size_t n_children,
        struct error *err);
struct merge *merge_free(struct merge *merge); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct merge *, merge_free)
