/* SPDX-License-Identifier: Apache-2.0 */
/* program.h - other programs that do a part of our work: run to their end, what they said kept.
 *
 * Ownership  the caller's buffers.
 * Errors     0 or -errno with one sentence; what the program said on stderr stands in it.
 * Threads    the main thread only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

/* Is @name in $PATH, or where administrators' programs are? Its path goes to @ret (may be NULL). */
bool program_find(const char *name, char *ret, size_t size);

/* Runs argv[0] as program_find() has it, stdin and stdout on /dev/null, and waits for its end. One that goes
 * on in the background has ended then. Its exit code goes to @ret_code.
 *   -ENOENT  there is no such program
 *   -EINTR   a signal ended it */
int program_run(char *const argv[], int *ret_code, struct error *err);

/* The same, and any exit code but 0 is a failure: -EIO with what it said. */
int program_do(char *const argv[], struct error *err);

/* Runs a program of ours at @file: it speaks as vhdctl does, and its failure is ours. What it warned of goes on
 * to stderr. */
int program_run_ours(const char *file, char *const argv[], struct error *err);

/* When the process was started, in the kernel's ticks since boot; 0: there is no such process. With its
 * pid it names one process for ever. */
unsigned long long process_started(pid_t pid);

/* What it calls itself: "bash". "a process" if that cannot be seen. Returns @ret. */
char *process_name(pid_t pid, char *ret, size_t size);
