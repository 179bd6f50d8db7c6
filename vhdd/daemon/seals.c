/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/seals.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "chain/seal.h"
#include "vhdd/daemon/hidden.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/sidecar.h"
#include "vhdd/daemon/worker_link.h"

#define OWN_CHAIN    "seal:" /* of a chain that was opened for a seal; its job's number follows */
#define AGAIN_US     (5 * INT64_C(1000000))
#define DEFAULT_RATE (UINT64_C(64) << 20) /* bytes a second: a disk has more to do than this */

/* The one that the worker makes. Written with the vm's lock and vms->lock held, read with either. */
struct sealing {
        int64_t job;
        char *path;
        char state[12]; /* "running", "done", "failed" */
        uint64_t done, total, speed;
        uint64_t file_size; /* of what was read */
        int64_t changed_ns;
        char *error;
        int code;
};

static void sealing_free(struct sealing *sealing)
{
        if (!sealing)
                return;
        free(sealing->path);
        free(sealing->error);
        free(sealing);
}

bool job_is_seal(const struct job_row *row)
{
        return strcmp(row->kind, JOB_SEAL) == 0;
}

bool job_is_quiet(const struct job_row *row)
{
        return job_is_seal(row) && strcmp(row->state, JOB_FAILED) != 0;
}

/* ---- rows ---- */

/* All seals' jobs of the vm, or of all (@vm NULL). What merge_job.h says of jobs is true of them. */
static int load_jobs(
        struct catalog *catalog, const char *vm, struct merge_jobs *ret, struct error *err)
{
        return merge_jobs_load_if(catalog, vm, job_is_seal, ret, err);
}

static struct merge_job *find_job(const struct merge_jobs *jobs, const char *path)
{
        for (size_t i = 0; i < jobs->n; i++) {
                const char *image = merge_job_text(&jobs->items[i], "image");

                if (image && strcmp(image, path) == 0)
                        return &jobs->items[i];
        }
        return NULL;
}

/* Does somebody stand on it, or will, and nobody write to it? */
static int is_parent(
        struct catalog *catalog, const struct image_row *row, bool *ret, struct error *err)
{
        _cleanup_(disk_row_done) struct disk_row disk = {0};
        struct snapshot_disk_row *frozen = NULL;
        struct image_row *children = NULL;
        size_t n_frozen = 0, n_children = 0;
        int r;

        *ret = false;
        if (strcmp(row->state, IMAGE_IN_USE) != 0 || strcmp(row->format, "vhd") != 0)
                return 0;
        r = catalog_disk_find_file(catalog, row->path, &disk, NULL);
        if (r == 0 && !disk.read_only)
                return 0;
        r = catalog_snapshot_disk_list_file(catalog, row->path, &frozen, &n_frozen, err);
        if (r == 0)
                r = catalog_image_children(catalog, row->path, &children, &n_children, err);
        snapshot_disk_rows_free(frozen, n_frozen);
        image_rows_free(children, n_children);
        *ret = r == 0 && (n_frozen > 0 || n_children > 0);
        return r;
}

/* The same of what may be in no row any more: then nobody does. */
static int find_parent(struct catalog *catalog, const char *path, struct image_row *ret,
        bool *ret_is_parent, struct error *err)
{
        int r = path ? catalog_image_find(catalog, path, ret, NULL) : -ENOENT;

        *ret_is_parent = false;
        if (r == -ENOENT)
                return 0;
        return r < 0 ? r : is_parent(catalog, ret, ret_is_parent, err);
}

int seals_note(struct catalog *catalog, const char *vm, const char *path, struct error *err)
{
        _cleanup_(image_row_done) struct image_row image = {0};
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        json_auto_t *payload = json_pack("{s:s}", "image", path);
        _cleanup_free_ char *text = payload ? json_dumps(payload, JSON_COMPACT) : NULL;
        struct job_row row = {.kind = (char *)JOB_SEAL,
                .payload = text,
                .state = JOB_WAITING,
                .created_us = now_us()};
        bool wanted = false;
        int r = catalog_image_find(catalog, path, &image, err);

        if (r == 0)
                r = is_parent(catalog, &image, &wanted, err);
        if (r < 0 || !wanted)
                return r;
        r = load_jobs(catalog, NULL, &jobs, err);
        if (r < 0 || find_job(&jobs, path))
                return r;
        if (!text)
                return fail(err, ENOMEM, "no memory for a job");
        snprintf(row.vm, sizeof(row.vm), "%s", vm);
        return catalog_job_insert(catalog, &row, &row.id, err);
}

/* In a transaction: between the row's reading and its writing nobody changes it. */
static int clear_row(struct catalog *catalog, struct image_row *row, struct error *err)
{
        if (row->sealed_mtime_ns == 0)
                return 0;
        row->sealed_size = 0;
        row->sealed_mtime_ns = 0;
        return catalog_image_update(catalog, row, err);
}

int seals_void(struct catalog *catalog, const char *path, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        const struct merge_job *job;
        int r = catalog_image_find(catalog, path, &row, err);

        if (r == 0)
                r = clear_row(catalog, &row, err);
        if (r == 0)
                r = load_jobs(catalog, NULL, &jobs, err);
        job = r == 0 ? find_job(&jobs, path) : NULL;
        return job ? catalog_job_delete(catalog, job->row.id, err) : r;
}

int seals_clear(struct catalog *catalog, const char *path, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        int r = catalog_image_find(catalog, path, &row, NULL);

        if (r == -ENOENT)
                return 0;
        return r < 0 ? fail_os(err, -r, "cannot look for '%s' in the catalog", path)
                     : clear_row(catalog, &row, err);
}

int seals_break(struct vm *vm, const struct image_row *row, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        int r = seals_write(vm, row->path) ? seals_stop(vm, err) : 0;

        if (r == 0 && strcmp(row->format, "vhd") == 0)
                r = seal_remove(host_fs(), row->path, err);
        if (r < 0 || row->sealed_mtime_ns == 0)
                return r;
        r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        /* One that was pushed and is not committed has no row yet. */
        return catalog_end(catalog, seals_clear(catalog, row->path, err), err);
}

/* ---- what the worker tells ---- */

static void set_sealing(struct vm *vm, struct sealing *sealing)
{
        struct sealing *old;

        pthread_mutex_lock(&vm->vms->lock);
        old = vm->sealing;
        vm->sealing = sealing;
        pthread_mutex_unlock(&vm->vms->lock);
        sealing_free(old);
}

void seals_event(struct vm *vm, const json_t *event)
{
        const char *what = param_text(event, "what"), *error = param_text(event, "error");
        struct sealing *sealing;
        bool over = false;

        pthread_mutex_lock(&vm->vms->lock);
        sealing = vm->sealing;
        if (sealing && what && sealing->job == param_int(event, "job", 0)) {
                over = strcmp(what, "progress") != 0;
                if (over)
                        snprintf(sealing->state, sizeof(sealing->state), "%s", what);
                sealing->done = (uint64_t)param_int(event, "bytes-done", 0);
                sealing->total = (uint64_t)param_int(event, "bytes-total", 0);
                sealing->speed = (uint64_t)param_int(event, "speed", 0);
                sealing->file_size = (uint64_t)param_int(event, "file-size", 0);
                sealing->changed_ns = param_int(event, "changed-ns", 0);
                sealing->code = (int)param_int(event, "code", 0);
                free(sealing->error);
                sealing->error = error ? strdup(error) : NULL;
        }
        pthread_mutex_unlock(&vm->vms->lock);
        if (over)
                merges_kick(vm);
}

bool seals_look(struct vm *vm, int64_t job, struct merging *ret)
{
        const struct sealing *sealing;

        MUTEX_GUARD(&vm->vms->lock);
        sealing = vm->sealing;
        if (!sealing || sealing->job != job)
                return false;
        *ret = (struct merging){.job = job,
                .done = sealing->done,
                .total = sealing->total,
                .speed = sealing->speed};
        return true;
}

bool seals_write(const struct vm *vm, const char *path)
{
        return vm->sealing && strcmp(vm->sealing->path, path) == 0;
}

/* ---- ending ---- */

/* A seal that is not whole, or not in its place. */
static void remove_new(const char *image)
{
        _cleanup_free_ char *path = NULL;

        if (asprintf(&path, "%s" SEAL_NEW_ENDING, image) >= 0)
                (void)fs_unlink(host_fs(), path);
}

void seals_forget(struct vm *vm)
{
        if (!vm->sealing)
                return;
        remove_new(vm->sealing->path);
        set_sealing(vm, NULL);
}

/* The chain's closing ends the thread; what it may write is taken back from the worker. What it has written
 * stays as it is. */
static int end_in_worker(struct vm *vm, struct error *err)
{
        char chain[80];
        int r = 0;

        snprintf(chain, sizeof(chain), OWN_CHAIN "%lld", (long long)vm->sealing->job);
        if (vm->up && worker_chain_find(vm, chain))
                r = worker_chain_close(vm, chain, err);
        return r;
}

int seals_stop(struct vm *vm, struct error *err)
{
        int r;

        if (!vm->sealing)
                return 0;
        r = end_in_worker(vm, err);
        seals_forget(vm);
        return r == 0 && vm->up ? worker_grants_renew(vm, err) : r;
}

static int save(struct vm *vm, struct merge_job *job, struct error *err)
{
        return merge_job_save(vm->broker->catalog, job, err);
}

/* Something else has the image: the others' turn first, and this one's when the sweeper comes again. */
static int put_off(struct vm *vm, struct merge_job *job, const char *reason, struct error *err)
{
        json_object_set_new(job->payload, "not-before", json_integer(now_us() + AGAIN_US));
        merge_job_set_text(job, "reason", reason);
        return save(vm, job, err);
}

static int wait_for(struct vm *vm, struct merge_job *job, const char *reason, struct error *err)
{
        const char *old = merge_job_text(job, "reason");

        if (old && strcmp(old, reason) == 0)
                return 0;
        merge_job_set_text(job, "reason", reason);
        return save(vm, job, err);
}

/* One that the image's change failed is told of: nobody vouches for it, and that is worth knowing. */
static int set_failed(
        struct vm *vm, struct merge_job *job, int code, const char *why, struct error *err)
{
        int r;

        merge_job_set(job, JOB_FAILED);
        merge_job_set_text(job, "error", why);
        merge_job_set_text(job, "reason", NULL);
        json_object_set_new(job->payload, "code", json_integer(code));
        broker_log(vm->broker, BROKER_LOG_WARNING, vm->id, "job %lld failed: %s",
                (long long)job->row.id, why);
        r = save(vm, job, err);
        if (r == 0)
                merges_publish(vm, &job->row);
        return r;
}

static int drop(struct vm *vm, const struct merge_job *job, struct error *err)
{
        const char *path = merge_job_text(job, "image");

        if (path)
                remove_new(path); /* of a broker that died */
        return catalog_job_delete(vm->broker->catalog, job->row.id, err);
}

/* Is the image what was frozen, and what was read? S1. */
static bool is_what_was_read(const struct image_row *row, const struct sealing *sealing)
{
        struct stat st;

        return stat(row->path, &st) == 0 && (uint64_t)st.st_dev == row->device &&
                (uint64_t)st.st_ino == row->inode && (uint64_t)st.st_size == sealing->file_size &&
                (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec == sealing->changed_ns;
}

/* The row vouches for it, and the job is over. 1: it is not: another vm's merge has begun to write to the
 * image, or its end has (S2). */
static int note_sealed(
        struct vm *vm, const struct merge_job *job, bool *ret_news, struct error *err)
{
        const struct sealing *sealing = vm->sealing;
        struct catalog *catalog = vm->broker->catalog;
        _cleanup_(job_row_done) struct job_row still = {0};
        _cleanup_(image_row_done) struct image_row row = {0};
        bool wanted = false, merging = false;
        int r = catalog_job_find(catalog, job->row.id, &still, NULL);

        if (r == -ENOENT)
                return 1;
        if (r == 0)
                r = find_parent(catalog, sealing->path, &row, &wanted, err);
        if (r == 0)
                r = merge_jobs_have_begun(catalog, sealing->path, &merging, err);
        if (r < 0 || !wanted || merging || !is_what_was_read(&row, sealing))
                return r < 0 ? r : 1;
        *ret_news = row.sealed_mtime_ns != sealing->changed_ns;
        row.sealed_size = sealing->file_size;
        row.sealed_mtime_ns = sealing->changed_ns;
        r = catalog_image_update(catalog, &row, err);
        return r == 0 ? catalog_job_delete(catalog, job->row.id, err) : r;
}

/* If nobody has taken the job away with it. */
static int put_off_voided(struct vm *vm, struct merge_job *job, struct error *err)
{
        _cleanup_(job_row_done) struct job_row row = {0};
        int r = catalog_job_find(vm->broker->catalog, job->row.id, &row, NULL);

        return r == -ENOENT ? 0 : put_off(vm, job, "the image is being merged", err);
}

static int put_in_place(struct vm *vm, struct merge_job *job, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        const char *path = vm->sealing->path;
        bool news = false;
        int r = seal_put(host_fs(), path, true, err);

        if (r == 0)
                r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = catalog_end(catalog, note_sealed(vm, job, &news, err), err);
        if (r == 1) {
                r = seal_remove(host_fs(), path, err);
                return r == 0 ? put_off_voided(vm, job, err) : r;
        }
        return r == 0 && news ? sidecar_write(catalog, host_fs(), vm->id, err) : r;
}

/* The worker has read it. */
static int finish(struct vm *vm, struct merge_job *job, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        bool wanted = false;
        int r = find_parent(vm->broker->catalog, vm->sealing->path, &row, &wanted, err);

        if (r < 0)
                return r;
        if (!wanted)
                return drop(vm, job, err);
        if (!is_what_was_read(&row, vm->sealing))
                return set_failed(vm, job, ESTALE,
                        "the image was changed while it was sealed; nobody but the daemon may "
                        "write to it",
                        err);
        return put_in_place(vm, job, err);
}

/* ---- beginning ---- */

/* What else is to be done comes first. */
static bool is_busy(const struct merge_jobs *jobs)
{
        for (size_t i = 0; i < jobs->n; i++)
                if (merge_job_is(&jobs->items[i], JOB_RUNNING) ||
                        merge_job_is(&jobs->items[i], JOB_FINISHING))
                        return true;
        return false;
}

/* It is going to be merged: sealing it would be for nothing. A hidden image that is below it, and may go,
 * takes it along as its top. */
static bool is_to_be_merged(const struct merge_jobs *jobs, const struct image_row *row)
{
        for (size_t i = 0; i < jobs->n; i++) {
                const struct merge_job *job = &jobs->items[i];
                const char *image = merge_job_text(job, "image");

                if (merge_job_is_compact(job) || merge_job_is(job, JOB_DONE))
                        continue;
                if (merge_job_touches(job, row->path))
                        return true;
                if (image && row->parent && strcmp(image, row->parent) == 0 &&
                        !merge_job_is_over(job) && !merge_job_flag(job, "stuck"))
                        return true;
        }
        return false;
}

static int open_and_begin(struct vm *vm, const struct merge_job *job, struct error *err)
{
        int64_t rate = merge_job_number(job, "rate");
        _cleanup_(image_chain_done) struct image_chain images = {0};
        char chain[80];
        int r = image_chain_get(vm->broker->catalog, vm->sealing->path, &images, err);

        snprintf(chain, sizeof(chain), OWN_CHAIN "%lld", (long long)job->row.id);
        if (r == 0)
                r = worker_chain_open(vm, chain, &images, false, err);
        if (r == 0)
                r = worker_call(vm, "seal.begin",
                        json_pack("{s:I, s:s, s:I}", "job", (json_int_t)job->row.id, "chain", chain,
                                "rate", (json_int_t)(rate ? rate : (int64_t)DEFAULT_RATE)),
                        WORKER_CALL_MS, NULL, err);
        return r;
}

static int begin(struct vm *vm, struct merge_job *job, const char *path, struct error *err)
{
        struct sealing *sealing = calloc(1, sizeof(*sealing));
        struct error why = ERROR_INIT;
        int r;

        if (sealing)
                sealing->path = strdup(path);
        if (!sealing || !sealing->path) {
                sealing_free(sealing);
                return fail(err, ENOMEM, "no memory for a seal");
        }
        sealing->job = job->row.id;
        snprintf(sealing->state, sizeof(sealing->state), JOB_RUNNING);
        set_sealing(vm, sealing); /* before: what the worker may write depends on it */
        r = open_and_begin(vm, job, &why);
        if (r == 0)
                return 0;
        if (r == -EHOSTDOWN || r == -ETIMEDOUT) {
                seals_forget(vm);
                *err = why;
                return r;
        }
        r = seals_stop(vm, err);
        if (r < 0)
                return r;
        if (why.code == EBUSY || why.code == ENOSPC || why.code == ENOMEM)
                return put_off(vm, job, why.message, err);
        return set_failed(vm, job, why.code, why.message, err);
}

/* 1: it runs, or is over: that was the step. */
static int try_begin(
        struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        const char *path = merge_job_text(job, "image");
        char sentence[ERROR_MESSAGE_MAX];
        bool wanted = false;
        int r = find_parent(vm->broker->catalog, path, &row, &wanted, err);

        if (r < 0)
                return r;
        if (!wanted) {
                r = drop(vm, job, err);
                return r < 0 ? r : 1;
        }
        if (merge_job_number(job, "not-before") > now_us())
                return 0;
        if (is_to_be_merged(jobs, &row))
                return wait_for(vm, job, "the image is to be merged", err);
        image_seal_warning(&row, sentence);
        r = sentence[0] ? set_failed(vm, job, ESTALE, sentence, err) : begin(vm, job, path, err);
        return r < 0 ? r : 1;
}

static int follow(struct vm *vm, const struct merge_jobs *seals, struct error *err)
{
        struct merge_job *job = merge_jobs_find(seals, vm->sealing->job);
        bool done, failed;
        int r;

        pthread_mutex_lock(&vm->vms->lock);
        done = strcmp(vm->sealing->state, JOB_DONE) == 0;
        failed = strcmp(vm->sealing->state, JOB_FAILED) == 0;
        pthread_mutex_unlock(&vm->vms->lock);
        if (!done && !failed && job)
                return 0;
        r = end_in_worker(vm, err);
        if (r == 0 && done && job)
                r = finish(vm, job, err);
        else if (r == 0 && failed && job && vm->sealing->code == EBUSY)
                r = put_off(vm, job, vm->sealing->error ? vm->sealing->error : "", err);
        else if (r == 0 && failed && job)
                r = set_failed(vm, job, vm->sealing->code,
                        vm->sealing->error ? vm->sealing->error : "it failed", err);
        seals_forget(vm);
        if (r == 0 && vm->up)
                r = worker_grants_renew(vm, err);
        return r < 0 ? r : 1;
}

int seals_advance(struct vm *vm, const struct merge_jobs *jobs, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs seals = {0};
        int r = load_jobs(vm->broker->catalog, vm->id, &seals, err);

        if (r < 0)
                return r;
        if (vm->sealing)
                return follow(vm, &seals, err);
        if (is_busy(jobs))
                return 0;
        for (size_t i = 0; r == 0 && i < seals.n; i++)
                if (merge_job_is(&seals.items[i], JOB_WAITING))
                        r = try_begin(vm, jobs, &seals.items[i], err);
        return r;
}

void seals_sweep(struct broker *broker)
{
        _cleanup_(merge_jobs_done) struct merge_jobs seals = {0};
        json_auto_t *seen = json_array();

        if (load_jobs(broker->catalog, NULL, &seals, NULL) < 0)
                return;
        for (size_t i = 0; i < seals.n; i++) {
                const struct merge_job *job = &seals.items[i];
                _cleanup_(vm_unrefp) struct vm *vm = NULL;

                if (!merge_job_is(job, JOB_WAITING) || json_has_text(seen, job->row.vm))
                        continue;
                json_array_append_new(seen, json_string(job->row.vm));
                if (vm_peek(broker, job->row.vm, &vm, NULL, NULL) == 0)
                        merges_kick(vm);
        }
}

/* ---- people ---- */

static int set_rate(struct vm *vm, struct merge_job *job, uint64_t rate, struct error *err)
{
        json_object_set_new(job->payload, "rate", json_integer((json_int_t)rate));
        if (!vm->sealing || vm->sealing->job != job->row.id)
                return 0;
        return worker_call(vm, "seal.limit",
                json_pack("{s:I, s:I}", "job", (json_int_t)job->row.id, "rate",
                        (json_int_t)(rate ? rate : DEFAULT_RATE)),
                WORKER_CALL_MS, NULL, err);
}

static int change(
        struct vm *vm, struct merge_job *job, const char *verb, uint64_t rate, struct error *err)
{
        if (strcmp(verb, "limit") == 0)
                return set_rate(vm, job, rate, err);
        if (strcmp(verb, "resume") == 0) {
                if (!vm->sealing || vm->sealing->job != job->row.id)
                        merge_job_set(job, JOB_WAITING);
                merge_job_set_text(job, "error", NULL);
                merge_job_set_text(job, "reason", NULL);
                json_object_del(job->payload, "code");
                json_object_del(job->payload, "not-before");
                merges_kick(vm);
                return 0;
        }
        merge_job_set(job, strcmp(verb, "pause") == 0 ? JOB_PAUSED : JOB_CANCELLED);
        return vm->sealing && vm->sealing->job == job->row.id ? seals_stop(vm, err) : 0;
}

int seals_change(struct vm *vm, const struct job_row *row, const char *verb, uint64_t rate,
        struct job_row *ret, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        struct merge_job *job;
        int r = load_jobs(vm->broker->catalog, vm->id, &jobs, err);

        if (r < 0)
                return r;
        job = merge_jobs_find(&jobs, row->id);
        if (!job)
                return fail(err, ENOENT, "there is no job %lld", (long long)row->id);
        r = change(vm, job, verb, rate, err);
        if (r == 0)
                r = save(vm, job, err);
        return r == 0 ? catalog_job_find(vm->broker->catalog, row->id, ret, err) : r;
}
