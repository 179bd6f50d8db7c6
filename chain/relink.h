/* SPDX-License-Identifier: Apache-2.0 */
/* relink.h - giving a child its parent back after files were moved or renamed.
 *
 * Writes the parent's place into the child's locators and its name into the header; blocks are not
 * touched. Where the new paths need more room than the old ones left, they go to free space below
 * the blocks, else behind the last one, the end footer always ahead of them. All of it is one intent
 * (rule E13), so a power cut leaves the old parent or the new.
 *
 * Units      bytes.
 * Ownership  paths are the caller's.
 * Errors     0 or -errno with one sentence.
 *            -EINVAL: the child is no differencing image, or the parent cannot be one.
 *            -ESTALE: the parent has another id (and not @force). -ELOOP: the parent stands on the
 *            child. -EROFS: the child may not be written. -EBUSY: somebody has it open.
 * Threads    one at a time for an image.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "base/file.h"
#include "chain/locate.h"

struct relink_params {
        struct fs *fs; /* NULL: the host's */
        bool force;    /* take a parent with another id: its id is written into the child */
        bool dry_run;  /* check everything, change nothing */
        /* The caller has the images below the child open, and flushed them all (merge/). */
        bool below_is_durable;
        const struct locate_roots *roots; /* for following the parent's own parents; may be NULL */
        void (*warn)(void *opaque, const char *sentence); /* may be NULL */
        void *opaque;
};

struct relink_report {
        uint8_t id_before[16], id_after[16]; /* of the parent that the child asks for */
        char relative[4096];                 /* what the locators say now: "./base.vhd" */
        char absolute[4096];
        bool appended;         /* the paths went behind the last block: the file grew */
        char image_root[4096]; /* the --image-root that opening the child needs now, or "" */
};

int relink(const char *child, const char *parent, const struct relink_params *params,
        struct relink_report *ret, struct error *err);
