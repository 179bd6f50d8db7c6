/* SPDX-License-Identifier: Apache-2.0 */
/* A VHD is big-endian; a number that is read in the wrong order looks like a plausible other one. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

Test(be, bytes_lie_as_the_spec_says)
{
        const uint8_t raw[8] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08};
        be16 a;
        be32 b;
        be64 c;

        memcpy(&a, raw, sizeof(a));
        memcpy(&b, raw, sizeof(b));
        memcpy(&c, raw, sizeof(c));
        cr_expect(eq(u16, be16_get(a), 0x0102));
        cr_expect(eq(u32, be32_get(b), 0x01020304));
        cr_expect(eq(u64, be64_get(c), UINT64_C(0x0102030405060708)));
        a = be16_make(0x0102);
        b = be32_make(0x01020304);
        c = be64_make(UINT64_C(0x0102030405060708));
        cr_expect(eq(int, memcmp(&a, raw, sizeof(a)), 0));
        cr_expect(eq(int, memcmp(&b, raw, sizeof(b)), 0));
        cr_expect(eq(int, memcmp(&c, raw, sizeof(c)), 0));
}

Test(be, has_no_alignment)
{
        struct {
                uint8_t one;
                be64 number;
        } odd;

        cr_expect(eq(sz, sizeof(odd), 9));
}

/* One byte that is not zero, at every place of blocks of every length and alignment. */
Test(bytes_are_zero, finds_every_single_byte)
{
        uint8_t *memory = calloc(1, 400);

        cr_expect(bytes_are_zero(memory, 0));
        for (size_t start = 0; start < 9; start++)
                for (size_t size = 1; size < 300; size += size < 40 ? 1 : 37) {
                        cr_assert(bytes_are_zero(memory + start, size));
                        for (size_t at = 0; at < size; at++) {
                                memory[start + at] = 1;
                                cr_assert(not(bytes_are_zero(memory + start, size)),
                                        "start %zu size %zu at %zu", start, size, at);
                                memory[start + at] = 0;
                        }
                        memory[start + size] = 1;
                        cr_assert(bytes_are_zero(memory + start, size), "looks past the end");
                        memory[start + size] = 0;
                }
        free(memory);
}
