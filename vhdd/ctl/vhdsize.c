/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/vhdsize.h"

#include "base/arith.h"
#include "base/size.h"
#include "formats/vhd/metadata.h"

/* With 512 KiB blocks, each bitmap padded to 4 KiB, the 32-bit sector numbers of a BAT end sooner. */
#define MAX_SIZE_512K (UINT64_C(2032) * GIB)

int vhd_block_size_parse(const char *text, uint32_t *ret, struct error *err)
{
        uint64_t size;
        int r = size_parse(text, &size, err);

        if (r < 0)
                return r;
        if (size != 512 * KIB && size != 2 * MIB)
                return fail(err, EINVAL, "--block-size takes 512K or 2M, not '%s'", text);
        *ret = (uint32_t)size;
        return 0;
}

int vhd_size_round_up(
        uint64_t size, uint64_t unit, uint32_t block_size, uint64_t *ret, struct error *err)
{
        uint64_t max = block_size == 512 * KIB ? MAX_SIZE_512K : VHD_MAX_SIZE;
        char text[SIZE_TEXT_MAX];

        if (size == 0)
                return fail(err, EINVAL, "a disk of 0 bytes cannot be made");
        if (size > max)
                return fail(err, EFBIG,
                        "%llu bytes are too many: a VHD%s is made with at most %llu (%s)",
                        (unsigned long long)size,
                        block_size == 512 * KIB ? " with 512 KiB blocks" : "",
                        (unsigned long long)max, size_to_text(max, text));
        *ret = round_up_to(size, unit); /* max is whole MiB, so this is no more than max */
        return 0;
}
