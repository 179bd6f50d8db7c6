/* SPDX-License-Identifier: Apache-2.0 */
/* The files keep their places to one another, so that the relative locators in them stay true. */
#include "vhdd/daemon/export.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "chain/paths.h"
#include "vhdd/daemon/copy_file.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/sidecar.h"
#include "vhdd/daemon/vms.h"
#include "vhdd/daemon/worker_link.h"

#define OPERATION_EXPORT "vm.export"
#define QUIT_MS          20000

struct export
{
        struct vm *vm;
        struct sidecar rows;
        char *directory;          /* where it goes */
        char base[PATH_TEXT_MAX]; /* the deepest folder that holds every file */
        char *sidecar;            /* path of the new one */
        json_t *from, *to;        /* paths, side by side */
        uint64_t size;
};

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for an export");
}

static void export_done(struct export *export)
{
        sidecar_done(&export->rows);
        json_decref(export->from);
        json_decref(export->to);
        free(export->directory);
        free(export->sidecar);
}

/* ---- which files ---- */

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

static int widen_base(struct export *export, const char *path)
{
        char directory[PATH_TEXT_MAX], common[PATH_TEXT_MAX];

        path_directory(path, directory, sizeof(directory));
        if (!export->base[0])
                return snprintf(export->base, sizeof(export->base), "%s", directory);
        path_common_directory(export->base, directory, common, sizeof(common));
        return snprintf(export->base, sizeof(export->base), "%s", common);
}

static char *to_directory(void *opaque, const char *path)
{
        const struct export *export = opaque;
        const char *rest = NULL;
        char *to = NULL;

        if (!path_is_beneath(path, export->base, &rest))
                return strdup(path);
        return asprintf(&to, "%s/%s", export->directory, rest) < 0 ? NULL : to;
}

static int add_file(struct export *export, const char *path, struct error *err)
{
        _cleanup_free_ char *to = to_directory(export, path);
        struct stat st;

        if (stat(path, &st) < 0)
                return fail_os(err, errno, "cannot look at '%s'", path);
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

static int prepare(struct export *export, const json_t *params, struct error *err)
{
        char absolute[PATH_TEXT_MAX];
        int r = path_absolute(param_text(params, "directory"), absolute, sizeof(absolute));

        if (r < 0)
                return fail_os(
                        err, -r, "cannot use the folder '%s'", param_text(params, "directory"));
        export->from = json_array();
        export->to = json_array();
        export->directory = strdup(absolute);
        if (!export->from || !export->to || !export->directory)
                return no_memory(err);
        r = sidecar_collect(export->vm->broker->catalog, export->vm->id, &export->rows, err);
        if (r < 0)
                return r;
        drop_pass_through(&export->rows);
        export->sidecar = sidecar_path(export->directory, export->rows.vm.name);
        if (!export->sidecar)
                return no_memory(err);
        return param_bool(params, "config-only") ? 0 : list_files(export, err);
}

/* ---- writing them ---- */

static int begin(struct export *export, struct operation **ret, struct error *err)
{
        _cleanup_free_ char *new = NULL;
        const char *make[2] = {export->sidecar, NULL};

        if (asprintf(&new, "%s.new", export->sidecar) < 0)
                return no_memory(err);
        make[1] = new;
        return operation_begin(export->vm->broker->catalog, host_fs(), OPERATION_EXPORT,
                export->vm->id, make, 2, NULL, ret, err);
}

static int copy_files(struct export *export, struct operation *operation, struct error *err)
{
        for (size_t i = 0; i < json_array_size(export->from); i++) {
                const char *from = json_string_value(json_array_get(export->from, i));
                const char *to = json_string_value(json_array_get(export->to, i));
                int r = make_folders(to, err);

                if (r == 0)
                        r = operation_will_make(operation, to, err);
                if (r == 0)
                        r = copy_file(from, to, &export->vm->broker->stopping, err);
                if (r == -EEXIST)
                        (void)operation_not_made(operation, to, NULL);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int write_sidecar(struct export *export, struct error *err)
{
        json_auto_t *json = NULL;
        int r = 0;

        export->rows.exported = true;
        if (json_array_size(export->from) > 0)
                r = sidecar_rename(&export->rows, to_directory, export, err);
        if (r == 0)
                r = sidecar_to_json(&export->rows, export->directory, &json, err);
        if (r == 0)
                r = make_folders(export->sidecar, err);
        return r == 0 ? sidecar_store(host_fs(), export->sidecar, json, err) : r;
}

/* No row names what was made: the journal's row goes, and the files are the user's. */
static int carry_out(struct export *export, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        int r = begin(export, &operation, err);

        if (r == 0)
                r = copy_files(export, operation, err);
        if (r == 0)
                r = write_sidecar(export, err);
        if (r == 0)
                r = operation_made(operation, err);
        if (r == 0)
                r = catalog_begin(export->vm->broker->catalog, err);
        return r == 0 ? operation_commit(operation, err) : r;
}

/* Its worker lets go of the leaves: what is in them then is all there is. */
static int with_worker_down(struct export *export, struct error *err)
{
        struct vm *vm = export->vm;
        struct error why = ERROR_INIT;
        int r = worker_down(vm, QUIT_MS, err);

        if (r == 0 || r == -EHOSTDOWN)
                r = carry_out(export, err);
        if (worker_up(vm, &why) < 0)
                vm_set_down(vm, why.message);
        return r;
}

static int refuse_on(struct vm *vm, const struct vm_row *row, struct error *err)
{
        bool on = false;
        int r = vm_is_on(vm, row, &on, err);

        if (r < 0 || !on)
                return r;
        fail(err, EBUSY, "vm '%s' is on", row->name);
        error_set_hint(err, "stop it, or end the clients of its disks, before");
        return -EBUSY;
}

int vm_export(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(export_done) struct export export = {0};
        bool config_only = param_bool(params, "config-only");
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        export.vm = vm;
        if (r == 0 && !config_only)
                r = refuse_on(vm, &row, err);
        if (r == 0)
                r = prepare(&export, params, err);
        if (r == 0 && !param_bool(params, "dry-run"))
                r = config_only ? carry_out(&export, err) : with_worker_down(&export, err);
        if (r == 0 && json_array_append_new(export.to, json_string(export.sidecar)) < 0)
                r = no_memory(err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:O, s:I}", "directory", export.directory, "files", export.to,
                "size", (json_int_t) export.size);
        return *ret ? 0 : no_memory(err);
}
