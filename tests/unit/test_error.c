/* SPDX-License-Identifier: Apache-2.0 */
/* A person reads one sentence: it must be whole however long a path is, keep the innermost fact, and
 * name the system's reason once. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <string.h>

#include "base/error.h"

Test(fail, writes_the_sentence_and_answers_the_code)
{
        struct error err = ERROR_INIT;

        cr_expect(eq(int, fail(&err, EUCLEAN, "BAT entry %u is odd", 7u), -EUCLEAN));
        cr_expect(eq(int, err.code, EUCLEAN));
        cr_expect(eq(str, err.message, (char *)"BAT entry 7 is odd"));
        cr_expect(eq(u64, err.offset, ERROR_NO_OFFSET));
        cr_expect(eq(str, err.file, (char *)""));
}

Test(fail, forgets_an_earlier_failure)
{
        struct error err = ERROR_INIT;

        fail(&err, EIO, "first");
        error_set_file(&err, "/a");
        error_set_offset(&err, 512);
        error_set_hint(&err, "do %s", "this");
        fail(&err, ENOSPC, "second");
        cr_expect(eq(str, err.message, (char *)"second"));
        cr_expect(eq(str, err.file, (char *)""));
        cr_expect(eq(str, err.hint, (char *)""));
        cr_expect(eq(u64, err.offset, ERROR_NO_OFFSET));
}

Test(fail, works_without_a_place_to_write_to)
{
        cr_expect(eq(int, fail(NULL, EIO, "x"), -EIO));
        cr_expect(eq(int, fail_os(NULL, ENOENT, "x"), -ENOENT));
        cr_expect(eq(int, fail_prefix(NULL, -EBUSY, "x"), -EBUSY));
        error_set_file(NULL, "x");
        error_set_offset(NULL, 1);
        error_set_hint(NULL, "x");
        error_set_hyperv(NULL, 1);
        error_clear(NULL);
}

Test(fail_os, adds_the_systems_words)
{
        struct error err = ERROR_INIT;

        cr_expect(eq(int, fail_os(&err, ENOENT, "no parent '%s'", "base.vhd"), -ENOENT));
        cr_expect(eq(str, err.message, (char *)"no parent 'base.vhd': No such file or directory"));
}

Test(fail_prefix, puts_context_in_front_and_keeps_the_facts)
{
        struct error err = ERROR_INIT;

        fail(&err, EUCLEAN, "entry 2 lies outside");
        error_set_file(&err, "/sr/base.vhd");
        error_set_offset(&err, 1536);
        cr_expect(eq(int, fail_prefix(&err, -EUCLEAN, "opening '%s'", "web"), -EUCLEAN));
        cr_expect(eq(str, err.message, (char *)"opening 'web': entry 2 lies outside"));
        cr_expect(eq(int, err.code, EUCLEAN));
        cr_expect(eq(str, err.file, (char *)"/sr/base.vhd"));
        cr_expect(eq(u64, err.offset, 1536));
}

/* A level of context must not replace what the innermost call knew. */
Test(error_facts, the_innermost_call_wins)
{
        struct error err = ERROR_INIT;

        fail(&err, EIO, "x");
        error_set_file(&err, "inner");
        error_set_file(&err, "outer");
        error_set_offset(&err, 1);
        error_set_offset(&err, 2);
        error_set_hint(&err, "inner");
        error_set_hint(&err, "outer");
        error_set_hyperv(&err, 0xC03A0001);
        error_set_hyperv(&err, 0xC03A0002);
        cr_expect(eq(str, err.file, (char *)"inner"));
        cr_expect(eq(u64, err.offset, 1));
        cr_expect(eq(str, err.hint, (char *)"inner"));
        cr_expect(eq(u32, err.hyperv, 0xC03A0001));
}

/* Paths are as long as a stranger likes. */
Test(error_facts, long_texts_are_cut_and_ended)
{
        char text[4 * ERROR_MESSAGE_MAX];
        struct error err = ERROR_INIT;

        memset(text, 'x', sizeof(text) - 1);
        text[sizeof(text) - 1] = '\0';
        fail_os(&err, EIO, "%s", text);
        fail_prefix(&err, -EIO, "%s", text);
        error_set_file(&err, text);
        error_set_hint(&err, "%s", text);
        cr_expect(eq(sz, strlen(err.message), ERROR_MESSAGE_MAX - 1));
        cr_expect(lt(sz, strlen(err.file), ERROR_PATH_MAX));
        cr_expect(lt(sz, strlen(err.hint), ERROR_MESSAGE_MAX));
}
