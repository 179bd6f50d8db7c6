/* SPDX-License-Identifier: Apache-2.0 */
/* guest_free.h - what the file systems inside a disk do not use any more is trimmed, by the kernel that
 * knows them: the disk is served over NBD on a private socket, shown as a file by nbdfuse, and each
 * partition of it is mounted through a loop device and trimmed.
 *
 *   vhdctl serve -> nbdfuse -> loop device (one a file system) -> mount, FITRIM, unmount
 *
 * All of it stands in a mount namespace of this process and ends with it, however it ends; the loop
 * devices go when they are no longer used. A death in the middle is to the file systems inside as a
 * power cut.
 *
 * Units      bytes.
 * Ownership  nothing is kept.
 * Errors     0 or -errno with a sentence. -EPERM: not root. -ENOENT: nbdfuse is not installed. -ENOTSUP:
 *            nothing inside could be mounted.
 * Threads    the main thread, and there are no others: the process gets its own mount namespace.
 */
#pragma once

#include "vhdd/ctl/ctl.h"

struct guest_free_report {
        unsigned n_trimmed, n_left; /* file systems; what else there is, which was warned of */
        uint64_t bytes;             /* trimmed, as the file systems count */
};

int guest_free(const struct ctl *ctl, const char *path, struct guest_free_report *ret,
        struct error *err);
