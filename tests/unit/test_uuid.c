/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <string.h>

#include "base/uuid.h"

static const uint8_t id[16] = {0x5f, 0xa2, 0x1a, 0x55, 0xf3, 0x94, 0xaa, 0x4d, 0x99, 0x58, 0x19,
        0x51, 0xa6, 0x7d, 0x55, 0x40};

Test(uuid, text_is_the_bytes_in_their_order)
{
        char text[UUID_TEXT_SIZE];

        cr_assert(strcmp(uuid_format(id, text), "5fa21a55-f394-aa4d-9958-1951a67d5540") == 0);
}

Test(uuid, parses_what_people_write)
{
        static const char *const good[] = {
                "5fa21a55-f394-aa4d-9958-1951a67d5540",
                "5FA21A55-F394-AA4D-9958-1951A67D5540",
                "{5fa21a55-f394-aa4d-9958-1951a67d5540}",
                "5fa21a55f394aa4d99581951a67d5540",
        };
        static const char *const bad[] = {
                "",
                "5fa21a55",
                "5fa21a55-f394-aa4d-9958-1951a67d554",
                "5fa21a55-f394-aa4d-9958-1951a67d55401",
                "5fa21a55-f394-aa4d-99581951a67d5540",
                "5fa21a55f-394-aa4d-9958-1951a67d5540",
                "{5fa21a55-f394-aa4d-9958-1951a67d5540",
                "5fa21a55-f394-aa4d-9958-1951a67d554g",
        };
        uint8_t ret[16];

        for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
                memset(ret, 0, sizeof(ret));
                cr_expect(uuid_parse(good[i], ret), "%s", good[i]);
                cr_expect(uuid_equal(ret, id), "%s", good[i]);
        }
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                cr_expect(!uuid_parse(bad[i], ret), "%s", bad[i]);
}

/* Two files with one id would be taken for each other. */
Test(uuid, random_ones_differ_and_say_version_4)
{
        uint8_t a[16], b[16];

        uuid_random(a);
        uuid_random(b);
        cr_expect(!uuid_equal(a, b));
        cr_expect(!uuid_is_zero(a));
        cr_expect(a[6] >> 4 == 4);
        cr_expect(a[8] >> 6 == 2);
}
