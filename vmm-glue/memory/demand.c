/* SPDX-License-Identifier: Apache-2.0 */
/* demand.c - see demand.h for the formula. */
#include "vmm-glue/memory/demand.h"

/* Beyond that nobody's memory goes; sums of a few such stay far below 2^64, products are avoided. */
#define SANE (UINT64_C(1) << 50)

static uint64_t least(uint64_t a, uint64_t b)
{
        return a < b ? a : b;
}

/* a - b, or 0. */
static uint64_t beyond(uint64_t a, uint64_t b)
{
        return a > b ? a - b : 0;
}

/* @from on its way down to @to, after @elapsed_ms: rounded so that it arrives. */
static uint64_t fall(uint64_t from, uint64_t to, uint64_t elapsed_ms)
{
        uint64_t ms = least(elapsed_ms, 1000 * DEMAND_FALL_MS), whole = DEMAND_FALL_MS + ms;
        uint64_t difference = from - to;

        return to + difference / whole * DEMAND_FALL_MS +
                difference % whole * DEMAND_FALL_MS / whole;
}

/* Bytes that the guest had to read again since the last time. */
static uint64_t read_again(const struct demand *demand, const struct demand_stats *stats)
{
        uint64_t swapped = beyond(stats->swapped_in, demand->swapped_in);
        uint64_t faults = beyond(stats->major_faults, demand->major_faults);

        /* A page that is swapped in is a major fault as well: the larger of the two holds both. */
        faults = least(faults, SANE / DEMAND_PAGE) * DEMAND_PAGE;
        return least(swapped > faults ? swapped : faults, SANE);
}

static void update_strain(struct demand *demand, const struct demand_stats *stats, uint64_t ms)
{
        demand->strain = fall(demand->strain, 0, ms);
        if (demand->known && stats->available < stats->total / DEMAND_SCARCE_PART)
                demand->strain += read_again(demand, stats);
        demand->strain = least(demand->strain, stats->total / DEMAND_STRAIN_MAX_PART);
        demand->swapped_in = stats->swapped_in;
        demand->major_faults = stats->major_faults;
}

void demand_update(struct demand *demand, const struct demand_stats *stats, uint64_t elapsed_ms)
{
        struct demand_stats sane = *stats;
        uint64_t kept;

        sane.total = least(sane.total, SANE);
        sane.given = least(sane.given, SANE);
        sane.available = least(sane.available, sane.total);
        kept = least(beyond(sane.given, sane.total), least(sane.startup, SANE) / 2);
        demand->kept = demand->known ? least(demand->kept, kept) : kept;
        update_strain(demand, &sane, elapsed_ms);
        demand->now = beyond(sane.total - sane.available, sane.inflated) + demand->kept +
                beyond(sane.total / DEMAND_SHORT_PART, sane.available) + demand->strain;
        if (!demand->known || demand->now >= demand->slow)
                demand->slow = demand->now;
        else
                demand->slow = fall(demand->slow, demand->now, elapsed_ms);
        demand->known = true;
}
