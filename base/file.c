/* SPDX-License-Identifier: Apache-2.0 */
/* What is the same for every kind of file: short counts continued, locks tried again. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>

#include "base/arith.h"
#include "base/host_fs.h"
#include "base/mutant.h"

#define LOCK_TRIES    100
#define LOCK_PAUSE_NS 20000000L /* 100 x 20 ms: after kill -9 a lock outlives its process a while */
#define IOV_AT_ONCE   64
#define PUNCH_UNIT    UINT64_C(4096) /* no device's block is larger */

int file_open(struct fs *fs, const char *path, unsigned flags, struct file **ret, struct error *err)
{
        int r = fs->ops->open_told ? fs->ops->open_told(fs, path, flags, 0644, ret, err)
                                   : fs->ops->open(fs, path, flags, 0644, ret);

        if (r < 0 && fs->ops->open_told) {
                error_set_file(err, path);
                return r;
        }
        if (r == 0) {
                pthread_mutex_init(&(*ret)->sync_lock, NULL);
                pthread_cond_init(&(*ret)->sync_ended, NULL);
                return 0;
        }
        if (r == -EMEDIUMTYPE)
                fail(err, EMEDIUMTYPE, "'%s' is neither a regular file nor a block device", path);
        else if (r == -EBUSY)
                fail_os(err, EBUSY, "cannot open '%s', something on this machine uses it", path);
        else
                fail_os(err, -r, "cannot %s '%s'", flags & FILE_CREATE ? "make" : "open", path);
        error_set_file(err, path);
        return r;
}

struct file *file_close(struct file *file)
{
        if (file) {
                pthread_cond_destroy(&file->sync_ended);
                pthread_mutex_destroy(&file->sync_lock);
                file->ops->close(file);
        }
        return NULL;
}

int fs_rename(struct fs *fs, const char *from, const char *to, bool replace)
{
        return fs->ops->rename(fs, from, to, replace);
}

int fs_unlink(struct fs *fs, const char *path)
{
        return fs->ops->unlink(fs, path);
}

int fs_remove_directory(struct fs *fs, const char *path)
{
        return fs->ops->remove_directory ? fs->ops->remove_directory(fs, path) : -ENOSYS;
}

int fs_sync_directory(struct fs *fs, const char *path)
{
        return fs->ops->sync_directory(fs, path);
}

int64_t fs_now(struct fs *fs)
{
        return fs->ops->now(fs);
}

void fs_boot_id(struct fs *fs, uint8_t ret[16])
{
        fs->ops->boot_id(fs, ret);
}

/* Moves the front of a vector on by @done bytes; answers how many entries are left. */
static int iov_advance(struct iovec *iov, int n, size_t done)
{
        int skip = 0;

        while (skip < n && done >= iov[skip].iov_len)
                done -= iov[skip++].iov_len;
        if (skip < n) {
                iov[skip].iov_base = (char *)iov[skip].iov_base + done;
                iov[skip].iov_len -= done;
        }
        if (skip)
                memmove(iov, iov + skip, (size_t)(n - skip) * sizeof(*iov));
        return n - skip;
}

static ssize_t readv_all(
        struct file *file, struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        ssize_t total = 0;

        while (n > 0) {
                ssize_t got = file->ops->readv(file, iov, n, offset, flags);

                if (got == -EINTR)
                        continue;
                if (got < 0)
                        return total && (flags & FILE_NOWAIT) ? total : got;
                if (got == 0)
                        break;
                total += got;
                offset += (uint64_t)got;
                if (flags & FILE_NOWAIT)
                        break;
                n = iov_advance(iov, n, (size_t)got);
        }
        return total;
}

static int writev_all(struct file *file, struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        while (n > 0) {
                ssize_t put = file->ops->writev(file, iov, n, offset, flags);

                if (put == -EINTR)
                        continue;
                if (put < 0)
                        return (int)put;
                if (put == 0)
                        return -ENOSPC; /* a device's end: it takes no more */
                offset += (uint64_t)put;
                n = iov_advance(iov, n, (size_t)put);
        }
        return 0;
}

ssize_t file_read(struct file *file, void *data, size_t length, uint64_t offset, unsigned flags)
{
        struct iovec iov = {.iov_base = data, .iov_len = length};

        if (length == 0)
                return 0;
        return readv_all(file, &iov, 1, offset, flags);
}

ssize_t file_readv(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        ssize_t total = 0;

        while (n_iov > 0) {
                struct iovec part[IOV_AT_ONCE];
                int n = MIN_OF(n_iov, IOV_AT_ONCE);
                size_t want = 0;
                ssize_t got;

                memcpy(part, iov, (size_t)n * sizeof(*iov));
                for (int i = 0; i < n; i++)
                        want += iov[i].iov_len;
                got = readv_all(file, part, n, offset, flags);
                if (got < 0)
                        return total && (flags & FILE_NOWAIT) ? total : got;
                total += got;
                if ((size_t)got < want)
                        break;
                offset += (uint64_t)got;
                iov += n;
                n_iov -= n;
        }
        return total;
}

int file_read_exact(struct file *file, void *data, size_t length, uint64_t offset)
{
        ssize_t got = file_read(file, data, length, offset, 0);

        if (got < 0)
                return (int)got;
        return (size_t)got == length ? 0 : -ENODATA;
}

int file_write(struct file *file, const void *data, size_t length, uint64_t offset, unsigned flags)
{
        struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};

        if (length == 0)
                return 0;
        return writev_all(file, &iov, 1, offset, flags);
}

int file_writev(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        while (n_iov > 0) {
                struct iovec part[IOV_AT_ONCE];
                int n = MIN_OF(n_iov, IOV_AT_ONCE);
                int r;

                memcpy(part, iov, (size_t)n * sizeof(*iov));
                r = writev_all(file, part, n, offset, flags);
                if (r < 0)
                        return r;
                for (int i = 0; i < n; i++)
                        offset += iov[i].iov_len;
                iov += n;
                n_iov -= n;
        }
        return 0;
}

/* Takes the turn to sync: waits for it, or with @try answers -EINPROGRESS. After a failure there are
 * no turns any more. */
static int sync_begin(struct file *file, bool try)
{
        MUTEX_GUARD(&file->sync_lock);
        while (file->syncing) {
                if (try)
                        return -EINPROGRESS;
                pthread_cond_wait(&file->sync_ended, &file->sync_lock);
        }
        if (file->sync_error && !MUTANT("retry-sync"))
                return file->sync_error;
        file->syncing = true;
        return 0;
}

static int sync_end(struct file *file, int r)
{
        MUTEX_GUARD(&file->sync_lock);
        file->syncing = false;
        if (r < 0 && file->sync_error == 0)
                file->sync_error = r;
        pthread_cond_broadcast(&file->sync_ended);
        return r;
}

int file_sync(struct file *file)
{
        int r = sync_begin(file, false);

        return r < 0 ? r : sync_end(file, file->ops->sync(file));
}

int file_sync_error(struct file *file)
{
        MUTEX_GUARD(&file->sync_lock);
        return file->sync_error;
}

/* Twice: what the plain write answers (no space, say) is this write's own trouble and nothing is
 * lost by it; what the second one answers is a sync's. Of one RWF_DSYNC write nobody could tell. */
int file_write_durable(struct file *file, const void *data, size_t length, uint64_t offset)
{
        int r = file_write(file, data, length, offset, 0);

        if (r == 0)
                r = sync_begin(file, true);
        return r < 0 ? r : sync_end(file, file_write(file, data, length, offset, FILE_DSYNC));
}

int file_truncate(struct file *file, uint64_t size)
{
        return file->ops->truncate(file, size);
}

int file_write_zeros(struct file *file, uint64_t offset, uint64_t length)
{
        /* Whoever is killed while a page of the source is brought in leaves a write that ends where
         * that page begins: there a sector has to begin, too. */
        static const _Alignas(4096) uint8_t zeros[64 * 1024];

        while (length > 0) {
                size_t n = (size_t)MIN_OF(length, (uint64_t)sizeof(zeros));
                int r = file_write(file, zeros, n, offset, 0);

                if (r < 0)
                        return r;
                offset += n;
                length -= n;
        }
        return 0;
}

/* A device punches whole blocks of its own size, which may be 4 KiB: of a range that it finds
 * crooked the middle is punched and the rest written, not all of it written. */
static int punch_inside(struct file *file, uint64_t offset, uint64_t length)
{
        uint64_t first = round_up_to(offset, PUNCH_UNIT);
        uint64_t last = round_down_to(offset + length, PUNCH_UNIT);
        int r;

        if (first >= last)
                return file_write_zeros(file, offset, length);
        r = file_write_zeros(file, offset, first - offset);
        if (r == 0)
                r = file->ops->punch(file, first, last - first);
        if (r == -EOPNOTSUPP || r == -ENOSYS || r == -EINVAL)
                r = file_write_zeros(file, first, last - first);
        if (r == 0)
                r = file_write_zeros(file, last, offset + length - last);
        return r;
}

int file_punch(struct file *file, uint64_t offset, uint64_t length)
{
        uint64_t size;
        int r = file_size_get(file, &size);

        if (r < 0)
                return r;
        if (offset >= size)
                return 0;
        length = MIN_OF(length, size - offset);
        if (length == 0)
                return 0;
        r = file->ops->punch(file, offset, length);
        if (r == -EINVAL)
                return punch_inside(file, offset, length);
        if (r == -EOPNOTSUPP || r == -ENOSYS)
                return file_write_zeros(file, offset, length);
        return r;
}

int file_reserve(struct file *file, uint64_t offset, uint64_t length)
{
        return file->ops->reserve(file, offset, length);
}

int file_seek_data(struct file *file, uint64_t offset, uint64_t *ret)
{
        return file->ops->seek(file, offset, true, ret);
}

int file_seek_hole(struct file *file, uint64_t offset, uint64_t *ret)
{
        return file->ops->seek(file, offset, false, ret);
}

int file_stat_get(struct file *file, struct file_stat *ret)
{
        return file->ops->stat(file, ret);
}

int file_size_get(struct file *file, uint64_t *ret)
{
        struct file_stat st;
        int r = file->ops->stat(file, &st);

        if (r < 0)
                return r;
        *ret = st.size;
        return 0;
}

/* A merge removes its child under the lock; who waited for that has a file that nobody will find again. */
static bool was_removed(const struct file *file)
{
        struct stat st;

        return fstat(file->fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0;
}

int file_lock_set(struct file *file, enum file_lock mode, struct error *err)
{
        const struct timespec pause = {.tv_nsec = LOCK_PAUSE_NS};
        int i, r;

        for (i = 0;; i++) {
                r = file->ops->lock(file, mode);
                if (r != -EAGAIN && r != -EBUSY)
                        break;
                if (i == LOCK_TRIES || file->fd < 0)
                        break; /* a simulated disk has no process that could still be dying */
                nanosleep(&pause, NULL);
        }
        if (r == 0 && i > 0 && was_removed(file)) {
                file->ops->lock(file, FILE_LOCK_NONE);
                r = fail(err, ESTALE, "'%s' was removed by whoever had it open", file->path);
                error_set_file(err, file->path);
                return r;
        }
        if (r == 0)
                return 0;
        if (r == -EAGAIN || r == -EBUSY) {
                char who[256];

                r = -EBUSY;
                host_lock_holder(file, who, sizeof(who));
                fail(err, EBUSY, "'%s' is in use by %s", file->path, who);
                error_set_hint(err, "%s",
                        mode == FILE_LOCK_WRITE
                                ? "end the other program first, or open it read-only (--read-only)"
                                : "end the other program first");
        } else {
                fail_os(err, -r, "cannot lock '%s'", file->path);
        }
        error_set_file(err, file->path);
        return r;
}

int region_open(struct fs *fs, const char *name, const char *beside, uint64_t size, bool create,
        struct region **ret, struct error *err)
{
        return fs->ops->region_open(fs, name, beside, size, create, ret, err);
}

struct region *region_close(struct region *region, bool remove)
{
        if (region)
                region->fs->ops->region_close(region, remove);
        return NULL;
}

static int check_same_file(struct file *a, struct file *b, struct error *err)
{
        struct file_stat one, other;
        int r = file_stat_get(a, &one);

        if (r == 0)
                r = file_stat_get(b, &other);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", a->path);
        if (one.device == other.device && one.inode == other.inode)
                return 0;
        return fail(err, ESTALE, "'%s' is another file than the one that is open", a->path);
}

int file_upgrade(struct file *reader, unsigned flags, struct file **ret, struct error *err)
{
        _cleanup_(file_closep) struct file *writer = NULL;
        int r = file_open(
                reader->fs, reader->path, FILE_WRITE | FILE_NOFOLLOW | flags, &writer, err);

        if (r == 0)
                r = check_same_file(reader, writer, err);
        /* A second reader first: it keeps writers out while the first one's lock goes. */
        if (r == 0)
                r = file_lock_set(writer, FILE_LOCK_READ, err);
        if (r == 0)
                r = file_lock_set(reader, FILE_LOCK_NONE, err);
        if (r < 0)
                return r;
        r = file_lock_set(writer, FILE_LOCK_WRITE, err);
        if (r < 0) {
                file_lock_set(reader, FILE_LOCK_READ, NULL);
                return r;
        }
        *ret = TAKE_PTR(writer);
        return 0;
}

int file_clone(struct file *to, uint64_t to_offset, struct file *from, uint64_t from_offset,
        uint64_t length)
{
        struct file_clone_range range = {
                .src_fd = from->fd,
                .src_offset = from_offset,
                .src_length = length,
                .dest_offset = to_offset,
        };

        if (to->fd < 0 || from->fd < 0 || length == 0)
                return -EOPNOTSUPP;
        if (ioctl(to->fd, FICLONERANGE, &range) == 0)
                return 0;
        switch (errno) {
        case EXDEV:
        case EINVAL:
        case ENOTTY:
        case ENOSYS:
        case EPERM: /* a sandbox that has not heard of it */
        case ETXTBSY: return -EOPNOTSUPP;
        default: return -errno;
        }
}
