/* SPDX-License-Identifier: Apache-2.0 */
/* instance.h - the Open vSwitch that the switches live in.
 *
 * The system's one where it runs in our network namespace and the kernel has its datapath; else one of our
 * own, with the datapath as a program: its database is STATE/vmm/ovs/conf.db, its sockets and logs are in
 * RUN/vmm/ovs. Where our own database is there already it is our own one, so that switches stay where
 * they were made.
 *
 * Our own one is two programs, ovsdb-server and ovs-vswitchd, which outlive us: the next vmm-host finds
 * them by their sockets. When one of them dies it is started again.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  instance_new hands out, instance_free ends; the programs go on unless instance_stop was called.
 * Errors     0 or -errno with one sentence. -ENOENT: Open vSwitch is not installed.
 * Threads    the event loop's.
 */
#pragma once

#include <systemd/sd-event.h>

#include "vmm-glue/net/links.h"
#include "vmm-glue/net/rpc.h"

struct instance;

struct instance_options {
        const char *state_dir, *run_dir; /* the daemon's; copied */
        sd_event *event;
        struct links *links; /* lent */
        /* Required: ovs-vswitchd was started again: flow tables are empty, the host's ports new. */
        void (*again)(void *opaque);
        void *opaque;
};

int instance_new(const struct instance_options *options, struct instance **ret, struct error *err);
struct instance *instance_free(struct instance *instance); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct instance *, instance_free)

/* True when there can be switches: our own database is there, or the system's one is the one to use. */
bool instance_may_have_switches(struct instance *instance);

/* The connection to the database (lent until the next call of any function here); starts what is not
 * running, and adopts what is. */
int instance_database(struct instance *instance, struct ovs_rpc **ret, struct error *err);
/* Only when it runs, or can be adopted, else NULL and 0: nothing is started. */
int instance_database_if_there(struct instance *instance, struct ovs_rpc **ret, struct error *err);

/* Ends the programs if they are our own; @forget: and removes the database, which has no switch any more. */
void instance_stop(struct instance *instance, bool forget);

bool instance_is_own(const struct instance *instance); /* a program's datapath; else the kernel's */
/* Whose switches: this daemon's, in the system's database with others. */
const char *instance_owner(const struct instance *instance);

/* The flow table of @bridge becomes @flows (as ovs-ofctl reads them), all at once. */
int instance_set_flows(
        struct instance *instance, const char *bridge, const char *flows, struct error *err);
