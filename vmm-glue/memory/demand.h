/* SPDX-License-Identifier: Apache-2.0 */
/* demand.h - how much memory a guest needs, out of what its balloon tells.
 *
 *   demand now = total - available - inflated        what the guest uses, page cache left out
 *              + kept                                 what its kernel took before it counted "total"
 *              + short                                total / 20 - available, while that is more than 0
 *              + strain                               what it had to read again, see below
 *
 * The balloon has deflate-on-oom, so its pages are part of total and count as used: inflated takes them
 * out again. Kept is the least difference ever seen between the memory that the guest was given and its
 * total (at most half of its startup memory: what was plugged and is not used by the guest is no demand);
 * without it a small guest could fill all it sees, and demand plus buffer would still be below what it has.
 *
 * Strain: pages that were swapped in, or else major faults times 4 KiB, add up while less than a fifth of
 * total is available (a program that is started reads its pages from the disk, too, and needs no more
 * memory for that), to at most a quarter of total. They are forgotten at the pace at which demand falls.
 *
 * Demand rises to what it is now at once, and falls slowly: in a second by 1/31 of the difference, so that
 * half of it is gone after 21 seconds.
 *
 * Units      bytes, but for counts of faults; milliseconds.
 * Ownership  plain values.
 * Errors     none. Counters that went back belong to a guest that was started anew: they begin again.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define DEMAND_FALL_MS         30000u
#define DEMAND_SHORT_PART      20u /* of total: less than that available is too little */
#define DEMAND_SCARCE_PART     5u  /* less than that, and faults count */
#define DEMAND_STRAIN_MAX_PART 4u
#define DEMAND_PAGE            4096u

/* What the guest's balloon says, and what it was given. */
struct demand_stats {
        uint64_t startup;
        uint64_t given;    /* startup plus what virtio-mem plugged */
        uint64_t inflated; /* in the balloon */
        uint64_t total, available;
        uint64_t swapped_in;   /* bytes since the guest began */
        uint64_t major_faults; /* since the guest began */
};

struct demand {
        bool known; /* false: no word from the guest yet */
        uint64_t now;
        uint64_t
                slow; /* the demand that is reckoned with: now, or what is left of an earlier one */
        uint64_t kept, strain;
        uint64_t swapped_in, major_faults; /* as they were the last time */
};

/* All zeroes is where a guest begins. @elapsed_ms: since the last update, 0 at the first. */
void demand_update(struct demand *demand, const struct demand_stats *stats, uint64_t elapsed_ms);
