/* SPDX-License-Identifier: Apache-2.0 */
/* blocks.h - one block of a chain's leaf, held alone: what jobs that drop and move blocks need (rule
 * E7). Beside requests of others; a snapshot waits for who holds a block, so nobody flushes or waits
 * for anything but the disk while he does.
 *
 *   chain_block_shut -> map, read below, release or move -> chain_block_open
 *
 * Units      bytes on the guest's disk.
 * Ownership  a struct chain_block is the caller's and means something between shut and open.
 * Errors     0 or -errno. -EROFS: the leaf is not open for writing. -ENOTSUP: it has no blocks.
 * Threads    any; a thread holds one block at a time.
 */
#pragma once

#include "chain/chain.h"

struct chain_block {
        struct chain *chain;
        struct image *leaf;
        unsigned n_layers;
        uint64_t offset, length; /* of the block; the last one may be shorter than the others */
        uint64_t key;            /* of the thread, in chain->hold */
};

/* The leaf's block size; 0: it is flat. */
uint64_t chain_block_size(const struct chain *chain);

/* Shuts out all changes of the block at @offset, and waits until those under way are over. */
int chain_block_shut(struct chain *chain, uint64_t offset, struct chain_block *ret);
void chain_block_open(const struct chain_block *block);
/* The same without shutting anything: what is found may be old by the time it is looked at. */
int chain_block_look(struct chain *chain, uint64_t offset, struct chain_block *ret);

/* What the disk would hold at @offset if the leaf said nothing; may stop short. */
int chain_block_map_below(const struct chain_block *block, uint64_t offset, uint64_t length,
        struct chain_extent *ret);

/* Of a shut one: the leaf loses the block, which keeps its bytes until nobody can need them (E8).
 * -ENOBUFS: open it, flush, and come again. */
int chain_block_release(const struct chain_block *block);
/* Of a shut one: to another place in the leaf's file, as image->format->move_begin says. 1 moved, 0
 * there is no place. -ENOBUFS as above. *ret_written: bytes that are in the file twice now. */
int chain_block_move(const struct chain_block *block, uint64_t behind, uint64_t *ret_written);
/* The same of an image that nobody else changes: the block at @offset, of which the guest sees @length. */
int image_block_move(struct image *image, uint64_t offset, uint64_t length, uint64_t behind,
        uint64_t *ret_written);
