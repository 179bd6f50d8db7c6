/* SPDX-License-Identifier: Apache-2.0 */
/* picture.h - the switches and their ports, as Open vSwitch's database has them at one moment.
 *
 * The database is the one place where they are kept. A switch is a bridge of the same name; what only we
 * know of it stands in external_ids, of the bridge and of its ports:
 *
 *      bridge  vhdd-instance  whose switch it is: a daemon sees only its own
 *              vhdd-type      private, internal, external
 *              vhdd-uplink    the host's interface, of an external one
 *              vhdd-share-host  "true": the host has a port on it
 *              vhdd-host-vlan, vhdd-host-addresses  of the host's port
 *              vhdd-restore   what was switched off on the uplink: comes back when the switch goes
 *      port    vhdd-vm        the vm's id
 *              vhdd-mac       of its network card
 *              vhdd-spoofing  "true": other source addresses are let through, too
 *
 * The bridge's own interface is the host's port. On a switch where the host has none it stays down, in a
 * VLAN that nobody else can be in.
 *
 * Units      none.
 * Ownership  picture_take fills, picture_done ends; everything in it lives as long.
 * Errors     0 or -errno with one sentence.
 * Threads    one thread at a time.
 */
#pragma once

#include <net/if.h>

#include "base/uuid.h"
#include "vmm-glue/net/mac.h"
#include "vmm-glue/net/ovsdb.h"

#define SWITCH_MAX_VLAN  4094u
#define SWITCH_DARK_VLAN 4095 /* reserved by 802.1Q: no card, and nothing on a wire, is in it */

enum switch_type { SWITCH_PRIVATE, SWITCH_INTERNAL, SWITCH_EXTERNAL };
const char *switch_type_to_string(enum switch_type type);
bool switch_type_parse(const char *text, enum switch_type *ret);

struct net_port {
        char uuid[UUID_TEXT_SIZE];
        char device[IF_NAMESIZE];
        int64_t vlan;      /* 0: none */
        int64_t number;    /* OpenFlow's; -1: it could not be made a port */
        const char *error; /* why, or "" */
        const char *vm;    /* the id; "": the host's port, or the uplink */
        const char *mac;
        bool may_spoof;
};

struct net_switch {
        char uuid[UUID_TEXT_SIZE];
        const char *name; /* the host's device, too */
        enum switch_type type;
        const char *uplink; /* "": none */
        bool share_host;
        int64_t host_vlan;
        const char *host_addresses; /* parted by blanks */
        const char *restore;
        const char *datapath;   /* "netdev": the user-space one */
        struct net_port *ports; /* all, the host's and the uplink included */
        size_t n_ports;
};

struct picture {
        struct net_switch *switches;
        size_t n_switches;
        json_t *results;
};

/* @instance: whose. */
int picture_take(struct ovs_rpc *rpc, const char *instance, struct picture *ret, struct error *err);
void picture_done(struct picture *picture); /* zeros are fine */

struct net_switch *picture_find(const struct picture *picture, const char *name);
/* The switch whose uplink @device is; NULL: none's. */
struct net_switch *picture_uplink(const struct picture *picture, const char *device);
bool switch_has_host(const struct net_switch *net_switch);
/* The bridge, whoever's it is, that has a port @device already: its name, or "". */
const char *picture_owner(const struct picture *picture, const char *device);
/* The port row of that device on whatever bridge: its uuid or "", and the bridge's. */
const char *picture_port_row(
        const struct picture *picture, const char *device, const char **ret_bridge);
