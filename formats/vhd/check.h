/* SPDX-License-Identifier: Apache-2.0 */
/* check.h - everything that can be wrong or odd with one VHD file, and mending what can be mended
 * without guessing. The image's parent is not looked at (that is the chain's part).
 *
 * What is damage, and what only odd: damage is what other verbs refuse, or what lets nobody write.
 * Repair takes from the file itself what is right (the other copy of a footer); what only a person
 * can decide it does when told: @VHD_CHECK_USE_HEAD or _TAIL which of two footers is right,
 * @VHD_CHECK_FORCE to believe a structure in spite of its checksum and to give up blocks whose BAT
 * entries cannot be right.
 *
 * Units      bytes.
 * Ownership  a finding lives as long as the call of the report. Nothing is kept.
 * Errors     0 or -errno with a sentence: -ENOMEDIUM: no VHD. What is wrong with a VHD is no error of
 *            these functions.
 * Threads    none but the caller's.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"
#include "base/file.h"

enum vhd_severity {
        VHD_INFO,    /* worth knowing */
        VHD_WARNING, /* odd: other programs may stumble; nothing is lost */
        VHD_DAMAGE,
};
const char *vhd_severity_to_string(enum vhd_severity severity); /* "info", "warning", "damage" */

struct vhd_finding {
        const char *id; /* for machines; the list is in docs/check.md */
        enum vhd_severity severity;
        uint64_t offset; /* in the file, or ERROR_NO_OFFSET */
        uint32_t hyperv; /* Hyper-V's code, or 0 */
        bool repairable; /* vhd_repair() with the same flags mends it */
        char sentence[ERROR_MESSAGE_MAX];
        char hint[ERROR_MESSAGE_MAX]; /* what else could be done, or "" */
};
typedef void (*vhd_report)(void *opaque, const struct vhd_finding *finding);

enum vhd_check_flags {
        VHD_CHECK_DEEP = 1u << 0,     /* read every sector bitmap, and what lies under clear bits */
        VHD_CHECK_USE_HEAD = 1u << 1, /* the footer's copy at the head is right */
        VHD_CHECK_USE_TAIL = 1u << 2, /* the footer at the end is right */
        VHD_CHECK_FORCE = 1u << 3,    /* see above */
        VHD_CHECK_DRY_RUN = 1u << 4,  /* repair: report and count, write nothing */
};

struct vhd_check_result {
        unsigned n_infos, n_warnings, n_damages;
        unsigned n_repairable; /* warnings and damages */
        uint64_t n_allocated;  /* blocks in the file */
};

/* Looks through @file, which the caller has open for reading and locked against writers. One class
 * of finding may come many times (bad BAT entries): after 100 of one id, one says how many more. */
int vhd_check(struct file *file, unsigned flags, vhd_report report, void *opaque,
        struct vhd_check_result *ret, struct error *err);

struct vhd_repair_result {
        unsigned n_repaired; /* findings */
        uint64_t bytes_changed;
        char backup[4096]; /* where the old bytes are, or "": nothing was changed */
};

/* Mends @file, which the caller has open for writing and locked. @report gets each finding that is
 * mended. What it changes goes through an intent (E13); the old bytes are kept beside the image
 * first, in `NAME.vhdd-repair-YYYYMMDDThhmmssZ`, a text whose head says how they are put back. To know
 * what remains, check again. With VHD_CHECK_FORCE a redo file that cannot be replayed is given up. */
int vhd_repair(struct file *file, unsigned flags, vhd_report report, void *opaque,
        struct vhd_repair_result *ret, struct error *err);
