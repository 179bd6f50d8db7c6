/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what the files of the supervisor share.
 *
 * Units, ownership, errors, threads: as supervisor.h.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <systemd/sd-event.h>

#include "vmm-glue/connection.h"
#include "vmm-glue/link.h"
#include "vmm-glue/supervisor/supervisor.h"

struct supervisor {
        struct glue_options options; /* borrowed */
        const char *id;              /* the vm's */
        char *name;                  /* as last heard of, else the id */
        sd_event *event;
        sd_event_source *signals[2], *listen, *again;
        struct connection *connection;
        struct link *link; /* of vmm-host; NULL: there is none */
        int lock_fd, listen_fd;
        bool is_registered;
        bool is_ending; /* as soon as the guest is off */
};

/* host_link.c: what vmm-host asks. */
int host_link_start(struct supervisor *supervisor, struct error *err);
/* Tells vmm-host how it is. */
void host_link_tell_state(struct supervisor *supervisor);

/* agent.c: the daemon's end. */
int agent_start(struct supervisor *supervisor, struct error *err);
