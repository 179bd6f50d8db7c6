/* SPDX-License-Identifier: Apache-2.0 */
/* balloon.c - the rule of balloon.h. */
#include "vmm-glue/memory/balloon.h"

#include "vmm-glue/memory/sums.h"

#define ROUND (UINT64_C(1) << 20)

static uint64_t goal_of(const struct balloon_view *view)
{
        uint64_t stuck = beyond(view->plugged, view->most_plugged);

        return most(beyond(least(view->target, view->startup), stuck), BALLOON_LEAST);
}

static uint64_t can_do_without(const struct balloon_view *view)
{
        uint64_t reserve = most(view->total / BALLOON_RESERVE_PART, BALLOON_RESERVE);
        uint64_t half = beyond(view->available, reserve) / 2;

        return view->is_fresh ? half - half % ROUND : 0;
}

uint64_t balloon_next(struct balloon *balloon, const struct balloon_view *view, uint64_t elapsed_ms)
{
        uint64_t goal = goal_of(view);

        if (view->plugged < balloon->plugged || view->plugged <= view->most_plugged)
                balloon->still_ms = 0;
        else
                balloon->still_ms += elapsed_ms;
        balloon->plugged = view->plugged;
        if (goal >= view->has)
                return goal;
        if (view->plugged > view->most_plugged && balloon->still_ms < BALLOON_WAIT_MS)
                return view->has;
        return most(goal, beyond(view->has, can_do_without(view)));
}

uint64_t balloon_plug(const struct balloon_view *view)
{
        uint64_t spare =
                beyond(view->available, most(view->total / UNPLUG_RESERVE_PART, UNPLUG_RESERVE));

        if (view->plugged <= view->most_plugged || !view->has_told)
                return view->most_plugged;
        if (!view->is_fresh)
                return view->plugged;
        return most(view->most_plugged, beyond(view->plugged, spare - spare % UNPLUG_BLOCK));
}
