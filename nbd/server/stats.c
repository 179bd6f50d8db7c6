/* SPDX-License-Identifier: Apache-2.0 */
/* Counting costs little on the path that matters: requests that are answered on their client's thread
 * are counted in memory of its own, and settled when their replies have gone out in one send, with one
 * look at the clock and one round of shared counters for all of them. */
#include <time.h>

#include "base/arith.h"
#include "nbd/server/private.h"

uint64_t now_ns(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

const char *nbd_request_kind_to_string(enum nbd_request_kind kind)
{
        switch (kind) {
        case NBD_KIND_READ: return "read";
        case NBD_KIND_WRITE: return "write";
        case NBD_KIND_FLUSH: return "flush";
        case NBD_KIND_TRIM: return "trim";
        case NBD_KIND_CACHE: return "cache";
        case NBD_KIND_WRITE_ZEROES: return "write-zeroes";
        case NBD_KIND_BLOCK_STATUS: return "block-status";
        case NBD_N_KINDS: break;
        }
        return "unknown";
}

/* NBD_N_KINDS: a command that does not exist. */
static enum nbd_request_kind kind_of(const struct command *command)
{
        switch (command->type) {
        case NBD_CMD_READ: return NBD_KIND_READ;
        case NBD_CMD_WRITE: return NBD_KIND_WRITE;
        case NBD_CMD_FLUSH: return NBD_KIND_FLUSH;
        case NBD_CMD_TRIM: return NBD_KIND_TRIM;
        case NBD_CMD_CACHE: return NBD_KIND_CACHE;
        case NBD_CMD_WRITE_ZEROES: return NBD_KIND_WRITE_ZEROES;
        case NBD_CMD_BLOCK_STATUS: return NBD_KIND_BLOCK_STATUS;
        default: return NBD_N_KINDS;
        }
}

static unsigned bucket_of(uint64_t us)
{
        unsigned bits = us ? 64 - (unsigned)__builtin_clzll(us) : 0;

        return MIN_OF(bits, NBD_LATENCY_BUCKETS - 1);
}

static void add_kind(
        struct kind_stats *stats, uint64_t n, uint64_t errors, uint64_t bytes, uint64_t us)
{
        count(&stats->requests, n);
        count(&stats->latency_us, n * us);
        count(&stats->latency[bucket_of(us)], n);
        if (bytes > 0)
                count(&stats->bytes, bytes);
        if (errors > 0)
                count(&stats->errors, errors);
}

void stats_add(struct client *client, const struct command *command, bool failed)
{
        enum nbd_request_kind kind = kind_of(command);
        struct batch_kind *batch;

        if (kind == NBD_N_KINDS)
                return;
        batch = &client->batch.kinds[kind];
        batch->requests++;
        batch->errors += failed;
        batch->bytes += failed ? 0 : command->length;
        client->batch.n++;
}

void stats_settle(struct client *client)
{
        struct batch *batch = &client->batch;
        uint64_t us;

        if (batch->n == 0)
                return;
        us = (now_ns() - batch->begun_ns) / 1000;
        for (unsigned i = 0; i < NBD_N_KINDS; i++) {
                struct batch_kind *kind = &batch->kinds[i];

                if (kind->requests == 0)
                        continue;
                add_kind(&client->agreement.export->stats.kinds[i], kind->requests, kind->errors,
                        kind->bytes, us);
                *kind = (struct batch_kind){0};
        }
        batch->n = 0;
}

void stats_answered(const struct request *request, bool failed)
{
        enum nbd_request_kind kind = kind_of(&request->command);

        if (kind != NBD_N_KINDS)
                add_kind(&request->client->agreement.export->stats.kinds[kind], 1, failed,
                        failed ? 0 : request->command.length,
                        (now_ns() - request->begun_ns) / 1000);
}

void stats_get(const struct stats *stats, struct nbd_export_stats *ret)
{
        for (unsigned i = 0; i < NBD_N_KINDS; i++) {
                const struct kind_stats *from = &stats->kinds[i];
                struct nbd_kind_stats *to = &ret->kinds[i];

                to->requests = counted(&from->requests);
                to->errors = counted(&from->errors);
                to->bytes = counted(&from->bytes);
                to->latency_us = counted(&from->latency_us);
                for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++)
                        to->latency[b] = counted(&from->latency[b]);
        }
}
