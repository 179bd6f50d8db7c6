/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/catalog_internal.h"

static const struct column columns[] = {
        COLUMN(vm_row, id, COLUMN_WORD),
        COLUMN(vm_row, name, COLUMN_TEXT),
        COLUMN(vm_row, created_us, COLUMN_INT64),
        COLUMN(vm_row, settings, COLUMN_TEXT),
        COLUMN(vm_row, directory, COLUMN_TEXT),
        COLUMN(vm_row, snapshot_dir, COLUMN_TEXT),
        COLUMN(vm_row, current, COLUMN_WORD),
        COLUMN(vm_row, undo, COLUMN_TEXT),
        COLUMN(vm_row, resume, COLUMN_WORD),
        COLUMN(vm_row, is_on_by_agent, COLUMN_BOOL),
};
static const struct table table = TABLE("vm", "vm", vm_row, columns, 1);

/* All but the last two. An operation writes the row as it has read it under the vm's lock; the agent
 * says at any time whether the vm is on, and does not wait for that lock: neither may put back what
 * the other wrote. */
static const struct table table_but_on = {
        .name = "vm",
        .what = "vm",
        .row_size = sizeof(struct vm_row),
        .columns = columns,
        .n_columns = sizeof(columns) / sizeof(columns[0]) - 2,
        .n_keys = 1,
};

void vm_row_done(struct vm_row *row)
{
        row_done(&table, row);
}

struct vm_row *vm_rows_free(struct vm_row *rows, size_t n)
{
        return rows_free(&table, rows, n);
}

int catalog_vm_list(struct catalog *catalog, struct vm_row **ret, size_t *ret_n, struct error *err)
{
        return rows_select(catalog, &table, "ORDER BY name", NULL, 0, (void **)ret, ret_n, err);
}

int catalog_vm_find(
        struct catalog *catalog, const char *name_or_id, struct vm_row *ret, struct error *err)
{
        return rows_find(catalog, &table,
                "WHERE name = ?1 OR id = lower(?1) ORDER BY id = lower(?1) DESC LIMIT 1",
                VALUES(TEXT_VALUE(name_or_id)), name_or_id, ret, err);
}

int catalog_vm_insert(struct catalog *catalog, const struct vm_row *row, struct error *err)
{
        return rows_insert(catalog, &table, row, NULL, err);
}

int catalog_vm_update(struct catalog *catalog, const struct vm_row *row, struct error *err)
{
        return rows_update(catalog, &table_but_on, row, err);
}

int catalog_vm_set_on(struct catalog *catalog, const char *id, bool on, struct error *err)
{
        int changes = 0;
        int r = rows_run(catalog,
                "UPDATE vm SET is_on_by_agent = ?2, resume = CASE WHEN ?2 THEN NULL ELSE resume END"
                " WHERE id = ?1",
                VALUES(TEXT_VALUE(id), NUMBER_VALUE(on)), &changes, err);

        if (r == 0 && changes == 0)
                return fail(err, ENOENT, "there is no vm '%s'", id);
        return r;
}

int catalog_vm_set_resume(
        struct catalog *catalog, const char *id, const char *snapshot, struct error *err)
{
        int changes = 0;
        int r = snapshot ? rows_run(catalog, "UPDATE vm SET resume = ?2 WHERE id = ?1",
                                   VALUES(TEXT_VALUE(id), TEXT_VALUE(snapshot)), &changes, err)
                         : rows_run(catalog, "UPDATE vm SET resume = NULL WHERE id = ?1",
                                   VALUES(TEXT_VALUE(id)), &changes, err);

        if (r == 0 && changes == 0)
                return fail(err, ENOENT, "there is no vm '%s'", id);
        return r;
}

int catalog_vm_delete(struct catalog *catalog, const char *id, struct error *err)
{
        return rows_delete(catalog, &table, TEXT_VALUE(id), err);
}
