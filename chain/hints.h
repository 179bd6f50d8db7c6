/* SPDX-License-Identifier: Apache-2.0 */
/* hints.h - what a child says about its parent's place, as paths here. Private to chain/; the list
 * itself is locate_candidates() of chain/locate.h.
 *
 * Units      sizes of buffers are in bytes.
 * Ownership  the caller's buffers.
 * Errors     0 or -errno; sentences are the caller's.
 * Threads    pure functions but for reading the child.
 */
#pragma once

#include <stdbool.h>

#include "chain/locate.h"

#define HINT_BARE "bare" /* the source of a candidate that is a name alone */

/* Does the file lie on this machine, and not on a simulated disk, which has no directories? */
bool hints_on_host(const struct file *file);

/* The directory that holds the child: where it really lies, if it was opened by a link. */
int hints_directory(const struct file *child, char *ret, size_t ret_size);

/* Is @path the meaning of one of the candidates? */
bool hints_know(const struct locate_candidate *candidates, size_t n, const char *path);
