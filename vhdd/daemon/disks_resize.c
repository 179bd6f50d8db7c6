/* SPDX-License-Identifier: Apache-2.0 */
/* disks_resize.c - another size for a live disk. In this order:
 *
 *   R1  it may be: no snapshot and no child is in the way, nobody would be cut off unasked
 *   R2  the exports are withdrawn: clients that come back wait for R5
 *   R3  the worker closes the chain, changes the file (all or nothing, whoever dies), opens the chain
 *   R4  the catalog has the size that the file has
 *   R5  it is served again, and the agent told, who tells the guest
 *
 * The file is the truth: who comes after a death between R3 and R4 finds the size at the chain's
 * opening (worker_link.c). */
#include <inttypes.h>
#include <string.h>

#include "base/arith.h"
#include "base/file.h"
#include "formats/vhd/create.h"
#include "formats/vhd/hyperv.h"
#include "vhdd/daemon/disks.h"
#include "vhdd/daemon/hot.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/worker_link.h"

#define MAX_TRIES 3u

struct resizing {
        struct vm *vm;
        struct vm_row row;
        struct disk_row disk;
        char disk_id[UUID_TEXT_SIZE];
        const char *name; /* as the caller said it */
        struct image_chain images;
        uint64_t size; /* as it will be */
        bool shrink, force, dry;
        char guest[HOT_GUEST_MAX];
};

static void resizing_done(struct resizing *z)
{
        image_chain_done(&z->images);
        disk_row_done(&z->disk);
        vm_row_done(&z->row);
        vm_release(z->vm);
}

/* ---- R1 ---- */

static int find_size(struct resizing *z, const json_t *params, struct error *err)
{
        json_int_t size = param_int(params, "size", 0), add = param_int(params, "add", 0);
        uint64_t most = vhd_max_size(2 * MIB);
        int r;

        if ((size > 0) == (add > 0))
                return fail(err, EINVAL, "a size, or how much more: one of the two");
        if (size % SECTOR_SIZE || add % SECTOR_SIZE)
                return fail(err, EINVAL, "%" JSON_INTEGER_FORMAT " bytes are no whole sectors",
                        size ? size : add);
        z->size = size ? (uint64_t)size : z->disk.size + (uint64_t)add;
        if (strcmp(z->disk.kind, "vhd") != 0 || z->size <= most || z->size <= z->disk.size)
                return 0;
        r = fail(err, EINVAL,
                "a disk of %" PRIu64 " bytes cannot be made: %" PRIu64 " (%" PRIu64
                " GiB) is the most",
                z->size, most, most / GIB);
        error_set_hyperv(err, HYPERV_INVALID_SIZE);
        return r;
}

static int refuse_kind(const struct resizing *z, struct error *err)
{
        if (disk_is_pass_through(&z->disk))
                return fail(err, ENOTSUP,
                        "disk '%s' of vm '%s' is passed through: it is as large as its device",
                        z->disk.name, z->row.name);
        if (z->disk.read_only)
                return fail(
                        err, EROFS, "disk '%s' of vm '%s' is read-only", z->disk.name, z->row.name);
        return 0;
}

static int refuse_snapshots(const struct resizing *z, struct error *err)
{
        if (z->images.n < 2 || z->force || z->size <= z->disk.size)
                return 0;
        fail(err, EINVAL,
                "disk '%s' of vm '%s' has snapshots, or stands on another image: Hyper-V opens no "
                "child that is larger than its parent",
                z->disk.name, z->row.name);
        error_set_hyperv(err, HYPERV_PARENT_SIZE);
        error_set_hint(err,
                "--force does it: vhdd reads such a child; only vhdctl merge can merge it then");
        return -EINVAL;
}

static int refuse_used_image(const struct resizing *z, struct error *err)
{
        struct catalog *catalog = z->vm->broker->catalog;
        struct image_row *rows = NULL;
        bool held = false;
        size_t n = 0;
        int r = catalog_image_children(catalog, z->disk.file, &rows, &n, err);

        if (r == 0 && n > 0) {
                r = fail(err, EBUSY, "'%s' stands on '%s': only a leaf can be resized",
                        rows[0].path, z->disk.file);
                error_set_file(err, z->disk.file);
        }
        image_rows_free(rows, n);
        for (size_t i = 0; r == 0 && i < z->images.n && !held; i++)
                r = merge_jobs_hold(catalog, NULL, z->images.rows[i].path, &held, err);
        if (r < 0 || !held)
                return r;
        fail(err, EBUSY, "disk '%s' of vm '%s' is being merged or compacted", z->disk.name,
                z->row.name);
        error_set_hint(
                err, "vhdctl job list tells how far it is, and vhdctl job wait waits for it");
        return -EBUSY;
}

/* Who is cut off comes back by himself if he is the agent's; others are asked for by --force. */
static int refuse_clients(struct resizing *z, struct error *err)
{
        _cleanup_free_ char *export = export_name(z->row.name, z->disk.name, NULL);
        json_auto_t *clients = NULL;
        bool on = false;
        size_t n;
        int r = vm_is_on(z->vm, &z->row, &on, err);

        if (r == 0 && on && z->size < z->disk.size) {
                r = fail(err, EBUSY, "vm '%s' is on, and its disks become no smaller then",
                        z->row.name);
                error_set_hint(err, "vhdctl vm shutdown '%s'", z->row.name);
        }
        if (r < 0 || z->force || hot_is_offered(z->vm, &z->row, "disk-resize"))
                return r;
        r = worker_clients(z->vm, WORKER_CALL_MS, &clients, err);
        n = r == 0 && export ? clients_count(clients, export) : 0;
        if (r < 0 || n == 0)
                return r;
        fail(err, EBUSY, "disk '%s' of vm '%s' is in use by %zu client%s, who would be cut off",
                z->disk.name, z->row.name, n, n == 1 ? "" : "s");
        error_set_hint(err,
                "--force cuts them off: one that reconnects, as QEMU does with reconnect-delay, "
                "finds the new size");
        return -EBUSY;
}

static int resize_begin(
        struct broker *broker, const json_t *params, struct resizing *z, struct error *err)
{
        int r = vm_get(broker, param_text(params, "vm"), &z->vm, &z->row, err);

        z->name = param_text(params, "disk");
        z->shrink = param_bool(params, "shrink");
        z->force = param_bool(params, "force");
        z->dry = param_bool(params, "dry-run");
        if (r == 0)
                r = worker_up(z->vm, err);
        if (r == 0)
                r = disk_find(z->vm, &z->row, param_text(params, "disk"), &z->disk, err);
        if (r == 0) {
                memcpy(z->disk_id, z->disk.id, sizeof(z->disk_id));
                r = image_chain_get(broker->catalog, z->disk.file, &z->images, err);
        }
        if (r == 0)
                r = refuse_kind(z, err);
        if (r == 0)
                r = find_size(z, params, err);
        if (r == 0)
                r = refuse_snapshots(z, err);
        if (r == 0)
                r = refuse_used_image(z, err);
        if (r == 0 && z->size < z->disk.size && !z->shrink) {
                r = fail(err, EINVAL,
                        "disk '%s' of vm '%s' has %" PRIu64 " bytes and would lose %" PRIu64
                        " of them",
                        z->disk.name, z->row.name, z->disk.size, z->disk.size - z->size);
                error_set_hint(err, "--shrink cuts off a tail that reads as zeros");
        }
        if (r == 0)
                r = hot_refuse_saved(z->vm, &z->row, err);
        return r == 0 ? refuse_clients(z, err) : r;
}

/* ---- R2 to R5 ---- */

/* Whatever became of it: it is opened and served as it is now. */
static void serve_again(struct resizing *z)
{
        struct error err = ERROR_INIT;

        worker_stale(z->vm);
        if (worker_up(z->vm, &err) < 0)
                broker_log_error(z->vm->broker, z->row.name, &err);
}

static int change(struct resizing *z, struct error *err)
{
        int r;

        if (!worker_chain_find(z->vm, z->disk.id))
                return fail(err, EIO, "disk '%s' of vm '%s' is not served: nothing can be changed",
                        z->disk.name, z->row.name);
        r = memory_forget(z->vm, &z->row, err);
        if (r == 0)
                r = worker_disk_withdraw(z->vm, &z->row, z->disk.name, true, 0, err);
        if (r == 0)
                r = worker_chain_resize(z->vm, z->disk.id, &z->images, z->size,
                        z->size < z->disk.size, z->force, err);
        if (r < 0)
                return r;
        z->disk.size = worker_chain_find(z->vm, z->disk.id)->size;
        r = catalog_disk_update(z->vm->broker->catalog, &z->disk, err);
        return r == 0 ? worker_disk_serve(z->vm, &z->row, &z->disk, err) : r;
}

/* A worker that died may have done it: the size that it left is followed at the opening. */
static int change_at_last(struct resizing *z, struct error *err)
{
        int r = 0;

        for (unsigned tries = 0; tries < MAX_TRIES && z->disk.size != z->size; tries++) {
                error_clear(err);
                r = change(z, err);
                if (r == 0)
                        return 0;
                serve_again(z);
                if (r != -EHOSTDOWN)
                        return r;
                disk_row_done(&z->disk);
                z->disk = (struct disk_row){0};
                r = catalog_disk_find(z->vm->broker->catalog, z->vm->id, z->disk_id, &z->disk, err);
                if (r < 0)
                        return r;
                r = fail(err, EIO, "the vm's worker dies of it");
        }
        if (z->disk.size != z->size)
                return r;
        error_clear(err);
        return 0;
}

static int resize_run(struct resizing *z, struct error *err)
{
        int r = change_at_last(z, err);

        if (r < 0)
                return fail_prefix(err, r, "cannot resize disk '%s'", z->name);
        r = hot_resize(z->vm, &z->row, &z->disk, z->guest, err);
        return r < 0 ? fail_prefix(err, r,
                               "disk '%s' has %" PRIu64 " bytes now, and its guest does not know",
                               z->name, z->disk.size)
                     : 0;
}

int disk_resize(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(resizing_done) struct resizing z = {0};
        uint64_t before;
        int r = resize_begin(broker, params, &z, err);

        if (r < 0)
                return r;
        before = z.disk.size;
        if (z.dry)
                z.disk.size = z.size;
        else
                r = resize_run(&z, err);
        if (!z.dry && z.disk.size != before)
                vm_changed(z.vm, "disk-resized",
                        json_pack("{s:s, s:I}", "disk", z.disk.name, "size",
                                (json_int_t)z.disk.size));
        if (r == 0)
                r = disk_to_json(z.vm, &z.row, &z.disk, NULL, false, ret, err);
        if (r < 0)
                return r;
        json_object_set_new(*ret, "size-before", json_integer((json_int_t)before));
        if (z.guest[0])
                json_object_set_new(*ret, "guest", json_string(z.guest));
        return 0;
}
