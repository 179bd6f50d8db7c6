/* SPDX-License-Identifier: Apache-2.0 */
/* jobs.c - job.*: long work as people see it. All of it is merges
 * (merges.h), compactions (compacts.h), exports and imports (transfers.h), and seals (seals.h), which are
 * shown to those who ask for all. */
#include <string.h>

#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/transfers.h"
#include "vhdd/daemon/vms.h"

static int job_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        const char *name = param_text(params, "vm");
        bool all = param_bool(params, "all");
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        struct job_row *rows = NULL;
        size_t n = 0;
        int r = name ? vm_peek(broker, name, &vm, NULL, err) : 0;

        if (r == 0)
                r = catalog_job_list(broker->catalog, vm ? vm->id : NULL, &rows, &n, err);
        if (r < 0)
                return r;
        *ret = json_array();
        for (size_t i = 0; *ret && i < n; i++)
                if (all || !job_is_quiet(&rows[i]))
                        json_array_append_new(*ret, merge_job_to_json(broker, &rows[i]));
        job_rows_free(rows, n);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int find_row(struct broker *broker, json_int_t id, struct job_row *ret, struct error *err)
{
        int r = catalog_job_find(broker->catalog, id, ret, err);

        if (r != -ENOENT)
                return r;
        error_clear(err);
        fail(err, ENOENT, "there is no job %" JSON_INTEGER_FORMAT, id);
        error_set_hint(err, "vhdctl job list");
        return -ENOENT;
}

static int job_show(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(job_row_done) struct job_row row = {0};
        int r = find_row(broker, param_int(params, "id", 0), &row, err);

        if (r < 0)
                return r;
        *ret = merge_job_to_json(broker, &row);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

/* ---- verbs that change one ---- */

struct changing {
        struct vm *vm;
        struct job_row row;
        struct merge_jobs jobs;
        struct merge_job *job;
};

static void changing_done(struct changing *changing)
{
        merge_jobs_done(&changing->jobs);
        job_row_done(&changing->row);
        vm_release(changing->vm);
}

/* One that goes with another's run is that one, for everybody who wants to change it. */
static int find_leader(struct changing *changing, int64_t id, struct error *err)
{
        const struct merge_job *leader;
        int64_t of;

        changing->job = merge_jobs_find(&changing->jobs, id);
        if (!changing->job)
                return fail(err, ENOENT, "there is no job %lld", (long long)id);
        of = merge_job_number(changing->job, "leader");
        leader = of ? merge_jobs_find(&changing->jobs, of) : NULL;
        if (leader && merge_job_run(leader) && !merge_job_is(leader, JOB_DONE))
                changing->job = merge_jobs_find(&changing->jobs, of);
        return 0;
}

static int begin_change(
        struct broker *broker, const json_t *params, struct changing *changing, struct error *err)
{
        struct job_row *row = &changing->row;
        int r = find_row(broker, param_int(params, "id", 0), row, err);

        if (r == 0)
                r = vm_get(broker, row->vm, &changing->vm, NULL, err);
        if (r < 0 || job_is_seal(row))
                return r;
        r = merge_jobs_load_all(broker->catalog, row->vm, &changing->jobs, err);
        return r == 0 ? find_leader(changing, row->id, err) : r;
}

static int end_change(
        struct broker *broker, struct changing *changing, json_t **ret, struct error *err)
{
        *ret = merge_job_to_json(broker, changing->job ? &changing->job->row : &changing->row);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

/* A seal is carried out by others than a merge, and has no leader. */
static int change_seal(
        struct changing *changing, const char *verb, const json_t *params, struct error *err)
{
        struct job_row row = {0};
        int r = seals_change(changing->vm, &changing->row, verb,
                (uint64_t)param_int(params, "rate", 0), &row, err);

        if (r < 0)
                return r;
        job_row_done(&changing->row);
        changing->row = row;
        return 0;
}

static int change_merge(
        struct changing *changing, const char *verb, const json_t *params, struct error *err)
{
        if (strcmp(verb, "pause") == 0)
                return merges_pause(changing->vm, changing->job, err);
        if (strcmp(verb, "resume") == 0)
                return merges_resume(changing->vm, changing->job, param_bool(params, "force"), err);
        if (strcmp(verb, "cancel") == 0)
                return merges_cancel(changing->vm, changing->job, err);
        return merges_limit(
                changing->vm, changing->job, (uint64_t)param_int(params, "rate", 0), err);
}

/* It asks no vm's lock: the one that works may have it. */
static int change_transfer(struct broker *broker, const struct job_row *row, const char *verb,
        const json_t *params, json_t **ret, struct error *err)
{
        int r = param_bool(params, "dry-run")
                ? 0
                : transfer_change(broker, row, verb, (uint64_t)param_int(params, "rate", 0), err);

        if (r < 0)
                return r;
        *ret = merge_job_to_json(broker, row);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int change(struct broker *broker, const char *verb, const json_t *params, json_t **ret,
        struct error *err)
{
        _cleanup_(changing_done) struct changing changing = {0};
        _cleanup_(job_row_done) struct job_row row = {0};
        int r = find_row(broker, param_int(params, "id", 0), &row, err);

        if (r == 0 && job_is_transfer(&row))
                return change_transfer(broker, &row, verb, params, ret, err);
        if (r == 0)
                r = begin_change(broker, params, &changing, err);
        if (r == 0 && !param_bool(params, "dry-run"))
                r = changing.job ? change_merge(&changing, verb, params, err)
                                 : change_seal(&changing, verb, params, err);
        return r == 0 ? end_change(broker, &changing, ret, err) : r;
}

static int job_pause(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        return change(broker, "pause", params, ret, err);
}

static int job_resume(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        return change(broker, "resume", params, ret, err);
}

static int job_cancel(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        return change(broker, "cancel", params, ret, err);
}

static int job_limit(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        return change(broker, "limit", params, ret, err);
}

const struct method job_methods[] = {
        {"job.list", job_list, false},
        {"job.show", job_show, false},
        {"job.pause", job_pause, true},
        {"job.resume", job_resume, true},
        {"job.cancel", job_cancel, true},
        {"job.limit", job_limit, true},
        {NULL, NULL, false},
};
