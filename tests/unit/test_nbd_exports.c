/* SPDX-License-Identifier: Apache-2.0 */
/* Exports come and go under running clients. What could go wrong: a chain is closed while a request
 * still uses it, a neighbour's client is disturbed, a client that takes no replies keeps a disk from
 * being detached for ever, a removed name stays taken, a backup misses what changed. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "nbd/server/handoff.h"
#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"

#define DISK_SIZE (4u << 20)

static struct nbd_server *server;
static struct chain *chain, *other;
static uint8_t buffer[DISK_SIZE];

static int add(const char *name, struct chain *of, struct error *err)
{
        struct nbd_export_options export = {.name = name, .chain = of};

        return nbd_server_add_export(server, &export, err);
}

static void start(void)
{
        struct error err = ERROR_INIT;

        chain = fake_chain_new(DISK_SIZE, 3, true);
        other = fake_chain_new(DISK_SIZE, 1, true);
        cr_assert(eq(int, nbd_server_new(NULL, &server, &err), 0));
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
        cr_assert(eq(int, add("disk", chain, &err), 0), "%s", err.message);
        cr_assert(eq(int, add("other", other, &err), 0), "%s", err.message);
}

static void end(void)
{
        server = nbd_server_free(server);
        if (chain)
                chain_abandon(chain);
        chain_abandon(other);
}

static int go(const char *name)
{
        int fd = client_connect(server);

        client_go(fd, name, true, NULL, NULL);
        return fd;
}

static void wait_for_clients(const char *name, int n)
{
        for (int tries = 0; nbd_server_export_clients(server, name) != n; tries++) {
                cr_assert(lt(int, tries, 4000));
                usleep(1000);
        }
}

/* What GO says to a name: the type of its last reply. */
static uint32_t try_go(const char *name)
{
        uint8_t data[4096];
        int fd = client_connect(server);
        uint32_t type;

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
        type = client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, name));
        close(fd);
        return type;
}

static int count_listed(void)
{
        struct option_reply reply;
        int n = 0, fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option(fd, NBD_OPT_LIST, NULL, 0);
        for (client_option_reply(fd, &reply); reply.type == NBD_REP_SERVER; n++)
                client_option_reply(fd, &reply);
        cr_assert(eq(u32, reply.type, NBD_REP_ACK));
        close(fd);
        return n;
}

TestSuite(nbd_exports, .timeout = 60);

Test(nbd_exports, come_and_go_while_the_server_runs)
{
        struct error err = ERROR_INIT;
        int fd;

        start();
        cr_expect(eq(int, count_listed(), 2));
        cr_expect(eq(int, add("disk", chain, &err), -EEXIST));
        cr_assert(eq(int, nbd_server_remove_export(server, "disk", false, 0, &err), 0));
        chain = chain_abandon(chain);
        cr_expect(eq(u32, try_go("disk"), NBD_REP_ERR_UNKNOWN));
        cr_expect(eq(int, count_listed(), 1));
        cr_expect(eq(int, nbd_server_export_clients(server, "disk"), -ENOENT));
        cr_expect(eq(int, nbd_server_remove_export(server, "disk", true, 0, &err), -ENOENT));

        chain = fake_chain_new(DISK_SIZE, 1, true);
        cr_assert(eq(int, add("disk", chain, &err), 0), "%s", err.message);
        fd = go("disk");
        cr_expect(eq(u32, client_read(fd, buffer, 4096, 0), 0));
        close(fd);
        end();
}

/* Holds a client's thread at its very beginning. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void wait_at_gate(void *opaque, enum nbd_event event, const struct nbd_client_info *client)
{
        if (event == NBD_EVENT_CONNECTED) {
                pthread_mutex_lock(&gate);
                pthread_mutex_unlock(&gate);
        }
}

/* A daemon that closes what nobody reads, just after it has handed a client over for it: the client found no
 * export. Who is on its way for something else, or came by itself, keeps nothing. */
Test(nbd_exports, one_that_a_client_was_handed_over_for_stays)
{
        struct nbd_server_options options = {.event = wait_at_gate};
        struct nbd_handoff handoff = {.version = NBD_HANDOFF_VERSION,
                .option = NBD_OPT_GO,
                .client_flags = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES,
                .export_name = "disk"};
        struct error err = ERROR_INIT;
        struct option_reply reply;
        int fds[2];

        chain = fake_chain_new(DISK_SIZE, 3, true);
        other = fake_chain_new(DISK_SIZE, 1, true);
        cr_assert(eq(int, nbd_server_new(&options, &server, &err), 0));
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
        cr_assert(eq(int, add("disk", chain, &err), 0));
        cr_assert(eq(int, add("other", other, &err), 0));
        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0));

        pthread_mutex_lock(&gate);
        cr_assert(eq(int, nbd_server_serve_handoff(server, fds[0], &handoff, &err), 0), "%s",
                err.message);
        cr_expect(eq(int, nbd_server_remove_export(server, "disk", false, 0, &err), -EBUSY));
        cr_expect(eq(int, nbd_server_remove_export(server, "other", false, 0, &err), 0));
        pthread_mutex_unlock(&gate);

        do
                client_option_reply(fds[1], &reply);
        while (reply.type == NBD_REP_INFO);
        cr_assert(eq(u32, reply.type, NBD_REP_ACK),
                "the export is gone under who was handed over for it");
        cr_expect(eq(u32, client_read(fds[1], buffer, 4096, 0), 0));
        close(fds[1]);
        wait_for_clients("disk", 0);
        cr_expect(eq(int, nbd_server_remove_export(server, "disk", false, 0, &err), 0), "%s",
                err.message);
        end();
}

Test(nbd_exports, one_that_is_used_is_waited_for_and_stays)
{
        struct error err = ERROR_INIT;
        int fd;

        start();
        fd = go("disk");
        cr_expect(eq(int, nbd_server_export_clients(server, "disk"), 1));
        cr_expect(eq(int, nbd_server_remove_export(server, "disk", false, 30, &err), -EBUSY));
        cr_expect(
                strstr(err.message, "1 client uses the export 'disk'") != NULL, "%s", err.message);
        /* Nothing happened: the client goes on, and others may come. */
        cr_expect(eq(u32, client_read(fd, buffer, 4096, 0), 0));
        cr_expect(eq(u32, try_go("disk"), NBD_REP_ACK));
        close(fd);
        end();
}

struct removal {
        pthread_t thread;
        bool force;
        unsigned timeout_ms;
        int r;
};

static void *remove_main(void *arg)
{
        struct removal *removal = arg;
        struct error err = ERROR_INIT;

        removal->r =
                nbd_server_remove_export(server, "disk", removal->force, removal->timeout_ms, &err);
        return NULL;
}

static void begin_removal(struct removal *removal)
{
        cr_assert(eq(int, pthread_create(&removal->thread, NULL, remove_main, removal), 0));
        while (nbd_server_export_clients(server, "disk") != -ENOENT)
                usleep(500);
}

Test(nbd_exports, is_gone_as_soon_as_the_last_client_leaves)
{
        struct removal removal = {.timeout_ms = 8000};
        int fd;

        start();
        fd = go("disk");
        begin_removal(&removal);
        cr_expect(eq(u32, try_go("disk"), NBD_REP_ERR_UNKNOWN));
        cr_expect(eq(u32, client_write(fd, buffer, 4096, 0, 0), 0));
        client_request(fd, NBD_CMD_DISC, 0, 0, 0, 0);
        pthread_join(removal.thread, NULL);
        cr_expect(eq(int, removal.r, 0));
        chain = chain_abandon(chain);
        close(fd);
        end();
}

/* Cut off: what was received is finished and answered, on every path; then the chain is nobody's. */
Test(nbd_exports, forced_finishes_requests_and_disturbs_no_neighbour)
{
        struct removal removal = {.force = true, .timeout_ms = 8000};
        struct fake_switches *switches;
        struct nbd_answer answer;
        int fd, neighbour;

        start();
        switches = fake_chain_switches(chain);
        fd = go("disk");
        neighbour = go("other");
        atomic_store(&switches->hold_flushes, true);
        client_request(fd, NBD_CMD_FLUSH, 0, 7, 0, 0);
        while (atomic_load(&switches->flushes_held) == 0)
                usleep(500);
        begin_removal(&removal);
        cr_expect(eq(u32, client_read(neighbour, buffer, 4096, 0), 0));
        cr_expect(eq(u32, client_do(neighbour, NBD_CMD_FLUSH, 0, 0, 0), 0));
        atomic_store(&switches->hold_flushes, false);
        client_answer_get(fd, &answer, NULL, 0, 0);
        cr_expect(eq(u64, answer.cookie, 7));
        cr_expect(eq(u32, answer.error, 0));
        cr_expect(client_sees_end(fd));
        pthread_join(removal.thread, NULL);
        cr_expect(eq(int, removal.r, 0));
        chain = chain_abandon(chain);
        cr_expect(eq(u32, client_write(neighbour, buffer, 4096, 0, 0), 0));
        close(fd);
        close(neighbour);
        end();
}

/* A client that reads nothing must not keep a disk for ever. */
Test(nbd_exports, forced_does_not_wait_for_a_client_that_takes_no_replies)
{
        struct nbd_wire_request wire = {
                .magic = be32_make(NBD_REQUEST_MAGIC),
                .length = be32_make(1u << 20),
        };
        struct error err = ERROR_INIT;
        int fd;

        start();
        memset(fake_chain_bytes(chain), 0x5a, DISK_SIZE);
        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
        fd = go("disk");
        for (int i = 0; i < 100; i++)
                send(fd, &wire, sizeof(wire), MSG_DONTWAIT | MSG_NOSIGNAL);
        usleep(20000);
        cr_expect(eq(int, nbd_server_remove_export(server, "disk", true, 50, &err), 0), "%s",
                err.message);
        chain = chain_abandon(chain);
        close(fd);
        end();
}

/* The server began a flush by itself that no client waits for. */
Test(nbd_exports, removal_waits_for_a_flush_that_nobody_asked_for)
{
        struct nbd_server_options options = {.max_unsynced_bytes = 65536};
        struct removal removal = {.timeout_ms = 8000};
        struct fake_switches *switches;
        struct error err = ERROR_INIT;
        int fd;

        other = fake_chain_new(DISK_SIZE, 1, true);
        chain = fake_chain_new(DISK_SIZE, 1, true);
        switches = fake_chain_switches(chain);
        cr_assert(eq(int, nbd_server_new(&options, &server, &err), 0));
        cr_assert(eq(int, nbd_server_start(server, &err), 0));
        cr_assert(eq(int, add("disk", chain, &err), 0));
        atomic_store(&switches->hold_flushes, true);
        fd = go("disk");
        cr_expect(eq(u32, client_write(fd, buffer, 65536, 0, 0), 0));
        while (atomic_load(&switches->flushes_held) == 0)
                usleep(500);
        close(fd);
        wait_for_clients("disk", 0);
        begin_removal(&removal);
        usleep(20000);
        cr_expect(eq(int, atomic_load(&switches->flushes_held), 1));
        atomic_store(&switches->hold_flushes, false);
        pthread_join(removal.thread, NULL);
        cr_expect(eq(int, removal.r, 0));
        chain = chain_abandon(chain);
        end();
}

/* Two exports of one chain share its volume, until the last of them is gone. */
Test(nbd_exports, a_chain_is_used_until_its_last_export_is_gone)
{
        struct error err = ERROR_INIT;
        int fd;

        start();
        cr_assert(eq(int, add("disk@now", chain, &err), 0));
        fd = go("disk@now");
        cr_assert(eq(int, nbd_server_remove_export(server, "disk", true, 0, &err), 0));
        cr_expect(eq(u32, client_write(fd, buffer, 4096, 0, NBD_CMD_FLAG_FUA), 0));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
        cr_assert(eq(int, nbd_server_remove_export(server, "disk@now", true, 1000, &err), 0));
        chain = chain_abandon(chain);
        cr_expect(client_sees_end(fd));
        close(fd);
        end();
}

Test(nbd_exports, a_hidden_one_keeps_its_clients_and_takes_no_more)
{
        struct error err = ERROR_INIT;
        int fd;

        start();
        fd = go("disk");
        cr_assert(eq(int, nbd_server_hide_export(server, "disk", true, &err), 0));
        cr_expect(eq(u32, try_go("disk"), NBD_REP_ERR_POLICY));
        cr_expect(eq(int, count_listed(), 1));
        cr_expect(eq(u32, client_read(fd, buffer, 4096, 0), 0));
        cr_expect(eq(int, nbd_server_export_clients(server, "disk"), 1));
        cr_assert(eq(int, nbd_server_hide_export(server, "disk", false, &err), 0));
        cr_expect(eq(u32, try_go("disk"), NBD_REP_ACK));
        cr_expect(eq(int, count_listed(), 2));
        cr_expect(eq(int, nbd_server_hide_export(server, "none", true, &err), -ENOENT));
        close(fd);
        end();
}

/* ---- vhdd:changed:NAME ---- */

static const struct nbd_changed snapshots[] = {
        {"before the update", "layer 0"},
        {"z\xc3\xbcrich", "layer 1"},
};

static void start_with_snapshots(void)
{
        struct error err = ERROR_INIT;

        start();
        cr_assert(eq(int, nbd_server_set_changed(server, "disk", snapshots, 2, &err), 0), "%s",
                err.message);
        /* From the root upward: the base, its child, the leaf, nobody, a zero of the child. */
        fake_chain_set(chain, 0, 1u << 20, EXTENT_DATA, 2);
        fake_chain_set(chain, 1u << 20, 1u << 20, EXTENT_DATA, 1);
        fake_chain_set(chain, 2u << 20, 512u << 10, EXTENT_DATA, 0);
        fake_chain_set(chain, 3u << 20, 1u << 20, EXTENT_ZERO, 1);
}

static void get_status(int fd, struct nbd_answer *answer)
{
        client_request(fd, NBD_CMD_BLOCK_STATUS, 0, 9, 0, DISK_SIZE);
        client_answer_get(fd, answer, NULL, 0, 0);
        cr_assert(eq(u32, answer->error, 0));
}

#define KIB(n) ((uint32_t)(n) << 10)

static void expect_extents(const struct nbd_answer *answer, unsigned context, unsigned n,
        const uint32_t (*expected)[2])
{
        cr_assert(eq(uint, answer->contexts[context].n, n), "context %u", context);
        for (unsigned i = 0; i < n; i++) {
                cr_expect(eq(u32, answer->contexts[context].length[i], KIB(expected[i][0])));
                cr_expect(eq(u32, answer->contexts[context].flags[i], expected[i][1]));
        }
}

static const uint32_t since_base[][2] = {{1024, 0}, {1536, 1}, {512, 0}, {1024, 1}};
static const uint32_t since_child[][2] = {{2048, 0}, {512, 1}, {1536, 0}};

Test(nbd_exports, tell_what_changed_since_each_snapshot)
{
        static const char *const contexts[] = {"vhdd:changed:z\xc3\xbcrich",
                "vhdd:changed:before the update", "base:allocation", NULL};
        struct nbd_answer answer;
        int fd;

        start_with_snapshots();
        fd = client_connect(server);
        client_go(fd, "disk", true, contexts, NULL);
        get_status(fd, &answer);
        cr_assert(eq(uint, answer.n_contexts, 3));
        /* In the order of their ids, which is base:allocation and then that of the client. */
        cr_expect(eq(u32, answer.contexts[0].id, 1));
        expect_extents(&answer, 1, 3, since_child);
        expect_extents(&answer, 2, 4, since_base);
        close(fd);
        end();
}

/* A snapshot is taken under the client: its new leaf is above everything it chose. */
Test(nbd_exports, changes_stay_right_when_a_layer_is_pushed)
{
        static const char *const contexts[] = {
                "vhdd:changed:before the update", "vhdd:changed:z\xc3\xbcrich", NULL};
        struct nbd_changed more[] = {snapshots[0], snapshots[1], {"now", "layer 2"}};
        static const char *const newest[] = {"vhdd:changed:now", NULL};
        static const uint32_t since_now[][2] = {{1024, 0}, {64, 1}, {3008, 0}};
        static const uint32_t since_child_now[][2] = {
                {1024, 0}, {64, 1}, {960, 0}, {512, 1}, {1536, 0}};
        struct nbd_answer answer;
        struct error err = ERROR_INIT;
        int fd, later;

        start_with_snapshots();
        fd = client_connect(server);
        client_go(fd, "disk", true, contexts, NULL);
        fake_chain_push(chain);
        get_status(fd, &answer);
        expect_extents(&answer, 0, 4, since_base);
        expect_extents(&answer, 1, 3, since_child);

        cr_assert(eq(int, nbd_server_set_changed(server, "disk", more, 3, &err), 0));
        cr_expect(eq(u32, client_write(fd, buffer, 65536, 1u << 20, 0), 0));
        get_status(fd, &answer);
        expect_extents(&answer, 1, 5, since_child_now);
        later = client_connect(server);
        client_go(later, "disk", true, newest, NULL);
        get_status(later, &answer);
        expect_extents(&answer, 0, 3, since_now);
        close(fd);
        close(later);
        end();
}

static unsigned list_contexts(const char *query, struct option_reply *ret_last)
{
        struct option_reply reply;
        uint8_t data[4096];
        unsigned n = 0;
        int fd = client_connect(server);

        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        cr_assert(
                eq(u32, client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0), NBD_REP_ACK));
        client_option(fd, NBD_OPT_LIST_META_CONTEXT, data,
                client_context_data(data, "disk", &query, query ? 1 : 0));
        for (;; n++) {
                client_option_reply(fd, &reply);
                if (reply.type != NBD_REP_META_CONTEXT)
                        break;
                *ret_last = reply;
        }
        cr_assert(eq(u32, reply.type, NBD_REP_ACK));
        close(fd);
        return n;
}

Test(nbd_exports, list_the_snapshots_that_changes_are_told_since)
{
        static const char last[] = "vhdd:changed:z\xc3\xbcrich";
        struct option_reply reply = {0};

        start_with_snapshots();
        cr_expect(eq(uint, list_contexts("vhdd:changed:", &reply), 2));
        cr_expect(eq(uint, reply.length, (unsigned)strlen(last) + 4));
        cr_expect(memcmp(reply.data + 4, last, strlen(last)) == 0);
        cr_expect(eq(uint, list_contexts("vhdd:", &reply), 3));
        cr_expect(eq(uint, list_contexts(NULL, &reply), 5));
        cr_expect(eq(uint, list_contexts(last, &reply), 1));
        cr_expect(eq(uint, list_contexts("vhdd:changed:nothing", &reply), 0));
        cr_expect(eq(uint, list_contexts("base:", &reply), 1));
        end();
}

static uint32_t set_contexts(int fd, const char *const *queries, uint32_t n)
{
        uint8_t data[8192];

        return client_option_result(
                fd, NBD_OPT_SET_META_CONTEXT, data, client_context_data(data, "disk", queries, n));
}

Test(nbd_exports, a_client_may_choose_a_few_snapshots_and_each_once)
{
        static const char names[9][2] = {"0", "1", "2", "3", "4", "5", "6", "7", "8"};
        static const char *const queries[] = {"vhdd:changed:0", "vhdd:changed:1", "vhdd:changed:2",
                "vhdd:changed:3", "vhdd:changed:4", "vhdd:changed:5", "vhdd:changed:6",
                "vhdd:changed:7", "vhdd:changed:0", "vhdd:changed:8"};
        struct nbd_changed many[9];
        struct error err = ERROR_INIT;
        int fd;

        start();
        for (int i = 0; i < 9; i++)
                many[i] = (struct nbd_changed){names[i], "layer 0"};
        cr_assert(eq(int, nbd_server_set_changed(server, "disk", many, 9, &err), 0));
        fd = client_connect(server);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        cr_expect(eq(u32, set_contexts(fd, queries, 10), NBD_REP_ERR_TOO_BIG));
        cr_expect(eq(u32, set_contexts(fd, queries, 9), NBD_REP_ACK));
        close(fd);
        end();
}

/* It is deleted between the client's choice and its GO: the client must not get some other answer. */
Test(nbd_exports, a_snapshot_that_went_after_it_was_chosen_is_told)
{
        static const char *const query[] = {"vhdd:changed:z\xc3\xbcrich"};
        struct error err = ERROR_INIT;
        uint8_t data[256];
        int fd;

        start_with_snapshots();
        fd = client_connect(server);
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        client_option_result(fd, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        cr_expect(eq(u32, set_contexts(fd, query, 1), NBD_REP_ACK));
        cr_assert(eq(int, nbd_server_set_changed(server, "disk", snapshots, 1, &err), 0));
        cr_expect(
                eq(u32, client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, "disk")),
                        NBD_REP_ERR_POLICY));
        /* It may choose again. */
        cr_expect(eq(u32, set_contexts(fd, query, 1), NBD_REP_ACK));
        cr_expect(
                eq(u32, client_option_result(fd, NBD_OPT_GO, data, client_info_data(data, "disk")),
                        NBD_REP_ACK));
        close(fd);
        end();
}

Test(nbd_exports, refuse_snapshots_that_make_no_sense)
{
        char long_name[NBD_CHANGED_NAME_MAX + 2];
        struct nbd_changed bad[] = {{"", "layer 0"}, {"a\nb", "layer 0"}, {"\xff", "layer 0"},
                {long_name, "layer 0"}, {"fine", "layer 7"}};
        struct error err = ERROR_INIT;

        start();
        memset(long_name, 'a', sizeof(long_name) - 1);
        long_name[sizeof(long_name) - 1] = '\0';
        for (int i = 0; i < 5; i++) {
                int r = nbd_server_set_changed(server, "disk", &bad[i], 1, &err);

                cr_expect(eq(int, r, i == 4 ? -ENOENT : -EINVAL), "%d", i);
        }
        cr_expect(strstr(err.message, "'layer 7' is no layer of 'layer 2'") != NULL, "%s",
                err.message);
        long_name[NBD_CHANGED_NAME_MAX] = '\0';
        cr_expect(eq(int, nbd_server_set_changed(server, "disk", &bad[3], 1, &err), 0));
        end();
}

/* ---- counters ---- */

static struct nbd_kind_stats stats_of(enum nbd_request_kind kind, uint64_t n)
{
        struct nbd_export_stats stats;

        /* The last reply reaches the client a little before it is counted. */
        for (int tries = 0;; tries++) {
                cr_assert(eq(int, nbd_server_export_stats_get(server, "disk", &stats), 0));
                if (stats.kinds[kind].requests >= n)
                        return stats.kinds[kind];
                cr_assert(lt(int, tries, 4000));
                usleep(1000);
        }
}

static uint64_t in_buckets(const struct nbd_kind_stats *stats, unsigned from)
{
        uint64_t n = 0;

        for (unsigned i = from; i < NBD_LATENCY_BUCKETS; i++)
                n += stats->latency[i];
        return n;
}

Test(nbd_exports, count_what_was_asked_on_every_path)
{
        static const char *const contexts[] = {"base:allocation", NULL};
        struct nbd_kind_stats reads, writes, others;
        struct fake_switches *switches;
        struct nbd_export_stats stats;
        struct nbd_answer answer;
        int fd;

        start();
        switches = fake_chain_switches(chain);
        memset(fake_chain_bytes(chain), 1, DISK_SIZE);
        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 0);
        fd = client_connect(server);
        client_go(fd, "disk", true, contexts, NULL);
        cr_expect(eq(u32, client_read(fd, buffer, 4096, 0), 0));     /* at once */
        cr_expect(eq(u32, client_read(fd, buffer, 1u << 20, 0), 0)); /* from the page cache */
        atomic_store(&switches->cold_reads, true);
        cr_expect(eq(u32, client_read(fd, buffer, 512, 0), 0)); /* elsewhere */
        atomic_store(&switches->read_error, -EIO);
        cr_expect(eq(u32, client_read(fd, buffer, 512, 0), NBD_EIO));
        cr_expect(eq(u32, client_read(fd, buffer, 512, DISK_SIZE), NBD_EINVAL));
        atomic_store(&switches->read_error, 0);
        reads = stats_of(NBD_KIND_READ, 5);
        cr_expect(eq(u64, reads.requests, 5));
        cr_expect(eq(u64, reads.errors, 2));
        cr_expect(eq(u64, reads.bytes, 4096 + (1u << 20) + 512));
        cr_expect(eq(u64, in_buckets(&reads, 0), 5));

        cr_expect(eq(u32, client_write(fd, buffer, 4096, 0, 0), 0));
        cr_expect(eq(u32, client_write(fd, buffer, 4096, 0, NBD_CMD_FLAG_FUA), 0));
        writes = stats_of(NBD_KIND_WRITE, 2);
        cr_expect(eq(u64, writes.requests, 2));
        cr_expect(eq(u64, writes.bytes, 8192));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_TRIM, 0, 0, 65536), 0));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_WRITE_ZEROES, 0, 0, 65536), 0));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_CACHE, 0, 0, 65536), 0));
        cr_expect(eq(u32, client_do(fd, 99, 0, 0, 0), NBD_EINVAL));
        client_request(fd, NBD_CMD_BLOCK_STATUS, 0, 9, 0, DISK_SIZE);
        client_answer_get(fd, &answer, NULL, 0, 0);
        others = stats_of(NBD_KIND_BLOCK_STATUS, 1);
        cr_expect(eq(u64, others.requests, 1));
        cr_expect(eq(u64, stats_of(NBD_KIND_TRIM, 1).bytes, 65536));
        cr_expect(eq(u64, stats_of(NBD_KIND_WRITE_ZEROES, 1).bytes, 65536));
        cr_expect(eq(u64, stats_of(NBD_KIND_CACHE, 1).requests, 1));
        cr_expect(eq(int, nbd_server_export_stats_get(server, "none", &stats), -ENOENT));
        /* Another export's are its own. */
        cr_expect(eq(int, nbd_server_export_stats_get(server, "other", &stats), 0));
        cr_expect(eq(u64, stats.kinds[NBD_KIND_READ].requests, 0));
        close(fd);
        end();
}

/* A flush that takes 40 ms is in a bucket of at least 32 ms, and a quick one is not: one of many, for
 * on a busy machine each may have waited for its turn. */
#define QUICK_FLUSHES 50

Test(nbd_exports, latency_is_what_the_client_waited_for)
{
        struct fake_switches *switches;
        struct nbd_kind_stats flushes;
        struct nbd_answer answer;
        int fd;

        start();
        switches = fake_chain_switches(chain);
        fd = go("disk");
        for (int i = 0; i < QUICK_FLUSHES; i++)
                cr_expect(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
        atomic_store(&switches->hold_flushes, true);
        client_request(fd, NBD_CMD_FLUSH, 0, 7, 0, 0);
        while (atomic_load(&switches->flushes_held) == 0)
                usleep(500);
        usleep(40000);
        atomic_store(&switches->hold_flushes, false);
        client_answer_get(fd, &answer, NULL, 0, 0);
        flushes = stats_of(NBD_KIND_FLUSH, QUICK_FLUSHES + 1);
        cr_expect(ge(u64, in_buckets(&flushes, 16), 1)); /* 2^15 us and more */
        cr_expect(lt(u64, in_buckets(&flushes, 16), QUICK_FLUSHES));
        cr_expect(eq(u64, in_buckets(&flushes, 0), QUICK_FLUSHES + 1));
        cr_expect(ge(u64, flushes.latency_us, 40000));
        close(fd);
        end();
}

/* ---- what it costs to be there ---- */

static int count_threads(void)
{
        DIR *tasks = opendir("/proc/self/task");
        int n = 0;

        while (readdir(tasks))
                n++;
        closedir(tasks);
        return n;
}

/* A thread that has been joined is still listed for a moment, until the kernel has buried it. */
static bool threads_become(int n)
{
        for (int tries = 0; count_threads() != n; tries++) {
                if (tries == 4000)
                        return false;
                usleep(1000);
        }
        return true;
}

/* A host may have hundreds of machines that do nothing. */
Test(nbd_exports, without_clients_there_are_no_threads)
{
        int before = count_threads(), fd;

        start();
        cr_expect(eq(int, count_threads(), before));
        fd = go("disk");
        cr_expect(eq(int, count_threads(), before + 1));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
        cr_expect(gt(int, count_threads(), before + 1));
        close(fd);
        end();
        cr_expect(threads_become(before));
}
