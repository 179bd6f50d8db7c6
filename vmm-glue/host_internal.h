/* SPDX-License-Identifier: Apache-2.0 */
/* host_internal.h - what host.c, host_vms.c and host_requests.c share.
 *
 * Units, ownership, errors, threads: as host.h.
 */
#pragma once

#include "vmm-glue/host.h"

#define HOST_MAX_MODULES 4u

struct host {
        struct glue_options options; /* borrowed */
        sd_event *event;
        sd_event_source *signals[3], *look, *deadline;
        struct connection *connection;
        int lock_fd;
        struct host_vm *vms;
        void *modules[HOST_MAX_MODULES];
        size_t n_modules; /* started */
        bool is_registered;
        bool is_ending;
        bool has_looked; /* once */
};

/* host_vms.c: looks at the daemon's list and does what follows. */
int host_vms_look(struct host *host, struct error *err);
void host_vms_free(struct host *host);
/* Every guest is to shut down and every supervisor to end. */
void host_vms_end(struct host *host);

/* host_requests.c: {"request", "method", "params"} of the daemon's: answers with vmm.reply. */
void host_request(struct host *host, const json_t *params);

/* Calls @member of every started module that has it. */
#define FOR_EACH_MODULE(host, i, module)                                                           \
        for (size_t i = 0; i < (host)->n_modules; i++)                                             \
                for (const struct host_module *module = host_modules[i]; module; module = NULL)
