/* SPDX-License-Identifier: Apache-2.0 */
/* vm.import: rows out of a sidecar or out of headers; the files where they lie, or copied; the
 * headers of what will be used confirmed once more; one commit.
 */
#include "vhdd/daemon/import.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "vhdd/daemon/copy_file.h"
#include "vhdd/daemon/export.h"
#include "vhdd/daemon/forest.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/notes.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/vms.h"
#include "vhdd/daemon/worker_link.h"

#define OPERATION_IMPORT "vm.import"

struct import {
        struct broker *broker;
        const json_t *params;
        struct doctor reader; /* its first root is the folder, or where the copies are */
        char **roots;
        char *directory;     /* absolute, without links */
        char *target;        /* where copies go; NULL: none are made */
        char *sidecar;       /* path of the one that the rows are from; NULL: from headers */
        struct sidecar rows; /* what will be in the catalog */
        json_t *trees, *notes;
};

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for an import");
}

static void import_done(struct import *import)
{
        sidecar_done(&import->rows);
        json_decref(import->trees);
        json_decref(import->notes);
        free(import->roots);
        free(import->directory);
        free(import->target);
        free(import->sidecar);
}

/* ---- what is asked ---- */

static int check_params(const json_t *params, struct error *err)
{
        unsigned n = (unsigned)param_bool(params, "copy") + param_bool(params, "move") +
                (param_text(params, "to") != NULL);

        if (n == 1)
                return 0;
        fail(err, EINVAL,
                n == 0 ? "shall the files be used where they lie, or copied?"
                       : "only one of --move, --copy and --to can be meant");
        error_set_hint(err,
                "--move uses them where they lie, --copy copies them into a folder beside theirs, "
                "--to DIR copies them there");
        return -EINVAL;
}

static int resolve(void *opaque, const char *path, const char *format, char *const *roots,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *err)
{
        return resolve_chain(opaque, path, format, roots, n_roots, ret, ret_n, err);
}

static int prepare(struct import *import, struct error *err)
{
        const struct broker_options *options = &import->broker->options;
        const char *directory = param_text(import->params, "directory");

        import->trees = json_array();
        import->notes = json_array();
        import->roots = calloc(options->n_image_roots + 1, sizeof(*import->roots));
        if (!import->trees || !import->notes || !import->roots)
                return no_memory(err);
        import->directory = realpath(directory, NULL);
        if (!import->directory)
                return fail_os(err, errno, "cannot look into '%s'", directory);
        import->roots[0] = import->directory;
        for (size_t i = 0; i < options->n_image_roots; i++)
                import->roots[i + 1] = options->image_roots[i];
        import->reader = (struct doctor){
                .catalog = import->broker->catalog,
                .roots = import->roots,
                .n_roots = options->n_image_roots + 1,
                .resolve = resolve,
                .opaque = import->broker,
        };
        return 0;
}

/* ---- rows ---- */

/* The folder's sidecar, if there is exactly one in it. */
static char *find_sidecar(const char *directory)
{
        DIR *dir = opendir(directory);
        struct dirent *entry;
        char *path = NULL;
        unsigned n = 0;

        while (dir && (entry = readdir(dir))) {
                size_t length = strlen(entry->d_name), ending = strlen(SIDECAR_ENDING);

                if (length <= ending ||
                        strcmp(entry->d_name + length - ending, SIDECAR_ENDING) != 0 || n++ > 0)
                        continue;
                if (asprintf(&path, "%s/%s", directory, entry->d_name) < 0)
                        path = NULL;
        }
        if (dir)
                closedir(dir);
        if (n != 1) {
                free(path);
                return NULL;
        }
        return path;
}

/* Answers whether the rows are there; why not is a note. */
static bool rows_from_sidecar(struct import *import)
{
        _cleanup_free_ char *path = find_sidecar(import->directory);
        struct error why = ERROR_INIT;

        if (!path || param_text(import->params, "only"))
                return false;
        if (sidecar_read(host_fs(), path, &import->rows, &why) == 0 &&
                sidecar_confine(&import->rows, import->reader.roots, import->reader.n_roots,
                        import->notes, &why) == 0 &&
                doctor_confirm(&import->reader, &import->rows, &why) == 0) {
                import->sidecar = TAKE_PTR(path);
                return true;
        }
        note_add(import->notes, "the folder's sidecar is not used: %s", why.message);
        sidecar_done(&import->rows);
        return false;
}

/* Why not is in the notes, which an error does not bring along. */
static int refuse_nothing(const struct import *import, struct error *err)
{
        const char *why = json_string_value(json_array_get(import->notes, 0));
        size_t n = json_array_size(import->notes);

        if (!why)
                return fail(err, ENOENT, "there is no image (.vhd, .avhd, .vud) in '%s'",
                        import->directory);
        return fail(err, EUCLEAN, "no image in '%s' can be used: %s%s", import->directory, why,
                n > 1 ? ", and others" : "");
}

static int rows_from_headers(struct import *import, struct error *err)
{
        _cleanup_(forest_done) struct forest forest = {0};
        _cleanup_free_ char *name = NULL;
        size_t root = 0;
        int r = forest_scan(&import->reader, import->directory, &forest, import->notes, err);

        if (r < 0)
                return r;
        json_decref(import->trees);
        import->trees = forest_to_json(&forest);
        if (forest.n == 0)
                return refuse_nothing(import, err);
        r = forest_choose(&forest, param_text(import->params, "only"), &root, err);
        if (r == 0)
                r = name_of_file(forest.nodes[root].path, &name, err);
        if (r == 0)
                r = forest_to_rows(&forest, root, name, &import->rows, import->notes, err);
        return r;
}

static bool is_vm(struct catalog *catalog, const char *name_or_id)
{
        struct vm_row row;

        if (catalog_vm_find(catalog, name_or_id, &row, NULL) < 0)
                return false;
        vm_row_done(&row);
        return true;
}

static int name_vm(struct import *import, struct error *err)
{
        const char *name = param_text(import->params, "name");
        int r;

        if (name) {
                char *copy = strdup(name);

                if (!copy)
                        return no_memory(err);
                free(import->rows.vm.name);
                import->rows.vm.name = copy;
        }
        r = name_check("vm", import->rows.vm.name, err);
        if (r == 0 && is_vm(import->broker->catalog, import->rows.vm.name)) {
                r = fail(err, EEXIST, "there is a vm '%s' already", import->rows.vm.name);
                error_set_hint(err, "give the new one another name with --name");
        }
        return r;
}

/* What was frozen counts from now on as it is now: the way here may have changed the times. */
static void seal_anew(struct image_row *row)
{
        struct stat st;

        if (row->sealed_mtime_ns == 0 || stat(row->path, &st) < 0)
                return;
        row->sealed_size = (uint64_t)st.st_size;
        row->sealed_mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
}

/* A copy of a vm that is here still becomes another vm. A row that only a running vm has means
 * nothing in the new one. */
static int settle_rows(struct import *import, struct error *err)
{
        struct sidecar *rows = &import->rows;

        rows->vm.is_on_by_agent = false;
        for (size_t i = 0; i < rows->n_images; i++) {
                struct image_row *row = &rows->images[i];

                /* From here on the vm's own, which its snapshots may give up; but what stands at the
                 * bottom stays the user's as long as it lies where he put it. */
                row->made_by_us = import->target != NULL || row->parent != NULL;
                seal_anew(row);
        }
        if (!is_vm(import->broker->catalog, rows->vm.id))
                return 0;
        note_add(import->notes, "the vm gets new ids: the one that it was copied from is here too");
        return sidecar_new_ids(rows, err);
}

static int make_rows(struct import *import, struct error *err)
{
        int r = rows_from_sidecar(import) ? 0 : rows_from_headers(import, err);

        if (r == 0)
                r = name_vm(import, err);
        return r;
}

/* ---- where the files will be ---- */

static int choose_target(struct import *import, struct error *err)
{
        const char *to = param_text(import->params, "to");
        _cleanup_free_ char *parent = NULL;

        if (param_bool(import->params, "move"))
                return 0;
        if (to) {
                import->target = strdup(to);
                return import->target ? 0 : no_memory(err);
        }
        parent = name_directory(import->directory);
        if (!parent ||
                asprintf(&import->target, "%s/%s", strcmp(parent, "/") ? parent : "",
                        import->rows.vm.name) < 0)
                return no_memory(err);
        if (strcmp(import->target, import->directory) == 0) {
                fail(err, EEXIST, "the copies would lie in '%s' itself", import->directory);
                error_set_hint(err, "say where with --to DIR, or use the files there with --move");
                return -EEXIST;
        }
        return 0;
}

/* A path beneath the folder, beneath the target. */
static char *to_target(void *opaque, const char *path)
{
        const struct import *import = opaque;
        size_t n = strlen(import->directory);
        char *to = NULL;

        if (strncmp(path, import->directory, n) != 0 || path[n] != '/')
                return strdup(path);
        return asprintf(&to, "%s%s", import->target, path + n) < 0 ? NULL : to;
}

/* What is used in place must be nobody else's; what is copied must lie in the folder. */
static int check_files(struct import *import, struct error *err)
{
        size_t n = strlen(import->directory);

        for (size_t i = 0; i < import->rows.n_images; i++) {
                const char *path = import->rows.images[i].path;
                bool named = false;
                int r;

                if (import->target) {
                        if (strncmp(path, import->directory, n) == 0 && path[n] == '/')
                                continue;
                        fail(err, EINVAL, "'%s' lies outside of the folder, and is not copied",
                                path);
                        error_set_file(err, path);
                        error_set_hint(err, "use the files where they lie: --move");
                        return -EINVAL;
                }
                r = catalog_names_path(import->broker->catalog, path, &named, err);
                if (r < 0)
                        return r;
                if (named) {
                        fail(err, EBUSY, "'%s' is used by a vm already", path);
                        error_set_file(err, path);
                        error_set_hint(err, "copy the files: --copy or --to DIR");
                        return -EBUSY;
                }
        }
        return 0;
}

/* ---- doing it ---- */

static int copy_images(struct import *import, struct operation *operation, struct error *err)
{
        for (size_t i = 0; i < import->rows.n_images; i++) {
                const char *from = import->rows.images[i].path;
                _cleanup_free_ char *to = to_target(import, from);
                int r = to ? make_folders(to, err) : no_memory(err);

                if (r == 0)
                        r = operation_will_make(operation, to, err);
                if (r == 0)
                        r = copy_file(from, to, &import->broker->stopping, err);
                if (r == -EEXIST)
                        (void)operation_not_made(operation, to, NULL);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* From here on the rows and the reader speak of the copies, and of nothing else. */
static int turn_to_copies(struct import *import, struct error *err)
{
        int r = sidecar_rename(&import->rows, to_target, import, err);

        if (r < 0)
                return r;
        import->reader.roots = &import->target;
        import->reader.n_roots = 1;
        return doctor_confirm(&import->reader, &import->rows, err);
}

/* Where the sidecar will lie: beside the first disk that is a file. */
static int set_directory(struct sidecar *rows, struct error *err)
{
        free(rows->vm.directory);
        rows->vm.directory = NULL;
        for (size_t i = 0; i < rows->n_disks && !rows->vm.directory; i++) {
                if (strcmp(rows->disks[i].kind, "pass-through") == 0)
                        continue;
                rows->vm.directory = name_directory(rows->disks[i].file);
                if (!rows->vm.directory)
                        return no_memory(err);
        }
        return 0;
}

/* Of a folder that is taken over, the sidecar goes on under the vm's name, and nowhere else. */
static int replace_sidecar(struct import *import, struct operation *operation, struct error *err)
{
        _cleanup_free_ char *path = NULL;

        if (import->target || !import->sidecar || !import->rows.vm.directory)
                return 0;
        path = sidecar_path(import->rows.vm.directory, import->rows.vm.name);
        if (!path)
                return no_memory(err);
        return strcmp(path, import->sidecar) == 0
                ? 0
                : operation_will_remove(operation, import->sidecar, err);
}

static int commit(struct import *import, struct operation *operation, struct error *err)
{
        struct catalog *catalog = import->broker->catalog;
        _cleanup_(catalog_rollbackp) struct catalog *transaction = catalog;
        int r = operation_made(operation, err);

        if (r == 0)
                r = catalog_begin(transaction, err);
        if (r == 0)
                r = sidecar_insert(transaction, &import->rows, err);
        return r == 0 ? operation_commit(operation, err) : r;
}

static int carry_out(struct import *import, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        int r = operation_begin(import->broker->catalog, host_fs(), OPERATION_IMPORT, NULL, NULL, 0,
                NULL, &operation, err);

        if (r == 0 && import->target)
                r = copy_images(import, operation, err);
        if (r == 0 && import->target)
                r = turn_to_copies(import, err);
        if (r == 0)
                r = settle_rows(import, err);
        if (r == 0)
                r = set_directory(&import->rows, err);
        if (r == 0)
                r = replace_sidecar(import, operation, err);
        return r == 0 ? commit(import, operation, err) : r;
}

/* The vm is there; that its worker does not start is its state, not a failure of the import. */
static int serve(struct import *import, json_t **ret_vm, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *added = NULL;
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        struct error why = ERROR_INIT;
        int r = vm_add(import->broker, import->rows.vm.id, &added, err);

        if (r == 0)
                r = vm_get(import->broker, import->rows.vm.id, &vm, &row, err);
        if (r < 0)
                return r;
        vm_changed(vm, "vm-imported", NULL);
        if (worker_up(vm, &why) < 0) {
                note_add(import->notes, "its disks are not served yet: %s", why.message);
                vm_set_down(vm, why.message);
        }
        return vm_to_json(vm, &row, true, ret_vm, err);
}

static int vm_import(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(import_done) struct import import = {.broker = broker, .params = params};
        bool dry = param_bool(params, "dry-run");
        json_t *vm = NULL;
        int r = check_params(params, err);

        if (r == 0)
                r = prepare(&import, err);
        if (r == 0)
                r = make_rows(&import, err);
        if (r == 0)
                r = choose_target(&import, err);
        if (r == 0)
                r = check_files(&import, err);
        if (r == 0 && !dry)
                r = carry_out(&import, err);
        if (r == 0 && !dry)
                r = serve(&import, &vm, err);
        if (r < 0)
                return r;
        *ret = json_pack(
                "{s:O, s:O, s:o*}", "notes", import.notes, "trees", import.trees, "vm", vm);
        return *ret ? 0 : no_memory(err);
}

const struct method import_methods[] = {
        {"vm.import", vm_import, true},
        {"vm.export", vm_export, true},
        {NULL, NULL, false},
};
