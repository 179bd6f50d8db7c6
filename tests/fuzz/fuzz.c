/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "base/arith.h"
#include "formats/vhd/metadata.h"

static void mend_footer(uint8_t *at, size_t size)
{
        struct vhd_raw_footer raw = {0};

        memcpy(&raw, at, size);
        if (memcmp(raw.cookie, VHD_COOKIE, sizeof(raw.cookie)) != 0)
                return;
        raw.checksum = be32_make(vhd_footer_checksum(&raw));
        memcpy(at, &raw, size);
}

static void mend_header(uint8_t *at)
{
        struct vhd_raw_header raw;

        memcpy(&raw, at, sizeof(raw));
        if (memcmp(raw.cookie, VHD_HEADER_COOKIE, sizeof(raw.cookie)) != 0)
                return;
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        memcpy(at, &raw, sizeof(raw));
}

static void mend_header_of(const uint8_t *footer, uint8_t *data, size_t size)
{
        struct vhd_raw_footer raw;
        uint64_t offset;

        memcpy(&raw, footer, sizeof(raw));
        offset = be64_get(raw.data_offset);
        if (offset <= size && size - offset >= VHD_HEADER_SIZE)
                mend_header(data + offset);
}

void fuzz_mend_checksums(uint8_t *data, size_t size)
{
        if (size < VHD_FOOTER_SIZE)
                return;
        mend_footer(data, VHD_FOOTER_SIZE);
        mend_footer(data + size - VHD_FOOTER_SIZE, VHD_FOOTER_SIZE);
        mend_footer(data + size - VHD_OLD_FOOTER_SIZE, VHD_OLD_FOOTER_SIZE);
        mend_header(data + size - MIN_OF(size, VHD_HEADER_SIZE));
        mend_header_of(data, data, size);
        mend_header_of(data + size - VHD_FOOTER_SIZE, data, size);
}

uint8_t fuzz_u8(struct fuzz_bytes *bytes)
{
        if (bytes->size == 0)
                return 0;
        bytes->size--;
        return *bytes->data++;
}

uint32_t fuzz_u32(struct fuzz_bytes *bytes)
{
        uint32_t n = 0;

        for (int i = 0; i < 4; i++)
                n = n << 8 | fuzz_u8(bytes);
        return n;
}

#ifdef VHDD_FUZZ_ENGINE
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
        size = LLVMFuzzerMutate(data, size, max_size);
        if (seed % 16 != 0)
                fuzz_mend_checksums(data, size);
        return size;
}
#endif
