/* SPDX-License-Identifier: Apache-2.0 */
/* compact.h - makes the leaf of a chain as small as what it holds: blocks that read the same without it
 * lose their place (E9), zeros in the others become holes of the file, the last blocks of the file
 * move into the places that became free, and the file ends behind the last one.
 *
 * What the disk reads as does not change at any instant. It can stop after each step, is safe at every
 * cut and every death, and done again it goes on from what the file says. Requests may be under way
 * in the chain meanwhile: a block is held (E7) only while it is looked at for the last time, released
 * or moved.
 *
 * Units      bytes.
 * Ownership  compact_new hands out, compact_free ends; the chain is the caller's and outlives it.
 * Errors     0 or -errno with a sentence that names the file. -ENOTSUP: the leaf has no blocks to free
 *            (fixed, raw). -ESTALE: a snapshot was taken, and the image is no leaf any more. -ENOSPC:
 *            not even one block could be moved; what was done stays done.
 * Threads    one compact of a chain at a time, from one thread; other requests from any.
 */
#pragma once

#include "chain/chain.h"

struct compact;

struct compact_report {
        uint64_t n_blocks;   /* in the file before */
        uint64_t n_released; /* that the disk reads the same without */
        uint64_t n_moved;
        uint64_t bytes_moved;     /* written at new places */
        uint64_t bytes_punched;   /* zeros in blocks that stay */
        uint64_t file_size;       /* before */
        uint64_t allocated;       /* bytes that the file took before */
        uint64_t file_size_after; /* of a plan: about */
};

/* Takes note of the image's blocks. @batch: bytes that one step looks at or moves, at least one block;
 * 0: 16 MiB. */
int compact_new(struct chain *chain, uint64_t batch, struct compact **ret, struct error *err);
struct compact *compact_free(struct compact *compact); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct compact *, compact_free)

/* A batch; what was moved is durable when it returns. 1: there is more to do. 0: done. After a failure it
 * may be called again. No snapshot is switched while it runs, and none is uncommitted (its flush would
 * wait for that). */
int compact_step(struct compact *compact, struct error *err);
/* How far it is: bytes of work, of a total that does not change. */
void compact_progress(const struct compact *compact, uint64_t *ret_done, uint64_t *ret_total);
void compact_report_get(const struct compact *compact, struct compact_report *ret);

struct compact_watcher {
        void *opaque;
        void (*progress)(void *opaque, uint64_t done, uint64_t total); /* optional */
        bool (*cancelled)(void *opaque);                               /* optional */
};

/* All steps, until it is done or cancelled (-ECANCELED). */
int compact_run(struct chain *chain, const struct compact_watcher *watcher,
        struct compact_report *ret, struct error *err);
/* What it would do, of a chain that may be open for reading only. */
int compact_plan(struct chain *chain, const struct compact_watcher *watcher,
        struct compact_report *ret, struct error *err);
