/* SPDX-License-Identifier: Apache-2.0 */
/* guest_fs.h - a guest's file system, mounted on the host: by the kernel through a loop device, or by a FUSE
 * program where there is no right to do that, or no such file system in the kernel.
 *
 * What is mounted is hostile: nosuid, nodev, noexec unless the user wants it otherwise, and a superblock that
 * asks for a panic on errors is overruled. A journal that needs it is replayed, so the file has to take
 * writes also for a mount that takes none.
 *
 * Ownership  values; a mount is undone by mount_remove(), and its loop device goes with it.
 * Errors     0 or -errno with one sentence.
 * Threads    the main thread only.
 */
#pragma once

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum guest_content {
        GUEST_NOTHING, /* nothing that is known */
        GUEST_FILE_SYSTEM,
        GUEST_OTHER, /* swap, a member of a RAID, a volume group, something encrypted */
};

struct guest_fs {
        enum guest_content content;
        char type[32];   /* libblkid's word: "ext4", "LVM2_member"; "" for nothing */
        char label[256]; /* "": it has none */
};

/* What stands in @path. A file that looks like several things is -EUCLEAN. */
int guest_fs_probe(const char *path, struct guest_fs *ret, struct error *err);

/* "a Linux swap area": of what is no file system, for people. */
const char *guest_fs_describe(const struct guest_fs *fs);

struct guest_fs_mount {
        const char *file, *point;
        const char *what; /* for sentences: "partition 2 of 'a.vhd'" */
        const char *type;
        const char *options; /* the user's, separated by commas; NULL: none */
        bool writable, exec;
        /* Called before anything is mounted with what will stand in the table of mounts as its source. */
        int (*about_to)(void *opaque, const char *source, struct error *err);
        void *opaque;
        /* out */
        bool by_kernel;
};

/*   -ENOPKG  neither the kernel nor an installed program can: the sentence names a package */
int guest_fs_mount(struct guest_fs_mount *mount, struct error *err);

/* Splits the user's -o: what has to do with exec goes to *ret_exec, the rest to @ret. "suid" and "dev" are
 * -EINVAL. */
int guest_fs_options(const char *text, bool *ret_exec, char *ret, size_t size, struct error *err);
