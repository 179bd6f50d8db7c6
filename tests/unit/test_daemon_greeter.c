/* SPDX-License-Identifier: Apache-2.0 */
/* The broker's end of the greeter. What could go wrong: the greeter dies and no NBD client is answered
 * ever again, one slow answer stops the others, a client's socket leaks into the broker, and stopping
 * leaves a process behind. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <libnbd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "chain/chain.h"
#include "nbd/server/server.h"
#include "vhdd/daemon/greeter.h"
#include "vhdd/ipc/channel.h"

#define DISK_SIZE (1u << 20)

static char directory[] = "/tmp/vhdd-greeter-XXXXXX", socket_path[64], image_path[64];
static struct broker broker;
static struct greeter *greeter;
static struct nbd_server *worker;
static struct chain *chain;
static int listening;
static atomic_bool slow;
static atomic_int lookups;

static int lookup(struct broker *from, const char *name, json_t **ret, struct error *err)
{
        atomic_fetch_add(&lookups, 1);
        if (strcmp(name, "vm/slow") == 0)
                while (atomic_load(&slow))
                        usleep(1000);
        else if (strcmp(name, "vm/disk") == 0) {
                *ret = json_pack("{s:s, s:i}", "name", name, "size", DISK_SIZE);
                return 0;
        }
        return fail(err, ENOENT, "no such export");
}

static int list(struct broker *from, json_t **ret, struct error *err)
{
        *ret = json_pack("{s:[{s:s}]}", "exports", "name", "vm/disk");
        return 0;
}

static int hand_over(
        struct broker *from, const struct nbd_handoff *handoff, int fd, struct error *err)
{
        int copy = dup(fd), r = nbd_server_serve_handoff(worker, copy, handoff, err);

        if (r < 0)
                close(copy);
        return r;
}

static const struct greeter_answers answers = {lookup, list, hand_over};

static void start_worker(void)
{
        struct nbd_export_options export = {.name = "vm/disk"};
        struct chain_options options = {.writable = true, .format = "raw"};
        struct error err = ERROR_INIT;
        FILE *f = fopen(image_path, "w");

        cr_assert(eq(int, ftruncate(fileno(f), DISK_SIZE), 0));
        fclose(f);
        cr_assert(eq(int, chain_open(image_path, &options, &chain, &err), 0), "%s", err.message);
        export.chain = chain;
        cr_assert(eq(int, nbd_server_new(NULL, &worker, &err), 0));
        cr_assert(eq(int, nbd_server_start(worker, &err), 0));
        cr_assert(eq(int, nbd_server_add_export(worker, &export, &err), 0));
}

static void start(void)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct error err = ERROR_INIT;

        cr_assert(mkdtemp(directory) != NULL);
        snprintf(socket_path, sizeof(socket_path), "%s/nbd.sock", directory);
        snprintf(image_path, sizeof(image_path), "%s/disk.raw", directory);
        broker.executable = (char *)GREETER_PROGRAM;
        broker.worker_uid = broker.worker_gid = getuid() == 0 ? 65534 : getuid();
        listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        memcpy(address.sun_path, socket_path, sizeof(socket_path));
        cr_assert(eq(int, bind(listening, (struct sockaddr *)&address, sizeof(address)), 0));
        cr_assert(eq(int, listen(listening, 16), 0));
        start_worker();
        cr_assert(eq(int, greeter_start(&broker, &listening, 1, &answers, &greeter, &err), 0), "%s",
                err.message);
}

/* The one child of ours that lives, or 0. */
static pid_t child(void)
{
        struct dirent *entry;
        pid_t found = 0;
        DIR *tasks = opendir("/proc/self/task");

        while ((entry = readdir(tasks))) {
                char path[300];
                FILE *f;
                int pid;

                snprintf(path, sizeof(path), "/proc/self/task/%s/children", entry->d_name);
                f = fopen(path, "r");
                while (f && fscanf(f, "%d", &pid) == 1)
                        found = pid;
                if (f)
                        fclose(f);
        }
        closedir(tasks);
        return found;
}

static int n_descriptors(void)
{
        DIR *fds = opendir("/proc/self/fd");
        int n = 0;

        while (readdir(fds))
                n++;
        closedir(fds);
        return n;
}

static void end(void)
{
        struct error err = ERROR_INIT;

        greeter = greeter_stop(greeter);
        cr_expect(eq(int, child(), 0));
        worker = nbd_server_free(worker);
        cr_expect(eq(int, chain_close(chain, &err), 0));
        close(listening);
        unlink(socket_path);
        unlink(image_path);
        rmdir(directory);
}

static struct nbd_handle *client(const char *name)
{
        struct nbd_handle *nbd = nbd_create();

        nbd_set_export_name(nbd, name);
        cr_assert(eq(int, nbd_connect_unix(nbd, socket_path), 0), "%s", nbd_get_error());
        return nbd;
}

TestSuite(daemon_greeter, .timeout = 60);

Test(daemon_greeter, brings_clients_to_those_who_serve_them_and_keeps_no_socket)
{
        struct nbd_handle *nbd;
        json_t *counters = NULL;
        struct error err = ERROR_INIT;
        char byte = 0;
        int before;

        start();
        nbd = client("vm/disk");
        before = n_descriptors();
        nbd_close(nbd);
        for (int i = 0; i < 5; i++) {
                nbd = client("vm/disk");
                cr_expect(eq(int, nbd_pwrite(nbd, "x", 1, 700, 0), 0));
                cr_expect(eq(int, nbd_pread(nbd, &byte, 1, 700, 0), 0));
                cr_expect(eq(chr, byte, 'x'));
                nbd_shutdown(nbd, 0);
                nbd_close(nbd);
        }
        for (int tries = 0; n_descriptors() > before; tries++) {
                cr_assert(lt(int, tries, 4000));
                usleep(1000);
        }
        cr_assert(eq(int, greeter_counters(greeter, &counters, &err), 0), "%s", err.message);
        cr_expect(eq(i64, json_integer_value(json_object_get(counters, "handed-over")), 6));
        json_decref(counters);
        end();
}

/* kill -9 of the greeter: who is served goes on, who comes now waits for the next one. */
Test(daemon_greeter, is_started_again_when_it_dies)
{
        struct nbd_handle *served, *later;
        pid_t first;
        char byte;

        start();
        served = client("vm/disk");
        first = child();
        cr_assert(gt(int, first, 1));
        kill(first, SIGKILL);
        later = client("vm/disk");
        cr_expect(ne(int, child(), first));
        cr_expect(eq(int, nbd_pread(served, &byte, 1, 0, 0), 0));
        cr_expect(eq(int, nbd_pread(later, &byte, 1, 0, 0), 0));
        nbd_close(served);
        nbd_close(later);
        end();
}

Test(daemon_greeter, a_slow_answer_is_waited_for_alone)
{
        struct nbd_handle *waits = nbd_create(), *nbd;

        start();
        atomic_store(&slow, true);
        nbd_set_export_name(waits, "vm/slow");
        cr_assert(eq(int, nbd_aio_connect_unix(waits, socket_path), 0));
        while (atomic_load(&lookups) == 0)
                nbd_poll(waits, 1);
        nbd = client("vm/disk");
        cr_expect(nbd_aio_is_connecting(waits));
        atomic_store(&slow, false);
        while (nbd_aio_is_connecting(waits))
                nbd_poll(waits, 100);
        cr_expect(nbd_aio_is_dead(waits) || nbd_aio_is_closed(waits));
        nbd_close(waits);
        nbd_close(nbd);
        end();
}

Test(daemon_greeter, says_why_it_cannot_start)
{
        struct error err = ERROR_INIT;
        int not_listening[2];

        broker.executable = (char *)"/nonexistent/vhdd";
        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM, 0, not_listening), 0));
        cr_expect(lt(int, greeter_start(&broker, not_listening, 1, &answers, &greeter, &err), 0));
        cr_expect(strstr(err.message, "cannot start the greeter: ") == err.message, "%s",
                err.message);
        broker.executable = (char *)GREETER_PROGRAM;
        broker.worker_uid = broker.worker_gid = getuid() == 0 ? 65534 : getuid();
        cr_expect(eq(
                int, greeter_start(&broker, not_listening, 1, &answers, &greeter, &err), -EINVAL));
        cr_expect(strstr(err.message, "no socket that listens") != NULL, "%s", err.message);
        cr_expect(eq(
                int, greeter_start(&broker, not_listening, 0, &answers, &greeter, &err), -EINVAL));
        close(not_listening[0]);
        close(not_listening[1]);
        cr_expect(eq(int, child(), 0));
}
