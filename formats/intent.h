/* SPDX-License-Identifier: Apache-2.0 */
/* intent.h - changes of several sectors, in one image or several, that a power cut cannot tear
 * (rule E13).
 *
 * A dynamic header is two sectors, footers come in pairs, and a child's header must change together
 * with its parent's id: none of this is written by the disk in one go. So what is to be written lies
 * beside the image first, in `NAME.vhdd-intent`, with the old bytes and a checksum; when it is
 * durable the images are written and synced, and then it is removed. An opener that finds one
 * completes it before it looks at anything else. Order, each step durable before the next:
 *
 *   intent_write    beside image 0 (of several: the parent that changes), then beside each other
 *   intent_apply    each sector is compared (old or new, nothing else), written, the files synced
 *   intent_remove   beside the others, then beside image 0; the directories synced. One that cannot be
 *                   removed is made void: its first bytes become zeros
 *
 * One that is not whole (its checksum is wrong) was never durable, so nothing of it was applied, or was
 * made void when it had served: it is ignored.
 *
 * The file, big-endian:
 *      0   8  "vhddint1"
 *      8  16  id of this intent, the same in all its copies
 *     24   4  number of images            28   4  number of changes
 *     32      images: id before (16), id after (16), length of the path (2), path relative to the
 *             folder that this copy lies in, UTF-8, without a NUL
 *             changes: image (4), length (4), bytes of the old that there were (4: less than length
 *             where the file ended), 0 (4), offset (8), the new bytes, the old bytes
 *     end     XXH3 of 64 bits of all before (8)
 *
 * Units      bytes.
 * Ownership  intent_new hands out, intent_free ends. Files stay their owner's.
 * Errors     0 or -errno with a sentence.
 * Threads    one intent belongs to one thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/file.h"

#define INTENT_ENDING         ".vhdd-intent"
#define INTENT_MAX_IMAGES     1024u
#define INTENT_MAX_CHANGES    65536u
#define INTENT_MAX_SIZE       (UINT64_C(64) << 20) /* of the file */
#define INTENT_MAX_IMAGE_PATH 4095u

struct intent;

struct intent *intent_new(void);                   /* NULL: no memory */
struct intent *intent_free(struct intent *intent); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct intent *, intent_free)

/* An image that is going to change: open for writing, and locked by the caller until the end. The ids
 * are those of its footers before and after. The image's number, or -errno. */
int intent_add_image(struct intent *intent, struct file *file, const uint8_t id_before[16],
        const uint8_t id_after[16], struct error *err);
/* From @offset on, image @image is to hold @length @bytes (copied). What it holds now is read. The
 * range may lie past the end: the file then grows by the write, and what is between reads as zeros.
 * Ranges of one image must not share a sector. */
int intent_add(struct intent *intent, unsigned image, uint64_t offset, const void *bytes,
        size_t length, struct error *err);

/* The three steps. After a failed write nothing is left beside the images that counts, if that could be
 * done (intent_is_left); after a failed apply the intent stays, for the next opener to complete.
 *   -EBUSY  another intent lies there already: whoever opens the image must complete it first */
int intent_write(struct intent *intent, struct error *err);
int intent_apply(struct intent *intent, struct error *err);
int intent_remove(struct intent *intent, struct error *err);
/* Does one of the copies that we wrote still count, or may it? Then the next opener completes the intent, or
 * not: until then nobody may change the bytes that it names (E13). */
bool intent_is_left(const struct intent *intent);
/* Whatever lies beside these images, open for writing and the caller's, from somebody who had them open
 * and could not take it away: it goes, unless it was written in part. */
int intent_clear(struct file *const *files, size_t n, struct error *err);
/* All three. */
int intent_run(struct intent *intent, struct error *err);

/* How recovery gets at the other images that an intent names. */
struct intent_opener {
        /* Required. Opens @path (the place that the intent says, normalised) for writing and takes
         * FILE_LOCK_WRITE, if the caller's rules allow that place. May block. */
        int (*open)(void *opaque, struct fs *fs, const char *path, struct file **ret,
                struct error *err);
        void *opaque;
};

/* Completes what lies beside @file, if anything does. The first thing an opener does.
 *
 * @writable (open and locked for writing): all images that the intent names are written, synced, and
 * the intent removed. @others NULL: only files of the same folder, and no links, are reached.
 * Not writable: nothing is written; *ret_view is a file that shows @file as it will be, or NULL if
 * there is nothing to show. The view closes @file when it is closed; intent_view_dismiss() ends it
 * and leaves @file open. Sectors that hold neither the old bytes nor the new were changed since: then
 * there is no view of them, and the image is shown as it is.
 *   -EUCLEAN  some sector holds neither the old nor the new bytes: nothing was written
 * A sync of an image that fails here is noted for it (E5, sync_note.h).
 *   -EPERM    the intent belongs to somebody who may not decide about the image (only root, its
 *             owner and we may), or names a file that we may not follow */
int intent_recover(struct file *file, bool writable, const struct intent_opener *others,
        struct file **ret_view, struct error *err);
void intent_view_dismiss(struct file *view);

/* Is a whole intent beside @file? For `check`. 0 no, 1 yes, 2 one that is torn, or -errno. */
int intent_look(struct file *file, struct error *err);
/* A void one goes, if it can. The caller holds a lock on @file, a reader's is enough: nobody is writing it
 * now. */
void intent_tidy(struct file *file);
