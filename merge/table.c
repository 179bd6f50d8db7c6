/* SPDX-License-Identifier: Apache-2.0 */
#include "merge/table.h"

#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "formats/intent.h"

#define PAGE UINT64_C(4096)

/* --- where things go */

static uint64_t table_end(const struct vhd_metadata *m, uint32_t n_entries)
{
        return m->header.table_offset +
                round_up_to((uint64_t)n_entries * sizeof(be32), SECTOR_SIZE);
}

static bool has_text(const struct vhd_metadata *m, const struct vhd_locator *locator)
{
        return m->footer.type == VHD_TYPE_DIFFERENCING && locator->code[0] &&
                locator->data_length > 0;
}

static uint64_t slot_size(const struct vhd_locator *locator)
{
        uint32_t space = MIN_OF(locator->data_space, VHD_MAX_LOCATOR_LENGTH);

        return round_up_to(MAX_OF(space, locator->data_length), SECTOR_SIZE);
}

/* Every text that the table, or one that had to go, would come to lie over goes behind them all. */
static void place_locators(const struct vhd_metadata *m, struct table_plan *plan)
{
        bool again = true;

        while (again) {
                again = false;
                for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                        const struct vhd_locator *locator = &m->header.locators[i];

                        if (plan->locators[i] || !has_text(m, locator) ||
                                !ranges_overlap(locator->data_offset, slot_size(locator),
                                        plan->old_end, plan->end - plan->old_end))
                                continue;
                        plan->locators[i] = plan->end;
                        plan->end += slot_size(locator);
                        again = true;
                }
        }
}

static void place_batmap(const struct vhd_metadata *m, struct table_plan *plan)
{
        uint64_t map;

        if (!m->batmap_offset)
                return;
        plan->batmap_offset = plan->end;
        map = round_up_to(div_round_up(plan->n_entries, 8), SECTOR_SIZE);
        plan->batmap_map_sectors = (uint32_t)(map / SECTOR_SIZE);
        plan->end += sizeof(m->batmap) + map;
}

int table_plan(
        const struct vhd_metadata *m, uint64_t size, struct table_plan *ret, struct error *err)
{
        uint64_t table = m->header.table_offset;
        struct table_plan plan = {.size = size};
        uint64_t new_end;

        if (table % SECTOR_SIZE)
                return fail(err, ENOTSUP,
                        "the BAT at offset %llu stands on no sector's edge: it is read, and not "
                        "changed",
                        (unsigned long long)table);
        plan.n_blocks = (uint32_t)div_round_up(size, m->header.block_size);
        /* Not one entry more than the disk needs, if it becomes smaller: 7-Zip opens no other. */
        plan.n_entries = size < m->footer.current_size
                ? plan.n_blocks
                : MAX_OF(plan.n_blocks, m->header.max_table_entries);
        new_end = table_end(m, plan.n_entries);
        plan.old_end = table_end(m, m->header.max_table_entries);
        plan.clear_from = table + MIN_OF(plan.n_blocks, m->n_blocks) * sizeof(be32);
        plan.clear_end = table + MAX_OF(plan.n_blocks, m->n_blocks) * sizeof(be32);
        if (new_end > plan.old_end)
                plan.clear_end = new_end;
        plan.end = new_end;
        if (new_end != plan.old_end)
                place_batmap(m, &plan); /* tapdisk looks for it behind the table */
        if (plan.end > plan.old_end)
                place_locators(m, &plan);
        plan.end = MAX_OF(plan.end, plan.old_end);
        *ret = plan;
        return 0;
}

/* --- the new bytes */

void table_footer(const struct vhd_metadata *m, uint64_t size, struct vhd_raw_footer *ret)
{
        struct vhd_geometry chs = vhd_geometry_of(size);
        struct vhd_raw_footer raw = m->footer.raw;

        raw.current_size = be64_make(size);
        raw.cylinders = be16_make((uint16_t)chs.cylinders);
        raw.heads = (uint8_t)chs.heads;
        raw.sectors_per_track = (uint8_t)chs.sectors_per_track;
        raw.checksum = be32_make(vhd_footer_checksum(&raw));
        *ret = raw;
}

static void make_header(
        const struct vhd_metadata *m, const struct table_plan *plan, struct vhd_raw_header *ret)
{
        struct vhd_raw_header raw = m->header.raw;

        raw.max_table_entries = be32_make(plan->n_entries);
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++)
                if (plan->locators[i])
                        raw.locators[i].data_offset = be64_make(plan->locators[i]);
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        *ret = raw;
}

/* The part of the file that the table's new entries and what stands behind it are in. */
struct area {
        uint64_t offset, length;
        uint8_t *bytes;
};

static void area_done(struct area *area)
{
        free(area->bytes);
}

static void put(struct area *area, uint64_t offset, const void *bytes, size_t length)
{
        memcpy(area->bytes + (offset - area->offset), bytes, length);
}

static int fill_locators(struct file *file, const struct vhd_metadata *m,
        const struct table_plan *plan, struct area *area, struct error *err)
{
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                const struct vhd_locator *locator = &m->header.locators[i];
                uint8_t *to;
                int r;

                if (!plan->locators[i])
                        continue;
                to = area->bytes + (plan->locators[i] - area->offset);
                memset(to, 0, slot_size(locator));
                r = file_read_exact(file, to, locator->data_length, locator->data_offset);
                if (r < 0)
                        return fail_os(err, -r, "cannot read parent locator %u at offset %llu", i,
                                (unsigned long long)locator->data_offset);
        }
        return 0;
}

/* A map of zeros is always true, and the checksum is that of zeros (docs/vhd-quirks.md). */
static void fill_batmap(
        const struct vhd_metadata *m, const struct table_plan *plan, struct area *area)
{
        struct vhd_raw_batmap raw = m->batmap;

        raw.map_offset = be64_make(plan->batmap_offset + sizeof(raw));
        raw.map_sectors = be32_make(plan->batmap_map_sectors);
        raw.checksum = be32_make(UINT32_MAX);
        put(area, plan->batmap_offset, &raw, sizeof(raw));
        memset(area->bytes + (plan->batmap_offset + sizeof(raw) - area->offset), 0,
                plan->batmap_map_sectors * SECTOR_SIZE);
}

static int fill_area(struct file *file, const struct vhd_metadata *m, const struct table_plan *plan,
        struct area *area, struct error *err)
{
        ssize_t n;

        area->offset = round_down_to(plan->clear_from, SECTOR_SIZE);
        area->length = round_up_to(plan->clear_end, SECTOR_SIZE) - area->offset;
        if (plan->batmap_offset || plan->end > plan->old_end)
                area->length = MAX_OF(area->length, plan->end - area->offset);
        area->bytes = calloc(1, area->length + 1);
        if (!area->bytes)
                return fail(err, ENOMEM, "no memory for a BAT of %u entries", plan->n_entries);
        n = file_read(file, area->bytes, area->length, area->offset, 0);
        if (n < 0)
                return fail_os(err, (int)-n, "cannot read the BAT at offset %llu",
                        (unsigned long long)area->offset);
        memset(area->bytes + (plan->clear_from - area->offset), 0xff,
                plan->clear_end - plan->clear_from);
        if (plan->batmap_offset)
                fill_batmap(m, plan, area);
        return fill_locators(file, m, plan, area, err);
}

/* --- writing */

/* Takes the space of what the intent will write, so that it cannot run out of it half way. What is
 * there stays: texts that move may be. */
static int take_space(struct file *file, const struct table_plan *plan, struct error *err)
{
        uint64_t length = plan->end - plan->old_end;
        _cleanup_free_ uint8_t *bytes = NULL;
        ssize_t n;
        int r = length > 0 ? file_reserve(file, plan->old_end, length) : 0;

        if (r == -EOPNOTSUPP) {
                bytes = calloc(1, length);
                if (!bytes)
                        return fail(err, ENOMEM, "no memory to change '%s'", file->path);
                n = file_read(file, bytes, length, plan->old_end, 0);
                r = n < 0 ? (int)n : file_write(file, bytes, length, plan->old_end, 0);
        }
        return r < 0 ? fail_os(err, -r, "cannot take %llu bytes of space for the BAT of '%s'",
                               (unsigned long long)length, file->path)
                     : 0;
}

/* E6: a file that becomes longer does so by its footer. *ret: where that is then. */
static int put_footer_ahead(struct file *file, const struct vhd_metadata *m,
        const struct table_plan *plan, uint64_t *ret, struct error *err)
{
        int r = 0;

        *ret = m->tail_offset;
        if (plan->end <= m->tail_offset)
                return 0;
        /* In the last sector of a page, as vhd_create() puts it. */
        *ret = round_up_to(plan->end + VHD_FOOTER_SIZE, PAGE) - VHD_FOOTER_SIZE;
        if (MUTANT("resize-footer-not-ahead"))
                return 0;
        r = file_write(file, &m->footer.raw, VHD_FOOTER_SIZE, *ret, 0);
        if (r == 0)
                r = file_sync(file);
        return r < 0 ? fail_os(err, -r, "cannot write the footer at offset %llu",
                               (unsigned long long)*ret)
                     : 0;
}

/* The file's end, and the space up to it. On failure it is as it was. */
static int prepare_space(struct file *file, const struct vhd_metadata *m,
        const struct table_plan *plan, uint64_t *ret, struct error *err)
{
        int r = put_footer_ahead(file, m, plan, ret, err);

        if (r < 0)
                return r;
        r = take_space(file, plan, err);
        if (r < 0 && *ret != m->tail_offset && file_sync_error(file) == 0 &&
                file_truncate(file, m->tail_offset + VHD_FOOTER_SIZE) == 0)
                file_sync(file);
        return r;
}

static int run_intent(struct intent *intent, struct error *err)
{
        int r;

        if (!MUTANT("resize-no-intent"))
                return intent_run(intent, err);
        r = intent_apply(intent, err);
        return r;
}

int table_change(struct file *file, const struct vhd_metadata *m, const struct table_plan *plan,
        struct error *err)
{
        _cleanup_(intent_freep) struct intent *intent = intent_new();
        _cleanup_(area_done) struct area area = {0};
        struct vhd_raw_footer footer;
        struct vhd_raw_header header;
        uint64_t tail = 0;
        int image, r;

        if (!intent)
                return fail(err, ENOMEM, "no memory to change '%s'", file->path);
        r = fill_area(file, m, plan, &area, err);
        if (r == 0)
                r = prepare_space(file, m, plan, &tail, err);
        if (r < 0)
                return r;
        table_footer(m, plan->size, &footer);
        make_header(m, plan, &header);
        image = intent_add_image(intent, file, m->footer.unique_id, m->footer.unique_id, err);
        if (image < 0)
                return image;
        r = intent_add(intent, (unsigned)image, 0, &footer, sizeof(footer), err);
        if (r == 0)
                r = intent_add(intent, (unsigned)image, m->footer.data_offset, &header,
                        sizeof(header), err);
        if (r == 0 && area.length > 0)
                r = intent_add(intent, (unsigned)image, area.offset, area.bytes, area.length, err);
        if (r == 0)
                r = intent_add(intent, (unsigned)image, tail, &footer, sizeof(footer), err);
        return r < 0 ? r : run_intent(intent, err);
}
