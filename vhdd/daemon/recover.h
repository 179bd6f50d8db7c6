/* SPDX-License-Identifier: Apache-2.0 */
/* recover.h - a snapshot that was cut off in the middle: undone, or rolled forward (E10).
 *
 * Everything else that was cut off is the journal's own to settle (journal.h). A snapshot's fate is
 * the switch record's: the worker reads it, and it alone says whether the new layers were pushed.
 *
 *      journal row, no record   --recover_before-->  files removed, as if it never was
 *      journal row, a record    --recover_before-->  vm->rolling: the disks are opened with their new
 *                               layers --recover_roll_forward--> catalog, then the record goes
 *      no row, a record         --recover_before-->  it is in the catalog: the record goes
 *
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held.
 */
#pragma once

#include "vhdd/daemon/vms.h"

#define OPERATION_TAKE "snapshot.take"

/* Is there something that only a worker can tell? */
bool recover_wants_worker(struct vm *vm);
/* @hello: what the worker said, or NULL when there is none. */
int recover_before(struct vm *vm, const json_t *hello, struct error *err);
int recover_roll_forward(struct vm *vm, struct error *err);
/* With every disk open and nothing to roll forward: a record that is still there has done its work (its
 * snapshot is in the catalog, and nobody lived to say so). It goes, and flushes no longer wait for it. */
int recover_drop_record(struct vm *vm, struct error *err);
