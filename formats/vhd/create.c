/* SPDX-License-Identifier: Apache-2.0 */
/* A new, empty VHD: every structure once, in the places where Windows 10 puts them. */
#include "formats/vhd/create.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/utf16.h"
#include "base/uuid.h"
#include "formats/vhd/hyperv.h"

#define DEFAULT_BLOCK_SIZE (UINT32_C(2) << 20)
#define PAGE               UINT64_C(4096) /* data starts on one (rule E6) */
#define HEADER_OFFSET      UINT64_C(512)
#define TABLE_OFFSET       UINT64_C(1536)
#define MIN_SLOT           UINT64_C(1024) /* room for another path, so that a relink fits */
#define N_SLOTS            2u
#define NO_OFFSET          UINT64_MAX
#define CHUNK              (64 * KIB)

/* What older QEMU, too, sizes by current_size and not by its geometry; and of which nobody expects
 * structures that the specification does not have. */
#define CREATOR_APP     "win "
#define CREATOR_VERSION UINT32_C(0x000A0000)
#define CREATOR_OS      "Wi2k"

/* ---- sizes ---- */

static uint64_t table_size_of(uint64_t n_blocks)
{
        return round_up_to(n_blocks * sizeof(be32), SECTOR_SIZE);
}

uint64_t vhd_max_size(uint32_t block_size)
{
        uint64_t stride, places, n_blocks;

        if (block_size == 0)
                return VHD_MAX_SIZE;
        /* A full disk: after table and locators each block takes its bitmap and data, rounded up
         * to pages, and the footer's sector must still have a number below "unused". */
        stride = round_up_to((uint64_t)block_size + vhd_bitmap_size(block_size), PAGE);
        places = ((uint64_t)VHD_BAT_UNUSED - 1) * SECTOR_SIZE - TABLE_OFFSET -
                table_size_of(VHD_MAX_BLOCKS) - 1 * MIB;
        n_blocks = MIN_OF(places / stride, (uint64_t)VHD_MAX_BLOCKS);
        return MIN_OF(round_down_to(n_blocks * block_size, GIB), VHD_MAX_SIZE);
}

static int check_params(
        const struct vhd_create_params *params, uint32_t block_size, struct error *err)
{
        uint64_t most;
        int r;

        if (params->type != VHD_TYPE_FIXED && params->type != VHD_TYPE_DYNAMIC &&
                params->type != VHD_TYPE_DIFFERENCING)
                return fail(err, EINVAL, "a VHD of type %u cannot be made", (unsigned)params->type);
        if (params->type != VHD_TYPE_FIXED &&
                (!is_power_of_2(block_size) || block_size < VHD_MIN_BLOCK_SIZE ||
                        block_size > VHD_MAX_BLOCK_SIZE))
                return fail(err, EINVAL,
                        "a block size of %u bytes cannot be made: it is no power of two from %u "
                        "to %u",
                        block_size, VHD_MIN_BLOCK_SIZE, VHD_MAX_BLOCK_SIZE);
        if (params->size == 0 || params->size % SECTOR_SIZE != 0)
                return fail(err, EINVAL,
                        "a disk of %" PRIu64
                        " bytes cannot be made: its size is no number of whole sectors",
                        params->size);
        most = vhd_max_size(params->type == VHD_TYPE_FIXED ? 0 : block_size);
        if (params->size > most) {
                r = fail(err, EINVAL,
                        "a disk of %" PRIu64 " bytes cannot be made: %" PRIu64 " (%" PRIu64
                        " GiB) is the most%s",
                        params->size, most, most / GIB,
                        most < VHD_MAX_SIZE ? " with this block size" : "");
                error_set_hyperv(err, HYPERV_INVALID_SIZE);
                return r;
        }
        return 0;
}

/* ---- the structures ---- */

static void fill_footer(
        const struct vhd_create_params *params, int64_t now, struct vhd_raw_footer *ret)
{
        struct vhd_geometry chs = vhd_geometry_of(params->size);
        struct vhd_raw_footer raw = {0};

        memcpy(raw.cookie, VHD_COOKIE, sizeof(raw.cookie));
        raw.features = be32_make(2); /* "reserved", which must be set */
        raw.format_version = be32_make(0x00010000);
        raw.data_offset = be64_make(params->type == VHD_TYPE_FIXED ? NO_OFFSET : HEADER_OFFSET);
        raw.timestamp = be32_make(vhd_time_from_unix(now));
        memcpy(raw.creator_app, CREATOR_APP, sizeof(raw.creator_app));
        raw.creator_version = be32_make(CREATOR_VERSION);
        memcpy(raw.creator_os, CREATOR_OS, sizeof(raw.creator_os));
        raw.original_size = be64_make(params->size);
        raw.current_size = be64_make(params->size);
        raw.cylinders = be16_make((uint16_t)chs.cylinders);
        raw.heads = (uint8_t)chs.heads;
        raw.sectors_per_track = (uint8_t)chs.sectors_per_track;
        raw.type = be32_make((uint32_t)params->type);
        if (uuid_is_zero(params->unique_id))
                uuid_random(raw.unique_id);
        else
                memcpy(raw.unique_id, params->unique_id, sizeof(raw.unique_id));
        raw.checksum = be32_make(vhd_footer_checksum(&raw));
        *ret = raw;
}

static void fill_header(uint32_t n_blocks, uint32_t block_size, struct vhd_raw_header *ret)
{
        struct vhd_raw_header raw = {0};

        memcpy(raw.cookie, VHD_HEADER_COOKIE, sizeof(raw.cookie));
        raw.data_offset = be64_make(NO_OFFSET);
        raw.table_offset = be64_make(TABLE_OFFSET);
        raw.header_version = be32_make(0x00010000);
        raw.max_table_entries = be32_make(n_blocks);
        raw.block_size = be32_make(block_size);
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        *ret = raw;
}

/* ---- the parent ---- */

static void slashes_to_windows(char *text)
{
        for (; *text; text++)
                if (*text == '/')
                        *text = '\\';
}

/* The texts as Windows wants them: backslashes, and a relative one that begins with ".\". */
static int windows_paths(const struct vhd_create_params *params, char **ret_relative,
        char **ret_absolute, struct error *err)
{
        _cleanup_free_ char *relative = NULL, *absolute = NULL;

        if (params->parent_relative && params->parent_relative[0]) {
                size_t size = strlen(params->parent_relative) + sizeof(".\\");
                const char *p = params->parent_relative;
                bool has_dot = p[0] == '.' && (p[1] == '/' || p[1] == '\\');

                relative = malloc(size);
                if (!relative)
                        return fail(err, ENOMEM, "no memory for the parent's path");
                snprintf(relative, size, "%s%s", has_dot ? "" : ".\\", p);
                slashes_to_windows(relative);
        }
        if (params->parent_absolute && params->parent_absolute[0]) {
                absolute = strdup(params->parent_absolute);
                if (!absolute)
                        return fail(err, ENOMEM, "no memory for the parent's path");
                slashes_to_windows(absolute);
        }
        *ret_relative = TAKE_PTR(relative);
        *ret_absolute = TAKE_PTR(absolute);
        return 0;
}

/* One locator, and its text at @blob; *used moves on by the slot. */
static int fill_slot(struct vhd_raw_locator *locator, const char *code, const char *text,
        uint64_t locators_offset, uint8_t *blob, size_t blob_size, size_t *used, struct error *err)
{
        size_t room = blob_size - *used;
        uint64_t space;
        ssize_t length;

        length = utf16_from_utf8(text, strlen(text), UTF16_LITTLE, blob + *used, room);
        if (length == -ENOSPC)
                return fail(err, EINVAL, "the parent's path is too long for a locator: '%s'", text);
        if (length < 0)
                return fail(err, EINVAL, "the parent's path is not UTF-8: '%s'", text);
        space = MAX_OF(round_up_to((uint64_t)length, SECTOR_SIZE), MIN_SLOT);
        if (space > room)
                return fail(err, EINVAL, "the parent's path is too long for a locator: '%s'", text);
        memset(blob + *used + length, 0, space - (size_t)length);

        *locator = (struct vhd_raw_locator){
                .data_space = be32_make((uint32_t)space),
                .data_length = be32_make((uint32_t)length),
                .data_offset = be64_make(locators_offset + *used),
        };
        memcpy(locator->code, code, sizeof(locator->code));
        *used += space;
        return 0;
}

int vhd_encode_parent(struct vhd_raw_header *header, const struct vhd_create_params *params,
        uint64_t locators_offset, uint8_t *blob, size_t blob_size, size_t *ret_used,
        struct error *err)
{
        _cleanup_free_ char *relative = NULL, *absolute = NULL;
        struct vhd_raw_header raw = *header;
        const char *name = params->parent_name ? params->parent_name : "";
        unsigned slot = 0;
        size_t used = 0;
        ssize_t length;
        int r;

        memset(raw.parent_name, 0, sizeof(raw.parent_name));
        length = utf16_from_utf8(
                name, strlen(name), UTF16_BIG, raw.parent_name, sizeof(raw.parent_name));
        if (length < 0)
                return fail(err, EINVAL, "the parent's name '%s' is %s", name,
                        length == -ENOSPC ? "longer than 256 UTF-16 units" : "not UTF-8");
        memcpy(raw.parent_id, params->parent_id, sizeof(raw.parent_id));
        raw.parent_timestamp = be32_make(params->parent_timestamp);

        r = windows_paths(params, &relative, &absolute, err);
        if (r < 0)
                return r;
        memset(raw.locators, 0, sizeof(raw.locators));
        if (relative) {
                r = fill_slot(&raw.locators[slot++], "W2ru", relative, locators_offset, blob,
                        blob_size, &used, err);
                if (r < 0)
                        return r;
        }
        if (absolute) {
                r = fill_slot(&raw.locators[slot++], "W2ku", absolute, locators_offset, blob,
                        blob_size, &used, err);
                if (r < 0)
                        return r;
        }
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        *header = raw;
        *ret_used = used;
        return 0;
}

/* ---- writing ---- */

/* Takes all the space. A file system that cannot reserve gets the zeros themselves: a fixed disk
 * that runs out of space under its guest is what the caller did not ask for. */
static int take_space(struct file *file, uint64_t size, struct error *err)
{
        _cleanup_free_ void *zeros = NULL;
        int r;

        r = file_reserve(file, 0, size);
        if (r == 0)
                return 0;
        if (r != -EOPNOTSUPP)
                return fail_os(err, -r, "cannot take %" PRIu64 " bytes of space", size);
        zeros = calloc(1, MIB);
        if (!zeros)
                return fail(err, ENOMEM, "no memory for a buffer");
        for (uint64_t done = 0; done < size; done += MIB) {
                r = file_write(file, zeros, MIN_OF(MIB, size - done), done, 0);
                if (r < 0)
                        return fail_os(err, -r, "cannot write at offset %" PRIu64, done);
        }
        return 0;
}

static int write_at(struct file *file, const void *data, size_t size, uint64_t offset,
        const char *what, struct error *err)
{
        int r = file_write(file, data, size, offset, 0);

        if (r < 0)
                return fail_os(err, -r, "cannot write the %s at offset %" PRIu64, what, offset);
        return 0;
}

static int create_fixed(struct file *file, const struct vhd_create_params *params,
        const struct vhd_raw_footer *footer, struct error *err)
{
        if (!params->sparse) {
                int r = take_space(file, params->size, err);

                if (r < 0)
                        return r;
        }
        return write_at(file, footer, sizeof(*footer), params->size, "footer", err);
}

/* An empty table: every entry unused, and so is the padding. */
static int write_table(struct file *file, uint64_t size, struct error *err)
{
        _cleanup_free_ uint8_t *chunk = malloc(CHUNK);
        int r = 0;

        if (!chunk)
                return fail(err, ENOMEM, "no memory for a buffer");
        memset(chunk, 0xff, CHUNK);
        for (uint64_t done = 0; done < size && r == 0; done += CHUNK)
                r = write_at(
                        file, chunk, MIN_OF(CHUNK, size - done), TABLE_OFFSET + done, "BAT", err);
        return r;
}

static int create_sparse(struct file *file, const struct vhd_create_params *params,
        uint32_t block_size, const struct vhd_raw_footer *footer, struct error *err)
{
        uint64_t n_blocks = div_round_up(params->size, block_size);
        uint64_t end = TABLE_OFFSET + table_size_of(n_blocks);
        size_t blob_size = N_SLOTS * (size_t)VHD_MAX_LOCATOR_LENGTH;
        _cleanup_free_ uint8_t *blob = NULL;
        struct vhd_raw_header header;
        size_t used = 0;
        int r;

        fill_header((uint32_t)n_blocks, block_size, &header);
        if (params->type == VHD_TYPE_DIFFERENCING) {
                blob = calloc(1, blob_size);
                if (!blob)
                        return fail(err, ENOMEM, "no memory for the parent locators");
                r = vhd_encode_parent(&header, params, end, blob, blob_size, &used, err);
                if (r < 0)
                        return r;
        }
        r = write_at(file, footer, sizeof(*footer), 0, "footer's copy", err);
        if (r == 0)
                r = write_at(file, &header, sizeof(header), HEADER_OFFSET, "dynamic header", err);
        if (r == 0)
                r = write_table(file, end - TABLE_OFFSET, err);
        if (r == 0 && used > 0)
                r = write_at(file, blob, used, end, "parent locators", err);
        if (r < 0)
                return r;
        /* The footer is where the first block's bitmap will be, in the last sector of a page: so
         * Windows lays out what it calls aligned. */
        end = round_up_to(end + used + sizeof(*footer), PAGE) - sizeof(*footer);
        return write_at(file, footer, sizeof(*footer), end, "footer", err);
}

int vhd_create(struct file *file, const struct vhd_create_params *params, struct error *err)
{
        uint32_t block_size = params->block_size ? params->block_size : DEFAULT_BLOCK_SIZE;
        struct vhd_raw_footer footer;
        int r;

        r = check_params(params, block_size, err);
        if (r == 0) {
                fill_footer(params, params->now ? params->now : fs_now(file->fs), &footer);
                if (params->type == VHD_TYPE_FIXED)
                        r = create_fixed(file, params, &footer, err);
                else
                        r = create_sparse(file, params, block_size, &footer, err);
        }
        if (r == 0) {
                r = file_sync(file);
                if (r < 0)
                        fail_os(err, -r, "cannot sync");
        }
        if (r < 0)
                error_set_file(err, file->path);
        return r;
}
