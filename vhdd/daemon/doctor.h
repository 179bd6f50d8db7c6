/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.h - looks for what is wrong between the catalog and the files, and makes a catalog anew.
 *
 * It changes nothing by itself: each finding says what mends it. Headers are read by whoever the
 * context's resolve is (the resolver's process), never here; of files only names, sizes and times are
 * looked at.
 *
 * Findings, by id (stable):
 *   damage   missing-file, replaced-file, parent-changed, wrong-id, broken-chain
 *   warning  orphan-file, unfinished-operation, long-chain, low-space, worker-failed,
 *            sidecar-unusable, sidecar-incomplete, folder-unreadable
 *   info     job-waiting, image-hidden
 *
 * Units      bytes.
 * Ownership  answered JSON is the caller's.
 * Errors     0 or -errno with one sentence; what is wrong with one file is a finding.
 * Threads    any; it takes no lock of a vm, so what an operation that runs just now has not finished
 *            may show as a finding.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/catalog.h"
#include "vhdd/daemon/resolver.h"

#define DOCTOR_LONG_CHAIN  100u
#define DOCTOR_LONG_WAIT_S (7 * 86400) /* for a merge */
#define DOCTOR_SPACE_LEAST (UINT64_C(1) << 30)
#define DOCTOR_SPACE_SHARE 20u /* one part in so many of the file system */

struct doctor {
        struct catalog *catalog;
        char *const *roots; /* where images and sidecars may lie, beside the images' own folders */
        size_t n_roots;
        /* Required. resolve_chain() of vhdd/daemon/resolver.h, or a test's. */
        int (*resolve)(void *opaque, const char *path, const char *format, char *const *roots,
                size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *err);
        void *opaque;
};

/* @severity: "damage", "warning", "info". @vm, @file: may be NULL. The hint is the format's. */
int doctor_add(json_t *findings, const char *id, const char *severity, const char *vm,
        const char *file, const char *hint, const char *format, ...)
        __attribute__((format(printf, 7, 8)));

/* Everything that catalog and files say; appended to @findings (an array), the worst first. */
int doctor_examine(const struct doctor *doctor, json_t *findings, struct error *err);

struct sidecar;
/* Do the headers of its images say what the sidecar says? If so the images' rows get the places of the
 * files that were found (device, inode, birth).   -EUCLEAN they do not, or as resolve answers */
int doctor_confirm(const struct doctor *doctor, struct sidecar *sidecar, struct error *err);

struct doctor_rebuilt {
        unsigned n_vms, n_disks, n_snapshots;
        json_t *ids; /* of the vms that came back: an array, the caller's */
};
/* Looks beneath the roots for sidecars, and brings back each vm that the catalog does not have, whole
 * or not at all, once its images' headers confirm what the sidecar says. @dry_run: only looks. */
int doctor_rebuild(const struct doctor *doctor, bool dry_run, json_t *findings,
        struct doctor_rebuilt *ret, struct error *err);
