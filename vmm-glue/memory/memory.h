/* SPDX-License-Identifier: Apache-2.0 */
/* memory.h - the module of vmm-host that shares the host's memory out among the guests (Dynamic Memory).
 *
 * Each second: what guests told since the last step goes through the balancer (balancer.h), and those
 * whose memory is to change are asked (follow.h). A new vmm-host takes guests as they are, and gives
 * nothing to anybody before each running guest has said what it has.
 *
 * memory.show {"vm"?} tells what the last step found and did.
 *
 * Units, ownership, errors, threads: as host.h has them for modules.
 */
#pragma once

#include "vmm-glue/host.h"

extern const struct host_module memory_module;
