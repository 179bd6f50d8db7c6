/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl vm console - this terminal as the serial console of a guest. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vhdd/control/socket.h"
#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/show.h"
#include "vhdd/describe/values.h"

#define ESCAPE ('\x1d') /* ^] */

static struct termios before;
static volatile sig_atomic_t is_raw;

static void restore(void)
{
        if (is_raw)
                tcsetattr(STDIN_FILENO, TCSANOW, &before);
        is_raw = 0;
}

static void on_signal(int number)
{
        restore();
        signal(number, SIG_DFL);
        raise(number);
}

/* Every key goes to the guest, ^C as well; the guest echoes. */
static void make_raw(void)
{
        static const int numbers[] = {SIGTERM, SIGHUP, SIGINT, SIGQUIT};
        struct termios raw;

        if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &before) < 0)
                return;
        for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
                signal(numbers[i], on_signal);
        raw = before;
        cfmakeraw(&raw);
        is_raw = 1;
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

static int write_all(int fd, const char *data, size_t length)
{
        while (length > 0) {
                ssize_t n = write(fd, data, length);

                if (n < 0 && errno == EINTR)
                        continue;
                if (n < 0)
                        return -errno;
                data += n;
                length -= (size_t)n;
        }
        return 0;
}

/* What is typed, up to the escape: 1 it came, or there is no more; 0; -errno. */
static int pass_keys(int fd)
{
        char data[4096];
        ssize_t n = read(STDIN_FILENO, data, sizeof(data));
        const char *escape;
        int r;

        if (n < 0)
                return errno == EINTR || errno == EAGAIN ? 0 : -errno;
        if (n == 0)
                return 1;
        escape = is_raw ? memchr(data, ESCAPE, (size_t)n) : NULL;
        r = write_all(fd, data, escape ? (size_t)(escape - data) : (size_t)n);
        return r < 0 ? r : escape != NULL;
}

/* 1: the guest's end is closed. */
static int pass_output(int fd)
{
        char data[4096];
        ssize_t n = read(fd, data, sizeof(data));

        if (n < 0)
                return errno == EINTR || errno == EAGAIN ? 0 : -errno;
        return n == 0 ? 1 : write_all(STDOUT_FILENO, data, (size_t)n);
}

static int pass(int fd, bool *ret_closed)
{
        for (;;) {
                struct pollfd fds[] = {
                        {.fd = STDIN_FILENO, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
                int r = 0;

                if (poll(fds, 2, -1) < 0) {
                        if (errno == EINTR)
                                continue;
                        return -errno;
                }
                if (fds[1].revents) {
                        r = pass_output(fd);
                        *ret_closed = r == 1;
                }
                if (r == 0 && fds[0].revents)
                        r = pass_keys(fd);
                if (r != 0)
                        return r < 0 ? r : 0;
        }
}

static int console_after(struct ctl *ctl, const json_t *result, struct error *err)
{
        const char *path = show_text(result, "socket");
        _cleanup_fd_ int fd = -1;
        bool closed = false;
        int r;

        if (ctl->json)
                return 0;
        r = control_socket_connect(path, &fd, err);
        if (r < 0)
                return fail_prefix(err, r, "cannot open the console");
        if (!ctl->quiet && isatty(STDIN_FILENO))
                fprintf(stderr, "connected; ^] leaves\n");
        signal(SIGPIPE, SIG_IGN);
        make_raw();
        r = pass(fd, &closed);
        restore();
        if (r < 0 && r != -EPIPE && r != -ECONNRESET)
                return fail_os(err, -r, "the console broke off");
        if (!ctl->quiet && isatty(STDIN_FILENO))
                fprintf(stderr, "\n%s\n", closed ? "the vm is off" : "left");
        return 0;
}

static int show_nothing(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        return CTL_DONE;
}

const struct command command_vm_console = {
        .name = "vm console",
        .operands = "VM",
        .summary = "the guest's serial console, in this terminal",
        .doc = "Connect this terminal to the guest's serial console. ^] leaves it; the guest goes on. One "
               "at a time: a second one sees nothing until the first has left. With --json only the "
               "socket is told, for another program."
               "\v"
               "Examples:\n"
               "  vhdctl vm console web\n"
               "  socat - UNIX-CONNECT:\"$(vhdctl vm console web --json | jq -r .socket)\"",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.console",
                .operands = (const struct param[]){{"vm", PARAM_TEXT, NULL, NULL, NULL}, {0}},
                .show = show_nothing,
                .after = console_after},
};

/* --- doctor --- */

/* How wide the column of the checks' names is. */
static int name_width(const json_t *checks)
{
        json_t *check;
        int width = 0;
        size_t i;

        json_array_foreach((json_t *)checks, i, check)
        {
                int length = (int)strlen(show_text(check, "name"));

                width = length > width ? length : width;
        }
        return width;
}

static int show_checks(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        const json_t *checks = json_object_get(result, "checks");
        int width = name_width(checks);
        json_t *check;
        size_t i;

        json_array_foreach((json_t *)checks, i, check)
        {
                _cleanup_free_ char *name = text_safe(show_text(check, "name"));
                _cleanup_free_ char *message = text_safe(show_text(check, "message"));
                _cleanup_free_ char *hint = text_safe(show_text(check, "hint"));
                bool ok = show_flag(check, "ok");

                printf("%-*s  %-3s  %s\n", width, name, ok ? "yes" : "no", message);
                if (!ok && hint && hint[0] && !ctl->quiet)
                        printf("%*s       %s\n", width, "", hint);
        }
        return CTL_DONE;
}

const struct command command_vm_doctor = {
        .name = "vm doctor",
        .operands = "[VM]",
        .summary = "what this host and its QEMU offer vms",
        .doc = "Look at what this host and its QEMU offer: KVM and whether it really runs a guest, "
               "Hyper-V's interfaces for Windows guests, saving memory in the background, vhost-net, Open "
               "vSwitch. With VM also how that one is, and what of guest services its guest has."
               "\v"
               "Examples:\n"
               "  vhdctl vm doctor\n"
               "  vhdctl vm doctor web --json | jq -r '.checks[] | select(.ok | not) | .name'",
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "vm.doctor",
                .operands = (const struct param[]){{"vm", PARAM_TEXT, NULL, NULL, NULL}, {0}},
                .show = show_checks},
};
