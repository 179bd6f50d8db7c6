/* SPDX-License-Identifier: Apache-2.0 */
/* images.h - the files under disks and snapshots, as the catalog knows them: who stands on whom, and
 * which may go.
 *
 * An image's row says its state:
 *      in-use      a disk's leaf, a snapshot's frozen image, or a parent of these
 *      hidden      its snapshot was deleted, and others stand on it: it waits for a merge
 *      discarded   an apply gave it up, and undo may still want it
 *      detached    its disk was taken away; the file is kept, and what it stands on too
 *
 * Units      bytes.
 * Ownership  answered lists are the caller's: their _done functions.
 * Errors     0 or -errno with one sentence.
 * Threads    as the catalog's.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "vhdd/daemon/broker.h"
#include "vhdd/daemon/catalog.h"
#include "vhdd/daemon/resolver.h"
#include "vhdd/daemon/strangers.h"

#define IMAGE_IN_USE    "in-use"
#define IMAGE_HIDDEN    "hidden"
#define IMAGE_DISCARDED "discarded"
#define IMAGE_DETACHED  "detached"

struct image_chain {
        struct image_row *rows; /* the leaf first */
        size_t n;
};
void image_chain_done(struct image_chain *chain);
/* @path and what it stands on. */
int image_chain_get(
        struct catalog *catalog, const char *path, struct image_chain *ret, struct error *err);

/* Rows for layers that a resolver found (leaf first); those that are there already stay. */
int images_put_layers(struct catalog *catalog, const struct resolved_layer *layers, size_t n,
        bool leaf_made_by_us, struct error *err);
/* A row for a child that a worker made over @parent (NULL: over nothing). */
int image_put_child(struct catalog *catalog, const char *path, const uint8_t uuid[16],
        const char *parent, struct error *err);

/* Does a snapshot have the image frozen, or another one stand on it? -EBUSY and a sentence. */
int image_refuse_kept(struct catalog *catalog, const struct image_row *row, struct error *err);
/* Is @layers' file used in a way that forbids opening it (@writable: to write) for one more disk of @vm?
 * What a merge of another vm's has in hand is; another worker would see it change.
 *   -EBUSY and a sentence that names who has it */
int images_refuse_used(struct catalog *catalog, const char *vm, const struct resolved_layer *layers,
        size_t n, bool writable, struct error *err);

/* Gives up what nobody needs any more, inside the caller's transaction: of the images @paths, and
 * of what they stand on, those that no disk, no snapshot, no undo and no other image names. Their
 * rows go; files of ours are appended to @files (an array of paths, to be removed after the commit),
 * others to @kept: of these one that stands on images of ours keeps its row, as detached, and them. A file
 * of ours on which an image stands that the catalog does not know is the user's from then on.
 * What a merge has in hand stays for now (M4 of merges.h). */
int images_release(struct strangers *strangers, const char *const *paths, size_t n_paths,
        json_t *files, json_t *kept, struct error *err);
/* An image that was noted as it was when it was frozen (sealed_mtime_ns) is that still: else a sentence in
 * @ret, which has ERROR_MESSAGE_MAX bytes; "" if it is, or cannot be looked at. */
void image_seal_warning(const struct image_row *row, char *ret);
/* Does a disk, a snapshot, an undo, or an image that stands on it need the image? */
int image_is_needed(
        struct catalog *catalog, const struct image_row *row, bool *ret, struct error *err);
/* The same for one that a user's disk was detached from: it is kept, whoever made it. */
int image_detach(struct catalog *catalog, const char *path, struct error *err);

/* What the file takes on disk; 0 when it cannot be seen. */
uint64_t file_allocated(const char *path);
