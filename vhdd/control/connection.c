/* SPDX-License-Identifier: Apache-2.0 */
/* connection.c - one client of the control socket: its thread, and what waits to be sent to it.
 *
 * Anybody may append to the queue; whoever appends to an empty one tries to send at once, so that an
 * event reaches a client whose thread is inside a long method. What the socket does not take is the
 * thread's to send.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "vhdd/control/internal.h"

/* How long a client that leaves may take to read its last answers. */
#define LINGER_MS 2000

struct control_client *control_client_new(struct control_server *server, int fd)
{
        struct control_client *client = calloc(1, sizeof(*client));

        if (!client)
                return NULL;
        client->server = server;
        client->fd = fd;
        client->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        client->last = &client->first;
        atomic_init(&client->n_refs, 1);
        pthread_mutex_init(&client->lock, NULL);
        client->wire = client->wake < 0 ? NULL : wire_new(fd, CONTROL_MAX_LINE);
        if (!client->wire) {
                control_client_unref(client);
                return NULL;
        }
        return client;
}

struct control_client *control_client_ref(struct control_client *client)
{
        atomic_fetch_add(&client->n_refs, 1);
        return client;
}

static void free_outgoing(struct outgoing *out)
{
        for (size_t i = 0; i < out->n_fds; i++)
                close(out->fds[i]);
        free(out->data);
        free(out);
}

struct control_client *control_client_unref(struct control_client *client)
{
        if (!client || atomic_fetch_sub(&client->n_refs, 1) != 1)
                return NULL;
        while (client->first) {
                struct outgoing *out = client->first;

                client->first = out->next;
                free_outgoing(out);
        }
        if (client->wake >= 0)
                close(client->wake);
        json_decref(client->types);
        pthread_mutex_destroy(&client->lock);
        free(client);
        return NULL;
}

static struct outgoing *new_outgoing(
        const char *text, size_t length, bool is_event, const int *fds, size_t n_fds)
{
        struct outgoing *out = calloc(1, sizeof(*out));

        if (!out)
                return NULL;
        out->data = malloc(length + 1);
        out->length = length + 1;
        out->is_event = is_event;
        for (size_t i = 0; out->data && i < n_fds; i++) {
                out->fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
                if (out->fds[i] < 0) {
                        free_outgoing(out);
                        return NULL;
                }
                out->n_fds++;
        }
        if (!out->data) {
                free_outgoing(out);
                return NULL;
        }
        memcpy(out->data, text, length);
        out->data[length] = '\n';
        return out;
}

/* Sends until the queue is empty (0) or the socket takes no more (-EAGAIN). */
static int flush_locked(struct control_client *client)
{
        while (client->first) {
                struct outgoing *out = client->first;
                long n = wire_send(client->fd, out->data + out->sent, out->length - out->sent,
                        out->fds, out->n_fds, MSG_DONTWAIT);

                if (n < 0)
                        return (int)n;
                for (size_t i = 0; i < out->n_fds; i++)
                        close(out->fds[i]);
                out->n_fds = 0;
                out->sent += (size_t)n;
                client->n_bytes -= (size_t)n;
                if (out->is_event)
                        client->n_event_bytes -= (size_t)n;
                if (out->sent < out->length)
                        continue;
                client->first = out->next;
                if (!client->first)
                        client->last = &client->first;
                free_outgoing(out);
        }
        return 0;
}

static void wake_up(struct control_client *client)
{
        uint64_t one = 1;
        ssize_t n = write(client->wake, &one, sizeof(one));

        (void)n; /* EAGAIN: it is awake already */
}

/* No further word to or from it. Its thread sees the end of the stream and ends. */
static void drop_locked(struct control_client *client)
{
        client->ended = true;
        shutdown(client->fd, SHUT_RDWR);
        wake_up(client);
}

int control_client_send_text(struct control_client *client, const char *text, size_t length,
        bool is_event, const int *fds, size_t n_fds)
{
        struct outgoing *out = new_outgoing(text, length, is_event, fds, n_fds);
        bool was_empty;
        int r;

        if (!out)
                return -ENOMEM;
        MUTEX_GUARD(&client->lock);
        if (client->ended) {
                free_outgoing(out);
                return -EPIPE;
        }
        if (is_event && client->n_event_bytes + out->length > CONTROL_MAX_BACKLOG) {
                control_log(client->server,
                        "process %d does not read the events that it subscribed to: dropped",
                        (int)client->peer.pid);
                free_outgoing(out);
                drop_locked(client);
                return -EPIPE;
        }
        was_empty = !client->first;
        *client->last = out;
        client->last = &out->next;
        client->n_bytes += out->length;
        client->n_event_bytes += is_event ? out->length : 0;
        r = was_empty ? flush_locked(client) : 0;
        if (r < 0 && r != -EAGAIN) {
                drop_locked(client);
                return -EPIPE;
        }
        if (client->first)
                wake_up(client);
        return 0;
}

int control_client_send(
        struct control_client *client, json_t *message, bool is_event, const int *fds, size_t n_fds)
{
        _cleanup_free_ char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

        json_decref(message);
        if (!text)
                return -ENOMEM;
        return control_client_send_text(client, text, strlen(text), is_event, fds, n_fds);
}

int control_client_notify(struct control_client *client, const char *method, json_t *params,
        const int *fds, size_t n_fds, struct error *err)
{
        json_t *message =
                json_pack("{s:s, s:s, s:o*}", "jsonrpc", "2.0", "method", method, "params", params);
        int r;

        if (n_fds > CONTROL_MAX_DESCRIPTORS) {
                json_decref(message);
                return fail(err, E2BIG, "%zu descriptors are too many for one message", n_fds);
        }
        if (message && n_fds > 0)
                json_object_set_new(message, "descriptors", json_integer((json_int_t)n_fds));
        r = control_client_send(client, message, false, fds, n_fds);
        return r < 0 ? fail_os(err, -r, "cannot tell process %d: %s", (int)client->peer.pid, method)
                     : 0;
}

void control_client_on_gone(struct control_client *client, void (*gone)(void *opaque), void *opaque)
{
        bool ended;

        pthread_mutex_lock(&client->lock);
        ended = client->ended;
        client->gone = ended ? NULL : gone;
        client->opaque = opaque;
        pthread_mutex_unlock(&client->lock);
        if (ended && gone)
                gone(opaque);
}

/* What poll should wait for, while a client that does not read its answers is not read from. */
static short events_wanted(struct control_client *client)
{
        MUTEX_GUARD(&client->lock);
        if (client->n_bytes > CONTROL_MAX_BACKLOG)
                return POLLOUT;
        return (short)(client->first ? POLLIN | POLLOUT : POLLIN);
}

static int flush(struct control_client *client)
{
        MUTEX_GUARD(&client->lock);
        if (client->ended)
                return -EPIPE;
        return flush_locked(client);
}

static bool has_backlog(struct control_client *client)
{
        MUTEX_GUARD(&client->lock);
        return client->n_bytes > CONTROL_MAX_BACKLOG;
}

static void receive(struct control_client *client)
{
        struct error err = ERROR_INIT;
        int r = wire_receive(client->wire);

        if (r > 0 || r == -EAGAIN)
                return;
        if (r == -E2BIG) {
                fail(&err, E2BIG, "a line has at most %u bytes", CONTROL_MAX_LINE);
                control_refuse(client, CONTROL_INVALID_REQUEST, &err, true);
        } else if (r == -EPROTO) {
                fail(&err, EPROTO, "a message has at most %u descriptors", CONTROL_MAX_DESCRIPTORS);
                control_refuse(client, CONTROL_INVALID_REQUEST, &err, true);
        }
        client->closing = true;
}

static int wait_for_something(struct control_client *client, int timeout_ms)
{
        struct pollfd fds[] = {
                {.fd = client->fd, .events = events_wanted(client)},
                {.fd = client->wake, .events = POLLIN},
        };
        uint64_t count;
        int n = poll(fds, 2, timeout_ms);

        if (n < 0)
                return errno == EINTR ? 0 : -errno;
        if (n == 0)
                return -ETIMEDOUT;
        if (fds[1].revents && read(client->wake, &count, sizeof(count)) < 0 && errno != EAGAIN)
                return -errno;
        return fds[0].revents;
}

static void converse(struct control_client *client)
{
        while (!client->closing) {
                size_t length;
                char *line = has_backlog(client) ? NULL : wire_line(client->wire, &length);
                int r;

                if (line) {
                        control_request(client, line, length);
                        continue;
                }
                r = wait_for_something(client, -1);
                if (r < 0)
                        return;
                if (r & POLLIN)
                        receive(client);
                else if (r & (POLLHUP | POLLERR | POLLNVAL))
                        return;
                r = flush(client);
                if (r < 0 && r != -EAGAIN)
                        return;
        }
}

static int64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

/* The last answers of one who leaves, as long as he reads them. */
static void say_goodbye(struct control_client *client)
{
        int64_t end = now_ms() + LINGER_MS;

        while (flush(client) == -EAGAIN && now_ms() < end) {
                struct pollfd fd = {.fd = client->fd, .events = POLLOUT};

                if (poll(&fd, 1, (int)(end - now_ms())) < 0 && errno != EINTR)
                        return;
        }
}

static void end(struct control_client *client)
{
        void (*gone)(void *opaque);
        void *opaque;

        pthread_mutex_lock(&client->lock);
        client->ended = true;
        gone = client->gone;
        opaque = client->opaque;
        client->gone = NULL;
        client->wire =
                wire_free(client->wire); /* under the lock: nobody sends to a number reused */
        client->fd = -1;
        pthread_mutex_unlock(&client->lock);
        if (gone)
                gone(opaque);
}

static void leave_server(struct control_server *server, struct control_client *client)
{
        MUTEX_GUARD(&server->lock);
        for (struct control_client **p = &server->clients; *p; p = &(*p)->next)
                if (*p == client) {
                        *p = client->next;
                        break;
                }
}

/* The last thing that a thread does with the server: it may be freed at once. */
static void count_down(struct control_server *server)
{
        MUTEX_GUARD(&server->lock);
        server->n_clients--;
        pthread_cond_broadcast(&server->changed);
}

void *control_client_run(void *opaque)
{
        struct control_client *client = opaque;
        struct control_server *server = client->server;
        struct error err = ERROR_INIT;

        if (control_peer_may_speak(client->fd, &client->peer, server->group, &err) < 0) {
                control_log(server, "%s", err.message);
                control_refuse(client, CONTROL_FAILED, &err, true);
        }
        converse(client);
        say_goodbye(client);
        leave_server(server, client);
        end(client);
        control_client_unref(client);
        count_down(server);
        return NULL;
}
