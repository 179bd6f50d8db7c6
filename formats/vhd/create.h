/* SPDX-License-Identifier: Apache-2.0 */
/* create.h - making new VHDs: fixed, dynamic, differencing. Creator `win `, see docs/vhd-quirks.md.
 *
 * Units      bytes.
 * Ownership  the caller's file, open for writing and empty.
 * Errors     -EINVAL with the number that is too large or odd; the errno of a write.
 *            On failure the file's content is undefined; removing it is the caller's part.
 * Threads    pure functions but for the writes.
 */
#pragma once

#include "formats/vhd/metadata.h"

struct vhd_create_params {
        enum vhd_type type;
        uint64_t size;           /* whole sectors; at most VHD_MAX_SIZE (2032 GiB with 512K blocks) */
        uint32_t block_size;     /* dynamic, differencing: a power of two; 0: 2 MiB */
        bool sparse;             /* fixed: leave holes instead of taking all the space */
        uint8_t unique_id[16];   /* all zeros: a new random one (UUIDv4) */
        int64_t now;             /* unix seconds; 0: fs_now() */
        /* differencing */
        uint8_t parent_id[16];
        uint32_t parent_timestamp;     /* the parent file's mtime, VHD time */
        const char *parent_name;       /* base name, UTF-8 */
        const char *parent_relative;   /* for W2ru, with '/' or '\': ".\" is put in front if needed */
        const char *parent_absolute;   /* for W2ku, a unix path; NULL: none */
};

/* The most bytes that a new disk of this block size (0: fixed) may have, in whole GiB: 2040 GiB, less
 * where the BAT's 32-bit sector numbers end sooner (each block's data starts on 4 KiB). */
uint64_t vhd_max_size(uint32_t block_size);

/* Writes all of the image's metadata and syncs the file: after success a whole, valid, empty image
 * is durable (its directory entry is the caller's to sync). */
int vhd_create(struct file *file, const struct vhd_create_params *params, struct error *err);

/* Fills the parent_ fields' bytes of a header (name, id, time, locator slots of at least 1024 bytes)
 * and its checksum. The slots stand one behind the other from @locators_offset (a sector's start) on;
 * @blob gets what goes there and *ret_used how much of it: whole sectors, texts and zeros.
 *   -EINVAL  a name or path that is no UTF-8 or too long, or @blob is too small */
int vhd_encode_parent(struct vhd_raw_header *header, const struct vhd_create_params *params,
                      uint64_t locators_offset, uint8_t *blob, size_t blob_size, size_t *ret_used,
                      struct error *err);
