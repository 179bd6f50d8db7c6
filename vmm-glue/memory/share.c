/* SPDX-License-Identifier: Apache-2.0 */
/* share.c - by weight, up to what each needs; see share.h.
 *
 * The rounds of sharing again are not walked: whoever would get its need in the first round gets it in the
 * end, and leaves the others with a level that is no lower than before. So those who are satisfied are
 * taken out, as often as there are any, and the rest divide what is left in one step. All in integers:
 * rest x weight against need x sum of weights.
 */
#include <assert.h>
#include <stdbool.h>

#include "vmm-glue/memory/share.h"

/* Those whose part of @rest covers their need get it. Answers false when there is none. */
static bool satisfy(
        struct share_claim *claims, bool *open, size_t n, uint64_t *rest, uint64_t *weights)
{
        uint64_t rest_before = *rest, weights_before = *weights;

        for (size_t i = 0; i < n; i++) {
                if (!open[i] ||
                        rest_before * claims[i].weight < claims[i].need_blocks * weights_before)
                        continue;
                open[i] = false;
                claims[i].given_blocks = claims[i].need_blocks;
                *rest -= claims[i].need_blocks;
                *weights -= claims[i].weight;
        }
        return *weights != weights_before;
}

/* Of those who were left with whole blocks, the one that lost the largest fraction. */
static size_t find_largest_fraction(const uint64_t *fractions, const bool *open, size_t n)
{
        size_t best = n;

        for (size_t i = 0; i < n; i++)
                if (open[i] && (best == n || fractions[i] > fractions[best]))
                        best = i;
        assert(best < n);
        return best;
}

void share_by_weight(struct share_claim *claims, size_t n, uint64_t rest_blocks)
{
        uint64_t fractions[SHARE_MAX_CLAIMS] = {0}, weights = 0, left;
        bool open[SHARE_MAX_CLAIMS] = {false};

        assert(n <= SHARE_MAX_CLAIMS);
        if (rest_blocks > SHARE_MAX_BLOCKS)
                rest_blocks = SHARE_MAX_BLOCKS;
        for (size_t i = 0; i < n; i++) {
                assert(claims[i].weight >= 1);
                assert(claims[i].weight <= SHARE_MAX_WEIGHT);
                assert(claims[i].need_blocks <= SHARE_MAX_BLOCKS);
                claims[i].given_blocks = 0;
                open[i] = true;
                weights += claims[i].weight;
        }
        while (satisfy(claims, open, n, &rest_blocks, &weights))
                ;
        left = rest_blocks;
        for (size_t i = 0; i < n; i++) {
                if (!open[i])
                        continue;
                claims[i].given_blocks = rest_blocks * claims[i].weight / weights;
                fractions[i] = rest_blocks * claims[i].weight % weights;
                left -= claims[i].given_blocks;
        }
        /* Fewer than there are open claims, and none of these has its need: its share is below it. */
        for (; weights > 0 && left > 0; left--) {
                size_t i = find_largest_fraction(fractions, open, n);

                claims[i].given_blocks++;
                open[i] = false;
        }
}
