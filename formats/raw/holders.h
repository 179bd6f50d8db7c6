/* SPDX-License-Identifier: Apache-2.0 */
/* holders.h - who on this machine uses a block device.
 *
 * A disk is in use when it, the disk it is a partition of, or one of its own partitions is mounted,
 * swapped to, part of a RAID array or a logical volume, or stands under a loop device. The kernel
 * says so in /proc and /sys; O_EXCL alone refuses with "busy", and a person wants to know by whom.
 *
 * Units      device numbers as dev_t.
 * Ownership  the caller's buffers.
 * Errors     what cannot be read counts as not there: O_EXCL has the last word.
 * Threads    pure functions but for the reads.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define HOLDERS_TEXT_MAX 512

/* Where /proc, /sys and the devices that they name are: "" on the host, a folder in tests. */
struct holders_root {
        const char *path;
        /* The device number behind a path that /proc or /sys names; false if it is none. */
        bool (*device_of)(const struct holders_root *root, const char *path, dev_t *ret);
};
extern const struct holders_root holders_host;

/* Writes the end of "'/dev/sdb' is in use: ..." and answers true when somebody uses @device:
 * "sdb1 is mounted at '/home'". */
bool holders_find(const struct holders_root *root, dev_t device, char *ret, size_t size);

/* "fsck.ext4 (pid 123)": a process that has the device's node open, other than this one. */
bool holders_find_process(dev_t device, char *ret, size_t size);
