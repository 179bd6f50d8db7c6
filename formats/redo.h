/* SPDX-License-Identifier: Apache-2.0 */
/* redo.h - what a process's death must not take: answered writes whose metadata is not in the file
 * yet (rule E4).
 *
 * One region (base/file.h) for each image that is open for writing, found by the image's device and
 * inode. It holds a ring of records. A record is whole, with its checksum, before the change that
 * it speaks of can be seen by another request. A round marks the ring at its step (0) and drops,
 * at its end, what lies before the mark. Records of kind REDO_EXPECT say what a metadata sector
 * held, or was being given: an image that matches none of them was changed by somebody else, and is
 * not replayed.
 *
 * Units      sectors of 512 bytes for places and ranges.
 * Ownership  redo_open hands out, redo_close ends.
 * Errors     as the functions say; appending fails only when the ring is full (-ENOBUFS).
 * Threads    redo_poison from any thread. Everything else: the caller's lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

struct redo;

enum redo_kind {
        REDO_MOVE = 0,   /* the block is at `place` now, with the bits that are there in the file; voids
                            its records before */
        REDO_BITS = 1,   /* sectors of a block became present; place: where the block is */
        REDO_FREE = 2,   /* the block lost its place; voids its records before */
        REDO_EXPECT = 3, /* metadata sector `place` of the file may be found with this hash */
};

struct redo_record {
        enum redo_kind kind;
        uint32_t block;
        uint32_t place;        /* sector of the block's bitmap; REDO_EXPECT: the metadata sector */
        uint32_t first, count; /* REDO_BITS: sectors within the block */
        uint64_t hash;         /* REDO_EXPECT: redo_hash() of the 512 bytes */
};

/* What ties a region to one image, beside device and inode. */
struct redo_ident {
        uint8_t image_id[16];
        uint64_t
                metadata_hash; /* of the head's footer and the header: they do not change while open */
        uint32_t block_size;
};

enum redo_found {
        REDO_NONE,     /* the last one closed cleanly, or a power cut took the region */
        REDO_REPLAY,   /* a process died; its records are there */
        REDO_POISONED, /* a sync failed (rule E5): open read-only */
        REDO_FOREIGN,  /* records that belong to another content of this file: open read-only */
};

/* Looks for the image's region. @writable: one is made where there is none (REDO_NONE) and *ret is
 * it; an existing one is taken over with its records. Read-only: *ret is NULL with REDO_NONE. */
int redo_open(struct file *file, const struct redo_ident *ident, bool writable, struct redo **ret,
        enum redo_found *found, struct error *err);
/* Whatever there is of this boot for @file, to be poisoned; *ret is NULL if there is nothing. */
int redo_find(struct file *file, struct redo **ret, struct error *err);
/* The image's head is about to become another (E13): until redo_ident_only() the file belongs to an
 * image with the head that it has @now and to one with that which it has @soon. */
void redo_ident_also(
        struct redo *redo, const struct redo_ident *now, const struct redo_ident *soon);
void redo_ident_only(struct redo *redo, const struct redo_ident *ident);
/* A ring in plain memory, for an image that is thrown away at the end. */
int redo_open_volatile(struct redo **ret, struct error *err);
/* Ends it. @remove: a clean close, nothing is left to replay. NULL is fine. */
struct redo *redo_close(struct redo *redo, bool remove);

/* Removes the region of @file, whatever it says: what `check` does for an image it found whole. */
int redo_forget(struct file *file, struct error *err);

/* Calls @each for every record, oldest first; stops at the first result that is not 0. */
int redo_each(struct redo *redo, int (*each)(void *opaque, const struct redo_record *record),
        void *opaque);

uint64_t redo_free_slots(const struct redo *redo);
uint64_t redo_total_slots(const struct redo *redo);
int redo_append(struct redo *redo, const struct redo_record *record); /* -ENOBUFS: full */

/* The place behind the newest record; redo_drop forgets all records before a mark. */
uint64_t redo_mark(const struct redo *redo);
void redo_drop(struct redo *redo, uint64_t mark);

void redo_poison(struct redo *redo);

uint64_t redo_hash(const void *sector);
