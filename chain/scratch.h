/* SPDX-License-Identifier: Apache-2.0 */
/* scratch.h - a child that takes a guest's writes and is thrown away (`serve --scratch`).
 *
 * Units      bytes.
 * Ownership  the image is the caller's.
 * Errors     0 or -errno with a sentence.
 * Threads    opening belongs to one.
 */
#pragma once

#include "formats/format.h"

/* An empty differencing image over @parent in @directory (NULL: $TMPDIR, else /var/tmp), of which no
 * name is left, so that nothing stays behind even after kill -9. */
int scratch_make(struct fs *fs, const char *directory, const struct image *parent,
        struct image **ret, struct error *err);
