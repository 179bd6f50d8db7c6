/* SPDX-License-Identifier: Apache-2.0 */
/* One server greets, another serves. What could go wrong on the way: a byte that the client sent early
 * is lost, an option is answered twice or not at all, contexts arrive under other numbers, an export
 * that went meanwhile leaves the client hanging, a socket is shut under the process that serves it. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"

#define DISK_SIZE (1u << 20)

static struct nbd_server *greeter, *worker;
static struct chain *chain;
static atomic_int lookups, handed;
static atomic_int deaf;         /* nobody takes clients */
static atomic_bool slow;        /* lookups take their time */
static struct nbd_handoff last; /* what was handed over */
static const char *names_list[] = {"vm/disk", "vm/two words"};
static uint8_t buffer[65536];

static int lookup(void *opaque, const char *name, struct nbd_export_facts *ret, struct error *err)
{
        atomic_fetch_add(&lookups, 1);
        if (atomic_load(&slow))
                usleep(200000);
        if (strcmp(name, "vm/busy") == 0)
                return fail(err, EAGAIN, "it is being applied");
        if (strcmp(name, "vm/broken") == 0)
                return fail(err, EHOSTDOWN, "the broker is away");
        /* A name may be an id. */
        if (strcmp(name, "vm/disk") != 0 && strcmp(name, "1234/5678") != 0)
                return fail(err, ENOENT, "no such export");
        *ret = (struct nbd_export_facts){
                .name = strdup("vm/disk"),
                .description = strdup("the system disk"),
                .size = DISK_SIZE,
                .preferred_size = 65536,
                .changed = calloc(2, sizeof(char *)),
                .n_changed = 2,
        };
        ret->changed[0] = strdup("first");
        ret->changed[1] = strdup("second one");
        return 0;
}

static int list(void *opaque, struct nbd_export_list *ret, struct error *err)
{
        if (atomic_load(&deaf))
                return fail(err, EHOSTDOWN, "the broker is away");
        ret->entries = calloc(2, sizeof(*ret->entries));
        for (ret->n_entries = 0; ret->n_entries < 2; ret->n_entries++)
                ret->entries[ret->n_entries].name = strdup(names_list[ret->n_entries]);
        return 0;
}

static int hand_over(void *opaque, int fd, const struct nbd_handoff *handoff, struct error *err)
{
        int copy, r;

        if (atomic_load(&deaf))
                return fail(err, atomic_load(&deaf), "the broker is away");
        copy = dup(fd);
        last = *handoff;
        r = nbd_server_serve_handoff(worker, copy, handoff, err);
        if (r < 0)
                close(copy);
        atomic_fetch_add(&handed, 1);
        return r;
}

static const struct nbd_directory directory = {
        .lookup = lookup,
        .list = list,
        .hand_over = hand_over,
};

static void add_disk(void)
{
        static const struct nbd_changed snapshots[] = {
                {"second one", "layer 1"}, {"first", "layer 0"}};
        struct nbd_export_options export = {
                .name = "vm/disk",
                .description = "the system disk",
                .chain = chain,
                .changed = snapshots,
                .n_changed = 2,
        };
        struct error err = ERROR_INIT;

        cr_assert(eq(int, nbd_server_add_export(worker, &export, &err), 0), "%s", err.message);
}

static void start_with(struct nbd_server_options options)
{
        struct error err = ERROR_INIT;

        options.directory = &directory;
        chain = fake_chain_new(DISK_SIZE, 3, true);
        cr_assert(eq(int, nbd_server_new(NULL, &worker, &err), 0));
        cr_assert(eq(int, nbd_server_new(&options, &greeter, &err), 0));
        cr_assert(eq(int, nbd_server_start(worker, &err), 0));
        cr_assert(eq(int, nbd_server_start(greeter, &err), 0));
        add_disk();
}

static void start(void)
{
        start_with((struct nbd_server_options){0});
}

static void end(void)
{
        greeter = nbd_server_free(greeter);
        worker = nbd_server_free(worker);
        chain = chain_abandon(chain);
}

TestSuite(nbd_directory, .timeout = 60);

Test(nbd_directory, a_client_is_greeted_here_and_served_there)
{
        struct nbd_server_counters counters;
        struct nbd_client_info info;
        uint64_t size;
        int fd;

        start();
        fd = client_connect(greeter);
        client_go(fd, "1234/5678", true, NULL, &size);
        cr_expect(eq(u64, size, DISK_SIZE));
        cr_expect(eq(u32, client_write(fd, "here", 4, 100, 0), 0));
        cr_expect(memcmp(fake_chain_bytes(chain) + 100, "here", 4) == 0);
        cr_expect(eq(sz, nbd_server_clients_get(worker, &info, 1), 1));
        cr_expect(strcmp(info.export_name, "vm/disk") == 0, "%s", info.export_name);
        cr_expect(strncmp(info.peer, "unix:uid=", 9) == 0, "%s", info.peer);
        cr_expect(info.structured);
        for (int tries = 0; nbd_server_clients_get(greeter, &info, 1) > 0; tries++) {
                cr_assert(lt(int, tries, 4000));
                usleep(1000);
        }
        nbd_server_counters_get(greeter, &counters);
        cr_expect(eq(u64, counters.handed_over, 1));
        cr_expect(eq(u64, counters.failed_greetings, 0));
        /* The greeter's end is not the client's. */
        nbd_server_stop(greeter, 100, NULL);
        cr_expect(eq(u32, client_read(fd, buffer, 4096, 0), 0));
        close(fd);
        end();
}

/* A client may send its first requests right behind the option, before any answer. */
Test(nbd_directory, what_a_client_sent_early_is_not_lost)
{
        uint8_t data[256], stream[1024];
        uint8_t *p = stream;
        struct nbd_wire_option option = {
                .magic = be64_make(NBD_OPTION_MAGIC), .option = be32_make(NBD_OPT_GO)};
        struct nbd_wire_request request = {.magic = be32_make(NBD_REQUEST_MAGIC),
                .command = be16_make(NBD_CMD_FLUSH),
                .cookie = {1, 2, 3, 4, 5, 6, 7, 8}};
        struct option_reply reply;
        struct nbd_answer answer;
        uint32_t length = client_info_data(data, "vm/disk");
        int fd;

        start();
        fd = client_connect(greeter);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
        option.length = be32_make(length);
        p = mempcpy(p, &option, sizeof(option));
        p = mempcpy(p, data, length);
        p = mempcpy(p, &request, sizeof(request));
        client_send(fd, stream, (size_t)(p - stream));
        do
                client_option_reply(fd, &reply);
        while (reply.type == NBD_REP_INFO);
        cr_expect(eq(u32, reply.type, NBD_REP_ACK));
        client_answer_get(fd, &answer, NULL, 0, 0);
        cr_expect(eq(u64, answer.cookie, UINT64_C(0x0807060504030201)));
        cr_expect(eq(u32, answer.error, 0));
        close(fd);
        end();
}

Test(nbd_directory, a_client_of_the_oldest_kind_is_served_too)
{
        struct nbd_wire_export wire;
        uint8_t zeros[NBD_EXPORT_ZEROES];
        int fd;

        start();
        fd = client_connect(greeter);
        client_hello(fd, 0);
        client_option(fd, NBD_OPT_EXPORT_NAME, "vm/disk", 7);
        client_receive(fd, &wire, sizeof(wire));
        client_receive(fd, zeros, sizeof(zeros));
        cr_expect(eq(u64, be64_get(wire.size), DISK_SIZE));
        cr_expect(eq(u32, client_read(fd, buffer, 512, 0), 0));
        close(fd);

        fd = client_connect(greeter);
        client_hello(fd, 0);
        client_option(fd, NBD_OPT_EXPORT_NAME, "vm/none", 7);
        cr_expect(client_sees_silent_end(fd));
        close(fd);
        end();
}

Test(nbd_directory, contexts_keep_their_numbers)
{
        static const char *const contexts[] = {
                "vhdd:changed:first", "base:allocation", "vhdd:changed:second one", NULL};
        struct nbd_answer answer;
        int fd;

        start();
        fake_chain_set(chain, 0, 256u << 10, EXTENT_DATA, 1);
        fake_chain_set(chain, 256u << 10, 256u << 10, EXTENT_DATA, 0);
        fd = client_connect(greeter);
        client_go(fd, "vm/disk", true, contexts, NULL);
        cr_expect(eq(u32, last.n_changed, 2));
        cr_expect(strcmp((char *)last.changed[1], "second one") == 0);
        client_request(fd, NBD_CMD_BLOCK_STATUS, 0, 9, 0, DISK_SIZE);
        client_answer_get(fd, &answer, NULL, 0, 0);
        cr_assert(eq(uint, answer.n_contexts, 3));
        cr_expect(eq(u32, answer.contexts[0].id, 1));
        cr_expect(eq(u32, answer.contexts[1].id, 4));
        cr_expect(eq(u32, answer.contexts[2].id, 5));
        /* first: everything that the two upper layers have; second one: the leaf alone */
        cr_assert(eq(uint, answer.contexts[1].n, 2));
        cr_expect(eq(u32, answer.contexts[1].length[0], 512u << 10));
        cr_expect(eq(u32, answer.contexts[1].flags[0], 1));
        cr_assert(eq(uint, answer.contexts[2].n, 3));
        cr_expect(eq(u32, answer.contexts[2].flags[0], 0));
        cr_expect(eq(u32, answer.contexts[2].flags[1], 1));
        cr_expect(eq(u32, answer.contexts[2].flags[2], 0));
        close(fd);
        end();
}

static uint32_t option_with_name(int fd, uint32_t option, const char *name)
{
        uint8_t data[8192];

        return client_option_result(fd, option, data, client_info_data(data, name));
}

Test(nbd_directory, answers_everything_else_itself)
{
        struct option_reply reply;
        char long_name[4001];
        int fd, asked;

        start();
        fd = client_connect(greeter);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
        client_option(fd, NBD_OPT_LIST, NULL, 0);
        for (size_t i = 0; i < 2; i++) {
                client_option_reply(fd, &reply);
                cr_expect(eq(u32, reply.type, NBD_REP_SERVER));
                cr_expect(memcmp(reply.data + 4, names_list[i], strlen(names_list[i])) == 0);
        }
        client_option_reply(fd, &reply);
        cr_expect(eq(u32, reply.type, NBD_REP_ACK));

        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_INFO, "vm/disk"), NBD_REP_ACK));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/none"), NBD_REP_ERR_UNKNOWN));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/busy"), NBD_REP_ERR_POLICY));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/broken"), NBD_REP_ERR_POLICY));
        /* What can be no name is not asked for. */
        asked = atomic_load(&lookups);
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/\n"), NBD_REP_ERR_UNKNOWN));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "\xff"), NBD_REP_ERR_UNKNOWN));
        memset(long_name, 'a', sizeof(long_name) - 1);
        long_name[sizeof(long_name) - 1] = '\0';
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, long_name), NBD_REP_ERR_UNKNOWN));
        cr_expect(eq(int, atomic_load(&lookups), asked));
        cr_expect(eq(int, atomic_load(&handed), 0));
        close(fd);
        end();
}

Test(nbd_directory, nobody_there_to_take_a_client_is_told)
{
        int fd;

        start();
        atomic_store(&deaf, EMFILE);
        fd = client_connect(greeter);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        cr_expect(eq(u32, client_option_result(fd, NBD_OPT_LIST, NULL, 0), NBD_REP_ERR_POLICY));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/disk"), NBD_REP_ERR_POLICY));
        cr_expect(client_sees_end(fd));
        close(fd);
        end();
}

/* It may have been handed over or not: two who answer on one socket would be worse than none. */
Test(nbd_directory, after_an_uncertain_hand_over_nothing_is_said)
{
        uint8_t data[64];
        int fd;

        start();
        atomic_store(&deaf, ETIMEDOUT);
        fd = client_connect(greeter);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option(fd, NBD_OPT_GO, data, client_info_data(data, "vm/disk"));
        cr_expect(client_sees_silent_end(fd));
        close(fd);
        end();
}

/* Between the question and the hand-over the disk was detached. */
Test(nbd_directory, an_export_that_went_on_the_way_is_refused)
{
        struct error err = ERROR_INIT;
        int fd;

        start();
        cr_assert(eq(int, nbd_server_remove_export(worker, "vm/disk", true, 0, &err), 0));
        fd = client_connect(greeter);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/disk"), NBD_REP_ERR_UNKNOWN));
        cr_expect(client_sees_end(fd));
        close(fd);

        fd = client_connect(greeter);
        client_hello(fd, 0);
        client_option(fd, NBD_OPT_EXPORT_NAME, "vm/disk", 7);
        cr_expect(client_sees_silent_end(fd));
        close(fd);
        end();
}

/* As is a snapshot whose context the greeter still promised. */
Test(nbd_directory, a_snapshot_that_went_on_the_way_is_refused)
{
        static const char *const query[] = {"vhdd:changed:first"};
        struct error err = ERROR_INIT;
        uint8_t data[256];
        int fd;

        start();
        cr_assert(eq(int, nbd_server_set_changed(worker, "vm/disk", NULL, 0, &err), 0));
        fd = client_connect(greeter);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        cr_expect(eq(u32,
                client_option_result(fd, NBD_OPT_SET_META_CONTEXT, data,
                        client_context_data(data, "vm/disk", query, 1)),
                NBD_REP_ACK));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/disk"), NBD_REP_ERR_POLICY));
        cr_expect(client_sees_end(fd));
        close(fd);
        end();
}

Test(nbd_directory, a_bad_handoff_is_not_served)
{
        struct nbd_handoff handoff = {.version = NBD_HANDOFF_VERSION, .option = NBD_OPT_LIST};
        struct error err = ERROR_INIT;
        int fds[2];

        start();
        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0));
        cr_expect(eq(int, nbd_server_serve_handoff(worker, fds[0], &handoff, &err), -EINVAL));
        close(fds[0]);
        close(fds[1]);
        end();
}

/* The limits of a greeting hold where the greeting is: silence ends, a crowd keeps nobody out. */
Test(nbd_directory, the_limits_of_a_greeting_hold_in_the_greeter)
{
        int silent[6], fd;

        start_with((struct nbd_server_options){.handshake_timeout_ms = 400, .max_greeting = 4});
        for (int i = 0; i < 4; i++)
                silent[i] = client_connect(greeter);
        usleep(150000); /* the time that a newcomer is left alone in */
        for (int i = 4; i < 6; i++)
                silent[i] = client_connect(greeter);
        fd = client_connect(greeter);
        client_go(fd, "vm/disk", true, NULL, NULL);
        cr_expect(eq(u32, client_read(fd, buffer, 512, 0), 0));
        for (int i = 0; i < 6; i++) {
                cr_expect(client_sees_end(silent[i]));
                close(silent[i]);
        }
        /* Served ones have no deadline. */
        cr_expect(eq(u32, client_read(fd, buffer, 512, 0), 0));
        close(fd);
        end();
}

/* One whose name takes long to look up keeps nobody else waiting. */
Test(nbd_directory, a_slow_lookup_is_its_own_client_s_alone)
{
        struct option_reply reply;
        uint8_t data[64];
        int slow_fd, fd;

        start();
        slow_fd = client_connect(greeter);
        client_hello(slow_fd, NBD_FLAG_FIXED_NEWSTYLE);
        atomic_store(&slow, true);
        client_option(slow_fd, NBD_OPT_GO, data, client_info_data(data, "vm/disk"));
        while (atomic_load(&lookups) == 0)
                usleep(500);
        atomic_store(&slow, false);
        fd = client_connect(greeter);
        client_go(fd, "vm/disk", true, NULL, NULL);
        cr_expect(eq(int, atomic_load(&handed), 1));
        do
                client_option_reply(slow_fd, &reply);
        while (reply.type == NBD_REP_INFO);
        cr_expect(eq(u32, reply.type, NBD_REP_ACK));
        close(fd);
        close(slow_fd);
        end();
}
