/* SPDX-License-Identifier: Apache-2.0 */
/* device.h - a block device as a guest's disk (pass-through): the host lets go of it meanwhile.
 *
 * A device that the host uses is refused with who uses it. One that we hold is claimed (O_EXCL: no
 * mount, no swap, no RAID), locked against udev (flock, as systemd's BLOCK_DEVICE_LOCKING asks), and
 * its partitions have no nodes (formats/raw/partitions.h). Readers claim nothing.
 *
 * SCSI commands are not passed through: a guest sees the bytes and not the model.
 *
 * Units      bytes.
 * Ownership  device_claim hands out; device_release or device_abandon ends. The file stays the
 *            caller's and must live as long.
 * Errors     0 or -errno with a sentence. -EBUSY: somebody uses it.
 * Threads    opening and closing belong to one thread.
 */
#pragma once

#include "base/error.h"
#include "base/file.h"

#define DEVICE_NAME_MAX 4096

struct device;

/* As file_open, for a path that may be a block device: for writing it is claimed as it is opened,
 * and a busy one is told with who holds it. */
int device_open(
        struct fs *fs, const char *path, unsigned flags, struct file **ret, struct error *err);

/* Takes the block device @file, open for writing, away from the host. What could not be done and
 * does no harm is told in @warning (ERROR_MESSAGE_MAX bytes, "" before). */
int device_claim(struct file *file, struct device **ret, char *warning, struct error *err);
/* Gives it back: partition nodes, locks. Ends it in any case. NULL is fine. */
int device_release(struct device *device, struct error *err);
/* Ends it as a dying process would. NULL is fine; returns NULL. */
struct device *device_abandon(struct device *device);

/* For readers: a mounted device changes while it is read, which @warning says. Partition nodes that
 * a dead process left away come back. */
void device_look(struct file *file, char *warning);

/* The name under /dev/disk/by-id that the device at @path has after the next boot too, when its
 * /dev/sdX may be another's. -ENOENT if it has none. */
int device_stable_name(const char *path, char *ret, size_t size, struct error *err);
/* The same with the folder named, for tests. */
int device_stable_name_in(
        const char *folder, const char *path, char *ret, size_t size, struct error *err);
