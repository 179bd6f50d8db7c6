/* SPDX-License-Identifier: Apache-2.0 */
/* net.h - virtual switches, and the network cards of vms that are plugged into them.
 *
 * A switch is a bridge of Open vSwitch, a card a tap device that is a port of it. Three types, as Hyper-V has
 * them: private (vms alone), internal (and the host, by a port of the switch's name), external (and a
 * network that one of the host's interfaces, the uplink, leads to; with share-host the host has its port,
 * too).
 *
 *      switch  --create--> rows, flows, host's port, guard        any step fails: none of it
 *      card    --plug-->   tap, row, flows, tap up                any step fails: none of it
 *
 * Units      VLANs are numbers of 802.1Q, 0: none.
 * Ownership  net_new hands out, net_free ends; switches and cards stay. Results are new references;
 *            descriptors are the caller's.
 * Errors     0 or -errno with one sentence. -ENOENT no such switch, -EEXIST there is one, -EBUSY the uplink,
 *            or a switch with cards, is needed as it is; -EINVAL what was asked for makes no sense.
 * Threads    the event loop's. What changes something waits for Open vSwitch: 50 to 500 ms as a rule, and
 *            never more than some 10 s.
 */
#pragma once

#include <jansson.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "base/error.h"

struct net;

struct net_options {
        const char *state_dir, *run_dir; /* the daemon's */
        sd_event *event;
};

int net_new(const struct net_options *options, struct net **ret, struct error *err);
struct net *net_free(struct net *net); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct net *, net_free)

/* What was there before us works again: Open vSwitch runs if there are switches, ports without a device are
 * gone. */
int net_adopt(struct net *net, struct error *err);
/* Our own Open vSwitch ends, unless a card is plugged in. */
void net_stop(struct net *net);

/* The methods switch.* of schema.json; @params as there. */
int net_switch_create(struct net *net, const json_t *params, json_t **ret, struct error *err);
int net_switch_list(struct net *net, json_t **ret, struct error *err);
int net_switch_show(struct net *net, const char *name, json_t **ret, struct error *err);
int net_switch_set(struct net *net, const json_t *params, json_t **ret, struct error *err);
int net_switch_remove(struct net *net, const json_t *params, json_t **ret, struct error *err);

/* A card for each member of @networks (schema.json's "network", each with its "mac") for the vm of that
 * id. @ret: a list of copies, each with "device", "descriptors": how many of @ret_fds are its queues, and
 * "vhost": how many behind them are /dev/vhost-net. At most @max_fds in all.   -ENOSPC: they do not fit */
int net_plug(struct net *net, const char *vm, const json_t *networks, json_t **ret, int *ret_fds,
        size_t max_fds, size_t *ret_n_fds, struct error *err);
/* The cards that the vm has become as @networks says: other VLANs, another switch. None is made or taken
 * away. */
int net_adjust(struct net *net, const char *vm, const json_t *networks, struct error *err);
/* @mac NULL: all of the vm. What is not there is fine. */
int net_unplug(struct net *net, const char *vm, const char *mac, struct error *err);
