/* SPDX-License-Identifier: Apache-2.0 */
#include "base/folders.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

static int show(int fd, const char *folder, const char *name, unsigned deep,
        const struct folder_walk *walk, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        struct stat st;

        if (name[0] == '.' || fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return 0;
        if (asprintf(&path, "%s/%s", folder, name) < 0) {
                path = NULL;
                return fail(err, ENOMEM, "no memory to walk through '%s'", folder);
        }
        if (S_ISDIR(st.st_mode))
                return deep > 0 ? folder_walk(path, deep - 1, walk, err) : 0;
        return S_ISREG(st.st_mode) ? walk->file(walk->opaque, path, name, err) : 0;
}

int folder_walk(
        const char *folder, unsigned deep, const struct folder_walk *walk, struct error *err)
{
        int fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
        struct dirent *entry;
        int r = 0;

        if (!dir) {
                int why = errno;

                if (fd >= 0)
                        close(fd);
                return walk->unreadable
                        ? walk->unreadable(walk->opaque, folder, why, err)
                        : fail_os(err, why, "cannot look into the folder '%s'", folder);
        }
        /* An error of readdir's own would hide files. */
        for (errno = 0; r == 0 && (entry = readdir(dir)); errno = 0)
                r = show(fd, folder, entry->d_name, deep, walk, err);
        if (r == 0 && errno != 0)
                r = fail_os(err, errno, "cannot look into the folder '%s'", folder);
        closedir(dir);
        return r;
}
