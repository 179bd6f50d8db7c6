/* SPDX-License-Identifier: Apache-2.0 */
/* The dynamic header: where the BAT is, how large blocks are, who the parent is. */
#include <string.h>

#include "base/arith.h"
#include "base/utf16.h"
#include "formats/vhd/hyperv.h"
#include "formats/vhd/metadata.h"

#define HEADER_VERSION_MAJOR 1u

uint32_t vhd_bitmap_size(uint32_t block_size)
{
        uint64_t bits = block_size / SECTOR_SIZE;

        return (uint32_t)round_up_to(div_round_up(bits, 8), SECTOR_SIZE);
}

static int check_checksum(
        const struct vhd_raw_header *raw, unsigned flags, uint32_t *problems, struct error *err)
{
        uint32_t stored = be32_get(raw->checksum);
        uint32_t computed = vhd_header_checksum(raw);
        int r;

        if (stored == computed)
                return 0;
        if (flags & VHD_READ_FORCE) {
                *problems |= VHD_PROBLEM_HEADER_CHECKSUM;
                return 0;
        }
        r = fail(err, EUCLEAN, "dynamic header checksum is %08x, its bytes give %08x", stored,
                computed);
        error_set_hyperv(err, HYPERV_HEADER_CHECKSUM);
        return r;
}

static int check_fields(const struct vhd_header *header, uint32_t version, struct error *err)
{
        int r;

        if (version >> 16 != HEADER_VERSION_MAJOR) {
                r = fail(err, ENOTSUP, "dynamic header has version %u.%u, only 1.x is known",
                        version >> 16, version & 0xffff);
                error_set_hyperv(err, HYPERV_HEADER_VERSION);
                return r;
        }
        if (!is_power_of_2(header->block_size) || header->block_size < VHD_MIN_BLOCK_SIZE ||
                header->block_size > VHD_MAX_BLOCK_SIZE) {
                r = fail(err, EUCLEAN,
                        "dynamic header has a block size of %u bytes, which is no power of two "
                        "from %u to %u",
                        header->block_size, VHD_MIN_BLOCK_SIZE, VHD_MAX_BLOCK_SIZE);
                error_set_hyperv(err, HYPERV_BLOCK_SIZE);
                return r;
        }
        if (header->max_table_entries > VHD_MAX_BLOCKS) {
                r = fail(err, EUCLEAN, "dynamic header asks for %u blocks, at most %u are accepted",
                        header->max_table_entries, VHD_MAX_BLOCKS);
                error_set_hyperv(err, HYPERV_HEADER_CORRUPT);
                return r;
        }
        if (header->table_offset % SECTOR_SIZE != 0) {
                r = fail(err, EUCLEAN,
                        "dynamic header puts the BAT at offset %llu, which is no sector's start",
                        (unsigned long long)header->table_offset);
                error_set_hyperv(err, HYPERV_HEADER_CORRUPT);
                return r;
        }
        return 0;
}

/* Spec: "Parent Locator Entry". The spec counts the space in sectors, nearly everybody writes
 * bytes; a value below 512 can only be sectors. */
static void locator_decode(const struct vhd_raw_locator *raw, struct vhd_locator *ret)
{
        uint32_t space = be32_get(raw->data_space);

        *ret = (struct vhd_locator){0};
        memcpy(ret->code, raw->code, sizeof(raw->code));
        ret->data_offset = be64_get(raw->data_offset);
        ret->data_space = space < SECTOR_SIZE ? space * (uint32_t)SECTOR_SIZE : space;
        ret->data_length = be32_get(raw->data_length);
}

static void locator_encode(const struct vhd_locator *locator, struct vhd_raw_locator *ret)
{
        struct vhd_raw_locator raw = *ret;
        struct vhd_locator before;

        locator_decode(&raw, &before);
        memcpy(raw.code, locator->code, sizeof(raw.code));
        raw.data_offset = be64_make(locator->data_offset);
        raw.data_length = be32_make(locator->data_length);
        /* A slot that counts in sectors goes on doing so unless it changes. */
        if (locator->data_space != before.data_space)
                raw.data_space = be32_make(locator->data_space);
        *ret = raw;
}

/* UTF-16BE up to the first NUL; a name that fills the field has none. What is no text is no name:
 * the locators may still find the parent, so this is not an error. */
static void parent_name_decode(const uint8_t name[512], char ret[VHD_NAME_MAX])
{
        size_t size = 0;

        while (size < 512 && (name[size] != 0 || name[size + 1] != 0))
                size += 2;
        if (utf16_to_utf8(name, size, UTF16_BIG, ret, VHD_NAME_MAX) < 0)
                ret[0] = '\0';
}

int vhd_header_decode(const struct vhd_raw_header *raw, unsigned flags, struct vhd_header *ret,
        uint32_t *problems, struct error *err)
{
        struct vhd_header header = {.raw = *raw};
        uint32_t found = 0;
        int r;

        if (memcmp(raw->cookie, VHD_HEADER_COOKIE, sizeof(raw->cookie)) != 0) {
                r = fail(err, EUCLEAN, "there is no dynamic header where the footer says it is");
                error_set_hyperv(err, HYPERV_HEADER_CORRUPT);
                return r;
        }
        r = check_checksum(raw, flags, &found, err);
        if (r < 0)
                return r;

        header.table_offset = be64_get(raw->table_offset);
        header.max_table_entries = be32_get(raw->max_table_entries);
        header.block_size = be32_get(raw->block_size);
        header.checksum = be32_get(raw->checksum);
        memcpy(header.parent_id, raw->parent_id, sizeof(raw->parent_id));
        header.parent_timestamp = be32_get(raw->parent_timestamp);
        parent_name_decode(raw->parent_name, header.parent_name);
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++)
                locator_decode(&raw->locators[i], &header.locators[i]);
        r = check_fields(&header, be32_get(raw->header_version), err);
        if (r < 0)
                return r;

        *problems |= found;
        *ret = header;
        return 0;
}

/* The name goes back only if it changed: one that is not UTF-16, or bytes behind its end, stay. */
static void parent_name_encode(const char *name, uint8_t ret[512])
{
        char before[VHD_NAME_MAX];
        uint8_t units[512] = {0};

        parent_name_decode(ret, before);
        if (strcmp(before, name) == 0)
                return;
        if (utf16_from_utf8(name, strlen(name), UTF16_BIG, units, sizeof(units)) < 0)
                memset(units, 0, sizeof(units));
        memcpy(ret, units, sizeof(units));
}

void vhd_header_encode(const struct vhd_header *header, struct vhd_raw_header *ret)
{
        struct vhd_raw_header raw = header->raw;

        memcpy(raw.cookie, VHD_HEADER_COOKIE, sizeof(raw.cookie));
        raw.table_offset = be64_make(header->table_offset);
        raw.max_table_entries = be32_make(header->max_table_entries);
        raw.block_size = be32_make(header->block_size);
        memcpy(raw.parent_id, header->parent_id, sizeof(raw.parent_id));
        raw.parent_timestamp = be32_make(header->parent_timestamp);
        parent_name_encode(header->parent_name, raw.parent_name);
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++)
                locator_encode(&header->locators[i], &raw.locators[i]);
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        *ret = raw;
}
