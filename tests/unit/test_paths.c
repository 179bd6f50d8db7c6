/* SPDX-License-Identifier: Apache-2.0 */
/* A path out of a foreign image that we read in another way than its writer meant finds no parent;
 * one that we read as less than it is finds somebody else's file. */
#include "chain/paths.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

static void expect_resolved(const char *base, const char *text, const char *expected)
{
        char path[PATH_TEXT_MAX];

        cr_expect_eq(path_resolve(base, text, path, sizeof(path)), 0, "%s + %s", base, text);
        cr_expect_str_eq(path, expected);
}

Test(path_resolve, takes_both_slashes_and_dots_away)
{
        expect_resolved("/vm/disks", ".\\base.vhd", "/vm/disks/base.vhd");
        expect_resolved("/vm/disks", "base.vhd", "/vm/disks/base.vhd");
        expect_resolved("/vm/Snapshots/GUID", "..\\..\\Virtual Hard Disks\\a b.vhd",
                "/vm/Virtual Hard Disks/a b.vhd");
        expect_resolved("/vm", ".\\\\.//x\\/y", "/vm/x/y");
        expect_resolved("/", "x", "/x");
        expect_resolved("/vm", "\\srv\\x.vhd", "/srv/x.vhd");
}

Test(path_resolve, stops_at_the_top)
{
        expect_resolved("/vm/disks", "..\\..\\..\\..\\..\\etc\\shadow", "/etc/shadow");
        expect_resolved("/", "..", "/");
        expect_resolved("/vm", "/../../etc/./shadow", "/etc/shadow");
}

Test(path_resolve, refuses_what_is_of_another_machine)
{
        char path[PATH_TEXT_MAX] = "untouched";

        cr_expect_eq(path_resolve("/vm", "C:\\x.vhd", path, sizeof(path)), -EINVAL);
        cr_expect_eq(path_resolve("/vm", "c:x.vhd", path, sizeof(path)), -EINVAL);
        cr_expect_eq(path_resolve("/vm", "\\\\server\\share\\x.vhd", path, sizeof(path)), -EINVAL);
        cr_expect_eq(path_resolve("/vm", "//?/C:/x.vhd", path, sizeof(path)), -EINVAL);
        cr_expect_eq(path_resolve("/vm", "a\nb", path, sizeof(path)), -EINVAL);
        cr_expect_eq(path_resolve("/vm", "", path, sizeof(path)), -EINVAL);
        cr_expect_str_eq(path, "untouched");
}

Test(path_resolve, refuses_what_is_too_long)
{
        char text[PATH_TEXT_MAX + 8], path[PATH_TEXT_MAX];

        memset(text, 'x', 300);
        text[300] = '\0';
        cr_expect_eq(path_resolve("/", text, path, sizeof(path)), -ENAMETOOLONG);
        for (size_t i = 0; i < sizeof(text) - 1; i++)
                text[i] = i % 2 ? '/' : 'x';
        text[sizeof(text) - 1] = '\0';
        cr_expect_eq(path_resolve("/", text, path, sizeof(path)), -ENAMETOOLONG);
}

Test(path_bare_name, is_the_last_part_whatever_the_machine)
{
        cr_expect_str_eq(path_bare_name("C:\\VMs\\base.vhd"), "base.vhd");
        cr_expect_str_eq(path_bare_name("C:base.vhd"), "base.vhd");
        cr_expect_str_eq(path_bare_name("\\\\server\\share\\base.vhd"), "base.vhd");
        cr_expect_str_eq(path_bare_name("base.vhd"), "base.vhd");
        cr_expect_null(path_bare_name("a\\.."));
        cr_expect_null(path_bare_name("a/"));
        cr_expect_null(path_bare_name("C:"));
        cr_expect_null(path_bare_name("a\x1b[2Jb"));
}

Test(path_is_beneath, is_not_fooled_by_a_common_beginning)
{
        const char *rest = NULL;

        cr_expect(path_is_beneath("/vm/a/b", "/vm", &rest));
        cr_expect_str_eq(rest, "a/b");
        cr_expect(path_is_beneath("/a", "/", &rest));
        cr_expect_str_eq(rest, "a");
        cr_expect_not(path_is_beneath("/vm2/a", "/vm", &rest));
        cr_expect_not(path_is_beneath("/vm", "/vm", &rest));
        cr_expect_not(path_is_beneath("/v", "/vm", &rest));
}

Test(path_relative, leads_from_any_folder_to_any_file)
{
        static const char *const rows[][3] = {
                {"/vm", "/vm/x.vhd", "./x.vhd"},
                {"/vm/a", "/vm/b/x.vhd", "../b/x.vhd"},
                {"/vm/a/b", "/x.vhd", "../../../x.vhd"},
                {"/", "/a/x.vhd", "./a/x.vhd"},
                {"/vm", "/vmware/x.vhd", "../vmware/x.vhd"},
        };

        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
                char text[PATH_TEXT_MAX], back[PATH_TEXT_MAX];

                cr_assert_eq(path_relative(rows[i][0], rows[i][1], text, sizeof(text)), 0);
                cr_expect_str_eq(text, rows[i][2]);
                cr_assert_eq(path_resolve(rows[i][0], text, back, sizeof(back)), 0);
                cr_expect_str_eq(back, rows[i][1]);
        }
}

Test(path_common_directory, is_whole_components)
{
        char common[PATH_TEXT_MAX];

        path_common_directory("/vm/Virtual Hard Disks", "/vm/Snapshots/G", common, sizeof(common));
        cr_expect_str_eq(common, "/vm");
        path_common_directory("/vm1", "/vm2", common, sizeof(common));
        cr_expect_str_eq(common, "/");
        path_common_directory("/a/b", "/a/b", common, sizeof(common));
        cr_expect_str_eq(common, "/a/b");
}

Test(path_same_name_folded, folds_letters_and_nothing_else)
{
        cr_expect(path_same_name_folded("Base.VHD", "bASE.vhd"));
        cr_expect(path_same_name_folded("GR\xc3\x9c"
                                        "N.vhd",
                "gr\xc3\xbcn.vhd"));
        cr_expect_not(path_same_name_folded("base.vhd", "base1.vhd"));
        cr_expect_not(path_same_name_folded("base.vhd", "base.vh"));
        cr_expect_not(path_same_name_folded("a\xff", "a\xfe"));
        cr_expect(path_same_name_folded("A\xff", "a\xff"));
        cr_expect_not(path_same_name_folded("\xc3", "\xc3\x9c")); /* cut off */
}
