/* SPDX-License-Identifier: Apache-2.0 */
/* relay.h - the process between a QEMU that saves in the background, and the file.
 *
 * Units      bytes.
 * Ownership  descriptors that are handed out are the caller's, those that are passed stay the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    the main thread.
 */
#pragma once

#include <errno.h>
#include <stdbool.h>

#include "base/error.h"

#define RELAY_OPTION "--relay" /* vmm-host's only argument then; for nobody else */
#define RELAY_FIFO   "memory.fifo"
#define RELAY_DIED   EPIPE /* what relay_result tells of one that was killed */

struct supervisor;

/* Starts one that writes to @file. *ret is QEMU's end: whoever else has it closes it. */
int relay_start(struct supervisor *supervisor, int file, int *ret, struct error *err);
/* One that throws away what comes, in the place of one that has died.   -ENOENT nothing is being saved so */
int relay_discard(struct supervisor *supervisor, struct error *err);
/* Until QEMU has closed its end. Then relay_result is 0, or -errno of what it could not write. */
bool relay_is_running(const struct supervisor *supervisor);
void relay_done(struct supervisor *supervisor);

/* The process itself: standard input to standard output. Answers what it exits with: 0, or an errno. */
int relay_run(void);
