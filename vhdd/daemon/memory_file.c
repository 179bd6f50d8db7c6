/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/memory_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/file.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/journal.h"

static int make_directory(const char *path, struct error *err)
{
        int r;

        if (mkdir(path, 0700) < 0 && errno != EEXIST)
                return fail_os(err, errno, "cannot make the folder '%s'", path);
        r = fs_sync_directory(host_fs(), path);
        return r < 0 ? fail_os(err, -r, "cannot make the folder '%s' durable", path) : 0;
}

static int memory_path(
        const struct vm_row *row, const char *snapshot, char **ret, struct error *err)
{
        _cleanup_free_ char *directory = NULL, *folder = NULL;
        int r;

        if (!row->snapshot_dir && !row->directory)
                return fail(err, ENOENT, "vm '%s' has no folder for saved memory", row->name);
        if (row->snapshot_dir)
                r = asprintf(&directory, "%s", row->snapshot_dir);
        else
                r = asprintf(&directory, "%s/Snapshots", row->directory);
        if (r < 0)
                directory = NULL;
        if (r < 0 || asprintf(&folder, "%s/%s", directory, snapshot) < 0) {
                folder = NULL;
                return fail(err, ENOMEM, "no memory for a path");
        }
        r = make_directory(directory, err);
        if (r == 0)
                r = make_directory(folder, err);
        if (r == 0 && asprintf(ret, "%s/memory", folder) < 0)
                r = fail(err, ENOMEM, "no memory for a path");
        return r;
}

static int write_memory(
        struct vm *vm, struct operation *operation, const char *path, struct error *err)
{
        _cleanup_fd_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        int r;

        if (fd < 0) {
                r = fail_os(err, errno, "cannot make '%s'", path);
                if (r == -EEXIST)
                        operation_not_made(operation, path, NULL);
                return r;
        }
        r = agent_ask(vm, "save", json_object(), &fd, 1, NULL, err);
        if (r == 0 && fdatasync(fd) < 0)
                r = fail_os(err, errno, "cannot make '%s' durable", path);
        return r == 0 ? operation_made(operation, err) : r;
}

int memory_save(struct vm *vm, const struct vm_row *row, const char *snapshot, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        _cleanup_(operation_freep) struct operation *operation = NULL;
        _cleanup_(snapshot_row_done) struct snapshot_row found = {0};
        _cleanup_free_ char *path = NULL;
        const char *make[1];
        int r = memory_path(row, snapshot, &path, err);

        if (r < 0)
                return r;
        make[0] = path;
        r = operation_begin(
                catalog, host_fs(), "snapshot.memory", vm->id, make, 1, NULL, &operation, err);
        if (r == 0)
                r = write_memory(vm, operation, path, err);
        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = catalog_snapshot_find(catalog, vm->id, snapshot, &found, err);
        if (r == 0) {
                found.memory = TAKE_PTR(path);
                r = catalog_snapshot_update(catalog, &found, err);
        }
        if (r == 0)
                r = operation_commit(operation, err);
        if (r < 0) {
                catalog_rollback(catalog);
                return r;
        }
        return operation_end(operation, err);
}

int memory_open(const struct snapshot_row *snapshot, int *ret, struct error *err)
{
        int fd = open(snapshot->memory, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

        if (fd < 0)
                return fail_os(err, errno, "cannot open the saved memory '%s'", snapshot->memory);
        *ret = fd;
        return 0;
}
