/* SPDX-License-Identifier: Apache-2.0 */
/* progress.h - shows how far long work is: a bar on a terminal, or lines of JSON for a program.
 *
 * On stderr, so that stdout stays the answer's. A bar is drawn at most ten times a second, a line
 * of JSON written at most once a second: {"progress":{"done":N,"total":N,"percent":N.N}}.
 *
 * Units      bytes of work.
 * Ownership  progress_new hands out, progress_end ends.
 * Threads    progress_add from any thread; the others from the one that made it.
 */
#pragma once

#include "vhdd/ctl/ctl.h"

struct progress;

/* @what: one word or two in front of the bar. Never NULL; shows nothing if nobody wants it. */
struct progress *progress_new(const struct ctl *ctl, const char *what, uint64_t total);
void progress_add(struct progress *progress, uint64_t done);
/* @finished: full; else the bar is wiped, because a sentence about a failure follows. */
void progress_end(struct progress *progress, bool finished);
