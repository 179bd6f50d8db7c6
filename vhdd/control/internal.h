/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what server.c, connection.c and request.c share.
 *
 * Ownership  a client is counted: its thread holds one reference, whoever speaks to it later another.
 * Errors     as each function says.
 * Threads    server->lock guards the list of clients and may be held while a client->lock is taken,
 *            never the other way round. The receiving half of a client belongs to its thread.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "vhdd/control/names.h"
#include "vhdd/control/schema.h"
#include "vhdd/control/server.h"
#include "vhdd/control/socket.h"
#include "vhdd/control/wire.h"

/* A line on its way out. */
struct outgoing {
        struct outgoing *next;
        char *data;
        size_t length, sent;
        bool is_event; /* counts against CONTROL_MAX_BACKLOG */
        int fds[CONTROL_MAX_DESCRIPTORS];
        size_t n_fds;
};

struct control_client {
        /* immutable */
        struct control_server *server; /* not looked at after the thread has ended */
        struct peer peer;
        int fd;   /* wire's, valid until the thread ends */
        int wake; /* eventfd: there is something to send */
        atomic_uint n_refs;
        /* guarded by server->lock */
        struct control_client *next;
        /* owner: the client's thread */
        struct wire *wire;
        bool closing; /* answer what was said, then end */
        /* guarded by lock */
        pthread_mutex_t lock;
        bool ended;
        struct outgoing *first, **last;
        size_t n_event_bytes, n_bytes;
        bool subscribed;
        json_t *types;               /* of events; NULL: all */
        char vm[NAME_MAX_BYTES + 1]; /* "": all */
        void (*gone)(void *opaque);
        void *opaque;
};

struct control_server {
        /* immutable while it runs */
        struct control_options options;
        struct control_schema *schema;
        const struct method **methods; /* sorted by name */
        size_t n_methods;
        gid_t group;
        char *path; /* to be removed at the end, or NULL */
        int listen_fd, stop_fd;
        pthread_t thread;
        /* guarded by lock */
        pthread_mutex_t lock;
        pthread_cond_t changed;
        struct control_client *clients;
        unsigned n_clients;
        bool stopping, stopped;
};

void control_log(const struct control_server *server, const char *format, ...)
        __attribute__((format(printf, 2, 3)));

/* connection.c: a new client on @fd (taken over on success), in no list yet; its thread's body, which
 * drops the reference. */
struct control_client *control_client_new(struct control_server *server, int fd);
void *control_client_run(void *client);
/* Takes @message over. -EPIPE it has ended, or fell too far behind and was dropped. */
int control_client_send(struct control_client *client, json_t *message, bool is_event,
        const int *fds, size_t n_fds);
int control_client_send_text(struct control_client *client, const char *text, size_t length,
        bool is_event, const int *fds, size_t n_fds);

/* request.c: one line; answers it. @line is changed. */
void control_request(struct control_client *client, char *line, size_t length);
/* An error without a request. Sets client->closing if @close. */
void control_refuse(struct control_client *client, int code, const struct error *err, bool close);
json_t *control_error_message(const json_t *id, int code, const struct error *err);

/* server.c */
const struct method *control_method_find(const struct control_server *server, const char *name);
