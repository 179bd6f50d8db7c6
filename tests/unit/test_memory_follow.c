/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: memory swings with each change of demand; a guest without a driver is asked each
 * second for ever; a request that was given up is carried out later, behind the balancer's back; a slow
 * guest is taken for one that does not follow. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "vmm-glue/memory/follow.h"

#define MiB (UINT64_C(1) << 20)

/* Seconds until @follow is found not to follow; 0: it never was within @limit. */
static unsigned seconds_until_held(struct memory_follow *follow, uint64_t assigned, unsigned limit)
{
        for (unsigned second = 1; second <= limit; second++) {
                memory_follow_look(follow, assigned, 1000);
                if (follow->state == FOLLOW_HELD)
                        return second;
        }
        return 0;
}

Test(follow, asks_upward_at_once_and_downward_when_it_is_worth_it)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_expect(not(memory_follow_ask(&follow, 512 * MiB, 512 * MiB, false, &asked)));
        cr_expect(not(memory_follow_ask(
                &follow, 600 * MiB, 600 * MiB - FOLLOW_SWING + 1, false, &asked)));
        cr_expect(memory_follow_ask(&follow, 600 * MiB, 604 * MiB, false, &asked));
        cr_expect(eq(u64, asked, 604 * MiB));
        cr_expect(not(memory_follow_ask(&follow, 600 * MiB, 604 * MiB, false, &asked)), "once");
        memory_follow_look(&follow, 604 * MiB, 1000);
        cr_expect(memory_follow_ask(&follow, 604 * MiB, 580 * MiB, false, &asked));
        cr_expect(eq(u64, asked, 580 * MiB));
}

Test(follow, gives_up_small_amounts_when_others_wait)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_expect(not(memory_follow_ask(&follow, 600 * MiB, 596 * MiB, false, &asked)));
        cr_expect(memory_follow_ask(&follow, 600 * MiB, 596 * MiB, true, &asked));
        cr_expect(eq(u64, asked, 596 * MiB));
}

/* Of a large vm 16 MiB are nothing: it must be a part of it. */
Test(follow, the_larger_the_vm_the_larger_the_step)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_expect(not(memory_follow_ask(&follow, 64000 * MiB, 62100 * MiB, false, &asked)));
        cr_expect(memory_follow_ask(&follow, 64000 * MiB, 62000 * MiB, false, &asked));
}

Test(follow, a_slow_guest_follows_all_the_same)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0, assigned = 1024 * MiB;

        cr_assert(memory_follow_ask(&follow, assigned, 512 * MiB, false, &asked));
        for (unsigned second = 0; second < 128 * 25; second += 25) {
                memory_follow_look(&follow, assigned, 25000);
                cr_assert(ne(int, follow.state, FOLLOW_HELD));
                assigned -= 4 * MiB;
        }
        memory_follow_look(&follow, assigned, 1000);
        cr_expect(eq(int, follow.state, FOLLOW_SETTLED));
}

/* The vmm-host before asked it for more, and it has not taken all of it: that is promised. */
Test(follow, a_guest_that_was_here_before_is_taken_as_it_is)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        memory_follow_adopt(&follow, 512 * MiB, 700 * MiB, 900 * MiB);
        cr_expect(eq(int, memory_follow_holds(&follow), MEMORY_FOLLOWS));
        cr_expect(eq(u64, follow.asked, 900 * MiB));
        cr_expect(not(memory_follow_ask(&follow, 700 * MiB, 900 * MiB, false, &asked)));
        cr_expect(eq(uint, seconds_until_held(&follow, 700 * MiB, 100), 30));
        memory_follow_adopt(&follow, 512 * MiB, 512 * MiB, 512 * MiB);
        cr_expect(eq(int, memory_follow_holds(&follow), MEMORY_ON_TRIAL));
        cr_expect(eq(u64, follow.asked, 0));
}

/* The demand rises each second, and so does what is asked for; the guest has no driver. */
Test(follow, a_guest_without_a_driver_is_found_out_though_the_goal_moves)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;
        unsigned second;

        for (second = 1; second < 100; second++) {
                memory_follow_ask(&follow, 512 * MiB, (600 + 4 * second) * MiB, false, &asked);
                memory_follow_look(&follow, 512 * MiB, 1000);
                if (memory_follow_holds(&follow) == MEMORY_TAKES_NO_MORE)
                        break;
        }
        cr_expect(eq(uint, second, 30));
        cr_expect(memory_follow_ask(&follow, 512 * MiB, 900 * MiB, false, &asked));
        cr_expect(eq(u64, asked, 512 * MiB), "what it did not do is withdrawn");
        cr_expect(not(memory_follow_ask(&follow, 512 * MiB, 900 * MiB, false, &asked)));
}

Test(follow, one_that_does_not_follow_is_asked_more_and_more_rarely)
{
        struct memory_follow follow = {0};
        uint64_t asked;
        unsigned n_up = 0;

        for (unsigned second = 0; second < 24 * 3600; second++) {
                if (memory_follow_ask(&follow, 512 * MiB, 900 * MiB, false, &asked))
                        n_up += asked > 512 * MiB;
                memory_follow_look(&follow, 512 * MiB, 1000);
        }
        cr_expect(lt(uint, n_up, 32), "%u requests in a day", n_up);
        cr_expect(gt(uint, n_up, 24));
}

Test(follow, one_that_moves_after_all_is_asked_again)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_assert(memory_follow_ask(&follow, 1024 * MiB, 512 * MiB, false, &asked));
        cr_assert(eq(uint, seconds_until_held(&follow, 1024 * MiB, 100), 30));
        cr_expect(eq(int, memory_follow_holds(&follow), MEMORY_GIVES_NONE));
        cr_expect(not(memory_follow_ask(&follow, 1024 * MiB, 512 * MiB, true, &asked)));
        memory_follow_look(&follow, 1000 * MiB, 1000);
        cr_expect(eq(int, follow.state, FOLLOW_IDLE));
        cr_expect(memory_follow_ask(&follow, 1000 * MiB, 512 * MiB, false, &asked));
}

Test(follow, a_guest_is_on_trial_until_it_has_taken_memory)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_expect(eq(int, memory_follow_holds(&follow), MEMORY_ON_TRIAL));
        cr_assert(memory_follow_ask(&follow, 512 * MiB, 528 * MiB, false, &asked));
        memory_follow_look(&follow, 512 * MiB, 1000);
        cr_expect(eq(int, memory_follow_holds(&follow), MEMORY_ON_TRIAL));
        memory_follow_look(&follow, 516 * MiB, 1000);
        cr_expect(eq(int, memory_follow_holds(&follow), MEMORY_FOLLOWS));
        cr_assert(memory_follow_ask(&follow, 516 * MiB, 900 * MiB, false, &asked));
        cr_assert(eq(uint, seconds_until_held(&follow, 516 * MiB, 100), 30));
        while (follow.state == FOLLOW_HELD)
                memory_follow_look(&follow, 516 * MiB, 1000);
        cr_expect(eq(int, memory_follow_holds(&follow), MEMORY_ON_TRIAL), "and once more");
}

/* It gives nothing back, and now it needs more: that is another question. */
Test(follow, the_other_direction_is_asked_at_once)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_assert(memory_follow_ask(&follow, 1024 * MiB, 512 * MiB, false, &asked));
        cr_assert(eq(uint, seconds_until_held(&follow, 1024 * MiB, 100), 30));
        cr_expect(memory_follow_ask(&follow, 1024 * MiB, 1200 * MiB, false, &asked));
        cr_expect(eq(u64, asked, 1200 * MiB));
        cr_expect(eq(int, follow.state, FOLLOW_PENDING));
}

/* It was on its way up: what it has not taken yet can still arrive behind the request to give back. */
Test(follow, what_was_promised_counts_until_it_comes_down)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_assert(memory_follow_ask(&follow, 512 * MiB, 600 * MiB, false, &asked));
        memory_follow_look(&follow, 560 * MiB, 1000);
        cr_assert(memory_follow_ask(&follow, 560 * MiB, 520 * MiB, false, &asked));
        cr_expect(eq(u64, follow.asked, 520 * MiB));
        cr_expect(eq(u64, follow.promised, 600 * MiB));
        memory_follow_look(&follow, 564 * MiB, 1000);
        cr_expect(eq(u64, follow.promised, 600 * MiB));
        memory_follow_look(&follow, 548 * MiB, 1000);
        cr_expect(eq(u64, follow.promised, 0));
}

/* deflate-on-oom: the guest took memory back by itself. */
Test(follow, one_that_drifts_away_is_asked_again)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_assert(memory_follow_ask(&follow, 1024 * MiB, 512 * MiB, false, &asked));
        memory_follow_look(&follow, 512 * MiB, 1000);
        memory_follow_look(&follow, 520 * MiB, 1000);
        cr_expect(not(memory_follow_ask(&follow, 520 * MiB, 512 * MiB, false, &asked)));
        memory_follow_look(&follow, 640 * MiB, 1000);
        cr_expect(memory_follow_ask(&follow, 640 * MiB, 512 * MiB, false, &asked));
}

Test(follow, a_request_that_got_lost_is_made_again)
{
        struct memory_follow follow = {0};
        uint64_t asked = 0;

        cr_assert(memory_follow_ask(&follow, 512 * MiB, 600 * MiB, false, &asked));
        memory_follow_failed(&follow);
        cr_expect(memory_follow_ask(&follow, 512 * MiB, 600 * MiB, false, &asked));
}
