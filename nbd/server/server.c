/* SPDX-License-Identifier: Apache-2.0 */
/* The server as a whole: exports, the thread that accepts, the list of clients, the end.
 *
 * A client's thread that left the list is joined by the next one that does, the last one by stop. */
#include "nbd/server/server.h"

#include <assert.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "base/arith.h"
#include "nbd/server/private.h"

/* A client that greets is left alone for so long, even when others want its place. */
#define GREETING_GRACE_MS 100
/* How long free waits in nbd_server_stop. */
#define FREE_TIMEOUT_MS 1000
/* After a failure to accept (no descriptors left), the next try. */
#define ACCEPT_PAUSE_MS    100
#define LOG_LINES_A_SECOND 100

uint64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* May this line be said? A client that fails without end must not fill a disk with the tale. *ret_unsaid:
 * how many lines of the last second were not. */
static bool may_say(struct nbd_server *server, unsigned *ret_unsaid)
{
        uint64_t second = now_ms() / 1000;
        MUTEX_GUARD(&server->log_lock);

        *ret_unsaid = 0;
        if (server->log_second != second) {
                *ret_unsaid = server->log_unsaid;
                server->log_second = second;
                server->log_lines = server->log_unsaid = 0;
        }
        if (server->log_lines < LOG_LINES_A_SECOND) {
                server->log_lines++;
                return true;
        }
        server->log_unsaid++;
        return false;
}

__attribute__((format(printf, 4, 0))) static void log_v(struct nbd_server *server,
        const struct client *client, enum nbd_log_level level, const char *format, va_list args)
{
        char sentence[ERROR_MESSAGE_MAX];
        unsigned unsaid;
        int n = 0;

        if (!server->options.log || !may_say(server, &unsaid))
                return;
        if (unsaid > 0) {
                snprintf(sentence, sizeof(sentence), "%u more messages were not shown", unsaid);
                server->options.log(server->options.opaque, level, sentence);
        }
        if (client)
                n = snprintf(sentence, sizeof(sentence),
                        "client %llu (%s): ", (unsigned long long)client->id, client->peer);
        vsnprintf(sentence + n, sizeof(sentence) - (size_t)n, format, args);
        server->options.log(server->options.opaque, level, sentence);
}

void server_log(struct nbd_server *server, enum nbd_log_level level, const char *format, ...)
{
        va_list args;

        va_start(args, format);
        log_v(server, NULL, level, format, args);
        va_end(args);
}

void client_log(struct client *client, enum nbd_log_level level, const char *format, ...)
{
        va_list args;

        va_start(args, format);
        log_v(client->server, client, level, format, args);
        va_end(args);
}

static void fill_client_info(struct client *client, struct nbd_client_info *ret)
{
        const struct export *export = client->agreement.export;

        *ret = (struct nbd_client_info){
                .id = client->id,
                .state = client->state,
                .read_only = export && export->read_only,
                .structured = client->agreement.structured,
                .age_ms = now_ms() - client->begun_ms,
                .requests = counted(&client->requests),
                .errors = counted(&client->errors),
                .bytes_read = counted(&client->bytes_read),
                .bytes_written = counted(&client->bytes_written),
        };
        snprintf(ret->peer, sizeof(ret->peer), "%s", client->peer);
        if (export)
                snprintf(ret->export_name, sizeof(ret->export_name), "%s", export->name);
        pthread_mutex_lock(&client->server->flight.lock);
        ret->bytes_in_flight = client->bytes_in_flight;
        pthread_mutex_unlock(&client->server->flight.lock);
}

void client_tell(struct client *client, enum nbd_event event)
{
        struct nbd_server *server = client->server;
        struct nbd_client_info info;

        if (!server->options.event)
                return;
        fill_client_info(client, &info);
        server->options.event(server->options.opaque, event, &info);
}

/* ---- before start ---- */

static uint64_t or_default(uint64_t value, uint64_t otherwise)
{
        return value ? value : otherwise;
}

static void complete_options(struct nbd_server_options *o)
{
        o->threads = (unsigned)or_default(o->threads, 16);
        o->max_clients = (unsigned)or_default(o->max_clients, 1024);
        o->max_greeting = (unsigned)or_default(o->max_greeting, 64);
        o->handshake_timeout_ms = (unsigned)or_default(o->handshake_timeout_ms, 10000);
        o->max_bytes_per_client = or_default(o->max_bytes_per_client, 64 * MIB);
        o->max_bytes = or_default(o->max_bytes, 512 * MIB);
        o->max_unsynced_bytes = or_default(o->max_unsynced_bytes, 256 * MIB);
}

/* Its time limits are about how long, not about what the clock on the wall says. */
static void init_fewer(struct nbd_server *server)
{
        pthread_condattr_t attr;

        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&server->fewer, &attr);
        pthread_condattr_destroy(&attr);
}

int nbd_server_new(
        const struct nbd_server_options *options, struct nbd_server **ret, struct error *err)
{
        struct nbd_server *server = calloc(1, sizeof(*server));

        if (!server)
                return fail(err, ENOMEM, "no memory for a server");
        if (options)
                server->options = *options;
        complete_options(&server->options);
        if (options && options->directory) {
                server->directory = *options->directory;
                server->options.directory = &server->directory;
        }
        server->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (server->wake_fd < 0) {
                int r = fail_os(err, errno, "cannot make an eventfd");

                free(server);
                return r;
        }
        for (size_t i = 0; i < NBD_SERVER_MAX_LISTENERS; i++)
                server->listeners[i].fd = -1;
        pthread_mutex_init(&server->lock, NULL);
        pthread_mutex_init(&server->log_lock, NULL);
        init_fewer(server);
        flight_init(
                &server->flight, server->options.max_bytes, server->options.max_bytes_per_client);
        server->next_id = 1;
        *ret = server;
        return 0;
}

static int check_listeners(const struct nbd_server *server, struct error *err)
{
        assert(!server->started);
        if (server->n_listeners == NBD_SERVER_MAX_LISTENERS)
                return fail(
                        err, EMFILE, "more than %u sockets to listen on", NBD_SERVER_MAX_LISTENERS);
        return 0;
}

int nbd_server_listen_unix(struct nbd_server *server, const char *path, struct error *err)
{
        int r = check_listeners(server, err);

        if (r == 0)
                r = listener_open_unix(&server->listeners[server->n_listeners], path, err);
        if (r == 0)
                server->n_listeners++;
        return r;
}

int nbd_server_listen_tcp(
        struct nbd_server *server, const char *host, uint16_t port, struct error *err)
{
        int r = check_listeners(server, err);

        return r < 0 ? r
                     : listener_open_tcp(server->listeners, &server->n_listeners,
                               NBD_SERVER_MAX_LISTENERS, host, port, err);
}

int nbd_server_listen_fd(struct nbd_server *server, int fd, struct error *err)
{
        int r = check_listeners(server, err);

        if (r == 0)
                r = listener_from_fd(&server->listeners[server->n_listeners], fd, err);
        if (r == 0)
                server->n_listeners++;
        return r;
}

size_t nbd_server_n_listeners(const struct nbd_server *server)
{
        return server->n_listeners;
}

/* Percent-encodes what RFC 3986 does not let stand in a path or query; '/' may. */
static char *encode(const char *text)
{
        static const char plain[] =
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/";
        char *ret = malloc(strlen(text) * 3 + 1);
        char *p = ret;

        if (!ret)
                return NULL;
        for (; *text; text++) {
                if (strchr(plain, *text))
                        *p++ = *text;
                else
                        p += sprintf(p, "%%%02X", (unsigned char)*text);
        }
        *p = '\0';
        return ret;
}

char *nbd_server_uri(const struct nbd_server *server, size_t index, const char *export_name)
{
        const struct listener *listener = &server->listeners[index];
        _cleanup_free_ char *name = encode(export_name);
        _cleanup_free_ char *path = NULL;
        char *ret = NULL;

        assert(index < server->n_listeners);
        if (!name)
                return NULL;
        if (listener->uri_authority)
                return asprintf(&ret, "nbd://%s/%s", listener->uri_authority, name) < 0 ? NULL
                                                                                        : ret;
        path = encode(listener->path);
        if (!path)
                return NULL;
        return asprintf(&ret, "nbd+unix:///%s?socket=%s", name, path) < 0 ? NULL : ret;
}

/* ---- clients ---- */

static void wake(struct nbd_server *server)
{
        uint64_t one = 1;

        while (write(server->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
                ;
}

static void list_add_locked(struct nbd_server *server, struct client *client)
{
        client->previous = server->last_client;
        if (server->last_client)
                server->last_client->next = client;
        else
                server->clients = client;
        server->last_client = client;
}

static void list_remove_locked(struct nbd_server *server, struct client *client)
{
        if (client->previous)
                client->previous->next = client->next;
        else
                server->clients = client->next;
        if (client->next)
                client->next->previous = client->previous;
        else
                server->last_client = client->previous;
        client->next = client->previous = NULL;
}

static int promote_locked(struct client *client, const struct choice *choice)
{
        struct nbd_server *server = client->server;
        struct agreement agreement;
        int r = -EBUSY;

        if (server->n_served < server->options.max_clients && !client->evicted)
                r = server_agree_locked(server, choice, &agreement);
        if (r < 0) {
                server->counters.refused += r == -EBUSY;
                return r;
        }
        client->state = NBD_CLIENT_SERVED;
        client->agreement = agreement;
        agreement.export->n_clients++;
        server->n_greeting--;
        server->n_served++;
        server->counters.served++;
        return 0;
}

int server_promote(struct client *client, const struct choice *choice)
{
        const struct agreement *agreement = &client->agreement;
        int r;

        pthread_mutex_lock(&client->server->lock);
        r = promote_locked(client, choice);
        pthread_mutex_unlock(&client->server->lock);
        if (r < 0)
                return r;
        client_log(client, NBD_LOG_INFO, "uses export '%s'%s", agreement->export->name,
                agreement->export->read_only ? ", read-only" : "");
        client_log(client, NBD_LOG_DEBUG, "%s replies, %d meta contexts",
                agreement->structured ? "structured" : "simple",
                __builtin_popcount(agreement->contexts));
        client_tell(client, NBD_EVENT_SERVED);
        return 0;
}

bool server_begin_hand_over(struct client *client)
{
        MUTEX_GUARD(&client->server->lock);

        client->handed_over = !client->evicted && !atomic_load(&client->cut);
        return client->handed_over;
}

static void add_counters(struct nbd_server_counters *to, const struct client *client)
{
        to->requests += counted(&client->requests);
        to->errors += counted(&client->errors);
        to->bytes_read += counted(&client->bytes_read);
        to->bytes_written += counted(&client->bytes_written);
        to->sends += counted(&client->tx.sends);
        to->receives += counted(&client->receives);
}

static struct client *free_client(struct client *client)
{
        free(client->handoff);
        free(client);
        return NULL;
}
DEFINE_CLEANUP(struct client *, free_client)

static void join_client(struct client *client)
{
        if (!client)
                return;
        pthread_join(client->thread, NULL);
        free_client(client);
}

static void join_finished(struct nbd_server *server)
{
        struct client *last;

        pthread_mutex_lock(&server->lock);
        last = TAKE_PTR(server->finished);
        pthread_mutex_unlock(&server->lock);
        join_client(last);
}

/* The last thing that a client's thread does. */
void server_client_gone(struct client *client)
{
        struct nbd_server *server = client->server;

        if (!client->handed_over)
                client_log(client, NBD_LOG_INFO, "is gone after %llu requests",
                        (unsigned long long)counted(&client->requests));
        client_tell(client, NBD_EVENT_GONE);

        pthread_mutex_lock(&server->lock);
        list_remove_locked(server, client);
        if (client->state == NBD_CLIENT_SERVED) {
                server->n_served--;
                client->agreement.export->n_clients--;
        } else {
                server->counters.failed_greetings += !client->handed_over;
                server->counters.handed_over += client->handed_over;
                if (!client->evicted)
                        server->n_greeting--;
        }
        add_counters(&server->counters, client);
        /* Under the lock: nobody who finds a client in the list finds a stranger's descriptor. */
        close(client->fd);
        client->before = server->finished;
        server->finished = client;
        pthread_cond_broadcast(&server->fewer);
        pthread_mutex_unlock(&server->lock);
        /* From here on the server may be gone; this client's struct is there until its thread, this one,
         * has been joined. */
        join_client(client->before);
}

/* Room for one more that greets: if there is none, the one that has been at it longest goes. So a crowd
 * that connects and stays silent keeps nobody out, and costs max_greeting threads. */
static bool make_room_locked(struct nbd_server *server)
{
        if (server->n_greeting < server->options.max_greeting)
                return true;
        for (struct client *c = server->clients; c; c = c->next) {
                if (c->state != NBD_CLIENT_GREETING || c->evicted || c->handed_over)
                        continue;
                if (now_ms() - c->begun_ms < GREETING_GRACE_MS)
                        return false;
                c->evicted = true;
                shutdown(c->fd, SHUT_RDWR);
                server->n_greeting--;
                return true;
        }
        return false;
}

static int start_client_thread(struct client *client)
{
        sigset_t all, before;
        int r;

        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = pthread_create(&client->thread, NULL, client_thread, client);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return -r;
}

static int admit_locked(struct nbd_server *server, struct client *client, struct error *err)
{
        int r;

        if (atomic_load(&server->stopping))
                return fail(err, ESHUTDOWN, "the server is stopping");
        if (!make_room_locked(server))
                return fail(err, EBUSY, "%u clients are negotiating already", server->n_greeting);
        client->id = server->next_id++;
        r = start_client_thread(client);
        if (r < 0)
                return fail_os(err, -r, "cannot start a thread for a client");
        list_add_locked(server, client);
        server->n_greeting++;
        return 0;
}

static int copy_handoff(struct client *client, const struct nbd_handoff *handoff, struct error *err)
{
        client->handoff = malloc(sizeof(*handoff));
        if (!client->handoff)
                return fail(err, ENOMEM, "no memory for a client");
        *client->handoff = *handoff;
        if (handoff->peer[0] != '\0')
                snprintf(client->peer, sizeof(client->peer), "%s", (const char *)handoff->peer);
        return 0;
}

/* Takes @fd over on success. @handoff: NULL, or what it agreed on elsewhere. */
static int start_client(
        struct nbd_server *server, int fd, const struct nbd_handoff *handoff, struct error *err)
{
        _cleanup_(free_clientp) struct client *client = calloc(1, sizeof(*client));
        int r;

        if (!client)
                return fail(err, ENOMEM, "no memory for a client");
        client->server = server;
        client->fd = fd;
        client->begun_ms = now_ms();
        client->state = NBD_CLIENT_GREETING;
        r = socket_prepare(fd, client->peer, sizeof(client->peer), &client->may_sendfile, err);
        if (r < 0)
                return r;
        if (handoff)
                r = copy_handoff(client, handoff, err);
        if (r < 0)
                return r;
        client->may_sendfile = client->may_sendfile && !server->options.no_sendfile;
        tx_init(&client->tx, fd, server->writer);

        /* The new thread's first deed is to wait for this lock or for its client. */
        pthread_mutex_lock(&server->lock);
        server->counters.accepted++;
        r = admit_locked(server, client, err);
        if (r < 0)
                server->counters.refused++;
        pthread_mutex_unlock(&server->lock);
        if (r < 0) {
                tx_done(&client->tx);
                return r;
        }
        TAKE_PTR(client);
        return 0;
}

int nbd_server_serve_fd(struct nbd_server *server, int fd, struct error *err)
{
        assert(server->started);
        return start_client(server, fd, NULL, err);
}

int nbd_server_serve_handoff(
        struct nbd_server *server, int fd, const struct nbd_handoff *handoff, struct error *err)
{
        int r = nbd_handoff_check(handoff, err);

        assert(server->started);
        return r < 0 ? r : start_client(server, fd, handoff, err);
}

static void accept_one(struct nbd_server *server, const struct listener *listener)
{
        struct error err = ERROR_INIT;
        int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0) {
                if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                        struct pollfd pfd = {.fd = server->wake_fd, .events = POLLIN};

                        server_log(server, NBD_LOG_ERROR, "cannot accept a client: %s",
                                strerror(errno));
                        poll(&pfd, 1, ACCEPT_PAUSE_MS);
                }
                return;
        }
        if (start_client(server, fd, NULL, &err) < 0) {
                server_log(server, NBD_LOG_INFO, "a client was turned away: %s", err.message);
                close(fd);
        }
}

static void *accept_thread(void *arg)
{
        struct nbd_server *server = arg;
        struct pollfd pfds[1 + NBD_SERVER_MAX_LISTENERS];
        nfds_t n = 0;

        pthread_setname_np(pthread_self(), "nbd-accept");
        pfds[n++] = (struct pollfd){.fd = server->wake_fd, .events = POLLIN};
        for (size_t i = 0; i < server->n_listeners; i++)
                pfds[n++] = (struct pollfd){.fd = server->listeners[i].fd, .events = POLLIN};

        while (!atomic_load(&server->stopping)) {
                if (poll(pfds, n, -1) < 0)
                        continue;
                for (size_t i = 0; i < server->n_listeners; i++)
                        if (pfds[i + 1].revents && !atomic_load(&server->stopping))
                                accept_one(server, &server->listeners[i]);
        }
        return NULL;
}

/* ---- start and stop ---- */

static int start_helpers(struct nbd_server *server, struct error *err)
{
        int r = pool_new("nbd-pool", server->options.threads, &server->pool, err);

        if (r == 0)
                r = tx_writer_new(&server->writer, err);
        if (r < 0)
                return r;
        if (!server->options.no_io_uring) {
                r = ring_new(server, &server->ring);
                if (r < 0)
                        server_log(server, NBD_LOG_DEBUG, "no io_uring (%s): threads do its work",
                                strerror(-r));
        }
        return 0;
}

static void end_helpers(struct nbd_server *server)
{
        server->ring = ring_free(server->ring);
        server->pool = pool_free(server->pool);
        server->writer = tx_writer_free(server->writer);
}

static int start_accepting(struct nbd_server *server, struct error *err)
{
        sigset_t all, before;
        int r;

        /* Several processes may accept from one socket that was passed on: never block in it. */
        for (size_t i = 0; i < server->n_listeners; i++) {
                int flags = fcntl(server->listeners[i].fd, F_GETFL);

                if (flags < 0 || fcntl(server->listeners[i].fd, F_SETFL, flags | O_NONBLOCK) < 0)
                        return fail_os(err, errno, "cannot make a socket non-blocking");
        }
        if (server->n_listeners == 0)
                return 0;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = pthread_create(&server->accept_thread, NULL, accept_thread, server);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        server->accepting = r == 0;
        return r == 0 ? 0 : fail_os(err, r, "cannot start the thread that accepts clients");
}

int nbd_server_start(struct nbd_server *server, struct error *err)
{
        int r;

        assert(!server->started);
        r = start_helpers(server, err);
        if (r == 0)
                r = start_accepting(server, err);
        if (r < 0) {
                end_helpers(server);
                return r;
        }
        server->started = true;
        return 0;
}

void server_shut_clients_locked(struct nbd_server *server, const struct export *export, bool both)
{
        for (struct client *c = server->clients; c; c = c->next) {
                if (c->handed_over || (export && c->agreement.export != export))
                        continue;
                atomic_store(&c->cut, true);
                if (both)
                        tx_break(&c->tx);
                else
                        shutdown(c->fd, SHUT_RD);
        }
}

bool server_wait_fewer_locked(
        struct nbd_server *server, bool (*done)(const void *), const void *arg, unsigned timeout_ms)
{
        struct timespec until;

        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
        }
        while (!done(arg))
                if (pthread_cond_timedwait(&server->fewer, &server->lock, &until) == ETIMEDOUT)
                        return done(arg);
        return true;
}

static bool has_no_clients(const void *arg)
{
        const struct nbd_server *server = arg;

        return !server->clients;
}

static void end_clients(struct nbd_server *server, unsigned timeout_ms)
{
        pthread_mutex_lock(&server->lock);
        /* A blocked receive returns; what is queued in the socket behind it is not taken any more. */
        server_shut_clients_locked(server, NULL, false);
        if (!server_wait_fewer_locked(server, has_no_clients, server, timeout_ms)) {
                server_log(server, NBD_LOG_ERROR,
                        "clients that did not take their replies in %u ms are cut off", timeout_ms);
                server_shut_clients_locked(server, NULL, true);
                /* What still runs is the disk's, and has no deadline. */
                while (server->clients)
                        pthread_cond_wait(&server->fewer, &server->lock);
        }
        pthread_mutex_unlock(&server->lock);
        join_finished(server);
}

static int flush_volumes(struct nbd_server *server, struct error *err)
{
        int first = 0;

        for (size_t i = 0; i < server->n_volumes; i++) {
                struct chain *chain = server->volumes[i]->chain;
                int r = chain_is_writable(chain) ? chain_flush(chain) : 0;

                if (r < 0 && first == 0)
                        first = fail_os(err, -r, "the last flush of '%s' failed",
                                chain_layer_path(chain, chain_depth(chain) - 1));
        }
        return first;
}

static void close_listeners(struct nbd_server *server)
{
        for (size_t i = 0; i < server->n_listeners; i++)
                listener_close(&server->listeners[i]);
        server->n_listeners = 0;
}

int nbd_server_stop(struct nbd_server *server, unsigned timeout_ms, struct error *err)
{
        bool first;

        pthread_mutex_lock(&server->lock);
        first = !server->stopped;
        server->stopped = true;
        atomic_store(&server->stopping, true);
        pthread_mutex_unlock(&server->lock);

        if (first && server->accepting) {
                wake(server);
                pthread_join(server->accept_thread, NULL);
        }
        if (first)
                close_listeners(server);
        if (first && server->started) {
                end_clients(server, timeout_ms);
                end_helpers(server);
        }
        return flush_volumes(server, err);
}

struct nbd_server *nbd_server_free(struct nbd_server *server)
{
        if (!server)
                return NULL;
        if (server->started && !server->stopped)
                nbd_server_stop(server, FREE_TIMEOUT_MS, NULL);
        close_listeners(server);
        server_exports_done(server);
        close(server->wake_fd);
        flight_done(&server->flight);
        pthread_cond_destroy(&server->fewer);
        pthread_mutex_destroy(&server->lock);
        pthread_mutex_destroy(&server->log_lock);
        free(server);
        return NULL;
}

/* ---- what it shows ---- */

void nbd_server_counters_get(struct nbd_server *server, struct nbd_server_counters *ret)
{
        MUTEX_GUARD(&server->lock);

        *ret = server->counters;
        for (const struct client *c = server->clients; c; c = c->next)
                add_counters(ret, c);
        ret->inline_reads = counted(&server->inline_reads);
        ret->pool_reads = counted(&server->pool_reads);
        ret->ring_reads = counted(&server->ring_reads);
        ret->sendfile_reads = counted(&server->sendfile_reads);
        ret->inline_writes = counted(&server->inline_writes);
        ret->pool_writes = counted(&server->pool_writes);
        ret->flushes_asked = counted(&server->flushes_asked);
        ret->flushes_done = counted(&server->flushes_done);
        ret->clients = server->n_served;
        ret->greeting = server->n_greeting;
        ret->io_uring = server->ring != NULL;
}

size_t nbd_server_clients_get(struct nbd_server *server, struct nbd_client_info *ret, size_t max)
{
        size_t n = 0;

        MUTEX_GUARD(&server->lock);
        for (struct client *c = server->clients; c; c = c->next) {
                if (n < max)
                        fill_client_info(c, &ret[n]);
                n++;
        }
        return n;
}
