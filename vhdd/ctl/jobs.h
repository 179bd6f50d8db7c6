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

/* Of a verb whose answer has a "job" (struct daemon_verb's follow): waits for it, unless --no-wait was given,
 * and takes it out of the answer: how it was when it began is no news at its end. */
int job_follow_result(struct ctl *ctl, json_t *result, struct error *err);
/* --no-wait is no part of the request. */
int job_take_no_wait(json_t *params, const char *value, struct error *err);

/* The options of such a verb, for a table of struct param. */
#define JOB_OPTIONS                                                                                \
        {"limit", PARAM_SIZE, "RATE", "Copy at most RATE bytes a second", NULL},                   \
        {                                                                                          \
                "no-wait", PARAM_OWN, NULL, "Return at once, with the number of the job",          \
                        job_take_no_wait                                                           \
        }
