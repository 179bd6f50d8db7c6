/* SPDX-License-Identifier: Apache-2.0 */
/* Block status: one walk over the disk's runs fills the lists of all contexts that were agreed on.
 * Neighbours with the same answer are one extent; no extent ends outside the request, so sums of
 * lengths stay within its 32 bits. */
#include <string.h>

#include "base/arith.h"
#include "nbd/server/private.h"

struct extent_list {
        struct nbd_wire_extent *extents;
        unsigned n, max;
        uint32_t length, flags; /* the one that is growing; length 0: none */
};

static uint32_t depth_of(const struct chain_extent *extent)
{
        return extent->kind == EXTENT_ABSENT ? 0 : extent->depth + 1;
}

/* 1 if a layer above the one that the snapshot froze has it. Where nobody has it now, nobody had it
 * then: a child keeps its zeros for as long as a parent has data there (E9).
 * @n_layers is the most that there were while the extent was asked for: a layer that was pushed or that a
 * merge took out in between then makes more look changed, never less. */
static uint32_t changed_since(
        unsigned snapshot_layer, const struct chain_extent *extent, unsigned n_layers)
{
        return extent->kind != EXTENT_ABSENT && extent->depth + snapshot_layer + 1 < n_layers;
}

static uint32_t flags_of(const struct agreement *agreement, unsigned context,
        const struct chain_extent *extent, unsigned n_layers)
{
        switch (context) {
        case CONTEXT_ALLOCATION:
                return extent->kind == EXTENT_DATA ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
        case CONTEXT_DEPTH:
        case CONTEXT_QEMU_DEPTH: return depth_of(extent);
        default:
                return changed_since(
                        __atomic_load_n(
                                &agreement->changed_layers[context - N_CONTEXTS], __ATOMIC_ACQUIRE),
                        extent, n_layers);
        }
}

static void push(struct extent_list *list)
{
        if (list->length == 0 || list->n == list->max)
                return;
        list->extents[list->n++] = (struct nbd_wire_extent){
                .length = be32_make(list->length),
                .flags = be32_make(list->flags),
        };
        list->length = 0;
}

static void add(struct extent_list *list, uint32_t length, uint32_t flags)
{
        if (list->length > 0 && list->flags == flags) {
                list->length += length;
                return;
        }
        push(list);
        list->length = length;
        list->flags = flags;
}

/* Does every context have all that it can use? */
static bool all_full(const struct extent_list *lists, unsigned contexts)
{
        for (unsigned i = 0; i < MAX_CONTEXTS; i++)
                if (contexts & 1u << i && lists[i].n < lists[i].max)
                        return false;
        return true;
}

static int walk(const struct client *client, const struct command *command, unsigned flags,
        struct extent_list *lists)
{
        const struct agreement *agreement = &client->agreement;
        const struct chain *chain = agreement->export->volume->chain;
        unsigned contexts = agreement->contexts, n_layers;
        uint64_t at = command->offset, end = command->offset + command->length;

        if (contexts & 1u << CONTEXT_ALLOCATION)
                flags |= CHAIN_HOLES;
        while (at < end && !all_full(lists, contexts)) {
                struct chain_extent extent;
                uint32_t length;
                int r;

                n_layers = chain_depth(chain);
                r = chain_status(agreement->export->volume->chain, at, end - at, flags, &extent);
                if (r < 0)
                        return r;
                n_layers = MAX_OF(n_layers, chain_depth(chain));
                length = (uint32_t)MIN_OF(extent.length, end - at);
                for (unsigned i = 0; i < MAX_CONTEXTS; i++)
                        if (contexts & 1u << i)
                                add(&lists[i], length, flags_of(agreement, i, &extent, n_layers));
                at += length;
        }
        return 0;
}

ssize_t status_reply_build(
        const struct client *client, const struct command *command, unsigned flags, uint8_t *out)
{
        bool one = command->flags & NBD_CMD_FLAG_REQ_ONE;
        unsigned contexts = client->agreement.contexts;
        struct extent_list lists[MAX_CONTEXTS];
        uint8_t *p = out;
        int r;

        /* Each list is built where it will stand if those before it are full, and moved down. */
        for (unsigned i = 0; i < MAX_CONTEXTS; i++) {
                size_t before = (size_t)i * (STATUS_REPLY_BOUND / MAX_CONTEXTS);

                lists[i] = (struct extent_list){
                        .extents = (void *)(out + before + sizeof(struct nbd_wire_chunk) +
                                sizeof(be32)),
                        .max = one ? 1 : STATUS_MAX_EXTENTS,
                };
        }
        r = walk(client, command, flags, lists);
        if (r < 0)
                return r;

        for (unsigned i = 0; i < MAX_CONTEXTS; i++) {
                be32 id = be32_make(CONTEXT_ID(i));
                struct nbd_wire_chunk chunk = {
                        .magic = be32_make(NBD_STRUCTURED_REPLY_MAGIC),
                        .type = be16_make(NBD_REPLY_TYPE_BLOCK_STATUS),
                };
                uint32_t size;

                if (!(contexts & 1u << i))
                        continue;
                push(&lists[i]);
                size = lists[i].n * (uint32_t)sizeof(struct nbd_wire_extent);
                chunk.length = be32_make((uint32_t)sizeof(id) + size);
                /* The last of the agreed contexts ends the reply. */
                chunk.flags = be16_make(contexts >> (i + 1) ? 0 : NBD_REPLY_FLAG_DONE);
                memcpy(chunk.cookie, command->cookie, sizeof(chunk.cookie));
                memmove(p + sizeof(chunk) + sizeof(id), lists[i].extents, size);
                memcpy(p, &chunk, sizeof(chunk));
                memcpy(p + sizeof(chunk), &id, sizeof(id));
                p += sizeof(chunk) + sizeof(id) + size;
        }
        return p - out;
}
