/* SPDX-License-Identifier: Apache-2.0 */
/* mounts.h - what is mounted where, who serves it, who keeps it busy, and how it goes.
 *
 * Nothing here asks a file system anything: one whose server has died or hangs is looked at as well as any
 * other. All comes from /proc and /sys.
 *
 * Ownership  a table owns its entries; mount_table_done() ends it.
 * Errors     0 or -errno with one sentence. What cannot be seen (another user's process) is not there.
 * Threads    the main thread only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

struct mount_entry {
        int id, parent;
        unsigned major_number, minor_number;
        char *point, *type, *source;
};

struct mount_table {
        struct mount_entry *items; /* the later ones stand on the earlier */
        size_t n;
};

int mount_table_read(struct mount_table *ret, struct error *err);
void mount_table_done(struct mount_table *table);

/* The mount that is seen at @path (absolute, without links), or NULL. */
const struct mount_entry *mount_table_at(const struct mount_table *table, const char *path);

/* Is it the mount of a vhdfuse? */
bool mount_is_ours(const struct mount_entry *entry);

/* The process that serves a FUSE mount; 0: it cannot be seen, or has died. */
pid_t mount_server(const struct mount_entry *entry);

/* The absolute path of a folder in which a dead file system may be mounted: the links in front of its last
 * name are followed, and the folder itself is not looked at if that fails. The caller frees it. */
int mount_path(const char *folder, char **ret, struct error *err);

/* Takes the topmost mount at @path off. @lazy: it goes from the tree now, and for good with its last user.
 *   -EBUSY  somebody uses it; the sentence says who, where that can be seen */
int mount_remove(const struct mount_table *table, const char *path, bool lazy, struct error *err);
