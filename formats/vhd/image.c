/* SPDX-License-Identifier: Apache-2.0 */
/* Dynamic and differencing VHDs behind formats/format.h. Fixed ones are flat (formats/flat.h).
 *
 * A reader looks at the entry, then at the bitmap; the bitmap carries the place that it speaks of,
 * so the two cannot be mixed up when a block is freed and allocated again in between.
 */
#include "formats/vhd/image.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/mutant.h"
#include "formats/flat.h"

#define MAX_LOADED_BYTES (8 * MIB) /* of clean bitmaps, in the whole process */

static _Atomic uint64_t loaded_bytes;

uint32_t vhd_visible_sectors(const struct vhd_image *vhd, uint32_t block)
{
        uint64_t start = (uint64_t)block << vhd->block_shift;

        return (uint32_t)(MIN_OF(vhd->image.size - start, (uint64_t)vhd->image.block_size) /
                SECTOR_SIZE);
}

/* --- bitmaps in memory, under a bound (E2) */

int vhd_loaded_reserve_locked(struct vhd_image *vhd)
{
        uint32_t capacity = vhd->loaded_capacity ? 2 * vhd->loaded_capacity : 16;
        struct vhd_bitmap **loaded;

        if (vhd->n_loaded < vhd->loaded_capacity)
                return 0;
        loaded = reallocarray(vhd->loaded, capacity, sizeof(*loaded));
        if (!loaded)
                return -ENOMEM;
        vhd->loaded = loaded;
        vhd->loaded_capacity = capacity;
        return 0;
}

void vhd_loaded_add_locked(struct vhd_image *vhd, struct vhd_bitmap *bitmap)
{
        bitmap->index = vhd->n_loaded;
        vhd->loaded[vhd->n_loaded++] = bitmap;
        atomic_fetch_add(&loaded_bytes, bitmap->size + sizeof(*bitmap));
}

static void loaded_remove(struct vhd_image *vhd, struct vhd_bitmap *bitmap)
{
        struct vhd_bitmap *last = vhd->loaded[--vhd->n_loaded];

        vhd->loaded[bitmap->index] = last;
        last->index = bitmap->index;
        atomic_fetch_sub(&loaded_bytes, bitmap->size + sizeof(*bitmap));
}

void vhd_bitmap_drop_locked(struct vhd_image *vhd, uint32_t block, struct vhd_bitmap *instead)
{
        struct vhd_bitmap *bitmap = vhd_bat_bitmap(vhd->bat, block);

        if (bitmap == instead)
                return;
        if (bitmap && (bitmap == VHD_BITMAP_FULL || bitmap->changed))
                vhd->bits_gone++;
        vhd_bat_set_bitmap(vhd->bat, block, instead);
        if (!bitmap || bitmap == VHD_BITMAP_FULL)
                return;
        loaded_remove(vhd, bitmap);
        vhd_bitmap_retire(bitmap, grace_readers());
}

void vhd_bitmap_swap_locked(struct vhd_image *vhd, uint32_t block, struct vhd_bitmap *bitmap)
{
        struct vhd_bitmap *old = vhd_bat_bitmap(vhd->bat, block);

        vhd->bits_gone++;
        vhd_loaded_add_locked(vhd, bitmap);
        /* In between a reader finds that the two do not belong together, and looks again. */
        vhd_bat_set_bitmap(vhd->bat, block, bitmap);
        vhd_bat_set(vhd->bat, block, bitmap->place);
        if (!old || old == VHD_BITMAP_FULL)
                return;
        loaded_remove(vhd, old);
        vhd_bitmap_retire(old, grace_readers());
}

/* The clock's hand goes round this image's bitmaps; each clean one that was not used since the last
 * time goes. A dirty one stays: the file does not hold its bits yet. */
static void evict_some(struct vhd_image *vhd)
{
        for (uint32_t looked = 0; looked < 2 * vhd->n_loaded && vhd->n_loaded > 1; looked++) {
                struct vhd_bitmap *bitmap;

                if (atomic_load(&loaded_bytes) <= MAX_LOADED_BYTES)
                        return;
                vhd->hand = vhd->hand + 1 < vhd->n_loaded ? vhd->hand + 1 : 0;
                bitmap = vhd->loaded[vhd->hand];
                if (vhd_bat_dirty(vhd->bat, bitmap->block) || atomic_exchange(&bitmap->used, false))
                        continue;
                vhd_bitmap_drop_locked(vhd, bitmap->block, NULL);
        }
}

int vhd_bitmap_read(struct vhd_image *vhd, uint32_t place, void *ret, unsigned flags)
{
        uint64_t offset = (uint64_t)place * SECTOR_SIZE;
        ssize_t got = file_read(vhd->image.file, ret, vhd->bitmap_size, offset,
                flags & MAP_NOWAIT ? FILE_NOWAIT : 0);

        if (got == (ssize_t)vhd->bitmap_size)
                return 0;
        if (flags & MAP_NOWAIT)
                return -EAGAIN;
        return got < 0 ? (int)got : -EIO;
}

static int install(struct vhd_image *vhd, struct vhd_bitmap *bitmap, bool may_be_full)
{
        uint32_t block = bitmap->block;

        /* Someone else was quicker, or the block has moved on: the caller looks again. */
        if (vhd_bat_get(vhd->bat, block) != bitmap->place || vhd_bat_bitmap(vhd->bat, block)) {
                vhd_bitmap_free(bitmap);
                return 0;
        }
        if (vhd_bat_reserve_bitmap(vhd->bat) < 0 || vhd_loaded_reserve_locked(vhd) < 0) {
                vhd_bitmap_free(bitmap);
                return -ENOMEM;
        }
        if (may_be_full && vhd_bitmap_all_set(bitmap, 0, vhd_visible_sectors(vhd, block))) {
                vhd_bat_set_bitmap(vhd->bat, block, VHD_BITMAP_FULL);
                vhd_bitmap_free(bitmap);
                return 0;
        }
        vhd_loaded_add_locked(vhd, bitmap);
        vhd_bat_set_bitmap(vhd->bat, block, bitmap);
        evict_some(vhd);
        return 0;
}

static int read_new_bitmap(struct vhd_image *vhd, uint32_t block, uint32_t place, unsigned flags,
        struct vhd_bitmap **ret)
{
        struct vhd_bitmap *bitmap;
        uint8_t small[SECTOR_SIZE];
        uint8_t *data = vhd->bitmap_size <= sizeof(small) ? small : malloc(vhd->bitmap_size);
        int r;

        if (!data)
                return -ENOMEM;
        r = vhd_bitmap_read(vhd, place, data, flags);
        bitmap = r < 0 ? NULL : vhd_bitmap_new(block, place, vhd->bitmap_size);
        if (r == 0 && !bitmap)
                r = -ENOMEM;
        if (r == 0)
                vhd_bitmap_copy_in(bitmap, data);
        if (data != small)
                free(data);
        *ret = bitmap;
        return r;
}

static uint64_t bits_gone(struct vhd_image *vhd)
{
        MUTEX_GUARD(&vhd->lock);
        return vhd->bits_gone;
}

int vhd_bitmap_load(struct vhd_image *vhd, uint32_t block, uint32_t place, unsigned flags)
{
        uint64_t before = bits_gone(vhd);
        struct vhd_bitmap *bitmap;
        int r = read_new_bitmap(vhd, block, place, flags, &bitmap);

        if (r < 0)
                return r;
        MUTEX_GUARD(&vhd->lock);
        /* While we read, somebody else may have loaded it, changed it, written it back and evicted it: what we
         * have may be what was there before. The caller looks again. */
        if (vhd->bits_gone != before) {
                vhd_bitmap_free(bitmap);
                return 0;
        }
        return install(vhd, bitmap, true);
}

int vhd_bitmap_load_words_locked(struct vhd_image *vhd, uint32_t block, uint32_t place)
{
        struct vhd_bitmap *bitmap;
        int r = read_new_bitmap(vhd, block, place, 0, &bitmap);

        return r < 0 ? r : install(vhd, bitmap, false);
}

/* --- mapping */

/* One look at entry and bitmap. -EAGAIN with *place set: the bitmap is not loaded. 1: they did not
 * belong together, look again. */
static int look(struct vhd_image *vhd, uint32_t block, uint32_t in_block, uint32_t length,
        struct extent *ret, uint32_t *place)
{
        uint32_t first = in_block / (uint32_t)SECTOR_SIZE;
        uint32_t last = (in_block + length - 1) / (uint32_t)SECTOR_SIZE;
        struct vhd_bitmap *bitmap;
        bool present = true;
        uint32_t run = last - first + 1;

        *place = vhd_bat_get(vhd->bat, block);
        if (*place == VHD_BAT_BAD)
                return -EIO;
        if (*place == VHD_BAT_UNUSED) {
                *ret = (struct extent){.kind = EXTENT_ABSENT, .length = length};
                return 0;
        }
        bitmap = vhd_bat_bitmap(vhd->bat, block);
        if (!bitmap)
                return -EAGAIN;
        if (bitmap == VHD_BITMAP_FULL) {
                if (vhd_bat_get(vhd->bat, block) != *place)
                        return 1;
        } else {
                if (bitmap->place != *place)
                        return 1;
                if (!atomic_load_explicit(&bitmap->used, memory_order_relaxed))
                        atomic_store_explicit(&bitmap->used, true, memory_order_relaxed);
                run = vhd_bitmap_run(bitmap, first, run, &present);
        }
        ret->kind = present ? EXTENT_DATA : EXTENT_ABSENT;
        ret->length = MIN_OF((uint64_t)(first + run) * SECTOR_SIZE - in_block, (uint64_t)length);
        ret->file_offset =
                present ? (uint64_t)*place * SECTOR_SIZE + vhd->bitmap_size + in_block : 0;
        return 0;
}

static int vhd_map(
        struct image *image, uint64_t offset, uint64_t length, unsigned flags, struct extent *ret)
{
        struct vhd_image *vhd = vhd_of(image);
        uint32_t block = (uint32_t)(offset >> vhd->block_shift);
        uint32_t in_block = (uint32_t)(offset & (image->block_size - 1));
        uint32_t here = (uint32_t)MIN_OF(length, (uint64_t)(image->block_size - in_block));

        for (;;) {
                uint64_t ticket = grace_enter(grace_readers());
                uint32_t place;
                int r = look(vhd, block, in_block, here, ret, &place);

                grace_leave(grace_readers(), ticket);
                if (r == 1)
                        continue;
                if (r != -EAGAIN)
                        return r;
                r = vhd_bitmap_load(vhd, block, place, flags);
                if (r < 0)
                        return r;
        }
}

static bool vhd_holds(const struct image *image, uint64_t offset)
{
        const struct vhd_image *vhd = (const struct vhd_image *)image;

        return vhd_bat_get(vhd->bat, (uint32_t)(offset >> vhd->block_shift)) != VHD_BAT_UNUSED;
}

/* --- writing */

/* Is every sector of the range present already? 1 yes, 0 no, or -errno. */
static int is_present(struct vhd_image *vhd, uint64_t offset, uint64_t length, unsigned flags,
        uint64_t *ret_file_offset)
{
        struct extent extent;
        int r = vhd_map(&vhd->image, offset, length, flags, &extent);

        if (r < 0)
                return r;
        *ret_file_offset = extent.file_offset;
        return extent.kind == EXTENT_DATA && extent.length == length;
}

static uint64_t data_offset(const struct vhd_image *vhd, uint64_t offset)
{
        uint32_t place = vhd_bat_get(vhd->bat, (uint32_t)(offset >> vhd->block_shift));

        return (uint64_t)place * SECTOR_SIZE + vhd->bitmap_size +
                (offset & (vhd->image.block_size - 1));
}

/* Below a quarter of room in the redo file the image's own thread begins a round; without room the
 * caller does. */
static int want_redo_room(struct vhd_image *vhd, unsigned flags)
{
        bool room;

        pthread_mutex_lock(&vhd->lock);
        room = vhd_redo_has_room_locked(vhd, 64);
        if (redo_free_slots(vhd->redo) - MIN_OF(vhd->redo_promised, redo_free_slots(vhd->redo)) <
                redo_total_slots(vhd->redo) / 2)
                vhd_keeper_kick_locked(vhd, false, true);
        pthread_mutex_unlock(&vhd->lock);
        if (room)
                return 0;
        return flags & MAP_NOWAIT ? -EAGAIN : vhd_flush(vhd);
}

static int vhd_prepare(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
        uint64_t *ret_file_offset, bool *ret_zero)
{
        struct vhd_image *vhd = vhd_of(image);
        uint32_t block = (uint32_t)(offset >> vhd->block_shift);
        int r;

        *ret_zero = false;
        if (!image->writable)
                return -EROFS;
        if (atomic_load(&vhd->poisoned))
                return -EIO;
        r = is_present(vhd, offset, length, flags, ret_file_offset);
        if (r != 0)
                return r < 0 ? r : 0;
        r = want_redo_room(vhd, flags);
        if (r < 0)
                return r;
        if (vhd_bat_get(vhd->bat, block) == VHD_BAT_UNUSED) {
                if (flags & MAP_NOWAIT)
                        return -EAGAIN;
                r = vhd_allocate(vhd, block, ret_zero);
                if (r < 0)
                        return r;
        }
        *ret_file_offset = data_offset(vhd, offset);
        return 0;
}

/* Under the lock: the bits, if the bitmap is loaded. -EAGAIN: it is not. */
static int complete_locked(
        struct vhd_image *vhd, uint32_t block, uint32_t first, uint32_t count, bool *changed)
{
        struct vhd_bitmap *bitmap = vhd_bat_bitmap(vhd->bat, block);

        if (!bitmap)
                return -EAGAIN;
        if (bitmap == VHD_BITMAP_FULL || vhd_bitmap_all_set(bitmap, first, count))
                return 0;
        *changed = true;
        return vhd_make_present_locked(vhd, block, first, count);
}

static int vhd_complete(struct image *image, uint64_t offset, uint64_t length, bool *ret_changed)
{
        struct vhd_image *vhd = vhd_of(image);
        uint32_t block = (uint32_t)(offset >> vhd->block_shift);
        uint32_t first = (uint32_t)((offset & (image->block_size - 1)) / SECTOR_SIZE);
        uint32_t count = (uint32_t)(length / SECTOR_SIZE);
        uint64_t unused;

        *ret_changed = false;
        if (is_present(vhd, offset, length, MAP_NOWAIT, &unused) == 1)
                return 0;
        for (;;) {
                int r;

                pthread_mutex_lock(&vhd->lock);
                r = complete_locked(vhd, block, first, count, ret_changed);
                pthread_mutex_unlock(&vhd->lock);
                if (r == -EAGAIN)
                        r = vhd_bitmap_load(vhd, block, vhd_bat_get(vhd->bat, block), 0);
                else if (r == -ENOBUFS)
                        r = vhd_flush(vhd); /* E4: when the redo file is full, completions wait */
                else
                        return r;
                if (r < 0)
                        return r;
        }
}

int vhd_may_change(const struct vhd_image *vhd)
{
        if (!vhd->image.writable)
                return -EROFS;
        return atomic_load(&vhd->poisoned) ? -EIO : 0;
}

static int vhd_discard(struct image *image, uint64_t offset)
{
        struct vhd_image *vhd = vhd_of(image);
        uint32_t block = (uint32_t)(offset >> vhd->block_shift), place;
        struct vhd_freed *freed;
        int r = vhd_may_change(vhd);

        if (r < 0)
                return r;
        place = vhd_bat_get(vhd->bat, block);
        if (place == VHD_BAT_UNUSED)
                return 0;
        if (place == VHD_BAT_BAD)
                return -EIO;
        freed = calloc(1, sizeof(*freed));
        if (!freed)
                return -ENOMEM;
        /* E8: the guest's own trim may punch at once: the block reads as zeros either way. */
        freed->zero = file_punch(image->file, (uint64_t)place * SECTOR_SIZE + vhd->bitmap_size,
                              image->block_size) == 0;
        for (;;) {
                pthread_mutex_lock(&vhd->lock);
                r = vhd_make_absent_locked(vhd, block, freed);
                pthread_mutex_unlock(&vhd->lock);
                if (r != -ENOBUFS)
                        break;
                r = vhd_flush(vhd);
                if (r < 0)
                        break;
        }
        if (r < 0)
                free(freed);
        return r;
}

static uint32_t vhd_n_waiting_places(struct image *image)
{
        return vhd_n_in_grace(vhd_of(image));
}

static bool vhd_is_durable(struct image *image, uint64_t offset, uint64_t length)
{
        struct vhd_image *vhd = vhd_of(image);
        uint32_t block = (uint32_t)(offset >> vhd->block_shift);
        const struct vhd_dirty *dirty;
        uint64_t unused;

        if (is_present(vhd, offset, length, MAP_NOWAIT, &unused) != 1)
                return false;
        if (MUTANT("dsync-dirty"))
                return true;
        MUTEX_GUARD(&vhd->lock);
        dirty = vhd_bat_dirty(vhd->bat, block);
        if (dirty && dirty->in_round && !dirty->now && MUTANT("fua-after-0"))
                return true;
        return !dirty;
}

static int image_flush(struct image *image)
{
        return vhd_flush(vhd_of(image));
}

static int image_make_room(struct image *image)
{
        return vhd_make_room(vhd_of(image));
}

static int image_settle_in_place(struct image *image, struct error *err)
{
        return vhd_settle(vhd_of(image), err);
}

/* --- opening and closing */

static void vhd_free(struct vhd_image *vhd)
{
        while (vhd->n_loaded)
                vhd_bitmap_drop_locked(vhd, vhd->loaded[0]->block, NULL);
        vhd_dirty_free_all(vhd);
        if (!vhd->image.places_are_lent)
                grace_free(vhd->image.places);
        else
                while (vhd_n_in_grace(vhd) > 0) /* some of what is put off there is ours */
                        grace_wait(vhd->image.places);
        vhd_space_free_all(vhd);
        vhd_bat_free(vhd->bat);
        free(vhd->loaded);
        pthread_cond_destroy(&vhd->keeper_wakes);
        pthread_cond_destroy(&vhd->flush_done);
        pthread_mutex_destroy(&vhd->lock);
        pthread_mutex_destroy(&vhd->alloc_lock);
        pthread_mutex_destroy(&vhd->extend_lock);
        pthread_mutex_destroy(&vhd->flush_lock);
        free(vhd);
}
DEFINE_CLEANUP(struct vhd_image *, vhd_free)

static struct vhd_image *vhd_new(const struct vhd_metadata *metadata)
{
        struct vhd_image *vhd = calloc(1, sizeof(*vhd));

        if (!vhd)
                return NULL;
        vhd->metadata = *metadata;
        vhd->image.format = &vhd_format;
        vhd->image.type =
                metadata->footer.type == VHD_TYPE_DYNAMIC ? IMAGE_DYNAMIC : IMAGE_DIFFERENCING;
        vhd->image.size = metadata->footer.current_size;
        vhd->image.block_size = metadata->header.block_size;
        vhd->image.hidden = metadata->footer.hidden;
        vhd->image.merging = metadata->footer.merging;
        memcpy(vhd->image.id, metadata->footer.unique_id, sizeof(vhd->image.id));
        memcpy(vhd->image.parent_id, metadata->header.parent_id, sizeof(vhd->image.parent_id));
        vhd->block_shift = log2_of(metadata->header.block_size);
        vhd->bitmap_size = metadata->bitmap_size;
        vhd->table_offset = metadata->header.table_offset;
        vhd->block_bytes = vhd->bitmap_size + (uint64_t)vhd->image.block_size;
        vhd->footer_offset = metadata->tail_offset;
        vhd->zero_from = UINT64_MAX;
        pthread_mutex_init(&vhd->lock, NULL);
        pthread_mutex_init(&vhd->alloc_lock, NULL);
        pthread_mutex_init(&vhd->extend_lock, NULL);
        pthread_mutex_init(&vhd->flush_lock, NULL);
        pthread_cond_init(&vhd->keeper_wakes, NULL);
        pthread_cond_init(&vhd->flush_done, NULL);
        return vhd;
}

/* What ties a redo file to this content: neither changes while the image is open. */
struct redo_ident vhd_redo_ident(const struct vhd_metadata *metadata)
{
        struct redo_ident ident = {.block_size = metadata->header.block_size};

        memcpy(ident.image_id, metadata->footer.unique_id, sizeof(ident.image_id));
        ident.metadata_hash = XXH3_64bits_withSeed(&metadata->header.raw,
                sizeof(metadata->header.raw), XXH3_64bits(&metadata->footer.raw, VHD_FOOTER_SIZE));
        return ident;
}

/* A dead process's answered writes, or its poison. Leaves the image read-only, with the reason as
 * its warning, where they cannot be trusted. */
static int open_redo(struct vhd_image *vhd, unsigned flags, struct error *err)
{
        struct redo_ident ident = vhd_redo_ident(&vhd->metadata);
        bool writable = vhd->image.writable;
        struct error why = ERROR_INIT;
        enum redo_found found;
        int r = redo_open(vhd->image.file, &ident, writable, &vhd->redo, &found, err);

        if (r < 0)
                return r;
        if (found == REDO_NONE)
                return 0;
        vhd->image.unclean = !writable;
        if (found == REDO_REPLAY && flags & IMAGE_DISTRUST) {
                if (writable)
                        redo_poison(vhd->redo);
                found = REDO_POISONED;
        }
        if (found == REDO_POISONED)
                fail(&why, EIO,
                        "a sync of it, or of an image below it, failed, so nobody knows what the disk holds: look at it with "
                        "`vhdctl check`");
        else if (found == REDO_FOREIGN)
                fail(&why, ESTALE,
                        "a server of it died with answered writes in its redo file, and another "
                        "program changed the image since");
        else if ((r = vhd_replay(vhd, writable, &why)) != -ESTALE) {
                if (err && r < 0)
                        *err = why;
                return r < 0 ? fail_prefix(err, r, "cannot replay what a dead server of '%s' left",
                                       vhd->image.file->path)
                             : 0;
        }
        fail_prefix(&why, -why.code, "'%s' opens read-only", vhd->image.file->path);
        memcpy(vhd->image.warning, why.message, sizeof(vhd->image.warning));
        vhd->image.writable = false;
        vhd->image.lost_records = true;
        return 0;
}

/* tapdisk's batmap promises full bitmaps; all zeros is always true (docs/vhd-quirks.md). */
static int zero_batmap(struct vhd_image *vhd, struct error *err)
{
        struct vhd_raw_batmap batmap = vhd->metadata.batmap;
        uint64_t map = be64_get(batmap.map_offset);
        uint64_t size = (uint64_t)be32_get(batmap.map_sectors) * SECTOR_SIZE;
        struct file *file = vhd->image.file;
        _cleanup_free_ uint8_t *data = NULL;
        int r;

        if (!vhd->metadata.batmap_offset || size == 0)
                return 0;
        data = malloc(size);
        if (!data)
                return fail(err, ENOMEM, "no memory for the batmap of '%s'", file->path);
        r = file_read_exact(file, data, size, map);
        /* A cut between the two writes below leaves zeros under the old sum. */
        if (r == 0 && bytes_are_zero(data, size) && be32_get(batmap.checksum) == UINT32_MAX)
                return 0;
        memset(data, 0, size);
        batmap.checksum = be32_make(UINT32_MAX); /* of a map of zeros */
        if (r == 0)
                r = file_write(file, data, size, map, 0);
        if (r == 0)
                r = file_write(file, &batmap, sizeof(batmap), vhd->metadata.batmap_offset, 0);
        if (r == 0)
                r = file_sync(file);
        if (r == 0)
                return 0;
        error_set_file(err, file->path);
        return fail_os(err, -r, "cannot clear the batmap of '%s' at offset %llu", file->path,
                (unsigned long long)map);
}

static int open_writable(struct vhd_image *vhd, unsigned flags, struct error *err)
{
        struct file *file = vhd->image.file;
        int r;

        vhd->image.places = grace_new();
        if (!vhd->image.places)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        vhd->image.writable = true;
        r = vhd_bat_tail_load(vhd, err);
        if (r < 0)
                return r;
        r = flags & IMAGE_VOLATILE ? redo_open_volatile(&vhd->redo, err)
                                   : open_redo(vhd, flags, err);
        if (r < 0 || !vhd->image.writable)
                return r;
        r = vhd_renew_old_footer(vhd->image.file, &vhd->metadata, err);
        if (r == 0)
                r = zero_batmap(vhd, err);
        vhd->next_free = MAX_OF(vhd->next_free, /* a replay may have put it further out */
                vhd_bat_end(vhd->bat, vhd->metadata.metadata_end, vhd->block_bytes));
        return r;
}

static void image_poison(struct image *image, int code)
{
        if (image->writable)
                vhd_poison(vhd_of(image));
}

/* Damage: refused, or with force read-only (DESIGN: never zeros for what cannot be read). */
static const char *first_problem(uint32_t problems)
{
        return vhd_problem_to_string((enum vhd_problem)(problems & -problems));
}

static int judge_problems(struct vhd_image *vhd, uint32_t problems, const struct error *bat_err,
        unsigned flags, struct error *err)
{
        const char *path = vhd->image.file->path;

        if (!(problems & VHD_PROBLEMS_REFUSED) || (flags & IMAGE_FORCE))
                return 0;
        if (problems & (VHD_PROBLEM_BAD_BLOCKS | VHD_PROBLEM_TRUNCATED)) {
                if (err)
                        *err = *bat_err;
        } else {
                fail(err, EUCLEAN, "'%s' is damaged: %s", path,
                        first_problem(problems & VHD_PROBLEMS_REFUSED));
        }
        error_set_file(err, path);
        error_set_hint(err,
                "vhdctl check '%s' tells more; --force reads what can be read, "
                "read-only",
                path);
        return -EUCLEAN;
}

int vhd_check_writable(
        struct file *file, const struct vhd_metadata *metadata, unsigned flags, struct error *err)
{
        uint32_t problems = metadata->problems & VHD_PROBLEMS_READ_ONLY;
        struct file_stat st;
        int r = 0;

        if (flags & IMAGE_FORCE)
                problems &= ~(uint32_t)VHD_PROBLEM_SAVED_STATE;
        if (problems)
                r = fail(err, EROFS, "'%s' can be read but not written: %s", file->path,
                        first_problem(problems));
        else if (metadata->encrypted)
                r = fail(err, EROFS, "'%s' is encrypted by tapdisk: it can only be read",
                        file->path);
        else if (file_stat_get(file, &st) == 0 && st.is_block)
                r = fail(err, EROFS, "'%s' is a VHD on a block device: it can only be read",
                        file->path);
        if (r == 0)
                return 0;
        error_set_file(err, file->path);
        error_set_hint(err, "open it read-only; vhdctl check '%s' tells more", file->path);
        return r;
}

static int open_dynamic(struct file *file, const struct vhd_metadata *metadata, unsigned flags,
        struct image **ret, struct error *err)
{
        _cleanup_(vhd_freep) struct vhd_image *vhd = vhd_new(metadata);
        struct error bat_err = ERROR_INIT;
        uint32_t problems;
        int r;

        if (!vhd || !grace_readers())
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        vhd->image.file = file;
        problems = metadata->problems;
        r = vhd_bat_load(file, metadata, &vhd->bat, &problems, &bat_err);
        if (r < 0) {
                if (err)
                        *err = bat_err;
                return r;
        }
        vhd->metadata.problems = problems;
        r = judge_problems(vhd, problems, &bat_err, flags, err);
        if (r == 0 && flags & IMAGE_WRITABLE)
                r = vhd_check_writable(file, &vhd->metadata, flags, err);
        /* Beside a writer (info) its redo file is its own, and its blocks are not looked at. */
        if (r == 0 && !(flags & IMAGE_LOOSE_LOCK))
                r = flags & IMAGE_WRITABLE ? open_writable(vhd, flags, err) : open_redo(vhd, flags, err);
        if (r < 0) {
                vhd->redo = redo_close(vhd->redo, false);
                return r;
        }
        *ret = &TAKE_PTR(vhd)->image;
        return 0;
}

static int vhd_open(struct file *file, unsigned flags, struct image **ret, struct error *err)
{
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        int r;

        if (!metadata)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        r = vhd_metadata_read(file, flags & IMAGE_FORCE ? VHD_READ_FORCE : 0, metadata, err);
        if (r < 0)
                return r;
        if (metadata->footer.type == VHD_TYPE_FIXED)
                return vhd_open_fixed(file, metadata, flags, ret, err);
        return open_dynamic(file, metadata, flags, ret, err);
}

static int close_clean(struct vhd_image *vhd, struct error *err)
{
        struct file *file = vhd->image.file;
        int r = vhd_flush(vhd);

        if (r < 0) {
                error_set_file(err, file->path);
                return fail_os(err, -r, "cannot flush '%s'", file->path);
        }
        return vhd->touched ? vhd_lower_footer(vhd, false, err) : 0;
}

static int vhd_close(struct image *image, bool clean, struct error *err)
{
        struct vhd_image *vhd = vhd_of(image);
        struct file *file = image->file;
        bool flush = clean && image->writable;
        int r = 0;

        vhd_keeper_stop(vhd);
        if (flush)
                r = close_clean(vhd, err);
        /* What could not be written stays in the redo file for the next opener. */
        redo_close(vhd->redo, flush && r == 0);
        vhd_free(vhd);
        file_close(file);
        return r;
}

const struct format vhd_format = {
        .name = "vhd",
        .open = vhd_open,
        .close = vhd_close,
        .map = vhd_map,
        .holds = vhd_holds,
        .prepare = vhd_prepare,
        .complete = vhd_complete,
        .discard = vhd_discard,
        .n_waiting_places = vhd_n_waiting_places,
        .is_durable = vhd_is_durable,
        .flush = image_flush,
        .poison = image_poison,
        .make_room = image_make_room,
        .settle = image_settle_in_place,
        .place = vhd_place,
        .release = vhd_release,
        .find_holes = vhd_find_holes,
        .move_begin = vhd_move_begin,
        .move_end = vhd_move_end,
        .reclaim = vhd_reclaim,
};
