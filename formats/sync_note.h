/* SPDX-License-Identifier: Apache-2.0 */
/* sync_note.h - a failed sync is noted for an image that is not open (rule E5).
 *
 * Who completes a cut-off change (E13) syncs images that a dead process wrote. If such a sync fails it is
 * the only one that tells of what that process had answered: the next opener's would succeed, and it would
 * replay records of data that is lost. What the dead process left in memory for the image is therefore
 * found before the sync, so that noting takes a store and no call that might fail in its turn. Where
 * nothing was left nobody was answered anything that was not durable, and there is nothing to note.
 *
 * Units      none.
 * Ownership  sync_note_open fills, sync_note_done ends. The file is the caller's.
 * Errors     0 or -errno with a sentence.
 * Threads    one at a time for an image.
 */
#pragma once

#include "base/error.h"
#include "base/file.h"

struct redo;
struct poison;

struct sync_note {
        struct redo *redo;
        struct poison *poison;
};

int sync_note_open(struct file *file, struct sync_note *ret, struct error *err);
void sync_note_set(const struct sync_note *note, int code); /* a positive errno */
void sync_note_done(struct sync_note *note);                /* one that was never opened is fine */
