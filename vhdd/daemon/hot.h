/* SPDX-License-Identifier: Apache-2.0 */
/* hot.h - disks that come, go and grow while their vm runs: what its agent is asked to do about it.
 *
 *      disk-add     after the disk is served, so that the agent's virtual machine can open it
 *      disk-remove  before it is taken away
 *      disk-resize  when its export has the new size, and every client was cut off
 *
 * An agent that does not offer the verb is asked nothing: whoever runs the vm does it by hand. Each
 * answers, in "guest", whether the guest has taken it: "taken", "unseen" (not within its time).
 *
 * Units      bytes.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence, the agent's own behind it. Also 0 when nobody is asked.
 * Threads    with the vm's lock held.
 */
#pragma once

#include "vhdd/daemon/vms.h"

#define HOT_GUEST_MAX 16

/* The vm is on, and its agent offers @verb. */
bool hot_is_offered(struct vm *vm, const struct vm_row *row, const char *verb);

/* A vm that counts as on because its memory is saved, by its agent's word ("describe" answers "state":
 * "saved"): its disks stay as that memory knows them.   -EBUSY */
int hot_refuse_saved(struct vm *vm, const struct vm_row *row, struct error *err);

/* @guest: "taken", "unseen", or "" when that is not known or nobody was asked. */
int hot_add(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        char guest[HOT_GUEST_MAX], struct error *err);
int hot_remove(
        struct vm *vm, const struct vm_row *row, const struct disk_row *disk, struct error *err);
int hot_resize(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        char guest[HOT_GUEST_MAX], struct error *err);
