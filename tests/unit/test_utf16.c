/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "base/utf16.h"

/* A path goes there and back unchanged, beyond the first plane too. */
Test(utf16, round_trip_of_every_length_of_utf8)
{
        const char text[] = "a\xc3\xa4\xe6\x97\xa5\xf0\x9f\x92\xbe";
        uint8_t units[16];
        char back[16];

        cr_assert(utf16_from_utf8(text, strlen(text), UTF16_BIG, units, sizeof(units)) == 10);
        cr_assert(memcmp(units, "\0a\0\xe4\x65\xe5\xd8\x3d\xdc\xbe", 10) == 0);
        cr_assert(utf16_to_utf8(units, 10, UTF16_BIG, back, sizeof(back)) == 10);
        cr_assert(strcmp(back, text) == 0);

        cr_assert(utf16_from_utf8(text, strlen(text), UTF16_LITTLE, units, sizeof(units)) == 10);
        cr_assert(memcmp(units, "a\0\xe4\0\xe5\x65\x3d\xd8\xbe\xdc", 10) == 0);
        cr_assert(utf16_to_utf8(units, 10, UTF16_LITTLE, back, sizeof(back)) == 10);
        cr_assert(strcmp(back, text) == 0);
}

/* Half a surrogate pair is no text; "mended" it would be the name of another file. */
Test(utf16, refuses_unpaired_surrogates)
{
        char back[16];

        cr_expect(utf16_to_utf8("\xd8\x3d", 2, UTF16_BIG, back, 16) == -EILSEQ);
        cr_expect(utf16_to_utf8("\xd8\x3d\0a", 4, UTF16_BIG, back, 16) == -EILSEQ);
        cr_expect(utf16_to_utf8("\xdc\xbe\xd8\x3d", 4, UTF16_BIG, back, 16) == -EILSEQ);
        cr_expect(utf16_to_utf8("\xd8\x3d\xd8\x3d", 4, UTF16_BIG, back, 16) == -EILSEQ);
        cr_expect(utf16_to_utf8("\0a\0", 3, UTF16_BIG, back, 16) == -EILSEQ);
}

Test(utf16, keeps_nuls_and_counts_them)
{
        char back[16];

        cr_assert(utf16_to_utf8("\0a\0\0\0b", 6, UTF16_BIG, back, 16) == 3);
        cr_assert(memcmp(back, "a\0b", 4) == 0);
}

/* One byte too few is an error and not a cut-off name. */
Test(utf16, wants_room_for_the_nul)
{
        uint8_t units[2];
        char back[3];

        cr_expect(utf16_to_utf8("\0a\0b", 4, UTF16_BIG, back, 3) == 2);
        cr_expect(utf16_to_utf8("\0a\0b", 4, UTF16_BIG, back, 2) == -ENOSPC);
        cr_expect(utf16_to_utf8("", 0, UTF16_BIG, back, 1) == 0);
        cr_expect(utf16_to_utf8("", 0, UTF16_BIG, back, 0) == -ENOSPC);
        cr_expect(utf16_from_utf8("ab", 2, UTF16_BIG, units, 2) == -ENOSPC);
}

Test(utf16, refuses_what_is_not_utf8)
{
        static const char *const bad[] = {
                "\x80",             /* a tail without a head */
                "\xc3",             /* cut off */
                "\xc0\xaf",         /* overlong '/' */
                "\xe0\x80\xaf",     /* the same in three */
                "\xf0\x80\x80\xaf", /* and in four */
                "\xed\xa0\x80",     /* a surrogate */
                "\xf4\x90\x80\x80", /* above U+10FFFF */
                "\xff",
                "a\xc3(",
        };
        uint8_t units[16];

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                cr_expect(!utf8_is_valid(bad[i], strlen(bad[i])), "case %zu", i);
                cr_expect(utf16_from_utf8(bad[i], strlen(bad[i]), UTF16_BIG, units, 16) == -EILSEQ,
                        "case %zu", i);
        }
        cr_expect(utf8_is_valid("\xf4\x8f\xbf\xbf", 4));
        cr_expect(utf8_is_valid("", 0));
}
