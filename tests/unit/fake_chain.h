/* SPDX-License-Identifier: Apache-2.0 */
/* fake_chain.h - chain.h over memory, for tests of what stands on it: link fake_chain.c instead of
 * the chain library.
 *
 * The disk's bytes lie in a memfd, so sendfile works on them. Blocks of FAKE_BLOCK bytes have a kind
 * and a depth of their own. The switches below make it slow, cold or faulty.
 *
 * Threads    as chain.h says; the switches are atomic and may be turned at any time.
 */
#pragma once

#include <stdatomic.h>

#include "chain/chain.h"

#define FAKE_BLOCK 4096u

struct fake_switches {
        atomic_bool cold_reads;  /* CHAIN_NOWAIT reads and maps answer -EAGAIN */
        atomic_bool cold_pages;  /* only CHAIN_NOWAIT reads do; the map is at hand */
        atomic_bool cold_writes; /* CHAIN_NOWAIT writes do */
        atomic_int read_error, write_error, flush_error, map_error; /* -errno, or 0 */
        atomic_uint_fast64_t
                bad_offset; /* with read_error: only reads over this byte; UINT64_MAX: all */
        atomic_bool hold_reads, hold_flushes; /* blocking reads, flushes wait until it is false */
        atomic_int reads_held, flushes_held;  /* so many wait now */
        atomic_bool no_fast_zero;
        atomic_bool uncommitted; /* CHAIN_FUA with CHAIN_LATER answers -EINPROGRESS */
        /* The map names another file, whose size fake_chain_other_file() lets a test change. */
        atomic_bool other_file;
};

struct chain *fake_chain_new(uint64_t size, unsigned depth, bool writable);
struct fake_switches *fake_chain_switches(struct chain *chain);
/* All the disk's bytes; lives as long as the chain. */
uint8_t *fake_chain_bytes(struct chain *chain);
/* What a block is; data of zero and absent blocks is cleared. Depth 0 is the leaf. */
void fake_chain_set(struct chain *chain, uint64_t offset, uint64_t length, enum extent_kind kind,
        unsigned depth);
/* An empty layer becomes the leaf. Layer n is named "layer n"; there are five at most. */
void fake_chain_push(struct chain *chain);
struct file *fake_chain_other_file(struct chain *chain);
unsigned fake_chain_tickets(struct chain *chain); /* given out and not put back */
uint64_t fake_chain_fua_writes(struct chain *chain);
uint64_t fake_chain_caches(struct chain *chain);
