/* SPDX-License-Identifier: Apache-2.0 */
#include "nbd/server/tx.h"

#include <assert.h>
#include <limits.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/arith.h"
#include "base/cleanup.h"

/* So many items go out in one system call. */
#define TX_BATCH 64

struct tx_writer {
        /* immutable after new */
        int epoll_fd, end_fd;

        /* The thread is started when a client is slow for the first time: a worker without clients
         * is many times there, and should be small. */
        atomic_bool runs;
        pthread_mutex_t lock;
        /* guarded by lock */
        pthread_t thread;
};

static bool need_thread(struct tx_writer *writer);

static void mark_broken(struct tx *tx)
{
        atomic_store(&tx->broken, true);
}

void tx_break(struct tx *tx)
{
        mark_broken(tx);
        shutdown(tx->fd, SHUT_RDWR);
}

/* Marks @n bytes at the front of @batch as sent; what is whole is done. Answers the rest. */
static struct tx_item *advance(struct tx_item *batch, size_t n)
{
        while (batch) {
                size_t left = batch->length - batch->sent;
                struct tx_item *next = batch->next;

                if (n < left) {
                        batch->sent += n;
                        break;
                }
                n -= left;
                batch->done(batch);
                batch = next;
        }
        return batch;
}

static struct tx_item *drop_all(struct tx_item *batch)
{
        while (batch) {
                struct tx_item *next = batch->next;

                batch->done(batch);
                batch = next;
        }
        return NULL;
}

/* Sends a list without waiting. Answers what is left when the socket is full. */
static struct tx_item *send_list(struct tx *tx, struct tx_item *batch)
{
        while (batch && !atomic_load(&tx->broken)) {
                struct iovec iov[TX_BATCH];
                struct msghdr msg = {.msg_iov = iov};
                ssize_t n;

                for (struct tx_item *i = batch; i && msg.msg_iovlen < TX_BATCH; i = i->next)
                        iov[msg.msg_iovlen++] = (struct iovec){
                                .iov_base = (uint8_t *)i->data + i->sent,
                                .iov_len = i->length - i->sent,
                        };
                n = sendmsg(tx->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
                atomic_fetch_add_explicit(&tx->sends, 1, memory_order_relaxed);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
                        return batch;
                if (n < 0) {
                        mark_broken(tx);
                        break;
                }
                atomic_fetch_add(&tx->total, (uint64_t)n);
                batch = advance(batch, (size_t)n);
        }
        return atomic_load(&tx->broken) ? drop_all(batch) : batch;
}

/* Gives the rest back to the front of the queue. */
static void put_back_locked(struct tx *tx, struct tx_item *batch)
{
        struct tx_item **end = &batch;

        while (*end)
                end = &(*end)->next;
        *end = tx->head;
        if (!tx->head)
                tx->tail = end;
        tx->head = batch;
}

/* The owner sends until nothing is queued, then lets go. False: the socket is full, and the caller
 * still owns the stream. */
static bool drain_and_release(struct tx *tx)
{
        pthread_mutex_lock(&tx->lock);
        for (;;) {
                struct tx_item *batch = tx->head;

                if (!batch) {
                        tx->owned = false;
                        /* Under the lock: once it is free, the struct may be gone. */
                        if (tx->waiting)
                                pthread_cond_signal(&tx->idle);
                        pthread_mutex_unlock(&tx->lock);
                        return true;
                }
                tx->head = NULL;
                tx->tail = &tx->head;
                pthread_mutex_unlock(&tx->lock);

                batch = send_list(tx, batch);
                pthread_mutex_lock(&tx->lock);
                if (batch) {
                        put_back_locked(tx, batch);
                        pthread_mutex_unlock(&tx->lock);
                        return false;
                }
        }
}

/* The stream is the writer's from here on: it may be gone when this returns. */
static void hand_to_writer(struct tx *tx)
{
        struct epoll_event event = {.events = EPOLLOUT | EPOLLONESHOT, .data.ptr = tx};
        int op = tx->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

        tx->watched = true;
        if (!need_thread(tx->writer) || epoll_ctl(tx->writer->epoll_fd, op, tx->fd, &event) < 0) {
                /* No memory for a watch or a thread: without it nobody would ever go on here. */
                tx_break(tx);
                drain_and_release(tx);
        }
}

void tx_post(struct tx *tx, struct tx_item *item)
{
        bool mine;

        item->next = NULL;
        item->sent = 0;
        pthread_mutex_lock(&tx->lock);
        *tx->tail = item;
        tx->tail = &item->next;
        mine = !tx->owned;
        tx->owned = true;
        pthread_mutex_unlock(&tx->lock);

        if (mine && !drain_and_release(tx))
                hand_to_writer(tx);
}

static void wait_idle_locked(struct tx *tx)
{
        tx->waiting = true;
        while (tx->owned)
                pthread_cond_wait(&tx->idle, &tx->lock);
        tx->waiting = false;
}

void tx_begin(struct tx *tx)
{
        pthread_mutex_lock(&tx->lock);
        wait_idle_locked(tx);
        assert(!tx->head); /* the stream is let go only with an empty queue */
        tx->owned = true;
        pthread_mutex_unlock(&tx->lock);
}

int tx_send(struct tx *tx, const void *data, size_t length, bool more)
{
        const uint8_t *p = data;

        while (length > 0 && !atomic_load(&tx->broken)) {
                ssize_t n = send(tx->fd, p, length, MSG_NOSIGNAL | (more ? MSG_MORE : 0));

                atomic_fetch_add_explicit(&tx->sends, 1, memory_order_relaxed);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0) {
                        mark_broken(tx);
                        break;
                }
                atomic_fetch_add(&tx->total, (uint64_t)n);
                p += n;
                length -= (size_t)n;
        }
        return atomic_load(&tx->broken) ? -EPIPE : 0;
}

int tx_sendfile(struct tx *tx, int file_fd, uint64_t offset, size_t length, size_t *ret_sent)
{
        off_t at = (off_t)offset;

        *ret_sent = 0;
        while (*ret_sent < length && !atomic_load(&tx->broken)) {
                ssize_t n = sendfile(tx->fd, file_fd, &at, length - *ret_sent);

                atomic_fetch_add_explicit(&tx->sends, 1, memory_order_relaxed);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)) {
                        mark_broken(tx);
                        break;
                }
                if (n < 0)
                        return -errno;
                if (n == 0)
                        return -ENODATA; /* the file ends here: somebody cut it */
                atomic_fetch_add(&tx->total, (uint64_t)n);
                *ret_sent += (size_t)n;
        }
        return atomic_load(&tx->broken) ? -EPIPE : 0;
}

void tx_end(struct tx *tx)
{
        /* What others posted meanwhile must not make this thread wait longer than its own replies
         * did: the writer takes over where the socket is full. */
        if (!drain_and_release(tx))
                hand_to_writer(tx);
}

void tx_init(struct tx *tx, int fd, struct tx_writer *writer)
{
        *tx = (struct tx){.fd = fd, .writer = writer};
        tx->tail = &tx->head;
        pthread_mutex_init(&tx->lock, NULL);
        pthread_cond_init(&tx->idle, NULL);
}

void tx_done(struct tx *tx)
{
        pthread_mutex_lock(&tx->lock);
        wait_idle_locked(tx);
        assert(!tx->head);
        pthread_mutex_unlock(&tx->lock);
        if (tx->watched)
                epoll_ctl(tx->writer->epoll_fd, EPOLL_CTL_DEL, tx->fd, NULL);
        pthread_cond_destroy(&tx->idle);
        pthread_mutex_destroy(&tx->lock);
}

static void *writer_thread(void *arg)
{
        struct tx_writer *writer = arg;

        pthread_setname_np(pthread_self(), "nbd-writer");
        for (;;) {
                struct epoll_event events[32];
                int n = epoll_wait(writer->epoll_fd, events, 32, -1);

                for (int i = 0; i < n; i++) {
                        struct tx *tx = events[i].data.ptr;

                        if (!tx)
                                return NULL;
                        /* One-shot, and the stream is ours until the queue is empty. */
                        if (!drain_and_release(tx))
                                hand_to_writer(tx);
                }
        }
}

static bool need_thread(struct tx_writer *writer)
{
        sigset_t all, before;
        int r = 0;

        if (atomic_load(&writer->runs))
                return true;
        pthread_mutex_lock(&writer->lock);
        if (!atomic_load(&writer->runs)) {
                sigfillset(&all);
                pthread_sigmask(SIG_SETMASK, &all, &before);
                r = pthread_create(&writer->thread, NULL, writer_thread, writer);
                pthread_sigmask(SIG_SETMASK, &before, NULL);
                atomic_store(&writer->runs, r == 0);
        }
        pthread_mutex_unlock(&writer->lock);
        return r == 0;
}

static int open_writer(struct tx_writer *writer)
{
        struct epoll_event event = {.events = EPOLLIN};

        writer->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        writer->end_fd = eventfd(0, EFD_CLOEXEC);
        if (writer->epoll_fd < 0 || writer->end_fd < 0 ||
                epoll_ctl(writer->epoll_fd, EPOLL_CTL_ADD, writer->end_fd, &event) < 0)
                return -errno;
        return 0;
}

static void free_writer(struct tx_writer *writer)
{
        cleanup_fd(&writer->epoll_fd);
        cleanup_fd(&writer->end_fd);
        pthread_mutex_destroy(&writer->lock);
        free(writer);
}

int tx_writer_new(struct tx_writer **ret, struct error *err)
{
        struct tx_writer *writer = calloc(1, sizeof(*writer));
        int r;

        if (!writer)
                return fail(err, ENOMEM, "no memory for the thread that sends replies");
        writer->epoll_fd = writer->end_fd = -1;
        pthread_mutex_init(&writer->lock, NULL);
        r = open_writer(writer);
        if (r < 0) {
                free_writer(writer);
                return fail_os(err, -r, "cannot watch clients' sockets");
        }
        *ret = writer;
        return 0;
}

struct tx_writer *tx_writer_free(struct tx_writer *writer)
{
        uint64_t one = 1;

        if (!writer)
                return NULL;
        if (atomic_load(&writer->runs)) {
                while (write(writer->end_fd, &one, sizeof(one)) < 0 && errno == EINTR)
                        ;
                pthread_join(writer->thread, NULL);
        }
        free_writer(writer);
        return NULL;
}
