/* SPDX-License-Identifier: Apache-2.0 */
/* server.h - an NBD server over chains: listens, negotiates, and serves many clients at once.
 *
 *      nbd_server_new -> listen_* (any number) -> start -> ... -> stop -> free
 *                     \-> add_export, remove_export: at any time before stop
 *
 * Fixed newstyle only. No TLS yet, so TCP listens on loopback addresses only.
 * Spec: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 *
 * Units      bytes; times in milliseconds where the name says _ms.
 * Ownership  nbd_server_new hands out, nbd_server_free ends. Strings are copied. The chains are the
 *            caller's: one lives at least until the last export of it was removed, or
 *            nbd_server_stop has returned, and is closed after.
 * Errors     0 or -errno with one sentence. What goes wrong with one client concerns that client
 *            and the log, never the caller.
 * Threads    new, listen_*, start, stop and free belong to one thread (stop may be any). What is about
 *            exports, and the getters, may be called from any thread between new and stop, the
 *            getters until free. The server's own threads block every signal.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "chain/chain.h"
#include "nbd/server/handoff.h"

#define NBD_SERVER_MAX_EXPORTS   65536u
#define NBD_SERVER_MAX_LISTENERS 64u
#define NBD_EXPORT_NAME_MAX      4096u /* what the protocol lets a name be */
#define NBD_EXPORT_MAX_CHANGED   4096u

struct nbd_server;

/* What negotiation tells of an export. */
struct nbd_export_facts {
        char *name;        /* as the export calls itself; a client may have asked by another name */
        char *description; /* for people, or NULL */
        uint64_t size;
        uint32_t preferred_size; /* a power of two */
        bool read_only;
        char **changed; /* names of n_changed snapshots: vhdd:changed:NAME */
        size_t n_changed;
};
void nbd_export_facts_done(struct nbd_export_facts *facts); /* frees what is in it */

struct nbd_export_list {
        struct nbd_listed {
                char *name, *description; /* description may be NULL */
        } * entries;
        size_t n_entries;
};
void nbd_export_list_done(struct nbd_export_list *list); /* frees what is in it */

/* Where the exports are when they are not this server's: it greets, and hands its clients over to
 * whoever serves them. All are required; each runs on the thread of the client that asks, so it may
 * block for as long as a client may be kept waiting. Names are text, at most NBD_HANDOFF_NAME_MAX bytes
 * long, without control characters; anything else is told not to exist without asking.
 * What is answered is the server's, which frees it. What fails is told to the client in our own words,
 * and logged with err's. */
struct nbd_directory {
        /* -ENOENT: no such export; -EAGAIN: it takes no clients now. */
        int (*lookup)(
                void *opaque, const char *name, struct nbd_export_facts *ret, struct error *err);
        int (*list)(void *opaque, struct nbd_export_list *ret, struct error *err);
        /* The client has chosen; the option that did so is to be answered by whoever gets it
         * (nbd_server_serve_handoff). @fd stays the server's, which closes it and says nothing more on
         * it: pass on a copy, as SCM_RIGHTS does. After a failure the client is refused; but
         * -ETIMEDOUT and -EHOSTDOWN say that nobody knows whether it was taken, and then it is left
         * without a word. */
        int (*hand_over)(
                void *opaque, int fd, const struct nbd_handoff *handoff, struct error *err);
        void *opaque;
};

enum nbd_log_level {
        NBD_LOG_ERROR, /* something is wrong with us or with the disk */
        NBD_LOG_INFO,  /* a client came or went; a client broke the protocol */
        NBD_LOG_DEBUG, /* what a client negotiated, requests that failed */
};

enum nbd_client_state { NBD_CLIENT_GREETING, NBD_CLIENT_SERVED };

struct nbd_client_info {
        uint64_t id;   /* 1 upward, never used again */
        char peer[96]; /* "unix:uid=0,pid=123", "tcp:127.0.0.1:40000" */
        char export_name
                [512]; /* cut where longer (the daemon has none that is); "" while greeting */
        enum nbd_client_state state;
        bool read_only;
        bool structured;           /* structured replies were negotiated */
        uint64_t age_ms;           /* since it connected */
        uint64_t requests, errors; /* commands taken, and those answered with an error */
        uint64_t bytes_read, bytes_written;
        uint64_t bytes_in_flight; /* of requests that wait for the disk or for the client */
};

enum nbd_event {
        NBD_EVENT_CONNECTED, /* a socket was accepted */
        NBD_EVENT_SERVED,    /* it negotiated and has an export now */
        NBD_EVENT_GONE,      /* its socket is closed; the last event of a client */
};

struct nbd_server_options {
        unsigned threads;              /* at most so many that may block; 0: 16 */
        unsigned max_clients;          /* that have an export; 0: 1024 */
        unsigned max_greeting;         /* that do not have one yet; 0: 64 */
        unsigned handshake_timeout_ms; /* from connecting to having an export; 0: 10,000 */
        uint64_t max_bytes_per_client; /* of requests in flight; 0: 64 MiB */
        uint64_t max_bytes;            /* of all clients; 0: 512 MiB. A client that has nothing in
                                        * flight may always have one request. */
        uint64_t max_unsynced_bytes;   /* per chain: from here on writes leave the receive thread,
                                        * and a flush is begun; 0: 256 MiB */
        bool no_io_uring;              /* cold reads go to the threads */
        bool no_sendfile;              /* all reads are copied */
        /* Optional; copied. With it the server has no exports of its own. */
        const struct nbd_directory *directory;
        /* Optional. From any of the server's threads; must not block for long nor call back. */
        void (*log)(void *opaque, enum nbd_log_level level, const char *sentence);
        /* Optional. As log. */
        void (*event)(void *opaque, enum nbd_event event, const struct nbd_client_info *client);
        void *opaque;
};

/* A snapshot: an export tells clients what changed since then, by the meta context
 * vhdd:changed:NAME. */
struct nbd_changed {
        const char *name;  /* UTF-8, 1 to NBD_CHANGED_NAME_MAX bytes, no control characters */
        const char *layer; /* path of the image that it froze; a layer of the export's chain */
};

struct nbd_export_options {
        const char *name;        /* UTF-8, at most NBD_EXPORT_NAME_MAX bytes; "" is a name too */
        const char *description; /* for people; NULL: none */
        struct chain *chain;     /* several exports may share one */
        bool read_only;          /* also over a chain that is writable */
        bool is_default;         /* the empty name means this one too (one at most) */
        const struct nbd_changed *changed; /* n_changed of them */
        size_t n_changed;
};

int nbd_server_new(
        const struct nbd_server_options *options, struct nbd_server **ret, struct error *err);

/* Clients get it from here on.
 *   -EEXIST  the name is taken    -EINVAL  a name is too long or no text
 *   -ENOENT  the chain has no layer that @options->changed names */
int nbd_server_add_export(
        struct nbd_server *server, const struct nbd_export_options *options, struct error *err);

/* No client gets it any more (they are told that it does not exist), those that have it leave, and then
 * it is gone, with its chain out of use here unless another export shares it.
 * @force: they are cut off; requests that were received are finished, and their replies sent if they are
 * taken within @timeout_ms. Without it their leaving is waited for as long; then
 *   -EBUSY   somebody has it still: it stays, and takes clients again. Without @force and @timeout_ms also one who
 *            was handed over (nbd_server_serve_handoff) for it, and has not got it yet
 *   -ENOENT  no such export. */
int nbd_server_remove_export(struct nbd_server *server, const char *name, bool force,
        unsigned timeout_ms, struct error *err);

/* A hidden export takes no new clients (they are told to come back), and is not listed; those that have
 * it stay. -ENOENT. */
int nbd_server_hide_export(
        struct nbd_server *server, const char *name, bool hidden, struct error *err);

/* Clients that come from now on are offered these snapshots instead; those that are there keep what
 * they chose. Not while layers are pushed on the chain. -ENOENT, -EINVAL as add_export. */
int nbd_server_set_changed(struct nbd_server *server, const char *name,
        const struct nbd_changed *changed, size_t n_changed, struct error *err);

/* Layers @first .. @last of @chain are about to leave it, their content in the one below them or above:
 * what is known as a layer's number, also with clients that are there, is as it will be. Before they leave,
 * so that for a moment more looks changed, never less. */
void nbd_server_merge_layers(
        struct nbd_server *server, const struct chain *chain, unsigned first, unsigned last);

/* How many clients have it, or -ENOENT. */
int nbd_server_export_clients(struct nbd_server *server, const char *name);

/* Before start. The socket is made with the umask's mode. One left by a dead server is replaced;
 * -EADDRINUSE: somebody listens there. -EEXIST: something that is no socket is there.
 * nbd_server_stop removes it, if it is still ours. */
int nbd_server_listen_unix(struct nbd_server *server, const char *path, struct error *err);
/* Before start. Listens on every address of @host; each must be a loopback address, because there is
 * no TLS: else -EACCES. @port 0: the system chooses one. */
int nbd_server_listen_tcp(
        struct nbd_server *server, const char *host, uint16_t port, struct error *err);
/* Before start. A socket that listens already (socket activation); taken over on success. */
int nbd_server_listen_fd(struct nbd_server *server, int fd, struct error *err);

size_t nbd_server_n_listeners(const struct nbd_server *server);
/* The NBD URI of an export at the @index-th listener, for people to copy: allocated, free() it. NULL:
 * no memory. Until stop. */
char *nbd_server_uri(const struct nbd_server *server, size_t index, const char *export_name);

/* Clients are answered from here on. On failure nothing runs. */
int nbd_server_start(struct nbd_server *server, struct error *err);

/* Serves one socket that is connected already, as if it had been accepted; after start. A stream
 * socket of the unix or TCP family, else -EINVAL. The socket is taken over on success. */
int nbd_server_serve_fd(struct nbd_server *server, int fd, struct error *err);

/* The same for a client that negotiated with another process, up to the option that chooses an
 * export: that one is answered here, also if it is refused, after which the client is gone. -EINVAL: a
 * field of @handoff is not what a greeter of ours sends. */
int nbd_server_serve_handoff(
        struct nbd_server *server, int fd, const struct nbd_handoff *handoff, struct error *err);

/* Takes no more clients and no more requests, finishes those in flight and sends their replies
 * (whoever has not taken them after @timeout_ms is cut off), flushes every chain, removes the unix
 * sockets. The result is that of the flushes: the first that failed. Calling it again, or on a
 * server that never started, only flushes. */
int nbd_server_stop(struct nbd_server *server, unsigned timeout_ms, struct error *err);

/* Stops it first, with a short time, if that was not done. NULL is fine; always returns NULL. */
struct nbd_server *nbd_server_free(struct nbd_server *server);
DEFINE_CLEANUP(struct nbd_server *, nbd_server_free)

/* Counters since start, for people and tests. */
struct nbd_server_counters {
        uint64_t accepted;         /* sockets */
        uint64_t refused;          /* turned away for want of room */
        uint64_t failed_greetings; /* ended before they had an export, timeouts among them */
        uint64_t served;           /* got an export */
        uint64_t handed_over;      /* got one elsewhere */
        uint64_t requests, errors;
        uint64_t bytes_read, bytes_written;
        uint64_t receives, sends; /* system calls on clients' sockets */
        uint64_t inline_reads, pool_reads, ring_reads, sendfile_reads;
        uint64_t inline_writes, pool_writes;
        uint64_t flushes_asked, flushes_done; /* the difference was grouped */
        uint64_t clients, greeting;           /* now */
        bool io_uring;                        /* in use */
};
void nbd_server_counters_get(struct nbd_server *server, struct nbd_server_counters *ret);

/* What was asked of one export since it was added, for metrics. */
enum nbd_request_kind {
        NBD_KIND_READ,
        NBD_KIND_WRITE,
        NBD_KIND_FLUSH,
        NBD_KIND_TRIM,
        NBD_KIND_CACHE,
        NBD_KIND_WRITE_ZEROES,
        NBD_KIND_BLOCK_STATUS,
        NBD_N_KINDS,
};
const char *nbd_request_kind_to_string(enum nbd_request_kind kind); /* "read", "write-zeroes" */

/* Latency is from the receive that brought the request until its reply is on its way: handed to the
 * socket or, if that is full, to its queue. Requests that came in one receive and were answered in one
 * send have one latency, that of the send's end: what a client sees, and one look at the clock for all
 * of them. Bucket i counts those below 2^i microseconds and not below half of that; the last one
 * everything from 2^(NBD_LATENCY_BUCKETS - 2) (16 s) on. */
#define NBD_LATENCY_BUCKETS 26u
struct nbd_export_stats {
        struct nbd_kind_stats {
                uint64_t requests;
                uint64_t errors;     /* of them, answered with one */
                uint64_t bytes;      /* that successful ones were about */
                uint64_t latency_us; /* sum */
                uint64_t latency[NBD_LATENCY_BUCKETS];
        } kinds[NBD_N_KINDS];
};
/* The sum over all exports of @chain that there are. */
void nbd_server_chain_stats_get(
        struct nbd_server *server, const struct chain *chain, struct nbd_export_stats *ret);
/* -ENOENT: no such export. */
int nbd_server_export_stats_get(
        struct nbd_server *server, const char *name, struct nbd_export_stats *ret);

/* Copies up to @max clients, oldest first; answers how many there are. */
size_t nbd_server_clients_get(struct nbd_server *server, struct nbd_client_info *ret, size_t max);
