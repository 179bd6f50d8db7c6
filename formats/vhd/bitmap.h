/* SPDX-License-Identifier: Apache-2.0 */
/* bitmap.h - the sector bitmap of one block, in memory.
 *
 * Bits stand as on disk: the most significant bit of each byte first. Readers look without a lock;
 * the holder of the image's lock sets bits, never clears any (rule E9).
 *
 * Spec       VHD 1.0, "Block Allocation Table and Data Blocks".
 * Units      sectors of 512 bytes within the block.
 * Ownership  vhd_bitmap_new hands out; vhd_bitmap_retire ends it once no reader can see it.
 * Errors     NULL without memory.
 * Threads    run and all_set: any; set: the holder of the image's lock.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/grace.h"

struct vhd_bitmap {
        struct grace_call call; /* for its end */
        uint32_t place;         /* of the block that these bits speak of, in sectors */
        uint32_t block;
        uint32_t index;           /* in the image's list of what is loaded */
        uint32_t size;            /* bytes, as on disk */
        _Atomic bool used;        /* since the last look of the evictor */
        bool changed;             /* since it was read; guarded by the image's lock */
        _Atomic uint64_t words[]; /* bytes in the order of the file */
};

/* All bits clear; @size bytes, a multiple of 512. */
struct vhd_bitmap *vhd_bitmap_new(uint32_t block, uint32_t place, uint32_t size);
/* Frees it when nobody can still be looking. Take it out of the table first. */
void vhd_bitmap_retire(struct vhd_bitmap *bitmap, struct grace *grace);
void vhd_bitmap_free(struct vhd_bitmap *bitmap);

/* How many sectors from @first on, at most @count, are alike; *present: in which way. */
uint32_t vhd_bitmap_run(
        const struct vhd_bitmap *bitmap, uint32_t first, uint32_t count, bool *present);
bool vhd_bitmap_all_set(const struct vhd_bitmap *bitmap, uint32_t first, uint32_t count);
bool vhd_bitmap_none_set(const struct vhd_bitmap *bitmap, uint32_t count);
void vhd_bitmap_set(struct vhd_bitmap *bitmap, uint32_t first, uint32_t count);
void vhd_bitmap_copy_out(const struct vhd_bitmap *bitmap, void *ret); /* @size bytes */
void vhd_bitmap_copy_in(struct vhd_bitmap *bitmap, const void *data);
