/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/disks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/arith.h"
#include "base/file.h"
#include "formats/vhd/create.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/exports.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/recover.h"
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

/* ---- attach ---- */

struct attach {
        struct broker *broker;
        struct vm *vm;
        struct vm_row row;
        struct disk_row disk;
        struct disk_row *others;
        size_t n_others;
        struct resolved_layer *layers;
        size_t n_layers;
        const char *format;
        uint64_t create; /* bytes, or 0 */
        uint8_t uuid[16];
        struct operation *operation;
        bool dry;
};

static void attach_done(struct attach *attach)
{
        operation_free(attach->operation);
        vm_row_done(&attach->row);
        disk_row_done(&attach->disk);
        disk_rows_free(attach->others, attach->n_others);
        resolved_layers_free(attach->layers, attach->n_layers);
        vm_release(attach->vm);
}

static int choose_place(struct attach *attach, const char *at, struct error *err)
{
        struct place taken[PLACE_MAX], place;
        size_t n = 0;
        int r;

        for (size_t i = 0; i < attach->n_others && n < PLACE_MAX; i++)
                taken[n++] = disk_place(&attach->others[i]);
        if (!at) {
                r = place_first_free(taken, n, &place, err);
                if (r < 0)
                        return r;
        } else {
                r = place_parse(at, &place, err);
                if (r < 0)
                        return r;
                for (size_t i = 0; i < attach->n_others; i++)
                        if (place_equal(disk_place(&attach->others[i]), place))
                                return fail(err, EEXIST, "%s of vm '%s' is taken by disk '%s'", at,
                                        attach->row.name, attach->others[i].name);
        }
        attach->disk.controller = place.controller == CONTROLLER_IDE ? 0 : 1;
        attach->disk.bus = place.bus;
        attach->disk.unit = place.unit;
        return 0;
}

static bool name_taken(const struct attach *attach, const char *name)
{
        for (size_t i = 0; i < attach->n_others; i++)
                if (strcmp(attach->others[i].name, name) == 0)
                        return true;
        return false;
}

/* The given one, or the file's, with a number behind where that is taken. */
static int choose_name(struct attach *attach, const char *name, struct error *err)
{
        _cleanup_free_ char *base = NULL;
        int r;

        if (name) {
                r = name_check("disk", name, err);
                if (r < 0)
                        return r;
                if (name_taken(attach, name))
                        return fail(err, EEXIST, "vm '%s' has a disk '%s' already",
                                attach->row.name, name);
                attach->disk.name = strdup(name);
                return attach->disk.name ? 0 : fail(err, ENOMEM, "no memory for a name");
        }
        r = name_of_file(attach->disk.file, &base, err);
        if (r < 0)
                return r;
        for (unsigned i = 1; i <= PLACE_MAX + 1; i++) {
                free(attach->disk.name);
                attach->disk.name = NULL;
                if (asprintf(&attach->disk.name, i == 1 ? "%.*s" : "%.*s-%u",
                            (int)(NAME_SIZE_MAX - 8), base, i) < 0)
                        return fail(err, ENOMEM, "no memory for a name");
                if (!name_taken(attach, attach->disk.name) &&
                        name_check("disk", attach->disk.name, NULL) == 0)
                        return 0;
        }
        return fail(err, EEXIST, "give the disk a name: those like '%s' are taken", base);
}

/* The path without links and dots, so that a file has one name in the catalog. A file that is to be
 * made need not be there, its folder must. */
static int canonical(const char *file, bool create, char **ret, struct error *err)
{
        _cleanup_free_ char *directory = NULL, *real = NULL;
        const char *base;

        if (file[0] != '/')
                return fail(err, EINVAL, "'%s' is not an absolute path", file);
        if (!create) {
                *ret = realpath(file, NULL);
                if (*ret)
                        return 0;
                error_set_file(err, file);
                return fail_os(err, errno, "cannot find '%s'", file);
        }
        directory = name_directory(file);
        real = directory ? realpath(directory, NULL) : NULL;
        if (!real)
                return fail_os(err, errno, "cannot find the folder of '%s'", file);
        base = strrchr(file, '/') + 1;
        if (!*base || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
                return fail(err, EINVAL, "'%s' is no name of a file", file);
        if (asprintf(ret, "%s%s%s", real, strcmp(real, "/") == 0 ? "" : "/", base) < 0)
                return fail(err, ENOMEM, "no memory for a path");
        return 0;
}

static int check_pass_through(struct attach *attach, bool pass_through, struct error *err)
{
        struct stat st;
        bool block;
        int r = 0;

        if (attach->create)
                return pass_through ? fail(err, EINVAL, "a pass-through disk is not made here") : 0;
        if (stat(attach->disk.file, &st) < 0)
                return fail_os(err, errno, "cannot look at '%s'", attach->disk.file);
        block = S_ISBLK(st.st_mode);
        if (!block && !S_ISREG(st.st_mode))
                r = fail(err, EINVAL, "'%s' is neither a file nor a block device",
                        attach->disk.file);
        if (pass_through && !block)
                r = fail(err, EINVAL, "'%s' is no block device, so it is nothing to pass through",
                        attach->disk.file);
        if (!pass_through && block && !(attach->format && strcmp(attach->format, "vhd") == 0)) {
                r = fail(err, EINVAL, "'%s' is a block device", attach->disk.file);
                error_set_hint(err,
                        "--pass-through gives the whole device to the guest; it takes "
                        "part in no snapshot");
        }
        if (pass_through)
                attach->format = "raw";
        return r;
}

/* Who may come and go while the vm runs: SCSI disks (as in Hyper-V). */
static int check_hot(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        const char *verb, bool own_clients_count, struct error *err)
{
        json_auto_t *clients = NULL;
        bool on;
        int r;

        if (disk->controller != 0)
                return 0;
        r = vm_is_on(vm, row, &on, err);
        if (r == 0 && on && !own_clients_count && !agent_is_there(vm)) {
                _cleanup_free_ char *export = export_name(row->name, disk->name, NULL);

                r = worker_clients(vm, WORKER_CALL_MS, &clients, err);
                on = export && clients_count(clients, NULL) > clients_count(clients, export);
        }
        if (r < 0 || !on)
                return r;
        r = fail(err, EBUSY, "vm '%s' is on, and an IDE disk cannot be %s then", row->name, verb);
        error_set_hint(err, "use a SCSI place, or stop the vm before");
        return r;
}

static int create_file(struct attach *attach, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC,
                .size = attach->disk.size,
                .now = fs_now(host_fs()),
        };
        int r;

        memcpy(params.unique_id, attach->uuid, sizeof(params.unique_id));
        r = file_open(host_fs(), attach->disk.file,
                FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE | FILE_NOFOLLOW, &file, err);
        if (r == -EEXIST)
                operation_not_made(attach->operation, attach->disk.file, NULL);
        if (r < 0)
                return r;
        return vhd_create(file, &params, err);
}

static int check_create(struct attach *attach, struct error *err)
{
        struct stat st;

        if (lstat(attach->disk.file, &st) == 0)
                return fail(err, EEXIST, "'%s' is there already", attach->disk.file);
        if (attach->create > vhd_max_size(2 * MIB))
                return fail(err, EINVAL, "a dynamic VHD has at most 2040 GiB");
        /* Whole MiB: see DESIGN, "Sizes". */
        attach->disk.size = (attach->create + MIB - 1) / MIB * MIB;
        uuid_random(attach->uuid);
        return 0;
}

/* Whoever has an image of the chain open for writing may be ourselves. */
static int say_if_merging(struct catalog *catalog, struct error *err)
{
        char path[sizeof(err->file)];
        bool held = false;

        if (!err || !err->file[0])
                return -EBUSY;
        memcpy(path, err->file, sizeof(path));
        if (merge_jobs_hold(catalog, NULL, path, &held, NULL) < 0 || !held)
                return -EBUSY;
        error_clear(err);
        fail(err, EBUSY, "'%s' is being merged; attach the disk when that is over", path);
        error_set_file(err, path);
        error_set_hint(err, "vhdctl job list tells how far it is, and vhdctl job wait waits for it");
        return -EBUSY;
}

static int look_at_file(struct attach *attach, struct error *err)
{
        struct broker *broker = attach->broker;
        int r = resolve_chain(broker, attach->disk.file, attach->format,
                broker->options.image_roots, broker->options.n_image_roots, &attach->layers,
                &attach->n_layers, err);

        if (r == -EBUSY)
                return say_if_merging(broker->catalog, err);
        if (r < 0)
                return r;
        attach->disk.size = attach->layers[0].size;
        if (!disk_is_pass_through(&attach->disk))
                snprintf(attach->disk.kind, sizeof(attach->disk.kind), "%s",
                        attach->layers[0].format);
        r = images_refuse_used(broker->catalog, attach->vm->id, attach->layers, attach->n_layers,
                !attach->disk.read_only, err);
        return r;
}

static int attach_begin(
        struct broker *broker, const json_t *params, struct attach *attach, struct error *err)
{
        bool pass_through = param_bool(params, "pass-through");
        uint8_t id[16];
        int r;

        attach->broker = broker;
        attach->dry = param_bool(params, "dry-run");
        attach->create = (uint64_t)param_int(params, "create", 0);
        attach->format = param_text(params, "format");
        attach->disk.read_only = param_bool(params, "read-only");
        attach->disk.created_us = now_us();
        uuid_random(id);
        uuid_format(id, attach->disk.id);
        snprintf(attach->disk.kind, sizeof(attach->disk.kind), "%s",
                pass_through ? "pass-through" : "vhd");
        if (attach->create && (attach->disk.read_only || attach->format))
                return fail(err, EINVAL,
                        "a new disk is a VHD, and empty: it is of no use read-only "
                        "or in another format");
        r = vm_get(broker, param_text(params, "vm"), &attach->vm, &attach->row, err);
        if (r < 0)
                return r;
        snprintf(attach->disk.vm, sizeof(attach->disk.vm), "%s", attach->vm->id);
        /* What was cut off before is settled before. A worker that cannot be started does not keep
         * anybody from a dry run; the attach itself will say why. */
        (void)worker_up(attach->vm, NULL);
        r = catalog_disk_list(
                broker->catalog, attach->vm->id, &attach->others, &attach->n_others, err);
        if (r == 0)
                r = canonical(
                        param_text(params, "file"), attach->create > 0, &attach->disk.file, err);
        if (r == 0)
                r = choose_place(attach, param_text(params, "at"), err);
        if (r == 0)
                r = choose_name(attach, param_text(params, "name"), err);
        if (r == 0)
                r = check_pass_through(attach, pass_through, err);
        if (r == 0)
                r = check_hot(attach->vm, &attach->row, &attach->disk, "attached", true, err);
        return r;
}

static int attach_make(struct attach *attach, struct error *err)
{
        const char *make[] = {attach->disk.file};
        int r;

        if (!attach->create)
                return 0;
        r = operation_begin(attach->broker->catalog, host_fs(), "disk.create", attach->vm->id, make,
                1, NULL, &attach->operation, err);
        if (r == 0)
                r = create_file(attach, err);
        if (r == 0)
                r = operation_made(attach->operation, err);
        return r;
}

static int attach_rows(struct attach *attach, struct error *err)
{
        struct catalog *catalog = attach->broker->catalog;
        int r = images_put_layers(
                catalog, attach->layers, attach->n_layers, attach->create > 0, err);

        if (r == 0)
                r = catalog_disk_insert(catalog, &attach->disk, err);
        if (r == 0 && !attach->row.directory && !disk_is_pass_through(&attach->disk)) {
                attach->row.directory = name_directory(attach->disk.file);
                r = catalog_vm_update(catalog, &attach->row, err);
        }
        return r;
}

static int attach_commit(struct attach *attach, struct error *err)
{
        struct catalog *catalog = attach->broker->catalog;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        r = attach_rows(attach, err);
        if (r == 0)
                r = attach->operation ? operation_commit(attach->operation, err)
                                      : catalog_commit(catalog, err);
        if (r < 0)
                catalog_rollback(catalog);
        return r;
}

/* The worker opens it before the catalog says so: what cannot be opened is not attached. */
static int attach_open(struct attach *attach, struct error *err)
{
        struct image_chain images = {0};
        int r = 0;

        images.rows = calloc(attach->n_layers, sizeof(images.rows[0]));
        if (!images.rows)
                return fail(err, ENOMEM, "no memory for a chain");
        for (; images.n < attach->n_layers; images.n++) {
                struct resolved_layer *layer = &attach->layers[images.n];
                struct image_row *row = &images.rows[images.n];

                row->path = layer->path; /* lent */
                row->device = layer->device;
                row->inode = layer->inode;
                snprintf(row->format, sizeof(row->format), "%s", layer->format);
        }
        r = worker_up(attach->vm, err);
        if (r == 0)
                r = worker_start(attach->vm, err);
        if (r == 0)
                r = worker_chain_open(
                        attach->vm, attach->disk.id, &images, !attach->disk.read_only, err);
        free(images.rows);
        return r;
}

static int attach_run(struct attach *attach, struct error *err)
{
        struct error ignored = ERROR_INIT;
        int r = attach_make(attach, err);

        if (r == 0 && attach->create)
                r = look_at_file(attach, err);
        if (r == 0)
                r = attach_open(attach, err);
        if (r < 0)
                return r;
        r = attach_commit(attach, err);
        if (r < 0) {
                worker_chain_close(attach->vm, attach->disk.id, &ignored);
                return r;
        }
        if (attach->operation && operation_end(attach->operation, &ignored) < 0)
                broker_log_error(attach->broker, attach->row.name, &ignored);
        /* It is attached now. A worker that dies here is followed by one that serves it. */
        error_clear(&ignored);
        if (worker_disk_serve(attach->vm, &attach->row, &attach->disk, &ignored) < 0)
                vm_set_down(attach->vm, ignored.message);
        else
                vm_set_up(attach->vm);
        return 0;
}

static int disk_attach(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(attach_done) struct attach attach = {0};
        int r = attach_begin(broker, params, &attach, err);

        if (r == 0)
                r = attach.create ? check_create(&attach, err) : look_at_file(&attach, err);
        if (r == 0 && !attach.dry)
                r = attach_run(&attach, err);
        if (r < 0)
                return r;
        if (!attach.dry)
                vm_changed(
                        attach.vm, "disk-attached", json_pack("{s:s}", "disk", attach.disk.name));
        return disk_to_json(attach.vm, &attach.row, &attach.disk, NULL, false, ret, err);
}

/* ---- detach ---- */

static int detach_rows(struct vm *vm, const struct disk_row *disk, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        r = catalog_disk_delete(catalog, disk->id, err);
        if (r == 0)
                r = image_detach(catalog, disk->file, err);
        if (r == 0)
                r = catalog_commit(catalog, err);
        if (r < 0)
                catalog_rollback(catalog);
        return r;
}

/* Nobody has anything of the vm open, and nothing waits that only a worker can settle: so a disk whose
 * image keeps the worker from living can be taken away. */
static bool is_safely_dead(struct vm *vm)
{
        return !(vm->link && link_is_alive(vm->link)) && !recover_wants_worker(vm);
}

static int detach_from_worker(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        bool force, unsigned timeout_ms, struct error *err)
{
        int r = worker_up(vm, err);

        if (r < 0 && is_safely_dead(vm)) {
                error_clear(err);
                return 0;
        }
        if (r == 0 && worker_chain_find(vm, disk->id))
                r = worker_disk_withdraw(vm, row, disk->name, force, timeout_ms, err);
        return r == 0 ? worker_chain_close(vm, disk->id, err) : r;
}

static int detach_run(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        bool force, unsigned timeout_ms, struct error *err)
{
        struct error why = ERROR_INIT;
        int r = detach_from_worker(vm, row, disk, force, timeout_ms, err);

        if (r < 0)
                return r;
        r = detach_rows(vm, disk, err);
        if (r == 0 && !vm->up && vm->link)
                link_forgive(vm->link);
        if (r < 0 || !vm->up)
                vm_set_down(vm, "a disk was taken away"); /* anew, from the catalog */
        else if (worker_grants_renew(vm, &why) < 0)
                broker_log_error(vm->broker, row->name, &why);
        return r;
}

static int disk_detach(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(disk_row_done) struct disk_row disk = {0};
        json_auto_t *clients = NULL;
        unsigned timeout_ms = (unsigned)param_int(params, "timeout", 0) * 1000;
        bool force = param_bool(params, "force");
        size_t n;
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = worker_up(vm, err);
        if (r < 0 && vm && is_safely_dead(vm)) {
                error_clear(err);
                r = 0;
        }
        if (r == 0)
                r = disk_find(vm, &row, param_text(params, "disk"), &disk, err);
        if (r == 0)
                r = check_hot(vm, &row, &disk, "detached", false, err);
        if (r == 0)
                r = disk_to_json(vm, &row, &disk, NULL, false, ret, err);
        if (r < 0)
                return r;
        if (param_bool(params, "dry-run")) {
                _cleanup_free_ char *export = export_name(row.name, disk.name, NULL);

                r = worker_clients(vm, WORKER_CALL_MS, &clients, err);
                n = r == 0 && export ? clients_count(clients, export) : 0;
                if (r == 0 && n > 0 && !force)
                        r = fail(err, EBUSY, "disk '%s' of vm '%s' is in use by %zu client%s",
                                disk.name, row.name, n, n == 1 ? "" : "s");
        } else {
                r = detach_run(vm, &row, &disk, force, timeout_ms, err);
        }
        if (r < 0) {
                json_decref(*ret);
                *ret = NULL;
                return r;
        }
        json_object_set_new(*ret, "state", json_string("detached"));
        if (!param_bool(params, "dry-run"))
                vm_changed(vm, "disk-detached",
                        json_pack("{s:s, s:s}", "disk", disk.name, "file", disk.file));
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
        {"disk.list", disk_list, false},
        {"disk.show", disk_show, false},
        {"disk.uri", disk_uri, false},
        {"snippet", disk_snippet, false},
        {NULL, NULL, false},
};
