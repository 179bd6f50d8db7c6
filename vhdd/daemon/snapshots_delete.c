/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots_delete.c - delete and prune: the rows go in one transaction, the files after it. An image
 * that others stand on is hidden, and its merge noted as a job (merges.h). */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/release.h"
#include "vhdd/daemon/snapshots.h"
#include "vhdd/daemon/worker_link.h"

struct deleting {
        struct vm *vm;
        struct vm_row row;
        struct snapshot_row *all;
        size_t n_all;
        json_t *ids, *names, *kept; /* snapshots */
        json_t *questions, *plan;   /* of a dry run: the merges that would follow */
        bool dry;
        struct operation *operation;
        struct release release;
};

static void deleting_done(struct deleting *deleting)
{
        operation_free(deleting->operation);
        release_done(&deleting->release);
        json_decref(deleting->ids);
        json_decref(deleting->names);
        json_decref(deleting->kept);
        json_decref(deleting->questions);
        json_decref(deleting->plan);
        snapshot_rows_free(deleting->all, deleting->n_all);
        vm_row_done(&deleting->row);
        vm_release(deleting->vm);
}

static int begin(
        struct broker *broker, const json_t *params, struct deleting *deleting, struct error *err)
{
        int r = release_init(&deleting->release, err);

        deleting->dry = param_bool(params, "dry-run");
        deleting->release.merge = param_text(params, "merge");
        if (!deleting->release.merge)
                deleting->release.merge = "live";
        deleting->release.push = param_bool(params, "push");
        deleting->ids = json_array();
        deleting->names = json_array();
        deleting->kept = json_array();
        if (r == 0 && (!deleting->ids || !deleting->names || !deleting->kept))
                r = fail(err, ENOMEM, "no memory for lists of snapshots");
        if (r == 0)
                r = vm_get(broker, param_text(params, "vm"), &deleting->vm, &deleting->row, err);
        /* What was cut off before is settled before: it may have changed the tree. */
        if (r == 0)
                r = worker_up(deleting->vm, err);
        if (r == 0)
                r = vm_row_again(deleting->vm, &deleting->row, err);
        if (r == 0)
                r = catalog_snapshot_list(
                        broker->catalog, deleting->vm->id, &deleting->all, &deleting->n_all, err);
        return r;
}

static void choose(struct deleting *deleting, const struct snapshot_row *row)
{
        json_array_append_new(deleting->ids, json_string(row->id));
        json_array_append_new(deleting->names, json_string(row->name));
}

static bool is_chosen(const struct deleting *deleting, const char *id)
{
        json_t *item;
        size_t i;

        json_array_foreach(deleting->ids, i, item)
        {
                if (strcmp(json_string_value(item), id) == 0)
                        return true;
        }
        return false;
}

/* Children after parents: again until nothing is added. */
static void choose_subtree(struct deleting *deleting)
{
        size_t before;

        do {
                before = json_array_size(deleting->ids);
                for (size_t i = 0; i < deleting->n_all; i++) {
                        const struct snapshot_row *row = &deleting->all[i];

                        if (strcmp(row->state, "committed") == 0 && row->parent[0] &&
                                is_chosen(deleting, row->parent) && !is_chosen(deleting, row->id))
                                choose(deleting, row);
                }
        } while (json_array_size(deleting->ids) > before);
}

/* Chains that nobody reads are closed, so that only readers keep a snapshot. */
static void close_chosen(struct deleting *deleting)
{
        json_t *id;
        size_t i;

        json_array_foreach(deleting->ids, i, id)
                worker_snapshots_close(deleting->vm, json_string_value(id), false);
}

static int delete_rows(struct deleting *deleting, struct error *err)
{
        json_t *path;
        size_t i;
        int r = release_snapshots(
                deleting->vm, &deleting->row, deleting->ids, &deleting->release, err);

        if (r == 0)
                r = release_images(deleting->vm, &deleting->release, err);
        json_array_foreach(deleting->release.files, i, path)
        {
                if (r == 0 && !deleting->dry)
                        r = operation_will_remove(
                                deleting->operation, json_string_value(path), err);
        }
        return r;
}

static void forget_files(struct deleting *deleting)
{
        json_t *path;
        size_t i;

        json_array_foreach(deleting->release.files, i, path)
                worker_image_forget(deleting->vm, json_string_value(path));
}

static int run(struct deleting *deleting, struct error *err)
{
        struct catalog *catalog = deleting->vm->broker->catalog;
        struct error why = ERROR_INIT;
        int r = 0;

        if (json_array_size(deleting->ids) == 0)
                return 0;
        if (!deleting->dry) {
                close_chosen(deleting);
                r = operation_begin(catalog, host_fs(), "snapshot.delete", deleting->vm->id, NULL,
                        0, NULL, &deleting->operation, err);
                if (r == 0)
                        r = operation_made(deleting->operation, err);
        }
        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = delete_rows(deleting, err);
        if (r == 0 && deleting->dry)
                r = merges_preview(deleting->vm, &deleting->questions, err);
        if (r < 0 || deleting->dry) {
                catalog_rollback(catalog);
                return r < 0 ? r
                             : merges_preview_ask(
                                       deleting->vm, deleting->questions, &deleting->plan, err);
        }
        r = operation_commit(deleting->operation, err);
        if (r < 0) {
                catalog_rollback(catalog);
                return r;
        }
        forget_files(deleting);
        if (operation_end(deleting->operation, &why) < 0)
                broker_log_error(deleting->vm->broker, deleting->row.name, &why);
        memory_folders_remove(deleting->release.files);
        if (deleting->vm->link && deleting->vm->up && worker_renew_exports(deleting->vm, &why) < 0)
                vm_set_down(deleting->vm, why.message);
        return 0;
}

static int answer(struct deleting *deleting, json_t **ret, struct error *err)
{
        if (!deleting->dry && json_array_size(deleting->ids) > 0)
                vm_changed(deleting->vm, "snapshot-deleted",
                        json_pack("{s:O}", "snapshots", deleting->names));
        *ret = json_pack("{s:s, s:O, s:O, s:O, s:O, s:O, s:O}", "vm", deleting->row.name, "deleted",
                deleting->names, "kept", deleting->kept, "freed", deleting->release.files,
                "waiting", deleting->release.waiting, "jobs", deleting->release.jobs, "kept-files",
                deleting->release.kept);
        if (*ret && deleting->plan)
                json_object_set(*ret, "merges", deleting->plan);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

int snapshot_delete_pending(struct vm *vm, const char *id, size_t *ret_jobs, struct error *err)
{
        struct deleting deleting = {.vm = vm, .ids = json_array()};
        int r = release_init(&deleting.release, err);

        deleting.release.merge = "live";
        if (r == 0)
                r = catalog_vm_find(vm->broker->catalog, vm->id, &deleting.row, err);
        if (r == 0 && json_array_append_new(deleting.ids, json_string(id)) < 0)
                r = fail(err, ENOMEM, "no memory for a list of snapshots");
        if (r == 0)
                r = run(&deleting, err);
        *ret_jobs = json_array_size(deleting.release.jobs);
        deleting.vm = NULL; /* the caller's, and locked */
        deleting_done(&deleting);
        return r;
}

void snapshots_settle_pending(struct vm *vm)
{
        struct snapshot_row *rows = NULL;
        struct error err = ERROR_INIT;
        size_t n = 0, n_jobs, n_gone = 0;

        if (catalog_snapshot_list(vm->broker->catalog, vm->id, &rows, &n, &err) < 0)
                broker_log_error(vm->broker, vm->id, &err);
        for (size_t i = 0; i < n; i++) {
                if (strcmp(rows[i].state, "pending") != 0 || strcmp(rows[i].id, vm->saving) == 0)
                        continue;
                broker_log(vm->broker, BROKER_LOG_INFO, vm->id,
                        "undoing snapshot %s, whose memory was not saved", rows[i].id);
                error_clear(&err);
                if (snapshot_delete_pending(vm, rows[i].id, &n_jobs, &err) < 0)
                        broker_log_error(vm->broker, vm->id, &err);
                else
                        n_gone++;
        }
        snapshot_rows_free(rows, n);
        if (n_gone > 0)
                vm_changed(vm, "vm-changed", NULL);
}

int snapshot_delete(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(deleting_done) struct deleting deleting = {0};
        _cleanup_(snapshot_row_done) struct snapshot_row row = {0};
        int r = begin(broker, params, &deleting, err);

        if (r == 0)
                r = snapshot_find(
                        deleting.vm, &deleting.row, param_text(params, "name"), &row, err);
        if (r < 0)
                return r;
        choose(&deleting, &row);
        if (param_bool(params, "subtree"))
                choose_subtree(&deleting);
        r = run(&deleting, err);
        return r < 0 ? r : answer(&deleting, ret, err);
}

/* ---- prune ---- */

/* Days since 1970, in UTC: the same day for everybody who looks at the times that we print. */
static int64_t day_of(const struct snapshot_row *row)
{
        return row->created_us / (INT64_C(86400) * 1000000);
}

/* Newest first: the newest @last of all, and the newest of each of the last @daily days that have
 * one; and the current one. The rows come oldest first. */
static void choose_pruned(struct deleting *deleting, json_int_t last, json_int_t daily)
{
        json_int_t n_last = 0, n_days = 0;
        int64_t day = INT64_MIN;

        for (size_t i = deleting->n_all; i-- > 0;) {
                const struct snapshot_row *row = &deleting->all[i];
                bool keep;

                if (strcmp(row->state, "committed") != 0)
                        continue;
                /* The current one is what a revert goes back to. */
                keep = n_last++ < last || strcmp(row->id, deleting->row.current) == 0;
                if (day_of(row) != day) {
                        day = day_of(row);
                        keep = n_days++ < daily || keep;
                }
                if (keep)
                        json_array_append_new(deleting->kept, json_string(row->name));
                else
                        choose(deleting, row);
        }
}

int snapshot_prune(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(deleting_done) struct deleting deleting = {0};
        json_int_t last = param_int(params, "keep-last", 0);
        json_int_t daily = param_int(params, "keep-daily", 0);
        int r;

        if (!json_object_get(params, "keep-last") && !json_object_get(params, "keep-daily"))
                return fail(
                        err, EINVAL, "say what to keep: --keep-last N, --keep-daily N, or both");
        r = begin(broker, params, &deleting, err);
        if (r < 0)
                return r;
        choose_pruned(&deleting, last, daily);
        r = run(&deleting, err);
        return r < 0 ? r : answer(&deleting, ret, err);
}
