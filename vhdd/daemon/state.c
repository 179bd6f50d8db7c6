/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/state.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vhdd/control/socket.h"

/* A daemon that was killed holds its lock until the kernel has taken it apart, and a process that it was
 * just starting until that has executed its program. */
#define LOCK_ATTEMPTS 40
#define LOCK_PAUSE_MS 25

static int make_directory(const char *path, gid_t group, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct stat st;
        bool made = mkdir(path, 0700) == 0;

        if (!made && errno != EEXIST)
                return fail_os(err, errno, "cannot make the directory '%s'", path);
        fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) < 0)
                return fail_os(err, errno, "cannot use the directory '%s'", path);
        if (made && group != CONTROL_NO_GROUP &&
                (fchown(fd, (uid_t)-1, group) < 0 || fchmod(fd, 0710) < 0))
                return fail_os(err, errno, "cannot give '%s' to the daemon's group", path);
        if (st.st_uid != geteuid() && st.st_uid != 0)
                return fail(err, EPERM, "the directory '%s' belongs to user %u", path,
                        (unsigned)st.st_uid);
        if (st.st_mode & S_IWOTH) {
                fail(err, EPERM, "everybody may write into the directory '%s'", path);
                error_set_hint(err, "chmod o-w %s", path);
                return -EPERM;
        }
        return 0;
}

int state_make(const char *state_dir, const char *run_dir, gid_t group, struct error *err)
{
        int r = make_directory(state_dir, group, err);

        return r < 0 ? r : make_directory(run_dir, CONTROL_NO_GROUP, err);
}

static long holder_of(int fd)
{
        char text[32] = "";

        return pread(fd, text, sizeof(text) - 1, 0) > 0 ? strtol(text, NULL, 10) : 0;
}

static int take(int fd, const char *state_dir, struct error *err)
{
        const struct timespec pause = {.tv_nsec = LOCK_PAUSE_MS * 1000000L};

        for (unsigned i = 0;; i++) {
                if (flock(fd, LOCK_EX | LOCK_NB) == 0)
                        return 0;
                if (errno != EWOULDBLOCK)
                        return fail_os(err, errno, "cannot lock '%s/lock'", state_dir);
                if (i == LOCK_ATTEMPTS)
                        break;
                nanosleep(&pause, NULL);
        }
        fail(err, EBUSY, "another vhdd (pid %ld) runs on '%s'", holder_of(fd), state_dir);
        error_set_hint(err, "vhdctl --control %s/control.sock shutdown", state_dir);
        return -EBUSY;
}

int state_lock(const char *state_dir, int kept_fd, int *ret_fd, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        char text[32];
        int n, r;

        if (kept_fd >= 0) {
                *ret_fd = kept_fd;
                return 0;
        }
        if (asprintf(&path, "%s/lock", state_dir) < 0)
                return fail(err, ENOMEM, "no memory for a path");
        fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
                return fail_os(err, errno, "cannot open '%s'", path);
        r = take(fd, state_dir, err);
        if (r < 0)
                return r;
        n = snprintf(text, sizeof(text), "%d\n", (int)getpid());
        if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)n, 0) != n)
                return fail_os(err, errno, "cannot write '%s'", path);
        *ret_fd = TAKE_FD(fd);
        return 0;
}
