/* SPDX-License-Identifier: Apache-2.0 */
/* seals.h - images that became parents are summed, block by block, in the background.
 *
 * A snapshot notes of the image that it freezes how large and how old it is (struct image_row). That is
 * quick, and knows nothing of a byte that somebody changes without a trace. So a job of a third kind,
 * beside merges and compactions, has the worker read the image whole and write its seal
 * (chain/seal.h), at idle priority, slower when the guest waits, and only while nothing else is to be done:
 *
 *      {"image": PATH   "rate": bytes a second   "error": TEXT, "code": ERRNO   why it failed
 *       "reason": TEXT  what it waits for   "not-before": US   when it is tried again}
 *
 *      waiting --> (running: in the worker, never in the catalog) --> its row is deleted
 *        ^ |
 *        | +--> paused, failed, cancelled --job.resume--> waiting
 *
 *      S1  the seal is put in place by the broker, with the vm's lock held, when the image is what its row
 *          says and what the worker read; then the row gets what the seal says
 *      S2  a merge ends the seal that is being made, voids those of its images, and the jobs that
 *          would make them, in the transaction that makes it begin, and those of the children that it
 *          relinks in the one that makes it end; its end notes jobs for what is a parent still
 *      S3  an image that is opened to be written has no seal
 *
 * A job that a death cut off begins anew. When it is done nothing is left of it: what there is to see is
 * the seal.
 *
 * Units      bytes.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held, but where it says otherwise.
 */
#pragma once

#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/vms.h"

#define JOB_SEAL "seal"

struct merging;

/* ---- inside a transaction ---- */

/* The image is to be sealed, if it is a parent (or will be: a snapshot has it frozen) and nobody's leaf. */
int seals_note(struct catalog *catalog, const char *vm, const char *path, struct error *err);
/* What the row vouches for is not so any more, nor will a job vouch for it. */
int seals_void(struct catalog *catalog, const char *path, struct error *err);
/* The head of @path is going to be changed: its row vouches for nothing. A job that would make a seal stays.
 * Nothing if there is no row. */
int seals_clear(struct catalog *catalog, const char *path, struct error *err);

/* ---- the jobs at work ---- */

/* One step of the vm's: begun, ended, or put off. 1: once more. */
int seals_advance(struct vm *vm, const struct merge_jobs *jobs, struct error *err);
/* Ends the one that is being made, if there is one; its job is as one that has not begun. */
int seals_stop(struct vm *vm, struct error *err);
/* The worker has it no more. */
void seals_forget(struct vm *vm);
/* {"event": "seal", ...} of the worker. On the link's thread. */
void seals_event(struct vm *vm, const json_t *event);
/* Is the worker making the image's seal? */
bool seals_write(const struct vm *vm, const char *path);
/* Those that wait, now and then. Any thread, without locks. */
void seals_sweep(struct broker *broker);

/* The image is going to be opened for writing (S3). */
int seals_break(struct vm *vm, const struct image_row *row, struct error *err);

/* ---- people ---- */

bool job_is_seal(const struct job_row *row);
/* Nothing that people wait for, or have to do something about: not shown unless they ask for all. */
bool job_is_quiet(const struct job_row *row);
/* What the worker last told of the job; false: it is not being made. Any thread. */
bool seals_look(struct vm *vm, int64_t job, struct merging *ret);
/* @verb: "pause", "resume", "cancel", "limit" (@rate). Answers the job as it is then. */
int seals_change(struct vm *vm, const struct job_row *row, const char *verb, uint64_t rate,
        struct job_row *ret, struct error *err);
