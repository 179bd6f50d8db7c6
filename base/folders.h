/* SPDX-License-Identifier: Apache-2.0 */
/* folders.h - walks through a folder of a user's.
 *
 * Links are not followed, and names that begin with a dot are nobody's: neither is shown.
 *
 * Units      none.
 * Ownership  what is shown is the walker's, for as long as the call.
 * Errors     0 or -errno with one sentence.
 * Threads    any.
 */
#pragma once

#include "base/error.h"

struct folder_walk {
        void *opaque;
        /* Required. A regular file. What it answers but 0 ends the walk. */
        int (*file)(void *opaque, const char *path, const char *name, struct error *err);
        /* A folder that cannot be listed, and why (errno): 0 goes on without it. NULL: that is the walk's
         * end, with a sentence. */
        int (*unreadable)(void *opaque, const char *path, int why, struct error *err);
};
/* @folder, and what is in it @deep folders further down; 0: it alone. */
int folder_walk(
        const char *folder, unsigned deep, const struct folder_walk *walk, struct error *err);
