/* SPDX-License-Identifier: Apache-2.0 */
/* simvfs.h - SQLite over the simulated disk: its reads, writes, syncs and truncations become those
 * of a struct fs, so that a power cut reaches the catalog as it reaches the images.
 *
 * It behaves as SQLite's own VFS for unix does: a new log's first sync makes its name durable as
 * well, a sector that is not written is not harmed (powersafe overwrite). There is no shared memory:
 * the catalog needs none (locking_mode=EXCLUSIVE).
 *
 * Ownership  the fs is the caller's, and outlives each data base that was opened over it.
 * Errors     SQLite's codes.
 * Threads    one.
 */
#pragma once

#include "base/file.h"

#define SIMVFS_NAME "vhdd-sim"

/* From now on this is where SIMVFS_NAME opens, looks for and removes files. What is open already stays
 * where it was opened. */
void simvfs_use(struct fs *fs);
