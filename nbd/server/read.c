/* SPDX-License-Identifier: Apache-2.0 */
/* The whole reply to a read as one piece of memory: no scattered parts, so a batch of replies is one
 * send.
 *
 * A structured reply tells of zeros as holes. A long read asks the map where they are; a short one
 * looks at its bytes, which ends at the first that is not zero and costs less. */
#include "base/arith.h"
#include "nbd/server/private.h"

#define MAP_READ_MIN (4 * HOLE_MIN)

static bool wants_map(const struct client *client, uint16_t flags, uint32_t length)
{
        return client->agreement.structured && !(flags & NBD_CMD_FLAG_DF) && length >= MAP_READ_MIN;
}

size_t read_reply_bound(const struct client *client, uint32_t length)
{
        /* Between two holes of HOLE_MIN there is at most one chunk of data. */
        size_t max_chunks = 2 * ((size_t)length / HOLE_MIN) + 2;

        if (!wants_map(client, 0, length))
                max_chunks = 1;
        return length + max_chunks * sizeof(struct nbd_wire_hole_chunk);
}

/* The run at @offset that is told as one chunk: zeros long enough to be worth it, or all else. */
static int next_run(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
        uint64_t *ret_length, bool *ret_zero)
{
        uint64_t run = 0;
        bool zero = false;

        while (run < length) {
                struct chain_extent extent;
                bool hole;
                int r = chain_status(chain, offset + run, length - run, flags, &extent);

                if (r < 0)
                        return r;
                hole = extent.kind != EXTENT_DATA && extent.length >= HOLE_MIN;
                if (run == 0)
                        zero = hole;
                else if (hole != zero)
                        break;
                run += MIN_OF(extent.length, length - run);
        }
        *ret_length = run;
        *ret_zero = zero;
        return 0;
}

static ssize_t build_chunks(const struct client *client, const struct command *command,
        unsigned flags, uint8_t *out, uint64_t *ret_failed_at)
{
        struct chain *chain = client->agreement.export->volume->chain;
        uint64_t end = command->offset + command->length;
        uint8_t *p = out;

        for (uint64_t at = command->offset; at < end;) {
                uint64_t run;
                bool zero;
                int r = next_run(chain, at, end - at, flags & CHAIN_NOWAIT, &run, &zero);

                *ret_failed_at = at;
                if (r < 0)
                        return r;
                if (zero) {
                        p += reply_hole(p, command, at, (uint32_t)run, at + run == end);
                } else {
                        p += reply_data_header(p, command, at, (uint32_t)run, at + run == end);
                        r = chain_read(chain, p, run, at, flags);
                        if (r < 0)
                                return r;
                        p += run;
                }
                at += run;
        }
        return p - out;
}

ssize_t read_reply_build(const struct client *client, const struct command *command, unsigned flags,
        uint8_t *out, uint64_t *ret_failed_at)
{
        struct chain *chain = client->agreement.export->volume->chain;
        uint8_t *data;
        int r;

        if (wants_map(client, command->flags, command->length))
                return build_chunks(client, command, flags, out, ret_failed_at);

        if (client->agreement.structured)
                data = out +
                        reply_data_header(out, command, command->offset, command->length, true);
        else
                data = out + reply_simple_header(out, command, NBD_SUCCESS);
        *ret_failed_at = command->offset;
        r = chain_read(chain, data, command->length, command->offset, flags);
        if (r < 0)
                return r;
        if (client->agreement.structured && bytes_are_zero(data, command->length))
                return (ssize_t)reply_hole(out, command, command->offset, command->length, true);
        return data + command->length - out;
}
