/* SPDX-License-Identifier: Apache-2.0 */
/* Cold reads through io_uring: they wait for the disk without a thread each.
 *
 *      ring_read, on the client's thread: map -> a read for each piece -> submit
 *      the ring's thread: completions; the last piece of a request posts its reply
 *
 * Only reads that the map answers at once and that are all data: what else there is (zeros to tell of,
 * pages past the cache, errors to explain) goes to the pool, and so does a read that fails or comes
 * back short here. A request's buffer belongs to the kernel from submit to its last completion. */
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/arith.h"
#include "nbd/server/private.h"

#define RING_ENTRIES    256u
#define RING_MAX_PIECES 8u

struct ring {
        struct nbd_server *server;

        pthread_mutex_t lock;
        /* guarded by lock: the submission side of uring; the thread alone has the completion side */
        struct io_uring uring;
        unsigned n_under_way; /* pieces; never more than the completion queue takes */
        pthread_t thread;     /* from the first cold read on */
        bool thread_runs;
};

struct ring_read;

struct ring_piece {
        struct ring_read *read;
        int fd;
        uint32_t length;
        uint64_t file_offset;
};

/* A request that the ring reads for. */
struct ring_read {
        struct request *request;
        uint64_t ticket;
        size_t header_length;
        atomic_uint pending; /* pieces, and one for who submits */
        atomic_bool failed;
        unsigned n_pieces;
        struct ring_piece pieces[RING_MAX_PIECES];
};

static struct chain *chain_of(const struct request *request)
{
        return request->client->agreement.export->volume->chain;
}

/* ---- the end of a read ---- */

static void finish(struct ring_read *read)
{
        struct request *request = read->request;
        struct nbd_server *server = request->client->server;

        chain_ticket_put(chain_of(request), read->ticket);
        if (atomic_load(&read->failed)) {
                pool_submit(server->pool, &request->task);
        } else {
                count(&server->ring_reads, 1);
                request_answer_read(request, read->header_length + request->command.length);
        }
        free(read);
}

static void drop_pending(struct ring_read *read, unsigned n)
{
        if (atomic_fetch_sub(&read->pending, n) == n)
                finish(read);
}

static void piece_done(struct ring *ring, struct ring_piece *piece, int res)
{
        /* Also what tells the threads' checker that the submitter wrote the piece before. */
        pthread_mutex_lock(&ring->lock);
        ring->n_under_way--;
        pthread_mutex_unlock(&ring->lock);
        if (res < 0 || (uint32_t)res != piece->length)
                atomic_store(&piece->read->failed, true);
        drop_pending(piece->read, 1);
}

static void *ring_thread(void *arg)
{
        struct ring *ring = arg;

        pthread_setname_np(pthread_self(), "nbd-ring");
        for (;;) {
                struct io_uring_cqe *cqe;
                struct ring_piece *piece;
                int r = io_uring_wait_cqe(&ring->uring, &cqe), res;

                if (r < 0) {
                        assert(r == -EINTR || r == -EAGAIN);
                        continue;
                }
                piece = io_uring_cqe_get_data(cqe);
                res = cqe->res;
                io_uring_cqe_seen(&ring->uring, cqe);
                if (!piece)
                        return NULL;
                piece_done(ring, piece, res);
        }
}

/* ---- its beginning ---- */

/* The pieces of the whole read, or false. */
static bool find_pieces(const struct request *request, struct ring_read *read)
{
        const struct command *command = &request->command;
        uint64_t at = command->offset, end = command->offset + command->length;

        while (at < end) {
                struct ring_piece *piece = &read->pieces[read->n_pieces];
                struct chain_extent extent;

                if (read->n_pieces == RING_MAX_PIECES ||
                        chain_map(chain_of(request), at, end - at, CHAIN_NOWAIT, &extent) < 0)
                        return false;
                if (extent.kind != EXTENT_DATA || extent.file->fd < 0 ||
                        extent.file->flags & FILE_DIRECT)
                        return false;
                *piece = (struct ring_piece){
                        .read = read,
                        .fd = extent.file->fd,
                        .length = (uint32_t)MIN_OF(extent.length, end - at),
                        .file_offset = extent.file_offset,
                };
                read->n_pieces++;
                at += piece->length;
        }
        return true;
}

static size_t put_header(struct request *request)
{
        const struct command *command = &request->command;

        if (request->client->agreement.structured)
                return reply_data_header(
                        request->reply, command, command->offset, command->length, true);
        return reply_simple_header(request->reply, command, NBD_SUCCESS);
}

/* Forgets what was prepared and the kernel did not take: it looks only while we call it, and we hold
 * the lock. */
static void take_back_locked(struct ring *ring, unsigned n)
{
        struct io_uring_sq *sq = &ring->uring.sq;

        sq->sqe_tail -= n;
        sq->sqe_head = sq->sqe_tail;
        io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
}

/* Answers how many of @n prepared entries the kernel took. */
static unsigned submit_locked(struct ring *ring, unsigned n)
{
        unsigned taken = 0;

        while (taken < n) {
                int r = io_uring_submit(&ring->uring);

                if (r == -EINTR)
                        continue;
                if (r <= 0) {
                        take_back_locked(ring, n - taken);
                        break;
                }
                taken += (unsigned)r;
        }
        ring->n_under_way += taken;
        return taken;
}

static void prepare_locked(struct ring *ring, struct ring_read *read)
{
        uint8_t *to = read->request->reply + read->header_length;

        for (unsigned i = 0; i < read->n_pieces; i++) {
                struct ring_piece *piece = &read->pieces[i];
                struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);

                assert(sqe); /* everything before was submitted or taken back */
                io_uring_prep_read(sqe, piece->fd, to, piece->length, piece->file_offset);
                io_uring_sqe_set_data(sqe, piece);
                to += piece->length;
        }
}

/* A server that nobody reads cold from needs none. */
static bool need_thread_locked(struct ring *ring)
{
        sigset_t all, before;

        if (ring->thread_runs)
                return true;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        ring->thread_runs = pthread_create(&ring->thread, NULL, ring_thread, ring) == 0;
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return ring->thread_runs;
}

/* False: the ring is full, or has no thread; nothing was done. */
static bool start(struct ring *ring, struct ring_read *read)
{
        unsigned n = read->n_pieces, taken;

        pthread_mutex_lock(&ring->lock);
        if (ring->n_under_way + n > RING_ENTRIES || !need_thread_locked(ring)) {
                pthread_mutex_unlock(&ring->lock);
                return false;
        }
        atomic_store(&read->pending, n + 1);
        prepare_locked(ring, read);
        taken = submit_locked(ring, n);
        if (taken < n)
                atomic_store(&read->failed, true);
        pthread_mutex_unlock(&ring->lock);
        drop_pending(read, n - taken + 1);
        return true;
}

bool ring_read(struct ring *ring, struct request *request)
{
        struct ring_read *read = calloc(1, sizeof(*read));

        if (!read)
                return false;
        request->reply = malloc(read_reply_bound(request->client, request->command.length));
        if (!request->reply) {
                free(read);
                return false;
        }
        read->request = request;
        read->header_length = put_header(request);
        read->ticket = chain_ticket_get(chain_of(request));
        if (find_pieces(request, read) && start(ring, read))
                return true;
        chain_ticket_put(chain_of(request), read->ticket);
        free(read);
        return false;
}

/* ---- the ring itself ---- */

/* A kernel may have io_uring and no IORING_OP_READ, or a filter may let it begin and nothing else. */
static bool can_read(struct io_uring *uring)
{
        struct io_uring_probe *probe = io_uring_get_probe_ring(uring);
        bool can = probe && io_uring_opcode_supported(probe, IORING_OP_READ);

        io_uring_free_probe(probe);
        return can;
}

/* The library of some distributions declares these calls and does not have them. */
static int register_with(struct io_uring *uring, unsigned what, const void *data, unsigned n)
{
        return syscall(SYS_io_uring_register, uring->ring_fd, what, data, n) < 0 ? -errno : 0;
}

/* Calls of the ring pass by a sandbox's filter of system calls: so it can do nothing but what we use.
 * Kernels before 5.10 have no such thing. */
static int make_uring(struct io_uring *uring)
{
        struct io_uring_restriction allowed[] = {
                {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ},
                {.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_NOP},
        };
        int r = io_uring_queue_init(RING_ENTRIES, uring, IORING_SETUP_R_DISABLED);
        bool restricted = r != -EINVAL;

        if (!restricted)
                r = io_uring_queue_init(RING_ENTRIES, uring, 0);
        if (r < 0)
                return r;
        if (!can_read(uring))
                r = -ENOSYS;
        if (r == 0 && restricted)
                r = register_with(uring, IORING_REGISTER_RESTRICTIONS, allowed,
                        sizeof(allowed) / sizeof(allowed[0]));
        if (r == 0 && restricted)
                r = register_with(uring, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
        if (r < 0)
                io_uring_queue_exit(uring);
        return r;
}

int ring_new(struct nbd_server *server, struct ring **ret)
{
        struct ring *ring = calloc(1, sizeof(*ring));
        int r;

        if (!ring)
                return -ENOMEM;
        r = make_uring(&ring->uring);
        if (r < 0) {
                free(ring);
                return r;
        }
        ring->server = server;
        pthread_mutex_init(&ring->lock, NULL);
        *ret = ring;
        return 0;
}

/* Whoever uses the ring is gone by now. An empty entry tells the thread to go too. */
static void end_thread(struct ring *ring)
{
        struct io_uring_sqe *sqe;
        unsigned taken = 0;

        assert(ring->n_under_way == 0);
        while (taken == 0) {
                pthread_mutex_lock(&ring->lock);
                sqe = io_uring_get_sqe(&ring->uring);
                assert(sqe);
                io_uring_prep_nop(sqe);
                io_uring_sqe_set_data(sqe, NULL);
                taken = submit_locked(ring, 1);
                pthread_mutex_unlock(&ring->lock);
        }
        pthread_join(ring->thread, NULL);
}

struct ring *ring_free(struct ring *ring)
{
        if (!ring)
                return NULL;
        if (ring->thread_runs)
                end_thread(ring);
        io_uring_queue_exit(&ring->uring);
        pthread_mutex_destroy(&ring->lock);
        free(ring);
        return NULL;
}
