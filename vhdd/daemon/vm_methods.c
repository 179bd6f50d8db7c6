/* SPDX-License-Identifier: Apache-2.0 */
/* vm_methods.c - vm.create, set, list, show, remove, and what is asked of a vm's agent. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/hidden.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/link.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/recover.h"
#include "vhdd/daemon/sidecar.h"
#include "vhdd/daemon/transfers.h"
#include "vhdd/daemon/worker_link.h"

#define DESCRIBE_S    5
#define AGENT_WAIT_MS 5000u
#define AGENT_STEP_MS 20u

/* An agent that was given a time is waited for a little longer: its own word is the better one. */
#define SHUTDOWN_MORE_S 15u

/* ---- create, set ---- */

static int refuse_taken(struct broker *broker, const char *name, struct error *err)
{
        struct vm_row row = {0};
        int r = catalog_vm_find(broker->catalog, name, &row, err);

        vm_row_done(&row);
        if (r == 0)
                return fail(err, EEXIST, "there is a vm '%s' already", name);
        if (r != -ENOENT)
                return r;
        error_clear(err);
        return 0;
}

static int check_memory(const json_t *settings, struct error *err)
{
        const json_t *memory = json_object_get(settings, "memory");
        json_int_t startup = param_int(memory, "startup", 0), most = param_int(memory, "max", 0);

        if (most > 0 && most < startup)
                return fail(err, EINVAL, "memory: max (%lld) is less than startup (%lld)",
                        (long long)most, (long long)startup);
        return 0;
}

static int vm_create(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_free_ char *settings = NULL;
        json_t *given = json_object_get(params, "settings");
        uint8_t id[16];
        struct vm_row row = {
                .name = (char *)param_text(params, "vm"),
                .created_us = now_us(),
                .snapshot_dir = (char *)param_text(params, "snapshot-dir"),
        };
        int r = name_check("vm", row.name, err);

        if (r == 0)
                r = refuse_taken(broker, row.name, err);
        if (r == 0)
                r = check_memory(given, err);
        if (r < 0)
                return r;
        settings = given ? json_dumps(given, JSON_COMPACT) : strdup("{}");
        if (!settings)
                return fail(err, ENOMEM, "no memory for a vm's settings");
        row.settings = settings;
        uuid_random(id);
        uuid_format(id, row.id);
        if (param_bool(params, "dry-run")) {
                struct vm none = {.broker = broker, .vms = broker->vms};

                pthread_rwlock_init(&none.link_lock, NULL);
                r = vm_to_json(&none, &row, true, ret, err);
                pthread_rwlock_destroy(&none.link_lock);
                return r;
        }
        r = catalog_vm_insert(broker->catalog, &row, err);
        if (r == 0)
                r = vm_add(broker, row.id, &vm, err);
        if (r < 0)
                return r;
        vm_changed(vm, "vm-created", NULL);
        return vm_to_json(vm, &row, true, ret, err);
}

/* The members of memory one by one: who sets the weight keeps startup and max. */
static int merge_memory(json_t *all, json_t *given, struct error *err)
{
        json_t *memory = json_object_get(all, "memory");
        int r = memory ? json_object_update(memory, given) : json_object_set(all, "memory", given);

        return r < 0 ? fail(err, ENOMEM, "no memory for a vm's settings") : 0;
}

/* What is given replaces; null takes back. */
static int merge_settings(struct vm_row *row, const json_t *given, struct error *err)
{
        json_auto_t *all = json_loads(row->settings, 0, NULL);
        const char *key;
        json_t *value;
        char *text;
        int r = 0;

        if (!all)
                return fail(err, EUCLEAN, "the settings of vm '%s' are damaged in the catalog",
                        row->name);
        json_object_foreach((json_t *)given, key, value)
        {
                if (json_is_null(value))
                        json_object_del(all, key);
                else if (strcmp(key, "memory") == 0)
                        r = merge_memory(all, value, err);
                else if (json_object_set(all, key, value) < 0)
                        return fail(err, ENOMEM, "no memory for a vm's settings");
        }
        if (r == 0)
                r = check_memory(all, err);
        if (r < 0)
                return r;
        text = json_dumps(all, JSON_COMPACT);
        if (!text)
                return fail(err, ENOMEM, "no memory for a vm's settings");
        free(row->settings);
        row->settings = text;
        return 0;
}

static int replace_text(char **text, const char *with, struct error *err)
{
        char *copy;

        if (!with)
                return 0;
        copy = strdup(with);
        if (!copy)
                return fail(err, ENOMEM, "no memory for a text");
        free(*text);
        *text = copy;
        return 0;
}

/* Its exports are called after it: so nobody may have one open. */
static int check_rename(struct vm *vm, const char *name, struct error *err)
{
        json_auto_t *clients = NULL;
        int r = name_check("vm", name, err);

        if (r == 0)
                r = refuse_taken(vm->broker, name, err);
        if (r == 0)
                r = worker_clients(vm, WORKER_CALL_MS, &clients, err);
        if (r < 0)
                return r;
        if (json_array_size(clients) > 0) {
                fail(err, EBUSY,
                        "%zu clients have exports of the vm open, which are called after it",
                        json_array_size(clients));
                error_set_hint(err, "rename it while nobody uses its disks");
                return -EBUSY;
        }
        return 0;
}

/* The exports under the new name; @old says the one before. */
static int rename_exports(struct vm *vm, const struct vm_row *old, struct error *err)
{
        struct disk_row *disks = NULL;
        size_t n = 0;
        int r = catalog_disk_list(vm->broker->catalog, vm->id, &disks, &n, err);

        worker_snapshots_close(vm, NULL, true);
        for (size_t i = 0; r == 0 && i < n; i++)
                if (worker_chain_find(vm, disks[i].id))
                        r = worker_disk_withdraw(vm, old, disks[i].name, true, 0, err);
        disk_rows_free(disks, n);
        return r == 0 ? worker_renew_exports(vm, err) : r;
}

static int vm_set(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(vm_row_done) struct vm_row old = {0};
        const char *name = param_text(params, "name");
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        if (r < 0)
                return r;
        if (name && strcmp(name, row.name) == 0)
                name = NULL;
        if (name)
                r = check_rename(vm, name, err);
        if (r == 0 && json_object_get(params, "settings"))
                r = merge_settings(&row, json_object_get(params, "settings"), err);
        if (r == 0)
                r = replace_text(&row.snapshot_dir, param_text(params, "snapshot-dir"), err);
        if (r == 0 && name)
                r = catalog_vm_find(broker->catalog, vm->id, &old, err);
        if (r == 0)
                r = replace_text(&row.name, name, err);
        if (r < 0)
                return r;
        if (param_bool(params, "dry-run"))
                return vm_to_json(vm, &row, true, ret, err);
        if (name && row.directory)
                sidecar_remove(broker->catalog, host_fs(), vm->id, NULL);
        r = catalog_vm_update(broker->catalog, &row, err);
        if (r < 0)
                return r;
        if (name && vm->link) {
                struct error why = ERROR_INIT;

                if (rename_exports(vm, &old, &why) < 0)
                        vm_set_down(vm, why.message); /* anew, from the catalog */
        }
        vm_changed(vm, "vm-changed", NULL);
        return vm_to_json(vm, &row, true, ret, err);
}

/* ---- list, show ---- */

static int vm_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        json_auto_t *list = json_array();
        struct vm_row *rows = NULL;
        size_t n = 0;
        int r = catalog_vm_list(broker->catalog, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                _cleanup_(vm_unrefp) struct vm *vm = NULL;
                json_t *one = NULL;

                r = vm_add(broker, rows[i].id, &vm, err);
                if (r == 0)
                        r = vm_to_json(vm, &rows[i], false, &one, err);
                if (r == 0)
                        json_array_append_new(list, one);
        }
        vm_rows_free(rows, n);
        if (r < 0)
                return r;
        *ret = json_incref(list);
        return 0;
}

/* An agent that does not answer at once is no reason not to show the rest. */
static void add_machine(struct vm *vm, json_t *shown)
{
        json_auto_t *machine = NULL;

        if (agent_offers(vm, "describe") &&
                agent_ask_within(
                        vm, "describe", json_object(), NULL, 0, DESCRIBE_S, &machine, NULL) == 0)
                json_object_set(shown, "machine", machine);
}

static int vm_show(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = vm_to_json(vm, &row, true, ret, err);
        if (r == 0 && param_bool(params, "machine"))
                add_machine(vm, *ret);
        return r;
}

/* ---- remove ---- */

static bool is_in(const json_t *list, const char *path)
{
        json_t *item;
        size_t i;

        json_array_foreach(list, i, item)
        {
                if (strcmp(json_string_value(item), path) == 0)
                        return true;
        }
        return false;
}

/* Kept for somebody else, on the same images as this vm's: for an undo of another vm's, or as the file
 * of a disk that was detached, whose vm nobody remembers: that one is its owner's. */
static bool is_anothers(const json_t *undo, const struct image_row *image)
{
        if (strcmp(image->state, IMAGE_DETACHED) == 0)
                return true;
        return strcmp(image->state, IMAGE_DISCARDED) == 0 &&
                !is_in(json_object_get(undo, "discarded"), image->path);
}

/* Paths of every image of the vm: under its disks and snapshots, and whatever stands on these. */
static int collect_images(struct vm *vm, json_t *paths, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        json_auto_t *undo = NULL;
        struct catalog *catalog = vm->broker->catalog;
        struct snapshot_row *snapshots = NULL;
        struct image_row *images = NULL;
        struct disk_row *disks = NULL;
        size_t n_snapshots = 0, n_disks = 0, n_images = 0, before;
        int r = catalog_vm_find(catalog, vm->id, &row, err);

        if (r == 0 && row.undo)
                undo = json_loads(row.undo, 0, NULL);
        if (r == 0)
                r = catalog_disk_list(catalog, vm->id, &disks, &n_disks, err);
        for (size_t i = 0; r == 0 && i < n_disks; i++)
                if (!is_in(paths, disks[i].file))
                        json_array_append_new(paths, json_string(disks[i].file));
        disk_rows_free(disks, n_disks);
        if (r == 0)
                r = catalog_snapshot_list(catalog, vm->id, &snapshots, &n_snapshots, err);
        for (size_t i = 0; r == 0 && i < n_snapshots; i++) {
                struct snapshot_disk_row *rows = NULL;
                size_t n = 0;

                r = catalog_snapshot_disk_list(catalog, snapshots[i].id, &rows, &n, err);
                for (size_t k = 0; r == 0 && k < n; k++)
                        if (rows[k].file && !is_in(paths, rows[k].file))
                                json_array_append_new(paths, json_string(rows[k].file));
                snapshot_disk_rows_free(rows, n);
        }
        snapshot_rows_free(snapshots, n_snapshots);
        if (r == 0)
                r = catalog_image_list(catalog, NULL, &images, &n_images, err);
        do {
                before = json_array_size(paths);
                for (size_t i = 0; r == 0 && i < n_images; i++) {
                        bool child = images[i].parent && is_in(paths, images[i].parent) &&
                                strcmp(images[i].state, IMAGE_IN_USE) != 0 &&
                                !is_anothers(undo, &images[i]);

                        if (child && !is_in(paths, images[i].path))
                                json_array_append_new(paths, json_string(images[i].path));
                        /* Parents that only a chain of this vm's stands on go with it. */
                        if (is_in(paths, images[i].path) && images[i].parent &&
                                strcmp(images[i].state, IMAGE_IN_USE) != 0 &&
                                !is_in(paths, images[i].parent))
                                json_array_append_new(paths, json_string(images[i].parent));
                }
        } while (json_array_size(paths) > before);
        image_rows_free(images, n_images);
        return r;
}

/* What was kept for an undo or of a taken-away disk is kept by nobody now. */
static int free_states(
        struct catalog *catalog, const char *vm, const json_t *paths, struct error *err)
{
        char users[HIDDEN_REASON_MAX];
        json_t *item;
        size_t i;

        json_array_foreach(paths, i, item)
        {
                _cleanup_(image_row_done) struct image_row row = {0};
                int r = catalog_image_find(catalog, json_string_value(item), &row, err);

                if (r == -ENOENT)
                        continue;
                if (r == 0)
                        r = hidden_users(catalog, vm, row.path, users, err);
                if (r == 0 && users[0])
                        continue; /* its merge is that vm's now */
                if (r == 0 && strcmp(row.state, IMAGE_IN_USE) != 0) {
                        snprintf(row.state, sizeof(row.state), IMAGE_IN_USE);
                        r = catalog_image_update(catalog, &row, err);
                }
                if (r < 0)
                        return r;
        }
        return 0;
}

static int forget_vm(
        struct vm *vm, const json_t *paths, json_t *deleted, json_t *kept, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        const char **list = calloc(json_array_size(paths) + 1, sizeof(*list));
        _cleanup_(strangers_done) struct strangers strangers = {0};
        json_t *item;
        size_t i, before;
        int r = list ? strangers_init(&strangers, vm->broker, err)
                     : fail(err, ENOMEM, "no memory for a list");

        if (r == 0)
                r = catalog_vm_delete(catalog, vm->id, err);
        if (r == 0)
                r = free_states(catalog, vm->id, paths, err);
        if (r == 0)
                json_array_foreach(paths, i, item) list[i] = json_string_value(item);
        /* Again while some go: one that is stood on goes after who stands on it. */
        do {
                before = json_array_size(deleted) + json_array_size(kept);
                if (r == 0)
                        r = images_release(
                                &strangers, list, json_array_size(paths), deleted, kept, err);
        } while (r == 0 && json_array_size(deleted) + json_array_size(kept) > before);
        free(list);
        return r;
}

static int add_memory_files(struct vm *vm, json_t *files, struct error *err)
{
        struct snapshot_row *rows = NULL;
        size_t n = 0;
        int r = catalog_snapshot_list(vm->broker->catalog, vm->id, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++)
                r = memory_files_of(&rows[i], files, err);
        snapshot_rows_free(rows, n);
        return r;
}

/* One transaction: the rows go, and, with @delete_files, the files are named to go. @dry: rolled
 * back. */
static int remove_transaction(struct vm *vm, bool delete_files, bool dry, json_t *deleted,
        json_t *kept, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        _cleanup_(operation_freep) struct operation *operation = NULL;
        json_auto_t *paths = json_array();
        json_t *item;
        size_t i;
        int r = collect_images(vm, paths, err);

        if (r == 0 && !dry)
                r = operation_begin(
                        catalog, host_fs(), "vm.remove", vm->id, NULL, 0, NULL, &operation, err);
        if (r == 0 && !dry)
                r = operation_made(operation, err);
        if (r == 0)
                r = add_memory_files(vm, deleted, err);
        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = forget_vm(vm, paths, deleted, kept, err);
        json_array_foreach(deleted, i, item)
        {
                if (r == 0 && !dry && delete_files)
                        r = operation_will_remove(operation, json_string_value(item), err);
        }
        if (r < 0 || dry) {
                catalog_rollback(catalog);
                return r;
        }
        r = operation_commit(operation, err);
        if (r < 0)
                return r;
        vm_drop(vm);
        /* What stays behind now is the journal's to finish. */
        if (operation_end(operation, err) < 0) {
                broker_log_error(vm->broker, vm->id, err);
                error_clear(err);
        }
        if (delete_files)
                memory_folders_remove(deleted);
        return 0;
}

static bool has_users_file(struct vm *vm, const struct merge_job *job)
{
        const json_t *run = merge_job_run(job);
        json_auto_t *paths = json_deep_copy(json_object_get(run, "images"));
        json_t *path;
        size_t i;

        json_array_append(paths, json_object_get(run, "destination"));
        json_array_foreach(paths, i, path)
        {
                _cleanup_(image_row_done) struct image_row row = {0};

                if (json_is_string(path) &&
                        catalog_image_find(
                                vm->broker->catalog, json_string_value(path), &row, NULL) == 0 &&
                        !row.made_by_us)
                        return true;
        }
        return false;
}

/* A merge that has begun has half of what is in the files that go, and half in one that may stay. */
static int refuse_half_merged(struct vm *vm, const struct vm_row *row, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load(vm->broker->catalog, vm->id, &jobs, err);

        for (size_t i = 0; r == 0 && i < jobs.n; i++) {
                const struct merge_job *job = &jobs.items[i];

                if (!merge_job_run(job) || merge_job_is(job, JOB_DONE) || !has_users_file(vm, job))
                        continue;
                r = fail(err, EBUSY,
                        "job %lld of vm '%s' has begun to merge files that would be deleted",
                        (long long)job->row.id, row->name);
                error_set_hint(err, "vhdctl job resume %lld, and vhdctl job wait %lld",
                        (long long)job->row.id, (long long)job->row.id);
        }
        return r;
}

/* What only a worker can settle, or has open, is not left to nobody. */
static int check_removable(
        struct vm *vm, const struct vm_row *row, bool delete_files, bool dry, struct error *err)
{
        int r = 0;

        if (!vm->link && link_is_left(vm->broker, vm->id))
                return fail(err, EBUSY,
                        "the worker of vm '%s' lives, and does not answer: it may serve its disks",
                        row->name);
        if (!dry && recover_wants_worker(vm))
                r = worker_up(vm, err);
        return r == 0 && delete_files ? refuse_half_merged(vm, row, err) : r;
}

static int vm_remove(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        json_auto_t *deleted = json_array(), *kept = json_array();
        bool delete_files = param_bool(params, "delete-files"), dry = param_bool(params, "dry-run");
        bool on = false;
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = vm_is_on(vm, &row, &on, err);
        if (r == 0 && on) {
                r = fail(err, EBUSY, "vm '%s' is on", row.name);
                error_set_hint(err, "stop it, or end the clients of its disks, before");
        }
        if (r == 0)
                r = check_removable(vm, &row, delete_files, dry, err);
        if (r < 0)
                return r;
        if (!dry) {
                r = worker_down(vm, 10000, err);
                if (r < 0 && r != -EHOSTDOWN)
                        broker_log_error(broker, row.name, err);
                error_clear(err);
                sidecar_remove(broker->catalog, host_fs(), vm->id, NULL);
        }
        r = remove_transaction(vm, delete_files, dry, deleted, kept, err);
        if (r < 0) {
                if (!dry)
                        vm_set_down(vm, "removing the vm failed");
                return r;
        }
        if (!delete_files) {
                json_array_extend(kept, deleted);
                json_array_clear(deleted);
        }
        if (!dry)
                broker_publish(broker, "vm-removed",
                        json_pack("{s:s, s:s}", "vm", row.name, "vm-id", row.id));
        *ret = json_pack("{s:s, s:s, s:O, s:O}", "name", row.name, "id", row.id, "deleted", deleted,
                "kept", kept);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

/* ---- what its agent does ---- */

/* A vm that was just made, or a vmm-host that was just started: its agent comes in a moment. */
static void await_agent(struct vm *vm, const struct vm_row *row)
{
        json_auto_t *settings = json_loads(row->settings, 0, NULL);

        if (!vm->broker->options.vmm_command || !json_object_get(settings, "memory"))
                return;
        for (unsigned ms = 0; ms < AGENT_WAIT_MS && !agent_is_there(vm); ms += AGENT_STEP_MS)
                if (!vms_sleep(vm->vms, AGENT_STEP_MS))
                        return;
}

/* @timeout_s: as agent_ask_within() has it. @told is taken over. */
static int ask_agent(struct broker *broker, const json_t *params, const char *verb, json_t *told,
        unsigned timeout_s, json_t **ret, struct error *err)
{
        json_auto_t *request = told;
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                await_agent(vm, &row);
        if (r == 0)
                r = agent_must(vm, &row, verb, err);
        if (r == 0)
                r = transfer_refuse_held(vm, err);
        if (r < 0)
                return r;
        if (param_bool(params, "dry-run")) {
                *ret = json_object();
                return 0;
        }
        return agent_ask_within(vm, verb, TAKE_PTR(request), NULL, 0, timeout_s, ret, err);
}

#define AGENT_METHOD(verb)                                                                         \
        static int vm_##verb(struct broker *broker, const struct caller *caller,                   \
                const json_t *params, json_t **ret, struct error *err)                             \
        {                                                                                          \
                return ask_agent(broker, params, #verb, json_object(), 0, ret, err);               \
        }
AGENT_METHOD(stop)
AGENT_METHOD(reset)
AGENT_METHOD(pause)
AGENT_METHOD(resume)
AGENT_METHOD(save)

/* The agent keeps the time, and says how it ended; without --timeout it is the agent's own. */
static int vm_shutdown(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        json_t *timeout = json_object_get(params, "timeout");

        return ask_agent(broker, params, "shutdown", json_pack("{s:O*}", "timeout", timeout),
                timeout ? (unsigned)json_integer_value(timeout) + SHUTDOWN_MORE_S : 0, ret, err);
}

/* What the vmm-host runs (a vm with memory) boots from IDE, as Hyper-V's do, unless it has a kernel. */
static int check_boot(const struct vm *vm, const struct vm_row *row, struct error *err)
{
        json_auto_t *settings = json_loads(row->settings, 0, NULL);
        struct disk_row *disks = NULL;
        size_t n = 0, n_ide = 0;
        int r;

        if (!json_object_get(settings, "memory") || json_object_get(settings, "kernel"))
                return 0;
        r = catalog_disk_list(vm->broker->catalog, vm->id, &disks, &n, err);
        for (size_t i = 0; i < n; i++)
                n_ide += disks[i].controller == 0;
        if (r == 0 && n > 0 && n_ide == 0) {
                r = fail(err, ENODEV,
                        "vm '%s' has nothing to boot from: its disks are on SCSI, and it boots from IDE",
                        row->name);
                error_set_hint(err, "vhdctl disk detach '%s' '%.80s', then attach it --at ide0:0",
                        row->name, disks[0].name);
        }
        disk_rows_free(disks, n);
        return r;
}

/* With the lock, so that nothing happens to the disks that the memory knows. */
static int start_from_memory(
        struct broker *broker, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = worker_up(vm, err);
        return r == 0 ? memory_start(vm, &row, ret, err) : r;
}

static int vm_start(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = check_boot(vm, &row, err);
        if (r < 0)
                return r;
        return row.resume[0] && !param_bool(params, "dry-run")
                ? start_from_memory(broker, params, ret, err)
                : ask_agent(broker, params, "start", json_object(), 0, ret, err);
}

const struct method vm_methods[] = {
        {"vm.create", vm_create, true},
        {"vm.set", vm_set, true},
        {"vm.list", vm_list, false},
        {"vm.show", vm_show, false},
        {"vm.remove", vm_remove, true},
        {"vm.start", vm_start, true},
        {"vm.stop", vm_stop, true},
        {"vm.shutdown", vm_shutdown, true},
        {"vm.reset", vm_reset, true},
        {"vm.pause", vm_pause, true},
        {"vm.resume", vm_resume, true},
        {"vm.save", vm_save, true},
        {NULL, NULL, false},
};
