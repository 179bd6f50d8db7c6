/* SPDX-License-Identifier: Apache-2.0 */
/* tree.h - the directories and files that a mount shows. What the files hold is their makers'; the
 * tree knows nothing of images.
 *
 * Nodes may be added and removed while it is mounted, from any thread: the kernel is told, and who has
 * a removed file open goes on reading it. A node's memory is counted: it goes with the last of its
 * place in the tree, the kernel's lookups, open files, and vhdfuse_node_ref()s.
 *
 * Units      bytes; times since 1970 UTC.
 * Ownership  vhdfuse_tree_new hands out, vhdfuse_tree_free ends it with all its nodes: after the
 *            session. Adding takes a file's closure over, on success only; ops->free ends it.
 *            A node that adding answers may be used until it is removed.
 * Errors     0 or -errno; with an err one sentence.
 * Threads    everything from many threads at once, but for new and free. Callbacks are called without
 *            a lock held, from many threads at once. Adding and removing from within one is fine in
 *            release and flush of another file; else the kernel may be waiting for that callback.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/error.h"

struct vhdfuse_tree;
struct vhdfuse_node;

/* What a file is made of. @closure is the file's, @handle what its open answered (NULL without one).
 * All may block; ranges lie inside the size. 0 or -errno, which goes to the reader as it is. */
struct vhdfuse_file_ops {
        uint64_t (*size)(void *closure);                    /* required */
        void (*mtime)(void *closure, struct timespec *ret); /* required */
        /* Optional: of what one open sees, where that is not the file's. */
        uint64_t (*open_size)(void *closure, void *handle);
        uint64_t (*allocated)(void *closure); /* bytes that take space. NULL: as many as the size */
        int (*open)(void *closure, bool writable, void **ret_handle); /* NULL: nothing to do */
        void (*release)(void *closure, void *handle);                 /* NULL: nothing to do */
        /* Required. All @length bytes are filled in when it answers 0. */
        int (*read)(void *closure, void *handle, void *data, size_t length, uint64_t offset);
        /* Optional (NULL: the file is read-only, whatever the mount is). */
        int (*write)(void *closure, void *handle, const void *data, size_t length, uint64_t offset);
        /* Optional. The range reads as zeros from now on; @punch: its space may go. */
        int (*zero)(void *closure, void *handle, uint64_t length, uint64_t offset, bool punch);
        /* Optional (NULL: nothing to do). What was answered before the call is durable. */
        int (*flush)(void *closure, void *handle);
        /* Optional (NULL: all is data). Is there data at @offset, or a hole, and how far (at least 1, at
         * most @length)? */
        int (*map)(void *closure, void *handle, uint64_t length, uint64_t offset, bool *ret_data,
                uint64_t *ret_length);
        void (*free)(void *closure); /* Optional. The node is gone. No callback runs */
};

enum vhdfuse_file_flags {
        /* What it holds changes behind the kernel's back: never in its page cache. */
        VHDFUSE_UNCACHED = 1u << 0,
};

/* Who owns the files, and which permissions they have (of 0666; directories get the x that goes with
 * each r). */
struct vhdfuse_owner {
        uid_t uid;
        gid_t gid;
        mode_t mode;
};

/* -ENOMEM, without a sentence. */
int vhdfuse_tree_new(const struct vhdfuse_owner *owner, struct vhdfuse_tree **ret);
struct vhdfuse_tree *vhdfuse_tree_free(struct vhdfuse_tree *tree); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct vhdfuse_tree *, vhdfuse_tree_free)

struct vhdfuse_node *vhdfuse_tree_root(struct vhdfuse_tree *tree);

/* @name: one component of a path, at most 255 bytes.
 *   -EEXIST  there is one    -EINVAL  no name for a file    -ENOENT  @parent was removed    -ENOMEM */
int vhdfuse_tree_add_directory(struct vhdfuse_tree *tree, struct vhdfuse_node *parent,
        const char *name, struct vhdfuse_node **ret);
int vhdfuse_tree_add_file(struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name,
        const struct vhdfuse_file_ops *ops, void *closure, unsigned flags,
        struct vhdfuse_node **ret);
/* A file that holds @text, copied, made now. */
int vhdfuse_tree_add_text(struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name,
        const char *text, struct vhdfuse_node **ret);

/* One whose text @make makes anew whenever it is opened (NULL: -EIO); who has it open reads one text. */
int vhdfuse_tree_add_made_text(struct vhdfuse_tree *tree, struct vhdfuse_node *parent,
        const char *name, char *(*make)(void *opaque), void *opaque, struct vhdfuse_node **ret);

/* The node, and all beneath it, is no more. Who has a file open reads on. The root cannot go. */
void vhdfuse_tree_remove(struct vhdfuse_tree *tree, struct vhdfuse_node *node);

/* The child of that name, or NULL. */
struct vhdfuse_node *vhdfuse_tree_find(
        struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name);

/* The file's bytes in the range are others now (@length 0: to the end), or its size or time: the kernel
 * forgets what it has of them. May wait for operations on that file, so only from a thread that answers
 * none, or from an operation on a file that is VHDFUSE_UNCACHED itself. */
void vhdfuse_tree_changed(
        struct vhdfuse_tree *tree, struct vhdfuse_node *file, uint64_t offset, uint64_t length);
