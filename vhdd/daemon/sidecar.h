/* SPDX-License-Identifier: Apache-2.0 */
/* sidecar.h - VMNAME.vhdd.json beside a vm's first disk: what the catalog says of the vm, for the day
 * when there is no catalog (E14). Derived from the catalog after each change and never read, except by
 * `doctor --rebuild` and by `vm import` of a folder that `vm export` made.
 *
 * Files beneath the sidecar's folder are named relative to it, so that a folder that moved as a whole
 * still says the truth.
 *
 * Units      bytes; microseconds since 1970 (_us).
 * Ownership  a struct sidecar owns its rows: sidecar_done().
 * Errors     0 or -errno with one sentence. What is read was written by anybody: -EUCLEAN names the
 *            member that is wrong, and nothing is believed that the images do not confirm.
 * Threads    a struct sidecar belongs to one thread at a time; writing one vm's is for who holds the
 *            vm's lock.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/catalog.h"

#define SIDECAR_ENDING ".vhdd.json"
#define SIDECAR_MAX    (UINT64_C(64) << 20) /* bytes that are read at most */

struct sidecar {
        struct vm_row vm;
        struct disk_row *disks;
        size_t n_disks;
        struct snapshot_row *snapshots;
        size_t n_snapshots;
        struct snapshot_disk_row *held; /* of all snapshots */
        size_t n_held;
        struct image_row *images; /* under all of these, in no order */
        size_t n_images;
        bool exported; /* it lies beside copies that an export made: no vm of a catalog's */
};
void sidecar_done(struct sidecar *sidecar);

/* The vm as the catalog has it. */
int sidecar_collect(
        struct catalog *catalog, const char *vm, struct sidecar *ret, struct error *err);
/* @directory: of the file that it will be; NULL: all names are absolute. */
int sidecar_to_json(
        const struct sidecar *sidecar, const char *directory, json_t **ret, struct error *err);
int sidecar_from_json(
        const json_t *json, const char *directory, struct sidecar *ret, struct error *err);

/* Reads one.   -EUCLEAN it is damaged, too large, or none */
int sidecar_read(struct fs *fs, const char *path, struct sidecar *ret, struct error *err);
/* Writes @json as @path, durably: there is the old one or the new one. */
int sidecar_store(struct fs *fs, const char *path, const json_t *json, struct error *err);
/* ---- the same vm elsewhere ---- */

/* Every path in it as @to says; what @to answers is allocated, NULL is no memory. The disks that a
 * snapshot's settings tell of name the images that the snapshot holds. */
int sidecar_rename(struct sidecar *sidecar, char *(*to)(void *opaque, const char *path),
        void *opaque, struct error *err);
/* New ids for vm, disks and snapshots: it becomes another vm than the one it was copied from. */
int sidecar_new_ids(struct sidecar *sidecar, struct error *err);

/* Takes out the snapshot with the id @but ("": none), and all that are not committed; what descended from
 * one descends from its parent then. */
void sidecar_drop_snapshots(struct sidecar *sidecar, const char *but);
/* Takes out the images that no disk and no snapshot stands on. */
void sidecar_drop_unneeded(struct sidecar *sidecar);

/* Takes out of it what would give its writer more than the folders beneath @roots: an image elsewhere,
 * or behind a link, is an error; pass-through disks, folders and saved memory elsewhere are left out,
 * and so are disks that a snapshot's settings name beyond the images that it holds. What was left out
 * is told in @notes (an array of sentences).   -EUCLEAN   -ENOENT an image is not there */
int sidecar_confine(struct sidecar *sidecar, char *const *roots, size_t n_roots, json_t *notes,
        struct error *err);

/* Its rows, inside the caller's transaction. */
int sidecar_insert(struct catalog *catalog, const struct sidecar *sidecar, struct error *err);

/* The vm's sidecar as the catalog has the vm now; a vm without a disk has none. */
int sidecar_write(struct catalog *catalog, struct fs *fs, const char *vm, struct error *err);
/* Before the vm goes, or its name or directory changes: where it is now. None is no error. */
int sidecar_remove(struct catalog *catalog, struct fs *fs, const char *vm, struct error *err);
/* DIRECTORY/NAME.vhdd.json; the caller frees it. NULL: no memory. */
char *sidecar_path(const char *directory, const char *vm_name);
