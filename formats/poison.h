/* SPDX-License-Identifier: Apache-2.0 */
/* poison.h - the mark of a flat image's writer, in memory that a process's death leaves whole.
 *
 * Linux tells of a lost writeback once, and to whoever asks next. So rule E5 wants the first failed
 * sync remembered beyond the process that saw it: until somebody has checked the image, or the
 * machine has rebooted. A flat image (raw, fixed VHD) has no redo file, as there is no metadata to
 * redo; it has this page instead, made when the image opens for writing, so that noting the failure
 * takes one store and no system call that might fail in its turn. It is gone after a clean end. One
 * that is found therefore also says: the last writer died, and what the page cache holds may look
 * durable and not be (E4).
 *
 * The mark is bound to this boot, to device and inode, and to what tells a recycled inode or a
 * recycled loop device from the one before (the file handle's generation, the disk's sequence
 * number). A mark that is bound to anything else is an old one, and counts for nothing.
 *
 * Ownership  poison_hold hands out, poison_release ends. The file must live as long.
 * Errors     0 or -errno with a sentence.
 * Threads    poison_set and poison_get from many at once; the rest belongs to who opens and closes.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "base/file.h"

struct poison;

/* For the one writer, who holds the file's lock: finds the mark or makes it.
 * *ret_unclean: the writer before died. */
int poison_hold(struct file *file, struct poison **ret, bool *ret_unclean, struct error *err);

/* The mark of a writer who died, or NULL: none is made. */
int poison_find(struct file *file, struct poison **ret, struct error *err);

/* A sync failed with this errno (positive). The first one stays. */
void poison_set(struct poison *poison, int code);

/* The errno that was noted, or 0. */
int poison_get(const struct poison *poison);

/* @clean, and no poison in it: the mark goes. Else it stays for the next opener. NULL is fine. */
struct poison *poison_release(struct poison *poison, bool clean);

/* For readers: the errno that a writer noted, 0 if there is none; *ret_held (may be NULL): there is
 * a writer's mark. Makes and changes nothing. */
int poison_look(struct file *file, int *ret_code, bool *ret_held, struct error *err);

/* Somebody has read the image and found it as it should be: the mark goes. The caller holds the
 * write lock. No mark is fine. */
int poison_lift(struct file *file, struct error *err);
