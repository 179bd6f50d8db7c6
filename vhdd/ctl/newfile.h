/* SPDX-License-Identifier: Apache-2.0 */
/* newfile.h - a file that is there whole or not at all.
 *
 * It grows under a temporary name beside its place (NAME.XXXXXX.part), and gets its name when it is
 * whole and durable. An existing file is replaced only with --force, and then in one step.
 *
 * SIGINT, SIGTERM and SIGHUP while it grows: the first makes newfile_stopped() true, so that the verb
 * ends in order; a second one removes the temporary file and ends the process at once.
 *
 * Units      bytes.
 * Ownership  newfile_begin hands out; newfile_commit or newfile_abandon ends. One at a time.
 * Errors     0 or -errno with one sentence that names the file.
 * Threads    newfile_stopped from any thread; the others from the main one.
 */
#pragma once

#include <stdbool.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/file.h"

struct newfile;

/* Could @path be made now? -EEXIST: something is there and @replace was not said; -EINVAL: it is no
 * regular file; -EBUSY: somebody has it open. Changes nothing. */
int newfile_check(const char *path, bool replace, struct error *err);

/* newfile_check(), and makes the temporary file. */
int newfile_begin(const char *path, bool replace, struct newfile **ret, struct error *err);
/* Open for reading and writing, unlocked; lives as long as the newfile. */
struct file *newfile_file(struct newfile *newfile);
/* Where it lies until it is committed. */
const char *newfile_part(const struct newfile *newfile);

/* Syncs it, gives it its name, syncs the directory; ends the newfile in any case: after a failure
 * nothing is left of it. */
int newfile_commit(struct newfile *newfile, struct error *err);
/* Removes it. After a signal the process ends here, as the signal asked. NULL is fine. */
void newfile_abandon(struct newfile *newfile);
DEFINE_CLEANUP(struct newfile *, newfile_abandon)

bool newfile_stopped(void);
