/* SPDX-License-Identifier: Apache-2.0 */
/* bat.h - block allocation table of a dynamic or differencing VHD, in memory, and with each entry
 * the block's bitmap once it is known.
 *
 * Two levels (rule E2): a page of 64 entries exists only if one of them is used. Small pages, as a
 * guest's file system strews its blocks over the disk. An entry is the sector of the block's bitmap,
 * VHD_BAT_UNUSED, or VHD_BAT_BAD for one that cannot be true.
 *
 * Spec       VHD 1.0, "Block Allocation Table and Data Blocks".
 * Units      places in sectors of 512 bytes; blocks by number.
 * Ownership  vhd_bat_load hands out, vhd_bat_free ends it with all bitmaps.
 * Errors     0 or -errno with a sentence.
 * Threads    get and bitmap: any, no lock (bitmap: inside grace_readers()). Everything else: the
 *            holder of the image's lock.
 */
#pragma once

#include <stdatomic.h>

#include "base/error.h"
#include "base/file.h"
#include "formats/vhd/bitmap.h"
#include "formats/vhd/metadata.h"

#define VHD_BAT_BAD          UINT32_C(0xfffffffe)
#define VHD_BAT_PAGE_ENTRIES 64u

struct vhd_bat;
struct vhd_dirty;

/* Stands for "every sector that the guest can see is present": needs no memory. */
#define VHD_BITMAP_FULL ((struct vhd_bitmap *)1)

/* Reads the table of @metadata's n_blocks entries and checks each entry against the file: inside it,
 * behind all metadata, no two overlapping. What is wrong becomes VHD_BAT_BAD and a bit in
 * *problems, and err (if the result is 0, too) names the first one found. */
int vhd_bat_load(struct file *file, const struct vhd_metadata *metadata, struct vhd_bat **ret,
        uint32_t *problems, struct error *err);
struct vhd_bat *vhd_bat_free(struct vhd_bat *bat); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct vhd_bat *, vhd_bat_free)

uint32_t vhd_bat_get(const struct vhd_bat *bat, uint32_t block);
struct vhd_bitmap *vhd_bat_bitmap(const struct vhd_bat *bat, uint32_t block);

/* Makes sure that setting the entry, bitmap or dirty slot of @block needs no memory later. */
int vhd_bat_reserve(struct vhd_bat *bat, uint32_t block);
/* The same for setting the bitmap alone, of a block that has a place. */
int vhd_bat_reserve_bitmap(struct vhd_bat *bat);
/* After vhd_bat_reserve. The bitmap is published before the entry, so that whoever sees the entry
 * sees the bitmap. */
void vhd_bat_set(struct vhd_bat *bat, uint32_t block, uint32_t place);
void vhd_bat_set_bitmap(struct vhd_bat *bat, uint32_t block, struct vhd_bitmap *bitmap);
/* The block's dirty state, NULL if it has none; the slot to change after vhd_bat_reserve. */
struct vhd_dirty *vhd_bat_dirty(const struct vhd_bat *bat, uint32_t block);
void vhd_bat_set_dirty(struct vhd_bat *bat, uint32_t block, struct vhd_dirty *dirty);

/* Calls @each for every used entry in the order of blocks; stops at a result that is not 0. */
int vhd_bat_each(const struct vhd_bat *bat,
        int (*each)(void *opaque, uint32_t block, uint32_t place), void *opaque);
uint32_t vhd_bat_count(const struct vhd_bat *bat);
/* The first byte behind the last block in the file, at least @floor. */
uint64_t vhd_bat_end(const struct vhd_bat *bat, uint64_t floor, uint64_t block_bytes);
/* Checks all entries again, after a replay changed some. -EUCLEAN with a sentence. */
int vhd_bat_check(const struct vhd_bat *bat, const struct vhd_metadata *metadata,
        uint64_t file_size, struct error *err);
