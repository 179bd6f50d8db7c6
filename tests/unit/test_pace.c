/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a job that was limited to very little sleeps for minutes and does not hear that the
 * limit has gone; or one whose steps are longer than what is looked at moves twice what it may. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <time.h>

#include "merge/pace.h"

#define SECOND_NS UINT64_C(1000000000)

struct people {
        uint64_t rate, until_ns, then_rate;
        bool then_stop;
};

static uint64_t now_ns(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * SECOND_NS + (uint64_t)ts.tv_nsec;
}

static uint64_t rate(void *opaque)
{
        const struct people *people = opaque;

        return now_ns() < people->until_ns ? people->rate : people->then_rate;
}

static bool go_on(void *opaque)
{
        const struct people *people = opaque;

        return !people->then_stop || now_ns() < people->until_ns;
}

Test(pace, hears_at_once_that_the_limit_has_gone)
{
        struct people people = {.rate = 1024, .until_ns = now_ns() + SECOND_NS / 5};
        const struct merge_controls controls = {.opaque = &people, .go_on = go_on, .rate = rate};
        struct pace pace = {0};
        uint64_t begin = now_ns();

        cr_assert(eq(int, pace_keep(&pace, &controls), 0));
        pace_add(&pace, 60 * 1024); /* a minute's worth */
        cr_assert(eq(int, pace_keep(&pace, &controls), 0));
        cr_expect(ge(u64, now_ns() - begin, SECOND_NS / 5));
        cr_expect(lt(u64, now_ns() - begin, 20 * SECOND_NS));
}

/* What was moved under no limit, or under a higher one, is not to be waited for. */
Test(pace, counts_a_limit_from_when_it_was_set)
{
        struct people people = {.rate = UINT64_C(1) << 40, .then_rate = 1024};
        const struct merge_controls controls = {.opaque = &people, .go_on = go_on, .rate = rate};
        struct pace pace = {0};
        uint64_t begin = now_ns();

        people.until_ns = begin + SECOND_NS / 10;
        cr_assert(eq(int, pace_keep(&pace, &controls), 0));
        pace_add(&pace, 1 << 20);
        while (now_ns() < people.until_ns)
                continue;
        cr_assert(eq(int, pace_keep(&pace, &controls), 0));
        cr_expect(lt(u64, now_ns() - begin, 20 * SECOND_NS));
}

Test(pace, keeps_a_limit_that_is_less_than_a_step_in_ten_seconds)
{
        struct people people = {
                .rate = 1 << 20, .then_stop = true, .until_ns = now_ns() + SECOND_NS / 5};
        const struct merge_controls controls = {.opaque = &people, .go_on = go_on, .rate = rate};
        /* 60 s' worth, 11 s ago: there are 49 left. */
        struct pace pace = {
                .since_ns = now_ns() - 11 * SECOND_NS, .rate = 1 << 20, .bytes = 60 << 20};

        people.then_rate = people.rate;
        cr_assert(eq(int, pace_keep(&pace, &controls), -ECANCELED));
}
