/* SPDX-License-Identifier: Apache-2.0 */
/* locate.h - finding the parent that a differencing image asks for, and nothing else.
 *
 * A parent locator is a request, not an order (the file may come from an enemy). Parents open only
 * beneath the allowed roots: the child's directory, those of the other files named, and each
 * --image-root; without following links out (openat2 RESOLVE_BENEATH, no symlinks), only regular
 * files, only VHDs whose id is the one asked for. `--parent FILE` names one by hand: then any place
 * is allowed, and the id is still checked.
 *
 * Units      none.
 * Ownership  the file that is answered is the caller's.
 * Errors     -ENOENT: found nowhere (the sentence lists where was looked). -EPERM: it lies outside
 *            the roots (hint: the --image-root that would allow it). -ESTALE: a file is there, with
 *            another id. -ELOOP: the chain comes back to itself or is too deep.
 * Threads    pure functions but for the files.
 */
#pragma once

#include "base/error.h"
#include "base/file.h"
#include "formats/vhd/metadata.h"

struct locate_roots {
        const char *const *roots; /* directories; the child's own is always added */
        size_t n_roots;
        bool quick; /* on failure, do not look through the roots for a file to name in the hint */
};

/* Where each hint points, for info and tree: "W2ru .\base.vhd -> /dir/base.vhd". Opens no file. */
struct locate_candidate {
        char source[8];  /* "W2ru", "W2ku", "MacX", "name", ... */
        char text[4096]; /* as the child says it, UTF-8 */
        char path[4096]; /* what it means here, normalised, or "" if it means nothing here */
};
#define LOCATE_MAX_CANDIDATES 18
/* In the order in which they are tried: relative locators, the child's directory + parent name,
 * absolute ones, then the bare names of all of them beside the child and in each root. */
size_t locate_candidates(struct file *child, const struct vhd_header *header,
        struct locate_candidate ret[LOCATE_MAX_CANDIDATES]);

/* vhd_metadata_read(), but of the image as it will be when a change that was cut off is complete
 * (formats/intent.h): what lies beside it is looked at, and nothing is written. */
int locate_read_metadata(
        struct file *file, unsigned flags, struct vhd_metadata *ret, struct error *err);

/* Opens a file that the user named, for reading, wherever it lies: a regular file or a block device,
 * never anything whose opening could hang. */
int locate_open_named(struct fs *fs, const char *path, struct file **ret, struct error *err);

/* Opens the parent of @child for reading. @named: --parent's file, or NULL. */
int locate_parent(struct file *child, const struct vhd_metadata *metadata,
        const struct locate_roots *roots, const char *named, struct file **ret, struct error *err);
