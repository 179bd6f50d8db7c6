/* SPDX-License-Identifier: Apache-2.0 */
/* Replies as bytes: nothing here sends. */
#include <string.h>

#include "nbd/server/private.h"

static struct nbd_wire_chunk chunk_header(
        const struct command *command, enum nbd_reply_type type, bool done, uint32_t length)
{
        struct nbd_wire_chunk chunk = {
                .magic = be32_make(NBD_STRUCTURED_REPLY_MAGIC),
                .flags = be16_make(done ? NBD_REPLY_FLAG_DONE : 0),
                .type = be16_make((uint16_t)type),
                .length = be32_make(length),
        };

        memcpy(chunk.cookie, command->cookie, sizeof(chunk.cookie));
        return chunk;
}

size_t reply_simple_header(uint8_t *out, const struct command *command, enum nbd_error error)
{
        struct nbd_wire_simple_reply reply = {
                .magic = be32_make(NBD_SIMPLE_REPLY_MAGIC),
                .error = be32_make((uint32_t)error),
        };

        memcpy(reply.cookie, command->cookie, sizeof(reply.cookie));
        memcpy(out, &reply, sizeof(reply));
        return sizeof(reply);
}

size_t reply_plain(uint8_t *out, const struct client *client, const struct command *command,
        enum nbd_error error)
{
        struct nbd_wire_error_chunk chunk;
        const char *sentence = nbd_error_sentence(error);
        size_t length = strlen(sentence);

        /* Once structured replies are agreed on, these two may have no other. */
        if (!client->agreement.structured ||
                (command->type != NBD_CMD_READ && command->type != NBD_CMD_BLOCK_STATUS))
                return reply_simple_header(out, command, error);

        if (error == NBD_SUCCESS) {
                struct nbd_wire_chunk none = chunk_header(command, NBD_REPLY_TYPE_NONE, true, 0);

                memcpy(out, &none, sizeof(none));
                return sizeof(none);
        }
        static_assert(REPLY_ERROR_MAX >= sizeof(chunk) + 64, "every sentence fits");
        chunk.chunk = chunk_header(command, NBD_REPLY_TYPE_ERROR, true,
                (uint32_t)(sizeof(chunk) - sizeof(chunk.chunk) + length));
        chunk.error = be32_make((uint32_t)error);
        chunk.message_length = be16_make((uint16_t)length);
        memcpy(out, &chunk, sizeof(chunk));
        memcpy(out + sizeof(chunk), sentence, length);
        return sizeof(chunk) + length;
}

size_t reply_error_offset(
        uint8_t *out, const struct command *command, enum nbd_error error, uint64_t offset)
{
        struct nbd_wire_error_chunk chunk;
        be64 at = be64_make(offset);
        const char *sentence = nbd_error_sentence(error);
        size_t length = strlen(sentence);

        chunk.chunk = chunk_header(command, NBD_REPLY_TYPE_ERROR_OFFSET, true,
                (uint32_t)(sizeof(chunk) - sizeof(chunk.chunk) + length + sizeof(at)));
        chunk.error = be32_make((uint32_t)error);
        chunk.message_length = be16_make((uint16_t)length);
        memcpy(out, &chunk, sizeof(chunk));
        memcpy(out + sizeof(chunk), sentence, length);
        memcpy(out + sizeof(chunk) + length, &at, sizeof(at));
        return sizeof(chunk) + length + sizeof(at);
}

size_t reply_data_header(
        uint8_t *out, const struct command *command, uint64_t offset, uint32_t length, bool done)
{
        struct nbd_wire_data_chunk chunk = {
                .chunk = chunk_header(
                        command, NBD_REPLY_TYPE_OFFSET_DATA, done, (uint32_t)sizeof(be64) + length),
                .offset = be64_make(offset),
        };

        memcpy(out, &chunk, sizeof(chunk));
        return sizeof(chunk);
}

size_t reply_hole(
        uint8_t *out, const struct command *command, uint64_t offset, uint32_t length, bool done)
{
        struct nbd_wire_hole_chunk chunk = {
                .chunk = chunk_header(command, NBD_REPLY_TYPE_OFFSET_HOLE, done,
                        (uint32_t)(sizeof(be64) + sizeof(be32))),
                .offset = be64_make(offset),
                .hole_size = be32_make(length),
        };

        memcpy(out, &chunk, sizeof(chunk));
        return sizeof(chunk);
}
