/* SPDX-License-Identifier: Apache-2.0 */
/* intent_internal.h - what intent.c, intent_file.c and intent_view.c share.
 *
 * Ownership  struct intent and what its arrays point to: intent_free().
 * Threads    one intent belongs to one thread.
 */
#pragma once

#include "formats/intent.h"

struct intent_image {
        struct file *file; /* NULL: not opened (recovery) */
        bool own_file;     /* opened by recovery: closed by intent_free */
        char *path;        /* where it lies, or is said to lie */
        struct file *copy; /* what we wrote beside it, open for as long as it counts */
        uint8_t id_before[16], id_after[16];
};

struct intent_change {
        uint32_t image;
        uint32_t length, old_length; /* old_length < length: the file ended there */
        uint64_t offset;
        uint8_t *bytes; /* the new ones, then @length old ones (zeros where there were none) */
};

struct intent {
        uint8_t id[16];
        struct intent_image *images;
        struct intent_change *changes;
        uint32_t n_images, n_changes;
};

/* ---- intent_file.c ---- */

/* Where the file really lies (links resolved, if the host tells). malloc. */
char *intent_path_of(struct file *file);

/* The bytes of the copy that goes beside image @index. malloc, or NULL: no memory, or the paths have
 * no relation. */
uint8_t *intent_encode(const struct intent *intent, uint32_t index, size_t *ret_size);

/* Reads the copy beside the file at @path. -ENOENT: none. -EBADMSG: one that is not whole.
 * -EPERM: somebody else's. Images are not opened. */
int intent_load(struct fs *fs, const char *path, uint32_t image_owner, struct intent **ret,
        struct error *err);

int intent_grow(struct intent *intent, uint32_t n_images, uint32_t n_changes);

/* ---- intent_view.c ---- */

int intent_view_new(struct file *file, const struct intent *intent, uint32_t image,
        struct file **ret, struct error *err);
