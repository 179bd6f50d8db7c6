/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/strangers.h"

#include <stdlib.h>
#include <string.h>

#include "base/folders.h"
#include "base/uuid.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/resolver.h"

#define MOST_AT_ONCE 1000u /* that one process reads */

int strangers_init(struct strangers *strangers, struct broker *broker, struct error *err)
{
        *strangers = (struct strangers){
                .broker = broker, .folders = json_array(), .images = json_array()};
        if (strangers->folders && strangers->images)
                return 0;
        strangers_done(strangers);
        return fail(err, ENOMEM, "no memory to look for images");
}

void strangers_done(struct strangers *strangers)
{
        json_decref(strangers->folders);
        json_decref(strangers->images);
        *strangers = (struct strangers){0};
}

/* ---- who is unknown ---- */

struct search {
        struct broker *broker;
        json_t *operations; /* the payloads of the journal */
        json_t *paths;
};

static bool mentions(const json_t *json, const char *path)
{
        const char *key;
        json_t *item;
        size_t i;

        if (json_is_string(json))
                return strcmp(json_string_value(json), path) == 0;
        json_array_foreach((json_t *)json, i, item)
        {
                if (mentions(item, path))
                        return true;
        }
        json_object_foreach((json_t *)json, key, item)
        {
                if (mentions(item, path))
                        return true;
        }
        return false;
}

static int note_unknown(void *opaque, const char *path, const char *name, struct error *err)
{
        struct search *search = opaque;
        bool known;
        int r;

        if (!name_is_image(name))
                return 0;
        r = catalog_names_path(search->broker->catalog, path, &known, err);
        if (r < 0 || known || mentions(search->operations, path))
                return r;
        if (json_array_append_new(search->paths, json_string(path)) < 0)
                broker_log(search->broker, BROKER_LOG_WARNING, NULL,
                        "'%s' is not looked at: its name is no UTF-8", path);
        return 0;
}

/* One that is gone since is as good as one that was never there. */
static int no_such_folder(void *opaque, const char *path, int why, struct error *err)
{
        (void)opaque;
        return why == ENOENT
                ? 0
                : fail_os(err, why, "cannot tell who stands on the images in '%s'", path);
}

static int load_operations(struct broker *broker, json_t *ret, struct error *err)
{
        struct operation_row *rows = NULL;
        size_t n = 0;
        int r = catalog_operation_list(broker->catalog, &rows, &n, err);

        for (size_t i = 0; i < n; i++)
                if (rows[i].payload)
                        json_array_append_new(ret, json_loads(rows[i].payload, 0, NULL));
        operation_rows_free(rows, n);
        return r;
}

/* ---- what they say ---- */

/* A sandbox may die of one of them: then each has a process of its own. */
static int read_headers(
        struct strangers *strangers, const char *folder, const json_t *paths, struct error *err)
{
        json_auto_t *images = NULL;
        struct error why = ERROR_INIT;
        json_t *path;
        size_t i;
        int r = resolve_parents(strangers->broker, folder, paths, &images, &why);

        if (r == 0)
                return json_array_extend(strangers->images, images) == 0
                        ? 0
                        : fail(err, ENOMEM, "no memory to look for images");
        if (json_array_size(paths) == 1) {
                broker_log_error(strangers->broker, NULL, &why);
                return 0;
        }
        r = 0;
        json_array_foreach((json_t *)paths, i, path)
        {
                json_auto_t *one = json_pack("[O]", path);

                if (r == 0)
                        r = one ? read_headers(strangers, folder, one, err)
                                : fail(err, ENOMEM, "no memory to look for images");
        }
        return r;
}

static int read_in_parts(
        struct strangers *strangers, const char *folder, const json_t *paths, struct error *err)
{
        size_t n = json_array_size(paths);
        int r = 0;

        for (size_t i = 0; r == 0 && i < n; i += MOST_AT_ONCE) {
                json_auto_t *part = json_array();

                for (size_t k = i; k < n && k < i + MOST_AT_ONCE; k++)
                        json_array_append(part, json_array_get(paths, k));
                r = read_headers(strangers, folder, part, err);
        }
        return r;
}

static int look_into(struct strangers *strangers, const char *folder, struct error *err)
{
        json_auto_t *operations = json_array(), *paths = json_array();
        struct search search = {
                .broker = strangers->broker, .operations = operations, .paths = paths};
        const struct folder_walk walk = {
                .opaque = &search, .file = note_unknown, .unreadable = no_such_folder};
        int r;

        if (json_has_text(strangers->folders, folder))
                return 0;
        r = operations && paths ? load_operations(strangers->broker, operations, err)
                                : fail(err, ENOMEM, "no memory to look for images");
        if (r == 0)
                r = folder_walk(folder, 0, &walk, err);
        if (r == 0)
                r = read_in_parts(strangers, folder, paths, err);
        if (r == 0 && json_array_append_new(strangers->folders, json_string(folder)) < 0)
                r = fail(err, ENOMEM, "no memory to look for images");
        return r;
}

static int look_around(
        struct strangers *strangers, const struct image_row *row, struct error *err)
{
        _cleanup_free_ char *folder = name_directory(row->path);
        struct image_row *children = NULL;
        size_t n = 0;
        int r = folder ? look_into(strangers, folder, err)
                       : fail(err, ENOMEM, "no memory for a path");

        if (r == 0)
                r = catalog_image_children(strangers->broker->catalog, row->path, &children, &n,
                        err);
        for (size_t i = 0; r == 0 && i < n; i++) {
                _cleanup_free_ char *other = name_directory(children[i].path);

                r = other ? look_into(strangers, other, err)
                          : fail(err, ENOMEM, "no memory for a path");
        }
        image_rows_free(children, n);
        return r;
}

/* ---- whom they mean ---- */

/* Raw files have no id: a child of one names it by its place alone. */
static bool may_mean(const json_t *image, const struct image_row *row)
{
        const char *text = json_string_value(json_object_get(image, "parent"));
        uint8_t parent[16];

        return text && uuid_parse(text, parent) && uuid_equal(parent, row->uuid);
}

/* It stands on the file that it finds; one that finds none, and asks for this id, may be ours. */
static bool stands_on(
        struct strangers *strangers, const char *path, const struct image_row *row)
{
        const struct broker_options *options = &strangers->broker->options;
        struct resolved_layer *layers = NULL;
        bool found = false;
        size_t n = 0;
        int r = resolve_chain(strangers->broker, path, "vhd", options->image_roots,
                options->n_image_roots, &layers, &n, NULL);

        for (size_t i = 1; r == 0 && i < n; i++)
                found |= layers[i].device == row->device && layers[i].inode == row->inode;
        resolved_layers_free(layers, n);
        return found || (r < 0 && !uuid_is_zero(row->uuid));
}

int strangers_find(struct strangers *strangers, const struct image_row *row, const json_t *but,
        char **ret, struct error *err)
{
        json_t *image;
        size_t i;
        int r = look_around(strangers, row, err);

        *ret = NULL;
        if (r < 0)
                return r;
        json_array_foreach(strangers->images, i, image)
        {
                const char *path = json_string_value(json_object_get(image, "path"));

                if (json_has_text(but, path) || !may_mean(image, row) ||
                        !stands_on(strangers, path, row))
                        continue;
                *ret = strdup(path);
                return *ret ? 0 : fail(err, ENOMEM, "no memory for a path");
        }
        return 0;
}
