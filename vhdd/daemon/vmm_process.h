/* SPDX-License-Identifier: Apache-2.0 */
/* vmm_process.h - the command of --vmm-command: started, watched, and started again when it ends, after
 * a pause that grows while it does not live long.
 *
 * It holds a lock on all of RUN/vmm/host.lock (fcntl F_SETLK: the kind that a process's end ends)
 * while it lives. As long as somebody holds it no other is started, and its holder is the one that is
 * watched: so a broker that is started anew finds the vmm-host of before, which connects by itself.
 *
 * In its environment: VHDD_CONTROL, VHDD_NBD_SOCKET (paths of sockets), VHDD_STATE_DIR, VHDD_RUN_DIR
 * (RUN), and with --host-memory VHDD_HOST_MEMORY (bytes). SIGTERM tells it that the daemon ends, and
 * all guests with it.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  vmm_process_start hands out, vmm_process_stop ends.
 * Errors     0 or -errno with one sentence.
 * Threads    start and stop: one thread.
 */
#pragma once

#include "vhdd/daemon/broker.h"

struct vmm_process;

/* *ret is NULL when there is no command. That the command cannot be run is logged, and tried again. */
int vmm_process_start(struct broker *broker, struct vmm_process **ret, struct error *err);
/* Ends it, and waits: while it lets its guests go it still speaks to the control server. One that takes
 * longer than @timeout_ms is killed. With @leave it goes on. NULL is fine; answers NULL. */
struct vmm_process *vmm_process_stop(struct vmm_process *process, bool leave, unsigned timeout_ms);
