/* SPDX-License-Identifier: Apache-2.0 */
/* mount_files.h - the files of the file systems inside an image, at a folder (`mount --files`).
 *
 *   vhdfuse (the disk and its partitions as files) -> loop device, kernel        | at DIR, or
 *                                                  -> fuse2fs, ntfs-3g, ...      | DIR/1, DIR/2
 *
 * vhdfuse's own mount stands in a private folder only while this is built, and is taken out of sight then: the
 * loop devices and programs that have its files open keep it, and with the last of them it ends and closes the
 * image. So umount(8) of the file systems alone undoes everything.
 *
 * Without --writable the disk is a scratch child over the image: a journal is replayed into that.
 *
 * Errors     0 or -errno with one sentence, and nothing is left mounted.
 * Threads    the main thread only.
 */
#pragma once

#include "vhdd/ctl/ctl.h"

struct mount_files {
        const char *image, *directory;
        const char *options; /* -o; NULL: none */
        unsigned partition;  /* 0: all */
        bool writable;
        /* Mounts the disk at a folder, writable or as a scratch child, and returns when it is there. A bad end is
         * told in the file @report. */
        int (*start)(const struct ctl *ctl, const char *image, const char *directory, bool writable,
                const char *report, struct error *err);
};

int mount_files(const struct ctl *ctl, const struct mount_files *files, struct error *err);
