/* SPDX-License-Identifier: Apache-2.0 */
/* reparent.h - an open child gets another image of its chain as its parent. What relink() does for files
 * that nobody has open, as the head that formats/vhd/rehead.h writes: the texts go into the slots that
 * they had.
 *
 * Units      bytes.
 * Ownership  reparent_done() ends what reparent_plan() filled.
 * Errors     0 or -errno with one sentence. -ENOSPC: no slot has room for the path.
 * Threads    one at a time for a child.
 */
#pragma once

#include "chain/parent_texts.h"
#include "formats/format.h"
#include "formats/vhd/rehead.h"

struct reparent {
        struct parent_texts texts;
        struct vhd_head_text list[PARENT_TEXTS_MAX];
        struct vhd_new_head head; /* points into this struct */
};

/* @parent_id: what the parent's id is then (zeros: raw). @ret is not copied afterwards. */
int reparent_plan(struct image *child, const struct image *parent, const uint8_t parent_id[16],
        struct reparent *ret, struct error *err);
void reparent_done(struct reparent *reparent);
