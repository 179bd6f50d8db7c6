/* SPDX-License-Identifier: Apache-2.0 */
/* links.h - the host's network devices, addresses and routes, as the kernel tells them.
 *
 * Units      none.
 * Ownership  links_open hands out, links_close ends. A net_link is a plain value.
 * Errors     0 or -errno with one sentence. -ENODEV: there is no such device.
 * Threads    one thread at a time.
 */
#pragma once

#include <jansson.h>
#include <net/if.h>
#include <stdbool.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "base/error.h"

#define LINK_ALIAS_MAX 128u

struct links;

struct net_link {
        int index;
        char name[IF_NAMESIZE];
        char kind[24]; /* "veth", "bridge", "tun" ...; "": a real adapter, or the loopback */
        int master;    /* the bridge or bond that it belongs to, by index; 0: none */
        int lower; /* what it stands on, or a veth's other end, by index; 0: none, or elsewhere */
        bool is_elsewhere; /* that one is in another namespace */
        bool is_loopback, is_up;
        bool has_carrier; /* of a tap: some process has it open */
        unsigned mtu;
        char alias[LINK_ALIAS_MAX];
};

int links_open(struct links **ret, struct error *err);
struct links *links_close(struct links *links); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct links *, links_close)

int links_find(struct links *links, const char *name, struct net_link *ret, struct error *err);
int links_find_index(struct links *links, int index, struct net_link *ret, struct error *err);
int links_find_alias(
        struct links *links, const char *alias, struct net_link *ret, struct error *err);

/* What an external switch could take, by name: real adapters, bonds, and what a container has for one. */
int links_adapters(struct links *links, json_t **ret, struct error *err);
bool link_is_adapter(const struct net_link *link);

int links_set_up(struct links *links, const char *name, bool up, struct error *err);
/* @mtu 0: as it is. @alias NULL: as it is. */
int links_set(struct links *links, int index, unsigned mtu, const char *alias, struct error *err);

/* One that is gone already is fine. */
int links_delete(struct links *links, const char *name, struct error *err);

/* Whether a default route goes out by it, or by what stands on it (a VLAN of it, say). */
int links_has_default_route(struct links *links, int index, bool *ret, struct error *err);
/* The device by which we speak to the other end when @local is our address, else the one that a packet to
 * @remote takes; the one beneath, if it stands on one. -ENODEV: neither can be told. */
int links_of_connection(
        struct links *links, const char *local, const char *remote, int *ret, struct error *err);

/* "192.0.2.1/24", without those of the link alone (fe80::). A new list. */
int links_addresses(struct links *links, int index, json_t **ret, struct error *err);
int links_add_address(struct links *links, int index, const char *address, struct error *err);
int links_remove_address(struct links *links, int index, const char *address, struct error *err);
/* "192.0.2.1/24" or the like: what links_add_address takes. */
int link_address_check(const char *address, struct error *err);

/* @changed is called from the event loop for each device that comes or changes. */
struct links_watch;
int links_watch(sd_event *event, void (*changed)(void *opaque, const char *name, int index),
        void *opaque, struct links_watch **ret, struct error *err);
struct links_watch *links_watch_end(
        struct links_watch *watch); /* NULL is fine; always returns NULL */

struct nl_sock;
struct nl_sock *links_socket(struct links *links); /* lent */
