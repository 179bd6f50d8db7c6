/* SPDX-License-Identifier: Apache-2.0 */
/* forest.h - the images of a folder as the trees they are, and a vm out of one of them.
 *
 * Files are found by their names' endings (.vhd, .avhd, .vud) beneath the folder, whatever is in them:
 * Hyper-V's layout (Virtual Hard Disks/, Snapshots/GUID/) is one folder with two in it. Each one's
 * chain is read by whoever resolve is (the resolver's process); what cannot be resolved is a note.
 *
 * A tree becomes a disk: the image that was changed last of those on which nothing stands is its
 * running state; every other image is a snapshot, on the nearest one beneath it.
 *
 * Units      bytes; nanoseconds since 1970 (_ns).
 * Ownership  forest_done ends what forest_scan made.
 * Errors     0 or -errno with one sentence.
 * Threads    a forest belongs to one thread.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/doctor.h"
#include "vhdd/daemon/sidecar.h"

#define FOREST_MAX_FILES 100000u
#define FOREST_NO_NODE   SIZE_MAX

struct forest_node {
        char *path;
        uint64_t device, inode;
        int64_t birth_ns, mtime_ns;
        uint8_t uuid[16];
        char format[8];
        uint64_t size; /* that the guest sees */
        size_t parent; /* index, or FOREST_NO_NODE */
        size_t root;   /* index of its tree's root */
        unsigned n_children;
};

struct forest {
        struct forest_node *nodes;
        size_t n;
        unsigned n_left_out; /* images whose chains cannot be read */
        struct error why;    /* of the first of these; its file is set */
};
void forest_done(struct forest *forest);

/* @reader: whose resolve reads the chains, with its roots beside @directory. @notes: an array. */
int forest_scan(const struct doctor *reader, const char *directory, struct forest *ret,
        json_t *notes, struct error *err);

/* [{"number", "root", "size", "images", "tips": [path]}], by the roots' paths. */
json_t *forest_to_json(const struct forest *forest);

/* The tree's root: of the only tree; or of the one that @only names by its number, or by the path or
 * the bare name of one of its files.
 *   -ENOENT  there is none   -EINVAL  there are several, and the sentence lists them */
int forest_choose(
        const struct forest *forest, const char *only, size_t *ret_root, struct error *err);

/* The vm @name with that tree as its one disk, as rows for the catalog, with new ids. */
int forest_to_rows(const struct forest *forest, size_t root, const char *name, struct sidecar *ret,
        json_t *notes, struct error *err);
