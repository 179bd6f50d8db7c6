/* SPDX-License-Identifier: Apache-2.0 */
/* switch_record.h - which disks of a vm were switched to new leaves by a snapshot that is not
 * committed (rule E10).
 *
 * One region (base/file.h) for each vm, `vhdd-switch-` and the vm's id, in one of E4's places: memory
 * that a process's death leaves whole and a power cut takes away. After a death it, and nothing else,
 * says that the switch was made; then the snapshot is rolled forward for all disks. After a power cut
 * there is none, and the snapshot vanishes.
 *
 * The record is written whole: what it says, then the word that makes it count. It carries a checksum,
 * the boot's id and the vm's; any other is as good as none.
 *
 * Units      none.
 * Ownership  switch_open hands out, switch_close ends.
 * Errors     0 or -errno, with a sentence where there is an err.
 * Threads    one at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

#define SWITCH_MAX_DISKS 260u /* two IDE controllers of two, four SCSI ones of 64 */
#define SWITCH_NAME_MAX  64u

/* An image as the machine and its own header know it. */
struct switch_image {
        uint64_t device, inode;
        uint8_t id[16]; /* the VHD's; zeros for a raw one */
};

struct switch_disk {
        uint8_t id[16];
        struct switch_image frozen, leaf;
};

struct switch_record {
        uint8_t vm[16], snapshot[16];
        uint32_t n_disks;
        struct switch_disk disks[SWITCH_MAX_DISKS];
};

struct switch_region;

/* The region's name, for who hands regions out (SWITCH_NAME_MAX bytes). */
void switch_region_name(const uint8_t vm[16], char *ret);

/* The region of @vm. @create: one is made if there is none, its space reserved, so that writing it
 * cannot fail. @beside: a file of the vm's, as region_open() wants it.
 *   -ENOENT  there is none */
int switch_open(struct fs *fs, const uint8_t vm[16], const char *beside, bool create,
        struct switch_region **ret, struct error *err);
/* @remove: nothing is left to be said. NULL is fine. */
struct switch_region *switch_close(struct switch_region *region, bool remove);

void switch_region_vm(const struct switch_region *region, uint8_t ret[16]);
/* record->vm is the region's. Replaces what was there: first it is gone, then the new one is whole. */
void switch_write(struct switch_region *region, const struct switch_record *record);
/* -ENOENT: no whole record of this vm and this boot. */
int switch_read(const struct switch_region *region, struct switch_record *ret);
void switch_clear(struct switch_region *region);

/* The disk of @record whose new leaf, or whose frozen image, this file is; NULL: none. */
const struct switch_disk *switch_find_leaf(
        const struct switch_record *record, const struct file_stat *st);
const struct switch_disk *switch_find_frozen(
        const struct switch_record *record, const struct file_stat *st);
