/* SPDX-License-Identifier: Apache-2.0 */
/* mount_note.h - what `mount --files` has made, written down before it is made, so that umount can undo all of
 * it whenever the maker died.
 *
 * A note is a folder in /run/vhdd/mounts ($XDG_RUNTIME_DIR/vhdd/mounts, or one in /tmp, for who is not root),
 * named after the folder that was mounted on. Its file `note` says what there is; `image` is where the disk is
 * mounted while the file systems are set up on it. While somebody works on a note he holds a lock of it.
 *
 * Ownership  note_make and note_find hand out, note_close lets go, note_remove removes the folder too.
 * Errors     0 or -errno with one sentence. -EBUSY: somebody else works on it.
 * Threads    the main thread only.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"

struct mount_note {
        char *folder; /* its own */
        char *image;  /* folder/image */
        char *report; /* folder/report: what the server says when it ends badly */
        int lock;
        json_t *what; /* see note_*() */
};

/* A new one for @target, an absolute path. -EEXIST: there is one. */
int note_make(const char *target, struct mount_note **ret, struct error *err);
/* -ENOENT (without a sentence): there is none. */
int note_find(const char *target, struct mount_note **ret, struct error *err);
struct mount_note *note_close(struct mount_note *note); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct mount_note *, note_close)
/* What the server said at its end, or "". */
void note_read_report(const struct mount_note *note, char *ret, size_t size);

/* The folder goes too, and @note. What is mounted in it is not there any more. */
void note_remove(struct mount_note *note);

/* Each writes the note anew before it answers. */
int note_set(struct mount_note *note, const char *name, json_t *value, struct error *err);
/* To the list @name. */
int note_add(struct mount_note *note, const char *name, json_t *value, struct error *err);

/* The process that serves the disk; note_server answers 0 when it has ended. */
int note_set_server(struct mount_note *note, pid_t pid, struct error *err);
pid_t note_server(const struct mount_note *note);
