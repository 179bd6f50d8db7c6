/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/release.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/daemon/images.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/worker_link.h"

int release_init(struct release *release, struct error *err)
{
        *release = (struct release){
                json_array(), json_array(), json_array(), json_array(), json_array(), NULL, false};
        if (!release->candidates || !release->files || !release->kept || !release->waiting ||
                !release->jobs)
                return fail(err, ENOMEM, "no memory for lists of files");
        return 0;
}

void release_done(struct release *release)
{
        json_decref(release->candidates);
        json_decref(release->files);
        json_decref(release->kept);
        json_decref(release->waiting);
        json_decref(release->jobs);
}

static bool is_in(const json_t *list, const char *text)
{
        json_t *item;
        size_t i;

        json_array_foreach(list, i, item)
        {
                const char *value = json_string_value(item);

                if (value && strcmp(value, text) == 0)
                        return true;
        }
        return false;
}

int release_candidate(struct release *release, const char *path, struct error *err)
{
        if (!path || is_in(release->candidates, path))
                return 0;
        if (json_array_append_new(release->candidates, json_string(path)) < 0)
                return fail(err, ENOMEM, "no memory for a path");
        return 0;
}

/* ---- snapshots ---- */

static const struct snapshot_row *find_row(
        const struct snapshot_row *rows, size_t n, const char *id)
{
        for (size_t i = 0; i < n; i++)
                if (strcmp(rows[i].id, id) == 0)
                        return &rows[i];
        return NULL;
}

/* The nearest of @id and its ancestors that stays, or "". */
static const char *staying(
        const struct snapshot_row *rows, size_t n, const json_t *ids, const char *id)
{
        for (size_t steps = 0; id[0] && is_in(ids, id) && steps <= n; steps++) {
                const struct snapshot_row *row = find_row(rows, n, id);

                id = row ? row->parent : "";
        }
        return id;
}

static int reparent(struct vm *vm, const struct snapshot_row *rows, size_t n, const json_t *ids,
        struct vm_row *row, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        json_auto_t *undo = row->undo ? json_loads(row->undo, 0, NULL) : NULL;
        const char *next;
        int r = 0;

        for (size_t i = 0; r == 0 && i < n; i++) {
                struct snapshot_row copy = rows[i];

                if (!rows[i].parent[0] || !is_in(ids, rows[i].parent))
                        continue;
                next = staying(rows, n, ids, rows[i].parent);
                snprintf(copy.parent, sizeof(copy.parent), "%s", next);
                r = catalog_snapshot_update(catalog, &copy, err);
        }
        if (r == 0 && row->current[0] && is_in(ids, row->current)) {
                char current[UUID_TEXT_SIZE];

                snprintf(current, sizeof(current), "%s", staying(rows, n, ids, row->current));
                memcpy(row->current, current, sizeof(current));
        }
        if (r == 0 && undo && param_text(undo, "current") &&
                is_in(ids, param_text(undo, "current"))) {
                next = staying(rows, n, ids, param_text(undo, "current"));
                json_object_set_new(undo, "current", json_string(next));
                free(row->undo);
                row->undo = json_dumps(undo, JSON_COMPACT);
                if (!row->undo)
                        return fail(err, ENOMEM, "no memory for an undo");
        }
        return r == 0 ? catalog_vm_update(catalog, row, err) : r;
}

/* Does the worker have a chain of it open? Those that nobody reads were closed before. */
static bool is_read(const struct vm *vm, const char *snapshot)
{
        for (size_t i = 0; i < vm->n_chains; i++) {
                const char *at = strchr(vm->chains[i].name, '@');

                if (at && strcmp(at + 1, snapshot) == 0)
                        return true;
        }
        return false;
}

/* In the place of its settings, which go at once. */
static char *remember_merge(const struct release *release)
{
        json_auto_t *json = json_pack("{s:s, s:b}", "merge",
                release->merge && strcmp(release->merge, "deferred") == 0 ? "deferred" : "live",
                "push", release->push);

        return json ? json_dumps(json, JSON_COMPACT) : NULL;
}

void release_remembered(const struct snapshot_row *snapshot, struct release *release)
{
        json_auto_t *json = json_loads(snapshot->settings, 0, NULL);
        const char *merge = param_text(json, "merge");

        release->merge = merge && strcmp(merge, "deferred") == 0 ? "deferred" : "live";
        release->push = param_bool(json, "push");
}

static int forget_one(struct vm *vm, const struct snapshot_row *snapshot, struct release *release,
        struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        struct snapshot_disk_row *disks = NULL;
        size_t n = 0;
        int r;

        r = memory_files_of(snapshot, release->files, err);
        if (r < 0)
                return r;
        if (is_read(vm, snapshot->id)) {
                _cleanup_free_ char *settings = remember_merge(release);
                struct snapshot_row copy = *snapshot;

                copy.memory = NULL;
                copy.parent[0] = '\0';
                copy.settings = settings;
                snprintf(copy.state, sizeof(copy.state), "hidden");
                return settings ? catalog_snapshot_update(catalog, &copy, err)
                                : fail(err, ENOMEM, "no memory for a snapshot");
        }
        r = catalog_snapshot_disk_list(catalog, snapshot->id, &disks, &n, err);
        for (size_t i = 0; r == 0 && i < n; i++)
                if (disks[i].file)
                        r = release_candidate(release, disks[i].file, err);
        snapshot_disk_rows_free(disks, n);
        return r == 0 ? catalog_snapshot_delete(catalog, snapshot->id, err) : r;
}

int release_snapshots(struct vm *vm, struct vm_row *row, const json_t *ids, struct release *release,
        struct error *err)
{
        struct snapshot_row *rows = NULL;
        size_t n = 0;
        int r = catalog_snapshot_list(vm->broker->catalog, vm->id, &rows, &n, err);

        if (r == 0)
                r = reparent(vm, rows, n, ids, row, err);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct snapshot_row now = {0};

                if (!is_in(ids, rows[i].id))
                        continue;
                /* As it is after the reparenting. */
                r = catalog_snapshot_find(vm->broker->catalog, vm->id, rows[i].id, &now, err);
                if (r == 0)
                        r = forget_one(vm, &now, release, err);
                snapshot_row_done(&now);
        }
        snapshot_rows_free(rows, n);
        return r;
}

/* ---- undo ---- */

static int set_state(
        struct catalog *catalog, const char *path, const char *state, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        int r = catalog_image_find(catalog, path, &row, err);

        if (r < 0)
                return r;
        snprintf(row.state, sizeof(row.state), "%s", state);
        row.delete_after_us = 0;
        return catalog_image_update(catalog, &row, err);
}

int release_undo(struct vm *vm, struct vm_row *row, struct release *release, struct error *err)
{
        json_auto_t *undo = row->undo ? json_loads(row->undo, 0, NULL) : NULL;
        json_t *path;
        size_t i;
        int r = 0;

        json_array_foreach(json_object_get(undo, "discarded"), i, path)
        {
                const char *text = json_string_value(path);

                if (r < 0 || !text)
                        continue;
                r = set_state(vm->broker->catalog, text, IMAGE_IN_USE, err);
                if (r == -ENOENT)
                        r = 0;
                if (r == 0)
                        r = release_candidate(release, text, err);
        }
        free(row->undo);
        row->undo = NULL;
        return r;
}

/* ---- images ---- */

static int go_through(
        struct broker *broker, struct release *release, json_t *gone, struct error *err)
{
        _cleanup_(strangers_done) struct strangers strangers = {0};
        size_t n = json_array_size(release->candidates), i;
        _cleanup_free_ const char **paths = calloc(n + 1, sizeof(*paths));
        json_t *path;
        size_t before;
        int r = paths ? strangers_init(&strangers, broker, err)
                      : fail(err, ENOMEM, "no memory for a list");

        if (r < 0)
                return r;
        json_array_foreach(release->candidates, i, path) paths[i] = json_string_value(path);
        /* Again while some go: one that is stood on goes after who stands on it. */
        do {
                before = json_array_size(gone) + json_array_size(release->kept);
                r = images_release(&strangers, paths, n, gone, release->kept, err);
        } while (r == 0 && json_array_size(gone) + json_array_size(release->kept) > before);
        return r;
}

static bool has_job(struct catalog *catalog, const char *vm, const char *path)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};

        if (merge_jobs_load(catalog, vm, &jobs, NULL) < 0)
                return false;
        for (size_t i = 0; i < jobs.n; i++) {
                const char *image = merge_job_text(&jobs.items[i], "image");

                if (image && strcmp(image, path) == 0 && !merge_job_is(&jobs.items[i], JOB_DONE))
                        return true;
        }
        return false;
}

int release_note_merge(struct vm *vm, const char *path, struct release *release, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        json_auto_t *payload = json_pack(
                "{s:s, s:s, s:b}", "image", path, "merge", release->merge, "push", release->push);
        _cleanup_free_ char *text = payload ? json_dumps(payload, JSON_COMPACT) : NULL;
        struct job_row row = {.kind = (char *)JOB_MERGE,
                .payload = text,
                .state = JOB_WAITING,
                .created_us = now_us()};
        int64_t id = 0;
        int r;

        if (!text)
                return fail(err, ENOMEM, "no memory for a job");
        if (has_job(catalog, vm->id, path))
                return 0;
        snprintf(row.vm, sizeof(row.vm), "%s", vm->id);
        r = catalog_job_insert(catalog, &row, &id, err);
        if (r == 0)
                json_array_append_new(release->jobs, json_integer(id));
        vm->has_merges = true;
        return r;
}

/* One that no disk and no snapshot names, and that others stand on. */
static int hide_if_waiting(
        struct vm *vm, const char *path, struct release *release, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        struct snapshot_disk_row *disks = NULL;
        struct disk_row disk = {0};
        struct image_row row = {0};
        bool named = true;
        size_t n = 0;
        int r = catalog_image_find(catalog, path, &row, NULL);

        if (r == -ENOENT)
                return 0;
        if (r == 0)
                r = catalog_snapshot_disk_list_file(catalog, path, &disks, &n, err);
        if (r == 0) {
                r = catalog_disk_find_file(catalog, path, &disk, NULL);
                named = n > 0 || r == 0 || strcmp(row.state, IMAGE_IN_USE) != 0;
                r = r == -ENOENT ? 0 : r;
        }
        snapshot_disk_rows_free(disks, n);
        disk_row_done(&disk);
        image_row_done(&row);
        if (r < 0 || named)
                return r;
        r = set_state(catalog, path, IMAGE_HIDDEN, err);
        if (r == 0)
                r = release_note_merge(vm, path, release, err);
        if (r == 0)
                json_array_append_new(release->waiting, json_string(path));
        return r;
}

/* A merge of what is gone has nothing to do. */
static int drop_jobs(struct vm *vm, const json_t *gone, const json_t *kept, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load(catalog, vm->id, &jobs, err);

        for (size_t i = 0; r == 0 && i < jobs.n; i++) {
                const char *image = merge_job_text(&jobs.items[i], "image");

                if (image && !merge_job_is(&jobs.items[i], JOB_DONE) &&
                        (is_in(gone, image) || is_in(kept, image)))
                        r = catalog_job_delete(catalog, jobs.items[i].row.id, err);
        }
        return r;
}

int release_images(struct vm *vm, struct release *release, struct error *err)
{
        json_auto_t *gone = json_array();
        json_t *path;
        size_t i;
        int r = go_through(vm->broker, release, gone, err);

        json_array_foreach(release->candidates, i, path)
        {
                if (r == 0 && release->merge)
                        r = hide_if_waiting(vm, json_string_value(path), release, err);
        }
        if (r == 0)
                r = drop_jobs(vm, gone, release->kept, err);
        if (r == 0 && json_array_extend(release->files, gone) < 0)
                r = fail(err, ENOMEM, "no memory for a list of files");
        return r;
}
