/* SPDX-License-Identifier: Apache-2.0 */
/* What is known of merges that run, and what is said of them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "vhdd/daemon/images.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/transfers.h"

#define SPACE_MORE (UINT64_C(32) << 20) /* so much more must be free than when it ran out */

/* ---- what the worker told ---- */

static struct merging *find_locked(const struct vm *vm, int64_t job)
{
        for (struct merging *at = vm->mergings; at; at = at->next)
                if (at->job == job)
                        return at;
        return NULL;
}

bool merges_look(struct vm *vm, int64_t job, struct merging *ret)
{
        const struct merging *merging;

        MUTEX_GUARD(&vm->vms->lock);
        merging = find_locked(vm, job);
        if (!merging)
                return false;
        *ret = *merging;
        ret->next = NULL;
        ret->error = NULL;
        return true;
}

/* The sentence of its failure; allocated. */
char *merging_error(struct vm *vm, int64_t job)
{
        const struct merging *merging;

        MUTEX_GUARD(&vm->vms->lock);
        merging = find_locked(vm, job);
        return merging && merging->error ? strdup(merging->error) : NULL;
}

static void take_in(struct merging *merging, const json_t *said)
{
        const char *state = param_text(said, "state"), *error = param_text(said, "error");

        snprintf(merging->state, sizeof(merging->state), "%s", state ? state : "running");
        merging->done = (uint64_t)param_int(said, "bytes-done", 0);
        merging->total = (uint64_t)param_int(said, "bytes-total", 0);
        merging->speed = (uint64_t)param_int(said, "speed", 0);
        merging->code = (int)param_int(said, "code", 0);
        free(merging->error);
        merging->error = error ? strdup(error) : NULL;
}

int merging_remember(
        struct vm *vm, int64_t job, const char *chain, const json_t *said, struct error *err)
{
        struct merging *merging;

        MUTEX_GUARD(&vm->vms->lock);
        merging = find_locked(vm, job);
        if (!merging) {
                merging = calloc(1, sizeof(*merging));
                if (!merging)
                        return fail(err, ENOMEM, "no memory for a merge");
                merging->job = job;
                merging->next = vm->mergings;
                vm->mergings = merging;
        }
        snprintf(merging->chain, sizeof(merging->chain), "%s", chain);
        take_in(merging, said);
        return 0;
}

void merging_set_total(struct vm *vm, int64_t job, uint64_t total)
{
        struct merging *merging;

        MUTEX_GUARD(&vm->vms->lock);
        merging = find_locked(vm, job);
        if (merging && merging->total == 0)
                merging->total = total;
}

/* @job 0: those of @chain; both none: all. */
void merging_forget(struct vm *vm, int64_t job, const char *chain)
{
        MUTEX_GUARD(&vm->vms->lock);
        for (struct merging **at = &vm->mergings; *at;) {
                struct merging *merging = *at;

                if ((job && merging->job != job) || (chain && strcmp(merging->chain, chain) != 0)) {
                        at = &merging->next;
                        continue;
                }
                *at = merging->next;
                free(merging->error);
                free(merging);
        }
}

void merges_forget(struct vm *vm, const char *chain)
{
        merging_forget(vm, 0, chain);
}

bool merging_on_chain(struct vm *vm, const char *chain, int64_t *ret_job)
{
        MUTEX_GUARD(&vm->vms->lock);
        for (struct merging *at = vm->mergings; at; at = at->next)
                if (strcmp(at->chain, chain) == 0) {
                        *ret_job = at->job;
                        return true;
                }
        return false;
}

void merges_event(struct vm *vm, const json_t *event)
{
        _cleanup_(job_row_done) struct job_row row = {0};
        int64_t job = param_int(event, "job", 0);
        const char *what = param_text(event, "what");
        struct merging *merging;
        bool known;

        pthread_mutex_lock(&vm->vms->lock);
        merging = find_locked(vm, job);
        known = merging != NULL;
        if (known)
                take_in(merging, event);
        pthread_mutex_unlock(&vm->vms->lock);
        if (!known || !what)
                return;
        if (strcmp(what, "progress") != 0)
                merges_kick(vm);
        else if (catalog_job_find(vm->broker->catalog, job, &row, NULL) == 0)
                merges_publish(vm, &row);
}

/* ---- which files ---- */

bool merges_write(const struct vm *vm, const char *path)
{
        return json_has_text(vm->merge_paths, path);
}

void merges_add_paths(json_t *list, const json_t *more)
{
        json_t *item;
        size_t i;

        json_array_foreach((json_t *)more, i, item)
        {
                if (json_is_string(item) && !json_has_text(list, json_string_value(item)))
                        json_array_append(list, item);
        }
}

/* Whoever stands on the top is relinked in the end. */
static void add_children(struct vm *vm, const char *top, json_t *list)
{
        struct image_row *rows = NULL;
        size_t n = 0;

        if (!top || catalog_image_children(vm->broker->catalog, top, &rows, &n, NULL) < 0)
                return;
        for (size_t i = 0; i < n; i++)
                json_array_append_new(list, json_string(rows[i].path));
        image_rows_free(rows, n);
}

/* Those of every run that was begun: a death may have left them an intent, or a redo file, to complete. */
void merges_find_paths(struct vm *vm, const struct merge_jobs *jobs)
{
        json_t *list = json_array();
        bool any = false;

        for (size_t i = 0; i < jobs->n; i++) {
                const json_t *run = merge_job_run(&jobs->items[i]);

                any = any || !merge_job_is(&jobs->items[i], JOB_DONE);
                if (!run || merge_job_is(&jobs->items[i], JOB_DONE))
                        continue;
                merges_add_paths(list, json_object_get(run, "images"));
                if (json_is_string(json_object_get(run, "destination")))
                        json_array_append(list, json_object_get(run, "destination"));
                add_children(vm, json_string_value(json_object_get(run, "top")), list);
                merges_add_paths(list, json_object_get(run, "moved"));
        }
        json_decref(vm->merge_paths);
        vm->merge_paths = list;
        vm->has_merges = any;
}

int merges_refresh_paths(struct vm *vm, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load_all(vm->broker->catalog, vm->id, &jobs, err);

        if (r == 0)
                merges_find_paths(vm, &jobs);
        return r;
}

/* ---- telling ---- */

void merges_publish(struct vm *vm, const struct job_row *row)
{
        json_t *event = merge_job_to_json(vm->broker, row);

        if (!event)
                return;
        json_object_set_new(event, "vm-id", json_string(vm->id));
        broker_publish(vm->broker, "job", event);
}

int merges_save(struct vm *vm, struct merge_job *job, struct error *err)
{
        int r = merge_job_save(vm->broker->catalog, job, err);

        if (r == 0)
                merges_publish(vm, &job->row);
        return r;
}

/* It waits, and for what: written down when that is news. @stuck: for nothing that comes by itself. */
int merges_wait_for(
        struct vm *vm, struct merge_job *job, bool stuck, const char *reason, struct error *err)
{
        const char *old = merge_job_text(job, "reason");

        if (merge_job_is(job, JOB_WAITING) && old && strcmp(old, reason) == 0 &&
                merge_job_flag(job, "stuck") == stuck) /* what it waits for may be stuck since */
                return 0;
        merge_job_set(job, JOB_WAITING);
        merge_job_set_text(job, "reason", reason);
        json_object_set_new(job->payload, "stuck", json_boolean(stuck));
        return merges_save(vm, job, err);
}

static int set_failed(
        struct vm *vm, struct merge_job *job, int code, const char *why, struct error *err)
{
        merge_job_set(job, JOB_FAILED);
        merge_job_set_text(job, "error", why);
        json_object_set_new(job->payload, "code", json_integer(code));
        broker_log(vm->broker, BROKER_LOG_ERROR, vm->id, "job %lld failed: %s",
                (long long)job->row.id, why);
        return merges_save(vm, job, err);
}

void merges_keep_progress(struct merge_job *job, const struct merging *merging)
{
        json_object_set_new(job->payload, "done", json_integer((json_int_t)merging->done));
        json_object_set_new(job->payload, "total", json_integer((json_int_t)merging->total));
}

/* ---- space ---- */

static uint64_t free_bytes(const char *path)
{
        struct statvfs fs;

        return path && statvfs(path, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;
}

const char *merge_job_destination(const struct merge_job *job)
{
        return json_string_value(json_object_get(merge_job_run(job), "destination"));
}

/* Whose file system it needs space on. */
static const char *grows(const struct merge_job *job)
{
        return merge_job_is_compact(job) ? merge_job_text(job, "image")
                                         : merge_job_destination(job);
}

static int set_full(struct vm *vm, struct merge_job *job, const char *why, struct error *err)
{
        merge_job_set(job, JOB_PAUSED);
        merge_job_set_text(job, "error", why);
        json_object_set_new(job->payload, "code", json_integer(ENOSPC));
        json_object_set_new(
                job->payload, "space", json_integer((json_int_t)free_bytes(grows(job))));
        broker_log(vm->broker, BROKER_LOG_WARNING, vm->id, "job %lld is paused: %s",
                (long long)job->row.id, why);
        vm_publish(vm, "disk-full",
                json_pack("{s:I, s:s?, s:s}", "job", (json_int_t)job->row.id, "file", grows(job),
                        "message", why));
        return merges_save(vm, job, err);
}

bool merges_have_space(const struct merge_job *job)
{
        const json_t *space = json_object_get(job->payload, "space");

        return json_is_integer(space) &&
                free_bytes(grows(job)) >= (uint64_t)json_integer_value(space) + SPACE_MORE;
}

void merge_job_clear_failure(struct merge_job *job)
{
        merge_job_set_text(job, "error", NULL);
        merge_job_set_text(job, "reason", NULL);
        json_object_del(job->payload, "stuck");
        json_object_del(job->payload, "code");
        json_object_del(job->payload, "space");
}

/* What a call to the worker, or the engine in it, came back with. */
int merges_note_failure(
        struct vm *vm, struct merge_job *job, int code, const char *why, struct error *err)
{
        if (code == ENOSPC || code == EDQUOT)
                return set_full(vm, job, why, err);
        return set_failed(vm, job, code, why, err);
}

/* ---- as JSON ---- */

static void describe(const struct merge_job *job, char *ret, size_t size)
{
        const json_t *run = merge_job_run(job);
        const char *image = merge_job_text(job, "image"), *reason = merge_job_text(job, "reason");
        const char *destination = merge_job_destination(job);
        int64_t leader = merge_job_number(job, "leader");

        if (job_is_seal(&job->row))
                snprintf(ret, size, "seal '%s'%s%s", image, reason ? "; it waits: " : "",
                        reason ? reason : "");
        else if (merge_job_is_compact(job))
                snprintf(ret, size, "compact '%s'%s%s", image, reason ? "; it waits: " : "",
                        reason ? reason : "");
        else if (run && json_is_true(json_object_get(run, "shared")))
                snprintf(ret, size, "copy '%s' into '%s', which stands on it", image, destination);
        else if (run)
                snprintf(ret, size, "merge %zu image%s into '%s'",
                        json_array_size(json_object_get(run, "images")),
                        json_array_size(json_object_get(run, "images")) == 1 ? "" : "s",
                        destination);
        else if (leader)
                snprintf(ret, size, "merge '%s', together with job %lld", image, (long long)leader);
        else if (reason)
                snprintf(ret, size, "merge '%s'; it waits: %s", image, reason);
        else
                snprintf(ret, size, "merge '%s'", image);
}

static void add_numbers(
        struct broker *broker, const struct merge_job *job, struct vm *vm, json_t *object)
{
        uint64_t done = (uint64_t)merge_job_number(job, "done");
        uint64_t total = (uint64_t)merge_job_number(job, "total");
        struct merging merging = {0};

        if (vm &&
                (seals_look(vm, job->row.id, &merging) ||
                        (merges_look(vm, job->row.id, &merging) && merge_job_run(job)))) {
                done = merging.done;
                total = merging.total;
        }
        if (merge_job_is(job, JOB_DONE))
                done = total;
        json_object_set_new(object, "done", json_integer((json_int_t)done));
        json_object_set_new(object, "total", json_integer((json_int_t)total));
        json_object_set_new(object, "rate", json_integer((json_int_t)merging.speed));
        json_object_set_new(object, "seconds-left",
                merging.speed > 0 && total > done
                        ? json_integer((json_int_t)((total - done) / merging.speed))
                        : json_null());
        json_object_set_new(object, "limit", json_integer(merge_job_number(job, "rate")));
}

/* One that goes together with another waits for what that one waits for. */
static bool is_stuck(struct broker *broker, const struct merge_job *job)
{
        int64_t leader = merge_job_number(job, "leader");
        _cleanup_(job_row_done) struct job_row row = {0};
        json_auto_t *payload = NULL;

        if (!merge_job_is(job, JOB_WAITING))
                return false;
        if (leader == 0 || catalog_job_find(broker->catalog, leader, &row, NULL) < 0)
                return merge_job_flag(job, "stuck");
        payload = json_loads(row.payload, 0, NULL);
        return strcmp(row.state, JOB_WAITING) == 0 &&
                json_is_true(json_object_get(payload, "stuck"));
}

json_t *merge_job_to_json(struct broker *broker, const struct job_row *row)
{
        json_auto_t *payload = json_loads(row->payload, 0, NULL);
        const struct merge_job job = {*row, payload};
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row vm_row = {0};
        const json_t *run = merge_job_run(&job);
        bool finishing = merge_job_is(&job, JOB_FINISHING) || merge_job_flag(&job, "ending");
        struct merging merging;
        char time[TIME_TEXT_MAX], what[2400];
        json_t *object;

        if (job_is_transfer(row))
                return transfer_to_json(broker, row);
        (void)vm_peek(broker, row->vm, &vm, &vm_row, NULL);
        if (vm && seals_look(vm, row->id, &merging))
                finishing = true; /* the catalog says that it waits */
        describe(&job, what, sizeof(what));
        object = json_pack("{s:I, s:s, s:s?, s:s, s:s, s:s, s:s?, s:s?, s:s?}", "id",
                (json_int_t)row->id, "kind", row->kind, "vm", vm_row.name, "state",
                finishing ? JOB_RUNNING : row->state, "created",
                time_to_text(row->created_us, time), "what", what, "file",
                merge_job_text(&job, "image"), "error", merge_job_text(&job, "error"), "reason",
                merge_job_text(&job, "reason"));
        if (!object)
                return NULL;
        add_numbers(broker, &job, vm, object);
        json_object_set_new(object, "stuck", json_boolean(is_stuck(broker, &job)));
        if (merge_job_is_compact(&job) || job_is_seal(row))
                return object;
        json_object_set_new(object, "merge",
                json_string(
                        merge_job_text(&job, "merge") ? merge_job_text(&job, "merge") : "live"));
        if (run) {
                json_object_set(object, "direction", json_object_get(run, "direction"));
                json_object_set(object, "destination", json_object_get(run, "destination"));
                json_object_set(object, "images", json_object_get(run, "images"));
        }
        return object;
}
