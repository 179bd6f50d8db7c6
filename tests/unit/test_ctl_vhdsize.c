/* SPDX-License-Identifier: Apache-2.0 */
/* A disk that is 512 bytes too large for its format cannot be written to its end; one that is a byte
 * smaller than asked cuts a guest's last sector off. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "base/arith.h"
#include "vhdd/ctl/vhdsize.h"

static uint64_t rounded(uint64_t size, uint64_t unit, uint32_t block_size)
{
        struct error err = ERROR_INIT;
        uint64_t ret = 0;

        cr_assert(eq(int, vhd_size_round_up(size, unit, block_size, &ret, &err), 0));
        return ret;
}

Test(vhd_size_round_up, goes_up_and_never_down)
{
        cr_expect(eq(u64, rounded(1, MIB, 0), MIB));
        cr_expect(eq(u64, rounded(MIB, MIB, 0), MIB));
        cr_expect(eq(u64, rounded(MIB + 1, MIB, 0), 2 * MIB));
        cr_expect(eq(u64, rounded(1000001, 512, 0), 1000448));
        cr_expect(eq(u64, rounded(2040 * GIB, MIB, 0), 2040 * GIB));
        cr_expect(eq(u64, rounded(2032 * GIB - 1, MIB, 512 * KIB), 2032 * GIB));
}

Test(vhd_size_round_up, refuses_what_a_vhd_cannot_hold_with_both_numbers)
{
        struct error err = ERROR_INIT;
        uint64_t ret = 77;

        cr_expect(eq(int, vhd_size_round_up(2040 * GIB + 512, 512, 0, &ret, &err), -EFBIG));
        cr_expect(strstr(err.message, "2190433321472") != NULL);
        cr_expect(strstr(err.message, "2190433320960") != NULL);
        cr_expect(eq(int, vhd_size_round_up(2032 * GIB + 1, 512, 512 * KIB, &ret, &err), -EFBIG));
        cr_expect(eq(int, vhd_size_round_up(UINT64_MAX, MIB, 0, &ret, &err), -EFBIG));
        cr_expect(eq(int, vhd_size_round_up(0, MIB, 0, &ret, &err), -EINVAL));
        cr_expect(eq(u64, ret, 77));
}

Test(vhd_block_size_parse, takes_what_we_make)
{
        static const char *const bad[] = {"1M", "4K", "0", "512", "2G", "big"};
        struct error err = ERROR_INIT;
        uint32_t ret = 0;

        cr_expect(eq(int, vhd_block_size_parse("512K", &ret, &err), 0));
        cr_expect(eq(u32, ret, 512 * 1024));
        cr_expect(eq(int, vhd_block_size_parse("2M", &ret, &err), 0));
        cr_expect(eq(u32, ret, 2 * 1024 * 1024));
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                cr_expect(eq(int, vhd_block_size_parse(bad[i], &ret, &err), -EINVAL), "%s", bad[i]);
}
