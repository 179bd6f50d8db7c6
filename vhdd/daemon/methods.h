/* SPDX-License-Identifier: Apache-2.0 */
/* methods.h - the daemon's method tables, which main registers with the control server.
 *
 * Threads    as vhdd/control/method.h says.
 */
#pragma once

#include "vhdd/control/method.h"

extern const struct method vm_methods[];
extern const struct method disk_methods[];
extern const struct method compact_methods[]; /* disk.compact */
extern const struct method snapshot_methods[];
extern const struct method agent_methods[];
extern const struct method vmm_methods[]; /* vmm.*, and what is the vmm-host's to answer */
extern const struct method job_methods[];
extern const struct method metrics_methods[];
extern const struct method doctor_methods[];
extern const struct method import_methods[]; /* vm.import, vm.export, snapshot.export */
extern const struct method daemon_methods[]; /* status, shutdown, restart */
