/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a socket that everybody may connect to, one of a living server taken over, a file
 * that is no socket removed; and, when the daemon executes itself anew, a socket that is lost, or whose
 * name is removed by one who has not made it. */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "vhdd/control/socket.h"
#include "vhdd/daemon/listeners.h"

static char top[] = "/tmp/vhdd-listen-XXXXXX", control[64], nbd[64];
static struct broker_options options;
static struct listeners listeners = {.lock_fd = -1, .control_fd = -1};

static char **list_of(const char *text)
{
        char **list = calloc(2, sizeof(*list));

        list[0] = strdup(text);
        return list;
}

static void setup(void)
{
        cr_assert(mkdtemp(top) != NULL);
        snprintf(control, sizeof(control), "%s/c", top);
        snprintf(nbd, sizeof(nbd), "%s/n", top);
        options.control_path = strdup(control);
        options.nbd_paths = list_of(nbd);
        options.n_nbd_paths = 1;
}

static void teardown(void)
{
        char command[96];

        snprintf(command, sizeof(command), "rm -rf '%s'", top);
        cr_expect(eq(int, system(command), 0));
}

TestSuite(listeners, .init = setup, .fini = teardown, .timeout = 30);

static int open_all(struct error *err)
{
        *err = ERROR_INIT;
        return listeners_open(&listeners, &options, CONTROL_NO_GROUP, err);
}

static int connect_to(const char *path)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        r = connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
        close(fd);
        return r;
}

static int listen_at(const char *path)
{
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

        snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
        cr_assert(eq(int, bind(fd, (struct sockaddr *)&address, sizeof(address)), 0));
        cr_assert(eq(int, listen(fd, 64), 0));
        return fd;
}

Test(listeners, are_ours_alone_and_gone_in_the_end)
{
        struct error err;
        struct stat st;

        cr_assert(eq(int, open_all(&err), 0), "%s", err.message);
        cr_assert(eq(int, stat(nbd, &st), 0));
        cr_expect(eq(uint, st.st_mode & 0777, 0600));
        cr_assert(eq(int, stat(control, &st), 0));
        cr_expect(eq(uint, st.st_mode & 0777, 0600));
        cr_expect(eq(int, connect_to(nbd), 0));
        cr_expect(eq(str, options.nbd_paths[0], nbd));
        listeners_close(&listeners);
        cr_expect(lt(int, stat(nbd, &st), 0));
        cr_expect(lt(int, stat(control, &st), 0));
}

Test(listeners, replace_what_is_dead_and_nothing_else)
{
        struct error err;
        struct stat st;
        int fd = listen_at(nbd);

        cr_assert(eq(int, open_all(&err), -EADDRINUSE));
        cr_expect(strstr(err.message, nbd) != NULL, "%s", err.message);
        cr_expect(eq(int, connect_to(nbd), 0), "it is still the other's");
        listeners_close(&listeners);
        close(fd);
        cr_assert(eq(int, open_all(&err), 0), "%s", err.message);
        listeners_close(&listeners);

        fd = open(nbd, O_CREAT | O_WRONLY, 0600);
        cr_assert(fd >= 0);
        close(fd);
        cr_assert(eq(int, open_all(&err), -EEXIST));
        cr_expect(eq(int, stat(nbd, &st), 0), "somebody's file is still there");
        listeners_close(&listeners);
}

Test(listeners, over_tcp_are_on_loopback_and_know_their_port)
{
        struct error err;

        options.nbd_addresses = list_of("127.0.0.1:0");
        options.n_nbd_addresses = 1;
        cr_assert(eq(int, open_all(&err), 0), "%s", err.message);
        cr_assert(eq(sz, options.n_nbd_addresses, 1));
        cr_expect(strncmp(options.nbd_addresses[0], "127.0.0.1:", 10) == 0);
        cr_expect(gt(int, atoi(options.nbd_addresses[0] + 10), 0), "%s", options.nbd_addresses[0]);
        cr_assert(eq(sz, options.n_nbd_paths, 1), "the unix socket as well");
        listeners_close(&listeners);

        free(options.nbd_addresses[0]);
        free(options.nbd_addresses);
        options.nbd_addresses = list_of("0.0.0.0:0");
        options.n_nbd_addresses = 1;
        cr_assert(eq(int, open_all(&err), -EACCES));
        cr_expect(strstr(err.message, "loopback") != NULL, "%s", err.message);
        listeners_close(&listeners);
}

Test(listeners, survive_the_program)
{
        struct listeners next = LISTENERS_INIT;
        struct error err;
        struct stat st;

        cr_assert(eq(int, open_all(&err), 0), "%s", err.message);
        listeners.lock_fd = fcntl(0, F_DUPFD_CLOEXEC, 3);
        cr_assert(eq(int, listeners_keep(&listeners, &err), 0), "%s", err.message);
        cr_expect(eq(int, fcntl(listeners.nbd_fds[0], F_GETFD), 0), "execve leaves it");

        cr_assert(eq(int, listeners_take(&next, &err), 0), "%s", err.message);
        cr_expect(eq(int, next.lock_fd, listeners.lock_fd));
        cr_expect(eq(int, next.control_fd, listeners.control_fd));
        cr_expect(next.control_is_own);
        cr_assert(eq(uint, next.n_nbd, 1));
        cr_expect(eq(int, next.nbd_fds[0], listeners.nbd_fds[0]));
        cr_expect(next.nbd_is_own[0]);
        cr_expect(
                eq(int, fcntl(next.nbd_fds[0], F_GETFD), FD_CLOEXEC), "and children do not get it");
        cr_expect(getenv("VHDD_KEPT_FDS") == NULL, "nor hear of it");

        /* The names are those that the sockets have, whatever the options say. */
        free(options.control_path);
        options.control_path = strdup("/nowhere");
        cr_assert(eq(int, listeners_open(&next, &options, CONTROL_NO_GROUP, &err), 0));
        cr_expect(eq(str, options.control_path, control));
        listeners_close(&next);
        cr_expect(lt(int, stat(nbd, &st), 0));
}

Test(listeners, of_somebody_else_keep_their_names)
{
        struct listeners next = LISTENERS_INIT;
        struct error err = ERROR_INIT;
        struct stat st;

        listeners.control_fd = listen_at(control);
        listeners.nbd_fds[listeners.n_nbd++] = listen_at(nbd);
        cr_assert(eq(int, listeners_keep(&listeners, &err), 0), "%s", err.message);
        cr_assert(eq(int, listeners_take(&next, &err), 0), "%s", err.message);
        cr_expect(not(next.control_is_own));
        cr_expect(not(next.nbd_is_own[0]));
        listeners_close(&next);
        cr_expect(eq(int, stat(control, &st), 0));
        cr_expect(eq(int, stat(nbd, &st), 0));
}

Test(listeners, that_were_kept_for_another_process_are_not_believed)
{
        struct listeners next = LISTENERS_INIT;
        struct error err = ERROR_INIT;
        char text[64];

        snprintf(text, sizeof(text), "p:%d l:0 C:1 ", (int)getpid() + 1);
        setenv("VHDD_KEPT_FDS", text, 1);
        cr_assert(eq(int, listeners_take(&next, &err), 0), "%s", err.message);
        cr_expect(eq(int, next.lock_fd, -1));
        cr_expect(eq(int, next.control_fd, -1));
}
