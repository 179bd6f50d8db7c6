/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what chain.c (opening, closing), io.c (requests) and push.c (snapshots) share.
 *
 * Units      bytes.
 * Ownership  the chain's.
 * Errors     0 or -errno.
 * Threads    layers[] grows at its end only: a slot is filled, then counted. Who loads n_layers (by
 *            chain_n_layers) may look at all slots below it, for as long as the chain lives. The leaf
 *            stays the leaf for whoever is inside `hold`.
 *            Locks: hold, then a gate (one of each a thread), then an image's own
 *            (formats/vhd/image.h), then resolve.c's stripes. Nobody waits for a commit inside any.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/gate.h"
#include "base/grace.h"
#include "chain/chain.h"
#include "chain/resolve.h"

struct chain {
        /* immutable after open */
        struct image **layers; /* 0 is the root; room for CHAIN_MAX_DEPTH and a scratch image */
        uint64_t size;
        bool leaf_only; /* parents exist and were not opened */
        bool writable;
        bool scratch;    /* the leaf is thrown away at the end */
        bool downgraded; /* asked for writing, and open for reading only */
        bool direct;
        struct fs *fs;
        struct resolver *resolver;
        struct grace *places; /* of tickets, lent to every image that was a leaf; NULL: read-only */
        struct gates *hold;   /* every change is inside, by thread; shut for a snapshot (E10) */
        struct gates *gates;  /* by block (E7) */

        _Atomic unsigned n_layers;
        _Atomic unsigned n_settled; /* layers below are clean; those from here on may be dirty */
        _Atomic bool failed;        /* a frozen layer's sync did (E5) */

        /* Snapshots that were switched and are not committed: numbers of the last one that began, and
         * of the last that ended. Written with commit_lock held. */
        _Atomic uint64_t switches_begun, switches_ended;
        _Atomic bool commits_aborted;
        pthread_mutex_t commit_lock;
        pthread_cond_t commit_ended;

        _Atomic uint64_t reads, writes, zeros, trims, flushes, bytes_read, bytes_written;
};

static inline unsigned chain_n_layers(const struct chain *chain)
{
        return atomic_load_explicit(&chain->n_layers, memory_order_acquire);
}

static inline struct image *chain_leaf(const struct chain *chain)
{
        return chain->layers[chain_n_layers(chain) - 1];
}

/* --- push.c */

/* What was answered before the call is durable when it returns; it says nothing of snapshots. */
int chain_flush_layers(struct chain *chain);
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
