/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: two daemons on one directory, a daemon that does not start because its killed
 * predecessor still holds the lock for a moment, a directory in which everybody can put sockets. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vhdd/control/socket.h"
#include "vhdd/daemon/state.h"

static char top[] = "/tmp/vhdd-state-XXXXXX", state[64], run[64];

static void setup(void)
{
        cr_assert(mkdtemp(top) != NULL);
        snprintf(state, sizeof(state), "%s/s", top);
        snprintf(run, sizeof(run), "%s/s/run", top);
}

static void teardown(void)
{
        char command[96];

        snprintf(command, sizeof(command), "rm -rf '%s'", top);
        cr_expect(eq(int, system(command), 0));
}

TestSuite(state, .init = setup, .fini = teardown, .timeout = 30);

Test(state, is_made_for_nobody_else)
{
        struct error err = ERROR_INIT;
        struct stat st;

        cr_assert(eq(int, state_make(state, run, CONTROL_NO_GROUP, &err), 0), "%s", err.message);
        cr_assert(eq(int, stat(state, &st), 0));
        cr_expect(eq(uint, st.st_mode & 0777, 0700));
        cr_assert(eq(int, stat(run, &st), 0));
        cr_expect(eq(uint, st.st_mode & 0777, 0700));
        cr_assert(eq(int, state_make(state, run, CONTROL_NO_GROUP, &err), 0), "a second time: %s",
                err.message);
}

Test(state, lets_the_group_through_to_the_sockets)
{
        struct error err = ERROR_INIT;
        struct stat st;

        cr_assert(eq(int, state_make(state, run, getegid(), &err), 0), "%s", err.message);
        cr_assert(eq(int, stat(state, &st), 0));
        cr_expect(eq(uint, st.st_mode & 0777, 0710));
        cr_expect(eq(uint, st.st_gid, getegid()));
        cr_assert(eq(int, stat(run, &st), 0));
        cr_expect(eq(uint, st.st_mode & 0777, 0700));
}

Test(state, refuses_a_directory_that_everybody_writes_into)
{
        struct error err = ERROR_INIT;

        cr_assert(eq(int, mkdir(state, 0700), 0));
        cr_assert(eq(int, chmod(state, 0777), 0));
        cr_assert(eq(int, state_make(state, run, CONTROL_NO_GROUP, &err), -EPERM));
        cr_expect(strstr(err.message, state) != NULL, "%s", err.message);
        cr_expect(strstr(err.hint, "chmod") != NULL, "%s", err.hint);
}

Test(state, refuses_a_file)
{
        struct error err = ERROR_INIT;
        int fd = open(state, O_CREAT | O_WRONLY, 0600);

        cr_assert(fd >= 0);
        close(fd);
        cr_assert(eq(int, state_make(state, run, CONTROL_NO_GROUP, &err), -ENOTDIR));
}

Test(state, has_one_daemon_and_says_which)
{
        struct error err = ERROR_INIT;
        char pid[32];
        int fd, second;

        cr_assert(eq(int, state_make(state, run, CONTROL_NO_GROUP, &err), 0));
        cr_assert(eq(int, state_lock(state, -1, &fd, &err), 0), "%s", err.message);
        cr_assert(eq(int, state_lock(state, -1, &second, &err), -EBUSY));
        snprintf(pid, sizeof(pid), "(pid %d)", (int)getpid());
        cr_expect(strstr(err.message, pid) != NULL, "%s", err.message);
        close(fd);
        cr_assert(eq(int, state_lock(state, -1, &second, &err), 0), "%s", err.message);
        /* The same process executed anew has it already. */
        cr_assert(eq(int, state_lock(state, second, &fd, &err), 0));
        cr_expect(eq(int, fd, second));
        close(fd);
}

static void *close_soon(void *fd)
{
        usleep(100000);
        close(*(int *)fd);
        return NULL;
}

Test(state, waits_for_one_that_is_just_dying)
{
        struct error err = ERROR_INIT;
        pthread_t thread;
        int fd, second;

        cr_assert(eq(int, state_make(state, run, CONTROL_NO_GROUP, &err), 0));
        cr_assert(eq(int, state_lock(state, -1, &fd, &err), 0));
        cr_assert(eq(int, pthread_create(&thread, NULL, close_soon, &fd), 0));
        cr_assert(eq(int, state_lock(state, -1, &second, &err), 0), "%s", err.message);
        pthread_join(thread, NULL);
        close(second);
}
