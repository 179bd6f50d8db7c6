/* SPDX-License-Identifier: Apache-2.0 */
/* sandbox.h - what a process that reads a stranger's bytes gives up before it does so.
 *
 *      sandbox_enter   while there is one thread: no new privileges, no core and no tracer, many
 *                      descriptors; as root: a network of its own with nothing in it, an empty root
 *                      directory, an unprivileged user; landlock without a single path
 *      (threads and rings start)
 *      sandbox_seal    seccomp, for all threads: what works on descriptors, memory and threads stays;
 *                      opening, connecting, executing and the rest answer EPERM
 *
 * Each wall stands alone: the user, landlock and seccomp each keep every path out. What the kernel
 * does not have (landlock before 5.13) is told in @notes, and the rest holds. A forbidden call answers
 * EPERM rather than killing: libraries ask for much that they can do without, and a vm's service should
 * not die of it. Those that only an attacker makes (execve, ptrace, mount, bpf ...) kill.
 *
 * In a build with sanitizers, which need the rest themselves, only user and limits change.
 *
 * Units      bytes.
 * Ownership  a plain value.
 * Errors     0 or -errno with one sentence.
 * Threads    enter: before there are any. seal: any one.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct sandbox {
        const char *name; /* for sentences */
        uid_t uid;        /* to become, as root; else unchanged */
        gid_t gid;
        uint64_t max_memory; /* bytes of address space; 0: as it is */
        char notes[256];     /* what could not be had, or "" */
};
#define SANDBOX_INIT(what) ((struct sandbox){.name = (what), .uid = 65534, .gid = 65534})

int sandbox_enter(struct sandbox *sandbox, struct error *err);
int sandbox_seal(struct sandbox *sandbox, struct error *err);
