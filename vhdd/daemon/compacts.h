/* SPDX-License-Identifier: Apache-2.0 */
/* compacts.h - jobs that make the leaf of a running disk as small as what it holds.
 *
 * A compaction is a job as a merge is (merge_job.h, merges.h), of another kind: the vm's worker moves the
 * blocks, and people pause, limit and cancel it in the same way. It needs no plan and has no end that
 * could be cut off: what is left to do is in the file, so after a death it is simply begun again, and after
 * a snapshot with the image that is the disk's leaf then. One job at a time has a disk's chain; a
 * compaction lets merges go first.
 *
 *      {"disk": ID, "image": PATH   the leaf, as last seen
 *       "run": {"leaf": PATH}       it was begun      and what merge_job.h says of failures and progress}
 *
 * Units      bytes.
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held.
 */
#pragma once

#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/vms.h"

/* It waits, or the worker does not have it (any more): can it begin? What it waits for is noted. 1: its disk
 * is gone, and so is the job. @jobs: all of the vm's. @off: the vm is. */
int compact_begin(struct vm *vm, const struct merge_jobs *jobs, struct merge_job *job, bool off,
        struct error *err);
/* The worker is done with it. 1, as merges_advance. */
int compact_finish(struct vm *vm, struct merge_job *job, struct error *err);
