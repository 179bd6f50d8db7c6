/* SPDX-License-Identifier: Apache-2.0 */
/* disks_attach.c - disks come and go: files looked at, places and names chosen, the worker and the guest
 * told. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/arith.h"
#include "base/file.h"
#include "formats/vhd/create.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/disks.h"
#include "vhdd/daemon/hot.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/recover.h"
#include "vhdd/daemon/worker_link.h"

#define LEAVING_MS 5000 /* for the agent's own connection */

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
        char guest[HOT_GUEST_MAX];
        bool dry, made_directory;
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

static int refuse_taken_place(
        const struct attach *attach, const char *at, struct place place, struct error *err)
{
        const struct disk_row *has = NULL;
        size_t n_ide = 0;

        for (size_t i = 0; i < attach->n_others; i++) {
                n_ide += attach->others[i].controller == 0;
                if (place_equal(disk_place(&attach->others[i]), place))
                        has = &attach->others[i];
        }
        if (!has)
                return 0;
        fail(err, EEXIST, "%s of vm '%s' is taken by disk '%s'", at, attach->row.name, has->name);
        if (place.controller == CONTROLLER_IDE && n_ide == PLACE_IDE_BUSES * PLACE_IDE_UNITS)
                error_set_hint(err,
                        "a vm has at most 4 IDE disks, and this one has them: use a SCSI place");
        return -EEXIST;
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
                r = refuse_taken_place(attach, at, place, err);
                if (r < 0)
                        return r;
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
        error_set_hint(err,
                "what is on IDE changes only while the vm is off; its four SCSI controllers are "
                "there from the start, and their disks may come and go");
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
        error_set_hint(
                err, "vhdctl job list tells how far it is, and vhdctl job wait waits for it");
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
        if (r == 0)
                r = catalog_vm_set_resume(catalog, attach->vm->id, NULL, err);
        if (r == 0 && !attach->row.directory && !disk_is_pass_through(&attach->disk)) {
                attach->row.directory = name_directory(attach->disk.file);
                attach->made_directory = true;
                r = catalog_vm_update(catalog, &attach->row, err);
        }
        return r;
}

/* Are they the files still that the resolver found? */
static int look_at_layers(const struct attach *attach, struct error *err)
{
        for (size_t i = 0; i < attach->n_layers; i++) {
                const struct resolved_layer *layer = &attach->layers[i];
                struct stat st;

                if (stat(layer->path, &st) == 0 &&
                        (!S_ISREG(st.st_mode) ||
                                (st.st_ino == layer->inode && st.st_dev == layer->device)))
                        continue;
                fail(err, ESTALE, "'%s' was removed, or replaced, while it was attached",
                        layer->path);
                error_set_file(err, layer->path);
                return -ESTALE;
        }
        return 0;
}

static int attach_commit(struct attach *attach, struct error *err)
{
        struct catalog *catalog = attach->broker->catalog;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        /* Once more, where no other vm can come between: a merge of its may have begun. */
        if (!attach->create)
                r = look_at_layers(attach, err);
        if (r == 0 && !attach->create)
                r = images_refuse_used(catalog, attach->vm->id, attach->layers, attach->n_layers,
                        !attach->disk.read_only, err);
        if (r == 0)
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

/* Nobody has anything of the vm open, and nothing waits that only a worker can settle: so a disk whose
 * image keeps the worker from living can be taken away. */
static bool is_safely_dead(struct vm *vm)
{
        return !(vm->link && link_is_alive(vm->link)) && !recover_wants_worker(vm) &&
                (vm->link || !link_is_left(vm->broker, vm->id));
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

/* The rows are there, and the disk is not to be: as before, and a file that was made is gone. */
static int detach_again(struct attach *attach, struct operation *operation, struct error *err)
{
        struct catalog *catalog = attach->broker->catalog;
        json_auto_t *files = json_array(), *kept = json_array();
        _cleanup_(strangers_done) struct strangers strangers = {0};
        const char *path = attach->disk.file;
        json_t *file;
        size_t i;
        int r = strangers_init(&strangers, attach->broker, err);

        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = catalog_disk_delete(catalog, attach->disk.id, err);
        if (r == 0)
                r = attach->create ? images_release(&strangers, &path, 1, files, kept, err)
                                   : image_detach(catalog, path, err);
        json_array_foreach(files, i, file)
        {
                if (r == 0)
                        r = operation_will_remove(operation, json_string_value(file), err);
        }
        if (r == 0 && attach->made_directory) {
                free(attach->row.directory);
                attach->row.directory = NULL;
                r = catalog_vm_update(catalog, &attach->row, err);
        }
        if (r == 0)
                r = operation_commit(operation, err);
        if (r < 0)
                catalog_rollback(catalog);
        return r;
}

static void attach_undo(struct attach *attach)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        struct error err = ERROR_INIT;
        int r = detach_from_worker(attach->vm, &attach->row, &attach->disk, true, 0, &err);

        if (r == 0)
                r = operation_begin(attach->broker->catalog, host_fs(), "disk.attach.undo",
                        attach->vm->id, NULL, 0, NULL, &operation, &err);
        if (r == 0)
                r = operation_made(operation, &err);
        if (r == 0)
                r = detach_again(attach, operation, &err);
        if (r == 0 && attach->create)
                worker_image_forget(attach->vm, attach->disk.file);
        if (r == 0)
                r = operation_end(operation, &err);
        if (r < 0) {
                broker_log_error(attach->broker, attach->row.name, &err);
                vm_set_down(attach->vm, "undoing an attach failed"); /* anew, from the catalog */
                return;
        }
        if (worker_grants_renew(attach->vm, &err) < 0)
                broker_log_error(attach->broker, attach->row.name, &err);
}

/* To the guest, if it runs: what it does not get is not attached. */
static int attach_hot(struct attach *attach, struct error *err)
{
        int r;

        if (!hot_is_offered(attach->vm, &attach->row, "disk-add"))
                return 0;
        r = attach->vm->up ? hot_add(attach->vm, &attach->row, &attach->disk, attach->guest, err)
                           : fail(err, EIO, "disk '%s' was not attached: it could not be served",
                                     attach->disk.name);
        if (r < 0)
                attach_undo(attach);
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
        return attach_hot(attach, err);
}

int disk_attach(struct broker *broker, const struct caller *caller, const json_t *params,
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
        r = disk_to_json(attach.vm, &attach.row, &attach.disk, NULL, false, ret, err);
        if (r == 0 && attach.guest[0])
                json_object_set_new(*ret, "guest", json_string(attach.guest));
        return r;
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
                r = catalog_vm_set_resume(catalog, vm->id, NULL, err);
        if (r == 0)
                r = catalog_commit(catalog, err);
        if (r < 0)
                catalog_rollback(catalog);
        return r;
}

/* The guest gives it up first, if it runs. With @force what it says is logged. */
static int detach_from_guest(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        bool force, bool *ret_asked, struct error *err)
{
        int r;

        if (!hot_is_offered(vm, row, "disk-remove"))
                return 0;
        r = hot_remove(vm, row, disk, err);
        if (r < 0 && force) {
                broker_log_error(vm->broker, row->name, err);
                error_clear(err);
                return 0;
        }
        *ret_asked = r == 0;
        return r;
}

/* Somebody else has it open: it stays attached, and so the guest gets it again. */
static void give_back(
        struct vm *vm, const struct vm_row *row, const struct disk_row *disk, bool asked)
{
        struct error err = ERROR_INIT;
        char ignored[HOT_GUEST_MAX];

        if (asked && hot_add(vm, row, disk, ignored, &err) < 0)
                broker_log_error(vm->broker, row->name, &err);
}

static int detach_run(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        bool force, unsigned timeout_ms, struct error *err)
{
        struct error why = ERROR_INIT;
        bool asked = false;
        int r = detach_from_guest(vm, row, disk, force, &asked, err);

        if (r < 0)
                return r;
        /* The agent's own connection may take a moment to be gone. */
        if (asked && timeout_ms < LEAVING_MS)
                timeout_ms = LEAVING_MS;
        r = detach_from_worker(vm, row, disk, force, timeout_ms, err);
        if (r < 0) {
                give_back(vm, row, disk, asked);
                return r;
        }
        r = detach_rows(vm, disk, err);
        if (r == 0 && !vm->up && vm->link)
                link_forgive(vm->link);
        if (r < 0 || !vm->up)
                vm_set_down(vm, "a disk was taken away"); /* anew, from the catalog */
        else if (worker_grants_renew(vm, &why) < 0)
                broker_log_error(vm->broker, row->name, &why);
        return r;
}

int disk_detach(struct broker *broker, const struct caller *caller, const json_t *params,
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
