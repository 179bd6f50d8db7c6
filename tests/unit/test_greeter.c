/* SPDX-License-Identifier: Apache-2.0 */
/* The greeter as a process, with a broker of the test's own at the other end. What could go wrong: it
 * keeps something that a hostile client could use, a client gets lost between the processes, it outlives
 * its broker and takes clients that nobody serves, or a broker's nonsense takes it down. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <libnbd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"
#include "vhdd/greeter/greeter.h"
#include "vhdd/ipc/rpc.h"

#define DISK_SIZE (1u << 20)

static char directory[] = "/tmp/vhdd-greeter-XXXXXX", socket_path[64];
static struct nbd_server *worker;
static struct chain *chain;
static struct rpc *rpc;
static pthread_t reader;
static pid_t greeter;
static uint8_t buffer[65536];

/* ---- the broker ---- */

static void answer_lookup(int64_t id, const char *name)
{
        struct error err = ERROR_INIT;

        if (strcmp(name, "vm/odd") == 0) {
                rpc_reply(rpc, id, json_pack("{s:s, s:s}", "name", "vm/odd", "size", "many"), NULL,
                        0);
        } else if (strcmp(name, "vm/two words") == 0) {
                rpc_reply(rpc, id,
                        json_pack("{s:s, s:i, s:i, s:b, s:s, s:[s, s]}", "name", name, "size",
                                DISK_SIZE, "preferred-size", 65536, "read-only", 0, "description",
                                "a disk", "changed", "before", "z\xc3\xbcrich"),
                        NULL, 0);
        } else {
                fail(&err, strcmp(name, "vm/busy") ? ENOENT : EAGAIN, "not this one");
                rpc_reply_error(rpc, id, &err);
        }
}

static void take_client(int64_t id, json_t *params, struct message *message)
{
        const char *text = json_string_value(json_object_get(params, "handoff"));
        _cleanup_fd_ int fd = message_take_fd(message, 0);
        struct nbd_handoff handoff;
        struct error err = ERROR_INIT;

        if (nbd_handoff_from_text(text ? text : "", &handoff, &err) < 0 ||
                nbd_server_serve_handoff(worker, fd, &handoff, &err) < 0) {
                rpc_reply_error(rpc, id, &err);
                return;
        }
        TAKE_FD(fd);
        rpc_reply(rpc, id, NULL, NULL, 0);
}

static void on_request(void *opaque, struct rpc *from, int64_t id, const char *method,
        json_t *params, struct message *message)
{
        if (strcmp(method, "lookup") == 0)
                answer_lookup(id, json_string_value(json_object_get(params, "name")));
        else if (strcmp(method, "list") == 0)
                rpc_reply(from, id,
                        json_pack("{s:[{s:s, s:s}, {s:s}]}", "exports", "name", "vm/two words",
                                "description", "a disk", "name", "vm/busy"),
                        NULL, 0);
        else
                take_client(id, params, message);
}

static void *reader_main(void *arg)
{
        struct error err = ERROR_INIT;

        rpc_run(rpc, &err);
        return NULL;
}

/* @fd becomes the greeter's descriptor 3. */
static pid_t spawn(int fd)
{
        pid_t pid = fork();

        if (pid != 0)
                return pid;
        if (fd == GREETER_CHANNEL_FD)
                fcntl(fd, F_SETFD, 0);
        else
                dup2(fd, GREETER_CHANNEL_FD);
        execl(GREETER_PROGRAM, "vhdd", "--greeter", "--uid", "65534", "--gid", "65533", NULL);
        _exit(127);
}

static int listening_socket(void)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
        cr_assert(eq(int, bind(fd, (struct sockaddr *)&address, sizeof(address)), 0));
        cr_assert(eq(int, listen(fd, 16), 0));
        return fd;
}

static void start_process(void)
{
        static const struct rpc_handlers handlers = {.request = on_request};
        struct error err = ERROR_INIT;
        int ends[2];

        cr_assert(mkdtemp(directory) != NULL);
        snprintf(socket_path, sizeof(socket_path), "%s/nbd.sock", directory);
        cr_assert(eq(int, channel_pair(ends, &err), 0), "%s", err.message);
        greeter = spawn(ends[1]);
        close(ends[1]);
        cr_assert(eq(int, rpc_new(ends[0], &handlers, &rpc, &err), 0));
        cr_assert(eq(int, pthread_create(&reader, NULL, reader_main, NULL), 0));
}

static int call_start(const int *fds, unsigned n_fds, struct error *err)
{
        return rpc_call(rpc, "start", NULL, fds, n_fds, 8000, NULL, err);
}

static void start_worker(void)
{
        static const struct nbd_changed snapshots[] = {
                {"before", "layer 0"}, {"z\xc3\xbcrich", "layer 1"}};
        struct nbd_export_options export = {
                .name = "vm/two words",
                .chain = chain = fake_chain_new(DISK_SIZE, 3, true),
                .changed = snapshots,
                .n_changed = 2,
        };
        struct error err = ERROR_INIT;

        cr_assert(eq(int, nbd_server_new(NULL, &worker, &err), 0));
        cr_assert(eq(int, nbd_server_start(worker, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(worker, &export, &err), 0), "%s", err.message);
}

static void start(void)
{
        struct error err = ERROR_INIT;
        int fd;

        start_worker();
        start_process();
        fd = listening_socket();
        cr_assert(eq(int, call_start(&fd, 1, &err), 0), "%s", err.message);
        close(fd);
}

/* Its exit status, or 256 and a signal. */
static int wait_for_end(pid_t pid)
{
        int status;

        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
        return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static void end(void)
{
        rpc_shutdown(rpc);
        pthread_join(reader, NULL);
        rpc = rpc_unref(rpc);
        cr_expect(eq(int, wait_for_end(greeter), 0));
        worker = nbd_server_free(worker);
        chain = chain_abandon(chain);
        unlink(socket_path);
        rmdir(directory);
}

static int connect_client(void)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
        cr_assert(eq(int, connect(fd, (struct sockaddr *)&address, sizeof(address)), 0));
        return fd;
}

TestSuite(greeter, .timeout = 60);

Test(greeter, hands_a_client_to_whoever_serves_it)
{
        struct nbd_client_info info;
        struct message counters = MESSAGE_INIT;
        struct error err = ERROR_INIT;
        char peer[96];
        int fd;

        start();
        fd = connect_client();
        client_go(fd, "vm/two words", true, NULL, NULL);
        cr_expect(eq(u32, client_write(fd, "here", 4, 100, 0), 0));
        cr_expect(memcmp(fake_chain_bytes(chain) + 100, "here", 4) == 0);
        cr_expect(eq(sz, nbd_server_clients_get(worker, &info, 1), 1));
        snprintf(peer, sizeof(peer), "unix:uid=%u,pid=%d", getuid(), getpid());
        cr_expect(strcmp(info.peer, peer) == 0, "%s", info.peer);
        cr_assert(eq(int, rpc_call(rpc, "counters", NULL, NULL, 0, 8000, &counters, &err), 0));
        cr_expect(eq(i64, json_integer_value(json_object_get(counters.json, "accepted")), 1));
        message_done(&counters);
        close(fd);
        end();
}

static int note_extent(
        void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
        uint32_t *changed = opaque;

        if (strcmp(context, "vhdd:changed:z\xc3\xbcrich") == 0)
                for (size_t i = 0; i < n; i += 2)
                        if (entries[i + 1] & 1)
                                *changed += entries[i];
        return 0;
}

/* A client that is not ours. */
Test(greeter, libnbd_finds_one_server)
{
        struct nbd_handle *nbd = nbd_create();
        uint32_t changed = 0;

        start();
        fake_chain_set(chain, 0, DISK_SIZE, EXTENT_DATA, 1);
        fake_chain_set(chain, 128u << 10, 64u << 10, EXTENT_DATA, 0);
        nbd_add_meta_context(nbd, "vhdd:changed:z\xc3\xbcrich");
        nbd_set_export_name(nbd, "vm/two words");
        cr_assert(eq(int, nbd_connect_unix(nbd, socket_path), 0), "%s", nbd_get_error());
        cr_expect(eq(i64, nbd_get_size(nbd), DISK_SIZE));
        cr_expect(eq(int, nbd_can_meta_context(nbd, "vhdd:changed:z\xc3\xbcrich"), 1));
        cr_expect(eq(int,
                nbd_block_status(nbd, DISK_SIZE, 0,
                        (nbd_extent_callback){.callback = note_extent, .user_data = &changed}, 0),
                0));
        cr_expect(eq(u32, changed, 64u << 10));
        cr_expect(eq(int, nbd_pread(nbd, buffer, 4096, 0, 0), 0));
        nbd_shutdown(nbd, 0);
        nbd_close(nbd);
        end();
}

static uint32_t option_with_name(int fd, uint32_t option, const char *name)
{
        uint8_t data[1024];

        return client_option_result(fd, option, data, client_info_data(data, name));
}

Test(greeter, passes_on_what_the_broker_says_and_survives_its_nonsense)
{
        struct option_reply reply;
        int fd, n = 0;

        start();
        fd = connect_client();
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/none"), NBD_REP_ERR_UNKNOWN));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/busy"), NBD_REP_ERR_POLICY));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/odd"), NBD_REP_ERR_POLICY));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_INFO, "vm/two words"), NBD_REP_ACK));
        client_option(fd, NBD_OPT_LIST, NULL, 0);
        for (client_option_reply(fd, &reply); reply.type == NBD_REP_SERVER; n++)
                client_option_reply(fd, &reply);
        cr_expect(eq(int, n, 2));
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/two words"), NBD_REP_ACK));
        cr_expect(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
        close(fd);
        end();
}

/* An export that the broker knows and the one who serves does not: as after a detach on the way. */
Test(greeter, a_client_that_is_not_served_is_told)
{
        struct error err = ERROR_INIT;
        int fd;

        start();
        cr_assert(eq(int, nbd_server_remove_export(worker, "vm/two words", true, 0, &err), 0));
        fd = connect_client();
        client_hello(fd, NBD_FLAG_FIXED_NEWSTYLE);
        cr_expect(eq(u32, option_with_name(fd, NBD_OPT_GO, "vm/two words"), NBD_REP_ERR_UNKNOWN));
        cr_expect(client_sees_end(fd));
        close(fd);
        end();
}

static int status_number(const char *field, int base)
{
        char path[64], line[256];
        int value = -1;
        FILE *f;

        snprintf(path, sizeof(path), "/proc/%d/status", greeter);
        f = fopen(path, "r");
        cr_assert(f != NULL);
        while (fgets(line, sizeof(line), f))
                if (strncmp(line, field, strlen(field)) == 0)
                        value = (int)strtoul(line + strlen(field), NULL, base);
        fclose(f);
        return value;
}

Test(greeter, keeps_nothing_that_a_hostile_client_could_use)
{
        start();
        cr_expect(eq(int, status_number("NoNewPrivs:", 10), 1));
        cr_expect(eq(int, status_number("Seccomp:", 10), 2));
        if (getuid() == 0) {
                cr_expect(eq(int, status_number("Uid:", 10), 65534));
                cr_expect(eq(int, status_number("Gid:", 10), 65533));
                cr_expect(eq(int, status_number("CapEff:", 16), 0));
                cr_expect(eq(int, status_number("CapPrm:", 16), 0));
        }
        end();
}

Test(greeter, starts_only_on_sockets_that_listen_and_only_once)
{
        struct error err = ERROR_INIT;
        int fd, pair[2];

        start();
        cr_expect(eq(int, rpc_call(rpc, "nothing", NULL, NULL, 0, 8000, NULL, &err), -ENOSYS));
        fd = dup(0);
        cr_expect(eq(int, call_start(&fd, 1, &err), -EALREADY));
        close(fd);
        end();

        memcpy(directory + strlen(directory) - 6, "XXXXXX", 6);
        start_worker();
        start_process();
        cr_expect(eq(int, call_start(NULL, 0, &err), -EINVAL));
        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0));
        cr_expect(eq(int, call_start(pair, 1, &err), -EINVAL));
        close(pair[0]);
        close(pair[1]);
        end();
}

/* Wrong words on the command line, or no broker: it says so and does nothing. */
Test(greeter, ends_at_once_without_a_broker)
{
        pid_t pid = fork();

        if (pid == 0) {
                close(GREETER_CHANNEL_FD);
                fclose(stderr);
                execl(GREETER_PROGRAM, "vhdd", "--greeter", NULL);
                _exit(127);
        }
        cr_expect(eq(int, wait_for_end(pid), 3));
        pid = fork();
        if (pid == 0) {
                close(2);
                execl(GREETER_PROGRAM, "vhdd", "--greeter", "--uid", "-1", NULL);
                _exit(127);
        }
        cr_expect(eq(int, wait_for_end(pid), 3));
}

/* kill -9 of the broker: nobody accepts clients that nobody would serve. Those that are served stay. */
Test(greeter, dies_with_its_broker)
{
        int ends[2], tell[2], pidfd;
        struct error err = ERROR_INIT;
        struct pollfd gone = {.events = POLLIN};
        pid_t broker, pid = 0;

        cr_assert(eq(int, channel_pair(ends, &err), 0));
        cr_assert(eq(int, pipe(tell), 0));
        broker = fork();
        if (broker == 0) {
                pid = spawn(ends[1]);
                if (write(tell[1], &pid, sizeof(pid)) < 0)
                        _exit(1);
                for (;;)
                        pause();
        }
        cr_assert(eq(i64, read(tell[0], &pid, sizeof(pid)), sizeof(pid)));
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        cr_assert(ge(int, pidfd, 0));
        gone.fd = pidfd;
        /* Its sandbox is up when it answers, and with it the death signal. The channel stays open. */
        cr_assert(eq(int,
                rpc_new(ends[0], &(struct rpc_handlers){.request = on_request}, &rpc, &err), 0));
        cr_assert(eq(int, pthread_create(&reader, NULL, reader_main, NULL), 0));
        cr_expect(eq(int, call_start(NULL, 0, &err), -EINVAL));
        kill(broker, SIGKILL);
        cr_expect(eq(int, wait_for_end(broker), 256 + SIGKILL));
        cr_expect(eq(int, poll(&gone, 1, 8000), 1));
        rpc_shutdown(rpc);
        pthread_join(reader, NULL);
        rpc = rpc_unref(rpc);
        close(ends[1]);
        close(pidfd);
}
