/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong where many threads send on one socket: two replies mixed, one lost or sent
 * twice, a poster that waits for a client that does not read, memory used after the end. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "nbd/server/tx.h"

#define N_POSTERS 4
#define N_ITEMS   200
#define ITEM_MAX  20000

/* On the wire: who, which, how long; then so many bytes that say who. */
struct head {
        uint32_t who, which, length;
};

struct item {
        struct tx_item item;
        atomic_int done;
        uint8_t data[sizeof(struct head) + ITEM_MAX];
};

static struct tx tx;
static struct tx_writer *writer;
static int client;
static struct item items[N_POSTERS][N_ITEMS];

static void start(void)
{
        struct error err = ERROR_INIT;
        int fds[2], small = 8192;

        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0));
        setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
        cr_assert(eq(int, tx_writer_new(&writer, &err), 0));
        tx_init(&tx, fds[0], writer);
        client = fds[1];
}

static void stop(void)
{
        tx_done(&tx);
        tx_writer_free(writer);
        close(tx.fd);
        close(client);
}

TestSuite(nbd_tx, .init = start, .fini = stop, .timeout = 30);

static void item_done(struct tx_item *item)
{
        atomic_fetch_add(&((struct item *)item)->done, 1);
}

static struct item *make_item(uint32_t who, uint32_t which)
{
        struct item *item = &items[who][which];
        struct head head = {who, which, 1 + (which * 7919 + who * 104729) % ITEM_MAX};

        memcpy(item->data, &head, sizeof(head));
        memset(item->data + sizeof(head), (int)who, head.length);
        item->item.data = item->data;
        item->item.length = sizeof(head) + head.length;
        item->item.done = item_done;
        return item;
}

static void *post_all(void *arg)
{
        uint32_t who = (uint32_t)(uintptr_t)arg;

        for (uint32_t i = 0; i < N_ITEMS; i++)
                tx_post(&tx, &make_item(who, i)->item);
        return NULL;
}

/* The client's own thread: it sends too, and may wait. */
static void *send_all(void *arg)
{
        for (uint32_t i = 0; i < N_ITEMS; i++) {
                struct item *item = make_item(0, i);

                tx_begin(&tx);
                cr_assert(eq(int, tx_send(&tx, item->data, 100 % item->item.length, true), 0));
                cr_assert(eq(int,
                        tx_send(&tx, item->data + 100 % item->item.length,
                                item->item.length - 100 % item->item.length, false),
                        0));
                tx_end(&tx);
        }
        return NULL;
}

static void receive(void *data, size_t length)
{
        uint8_t *p = data;

        while (length > 0) {
                ssize_t n = recv(client, p, length, 0);

                cr_assert(gt(long, n, 0));
                p += n;
                length -= (size_t)n;
        }
}

static void receive_items(unsigned n)
{
        static bool seen[N_POSTERS][N_ITEMS];
        uint8_t data[ITEM_MAX];

        for (unsigned i = 0; i < n; i++) {
                struct head head;

                receive(&head, sizeof(head));
                cr_assert(lt(u32, head.who, N_POSTERS));
                cr_assert(lt(u32, head.which, N_ITEMS));
                cr_assert(le(u32, head.length, ITEM_MAX));
                cr_assert(not(seen[head.who][head.which]));
                seen[head.who][head.which] = true;
                receive(data, head.length);
                for (uint32_t k = 0; k < head.length; k++)
                        cr_assert(data[k] == head.who);
        }
}

Test(nbd_tx, replies_of_many_threads_are_whole_and_each_comes_once)
{
        pthread_t threads[N_POSTERS];

        cr_assert(eq(int, pthread_create(&threads[0], NULL, send_all, NULL), 0));
        for (uintptr_t i = 1; i < N_POSTERS; i++)
                cr_assert(eq(int, pthread_create(&threads[i], NULL, post_all, (void *)i), 0));
        receive_items(N_POSTERS * N_ITEMS);
        for (int i = 0; i < N_POSTERS; i++)
                pthread_join(threads[i], NULL);
        tx_begin(&tx);
        tx_end(&tx);
        for (int i = 1; i < N_POSTERS; i++)
                for (int k = 0; k < N_ITEMS; k++)
                        cr_assert(eq(int, items[i][k].done, 1));
}

/* Nobody reads: posting all of it returns, and later everything comes. */
Test(nbd_tx, a_poster_never_waits_for_the_client)
{
        post_all((void *)(uintptr_t)1);
        cr_assert(eq(int, items[1][N_ITEMS - 1].done, 0));
        receive_items(N_ITEMS);
        tx_begin(&tx);
        tx_end(&tx);
        for (int k = 0; k < N_ITEMS; k++)
                cr_assert(eq(int, items[1][k].done, 1));
}

Test(nbd_tx, what_was_posted_to_a_broken_socket_is_done_too)
{
        post_all((void *)(uintptr_t)1);
        tx_break(&tx);
        post_all((void *)(uintptr_t)2);
        tx_begin(&tx);
        cr_expect(eq(int, tx_send(&tx, "x", 1, false), -EPIPE));
        tx_end(&tx);
        for (int i = 1; i < 3; i++)
                for (int k = 0; k < N_ITEMS; k++)
                        cr_assert(eq(int, items[i][k].done, 1));
}

Test(nbd_tx, a_client_that_goes_frees_everything)
{
        post_all((void *)(uintptr_t)3);
        shutdown(client, SHUT_RDWR);
        tx_begin(&tx);
        tx_end(&tx);
        for (int k = 0; k < N_ITEMS; k++)
                cr_assert(eq(int, items[3][k].done, 1));
}

/* The file ends early: how far it came is told, and the socket is as good as before. */
Test(nbd_tx, a_file_that_ends_early_is_an_error_of_the_file)
{
        int fd = memfd_create("file", MFD_CLOEXEC);
        uint8_t data[1000];
        size_t sent = 0;

        cr_assert(eq(int, ftruncate(fd, 1500), 0));
        tx_begin(&tx);
        cr_expect(eq(int, tx_sendfile(&tx, fd, 500, 2000, &sent), -ENODATA));
        cr_expect(eq(sz, sent, 1000));
        receive(data, sent);
        cr_expect(eq(int, tx_send(&tx, "ok", 2, false), 0));
        receive(data, 2);
        cr_expect(eq(int, data[0], 'o'));
        tx_end(&tx);
        close(fd);
}
