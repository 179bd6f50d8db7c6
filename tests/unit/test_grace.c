/* SPDX-License-Identifier: Apache-2.0 */
/* What a reader can still see must not be freed or used again under it; and what nobody sees any
 * more must go one day, or memory and space run out. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/grace.h"

#define N_READERS 4
#define N_CHANGES 20000

struct thing {
        struct grace_call call;
        _Atomic uint32_t alive;
};

static struct grace *grace;
static _Atomic int n_run;

static void make_grace(void)
{
        grace = grace_new();
        cr_assert(ne(ptr, grace, NULL));
        n_run = 0;
}

static void end_grace(void)
{
        grace = grace_free(grace);
}

TestSuite(grace, .init = make_grace, .fini = end_grace, .timeout = 60);

static void count(struct grace_call *call)
{
        atomic_fetch_add(&n_run, 1);
}

Test(grace, nobody_inside_nothing_to_wait_for)
{
        struct grace_call call = {.run = count};

        grace_defer(grace, &call);
        grace_poll(grace);
        cr_expect(eq(int, n_run, 1));
}

Test(grace, a_call_waits_for_those_who_were_inside)
{
        struct grace_call call = {.run = count};
        uint64_t first = grace_enter(grace), second = grace_enter(grace);

        grace_defer(grace, &call);
        grace_poll(grace);
        cr_expect(eq(int, n_run, 0));
        grace_leave(grace, first);
        grace_poll(grace);
        cr_expect(eq(int, n_run, 0));
        grace_leave(grace, second);
        grace_poll(grace);
        cr_expect(eq(int, n_run, 1));
}

/* A reader that came after the thing was out of view must not hold it for ever. */
Test(grace, later_ones_do_not_hold_a_call_up_for_ever)
{
        struct grace_call call = {.run = count};
        uint64_t ticket = grace_enter(grace);

        grace_defer(grace, &call);
        for (int i = 0; i < 100; i++) {
                uint64_t next = grace_enter(grace); /* somebody is always inside */

                grace_leave(grace, ticket);
                ticket = next;
                grace_poll(grace);
        }
        cr_expect(eq(int, n_run, 1));
        grace_leave(grace, ticket);
}

/* Of images that share a grace one may end before the others. */
Test(grace, what_is_put_off_can_be_run_before_the_end)
{
        struct grace_call first = {.run = count}, second = {.run = count};
        uint64_t ticket = grace_enter(grace);

        grace_defer(grace, &first);
        cr_expect(eq(int, n_run, 0));
        grace_leave(grace, ticket);
        n_run = 0;
        ticket = grace_enter(grace);
        grace_defer(grace, &second);
        cr_expect(eq(int, n_run, 0));
        grace_drain(grace);
        cr_expect(eq(int, n_run, 1));
        grace_drain(grace);
        cr_expect(eq(int, n_run, 1));
        grace_leave(grace, ticket);
        grace_defer(grace, &first);
        cr_expect(eq(int, n_run, 2));
}

Test(grace, the_end_runs_what_is_left)
{
        static struct grace_call calls[3];
        struct grace *own = grace_new();

        for (int i = 0; i < 3; i++) {
                uint64_t ticket = grace_enter(own);

                calls[i].run = count;
                grace_defer(own, &calls[i]);
                grace_leave(own, ticket);
        }
        cr_expect(eq(ptr, grace_free(own), NULL));
        cr_expect(eq(int, n_run, 3));
        cr_expect(eq(ptr, grace_free(NULL), NULL));
}

static struct thing *_Atomic shown;
static _Atomic bool stop;
static _Atomic int n_dead_seen;

static void kill_thing(struct grace_call *call)
{
        struct thing *thing = (struct thing *)((char *)call - offsetof(struct thing, call));

        atomic_store(&thing->alive, 0);
        free(thing);
        atomic_fetch_add(&n_run, 1);
}

static void *look_again_and_again(void *argument)
{
        while (!atomic_load(&stop)) {
                uint64_t ticket = grace_enter(grace);
                struct thing *thing = atomic_load(&shown);

                for (int i = 0; i < 20; i++)
                        if (atomic_load(&thing->alive) != 1)
                                atomic_fetch_add(&n_dead_seen, 1);
                grace_leave(grace, ticket);
        }
        return NULL;
}

static struct thing *new_thing(void)
{
        struct thing *thing = calloc(1, sizeof(*thing));

        cr_assert(ne(ptr, thing, NULL));
        thing->call.run = kill_thing;
        atomic_store(&thing->alive, 1);
        return thing;
}

/* What gave up is freed by whoever runs its call later: a sanitizer's build says if it is not. */
Test(grace, waits_for_so_long_and_no_longer)
{
        uint64_t ticket = grace_enter(grace);

        cr_expect(not(grace_wait_for(grace, 5)));
        cr_expect(not(grace_wait_for(grace, 1)));
        grace_leave(grace, ticket);
        cr_expect(grace_wait_for(grace, 60000));
        ticket = grace_enter(grace);
        cr_expect(not(grace_wait_for(grace, 1)));
        grace_leave(grace, ticket);
}

Test(grace, nobody_sees_the_dead)
{
        pthread_t readers[N_READERS];

        atomic_store(&shown, new_thing());
        for (int i = 0; i < N_READERS; i++)
                pthread_create(&readers[i], NULL, look_again_and_again, NULL);
        for (int i = 0; i < N_CHANGES; i++) {
                struct thing *old = atomic_exchange(&shown, new_thing());

                grace_defer(grace, &old->call);
        }
        atomic_store(&stop, true);
        for (int i = 0; i < N_READERS; i++)
                pthread_join(readers[i], NULL);
        grace_poll(grace);
        grace_poll(grace);
        cr_expect(eq(int, n_dead_seen, 0));
        cr_expect(eq(int, n_run, N_CHANGES));
        free(atomic_load(&shown));
}
