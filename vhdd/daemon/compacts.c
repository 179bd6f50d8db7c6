/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/compacts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/daemon/disks.h"
#include "vhdd/daemon/hidden.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/merges_commit.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/worker_link.h"

/* ---- what it waits for ---- */

static bool touches_any(const struct merge_job *job, const struct image_chain *images)
{
        const char *image = merge_job_text(job, "image");

        for (size_t i = 0; i < images->n; i++)
                if (merge_job_touches(job, images->rows[i].path) ||
                        (image && strcmp(image, images->rows[i].path) == 0))
                        return true;
        return false;
}

/* Does the merge come first? One that was begun always does, for its images may be marked; one that waits
 * for what does not come by itself, or for the vm to be off, does not. */
static bool comes_first(const struct merge_job *merge, bool off)
{
        const char *when = merge_job_text(merge, "merge");

        if (merge_job_is(merge, JOB_DONE))
                return false;
        if (merge_job_run(merge))
                return true;
        return merge_job_is(merge, JOB_WAITING) && !merge_job_flag(merge, "stuck") &&
                (off || !when || strcmp(when, "deferred") != 0);
}

static const struct merge_job *find_merge(
        const struct merge_jobs *jobs, const struct image_chain *images, bool off)
{
        for (size_t i = 0; i < jobs->n; i++) {
                const struct merge_job *job = &jobs->items[i];

                if (!merge_job_is_compact(job) && comes_first(job, off) && touches_any(job, images))
                        return job;
        }
        return NULL;
}

static int wait_for_merge(
        struct vm *vm, struct merge_job *job, const struct merge_job *merge, struct error *err)
{
        bool stands = merge_job_is_over(merge) || merge_job_is(merge, JOB_PAUSED);
        char reason[HIDDEN_REASON_MAX];

        snprintf(reason, sizeof(reason), "it comes after job %lld%s%s", (long long)merge->row.id,
                stands ? ", which is " : "", stands ? merge->row.state : "");
        return merges_wait_for(vm, job, stands, reason, err);
}

/* ---- its steps ---- */

static int drop(struct vm *vm, struct merge_job *job, struct error *err)
{
        int r = merges_end_in_worker(vm, job->row.id, err);

        if (r < 0)
                return r;
        broker_log(vm->broker, BROKER_LOG_INFO, vm->id,
                "job %lld has nothing to compact: its disk was detached", (long long)job->row.id);
        merge_job_set(job, JOB_DONE); /* for those who look at it in this round */
        r = catalog_job_delete(vm->broker->catalog, job->row.id, err);
        return r < 0 ? r : 1;
}

int compact_begin(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, bool off,
        struct error *err)
{
        const char *id = merge_job_text(job, "disk");
        _cleanup_(image_chain_done) struct image_chain images = {0};
        _cleanup_(disk_row_done) struct disk_row disk = {0};
        const struct merge_job *merge;
        const struct vm_chain *chain;
        char reason[HIDDEN_REASON_MAX];
        int r = id ? catalog_disk_find(vm->broker->catalog, vm->id, id, &disk, err) : -ENOENT;

        if (r == -ENOENT) {
                error_clear(err);
                return drop(vm, job, err);
        }
        if (r == 0)
                r = image_chain_get(vm->broker->catalog, disk.file, &images, err);
        if (r < 0)
                return r;
        merge_job_set_text(job, "image", disk.file);
        json_object_del(job->payload, "run"); /* for the files it never means anything */
        merge = find_merge(jobs, &images, off);
        if (merge)
                return wait_for_merge(vm, job, merge, err);
        chain = worker_chain_find(vm, disk.id);
        if (!chain || chain->trouble) {
                snprintf(reason, sizeof(reason), "the disk is not served: %.160s",
                        chain ? chain->trouble : "it is not open");
                return merges_wait_for(vm, job, true, reason, err);
        }
        json_object_set_new(job->payload, "run", json_pack("{s:s}", "leaf", disk.file));
        return merges_begin_on(vm, job, disk.id, NULL, err);
}

int compact_finish(struct vm *vm, struct merge_job *job, struct error *err)
{
        int64_t id = job->row.id;
        int r;

        merge_job_end(job);
        r = merges_save(vm, job, err);
        if (r == 0)
                r = merges_end_in_worker(vm, id, err);
        if (r == 0)
                r = merges_forget_old(vm->broker->catalog, vm->id, err);
        if (r == 0)
                r = merges_refresh_paths(vm, err);
        return r < 0 ? r : 1;
}

/* ---- disk.compact ---- */

static int refuse_type(
        struct vm *vm, const struct vm_row *row, const struct disk_row *disk, struct error *err)
{
        json_auto_t *shown = NULL;
        const char *type;
        int r = disk_to_json(vm, row, disk, NULL, false, &shown, err);

        if (r < 0)
                return r;
        if (disk_is_pass_through(disk))
                return fail(err, ENOTSUP,
                        "disk '%s' of vm '%s' is passed through: its file is the guest's as it is",
                        disk->name, row->name);
        if (disk->read_only)
                return fail(err, EROFS, "disk '%s' of vm '%s' is read-only", disk->name, row->name);
        type = param_text(shown, "type");
        if (type && (strcmp(type, "dynamic") == 0 || strcmp(type, "differencing") == 0))
                return 0;
        fail(err, ENOTSUP,
                "disk '%s' of vm '%s' has no blocks that could be freed: it is %s, and as large as "
                "its contents",
                disk->name, row->name, type ? type : "of no known type");
        error_set_file(err, disk->file);
        return -ENOTSUP;
}

/* Those who stand on it were made from what it was. */
static int refuse_parent(struct vm *vm, const struct disk_row *disk, struct error *err)
{
        struct image_row *rows = NULL;
        size_t n = 0;
        int r = catalog_image_children(vm->broker->catalog, disk->file, &rows, &n, err);

        if (r == 0 && n > 0) {
                r = fail(err, EBUSY, "'%s' stands on '%s': only a leaf can be compacted",
                        rows[0].path, disk->file);
                error_set_file(err, disk->file);
        }
        image_rows_free(rows, n);
        return r;
}

/* One that is there already: a new one takes the place of one that is over. */
static int look_for_another(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        bool dry_run, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);

        for (size_t i = 0; r == 0 && i < jobs.n; i++) {
                const struct merge_job *job = &jobs.items[i];
                const char *id = merge_job_text(job, "disk");

                if (!merge_job_is_compact(job) || !id || strcmp(id, disk->id) != 0 ||
                        merge_job_is(job, JOB_DONE))
                        continue;
                if (!merge_job_is_over(job)) {
                        fail(err, EEXIST,
                                "job %lld compacts disk '%s' of vm '%s' already: it is %s",
                                (long long)job->row.id, disk->name, row->name, job->row.state);
                        error_set_hint(err, "vhdctl job show %lld", (long long)job->row.id);
                        return -EEXIST;
                }
                if (dry_run)
                        continue;
                r = merges_end_in_worker(vm, job->row.id, err);
                if (r == 0)
                        r = catalog_job_delete(vm->broker->catalog, job->row.id, err);
        }
        return r;
}

static int check(struct vm *vm, const struct vm_row *row, const struct disk_row *disk, bool dry_run,
        struct error *err)
{
        int r = refuse_type(vm, row, disk, err);

        if (r == 0)
                r = refuse_parent(vm, disk, err);
        return r == 0 ? look_for_another(vm, row, disk, dry_run, err) : r;
}

static int disk_compact(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(disk_row_done) struct disk_row disk = {0};
        json_auto_t *payload = NULL;
        _cleanup_free_ char *text = NULL;
        struct job_row job = {
                .kind = (char *)JOB_COMPACT, .state = JOB_WAITING, .created_us = now_us()};
        bool dry_run = param_bool(params, "dry-run");
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = disk_find(vm, &row, param_text(params, "disk"), &disk, err);
        if (r == 0)
                r = worker_up(vm, err);
        if (r == 0)
                r = check(vm, &row, &disk, dry_run, err);
        if (r < 0)
                return r;
        payload = json_pack("{s:s, s:s}", "disk", disk.id, "image", disk.file);
        text = payload ? json_dumps(payload, JSON_COMPACT) : NULL;
        if (!text)
                return fail(err, ENOMEM, "no memory for a job");
        job.payload = text;
        snprintf(job.vm, sizeof(job.vm), "%s", vm->id);
        if (!dry_run) {
                r = catalog_job_insert(broker->catalog, &job, &job.id, err);
                if (r < 0)
                        return r;
                vm->has_merges = true;
                merges_publish(vm, &job);
                merges_kick(vm);
        }
        *ret = merge_job_to_json(broker, &job);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

const struct method compact_methods[] = {
        {"disk.compact", disk_compact, true},
        {NULL, NULL, false},
};
