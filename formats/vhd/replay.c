/* SPDX-License-Identifier: Apache-2.0 */
/* Opening an image after the process that wrote it died (rule E4).
 *
 * The dead process's page cache looks durable and is not: the file is synced first. Then each
 * metadata sector that a record speaks of must hold what the dead process knew or was writing; only
 * then are the records applied, in memory. They stay in the redo file until our own first round has
 * made them durable.
 */
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "formats/vhd/image.h"

/* --- does the file hold what the records expect? */

struct expectation {
        uint32_t sector;
        uint64_t hash;
};

struct expectations {
        struct expectation *all;
        size_t n, capacity;
};

static int collect(void *opaque, const struct redo_record *record)
{
        struct expectations *e = opaque;

        if (record->kind != REDO_EXPECT)
                return 0;
        if (e->n == e->capacity) {
                size_t capacity = e->capacity ? 2 * e->capacity : 64;
                struct expectation *all = reallocarray(e->all, capacity, sizeof(*all));

                if (!all)
                        return -ENOMEM;
                e->all = all;
                e->capacity = capacity;
        }
        e->all[e->n++] = (struct expectation){record->place, record->hash};
        return 0;
}

static int compare_expectations(const void *a, const void *b)
{
        const struct expectation *x = a, *y = b;

        return x->sector < y->sector ? -1 : x->sector > y->sector;
}

/* One sector against the run of expectations that speak of it. */
static int check_sector(struct file *file, const struct expectation *e, size_t n, struct error *err)
{
        uint64_t offset = (uint64_t)e->sector * SECTOR_SIZE, hash;
        uint8_t content[SECTOR_SIZE];
        int r = file_read_exact(file, content, sizeof(content), offset);

        if (r < 0)
                return fail_os(err, -r, "the metadata at offset %llu cannot be read",
                        (unsigned long long)offset);
        hash = redo_hash(content);
        for (size_t i = 0; i < n; i++)
                if (e[i].hash == hash)
                        return 0;
        fail(err, ESTALE,
                "the metadata at offset %llu was changed by another program after a server of it died",
                (unsigned long long)offset);
        error_set_offset(err, offset);
        return -ESTALE;
}

static int check_expectations(struct vhd_image *vhd, struct error *err)
{
        struct expectations e = {0};
        int r = redo_each(vhd->redo, collect, &e);

        if (r < 0)
                fail(err, -r, "no memory to check the redo file");
        if (r == 0 && e.n)
                qsort(e.all, e.n, sizeof(*e.all), compare_expectations);
        for (size_t i = 0, n; r == 0 && i < e.n; i += n) {
                for (n = 1; i + n < e.n && e.all[i + n].sector == e.all[i].sector; n++)
                        ;
                r = check_sector(vhd->image.file, &e.all[i], n, err);
        }
        free(e.all);
        return r;
}

/* --- applying */

/* A block lost its place, or got another, at record number @index: its records before that speak of a
 * place that the file's table may not name any more. */
struct freeing {
        uint32_t block;
        uint64_t index;
};

struct replay {
        struct vhd_image *vhd;
        uint64_t file_size;
        uint64_t index;          /* of the record at hand */
        struct freeing *frees;   /* by block, then by index */
        size_t n_frees, frees_capacity;
        struct error *err;
};

static int collect_free(void *opaque, const struct redo_record *record)
{
        struct replay *replay = opaque;
        uint64_t index = replay->index++;

        if (record->kind != REDO_FREE &&
                (record->kind != REDO_MOVE || MUTANT("move-voids-nothing")))
                return 0;
        if (replay->n_frees == replay->frees_capacity) {
                size_t capacity = replay->frees_capacity ? 2 * replay->frees_capacity : 64;
                struct freeing *frees = reallocarray(replay->frees, capacity, sizeof(*frees));

                if (!frees)
                        return -ENOMEM;
                replay->frees = frees;
                replay->frees_capacity = capacity;
        }
        replay->frees[replay->n_frees++] = (struct freeing){record->block, index};
        return 0;
}

static int compare_frees(const void *a, const void *b)
{
        const struct freeing *x = a, *y = b;

        if (x->block != y->block)
                return x->block < y->block ? -1 : 1;
        return x->index < y->index ? -1 : x->index > y->index;
}

/* Does a later record free or move the block? */
static bool is_void(const struct replay *replay, uint32_t block, uint64_t index)
{
        size_t low = 0, high = replay->n_frees;

        /* The first freeing of the block behind @index. */
        while (low < high) {
                size_t middle = low + (high - low) / 2;
                const struct freeing *f = &replay->frees[middle];

                if (f->block < block || (f->block == block && f->index <= index))
                        low = middle + 1;
                else
                        high = middle;
        }
        return low < replay->n_frees && replay->frees[low].block == block;
}

static int bad_record(struct replay *replay, const struct redo_record *record)
{
        return fail(replay->err, EUCLEAN,
                "the redo file speaks of block %u at sector %u, which cannot be", record->block,
                record->place);
}

static bool can_be_place(const struct replay *replay, uint32_t place)
{
        const struct vhd_image *vhd = replay->vhd;
        uint64_t offset = (uint64_t)place * SECTOR_SIZE;

        return range_inside(offset, vhd->block_bytes, replay->file_size) &&
                !vhd_metadata_at(&vhd->metadata, offset, vhd->block_bytes);
}

static int give_place(struct replay *replay, const struct redo_record *record)
{
        struct vhd_image *vhd = replay->vhd;
        struct vhd_bitmap *bitmap;

        if (!can_be_place(replay, record->place))
                return bad_record(replay, record);
        bitmap = vhd_bitmap_new(record->block, record->place, vhd->bitmap_size);
        if (!bitmap || vhd_loaded_reserve_locked(vhd) < 0) {
                vhd_bitmap_free(bitmap);
                return -ENOMEM;
        }
        vhd_loaded_add_locked(vhd, bitmap);
        vhd_bat_set_bitmap(vhd->bat, record->block, bitmap);
        vhd_bat_set(vhd->bat, record->block, record->place);
        return 0;
}

static int apply_bits(struct replay *replay, const struct redo_record *record)
{
        struct vhd_image *vhd = replay->vhd;
        uint32_t place = vhd_bat_get(vhd->bat, record->block);
        struct vhd_bitmap *bitmap;
        int r = 0;

        if (record->first > vhd->image.block_size / SECTOR_SIZE ||
                record->count > vhd->image.block_size / SECTOR_SIZE - record->first)
                return bad_record(replay, record);
        if (place == VHD_BAT_UNUSED)
                r = give_place(replay, record);
        else if (place != record->place)
                return bad_record(replay, record);
        if (r < 0)
                return r;
        bitmap = vhd_bat_bitmap(vhd->bat, record->block);
        if (!bitmap) {
                r = vhd_bitmap_load_words_locked(vhd, record->block, place);
                if (r < 0)
                        return fail_os(replay->err, -r, "the bitmap of block %u cannot be read",
                                record->block);
                bitmap = vhd_bat_bitmap(vhd->bat, record->block);
        }
        vhd_bitmap_set(bitmap, record->first, record->count);
        return 0;
}

static int apply_free(struct replay *replay, const struct redo_record *record)
{
        struct vhd_image *vhd = replay->vhd;

        if (vhd_bat_get(vhd->bat, record->block) == VHD_BAT_UNUSED)
                return 0;
        vhd_bat_set(vhd->bat, record->block, VHD_BAT_UNUSED);
        vhd_bitmap_drop_locked(vhd, record->block, NULL);
        return 0;
}

/* The bits are in the file, at the new place: they were written there before the record. */
static int apply_move(struct replay *replay, const struct redo_record *record)
{
        struct vhd_image *vhd = replay->vhd;
        int r;

        if (!can_be_place(replay, record->place))
                return bad_record(replay, record);
        vhd_bat_set(vhd->bat, record->block, record->place);
        vhd_bitmap_drop_locked(vhd, record->block, NULL);
        r = vhd_bitmap_load_words_locked(vhd, record->block, record->place);
        if (r == 0 || r == -ENOMEM)
                return r;
        return fail_os(replay->err, -r, "the bitmap of block %u cannot be read", record->block);
}

/* E8: a place that the durable table or a record names is not given to a block anew before the next
 * opening, even if a freeing took it away: that is not durable yet. */
static void keep_place(struct vhd_image *vhd, uint32_t place)
{
        uint64_t end = (uint64_t)place * SECTOR_SIZE + vhd->block_bytes;

        vhd->next_free = MAX_OF(vhd->next_free, end);
}

/* Only for the mutant that takes the file's word for what is durable: right after the sync at
 * opening, such records would have nothing left to say. */
static bool file_has_bits(struct vhd_image *vhd, const struct redo_record *record)
{
        struct vhd_bitmap *bitmap;

        if (record->kind != REDO_BITS || vhd_bat_get(vhd->bat, record->block) != record->place ||
                vhd_bat_dirty(vhd->bat, record->block) ||
                vhd_bat_reserve(vhd->bat, record->block) < 0 ||
                vhd_bitmap_load_words_locked(vhd, record->block, record->place) < 0)
                return false;
        bitmap = vhd_bat_bitmap(vhd->bat, record->block);
        return bitmap == VHD_BITMAP_FULL ||
               vhd_bitmap_all_set(bitmap, record->first, record->count);
}

static int apply(void *opaque, const struct redo_record *record)
{
        struct replay *replay = opaque;
        struct vhd_image *vhd = replay->vhd;
        uint64_t index = replay->index++;
        int r;

        if (record->kind == REDO_EXPECT)
                return 0;
        if (record->block >= vhd->metadata.n_blocks)
                return bad_record(replay, record);
        keep_place(vhd, record->place);
        if (is_void(replay, record->block, index))
                return 0; /* a freeing record voids the block's earlier ones (E4) */
        if (MUTANT("no-sync-at-open") && file_has_bits(vhd, record))
                return 0;
        r = vhd_bat_reserve(vhd->bat, record->block);
        /* What the file's table says is durable: it was synced before we began. */
        if (r == 0)
                r = vhd_track_locked(
                        vhd, record->block, vhd_bat_get(vhd->bat, record->block), true);
        if (r == 0 && record->kind == REDO_BITS)
                r = apply_bits(replay, record);
        else if (r == 0 && record->kind == REDO_FREE)
                r = apply_free(replay, record);
        else if (r == 0)
                r = apply_move(replay, record);
        if (r == -ENOMEM)
                fail(replay->err, ENOMEM, "no memory for the redo file");
        return r;
}

int vhd_replay(struct vhd_image *vhd, bool writable, struct error *err)
{
        struct replay replay = {.vhd = vhd, .err = err};
        int r = 0;

        if (writable && !MUTANT("no-sync-at-open"))
                r = file_sync(vhd->image.file);
        if (r < 0) {
                vhd_poison(vhd);
                return fail_os(err, -r, "what a dead server wrote cannot be synced");
        }
        /* E13: nor is it durable that an intent is gone, and it must not come back over what we write. */
        if (writable && !MUTANT("intent-comes-back"))
                r = fs_sync_directory(vhd->image.file->fs, vhd->image.file->path);
        if (r < 0)
                return fail_os(err, -r, "the folder that a dead server changed cannot be synced");
        r = file_size_get(vhd->image.file, &replay.file_size);
        if (r < 0)
                return fail_os(err, -r, "its size cannot be read");
        r = check_expectations(vhd, err);
        if (r < 0)
                return r;
        MUTEX_GUARD(&vhd->lock);
        r = redo_each(vhd->redo, collect_free, &replay);
        vhd->image.replayed_frees = replay.n_frees > 0;
        if (r < 0)
                fail(err, -r, "no memory for the redo file");
        if (r == 0 && replay.n_frees)
                qsort(replay.frees, replay.n_frees, sizeof(*replay.frees), compare_frees);
        replay.index = 0;
        vhd->next_free = vhd_bat_end(vhd->bat, vhd->metadata.metadata_end, vhd->block_bytes);
        if (r == 0)
                r = redo_each(vhd->redo, apply, &replay);
        free(replay.frees);
        if (r == 0)
                r = vhd_bat_check(vhd->bat, &vhd->metadata, replay.file_size, err);
        return r;
}
