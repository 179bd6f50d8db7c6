/* SPDX-License-Identifier: Apache-2.0 */
/* Rows as structs: the one place where columns are bound and read. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "vhdd/daemon/catalog_internal.h"

#define SQL_MAX  1024u
#define ROWS_MAX (1u << 22) /* more than any machine has disks; bounds what a bad file asks for */

/* ---- SQL texts ---- */

struct text {
        char sql[SQL_MAX];
        size_t used;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *text, const char *format, ...)
{
        va_list ap;
        int n;

        va_start(ap, format);
        n = vsnprintf(text->sql + text->used, sizeof(text->sql) - text->used, format, ap);
        va_end(ap);
        assert(n >= 0);
        assert((size_t)n < sizeof(text->sql) - text->used);
        text->used += (size_t)n;
}

/* "a", "b" */
static void add_names(struct text *text, const struct table *table)
{
        for (size_t i = 0; i < table->n_columns; i++)
                add(text, "%s\"%s\"", i ? ", " : "", table->columns[i].name);
}

/* "a" = ?1, "b" = ?2 of the columns [from, to) */
static void add_equations(
        struct text *text, const struct table *table, size_t from, size_t to, const char *between)
{
        for (size_t i = from; i < to; i++)
                add(text, "%s\"%s\" = ?%zu", i > from ? between : "", table->columns[i].name,
                        i + 1);
}

/* ---- binding ---- */

static int bind_value(sqlite3_stmt *statement, int at, const struct value *value)
{
        return value->text ? sqlite3_bind_text(statement, at, value->text, -1, SQLITE_TRANSIENT)
                           : sqlite3_bind_int64(statement, at, value->number);
}

static int bind_text(sqlite3_stmt *statement, int at, const char *text)
{
        return text ? sqlite3_bind_text(statement, at, text, -1, SQLITE_TRANSIENT)
                    : sqlite3_bind_null(statement, at);
}

static int bind_column(
        sqlite3_stmt *statement, int at, const struct column *column, const void *row)
{
        const void *field = (const char *)row + column->offset;
        const char *word = field;

        switch (column->type) {
        case COLUMN_TEXT: return bind_text(statement, at, *(char *const *)field);
        case COLUMN_WORD: return bind_text(statement, at, word[0] ? word : NULL);
        case COLUMN_INT: return sqlite3_bind_int(statement, at, *(const int *)field);
        case COLUMN_INT64: return sqlite3_bind_int64(statement, at, *(const int64_t *)field);
        case COLUMN_UINT64:
                return sqlite3_bind_int64(statement, at, (int64_t) * (const uint64_t *)field);
        case COLUMN_BOOL: return sqlite3_bind_int(statement, at, *(const bool *)field);
        case COLUMN_UUID: return sqlite3_bind_blob(statement, at, field, 16, SQLITE_TRANSIENT);
        case COLUMN_NUMBER:
                return *(const int64_t *)field == 0
                        ? sqlite3_bind_null(statement, at)
                        : sqlite3_bind_int64(statement, at, *(const int64_t *)field);
        }
        return SQLITE_MISUSE;
}

/* ---- reading ---- */

static int read_text(sqlite3_stmt *statement, int at, char **ret)
{
        const unsigned char *text = sqlite3_column_text(statement, at);

        if (!text) {
                *ret = NULL;
                return sqlite3_column_type(statement, at) == SQLITE_NULL ? 0 : -ENOMEM;
        }
        *ret = strdup((const char *)text);
        return *ret ? 0 : -ENOMEM;
}

static int read_bytes(sqlite3_stmt *statement, int at, void *field, size_t size, bool is_word)
{
        const void *bytes = is_word ? (const void *)sqlite3_column_text(statement, at)
                                    : sqlite3_column_blob(statement, at);
        size_t n = (size_t)sqlite3_column_bytes(statement, at);

        memset(field, 0, size);
        if (!bytes)
                return sqlite3_column_type(statement, at) == SQLITE_NULL && is_word ? 0 : -EUCLEAN;
        if (is_word ? n >= size : n != size)
                return -EUCLEAN;
        memcpy(field, bytes, n);
        return 0;
}

static int read_column(sqlite3_stmt *statement, int at, const struct column *column, void *row)
{
        void *field = (char *)row + column->offset;

        switch (column->type) {
        case COLUMN_TEXT: return read_text(statement, at, field);
        case COLUMN_WORD: return read_bytes(statement, at, field, column->size, true);
        case COLUMN_UUID: return read_bytes(statement, at, field, 16, false);
        case COLUMN_INT: *(int *)field = sqlite3_column_int(statement, at); return 0;
        case COLUMN_BOOL: *(bool *)field = sqlite3_column_int(statement, at) != 0; return 0;
        case COLUMN_INT64:
        case COLUMN_NUMBER: *(int64_t *)field = sqlite3_column_int64(statement, at); return 0;
        case COLUMN_UINT64:
                *(uint64_t *)field = (uint64_t)sqlite3_column_int64(statement, at);
                return 0;
        }
        return -EINVAL;
}

static int read_row(struct catalog *catalog, const struct table *table, sqlite3_stmt *statement,
        void *row, struct error *err)
{
        memset(row, 0, table->row_size);
        for (size_t i = 0; i < table->n_columns; i++) {
                int r = read_column(statement, (int)i, &table->columns[i], row);

                if (r == 0)
                        continue;
                row_done(table, row);
                return r == -ENOMEM ? fail(err, ENOMEM, "no memory for a %s's row", table->what)
                                    : fail(err, EUCLEAN, "the catalog '%s' is damaged: %s.%s",
                                              catalog->path, table->name, table->columns[i].name);
        }
        return 0;
}

void row_done(const struct table *table, void *row)
{
        for (size_t i = 0; i < table->n_columns; i++)
                if (table->columns[i].type == COLUMN_TEXT) {
                        char **text = (char **)(void *)((char *)row + table->columns[i].offset);

                        free(*text);
                        *text = NULL;
                }
}

void *rows_free(const struct table *table, void *rows, size_t n)
{
        for (size_t i = 0; rows && i < n; i++)
                row_done(table, (char *)rows + i * table->row_size);
        free(rows);
        return NULL;
}

/* ---- statements ---- */

/* Ends a use of a statement: nothing that was bound stays. */
static void statement_rest(sqlite3_stmt **statement)
{
        if (!*statement)
                return;
        sqlite3_reset(*statement);
        sqlite3_clear_bindings(*statement);
}

static int ready(struct catalog *catalog, const char *sql, const struct value *values,
        size_t n_values, sqlite3_stmt **ret, struct error *err)
{
        int r = catalog_check_locked(catalog, err);

        if (r == 0)
                r = catalog_prepare_locked(catalog, sql, ret, err);
        for (size_t i = 0; r == 0 && i < n_values; i++)
                if (bind_value(*ret, (int)i + 1, &values[i]) != SQLITE_OK)
                        r = fail(err, ENOMEM, "no memory for a question to the catalog");
        return r;
}

/* A change outside of a transaction commits at its last step: see catalog_commit(). */
static int step_change(struct catalog *catalog, sqlite3_stmt *statement, struct error *err)
{
        bool commits = sqlite3_get_autocommit(catalog->db);
        int code = sqlite3_step(statement), r;

        if (code == SQLITE_DONE || code == SQLITE_ROW)
                return 0;
        r = catalog_fail(catalog, code, "cannot change the catalog", err);
        if (r == -EIO && commits)
                catalog->failed = true;
        return r;
}

int rows_run(struct catalog *catalog, const char *sql, const struct value *values, size_t n_values,
        int *ret_changes, struct error *err)
{
        pthread_mutex_t *lock _cleanup_(cleanup_unlock) = catalog_lock(catalog);
        _cleanup_(statement_rest) sqlite3_stmt *statement = NULL;
        int r;

        (void)lock;
        r = ready(catalog, sql, values, n_values, &statement, err);
        if (r == 0)
                r = step_change(catalog, statement, err);
        if (r == 0 && ret_changes)
                *ret_changes = sqlite3_changes(catalog->db);
        return r;
}

int rows_number(struct catalog *catalog, const char *sql, const struct value *values,
        size_t n_values, int64_t *ret, struct error *err)
{
        pthread_mutex_t *lock _cleanup_(cleanup_unlock) = catalog_lock(catalog);
        _cleanup_(statement_rest) sqlite3_stmt *statement = NULL;
        int code, r;

        (void)lock;
        r = ready(catalog, sql, values, n_values, &statement, err);
        if (r < 0)
                return r;
        code = sqlite3_step(statement);
        if (code != SQLITE_ROW)
                return catalog_fail(catalog, code, "cannot read the catalog", err);
        *ret = sqlite3_column_int64(statement, 0);
        return 0;
}

/* ---- select ---- */

/* Makes room for one more. */
static int grow(const struct table *table, char **rows, size_t n, size_t *room, struct error *err)
{
        size_t more = *room ? *room * 2 : 8;
        char *bigger;

        if (n < *room)
                return 0;
        bigger = n < ROWS_MAX ? reallocarray(*rows, more, table->row_size) : NULL;
        if (!bigger)
                return fail(err, ENOMEM, "no memory for %zu rows of the catalog", more);
        *rows = bigger;
        *room = more;
        return 0;
}

static int select_all(struct catalog *catalog, const struct table *table, sqlite3_stmt *statement,
        char **rows, size_t *n, struct error *err)
{
        size_t room = 0;
        int code, r;

        while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
                r = grow(table, rows, *n, &room, err);
                if (r == 0)
                        r = read_row(catalog, table, statement, *rows + *n * table->row_size, err);
                if (r < 0)
                        return r;
                (*n)++;
        }
        return code == SQLITE_DONE ? 0
                                   : catalog_fail(catalog, code, "cannot read the catalog", err);
}

int rows_select(struct catalog *catalog, const struct table *table, const char *tail,
        const struct value *values, size_t n_values, void **ret, size_t *ret_n, struct error *err)
{
        pthread_mutex_t *lock _cleanup_(cleanup_unlock) = catalog_lock(catalog);
        _cleanup_(statement_rest) sqlite3_stmt *statement = NULL;
        struct text text = {.used = 0};
        char *rows = NULL;
        size_t n = 0;
        int r;

        (void)lock;
        add(&text, "SELECT ");
        add_names(&text, table);
        add(&text, " FROM %s %s", table->name, tail);
        r = ready(catalog, text.sql, values, n_values, &statement, err);
        if (r == 0)
                r = select_all(catalog, table, statement, &rows, &n, err);
        if (r < 0) {
                rows_free(table, rows, n);
                return r;
        }
        *ret = rows;
        *ret_n = n;
        return 0;
}

int rows_find(struct catalog *catalog, const struct table *table, const char *tail,
        const struct value *values, size_t n_values, const char *name, void *ret, struct error *err)
{
        void *rows = NULL;
        size_t n = 0;
        int r = rows_select(catalog, table, tail, values, n_values, &rows, &n, err);

        if (r < 0)
                return r;
        if (n == 0) {
                rows_free(table, rows, n);
                return fail(err, ENOENT, "there is no %s '%s'", table->what, name);
        }
        memcpy(ret, rows, table->row_size);
        memset(rows, 0, table->row_size); /* its strings are the caller's now */
        rows_free(table, rows, n);
        return 0;
}

/* ---- insert, update, delete ---- */

static int run_row(struct catalog *catalog, const struct table *table, const char *sql,
        const void *row, int *ret_changes, int64_t *ret_number, struct error *err)
{
        pthread_mutex_t *lock _cleanup_(cleanup_unlock) = catalog_lock(catalog);
        _cleanup_(statement_rest) sqlite3_stmt *statement = NULL;
        int r;

        (void)lock;
        r = ready(catalog, sql, NULL, 0, &statement, err);
        if (r < 0)
                return r;
        for (size_t i = 0; i < table->n_columns; i++)
                if (bind_column(statement, (int)i + 1, &table->columns[i], row) != SQLITE_OK)
                        return fail(err, ENOMEM, "no memory for a %s's row", table->what);
        r = step_change(catalog, statement, err);
        if (r < 0)
                return r;
        *ret_changes = sqlite3_changes(catalog->db);
        if (ret_number)
                *ret_number = sqlite3_last_insert_rowid(catalog->db);
        return 0;
}

int rows_insert(struct catalog *catalog, const struct table *table, const void *row,
        int64_t *ret_number, struct error *err)
{
        struct text text = {.used = 0};
        int changes;

        add(&text, "INSERT INTO %s (", table->name);
        add_names(&text, table);
        add(&text, ") VALUES (");
        for (size_t i = 0; i < table->n_columns; i++)
                add(&text, "%s?%zu", i ? ", " : "", i + 1);
        add(&text, ")");
        return run_row(catalog, table, text.sql, row, &changes, ret_number, err);
}

int rows_update(
        struct catalog *catalog, const struct table *table, const void *row, struct error *err)
{
        struct text text = {.used = 0};
        int changes = 0, r;

        add(&text, "UPDATE %s SET ", table->name);
        add_equations(&text, table, table->n_keys, table->n_columns, ", ");
        add(&text, " WHERE ");
        add_equations(&text, table, 0, table->n_keys, " AND ");
        r = run_row(catalog, table, text.sql, row, &changes, NULL, err);
        if (r == 0 && changes == 0)
                return fail(err, ENOENT, "the %s is no longer in the catalog", table->what);
        return r;
}

int rows_delete(
        struct catalog *catalog, const struct table *table, struct value key, struct error *err)
{
        struct text text = {.used = 0};
        int changes = 0, r;

        add(&text, "DELETE FROM %s WHERE \"%s\" = ?1", table->name, table->columns[0].name);
        r = rows_run(catalog, text.sql, &key, 1, &changes, err);
        if (r == 0 && changes == 0)
                return fail(err, ENOENT, "the %s is no longer in the catalog", table->what);
        return r;
}
