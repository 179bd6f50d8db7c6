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
#include "vhdd/daemon/hyperv_rows.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/macs.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/notes.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/strangers.h"
#include "vhdd/daemon/vms.h"
#include "vhdd/daemon/worker_link.h"

#define OPERATION_IMPORT "vm.import"

struct import {
        struct broker *broker;
        json_t *params;
        struct doctor reader; /* its first root is the folder, or where the copies are */
        char **roots;
        char *directory;     /* absolute, without links */
        char *target;        /* where copies go; NULL: none are made */
        char *sidecar;       /* path of the one that the rows are from; NULL: from headers */
        struct sidecar rows; /* what will be in the catalog */
        json_t *trees, *notes, *unknown;
        uint64_t size; /* of what will be copied */
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
        json_decref(import->unknown);
        json_decref(import->params);
        free(import->roots);
        free(import->directory);
        free(import->target);
        free(import->sidecar);
}

/* ---- what is asked ---- */

static int check_params(const json_t *params, struct error *err)
{
        bool copy = param_bool(params, "copy") || param_text(params, "to") != NULL;
        bool move = param_bool(params, "move");

        if (copy != move)
                return 0;
        fail(err, EINVAL,
                copy ? "only one of --move and --copy can be meant"
                     : "shall the files be used where they lie, or copied?");
        error_set_hint(err,
                "--move uses them where they lie, --copy copies them into a folder beside theirs, "
                "--to DIR copies them there");
        return -EINVAL;
}

/* What an export that was cut off left, if nobody took it back. */
static int refuse_partial(const char *directory, struct error *err)
{
        size_t n = strlen(directory), ending = strlen(EXPORT_PARTIAL_ENDING);

        if (n < ending || strcmp(directory + n - ending, EXPORT_PARTIAL_ENDING) != 0)
                return 0;
        fail(err, EUCLEAN, "'%s' is an export that is not whole", directory);
        error_set_hint(err,
                "one that was cut off is removed when the daemon that made it starts; export again");
        return -EUCLEAN;
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
        if (refuse_partial(import->directory, err) < 0)
                return -EUCLEAN;
        import->roots[0] = import->directory;
        for (size_t i = 0; i < options->n_image_roots; i++)
                import->roots[i + 1] = options->image_roots[i];
        import->reader = (struct doctor){
                .catalog = import->broker->catalog,
                .roots = import->roots,
                /* A copy stands on what is copied along, and on nothing that has the same id elsewhere. */
                .n_roots = param_bool(import->params, "move") ? options->n_image_roots + 1 : 1,
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

/* Of a folder that an export made, all of it is meant. */
static int refuse_incomplete(int r, struct error *err)
{
        error_set_hint(err,
                "this is no whole export; --only FILE makes a vm of what that file's tree holds, by "
                "the headers alone");
        return r;
}

/* *ret says whether the rows are there; why not is a note. */
static int rows_from_sidecar(struct import *import, bool *ret, struct error *err)
{
        _cleanup_free_ char *path = find_sidecar(import->directory);
        struct error why = ERROR_INIT;
        bool exported;
        int r;

        *ret = false;
        if (!path || param_text(import->params, "only"))
                return 0;
        r = sidecar_read(host_fs(), path, &import->rows, &why);
        exported = r == 0 && import->rows.exported;
        if (r == 0)
                r = sidecar_confine(&import->rows, import->reader.roots, import->reader.n_roots,
                        import->notes, &why);
        if (r == 0)
                r = doctor_confirm(&import->reader, &import->rows, &why);
        if (r == 0) {
                import->sidecar = TAKE_PTR(path);
                import->rows.exported = false;
                *ret = true;
                return 0;
        }
        if (exported) {
                *err = why;
                return refuse_incomplete(r, err);
        }
        note_add(import->notes, "the folder's sidecar is not used: %s", why.message);
        sidecar_done(&import->rows);
        return 0;
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

/* An image whose parent is missing may be what the vm is now: that is nothing to be left out in silence. */
static int refuse_left_out(
        const struct import *import, const struct forest *forest, struct error *err)
{
        if (forest->n_left_out == 0 || forest->n == 0 || param_text(import->params, "only") ||
                param_bool(import->params, "force"))
                return 0;
        *err = forest->why;
        fail_prefix(err, -err->code, "'%s' cannot be used", forest->why.file);
        error_set_hint(err,
                "--force leaves out what cannot be used; --only FILE means one tree of images");
        return -err->code;
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
        r = refuse_left_out(import, &forest, err);
        if (r < 0)
                return r;
        r = forest_choose(&forest, param_text(import->params, "only"), &root, err);
        if (r == 0)
                r = name_of_file(forest.nodes[root].path, &name, err);
        if (r == 0)
                r = forest_to_rows(&forest, root, name, &import->rows, import->notes, err);
        return r;
}

static int rows_from_forest(
        struct import *import, const struct hyperv_folder *folder, struct error *err)
{
        _cleanup_(forest_done) struct forest forest = {0};
        int r = forest_scan(&import->reader, import->directory, &forest, import->notes, err);

        if (r < 0)
                return r;
        json_decref(import->trees);
        import->trees = forest_to_json(&forest);
        return hyperv_folder_to_rows(folder, &forest, &import->rows, import->notes, err);
}

/* A folder of Hyper-V's says by its configurations what its images are. */
static int rows_from_hyperv(struct import *import, bool *ret, struct error *err)
{
        _cleanup_(hyperv_folder_done) struct hyperv_folder folder = {0};
        bool any = false;
        int r = 0;

        *ret = false;
        if (!param_text(import->params, "only"))
                r = hyperv_folder_look(import->directory, &folder, &any, err);
        if (r < 0 || !any)
                return r;
        r = hyperv_folder_read(import->broker, &folder, param_bool(import->params, "force"), err);
        if (r == 0)
                r = rows_from_forest(import, &folder, err);
        if (r < 0)
                return r;
        import->unknown = json_incref(folder.unknown);
        *ret = true;
        return 0;
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

/* The next start goes on from a snapshot's memory only if that is there. */
static void check_resume(struct sidecar *rows)
{
        for (size_t i = 0; i < rows->n_snapshots; i++)
                if (strcmp(rows->snapshots[i].id, rows->vm.resume) == 0 &&
                        rows->snapshots[i].memory)
                        return;
        rows->vm.resume[0] = '\0';
}

/* A row that only a running vm has means nothing in the new one. */
static void settle_rows(struct import *import)
{
        struct sidecar *rows = &import->rows;

        rows->vm.is_on_by_agent = false;
        check_resume(rows);
        for (size_t i = 0; i < rows->n_images; i++) {
                struct image_row *row = &rows->images[i];

                /* From here on the vm's own, which its snapshots may give up; but what stands at the
                 * bottom stays the user's as long as it lies where he put it. */
                row->made_by_us = import->target != NULL || row->parent != NULL;
                seal_anew(row);
        }
}

/* A copy is another vm; what is moved is the vm that it was. */
static int choose_ids(struct import *import, struct error *err)
{
        struct sidecar *rows = &import->rows;

        if (!param_bool(import->params, "move"))
                return sidecar_new_ids(rows, err);
        if (!is_vm(import->broker->catalog, rows->vm.id))
                return 0;
        fail(err, EEXIST, "the vm that was exported here is there already, with the id %s",
                rows->vm.id);
        error_set_hint(err, "--copy makes another vm of it, with an id of its own");
        return -EEXIST;
}

static int make_rows(struct import *import, struct error *err)
{
        bool found = false;
        int r = rows_from_sidecar(import, &found, err);

        if (r == 0 && !found)
                r = rows_from_hyperv(import, &found, err);
        if (r == 0 && !found)
                r = rows_from_headers(import, err);
        if (r == 0)
                r = name_vm(import, err);
        if (r == 0)
                r = choose_ids(import, err);
        return r == 0 ? macs_make_unique(import->broker->catalog, &import->rows, import->notes, err)
                      : r;
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

static bool is_in_folder(const struct import *import, const char *path)
{
        size_t n = strlen(import->directory);

        return strncmp(path, import->directory, n) == 0 && path[n] == '/';
}

/* What is copied must lie in the folder, and come to lie where nothing is. */
static int check_copy(struct import *import, const char *path, struct error *err)
{
        _cleanup_free_ char *to = to_target(import, path);
        struct stat st;

        if (!to)
                return no_memory(err);
        if (!is_in_folder(import, path)) {
                fail(err, EINVAL, "'%s' lies outside of the folder, and is not copied", path);
                error_set_file(err, path);
                error_set_hint(err, "use the files where they lie: --move");
                return -EINVAL;
        }
        if (lstat(to, &st) == 0) {
                fail(err, EEXIST, "'%s' is there already", to);
                error_set_file(err, to);
                error_set_hint(err, "copy into another folder: --to DIR");
                return -EEXIST;
        }
        if (stat(path, &st) == 0)
                import->size += (uint64_t)st.st_blocks * 512;
        return 0;
}

/* What is used in place must be nobody else's. */
static int check_in_place(struct import *import, const char *path, struct error *err)
{
        bool named = false;
        int r = catalog_names_path(import->broker->catalog, path, &named, err);

        if (r < 0 || !named)
                return r;
        fail(err, EBUSY, "'%s' is used by a vm already", path);
        error_set_file(err, path);
        error_set_hint(err, "copy the files: --copy or --to DIR");
        return -EBUSY;
}

static const struct image_row *find_row(const struct sidecar *rows, const char *path)
{
        for (size_t i = 0; path && i < rows->n_images; i++)
                if (strcmp(rows->images[i].path, path) == 0)
                        return &rows->images[i];
        return NULL;
}

/* Settings that were written down some time ago name a leaf on which another image stands since: written to, it
 * would take that one's ground away, with all that came later. */
static int check_leaves(struct import *import, struct error *err)
{
        const struct sidecar *rows = &import->rows;
        _cleanup_(strangers_done) struct strangers strangers = {0};
        json_auto_t *ours = json_array();
        int r = strangers_init(&strangers, import->broker, err);

        for (size_t i = 0; i < rows->n_images; i++)
                json_array_append_new(ours, json_string(rows->images[i].path));
        for (size_t i = 0; r == 0 && i < rows->n_disks; i++) {
                const struct image_row *leaf = find_row(rows, rows->disks[i].file);
                _cleanup_free_ char *who = NULL;

                if (!leaf || rows->disks[i].read_only || strcmp(leaf->format, "vhd") != 0)
                        continue;
                r = strangers_find(&strangers, leaf, ours, &who, err);
                if (r < 0 || !who)
                        continue;
                r = fail(err, EBUSY,
                        "'%s' stands on '%s', which the vm's settings have as the disk '%s': they are older than that image",
                        who, leaf->path, rows->disks[i].name);
                error_set_file(err, who);
                error_set_hint(err, "move the settings away, and the tree is read from the images");
        }
        return r;
}

static int check_files(struct import *import, struct error *err)
{
        struct sidecar *rows = &import->rows;
        int r = import->target ? 0 : check_leaves(import, err);

        for (size_t i = 0; r == 0 && i < rows->n_images; i++)
                r = import->target ? check_copy(import, rows->images[i].path, err)
                                   : check_in_place(import, rows->images[i].path, err);
        for (size_t i = 0; r == 0 && import->target && i < rows->n_snapshots; i++) {
                char **memory = &rows->snapshots[i].memory;

                if (!*memory)
                        continue;
                if (is_in_folder(import, *memory)) {
                        r = check_copy(import, *memory, err);
                        continue;
                }
                note_add(import->notes,
                        "the saved memory '%s' is left out: it lies outside of the "
                        "folder",
                        *memory);
                free(*memory);
                *memory = NULL;
        }
        return r;
}

/* ---- doing it ---- */

static int copy_step(void *opaque, uint64_t bytes)
{
        return transfer_step(opaque, bytes);
}

static int copy_one(struct import *import, struct operation *operation, const char *from,
        struct transfer *transfer, struct error *err)
{
        const struct copy_watch watch = {copy_step, transfer};
        _cleanup_free_ char *to = to_target(import, from);
        int r = to ? transfer_will_make(operation, to, err) : no_memory(err);

        if (r == 0)
                r = copy_file(from, to, &watch, err);
        if (r == -EEXIST)
                (void)operation_not_made(operation, to, NULL);
        return r;
}

static int copy_files(struct import *import, struct operation *operation, struct transfer *transfer,
        struct error *err)
{
        const struct sidecar *rows = &import->rows;
        int r = 0;

        for (size_t i = 0; r == 0 && i < rows->n_images; i++)
                r = copy_one(import, operation, rows->images[i].path, transfer, err);
        for (size_t i = 0; r == 0 && i < rows->n_snapshots; i++)
                if (rows->snapshots[i].memory)
                        r = copy_one(import, operation, rows->snapshots[i].memory, transfer, err);
        return r;
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

/* Beside each memory: the settings of the vm that it has become. */
static int write_settings(struct import *import, struct operation *operation, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < import->rows.n_snapshots; i++)
                if (import->rows.snapshots[i].memory)
                        r = memory_settings_copy(operation, &import->rows.snapshots[i],
                                import->rows.snapshots[i].memory, err);
        return r;
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

static int commit(struct import *import, struct operation *operation, struct transfer *transfer,
        struct error *err)
{
        struct catalog *catalog = import->broker->catalog;
        _cleanup_(catalog_rollbackp) struct catalog *transaction = catalog;
        int r = operation_made(operation, err);

        if (r == 0)
                r = catalog_begin(transaction, err);
        if (r == 0)
                r = sidecar_insert(transaction, &import->rows, err);
        if (r == 0 && transfer)
                r = transfer_done(transfer, err);
        return r == 0 ? operation_commit(operation, err) : r;
}

/* @transfer: the job that copies; NULL: nothing is copied. */
static int carry_out(struct import *import, struct transfer *transfer, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        int r = operation_begin(import->broker->catalog, host_fs(), OPERATION_IMPORT, NULL, NULL, 0,
                NULL, &operation, err);

        if (r == 0 && import->target)
                r = copy_files(import, operation, transfer, err);
        if (r == 0 && import->target)
                r = turn_to_copies(import, err);
        if (r == 0 && import->target)
                r = write_settings(import, operation, err);
        if (r < 0)
                return r;
        settle_rows(import);
        r = set_directory(&import->rows, err);
        if (r == 0)
                r = replace_sidecar(import, operation, err);
        return r == 0 ? commit(import, operation, transfer, err) : r;
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

/* ---- the job ---- */

static void import_free(void *opaque)
{
        if (opaque)
                import_done(opaque);
        free(opaque);
}

static void import_freep(struct import **import)
{
        import_free(*import);
}

static int run(struct transfer *transfer, void *opaque, struct error *err)
{
        struct import *import = opaque;
        struct error why = ERROR_INIT;
        json_t *vm = NULL;
        int r = carry_out(import, transfer, err);

        if (r < 0)
                return r;
        /* The vm is there: what comes now can be done again. */
        if (serve(import, &vm, &why) < 0)
                broker_log_error(import->broker, import->rows.vm.name, &why);
        json_decref(vm);
        return 0;
}

static int begin(struct import *import, json_t **ret, struct error *err)
{
        struct broker *broker = import->broker;
        char what[256];
        const struct transfer_work work = {
                .kind = JOB_IMPORT,
                .directory = import->target,
                .what = what,
                .total = import->size,
                .rate = (uint64_t)param_int(import->params, "limit", 0),
                .run = run,
                .free = import_free,
                .opaque = import,
        };

        snprintf(what, sizeof(what), "import vm '%.160s'", import->rows.vm.name);
        return transfer_begin(broker, &work, ret, err);
}

/* ---- the method ---- */

static int look(struct import *import, struct error *err)
{
        int r = check_params(import->params, err);

        if (r == 0)
                r = prepare(import, err);
        if (r == 0)
                r = make_rows(import, err);
        if (r == 0)
                r = choose_target(import, err);
        return r == 0 ? check_files(import, err) : r;
}

static int vm_import(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(import_freep) struct import *import = calloc(1, sizeof(*import));
        json_auto_t *vm = NULL, *job = NULL, *answer = NULL;
        int r;

        if (!import)
                return no_memory(err);
        import->broker = broker;
        import->params = json_deep_copy(params);
        r = import->params ? look(import, err) : no_memory(err);
        if (r < 0)
                return r;
        /* A job's thread has more to note, for nobody. */
        answer = json_pack("{s:o, s:O, s:s, s:s, s:O*}", "notes",
                param_bool(params, "move") ? json_incref(import->notes)
                                           : json_deep_copy(import->notes),
                "trees", import->trees, "id", import->rows.vm.id, "name", import->rows.vm.name,
                "unknown", import->unknown);
        if (!answer)
                return no_memory(err);
        if (!param_bool(params, "dry-run") && import->target)
                r = begin(TAKE_PTR(import), &job, err);
        else if (!param_bool(params, "dry-run"))
                r = carry_out(import, NULL, err);
        if (r == 0 && import && !param_bool(params, "dry-run"))
                r = serve(import, &vm, err);
        if (r < 0)
                return r;
        if ((vm && json_object_set(answer, "vm", vm) < 0) ||
                (job && json_object_set(answer, "job", job) < 0))
                return no_memory(err);
        *ret = json_incref(answer);
        return 0;
}

const struct method import_methods[] = {
        {"vm.import", vm_import, true},
        {"vm.export", vm_export, true},
        {"snapshot.export", snapshot_export, true},
        {NULL, NULL, false},
};
