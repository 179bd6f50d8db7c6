/* SPDX-License-Identifier: Apache-2.0 */
/* sandbox.h - what is left of the system to the process that hostile clients talk to.
 *
 * Afterwards: another user, no new privileges, no file or socket by name (landlock, and no system call
 * that takes a path), no other program, and only the system calls of a server that talks on sockets it
 * has. Irrevocable.
 *
 * Errors     0 or -errno with one sentence. A kernel without landlock is borne with: the filter alone
 *            keeps every file away.
 * Threads    before the process has a second thread.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

/* @uid, @gid: what it becomes when it is root; else they are not looked at. @ret_landlock: the kernel's
 * version of landlock, 0 without. */
int greeter_sandbox(uid_t uid, gid_t gid, unsigned *ret_landlock, struct error *err);
