/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket is where strangers' bytes reach the daemon. Half lines, garbage, a line without
 * an end, a reader that never reads: each gets one clear answer or is dropped, and whoever comes next is
 * served. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "vhdd/control/client.h"
#include "vhdd/control/server.h"

struct broker {
        atomic_uint n_logged;
        char logged[256];
        struct control_client *agent;
        atomic_bool agent_gone;
        atomic_uint n_dry;
};

static int run_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        *ret = json_array();
        return 0;
}

/* Fails with everything that a failure can carry. */
static int run_show(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        fail(err, ENOENT, "no vm is called '%s'", json_string_value(json_object_get(params, "vm")));
        error_set_file(err, "/a/file.vhd");
        error_set_offset(err, 512);
        error_set_hint(err, "vhdctl vm list");
        error_set_hyperv(err, 0xC03A000D);
        return -ENOENT;
}

static int run_remove(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        if (!json_is_true(json_object_get(params, "dry-run")))
                return fail(err, EINVAL, "'%s' may not be removed",
                        json_string_value(json_object_get(params, "vm")));
        atomic_fetch_add(&broker->n_dry, 1);
        return 0;
}

static void agent_gone(void *opaque)
{
        struct broker *broker = opaque;

        atomic_store(&broker->agent_gone, true);
}

/* Writes a word through each descriptor that came. */
static int run_register(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        broker->agent = control_client_ref(caller->client);
        control_client_on_gone(caller->client, agent_gone, broker);
        for (size_t i = 0; i < caller->n_fds; i++)
                if (write(caller->fds[i], "hello", 5) != 5)
                        return fail_os(err, errno, "cannot write to what the agent gave");
        *ret = json_pack("{s:i}", "descriptors", (int)caller->n_fds);
        return 0;
}

static const struct method methods[] = {
        {"vm.list", run_list, false},
        {"vm.show", run_show, false},
        {"vm.remove", run_remove, true},
        {"agent.register", run_register, true},
        {NULL, NULL, false},
};

static void take_log(void *opaque, const char *sentence)
{
        struct broker *broker = opaque;

        snprintf(broker->logged, sizeof(broker->logged), "%s", sentence);
        atomic_fetch_add(&broker->n_logged, 1);
}

/* A server in a folder of its own. */
struct stage {
        char folder[64], path[96];
        struct broker broker;
        struct control_server *server;
};

static void stage_open(struct stage *stage)
{
        static const struct method *const tables[] = {methods, NULL};
        struct control_options options = {
                .path = stage->path,
                .listen_fd = -1,
                .broker = &stage->broker,
                .tables = tables,
                .log = take_log,
                .opaque = &stage->broker,
        };
        struct error err = ERROR_INIT;

        memset(stage, 0, sizeof(*stage));
        snprintf(stage->folder, sizeof(stage->folder), "/tmp/test-control.XXXXXX");
        cr_assert(mkdtemp(stage->folder) != NULL);
        snprintf(stage->path, sizeof(stage->path), "%s/control.sock", stage->folder);
        cr_assert(control_server_new(&options, &stage->server, &err) == 0, "%s", err.message);
}

static void stage_close(struct stage *stage)
{
        control_client_unref(stage->broker.agent);
        stage->server = control_server_free(stage->server);
        cr_expect(access(stage->path, F_OK) < 0, "the socket stays behind");
        rmdir(stage->folder);
}

static struct control *stage_connect(struct stage *stage)
{
        struct control *control = NULL;
        struct error err = ERROR_INIT;

        cr_assert(control_connect(stage->path, &control, &err) == 0, "%s", err.message);
        return control;
}

/* A connection that the test itself speaks on. */
static int raw_connect(struct stage *stage)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", stage->path);
        cr_assert(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
        return fd;
}

/* Everything until the line's end, or until the end of the stream. */
static char *raw_read_line(int fd)
{
        static char line[4096];
        size_t used = 0;

        while (used < sizeof(line) - 1) {
                struct pollfd poller = {.fd = fd, .events = POLLIN};

                if (poll(&poller, 1, 10000) <= 0 || read(fd, line + used, 1) != 1 ||
                        line[used] == '\n')
                        break;
                used++;
        }
        line[used] = '\0';
        return line;
}

static const char *raw_ask(int fd, const char *line)
{
        size_t length = strlen(line);
        ssize_t n = write(fd, line, length);

        cr_assert(eq(sz, (size_t)n, length));
        return raw_read_line(fd);
}

static void expect_said(const char *answer, const char *part)
{
        cr_expect(strstr(answer, part) != NULL, "'%s' has no '%s'", answer, part);
}

static void expect_served(struct stage *stage)
{
        _cleanup_(control_closep) struct control *control = stage_connect(stage);
        struct error err = ERROR_INIT;
        json_t *result = NULL;

        cr_expect(control_call(control, "vm.list", NULL, &result, &err) == 0, "%s", err.message);
        cr_expect(eq(int, json_typeof(result), JSON_ARRAY));
        json_decref(result);
}

Test(control_server, answers_by_the_words_of_json_rpc)
{
        struct stage stage;
        int fd;

        stage_open(&stage);
        fd = raw_connect(&stage);
        expect_said(raw_ask(fd, "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"vm.list\"}\n"),
                "\"id\":7,\"result\":[]");
        expect_said(raw_ask(fd, "{\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"vm.list\"}\n"),
                "\"id\":\"x\"");
        expect_said(raw_ask(fd, "{\"jsonrpc\":\n"), "-32700");
        expect_said(raw_ask(fd, "\xff\xfe\n"), "-32700");
        expect_said(raw_ask(fd, "\n"), "-32700");
        expect_said(raw_ask(fd, "7\n"), "-32600");
        expect_said(raw_ask(fd, "[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.list\"}]\n"),
                "batches are not taken");
        expect_said(raw_ask(fd, "{\"id\":1,\"method\":\"vm.list\"}\n"), "-32600");
        expect_said(
                raw_ask(fd, "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"vm.list\"}\n"), "-32600");
        expect_said(
                raw_ask(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.fly\"}\n"), "-32601");
        expect_said(raw_ask(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"job.list\"}\n"),
                "-32601"); /* known, but this daemon has it not */
        expect_said(
                raw_ask(fd,
                        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.show\",\"params\":[]}\n"),
                "-32602");
        expect_said(raw_ask(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.show\"}\n"),
                "'vm' is missing");
        /* A notification has no answer: the next line answers the next request. */
        expect_said(raw_ask(fd,
                            "{\"jsonrpc\":\"2.0\",\"method\":\"vm.list\"}\n"
                            "{\"jsonrpc\":\"2.0\",\"id\":9,\"method\":\"vm.list\"}\n"),
                "\"id\":9");
        close(fd);
        stage_close(&stage);
}

Test(control_server, carries_a_failure_whole)
{
        struct stage stage;
        struct error err = ERROR_INIT;
        struct control *control;
        json_t *result = NULL;
        int r;

        stage_open(&stage);
        control = stage_connect(&stage);
        r = control_call(control, "vm.show", json_pack("{s:s}", "vm", "web"), &result, &err);
        cr_expect(eq(int, r, -ENOENT));
        cr_expect(result == NULL);
        cr_expect(strcmp(err.message, "no vm is called 'web'") == 0, "%s", err.message);
        cr_expect(strcmp(err.file, "/a/file.vhd") == 0);
        cr_expect(strcmp(err.hint, "vhdctl vm list") == 0);
        cr_expect(eq(u64, err.offset, 512));
        cr_expect(eq(u32, err.hyperv, 0xC03A000D));
        error_clear(&err);
        r = control_call(control, "vm.remove", json_pack("{s:s}", "vm", "web"), &result, &err);
        cr_expect(eq(int, r, -EINVAL), "a method's EINVAL is wrong usage");
        r = control_call(control, "vm.remove", json_pack("{s:s, s:b}", "vm", "web", "dry-run", 1),
                &result, &err);
        cr_expect(eq(int, r, 0));
        cr_expect(eq(uint, atomic_load(&stage.broker.n_dry), 1));
        json_decref(result);
        control_close(control);
        /* {} is no {name, id, ...}: logged in general, but a dry run answers what can be known. */
        cr_expect(eq(uint, atomic_load(&stage.broker.n_logged), 0), "%s", stage.broker.logged);
        stage_close(&stage);
}

Test(control_server, takes_a_line_of_at_most_one_mebibyte)
{
        _cleanup_free_ char *block = malloc(1u << 20);
        struct stage stage;
        ssize_t n;
        int fd;

        memset(block, 'x', 1u << 20);
        stage_open(&stage);
        fd = raw_connect(&stage);
        for (int i = 0; i < 100; i++) {
                n = send(fd, block, 1u << 20, MSG_NOSIGNAL);
                if (n < 0)
                        break;
        }
        expect_said(raw_read_line(fd), "a line has at most 1048576 bytes");
        cr_expect(read(fd, block, 1) <= 0, "the connection goes on");
        close(fd);
        expect_served(&stage);
        stage_close(&stage);
}

Test(control_server, forgets_half_a_line)
{
        struct stage stage;
        int fd;

        stage_open(&stage);
        fd = raw_connect(&stage);
        cr_assert(write(fd, "{\"jsonrpc\":\"2.0\"", 16) == 16);
        expect_served(&stage);
        close(fd);
        expect_served(&stage);
        stage_close(&stage);
}

Test(control_server, is_one_at_its_socket_and_replaces_a_dead_ones)
{
        static const struct method *const tables[] = {methods, NULL};
        struct control_options options = {.listen_fd = -1, .tables = tables};
        struct control_server *second = NULL;
        struct error err = ERROR_INIT;
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct stage stage;
        struct stat st;
        char stale[96];
        int fd;

        stage_open(&stage);
        cr_assert(stat(stage.path, &st) == 0);
        cr_expect(eq(uint, st.st_mode & 07007, 0), "others may connect: %o", st.st_mode);
        options.path = stage.path;
        cr_expect(control_server_new(&options, &second, &err) == -EADDRINUSE);
        expect_served(&stage); /* and the first one's socket is still there */
        snprintf(stale, sizeof(stale), "%s/stale.sock", stage.folder);
        snprintf(address.sun_path, sizeof(address.sun_path), "%s", stale);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        cr_assert(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
        close(fd);
        options.path = stale;
        cr_expect(control_server_new(&options, &second, &err) == 0, "%s", err.message);
        control_server_free(second);
        stage_close(&stage);
}

Test(control_server, refuses_a_table_that_is_not_the_schemas)
{
        static const struct method unknown[] = {{"vm.fly", run_list, false}, {NULL, NULL, false}};
        static const struct method lies[] = {{"vm.remove", run_list, false}, {NULL, NULL, false}};
        static const struct method *const cases[][3] = {
                {unknown, NULL}, {lies, NULL}, {methods, methods, NULL}};
        struct control_server *server = NULL;
        struct error err = ERROR_INIT;

        for (size_t i = 0; i < 3; i++) {
                struct control_options options = {
                        .path = "/nowhere/at/all", .listen_fd = -1, .tables = cases[i]};

                cr_expect(control_server_new(&options, &server, &err) == -EINVAL);
        }
}

Test(control_server, passes_descriptors_to_the_request_that_counts_them)
{
        struct stage stage;
        struct error err = ERROR_INIT;
        struct control *control;
        json_t *result = NULL;
        char word[16] = "";
        int ends[2], got[CONTROL_MAX_DESCRIPTORS];
        size_t n = 0;

        stage_open(&stage);
        control = stage_connect(&stage);
        cr_assert(pipe2(ends, O_CLOEXEC) == 0);
        cr_assert(control_call_with(control, "agent.register", json_pack("{s:s}", "vm", "web"),
                          &ends[1], 1, &result, &err) == 0,
                "%s", err.message);
        cr_expect(json_integer_value(json_object_get(result, "descriptors")) == 1);
        json_decref(result);
        cr_expect(read(ends[0], word, sizeof(word)) == 5 && memcmp(word, "hello", 5) == 0);
        /* And back, with a notification to the agent. */
        cr_assert(control_client_notify(stage.broker.agent, "agent.save",
                          json_pack("{s:i}", "request", 1), &ends[0], 1, &err) == 0,
                "%s", err.message);
        cr_assert(control_next(control, 10000, &result, got, &n, &err) == 0, "%s", err.message);
        cr_assert(eq(sz, n, 1));
        cr_expect(strcmp(json_string_value(json_object_get(result, "method")), "agent.save") == 0);
        json_decref(result);
        cr_assert(write(ends[1], "again", 5) == 5);
        cr_expect(read(got[0], word, sizeof(word)) == 5 && memcmp(word, "again", 5) == 0);
        close(got[0]);
        close(ends[0]);
        close(ends[1]);
        control_close(control);
        for (int i = 0; i < 1000 && !atomic_load(&stage.broker.agent_gone); i++)
                usleep(5000);
        cr_expect(atomic_load(&stage.broker.agent_gone), "nobody says that the agent is gone");
        cr_expect(control_client_notify(stage.broker.agent, "agent.save", NULL, NULL, 0, &err) ==
                -EPIPE);
        stage_close(&stage);
}

Test(control_server, sends_events_to_those_who_want_them)
{
        struct stage stage;
        struct error err = ERROR_INIT;
        struct control *all, *some;
        json_t *value = NULL;
        int r;

        stage_open(&stage);
        all = stage_connect(&stage);
        some = stage_connect(&stage);
        cr_assert(control_call(all, "events.subscribe", NULL, &value, &err) == 0);
        json_decref(value);
        cr_assert(control_call(some, "events.subscribe",
                          json_pack("{s:s, s:[s]}", "vm", "web", "types", "snapshot"), &value,
                          &err) == 0);
        json_decref(value);
        control_server_publish(stage.server, json_pack("{s:s, s:s}", "type", "job", "vm", "web"));
        control_server_publish(
                stage.server, json_pack("{s:s, s:s}", "type", "snapshot", "vm", "mail"));
        control_server_publish(
                stage.server, json_pack("{s:s, s:s}", "type", "snapshot", "vm", "web"));
        for (int i = 0; i < 3; i++) {
                cr_assert(
                        control_next(all, 10000, &value, NULL, NULL, &err) == 0, "%s", err.message);
                cr_expect(json_object_get(json_object_get(value, "params"), "time") != NULL);
                json_decref(value);
        }
        cr_assert(control_next(some, 10000, &value, NULL, NULL, &err) == 0, "%s", err.message);
        cr_expect(strcmp(json_string_value(json_object_get(json_object_get(value, "params"), "vm")),
                          "web") == 0);
        json_decref(value);
        r = control_next(some, 0, &value, NULL, NULL, &err);
        cr_expect(eq(int, r, -ETIMEDOUT));
        control_close(all);
        control_close(some);
        stage_close(&stage);
}

Test(control_server, drops_a_subscriber_that_does_not_read)
{
        struct stage stage;
        char filler[1001];
        int fd;

        memset(filler, 'x', sizeof(filler) - 1);
        filler[sizeof(filler) - 1] = '\0';
        stage_open(&stage);
        fd = raw_connect(&stage);
        expect_said(raw_ask(fd, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"events.subscribe\"}\n"),
                "result");
        for (int i = 0; i < 4000 && atomic_load(&stage.broker.n_logged) == 0; i++)
                control_server_publish(
                        stage.server, json_pack("{s:s, s:s}", "type", "x", "filler", filler));
        expect_said(stage.broker.logged, "does not read");
        for (int i = 0; i < 1000 && control_server_n_clients(stage.server) > 0; i++)
                usleep(5000);
        cr_expect(eq(uint, control_server_n_clients(stage.server), 0));
        expect_served(&stage);
        close(fd);
        stage_close(&stage);
}

Test(control_server, has_room_for_so_many_and_says_so_to_the_next)
{
        static int fds[1000];
        struct stage stage;
        unsigned refused = 0;

        stage_open(&stage);
        for (int i = 0; i < 1000; i++)
                fds[i] = raw_connect(&stage);
        for (int i = 999; i >= 0; i--) {
                struct pollfd poller = {.fd = fds[i], .events = POLLIN};

                /* The refused know at once; the others are not told anything. */
                if (poll(&poller, 1, i >= (int)CONTROL_MAX_CLIENTS ? 10000 : 0) == 1) {
                        expect_said(raw_read_line(fds[i]), "all the control connections");
                        refused++;
                }
        }
        cr_expect(eq(uint, refused, 1000 - CONTROL_MAX_CLIENTS));
        for (int i = 0; i < 1000; i++)
                close(fds[i]);
        for (int i = 0; i < 2000 && control_server_n_clients(stage.server) > 0; i++)
                usleep(5000);
        expect_served(&stage);
        stage_close(&stage);
}

static uint32_t next_random(uint32_t *state)
{
        *state = *state * 1664525u + 1013904223u;
        return *state >> 8;
}

/* Requests with bytes changed, taken out, or said again: each whole line is answered or is a
 * notification, and the connection goes on, for its last request is a good one and is answered. */
Test(control_server, survives_requests_that_were_bent)
{
        static const char good[] =
                "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.show\",\"params\":{\"vm\":\"w\xc3\xa4\"}}\n";
        static const char last[] =
                "{\"jsonrpc\":\"2.0\",\"id\":\"the last\",\"method\":\"vm.list\"}\n";
        uint32_t random = 20260131;
        struct stage stage;
        char line[2 * sizeof(good)];
        const char *answer;
        ssize_t n;
        int fd;

        stage_open(&stage);
        fd = raw_connect(&stage);
        for (int i = 0; i < 2000; i++) {
                size_t length = sizeof(good) - 1, at = next_random(&random) % length;

                memcpy(line, good, length);
                switch (next_random(&random) % 3) {
                case 0: line[at] = (char)next_random(&random); break;
                case 1: memmove(line + at, line + at + 1, --length - at); break;
                default: memmove(line + at, good, length - at); break;
                }
                n = write(fd, line, length);
                cr_assert(eq(sz, (size_t)n, length));
                /* Read now and then: a client that never reads is not read from any more. */
                if (i % 50 == 49)
                        while (recv(fd, line, sizeof(line), MSG_DONTWAIT) > 0)
                                ;
        }
        n = write(fd, "\n", 1); /* ends a line that lost its newline */
        n = write(fd, last, sizeof(last) - 1);
        cr_assert(eq(sz, (size_t)n, sizeof(last) - 1));
        do
                answer = raw_read_line(fd);
        while (answer[0] && !strstr(answer, "the last"));
        expect_said(answer, "\"result\":[]");
        close(fd);
        expect_served(&stage);
        stage_close(&stage);
}

/* The reply to whoever is being answered reaches him although the server ends. */
Test(control_server, ends_with_clients_connected)
{
        struct stage stage;
        struct error err = ERROR_INIT;
        struct control *control;
        json_t *result = NULL;
        int r;

        stage_open(&stage);
        control = stage_connect(&stage);
        cr_assert(control_call(control, "vm.list", NULL, &result, &err) == 0);
        json_decref(result);
        stage_close(&stage);
        r = control_call(control, "vm.list", NULL, &result, &err);
        cr_expect(eq(int, r, -ECONNRESET), "%s", err.message);
        control_close(control);
}

Test(control_client, says_that_no_daemon_listens)
{
        struct control *control = NULL;
        struct error err = ERROR_INIT;
        int r = control_connect("/tmp/there-is-no/control.sock", &control, &err);

        cr_expect(eq(int, r, -ENOENT));
        expect_said(err.message, "no daemon listens at '/tmp/there-is-no/control.sock'");
        expect_said(err.hint, "vhdd --state-dir");
        cr_expect(control == NULL);
}
