/* SPDX-License-Identifier: Apache-2.0 */
/* A footer says anything. Decoding it ends, and what it accepts is written back as it was: a field
 * that changes on the way would change somebody's disk. */
#include <assert.h>
#include <string.h>

#include "base/arith.h"
#include "formats/vhd/metadata.h"
#include "tests/fuzz/fuzz.h"

static void check(const struct vhd_raw_footer *raw, unsigned flags)
{
        struct vhd_raw_footer again;
        struct vhd_footer footer;
        struct error err = ERROR_INIT;
        uint32_t problems = 0;

        if (vhd_footer_decode(raw, flags, &footer, &problems, &err) < 0) {
                assert(err.code != 0);
                assert(err.message[0] != '\0');
                return;
        }
        assert(footer.type == VHD_TYPE_FIXED || footer.type == VHD_TYPE_DYNAMIC ||
                footer.type == VHD_TYPE_DIFFERENCING);
        assert(footer.current_size % 512 == 0);
        assert(vhd_type_to_string(footer.type) != NULL);
        vhd_time_to_unix(footer.timestamp);
        vhd_footer_encode(&footer, &again);
        assert(be32_get(again.checksum) == vhd_footer_checksum(&again));
        again.checksum = raw->checksum;
        assert(memcmp(&again, raw, sizeof(again)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct vhd_raw_footer raw = {0};

        memcpy(&raw, data, MIN_OF(size, sizeof(raw)));
        check(&raw, 0);
        check(&raw, VHD_READ_FORCE);
        return 0;
}
