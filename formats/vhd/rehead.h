/* SPDX-License-Identifier: Apache-2.0 */
/* rehead.h - another id, another parent, the mark of a merge: what is said of an image in its footers
 * and its header, changed while it is open for writing and served (rules E12, E13).
 *
 * The caller gathers the changes of all images that belong together in one intent, runs it, and ends
 * each rehead with what became of it. In between the image's end footer stays where it is, and its
 * redo file belongs to the head as it was and to the new one.
 *
 * Units      bytes.
 * Ownership  vhd_rehead_begin hands out, vhd_rehead_end ends.
 * Errors     0 or -errno with one sentence. -EROFS: the image is not open for writing.
 * Threads    requests go on meanwhile. One rehead of an image at a time; a thread that has several
 *            begins them from the leaf down. The same thread begins and ends one.
 */
#pragma once

#include <stdbool.h>

#include "formats/format.h"
#include "formats/intent.h"
#include "formats/vhd/metadata.h"

struct vhd_rehead;

/* Bytes that go with a header: the text of a locator. */
struct vhd_head_text {
        uint64_t offset;
        uint32_t length;
        const uint8_t *bytes;
};

struct vhd_new_head {
        const uint8_t *id;                   /* NULL: as it is */
        const uint8_t *hidden;               /* tapdisk's byte (raw.h). NULL: as it is */
        const struct vhd_raw_header *header; /* with its checksum; NULL: as it is */
        const uint8_t *parent_id;            /* instead of a header: this alone. NULL: as it is */
        const struct vhd_head_text *texts;
        size_t n_texts;
        bool root; /* a differencing image becomes a dynamic one: nothing is said of a parent */
};

/* A raw image has no head: *ret is NULL, and nothing is added. */
int vhd_rehead_begin(struct image *image, const struct vhd_new_head *head, struct intent *intent,
        struct vhd_rehead **ret, struct error *err);
enum vhd_rehead_outcome {
        REHEAD_DROPPED, /* nothing of the intent is there */
        REHEAD_APPLIED,
        REHEAD_UNKNOWN, /* it lies there, and the next opener completes it, or not */
};
void vhd_rehead_end(struct vhd_rehead *rehead, enum vhd_rehead_outcome outcome); /* NULL is fine */
/* Runs @intent, and ends all of them with what became of it. */
int vhd_rehead_run(
        struct vhd_rehead *const *reheads, size_t n, struct intent *intent, struct error *err);

/* What is said now; the tail footer's place is that of this moment. -ENOTSUP: no VHD. */
int vhd_head_get(struct image *image, struct vhd_metadata *ret, struct error *err);
