/* SPDX-License-Identifier: Apache-2.0 */
/* A gate that lets one too many in mixes two writes of half a sector; one that forgets a wake-up
 * stops a guest for ever. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/gate.h"

#define N_THREADS 8
#define N_TURNS   4000

static struct gates *gates;
static _Atomic int inside, alone, clashes;
static uint64_t sum;

static void make_gates(void)
{
        gates = gates_new();
        cr_assert(ne(ptr, gates, NULL));
        inside = alone = clashes = 0;
        sum = 0;
}

static void end_gates(void)
{
        gates = gates_free(gates);
        cr_assert(eq(ptr, gates, NULL));
}

TestSuite(gate, .init = make_gates, .fini = end_gates, .timeout = 60);

Test(gate, many_may_be_inside)
{
        gate_enter(gates, 7);
        gate_enter(gates, 7);
        cr_expect(gate_try_enter(gates, 7));
        cr_expect(not(gate_try_close(gates, 7)));
        for (int i = 0; i < 3; i++)
                gate_leave(gates, 7);
        cr_expect(gate_try_close(gates, 7));
        cr_expect(not(gate_try_enter(gates, 7)));
        cr_expect(not(gate_try_close(gates, 7)));
        gate_open(gates, 7);
        cr_expect(gate_try_enter(gates, 7));
        gate_leave(gates, 7);
}

Test(gate, no_gates_is_fine_to_free)
{
        cr_expect(eq(ptr, gates_free(NULL), NULL));
}

/* Half of the turns are shared, half alone; nobody may be inside with one who is alone. */
static void *take_turns(void *argument)
{
        uint64_t key = 3;

        for (int i = 0; i < N_TURNS; i++) {
                if ((i + (int)(intptr_t)argument) % 2) {
                        gate_enter(gates, key);
                        atomic_fetch_add(&inside, 1);
                        if (atomic_load(&alone))
                                atomic_fetch_add(&clashes, 1);
                        atomic_fetch_sub(&inside, 1);
                        gate_leave(gates, key);
                        continue;
                }
                gate_close(gates, key);
                if (atomic_fetch_add(&alone, 1) || atomic_load(&inside))
                        atomic_fetch_add(&clashes, 1);
                sum++; /* not atomic: the gate is the lock */
                atomic_fetch_sub(&alone, 1);
                gate_open(gates, key);
        }
        return NULL;
}

Test(gate, who_closes_is_alone)
{
        pthread_t threads[N_THREADS];

        for (intptr_t i = 0; i < N_THREADS; i++)
                pthread_create(&threads[i], NULL, take_turns, (void *)i);
        for (int i = 0; i < N_THREADS; i++)
                pthread_join(threads[i], NULL);
        cr_expect(eq(int, clashes, 0));
        cr_expect(eq(u64, sum, (uint64_t)N_THREADS * N_TURNS / 2));
}

static void *close_and_open(void *argument)
{
        gate_close(gates, 1);
        atomic_store(&alone, 1);
        gate_open(gates, 1);
        return argument;
}

/* A closing gate lets nobody new in: a stream of writers must not keep it open for ever. */
Test(gate, closing_waits_for_those_inside_and_stops_new_ones)
{
        pthread_t thread;

        gate_enter(gates, 1);
        pthread_create(&thread, NULL, close_and_open, NULL);
        while (gate_try_enter(gates, 1)) {
                gate_leave(gates, 1);
                usleep(100);
        }
        cr_expect(eq(int, alone, 0));
        gate_leave(gates, 1);
        pthread_join(thread, NULL);
        cr_expect(eq(int, alone, 1));
        gate_enter(gates, 1);
        gate_leave(gates, 1);
}

/* --- a set that is shut as a whole (E10) */

static struct gates *all;
static _Atomic bool stop;
static _Atomic unsigned passed;

static void *pass(void *opaque)
{
        uint64_t key = gate_own_key();

        while (!stop) {
                gate_enter(all, key);
                inside++;
                passed++;
                inside--;
                gate_leave(all, key);
        }
        return NULL;
}

Test(gate, a_shut_set_is_empty_until_it_is_opened_again)
{
        pthread_t threads[3 * N_THREADS]; /* more than there are stripes */

        all = gates_new_small();
        stop = false;
        for (int i = 0; i < 3 * N_THREADS; i++)
                cr_assert(eq(int, pthread_create(&threads[i], NULL, pass, NULL), 0));
        for (int i = 0; i < 50; i++) {
                unsigned seen;

                gates_shut(all);
                gates_drain(all);
                seen = passed;
                cr_expect(not(gate_try_enter(all, (uint64_t)i)));
                usleep(200);
                cr_expect(eq(int, inside, 0));
                cr_expect(eq(uint, passed, seen));
                gates_reopen(all);
                for (int k = 0; k < 10000 && passed == seen; k++)
                        usleep(100);
                cr_assert(ne(uint, passed, seen), "nobody was let in again");
        }
        stop = true;
        for (int i = 0; i < 3 * N_THREADS; i++)
                pthread_join(threads[i], NULL);
        all = gates_free(all);
}
