/* SPDX-License-Identifier: Apache-2.0 */
/* names.h - the words of the control API that have a form of their own: names, places, MACs.
 *
 * Ownership  plain values.
 * Errors     -EINVAL with a sentence that quotes what it can.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"

#define NAME_MAX_BYTES 128u

/* A vm's, a disk's, a snapshot's: UTF-8, 1 to 128 bytes, no '/', '@' or control characters, not "now"
 * (which means the live disk in "VM/DISK@now"). */
int control_name_check(const char *name, struct error *err);

/* Where a disk is attached: 2 IDE controllers with 2 disks each, 4 SCSI controllers with 64. */
struct control_place {
        bool scsi;
        unsigned controller, unit; /* "ide0:1", "scsi3:63" */
};
int control_place_parse(const char *text, struct control_place *ret, struct error *err);

/* "52:54:00:12:34:56" */
int control_mac_check(const char *text, struct error *err);
