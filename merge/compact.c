/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction in two passes over the leaf:
 *
 *   look   each block is read once as it is; one that can go, or that holds zeros worth a hole, is
 *          shut, read again, and released or punched
 *   move   the last block of the file goes into its first hole, and so on until no hole lies before a
 *          block; each batch is flushed, and the file is cut behind what is left. Again, until nothing
 *          moves: an odd hole of another writer's file may serve only when it has grown
 *
 * Rules, beside those of formats/vhd/move.c:
 *   C1  A block is released only when it is shut, and every sector that the leaf has of it equals what
 *       lies below.
 *   C2  Zeros are punched only in a shut block, and only where the file has zeros already.
 *   C3  No more than a batch (and what is not cut off yet) is in the file twice.
 */
#include "merge/compact.h"

#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/mutant.h"
#include "chain/blocks.h"

#define BATCH     (16 * MIB)
#define CUT_AFTER 2u /* so many batches may wait to be cut off */
#define READ_SIZE (256 * KIB)
#define PAGE      UINT64_C(4096)

enum phase { LOOK, PREPARE, MOVE, FINISH, DONE };

/* Where a block lies, for the order in which blocks move. */
struct place {
        uint32_t sector, block;
};

struct compact {
        struct chain *chain;
        struct image *leaf;
        enum phase phase;
        uint64_t block_size, n_disk_blocks, batch;
        uint64_t next; /* LOOK: the next block */
        uint64_t looked;
        struct place *places; /* MOVE: last in the file first */
        size_t n_places, next_place, to_move;
        uint64_t moved_before; /* this pass */
        uint64_t uncut;        /* bytes that were moved and may still be behind the end to be */
        uint8_t *data, *below; /* READ_SIZE each */
        struct compact_report report;
};

/* A snapshot put another image on top: this one does not change any more. */
static int check_leaf(const struct compact *c, const struct chain_block *block)
{
        return block->leaf == c->leaf ? 0 : -ESTALE;
}

static int fail_at(
        const struct compact *c, int r, const char *what, uint64_t offset, struct error *err)
{
        const char *path = c->leaf->file->path;

        fail_os(err, -r, "cannot %s the block of '%s' at offset %llu of the disk", what, path,
                (unsigned long long)offset);
        error_set_file(err, path);
        return r;
}

static int flush(const struct compact *c, struct error *err)
{
        int r = chain_flush(c->chain);

        if (r == 0)
                return 0;
        error_set_file(err, c->leaf->file->path);
        return fail_os(err, -r, "cannot flush '%s'", c->leaf->file->path);
}

/* --- what a block holds */

struct finding {
        bool redundant; /* C1 */
        uint64_t zeros; /* bytes in pages of zeros that are none of the file's holes */
        bool punch;     /* ... become some */
};

/* Does the disk read as @data (NULL: as zeros) there without the leaf? */
static int like_below(const struct compact *c, const struct chain_block *block, uint64_t offset,
        const uint8_t *data, uint64_t length, bool *ret)
{
        while (length > 0) {
                struct chain_extent extent;
                int r = chain_block_map_below(block, offset, length, &extent);

                if (r < 0)
                        return r;
                if (extent.kind == EXTENT_DATA) {
                        r = file_read_exact(
                                extent.file, c->below, extent.length, extent.file_offset);
                        if (r < 0)
                                return r;
                        *ret = data ? memcmp(data, c->below, extent.length) == 0
                                    : bytes_are_zero(c->below, extent.length);
                } else {
                        *ret = !data || bytes_are_zero(data, extent.length);
                }
                if (!*ret)
                        return 0;
                data = data ? data + extent.length : NULL;
                offset += extent.length;
                length -= extent.length;
        }
        return 0;
}

/* C2: whole pages of the file, at @file_offset in it. */
static int find_zeros(struct compact *c, const uint8_t *data, uint64_t length, uint64_t file_offset,
        struct finding *f)
{
        uint64_t at = round_up_to(file_offset, PAGE) - file_offset;

        while (at < length) {
                uint64_t run = 0;
                int r = 0;

                while (at + run + PAGE <= length && bytes_are_zero(data + at + run, PAGE))
                        run += PAGE;
                if (run > 0 && f->punch)
                        r = file_punch(c->leaf->file, file_offset + at, run);
                if (r < 0)
                        return r;
                f->zeros += run;
                at += run + PAGE; /* the page behind the run is none, or not whole */
        }
        return 0;
}

/* A run that the leaf has, of at most READ_SIZE, all data or all hole (@hole) in the file. */
static int look_at_run(struct compact *c, const struct chain_block *block, uint64_t offset,
        uint64_t length, uint64_t file_offset, bool hole, struct finding *f)
{
        int r = 0;

        if (!hole)
                r = file_read_exact(c->leaf->file, c->data, length, file_offset);
        if (r == 0 && f->redundant)
                r = like_below(c, block, offset, hole ? NULL : c->data, length, &f->redundant);
        if (r == 0 && !hole)
                r = find_zeros(c, c->data, length, file_offset, f);
        return r;
}

/* The file's data or hole at @file_offset, at most @length of it. */
static int next_piece(
        struct file *file, uint64_t file_offset, uint64_t length, bool *hole, uint64_t *ret)
{
        uint64_t data, end;
        int r = file_seek_data(file, file_offset, &data);

        if (r < 0)
                return r;
        *hole = data > file_offset;
        if (*hole) {
                *ret = MIN_OF(length, data - file_offset);
                return 0;
        }
        r = file_seek_hole(file, file_offset, &end);
        if (r == 0)
                *ret = end > file_offset ? MIN_OF(length, end - file_offset) : length;
        return r;
}

static int look_at_extent(struct compact *c, const struct chain_block *block, uint64_t offset,
        const struct extent *extent, struct finding *f)
{
        uint64_t file_offset = extent->file_offset, left = extent->length;

        while (left > 0) {
                uint64_t n = 0;
                bool hole = false;
                int r = next_piece(c->leaf->file, file_offset, MIN_OF(left, READ_SIZE), &hole, &n);

                if (r == 0)
                        r = look_at_run(c, block, offset, n, file_offset, hole, f);
                if (r < 0)
                        return r;
                offset += n;
                file_offset += n;
                left -= n;
        }
        return 0;
}

static int look_at_block(struct compact *c, const struct chain_block *block, struct finding *f)
{
        uint64_t offset = block->offset, end = block->offset + block->length;

        f->redundant = true;
        f->zeros = 0;
        while (offset < end) {
                struct extent extent;
                int r = c->leaf->format->map(c->leaf, offset, end - offset, 0, &extent);

                if (r == 0 && extent.kind == EXTENT_DATA)
                        r = look_at_extent(c, block, offset, &extent, f);
                if (r < 0)
                        return r;
                offset += extent.length;
        }
        return 0;
}

/* --- the first pass */

static bool holds(const struct compact *c, uint64_t offset)
{
        return c->leaf->format->place(c->leaf, offset) != UINT64_MAX;
}

/* Shut, and so for good. -ENOBUFS: a flush must come first. */
static int settle_block(struct compact *c, uint64_t offset)
{
        struct finding f = {0};
        struct chain_block block;
        int r = chain_block_shut(c->chain, offset, &block);

        if (r < 0)
                return r;
        r = check_leaf(c, &block);
        if (r == 0 && holds(c, offset)) {
                r = look_at_block(c, &block, &f);
                if (r == 0 && MUTANT("release-unlike"))
                        f.redundant |= f.zeros > 0;
                if (r == 0 && f.redundant) {
                        r = chain_block_release(&block);
                        c->report.n_released += r == 0;
                } else if (r == 0 && f.zeros > 0) {
                        f.punch = true;
                        r = look_at_block(c, &block, &f);
                        c->report.bytes_punched += r == 0 ? f.zeros : 0;
                }
        }
        chain_block_open(&block);
        return r;
}

static int look_one(struct compact *c, uint64_t offset, bool plan, struct error *err)
{
        struct finding f = {0};
        struct chain_block block;
        int r = chain_block_look(c->chain, offset, &block);

        if (r == 0)
                r = look_at_block(c, &block, &f);
        if (r == 0 && plan) {
                c->report.n_released += f.redundant;
                c->report.bytes_punched += f.redundant ? 0 : f.zeros;
                return 0;
        }
        while (r == 0 && (f.redundant || f.zeros > 0)) {
                r = settle_block(c, offset);
                if (r == 0)
                        return 0;
                if (r == -ENOBUFS)
                        r = flush(c, err);
        }
        return r < 0 ? fail_at(c, r, "read or release", offset, err) : 0;
}

/* Work of at most a batch. The last step has looked at all. */
static int look_step(struct compact *c, bool plan, struct error *err)
{
        uint64_t work = 0;

        for (; c->next < c->n_disk_blocks && work < c->batch; c->next++) {
                uint64_t offset = c->next * c->block_size;
                int r;

                if (!holds(c, offset))
                        continue;
                r = look_one(c, offset, plan, err);
                if (r < 0)
                        return r;
                work += c->block_size;
                c->looked++;
        }
        if (c->next >= c->n_disk_blocks)
                c->phase = PREPARE;
        return 1;
}

/* --- between the passes */

static int compare_places(const void *a, const void *b)
{
        const struct place *x = a, *y = b;

        return x->sector < y->sector ? 1 : x->sector > y->sector ? -1 : 0;
}

/* All blocks, the last in the file first. */
static int list_places(struct compact *c, struct error *err)
{
        size_t n = 0, capacity = 0;

        free(c->places);
        c->places = NULL;
        for (uint64_t i = 0; i < c->n_disk_blocks; i++) {
                uint64_t at = c->leaf->format->place(c->leaf, i * c->block_size);

                if (at == UINT64_MAX)
                        continue;
                if (n == capacity) {
                        struct place *places;

                        capacity = capacity ? 2 * capacity : 1024;
                        places = reallocarray(c->places, capacity, sizeof(*places));
                        if (!places)
                                return fail(err, ENOMEM, "no memory to compact '%s'",
                                        c->leaf->file->path);
                        c->places = places;
                }
                c->places[n++] = (struct place){(uint32_t)(at / SECTOR_SIZE), (uint32_t)i};
        }
        if (n > 0)
                qsort(c->places, n, sizeof(*c->places), compare_places);
        c->n_places = n;
        c->next_place = 0;
        return 0;
}

/* For the progress: about as many blocks lie behind the end to be. */
static size_t count_moves(const struct compact *c)
{
        uint64_t lowest, end;
        size_t n = 0;

        if (c->n_places == 0)
                return 0;
        lowest = (uint64_t)c->places[c->n_places - 1].sector * SECTOR_SIZE;
        end = lowest + c->n_places * (c->block_size + PAGE);
        while (n < c->n_places && (uint64_t)c->places[n].sector * SECTOR_SIZE >= end)
                n++;
        return n;
}

static int reclaim(struct compact *c, bool shrink, struct error *err)
{
        return c->leaf->format->reclaim(c->leaf, shrink, err);
}

static int prepare_moves(struct compact *c, struct error *err)
{
        int r = flush(c, err);

        if (r == 0)
                r = reclaim(c, true, err);
        if (r < 0)
                return r;
        r = c->leaf->format->find_holes(c->leaf);
        if (r < 0)
                return fail_os(err, -r, "cannot look for holes in '%s'", c->leaf->file->path);
        r = list_places(c, err);
        if (r < 0)
                return r;
        if (c->to_move == 0)
                c->to_move = count_moves(c);
        c->moved_before = c->report.n_moved;
        c->phase = MOVE;
        return 1;
}

/* --- the second pass */

/* 1 moved, 0 there is no hole before it any more. */
static int move_one(struct compact *c, uint64_t offset)
{
        struct chain_block block;
        uint64_t written = 0;
        int r = chain_block_shut(c->chain, offset, &block);

        if (r < 0)
                return r;
        r = check_leaf(c, &block);
        if (r == 0)
                r = chain_block_move(&block, 0, &written);
        chain_block_open(&block);
        if (r > 0) {
                c->report.n_moved++;
                c->report.bytes_moved += written;
        }
        return r;
}

/* C3: what was moved is durable, and what is behind the last block goes. */
static int end_batch(struct compact *c, bool cut, struct error *err)
{
        int r = flush(c, err);

        if (r == 0 && (cut || c->uncut >= CUT_AFTER * c->batch)) {
                r = reclaim(c, true, err);
                c->uncut = 0;
        }
        return r;
}

/* One block, with what may have to be done first. 1 moved, 0 the end. */
static int move_next(struct compact *c, uint64_t offset, struct error *err)
{
        bool tried_cut = false;

        for (;;) {
                int r = move_one(c, offset), done;

                if (r == -ENOBUFS)
                        done = flush(c, err);
                else if (r == -ENOSPC && !tried_cut)
                        done = end_batch(c, true, err);
                else
                        return r < 0 ? fail_at(c, r, "move", offset, err) : r;
                tried_cut |= r == -ENOSPC;
                if (done < 0)
                        return done;
        }
}

static int move_step(struct compact *c, struct error *err)
{
        uint64_t work = 0;
        int r;

        for (; c->next_place < c->n_places && work < c->batch; c->next_place++) {
                uint64_t offset = c->places[c->next_place].block * c->block_size;

                if (!holds(c, offset))
                        continue; /* trimmed meanwhile */
                r = move_next(c, offset, err);
                if (r < 0)
                        return r;
                if (r == 0 && holds(c, offset)) {
                        c->phase = FINISH;
                        break;
                }
                work += c->block_size;
        }
        c->uncut += work;
        if (c->next_place >= c->n_places)
                c->phase = FINISH;
        r = work > 0 ? end_batch(c, false, err) : 0;
        return r < 0 ? r : 1;
}

static int finish(struct compact *c, struct error *err)
{
        int r = end_batch(c, true, err);

        if (r < 0)
                return r;
        c->phase = c->report.n_moved > c->moved_before ? PREPARE : DONE;
        if (c->phase == PREPARE)
                return 1;
        return file_size_get(c->leaf->file, &c->report.file_size_after);
}

/* --- public */

static int note_file(struct compact *c, struct error *err)
{
        struct file_stat st;
        int r = file_stat_get(c->leaf->file, &st);

        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", c->leaf->file->path);
        c->report.file_size = c->report.file_size_after = st.size;
        c->report.allocated = st.allocated;
        for (uint64_t i = 0; i < c->n_disk_blocks; i++)
                c->report.n_blocks += holds(c, i * c->block_size);
        return 0;
}

/* Of the lead image whatever it is open for. */
static int new_for(struct chain *chain, struct compact **ret, struct error *err)
{
        _cleanup_(compact_freep) struct compact *c = calloc(1, sizeof(*c));
        struct chain_block block;
        int r = chain_block_look(chain, 0, &block);

        if (r < 0) {
                const char *path = chain_layer_path(chain, chain_depth(chain) - 1);

                fail(err, ENOTSUP,
                        "'%s' has no blocks that could be freed: it is a fixed or raw disk, and as "
                        "large as its contents",
                        path);
                error_set_file(err, path);
                error_set_hint(err, "vhdctl convert makes a dynamic one of it");
                return -ENOTSUP;
        }
        if (c) {
                c->data = malloc(READ_SIZE);
                c->below = malloc(READ_SIZE);
        }
        if (!c || !c->data || !c->below)
                return fail(err, ENOMEM, "no memory to compact");
        c->chain = chain;
        c->leaf = block.leaf;
        c->block_size = block.leaf->block_size;
        c->batch = BATCH;
        c->n_disk_blocks = div_round_up(block.leaf->size, c->block_size);
        r = note_file(c, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(c);
        return 0;
}

int compact_new(struct chain *chain, uint64_t batch, struct compact **ret, struct error *err)
{
        const char *path = chain_layer_path(chain, chain_depth(chain) - 1);
        int r;

        if (!chain_is_writable(chain)) {
                error_set_file(err, path);
                return fail(err, EROFS, "'%s' is not open for writing", path);
        }
        r = new_for(chain, ret, err);
        if (r == 0 && batch)
                (*ret)->batch = batch;
        return r;
}

struct compact *compact_free(struct compact *c)
{
        if (!c)
                return NULL;
        free(c->places);
        free(c->data);
        free(c->below);
        free(c);
        return NULL;
}

int compact_step(struct compact *c, struct error *err)
{
        struct chain_block block;
        int r = chain_block_look(c->chain, 0, &block);

        if (r == 0)
                r = check_leaf(c, &block);
        if (r < 0)
                return fail_os(err, -r, "'%s' is not what takes the disk's writes any more",
                        c->leaf->file->path);
        switch (c->phase) {
        case LOOK: return look_step(c, false, err);
        case PREPARE: return prepare_moves(c, err);
        case MOVE: return move_step(c, err);
        case FINISH: return finish(c, err);
        case DONE: break;
        }
        return 0;
}

void compact_progress(const struct compact *c, uint64_t *ret_done, uint64_t *ret_total)
{
        uint64_t half = c->report.n_blocks * c->block_size;
        uint64_t done = MIN_OF(c->looked * c->block_size, half);

        if (c->to_move > 0)
                done = half + half / c->to_move * MIN_OF(c->report.n_moved, c->to_move);
        if (c->phase == DONE)
                done = 2 * half;
        *ret_done = done;
        *ret_total = 2 * half;
}

void compact_report_get(const struct compact *c, struct compact_report *ret)
{
        *ret = c->report;
}

static int watch(const struct compact *c, const struct compact_watcher *watcher, struct error *err)
{
        uint64_t done, total;

        compact_progress(c, &done, &total);
        if (watcher && watcher->progress)
                watcher->progress(watcher->opaque, done, total);
        if (watcher && watcher->cancelled && watcher->cancelled(watcher->opaque))
                return fail(err, ECANCELED, "compacting '%s' was cancelled; what was done is kept",
                        c->leaf->file->path);
        return 0;
}

int compact_run(struct chain *chain, const struct compact_watcher *watcher,
        struct compact_report *ret, struct error *err)
{
        _cleanup_(compact_freep) struct compact *c = NULL;
        int r = compact_new(chain, 0, &c, err);

        if (r < 0)
                return r;
        do {
                r = compact_step(c, err);
                if (r >= 0 && watch(c, watcher, err) < 0)
                        r = -ECANCELED;
        } while (r > 0);
        *ret = c->report;
        return r;
}

/* About: what stays, one behind the other. */
static int plan_size(struct compact *c, struct error *err)
{
        uint64_t n_left = c->report.n_blocks - c->report.n_released, lowest, end;
        int r = list_places(c, err);

        if (r < 0 || c->n_places == 0)
                return r;
        lowest = (uint64_t)c->places[c->n_places - 1].sector * SECTOR_SIZE;
        end = lowest + n_left * (c->block_size + PAGE);
        c->report.file_size_after = MIN_OF(c->report.file_size, end);
        c->report.n_moved = 0;
        for (size_t i = 0; i < c->n_places; i++)
                c->report.n_moved += (uint64_t)c->places[i].sector * SECTOR_SIZE >= end;
        c->report.n_moved -= MIN_OF(c->report.n_moved, c->report.n_released);
        return 0;
}

int compact_plan(struct chain *chain, const struct compact_watcher *watcher,
        struct compact_report *ret, struct error *err)
{
        _cleanup_(compact_freep) struct compact *c = NULL;
        int r = new_for(chain, &c, err);

        while (r >= 0 && c->phase == LOOK) {
                r = look_step(c, true, err);
                if (r >= 0 && watch(c, watcher, err) < 0)
                        r = -ECANCELED;
        }
        if (r >= 0)
                r = plan_size(c, err);
        if (r < 0)
                return r;
        *ret = c->report;
        return 0;
}
