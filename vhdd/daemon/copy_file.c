/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/copy_file.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/file.h"

#define PIECE (8 * MIB) /* between two looks at stop */

struct copying {
        struct file *from, *to;
        const struct copy_watch *watch;
        char *buffer; /* for file systems between which the kernel does not copy; made when needed */
};

static int copy_through_memory(struct copying *c, uint64_t offset, size_t length)
{
        int r;

        if (!c->buffer)
                c->buffer = malloc(PIECE);
        if (!c->buffer)
                return -ENOMEM;
        r = file_read_exact(c->from, c->buffer, length, offset);
        return r < 0 ? r : file_write(c->to, c->buffer, length, offset, 0);
}

static int copy_piece(struct copying *c, uint64_t offset, size_t length)
{
        while (length > 0) {
                off_t in = (off_t)offset, out = (off_t)offset;
                ssize_t n = copy_file_range(c->from->fd, &in, c->to->fd, &out, length, 0);

                if (n == 0 ||
                        (n < 0 &&
                                (errno == EXDEV || errno == ENOSYS || errno == EOPNOTSUPP ||
                                        errno == EINVAL)))
                        return copy_through_memory(c, offset, length);
                if (n < 0)
                        return -errno;
                offset += (uint64_t)n;
                length -= (size_t)n;
        }
        return 0;
}

static int copy_data(struct copying *c, uint64_t from, uint64_t to)
{
        for (uint64_t at = from; at < to; at += PIECE) {
                int r = copy_piece(c, at, (size_t)MIN_OF(PIECE, to - at));

                if (r < 0)
                        return r;
                if (c->watch) {
                        r = c->watch->step(c->watch->opaque, MIN_OF(PIECE, to - at));
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

/* When it was written last says which of several tips somebody used. */
static int keep_time(struct copying *c)
{
        struct stat st;
        struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}};

        if (fstat(c->from->fd, &st) < 0)
                return -errno;
        times[1] = st.st_mtim;
        return futimens(c->to->fd, times) < 0 ? -errno : 0;
}

static int copy_all(struct copying *c)
{
        uint64_t size = 0, data = 0, hole;
        int r = file_size_get(c->from, &size);

        while (r == 0) {
                r = file_seek_data(c->from, data, &data);
                if (r < 0 || data >= size)
                        break;
                r = file_seek_hole(c->from, data, &hole);
                if (r == 0)
                        r = copy_data(c, data, MIN_OF(hole, size));
                data = hole;
        }
        if (r == 0)
                r = file_truncate(c->to, size);
        if (r == 0)
                r = keep_time(c);
        return r == 0 ? file_sync(c->to) : r;
}

int copy_source_open(const char *path, struct file **ret, struct error *err)
{
        _cleanup_(file_closep) struct file *source = NULL;
        int r = file_open(host_fs(), path, FILE_READ | FILE_NOFOLLOW, &source, err);

        if (r == 0)
                r = file_lock_set(source, FILE_LOCK_READ, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(source);
        return 0;
}

int copy_from(
        struct file *source, const char *to, const struct copy_watch *watch, struct error *err)
{
        _cleanup_(file_closep) struct file *copy = NULL;
        struct copying c = {.from = source, .watch = watch};
        int r = file_open(host_fs(), to,
                FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE | FILE_NOFOLLOW, &copy, err);

        if (r < 0)
                return r;
        c.to = copy;
        r = copy_all(&c);
        free(c.buffer);
        if (r == 0)
                return 0;
        fs_unlink(host_fs(), to);
        if (r == -ECANCELED)
                fail(err, ECANCELED, "copying '%s' was broken off", source->path);
        else
                fail_os(err, -r, "cannot copy '%s' to '%s'", source->path, to);
        error_set_file(err, r == -ENOSPC ? to : source->path);
        return r;
}

int copy_file(
        const char *from, const char *to, const struct copy_watch *watch, struct error *err)
{
        _cleanup_(file_closep) struct file *source = NULL;
        int r = copy_source_open(from, &source, err);

        return r == 0 ? copy_from(source, to, watch, err) : r;
}

static int make_folder(
        const char *path, const struct copy_folders *folders, struct error *err)
{
        struct stat st;
        int r;

        if (stat(path, &st) == 0)
                return S_ISDIR(st.st_mode) ? 0 : fail(err, ENOTDIR, "'%s' is no folder", path);
        r = folders ? folders->will_make(folders->opaque, path, err) : 0;
        if (r < 0)
                return r;
        if (mkdir(path, 0755) < 0 && errno != EEXIST)
                return fail_os(err, errno, "cannot make the folder '%s'", path);
        r = fs_sync_directory(host_fs(), path);
        return r < 0 ? fail_os(err, -r, "cannot make the folder '%s' durable", path) : 0;
}

int make_folders(const char *path, const struct copy_folders *folders, struct error *err)
{
        _cleanup_free_ char *copy = strdup(path);
        int r = 0;

        if (!copy)
                return fail(err, ENOMEM, "no memory for a path");
        for (char *slash = strchr(copy + 1, '/'); r == 0 && slash; slash = strchr(slash + 1, '/')) {
                *slash = '\0';
                r = make_folder(copy, folders, err);
                *slash = '/';
        }
        return r;
}
