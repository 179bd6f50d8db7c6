/* SPDX-License-Identifier: Apache-2.0 */
/* drain.h - layers of an open chain are emptied, unit by unit, into the layer below or above them, while
 * the chain is read and written (rules E7, E8, E11). The planning, the pace and the new ids around it
 * are merge/'s.
 *
 *   D1  Down: a unit's gate is closed while its sectors are copied and its entries in the sources are
 *       cleared. From then on its changes go to the destination alone.
 *   D2  The clears come after the copy, the lowest source's first, and each is in its redo file before
 *       it can be seen (E4).
 *   D3  Down: a source's round, each of them, has a round of the layer below it between its (0) and its
 *       (2): a clear is not durable before what takes the entry's place is. Whoever opens the chain
 *       after a death settles its images from the root up.
 *   D4  While the leaf is a source no FUA change takes the short way.
 *   D5  Up: before the entries below are cleared the copies are durable (a whole round of the
 *       destination: after a death a clear may become durable first), and everybody has left who
 *       could have looked at the destination before they were there.
 *   D6  What was cleared is punched when the clear is durable and nobody reads there any more.
 *   D7  A source gets no new block in a unit that is drained.
 *   D8  Up: the destination gives up no block, however much of it is zeros: an entry below that is
 *       cleared and not durably so would come back over it.
 *
 * Units      bytes; units by number: one is as large as the largest block of all images involved.
 * Ownership  chain_drain_open hands out, chain_drain_close or chain_drain_remove ends. The chain outlives
 *            it.
 * Errors     0 or -errno and a sentence. After any of them the chain reads as before.
 * Threads    one drain of a chain at a time; copying belongs to one thread, clearing and flushing may be
 *            another one's. Requests go on on any thread. Snapshots may be taken meanwhile (push.h).
 */
#pragma once

#include "chain/chain.h"

struct chain_drain;

enum drain_flags {
        DRAIN_UP = 1u << 0,   /* into the layer above the sources; else into the one below */
        DRAIN_KEEP = 1u << 1, /* up only: the sources keep what they have */
        DRAIN_ROOT =
                1u << 2, /* up only: the destination becomes a root: what nobody has is zeros */
};

/* The layers @first .. @last are the sources. All images involved are opened for writing, unless they
 * are already; nothing moves yet.
 *   -EBUSY  somebody else has one of them open     -ESTALE  one was replaced
 *   -EROFS  one cannot be written to */
int chain_drain_open(struct chain *chain, unsigned first, unsigned last, unsigned flags,
        struct chain_drain **ret, struct error *err);
/* The images involved, from the lowest source up; the destination last. Theirs as long as the drain is. */
unsigned chain_drain_n_sources(const struct chain_drain *drain);
struct image *chain_drain_source(const struct chain_drain *drain, unsigned index);
struct image *chain_drain_destination(const struct chain_drain *drain);
/* The layer above all of them, or NULL: an image that stands on what is being emptied or filled. */
struct image *chain_drain_child(const struct chain_drain *drain);
/* The layer below all of them, or NULL. */
struct image *chain_drain_below(const struct chain_drain *drain);
/* An image of the chain becomes one that is open for writing, for a change of its head. *@image is
 * replaced. Nothing if it is so already. chain_drain_settle() makes it a reader's again. */
int chain_drain_upgrade(struct chain *chain, struct image **image, struct error *err);
int chain_drain_settle(struct chain *chain, struct image *image, struct error *err);

/* The image at @path in *@ret, if some chain of the family has it open, to be read or as its leaf, else NULL. */
int chain_drain_find(
        struct chain *chain, const char *path, struct image **ret, struct error *err);

/* A drain waits for everybody who read before it, and a client that takes no replies may be among them. So,
 * before one is opened: from here to chain_drain_unexpect() chain_is_moving() says yes, and nobody new will
 * be waited for as long. Returns when all have left who read before.
 *   -EBUSY  somebody has not after @patience_ms; nothing is expected */
int chain_drain_expect(struct chain *chain, unsigned patience_ms, struct error *err);
void chain_drain_unexpect(struct chain *chain);

/* From here on blocks may move. */
int chain_drain_start(struct chain_drain *drain, struct error *err);

uint64_t chain_drain_unit_size(const struct chain_drain *drain);
uint64_t chain_drain_n_units(const struct chain_drain *drain);
/* Has a source a block there? Never waits. */
bool chain_drain_has(const struct chain_drain *drain, uint64_t unit);
/* Hints that the sources' bytes there are wanted soon. */
void chain_drain_prefetch(const struct chain_drain *drain, uint64_t unit);
/* Down: copies the unit and clears it. Up: copies what the destination lacks. *ret_bytes: how much was
 * written (zeros not counted).
 *   -EIO, -ENOSPC  the unit is where it was */
int chain_drain_copy(
        struct chain_drain *drain, uint64_t unit, uint64_t *ret_bytes, struct error *err);
/* Up, unless the sources keep their bytes: after the copies chain_drain_flush(), chain_drain_grace(),
 * and then the clears. */
void chain_drain_grace(const struct chain_drain *drain);
int chain_drain_clear(struct chain_drain *drain, uint64_t unit, struct error *err);
/* Everything that was copied and cleared before the call is durable. */
int chain_drain_flush(struct chain_drain *drain, struct error *err);

/* What was cleared, is durably so, and is looked at by nobody any more, takes no space from here on. */
void chain_drain_reclaim(struct chain_drain *drain);

/* The drain stops: writes go to the leaf again, what is not the leaf is only read. NULL is fine. */
void chain_drain_close(struct chain_drain *drain);
/* -EBUSY: another chain's drain is under way over layers that would be taken from beneath it. To be asked before
 * the heads are changed. */
int chain_drain_may_end(struct chain_drain *drain, struct error *err);
/* The sources are empty, and leave all chains, or keep their bytes, and leave those of the destination; then they
 * are closed. On failure the drain is as before. */
int chain_drain_remove(struct chain_drain *drain, struct error *err);
