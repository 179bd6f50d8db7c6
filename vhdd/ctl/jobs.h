/* SPDX-License-Identifier: Apache-2.0 */
/* jobs.h - following the daemon's long work.
 *
 * Ownership  the caller's.
 * Errors     0 or -errno with err filled.
 * Threads    the main thread only.
 */
#pragma once

#include <jansson.h>

#include "vhdd/ctl/ctl.h"

/* Waits for the jobs with these numbers, one after the other, and shows how far they are. One that is
 * forgotten by now is done; one that waits for what does not come by itself is told of, and not waited
 * for. Fails when one failed or was cancelled. */
int jobs_follow(struct ctl *ctl, const json_t *ids, struct error *err);
