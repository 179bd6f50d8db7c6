/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/paths.h"

#include <errno.h>
#include <limits.h>
#include <locale.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>
#include <wctype.h>

#include "base/cleanup.h"

static bool is_slash(char c)
{
        return c == '/' || c == '\\';
}

static bool is_drive_letter(const char *text)
{
        char c = text[0];

        return ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) && text[1] == ':';
}

/* Windows allows no such name, and a terminal might obey it. */
static bool has_control_character(const char *text)
{
        for (const char *p = text; *p; p++)
                if ((unsigned char)*p < 0x20 || *p == 0x7f)
                        return true;
        return false;
}

enum path_kind path_kind_of(const char *text)
{
        if (!*text || has_control_character(text))
                return PATH_NONE;
        if (is_drive_letter(text) || (is_slash(text[0]) && is_slash(text[1])))
                return PATH_FOREIGN;
        return is_slash(text[0]) ? PATH_ABSOLUTE : PATH_RELATIVE;
}

const char *path_bare_name(const char *text)
{
        const char *name = text;

        if (path_kind_of(text) == PATH_NONE)
                return NULL;
        if (is_drive_letter(text))
                name = text + 2;
        for (const char *p = name; *p; p++)
                if (is_slash(*p))
                        name = p + 1;
        if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
                return NULL;
        return name;
}

/* Takes the last component off @path, of *length bytes. */
static void drop_component(const char *path, size_t *length)
{
        while (*length > 0 && path[*length - 1] != '/')
                (*length)--;
        if (*length > 0)
                (*length)--;
}

/* Appends each component of @text to @path, which has no slash at its end and is "" at the top. */
static int append_components(char *path, size_t *length, size_t size, const char *text)
{
        while (*text) {
                size_t n = 0;

                while (is_slash(*text))
                        text++;
                while (text[n] && !is_slash(text[n]))
                        n++;
                if (n == 2 && text[0] == '.' && text[1] == '.') {
                        drop_component(path, length);
                } else if (n > 0 && !(n == 1 && text[0] == '.')) {
                        if (n > NAME_MAX || *length + 1 + n + 1 > size)
                                return -ENAMETOOLONG;
                        path[(*length)++] = '/';
                        memcpy(path + *length, text, n);
                        *length += n;
                }
                text += n;
        }
        return 0;
}

int path_resolve(const char *base, const char *text, char *ret, size_t ret_size)
{
        char path[PATH_TEXT_MAX];
        enum path_kind kind = path_kind_of(text);
        size_t length = 0;
        int r = 0;

        if (kind != PATH_RELATIVE && kind != PATH_ABSOLUTE)
                return -EINVAL;
        if (kind == PATH_RELATIVE) {
                length = strlen(base);
                if (length >= sizeof(path))
                        return -ENAMETOOLONG;
                memcpy(path, base, length);
                while (length > 0 && path[length - 1] == '/')
                        length--;
        }
        r = append_components(path, &length, sizeof(path), text);
        if (r < 0)
                return r;
        if (length == 0)
                path[length++] = '/';
        if (length + 1 > ret_size)
                return -ENAMETOOLONG;
        memcpy(ret, path, length);
        ret[length] = '\0';
        return 0;
}

bool path_is_beneath(const char *path, const char *root, const char **ret_rest)
{
        size_t n = strlen(root);

        while (n > 0 && root[n - 1] == '/')
                n--;
        if (strncmp(path, root, n) != 0 || path[n] != '/' || !path[n + 1])
                return false;
        *ret_rest = path + n + 1;
        return true;
}

void path_directory(const char *path, char *ret, size_t ret_size)
{
        const char *slash = strrchr(path, '/');
        int n = !slash ? 0 : slash == path ? 1 : (int)(slash - path);

        if (n == 0)
                snprintf(ret, ret_size, ".");
        else
                snprintf(ret, ret_size, "%.*s", n, path);
}

/* How many bytes of both are the same whole components; the slash at the end not counted. */
static size_t common_length(const char *a, const char *b)
{
        size_t common = 0;

        for (size_t i = 0;; i++) {
                bool a_ends = !a[i] || a[i] == '/';
                bool b_ends = !b[i] || b[i] == '/';

                if (a_ends && b_ends)
                        common = i;
                if (!a[i] || !b[i] || a[i] != b[i])
                        return common;
        }
}

void path_common_directory(const char *a, const char *b, char *ret, size_t ret_size)
{
        size_t n = common_length(a, b);

        if (n == 0)
                snprintf(ret, ret_size, "/");
        else
                snprintf(ret, ret_size, "%.*s", (int)n, a);
}

int path_relative(const char *from, const char *to, char *ret, size_t ret_size)
{
        const char *start = strcmp(from, "/") == 0 ? "" : from;
        size_t n = common_length(start, to);
        size_t used = 0;
        int r;

        ret[0] = '\0';
        for (const char *p = start + n; *p; p++) {
                if (*p != '/')
                        continue;
                r = snprintf(ret + used, ret_size - used, "../");
                if (r < 0 || (size_t)r >= ret_size - used)
                        return -ENAMETOOLONG;
                used += (size_t)r;
        }
        r = snprintf(ret + used, ret_size - used, "%s%s", used ? "" : "./",
                to[n] == '/' ? to + n + 1 : to + n);
        return r < 0 || (size_t)r >= ret_size - used ? -ENAMETOOLONG : 0;
}

int path_absolute(const char *path, char *ret, size_t ret_size)
{
        char directory[PATH_TEXT_MAX];
        char real[PATH_MAX];
        _cleanup_free_ char *from_top = NULL;

        if (realpath(path, real)) {
                if (strlen(real) >= ret_size)
                        return -ENAMETOOLONG;
                memcpy(ret, real, strlen(real) + 1);
                return 0;
        }
        if (path[0] != '/' && !getcwd(directory, sizeof(directory)))
                return -errno;
        /* path_resolve() takes a backslash for a slash, and this is a path of ours: join by hand. */
        if (asprintf(&from_top, "%s%s%s", path[0] == '/' ? "" : directory,
                    path[0] == '/' ? "" : "/", path) < 0)
                return -ENOMEM;
        if (strlen(from_top) >= ret_size)
                return -ENAMETOOLONG;
        memcpy(ret, from_top, strlen(from_top) + 1);
        return 0;
}

static locale_t folding_locale;

static void make_folding_locale(void)
{
        folding_locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
}

/* One code point of @text in upper case; what is no UTF-8 stands for itself, apart from all others.
 * By hand, because mbrtowc() follows the process's locale. */
static wint_t next_folded(const char **text)
{
        const unsigned char *p = (const unsigned char *)*text;
        static const uint32_t smallest[4] = {0, 0x80, 0x800, 0x10000};
        unsigned more = p[0] < 0x80 ? 0 : p[0] < 0xc0 ? 4 : p[0] < 0xe0 ? 1 : p[0] < 0xf0 ? 2 : 3;
        uint32_t code = more == 0 ? p[0] : p[0] & (0x3fu >> more);

        if (more == 4 || p[0] >= 0xf8)
                goto broken;
        for (unsigned i = 1; i <= more; i++) {
                if ((p[i] & 0xc0) != 0x80)
                        goto broken;
                code = code << 6 | (p[i] & 0x3f);
        }
        if (code < smallest[more] || code > 0x10ffff)
                goto broken;
        *text += more + 1;
        return folding_locale ? towupper_l((wint_t)code, folding_locale) : towupper((wint_t)code);
broken:
        *text += 1;
        return (wint_t)0x110000 + p[0];
}

bool path_same_name_folded(const char *a, const char *b)
{
        static pthread_once_t once = PTHREAD_ONCE_INIT;

        pthread_once(&once, make_folding_locale);
        while (*a && *b)
                if (next_folded(&a) != next_folded(&b))
                        return false;
        return !*a && !*b;
}
