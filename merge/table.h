/* SPDX-License-Identifier: Apache-2.0 */
/* table.h - the metadata of a dynamic or differencing VHD for another size: which range of the file a
 * longer BAT and what stands behind it take, and all changes as one intent. Private to merge/resize.c.
 *
 * tapdisk's batmap stands right behind the BAT, and goes with its end; texts of locators that a longer
 * BAT comes to lie over go behind both.
 *
 * Units      bytes.
 * Ownership  a plan is a plain value.
 * Errors     0 or -errno with a sentence.
 * Threads    none but the caller's.
 */
#pragma once

#include "base/error.h"
#include "formats/vhd/metadata.h"

struct table_plan {
        uint64_t size;                  /* of the disk */
        uint32_t n_entries, n_blocks;   /* then */
        uint64_t clear_from, clear_end; /* entries that become "unused": from here to there */
        uint64_t old_end;               /* of the BAT now; whole sectors */
        uint64_t end;                   /* of all that stands there then; old_end if it is not longer */
        uint64_t batmap_offset;         /* then; 0: there is none */
        uint32_t batmap_map_sectors;
        uint64_t locators[VHD_N_LOCATORS]; /* then; 0: where it is now */
};

int table_plan(const struct vhd_metadata *metadata, uint64_t size, struct table_plan *ret,
        struct error *err);
/* Changes @file, which the caller has open for writing and locked, and which is as @metadata says.
 * [old_end, end) is nobody's but for what the plan moves. */
int table_change(struct file *file, const struct vhd_metadata *metadata,
        const struct table_plan *plan, struct error *err);
/* The footer for a disk of another size: current size, geometry and sum. */
void table_footer(const struct vhd_metadata *metadata, uint64_t size, struct vhd_raw_footer *ret);
