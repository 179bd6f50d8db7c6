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
/* The directory part of a path: "." for a bare name. */
void host_directory_of(const char *path, char *ret, size_t size);

int host_region_open(struct fs *fs, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err);
void host_region_close(struct region *region, bool remove);
