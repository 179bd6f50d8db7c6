/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/catalog_internal.h"

static const struct column columns[] = {
        COLUMN(disk_row, id, COLUMN_WORD),
        COLUMN(disk_row, vm, COLUMN_WORD),
        COLUMN(disk_row, name, COLUMN_TEXT),
        COLUMN(disk_row, file, COLUMN_TEXT),
        COLUMN(disk_row, controller, COLUMN_INT),
        COLUMN(disk_row, bus, COLUMN_INT),
        COLUMN(disk_row, unit, COLUMN_INT),
        COLUMN(disk_row, kind, COLUMN_WORD),
        COLUMN(disk_row, read_only, COLUMN_BOOL),
        COLUMN(disk_row, size, COLUMN_UINT64),
        COLUMN(disk_row, created_us, COLUMN_INT64),
};
static const struct table table = TABLE("disk", "disk", disk_row, columns, 1);

void disk_row_done(struct disk_row *row)
{
        row_done(&table, row);
}

struct disk_row *disk_rows_free(struct disk_row *rows, size_t n)
{
        return rows_free(&table, rows, n);
}

int catalog_disk_list(struct catalog *catalog, const char *vm, struct disk_row **ret, size_t *ret_n,
        struct error *err)
{
        if (!vm)
                return rows_select(catalog, &table, "ORDER BY vm, controller, bus, unit", NULL, 0,
                        (void **)ret, ret_n, err);
        return rows_select(catalog, &table, "WHERE vm = ?1 ORDER BY controller, bus, unit",
                VALUES(TEXT_VALUE(vm)), (void **)ret, ret_n, err);
}

int catalog_disk_find(struct catalog *catalog, const char *vm, const char *name_or_id,
        struct disk_row *ret, struct error *err)
{
        return rows_find(catalog, &table,
                "WHERE vm = ?1 AND (name = ?2 OR id = lower(?2)) ORDER BY id = lower(?2) DESC "
                "LIMIT 1",
                VALUES(TEXT_VALUE(vm), TEXT_VALUE(name_or_id)), name_or_id, ret, err);
}

int catalog_disk_find_file(
        struct catalog *catalog, const char *file, struct disk_row *ret, struct error *err)
{
        return rows_find(catalog, &table, "WHERE file = ?1 ORDER BY read_only LIMIT 1",
                VALUES(TEXT_VALUE(file)), file, ret, err);
}

int catalog_disk_insert(struct catalog *catalog, const struct disk_row *row, struct error *err)
{
        return rows_insert(catalog, &table, row, NULL, err);
}

int catalog_disk_update(struct catalog *catalog, const struct disk_row *row, struct error *err)
{
        return rows_update(catalog, &table, row, err);
}

int catalog_disk_delete(struct catalog *catalog, const char *id, struct error *err)
{
        return rows_delete(catalog, &table, TEXT_VALUE(id), err);
}
