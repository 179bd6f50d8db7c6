/* SPDX-License-Identifier: Apache-2.0 */
/* live.h - every vm of the daemon as a folder: VM/DISK/now is the disk as its guest has it, VM/DISK/@SNAPSHOT
 * as a snapshot has it. What comes and goes in the daemon comes and goes here.
 *
 *      control socket: what there is, and events       NBD: what it holds (live_file.h)
 *
 * A daemon that ends or is restarted leaves the files where they are; reading them fails until it is back.
 * @info.json says whether it is there (a vm's name holds no '@').
 *
 * Units      bytes.
 * Ownership  live_new hands out, live_free ends it, after the tree: its files are the tree's.
 * Errors     0 or -errno with one sentence.
 * Threads    new, start, stop and free: the main one. From start to stop a thread of its own changes the tree.
 */
#pragma once

#include "base/cleanup.h"
#include "base/error.h"
#include "fuse/tree.h"

struct live;

/* Connects and shows what there is. @control: the daemon's socket, NULL: where it is looked for. */
int live_new(struct vhdfuse_tree *tree, const char *control, struct live **ret, struct error *err);
/* From here on it follows the daemon. */
int live_start(struct live *live, struct error *err);
void live_stop(struct live *live);
struct live *live_free(struct live *live); /* NULL is fine; returns NULL */
DEFINE_CLEANUP(struct live *, live_free)
