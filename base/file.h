/* SPDX-License-Identifier: Apache-2.0 */
/* file.h - every byte that goes to disk or comes from it passes here.
 *
 * A `struct fs` is where files live: the host, or a simulated disk that records, forgets, tears
 * and fails (tests/crash). A `struct file` is one open file or block device in it. A `struct
 * region` is memory that outlives the process but not the machine (the redo file of rule E4).
 *
 * Units      bytes.
 * Ownership  what x_open hands out, the caller ends with x_close. Paths are copied.
 * Errors     0 or a count, or -errno. Functions with an err write one sentence; the bare I/O calls
 *            answer the number alone, because the caller knows what the bytes were.
 *            A failed sync is never retried here (rule E5 is the image's to keep).
 * Threads    I/O calls on one file may come from many threads at once. Opening, closing and
 *            locking belong to one.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "base/cleanup.h"
#include "base/error.h"

struct fs;
struct file;
struct region;

/* What a file is, as its inode says. */
struct file_stat {
        uint64_t size;          /* of a block device: its capacity */
        uint64_t allocated;     /* bytes that take space */
        uint64_t device, inode; /* of a block device: its own number and 0 */
        int64_t birth_ns;       /* when the inode was made; 0: the file system does not say */
        int64_t mtime_s;        /* seconds since 1970 UTC */
        uint32_t mtime_ns;
        uint32_t owner; /* uid */
        bool is_regular, is_block;
};

enum file_flags {
        FILE_READ = 0,
        FILE_WRITE = 1u << 0,     /* read and write */
        FILE_CREATE = 1u << 1,    /* make it; with FILE_EXCLUSIVE an existing one is -EEXIST */
        FILE_EXCLUSIVE = 1u << 2, /* O_EXCL: on a block device: nobody else mounts or holds it */
        FILE_TRUNCATE = 1u << 3,  /* an existing file is emptied */
        FILE_NOFOLLOW = 1u << 4,  /* the last component is not a symbolic link */
        /* Data goes past the page cache where offset and length are multiples of 4 KiB; what is not
         * (metadata, odd requests) goes through it, and the kernel keeps the two in step. */
        FILE_DIRECT = 1u << 5,
};

/* For file_read and file_write. */
enum file_io_flags {
        FILE_NOWAIT = 1u << 0, /* only what needs no waiting: a short count, or -EAGAIN for none */
        FILE_DSYNC = 1u << 1,  /* RWF_DSYNC: for file_write_durable, which keeps E5 */
};

/* The byte locks that QEMU takes (OFD locks on bytes 100.. and 200..): who holds one of these keeps
 * QEMU, and every tool of ours, from opening the file in a way that clashes. */
enum file_lock {
        FILE_LOCK_NONE,
        FILE_LOCK_READ,       /* I read, and nobody may write or resize */
        FILE_LOCK_WRITE,      /* I read, write and resize, and nobody else writes or resizes */
        FILE_LOCK_READ_LOOSE, /* I read, and bear with others writing (info, tree: headers only) */
};

struct file_ops {
        /* All are required. They may block unless FILE_NOWAIT says otherwise. */
        ssize_t (*readv)(
                struct file *, const struct iovec *, int n_iov, uint64_t offset, unsigned flags);
        ssize_t (*writev)(
                struct file *, const struct iovec *, int n_iov, uint64_t offset, unsigned flags);
        int (*sync)(struct file *);
        int (*truncate)(struct file *, uint64_t size);
        int (*punch)(struct file *, uint64_t offset, uint64_t length);
        int (*reserve)(struct file *, uint64_t offset, uint64_t length);
        int (*seek)(struct file *, uint64_t offset, bool data, uint64_t *ret);
        int (*stat)(struct file *, struct file_stat *ret);
        int (*lock)(struct file *, enum file_lock mode);
        void (*close)(struct file *);
};

struct file {
        /* immutable after open */
        const struct file_ops *ops;
        struct fs *fs;
        char *path;     /* as it was opened: for sentences, never opened again */
        int fd;         /* the host's descriptor, or -1 in a simulated disk */
        unsigned flags; /* enum file_flags */

        /* guarded by sync_lock */
        pthread_mutex_t sync_lock;
        pthread_cond_t sync_ended;
        bool syncing;
        int sync_error; /* -errno of the sync that failed, or 0 */
};

struct fs_ops {
        int (*open)(
                struct fs *, const char *path, unsigned flags, unsigned mode, struct file **ret);
        /* Optional: instead of open, for a file system that knows why not: then @err is filled. */
        int (*open_told)(struct fs *, const char *path, unsigned flags, unsigned mode,
                struct file **ret, struct error *err);
        int (*rename)(struct fs *, const char *from, const char *to, bool replace);
        int (*unlink)(struct fs *, const char *path);
        int (*remove_directory)(struct fs *, const char *path); /* optional: rmdir */
        int (*sync_directory)(struct fs *, const char *path_of_file); /* the one that holds it */
        int (*region_open)(struct fs *, const char *name, const char *beside, uint64_t size,
                bool create, struct region **ret, struct error *err);
        void (*region_close)(struct region *, bool remove);
        void (*boot_id)(struct fs *, uint8_t ret[16]);
        int64_t (*now)(struct fs *); /* seconds since 1970 UTC */
};

struct fs {
        const struct fs_ops *ops;
        /* A simulated disk: work that an image would give to a thread of its own is done on the
         * caller's, so that a test decides the order of all steps. */
        bool single_threaded;
};

/* The machine's own files. */
struct fs *host_fs(void);

int file_open(
        struct fs *fs, const char *path, unsigned flags, struct file **ret, struct error *err);
/* Makes a file of the host out of a descriptor (taken over on success, and only then). */
int file_from_fd(int fd, const char *path, unsigned flags, struct file **ret, struct error *err);
struct file *file_close(struct file *file); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct file *, file_close)

int fs_rename(struct fs *fs, const char *from, const char *to, bool replace);
int fs_unlink(struct fs *fs, const char *path);
/* An empty one. -ENOTEMPTY where something is in it; -ENOSYS in a file system without directories. */
int fs_remove_directory(struct fs *fs, const char *path);
/* Makes the entry of @path in its directory durable. */
int fs_sync_directory(struct fs *fs, const char *path);
int64_t fs_now(struct fs *fs);

/* As much as there is: a short count only at the end of the file, or with FILE_NOWAIT (then -EAGAIN
 * if nothing could be had at once, -EOPNOTSUPP where the file system has no such thing). */
ssize_t file_read(struct file *file, void *data, size_t length, uint64_t offset, unsigned flags);
ssize_t file_readv(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags);
/* All of it, or -errno; -ENODATA if the file ends before. */
int file_read_exact(struct file *file, void *data, size_t length, uint64_t offset);
/* All of it, or -errno (then some of it may have been written). Short writes are continued. */
int file_write(struct file *file, const void *data, size_t length, uint64_t offset, unsigned flags);
int file_writev(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags);

/* fdatasync. Linux tells of a lost writeback once, to one caller: so syncs of one file take turns, and
 * after the first that failed none is tried (E5): they all answer its errno. */
int file_sync(struct file *file);
/* The -errno of the sync that failed, or 0. */
int file_sync_error(struct file *file);
/* A write that is durable when it answers 0.
 *   -EINPROGRESS  it is written, and another sync of the file is under way: join a flush instead
 *   others        not written; but if file_sync_error() now tells of one, a sync failed, which the
 *                 image has to note (struct format, poison) */
int file_write_durable(struct file *file, const void *data, size_t length, uint64_t offset);
int file_truncate(struct file *file, uint64_t size);
/* From here on the range reads as zeros and takes no space if the file system can; where it cannot
 * punch, zeros are written. The size stays: only the part inside the file is touched. */
int file_punch(struct file *file, uint64_t offset, uint64_t length);
/* Zeros are written. A process that is killed in the middle leaves each sector old or zero. */
int file_write_zeros(struct file *file, uint64_t offset, uint64_t length);
/* @length bytes of @from come to lie in @to as well, without being copied: both share them until one of
 * them is written to (reflink). -EOPNOTSUPP where that cannot be, also for want of alignment. */
int file_clone(struct file *to, uint64_t to_offset, struct file *from, uint64_t from_offset,
        uint64_t length);
/* Takes the space of the range, so that writing there cannot fail for want of it (fallocate;
 * the size grows with it). -EOPNOTSUPP where the file system has no such thing. */
int file_reserve(struct file *file, uint64_t offset, uint64_t length);
/* The next data (or hole) at or after @offset; the file's size if there is none. A file system
 * that cannot tell answers that everything is data. */
int file_seek_data(struct file *file, uint64_t offset, uint64_t *ret);
int file_seek_hole(struct file *file, uint64_t offset, uint64_t *ret);
int file_stat_get(struct file *file, struct file_stat *ret);
int file_size_get(struct file *file, uint64_t *ret);

/* The file that @reader has open (FILE_READ, with its reader's lock), open for writing (and with
 * @flags, FILE_DIRECT) with a writer's lock: at no moment could another writer come between. Afterwards @reader has no lock, and reads on.
 *   -ESTALE  its name means another file now      -EBUSY  somebody else reads or writes it
 * On failure @reader has its lock again. */
int file_upgrade(struct file *reader, unsigned flags, struct file **ret, struct error *err);

/* Takes, changes or (FILE_LOCK_NONE) gives back the lock; the new one is had before the old one is
 * given up. One found held is tried again for two seconds: after kill -9 a lock outlives its
 * process for some 65 ms. -EBUSY with a sentence that names the holder's pid where it is known. */
int file_lock_set(struct file *file, enum file_lock mode, struct error *err);

/* Memory that a process's death leaves whole and a machine's does not.
 * immutable after open */
struct region {
        struct fs *fs;
        void *data;
        uint64_t size;
        char *path; /* where it lies, for sentences */
};

/* Opens the region @name, or makes it (@create; an existing one is -EEXIST). Looked for in each of
 * /run/vhdd, $XDG_RUNTIME_DIR, /dev/shm that is a tmpfs, and beside the file @beside; made in the
 * first of them that can be written. Only a regular file of mode 0600 that belongs to root, to us
 * or to @beside's owner counts; one that we can see and not read is an error. Its space is
 * reserved, so that touching it cannot fail later. -ENOENT when there is none. */
int region_open(struct fs *fs, const char *name, const char *beside, uint64_t size, bool create,
        struct region **ret, struct error *err);
/* Ends the mapping; @remove also removes the file. NULL is fine; always returns NULL. */
struct region *region_close(struct region *region, bool remove);
/* This boot's id (/proc/sys/kernel/random/boot_id). A simulated disk changes its own at a cut. */
void fs_boot_id(struct fs *fs, uint8_t ret[16]);
