/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/names.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/cleanup.h"
#include "base/utf16.h"
#include "base/uuid.h"

/* What is in the way of @name being one, or NULL. */
static const char *why_not(const char *name)
{
        size_t length = strlen(name);

        if (length == 0)
                return "it is empty";
        if (length > NAME_SIZE_MAX)
                return "it is longer than 128 bytes";
        if (!utf8_is_valid(name, length))
                return "it is not UTF-8";
        for (const char *p = name; *p; p++) {
                if (*p == '/')
                        return "it holds a '/'";
                if (*p == '@')
                        return "it holds an '@'";
                /* DEL, and U+0080 to U+009F, which terminals obey as well. */
                if ((unsigned char)*p < 0x20 || *p == 0x7f ||
                        ((unsigned char)p[0] == 0xc2 && (unsigned char)p[1] < 0xa0))
                        return "it holds a control character";
        }
        if (strcmp(name, "now") == 0)
                return "it is the word for the running state";
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
                return "it is the name of a folder";
        if (name_is_id(name))
                return "it has the form of an id";
        return NULL;
}

/* The name as it may stand in a sentence: cut, and nothing that talks to a terminal. */
static void printable(const char *name, char *ret, size_t size)
{
        size_t n = 0;
        bool valid = utf8_is_valid(name, strlen(name));

        for (; *name && n + 4 < size; name++) {
                unsigned char c = (unsigned char)*name;

                ret[n++] = c < 0x20 || c == 0x7f || (c >= 0x80 && !valid) ? '?' : *name;
        }
        while (valid && *name && n > 0 && ((unsigned char)ret[n - 1] & 0xc0) == 0x80)
                n--; /* no half of a character at the cut */
        if (valid && *name && n > 0 && ((unsigned char)ret[n - 1] & 0xc0) == 0xc0)
                n--;
        ret[n] = '\0';
        if (*name)
                strcpy(ret + n, "...");
}

int name_check(const char *what, const char *name, struct error *err)
{
        const char *why = why_not(name);
        char text[64];
        int r;

        if (!why)
                return 0;
        printable(name, text, sizeof(text));
        r = fail(err, EINVAL, "'%s' cannot be the name of a %s: %s", text, what, why);
        error_set_hint(err,
                "a name is UTF-8 of 1 to 128 bytes without '/', '@' and control characters, and "
                "not 'now'");
        return r;
}

bool name_is_id(const char *text)
{
        for (unsigned i = 0; i < UUID_TEXT_SIZE - 1; i++) {
                char c = text[i];
                bool hyphen = i == 8 || i == 13 || i == 18 || i == 23;

                if (hyphen ? c != '-' : !((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f')))
                        return false;
        }
        return text[UUID_TEXT_SIZE - 1] == '\0';
}

/* The length of @base without a "_GUID" at its end, as AVHDs have it. */
static size_t length_without_guid(const char *base, size_t length)
{
        char text[UUID_TEXT_SIZE];
        uint8_t id[16];

        if (length <= UUID_TEXT_SIZE || base[length - UUID_TEXT_SIZE] != '_')
                return length;
        memcpy(text, base + length - UUID_TEXT_SIZE + 1, UUID_TEXT_SIZE - 1);
        text[UUID_TEXT_SIZE - 1] = '\0';
        return uuid_parse(text, id) ? length - UUID_TEXT_SIZE : length;
}

int name_of_file(const char *path, char **ret, struct error *err)
{
        const char *slash = strrchr(path, '/');
        const char *base = slash ? slash + 1 : path;
        const char *dot = strrchr(base, '.');
        size_t length = dot && dot != base ? (size_t)(dot - base) : strlen(base);
        _cleanup_free_ char *name = NULL;

        length = length_without_guid(base, length);
        if (length > NAME_SIZE_MAX)
                length = NAME_SIZE_MAX;
        while (length > 0 && length < strlen(base) && ((unsigned char)base[length] & 0xc0) == 0x80)
                length--; /* not in the middle of a character */
        name = strndup(base, length);
        if (!name)
                return fail(err, ENOMEM, "no memory for a name");
        for (char *p = name; *p; p++)
                if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '@' || *p == '/' ||
                        ((unsigned char)*p >= 0x80 && !utf8_is_valid(name, strlen(name))))
                        *p = '-';
        if (why_not(name)) {
                free(name);
                name = strdup("disk");
                if (!name)
                        return fail(err, ENOMEM, "no memory for a name");
        }
        *ret = TAKE_PTR(name);
        return 0;
}

char *name_directory(const char *path)
{
        const char *slash = strrchr(path, '/');

        if (!slash)
                return strdup(".");
        return slash == path ? strdup("/") : strndup(path, (size_t)(slash - path));
}

int name_of_avhd(
        const char *beside, const char *name, const uint8_t uuid[16], char **ret, struct error *err)
{
        const char *slash = strrchr(beside, '/');
        int directory = slash ? (int)(slash - beside) + 1 : 0;
        char text[UUID_TEXT_SIZE];

        if (asprintf(ret, "%.*s%s_%s.avhd", directory, beside, name, uuid_format(uuid, text)) < 0)
                return fail(err, ENOMEM, "no memory for a file's name");
        return 0;
}

static char *encode(const char *text, bool keep_slash)
{
        static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                    "0123456789-._~";
        char *ret = malloc(3 * strlen(text) + 1), *out = ret;

        if (!ret)
                return NULL;
        for (; *text; text++) {
                if (strchr(plain, *text) || (keep_slash && *text == '/')) {
                        *out++ = *text;
                        continue;
                }
                out += sprintf(out, "%%%02X", (unsigned)(unsigned char)*text);
        }
        *out = '\0';
        return ret;
}

char *name_percent_encode(const char *text)
{
        return encode(text, false);
}

char *name_percent_encode_path(const char *path)
{
        return encode(path, true);
}

bool name_is_image(const char *name)
{
        static const char *const endings[] = {".vhd", ".avhd", ".vud"};
        const char *dot = strrchr(name, '.');

        for (size_t i = 0; dot && i < sizeof(endings) / sizeof(endings[0]); i++)
                if (strcasecmp(dot, endings[i]) == 0)
                        return true;
        return false;
}
