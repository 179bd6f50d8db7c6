/* SPDX-License-Identifier: Apache-2.0 */
/* program.h - runs one of Open vSwitch's programs to its end.
 *
 * Its descriptors, signals and session are its own: one that stays as a daemon has nothing of ours.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  texts are the caller's.
 * Errors     0 or -errno with one sentence that has the program's last words. -ENOENT: not installed.
 * Threads    any.
 */
#pragma once

#include "base/error.h"

#define PROGRAM_PACKAGE_HINT "apt-get install openvswitch-switch"

/* @arguments: NULL-ended, the program's name first. @run_dir: where it puts its sockets (NULL: its own
 * place). @input (may be NULL) is what it reads. @ret_output (may be NULL): what it printed. It is ended when it
 * takes longer than @timeout_ms. */
int program_run(const char *const *arguments, const char *run_dir, const char *input,
        unsigned timeout_ms, char **ret_output, struct error *err);
