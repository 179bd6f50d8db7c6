/* SPDX-License-Identifier: Apache-2.0 */
/* nbdload - loads an NBD server on a unix socket and says how much it took, as one line of JSON.
 *
 * The same client for every server, and one that costs little: a thread a connection, as many
 * requests in flight as asked for, all that can be sent goes out in one send, and all that has come
 * is taken in one receive. Simple replies only: every server has them.
 *
 * An operation is a read, a write, or a write and then a flush. Offsets are random, aligned to the
 * size of a request, from a seed, for some seconds or a number of operations; with --once each place
 * is touched once, in random order. The span
 * can be laid out in chunks with gaps (--chunk, --stride), to load a small part of each of many
 * blocks of a large disk. What a write writes depends on the seed and the place alone. With --log each
 * request's moment (CLOCK_MONOTONIC) and latency go to a file at the end, as pairs of 64-bit numbers
 * in microseconds, to be held against what else happened then.
 *
 * Exit status: 0 done, 2 usage, 3 it failed (an error reply of the server too).
 */
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/size.h"

#define NBD_MAGIC          UINT64_C(0x4e42444d41474943)
#define NBD_OPTION_MAGIC   UINT64_C(0x49484156454f5054)
#define NBD_REPLY_MAGIC    UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST_MAGIC  UINT32_C(0x25609513)
#define NBD_SIMPLE_MAGIC   UINT32_C(0x67446698)
#define NBD_FLAG_FIXED     1u
#define NBD_FLAG_NO_ZEROES 2u
#define NBD_OPT_GO         7u
#define NBD_REP_ACK        1u
#define NBD_REP_INFO       3u
#define NBD_INFO_EXPORT    0u
#define NBD_CMD_READ       0u
#define NBD_CMD_WRITE      1u
#define NBD_CMD_DISC       2u
#define NBD_CMD_FLUSH      3u

#define DEPTH_MAX      1024u
#define CONNECTION_MAX 64u
#define RECEIVE_SIZE   (256u * 1024)
#define LATENCY_MAX    (4u << 20) /* samples that a connection keeps */

struct request {
        uint32_t magic;
        uint16_t flags, type;
        uint64_t handle, offset;
        uint32_t length;
} __attribute__((packed));

struct reply {
        uint32_t magic, error;
        uint64_t handle;
} __attribute__((packed));

enum operation { READ, WRITE, WRITE_FLUSH };

/* immutable once the threads run */
static struct {
        const char *socket_path, *export_name, *log_path;
        unsigned n_connections, depth;
        uint64_t size, span, offset, chunk, stride, seed, count;
        double seconds;
        enum operation operation;
        bool once;
} options = {
        .export_name = "",
        .n_connections = 1,
        .depth = 1,
        .size = 4096,
        .seconds = 1,
        .seed = 1,
};
static uint64_t n_places; /* span / size */
static pthread_barrier_t all_connected;
static struct timespec began;
static volatile sig_atomic_t
        told_to_end;                 /* SIGTERM: what is under way is awaited, then it reports */
static atomic_uint_fast64_t n_begun; /* --once, --count: of all connections */
static uint64_t *order;              /* --once: the places in random order */

struct sample {
        uint64_t sent_us, latency_us;
};

struct slot {
        uint64_t place;
        bool flushing; /* the write is answered, its flush is not */
        struct timespec sent;
};

struct connection {
        pthread_t thread;
        unsigned number;
        int fd;
        uint64_t random;
        struct slot slots[DEPTH_MAX];
        unsigned n_in_flight;
        uint8_t *out; /* requests that wait for the next send */
        size_t n_out, out_room;
        uint8_t *in;
        bool stopping;
        /* results */
        uint64_t n_done, n_errors;
        uint32_t *latencies_us;
        struct sample *samples; /* --log: beside latencies_us, as many */
        uint64_t n_latencies;
};

static void die(const char *what)
{
        fprintf(stderr, "nbdload: %s: %s\n", what, strerror(errno));
        exit(3);
}

static void die_protocol(const char *what)
{
        fprintf(stderr, "nbdload: %s\n", what);
        exit(3);
}

static uint64_t mix(uint64_t z)
{
        z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
        return z ^ (z >> 31);
}

static uint64_t random_next(uint64_t *state)
{
        *state += UINT64_C(0x9e3779b97f4a7c15);
        return mix(*state);
}

static void send_all(int fd, const void *data, size_t length)
{
        const uint8_t *at = data;

        while (length > 0) {
                ssize_t n = send(fd, at, length, MSG_NOSIGNAL);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        die("cannot send");
                at += n;
                length -= (size_t)n;
        }
}

static void receive_all(int fd, void *data, size_t length)
{
        uint8_t *at = data;

        while (length > 0) {
                ssize_t n = recv(fd, at, length, 0);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n == 0)
                        die_protocol("the server closed the connection");
                if (n < 0)
                        die("cannot receive");
                at += n;
                length -= (size_t)n;
        }
}

static int connect_to(const char *path)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int buffer = 1 << 20;

        if (fd < 0)
                die("no socket");
        if (strlen(path) >= sizeof(address.sun_path))
                die_protocol("the socket's path is too long");
        strcpy(address.sun_path, path);
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof(buffer));
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                die("cannot connect");
        return fd;
}

/* Fixed newstyle, GO; answers the export's size. */
static uint64_t negotiate(int fd, const char *name)
{
        struct {
                uint64_t magic, option_magic;
                uint16_t flags;
        } __attribute__((packed)) hello;
        struct {
                uint32_t client_flags;
                uint64_t magic;
                uint32_t option, length, name_length;
        } __attribute__((packed)) go;
        struct {
                uint64_t magic;
                uint32_t option, type, length;
        } __attribute__((packed)) answer;
        uint32_t name_length = (uint32_t)strlen(name);
        uint16_t no_infos = 0;
        uint64_t size = UINT64_MAX;

        receive_all(fd, &hello, sizeof(hello));
        if (be64toh(hello.magic) != NBD_MAGIC || be64toh(hello.option_magic) != NBD_OPTION_MAGIC)
                die_protocol("this is no newstyle NBD server");
        go.client_flags = htobe32(NBD_FLAG_FIXED | NBD_FLAG_NO_ZEROES);
        go.magic = htobe64(NBD_OPTION_MAGIC);
        go.option = htobe32(NBD_OPT_GO);
        go.length = htobe32(name_length + 6);
        go.name_length = htobe32(name_length);
        send_all(fd, &go, sizeof(go));
        send_all(fd, name, name_length);
        send_all(fd, &no_infos, sizeof(no_infos));
        for (;;) {
                uint8_t data[4096];
                uint32_t length;

                receive_all(fd, &answer, sizeof(answer));
                length = be32toh(answer.length);
                if (be64toh(answer.magic) != NBD_REPLY_MAGIC || length > sizeof(data))
                        die_protocol("an odd answer to GO");
                receive_all(fd, data, length);
                if (be32toh(answer.type) == NBD_REP_ACK)
                        break;
                if (be32toh(answer.type) != NBD_REP_INFO) {
                        fprintf(stderr, "nbdload: the server refused export '%s': %.*s\n", name,
                                (int)length, (char *)data);
                        exit(3);
                }
                if (length == 12 && data[0] == 0 && data[1] == NBD_INFO_EXPORT) {
                        memcpy(&size, data + 2, sizeof(size));
                        size = be64toh(size);
                }
        }
        if (size == UINT64_MAX)
                die_protocol("the server did not tell the size");
        return size;
}

static uint64_t offset_of(uint64_t place)
{
        uint64_t at = place * options.size;

        if (options.chunk)
                at = at / options.chunk * options.stride + at % options.chunk;
        return options.offset + at;
}

/* What a write writes: 8 bytes that depend on seed and offset, over and over with a counter. */
static void fill(uint8_t *data, uint64_t offset, size_t size)
{
        uint64_t state = mix(options.seed ^ mix(offset + 1));

        for (size_t i = 0; i + 8 <= size; i += 8) {
                uint64_t word = state + i;

                memcpy(data + i, &word, 8);
        }
}

/* The place of the next operation; false: there is none. */
static bool next(struct connection *c, uint64_t *ret)
{
        uint64_t limit = options.once ? n_places : options.count;
        uint64_t i = limit ? atomic_fetch_add(&n_begun, 1) : 0;

        if (limit && i >= limit)
                return false;
        *ret = options.once ? order[i] : random_next(&c->random) % n_places;
        return true;
}

static void put_request(struct connection *c, unsigned type, unsigned slot)
{
        uint64_t offset = type == NBD_CMD_FLUSH ? 0 : offset_of(c->slots[slot].place);
        struct request request = {
                .magic = htobe32(NBD_REQUEST_MAGIC),
                .type = htobe16((uint16_t)type),
                .handle = slot,
                .offset = htobe64(offset),
                .length = htobe32(type == NBD_CMD_FLUSH ? 0 : (uint32_t)options.size),
        };

        if (c->n_out + sizeof(request) + options.size > c->out_room) {
                send_all(c->fd, c->out, c->n_out);
                c->n_out = 0;
        }
        memcpy(c->out + c->n_out, &request, sizeof(request));
        c->n_out += sizeof(request);
        if (type == NBD_CMD_WRITE) {
                fill(c->out + c->n_out, offset, options.size);
                c->n_out += options.size;
        }
}

static void begin(struct connection *c, unsigned slot)
{
        struct slot *s = &c->slots[slot];

        if (c->stopping || told_to_end || !next(c, &s->place)) {
                c->stopping = true;
                return;
        }
        s->flushing = false;
        clock_gettime(CLOCK_MONOTONIC, &s->sent);
        put_request(c, options.operation == READ ? NBD_CMD_READ : NBD_CMD_WRITE, slot);
        c->n_in_flight++;
}

static double seconds_between(const struct timespec *a, const struct timespec *b)
{
        return (double)(b->tv_sec - a->tv_sec) + (double)(b->tv_nsec - a->tv_nsec) / 1e9;
}

static void note_latency(
        struct connection *c, const struct timespec *sent, const struct timespec *now)
{
        uint64_t latency_us = (uint64_t)(seconds_between(sent, now) * 1e6);

        if (c->n_latencies == LATENCY_MAX)
                return;
        if (c->samples)
                c->samples[c->n_latencies] = (struct sample){
                        .sent_us =
                                (uint64_t)sent->tv_sec * 1000000 + (uint64_t)sent->tv_nsec / 1000,
                        .latency_us = latency_us,
                };
        c->latencies_us[c->n_latencies++] = (uint32_t)latency_us;
}

static void take_reply(struct connection *c, unsigned slot, uint32_t error)
{
        struct slot *s = &c->slots[slot];
        struct timespec now;

        if (error) {
                fprintf(stderr, "nbdload: the server answered error %u at %" PRIu64 "\n", error,
                        offset_of(s->place));
                c->n_errors++;
        }
        if (options.operation == WRITE_FLUSH && !s->flushing && !error) {
                s->flushing = true;
                put_request(c, NBD_CMD_FLUSH, slot);
                return;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        note_latency(c, &s->sent, &now);
        c->n_done++;
        c->n_in_flight--;
        if (!options.once && !options.count && seconds_between(&began, &now) >= options.seconds)
                c->stopping = true;
        begin(c, slot);
}

/* Takes what has come: whole replies are dealt with, the rest waits for more. Read data is dropped
 * as it comes, so a reply of 1 MiB needs no buffer of that size. */
static void run(struct connection *c)
{
        size_t have = 0, to_drop = 0;
        unsigned dropping_for = 0;

        for (unsigned slot = 0; slot < options.depth; slot++)
                begin(c, slot);
        while (c->n_in_flight > 0) {
                size_t at = 0;
                ssize_t n;

                send_all(c->fd, c->out, c->n_out);
                c->n_out = 0;
                n = recv(c->fd, c->in + have, RECEIVE_SIZE - have, 0);
                if (n < 0 && errno == EINTR)
                        continue;
                if (n == 0)
                        die_protocol("the server closed the connection");
                if (n < 0)
                        die("cannot receive");
                have += (size_t)n;
                while (at < have) {
                        struct reply reply;

                        if (to_drop > 0) {
                                size_t part = have - at < to_drop ? have - at : to_drop;

                                at += part;
                                to_drop -= part;
                                if (to_drop == 0)
                                        take_reply(c, dropping_for, 0);
                                continue;
                        }
                        if (have - at < sizeof(reply))
                                break;
                        memcpy(&reply, c->in + at, sizeof(reply));
                        at += sizeof(reply);
                        if (be32toh(reply.magic) != NBD_SIMPLE_MAGIC ||
                                reply.handle >= options.depth)
                                die_protocol("an odd reply");
                        if (options.operation == READ && reply.error == 0) {
                                dropping_for = (unsigned)reply.handle;
                                to_drop = options.size;
                        } else {
                                take_reply(c, (unsigned)reply.handle, be32toh(reply.error));
                        }
                }
                memmove(c->in, c->in + at, have - at);
                have -= at;
        }
}

static void *run_connection(void *opaque)
{
        struct request bye = {.magic = htobe32(NBD_REQUEST_MAGIC), .type = htobe16(NBD_CMD_DISC)};
        struct connection *c = opaque;

        c->out_room = options.operation == READ
                ? sizeof(struct request) * DEPTH_MAX + options.size
                : (sizeof(struct request) + options.size) * (options.size >= 65536 ? 2 : 32);
        c->out = malloc(c->out_room);
        c->in = malloc(RECEIVE_SIZE);
        c->latencies_us = malloc(LATENCY_MAX * sizeof(*c->latencies_us));
        if (options.log_path)
                c->samples = malloc(LATENCY_MAX * sizeof(*c->samples));
        if (!c->out || !c->in || !c->latencies_us || (options.log_path && !c->samples))
                die("no memory");
        c->random = mix(options.seed * CONNECTION_MAX + c->number);
        pthread_barrier_wait(&all_connected);
        pthread_barrier_wait(&all_connected); /* the clock was read in between */
        run(c);
        send_all(c->fd, &bye, sizeof(bye));
        return NULL;
}

static void shuffle_places(void)
{
        uint64_t random = mix(options.seed);

        order = malloc(n_places * sizeof(*order));
        if (!order)
                die("no memory");
        for (uint64_t i = 0; i < n_places; i++)
                order[i] = i;
        for (uint64_t i = n_places; i > 1; i--) {
                uint64_t j = random_next(&random) % i, swap = order[i - 1];

                order[i - 1] = order[j];
                order[j] = swap;
        }
}

static int compare_u32(const void *a, const void *b)
{
        uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

        return (x > y) - (x < y);
}

static void write_log(const struct connection *connections)
{
        FILE *file = fopen(options.log_path, "we");

        if (!file)
                die(options.log_path);
        for (unsigned i = 0; i < options.n_connections; i++)
                fwrite(connections[i].samples, sizeof(struct sample), connections[i].n_latencies,
                        file);
        if (ferror(file) || fclose(file) != 0)
                die(options.log_path);
}

static void report(struct connection *connections, double seconds)
{
        uint64_t n_done = 0, n_errors = 0, n = 0;
        uint32_t *all;

        for (unsigned i = 0; i < options.n_connections; i++) {
                n_done += connections[i].n_done;
                n_errors += connections[i].n_errors;
                n += connections[i].n_latencies;
        }
        all = malloc((n + 1) * sizeof(*all));
        if (!all)
                die("no memory");
        n = 0;
        for (unsigned i = 0; i < options.n_connections; i++) {
                memcpy(all + n, connections[i].latencies_us,
                        connections[i].n_latencies * sizeof(*all));
                n += connections[i].n_latencies;
        }
        all[n] = 0;
        qsort(all, n, sizeof(*all), compare_u32);
        printf("{\"operations\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"seconds\": %.6f, "
               "\"per-second\": %.1f, \"bytes-per-second\": %.0f, "
               "\"latency-p50-us\": %u, \"latency-p99-us\": %u, \"latency-max-us\": %u}\n",
                n_done, n_errors, seconds, (double)n_done / seconds,
                (double)n_done * (double)options.size / seconds, all[n / 2],
                all[n - n / 100 - (n > 0)], all[n - (n > 0)]);
        free(all);
        if (n_errors)
                exit(3);
}

static void end(int signal)
{
        told_to_end = 1;
}

static void usage(void)
{
        fputs("usage: nbdload --socket PATH [--export NAME] [--operation read|write|write-flush]\n"
              "               [--connections N] [--depth N] [--size SIZE] [--span SIZE]\n"
              "               [--offset SIZE] [--chunk SIZE --stride SIZE] [--seconds S | --count N |\n"
              "                --once] [--seed N] [--log FILE]\n",
                stderr);
        exit(2);
}

static uint64_t parse_size(const char *text)
{
        struct error err = ERROR_INIT;
        uint64_t size;

        if (size_parse(text, &size, &err) < 0) {
                fprintf(stderr, "nbdload: %s\n", err.message);
                exit(2);
        }
        return size;
}

static enum operation parse_operation(const char *text)
{
        if (!strcmp(text, "read"))
                return READ;
        if (!strcmp(text, "write"))
                return WRITE;
        if (!strcmp(text, "write-flush"))
                return WRITE_FLUSH;
        usage();
        return READ;
}

static void parse_options(int argc, char **argv)
{
        static const struct option known[] = {
                {"socket", required_argument, NULL, 'u'},
                {"log", required_argument, NULL, 'l'},
                {"export", required_argument, NULL, 'e'},
                {"operation", required_argument, NULL, 'o'},
                {"connections", required_argument, NULL, 'c'},
                {"depth", required_argument, NULL, 'd'},
                {"size", required_argument, NULL, 's'},
                {"span", required_argument, NULL, 'n'},
                {"offset", required_argument, NULL, 'f'},
                {"chunk", required_argument, NULL, 'k'},
                {"stride", required_argument, NULL, 'r'},
                {"seconds", required_argument, NULL, 't'},
                {"count", required_argument, NULL, 'C'},
                {"once", no_argument, NULL, '1'},
                {"seed", required_argument, NULL, 'x'},
                {0},
        };
        int c;

        while ((c = getopt_long(argc, argv, "", known, NULL)) >= 0) {
                switch (c) {
                case 'u': options.socket_path = optarg; break;
                case 'l': options.log_path = optarg; break;
                case 'e': options.export_name = optarg; break;
                case 'o': options.operation = parse_operation(optarg); break;
                case 'c': options.n_connections = (unsigned)strtoul(optarg, NULL, 10); break;
                case 'd': options.depth = (unsigned)strtoul(optarg, NULL, 10); break;
                case 's': options.size = parse_size(optarg); break;
                case 'n': options.span = parse_size(optarg); break;
                case 'f': options.offset = parse_size(optarg); break;
                case 'k': options.chunk = parse_size(optarg); break;
                case 'r': options.stride = parse_size(optarg); break;
                case 't': options.seconds = strtod(optarg, NULL); break;
                case 'C': options.count = strtoull(optarg, NULL, 10); break;
                case '1': options.once = true; break;
                case 'x': options.seed = strtoull(optarg, NULL, 10); break;
                default: usage();
                }
        }
        if (optind != argc || !options.socket_path || options.n_connections < 1 ||
                options.n_connections > CONNECTION_MAX || options.depth < 1 ||
                options.depth > DEPTH_MAX || options.size < 8 || options.size > 32u << 20 ||
                !options.chunk != !options.stride ||
                (options.chunk && options.chunk % options.size != 0))
                usage();
}

int main(int argc, char **argv)
{
        struct connection *connections;
        struct timespec ended;
        uint64_t disk = 0, last;

        parse_options(argc, argv);
        signal(SIGTERM, end);
        connections = calloc(options.n_connections, sizeof(*connections));
        if (!connections)
                die("no memory");
        for (unsigned i = 0; i < options.n_connections; i++) {
                connections[i].number = i;
                connections[i].fd = connect_to(options.socket_path);
                disk = negotiate(connections[i].fd, options.export_name);
        }
        if (options.span == 0)
                options.span = disk > options.offset ? disk - options.offset : 0;
        n_places = options.span / options.size;
        last = n_places ? offset_of(n_places - 1) : UINT64_MAX;
        if (n_places == 0 || last > disk || disk - last < options.size)
                die_protocol("the span does not fit into the disk");
        if (options.once)
                shuffle_places();
        pthread_barrier_init(&all_connected, NULL, options.n_connections + 1);
        for (unsigned i = 0; i < options.n_connections; i++)
                if (pthread_create(&connections[i].thread, NULL, run_connection, &connections[i]))
                        die_protocol("no thread");
        pthread_barrier_wait(&all_connected);
        clock_gettime(CLOCK_MONOTONIC, &began);
        pthread_barrier_wait(&all_connected);
        for (unsigned i = 0; i < options.n_connections; i++)
                pthread_join(connections[i].thread, NULL);
        clock_gettime(CLOCK_MONOTONIC, &ended);
        if (options.log_path)
                write_log(connections);
        report(connections, seconds_between(&began, &ended));
        return 0;
}
