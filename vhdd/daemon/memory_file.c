/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/memory_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/copy_file.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/places.h"
#include "vhdd/daemon/snapshots.h"

/* ---- saving ---- */

static int memory_path(
        const struct vm_row *row, const char *snapshot, char **ret, struct error *err)
{
        int r;

        if (row->snapshot_dir)
                r = asprintf(ret, "%s/%s/memory", row->snapshot_dir, snapshot);
        else if (row->directory)
                r = asprintf(ret, "%s/Snapshots/%s/memory", row->directory, snapshot);
        else
                return fail(err, ENOENT, "vm '%s' has no folder for saved memory", row->name);
        return r < 0 ? fail(err, ENOMEM, "no memory for a path") : 0;
}

int memory_settings_path(const char *memory, char **ret, struct error *err)
{
        int n = (int)(strrchr(memory, '/') - memory);

        return asprintf(ret, "%.*s/settings.json", n, memory) < 0
                ? fail(err, ENOMEM, "no memory for a path")
                : 0;
}

static int make_file(struct operation *operation, const char *path, int *ret, struct error *err)
{
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        int r;

        if (fd >= 0) {
                *ret = fd;
                return 0;
        }
        r = fail_os(err, errno, "cannot make '%s'", path);
        if (r == -EEXIST)
                operation_not_made(operation, path, NULL);
        return r;
}

static int write_settings(
        struct operation *operation, const char *path, const json_t *settings, struct error *err)
{
        _cleanup_free_ char *text = json_dumps(settings, JSON_INDENT(2));
        _cleanup_fd_ int fd = -1;
        int r;

        if (!text)
                return fail(err, ENOMEM, "no memory for the vm's settings");
        r = make_file(operation, path, &fd, err);
        if (r == 0 && (dprintf(fd, "%s\n", text) < 0 || fdatasync(fd) < 0))
                r = fail_os(err, errno, "cannot write '%s'", path);
        return r;
}

/* The snapshot's own goes with its files; the one around it is all snapshots'. */
static int will_make_folder(void *opaque, const char *path, struct error *err)
{
        const struct memory_saving *saving = opaque;
        size_t n = strlen(path);

        if (strncmp(saving->path, path, n) != 0 || strcmp(saving->path + n, "/memory") != 0)
                return 0;
        return operation_will_make_folder(saving->operation, path, err);
}

int memory_begin(struct vm *vm, const struct vm_row *row, const char *snapshot,
        const json_t *settings, struct memory_saving *ret, struct error *err)
{
        struct memory_saving saving = MEMORY_SAVING_INIT;
        const struct copy_folders folders = {will_make_folder, &saving};
        _cleanup_free_ char *beside = NULL;
        int r = memory_path(row, snapshot, &saving.path, err);

        if (r == 0)
                r = memory_settings_path(saving.path, &beside, err);
        if (r == 0)
                r = operation_begin(vm->broker->catalog, host_fs(), "snapshot.memory", vm->id,
                        (const char *const[]){saving.path, beside}, 2, NULL, &saving.operation,
                        err);
        if (r == 0)
                r = make_folders(saving.path, &folders, err);
        if (r == 0)
                r = make_file(saving.operation, saving.path, &saving.fd, err);
        if (r == 0)
                r = write_settings(saving.operation, beside, settings, err);
        if (r < 0)
                memory_done(&saving);
        else
                *ret = saving;
        return r;
}

int memory_settings_copy(struct operation *operation, const struct snapshot_row *snapshot,
        const char *memory, struct error *err)
{
        json_auto_t *settings = json_loads(snapshot->settings, 0, NULL);
        _cleanup_free_ char *beside = NULL;
        int r = memory_settings_path(memory, &beside, err);

        if (r == 0)
                r = operation_will_make(operation, beside, err);
        return r == 0 ? write_settings(operation, beside, settings, err) : r;
}

int memory_files_of(const struct snapshot_row *snapshot, json_t *files, struct error *err)
{
        _cleanup_free_ char *beside = NULL;
        int r;

        if (!snapshot->memory)
                return 0;
        r = memory_settings_path(snapshot->memory, &beside, err);
        if (r < 0)
                return r;
        if (json_array_append_new(files, json_string(snapshot->memory)) < 0 ||
                (access(beside, F_OK) == 0 &&
                        json_array_append_new(files, json_string(beside)) < 0))
                return fail(err, ENOMEM, "no memory for a path");
        return 0;
}

int memory_sync(struct memory_saving *saving, struct error *err)
{
        return fdatasync(saving->fd) < 0
                ? fail_os(err, errno, "cannot make '%s' durable", saving->path)
                : 0;
}

int memory_commit(
        struct vm *vm, struct memory_saving *saving, const char *snapshot, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        _cleanup_(snapshot_row_done) struct snapshot_row row = {0};
        int r = operation_made(saving->operation, err);

        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = catalog_snapshot_find(catalog, vm->id, snapshot, &row, err);
        if (r == 0) {
                free(row.memory);
                row.memory = saving->path; /* lent */
                snprintf(row.state, sizeof(row.state), "committed");
                r = catalog_snapshot_update(catalog, &row, err);
                row.memory = NULL;
        }
        if (r == 0)
                r = operation_commit(saving->operation, err);
        if (r < 0) {
                catalog_rollback(catalog);
                return r;
        }
        return operation_end(saving->operation, err);
}

/* The snapshot's own, unless something else is in it. */
static void remove_folder(const char *path)
{
        _cleanup_free_ char *folder = name_directory(path);

        if (folder)
                rmdir(folder);
}

void memory_folders_remove(const json_t *files)
{
        json_t *path;
        size_t i;

        json_array_foreach((json_t *)files, i, path)
        {
                const char *base = strrchr(json_string_value(path), '/');

                if (base && strcmp(base, "/memory") == 0)
                        remove_folder(json_string_value(path));
        }
}

void memory_done(struct memory_saving *saving)
{
        if (saving->fd >= 0)
                close(saving->fd);
        operation_free(saving->operation);
        free(saving->path);
        *saving = (struct memory_saving)MEMORY_SAVING_INIT;
}

/* ---- going on from it ---- */

static int open_memory(const struct snapshot_row *snapshot, int *ret, struct error *err)
{
        int fd = open(snapshot->memory, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

        if (fd < 0)
                return fail_os(err, errno, "cannot open the saved memory '%s'", snapshot->memory);
        *ret = fd;
        return 0;
}

int memory_forget(struct vm *vm, const struct vm_row *row, struct error *err)
{
        return row->resume[0] ? catalog_vm_set_resume(vm->broker->catalog, vm->id, NULL, err) : 0;
}

/* The disks that the memory was saved with, by the ids that they have now: those of a vm that was imported
 * as a copy are others than the memory has. */
static int known_disks(
        struct vm *vm, const struct snapshot_row *snapshot, json_t **ret, struct error *err)
{
        struct snapshot_disk_row *held = NULL;
        json_auto_t *list = json_array();
        size_t n = 0;
        int r = catalog_snapshot_disk_list(vm->broker->catalog, snapshot->id, &held, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                const struct place place = {
                        (enum controller)held[i].controller, held[i].bus, held[i].unit};
                char at[PLACE_TEXT_MAX];

                if (json_array_append_new(list,
                            json_pack("{s:s, s:s}", "id", held[i].disk, "at",
                                    place_format(place, at))) < 0)
                        r = fail(err, ENOMEM, "no memory for a list of disks");
        }
        snapshot_disk_rows_free(held, n);
        if (r == 0)
                *ret = json_incref(list);
        return r;
}

/* -1 in *ret: there is none to go on from. */
static int find_memory(
        struct vm *vm, const struct vm_row *row, int *ret, json_t **ret_disks, struct error *err)
{
        _cleanup_(snapshot_row_done) struct snapshot_row snapshot = {0};
        int r;

        if (!row->resume[0])
                return 0;
        r = catalog_snapshot_find(vm->broker->catalog, vm->id, row->resume, &snapshot, err);
        if (r < 0 || !snapshot.memory)
                return r;
        r = known_disks(vm, &snapshot, ret_disks, err);
        if (r < 0)
                return r;
        r = open_memory(&snapshot, ret, err);
        if (r < 0)
                error_set_hint(err,
                        "vhdctl snapshot apply '%s' '%.80s' --disks-only goes on without it",
                        row->name, snapshot.name);
        return r;
}

int memory_start(struct vm *vm, const struct vm_row *row, json_t **ret, struct error *err)
{
        _cleanup_fd_ int memory = -1;
        struct error why = ERROR_INIT;
        json_auto_t *disks = NULL;
        int r = agent_must(vm, row, "start", err);

        if (r == 0)
                r = find_memory(vm, row, &memory, &disks, err);
        /* Before: who dies from here on leaves nobody who would use it for disks that have moved on. */
        if (r == 0 && memory >= 0)
                r = memory_forget(vm, row, err);
        if (r < 0)
                return r;
        vm_let_clients_in(vm, true);
        r = agent_ask(vm, "start",
                json_pack("{s:b, s:O*}", "from-memory", memory >= 0, "disks", disks), &memory,
                memory >= 0 ? 1 : 0, ret, err);
        vm_let_clients_in(vm, false);
        if (r == -EREMOTEIO && memory >= 0 &&
                catalog_vm_set_resume(vm->broker->catalog, vm->id, row->resume, &why) < 0)
                broker_log_error(vm->broker, row->name, &why);
        return r;
}

/* ---- for others ---- */

static int stop_at_end(void *opaque, uint64_t bytes)
{
        const struct broker *broker = opaque;

        return atomic_load(&broker->stopping) ? -ECANCELED : 0;
}

static int copy_to(
        struct broker *broker, const char *vm, const char *from, const char *to, struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        const struct copy_watch watch = {stop_at_end, broker};
        int r = operation_begin(broker->catalog, host_fs(), "snapshot.memory-copy", vm, &to, 1,
                NULL, &operation, err);

        if (r == 0) {
                r = copy_file(from, to, &watch, err);
                if (r == -EEXIST)
                        operation_not_made(operation, to, NULL);
        }
        if (r == 0)
                r = operation_made(operation, err);
        if (r == 0)
                r = catalog_begin(broker->catalog, err);
        if (r < 0)
                return r;
        r = operation_commit(operation, err);
        if (r < 0) {
                catalog_rollback(broker->catalog);
                return r;
        }
        return operation_end(operation, err);
}

static int refuse_existing(const char *path, struct error *err)
{
        struct stat st;
        int r;

        if (lstat(path, &st) < 0)
                return 0;
        r = fail(err, EEXIST, "'%s' is there already", path);
        error_set_file(err, path);
        return r;
}

int memory_copy_out(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(snapshot_row_done) struct snapshot_row snapshot = {0};
        const char *to = param_text(params, "file");
        struct stat st;
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = snapshot_find(vm, &row, param_text(params, "name"), &snapshot, err);
        if (r == 0 && !snapshot.memory)
                r = fail(err, ENOENT, "snapshot '%s' of vm '%s' has no memory", snapshot.name,
                        row.name);
        if (r == 0)
                r = refuse_existing(to, err);
        if (r == 0 && stat(snapshot.memory, &st) < 0)
                r = fail_os(err, errno, "cannot look at '%s'", snapshot.memory);
        if (r == 0 && !param_bool(params, "dry-run"))
                r = copy_to(broker, vm->id, snapshot.memory, to, err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:I}", "file", to, "size", (json_int_t)st.st_size);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}
