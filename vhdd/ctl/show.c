/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/show.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "vhdd/ctl/output.h"

#define NAME_WIDTH 14

const char *show_text(const json_t *object, const char *key)
{
        const char *text = json_string_value(json_object_get(object, key));

        return text ? text : "";
}

int64_t show_number(const json_t *object, const char *key)
{
        return json_integer_value(json_object_get(object, key));
}

bool show_flag(const json_t *object, const char *key)
{
        return json_is_true(json_object_get(object, key));
}

const char *show_size(const json_t *object, const char *key, char buf[SIZE_TEXT_MAX])
{
        const json_t *size = json_object_get(object, key);

        if (json_is_integer(size) && json_integer_value(size) >= 0)
                return size_to_text((uint64_t)json_integer_value(size), buf);
        memcpy(buf, "-", 2);
        return buf;
}

const char *show_time(const json_t *object, const char *key, char buf[SHOW_TIME_MAX])
{
        const char *text = show_text(object, key);
        struct tm utc = {0}, local;
        time_t seconds;

        if (strptime(text, "%Y-%m-%dT%H:%M:%S", &utc)) {
                seconds = timegm(&utc);
                if (localtime_r(&seconds, &local) &&
                        strftime(buf, SHOW_TIME_MAX, "%Y-%m-%d %H:%M", &local) > 0)
                        return buf;
        }
        snprintf(buf, SHOW_TIME_MAX, "%s", text);
        return buf;
}

const char *show_age(int64_t ms, char buf[SHOW_AGE_MAX])
{
        int64_t s = ms / 1000;

        if (s < 60)
                snprintf(buf, SHOW_AGE_MAX, "%" PRId64 "s", s);
        else if (s < 3600)
                snprintf(buf, SHOW_AGE_MAX, "%" PRId64 "m %" PRId64 "s", s / 60, s % 60);
        else if (s < 86400)
                snprintf(buf, SHOW_AGE_MAX, "%" PRId64 "h %" PRId64 "m", s / 3600, s / 60 % 60);
        else
                snprintf(buf, SHOW_AGE_MAX, "%" PRId64 "d %" PRId64 "h", s / 86400, s / 3600 % 24);
        return buf;
}

void show_line(unsigned indent, const char *name, const char *format, ...)
{
        _cleanup_free_ char *text = NULL, *safe = NULL;
        va_list ap;

        va_start(ap, format);
        if (vasprintf(&text, format, ap) < 0)
                text = NULL;
        va_end(ap);
        if (!text)
                return;
        safe = text_safe(text);
        printf("%*s%-*s %s\n", (int)indent, "", NAME_WIDTH, name, safe);
}

void show_list(const char *head, const json_t *list)
{
        const json_t *item;
        size_t i;

        json_array_foreach((json_t *)list, i, item)
        {
                _cleanup_free_ char *safe =
                        text_safe(json_is_string(item) ? json_string_value(item) : "");

                printf("%s%s\n", head, safe);
        }
}
