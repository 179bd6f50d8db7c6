/* SPDX-License-Identifier: Apache-2.0 */
/* relay.c - a process that writes to a file what QEMU saves in the background, and never lets that fail.
 *
 * While QEMU saves in the background the guest waits at each page that it writes until QEMU has copied it. A
 * QEMU (7.2) whose save fails or is cancelled lets it wait there for ever. So QEMU is given a FIFO of ours,
 * RUN/vmm/ID/memory.fifo, opened so that it can be written as long as QEMU lives (it holds both ends), and is
 * never told to cancel. The relay reads all that comes: into the file as long as that can be written, and from
 * then on into nothing. It ends when QEMU closes its end.
 *
 * It is a process, because it must go on when the supervisor dies, and when the supervisor waits for QEMU,
 * whose main loop may itself wait at such a page. One that dies is replaced by one that throws away.
 */
#include "vmm-glue/supervisor/relay.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define PIPE_SIZE (1 << 20)
#define PIECE     (1u << 20)

/* --- the process --- */

static int write_all(const char *data, size_t size)
{
        while (size > 0) {
                ssize_t n = write(STDOUT_FILENO, data, size);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? errno : EIO;
                data += n;
                size -= (size_t)n;
        }
        return 0;
}

int relay_run(void)
{
        static char piece[PIECE];
        int failed = 0;

        for (;;) {
                ssize_t n = read(STDIN_FILENO, piece, sizeof(piece));

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return n < 0 ? errno : failed;
                if (!failed)
                        failed = write_all(piece, (size_t)n);
        }
}

static void become_relay(const char *program, int from, int to) __attribute__((noreturn));
static void become_relay(const char *program, int from, int to)
{
        sigset_t none;

        setsid();
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        if (dup2(from, STDIN_FILENO) < 0 || dup2(to, STDOUT_FILENO) < 0)
                _exit(EIO);
        execl(program, "vmm-host", RELAY_OPTION, (char *)NULL);
        _exit(errno);
}

/* --- the supervisor's part --- */

static int on_end(sd_event_source *source, const siginfo_t *info, void *opaque)
{
        struct supervisor *supervisor = opaque;
        struct error err = ERROR_INIT;

        supervisor->relay = sd_event_source_disable_unref(supervisor->relay);
        if (info->si_code == CLD_EXITED) {
                if (supervisor->relay_result == 0)
                        supervisor->relay_result = -info->si_status;
        } else {
                log_warning("the process that writes the guest's memory was ended by signal %d",
                        info->si_status);
                supervisor->relay_result = -RELAY_DIED;
                if (is_process_there(supervisor) && relay_discard(supervisor, &err) < 0)
                        log_error(&err);
        }
        operations_kick(supervisor);
        return 0;
}

/* Without waiting for a writer; reading waits. */
static int open_to_read(const char *path, struct error *err)
{
        int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);

        if (fd < 0 || fcntl(fd, F_SETFL, 0) < 0) {
                fail_os(err, errno, "cannot open '%s'", path);
                if (fd >= 0)
                        close(fd);
                return -err->code;
        }
        return fd;
}

static int start(struct supervisor *supervisor, int from, int to, struct error *err)
{
        pid_t pid = fork();
        int r;

        if (pid < 0)
                return fail_os(err, errno, "cannot start a process to write the memory");
        if (pid == 0)
                become_relay(supervisor->options.program, from, to);
        r = sd_event_add_child(
                supervisor->event, &supervisor->relay, pid, WEXITED, on_end, supervisor);
        return r < 0 ? fail_os(err, -r, "cannot watch the process that writes the memory") : 0;
}

int relay_start(struct supervisor *supervisor, int file, int *ret, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int both = -1, from = -1;
        int r = path_of(supervisor, RELAY_FIFO, &path, err);

        if (r < 0)
                return r;
        unlink(path);
        if (mkfifo(path, 0600) < 0)
                return fail_os(err, errno, "cannot make '%s'", path);
        both = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (both < 0)
                return fail_os(err, errno, "cannot open '%s'", path);
        fcntl(both, F_SETPIPE_SZ, PIPE_SIZE); /* else it is only slower */
        from = open_to_read(path, err);
        if (from < 0)
                return from;
        supervisor->relay_result = 0;
        r = start(supervisor, from, file, err);
        if (r == 0)
                *ret = TAKE_FD(both);
        return r;
}

int relay_discard(struct supervisor *supervisor, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int from = -1, null = open("/dev/null", O_WRONLY | O_CLOEXEC);
        int r = path_of(supervisor, RELAY_FIFO, &path, err);

        if (r < 0)
                return r;
        from = open_to_read(path, err);
        if (from < 0)
                return from;
        return null < 0 ? fail_os(err, EIO, "cannot open '/dev/null'")
                        : start(supervisor, from, null, err);
}

bool relay_is_running(const struct supervisor *supervisor)
{
        return supervisor->relay != NULL;
}

void relay_done(struct supervisor *supervisor)
{
        supervisor->relay = sd_event_source_disable_unref(supervisor->relay);
}
