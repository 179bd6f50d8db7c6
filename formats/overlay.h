/* SPDX-License-Identifier: Apache-2.0 */
/* overlay.h - small changes of a file, gathered as whole sectors for an intent (E13), whose ranges
 * share none: two texts may share one with each other or with a header.
 *
 * Units      bytes.
 * Ownership  overlay_done ends what overlay_put gathered. The file is the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    one at a time.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "base/file.h"
#include "formats/intent.h"

struct overlay_sector;

struct overlay {
        struct file *file;
        struct overlay_sector *sectors;
        size_t n;
};

void overlay_done(struct overlay *overlay);

/* From @offset on the file is to hold @length @bytes; the rest of the sectors stays as it is. */
int overlay_put(struct overlay *overlay, const void *bytes, size_t length, uint64_t offset,
        struct error *err);
/* All of it, as changes of @image. */
int overlay_add(struct overlay *overlay, struct intent *intent, unsigned image, struct error *err);
