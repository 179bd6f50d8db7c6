/* SPDX-License-Identifier: Apache-2.0 */
/* places.h - where a disk sits in its vm: 2 IDE controllers with 2 disks, 4 SCSI ones with 64.
 *
 * Ownership  plain values.
 * Errors     0 or -EINVAL (no such place), -EEXIST (taken), -ENOSPC (none free), with one sentence.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum controller { CONTROLLER_IDE, CONTROLLER_SCSI };

#define PLACE_IDE_BUSES  2
#define PLACE_IDE_UNITS  2
#define PLACE_SCSI_BUSES 4
#define PLACE_SCSI_UNITS 64
#define PLACE_MAX        (PLACE_IDE_BUSES * PLACE_IDE_UNITS + PLACE_SCSI_BUSES * PLACE_SCSI_UNITS)
#define PLACE_TEXT_MAX   16

struct place {
        enum controller controller;
        int bus, unit;
};

/* "ide0:0" to "ide1:1", "scsi0:0" to "scsi3:63"; nothing else, no leading zeros. */
int place_parse(const char *text, struct place *ret, struct error *err);
/* The same back. Returns @ret. */
const char *place_format(struct place place, char ret[PLACE_TEXT_MAX]);
bool place_equal(struct place a, struct place b);
/* The first SCSI place, scsi0:0 upward, that is not among @taken. */
int place_first_free(
        const struct place *taken, size_t n_taken, struct place *ret, struct error *err);
