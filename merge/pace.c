/* SPDX-License-Identifier: Apache-2.0 */
#include "merge/pace.h"

#include <time.h>

#include "base/arith.h"

#define SLICE_MS     50u /* at most so long until a stop is heard */
#define MAX_PAUSE_US 200000u

static uint64_t now_ns(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

static bool may_go_on(const struct merge_controls *controls)
{
        return !controls || !controls->go_on || controls->go_on(controls->opaque);
}

/* -ECANCELED if one was told to stop meanwhile. */
static int pause_for(const struct merge_controls *controls, uint64_t us)
{
        while (us > 0) {
                uint64_t slice = MIN_OF(us, (uint64_t)SLICE_MS * 1000);
                struct timespec ts = {.tv_sec = 0, .tv_nsec = (long)slice * 1000};

                if (!may_go_on(controls))
                        return -ECANCELED;
                nanosleep(&ts, NULL);
                us -= slice;
        }
        return may_go_on(controls) ? 0 : -ECANCELED;
}

/* How long until as much may have been done as was. */
static uint64_t wait_for_rate(struct pace *pace, uint64_t rate)
{
        uint64_t now = now_ns(), due;

        if (rate == 0) {
                pace->since_ns = 0;
                return 0;
        }
        if (pace->since_ns == 0 || now - pace->since_ns > UINT64_C(10000000000)) {
                pace->since_ns = now;
                pace->bytes = 0;
                return 0;
        }
        due = pace->since_ns + (uint64_t)((double)pace->bytes * 1e9 / (double)rate);
        return due > now ? (due - now) / 1000 : 0;
}

/* The guest's requests take much longer than without us: fewer of ours. Quickly slower, slowly faster. */
static uint64_t back_off(struct pace *pace, const struct merge_controls *controls)
{
        uint64_t with = 0, alone = 0;

        if (!controls->latency || !controls->latency(controls->opaque, &with, &alone) || alone == 0)
                pace->pause_us = 0;
        else if (with > 2 * alone)
                pace->pause_us = MIN_OF(2 * pace->pause_us + 1000, (uint64_t)MAX_PAUSE_US);
        else
                pace->pause_us -= pace->pause_us / 4 + (pace->pause_us > 0);
        return pace->pause_us;
}

void pace_anew(struct pace *pace)
{
        pace->since_ns = 0;
}

void pace_add(struct pace *pace, uint64_t bytes)
{
        pace->bytes += bytes;
}

int pace_keep(struct pace *pace, const struct merge_controls *controls)
{
        uint64_t us = 0;

        if (controls && controls->rate)
                us = wait_for_rate(pace, controls->rate(controls->opaque));
        if (controls)
                us = MAX_OF(us, back_off(pace, controls));
        return pause_for(controls, us);
}
