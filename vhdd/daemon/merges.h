/* SPDX-License-Identifier: Apache-2.0 */
/* merges.h - the merges of a vm at work: begun, followed, finished, and begun again after a death.
 *
 * A job (merge_job.h) is the catalog's; the blocks are moved by the vm's worker (vhdd/worker/worker.h).
 * Here is what joins the two: a thread of its own takes the vm's lock, looks which jobs can go on, and
 * lets them; it is sent when something has changed (merges_kick), and now and then.
 *
 *      M1  a run is in the catalog before the worker is asked to begin it: whoever comes next knows which
 *          files may be marked, and goes on
 *      M2  "finishing" is in the catalog before the worker is asked to finish: whoever comes next asks the
 *          worker, or the files, whether it did (merges_adopt)
 *      M3  one transaction gives the rows of those that went to those that stay (disks, snapshots, children,
 *          an undo), and names the emptied files to the journal; after it they are unlinked
 *      M4  no image of a run that is active is given up by anybody else (merge_jobs_hold)
 *
 * Units      bytes, milliseconds.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held, but where it says otherwise.
 */
#pragma once

#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/vms.h"

/* What the worker last told of a merge. */
struct merging {
        struct merging *next;
        int64_t job;
        char chain[80];
        char state[12]; /* the worker's words: running, paused, failed, done, finished */
        uint64_t done, total, speed;
        char *error;
        int code;
};

/* Something may have changed: a thread is sent to look. Any thread. */
void merges_kick(struct vm *vm);
/* Now and then: every vm that has something to merge. Any thread, without locks. */
void merges_sweep(struct broker *broker);
/* {"event": "merge", ...} of the worker. On the link's thread. */
void merges_event(struct vm *vm, const json_t *event);

/* The worker said hello: what it merges is known from here on, and what a death cut off in its finish is
 * settled. Before its chains are compared with the catalog. */
int merges_adopt(struct vm *vm, const json_t *hello, struct error *err);
/* The chain was closed, and its merge with it; NULL: nothing runs any more. */
void merges_forget(struct vm *vm, const char *chain);
/* May a merge have to write to @path? */
bool merges_write(const struct vm *vm, const char *path);
/* Was the chain @name opened for a merge that is active? */
bool merges_own_chain(struct vm *vm, const char *name);

/* What the worker last told of the job; false: nothing. Any thread. *ret->error is not set. */
bool merges_look(struct vm *vm, int64_t job, struct merging *ret);

/* People's verbs. @job is saved. */
int merges_pause(struct vm *vm, struct merge_job *job, struct error *err);
int merges_resume(struct vm *vm, struct merge_job *job, bool force, struct error *err);
int merges_cancel(struct vm *vm, struct merge_job *job, struct error *err);
int merges_limit(struct vm *vm, struct merge_job *job, uint64_t rate, struct error *err);

/* The job as the API shows it. Any thread. NULL: no memory. */
json_t *merge_job_to_json(struct broker *broker, const struct job_row *row);
/* Tells those who subscribed how the job is. Any thread. */
void merges_publish(struct vm *vm, const struct job_row *row);

/* For a dry run. Inside the transaction that is rolled back: what would be asked of the worker; after it:
 * the answers, [{"destination", "direction", "images", "bytes"} or {"file", "reason"}]. */
int merges_preview(struct vm *vm, json_t **ret, struct error *err);
int merges_preview_ask(struct vm *vm, const json_t *questions, json_t **ret, struct error *err);
