/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_internal.h - rows of SQLite as structs of C, for the catalog's own files.
 *
 * A kind of row is a struct and a table of its columns; everything that reads, binds, inserts,
 * updates and ends such rows is generic over that table (catalog_rows.c).
 *
 * Units      as catalog.h.
 * Ownership  rows_select hands out a list that rows_free ends.
 * Errors     as catalog.h. What SQLite says becomes one of our sentences in catalog_fail().
 * Threads    these take the catalog's lock themselves, unless _locked.
 */
#pragma once

#include <sqlite3.h>
#include <stdio.h>

#include "vhdd/daemon/catalog.h"

enum column_type {
        COLUMN_TEXT,   /* char *; NULL is NULL */
        COLUMN_WORD,   /* char[size]; "" is NULL */
        COLUMN_INT,    /* int */
        COLUMN_INT64,  /* int64_t */
        COLUMN_UINT64, /* uint64_t, kept as the int64_t of the same bits */
        COLUMN_BOOL,   /* bool */
        COLUMN_UUID,   /* uint8_t[16] */
        COLUMN_NUMBER, /* int64_t that SQLite gives to a new row; 0: not yet given */
};

struct column {
        const char *name;
        enum column_type type;
        size_t offset, size; /* in the row's struct */
};

#define COLUMN(row, field, type)                                                                   \
        {                                                                                          \
#field, type, offsetof(struct row, field), sizeof(((struct row *)0)->field)        \
        }

/* A kind of row. The first n_keys columns say which row it is. */
struct table {
        const char *name;
        const char *what; /* in sentences: "vm", "disk" */
        size_t row_size;
        const struct column *columns;
        size_t n_columns, n_keys;
};

#define TABLE(name_, what_, row_, columns_, n_keys_)                                               \
        {                                                                                          \
                .name = name_, .what = what_, .row_size = sizeof(struct row_),                     \
                .columns = columns_, .n_columns = sizeof(columns_) / sizeof(columns_[0]),          \
                .n_keys = n_keys_                                                                  \
        }

/* A value in a condition; one that is NULL has no place in any. */
struct value {
        const char *text; /* NULL: it is the number */
        int64_t number;
};

#define TEXT_VALUE(t)   ((struct value){.text = (t)})
#define NUMBER_VALUE(n) ((struct value){.number = (n)})
/* Two arguments: the values, and how many there are. */
#define VALUES(...)                                                                                \
        ((struct value[]){__VA_ARGS__}),                                                           \
                sizeof((struct value[]){__VA_ARGS__}) / sizeof(struct value)

/* @tail: what stands behind "SELECT columns FROM table ", with ?1 .. for the values. */
int rows_select(struct catalog *catalog, const struct table *table, const char *tail,
        const struct value *values, size_t n_values, void **ret, size_t *ret_n, struct error *err);
/* The first of them into *ret; -ENOENT "there is no WHAT 'NAME'". */
int rows_find(struct catalog *catalog, const struct table *table, const char *tail,
        const struct value *values, size_t n_values, const char *name, void *ret,
        struct error *err);
/* *ret_number (may be NULL): the number SQLite gave it. */
int rows_insert(struct catalog *catalog, const struct table *table, const void *row,
        int64_t *ret_number, struct error *err);
int rows_update(
        struct catalog *catalog, const struct table *table, const void *row, struct error *err);
int rows_delete(
        struct catalog *catalog, const struct table *table, struct value key, struct error *err);
/* Any other statement that answers no rows. *ret_changes (may be NULL): rows it changed. */
int rows_run(struct catalog *catalog, const char *sql, const struct value *values, size_t n_values,
        int *ret_changes, struct error *err);
/* A statement that answers one number. */
int rows_number(struct catalog *catalog, const char *sql, const struct value *values,
        size_t n_values, int64_t *ret, struct error *err);
void row_done(const struct table *table, void *row);
void *rows_free(const struct table *table, void *rows, size_t n);

#define STATEMENTS_MAX 96u /* each text below is prepared once */

struct catalog {
        /* immutable after open */
        sqlite3 *db;
        struct fs *fs;
        char *path;

        pthread_mutex_t lock; /* held over a whole transaction */

        /* guarded by lock */
        bool failed; /* a commit's outcome is unknown */
        struct {
                char *sql;
                sqlite3_stmt *statement;
        } statements[STATEMENTS_MAX];
        size_t n_statements;
};

/* The lock, or NULL if this thread's transaction holds it: for _cleanup_(cleanup_unlock). */
pthread_mutex_t *catalog_lock(struct catalog *catalog);
/* -EIO if the catalog has failed. */
int catalog_check_locked(struct catalog *catalog, struct error *err);
/* A statement, ready to be bound; it belongs to the catalog. */
int catalog_prepare_locked(
        struct catalog *catalog, const char *sql, sqlite3_stmt **ret, struct error *err);
/* What SQLite's @code means to a person. @doing: "cannot change the catalog". */
int catalog_fail(struct catalog *catalog, int code, const char *doing, struct error *err);
/* Brings the schema to this version's (catalog_schema.c). */
int catalog_migrate(struct catalog *catalog, struct error *err);
