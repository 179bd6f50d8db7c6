/* SPDX-License-Identifier: Apache-2.0 */
/* A client says anything at all, in the greeting or after it. The server must neither crash nor hang,
 * must end the connection once the client has ended its side, keep nothing in flight, and serve the
 * next client.
 *
 * The first byte of an input says how: bit 0, the bytes are sent as they are; else each few of them
 * make one request with its magic number and payload, behind a greeting that is whole (so the rest of
 * the input gets past the first check). Bits 1 to 4 turn the disk cold, faulty, read-only, structured. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbd/proto/nbd.h"
#include "nbd/server/server.h"
#include "tests/unit/fake_chain.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property that holds for every input, or the input is a finding. */
#define HOLDS(condition)                                                                           \
        do {                                                                                       \
                if (!(condition)) {                                                                \
                        fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__,          \
                                #condition);                                                       \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)

#define DISK_SIZE  (512u << 10)
#define STREAM_MAX (1u << 20)

enum { RAW = 1, COLD = 2, FAULTY = 4, READ_ONLY = 8, STRUCTURED = 16 };

/* Numbers out of an input's bytes; zeros when they are used up. */
struct fuzz_bytes {
        const uint8_t *data;
        size_t size;
};

static uint8_t fuzz_u8(struct fuzz_bytes *in)
{
        if (in->size == 0)
                return 0;
        in->size--;
        return *in->data++;
}

static uint32_t fuzz_u32(struct fuzz_bytes *in)
{
        uint32_t n = 0;

        for (unsigned i = 0; i < 4; i++)
                n |= (uint32_t)fuzz_u8(in) << 8 * i;
        return n;
}

static struct nbd_server *server;
static struct chain *chain;

static void start_server(void)
{
        struct nbd_server_options options = {
                .threads = 2,
                .handshake_timeout_ms = 60000,
                .max_bytes_per_client = 1u << 20,
        };
        static const struct nbd_changed changed[] = {{"a", "layer 0"}, {"b \xc3\xa9", "layer 1"}};
        struct nbd_export_options export = {
                .name = "disk", .is_default = true, .changed = changed, .n_changed = 2};
        struct nbd_export_options look = {.name = "look", .read_only = true};
        struct error err = ERROR_INIT;

        export.chain = look.chain = chain = fake_chain_new(DISK_SIZE, 3, true);
        fake_chain_set(chain, 0, 128u << 10, EXTENT_DATA, 0);
        fake_chain_set(chain, 200u << 10, 100u << 10, EXTENT_DATA, 1);
        HOLDS(nbd_server_new(&options, &server, &err) == 0);
        HOLDS(nbd_server_add_export(server, &export, &err) == 0);
        HOLDS(nbd_server_add_export(server, &look, &err) == 0);
        HOLDS(nbd_server_start(server, &err) == 0);
}

/* ---- what the client says ---- */

static uint8_t stream[STREAM_MAX];
static size_t stream_size;

static void say(const void *data, size_t size)
{
        size = size < STREAM_MAX - stream_size ? size : STREAM_MAX - stream_size;
        if (size == 0)
                return; /* and data may be NULL */
        memcpy(stream + stream_size, data, size);
        stream_size += size;
}

static void say_option(uint32_t option, const void *data, uint32_t size)
{
        struct nbd_wire_option wire = {
                .magic = be64_make(NBD_OPTION_MAGIC),
                .option = be32_make(option),
                .length = be32_make(size),
        };

        say(&wire, sizeof(wire));
        say(data, size);
}

static void say_greeting(uint8_t mode)
{
        static const uint8_t contexts[] =
                "\0\0\0\4disk\0\0\0\2\0\0\0\17base:allocation\0\0\0\nvhdd:depth";
        be32 flags = be32_make(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);

        say(&flags, sizeof(flags));
        if (mode & STRUCTURED) {
                say_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
                say_option(NBD_OPT_SET_META_CONTEXT, contexts, sizeof(contexts) - 1);
        }
        say_option(NBD_OPT_EXPORT_NAME, mode & READ_ONLY ? "look" : "disk", 4);
}

static void say_request(struct fuzz_bytes *in)
{
        static const uint8_t payload[300u << 10];
        uint8_t type = fuzz_u8(in), flags = fuzz_u8(in), shape = fuzz_u8(in);
        uint32_t offset = fuzz_u32(in), length = fuzz_u32(in);
        struct nbd_wire_request wire = {
                .magic = be32_make(NBD_REQUEST_MAGIC),
                .flags = be16_make(flags),
                .command = be16_make(shape & 1 ? type : type % 8),
        };

        /* Mostly inside the disk. */
        if (shape & 6)
                offset %= DISK_SIZE;
        if (shape & 12)
                length %= shape & 16 ? 5000 : DISK_SIZE;
        wire.offset = be64_make((uint64_t)offset << (shape >> 6 == 3 ? 32 : 0));
        wire.length = be32_make(length);
        say(&wire, sizeof(wire));
        if (be16_get(wire.command) == NBD_CMD_WRITE)
                say(payload, length < sizeof(payload) ? length : sizeof(payload));
}

/* ---- the conversation ---- */

/* The engine's alarm clock interrupts, and poll is not begun again by itself. */
static void wait_for(struct pollfd *pfd)
{
        int r;

        do
                r = poll(pfd, 1, 15000);
        while (r < 0 && errno == EINTR);
        HOLDS(r > 0);
}

/* Says all of it, hears everything, and stays until the server hangs up. */
static void converse(int fd)
{
        static uint8_t heard[1u << 16];
        size_t said = 0;
        bool open = true;

        if (stream_size == 0)
                shutdown(fd, SHUT_WR);
        while (open) {
                struct pollfd pfd = {
                        .fd = fd, .events = POLLIN | (said < stream_size ? POLLOUT : 0)};
                ssize_t n;

                wait_for(&pfd);
                if (said < stream_size && pfd.revents & POLLOUT) {
                        n = send(
                                fd, stream + said, stream_size - said, MSG_DONTWAIT | MSG_NOSIGNAL);
                        /* It may have hung up already, which is its right. */
                        said = n < 0 && errno != EAGAIN ? stream_size
                                                        : said + (size_t)(n > 0 ? n : 0);
                        if (said == stream_size)
                                shutdown(fd, SHUT_WR);
                }
                if (pfd.revents & (POLLIN | POLLHUP | POLLERR)) {
                        n = recv(fd, heard, sizeof(heard), MSG_DONTWAIT);
                        open = n > 0 || (n < 0 && errno == EAGAIN);
                }
        }
}

static void turn_disk(uint8_t mode)
{
        struct fake_switches *switches = fake_chain_switches(chain);

        atomic_store(&switches->cold_reads, (mode & COLD) != 0);
        atomic_store(&switches->cold_writes, (mode & COLD) != 0);
        atomic_store(&switches->read_error, mode & FAULTY ? -EIO : 0);
        atomic_store(&switches->bad_offset, 70000);
        atomic_store(&switches->write_error, mode & FAULTY ? -ENOSPC : 0);
        atomic_store(&switches->flush_error, mode & FAULTY ? -EIO : 0);
}

/* The thread that served it is on its way out: nothing of it may stay. */
static void check_nothing_left(void)
{
        struct nbd_client_info info;

        for (int tries = 0; nbd_server_clients_get(server, &info, 1) > 0; tries++) {
                HOLDS(tries < 15000);
                if (tries > 50)
                        usleep(1000);
        }
        HOLDS(fake_chain_tickets(chain) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct error err = ERROR_INIT;
        struct fuzz_bytes in = {data, size};
        uint8_t mode = fuzz_u8(&in);
        int fds[2];

        if (size > 16384)
                return 0;
        if (!server)
                start_server();
        turn_disk(mode);
        stream_size = 0;
        if (mode & RAW) {
                say(in.data, in.size);
        } else {
                say_greeting(mode);
                while (in.size > 0)
                        say_request(&in);
        }
        HOLDS(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        HOLDS(nbd_server_serve_fd(server, fds[1], &err) == 0);
        converse(fds[0]);
        close(fds[0]);
        check_nothing_left();
        return 0;
}

#ifndef VHDD_FUZZ_ENGINE
/* Without libFuzzer: every input of a folder, once. What was found stays found, with any compiler. */
static void run_file(const char *folder, const char *name)
{
        static uint8_t data[16384];
        char path[4096];
        size_t size;
        FILE *f;

        snprintf(path, sizeof(path), "%s/%s", folder, name);
        f = fopen(path, "rb");
        HOLDS(f != NULL);
        size = fread(data, 1, sizeof(data), f);
        fclose(f);
        LLVMFuzzerTestOneInput(data, size);
}

int main(int argc, char **argv)
{
        struct dirent *entry;
        unsigned n = 0;
        DIR *dir;

        HOLDS(argc == 2);
        dir = opendir(argv[1]);
        HOLDS(dir != NULL);
        while ((entry = readdir(dir))) {
                if (entry->d_name[0] == '.')
                        continue;
                run_file(argv[1], entry->d_name);
                n++;
        }
        closedir(dir);
        server = nbd_server_free(server);
        chain = chain_abandon(chain);
        printf("%u inputs\n", n);
        return n == 0;
}
#endif
