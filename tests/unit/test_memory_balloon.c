/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: the balloon takes all of a guest's startup RAM while the guest still moves there what lies in
 * plugged memory. Then neither can go on: nothing is unplugged, since there is no room to move to, and the
 * balloon stays, since nothing is unplugged; the guest does not even get to say that it has no memory. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "vmm-glue/memory/balloon.h"

#define MiB (UINT64_C(1) << 20)

/* 256 MiB and 288 that were plugged and are all to go; most of it is free. */
static const struct balloon_view after_a_rush = {
        .startup = 256 * MiB,
        .target = 256 * MiB,
        .has = 256 * MiB,
        .plugged = 288 * MiB,
        .has_told = true,
        .is_fresh = true,
        .total = 500 * MiB,
        .available = 420 * MiB,
};

/* What it is after so many seconds in which nothing moves but the balloon. */
static uint64_t after(struct balloon *balloon, struct balloon_view *view, unsigned seconds)
{
        for (unsigned i = 0; i < seconds; i++) {
                uint64_t next = balloon_next(balloon, view, 1000);

                view->available -= next < view->has ? view->has - next : 0;
                view->has = next;
        }
        return view->has;
}

Test(balloon, lets_the_guest_unplug_first)
{
        struct balloon_view view = after_a_rush;
        struct balloon balloon = {0};

        for (unsigned i = 0; i < 60; i++) {
                cr_assert(eq(u64, balloon_next(&balloon, &view, 1000), 256 * MiB), "%u", i);
                view.plugged -= i % 4 == 3 ? 4 * MiB : 0;
        }
}

Test(balloon, takes_what_stays_plugged_and_leaves_room)
{
        struct balloon_view view = after_a_rush;
        struct balloon balloon = {0};

        view.available = 150 * MiB;
        cr_expect(eq(u64, after(&balloon, &view, 4), 256 * MiB));
        cr_expect(lt(u64, after(&balloon, &view, 1), 256 * MiB));
        after(&balloon, &view, 60);
        cr_expect(ge(u64, view.available, 62 * MiB), "%lu left", (unsigned long)view.available);
        cr_expect(le(u64, view.available, 70 * MiB));
}

Test(balloon, goes_no_further_than_what_is_stuck)
{
        struct balloon_view view = after_a_rush;
        struct balloon balloon = {0};

        view.plugged = 40 * MiB;
        cr_expect(eq(u64, after(&balloon, &view, 60), 216 * MiB));
}

/* Its last word is from before it was squeezed. */
Test(balloon, takes_nothing_from_one_that_is_silent)
{
        struct balloon_view view = after_a_rush;
        struct balloon balloon = {0};

        view.is_fresh = false;
        cr_expect(eq(u64, after(&balloon, &view, 60), 256 * MiB));
}

/* It has taken 30 MiB out of the balloon to go on at all; to ask again would have it do so each second. */
Test(balloon, leaves_alone_what_a_guest_has_taken_back)
{
        struct balloon_view view = after_a_rush;
        struct balloon balloon = {0};

        after(&balloon, &view, 60);
        view.has += 30 * MiB;
        view.available = 4 * MiB;
        cr_expect(eq(u64, balloon_next(&balloon, &view, 1000), view.has));
}

Test(balloon, gives_back_at_once)
{
        struct balloon_view view = after_a_rush;
        struct balloon balloon = {0};

        after(&balloon, &view, 60);
        view.most_plugged = 288 * MiB;
        view.target = 544 * MiB;
        view.is_fresh = false;
        cr_expect(eq(u64, balloon_next(&balloon, &view, 0), 256 * MiB));
}

/* All of it at once would leave the guest with less than nothing. */
Test(balloon, unplugs_no_more_than_the_guest_can_do_without)
{
        struct balloon_view view = after_a_rush;

        cr_expect(eq(u64, balloon_plug(&view), 0));
        view.available = 40 * MiB;
        cr_expect(eq(u64, balloon_plug(&view), (288 - 24) * MiB));
        view.available = 15 * MiB;
        cr_expect(eq(u64, balloon_plug(&view), 288 * MiB));
        view.most_plugged = 280 * MiB;
        view.available = 40 * MiB;
        cr_expect(eq(u64, balloon_plug(&view), 280 * MiB));
}

Test(balloon, plugs_at_once_and_unplugs_nothing_on_old_word)
{
        struct balloon_view view = after_a_rush;

        view.is_fresh = false;
        cr_expect(eq(u64, balloon_plug(&view), 288 * MiB));
        view.most_plugged = 400 * MiB;
        cr_expect(eq(u64, balloon_plug(&view), 400 * MiB));
        view.most_plugged = 0;
        view.has_told = false; /* no driver: nobody will ever say */
        cr_expect(eq(u64, balloon_plug(&view), 0));
}
