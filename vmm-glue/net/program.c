/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/program.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

#define MAX_OUTPUT 65536u

extern char **environ;

/* Debian's users have no sbin in their path, and Open vSwitch's daemons are there. */
static const char *const folders[] = {
        "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"};

static int find_program(const char *name, char **ret, struct error *err)
{
        for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]); i++) {
                _cleanup_free_ char *path = NULL;

                if (asprintf(&path, "%s/%s", folders[i], name) < 0)
                        return fail(err, ENOMEM, "no memory for a path");
                if (access(path, X_OK) == 0) {
                        *ret = TAKE_PTR(path);
                        return 0;
                }
        }
        fail(err, ENOENT,
                "Open vSwitch, which switches are made of, is not installed: there is no '%s'",
                name);
        error_set_hint(err, PROGRAM_PACKAGE_HINT);
        return -ENOENT;
}

/* Files in memory for what it reads and says: nothing has to be pumped, and a daemon that keeps one open
 * holds nobody up. */
static int make_file(const char *content, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = memfd_create("vhdd-ovs", MFD_CLOEXEC);
        size_t length = content ? strlen(content) : 0;

        if (fd < 0)
                return fail_os(err, errno, "cannot make a file in memory");
        if (length && pwrite(fd, content, length, 0) != (ssize_t)length)
                return fail(err, ENOSPC, "cannot fill a file in memory");
        *ret = TAKE_FD(fd);
        return 0;
}

static int read_file(int fd, char **ret)
{
        _cleanup_free_ char *text = calloc(1, MAX_OUTPUT + 1);

        if (!text || pread(fd, text, MAX_OUTPUT, 0) < 0)
                return -ENOMEM;
        *ret = TAKE_PTR(text);
        return 0;
}

/* The environment with OVS_RUNDIR set; only the list is the caller's to free, and its first entry. */
static char **make_environment(const char *run_dir)
{
        size_t n = 0, at = 0;
        char **list;

        while (environ[n])
                n++;
        list = calloc(n + 2, sizeof(*list));
        if (!list)
                return NULL;
        if (run_dir && asprintf(&list[at++], "OVS_RUNDIR=%s", run_dir) < 0) {
                free(list);
                return NULL;
        }
        for (size_t i = 0; i < n; i++)
                if (!run_dir || strncmp(environ[i], "OVS_RUNDIR=", 11) != 0)
                        list[at++] = environ[i];
        return list;
}

static int spawn(const char *path, const char *const *arguments, char **environment, int input,
        int output, int errors, pid_t *ret)
{
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attributes;
        sigset_t none, all;
        int code;

        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
        posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
        posix_spawn_file_actions_adddup2(&actions, errors, STDERR_FILENO);
        posix_spawnattr_init(&attributes);
        sigemptyset(&none);
        sigfillset(&all);
        posix_spawnattr_setsigmask(&attributes, &none);
        posix_spawnattr_setsigdefault(&attributes, &all);
        posix_spawnattr_setflags(
                &attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
        code = posix_spawn(ret, path, &actions, &attributes, (char *const *)arguments, environment);
        posix_spawnattr_destroy(&attributes);
        posix_spawn_file_actions_destroy(&actions);
        return -code;
}

/* Its status, or -ETIMEDOUT: then it was ended. */
static int wait_for(pid_t pid, unsigned timeout_ms, int *ret_status)
{
        _cleanup_fd_ int fd = (int)syscall(SYS_pidfd_open, pid, 0);
        struct pollfd pollfd = {.fd = fd, .events = POLLIN};
        bool in_time = fd < 0;
        siginfo_t info;

        while (!in_time) {
                int n = poll(&pollfd, 1, (int)timeout_ms);

                if (n < 0 && errno == EINTR)
                        continue;
                in_time = n > 0;
                break;
        }
        if (!in_time)
                kill(pid, SIGKILL);
        while (waitid(P_PID, (id_t)pid, &info, WEXITED) < 0)
                if (errno != EINTR)
                        return -errno;
        *ret_status = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
        return in_time ? 0 : -ETIMEDOUT;
}

/* The last line that says something. */
static const char *last_words(char *text)
{
        size_t length = strlen(text);
        char *line;

        while (length && strchr("\n\r ", text[length - 1]))
                text[--length] = '\0';
        line = strrchr(text, '\n');
        return line ? line + 1 : text;
}

static int judge(const char *name, int r, int status, int errors, struct error *err)
{
        _cleanup_free_ char *said = NULL;
        const char *words = "";

        if (r == 0 && status == 0)
                return 0;
        if (read_file(errors, &said) == 0)
                words = last_words(said);
        if (r < 0)
                return fail(err, -r, "%s does not come to its end: %s", name,
                        words[0] ? words : "it was ended");
        return fail(err, EREMOTEIO, "%s failed with %d: %s", name, status,
                words[0] ? words : "it said nothing");
}

int program_run(const char *const *arguments, const char *run_dir, const char *input,
        unsigned timeout_ms, char **ret_output, struct error *err)
{
        _cleanup_fd_ int in = -1, out = -1, errors = -1;
        _cleanup_free_ char *path = NULL;
        char **environment;
        int status = 0, r = find_program(arguments[0], &path, err);
        pid_t pid;

        if (r == 0)
                r = make_file(input, &in, err);
        if (r == 0)
                r = make_file(NULL, &out, err);
        if (r == 0)
                r = make_file(NULL, &errors, err);
        if (r < 0)
                return r;
        environment = make_environment(run_dir);
        if (!environment)
                return fail(err, ENOMEM, "no memory for an environment");
        r = spawn(path, arguments, environment, in, out, errors, &pid);
        if (run_dir)
                free(environment[0]);
        free(environment);
        if (r < 0)
                return fail_os(err, -r, "cannot start '%s'", path);
        r = wait_for(pid, timeout_ms, &status);
        r = judge(arguments[0], r, status, errors, err);
        if (r == 0 && ret_output && read_file(out, ret_output) < 0)
                r = fail(err, ENOMEM, "no memory for what %s said", arguments[0]);
        return r;
}
