/* SPDX-License-Identifier: Apache-2.0 */
/* heads.h - what a merge says of itself in the images' heads, at its beginning and its end (E12).
 * Private to merge/.
 *
 * Units      none.
 * Ownership  the drain's images.
 * Errors     0 or -errno with one sentence. Nothing was changed, or an intent says what was to be.
 * Threads    the merge's.
 */
#pragma once

#include "chain/drain.h"
#include "merge/merge.h"

/* The destination (down) or the sources (up) are no points in time from here on, have new ids, and the
 * children that are known follow. Nothing if that was done before. *ret_id: the destination's. */
int heads_begin(struct chain_drain *drain, const struct merge_plan *plan, const uint8_t new_id[16],
        uint8_t ret_id[16], struct error *err);
/* Who stood on what goes stands on what stays, which is a point in time again. */
int heads_finish(struct chain *chain, struct chain_drain *drain, const struct merge_plan *plan,
        const struct merge_child *children, size_t n_children, struct error *err);
