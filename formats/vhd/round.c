/* SPDX-License-Identifier: Apache-2.0 */
/* What is dirty, and how it gets to disk: the flush rounds of rule E3.
 *
 *   R1  A bit or an entry becomes dirty when its write completes, not when it begins.
 *   R2  (0) copies what is dirty now; only copies are written. What completes later belongs to the
 *       next round.
 *   R3  The bitmap of a block to whose place no durable entry points is written in (0), before the
 *       sync (1); that of a block with a durable entry in (2), after it: its data is durable then.
 *   R4  A BAT sector is written with the entries that were copied and, for all others, the durable
 *       ones.
 *   R5  One round at a time; a flush is answered by a round that began after it came.
 *   R6  A failed sync, or a failed write in (2), poisons (E5): nobody can say what the file holds.
 *   R8  Between (0) and (1) the image whose blocks come from here, or go there, has a whole round of its
 *       own (E11): an entry that was cleared in a merge is not durably gone before what took its
 *       place is there.
 *   R7  Records of before (0) are dropped at the round's end (E4), and places that were freed
 *       before (0) are committed then (E8).
 *
 *        flush -> (0) copy_dirty, write_new_bitmaps -> (1) sync -> (2) write_old_bitmaps, write_bat
 *              -> (3) sync -> finish_round
 */
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/mutant.h"
#include "formats/vhd/image.h"

#define BAT_ENTRIES_PER_SECTOR (SECTOR_SIZE / sizeof(be32))

/* A flush that waits for round @round; it lies on the waiting thread's stack. */
struct vhd_flush_waiter {
        struct vhd_flush_waiter *next;
        uint64_t round;
        int result;
        bool done;
};

struct round {
        struct vhd_dirty **blocks; /* the copied ones */
        size_t n_blocks;
        uint64_t number;
        uint64_t mark; /* of the redo file, at (0) */
};

void vhd_poison(struct vhd_image *vhd)
{
        /* In the redo file first: our death right after must not lift it (E5). */
        redo_poison(vhd->redo);
        atomic_store(&vhd->poisoned, true);
}

static int sync_or_poison(struct vhd_image *vhd)
{
        int r = file_sync(vhd->image.file);

        if (r < 0 && MUTANT("retry-sync"))
                r = file_sync(vhd->image.file);
        if (r == 0)
                return 0;
        vhd_poison(vhd); /* E5: never a second try */
        return -EIO;
}

/* --- what is dirty */

static uint32_t bitmap_sectors(const struct vhd_image *vhd)
{
        return vhd->bitmap_size / (uint32_t)SECTOR_SIZE;
}

/* Slots that a block may need when it becomes dirty (what its sectors hold now), and again in the
 * round that cleans it (what they are being given). */
static uint64_t expect_slots(const struct vhd_image *vhd)
{
        return 1 + bitmap_sectors(vhd);
}

bool vhd_redo_has_room_locked(const struct vhd_image *vhd, uint64_t n)
{
        return redo_free_slots(vhd->redo) >= vhd->redo_promised + n * (1 + 2 * expect_slots(vhd));
}

static uint64_t bat_sector_of(const struct vhd_image *vhd, uint32_t block)
{
        return vhd->table_offset / SECTOR_SIZE + block / BAT_ENTRIES_PER_SECTOR;
}

static void expect_sector(struct vhd_image *vhd, uint64_t sector, const void *content)
{
        struct redo_record record = {
                .kind = REDO_EXPECT, .place = (uint32_t)sector, .hash = redo_hash(content)};

        redo_append(vhd->redo, &record); /* room was promised */
}

/* What BAT sector @index of the table holds on disk once the copied entries of @round (or none) are
 * in it: for every other dirty block the durable entry (R4). */
static void build_bat_sector(
        struct vhd_image *vhd, uint32_t index, bool round, be32 ret[BAT_ENTRIES_PER_SECTOR])
{
        uint32_t first = index * (uint32_t)BAT_ENTRIES_PER_SECTOR;

        /* The table's last sector holds bytes that are not entries of ours: they stay as they are. */
        if (first + BAT_ENTRIES_PER_SECTOR > vhd->metadata.n_blocks)
                memcpy(ret, vhd->bat_tail, SECTOR_SIZE);
        for (uint32_t i = 0; i < BAT_ENTRIES_PER_SECTOR && first + i < vhd->metadata.n_blocks;
                i++) {
                const struct vhd_dirty *dirty = vhd_bat_dirty(vhd->bat, first + i);
                uint32_t place = vhd_bat_get(vhd->bat, first + i);

                if (dirty && round && dirty->in_round)
                        place = dirty->round_place;
                else if (dirty && !(round && MUTANT("bat-uncopied")))
                        place = dirty->durable_place;
                ret[i] = be32_make(place);
        }
}

int vhd_bat_tail_load(struct vhd_image *vhd, struct error *err)
{
        uint32_t index = vhd->metadata.n_blocks / (uint32_t)BAT_ENTRIES_PER_SECTOR;
        uint64_t offset = vhd->table_offset + (uint64_t)index * SECTOR_SIZE;
        int r;

        if (vhd->metadata.n_blocks % BAT_ENTRIES_PER_SECTOR == 0)
                return 0;
        r = file_read_exact(vhd->image.file, vhd->bat_tail, SECTOR_SIZE, offset);
        if (r == 0)
                return 0;
        error_set_file(err, vhd->image.file->path);
        error_set_offset(err, offset);
        return fail_os(err, -r, "cannot read the last sector of the BAT of '%s' at offset %llu",
                vhd->image.file->path, (unsigned long long)offset);
}

static void expect_bat_sector(struct vhd_image *vhd, uint32_t block)
{
        uint32_t index = block / (uint32_t)BAT_ENTRIES_PER_SECTOR;
        be32 content[BAT_ENTRIES_PER_SECTOR];

        build_bat_sector(vhd, index, false, content);
        expect_sector(vhd, bat_sector_of(vhd, block), content);
}

/* The block's durable bitmap as the file holds it; called before the first bit of it changes. */
static void expect_bitmap(struct vhd_image *vhd, const struct vhd_bitmap *bitmap)
{
        uint8_t content[SECTOR_SIZE];

        for (uint32_t i = 0; i < bitmap_sectors(vhd); i++) {
                for (uint32_t w = 0; w < SECTOR_SIZE / 8; w++) {
                        uint64_t word = atomic_load_explicit(
                                &bitmap->words[i * (SECTOR_SIZE / 8) + w], memory_order_relaxed);

                        memcpy(content + w * 8, &word, 8);
                }
                expect_sector(vhd, (uint64_t)bitmap->place + i, content);
        }
}

static struct vhd_dirty *dirty_get(struct vhd_image *vhd, uint32_t block, uint32_t durable_place)
{
        struct vhd_dirty *dirty = vhd_bat_dirty(vhd->bat, block);

        if (dirty)
                return dirty;
        if (vhd_bat_reserve(vhd->bat, block) < 0)
                return NULL;
        dirty = calloc(1, sizeof(*dirty));
        if (!dirty)
                return NULL;
        dirty->block = block;
        dirty->durable_place = durable_place;
        dirty->next = vhd->dirty;
        if (dirty->next)
                dirty->next->prev = dirty;
        vhd->dirty = dirty;
        vhd->n_dirty++;
        vhd_bat_set_dirty(vhd->bat, block, dirty);
        return dirty;
}

static void dirty_end(struct vhd_image *vhd, struct vhd_dirty *dirty)
{
        vhd_bat_set_dirty(vhd->bat, dirty->block, NULL);
        if (dirty->prev)
                dirty->prev->next = dirty->next;
        else
                vhd->dirty = dirty->next;
        if (dirty->next)
                dirty->next->prev = dirty->prev;
        vhd->n_dirty--;
        free(dirty->round_bits);
        free(dirty);
}

void vhd_dirty_free_all(struct vhd_image *vhd)
{
        while (vhd->dirty)
                dirty_end(vhd, vhd->dirty);
}

static void mark_now(struct vhd_image *vhd, struct vhd_dirty *dirty)
{
        if (!dirty->now) {
                dirty->now = true;
                vhd->redo_promised += expect_slots(vhd);
        }
        vhd->touched = true;
}

int vhd_track_locked(struct vhd_image *vhd, uint32_t block, uint32_t durable_place, bool now)
{
        struct vhd_dirty *dirty = dirty_get(vhd, block, durable_place);

        if (!dirty)
                return -ENOMEM;
        if (now)
                mark_now(vhd, dirty);
        return 0;
}

/* The first change of a block since the last (0), or since it was given another place: what its
 * metadata sectors hold, for whoever replays. What a running round is giving them, it has said
 * itself, behind its mark. */
static void expect_block(struct vhd_image *vhd, uint32_t block, const struct vhd_bitmap *bitmap)
{
        static const uint8_t empty[SECTOR_SIZE];
        const struct vhd_dirty *dirty = vhd_bat_dirty(vhd->bat, block);
        bool known = dirty && dirty->now;

        if (!known)
                expect_bat_sector(vhd, block);
        if (!bitmap || (known && dirty->expected_place == bitmap->place))
                return;
        if (!dirty)
                expect_bitmap(vhd, bitmap); /* clean: memory is what the file holds */
        else if (dirty->durable_place != bitmap->place &&
                !(dirty->in_round && dirty->round_place == bitmap->place))
                for (uint32_t i = 0; i < bitmap_sectors(vhd); i++)
                        expect_sector(vhd, (uint64_t)bitmap->place + i, empty);
}

int vhd_make_present_locked(struct vhd_image *vhd, uint32_t block, uint32_t first, uint32_t count)
{
        struct vhd_bitmap *bitmap = vhd_bat_bitmap(vhd->bat, block);
        struct redo_record record = {
                .kind = REDO_BITS,
                .block = block,
                .place = bitmap->place,
                .first = first,
                .count = count,
        };
        struct vhd_dirty *dirty;

        if (!vhd_redo_has_room_locked(vhd, 1))
                return -ENOBUFS;
        if (vhd_bat_reserve(vhd->bat, block) < 0)
                return -ENOMEM;
        expect_block(vhd, block, bitmap);
        dirty = dirty_get(vhd, block, bitmap->place);
        if (!dirty)
                return -ENOMEM;
        dirty->expected_place = bitmap->place;
        mark_now(vhd, dirty); /* R1 */
        if (MUTANT("bit-before-record")) {
                vhd_bitmap_set(bitmap, first, count);
                (void)MUTANT("bit-before-record"); /* here another thread may run */
                return redo_append(vhd->redo, &record);
        }
        redo_append(vhd->redo, &record); /* E4: the record is whole before the bit can be seen */
        vhd_bitmap_set(bitmap, first, count);
        bitmap->changed = true;
        return 0;
}

/* E8: also a place whose entry was never durable waits for a round that began after this. */
static void free_place_locked(struct vhd_image *vhd, uint32_t place, struct vhd_freed *freed)
{
        freed->image = vhd;
        freed->place = place;
        freed->round = vhd->copies + 1;
        freed->next = vhd->freed;
        vhd->freed = freed;
        vhd_pending_add_locked(vhd, freed);
        if (MUTANT("reuse-before-commit")) {
                vhd->freed = freed->next;
                vhd_pending_remove_locked(vhd, freed);
                freed->next = vhd->free_places;
                vhd->free_places = freed;
        }
}

int vhd_make_absent_locked(struct vhd_image *vhd, uint32_t block, struct vhd_freed *freed)
{
        uint32_t place = vhd_bat_get(vhd->bat, block);
        struct redo_record record = {.kind = REDO_FREE, .block = block, .place = place};
        struct vhd_dirty *dirty;

        if (!vhd_redo_has_room_locked(vhd, 1))
                return -ENOBUFS;
        if (vhd_bat_reserve(vhd->bat, block) < 0)
                return -ENOMEM;
        expect_block(vhd, block, NULL);
        dirty = dirty_get(vhd, block, place);
        if (!dirty)
                return -ENOMEM;
        mark_now(vhd, dirty);
        if (!freed->job || !MUTANT("drain-no-free-record"))
                redo_append(vhd->redo, &record);
        vhd_bat_set(vhd->bat, block, VHD_BAT_UNUSED);
        vhd_bitmap_drop_locked(vhd, block, NULL);
        free_place_locked(vhd, place, freed);
        return 0;
}

int vhd_make_moved_locked(
        struct vhd_image *vhd, uint32_t block, struct vhd_bitmap *bitmap, struct vhd_freed *freed)
{
        uint32_t old = vhd_bat_get(vhd->bat, block);
        struct redo_record record = {.kind = REDO_MOVE, .block = block, .place = bitmap->place};
        struct vhd_dirty *dirty;

        if (!vhd_redo_has_room_locked(vhd, 1))
                return -ENOBUFS;
        if (vhd_bat_reserve(vhd->bat, block) < 0 || vhd_loaded_reserve_locked(vhd) < 0)
                return -ENOMEM;
        dirty = dirty_get(vhd, block, old);
        if (!dirty)
                return -ENOMEM;
        if (!dirty->now)
                expect_bat_sector(vhd, block);
        expect_bitmap(vhd, bitmap); /* as it was written there just now */
        dirty->expected_place = bitmap->place;
        mark_now(vhd, dirty);
        /* E4: the record is whole before anybody can be told of the new place. */
        if (!MUTANT("move-no-record"))
                redo_append(vhd->redo, &record);
        vhd_bitmap_swap_locked(vhd, block, bitmap);
        free_place_locked(vhd, old, freed);
        return 0;
}

/* --- a round */

static void drop_copies(struct round *round)
{
        for (size_t i = 0; i < round->n_blocks; i++) {
                free(round->blocks[i]->round_bits);
                round->blocks[i]->round_bits = NULL;
        }
        round->n_blocks = 0;
}

/* (0), first half, under the lock: R2. */
static int copy_dirty(struct vhd_image *vhd, struct round *round)
{
        round->blocks = calloc(vhd->n_dirty + 1, sizeof(*round->blocks));
        if (!round->blocks)
                return -ENOMEM;
        for (struct vhd_dirty *d = vhd->dirty; d; d = d->next) {
                struct vhd_bitmap *bitmap = vhd_bat_bitmap(vhd->bat, d->block);

                if (!d->now)
                        continue;
                d->round_place = vhd_bat_get(vhd->bat, d->block);
                if (d->round_place != VHD_BAT_UNUSED) {
                        d->round_bits = malloc(vhd->bitmap_size);
                        if (!d->round_bits) {
                                drop_copies(round);
                                return -ENOMEM;
                        }
                        vhd_bitmap_copy_out(bitmap, d->round_bits);
                }
                round->blocks[round->n_blocks++] = d;
        }
        round->mark = redo_mark(vhd->redo);
        round->number = ++vhd->copies;
        vhd->redo_promised = 0;
        for (size_t i = 0; i < round->n_blocks; i++) {
                round->blocks[i]->now = false;
                round->blocks[i]->in_round = true;
        }
        return 0;
}

static int compare_blocks(const void *a, const void *b)
{
        const struct vhd_dirty *x = *(struct vhd_dirty *const *)a;
        const struct vhd_dirty *y = *(struct vhd_dirty *const *)b;

        return x->block < y->block ? -1 : x->block > y->block;
}

/* Under the lock, behind the mark: what this round is about to write into each sector (E4). */
static void expect_round(struct vhd_image *vhd, const struct round *round)
{
        uint32_t last = UINT32_MAX;

        for (size_t i = 0; i < round->n_blocks; i++) {
                const struct vhd_dirty *d = round->blocks[i];
                uint32_t index = d->block / (uint32_t)BAT_ENTRIES_PER_SECTOR;
                be32 content[BAT_ENTRIES_PER_SECTOR];

                if (d->round_bits)
                        for (uint32_t k = 0; k < bitmap_sectors(vhd); k++)
                                expect_sector(vhd, (uint64_t)d->round_place + k,
                                        d->round_bits + k * SECTOR_SIZE);
                if (index == last)
                        continue;
                build_bat_sector(vhd, index, true, content);
                expect_sector(vhd, bat_sector_of(vhd, d->block), content);
                last = index;
        }
}

static int write_bits(struct vhd_image *vhd, const struct vhd_dirty *dirty)
{
        return file_write(vhd->image.file, dirty->round_bits, vhd->bitmap_size,
                (uint64_t)dirty->round_place * SECTOR_SIZE, 0);
}

/* R3: does the durable table not lead to the place whose bits were copied? */
static bool is_new_place(const struct vhd_dirty *dirty)
{
        return dirty->round_bits && dirty->durable_place != dirty->round_place;
}

static int write_new_bitmaps(struct vhd_image *vhd, const struct round *round)
{
        for (size_t i = 0; i < round->n_blocks; i++) {
                int r = 0;

                if (is_new_place(round->blocks[i]))
                        r = write_bits(vhd, round->blocks[i]);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int write_old_bitmaps(struct vhd_image *vhd, const struct round *round)
{
        for (size_t i = 0; i < round->n_blocks; i++) {
                struct vhd_dirty *d = round->blocks[i];
                int r = 0;

                if (d->round_bits && MUTANT("live-bits")) {
                        struct vhd_bitmap *bitmap = vhd_bat_bitmap(vhd->bat, d->block);

                        if (bitmap && bitmap->place == d->round_place)
                                vhd_bitmap_copy_out(bitmap, d->round_bits);
                }
                if (d->round_bits && (!is_new_place(d) || MUTANT("new-bitmap-late")))
                        r = write_bits(vhd, d);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* One 512-byte sector at a time, never the table (E3). */
static int write_bat(struct vhd_image *vhd, const struct round *round)
{
        uint32_t last = UINT32_MAX;

        for (size_t i = 0; i < round->n_blocks; i++) {
                const struct vhd_dirty *d = round->blocks[i];
                uint32_t index = d->block / (uint32_t)BAT_ENTRIES_PER_SECTOR;
                uint64_t offset = vhd->table_offset + (uint64_t)index * SECTOR_SIZE;
                be32 content[BAT_ENTRIES_PER_SECTOR];
                int r;

                if (index == last || d->durable_place == d->round_place)
                        continue;
                pthread_mutex_lock(&vhd->lock);
                build_bat_sector(vhd, index, true, content);
                pthread_mutex_unlock(&vhd->lock);
                r = file_write(vhd->image.file, content, sizeof(content), offset, 0);
                if (r < 0)
                        return r;
                last = index;
        }
        return 0;
}

static void forget_copy(struct vhd_dirty *dirty)
{
        dirty->in_round = false;
        free(dirty->round_bits);
        dirty->round_bits = NULL;
}

/* A block that has just become clean and full needs no bitmap in memory. */
static void shrink_bitmap(struct vhd_image *vhd, uint32_t block)
{
        struct vhd_bitmap *bitmap = vhd_bat_bitmap(vhd->bat, block);

        if (bitmap && bitmap != VHD_BITMAP_FULL &&
                vhd_bitmap_all_set(bitmap, 0, vhd_visible_sectors(vhd, block)))
                vhd_bitmap_drop_locked(vhd, block, VHD_BITMAP_FULL);
}

/* R7. */
static void finish_round(struct vhd_image *vhd, struct round *round)
{
        MUTEX_GUARD(&vhd->lock);
        for (size_t i = 0; i < round->n_blocks; i++) {
                struct vhd_dirty *d = round->blocks[i];
                uint32_t block = d->block;

                d->durable_place = d->round_place;
                forget_copy(d);
                if (d->now || vhd_bat_get(vhd->bat, block) != d->durable_place)
                        continue;
                dirty_end(vhd, d);
                shrink_bitmap(vhd, block);
        }
        redo_drop(vhd->redo, round->mark);
        vhd_freed_committed_locked(vhd, round->number);
}

/* Nothing that leads to what was copied has been written: it is dirty as before (disk full). If the
 * redo file has no room left for one more try, there will be none. */
static void undo_copy(struct vhd_image *vhd, struct round *round)
{
        MUTEX_GUARD(&vhd->lock);
        for (size_t i = 0; i < round->n_blocks; i++) {
                forget_copy(round->blocks[i]);
                mark_now(vhd, round->blocks[i]);
        }
        if (!vhd_redo_has_room_locked(vhd, 1))
                vhd_poison(vhd);
}

/* (0). -ENOSPC and the like leave everything dirty: the caller may make room and flush again. */
static int begin_round(struct vhd_image *vhd, struct round *round)
{
        int r;

        pthread_mutex_lock(&vhd->lock);
        r = copy_dirty(vhd, round);
        if (r == 0) {
                qsort(round->blocks, round->n_blocks, sizeof(*round->blocks), compare_blocks);
                expect_round(vhd, round);
        }
        pthread_mutex_unlock(&vhd->lock);
        if (r == 0 && !MUTANT("new-bitmap-late"))
                r = write_new_bitmaps(vhd, round);
        if (r < 0 && round->n_blocks)
                undo_copy(vhd, round);
        return r;
}

/* R8. A full disk there leaves everything here dirty. A failed sync there is one of ours, too: whoever
 * comes after us must not believe our records that free blocks (E5). */
static int flush_first(struct vhd_image *vhd)
{
        struct image *first = atomic_load(&vhd->image.flush_first);
        int r = first ? first->format->flush(first) : 0;

        if (r == -EIO)
                vhd_poison(vhd);
        return r;
}

static int run_round(struct vhd_image *vhd)
{
        _cleanup_free_ struct vhd_dirty **blocks = NULL;
        struct round round = {0};
        int r = 0;

        if (atomic_load(&vhd->poisoned))
                return -EIO;
        if (vhd->settled)
                return 0;
        if (MUTANT("drain-round-before-copy"))
                r = flush_first(vhd);
        r = begin_round(vhd, &round);
        blocks = round.blocks;
        if (r == 0 && !MUTANT("drain-no-round-below") && !MUTANT("drain-round-before-copy")) {
                r = flush_first(vhd);
                if (r < 0 && round.n_blocks)
                        undo_copy(vhd, &round);
        }
        if (r < 0)
                return r;
        if (round.n_blocks == 0 || !MUTANT("skip-sync-1"))
                r = sync_or_poison(vhd); /* (1) */
        if (r == 0 && round.n_blocks) {
                r = write_old_bitmaps(vhd, &round); /* (2) */
                if (r == 0)
                        r = write_bat(vhd, &round);
                if (r < 0)
                        vhd_poison(vhd); /* R6 */
                else if (!MUTANT("skip-sync-3"))
                        r = sync_or_poison(vhd); /* (3) */
        }
        if (r < 0)
                return r;
        finish_round(vhd, &round);
        vhd_freed_begin_grace(vhd);
        return 0;
}

/* --- flushes */

static void answer_waiters(struct vhd_image *vhd, uint64_t round, int result)
{
        for (struct vhd_flush_waiter **at = &vhd->waiters; *at;) {
                struct vhd_flush_waiter *waiter = *at;

                if (waiter->round > round) {
                        at = &waiter->next;
                        continue;
                }
                *at = waiter->next;
                waiter->result = result;
                waiter->done = true;
        }
}

/* R5. Whoever finds no round running runs the next one, for all who wait for it. */
int vhd_flush(struct vhd_image *vhd)
{
        struct vhd_flush_waiter self = {0};

        MUTEX_GUARD(&vhd->flush_lock);
        if (vhd->round_running && MUTANT("quick-flush"))
                return file_sync(vhd->image.file);
        self.round = vhd->rounds_begun + 1;
        if (vhd->round_running && MUTANT("join-running-round"))
                self.round = vhd->rounds_begun;
        self.next = vhd->waiters;
        vhd->waiters = &self;
        while (!self.done) {
                uint64_t number;
                int r;

                if (vhd->round_running) {
                        pthread_cond_wait(&vhd->flush_done, &vhd->flush_lock);
                        continue;
                }
                vhd->round_running = true;
                number = ++vhd->rounds_begun;
                pthread_mutex_unlock(&vhd->flush_lock);
                r = run_round(vhd);
                pthread_mutex_lock(&vhd->flush_lock);
                vhd->round_running = false;
                answer_waiters(vhd, number, r);
                pthread_cond_broadcast(&vhd->flush_done);
        }
        return self.result;
}

/* In the turn of a round, so that no flush meets the image half way. */
static int settle_in_turn(struct vhd_image *vhd, struct error *err)
{
        int r;

        if (atomic_load(&vhd->poisoned))
                return fail(err, EIO, "a sync of '%s' failed", vhd->image.file->path);
        r = vhd->touched ? vhd_lower_footer(vhd, true, err) : 0;
        if (r < 0 && file_sync_error(vhd->image.file)) {
                vhd_poison(vhd);
                r = -EIO;
        }
        if (r < 0)
                return r;
        vhd->redo = redo_close(vhd->redo, true);
        vhd->image.writable = false;
        return 0;
}

int vhd_settle(struct vhd_image *vhd, struct error *err)
{
        int r = 0;

        if (!vhd->image.writable)
                return 0;
        vhd_keeper_stop(vhd);
        r = vhd_flush(vhd);
        if (r < 0)
                return fail_os(err, -r, "cannot flush '%s'", vhd->image.file->path);

        MUTEX_GUARD(&vhd->flush_lock);
        while (vhd->round_running)
                pthread_cond_wait(&vhd->flush_done, &vhd->flush_lock);
        vhd->round_running = true;
        pthread_mutex_unlock(&vhd->flush_lock);
        r = settle_in_turn(vhd, err);
        pthread_mutex_lock(&vhd->flush_lock);
        vhd->round_running = false;
        vhd->settled = r == 0;
        pthread_cond_broadcast(&vhd->flush_done);
        return r;
}
