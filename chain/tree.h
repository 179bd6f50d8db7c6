/* SPDX-License-Identifier: Apache-2.0 */
/* tree.h - the forest that a folder of VHDs is: which image stands on which, where a link is broken,
 * why, and what mends it.
 *
 * Only footers, headers and locators are read, by several threads at once, so that a thousand files
 * take seconds on a slow disk too. What a file is, its content says, never its name. Parents are
 * found by chain/locate.h under its rules; symbolic links are not followed.
 *
 * Units      bytes; times are unix seconds.
 * Ownership  a tree owns its nodes; they live as long as it does.
 * Errors     0 or -errno. A file or folder that cannot be read is a node or a note, not a failure:
 *            only a path that the caller named and that is not there at all fails.
 * Threads    a finished tree is read-only.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "base/file.h"
#include "chain/locate.h"
#include "formats/vhd/metadata.h"

struct tree_node {
        char *path; /* as the caller's path leads to it; of a parent found elsewhere: absolute */
        struct file_stat stat;
        /* what the image says of itself */
        bool readable; /* if not: error says why, and nothing from here to hidden is known */
        enum vhd_type type;
        uint64_t size; /* that the guest sees */
        uint32_t block_size;
        uint8_t id[16];
        uint8_t parent_id[16]; /* differencing only */
        int64_t created;
        char creator_app[5];
        uint32_t problems; /* enum vhd_problem */
        bool saved_state, hidden;
        bool merging; /* in the middle of a merge (E12): right only beneath the one that stands on it */
        char *parent_says; /* differencing: the first hint at the parent, as it is written, or "" */
        /* its place in the forest */
        bool outside;             /* in none of the caller's paths: reached as a parent */
        struct tree_node *alias;  /* another name (hard link) of this node, or NULL */
        struct tree_node *parent; /* NULL: a root, or the link is broken */
        struct tree_node *children, *next_sibling; /* by path */
        unsigned n_children;
        struct tree_node *same_id; /* the next file with the same id in a ring, or NULL: a copy */
        bool in_cycle;
        struct error
                error; /* unreadable, or why there is no parent; hint: the command that mends */
        struct tree_node
                *broken_at; /* the node at or under this one whose link is broken, or NULL */

        /* private to tree.c */
        struct tree_node *next_root, *next_in_bucket;
        uint64_t parent_device, parent_inode;
        char *parent_path;
        unsigned color;
        bool named;
};

struct tree {
        struct tree_node **nodes; /* by path, those outside last */
        size_t n_nodes;
        struct tree_node *roots; /* of every tree of the forest, by path; tree_next_root() */
        uint64_t n_other;        /* files that are no VHDs */
        char **notes;            /* folders that could not be read, as sentences */
        size_t n_notes;
};

/* Looks through @paths (files, and folders with all that is in them). Every folder among them and
 * every folder of a file is a root for parents, beside @roots (which may be NULL). */
int tree_scan(const char *const *paths, size_t n_paths, const struct locate_roots *roots,
        struct tree **ret, struct error *err);
struct tree *tree_free(struct tree *tree); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct tree *, tree_free)

static inline const struct tree_node *tree_next_root(const struct tree_node *node)
{
        return node->next_root;
}

/* Nobody stands on it, and it can be read: a disk that somebody may want. */
bool tree_is_tip(const struct tree_node *node);
/* Images down to the root, with itself. */
unsigned tree_depth(const struct tree_node *node);
/* The --image-root that lets this image's chain be opened, or "" if it needs none. */
int tree_image_root(const struct tree_node *node, char *ret, size_t ret_size);

/* Looks through the folder of @path and through everything beneath each root for images that name
 * @path as their parent (by its id; one that finds another file with that id stands on that).
 *   0       nobody
 *   -EBUSY  "N images stand on ...": their paths are in the sentence
 *   or the errno of reading @path or its folder */
int tree_refuse_if_parent(const char *path, const struct locate_roots *roots, struct error *err);

/* The same as a list of paths, which the caller frees one by one, and then the list. */
int tree_children_of(const char *path, const struct locate_roots *roots, char ***ret, size_t *ret_n,
        struct error *err);
