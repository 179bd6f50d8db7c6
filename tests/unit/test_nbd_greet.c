/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong before a client has an export: a name or a length that the parser trusts, an
 * option that is read too far or not far enough, a state that outlives what set it, words of the
 * client that are sent back, a client that says nothing for ever. Names of the holes that others had
 * stand beside their tests. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"

#define DISK_SIZE (1u << 20)

static struct nbd_server *server;
static struct chain *chain;

static void start_with(const struct nbd_server_options *options)
{
        struct nbd_export_options export = {
                .name = "disk",
                .description = "a small disk",
                .chain = chain = fake_chain_new(DISK_SIZE, 2, true),
                .is_default = true,
        };
        struct nbd_export_options second = {.name = "look", .chain = chain, .read_only = true};
        struct error err = ERROR_INIT;

        cr_assert(eq(int, nbd_server_new(options, &server, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(server, &export, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(server, &second, &err), 0));
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
}

static void start(void)
{
        start_with(NULL);
}

/* Every test ends with this: whatever the client did, others are served, and all ends in time. */
static void stop(void)
{
        struct error err = ERROR_INIT;
        uint8_t data[16];
        int fd = client_connect(server);

        client_go(fd, "disk", true, NULL, NULL);
        cr_assert(eq(int, client_read(fd, data, sizeof(data), 0), 0));
        close(fd);
        cr_assert(eq(int, nbd_server_stop(server, 5000, &err), 0), "%s", err.message);
        server = nbd_server_free(server);
        chain = chain_abandon(chain);
}

TestSuite(nbd_greet, .init = start, .fini = stop, .timeout = 30);
TestSuite(nbd_greet_own, .timeout = 30);

Test(nbd_greet, go_gives_size_flags_and_block_sizes)
{
        int fd = client_connect(server);
        struct nbd_wire_info_block_size sizes = {0};
        struct option_reply reply;
        uint8_t data[64];
        bool seen = false;
        uint64_t size;
        uint16_t flags = client_go(fd, "disk", true, NULL, &size);

        cr_assert(eq(u64, size, DISK_SIZE));
        cr_assert(ne(int, flags &(NBD_FLAG_HAS_FLAGS), 0));
        cr_assert(ne(int, flags &(NBD_FLAG_SEND_FUA), 0));
        cr_assert(ne(int, flags &(NBD_FLAG_SEND_DF), 0));
        cr_assert(ne(int, flags &(NBD_FLAG_CAN_MULTI_CONN), 0));
        cr_assert(eq(int, flags &(NBD_FLAG_READ_ONLY), 0));
        close(fd);

        fd = client_connect(server);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option(fd, NBD_OPT_INFO, data, client_info_data(data, "disk"));
        do {
                client_option_reply(fd, &reply);
                if (reply.length == sizeof(sizes) && reply.data[1] == NBD_INFO_BLOCK_SIZE) {
                        memcpy(&sizes, reply.data, sizeof(sizes));
                        seen = true;
                }
        } while (reply.type == NBD_REP_INFO);
        cr_assert(seen);
        cr_assert(eq(u32, be32_get(sizes.minimum), 1));
        cr_assert(eq(u32, be32_get(sizes.preferred), 65536));
        cr_assert(eq(u32, be32_get(sizes.maximum), 32u << 20));
        close(fd);
}

Test(nbd_greet, a_read_only_export_offers_no_writes)
{
        int fd = client_connect(server);
        uint16_t flags = client_go(fd, "look", false, NULL, NULL);

        cr_assert(ne(int, flags &(NBD_FLAG_READ_ONLY), 0));
        cr_assert(eq(int,
                flags &(NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO |
                        NBD_FLAG_SEND_DF),
                0));
        close(fd);
}

Test(nbd_greet, the_empty_name_is_the_default_export)
{
        int fd = client_connect(server);
        struct nbd_client_info info;
        uint64_t size;

        client_go(fd, "", true, NULL, &size);
        cr_assert(eq(u64, size, DISK_SIZE));
        cr_assert(eq(sz, nbd_server_clients_get(server, &info, 1), 1));
        cr_assert(strcmp(info.export_name, "disk") == 0);
        cr_assert(eq(int, info.state, NBD_CLIENT_SERVED));
        cr_assert(info.structured);
        cr_assert(strncmp(info.peer, "unix:", 5) == 0);
        close(fd);
}

Test(nbd_greet, list_names_every_export_once)
{
        int fd = client_connect(server);
        struct option_reply reply;
        const char *expected[] = {"disk", "look"};

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option(fd, NBD_OPT_LIST, NULL, 0);
        for (int i = 0; i < 2; i++) {
                client_option_reply(fd, &reply);
                cr_assert(eq(u32, reply.type, NBD_REP_SERVER));
                cr_assert(memcmp(reply.data + 4, expected[i], 4) == 0);
        }
        client_option_reply(fd, &reply);
        cr_assert(eq(u32, reply.type, NBD_REP_ACK));
        cr_assert(eq(u32, client_option_result(fd, NBD_OPT_LIST, "x", 1), NBD_REP_ERR_INVALID));
        close(fd);
}

/* The old way: 124 zeros unless they were declined, and no reply header. */
Test(nbd_greet, export_name_with_and_without_zeroes)
{
        for (int no_zeroes = 0; no_zeroes < 2; no_zeroes++) {
                int fd = client_connect(server);
                struct nbd_wire_export export;
                uint8_t zeroes[NBD_EXPORT_ZEROES], data[4];

                client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE | (no_zeroes ? NBD_FLAG_NO_ZEROES : 0));
                client_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4);
                client_receive(fd, &export, sizeof(export));
                cr_assert(eq(u64, be64_get(export.size), DISK_SIZE));
                if (!no_zeroes)
                        client_receive(fd, zeroes, sizeof(zeroes));
                cr_assert(eq(int, client_read(fd, data, sizeof(data), 100), 0));
                close(fd);
        }
}

/* A client of before fixed newstyle has this option alone. */
Test(nbd_greet, a_client_without_fixed_newstyle_may_only_name_its_export)
{
        int fd = client_connect(server);
        struct nbd_wire_export export;

        client_hello(fd, NBD_FLAG_NO_ZEROES);
        client_option(fd, NBD_OPT_EXPORT_NAME, "disk", 4);
        client_receive(fd, &export, sizeof(export));
        close(fd);

        fd = client_connect(server);
        client_hello(fd, 0);
        client_option(fd, NBD_OPT_LIST, NULL, 0);
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

Test(nbd_greet, unknown_names_are_refused)
{
        static const char *const queries[] = {"base:allocation"};
        uint8_t data[8192];
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        cr_assert(
                eq(u32, client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, "none")),
                        NBD_REP_ERR_UNKNOWN));
        cr_assert(eq(u32,
                client_option_result(fd, NBD_OPT_SET_META_CONTEXT, data,
                        client_context_data(data, "none", queries, 1)),
                NBD_REP_ERR_UNKNOWN));
        cr_assert(
                eq(u32, client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, "disk")),
                        NBD_REP_ACK));
        close(fd);

        fd = client_connect(server);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option(fd, NBD_OPT_EXPORT_NAME, "none", 4);
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

/* CVE-2017-15118, CVE-2020-10761: long names, and nothing of them in the answer. */
Test(nbd_greet, names_of_every_length_are_borne_with)
{
        static const uint32_t lengths[] = {0, 1, 255, 256, 4095, 4096, 4097, 60000};
        static char name[65536];
        static uint8_t data[65536 + 16];

        memset(name, 'n', sizeof(name));
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
                int fd = client_connect(server);
                struct option_reply reply;

                name[lengths[i]] = '\0';
                client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
                client_option(fd, NBD_OPT_GO, data, client_info_data(data, name));
                client_option_reply(fd, &reply);
                if (lengths[i] == 0) {
                        cr_expect(eq(u32, reply.type, NBD_REP_INFO));
                } else {
                        cr_expect(eq(u32, reply.type, NBD_REP_ERR_UNKNOWN));
                        cr_expect(lt(u32, reply.length, 256));
                        cr_expect(memmem(reply.data, reply.length, "nnn", 3) == NULL);
                }
                name[lengths[i]] = 'n';
                close(fd);
        }
}

/* CVE-2022-26495, 26496: sums of lengths inside an option. */
Test(nbd_greet, lengths_inside_an_option_that_do_not_fit_are_refused)
{
        static const struct {
                const char *what;
                uint32_t option, length;
                uint8_t data[32];
        } bad[] = {
                {"name longer than the option", NBD_OPT_GO, 8, {0, 0, 0, 100, 'd', 'i', 's', 'k'}},
                {"name of 2^32-1", NBD_OPT_INFO, 10,
                        {255, 255, 255, 255, 'd', 'i', 's', 'k', 0, 0}},
                {"name of 2^32-4", NBD_OPT_GO, 10, {255, 255, 255, 252, 'd', 'i', 's', 'k', 0, 0}},
                {"no count", NBD_OPT_GO, 8, {0, 0, 0, 4, 'd', 'i', 's', 'k'}},
                {"half a count", NBD_OPT_GO, 9, {0, 0, 0, 4, 'd', 'i', 's', 'k', 0}},
                {"more infos than data", NBD_OPT_GO, 10, {0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 1}},
                {"65535 infos", NBD_OPT_GO, 12, {0, 0, 0, 4, 'd', 'i', 's', 'k', 255, 255, 0, 1}},
                {"bytes behind", NBD_OPT_GO, 11, {0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 0, 9}},
                {"empty", NBD_OPT_GO, 0, {0}},
                {"context: empty", NBD_OPT_SET_META_CONTEXT, 0, {0}},
                {"context: no queries' count", NBD_OPT_SET_META_CONTEXT, 8,
                        {0, 0, 0, 4, 'd', 'i', 's', 'k'}},
                {"context: query too long", NBD_OPT_LIST_META_CONTEXT, 17,
                        {0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 0, 0, 1, 0, 0, 0, 9, 'b'}},
                {"context: 2^32-1 queries", NBD_OPT_SET_META_CONTEXT, 12,
                        {0, 0, 0, 4, 'd', 'i', 's', 'k', 255, 255, 255, 255}},
                /* QEMU work item 4843: an assertion there */
                {"context: bytes behind", NBD_OPT_SET_META_CONTEXT, 13,
                        {0, 0, 0, 4, 'd', 'i', 's', 'k', 0, 0, 0, 0, 7}},
                {"structured with data", NBD_OPT_STRUCTURED_REPLY, 1, {1}},
        };
        uint8_t data[64];
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                cr_expect(
                        eq(u32, client_option_result(fd, bad[i].option, bad[i].data, bad[i].length),
                                NBD_REP_ERR_INVALID),
                        "%s", bad[i].what);
        /* It read exactly each option's length: the next one is understood. */
        cr_assert(
                eq(u32, client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, "disk")),
                        NBD_REP_ACK));
        close(fd);
}

Test(nbd_greet, what_the_server_does_not_know_it_refuses_and_goes_on)
{
        static const uint32_t options[] = {0, 4, NBD_OPT_STARTTLS, 11, 12345, 0xffffffff};
        static uint8_t data[NBD_OPTION_MAX];
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
                for (uint32_t length = 0; length <= sizeof(data); length += sizeof(data) / 2)
                        cr_expect(eq(u32, client_option_result(fd, options[i], data, length),
                                          NBD_REP_ERR_UNSUP),
                                "option %u of %u bytes", options[i], length);
        cr_assert(
                eq(u32, client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, "disk")),
                        NBD_REP_ACK));
        close(fd);
}

/* CVE-2017-15119: a 4 GiB option is not read. */
Test(nbd_greet, an_option_that_is_too_long_ends_the_connection_unread)
{
        static const uint32_t lengths[] = {NBD_OPTION_MAX + 1, 1u << 31, UINT32_MAX};
        static const uint32_t options[] = {NBD_OPT_EXPORT_NAME, NBD_OPT_LIST, NBD_OPT_GO, 77};

        for (size_t i = 0; i < 3; i++) {
                for (size_t j = 0; j < 4; j++) {
                        int fd = client_connect(server);

                        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
                        client_option_header(fd, options[j], lengths[i]);
                        cr_expect(client_sees_silent_end(fd));
                        close(fd);
                }
        }
}

Test(nbd_greet, abort_is_acknowledged_and_ends)
{
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        cr_assert(eq(u32, client_option_result(fd, NBD_OPT_ABORT, NULL, 0), NBD_REP_ACK));
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

Test(nbd_greet, nonsense_ends_the_connection)
{
        struct nbd_wire_option wire = {.magic = be64_make(NBD_OPTION_MAGIC + 1)};
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_send(fd, &wire, sizeof(wire));
        cr_assert(client_sees_silent_end(fd));
        close(fd);

        fd = client_connect(server);
        client_hello(fd, 1u << 7); /* a flag that does not exist */
        cr_assert(client_sees_silent_end(fd));
        close(fd);
}

static unsigned list_contexts(
        int fd, uint32_t option, const char *const *queries, uint32_t n, char names[4][64])
{
        struct option_reply reply;
        uint8_t data[1024];
        unsigned found = 0;

        client_option(fd, option, data, client_context_data(data, "disk", queries, n));
        for (;;) {
                client_option_reply(fd, &reply);
                if (reply.type == NBD_REP_ACK)
                        return found;
                cr_assert(eq(u32, reply.type, NBD_REP_META_CONTEXT));
                snprintf(names[found++], 64, "%.*s", (int)reply.length - 4,
                        (const char *)reply.data + 4);
        }
}

Test(nbd_greet, contexts_are_listed_by_name_namespace_and_all)
{
        static const struct {
                const char *query;
                unsigned listed, set;
        } cases[] = {
                {"base:allocation", 1, 1},
                {"base:", 1, 0},
                {"vhdd:", 1, 0},
                {"vhdd:depth", 1, 1},
                {"qemu:", 1, 0},
                {"qemu:allocation-depth", 1, 1},
                {"base:allocatio", 0, 0},
                {"base:allocation2", 0, 0},
                {"base", 0, 0},
                {"", 0, 0},
                {":", 0, 0},
                {"qemu:dirty-bitmap:x", 0, 0},
        };
        char names[4][64];
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        cr_assert(eq(uint, list_contexts(fd, NBD_OPT_LIST_META_CONTEXT, NULL, 0, names), 3));
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                const char *twice[] = {cases[i].query, cases[i].query};

                cr_expect(eq(uint, list_contexts(fd, NBD_OPT_LIST_META_CONTEXT, twice, 2, names),
                                  cases[i].listed),
                        "list '%s'", cases[i].query);
                cr_expect(eq(uint, list_contexts(fd, NBD_OPT_SET_META_CONTEXT, twice, 2, names),
                                  cases[i].set),
                        "set '%s'", cases[i].query);
        }
        close(fd);
}

Test(nbd_greet, contexts_need_structured_replies)
{
        static const char *const queries[] = {"base:allocation"};
        uint8_t data[256];
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        cr_assert(eq(u32,
                client_option_result(fd, NBD_OPT_SET_META_CONTEXT, data,
                        client_context_data(data, "disk", queries, 1)),
                NBD_REP_ERR_INVALID));
        close(fd);
}

/* State that outlives what set it: a failed or empty SET clears, and GO of another export does. */
Test(nbd_greet, contexts_are_void_after_a_later_set_and_for_another_export)
{
        static const char *const queries[] = {"base:allocation"};
        uint8_t data[256];

        for (int how = 0; how < 4; how++) {
                int fd = client_connect(server);
                const char *go = how == 2 ? "look" : "disk";

                client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
                client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
                client_option_result(fd, NBD_OPT_SET_META_CONTEXT, data,
                        client_context_data(data, "disk", queries, 1));
                if (how == 0)
                        client_option_result(fd, NBD_OPT_SET_META_CONTEXT, data,
                                client_context_data(data, "disk", queries, 0));
                if (how == 1)
                        client_option_result(fd, NBD_OPT_SET_META_CONTEXT, data,
                                client_context_data(data, "none", queries, 1));
                client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, go));
                cr_expect(eq(u32, client_do(fd, NBD_CMD_BLOCK_STATUS, 0, 0, 4096),
                                  how == 3 ? NBD_SUCCESS : NBD_EINVAL),
                        "case %d", how);
                close(fd);
        }
}

/* CVE-2013-7441, CVE-2017-9524, CVE-2017-7539: gone at each byte. */
Test(nbd_greet, a_client_that_goes_at_any_byte_does_no_harm)
{
        uint8_t all[256];
        uint8_t *p = all;
        be32 flags = be32_make(NBD_FLAG_FIXED_NEWSTYLE);
        struct nbd_wire_option option = {
                .magic = be64_make(NBD_OPTION_MAGIC),
                .option = be32_make(NBD_OPT_STRUCTURED_REPLY),
        };
        struct nbd_wire_request request = {
                .magic = be32_make(NBD_REQUEST_MAGIC),
                .command = be16_make(NBD_CMD_WRITE),
                .length = be32_make(8),
        };
        uint8_t data[64];
        uint32_t length = client_info_data(data, "disk");

        p = mempcpy(p, &flags, sizeof(flags));
        p = mempcpy(p, &option, sizeof(option));
        option.option = be32_make(NBD_OPT_GO);
        option.length = be32_make(length);
        p = mempcpy(p, &option, sizeof(option));
        p = mempcpy(p, data, length);
        p = mempcpy(p, &request, sizeof(request));
        p = mempcpy(p, "payload", 8);
        for (size_t n = 0; n <= (size_t)(p - all); n++) {
                int fd = client_connect(server);

                client_send(fd, all, n);
                close(fd);
        }
        /* And one wrong byte at each place. */
        for (size_t n = 0; n < (size_t)(p - all); n++) {
                int fd = client_connect(server);

                all[n] ^= 0x5a;
                client_send(fd, all, (size_t)(p - all));
                all[n] ^= 0x5a;
                shutdown(fd, SHUT_WR);
                cr_expect(client_sees_end(fd), "byte %zu", n);
                close(fd);
        }
}

Test(nbd_greet, an_option_that_comes_byte_by_byte_is_understood)
{
        struct nbd_wire_option option = {
                .magic = be64_make(NBD_OPTION_MAGIC),
                .option = be32_make(NBD_OPT_GO),
        };
        struct option_reply reply;
        uint8_t data[64];
        uint32_t length = client_info_data(data, "disk");
        int fd = client_connect(server);

        option.length = be32_make(length);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        for (size_t i = 0; i < sizeof(option); i++)
                client_send(fd, (uint8_t *)&option + i, 1);
        for (size_t i = 0; i < length; i++)
                client_send(fd, data + i, 1);
        client_option_reply(fd, &reply);
        cr_assert(eq(u32, reply.type, NBD_REP_INFO));
        close(fd);
}

/* A server that reads further than the option loses the request behind it. */
Test(nbd_greet, a_request_that_follows_at_once_is_answered)
{
        uint8_t buffer[256], data[4];
        struct nbd_wire_option option = {
                .magic = be64_make(NBD_OPTION_MAGIC),
                .option = be32_make(NBD_OPT_EXPORT_NAME),
                .length = be32_make(4),
        };
        struct nbd_wire_request request = {
                .magic = be32_make(NBD_REQUEST_MAGIC),
                .length = be32_make(4),
        };
        struct nbd_wire_export export;
        struct nbd_answer answer;
        uint8_t *p = buffer;
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
        p = mempcpy(p, &option, sizeof(option));
        p = mempcpy(p, "disk", 4);
        p = mempcpy(p, &request, sizeof(request));
        client_send(fd, buffer, (size_t)(p - buffer));
        client_receive(fd, &export, sizeof(export));
        client_answer_get(fd, &answer, data, 0, 4);
        cr_assert(eq(u32, answer.error, 0));
        close(fd);
}

/* CVE-2024-7409: half-open sockets, and the end while they hang. */
Test(nbd_greet_own, a_silent_client_is_cut_off_in_time)
{
        struct nbd_server_options options = {.handshake_timeout_ms = 800};
        struct nbd_server_counters counters;
        uint8_t data[64];
        int silent, slow;

        start_with(&options);
        silent = client_connect(server);
        slow = client_connect(server);
        client_hello(slow, NBD_FLAG_FIXED_NEWSTYLE);
        client_option(slow, NBD_OPT_INFO, data, client_info_data(data, "disk"));
        cr_assert(client_sees_end(silent));
        cr_assert(client_sees_end(slow));
        nbd_server_counters_get(server, &counters);
        cr_expect(eq(u64, counters.served, 0));
        close(silent);
        close(slow);
        stop();
}

Test(nbd_greet_own, the_end_does_not_wait_for_clients_that_hang)
{
        struct error err = ERROR_INIT;
        int fds[5];

        start_with(NULL);
        for (int i = 0; i < 5; i++)
                fds[i] = client_connect(server);
        cr_assert(eq(int, nbd_server_stop(server, 5000, &err), 0));
        for (int i = 0; i < 5; i++) {
                cr_assert(client_sees_end(fds[i]));
                close(fds[i]);
        }
        nbd_server_free(server);
        chain_abandon(chain);
}

/* A crowd that never negotiates must not keep others out. */
Test(nbd_greet_own, silent_clients_make_room_for_others)
{
        struct nbd_server_options options = {.max_greeting = 4};
        int fds[4];

        start_with(&options);
        for (int i = 0; i < 4; i++)
                fds[i] = client_connect(server);
        usleep(150000);
        for (int i = 0; i < 6; i++) {
                int fd = client_connect(server);

                client_go(fd, "disk", true, NULL, NULL);
                close(fd);
        }
        cr_assert(client_sees_end(fds[0]));
        for (int i = 0; i < 4; i++)
                close(fds[i]);
        stop();
}

static void wait_until_served(uint64_t n)
{
        struct nbd_server_counters counters;

        do {
                usleep(1000);
                nbd_server_counters_get(server, &counters);
        } while (counters.clients != n);
}

Test(nbd_greet_own, more_clients_than_allowed_are_told_so)
{
        struct nbd_server_options options = {.max_clients = 2};
        uint8_t data[64];
        int a, b, c;

        start_with(&options);
        a = client_connect(server);
        b = client_connect(server);
        c = client_connect(server);
        client_go(a, "disk", true, NULL, NULL);
        client_go(b, "disk", true, NULL, NULL);
        client_hello(c, NBD_FLAG_FIXED_NEWSTYLE);
        cr_assert(eq(u32, client_option_result(c, NBD_OPT_GO, data, client_info_data(data, "disk")),
                NBD_REP_ERR_POLICY));
        close(a);
        cr_assert(eq(int, client_do(b, NBD_CMD_FLUSH, 0, 0, 0), 0));
        wait_until_served(1);
        cr_assert(eq(u32, client_option_result(c, NBD_OPT_GO, data, client_info_data(data, "disk")),
                NBD_REP_ACK));
        cr_assert(eq(int, client_do(c, NBD_CMD_FLUSH, 0, 0, 0), 0));
        close(b);
        close(c);
        wait_until_served(0);
        stop();
}

Test(nbd_greet_own, exports_with_impossible_names_are_refused)
{
        static const char *const bad[] = {"\xff", "a\xc0\x80", "\xed\xa0\x80", "\xf8\x88\x80\x80"};
        struct nbd_export_options export = {.name = "a"};
        struct error err = ERROR_INIT;
        char name[NBD_EXPORT_NAME_MAX + 2];

        export.chain = fake_chain_new(4096, 1, true);
        cr_assert(eq(int, nbd_server_new(NULL, &server, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(server, &export, &err), 0));
        cr_expect(eq(int, nbd_server_add_export(server, &export, &err), -EEXIST));
        for (size_t i = 0; i < 4; i++) {
                export.name = bad[i];
                cr_expect(eq(int, nbd_server_add_export(server, &export, &err), -EINVAL));
        }
        memset(name, 'x', sizeof(name) - 1);
        name[sizeof(name) - 1] = '\0';
        export.name = name;
        cr_expect(eq(int, nbd_server_add_export(server, &export, &err), -EINVAL));
        name[NBD_EXPORT_NAME_MAX] = '\0';
        cr_expect(eq(int, nbd_server_add_export(server, &export, &err), 0));
        export.name = "b\xc3\xa4r \xf0\x9f\x90\xbb";
        cr_expect(eq(int, nbd_server_add_export(server, &export, &err), 0));
        nbd_server_free(server);
        chain_abandon(export.chain);
}
