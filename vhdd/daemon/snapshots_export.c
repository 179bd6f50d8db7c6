/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots_export.c - snapshot.export: what a vm was then, as a vm of its own, without snapshots: each
 * disk's chain becomes one new VHD, in a folder that vm.import takes. The vm goes on as it is; the images
 * are locked against writers, and no merge of its begins meanwhile. X1 to X4 of export.c hold here. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhdd/daemon/copy_file.h"
#include "vhdd/daemon/export.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/notes.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/resolver.h"
#include "vhdd/daemon/sidecar.h"
#include "vhdd/daemon/snapshots.h"
#include "vhdd/daemon/worker_link.h"

#define OPERATION_EXPORT "snapshot.export"

/* A disk: what it is made from, and where it comes to lie. */
struct flat {
        struct image_chain images;
        struct file **locked; /* the same files, open */
        char *name;           /* its file's, in the folder */
};

struct exporting {
        struct vm *vm; /* counted */
        char *vm_name, *snapshot;
        char *directory, *partial;
        uint64_t rate, size;
        struct sidecar rows; /* of the new vm; its files by their names in @directory */
        struct flat *flats;  /* one a disk of the rows */
        json_t *notes;
};

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for an export");
}

static void forget_rows(struct exporting *exporting)
{
        for (size_t i = 0; exporting->flats && i < exporting->rows.n_disks; i++) {
                struct flat *flat = &exporting->flats[i];

                for (size_t k = 0; flat->locked && k < flat->images.n; k++)
                        file_close(flat->locked[k]);
                free(flat->locked);
                free(flat->name);
                image_chain_done(&flat->images);
        }
        free(exporting->flats);
        exporting->flats = NULL;
        sidecar_done(&exporting->rows);
        exporting->size = 0;
}

static void exporting_free(void *opaque)
{
        struct exporting *exporting = opaque;

        if (!exporting)
                return;
        forget_rows(exporting);
        vm_unref(exporting->vm);
        json_decref(exporting->notes);
        free(exporting->vm_name);
        free(exporting->snapshot);
        free(exporting->directory);
        free(exporting->partial);
        free(exporting);
}

static void exporting_freep(struct exporting **exporting)
{
        exporting_free(*exporting);
}

/* ---- the new vm ---- */

static void new_id(char ret[UUID_TEXT_SIZE])
{
        uint8_t id[16];

        uuid_random(id);
        uuid_format(id, ret);
}

static int make_vm(struct exporting *exporting, const struct snapshot_row *row, struct error *err)
{
        json_auto_t *was = json_loads(row->settings, 0, NULL);
        json_t *settings = json_object_get(was, "settings");
        struct vm_row *vm = &exporting->rows.vm;

        new_id(vm->id);
        vm->name = strdup(exporting->vm_name);
        vm->created_us = now_us();
        vm->settings = json_is_object(settings) ? json_dumps(settings, JSON_COMPACT) : strdup("{}");
        exporting->rows.exported = true;
        return vm->name && vm->settings ? 0 : no_memory(err);
}

static int make_image(
        struct exporting *exporting, const char *file, struct error *err)
{
        struct image_row *row = &exporting->rows.images[exporting->rows.n_images++];

        *row = (struct image_row){
                .path = strdup(file), .format = "vhd", .state = IMAGE_IN_USE, .made_by_us = true};
        uuid_random(row->uuid);
        return row->path ? 0 : no_memory(err);
}

static int make_disk(
        struct exporting *exporting, const struct snapshot_disk_row *held, struct error *err)
{
        size_t i = exporting->rows.n_disks++;
        struct disk_row *row = &exporting->rows.disks[i];
        struct flat *flat = &exporting->flats[i];
        int r;

        new_id(row->id);
        strcpy(row->vm, exporting->rows.vm.id);
        strcpy(row->kind, "vhd");
        row->controller = held->controller;
        row->bus = held->bus;
        row->unit = held->unit;
        row->read_only = held->read_only;
        row->size = held->size;
        row->created_us = exporting->rows.vm.created_us;
        row->name = strdup(held->name);
        if (!row->name || asprintf(&flat->name, "%s.vhd", held->name) < 0) {
                flat->name = NULL;
                return no_memory(err);
        }
        if (asprintf(&row->file, "%s/%s", exporting->directory, flat->name) < 0) {
                row->file = NULL;
                return no_memory(err);
        }
        r = make_image(exporting, row->file, err);
        if (r == 0)
                r = image_chain_get(
                        exporting->vm->broker->catalog, held->file, &flat->images, err);
        exporting->size += held->size;
        return r;
}

static int make_disks(
        struct exporting *exporting, const struct snapshot_row *row, struct error *err)
{
        struct snapshot_disk_row *held = NULL;
        size_t n = 0;
        int r = catalog_snapshot_disk_list(
                exporting->vm->broker->catalog, row->id, &held, &n, err);

        exporting->rows.disks = calloc(n + 1, sizeof(*exporting->rows.disks));
        exporting->rows.images = calloc(n + 1, sizeof(*exporting->rows.images));
        exporting->flats = calloc(n + 1, sizeof(*exporting->flats));
        if (r == 0 &&
                (!exporting->rows.disks || !exporting->rows.images || !exporting->flats))
                r = no_memory(err);
        for (size_t i = 0; r == 0 && i < n; i++) {
                if (held[i].file)
                        r = make_disk(exporting, &held[i], err);
                else
                        note_add(exporting->notes,
                                "disk '%s' is left out: the snapshot does not have it",
                                held[i].name);
        }
        snapshot_disk_rows_free(held, n);
        return r;
}

/* With the vm's lock. */
static int collect(struct exporting *exporting, const struct vm_row *vm, struct error *err)
{
        _cleanup_(snapshot_row_done) struct snapshot_row row = {0};
        int r;

        forget_rows(exporting);
        json_array_clear(exporting->notes);
        r = snapshot_find(exporting->vm, vm, exporting->snapshot, &row, err);
        if (r == 0)
                r = make_vm(exporting, &row, err);
        if (r == 0)
                r = make_disks(exporting, &row, err);
        if (r == 0 && row.memory)
                note_add(exporting->notes,
                        "the snapshot's saved memory is not taken along: the vm starts from its disks");
        return r;
}

/* ---- the job ---- */

static int lock_images(struct exporting *exporting, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < exporting->rows.n_disks; i++) {
                struct flat *flat = &exporting->flats[i];

                flat->locked = calloc(flat->images.n + 1, sizeof(*flat->locked));
                if (!flat->locked)
                        r = no_memory(err);
                for (size_t k = 0; r == 0 && k < flat->images.n; k++)
                        r = copy_source_open(flat->images.rows[k].path, &flat->locked[k], err);
        }
        return r;
}

static int get_ready(struct exporting *exporting, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = export_find_vm(exporting->vm, exporting->vm_name, &row, err);

        if (r == 0)
                r = worker_up(exporting->vm, err);
        if (r == 0)
                r = export_refuse_merging(exporting->vm, row.name, err);
        if (r == 0)
                r = collect(exporting, &row, err);
        return r == 0 ? lock_images(exporting, err) : r;
}

static int step(void *opaque, uint64_t bytes)
{
        return transfer_step(opaque, bytes);
}

static int make_one(struct exporting *exporting, struct operation *operation, size_t i,
        struct transfer *transfer, struct error *err)
{
        const struct flatten_watch watch = {step, transfer};
        const struct flat *flat = &exporting->flats[i];
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        char uuid[UUID_TEXT_SIZE];
        int r;

        if (asprintf(&path, "%s/%s", exporting->partial, flat->name) < 0) {
                path = NULL;
                return no_memory(err);
        }
        r = transfer_will_make(operation, path, err);
        if (r < 0)
                return r;
        fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
                return fail_os(err, errno, "cannot make '%s'", path);
        r = flatten_chain(transfer_broker(transfer), &flat->images, fd, path,
                uuid_format(exporting->rows.images[i].uuid, uuid), &watch, err);
        if (r == 0 && fsync(fd) < 0)
                r = fail_os(err, errno, "cannot make '%s' durable", path);
        return r < 0 ? fail_prefix(err, r, "disk '%s'", exporting->rows.disks[i].name) : 0;
}

static int run(struct transfer *transfer, void *opaque, struct error *err)
{
        struct exporting *exporting = opaque;
        struct broker *broker = exporting->vm->broker;
        _cleanup_(operation_freep) struct operation *operation = NULL;
        int r;

        pthread_mutex_lock(&exporting->vm->lock);
        r = get_ready(exporting, err);
        pthread_mutex_unlock(&exporting->vm->lock);
        if (r < 0)
                return r;
        transfer_set_total(transfer, exporting->size);
        r = operation_begin(broker->catalog, host_fs(), OPERATION_EXPORT, exporting->vm->id, NULL,
                0, NULL, &operation, err);
        for (size_t i = 0; r == 0 && i < exporting->rows.n_disks; i++)
                r = make_one(exporting, operation, i, transfer, err);
        if (r == 0)
                r = export_write_sidecar(operation, &exporting->rows, exporting->vm_name,
                        exporting->partial, exporting->directory, err);
        return r == 0 ? export_commit(broker, operation, transfer, exporting->partial,
                                exporting->directory, err)
                      : r;
}

/* ---- the method ---- */

static int begin(struct exporting *exporting, json_t **ret, struct error *err)
{
        char what[400];
        const struct transfer_work work = {
                .kind = JOB_EXPORT,
                .vm = exporting->vm,
                .directory = exporting->directory,
                .what = what,
                .total = exporting->size,
                .rate = exporting->rate,
                .run = run,
                .free = exporting_free,
                .opaque = exporting,
        };

        snprintf(what, sizeof(what), "export snapshot '%.160s' of vm '%.160s'",
                exporting->snapshot, exporting->vm_name);
        return export_begin(exporting->vm->broker, &work, ret, err);
}

static int look(struct exporting *exporting, const struct vm_row *row, const json_t *params,
        struct error *err)
{
        int r = export_directories(param_text(params, "directory"), &exporting->directory,
                &exporting->partial, err);

        exporting->vm_name = strdup(row->name);
        exporting->snapshot = strdup(param_text(params, "name"));
        exporting->notes = json_array();
        exporting->rate = (uint64_t)param_int(params, "limit", 0);
        if (r == 0 && (!exporting->vm_name || !exporting->snapshot || !exporting->notes))
                r = no_memory(err);
        if (r == 0)
                r = transfer_refuse(exporting->vm, err);
        if (r == 0)
                r = export_refuse_merging(exporting->vm, row->name, err);
        return r == 0 ? collect(exporting, row, err) : r;
}

static int answer(struct exporting *exporting, json_t **ret, struct error *err)
{
        _cleanup_free_ char *sidecar = sidecar_path(exporting->directory, exporting->vm_name);
        json_auto_t *files = json_array();

        for (size_t i = 0; i < exporting->rows.n_disks; i++)
                json_array_append_new(files, json_string(exporting->rows.disks[i].file));
        if (!sidecar || json_array_append_new(files, json_string(sidecar)) < 0)
                return no_memory(err);
        /* A copy: the job's thread gathers notes anew. */
        *ret = json_pack("{s:s, s:O, s:I, s:o}", "directory", exporting->directory, "files", files,
                "size", (json_int_t)exporting->size, "notes", json_deep_copy(exporting->notes));
        return *ret ? 0 : no_memory(err);
}

int snapshot_export(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(exporting_freep) struct exporting *exporting = calloc(1, sizeof(*exporting));
        int r = exporting ? vm_get(broker, param_text(params, "vm"), &vm, &row, err)
                          : no_memory(err);

        if (r == 0)
                r = vm_add(broker, vm->id, &exporting->vm, err);
        if (r == 0)
                r = look(exporting, &row, params, err);
        if (r == 0)
                r = answer(exporting, ret, err);
        if (r < 0 || param_bool(params, "dry-run"))
                return r;
        return begin(TAKE_PTR(exporting), ret, err);
}
