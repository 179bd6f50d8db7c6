/* SPDX-License-Identifier: Apache-2.0 */
/* The dynamic header as far as vhd_metadata_read() could make sense of it, locators, the batmap. */
#include <inttypes.h>
#include <string.h>

#include "base/arith.h"
#include "base/uuid.h"
#include "formats/vhd/check_internal.h"
#include "formats/vhd/hyperv.h"

/* The sum of tapdisk's map: bytes as unsigned since 1.2, as signed before. */
static uint32_t map_checksum(const uint8_t *map, size_t size, uint32_t version)
{
        uint32_t sum = 0;

        for (size_t i = 0; i < size; i++)
                sum += version >= 0x00010002 ? (uint32_t)map[i] : (uint32_t)(int8_t)map[i];
        return ~sum;
}

int check_batmap_sum(struct file *file, const struct vhd_metadata *metadata, struct error *err)
{
        const struct vhd_raw_batmap *batmap = &metadata->batmap;
        size_t size = (size_t)be32_get(batmap->map_sectors) * SECTOR_SIZE;
        _cleanup_free_ uint8_t *map = malloc(size + 1);
        int r;

        if (!map)
                return fail(err, ENOMEM, "no memory for the batmap");
        r = file_read_exact(file, map, size, be64_get(batmap->map_offset));
        if (r < 0)
                return fail_os(err, -r, "cannot read the batmap at offset %" PRIu64,
                        be64_get(batmap->map_offset));
        return be32_get(batmap->checksum) == map_checksum(map, size, be32_get(batmap->version));
}

static int check_batmap(
        struct checker *checker, const struct vhd_metadata *metadata, struct error *err)
{
        int r;

        if (metadata->problems & VHD_PROBLEM_BATMAP)
                check_found(checker, VHD_DAMAGE, "batmap-missing", metadata->header.table_offset, 0,
                        false,
                        "the creator is tapdisk, and behind the BAT there is no batmap that makes "
                        "sense");
        if (metadata->encrypted)
                check_found(checker, VHD_INFO, "encrypted", ERROR_NO_OFFSET, 0, false,
                        "tapdisk encrypts the data: it is read as it is stored");
        if (!metadata->batmap_offset)
                return 0;
        r = check_batmap_sum(checker->file, metadata, err);
        checker->batmap_is_wrong |= r == 0;
        if (r == 0)
                check_found(checker, VHD_WARNING, "batmap-checksum", metadata->batmap_offset, 0,
                        true, "the checksum of tapdisk's batmap is wrong");
        return r < 0 ? r : 0;
}

static void check_one_locator(struct checker *checker, const struct vhd_metadata *metadata,
        unsigned index, unsigned *n_usable)
{
        uint64_t at = metadata->footer.data_offset + offsetof(struct vhd_raw_header, locators) +
                index * sizeof(struct vhd_raw_locator);
        const struct vhd_raw_locator *raw = &metadata->header.raw.locators[index];
        char text[VHD_MAX_LOCATOR_LENGTH];
        struct error why = ERROR_INIT;
        int r;

        if (bytes_are_zero(raw->code, sizeof(raw->code)))
                return;
        if (be32_get(raw->data_length) != metadata->header.locators[index].data_length) {
                check_found(checker, VHD_DAMAGE, "locator-misplaced", at, HYPERV_HEADER_CORRUPT,
                        false,
                        "parent locator %u (%u bytes at offset %" PRIu64
                        ") is too long, outside the file or over other metadata",
                        index, be32_get(raw->data_length), be64_get(raw->data_offset));
                return;
        }
        r = vhd_locator_read(checker->file, &metadata->header, index, text, sizeof(text), &why);
        if (r == 0)
                ++*n_usable;
        else if (r != -ENOENT)
                check_found(checker, VHD_WARNING, "locator-text", at, 0, false, "%s", why.message);
}

static void check_parent(struct checker *checker, const struct vhd_metadata *metadata)
{
        uint64_t at = metadata->footer.data_offset;
        unsigned n_usable = 0;

        for (unsigned i = 0; i < VHD_N_LOCATORS; i++)
                check_one_locator(checker, metadata, i, &n_usable);
        if (!metadata->header.parent_name[0] &&
                !bytes_are_zero(metadata->header.raw.parent_name, 512))
                check_found(checker, VHD_WARNING, "parent-name",
                        at + offsetof(struct vhd_raw_header, parent_name), 0, false,
                        "the parent's name in the dynamic header is no UTF-16");
        if (n_usable == 0)
                check_found(checker, VHD_WARNING, "locators-none", at, HYPERV_PARENT_NOT_FOUND,
                        false, "no parent locator says where the parent lies%s",
                        metadata->header.parent_name[0] ? ": it is looked for by its name" : "");
        if (uuid_is_zero(metadata->header.parent_id))
                check_found(checker, VHD_WARNING, "parent-id-zero",
                        at + offsetof(struct vhd_raw_header, parent_id), 0, false,
                        "the parent's id is all zeros: to tapdisk that means a raw parent");
}

int check_header(struct checker *checker, const struct vhd_metadata *metadata, struct error *err)
{
        const struct vhd_header *header = &metadata->header;
        uint64_t at = metadata->footer.data_offset;
        uint64_t bat = header->table_offset;

        if (metadata->problems & VHD_PROBLEM_HEADER_CHECKSUM)
                check_found(checker, VHD_DAMAGE, "header-checksum", at, HYPERV_HEADER_CHECKSUM,
                        checker->flags & VHD_CHECK_FORCE,
                        "dynamic header checksum is %08x, its bytes give %08x", header->checksum,
                        vhd_header_checksum(&header->raw));
        if (be64_get(header->raw.data_offset) != UINT64_MAX)
                check_found(checker, VHD_INFO, "header-next", at, 0, false,
                        "the dynamic header names another structure behind it, at offset %" PRIu64
                        "; it is ignored",
                        be64_get(header->raw.data_offset));
        if (!bytes_are_zero(header->raw.reserved_2, sizeof(header->raw.reserved_2)) ||
                be32_get(header->raw.reserved_1) != 0)
                check_found(checker, VHD_INFO, "header-reserved", at, 0, false,
                        "reserved bytes of the dynamic header are in use; they are kept");
        if (metadata->problems & VHD_PROBLEM_BAT_SHORT)
                check_found(checker, VHD_DAMAGE, "bat-short", bat, HYPERV_BAT_CORRUPT, false,
                        "the BAT has %u entries, and a disk of %" PRIu64 " bytes needs %u",
                        header->max_table_entries, metadata->footer.current_size,
                        metadata->n_blocks);
        else if (header->max_table_entries > metadata->n_blocks)
                check_found(checker, VHD_INFO, "bat-long", bat, 0, false,
                        "the BAT has %u entries, of which the size needs %u",
                        header->max_table_entries, metadata->n_blocks);
        if (metadata->footer.type == VHD_TYPE_DIFFERENCING)
                check_parent(checker, metadata);
        return check_batmap(checker, metadata, err);
}
