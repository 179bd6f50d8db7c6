/* SPDX-License-Identifier: Apache-2.0 */
/* Names in an image come from strangers: a terminal escape in one must not reach the terminal, and
 * bytes that are no UTF-8 must not make the JSON unreadable. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/ctl/output.h"

static void expect_text(const char *have, const char *wanted)
{
        cr_expect(strcmp(have, wanted) == 0, "'%s' instead of '%s'", have, wanted);
}

static void expect_safe(const char *text, const char *wanted)
{
        _cleanup_free_ char *safe = text_safe(text);

        expect_text(safe, wanted);
}

Test(text_safe, keeps_good_text)
{
        expect_safe("", "");
        expect_safe("base.vhd", "base.vhd");
        expect_safe("Jürgen/ディスク.avhd \\", "Jürgen/ディスク.avhd \\");
}

Test(text_safe, shows_controls_and_broken_utf8_as_numbers)
{
        expect_safe("a\x1b[31mb", "a\\x1b[31mb");
        expect_safe("a\nb\tc", "a\\nb\\tc");
        expect_safe("\x7f", "\\x7f");
        expect_safe("\xc2\x9b", "\\xc2\\x9b"); /* C1: CSI in one character */
        expect_safe("\xff\xfe", "\\xff\\xfe");
        expect_safe("\xc0\x80", "\\xc0\\x80");          /* overlong */
        expect_safe("\xed\xa0\x80", "\\xed\\xa0\\x80"); /* a lone surrogate */
        expect_safe("\xe2\x80\xae", "\\xe2\\x80\\xae"); /* right to left from here */
        expect_safe("\xe2\x82", "\\xe2\\x82");          /* cut off */
}

Test(json_text, is_always_valid)
{
        _cleanup_json_ json_t *value = json_text("a\xff\xc3");

        expect_text(json_string_value(value), "a\xef\xbf\xbd\xef\xbf\xbd");
}

Test(json_size, knows_what_json_cannot_hold)
{
        _cleanup_json_ json_t *large = json_size(UINT64_MAX);
        _cleanup_json_ json_t *small = json_size(42);

        cr_expect(eq(int, json_typeof(large), JSON_NULL));
        cr_expect(eq(i64, json_integer_value(small), 42));
}

Test(uuid_to_text, groups_bytes_as_they_stand)
{
        const uint8_t id[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff};
        char buf[UUID_TEXT_MAX];

        expect_text(uuid_to_text(id, buf), "00010203-0405-0607-0809-0a0b0c0d0eff");
}

Test(time_to_text, is_rfc_3339_in_utc)
{
        char buf[TIME_TEXT_MAX];

        expect_text(time_to_text(946684800, buf), "2000-01-01T00:00:00Z");
}

Test(table, aligns_by_cells_on_the_screen)
{
        static const char *const columns[] = {"name", ">size", "type", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char *text = NULL;
        size_t size = 0;
        FILE *out = open_memstream(&text, &size);

        setlocale(LC_CTYPE, "C.UTF-8");
        table_cell(table, "%s", "ü");
        table_cell(table, "%d", 5);
        table_cell(table, "fixed");
        table_cell(table, "longer");
        table_cell(table, "%d", 12345);
        table_cell(table, "raw");
        table_print(table, out);
        fclose(out);
        expect_text(text,
                "name     size  type\n"
                "ü           5  fixed\n"
                "longer  12345  raw\n");
        free(text);
}

Test(error_to_json, leaves_out_what_is_not_known)
{
        struct error err = ERROR_INIT;
        _cleanup_json_ json_t *plain = NULL, *full = NULL;

        fail(&err, EUCLEAN, "it is broken");
        plain = error_to_json(&err);
        cr_expect(eq(sz, json_object_size(plain), 2));
        expect_text(json_string_value(json_object_get(plain, "code")), "EUCLEAN");

        error_set_file(&err, "a.vhd");
        error_set_offset(&err, 512);
        error_set_hint(&err, "vhdctl check a.vhd");
        error_set_hyperv(&err, 0xC03A000E);
        full = error_to_json(&err);
        expect_text(json_string_value(json_object_get(full, "hyperv")), "0xC03A000E");
        cr_expect(eq(i64, json_integer_value(json_object_get(full, "offset")), 512));
        cr_expect(eq(sz, json_object_size(full), 6));
}
