/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_internal.h - what the parts of one examination share.
 *
 * Ownership  doctor_examine()'s, for as long as it runs.
 * Errors     as doctor.h.
 * Threads    one.
 */
#pragma once

#include "vhdd/daemon/doctor.h"
#include "vhdd/daemon/merge_job.h"

/* Everything the catalog has, read once: what many questions are asked of. */
struct records {
        struct vm_row *vms;
        size_t n_vms;
        struct disk_row *disks;
        size_t n_disks;
        struct image_row *images; /* by path */
        size_t n_images;
        struct operation_row *operations;
        size_t n_operations;
        struct merge_jobs jobs;

        /* of each image */
        struct {
                const char *vm; /* whose disk stands on it; NULL: of a branch that nobody runs */
                bool is_parent;
        } * facts;
};

struct examination {
        const struct doctor *doctor;
        struct records records;
        json_t *findings;
};

/* What lies in the folders of images and vms, and is named by nobody. */
int doctor_examine_folders(struct examination *x, struct error *err);
