/* SPDX-License-Identifier: Apache-2.0 */
/* Mending. What is to be written is gathered in an intent first; then the old bytes are kept beside
 * the image, and then the intent is carried out, so that a cut leaves the old or the new image. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "base/quote.h"
#include "base/uuid.h"
#include "formats/intent_internal.h"
#include "formats/poison.h"
#include "formats/redo.h"
#include "formats/vhd/check_internal.h"

#define PAGE        UINT64_C(4096)
#define MAX_BACKUPS 100 /* of one second */

struct repair {
        struct file *file;
        unsigned flags;
        vhd_report report; /* the caller's */
        void *opaque;
        struct vhd_repair_result result;
        bool batmap_is_wrong;
        struct vhd_metadata metadata;
        struct vhd_footer_copy head, tail;
        struct intent *intent;
        int image; /* its number in the intent */
};

/* ---- gathering ---- */

/* [offset, offset + size) is to hold @bytes; nothing happens if it does. */
static int plan_write(
        struct repair *repair, uint64_t offset, const void *bytes, size_t size, struct error *err)
{
        struct intent *intent = repair->intent;
        const struct intent_change *change;
        int r = intent_add(intent, (unsigned)repair->image, offset, bytes, size, err);

        if (r < 0)
                return r;
        change = &intent->changes[intent->n_changes - 1];
        if (change->old_length == size && memcmp(change->bytes, change->bytes + size, size) == 0) {
                free(change->bytes);
                intent->n_changes--;
                return 0;
        }
        for (size_t i = 0; i < size; i++)
                repair->result.bytes_changed +=
                        i >= change->old_length || change->bytes[i] != change->bytes[size + i];
        return 0;
}

/* The footer as it should be: what is believed, with the small things put right. */
static void make_footer(const struct repair *repair, struct vhd_raw_footer *ret)
{
        struct vhd_footer footer = repair->metadata.footer;

        if (uuid_is_zero(footer.unique_id))
                uuid_random(footer.unique_id);
        if (check_geometry_is_larger(&footer)) {
                struct vhd_geometry chs = vhd_geometry_of(footer.current_size);

                footer.cylinders = chs.cylinders;
                footer.heads = chs.heads;
                footer.sectors_per_track = chs.sectors_per_track;
        }
        vhd_footer_encode(&footer, ret);
}

/* Where the tail goes: it stays, unless it is lost or a block needs its place. */
static uint64_t tail_place(const struct repair *repair, uint64_t blocks_end)
{
        const struct vhd_metadata *metadata = &repair->metadata;
        uint64_t end;

        if (!check_tail_must_move(metadata, blocks_end))
                return metadata->tail_offset;
        /* In the last sector of a page, as Windows has it. */
        end = MAX_OF(blocks_end, round_up_to(metadata->file_size, SECTOR_SIZE));
        return round_up_to(end + VHD_FOOTER_SIZE, PAGE) - VHD_FOOTER_SIZE;
}

static int plan_header(struct repair *repair, struct error *err)
{
        struct vhd_raw_header raw = repair->metadata.header.raw;

        if (!(repair->metadata.problems & VHD_PROBLEM_HEADER_CHECKSUM) ||
                !(repair->flags & VHD_CHECK_FORCE))
                return 0;
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        return plan_write(repair, repair->metadata.footer.data_offset, &raw, sizeof(raw), err);
}

/* A map of zeros promises nothing and is always true. */
static int plan_batmap(struct repair *repair, struct error *err)
{
        struct vhd_raw_batmap batmap = repair->metadata.batmap;
        size_t size = (size_t)be32_get(batmap.map_sectors) * SECTOR_SIZE;
        _cleanup_free_ uint8_t *zeros = NULL;
        int r = 0;

        if (!repair->batmap_is_wrong || !repair->metadata.batmap_offset)
                return 0;
        zeros = calloc(1, size + 1);
        if (!zeros)
                return fail(err, ENOMEM, "no memory for the batmap");
        if (size)
                r = plan_write(repair, be64_get(batmap.map_offset), zeros, size, err);
        batmap.checksum = be32_make(UINT32_MAX);
        if (r == 0)
                r = plan_write(
                        repair, repair->metadata.batmap_offset, &batmap, sizeof(batmap), err);
        return r;
}

static bool is_to_clear(const struct vhd_block *block)
{
        return block->state == BLOCK_OUTSIDE || block->state == BLOCK_IN_METADATA ||
                block->state == BLOCK_OVERLAPS;
}

static int compare_numbers(const void *a, const void *b)
{
        uint32_t x = ((const struct vhd_block *)a)->block, y = ((const struct vhd_block *)b)->block;

        return x < y ? -1 : x > y;
}

/* One sector of the BAT: the entries of blocks[first] and those behind it that lie in the same. */
static int plan_bat_sector(
        struct repair *repair, const struct vhd_blocks *blocks, size_t *first, struct error *err)
{
        const uint32_t per_sector = SECTOR_SIZE / sizeof(be32);
        const be32 unused = be32_make(VHD_BAT_UNUSED);
        uint32_t sector = blocks->all[*first].block / per_sector;
        uint64_t offset = repair->metadata.header.table_offset + sector * SECTOR_SIZE;
        be32 entries[SECTOR_SIZE / sizeof(be32)];
        bool any = false;
        int r;

        r = file_read_exact(repair->file, entries, sizeof(entries), offset);
        if (r < 0)
                return fail_os(err, -r, "cannot read the BAT at offset %" PRIu64, offset);
        for (; *first < blocks->n && blocks->all[*first].block / per_sector == sector; ++*first) {
                if (!is_to_clear(&blocks->all[*first]))
                        continue;
                entries[blocks->all[*first].block % per_sector] = unused;
                any = true;
        }
        return any ? plan_write(repair, offset, entries, sizeof(entries), err) : 0;
}

/* *ret_end: behind the blocks that stay. -ECANCELED: the file is left as it is. */
static int plan_blocks(struct repair *repair, uint64_t *ret_end, struct error *err)
{
        struct vhd_blocks blocks;
        int r = check_blocks_scan(repair->file, &repair->metadata, &blocks, err);

        if (r < 0)
                return r;
        *ret_end = blocks.end;
        if (!check_blocks_allow_repair(&repair->metadata, &blocks, repair->flags)) {
                check_blocks_done(&blocks);
                return -ECANCELED;
        }
        if (repair->flags & VHD_CHECK_FORCE && blocks.n) {
                qsort(blocks.all, blocks.n, sizeof(*blocks.all), compare_numbers);
                for (size_t i = 0; i < blocks.n && r == 0;)
                        r = plan_bat_sector(repair, &blocks, &i, err);
        }
        check_blocks_done(&blocks);
        return r;
}

static int plan_all(struct repair *repair, struct error *err)
{
        bool fixed = repair->metadata.footer.type == VHD_TYPE_FIXED;
        struct vhd_raw_footer footer;
        uint64_t blocks_end = repair->metadata.footer.current_size;
        int r = 0;

        make_footer(repair, &footer);
        if (!fixed) {
                r = plan_blocks(repair, &blocks_end, err);
                if (r == 0)
                        r = plan_header(repair, err);
                if (r == 0)
                        r = plan_batmap(repair, err);
                if (r == 0)
                        r = plan_write(repair, 0, &footer, sizeof(footer), err);
        }
        if (r == 0)
                r = plan_write(
                        repair, tail_place(repair, blocks_end), &footer, sizeof(footer), err);
        return r;
}

/* ---- the old bytes ---- */

static void backup_name(
        const struct repair *repair, const char *path, unsigned attempt, char *ret, size_t size)
{
        time_t now = (time_t)fs_now(repair->file->fs);
        struct tm tm;
        char stamp[32];

        gmtime_r(&now, &tm);
        strftime(stamp, sizeof(stamp), "%Y%m%dT%H%M%SZ", &tm);
        if (attempt)
                snprintf(ret, size, "%s.vhdd-repair-%s-%u", path, stamp, attempt);
        else
                snprintf(ret, size, "%s.vhdd-repair-%s", path, stamp);
}

/* A text that grows. */
struct text {
        char *p;
        size_t used, size;
};

static int text_add(struct text *text, const char *line)
{
        size_t n = strlen(line);

        if (text->used + n + 1 > text->size) {
                size_t size = MAX_OF(text->size * 2, text->used + n + 1);
                char *p = realloc(text->p, size);

                if (!p)
                        return -ENOMEM;
                text->p = p;
                text->size = size;
        }
        memcpy(text->p + text->used, line, n + 1);
        text->used += n;
        return 0;
}

/* Sixteen bytes a line, as xxd prints them and takes them back. */
static int text_add_bytes(struct text *text, uint64_t offset, const uint8_t *bytes, uint32_t n)
{
        int r = 0;

        for (uint32_t at = 0; at < n && r == 0; at += 16) {
                char line[80];
                int used = snprintf(line, sizeof(line), "%08" PRIx64 ":", offset + at);

                for (uint32_t i = at; i < MIN_OF(at + 16, n); i++)
                        used += snprintf(line + used, sizeof(line) - (size_t)used, "%s%02x",
                                (i - at) % 2 ? "" : " ", bytes[i]);
                snprintf(line + used, sizeof(line) - (size_t)used, "\n");
                r = text_add(text, line);
        }
        return r;
}

static int backup_text(
        const struct repair *repair, const char *path, const char *name, struct text *text)
{
        const struct intent *intent = repair->intent;
        char image[QUOTE_TEXT_MAX], backup[QUOTE_TEXT_MAX], head[5 * QUOTE_TEXT_MAX];
        int r;

        shell_quote(path, image, sizeof(image));
        shell_quote(name, backup, sizeof(backup));
        snprintf(head, sizeof(head),
                "# What vhdctl check --repair changed in %s: the bytes that were there before.\n"
                "# To put them back, while nobody has the image open:\n"
                "#   grep -v '^#' %s | xxd -r - %s && truncate -s %" PRIu64 " %s\n"
                "# Each line: offset in the file, hexadecimal, and up to sixteen bytes.\n",
                image, backup, image, repair->metadata.file_size, image);
        r = text_add(text, head);
        for (uint32_t i = 0; i < intent->n_changes && r == 0; i++) {
                const struct intent_change *change = &intent->changes[i];

                r = text_add_bytes(
                        text, change->offset, change->bytes + change->length, change->old_length);
        }
        return r;
}

static int write_backup(struct repair *repair, struct error *err)
{
        _cleanup_free_ char *path = intent_path_of(repair->file);
        _cleanup_(file_closep) struct file *file = NULL;
        char *name = repair->result.backup;
        struct text text = {NULL, 0, 0};
        int r = -EEXIST;

        if (!path)
                return fail(err, ENOMEM, "no memory for a copy of the old bytes");
        for (unsigned attempt = 0; r == -EEXIST && attempt < MAX_BACKUPS; attempt++) {
                backup_name(repair, path, attempt, name, sizeof(repair->result.backup));
                r = file_open(repair->file->fs, name, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE,
                        &file, err);
        }
        if (r < 0) {
                name[0] = '\0';
                return fail_prefix(err, r, "cannot keep the old bytes");
        }
        r = backup_text(repair, path, name, &text);
        if (r == 0)
                r = file_write(file, text.p, text.used, 0, 0);
        if (r == 0)
                r = file_sync(file);
        if (r == 0)
                r = fs_sync_directory(repair->file->fs, name);
        free(text.p);
        if (r < 0) {
                fs_unlink(repair->file->fs, name);
                fail_os(err, -r, "cannot keep the old bytes in '%s'", name);
                name[0] = '\0';
        }
        return r;
}

/* ---- the order of things ---- */

/* Passes on what is going to be mended. */
static void take_finding(void *opaque, const struct vhd_finding *finding)
{
        struct repair *repair = opaque;

        if (!finding->repairable)
                return;
        if (strcmp(finding->id, "batmap-checksum") == 0 || strcmp(finding->id, "batmap-wrong") == 0)
                repair->batmap_is_wrong = true;
        if (repair->report)
                repair->report(repair->opaque, finding);
}

/* Answered writes that still have to come into the image must not be changed away under them. */
static int check_nothing_waits(struct repair *repair, struct error *err)
{
        enum check_left left;
        int r = check_what_is_left(repair->file, &repair->metadata, &left, err);

        if (r < 0 || left != LEFT_RECORDS || repair->flags & VHD_CHECK_FORCE)
                return r;
        r = fail(err, EBUSY,
                "a server of the image died, and its answered writes wait in its redo file");
        error_set_hint(err,
                "open the image for writing once (vhdctl serve), which takes them in; "
                "--force gives them up");
        return r;
}

/* After the image was found whole: it may be written again. */
static int forget_the_dead(struct repair *repair, struct error *err)
{
        enum check_left left;
        int r = check_what_is_left(repair->file, &repair->metadata, &left, err);

        if (r < 0 || left == LEFT_NOTHING)
                return r;
        if (left != LEFT_POISON && !(repair->flags & VHD_CHECK_FORCE))
                return 0;
        if (!check_may_lift(&repair->metadata, repair->flags))
                return 0;
        if (repair->metadata.footer.type == VHD_TYPE_FIXED)
                return poison_lift(repair->file, err);
        return redo_forget(repair->file, err);
}

static int mend(struct repair *repair, struct error *err)
{
        static const uint8_t no_id[16];
        int r;

        repair->intent = intent_new();
        if (!repair->intent)
                return fail(err, ENOMEM, "no memory for a repair");
        r = intent_add_image(repair->intent, repair->file, no_id, no_id, err);
        if (r < 0)
                return r;
        repair->image = r;
        r = plan_all(repair, err);
        if (r == -ECANCELED)
                return 0;
        if (r < 0 || repair->intent->n_changes == 0 || repair->flags & VHD_CHECK_DRY_RUN)
                return r;
        r = write_backup(repair, err);
        if (r == 0)
                r = intent_run(repair->intent, err);
        return r;
}

/* Which footers and what metadata to start from. *ret_ready: something may be mended. */
static int start(struct repair *repair, bool *ret_ready, struct error *err)
{
        enum footer_plan plan;
        bool use_head;
        int r = vhd_footers_read(repair->file, &repair->head, &repair->tail, err);

        *ret_ready = false;
        if (r < 0)
                return r;
        plan = check_footer_plan(&repair->head, &repair->tail, repair->flags);
        if (plan == FOOTERS_KEEP)
                return 0;
        use_head = plan == FOOTERS_FROM_HEAD || plan == FOOTERS_BELIEVE_HEAD;
        r = vhd_metadata_read(repair->file, VHD_READ_FORCE | (use_head ? VHD_READ_USE_HEAD : 0),
                &repair->metadata, err);
        *ret_ready = r == 0;
        if (r != -EUCLEAN && r != -ENOTSUP)
                return r;
        error_clear(err); /* the check has told it */
        return 0;
}

static int repair_file(struct repair *repair, struct error *err)
{
        struct vhd_check_result found, left;
        bool ready;
        int r;

        r = vhd_check(repair->file, repair->flags, take_finding, repair, &found, err);
        if (r < 0)
                return r;
        r = start(repair, &ready, err);
        if (r < 0 || !ready)
                return r;
        r = check_nothing_waits(repair, err);
        if (r == 0)
                r = mend(repair, err);
        if (r < 0)
                return r;
        repair->result.n_repaired = found.n_repairable;
        if (repair->flags & VHD_CHECK_DRY_RUN)
                return 0;
        r = forget_the_dead(repair, err);
        /* What was written is what a reader sees: with the footers settled, nothing may be left
         * that was promised to go. */
        if (r == 0)
                r = vhd_check(repair->file, repair->flags, NULL, NULL, &left, err);
        if (r == 0 && left.n_repairable)
                repair->result.n_repaired -= MIN_OF(left.n_repairable, found.n_repairable);
        return r;
}

int vhd_repair(struct file *file, unsigned flags, vhd_report report, void *opaque,
        struct vhd_repair_result *ret, struct error *err)
{
        struct repair repair = {.file = file, .flags = flags, .report = report, .opaque = opaque};
        struct file *view = NULL;
        struct file_stat st;
        int r;

        *ret = (struct vhd_repair_result){0};
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        if (!st.is_regular) {
                r = fail(err, EROFS, "'%s' is no regular file: it can only be read", file->path);
                error_set_file(err, file->path);
                return r;
        }
        r = intent_recover(file, !(flags & VHD_CHECK_DRY_RUN), NULL, &view, err);
        if (r == 0) {
                repair.file = view ? view : file;
                r = repair_file(&repair, err);
        }
        intent_free(repair.intent);
        intent_view_dismiss(view);
        if (r < 0)
                error_set_file(err, file->path);
        *ret = repair.result;
        return r;
}
