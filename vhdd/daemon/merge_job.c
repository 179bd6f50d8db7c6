/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/params.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON ---- */

static size_t replace_one(json_t *value, const char *old, const char *new)
{
        if (!json_is_string(value))
                return json_replace_text(value, old, new);
        if (strcmp(json_string_value(value), old) != 0)
                return 0;
        return json_string_set(value, new) == 0;
}

size_t json_replace_text(json_t *json, const char *old, const char *new)
{
        const char *key;
        json_t *value;
        size_t i, n = 0;

        if (json_is_array(json)) {
                json_array_foreach(json, i, value) n += replace_one(value, old, new);
        } else if (json_is_object(json)) {
                json_object_foreach(json, key, value) n += replace_one(value, old, new);
        }
        return n;
}

/* ---- rows ---- */

void merge_jobs_done(struct merge_jobs *jobs)
{
        for (size_t i = 0; i < jobs->n; i++) {
                json_decref(jobs->items[i].payload);
                job_row_done(&jobs->items[i].row);
        }
        free(jobs->items);
        *jobs = (struct merge_jobs){0};
}

int merge_job_read(struct job_row *row, struct merge_job *ret, struct error *err)
{
        *ret = (struct merge_job){.row = *row};
        *row = (struct job_row){0};
        ret->payload = json_loads(ret->row.payload, 0, NULL);
        if (json_is_object(ret->payload))
                return 0;
        return fail(err, EUCLEAN, "what the catalog says of job %lld is damaged",
                (long long)ret->row.id);
}

int merge_jobs_load_if(struct catalog *catalog, const char *vm,
        bool (*wanted)(const struct job_row *row), struct merge_jobs *ret, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        struct job_row *rows = NULL;
        size_t n = 0;
        int r = catalog_job_list(catalog, vm, &rows, &n, err);

        if (r < 0)
                return r;
        jobs.items = calloc(n + 1, sizeof(jobs.items[0]));
        if (!jobs.items)
                r = fail(err, ENOMEM, "no memory for a list of jobs");
        for (size_t i = 0; r == 0 && i < n; i++)
                if (wanted(&rows[i]))
                        r = merge_job_read(&rows[i], &jobs.items[jobs.n++], err);
        job_rows_free(rows, n);
        if (r < 0)
                return r;
        *ret = jobs;
        jobs = (struct merge_jobs){0};
        return 0;
}

static bool is_merge(const struct job_row *row)
{
        return strcmp(row->kind, JOB_MERGE) == 0;
}

static bool is_merge_or_compact(const struct job_row *row)
{
        return is_merge(row) || strcmp(row->kind, JOB_COMPACT) == 0;
}

int merge_jobs_load(
        struct catalog *catalog, const char *vm, struct merge_jobs *ret, struct error *err)
{
        return merge_jobs_load_if(catalog, vm, is_merge, ret, err);
}

int merge_jobs_load_all(
        struct catalog *catalog, const char *vm, struct merge_jobs *ret, struct error *err)
{
        return merge_jobs_load_if(catalog, vm, is_merge_or_compact, ret, err);
}

struct merge_job *merge_jobs_find(const struct merge_jobs *jobs, int64_t id)
{
        for (size_t i = 0; i < jobs->n; i++)
                if (jobs->items[i].row.id == id)
                        return &jobs->items[i];
        return NULL;
}

int merge_job_save(struct catalog *catalog, struct merge_job *job, struct error *err)
{
        char *text = json_dumps(job->payload, JSON_COMPACT);

        if (!text)
                return fail(err, ENOMEM, "no memory for a job");
        free(job->row.payload);
        job->row.payload = text;
        return catalog_job_update(catalog, &job->row, err);
}

/* ---- what it says ---- */

bool merge_job_is_compact(const struct merge_job *job)
{
        return strcmp(job->row.kind, JOB_COMPACT) == 0;
}

bool merge_job_is(const struct merge_job *job, const char *state)
{
        return strcmp(job->row.state, state) == 0;
}

void merge_job_set(struct merge_job *job, const char *state)
{
        snprintf(job->row.state, sizeof(job->row.state), "%s", state);
}

const char *merge_job_text(const struct merge_job *job, const char *key)
{
        return json_string_value(json_object_get(job->payload, key));
}

int64_t merge_job_number(const struct merge_job *job, const char *key)
{
        return json_integer_value(json_object_get(job->payload, key));
}

bool merge_job_flag(const struct merge_job *job, const char *key)
{
        return json_is_true(json_object_get(job->payload, key));
}

void merge_job_set_text(struct merge_job *job, const char *key, const char *text)
{
        if (text)
                json_object_set_new(job->payload, key, json_string(text));
        else
                json_object_del(job->payload, key);
}

json_t *merge_job_run(const struct merge_job *job)
{
        json_t *run = json_object_get(job->payload, "run");

        return json_is_object(run) ? run : NULL;
}

bool merge_job_touches(const struct merge_job *job, const char *path)
{
        const json_t *run = merge_job_run(job);
        const char *top = json_string_value(json_object_get(run, "top"));
        const char *destination = json_string_value(json_object_get(run, "destination"));

        if (!run)
                return false;
        return json_has_text(json_object_get(run, "hidden"), path) ||
                json_has_text(json_object_get(run, "images"), path) ||
                (top && strcmp(top, path) == 0) || (destination && strcmp(destination, path) == 0);
}

bool merge_job_is_active(const struct merge_job *job)
{
        return merge_job_run(job) &&
                (merge_job_is(job, JOB_RUNNING) || merge_job_is(job, JOB_FINISHING) ||
                        merge_job_is(job, JOB_PAUSED) || merge_job_is(job, JOB_FAILED));
}

bool merge_job_is_over(const struct merge_job *job)
{
        return merge_job_is(job, JOB_DONE) || merge_job_is(job, JOB_FAILED) ||
                merge_job_is(job, JOB_CANCELLED);
}

/* ---- who is held ---- */

static int look_for(struct catalog *catalog, const char *but, const char *path,
        bool (*counts)(const struct merge_job *job), bool *ret, struct error *err)
{
        _cleanup_(merge_jobs_done) struct merge_jobs jobs = {0};
        int r = merge_jobs_load(catalog, NULL, &jobs, err);

        *ret = false;
        for (size_t i = 0; r == 0 && i < jobs.n && !*ret; i++)
                *ret = counts(&jobs.items[i]) && merge_job_touches(&jobs.items[i], path) &&
                        !(but && strcmp(jobs.items[i].row.vm, but) == 0);
        return r;
}

static bool has_begun(const struct merge_job *job)
{
        return merge_job_run(job) && !merge_job_is(job, JOB_DONE);
}

int merge_jobs_hold(
        struct catalog *catalog, const char *but, const char *path, bool *ret, struct error *err)
{
        return look_for(catalog, but, path, merge_job_is_active, ret, err);
}

int merge_jobs_have_begun(struct catalog *catalog, const char *path, bool *ret, struct error *err)
{
        return look_for(catalog, NULL, path, has_begun, ret, err);
}
