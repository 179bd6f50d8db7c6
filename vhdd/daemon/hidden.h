/* SPDX-License-Identifier: Apache-2.0 */
/* hidden.h - which hidden images go together, and with what: the part of the planner that needs only
 * the catalog.
 *
 * A hidden image is no point in time any more, and goes with the one image that stands on it: neighbours
 * that are hidden, one on the other, in one pass. The image above them, their top, reads as before; whether
 * its blocks come down or theirs go up, the bytes decide (merge/merge.h), but a file that the user brought,
 * or the root, keeps its place and name: blocks come down into it.
 *
 * One with several children waits until one is left; or, to be pushed, is copied up into one child after
 * the other, the last of which it goes with.
 *
 * Units      none.
 * Ownership  hidden_run_done ends what hidden_run_find made.
 * Errors     0 or -errno with one sentence.
 * Threads    as the catalog's; with the vm's lock held, or in its transaction.
 */
#pragma once

#include "vhdd/daemon/merge_job.h"

#define HIDDEN_REASON_MAX 512

struct hidden_run {
        json_t *hidden;        /* paths, the lowest first */
        json_t *jobs;          /* ids of the others' jobs, which go with it */
        char *top;             /* NULL: it has to wait, and the reason says for what */
        bool shared;           /* others stand on it, too: top gets a copy */
        const char *direction; /* "down", "up", or "": whichever moves less */
        char reason[HIDDEN_REASON_MAX];
        bool stuck; /* it is nothing that comes by itself */
};
void hidden_run_done(struct hidden_run *run);

/* What the waiting job @job, one of @jobs (those of its vm), would do now. @is_off: is the vm off? Where it
 * has to wait, ret->top is NULL. Nothing is changed. */
int hidden_run_find(struct catalog *catalog, const struct merge_jobs *jobs,
        const struct merge_job *job, bool is_off, struct hidden_run *ret, struct error *err);

/* The only vm whose disks or snapshots stand on @path, or "" if there is none, or several. */
int hidden_owner(
        struct catalog *catalog, const char *path, char ret[UUID_TEXT_SIZE], struct error *err);
/* Does anything but the disks and snapshots of @vm stand on @path, or is it detached? Then a sentence is put
 * into @reason, else "". */
int hidden_users(struct catalog *catalog, const char *vm, const char *path,
        char reason[HIDDEN_REASON_MAX], struct error *err);
