/* SPDX-License-Identifier: Apache-2.0 */
/* flatten.h - a chain becomes one dynamic VHD, in the process that is thrown away (resolver.h).
 *
 *      flatten {path, parents: [PATH], format, output: PATH, uuid} with the new, empty file
 *              -> {size}      after flatten.step {bytes} -> {} of the broker, which may take its time, and
 *                             whose refusal ends it
 *
 * The images are opened by name, as the broker allows; the new file is known to nobody until the broker
 * names it, so no memory that outlives the process is kept for it: a death leaves a file that the journal
 * takes back.
 *
 * Units      bytes of the guest's disk.
 * Errors     0 or -errno with one sentence; -ECANCELED the broker said so.
 * Threads    one call a process, not on the thread that reads the channel.
 */
#pragma once

#include <jansson.h>

#include "base/error.h"
#include "vhdd/ipc/rpc.h"

struct fs;

/* @fd: the new file; it stays the caller's. */
int flatten(struct fs *fs, struct rpc *rpc, const json_t *params, int fd, json_t **ret,
        struct error *err);
