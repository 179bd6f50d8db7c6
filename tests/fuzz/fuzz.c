/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include <assert.h>
#include <string.h>

#include "base/arith.h"
#include "formats/vhd/metadata.h"

static void mend_footer(struct file *file, uint64_t offset, uint64_t size)
{
        struct vhd_raw_footer raw = {0};

        if (file_read_exact(file, &raw, size, offset) < 0 ||
                memcmp(raw.cookie, VHD_COOKIE, sizeof(raw.cookie)) != 0)
                return;
        raw.checksum = be32_make(vhd_footer_checksum(&raw));
        file_write(file, &raw, size, offset, 0);
}

static void mend_header(struct file *file, uint64_t footer_offset)
{
        struct vhd_raw_footer footer;
        struct vhd_raw_header raw;
        uint64_t offset, size;

        if (file_size_get(file, &size) < 0 ||
                file_read_exact(file, &footer, sizeof(footer), footer_offset) < 0)
                return;
        offset = be64_get(footer.data_offset);
        if (!range_inside(offset, sizeof(raw), size) ||
                file_read_exact(file, &raw, sizeof(raw), offset) < 0 ||
                memcmp(raw.cookie, VHD_HEADER_COOKIE, sizeof(raw.cookie)) != 0)
                return;
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        file_write(file, &raw, sizeof(raw), offset, 0);
}

static void mend_sums(struct file *file, uint64_t size)
{
        uint32_t tail =
                size % SECTOR_SIZE == VHD_OLD_FOOTER_SIZE ? VHD_OLD_FOOTER_SIZE : VHD_FOOTER_SIZE;

        if (size < 2 * VHD_FOOTER_SIZE)
                return;
        mend_header(file, 0);
        mend_header(file, size - VHD_FOOTER_SIZE);
        mend_footer(file, 0, VHD_FOOTER_SIZE);
        mend_footer(file, size - tail, tail);
}

struct file *fuzz_reopen(struct memfs *memfs)
{
        struct file *file = NULL;

        assert(file_open(memfs_fs(memfs), FUZZ_PATH, FILE_WRITE, &file, NULL) == 0);
        return file;
}

struct file *fuzz_image(struct memfs *memfs, const uint8_t *data, size_t size, unsigned *ret_flags)
{
        size_t head_size, tail_size;
        uint64_t file_size;
        struct file *file;

        if (size < 2 || size > FUZZ_MAX_SIZE)
                return NULL;
        *ret_flags = data[0];
        head_size = size - 2;
        tail_size = MIN_OF(head_size, (size_t)VHD_FOOTER_SIZE);
        file_size = head_size + ((uint64_t)(data[1] & 63) << 16);
        if (data[0] & FUZZ_OLD_FOOTER && file_size > 0)
                file_size--;
        tail_size = MIN_OF(tail_size, file_size);
        memfs_add(memfs, FUZZ_PATH, data + 2, head_size, data + size - tail_size, tail_size,
                file_size);
        file = fuzz_reopen(memfs);
        if (data[0] & FUZZ_MEND_SUMS)
                mend_sums(file, file_size);
        return file;
}
