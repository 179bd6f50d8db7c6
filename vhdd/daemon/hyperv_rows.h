/* SPDX-License-Identifier: Apache-2.0 */
/* hyperv_rows.h - a vm out of a folder that Hyper-V exported, or had a vm in: what its configurations say,
 * and what the images' headers confirm (docs/hyperv-import.md).
 *
 *      Virtual Machines/GUID.exp | GUID.xml    the vm           GUID.bin, .vsv (in GUID/): saved memory
 *      Snapshots/GUID.exp | GUID.xml           a snapshot each, with its images and its memory
 *      Virtual Hard Disks/                     images; or wherever else in the folder they are
 *
 * A configuration names images by paths of another machine: the file of that name in the folder is meant,
 * and of several that which lies in folders of the same names. Which snapshot descends from which, the
 * images say.
 *
 * Units      bytes.
 * Ownership  a struct hyperv_folder owns what it holds: hyperv_folder_done().
 * Errors     0 or -errno with one sentence.
 * Threads    any; a folder belongs to one.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/broker.h"
#include "vhdd/daemon/forest.h"

struct hyperv_folder {
        const char *directory; /* the caller's, while it is looked through */
        json_t *files;     /* configurations: [{"path", "snapshot": bool, "binary": bool}] */
        json_t *saved;     /* files with saved memory: [path] */
        json_t *vm;        /* what the vm's says; NULL: not read yet */
        json_t *snapshots; /* [{"id"?, ...}] */
        json_t *unknown;   /* what means nothing here: ["FILE: ELEMENT"] */
};
void hyperv_folder_done(struct hyperv_folder *folder);

/* Which files there are; looks into none. *ret_any: there is a configuration. */
int hyperv_folder_look(
        const char *directory, struct hyperv_folder *ret, bool *ret_any, struct error *err);
/* Reads them, in a process that is thrown away. @force: without the memory that was saved.
 *   -ENOTSUP  only a kind that nobody can read here (.vmcx)
 *   -EBUSY    there is saved memory, and no @force      -EINVAL  several vms */
int hyperv_folder_read(
        struct broker *broker, struct hyperv_folder *folder, bool force, struct error *err);
#define HYPERV_MOST_WEIGHT 10000
#define HYPERV_MOST_BUFFER 2000

/* Our settings out of the "memory" of hyperv.h's answer. Memory that is not dynamic is what the vm starts with, and
 * no more. The weight, 0 to 10000 there, is to the nearest hundredth: so their default, 5000, is ours, 50, and
 * weights are to each other as they were; below 50 it is the least, 1. What is out of range, or missing, is missing:
 * then it has our default. */
json_t *hyperv_memory(const json_t *theirs);

/* Rows for the catalog, with the vm's own id. @forest: the folder's images. What is left out is told in
 * @notes.   -ENOENT an image is missing   -ENOTSUP one is none that we read */
int hyperv_folder_to_rows(const struct hyperv_folder *folder, const struct forest *forest,
        struct sidecar *ret, json_t *notes, struct error *err);
