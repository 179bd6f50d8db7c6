/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/describe/partitions.h"

#include <inttypes.h>
#include <string.h>

/* libblkid gives GUIDs in lower case. */
static const struct {
        const char *type, *name;
} types[] = {
        {"0x01", "FAT12"},
        {"0x04", "FAT16"},
        {"0x05", "Extended"},
        {"0x06", "FAT16"},
        {"0x07", "NTFS or exFAT"},
        {"0x0b", "FAT32"},
        {"0x0c", "FAT32"},
        {"0x0e", "FAT16"},
        {"0x0f", "Extended"},
        {"0x27", "Windows recovery"},
        {"0x42", "Windows dynamic disk"},
        {"0x82", "Linux swap"},
        {"0x83", "Linux"},
        {"0x85", "Extended"},
        {"0x8e", "Linux LVM"},
        {"0xa5", "FreeBSD"},
        {"0xa6", "OpenBSD"},
        {"0xa9", "NetBSD"},
        {"0xaf", "HFS or HFS+"},
        {"0xee", "GPT"},
        {"0xef", "EFI system"},
        {"0xfd", "Linux RAID"},
        {"c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI system"},
        {"21686148-6449-6e6f-744e-656564454649", "BIOS boot"},
        {"e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"},
        {"ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft basic data"},
        {"de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery"},
        {"5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", "Windows dynamic disk, metadata"},
        {"af9b60a0-1431-4f62-bc68-3311714a69ad", "Windows dynamic disk"},
        {"0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux"},
        {"0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"},
        {"4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)"},
        {"bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot"},
        {"e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"},
        {"a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"},
        {"933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"},
        {"ca7d7ccb-63ed-4c53-861c-1742536059cc", "Linux LUKS"},
        {"516e7cb4-6ecf-11d6-8ff8-00022d09712b", "FreeBSD"},
        {"48465300-0000-11aa-aa11-00306543ecac", "HFS+"},
        {"7c3457ef-0000-11aa-aa11-00306543ecac", "APFS"},
};

static json_t *name_of(const char *type)
{
        for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
                if (strcasecmp(types[i].type, type) == 0)
                        return json_text(types[i].name);
        return json_null();
}

static json_t *text_or_null(const char *text)
{
        return text[0] ? json_text(text) : json_null();
}

static json_t *entry_to_json(const struct partition_entry *entry)
{
        json_t *object = must(json_object());

        json_object_set_new(object, "number", json_size(entry->number));
        json_object_set_new(object, "start", json_size(entry->start));
        json_object_set_new(object, "size", json_size(entry->size));
        json_object_set_new(object, "kind",
                json_text(entry->extended        ? "extended"
                                : entry->logical ? "logical"
                                                 : "primary"));
        json_object_set_new(object, "type", json_text(entry->type));
        json_object_set_new(object, "type-name", name_of(entry->type));
        json_object_set_new(object, "name", text_or_null(entry->name));
        json_object_set_new(object, "uuid", text_or_null(entry->uuid));
        /* All 64 bits count, which is more than a number of JSON has for certain. */
        json_object_set_new(object, "flags", json_sprintf("0x%" PRIx64, entry->flags));
        json_object_set_new(object, "filename",
                entry->inside && !entry->extended ? json_sprintf("%u", entry->number)
                                                  : json_null());
        return object;
}

json_t *partitions_to_json(const struct partition_table *table)
{
        json_t *object = must(json_object()), *list = must(json_array());

        for (uint32_t i = 0; i < table->n; i++)
                json_array_append_new(list, entry_to_json(&table->entries[i]));
        json_object_set_new(object, "type", text_or_null(table->type));
        json_object_set_new(object, "id", text_or_null(table->id));
        json_object_set_new(object, "partitions", list);
        return object;
}
