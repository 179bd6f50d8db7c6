/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/fields.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "base/arith.h"
#include "formats/vhd/raw.h"

enum kind {
        KIND_TEXT,
        KIND_HEX,
        KIND_NUMBER,
        KIND_TIME,
        KIND_VERSION,
        KIND_ID,
        KIND_UTF16,
        KIND_BYTES
};

struct field {
        const char *name;
        size_t offset, size;
        enum kind kind;
};

#define FIELD(type, member, kind)                                                                  \
        {                                                                                          \
#member, offsetof(struct type, member), sizeof(((struct type *)NULL)->member),     \
                        kind                                                                       \
        }

static const struct field footer_fields[] = {
        FIELD(vhd_raw_footer, cookie, KIND_TEXT),
        FIELD(vhd_raw_footer, features, KIND_HEX),
        FIELD(vhd_raw_footer, format_version, KIND_VERSION),
        FIELD(vhd_raw_footer, data_offset, KIND_HEX),
        FIELD(vhd_raw_footer, timestamp, KIND_TIME),
        FIELD(vhd_raw_footer, creator_app, KIND_TEXT),
        FIELD(vhd_raw_footer, creator_version, KIND_VERSION),
        FIELD(vhd_raw_footer, creator_os, KIND_TEXT),
        FIELD(vhd_raw_footer, original_size, KIND_NUMBER),
        FIELD(vhd_raw_footer, current_size, KIND_NUMBER),
        FIELD(vhd_raw_footer, cylinders, KIND_NUMBER),
        FIELD(vhd_raw_footer, heads, KIND_NUMBER),
        FIELD(vhd_raw_footer, sectors_per_track, KIND_NUMBER),
        FIELD(vhd_raw_footer, type, KIND_NUMBER),
        FIELD(vhd_raw_footer, checksum, KIND_HEX),
        FIELD(vhd_raw_footer, unique_id, KIND_ID),
        FIELD(vhd_raw_footer, saved_state, KIND_NUMBER),
        FIELD(vhd_raw_footer, hidden, KIND_NUMBER),
        FIELD(vhd_raw_footer, reserved, KIND_BYTES),
        {0},
};

static const struct field header_fields[] = {
        FIELD(vhd_raw_header, cookie, KIND_TEXT),
        FIELD(vhd_raw_header, data_offset, KIND_HEX),
        FIELD(vhd_raw_header, table_offset, KIND_NUMBER),
        FIELD(vhd_raw_header, header_version, KIND_VERSION),
        FIELD(vhd_raw_header, max_table_entries, KIND_NUMBER),
        FIELD(vhd_raw_header, block_size, KIND_NUMBER),
        FIELD(vhd_raw_header, checksum, KIND_HEX),
        FIELD(vhd_raw_header, parent_id, KIND_ID),
        FIELD(vhd_raw_header, parent_timestamp, KIND_TIME),
        FIELD(vhd_raw_header, reserved_1, KIND_HEX),
        FIELD(vhd_raw_header, parent_name, KIND_UTF16),
        FIELD(vhd_raw_header, reserved_2, KIND_BYTES),
        {0},
};

static const struct field locator_fields[] = {
        FIELD(vhd_raw_locator, code, KIND_TEXT),
        FIELD(vhd_raw_locator, data_space, KIND_NUMBER),
        FIELD(vhd_raw_locator, data_length, KIND_NUMBER),
        FIELD(vhd_raw_locator, reserved, KIND_HEX),
        FIELD(vhd_raw_locator, data_offset, KIND_NUMBER),
        {0},
};

static const struct field batmap_fields[] = {
        FIELD(vhd_raw_batmap, cookie, KIND_TEXT),
        FIELD(vhd_raw_batmap, map_offset, KIND_NUMBER),
        FIELD(vhd_raw_batmap, map_sectors, KIND_NUMBER),
        FIELD(vhd_raw_batmap, version, KIND_VERSION),
        FIELD(vhd_raw_batmap, checksum, KIND_HEX),
        FIELD(vhd_raw_batmap, marker, KIND_HEX),
        FIELD(vhd_raw_batmap, key_flag, KIND_NUMBER),
        FIELD(vhd_raw_batmap, key_nonce, KIND_BYTES),
        FIELD(vhd_raw_batmap, key_sha256, KIND_BYTES),
        FIELD(vhd_raw_batmap, reserved, KIND_BYTES),
        {0},
};

const char *const fields_columns[] = {">offset", ">size", "field", "value", NULL};

struct view {
        struct table *table;
        json_t *list;
};

static uint64_t number_of(const uint8_t *p, size_t size)
{
        uint64_t n = 0;

        for (size_t i = 0; i < size; i++)
                n = n << 8 | p[i];
        return n;
}

/* What a run of bytes that should be zero, or is nobody's business, holds: in short. */
static void describe_bytes(const uint8_t *p, size_t size, char *text, size_t room)
{
        size_t used = 0;

        if (bytes_are_zero(p, size)) {
                snprintf(text, room, "zeros");
                return;
        }
        for (size_t i = 0; i < size && used + 8 < room; i++)
                used += (size_t)snprintf(text + used, room - used, "%02x", p[i]);
        if (used + 8 >= room)
                snprintf(text + used, room - used, "...");
}

static void describe(const struct field *field, const uint8_t *p, char *text, size_t room)
{
        uint64_t n = field->size <= 8 ? number_of(p, field->size) : 0;
        char buf[UUID_TEXT_MAX > TIME_TEXT_MAX ? UUID_TEXT_MAX : TIME_TEXT_MAX];
        size_t used = 0;

        switch (field->kind) {
        case KIND_TEXT:
                for (size_t i = 0; i < field->size; i++)
                        used += (size_t)snprintf(text + used, room - used,
                                p[i] >= 0x20 && p[i] < 0x7f && p[i] != '\\' ? "%c" : "\\x%02x",
                                p[i]);
                break;
        case KIND_HEX: snprintf(text, room, "0x%0*" PRIx64, (int)field->size * 2, n); break;
        case KIND_NUMBER: snprintf(text, room, "%" PRIu64, n); break;
        case KIND_TIME:
                snprintf(text, room, "%" PRIu64 " (%s)", n,
                        time_to_text(vhd_time_to_unix((uint32_t)n), buf));
                break;
        case KIND_VERSION:
                snprintf(text, room, "%u.%u", (unsigned)(n >> 16), (unsigned)(n & 0xffff));
                break;
        case KIND_ID: snprintf(text, room, "%s", uuid_to_text(p, buf)); break;
        /* The name is told in words by info; here stand the bytes, up to the first NUL. */
        case KIND_UTF16:
                while (used + 1 < field->size && (p[used] || p[used + 1]))
                        used += 2;
                describe_bytes(p, used, text, room);
                break;
        case KIND_BYTES: describe_bytes(p, field->size, text, room); break;
        }
}

/* @size: of the structure in the file: an old footer lacks its last byte. */
static void show(const struct view *view, const char *structure, const struct field *fields,
        const void *data, uint64_t offset, size_t size)
{
        char text[160], name[80];

        for (const struct field *field = fields; field->name; field++) {
                struct field there = *field;
                json_t *object;

                there.size = MIN_OF(field->size, size - field->offset);
                text[0] = '\0';
                describe(&there, (const uint8_t *)data + field->offset, text, sizeof(text));
                if (!view->list) {
                        snprintf(name, sizeof(name), "%s.%s", structure, field->name);
                        table_cell(view->table, "%" PRIu64, offset + field->offset);
                        table_cell(view->table, "%zu", there.size);
                        table_cell(view->table, "%s", name);
                        table_cell(view->table, "%s", text);
                        continue;
                }
                object = json_object();
                json_object_set_new(object, "structure", json_text(structure));
                json_object_set_new(object, "field", json_text(field->name));
                json_object_set_new(object, "offset", json_size(offset + field->offset));
                json_object_set_new(object, "size", json_size(there.size));
                json_object_set_new(object, "value", json_text(text));
                json_array_append_new(view->list, object);
        }
}

static void show_locators(
        const struct view *view, const struct vhd_raw_header *header, uint64_t header_offset)
{
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                char name[32];

                if (bytes_are_zero(&header->locators[i], sizeof(header->locators[i])))
                        continue;
                snprintf(name, sizeof(name), "header.locators[%u]", i);
                show(view, name, locator_fields, &header->locators[i],
                        header_offset + offsetof(struct vhd_raw_header, locators) +
                                i * sizeof(header->locators[i]),
                        sizeof(header->locators[i]));
        }
}

static void show_footer(
        const struct view *view, const char *name, const struct vhd_footer_copy *copy)
{
        if (copy->has_cookie)
                show(view, name, footer_fields, &copy->footer.raw, copy->offset, copy->size);
}

int fields_show(struct file *file, const struct vhd_metadata *metadata, struct table *table,
        json_t *list, struct error *err)
{
        struct vhd_footer_copy head, tail;
        struct view view = {table, list};
        int r = vhd_footers_read(file, &head, &tail, err);

        if (r < 0)
                return r;
        /* The head of a fixed disk is its guest's: what looks like a footer there is none of ours. */
        if (!metadata || metadata->footer.type != VHD_TYPE_FIXED)
                show_footer(&view, "head", &head);
        if (metadata && metadata->footer.type != VHD_TYPE_FIXED) {
                show(&view, "header", header_fields, &metadata->header.raw,
                        metadata->footer.data_offset, sizeof(metadata->header.raw));
                show_locators(&view, &metadata->header.raw, metadata->footer.data_offset);
                if (metadata->batmap_offset)
                        show(&view, "batmap", batmap_fields, &metadata->batmap,
                                metadata->batmap_offset, sizeof(metadata->batmap));
        }
        show_footer(&view, "tail", &tail);
        return 0;
}
