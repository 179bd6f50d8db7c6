/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: memory is given out twice, or is left lying while somebody needs it; a vm gets less
 * because its weight was raised; a block that does not divide goes to the wrong one. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "vmm-glue/memory/share.h"

enum { N_ROUNDS = 20000, N_MAX = 9 };

/* The same numbers in each run. */
static uint64_t random_below(uint64_t *state, uint64_t bound)
{
        *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        return (*state >> 24) % bound;
}

/* Sometimes small, so that there are ties, and sometimes large, so that products are. */
static size_t random_claims(uint64_t *state, struct share_claim *claims, uint64_t *rest)
{
        size_t n = 1 + random_below(state, N_MAX);
        uint64_t scale = random_below(state, 3) == 0 ? SHARE_MAX_BLOCKS : 40;

        for (size_t i = 0; i < n; i++)
                claims[i] = (struct share_claim){
                        .need_blocks = random_below(state, scale),
                        .weight = 1 +
                                (uint32_t)random_below(state, random_below(state, 2) ? 100 : 10000),
                };
        *rest = random_below(state, scale * (uint64_t)n);
        if (*rest > SHARE_MAX_BLOCKS)
                *rest = SHARE_MAX_BLOCKS;
        return n;
}

static uint64_t sum_given(const struct share_claim *claims, size_t n)
{
        uint64_t sum = 0;

        for (size_t i = 0; i < n; i++)
                sum += claims[i].given_blocks;
        return sum;
}

static uint64_t sum_needs(const struct share_claim *claims, size_t n)
{
        uint64_t sum = 0;

        for (size_t i = 0; i < n; i++)
                sum += claims[i].need_blocks;
        return sum;
}

Test(share, by_weight)
{
        struct share_claim claims[] = {{1000, 75, 0}, {1000, 25, 0}};

        share_by_weight(claims, 2, 400);
        cr_expect(eq(u64, claims[0].given_blocks, 300));
        cr_expect(eq(u64, claims[1].given_blocks, 100));
}

/* The heavy one needs little: what it leaves goes to the others by their weights, and again. */
Test(share, shares_again_what_is_left_over)
{
        struct share_claim claims[] = {{10, 80, 0}, {60, 10, 0}, {1000, 10, 0}};

        share_by_weight(claims, 3, 200);
        cr_expect(eq(u64, claims[0].given_blocks, 10));
        cr_expect(eq(u64, claims[1].given_blocks, 60));
        cr_expect(eq(u64, claims[2].given_blocks, 130));
}

Test(share, gives_everybody_its_need_when_there_is_enough)
{
        struct share_claim claims[] = {{10, 1, 0}, {0, 100, 0}, {7, 50, 0}};

        share_by_weight(claims, 3, 1000);
        cr_expect(eq(u64, claims[0].given_blocks, 10));
        cr_expect(eq(u64, claims[1].given_blocks, 0));
        cr_expect(eq(u64, claims[2].given_blocks, 7));
}

/* 10 by 1:1:1 is 3 1/3 each: the first gets the block. By 5:3:2 of 7 (3.5, 2.1, 1.4): the first. */
Test(share, the_largest_fraction_gets_the_block_that_does_not_divide)
{
        struct share_claim even[] = {{99, 1, 0}, {99, 1, 0}, {99, 1, 0}};
        struct share_claim uneven[] = {{99, 2, 0}, {99, 3, 0}, {99, 5, 0}};

        share_by_weight(even, 3, 10);
        cr_expect(eq(u64, even[0].given_blocks, 4));
        cr_expect(eq(u64, even[1].given_blocks, 3));
        cr_expect(eq(u64, even[2].given_blocks, 3));
        share_by_weight(uneven, 3, 7);
        cr_expect(eq(u64, uneven[0].given_blocks, 1));
        cr_expect(eq(u64, uneven[1].given_blocks, 2));
        cr_expect(eq(u64, uneven[2].given_blocks, 4));
}

Test(share, of_nothing_and_among_nobody)
{
        struct share_claim claims[] = {{10, 1, 99}};

        share_by_weight(claims, 1, 0);
        cr_expect(eq(u64, claims[0].given_blocks, 0));
        share_by_weight(NULL, 0, 10);
}

Test(share, at_its_bounds)
{
        static struct share_claim claims[SHARE_MAX_CLAIMS];

        for (size_t i = 0; i < SHARE_MAX_CLAIMS; i++)
                claims[i] = (struct share_claim){SHARE_MAX_BLOCKS, SHARE_MAX_WEIGHT, 0};
        share_by_weight(claims, SHARE_MAX_CLAIMS, UINT64_MAX);
        cr_expect(eq(u64, sum_given(claims, SHARE_MAX_CLAIMS), SHARE_MAX_BLOCKS));
        cr_expect(eq(u64, claims[0].given_blocks, SHARE_MAX_BLOCKS / SHARE_MAX_CLAIMS));
}

Test(share, gives_all_that_can_be_given_and_nobody_more_than_it_needs)
{
        uint64_t state = 1, rest;

        for (unsigned round = 0; round < N_ROUNDS; round++) {
                struct share_claim claims[N_MAX];
                size_t n = random_claims(&state, claims, &rest);
                uint64_t needs = sum_needs(claims, n);

                share_by_weight(claims, n, rest);
                cr_assert(eq(u64, sum_given(claims, n), needs < rest ? needs : rest));
                for (size_t i = 0; i < n; i++)
                        cr_assert(le(u64, claims[i].given_blocks, claims[i].need_blocks));
        }
}

/* Of two that both lack something, what they have stands as their weights do, but for one block. */
Test(share, those_who_lack_something_have_it_by_their_weights)
{
        uint64_t state = 2, rest;

        for (unsigned round = 0; round < N_ROUNDS; round++) {
                struct share_claim claims[N_MAX];
                size_t n = random_claims(&state, claims, &rest);

                share_by_weight(claims, n, rest);
                for (size_t i = 0; i < n; i++)
                        for (size_t k = 0; k < n; k++) {
                                const struct share_claim *a = &claims[i], *b = &claims[k];

                                if (a->given_blocks == a->need_blocks)
                                        continue;
                                /* b has no more than a's level allows it: L <= (a + 1) / weight. */
                                cr_assert(b->given_blocks * a->weight <
                                        (a->given_blocks + 1) * b->weight + a->weight);
                        }
        }
}

Test(share, a_higher_weight_gets_no_less)
{
        uint64_t state = 3, rest;

        for (unsigned round = 0; round < N_ROUNDS; round++) {
                struct share_claim before[N_MAX], after[N_MAX];
                size_t n = random_claims(&state, before, &rest), i = random_below(&state, n);

                memcpy(after, before, sizeof(after));
                after[i].weight +=
                        (uint32_t)random_below(&state, SHARE_MAX_WEIGHT + 1 - after[i].weight);
                share_by_weight(before, n, rest);
                share_by_weight(after, n, rest);
                cr_assert(ge(u64, after[i].given_blocks, before[i].given_blocks));
        }
}
