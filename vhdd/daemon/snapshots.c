/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots.c - looking at snapshots, and renaming them. */
#include "vhdd/daemon/snapshots.h"

#include <string.h>
#include <unistd.h>

#include "vhdd/daemon/exports.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/places.h"
#include "vhdd/daemon/worker_link.h"

#define LEAVING_MS      1000u
#define LEAVING_STEP_MS 20u

static json_t *disk_as_json(struct vm *vm, const struct vm_row *row,
        const struct snapshot_row *snapshot, const struct snapshot_disk_row *disk)
{
        _cleanup_free_ char *export = export_name(row->name, disk->name, snapshot->name);
        _cleanup_free_ char *uri = export ? exports_uri(vm->broker, export) : NULL;
        struct place place = {
                disk->controller == 0 ? CONTROLLER_IDE : CONTROLLER_SCSI, disk->bus, disk->unit};
        char at[PLACE_TEXT_MAX];
        json_t *object = json_pack("{s:s, s:s, s:s?, s:I, s:o, s:b}", "name", disk->name, "at",
                place_format(place, at), "file", disk->file, "size", (json_int_t)disk->size,
                "allocated",
                disk->file ? json_integer((json_int_t)file_allocated(disk->file)) : json_null(),
                "skipped", disk->skipped);

        if (object && disk->file && uri)
                json_object_set_new(object, "uri", json_string(uri));
        return object;
}

/* Of one that an older daemon took, what can be told. */
static const char *consistency(const struct snapshot_row *snapshot)
{
        if (snapshot->memory)
                return SNAPSHOT_MEMORY;
        return strcmp(snapshot->consistency, SNAPSHOT_FILESYSTEM) == 0 ? SNAPSHOT_FILESYSTEM
                                                                       : SNAPSHOT_CRASH;
}

int snapshot_to_json(struct vm *vm, const struct vm_row *row, const struct snapshot_row *snapshot,
        json_t **ret, struct error *err)
{
        struct snapshot_disk_row *disks = NULL;
        json_t *list = json_array();
        char time[TIME_TEXT_MAX];
        uint64_t size = 0;
        size_t n = 0;
        int r = catalog_snapshot_disk_list(vm->broker->catalog, snapshot->id, &disks, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                json_array_append_new(list, disk_as_json(vm, row, snapshot, &disks[i]));
                size += disks[i].file ? file_allocated(disks[i].file) : 0;
        }
        snapshot_disk_rows_free(disks, n);
        if (r < 0) {
                json_decref(list);
                return r;
        }
        *ret = json_pack("{s:s, s:s, s:s?, s:s, s:b, s:s?, s:o, s:b, s:s, s:I, s:s}", "name",
                snapshot->name, "id", snapshot->id, "parent",
                snapshot->parent[0] ? snapshot->parent : NULL, "created",
                time_to_text(snapshot->created_us, time), "current",
                strcmp(row->current, snapshot->id) == 0, "note", snapshot->note, "disks", list,
                "memory", snapshot->memory != NULL, "consistency", consistency(snapshot), "size",
                (json_int_t)size, "state", snapshot->state);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

int snapshot_find(struct vm *vm, const struct vm_row *row, const char *name,
        struct snapshot_row *ret, struct error *err)
{
        struct snapshot_row found = {0};
        int r = catalog_snapshot_find(vm->broker->catalog, vm->id, name, &found, err);

        if (r == 0 && strcmp(found.state, "committed") == 0) {
                *ret = found;
                return 0;
        }
        snapshot_row_done(&found);
        if (r < 0 && r != -ENOENT)
                return r;
        error_clear(err);
        fail(err, ENOENT, "vm '%s' has no snapshot '%.160s'", row->name, name);
        error_set_hint(err, "vhdctl snapshot tree '%s'", row->name);
        return -ENOENT;
}

static int all_as_json(struct vm *vm, const struct vm_row *row, json_t **ret, struct error *err)
{
        struct snapshot_row *rows = NULL;
        json_t *list = json_array();
        size_t n = 0;
        int r = catalog_snapshot_list(vm->broker->catalog, vm->id, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                json_t *one = NULL;

                if (strcmp(rows[i].state, "committed") != 0)
                        continue;
                r = snapshot_to_json(vm, row, &rows[i], &one, err);
                if (r == 0)
                        json_array_append_new(list, one);
        }
        snapshot_rows_free(rows, n);
        if (r < 0)
                json_decref(list);
        else
                *ret = list;
        return r;
}

static int snapshot_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        return r < 0 ? r : all_as_json(vm, &row, ret, err);
}

static int snapshot_tree(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        json_auto_t *clients = NULL;
        struct disk_row *disks = NULL;
        json_t *list = NULL;
        uint64_t size = 0;
        size_t n = 0;
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = catalog_disk_list(broker->catalog, vm->id, &disks, &n, err);
        for (size_t i = 0; i < n; i++)
                size += file_allocated(disks[i].file);
        disk_rows_free(disks, n);
        if (r == 0)
                r = all_as_json(vm, &row, &list, err);
        if (r < 0)
                return r;
        (void)worker_clients(vm, 2000, &clients, NULL);
        *ret = json_pack("{s:s, s:s?, s:{s:I, s:b}, s:o}", "vm", row.name, "current",
                row.current[0] ? row.current : NULL, "now", "size", (json_int_t)size, "on",
                vm_looks_on(vm, &row, clients), "snapshots", list);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int snapshot_show(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(snapshot_row_done) struct snapshot_row snapshot = {0};
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = snapshot_find(vm, &row, param_text(params, "name"), &snapshot, err);
        return r < 0 ? r : snapshot_to_json(vm, &row, &snapshot, ret, err);
}

/* They are called after the snapshot: those that nobody has open go, and come back on demand. Who has just said
 * goodbye is given the time to be gone. */
static int close_exports(struct vm *vm, const struct snapshot_row *snapshot, struct error *err)
{
        for (unsigned waited = 0; worker_snapshots_close(vm, snapshot->id, false) > 0;
                waited += LEAVING_STEP_MS) {
                if (waited >= LEAVING_MS)
                        return fail(err, EBUSY, "snapshot '%s' is being read by a client",
                                snapshot->name);
                usleep(LEAVING_STEP_MS * 1000);
        }
        return 0;
}

static int snapshot_rename(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(snapshot_row_done) struct snapshot_row snapshot = {0};
        const char *name = param_text(params, "new");
        struct error why = ERROR_INIT;
        char *copy;
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = snapshot_find(vm, &row, param_text(params, "old"), &snapshot, err);
        if (r == 0 && strcmp(snapshot.name, name) != 0)
                r = snapshot_check_name(vm, &row, name, err);
        if (r == 0 && !param_bool(params, "dry-run"))
                r = close_exports(vm, &snapshot, err);
        if (r < 0)
                return r;
        copy = strdup(name);
        if (!copy)
                return fail(err, ENOMEM, "no memory for a name");
        free(snapshot.name);
        snapshot.name = copy;
        if (param_bool(params, "dry-run"))
                return snapshot_to_json(vm, &row, &snapshot, ret, err);
        r = catalog_snapshot_update(broker->catalog, &snapshot, err);
        if (r < 0)
                return r;
        if (vm->link && vm->up && worker_renew_exports(vm, &why) < 0)
                vm_set_down(vm, why.message);
        vm_changed(vm, "snapshot-renamed",
                json_pack("{s:s, s:s}", "snapshot", name, "id", snapshot.id));
        return snapshot_to_json(vm, &row, &snapshot, ret, err);
}

/* Each undoes itself when the worker dies in its middle. */
#define AGAIN(name)                                                                                \
        static int name##_again(struct broker *broker, const struct caller *caller,                \
                const json_t *params, json_t **ret, struct error *err)                             \
        {                                                                                          \
                return vm_try_again(name, broker, caller, params, ret, err);                       \
        }
AGAIN(snapshot_take)
AGAIN(snapshot_apply)
AGAIN(snapshot_revert)
AGAIN(snapshot_undo)
AGAIN(snapshot_delete)
AGAIN(snapshot_diff)

const struct method snapshot_methods[] = {
        {"snapshot.take", snapshot_take_again, true},
        {"snapshot.list", snapshot_list, false},
        {"snapshot.tree", snapshot_tree, false},
        {"snapshot.show", snapshot_show, false},
        {"snapshot.memory", memory_copy_out, true},
        {"snapshot.rename", snapshot_rename, true},
        {"snapshot.apply", snapshot_apply_again, true},
        {"snapshot.revert", snapshot_revert_again, true},
        {"snapshot.undo", snapshot_undo_again, true},
        {"snapshot.delete", snapshot_delete_again, true},
        {"snapshot.prune", snapshot_prune, true},
        {"snapshot.diff", snapshot_diff_again, false},
        {NULL, NULL, false},
};
