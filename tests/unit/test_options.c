/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: wrong usage that is taken for something, or ends with another number than 2; a
 * relative path that means something else once the daemon is elsewhere; TCP opened unasked. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vhdd/daemon/options.h"

#define MAX_ARGUMENTS 8

TestSuite(options, .timeout = 20);

static int count(const char **args)
{
        int n = 0;

        while (args[n])
                n++;
        return n;
}

static void read_options(const char **args, struct broker_options *ret)
{
        /* argp takes what main() gets, and changes none of it */
        options_read(count(args), (char **)(uintptr_t)args, ret);
}

/* The exit status; 0 if it read them. */
static int status_of(const char **args)
{
        pid_t pid = fork();
        int status = -1;

        cr_assert(pid >= 0);
        if (pid == 0) {
                struct broker_options options;
                int null = open("/dev/null", O_WRONLY);

                dup2(null, 1);
                dup2(null, 2);
                read_options(args, &options);
                options_done(&options);
                _exit(0);
        }
        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

Test(options, have_defaults_in_the_state_directory)
{
        const char *args[] = {"vhdd", "--state-dir", "/srv/v", NULL};
        struct broker_options options;

        read_options(args, &options);
        cr_expect(eq(str, options.state_dir, (char *)"/srv/v"));
        cr_expect(eq(str, options.control_path, (char *)"/srv/v/control.sock"));
        cr_assert(eq(sz, options.n_nbd_paths, 1));
        cr_expect(eq(str, options.nbd_paths[0], (char *)"/srv/v/nbd.sock"));
        cr_expect(eq(sz, options.n_nbd_addresses, 0));
        cr_expect(options.metrics_path == NULL);
        cr_expect(not(options.insecure));
        options_done(&options);
}

Test(options, make_paths_absolute_and_take_lists)
{
        const char *args[] = {"vhdd", "--image-root=a", "--image-root=/b", "--nbd-socket=n1",
                "--nbd-socket=/n2", "--control=c", "--threads=7", NULL};
        char cwd[4096], expected[4200];
        struct broker_options options;

        cr_assert(getcwd(cwd, sizeof(cwd)) != NULL);
        read_options(args, &options);
        snprintf(expected, sizeof(expected), "%s/a", cwd);
        cr_assert(eq(sz, options.n_image_roots, 2));
        cr_expect(eq(str, options.image_roots[0], expected));
        cr_expect(eq(str, options.image_roots[1], (char *)"/b"));
        snprintf(expected, sizeof(expected), "%s/n1", cwd);
        cr_assert(eq(sz, options.n_nbd_paths, 2));
        cr_expect(eq(str, options.nbd_paths[0], expected));
        cr_expect(eq(str, options.nbd_paths[1], (char *)"/n2"));
        snprintf(expected, sizeof(expected), "%s/c", cwd);
        cr_expect(eq(str, options.control_path, expected));
        cr_expect(eq(uint, options.threads, 7));
        options_done(&options);
}

Test(options, that_are_wrong_end_with_2)
{
        const char *wrong[][MAX_ARGUMENTS] = {
                {"vhdd", "--bogus", NULL},
                {"vhdd", "operand", NULL},
                {"vhdd", "--state-dir", "", NULL},
                {"vhdd", "--state-dir", NULL},
                {"vhdd", "--threads", "0", NULL},
                {"vhdd", "--threads", "1025", NULL},
                {"vhdd", "--threads", "4x", NULL},
                {"vhdd", "--threads", "-1", NULL},
                {"vhdd", "--tls", "/etc/tls", NULL},
                {"vhdd", "--nbd-listen", "127.0.0.1:10809", NULL},
                {"vhdd", "--insecure", "--nbd-listen", "10809", NULL},
                {"vhdd", "--vmm-command", "", NULL},
                {"vhdd", "--host-memory", "4G", NULL},
                {"vhdd", "--vmm-command", "x", "--host-memory", "1M", NULL},
                {"vhdd", "--vmm-command", "x", "--host-memory", "much", NULL},
        };
        const char *right[][MAX_ARGUMENTS] = {
                {"vhdd", "--help", NULL},
                {"vhdd", "--version", NULL},
                {"vhdd", NULL},
                {"vhdd", "--insecure", "--nbd-listen", "[::1]:10809", NULL},
                {"vhdd", "--vmm-command", "x y", "--host-memory", "4G", NULL},
        };

        for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
                cr_expect(eq(int, status_of(wrong[i]), 2), "wrong %zu", i);
        for (size_t i = 0; i < sizeof(right) / sizeof(right[0]); i++)
                cr_expect(eq(int, status_of(right[i]), 0), "right %zu", i);
}
