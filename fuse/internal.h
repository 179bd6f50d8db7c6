/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what the parts of fuse/ know of each other: nodes as the operations see them.
 *
 * Units, Ownership, Errors, Threads: as in tree.h.
 */
#pragma once

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>

#include "fuse/tree.h"

struct vhdfuse_node {
        /* immutable after adding */
        char *name;
        uint64_t number;                    /* st_ino: never used again */
        const struct vhdfuse_file_ops *ops; /* NULL: a directory */
        void *closure;
        unsigned flags;

        /* guarded by the tree's lock */
        struct vhdfuse_node *parent; /* NULL: the root, or removed. Holds no reference */
        struct vhdfuse_node *first_child, *last_child, *previous, *next; /* in order of adding */
        uint64_t n_refs;         /* place in the tree, lookups, opens, vhdfuse_node_ref */
        uint64_t n_lookups;      /* the kernel's, which are references too */
        struct timespec changed; /* of a directory: when a child came or went */
};

struct vhdfuse_tree {
        struct vhdfuse_owner owner; /* immutable */
        pthread_mutex_t lock;
        /* guarded by lock */
        struct vhdfuse_node *root;
        uint64_t last_number;
        struct fuse_session *session; /* NULL: the kernel need not be told */
        /* Threads that tell the kernel something: the session is not ended under them. */
        unsigned n_telling;
        pthread_cond_t told;
};

/* From here on the kernel is told of changes; NULL: not any more, and nobody is telling it. */
void vhdfuse_tree_set_session(struct vhdfuse_tree *tree, struct fuse_session *session);

static inline bool node_is_directory(const struct vhdfuse_node *node)
{
        return !node->ops;
}

fuse_ino_t vhdfuse_node_id(const struct vhdfuse_tree *tree, const struct vhdfuse_node *node);
struct vhdfuse_node *vhdfuse_node_of(struct vhdfuse_tree *tree, fuse_ino_t id);

/* The child, with a lookup counted; NULL: there is none. */
struct vhdfuse_node *vhdfuse_node_lookup(
        struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name);
/* Counts one lookup more of a node that the caller holds. False: it was removed. */
bool vhdfuse_node_looked_up(struct vhdfuse_tree *tree, struct vhdfuse_node *node);
void vhdfuse_node_forget(struct vhdfuse_tree *tree, struct vhdfuse_node *node, uint64_t n);

struct vhdfuse_node *vhdfuse_node_ref(struct vhdfuse_tree *tree, struct vhdfuse_node *node);
void vhdfuse_node_unref(struct vhdfuse_tree *tree, struct vhdfuse_node *node);

/* The children, each with a reference, ended by NULL; NULL: no memory. @ret_parent: the number of the
 * directory above. */
struct vhdfuse_node **vhdfuse_node_children(
        struct vhdfuse_tree *tree, struct vhdfuse_node *directory, uint64_t *ret_parent);

void vhdfuse_node_stat(struct vhdfuse_tree *tree, struct vhdfuse_node *node, struct stat *ret);

/* --- ops.c */

/* What the operations get as their userdata. */
struct vhdfuse_mount {
        struct vhdfuse_tree *tree;
        void (*statfs)(void *opaque, struct statvfs *ret);
        void *opaque;
};
extern const struct fuse_lowlevel_ops vhdfuse_ops;

#define VHDFUSE_IO_MAX         (1u << 20) /* the longest read or write */
#define VHDFUSE_MAX_BACKGROUND 64u        /* requests that the kernel has under way by itself */
