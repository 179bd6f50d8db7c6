/* SPDX-License-Identifier: Apache-2.0 */
/* alone.h - one image of a chain is opened for writing without the others.
 *
 * What a dead process left in its redo file may say that a block was given up because an image below has
 * it now (E11), or reads the same without it (E9). Replayed here alone, that would become durable before
 * what it relies on; after a power cut the block would be nowhere. So (E4):
 *
 *   A1  alone_settle() lets the whole chain be opened for writing, which settles its images from the root
 *       up, and closed: nothing is left to replay.
 *   A2  alone_open() refuses an image that still has such records, and leaves them as they are.
 *
 * Units      none.
 * Ownership  image_open()'s.
 * Errors     0 or -errno with one sentence.
 * Threads    one at a time for an image.
 */
#pragma once

#include "chain/chain.h"

/* Before the caller takes the image's lock. Nothing is opened for writing if it need not be.
 *   -EROFS  what is left cannot come into the images (E5): it stays, and the sentence says why
 *   others  chain_open()'s: a parent is not found */
int alone_settle(const char *path, const struct chain_options *options, struct error *err);

/* image_open() with IMAGE_WRITABLE and @flags. @file is taken over in any case.
 *   -EBUSY  A2 */
int alone_open(struct file *file, const char *format, unsigned flags, struct image **ret,
        struct error *err);
