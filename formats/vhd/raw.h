/* SPDX-License-Identifier: Apache-2.0 */
/* raw.h - the structures of a VHD as their bytes lie on disk, big-endian.
 *
 * Spec: VHD Image Format Specification 1.0, "Hard Disk Footer Format", "Dynamic Disk Header
 * Format"; the batmap is tapdisk's own. Bytes are copied into these, never pointed at.
 *
 * Threads    types only.
 */
#pragma once

#include <assert.h>
#include <stddef.h>

#include "base/bytes.h"

#define VHD_COOKIE "conectix"
#define VHD_HEADER_COOKIE "cxsparse"
#define VHD_BATMAP_COOKIE "tdbatmap"
#define VHD_POISON_COOKIE "v_poison" /* blktap: a resize is running or was cut off */

#define VHD_FOOTER_SIZE 512u
#define VHD_OLD_FOOTER_SIZE 511u /* before Virtual PC 2004 */
#define VHD_HEADER_SIZE 1024u
#define VHD_N_LOCATORS 8u
#define VHD_BAT_UNUSED UINT32_C(0xffffffff)
#define VHD_EPOCH INT64_C(946684800) /* 2000-01-01 00:00:00 UTC, in seconds since 1970 */

enum vhd_type {
        VHD_TYPE_NONE = 0,
        VHD_TYPE_FIXED = 2,
        VHD_TYPE_DYNAMIC = 3,
        VHD_TYPE_DIFFERENCING = 4,
};

/* Our mark of an image in the middle of a merge (E12). Whoever knows tapdisk's flag sees it set; that
 * it is not 1 tells it from an inner node of one of tapdisk's trees. */
#define VHD_HIDDEN_MERGE 2

struct vhd_raw_footer {
        char cookie[8];
        be32 features;
        be32 format_version;
        be64 data_offset; /* bytes, to the dynamic header; all ones on a fixed disk */
        be32 timestamp;   /* seconds since VHD_EPOCH */
        char creator_app[4];
        be32 creator_version;
        char creator_os[4];
        be64 original_size; /* bytes */
        be64 current_size;  /* bytes */
        be16 cylinders;
        uint8_t heads;
        uint8_t sectors_per_track;
        be32 type;
        be32 checksum; /* ones' complement of the sum of all other bytes */
        uint8_t unique_id[16];
        uint8_t saved_state;
        uint8_t hidden; /* tapdisk's; 0 elsewhere; VHD_HIDDEN_MERGE is ours */
        uint8_t reserved[426];
};
static_assert(sizeof(struct vhd_raw_footer) == VHD_FOOTER_SIZE, "the footer is one sector");
static_assert(offsetof(struct vhd_raw_footer, checksum) == 64, "fields stand where the spec says");
static_assert(offsetof(struct vhd_raw_footer, hidden) == 85, "tapdisk's flag is byte 85");

struct vhd_raw_locator {
        char code[4];
        be32 data_space;  /* bytes (sectors if below 512) */
        be32 data_length; /* bytes */
        be32 reserved;
        be64 data_offset; /* bytes */
};
static_assert(sizeof(struct vhd_raw_locator) == 24, "a locator entry is 24 bytes");

struct vhd_raw_header {
        char cookie[8];
        be64 data_offset;  /* all ones */
        be64 table_offset; /* bytes, to the BAT */
        be32 header_version;
        be32 max_table_entries;
        be32 block_size; /* bytes of data, without the bitmap */
        be32 checksum;
        uint8_t parent_id[16];
        be32 parent_timestamp;
        be32 reserved_1;
        uint8_t parent_name[512]; /* UTF-16BE */
        struct vhd_raw_locator locators[VHD_N_LOCATORS];
        uint8_t reserved_2[256];
};
static_assert(sizeof(struct vhd_raw_header) == VHD_HEADER_SIZE, "the header is two sectors");
static_assert(offsetof(struct vhd_raw_header, locators) == 576, "fields stand where the spec says");

struct vhd_raw_batmap {
        char cookie[8];
        be64 map_offset;   /* bytes */
        be32 map_sectors;
        be32 version;
        be32 checksum; /* of the map, not of this sector */
        uint8_t marker;
        uint8_t key_flag, key_nonce[32], key_sha256[32];
        uint8_t reserved[418];
};
static_assert(sizeof(struct vhd_raw_batmap) == 512, "the batmap header is one sector");
