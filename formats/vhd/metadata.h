/* SPDX-License-Identifier: Apache-2.0 */
/* metadata.h - what the footers, the header and the locators of a VHD say, checked.
 *
 * vhd_metadata_read() is the only door from an unknown file to trusted numbers: whatever it answers
 * with 0 has been checked against the file's real size, so users need not check again. The BAT and
 * the bitmaps are not read here (formats/vhd/bat.h, formats/vhd/image.c).
 *
 * Spec       VHD 1.0; what other writers do: docs/vhd-quirks.md.
 * Units      bytes, unless a name says _sectors (512) or _blocks.
 * Ownership  plain values; nothing allocated.
 * Errors     -EUCLEAN: bytes contradict the spec. -ENOTSUP: legal, not ours. -ENOMEDIUM: not a VHD
 *            at all (no footer anywhere). Or the errno of a read. err names field, value, offset.
 * Threads    pure functions but for the reads.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "base/file.h"
#include "formats/vhd/raw.h"

#define VHD_MAX_SIZE (UINT64_C(2040) << 30)    /* what we make; a larger fixed disk is read */
#define VHD_MIN_BLOCK_SIZE UINT32_C(512)
#define VHD_MAX_BLOCK_SIZE (UINT32_C(256) << 20)
#define VHD_MAX_BLOCKS UINT32_C(4177920)       /* 2040 GiB in 512 KiB blocks: what create makes */
#define VHD_MAX_LOCATOR_LENGTH 65536u
#define VHD_NAME_MAX 1537u                     /* 256 UTF-16 units as UTF-8, and the NUL */

struct vhd_footer {
        uint32_t features, format_version;
        uint64_t data_offset;
        uint32_t timestamp;
        char creator_app[5]; /* with a NUL behind; bytes below blank stay as they are */
        uint32_t creator_version;
        char creator_os[5];
        uint64_t original_size, current_size;
        uint32_t cylinders, heads, sectors_per_track;
        enum vhd_type type;
        uint32_t checksum;
        uint8_t unique_id[16];
        bool saved_state;
        bool hidden;
        bool merging; /* hidden, by us: in the middle of a merge (E12) */
        struct vhd_raw_footer raw; /* for encoding again: unknown bytes are kept */
};

struct vhd_locator {
        char code[5];
        uint64_t data_offset;
        uint32_t data_space;  /* bytes, whatever the file counts in */
        uint32_t data_length; /* bytes */
};

struct vhd_header {
        uint64_t table_offset;
        uint32_t max_table_entries;
        uint32_t block_size;
        uint32_t checksum;
        uint8_t parent_id[16];
        uint32_t parent_timestamp;
        char parent_name[VHD_NAME_MAX]; /* UTF-8; "" if there is none or it is not UTF-16 */
        struct vhd_locator locators[VHD_N_LOCATORS];
        struct vhd_raw_header raw;
};

/* What is wrong or odd, and yet leaves the image readable. */
enum vhd_problem {
        VHD_PROBLEM_NO_TAIL = 1u << 0,         /* no valid footer at the end: the head's copy is used */
        VHD_PROBLEM_NO_HEAD = 1u << 1,         /* no valid copy at the head (dynamic, differencing) */
        VHD_PROBLEM_FOOTERS_DIFFER = 1u << 2,  /* both valid, not the same bytes: the tail is used */
        VHD_PROBLEM_OLD_FOOTER = 1u << 3,      /* 511 bytes */
        VHD_PROBLEM_TAPDISK_OPEN = 1u << 4,    /* 512 bytes of 0xC7 where the tail belongs */
        VHD_PROBLEM_FOOTER_CHECKSUM = 1u << 5, /* wrong, and read all the same: only with force */
        VHD_PROBLEM_HEADER_CHECKSUM = 1u << 6, /* the same */
        VHD_PROBLEM_BAT_SHORT = 1u << 7,       /* fewer entries than the size needs */
        VHD_PROBLEM_TRUNCATED = 1u << 8,       /* the file ends inside the last block (set by the BAT) */
        VHD_PROBLEM_BAD_BLOCKS = 1u << 9,      /* entries past the end, in metadata, overlapping */
        VHD_PROBLEM_SAVED_STATE = 1u << 10,    /* belongs to a saved vm */
        VHD_PROBLEM_HIDDEN_CHECKSUM = 1u << 11,/* early tapdisk: the sum is right with hidden = 0 */
        VHD_PROBLEM_BATMAP = 1u << 12,         /* tapdisk promises a batmap, and it makes no sense */
        VHD_PROBLEM_BAD_LOCATOR = 1u << 13,    /* a locator outside the file, over other metadata, or
                                                  too long: an error without force */
};
/* Damage: nobody but info, tree and check opens the image without force. vhd_metadata_read() itself
 * refuses those that it finds, but for BAT_SHORT, which does no harm to info. */
#define VHD_PROBLEMS_REFUSED                                                                       \
        (VHD_PROBLEM_NO_TAIL | VHD_PROBLEM_TAPDISK_OPEN | VHD_PROBLEM_FOOTER_CHECKSUM |            \
         VHD_PROBLEM_HEADER_CHECKSUM | VHD_PROBLEM_BAT_SHORT | VHD_PROBLEM_TRUNCATED |             \
         VHD_PROBLEM_BAD_BLOCKS | VHD_PROBLEM_BAD_LOCATOR)
/* Those that let nobody open the image for writing. */
#define VHD_PROBLEMS_READ_ONLY                                                                     \
        (VHD_PROBLEM_NO_TAIL | VHD_PROBLEM_NO_HEAD | VHD_PROBLEM_FOOTERS_DIFFER |                  \
         VHD_PROBLEM_TAPDISK_OPEN | VHD_PROBLEM_FOOTER_CHECKSUM | VHD_PROBLEM_HEADER_CHECKSUM |    \
         VHD_PROBLEM_BAT_SHORT | VHD_PROBLEM_TRUNCATED | VHD_PROBLEM_BAD_BLOCKS |                  \
         VHD_PROBLEM_SAVED_STATE | VHD_PROBLEM_HIDDEN_CHECKSUM | VHD_PROBLEM_BATMAP |              \
         VHD_PROBLEM_BAD_LOCATOR)
/* What one problem (one bit) means, as the end of a sentence that begins with the file's name. */
const char *vhd_problem_to_string(enum vhd_problem problem);

struct vhd_metadata {
        struct vhd_footer footer;    /* the one that is believed */
        struct vhd_header header;    /* dynamic and differencing only */
        uint64_t file_size;
        uint64_t tail_offset;        /* where the tail footer lies, or would: behind everything */
        uint32_t tail_size;          /* 512 or 511; 0: there is none, not even a bad one */
        uint32_t problems;           /* enum vhd_problem */
        uint32_t n_blocks;           /* entries that the size needs */
        uint32_t bitmap_size;        /* bytes before each block's data, whole sectors */
        uint64_t metadata_end;       /* the first byte behind head, header, BAT, batmap, locators and
                                        the space kept for their texts: no new block goes below */
        uint64_t batmap_offset;      /* of tapdisk's batmap header, or 0 */
        struct vhd_raw_batmap batmap;
        bool encrypted;              /* tapdisk: the batmap holds a key's hash */
};

enum vhd_read_flags {
        VHD_READ_FORCE = 1u << 0,    /* a lost tail and wrong checksums are problems, not errors */
        VHD_READ_USE_HEAD = 1u << 1, /* believe the head's copy (never of a fixed disk) */
};

/* Reads and checks everything but the BAT.
 * Without flags only a valid tail footer makes a VHD: a guest can write a whole VHD head into its
 * fixed disk, so a file that lost its tail is an error that says what the copy at the head claims.
 * With FORCE the copy at the head of a dynamic or differencing image is believed then
 * (VHD_PROBLEM_NO_TAIL), unless what is left of the tail says that the disk is fixed.
 * -ENOMEDIUM if there is no cookie at either end, -EUCLEAN with the sums if there was one. */
int vhd_metadata_read(struct file *file, unsigned flags, struct vhd_metadata *ret,
                      struct error *err);

/* One of the two places where a footer can be. */
struct vhd_footer_copy {
        uint64_t offset;
        uint32_t size;              /* 512 or 511; 0: the file is too short */
        bool has_cookie;            /* it was a footer once, valid or not (also `v_poison`) */
        bool has_tapdisk_mark;      /* 0xC7 all over: tapdisk has the file open, or crashed */
        int result;                 /* of vhd_footer_decode() without flags: 0: valid */
        uint32_t problems;          /* if valid */
        struct vhd_footer footer;   /* if valid; its raw bytes in any case */
        struct error error;         /* if not */
};
/* What is at both ends, judged by nobody. Fails only if the file cannot be read. */
int vhd_footers_read(struct file *file, struct vhd_footer_copy *ret_head,
                     struct vhd_footer_copy *ret_tail, struct error *err);

/* The places in the file that metadata takes, for the overlap check of BAT entries. */
struct vhd_range {
        uint64_t offset, length;
        const char *what; /* "BAT", ...: a string constant */
};
#define VHD_MAX_RANGES (5 + VHD_N_LOCATORS)
/* How many there are; none of a fixed disk. Of a locator only the text counts, not its slot. */
size_t vhd_metadata_ranges(const struct vhd_metadata *metadata,
                           struct vhd_range ret[VHD_MAX_RANGES]);
/* What of it a block there would lie over ("BAT", ...), or NULL. Blocks may well lie below
 * metadata_end: nobody says that locators stand before them. The range does not wrap. */
const char *vhd_metadata_at(const struct vhd_metadata *metadata, uint64_t offset, uint64_t length);

/* Text of locator @index: UTF-8, backslashes as they are, at most VHD_MAX_LOCATOR_LENGTH bytes of
 * file. -ENOENT if the slot is free or its code unknown, -EUCLEAN if the text is no text. */
int vhd_locator_read(struct file *file, const struct vhd_header *header, unsigned index,
                     char *text, size_t text_size, struct error *err);

/* Decoding checks checksum, cookie, version, type; it never reads a file. */
int vhd_footer_decode(const struct vhd_raw_footer *raw, unsigned flags, struct vhd_footer *ret,
                      uint32_t *problems, struct error *err);
int vhd_header_decode(const struct vhd_raw_header *raw, unsigned flags, struct vhd_header *ret,
                      uint32_t *problems, struct error *err);
/* The named fields into the raw bytes they came with, and a fresh checksum. */
void vhd_footer_encode(const struct vhd_footer *footer, struct vhd_raw_footer *ret);
void vhd_header_encode(const struct vhd_header *header, struct vhd_raw_header *ret);

uint32_t vhd_footer_checksum(const struct vhd_raw_footer *raw);
uint32_t vhd_header_checksum(const struct vhd_raw_header *raw);
/* Bytes of sector bitmap before a block's data: one bit a sector, rounded up to whole sectors. */
uint32_t vhd_bitmap_size(uint32_t block_size);
const char *vhd_type_to_string(enum vhd_type type);

struct vhd_geometry {
        uint32_t cylinders, heads, sectors_per_track;
};
/* Spec: "CHS calculation"; never more than the size holds. */
struct vhd_geometry vhd_geometry_of(uint64_t size);

/* VHD time is seconds since 2000, unsigned; unix seconds outside its range are clamped. */
uint32_t vhd_time_from_unix(int64_t seconds);
int64_t vhd_time_to_unix(uint32_t timestamp);
