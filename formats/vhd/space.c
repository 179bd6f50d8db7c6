/* SPDX-License-Identifier: Apache-2.0 */
/* Places for new blocks, and the end footer ahead of them (rules E6 and E8).
 *
 *   S1  A durable end footer lies behind every place that is given out: the footer goes further out
 *       and is synced before the space in front of it may be used.
 *   S2  The file grows by the footer's write alone.
 *   S3  A place that was freed is used again only after the round that made the freeing durable
 *       and after everybody left who could still be reading there.
 *   S4  What a new block does not get written reads as zeros: known zero space, or punched first.
 */
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "formats/vhd/image.h"

#define DATA_ALIGNMENT   4096u
#define MIN_AHEAD_BLOCKS 8u
#define MAX_AHEAD_BLOCKS 1024u
#define AHEAD_FRACTION   16u
#define LAST_SECTOR      UINT64_C(0xfffffffd) /* the BAT's 32 bits, less its two special values */

uint64_t vhd_place_at(const struct vhd_image *vhd, uint64_t offset)
{
        return round_up_to(offset + vhd->bitmap_size, DATA_ALIGNMENT) - vhd->bitmap_size;
}

/* What one more block costs, gaps included. */
static uint64_t stride(const struct vhd_image *vhd)
{
        return round_up_to(vhd->bitmap_size, DATA_ALIGNMENT) +
                round_up_to(vhd->image.block_size, DATA_ALIGNMENT);
}

static uint64_t ahead_of(const struct vhd_image *vhd, uint64_t file_size)
{
        uint64_t n = file_size / AHEAD_FRACTION / stride(vhd);

        n = MAX_OF(n, (uint64_t)MIN_AHEAD_BLOCKS);
        return MIN_OF(n, (uint64_t)MAX_AHEAD_BLOCKS) * stride(vhd);
}

/* Where the footer should go so that at least one block fits before it, or -ENOSPC. */
static int next_footer_offset(const struct vhd_image *vhd, uint64_t next_free, uint64_t footer,
        uint64_t ahead, uint64_t *ret)
{
        uint64_t limit = LAST_SECTOR * SECTOR_SIZE;
        uint64_t least = vhd_place_at(vhd, next_free) + vhd->block_bytes;
        uint64_t offset;

        if (least > limit)
                return -ENOSPC;
        offset = MAX_OF(round_up_to(footer, DATA_ALIGNMENT) + ahead, least);
        *ret = round_up_to(MIN_OF(offset, limit), SECTOR_SIZE);
        return *ret >= footer + SECTOR_SIZE ? 0 : -ENOSPC;
}

static int write_footer(struct vhd_image *vhd, uint64_t offset)
{
        return file_write(vhd->image.file, &vhd->metadata.footer.raw, VHD_FOOTER_SIZE, offset, 0);
}

/* The file ends where it ended: who changes the footers finds them by the place that we know. */
static void take_back(struct vhd_image *vhd, uint64_t old)
{
        uint64_t size;
        int r = file_size_get(vhd->image.file, &size);

        if (r == 0 && size != old + VHD_FOOTER_SIZE)
                r = file_truncate(vhd->image.file, old + VHD_FOOTER_SIZE);
        if (r < 0)
                vhd_poison(vhd);
}

/* Moves the end footer further out. The old one's bytes are made zero before anybody may be given
 * the space: S4 counts on it. */
static int extend(struct vhd_image *vhd, uint64_t seen_footer, uint64_t ahead)
{
        static const uint8_t zeros[VHD_FOOTER_SIZE];
        uint64_t old, new, next_free;
        int r;

        MUTEX_GUARD(&vhd->extend_lock);
        pthread_mutex_lock(&vhd->lock);
        old = vhd->footer_offset;
        next_free = vhd->next_free;
        pthread_mutex_unlock(&vhd->lock);
        if (old != seen_footer)
                return 0; /* somebody else did it meanwhile */
        if (vhd->poisoned)
                return -EIO;
        r = next_footer_offset(vhd, next_free, old, ahead, &new);
        if (r < 0)
                return r;
        if (!MUTANT("footer-not-ahead"))
                r = write_footer(vhd, new); /* S2 */
        if (r < 0) {
                take_back(vhd, old);
                return r;
        }
        if (!MUTANT("footer-not-ahead")) {
                r = file_sync(vhd->image.file); /* S1 */
                if (r < 0) {
                        vhd_poison(vhd);
                        return -EIO;
                }
        }
        r = file_write(vhd->image.file, zeros, sizeof(zeros), old, 0);
        if (r < 0) { /* half a footer, perhaps: neither is to be believed */
                vhd_poison(vhd);
                return r;
        }
        pthread_mutex_lock(&vhd->lock);
        vhd->footer_offset = new;
        vhd->touched = true;
        if (vhd->zero_from == UINT64_MAX)
                vhd->zero_from = old;
        pthread_mutex_unlock(&vhd->lock);
        return 0;
}

int vhd_make_room(struct vhd_image *vhd)
{
        uint64_t n = MIN_OF((uint64_t)vhd->metadata.n_blocks, (uint64_t)MAX_AHEAD_BLOCKS);
        uint64_t footer;

        pthread_mutex_lock(&vhd->lock);
        footer = vhd->footer_offset;
        pthread_mutex_unlock(&vhd->lock);
        return extend(vhd, footer, MAX_OF(n, (uint64_t)MIN_AHEAD_BLOCKS) * stride(vhd));
}

static void *keeper_main(void *opaque)
{
        struct vhd_image *vhd = opaque;

        pthread_mutex_lock(&vhd->lock);
        while (!vhd->keeper_stop) {
                bool want_extend = vhd->keeper_extend, want_flush = vhd->keeper_flush;
                uint64_t footer = vhd->footer_offset;

                if (!want_extend && !want_flush) {
                        pthread_cond_wait(&vhd->keeper_wakes, &vhd->lock);
                        continue;
                }
                vhd->keeper_extend = vhd->keeper_flush = false;
                pthread_mutex_unlock(&vhd->lock);
                /* Failures meet the request that needs what was not done, or the next flush. */
                if (want_extend)
                        extend(vhd, footer, ahead_of(vhd, footer));
                if (want_flush)
                        vhd_flush(vhd);
                pthread_mutex_lock(&vhd->lock);
        }
        pthread_mutex_unlock(&vhd->lock);
        return NULL;
}

/* Asks the image's own thread to act before anybody has to wait; without one the need itself will
 * make somebody do it. */
void vhd_keeper_kick_locked(struct vhd_image *vhd, bool want_extend, bool want_flush)
{
        if (vhd->image.file->fs->single_threaded)
                return;
        if (!vhd->keeper_runs && !vhd->keeper_stop)
                vhd->keeper_runs = pthread_create(&vhd->keeper, NULL, keeper_main, vhd) == 0;
        vhd->keeper_extend |= want_extend;
        vhd->keeper_flush |= want_flush;
        pthread_cond_signal(&vhd->keeper_wakes);
}

void vhd_keeper_stop(struct vhd_image *vhd)
{
        bool runs;

        pthread_mutex_lock(&vhd->lock);
        runs = vhd->keeper_runs;
        vhd->keeper_stop = true;
        pthread_cond_signal(&vhd->keeper_wakes);
        pthread_mutex_unlock(&vhd->lock);
        if (runs)
                pthread_join(vhd->keeper, NULL);
        vhd->keeper_runs = false;
}

/* A place, taken: a freed one or a hole first, else behind the last block. -EAGAIN: the footer is in
 * the way. *zero: the data there is known to be zeros. */
static int take_place(
        struct vhd_image *vhd, bool only_behind, uint32_t *ret, bool *zero, uint64_t *footer)
{
        uint64_t offset;

        MUTEX_GUARD(&vhd->lock);
        if (vhd->free_places && !only_behind) {
                struct vhd_freed *freed = vhd->free_places;

                vhd->free_places = freed->next;
                *ret = freed->place;
                *zero = freed->zero;
                free(freed);
                return 0;
        }
        *zero = false;
        if (!only_behind && vhd_hole_take_locked(vhd, ret))
                return 0;
        *footer = vhd->footer_offset;
        offset = vhd_place_at(vhd, vhd->next_free);
        if (offset / SECTOR_SIZE >= VHD_BAT_BAD) /* a BAT's entry cannot name it */
                return -ENOSPC;
        if (offset + vhd->block_bytes > vhd->footer_offset)
                return -EAGAIN;
        vhd->next_free = offset + vhd->block_bytes;
        if (vhd->footer_offset - vhd->next_free < ahead_of(vhd, vhd->footer_offset) / 2)
                vhd_keeper_kick_locked(vhd, true, false);
        *ret = (uint32_t)(offset / SECTOR_SIZE);
        *zero = vhd->zero_from != UINT64_MAX && offset + vhd->bitmap_size >= vhd->zero_from;
        return 0;
}

void vhd_place_give_back(struct vhd_image *vhd, uint32_t place)
{
        struct vhd_freed *freed = calloc(1, sizeof(*freed));

        if (!freed)
                return; /* the space is lost until the image is opened again */
        freed->place = place;
        MUTEX_GUARD(&vhd->lock);
        freed->next = vhd->free_places;
        vhd->free_places = freed;
}

/* An empty bitmap in the file takes its space now (no disk-full later, in a round), and the data
 * area is zero where we cannot know that it is (S4). */
int vhd_place_prepare(struct vhd_image *vhd, uint32_t place, bool zero)
{
        uint64_t offset = (uint64_t)place * SECTOR_SIZE;
        _cleanup_free_ void *empty = calloc(1, vhd->bitmap_size);
        int r = 0;

        if (!empty)
                return -ENOMEM;
        if (!zero && !MUTANT("skip-zero-new"))
                r = file_punch(vhd->image.file, offset + vhd->bitmap_size, vhd->image.block_size);
        if (r == 0 && !MUTANT("new-bitmap-late"))
                r = file_write(vhd->image.file, empty, vhd->bitmap_size, offset, 0);
        return r;
}

static int publish_place(struct vhd_image *vhd, uint32_t block, uint32_t place)
{
        struct vhd_bitmap *bitmap = vhd_bitmap_new(block, place, vhd->bitmap_size);

        if (!bitmap)
                return -ENOMEM;
        MUTEX_GUARD(&vhd->lock);
        if (vhd_bat_reserve(vhd->bat, block) < 0 || vhd_loaded_reserve_locked(vhd) < 0 ||
                vhd_track_locked(vhd, block, VHD_BAT_UNUSED, false) < 0) {
                vhd_bitmap_free(bitmap);
                return -ENOMEM;
        }
        vhd->touched = true;
        bitmap->changed = true;
        vhd_loaded_add_locked(vhd, bitmap);
        vhd_bat_set_bitmap(vhd->bat, block, bitmap);
        vhd_bat_set(vhd->bat, block, place);
        return 0;
}

int vhd_place_new(struct vhd_image *vhd, bool only_behind, uint32_t *ret, bool *ret_zero)
{
        uint64_t footer = 0;
        int r;

        while ((r = take_place(vhd, only_behind, ret, ret_zero, &footer)) == -EAGAIN) {
                r = extend(vhd, footer, ahead_of(vhd, footer));
                if (r < 0)
                        return r;
        }
        return r;
}

int vhd_allocate(struct vhd_image *vhd, uint32_t block, bool *ret_zero)
{
        uint32_t place;
        bool zero;
        int r;

        *ret_zero = false;
        MUTEX_GUARD(&vhd->alloc_lock);
        if (vhd_bat_get(vhd->bat, block) != VHD_BAT_UNUSED)
                return 0; /* another write of the same block was quicker */
        r = vhd_place_new(vhd, false, &place, &zero);
        if (r < 0)
                return r;
        r = vhd_place_prepare(vhd, place, zero);
        if (r == 0)
                r = publish_place(vhd, block, place);
        if (r < 0) {
                vhd_place_give_back(vhd, place);
                return r;
        }
        *ret_zero = true;
        return 0;
}

/* On whichever thread: all who could read there have left (S3). */
static void place_is_free(struct grace_call *call)
{
        struct vhd_freed *freed =
                (struct vhd_freed *)((char *)call - offsetof(struct vhd_freed, call));
        struct vhd_image *vhd = freed->image;

        MUTEX_GUARD(&vhd->lock);
        vhd_pending_remove_locked(vhd, freed);
        freed->next = vhd->free_places;
        vhd->free_places = freed;
        vhd->n_in_grace--;
}

void vhd_pending_add_locked(struct vhd_image *vhd, struct vhd_freed *freed)
{
        freed->pending_prev = NULL;
        freed->pending_next = vhd->pending;
        if (vhd->pending)
                vhd->pending->pending_prev = freed;
        vhd->pending = freed;
}

void vhd_pending_remove_locked(struct vhd_image *vhd, struct vhd_freed *freed)
{
        if (freed->pending_prev)
                freed->pending_prev->pending_next = freed->pending_next;
        else
                vhd->pending = freed->pending_next;
        if (freed->pending_next)
                freed->pending_next->pending_prev = freed->pending_prev;
}

void vhd_freed_committed_locked(struct vhd_image *vhd, uint64_t n)
{
        struct vhd_freed **at = &vhd->freed;

        while (*at) {
                struct vhd_freed *freed = *at;

                if (freed->round > n) {
                        at = &freed->next;
                        continue;
                }
                *at = freed->next;
                freed->next = vhd->committed;
                vhd->committed = freed;
        }
}

void vhd_freed_begin_grace(struct vhd_image *vhd)
{
        struct vhd_freed *freed;

        pthread_mutex_lock(&vhd->lock);
        freed = vhd->committed;
        vhd->committed = NULL;
        for (const struct vhd_freed *f = freed; f; f = f->next)
                vhd->n_in_grace++;
        pthread_mutex_unlock(&vhd->lock);
        while (freed) {
                struct vhd_freed *next = freed->next;

                freed->call.run = place_is_free;
                grace_defer(vhd->image.places, &freed->call);
                freed = next;
        }
}

/* E6: at each cut in between the file ends in a valid footer. */
int vhd_footer_to(struct vhd_image *vhd, uint64_t low, struct error *err)
{
        struct file *file = vhd->image.file;
        int r = MUTANT("truncate-no-footer") ? 0 : write_footer(vhd, low);

        if (r == 0 && !MUTANT("truncate-before-sync"))
                r = file_sync(file);
        if (r == 0)
                r = file_truncate(file, low + VHD_FOOTER_SIZE);
        if (r == 0)
                r = file_sync(file);
        if (r == 0)
                return 0;
        fail_os(err, -r, "cannot move the end footer of '%s' to offset %llu", file->path,
                (unsigned long long)low);
        error_set_file(err, file->path);
        error_set_offset(err, low);
        return r;
}

/* Clean close: the footer at the lower place, sync, truncate. */
int vhd_lower_footer(struct vhd_image *vhd, bool readers, struct error *err)
{
        uint64_t end, low;

        pthread_mutex_lock(&vhd->lock);
        end = vhd_bat_end(vhd->bat, vhd->metadata.metadata_end, vhd->block_bytes);
        if (readers)
                end = MAX_OF(end, vhd->next_free); /* E8: no grace to wait for */
        pthread_mutex_unlock(&vhd->lock);
        low = round_up_to(end, SECTOR_SIZE);
        return low + VHD_FOOTER_SIZE > vhd->footer_offset ? 0 : vhd_footer_to(vhd, low, err);
}

static void free_list(struct vhd_freed *freed)
{
        while (freed) {
                struct vhd_freed *next = freed->next;

                free(freed);
                freed = next;
        }
}

void vhd_space_free_all(struct vhd_image *vhd)
{
        free_list(vhd->freed);
        free_list(vhd->committed);
        free_list(vhd->free_places);
        vhd->freed = vhd->committed = vhd->free_places = vhd->pending = NULL;
        free(vhd->holes);
        vhd->holes = NULL;
}

uint32_t vhd_n_in_grace(struct vhd_image *vhd)
{
        MUTEX_GUARD(&vhd->lock);
        return vhd->n_in_grace;
}
