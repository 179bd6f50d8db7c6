/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that may block. They leave the client's thread as requests, run on the pool (or are read by
 * the ring), and whoever ends one posts its reply: out of order, and never waiting for the client. */
#include <string.h>

#include "base/arith.h"
#include "nbd/server/private.h"

static struct request *request_from_item(struct tx_item *item)
{
        return (struct request *)((uint8_t *)item - offsetof(struct request, item));
}

/* The reply is sent or dropped, and nobody needs the request any more. */
static void request_sent(struct tx_item *item)
{
        struct request *request = request_from_item(item);
        struct client *client = request->client;
        uint64_t charged = request->charged;

        free(request->payload);
        free(request->reply);
        free(request);
        flight_leave(client, charged);
}

/* The request may be gone when this returns. */
static void post(struct request *request, const uint8_t *data, size_t length, bool failed)
{
        stats_answered(request, failed);
        request->item.data = data;
        request->item.length = length;
        request->item.done = request_sent;
        tx_post(&request->client->tx, &request->item);
}

void request_answer(struct request *request, int r)
{
        size_t length;

        if (r < 0) {
                count(&request->client->errors, 1);
                client_log(request->client, r == -EOPNOTSUPP ? NBD_LOG_DEBUG : NBD_LOG_ERROR,
                        "command %u of %u bytes at %llu failed: %s", request->command.type,
                        request->command.length, (unsigned long long)request->command.offset,
                        strerror(-r));
        }
        static_assert(sizeof(request->small) >= REPLY_ERROR_MAX, "every plain reply fits");
        length = reply_plain(request->small, request->client, &request->command, nbd_error_from(r));
        post(request, request->small, length, r < 0);
}

void request_answer_read(struct request *request, size_t length)
{
        count(&request->client->bytes_read, request->command.length);
        post(request, request->reply, length, false);
}

void request_read(struct request *request)
{
        struct client *client = request->client;
        uint64_t failed_at;
        ssize_t n;

        if (!request->reply)
                request->reply = malloc(read_reply_bound(client, request->command.length));
        if (!request->reply) {
                request_answer(request, -ENOMEM);
                return;
        }
        n = read_reply_build(client, &request->command, 0, request->reply, &failed_at);
        if (n < 0 && client->agreement.structured) {
                count(&client->errors, 1);
                client_log(client, NBD_LOG_ERROR, "reading at %llu failed: %s",
                        (unsigned long long)failed_at, strerror((int)-n));
                post(request, request->small,
                        reply_error_offset(request->small, &request->command,
                                nbd_error_from((int)n), failed_at),
                        true);
                return;
        }
        if (n < 0) {
                request_answer(request, (int)n);
                return;
        }
        request_answer_read(request, (size_t)n);
}

static void request_status(struct request *request)
{
        ssize_t n;

        request->reply = malloc(STATUS_REPLY_BOUND);
        if (!request->reply) {
                request_answer(request, -ENOMEM);
                return;
        }
        n = status_reply_build(request->client, &request->command, 0, request->reply);
        if (n < 0)
                request_answer(request, (int)n);
        else
                post(request, request->reply, (size_t)n, false);
}

/* -EINPROGRESS: it is done, and a snapshot's commit has to come before the answer. Flushes wait for
 * that all together, on one thread. */
static void request_end(struct request *request, int r)
{
        if (r == -EINPROGRESS)
                volume_flush(request->client->agreement.export->volume, request);
        else
                request_answer(request, r);
}

static void request_write(struct request *request)
{
        struct volume *volume = request->client->agreement.export->volume;
        struct command *command = &request->command;
        unsigned flags = command->flags & NBD_CMD_FLAG_FUA ? CHAIN_FUA | CHAIN_LATER : 0;
        int r = chain_write(
                volume->chain, request->payload, command->length, command->offset, flags);

        count(&volume->server->pool_writes, 1);
        if (r == 0 || r == -EINPROGRESS) {
                count(&request->client->bytes_written, command->length);
                if (!flags)
                        volume_wrote(volume, command->length);
        }
        request_end(request, r);
}

/* One step of a trim or zero; true: there is more to do. */
static bool clear_step(struct request *request, int *ret_r)
{
        struct command *command = &request->command;
        struct chain *chain = request->client->agreement.export->volume->chain;
        uint64_t offset = command->offset + request->done;
        uint64_t length = MIN_OF(command->length - request->done, WORK_STEP - offset % WORK_STEP);
        unsigned flags = 0;

        if (command->flags & NBD_CMD_FLAG_FUA)
                flags |= CHAIN_FUA | CHAIN_LATER;
        if (command->flags & NBD_CMD_FLAG_NO_HOLE)
                flags |= CHAIN_NO_HOLE;
        if (command->flags & NBD_CMD_FLAG_FAST_ZERO)
                flags |= CHAIN_FAST_ZERO;
        *ret_r = command->type == NBD_CMD_TRIM ? chain_trim(chain, length, offset, flags)
                                               : chain_zero(chain, length, offset, flags);
        if (*ret_r < 0 && *ret_r != -EINPROGRESS)
                return false;
        request->later |= *ret_r == -EINPROGRESS;
        request->done += length;
        return request->done < command->length;
}

static void request_clear(struct request *request)
{
        int r;

        if (clear_step(request, &r))
                pool_submit(request->client->server->pool, &request->task);
        else
                request_end(request, r == 0 && request->later ? -EINPROGRESS : r);
}

static void run_request(struct pool_task *task)
{
        struct request *request = (struct request *)task;
        struct command *command = &request->command;

        switch (command->type) {
        case NBD_CMD_READ:
                count(&request->client->server->pool_reads, 1);
                request_read(request);
                break;
        case NBD_CMD_WRITE: request_write(request); break;
        case NBD_CMD_TRIM:
        case NBD_CMD_WRITE_ZEROES: request_clear(request); break;
        case NBD_CMD_CACHE:
                request_answer(request,
                        chain_cache(request->client->agreement.export->volume->chain,
                                command->length, command->offset));
                break;
        case NBD_CMD_BLOCK_STATUS: request_status(request); break;
        default: request_answer(request, -EINVAL); break;
        }
}

/* What a request may hold until its reply is taken. */
static uint64_t charge_of(const struct client *client, const struct command *command)
{
        uint64_t charge = sizeof(struct request);

        if (command->type == NBD_CMD_READ)
                charge += read_reply_bound(client, command->length);
        else if (command->type == NBD_CMD_WRITE)
                charge += command->length;
        else if (command->type == NBD_CMD_BLOCK_STATUS)
                charge += STATUS_REPLY_BOUND;
        return charge;
}

void client_start_work(struct client *client, const struct command *command, uint8_t *payload)
{
        struct nbd_server *server = client->server;
        uint64_t charge = charge_of(client, command);
        struct request *request;

        if (!flight_try_enter(client, charge)) {
                arena_flush(client);
                flight_enter(client, charge);
        }
        request = calloc(1, sizeof(*request));
        if (!request) {
                flight_leave(client, charge);
                free(payload);
                client_answer(client, command, -ENOMEM);
                return;
        }
        request->task.run = run_request;
        request->client = client;
        request->command = *command;
        request->begun_ns = client->batch.begun_ns;
        request->charged = charge;
        request->payload = payload;

        if (command->type == NBD_CMD_FLUSH) {
                volume_flush(client->agreement.export->volume, request);
                return;
        }
        if (command->type == NBD_CMD_READ && server->ring && ring_read(server->ring, request))
                return;
        pool_submit(server->pool, &request->task);
}
