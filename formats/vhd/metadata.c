/* SPDX-License-Identifier: Apache-2.0 */
/* From an unknown file to trusted numbers: which footer is believed, and whether what it and the
 * dynamic header name lies inside the file. */
#include "formats/vhd/metadata.h"

#include <inttypes.h>
#include <string.h>

#include "base/arith.h"
#include "base/quote.h"
#include "formats/vhd/hyperv.h"

#define TAPDISK_MARK 0xC7
/* The creator of files with a batmap: from version 1.2 on there always is one. */
#define TAPDISK_APP            "tap"
#define TAPDISK_VERSION_0_1    UINT32_C(0x00000001)
#define TAPDISK_VERSION_BATMAP UINT32_C(0x00010002)

const char *vhd_problem_to_string(enum vhd_problem problem)
{
        switch (problem) {
        case VHD_PROBLEM_NO_TAIL: return "has no valid footer at its end";
        case VHD_PROBLEM_NO_HEAD: return "has no valid copy of its footer at its head";
        case VHD_PROBLEM_FOOTERS_DIFFER: return "has a footer and a copy of it that differ";
        case VHD_PROBLEM_OLD_FOOTER: return "has a footer of 511 bytes";
        case VHD_PROBLEM_TAPDISK_OPEN: return "is open in XenServer's tapdisk, or that crashed";
        case VHD_PROBLEM_FOOTER_CHECKSUM: return "has a footer with a wrong checksum";
        case VHD_PROBLEM_HEADER_CHECKSUM: return "has a dynamic header with a wrong checksum";
        case VHD_PROBLEM_BAT_SHORT: return "has a BAT with fewer entries than its size needs";
        case VHD_PROBLEM_TRUNCATED: return "ends inside a block";
        case VHD_PROBLEM_BAD_BLOCKS: return "has BAT entries that cannot be right";
        case VHD_PROBLEM_SAVED_STATE: return "belongs to the saved state of a virtual machine";
        case VHD_PROBLEM_HIDDEN_CHECKSUM:
                return "was hidden by an early tapdisk that did not mend the footer's checksum";
        case VHD_PROBLEM_BATMAP: return "has a tapdisk batmap that makes no sense";
        case VHD_PROBLEM_BAD_LOCATOR: return "has a parent locator that cannot be right";
        }
        return "has a problem without a name";
}

/* ---- the two footers ---- */

static void copy_judge(struct vhd_footer_copy *copy)
{
        struct vhd_raw_footer raw = copy->footer.raw;
        const uint8_t *bytes = (const uint8_t *)&raw;

        copy->has_cookie = memcmp(raw.cookie, VHD_COOKIE, sizeof(raw.cookie)) == 0 ||
                memcmp(raw.cookie, VHD_POISON_COOKIE, sizeof(raw.cookie)) == 0;
        copy->has_tapdisk_mark =
                bytes[0] == TAPDISK_MARK && memcmp(bytes, bytes + 1, sizeof(raw) - 1) == 0;
        copy->result = vhd_footer_decode(&raw, 0, &copy->footer, &copy->problems, &copy->error);
        copy->footer.raw = raw;
        error_set_offset(&copy->error, copy->offset);
}

static int copy_read(struct file *file, uint64_t offset, uint32_t size, struct vhd_footer_copy *ret,
        struct error *err)
{
        int r;

        *ret = (struct vhd_footer_copy){.offset = offset, .size = size, .error = ERROR_INIT};
        r = file_read_exact(file, &ret->footer.raw, size, offset);
        if (r < 0) {
                r = fail_os(err, -r, "cannot read the footer at offset %" PRIu64, offset);
                error_set_file(err, file->path);
                return r;
        }
        copy_judge(ret);
        return 0;
}

/* The tail: 512 bytes, or 511 of a writer older than Virtual PC 2004. A length of n * 512 + 511 is
 * the sign of the latter, but only the cookie decides. */
static int tail_read(
        struct file *file, uint64_t file_size, struct vhd_footer_copy *ret, struct error *err)
{
        bool old_first = file_size % SECTOR_SIZE == VHD_OLD_FOOTER_SIZE;
        uint32_t sizes[2] = {VHD_FOOTER_SIZE, VHD_OLD_FOOTER_SIZE};
        struct vhd_footer_copy second;
        int r;

        if (old_first) {
                sizes[0] = VHD_OLD_FOOTER_SIZE;
                sizes[1] = VHD_FOOTER_SIZE;
        }
        if (file_size < sizes[0])
                return 0;
        r = copy_read(file, file_size - sizes[0], sizes[0], ret, err);
        if (r < 0 || ret->has_cookie || file_size < sizes[1])
                return r;
        r = copy_read(file, file_size - sizes[1], sizes[1], &second, err);
        if (r < 0)
                return r;
        if (second.has_cookie)
                *ret = second;
        return 0;
}

static void copy_absent(struct vhd_footer_copy *ret)
{
        *ret = (struct vhd_footer_copy){.error = ERROR_INIT};
        ret->result = fail(&ret->error, ENOMEDIUM, "the file is too short for a VHD footer");
        error_set_hyperv(&ret->error, HYPERV_INVALID_FILE_SIZE);
}

int vhd_footers_read(struct file *file, struct vhd_footer_copy *ret_head,
        struct vhd_footer_copy *ret_tail, struct error *err)
{
        uint64_t file_size;
        int r;

        copy_absent(ret_head);
        copy_absent(ret_tail);
        r = file_size_get(file, &file_size);
        if (r < 0) {
                r = fail_os(err, -r, "cannot tell the size of the file");
                error_set_file(err, file->path);
                return r;
        }
        if (file_size >= VHD_FOOTER_SIZE) {
                r = copy_read(file, 0, VHD_FOOTER_SIZE, ret_head, err);
                if (r < 0)
                        return r;
        }
        return tail_read(file, file_size, ret_tail, err);
}

static bool is_poisoned(const struct vhd_footer_copy *copy)
{
        return memcmp(copy->footer.raw.cookie, VHD_POISON_COOKIE, 8) == 0;
}

/* A fixed disk has no copy at its head: what is there belongs to its guest. */
static bool head_may_be_believed(
        const struct vhd_footer_copy *head, const struct vhd_footer_copy *tail)
{
        bool tail_says_fixed =
                tail->has_cookie && be32_get(tail->footer.raw.type) == VHD_TYPE_FIXED;

        return head->result == 0 && head->footer.type != VHD_TYPE_FIXED && !tail_says_fixed;
}

/* The sentence about a file whose tail cannot be believed, and what its head claims. */
static int fail_no_tail(struct file *file, const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, struct error *err)
{
        bool usable = head_may_be_believed(head, tail);
        char quoted[QUOTE_TEXT_MAX];
        int r = tail->result;

        if (err)
                *err = tail->error;
        if (tail->has_tapdisk_mark) {
                r = fail(err, EUCLEAN,
                        "the footer at offset %" PRIu64
                        " is overwritten by tapdisk's mark: XenServer has the file open, or "
                        "crashed while it had",
                        tail->offset);
                error_set_offset(err, tail->offset);
                error_set_hyperv(err, HYPERV_FOOTER_MISSING);
        } else if (!tail->has_cookie && usable) {
                r = fail(err, EUCLEAN,
                        "there is no VHD footer at the end; the copy at the head claims a %s disk "
                        "of %" PRIu64 " bytes, which is not believed unasked",
                        vhd_type_to_string(head->footer.type), head->footer.current_size);
                error_set_offset(err, tail->offset);
                error_set_hyperv(err, HYPERV_FOOTER_MISSING);
        } else if (!tail->has_cookie && head->has_cookie) {
                if (err)
                        *err = head->error;
                r = head->result < 0 ? head->result
                                     : fail(err, EUCLEAN,
                                               "there is no VHD footer at the end, and a fixed "
                                               "disk has none elsewhere");
                error_set_hyperv(err, HYPERV_FOOTER_MISSING);
        }
        if (usable)
                error_set_hint(err, "vhdctl check --repair --use head %s",
                        shell_quote(file->path, quoted, sizeof(quoted)));
        error_set_file(err, file->path);
        return r;
}

/* A resize that was cut off: what the structures say now is worth nothing. A fixed disk's head cannot
 * tell. */
static const struct vhd_footer_copy *find_poison(
        const struct vhd_footer_copy *head, const struct vhd_footer_copy *tail)
{
        bool fixed = tail->has_cookie && be32_get(tail->footer.raw.type) == VHD_TYPE_FIXED;

        if (is_poisoned(tail))
                return tail;
        return is_poisoned(head) && !fixed ? head : NULL;
}

/* The caller says that the head is right. */
static int believe_head(struct file *file, unsigned flags, const struct vhd_footer_copy *head,
        struct vhd_metadata *m, struct error *err)
{
        int r = head->result;

        if (r == 0 || (flags & VHD_READ_FORCE && head->has_cookie))
                r = vhd_footer_decode(&head->footer.raw, flags, &m->footer, &m->problems, err);
        if (r == 0 && m->footer.type != VHD_TYPE_FIXED)
                return 0;
        r = fail(err, EUCLEAN, "the head holds no valid copy of the footer");
        error_set_file(err, file->path);
        error_set_offset(err, 0);
        return r;
}

/* Neither is as it should be, and yet the image is to be read: a valid copy at the head, else a tail,
 * else a head, in spite of the checksum. */
static int believe_by_force(struct file *file, const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, struct vhd_metadata *m, struct error *err)
{
        const struct vhd_footer_copy *forced = tail->has_cookie ? tail : head;
        int r = -ENOMEDIUM;

        if (head_may_be_believed(head, tail))
                forced = head;
        if (forced->has_cookie)
                r = vhd_footer_decode(
                        &forced->footer.raw, VHD_READ_FORCE, &m->footer, &m->problems, err);
        if (r < 0 || (forced == head && m->footer.type == VHD_TYPE_FIXED))
                return fail_no_tail(file, head, tail, err);
        return 0;
}

static void note_footer_problems(const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, struct vhd_metadata *m)
{
        if (tail->result < 0)
                m->problems |= VHD_PROBLEM_NO_TAIL;
        if (tail->has_tapdisk_mark)
                m->problems |= VHD_PROBLEM_TAPDISK_OPEN;
        if (tail->result == 0 && tail->size == VHD_OLD_FOOTER_SIZE)
                m->problems |= VHD_PROBLEM_OLD_FOOTER;
        if (m->footer.type == VHD_TYPE_FIXED)
                return;
        if (head->result < 0)
                m->problems |= VHD_PROBLEM_NO_HEAD;
        else if (tail->result == 0 && memcmp(&head->footer.raw, &tail->footer.raw, tail->size) != 0)
                m->problems |= VHD_PROBLEM_FOOTERS_DIFFER;
}

/* Which footer is believed. */
static int choose_footer(struct file *file, unsigned flags, const struct vhd_footer_copy *head,
        const struct vhd_footer_copy *tail, struct vhd_metadata *m, struct error *err)
{
        const struct vhd_footer_copy *poisoned = find_poison(head, tail);
        int r = 0;

        if (poisoned) {
                if (err)
                        *err = poisoned->error;
                error_set_file(err, file->path);
                return poisoned->result;
        }
        if (flags & VHD_READ_USE_HEAD) {
                r = believe_head(file, flags, head, m, err);
        } else if (tail->result == 0) {
                m->footer = tail->footer;
                m->problems |= tail->problems;
        } else if (flags & VHD_READ_FORCE) {
                r = believe_by_force(file, head, tail, m, err);
        } else {
                r = fail_no_tail(file, head, tail, err);
        }
        if (r == 0)
                note_footer_problems(head, tail, m);
        return r;
}

/* Without anything like a footer at the end, the last bytes may be a block's: a footer goes behind
 * them. */
static void place_tail(const struct vhd_footer_copy *tail, struct vhd_metadata *m)
{
        if (tail->has_cookie || tail->has_tapdisk_mark) {
                m->tail_offset = tail->offset;
                m->tail_size = tail->size;
        } else {
                m->tail_offset = round_up_to(m->file_size, SECTOR_SIZE);
                m->tail_size = 0;
        }
}

/* ---- behind the footer ---- */

static int read_header(struct file *file, unsigned flags, struct vhd_metadata *m, struct error *err)
{
        uint64_t offset = m->footer.data_offset;
        struct vhd_raw_header raw;
        int r;

        if (offset % SECTOR_SIZE != 0 || offset < VHD_FOOTER_SIZE ||
                !range_inside(offset, sizeof(raw), MIN_OF(m->tail_offset, m->file_size))) {
                r = fail(err, EUCLEAN,
                        "footer puts the dynamic header at offset %" PRIu64
                        ", where none fits into the file of %" PRIu64 " bytes",
                        offset, m->file_size);
                error_set_hyperv(err, HYPERV_FOOTER_CORRUPT);
                return r;
        }
        r = file_read_exact(file, &raw, sizeof(raw), offset);
        if (r < 0)
                return fail_os(
                        err, -r, "cannot read the dynamic header at offset %" PRIu64, offset);
        r = vhd_header_decode(&raw, flags, &m->header, &m->problems, err);
        error_set_offset(err, offset);
        return r;
}

static int check_table(struct vhd_metadata *m, struct error *err)
{
        uint64_t offset = m->header.table_offset;
        uint64_t length = (uint64_t)m->header.max_table_entries * sizeof(be32);
        uint64_t n_blocks = div_round_up(m->footer.current_size, m->header.block_size);
        int r;

        if (n_blocks > VHD_MAX_BLOCKS) {
                r = fail(err, EUCLEAN,
                        "a disk of %" PRIu64 " bytes in blocks of %u has %" PRIu64
                        " blocks, at most %u are accepted",
                        m->footer.current_size, m->header.block_size, n_blocks, VHD_MAX_BLOCKS);
                error_set_hyperv(err, HYPERV_INVALID_SIZE);
                return r;
        }
        if (!range_inside(offset, length, MIN_OF(m->tail_offset, m->file_size))) {
                r = fail(err, EUCLEAN,
                        "BAT of %u entries at offset %" PRIu64
                        " runs past the end of the file of %" PRIu64 " bytes",
                        m->header.max_table_entries, offset, m->file_size);
                error_set_offset(err, offset);
                error_set_hyperv(err, HYPERV_BAT_CORRUPT);
                return r;
        }
        if (offset < VHD_FOOTER_SIZE ||
                ranges_overlap(offset, length, m->footer.data_offset, VHD_HEADER_SIZE)) {
                r = fail(err, EUCLEAN,
                        "BAT at offset %" PRIu64 " lies over the footer's copy or the dynamic "
                        "header",
                        offset);
                error_set_offset(err, offset);
                error_set_hyperv(err, HYPERV_BAT_CORRUPT);
                return r;
        }
        m->n_blocks = (uint32_t)n_blocks;
        m->bitmap_size = vhd_bitmap_size(m->header.block_size);
        if (m->header.max_table_entries < m->n_blocks)
                m->problems |= VHD_PROBLEM_BAT_SHORT;
        return 0;
}

/* The table is padded to whole sectors; the padding may lie past the end of a short file. */
static uint64_t table_size(const struct vhd_metadata *m)
{
        return round_up_to((uint64_t)m->header.max_table_entries * sizeof(be32), SECTOR_SIZE);
}

/* Everything but the locators' texts. */
static size_t structure_ranges(const struct vhd_metadata *m, struct vhd_range ret[VHD_MAX_RANGES])
{
        size_t n = 0;

        if (m->footer.type == VHD_TYPE_FIXED)
                return 0;
        ret[n++] = (struct vhd_range){0, VHD_FOOTER_SIZE, "footer's copy"};
        ret[n++] = (struct vhd_range){m->footer.data_offset, VHD_HEADER_SIZE, "dynamic header"};
        ret[n++] = (struct vhd_range){m->header.table_offset,
                (uint64_t)m->header.max_table_entries * sizeof(be32), "BAT"};
        if (m->batmap_offset) {
                ret[n++] = (struct vhd_range){m->batmap_offset, sizeof(m->batmap), "batmap header"};
                ret[n++] = (struct vhd_range){be64_get(m->batmap.map_offset),
                        (uint64_t)be32_get(m->batmap.map_sectors) * SECTOR_SIZE, "batmap"};
        }
        return n;
}

/* Is slot @index of a child's locators used, by anybody? */
static bool locator_is_used(const struct vhd_metadata *m, unsigned index)
{
        return m->footer.type == VHD_TYPE_DIFFERENCING &&
                !bytes_are_zero(m->header.locators[index].code, 4) &&
                m->header.locators[index].data_length > 0;
}

size_t vhd_metadata_ranges(const struct vhd_metadata *m, struct vhd_range ret[VHD_MAX_RANGES])
{
        size_t n = structure_ranges(m, ret);

        for (unsigned i = 0; i < VHD_N_LOCATORS; i++)
                if (locator_is_used(m, i))
                        ret[n++] = (struct vhd_range){m->header.locators[i].data_offset,
                                m->header.locators[i].data_length, "parent locator"};
        return n;
}

const char *vhd_metadata_at(const struct vhd_metadata *m, uint64_t offset, uint64_t length)
{
        struct vhd_range ranges[VHD_MAX_RANGES];
        size_t n;

        if (offset >= m->metadata_end) /* nearly always, and there may be millions of blocks */
                return NULL;
        n = vhd_metadata_ranges(m, ranges);
        for (size_t i = 0; i < n; i++)
                if (ranges_overlap(ranges[i].offset, ranges[i].length, offset, length))
                        return ranges[i].what;
        return NULL;
}

/* The first structure that the range lies over, or NULL. The range does not wrap. */
static const char *structure_at(const struct vhd_metadata *m, uint64_t offset, uint64_t length)
{
        struct vhd_range ranges[VHD_MAX_RANGES];
        size_t n = structure_ranges(m, ranges);

        for (size_t i = 0; i < n; i++)
                if (ranges_overlap(ranges[i].offset, ranges[i].length, offset, length))
                        return ranges[i].what;
        return NULL;
}

/* Does the batmap that @raw describes make sense? Its map is one bit a block, and zeroing it must
 * harm nothing else. */
static bool batmap_is_sane(const struct vhd_metadata *m, const struct vhd_raw_batmap *raw)
{
        uint64_t length = (uint64_t)be32_get(raw->map_sectors) * SECTOR_SIZE;
        uint64_t offset = be64_get(raw->map_offset);

        return offset % SECTOR_SIZE == 0 && length <= VHD_MAX_BLOCKS / 8 &&
                range_inside(offset, length, MIN_OF(m->tail_offset, m->file_size)) &&
                !structure_at(m, offset, length);
}

/* tapdisk's batmap stands right behind the table. Other writers' files have none, whatever lies
 * there. */
static int read_batmap(struct file *file, struct vhd_metadata *m, struct error *err)
{
        uint64_t offset = m->header.table_offset + table_size(m);
        struct vhd_raw_batmap raw;
        int r;

        if (memcmp(m->footer.raw.creator_app, TAPDISK_APP, sizeof(TAPDISK_APP)) != 0)
                return 0;
        if (m->footer.creator_version == TAPDISK_VERSION_0_1)
                return fail(err, ENOTSUP,
                        "the file is of tapdisk 0.1, whose sector bitmaps have another bit order");
        if (!range_inside(offset, sizeof(raw), MIN_OF(m->tail_offset, m->file_size))) {
                if (m->footer.creator_version >= TAPDISK_VERSION_BATMAP)
                        m->problems |= VHD_PROBLEM_BATMAP;
                return 0;
        }
        r = file_read_exact(file, &raw, sizeof(raw), offset);
        if (r < 0)
                return fail_os(err, -r, "cannot read the batmap at offset %" PRIu64, offset);
        if (memcmp(raw.cookie, VHD_BATMAP_COOKIE, sizeof(raw.cookie)) != 0) {
                if (m->footer.creator_version >= TAPDISK_VERSION_BATMAP)
                        m->problems |= VHD_PROBLEM_BATMAP;
                return 0;
        }
        m->encrypted = raw.key_flag != 0;
        if (structure_at(m, offset, sizeof(raw)) || !batmap_is_sane(m, &raw) ||
                ranges_overlap(offset, sizeof(raw), be64_get(raw.map_offset),
                        (uint64_t)be32_get(raw.map_sectors) * SECTOR_SIZE)) {
                m->problems |= VHD_PROBLEM_BATMAP;
                return 0;
        }
        m->batmap_offset = offset;
        m->batmap = raw;
        return 0;
}

static int check_locator(const struct vhd_metadata *m, unsigned index, struct error *err)
{
        const struct vhd_locator *locator = &m->header.locators[index];
        const char *over;
        int r;

        if (locator->data_length > VHD_MAX_LOCATOR_LENGTH) {
                r = fail(err, EUCLEAN,
                        "parent locator %u is %u bytes long, at most %u are accepted", index,
                        locator->data_length, VHD_MAX_LOCATOR_LENGTH);
                error_set_hyperv(err, HYPERV_HEADER_CORRUPT);
                return r;
        }
        if (!range_inside(locator->data_offset, locator->data_length,
                    MIN_OF(m->tail_offset, m->file_size))) {
                r = fail(err, EUCLEAN,
                        "parent locator %u lies at offset %" PRIu64 ", outside the file of %" PRIu64
                        " bytes",
                        index, locator->data_offset, m->file_size);
                error_set_hyperv(err, HYPERV_HEADER_CORRUPT);
                return r;
        }
        over = structure_at(m, locator->data_offset, locator->data_length);
        if (over) {
                r = fail(err, EUCLEAN, "parent locator %u at offset %" PRIu64 " lies over the %s",
                        index, locator->data_offset, over);
                error_set_hyperv(err, HYPERV_HEADER_CORRUPT);
                return r;
        }
        return 0;
}

static int check_locators(unsigned flags, struct vhd_metadata *m, struct error *err)
{
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                int r = locator_is_used(m, i) ? check_locator(m, i, err) : 0;

                if (r == 0)
                        continue;
                if (!(flags & VHD_READ_FORCE))
                        return r;
                m->problems |= VHD_PROBLEM_BAD_LOCATOR;
                /* Nobody is to follow it; the raw header keeps it. */
                m->header.locators[i].data_length = 0;
        }
        return 0;
}

static uint64_t metadata_end_of(const struct vhd_metadata *m)
{
        struct vhd_range ranges[VHD_MAX_RANGES];
        size_t n = vhd_metadata_ranges(m, ranges);
        uint64_t end = m->header.table_offset + table_size(m);

        for (size_t i = 0; i < n; i++)
                end = MAX_OF(end, ranges[i].offset + ranges[i].length);
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                const struct vhd_locator *locator = &m->header.locators[i];

                /* A slot's space is only believed as far as there is a file. */
                if (locator_is_used(m, i) &&
                        range_inside(locator->data_offset, locator->data_space, m->tail_offset))
                        end = MAX_OF(end, locator->data_offset + locator->data_space);
        }
        return round_up_to(end, SECTOR_SIZE);
}

static int read_sparse(struct file *file, unsigned flags, struct vhd_metadata *m, struct error *err)
{
        int r;

        r = read_header(file, flags, m, err);
        if (r < 0)
                return r;
        r = check_table(m, err);
        if (r < 0)
                return r;
        r = read_batmap(file, m, err);
        if (r < 0)
                return r;
        r = check_locators(flags, m, err);
        if (r < 0)
                return r;
        m->metadata_end = metadata_end_of(m);
        return 0;
}

static int check_fixed(const struct vhd_metadata *m, struct error *err)
{
        int r;

        if (m->footer.current_size <= m->tail_offset)
                return 0;
        r = fail(err, EUCLEAN,
                "the fixed disk has %" PRIu64 " bytes, and only %" PRIu64 " are in the file",
                m->footer.current_size, m->tail_offset);
        error_set_hyperv(err, HYPERV_INVALID_FILE_SIZE);
        return r;
}

int vhd_metadata_read(
        struct file *file, unsigned flags, struct vhd_metadata *ret, struct error *err)
{
        struct vhd_footer_copy head, tail;
        struct vhd_metadata m = {0};
        int r;

        r = vhd_footers_read(file, &head, &tail, err);
        if (r < 0)
                return r;
        r = file_size_get(file, &m.file_size);
        if (r < 0)
                return fail_os(err, -r, "cannot tell the size of the file");
        place_tail(&tail, &m);
        r = choose_footer(file, flags, &head, &tail, &m, err);
        if (r < 0)
                return r;

        if (m.footer.type == VHD_TYPE_FIXED)
                r = check_fixed(&m, err);
        else
                r = read_sparse(file, flags, &m, err);
        if (r < 0) {
                error_set_file(err, file->path);
                return r;
        }
        *ret = m;
        return 0;
}
