/* SPDX-License-Identifier: Apache-2.0 */
/* Text in UTF-16 and paths in every dialect. What is accepted comes back the same from the other
 * encoding; what a path resolves to is normal, and stays normal when it is made relative. */
#include <assert.h>
#include <string.h>

#include "base/utf16.h"
#include "chain/paths.h"
#include "tests/fuzz/fuzz.h"

static void check_utf16(const uint8_t *data, size_t size, enum utf16_order order)
{
        static char utf8[8192];
        static uint8_t again[8192];
        ssize_t length = utf16_to_utf8(data, size, order, utf8, sizeof(utf8));

        if (length < 0)
                return;
        assert((size_t)length < sizeof(utf8) && utf8[length] == '\0');
        assert(utf8_is_valid(utf8, (size_t)length));
        assert(utf16_from_utf8(utf8, (size_t)length, order, again, sizeof(again)) == (ssize_t)size);
        assert(memcmp(again, data, size) == 0);
}

static void check_normal(const char *path)
{
        assert(path[0] == '/');
        assert(!strstr(path, "//") && !strstr(path, "/../") && !strstr(path, "/./"));
}

static void check_path(const char *text)
{
        static char path[PATH_TEXT_MAX], relative[PATH_TEXT_MAX], back[PATH_TEXT_MAX];
        const char *bare = path_bare_name(text), *rest;

        if (bare) {
                assert(bare[0] != '\0' && strcmp(bare, ".") != 0 && strcmp(bare, "..") != 0);
                assert(!strchr(bare, '/') && !strchr(bare, '\\'));
        }
        if (path_resolve("/srv/vm/web", text, path, sizeof(path)) < 0)
                return;
        check_normal(path);
        if (path_is_beneath(path, "/srv/vm", &rest))
                assert(rest[0] != '\0' && rest[0] != '/');
        if (path_relative("/srv/vm/other", path, relative, sizeof(relative)) == 0) {
                assert(path_resolve("/srv/vm/other", relative, back, sizeof(back)) == 0);
                assert(strcmp(back, path) == 0);
        }
        assert(path_same_name_folded(text, text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        char text[2048];
        size_t length = size < sizeof(text) - 1 ? size : sizeof(text) - 1;

        if (size > 2048)
                return 0;
        check_utf16(data, size, UTF16_LITTLE);
        check_utf16(data, size, UTF16_BIG);
        utf8_is_valid((const char *)data, size);
        memcpy(text, data, length);
        text[length] = '\0';
        check_path(text);
        return 0;
}
