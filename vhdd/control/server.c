/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/control/server.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "vhdd/control/internal.h"

/* How long the listener rests when there are no descriptors for a new client. */
#define REST_MS 100

void control_log(const struct control_server *server, const char *format, ...)
{
        char sentence[ERROR_MESSAGE_MAX];
        va_list ap;

        if (!server->options.log)
                return;
        va_start(ap, format);
        vsnprintf(sentence, sizeof(sentence), format, ap);
        va_end(ap);
        server->options.log(server->options.opaque, sentence);
}

/* --- methods --- */

static int compare_methods(const void *a, const void *b)
{
        return strcmp(
                (*(const struct method *const *)a)->name, (*(const struct method *const *)b)->name);
}

const struct method *control_method_find(const struct control_server *server, const char *name)
{
        const struct method wanted = {.name = name}, *key = &wanted;
        const struct method *const *found = bsearch(&key, server->methods, server->n_methods,
                sizeof(*server->methods), compare_methods);

        return found ? *found : NULL;
}

static int check_methods(const struct control_server *server, struct error *err)
{
        for (size_t i = 0; i < server->n_methods; i++) {
                const struct method *method = server->methods[i];
                int changes = control_schema_changes(server->schema, method->name);

                if (changes < 0)
                        return fail(err, EINVAL, "the schema does not know the method '%s'",
                                method->name);
                if ((changes > 0) != method->changes)
                        return fail(err, EINVAL,
                                "table and schema disagree on whether '%s' changes something",
                                method->name);
                if (i > 0 && strcmp(method->name, server->methods[i - 1]->name) == 0)
                        return fail(err, EINVAL, "there are two methods '%s'", method->name);
        }
        return 0;
}

static int gather_methods(struct control_server *server, struct error *err)
{
        size_t n = 0;

        for (const struct method *const *table = server->options.tables; *table; table++)
                for (const struct method *method = *table; method->name; method++)
                        n++;
        server->methods = calloc(n + 1, sizeof(*server->methods));
        if (!server->methods)
                return fail(err, ENOMEM, "no memory for %zu methods", n);
        for (const struct method *const *table = server->options.tables; *table; table++)
                for (const struct method *method = *table; method->name; method++)
                        server->methods[server->n_methods++] = method;
        qsort(server->methods, n, sizeof(*server->methods), compare_methods);
        return check_methods(server, err);
}

/* --- clients --- */

static void refuse_connection(int fd, int code, const char *why)
{
        struct error err = ERROR_INIT;
        _cleanup_free_ char *text = NULL;
        json_t *message;

        fail(&err, code, "%s", why);
        message = control_error_message(NULL, CONTROL_FAILED, &err);
        text = json_dumps(message, JSON_COMPACT);
        json_decref(message);
        if (text) {
                size_t length = strlen(text);

                text[length] = '\n'; /* in place of the NUL */
                wire_send(fd, text, length + 1, NULL, 0, MSG_DONTWAIT);
        }
        close(fd);
}

/* A place among the clients, unless there is none. */
static bool take_place(struct control_server *server)
{
        MUTEX_GUARD(&server->lock);
        if (server->n_clients == CONTROL_MAX_CLIENTS || server->stopping)
                return false;
        server->n_clients++;
        return true;
}

static void give_place_back(struct control_server *server)
{
        MUTEX_GUARD(&server->lock);
        server->n_clients--;
        pthread_cond_broadcast(&server->changed);
}

static void enter(struct control_server *server, struct control_client *client)
{
        MUTEX_GUARD(&server->lock);
        client->next = server->clients;
        server->clients = client;
        if (server->stopping)
                shutdown(client->fd, SHUT_RD);
}

static void leave(struct control_server *server, struct control_client *client)
{
        MUTEX_GUARD(&server->lock);
        for (struct control_client **p = &server->clients; *p; p = &(*p)->next)
                if (*p == client) {
                        *p = client->next;
                        break;
                }
}

static int start_thread(struct control_client *client)
{
        pthread_attr_t attributes;
        pthread_t thread;
        int r;

        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        r = pthread_create(&thread, &attributes, control_client_run, client);
        pthread_attr_destroy(&attributes);
        return -r;
}

static void welcome(struct control_server *server, int fd)
{
        struct error err = ERROR_INIT;
        struct control_client *client;
        struct peer peer;

        if (control_peer(fd, &peer, &err) < 0) {
                close(fd);
                return;
        }
        if (!take_place(server)) {
                refuse_connection(fd, EBUSY,
                        "the daemon has all the control connections that it takes; end one of "
                        "them and try again");
                return;
        }
        client = control_client_new(server, fd);
        if (!client) {
                refuse_connection(fd, ENOMEM, "the daemon has no memory for another connection");
                give_place_back(server);
                return;
        }
        client->peer = peer;
        enter(server, client);
        if (start_thread(client) < 0) {
                leave(server, client);
                wire_free(client->wire);
                control_client_unref(client);
                give_place_back(server);
        }
}

static void *listen_run(void *opaque)
{
        struct control_server *server = opaque;
        struct pollfd fds[] = {
                {.fd = server->listen_fd, .events = POLLIN},
                {.fd = server->stop_fd, .events = POLLIN},
        };

        for (;;) {
                int fd;

                if (poll(fds, 2, -1) < 0 && errno != EINTR)
                        break;
                if (fds[1].revents)
                        break;
                if (!fds[0].revents)
                        continue;
                fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);
                if (fd >= 0)
                        welcome(server, fd);
                else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM)
                        poll(&fds[1], 1, REST_MS);
        }
        return NULL;
}

/* --- events --- */

static bool wants(const struct control_client *client, const char *type, const char *vm)
{
        const json_t *wanted;
        size_t i;

        if (!client->subscribed || (client->vm[0] && (!vm || strcmp(vm, client->vm) != 0)))
                return false;
        if (!client->types)
                return true;
        json_array_foreach(client->types, i,
                wanted) if (type && strcmp(json_string_value(wanted), type) == 0) return true;
        return false;
}

static bool is_subscribed(struct control_client *client, const char *type, const char *vm)
{
        MUTEX_GUARD(&client->lock);
        return wants(client, type, vm);
}

static void stamp(json_t *event)
{
        struct timespec now;
        struct tm tm;
        char day[32], text[48];

        clock_gettime(CLOCK_REALTIME, &now);
        if (json_object_get(event, "time") || !gmtime_r(&now.tv_sec, &tm) ||
                strftime(day, sizeof(day), "%FT%T", &tm) == 0)
                return;
        snprintf(text, sizeof(text), "%s.%03ldZ", day, now.tv_nsec / 1000000);
        json_object_set_new(event, "time", json_string(text));
}

void control_server_publish(struct control_server *server, json_t *event)
{
        const char *type = json_string_value(json_object_get(event, "type"));
        const char *vm = json_string_value(json_object_get(event, "vm"));
        _cleanup_free_ char *text = NULL;
        json_t *message;

        stamp(event);
        message =
                json_pack("{s:s, s:s, s:O}", "jsonrpc", "2.0", "method", "event", "params", event);
        text = message ? json_dumps(message, JSON_COMPACT) : NULL;
        json_decref(message);
        if (text) {
                MUTEX_GUARD(&server->lock);
                for (struct control_client *client = server->clients; client; client = client->next)
                        if (is_subscribed(client, type, vm))
                                control_client_send_text(client, text, strlen(text), true, NULL, 0);
        }
        json_decref(event);
}

/* --- beginning and end --- */

static int prepare(struct control_server *server, struct error *err)
{
        const struct control_options *options = &server->options;
        pthread_condattr_t clock;
        int r;

        r = control_group_find(options->group, &server->group, err);
        if (r == 0)
                r = control_schema_load(NULL, &server->schema, err);
        if (r == 0)
                r = gather_methods(server, err);
        if (r < 0)
                return r;
        if (options->path) {
                server->path = strdup(options->path);
                if (!server->path)
                        return fail(err, ENOMEM, "no memory for the control server");
        }
        if (server->listen_fd < 0)
                r = control_listen(options->path, server->group, &server->listen_fd, err);
        if (r < 0) {
                free(TAKE_PTR(server->path)); /* it is not ours to remove */
                return r;
        }
        server->stop_fd = eventfd(0, EFD_CLOEXEC);
        if (server->stop_fd < 0)
                return fail_os(err, errno, "cannot make an event descriptor");
        pthread_condattr_init(&clock);
        pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
        pthread_cond_init(&server->changed, &clock);
        pthread_condattr_destroy(&clock);
        return 0;
}

/* A method may run before control_server_new has returned, and look at where its caller keeps the
 * server: so that is set first, and the thread's start makes it seen. */
static int start_listening(
        struct control_server *server, struct control_server **ret, struct error *err)
{
        struct control_server *before = *ret;
        int r;

        *ret = server;
        server->stopped = false;
        r = pthread_create(&server->thread, NULL, listen_run, server);
        if (r == 0)
                return 0;
        server->stopped = true;
        *ret = before;
        return fail_os(err, r, "cannot start the control server's thread");
}

int control_server_new(
        const struct control_options *options, struct control_server **ret, struct error *err)
{
        _cleanup_(control_server_freep) struct control_server *server = NULL;
        int r;

        server = calloc(1, sizeof(*server));
        if (!server)
                return fail(err, ENOMEM, "no memory for the control server");
        server->options = *options;
        server->listen_fd = options->listen_fd;
        server->stop_fd = -1;
        server->stopped = true; /* until it runs */
        pthread_mutex_init(&server->lock, NULL);
        r = prepare(server, err);
        if (r == 0)
                r = start_listening(server, ret, err);
        if (r < 0)
                return r;
        TAKE_PTR(server);
        return 0;
}

static void wait_for_clients(struct control_server *server, const struct timespec *end)
{
        while (server->n_clients > 0)
                if (!end)
                        pthread_cond_wait(&server->changed, &server->lock);
                else if (pthread_cond_timedwait(&server->changed, &server->lock, end) == ETIMEDOUT)
                        return;
}

static void shut_clients_locked(struct control_server *server, int how)
{
        for (struct control_client *client = server->clients; client; client = client->next)
                shutdown(client->fd, how);
}

void control_server_stop(struct control_server *server, unsigned timeout_ms)
{
        struct timespec end;
        uint64_t one = 1;

        if (server->stopped)
                return;
        if (write(server->stop_fd, &one, sizeof(one)) == sizeof(one))
                pthread_join(server->thread, NULL);
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_sec += timeout_ms / 1000;
        end.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
        if (end.tv_nsec >= 1000000000) {
                end.tv_sec++;
                end.tv_nsec -= 1000000000;
        }
        MUTEX_GUARD(&server->lock);
        server->stopped = server->stopping = true;
        shut_clients_locked(server, SHUT_RD);
        wait_for_clients(server, &end);
}

struct control_server *control_server_free(struct control_server *server)
{
        if (!server)
                return NULL;
        if (!server->stopped) {
                control_server_stop(server, 0);
        }
        if (server->stopping) {
                pthread_mutex_lock(&server->lock);
                shut_clients_locked(server, SHUT_RDWR);
                wait_for_clients(server, NULL);
                pthread_mutex_unlock(&server->lock);
                pthread_cond_destroy(&server->changed);
        }
        if (server->listen_fd >= 0)
                close(server->listen_fd);
        if (server->stop_fd >= 0)
                close(server->stop_fd);
        if (server->path)
                unlink(server->path);
        pthread_mutex_destroy(&server->lock);
        control_schema_free(server->schema);
        free(server->methods);
        free(server->path);
        free(server);
        return NULL;
}

int control_server_fd(const struct control_server *server)
{
        return server->listen_fd;
}

unsigned control_server_n_clients(struct control_server *server)
{
        MUTEX_GUARD(&server->lock);
        return server->n_clients;
}
