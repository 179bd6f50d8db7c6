/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what chain.c (opening, closing) and io.c (requests) share.
 *
 * Units      bytes.
 * Ownership  the chain's.
 * Errors     0 or -errno.
 * Threads    everything but the counters is immutable after open. Locks: a gate (at most one a
 *            thread), then an image's own (formats/vhd/image.h), then resolve.c's stripes.
 */
#pragma once

#include <stdatomic.h>

#include "base/gate.h"
#include "base/grace.h"
#include "chain/chain.h"
#include "chain/resolve.h"

struct chain {
        struct image **layers; /* 0 is the root */
        unsigned n_layers;
        struct image *leaf;
        uint64_t size;
        bool leaf_only; /* parents exist and were not opened */
        struct resolver *resolver;
        struct gates *gates;
        bool scratch;   /* the leaf is thrown away at the end */
        bool downgraded; /* asked for writing, and open for reading only */

        _Atomic uint64_t reads, writes, zeros, trims, flushes, bytes_read, bytes_written;
};
