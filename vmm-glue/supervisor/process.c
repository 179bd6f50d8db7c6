/* SPDX-License-Identifier: Apache-2.0 */
/* process.c - QEMU's process: started, found again by the next supervisor, watched, ended.
 *
 * RUN/vmm/ID/config.json is written before QEMU is started, and says what it is. The child takes
 * qemu.lock, which lives as long as QEMU, then writes qemu.pid ("PID START-TIME"), then executes QEMU: so a
 * supervisor that dies at any moment leaves either no QEMU, or one that the next supervisor finds. The
 * start time tells it from another process that got the same number.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"
#include "vmm-glue/supervisor/relay.h"

#define CONFIG_NAME "config.json"
#define LOCK_NAME   "qemu.lock"
#define PID_NAME    "qemu.pid"
#define LOG_NAME    "qemu.log"
#define LOG_BEGIN   "vmm-host: starts "
#define PID_WAIT_MS 3000
#define LOG_MAX     (1 << 20)

/* --- config.json --- */

static int write_config(struct supervisor *supervisor, const json_t *config, struct error *err)
{
        _cleanup_free_ char *text = json_dumps(config, JSON_INDENT(1));

        return text ? mark_set(supervisor, CONFIG_NAME, text, err)
                    : fail(err, ENOMEM, "no memory to write what the vm is");
}

int process_note_config(struct supervisor *supervisor, struct error *err)
{
        return write_config(supervisor, supervisor->config, err);
}

static void forget_files(struct supervisor *supervisor)
{
        static const char *const names[] = {PID_NAME, CONFIG_NAME, HOLD_NAME, FROZEN_NAME,
                RELAY_FIFO, "qmp.sock", "console.sock", "qga.sock", "vnc.sock", "spice.sock"};

        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
                _cleanup_free_ char *path = NULL;

                if (path_of(supervisor, names[i], &path, NULL) == 0)
                        unlink(path);
        }
}

/* --- the child --- */

/* Field 22 of /proc/PID/stat; the name before it may hold anything, but no more than one line. */
static uint64_t start_time_of(pid_t pid)
{
        char path[64], text[1024];
        uint64_t ret = 0;
        ssize_t n;
        char *p;
        int fd;

        snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return 0;
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
        if (n <= 0)
                return 0;
        text[n] = '\0';
        p = strrchr(text, ')');
        for (int field = 2; p && field < 22; field++)
                p = strchr(p + 1, ' ');
        if (p)
                ret = strtoull(p + 1, NULL, 10);
        return ret;
}

static int write_pid(const char *path)
{
        char text[64];
        int n = snprintf(
                text, sizeof(text), "%d %" PRIu64 "\n", (int)getpid(), start_time_of(getpid()));
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

        if (fd < 0 || write(fd, text, (size_t)n) != n)
                return -1;
        return close(fd);
}

static void become_qemu(char **argv, const char *folder, const char *pid_path, int lock, int log,
        const int *fds, size_t n_fds) __attribute__((noreturn));
static void become_qemu(char **argv, const char *folder, const char *pid_path, int lock, int log,
        const int *fds, size_t n_fds)
{
        int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
        sigset_t none;

        /* A session of its own: what ends us does not end the guest. */
        setsid();
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        umask(0077);
        dup2(null, STDIN_FILENO);
        dup2(log, STDOUT_FILENO);
        dup2(log, STDERR_FILENO);
        if (write_pid(pid_path) < 0 || chdir(folder) < 0 || fcntl(lock, F_SETFD, 0) < 0)
                _exit(126);
        for (size_t i = 0; i < n_fds; i++)
                fcntl(fds[i], F_SETFD, 0);
        execv(argv[0], argv);
        dprintf(STDERR_FILENO, "cannot execute '%s': %s\n", argv[0], strerror(errno));
        _exit(127);
}

/* --- watching --- */

static void release(struct supervisor *supervisor)
{
        supervisor->process = sd_event_source_disable_unref(supervisor->process);
        if (supervisor->pidfd >= 0)
                close(supervisor->pidfd);
        supervisor->pidfd = -1;
        supervisor->pid = 0;
        supervisor->is_child = false;
}

static int on_end(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
        struct supervisor *supervisor = opaque;
        int status = 0;
        bool is_known = false;

        if (supervisor->is_child)
                is_known = waitpid(supervisor->pid, &status, WNOHANG) == supervisor->pid;
        release(supervisor);
        machine_ended(supervisor, status, is_known);
        forget_files(supervisor);
        return 0;
}

static int watch(struct supervisor *supervisor, struct error *err)
{
        int r = sd_event_add_io(supervisor->event, &supervisor->process, supervisor->pidfd, EPOLLIN,
                on_end, supervisor);

        return r < 0 ? fail_os(err, -r, "cannot watch QEMU's process") : 0;
}

/* --- starting --- */

static int open_log(struct supervisor *supervisor, int *ret, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        struct stat st;
        int r = path_of(supervisor, LOG_NAME, &path, err), fd;

        if (r < 0)
                return r;
        fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
                return fail_os(err, errno, "cannot open '%s'", path);
        if (fstat(fd, &st) == 0 && st.st_size > LOG_MAX && ftruncate(fd, 0) < 0)
                log_warning("cannot shorten '%s'", path);
        *ret = fd;
        return 0;
}

int process_spawn(struct supervisor *supervisor, const json_t *config,
        const struct command_options *options, struct error *err)
{
        _cleanup_(command_freep) char **argv = NULL;
        _cleanup_free_ char *pid_path = NULL, *lock_path = NULL;
        _cleanup_fd_ int lock = -1, log = -1;
        pid_t pid;
        int r = config_command(config, options, &argv, err);

        if (r == 0)
                r = path_of(supervisor, PID_NAME, &pid_path, err);
        if (r == 0)
                r = path_of(supervisor, LOCK_NAME, &lock_path, err);
        if (r == 0)
                r = lock_take(lock_path, LOCK_WAIT_MS, &lock, err);
        if (r == 0)
                r = open_log(supervisor, &log, err);
        if (r < 0)
                return r;
        forget_files(supervisor);
        r = write_config(supervisor, config, err);
        if (r == 0)
                r = hold_set(supervisor, HOLD_START, err);
        if (r < 0)
                return r;
        dprintf(log, LOG_BEGIN "%s\n", options->program);
        pid = fork();
        if (pid < 0)
                return fail_os(err, errno, "cannot start QEMU");
        if (pid == 0)
                become_qemu(argv, supervisor->folder, pid_path, lock, log, options->fds,
                        options->n_fds);
        supervisor->pid = pid;
        supervisor->is_child = true;
        supervisor->pidfd = pidfd_open(pid, 0);
        r = supervisor->pidfd < 0 ? fail_os(err, errno, "cannot watch QEMU's process")
                                  : watch(supervisor, err);
        if (r < 0) {
                kill(pid, SIGKILL);
                waitpid(pid, NULL, 0);
                release(supervisor);
                return r;
        }
        json_decref(supervisor->config);
        supervisor->config = json_deep_copy(config);
        return 0;
}

/* --- finding it again --- */

/* Who holds the lock is QEMU, or is about to become it. */
static bool is_locked(struct supervisor *supervisor)
{
        _cleanup_free_ char *path = NULL;
        int fd;

        if (path_of(supervisor, LOCK_NAME, &path, NULL) < 0 || access(path, F_OK) < 0)
                return false;
        if (lock_take(path, 0, &fd, NULL) < 0)
                return true;
        close(fd);
        return false;
}

static bool read_pid(
        const struct glue_options *options, const char *id, pid_t *ret_pid, uint64_t *ret_start)
{
        _cleanup_free_ char *path = NULL;
        char text[64];
        int pid = 0, fd;
        ssize_t n;

        if (vm_path(options, id, PID_NAME, &path, NULL) < 0)
                return false;
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return false;
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
        if (n <= 0 || text[n - 1] != '\n')
                return false;
        text[n] = '\0';
        if (sscanf(text, "%d %" SCNu64, &pid, ret_start) != 2 || pid <= 1)
                return false;
        *ret_pid = pid;
        return true;
}

pid_t supervisor_qemu_of(const struct glue_options *options, const char *id)
{
        uint64_t start;
        pid_t pid;

        return read_pid(options, id, &pid, &start) && start_time_of(pid) == start ? pid : 0;
}

static int take_over(struct supervisor *supervisor, pid_t pid, uint64_t start, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int fd = pidfd_open(pid, 0);
        int r = path_of(supervisor, CONFIG_NAME, &path, err);

        /* Only behind the opening is the number surely this process's. */
        if (r < 0 || fd < 0 || start_time_of(pid) != start) {
                if (fd >= 0)
                        close(fd);
                return r < 0 ? r : fail(err, ESRCH, "QEMU has ended");
        }
        supervisor->config = json_load_file(path, 0, NULL);
        if (!json_is_object(supervisor->config)) {
                json_decref(supervisor->config);
                supervisor->config = json_object();
        }
        supervisor->pid = pid;
        supervisor->pidfd = fd;
        supervisor->is_child = false;
        return watch(supervisor, err);
}

int process_adopt(struct supervisor *supervisor, struct error *err)
{
        int64_t end = monotonic_ms() + PID_WAIT_MS;
        uint64_t start;
        pid_t pid;
        int r;

        while (is_locked(supervisor)) {
                if (read_pid(&supervisor->options, supervisor->id, &pid, &start)) {
                        r = take_over(supervisor, pid, start, err);
                        if (r != -ESRCH)
                                return r;
                        error_clear(err);
                }
                if (monotonic_ms() > end)
                        return fail(err, EBUSY,
                                "somebody holds '%s/" LOCK_NAME "', but is not the vm's QEMU",
                                supervisor->folder);
                usleep(20000); /* it is between two steps of its beginning, or of its end */
        }
        forget_files(supervisor);
        return 0;
}

void process_kill(struct supervisor *supervisor)
{
        if (supervisor->pidfd >= 0)
                pidfd_send_signal(supervisor->pidfd, SIGKILL, NULL, 0);
}

void process_done(struct supervisor *supervisor)
{
        release(supervisor);
        supervisor->config = (json_decref(supervisor->config), NULL);
}

/* What our own "qemu-io" (disks.c) leaves there. */
static bool is_noise(const char *line)
{
        return strstr(line, " ops; ") || strncmp(line, "read ", 5) == 0;
}

void process_last_words(struct supervisor *supervisor, char *ret, size_t size)
{
        _cleanup_free_ char *path = NULL;
        char text[4096], *line, *next, *last = NULL;
        ssize_t n = -1;
        int fd = -1;

        snprintf(ret, size, "it left no word");
        if (path_of(supervisor, LOG_NAME, &path, NULL) == 0)
                fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return;
        if (lseek(fd, -(off_t)(sizeof(text) - 1), SEEK_END) < 0)
                lseek(fd, 0, SEEK_SET);
        n = read(fd, text, sizeof(text) - 1);
        close(fd);
        text[n > 0 ? n : 0] = '\0';
        for (line = text; line; line = next) {
                next = strchr(line, '\n');
                if (next)
                        *next++ = '\0';
                if (strncmp(line, LOG_BEGIN, strlen(LOG_BEGIN)) == 0)
                        last = NULL; /* what stands before is an earlier one's */
                else if (*line && !is_noise(line))
                        last = line;
        }
        if (!last)
                return;
        /* "2026-11-30T09:00:00.000000Z qemu-system-x86_64: ..." */
        if (strstr(last, "Z qemu-system"))
                last = strstr(last, "Z qemu-system") + 2;
        snprintf(ret, size, "%.300s", last);
}
