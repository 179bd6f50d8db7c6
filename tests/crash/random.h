/* SPDX-License-Identifier: Apache-2.0 */
/* random.h - numbers that a seed decides (splitmix64): the same on every machine.
 *
 * Threads    a generator belongs to one thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct random {
        uint64_t state;
};

static inline uint64_t random_mix(uint64_t z)
{
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

static inline uint64_t random_next(struct random *random)
{
        random->state += UINT64_C(0x9e3779b97f4a7c15);
        return random_mix(random->state);
}

/* 0 to @n - 1; @n is not 0. */
static inline uint64_t random_below(struct random *random, uint64_t n)
{
        return random_next(random) % n;
}

/* @a to @b, both included. */
static inline uint64_t random_between(struct random *random, uint64_t a, uint64_t b)
{
        return a + random_below(random, b - a + 1);
}

static inline bool random_chance(struct random *random, unsigned percent)
{
        return random_below(random, 100) < percent;
}
