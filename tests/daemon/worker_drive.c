/* SPDX-License-Identifier: Apache-2.0 */
/* A worker, driven through link.h by a broker made by hand: what could go wrong is that an answered
 * write does not survive the kill of the worker, that a broker's death disturbs the worker or its
 * clients, that a successor finds the image locked by its predecessor or unlocked for others, and that
 * a worker gets at anything that was not granted. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/uuid.h"
#include "chain/chain.h"
#include "formats/vhd/create.h"
#include "nbd/server/handoff.h"
#include "tests/unit/nbd_client.h"
#include "vhdd/daemon/link.h"
#include "vhdd/daemon/resolver.h"
#include "vhdd/ipc/rpc.h"

#define VM   "5fa21a55-f394-4a4d-9958-1951a67d5540"
#define DISK "11111111-2222-4333-8444-555555555555"
#define SIZE (64u << 20)

struct scene {
        char dir[64], image[128], run[128], vhdd[512];
        struct broker broker;
        struct link *link;
        atomic_int deaths;
        json_t *hello;
        bool adopted;
};

static struct scene scene;

static void on_death(void *opaque, int status)
{
        struct scene *s = opaque;

        atomic_fetch_add(&s->deaths, 1);
}

static void check(int r, const struct error *err)
{
        cr_assert(r >= 0, "%s", err->message);
}

static void start_link(void)
{
        const struct link_events events = {.died = on_death, .opaque = &scene};
        struct error err = ERROR_INIT;

        json_decref(scene.hello);
        check(link_start(
                      &scene.broker, VM, &events, &scene.adopted, &scene.hello, &scene.link, &err),
                &err);
}

static void grant(const char *path, unsigned access)
{
        struct error err = ERROR_INIT;

        check(link_grant(scene.link, path, access, 0, 0, &err), &err);
}

static json_t *call(const char *method, json_t *params)
{
        struct error err = ERROR_INIT;
        json_t *result = NULL;

        check(link_call(scene.link, method, params, 20000, &result, &err), &err);
        return result;
}

static void open_and_export(void)
{
        json_decref(call("chain.open",
                json_pack(
                        "{s:s, s:[s], s:b}", "chain", DISK, "paths", scene.image, "writable", 1)));
        json_decref(call("export.add", json_pack("{s:s, s:s}", "name", "vm/disk", "chain", DISK)));
}

static void make_image(const char *path)
{
        const struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC, .block_size = 2u << 20, .size = SIZE};
        struct error err = ERROR_INIT;
        struct file *file;

        check(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE, &file, &err),
                &err);
        check(vhd_create(file, &params, &err), &err);
        file_close(file);
}

static void setup(void)
{
        const char *build = getenv("VHDD_BUILD");

        snprintf(scene.dir, sizeof(scene.dir), "/tmp/vhdd-test-XXXXXX");
        cr_assert(mkdtemp(scene.dir) != NULL);
        chmod(scene.dir, 0755);
        snprintf(scene.image, sizeof(scene.image), "%s/disk.vhd", scene.dir);
        snprintf(scene.run, sizeof(scene.run), "%s/run", scene.dir);
        snprintf(scene.vhdd, sizeof(scene.vhdd), "%s/vhdd/vhdd", build ? build : "build");
        cr_assert(eq(int, mkdir(scene.run, 0700), 0));
        scene.broker.run_dir = scene.run;
        scene.broker.executable = scene.vhdd;
        scene.broker.worker_uid = geteuid() == 0 ? 65534 : geteuid();
        scene.broker.worker_gid = geteuid() == 0 ? 65534 : getegid();
        make_image(scene.image);
        start_link();
        grant(scene.image, LINK_WRITE);
}

static void teardown(void)
{
        char command[128];

        if (scene.link)
                link_quit(scene.link, 5000, NULL);
        scene.link = link_free(scene.link);
        json_decref(scene.hello);
        snprintf(command, sizeof(command), "rm -rf '%s'", scene.dir);
        cr_expect(eq(int, system(command), 0));
}

TestSuite(worker, .init = setup, .fini = teardown, .timeout = 60);

/* What a greeter would hand over: a client that said GO. */
static int connect_client(void)
{
        struct nbd_handoff handoff = {
                .version = NBD_HANDOFF_VERSION,
                .option = NBD_OPT_GO,
                .client_flags = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES,
                .structured = 0,
        };
        struct error err = ERROR_INIT;
        struct option_reply reply;
        int fds[2];

        strcpy((char *)handoff.export_name, "vm/disk");
        strcpy((char *)handoff.peer, "test");
        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0));
        check(link_send_client(scene.link, &handoff, fds[1], &err), &err);
        do {
                client_option_reply(fds[0], &reply);
                cr_assert(reply.type == NBD_REP_INFO || reply.type == NBD_REP_ACK, "reply %x",
                        reply.type);
        } while (reply.type != NBD_REP_ACK);
        return fds[0];
}

static void write_block(int fd, uint32_t number)
{
        static uint8_t data[4096];

        memset(data, (int)(number % 251 + 1), sizeof(data));
        cr_assert(eq(uint, client_write(fd, data, sizeof(data), number * 8192ull, 0), 0));
}

static void expect_blocks(int fd, uint32_t n)
{
        static uint8_t data[4096];

        for (uint32_t i = 0; i < n; i++) {
                cr_assert(eq(uint, client_read(fd, data, sizeof(data), i * 8192ull), 0));
                cr_assert(data[0] == i % 251 + 1 && data[4095] == i % 251 + 1, "block %u", i);
        }
}

static void wait_for_death(void)
{
        for (int i = 0; i < 1000 && link_is_alive(scene.link); i++)
                usleep(5000);
        cr_assert(eq(int, link_is_alive(scene.link), 0));
}

Test(worker, serves_a_chain_and_ends_cleanly)
{
        struct error err = ERROR_INIT;
        struct chain_options options = {0};
        struct chain *chain;
        uint8_t data[4096];
        json_t *result;
        int fd;

        cr_expect(eq(int, scene.adopted, 0));
        cr_expect(eq(int, json_typeof(json_object_get(scene.hello, "fresh")), JSON_TRUE));
        open_and_export();
        fd = connect_client();
        for (uint32_t i = 0; i < 100; i++)
                write_block(fd, i);
        expect_blocks(fd, 100);
        result = call("clients", NULL);
        cr_expect(eq(int, (int)json_array_size(json_object_get(result, "clients")), 1));
        json_decref(result);
        result = call("changed", json_pack("{s:s}", "chain", DISK));
        cr_expect(ge(int, (int)json_array_size(json_object_get(result, "extents")), 100));
        json_decref(result);
        result = call("metrics", NULL);
        json_decref(result);
        cr_expect(eq(int, chain_open(scene.image, &options, &chain, &err), -EBUSY));
        check(link_quit(scene.link, 5000, &err), &err);
        scene.link = link_free(scene.link);
        close(fd);
        cr_expect(eq(int, atomic_load(&scene.deaths), 0), "an end that was asked for is no death");
        error_clear(&err);
        check(chain_open(scene.image, &options, &chain, &err), &err);
        check(chain_read(chain, data, sizeof(data), 99 * 8192ull, 0), &err);
        cr_expect(eq(int, data[7], 99 + 1));
        chain_close(chain, NULL);
}

/* E4: without a flush. */
Test(worker, answered_writes_survive_its_death)
{
        struct error err = ERROR_INIT;
        struct chain_options options = {0};
        struct chain *chain;
        int fd;

        open_and_export();
        for (uint32_t life = 1; life <= 3; life++) {
                fd = connect_client();
                for (uint32_t i = 0; i < life * 50; i++)
                        write_block(fd, i);
                link_kill(scene.link);
                wait_for_death();
                close(fd);
                cr_expect(eq(int, chain_open(scene.image, &options, &chain, &err), -EBUSY),
                        "the lock stays while nobody serves");
                check(link_restart(scene.link, NULL, &err), &err);
                cr_expect(eq(int, atomic_load(&scene.deaths), (int)life));
                open_and_export();
                fd = connect_client();
                expect_blocks(fd, life * 50);
                close(fd);
        }
}

Test(worker, is_adopted_with_its_clients_by_the_next_broker)
{
        struct error err = ERROR_INIT;
        struct chain_options options = {0};
        struct chain *chain;
        json_t *chains;
        pid_t pid;
        int fd;

        open_and_export();
        fd = connect_client();
        for (uint32_t i = 0; i < 50; i++)
                write_block(fd, i);
        pid = link_pid(scene.link);
        scene.link = link_free(scene.link); /* all that a broker's death does to a worker */
        for (uint32_t i = 50; i < 100; i++)
                write_block(fd, i);
        start_link();
        cr_assert(scene.adopted);
        cr_expect(eq(int, link_pid(scene.link), pid));
        cr_expect(eq(int, json_typeof(json_object_get(scene.hello, "fresh")), JSON_FALSE));
        chains = json_object_get(scene.hello, "chains");
        cr_assert(eq(int, (int)json_array_size(chains), 1));
        cr_expect(eq(int, (int)json_array_size(json_object_get(scene.hello, "exports")), 1));
        grant(scene.image, LINK_WRITE);
        for (uint32_t i = 100; i < 150; i++)
                write_block(fd, i);
        expect_blocks(fd, 150);
        /* The lock is the new broker's, too: it holds through the worker's death. */
        link_kill(scene.link);
        wait_for_death();
        close(fd);
        cr_expect(eq(int, chain_open(scene.image, &options, &chain, &err), -EBUSY));
        check(link_restart(scene.link, NULL, &err), &err);
        open_and_export();
        fd = connect_client();
        expect_blocks(fd, 150);
        close(fd);
}

Test(worker, gets_nothing_that_was_not_granted)
{
        struct error err = ERROR_INIT;
        char other[160];

        snprintf(other, sizeof(other), "%s/other.vhd", scene.dir);
        make_image(other);
        cr_expect(eq(int,
                link_call(scene.link, "chain.open",
                        json_pack("{s:s, s:[s]}", "chain", "x", "paths", other), 20000, NULL, &err),
                -EPERM));
        cr_expect(strstr(err.message, other) != NULL, "%s", err.message);
        grant(other, LINK_READ);
        cr_expect(eq(int,
                link_call(scene.link, "chain.open",
                        json_pack("{s:s, s:[s], s:b}", "chain", "x", "paths", other, "writable", 1),
                        20000, NULL, &err),
                -EPERM));
        json_decref(call("chain.open", json_pack("{s:s, s:[s]}", "chain", "x", "paths", other)));
        json_decref(call("chain.close", json_pack("{s:s}", "chain", "x")));
        link_revoke(scene.link, other);
        unlink(other);
        cr_assert(eq(int, symlink(scene.image, other), 0));
        grant(other, LINK_READ);
        cr_expect(eq(int,
                link_call(scene.link, "chain.open",
                        json_pack("{s:s, s:[s]}", "chain", "x", "paths", other), 20000, NULL, &err),
                -ELOOP));
}

Test(worker, takes_a_snapshot)
{
        char child[160];
        json_t *result;
        int fd;

        snprintf(child, sizeof(child), "%s/child.avhd", scene.dir);
        open_and_export();
        fd = connect_client();
        for (uint32_t i = 0; i < 50; i++)
                write_block(fd, i);
        grant(child, LINK_WRITE | LINK_CREATE | LINK_UNLINK);
        json_decref(
                call("chain.create-child", json_pack("{s:s, s:s}", "chain", DISK, "path", child)));
        result = call("snapshot.switch",
                json_pack("{s:s, s:[{s:s, s:s}]}", "snapshot", VM, "chains", "chain", DISK, "path",
                        child));
        cr_expect(strcmp(json_string_value(json_object_get(
                                 json_array_get(json_object_get(result, "chains"), 0), "frozen")),
                          scene.image) == 0);
        json_decref(result);
        for (uint32_t i = 50; i < 100; i++)
                write_block(fd, i);
        /* Not committed, and killed: the record says what happened. */
        link_kill(scene.link);
        wait_for_death();
        close(fd);
        check(link_restart(scene.link, NULL, &(struct error){0}), &(struct error){0});
        result = call("snapshot.switched", json_pack("{s:s}", "beside", scene.image));
        cr_assert(strcmp(json_string_value(json_object_get(result, "snapshot")), VM) == 0);
        json_decref(result);
        json_decref(call("chain.open",
                json_pack("{s:s, s:[s, s], s:b}", "chain", DISK, "paths", child, scene.image,
                        "writable", 1)));
        json_decref(call("export.add", json_pack("{s:s, s:s}", "name", "vm/disk", "chain", DISK)));
        result = call("snapshot.switched", NULL);
        cr_expect(strcmp(json_string_value(json_object_get(result, "snapshot")), VM) == 0,
                "known without being asked beside which file");
        json_decref(result);
        json_decref(call("snapshot.flush", json_pack("{s:s}", "snapshot", VM)));
        json_decref(call("snapshot.commit", json_pack("{s:s}", "snapshot", VM)));
        result = call("snapshot.switched", json_pack("{s:s}", "beside", scene.image));
        cr_expect(eq(int, json_typeof(json_object_get(result, "snapshot")), JSON_NULL));
        json_decref(result);
        fd = connect_client();
        expect_blocks(fd, 100);
        close(fd);
}

/* --- the resolver --- */

static int resolve(const char *path, char *const *roots, size_t n_roots,
        struct resolved_layer **ret, size_t *ret_n, struct error *err)
{
        error_clear(err);
        return resolve_chain(&scene.broker, path, NULL, roots, n_roots, ret, ret_n, err);
}

/* A parent that an image names is opened beneath the roots, never by a link, and an image that is in
 * use can be looked at. */
Test(worker, a_chain_is_resolved_beneath_the_roots_alone)
{
        char folder[96], child[160], moved[160], link_path[160];
        char *const roots[] = {scene.dir};
        struct resolved_layer *layers;
        struct error err = ERROR_INIT;
        struct stat st;
        size_t n;

        snprintf(child, sizeof(child), "%s/child.avhd", scene.dir);
        snprintf(folder, sizeof(folder), "%s/away", scene.dir);
        snprintf(moved, sizeof(moved), "%s/child.avhd", folder);
        snprintf(link_path, sizeof(link_path), "%s/link.avhd", scene.dir);
        open_and_export();
        grant(child, LINK_WRITE | LINK_CREATE);
        json_decref(
                call("chain.create-child", json_pack("{s:s, s:s}", "chain", DISK, "path", child)));
        check(resolve(child, NULL, 0, &layers, &n, &err), &err);
        cr_assert(eq(sz, n, 2));
        cr_expect(strcmp(layers[0].path, child) == 0, "%s", layers[0].path);
        cr_expect(strcmp(layers[1].path, scene.image) == 0, "%s", layers[1].path);
        cr_expect(strcmp(layers[0].type, "differencing") == 0);
        cr_expect(strcmp(layers[1].type, "dynamic") == 0);
        cr_expect(eq(u64, layers[1].size, SIZE));
        cr_assert(eq(int, stat(scene.image, &st), 0));
        cr_expect(eq(u64, layers[1].inode, st.st_ino));
        resolved_layers_free(layers, n);

        cr_assert(eq(int, symlink(child, link_path), 0));
        check(resolve(link_path, NULL, 0, &layers, &n, &err), &err);
        cr_expect(strcmp(layers[0].path, child) == 0, "what the user named may be a link");
        resolved_layers_free(layers, n);

        cr_assert(eq(int, mkdir(folder, 0755), 0));
        cr_assert(eq(int, rename(child, moved), 0));
        cr_expect(eq(int, resolve(moved, NULL, 0, &layers, &n, &err), -EPERM), "%s", err.message);
        cr_expect(strstr(err.message, scene.image) != NULL, "%s", err.message);
        cr_expect(strstr(err.hint, scene.dir) != NULL, "%s", err.hint);
        check(resolve(moved, roots, 1, &layers, &n, &err), &err);
        cr_expect(eq(sz, n, 2));
        resolved_layers_free(layers, n);

        cr_expect(eq(int, resolve("/dev/null", NULL, 0, &layers, &n, &err), -EMEDIUMTYPE));
        cr_expect(eq(int, resolve("/nothing/here.vhd", NULL, 0, &layers, &n, &err), -ENOENT));
}
