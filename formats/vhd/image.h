/* SPDX-License-Identifier: Apache-2.0 */
/* image.h - an open dynamic or differencing VHD: what its parts share. Private to formats/vhd.
 *
 *   image.c   opening, closing, and the contract of formats/format.h
 *   space.c   places for new blocks, and the end footer ahead of them (E6, E8)
 *   move.c    holes between the blocks, blocks that go there, and the file's new end
 *   round.c   what is dirty, and how it gets to disk (E3, E5)
 *   replay.c  opening after a process died (E4)
 *   fixed.c   fixed VHDs, which are flat
 *
 * Units      bytes, sectors where a name or comment says so.
 * Ownership  vhd_image is image.c's; parts are initialised and ended by it.
 * Errors     0 or -errno.
 * Threads    lock order: alloc_lock, then extend_lock, then lock; flush_lock is taken alone.
 */
#pragma once

#include <pthread.h>

#include "base/grace.h"
#include "formats/format.h"
#include "formats/redo.h"
#include "formats/vhd/bat.h"
#include "formats/vhd/metadata.h"

/* A block whose entry or bits are not durable yet, or whose place is not (no write completed). */
struct vhd_dirty {
        struct vhd_dirty *next, *prev; /* the image's list */
        uint32_t block;
        uint32_t durable_place;  /* what the durable BAT says */
        uint32_t expected_place; /* whose bitmap the redo file speaks of, since the last (0) */
        bool now;                /* a write completed since the last step (0) */
        bool in_round;           /* copied by the round that is running: */
        uint32_t round_place;    /*   the place that was copied, */
        uint8_t *round_bits;     /*   and its bitmap; NULL for a freed block */
};

/* A place that lost its block: used again after commit and grace (E8). */
struct vhd_freed {
        struct grace_call call;
        struct vhd_freed *next;
        struct vhd_freed *pending_next, *pending_prev; /* from the clear to the end of the grace */
        struct vhd_image *image;
        uint32_t place; /* sectors */
        bool zero;      /* its data was punched */
        bool job;       /* a job freed it, and no guest */
        uint64_t round; /* the first round whose (0) came after the clear */
};

/* Bytes of the file between two blocks, or between a block and metadata, that nobody needs. */
struct vhd_hole {
        uint64_t offset, end;
};

struct vhd_flush_waiter;

struct vhd_image {
        struct image image;
        /* immutable after open */
        struct vhd_metadata metadata;
        struct vhd_bat *bat;
        unsigned block_shift;
        uint32_t bitmap_size;  /* bytes */
        uint64_t block_bytes;  /* bitmap and data */
        uint64_t table_offset; /* of the BAT: rounds do not look at a header that a merge changes */
        uint8_t bat_tail[512]; /* writable: the BAT's last sector, for what in it is not ours */
        struct redo *redo;     /* writable, or with something to replay */
        struct error damage;   /* what is wrong with it, if force opened it */

        pthread_mutex_t lock;
        /* guarded by lock */
        struct vhd_dirty *dirty; /* list of all */
        uint32_t n_dirty;
        bool touched;                  /* something was allocated, written or replayed */
        uint64_t redo_promised;        /* slots that the next round will need */
        uint64_t copies;               /* number of rounds whose (0) was taken */
        struct vhd_freed *freed;       /* wait for their round */
        struct vhd_freed *committed;   /* their grace is to begin */
        struct vhd_freed *pending;     /* those, and whose grace is under way */
        struct vhd_freed *free_places; /* may be used */
        uint32_t n_in_grace;           /* freed places that a grace's call will come for */
        struct vhd_hole *holes;        /* may be used, in the order of the file */
        size_t n_holes, first_hole;    /* those before the first are too small */
        uint32_t n_moves;              /* that have begun */
        uint64_t next_free;            /* first byte behind the last block */
        uint64_t footer_offset;        /* of the durable end footer: blocks must end before it */
        uint64_t zero_from;            /* from here to footer_offset all reads as zeros */
        struct vhd_bitmap **loaded;    /* bitmaps in memory, for the evictor */
        uint64_t bits_gone;            /* how many left memory that the file had others of before */
        uint32_t n_loaded, loaded_capacity, hand;
        bool keeper_runs, keeper_stop, keeper_extend, keeper_flush;
        pthread_cond_t keeper_wakes;
        pthread_t keeper;

        pthread_mutex_t alloc_lock;  /* one allocation at a time */
        pthread_mutex_t extend_lock; /* one move of the footer at a time */

        pthread_mutex_t flush_lock;
        pthread_cond_t flush_done;
        /* guarded by flush_lock */
        bool round_running;
        bool settled; /* no round has anything to do any more */
        uint64_t rounds_begun, rounds_done;
        struct vhd_flush_waiter *waiters;

        _Atomic bool poisoned; /* E5 */
};

static inline struct vhd_image *vhd_of(struct image *image)
{
        return (struct vhd_image *)image;
}

/* --- round.c */

/* Sectors [first, first + count) of @block are in the file: record, then set the bits, then dirty.
 * The block has a place and its bitmap is loaded. The caller holds lock.
 * -ENOBUFS: the redo file is full, a round must come first. */
int vhd_make_present_locked(struct vhd_image *vhd, uint32_t block, uint32_t first, uint32_t count);
/* The block loses its place, which goes to @freed (taken over). The caller holds lock. */
int vhd_make_absent_locked(struct vhd_image *vhd, uint32_t block, struct vhd_freed *freed);
/* The block is where @bitmap says (taken over), which is in the file there as it is in memory; its old
 * place goes to @freed (taken over). The caller holds lock. -ENOBUFS: as above. */
int vhd_make_moved_locked(
        struct vhd_image *vhd, uint32_t block, struct vhd_bitmap *bitmap, struct vhd_freed *freed);
/* From here on the durable entry of @block is remembered beside the one in memory, for a block that
 * is about to get another (an allocation; @now: a replay, whose change is complete already). No
 * record is made. A block that is tracked keeps what is known. The caller holds lock. */
int vhd_track_locked(struct vhd_image *vhd, uint32_t block, uint32_t durable_place, bool now);
/* Before any of this, once, for writing: what bat_tail is for. */
int vhd_bat_tail_load(struct vhd_image *vhd, struct error *err);
/* Everything that was completed before the call is durable when it returns. */
int vhd_flush(struct vhd_image *vhd);
/* The image of which nobody changes anything any more becomes one that is only read. */
int vhd_settle(struct vhd_image *vhd, struct error *err);
/* E5: from now on no metadata is written. */
void vhd_poison(struct vhd_image *vhd);
/* Room in the redo file for @n more changes of blocks that are not dirty yet? Holds lock. */
bool vhd_redo_has_room_locked(const struct vhd_image *vhd, uint64_t n);
void vhd_dirty_free_all(struct vhd_image *vhd);

/* --- space.c */

/* Gives @block a place and an empty bitmap, in memory. *ret_zero: its data reads as zeros. */
int vhd_allocate(struct vhd_image *vhd, uint32_t block, bool *ret_zero);
/* A place for a block, behind the last one or freed before, and what of it has to be zeros and is not.
 * The caller holds alloc_lock. */
int vhd_place_new(struct vhd_image *vhd, bool only_behind, uint32_t *ret, bool *ret_zero);
int vhd_place_prepare(struct vhd_image *vhd, uint32_t place, bool zero);
/* A place that was taken and is not used after all. */
void vhd_place_give_back(struct vhd_image *vhd, uint32_t place);
/* The first place at or behind @offset: data on 4 KiB, the bitmap right before it. */
uint64_t vhd_place_at(const struct vhd_image *vhd, uint64_t offset);
/* Writes the end footer at @low, syncs, and ends the file behind it. */
int vhd_footer_to(struct vhd_image *vhd, uint64_t low, struct error *err);
void vhd_pending_add_locked(struct vhd_image *vhd, struct vhd_freed *freed);
void vhd_pending_remove_locked(struct vhd_image *vhd, struct vhd_freed *freed);
/* Moves the footer out by what a busy guest may ask for at once. */
int vhd_make_room(struct vhd_image *vhd);
/* The freed places for which round @n was the one: ready for their grace. The caller holds lock. */
void vhd_freed_committed_locked(struct vhd_image *vhd, uint64_t n);
/* Begins it, without the lock: a call that is due at once takes the lock itself. */
void vhd_freed_begin_grace(struct vhd_image *vhd);
/* The end footer at its lowest place, and the file's end behind it. @readers: others may still read
 * in places that were freed, so it stays behind every place that was ever given out. */
int vhd_lower_footer(struct vhd_image *vhd, bool readers, struct error *err);
void vhd_space_free_all(struct vhd_image *vhd);
/* How many freed places a call that was put off will still come for. */
uint32_t vhd_n_in_grace(struct vhd_image *vhd);
void vhd_keeper_stop(struct vhd_image *vhd);
void vhd_keeper_kick_locked(struct vhd_image *vhd, bool extend, bool flush);

/* --- move.c: as the members of struct format of the same names. */

uint64_t vhd_place(const struct image *image, uint64_t offset);
int vhd_release(struct image *image, uint64_t offset);
int vhd_find_holes(struct image *image);
int vhd_move_begin(
        struct image *image, uint64_t offset, uint64_t behind, struct block_move *ret);
int vhd_move_end(struct image *image, const struct block_move *move, bool copied);
int vhd_reclaim(struct image *image, bool shrink, struct error *err);
/* A place out of a hole, for a new block. false: there is none. The caller holds lock. */
bool vhd_hole_take_locked(struct vhd_image *vhd, uint32_t *ret);

/* --- image.c */

/* 0, or why nothing can be changed: -EROFS, -EIO (E5). */
int vhd_may_change(const struct vhd_image *vhd);
/* The bitmap that the file has at @place: bitmap_size bytes. */
int vhd_bitmap_read(struct vhd_image *vhd, uint32_t place, void *ret, unsigned flags);
/* The block is at @bitmap's place from now on; its old bitmap ends. The caller holds lock; room was
 * reserved (vhd_bat_reserve, vhd_loaded_reserve_locked). */
void vhd_bitmap_swap_locked(struct vhd_image *vhd, uint32_t block, struct vhd_bitmap *bitmap);

/* The loaded bitmap of @block (or VHD_BITMAP_FULL) at @place; reads it if need be. */
int vhd_bitmap_load(struct vhd_image *vhd, uint32_t block, uint32_t place, unsigned flags);
/* The same with the lock held, and never as VHD_BITMAP_FULL: its bits are about to change. */
int vhd_bitmap_load_words_locked(struct vhd_image *vhd, uint32_t block, uint32_t place);
/* Remembers a bitmap for the evictor. The caller holds lock; room was reserved. */
int vhd_loaded_reserve_locked(struct vhd_image *vhd);
void vhd_loaded_add_locked(struct vhd_image *vhd, struct vhd_bitmap *bitmap);
/* Takes the block's bitmap out of view and ends it. The caller holds lock. */
void vhd_bitmap_drop_locked(struct vhd_image *vhd, uint32_t block, struct vhd_bitmap *instead);
/* How many sectors of @block the guest can see. */
uint32_t vhd_visible_sectors(const struct vhd_image *vhd, uint32_t block);

/* What ties a redo file to this content of the image. */
struct redo_ident vhd_redo_ident(const struct vhd_metadata *metadata);

/* May an image with these problems be opened for writing? -EROFS with a sentence if not. */
int vhd_check_writable(
        struct file *file, const struct vhd_metadata *metadata, unsigned flags, struct error *err);

/* --- fixed.c */

/* A footer of 511 bytes becomes one of 512, as the first thing that is written (or nothing). */
int vhd_renew_old_footer(struct file *file, const struct vhd_metadata *metadata, struct error *err);

/* A fixed VHD is flat: its data, then the footer. */
int vhd_open_fixed(struct file *file, const struct vhd_metadata *metadata, unsigned flags,
        struct image **ret, struct error *err);

/* --- replay.c */

/* What a dead process left, into memory; *problem is a sentence if it cannot be. */
int vhd_replay(struct vhd_image *vhd, bool writable, struct error *err);
