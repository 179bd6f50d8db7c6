/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/worker_link.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain/chain.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/recover.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/snapshots.h"

#define UP_TRIES    40
#define UP_PAUSE_MS 50
#define RETRY_EVERY 32u
#define OPEN_MS     (10 * 60000u) /* an image in bad shape is replayed and synced first */
#define RESIZE_MS   (30 * 60000u) /* a fixed disk may have to be written */

/* ---- chains, as we remember them ---- */

static void chain_done(struct vm_chain *chain)
{
        for (size_t i = 0; i < chain->n_paths; i++)
                free(chain->paths[i]);
        free(chain->paths);
        free(chain->name);
        free(chain->export_name);
        free(chain->trouble);
        *chain = (struct vm_chain){0};
}

static struct vm_chain *find_any(struct vm *vm, const char *name)
{
        for (size_t i = 0; i < vm->n_chains; i++)
                if (strcmp(vm->chains[i].name, name) == 0)
                        return &vm->chains[i];
        return NULL;
}

struct vm_chain *worker_chain_find(struct vm *vm, const char *name)
{
        struct vm_chain *chain = find_any(vm, name);

        return chain && !chain->trouble ? chain : NULL;
}

static void forget_chain(struct vm *vm, const char *name)
{
        struct vm_chain *chain = find_any(vm, name);

        if (!chain)
                return;
        pthread_rwlock_wrlock(&vm->link_lock);
        chain_done(chain);
        *chain = vm->chains[--vm->n_chains];
        pthread_rwlock_unlock(&vm->link_lock);
}

void worker_forget(struct vm *vm)
{
        while (vm->n_chains > 0)
                forget_chain(vm, vm->chains[0].name);
}

/* A new entry; @chain's strings are taken over on success. */
static int remember_chain(struct vm *vm, struct vm_chain *chain, struct error *err)
{
        struct vm_chain *larger;

        forget_chain(vm, chain->name);
        pthread_rwlock_wrlock(&vm->link_lock);
        larger = realloc(vm->chains, (vm->n_chains + 1) * sizeof(*larger));
        if (larger) {
                vm->chains = larger;
                vm->chains[vm->n_chains++] = *chain;
                *chain = (struct vm_chain){0};
        }
        pthread_rwlock_unlock(&vm->link_lock);
        return larger ? 0 : fail(err, ENOMEM, "no memory for one more chain");
}

static int chain_of_images(const char *name, const struct image_chain *images, bool writable,
        struct vm_chain *ret, struct error *err)
{
        *ret = (struct vm_chain){.name = strdup(name), .writable = writable};
        ret->paths = calloc(images->n, sizeof(ret->paths[0]));
        if (!ret->name || !ret->paths)
                goto no_memory;
        for (; ret->n_paths < images->n; ret->n_paths++) {
                ret->paths[ret->n_paths] = strdup(images->rows[ret->n_paths].path);
                if (!ret->paths[ret->n_paths])
                        goto no_memory;
        }
        return 0;
no_memory:
        chain_done(ret);
        return fail(err, ENOMEM, "no memory for a chain");
}

/* A live disk that cannot be served: why, for people. */
static void remember_trouble(struct vm *vm, const char *name, const struct error *why)
{
        struct vm_chain chain = {.name = strdup(name), .trouble = strdup(why->message)};

        if (!chain.name || !chain.trouble || remember_chain(vm, &chain, NULL) < 0)
                chain_done(&chain);
}

/* ---- talking ---- */

int worker_call(struct vm *vm, const char *method, json_t *params, unsigned timeout_ms,
        json_t **ret, struct error *err)
{
        int r;

        if (!params || !vm->link) {
                json_decref(params);
                return params ? fail(err, EHOSTDOWN, "the vm's worker does not run")
                              : fail(err, ENOMEM, "no memory to ask the vm's worker");
        }
        r = link_call(vm->link, method, params, timeout_ms, ret, err);
        /* What it did cannot be known any more: a new one tells, from what is in the files. */
        if (r == -ETIMEDOUT)
                link_kill(vm->link);
        if (r == -EHOSTDOWN || r == -ETIMEDOUT)
                vm_set_down(vm, err ? err->message : "the worker died");
        return r;
}

int worker_ask(struct vm *vm, const char *method, json_t *params, unsigned timeout_ms, json_t **ret,
        struct error *err)
{
        int r;

        pthread_rwlock_rdlock(&vm->link_lock);
        if (vm->link && params) {
                r = link_call(vm->link, method, params, timeout_ms, ret, err);
        } else {
                json_decref(params);
                r = fail(err, EHOSTDOWN, "the vm's worker does not run");
        }
        pthread_rwlock_unlock(&vm->link_lock);
        return r;
}

int worker_clients(struct vm *vm, unsigned timeout_ms, json_t **ret, struct error *err)
{
        json_auto_t *answer = NULL;
        json_t *clients;
        int r;

        if (!vm->link) {
                *ret = json_array();
                return *ret ? 0 : fail(err, ENOMEM, "no memory for a list");
        }
        r = worker_ask(vm, "clients", json_object(), timeout_ms, &answer, err);
        if (r < 0)
                return r;
        clients = json_object_get(answer, "clients");
        if (!json_is_array(clients))
                return fail(err, EPROTO, "the vm's worker answers no list of clients");
        *ret = json_incref(clients);
        return 0;
}

size_t clients_count(const json_t *clients, const char *export_name)
{
        size_t i, n = 0;
        json_t *client;

        json_array_foreach(clients, i, client)
        {
                const char *name = json_string_value(json_object_get(client, "export"));

                if (!name)
                        continue;
                n += export_name ? strcmp(name, export_name) == 0 : !strchr(name, '@');
        }
        return n;
}

/* ---- grants ---- */

int worker_grant_image(
        struct vm *vm, const struct image_row *row, unsigned access, struct error *err)
{
        if (!vm->link)
                return fail(err, EHOSTDOWN, "the vm's worker does not run");
        if (seals_write(vm, row->path))
                access |= LINK_SEAL;
        return link_grant(vm->link, row->path, access, row->device, row->inode, err);
}

int worker_grant(struct vm *vm, const char *path, unsigned access, struct error *err)
{
        if (!vm->link)
                return fail(err, EHOSTDOWN, "the vm's worker does not run");
        return link_grant(vm->link, path, access, 0, 0, err);
}

/* The frozen images of a snapshot under way have to be settled yet. */
static bool is_unsettled(struct vm *vm, const char *path)
{
        json_t *disk;
        size_t i;

        json_array_foreach(json_object_get(vm->rolling, "disks"), i, disk)
        {
                const char *frozen = json_string_value(json_object_get(disk, "frozen"));

                if (frozen && strcmp(frozen, path) == 0)
                        return true;
        }
        return false;
}

static bool is_live_leaf(struct vm *vm, const char *path)
{
        for (size_t i = 0; i < vm->n_chains; i++)
                if (vm->chains[i].writable && vm->chains[i].n_paths > 0 &&
                        strcmp(vm->chains[i].paths[0], path) == 0)
                        return true;
        return false;
}

static int grant_chain(
        struct vm *vm, const struct image_chain *images, bool writable, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < images->n; i++) {
                const struct image_row *row = &images->rows[i];
                bool write = (i == 0 && writable) || is_unsettled(vm, row->path) ||
                        is_live_leaf(vm, row->path) || merges_write(vm, row->path);

                r = worker_grant_image(vm, row, write ? LINK_READ | LINK_WRITE : LINK_READ, err);
        }
        return r;
}

int worker_grant_parent(struct vm *vm, const struct image_row *row, struct error *err)
{
        bool write = is_unsettled(vm, row->path) || is_live_leaf(vm, row->path) ||
                merges_write(vm, row->path);

        if (!vm->link)
                return fail(err, EHOSTDOWN, "the vm's worker does not run");
        return worker_grant_image(vm, row, write ? LINK_READ | LINK_WRITE : LINK_READ, err);
}

bool worker_chain_has(const struct vm_chain *chain, const char *path)
{
        for (size_t i = 0; chain && i < chain->n_paths; i++)
                if (strcmp(chain->paths[i], path) == 0)
                        return true;
        return false;
}

static bool is_used(const struct vm *vm, const char *path)
{
        for (size_t i = 0; i < vm->n_chains; i++)
                if (worker_chain_has(&vm->chains[i], path))
                        return true;
        return false;
}

static void revoke_unused(struct vm *vm, const struct vm_chain *gone)
{
        for (size_t i = 0; vm->link && i < gone->n_paths; i++)
                if (!is_used(vm, gone->paths[i]))
                        link_revoke(vm->link, gone->paths[i]);
}

void worker_image_forget(struct vm *vm, const char *path)
{
        struct error err = ERROR_INIT;

        if (!vm->link || is_used(vm, path))
                return;
        if (worker_grant(vm, path, LINK_READ | LINK_WRITE, &err) < 0 ||
                worker_call(vm, "image.forget", json_pack("{s:s}", "path", path), WORKER_CALL_MS,
                        NULL, &err) < 0)
                broker_log_error(vm->broker, vm->id, &err);
        if (vm->link)
                link_revoke(vm->link, path);
}

static bool keep_used(void *opaque, const char *path)
{
        return is_used(opaque, path);
}

/* A file that nothing has open any more, or that was written to once (a merge relinks the children of
 * what goes, on whatever branch), would be locked for as long as the worker runs, and lives. */
static void revoke_others(struct vm *vm)
{
        if (vm->link)
                link_revoke_others(vm->link, keep_used, vm);
}

int worker_grants_renew(struct vm *vm, struct error *err)
{
        for (size_t i = 0; vm->link && i < vm->n_chains; i++) {
                _cleanup_(image_chain_done) struct image_chain images = {0};
                int r;

                if (vm->chains[i].trouble)
                        continue;
                r = image_chain_get(vm->broker->catalog, vm->chains[i].paths[0], &images, err);
                if (r == 0)
                        r = grant_chain(vm, &images, vm->chains[i].writable, err);
                if (r < 0)
                        return r;
        }
        revoke_others(vm);
        return 0;
}

/* ---- chains of the worker ---- */

json_t *worker_image_paths(const struct image_chain *images)
{
        json_t *paths = json_array();

        for (size_t i = 0; i < images->n; i++)
                if (json_array_append_new(paths, json_string(images->rows[i].path)) < 0) {
                        json_decref(paths);
                        return NULL;
                }
        return paths;
}

static void chain_facts(struct vm_chain *chain, const json_t *answer)
{
        const char *root = json_string_value(json_object_get(answer, "root-type"));

        chain->size = (uint64_t)json_integer_value(json_object_get(answer, "size"));
        chain->preferred = (uint32_t)json_integer_value(json_object_get(answer, "block-size"));
        snprintf(chain->root_type, sizeof(chain->root_type), "%s", root ? root : "");
}

/* A parent that is not what it was when it was frozen is named, and read all the same. */
static void warn_of_changes(struct vm *vm, const struct image_chain *images)
{
        char sentence[ERROR_MESSAGE_MAX];

        for (size_t i = 1; i < images->n; i++) {
                image_seal_warning(&images->rows[i], sentence);
                if (!sentence[0])
                        continue;
                broker_log(vm->broker, BROKER_LOG_WARNING, vm->id, "%s", sentence);
                vm_publish(vm, "parent-changed",
                        json_pack("{s:s, s:s}", "file", images->rows[i].path, "message", sentence));
        }
}

static const struct vm_chain *find_holder(struct vm *vm, const char *name, const char *path)
{
        for (size_t i = 0; i < vm->n_chains; i++)
                if (strcmp(vm->chains[i].name, name) != 0 && worker_chain_has(&vm->chains[i], path))
                        return &vm->chains[i];
        return NULL;
}

/* One file, one writer, also in one process, where no lock says so. A merge that has it open on a chain of its own
 * goes on from this one. */
static int free_leaf(struct vm *vm, const char *name, const char *path, struct error *err)
{
        const struct vm_chain *holder = find_holder(vm, name, path);
        int64_t job;

        if (holder && strchr(holder->name, '@')) {
                worker_snapshots_close(vm, NULL, false); /* unless somebody reads it */
                holder = find_holder(vm, name, path);
        }
        while (holder && merges_own_job(holder->name, &job)) {
                int r = merges_end_in_worker(vm, job, err);

                if (r < 0)
                        return r;
                holder = find_holder(vm, name, path);
        }
        return holder ? fail(err, EBUSY, "'%s' is open for '%s'", path, holder->name) : 0;
}

int worker_chain_open(struct vm *vm, const char *name, const struct image_chain *images,
        bool writable, struct error *err)
{
        json_auto_t *answer = NULL;
        struct vm_chain chain;
        const char *warning;
        int r = chain_of_images(name, images, writable, &chain, err);

        if (r < 0)
                return r;
        warn_of_changes(vm, images);
        if (writable)
                r = seals_break(vm, &images->rows[0], err);
        if (r == 0 && writable)
                r = free_leaf(vm, name, images->rows[0].path, err);
        if (r == 0)
                r = grant_chain(vm, images, writable, err);
        if (r == 0)
                r = worker_call(vm, "chain.open",
                        json_pack("{s:s, s:o*, s:s, s:b}", "chain", name, "paths",
                                worker_image_paths(images), "format", images->rows[0].format,
                                "writable", writable),
                        OPEN_MS, &answer, err);
        if (r == 0) {
                chain_facts(&chain, answer);
                warning = json_string_value(json_object_get(answer, "warning"));
                if (warning)
                        broker_log(vm->broker, BROKER_LOG_WARNING, vm->id, "%s", warning);
                r = remember_chain(vm, &chain, err);
        }
        if (r < 0)
                revoke_unused(vm, &chain);
        chain_done(&chain);
        return r;
}

int worker_chain_close(struct vm *vm, const char *name, struct error *err)
{
        struct vm_chain *chain = find_any(vm, name), copy;
        int r = 0;

        if (!chain)
                return 0;
        if (!chain->trouble)
                r = worker_call(
                        vm, "chain.close", json_pack("{s:s}", "chain", name), OPEN_MS, NULL, err);
        if (r < 0 && r != -EHOSTDOWN)
                return r;
        merges_forget(vm, name);
        copy = *chain;
        pthread_rwlock_wrlock(&vm->link_lock);
        *chain = vm->chains[--vm->n_chains];
        pthread_rwlock_unlock(&vm->link_lock);
        revoke_unused(vm, &copy);
        chain_done(&copy);
        return r;
}

int worker_chain_resize(struct vm *vm, const char *name, const struct image_chain *images,
        uint64_t size, bool shrink, bool force, struct error *err)
{
        struct vm_chain *chain = find_any(vm, name);
        json_auto_t *answer = NULL;
        int r;

        if (!chain || chain->trouble)
                return fail(err, EIO, "the chain '%s' is not open", name);
        merges_forget(vm, name);
        r = worker_call(vm, "chain.resize",
                json_pack("{s:s, s:o*, s:s, s:b, s:I, s:b, s:b}", "chain", name, "paths",
                        worker_image_paths(images), "format", images->rows[0].format, "writable",
                        true, "size", (json_int_t)size, "shrink", shrink, "force", force),
                RESIZE_MS, &answer, err);
        if (r < 0)
                return r;
        pthread_rwlock_wrlock(&vm->link_lock);
        chain_facts(chain, answer);
        pthread_rwlock_unlock(&vm->link_lock);
        return 0;
}

int worker_chain_pushed(struct vm *vm, const char *name, const char *path, struct error *err)
{
        struct vm_chain *chain = worker_chain_find(vm, name);
        char *copy = strdup(path);
        char **paths;

        if (!chain || !copy) {
                free(copy);
                return chain ? fail(err, ENOMEM, "no memory for a path") : 0;
        }
        paths = realloc(chain->paths, (chain->n_paths + 1) * sizeof(*paths));
        if (!paths) {
                free(copy);
                return fail(err, ENOMEM, "no memory for one more layer");
        }
        pthread_rwlock_wrlock(&vm->link_lock);
        memmove(paths + 1, paths, chain->n_paths * sizeof(*paths));
        paths[0] = copy;
        chain->paths = paths;
        chain->n_paths++;
        pthread_rwlock_unlock(&vm->link_lock);
        return 0;
}

static void drop_layers(struct vm_chain *chain, const json_t *gone)
{
        size_t n = 0;

        for (size_t i = 0; i < chain->n_paths; i++)
                if (json_has_text(gone, chain->paths[i]))
                        free(chain->paths[i]);
                else
                        chain->paths[n++] = chain->paths[i];
        chain->n_paths = n;
}

void worker_chain_merged(struct vm *vm, const char *with, const json_t *gone)
{
        pthread_rwlock_wrlock(&vm->link_lock);
        for (size_t i = 0; i < vm->n_chains; i++)
                if (!with || worker_chain_has(&vm->chains[i], with))
                        drop_layers(&vm->chains[i], gone);
        pthread_rwlock_unlock(&vm->link_lock);
}

/* ---- exports ---- */

char *export_name(const char *vm, const char *disk, const char *snapshot)
{
        char *ret;

        if (asprintf(&ret, "%s/%s%s%s", vm, disk, snapshot ? "@" : "", snapshot ? snapshot : "") <
                0)
                return NULL;
        return ret;
}

/* The snapshots that this chain's state descends from, for vhdd:changed:SNAPSHOT. */
static int changed_contexts(
        struct vm *vm, const struct vm_chain *chain, json_t **ret, struct error *err)
{
        struct snapshot_row *rows = NULL;
        json_auto_t *list = json_array();
        size_t n = 0;
        int r = catalog_snapshot_list(vm->broker->catalog, vm->id, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                struct snapshot_disk_row *disks = NULL;
                size_t n_disks = 0;

                if (strcmp(rows[i].state, "committed") != 0)
                        continue;
                r = catalog_snapshot_disk_list(
                        vm->broker->catalog, rows[i].id, &disks, &n_disks, err);
                for (size_t k = 0; r == 0 && k < n_disks; k++)
                        for (size_t p = 0; r == 0 && disks[k].file && p < chain->n_paths; p++)
                                if (strcmp(chain->paths[p], disks[k].file) == 0 &&
                                        json_array_append_new(list,
                                                json_pack("{s:s, s:s}", "name", rows[i].name,
                                                        "layer", disks[k].file)) < 0)
                                        r = fail(err, ENOMEM, "no memory for a list");
                snapshot_disk_rows_free(disks, n_disks);
        }
        snapshot_rows_free(rows, n);
        if (r == 0) {
                *ret = list;
                list = NULL;
        }
        return r;
}

static int export_add(struct vm *vm, const char *name, const char *chain_name, bool read_only,
        const char *description, struct error *err)
{
        struct vm_chain *chain = worker_chain_find(vm, chain_name);
        json_t *changed = NULL;
        int r;

        if (!chain)
                return fail(err, EIO, "the chain of export '%s' is not open", name);
        r = changed_contexts(vm, chain, &changed, err);
        if (r < 0)
                return r;
        r = worker_call(vm, "export.add",
                json_pack("{s:s, s:s, s:b, s:s, s:O}", "name", name, "chain", chain_name,
                        "read-only", read_only, "description", description, "changed", changed),
                WORKER_CALL_MS, NULL, err);
        if (r == -EEXIST) {
                error_clear(err);
                r = worker_call(vm, "export.changed",
                        json_pack("{s:s, s:O}", "name", name, "changed", changed), WORKER_CALL_MS,
                        NULL, err);
        }
        json_decref(changed);
        return r;
}

static int export_remove(
        struct vm *vm, const char *name, bool force, unsigned timeout_ms, struct error *err)
{
        int r = worker_call(vm, "export.remove",
                json_pack("{s:s, s:b, s:i}", "name", name, "force", force, "timeout-ms",
                        (int)timeout_ms),
                timeout_ms + WORKER_CALL_MS, NULL, err);

        return r == -ENOENT ? 0 : r;
}

int worker_disk_serve(
        struct vm *vm, const struct vm_row *row, const struct disk_row *disk, struct error *err)
{
        _cleanup_free_ char *live = export_name(row->name, disk->name, NULL);
        _cleanup_free_ char *now = export_name(row->name, disk->name, "now");
        int r;

        if (!live || !now)
                return fail(err, ENOMEM, "no memory for an export's name");
        r = export_add(vm, live, disk->id, disk->read_only, "a live disk", err);
        if (r == 0)
                r = export_add(vm, now, disk->id, true, "a live disk, read-only", err);
        return r;
}

int worker_disk_withdraw(struct vm *vm, const struct vm_row *row, const char *disk_name, bool force,
        unsigned timeout_ms, struct error *err)
{
        _cleanup_free_ char *live = export_name(row->name, disk_name, NULL);
        _cleanup_free_ char *now = export_name(row->name, disk_name, "now");
        int r;

        if (!live || !now)
                return fail(err, ENOMEM, "no memory for an export's name");
        /* Readers of @now are not asked: what they read goes away with the disk. */
        r = export_remove(vm, live, force, timeout_ms, err);
        if (r == 0)
                r = export_remove(vm, now, true, 0, err);
        if (r == -EBUSY) {
                fail(err, EBUSY, "disk '%s' of vm '%s' is in use by a client", disk_name,
                        row->name);
                error_set_hint(err, "end the client, or cut it off with --force");
        }
        return r;
}

/* ---- snapshots' exports ---- */

int worker_snapshot_chain(struct vm *vm, const struct snapshot_disk_row *disk,
        char ret[CHAIN_NAME_MAX], struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain images = {0};
        int r;

        snprintf(ret, CHAIN_NAME_MAX, "%s@%s", disk->disk, disk->snapshot);
        if (worker_chain_find(vm, ret))
                return 0;
        r = image_chain_get(vm->broker->catalog, disk->file, &images, err);
        if (r < 0)
                return r;
        return worker_chain_open(vm, ret, &images, false, err);
}

int worker_snapshot_serve(struct vm *vm, const struct vm_row *row,
        const struct snapshot_row *snapshot, const struct snapshot_disk_row *disk,
        struct error *err)
{
        _cleanup_free_ char *name = export_name(row->name, disk->name, snapshot->name);
        char chain_name[CHAIN_NAME_MAX];
        struct vm_chain *chain;
        int r;

        if (!name)
                return fail(err, ENOMEM, "no memory for an export's name");
        if (!disk->file)
                return fail(err, ENOENT, "disk '%s' was left out of snapshot '%s'", disk->name,
                        snapshot->name);
        r = worker_snapshot_chain(vm, disk, chain_name, err);
        chain = worker_chain_find(vm, chain_name);
        if (r < 0 || (chain->export_name && strcmp(chain->export_name, name) == 0))
                return r;
        /* Called otherwise before a rename that was cut off. */
        if (chain->export_name)
                r = export_remove(vm, chain->export_name, true, 0, err);
        if (r == 0)
                r = export_add(vm, name, chain_name, true, "a snapshot's disk, read-only", err);
        if (r < 0)
                return r;
        free(chain->export_name);
        chain->export_name = TAKE_PTR(name);
        return 0;
}

size_t worker_snapshots_close(struct vm *vm, const char *snapshot, bool force)
{
        size_t busy = 0;

        for (size_t i = vm->n_chains; i-- > 0;) {
                const char *at = strchr(vm->chains[i].name, '@');
                _cleanup_free_ char *name = at ? strdup(vm->chains[i].name) : NULL;
                struct error err = ERROR_INIT;
                int r = 0;

                if (!name || (snapshot && strcmp(at + 1, snapshot) != 0))
                        continue;
                if (vm->chains[i].export_name)
                        r = export_remove(vm, vm->chains[i].export_name, force, 0, &err);
                if (r < 0) {
                        busy++;
                        continue;
                }
                free(vm->chains[i].export_name);
                vm->chains[i].export_name = NULL;
                if (worker_chain_close(vm, name, &err) < 0)
                        broker_log_error(vm->broker, vm->id, &err);
        }
        return busy;
}

/* ---- bringing a worker up ---- */

/* The child that a snapshot put on the disk, when that is on its way to be rolled forward. */
static const char *pushed_child(struct vm *vm, const struct disk_row *disk)
{
        json_t *item;
        size_t i;

        json_array_foreach(json_object_get(vm->rolling, "disks"), i, item)
        {
                const char *id = json_string_value(json_object_get(item, "disk"));

                if (id && strcmp(id, disk->id) == 0)
                        return json_string_value(json_object_get(item, "child"));
        }
        return NULL;
}

/* What the disk's chain is to be: what the catalog says, or will say. */
static int wanted_images(
        struct vm *vm, const struct disk_row *disk, struct image_chain *ret, struct error *err)
{
        const char *child = pushed_child(vm, disk);
        int r = image_chain_get(vm->broker->catalog, disk->file, ret, err);

        if (r < 0 || !child)
                return r;
        if (ret->n == CHAIN_MAX_DEPTH)
                return fail(err, E2BIG, "the chain of '%s' is too long", disk->file);
        memmove(ret->rows + 1, ret->rows, ret->n * sizeof(ret->rows[0]));
        ret->rows[0] = (struct image_row){.path = strdup(child), .format = "vhd"};
        ret->n++;
        return ret->rows[0].path ? 0 : fail(err, ENOMEM, "no memory for a path");
}

static bool has_these_paths(const json_t *chain, const struct image_chain *images)
{
        json_t *paths = json_object_get(chain, "paths"), *path;
        size_t i;

        if (json_array_size(paths) != images->n)
                return false;
        json_array_foreach(paths, i, path)
        {
                const char *text = json_string_value(path);

                if (!text || strcmp(text, images->rows[i].path) != 0)
                        return false;
        }
        return true;
}

static json_t *find_said(const json_t *hello, const char *name)
{
        json_t *chain;
        size_t i;

        json_array_foreach(json_object_get(hello, "chains"), i, chain)
        {
                const char *said = json_string_value(json_object_get(chain, "chain"));

                if (said && strcmp(said, name) == 0)
                        return chain;
        }
        return NULL;
}

/* Takes over what an adopted worker has open already, if it is the right thing. */
static int adopt_chain(struct vm *vm, const json_t *said, const char *name,
        const struct image_chain *images, bool writable, struct error *err)
{
        struct vm_chain chain;
        int r = chain_of_images(name, images, writable, &chain, err);

        if (r < 0)
                return r;
        chain_facts(&chain, said);
        r = remember_chain(vm, &chain, err);
        chain_done(&chain);
        return r < 0 ? r : grant_chain(vm, images, writable, err);
}

static void remove_exports_of(struct vm *vm, const json_t *hello, const char *chain)
{
        json_t *item;
        size_t i;

        json_array_foreach(json_object_get(hello, "exports"), i, item)
        {
                const char *of = json_string_value(json_object_get(item, "chain"));
                const char *name = json_string_value(json_object_get(item, "name"));
                struct error err = ERROR_INIT;

                if (of && name && strcmp(of, chain) == 0 &&
                        export_remove(vm, name, true, 0, &err) < 0)
                        broker_log_error(vm->broker, vm->id, &err);
        }
}

/* What an adopted worker has open and the catalog knows nothing of (any more), and every snapshot's
 * chain that nobody reads. */
static void drop_unknown(struct vm *vm, const json_t *hello)
{
        json_t *chain;
        size_t i;

        json_array_foreach(json_object_get(hello, "chains"), i, chain)
        {
                const char *name = json_string_value(json_object_get(chain, "chain"));
                struct error err = ERROR_INIT;

                if (!name || find_any(vm, name))
                        continue;
                remove_exports_of(vm, hello, name);
                merges_forget(vm, name);
                if (worker_call(vm, "chain.close", json_pack("{s:s}", "chain", name), OPEN_MS, NULL,
                            &err) < 0)
                        broker_log_error(vm->broker, vm->id, &err);
        }
}

/* As free_leaf(), of what the worker says that it has open. */
static int free_said_leaf(
        struct vm *vm, const json_t *hello, const char *name, const char *path, struct error *err)
{
        json_t *chains = json_object_get(hello, "chains"), *chain;
        size_t i;

        json_array_foreach(chains, i, chain)
        {
                const char *said = param_text(chain, "chain");
                int64_t job;
                int r;

                if (!said || strcmp(said, name) == 0 || !merges_own_job(said, &job) ||
                        !json_has_text(json_object_get(chain, "paths"), path))
                        continue;
                merges_drop_in_worker(vm, job);
                r = worker_call(
                        vm, "chain.close", json_pack("{s:s}", "chain", said), OPEN_MS, NULL, err);
                if (r < 0)
                        return r;
                json_array_remove(chains, i--);
        }
        return 0;
}

/* Has its chain open and known, by whatever way. */
static int bring_disk(
        struct vm *vm, const json_t *hello, const struct disk_row *disk, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain images = {0};
        json_t *said = find_said(hello, disk->id);
        int r = wanted_images(vm, disk, &images, err);

        if (r < 0)
                return r;
        if (said && has_these_paths(said, &images))
                return adopt_chain(vm, said, disk->id, &images, !disk->read_only, err);
        if (said) {
                remove_exports_of(vm, hello, disk->id);
                merges_forget(vm, disk->id);
                r = worker_call(vm, "chain.close", json_pack("{s:s}", "chain", disk->id), OPEN_MS,
                        NULL, err);
                if (r < 0)
                        return r;
        }
        if (!disk->read_only)
                r = free_said_leaf(vm, hello, disk->id, images.rows[0].path, err);
        return r < 0 ? r : worker_chain_open(vm, disk->id, &images, !disk->read_only, err);
}

/* The export that an adopted worker has over a chain, as it calls it; NULL: none. The broker before us
 * may have died between an export's removal and its chain's closing. */
static char *said_export(const json_t *hello, const char *chain)
{
        json_t *item;
        size_t i;

        json_array_foreach(json_object_get(hello, "exports"), i, item)
        {
                const char *of = json_string_value(json_object_get(item, "chain"));
                const char *name = json_string_value(json_object_get(item, "name"));

                if (of && name && strcmp(of, chain) == 0)
                        return strdup(name);
        }
        return NULL;
}

/* The chains and exports of snapshots that are being read at the moment. */
static int adopt_snapshots(
        struct vm *vm, const json_t *hello, const struct vm_row *row, struct error *err)
{
        struct snapshot_row *rows = NULL;
        size_t n = 0;
        int r = catalog_snapshot_list(vm->broker->catalog, row->id, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                struct snapshot_disk_row *disks = NULL;
                size_t n_disks = 0;

                r = catalog_snapshot_disk_list(
                        vm->broker->catalog, rows[i].id, &disks, &n_disks, err);
                for (size_t k = 0; r == 0 && k < n_disks; k++) {
                        _cleanup_(image_chain_done) struct image_chain images = {0};
                        char name[CHAIN_NAME_MAX];
                        json_t *said;

                        snprintf(name, sizeof(name), "%s@%s", disks[k].disk, rows[i].id);
                        said = disks[k].file ? find_said(hello, name) : NULL;
                        if (!said)
                                continue;
                        r = image_chain_get(vm->broker->catalog, disks[k].file, &images, err);
                        if (r < 0 || !has_these_paths(said, &images))
                                continue;
                        r = adopt_chain(vm, said, name, &images, false, err);
                        if (r == 0 && find_any(vm, name))
                                find_any(vm, name)->export_name = said_export(hello, name);
                }
                snapshot_disk_rows_free(disks, n_disks);
        }
        snapshot_rows_free(rows, n);
        return r;
}

/* Those that an adopted worker has open for merges that go on. */
static int adopt_merges(struct vm *vm, const json_t *hello, struct error *err)
{
        json_t *said;
        size_t i;
        int r = 0;

        json_array_foreach(json_object_get(hello, "chains"), i, said)
        {
                const char *name = json_string_value(json_object_get(said, "chain"));
                const char *leaf =
                        json_string_value(json_array_get(json_object_get(said, "paths"), 0));
                _cleanup_(image_chain_done) struct image_chain images = {0};

                if (r < 0 || !name || !leaf || !merges_own_chain(vm, name) ||
                        image_chain_get(vm->broker->catalog, leaf, &images, NULL) < 0)
                        continue;
                if (has_these_paths(said, &images))
                        r = adopt_chain(vm, said, name, &images, true, err);
        }
        return r;
}

/* What a disk's size is its image says: a resize that was cut off had changed it already, or a device
 * has grown. */
static int follow_sizes(
        struct vm *vm, const struct disk_row *disks, size_t n_disks, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < n_disks; i++) {
                const struct vm_chain *chain = worker_chain_find(vm, disks[i].id);
                struct disk_row row = disks[i]; /* lent */

                if (!chain || chain->size == 0 || chain->size == row.size)
                        continue;
                broker_log(vm->broker, BROKER_LOG_INFO, vm->id,
                        "disk '%s' has %" PRIu64 " bytes by now, and had %" PRIu64, row.name,
                        chain->size, row.size);
                row.size = chain->size;
                r = catalog_disk_update(vm->broker->catalog, &row, err);
        }
        return r;
}

/* {chain: why it cannot be opened} */
static json_t *known_trouble(const struct vm *vm)
{
        json_t *known = json_object();

        for (size_t i = 0; i < vm->n_chains; i++)
                if (vm->chains[i].trouble)
                        json_object_set_new(
                                known, vm->chains[i].name, json_string(vm->chains[i].trouble));
        return known;
}

static bool is_known(const json_t *known, const char *chain, const char *why)
{
        const char *before = json_string_value(json_object_get(known, chain));

        return before && strcmp(before, why) == 0;
}

static int bring_disks(struct vm *vm, const json_t *hello, const struct vm_row *row,
        const struct disk_row *disks, size_t n_disks, struct error *err)
{
        json_auto_t *before = known_trouble(vm);
        int r;

        seals_forget(vm);
        worker_forget(vm);
        for (size_t i = 0; i < n_disks; i++) {
                struct error why = ERROR_INIT;

                /* One image in bad shape ends one disk's service, not that of the others. */
                r = bring_disk(vm, hello, &disks[i], &why);
                if (r == -EHOSTDOWN || r == -ETIMEDOUT) {
                        if (err)
                                *err = why;
                        return r;
                }
                if (r < 0) {
                        fail_prefix(&why, r, "disk '%s' of vm '%s' is not served", disks[i].name,
                                row->name);
                        if (!is_known(before, disks[i].id, why.message))
                                broker_log_error(vm->broker, row->name, &why);
                        remember_trouble(vm, disks[i].id, &why);
                }
        }
        if (!worker_has_trouble(vm))
                vm->n_retries = 0;
        r = follow_sizes(vm, disks, n_disks, err);
        if (r == 0)
                r = adopt_snapshots(vm, hello, row, err);
        if (r == 0)
                r = adopt_merges(vm, hello, err);
        if (r == 0)
                drop_unknown(vm, hello);
        return r;
}

static int serve_disks(struct vm *vm, const struct vm_row *row, const struct disk_row *disks,
        size_t n_disks, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < n_disks; i++)
                if (worker_chain_find(vm, disks[i].id))
                        r = worker_disk_serve(vm, row, &disks[i], err);
        return r;
}

int worker_renew_exports(struct vm *vm, struct error *err)
{
        struct disk_row *disks = NULL;
        struct vm_row row = {0};
        size_t n = 0;
        int r = catalog_vm_find(vm->broker->catalog, vm->id, &row, err);

        if (r == 0)
                r = catalog_disk_list(vm->broker->catalog, vm->id, &disks, &n, err);
        if (r == 0)
                r = serve_disks(vm, &row, disks, n, err);
        disk_rows_free(disks, n);
        vm_row_done(&row);
        return r;
}

/* ---- what could not be opened ---- */

bool worker_has_trouble(struct vm *vm)
{
        bool found = false;

        pthread_rwlock_rdlock(&vm->link_lock);
        for (size_t i = 0; i < vm->n_chains && !found; i++)
                found = vm->chains[i].trouble != NULL;
        pthread_rwlock_unlock(&vm->link_lock);
        return found;
}

/* All the way up, as a broker that finds a living worker goes: what is served goes on, and what was cut off when the
 * image could not be opened is looked at again. */
int worker_retry(struct vm *vm, struct error *err)
{
        int r;

        if (!vm->up || !vm->link || !link_is_alive(vm->link))
                return 0;
        /* Ever more seldom. */
        vm->n_retries++;
        if ((vm->n_retries & (vm->n_retries - 1) || vm->sealing) && vm->n_retries % RETRY_EVERY)
                return 0; /* a seal that is being made would begin anew */
        worker_stale(vm);
        r = worker_up(vm, err);
        if (r < 0 || worker_has_trouble(vm))
                return r < 0 ? r : 0;
        broker_log(vm->broker, BROKER_LOG_INFO, vm->id, "all disks are served again");
        return 1;
}

static void on_died(void *opaque, int status)
{
        vm_worker_died(opaque, status);
}

static void on_event(void *opaque, const json_t *event)
{
        vm_worker_event(opaque, event);
}

/* A process that answers. *ret_hello says what it has open. */
static int start(struct vm *vm, json_t **ret_hello, struct error *err)
{
        const struct link_events events = {.died = on_died, .event = on_event, .opaque = vm};
        struct link *link = NULL;
        bool adopted = false;
        int r;

        if (vm->link) {
                if (link_is_alive(vm->link))
                        return worker_call(vm, "hello",
                                json_pack("{s:i, s:s}", "protocol", 1, "vm", vm->id),
                                WORKER_CALL_MS, ret_hello, err);
                worker_forget(vm);
                return link_restart(vm->link, ret_hello, err);
        }
        r = link_start(vm->broker, vm->id, &events, &adopted, ret_hello, &link, err);
        if (r < 0)
                return r;
        pthread_rwlock_wrlock(&vm->link_lock);
        vm->link = link;
        pthread_rwlock_unlock(&vm->link_lock);
        return 0;
}

int worker_start(struct vm *vm, struct error *err)
{
        json_auto_t *hello = NULL;

        if (vm->link && link_is_alive(vm->link))
                return 0;
        return start(vm, &hello, err);
}

static int bring_up(struct vm *vm, const struct vm_row *row, struct error *err)
{
        struct disk_row *disks = NULL;
        json_auto_t *hello = NULL;
        size_t n = 0;
        int r;

        r = catalog_disk_list(vm->broker->catalog, vm->id, &disks, &n, err);
        /* Also one that has nothing to serve now: its readers of snapshots count, and it ends with us. */
        if (r == 0 &&
                (n > 0 || vm->link || recover_wants_worker(vm) || link_is_left(vm->broker, vm->id)))
                r = start(vm, &hello, err);
        if (r == 0)
                r = recover_before(vm, hello, err);
        if (r == 0)
                r = merges_adopt(vm, hello, err);
        disk_rows_free(disks, n);
        disks = NULL;
        n = 0;
        /* Anew: what was undone or finished may have changed them. */
        if (r == 0)
                r = catalog_disk_list(vm->broker->catalog, vm->id, &disks, &n, err);
        if (r == 0 && hello)
                r = bring_disks(vm, hello, row, disks, n, err);
        if (r == 0 && vm->rolling)
                r = recover_roll_forward(vm, err);
        if (r == 0 && hello)
                r = recover_drop_record(vm, err);
        if (r == 0 && hello)
                r = worker_renew_exports(vm, err);
        if (r == 0 && hello) {
                link_adopted(vm->link);
                revoke_others(vm);
        }
        disk_rows_free(disks, n);
        if (r == 0)
                snapshots_settle_pending(vm);
        return r;
}

static int try_up(struct vm *vm, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = catalog_vm_find(vm->broker->catalog, vm->id, &row, err);

        return r < 0 ? r : bring_up(vm, &row, err);
}

int worker_up(struct vm *vm, struct error *err)
{
        struct error why = ERROR_INIT;
        int r;

        if (vm->up && (!vm->link || link_is_alive(vm->link)))
                return 0;
        /* One that is just dying ends its socket before it is seen to be dead. */
        for (unsigned tries = 0;; tries++) {
                error_clear(&why);
                r = try_up(vm, &why);
                if (r != -EHOSTDOWN || tries == UP_TRIES || !vms_sleep(vm->vms, UP_PAUSE_MS))
                        break;
        }
        if (r < 0) {
                if (err)
                        *err = why;
                vm_set_down(vm, why.message);
                return r;
        }
        vm_set_up(vm);
        return 0;
}

void worker_stale(struct vm *vm)
{
        pthread_rwlock_wrlock(&vm->link_lock);
        vm->up = false;
        pthread_rwlock_unlock(&vm->link_lock);
}

int worker_down(struct vm *vm, unsigned timeout_ms, struct error *err)
{
        int r = 0;

        if (!vm->link)
                return 0;
        r = link_quit(vm->link, timeout_ms, err);
        pthread_rwlock_wrlock(&vm->link_lock);
        vm->link = link_free(vm->link);
        pthread_rwlock_unlock(&vm->link_lock);
        seals_forget(vm);
        worker_forget(vm);
        vm_set_down(vm, "the worker was ended");
        return r;
}
