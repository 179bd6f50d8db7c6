/* SPDX-License-Identifier: Apache-2.0 */
/* mountpoint.h - what is mounted at a directory, and how that is ended.
 *
 * Units      none.
 * Ownership  the caller's buffers.
 * Errors     0 or -errno with a sentence that names the directory.
 * Threads    any; mountpoint_detach runs a program (fusermount3) where we are not root.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"

#define VHDFUSE_SUBTYPE "vhdfuse" /* of our mounts: their type is fuse.vhdfuse */
#define VHDFUSE_TYPE    "fuse." VHDFUSE_SUBTYPE

enum mountpoint_kind {
        MOUNTPOINT_NONE,  /* nothing is mounted here */
        MOUNTPOINT_OURS,  /* a vhdfuse, at work */
        MOUNTPOINT_STALE, /* a vhdfuse that died: every access answers ENOTCONN */
        MOUNTPOINT_OTHER, /* something else is */
};

/* -ENOENT, -ENOTDIR, ...: there is no such directory, or it cannot be looked at. */
int mountpoint_look(const char *path, enum mountpoint_kind *ret, struct error *err);

/* Takes the topmost mount at @path away; @lazy: although it is in use, and what is open stays so.
 *   -EBUSY  in use */
int mountpoint_detach(const char *path, bool lazy, struct error *err);

/* Is there a place to mount at @path? A stale mount of ours there is taken away (*ret_cleared).
 *   -EBUSY  a vhdfuse is mounted there already */
int mountpoint_prepare(const char *path, bool *ret_cleared, struct error *err);
