/* SPDX-License-Identifier: Apache-2.0 */
/* plugs.c - network cards of vms: taps, and their ports.
 *
 * A tap's description (alias) says whose card it is, so that it is found again even without its row.
 */
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/net/net_internal.h"
#include "vmm-glue/net/tap.h"

#define MAX_CARDS 64u

/* One card, as the settings have it, and what became of it. */
struct card {
        const json_t *network; /* lent */
        const char *switch_name;
        char mac[MAC_TEXT_SIZE];
        int64_t vlan;
        size_t n_queues;
        bool may_spoof;
        const struct net_switch *net_switch;
        char device[IF_NAMESIZE];
        size_t n_vhost;
};

struct cards {
        struct card list[MAX_CARDS];
        size_t n;
};

/* --- reading settings --- */

static int read_card(const json_t *network, struct card *ret, struct error *err)
{
        const char *name = json_string_value(json_object_get(network, "switch"));
        const char *mac = json_string_value(json_object_get(network, "mac"));
        const json_t *queues = json_object_get(network, "queues");

        ret->network = network;
        ret->switch_name = name ? name : "";
        ret->vlan = json_integer_value(json_object_get(network, "vlan"));
        ret->n_queues = queues ? (size_t)json_integer_value(queues) : 1;
        ret->may_spoof = json_is_true(json_object_get(network, "mac-spoofing"));
        if (ret->vlan < 0 || ret->vlan > (int64_t)SWITCH_MAX_VLAN)
                return fail(err, EINVAL, "a VLAN is a number of 1 to %u, or 0 for none",
                        SWITCH_MAX_VLAN);
        return mac_parse(mac ? mac : "", ret->mac, err);
}

/* @again: cards that were never plugged in have no address yet, and are left out. */
static int read_cards(const json_t *networks, bool again, struct cards *ret, struct error *err)
{
        json_t *network;
        size_t i;

        *ret = (struct cards){0};
        if (json_array_size(networks) > MAX_CARDS)
                return fail(err, EINVAL, "a vm has at most %u network cards", MAX_CARDS);
        json_array_foreach((json_t *)networks, i, network)
        {
                int r;

                if (again && !json_object_get(network, "mac"))
                        continue;
                r = read_card(network, &ret->list[ret->n], err);
                if (r < 0)
                        return r;
                ret->n++;
        }
        return 0;
}

/* --- checking --- */

static bool is_vms(const struct net_port *port, const char *vm)
{
        return strcmp(port->vm, vm) == 0;
}

static int check_mac(const struct card *card, const char *vm, struct error *err)
{
        const struct net_switch *s = card->net_switch;

        for (size_t i = 0; i < s->n_ports; i++)
                if (s->ports[i].vm[0] && strcmp(s->ports[i].mac, card->mac) == 0)
                        return is_vms(&s->ports[i], vm)
                                ? fail(err, EEXIST,
                                          "the card %s is plugged into the switch '%s' already",
                                          card->mac, s->name)
                                : fail(err, EEXIST,
                                          "the MAC address %s is in use on the switch '%s', by vm %s",
                                          card->mac, s->name, s->ports[i].vm);
        return 0;
}

static int find_switches(const struct picture *picture, struct cards *cards, struct error *err)
{
        for (size_t i = 0; i < cards->n; i++) {
                struct card *card = &cards->list[i];

                card->net_switch = picture_find(picture, card->switch_name);
                if (card->net_switch)
                        continue;
                fail(err, ENOENT, "there is no switch '%.64s' for a network card",
                        card->switch_name);
                error_set_hint(err, "vhdctl switch create %.15s --type private", card->switch_name);
                return -ENOENT;
        }
        return 0;
}

static int check_cards(const struct cards *cards, const char *vm, struct error *err)
{
        for (size_t i = 0; i < cards->n; i++) {
                const struct card *card = &cards->list[i];
                int r = check_mac(card, vm, err);

                if (r < 0)
                        return r;
                for (size_t k = 0; k < i; k++)
                        if (strcmp(card->mac, cards->list[k].mac) == 0)
                                return fail(err, EINVAL,
                                        "two network cards have the MAC address %s", card->mac);
        }
        return 0;
}

/* --- rows --- */

static void insert_port(json_t *operations, const char *vm, const struct card *card, size_t number)
{
        char interface[32], port[32];

        snprintf(interface, sizeof(interface), "interface%zu", number);
        snprintf(port, sizeof(port), "port%zu", number);
        ovsdb_insert(operations, "Interface", interface,
                json_pack("{s:s, s:s, s:o}", "name", card->device, "type", "", "external_ids",
                        ovsdb_map(
                                json_pack("{s:s, s:s}", "attached-mac", card->mac, "vm-id", vm))));
        /* VLAN 0 is a VLAN: without a tag a port would carry them all. */
        ovsdb_insert(operations, "Port", port,
                json_pack("{s:s, s:s, s:I, s:o, s:o}", "name", card->device, "vlan_mode", "access",
                        "tag", (json_int_t)card->vlan, "interfaces", ovsdb_new(interface),
                        "external_ids",
                        ovsdb_map(json_pack("{s:s, s:s, s:s}", "vhdd-vm", vm, "vhdd-mac", card->mac,
                                "vhdd-spoofing", card->may_spoof ? "true" : "false"))));
        ovsdb_mutate(
                operations, "Bridge", card->net_switch->uuid, "ports", "insert", ovsdb_new(port));
}

/* The rules of all switches that the cards are on. */
static int set_all_flows(struct net *net, struct ovs_rpc *rpc, const struct cards *cards,
        const char *vm, struct error *err)
{
        struct picture picture = {0};
        int r = picture_take(rpc, instance_owner(net->instance), &picture, err);

        for (size_t i = 0; r == 0 && i < picture.n_switches; i++) {
                const struct net_switch *s = &picture.switches[i];
                bool is_concerned = false;

                for (size_t k = 0; r == 0 && k < s->n_ports; k++)
                        for (size_t c = 0; c < cards->n; c++)
                                if (strcmp(s->ports[k].device, cards->list[c].device) == 0) {
                                        is_concerned = true;
                                        if (s->ports[k].number < 0)
                                                r = fail(err, EIO,
                                                        "Open vSwitch cannot make '%s' a port: %s",
                                                        s->ports[k].device, s->ports[k].error);
                                }
                if (r == 0 && is_concerned)
                        r = net_set_flows(net, s, err);
        }
        picture_done(&picture);
        return r;
}

/* --- plugging in --- */

static unsigned wanted_mtu(struct net *net, const struct net_switch *s)
{
        struct net_link link;

        return s->uplink[0] && links_find(net->links, s->uplink, &link, NULL) == 0 ? link.mtu : 0;
}

static void describe(const char *vm, const char *mac, char ret[LINK_ALIAS_MAX])
{
        snprintf(ret, LINK_ALIAS_MAX, "vhdd %s %s", vm, mac);
}

static int make_tap(struct net *net, const char *vm, struct card *card, int *fds, size_t room,
        size_t *ret_n, struct error *err)
{
        char alias[LINK_ALIAS_MAX];
        struct net_link link;
        int r;

        if (card->n_queues > room)
                return fail(err, ENOSPC,
                        "the queues of a vm's network cards are more than one request takes");
        r = tap_open(card->n_queues, !instance_is_own(net->instance), card->device, fds, err);
        if (r < 0)
                return r;
        *ret_n = card->n_queues;
        if (2 * card->n_queues <= room)
                r = vhost_open(card->n_queues, fds + card->n_queues, &card->n_vhost, err);
        *ret_n += card->n_vhost;
        describe(vm, card->mac, alias);
        if (r == 0)
                r = links_find(net->links, card->device, &link, err);
        return r < 0
                ? r
                : links_set(net->links, link.index, wanted_mtu(net, card->net_switch), alias, err);
}

static int make_taps(struct net *net, const char *vm, struct cards *cards, int *fds, size_t max_fds,
        size_t *n_fds, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < cards->n; i++) {
                size_t n = 0;

                r = make_tap(net, vm, &cards->list[i], fds + *n_fds, max_fds - *n_fds, &n, err);
                *n_fds += n;
        }
        return r;
}

static int set_taps_up(struct net *net, const struct cards *cards, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < cards->n; i++)
                r = links_set_up(net->links, cards->list[i].device, true, err);
        return r;
}

/* Rows of devices that there are no more; what is not there is fine. */
static void drop_devices(struct net *net, struct ovs_rpc *rpc, const struct cards *cards)
{
        json_t *operations = json_array();
        struct picture picture = {0};
        bool committed;

        if (picture_take(rpc, instance_owner(net->instance), &picture, NULL) < 0) {
                json_decref(operations);
                return;
        }
        for (size_t i = 0; i < cards->n; i++) {
                const char *bridge,
                        *port = picture_port_row(&picture, cards->list[i].device, &bridge);

                if (port[0])
                        net_drop_port(operations, bridge, port);
        }
        ovsdb_carry_out(rpc, operations, &committed, NULL);
        picture_done(&picture);
}

/* All that was asked for comes back with what became of it: it is what the next plug is asked with when the
 * guest goes on from saved memory. */
static json_t *cards_to_json(const struct cards *cards)
{
        json_t *list = json_array();

        for (size_t i = 0; i < cards->n; i++) {
                const struct card *card = &cards->list[i];
                json_t *one = json_copy((json_t *)card->network);

                json_object_set_new(one, "mac", json_string(card->mac));
                json_object_set_new(one, "device", json_string(card->device));
                json_object_set_new(one, "descriptors", json_integer((json_int_t)card->n_queues));
                json_object_set_new(one, "vhost", json_integer((json_int_t)card->n_vhost));
                json_array_append_new(list, one);
        }
        return list;
}

static int plug(struct net *net, struct ovs_rpc *rpc, const char *vm, struct cards *cards, int *fds,
        size_t max_fds, size_t *n_fds, struct error *err)
{
        json_t *operations;
        bool committed = false;
        int r = make_taps(net, vm, cards, fds, max_fds, n_fds, err);

        if (r < 0)
                return r;
        operations = json_array();
        for (size_t i = 0; i < cards->n; i++)
                insert_port(operations, vm, &cards->list[i], i);
        r = ovsdb_carry_out(rpc, operations, &committed, err);
        if (r == 0)
                r = set_all_flows(net, rpc, cards, vm, err);
        if (r == 0)
                r = set_taps_up(net, cards, err);
        if (r < 0 && committed)
                drop_devices(net, rpc, cards);
        return r;
}

int net_plug(struct net *net, const char *vm, const json_t *networks, json_t **ret, int *ret_fds,
        size_t max_fds, size_t *ret_n_fds, struct error *err)
{
        struct picture picture = {0};
        struct cards cards;
        struct ovs_rpc *rpc;
        size_t n_fds = 0;
        int r = read_cards(networks, false, &cards, err);

        *ret_n_fds = 0;
        if (r == 0 && cards.n > 0)
                r = net_look(net, &rpc, &picture, err);
        if (r == 0 && cards.n > 0)
                r = find_switches(&picture, &cards, err);
        if (r == 0 && cards.n > 0)
                r = check_cards(&cards, vm, err);
        if (r == 0 && cards.n > 0)
                r = plug(net, rpc, vm, &cards, ret_fds, max_fds, &n_fds, err);
        picture_done(&picture);
        if (r < 0) {
                for (size_t i = 0; i < n_fds; i++)
                        close(ret_fds[i]);
                return r;
        }
        *ret_n_fds = n_fds;
        *ret = cards_to_json(&cards);
        return 0;
}

/* --- as the settings say now --- */

static const struct net_port *find_card(const struct picture *picture, const char *vm,
        const char *mac, const struct net_switch **ret_switch)
{
        for (size_t i = 0; i < picture->n_switches; i++)
                for (size_t k = 0; k < picture->switches[i].n_ports; k++) {
                        const struct net_port *port = &picture->switches[i].ports[k];

                        if (is_vms(port, vm) && strcmp(port->mac, mac) == 0) {
                                *ret_switch = &picture->switches[i];
                                return port;
                        }
                }
        return NULL;
}

/* True when the card's row has to be another one; @card has its device then. */
static bool is_other(struct net *net, const struct picture *picture, const char *vm,
        struct card *card, const struct net_switch **ret_old, const struct net_port **ret_port)
{
        const struct net_port *port = find_card(picture, vm, card->mac, ret_old);
        char alias[LINK_ALIAS_MAX];
        struct net_link link;

        *ret_port = port;
        if (port) {
                memcpy(card->device, port->device, sizeof(card->device));
                return *ret_old != card->net_switch || port->vlan != card->vlan ||
                        port->may_spoof != card->may_spoof;
        }
        describe(vm, card->mac, alias);
        if (links_find_alias(net->links, alias, &link, NULL) < 0)
                return false;
        memcpy(card->device, link.name, sizeof(card->device));
        return true;
}

int net_adjust(struct net *net, const char *vm, const json_t *networks, struct error *err)
{
        struct picture picture = {0};
        struct cards cards, others = {0};
        json_t *operations = NULL;
        struct ovs_rpc *rpc = NULL;
        bool committed;
        int r = read_cards(networks, true, &cards, err);

        if (r == 0)
                r = instance_database_if_there(net->instance, &rpc, err);
        if (r < 0 || !rpc)
                return r;
        r = picture_take(rpc, instance_owner(net->instance), &picture, err);
        if (r == 0)
                operations = json_array();
        for (size_t i = 0; r == 0 && i < cards.n; i++) {
                const struct net_switch *old;
                const struct net_port *port;

                /* On a switch that there is not it stays where it is. */
                cards.list[i].net_switch = picture_find(&picture, cards.list[i].switch_name);
                if (!cards.list[i].net_switch ||
                        !is_other(net, &picture, vm, &cards.list[i], &old, &port))
                        continue;
                if (port)
                        net_drop_port(operations, old->uuid, port->uuid);
                insert_port(operations, vm, &cards.list[i], i);
                others.list[others.n++] = cards.list[i];
        }
        if (r == 0 && others.n > 0) {
                r = ovsdb_carry_out(rpc, TAKE_PTR(operations), &committed, err);
                if (r == 0)
                        r = set_all_flows(net, rpc, &others, vm, err);
                if (r == 0)
                        r = set_taps_up(net, &others, err);
        }
        json_decref(operations);
        picture_done(&picture);
        return r;
}

/* --- pulling out --- */

int net_unplug(struct net *net, const char *vm, const char *mac, struct error *err)
{
        struct picture picture = {0};
        json_t *operations;
        struct ovs_rpc *rpc = NULL;
        bool committed;
        int r = net_look_if_there(net, &rpc, &picture, err);

        if (r < 0 || !rpc)
                return r;
        operations = json_array();
        for (size_t i = 0; i < picture.n_switches; i++) {
                const struct net_switch *s = &picture.switches[i];

                for (size_t k = 0; k < s->n_ports; k++)
                        if (is_vms(&s->ports[k], vm) && (!mac || strcmp(s->ports[k].mac, mac) == 0))
                                net_drop_port(operations, s->uuid, s->ports[k].uuid);
        }
        picture_done(&picture);
        if (json_array_size(operations) == 0) {
                json_decref(operations);
                return 0;
        }
        return ovsdb_carry_out(rpc, operations, &committed, err);
}
