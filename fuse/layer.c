/* SPDX-License-Identifier: Apache-2.0 */
#include "fuse/layer.h"

#include <string.h>

#include "base/arith.h"

struct layer {
        struct chain *chain; /* immutable */
        unsigned index;      /* immutable */
};

void *layer_new(struct chain *chain, unsigned index)
{
        struct layer *layer = malloc(sizeof(*layer));

        if (layer)
                *layer = (struct layer){chain, index};
        return layer;
}

static struct image *image_of(const struct layer *layer)
{
        return (struct image *)chain_layer(layer->chain, layer->index);
}

static uint64_t layer_size(void *closure)
{
        return image_of(closure)->size;
}

static void layer_mtime(void *closure, struct timespec *ret)
{
        struct file_stat st = {0};

        file_stat_get(image_of(closure)->file, &st);
        *ret = (struct timespec){.tv_sec = st.mtime_s, .tv_nsec = st.mtime_ns};
}

static uint64_t layer_allocated(void *closure)
{
        const struct image *image = image_of(closure);
        struct file_stat st;

        if (file_stat_get(image->file, &st) < 0 || !st.is_regular)
                return image->size;
        return MIN_OF(st.allocated, image->size);
}

static int map(
        struct image *image, uint64_t offset, uint64_t length, unsigned flags, struct extent *ret)
{
        int r = image->format->map(image, offset, length, flags, ret);

        if (r == 0)
                ret->length = MIN_OF(ret->length, length);
        return r;
}

static int read_range(struct image *image, uint8_t *data, uint64_t length, uint64_t offset)
{
        while (length > 0) {
                struct extent extent;
                int r = map(image, offset, length, 0, &extent);

                if (r < 0)
                        return r;
                if (extent.kind == EXTENT_DATA)
                        r = file_read_exact(image->file, data, extent.length, extent.file_offset);
                else
                        memset(data, 0, extent.length);
                if (r < 0)
                        return r == -ENODATA ? -EIO : r; /* the file ends inside a block */
                data += extent.length;
                offset += extent.length;
                length -= extent.length;
        }
        return 0;
}

static int layer_read(void *closure, void *handle, void *data, size_t length, uint64_t offset)
{
        const struct layer *layer = closure;
        uint64_t ticket = chain_ticket_get(layer->chain); /* places are lent by the chain (E8) */
        int r = read_range(image_of(layer), data, length, offset);

        chain_ticket_put(layer->chain, ticket);
        return r;
}

/* Neighbours of a kind are one, else each block would be asked for. */
static int layer_map(void *closure, void *handle, uint64_t length, uint64_t offset, bool *ret_data,
        uint64_t *ret_length)
{
        const struct layer *layer = closure;
        uint64_t ticket = chain_ticket_get(layer->chain), done = 0;
        int r = 0;

        while (r == 0 && done < length) {
                struct extent extent;
                bool is_data;

                r = map(image_of(layer), offset + done, length - done, MAP_HOLES, &extent);
                if (r < 0)
                        break;
                is_data = extent.kind == EXTENT_DATA;
                if (done > 0 && is_data != *ret_data)
                        break;
                *ret_data = is_data;
                done += extent.length;
        }
        chain_ticket_put(layer->chain, ticket);
        *ret_length = done;
        return done > 0 ? 0 : r;
}

const struct vhdfuse_file_ops layer_ops = {
        .size = layer_size,
        .mtime = layer_mtime,
        .allocated = layer_allocated,
        .read = layer_read,
        .map = layer_map,
        .free = free,
};
