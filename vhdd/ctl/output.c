/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/output.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <wchar.h>

#include "base/utf16.h"
#include "vhdd/ctl/ctl.h"

static void *must(void *p)
{
        if (!p) {
                fprintf(stderr, "vhdctl: no memory for the answer\n");
                exit(CTL_FAILED);
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

struct table {
        const char *const *columns;
        size_t n_columns;
        char **cells;
        size_t n_cells;
};

struct table *table_new(const char *const *columns)
{
        struct table *table = must(calloc(1, sizeof(*table)));

        table->columns = columns;
        while (columns[table->n_columns])
                table->n_columns++;
        return table;
}

void table_cell(struct table *table, const char *format, ...)
{
        _cleanup_free_ char *text = NULL;
        va_list ap;

        va_start(ap, format);
        if (vasprintf(&text, format, ap) < 0)
                text = NULL;
        va_end(ap);
        must(text);
        /* Grown in steps that double: a table may be a map of a million extents. */
        if ((table->n_cells & (table->n_cells - 1)) == 0)
                table->cells = must(reallocarray(table->cells,
                        table->n_cells ? table->n_cells * 2 : 1, sizeof(*table->cells)));
        table->cells[table->n_cells++] = text_safe(text);
}

/* Terminal cells that @text takes; its bytes if the locale knows no better. */
static size_t width_of(const char *text)
{
        size_t n = mbstowcs(NULL, text, 0);
        _cleanup_free_ wchar_t *wide = NULL;
        int width;

        if (n == (size_t)-1)
                return strlen(text);
        wide = must(calloc(n + 1, sizeof(*wide)));
        mbstowcs(wide, text, n + 1);
        width = wcswidth(wide, n);
        return width < 0 ? strlen(text) : (size_t)width;
}

static bool is_right(const char *column)
{
        return column[0] == '>';
}

static const char *head_of(const char *column)
{
        return is_right(column) ? column + 1 : column;
}

static void print_cell(const char *text, size_t width, bool right, bool last, FILE *out)
{
        size_t used = width_of(text);
        int padding = (int)(width > used ? width - used : 0);

        if (right)
                fprintf(out, "%*s%s", padding, "", text);
        else
                fprintf(out, "%s%*s", text, last ? 0 : padding, "");
        fputs(last ? "\n" : "  ", out);
}

void table_print(const struct table *table, FILE *out)
{
        _cleanup_free_ size_t *widths = must(calloc(table->n_columns, sizeof(*widths)));
        size_t n = table->n_columns;

        if (table->n_cells == 0)
                return;
        for (size_t c = 0; c < n; c++)
                widths[c] = width_of(head_of(table->columns[c]));
        for (size_t i = 0; i < table->n_cells; i++) {
                size_t width = width_of(table->cells[i]);

                if (width > widths[i % n])
                        widths[i % n] = width;
        }
        for (size_t c = 0; c < n; c++)
                print_cell(head_of(table->columns[c]), widths[c], is_right(table->columns[c]),
                        c + 1 == n, out);
        for (size_t i = 0; i < table->n_cells; i++)
                print_cell(table->cells[i], widths[i % n], is_right(table->columns[i % n]),
                        i % n + 1 == n, out);
}

struct table *table_free(struct table *table)
{
        if (!table)
                return NULL;
        for (size_t i = 0; i < table->n_cells; i++)
                free(table->cells[i]);
        free(table->cells);
        free(table);
        return NULL;
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
