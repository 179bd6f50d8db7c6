/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a merge takes its own delays for what clients are used to, and never slows down; or
 * takes a quiet moment for a slow one. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "vhdd/worker/latency.h"

/* @n requests that took between 2^(bucket - 1) and 2^bucket microseconds. */
static void add(struct nbd_export_stats *stats, unsigned bucket, uint64_t n)
{
        stats->kinds[NBD_KIND_WRITE].latency[bucket] += n;
}

Test(latency, tells_the_last_of_a_hundred)
{
        struct latency latency = {0};
        struct nbd_export_stats stats = {0};
        uint64_t us = 0;

        add(&stats, 7, 980); /* 64 to 128 us */
        add(&stats, 14, 20); /* 8 to 16 ms */
        cr_assert(latency_now(&latency, &stats, &us));
        cr_expect(ge(u64, us, 8192));
        cr_expect(le(u64, us, 16384));
}

Test(latency, forgets_what_was_before_the_last_look)
{
        struct latency latency = {0};
        struct nbd_export_stats stats = {0};
        uint64_t us = 0;

        add(&stats, 20, 1000);
        cr_assert(latency_now(&latency, &stats, &us));
        add(&stats, 7, 1000);
        cr_assert(latency_now(&latency, &stats, &us));
        cr_expect(le(u64, us, 128));
}

Test(latency, says_nothing_of_a_few_requests)
{
        struct latency latency = {0};
        struct nbd_export_stats stats = {0};
        uint64_t us = 0;

        add(&stats, 20, LATENCY_WINDOW_LEAST - 1);
        cr_expect(not(latency_now(&latency, &stats, &us)));
        add(&stats, 20, 1);
        cr_expect(latency_now(&latency, &stats, &us), "those few count at the next look");
}

Test(latency, what_a_merge_was_in_the_way_of_is_not_usual)
{
        struct latency latency = {0};
        struct nbd_export_stats stats = {0};
        uint64_t us = 0;

        cr_expect(not(latency_usual(&latency, &us)));
        add(&stats, 7, 1000);
        latency_alone(&latency, &stats);
        add(&stats, 20, 100000);
        cr_assert(latency_now(&latency, &stats, &us));
        cr_expect(gt(u64, us, 128));
        cr_assert(latency_usual(&latency, &us));
        cr_expect(le(u64, us, 128));
}

/* An export that is removed takes its counters with it. */
Test(latency, survives_counters_that_begin_anew)
{
        struct latency latency = {0};
        struct nbd_export_stats stats = {0};
        uint64_t us = 0;

        add(&stats, 7, 1000);
        latency_alone(&latency, &stats);
        stats = (struct nbd_export_stats){0};
        add(&stats, 7, 10);
        cr_expect(not(latency_now(&latency, &stats, &us)));
}

Test(latency, follows_the_times)
{
        struct latency latency = {0};
        struct nbd_export_stats stats = {0};
        uint64_t us = 0;

        add(&stats, 7, 90000);
        latency_alone(&latency, &stats);
        for (unsigned i = 0; i < 20; i++) {
                add(&stats, 12, 90000);
                latency_alone(&latency, &stats);
        }
        cr_assert(latency_usual(&latency, &us));
        cr_expect(gt(u64, us, 2048));
}
