/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/catalog_internal.h"

static const struct column columns[] = {
        COLUMN(snapshot_row, id, COLUMN_WORD),
        COLUMN(snapshot_row, vm, COLUMN_WORD),
        COLUMN(snapshot_row, name, COLUMN_TEXT),
        COLUMN(snapshot_row, parent, COLUMN_WORD),
        COLUMN(snapshot_row, created_us, COLUMN_INT64),
        COLUMN(snapshot_row, note, COLUMN_TEXT),
        COLUMN(snapshot_row, settings, COLUMN_TEXT),
        COLUMN(snapshot_row, state, COLUMN_WORD),
        COLUMN(snapshot_row, memory, COLUMN_TEXT),
        COLUMN(snapshot_row, consistency, COLUMN_WORD),
};
static const struct table table = TABLE("snapshot", "snapshot", snapshot_row, columns, 1);

static const struct column disk_columns[] = {
        COLUMN(snapshot_disk_row, snapshot, COLUMN_WORD),
        COLUMN(snapshot_disk_row, disk, COLUMN_WORD),
        COLUMN(snapshot_disk_row, name, COLUMN_TEXT),
        COLUMN(snapshot_disk_row, file, COLUMN_TEXT),
        COLUMN(snapshot_disk_row, controller, COLUMN_INT),
        COLUMN(snapshot_disk_row, bus, COLUMN_INT),
        COLUMN(snapshot_disk_row, unit, COLUMN_INT),
        COLUMN(snapshot_disk_row, kind, COLUMN_WORD),
        COLUMN(snapshot_disk_row, read_only, COLUMN_BOOL),
        COLUMN(snapshot_disk_row, size, COLUMN_UINT64),
        COLUMN(snapshot_disk_row, skipped, COLUMN_BOOL),
};
static const struct table disk_table =
        TABLE("snapshot_disk", "snapshot's disk", snapshot_disk_row, disk_columns, 2);

void snapshot_row_done(struct snapshot_row *row)
{
        row_done(&table, row);
}

struct snapshot_row *snapshot_rows_free(struct snapshot_row *rows, size_t n)
{
        return rows_free(&table, rows, n);
}

int catalog_snapshot_list(struct catalog *catalog, const char *vm, struct snapshot_row **ret,
        size_t *ret_n, struct error *err)
{
        return rows_select(catalog, &table, "WHERE vm = ?1 ORDER BY created_us, name",
                VALUES(TEXT_VALUE(vm)), (void **)ret, ret_n, err);
}

int catalog_snapshot_find(struct catalog *catalog, const char *vm, const char *name_or_id,
        struct snapshot_row *ret, struct error *err)
{
        return rows_find(catalog, &table,
                "WHERE vm = ?1 AND ((name = ?2 AND state <> 'hidden') OR id = lower(?2)) "
                "ORDER BY id = lower(?2) DESC LIMIT 1",
                VALUES(TEXT_VALUE(vm), TEXT_VALUE(name_or_id)), name_or_id, ret, err);
}

int catalog_snapshot_children(struct catalog *catalog, const char *id, struct snapshot_row **ret,
        size_t *ret_n, struct error *err)
{
        return rows_select(catalog, &table, "WHERE parent = ?1 ORDER BY created_us, name",
                VALUES(TEXT_VALUE(id)), (void **)ret, ret_n, err);
}

int catalog_snapshot_insert(
        struct catalog *catalog, const struct snapshot_row *row, struct error *err)
{
        return rows_insert(catalog, &table, row, NULL, err);
}

int catalog_snapshot_update(
        struct catalog *catalog, const struct snapshot_row *row, struct error *err)
{
        return rows_update(catalog, &table, row, err);
}

int catalog_snapshot_delete(struct catalog *catalog, const char *id, struct error *err)
{
        return rows_delete(catalog, &table, TEXT_VALUE(id), err);
}

/* ---- a snapshot's disks ---- */

void snapshot_disk_row_done(struct snapshot_disk_row *row)
{
        row_done(&disk_table, row);
}

struct snapshot_disk_row *snapshot_disk_rows_free(struct snapshot_disk_row *rows, size_t n)
{
        return rows_free(&disk_table, rows, n);
}

int catalog_snapshot_disk_list(struct catalog *catalog, const char *snapshot,
        struct snapshot_disk_row **ret, size_t *ret_n, struct error *err)
{
        return rows_select(catalog, &disk_table,
                "WHERE snapshot = ?1 ORDER BY controller, bus, unit", VALUES(TEXT_VALUE(snapshot)),
                (void **)ret, ret_n, err);
}

int catalog_snapshot_disk_list_file(struct catalog *catalog, const char *file,
        struct snapshot_disk_row **ret, size_t *ret_n, struct error *err)
{
        return rows_select(catalog, &disk_table, "WHERE file = ?1 ORDER BY snapshot, disk",
                VALUES(TEXT_VALUE(file)), (void **)ret, ret_n, err);
}

int catalog_snapshot_disk_insert(
        struct catalog *catalog, const struct snapshot_disk_row *row, struct error *err)
{
        return rows_insert(catalog, &disk_table, row, NULL, err);
}

int catalog_snapshot_disk_update(
        struct catalog *catalog, const struct snapshot_disk_row *row, struct error *err)
{
        return rows_update(catalog, &disk_table, row, err);
}
