/* SPDX-License-Identifier: Apache-2.0 */
/* A name becomes part of an export's name, of a URI and of a file. One that holds a '/' would leave its
 * folder, one that holds an '@' would be read as a snapshot, one with a control character talks to
 * terminals; and a file's name that is no good must still give a disk some name. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "base/uuid.h"
#include "vhdd/daemon/names.h"

static void refuses(const char *name, const char *because)
{
        struct error err = ERROR_INIT;
        int r = name_check("vm", name, &err);

        cr_expect(eq(int, r, -EINVAL), "'%.40s' is taken", name);
        cr_expect(strstr(err.message, because) != NULL, "'%s' does not say '%s'", err.message,
                because);
        for (const char *p = err.message; *p; p++) {
                bool control = (unsigned char)*p < 0x20;

                cr_expect(eq(int, control, false), "the sentence holds a control character");
        }
}

Test(name_check, refuses_what_would_be_read_as_something_else)
{
        char longest[NAME_SIZE_MAX + 2];

        refuses("", "empty");
        refuses("a/b", "'/'");
        refuses("..", "folder");
        refuses("web@now", "'@'");
        refuses("now", "running state");
        refuses("a\nb", "control");
        refuses("a\x7f", "control");
        refuses("a\xc2\x85", "control"); /* NEL, which terminals obey too */
        refuses("\xff\xfe", "UTF-8");
        refuses("5fa21a55-f394-aa4d-9958-1951a67d5540", "id");
        memset(longest, 'x', sizeof(longest));
        longest[NAME_SIZE_MAX + 1] = '\0';
        refuses(longest, "128");
}

Test(name_check, takes_blanks_letters_of_any_script_and_128_bytes)
{
        char longest[NAME_SIZE_MAX + 1];

        memset(longest, 'x', sizeof(longest));
        longest[NAME_SIZE_MAX] = '\0';
        cr_expect(eq(int, name_check("vm", "before the update", NULL), 0));
        cr_expect(eq(int, name_check("vm", "\xe9\x9b\xaa 50%", NULL), 0));
        cr_expect(eq(int, name_check("vm", "nowhere", NULL), 0));
        cr_expect(eq(int, name_check("vm", longest, NULL), 0));
}

static void named(const char *path, const char *wanted)
{
        char *name = NULL;

        cr_assert(eq(int, name_of_file(path, &name, NULL), 0));
        cr_expect(strcmp(name, wanted) == 0, "'%s' gives '%s' instead of '%s'", path, name, wanted);
        cr_expect(eq(int, name_check("disk", name, NULL), 0));
        free(name);
}

Test(name_of_file, is_the_file_without_folder_ending_and_guid)
{
        named("/sr/web.vhd", "web");
        named("web", "web");
        named("/sr/web_5fa21a55-f394-aa4d-9958-1951a67d5540.avhd", "web");
        named("/sr/web_5fa21a55.avhd", "web_5fa21a55");
        named("/sr/.hidden", ".hidden");
        named("/sr/a@b\n.vhd", "a-b-");
        named("/sr/now.vhd", "disk");
        named("/sr/..", "disk");
        named("/sr/\xff.vhd", "-");
}

Test(name_of_avhd, lies_beside_what_it_stands_on)
{
        const uint8_t uuid[16] = {0x5f, 0xa2, 0x1a, 0x55, 0xf3, 0x94, 0xaa, 0x4d, 0x99, 0x58, 0x19,
                0x51, 0xa6, 0x7d, 0x55, 0x40};
        char *path = NULL;

        cr_assert(eq(int, name_of_avhd("/sr/a/web.vhd", "web", uuid, &path, NULL), 0));
        cr_expect(strcmp(path, "/sr/a/web_5fa21a55-f394-aa4d-9958-1951a67d5540.avhd") == 0, "%s",
                path);
        free(path);
}

Test(name_percent_encode, leaves_only_what_no_uri_takes_for_its_own)
{
        char *text = name_percent_encode("a b/@\xc3\xa4?");

        cr_expect(strcmp(text, "a%20b%2F%40%C3%A4%3F") == 0, "%s", text);
        free(text);
        text = name_percent_encode_path("/run/a b");
        cr_expect(strcmp(text, "/run/a%20b") == 0, "%s", text);
        free(text);
}
