/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/merges_commit.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/seals.h"

#define OVER_MOST 32u /* jobs that are done are kept for people, so many of a vm */

struct committing {
        struct vm *vm;
        struct catalog *catalog;
        struct merge_job *job;
        const json_t *hidden, *images;
        const char *top, *destination, *lowest;
        bool down, shared;
};

/* ---- names ---- */

static int rename_disks(const struct committing *c, struct error *err)
{
        struct disk_row *rows = NULL;
        size_t n = 0;
        int r = catalog_disk_list(c->catalog, c->vm->id, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                char *copy;

                if (strcmp(rows[i].file, c->top) != 0)
                        continue;
                copy = strdup(c->destination);
                if (!copy) {
                        r = fail(err, ENOMEM, "no memory for a path");
                        break;
                }
                free(rows[i].file);
                rows[i].file = copy;
                r = catalog_disk_update(c->catalog, &rows[i], err);
        }
        disk_rows_free(rows, n);
        return r;
}

static int rename_frozen(const struct committing *c, struct error *err)
{
        struct snapshot_disk_row *rows = NULL;
        size_t n = 0;
        int r = catalog_snapshot_disk_list_file(c->catalog, c->top, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                char *copy = strdup(c->destination);

                if (!copy) {
                        r = fail(err, ENOMEM, "no memory for a path");
                        break;
                }
                free(rows[i].file);
                rows[i].file = copy;
                r = catalog_snapshot_disk_update(c->catalog, &rows[i], err);
        }
        snapshot_disk_rows_free(rows, n);
        return r;
}

/* 1: @text holds the path, and *ret is the same with the new one. */
static int rename_in_text(
        const struct committing *c, const char *text, char **ret, struct error *err)
{
        json_auto_t *json = text ? json_loads(text, 0, NULL) : NULL;

        if (!json || json_replace_text(json, c->top, c->destination) == 0)
                return 0;
        *ret = json_dumps(json, JSON_COMPACT);
        return *ret ? 1 : fail(err, ENOMEM, "no memory for settings");
}

/* A snapshot's settings name the files that its disks come back to. */
static int rename_settings(const struct committing *c, struct error *err)
{
        struct snapshot_row *rows = NULL;
        size_t n = 0;
        int r = catalog_snapshot_list(c->catalog, c->vm->id, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                char *text = NULL;

                r = rename_in_text(c, rows[i].settings, &text, err);
                if (r <= 0)
                        continue;
                free(rows[i].settings);
                rows[i].settings = text;
                r = catalog_snapshot_update(c->catalog, &rows[i], err);
        }
        snapshot_rows_free(rows, n);
        return r;
}

static int rename_undo(const struct committing *c, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        char *text = NULL;
        int r = catalog_vm_find(c->catalog, c->vm->id, &row, err);

        if (r == 0)
                r = rename_in_text(c, row.undo, &text, err);
        if (r <= 0)
                return r;
        free(row.undo);
        row.undo = text;
        return catalog_vm_update(c->catalog, &row, err);
}

static int move_child(
        struct catalog *catalog, struct image_row *row, const char *destination, struct error *err)
{
        char *copy = strdup(destination);

        if (!copy)
                return fail(err, ENOMEM, "no memory for a path");
        free(row->parent);
        row->parent = copy;
        row->sealed_size = 0; /* its head says so, too, and was changed for that */
        row->sealed_mtime_ns = 0;
        return catalog_image_update(catalog, row, err);
}

/* Those that stood on top stand on the destination. */
static int move_children(const struct committing *c, struct error *err)
{
        struct image_row *rows = NULL;
        size_t n = 0;
        int r = catalog_image_children(c->catalog, c->top, &rows, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++)
                r = move_child(c->catalog, &rows[i], c->destination, err);
        image_rows_free(rows, n);
        return r;
}

int merges_move_children(struct catalog *catalog, const struct merge_job *job, const json_t *moved,
        struct error *err)
{
        const char *destination = merge_job_destination(job);
        json_t *path;
        size_t i;

        json_array_foreach((json_t *)moved, i, path)
        {
                _cleanup_(image_row_done) struct image_row row = {0};
                int r = catalog_image_find(catalog, json_string_value(path), &row, err);

                if (r == 0)
                        r = move_child(catalog, &row, destination, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* ---- images ---- */

int merges_put_ids(struct catalog *catalog, const json_t *layers, struct error *err)
{
        json_t *layer;
        size_t i;
        int r = 0;

        json_array_foreach((json_t *)layers, i, layer)
        {
                const char *path = json_string_value(json_object_get(layer, "path"));
                const char *uuid = json_string_value(json_object_get(layer, "uuid"));
                _cleanup_(image_row_done) struct image_row row = {0};
                uint8_t id[16];

                if (r < 0 || !path || !uuid || !uuid_parse(uuid, id))
                        continue;
                r = catalog_image_find(catalog, path, &row, NULL);
                if (r == -ENOENT) {
                        r = 0;
                        continue;
                }
                if (r < 0)
                        return fail_os(err, -r, "cannot look for '%s' in the catalog", path);
                if (uuid_equal(row.uuid, id))
                        continue;
                memcpy(row.uuid, id, sizeof(id));
                r = catalog_image_update(catalog, &row, err);
        }
        return r;
}

/* Down: the lowest one's file is what the top was. */
static int take_place(const struct committing *c, struct error *err)
{
        _cleanup_(image_row_done) struct image_row top = {0}, row = {0};
        int r = catalog_image_find(c->catalog, c->top, &top, err);

        if (r == 0)
                r = catalog_image_find(c->catalog, c->destination, &row, err);
        if (r < 0)
                return r;
        memcpy(row.state, top.state, sizeof(row.state));
        row.delete_after_us = top.delete_after_us;
        /* What was said to be kept when its disk was taken away is kept, under the name it has now. */
        row.made_by_us = row.made_by_us && top.made_by_us;
        row.sealed_size = 0;
        row.sealed_mtime_ns = 0;
        r = catalog_image_update(c->catalog, &row, err);
        if (r == 0)
                r = move_children(c, err);
        if (r == 0)
                r = rename_disks(c, err);
        if (r == 0)
                r = rename_frozen(c, err);
        if (r == 0)
                r = rename_settings(c, err);
        return r == 0 ? rename_undo(c, err) : r;
}

/* Up: the top stands on what the lowest one stood on. */
static int move_top(const struct committing *c, struct error *err)
{
        _cleanup_(image_row_done) struct image_row top = {0}, lowest = {0};
        int r = catalog_image_find(c->catalog, c->top, &top, err);

        if (r == 0)
                r = catalog_image_find(c->catalog, c->lowest, &lowest, err);
        if (r < 0)
                return r;
        free(top.parent);
        top.parent = TAKE_PTR(lowest.parent);
        top.sealed_size = 0;
        top.sealed_mtime_ns = 0;
        return catalog_image_update(c->catalog, &top, err);
}

static int delete_images(const struct committing *c, struct operation *operation, struct error *err)
{
        json_t *item;
        size_t i;
        int r = 0;

        json_array_foreach((json_t *)c->images, i, item)
        {
                const char *path = json_string_value(item);

                if (r == 0)
                        r = catalog_image_delete(c->catalog, path, err);
                if (r == 0)
                        r = operation_will_remove(operation, path, err);
        }
        return r;
}

/* ---- jobs ---- */

void merge_job_end(struct merge_job *job)
{
        merge_job_set(job, JOB_DONE);
        merge_job_set_text(job, "reason", NULL);
        merge_job_set_text(job, "error", NULL);
        json_object_del(job->payload, "leader");
        json_object_del(job->payload, "space");
        json_object_set_new(job->payload, "ended", json_integer(now_us()));
}

static void end_job(struct merge_job *job)
{
        merge_job_end(job);
        json_object_set_new(job->payload, "ending", json_true());
}

int merges_ended(struct vm *vm, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        struct catalog *catalog = vm->broker->catalog;
        int r = merge_jobs_load(catalog, vm->id, &jobs, err);

        for (size_t i = 0; r == 0 && i < jobs.n; i++)
                if (json_object_del(jobs.items[i].payload, "ending") == 0) {
                        r = merge_job_save(catalog, &jobs.items[i], err);
                        merges_publish(vm, &jobs.items[i].row);
                }
        return r;
}

int merges_forget_old(struct catalog *catalog, const char *vm, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load_all(catalog, vm, &jobs, err);
        size_t n = 0;

        for (size_t i = jobs.n; r == 0 && i-- > 0;)
                if (merge_job_is(&jobs.items[i], JOB_DONE) && ++n > OVER_MOST)
                        r = catalog_job_delete(catalog, jobs.items[i].row.id, err);
        return r;
}

/* All whose image was hidden and is gone now are done; one that is about the top is about the file that has
 * its content. */
static int settle_jobs(const struct committing *c, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load(c->catalog, c->vm->id, &jobs, err);

        for (size_t i = 0; r == 0 && i < jobs.n; i++) {
                struct merge_job *job = &jobs.items[i];
                const char *image = merge_job_text(job, "image");

                if (!image || merge_job_is(job, JOB_DONE))
                        continue;
                if (json_has_text(c->hidden, image))
                        end_job(job);
                else if (c->down && strcmp(image, c->top) == 0)
                        merge_job_set_text(job, "image", c->destination);
                else
                        continue;
                r = merge_job_save(c->catalog, job, err);
        }
        return r == 0 ? merges_forget_old(c->catalog, c->vm->id, err) : r;
}

/* A copy was pushed into one of several children: the image waits for what comes next. */
static int settle_push(const struct committing *c, struct error *err)
{
        json_object_del(c->job->payload, "run");
        merge_job_set(c->job, JOB_WAITING);
        return merge_job_save(c->catalog, c->job, err);
}

/* ---- seals ---- */

/* All whose heads or bytes are others now, and who are somebody's parents still. */
static int note_seals(const struct committing *c, struct error *err)
{
        const char *stays = c->down ? c->destination : c->top;
        struct image_row *rows = NULL;
        size_t n = 0;
        int r = seals_note(c->catalog, c->vm->id, stays, err);

        if (r == 0 && c->down)
                r = catalog_image_children(c->catalog, stays, &rows, &n, err);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = seals_note(c->catalog, c->vm->id, rows[i].path, err);
        image_rows_free(rows, n);
        return r;
}

/* ---- the whole ---- */

static int commit_rows(const struct committing *c, const json_t *layers,
        struct operation *operation, struct error *err)
{
        int r = c->down ? take_place(c, err) : move_top(c, err);

        if (r == 0 && !c->shared)
                r = delete_images(c, operation, err);
        if (r == 0)
                r = merges_put_ids(c->catalog, layers, err);
        if (r == 0)
                r = note_seals(c, err);
        if (r == 0)
                r = c->shared ? settle_push(c, err) : settle_jobs(c, err);
        return r == 0 ? operation_commit(operation, err) : r;
}

static int read_run(struct committing *c, struct error *err)
{
        const json_t *run = merge_job_run(c->job);
        const char *direction = json_string_value(json_object_get(run, "direction"));

        c->hidden = json_object_get(run, "hidden");
        c->images = json_object_get(run, "images");
        c->top = json_string_value(json_object_get(run, "top"));
        c->destination = json_string_value(json_object_get(run, "destination"));
        c->lowest = json_string_value(json_array_get(c->hidden, 0));
        c->shared = json_is_true(json_object_get(run, "shared"));
        c->down = direction && strcmp(direction, "down") == 0;
        if (!direction || !c->top || !c->destination || !c->lowest ||
                json_array_size(c->images) == 0)
                return fail(err, EUCLEAN, "what the catalog says of job %lld is damaged",
                        (long long)c->job->row.id);
        return 0;
}

int merges_commit(struct vm *vm, struct merge_job *job, const json_t *layers,
        void (*forget)(struct vm *vm, const char *path), struct error *err)
{
        _cleanup_(operation_freep) struct operation *operation = NULL;
        struct committing c = {.vm = vm, .catalog = vm->broker->catalog, .job = job};
        struct error why = ERROR_INIT;
        json_t *item;
        size_t i;
        int r = read_run(&c, err);

        if (r == 0)
                r = operation_begin(c.catalog, host_fs(), "merge.finish", vm->id, NULL, 0, NULL,
                        &operation, err);
        if (r == 0)
                r = operation_made(operation, err);
        if (r == 0)
                r = catalog_begin(c.catalog, err);
        if (r < 0)
                return r;
        r = commit_rows(&c, layers, operation, err);
        if (r < 0) {
                catalog_rollback(c.catalog);
                return r;
        }
        if (forget && !c.shared)
                json_array_foreach((json_t *)c.images, i, item) forget(vm, json_string_value(item));
        /* What stays behind now is the journal's to finish. */
        if (operation_end(operation, &why) < 0 || merges_ended(vm, &why) < 0)
                broker_log_error(vm->broker, vm->id, &why);
        return 0;
}
