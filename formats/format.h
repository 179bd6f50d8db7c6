/* SPDX-License-Identifier: Apache-2.0 */
/* format.h - the one contract that an image format implements (rule E1: formats map, they do not
 * copy). A driver tells where bytes lie and takes part in flush rounds; who moves the bytes is the
 * caller's choice. Formats know nothing of chains, sockets or threads' pools.
 *
 * Units      bytes; offsets on the guest's disk are called `offset`, in the file `file_offset`.
 * Ownership  image_open hands out, image_close (clean) or image_abandon ends. The file goes with it.
 * Errors     0 or -errno, with a sentence where there is an err.
 *            -EAGAIN: only with MAP_NOWAIT, the answer needs I/O.
 *            -EROFS: the image is not open for writing. -EIO: a block that damage made unreadable
 *            (force), or a poisoned image (rule E5). -ENOSPC.
 * Threads    map, prepare, complete, flush may be called from many threads at once. prepare and
 *            complete, discard: the caller holds the block's gate (rule E7); discard: closed.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

struct grace;
struct image;

enum extent_kind {
        EXTENT_ABSENT, /* this image says nothing: ask the parent (zeros if there is none) */
        EXTENT_ZERO,   /* reads as zeros, whatever a parent says */
        EXTENT_DATA,   /* at file_offset of the image's file; a block's data lies in one piece */
};

struct extent {
        enum extent_kind kind;
        uint64_t length;
        uint64_t file_offset; /* only for EXTENT_DATA */
};

enum map_flags {
        MAP_NOWAIT = 1u << 0, /* -EAGAIN rather than I/O */
        MAP_HOLES = 1u << 1,  /* look for holes in the file too: what is none of it is EXTENT_ZERO */
};

/* A block on its way to another place in its file (struct format, move_begin). */
struct block_move {
        uint64_t offset;   /* of the block, on the guest's disk */
        uint64_t from, to; /* its block_size bytes of data in the file */
};

enum image_type { IMAGE_RAW, IMAGE_FIXED, IMAGE_DYNAMIC, IMAGE_DIFFERENCING };

enum image_flags {
        IMAGE_WRITABLE = 1u << 0,
        IMAGE_FORCE = 1u << 1,    /* damaged: read what can be read, -EIO for bad blocks */
        IMAGE_LOOSE_LOCK = 1u << 3, /* bear with a writer elsewhere: headers only (info) */
        IMAGE_VOLATILE = 1u << 4, /* thrown away at the end: nothing need survive this process */
        IMAGE_NO_LOCK = 1u << 2,  /* the caller holds the lock (descriptors passed on), or a test */
        /* An image that it stands on lost what its last server had answered (E5). A record of ours that
         * frees a block may speak of one that was merged into that image: none is replayed, and the
         * image is as one whose sync failed. */
        IMAGE_DISTRUST = 1u << 5,
};

struct format {
        const char *name; /* "vhd", "raw" */
        /* Required. @file is taken over on success only. */
        int (*open)(struct file *file, unsigned flags, struct image **ret, struct error *err);
        /* Required. Ends the image. @clean: flush, and leave the file as if it had never been open
         * (E6: footer at its low place, redo file removed). Not clean: let go of everything as a
         * dying process would, but for memory and descriptors. The result is that of the flush. */
        int (*close)(struct image *image, bool clean, struct error *err);
        /* Required. The extent at @offset, of at most @length (the caller keeps it inside the
         * image's size). */
        int (*map)(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
                   struct extent *ret);
        /* Optional (flat images: NULL, they hold everything). Does the image have a block at
         * @offset, whatever its bitmap says? Never waits. */
        bool (*holds)(const struct image *image, uint64_t offset);
        /* Required. Room for [offset, offset + length), all in one block and whole sectors (flat
         * images: any range). Answers where the data goes. Allocates in memory where needed; then
         * *ret_zero says whether the space reads as zeros. May do I/O unless MAP_NOWAIT. */
        int (*prepare)(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
                       uint64_t *ret_file_offset, bool *ret_zero);
        /* Required. The data of a prepared range is in the file now: the sectors become present in
         * memory (and in the redo file first, E4). Blocks only when the redo file is full.
         * *ret_changed: some sector was not present before, or the block's place is new. */
        int (*complete)(struct image *image, uint64_t offset, uint64_t length, bool *ret_changed);
        /* Optional (flat images: NULL). The whole block at @offset loses its place: from now on
         * EXTENT_ABSENT. The gate is closed. The place is used again by E8's rule only. */
        int (*discard)(struct image *image, uint64_t offset);
        /* Optional (NULL: none). How many freed places somebody may still be reading in. */
        uint32_t (*n_waiting_places)(struct image *image);
        /* Required. Is everything that describes the range durable, so that a FUA write may use
         * file_write_durable() instead of a round (E3)? */
        bool (*is_durable)(struct image *image, uint64_t offset, uint64_t length);
        /* Required. A round (E3) that begins after the call did. */
        int (*flush)(struct image *image);
        /* Required. A sync failed outside of a round (file_write_durable; before the first write):
         * E5 as if a round's had. It is noted before this returns. Nothing on a read-only image. */
        void (*poison)(struct image *image, int code);
        /* Optional. Makes space for new blocks ahead, for all of them within reason and not only for
         * some as allocating does by itself, so that those who come next need not wait for a sync. */
        int (*make_room)(struct image *image);
        /* Required. The image takes no change from here on (its writers have left for good), and
         * readers and flushes go on: everything becomes durable, and the file is left as close()
         * would leave it, but for what readers may be looking at. Then the image is one that was
         * opened for reading: not writable, nothing of it left to recover, flushes answer 0.
         *   -EIO    a sync failed (E5): it stays writable in name, and every flush fails
         *   others  (-ENOSPC) it stays as it was, and may be settled or closed later */
        int (*settle)(struct image *image, struct error *err);

        /* Optional, all or none (flat images: NULL): what jobs do to blocks (merge/). Where a gate is
         * asked for, it is closed. -ENOBUFS: the redo file is full and nothing was done: open the gate,
         * flush, and come again. */

        /* Where in the file the data of the block at @offset begin, or UINT64_MAX. Never waits. */
        uint64_t (*place)(const struct image *image, uint64_t offset);
        /* As discard, but the data stay in their place until no opener and no reader can need them
         * (E8): for a block that is somewhere else as well. The gate is closed. */
        int (*release)(struct image *image, uint64_t offset);
        /* Looks through the file for places between the blocks that nobody needs, and keeps them for
         * move_begin and for new blocks. What was freed before counts after a flush. May flush. */
        int (*find_holes)(struct image *image);
        /* A place for the block at @offset, which reads as zeros; *ret says where. Until move_end the
         * gate stays closed, and the caller copies what the image has of the block.
         * @behind 0: a hole before its present place. Else: any place at or behind file offset @behind,
         * at the file's end if there is no hole.
         *   1  ready      0  there is no such place, or no such block */
        int (*move_begin)(
                struct image *image, uint64_t offset, uint64_t behind, struct block_move *ret);
        /* @copied: the block is in its new place from now on, with all its bits; the old one is free by
         * E8. Otherwise, and on failure, it is where it was. */
        int (*move_end)(struct image *image, const struct block_move *move, bool copied);
        /* Gives the space of freed places back, those whose commit and grace are over. @shrink: the end
         * footer goes to the lowest place that blocks and readers allow, and the file ends there. */
        int (*reclaim)(struct image *image, bool shrink, struct error *err);
};

/* The head of every image; a driver's own struct begins with it. */
struct image {
        /* immutable after open */
        const struct format *format;
        struct file *file;
        enum image_type type;
        uint64_t size;          /* bytes that the guest sees, a multiple of 512 for VHDs */
        uint32_t block_size;    /* 0: flat */
        uint8_t id[16];         /* VHD unique id; zeros for raw */
        uint8_t parent_id[16];  /* differencing only */
        bool writable; /* until it is settled */
        /* Alone it is not meant to be used: others stand on it (tapdisk's flag), or (also @merging) it is
         * in the middle of a merge, and reads as no point in time (E12). As it was found at opening. */
        bool hidden, merging;
        /* A process that wrote the image died or still has it: what it left to recover is in our
         * memory, and not in the file. */
        bool unclean;
        bool lost_records;    /* what the last server of it had answered is not all here (E5) */
        bool replayed_frees;  /* blocks were given up, in our memory and not yet in the file */
        /* Whoever uses a file offset that map() answered is inside (E8); NULL if nothing is ever
         * freed in this image. Its driver's, or lent by the chain (image_lend_places). */
        struct grace *places;
        bool places_are_lent;
        unsigned n_holders; /* chains that have it as a layer; guarded by their family's lock */
        /* It was written to since it was opened, or can be, and is not settled: flushes mean it. The
         * chain's. */
        _Atomic bool flushes;
        /* A merge moves blocks out of the image or into it (E11): it stays open for writing. Written
         * with the family's lock held. */
        _Atomic bool in_merge;
        /* E11: each round of this image has a whole round of that one between its (0) and its (2):
         * what was cleared here is there. NULL: none. */
        _Atomic(struct image *) flush_first;
        /* A sentence for the user about an image that opens, but not as asked (read-only because
         * of ...), or "". */
        char warning[ERROR_MESSAGE_MAX];
};

/* The format by name ("vhd", "raw"; what the file holds is then its driver's to check), or by looking
 * (@name NULL) as docs/formats.md says. VHDX, qcow2, VMDK, VDI, .vmcx and XML by their magic, and what
 * could be two things, are errors that say what to do. */
int format_find(struct file *file, const char *name, const struct format **ret, struct error *err);
extern const struct format vhd_format;
extern const struct format raw_format;

/* Takes the file's lock as @flags ask, finds the format (@name may be NULL) and opens. The file is
 * taken over on success only; on failure it is the caller's, without a lock. */
int image_open(struct file *file, const char *name, unsigned flags, struct image **ret,
               struct error *err);
/* A grace that several images share: @places is the caller's and outlives the image. Before the first
 * request; nothing if the image never frees. */
void image_lend_places(struct image *image, struct grace *places);
/* format->settle, and then the lock of a reader. */
int image_settle(struct image *image, struct error *err);
int image_close(struct image *image, struct error *err); /* clean */
struct image *image_abandon(struct image *image);        /* not clean; NULL is fine; returns NULL */
/* The image is on no chain's way any more, but the grace that it was lent goes on: returns when none
 * of the places that were freed in it is still waited for. Then it may be closed. */
void image_leave_places(struct image *image);
DEFINE_CLEANUP(struct image *, image_abandon)
