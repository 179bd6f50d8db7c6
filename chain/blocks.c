/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/blocks.h"

#include <stdlib.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/mutant.h"
#include "chain/internal.h"

#define COPY_SIZE (256 * KIB)
#define PAGE      UINT64_C(4096) /* of the disk's file system: smaller holes are none */

uint64_t chain_block_size(const struct chain *chain)
{
        return chain_leaf(chain)->block_size;
}

/* With chain->hold entered, or for a look only. */
static int fill(struct chain *chain, uint64_t offset, struct chain_block *ret)
{
        struct image *leaf = chain_leaf(chain);
        uint64_t start;

        if (!leaf->block_size || !leaf->format->move_begin)
                return -ENOTSUP;
        if (offset >= leaf->size)
                return -EINVAL;
        start = round_down_to(offset, leaf->block_size);
        ret->chain = chain;
        ret->n_layers = chain_n_layers(chain);
        ret->leaf = leaf;
        ret->offset = start;
        ret->length = MIN_OF((uint64_t)leaf->block_size, leaf->size - start);
        return 0;
}

int chain_block_look(struct chain *chain, uint64_t offset, struct chain_block *ret)
{
        return fill(chain, offset, ret);
}

int chain_block_shut(struct chain *chain, uint64_t offset, struct chain_block *ret)
{
        int r;

        if (!chain->writable)
                return -EROFS;
        if (atomic_load(&chain->failed))
                return -EIO; /* E5 */
        ret->key = gate_own_key();
        gate_enter(chain->hold, ret->key);
        r = fill(chain, offset, ret);
        if (r < 0) {
                gate_leave(chain->hold, ret->key);
                return r;
        }
        gate_close(chain->gates, ret->offset / ret->leaf->block_size);
        return 0;
}

void chain_block_open(const struct chain_block *block)
{
        gate_open(block->chain->gates, block->offset / block->leaf->block_size);
        gate_leave(block->chain->hold, block->key);
}

int chain_block_map_below(
        const struct chain_block *block, uint64_t offset, uint64_t length, struct chain_extent *ret)
{
        if (block->chain->leaf_only)
                return -EIO; /* nobody knows */
        if (block->n_layers > 1)
                return resolve_below(
                        chain_view(block->chain)->resolver, block->n_layers - 2, offset, length, 0, ret);
        *ret = (struct chain_extent){.length = length, .kind = EXTENT_ABSENT, .depth = 1};
        return 0;
}

int chain_block_release(const struct chain_block *block)
{
        struct image *leaf = block->leaf;
        int r = leaf->format->release(leaf, block->offset);

        if (r == 0)
                chain_family_forget(block->chain->family, block->offset, block->length);
        return r;
}

/* Pages of zeros are holes at the new place, and stay so. */
static int write_data(
        struct file *file, const uint8_t *data, uint64_t length, uint64_t to, uint64_t *written)
{
        while (length > 0) {
                uint64_t page = MIN_OF(length, PAGE - to % PAGE), run = 0;
                int r;

                while (run < length && !bytes_are_zero(data + run, page)) {
                        run += page;
                        page = MIN_OF(length - run, PAGE);
                }
                if (run == 0) {
                        run = page;
                } else {
                        r = file_write(file, data, run, to, 0);
                        if (r < 0)
                                return r;
                        *written += run;
                }
                data += run;
                to += run;
                length -= run;
        }
        return 0;
}

static int copy_range(struct file *file, uint64_t from, uint64_t to, uint64_t length,
        uint8_t *buffer, uint64_t *written)
{
        uint64_t end = from + length;

        while (from < end) {
                uint64_t data, n;
                int r = file_seek_data(file, from, &data);

                if (r < 0)
                        return r;
                if (data >= end)
                        return 0; /* a hole, as the new place is one */
                to += data - from;
                from = data;
                n = MIN_OF(end - from, COPY_SIZE);
                r = file_read_exact(file, buffer, n, from);
                if (r == 0)
                        r = write_data(file, buffer, n, to, written);
                if (r < 0)
                        return r == -ENODATA ? -EIO : r;
                from += n;
                to += n;
        }
        return 0;
}

/* What the image has of the block; under clear bits nothing is worth the trouble. */
static int copy_block(
        struct image *image, const struct block_move *move, uint64_t length, uint64_t *written)
{
        _cleanup_free_ uint8_t *buffer = malloc(COPY_SIZE);
        uint64_t at = 0;

        if (!buffer)
                return -ENOMEM;
        while (at < length) {
                struct extent extent;
                int r = image->format->map(image, move->offset + at, length - at, 0, &extent);

                if (r == 0 && extent.kind == EXTENT_DATA)
                        r = copy_range(image->file, extent.file_offset, move->to + at,
                                extent.length, buffer, written);
                if (r < 0)
                        return r;
                at += extent.length;
        }
        return 0;
}

int image_block_move(struct image *image, uint64_t offset, uint64_t length, uint64_t behind,
        uint64_t *ret_written)
{
        struct block_move move;
        int r = image->format->move_begin(image, offset, behind, &move), copied = 0;

        *ret_written = 0;
        if (r <= 0)
                return r;
        if (!MUTANT("move-before-copy"))
                copied = copy_block(image, &move, length, ret_written);
        r = image->format->move_end(image, &move, copied == 0);
        if (copied == 0 && r == 0 && MUTANT("move-before-copy"))
                copied = copy_block(image, &move, length, ret_written);
        if (copied < 0 || r < 0)
                return copied < 0 ? copied : r;
        return 1;
}

int chain_block_move(const struct chain_block *block, uint64_t behind, uint64_t *ret_written)
{
        return image_block_move(block->leaf, block->offset, block->length, behind, ret_written);
}
