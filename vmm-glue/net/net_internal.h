/* SPDX-License-Identifier: Apache-2.0 */
/* net_internal.h - what net.c, switches.c, uplink.c and plugs.c share.
 *
 * Units, ownership, errors, threads: as net.h.
 */
#pragma once

#include "vmm-glue/net/guard.h"
#include "vmm-glue/net/instance.h"
#include "vmm-glue/net/net.h"
#include "vmm-glue/net/picture.h"

struct net {
        struct instance *instance;
        struct links *links;
        struct links_watch *watch;
        json_t *uplinks; /* name -> number of the device; 0: it is not there */
};

/* --- net.c: making it so --- */

/* The picture now; Open vSwitch is started if it does not run. */
int net_look(struct net *net, struct ovs_rpc **ret_rpc, struct picture *ret, struct error *err);
/* The same without starting it: where there can be no switch, *ret_rpc is NULL and @ret stays empty. */
int net_look_if_there(
        struct net *net, struct ovs_rpc **ret_rpc, struct picture *ret, struct error *err);
int net_set_flows(struct net *net, const struct net_switch *net_switch, struct error *err);
/* The host's port is up and has its addresses, or is down; the host is kept out of the uplink, or is not. */
int net_set_host(struct net *net, const struct net_switch *net_switch, struct error *err);
/* Takes @port off its bridge. */
void net_drop_port(json_t *operations, const char *bridge_uuid, const char *port_uuid);

/* --- switches.c --- */

/* The rows of an uplink; the port is called "uplink_port" in this transaction. */
void net_insert_uplink(json_t *operations, const char *device);

/* --- uplink.c --- */

struct uplink_wish {
        const char *device;
        const char *connection; /* the caller's, as $SSH_CONNECTION has it; NULL: none */
        const char *self;       /* the switch that it is for; NULL: a new one */
        bool share_host, force;
        bool is_own; /* the user-space datapath */
};
/* Whether it can be, and may be, an uplink. @notes: a list that gets advice for people. */
int uplink_check(struct net *net, const struct picture *picture, const struct uplink_wish *wish,
        json_t *notes, struct error *err);
