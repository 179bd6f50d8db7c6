/* SPDX-License-Identifier: Apache-2.0 */
/* merges_commit.h - the catalog's part of a merge's end: the rows of those that went become those of the
 * one that stays, in one transaction, and the emptied files go (M3 of merges.h).
 *
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held.
 */
#pragma once

#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/vms.h"

/* @layers: what the worker or the resolver says of the chain now ({path, uuid, ...}, leaf first), or NULL.
 * @forget (may be NULL): called for each file before it is unlinked. */
int merges_commit(struct vm *vm, struct merge_job *job, const json_t *layers,
        void (*forget)(struct vm *vm, const char *path), struct error *err);
/* The files of what ended are gone: its jobs are done for everybody. */
int merges_ended(struct vm *vm, struct error *err);
/* The job is done. To be saved. */
void merge_job_end(struct merge_job *job);
/* Of the oldest that are done there is no need to tell. */
int merges_forget_old(struct catalog *catalog, const char *vm, struct error *err);
/* The rows' ids as @layers says; inside a transaction. */
int merges_put_ids(struct catalog *catalog, const json_t *layers, struct error *err);
/* The children in @moved, a list of paths, stand on what stays already, although the merge is not at its end;
 * inside a transaction. Nothing if the list is empty. */
int merges_move_children(struct catalog *catalog, const struct merge_job *job, const json_t *moved,
        struct error *err);
