/* SPDX-License-Identifier: Apache-2.0 */
/* Design: a task a thread, a semaphore a task. Whoever has the turn picks the next task, posts its
 * semaphore and waits on its own. Locks stay the real ones, taken with "try": a task that finds one
 * held waits on its address, and the holder's unlock makes it runnable again. Only the task with
 * the turn touches the tables here, so they need no lock of their own. */
#include "tests/crash/schedule.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/crash/random.h"

#define MAX_TASKS   64u
#define MAX_CHANGES 4u

enum task_state { TASK_FREE, TASK_RUNNABLE, TASK_WAITING, TASK_ENDED };

struct task {
        enum task_state state;
        const void *object; /* what it waits for */
        bool timed;         /* it waits for the clock too */
        bool timed_out;
        uint64_t since; /* of timed waits, the oldest ends first */
        uint64_t priority;
        pthread_t thread;
        sem_t turn;
        void *(*run)(void *);
        void *argument, *result;
        bool detached;
};

static struct {
        bool on;
        unsigned n, current, subject; /* the subject of SCHEDULE_INSIDE; 0: not there yet */
        struct task tasks[MAX_TASKS];
        struct random random;
        enum schedule_policy policy;
        unsigned switch_percent;
        uint64_t points, changes[MAX_CHANGES], waits, lowest, next_priority;
} sched;

void (*schedule_on_deadlock)(void);
void (*schedule_on_point)(void);

int __real_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __real_pthread_join(pthread_t, void **);
int __real_pthread_detach(pthread_t);
int __real_pthread_mutex_lock(pthread_mutex_t *);
int __real_pthread_mutex_unlock(pthread_mutex_t *);
int __real_pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int __real_pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int __real_pthread_cond_clockwait(
        pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
int __real_pthread_cond_signal(pthread_cond_t *);
int __real_pthread_cond_broadcast(pthread_cond_t *);
int __real_pthread_rwlock_rdlock(pthread_rwlock_t *);
int __real_pthread_rwlock_wrlock(pthread_rwlock_t *);
int __real_pthread_rwlock_unlock(pthread_rwlock_t *);
int __real_sched_yield(void);
int __real_nanosleep(const struct timespec *, struct timespec *);
int __real_clock_nanosleep(clockid_t, int, const struct timespec *, struct timespec *);
int __real_usleep(useconds_t);

long __real_syscall(long number, ...);

long __wrap_syscall(long number, ...);
int __wrap_pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
int __wrap_pthread_join(pthread_t, void **);
int __wrap_pthread_detach(pthread_t);
int __wrap_pthread_mutex_lock(pthread_mutex_t *);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *);
int __wrap_pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int __wrap_pthread_cond_timedwait(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
int __wrap_pthread_cond_clockwait(
        pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
int __wrap_pthread_cond_signal(pthread_cond_t *);
int __wrap_pthread_cond_broadcast(pthread_cond_t *);
int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *);
int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *);
int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *);
int __wrap_sched_yield(void);
int __wrap_nanosleep(const struct timespec *, struct timespec *);
int __wrap_clock_nanosleep(clockid_t, int, const struct timespec *, struct timespec *);
int __wrap_usleep(useconds_t);

static void take_turn(struct task *task)
{
        while (sem_wait(&task->turn) < 0)
                assert(errno == EINTR);
}

static uint64_t new_priority(void)
{
        if (sched.policy == SCHEDULE_INSIDE)
                return sched.next_priority--;
        return (UINT64_C(1) << 32) + random_below(&sched.random, UINT64_C(1) << 32);
}

/* Any of the runnable ones but @not, or MAX_TASKS. */
static unsigned any_runnable(unsigned not )
{
        unsigned found[MAX_TASKS], n = 0;

        for (unsigned i = 0; i < sched.n; i++)
                if (sched.tasks[i].state == TASK_RUNNABLE && i != not )
                        found[n++] = i;
        return n == 0 ? MAX_TASKS : found[random_below(&sched.random, n)];
}

static bool by_priority(void)
{
        return sched.policy == SCHEDULE_PRIORITY || sched.policy == SCHEDULE_INSIDE;
}

static unsigned highest_runnable(void)
{
        unsigned best = MAX_TASKS;

        for (unsigned i = 0; i < sched.n; i++)
                if (sched.tasks[i].state == TASK_RUNNABLE &&
                        (best == MAX_TASKS || sched.tasks[i].priority > sched.tasks[best].priority))
                        best = i;
        return best;
}

/* Time passes only when nobody can run: then the oldest timed wait is over. */
static bool let_time_pass(void)
{
        struct task *oldest = NULL;

        for (unsigned i = 0; i < sched.n; i++) {
                struct task *task = &sched.tasks[i];

                if (task->state == TASK_WAITING && task->timed &&
                        (!oldest || task->since < oldest->since))
                        oldest = task;
        }
        if (!oldest)
                return false;
        oldest->state = TASK_RUNNABLE;
        oldest->timed_out = true;
        return true;
}

static void deadlock(void)
{
        if (schedule_on_deadlock)
                schedule_on_deadlock();
        fprintf(stderr, "schedule: deadlock: no thread can run\n");
        for (unsigned i = 0; i < sched.n; i++)
                if (sched.tasks[i].state == TASK_WAITING)
                        fprintf(stderr, "schedule: thread %u waits for %p\n", i,
                                sched.tasks[i].object);
        abort();
}

static void switch_to(unsigned next)
{
        struct task *self = &sched.tasks[sched.current];
        bool ends = self->state == TASK_ENDED;

        if (next == sched.current)
                return;
        sched.current = next;
        sem_post(&sched.tasks[next].turn);
        if (!ends)
                take_turn(self);
}

/* The running task cannot go on: somebody else must. */
static void give_turn_away(void)
{
        unsigned next;

        for (;;) {
                next = by_priority() ? highest_runnable() : any_runnable(MAX_TASKS);
                if (next != MAX_TASKS)
                        break;
                if (!let_time_pass())
                        deadlock();
        }
        switch_to(next);
}

static void wait_on(const void *object, bool timed)
{
        struct task *self = &sched.tasks[sched.current];

        self->state = TASK_WAITING;
        self->object = object;
        self->timed = timed;
        self->timed_out = false;
        self->since = sched.waits++;
        give_turn_away();
        self->object = NULL;
}

static void wake(const void *object, unsigned at_most)
{
        /* Begin anywhere: which of several waiters is woken first is the seed's to say. */
        unsigned start = (unsigned)random_below(&sched.random, sched.n);

        for (unsigned k = 0; k < sched.n && at_most > 0; k++) {
                struct task *task = &sched.tasks[(start + k) % sched.n];

                if (task->state == TASK_WAITING && task->object == object) {
                        task->state = TASK_RUNNABLE;
                        at_most--;
                }
        }
}

void schedule_begin(void)
{
        assert(!sched.on);
        memset(&sched, 0, sizeof(sched));
        sched.n = 1;
        sched.tasks[0].state = TASK_RUNNABLE;
        sched.tasks[0].thread = pthread_self();
        sem_init(&sched.tasks[0].turn, 0, 0);
        sched.on = true;
}

void schedule_end(void)
{
        assert(sched.on);
        assert(sched.current == 0);
        for (unsigned i = 1; i < sched.n; i++)
                assert(sched.tasks[i].state == TASK_FREE || sched.tasks[i].state == TASK_ENDED);
        sched.on = false;
        for (unsigned i = 0; i < sched.n; i++)
                sem_destroy(&sched.tasks[i].turn);
}

bool schedule_is_on(void)
{
        return sched.on;
}

void schedule_set_policy(enum schedule_policy policy, uint64_t seed, unsigned n_points)
{
        static const unsigned chances[] = {3, 10, 25, 50};

        sched.policy = policy;
        sched.random.state = seed;
        sched.points = 0;
        sched.lowest = UINT64_C(1) << 31;
        sched.switch_percent = chances[random_below(&sched.random, 4)];
        sched.next_priority = UINT64_C(1) << 33;
        sched.subject = 0;
        for (unsigned i = 0; i < MAX_CHANGES; i++)
                sched.changes[i] = policy == SCHEDULE_INSIDE
                        ? n_points
                        : 1 + random_below(&sched.random, n_points + 1);
        for (unsigned i = 0; i < sched.n; i++)
                sched.tasks[i].priority = new_priority();
}

void schedule_point(void)
{
        unsigned next = MAX_TASKS;

        if (!sched.on)
                return;
        if (schedule_on_point)
                schedule_on_point();
        sched.points++;
        switch (sched.policy) {
        case SCHEDULE_STAY: return;
        case SCHEDULE_RANDOM:
                if (random_chance(&sched.random, sched.switch_percent))
                        next = any_runnable(sched.current);
                break;
        case SCHEDULE_INSIDE:
                /* Only the subject's own steps count. */
                if (sched.current != sched.subject)
                        sched.points--;
                else if (sched.points == sched.changes[0])
                        sched.tasks[sched.subject].priority = sched.lowest--;
                next = highest_runnable();
                break;
        case SCHEDULE_PRIORITY:
                for (unsigned i = 0; i < MAX_CHANGES; i++)
                        if (sched.changes[i] == sched.points)
                                sched.tasks[sched.current].priority = sched.lowest--;
                next = highest_runnable();
                break;
        }
        if (next != MAX_TASKS)
                switch_to(next);
}

void schedule_step_aside(void)
{
        if (!sched.on)
                return;
        if (schedule_on_point)
                schedule_on_point();
        if (!by_priority())
                return;
        sched.tasks[sched.current].priority = sched.lowest--;
        switch_to(highest_runnable());
}

void schedule_wait(const void *object)
{
        assert(sched.on);
        wait_on(object, false);
}

void schedule_wake(const void *object)
{
        if (sched.on)
                wake(object, UINT32_MAX);
}

unsigned schedule_self(void)
{
        return sched.on ? sched.current : 0;
}

/* The calls that the linker hands over. */

static void *task_main(void *argument)
{
        struct task *self = argument;

        take_turn(self);
        self->result = self->run(self->argument);
        self->state = TASK_ENDED;
        wake(self, UINT32_MAX);
        give_turn_away();
        return self->result;
}

static unsigned free_task(void)
{
        for (unsigned i = 1; i < sched.n; i++)
                if (sched.tasks[i].state == TASK_FREE)
                        return i;
        assert(sched.n < MAX_TASKS);
        sem_init(&sched.tasks[sched.n].turn, 0, 0);
        return sched.n++;
}

static struct task *task_of(pthread_t thread)
{
        for (unsigned i = 1; i < sched.n; i++)
                if (sched.tasks[i].state != TASK_FREE &&
                        pthread_equal(sched.tasks[i].thread, thread))
                        return &sched.tasks[i];
        return NULL;
}

int __wrap_pthread_create(
        pthread_t *ret, const pthread_attr_t *attr, void *(*run)(void *), void *argument)
{
        struct task *task;
        int r;

        if (!sched.on)
                return __real_pthread_create(ret, attr, run, argument);
        task = &sched.tasks[free_task()];
        task->run = run;
        task->argument = argument;
        task->detached = false;
        task->priority = new_priority();
        r = __real_pthread_create(&task->thread, attr, task_main, task);
        if (r != 0)
                return r;
        task->state = TASK_RUNNABLE;
        if (sched.subject == 0)
                sched.subject = (unsigned)(task - sched.tasks);
        *ret = task->thread;
        schedule_point();
        return 0;
}

int __wrap_pthread_join(pthread_t thread, void **result)
{
        struct task *task = sched.on ? task_of(thread) : NULL;
        int r;

        if (!task)
                return __real_pthread_join(thread, result);
        while (task->state != TASK_ENDED)
                wait_on(task, false);
        r = __real_pthread_join(thread, result);
        task->state = TASK_FREE;
        return r;
}

/* A detached thread keeps its place until the schedule is over. */
int __wrap_pthread_detach(pthread_t thread)
{
        return __real_pthread_detach(thread);
}

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
        int r;

        if (!sched.on)
                return __real_pthread_mutex_lock(mutex);
        schedule_point();
        while ((r = pthread_mutex_trylock(mutex)) == EBUSY)
                wait_on(mutex, false);
        return r;
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
        int r = __real_pthread_mutex_unlock(mutex);

        if (sched.on) {
                wake(mutex, UINT32_MAX);
                schedule_point();
        }
        return r;
}

static int cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex, bool timed)
{
        struct task *self = &sched.tasks[sched.current];
        bool timed_out;
        int r;

        __real_pthread_mutex_unlock(mutex);
        wake(mutex, UINT32_MAX);
        wait_on(cond, timed);
        timed_out = self->timed_out;
        while ((r = pthread_mutex_trylock(mutex)) == EBUSY)
                wait_on(mutex, false);
        assert(r == 0);
        return timed_out ? ETIMEDOUT : 0;
}

int __wrap_pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
        return sched.on ? cond_wait(cond, mutex, false) : __real_pthread_cond_wait(cond, mutex);
}

int __wrap_pthread_cond_timedwait(
        pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until)
{
        return sched.on ? cond_wait(cond, mutex, true)
                        : __real_pthread_cond_timedwait(cond, mutex, until);
}

int __wrap_pthread_cond_clockwait(
        pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
{
        return sched.on ? cond_wait(cond, mutex, true)
                        : __real_pthread_cond_clockwait(cond, mutex, clock, until);
}

int __wrap_pthread_cond_signal(pthread_cond_t *cond)
{
        if (!sched.on)
                return __real_pthread_cond_signal(cond);
        wake(cond, 1);
        return 0;
}

int __wrap_pthread_cond_broadcast(pthread_cond_t *cond)
{
        if (!sched.on)
                return __real_pthread_cond_broadcast(cond);
        wake(cond, UINT32_MAX);
        return 0;
}

int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *lock)
{
        int r;

        if (!sched.on)
                return __real_pthread_rwlock_rdlock(lock);
        schedule_point();
        while ((r = pthread_rwlock_tryrdlock(lock)) == EBUSY)
                wait_on(lock, false);
        return r;
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock)
{
        int r;

        if (!sched.on)
                return __real_pthread_rwlock_wrlock(lock);
        schedule_point();
        while ((r = pthread_rwlock_trywrlock(lock)) == EBUSY)
                wait_on(lock, false);
        return r;
}

int __wrap_pthread_rwlock_unlock(pthread_rwlock_t *lock)
{
        int r = __real_pthread_rwlock_unlock(lock);

        if (sched.on) {
                wake(lock, UINT32_MAX);
                schedule_point();
        }
        return r;
}

static long futex(const uint32_t *word, int operation, uint32_t value)
{
        switch (operation & FUTEX_CMD_MASK) {
        case FUTEX_WAIT:
                schedule_point();
                if (__atomic_load_n(word, __ATOMIC_SEQ_CST) != value) {
                        errno = EAGAIN;
                        return -1;
                }
                wait_on(word, false);
                return 0;
        case FUTEX_WAKE:
                wake(word, value);
                schedule_point();
                return 0;
        default: assert(!"a futex operation that this scheduler does not know"); return -1;
        }
}

/* The engine's gates wait on a word of their own. */
long __wrap_syscall(long number, ...)
{
        va_list list;
        long a[6];

        va_start(list, number);
        for (int i = 0; i < 6; i++)
                a[i] = va_arg(list, long);
        va_end(list);
        if (sched.on && number == SYS_futex)
                return futex((const uint32_t *)a[0], (int)a[1], (uint32_t)a[2]);
        return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Whoever sleeps or yields waits for somebody else's step: everybody else goes first. */
static int sleep_a_while(void)
{
        wait_on(&sched, true);
        return 0;
}

int __wrap_sched_yield(void)
{
        return sched.on ? sleep_a_while() : __real_sched_yield();
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *left)
{
        return sched.on ? sleep_a_while() : __real_nanosleep(time, left);
}

int __wrap_clock_nanosleep(
        clockid_t clock, int flags, const struct timespec *time, struct timespec *left)
{
        return sched.on ? sleep_a_while() : __real_clock_nanosleep(clock, flags, time, left);
}

int __wrap_usleep(useconds_t time)
{
        return sched.on ? sleep_a_while() : __real_usleep(time);
}

void schedule_on_one_processor(unsigned job)
{
        cpu_set_t all, one;
        unsigned n = 0;

        if (sched_getaffinity(0, sizeof(all), &all) < 0 || CPU_COUNT(&all) == 0)
                return;
        job %= (unsigned)CPU_COUNT(&all);
        CPU_ZERO(&one);
        for (int i = 0; i < CPU_SETSIZE; i++)
                if (CPU_ISSET(i, &all) && n++ == job)
                        CPU_SET(i, &one);
        sched_setaffinity(0, sizeof(one), &one);
}
