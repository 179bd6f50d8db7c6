/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/transfers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "vhdd/daemon/copy_file.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/snapshots.h"

#define TELL_MS        500
#define PAUSE_MS       100u
#define OVER_MOST      32u /* that are over are kept for people */
#define RECOVER_TRIES  60u
#define RECOVER_MS     1000u

struct transfer {
        struct transfer *next; /* guarded by vms->lock */

        /* immutable after begin */
        struct broker *broker;
        struct transfer_work work;
        char *directory, *what;
        int64_t job;
        char vm[UUID_TEXT_SIZE]; /* or "" */

        /* owner: its thread */
        struct merge_job row;
        int64_t told_us, told_bytes, paced_us, paced_bytes;
        uint64_t paced_rate;
        bool done_in_catalog;

        /* guarded by vms->lock */
        uint64_t done, total, rate, speed;
        bool cancelled, paused;
};

bool job_is_transfer(const struct job_row *row)
{
        return strcmp(row->kind, JOB_EXPORT) == 0 || strcmp(row->kind, JOB_IMPORT) == 0;
}

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for a job");
}

static int64_t monotonic_us(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* ---- the table ---- */

static struct transfer *find_locked(struct vms *vms, int64_t job)
{
        for (struct transfer *at = vms->transfers; at; at = at->next)
                if (at->job == job)
                        return at;
        return NULL;
}

static struct transfer *find_of_vm_locked(struct vm *vm)
{
        for (struct transfer *at = vm->vms->transfers; at; at = at->next)
                if (at->work.vm == vm)
                        return at;
        return NULL;
}

static int refuse(const struct transfer *other, struct error *err)
{
        fail(err, EBUSY, "the vm is being exported by job %lld", (long long)other->job);
        error_set_hint(err, "vhdctl job wait %lld", (long long)other->job);
        return -EBUSY;
}

int transfer_refuse(struct vm *vm, struct error *err)
{
        const struct transfer *other;

        MUTEX_GUARD(&vm->vms->lock);
        other = find_of_vm_locked(vm);
        return other ? refuse(other, err) : 0;
}

int transfer_refuse_held(struct vm *vm, struct error *err)
{
        const struct transfer *other;

        MUTEX_GUARD(&vm->vms->lock);
        other = find_of_vm_locked(vm);
        return other && other->work.alone ? refuse(other, err) : 0;
}

bool transfer_has(struct vm *vm)
{
        MUTEX_GUARD(&vm->vms->lock);
        return find_of_vm_locked(vm) != NULL;
}

/* By looking once more under the lock: two that begin at the same time are one too many. */
static int enter(struct transfer *transfer, struct error *err)
{
        struct vms *vms = transfer->broker->vms;
        const struct transfer *other;

        MUTEX_GUARD(&vms->lock);
        other = transfer->work.vm ? find_of_vm_locked(transfer->work.vm) : NULL;
        if (other)
                return refuse(other, err);
        transfer->next = vms->transfers;
        vms->transfers = transfer;
        return 0;
}

static void leave(struct transfer *transfer)
{
        struct vms *vms = transfer->broker->vms;

        MUTEX_GUARD(&vms->lock);
        for (struct transfer **at = &vms->transfers; *at; at = &(*at)->next)
                if (*at == transfer) {
                        *at = transfer->next;
                        return;
                }
}

/* ---- its row ---- */

static void publish(struct transfer *transfer)
{
        json_t *event = transfer_to_json(transfer->broker, &transfer->row.row);

        if (!event)
                return;
        if (transfer->vm[0])
                json_object_set_new(event, "vm-id", json_string(transfer->vm));
        broker_publish(transfer->broker, "job", event);
}

static int save(struct transfer *transfer, struct error *err)
{
        return merge_job_save(transfer->broker->catalog, &transfer->row, err);
}

static void keep_progress(struct transfer *transfer)
{
        uint64_t done, total;

        pthread_mutex_lock(&transfer->broker->vms->lock);
        done = transfer->done;
        total = transfer->total;
        pthread_mutex_unlock(&transfer->broker->vms->lock);
        json_object_set_new(transfer->row.payload, "done", json_integer((json_int_t)done));
        json_object_set_new(transfer->row.payload, "total", json_integer((json_int_t)total));
}

static int insert(struct transfer *transfer, struct error *err)
{
        struct job_row *row = &transfer->row.row;

        transfer->row.payload = json_pack("{s:s, s:s, s:I}", "directory", transfer->directory,
                "what", transfer->what, "total", (json_int_t)transfer->total);
        if (!transfer->row.payload)
                return fail(err, EINVAL,
                        "the name of the folder is no UTF-8, and the catalog holds nothing else");
        row->kind = strdup(transfer->work.kind);
        row->payload = json_dumps(transfer->row.payload, JSON_COMPACT);
        if (!row->kind || !row->payload)
                return no_memory(err);
        snprintf(row->vm, sizeof(row->vm), "%s", transfer->vm);
        snprintf(row->state, sizeof(row->state), "%s", JOB_RUNNING);
        row->created_us = now_us();
        return catalog_job_insert(transfer->broker->catalog, row, &row->id, err);
}

int transfer_note_snapshot(struct transfer *transfer, const char *name, struct error *err)
{
        merge_job_set_text(&transfer->row, "snapshot", name);
        return save(transfer, err);
}

int transfer_done(struct transfer *transfer, struct error *err)
{
        int r;

        keep_progress(transfer);
        merge_job_set(&transfer->row, JOB_DONE);
        r = save(transfer, err);
        if (r == -ENOENT) { /* the vm was removed meanwhile, and the row with it */
                error_clear(err);
                r = 0;
        }
        transfer->done_in_catalog = r == 0;
        return r;
}

/* Those of old: the newest stay. */
static void forget_old(struct broker *broker)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        size_t n = 0;

        if (merge_jobs_load_if(broker->catalog, NULL, job_is_transfer, &jobs, NULL) < 0)
                return;
        for (size_t i = jobs.n; i-- > 0;)
                if (merge_job_is_over(&jobs.items[i]) &&
                        !merge_job_text(&jobs.items[i], "snapshot") && ++n > OVER_MOST)
                        (void)catalog_job_delete(broker->catalog, jobs.items[i].row.id, NULL);
}

/* ---- at work ---- */

struct broker *transfer_broker(const struct transfer *transfer)
{
        return transfer->broker;
}

int64_t transfer_job(const struct transfer *transfer)
{
        return transfer->job;
}

void transfer_set_total(struct transfer *transfer, uint64_t total)
{
        MUTEX_GUARD(&transfer->broker->vms->lock);
        transfer->total = total;
}

static void tell(struct transfer *transfer)
{
        int64_t now = monotonic_us(), since = now - transfer->told_us;

        if (since < TELL_MS * 1000)
                return;
        pthread_mutex_lock(&transfer->broker->vms->lock);
        transfer->speed =
                (uint64_t)(((int64_t)transfer->done - transfer->told_bytes) * 1000000 / since);
        transfer->told_bytes = (int64_t)transfer->done;
        pthread_mutex_unlock(&transfer->broker->vms->lock);
        transfer->told_us = now;
        publish(transfer);
}

/* How long it has to wait so as not to be faster than it may: counted from when the limit was set. */
static unsigned ahead_ms(struct transfer *transfer, uint64_t rate, uint64_t done)
{
        int64_t now = monotonic_us(), due;

        if (rate != transfer->paced_rate) {
                transfer->paced_rate = rate;
                transfer->paced_us = now;
                transfer->paced_bytes = (int64_t)done;
        }
        if (rate == 0)
                return 0;
        due = transfer->paced_us +
                (int64_t)((double)((int64_t)done - transfer->paced_bytes) * 1e6 / (double)rate);
        return due > now ? (unsigned)((due - now) / 1000) + 1 : 0;
}

int transfer_step(struct transfer *transfer, uint64_t bytes)
{
        struct vms *vms = transfer->broker->vms;

        pthread_mutex_lock(&vms->lock);
        transfer->done += bytes;
        if (transfer->done > transfer->total)
                transfer->total = transfer->done; /* it was an estimate */
        pthread_mutex_unlock(&vms->lock);
        for (;;) {
                bool ends, paused;
                uint64_t rate, done;
                unsigned ms;

                pthread_mutex_lock(&vms->lock);
                ends = transfer->cancelled || vms->stopping;
                paused = transfer->paused;
                rate = transfer->rate;
                done = transfer->done;
                pthread_mutex_unlock(&vms->lock);
                if (ends || atomic_load(&transfer->broker->stopping))
                        return -ECANCELED;
                tell(transfer);
                ms = paused ? PAUSE_MS : ahead_ms(transfer, rate, done);
                if (ms == 0)
                        return 0;
                vms_sleep(vms, ms < PAUSE_MS ? ms : PAUSE_MS);
        }
}

static void transfer_free(struct transfer *transfer)
{
        transfer->work.free(transfer->work.opaque);
        json_decref(transfer->row.payload);
        job_row_done(&transfer->row.row);
        vm_unref(transfer->work.vm);
        free(transfer->directory);
        free(transfer->what);
        free(transfer);
}

/* What came of it, for people. The vm may be gone, and the row with it. */
static void set_over(struct transfer *transfer, int r, const struct error *why)
{
        struct error err = ERROR_INIT;
        bool cancelled;

        pthread_mutex_lock(&transfer->broker->vms->lock);
        cancelled = transfer->cancelled;
        pthread_mutex_unlock(&transfer->broker->vms->lock);
        if (transfer->done_in_catalog) {
                if (r < 0)
                        broker_log_error(transfer->broker, transfer->what, why);
                return;
        }
        keep_progress(transfer);
        if (r == -ECANCELED && cancelled) {
                merge_job_set(&transfer->row, JOB_CANCELLED);
        } else {
                merge_job_set(&transfer->row, JOB_FAILED);
                merge_job_set_text(&transfer->row, "error",
                        r == -ECANCELED ? "the daemon ended, and what had been made was taken back"
                                        : why->message);
                json_object_set_new(transfer->row.payload, "code", json_integer(-r));
                broker_log(transfer->broker, BROKER_LOG_ERROR, NULL, "job %lld failed: %s",
                        (long long)transfer->job, why->message);
        }
        if (save(transfer, &err) < 0 && err.code != ENOENT)
                broker_log_error(transfer->broker, transfer->what, &err);
}

static void work(void *opaque)
{
        struct transfer *transfer = opaque;
        struct broker *broker = transfer->broker;
        struct error err = ERROR_INIT;
        int r = transfer->work.run(transfer, transfer->work.opaque, &err);

        set_over(transfer, r, &err);
        if (transfer->work.after)
                transfer->work.after(transfer, transfer->work.opaque);
        leave(transfer);
        publish(transfer);
        if (transfer->work.vm)
                merges_kick(transfer->work.vm);
        transfer_free(transfer);
        forget_old(broker);
}

static struct transfer *new_transfer(struct broker *broker, const struct transfer_work *work)
{
        struct transfer *transfer = calloc(1, sizeof(*transfer));

        if (!transfer) {
                work->free(work->opaque);
                return NULL;
        }
        transfer->broker = broker;
        transfer->work = *work;
        transfer->total = work->total;
        transfer->rate = work->rate;
        if (work->vm) {
                pthread_mutex_lock(&broker->vms->lock);
                work->vm->refs++;
                pthread_mutex_unlock(&broker->vms->lock);
                snprintf(transfer->vm, sizeof(transfer->vm), "%s", work->vm->id);
        }
        transfer->directory = strdup(work->directory);
        transfer->what = strdup(work->what);
        if (transfer->directory && transfer->what)
                return transfer;
        transfer_free(transfer);
        return NULL;
}

int transfer_begin(
        struct broker *broker, const struct transfer_work *asked, json_t **ret, struct error *err)
{
        struct transfer *transfer = new_transfer(broker, asked);
        json_t *json;
        int r;

        if (!transfer)
                return no_memory(err);
        r = insert(transfer, err);
        if (r < 0) {
                transfer_free(transfer);
                return r;
        }
        transfer->job = transfer->row.row.id;
        transfer->told_us = monotonic_us();
        r = enter(transfer, err);
        if (r == 0) {
                json = transfer_to_json(broker, &transfer->row.row);
                publish(transfer);
                r = vms_spawn(broker->vms, work, transfer, err);
                if (r == 0) {
                        *ret = json;
                        return json ? 0 : no_memory(err);
                }
                json_decref(json);
                leave(transfer);
        }
        (void)catalog_job_delete(broker->catalog, transfer->job, NULL);
        transfer_free(transfer);
        return r;
}

/* ---- files ---- */

static int will_make_folder(void *opaque, const char *path, struct error *err)
{
        return operation_will_make_folder(opaque, path, err);
}

int transfer_will_make(struct operation *operation, const char *path, struct error *err)
{
        const struct copy_folders folders = {will_make_folder, operation};
        int r = make_folders(path, &folders, err);

        return r == 0 ? operation_will_make(operation, path, err) : r;
}

/* ---- people ---- */

json_t *transfer_to_json(struct broker *broker, const struct job_row *row)
{
        json_auto_t *payload = json_loads(row->payload, 0, NULL);
        const struct merge_job job = {*row, payload};
        uint64_t done = (uint64_t)merge_job_number(&job, "done"), speed = 0, rate = 0;
        uint64_t total = (uint64_t)merge_job_number(&job, "total");
        _cleanup_(vm_row_done) struct vm_row vm = {0};
        const struct transfer *transfer;
        const char *state = row->state;
        char time[TIME_TEXT_MAX];

        if (row->vm[0])
                (void)catalog_vm_find(broker->catalog, row->vm, &vm, NULL);
        pthread_mutex_lock(&broker->vms->lock);
        transfer = find_locked(broker->vms, row->id);
        if (transfer) {
                done = transfer->done;
                total = transfer->total;
                speed = transfer->paused ? 0 : transfer->speed;
                rate = transfer->rate;
                /* Whoever sees that it is over finds the vm free, and nothing left of it. */
                state = transfer->paused ? JOB_PAUSED : JOB_RUNNING;
        }
        pthread_mutex_unlock(&broker->vms->lock);
        if (strcmp(state, JOB_DONE) == 0)
                done = total;
        return json_pack(
                "{s:I, s:s, s:s?, s:s, s:s, s:s?, s:s?, s:I, s:I, s:I, s:o, s:I, s:s?, s:n, s:b}",
                "id", (json_int_t)row->id, "kind", row->kind, "vm", vm.name, "state", state,
                "created", time_to_text(row->created_us, time), "what",
                merge_job_text(&job, "what"), "file", merge_job_text(&job, "directory"), "done",
                (json_int_t)done, "total", (json_int_t)total, "rate", (json_int_t)speed,
                "seconds-left",
                speed > 0 && total > done ? json_integer((json_int_t)((total - done) / speed))
                                          : json_null(),
                "limit", (json_int_t)rate, "error", merge_job_text(&job, "error"), "reason", "stuck",
                false);
}

int transfer_change(struct broker *broker, const struct job_row *row, const char *verb,
        uint64_t rate, struct error *err)
{
        struct transfer *transfer;

        MUTEX_GUARD(&broker->vms->lock);
        transfer = find_locked(broker->vms, row->id);
        if (!transfer) {
                fail(err, EINVAL, "job %lld is %s: there is nothing to %s", (long long)row->id,
                        row->state, verb);
                if (strcmp(verb, "resume") == 0)
                        error_set_hint(err, "begin it anew: nothing was left of it");
                return -EINVAL;
        }
        if (strcmp(verb, "limit") == 0)
                transfer->rate = rate;
        else if (strcmp(verb, "cancel") == 0)
                transfer->cancelled = true;
        else
                transfer->paused = strcmp(verb, "pause") == 0;
        pthread_cond_broadcast(&broker->vms->wakeup);
        return 0;
}

/* ---- after a start ---- */

static void set_cut_off(struct broker *broker, struct merge_job *job)
{
        struct error err = ERROR_INIT;

        merge_job_set(job, JOB_FAILED);
        merge_job_set_text(
                job, "error", "the daemon died meanwhile, and what had been made was taken back");
        json_object_set_new(job->payload, "code", json_integer(ECANCELED));
        if (merge_job_save(broker->catalog, job, &err) < 0)
                broker_log_error(broker, "jobs", &err);
}

static int forget_snapshot(struct broker *broker, struct merge_job *job, struct error *err)
{
        merge_job_set_text(job, "snapshot", NULL);
        return merge_job_save(broker->catalog, job, err);
}

int transfer_delete_snapshot(
        struct broker *broker, const char *vm, const char *name, struct error *err)
{
        json_auto_t *params = json_pack("{s:s, s:s, s:s}", "vm", vm, "name", name, "merge", "live");
        json_auto_t *answer = NULL;
        int r = params ? vm_try_again(snapshot_delete, broker, NULL, params, &answer, err)
                       : no_memory(err);

        if (r == -ENOENT) {
                error_clear(err);
                return 0;
        }
        return r;
}

/* The vm's worker may need a while; a vm that is gone has no snapshots. */
static void delete_left(void *opaque)
{
        struct broker *broker = opaque;

        for (unsigned i = 0; i < RECOVER_TRIES; i++) {
                _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
                unsigned n_left = 0;

                if (merge_jobs_load_if(broker->catalog, NULL, job_is_transfer, &jobs, NULL) < 0)
                        return;
                for (size_t k = 0; k < jobs.n; k++) {
                        struct merge_job *job = &jobs.items[k];
                        const char *name = merge_job_text(job, "snapshot");
                        struct error err = ERROR_INIT;
                        int r = 0;

                        if (!name || !merge_job_is_over(job))
                                continue;
                        r = transfer_delete_snapshot(broker, job->row.vm, name, &err);
                        if (r == 0)
                                r = forget_snapshot(broker, job, &err);
                        if (r < 0 && i + 1 == RECOVER_TRIES)
                                broker_log_error(broker, job->row.vm, &err);
                        n_left += r < 0;
                }
                if (n_left == 0 || !vms_sleep(broker->vms, RECOVER_MS))
                        return;
        }
}

void transfers_recover(struct broker *broker)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        struct error err = ERROR_INIT;
        bool any = false;

        if (merge_jobs_load_if(broker->catalog, NULL, job_is_transfer, &jobs, &err) < 0) {
                broker_log_error(broker, "jobs", &err);
                return;
        }
        for (size_t i = 0; i < jobs.n; i++) {
                if (!merge_job_is_over(&jobs.items[i]))
                        set_cut_off(broker, &jobs.items[i]);
                any = any || merge_job_text(&jobs.items[i], "snapshot");
        }
        if (any && vms_spawn(broker->vms, delete_left, broker, &err) < 0)
                broker_log_error(broker, "jobs", &err);
}
