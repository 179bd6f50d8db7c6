/* SPDX-License-Identifier: Apache-2.0 */
/* state.h - the state directory, and that there is one daemon for each.
 *
 * Units      none.
 * Ownership  the descriptor is the caller's: the directory is ours as long as it is open.
 * Errors     0 or -errno with one sentence.
 * Threads    one.
 */
#pragma once

#include <sys/types.h>

#include "base/error.h"

/* Makes the directory and what belongs into it, if it is not there: 0700, and, so that @group gets to the
 * sockets in it and to nothing else, 0710 with one (CONTROL_NO_GROUP: without).
 *   -EPERM   others may write into it    -ENOTDIR */
int state_make(const char *state_dir, const char *run_dir, gid_t group, struct error *err);
/* The lock. @kept_fd: it is held already (an earlier program of this process had it); -1: it is not.
 *   -EBUSY   another daemon has it; the sentence says which */
int state_lock(const char *state_dir, int kept_fd, int *ret_fd, struct error *err);
