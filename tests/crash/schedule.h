/* SPDX-License-Identifier: Apache-2.0 */
/* schedule.h - threads of the program under test, one at a time, in an order that a seed decides.
 *
 * The linker hands the program's pthread calls to this module (-Wl,--wrap, see meson.build). While
 * a schedule is on, exactly one thread holds the turn; it gives it away where it waits for a lock
 * or a condition, and may give it away at each call of schedule_point(): every lock, every I/O of
 * the simulated disk, every ordering step that a mutant can take out. So an interleaving is a seed,
 * and it comes again whenever the seed does. Time stands still: a timed wait ends only when nobody
 * else can run.
 *
 * Threads    schedule_begin and schedule_end belong to the main thread; the rest to any thread that
 *            was made while the schedule is on.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum schedule_policy {
        SCHEDULE_STAY,     /* never switch but where the running thread must wait */
        SCHEDULE_RANDOM,   /* at each point, with a chance that the seed decides, go to any other */
        SCHEDULE_PRIORITY, /* highest priority runs; at a few points the running one becomes the
                            * lowest: another's whole call then runs inside this one's step */
        SCHEDULE_INSIDE,   /* the first thread runs to its point number @n_points; there the others
                          * run, one after the other, as far as they can; then it goes on */
};

/* The calling thread becomes the first of a new schedule and has the turn. Nothing is wrapped
 * before this and after schedule_end(). */
void schedule_begin(void);
void schedule_end(void); /* every other thread has ended by now */
bool schedule_is_on(void);

/* How the threads take turns from here on. @n_points: about how many points are to come, or see
 * SCHEDULE_INSIDE. */
void schedule_set_policy(enum schedule_policy policy, uint64_t seed, unsigned n_points);

/* Another thread may run here. */
void schedule_point(void);

/* All others run here, one after the other, as far as they can (of the policies that go by priority). */
void schedule_step_aside(void);

/* Until schedule_wake(@object): the turn goes to others. For the simulated disk's own waiting. */
void schedule_wait(const void *object);
void schedule_wake(const void *object);

/* The threads of a run take turns: on one processor that is cheap. Job number @job, and all that it starts, stay
 * on one. */
void schedule_on_one_processor(unsigned job);

/* Number of the running thread, 0 the first. */
unsigned schedule_self(void);

/* Called when no thread can run: says so and ends the process, unless the test has a better idea. */
extern void (*schedule_on_deadlock)(void);
/* Called at each point, before the choice, by the thread that has the turn. */
extern void (*schedule_on_point)(void);
