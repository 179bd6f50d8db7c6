/* SPDX-License-Identifier: Apache-2.0 */
/* module.h - the networks' place in vmm-host: switch.*, vm.network.*, and what supervisors ask for.
 *
 * Units, ownership, errors, threads: as host.h.
 */
#pragma once

#include "vmm-glue/host.h"

extern const struct host_module net_module;
