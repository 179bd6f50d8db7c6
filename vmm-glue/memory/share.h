/* SPDX-License-Identifier: Apache-2.0 */
/* share.h - what there is of something, shared by weight among those who need it.
 *
 * Each gets of the rest in proportion to its weight, and nobody more than it needs; what is left over is
 * shared again among those who still need something, until nothing is left or all have what they need. In
 * real numbers that comes to: there is a level L, and each has the lesser of its need and L x weight.
 * Blocks do not divide, so everybody gets the whole blocks of that, and the blocks that remain go, one to
 * each, to those who lost the largest fraction (of equals, to the first).
 *
 * So: nobody is a whole block away from the exact share; all that can be given is given; and whoever's
 * weight rises, the others' staying as they are, gets no less than before.
 *
 * Units      blocks of whatever size the caller has.
 * Ownership  the caller's array.
 * Errors     none.
 * Threads    a pure function.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Bounds that keep every product below 2^63: 2^40 blocks, 1024 who share, weights to 10000. */
#define SHARE_MAX_BLOCKS (UINT64_C(1) << 40)
#define SHARE_MAX_CLAIMS 1024u
#define SHARE_MAX_WEIGHT 10000u

struct share_claim {
        uint64_t need_blocks; /* at most SHARE_MAX_BLOCKS */
        uint32_t weight;      /* 1 to SHARE_MAX_WEIGHT */
        uint64_t given_blocks;
};

/* Fills given_blocks of all @n claims (at most SHARE_MAX_CLAIMS). */
void share_by_weight(struct share_claim *claims, size_t n, uint64_t rest_blocks);
