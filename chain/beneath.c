/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/beneath.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/cleanup.h"
#include "chain/paths.h"

/* A rename elsewhere in the tree makes openat2 say EAGAIN; it is harmless to ask again. */
#define OPEN_ATTEMPTS 16

static void close_directory(DIR **directory)
{
        if (*directory)
                closedir(*directory);
}

int beneath_open_root(const char *path, int *ret_fd)
{
        int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

/* One component: the first of *path, which moves behind it. */
static int take_component(const char **path, char component[NAME_MAX + 1])
{
        size_t n = strcspn(*path, "/");

        if (n == 0 || n > NAME_MAX)
                return n == 0 ? -EINVAL : -ENAMETOOLONG;
        memcpy(component, *path, n);
        component[n] = '\0';
        /* normalised paths have none; if one came, it must not climb */
        if (strcmp(component, "..") == 0 || strcmp(component, ".") == 0)
                return -EXDEV;
        *path += n;
        if (**path == '/')
                (*path)++;
        return 0;
}

/* What O_NOFOLLOW | O_DIRECTORY says of a symbolic link is ENOTDIR, as of a file: tell them apart. */
static int directory_errno(int fd, const char *component, int code)
{
        struct stat st;

        if (code == ENOTDIR && fstatat(fd, component, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                S_ISLNK(st.st_mode))
                return -ELOOP;
        return -code;
}

/* The directory above the last component of *path, which then is the last component alone. */
static int walk_to_last(int root_fd, const char **path, int *ret_fd)
{
        _cleanup_fd_ int at = fcntl(root_fd, F_DUPFD_CLOEXEC, 3);
        char component[NAME_MAX + 1];
        int r;

        if (at < 0)
                return -errno;
        while (strchr(*path, '/')) {
                int next;

                r = take_component(path, component);
                if (r < 0)
                        return r;
                next = openat(at, component, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                if (next < 0)
                        return directory_errno(at, component, errno);
                close(at);
                at = next;
        }
        *ret_fd = TAKE_FD(at);
        return 0;
}

/* For kernels and containers without openat2. */
static int open_by_walking(int root_fd, const char *path, int flags, int *ret_fd)
{
        _cleanup_fd_ int at = -1;
        char component[NAME_MAX + 1];
        int fd, r;

        r = walk_to_last(root_fd, &path, &at);
        if (r < 0)
                return r;
        r = take_component(&path, component);
        if (r < 0)
                return r;
        fd = openat(at, component, flags | O_NOFOLLOW);
        if (fd < 0)
                return -errno;
        *ret_fd = fd;
        return 0;
}

static int open_exact(int root_fd, const char *path, int flags, int *ret_fd)
{
        struct open_how how = {
                .flags = (uint64_t)(unsigned)flags,
                .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
        };

        for (int i = 0; i < OPEN_ATTEMPTS; i++) {
                long fd = syscall(SYS_openat2, root_fd, path, &how, sizeof(how));

                if (fd >= 0) {
                        *ret_fd = (int)fd;
                        return 0;
                }
                /* Older container profiles answer EPERM to a call that they do not know. */
                if (errno == ENOSYS || errno == EPERM)
                        return open_by_walking(root_fd, path, flags, ret_fd);
                if (errno != EAGAIN && errno != EINTR)
                        return -errno;
        }
        return -EAGAIN;
}

/* The one entry of the directory @fd whose name is @name but for the case. */
static int find_folded(int fd, const char *name, char ret[NAME_MAX + 1])
{
        _cleanup_(close_directory) DIR *directory = NULL;
        struct dirent *entry;
        bool found = false;
        int list = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (list < 0) /* who may not list it finds exact names only */
                return errno == EACCES ? -ENOENT : -errno;
        directory = fdopendir(list);
        if (!directory) {
                close(list);
                return -ENOMEM;
        }
        while ((errno = 0, entry = readdir(directory))) {
                if (strcmp(entry->d_name, name) == 0) {
                        found = true; /* exact after all: it is the one */
                        snprintf(ret, NAME_MAX + 1, "%s", name);
                        break;
                }
                if (!path_same_name_folded(entry->d_name, name))
                        continue;
                if (found)
                        return -ENOTUNIQ;
                found = true;
                snprintf(ret, NAME_MAX + 1, "%s", entry->d_name);
        }
        if (!entry && errno)
                return -errno;
        return found ? 0 : -ENOENT;
}

static int append(char *path, size_t *used, size_t size, const char *component)
{
        int n = snprintf(path + *used, size - *used, "%s%s", *used ? "/" : "", component);

        if (n < 0 || (size_t)n >= size - *used)
                return -ENAMETOOLONG;
        *used += (size_t)n;
        return 0;
}

/* How @path is really spelled beneath @root_fd, whatever its case. */
static int spell_folded(int root_fd, const char *path, char *ret, size_t ret_size)
{
        _cleanup_fd_ int at = fcntl(root_fd, F_DUPFD_CLOEXEC, 3);
        size_t used = 0;

        if (at < 0)
                return -errno;
        while (*path) {
                char component[NAME_MAX + 1], real[NAME_MAX + 1];
                int next, r;

                r = take_component(&path, component);
                if (r == 0)
                        r = find_folded(at, component, real);
                if (r == 0)
                        r = append(ret, &used, ret_size, real);
                if (r < 0)
                        return r;
                if (!*path)
                        break;
                next = openat(at, real, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
                if (next < 0)
                        return directory_errno(at, real, errno);
                close(at);
                at = next;
        }
        return 0;
}

static int check_regular(int fd, struct stat *ret)
{
        if (fstat(fd, ret) < 0)
                return -errno;
        if (S_ISLNK(ret->st_mode))
                return -ELOOP; /* O_PATH with O_NOFOLLOW opens the link itself */
        if (S_ISDIR(ret->st_mode))
                return -EISDIR;
        return S_ISREG(ret->st_mode) ? 0 : -ENXIO;
}

int beneath_open(int root_fd, const char *path, int *ret_fd, char *ret_path, size_t ret_path_size)
{
        _cleanup_fd_ int seen = -1;
        _cleanup_fd_ int fd = -1;
        struct stat before, after;
        int flags, r;

        if (strlen(path) >= ret_path_size)
                return -ENAMETOOLONG;
        memcpy(ret_path, path, strlen(path) + 1);
        r = open_exact(root_fd, path, O_PATH | O_CLOEXEC, &seen);
        if (r == -ENOENT) {
                r = spell_folded(root_fd, path, ret_path, ret_path_size);
                if (r == 0)
                        r = open_exact(root_fd, ret_path, O_PATH | O_CLOEXEC, &seen);
        }
        if (r == 0)
                r = check_regular(seen, &before);
        if (r < 0)
                return r;

        /* O_NONBLOCK in case the name means something else by now. */
        r = open_exact(root_fd, ret_path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, &fd);
        if (r == 0)
                r = check_regular(fd, &after);
        if (r < 0)
                return r;
        if (before.st_dev != after.st_dev || before.st_ino != after.st_ino)
                return -EAGAIN;
        /* io_uring would take O_NONBLOCK for "never wait for the disk". */
        flags = fcntl(fd, F_GETFL);
        if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0)
                return -errno;
        *ret_fd = TAKE_FD(fd);
        return 0;
}
