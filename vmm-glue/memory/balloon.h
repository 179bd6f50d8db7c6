/* SPDX-License-Identifier: Apache-2.0 */
/* balloon.h - how fast memory is taken from a guest: by unplugging, and by the balloon where it does not let go of what
 * virtio-mem has plugged.
 *
 * Unplugged is no more at a time than the guest has available beyond a small reserve: one that fills its memory
 * while it is taken from it would kill processes, and at last itself.
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
#define UNPLUG_RESERVE       (UINT64_C(16) << 20)
#define UNPLUG_RESERVE_PART  32u
#define UNPLUG_BLOCK         (UINT64_C(4) << 20)

struct balloon_view {
        uint64_t startup;      /* RAM, which the balloon takes from */
        uint64_t target;       /* what the vm is to have of all */
        uint64_t has;          /* of its startup RAM, now */
        uint64_t plugged;      /* above startup, now */
        uint64_t most_plugged; /* that is to stay plugged */
        bool has_told;         /* the guest has ever told the two below */
        bool is_fresh;         /* just now */
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
/* What to ask virtio-mem for: most_plugged, or so much above it as the guest cannot let go of yet. */
uint64_t balloon_plug(const struct balloon_view *view);
