/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a task that is lost or runs twice, more threads than allowed, an end that
 * comes before the last task, or never. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "base/pool.h"

#define N_TASKS 2000

struct counted_task {
        struct pool_task task;
        struct pool *pool;
        atomic_int runs;
        int again; /* how many times it submits itself once more */
};

static atomic_int running, most, total;

static void run_counted(struct pool_task *task)
{
        struct counted_task *t = (struct counted_task *)task;
        int now = atomic_fetch_add(&running, 1) + 1;
        int seen = atomic_load(&most);

        while (now > seen && !atomic_compare_exchange_weak(&most, &seen, now))
                ;
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        atomic_fetch_sub(&running, 1);
        atomic_fetch_add(&t->runs, 1);
        atomic_fetch_add(&total, 1);
        if (t->again-- > 0)
                pool_submit(t->pool, &t->task);
}

Test(pool, runs_every_task_once_on_no_more_threads_than_allowed, .timeout = 20)
{
        static struct counted_task tasks[N_TASKS];
        struct pool *pool = NULL;
        struct error err;

        cr_assert(eq(int, pool_new("test", 4, &pool, &err), 0));
        for (int i = 0; i < N_TASKS; i++) {
                tasks[i].task.run = run_counted;
                pool_submit(pool, &tasks[i].task);
        }
        pool_free(pool);
        for (int i = 0; i < N_TASKS; i++)
                cr_assert(eq(int, tasks[i].runs, 1), "task %d", i);
        cr_expect(le(int, most, 4));
        cr_expect(ge(int, most, 2));
}

Test(pool, the_end_waits_for_tasks_that_submit_more, .timeout = 20)
{
        static struct counted_task tasks[8];
        struct pool *pool = NULL;
        struct error err;

        cr_assert(eq(int, pool_new("test", 3, &pool, &err), 0));
        for (int i = 0; i < 8; i++) {
                tasks[i].task.run = run_counted;
                tasks[i].pool = pool;
                tasks[i].again = 50;
                pool_submit(pool, &tasks[i].task);
        }
        pool_free(pool);
        cr_assert(eq(int, total, 8 * 51));
}

/* A task that waits for another must not keep it from running while threads are allowed. */
static atomic_bool second_ran;

static void run_second(struct pool_task *task)
{
        atomic_store(&second_ran, true);
}

static void run_first(struct pool_task *task)
{
        while (!atomic_load(&second_ran))
                nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

Test(pool, a_blocked_task_does_not_hold_up_the_next, .timeout = 20)
{
        struct pool_task first = {.run = run_first}, second = {.run = run_second};
        struct pool *pool = NULL;
        struct error err;

        cr_assert(eq(int, pool_new("test", 2, &pool, &err), 0));
        pool_submit(pool, &first);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
        pool_submit(pool, &second);
        pool_free(pool);
        cr_assert(second_ran);
}

Test(pool, refuses_a_number_of_threads_that_makes_no_sense)
{
        struct pool *pool = NULL;
        struct error err = ERROR_INIT;

        cr_expect(eq(int, pool_new("test", 0, &pool, &err), -EINVAL));
        cr_expect(eq(int, pool_new("test", POOL_MAX_THREADS + 1, &pool, &err), -EINVAL));
        cr_expect(eq(ptr, pool, NULL));
        pool_free(NULL);
}
