/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.h - the module that tells what this host and its QEMU offer, and where a vm's console is.
 *
 * Units, ownership, errors, threads: as host.h has them for modules.
 */
#pragma once

#include "vmm-glue/host.h"

extern const struct host_module doctor_module;
