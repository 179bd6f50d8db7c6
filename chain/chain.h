/* SPDX-License-Identifier: Apache-2.0 */
/* chain.h - an image and its parents as one disk: the engine that everything above stands on.
 *
 * The leaf takes the writes; parents are open read-only and locked against writers. Reads cost the
 * same at any depth (rule E2).
 *
 * Units      bytes on the guest's disk; any offset and length, down to one byte.
 * Ownership  chain_open hands out, chain_close ends (flush, clean close) or chain_abandon.
 * Errors     0 or -errno. -EAGAIN: only with CHAIN_NOWAIT: nothing was done, call again without it
 *            on a thread that may block. -EINVAL: outside the disk. -EROFS, -ENOSPC, -EIO.
 * Threads    everything but opening and closing may be called from many threads at once.
 *            Writes that overlap and are under way together end in some order, as on any disk.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"
#include "formats/format.h"

#define CHAIN_MAX_DEPTH 1024u

struct chain;

/* Chains of one process that read the same images, so that a merge in one of them (chain/drain.h) is
 * right in all. Outlives its chains. */
struct chain_family;
struct chain_family *chain_family_new(void);                          /* NULL: no memory */
struct chain_family *chain_family_free(struct chain_family *family); /* NULL is fine; returns NULL */

struct chain_options {
        struct fs *fs;                   /* NULL: the host's */
        struct chain_family *family;     /* NULL: one of its own */
        bool writable;                   /* the leaf takes writes */
        bool scratch;                    /* writes go to a child that is thrown away at the end */
        const char *scratch_directory;   /* NULL: $TMPDIR, else /var/tmp */
        bool force;                      /* damaged images: read-only, -EIO for bad blocks */
        bool direct;                     /* the leaf's data goes past the page cache (O_DIRECT) */
        bool leaf_only;                  /* open no parent: what the leaf lacks reads -EIO (info) */
        bool for_merge;                  /* the leaf is emptied: it may be tapdisk's inner node */
        bool loose_lock;                 /* bear with a writer elsewhere (info, tree) */
        const char *format;              /* of the leaf: "vhd", "raw", NULL: look */
        const char *const *image_roots;  /* where parents may lie, beside the leaf's own directory */
        size_t n_image_roots;
        const char *const *parents;      /* --parent: the first names the leaf's, the next its ... */
        size_t n_parents;
        void (*warn)(void *opaque, const char *sentence); /* NULL: warnings are dropped */
        void *opaque;
};

int chain_open(const char *path, const struct chain_options *options, struct chain **ret,
               struct error *err);
/* Flushes, closes cleanly, frees in any case. The result is that of the flush. */
int chain_close(struct chain *chain, struct error *err);
struct chain *chain_abandon(struct chain *chain); /* as a dying process; NULL is fine */
DEFINE_CLEANUP(struct chain *, chain_abandon)

uint64_t chain_size(const struct chain *chain);
bool chain_is_writable(const struct chain *chain);
unsigned chain_depth(const struct chain *chain); /* number of layers */
/* Layer 0 is the root, chain_depth() - 1 the leaf. Lives until a merge takes it out of the chain. */
const struct image *chain_layer(const struct chain *chain, unsigned layer);
const char *chain_layer_path(const struct chain *chain, unsigned layer);
/* The block size that suits requests best (NBD's preferred size), a power of two >= 4096. */
uint32_t chain_preferred_size(const struct chain *chain);

enum chain_io_flags {
        CHAIN_NOWAIT = 1u << 0,    /* -EAGAIN rather than wait for the disk or another request */
        CHAIN_FUA = 1u << 1,       /* durable when it returns */
        CHAIN_NO_HOLE = 1u << 2,   /* zero: keep the space (NBD_CMD_FLAG_NO_HOLE) */
        CHAIN_FAST_ZERO = 1u << 3, /* zero: -EOPNOTSUPP rather than be slow, and nothing was done */
        CHAIN_HOLES = 1u << 4,     /* map: holes of flat files are zeros too (lseek) */
        /* With FUA: -EINPROGRESS rather than wait for a snapshot's commit (chain/push.h). It is done; a
         * flush that comes now is answered when it may be. */
        CHAIN_LATER = 1u << 5,
};

int chain_read(struct chain *chain, void *data, size_t length, uint64_t offset, unsigned flags);
int chain_write(struct chain *chain, const void *data, size_t length, uint64_t offset,
                unsigned flags);
/* From here on the range reads as zeros. */
int chain_zero(struct chain *chain, uint64_t length, uint64_t offset, unsigned flags);
/* The guest needs the range no more: it may read as zeros or as before, and space may be freed. */
int chain_trim(struct chain *chain, uint64_t length, uint64_t offset, unsigned flags);
/* All that was answered before the call is durable when it returns (E3). */
int chain_flush(struct chain *chain);
/* Asks the kernel to have the range in the page cache soon. */
int chain_cache(struct chain *chain, uint64_t length, uint64_t offset);

/* One run of the disk that comes from one place. */
struct chain_extent {
        uint64_t length;
        enum extent_kind kind; /* EXTENT_ABSENT: no layer has it: reads as zeros */
        unsigned depth;        /* 0 the leaf, 1 its parent, ...; of an absent one: chain_depth() */
        struct file *file;     /* EXTENT_DATA: the layer's file, */
        uint64_t file_offset;  /*              and where in it */
};

/* The run at @offset, at most @length long (@length > 0, inside the disk). May stop short at a
 * block's edge. Hold a ticket while using file and file_offset. */
int chain_map(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
              struct chain_extent *ret);
/* The same, but joins neighbours of the same kind and depth (not of adjacent places) up to @length:
 * for block status and `map`. file_offset is of the first. */
int chain_status(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
                 struct chain_extent *ret);

/* Blocks are being moved between the chain's images: who holds tickets for long holds that up, so what
 * is read is better copied. */
bool chain_is_moving(const struct chain *chain);

/* While a ticket is held, no place in a file that a chain_map() within it named is used for
 * something else (E8's grace). For senders that leave bytes in the page cache for later (sendfile):
 * hold it until they are out. Tickets are cheap, and must not be held for ever. */
uint64_t chain_ticket_get(struct chain *chain);
void chain_ticket_put(struct chain *chain, uint64_t ticket);

/* Counters since opening, for people and tests. */
struct chain_counters {
        uint64_t reads, writes, zeros, trims, flushes, rounds;
        uint64_t bytes_read, bytes_written;
};
void chain_counters_get(const struct chain *chain, struct chain_counters *ret);
