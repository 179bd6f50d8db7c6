/* SPDX-License-Identifier: Apache-2.0 */
/* The files keep their places to one another, so that the relative locators in them stay true; and they
 * are copied byte by byte, ids and all: which file is whose parent is decided by where it lies.
 *
 *   X1  the journal's row names every folder and file from before it is made
 *   X2  they are made in DIR.vhdd-partial, and synced; the sidecar is the last
 *   X3  the folder gets its name in one step, which is synced
 *   X4  one transaction: the journal's row goes, the job is done
 *
 * Cut off before X3 all of it is taken back; after it, DIR is whole, and nothing of the journal's row is
 * there any more. DIR was nobody's before.
 *
 * A vm that is off is had alone (its worker is down) until it is copied. Of one that runs a snapshot is
 * taken, and what it froze is copied as the running state; the snapshot goes afterwards. The files are
 * opened, and locked against writers, before the vm's lock is given up: what becomes of their names then
 * does not matter. */
#include "vhdd/daemon/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "chain/paths.h"
#include "vhdd/daemon/copy_file.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/sidecar.h"
#include "vhdd/daemon/snapshots.h"
#include "vhdd/daemon/vms.h"
#include "vhdd/daemon/worker_link.h"

#define OPERATION_EXPORT "vm.export"
#define QUIT_MS          20000

struct export
{
        struct vm *vm; /* counted */
        char *vm_name;
        bool config_only, live;
        uint64_t rate;
        char snapshot[64]; /* of a live one's snapshot: its name; "": none is there */
        struct sidecar rows;
        char *directory, *partial;
        char base[PATH_TEXT_MAX]; /* the deepest folder that holds every file */
        json_t *from, *to;        /* paths, side by side; to: in the partial folder */
        struct file **sources;    /* as from; NULL: not open */
        uint64_t size;
};

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for an export");
}

static void forget_rows(struct export *export)
{
        for (size_t i = 0; export->sources && i < json_array_size(export->from); i++)
                file_close(export->sources[i]);
        free(export->sources);
        export->sources = NULL;
        json_decref(export->from);
        json_decref(export->to);
        export->from = export->to = NULL;
        sidecar_done(&export->rows);
        export->base[0] = '\0';
        export->size = 0;
}

static void export_free(void *opaque)
{
        struct export *export = opaque;

        if (!export)
                return;
        forget_rows(export);
        vm_unref(export->vm);
        free(export->vm_name);
        free(export->directory);
        free(export->partial);
        free(export);
}

static void export_freep(struct export **export)
{
        export_free(*export);
}

/* ---- which rows ---- */

/* A device stays where it is: the vm is exported without it. */
static void drop_pass_through(struct sidecar *rows)
{
        size_t n = 0;

        for (size_t i = 0; i < rows->n_disks; i++) {
                if (strcmp(rows->disks[i].kind, "pass-through") == 0)
                        disk_row_done(&rows->disks[i]);
                else
                        rows->disks[n++] = rows->disks[i];
        }
        rows->n_disks = n;
}

/* What was frozen for this export alone is the running state; it has no seal. */
static void unfreeze(struct sidecar *rows, const char *snapshot)
{
        for (size_t i = 0; i < rows->n_held; i++) {
                struct snapshot_disk_row *held = &rows->held[i];

                if (strcmp(held->snapshot, snapshot) != 0 || !held->file)
                        continue;
                for (size_t k = 0; k < rows->n_disks; k++) {
                        if (strcmp(rows->disks[k].id, held->disk) != 0)
                                continue;
                        free(rows->disks[k].file);
                        rows->disks[k].file = held->file;
                        held->file = NULL;
                        break;
                }
        }
        for (size_t i = 0; i < rows->n_disks; i++)
                for (size_t k = 0; k < rows->n_images; k++)
                        if (strcmp(rows->images[k].path, rows->disks[i].file) == 0) {
                                rows->images[k].sealed_size = 0;
                                rows->images[k].sealed_mtime_ns = 0;
                        }
}

static const struct snapshot_row *find_named(const struct sidecar *rows, const char *name)
{
        for (size_t i = 0; name[0] && i < rows->n_snapshots; i++)
                if (strcmp(rows->snapshots[i].name, name) == 0 &&
                        strcmp(rows->snapshots[i].state, "committed") == 0)
                        return &rows->snapshots[i];
        return NULL;
}

/* Of what is deleted and only read still, or under way, nothing is exported. */
static void drop_snapshots(struct sidecar *rows, const char *but)
{
        sidecar_drop_snapshots(rows, but);
        sidecar_drop_unneeded(rows);
}

/* Those who ask for the disks of a vm as they are now. */
static int collect(struct export *export, struct error *err)
{
        struct sidecar *rows = &export->rows;
        const struct snapshot_row *frozen;
        char id[UUID_TEXT_SIZE] = "";
        int r = sidecar_collect(export->vm->broker->catalog, export->vm->id, rows, err);

        if (r < 0)
                return r;
        drop_pass_through(rows);
        frozen = find_named(rows, export->snapshot);
        if (frozen) {
                memcpy(id, frozen->id, sizeof(id));
                unfreeze(rows, id);
                rows->vm.resume[0] = '\0'; /* it runs: its disks have gone on since */
        }
        if (export->config_only)
                rows->vm.resume[0] = '\0'; /* the files that are named go on */
        drop_snapshots(rows, id);
        /* A place of this host. */
        free(rows->vm.snapshot_dir);
        rows->vm.snapshot_dir = NULL;
        return 0;
}

/* ---- which files ---- */

static void widen_base(struct export *export, const char *path)
{
        char directory[PATH_TEXT_MAX], common[PATH_TEXT_MAX];

        path_directory(path, directory, sizeof(directory));
        if (export->base[0]) {
                path_common_directory(export->base, directory, common, sizeof(common));
                snprintf(export->base, sizeof(export->base), "%s", common);
        } else {
                snprintf(export->base, sizeof(export->base), "%s", directory);
        }
}

static char *beneath(const struct export *export, const char *directory, const char *path)
{
        const char *rest = NULL;
        char *to = NULL;

        if (!path_is_beneath(path, export->base, &rest))
                return strdup(path);
        return asprintf(&to, "%s/%s", directory, rest) < 0 ? NULL : to;
}

static char *to_directory(void *opaque, const char *path)
{
        const struct export *export = opaque;

        return beneath(export, export->directory, path);
}

static int add_file(struct export *export, const char *path, struct error *err)
{
        _cleanup_free_ char *to = beneath(export, export->partial, path);
        struct stat st;

        if (stat(path, &st) < 0) {
                fail_os(err, errno, "cannot look at '%s'", path);
                error_set_file(err, path);
                return -err->code;
        }
        export->size += (uint64_t)st.st_blocks * 512;
        if (!to || json_array_append_new(export->from, json_string(path)) < 0 ||
                json_array_append_new(export->to, json_string(to)) < 0)
                return no_memory(err);
        return 0;
}

static int list_files(struct export *export, struct error *err)
{
        const struct sidecar *rows = &export->rows;
        int r = 0;

        for (size_t i = 0; i < rows->n_images; i++)
                widen_base(export, rows->images[i].path);
        for (size_t i = 0; i < rows->n_snapshots; i++)
                if (rows->snapshots[i].memory)
                        widen_base(export, rows->snapshots[i].memory);
        for (size_t i = 0; r == 0 && i < rows->n_images; i++)
                r = add_file(export, rows->images[i].path, err);
        for (size_t i = 0; r == 0 && i < rows->n_snapshots; i++)
                if (rows->snapshots[i].memory)
                        r = add_file(export, rows->snapshots[i].memory, err);
        return r;
}

static int prepare(struct export *export, struct error *err)
{
        int r;

        forget_rows(export);
        export->from = json_array();
        export->to = json_array();
        if (!export->from || !export->to)
                return no_memory(err);
        r = collect(export, err);
        if (r == 0 && !export->config_only)
                r = list_files(export, err);
        return r;
}

static int open_sources(struct export *export, struct error *err)
{
        size_t n = json_array_size(export->from);
        int r = 0;

        export->sources = calloc(n + 1, sizeof(*export->sources));
        if (!export->sources)
                return no_memory(err);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = copy_source_open(json_string_value(json_array_get(export->from, i)),
                        &export->sources[i], err);
        return r;
}

/* ---- writing them ---- */

static int copy_step(void *opaque, uint64_t bytes)
{
        return opaque ? transfer_step(opaque, bytes) : 0;
}

static int copy_one(struct export *export, struct operation *operation, size_t i,
        struct transfer *transfer, struct error *err)
{
        const struct copy_watch watch = {copy_step, transfer};
        const char *to = json_string_value(json_array_get(export->to, i));
        int r = transfer_will_make(operation, to, err);

        if (r == 0)
                r = copy_from(export->sources[i], to, &watch, err);
        export->sources[i] = file_close(export->sources[i]);
        return r;
}

/* Beside each memory, when the rows speak of the copies. */
static int write_settings(struct export *export, struct operation *operation, struct error *err)
{
        size_t n = strlen(export->directory);
        int r = 0;

        for (size_t i = 0; r == 0 && i < export->rows.n_snapshots; i++) {
                const struct snapshot_row *row = &export->rows.snapshots[i];
                _cleanup_free_ char *memory = NULL;

                if (!row->memory)
                        continue;
                if (asprintf(&memory, "%s%s", export->partial, row->memory + n) < 0) {
                        memory = NULL;
                        return no_memory(err);
                }
                r = memory_settings_copy(operation, row, memory, err);
        }
        return r;
}

int export_write_sidecar(struct operation *operation, const struct sidecar *rows,
        const char *vm_name, const char *partial, const char *directory, struct error *err)
{
        _cleanup_free_ char *path = sidecar_path(partial, vm_name), *new = NULL;
        json_auto_t *json = NULL;
        int r = path && asprintf(&new, "%s.new", path) >= 0 ? 0 : no_memory(err);

        if (r == 0)
                r = sidecar_to_json(rows, directory, &json, err);
        if (r == 0)
                r = transfer_will_make(operation, path, err);
        if (r == 0)
                r = operation_will_make(operation, new, err);
        return r == 0 ? sidecar_store(host_fs(), path, json, err) : r;
}

static int write_sidecar(struct export *export, struct operation *operation, struct error *err)
{
        int r = export->config_only ? 0 : sidecar_rename(&export->rows, to_directory, export, err);

        export->rows.exported = true;
        if (r == 0 && !export->config_only)
                r = write_settings(export, operation, err);
        return r == 0 ? export_write_sidecar(operation, &export->rows, export->rows.vm.name,
                                export->partial, export->directory, err)
                      : r;
}

/* X3. Its name is durable when this answers. */
static int name_folder(const char *partial, const char *directory, struct error *err)
{
        int r = fs_rename(host_fs(), partial, directory, false);

        if (r == 0)
                r = fs_sync_directory(host_fs(), directory);
        if (r == 0)
                return 0;
        fail_os(err, -r, "cannot give the folder '%s' its name '%s'", partial, directory);
        error_set_file(err, directory);
        return r;
}

int export_commit(struct broker *broker, struct operation *operation, struct transfer *transfer,
        const char *partial, const char *directory, struct error *err)
{
        int r = operation_made(operation, err);

        if (r == 0 && transfer)
                r = transfer_step(transfer, 0) < 0
                        ? fail(err, ECANCELED, "the export was broken off")
                        : 0;
        if (r == 0)
                r = name_folder(partial, directory, err);
        if (r == 0)
                r = catalog_begin(broker->catalog, err);
        if (r == 0 && transfer)
                r = transfer_done(transfer, err);
        if (r == 0)
                r = operation_commit(operation, err);
        if (r < 0 && catalog_in_transaction(broker->catalog))
                catalog_rollback(broker->catalog);
        return r;
}

static int carry_out(struct export *export, struct transfer *transfer, struct error *err)
{
        struct broker *broker = export->vm->broker;
        _cleanup_(operation_freep) struct operation *operation = NULL;
        int r = operation_begin(broker->catalog, host_fs(), OPERATION_EXPORT, export->vm->id, NULL,
                0, NULL, &operation, err);

        for (size_t i = 0; r == 0 && i < json_array_size(export->from); i++)
                r = copy_one(export, operation, i, transfer, err);
        if (r == 0)
                r = write_sidecar(export, operation, err);
        return r == 0 ? export_commit(broker, operation, transfer, export->partial,
                                export->directory, err)
                      : r;
}

/* ---- when it may be ---- */

static int refuse_on(struct export *export, const struct vm_row *row, struct error *err)
{
        bool on = false;
        int r = vm_is_on(export->vm, row, &on, err);

        if (r < 0 || !on)
                return r;
        fail(err, EBUSY, "vm '%s' is on", row->name);
        error_set_hint(err,
                "stop it, or end the clients of its disks; or let it run, and export what its disks "
                "are at one instant: --live");
        return -EBUSY;
}

int export_find_vm(struct vm *vm, const char *vm_name, struct vm_row *ret, struct error *err)
{
        int r = vm->removed ? -ENOENT : catalog_vm_find(vm->broker->catalog, vm->id, ret, err);

        return r == -ENOENT ? fail(err, ENOENT, "vm '%s' was removed", vm_name) : r;
}

/* In the middle of a merge the images read right only together with what the merge knows. */
int export_refuse_merging(struct vm *vm, const char *vm_name, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);

        for (size_t i = 0; r == 0 && i < jobs.n; i++) {
                const struct merge_job *job = &jobs.items[i];

                if (!merge_job_run(job) || merge_job_is(job, JOB_DONE))
                        continue;
                fail(err, EBUSY, "images of vm '%s' are being merged by job %lld, which is %s",
                        vm_name, (long long)job->row.id, job->row.state);
                error_set_hint(err,
                        merge_job_is_over(job) || merge_job_is(job, JOB_PAUSED)
                                ? "vhdctl job resume %lld"
                                : "vhdctl job wait %lld",
                        (long long)job->row.id);
                r = -EBUSY;
        }
        return r;
}

static int refuse_folder(const char *directory, const char *partial, struct error *err)
{
        const char *there = NULL;
        struct stat st;

        if (lstat(directory, &st) == 0)
                there = directory;
        else if (lstat(partial, &st) == 0)
                there = partial;
        if (!there)
                return 0;
        fail(err, EEXIST, "'%s' is there already", there);
        error_set_file(err, there);
        error_set_hint(err, "name a folder that is not there yet: nothing is written over");
        return -EEXIST;
}

int export_directories(
        const char *text, char **ret_directory, char **ret_partial, struct error *err)
{
        char absolute[PATH_TEXT_MAX];
        int r = path_absolute(text, absolute, sizeof(absolute));

        if (r < 0)
                return fail_os(err, -r, "cannot use the folder '%s'", text);
        *ret_directory = strdup(absolute);
        if (asprintf(ret_partial, "%s" EXPORT_PARTIAL_ENDING, absolute) < 0)
                *ret_partial = NULL;
        if (!*ret_directory || !*ret_partial)
                return no_memory(err);
        return refuse_folder(*ret_directory, *ret_partial, err);
}

/* ---- the job ---- */

static int take_snapshot(struct export *export, struct transfer *transfer, struct error *err)
{
        json_auto_t *params = NULL, *answer = NULL;
        int r;

        snprintf(export->snapshot, sizeof(export->snapshot), "export (job %lld)",
                (long long)transfer_job(transfer));
        params = json_pack("{s:s, s:s, s:b, s:b, s:s}", "vm", export->vm->id, "name",
                export->snapshot, "disks-only", true, "skip-pass-through", true, "note",
                "taken for an export, and deleted after it");
        if (!params)
                return no_memory(err);
        r = transfer_note_snapshot(transfer, export->snapshot, err);
        if (r == 0)
                r = vm_try_again(snapshot_take, export->vm->broker, NULL, params, &answer, err);
        return r;
}

/* With the vm's lock: after this the names of the files do not matter any more. */
static int get_ready(struct export *export, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = export_find_vm(export->vm, export->vm_name, &row, err);

        if (r == 0 && !export->live)
                r = refuse_on(export, &row, err);
        if (r == 0)
                r = export_refuse_merging(export->vm, row.name, err);
        /* What was cut off before is settled before, in the files too. */
        if (r == 0)
                r = worker_up(export->vm, err);
        if (r == 0 && !export->live) {
                r = worker_down(export->vm, QUIT_MS, err);
                r = r == -EHOSTDOWN ? 0 : r;
        }
        if (r == 0)
                r = prepare(export, err);
        return r == 0 ? open_sources(export, err) : r;
}

static int run_live(struct export *export, struct transfer *transfer, struct error *err)
{
        int r = take_snapshot(export, transfer, err);

        if (r < 0)
                return r;
        pthread_mutex_lock(&export->vm->lock);
        r = get_ready(export, err);
        pthread_mutex_unlock(&export->vm->lock);
        if (r < 0)
                return r;
        transfer_set_total(transfer, export->size);
        return carry_out(export, transfer, err);
}

static int run_alone(struct export *export, struct transfer *transfer, struct error *err)
{
        struct error why = ERROR_INIT;
        int r;

        pthread_mutex_lock(&export->vm->lock);
        r = get_ready(export, err);
        if (r == 0) {
                transfer_set_total(transfer, export->size);
                r = carry_out(export, transfer, err);
        }
        if (!export->vm->removed && !export->vm->vms->stopping && worker_up(export->vm, &why) < 0)
                vm_set_down(export->vm, why.message);
        pthread_mutex_unlock(&export->vm->lock);
        return r;
}

static int run(struct transfer *transfer, void *opaque, struct error *err)
{
        struct export *export = opaque;

        return export->live ? run_live(export, transfer, err) : run_alone(export, transfer, err);
}

/* The snapshot goes. If it cannot just now, the next start does it: the job's row says so. */
static void after(struct transfer *transfer, void *opaque)
{
        struct export *export = opaque;
        struct broker *broker = export->vm->broker;
        struct error err = ERROR_INIT;
        int r;

        if (!export->snapshot[0])
                return;
        forget_rows(export); /* whoever merges needs the files */
        r = transfer_delete_snapshot(broker, export->vm->id, export->snapshot, &err);
        if (r == 0)
                r = transfer_note_snapshot(transfer, NULL, &err);
        if (r < 0 && r != -ESHUTDOWN)
                broker_log_error(broker, export->vm_name, &err);
}

/* ---- the method ---- */

int export_begin(
        struct broker *broker, const struct transfer_work *work, json_t **ret, struct error *err)
{
        json_t *job = NULL;
        int r = transfer_begin(broker, work, &job, err);

        if (r == 0 && json_object_set_new(*ret, "job", job) < 0)
                r = no_memory(err); /* it goes on, and is in the list of jobs */
        if (r < 0) {
                json_decref(*ret);
                *ret = NULL;
        }
        return r;
}

static int begin(struct export *export, json_t **ret, struct error *err)
{
        char what[256];
        const struct transfer_work work = {
                .kind = JOB_EXPORT,
                .vm = export->vm,
                .alone = !export->live,
                .directory = export->directory,
                .what = what,
                .total = export->size,
                .rate = export->rate,
                .run = run,
                .after = after,
                .free = export_free,
                .opaque = export,
        };

        snprintf(what, sizeof(what), "export vm '%.160s'%s", export->vm_name,
                export->live ? " while it runs" : "");
        return export_begin(export->vm->broker, &work, ret, err);
}

static int answer(const struct export *export, json_t **ret, struct error *err)
{
        _cleanup_free_ char *sidecar = sidecar_path(export->directory, export->vm_name);
        json_auto_t *files = json_array();
        size_t n = strlen(export->partial);
        const char *path;
        json_t *to;
        size_t i;

        json_array_foreach(export->to, i, to)
        {
                _cleanup_free_ char *named = NULL;

                path = json_string_value(to);
                if (asprintf(&named, "%s%s", export->directory, path + n) < 0)
                        return no_memory(err);
                json_array_append_new(files, json_string(named));
        }
        for (i = 0; !export->config_only && i < export->rows.n_snapshots; i++) {
                _cleanup_free_ char *memory = NULL, *beside = NULL;

                if (!export->rows.snapshots[i].memory)
                        continue;
                memory = beneath(export, export->directory, export->rows.snapshots[i].memory);
                if (!memory || memory_settings_path(memory, &beside, err) < 0 ||
                        json_array_append_new(files, json_string(beside)) < 0)
                        return no_memory(err);
        }
        if (!sidecar || json_array_append_new(files, json_string(sidecar)) < 0)
                return no_memory(err);
        *ret = json_pack("{s:s, s:O, s:I}", "directory", export->directory, "files", files, "size",
                (json_int_t) export->size);
        return *ret ? 0 : no_memory(err);
}

static int look(
        struct export *export, const struct vm_row *row, const json_t *params, struct error *err)
{
        bool on = false;
        int r = export_directories(
                param_text(params, "directory"), &export->directory, &export->partial, err);

        export->vm_name = strdup(row->name);
        export->config_only = param_bool(params, "config-only");
        export->rate = (uint64_t)param_int(params, "limit", 0);
        if (r == 0 && !export->vm_name)
                r = no_memory(err);
        if (r == 0 && !export->config_only)
                r = transfer_refuse(export->vm, err);
        if (r == 0 && !export->config_only)
                r = vm_is_on(export->vm, row, &on, err);
        export->live = on && param_bool(params, "live");
        if (r == 0 && on && !export->live)
                r = refuse_on(export, row, err);
        if (r == 0 && !export->config_only)
                r = export_refuse_merging(export->vm, row->name, err);
        return r == 0 ? prepare(export, err) : r;
}

int vm_export(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(export_freep) struct export *export = calloc(1, sizeof(*export));
        int r = export ? vm_get(broker, param_text(params, "vm"), &vm, &row, err) : no_memory(err);

        if (r == 0)
                r = vm_add(broker, vm->id, &export->vm, err);
        if (r == 0)
                r = look(export, &row, params, err);
        if (r == 0 && !param_bool(params, "dry-run") && export->config_only)
                r = carry_out(export, NULL, err);
        if (r == 0)
                r = answer(export, ret, err);
        if (r < 0 || param_bool(params, "dry-run") || export->config_only)
                return r;
        return begin(TAKE_PTR(export), ret, err);
}
