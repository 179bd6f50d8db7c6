/* SPDX-License-Identifier: Apache-2.0 */
/* One client, from its first byte to its last, on a thread of its own.
 *
 *      greeting --client_greet--> served --serve--> ended --finish--> gone
 *
 * Served: one receive takes what the socket holds, many requests; each is answered at once into the
 * arena (warm reads, writes to sectors that are there), or becomes a request elsewhere (work.c); when
 * no whole request is left, the arena goes out in one send. */
#include <assert.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/arith.h"
#include "nbd/server/private.h"

#define ARENA_SIZE (ARENA_BATCH + INLINE_MAX + (INLINE_MAX / HOLE_MIN + 2) * 64)
/* While tickets wait for their bytes to leave, the client's thread looks again after so long. */
#define TICKET_POLL_MAX_MS 50

void arena_flush(struct client *client)
{
        if (client->arena_used == 0)
                return;
        tx_begin(&client->tx);
        tx_send(&client->tx, client->arena, client->arena_used, false);
        client->arena_used = 0;
        tx_end(&client->tx);
        stats_settle(client);
}

uint8_t *arena_reserve(struct client *client, size_t size)
{
        assert(size <= client->arena_size);
        if (size > client->arena_size - client->arena_used)
                arena_flush(client);
        return client->arena + client->arena_used;
}

void arena_add(struct client *client, size_t size)
{
        client->arena_used += size;
        /* Not too much at a time: the client can work on these while we work on the next. */
        if (client->arena_used >= ARENA_BATCH)
                arena_flush(client);
}

void client_answer(struct client *client, const struct command *command, int r)
{
        uint8_t *out = arena_reserve(client, REPLY_ERROR_MAX);

        if (r < 0) {
                count(&client->errors, 1);
                client_log(client, NBD_LOG_DEBUG, "command %u of %u bytes at %llu: %s",
                        command->type, command->length, (unsigned long long)command->offset,
                        strerror(-r));
        }
        stats_add(client, command, r < 0);
        arena_add(client, reply_plain(out, client, command, nbd_error_from(r)));
}

static void end_with(struct client *client, const char *why)
{
        client_log(client, NBD_LOG_INFO, "%s; the connection is closed", why);
        client->ended = true;
}

/* More bytes behind those in rx. While tickets are out, looks after them now and then. */
static bool receive_more(struct client *client)
{
        int timeout_ms = 1;

        if (client->rx_start > 0) {
                memmove(client->rx, client->rx + client->rx_start,
                        client->rx_end - client->rx_start);
                client->rx_end -= client->rx_start;
                client->rx_start = 0;
        }
        for (;;) {
                bool may_wait = client->n_tickets == 0;
                ssize_t n = recv(client->fd, client->rx + client->rx_end, RX_SIZE - client->rx_end,
                        may_wait ? 0 : MSG_DONTWAIT);

                count(&client->receives, 1);
                if (n > 0) {
                        client->rx_end += (size_t)n;
                        client->batch.begun_ns = now_ns();
                        return true;
                }
                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0 && errno == EAGAIN && !may_wait) {
                        struct pollfd readable = {.fd = client->fd, .events = POLLIN};

                        client_settle_tickets(client);
                        if (client->n_tickets > 0)
                                poll(&readable, 1, timeout_ms);
                        timeout_ms = MIN_OF(timeout_ms * 2, TICKET_POLL_MAX_MS);
                        continue;
                }
                if (client->rx_end > 0 && !atomic_load(&client->cut))
                        client_log(client, NBD_LOG_INFO, "it went in the middle of a request");
                return false;
        }
}

/* Exactly @length bytes: first those in rx, then from the socket. @data NULL: dropped. */
static bool receive_exactly(struct client *client, uint8_t *data, size_t length)
{
        size_t have = MIN_OF(length, client->rx_end - client->rx_start);

        if (data)
                memcpy(data, client->rx + client->rx_start, have);
        client->rx_start += have;
        length -= have;
        if (length == 0)
                return true;

        /* From here on it may wait, and rx is empty. */
        arena_flush(client);
        for (size_t done = have; length > 0;) {
                uint8_t *to = data ? data + done : client->rx;
                ssize_t n = recv(client->fd, to, data ? length : MIN_OF(length, RX_SIZE),
                        data ? MSG_WAITALL : 0);

                count(&client->receives, 1);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return false;
                done += (size_t)n;
                length -= (size_t)n;
        }
        return true;
}

static bool is_write(uint16_t type)
{
        return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM || type == NBD_CMD_WRITE_ZEROES;
}

/* The flags that mean something with a command. FUA is borne with on all of them, as the spec asks. */
static uint16_t allowed_flags(const struct client *client, uint16_t type)
{
        switch (type) {
        case NBD_CMD_READ:
                return NBD_CMD_FLAG_FUA | (client->agreement.structured ? NBD_CMD_FLAG_DF : 0);
        case NBD_CMD_WRITE_ZEROES:
                return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
        case NBD_CMD_BLOCK_STATUS: return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
        default: return NBD_CMD_FLAG_FUA;
        }
}

/* 0, or what is wrong with the command as -errno. */
static int check_command(const struct client *client, const struct command *command)
{
        const struct export *export = client->agreement.export;

        if (command->type > NBD_CMD_BLOCK_STATUS ||
                command->flags & ~allowed_flags(client, command->type))
                return -EINVAL;
        if (command->type == NBD_CMD_FLUSH)
                return command->offset == 0 && command->length == 0 ? 0 : -EINVAL;
        if (is_write(command->type) && export->read_only)
                return -EPERM;
        if (command->length == 0)
                return -EINVAL;
        if (!range_inside(command->offset, command->length, export->size))
                return command->type == NBD_CMD_WRITE || command->type == NBD_CMD_WRITE_ZEROES
                        ? -ENOSPC
                        : -EINVAL;
        if (command->type == NBD_CMD_READ && command->length > NBD_REQUEST_MAX)
                return -EINVAL;
        if (command->type == NBD_CMD_BLOCK_STATUS && client->agreement.contexts == 0)
                return -EINVAL;
        return 0;
}

static void start_read(struct client *client, const struct command *command)
{
        if (client_sendfile(client, command))
                return;
        if (command->length <= INLINE_MAX) {
                uint8_t *out = arena_reserve(client, read_reply_bound(client, command->length));
                uint64_t failed_at;
                ssize_t n = read_reply_build(client, command, CHAIN_NOWAIT, out, &failed_at);

                if (n >= 0) {
                        count(&client->server->inline_reads, 1);
                        count(&client->bytes_read, command->length);
                        stats_add(client, command, false);
                        arena_add(client, (size_t)n);
                        return;
                }
                /* Any other failure is left for the pool to find and to tell in full. */
        }
        client_start_work(client, command, NULL);
}

static void start_status(struct client *client, const struct command *command)
{
        uint8_t *out = arena_reserve(client, STATUS_REPLY_BOUND);
        ssize_t n = status_reply_build(client, command, CHAIN_NOWAIT, out);

        if (n >= 0) {
                stats_add(client, command, false);
                arena_add(client, (size_t)n);
        } else {
                client_start_work(client, command, NULL);
        }
}

/* Writes on this thread if that needs no waiting but for the page cache. */
static bool write_inline(struct client *client, const struct command *command, const uint8_t *data)
{
        struct volume *volume = client->agreement.export->volume;
        int r;

        if (command->flags & NBD_CMD_FLAG_FUA || volume_is_full(volume))
                return false;
        r = chain_write(volume->chain, data, command->length, command->offset, CHAIN_NOWAIT);
        if (r == -EAGAIN)
                return false;
        count(&client->server->inline_writes, 1);
        if (r == 0) {
                count(&client->bytes_written, command->length);
                volume_wrote(volume, command->length);
        } else {
                client_log(client, NBD_LOG_ERROR, "writing %u bytes at %llu failed: %s",
                        command->length, (unsigned long long)command->offset, strerror(-r));
        }
        client_answer(client, command, r);
        return true;
}

/* The payload is in rx already. */
static void start_short_write(struct client *client, const struct command *command)
{
        const uint8_t *data = client->rx + client->rx_start;
        uint8_t *copy;

        client->rx_start += command->length;
        if (write_inline(client, command, data))
                return;
        copy = malloc(command->length);
        if (!copy) {
                client_answer(client, command, -ENOMEM);
                return;
        }
        memcpy(copy, data, command->length);
        client_start_work(client, command, copy);
}

/* The payload is longer than what rx takes: a buffer of its own, kept for the next unless the pool
 * took it. It counts as in flight from its first byte, because a client may take its time. */
static void start_long_write(struct client *client, const struct command *command)
{
        if (!flight_try_enter(client, command->length)) {
                arena_flush(client);
                flight_enter(client, command->length);
        }
        if (client->payload_size < command->length) {
                free(client->payload);
                client->payload = malloc(command->length);
                client->payload_size = client->payload ? command->length : 0;
        }
        if (!client->payload) {
                flight_leave(client, command->length);
                if (!receive_exactly(client, NULL, command->length))
                        client->ended = true;
                else
                        client_answer(client, command, -ENOMEM);
                return;
        }
        if (!receive_exactly(client, client->payload, command->length)) {
                flight_leave(client, command->length);
                client->ended = true;
                return;
        }
        if (write_inline(client, command, client->payload)) {
                flight_leave(client, command->length);
        } else {
                flight_leave(client, command->length);
                client->payload_size = 0;
                client_start_work(client, command, TAKE_PTR(client->payload));
        }
        if (client->payload_size > INLINE_MAX) {
                free(TAKE_PTR(client->payload));
                client->payload_size = 0;
        }
}

static void start_command(struct client *client, const struct command *command)
{
        switch (command->type) {
        case NBD_CMD_READ: start_read(client, command); break;
        case NBD_CMD_BLOCK_STATUS: start_status(client, command); break;
        default: client_start_work(client, command, NULL); break;
        }
}

static void decode_command(const uint8_t *data, struct command *ret, uint32_t *ret_magic)
{
        struct nbd_wire_request wire;

        memcpy(&wire, data, sizeof(wire));
        *ret_magic = be32_get(wire.magic);
        ret->flags = be16_get(wire.flags);
        ret->type = be16_get(wire.command);
        ret->offset = be64_get(wire.offset);
        ret->length = be32_get(wire.length);
        memcpy(ret->cookie, wire.cookie, sizeof(ret->cookie));
}

/* A write whose header is at the front of rx; its payload is consumed whatever becomes of it, or the
 * connection ends. False: its payload is not here yet, and will fit. */
static bool take_write(struct client *client, const struct command *command)
{
        size_t have = client->rx_end - client->rx_start - sizeof(struct nbd_wire_request);
        int r;

        if (command->length > NBD_REQUEST_MAX) {
                end_with(client, "a write is longer than the 32 MiB that we offered");
                return true;
        }
        if (have < command->length && command->length <= RX_SIZE / 2)
                return false;

        client->rx_start += sizeof(struct nbd_wire_request);
        count(&client->requests, 1);
        r = check_command(client, command);
        if (r < 0) {
                if (!receive_exactly(client, NULL, command->length))
                        client->ended = true;
                else
                        client_answer(client, command, r);
        } else if (have >= command->length) {
                start_short_write(client, command);
        } else {
                start_long_write(client, command);
        }
        return true;
}

/* One request from rx. False: there is no whole one. */
static bool take_request(struct client *client)
{
        struct command command;
        uint32_t magic;
        int r;

        if (client->rx_end - client->rx_start < sizeof(struct nbd_wire_request))
                return false;
        decode_command(client->rx + client->rx_start, &command, &magic);
        if (magic != NBD_REQUEST_MAGIC) {
                end_with(client, "a request without its magic number");
                return true;
        }
        if (command.type == NBD_CMD_WRITE)
                return take_write(client, &command);

        client->rx_start += sizeof(struct nbd_wire_request);
        if (command.type == NBD_CMD_DISC) {
                client->ended = true;
                return true;
        }
        count(&client->requests, 1);
        r = check_command(client, &command);
        if (r < 0)
                client_answer(client, &command, r);
        else
                start_command(client, &command);
        return true;
}

static void serve(struct client *client)
{
        while (!client->ended) {
                while (!client->ended && take_request(client))
                        ;
                arena_flush(client);
                stats_settle(client);
                if (client->ended || atomic_load(&client->tx.broken) || atomic_load(&client->cut) ||
                        !receive_more(client))
                        break;
        }
}

/* Bytes that sendfile queued are references to the page cache: the tickets stay until the client took
 * them or is gone. */
static void wait_for_tickets(struct client *client)
{
        for (int wait_ms = 1; client->n_tickets > 0 && !atomic_load(&client->tx.broken);
                wait_ms = MIN_OF(wait_ms * 2, TICKET_POLL_MAX_MS)) {
                client_settle_tickets(client);
                if (client->n_tickets > 0)
                        poll(NULL, 0, wait_ms);
        }
        client_drop_tickets(client);
}

static bool prepare_buffers(struct client *client)
{
        client->arena_size = ARENA_SIZE;
        client->rx = malloc(RX_SIZE);
        client->arena = malloc(client->arena_size);
        return client->rx && client->arena;
}

void *client_thread(void *arg)
{
        struct client *client = arg;
        struct error err = ERROR_INIT;
        int r;

        pthread_setname_np(pthread_self(), "nbd-client");
        client_tell(client, NBD_EVENT_CONNECTED);
        r = client->handoff ? client_greet_handed(client, &err) : client_greet(client, &err);
        if (r < 0) {
                client_log(client, NBD_LOG_INFO, "no export for it: %s", err.message);
        } else if (r == GREETED_SERVED && !prepare_buffers(client)) {
                client_log(client, NBD_LOG_ERROR, "no memory for its buffers");
        } else if (r == GREETED_SERVED) {
                serve(client);
                /* Whoever said DISC, or only closed its sending side, still gets its replies. */
                flight_wait_none(client);
                wait_for_tickets(client);
        }
        tx_done(&client->tx);
        free(client->rx);
        free(client->arena);
        free(client->payload);
        server_client_gone(client);
        return NULL;
}
