/* SPDX-License-Identifier: Apache-2.0 */
/* process.h - the daemon's other processes: the same program, executed with nothing but what is handed
 * to it, in a session of its own (the broker's death or a terminal's ^C does not reach it).
 *
 * Ownership  the pidfd is the caller's; descriptors stay the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    any.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "vhdd/daemon/broker.h"

/* @args: {"vhdd", "--worker", ..., NULL}. @fds become 3, 4, ... */
int process_spawn(struct broker *broker, const char *const *args, const int *fds, unsigned n_fds,
        pid_t *ret_pid, int *ret_pidfd, struct error *err);

/* The program at @path, which need not be ours, without our descriptors, and with @environment ("NAME=
 * value" ..., NULL) beside our own. */
int process_spawn_command(const char *path, const char *const *args, const char *const *environment,
        pid_t *ret_pid, int *ret_pidfd, struct error *err);

/* Waits up to @timeout_ms (-1: for ever) for the process's death: 1 when it is dead (*ret_status as
 * waitpid gives it, -1 when it was no child of ours), 0 when it lives. */
int process_wait(int pidfd, int timeout_ms, int *ret_status);
void process_kill(int pidfd);
void process_terminate(int pidfd); /* SIGTERM */

/* When the process began, in the kernel's ticks; 0: there is none. Tells it from a later one with the
 * same number. */
uint64_t process_start_time(pid_t pid);
/* For a process that is no child of ours: its pidfd if it still is the one that began then.
 * -ESRCH: it is dead. */
int process_open(pid_t pid, uint64_t start_time, int *ret_pidfd);
