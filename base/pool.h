/* SPDX-License-Identifier: Apache-2.0 */
/* pool.h - a bounded number of threads for work that blocks.
 *
 * Threads are started as work comes and found no idle one, up to the bound; they stay until the end.
 * So a process may fork as long as nothing was submitted.
 *
 * Ownership  pool_new hands out, pool_free ends. A task is the caller's memory, the pool's from
 *            pool_submit until its run is called; run may free it or submit it again.
 * Errors     submitting cannot fail: where the system gives not even one thread, the task runs on
 *            the thread that submits it.
 * Threads    pool_submit from any thread, those of the pool too. They block every signal.
 */
#pragma once

#include <stddef.h>

#include "base/cleanup.h"
#include "base/error.h"

#define POOL_MAX_THREADS 4096u

struct pool;

struct pool_task {
        /* Required. On a thread of the pool; may block. */
        void (*run)(struct pool_task *task);
        struct pool_task *next; /* the pool's */
};

/* @name: of the threads, for people who look (at most 15 bytes count).
 *   -EINVAL  no threads, or more than POOL_MAX_THREADS    -ENOMEM */
int pool_new(const char *name, unsigned max_threads, struct pool **ret, struct error *err);

/* Runs the task soon, first come first served. */
void pool_submit(struct pool *pool, struct pool_task *task);

/* Tasks that wait or run now. */
size_t pool_pending(struct pool *pool);

/* Waits until every task that was submitted has run, and ends the threads. NULL is fine; always
 * returns NULL. Not from a thread of the pool. */
struct pool *pool_free(struct pool *pool);
DEFINE_CLEANUP(struct pool *, pool_free)
