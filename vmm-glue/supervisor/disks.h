/* SPDX-License-Identifier: Apache-2.0 */
/* disks.h - disks of a running guest.
 *
 * Units      bytes.
 * Ownership  JSON is lent.
 * Errors     0 or -errno with one sentence. -EAGAIN: the daemon's socket does not answer yet, try again.
 * Threads    the main thread.
 */
#pragma once

#include <jansson.h>

#include "base/error.h"

struct supervisor;

/* Adds it to QEMU, and to the vm's config: @disk is one of config's "disks" (config.h). SCSI only. */
int disk_plug(struct supervisor *supervisor, const json_t *disk, struct error *err);
