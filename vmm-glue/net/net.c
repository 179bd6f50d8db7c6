/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/net/flows.h"
#include "vmm-glue/net/net_internal.h"

/* --- steps --- */

int net_look(struct net *net, struct ovs_rpc **ret_rpc, struct picture *ret, struct error *err)
{
        int r = instance_database(net->instance, ret_rpc, err);

        return r < 0 ? r : picture_take(*ret_rpc, instance_owner(net->instance), ret, err);
}

int net_look_if_there(
        struct net *net, struct ovs_rpc **ret_rpc, struct picture *ret, struct error *err)
{
        int r = instance_database_if_there(net->instance, ret_rpc, err);

        return r == 0 && *ret_rpc
                ? picture_take(*ret_rpc, instance_owner(net->instance), ret, err)
                : r;
}

int net_set_flows(struct net *net, const struct net_switch *net_switch, struct error *err)
{
        _cleanup_free_ char *flows = flows_of(net_switch);

        if (!flows)
                return fail(err, ENOMEM, "no memory for a switch's rules");
        return instance_set_flows(net->instance, net_switch->name, flows, err);
}

void net_drop_port(json_t *operations, const char *bridge_uuid, const char *port_uuid)
{
        ovsdb_mutate(operations, "Bridge", bridge_uuid, "ports", "delete", ovsdb_uuid(port_uuid));
}

static int add_addresses(
        struct net *net, const struct net_switch *net_switch, int index, struct error *err)
{
        _cleanup_free_ char *list = strdup(net_switch->host_addresses);
        char *rest = list;
        int r = list ? 0 : fail(err, ENOMEM, "no memory for addresses");

        while (r == 0 && rest) {
                char *address = strsep(&rest, " ");

                if (address[0])
                        r = links_add_address(net->links, index, address, err);
        }
        return r;
}

static int set_host_port(struct net *net, const struct net_switch *net_switch, struct error *err)
{
        bool has_host = switch_has_host(net_switch);
        struct net_link link;
        int r = links_find(net->links, net_switch->name, &link, err);

        if (r == 0)
                r = links_set_up(net->links, net_switch->name, has_host, err);
        return r < 0 || !has_host ? r : add_addresses(net, net_switch, link.index, err);
}

/* The one that this is known by; a new one of the same name has another number. */
static void watch_uplink(struct net *net, const struct net_link *link)
{
        json_object_set_new(net->uplinks, link->name, json_integer(link->index));
}

/* What was on is in the switch's row since its making; after a reboot it is on once more. */
static int set_plain_frames(struct net *net, const struct net_link *link, struct error *err)
{
        _cleanup_free_ char *was_on = NULL;

        return guard_plain_frames(net->links, link, &was_on, err);
}

static int set_uplink(struct net *net, const struct net_switch *net_switch, struct error *err)
{
        struct net_link link;
        int r = links_find(net->links, net_switch->uplink, &link, err);

        if (r == 0)
                r = links_set_up(net->links, net_switch->uplink, true, err);
        if (r == 0)
                watch_uplink(net, &link);
        if (r < 0 || !instance_is_own(net->instance))
                return r;
        r = set_plain_frames(net, &link, err);
        if (r < 0)
                return r;
        return net_switch->share_host ? guard_let_host_in(net->links, &link, err)
                                      : guard_keep_host_out(net->links, &link, err);
}

int net_set_host(struct net *net, const struct net_switch *net_switch, struct error *err)
{
        int r = set_host_port(net, net_switch, err);

        if (r == 0 && net_switch->uplink[0])
                r = set_uplink(net, net_switch, err);
        return r;
}

/* --- what was there before --- */

/* Ports whose device is gone with its guest. */
static int drop_dead_ports(
        struct net *net, struct ovs_rpc *rpc, const struct picture *picture, struct error *err)
{
        json_t *operations = json_array();
        bool committed;
        struct net_link link;

        for (size_t i = 0; i < picture->n_switches; i++) {
                const struct net_switch *s = &picture->switches[i];

                for (size_t k = 0; k < s->n_ports; k++)
                        if (s->ports[k].vm[0] &&
                                links_find(net->links, s->ports[k].device, &link, NULL) == -ENODEV)
                                net_drop_port(operations, s->uuid, s->ports[k].uuid);
        }
        /* Also with nothing to drop: behind it ovs-vswitchd has done what the database says. */
        return ovsdb_carry_out(rpc, operations, &committed, err);
}

static const char *uplink_port(const struct net_switch *net_switch)
{
        for (size_t i = 0; i < net_switch->n_ports; i++)
                if (strcmp(net_switch->ports[i].device, net_switch->uplink) == 0)
                        return net_switch->ports[i].uuid;
        return NULL;
}

/* Open vSwitch goes on listening at the device that was: the port has to go before it comes. */
static int renew_port(struct ovs_rpc *rpc, const struct net_switch *net_switch, struct error *err)
{
        const char *port = uplink_port(net_switch);
        json_t *operations = json_array();
        bool committed;
        int r;

        if (port)
                net_drop_port(operations, net_switch->uuid, port);
        r = ovsdb_carry_out(rpc, operations, &committed, err);
        if (r < 0)
                return r;
        operations = json_array();
        net_insert_uplink(operations, net_switch->uplink);
        ovsdb_mutate(operations, "Bridge", net_switch->uuid, "ports", "insert",
                ovsdb_new("uplink_port"));
        ovsdb_make_durable(operations);
        return ovsdb_carry_out(rpc, operations, &committed, err);
}

/* We died between the two halves of renew_port(). */
static int add_lost_uplinks(struct ovs_rpc *rpc, const struct picture *picture, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < picture->n_switches; i++)
                if (picture->switches[i].uplink[0] && !uplink_port(&picture->switches[i]))
                        r = renew_port(rpc, &picture->switches[i], err);
        return r;
}

/* A switch that cannot be had whole, because its uplink is missing today, must not hold up the others. */
static void make_whole(struct net *net, const struct net_switch *net_switch)
{
        struct error err = ERROR_INIT;

        /* Also when it is not there: somebody may plug it in. */
        if (net_switch->uplink[0])
                json_object_set_new(net->uplinks, net_switch->uplink, json_integer(0));

        if (net_set_flows(net, net_switch, &err) < 0 || net_set_host(net, net_switch, &err) < 0) {
                fail_prefix(&err, -err.code, "switch '%s'", net_switch->name);
                log_error(&err);
        }
}

static int make_all_whole(struct net *net, struct ovs_rpc *rpc, struct error *err)
{
        struct picture picture = {0};
        int r = picture_take(rpc, instance_owner(net->instance), &picture, err);

        if (r == 0)
                r = drop_dead_ports(net, rpc, &picture, err);
        if (r == 0)
                r = add_lost_uplinks(rpc, &picture, err);
        picture_done(&picture);
        /* Once more: the ports' numbers are known only now. */
        if (r == 0)
                r = picture_take(rpc, instance_owner(net->instance), &picture, err);
        if (r < 0)
                return r;
        for (size_t i = 0; i < picture.n_switches; i++)
                make_whole(net, &picture.switches[i]);
        picture_done(&picture);
        return 0;
}

int net_adopt(struct net *net, struct error *err)
{
        struct ovs_rpc *rpc;
        int r = instance_database_if_there(net->instance, &rpc, err);

        return r < 0 || !rpc ? r : make_all_whole(net, rpc, err);
}

static void on_again(void *opaque)
{
        struct net *net = opaque;
        struct error err = ERROR_INIT;

        if (net_adopt(net, &err) < 0)
                log_error(&err);
        else
                log_info("the switches are there again");
}

static void renew_uplink(struct net *net, const char *name)
{
        struct error err = ERROR_INIT;
        struct picture picture = {0};
        const struct net_switch *net_switch;
        struct ovs_rpc *rpc = NULL;
        int r = net_look_if_there(net, &rpc, &picture, &err);

        net_switch = picture_uplink(&picture, name);
        if (r == 0 && net_switch)
                r = renew_port(rpc, net_switch, &err);
        picture_done(&picture);
        if (r < 0)
                log_error(&err);
}

/* An uplink that comes, or comes again: nothing keeps the host out of it, and it is no port yet. */
static void on_link(void *opaque, const char *name, int index)
{
        struct net *net = opaque;
        const json_t *known = json_object_get(net->uplinks, name);

        if (!known || json_integer_value(known) == index)
                return;
        json_object_set_new(net->uplinks, name, json_integer(index));
        renew_uplink(net, name);
        on_again(net);
}

/* --- life --- */

static bool has_cards(const struct picture *picture)
{
        for (size_t i = 0; i < picture->n_switches; i++)
                for (size_t k = 0; k < picture->switches[i].n_ports; k++)
                        if (picture->switches[i].ports[k].vm[0])
                                return true;
        return false;
}

/* Nobody knows of a card, or nobody can tell. */
static bool is_needed(struct net *net, struct ovs_rpc *rpc)
{
        struct picture picture = {0};
        bool needed;

        if (picture_take(rpc, instance_owner(net->instance), &picture, NULL) < 0)
                return false;
        drop_dead_ports(net, rpc, &picture, NULL);
        picture_done(&picture);
        if (picture_take(rpc, instance_owner(net->instance), &picture, NULL) < 0)
                return false;
        needed = has_cards(&picture);
        picture_done(&picture);
        return needed;
}

void net_stop(struct net *net)
{
        struct ovs_rpc *rpc = NULL;

        if (!instance_may_have_switches(net->instance))
                return;
        if (instance_database_if_there(net->instance, &rpc, NULL) < 0 || !is_needed(net, rpc))
                instance_stop(net->instance, false);
}

int net_new(const struct net_options *options, struct net **ret, struct error *err)
{
        _cleanup_(net_freep) struct net *net = calloc(1, sizeof(*net));
        struct instance_options instance = {
                .state_dir = options->state_dir,
                .run_dir = options->run_dir,
                .event = options->event,
                .again = on_again,
                .opaque = net,
        };
        int r;

        if (!net)
                return fail(err, ENOMEM, "no memory for the switches");
        net->uplinks = json_object();
        r = links_open(&net->links, err);
        instance.links = net->links;
        if (r == 0)
                r = links_watch(options->event, on_link, net, &net->watch, err);
        if (r == 0)
                r = instance_new(&instance, &net->instance, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(net);
        return 0;
}

struct net *net_free(struct net *net)
{
        if (!net)
                return NULL;
        instance_free(net->instance);
        links_watch_end(net->watch);
        links_close(net->links);
        json_decref(net->uplinks);
        free(net);
        return NULL;
}
