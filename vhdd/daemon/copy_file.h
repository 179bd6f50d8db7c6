/* SPDX-License-Identifier: Apache-2.0 */
/* copy_file.h - a file of the host as it is, byte by byte, with its holes and its time of change.
 *
 * Nothing in it is looked at. It is locked against writers while it is read, and the copy is synced;
 * its name is the caller's to make durable.
 *
 * Units      bytes.
 * Errors     0 or -errno with one sentence. -EEXIST the new name is taken; -EBUSY somebody has the
 *            file open for writing; -ECANCELED @watch said so. A copy that failed is removed.
 * Threads    any; @watch is asked on the caller's.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

struct file;

struct copy_watch {
        /* Required. After each piece of @bytes, some MiB at most: may block, for a pause or a limit.
         * What it answers but 0 ends the copying. */
        int (*step)(void *opaque, uint64_t bytes);
        void *opaque;
};

/* The file, open and locked (the caller's: file_close): from here on nobody writes to it, and what
 * becomes of its name does not matter. */
int copy_source_open(const char *path, struct file **ret, struct error *err);
/* @watch: may be NULL. */
int copy_from(
        struct file *source, const char *to, const struct copy_watch *watch, struct error *err);
/* Both. */
int copy_file(const char *from, const char *to, const struct copy_watch *watch, struct error *err);

struct copy_folders {
        /* Required. Before a folder is made that was not there. */
        int (*will_make)(void *opaque, const char *path, struct error *err);
        void *opaque;
};

/* The folder in which @path shall lie, and those above it that are not there yet, durably. @folders: may
 * be NULL. */
int make_folders(const char *path, const struct copy_folders *folders, struct error *err);
