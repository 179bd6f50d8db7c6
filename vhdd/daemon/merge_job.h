/* SPDX-License-Identifier: Apache-2.0 */
/* merge_job.h - what the catalog knows of a merge or a compaction: a job's row, its JSON read. Of a merge
 * (of the other, compacts.h):
 *
 *      {"image": PATH             the hidden image that is to go (E12: no point in time any more)
 *       "merge": "live" | "deferred", "push": bool, "force": bool, "rate": bytes a second
 *       "leader": ID              it goes with that job's run
 *       "reason": TEXT            why it waits; "stuck": bool   for nothing that comes by itself     "error": TEXT, "code": ERRNO     why it failed
 *       "space": bytes            it is paused because so few were free
 *       "done": N, "total": N     bytes, as last told
 *       "ended": TIME (_us), "ending": bool   it is done, and files are still to be removed
 *       "run": {"hidden": [PATH]  lowest first     "top": PATH   stands on them, and stays as it reads
 *               "images": [PATH]  who goes         "destination": PATH   whose file stays
 *               "direction": "up" | "down", "new-id": ID, "shared": bool,
 *               "moved": [PATH]   of an end that was cut off: children that stand on "destination" already,
 *                                 to whose heads something may still be to be completed}}
 *
 *      waiting --> running --> finishing --> done
 *        ^   ^      |   ^ \
 *        |   |pause v   |  \--> failed --job.resume--> running
 *        |   +--- paused   cancelled --job.resume--> waiting
 *
 * From the moment that "run" is written the files may be marked as in a merge: it stays what it is until
 * it is done, whatever the state; and whoever goes on begins with it.
 *
 * Units      bytes, microseconds since 1970.
 * Ownership  merge_jobs_load hands out, merge_jobs_done ends. Texts live as long as their job.
 * Errors     0 or -errno with one sentence.
 * Threads    as the catalog's.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "vhdd/daemon/catalog.h"

#define JOB_MERGE     "merge"
#define JOB_COMPACT   "compact"
#define JOB_WAITING   "waiting"
#define JOB_RUNNING   "running"
#define JOB_FINISHING "finishing" /* the worker may have done it: who comes next finds out */
#define JOB_PAUSED    "paused"
#define JOB_FAILED    "failed"
#define JOB_CANCELLED "cancelled"
#define JOB_DONE      "done"

struct merge_job {
        struct job_row row;
        json_t *payload;
};

struct merge_jobs {
        struct merge_job *items;
        size_t n;
};

/* Takes the row over, and reads its JSON. */
int merge_job_read(struct job_row *row, struct merge_job *ret, struct error *err);
/* The merges of one vm, or of all (@vm NULL); oldest first. */
int merge_jobs_load(
        struct catalog *catalog, const char *vm, struct merge_jobs *ret, struct error *err);
/* The same with compactions. */
int merge_jobs_load_all(
        struct catalog *catalog, const char *vm, struct merge_jobs *ret, struct error *err);
/* Any that are kept as these are, by their rows. */
int merge_jobs_load_if(struct catalog *catalog, const char *vm,
        bool (*wanted)(const struct job_row *row), struct merge_jobs *ret, struct error *err);
void merge_jobs_done(struct merge_jobs *jobs);
/* By its number, or NULL. */
struct merge_job *merge_jobs_find(const struct merge_jobs *jobs, int64_t id);
/* Writes state and payload down. */
int merge_job_save(struct catalog *catalog, struct merge_job *job, struct error *err);

bool merge_job_is_compact(const struct merge_job *job);
bool merge_job_is(const struct merge_job *job, const char *state);
void merge_job_set(struct merge_job *job, const char *state);
/* NULL: none. */
const char *merge_job_text(const struct merge_job *job, const char *key);
int64_t merge_job_number(const struct merge_job *job, const char *key);
bool merge_job_flag(const struct merge_job *job, const char *key);
/* NULL as @text takes the key away. */
void merge_job_set_text(struct merge_job *job, const char *key, const char *text);

/* NULL: it was never begun. */
json_t *merge_job_run(const struct merge_job *job);
/* Is @path in its run: hidden, top, who goes, or who stays? */
bool merge_job_touches(const struct merge_job *job, const char *path);
/* A worker moves its blocks, or may be asked to go on: what it has to do with must not be taken away. */
bool merge_job_is_active(const struct merge_job *job);
/* Done, failed or cancelled: nothing happens by itself any more. */
bool merge_job_is_over(const struct merge_job *job);

/* Is @path part of a merge that is active? @but: one of that vm does not count; NULL: all do. */
int merge_jobs_hold(
        struct catalog *catalog, const char *but, const char *path, bool *ret, struct error *err);
/* The same of one whose files may be marked as in a merge, active or not. */
int merge_jobs_have_begun(struct catalog *catalog, const char *path, bool *ret, struct error *err);

/* Every text in @json, however deep, that is @old becomes @new. Answers how many. */
size_t json_replace_text(json_t *json, const char *old, const char *new);
