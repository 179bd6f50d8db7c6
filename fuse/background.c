/* SPDX-License-Identifier: Apache-2.0 */
#include "fuse/background.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"

struct report {
        int result;
        struct error err;
};

/* All of the report, or false: the child ended without one. */
static bool receive(int fd, struct report *ret)
{
        char *at = (char *)ret;
        size_t left = sizeof(*ret);

        while (left > 0) {
                ssize_t n = read(fd, at, left);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        return false;
                at += n;
                left -= (size_t)n;
        }
        return true;
}

static int wait_for_child(pid_t pid, int fd, struct error *err)
{
        struct report report;
        int status;

        if (receive(fd, &report)) {
                *err = report.err;
                return report.result;
        }
        if (waitpid(pid, &status, 0) == pid && WIFSIGNALED(status))
                return fail(err, EIO, "vhdfuse was ended by signal %d (%s) before it was ready",
                        WTERMSIG(status), strsignal(WTERMSIG(status)));
        return fail(err, EIO, "vhdfuse ended before it was ready");
}

bool background_begin(struct background *ret_background, int *ret, struct error *err)
{
        int fds[2];
        pid_t pid;

        if (pipe2(fds, O_CLOEXEC) < 0) {
                *ret = fail_os(err, errno, "cannot make a pipe");
                return false;
        }
        pid = fork();
        if (pid < 0) {
                *ret = fail_os(err, errno, "cannot start a process");
                close(fds[0]);
                close(fds[1]);
                return false;
        }
        if (pid == 0) {
                setsid();
                /* What our starter had open is not ours to keep open. */
                close_range(STDERR_FILENO + 1, (unsigned)fds[1] - 1, 0);
                close_range((unsigned)fds[1] + 1, ~0u, 0);
                ret_background->fd = fds[1];
                return true;
        }
        close(fds[1]);
        *ret = wait_for_child(pid, fds[0], err);
        close(fds[0]);
        return false;
}

/* stdin, stdout, stderr: whoever waits for their end need not wait for ours. */
static void let_go_of_terminal(void)
{
        int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

        for (int i = 0; fd >= 0 && i <= 2; i++)
                dup2(fd, i);
        if (fd > 2)
                close(fd);
}

int background_report(struct background *background, int r, const struct error *err)
{
        const struct report report = {.result = r, .err = r < 0 ? *err : ERROR_INIT};
        const char *at = (const char *)&report;
        size_t left = sizeof(report);

        if (background->fd < 0)
                return 0;
        while (left > 0) {
                ssize_t n = write(background->fd, at, left);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n <= 0)
                        break;
                at += n;
                left -= (size_t)n;
        }
        if (r == 0 && left == 0)
                let_go_of_terminal();
        close(background->fd);
        background->fd = -1;
        return left == 0 ? 0 : -EPIPE;
}
