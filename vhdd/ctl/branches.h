/* SPDX-License-Identifier: Apache-2.0 */
/* branches.h - draws any tree: a row a node, with the twigs that it hangs on in front.
 *
 * Ownership  the branch's text belongs to the drawing and lives for the call.
 * Errors     memory that cannot be had ends the process with CTL_FAILED.
 * Threads    one thread at a time.
 */
#pragma once

/* How to walk the nodes; each answers NULL where there is none. */
struct branches {
        const void *(*first_child)(const void *node);
        const void *(*next_sibling)(const void *node);
        const void *(*parent)(const void *node);
        /* @branch: "│  └─ ", or in ASCII where the terminal's locale is not UTF-8; "" for the root. */
        void (*row)(void *opaque, const void *node, const char *branch);
        void *opaque;
};

/* The tree below @root, parents before their children. As deep as it may be: nothing calls itself. */
void branches_draw(const struct branches *branches, const void *root);
