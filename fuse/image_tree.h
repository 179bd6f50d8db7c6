/* SPDX-License-Identifier: Apache-2.0 */
/* image_tree.h - the tree of one image and its parents: what `vhdctl mount FILE DIR` shows.
 *
 *      disk   the guest's disk, as the chain reads it
 *
 * Units      bytes.
 * Ownership  image_tree_new hands out, image_tree_free ends: after the session and the tree. The chain
 *            is the caller's and is closed last.
 * Errors     0 or -errno with one sentence.
 * Threads    the main one; what is shown is used by the session's threads.
 */
#pragma once

#include <sys/statvfs.h>

#include "chain/chain.h"
#include "fuse/tree.h"

struct image_tree;

/* As the leaf's file: who may read that may read what it holds. */
void image_tree_owner(struct chain *chain, struct vhdfuse_owner *ret);

int image_tree_new(
        struct vhdfuse_tree *tree, struct chain *chain, struct image_tree **ret, struct error *err);
struct image_tree *image_tree_free(struct image_tree *image); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct image_tree *, image_tree_free)

/* Of the file system that holds the leaf. */
void image_tree_statfs(struct image_tree *image, struct statvfs *ret);
