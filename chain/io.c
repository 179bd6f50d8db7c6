/* SPDX-License-Identifier: Apache-2.0 */
/* Requests: reads resolve and copy; writes, zeros and trims go to the leaf, block by block, each
 * through its block's gate (rule E7). Around each piece is the gate that a snapshot shuts (E10): which
 * image is the leaf, and so what a piece is, is asked inside it.
 *
 *   a write:  hold -> gate -> prepare (a place) -> data -> complete (record, bits) -> resolver
 *             -> gate -> hold
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "chain/internal.h"

#define FLAT_STEP (UINT64_C(1) << 21) /* flat images pass their gates in steps of this size */

static int check_range(const struct chain *chain, uint64_t offset, uint64_t length)
{
        return range_inside(offset, length, chain->size) ? 0 : -EINVAL;
}

static unsigned map_flags_of(unsigned flags)
{
        return (flags & CHAIN_NOWAIT ? MAP_NOWAIT : 0) | (flags & CHAIN_HOLES ? MAP_HOLES : 0);
}

/* --- tickets (E8) */

uint64_t chain_ticket_get(struct chain *chain)
{
        return grace_enter(chain->places);
}

void chain_ticket_put(struct chain *chain, uint64_t ticket)
{
        grace_leave(chain->places, ticket);
}

/* --- mapping */

/* With a ticket, or inside `hold`. */
static int map_range(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
        struct chain_extent *ret)
{
        int r = check_range(chain, offset, length);

        if (r < 0 || length == 0)
                return -EINVAL;
        r = resolve(chain_view(chain)->resolver, offset, length, map_flags_of(flags), ret);
        if (r == 0 && ret->kind == EXTENT_ABSENT && chain->leaf_only)
                return -EIO; /* a parent that was not opened has it, or not: nobody knows */
        return r;
}

int chain_map(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
        struct chain_extent *ret)
{
        uint64_t ticket = chain_ticket_get(chain);
        int r = map_range(chain, offset, length, flags, ret);

        chain_ticket_put(chain, ticket);
        return r;
}

static int status_of(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
        struct chain_extent *ret)
{
        uint64_t end = offset + length;
        int r = map_range(chain, offset, length, flags, ret);

        while (r == 0 && offset + ret->length < end) {
                uint64_t at = offset + ret->length;
                struct chain_extent next;

                r = map_range(chain, at, end - at, flags, &next);
                if (r < 0) /* what is known so far is an answer */
                        return 0;
                if (next.kind != ret->kind || next.depth != ret->depth)
                        break;
                ret->length += next.length;
        }
        return r;
}

int chain_status(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
        struct chain_extent *ret)
{
        uint64_t ticket = chain_ticket_get(chain);
        int r = status_of(chain, offset, length, flags, ret);

        chain_ticket_put(chain, ticket);
        return r;
}

/* --- reading */

static int read_extent(const struct chain_extent *extent, void *data, unsigned flags)
{
        ssize_t got;

        if (extent->kind != EXTENT_DATA) {
                memset(data, 0, extent->length);
                return 0;
        }
        got = file_read(extent->file, data, extent->length, extent->file_offset,
                flags & CHAIN_NOWAIT ? FILE_NOWAIT : 0);
        if (got == (ssize_t)extent->length)
                return 0;
        if (flags & CHAIN_NOWAIT && (got >= 0 || got == -EOPNOTSUPP))
                return -EAGAIN;
        if (got >= 0)
                return -EIO; /* the file ends inside a block: never zeros for what is lost */
        return (int)got;
}

static int read_range(
        struct chain *chain, uint8_t *data, uint64_t length, uint64_t offset, unsigned flags)
{
        while (length > 0) {
                struct chain_extent extent;
                int r = map_range(chain, offset, length, flags & CHAIN_NOWAIT, &extent);

                if (r == 0)
                        r = read_extent(&extent, data, flags);
                if (r < 0)
                        return r;
                data += extent.length;
                offset += extent.length;
                length -= extent.length;
        }
        return 0;
}

int chain_read(struct chain *chain, void *data, size_t length, uint64_t offset, unsigned flags)
{
        uint64_t ticket;
        int r = check_range(chain, offset, length);

        if (r < 0)
                return r;
        ticket = chain_ticket_get(chain);
        r = read_range(chain, data, length, offset, flags);
        chain_ticket_put(chain, ticket);
        if (r == 0) {
                atomic_fetch_add_explicit(&chain->reads, 1, memory_order_relaxed);
                atomic_fetch_add_explicit(&chain->bytes_read, length, memory_order_relaxed);
        }
        return r;
}

int chain_cache(struct chain *chain, uint64_t length, uint64_t offset)
{
        uint64_t ticket = chain_ticket_get(chain);
        int r = check_range(chain, offset, length);

        while (r == 0 && length > 0) {
                struct chain_extent extent;

                r = map_range(chain, offset, length, 0, &extent);
                if (r < 0)
                        break;
                if (extent.kind == EXTENT_DATA && extent.file->fd >= 0)
                        posix_fadvise(extent.file->fd, (off_t)extent.file_offset,
                                (off_t)extent.length, POSIX_FADV_WILLNEED);
                offset += extent.length;
                length -= extent.length;
        }
        chain_ticket_put(chain, ticket);
        return r;
}

/* --- what a change needs to know */

#define ELSEWHERE ERESTART /* the block was drained meanwhile: the change goes to another layer */

/* One change of one block of the leaf, which stays the leaf meanwhile; or of the layer that the leaf's
 * blocks go to, where that one is gone (E11). */
struct change {
        struct chain *chain;
        const struct chain_view *view;
        unsigned layer;
        struct image *leaf;
        uint64_t offset, length; /* within one block */
        unsigned flags;
        bool needs_round; /* FUA: something that describes it is not durable */
};

static uint64_t step_of(const struct image *leaf)
{
        return leaf->block_size ? leaf->block_size : FLAT_STEP;
}

static uint64_t gate_key(const struct change *c)
{
        return c->offset / (c->view->gate_size ? c->view->gate_size : step_of(c->leaf));
}

/* E11: is there nothing left to drain around @offset? What is so once stays so. */
static bool is_drained(const struct chain_view *view, uint64_t offset)
{
        const struct view_drain *drain = view->drain;
        uint64_t unit = offset / drain->unit;

        if (atomic_load_explicit(&drain->done[unit], memory_order_acquire))
                return true;
        for (unsigned i = drain->first; i < view_n_layers(view); i++)
                if (drain_holds(view->layers[i], unit * drain->unit, drain->unit))
                        return false;
        atomic_store_explicit(&drain->done[unit], 1, memory_order_release);
        return true;
}

/* Which layer takes a change. The answer holds while one is inside the block's gate. */
static unsigned layer_for(const struct chain_view *view, uint64_t offset)
{
        return view->drain && is_drained(view, offset) ? view->drain->target
                                                       : view_n_layers(view) - 1;
}

static int enter(const struct change *c)
{
        if (!(c->flags & CHAIN_NOWAIT))
                gate_enter(c->chain->gates, gate_key(c));
        else if (!gate_try_enter(c->chain->gates, gate_key(c)))
                return -EAGAIN;
        if (layer_for(c->view, c->offset) == c->layer)
                return 0;
        gate_leave(c->chain->gates, gate_key(c));
        return -ELSEWHERE;
}

static void leave(const struct change *c)
{
        gate_leave(c->chain->gates, gate_key(c));
}

static int shut(const struct change *c)
{
        if (c->flags & CHAIN_NOWAIT)
                return -EAGAIN;
        gate_close(c->chain->gates, gate_key(c));
        if (layer_for(c->view, c->offset) == c->layer)
                return 0;
        gate_open(c->chain->gates, gate_key(c));
        return -ELSEWHERE;
}

static void reopen(const struct change *c)
{
        gate_open(c->chain->gates, gate_key(c));
}

/* The layers below say so? */
static int walk_below(const struct change *c)
{
        uint64_t offset = c->offset, length = c->length;

        while (length > 0) {
                struct chain_extent extent;
                int r = resolve_below(c->view->resolver, c->layer - 1, offset, length,
                        map_flags_of(c->flags), &extent);

                if (r < 0)
                        return r;
                if (extent.kind == EXTENT_DATA)
                        return 0;
                offset += extent.length;
                length -= extent.length;
        }
        return 1;
}

/* Does the range read as zeros if the leaf says nothing? 1, 0 or -errno. With a ticket, as readers have one: no
 * drain clears what it has copied while we look from layer to layer (D5). */
static int is_zero_below(const struct change *c)
{
        struct chain *chain = c->chain;
        uint64_t ticket;
        int r;

        if (chain->leaf_only || (c->view->keeps_blocks == c->leaf && !MUTANT("drain-up-frees")))
                return 0;
        if (c->layer == 0)
                return 1;
        ticket = chain_ticket_get(chain);
        r = walk_below(c);
        chain_ticket_put(chain, ticket);
        return r;
}

/* The same inside the gate: a drain that failed between its copy and the clear has put the leaf's bytes below
 * it meanwhile. */
static int is_still_zero_below(const struct change *c)
{
        return c->view->gate_size ? is_zero_below(c) : 1;
}

static bool is_whole_block(const struct change *c)
{
        uint64_t block_size = c->leaf->block_size;

        return block_size && c->offset % block_size == 0 &&
                (c->length == block_size || c->offset + c->length == c->chain->size);
}

/* The same where the unit is drained (E11): the layer below has it, and every chain over that is told. */
static int complete_below(struct change *c)
{
        struct image *leaf = c->leaf;
        bool changed, others = atomic_fetch_add(&c->chain->n_redirected, 1) > 0;
        int r = leaf->format->complete(leaf, c->offset, c->length, &changed);

        others = others || atomic_load(&c->chain->n_redirected) > 1;
        if (r == 0 && (changed || others))
                chain_family_forget(c->chain->family, c->offset, c->length);
        atomic_fetch_sub(&c->chain->n_redirected, 1);
        c->needs_round = c->needs_round || (r == 0 && changed);
        return r;
}

/* The data is in the file: record, bits, owner; in this order, and before the reply (E2, E4). */
static int complete(struct change *c)
{
        struct image *leaf = c->leaf;
        bool changed;
        int r;

        if (c->layer + 1 != view_n_layers(c->view))
                return complete_below(c);
        r = leaf->format->complete(leaf, c->offset, c->length, &changed);
        if (r == 0 && changed) {
                c->needs_round = true;
                resolver_changed(c->view->resolver, c->offset, c->length);
        } else if (r == 0) {
                /* Another write that overlaps has set the bits, and may not have said so yet. */
                resolver_confirm(c->view->resolver, c->offset, c->length);
        }
        return r;
}

/* --- writing */

/* FUA where everything that describes the range is durable (E3). A sync that fails here poisons the
 * image as one in a round does (E5). */
static int write_durably(struct change *c, const void *data, uint64_t file_offset)
{
        struct image *leaf = c->leaf;
        int r = file_write_durable(leaf->file, data, c->length, file_offset);
        int sync_error = r < 0 ? file_sync_error(leaf->file) : 0;

        if (r == -EINPROGRESS) {
                c->needs_round = true; /* a sync is under way: the next round is soonest */
                return 0;
        }
        if (sync_error < 0) {
                leaf->format->poison(leaf, -sync_error);
                return -EIO;
        }
        return r;
}

/* In an entered or closed gate. */
static int write_inside(struct change *c, const void *data)
{
        struct image *leaf = c->leaf;
        bool fua = c->flags & CHAIN_FUA;
        bool waits = leaf->file->flags & FILE_DIRECT; /* for the disk, not for the page cache */
        uint64_t file_offset;
        bool zero;
        int r = waits && c->flags & CHAIN_NOWAIT
                ? -EAGAIN
                : leaf->format->prepare(
                          leaf, c->offset, c->length, map_flags_of(c->flags), &file_offset, &zero);

        if (r < 0)
                return r;
        /* E11: while the leaf is drained, an entry of it that is cleared and not durably so could come
         * back over what is written here. */
        if (fua && (!c->view->drain || MUTANT("drain-fua-dsync")) &&
                leaf->format->is_durable(leaf, c->offset, c->length)) {
                r = write_durably(c, data, file_offset);
        } else {
                c->needs_round |= fua;
                r = file_write(leaf->file, data, c->length, file_offset, 0);
        }
        return r < 0 ? r : complete(c);
}

static int write_sectors(struct change *c, const void *data)
{
        int r = enter(c);

        if (r < 0)
                return r;
        r = write_inside(c, data);
        leave(c);
        return r;
}

/* Part of a sector (NULL: zeros): the rest of it is read and written with it, and nobody else may
 * write the block meanwhile (E7). */
static int write_part(struct change *c, const void *data)
{
        struct change whole = *c;
        uint8_t sector[SECTOR_SIZE];
        uint64_t ticket;
        int r = shut(c);

        if (r < 0)
                return r;
        ticket = chain_ticket_get(c->chain);
        whole.offset = round_down_to(c->offset, SECTOR_SIZE);
        whole.length = SECTOR_SIZE;
        r = read_range(c->chain, sector, SECTOR_SIZE, whole.offset, 0);
        chain_ticket_put(c->chain, ticket);
        if (r == 0) {
                uint8_t *part = sector + (c->offset - whole.offset);

                if (data)
                        memcpy(part, data, c->length);
                else
                        memset(part, 0, c->length);
                r = write_inside(&whole, sector);
        }
        reopen(c);
        c->needs_round |= whole.needs_round;
        return r;
}

/* --- zeros and trims */

static int punch_or_write_zeros(struct change *c, uint64_t file_offset)
{
        struct file *file = c->leaf->file;

        return c->flags & CHAIN_NO_HOLE ? file_write_zeros(file, file_offset, c->length)
                                        : file_punch(file, file_offset, c->length);
}

/* E9: the sectors are stored as zeros, in a hole where that is allowed. */
static int store_zeros(struct change *c)
{
        struct image *leaf = c->leaf;
        uint64_t file_offset;
        bool zero;
        int r = leaf->format->prepare(
                leaf, c->offset, c->length, map_flags_of(c->flags), &file_offset, &zero);

        if (r < 0)
                return r;
        if (!zero || c->flags & CHAIN_NO_HOLE)
                r = punch_or_write_zeros(c, file_offset);
        c->needs_round = true;
        return r < 0 ? r : complete(c);
}

/* E9: what the leaf has becomes holes, with the bits kept; what it does not have stays so. */
static int punch_present(struct change *c)
{
        struct image *leaf = c->leaf;
        uint64_t offset = c->offset, length = c->length;

        while (length > 0) {
                struct extent extent;
                int r = leaf->format->map(leaf, offset, length, map_flags_of(c->flags), &extent);

                if (r == 0 && extent.kind == EXTENT_DATA)
                        r = file_punch(leaf->file, extent.file_offset, extent.length);
                if (r < 0)
                        return r;
                offset += extent.length;
                length -= extent.length;
        }
        c->needs_round = true;
        return 0;
}

/* E9: a whole block that reads as zeros without us loses its place. */
static int discard_block(struct change *c)
{
        struct image *leaf = c->leaf;
        uint64_t start = round_down_to(c->offset, leaf->block_size);
        int r;

        c->needs_round = true; /* also where nothing is left to do: that may not be durable yet */
        if (!c->view->gate_size && !leaf->format->holds(leaf, start))
                return layer_for(c->view, c->offset) == c->layer ? 0 : -ELSEWHERE;
        r = shut(c);
        if (r < 0)
                return r;
        r = is_still_zero_below(c);
        if (r == 0)
                r = store_zeros(c);
        else if (r == 1)
                r = leaf->format->discard(leaf, start);
        if (r == 0)
                chain_family_forget(c->chain->family, c->offset, c->length);
        reopen(c);
        return r;
}

static int zero_sectors(struct change *c)
{
        bool keep_space = c->flags & CHAIN_NO_HOLE;
        int below = keep_space || !c->leaf->block_size ? 0 : is_zero_below(c);
        int r;

        if (below < 0)
                return below;
        if (below && is_whole_block(c))
                return discard_block(c);
        r = enter(c);
        if (r < 0)
                return r;
        below = below ? is_still_zero_below(c) : 0;
        r = below < 0 ? below : below ? punch_present(c) : store_zeros(c);
        leave(c);
        return r;
}

static int trim_sectors(struct change *c)
{
        int below = is_whole_block(c) ? is_zero_below(c) : 0;
        int r;

        if (below < 0)
                return below;
        if (below || (MUTANT("trim-clears-bit") && is_whole_block(c)))
                return discard_block(c);
        r = enter(c);
        if (r < 0)
                return r;
        r = punch_present(c);
        leave(c);
        return r;
}

/* --- splitting a request at blocks and sectors */

enum change_kind { CHANGE_WRITE, CHANGE_ZERO, CHANGE_TRIM };

/* The first piece of the range: inside one block, and either whole sectors or part of one. */
static uint64_t piece_of(
        const struct chain_view *view, const struct image *leaf, uint64_t offset, uint64_t length)
{
        uint64_t step = step_of(leaf), in_sector = offset % SECTOR_SIZE;

        length = MIN_OF(length, step - offset % step);
        if (view->gate_size)
                length = MIN_OF(length, view->gate_size - offset % view->gate_size);
        if (!leaf->block_size)
                return length; /* flat: the file takes any range */
        if (in_sector)
                return MIN_OF(length, SECTOR_SIZE - in_sector);
        return length < SECTOR_SIZE ? length : round_down_to(length, SECTOR_SIZE);
}

static int change_piece(struct change *c, enum change_kind kind, const uint8_t *data)
{
        bool part = c->leaf->block_size && (c->offset % SECTOR_SIZE || c->length % SECTOR_SIZE);

        if (part && kind == CHANGE_TRIM)
                return 0; /* a trim is advice: less than a sector is not worth the trouble */
        if (part)
                return write_part(c, data);
        if (kind == CHANGE_WRITE)
                return write_sectors(c, data);
        return kind == CHANGE_ZERO ? zero_sectors(c) : trim_sectors(c);
}

/* The first piece of what is left: c->length of it, at c->offset. While a snapshot is taken it waits
 * here, before it has looked at anything. */
static int change_held(
        struct change *c, enum change_kind kind, const uint8_t *data, uint64_t length)
{
        struct chain *chain = c->chain;
        uint64_t key = gate_own_key();
        int r;

        if (!(c->flags & CHAIN_NOWAIT))
                gate_enter(chain->hold, key);
        else if (!gate_try_enter(chain->hold, key))
                return -EAGAIN;
        c->view = chain_view(chain);
        do {
                c->layer = layer_for(c->view, c->offset);
                c->leaf = c->view->layers[c->layer];
                c->length = piece_of(c->view, c->leaf, c->offset, length);
                r = change_piece(c, kind, data);
        } while (r == -ELSEWHERE);
        gate_leave(chain->hold, key);
        return r;
}

/* The pieces are in the file: what is left before a FUA change is answered (E3, E10). */
static int finish_fua(struct chain *chain, bool needs_round, unsigned flags)
{
        if (flags & CHAIN_LATER && chain_is_uncommitted(chain))
                return -EINPROGRESS; /* the flush that the caller asks for makes the round, too */
        if (needs_round)
                return chain_flush(chain);
        return MUTANT("fua-before-commit") ? 0 : chain_wait_committed(chain);
}

static int change_range(struct chain *chain, enum change_kind kind, const uint8_t *data,
        uint64_t length, uint64_t offset, unsigned flags)
{
        bool needs_round = false;

        if (!chain->writable)
                return -EROFS;
        if (atomic_load_explicit(&chain->failed, memory_order_relaxed))
                return -EIO; /* E5 */
        if (check_range(chain, offset, length) < 0)
                return -EINVAL;
        if ((flags & CHAIN_FUA) && (flags & CHAIN_NOWAIT))
                return -EAGAIN;
        while (length > 0) {
                struct change c = {.chain = chain, .offset = offset, .flags = flags};
                int r = change_held(&c, kind, data, length);

                if (r < 0)
                        return r;
                needs_round |= c.needs_round;
                data = data ? data + c.length : NULL;
                offset += c.length;
                length -= c.length;
        }
        return flags & CHAIN_FUA ? finish_fua(chain, needs_round, flags) : 0;
}

int chain_write(
        struct chain *chain, const void *data, size_t length, uint64_t offset, unsigned flags)
{
        int r = change_range(chain, CHANGE_WRITE, data, length, offset, flags);

        if (r == 0) {
                atomic_fetch_add_explicit(&chain->writes, 1, memory_order_relaxed);
                atomic_fetch_add_explicit(&chain->bytes_written, length, memory_order_relaxed);
        }
        return r;
}

/* Without holes, or at odd ends, zeros are written out: not what "fast" means. */
static bool is_slow_zero(struct chain *chain, uint64_t length, uint64_t offset, unsigned flags)
{
        uint64_t ticket = chain_ticket_get(chain);
        bool blocks = chain_leaf(chain)->block_size != 0;

        chain_ticket_put(chain, ticket);
        return flags & CHAIN_NO_HOLE || (blocks && (offset % SECTOR_SIZE || length % SECTOR_SIZE));
}

int chain_zero(struct chain *chain, uint64_t length, uint64_t offset, unsigned flags)
{
        int r;

        if (flags & CHAIN_FAST_ZERO && is_slow_zero(chain, length, offset, flags))
                return -EOPNOTSUPP;
        r = change_range(chain, CHANGE_ZERO, NULL, length, offset, flags);
        if (r == 0)
                atomic_fetch_add_explicit(&chain->zeros, 1, memory_order_relaxed);
        return r;
}

int chain_trim(struct chain *chain, uint64_t length, uint64_t offset, unsigned flags)
{
        int r = change_range(chain, CHANGE_TRIM, NULL, length, offset, flags);

        if (r == 0)
                atomic_fetch_add_explicit(&chain->trims, 1, memory_order_relaxed);
        return r;
}

int chain_flush(struct chain *chain)
{
        int r = chain_flush_layers(chain);

        if (r == 0 && !MUTANT("flush-before-commit"))
                r = chain_wait_committed(chain); /* E10 */
        if (r == 0)
                atomic_fetch_add_explicit(&chain->flushes, 1, memory_order_relaxed);
        return r;
}
