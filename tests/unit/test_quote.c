/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <string.h>

#include "base/quote.h"

/* A hint is pasted into a shell: a name must stay one word, and not become a command. */
Test(quote, keeps_every_name_one_word)
{
        static const struct {
                const char *text, *quoted;
        } cases[] = {
                {"/srv/base.vhd", "/srv/base.vhd"},
                {"Virtual Hard Disks/a.vhd", "'Virtual Hard Disks/a.vhd'"},
                {"it's", "'it'\\''s'"},
                {"$(reboot)", "'$(reboot)'"},
                {"-rf", "'-rf'"},
                {"", "''"},
                {"a\nb\x1b[2J", "'a?b?[2J'"},
                {"\xc3\xa4", "'\xc3\xa4'"},
        };
        char ret[64];

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
                cr_expect(
                        strcmp(shell_quote(cases[i].text, ret, sizeof(ret)), cases[i].quoted) == 0,
                        "%s", ret);
}

Test(quote, a_name_that_does_not_fit_is_still_closed)
{
        char ret[16];

        cr_expect(
                strcmp(shell_quote("a b c d e f g h i j k", ret, sizeof(ret)), "'a b c d e '") == 0,
                "%s", ret);
        memset(ret, 0, sizeof(ret));
        shell_quote("''''''''", ret, sizeof(ret));
        cr_expect(ret[strlen(ret) - 1] == '\'');
        cr_expect(shell_quote("abcdefghijklmnopqrst", ret, sizeof(ret))[0] == '\'');
}
