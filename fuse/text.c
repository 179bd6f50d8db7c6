/* SPDX-License-Identifier: Apache-2.0 */
/* Files that hold a text: one that does not change, or one that is made anew for each who opens it. */
#include <string.h>

#include "fuse/tree.h"

struct text {
        struct timespec made;
        char *fixed; /* NULL: it is made */
        char *(*make)(void *opaque);
        void *opaque;

        /* of a made one, guarded by lock */
        pthread_mutex_t lock;
        uint64_t length; /* of the last one that was made: what it says without being opened */
};

static void text_mtime(void *closure, struct timespec *ret)
{
        *ret = ((struct text *)closure)->made;
}

static void text_free(void *closure)
{
        struct text *text = closure;

        pthread_mutex_destroy(&text->lock);
        free(text->fixed);
        free(text);
}

static int read_from(const char *bytes, void *data, size_t length, uint64_t offset)
{
        memcpy(data, bytes + offset, length);
        return 0;
}

/* --- one that does not change */

static uint64_t fixed_size(void *closure)
{
        return strlen(((struct text *)closure)->fixed);
}

static int fixed_read(void *closure, void *handle, void *data, size_t length, uint64_t offset)
{
        return read_from(((struct text *)closure)->fixed, data, length, offset);
}

static const struct vhdfuse_file_ops fixed_ops = {
        .size = fixed_size,
        .mtime = text_mtime,
        .read = fixed_read,
        .free = text_free,
};

/* --- one that is made: a handle is a text */

static void note_length(struct text *text, uint64_t length)
{
        MUTEX_GUARD(&text->lock);
        text->length = length;
}

static uint64_t made_size(void *closure)
{
        struct text *text = closure;

        MUTEX_GUARD(&text->lock);
        return text->length;
}

static void made_mtime(void *closure, struct timespec *ret)
{
        clock_gettime(CLOCK_REALTIME, ret);
}

static int made_open(void *closure, bool writable, void **ret_handle)
{
        struct text *text = closure;
        char *made = text->make(text->opaque);

        if (!made)
                return -EIO;
        note_length(text, strlen(made));
        *ret_handle = made;
        return 0;
}

static void made_release(void *closure, void *handle)
{
        free(handle);
}

static uint64_t made_open_size(void *closure, void *handle)
{
        return strlen(handle);
}

static int made_read(void *closure, void *handle, void *data, size_t length, uint64_t offset)
{
        return read_from(handle, data, length, offset);
}

static const struct vhdfuse_file_ops made_ops = {
        .size = made_size,
        .open_size = made_open_size,
        .mtime = made_mtime,
        .open = made_open,
        .release = made_release,
        .read = made_read,
        .free = text_free,
};

static int add(struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name,
        const struct text *what, struct vhdfuse_node **ret)
{
        struct text *text = malloc(sizeof(*text));
        int r;

        if (!text)
                return -ENOMEM;
        *text = *what;
        clock_gettime(CLOCK_REALTIME, &text->made);
        pthread_mutex_init(&text->lock, NULL);
        r = vhdfuse_tree_add_file(tree, parent, name, text->fixed ? &fixed_ops : &made_ops, text,
                text->fixed ? 0 : VHDFUSE_UNCACHED, ret);
        if (r < 0)
                text_free(text);
        return r;
}

int vhdfuse_tree_add_text(struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name,
        const char *text, struct vhdfuse_node **ret)
{
        const struct text what = {.fixed = strdup(text)};

        return what.fixed ? add(tree, parent, name, &what, ret) : -ENOMEM;
}

int vhdfuse_tree_add_made_text(struct vhdfuse_tree *tree, struct vhdfuse_node *parent,
        const char *name, char *(*make)(void *opaque), void *opaque, struct vhdfuse_node **ret)
{
        _cleanup_free_ char *first = make(opaque);
        const struct text what = {
                .make = make, .opaque = opaque, .length = first ? strlen(first) : 0};

        return add(tree, parent, name, &what, ret);
}
