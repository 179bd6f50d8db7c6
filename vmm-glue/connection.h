/* SPDX-License-Identifier: Apache-2.0 */
/* connection.h - a connection to the daemon's control socket that comes back after the daemon was restarted.
 *
 * Units      none.
 * Ownership  connection_new hands out, connection_free ends. JSON in a callback is lent; descriptors are the
 *            callback's to close.
 * Errors     0 or -errno with one sentence. -ENOTCONN: there is no daemon just now.
 *            -ETIMEDOUT: it listens and says nothing; the connection ends.
 * Threads    all on the event loop's thread. connection_call waits for the answer; callbacks come from the
 *            loop only.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "base/error.h"

struct connection;

struct connection_callbacks {
        /* Required. There is a connection: time to register. A failure ends it, and it is tried again. */
        int (*up)(void *opaque, struct connection *connection, struct error *err);
        /* Optional. It is gone; it is tried again. */
        void (*down)(void *opaque);
        /* Required. {"method", "params"}. */
        void (*notification)(
                void *opaque, const char *method, const json_t *params, int *fds, size_t n_fds);
        void *opaque;
};

int connection_new(sd_event *event, const char *control,
        const struct connection_callbacks *callbacks, struct connection **ret, struct error *err);
struct connection *connection_free(
        struct connection *connection); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct connection *, connection_free)

bool connection_is_up(const struct connection *connection);
/* Takes @params (NULL: none) over. @ret may be NULL. */
int connection_call(struct connection *connection, const char *method, json_t *params, json_t **ret,
        struct error *err);
/* Ends the connection; a new one is made soon. */
void connection_again(struct connection *connection);
