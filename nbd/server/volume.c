/* SPDX-License-Identifier: Apache-2.0 */
/* Flushes of one chain, whichever client asks. One task at most is on the pool: it takes all who wait,
 * flushes once for them, and looks again. Who comes while a flush runs waits for the next, because
 * that one has begun already (E3). */
#include <assert.h>

#include "nbd/server/private.h"

static void run_flushes(struct pool_task *task)
{
        struct volume *volume = (struct volume *)((uint8_t *)task - offsetof(struct volume, task));

        for (;;) {
                struct request *waiting;
                uint64_t unsynced;
                int r;

                pthread_mutex_lock(&volume->lock);
                if (!volume->wanted) {
                        volume->running = false;
                        /* Under the lock: once it is free, the volume may be gone. */
                        pthread_cond_signal(&volume->idle);
                        pthread_mutex_unlock(&volume->lock);
                        return;
                }
                waiting = TAKE_PTR(volume->waiting);
                volume->wanted = false;
                pthread_mutex_unlock(&volume->lock);

                unsynced = counted(&volume->unsynced);
                r = chain_flush(volume->chain);
                count(&volume->server->flushes_done, 1);
                /* A failed one poisons the chain (E5), and there is nothing to wait for any more. */
                atomic_fetch_sub(&volume->unsynced, unsynced);
                if (volume_is_full(volume)) {
                        /* Nobody crosses the bound any more to ask for this one. */
                        pthread_mutex_lock(&volume->lock);
                        volume->wanted = true;
                        pthread_mutex_unlock(&volume->lock);
                }

                while (waiting) {
                        struct request *next = waiting->next;

                        request_answer(waiting, r);
                        waiting = next;
                }
        }
}

/* Sees to it that a flush begins after now. */
static void want_flush(struct volume *volume, struct request *request)
{
        bool start;

        pthread_mutex_lock(&volume->lock);
        if (request) {
                request->next = volume->waiting;
                volume->waiting = request;
        }
        volume->wanted = true;
        start = !volume->running;
        volume->running = true;
        pthread_mutex_unlock(&volume->lock);
        if (start)
                pool_submit(volume->server->pool, &volume->task);
}

void volume_flush(struct volume *volume, struct request *request)
{
        count(&volume->server->flushes_asked, 1);
        want_flush(volume, request);
}

bool volume_is_full(const struct volume *volume)
{
        return counted(&volume->unsynced) >= volume->server->options.max_unsynced_bytes;
}

void volume_wrote(struct volume *volume, uint64_t length)
{
        uint64_t max = volume->server->options.max_unsynced_bytes;
        uint64_t before =
                atomic_fetch_add_explicit(&volume->unsynced, length, memory_order_relaxed);

        /* Whoever crosses the bound begins the flush: a guest that never flushes must not fill the
         * page cache with what a power cut takes, nor wait long in its first flush. */
        if (before < max && before + length >= max)
                want_flush(volume, NULL);
}

void volume_init(struct volume *volume, struct nbd_server *server, struct chain *chain)
{
        *volume = (struct volume){
                .server = server,
                .chain = chain,
                .size = chain_size(chain),
                .task.run = run_flushes,
        };
        pthread_mutex_init(&volume->lock, NULL);
        pthread_cond_init(&volume->idle, NULL);
}

void volume_done(struct volume *volume)
{
        pthread_mutex_lock(&volume->lock);
        while (volume->running)
                pthread_cond_wait(&volume->idle, &volume->lock);
        assert(!volume->waiting);
        pthread_mutex_unlock(&volume->lock);
        pthread_cond_destroy(&volume->idle);
        pthread_mutex_destroy(&volume->lock);
}
