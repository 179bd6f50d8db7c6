/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong under load and at the end: a client that takes no replies and so stops others, or
 * makes the server hold memory without bound; an end that loses an answered write, waits for ever, or
 * leaves a socket behind; two servers on one path. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"

#define DISK_SIZE (8u << 20)

static struct nbd_server *server;
static struct chain *chain;
static struct fake_switches *switches;
static uint8_t buffer[DISK_SIZE];

static void make(const struct nbd_server_options *options)
{
        struct nbd_export_options export = {
                .name = "disk",
                .chain = chain = fake_chain_new(DISK_SIZE, 1, true),
        };
        struct error err = ERROR_INIT;

        switches = fake_chain_switches(chain);
        cr_assert(eq(int, nbd_server_new(options, &server, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(server, &export, &err), 0));
}

static void start_with(const struct nbd_server_options *options)
{
        struct error err = ERROR_INIT;

        make(options);
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
}

static void end(void)
{
        server = nbd_server_free(server);
        chain = chain_abandon(chain);
}

TestSuite(nbd_limits, .timeout = 60);

static int go(void)
{
        int fd = client_connect(server);

        client_go(fd, "disk", true, NULL, NULL);
        return fd;
}

/* Sends as many requests as the server takes while no reply is read. */
static unsigned stuff(int fd, uint32_t length)
{
        unsigned n = 0;

        for (;;) {
                struct nbd_wire_request wire = {
                        .magic = be32_make(NBD_REQUEST_MAGIC),
                        .command = be16_make(NBD_CMD_READ),
                        .length = be32_make(length),
                };
                ssize_t r = send(fd, &wire, sizeof(wire), MSG_DONTWAIT | MSG_NOSIGNAL);

                if (r != sizeof(wire)) {
                        usleep(30000);
                        r = send(fd, &wire, sizeof(wire), MSG_DONTWAIT | MSG_NOSIGNAL);
                        if (r != sizeof(wire))
                                return n;
                }
                n++;
        }
}

Test(nbd_limits, clients_that_take_no_replies_stop_nobody_else_and_hold_bounded_memory)
{
        struct nbd_server_options options = {
                .threads = 2,
                .max_bytes_per_client = 2u << 20,
                .max_bytes = 4u << 20,
        };
        struct nbd_client_info infos[8];
        uint64_t in_flight = 0;
        int stuck[6], fd;
        size_t n;

        start_with(&options);
        memset(fake_chain_bytes(chain), 0x77, DISK_SIZE);
        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
        for (int i = 0; i < 6; i++) {
                stuck[i] = go();
                /* Some by the pool, some on their own thread, some by sendfile. */
                atomic_store(&switches->cold_reads, i % 3 == 0);
                stuff(stuck[i], i % 2 ? 4096 : 512u << 10);
        }
        for (int cold = 0; cold < 2; cold++) {
                atomic_store(&switches->cold_reads, cold);
                fd = go();
                for (int i = 0; i < 50; i++) {
                        cr_assert(eq(u32, client_read(fd, buffer, 65536, 4096), 0));
                        cr_assert(eq(u32, client_write(fd, buffer, 4096, 0, NBD_CMD_FLAG_FUA), 0));
                        cr_assert(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
                }
                close(fd);
        }
        n = nbd_server_clients_get(server, infos, 8);
        cr_assert(ge(sz, n, 6));
        for (size_t i = 0; i < n && i < 8; i++) {
                /* One request more than the bound may be under way, if it is the only one. */
                cr_expect(le(u64, infos[i].bytes_in_flight, (2u << 20) + (513u << 10)));
                in_flight += infos[i].bytes_in_flight;
        }
        cr_expect(le(u64, in_flight, (4u << 20) + 6 * (513u << 10)));
        for (int i = 0; i < 6; i++)
                close(stuck[i]);
        cr_assert(eq(int, nbd_server_stop(server, 5000, NULL), 0));
        end();
}

/* ... and gets all of them once it reads. */
Test(nbd_limits, a_client_that_was_slow_gets_every_reply)
{
        struct nbd_server_options options = {.max_bytes_per_client = 1u << 20};
        struct nbd_answer answer;

        start_with(&options);
        for (uint64_t i = 0; i < DISK_SIZE; i++)
                fake_chain_bytes(chain)[i] = (uint8_t)(i * 7 + (i >> 9));
        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
        for (int cold = 0; cold < 2; cold++) {
                int fd = go();
                unsigned n;

                atomic_store(&switches->cold_reads, cold);
                n = stuff(fd, 40000);
                cr_expect(gt(uint, n, 10));
                for (unsigned i = 0; i < n; i++) {
                        client_answer_get(fd, &answer, buffer, 0, 40000);
                        cr_assert(memcmp(buffer, fake_chain_bytes(chain), 40000) == 0);
                }
                close(fd);
        }
        cr_assert(eq(int, nbd_server_stop(server, 5000, NULL), 0));
        end();
}

/* A write whose payload never comes holds one buffer, and no thread of the pool. */
Test(nbd_limits, payloads_that_never_come_stop_nobody_else)
{
        struct nbd_server_options options = {.threads = 1, .max_bytes = 1u << 20};
        int slow[8], fd;

        start_with(&options);
        for (int i = 0; i < 8; i++) {
                slow[i] = go();
                client_request(slow[i], NBD_CMD_WRITE, 0, 1, 0, 4u << 20);
                client_send(slow[i], buffer, 1000);
        }
        fd = go();
        cr_assert(eq(u32, client_write(fd, buffer, 1u << 20, 0, 0), 0));
        cr_assert(eq(u32, client_write(fd, buffer, 4096, 0, NBD_CMD_FLAG_FUA), 0));
        for (int i = 0; i < 8; i++)
                close(slow[i]);
        close(fd);
        cr_assert(eq(int, nbd_server_stop(server, 5000, NULL), 0));
        end();
}

/* Requests under way at the end are finished and answered; then the chain is flushed. */
Test(nbd_limits, the_end_finishes_what_is_under_way)
{
        struct chain_counters before, after;
        struct nbd_answer answer;
        struct error err = ERROR_INIT;
        int fd;

        start_with(NULL);
        fd = go();
        atomic_store(&switches->cold_reads, true);
        atomic_store(&switches->hold_reads, true);
        client_request(fd, NBD_CMD_READ, 0, 9, 0, 4096);
        while (atomic_load(&switches->reads_held) < 1)
                usleep(500);
        chain_counters_get(chain, &before);
        if (fork() == 0)
                _exit(0); /* nothing of the server's may be disturbed by a child */
        atomic_store(&switches->hold_reads, false);
        cr_assert(eq(int, nbd_server_stop(server, 5000, &err), 0));
        client_answer_get(fd, &answer, buffer, 0, 4096);
        cr_assert(eq(u64, answer.cookie, 9));
        cr_assert(client_sees_silent_end(fd));
        chain_counters_get(chain, &after);
        cr_assert(gt(u64, after.flushes, before.flushes));
        close(fd);
        end();
}

Test(nbd_limits, the_end_cuts_off_who_takes_no_replies)
{
        struct error err = ERROR_INIT;
        int fd[3];

        start_with(NULL);
        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
        for (int i = 0; i < 3; i++) {
                fd[i] = go();
                atomic_store(&switches->cold_reads, i == 0);
                stuff(fd[i], i == 2 ? 4096 : 1u << 20);
        }
        cr_assert(eq(int, nbd_server_stop(server, 200, &err), 0));
        for (int i = 0; i < 3; i++) {
                cr_assert(client_sees_end(fd[i]));
                close(fd[i]);
        }
        end();
}

Test(nbd_limits, the_end_tells_of_a_flush_that_failed)
{
        struct error err = ERROR_INIT;

        start_with(NULL);
        atomic_store(&switches->flush_error, -EIO);
        cr_assert(eq(int, nbd_server_stop(server, 1000, &err), -EIO));
        cr_assert(strstr(err.message, "flush") != NULL);
        end();
}

static int connect_unix(const char *path)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
                return fd;
        close(fd);
        return -1;
}

Test(nbd_limits, a_unix_socket_comes_and_goes_and_is_not_shared)
{
        char directory[] = "/tmp/vhdd-nbd-XXXXXX", path[64], other[64];
        struct nbd_server *second;
        struct error err = ERROR_INIT;
        struct stat st;
        char *uri;
        FILE *f;
        int fd;

        cr_assert(mkdtemp(directory) != NULL);
        snprintf(path, sizeof(path), "%s/a socket", directory);
        snprintf(other, sizeof(other), "%s/file", directory);
        make(NULL);
        cr_assert(eq(int, nbd_server_listen_unix(server, path, &err), 0), "%s", err.message);
        uri = nbd_server_uri(server, 0, "bär&?");
        cr_expect(strstr(uri, "nbd+unix:///b%C3%A4r%26%3F?socket=/") == uri, "%s", uri);
        cr_expect(strstr(uri, "/a%20socket") != NULL, "%s", uri);
        free(uri);
        cr_assert(eq(int, nbd_server_start(server, &err), 0));

        fd = connect_unix(path);
        client_go(fd, "disk", true, NULL, NULL);
        cr_assert(eq(u32, client_read(fd, buffer, 512, 0), 0));

        cr_assert(eq(int, nbd_server_new(NULL, &second, &err), 0));
        cr_expect(eq(int, nbd_server_listen_unix(second, path, &err), -EADDRINUSE));
        f = fopen(other, "w");
        fclose(f);
        cr_expect(eq(int, nbd_server_listen_unix(second, other, &err), -EEXIST));
        nbd_server_free(second);
        cr_expect(eq(int, stat(path, &st), 0));
        cr_expect(eq(int, stat(other, &st), 0));

        cr_assert(eq(int, nbd_server_stop(server, 1000, &err), 0));
        cr_expect(lt(int, stat(path, &st), 0));
        close(fd);
        end();
        unlink(other);
        rmdir(directory);
}

/* After kill -9 the path is still there. */
Test(nbd_limits, a_dead_server_s_socket_is_replaced)
{
        char directory[] = "/tmp/vhdd-nbd-XXXXXX", path[64];
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct error err = ERROR_INIT;
        int dead, fd;

        cr_assert(mkdtemp(directory) != NULL);
        snprintf(path, sizeof(path), "%s/socket", directory);
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        dead = socket(AF_UNIX, SOCK_STREAM, 0);
        cr_assert(eq(int, bind(dead, (struct sockaddr *)&address, sizeof(address)), 0));
        close(dead);

        make(NULL);
        cr_assert(eq(int, nbd_server_listen_unix(server, path, &err), 0), "%s", err.message);
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
        fd = connect_unix(path);
        client_go(fd, "disk", true, NULL, NULL);
        close(fd);
        end();
        cr_expect(eq(int, rmdir(directory), 0));
}

/* No TLS: nobody but this host. */
Test(nbd_limits, tcp_listens_on_loopback_addresses_only)
{
        static const char *const far[] = {"0.0.0.0", "::", "192.0.2.1", "10.0.0.1"};
        struct error err = ERROR_INIT;
        char *uri;

        make(NULL);
        for (size_t i = 0; i < 4; i++) {
                cr_expect(eq(int, nbd_server_listen_tcp(server, far[i], 0, &err), -EACCES));
                cr_expect(strstr(err.message, "TLS") != NULL);
        }
        cr_assert(
                eq(int, nbd_server_listen_tcp(server, "127.0.0.1", 0, &err), 0), "%s", err.message);
        uri = nbd_server_uri(server, 0, "disk");
        cr_expect(strncmp(uri, "nbd://127.0.0.1:", 16) == 0);
        cr_expect(strcmp(uri + strlen(uri) - 5, "/disk") == 0);
        free(uri);
        end();
}

/* E15: on TCP to this host the receiver would see a page change after it was sent. */
Test(nbd_limits, tcp_to_this_host_is_never_sent_from_the_page_cache)
{
        struct sockaddr_in address = {.sin_family = AF_INET};
        struct nbd_server_counters counters;
        struct error err = ERROR_INIT;
        char *uri;
        int fd = socket(AF_INET, SOCK_STREAM, 0);

        make(NULL);
        cr_assert(eq(int, nbd_server_listen_tcp(server, "127.0.0.1", 0, &err), 0));
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
        memset(fake_chain_bytes(chain), 0x5a, 1u << 20);
        fake_chain_set(chain, 0, 1u << 20, EXTENT_DATA, 0);
        uri = nbd_server_uri(server, 0, "disk");
        address.sin_port = htons((uint16_t)atoi(strrchr(uri, ':') + 1));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        free(uri);
        cr_assert(eq(int, connect(fd, (struct sockaddr *)&address, sizeof(address)), 0));
        client_go(fd, "disk", true, NULL, NULL);
        cr_assert(eq(u32, client_read(fd, buffer, 1u << 20, 0), 0));
        cr_assert(memcmp(buffer, fake_chain_bytes(chain), 1u << 20) == 0);
        nbd_server_counters_get(server, &counters);
        cr_expect(eq(u64, counters.sendfile_reads, 0));
        cr_expect(eq(u64, counters.inline_reads, 1));
        close(fd);
        end();
}

static atomic_int lines;

static void count_lines(void *opaque, enum nbd_log_level level, const char *sentence)
{
        atomic_fetch_add(&lines, 1);
}

Test(nbd_limits, a_client_that_fails_without_end_does_not_fill_the_log)
{
        struct nbd_server_options options = {.log = count_lines};
        int fd;

        start_with(&options);
        fd = go();
        for (int i = 0; i < 3000; i++)
                cr_assert(eq(u32, client_do(fd, NBD_CMD_READ, 0, DISK_SIZE, 512), NBD_EINVAL));
        close(fd);
        nbd_server_stop(server, 1000, NULL);
        cr_expect(lt(int, lines, 1500));
        cr_expect(gt(int, lines, 10));
        end();
}

static int pair_of_type(int type, int domain)
{
        int fds[2];

        if (domain == AF_UNIX) {
                cr_assert(eq(int, socketpair(domain, type, 0, fds), 0));
                close(fds[0]);
                return fds[1];
        }
        return socket(domain, type, 0);
}

/* The kernel had a hole of this kind (CVE-2025-40080): only connected streams are taken. */
Test(nbd_limits, only_connected_stream_sockets_are_served)
{
        struct error err = ERROR_INIT;
        int bad[] = {pair_of_type(SOCK_DGRAM, AF_UNIX), pair_of_type(SOCK_SEQPACKET, AF_UNIX),
                pair_of_type(SOCK_DGRAM, AF_INET), pair_of_type(SOCK_STREAM, AF_INET), dup(0)};

        start_with(NULL);
        for (size_t i = 0; i < 5; i++) {
                cr_expect(lt(int, nbd_server_serve_fd(server, bad[i], &err), 0), "socket %zu", i);
                close(bad[i]);
        }
        end();
}

/* Events come in order, the last one when all is over. */
static atomic_int events[3];

static void note_event(void *opaque, enum nbd_event event, const struct nbd_client_info *client)
{
        atomic_fetch_add(&events[event], 1);
}

Test(nbd_limits, events_tell_of_clients_that_come_and_go)
{
        struct nbd_server_options options = {.event = note_event};
        int a, b;

        start_with(&options);
        a = go();
        b = client_connect(server);
        close(a);
        close(b);
        nbd_server_stop(server, 1000, NULL);
        cr_expect(eq(int, events[NBD_EVENT_CONNECTED], 2));
        cr_expect(eq(int, events[NBD_EVENT_SERVED], 1));
        cr_expect(eq(int, events[NBD_EVENT_GONE], 2));
        end();
}
