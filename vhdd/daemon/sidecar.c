/* SPDX-License-Identifier: Apache-2.0 */
/* {"format": "vhdd-sidecar", "version": 1, "vm": {...}, "disks": [...], "snapshots": [{..., "disks":
 * [...]}], "images": [...], "exported": true}: a row is an object, a member is a column with '-' for '_'.
 */
#include "vhdd/daemon/sidecar.h"

#include <string.h>

#define FORMAT_NAME    "vhdd-sidecar"
#define FORMAT_VERSION 1
#define ROWS_MAX       (1u << 20)
#define TEXT_SIZE_MAX  (1u << 20)

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for a sidecar");
}

void sidecar_done(struct sidecar *sidecar)
{
        vm_row_done(&sidecar->vm);
        disk_rows_free(sidecar->disks, sidecar->n_disks);
        snapshot_rows_free(sidecar->snapshots, sidecar->n_snapshots);
        snapshot_disk_rows_free(sidecar->held, sidecar->n_held);
        image_rows_free(sidecar->images, sidecar->n_images);
        *sidecar = (struct sidecar){0};
}

/* ---- from the catalog ---- */

static void *append_row(void *rows, size_t *n, size_t size)
{
        char *bigger = *n < ROWS_MAX ? reallocarray(rows, *n + 1, size) : NULL;

        if (bigger)
                memset(bigger + (*n)++ * size, 0, size);
        return bigger;
}

static int collect_held(
        struct catalog *catalog, struct sidecar *sidecar, const char *snapshot, struct error *err)
{
        struct snapshot_disk_row *rows = NULL, *all;
        size_t n = 0;
        int r = catalog_snapshot_disk_list(catalog, snapshot, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                all = append_row(sidecar->held, &sidecar->n_held, sizeof(*all));
                if (!all) {
                        r = no_memory(err);
                        break;
                }
                sidecar->held = all;
                all[sidecar->n_held - 1] = rows[i];
                memset(&rows[i], 0, sizeof(rows[i]));
        }
        snapshot_disk_rows_free(rows, n);
        return r;
}

/* Images in the order of their finding: a chain from its leaf down to what is there already. */
static int collect_chain(struct catalog *catalog, struct sidecar *sidecar, json_t *seen,
        const char *path, struct error *err)
{
        while (path && !json_object_get(seen, path)) {
                struct image_row row, *all;
                int r = catalog_image_find(catalog, path, &row, err);

                /* A pass-through disk is no image of ours. */
                if (r == -ENOENT)
                        return 0;
                if (r < 0)
                        return r;
                all = append_row(sidecar->images, &sidecar->n_images, sizeof(*all));
                if (!all) {
                        image_row_done(&row);
                        return no_memory(err);
                }
                sidecar->images = all;
                all[sidecar->n_images - 1] = row;
                if (json_object_set_new_nocheck(seen, row.path, json_true()) < 0)
                        return no_memory(err);
                path = row.parent;
        }
        return 0;
}

int sidecar_collect(struct catalog *catalog, const char *vm, struct sidecar *ret, struct error *err)
{
        _cleanup_(sidecar_done) struct sidecar sidecar = {0};
        json_auto_t *seen = json_object();
        int r = seen ? catalog_vm_find(catalog, vm, &sidecar.vm, err) : no_memory(err);

        if (r == 0)
                r = catalog_disk_list(
                        catalog, sidecar.vm.id, &sidecar.disks, &sidecar.n_disks, err);
        if (r == 0)
                r = catalog_snapshot_list(
                        catalog, sidecar.vm.id, &sidecar.snapshots, &sidecar.n_snapshots, err);
        for (size_t i = 0; r == 0 && i < sidecar.n_snapshots; i++)
                r = collect_held(catalog, &sidecar, sidecar.snapshots[i].id, err);
        for (size_t i = 0; r == 0 && i < sidecar.n_disks; i++)
                r = collect_chain(catalog, &sidecar, seen, sidecar.disks[i].file, err);
        for (size_t i = 0; r == 0 && i < sidecar.n_held; i++)
                r = collect_chain(catalog, &sidecar, seen, sidecar.held[i].file, err);
        if (r < 0)
                return r;
        *ret = sidecar;
        sidecar = (struct sidecar){0};
        return 0;
}

/* ---- to JSON ---- */

/* "x.vhd" for DIRECTORY/x.vhd */
static json_t *path_to_json(const char *path, const char *directory)
{
        size_t n = directory ? strlen(directory) : 0;

        if (!path)
                return json_null();
        if (n > 0 && strncmp(path, directory, n) == 0 && path[n] == '/' && path[n + 1])
                return json_string(path + n + 1);
        return json_string(path);
}

static json_t *text_to_json(const char *text)
{
        return text && text[0] ? json_string(text) : json_null();
}

/* The settings are JSON already; what cannot be read stays a text. */
static json_t *settings_to_json(const char *text)
{
        json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);

        return json ? json : json_string(text);
}

static json_t *vm_to_json(const struct vm_row *row)
{
        return json_pack("{s:s, s:s, s:I, s:o, s:o, s:o}", "id", row->id, "name", row->name,
                "created-us", (json_int_t)row->created_us, "settings",
                settings_to_json(row->settings), "snapshot-dir", text_to_json(row->snapshot_dir),
                "current", text_to_json(row->current));
}

static json_t *disk_to_json(const struct disk_row *row, const char *directory)
{
        return json_pack("{s:s, s:s, s:o, s:i, s:i, s:i, s:s, s:b, s:I, s:I}", "id", row->id,
                "name", row->name, "file", path_to_json(row->file, directory), "controller",
                row->controller, "bus", row->bus, "unit", row->unit, "kind", row->kind, "read-only",
                row->read_only, "size", (json_int_t)row->size, "created-us",
                (json_int_t)row->created_us);
}

static json_t *held_to_json(const struct snapshot_disk_row *row, const char *directory)
{
        return json_pack("{s:s, s:s, s:o, s:i, s:i, s:i, s:s, s:b, s:I, s:b}", "disk", row->disk,
                "name", row->name, "file", path_to_json(row->file, directory), "controller",
                row->controller, "bus", row->bus, "unit", row->unit, "kind", row->kind, "read-only",
                row->read_only, "size", (json_int_t)row->size, "skipped", row->skipped);
}

static json_t *snapshot_to_json(
        const struct sidecar *sidecar, const struct snapshot_row *row, const char *directory)
{
        json_t *disks = json_array();

        for (size_t i = 0; i < sidecar->n_held; i++)
                if (strcmp(sidecar->held[i].snapshot, row->id) == 0)
                        json_array_append_new(disks, held_to_json(&sidecar->held[i], directory));
        return json_pack("{s:s, s:s, s:o, s:I, s:o, s:o, s:s, s:o, s:o, s:o}", "id", row->id,
                "name", row->name, "parent", text_to_json(row->parent), "created-us",
                (json_int_t)row->created_us, "note", text_to_json(row->note), "settings",
                settings_to_json(row->settings), "state", row->state, "memory",
                path_to_json(row->memory, directory), "consistency",
                text_to_json(row->consistency[0] ? row->consistency : NULL), "disks", disks);
}

static json_t *image_to_json(const struct image_row *row, const char *directory)
{
        char id[UUID_TEXT_SIZE];

        return json_pack("{s:o, s:s, s:o, s:s, s:b, s:s, s:I, s:I}", "path",
                path_to_json(row->path, directory), "uuid", uuid_format(row->uuid, id), "parent",
                path_to_json(row->parent, directory), "format", row->format, "made-by-us",
                row->made_by_us, "state", row->state, "sealed-size", (json_int_t)row->sealed_size,
                "sealed-mtime-ns", (json_int_t)row->sealed_mtime_ns);
}

int sidecar_to_json(
        const struct sidecar *sidecar, const char *directory, json_t **ret, struct error *err)
{
        json_t *disks = json_array(), *snapshots = json_array(), *images = json_array();
        json_t *json;

        for (size_t i = 0; i < sidecar->n_disks; i++)
                json_array_append_new(disks, disk_to_json(&sidecar->disks[i], directory));
        for (size_t i = 0; i < sidecar->n_snapshots; i++)
                json_array_append_new(
                        snapshots, snapshot_to_json(sidecar, &sidecar->snapshots[i], directory));
        for (size_t i = 0; i < sidecar->n_images; i++)
                json_array_append_new(images, image_to_json(&sidecar->images[i], directory));
        json = json_pack("{s:s, s:i, s:o, s:o, s:o, s:o}", "format", FORMAT_NAME, "version",
                FORMAT_VERSION, "vm", vm_to_json(&sidecar->vm), "disks", disks, "snapshots",
                snapshots, "images", images);
        if (!json || json_array_size(disks) != sidecar->n_disks ||
                json_array_size(snapshots) != sidecar->n_snapshots ||
                json_array_size(images) != sidecar->n_images) {
                json_decref(json);
                return fail(err, EINVAL,
                        "the vm '%s' cannot be written down: no memory, or a name that is no UTF-8",
                        sidecar->vm.name);
        }
        if (sidecar->exported) {
                json_object_set_new(json, "exported", json_true());
                /* Only of files that nobody writes to since: memory and disks are of one moment. */
                json_object_set_new(json_object_get(json, "vm"), "resume",
                        text_to_json(sidecar->vm.resume));
        }
        *ret = json;
        return 0;
}

/* ---- from JSON ---- */

/* What stands where, for the sentence; the first thing that is wrong stays. */
struct reader {
        const char *directory, *what;
        struct error *err;
        int r;
};

static void wrong(struct reader *reader, const char *member)
{
        if (reader->r == 0)
                reader->r = fail(reader->err, EUCLEAN, "the sidecar's %s has a bad '%s'",
                        reader->what, member);
}

static char *read_text(struct reader *reader, const json_t *object, const char *member, bool must)
{
        const json_t *value = json_object_get(object, member);
        const char *text = json_string_value(value);
        char *copy;

        if (!text && !must && (!value || json_is_null(value)))
                return NULL;
        if (!text || json_string_length(value) != strlen(text) ||
                json_string_length(value) > TEXT_SIZE_MAX) {
                wrong(reader, member);
                return NULL;
        }
        copy = strdup(text);
        if (!copy && reader->r == 0)
                reader->r = no_memory(reader->err);
        return copy;
}

/* As vhdd/daemon/names.h has it. */
static bool is_name(const char *text)
{
        for (const char *p = text; *p; p++)
                if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '/' || *p == '@')
                        return false;
        return text[0] && strlen(text) <= 128 && strcmp(text, "now") != 0 &&
                strcmp(text, ".") != 0 && strcmp(text, "..") != 0;
}

static char *read_name(struct reader *reader, const json_t *object, const char *member)
{
        char *name = read_text(reader, object, member, true);

        if (name && !is_name(name))
                wrong(reader, member);
        return name;
}

static void read_word(struct reader *reader, const json_t *object, const char *member, char *ret,
        size_t size, bool must)
{
        _cleanup_free_ char *text = read_text(reader, object, member, must);

        if (text && strlen(text) >= size)
                wrong(reader, member);
        else if (text)
                memcpy(ret, text, strlen(text) + 1);
}

/* One of @choices, which a blank parts. */
static void read_choice(struct reader *reader, const json_t *object, const char *member, char *ret,
        size_t size, const char *choices)
{
        const char *found;
        size_t n;

        read_word(reader, object, member, ret, size, true);
        n = strlen(ret);
        for (found = strstr(choices, ret); n && found; found = strstr(found + 1, ret))
                if ((found == choices || found[-1] == ' ') && (found[n] == ' ' || !found[n]))
                        return;
        wrong(reader, member);
}

static void read_id(struct reader *reader, const json_t *object, const char *member,
        char ret[UUID_TEXT_SIZE], bool must)
{
        char text[UUID_TEXT_SIZE] = "";
        uint8_t id[16];

        read_word(reader, object, member, text, sizeof(text), must);
        if (text[0] && uuid_parse(text, id))
                uuid_format(id, ret);
        else if (text[0] || must)
                wrong(reader, member);
}

static bool goes_up(const char *path)
{
        for (const char *part = path; part; part = strchr(part, '/')) {
                part += part[0] == '/';
                if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || !part[2]))
                        return true;
        }
        return false;
}

/* Absolute, or beneath the sidecar's folder; never upward. */
static char *read_path(struct reader *reader, const json_t *object, const char *member, bool must)
{
        _cleanup_free_ char *text = read_text(reader, object, member, must);
        char *path = NULL;

        if (!text)
                return NULL;
        if (!text[0] || goes_up(text) || strlen(text) > 4000 ||
                (text[0] != '/' && !reader->directory)) {
                wrong(reader, member);
                return NULL;
        }
        if (text[0] == '/')
                return TAKE_PTR(text);
        if (asprintf(&path, "%s/%s", reader->directory, text) < 0)
                reader->r = no_memory(reader->err);
        return path;
}

static int64_t read_number(struct reader *reader, const json_t *object, const char *member,
        int64_t least, int64_t most)
{
        const json_t *value = json_object_get(object, member);
        json_int_t number = json_integer_value(value);

        if (!json_is_integer(value) || number < least || number > most) {
                wrong(reader, member);
                return least;
        }
        return number;
}

static char *read_settings(struct reader *reader, const json_t *object)
{
        const json_t *value = json_object_get(object, "settings");
        char *text;

        if (!json_is_object(value)) {
                wrong(reader, "settings");
                return NULL;
        }
        text = json_dumps(value, JSON_COMPACT);
        if (!text && reader->r == 0)
                reader->r = no_memory(reader->err);
        return text;
}

static void read_place(
        struct reader *reader, const json_t *object, int *controller, int *bus, int *unit)
{
        *controller = (int)read_number(reader, object, "controller", 0, 1);
        *bus = (int)read_number(reader, object, "bus", 0, *controller ? 3 : 1);
        *unit = (int)read_number(reader, object, "unit", 0, *controller ? 63 : 1);
}

static void read_vm(struct reader *reader, const json_t *json, struct vm_row *row)
{
        reader->what = "vm";
        read_id(reader, json, "id", row->id, true);
        row->name = read_name(reader, json, "name");
        row->created_us = read_number(reader, json, "created-us", 0, INT64_MAX);
        row->settings = read_settings(reader, json);
        row->snapshot_dir = read_text(reader, json, "snapshot-dir", false);
        read_id(reader, json, "current", row->current, false);
        row->directory = reader->directory ? strdup(reader->directory) : NULL;
}

static void read_disk(struct reader *reader, const json_t *json, struct disk_row *row)
{
        reader->what = "disk";
        read_id(reader, json, "id", row->id, true);
        row->name = read_name(reader, json, "name");
        row->file = read_path(reader, json, "file", true);
        read_place(reader, json, &row->controller, &row->bus, &row->unit);
        read_choice(reader, json, "kind", row->kind, sizeof(row->kind), "vhd raw pass-through");
        row->read_only = json_is_true(json_object_get(json, "read-only"));
        row->size = (uint64_t)read_number(reader, json, "size", 0, INT64_MAX);
        row->created_us = read_number(reader, json, "created-us", 0, INT64_MAX);
}

static void read_held(struct reader *reader, const json_t *json, struct snapshot_disk_row *row)
{
        reader->what = "snapshot's disk";
        read_id(reader, json, "disk", row->disk, true);
        row->name = read_name(reader, json, "name");
        row->file = read_path(reader, json, "file", false);
        read_place(reader, json, &row->controller, &row->bus, &row->unit);
        read_choice(reader, json, "kind", row->kind, sizeof(row->kind), "vhd raw pass-through");
        row->read_only = json_is_true(json_object_get(json, "read-only"));
        row->size = (uint64_t)read_number(reader, json, "size", 0, INT64_MAX);
        row->skipped = json_is_true(json_object_get(json, "skipped"));
}

static void read_snapshot(struct reader *reader, const json_t *json, struct snapshot_row *row)
{
        reader->what = "snapshot";
        read_id(reader, json, "id", row->id, true);
        row->name = read_name(reader, json, "name");
        read_id(reader, json, "parent", row->parent, false);
        row->created_us = read_number(reader, json, "created-us", 0, INT64_MAX);
        row->note = read_text(reader, json, "note", false);
        row->settings = read_settings(reader, json);
        read_choice(
                reader, json, "state", row->state, sizeof(row->state), "pending committed hidden");
        row->memory = read_path(reader, json, "memory", false);
        if (json_is_string(json_object_get(json, "consistency")))
                read_choice(reader, json, "consistency", row->consistency, sizeof(row->consistency),
                        "crash filesystem memory");
}

static void read_image(struct reader *reader, const json_t *json, struct image_row *row)
{
        char id[UUID_TEXT_SIZE] = "";

        reader->what = "image";
        row->path = read_path(reader, json, "path", true);
        read_id(reader, json, "uuid", id, true);
        if (!uuid_parse(id, row->uuid))
                wrong(reader, "uuid");
        row->parent = read_path(reader, json, "parent", false);
        read_choice(reader, json, "format", row->format, sizeof(row->format), "vhd raw");
        row->made_by_us = json_is_true(json_object_get(json, "made-by-us"));
        read_choice(reader, json, "state", row->state, sizeof(row->state),
                "in-use hidden discarded detached");
        row->sealed_size = (uint64_t)read_number(reader, json, "sealed-size", 0, INT64_MAX);
        row->sealed_mtime_ns = read_number(reader, json, "sealed-mtime-ns", INT64_MIN, INT64_MAX);
}

/* An array's elements into rows, each by @read. */
#define READ_ROWS(reader, array, rows, n, read)                                                    \
        do {                                                                                       \
                for (size_t i_ = 0; (reader)->r == 0 && i_ < json_array_size(array); i_++) {       \
                        void *all_ = append_row(rows, &(n), sizeof(*(rows)));                      \
                                                                                                   \
                        if (!all_) {                                                               \
                                (reader)->r = no_memory((reader)->err);                            \
                                break;                                                             \
                        }                                                                          \
                        (rows) = all_;                                                             \
                        read(reader, json_array_get(array, i_), &(rows)[(n)-1]);                   \
                }                                                                                  \
        } while (0)

static void read_snapshots(struct reader *reader, const json_t *array, struct sidecar *sidecar)
{
        READ_ROWS(reader, array, sidecar->snapshots, sidecar->n_snapshots, read_snapshot);
        for (size_t i = 0; reader->r == 0 && i < sidecar->n_snapshots; i++) {
                const json_t *disks = json_object_get(json_array_get(array, i), "disks");
                size_t from = sidecar->n_held;

                strcpy(sidecar->snapshots[i].vm, sidecar->vm.id);
                READ_ROWS(reader, disks, sidecar->held, sidecar->n_held, read_held);
                for (size_t k = from; k < sidecar->n_held; k++)
                        strcpy(sidecar->held[k].snapshot, sidecar->snapshots[i].id);
        }
}

int sidecar_from_json(
        const json_t *json, const char *directory, struct sidecar *ret, struct error *err)
{
        _cleanup_(sidecar_done) struct sidecar sidecar = {0};
        struct reader reader = {.directory = directory, .err = err};
        const char *format = json_string_value(json_object_get(json, "format"));

        if (!format || strcmp(format, FORMAT_NAME) != 0)
                return fail(err, EUCLEAN, "it is no sidecar of vhdd");
        if (json_integer_value(json_object_get(json, "version")) != FORMAT_VERSION)
                return fail(
                        err, ENOTSUP, "the sidecar is of another version than %d", FORMAT_VERSION);
        read_vm(&reader, json_object_get(json, "vm"), &sidecar.vm);
        READ_ROWS(
                &reader, json_object_get(json, "disks"), sidecar.disks, sidecar.n_disks, read_disk);
        for (size_t i = 0; i < sidecar.n_disks; i++)
                strcpy(sidecar.disks[i].vm, sidecar.vm.id);
        read_snapshots(&reader, json_object_get(json, "snapshots"), &sidecar);
        READ_ROWS(&reader, json_object_get(json, "images"), sidecar.images, sidecar.n_images,
                read_image);
        sidecar.exported = json_is_true(json_object_get(json, "exported"));
        if (sidecar.exported) {
                reader.what = "vm";
                read_id(&reader, json_object_get(json, "vm"), "resume", sidecar.vm.resume, false);
        }
        if (reader.r < 0)
                return reader.r;
        *ret = sidecar;
        sidecar = (struct sidecar){0};
        return 0;
}

/* ---- files ---- */

char *sidecar_path(const char *directory, const char *vm_name)
{
        char *path = NULL;

        return asprintf(&path, "%s/%s" SIDECAR_ENDING, directory, vm_name) < 0 ? NULL : path;
}

static char *directory_of(const char *path)
{
        const char *slash = strrchr(path, '/');

        return strndup(path, slash ? (size_t)(slash - path) : 0);
}

static int read_all(struct fs *fs, const char *path, char **ret, size_t *ret_n, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ char *text = NULL;
        uint64_t size = 0;
        int r = file_open(fs, path, FILE_READ | FILE_NOFOLLOW, &file, err);

        if (r < 0)
                return r;
        r = file_size_get(file, &size);
        if (r < 0)
                return fail_os(err, -r, "cannot read '%s'", path);
        if (size > SIDECAR_MAX)
                return fail(err, EUCLEAN, "'%s' is larger than any sidecar", path);
        text = malloc((size_t)size + 1);
        if (!text)
                return no_memory(err);
        r = file_read_exact(file, text, (size_t)size, 0);
        if (r < 0)
                return fail_os(err, -r, "cannot read '%s'", path);
        *ret = TAKE_PTR(text);
        *ret_n = (size_t)size;
        return 0;
}

int sidecar_read(struct fs *fs, const char *path, struct sidecar *ret, struct error *err)
{
        _cleanup_free_ char *text = NULL, *directory = directory_of(path);
        json_auto_t *json = NULL;
        size_t n = 0;
        int r = read_all(fs, path, &text, &n, err);

        if (r == 0 && !directory)
                r = no_memory(err);
        if (r < 0)
                return r;
        json = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
        r = sidecar_from_json(json, directory, ret, err);
        if (r < 0) {
                r = fail_prefix(err, r, "cannot use '%s'", path);
                error_set_file(err, path);
        }
        return r;
}

/* Somebody else may own the folder: nothing that lies under the temporary name is written to. */
static int write_new(struct fs *fs, const char *path, const char *text, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r = fs_unlink(fs, path);

        r = file_open(
                fs, path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE | FILE_NOFOLLOW, &file, err);
        if (r < 0)
                return r;
        r = file_write(file, text, strlen(text), 0, 0);
        if (r == 0)
                r = file_sync(file);
        return r < 0 ? fail_os(err, -r, "cannot write '%s'", path) : 0;
}

int sidecar_store(struct fs *fs, const char *path, const json_t *json, struct error *err)
{
        _cleanup_free_ char *text = json_dumps(json, JSON_INDENT(2)), *new = NULL;
        int r;

        if (!text || asprintf(&new, "%s.new", path) < 0)
                return no_memory(err);
        r = write_new(fs, new, text, err);
        if (r == 0) {
                r = fs_rename(fs, new, path, true);
                if (r == 0)
                        r = fs_sync_directory(fs, path);
                if (r < 0)
                        fail_os(err, -r, "cannot put '%s' in its place", path);
        }
        if (r < 0) {
                fs_unlink(fs, new);
                error_set_file(err, path);
        }
        return r;
}

int sidecar_write(struct catalog *catalog, struct fs *fs, const char *vm, struct error *err)
{
        _cleanup_(sidecar_done) struct sidecar sidecar = {0};
        _cleanup_free_ char *path = NULL;
        json_auto_t *json = NULL;
        int r = sidecar_collect(catalog, vm, &sidecar, err);

        if (r < 0 || !sidecar.vm.directory)
                return r;
        path = sidecar_path(sidecar.vm.directory, sidecar.vm.name);
        if (!path)
                return no_memory(err);
        r = sidecar_to_json(&sidecar, sidecar.vm.directory, &json, err);
        return r < 0 ? r : sidecar_store(fs, path, json, err);
}

int sidecar_remove(struct catalog *catalog, struct fs *fs, const char *vm, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_free_ char *path = NULL;
        int r = catalog_vm_find(catalog, vm, &row, err);

        if (r < 0 || !row.directory)
                return r;
        path = sidecar_path(row.directory, row.name);
        if (!path)
                return no_memory(err);
        r = fs_unlink(fs, path);
        if (r < 0 && r != -ENOENT)
                return fail_os(err, -r, "cannot remove '%s'", path);
        return 0;
}

/* ---- into the catalog ---- */

/* Parents and children in any order: references are looked at when the transaction ends. */
int sidecar_insert(struct catalog *catalog, const struct sidecar *sidecar, struct error *err)
{
        int r = catalog_vm_insert(catalog, &sidecar->vm, err);

        for (size_t i = 0; r == 0 && i < sidecar->n_images; i++)
                r = catalog_image_put(catalog, &sidecar->images[i], err);
        for (size_t i = 0; r == 0 && i < sidecar->n_disks; i++)
                r = catalog_disk_insert(catalog, &sidecar->disks[i], err);
        for (size_t i = 0; r == 0 && i < sidecar->n_snapshots; i++)
                r = catalog_snapshot_insert(catalog, &sidecar->snapshots[i], err);
        for (size_t i = 0; r == 0 && i < sidecar->n_held; i++)
                r = catalog_snapshot_disk_insert(catalog, &sidecar->held[i], err);
        return r;
}
