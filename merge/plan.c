/* SPDX-License-Identifier: Apache-2.0 */
/* Which way, and how many bytes: entries and bitmaps are read, no data. */
#include <stdlib.h>

#include "base/arith.h"
#include "merge/merge.h"

#define FLAT_STEP (UINT64_C(2) << 20)
#define MAX_EXTRA (UINT64_C(32) << 20) /* that a pull out of a root may take in addition */

const char *merge_direction_to_string(enum merge_direction direction)
{
        return direction == MERGE_DOWN ? "down" : direction == MERGE_UP ? "up" : "cheaper";
}

/* The layers @bottom .. @top of a chain, looked at from the top. */
struct stack {
        struct chain *chain;
        unsigned bottom, top;
};

static struct image *layer_of(const struct stack *stack, unsigned i)
{
        return (struct image *)(uintptr_t)chain_layer(stack->chain, i);
}

/* What the stack has at @offset: *ret_present for *ret_length. Zeros that take no space do not count. */
static int look(const struct stack *stack, uint64_t offset, uint64_t length, uint64_t *ret_length,
        bool *ret_present)
{
        *ret_present = false;
        for (unsigned i = stack->top + 1; i-- > stack->bottom;) {
                struct image *image = layer_of(stack, i);
                uint64_t block = image->block_size ? image->block_size : FLAT_STEP;
                struct extent extent;
                int r;

                if (offset >= image->size)
                        continue;
                length = MIN_OF(length, image->size - offset);
                length = MIN_OF(length, block - offset % block);
                if (image->format->holds && !image->format->holds(image, offset))
                        continue;
                r = image->format->map(image, offset, length, MAP_HOLES, &extent);
                if (r < 0)
                        return r;
                length = extent.length;
                if (extent.kind == EXTENT_ABSENT)
                        continue;
                *ret_present = extent.kind == EXTENT_DATA;
                break;
        }
        *ret_length = length;
        return 0;
}

/* The bytes that @stack has and that no layer of @over (or NULL) has. */
static int count(const struct stack *stack, const struct stack *over, uint64_t *ret)
{
        uint64_t size = chain_size(stack->chain);

        *ret = 0;
        for (uint64_t offset = 0, length; offset < size; offset += length) {
                bool present, covered = false;
                int r = look(stack, offset, size - offset, &length, &present);

                if (r == 0 && present && over)
                        r = look(over, offset, length, &length, &covered);
                if (r < 0)
                        return r;
                if (present && !covered)
                        *ret += length;
        }
        return 0;
}

static const char *path_of(struct chain *chain, unsigned layer)
{
        return chain_layer_path(chain, layer);
}

/* 0, or why the layers cannot go down. @ret_grow (or NULL: it cannot): what the root is to become first. */
static int check_down(
        struct chain *chain, unsigned first, unsigned last, uint64_t *ret_grow, struct error *err)
{
        uint64_t size, below;

        if (first == 0)
                return fail(err, EINVAL, "'%s' is the root: there is nothing below it",
                        path_of(chain, 0));
        size = chain_layer(chain, last)->size;
        below = chain_layer(chain, first - 1)->size;
        if (ret_grow && size > below && first == 1) {
                *ret_grow = size;
                return 0;
        }
        if (size == below)
                return 0;
        fail(err, EINVAL, "'%s' has %llu bytes and '%s' %llu: they cannot become one disk",
                path_of(chain, last), (unsigned long long)size, path_of(chain, first - 1),
                (unsigned long long)below);
        error_set_file(err, path_of(chain, last));
        if (size > below)
                error_set_hint(err, "vhdctl merge CHILD --output NEW makes one file of them");
        return -EINVAL;
}

static int check_up(struct chain *chain, unsigned last, struct error *err)
{
        if (last + 1 < chain_depth(chain))
                return 0;
        return fail(
                err, EINVAL, "'%s' is the leaf: there is nothing above it", path_of(chain, last));
}

static bool is_flat(struct chain *chain, unsigned layer)
{
        return chain_layer(chain, layer)->block_size == 0;
}

static int plan_down(
        struct chain *chain, struct merge_plan *plan, uint64_t *ret_grow, struct error *err)
{
        struct stack sources = {chain, plan->first, plan->last};
        int r = check_down(chain, plan->first, plan->last, ret_grow, err);

        if (r < 0)
                return r;
        plan->direction = MERGE_DOWN;
        plan->destination = plan->first - 1;
        r = count(&sources, NULL, &plan->bytes);
        return r < 0 ? fail_os(err, -r, "cannot tell what '%s' holds", path_of(chain, plan->last))
                     : 0;
}

static int plan_up(struct chain *chain, bool shared, struct merge_plan *plan, struct error *err)
{
        struct stack sources = {chain, plan->first, plan->last};
        struct stack over = {chain, plan->last + 1, plan->last + 1};
        int r = check_up(chain, plan->last, err);

        if (r < 0)
                return r;
        plan->direction = MERGE_UP;
        plan->destination = plan->last + 1;
        plan->keeps_sources = shared || plan->first == 0 || is_flat(chain, plan->first);
        r = count(&sources, &over, &plan->bytes);
        return r < 0 ? fail_os(err, -r, "cannot tell what '%s' holds", path_of(chain, plan->last))
                     : 0;
}

/* A pull out of a root takes space before it gives any back. */
static bool up_is_better(const struct merge_plan *up, const struct merge_plan *down)
{
        if (up->keeps_sources && up->bytes > MAX_EXTRA)
                return false;
        return up->bytes < down->bytes;
}

static int check_layers(struct chain *chain, unsigned first, unsigned last, struct error *err)
{
        if (first <= last && last < chain_depth(chain))
                return 0;
        return fail(err, EINVAL, "the chain has %u layers, and %u to %u are to go",
                chain_depth(chain), first, last);
}

int merge_plan_grown(struct chain *chain, unsigned first, unsigned last, struct merge_plan *ret,
        uint64_t *ret_size, struct error *err)
{
        struct merge_plan plan = {.first = first, .last = last, .bytes_other_way = UINT64_MAX};
        uint64_t size = 0;
        int r = check_layers(chain, first, last, err);

        if (r == 0)
                r = plan_down(chain, &plan, &size, err);
        if (r < 0)
                return r;
        *ret = plan;
        *ret_size = size;
        return 0;
}

int merge_plan(struct chain *chain, unsigned first, unsigned last, enum merge_direction wanted,
        bool shared, struct merge_plan *ret, struct error *err)
{
        struct merge_plan down = {.first = first, .last = last}, up = down;
        struct error why = ERROR_INIT;
        int can_down = -EINVAL, can_up = check_layers(chain, first, last, err);

        if (can_up < 0)
                return can_up;
        if (shared && wanted == MERGE_DOWN)
                return fail(err, EINVAL, "other images stand on '%s': it can only be copied up",
                        path_of(chain, last));
        if (wanted != MERGE_UP && !shared)
                can_down = plan_down(chain, &down, NULL, &why);
        if (wanted == MERGE_DOWN) {
                if (can_down < 0 && err)
                        *err = why;
                *ret = down;
                ret->bytes_other_way = UINT64_MAX;
                return can_down;
        }
        can_up = plan_up(chain, shared, &up, can_down < 0 && wanted == MERGE_UP ? err : &why);
        if (can_up < 0 && can_down < 0) {
                if (wanted != MERGE_UP && err)
                        *err = why;
                return can_up;
        }
        down.bytes_other_way = can_up == 0 ? up.bytes : UINT64_MAX;
        up.bytes_other_way = can_down == 0 ? down.bytes : UINT64_MAX;
        *ret = can_down < 0 || (can_up == 0 && up_is_better(&up, &down)) ? up : down;
        return 0;
}
