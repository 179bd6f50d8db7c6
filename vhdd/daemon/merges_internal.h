/* SPDX-License-Identifier: Apache-2.0 */
/* merges_internal.h - what the parts of merges.h share.
 *
 *      merges_told.c    what the worker tells of merges; what is said of them
 *      merges_run.c     one of them: planned, begun, followed, finished
 *      merges_settle.c  one that was told to end, and perhaps did not
 *      merges.c         all of a vm's, and the thread that looks after them
 *      merges_people.c  people's verbs, and the dry run
 *
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held.
 */
#pragma once

#include "vhdd/daemon/hidden.h"
#include "vhdd/daemon/merges.h"

/* --- merges_told.c */

int merging_remember(
        struct vm *vm, int64_t job, const char *chain, const json_t *said, struct error *err);
void merging_set_total(struct vm *vm, int64_t job, uint64_t total);
/* @job 0: those of @chain; both none: all. */
void merging_forget(struct vm *vm, int64_t job, const char *chain);
/* Has the chain one? */
bool merging_on_chain(struct vm *vm, const char *chain, int64_t *ret_job);
/* The sentence of its failure; allocated. */
char *merging_error(struct vm *vm, int64_t job);

/* vm->merge_paths, and whether there is anything to do at all. */
void merges_find_paths(struct vm *vm, const struct merge_jobs *jobs);
int merges_refresh_paths(struct vm *vm, struct error *err);
void merges_add_paths(json_t *list, const json_t *more); /* those that it does not have */

/* Written down, and told. */
int merges_save(struct vm *vm, struct merge_job *job, struct error *err);
/* It waits, and for what: written down when that is news. @stuck: for nothing that comes by itself. */
int merges_wait_for(
        struct vm *vm, struct merge_job *job, bool stuck, const char *reason, struct error *err);
/* What a call to the worker, or the engine in it, came back with: failed, or paused for want of space. */
int merges_note_failure(
        struct vm *vm, struct merge_job *job, int code, const char *why, struct error *err);
bool merges_have_space(const struct merge_job *job);
void merges_keep_progress(struct merge_job *job, const struct merging *merging);

const char *merge_job_destination(const struct merge_job *job); /* NULL: it was never begun */
void merge_job_clear_failure(struct merge_job *job);

/* --- merges_run.c */

/* @job has a run: into the catalog with it (M1), and the worker begins it on the chain, if that has no other
 * job. @top: the chain is the job's own, to be opened for writing over it; NULL: it is open. A no is
 * noted. */
int merges_begin_on(struct vm *vm, struct merge_job *job, const char *chain, const char *top,
        struct error *err);

/* One step, if there is one. What is wrong with the job is noted there. 1: it was finished, and what the
 * catalog says of the others is not what @jobs say any more. */
int merges_advance(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, bool off,
        struct error *err);
int merges_resume_in_worker(struct vm *vm, struct merge_job *job, struct error *err);
/* Was the chain @name opened for a merge? Its job. */
bool merges_own_job(const char *name, int64_t *ret);
/* In the worker the merge stops; the files stay as they are, and can go on. */
int merges_end_in_worker(struct vm *vm, int64_t job, struct error *err);
void merges_forget_file(struct vm *vm, const char *path); /* before it is unlinked */
/* Asks the worker for a plan: {hidden, top, shared, direction}, as merges_question() makes it of a run. */
int merges_ask_plan(struct vm *vm, const json_t *question, json_t **ret, struct error *err);
/* Does an image that the catalog does not know stand on one that, by this plan, goes or is written to? Then
 * a sentence is put into @reason, else "". */
int merges_ask_strangers(
        struct vm *vm, const json_t *plan, char reason[HIDDEN_REASON_MAX], struct error *err);
json_t *merges_question(const struct hidden_run *run); /* NULL: no memory */
/* A running disk's chain that has these images as neighbours, or NULL. */
struct vm_chain *merges_live_chain(struct vm *vm, const json_t *hidden, const char *top);

/* --- merges_settle.c */

/* One that nobody asks for any more: its broker died before it said so. */
void merges_drop_in_worker(struct vm *vm, int64_t job);
/* One that was told to end, when nobody knows whether it did: the catalog follows, or it runs again. */
int merges_settle(struct vm *vm, struct merge_job *job, bool *ret_finished, struct error *err);
/* It was told to end, and did not; of what it has done of that the catalog knows then. It runs again. */
int merges_follow_files(struct vm *vm, struct merge_job *job, struct error *err);
