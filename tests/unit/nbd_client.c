/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/nbd_client.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* assert() and not criterion's, because the plain programs use these too. */
#define REQUIRE(condition)                                                                         \
        do {                                                                                       \
                if (!(condition)) {                                                                \
                        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)

int client_connect(struct nbd_server *server)
{
        struct error err = ERROR_INIT;
        int fds[2], r = -EBUSY;

        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
        for (int tries = 0; tries < CLIENT_TIMEOUT_MS / 2; tries++) {
                /* -EBUSY: a test's last clients are still on their way out. */
                r = nbd_server_serve_fd(server, fds[1], &err);
                if (r != -EBUSY)
                        break;
                usleep(2000);
        }
        REQUIRE(r == 0);
        return fds[0];
}

static bool readable(int fd)
{
        struct pollfd pfd = {.fd = fd, .events = POLLIN};

        return poll(&pfd, 1, CLIENT_TIMEOUT_MS) > 0;
}

void client_send(int fd, const void *data, size_t length)
{
        const uint8_t *p = data;

        while (length > 0) {
                struct pollfd pfd = {.fd = fd, .events = POLLOUT};
                ssize_t n;

                REQUIRE(poll(&pfd, 1, CLIENT_TIMEOUT_MS) > 0);
                n = send(fd, p, length, MSG_NOSIGNAL | MSG_DONTWAIT);
                /* A server that has closed already: the test looks for that itself. */
                if (n < 0 && errno != EAGAIN)
                        return;
                if (n > 0) {
                        p += n;
                        length -= (size_t)n;
                }
        }
}

void client_receive(int fd, void *data, size_t length)
{
        uint8_t *p = data;

        while (length > 0) {
                ssize_t n;

                REQUIRE(readable(fd));
                n = recv(fd, p, length, 0);
                REQUIRE(n > 0);
                p += n;
                length -= (size_t)n;
        }
}

bool client_sees_end(int fd)
{
        uint8_t drop[65536];

        while (readable(fd)) {
                ssize_t n = recv(fd, drop, sizeof(drop), 0);

                if (n <= 0)
                        return true;
        }
        return false;
}

bool client_sees_silent_end(int fd)
{
        uint8_t byte;

        return readable(fd) && recv(fd, &byte, 1, 0) <= 0;
}

void client_hello(int fd, uint32_t flags)
{
        struct nbd_wire_hello hello;
        be32 wire = be32_make(flags);

        client_receive(fd, &hello, sizeof(hello));
        REQUIRE(be64_get(hello.magic) == NBD_MAGIC);
        REQUIRE(be64_get(hello.option_magic) == NBD_OPTION_MAGIC);
        REQUIRE(be16_get(hello.flags) == (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
        client_send(fd, &wire, sizeof(wire));
}

void client_option_header(int fd, uint32_t option, uint32_t length)
{
        struct nbd_wire_option wire = {
                .magic = be64_make(NBD_OPTION_MAGIC),
                .option = be32_make(option),
                .length = be32_make(length),
        };

        client_send(fd, &wire, sizeof(wire));
}

void client_option(int fd, uint32_t option, const void *data, uint32_t length)
{
        client_option_header(fd, option, length);
        client_send(fd, data, length);
}

void client_option_reply(int fd, struct option_reply *ret)
{
        struct nbd_wire_option_reply wire;

        client_receive(fd, &wire, sizeof(wire));
        REQUIRE(be64_get(wire.magic) == NBD_REP_MAGIC);
        ret->option = be32_get(wire.option);
        ret->type = be32_get(wire.type);
        ret->length = be32_get(wire.length);
        REQUIRE(ret->length <= sizeof(ret->data));
        client_receive(fd, ret->data, ret->length);
}

uint32_t client_option_result(int fd, uint32_t option, const void *data, uint32_t length)
{
        struct option_reply reply;

        client_option(fd, option, data, length);
        do {
                client_option_reply(fd, &reply);
                REQUIRE(reply.option == option);
        } while (reply.type != NBD_REP_ACK && !(reply.type >> 31));
        return reply.type;
}

static uint8_t *put(uint8_t *p, const void *data, size_t length)
{
        memcpy(p, data, length);
        return p + length;
}

static uint8_t *put_string(uint8_t *p, const char *text)
{
        be32 length = be32_make((uint32_t)strlen(text));

        p = put(p, &length, sizeof(length));
        return put(p, text, strlen(text));
}

uint32_t client_info_data(uint8_t *out, const char *name)
{
        be16 n_infos = be16_make(0);
        uint8_t *p = put_string(out, name);

        return (uint32_t)(put(p, &n_infos, sizeof(n_infos)) - out);
}

uint32_t client_context_data(
        uint8_t *out, const char *name, const char *const *queries, uint32_t n_queries)
{
        be32 n = be32_make(n_queries);
        uint8_t *p = put_string(out, name);

        p = put(p, &n, sizeof(n));
        for (uint32_t i = 0; i < n_queries; i++)
                p = put_string(p, queries[i]);
        return (uint32_t)(p - out);
}

static void set_contexts(int fd, const char *name, const char *const *contexts)
{
        uint8_t data[4096];
        uint32_t n = 0;

        while (contexts[n])
                n++;
        REQUIRE(client_option_result(fd, NBD_OPT_SET_META_CONTEXT, data,
                        client_context_data(data, name, contexts, n)) == NBD_REP_ACK);
}

uint16_t client_go(
        int fd, const char *name, bool structured, const char *const *contexts, uint64_t *ret_size)
{
        struct nbd_wire_info_export info = {0};
        struct option_reply reply;
        uint8_t data[8192];
        uint32_t length;

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
        if (structured)
                REQUIRE(client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0) == NBD_REP_ACK);
        if (contexts)
                set_contexts(fd, name, contexts);
        length = client_info_data(data, name);
        client_option(fd, NBD_OPT_GO, data, length);
        do {
                client_option_reply(fd, &reply);
                REQUIRE(reply.option == NBD_OPT_GO);
                REQUIRE(reply.type == NBD_REP_ACK || reply.type == NBD_REP_INFO);
                if (reply.type == NBD_REP_INFO && reply.length == sizeof(info) &&
                        reply.data[1] == NBD_INFO_EXPORT)
                        memcpy(&info, reply.data, sizeof(info));
        } while (reply.type != NBD_REP_ACK);
        if (ret_size)
                *ret_size = be64_get(info.size);
        return be16_get(info.flags);
}

void client_request(
        int fd, uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length)
{
        struct nbd_wire_request wire = {
                .magic = be32_make(NBD_REQUEST_MAGIC),
                .flags = be16_make(flags),
                .command = be16_make(type),
                .offset = be64_make(offset),
                .length = be32_make(length),
        };

        memcpy(wire.cookie, &cookie, sizeof(cookie));
        client_send(fd, &wire, sizeof(wire));
}

static void get_data(int fd, struct nbd_answer *ret, uint8_t *data, uint64_t offset,
        uint32_t length, uint32_t chunk_length)
{
        be64 wire;
        uint64_t at;
        uint32_t n = chunk_length - (uint32_t)sizeof(wire);

        client_receive(fd, &wire, sizeof(wire));
        at = be64_get(wire);
        REQUIRE(at >= offset && at - offset <= length && n <= length - (at - offset) && n > 0);
        client_receive(fd, data + (at - offset), n);
        ret->data_bytes += n;
}

static void get_hole(
        int fd, struct nbd_answer *ret, uint8_t *data, uint64_t offset, uint32_t length)
{
        be64 wire;
        be32 wire_n;
        uint64_t at;
        uint32_t n;

        client_receive(fd, &wire, sizeof(wire));
        client_receive(fd, &wire_n, sizeof(wire_n));
        at = be64_get(wire);
        n = be32_get(wire_n);
        REQUIRE(at >= offset && at - offset <= length && n <= length - (at - offset) && n > 0);
        memset(data + (at - offset), 0, n);
        ret->hole_bytes += n;
}

static void get_error(int fd, struct nbd_answer *ret, uint32_t length, bool with_offset)
{
        be32 error;
        be16 message_length;
        be64 at;
        char message[4096];

        REQUIRE(length >= sizeof(error) + sizeof(message_length));
        client_receive(fd, &error, sizeof(error));
        client_receive(fd, &message_length, sizeof(message_length));
        REQUIRE(be16_get(message_length) < sizeof(message));
        REQUIRE(length == 6u + be16_get(message_length) + (with_offset ? 8 : 0));
        client_receive(fd, message, be16_get(message_length));
        ret->error = be32_get(error);
        REQUIRE(ret->error != 0);
        if (with_offset) {
                client_receive(fd, &at, sizeof(at));
                ret->has_error_offset = true;
                ret->error_offset = be64_get(at);
        }
}

static void get_status(int fd, struct nbd_answer *ret, uint32_t length)
{
        struct nbd_wire_extent extent;
        unsigned c = ret->n_contexts++;
        be32 id;

        REQUIRE(c < 4);
        client_receive(fd, &id, sizeof(id));
        ret->contexts[c].id = be32_get(id);
        length -= (uint32_t)sizeof(id);
        REQUIRE(length > 0 && length % sizeof(extent) == 0);
        for (unsigned i = 0; length > 0; i++, length -= (uint32_t)sizeof(extent)) {
                client_receive(fd, &extent, sizeof(extent));
                if (i < 64) {
                        ret->contexts[c].length[i] = be32_get(extent.length);
                        ret->contexts[c].flags[i] = be32_get(extent.flags);
                        ret->contexts[c].n++;
                }
        }
}

/* The rest of one chunk; true: it was the last. */
static bool get_chunk(
        int fd, struct nbd_answer *ret, uint8_t *data, uint64_t offset, uint32_t read_length)
{
        struct nbd_wire_chunk chunk = {.magic = be32_make(NBD_STRUCTURED_REPLY_MAGIC)};
        uint32_t length;

        client_receive(fd, (uint8_t *)&chunk + 4, sizeof(chunk) - 4);
        memcpy(&ret->cookie, chunk.cookie, sizeof(ret->cookie));
        length = be32_get(chunk.length);
        ret->chunks++;
        switch (be16_get(chunk.type)) {
        case NBD_REPLY_TYPE_NONE:
                REQUIRE(length == 0);
                REQUIRE(be16_get(chunk.flags) == NBD_REPLY_FLAG_DONE);
                break;
        case NBD_REPLY_TYPE_OFFSET_DATA:
                get_data(fd, ret, data, offset, read_length, length);
                break;
        case NBD_REPLY_TYPE_OFFSET_HOLE: get_hole(fd, ret, data, offset, read_length); break;
        case NBD_REPLY_TYPE_BLOCK_STATUS: get_status(fd, ret, length); break;
        case NBD_REPLY_TYPE_ERROR: get_error(fd, ret, length, false); break;
        case NBD_REPLY_TYPE_ERROR_OFFSET: get_error(fd, ret, length, true); break;
        default: REQUIRE(!"a chunk of a known type");
        }
        return be16_get(chunk.flags) & NBD_REPLY_FLAG_DONE;
}

void client_answer_get(
        int fd, struct nbd_answer *ret, uint8_t *data, uint64_t offset, uint32_t read_length)
{
        struct nbd_wire_simple_reply simple;
        be32 magic;

        memset(ret, 0, sizeof(*ret));
        client_receive(fd, &magic, sizeof(magic));
        if (be32_get(magic) == NBD_SIMPLE_REPLY_MAGIC) {
                client_receive(fd, (uint8_t *)&simple + 4, sizeof(simple) - 4);
                memcpy(&ret->cookie, simple.cookie, sizeof(ret->cookie));
                ret->error = be32_get(simple.error);
                if (ret->error == 0)
                        client_receive(fd, data, read_length);
                ret->data_bytes = ret->error ? 0 : read_length;
                return;
        }
        REQUIRE(be32_get(magic) == NBD_STRUCTURED_REPLY_MAGIC);
        while (!get_chunk(fd, ret, data, offset, read_length)) {
                client_receive(fd, &magic, sizeof(magic));
                REQUIRE(be32_get(magic) == NBD_STRUCTURED_REPLY_MAGIC);
        }
        if (ret->error == 0 && read_length > 0)
                REQUIRE(ret->data_bytes + ret->hole_bytes == read_length);
}

uint32_t client_read(int fd, void *data, uint32_t length, uint64_t offset)
{
        struct nbd_answer answer;

        client_request(fd, NBD_CMD_READ, 0, offset ^ length, offset, length);
        client_answer_get(fd, &answer, data, offset, length);
        REQUIRE(answer.cookie == (offset ^ length));
        return answer.error;
}

uint32_t client_write(int fd, const void *data, uint32_t length, uint64_t offset, uint16_t flags)
{
        struct nbd_answer answer;

        client_request(fd, NBD_CMD_WRITE, flags, offset + length, offset, length);
        client_send(fd, data, length);
        client_answer_get(fd, &answer, NULL, 0, 0);
        REQUIRE(answer.cookie == offset + length);
        return answer.error;
}

uint32_t client_do(int fd, uint16_t type, uint16_t flags, uint64_t offset, uint32_t length)
{
        struct nbd_answer answer;

        client_request(fd, type, flags, offset * 3 + type, offset, length);
        client_answer_get(fd, &answer, NULL, 0, 0);
        REQUIRE(answer.cookie == offset * 3 + type);
        return answer.error;
}
