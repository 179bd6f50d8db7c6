/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/exports.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "nbd/server/handoff.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/worker_link.h"

#define LOOK_MS 25u /* how often one who waits for a vm looks whether he is let in */

/* What a name means. */
struct target {
        struct vm *vm; /* counted; locked only by hand_over */
        struct vm_row row;
        bool live, now;
        struct disk_row disk;
        struct snapshot_row snapshot; /* !live && !now */
        struct snapshot_disk_row *snapshot_disks;
        size_t n_snapshot_disks;
        struct snapshot_disk_row *snapshot_disk; /* one of these */
        char *name;                              /* with names, whatever the client said */
};

static void target_done(struct target *target)
{
        vm_row_done(&target->row);
        disk_row_done(&target->disk);
        snapshot_row_done(&target->snapshot);
        snapshot_disk_rows_free(target->snapshot_disks, target->n_snapshot_disks);
        free(target->name);
        vm_unref(target->vm);
}

static int no_such(const char *name, struct error *err)
{
        error_clear(err);
        return fail(err, ENOENT, "there is no export '%.400s'", name);
}

static int find_snapshot_disk(struct broker *broker, struct target *target, const char *disk,
        const char *snapshot, struct error *err)
{
        int r = catalog_snapshot_find(
                broker->catalog, target->row.id, snapshot, &target->snapshot, err);

        if (r == 0 && strcmp(target->snapshot.state, "committed") != 0)
                return -ENOENT;
        if (r == 0)
                r = catalog_snapshot_disk_list(broker->catalog, target->snapshot.id,
                        &target->snapshot_disks, &target->n_snapshot_disks, err);
        for (size_t i = 0; r == 0 && i < target->n_snapshot_disks; i++) {
                struct snapshot_disk_row *row = &target->snapshot_disks[i];

                if (strcmp(row->name, disk) == 0 || strcmp(row->disk, disk) == 0)
                        target->snapshot_disk = row;
        }
        if (r < 0)
                return r;
        return target->snapshot_disk && target->snapshot_disk->file ? 0 : -ENOENT;
}

/* VM/DISK[@WHAT]: a name holds neither '/' nor '@', so there is one way to read it. */
static int find_parts(struct broker *broker, char *text, struct target *ret, struct error *err)
{
        char *slash = strchr(text, '/'), *at;
        const char *disk, *what;
        int r;

        if (!slash)
                return -ENOENT;
        *slash = '\0';
        disk = slash + 1;
        at = strchr(slash + 1, '@');
        if (at)
                *at = '\0';
        what = at ? at + 1 : NULL;
        ret->live = !what;
        ret->now = what && strcmp(what, "now") == 0;
        r = vm_peek(broker, text, &ret->vm, &ret->row, err);
        if (r < 0)
                return r;
        if (ret->live || ret->now)
                r = catalog_disk_find(broker->catalog, ret->row.id, disk, &ret->disk, err);
        else
                r = find_snapshot_disk(broker, ret, disk, what, err);
        if (r < 0)
                return r;
        ret->name = export_name(ret->row.name,
                ret->snapshot_disk ? ret->snapshot_disk->name : ret->disk.name,
                ret->live          ? NULL
                        : ret->now ? "now"
                                   : ret->snapshot.name);
        return ret->name ? 0 : fail(err, ENOMEM, "no memory for an export's name");
}

static int target_find(
        struct broker *broker, const char *name, struct target *ret, struct error *err)
{
        _cleanup_free_ char *text = strdup(name);
        struct target target = {0};
        int r;

        if (!text)
                return fail(err, ENOMEM, "no memory for an export's name");
        r = find_parts(broker, text, &target, err);
        if (r < 0) {
                target_done(&target);
                return r == -ENOENT ? no_such(name, err) : r;
        }
        *ret = target;
        return 0;
}

/* ---- what is told of one ---- */

static const char *target_leaf(const struct target *target)
{
        return target->snapshot_disk ? target->snapshot_disk->file : target->disk.file;
}

/* Names of the snapshots that this state descends from (not itself). */
static int changed_names(
        struct broker *broker, const struct target *target, json_t **ret, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain images = {0};
        struct snapshot_row *rows = NULL;
        json_auto_t *list = json_array();
        size_t n = 0;
        int r = image_chain_get(broker->catalog, target_leaf(target), &images, err);

        if (r == 0)
                r = catalog_snapshot_list(broker->catalog, target->row.id, &rows, &n, err);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct snapshot_disk_row *disks = NULL;
                size_t n_disks = 0;

                if (strcmp(rows[i].state, "committed") != 0)
                        continue;
                r = catalog_snapshot_disk_list(broker->catalog, rows[i].id, &disks, &n_disks, err);
                for (size_t k = 0; r == 0 && k < n_disks; k++)
                        for (size_t p = 0; disks[k].file && p < images.n; p++)
                                if (strcmp(images.rows[p].path, disks[k].file) == 0)
                                        json_array_append_new(list, json_string(rows[i].name));
                snapshot_disk_rows_free(disks, n_disks);
        }
        snapshot_rows_free(rows, n);
        if (r == 0) {
                *ret = list;
                list = NULL;
        }
        return r;
}

static uint32_t preferred_size(struct target *target)
{
        uint32_t preferred = 0;

        pthread_rwlock_rdlock(&target->vm->link_lock);
        for (size_t i = 0; i < target->vm->n_chains; i++)
                if (strncmp(target->vm->chains[i].name,
                            target->snapshot_disk ? target->snapshot_disk->disk : target->disk.id,
                            UUID_TEXT_SIZE - 1) == 0)
                        preferred = target->vm->chains[i].preferred;
        pthread_rwlock_unlock(&target->vm->link_lock);
        return preferred >= 4096 ? preferred : 4096;
}

int exports_lookup(struct broker *broker, const char *name, json_t **ret, struct error *err)
{
        _cleanup_(target_done) struct target target = {0};
        json_t *changed = NULL;
        bool read_only;
        int r = target_find(broker, name, &target, err);

        if (r == 0)
                r = changed_names(broker, &target, &changed, err);
        if (r < 0)
                return r;
        read_only = !target.live || target.disk.read_only;
        *ret = json_pack("{s:s, s:I, s:i, s:b, s:s, s:o}", "name", target.name, "size",
                (json_int_t)(target.snapshot_disk ? target.snapshot_disk->size : target.disk.size),
                "preferred-size", (int)preferred_size(&target), "read-only", read_only,
                "description",
                target.live          ? "a live disk"
                        : target.now ? "a live disk, read-only"
                                     : "a snapshot's disk",
                "changed", changed);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for an export");
}

/* ---- all of them ---- */

static int list_vm(struct broker *broker, const struct vm_row *vm, json_t *list, struct error *err)
{
        struct snapshot_row *snapshots = NULL;
        struct disk_row *disks = NULL;
        size_t n_disks = 0, n_snapshots = 0;
        int r = catalog_disk_list(broker->catalog, vm->id, &disks, &n_disks, err);

        for (size_t i = 0; r == 0 && i < n_disks; i++) {
                _cleanup_free_ char *name = export_name(vm->name, disks[i].name, NULL);

                json_array_append_new(
                        list, json_pack("{s:s*, s:s}", "name", name, "description", "a live disk"));
        }
        disk_rows_free(disks, n_disks);
        if (r == 0)
                r = catalog_snapshot_list(broker->catalog, vm->id, &snapshots, &n_snapshots, err);
        for (size_t i = 0; r == 0 && i < n_snapshots; i++) {
                struct snapshot_disk_row *rows = NULL;
                size_t n = 0;

                if (strcmp(snapshots[i].state, "committed") != 0)
                        continue;
                r = catalog_snapshot_disk_list(broker->catalog, snapshots[i].id, &rows, &n, err);
                for (size_t k = 0; r == 0 && k < n; k++) {
                        _cleanup_free_ char *name =
                                export_name(vm->name, rows[k].name, snapshots[i].name);

                        if (rows[k].file)
                                json_array_append_new(list,
                                        json_pack("{s:s*, s:s}", "name", name, "description",
                                                "a snapshot's disk"));
                }
                snapshot_disk_rows_free(rows, n);
        }
        snapshot_rows_free(snapshots, n_snapshots);
        return r;
}

int exports_list(struct broker *broker, json_t **ret, struct error *err)
{
        json_auto_t *list = json_array();
        struct vm_row *rows = NULL;
        size_t n = 0;
        int r = catalog_vm_list(broker->catalog, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++)
                r = list_vm(broker, &rows[i], list, err);
        vm_rows_free(rows, n);
        if (r < 0)
                return r;
        *ret = json_pack("{s:O}", "exports", list);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for a list of exports");
}

/* ---- handing over ---- */

/* With the vm's lock: its worker serves what the client wants. */
static int make_served(struct vm *vm, const struct target *target, struct error *err)
{
        struct vm_row row = {0};
        int r = worker_up(vm, err);

        /* Disks that are written to are not those that a saved memory knows. */
        if (r == 0 && target->live && !target->disk.read_only)
                r = memory_forget(vm, &target->row, err);
        if (r < 0 || target->live || target->now)
                return r;
        /* A vm without disks has no worker, and may have snapshots. */
        r = worker_start(vm, err);
        if (r == 0)
                r = catalog_vm_find(vm->broker->catalog, vm->id, &row, err);
        if (r == 0)
                r = worker_snapshot_serve(vm, &row, &target->snapshot, target->snapshot_disk, err);
        vm_row_done(&row);
        return r;
}

/* What the client gets, under the name that it has now. */
static int send_client(struct vm *vm, const struct target *target,
        const struct nbd_handoff *handoff, int fd, bool *ret_sent, struct error *err)
{
        struct nbd_handoff copy = *handoff;
        _cleanup_fd_ int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        int r;

        if (own < 0)
                return fail_os(err, errno, "cannot pass a client on");
        memset(copy.export_name, 0, sizeof(copy.export_name));
        snprintf((char *)copy.export_name, sizeof(copy.export_name), "%s", target->name);
        *ret_sent = true;
        r = link_send_client(vm->link, &copy, own, err);
        if (r == 0)
                own = -1;
        return r;
}

/* Somebody has the lock and waits for a client to come. What is served stays as it is meanwhile: whoever
 * changes that takes link_lock for writing. */
static int enter_beside_the_holder(const struct target *target, const struct nbd_handoff *handoff,
        int fd, bool *ret_sent, struct error *err)
{
        struct vm *vm = target->vm;
        int r;

        pthread_rwlock_rdlock(&vm->link_lock);
        if (vm->up && vm->link && (target->live || target->now))
                r = send_client(vm, target, handoff, fd, ret_sent, err);
        else
                r = fail(err, EBUSY, "vm '%s' is busy with something else", target->row.name);
        pthread_rwlock_unlock(&vm->link_lock);
        return r;
}

/* The vm's lock, or, with *ret == NULL, that it is not needed. */
static int wait_for_vm(struct broker *broker, const struct target *target, unsigned timeout_ms,
        struct vm **ret, struct error *err)
{
        int64_t until = now_us() + (int64_t)timeout_ms * 1000;
        int r;

        do {
                error_clear(err);
                r = vm_get_within(
                        broker, target->row.id, MIN_OF(timeout_ms, LOOK_MS), ret, NULL, err);
                if (r == -EBUSY && atomic_load(&target->vm->lets_clients_in)) {
                        error_clear(err);
                        *ret = NULL;
                        return 0;
                }
        } while (r == -EBUSY && now_us() < until);
        return r;
}

/* *ret_sent: to the worker, which may have it also if that failed. */
static int hand_over_once(struct broker *broker, const struct nbd_handoff *handoff, int fd,
        unsigned timeout_ms, bool *ret_sent, struct error *err)
{
        _cleanup_(target_done) struct target target = {0};
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        int r;

        /* The lock first: an apply or a rename that is under way is over then, and what the name
         * means now is what counts. */
        r = target_find(broker, (const char *)handoff->export_name, &target, err);
        if (r == 0)
                r = wait_for_vm(broker, &target, timeout_ms, &vm, err);
        if (r < 0)
                return r;
        if (!vm)
                return enter_beside_the_holder(&target, handoff, fd, ret_sent, err);
        target_done(&target);
        target = (struct target){0};
        r = target_find(broker, (const char *)handoff->export_name, &target, err);
        if (r == 0)
                r = make_served(vm, &target, err);
        return r == 0 ? send_client(vm, &target, handoff, fd, ret_sent, err) : r;
}

/* The greeter tells the client no reasons: here they are. */
static int tell_log(struct broker *broker, const struct nbd_handoff *handoff, struct error *err)
{
        broker_log(broker, BROKER_LOG_ERROR, NULL, "a client of '%.400s' was not served: %s",
                (const char *)handoff->export_name, err->message);
        return -err->code;
}

int exports_hand_over(
        struct broker *broker, const struct nbd_handoff *handoff, int fd, struct error *err)
{
        int64_t until = now_us() + EXPORTS_WAIT_MS * 1000;

        for (;;) {
                int64_t left = (until - now_us()) / 1000;
                bool sent = false;
                int r;

                if (left <= 0) {
                        struct error why = *err;

                        fail(err, EAGAIN, "its worker is not ready: %s", why.message);
                        return tell_log(broker, handoff, err);
                }
                error_clear(err);
                r = hand_over_once(broker, handoff, fd, (unsigned)left, &sent, err);
                if (r == 0 || r == -ENOENT || r == -ESHUTDOWN)
                        return r;
                /* A worker that dies just now gets a successor, which serves the client. One that
                 * lives and is slow may still take it: it must not be offered to anybody again. */
                if ((r == -ETIMEDOUT && sent) ||
                        (r != -EHOSTDOWN && r != -ETIMEDOUT && r != -EBUSY && r != -EAGAIN))
                        return tell_log(broker, handoff, err);
                if (!vms_sleep(broker->vms, 50))
                        return fail(err, ESHUTDOWN, "the daemon is about to end");
        }
}

char *exports_uri(struct broker *broker, const char *name)
{
        const char *slash = strchr(name, '/'), *at = slash ? strchr(slash, '@') : NULL;
        _cleanup_free_ char *vm = slash ? strndup(name, (size_t)(slash - name)) : NULL;
        _cleanup_free_ char *disk = !slash ? NULL
                : at                       ? strndup(slash + 1, (size_t)(at - slash) - 1)
                                           : strdup(slash + 1);
        _cleanup_free_ char *vm_text = vm ? name_percent_encode(vm) : NULL;
        _cleanup_free_ char *disk_text = disk ? name_percent_encode(disk) : NULL;
        _cleanup_free_ char *at_text = name_percent_encode(at ? at + 1 : "");
        _cleanup_free_ char *socket = NULL;
        char *ret = NULL;

        if (!vm_text || !disk_text || !at_text)
                return NULL;
        if (broker->options.n_nbd_paths > 0) {
                socket = name_percent_encode_path(broker->options.nbd_paths[0]);
                if (!socket ||
                        asprintf(&ret, "nbd+unix:///%s/%s%s%s?socket=%s", vm_text, disk_text,
                                at ? "@" : "", at_text, socket) < 0)
                        return NULL;
                return ret;
        }
        if (asprintf(&ret, "nbd://%s/%s/%s%s%s",
                    broker->options.n_nbd_addresses > 0 ? broker->options.nbd_addresses[0]
                                                        : "localhost",
                    vm_text, disk_text, at ? "@" : "", at_text) < 0)
                return NULL;
        return ret;
}
