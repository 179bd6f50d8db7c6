/* SPDX-License-Identifier: Apache-2.0 */
/* sums.h - what the rules of memory reckon with: as functions, because they are written one into another.
 *
 * Units      bytes, or whatever both operands are.
 * Threads    pure functions.
 */
#pragma once

#include <stdint.h>

static inline uint64_t least(uint64_t a, uint64_t b)
{
        return a < b ? a : b;
}

static inline uint64_t most(uint64_t a, uint64_t b)
{
        return a > b ? a : b;
}

/* a - b, or 0. */
static inline uint64_t beyond(uint64_t a, uint64_t b)
{
        return a > b ? a - b : 0;
}
