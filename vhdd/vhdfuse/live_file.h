/* SPDX-License-Identifier: Apache-2.0 */
/* live_file.h - one export of the daemon as a file: read over NBD, by a few connections that are there while
 * somebody has it open.
 *
 * Exports are asked for by ids, so a file that is open goes on when its vm or snapshot gets another name. A
 * connection that ends (the vm's worker died, a snapshot was applied) is made anew, and what was asked is
 * asked again.
 *
 * Units      bytes.
 * Ownership  a file is the tree's once it was added (live_file_ops.free). A daemon outlives the files.
 * Errors     0 or -errno. -EIO: the daemon does not serve it now; live_daemon says why.
 * Threads    all from many at once.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "fuse/tree.h"

/* What all files share: where the exports are, and how the daemon is. */
struct live_daemon {
        int changed; /* immutable: an eventfd that says that `why' is another */
        pthread_mutex_t lock;
        /* guarded by lock */
        char *uri;             /* of its NBD socket, without an export; NULL: it has none */
        bool is_there;         /* we hear its events */
        struct timespec since; /* when that was last seen to change */
        char why[256];         /* why a file could not be read, "" when one could */
};

struct live_file;

/* @export: VM/DISK@WHAT, with ids where there are any. @now: it changes all the time. */
int live_file_new(struct live_daemon *daemon, const char *export_name, bool now, uint64_t size,
        const struct timespec *mtime, struct live_file **ret);
struct live_file *live_file_free(struct live_file *file); /* NULL is fine; returns NULL */

/* False: it was so already. */
bool live_file_set_size(struct live_file *file, uint64_t size);

extern const struct vhdfuse_file_ops live_file_ops;
