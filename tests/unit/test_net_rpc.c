/* SPDX-License-Identifier: Apache-2.0 */
/* Open vSwitch's texts come in any pieces, with others between; one that never ends must hold up nobody. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vmm-glue/net/ovsdb.h"

/* Long enough that no socket's address holds it. */
#define FOLDERS 12

struct server {
        char folder[1024], path[1100];
        int listen_fd;
        const char *says; /* in pieces of @piece bytes */
        size_t piece;
        bool hangs; /* keeps the connection open behind it */
        char heard[4096];
        pthread_t thread;
};

static void *serve(void *opaque)
{
        struct server *server = opaque;
        int fd = accept(server->listen_fd, NULL, NULL);
        size_t length = strlen(server->says);
        ssize_t n = recv(fd, server->heard, sizeof(server->heard) - 1, 0);

        for (size_t done = 0; n > 0 && done < length; done += server->piece)
                send(fd, server->says + done,
                        length - done < server->piece ? length - done : server->piece,
                        MSG_NOSIGNAL);
        if (server->hangs) {
                char more[512];

                while (recv(fd, more, sizeof(more), 0) > 0)
                        strncat(server->heard, "+",
                                sizeof(server->heard) - strlen(server->heard) - 1);
        }
        close(fd);
        return NULL;
}

static void start(struct server *server)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        char base[] = "/tmp/vhdd-rpc-XXXXXX";
        size_t length;

        cr_assert(mkdtemp(base) != NULL);
        length = (size_t)snprintf(server->folder, sizeof(server->folder), "%s", base);
        for (int i = 0; i < FOLDERS; i++) {
                length += (size_t)snprintf(server->folder + length, sizeof(server->folder) - length,
                        "/a-long-folder-name");
                cr_assert(mkdir(server->folder, 0700) == 0);
        }
        snprintf(server->path, sizeof(server->path), "%s/db.sock", server->folder);
        server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        cr_assert(chdir(server->folder) == 0);
        snprintf(address.sun_path, sizeof(address.sun_path), "db.sock");
        cr_assert(bind(server->listen_fd, (struct sockaddr *)&address, sizeof(address)) == 0);
        cr_assert(listen(server->listen_fd, 1) == 0);
        cr_assert(chdir("/") == 0);
        pthread_create(&server->thread, NULL, serve, server);
}

static void end(struct server *server)
{
        pthread_join(server->thread, NULL);
        close(server->listen_fd);
        unlink(server->path);
        for (int i = 0; i <= FOLDERS; i++) {
                rmdir(server->folder);
                *strrchr(server->folder, '/') = '\0';
        }
}

static int ask(struct server *server, unsigned timeout_ms, json_t **ret, struct error *err)
{
        _cleanup_(ovs_rpc_closep) struct ovs_rpc *rpc = NULL;
        int r;

        start(server);
        r = ovs_rpc_open(server->path, &rpc, err);
        cr_assert(eq(int, r, 0), "%s", err->message);
        r = ovs_rpc_call(rpc, "transact", json_array(), timeout_ms, ret, err);
        cr_expect(ovs_rpc_is_alive(rpc) == (r == 0 || r == -EREMOTEIO));
        rpc = ovs_rpc_close(rpc);
        end(server);
        return r;
}

Test(ovs_rpc_call, takes_its_answer_out_of_any_pieces)
{
        for (size_t piece = 1; piece < 70; piece += 4) {
                struct server server = {.piece = piece,
                        .says = "{\"method\":\"update\",\"id\":null,\"params\":[\"}]\\\"{\"]}"
                                "{\"id\":77,\"result\":1,\"error\":null}"
                                "{\"id\":1,\"result\":[\"}\\\\\"],\"error\":null}{\"id\":2"};
                struct error err = ERROR_INIT;
                json_t *result = NULL;

                cr_assert(eq(int, ask(&server, 20000, &result, &err), 0), "%s", err.message);
                cr_expect(strcmp(json_string_value(json_array_get(result, 0)), "}\\") == 0);
                json_decref(result);
        }
}

Test(ovs_rpc_call, answers_who_asks_whether_it_lives)
{
        struct server server = {.piece = 1000,
                .hangs = true,
                .says = "{\"method\":\"echo\",\"id\":\"echo\",\"params\":[]}"
                        "{\"id\":1,\"result\":{},\"error\":null}"};
        struct error err = ERROR_INIT;

        cr_assert(eq(int, ask(&server, 20000, NULL, &err), 0), "%s", err.message);
        cr_expect(strchr(server.heard, '+') != NULL, "heard only: %s", server.heard);
}

Test(ovs_rpc_call, hands_on_what_the_other_side_refuses)
{
        struct server server = {.piece = 1000,
                .says = "{\"id\":1,\"result\":null,\"error\":{\"error\":\"x\",\"details\":\"no such db\"}}"};
        struct error err = ERROR_INIT;

        cr_assert(eq(int, ask(&server, 20000, NULL, &err), -EREMOTEIO));
        cr_expect(strstr(err.message, "no such db") != NULL, "%s", err.message);
}

Test(ovs_rpc_call, gives_up_on_nonsense_silence_and_an_early_end)
{
        static const struct {
                const char *says;
                bool hangs;
                int code;
        } cases[] = {
                {"[1]", false, EPROTO},
                {"{\"id\":1,}", false, EPROTO},
                {"{\"id\":1,\"result\":[[[[[[[", false, EPIPE},
                {"", false, EPIPE},
                {"{\"id\":1,\"result\":[", true, ETIMEDOUT},
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                struct server server = {
                        .piece = 1000, .says = cases[i].says, .hangs = cases[i].hangs};
                struct error err = ERROR_INIT;

                cr_expect(eq(int, ask(&server, 300, NULL, &err), -cases[i].code), "'%s': %s",
                        cases[i].says, err.message);
        }
}

Test(ovsdb_values, reads_sets_and_maps_as_the_database_writes_them)
{
        json_t *row = json_loads("{\"_uuid\":[\"uuid\",\"u1\"],\"tag\":[\"set\",[]],\"ofport\":7,"
                                 "\"one\":[\"uuid\",\"p1\"],"
                                 "\"ports\":[\"set\",[[\"uuid\",\"p1\"],[\"uuid\",\"p2\"]]],"
                                 "\"external_ids\":[\"map\",[[\"a\",\"b\"],[\"c\",\"\"]]]}",
                0, NULL);

        cr_assert(row != NULL);
        cr_expect(strcmp(ovsdb_row_uuid(row), "u1") == 0);
        cr_expect(eq(i64, ovsdb_number(row, "tag", -5), -5));
        cr_expect(eq(i64, ovsdb_number(row, "ofport", -5), 7));
        cr_expect(ovsdb_refers(row, "one", "p1"));
        cr_expect(eq(int, ovsdb_refers(row, "one", "p2"), false));
        cr_expect(ovsdb_refers(row, "ports", "p2"));
        cr_expect(eq(int, ovsdb_refers(row, "ports", "p3"), false));
        cr_expect(eq(int, ovsdb_refers(row, "tag", "p1"), false));
        cr_expect(eq(int, ovsdb_refers(row, "absent", "p1"), false));
        cr_expect(strcmp(ovsdb_entry(row, "external_ids", "a"), "b") == 0);
        cr_expect(strcmp(ovsdb_entry(row, "external_ids", "x"), "") == 0);
        cr_expect(strcmp(ovsdb_entry(row, "tag", "x"), "") == 0);
        cr_expect(strcmp(ovsdb_text(row, "ofport"), "") == 0);
        json_decref(row);
}
