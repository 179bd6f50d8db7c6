/* SPDX-License-Identifier: Apache-2.0 */
/* BAT entries: each against the file, the metadata and the other blocks, in O(n log n). Sector
 * bitmaps against the data, if asked. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "formats/vhd/check_internal.h"
#include "formats/vhd/hyperv.h"

#define ENTRIES_AT_ONCE 65536u
#define DATA_AT_ONCE    (1u << 20)

uint64_t check_blocks_limit(const struct vhd_metadata *metadata)
{
        return metadata->tail_size ? metadata->tail_offset : metadata->file_size;
}

void check_blocks_done(struct vhd_blocks *blocks)
{
        free(blocks->all);
        *blocks = (struct vhd_blocks){0};
}

static uint64_t block_bytes(const struct vhd_metadata *metadata)
{
        return (uint64_t)metadata->bitmap_size + metadata->header.block_size;
}

static uint64_t entry_offset(const struct vhd_metadata *metadata, uint32_t block)
{
        return metadata->header.table_offset + (uint64_t)block * sizeof(be32);
}

/* ---- reading the table ---- */

static int add_block(struct vhd_blocks *blocks, size_t *capacity, uint32_t block, uint32_t place)
{
        if (blocks->n == *capacity) {
                size_t more = *capacity ? *capacity * 2 : 1024;
                struct vhd_block *all = reallocarray(blocks->all, more, sizeof(*all));

                if (!all)
                        return -ENOMEM;
                blocks->all = all;
                *capacity = more;
        }
        blocks->all[blocks->n++] = (struct vhd_block){.block = block, .place = place};
        return 0;
}

static int read_table(struct file *file, const struct vhd_metadata *metadata,
        struct vhd_blocks *blocks, struct error *err)
{
        _cleanup_free_ be32 *entries = malloc(ENTRIES_AT_ONCE * sizeof(*entries));
        uint32_t n = metadata->header.max_table_entries;
        size_t capacity = 0;

        if (!entries)
                return fail(err, ENOMEM, "no memory for a piece of the BAT");
        for (uint32_t at = 0; at < n;) {
                uint32_t part = MIN_OF(ENTRIES_AT_ONCE, n - at);
                int r = file_read_exact(
                        file, entries, part * sizeof(*entries), entry_offset(metadata, at));

                if (r < 0)
                        return fail_os(err, -r, "cannot read the BAT at offset %" PRIu64,
                                entry_offset(metadata, at));
                for (uint32_t i = 0; i < part; i++) {
                        uint32_t place = be32_get(entries[i]);

                        if (place == VHD_BAT_UNUSED)
                                continue;
                        if (at + i >= metadata->n_blocks)
                                blocks->n_beyond++;
                        else if (add_block(blocks, &capacity, at + i, place) < 0)
                                return fail(err, ENOMEM, "no memory for a BAT of %u entries", n);
                }
                at += part;
        }
        return 0;
}

/* ---- judging ---- */

static int compare_blocks(const void *a, const void *b)
{
        const struct vhd_block *x = a, *y = b;

        if (x->place != y->place)
                return x->place < y->place ? -1 : 1;
        return x->block < y->block ? -1 : x->block > y->block;
}

static void judge_block(const struct vhd_metadata *metadata, const struct vhd_range *ranges,
        size_t n_ranges, struct vhd_block *block)
{
        uint64_t offset = (uint64_t)block->place * SECTOR_SIZE;
        uint64_t limit = check_blocks_limit(metadata);

        for (size_t i = 0; i < n_ranges; i++)
                if (ranges_overlap(
                            offset, block_bytes(metadata), ranges[i].offset, ranges[i].length)) {
                        block->state = BLOCK_IN_METADATA;
                        block->what = ranges[i].what;
                        return;
                }
        if (!range_inside(offset, metadata->bitmap_size, limit))
                block->state = BLOCK_OUTSIDE;
        else if (!range_inside(offset, block_bytes(metadata), limit))
                block->state = BLOCK_CUT_OFF;
}

int check_blocks_scan(struct file *file, const struct vhd_metadata *metadata,
        struct vhd_blocks *ret, struct error *err)
{
        struct vhd_range ranges[VHD_MAX_RANGES];
        size_t n_ranges = vhd_metadata_ranges(metadata, ranges);
        const struct vhd_block *last = NULL;
        int r;

        *ret = (struct vhd_blocks){.end = metadata->metadata_end};
        r = read_table(file, metadata, ret, err);
        if (r < 0) {
                check_blocks_done(ret);
                return r;
        }
        if (ret->n)
                qsort(ret->all, ret->n, sizeof(*ret->all), compare_blocks);
        for (size_t i = 0; i < ret->n; i++) {
                struct vhd_block *block = &ret->all[i];
                uint64_t offset = (uint64_t)block->place * SECTOR_SIZE;

                judge_block(metadata, ranges, n_ranges, block);
                ret->n_outside += block->state == BLOCK_OUTSIDE;
                if (block->state != BLOCK_GOOD && block->state != BLOCK_CUT_OFF)
                        continue;
                /* In the order of the file the last block in its right is the one to run into. */
                if (last && offset < (uint64_t)last->place * SECTOR_SIZE + block_bytes(metadata)) {
                        block->state = BLOCK_OVERLAPS;
                        block->other = last->block;
                        continue;
                }
                ret->end = MAX_OF(ret->end, offset + block_bytes(metadata));
                last = block;
        }
        return 0;
}

bool check_tail_must_move(const struct vhd_metadata *metadata, uint64_t blocks_end)
{
        return !metadata->tail_size || metadata->tail_offset < blocks_end;
}

bool check_blocks_allow_repair(
        const struct vhd_metadata *metadata, const struct vhd_blocks *blocks, unsigned flags)
{
        return flags & VHD_CHECK_FORCE || blocks->n_outside == 0 ||
                !check_tail_must_move(metadata, blocks->end);
}

static void report_block(
        struct checker *checker, const struct vhd_metadata *metadata, const struct vhd_block *block)
{
        uint64_t at = entry_offset(metadata, block->block);
        bool force = checker->flags & VHD_CHECK_FORCE;

        switch (block->state) {
        case BLOCK_GOOD: break;
        case BLOCK_OUTSIDE:
                check_found(checker, VHD_DAMAGE, "bat-entry-outside", at, HYPERV_BAT_CORRUPT, force,
                        "BAT entry %u points to sector %u, outside the file", block->block,
                        block->place);
                break;
        case BLOCK_IN_METADATA:
                check_found(checker, VHD_DAMAGE, "bat-entry-in-metadata", at, HYPERV_BAT_CORRUPT,
                        force,
                        "BAT entry %u points to sector %u, and the block would lie over the %s",
                        block->block, block->place, block->what);
                break;
        case BLOCK_OVERLAPS:
                check_found(checker, VHD_DAMAGE, "bat-entries-overlap", at, HYPERV_BAT_CORRUPT,
                        force, "BAT entry %u points to sector %u, where the block of entry %u lies",
                        block->block, block->place, block->other);
                break;
        case BLOCK_CUT_OFF:
                check_found(checker, VHD_DAMAGE, "block-cut-off",
                        (uint64_t)block->place * SECTOR_SIZE, HYPERV_INVALID_FILE_SIZE, true,
                        "the file ends inside block %u, which begins at sector %u", block->block,
                        block->place);
                break;
        }
}

/* ---- bitmaps, for a deep check ---- */

struct deep {
        struct checker *checker;
        const struct vhd_metadata *metadata;
        uint8_t *bitmap, *map, *data; /* @map: tapdisk's batmap */
        uint64_t n_map_bits;
        uint64_t n_stale;      /* blocks with data under clear bits */
        uint64_t stale_offset; /* of the first */
        uint64_t n_batmap_wrong;
};

static bool bit_of(const uint8_t *bits, uint64_t index)
{
        return bits[index / 8] & 0x80 >> index % 8;
}

/* Sectors of @block that the guest can see. */
static uint32_t visible_sectors(const struct vhd_metadata *metadata, uint32_t block)
{
        uint64_t start = (uint64_t)block * metadata->header.block_size;

        return (uint32_t)(MIN_OF(metadata->footer.current_size - start,
                                  (uint64_t)metadata->header.block_size) /
                SECTOR_SIZE);
}

/* Is there anything but zeros in the sectors whose bits are clear? Reads until it knows. */
static int find_stale(struct deep *deep, const struct vhd_block *block, struct error *err)
{
        uint64_t data = (uint64_t)block->place * SECTOR_SIZE + deep->metadata->bitmap_size;
        uint32_t n = visible_sectors(deep->metadata, block->block);
        const uint32_t at_once = DATA_AT_ONCE / (uint32_t)SECTOR_SIZE;

        for (uint32_t first = 0; first < n; first += at_once) {
                uint32_t part = MIN_OF(at_once, n - first);
                bool any = false;
                ssize_t got;

                for (uint32_t i = first; i < first + part && !any; i++)
                        any = !bit_of(deep->bitmap, i);
                if (!any)
                        continue;
                got = file_read(deep->checker->file, deep->data, part * SECTOR_SIZE,
                        data + first * SECTOR_SIZE, 0);
                if (got < 0)
                        return fail_os(err, (int)-got, "cannot read block %u at offset %" PRIu64,
                                block->block, data + first * SECTOR_SIZE);
                for (uint32_t i = 0; i < (uint64_t)got / SECTOR_SIZE; i++) {
                        if (bit_of(deep->bitmap, first + i) ||
                                bytes_are_zero(deep->data + i * SECTOR_SIZE, SECTOR_SIZE))
                                continue;
                        if (deep->n_stale++ == 0)
                                deep->stale_offset = data + (first + i) * SECTOR_SIZE;
                        return 0;
                }
        }
        return 0;
}

static int look_into_block(struct deep *deep, const struct vhd_block *block, struct error *err)
{
        uint64_t offset = (uint64_t)block->place * SECTOR_SIZE;
        uint32_t n = visible_sectors(deep->metadata, block->block);
        bool full = true;
        int r = file_read_exact(
                deep->checker->file, deep->bitmap, deep->metadata->bitmap_size, offset);

        if (r < 0) {
                check_found(deep->checker, VHD_DAMAGE, "bitmap-unreadable", offset,
                        HYPERV_BITMAP_MISMATCH, false,
                        "the sector bitmap of block %u cannot be read: %s", block->block,
                        strerror(-r));
                return 0;
        }
        for (uint32_t i = 0; i < n && full; i++)
                full = bit_of(deep->bitmap, i);
        if (!full && deep->map && block->block < deep->n_map_bits &&
                bit_of(deep->map, block->block))
                deep->n_batmap_wrong++;
        return full || deep->metadata->encrypted ? 0 : find_stale(deep, block, err);
}

static int load_map(struct deep *deep, struct error *err)
{
        const struct vhd_raw_batmap *batmap = &deep->metadata->batmap;
        size_t size = (size_t)be32_get(batmap->map_sectors) * SECTOR_SIZE;
        int r;

        if (!deep->metadata->batmap_offset || size == 0)
                return 0;
        deep->map = malloc(size);
        if (!deep->map)
                return fail(err, ENOMEM, "no memory for the batmap");
        r = file_read_exact(deep->checker->file, deep->map, size, be64_get(batmap->map_offset));
        if (r < 0)
                return fail_os(err, -r, "cannot read the batmap");
        deep->n_map_bits = size * 8;
        return 0;
}

static int look_into_blocks(struct deep *deep, const struct vhd_blocks *blocks, struct error *err)
{
        int r;

        deep->bitmap = malloc(deep->metadata->bitmap_size);
        deep->data = malloc(DATA_AT_ONCE);
        if (!deep->bitmap || !deep->data)
                return fail(err, ENOMEM, "no memory for a sector bitmap");
        r = load_map(deep, err);
        for (size_t i = 0; i < blocks->n && r == 0; i++)
                if (blocks->all[i].state == BLOCK_GOOD || blocks->all[i].state == BLOCK_CUT_OFF)
                        r = look_into_block(deep, &blocks->all[i], err);
        return r;
}

static int check_deep(struct checker *checker, const struct vhd_metadata *metadata,
        const struct vhd_blocks *blocks, struct error *err)
{
        struct deep deep = {.checker = checker, .metadata = metadata};
        int r = look_into_blocks(&deep, blocks, err);

        free(deep.bitmap);
        free(deep.data);
        free(deep.map);
        checker->batmap_is_wrong |= deep.n_batmap_wrong > 0;
        if (deep.n_batmap_wrong)
                check_found(checker, VHD_DAMAGE, "batmap-wrong", metadata->batmap_offset, 0, true,
                        "tapdisk's batmap calls %" PRIu64
                        " block%s full that %s not: tapdisk would read other data there",
                        deep.n_batmap_wrong, deep.n_batmap_wrong == 1 ? "" : "s",
                        deep.n_batmap_wrong == 1 ? "is" : "are");
        /* tapdisk leaves old bytes there; readers that do not look at bitmaps show them. */
        if (deep.n_stale && metadata->footer.type == VHD_TYPE_DYNAMIC)
                check_found(checker, VHD_INFO, "data-under-clear-bits", deep.stale_offset,
                        HYPERV_BITMAP_MISMATCH, false,
                        "%" PRIu64
                        " block%s with bytes under clear bits of the sector bitmap: they read as "
                        "zeros, but programs that do not look at bitmaps show them",
                        deep.n_stale, deep.n_stale == 1 ? "" : "s");
        return r;
}

int check_blocks(struct checker *checker, const struct vhd_metadata *metadata,
        const struct vhd_blocks *blocks, struct error *err)
{
        uint64_t n_unaligned = 0;

        checker->result.n_allocated = blocks->n;
        for (size_t i = 0; i < blocks->n; i++) {
                const struct vhd_block *block = &blocks->all[i];
                uint64_t data = (uint64_t)block->place * SECTOR_SIZE + metadata->bitmap_size;

                report_block(checker, metadata, block);
                n_unaligned += block->state == BLOCK_GOOD && data % 4096 != 0;
        }
        if (n_unaligned && metadata->header.block_size >= 4096)
                check_found(checker, VHD_INFO, "blocks-unaligned", ERROR_NO_OFFSET, 0, false,
                        "the data of %" PRIu64
                        " block%s does not start on 4 KiB: slower where the disk has large sectors",
                        n_unaligned, n_unaligned == 1 ? "" : "s");
        if (blocks->n_beyond)
                check_found(checker, VHD_INFO, "bat-entries-beyond",
                        entry_offset(metadata, metadata->n_blocks), 0, false,
                        "%u BAT entries behind the disk's last block are in use; they are ignored",
                        blocks->n_beyond);
        if (checker->flags & VHD_CHECK_DEEP)
                return check_deep(checker, metadata, blocks, err);
        return 0;
}
