/* SPDX-License-Identifier: Apache-2.0 */
/* server.h - the control API's end in the daemon: JSON-RPC 2.0, one object a line, on a unix socket.
 *
 * Who may speak is SO_PEERCRED's word: root, the daemon's own user, and the members of its group. A
 * client costs a thread, and memory with a bound: a line of at most CONTROL_MAX_LINE, and at most
 * CONTROL_MAX_BACKLOG of events that it has not read, beyond which it is dropped. Params are checked
 * against schema.json before a method sees them. The server itself answers rpc.schema, rpc.methods
 * and events.subscribe.
 *
 * A message that comes with descriptors (SCM_RIGHTS) says how many in its member "descriptors".
 *
 * Units      bytes.
 * Ownership  control_server_new hands out, control_server_stop and control_server_free end. Tables
 *            live as long as the server.
 * Errors     0 or -errno with one sentence.
 * Threads    control_server_publish and control_client_* from any thread; starting and stopping
 *            belong to one.
 * Spec       JSON-RPC 2.0. Batches are refused: a client sends its requests a line each.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "vhdd/control/method.h"

#define CONTROL_MAX_LINE    (1u << 20)
#define CONTROL_MAX_BACKLOG (1u << 20)
#define CONTROL_MAX_CLIENTS 256u

enum control_code { /* JSON-RPC's, and our one */
        CONTROL_PARSE_ERROR = -32700,
        CONTROL_INVALID_REQUEST = -32600,
        CONTROL_NO_METHOD = -32601,
        CONTROL_INVALID_PARAMS = -32602,
        CONTROL_FAILED = -32000, /* data.code is the errno's name */
};

struct control_server;

struct control_options {
        const char *path;  /* of the socket; NULL with listen_fd */
        int listen_fd;     /* a listening socket that there is, taken over in any case; -1: none */
        const char *group; /* may speak too; NULL: "vhdd", if there is such a group */
        struct broker *broker;
        const struct method *const *tables; /* ended by NULL */
        /* Optional: one line for the log, on any thread, must not block. */
        void (*log)(void *opaque, const char *sentence);
        void *opaque;
};

/* Makes the socket (0660, root:group) and answers from now on. A socket file that nobody listens on is
 * replaced. *ret is set before the first method can run.   -EADDRINUSE somebody does listen there   -EINVAL a table disagrees with the schema
 * -ENOENT there is no such group */
int control_server_new(
        const struct control_options *options, struct control_server **ret, struct error *err);

/* No new clients and no new requests; waits until the running ones have answered, @timeout_ms at most
 * (what runs longer goes on, and control_server_free waits for it). May be called by no method. */
void control_server_stop(struct control_server *server, unsigned timeout_ms);

/* Stops; removes the socket file that it made. NULL is fine; always returns NULL. */
struct control_server *control_server_free(struct control_server *server);
DEFINE_CLEANUP(struct control_server *, control_server_free)

/* To every subscriber whose filter lets it through: {"jsonrpc":"2.0","method":"event","params":EVENT}.
 * @event is an object with "type", and "vm" (a name) where it is about one; "time" is added. The
 * reference is taken over. Never blocks: a subscriber that has CONTROL_MAX_BACKLOG unread is dropped. */
void control_server_publish(struct control_server *server, json_t *event);

/* The listening socket, for a daemon that executes itself anew and keeps it. */
int control_server_fd(const struct control_server *server);
unsigned control_server_n_clients(struct control_server *server);

/* --- one connection, for agents --- */

struct control_client *control_client_ref(struct control_client *client);
struct control_client *control_client_unref(struct control_client *client);
DEFINE_CLEANUP(struct control_client *, control_client_unref)

/* A notification of the daemon's to this client, with descriptors (the caller's own; they are
 * duplicated). @params is taken over. Never blocks.   -EPIPE it is gone or was dropped */
int control_client_notify(struct control_client *client, const char *method, json_t *params,
        const int *fds, size_t n_fds, struct error *err);

/* @gone is called once, on the connection's thread, when the connection has ended (at once if it has
 * already). One per client; NULL takes it back. */
void control_client_on_gone(
        struct control_client *client, void (*gone)(void *opaque), void *opaque);
