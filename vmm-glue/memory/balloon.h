/* SPDX-License-Identifier: Apache-2.0 */
/* balloon.h - how far the balloon goes, where a guest does not let go of what virtio-mem has plugged.
 *
 * What is plugged and is too much is first given time to be unplugged: for that the guest moves what lies in it to
 * its startup RAM, and needs room there. So the balloon takes from startup RAM only what has not been unplugged
 * after BALLOON_WAIT_MS without any progress, and a part at a time of what the guest can do without: half of what it
 * has available beyond a reserve. It takes nothing on old word: a guest that is starved says nothing. One that has
 * taken pages out of the balloon by itself, because it was about to kill a process, is left alone with them. Giving
 * back waits for nothing.
 *
 * Units      bytes; milliseconds.
 * Ownership  plain values.
 * Errors     none.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define BALLOON_WAIT_MS      5000u
#define BALLOON_LEAST        (UINT64_C(8) << 20) /* of startup RAM a guest never has less */
#define BALLOON_RESERVE      (UINT64_C(32) << 20)
#define BALLOON_RESERVE_PART 8u /* of total, if that is more */

struct balloon_view {
        uint64_t startup;      /* RAM, which the balloon takes from */
        uint64_t target;       /* what the vm is to have of all */
        uint64_t has;          /* of its startup RAM, now */
        uint64_t plugged;      /* above startup, now */
        uint64_t most_plugged; /* that is to stay plugged */
        bool is_fresh;         /* the guest has just told the two below */
        uint64_t total, available;
};

struct balloon {
        uint64_t plugged;  /* as it was the last time */
        uint64_t still_ms; /* for so long it has not become less */
};

/* What of its startup RAM the guest is to have. All zeroes is where a guest begins. @elapsed_ms: since the last
 * time. */
uint64_t balloon_next(
        struct balloon *balloon, const struct balloon_view *view, uint64_t elapsed_ms);
