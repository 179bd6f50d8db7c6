/* SPDX-License-Identifier: Apache-2.0 */
/* Files that hold a text which does not change. */
#include <string.h>

#include "fuse/tree.h"

struct text {
        size_t length;
        struct timespec made;
        char bytes[];
};

static uint64_t text_size(void *closure)
{
        return ((struct text *)closure)->length;
}

static void text_mtime(void *closure, struct timespec *ret)
{
        *ret = ((struct text *)closure)->made;
}

static int text_read(void *closure, void *handle, void *data, size_t length, uint64_t offset)
{
        const struct text *text = closure;

        memcpy(data, text->bytes + offset, length);
        return 0;
}

static const struct vhdfuse_file_ops text_ops = {
        .size = text_size,
        .mtime = text_mtime,
        .read = text_read,
        .free = free,
};

int vhdfuse_tree_add_text(struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name,
        const char *text, struct vhdfuse_node **ret)
{
        size_t length = strlen(text);
        struct text *copy = malloc(sizeof(*copy) + length);
        int r;

        if (!copy)
                return -ENOMEM;
        copy->length = length;
        clock_gettime(CLOCK_REALTIME, &copy->made);
        memcpy(copy->bytes, text, length);
        r = vhdfuse_tree_add_file(tree, parent, name, &text_ops, copy, 0, ret);
        if (r < 0)
                free(copy);
        return r;
}
