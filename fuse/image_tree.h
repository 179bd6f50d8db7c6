/* SPDX-License-Identifier: Apache-2.0 */
/* image_tree.h - the tree of one image and its parents: what `vhdctl mount FILE DIR` shows.
 *
 *      disk                  the guest's disk, as the chain reads it
 *      partitions/1 ...      its partitions, by the numbers that the kernel gives them
 *      partitions/info.json  what the partition table says of them
 *      layers/0 ...          what each image of the chain has: 0 is the one that was named, 1 its
 *                            parent, as `vhdctl map` and `vhdctl info --chain` count
 *      info.json             the images
 *
 * One byte has one place in the kernel's page cache: that of `disk`. The files that show the same bytes
 * of an image that is written to are not cached, and a write through one of them makes the kernel
 * forget what it has of `disk` there.
 *
 * Units      bytes.
 * Ownership  image_tree_new hands out, image_tree_free ends: after the session and the tree. The chain
 *            is the caller's and is closed last.
 * Errors     0 or -errno with one sentence.
 * Threads    the main one; the callbacks are called from the session's threads, one at a time.
 */
#pragma once

#include <sys/statvfs.h>

#include "chain/chain.h"
#include "fuse/partition_table.h"
#include "fuse/tree.h"

struct image_tree;

struct image_tree_options {
        struct chain *chain;
        /* Texts, which free() ends; NULL: none can be made. Required. */
        char *(*info)(void *opaque);
        char *(*partitions_info)(void *opaque, const struct partition_table *table);
        void (*warn)(void *opaque, const char *sentence);
        void *opaque;
};

/* As the leaf's file: who may read that may read what it holds. */
void image_tree_owner(struct chain *chain, struct vhdfuse_owner *ret);

int image_tree_new(struct vhdfuse_tree *tree, const struct image_tree_options *options,
        struct image_tree **ret, struct error *err);
struct image_tree *image_tree_free(struct image_tree *image); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct image_tree *, image_tree_free)

/* Of the file system that holds the leaf. */
void image_tree_statfs(struct image_tree *image, struct statvfs *ret);
