/* SPDX-License-Identifier: Apache-2.0 */
/* release.h - giving up snapshots and images in one transaction with what else changes.
 *
 * Ownership  the lists are the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held, inside the caller's transaction.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/vms.h"

struct release {
        json_t *candidates; /* paths that may be needed no more */
        json_t *files;      /* found to be so, and ours: to be removed after the commit */
        json_t *kept;       /* found to be so, and not ours */
        json_t *waiting;    /* others stand on them: hidden, they wait for a merge */
        json_t *jobs;       /* ids of the merges that were noted */
        const char *
                merge; /* "live" or "deferred": when what waits is merged; NULL: nothing is noted */
        bool push;     /* one with several children is copied into each but the last */
};
int release_init(struct release *release, struct error *err);
void release_done(struct release *release);
int release_candidate(struct release *release, const char *path, struct error *err);

/* Snapshots of @vm with these ids are forgotten: their children become their parents', `current`
 * too; their images are candidates. One that is being read is hidden instead, and remembers how it is to be
 * merged (release_remembered). */
int release_snapshots(struct vm *vm, struct vm_row *row, const json_t *ids, struct release *release,
        struct error *err);
/* A job for the hidden image @path, unless there is one. */
int release_note_merge(struct vm *vm, const char *path, struct release *release, struct error *err);
/* How a hidden snapshot was to be merged: into @release. */
void release_remembered(const struct snapshot_row *snapshot, struct release *release);
/* The undo of the vm, if there is one: @row->undo becomes NULL (the caller updates the row). */
int release_undo(struct vm *vm, struct vm_row *row, struct release *release, struct error *err);
/* What of the candidates nobody needs goes; the merge of what others stand on is noted. */
int release_images(struct vm *vm, struct release *release, struct error *err);
