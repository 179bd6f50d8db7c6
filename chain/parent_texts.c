/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/parent_texts.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/utf16.h"

#define SLOT_SIZE 1024u /* at least, where there is room: the next relink finds it */
#define TEXT_MAX  (2 * 4096u)
#define PAGE      4096u

enum kind { KIND_W2RU, KIND_W2KU, KIND_MACX, N_KINDS };

static const char *const codes[N_KINDS] = {"W2ru", "W2ku", "MacX"};

/* What may not be written over. */
struct occupied {
        struct vhd_range ranges[VHD_MAX_RANGES + 1 + PARENT_TEXTS_MAX];
        size_t n;
        const struct vhd_bat *bat;
        uint64_t block_bytes; /* bitmap and data */
        uint64_t tail_offset;
};

static bool is_ours(const char *code)
{
        static const char *const dropped[] = {"Wi2r", "Wi2k", "Mac "};

        for (unsigned i = 0; i < N_KINDS; i++)
                if (strcmp(code, codes[i]) == 0)
                        return true;
        for (unsigned i = 0; i < 3; i++)
                if (strcmp(code, dropped[i]) == 0)
                        return true;
        return false;
}

static bool is_of_ours(const struct vhd_metadata *metadata, const struct vhd_range *range)
{
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                const struct vhd_locator *locator = &metadata->header.locators[i];

                if (is_ours(locator->code) && locator->data_offset == range->offset &&
                        locator->data_length == range->length)
                        return true;
        }
        return false;
}

static void occupy(struct occupied *occupied, uint64_t offset, uint64_t length)
{
        occupied->ranges[occupied->n++] = (struct vhd_range){offset, length, ""};
}

static void occupied_init(
        struct occupied *occupied, const struct vhd_metadata *metadata, const struct vhd_bat *bat)
{
        struct vhd_range ranges[VHD_MAX_RANGES];
        size_t n = vhd_metadata_ranges(metadata, ranges);

        *occupied = (struct occupied){
                .bat = bat,
                .block_bytes = (uint64_t)metadata->bitmap_size + metadata->header.block_size,
                .tail_offset = metadata->tail_offset,
        };
        for (size_t i = 0; i < n; i++)
                if (!is_of_ours(metadata, &ranges[i]))
                        occupy(occupied, ranges[i].offset, ranges[i].length);
        occupy(occupied, metadata->tail_offset, VHD_FOOTER_SIZE);
}

struct room {
        uint64_t offset, end;
        uint64_t block_bytes;
};

static void cut_room(struct room *room, uint64_t offset, uint64_t length)
{
        if (offset + length > room->offset && offset < room->end)
                room->end = MAX_OF(offset, room->offset);
}

static int cut_room_at_block(void *opaque, uint32_t block, uint32_t place)
{
        struct room *room = opaque;

        (void)block;
        cut_room(room, (uint64_t)place * SECTOR_SIZE, room->block_bytes);
        return 0;
}

/* How many bytes from @offset on are nobody's. */
static uint64_t room_at(const struct occupied *occupied, uint64_t offset)
{
        struct room room = {
                .offset = offset, .end = UINT64_MAX, .block_bytes = occupied->block_bytes};

        if (offset >= occupied->tail_offset)
                return 0;
        for (size_t i = 0; i < occupied->n; i++)
                cut_room(&room, occupied->ranges[i].offset, occupied->ranges[i].length);
        vhd_bat_each(occupied->bat, cut_room_at_block, &room);
        return room.end - offset;
}

/* The first gap of @size bytes, on a sector, behind a structure (a gap begins nowhere else): that
 * keeps to the front of the file, where one looks for metadata. */
static bool find_gap(const struct occupied *occupied, uint64_t size, uint64_t *ret)
{
        bool found = false;

        for (size_t i = 0; i < occupied->n; i++) {
                const struct vhd_range *range = &occupied->ranges[i];
                uint64_t offset = round_up_to(range->offset + range->length, SECTOR_SIZE);

                if ((!found || offset < *ret) && room_at(occupied, offset) >= size) {
                        *ret = offset;
                        found = true;
                }
        }
        return found;
}

/* --- the texts --- */

static void to_backslashes(char *text)
{
        for (; *text; text++)
                if (*text == '/')
                        *text = '\\';
}

/* The bytes of the text of @kind. */
static int make_text(enum kind kind, const struct parent_names *names, struct parent_text *ret,
        struct error *err)
{
        char text[TEXT_MAX];
        bool dotted = strncmp(names->relative, "./", 2) == 0;
        ssize_t length;

        /* Microsoft's readers want a relative path to begin with ".\". */
        if (kind == KIND_W2KU)
                snprintf(text, sizeof(text), "%s", names->absolute);
        else
                snprintf(text, sizeof(text), "%s%s%s", kind == KIND_MACX ? "file://" : "",
                        dotted ? "" : "./", names->relative);
        ret->bytes = calloc(1, VHD_MAX_LOCATOR_LENGTH);
        if (!ret->bytes)
                return fail(err, ENOMEM, "no memory for the parent's path");
        if (kind == KIND_MACX) {
                length = (ssize_t)strlen(text);
                memcpy(ret->bytes, text, (size_t)length);
        } else {
                to_backslashes(text);
                length = utf16_from_utf8(
                        text, strlen(text), UTF16_LITTLE, ret->bytes, VHD_MAX_LOCATOR_LENGTH);
        }
        if (length < 0)
                return fail(err, EINVAL, "the parent's path '%s' cannot be written as UTF-16",
                        names->absolute);
        ret->length = (uint32_t)length;
        return 0;
}

/* The slot that the text had, if it still fits there. What was behind a shorter text is wiped. */
static bool take_old_slot(struct occupied *occupied, const struct vhd_locator *old,
        struct vhd_raw_locator *raw, struct parent_text *text)
{
        uint64_t room;

        /* An entry that was free may hold anything but a code. */
        if (memcmp(old->code, raw->code, sizeof(raw->code)) != 0 || old->data_length == 0)
                return false;
        room = occupied->bat ? room_at(occupied, old->data_offset)
                             : MAX_OF(old->data_space, old->data_length);
        room = MIN_OF(room, VHD_MAX_LOCATOR_LENGTH);
        if (text->length > room)
                return false;
        text->offset = old->data_offset;
        text->size = MAX_OF(old->data_length, text->length);
        text->size = (uint32_t)MIN_OF(text->size, room);
        if (old->data_space < text->length) {
                uint64_t space = round_up_to(text->length, SECTOR_SIZE);

                if (space > room)
                        return false;
                raw->data_space = be32_make((uint32_t)space);
        }
        return true;
}

static void take_new_slot(struct occupied *occupied, struct parent_texts *plan,
        struct vhd_raw_locator *raw, struct parent_text *text)
{
        uint64_t least = round_up_to(text->length, SECTOR_SIZE);
        uint64_t space = MAX_OF(least, SLOT_SIZE);

        if (!find_gap(occupied, space, &text->offset)) {
                space = least;
                if (!find_gap(occupied, space, &text->offset)) {
                        space = MAX_OF(least, SLOT_SIZE);
                        text->offset = plan->tail_offset;
                        plan->tail_offset += space;
                }
        }
        text->size = (uint32_t)space;
        raw->data_space = be32_make((uint32_t)space);
}

static int place_text(struct occupied *occupied, struct parent_texts *plan, enum kind kind,
        const struct vhd_locator *old, struct vhd_raw_locator *raw, struct parent_text *text,
        struct error *err)
{
        memcpy(raw->code, codes[kind], sizeof(raw->code));
        raw->data_length = be32_make(text->length);
        if (!take_old_slot(occupied, old, raw, text)) {
                if (!occupied->bat && kind == KIND_W2RU)
                        return fail(err, ENOSPC, "the parent's path is longer than the room that its "
                                "child has for it");
                if (!occupied->bat) { /* one that says where it is will do */
                        memset(raw, 0, sizeof(*raw));
                        free(text->bytes);
                        plan->n_texts--;
                        return 0;
                }
                take_new_slot(occupied, plan, raw, text);
        }
        raw->data_offset = be64_make(text->offset);
        occupy(occupied, text->offset, text->size);
        return 0;
}

/* Which entry of the header each kind takes: the first that has its code, else a free one. The other
 * entries of ours are emptied. */
static int choose_entries(const struct vhd_metadata *metadata, struct vhd_raw_header *header,
        int entries[N_KINDS], struct error *err)
{
        static const struct vhd_raw_locator empty;

        for (unsigned kind = 0; kind < N_KINDS; kind++)
                entries[kind] = -1;
        for (int i = 0; i < (int)VHD_N_LOCATORS; i++) {
                const char *code = metadata->header.locators[i].code;
                unsigned kind = 0;

                while (kind < N_KINDS && strcmp(code, codes[kind]) != 0)
                        kind++;
                if (kind < N_KINDS && entries[kind] < 0)
                        entries[kind] = i;
                else if (is_ours(code))
                        header->locators[i] = empty;
        }
        for (unsigned kind = KIND_W2RU; kind <= KIND_W2KU; kind++)
                for (int i = 0; i < (int)VHD_N_LOCATORS && entries[kind] < 0; i++)
                        if (bytes_are_zero(header->locators[i].code, 4) && entries[0] != i)
                                entries[kind] = i;
        if (entries[KIND_W2RU] < 0)
                return fail(err, ENOSPC,
                        "all %u parent locators are taken by codes that nobody here knows",
                        VHD_N_LOCATORS);
        return 0;
}

static int fill_header(
        const struct parent_names *names, struct vhd_raw_header *header, struct error *err)
{
        ssize_t length;

        memcpy(header->parent_id, names->id, 16);
        header->parent_timestamp = be32_make(names->timestamp);
        memset(header->parent_name, 0, sizeof(header->parent_name));
        length = utf16_from_utf8(names->name, strlen(names->name), UTF16_BIG, header->parent_name,
                sizeof(header->parent_name));
        if (length < 0)
                return fail(err, EINVAL, "the parent's name '%s' cannot be written as UTF-16",
                        names->name);
        return 0;
}

/* Windows lays files out so that the next block's data begins on a page: the footer stands where its
 * bitmap will. */
static uint64_t padded_tail(uint64_t tail_offset)
{
        return round_up_to(tail_offset + VHD_FOOTER_SIZE, PAGE) - VHD_FOOTER_SIZE;
}

int parent_texts_plan(const struct vhd_metadata *metadata, const struct vhd_bat *bat,
        const struct parent_names *names, struct parent_texts *ret, struct error *err)
{
        struct parent_texts plan = {
                .header = metadata->header.raw, .tail_offset = metadata->tail_offset};
        struct occupied occupied;
        int entries[N_KINDS];
        int r;

        occupied_init(&occupied, metadata, bat);
        r = fill_header(names, &plan.header, err);
        if (r == 0)
                r = choose_entries(metadata, &plan.header, entries, err);
        for (unsigned kind = 0; r == 0 && kind < N_KINDS; kind++) {
                struct parent_text *text = &plan.texts[plan.n_texts];

                if (entries[kind] < 0)
                        continue;
                plan.n_texts++;
                r = make_text((enum kind)kind, names, text, err);
                if (r == 0)
                        r = place_text(&occupied, &plan, (enum kind)kind,
                                &metadata->header.locators[entries[kind]],
                                &plan.header.locators[entries[kind]], text, err);
        }
        if (r < 0) {
                parent_texts_done(&plan);
                return r;
        }
        if (plan.tail_offset != metadata->tail_offset)
                plan.tail_offset = padded_tail(plan.tail_offset);
        plan.header.checksum = be32_make(vhd_header_checksum(&plan.header));
        *ret = plan;
        return 0;
}

void parent_texts_done(struct parent_texts *texts)
{
        for (unsigned i = 0; i < texts->n_texts; i++)
                free(texts->texts[i].bytes);
}
