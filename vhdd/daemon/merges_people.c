/* SPDX-License-Identifier: Apache-2.0 */
/* What people ask of merges: to pause, to go on, to stop; and what would be merged. */
#include <stdio.h>
#include <string.h>

#include "vhdd/daemon/hidden.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/worker_link.h"

/* ---- people's verbs ---- */

static int still_open(const struct merge_job *job, const char *verb, struct error *err)
{
        if (!merge_job_is(job, JOB_DONE))
                return 0;
        return fail(err, EINVAL, "job %lld is done: there is nothing to %s", (long long)job->row.id,
                verb);
}

/* What of its end was done is not known until the worker is there again. */
static int not_ending(const struct merge_job *job, const char *verb, struct error *err)
{
        int r = still_open(job, verb, err);

        if (r < 0 || !merge_job_is(job, JOB_FINISHING))
                return r;
        return fail(err, EBUSY, "job %lld does not run any more: it is at its end",
                (long long)job->row.id);
}

int merges_pause(struct vm *vm, struct merge_job *job, struct error *err)
{
        struct merging merging;
        int r = not_ending(job, "pause", err);

        if (r < 0 || (merge_job_is(job, JOB_PAUSED) && !json_object_get(job->payload, "space")))
                return r;
        if (merge_job_is(job, JOB_CANCELLED) || merge_job_is(job, JOB_FAILED))
                return fail(err, EINVAL, "job %lld does not run", (long long)job->row.id);
        if (merges_look(vm, job->row.id, &merging)) {
                r = worker_call(vm, "merge.pause",
                        json_pack("{s:I}", "job", (json_int_t)job->row.id), WORKER_CALL_MS, NULL,
                        err);
                merges_keep_progress(job, &merging);
        }
        if (r < 0)
                return r;
        merge_job_clear_failure(job);
        merge_job_set(job, JOB_PAUSED);
        return merges_save(vm, job, err);
}

int merges_resume(struct vm *vm, struct merge_job *job, bool force, struct error *err)
{
        struct merging merging;
        int r = still_open(job, "resume", err);

        if (r < 0 || merge_job_is(job, JOB_FINISHING)) /* it goes on by itself */
                return r;
        json_object_set_new(job->payload, "force", json_boolean(force));
        /* Force is for a beginning; and one that failed in its end begins again. */
        if (merges_look(vm, job->row.id, &merging) && (force || merge_job_is(job, JOB_FAILED)))
                r = merges_end_in_worker(vm, job->row.id, err);
        if (r == 0 && (merge_job_is(job, JOB_WAITING) || merge_job_is(job, JOB_RUNNING)))
                r = merge_job_save(vm->broker->catalog, job, err);
        else if (r == 0)
                r = merges_resume_in_worker(vm, job, err);
        return r;
}

int merges_cancel(struct vm *vm, struct merge_job *job, struct error *err)
{
        struct merging merging;
        int r = not_ending(job, "cancel", err);

        if (r < 0 || merge_job_is(job, JOB_CANCELLED))
                return r;
        if (merges_look(vm, job->row.id, &merging)) {
                merges_keep_progress(job, &merging);
                r = merges_end_in_worker(vm, job->row.id, err);
        }
        if (r < 0)
                return r;
        merge_job_clear_failure(job);
        merge_job_set(job, JOB_CANCELLED);
        return merges_save(vm, job, err);
}

int merges_limit(struct vm *vm, struct merge_job *job, uint64_t rate, struct error *err)
{
        struct merging merging;
        int r = still_open(job, "limit", err);

        if (r < 0)
                return r;
        json_object_set_new(job->payload, "rate", json_integer((json_int_t)rate));
        r = merges_save(vm, job, err);
        if (r == 0 && merges_look(vm, job->row.id, &merging))
                r = worker_call(vm, "merge.limit",
                        json_pack("{s:I, s:I}", "job", (json_int_t)job->row.id, "rate",
                                (json_int_t)rate),
                        WORKER_CALL_MS, NULL, err);
        return r;
}

/* ---- a dry run ---- */

int merges_preview(struct vm *vm, json_t **ret, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        json_auto_t *joined = json_array(), *questions = json_array();
        int r = merge_jobs_load(vm->broker->catalog, vm->id, &jobs, err);

        for (size_t i = 0; r == 0 && i < jobs.n; i++) {
                _cleanup_(hidden_run_done) struct hidden_run run = {0};
                json_t *question, *id;
                bool is_joined = false;
                size_t k;

                json_array_foreach(joined, k, id) is_joined =
                        is_joined || json_integer_value(id) == jobs.items[i].row.id;
                if (is_joined || !merge_job_is(&jobs.items[i], JOB_WAITING) ||
                        merge_job_run(&jobs.items[i]))
                        continue;
                r = hidden_run_find(vm->broker->catalog, &jobs, &jobs.items[i], true, &run, err);
                if (r < 0)
                        break;
                json_array_extend(joined, run.jobs);
                question = json_pack("{s:s, s:s?, s:O, s:s?, s:b, s:s}", "file",
                        merge_job_text(&jobs.items[i], "image"), "reason",
                        run.top ? NULL : run.reason, "hidden", run.hidden, "top", run.top, "shared",
                        run.shared, "direction", run.direction);
                json_array_append_new(questions, question);
        }
        if (r == 0)
                *ret = json_incref(questions);
        return r;
}

int merges_preview_ask(struct vm *vm, const json_t *questions, json_t **ret, struct error *err)
{
        json_t *list = json_array(), *question;
        size_t i;
        int r = list ? 0 : fail(err, ENOMEM, "no memory for a plan");

        json_array_foreach((json_t *)questions, i, question)
        {
                char reason[HIDDEN_REASON_MAX] = "";
                struct error why = ERROR_INIT;
                json_t *answer = NULL;

                if (param_text(question, "reason")) {
                        json_array_append_new(list,
                                json_pack("{s:O, s:O}", "file", json_object_get(question, "file"),
                                        "reason", json_object_get(question, "reason")));
                        continue;
                }
                r = merges_ask_plan(vm, question, &answer, &why);
                if (r == 0)
                        r = merges_ask_strangers(vm, answer, reason, &why);
                if (r == 0 && reason[0])
                        r = fail(&why, EBUSY, "%s", reason);
                if (r == -EHOSTDOWN || r == -ETIMEDOUT) {
                        *err = why;
                        break;
                }
                if (r < 0) {
                        json_decref(answer);
                        answer = json_pack("{s:O, s:s}", "file", json_object_get(question, "file"),
                                "reason", why.message);
                }
                json_array_append_new(list, answer);
                r = 0;
        }
        if (r < 0) {
                json_decref(list);
                return r;
        }
        *ret = list;
        return 0;
}
