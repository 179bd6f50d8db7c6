/* SPDX-License-Identifier: Apache-2.0 */
/* arith.h - arithmetic on sizes and offsets that outsiders may have chosen.
 *
 * Units      whatever the caller counts in; both operands the same.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define TIB (1024 * GIB)

#define SECTOR_SIZE  UINT64_C(512)
#define SECTOR_SHIFT 9

#define MIN_OF(a, b)                                                                               \
        ({                                                                                         \
                __typeof__(a) a_ = (a);                                                            \
                __typeof__(b) b_ = (b);                                                            \
                a_ < b_ ? a_ : b_;                                                                 \
        })
#define MAX_OF(a, b)                                                                               \
        ({                                                                                         \
                __typeof__(a) a_ = (a);                                                            \
                __typeof__(b) b_ = (b);                                                            \
                a_ > b_ ? a_ : b_;                                                                 \
        })

static inline bool is_power_of_2(uint64_t n)
{
        return n != 0 && (n & (n - 1)) == 0;
}

static inline unsigned log2_of(uint64_t power_of_2)
{
        return (unsigned)__builtin_ctzll(power_of_2);
}

/* Is [offset, offset + length) inside [0, size)? Never wraps. */
static inline bool range_inside(uint64_t offset, uint64_t length, uint64_t size)
{
        return offset <= size && length <= size - offset;
}

/* Do [a, a + a_length) and [b, b + b_length) share a byte? Both must not wrap. */
static inline bool ranges_overlap(uint64_t a, uint64_t a_length, uint64_t b, uint64_t b_length)
{
        return a < b + b_length && b < a + a_length;
}

/* The next multiple of @unit (a power of two) at or above @n. @n must leave room for it. */
static inline uint64_t round_up_to(uint64_t n, uint64_t unit)
{
        return (n + unit - 1) & ~(unit - 1);
}

static inline uint64_t round_down_to(uint64_t n, uint64_t unit)
{
        return n & ~(unit - 1);
}

static inline uint64_t div_round_up(uint64_t n, uint64_t unit)
{
        return n / unit + (n % unit != 0);
}
