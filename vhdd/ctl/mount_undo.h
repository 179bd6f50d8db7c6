/* SPDX-License-Identifier: Apache-2.0 */
/* mount_undo.h - what `vhdctl mount` has made, taken off again, whichever part of it is still there.
 *
 * Errors     0 or -errno with one sentence. -EBUSY says who uses it.
 * Threads    the main thread only.
 */
#pragma once

#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/mount_note.h"

/* All that was mounted at @target (absolute): file systems, loop devices, the disk under them; answers when
 * the disk's image is closed. @lazy: what is in use goes out of sight, and ends with its last user.
 *   -EINVAL  it is no mount of vhdctl's */
int mount_undo(const struct ctl *ctl, const char *target, bool lazy, struct error *err);

/* Is there something of vhdctl's at @target?  -EINVAL as above */
int mount_look(const char *target, struct error *err);

/* Undoes what is noted only; the note is gone then, also from memory. */
int mount_undo_note(const struct ctl *ctl, struct mount_note *note, bool lazy, struct error *err);

/* Before a mount at @target: what died there goes.   -EBUSY: something is mounted there, and lives */
int mount_clear(const struct ctl *ctl, const char *target, struct error *err);
