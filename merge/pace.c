/* SPDX-License-Identifier: Apache-2.0 */
#include "merge/pace.h"

#include <time.h>

#include "base/arith.h"

#define SLICE_MS     50u /* at most so long until a stop, or another limit, is heard */
#define WINDOW_NS    UINT64_C(10000000000)
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

/* How long until as much may have been done as was. A limit counts from when it was set. */
static uint64_t wait_for_rate(struct pace *pace, uint64_t rate)
{
        uint64_t now = now_ns(), due;

        if (rate != pace->rate || pace->since_ns == 0) {
                pace->rate = rate;
                pace->since_ns = now;
                pace->bytes = 0;
        }
        if (rate == 0)
                return 0;
        due = pace->since_ns + (uint64_t)((double)pace->bytes * 1e9 / (double)rate);
        if (due > now)
                return (due - now) / 1000 + 1;
        /* What was not used in a long time is not made up for. */
        if (now - pace->since_ns > WINDOW_NS) {
                pace->since_ns = now;
                pace->bytes = 0;
        }
        return 0;
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
        uint64_t until = now_ns() + (controls ? back_off(pace, controls) * 1000 : 0);

        /* People may change the limit meanwhile, and what is due under the old one can be minutes away. */
        for (;;) {
                uint64_t now = now_ns(), us = until > now ? (until - now) / 1000 : 0;
                struct timespec ts = {0};

                if (!may_go_on(controls))
                        return -ECANCELED;
                if (controls && controls->rate)
                        us = MAX_OF(us, wait_for_rate(pace, controls->rate(controls->opaque)));
                if (us == 0)
                        return 0;
                ts.tv_nsec = (long)MIN_OF(us, (uint64_t)SLICE_MS * 1000) * 1000;
                nanosleep(&ts, NULL);
        }
}
