/* SPDX-License-Identifier: Apache-2.0 */
/* host_memory.h - how much memory the vms together may have.
 *
 * Either somebody said so (--host-memory), or it is what the host could give: what is available now and
 * what guests occupy already, less a reserve for the host itself: a sixteenth of its memory, 512 MiB at
 * least. What the host could give changes all the time; small changes are let pass, so that targets do
 * not follow each of them.
 *
 * Units      bytes.
 * Ownership  plain values.
 * Errors     0 or -errno with one sentence.
 * Threads    any.
 */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

#define HOST_RESERVE      (UINT64_C(512) << 20)
#define HOST_RESERVE_PART 16u
#define HOST_STEP_DOWN    (UINT64_C(32) << 20)
#define HOST_STEP_UP      (UINT64_C(128) << 20)

struct host_memory {
        uint64_t total, available; /* as /proc/meminfo has them */
};

/* From a text of /proc/meminfo's form.  -EBADMSG one of the two is not there */
int host_memory_parse(const char *meminfo, struct host_memory *ret, struct error *err);
int host_memory_read(struct host_memory *ret, struct error *err);

/* What all guests may have, who occupy @resident now. */
uint64_t host_memory_budget(const struct host_memory *host, uint64_t resident);
/* @before (0: none yet), or @now when it has gone far enough from there. */
uint64_t host_memory_settle(uint64_t before, uint64_t now);

/* The process's own memory, what it shares left out: of a guest's process, what the guest occupies.
 *   -ENOENT there is no such process */
int host_memory_of(pid_t pid, uint64_t *ret, struct error *err);
