/* SPDX-License-Identifier: Apache-2.0 */
/* pace.h - how fast a job moves blocks beside a guest: at most as fast as people allow, slower while the
 * guest waits longer than it is used to, and it stops where it is told to.
 *
 * Units      bytes.
 * Ownership  a struct pace is the caller's; zeros: a beginning. Nothing is to be freed.
 * Errors     -ECANCELED: controls->go_on said stop.
 * Threads    the job's.
 */
#pragma once

#include "merge/merge.h"

struct pace {
        uint64_t since_ns, bytes; /* so many since then, for a rate */
        uint64_t rate;            /* that they count for */
        uint64_t pause_us;        /* of the back-off */
};

/* After a stop: what was moved before it does not count. */
void pace_anew(struct pace *pace);
void pace_add(struct pace *pace, uint64_t bytes);
/* Waits as long as is due. @controls may be NULL. */
int pace_keep(struct pace *pace, const struct merge_controls *controls);
