/* SPDX-License-Identifier: Apache-2.0 */
/* The machine's own files: system calls, and QEMU's byte locks (include/block/block-common.h of
 * QEMU names the permissions; block/file-posix.c puts them at bytes 100 and 200). */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <time.h>

#include "base/arith.h"
#include "base/file.h"
#include "base/host_fs.h"

/* The permissions that QEMU locks, as bit numbers. */
enum { PERM_CONSISTENT_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE, N_PERMS };
#define LOCK_PERM_BASE     100
#define LOCK_UNSHARED_BASE 200

struct lock_bits {
        unsigned perms, unshared;
};

static const struct lock_bits lock_modes[] = {
        [FILE_LOCK_NONE] = {0, 0},
        [FILE_LOCK_READ] = {1u << PERM_CONSISTENT_READ, 1u << PERM_WRITE | 1u << PERM_RESIZE},
        [FILE_LOCK_WRITE] = {1u << PERM_CONSISTENT_READ | 1u << PERM_WRITE | 1u << PERM_RESIZE,
                1u << PERM_WRITE | 1u << PERM_RESIZE},
        [FILE_LOCK_READ_LOOSE] = {1u << PERM_CONSISTENT_READ, 0},
};

struct host_file {
        struct file file;
        int direct_fd;       /* the same file with O_DIRECT, or -1: immutable after open */
        bool in_memory;      /* on a tmpfs: immutable after open */
        enum file_lock lock; /* owner: the one who opens and closes */
};

#define DIRECT_UNIT 4096u

/* May the request go past the page cache? The memory's place does not matter: see direct_io(). */
static bool suits_direct(
        const struct host_file *host, const struct iovec *iov, int n, uint64_t offset, size_t *size)
{
        *size = 0;
        for (int i = 0; i < n; i++)
                *size += iov[i].iov_len;
        return host->direct_fd >= 0 && offset % DIRECT_UNIT == 0 && *size % DIRECT_UNIT == 0;
}

static bool memory_is_aligned(const struct iovec *iov, int n)
{
        for (int i = 0; i < n; i++)
                if ((uintptr_t)iov[i].iov_base % DIRECT_UNIT || iov[i].iov_len % DIRECT_UNIT)
                        return false;
        return true;
}

static void copy_iov(const struct iovec *iov, int n, uint8_t *data, size_t size, bool out)
{
        for (int i = 0; i < n && size > 0; i++) {
                size_t here = MIN_OF(iov[i].iov_len, size);

                if (out)
                        memcpy(data, iov[i].iov_base, here);
                else
                        memcpy(iov[i].iov_base, data, here);
                data += here;
                size -= here;
        }
}

/* Memory that the device cannot take directly goes through a buffer that it can. */
static ssize_t direct_io(const struct host_file *host, const struct iovec *iov, int n, size_t size,
        uint64_t offset, bool write, unsigned flags)
{
        int rwf = flags & FILE_DSYNC ? RWF_DSYNC : 0;
        struct iovec whole = {.iov_len = size};
        _cleanup_free_ void *buffer = NULL;
        ssize_t got;

        if (!memory_is_aligned(iov, n)) {
                if (posix_memalign(&buffer, DIRECT_UNIT, size) != 0)
                        return -ENOMEM;
                if (write)
                        copy_iov(iov, n, buffer, size, true);
                whole.iov_base = buffer;
        }
        if (write)
                got = pwritev2(
                        host->direct_fd, buffer ? &whole : iov, buffer ? 1 : n, (off_t)offset, rwf);
        else
                got = preadv(host->direct_fd, buffer ? &whole : iov, buffer ? 1 : n, (off_t)offset);
        if (got < 0)
                return -errno;
        if (buffer && !write)
                copy_iov(iov, n, buffer, (size_t)got, false);
        return got;
}

static ssize_t host_readv(
        struct file *file, const struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        const struct host_file *host = (const struct host_file *)file;
        ssize_t got;
        size_t size;

        if (suits_direct(host, iov, n, offset, &size))
                return flags & FILE_NOWAIT ? -EAGAIN
                                           : direct_io(host, iov, n, size, offset, false, flags);
        /* A tmpfs has no RWF_NOWAIT and no need of it. */
        if (flags & FILE_NOWAIT && !host->in_memory)
                got = preadv2(file->fd, iov, n, (off_t)offset, RWF_NOWAIT);
        else
                got = preadv(file->fd, iov, n, (off_t)offset);
        return got < 0 ? -errno : got;
}

static ssize_t host_writev(
        struct file *file, const struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        ssize_t put;
        size_t size;

        if (suits_direct((const struct host_file *)file, iov, n, offset, &size))
                return direct_io((const struct host_file *)file, iov, n, size, offset, true, flags);
        if (flags & FILE_DSYNC)
                put = pwritev2(file->fd, iov, n, (off_t)offset, RWF_DSYNC);
        else
                put = pwritev(file->fd, iov, n, (off_t)offset);
        return put < 0 ? -errno : put;
}

static int host_sync(struct file *file)
{
        return fdatasync(file->fd) < 0 ? -errno : 0;
}

static int host_truncate(struct file *file, uint64_t size)
{
        return ftruncate(file->fd, (off_t)size) < 0 ? -errno : 0;
}

/* A device that cannot unmap may still write zeros by itself, faster than we could send them. */
static int host_punch(struct file *file, uint64_t offset, uint64_t length)
{
        static const int ways[] = {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
        int code = EOPNOTSUPP;

        for (int i = 0; i < 2 && code == EOPNOTSUPP; i++)
                code = fallocate(file->fd, ways[i] | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                               (off_t)length) < 0
                        ? errno
                        : 0;
        return -code;
}

static int host_reserve(struct file *file, uint64_t offset, uint64_t length)
{
        return fallocate(file->fd, 0, (off_t)offset, (off_t)length) < 0 ? -errno : 0;
}

static int host_seek(struct file *file, uint64_t offset, bool data, uint64_t *ret)
{
        off_t at = lseek(file->fd, (off_t)offset, data ? SEEK_DATA : SEEK_HOLE);

        if (at >= 0) {
                *ret = (uint64_t)at;
                return 0;
        }
        if (errno == ENXIO) /* no data behind, or offset at the end */
                return file_size_get(file, ret);
        if (errno != EINVAL && errno != EOPNOTSUPP)
                return -errno;
        if (!data)
                return file_size_get(file, ret);
        *ret = offset;
        return 0;
}

/* Tells a new file from one that had its inode before. */
static int64_t birth_of(int fd)
{
        struct statx stx;

        if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &stx) < 0 || !(stx.stx_mask & STATX_BTIME))
                return 0;
        return stx.stx_btime.tv_sec * INT64_C(1000000000) + stx.stx_btime.tv_nsec;
}

static int host_stat(struct file *file, struct file_stat *ret)
{
        struct stat st;

        if (fstat(file->fd, &st) < 0)
                return -errno;
        *ret = (struct file_stat){
                .size = (uint64_t)st.st_size,
                .allocated = (uint64_t)st.st_blocks * 512,
                .device = st.st_dev,
                .inode = st.st_ino,
                .mtime_s = st.st_mtim.tv_sec,
                .mtime_ns = (uint32_t)st.st_mtim.tv_nsec,
                .owner = st.st_uid,
                .is_regular = S_ISREG(st.st_mode),
                .is_block = S_ISBLK(st.st_mode),
        };
        ret->birth_ns = birth_of(file->fd);
        if (ret->is_block) {
                ret->device = st.st_rdev;
                ret->inode = 0;
                if (ioctl(file->fd, BLKGETSIZE64, &ret->size) < 0)
                        return -errno;
                ret->allocated = ret->size;
        }
        return 0;
}

static int lock_byte(int fd, short type, off_t byte)
{
        struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

        return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* Does somebody else hold @byte in any way? */
static int byte_is_held(int fd, off_t byte)
{
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

        if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
                return -errno;
        return lock.l_type != F_UNLCK;
}

/* Takes (F_RDLCK) or drops (F_UNLCK) the bytes that @bits name. */
static int set_bytes(int fd, struct lock_bits bits, short type)
{
        for (int i = 0; i < N_PERMS; i++) {
                int r = 0;

                if (bits.perms & 1u << i)
                        r = lock_byte(fd, type, LOCK_PERM_BASE + i);
                if (r == 0 && (bits.unshared & 1u << i))
                        r = lock_byte(fd, type, LOCK_UNSHARED_BASE + i);
                if (r < 0)
                        return r;
        }
        return 0;
}

static struct lock_bits bits_minus(struct lock_bits a, struct lock_bits b)
{
        return (struct lock_bits){a.perms & ~b.perms, a.unshared & ~b.unshared};
}

void host_lock_reduce(int fd, enum file_lock mode)
{
        struct lock_bits all = {(1u << N_PERMS) - 1, (1u << N_PERMS) - 1};

        set_bytes(fd, bits_minus(all, lock_modes[mode]), F_UNLCK);
}

static int find_clash(int fd, struct lock_bits bits)
{
        for (int i = 0; i < N_PERMS; i++) {
                int r = 0;

                if (bits.perms & 1u << i)
                        r = byte_is_held(fd, LOCK_UNSHARED_BASE + i);
                if (r == 0 && (bits.unshared & 1u << i))
                        r = byte_is_held(fd, LOCK_PERM_BASE + i);
                if (r != 0)
                        return r < 0 ? r : -EAGAIN;
        }
        return 0;
}

/* Ours first, then a look for clashes, as QEMU does: two that come at once both see each other.
 * The bytes that only the old mode held are given back last, so an upgrade has no gap. */
static int host_lock(struct file *file, enum file_lock mode)
{
        struct host_file *host = (struct host_file *)file;
        struct lock_bits old = lock_modes[host->lock], new = lock_modes[mode];
        int r = set_bytes(file->fd, bits_minus(new, old), F_RDLCK);

        if (r == 0)
                r = find_clash(file->fd, new);
        if (r < 0) {
                set_bytes(file->fd, bits_minus(new, old), F_UNLCK);
                return r;
        }
        set_bytes(file->fd, bits_minus(old, new), F_UNLCK);
        host->lock = mode;
        return 0;
}

static void host_close(struct file *file)
{
        const struct host_file *host = (const struct host_file *)file;

        if (host->direct_fd >= 0)
                close(host->direct_fd);
        close(file->fd);
        free(file->path);
        free(file);
}

static const struct file_ops host_file_ops = {
        .readv = host_readv,
        .writev = host_writev,
        .sync = host_sync,
        .truncate = host_truncate,
        .punch = host_punch,
        .reserve = host_reserve,
        .seek = host_seek,
        .stat = host_stat,
        .lock = host_lock,
        .close = host_close,
};

const struct file_ops *host_file_ops_get(void)
{
        return &host_file_ops;
}

/* The same inode once more, with O_DIRECT; -EINVAL where the file system has no such thing. */
static int open_direct(int fd, unsigned flags)
{
        char path[64];
        int direct;

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        direct = open(path, (flags & FILE_WRITE ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
        return direct < 0 ? -errno : direct;
}

int host_file_wrap(
        struct fs *fs, int fd, int direct_fd, const char *path, unsigned flags, struct file **ret)
{
        _cleanup_free_ struct host_file *host = calloc(1, sizeof(*host));
        _cleanup_fd_ int opened_fd = -1;
        struct statfs statfs;
        struct stat st;

        if (!host)
                return -ENOMEM;
        if (fstat(fd, &st) < 0)
                return -errno;
        host->in_memory = fstatfs(fd, &statfs) == 0 && statfs.f_type == TMPFS_MAGIC;
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
                return -EMEDIUMTYPE;
        if (flags & FILE_DIRECT && direct_fd < 0) {
                direct_fd = opened_fd = open_direct(fd, flags);
                if (direct_fd < 0)
                        return direct_fd;
        }
        host->file = (struct file){
                .ops = &host_file_ops,
                .fs = fs,
                .fd = fd,
                .flags = flags,
        };
        host->file.path = strdup(path);
        if (!host->file.path)
                return -ENOMEM;
        host->direct_fd = direct_fd;
        TAKE_FD(opened_fd);
        *ret = &TAKE_PTR(host)->file;
        return 0;
}

static int host_open(
        struct fs *fs, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        int o = O_CLOEXEC | O_NOCTTY | O_NONBLOCK; /* O_NONBLOCK: a FIFO must not hold us up */
        _cleanup_fd_ int fd = -1;
        int r;

        o |= flags & FILE_WRITE ? O_RDWR : O_RDONLY;
        o |= flags & FILE_CREATE ? O_CREAT : 0;
        o |= flags & FILE_EXCLUSIVE ? O_EXCL : 0;
        o |= flags & FILE_TRUNCATE ? O_TRUNC : 0;
        o |= flags & FILE_NOFOLLOW ? O_NOFOLLOW : 0;
        fd = open(path, o, mode);
        if (fd < 0)
                return -errno;
        r = host_file_wrap(fs, fd, -1, path, flags, ret);
        if (r == 0)
                TAKE_FD(fd);
        return r;
}

int file_from_fd(int fd, const char *path, unsigned flags, struct file **ret, struct error *err)
{
        int r = host_file_wrap(host_fs(), fd, -1, path, flags, ret);

        if (r == -EMEDIUMTYPE)
                fail(err, EMEDIUMTYPE, "'%s' is neither a regular file nor a block device", path);
        else if (r < 0)
                fail_os(err, -r, "cannot use '%s'", path);
        if (r < 0) {
                error_set_file(err, path);
                return r;
        }
        pthread_mutex_init(&(*ret)->sync_lock, NULL);
        pthread_cond_init(&(*ret)->sync_ended, NULL);
        return 0;
}

static int host_rename(struct fs *fs, const char *from, const char *to, bool replace)
{
        if (replace)
                return rename(from, to) < 0 ? -errno : 0;
        if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
                return 0;
        if (errno != EINVAL)
                return -errno;
        /* A file system without the flag: a hard link never replaces either. */
        if (link(from, to) < 0)
                return -errno;
        return unlink(from) < 0 ? -errno : 0;
}

static int host_unlink(struct fs *fs, const char *path)
{
        return unlink(path) < 0 ? -errno : 0;
}

static int host_remove_directory(struct fs *fs, const char *path)
{
        return rmdir(path) < 0 ? -errno : 0;
}

void host_directory_of(const char *path, char *ret, size_t size)
{
        const char *slash = strrchr(path, '/');

        if (!slash)
                snprintf(ret, size, ".");
        else if (slash == path)
                snprintf(ret, size, "/");
        else
                snprintf(ret, size, "%.*s", (int)(slash - path), path);
}

static int host_sync_directory(struct fs *fs, const char *path)
{
        char directory[PATH_MAX];
        _cleanup_fd_ int fd = -1;

        host_directory_of(path, directory, sizeof(directory));
        fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        return fsync(fd) < 0 ? -errno : 0;
}

static int64_t host_now(struct fs *fs)
{
        return time(NULL);
}

static void host_boot_id(struct fs *fs, uint8_t ret[16])
{
        char text[64] = "";
        _cleanup_fd_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
        int n = 0;

        memset(ret, 0, 16);
        if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
                return;
        for (const char *p = text; *p && n < 32; p++) {
                unsigned digit;

                if (*p >= '0' && *p <= '9')
                        digit = (unsigned)(*p - '0');
                else if (*p >= 'a' && *p <= 'f')
                        digit = (unsigned)(*p - 'a' + 10);
                else
                        continue;
                ret[n / 2] = (uint8_t)(ret[n / 2] << 4 | digit);
                n++;
        }
}

/* The name of process @pid, or "". */
static void process_name(const char *pid, char *ret, size_t size)
{
        char path[64];
        FILE *file;

        snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
        ret[0] = '\0';
        file = fopen(path, "re");
        if (!file)
                return;
        if (fgets(ret, (int)size, file))
                ret[strcspn(ret, "\n")] = '\0';
        fclose(file);
}

/* Does a descriptor of process @pid hold an open-file-description lock on this inode? */
static bool process_locks(const char *pid, const char *inode_words)
{
        char path[320], line[256];
        struct dirent *entry;
        bool found = false;
        DIR *dir;

        snprintf(path, sizeof(path), "/proc/%.20s/fdinfo", pid);
        dir = opendir(path);
        if (!dir)
                return false;
        while (!found && (entry = readdir(dir))) {
                FILE *file;

                snprintf(path, sizeof(path), "/proc/%.20s/fdinfo/%.20s", pid, entry->d_name);
                file = entry->d_name[0] == '.' ? NULL : fopen(path, "re");
                if (!file)
                        continue;
                while (!found && fgets(line, sizeof(line), file))
                        found = !strncmp(line, "lock:", 5) && strstr(line, inode_words);
                fclose(file);
        }
        closedir(dir);
        return found;
}

void host_lock_holder(struct file *file, char *ret, size_t size)
{
        char inode_words[64], own[32], name[64];
        struct dirent *entry;
        struct stat st;
        DIR *proc;

        snprintf(ret, size, "another program");
        if (file->fd < 0 || fstat(file->fd, &st) < 0)
                return;
        proc = opendir("/proc");
        if (!proc)
                return;
        snprintf(inode_words, sizeof(inode_words), "%02x:%02x:%llu ", major(st.st_dev),
                minor(st.st_dev), (unsigned long long)st.st_ino);
        snprintf(own, sizeof(own), "%d", (int)getpid());
        while ((entry = readdir(proc))) {
                if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
                        continue;
                if (!strcmp(entry->d_name, own) || !process_locks(entry->d_name, inode_words))
                        continue;
                process_name(entry->d_name, name, sizeof(name));
                snprintf(ret, size, "%s (pid %s)", name, entry->d_name);
                break;
        }
        closedir(proc);
}

static const struct fs_ops host_fs_ops = {
        .open = host_open,
        .rename = host_rename,
        .unlink = host_unlink,
        .remove_directory = host_remove_directory,
        .sync_directory = host_sync_directory,
        .region_open = host_region_open,
        .region_close = host_region_close,
        .boot_id = host_boot_id,
        .now = host_now,
};

struct fs *host_fs(void)
{
        static struct fs fs = {.ops = &host_fs_ops};

        return &fs;
}
