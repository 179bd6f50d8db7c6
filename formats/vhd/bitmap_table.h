/* SPDX-License-Identifier: Apache-2.0 */
/* bitmap_table.h - the bitmaps of an image that are in memory, found by block.
 *
 * Open addressing. Readers probe without a lock, inside grace_readers(); a table that became too
 * small, or full of graves, is replaced and ended once nobody looks at it.
 *
 * Units      blocks by number.
 * Ownership  the table owns no bitmap.
 * Errors     -ENOMEM, and only from new and reserve.
 * Threads    get: any. Everything else: the holder of the image's lock.
 */
#pragma once

#include "formats/vhd/bitmap.h"

struct bitmap_table;

struct bitmap_table *bitmap_table_new(void); /* NULL without memory */
struct bitmap_table *bitmap_table_free(struct bitmap_table *table);

struct vhd_bitmap *bitmap_table_get(const struct bitmap_table *table, uint32_t block);
int bitmap_table_reserve(struct bitmap_table *table); /* room for one more */
void bitmap_table_add(struct bitmap_table *table, struct vhd_bitmap *bitmap);
void bitmap_table_remove(struct bitmap_table *table, uint32_t block); /* absent is fine */
