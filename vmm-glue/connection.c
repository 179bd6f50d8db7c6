/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/connection.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/arith.h"
#include "vhdd/control/client.h"
#include "vhdd/control/method.h"
#include "vmm-glue/log.h"

#define RETRY_FIRST_US UINT64_C(100000)
#define RETRY_MOST_US  UINT64_C(2000000)
/* A socket that a service manager holds open takes connections for a daemon that is not there yet; and one that
 * is busy answers late. Nothing else is done meanwhile: so a first answer is not waited for long, and then there
 * is time for everything else before the next try, which waits for longer. */
#define GREETING_FIRST_MS 1000
#define GREETING_MOST_MS  8000
#define ANSWER_MS         60000

struct connection {
        sd_event *event;
        sd_event_source *io, *retry, *pending;
        struct control *control; /* NULL: not connected */
        char *path;
        struct connection_callbacks callbacks;
        uint64_t pause_us;
        int greeting_ms;
        bool was_told; /* that there is no daemon */
};

static void retry_later(struct connection *connection)
{
        sd_event_source_set_time_relative(connection->retry, connection->pause_us);
        sd_event_source_set_enabled(connection->retry, SD_EVENT_ONESHOT);
        connection->pause_us *= 2;
        if (connection->pause_us > RETRY_MOST_US)
                connection->pause_us = RETRY_MOST_US;
}

static void disconnect(struct connection *connection)
{
        if (!connection->control)
                return;
        connection->io = sd_event_source_disable_unref(connection->io);
        sd_event_source_set_enabled(connection->pending, SD_EVENT_OFF);
        connection->control = control_close(connection->control);
        if (connection->callbacks.down)
                connection->callbacks.down(connection->callbacks.opaque);
}

static void lose(struct connection *connection, const struct error *err)
{
        if (!connection->control)
                return;
        if (err)
                log_info("%s", err->message);
        disconnect(connection);
        retry_later(connection);
}

/* Everything that has come, also what came while an answer was awaited. */
static void take_notifications(struct connection *connection)
{
        while (connection->control) {
                int fds[CONTROL_MAX_DESCRIPTORS];
                json_auto_t *message = NULL;
                struct error err = ERROR_INIT;
                size_t n_fds = 0;
                const char *method;
                int r = control_next(connection->control, 0, &message, fds, &n_fds, &err);

                if (r == -ETIMEDOUT)
                        return;
                if (r < 0) {
                        lose(connection, &err);
                        return;
                }
                method = json_string_value(json_object_get(message, "method"));
                connection->callbacks.notification(connection->callbacks.opaque,
                        method ? method : "", json_object_get(message, "params"), fds, n_fds);
        }
}

static int on_pending(sd_event_source *source, void *opaque)
{
        struct connection *connection = opaque;

        if (connection->control && control_is_silent(connection->control))
                lose(connection, NULL);
        else
                take_notifications(connection);
        return 0;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
        take_notifications(opaque);
        return 0;
}

static int try_connect(struct connection *connection, struct error *err)
{
        int r = control_connect(connection->path, &connection->control, err);

        if (r < 0)
                return r;
        r = sd_event_add_io(connection->event, &connection->io, control_fd(connection->control),
                EPOLLIN, on_io, connection);
        if (r < 0) {
                connection->control = control_close(connection->control);
                return fail_os(err, -r, "cannot watch the daemon's connection");
        }
        control_set_timeout(connection->control, connection->greeting_ms);
        r = connection->callbacks.up(connection->callbacks.opaque, connection, err);
        if (connection->control && control_is_silent(connection->control)) {
                connection->pause_us = 2000 * (uint64_t)connection->greeting_ms;
                connection->greeting_ms = MIN_OF(2 * connection->greeting_ms, GREETING_MOST_MS);
        }
        if (r < 0 && connection->control)
                disconnect(connection);
        if (connection->control)
                control_set_timeout(connection->control, ANSWER_MS);
        return r;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct connection *connection = opaque;
        struct error err = ERROR_INIT;

        if (connection->control)
                return 0;
        if (try_connect(connection, &err) == 0) {
                connection->pause_us = RETRY_FIRST_US;
                connection->greeting_ms = GREETING_FIRST_MS;
                connection->was_told = false;
                return 0;
        }
        if (!connection->was_told)
                log_error(&err);
        connection->was_told = true;
        retry_later(connection);
        return 0;
}

int connection_new(sd_event *event, const char *control,
        const struct connection_callbacks *callbacks, struct connection **ret, struct error *err)
{
        _cleanup_(connection_freep) struct connection *connection = calloc(1, sizeof(*connection));
        int r;

        if (!connection || !(connection->path = strdup(control)))
                return fail(err, ENOMEM, "no memory for a connection");
        connection->event = sd_event_ref(event);
        connection->callbacks = *callbacks;
        connection->pause_us = RETRY_FIRST_US;
        connection->greeting_ms = GREETING_FIRST_MS;
        r = sd_event_add_time_relative(
                event, &connection->retry, CLOCK_MONOTONIC, 0, 1000, on_retry, connection);
        if (r >= 0)
                r = sd_event_add_defer(event, &connection->pending, on_pending, connection);
        if (r >= 0)
                r = sd_event_source_set_enabled(connection->pending, SD_EVENT_OFF);
        if (r < 0)
                return fail_os(err, -r, "cannot watch the daemon's connection");
        *ret = TAKE_PTR(connection);
        return 0;
}

struct connection *connection_free(struct connection *connection)
{
        if (!connection)
                return NULL;
        sd_event_source_disable_unref(connection->io);
        sd_event_source_disable_unref(connection->retry);
        sd_event_source_disable_unref(connection->pending);
        control_close(connection->control);
        sd_event_unref(connection->event);
        free(connection->path);
        free(connection);
        return NULL;
}

bool connection_is_up(const struct connection *connection)
{
        return connection->control != NULL;
}

static bool is_connections_end(int r)
{
        return r == -ECONNRESET || r == -EPIPE || r == -EPROTO;
}

int connection_call(struct connection *connection, const char *method, json_t *params, json_t **ret,
        struct error *err)
{
        struct error why = ERROR_INIT;
        json_t *answer = NULL;
        int r;

        if (!connection->control) {
                json_decref(params);
                return fail(err, ENOTCONN, "the daemon at '%s' is not there just now",
                        connection->path);
        }
        r = control_call(connection->control, method, params, &answer, &why);
        if (r < 0) {
                if (err)
                        *err = why;
                /* Not from in here: whoever calls may be in the middle of something. */
                if (control_is_silent(connection->control) || is_connections_end(r))
                        sd_event_source_set_enabled(connection->pending, SD_EVENT_ONESHOT);
                return r;
        }
        if (ret)
                *ret = answer;
        else
                json_decref(answer);
        sd_event_source_set_enabled(connection->pending, SD_EVENT_ONESHOT);
        return 0;
}

void connection_again(struct connection *connection)
{
        lose(connection, NULL);
}
