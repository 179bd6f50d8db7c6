/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/merges.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merges_commit.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/release.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/transfers.h"
#include "vhdd/daemon/worker_link.h"

#define MOST_ROUNDS 1000u

/* ---- what nobody needs any more ---- */

static int add_candidates(const struct merge_jobs *jobs, struct release *release, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < jobs->n; i++) {
                const struct merge_job *job = &jobs->items[i];
                json_t *run = merge_job_run(job), *item;
                size_t k;

                if (merge_job_is(job, JOB_DONE))
                        continue;
                r = release_candidate(release, merge_job_text(job, "image"), err);
                if (r == 0 && run)
                        r = release_candidate(release, merge_job_destination(job), err);
                json_array_foreach(json_object_get(run, "images"), k, item)
                {
                        if (r == 0)
                                r = release_candidate(release, json_string_value(item), err);
                }
        }
        return r;
}

/* The tops that nothing needs: their merges are for nothing. */
static int stop_needless(struct vm *vm, struct merge_jobs *jobs, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < jobs->n; i++) {
                struct merge_job *job = &jobs->items[i];
                const char *top = json_string_value(json_object_get(merge_job_run(job), "top"));
                _cleanup_(image_row_done) struct image_row row = {0};
                bool needed = true;

                if (!top || merge_job_is(job, JOB_DONE) ||
                        catalog_image_find(vm->broker->catalog, top, &row, NULL) < 0)
                        continue;
                r = image_is_needed(vm->broker->catalog, &row, &needed, err);
                if (r < 0 || needed)
                        continue;
                r = merges_end_in_worker(vm, job->row.id, err);
                json_object_del(job->payload, "run");
                if (r == 0)
                        r = merges_wait_for(vm, job, false, "nothing stands on it any more", err);
        }
        return r;
}

static bool is_any_free(struct vm *vm, const struct release *release)
{
        json_t *item;
        size_t i;

        json_array_foreach(release->candidates, i, item)
        {
                _cleanup_(image_row_done) struct image_row row = {0};
                bool needed = true;

                if (catalog_image_find(vm->broker->catalog, json_string_value(item), &row, NULL) ==
                                0 &&
                        image_is_needed(vm->broker->catalog, &row, &needed, NULL) == 0 && !needed)
                        return true;
        }
        return false;
}

static int release_rows(
        struct vm *vm, struct release *release, struct operation *operation, struct error *err)
{
        json_t *item;
        size_t i;
        int r = release_images(vm, release, err);

        json_array_foreach(release->files, i, item)
        {
                if (r == 0)
                        r = operation_will_remove(operation, json_string_value(item), err);
        }
        return r == 0 ? operation_commit(operation, err) : r;
}

/* Hidden images on which nothing stands any more go. */
static int clean(struct vm *vm, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        _cleanup_(operation_freep) struct operation *operation = NULL;
        _cleanup_(release_done) struct release release = {0};
        struct catalog *catalog = vm->broker->catalog;
        json_t *item;
        size_t i;
        int r = merge_jobs_load(catalog, vm->id, &jobs, err);

        if (r == 0)
                r = stop_needless(vm, &jobs, err);
        if (r == 0)
                r = release_init(&release, err);
        if (r == 0)
                r = add_candidates(&jobs, &release, err);
        if (r < 0 || !is_any_free(vm, &release))
                return r;
        r = operation_begin(catalog, host_fs(), "sweep", vm->id, NULL, 0, NULL, &operation, err);
        if (r == 0)
                r = operation_made(operation, err);
        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = release_rows(vm, &release, operation, err);
        if (r < 0) {
                catalog_rollback(catalog);
                return r;
        }
        json_array_foreach(release.files, i, item) merges_forget_file(vm, json_string_value(item));
        vm_changed(vm, "merged", json_pack("{s:O}", "files", release.files));
        return operation_end(operation, err);
}

/* ---- hidden images that nobody noted a merge for: of a catalog that was rebuilt ---- */

static int note_below(struct vm *vm, const char *file, struct release *release, struct error *err)
{
        _cleanup_(image_chain_done) struct image_chain images = {0};
        int r = image_chain_get(vm->broker->catalog, file, &images, err);

        for (size_t i = 0; r == 0 && i < images.n; i++)
                if (strcmp(images.rows[i].state, IMAGE_HIDDEN) == 0)
                        r = release_note_merge(vm, images.rows[i].path, release, err);
        return r;
}

static int note_forgotten(struct vm *vm, struct error *err)
{
        _cleanup_(release_done) struct release release = {0};
        struct snapshot_row *snapshots = NULL;
        struct disk_row *disks = NULL;
        size_t n = 0;
        int r = vm->forgotten_noted ? 0 : release_init(&release, err);

        if (r < 0 || vm->forgotten_noted)
                return r;
        release.merge = "live";
        r = catalog_disk_list(vm->broker->catalog, vm->id, &disks, &n, err);
        for (size_t i = 0; r == 0 && i < n; i++)
                if (strcmp(disks[i].kind, "vhd") == 0)
                        r = note_below(vm, disks[i].file, &release, err);
        disk_rows_free(disks, n);
        if (r == 0)
                r = catalog_snapshot_list(vm->broker->catalog, vm->id, &snapshots, &n, err);
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct snapshot_disk_row *frozen = NULL;
                size_t n_frozen = 0;

                r = catalog_snapshot_disk_list(
                        vm->broker->catalog, snapshots[i].id, &frozen, &n_frozen, err);
                for (size_t k = 0; r == 0 && k < n_frozen; k++)
                        if (frozen[k].file && strcmp(frozen[k].kind, "vhd") == 0)
                                r = note_below(vm, frozen[k].file, &release, err);
                snapshot_disk_rows_free(frozen, n_frozen);
        }
        snapshot_rows_free(snapshots, n);
        vm->forgotten_noted = r == 0;
        return r;
}

/* ---- the thread ---- */

/* 1: once more, there is news. */
static int round_of(struct vm *vm, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        _cleanup_(vm_row_done) struct vm_row row = {0};
        bool on = true;
        int r = catalog_vm_find(vm->broker->catalog, vm->id, &row, err);

        if (r == 0)
                r = note_forgotten(vm, err);
        if (r == 0)
                r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);
        if (r < 0)
                return r;
        merges_find_paths(vm, &jobs);
        if (!vm->has_merges)
                return 0;
        r = clean(vm, err);
        merge_jobs_done(&jobs);
        if (r == 0)
                r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);
        if (r == 0)
                r = vm_is_on(vm, &row, &on, err);
        for (size_t i = 0; r == 0 && i < jobs.n; i++) {
                struct error why = ERROR_INIT;

                r = merges_advance(vm, &jobs, &jobs.items[i], !on, &why);
                if (r >= 0)
                        continue; /* 1 ends the round */
                if (err)
                        *err = why;
                if (r != -EHOSTDOWN && r != -ETIMEDOUT) {
                        broker_log_error(vm->broker, vm->id, &why);
                        r = 0;
                }
        }
        return r;
}

/* When nothing else is to be done. 1: once more. */
static int seal(struct vm *vm, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);

        return r == 0 ? seals_advance(vm, &jobs, err) : r;
}

static void look(struct vm *vm)
{
        int r = 1;

        for (unsigned i = 0; i < MOST_ROUNDS && r == 1; i++) {
                struct error err = ERROR_INIT;

                if (vm->removed || vm->vms->stopping || !vm->link || !vm->up)
                        return;
                if (transfer_has(vm)) /* its files are being copied; the end of that sends us again */
                        return;
                r = round_of(vm, &err);
                if (r == 0 && vm->up)
                        r = seal(vm, &err);
                if (r < 0)
                        broker_log_error(vm->broker, vm->id, &err);
        }
}

static void merger(void *opaque)
{
        struct vm *vm = opaque;
        bool again = true;

        while (again) {
                pthread_mutex_lock(&vm->lock);
                pthread_mutex_lock(&vm->vms->lock);
                again = vm->merge_again;
                vm->merge_again = false;
                if (!again)
                        vm->merger = false;
                pthread_mutex_unlock(&vm->vms->lock);
                if (again)
                        look(vm);
                pthread_mutex_unlock(&vm->lock);
        }
        vm_unref(vm);
}

void merges_kick(struct vm *vm)
{
        struct error err = ERROR_INIT;
        bool mine;

        pthread_mutex_lock(&vm->vms->lock);
        mine = !vm->merger && !vm->vms->stopping;
        vm->merge_again = true;
        if (mine) {
                vm->merger = true;
                vm->refs++;
        }
        pthread_mutex_unlock(&vm->vms->lock);
        if (!mine || vms_spawn(vm->vms, merger, vm, &err) == 0)
                return;
        broker_log_error(vm->broker, vm->id, &err);
        pthread_mutex_lock(&vm->vms->lock);
        vm->merger = false;
        pthread_mutex_unlock(&vm->vms->lock);
        vm_unref(vm);
}

void merges_sweep(struct broker *broker)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        json_auto_t *seen = json_array();

        if (merge_jobs_load_all(broker->catalog, NULL, &jobs, NULL) < 0)
                return;
        for (size_t i = 0; i < jobs.n; i++) {
                const struct merge_job *job = &jobs.items[i];
                _cleanup_(vm_unrefp) struct vm *vm = NULL;
                bool waits =
                        merge_job_is(job, JOB_PAUSED) && !json_object_get(job->payload, "space");

                if (merge_job_is_over(job) || waits || json_has_text(seen, job->row.vm))
                        continue;
                json_array_append_new(seen, json_string(job->row.vm));
                if (vm_peek(broker, job->row.vm, &vm, NULL, NULL) == 0)
                        merges_kick(vm);
        }
        seals_sweep(broker);
}

/* ---- after a start, or a death ---- */

static void remember_all(struct vm *vm, const json_t *hello, const struct merge_jobs *jobs)
{
        json_t *said;
        size_t i;

        merging_forget(vm, 0, NULL);
        json_array_foreach(json_object_get(hello, "merges"), i, said)
        {
                const char *chain = param_text(said, "chain");
                int64_t id = param_int(said, "job", 0);
                const struct merge_job *job = merge_jobs_find(jobs, id);
                struct error err = ERROR_INIT;

                if (!chain || !job || !merge_job_is_active(job))
                        merges_drop_in_worker(vm, id);
                else if (merging_remember(vm, id, chain, said, &err) < 0)
                        broker_log_error(vm->broker, vm->id, &err);
        }
}

/* What came to its end between the worker's hello and now was told when nobody knew of it yet. */
static int ask_again(struct vm *vm, const struct merge_jobs *jobs, struct error *err)
{
        json_auto_t *answer = NULL;
        json_t *said;
        size_t i;
        int r = worker_call(vm, "merge.status", json_object(), WORKER_CALL_MS, &answer, err);

        json_array_foreach(json_object_get(answer, "merges"), i, said)
        {
                const char *chain = param_text(said, "chain"), *state = param_text(said, "state");
                int64_t id = param_int(said, "job", 0);
                struct merging known;

                /* One that runs still may have told of its end since: that is newer. */
                if (r == 0 && chain && state && strcmp(state, "running") != 0 &&
                        merge_jobs_find(jobs, id) && merges_look(vm, id, &known))
                        r = merging_remember(vm, id, chain, said, err);
        }
        return r;
}

/* As it is in the catalog now: another one's end may have changed it. One that cannot be settled keeps its
 * disk from being served, and only that. */
static int settle_again(struct vm *vm, int64_t id, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);
        struct merge_job *job = r == 0 ? merge_jobs_find(&jobs, id) : NULL;
        struct error why = ERROR_INIT;
        bool finished;

        if (job && merge_job_is(job, JOB_FINISHING) && merges_settle(vm, job, &finished, &why) < 0)
                broker_log_error(vm->broker, vm->id, &why);
        return r;
}

int merges_adopt(struct vm *vm, const json_t *hello, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);

        if (r < 0)
                return r;
        remember_all(vm, hello, &jobs);
        if (json_array_size(json_object_get(hello, "merges")) > 0)
                r = ask_again(vm, &jobs, err);
        for (size_t i = 0; r == 0 && i < jobs.n; i++)
                if (merge_job_is(&jobs.items[i], JOB_FINISHING))
                        r = settle_again(vm, jobs.items[i].row.id, err);
        if (r == 0)
                r = merges_ended(vm, err);
        return r < 0 ? r : merges_refresh_paths(vm, err);
}
