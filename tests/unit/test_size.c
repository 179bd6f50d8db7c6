/* SPDX-License-Identifier: Apache-2.0 */
/* A size that is read wrongly makes a disk of the wrong size, or overwrites the wrong range. What
 * people type must give the number they mean, or a sentence; never a guess. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "base/arith.h"
#include "base/size.h"

static void expect_text(const char *have, const char *wanted)
{
        cr_expect(strcmp(have, wanted) == 0, "'%s' instead of '%s'", have, wanted);
}

static uint64_t parse_good(const char *text)
{
        struct error err = ERROR_INIT;
        uint64_t size = 0;
        int r = size_parse(text, &size, &err);

        cr_assert(eq(int, r, 0), "%s: %s", text, err.message);
        return size;
}

Test(size_parse, reads_bytes_and_powers_of_1024)
{
        cr_expect(eq(u64, parse_good("0"), 0));
        cr_expect(eq(u64, parse_good("512"), 512));
        cr_expect(eq(u64, parse_good("512B"), 512));
        cr_expect(eq(u64, parse_good("512K"), 512 * KIB));
        cr_expect(eq(u64, parse_good("2M"), 2 * MIB));
        cr_expect(eq(u64, parse_good("2m"), 2 * MIB));
        cr_expect(eq(u64, parse_good("127GiB"), 127 * GIB));
        cr_expect(eq(u64, parse_good("2T"), 2 * TIB));
        cr_expect(eq(u64, parse_good("18446744073709551615"), UINT64_MAX));
}

Test(size_parse, reads_fractions_that_are_whole_bytes)
{
        cr_expect(eq(u64, parse_good("1.5K"), 1536));
        cr_expect(eq(u64, parse_good("0.25G"), 256 * MIB));
        cr_expect(eq(u64, parse_good("1.50M"), 1536 * KIB));
}

Test(size_parse, refuses_what_is_no_size)
{
        static const char *const texts[] = {"", "G", "-1", "+1", " 1", "1 ", "1X", "10GB", "1.5",
                "1.", ".5G", "1.3K", "1GiBs", "0x10", "1,5G", "1e3"};

        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
                struct error err = ERROR_INIT;
                uint64_t size = 77;

                cr_expect(eq(int, size_parse(texts[i], &size, &err), -EINVAL), "'%s'", texts[i]);
                cr_expect(eq(u64, size, 77));
                cr_expect(strstr(err.message, texts[i]) != NULL);
        }
}

Test(size_parse, refuses_what_does_not_fit)
{
        static const char *const texts[] = {"18446744073709551616", "16777216T", "99999999999999T"};

        for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
                struct error err = ERROR_INIT;
                uint64_t size;

                cr_expect(eq(int, size_parse(texts[i], &size, &err), -ERANGE), "'%s'", texts[i]);
        }
}

Test(size_to_text, chooses_the_unit_that_people_say)
{
        char buf[SIZE_TEXT_MAX];

        expect_text(size_to_text(0, buf), "0 bytes");
        expect_text(size_to_text(1, buf), "1 byte");
        expect_text(size_to_text(512, buf), "512 bytes");
        expect_text(size_to_text(64 * MIB, buf), "64 MiB");
        expect_text(size_to_text(2040 * GIB, buf), "2040 GiB");
        expect_text(size_to_text(3 * TIB, buf), "3 TiB");
        expect_text(size_to_text(1536 * MIB, buf), "1.5 GiB");
        expect_text(size_to_text(4100 * KIB, buf), "4.0 MiB");
}

/* A disk that is not full must not look full, nor a copy finished that is not. */
Test(size_to_text, rounds_down)
{
        char buf[SIZE_TEXT_MAX];

        expect_text(size_to_text(10 * MIB - 1, buf), "9.9 MiB");
        expect_text(size_to_text(10 * MIB + 512, buf), "10.0 MiB");
        expect_text(size_to_text(UINT64_MAX, buf), "16777215.9 TiB");
}
