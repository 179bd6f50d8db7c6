/* SPDX-License-Identifier: Apache-2.0 */
/* background.h - going to the background once all is well: whoever started us waits until then, and
 * learns what went wrong.
 *
 * Units      none.
 * Ownership  plain values.
 * Errors     0 or -errno with one sentence.
 * Threads    the main one, before any other thread is made.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"

struct background {
        int fd; /* where the starter waits; -1: nobody does */
};

/* Forks. In the child, which goes on: true. In the one that was started: false, when the child is ready
 * (0) or has failed (*ret: -errno, and @err is what it said). */
bool background_begin(struct background *ret_background, int *ret, struct error *err);

/* The child's: ready (@r 0: stdin, stdout and stderr are let go of), or failed with @err.
 *   -EPIPE  whoever started us has gone, and does not know */
int background_report(struct background *background, int r, const struct error *err);
