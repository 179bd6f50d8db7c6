/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a process that reads hostile images keeps a way to a file, a socket, another
 * process or new code; or its walls are so narrow that it cannot serve, on a kernel with io_uring or
 * without. Each test's child goes into the sandbox, tries, and answers by its exit status. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/fake_chain.h"
#include "tests/unit/nbd_client.h"
#include "vhdd/worker/sandbox.h"

#define DISK_SIZE (8u << 20)
#define NOBODY    65534u

TestSuite(sandbox, .timeout = 60);

static void go_in(void)
{
        struct sandbox sandbox = SANDBOX_INIT("test");
        struct error err = ERROR_INIT;

        sandbox.uid = sandbox.gid = NOBODY;
        if (sandbox_enter(&sandbox, &err) < 0 || sandbox_seal(&sandbox, &err) < 0) {
                fprintf(stderr, "%s\n", err.message);
                _exit(99);
        }
        if (strstr(sandbox.notes, "sanitizers"))
                _exit(77);
}

/* How the child ended, as waitpid has it; a build with sanitizers has no sandbox to test. */
static int in_sandbox(int (*tries)(void))
{
        pid_t pid = fork();
        int status = 0;

        cr_assert(pid >= 0);
        if (pid == 0) {
                go_in();
                _exit(tries());
        }
        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
        if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
                cr_skip("sanitizers need what a sandbox forbids");
        return status;
}

/* The number of the first that was not refused, or 0. */
#define REFUSED(call)                                                                              \
        do {                                                                                       \
                n++;                                                                               \
                errno = 0;                                                                         \
                if ((long)(call) >= 0 || (errno != EPERM && errno != EACCES))                      \
                        return n;                                                                  \
        } while (0)

static int reach_for_names(void)
{
        struct sockaddr_un address = {
                .sun_family = AF_UNIX, .sun_path = "/run/dbus/system_bus_socket"};
        struct stat st;
        int n = 0;

        REFUSED(open("/", O_RDONLY));
        REFUSED(open("/etc/passwd", O_RDONLY));
        REFUSED(open("/proc/self/maps", O_RDONLY));
        REFUSED(open("/dev/null", O_RDWR));
        REFUSED(open(".", O_PATH));
        REFUSED(open("x", O_CREAT | O_RDWR, 0600));
        REFUSED(syscall(SYS_openat2, AT_FDCWD, "/", NULL, 0));
        REFUSED(stat("/", &st));
        REFUSED(unlink("/x"));
        REFUSED(mkdir("/x", 0700));
        REFUSED(rename("/x", "/y"));
        REFUSED(chdir("/"));
        REFUSED(socket(AF_UNIX, SOCK_STREAM, 0));
        REFUSED(socket(AF_INET, SOCK_STREAM, 0));
        REFUSED(connect(0, (struct sockaddr *)&address, sizeof(address)));
        REFUSED(bind(0, (struct sockaddr *)&address, sizeof(address)));
        return 0;
}

Test(sandbox, reaches_no_file_and_no_socket_by_name)
{
        cr_assert(eq(int, in_sandbox(reach_for_names), 0), "the status' upper byte: which one");
}

static int reach_for_more(void)
{
        void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct rlimit limit = {.rlim_cur = 1 << 20, .rlim_max = 1 << 20};
        int n = 0;

        if (memory == MAP_FAILED)
                return 100;
        REFUSED(syscall(SYS_fork));
        REFUSED(syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL));
        REFUSED(kill(getppid(), 0));
        REFUSED(mprotect(memory, 4096, PROT_READ | PROT_EXEC));
        REFUSED(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
                                MAP_FAILED
                        ? -1
                        : 0);
        REFUSED(setrlimit(RLIMIT_CORE, &limit));
        REFUSED(setuid(0));
        REFUSED(fcntl(0, F_SETOWN, getppid()));
        return 0;
}

Test(sandbox, has_no_other_process_no_code_and_no_way_back)
{
        cr_assert(eq(int, in_sandbox(reach_for_more), 0), "the status' upper byte: which one");
}

static int execute(void)
{
        char *const args[] = {(char *)"true", NULL};

        execv("/bin/true", args);
        return 0;
}

static int trace(void)
{
        return ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0 ? 1 : 0;
}

static int make_ring(void)
{
        struct io_uring_params params = {0};

        return syscall(SYS_io_uring_setup, 8, &params) < 0 ? 1 : 0;
}

static int make_namespace(void)
{
        return unshare(CLONE_NEWUSER) < 0 ? 1 : 0;
}

Test(sandbox, kills_who_does_what_only_an_attacker_does)
{
        int (*const tries[])(void) = {execute, trace, make_ring, make_namespace};

        for (unsigned i = 0; i < sizeof(tries) / sizeof(tries[0]); i++) {
                int status = in_sandbox(tries[i]);
                int number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;

                cr_expect(eq(int, number, SIGSYS), "try %u: status 0x%x", i, (unsigned)status);
        }
}

static int take_memory(void)
{
        /* More than the bound that the test sets, in pieces that alone are fine. */
        for (unsigned i = 0; i < 64; i++)
                if (mmap(NULL, 64u << 20, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED)
                        return errno == ENOMEM ? 0 : 1;
        return 2;
}

Test(sandbox, bounds_memory_and_leaves_no_core)
{
        struct sandbox sandbox = SANDBOX_INIT("test");
        struct error err = ERROR_INIT;
        pid_t pid = fork();
        int status = 0;

        cr_assert(pid >= 0);
        if (pid == 0) {
                struct rlimit core;

                sandbox.max_memory = UINT64_C(1) << 30;
                if (sandbox_enter(&sandbox, &err) < 0)
                        _exit(99);
                if (getrlimit(RLIMIT_CORE, &core) < 0 || core.rlim_max != 0)
                        _exit(98);
                _exit(strstr(sandbox.notes, "sanitizers") ? 0 : take_memory());
        }
        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
        cr_assert(eq(int, status, 0));
}

/* A sandboxed server on one end of a pair: what worker_main does, without a broker. */
static void serve(int fd, bool no_io_uring)
{
        const struct nbd_server_options options = {.no_io_uring = no_io_uring, .no_sendfile = true};
        struct chain *chain = fake_chain_new(DISK_SIZE, 1, true);
        const struct nbd_export_options export = {.name = "disk", .chain = chain};
        struct sandbox sandbox = SANDBOX_INIT("test");
        struct nbd_server_counters counters;
        struct nbd_server *server;
        struct error err = ERROR_INIT;
        int r;

        sandbox.uid = sandbox.gid = NOBODY;
        signal(SIGPIPE, SIG_IGN);
        /* Reads whose place is known and whose pages are not in memory are the ring's. */
        atomic_store(&fake_chain_switches(chain)->cold_pages, true);
        r = sandbox_enter(&sandbox, &err);
        if (r == 0)
                r = nbd_server_new(&options, &server, &err);
        if (r == 0)
                r = nbd_server_start(server, &err);
        if (r == 0)
                r = sandbox_seal(&sandbox, &err);
        if (r == 0)
                r = nbd_server_add_export(server, &export, &err);
        if (r == 0)
                r = nbd_server_serve_fd(server, fd, &err);
        if (r < 0) {
                fprintf(stderr, "%s\n", err.message);
                _exit(1);
        }
        do {
                usleep(2000);
                nbd_server_counters_get(server, &counters);
        } while (counters.served == 0 || counters.clients + counters.greeting > 0);
        if (!no_io_uring && counters.io_uring && counters.ring_reads == 0)
                _exit(2);
        if (no_io_uring && counters.ring_reads > 0)
                _exit(3);
        r = nbd_server_stop(server, 5000, &err);
        _exit(r < 0 ? 4 : 0);
}

static void drive(int fd)
{
        static uint8_t out[1u << 20], in[1u << 20];

        client_go(fd, "disk", true, NULL, NULL);
        for (uint32_t i = 0; i < sizeof(out); i++)
                out[i] = (uint8_t)(i * 2654435761u >> 13);
        for (uint32_t length = 4096; length <= sizeof(out); length *= 4) {
                cr_assert(eq(u32, client_write(fd, out, length, 4096, 0), 0));
                memset(in, 0, sizeof(in));
                cr_assert(eq(u32, client_read(fd, in, length, 4096), 0));
                cr_assert(memcmp(in, out, length) == 0, "%u bytes", length);
        }
        cr_assert(eq(u32, client_write(fd, out, 4096, 0, NBD_CMD_FLAG_FUA), 0));
        cr_assert(eq(u32, client_do(fd, NBD_CMD_FLUSH, 0, 0, 0), 0));
        cr_assert(eq(u32, client_do(fd, NBD_CMD_TRIM, 0, 65536, 65536), 0));
        cr_assert(eq(u32, client_do(fd, NBD_CMD_WRITE_ZEROES, 0, 131072, 65536), 0));
        cr_assert(eq(u32, client_read(fd, in, 65536, 131072), 0));
        for (unsigned i = 0; i < 65536; i++)
                cr_assert(eq(u8, in[i], 0));
}

static void serve_and_drive(bool no_io_uring)
{
        int pair[2], status = 0;
        pid_t pid;

        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0));
        pid = fork();
        cr_assert(pid >= 0);
        if (pid == 0) {
                close(pair[0]);
                serve(pair[1], no_io_uring);
        }
        close(pair[1]);
        drive(pair[0]);
        close(pair[0]);
        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
        cr_assert(eq(int, status, 0));
}

Test(sandbox, serves_with_io_uring)
{
        serve_and_drive(false);
}

Test(sandbox, serves_without_io_uring)
{
        serve_and_drive(true);
}
