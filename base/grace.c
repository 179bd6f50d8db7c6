/* SPDX-License-Identifier: Apache-2.0 */
#include "base/grace.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"

#define N_STRIPES    32u
#define WAIT_STEP_NS 1000000L
#define N_EPOCHS     3u /* counters are reused every third epoch: by then they are back to zero */

struct stripe {
        _Atomic uint32_t inside[N_EPOCHS];
} __attribute__((aligned(64)));

struct grace {
        struct stripe stripes[N_STRIPES];
        _Atomic uint64_t epoch;
        _Atomic uint32_t n_waiting;
        pthread_mutex_t lock;
        /* guarded by lock, oldest first */
        struct grace_call *first, **last;
};

static unsigned own_stripe(void)
{
        static _Atomic unsigned next;
        static _Thread_local unsigned own = 0;

        if (own == 0)
                own = atomic_fetch_add(&next, 1) % N_STRIPES + 1;
        return own - 1;
}

struct grace *grace_new(void)
{
        struct grace *grace = aligned_alloc(64, sizeof(*grace));

        if (!grace)
                return NULL;
        for (unsigned i = 0; i < N_STRIPES; i++)
                for (unsigned k = 0; k < N_EPOCHS; k++)
                        atomic_init(&grace->stripes[i].inside[k], 0);
        atomic_init(&grace->epoch, N_EPOCHS);
        atomic_init(&grace->n_waiting, 0);
        pthread_mutex_init(&grace->lock, NULL);
        grace->first = NULL;
        grace->last = &grace->first;
        return grace;
}

struct grace *grace_free(struct grace *grace)
{
        if (!grace)
                return NULL;
        grace_drain(grace);
        pthread_mutex_destroy(&grace->lock);
        free(grace);
        return NULL;
}

static struct grace *readers;

static void make_readers(void)
{
        readers = grace_new();
}

struct grace *grace_readers(void)
{
        static pthread_once_t once = PTHREAD_ONCE_INIT;

        pthread_once(&once, make_readers);
        return readers;
}

uint64_t grace_enter(struct grace *grace)
{
        unsigned stripe = own_stripe();

        for (;;) {
                uint64_t epoch = atomic_load(&grace->epoch);
                unsigned slot = (unsigned)(epoch % N_EPOCHS);

                atomic_fetch_add(&grace->stripes[stripe].inside[slot], 1);
                /* If the epoch moved on in between, nobody may have waited for us. */
                if (atomic_load(&grace->epoch) == epoch)
                        return (uint64_t)stripe << 2 | slot;
                atomic_fetch_sub(&grace->stripes[stripe].inside[slot], 1);
        }
}

void grace_leave(struct grace *grace, uint64_t ticket)
{
        atomic_fetch_sub(&grace->stripes[ticket >> 2].inside[ticket & 3], 1);
        if (atomic_load_explicit(&grace->n_waiting, memory_order_relaxed))
                grace_poll(grace);
}

static bool nobody_inside(struct grace *grace, unsigned slot)
{
        for (unsigned i = 0; i < N_STRIPES; i++)
                if (atomic_load(&grace->stripes[i].inside[slot]))
                        return false;
        return true;
}

/* Under lock: what may run now, taken out of the list. */
static struct grace_call *take_due(struct grace *grace)
{
        struct grace_call *due = grace->first, **end = &due;
        uint64_t epoch = atomic_load(&grace->epoch);

        /* Two steps are all that a waiting call can need. */
        for (int i = 0; i < 2; i++) {
                if (!nobody_inside(grace, (unsigned)((epoch - 1) % N_EPOCHS)))
                        break;
                atomic_store(&grace->epoch, ++epoch);
        }
        while (*end && (*end)->epoch + 2 <= epoch) {
                end = &(*end)->next;
                atomic_fetch_sub(&grace->n_waiting, 1);
        }
        grace->first = *end;
        if (!grace->first)
                grace->last = &grace->first;
        *end = NULL;
        return due;
}

void grace_poll(struct grace *grace)
{
        struct grace_call *due = NULL;

        if (pthread_mutex_trylock(&grace->lock) != 0)
                return; /* whoever holds it does the same */
        if (grace->first)
                due = take_due(grace);
        pthread_mutex_unlock(&grace->lock);
        while (due) {
                struct grace_call *call = due;

                due = call->next;
                call->run(call);
        }
}

void grace_defer(struct grace *grace, struct grace_call *call)
{
        pthread_mutex_lock(&grace->lock);
        call->next = NULL;
        call->epoch = atomic_load(&grace->epoch);
        *grace->last = call;
        grace->last = &call->next;
        atomic_fetch_add(&grace->n_waiting, 1);
        pthread_mutex_unlock(&grace->lock);
        grace_poll(grace);
}

void grace_drain(struct grace *grace)
{
        struct grace_call *all;

        pthread_mutex_lock(&grace->lock);
        all = grace->first;
        grace->first = NULL;
        grace->last = &grace->first;
        atomic_store(&grace->n_waiting, 0);
        pthread_mutex_unlock(&grace->lock);
        while (all) {
                struct grace_call *call = all;

                all = call->next;
                call->run(call);
        }
}

/* One that waits. It may go before its call is run, so the last of the two frees it. */
struct grace_waiter {
        struct grace_call call;
        pthread_mutex_t lock;
        pthread_cond_t over;
        bool is_over, is_alone;
};

static void waiter_free(struct grace_waiter *waiter)
{
        pthread_mutex_destroy(&waiter->lock);
        pthread_cond_destroy(&waiter->over);
}

static void waiter_run(struct grace_call *call)
{
        struct grace_waiter *waiter =
                (struct grace_waiter *)((char *)call - offsetof(struct grace_waiter, call));
        bool is_alone;

        pthread_mutex_lock(&waiter->lock);
        waiter->is_over = true;
        is_alone = waiter->is_alone;
        pthread_cond_signal(&waiter->over);
        pthread_mutex_unlock(&waiter->lock);
        if (!is_alone)
                return;
        waiter_free(waiter);
        free(waiter);
}

static void waiter_init(struct grace_waiter *waiter)
{
        *waiter = (struct grace_waiter){.call.run = waiter_run};
        pthread_mutex_init(&waiter->lock, NULL);
        pthread_cond_init(&waiter->over, NULL);
}

/* Whoever leaves last runs the call; but it looks only if it saw that somebody waits, so we look, too,
 * every now and then. With its lock held. */
static void wait_a_step(struct grace *grace, struct grace_waiter *waiter)
{
        struct timespec until;

        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAIT_STEP_NS;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_cond_timedwait(&waiter->over, &waiter->lock, &until);
        pthread_mutex_unlock(&waiter->lock);
        grace_poll(grace);
        pthread_mutex_lock(&waiter->lock);
}

void grace_wait(struct grace *grace)
{
        struct grace_waiter waiter;

        waiter_init(&waiter);
        grace_defer(grace, &waiter.call);
        pthread_mutex_lock(&waiter.lock);
        while (!waiter.is_over)
                wait_a_step(grace, &waiter);
        pthread_mutex_unlock(&waiter.lock);
        waiter_free(&waiter);
}

static uint64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

bool grace_wait_for(struct grace *grace, unsigned timeout_ms)
{
        struct grace_waiter *waiter = malloc(sizeof(*waiter));
        uint64_t until = now_ms() + timeout_ms;
        bool is_over;

        if (!waiter)
                return false;
        waiter_init(waiter);
        grace_defer(grace, &waiter->call);
        pthread_mutex_lock(&waiter->lock);
        while (!waiter->is_over && now_ms() < until)
                wait_a_step(grace, waiter);
        is_over = waiter->is_over;
        waiter->is_alone = !is_over;
        pthread_mutex_unlock(&waiter->lock);
        if (is_over) {
                waiter_free(waiter);
                free(waiter);
        }
        return is_over;
}
