/* SPDX-License-Identifier: Apache-2.0 */
/* jobs.c - job.*: long work as people see it. All of it is merges
 * (merges.h) and compactions (compacts.h). */
#include <string.h>

#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/vms.h"

static int job_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        const char *name = param_text(params, "vm");
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
        struct merge_jobs jobs;
        struct merge_job *job;
};

static void changing_done(struct changing *changing)
{
        merge_jobs_done(&changing->jobs);
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
        _cleanup_(job_row_done) struct job_row row = {0};
        int r = find_row(broker, param_int(params, "id", 0), &row, err);

        if (r == 0)
                r = vm_get(broker, row.vm, &changing->vm, NULL, err);
        if (r == 0)
                r = merge_jobs_load_all(broker->catalog, row.vm, &changing->jobs, err);
        return r == 0 ? find_leader(changing, row.id, err) : r;
}

static int end_change(
        struct broker *broker, struct changing *changing, json_t **ret, struct error *err)
{
        *ret = merge_job_to_json(broker, &changing->job->row);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int job_pause(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(changing_done) struct changing changing = {0};
        int r = begin_change(broker, params, &changing, err);

        if (r == 0 && !param_bool(params, "dry-run"))
                r = merges_pause(changing.vm, changing.job, err);
        return r == 0 ? end_change(broker, &changing, ret, err) : r;
}

static int job_resume(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(changing_done) struct changing changing = {0};
        int r = begin_change(broker, params, &changing, err);

        if (r == 0 && !param_bool(params, "dry-run"))
                r = merges_resume(changing.vm, changing.job, param_bool(params, "force"), err);
        return r == 0 ? end_change(broker, &changing, ret, err) : r;
}

static int job_cancel(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(changing_done) struct changing changing = {0};
        int r = begin_change(broker, params, &changing, err);

        if (r == 0 && !param_bool(params, "dry-run"))
                r = merges_cancel(changing.vm, changing.job, err);
        return r == 0 ? end_change(broker, &changing, ret, err) : r;
}

static int job_limit(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(changing_done) struct changing changing = {0};
        int r = begin_change(broker, params, &changing, err);

        if (r == 0 && !param_bool(params, "dry-run"))
                r = merges_limit(
                        changing.vm, changing.job, (uint64_t)param_int(params, "rate", 0), err);
        return r == 0 ? end_change(broker, &changing, ret, err) : r;
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
