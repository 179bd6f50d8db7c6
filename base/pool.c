/* SPDX-License-Identifier: Apache-2.0 */
/* One queue, one lock. An idle thread is woken by a signal on the condition; a new one is started
 * only when more tasks wait than threads are idle, so a pool that is hardly used stays small. */
#include "base/pool.h"

#include <assert.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>

struct pool {
        /* immutable after new */
        char name[16];
        unsigned max_threads;

        pthread_mutex_t lock;
        pthread_cond_t work; /* a task was queued, or the end has come */

        /* guarded by lock */
        struct pool_task *head, **tail;
        size_t n_queued, n_running;
        unsigned n_threads, n_idle;
        bool ending;
        pthread_t threads[];
};

static struct pool_task *take_locked(struct pool *pool)
{
        struct pool_task *task = pool->head;

        if (!task)
                return NULL;
        pool->head = task->next;
        if (!pool->head)
                pool->tail = &pool->head;
        task->next = NULL;
        pool->n_queued--;
        return task;
}

static void *pool_thread(void *arg)
{
        struct pool *pool = arg;

        pthread_setname_np(pthread_self(), pool->name);
        pthread_mutex_lock(&pool->lock);
        for (;;) {
                struct pool_task *task = take_locked(pool);

                if (task) {
                        pool->n_running++;
                        pthread_mutex_unlock(&pool->lock);
                        task->run(task);
                        pthread_mutex_lock(&pool->lock);
                        pool->n_running--;
                        /* A task that ran may have been the last that others wait for. */
                        if (pool->ending && !pool->n_running && !pool->head)
                                pthread_cond_broadcast(&pool->work);
                        continue;
                }
                /* Running tasks may still submit more: the last thread to go sees to it. */
                if (pool->ending && !pool->n_running)
                        break;
                pool->n_idle++;
                pthread_cond_wait(&pool->work, &pool->lock);
                pool->n_idle--;
        }
        pthread_mutex_unlock(&pool->lock);
        return NULL;
}

/* Signals are for the threads that the program made for them. */
static int start_thread_locked(struct pool *pool)
{
        sigset_t all, before;
        int r;

        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = pthread_create(&pool->threads[pool->n_threads], NULL, pool_thread, pool);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (r == 0)
                pool->n_threads++;
        return -r;
}

int pool_new(const char *name, unsigned max_threads, struct pool **ret, struct error *err)
{
        struct pool *pool;

        if (max_threads == 0 || max_threads > POOL_MAX_THREADS)
                return fail(err, EINVAL, "a pool of %u threads: it takes 1 to %u", max_threads,
                        POOL_MAX_THREADS);
        pool = calloc(1, sizeof(*pool) + max_threads * sizeof(pool->threads[0]));
        if (!pool)
                return fail(err, ENOMEM, "no memory for a pool of %u threads", max_threads);

        snprintf(pool->name, sizeof(pool->name), "%s", name);
        pool->max_threads = max_threads;
        pool->tail = &pool->head;
        pthread_mutex_init(&pool->lock, NULL);
        pthread_cond_init(&pool->work, NULL);
        *ret = pool;
        return 0;
}

void pool_submit(struct pool *pool, struct pool_task *task)
{
        assert(task->run);
        task->next = NULL;

        pthread_mutex_lock(&pool->lock);
        *pool->tail = task;
        pool->tail = &task->next;
        pool->n_queued++;
        if (pool->n_queued > pool->n_idle && pool->n_threads < pool->max_threads)
                start_thread_locked(pool);
        if (pool->n_threads == 0) {
                task = take_locked(pool);
                pthread_mutex_unlock(&pool->lock);
                task->run(task);
                return;
        }
        pthread_cond_signal(&pool->work);
        pthread_mutex_unlock(&pool->lock);
}

size_t pool_pending(struct pool *pool)
{
        MUTEX_GUARD(&pool->lock);

        return pool->n_queued + pool->n_running;
}

struct pool *pool_free(struct pool *pool)
{
        if (!pool)
                return NULL;

        pthread_mutex_lock(&pool->lock);
        pool->ending = true;
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->lock);

        /* Nobody submits from outside any more, and a task of ours that submits may start a thread
         * still: so look at the count anew each time. */
        for (unsigned i = 0;; i++) {
                pthread_t thread;

                pthread_mutex_lock(&pool->lock);
                if (i >= pool->n_threads) {
                        pthread_mutex_unlock(&pool->lock);
                        break;
                }
                thread = pool->threads[i];
                pthread_mutex_unlock(&pool->lock);
                pthread_join(thread, NULL);
        }
        assert(!pool->head);
        assert(pool->n_running == 0);
        pthread_cond_destroy(&pool->work);
        pthread_mutex_destroy(&pool->lock);
        free(pool);
        return NULL;
}
