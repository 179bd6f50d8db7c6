/* SPDX-License-Identifier: Apache-2.0 */
/* host_fs.h - the parts of the host's file system that base/ shares among its own files.
 *
 * Units      bytes.        Ownership, Errors: as base/file.h.
 * Threads    pure functions but for the system calls.
 */
#pragma once

#include "base/file.h"

/* "qemu-system-x86 (pid 123)", or "another program" when nobody can be found. */
void host_lock_holder(struct file *file, char *ret, size_t size);
/* Gives back all bytes of the lock on @fd's open file description that @mode does not need. */
void host_lock_reduce(int fd, enum file_lock mode);

/* A file of @fs out of a descriptor of the host's, for file systems that get theirs from somebody
 * else; the part of fs_ops.open that comes after open(2). @direct_fd: the same inode with O_DIRECT,
 * where @flags have FILE_DIRECT; -1: it is opened here. Both are taken over on success only.
 * -EMEDIUMTYPE: neither a regular file nor a block device. */
int host_file_wrap(
        struct fs *fs, int fd, int direct_fd, const char *path, unsigned flags, struct file **ret);
/* What the files of host_fs() do. */
const struct file_ops *host_file_ops_get(void);
/* The directory part of a path: "." for a bare name. */
void host_directory_of(const char *path, char *ret, size_t size);

int host_region_open(struct fs *fs, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err);
void host_region_close(struct region *region, bool remove);
/* The file of a region (base/file.h: region_open) for somebody else to map; *ret_path is the caller's. */
int host_region_open_fd(const char *name, const char *beside, uint64_t size, bool create,
        int *ret_fd, char **ret_path, struct error *err);
/* Maps a region's whole file. From a descriptor that only reads, the mapping is the caller's own copy. */
int host_region_map(
        struct fs *fs, int fd, const char *path, struct region **ret, struct error *err);
