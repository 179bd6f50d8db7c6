/* SPDX-License-Identifier: Apache-2.0 */
#include "fuse/span.h"

#include "base/arith.h"

struct span {
        struct span_options options; /* immutable */
};

void *span_new(const struct span_options *options)
{
        struct span *span = malloc(sizeof(*span));

        if (span)
                span->options = *options;
        return span;
}

static const struct image *leaf_of(struct chain *chain)
{
        return chain_layer(chain, chain_depth(chain) - 1);
}

uint64_t span_allocated(struct chain *chain, uint64_t size)
{
        uint64_t allocated = 0;

        for (unsigned i = chain_depth(chain); i-- > 0 && allocated < size;) {
                struct file_stat st;

                /* Of a device nothing is known; all of it may be data. */
                if (file_stat_get(chain_layer(chain, i)->file, &st) < 0 || !st.is_regular)
                        return size;
                allocated += st.allocated;
        }
        return MIN_OF(allocated, size);
}

void span_mtime(struct chain *chain, struct timespec *ret)
{
        struct file_stat st = {0};

        file_stat_get(leaf_of(chain)->file, &st);
        *ret = (struct timespec){.tv_sec = st.mtime_s, .tv_nsec = st.mtime_ns};
}

static uint64_t get_size(void *closure)
{
        return ((struct span *)closure)->options.size;
}

static void get_mtime(void *closure, struct timespec *ret)
{
        span_mtime(((struct span *)closure)->options.chain, ret);
}

static uint64_t get_allocated(void *closure)
{
        const struct span_options *o = &((struct span *)closure)->options;

        return span_allocated(o->chain, o->size);
}

static int span_read(void *closure, void *handle, void *data, size_t length, uint64_t offset)
{
        const struct span_options *o = &((struct span *)closure)->options;

        return chain_read(o->chain, data, length, o->start + offset, 0);
}

/* A change that failed may have been made in part: whoever keeps old bytes is told in any case. */
static int tell(const struct span_options *o, int r, uint64_t offset, uint64_t length)
{
        if (o->changed)
                o->changed(o->opaque, o->start + offset, length);
        return r;
}

static int span_write(void *closure, void *handle, const void *data, size_t length, uint64_t offset)
{
        const struct span_options *o = &((struct span *)closure)->options;

        return tell(o, chain_write(o->chain, data, length, o->start + offset, 0), offset, length);
}

static int span_zero(void *closure, void *handle, uint64_t length, uint64_t offset, bool punch)
{
        const struct span_options *o = &((struct span *)closure)->options;
        unsigned flags = punch ? 0 : CHAIN_NO_HOLE;

        return tell(o, chain_zero(o->chain, length, o->start + offset, flags), offset, length);
}

static int span_flush(void *closure, void *handle)
{
        const struct span_options *o = &((struct span *)closure)->options;
        int r = chain_flush(o->chain);

        if (o->flushed)
                o->flushed(o->opaque);
        return r;
}

static void span_release(void *closure, void *handle)
{
        const struct span_options *o = &((struct span *)closure)->options;

        if (o->released)
                o->released(o->opaque);
}

static int span_map(void *closure, void *handle, uint64_t length, uint64_t offset, bool *ret_data,
        uint64_t *ret_length)
{
        const struct span_options *o = &((struct span *)closure)->options;
        struct chain_extent extent;
        int r = chain_status(o->chain, o->start + offset, length, CHAIN_HOLES, &extent);

        if (r < 0)
                return r;
        *ret_data = extent.kind == EXTENT_DATA;
        *ret_length = extent.length;
        return 0;
}

#define SPAN_READ_OPS                                                                              \
        .size = get_size, .mtime = get_mtime, .allocated = get_allocated, .read = span_read,       \
        .map = span_map, .free = free

const struct vhdfuse_file_ops span_read_only_ops = {SPAN_READ_OPS};

const struct vhdfuse_file_ops span_ops = {
        SPAN_READ_OPS,
        .write = span_write,
        .zero = span_zero,
        .flush = span_flush,
        .release = span_release,
};
