/* SPDX-License-Identifier: Apache-2.0 */
/* resolve.h - which layer a sector comes from, at a cost that does not grow with depth (rule E2).
 * Private to chain/.
 *
 * The owner map says for each block of the chain's smallest block size the topmost layer that has a
 * block there. It is a hint: 0 means "not looked yet"; one that is too high falls through to lower
 * layers; one that is too low must not happen, so a reader only ever replaces 0 (compare and
 * exchange), and a writer stores the leaf after its bits are set and before it answers.
 *
 * A block whose sectors come from many layers, once it was read a few times, gets a resolved map:
 * the layer of each sector. It is built once, kept under a bound, and changed or dropped by
 * whoever changes the leaf's bits.
 *
 * A layer that is put on top (E10) rewrites nothing: owners are numbers that keep their meaning, and
 * a map that was built before is right until the block is changed in the new leaf, and dropped then.
 * Whoever counts the layers does so after it has an owner in hand, or before it looks for one.
 *
 * Units      bytes on the disk; layers by index, 0 the root.
 * Ownership  resolver_new hands out, resolver_free ends. The layers are the chain's.
 * Errors     0 or -errno; -EAGAIN with MAP_NOWAIT.
 * Threads    resolve: any, no lock. changed and dropped: who holds the gate of the leaf's block.
 */
#pragma once

#include <stdatomic.h>

#include "chain/chain.h"

struct resolver;

/* @layers grows at its end while requests run, and *@n_layers then, if @may_grow: never by an image
 * of smaller blocks than resolver_block_size(). */
int resolver_new(struct image *const *layers, const _Atomic unsigned *n_layers, bool may_grow,
        uint64_t size, struct resolver **ret, struct error *err);
uint64_t resolver_block_size(const struct resolver *resolver);
struct resolver *resolver_free(struct resolver *resolver); /* NULL is fine; returns NULL */

/* What is at @offset: ret->depth counts from the leaf. At most @length, perhaps less. */
int resolve(struct resolver *resolver, uint64_t offset, uint64_t length, unsigned map_flags,
        struct chain_extent *ret);
/* The same, but as if the layers above @top did not exist. */
int resolve_below(struct resolver *resolver, unsigned top, uint64_t offset, uint64_t length,
        unsigned map_flags, struct chain_extent *ret);

/* The leaf has these sectors now. */
void resolver_changed(struct resolver *resolver, uint64_t offset, uint64_t length);
/* The same of sectors that the leaf had already when they were written: whoever set their bits may not have come
 * as far as to say so. Quick when there is nothing to say. */
void resolver_confirm(struct resolver *resolver, uint64_t offset, uint64_t length);
/* The leaf has nothing there any more. */
void resolver_dropped(struct resolver *resolver, uint64_t offset, uint64_t length);
