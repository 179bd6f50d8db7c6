/* SPDX-License-Identifier: Apache-2.0 */
/* What jobs do to the blocks of an image that is in use: release them, move them into holes, and end
 * the file where the last block then ends (rules E4, E6, E8).
 *
 *   M1  A hole is a range that no entry names, no metadata takes, no record of a dead process speaks
 *       of, and no freed place whose commit and grace are not over lies in.
 *   M2  Data and bitmap are in the new place before the record, and the record before the entry that
 *       others see. What a power cut needs, a round does: the bitmap again in its (0), then a sync,
 *       and only then the entry on disk (R3 of round.c).
 *   M3  The old place keeps its bytes until it is free by E8: it is not punched, not used and not cut
 *       off before.
 *   M4  The file ends behind a durable footer at each instant (S1 of space.c).
 */
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "formats/vhd/image.h"

static uint32_t block_of(const struct vhd_image *vhd, uint64_t offset)
{
        return (uint32_t)(offset >> vhd->block_shift);
}

uint64_t vhd_place(const struct image *image, uint64_t offset)
{
        const struct vhd_image *vhd = (const struct vhd_image *)image;
        uint32_t place = vhd_bat_get(vhd->bat, block_of(vhd, offset));

        if (place == VHD_BAT_UNUSED || place == VHD_BAT_BAD)
                return UINT64_MAX;
        return (uint64_t)place * SECTOR_SIZE + vhd->bitmap_size;
}

int vhd_release(struct image *image, uint64_t offset)
{
        struct vhd_image *vhd = vhd_of(image);
        struct vhd_freed *freed;
        int r = vhd_may_change(vhd);

        if (r < 0)
                return r;
        if (vhd_place(image, offset) == UINT64_MAX)
                return vhd_bat_get(vhd->bat, block_of(vhd, offset)) == VHD_BAT_BAD ? -EIO : 0;
        freed = calloc(1, sizeof(*freed));
        if (!freed)
                return -ENOMEM;
        freed->job = true;
        if (MUTANT("punch-before-commit") || MUTANT("drain-punch-early"))
                file_punch(image->file, vhd_place(image, offset), image->block_size);
        pthread_mutex_lock(&vhd->lock);
        r = vhd_make_absent_locked(vhd, block_of(vhd, offset), freed);
        pthread_mutex_unlock(&vhd->lock);
        if (r < 0)
                free(freed);
        return r;
}

/* --- holes */

struct ranges {
        struct vhd_hole *all;
        size_t n, capacity;
        uint64_t block_bytes;
};

static int add_range(struct ranges *ranges, uint64_t offset, uint64_t end)
{
        if (ranges->n == ranges->capacity) {
                size_t capacity = ranges->capacity ? 2 * ranges->capacity : 256;
                struct vhd_hole *all = reallocarray(ranges->all, capacity, sizeof(*all));

                if (!all)
                        return -ENOMEM;
                ranges->all = all;
                ranges->capacity = capacity;
        }
        ranges->all[ranges->n++] = (struct vhd_hole){offset, end};
        return 0;
}

static int add_place(void *opaque, uint32_t block, uint32_t place)
{
        struct ranges *ranges = opaque;
        uint64_t offset = (uint64_t)place * SECTOR_SIZE;

        (void)block;
        return place == VHD_BAT_BAD ? 0 : add_range(ranges, offset, offset + ranges->block_bytes);
}

/* With the whole slot of each locator: a longer text may come. */
static int add_metadata(const struct vhd_image *vhd, struct ranges *ranges)
{
        const struct vhd_metadata *metadata = &vhd->metadata;
        struct vhd_range structures[VHD_MAX_RANGES];
        size_t n = vhd_metadata_ranges(metadata, structures);
        int r = 0;

        for (size_t i = 0; i < n && r == 0; i++)
                r = add_range(ranges, structures[i].offset,
                        round_up_to(structures[i].offset + structures[i].length, SECTOR_SIZE));
        for (unsigned i = 0; i < VHD_N_LOCATORS && r == 0; i++) {
                const struct vhd_locator *locator = &metadata->header.locators[i];

                if (locator->data_space > 0 &&
                        range_inside(
                                locator->data_offset, locator->data_space, metadata->tail_offset))
                        r = add_range(ranges, locator->data_offset,
                                round_up_to(
                                        locator->data_offset + locator->data_space, SECTOR_SIZE));
        }
        return r;
}

/* M1. Also what a round that runs is still writing to: such places are pending, too. */
static int add_pending_locked(struct vhd_image *vhd, struct ranges *ranges)
{
        int r = 0;

        for (struct vhd_freed *f = vhd->pending; f && r == 0; f = f->pending_next)
                r = add_place(ranges, 0, f->place);
        return r;
}

static int compare_ranges(const void *a, const void *b)
{
        const struct vhd_hole *x = a, *y = b;

        return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* What is left between the ranges from @from to @to, in place of them. */
static void turn_inside_out(struct ranges *ranges, uint64_t from, uint64_t to)
{
        uint64_t at = from;
        size_t n = 0;

        qsort(ranges->all, ranges->n, sizeof(*ranges->all), compare_ranges);
        for (size_t i = 0; i < ranges->n; i++) {
                struct vhd_hole used = ranges->all[i];

                if (used.offset > at && used.offset - at >= ranges->block_bytes)
                        ranges->all[n++] = (struct vhd_hole){at, used.offset};
                at = MAX_OF(at, used.end);
        }
        if (to > at && to - at >= ranges->block_bytes && n < ranges->n)
                ranges->all[n++] = (struct vhd_hole){at, to};
        ranges->n = n;
}

static void forget_free_places_locked(struct vhd_image *vhd)
{
        while (vhd->free_places) {
                struct vhd_freed *freed = vhd->free_places;

                vhd->free_places = freed->next;
                free(freed);
        }
}

int vhd_find_holes(struct image *image)
{
        struct vhd_image *vhd = vhd_of(image);
        struct ranges ranges = {.block_bytes = vhd->block_bytes};
        uint64_t from = vhd->metadata.footer.data_offset + VHD_HEADER_SIZE;
        int r = vhd_may_change(vhd);

        /* Places that only a dead process's records name are no business of ours after a round. */
        if (r == 0)
                r = vhd_flush(vhd);
        if (r < 0)
                return r;
        grace_poll(image->places);
        /* Nobody gets a place meanwhile, so that the table is looked at without the lock: what loses
         * its place while we look is taken for used, or is pending. */
        MUTEX_GUARD(&vhd->alloc_lock);
        r = add_metadata(vhd, &ranges);
        if (r == 0)
                r = vhd_bat_each(vhd->bat, add_place, &ranges);
        pthread_mutex_lock(&vhd->lock);
        if (r == 0 && vhd->n_moves)
                r = -EBUSY;
        if (r == 0 && !MUTANT("holes-over-pending"))
                r = add_pending_locked(vhd, &ranges);
        if (r == 0) {
                turn_inside_out(&ranges, from, vhd->next_free);
                forget_free_places_locked(vhd); /* they are holes now */
                free(vhd->holes);
                vhd->holes = ranges.all;
                vhd->n_holes = ranges.n;
                vhd->first_hole = 0;
        }
        pthread_mutex_unlock(&vhd->lock);
        if (r < 0)
                free(ranges.all);
        return r;
}

/* Does a block fit into @hole, at or behind @lowest? *ret: where. */
static bool fits(const struct vhd_image *vhd, const struct vhd_hole *hole, uint64_t lowest,
        bool aligned, uint64_t *ret)
{
        uint64_t at = MAX_OF(hole->offset, lowest);

        *ret = aligned ? vhd_place_at(vhd, at) : round_up_to(at, SECTOR_SIZE);
        return *ret < hole->end && hole->end - *ret >= vhd->block_bytes;
}

/* The first one that serves. */
static bool take_hole(
        struct vhd_image *vhd, uint64_t lowest, uint64_t below, bool aligned, uint32_t *ret)
{
        while (vhd->first_hole < vhd->n_holes &&
                vhd->holes[vhd->first_hole].end - vhd->holes[vhd->first_hole].offset <
                        vhd->block_bytes)
                vhd->first_hole++;
        for (size_t i = vhd->first_hole; i < vhd->n_holes; i++) {
                struct vhd_hole *hole = &vhd->holes[i];
                uint64_t at;

                if (hole->offset >= below)
                        return false;
                if (!fits(vhd, hole, lowest, aligned, &at))
                        continue;
                if (at >= below || below - at < vhd->block_bytes)
                        return false;
                *ret = (uint32_t)(at / SECTOR_SIZE);
                hole->offset =
                        at + vhd->block_bytes; /* what lies before it is lost until we look again */
                return true;
        }
        return false;
}

/* E6 wants data on 4 KiB. In files of other writers no place is so: there a block that is not loses
 * nothing in another such place, and the file is packed as tightly as it was. One that is goes into
 * such a place only if it finds no better. */
static bool take_better_hole(
        struct vhd_image *vhd, uint64_t lowest, uint64_t below, uint64_t data, uint32_t *ret)
{
        bool aligned = vhd_place_at(vhd, data - vhd->bitmap_size) == data - vhd->bitmap_size;

        if (aligned && take_hole(vhd, lowest, below, true, ret))
                return true;
        return take_hole(vhd, lowest, below, false, ret);
}

bool vhd_hole_take_locked(struct vhd_image *vhd, uint32_t *ret)
{
        return vhd->n_holes > 0 && take_hole(vhd, 0, vhd->next_free, true, ret);
}

/* --- moving */

/* Behind @behind, where there is no hole: at the end. The caller holds alloc_lock. */
static int take_behind(struct vhd_image *vhd, uint64_t behind, uint32_t *ret, bool *zero)
{
        pthread_mutex_lock(&vhd->lock);
        vhd->next_free = MAX_OF(vhd->next_free, behind);
        pthread_mutex_unlock(&vhd->lock);
        return vhd_place_new(vhd, true, ret, zero);
}

static void end_move(struct vhd_image *vhd)
{
        MUTEX_GUARD(&vhd->lock);
        vhd->n_moves--;
}

static void give_up(struct vhd_image *vhd, uint32_t place)
{
        vhd_place_give_back(vhd, place);
        end_move(vhd);
}

/* 1: *place is taken, and a move has begun. */
static int take_for_move(
        struct vhd_image *vhd, uint64_t data, uint64_t behind, uint32_t *place, bool *zero)
{
        uint64_t below = behind ? UINT64_MAX : data - vhd->bitmap_size;
        bool found;
        int r;

        pthread_mutex_lock(&vhd->lock);
        if (!vhd_redo_has_room_locked(vhd, 1)) {
                pthread_mutex_unlock(&vhd->lock);
                return -ENOBUFS;
        }
        found = take_better_hole(vhd, behind, below, data, place);
        vhd->n_moves += found || behind;
        pthread_mutex_unlock(&vhd->lock);
        *zero = false;
        if (found)
                return 1;
        if (!behind)
                return 0;
        r = take_behind(vhd, behind, place, zero);
        if (r < 0)
                end_move(vhd);
        return r < 0 ? r : 1;
}

int vhd_move_begin(struct image *image, uint64_t offset, uint64_t behind, struct block_move *ret)
{
        struct vhd_image *vhd = vhd_of(image);
        uint64_t data = vhd_place(image, offset);
        uint32_t place = 0;
        bool zero = false;
        int r = vhd_may_change(vhd);

        if (r < 0)
                return r;
        if (data == UINT64_MAX)
                return 0;
        pthread_mutex_lock(&vhd->alloc_lock);
        r = take_for_move(vhd, data, behind, &place, &zero);
        pthread_mutex_unlock(&vhd->alloc_lock);
        if (r <= 0)
                return r;
        r = vhd_place_prepare(vhd, place, zero);
        if (r < 0) {
                give_up(vhd, place);
                return r;
        }
        *ret = (struct block_move){
                .offset = offset,
                .from = data,
                .to = (uint64_t)place * SECTOR_SIZE + vhd->bitmap_size,
        };
        return 1;
}

/* The block's bits as they are. The gate is closed, so they stay. */
static int copy_bits(struct vhd_image *vhd, uint32_t block, uint8_t *ret)
{
        uint32_t place = vhd_bat_get(vhd->bat, block);
        uint64_t ticket = grace_enter(grace_readers());
        const struct vhd_bitmap *bitmap = vhd_bat_bitmap(vhd->bat, block);
        bool known = bitmap && bitmap != VHD_BITMAP_FULL;

        if (known)
                vhd_bitmap_copy_out(bitmap, ret);
        grace_leave(grace_readers(), ticket);
        /* One that is not in memory, or only as "full", is as it is in the file. */
        return known ? 0 : vhd_bitmap_read(vhd, place, ret, 0);
}

/* M2. @bitmap and @freed are taken over on success. */
static int publish(struct vhd_image *vhd, uint32_t block, const uint8_t *bits,
        struct vhd_bitmap *bitmap, struct vhd_freed *freed)
{
        int r = 0;

        if (!MUTANT("move-bitmap-late"))
                r = file_write(vhd->image.file, bits, vhd->bitmap_size,
                        (uint64_t)bitmap->place * SECTOR_SIZE, 0);
        if (r < 0)
                return r;
        MUTEX_GUARD(&vhd->lock);
        return vhd_make_moved_locked(vhd, block, bitmap, freed);
}

int vhd_move_end(struct image *image, const struct block_move *move, bool copied)
{
        struct vhd_image *vhd = vhd_of(image);
        uint32_t block = block_of(vhd, move->offset);
        uint32_t place = (uint32_t)((move->to - vhd->bitmap_size) / SECTOR_SIZE);
        _cleanup_free_ uint8_t *bits = NULL;
        struct vhd_bitmap *bitmap;
        struct vhd_freed *freed;
        int r = vhd_may_change(vhd);

        if (!copied || r < 0) {
                give_up(vhd, place);
                return copied ? r : 0;
        }
        bits = malloc(vhd->bitmap_size);
        bitmap = vhd_bitmap_new(block, place, vhd->bitmap_size);
        freed = calloc(1, sizeof(*freed));
        r = bits && bitmap && freed ? copy_bits(vhd, block, bits) : -ENOMEM;
        if (r == 0) {
                vhd_bitmap_copy_in(bitmap, bits);
                r = publish(vhd, block, bits, bitmap, freed);
        }
        if (r == 0) {
                end_move(vhd);
                return 0;
        }
        vhd_bitmap_free(bitmap);
        free(freed);
        give_up(vhd, place);
        return r;
}

/* --- giving space back */

static void raise(uint64_t *end, const struct vhd_image *vhd, uint32_t place)
{
        if (place != VHD_BAT_UNUSED && place != VHD_BAT_BAD)
                *end = MAX_OF(*end, (uint64_t)place * SECTOR_SIZE + vhd->block_bytes);
}

/* M3: the first byte that nobody needs, nor anything behind it. */
static uint64_t needed_end_locked(const struct vhd_image *vhd)
{
        uint64_t end = vhd_bat_end(vhd->bat, vhd->metadata.metadata_end, vhd->block_bytes);

        if (MUTANT("shrink-over-pending"))
                return end;
        for (const struct vhd_freed *f = vhd->pending; f; f = f->pending_next)
                raise(&end, vhd, f->place);
        for (const struct vhd_dirty *d = vhd->dirty; d; d = d->next) {
                raise(&end, vhd, d->durable_place);
                if (d->in_round)
                        raise(&end, vhd, d->round_place);
        }
        return end;
}

/* What lies behind @low is no free space any more. */
static void cut_free_space_locked(struct vhd_image *vhd, uint64_t low)
{
        for (struct vhd_freed **at = &vhd->free_places; *at;) {
                struct vhd_freed *freed = *at;

                if ((uint64_t)freed->place * SECTOR_SIZE + vhd->block_bytes <= low) {
                        at = &freed->next;
                        continue;
                }
                *at = freed->next;
                free(freed);
        }
        while (vhd->n_holes > 0 && vhd->holes[vhd->n_holes - 1].offset >= low)
                vhd->n_holes--;
        if (vhd->n_holes > 0)
                vhd->holes[vhd->n_holes - 1].end = MIN_OF(vhd->holes[vhd->n_holes - 1].end, low);
        vhd->next_free = low;
        vhd->footer_offset = low;
        vhd->touched = true;
}

/* A footer may lie at @low now, in space that was known to be zeros. */
static void forget_zeros_locked(struct vhd_image *vhd, uint64_t low)
{
        vhd->zero_from = UINT64_MAX;
        for (struct vhd_freed *f = vhd->free_places; f; f = f->next)
                if ((uint64_t)f->place * SECTOR_SIZE + vhd->block_bytes > low)
                        f->zero = false;
}

/* M4. Nobody is given a place meanwhile: new blocks wait. */
static int shrink_file(struct vhd_image *vhd, struct error *err)
{
        uint64_t low;
        int r;

        MUTEX_GUARD(&vhd->alloc_lock);
        MUTEX_GUARD(&vhd->extend_lock);
        pthread_mutex_lock(&vhd->lock);
        low = round_up_to(needed_end_locked(vhd), SECTOR_SIZE);
        if (vhd->n_moves || low + VHD_FOOTER_SIZE > vhd->footer_offset) {
                pthread_mutex_unlock(&vhd->lock);
                return 0;
        }
        forget_zeros_locked(vhd, low);
        pthread_mutex_unlock(&vhd->lock);
        r = vhd_footer_to(vhd, low, err);
        if (r < 0 && file_sync_error(vhd->image.file)) {
                vhd_poison(vhd);
                return -EIO;
        }
        if (r < 0)
                return r;
        pthread_mutex_lock(&vhd->lock);
        cut_free_space_locked(vhd, low);
        pthread_mutex_unlock(&vhd->lock);
        return 0;
}

/* The lists of freed places, the lower one first. */
static struct vhd_freed *merge_by_place(struct vhd_freed *a, struct vhd_freed *b)
{
        struct vhd_freed *list = NULL, **at = &list;

        while (a && b) {
                struct vhd_freed **least = a->place < b->place ? &a : &b;

                *at = *least;
                at = &(*least)->next;
                *least = *at;
        }
        *at = a ? a : b;
        return list;
}

static struct vhd_freed *sort_by_place(struct vhd_freed *list, size_t n)
{
        struct vhd_freed *rest = list, *last = NULL;

        if (n < 2)
                return list;
        for (size_t i = 0; i < n / 2; i++) {
                last = rest;
                rest = rest->next;
        }
        last->next = NULL;
        return merge_by_place(sort_by_place(list, n / 2), sort_by_place(rest, n - n / 2));
}

#define MOST_PADDING UINT64_C(4096) /* between blocks, so that data lies on whole pages */

/* Up to which of them one punch takes them all: giving back an extent is what costs, and between two
 * blocks there is only what keeps data on whole pages; metadata lies lower, and no block fits in. */
static struct vhd_freed *end_of_run(const struct vhd_image *vhd, struct vhd_freed *first)
{
        struct vhd_freed *last = first;

        while (last->next && !last->next->zero) {
                uint64_t end = (uint64_t)last->place * SECTOR_SIZE + vhd->block_bytes;
                uint64_t next = (uint64_t)last->next->place * SECTOR_SIZE;

                if (next < end || next - end >= MIN_OF(vhd->block_bytes, MOST_PADDING) ||
                        (next > end && end < vhd->metadata.metadata_end))
                        break;
                last = last->next;
        }
        return last;
}

/* What is freed for good takes no space. A file system that cannot punch keeps it: nobody has asked
 * for zeros. */
static void punch_run(struct vhd_image *vhd, struct vhd_freed *first, struct vhd_freed *last)
{
        uint64_t from = (uint64_t)first->place * SECTOR_SIZE;
        uint64_t to = (uint64_t)last->place * SECTOR_SIZE + vhd->block_bytes;
        bool zero = file_punch(vhd->image.file, from, to - from) == 0;

        for (struct vhd_freed *f = first; f != last; f = f->next)
                f->zero = zero;
        last->zero = zero;
}

static void punch_free_places(struct vhd_image *vhd)
{
        struct vhd_freed *list, *last;
        size_t n = 0;

        pthread_mutex_lock(&vhd->lock);
        list = vhd->free_places;
        vhd->free_places = NULL;
        pthread_mutex_unlock(&vhd->lock);
        for (struct vhd_freed *f = list; f; f = f->next)
                n++;
        list = sort_by_place(list, n);
        for (struct vhd_freed *f = list; f; f = last->next) {
                last = f;
                if (f->zero)
                        continue;
                last = end_of_run(vhd, f);
                punch_run(vhd, f, last);
        }
        pthread_mutex_lock(&vhd->lock);
        while (list) {
                struct vhd_freed *next = list->next;

                list->next = vhd->free_places;
                vhd->free_places = list;
                list = next;
        }
        pthread_mutex_unlock(&vhd->lock);
}

int vhd_reclaim(struct image *image, bool shrink, struct error *err)
{
        struct vhd_image *vhd = vhd_of(image);
        int r = vhd_may_change(vhd);

        if (r < 0)
                return fail_os(
                        err, -r, "the space of '%s' cannot be given back", image->file->path);
        grace_poll(image->places);
        if (shrink)
                r = shrink_file(vhd, err);
        if (r == 0 || r == -ENOSPC)
                punch_free_places(vhd);
        if (r != -ENOSPC)
                return r;
        /* The footer itself found no room, and now there is some. */
        error_clear(err);
        return shrink_file(vhd, err);
}
