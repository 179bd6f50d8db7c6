/* SPDX-License-Identifier: Apache-2.0 */
/* check_internal.h - what the parts of checking and mending share.
 *
 *   check.c         the order of things; footers
 *   check_header.c  dynamic header, locators, batmap
 *   check_blocks.c  BAT entries and sector bitmaps
 *   repair.c        mending
 *
 * Ownership  struct checker is the caller's; vhd_blocks_done() ends a struct vhd_blocks.
 * Threads    none.
 */
#pragma once

#include "formats/vhd/check.h"
#include "formats/vhd/metadata.h"

struct checker {
        struct file *file;
        unsigned flags;
        vhd_report report;
        void *opaque;
        struct vhd_check_result result;
        bool may_mend;        /* it is settled which footer is right */
        bool blocks_are_lost; /* and are to be given up before the file may be made longer */
        bool batmap_is_wrong;
        const char *last_id; /* how often the same id came in a row */
        unsigned n_same;
};

/* Reports. @hyperv may be 0. Nothing is repairable as long as may_mend is not set. */
void check_found(struct checker *checker, enum vhd_severity severity, const char *id,
        uint64_t offset, uint32_t hyperv, bool repairable, const char *format, ...)
        __attribute__((format(printf, 7, 8)));
/* "and N more": before another id, and at the end. */
void check_flush(struct checker *checker);

/* What repair does with the two footers. */
enum footer_plan {
        FOOTERS_KEEP,      /* nothing to do, or nothing that may be done */
        FOOTERS_FROM_TAIL, /* the tail is right */
        FOOTERS_FROM_HEAD,
        FOOTERS_BELIEVE_TAIL, /* by force: in spite of its checksum */
        FOOTERS_BELIEVE_HEAD,
};
/* The one place that decides it, so that check promises what repair does. */
enum footer_plan check_footer_plan(
        const struct vhd_footer_copy *head, const struct vhd_footer_copy *tail, unsigned flags);
/* Are both ends the same, as they should be? (A fixed disk has only one.) */
bool check_footers_agree(const struct vhd_footer_copy *head, const struct vhd_footer_copy *tail);
/* Does the geometry promise more sectors than the disk has? */
bool check_geometry_is_larger(const struct vhd_footer *footer);

/* What a dead process left in memory for this image. */
enum check_left {
        LEFT_NOTHING,
        LEFT_RECORDS, /* answered writes that the next writer replays */
        LEFT_POISON,  /* a sync failed */
        LEFT_FOREIGN, /* records for another content of the file */
};
int check_what_is_left(struct file *file, const struct vhd_metadata *metadata, enum check_left *ret,
        struct error *err);

/* May the poison go from an image that was found whole? */
bool check_may_lift(const struct vhd_metadata *metadata, unsigned flags);

int check_header(struct checker *checker, const struct vhd_metadata *metadata, struct error *err);
/* tapdisk's map: its checksum. 1 right, 0 wrong. */
int check_batmap_sum(struct file *file, const struct vhd_metadata *metadata, struct error *err);

enum block_state {
        BLOCK_GOOD,
        BLOCK_OUTSIDE, /* begins behind the end */
        BLOCK_IN_METADATA,
        BLOCK_OVERLAPS, /* lies over a block with a lower place, or at the same one */
        BLOCK_CUT_OFF,  /* the file ends inside it */
};

struct vhd_block {
        uint32_t block, place; /* number; sector of the bitmap */
        enum block_state state;
        uint32_t other;   /* BLOCK_OVERLAPS: the block that it lies over */
        const char *what; /* BLOCK_IN_METADATA */
};

/* All used BAT entries in the order of the file. */
struct vhd_blocks {
        struct vhd_block *all;
        size_t n;
        uint64_t end;      /* behind the last byte that a good or cut-off block takes */
        uint32_t n_beyond; /* used entries behind those that the size needs */
        size_t n_outside;  /* BLOCK_OUTSIDE */
};

int check_blocks_scan(struct file *file, const struct vhd_metadata *metadata,
        struct vhd_blocks *ret, struct error *err);
void check_blocks_done(struct vhd_blocks *blocks);
/* A file that lost its end may have lost blocks with it. Making it longer would turn some of their
 * entries into blocks of zeros; so that waits until they are given up. */
bool check_blocks_allow_repair(
        const struct vhd_metadata *metadata, const struct vhd_blocks *blocks, unsigned flags);
/* Must the footer at the end move, or come anew? */
bool check_tail_must_move(const struct vhd_metadata *metadata, uint64_t blocks_end);
/* Where blocks must end: before the tail footer, if there is anything like one. */
uint64_t check_blocks_limit(const struct vhd_metadata *metadata);

int check_blocks(struct checker *checker, const struct vhd_metadata *metadata,
        const struct vhd_blocks *blocks, struct error *err);
