/* SPDX-License-Identifier: Apache-2.0 */
/* Operations under way, and jobs: both are numbered by SQLite. */
#include "vhdd/daemon/catalog_internal.h"

static const struct column columns[] = {
        COLUMN(operation_row, id, COLUMN_NUMBER),
        COLUMN(operation_row, kind, COLUMN_TEXT),
        COLUMN(operation_row, vm, COLUMN_WORD),
        COLUMN(operation_row, state, COLUMN_WORD),
        COLUMN(operation_row, payload, COLUMN_TEXT),
};
static const struct table table = TABLE("operation", "operation", operation_row, columns, 1);

static const struct column job_columns[] = {
        COLUMN(job_row, id, COLUMN_NUMBER),
        COLUMN(job_row, kind, COLUMN_TEXT),
        COLUMN(job_row, vm, COLUMN_WORD),
        COLUMN(job_row, payload, COLUMN_TEXT),
        COLUMN(job_row, state, COLUMN_WORD),
        COLUMN(job_row, created_us, COLUMN_INT64),
};
static const struct table job_table = TABLE("job", "job", job_row, job_columns, 1);

void operation_row_done(struct operation_row *row)
{
        row_done(&table, row);
}

struct operation_row *operation_rows_free(struct operation_row *rows, size_t n)
{
        return rows_free(&table, rows, n);
}

int catalog_operation_list(
        struct catalog *catalog, struct operation_row **ret, size_t *ret_n, struct error *err)
{
        return rows_select(catalog, &table, "ORDER BY id", NULL, 0, (void **)ret, ret_n, err);
}

int catalog_operation_begin(struct catalog *catalog, const char *kind, const char *vm,
        const char *payload, int64_t *ret_id, struct error *err)
{
        struct operation_row row = {
                .kind = (char *)kind, .state = "begin", .payload = (char *)payload};

        if (vm)
                snprintf(row.vm, sizeof(row.vm), "%s", vm);
        return rows_insert(catalog, &table, &row, ret_id, err);
}

static int set_payload(struct catalog *catalog, const char *sql, int64_t id, const char *payload,
        struct error *err)
{
        int changes = 0;
        int r = rows_run(
                catalog, sql, VALUES(NUMBER_VALUE(id), TEXT_VALUE(payload)), &changes, err);

        if (r == 0 && changes == 0)
                return fail(err, ENOENT, "the operation is no longer in the catalog");
        return r;
}

int catalog_operation_payload(
        struct catalog *catalog, int64_t id, const char *payload, struct error *err)
{
        return set_payload(catalog,
                "UPDATE operation SET payload = ?2 WHERE id = ?1 AND state = 'begin'", id, payload,
                err);
}

int catalog_operation_finish_state(
        struct catalog *catalog, int64_t id, const char *payload, struct error *err)
{
        return set_payload(catalog,
                "UPDATE operation SET state = 'finish', payload = ?2 WHERE id = ?1", id, payload,
                err);
}

int catalog_operation_end(struct catalog *catalog, int64_t id, struct error *err)
{
        return rows_delete(catalog, &table, NUMBER_VALUE(id), err);
}

/* ---- jobs ---- */

void job_row_done(struct job_row *row)
{
        row_done(&job_table, row);
}

struct job_row *job_rows_free(struct job_row *rows, size_t n)
{
        return rows_free(&job_table, rows, n);
}

int catalog_job_list(struct catalog *catalog, const char *vm, struct job_row **ret, size_t *ret_n,
        struct error *err)
{
        if (!vm)
                return rows_select(
                        catalog, &job_table, "ORDER BY id", NULL, 0, (void **)ret, ret_n, err);
        return rows_select(catalog, &job_table, "WHERE vm = ?1 ORDER BY id", VALUES(TEXT_VALUE(vm)),
                (void **)ret, ret_n, err);
}

int catalog_job_find(struct catalog *catalog, int64_t id, struct job_row *ret, struct error *err)
{
        char name[24];

        snprintf(name, sizeof(name), "%lld", (long long)id);
        return rows_find(
                catalog, &job_table, "WHERE id = ?1", VALUES(NUMBER_VALUE(id)), name, ret, err);
}

int catalog_job_insert(
        struct catalog *catalog, const struct job_row *row, int64_t *ret_id, struct error *err)
{
        struct job_row numbered = *row;

        numbered.id = 0;
        return rows_insert(catalog, &job_table, &numbered, ret_id, err);
}

int catalog_job_update(struct catalog *catalog, const struct job_row *row, struct error *err)
{
        return rows_update(catalog, &job_table, row, err);
}

int catalog_job_delete(struct catalog *catalog, int64_t id, struct error *err)
{
        return rows_delete(catalog, &job_table, NUMBER_VALUE(id), err);
}
