/* SPDX-License-Identifier: Apache-2.0 */
/* uplink.c - which of the host's interfaces may become a switch's uplink.
 *
 * The host must not lose its network by surprise: not its default route, and not the connection of the
 * person who asks.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <string.h>

#include "vmm-glue/net/net_internal.h"

static int list_adapters(struct net *net, char *ret, size_t size, size_t *ret_n, struct error *err)
{
        json_auto_t *names = NULL;
        int r = links_adapters(net->links, &names, err);
        json_t *name;
        size_t i;

        if (r < 0)
                return r;
        ret[0] = '\0';
        json_array_foreach(names, i, name)
        {
                size_t length = strlen(ret);

                snprintf(ret + length, size - length, "%s%s", i ? ", " : "",
                        json_string_value(name));
        }
        *ret_n = json_array_size(names);
        return 0;
}

static int find_uplink(struct net *net, const char *device, struct net_link *ret, struct error *err)
{
        char names[512];
        size_t n;
        int r = links_find(net->links, device, ret, err);

        if (r == -ENODEV && list_adapters(net, names, sizeof(names), &n, NULL) == 0 && n > 0)
                error_set_hint(err, "this host has: %s", names);
        return r;
}

/* --- what it is --- */

static bool is_wireless(const char *device)
{
        char path[64];

        snprintf(path, sizeof(path), "/sys/class/net/%s/phy80211", device);
        return access(path, F_OK) == 0;
}

static int check_kind(struct net *net, const struct net_link *link, const char *owner,
        const char *self, struct error *err)
{
        struct net_link master;

        if (owner[0] && (!self || strcmp(owner, self) != 0))
                return fail(
                        err, EBUSY, "'%s' is a port of the bridge '%s' already", link->name, owner);
        if (link->is_loopback)
                return fail(err, EINVAL, "'%s' is the loopback, and leads nowhere", link->name);
        if (is_wireless(link->name))
                return fail(err, ENOTSUP,
                        "'%s' is wireless: an access point takes no frames from other addresses than its own",
                        link->name);
        if (!link_is_adapter(link))
                return fail(err, EINVAL, "'%s' is a %s device, and no network adapter", link->name,
                        link->kind);
        if (link->master && links_find_index(net->links, link->master, &master, NULL) == 0 &&
                strncmp(master.name, "ovs-", 4) != 0)
                return fail(err, EBUSY, "'%s' belongs to '%s' already", link->name, master.name);
        return 0;
}

/* --- what hangs on it --- */

/* "CLIENT PORT SERVER PORT", as sshd says it. */
static bool carries_connection(struct net *net, const struct net_link *link, const char *connection)
{
        char client[INET6_ADDRSTRLEN] = "", server[INET6_ADDRSTRLEN] = "";
        int index;

        if (!connection || sscanf(connection, "%45s %*s %45s", client, server) != 2)
                return false;
        return links_of_connection(net->links, server, client, &index, NULL) == 0 &&
                index == link->index;
}

static int why_needed(struct net *net, const struct net_link *link, const struct uplink_wish *wish,
        const char **ret, struct error *err)
{
        bool has_route;
        int r = links_has_default_route(net->links, link->index, &has_route, err);

        if (r < 0)
                return r;
        *ret = carries_connection(net, link, wish->connection)
                ? "carries the connection you have come by"
                : has_route ? "carries the host's default route"
                            : NULL;
        return 0;
}

static int refuse(const struct net_link *link, const char *why, bool is_only, struct error *err)
{
        fail(err, EBUSY, "'%s' %s, and the host would be cut off%s", link->name, why,
                is_only ? "; it is this host's only adapter, and two are better: one for the host, one for the vms"
                        : "");
        error_set_hint(err,
                "another --uplink; or --share-host, and the host goes on using it; or --force");
        return -EBUSY;
}

static void note(json_t *notes, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(json_t *notes, const char *format, ...)
{
        _cleanup_free_ char *text = NULL;
        va_list args;

        va_start(args, format);
        if (vasprintf(&text, format, args) < 0)
                text = NULL;
        va_end(args);
        if (text)
                json_array_append_new(notes, json_string(text));
}

static int note_addresses(struct net *net, const struct net_link *link,
        const struct uplink_wish *wish, json_t *notes, struct error *err)
{
        json_auto_t *addresses = NULL;
        const char *first;
        int r = links_addresses(net->links, link->index, &addresses, err);

        if (r < 0 || json_array_size(addresses) == 0)
                return r;
        first = json_string_value(json_array_get(addresses, 0));
        if (wish->share_host && wish->is_own)
                note(notes,
                        "the host keeps its address %s on '%s'; vms reach it by the switch's port instead",
                        first, link->name);
        else if (wish->share_host)
                note(notes,
                        "the host's address %s belongs on the switch's port now: on '%s' nothing reaches it",
                        first, link->name);
        else
                note(notes, "nothing reaches the host by its address %s on '%s' any more", first,
                        link->name);
        return 0;
}

static int check_need(struct net *net, const struct net_link *link, const struct uplink_wish *wish,
        json_t *notes, struct error *err)
{
        char names[512];
        const char *why;
        size_t n_adapters;
        int r = why_needed(net, link, wish, &why, err);

        if (r == 0)
                r = list_adapters(net, names, sizeof(names), &n_adapters, err);
        if (r < 0)
                return r;
        if (why && !wish->share_host && !wish->force)
                return refuse(link, why, n_adapters == 1, err);
        if (n_adapters == 1)
                note(notes,
                        "'%s' is this host's only adapter; two are better: one for the host, one for the vms",
                        link->name);
        return note_addresses(net, link, wish, notes, err);
}

/* The kernel's datapath takes the interface from the host's stack, its addresses with it; a program's does not. */
static int check_sharing(struct net *net, const struct net_link *link,
        const struct uplink_wish *wish, struct error *err)
{
        json_auto_t *addresses = NULL;
        int r;

        if (!wish->share_host || wish->is_own || wish->force)
                return 0;
        r = links_addresses(net->links, link->index, &addresses, err);
        if (r < 0 || json_array_size(addresses) == 0)
                return r;
        fail(err, EBUSY,
                "'%s' has the address %s, which has to be on the switch's port as soon as '%s' is part of a switch",
                link->name, json_string_value(json_array_get(addresses, 0)), link->name);
        error_set_hint(err,
                "--force, in a script that moves the addresses and the default route behind it");
        return -EBUSY;
}

int uplink_check(struct net *net, const struct picture *picture, const struct uplink_wish *wish,
        json_t *notes, struct error *err)
{
        const struct net_switch *other = picture_uplink(picture, wish->device);
        struct net_link link;
        int r = find_uplink(net, wish->device, &link, err);

        if (r < 0)
                return r;
        if (other && (!wish->self || strcmp(other->name, wish->self) != 0))
                return fail(err, EBUSY, "'%s' is the uplink of the switch '%s' already",
                        wish->device, other->name);
        r = check_kind(net, &link, picture_owner(picture, wish->device), wish->self, err);
        if (r == 0)
                r = check_need(net, &link, wish, notes, err);
        return r < 0 ? r : check_sharing(net, &link, wish, err);
}
