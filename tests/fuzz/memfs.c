/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/memfs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/arith.h"

static struct memfs *memfs_of(struct file *file)
{
        return (struct memfs *)file->fs;
}

/* A fuzzer that cannot get its memory can tell nothing. */
static void *must(void *p)
{
        if (!p)
                abort();
        return p;
}

static ssize_t mem_readv(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        struct memfs *memfs = memfs_of(file);
        size_t done = 0;

        (void)flags;
        MUTEX_GUARD(&memfs->lock);
        for (int i = 0; i < n_iov && offset < memfs->size; i++) {
                size_t n = MIN_OF(iov[i].iov_len, memfs->size - offset);

                memcpy(iov[i].iov_base, memfs->data + offset, n);
                offset += n;
                done += n;
        }
        return (ssize_t)done;
}

static ssize_t mem_writev(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        struct memfs *memfs = memfs_of(file);
        size_t done = 0;

        (void)flags;
        MUTEX_GUARD(&memfs->lock);
        for (int i = 0; i < n_iov; i++) {
                if (offset > MEMFS_FILE_MAX || iov[i].iov_len > MEMFS_FILE_MAX - offset)
                        return -ENOSPC;
                memcpy(memfs->data + offset, iov[i].iov_base, iov[i].iov_len);
                offset += iov[i].iov_len;
                done += iov[i].iov_len;
                memfs->size = MAX_OF(memfs->size, offset);
        }
        return (ssize_t)done;
}

static int mem_sync(struct file *file)
{
        (void)file;
        return 0;
}

static int mem_truncate(struct file *file, uint64_t size)
{
        struct memfs *memfs = memfs_of(file);

        if (size > MEMFS_FILE_MAX)
                return -EFBIG;
        MUTEX_GUARD(&memfs->lock);
        if (size < memfs->size)
                memset(memfs->data + size, 0, memfs->size - size);
        memfs->size = size;
        return 0;
}

static int mem_punch(struct file *file, uint64_t offset, uint64_t length)
{
        struct memfs *memfs = memfs_of(file);

        MUTEX_GUARD(&memfs->lock);
        if (offset < memfs->size)
                memset(memfs->data + offset, 0, MIN_OF(length, memfs->size - offset));
        return 0;
}

static int mem_reserve(struct file *file, uint64_t offset, uint64_t length)
{
        struct memfs *memfs = memfs_of(file);

        if (offset > MEMFS_FILE_MAX || length > MEMFS_FILE_MAX - offset)
                return -ENOSPC;
        MUTEX_GUARD(&memfs->lock);
        memfs->size = MAX_OF(memfs->size, offset + length);
        return 0;
}

/* As a file system that knows no holes. */
static int mem_seek(struct file *file, uint64_t offset, bool data, uint64_t *ret)
{
        struct memfs *memfs = memfs_of(file);

        MUTEX_GUARD(&memfs->lock);
        *ret = data && offset < memfs->size ? offset : memfs->size;
        return 0;
}

static int mem_stat(struct file *file, struct file_stat *ret)
{
        struct memfs *memfs = memfs_of(file);

        MUTEX_GUARD(&memfs->lock);
        *ret = (struct file_stat){
                .size = memfs->size,
                .allocated = memfs->size,
                .device = 1,
                .inode = 1,
                .is_regular = true,
        };
        return 0;
}

static int mem_lock(struct file *file, enum file_lock mode)
{
        (void)file;
        (void)mode;
        return 0;
}

static void mem_close(struct file *file)
{
        free(file->path);
        free(file);
}

static const struct file_ops file_ops = {
        .readv = mem_readv,
        .writev = mem_writev,
        .sync = mem_sync,
        .truncate = mem_truncate,
        .punch = mem_punch,
        .reserve = mem_reserve,
        .seek = mem_seek,
        .stat = mem_stat,
        .lock = mem_lock,
        .close = mem_close,
};

/* The one file there is has been opened by memfs_open(). */
static int fs_no_open(
        struct fs *fs, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        (void)fs;
        (void)path;
        (void)flags;
        (void)mode;
        (void)ret;
        return -ENOENT;
}

static int fs_no_rename(struct fs *fs, const char *from, const char *to, bool replace)
{
        (void)fs;
        (void)from;
        (void)to;
        (void)replace;
        return -ENOENT;
}

static int fs_no_unlink(struct fs *fs, const char *path)
{
        (void)fs;
        (void)path;
        return -ENOENT;
}

static int mem_sync_directory(struct fs *fs, const char *path)
{
        (void)fs;
        (void)path;
        return 0;
}

static struct memfs_region *region_named(struct memfs *memfs, const char *name)
{
        for (size_t i = 0; i < MEMFS_REGIONS; i++)
                if (memfs->regions[i].data && strcmp(memfs->regions[i].name, name) == 0)
                        return &memfs->regions[i];
        return NULL;
}

static struct memfs_region *region_make(struct memfs *memfs, const char *name, uint64_t size)
{
        for (size_t i = 0; i < MEMFS_REGIONS; i++) {
                struct memfs_region *slot = &memfs->regions[i];

                if (slot->data)
                        continue;
                slot->data = must(calloc(1, size));
                slot->size = size;
                strncpy(slot->name, name, sizeof(slot->name) - 1);
                return slot;
        }
        abort();
}

static int mem_region_open(struct fs *fs, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err)
{
        struct memfs *memfs = (struct memfs *)fs;
        struct memfs_region *slot;
        struct region *region;

        (void)beside;
        MUTEX_GUARD(&memfs->lock);
        slot = region_named(memfs, name);
        if (slot && create)
                return fail(err, EEXIST, "there is a region of this name");
        if (!slot && !create)
                return fail(err, ENOENT, "there is no region of this name");
        if (!slot)
                slot = region_make(memfs, name, size);
        region = must(calloc(1, sizeof(*region)));
        region->fs = fs;
        region->data = slot->data;
        region->size = slot->size;
        region->path = must(strdup(name));
        *ret = region;
        return 0;
}

static void mem_region_close(struct region *region, bool remove)
{
        struct memfs *memfs = (struct memfs *)region->fs;

        MUTEX_GUARD(&memfs->lock);
        if (remove) {
                struct memfs_region *slot = region_named(memfs, region->path);

                if (slot) {
                        free(slot->data);
                        *slot = (struct memfs_region){0};
                }
        }
        free(region->path);
        free(region);
}

static void mem_boot_id(struct fs *fs, uint8_t ret[16])
{
        (void)fs;
        memset(ret, 7, 16);
}

static int64_t mem_now(struct fs *fs)
{
        (void)fs;
        return 1700000000;
}

static const struct fs_ops fs_ops = {
        .open = fs_no_open,
        .rename = fs_no_rename,
        .unlink = fs_no_unlink,
        .sync_directory = mem_sync_directory,
        .region_open = mem_region_open,
        .region_close = mem_region_close,
        .boot_id = mem_boot_id,
        .now = mem_now,
};

void memfs_init(struct memfs *memfs, const void *data, size_t size)
{
        void *memory = mmap(NULL, MEMFS_FILE_MAX, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        *memfs = (struct memfs){.fs.ops = &fs_ops};
        pthread_mutex_init(&memfs->lock, NULL);
        memfs->fs.single_threaded = true;
        memfs->data = must(memory == MAP_FAILED ? NULL : memory);
        memfs->size = MIN_OF(size, MEMFS_FILE_MAX);
        memcpy(memfs->data, data, memfs->size);
}

void memfs_done(struct memfs *memfs)
{
        for (size_t i = 0; i < MEMFS_REGIONS; i++)
                free(memfs->regions[i].data);
        munmap(memfs->data, MEMFS_FILE_MAX);
        pthread_mutex_destroy(&memfs->lock);
}

struct file *memfs_open(struct memfs *memfs, const char *path, unsigned flags)
{
        struct file *file = must(calloc(1, sizeof(*file)));

        file->ops = &file_ops;
        file->fs = &memfs->fs;
        file->path = must(strdup(path));
        file->fd = -1;
        file->flags = flags;
        return file;
}
