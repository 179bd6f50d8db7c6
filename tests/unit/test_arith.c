/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes and offsets come from files that an enemy wrote: a sum that wraps makes an outside place look
 * like an inside one. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "base/arith.h"

Test(range_inside, knows_the_borders)
{
        cr_expect(range_inside(0, 0, 0));
        cr_expect(range_inside(0, 10, 10));
        cr_expect(range_inside(10, 0, 10));
        cr_expect(not(range_inside(10, 1, 10)));
        cr_expect(not(range_inside(11, 0, 10)));
        cr_expect(not(range_inside(5, 6, 10)));
}

Test(range_inside, never_wraps)
{
        cr_expect(not(range_inside(UINT64_MAX, 1, 10)));
        cr_expect(not(range_inside(UINT64_MAX, UINT64_MAX, UINT64_MAX - 1)));
        cr_expect(not(range_inside(1, UINT64_MAX, UINT64_MAX)));
        cr_expect(range_inside(0, UINT64_MAX, UINT64_MAX));
        cr_expect(range_inside(UINT64_MAX, 0, UINT64_MAX));
}

Test(ranges_overlap, touching_is_not_overlapping)
{
        cr_expect(ranges_overlap(0, 10, 9, 1));
        cr_expect(not(ranges_overlap(0, 10, 10, 5)));
        cr_expect(not(ranges_overlap(10, 5, 0, 10)));
        cr_expect(ranges_overlap(3, 1, 0, 10));
}

Test(rounding, to_powers_of_two)
{
        cr_expect(eq(u64, round_up_to(0, 4096), 0));
        cr_expect(eq(u64, round_up_to(1, 4096), 4096));
        cr_expect(eq(u64, round_up_to(4096, 4096), 4096));
        cr_expect(eq(u64, round_up_to((UINT64_C(1) << 63) + 1, 512), (UINT64_C(1) << 63) + 512));
        cr_expect(eq(u64, round_down_to(4095, 4096), 0));
        cr_expect(eq(u64, round_down_to(UINT64_MAX, 512), UINT64_MAX - 511));
        cr_expect(eq(u64, div_round_up(0, 512), 0));
        cr_expect(eq(u64, div_round_up(513, 512), 2));
        cr_expect(eq(u64, div_round_up(UINT64_MAX, 2), UINT64_C(1) << 63));
}

Test(powers_of_2, are_told_from_the_rest)
{
        cr_expect(not(is_power_of_2(0)));
        cr_expect(is_power_of_2(1));
        cr_expect(not(is_power_of_2(3)));
        cr_expect(is_power_of_2(UINT64_C(1) << 63));
        cr_expect(not(is_power_of_2(UINT64_MAX)));
        cr_expect(eq(u32, log2_of(1), 0));
        cr_expect(eq(u32, log2_of(UINT64_C(1) << 40), 40));
}

/* The macros look at each argument once. */
Test(min_max, evaluate_once)
{
        int n = 0;

        cr_expect(eq(int, MIN_OF(++n, 5), 1));
        cr_expect(eq(int, MAX_OF(++n, 1), 2));
        cr_expect(eq(int, n, 2));
}
