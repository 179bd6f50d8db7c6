/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/disks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/daemon/exports.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/snippet.h"
#include "vhdd/daemon/worker_link.h"

struct place disk_place(const struct disk_row *disk)
{
        return (struct place){
                disk->controller == 0 ? CONTROLLER_IDE : CONTROLLER_SCSI, disk->bus, disk->unit};
}

bool disk_is_pass_through(const struct disk_row *disk)
{
        return strcmp(disk->kind, "pass-through") == 0;
}

/* ---- as JSON ---- */

json_t *disk_row_to_json(const struct disk_row *disk)
{
        return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:s, s:b, s:I, s:I}", "id", disk->id,
                "name", disk->name, "file", disk->file, "controller", disk->controller, "bus",
                disk->bus, "unit", disk->unit, "kind", disk->kind, "read-only", disk->read_only,
                "size", (json_int_t)disk->size, "created", (json_int_t)disk->created_us);
}

int disk_row_from_json(const json_t *json, const char *vm, struct disk_row *ret, struct error *err)
{
        const char *id, *name, *file, *kind;
        struct disk_row row = {0};
        json_int_t size, created;
        int read_only;

        if (json_unpack((json_t *)json, "{s:s, s:s, s:s, s:i, s:i, s:i, s:s, s:b, s:I, s:I}", "id",
                    &id, "name", &name, "file", &file, "controller", &row.controller, "bus",
                    &row.bus, "unit", &row.unit, "kind", &kind, "read-only", &read_only, "size",
                    &size, "created", &created) < 0)
                return fail(err, EUCLEAN, "a disk in a snapshot's settings is damaged");
        snprintf(row.id, sizeof(row.id), "%s", id);
        snprintf(row.vm, sizeof(row.vm), "%s", vm);
        snprintf(row.kind, sizeof(row.kind), "%s", kind);
        row.read_only = read_only;
        row.size = (uint64_t)size;
        row.created_us = created;
        row.name = strdup(name);
        row.file = strdup(file);
        if (!row.name || !row.file) {
                disk_row_done(&row);
                return fail(err, ENOMEM, "no memory for a disk");
        }
        *ret = row;
        return 0;
}

/* "fixed" or "dynamic": what the worker found the root of the disk's chain to be. */
static void root_type(struct vm *vm, const struct disk_row *disk, char ret[16])
{
        strcpy(ret, "vhd");
        pthread_rwlock_rdlock(&vm->link_lock);
        for (size_t i = 0; i < vm->n_chains; i++)
                if (strcmp(vm->chains[i].name, disk->id) == 0 && vm->chains[i].root_type[0])
                        memcpy(ret, vm->chains[i].root_type, 16);
        pthread_rwlock_unlock(&vm->link_lock);
}

static const char *image_type(const struct image_row *image, const char *root)
{
        if (strcmp(image->format, "raw") == 0)
                return "raw";
        return image->parent ? "differencing" : root;
}

static void add_state(struct vm *vm, const struct disk_row *disk, json_t *object)
{
        const char *state = "starting", *why = NULL;
        struct vm_chain *chain = NULL;

        pthread_rwlock_rdlock(&vm->link_lock);
        for (size_t i = 0; i < vm->n_chains; i++)
                if (strcmp(vm->chains[i].name, disk->id) == 0)
                        chain = &vm->chains[i];
        if (chain && chain->trouble) {
                state = "failed";
                why = chain->trouble;
        } else if (chain && vm->up) {
                state = "serving";
        } else if (!vm->up && vm->trouble) {
                why = vm->trouble;
        }
        json_object_set_new(object, "state", json_string(state));
        json_object_set_new(object, "error", why ? json_string(why) : json_null());
        pthread_rwlock_unlock(&vm->link_lock);
}

static json_t *frozen_for(struct vm *vm, const char *path)
{
        struct snapshot_disk_row *rows = NULL;
        json_t *list = json_array();
        size_t n = 0;

        if (catalog_snapshot_disk_list_file(vm->broker->catalog, path, &rows, &n, NULL) < 0)
                return list;
        for (size_t i = 0; i < n; i++) {
                _cleanup_(snapshot_row_done) struct snapshot_row snapshot = {0};

                if (catalog_snapshot_find(
                            vm->broker->catalog, vm->id, rows[i].snapshot, &snapshot, NULL) == 0)
                        json_array_append_new(list, json_string(snapshot.name));
        }
        snapshot_disk_rows_free(rows, n);
        return list;
}

static void add_layers(
        struct vm *vm, const struct image_chain *images, const char *root, json_t *object)
{
        json_t *layers = json_array();

        for (size_t i = 0; i < images->n; i++) {
                const struct image_row *row = &images->rows[i];
                bool raw = strcmp(row->format, "raw") == 0;
                char uuid[UUID_TEXT_SIZE];

                json_array_append_new(layers,
                        json_pack("{s:s, s:s, s:s, s:s?, s:I, s:o}", "file", row->path, "format",
                                row->format, "type",
                                raw                   ? "raw"
                                        : row->parent ? "differencing"
                                                      : "vhd",
                                "uuid", raw ? NULL : uuid_format(row->uuid, uuid), "allocated",
                                (json_int_t)file_allocated(row->path), "snapshots",
                                frozen_for(vm, row->path)));
        }
        json_object_set_new(object, "layers", layers);
}

static void add_clients(const json_t *clients, const char *export, json_t *object)
{
        json_t *list = json_array(), *client;
        size_t length = strlen(export), i;

        json_array_foreach(clients, i, client)
        {
                const char *name = json_string_value(json_object_get(client, "export"));

                if (name && strncmp(name, export, length) == 0 &&
                        (name[length] == '\0' || name[length] == '@'))
                        json_array_append(list, client);
        }
        json_object_set_new(object, "client-list", list);
}

int disk_to_json(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        const json_t *clients, bool full, json_t **ret, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain images = {0};
        _cleanup_free_ char *export = export_name(row->name, disk->name, NULL);
        _cleanup_free_ char *uri = export ? exports_uri(vm->broker, export) : NULL;
        char at[PLACE_TEXT_MAX], root[16];
        json_t *object;

        root_type(vm, disk, root);
        if (!uri)
                return fail(err, ENOMEM, "no memory for a disk");
        /* A dry run's disk has no images in the catalog; its depth is not known then. */
        (void)image_chain_get(vm->broker->catalog, disk->file, &images, NULL);
        object = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:b, s:b, s:I, s:s, s:I}",
                "vm", row->name, "name", disk->name, "id", disk->id, "at",
                place_format(disk_place(disk), at), "file", disk->file, "format",
                strcmp(disk->kind, "vhd") == 0 ? "vhd" : "raw", "type",
                images.n ? image_type(&images.rows[0], root) : disk->kind, "size",
                (json_int_t)disk->size, "allocated", (json_int_t)file_allocated(disk->file),
                "read-only", disk->read_only, "pass-through", disk_is_pass_through(disk), "clients",
                (json_int_t)clients_count(clients, export), "uri", uri, "depth",
                (json_int_t)images.n);
        if (!object)
                return fail(err, ENOMEM, "no memory for a disk");
        add_state(vm, disk, object);
        if (full) {
                add_layers(vm, &images, root, object);
                add_clients(clients, export, object);
        }
        *ret = object;
        return 0;
}

/* ---- list, show ---- */

static int list_of_vm(
        struct broker *broker, const struct vm_row *row, json_t *list, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        json_auto_t *clients = NULL;
        struct disk_row *disks = NULL;
        size_t n = 0;
        int r = vm_add(broker, row->id, &vm, err);

        if (r == 0)
                r = catalog_disk_list(broker->catalog, row->id, &disks, &n, err);
        if (r == 0 && n > 0)
                (void)worker_clients(vm, 2000, &clients, NULL);
        for (size_t i = 0; r == 0 && i < n; i++) {
                json_t *one = NULL;

                r = disk_to_json(vm, row, &disks[i], clients, false, &one, err);
                if (r == 0)
                        json_array_append_new(list, one);
        }
        disk_rows_free(disks, n);
        return r;
}

static int disk_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        const char *only = param_text(params, "vm");
        json_auto_t *list = json_array();
        struct vm_row *rows = NULL;
        size_t n = 0;
        int r;

        if (only) {
                _cleanup_(vm_unrefp) struct vm *vm = NULL;
                _cleanup_(vm_row_done) struct vm_row row = {0};

                r = vm_peek(broker, only, &vm, &row, err);
                if (r == 0)
                        r = list_of_vm(broker, &row, list, err);
        } else {
                r = catalog_vm_list(broker->catalog, &rows, &n, err);
                for (size_t i = 0; r == 0 && i < n; i++)
                        r = list_of_vm(broker, &rows[i], list, err);
                vm_rows_free(rows, n);
        }
        if (r < 0)
                return r;
        *ret = json_incref(list);
        return 0;
}

int disk_find(struct vm *vm, const struct vm_row *row, const char *name, struct disk_row *ret,
        struct error *err)
{
        int r = catalog_disk_find(vm->broker->catalog, vm->id, name, ret, err);

        if (r != -ENOENT)
                return r;
        error_clear(err);
        fail(err, ENOENT, "vm '%s' has no disk '%.160s'", row->name, name);
        error_set_hint(err, "vhdctl disk list '%s'", row->name);
        return -ENOENT;
}

static int disk_show(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(disk_row_done) struct disk_row disk = {0};
        json_auto_t *clients = NULL;
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = disk_find(vm, &row, param_text(params, "disk"), &disk, err);
        if (r < 0)
                return r;
        (void)worker_clients(vm, 2000, &clients, NULL);
        return disk_to_json(vm, &row, &disk, clients, true, ret, err);
}

/* ---- uri, snippet ---- */

/* The export's name that vm, disk and snapshot mean, checked. */
static int named_export(
        struct broker *broker, const json_t *params, char **ret, bool *ret_ro, struct error *err)
{
        const char *snapshot = param_text(params, "snapshot");
        _cleanup_free_ char *name =
                export_name(param_text(params, "vm"), param_text(params, "disk"), snapshot);
        json_auto_t *facts = NULL;
        int r;

        if (!name)
                return fail(err, ENOMEM, "no memory for an export's name");
        r = exports_lookup(broker, name, &facts, err);
        if (r < 0)
                return r;
        *ret_ro = param_bool(facts, "read-only");
        *ret = strdup(param_text(facts, "name"));
        return *ret ? 0 : fail(err, ENOMEM, "no memory for an export's name");
}

static int disk_uri(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_free_ char *name = NULL, *uri = NULL;
        bool read_only;
        int r = named_export(broker, params, &name, &read_only, err);

        if (r < 0)
                return r;
        uri = exports_uri(broker, name);
        *ret = uri
                ? json_pack("{s:s, s:s, s:b}", "uri", uri, "export", name, "read-only", read_only)
                : NULL;
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int disk_snippet(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(disk_row_done) struct disk_row disk = {0};
        _cleanup_free_ char *name = NULL, *uri = NULL, *text = NULL;
        struct snippet snippet = {.kind = param_text(params, "kind")};
        int r = named_export(broker, params, &name, &snippet.read_only, err);

        if (r == 0)
                r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);
        if (r < 0)
                return r;
        uri = exports_uri(broker, name);
        snippet.export = name;
        snippet.uri = uri;
        snippet.socket = broker->options.n_nbd_paths > 0 ? broker->options.nbd_paths[0] : NULL;
        snippet.address =
                broker->options.n_nbd_addresses > 0 ? broker->options.nbd_addresses[0] : NULL;
        snippet.place = (struct place){CONTROLLER_SCSI, 0, 0};
        snippet.id = "00000000-0000-0000-0000-000000000000";
        if (catalog_disk_find(broker->catalog, vm->id, param_text(params, "disk"), &disk, NULL) ==
                0) {
                snippet.place = disk_place(&disk);
                snippet.id = disk.id;
        }
        text = uri ? snippet_text(&snippet) : NULL;
        *ret = text ? json_pack("{s:s}", "text", text) : NULL;
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

/* Each undoes itself when the worker dies in its middle. */
#define AGAIN(name)                                                                                \
        static int name##_again(struct broker *broker, const struct caller *caller,                \
                const json_t *params, json_t **ret, struct error *err)                             \
        {                                                                                          \
                return vm_try_again(name, broker, caller, params, ret, err);                       \
        }
AGAIN(disk_attach)
AGAIN(disk_detach)

const struct method disk_methods[] = {
        {"disk.attach", disk_attach_again, true},
        {"disk.detach", disk_detach_again, true},
        {"disk.resize", disk_resize, true},
        {"disk.list", disk_list, false},
        {"disk.show", disk_show, false},
        {"disk.uri", disk_uri, false},
        {"snippet", disk_snippet, false},
        {NULL, NULL, false},
};
