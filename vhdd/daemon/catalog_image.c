/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/catalog_internal.h"

static const struct column columns[] = {
        COLUMN(image_row, path, COLUMN_TEXT),
        COLUMN(image_row, device, COLUMN_UINT64),
        COLUMN(image_row, inode, COLUMN_UINT64),
        COLUMN(image_row, birth_ns, COLUMN_INT64),
        COLUMN(image_row, uuid, COLUMN_UUID),
        COLUMN(image_row, parent, COLUMN_TEXT),
        COLUMN(image_row, format, COLUMN_WORD),
        COLUMN(image_row, made_by_us, COLUMN_BOOL),
        COLUMN(image_row, state, COLUMN_WORD),
        COLUMN(image_row, delete_after_us, COLUMN_INT64),
        COLUMN(image_row, sealed_size, COLUMN_UINT64),
        COLUMN(image_row, sealed_mtime_ns, COLUMN_INT64),
};
static const struct table table = TABLE("image", "image", image_row, columns, 1);

void image_row_done(struct image_row *row)
{
        row_done(&table, row);
}

struct image_row *image_rows_free(struct image_row *rows, size_t n)
{
        return rows_free(&table, rows, n);
}

int catalog_image_list(struct catalog *catalog, const char *state, struct image_row **ret,
        size_t *ret_n, struct error *err)
{
        if (!state)
                return rows_select(
                        catalog, &table, "ORDER BY path", NULL, 0, (void **)ret, ret_n, err);
        return rows_select(catalog, &table, "WHERE state = ?1 ORDER BY path",
                VALUES(TEXT_VALUE(state)), (void **)ret, ret_n, err);
}

int catalog_image_children(struct catalog *catalog, const char *path, struct image_row **ret,
        size_t *ret_n, struct error *err)
{
        return rows_select(catalog, &table, "WHERE parent = ?1 ORDER BY path",
                VALUES(TEXT_VALUE(path)), (void **)ret, ret_n, err);
}

int catalog_image_find(
        struct catalog *catalog, const char *path, struct image_row *ret, struct error *err)
{
        return rows_find(
                catalog, &table, "WHERE path = ?1", VALUES(TEXT_VALUE(path)), path, ret, err);
}

int catalog_image_insert(struct catalog *catalog, const struct image_row *row, struct error *err)
{
        return rows_insert(catalog, &table, row, NULL, err);
}

int catalog_image_update(struct catalog *catalog, const struct image_row *row, struct error *err)
{
        return rows_update(catalog, &table, row, err);
}

int catalog_image_put(struct catalog *catalog, const struct image_row *row, struct error *err)
{
        int r = catalog_image_update(catalog, row, err);

        return r == -ENOENT ? catalog_image_insert(catalog, row, err) : r;
}

int catalog_image_delete(struct catalog *catalog, const char *path, struct error *err)
{
        return rows_delete(catalog, &table, TEXT_VALUE(path), err);
}

int catalog_names_path(struct catalog *catalog, const char *path, bool *ret, struct error *err)
{
        int64_t named = 0;
        int r = rows_number(catalog,
                "SELECT EXISTS (SELECT 1 FROM disk WHERE file = ?1)"
                " OR EXISTS (SELECT 1 FROM snapshot_disk WHERE file = ?1)"
                " OR EXISTS (SELECT 1 FROM snapshot WHERE memory = ?1)"
                " OR EXISTS (SELECT 1 FROM image WHERE path = ?1)",
                VALUES(TEXT_VALUE(path)), &named, err);

        if (r == 0)
                *ret = named != 0;
        return r;
}
