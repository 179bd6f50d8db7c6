/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/describe/values.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/utf16.h"

#define FAILED 3 /* the exit code of all our programs */

void *must(void *p)
{
        if (!p) {
                fprintf(stderr, "%s: no memory for the answer\n", program_invocation_short_name);
                exit(FAILED);
        }
        return p;
}

/* C0, DEL, C1, and the marks that turn the direction of text round. */
static bool is_control(uint32_t c)
{
        return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x202a && c <= 0x202e) ||
                (c >= 0x2066 && c <= 0x2069);
}

char *text_safe(const char *text)
{
        size_t size = strlen(text) * 4 + 1;
        char *safe = must(malloc(size)), *out = safe;

        for (const unsigned char *p = (const unsigned char *)text; *p;) {
                uint32_t c = 0;
                size_t n = utf8_get(p, 4, &c); /* stops at the NUL, which continues none */

                if (n && !is_control(c)) {
                        memcpy(out, p, n);
                        out += n;
                        p += n;
                        continue;
                }
                if (*p == '\n' || *p == '\t') {
                        *out++ = '\\';
                        *out++ = *p++ == '\n' ? 'n' : 't';
                        continue;
                }
                for (size_t i = 0; i < (n ? n : 1); i++)
                        out += sprintf(out, "\\x%02x", *p++);
        }
        *out = '\0';
        return safe;
}

json_t *json_text(const char *text)
{
        static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
        _cleanup_free_ char *valid = must(malloc(strlen(text) * 3 + 1));
        char *out = valid;

        for (const unsigned char *p = (const unsigned char *)text; *p;) {
                uint32_t c;
                size_t n = utf8_get(p, 4, &c); /* stops at the NUL, which continues none */

                memcpy(out, n ? (const char *)p : replacement, n ? n : 3);
                out += n ? n : 3;
                p += n ? n : 1;
        }
        *out = '\0';
        return must(json_string(valid));
}

json_t *json_size(uint64_t size)
{
        return must(size > INT64_MAX ? json_null() : json_integer((json_int_t)size));
}

const char *uuid_to_text(const uint8_t id[16], char buf[UUID_TEXT_MAX])
{
        char *out = buf;

        for (size_t i = 0; i < 16; i++)
                out += sprintf(
                        out, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", id[i]);
        return buf;
}

json_t *json_uuid(const uint8_t id[16])
{
        char buf[UUID_TEXT_MAX];

        return must(json_string(uuid_to_text(id, buf)));
}

const char *time_to_text(int64_t unix_seconds, char buf[TIME_TEXT_MAX])
{
        time_t seconds = unix_seconds;
        struct tm tm;

        if (!gmtime_r(&seconds, &tm) || strftime(buf, TIME_TEXT_MAX, "%FT%TZ", &tm) == 0)
                snprintf(buf, TIME_TEXT_MAX, "@%" PRId64, unix_seconds);
        return buf;
}

json_t *json_time(int64_t unix_seconds)
{
        char buf[TIME_TEXT_MAX];

        return must(json_string(time_to_text(unix_seconds, buf)));
}

json_t *error_to_json(const struct error *err)
{
        const char *name = strerrorname_np(err->code);
        json_t *object = must(json_object());
        char hyperv[16];

        json_object_set_new(object, "code", json_text(name ? name : "EIO"));
        json_object_set_new(object, "message", json_text(err->message));
        if (err->file[0])
                json_object_set_new(object, "file", json_text(err->file));
        if (err->offset != ERROR_NO_OFFSET)
                json_object_set_new(object, "offset", json_size(err->offset));
        if (err->hint[0])
                json_object_set_new(object, "hint", json_text(err->hint));
        if (err->hyperv) {
                snprintf(hyperv, sizeof(hyperv), "0x%08" PRIX32, err->hyperv);
                json_object_set_new(object, "hyperv", json_text(hyperv));
        }
        return object;
}

void json_print(json_t *value)
{
        json_dumpf(must(value), stdout, JSON_INDENT(2));
        fputc('\n', stdout);
        json_decref(value);
}

void error_print(const char *program, const struct error *err)
{
        _cleanup_free_ char *message = text_safe(err->message);
        _cleanup_free_ char *file = text_safe(err->file);
        const char *slash = strrchr(file, '/');

        /* Every sentence names its file; those from deep inside know it by its fields only. */
        if (file[0] && !strstr(message, slash ? slash + 1 : file))
                fprintf(stderr, "%s: %s: %s\n", program, file, message);
        else
                fprintf(stderr, "%s: %s\n", program, message);
        if (err->hint[0]) {
                _cleanup_free_ char *hint = text_safe(err->hint);

                fprintf(stderr, "        %s\n", hint);
        }
}
