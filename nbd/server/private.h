/* SPDX-License-Identifier: Apache-2.0 */
/* private.h - what the files of the server share; nobody else includes it.
 *
 * The path of a request:
 *
 *   client.c   a thread a client: one receive takes many requests; each is checked and started
 *   read.c     warm reads, answered into the arena at once        \
 *   sendfile.c large ones, sent from the page cache                > one send a batch
 *   status.c   block status                                       /
 *   work.c     what may block: on the pool, answered by tx_post from there, out of order
 *   ring.c     cold reads through io_uring, answered likewise
 *   volume.c   flushes, grouped, and the bound on unsynced bytes
 *   flight.c   the bounds on requests and bytes in flight
 *   stats.c    what was asked of each export, and how long it took
 *
 * Locks      server.lock, then flight.lock; server.lock, then log_lock; volume.lock and tx.lock are
 *            taken with none held.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "nbd/proto/nbd.h"
#include "nbd/server/handoff.h"
#include "nbd/server/server.h"
#include "nbd/server/tx.h"

/* Reads from here on are tried with sendfile. */
#define SENDFILE_MIN (64u << 10)
/* What a client's thread takes in one receive; a write of up to half of it needs no other buffer. */
#define RX_SIZE (256u << 10)
/* Replies are sent when so much has come together, or when no request is left. */
#define ARENA_BATCH (256u << 10)
/* The longest read that is answered on the client's thread by copying. */
#define INLINE_MAX (2u << 20)
/* A structured reply tells of zeros as a hole from this length on; it costs less than sending them. */
#define HOLE_MIN 4096u
/* Requests of one client under way at a time; more wait in the socket. */
#define CLIENT_MAX_REQUESTS 256u
/* Trims and zeros go in steps of this, so that a long one does not keep a thread from others. */
#define WORK_STEP (UINT64_C(64) << 20)
/* The socket's send buffer, so that a megabyte of sendfile needs no second wake-up. */
#define SOCKET_SEND_BUFFER (2 << 20)

enum meta_context {
        CONTEXT_ALLOCATION, /* base:allocation */
        CONTEXT_DEPTH,      /* vhdd:depth */
        CONTEXT_QEMU_DEPTH, /* qemu:allocation-depth */
        N_CONTEXTS,
};
/* Information that a client may ask for; the rest comes unasked or not at all. */
#define INFO_BITS (1u << NBD_INFO_NAME | 1u << NBD_INFO_DESCRIPTION)
/* Behind the fixed contexts come the snapshots that the client chose, in its order. */
#define MAX_CONTEXTS        (N_CONTEXTS + NBD_CHANGED_MAX)
#define CONTEXT_CHANGED(i)  (N_CONTEXTS + (i))
#define CONTEXT_CHANGED_PRE "vhdd:changed:"
/* The id that stands for a context on the wire. */
#define CONTEXT_ID(context) ((uint32_t)(context) + 1)

struct request;

/* A chain that is served, by one export or several. */
struct volume {
        /* immutable */
        struct nbd_server *server;
        struct chain *chain;
        uint64_t size;

        /* guarded by server.lock */
        unsigned n_exports;

        atomic_uint_fast64_t unsynced; /* bytes written since the last flush began */

        struct pool_task task; /* runs the flushes */
        pthread_mutex_t lock;
        /* guarded by lock */
        struct request *waiting; /* for a flush that has not begun */
        bool wanted, running;
        pthread_cond_t idle; /* !running */
};

struct changed {
        char *name;
        unsigned layer; /* counted from the root, so that a layer pushed on top moves nothing */
};

struct stats {
        struct kind_stats {
                atomic_uint_fast64_t requests, errors, bytes, latency_us;
                atomic_uint_fast64_t latency[NBD_LATENCY_BUCKETS];
        } kinds[NBD_N_KINDS];
};

/* Requests of one client that were answered and whose replies are not sent yet. */
struct batch {
        uint64_t begun_ns; /* the receive that brought them */
        unsigned n;
        struct batch_kind {
                uint32_t requests, errors;
                uint64_t bytes;
        } kinds[NBD_N_KINDS];
};

struct export
{
        /* immutable */
        uint64_t number;          /* in the order of their making; never used again */
        char *name, *description; /* description may be NULL */
        size_t name_length;
        struct volume *volume;
        bool read_only, is_default;
        uint64_t size;
        uint32_t preferred_size;

        struct stats stats;

        /* guarded by server.lock */
        unsigned n_clients; /* whoever counts here may use it without the lock */
        bool hidden;
        bool leaving; /* somebody is removing it */
        struct changed *changed;
        size_t n_changed;
};

/* What negotiation found out. */
struct agreement {
        struct export *export;
        bool structured;
        unsigned contexts; /* bits: 1 << enum meta_context, 1 << CONTEXT_CHANGED(i) */
        /* From the root. A merge under clients changes them (nbd_server_merge_layers). */
        unsigned changed_layers[NBD_CHANGED_MAX];
};

/* What a client wants; the export is known by name only. */
struct choice {
        const char *export_name;
        size_t export_name_length;
        bool structured;
        unsigned contexts; /* of the fixed ones */
        unsigned n_changed;
        uint8_t (*changed)[NBD_CHANGED_NAME_MAX + 4]; /* NUL-terminated */
};

struct flight {
        pthread_mutex_t lock;
        pthread_cond_t less;
        /* guarded by lock */
        uint64_t bytes;
        unsigned n_waiting;
        /* immutable after new */
        uint64_t max_bytes, max_bytes_per_client;
};

/* A place on the disk that sendfile sent from: its ticket is kept until the socket let the bytes go. */
struct sent_ticket {
        uint64_t ticket;
        uint64_t stream_end; /* tx.total when its last byte was in the socket */
};
#define MAX_SENT_TICKETS 64u

struct client {
        /* immutable after the thread began */
        struct nbd_server *server;
        int fd;
        uint64_t id;
        uint64_t begun_ms;
        char peer[96];
        bool may_sendfile;
        struct nbd_handoff *handoff; /* it negotiated elsewhere; NULL: here; owned */
        pthread_t thread;

        struct client *before; /* owner: its thread, at its end: the one that left before it */

        /* guarded by server.lock */
        struct client *next, *previous;
        enum nbd_client_state state;
        bool evicted;
        bool handed_over; /* the socket is another process's too: it is not shut, only closed */

        /* written by the client's thread, under server.lock while state changes */
        struct agreement agreement;

        atomic_bool cut; /* its export is being taken away: no more requests */

        /* counters: the client's thread and those that complete its requests */
        atomic_uint_fast64_t requests, errors, bytes_read, bytes_written;

        /* guarded by flight.lock */
        unsigned n_in_flight;
        uint64_t bytes_in_flight;

        struct tx tx;

        /* owner: the client's thread */
        uint8_t *rx;             /* RX_SIZE */
        size_t rx_start, rx_end; /* what is received and not taken yet */
        uint8_t *arena;          /* replies to come, arena_used of arena_size bytes */
        size_t arena_used, arena_size;
        uint8_t *payload; /* for writes too long for rx; payload_size bytes or NULL */
        size_t payload_size;
        struct sent_ticket tickets[MAX_SENT_TICKETS]; /* a ring, oldest at tickets_start */
        unsigned tickets_start, n_tickets;
        atomic_uint_fast64_t receives;
        struct batch batch;
        bool ended; /* no more requests are taken */
};

struct listener {
        int fd;
        char *path;             /* unix */
        uint64_t device, inode; /* of path, when it was made */
        char *uri_authority;    /* TCP: "127.0.0.1:10809" */
};

struct ring;

struct nbd_server {
        /* immutable after start */
        struct nbd_server_options options;
        struct nbd_directory directory; /* what options.directory points to, if it does */
        struct listener listeners[NBD_SERVER_MAX_LISTENERS];
        size_t n_listeners;
        int wake_fd; /* eventfd: stop */
        struct pool *pool;
        struct ring *ring; /* NULL: no io_uring */
        struct tx_writer *writer;
        pthread_t accept_thread; /* if accepting: without sockets to listen on there is none */
        bool started, accepting;

        atomic_bool stopping;
        struct flight flight;

        pthread_mutex_t lock;
        pthread_cond_t fewer; /* a client left the list */
        /* guarded by lock */
        bool stopped;
        struct export **exports; /* oldest first */
        size_t n_exports;
        uint64_t next_export;
        struct volume **volumes;
        size_t n_volumes;
        struct client *clients, *last_client; /* oldest first */
        struct client *finished; /* the last one that left: its thread is not joined yet */
        unsigned n_greeting, n_served;
        uint64_t next_id;
        struct nbd_server_counters counters; /* of clients that are gone, and the server's own */

        pthread_mutex_t log_lock;
        /* guarded by log_lock */
        uint64_t log_second; /* which one it is, by the clock that counts from boot */
        unsigned log_lines;  /* said in it */
        unsigned log_unsaid; /* and not said */

        /* counters of the paths */
        atomic_uint_fast64_t inline_reads, pool_reads, ring_reads, sendfile_reads;
        atomic_uint_fast64_t inline_writes, pool_writes, flushes_asked, flushes_done;
};

/* One command, decoded. */
struct command {
        uint8_t cookie[8];
        uint16_t flags, type;
        uint64_t offset;
        uint32_t length;
};

/* A command that left the client's thread. It is one task of the pool at a time, and in the end one
 * item of the stream; then it frees itself. */
struct request {
        struct pool_task task; /* first: the pool hands it back */
        struct tx_item item;
        struct request *next; /* volume.c */
        struct client *client;
        struct command command;
        uint64_t begun_ns; /* the receive that brought it */
        uint64_t charged;  /* bytes in flight */
        uint64_t done;     /* trim and zero: so far */
        bool later;        /* trim and zero: some of it waits for a snapshot's commit */
        uint8_t *payload;  /* write: the data; owned */
        uint8_t *reply;    /* the reply, if it is longer than small; owned */
        uint8_t small[128];
};

static inline void count(atomic_uint_fast64_t *counter, uint64_t n)
{
        atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t counted(const atomic_uint_fast64_t *counter)
{
        return atomic_load_explicit(counter, memory_order_relaxed);
}

/* server.c */
uint64_t now_ms(void);
void server_log(struct nbd_server *server, enum nbd_log_level level, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
void client_log(struct client *client, enum nbd_log_level level, const char *format, ...)
        __attribute__((format(printf, 3, 4)));
/* Waits until @done says so; false if that took longer than @timeout_ms. */
bool server_wait_fewer_locked(struct nbd_server *server, bool (*done)(const void *),
        const void *arg, unsigned timeout_ms);
/* No more requests are taken from these clients; @both: nor replies sent. @export NULL: of all. */
void server_shut_clients_locked(struct nbd_server *server, const struct export *export, bool both);
/* The client has an export now. -EBUSY: there is no room for it; -ENOENT, -EAGAIN (hidden);
 * -ESTALE: a snapshot that it chose is gone. */
int server_promote(struct client *client, const struct choice *choice);
/* From here on the client's socket is left alone. False: it is on its way out. */
bool server_begin_hand_over(struct client *client);
void client_tell(struct client *client, enum nbd_event event);
/* The last thing that a client's thread does: the client is gone from the list, its socket closed. */
void server_client_gone(struct client *client);

/* exports.c */
/* What there is to say about an export: 0, -ENOENT, -EAGAIN (hidden), -ENOMEM. The empty name may mean
 * the default one. */
int server_export_facts(struct nbd_server *server, const char *name, size_t name_length,
        struct nbd_export_facts *ret);
/* The oldest export younger than number @after, so that a list needs no lock while it is sent.
 * -ENOENT: there is no more. */
int server_export_next(struct nbd_server *server, uint64_t after, uint64_t *ret_number,
        char **ret_name, char **ret_description);
/* What a client is promoted with. */
int server_agree_locked(
        struct nbd_server *server, const struct choice *choice, struct agreement *ret);
void server_exports_done(struct nbd_server *server);

/* greet.c */
enum greeted {
        GREETED_SERVED,      /* it has an export */
        GREETED_HANDED_OVER, /* it is another process's client now */
};
/* Negotiates on the client's socket until it has an export, gives up, breaks the protocol or lets the
 * time run out. An enum greeted, or -errno with a sentence. */
int client_greet(struct client *client, struct error *err);
/* Answers the option of client->handoff. */
int client_greet_handed(struct client *client, struct error *err);

/* client.c */
void *client_thread(void *arg);
/* Room for @size more bytes in the arena, at most INLINE_MAX and some; sends what is in it first, if it
 * must. NULL without memory. */
uint8_t *arena_reserve(struct client *client, size_t size);
void arena_add(struct client *client, size_t size); /* so many of the reserved bytes are used */
void arena_flush(struct client *client);
/* Answers at once, into the arena. */
void client_answer(struct client *client, const struct command *command, int r);

/* stats.c */
uint64_t now_ns(void);
/* A request was answered into the arena or the socket, on the client's thread. */
void stats_add(struct client *client, const struct command *command, bool failed);
/* Their replies are on their way. */
void stats_settle(struct client *client);
/* One that was answered elsewhere. */
void stats_answered(const struct request *request, bool failed);
void stats_get(const struct stats *stats, struct nbd_export_stats *ret);

/* error numbers: errors.c. @r: 0 or -errno. */
enum nbd_error nbd_error_from(int r);
const char *nbd_error_sentence(enum nbd_error error);

/* reply.c: replies as bytes. Each answers how long it is; @out has room. */
#define REPLY_ERROR_MAX 128u
/* Success or error without data; structured where the command and the client want it so. */
size_t reply_plain(uint8_t *out, const struct client *client, const struct command *command,
        enum nbd_error error);
size_t reply_error_offset(
        uint8_t *out, const struct command *command, enum nbd_error error, uint64_t offset);
size_t reply_data_header(
        uint8_t *out, const struct command *command, uint64_t offset, uint32_t length, bool done);
size_t reply_hole(
        uint8_t *out, const struct command *command, uint64_t offset, uint32_t length, bool done);
size_t reply_simple_header(uint8_t *out, const struct command *command, enum nbd_error error);

/* read.c: the whole reply to a read. */
/* The room that it may take at most. */
size_t read_reply_bound(const struct client *client, uint32_t length);
/* Builds it in @out. Answers its length, or -errno (-EAGAIN with CHAIN_NOWAIT) and where it failed. */
ssize_t read_reply_build(const struct client *client, const struct command *command, unsigned flags,
        uint8_t *out, uint64_t *ret_failed_at);

/* sendfile.c: false: this read does not suit it, nothing was done. */
bool client_sendfile(struct client *client, const struct command *command);
/* Gives back the tickets of bytes that have left the socket. */
void client_settle_tickets(struct client *client);
/* All of them; the socket has been shut, or is idle. */
void client_drop_tickets(struct client *client);

/* status.c: the whole reply to a block status. */
#define STATUS_MAX_EXTENTS 4096u
#define STATUS_REPLY_BOUND                                                                         \
        (MAX_CONTEXTS *                                                                            \
                (sizeof(struct nbd_wire_chunk) + sizeof(be32) +                                    \
                        STATUS_MAX_EXTENTS * sizeof(struct nbd_wire_extent)))
ssize_t status_reply_build(
        const struct client *client, const struct command *command, unsigned flags, uint8_t *out);

/* flight.c */
void flight_init(struct flight *flight, uint64_t max_bytes, uint64_t max_bytes_per_client);
void flight_done(struct flight *flight);
/* Waits for room. Only the client's thread, with nothing of its own unsent. */
void flight_enter(struct client *client, uint64_t bytes);
/* True if there is room at once. */
bool flight_try_enter(struct client *client, uint64_t bytes);
void flight_leave(struct client *client, uint64_t bytes);
/* Waits until the client has nothing in flight. */
void flight_wait_none(struct client *client);

/* work.c */
/* Starts @command away from the client's thread: on the pool, or the ring. @payload (a write's data)
 * is taken over. Sends what is in the arena before it waits for room. */
void client_start_work(struct client *client, const struct command *command, uint8_t *payload);
/* Ends a request with this result; it sends its reply and frees itself. Any thread. */
void request_answer(struct request *request, int r);
/* Ends a read whose whole reply, so long, is in request->reply. Any thread. */
void request_answer_read(struct request *request, size_t length);
/* Runs a read on this thread, which may block. */
void request_read(struct request *request);

/* volume.c */
void volume_init(struct volume *volume, struct nbd_server *server, struct chain *chain);
/* Waits for a flush that nobody waits for any more. */
void volume_done(struct volume *volume);
/* The request is answered by the next flush that begins. */
void volume_flush(struct volume *volume, struct request *request);
/* @length bytes were written. True: the bound is passed, so writes had better not be inline. */
void volume_wrote(struct volume *volume, uint64_t length);
bool volume_is_full(const struct volume *volume);

/* ring.c */
/* -ENOSYS, -EPERM ...: the system lets us have none. */
int ring_new(struct nbd_server *server, struct ring **ret);
struct ring *ring_free(struct ring *ring); /* waits for what is under way; NULL is fine */
/* Reads for @request through the ring. False: it does not suit, nothing was done. */
bool ring_read(struct ring *ring, struct request *request);

/* listen.c */
int listener_open_unix(struct listener *ret, const char *path, struct error *err);
/* Adds to the @n of at most @max listeners. */
int listener_open_tcp(struct listener *listeners, size_t *n, size_t max, const char *host,
        uint16_t port, struct error *err);
int listener_from_fd(struct listener *ret, int fd, struct error *err);
void listener_close(struct listener *listener);
/* Checks and prepares a connected socket; fills in peer and may_sendfile. */
int socket_prepare(int fd, char *peer, size_t peer_size, bool *ret_may_sendfile, struct error *err);
