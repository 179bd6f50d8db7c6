/* SPDX-License-Identifier: Apache-2.0 */
/* partitions.h - the host's nodes for a disk's partitions: gone while the disk is a guest's, back
 * at the end.
 *
 * What the guest does to its disk behind the host's back must not meet the host's cache of a
 * partition, nor tempt the host to mount one. So while we hold a disk its partitions have no nodes
 * (BLKPG). Which there were is noted first in memory that outlives the process (base/file.h,
 * region): after a crash the next opener finds the note, and at its end, or at once if it only
 * reads, they come back. What comes back is what the partition table on the disk says then, as the
 * guest may have changed it; only nodes that no table explained (made by hand) come back as they
 * were. A reboot makes its own nodes, and the note is gone with the old ones.
 *
 * Units      bytes.
 * Ownership  partitions_hide hands out; partitions_show or partitions_forget ends.
 * Errors     0 or -errno with a sentence. Without the right to change nodes (CAP_SYS_ADMIN) -EPERM.
 * Threads    one at a time for a disk: the caller holds its flock.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "base/file.h"

struct partitions;

/* Takes the nodes of the disk's partitions away. *ret is NULL if there is nothing to put back.
 *   -EBUSY  somebody has one of them open (the sentence says who); all of them are there again */
int partitions_hide(struct file *disk, struct partitions **ret, struct error *err);

/* Puts nodes back, and ends it in any case. NULL is fine. */
int partitions_show(struct partitions *partitions, struct error *err);

/* Ends it as a dying process would: the nodes stay away, the note stays. NULL is fine; returns
 * NULL. */
struct partitions *partitions_forget(struct partitions *partitions);

/* Puts back what a process that died left away. No note is fine. */
int partitions_show_owed(struct file *disk, struct error *err);
