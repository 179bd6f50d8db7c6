/* SPDX-License-Identifier: Apache-2.0 */
/* host_modules.c - the one list of what vmm-host does beside running supervisors. */
#include "vmm-glue/doctor.h"
#include "vmm-glue/host.h"
#include "vmm-glue/memory/memory.h"
#include "vmm-glue/net/module.h"

const struct host_module *const host_modules[] = {
        &doctor_module, /* vm.console, vm.doctor, what a guest has */
        &net_module,    /* switch.*, vm.network.*, taps */
        &memory_module, /* memory.show */
        NULL,
};
