/* SPDX-License-Identifier: Apache-2.0 */
/* resize.h - another size for the disk in an image file that nobody has open.
 *
 * Dynamic, differencing: blocks in the way of a longer BAT move to the end of the file first; then
 * header, BAT, what stands behind it, and both footers change in one intent (E13). Fixed: the space is
 * taken and zeros before the footer speaks of it. At each cut the image opens with the old size or the
 * new one, and reads the same as before; what is new reads as zeros. Done again it completes.
 *
 * Units      bytes; sizes are whole sectors.
 * Ownership  nothing is kept.
 * Errors     0 or -errno with a sentence that names the file. -EINVAL: the size cannot be. -ENOTEMPTY:
 *            a shrink of a disk whose tail holds data; the error's offset is the first on the disk.
 *            -EBUSY: in use. -ENOSPC: nothing was changed but blocks that moved.
 * Threads    none but the caller's.
 */
#pragma once

#include "chain/chain.h"

struct resize_params {
        uint64_t size; /* wanted */
        uint64_t add;  /* if not 0: so much more than it is now, instead of @size */
        bool shrink;   /* it may become smaller, if what is cut off reads as zeros */
        bool force;    /* a child may become larger than its parent, and show what a larger one has */
        bool dry_run;
};

struct resize_report {
        enum image_type type;
        uint64_t size_before, size_after;
        uint64_t n_moved; /* blocks, out of the BAT's way */
        uint64_t file_size, file_size_after;
};

/* @options: how the chain of @path is opened to be looked at; what it is open for does not count. */
int resize(const char *path, const struct chain_options *options,
        const struct resize_params *params, struct resize_report *ret, struct error *err);
