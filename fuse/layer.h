/* SPDX-License-Identifier: Apache-2.0 */
/* layer.h - what one image of a chain has of the disk, as a file: holes where it says nothing.
 *
 * Units      bytes.
 * Ownership  layer_new hands out; the tree's node takes it over, or free() ends it. The chain is the
 *            caller's and lives longer.
 * Errors     those of the image, as errno.
 * Threads    as the tree's callbacks.
 */
#pragma once

#include "chain/chain.h"
#include "fuse/tree.h"

void *layer_new(struct chain *chain, unsigned layer); /* layer 0 is the root. NULL: no memory */
extern const struct vhdfuse_file_ops layer_ops;
