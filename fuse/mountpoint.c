/* SPDX-License-Identifier: Apache-2.0 */
#include "fuse/mountpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mntent.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/cleanup.h"
#include "base/quote.h"

/* The directory's path as the kernel writes it. A dead mount cannot be resolved itself: then the
 * directory that it lies in is, and its name goes behind. */
static int resolve(const char *path, char ret[PATH_MAX])
{
        char copy[PATH_MAX], above[PATH_MAX];
        size_t length = strlen(path);
        char *slash;

        if (realpath(path, ret))
                return 0;
        if (errno != ENOTCONN)
                return -errno;
        if (length == 0 || length >= sizeof(copy))
                return -ENAMETOOLONG;
        memcpy(copy, path, length + 1);
        while (length > 1 && copy[length - 1] == '/')
                copy[--length] = '\0';
        slash = strrchr(copy, '/');
        if (slash)
                *slash = '\0';
        if (!realpath(!slash ? "." : slash == copy ? "/" : copy, above))
                return -errno;
        if (snprintf(ret, PATH_MAX, "%s/%s", strcmp(above, "/") == 0 ? "" : above,
                    slash ? slash + 1 : copy) >= PATH_MAX)
                return -ENAMETOOLONG;
        return 0;
}

/* The type of the topmost mount at @path, or "". */
static void find_type(const char *path, char *ret, size_t size)
{
        char buffer[4 * PATH_MAX];
        struct mntent entry;
        FILE *mounts = setmntent("/proc/self/mounts", "re");

        ret[0] = '\0';
        while (mounts && getmntent_r(mounts, &entry, buffer, sizeof(buffer)))
                if (strcmp(entry.mnt_dir, path) == 0)
                        snprintf(ret, size, "%s", entry.mnt_type);
        if (mounts)
                endmntent(mounts);
}

int mountpoint_look(const char *path, enum mountpoint_kind *ret, struct error *err)
{
        char resolved[PATH_MAX], type[64];
        bool dead = false;
        struct stat st;
        int r;

        if (stat(path, &st) < 0) {
                dead = errno == ENOTCONN;
                if (!dead)
                        return fail_os(err, errno, "cannot mount at '%s'", path);
        } else if (!S_ISDIR(st.st_mode)) {
                return fail(err, ENOTDIR, "'%s' is no directory, so nothing can be mounted there",
                        path);
        }
        r = resolve(path, resolved);
        if (r < 0)
                return fail_os(err, -r, "cannot find '%s'", path);
        find_type(resolved, type, sizeof(type));
        if (type[0] == '\0')
                *ret = MOUNTPOINT_NONE;
        else if (strcmp(type, VHDFUSE_TYPE) != 0)
                *ret = MOUNTPOINT_OTHER;
        else
                *ret = dead ? MOUNTPOINT_STALE : MOUNTPOINT_OURS;
        return 0;
}

/* fusermount3 has the right to unmount what its caller mounted. */
static int run_fusermount(const char *path, bool lazy)
{
        char program[] = "fusermount3", unmount[] = "-u", quiet[] = "-q", late[] = "-z",
             end[] = "--";
        char *argv[] = {program, unmount, quiet, lazy ? late : quiet, end, (char *)path, NULL};
        extern char **environ;
        pid_t pid;
        int status, r = posix_spawnp(&pid, program, NULL, NULL, argv, environ);

        if (r != 0)
                return -r;
        while (waitpid(pid, &status, 0) < 0)
                if (errno != EINTR)
                        return -errno;
        return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

int mountpoint_detach(const char *path, bool lazy, struct error *err)
{
        char resolved[PATH_MAX];
        int r = resolve(path, resolved);

        if (r == 0 && umount2(resolved, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) < 0)
                r = errno == EPERM ? run_fusermount(resolved, lazy) : -errno;
        return r < 0 ? fail_os(err, -r, "cannot unmount '%s'", path) : 0;
}

int mountpoint_prepare(const char *path, bool *ret_cleared, struct error *err)
{
        char quoted[QUOTE_TEXT_MAX];
        enum mountpoint_kind kind;
        int r = mountpoint_look(path, &kind, err);

        *ret_cleared = false;
        if (r == -ENOENT)
                error_set_hint(err, "mkdir %s", shell_quote(path, quoted, sizeof(quoted)));
        if (r < 0)
                return r;
        if (kind == MOUNTPOINT_OURS) {
                fail(err, EBUSY, "'%s' is a mount of vhdfuse's already", path);
                error_set_hint(err, "vhdctl umount %s ends it",
                        shell_quote(path, quoted, sizeof(quoted)));
                return -EBUSY;
        }
        if (kind != MOUNTPOINT_STALE)
                return 0;
        r = mountpoint_detach(path, true, err);
        if (r < 0) {
                error_clear(err);
                fail(err, ENOTCONN, "at '%s' a mount is left over whose vhdfuse died", path);
                error_set_hint(
                        err, "umount -l %s, as root", shell_quote(path, quoted, sizeof(quoted)));
                return -ENOTCONN;
        }
        *ret_cleared = true;
        return 0;
}
