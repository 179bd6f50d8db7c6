/* SPDX-License-Identifier: Apache-2.0 */
/* memory_file.h - the saved memory of a vm, beside its snapshots: SNAPSHOT-DIR/ID/memory.
 *
 * Ownership  a descriptor that is answered is the caller's.
 * Errors     0 or -errno with one sentence: the agent's among them.
 * Threads    with the vm's lock held.
 */
#pragma once

#include "vhdd/daemon/vms.h"

/* Asks the agent to save into a new file, and notes that in the snapshot's row: all or nothing. */
int memory_save(struct vm *vm, const struct vm_row *row, const char *snapshot, struct error *err);
/* For reading only, so nobody writes into what is saved. */
int memory_open(const struct snapshot_row *snapshot, int *ret, struct error *err);
