/* SPDX-License-Identifier: Apache-2.0 */
/* tx.h - what goes out on one client's socket, from many threads, without any of them waiting for a
 * client that is not theirs.
 *
 * The stream has one owner at a time:
 *
 *      idle --tx_begin: the client's own thread--> owned --tx_end--> idle
 *      idle --tx_post: any thread----------------> owned --all sent--> idle
 *                                                    \--socket full--> the writer's --all sent--> idle
 *
 * tx_post never waits: a reply joins the queue, and whoever owns the stream sends it. When the socket
 * is full the writer, one thread a server, goes on as soon as the client has read.
 *
 * Units      bytes.
 * Ownership  an item is the poster's memory, tx's until its done is called.
 * Errors     a socket that fails is broken for good: from then on everything is dropped, and each
 *            item's done is called all the same.
 * Threads    tx_begin, tx_send, tx_sendfile, tx_end, tx_init, tx_done: the client's own.
 *            tx_post: any.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct tx_writer;

struct tx_item {
        struct tx_item *next; /* tx's */
        const uint8_t *data;
        size_t length;
        size_t sent; /* tx's */
        /* Required. Sent or dropped; on any thread. Must neither block nor call tx. */
        void (*done)(struct tx_item *item);
};

struct tx {
        /* immutable */
        int fd;
        struct tx_writer *writer;

        pthread_mutex_t lock;
        pthread_cond_t idle;
        /* guarded by lock */
        bool owned;
        struct tx_item *head, **tail;
        bool waiting; /* the client's own thread waits for idle */

        /* owner: whoever owns the stream */
        bool watched; /* the writer's epoll knows the socket */

        atomic_bool broken;
        atomic_uint_fast64_t total; /* bytes that the socket took */
        atomic_uint_fast64_t sends; /* system calls */
};

/* The writer; its thread is there from the first client on that is slow. */
int tx_writer_new(struct tx_writer **ret, struct error *err);
struct tx_writer *tx_writer_free(struct tx_writer *writer); /* NULL is fine; returns NULL */

void tx_init(struct tx *tx, int fd, struct tx_writer *writer);
/* Waits until the queue is empty and the stream idle. Posts must have ended before. */
void tx_done(struct tx *tx);

void tx_post(struct tx *tx, struct tx_item *item);

/* Takes the stream, waiting for it; what was posted before goes out first. Between begin and end the
 * send calls block as long as the client does not read. */
void tx_begin(struct tx *tx);
/* All of it, or -errno and broken. @more: something follows at once. */
int tx_send(struct tx *tx, const void *data, size_t length, bool more);
/* The same from a file. *ret_sent: how far it came (also on failure). A failure of the file's side
 * does not break the socket. */
int tx_sendfile(struct tx *tx, int file_fd, uint64_t offset, size_t length, size_t *ret_sent);
void tx_end(struct tx *tx);

/* No more bytes shall go out: the socket is shut. Any thread. */
void tx_break(struct tx *tx);
