/* SPDX-License-Identifier: Apache-2.0 */
/* strangers.h - images that the catalog does not know, and that stand on one it does.
 *
 * A copy of a running disk, a clone that somebody made of a snapshot, the files of a vm that was removed:
 * they lose what they read when the image under them is written to or goes. So before a merge, and before
 * an image of ours is given up, the headers of the unknown images are read in the folder of that image and
 * in those of its children. One that names it as its parent by its id, and does not find another file for
 * it, stands on it.
 *
 * What an operation of the journal's has in hand is no stranger. One that lies elsewhere is not found: it
 * notices by its parent's id (docs/architecture.md, E12).
 *
 * Units      none.
 * Ownership  answered paths are the caller's.
 * Errors     0 or -errno with one sentence. An image that cannot be read stands on nothing.
 * Threads    one at a time; may be inside a transaction. A folder is looked through once: what comes
 *            later is not seen.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/broker.h"
#include "vhdd/daemon/catalog.h"

struct strangers {
        struct broker *broker;
        json_t *folders; /* that were looked through */
        json_t *images;  /* [{"path", "parent": ID}] */
};
int strangers_init(struct strangers *strangers, struct broker *broker, struct error *err);
void strangers_done(struct strangers *strangers);

/* One that stands on @row's image, but none of the paths in @but (may be NULL); NULL: there is none. */
int strangers_find(struct strangers *strangers, const struct image_row *row, const json_t *but,
        char **ret, struct error *err);
