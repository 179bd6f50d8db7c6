/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/vhd/bat.h"

#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "formats/vhd/bitmap_table.h"

#define READ_AT_ONCE (64u * 1024) /* stays in the processor's cache */

/* 64 entries of the table: so few that blocks strewn over a large disk cost little each. */
struct page {
        _Atomic uint32_t entries[VHD_BAT_PAGE_ENTRIES];
        _Atomic uint64_t full;    /* a bit a block: VHD_BITMAP_FULL */
        struct vhd_dirty **dirty; /* made when the first dirty block of the page is */
};

struct vhd_bat {
        /* immutable after load */
        uint32_t n_blocks, n_pages;
        uint64_t block_bytes; /* bitmap and data */
        struct bitmap_table *bitmaps;
        _Atomic(struct page *) pages[]; /* NULL: all unused */
};

static struct page *page_of(const struct vhd_bat *bat, uint32_t block)
{
        return atomic_load_explicit(
                &bat->pages[block / VHD_BAT_PAGE_ENTRIES], memory_order_acquire);
}

uint32_t vhd_bat_get(const struct vhd_bat *bat, uint32_t block)
{
        const struct page *page = page_of(bat, block);

        if (!page)
                return VHD_BAT_UNUSED;
        return atomic_load_explicit(
                &page->entries[block % VHD_BAT_PAGE_ENTRIES], memory_order_acquire);
}

struct vhd_bitmap *vhd_bat_bitmap(const struct vhd_bat *bat, uint32_t block)
{
        const struct page *page = page_of(bat, block);

        if (!page)
                return NULL;
        if (atomic_load_explicit(&page->full, memory_order_acquire) >>
                        (block % VHD_BAT_PAGE_ENTRIES) &
                1)
                return VHD_BITMAP_FULL;
        return bitmap_table_get(bat->bitmaps, block);
}

struct vhd_dirty *vhd_bat_dirty(const struct vhd_bat *bat, uint32_t block)
{
        const struct page *page = page_of(bat, block);

        return page && page->dirty ? page->dirty[block % VHD_BAT_PAGE_ENTRIES] : NULL;
}

static struct page *page_make(struct vhd_bat *bat, uint32_t block)
{
        struct page *page = page_of(bat, block);

        if (page)
                return page;
        page = malloc(sizeof(*page));
        if (!page)
                return NULL;
        for (unsigned i = 0; i < VHD_BAT_PAGE_ENTRIES; i++)
                atomic_init(&page->entries[i], VHD_BAT_UNUSED);
        atomic_init(&page->full, 0);
        page->dirty = NULL;
        atomic_store_explicit(
                &bat->pages[block / VHD_BAT_PAGE_ENTRIES], page, memory_order_release);
        return page;
}

int vhd_bat_reserve(struct vhd_bat *bat, uint32_t block)
{
        struct page *page = page_make(bat, block);

        if (!page)
                return -ENOMEM;
        if (!page->dirty)
                page->dirty = calloc(VHD_BAT_PAGE_ENTRIES, sizeof(*page->dirty));
        return page->dirty ? bitmap_table_reserve(bat->bitmaps) : -ENOMEM;
}

int vhd_bat_reserve_bitmap(struct vhd_bat *bat)
{
        return bitmap_table_reserve(bat->bitmaps);
}

void vhd_bat_set(struct vhd_bat *bat, uint32_t block, uint32_t place)
{
        atomic_store_explicit(&page_of(bat, block)->entries[block % VHD_BAT_PAGE_ENTRIES], place,
                memory_order_release);
}

void vhd_bat_set_bitmap(struct vhd_bat *bat, uint32_t block, struct vhd_bitmap *bitmap)
{
        struct page *page = page_of(bat, block);
        uint64_t bit = UINT64_C(1) << block % VHD_BAT_PAGE_ENTRIES;

        /* In between a reader finds neither, looks at the file and then again under the lock. */
        if (bitmap != VHD_BITMAP_FULL)
                atomic_fetch_and(&page->full, ~bit);
        bitmap_table_remove(bat->bitmaps, block);
        if (bitmap == VHD_BITMAP_FULL)
                atomic_fetch_or(&page->full, bit);
        else if (bitmap)
                bitmap_table_add(bat->bitmaps, bitmap);
}

void vhd_bat_set_dirty(struct vhd_bat *bat, uint32_t block, struct vhd_dirty *dirty)
{
        page_of(bat, block)->dirty[block % VHD_BAT_PAGE_ENTRIES] = dirty;
}

static void page_free(struct page *page)
{
        if (page)
                free(page->dirty);
        free(page);
}

struct vhd_bat *vhd_bat_free(struct vhd_bat *bat)
{
        if (!bat)
                return NULL;
        for (uint32_t i = 0; i < bat->n_pages; i++)
                page_free(atomic_load(&bat->pages[i]));
        bitmap_table_free(bat->bitmaps);
        free(bat);
        return NULL;
}

int vhd_bat_each(const struct vhd_bat *bat,
        int (*each)(void *opaque, uint32_t block, uint32_t place), void *opaque)
{
        for (uint32_t p = 0; p < bat->n_pages; p++) {
                const struct page *page = atomic_load(&bat->pages[p]);

                for (uint32_t i = 0; page && i < VHD_BAT_PAGE_ENTRIES; i++) {
                        uint32_t place = atomic_load(&page->entries[i]);
                        int r = 0;

                        if (place != VHD_BAT_UNUSED)
                                r = each(opaque, p * VHD_BAT_PAGE_ENTRIES + i, place);
                        if (r != 0)
                                return r;
                }
        }
        return 0;
}

static int count_one(void *opaque, uint32_t block, uint32_t place)
{
        ++*(uint32_t *)opaque;
        return 0;
}

uint32_t vhd_bat_count(const struct vhd_bat *bat)
{
        uint32_t n = 0;

        vhd_bat_each(bat, count_one, &n);
        return n;
}

struct highest {
        uint64_t end, block_bytes;
};

static int raise_end(void *opaque, uint32_t block, uint32_t place)
{
        struct highest *highest = opaque;
        uint64_t end = (uint64_t)place * SECTOR_SIZE + highest->block_bytes;

        if (place != VHD_BAT_BAD && end > highest->end)
                highest->end = end;
        return 0;
}

uint64_t vhd_bat_end(const struct vhd_bat *bat, uint64_t floor, uint64_t block_bytes)
{
        struct highest highest = {.end = floor, .block_bytes = block_bytes};

        vhd_bat_each(bat, raise_end, &highest);
        return highest.end;
}

/* Takes the entries of one chunk of the table in; an unused chunk costs one look. */
static int take_chunk(struct vhd_bat *bat, const be32 *raw, uint32_t first, uint32_t n)
{
        static const uint8_t unused[VHD_BAT_PAGE_ENTRIES * 4] = {
                [0 ... VHD_BAT_PAGE_ENTRIES * 4 - 1] = 0xff};

        for (uint32_t i = 0; i < n; i += VHD_BAT_PAGE_ENTRIES) {
                uint32_t here = MIN_OF(n - i, VHD_BAT_PAGE_ENTRIES);
                struct page *page;

                if (!memcmp(raw + i, unused, here * sizeof(*raw)))
                        continue;
                page = page_make(bat, first + i);
                if (!page)
                        return -ENOMEM;
                for (uint32_t k = 0; k < here; k++)
                        atomic_store_explicit(
                                &page->entries[k], be32_get(raw[i + k]), memory_order_relaxed);
        }
        return 0;
}

static int read_table(
        struct vhd_bat *bat, struct file *file, const struct vhd_metadata *md, struct error *err)
{
        _cleanup_free_ be32 *raw = malloc(READ_AT_ONCE);
        uint32_t n_in_file = MIN_OF(bat->n_blocks, md->header.max_table_entries);

        if (!raw)
                return fail(err, ENOMEM, "no memory for the BAT of '%s'", file->path);
        for (uint32_t at = 0; at < n_in_file;) {
                uint32_t n = MIN_OF(n_in_file - at, READ_AT_ONCE / (uint32_t)sizeof(*raw));
                uint64_t offset = md->header.table_offset + (uint64_t)at * sizeof(*raw);
                int r = file_read_exact(file, raw, n * sizeof(*raw), offset);

                if (r < 0) {
                        fail_os(err, -r, "cannot read the BAT of '%s' at offset %llu", file->path,
                                (unsigned long long)offset);
                        error_set_offset(err, offset);
                        return r;
                }
                if (take_chunk(bat, raw, at, n) < 0)
                        return fail(
                                err, ENOMEM, "no memory for a BAT of %u entries", bat->n_blocks);
                at += n;
        }
        return 0;
}

/* All used places, with their blocks, in the order of the file. */
struct place {
        uint32_t at, block;
};

struct places {
        struct place *all;
        size_t n;
        bool sorted;
};

static int add_place(void *opaque, uint32_t block, uint32_t place)
{
        struct places *places = opaque;

        if (places->n && place < places->all[places->n - 1].at)
                places->sorted = false;
        places->all[places->n++] = (struct place){place, block};
        return 0;
}

static int compare_places(const void *a, const void *b)
{
        const struct place *x = a, *y = b;

        if (x->at != y->at)
                return x->at < y->at ? -1 : 1;
        return x->block < y->block ? -1 : x->block > y->block;
}

struct finding {
        const struct vhd_metadata *metadata;
        uint64_t file_size;
        uint32_t problems;
        struct error *err;
        struct vhd_bat *bat;
};

static void note(
        struct finding *f, uint32_t problem, uint32_t block, uint32_t place, const char *what)
{
        if (!f->problems) {
                uint64_t offset = f->metadata->header.table_offset + (uint64_t)block * 4;

                fail(f->err, EUCLEAN, "BAT entry %u (at offset %llu) points to sector %u, %s",
                        block, (unsigned long long)offset, place, what);
                error_set_offset(f->err, offset);
                error_set_hyperv(f->err, 0xC03A000A);
        }
        f->problems |= problem;
        if (f->bat && problem == VHD_PROBLEM_BAD_BLOCKS)
                vhd_bat_set(f->bat, block, VHD_BAT_BAD);
}

/* The end of what the guest can see of a block: of the last one perhaps only a part. */
static uint64_t visible_end(const struct vhd_metadata *metadata, uint32_t block, uint64_t offset)
{
        uint64_t from = (uint64_t)block * metadata->header.block_size;

        return offset + metadata->bitmap_size +
                MIN_OF(metadata->header.block_size, metadata->footer.current_size - from);
}

/* Is there a footer at the end of the file, and does the range run into it? */
static bool runs_into_footer(const struct vhd_metadata *metadata, uint64_t end)
{
        return metadata->tail_size != 0 && end > metadata->tail_offset;
}

/* Looks at places in the order of the file, so one pass finds every overlap. */
static void judge_places(struct finding *f, const struct places *places, uint64_t block_bytes)
{
        uint64_t last_end = 0;
        uint32_t last_block = 0;

        for (size_t i = 0; i < places->n; i++) {
                uint32_t block = places->all[i].block, at = places->all[i].at;
                uint64_t offset = (uint64_t)at * SECTOR_SIZE, end = offset + block_bytes;

                if (at == VHD_BAT_BAD) {
                        note(f, VHD_PROBLEM_BAD_BLOCKS, block, at, "outside the file");
                } else if (vhd_metadata_at(f->metadata, offset, block_bytes)) {
                        note(f, VHD_PROBLEM_BAD_BLOCKS, block, at, "inside the metadata");
                } else if (offset + f->metadata->bitmap_size > f->file_size) {
                        note(f, VHD_PROBLEM_BAD_BLOCKS, block, at,
                                "outside the file; is the image truncated?");
                } else if (i && offset < last_end) {
                        note(f, VHD_PROBLEM_BAD_BLOCKS, block, at, "into another block's place");
                        note(f, VHD_PROBLEM_BAD_BLOCKS, last_block, at,
                                "into another block's place");
                } else if (runs_into_footer(
                                   f->metadata, visible_end(f->metadata, block, offset))) {
                        note(f, VHD_PROBLEM_BAD_BLOCKS, block, at,
                                "into the footer at the end of the file");
                } else if (end > f->file_size || runs_into_footer(f->metadata, end)) {
                        note(f, VHD_PROBLEM_TRUNCATED, block, at,
                                "a block that the file ends inside of; is the image truncated?");
                }
                if (end > last_end) {
                        last_end = end;
                        last_block = block;
                }
        }
}

/* Every entry against the file and against the others. */
static int judge(const struct vhd_bat *bat, struct finding *f)
{
        struct places places = {.sorted = true};

        places.all = malloc((size_t)vhd_bat_count(bat) * sizeof(*places.all) + 1);
        if (!places.all)
                return fail(
                        f->err, ENOMEM, "no memory to check a BAT of %u entries", bat->n_blocks);
        vhd_bat_each(bat, add_place, &places);
        if (!places.sorted)
                qsort(places.all, places.n, sizeof(*places.all), compare_places);
        judge_places(f, &places, bat->block_bytes);
        free(places.all);
        return 0;
}

int vhd_bat_load(struct file *file, const struct vhd_metadata *metadata, struct vhd_bat **ret,
        uint32_t *problems, struct error *err)
{
        uint32_t n_pages = (uint32_t)div_round_up(metadata->n_blocks, VHD_BAT_PAGE_ENTRIES);
        _cleanup_(vhd_bat_freep) struct vhd_bat *bat =
                calloc(1, sizeof(*bat) + n_pages * sizeof(bat->pages[0]));
        struct finding f = {
                .metadata = metadata,
                .file_size = metadata->file_size,
                .err = err,
                .bat = bat,
        };
        int r;

        if (!bat)
                return fail(err, ENOMEM, "no memory for a BAT of %u entries", metadata->n_blocks);
        bat->bitmaps = bitmap_table_new();
        if (!bat->bitmaps)
                return fail(err, ENOMEM, "no memory for a BAT of %u entries", metadata->n_blocks);
        bat->n_blocks = metadata->n_blocks;
        bat->n_pages = n_pages;
        bat->block_bytes = metadata->bitmap_size + (uint64_t)metadata->header.block_size;
        r = read_table(bat, file, metadata, err);
        if (r == 0)
                r = judge(bat, &f);
        if (r < 0)
                return r;
        error_set_file(err, f.problems ? file->path : NULL);
        *problems |= f.problems;
        *ret = TAKE_PTR(bat);
        return 0;
}

int vhd_bat_check(const struct vhd_bat *bat, const struct vhd_metadata *metadata,
        uint64_t file_size, struct error *err)
{
        struct finding f = {.metadata = metadata, .file_size = file_size, .err = err};
        int r = judge(bat, &f);

        if (r < 0)
                return r;
        return f.problems ? -EUCLEAN : 0;
}
