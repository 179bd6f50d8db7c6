/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: the balloon itself is taken for demand, so that memory that was taken away comes back
 * at once; a small guest fills up and is not seen to; counters of a guest that was started anew make a huge
 * demand; a number from a hostile guest overflows. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "vmm-glue/memory/demand.h"

#define MiB (UINT64_C(1) << 20)

static struct demand_stats stats_of(uint64_t total, uint64_t available)
{
        return (struct demand_stats){
                .startup = 512 * MiB, .given = 512 * MiB, .total = total, .available = available};
}

Test(demand, is_what_is_used_and_what_the_kernel_kept)
{
        struct demand_stats stats = stats_of(464 * MiB, 364 * MiB);
        struct demand demand = {0};

        cr_expect(not(demand.known));
        demand_update(&demand, &stats, 0);
        cr_expect(demand.known);
        cr_expect(eq(u64, demand.now, (100 + 48) * MiB));
        cr_expect(eq(u64, demand.slow, demand.now));
}

/* The numbers of a measured guest: 1 GiB, at 384 and at 1024 MiB it uses about the same. */
Test(demand, leaves_the_balloon_out)
{
        struct demand_stats stats = {.startup = 1024 * MiB,
                .given = 1024 * MiB,
                .inflated = 640 * MiB,
                .total = 960 * MiB,
                .available = 960 * MiB - 742 * MiB};
        struct demand demand = {0};

        demand_update(&demand, &stats, 0);
        cr_expect(eq(u64, demand.now, (742 - 640 + 64) * MiB));
}

/* Plugged memory that the guest does not use yet is no demand. */
Test(demand, leaves_out_what_was_plugged_and_is_not_seen)
{
        struct demand_stats stats = stats_of(464 * MiB, 364 * MiB);
        struct demand demand = {0}, late = {0};

        demand_update(&demand, &stats, 0);
        stats.given = 1536 * MiB;
        demand_update(&demand, &stats, 1000);
        cr_expect(eq(u64, demand.now, 148 * MiB));
        demand_update(&late, &stats, 0);
        cr_expect(eq(u64, late.now, (100 + 256) * MiB), "at most half of startup");
        stats.total = 1500 * MiB;
        stats.available = 1400 * MiB;
        demand_update(&late, &stats, 0);
        cr_expect(eq(u64, late.now, (100 + 36) * MiB));
}

/* A guest that fills all it sees wants more than it has, whatever its buffer is. */
Test(demand, a_full_guest_wants_more_than_it_has)
{
        struct demand_stats stats = stats_of(460 * MiB, 3 * MiB);
        struct demand demand = {0};

        demand_update(&demand, &stats, 0);
        cr_expect(eq(u64, demand.now, (457 + 52 + 20) * MiB));
        cr_expect(gt(u64, demand.now, 512 * MiB));
}

Test(demand, rises_at_once_and_falls_slowly)
{
        struct demand_stats stats = stats_of(464 * MiB, 364 * MiB);
        struct demand demand = {0};
        uint64_t high, low;

        demand_update(&demand, &stats, 0);
        low = demand.slow;
        stats.available = 164 * MiB;
        demand_update(&demand, &stats, 1000);
        high = demand.slow;
        cr_expect(eq(u64, high, low + 200 * MiB));
        stats.available = 364 * MiB;
        demand_update(&demand, &stats, 1000);
        cr_expect(eq(u64, demand.now, low));
        cr_expect(eq(u64, demand.slow, low + 200 * MiB * 30 / 31));
        for (unsigned second = 1; second < 21; second++)
                demand_update(&demand, &stats, 1000);
        cr_expect(lt(u64, demand.slow, low + 103 * MiB));
        cr_expect(gt(u64, demand.slow, low + 97 * MiB), "half is gone after 21 seconds");
        demand_update(&demand, &stats, UINT64_MAX);
        cr_expect(lt(u64, demand.slow, low + MiB));
}

Test(demand, swap_and_faults_count_while_memory_is_scarce)
{
        struct demand_stats stats = stats_of(464 * MiB, 364 * MiB);
        struct demand demand = {0};

        stats.major_faults = 5000;
        demand_update(&demand, &stats, 0);
        stats.major_faults = 7000;
        demand_update(&demand, &stats, 1000);
        cr_expect(eq(u64, demand.strain, 0), "a program was started, and there is memory enough");
        stats.available = 60 * MiB;
        stats.major_faults = 7000 + 256;
        stats.swapped_in = 3 * MiB;
        demand_update(&demand, &stats, 1000);
        cr_expect(eq(u64, demand.strain, 3 * MiB), "a swapped page is a fault, too: the larger");
        stats.major_faults += 100000;
        demand_update(&demand, &stats, 1000);
        cr_expect(eq(u64, demand.strain, 116 * MiB), "a quarter of total at most");
        stats.available = 364 * MiB;
        demand_update(&demand, &stats, 1000);
        cr_expect(eq(u64, demand.strain, 116 * MiB * 30 / 31));
}

Test(demand, counters_that_went_back_begin_again)
{
        struct demand_stats stats = stats_of(464 * MiB, 50 * MiB);
        struct demand demand = {0};

        stats.major_faults = 1000000;
        stats.swapped_in = 900 * MiB;
        demand_update(&demand, &stats, 0);
        stats.major_faults = 10;
        stats.swapped_in = 0;
        demand_update(&demand, &stats, 1000);
        cr_expect(eq(u64, demand.strain, 0));
}

Test(demand, bears_any_number)
{
        const struct demand_stats odd[] = {
                {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX,
                        UINT64_MAX},
                {0, 0, 0, UINT64_MAX, 0, 0, 0},
                {0},
                {0, 0, UINT64_MAX, 1, UINT64_MAX, UINT64_MAX, UINT64_MAX},
                {1, 1, 0, 0, UINT64_MAX, 0, 0},
        };
        struct demand demand = {0};

        for (size_t i = 0; i < 3 * sizeof(odd) / sizeof(odd[0]); i++) {
                demand_update(&demand, &odd[i % (sizeof(odd) / sizeof(odd[0]))], UINT64_MAX >> i);
                cr_expect(le(u64, demand.now, UINT64_C(1) << 53));
                cr_expect(ge(u64, demand.slow, demand.now));
        }
}
