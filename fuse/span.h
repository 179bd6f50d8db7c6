/* SPDX-License-Identifier: Apache-2.0 */
/* span.h - a range of a chain's disk as a file: the whole disk, or a partition.
 *
 * Units      bytes.
 * Ownership  span_new hands out; the tree's node takes it over, or free() ends it. The chain and what
 *            the owner holds are the caller's and live longer.
 * Errors     those of the chain, as errno.
 * Threads    as the tree's callbacks.
 */
#pragma once

#include "chain/chain.h"
#include "fuse/tree.h"

struct span_options {
        struct chain *chain;
        uint64_t start, size; /* on the chain's disk */
        /* What is told, on the thread of the request and before it is answered; each may be NULL. */
        void (*changed)(void *opaque, uint64_t offset, uint64_t length); /* on the chain's disk */
        void (*flushed)(void *opaque);
        void (*released)(void *opaque);
        void *opaque;
};

void *span_new(const struct span_options *options); /* NULL: no memory */
extern const struct vhdfuse_file_ops span_ops;      /* for reading and writing */
extern const struct vhdfuse_file_ops span_read_only_ops;

/* How much space the chain's images take, at most as much as @size. */
uint64_t span_allocated(struct chain *chain, uint64_t size);
/* When the chain's leaf was last changed. */
void span_mtime(struct chain *chain, struct timespec *ret);
