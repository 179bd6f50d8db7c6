/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

#define MAX_FDS  64u
#define HIGH_FD  200 /* out of the way of the numbers that they get */
#define FIRST_FD 3

extern char **environ;

/* What systemd told us is not for them. */
static bool is_ours_alone(const char *entry)
{
        static const char *const names[] = {
                "NOTIFY_SOCKET=", "LISTEN_PID=", "LISTEN_FDS=", "LISTEN_FDNAMES=", "WATCHDOG_"};

        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
                if (!strncmp(entry, names[i], strlen(names[i])))
                        return true;
        return false;
}

/* A variable of the same name. */
static bool is_among(const char *entry, const char *const *list)
{
        size_t length = strcspn(entry, "=");

        for (; list && *list; list++)
                if (strncmp(entry, *list, length) == 0 && (*list)[length] == '=')
                        return true;
        return false;
}

/* Ours, and @more (may be NULL) behind it. */
static char **environment(const char *const *more)
{
        size_t n = 0, n_more = 0, kept = 0;
        char **copy;

        while (environ[n])
                n++;
        while (more && more[n_more])
                n_more++;
        copy = calloc(n + n_more + 1, sizeof(*copy));
        for (size_t i = 0; copy && i < n; i++)
                if (!is_ours_alone(environ[i]) && !is_among(environ[i], more))
                        copy[kept++] = environ[i];
        for (size_t i = 0; copy && i < n_more; i++)
                copy[kept++] = (char *)(uintptr_t)more[i];
        return copy;
}

static void add_actions(posix_spawn_file_actions_t *actions, const int *high, unsigned n)
{
        posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDWR, 0);
        posix_spawn_file_actions_adddup2(actions, 2, 1);
        for (unsigned i = 0; i < n; i++)
                posix_spawn_file_actions_adddup2(actions, high[i], FIRST_FD + (int)i);
        posix_spawn_file_actions_addclosefrom_np(actions, FIRST_FD + (int)n);
}

struct spawn {
        const char *path;
        const char *const *args;
        const char *const *environment; /* beside ours, or NULL */
        const int *fds;                 /* out of the way of the numbers that they get */
        unsigned n_fds;
};

static int spawn(const struct spawn *what, pid_t *ret_pid)
{
        _cleanup_free_ char **env = environment(what->environment);
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attr;
        sigset_t none, all;
        int r;

        if (!env)
                return ENOMEM;
        posix_spawn_file_actions_init(&actions);
        posix_spawnattr_init(&attr);
        add_actions(&actions, what->fds, what->n_fds);
        sigemptyset(&none);
        sigfillset(&all);
        posix_spawnattr_setsigmask(&attr, &none);
        posix_spawnattr_setsigdefault(&attr, &all);
        posix_spawnattr_setflags(
                &attr, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
        r = posix_spawn(
                ret_pid, what->path, &actions, &attr, (char *const *)(uintptr_t)what->args, env);
        posix_spawnattr_destroy(&attr);
        posix_spawn_file_actions_destroy(&actions);
        return r;
}

static int spawn_watched(
        const struct spawn *what, pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
        pid_t pid = 0;
        int pidfd, r = spawn(what, &pid);

        if (r != 0)
                return fail_os(err, r, "cannot start '%s %s'", what->args[0], what->args[1]);
        /* Ours, and nobody has waited for it: the number cannot be another's yet. */
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        if (pidfd < 0) {
                r = errno;
                kill(pid, SIGKILL);
                waitpid(pid, NULL, 0);
                return fail_os(err, r, "cannot watch '%s %s'", what->args[0], what->args[1]);
        }
        *ret_pid = pid;
        *ret_pidfd = pidfd;
        return 0;
}

int process_spawn(struct broker *broker, const char *const *args, const int *fds, unsigned n_fds,
        pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
        int high[MAX_FDS], r = 0;
        struct spawn what = {.path = broker->executable, .args = args, .fds = high};

        if (n_fds > MAX_FDS)
                return fail(err, EINVAL, "a process cannot be given %u descriptors", n_fds);
        for (; r == 0 && what.n_fds < n_fds; what.n_fds++) {
                high[what.n_fds] = fcntl(fds[what.n_fds], F_DUPFD_CLOEXEC, HIGH_FD);
                if (high[what.n_fds] < 0) {
                        r = fail_os(err, errno, "cannot start '%s %s'", args[0], args[1]);
                        break;
                }
        }
        if (r == 0)
                r = spawn_watched(&what, ret_pid, ret_pidfd, err);
        while (what.n_fds > 0)
                close(high[--what.n_fds]);
        return r;
}

int process_spawn_command(const char *path, const char *const *args, const char *const *environment,
        pid_t *ret_pid, int *ret_pidfd, struct error *err)
{
        const struct spawn what = {.path = path, .args = args, .environment = environment};

        return spawn_watched(&what, ret_pid, ret_pidfd, err);
}

int process_wait(int pidfd, int timeout_ms, int *ret_status)
{
        struct pollfd poll_fd = {.fd = pidfd, .events = POLLIN};
        siginfo_t info = {0};
        int r;

        do {
                r = poll(&poll_fd, 1, timeout_ms);
        } while (r < 0 && errno == EINTR);
        if (r <= 0)
                return 0;
        *ret_status = -1;
        if (waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED) == 0)
                *ret_status =
                        info.si_code == CLD_EXITED ? info.si_status << 8 : info.si_status & 0x7f;
        return 1;
}

void process_kill(int pidfd)
{
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

void process_terminate(int pidfd)
{
        syscall(SYS_pidfd_send_signal, pidfd, SIGTERM, NULL, 0);
}

uint64_t process_start_time(pid_t pid)
{
        char path[64], text[1024];
        _cleanup_fd_ int fd = -1;
        unsigned long long start = 0;
        const char *behind;
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
        if (n <= 0)
                return 0;
        text[n] = '\0';
        behind = strrchr(text, ')'); /* the name before it may hold anything */
        if (!behind)
                return 0;
        /* Field 22; the state, field 3, is the first behind the name. */
        for (int field = 2; field < 22 && behind; field++)
                behind = strchr(behind + 1, ' ');
        if (!behind || sscanf(behind, " %llu", &start) != 1)
                return 0;
        return start;
}

int process_open(pid_t pid, uint64_t start_time, int *ret_pidfd)
{
        _cleanup_fd_ int pidfd = -1;

        if (pid <= 1)
                return -ESRCH;
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        if (pidfd < 0)
                return errno == EINVAL ? -ESRCH : -errno;
        if (process_start_time(pid) != start_time)
                return -ESRCH;
        *ret_pidfd = TAKE_FD(pidfd);
        return 0;
}
