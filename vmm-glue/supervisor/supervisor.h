/* SPDX-License-Identifier: Apache-2.0 */
/* supervisor.h - the process that looks after one vm: its QEMU, its agent at the daemon, its link.
 *
 * It is there while the vm is run by us, on or off. It holds RUN/vmm/ID/supervisor.lock, listens at
 * RUN/vmm/ID/supervisor.sock for vmm-host, and registers with the daemon as the vm's agent. QEMU
 * outlives it: the next supervisor adopts it.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  supervisor_new hands out, supervisor_free ends (and leaves QEMU alone).
 * Errors     0 or -errno with one sentence. -EBUSY: the vm has a supervisor.
 * Threads    the main thread.
 */
#pragma once

#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "vmm-glue/options.h"

struct supervisor;

int supervisor_new(const struct glue_options *options, struct supervisor **ret, struct error *err);
int supervisor_run(struct supervisor *supervisor, struct error *err);
struct supervisor *supervisor_free(struct supervisor *supervisor);
DEFINE_CLEANUP(struct supervisor *, supervisor_free)

/* The process of that vm's QEMU, for others than its supervisor; 0: none runs. It may end at any time. */
pid_t supervisor_qemu_of(const struct glue_options *options, const char *id);
