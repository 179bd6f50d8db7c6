/* SPDX-License-Identifier: Apache-2.0 */
/* discarded.h - what waits to be forgotten: states that an undo may still want, and deleted snapshots
 * that somebody reads.
 *
 * Errors     logged: whoever calls has done its own work.
 * Threads    sweep: with the vm's lock held.
 */
#pragma once

#include "vhdd/daemon/vms.h"

/* Frees what need not wait any more. */
void discarded_sweep(struct vm *vm);
/* A thread that does so for every vm, from time to time, until vms_stop(); disks that could not be opened are
 * tried again by it, too. */
void discarded_start(struct broker *broker);
