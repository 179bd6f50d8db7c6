/* SPDX-License-Identifier: Apache-2.0 */
/* parent_texts.h - where the paths of a parent go in a child that has blocks already. Private to
 * chain/relink.c and chain/reparent.c.
 *
 * Locators that say where the old parent was are rewritten (W2ru, W2ku, and tapdisk's MacX if there is
 * one) or dropped (the deprecated Wi2r, Wi2k, and Mac, whose bytes nobody can make here); those of
 * unknown codes stay. A text goes, in this order, into the slot that it had; into a gap below the
 * blocks; behind the last block.
 *
 * Units      bytes.
 * Ownership  a plan is a plain value but for the texts: parent_texts_done().
 * Errors     0 or -errno with one sentence.
 * Threads    pure functions.
 */
#pragma once

#include "formats/vhd/bat.h"
#include "formats/vhd/metadata.h"

#define PARENT_TEXTS_MAX 3u

struct parent_names {
        uint8_t id[16];
        uint32_t timestamp;   /* VHD time */
        const char *name;     /* UTF-8, the base name */
        const char *relative; /* with '/' */
        const char *absolute; /* with '/' */
};

struct parent_text {
        uint64_t offset;
        uint32_t length; /* of the text; what is behind it, up to size, is zeros */
        uint32_t size;
        uint8_t *bytes;
};

struct parent_texts {
        struct vhd_raw_header header; /* new, checksum and all */
        struct parent_text texts[PARENT_TEXTS_MAX];
        unsigned n_texts;
        uint64_t
                tail_offset; /* where the end footer has to be: the old place if nothing is appended */
};

/* @bat NULL: the child is in use, and its texts go nowhere but into the slots that they had: one that
 * does not fit there is left out, but for W2ru (-ENOSPC). */
int parent_texts_plan(const struct vhd_metadata *metadata, const struct vhd_bat *bat,
        const struct parent_names *names, struct parent_texts *ret, struct error *err);
void parent_texts_done(struct parent_texts *texts);
