/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/discarded.h"

#include <string.h>

#include "base/file.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/release.h"
#include "vhdd/daemon/worker_link.h"

#define SWEEP_MS 10000

static bool undo_has_expired(const struct vm_row *row)
{
        json_auto_t *undo = row->undo ? json_loads(row->undo, 0, NULL) : NULL;

        return undo && param_int(undo, "until", 0) <= now_us();
}

/* Deleted, and nobody reads it any more. */
static int find_unread(struct vm *vm, json_t *ids, struct error *err)
{
        struct snapshot_row *rows = NULL;
        size_t n = 0;
        int r;

        /* What is read is known once the worker has said what it has open. */
        if (!vm->up)
                return 0;
        r = catalog_snapshot_list(vm->broker->catalog, vm->id, &rows, &n, err);
        for (size_t i = 0; r == 0 && i < n; i++)
                if (strcmp(rows[i].state, "hidden") == 0 &&
                        worker_snapshots_close(vm, rows[i].id, false) == 0)
                        json_array_append_new(ids, json_string(rows[i].id));
        snapshot_rows_free(rows, n);
        return r;
}

/* @id: of a snapshot; NULL: the undo. */
static int sweep_rows(struct vm *vm, const char *id, struct operation *operation, struct error *err)
{
        _cleanup_(snapshot_row_done) struct snapshot_row snapshot = {0};
        _cleanup_(release_done) struct release release = {0};
        _cleanup_(vm_row_done) struct vm_row row = {0};
        json_auto_t *ids = json_pack("[s*]", id);
        struct catalog *catalog = vm->broker->catalog;
        json_t *path;
        size_t i;
        int r = release_init(&release, err);

        release.merge = "live";
        if (r == 0)
                r = catalog_vm_find(catalog, vm->id, &row, err);
        if (r == 0 && id)
                r = catalog_snapshot_find(catalog, vm->id, id, &snapshot, err);
        if (r == 0 && id)
                release_remembered(&snapshot, &release);
        if (r == 0 && !id)
                r = release_undo(vm, &row, &release, err);
        if (r == 0)
                r = release_snapshots(vm, &row, ids, &release, err);
        if (r == 0)
                r = release_images(vm, &release, err);
        json_array_foreach(release.files, i, path)
        {
                if (r == 0)
                        r = operation_will_remove(operation, json_string_value(path), err);
        }
        return r == 0 ? operation_commit(operation, err) : r;
}

static int sweep_one(struct vm *vm, const char *id, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        struct catalog *catalog = vm->broker->catalog;
        int r = operation_begin(
                catalog, host_fs(), "sweep", vm->id, NULL, 0, NULL, &operation, err);

        if (r == 0)
                r = operation_made(operation, err);
        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = sweep_rows(vm, id, operation, err);
        if (r < 0) {
                catalog_rollback(catalog);
                return r;
        }
        vm_may_merge(vm);
        return operation_end(operation, err);
}

static int sweep(struct vm *vm, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        json_auto_t *ids = json_array();
        json_t *id;
        size_t i;
        int r = catalog_vm_find(vm->broker->catalog, vm->id, &row, err);

        if (r == 0)
                r = find_unread(vm, ids, err);
        if (r == 0 && undo_has_expired(&row))
                r = sweep_one(vm, NULL, err);
        json_array_foreach(ids, i, id)
        {
                if (r == 0)
                        r = sweep_one(vm, json_string_value(id), err);
        }
        return r;
}

void discarded_sweep(struct vm *vm)
{
        struct error err = ERROR_INIT;

        if (sweep(vm, &err) < 0)
                broker_log_error(vm->broker, vm->id, &err);
}

/* Readers say that they go (vm_worker_event), but not those who die with their worker. */
static bool has_hidden(struct catalog *catalog, const char *vm)
{
        struct snapshot_row *rows = NULL;
        bool found = false;
        size_t n = 0;

        if (catalog_snapshot_list(catalog, vm, &rows, &n, NULL) < 0)
                return false;
        for (size_t i = 0; i < n && !found; i++)
                found = strcmp(rows[i].state, "hidden") == 0;
        snapshot_rows_free(rows, n);
        return found;
}

static void retry_disks(struct broker *broker, const char *id)
{
        _cleanup_(vm_unrefp) struct vm *looked_at = NULL;
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        struct error err = ERROR_INIT;
        int r;

        if (vm_peek(broker, id, &looked_at, NULL, NULL) < 0 || !worker_has_trouble(looked_at) ||
                vm_get_within(broker, id, 1000, &vm, NULL, NULL) < 0)
                return;
        r = worker_retry(vm, &err);
        if (r < 0)
                broker_log_error(broker, id, &err);
        if (r == 1)
                vm_may_merge(vm);
}

static void sweep_all(struct broker *broker)
{
        struct vm_row *rows = NULL;
        size_t n = 0;

        if (catalog_vm_list(broker->catalog, &rows, &n, NULL) < 0)
                return;
        for (size_t i = 0; i < n; i++) {
                _cleanup_(vm_releasep) struct vm *vm = NULL;

                retry_disks(broker, rows[i].id);
                if ((undo_has_expired(&rows[i]) || has_hidden(broker->catalog, rows[i].id)) &&
                        vm_get_within(broker, rows[i].id, 1000, &vm, NULL, NULL) == 0)
                        discarded_sweep(vm);
        }
        vm_rows_free(rows, n);
}

static void sweeper(void *opaque)
{
        struct broker *broker = opaque;

        while (vms_sleep(broker->vms, SWEEP_MS)) {
                sweep_all(broker);
                merges_sweep(broker);
        }
}

void discarded_start(struct broker *broker)
{
        struct error err = ERROR_INIT;

        if (vms_spawn(broker->vms, sweeper, broker, &err) < 0)
                broker_log_error(broker, NULL, &err);
}
