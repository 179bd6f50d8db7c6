/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/output.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

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
