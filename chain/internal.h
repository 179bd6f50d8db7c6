/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what chain.c (opening, closing), io.c (requests) and push.c (snapshots) share.
 *
 * Units      bytes.
 * Ownership  the chain's.
 * Errors     0 or -errno.
 * Threads    a view's layers[] grows at its end only (a snapshot): a slot is filled, then counted. Any
 *            other change makes a new view (a merge): while `hold` is shut, and the old one is freed
 *            when nobody is inside `places` who could have it. So whoever is inside `hold`, or has a
 *            ticket, may use what chain_view() says until he leaves. The leaf stays the leaf for
 *            whoever is inside `hold`.
 *            Locks: the family's, hold, a gate (one of each a thread), then an image's own
 *            (formats/vhd/image.h), then resolve.c's stripes. Nobody waits for a commit inside any.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/gate.h"
#include "base/grace.h"
#include "chain/chain.h"
#include "chain/resolve.h"

/* E11: the leaf is drained down, and with it the layers from @first on, into @target. */
struct view_drain {
        unsigned first, target;
        uint64_t unit; /* bytes: no block of any of them is larger, and each edge is one of all */
        /* By unit: no source has a block there, and none gets one any more. */
        _Atomic uint8_t *done;
};

struct chain_view {
        struct resolver *resolver;
        uint64_t gate_size; /* what one gate stands for; 0: the leaf's block */
        struct view_drain *drain;
        const struct image *keeps_blocks; /* gives none up (a merge up into it), or NULL */
        _Atomic unsigned n_layers;
        struct image *layers[]; /* 0 is the root; room for CHAIN_MAX_DEPTH and a scratch image */
};

struct chain {
        struct chain_family *family;
        bool family_is_own;
        struct chain *next_in_family; /* the family's */
        _Atomic(struct chain_view *) view;

        /* immutable after open */
        uint64_t size;
        bool leaf_only; /* parents exist and were not opened */
        bool writable;
        bool scratch;    /* the leaf is thrown away at the end */
        bool downgraded; /* asked for writing, and open for reading only */
        bool direct;
        struct fs *fs;
        struct grace *places; /* of tickets: the family's, lent to every image that is written to */
        struct gates *hold;   /* every change is inside, by thread; shut for a snapshot (E10) */
        struct gates *gates;  /* by block (E7) */

        _Atomic unsigned
                n_redirected; /* writes into a layer below (E11) that may not have told readers yet */
        _Atomic bool failed; /* a frozen layer's sync did (E5) */

        /* Snapshots that were switched and are not committed: numbers of the last one that began, and
         * of the last that ended. Written with commit_lock held. */
        _Atomic uint64_t switches_begun, switches_ended;
        _Atomic bool commits_aborted;
        pthread_mutex_t commit_lock;
        pthread_cond_t commit_ended;

        _Atomic uint64_t reads, writes, zeros, trims, flushes, bytes_read, bytes_written;
};

static inline struct chain_view *chain_view(const struct chain *chain)
{
        return atomic_load_explicit(&chain->view, memory_order_acquire);
}

static inline unsigned view_n_layers(const struct chain_view *view)
{
        return atomic_load_explicit(&view->n_layers, memory_order_acquire);
}

static inline struct image *view_leaf(const struct chain_view *view)
{
        return view->layers[view_n_layers(view) - 1];
}

/* For those who are inside `hold`, have a ticket, or own the chain. */
static inline unsigned chain_n_layers(const struct chain *chain)
{
        return view_n_layers(chain_view(chain));
}

static inline struct image *chain_leaf(const struct chain *chain)
{
        return view_leaf(chain_view(chain));
}

/* --- chain.c */

/* A writer becomes a reader that others share. With the family's lock held. */
int chain_settle_layer(struct image *image, struct error *err);

/* --- family.c */

struct chain_family {
        struct grace *places;
        _Atomic unsigned n_drains; /* under way */
        /* Held while chains are opened and closed, and while layers become others; guards n_holders. */
        pthread_mutex_t lock;
        pthread_mutex_t list_lock; /* for a moment, inside everything else */
        /* Written with both held, read with either. */
        struct chain *chains;
};

/* Does @image hold a block somewhere in [offset, offset + length)? */
static inline bool drain_holds(const struct image *image, uint64_t offset, uint64_t length)
{
        for (uint64_t at = offset; at < offset + length && at < image->size;
                at += image->block_size)
                if (image->format->holds(image, at))
                        return true;
        return false;
}

/* One that has not been given a resolver yet. NULL: no memory. */
struct chain_view *chain_view_new(void);
struct chain_view *chain_view_free(struct chain_view *view); /* NULL is fine; returns NULL */
/* The resolver of @view, whose layers are all there. */
int chain_view_complete(struct chain *chain, struct chain_view *view, struct error *err);

/* With the family's lock held: */
void chain_family_join(struct chain *chain);
void chain_family_leave(struct chain *chain);
/* An open image that is the file @st, to be read along with whoever has it, or NULL. @leaves_too: also one that
 * is written to, which nobody else may read along with. */
struct image *chain_family_find(
        struct chain_family *family, const struct file_stat *st, bool leaves_too);
/* Gives up one hold; answers whether it was the last. */
bool chain_family_drop(struct chain_family *family, struct image *image);
/* Without it: */
/* In every chain of the family @old's place is taken by @new; or the @n images are gone, all at once
 * (from the chains that have @with, too, unless it is NULL). Changes are held for a moment. When it returns nobody uses what went. On failure nothing was
 * changed. */
int chain_family_replace(
        struct chain_family *family, struct image *old, struct image *new, struct error *err);
int chain_family_remove(struct chain_family *family, const struct image *with,
        struct image *const *old, unsigned n, struct error *err);
/* Is a drain of another chain's under way, from which chain_family_remove() would take layers away? */
bool chain_family_moves(
        const struct chain *but, const struct image *with, struct image *const *old, unsigned n);
/* With the family's lock held: @view is the chain's from here on, and changes are held meanwhile. The one
 * before may be freed after a grace. */
void chain_view_put(struct chain *chain, struct chain_view *view);
/* No chain of the family may go by what it remembers of the range: layers' places there changed. */
void chain_family_forget(struct chain_family *family, uint64_t offset, uint64_t length);

/* Does the round of another of these images have a round of @image in its middle (E11)? */
static inline bool view_is_flushed_first(const struct chain_view *view, const struct image *image)
{
        for (unsigned i = 0; i < view_n_layers(view); i++)
                if (view->layers[i] && atomic_load(&view->layers[i]->flush_first) == image)
                        return true;
        return false;
}

/* --- push.c */

/* What was answered before the call is durable when it returns; it says nothing of snapshots. */
int chain_flush_layers(struct chain *chain);
/* chain_settle_image() of an image below which all are settled; it is opened with more flags. */
int chain_settle_next(struct fs *fs, const char *path, const char *format, unsigned image_flags,
        struct error *err);
/* Returns when no snapshot that was switched before the call waits for its commit.
 *   -ESHUTDOWN  it never will be committed by this process */
int chain_wait_committed_slowly(struct chain *chain);

static inline bool chain_is_uncommitted(const struct chain *chain)
{
        return atomic_load(&chain->switches_begun) != atomic_load(&chain->switches_ended);
}

static inline int chain_wait_committed(struct chain *chain)
{
        return chain_is_uncommitted(chain) ? chain_wait_committed_slowly(chain) : 0;
}
