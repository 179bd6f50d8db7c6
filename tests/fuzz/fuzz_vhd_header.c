/* SPDX-License-Identifier: Apache-2.0 */
/* A dynamic header says anything. What is accepted has numbers that later code computes with
 * unchecked, and is written back as it was. */
#include <assert.h>
#include <string.h>

#include "base/arith.h"
#include "base/utf16.h"
#include "formats/vhd/metadata.h"
#include "tests/fuzz/fuzz.h"

static void check(const struct vhd_raw_header *raw, unsigned flags)
{
        struct vhd_raw_header again;
        struct vhd_header header;
        struct error err = ERROR_INIT;
        uint32_t problems = 0;

        if (vhd_header_decode(raw, flags, &header, &problems, &err) < 0) {
                assert(err.code != 0);
                assert(err.message[0] != '\0');
                return;
        }
        assert(is_power_of_2(header.block_size));
        assert(header.block_size >= VHD_MIN_BLOCK_SIZE);
        assert(header.block_size <= VHD_MAX_BLOCK_SIZE);
        assert(vhd_bitmap_size(header.block_size) % 512 == 0);
        assert(memchr(header.parent_name, 0, sizeof(header.parent_name)) != NULL);
        assert(utf8_is_valid(header.parent_name, strlen(header.parent_name)));
        vhd_header_encode(&header, &again);
        assert(be32_get(again.checksum) == vhd_header_checksum(&again));
        again.checksum = raw->checksum;
        assert(memcmp(&again, raw, sizeof(again)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct vhd_raw_header raw = {0};

        memcpy(&raw, data, MIN_OF(size, sizeof(raw)));
        check(&raw, 0);
        check(&raw, VHD_READ_FORCE);
        return 0;
}
