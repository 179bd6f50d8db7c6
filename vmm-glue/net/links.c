/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/links.h"

#include <arpa/inet.h>
#include <linux/if_arp.h>
#include <linux/rtnetlink.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* Devices that stand on others, one on the other: a VLAN of a bond of ... */
#define MAX_STOREYS 8

struct links {
        struct nl_sock *socket;
};

DEFINE_CLEANUP(struct nl_cache *, nl_cache_free)
DEFINE_CLEANUP(struct rtnl_link *, rtnl_link_put)
DEFINE_CLEANUP(struct rtnl_addr *, rtnl_addr_put)
DEFINE_CLEANUP(struct nl_addr *, nl_addr_put)

/* libnl counts its errors by itself; the kernel's are among them. */
static int fail_nl(struct error *err, int r, int code, const char *what)
{
        return fail(err, code, "%s: %s", what, nl_geterror(r));
}

int links_open(struct links **ret, struct error *err)
{
        struct links *links = calloc(1, sizeof(*links));
        int r;

        if (links)
                links->socket = nl_socket_alloc();
        if (!links || !links->socket) {
                free(links);
                return fail(err, ENOMEM, "no memory for a netlink socket");
        }
        r = nl_connect(links->socket, NETLINK_ROUTE);
        if (r < 0) {
                links_close(links);
                return fail_nl(err, r, EIO, "cannot speak to the kernel about networks");
        }
        *ret = links;
        return 0;
}

struct links *links_close(struct links *links)
{
        if (!links)
                return NULL;
        nl_socket_free(links->socket);
        free(links);
        return NULL;
}

struct nl_sock *links_socket(struct links *links)
{
        return links->socket;
}

/* --- one device --- */

static void read_link(struct rtnl_link *link, struct net_link *ret)
{
        const char *kind = rtnl_link_get_type(link), *alias = rtnl_link_get_ifalias(link);
        int32_t namespace;

        *ret = (struct net_link){
                .index = rtnl_link_get_ifindex(link),
                .master = rtnl_link_get_master(link),
                .lower = rtnl_link_get_link(link),
                .is_elsewhere = rtnl_link_get_link_netnsid(link, &namespace) == 0,
                .is_loopback = rtnl_link_get_arptype(link) == ARPHRD_LOOPBACK,
                .is_up = rtnl_link_get_flags(link) & IFF_UP,
                .has_carrier = rtnl_link_get_carrier(link) == 1,
                .mtu = rtnl_link_get_mtu(link),
        };
        if (ret->is_elsewhere)
                ret->lower = 0;
        snprintf(ret->name, sizeof(ret->name), "%s", rtnl_link_get_name(link));
        snprintf(ret->kind, sizeof(ret->kind), "%s", kind ? kind : "");
        snprintf(ret->alias, sizeof(ret->alias), "%s", alias ? alias : "");
}

static int get_link(
        struct links *links, int index, const char *name, struct net_link *ret, struct error *err)
{
        _cleanup_(rtnl_link_putp) struct rtnl_link *link = NULL;
        int r = rtnl_link_get_kernel(links->socket, index, name, &link);

        if (r < 0 && name)
                return fail(err, ENODEV, "there is no network interface '%.32s'", name);
        if (r < 0)
                return fail(err, ENODEV, "there is no network interface number %d", index);
        read_link(link, ret);
        return 0;
}

int links_find(struct links *links, const char *name, struct net_link *ret, struct error *err)
{
        if (!name[0] || strlen(name) >= IF_NAMESIZE)
                return fail(err, ENODEV, "there is no network interface '%.32s'", name);
        return get_link(links, 0, name, ret, err);
}

int links_find_index(struct links *links, int index, struct net_link *ret, struct error *err)
{
        return get_link(links, index, NULL, ret, err);
}

/* --- all devices --- */

static int all_links(struct links *links, struct nl_cache **ret, struct error *err)
{
        int r = rtnl_link_alloc_cache(links->socket, AF_UNSPEC, ret);

        return r < 0 ? fail_nl(err, r, EIO, "cannot list the network interfaces") : 0;
}

#define FOR_EACH_OBJECT(cache, object)                                                             \
        for (struct nl_object *object = nl_cache_get_first(cache); object;                         \
                object = nl_cache_get_next(object))

int links_find_alias(
        struct links *links, const char *alias, struct net_link *ret, struct error *err)
{
        _cleanup_(nl_cache_freep) struct nl_cache *cache = NULL;
        int r = all_links(links, &cache, err);

        if (r < 0)
                return r;
        FOR_EACH_OBJECT(cache, object)
        {
                read_link((struct rtnl_link *)object, ret);
                if (strcmp(ret->alias, alias) == 0)
                        return 0;
        }
        return fail(err, ENODEV, "no network interface is described as '%s'", alias);
}

bool link_is_adapter(const struct net_link *link)
{
        static const char *const kinds[] = {
                "", "veth", "bond", "team", "vlan", "macvlan", "ipvlan", "macvtap"};

        if (link->is_loopback)
                return false;
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
                if (strcmp(link->kind, kinds[i]) == 0)
                        return true;
        return false;
}

int links_adapters(struct links *links, json_t **ret, struct error *err)
{
        _cleanup_(nl_cache_freep) struct nl_cache *cache = NULL;
        int r = all_links(links, &cache, err);

        if (r < 0)
                return r;
        *ret = json_array();
        FOR_EACH_OBJECT(cache, object)
        {
                struct net_link link;

                read_link((struct rtnl_link *)object, &link);
                /* What belongs to a bond is no further one. */
                if (link_is_adapter(&link) && !link.master)
                        json_array_append_new(*ret, json_string(link.name));
        }
        return 0;
}

/* --- changing --- */

static int change(struct links *links, int index, struct rtnl_link *changes, const char *what,
        struct error *err)
{
        _cleanup_(rtnl_link_putp) struct rtnl_link *link = NULL;
        int r = rtnl_link_get_kernel(links->socket, index, NULL, &link);

        if (r == 0)
                r = rtnl_link_change(links->socket, link, changes, 0);
        return r < 0 ? fail_nl(err, r, EIO, what) : 0;
}

int links_set_up(struct links *links, const char *name, bool up, struct error *err)
{
        _cleanup_(rtnl_link_putp) struct rtnl_link *changes = rtnl_link_alloc();
        struct net_link link;
        int r = links_find(links, name, &link, err);

        if (r < 0)
                return r;
        if (!changes)
                return fail(err, ENOMEM, "no memory");
        if (link.is_up == up)
                return 0;
        if (up)
                rtnl_link_set_flags(changes, IFF_UP);
        else
                rtnl_link_unset_flags(changes, IFF_UP);
        return change(
                links, link.index, changes, "cannot switch a network interface on or off", err);
}

int links_set(struct links *links, int index, unsigned mtu, const char *alias, struct error *err)
{
        _cleanup_(rtnl_link_putp) struct rtnl_link *changes = rtnl_link_alloc();

        if (!changes)
                return fail(err, ENOMEM, "no memory");
        if (mtu)
                rtnl_link_set_mtu(changes, mtu);
        if (alias)
                rtnl_link_set_ifalias(changes, alias);
        return change(links, index, changes, "cannot set up a network interface", err);
}

int links_delete(struct links *links, const char *name, struct error *err)
{
        _cleanup_(rtnl_link_putp) struct rtnl_link *link = rtnl_link_alloc();
        struct net_link found;
        int r;

        if (!link)
                return fail(err, ENOMEM, "no memory");
        if (links_find(links, name, &found, NULL) < 0)
                return 0;
        rtnl_link_set_ifindex(link, found.index);
        r = rtnl_link_delete(links->socket, link);
        return r < 0 && r != -NLE_OBJ_NOTFOUND && r != -NLE_NODEV
                ? fail_nl(err, r, EIO, "cannot remove a network interface")
                : 0;
}

/* --- routes --- */

/* Whether device @upper is @index, or stands on it. */
static bool stands_on(struct links *links, int upper, int index)
{
        for (int i = 0; i < MAX_STOREYS && upper > 0; i++) {
                struct net_link link;

                if (upper == index)
                        return true;
                if (links_find_index(links, upper, &link, NULL) < 0 ||
                        strcmp(link.kind, "veth") == 0)
                        return false;
                upper = link.lower;
        }
        return false;
}

static bool route_uses(struct links *links, struct rtnl_route *route, int index)
{
        int n = rtnl_route_get_nnexthops(route);

        for (int i = 0; i < n; i++) {
                struct rtnl_nexthop *hop = rtnl_route_nexthop_n(route, i);

                if (hop && stands_on(links, rtnl_route_nh_get_ifindex(hop), index))
                        return true;
        }
        return false;
}

int links_has_default_route(struct links *links, int index, bool *ret, struct error *err)
{
        static const int families[] = {AF_INET, AF_INET6};

        *ret = false;
        for (size_t i = 0; i < 2; i++) {
                _cleanup_(nl_cache_freep) struct nl_cache *cache = NULL;
                int r = rtnl_route_alloc_cache(links->socket, families[i], 0, &cache);

                /* A kernel without IPv6 has no routes of it. */
                if (r < 0 && families[i] == AF_INET6)
                        continue;
                if (r < 0)
                        return fail_nl(err, r, EIO, "cannot list the routes");
                FOR_EACH_OBJECT(cache, object)
                {
                        struct rtnl_route *route = (struct rtnl_route *)object;
                        struct nl_addr *to = rtnl_route_get_dst(route);

                        if (rtnl_route_get_type(route) == RTN_UNICAST &&
                                (!to || nl_addr_get_prefixlen(to) == 0) &&
                                route_uses(links, route, index))
                                *ret = true;
                }
        }
        return 0;
}

/* --- addresses --- */

static int all_addresses(struct links *links, struct nl_cache **ret, struct error *err)
{
        int r = rtnl_addr_alloc_cache(links->socket, ret);

        return r < 0 ? fail_nl(err, r, EIO, "cannot list the addresses") : 0;
}

static bool is_link_local(struct nl_addr *address)
{
        const uint8_t *bytes = nl_addr_get_binary_addr(address);

        return nl_addr_get_family(address) == AF_INET6 && bytes[0] == 0xfe &&
                (bytes[1] & 0xc0) == 0x80;
}

int links_addresses(struct links *links, int index, json_t **ret, struct error *err)
{
        _cleanup_(nl_cache_freep) struct nl_cache *cache = NULL;
        int r = all_addresses(links, &cache, err);

        if (r < 0)
                return r;
        *ret = json_array();
        FOR_EACH_OBJECT(cache, object)
        {
                struct rtnl_addr *row = (struct rtnl_addr *)object;
                struct nl_addr *address = rtnl_addr_get_local(row);
                char text[INET6_ADDRSTRLEN + 5];

                if (rtnl_addr_get_ifindex(row) != index || !address || is_link_local(address))
                        continue;
                nl_addr2str(address, text, sizeof(text));
                json_array_append_new(*ret,
                        strchr(text, '/')
                                ? json_string(text)
                                : json_sprintf("%s/%u", text, nl_addr_get_prefixlen(address)));
        }
        return 0;
}

static int parse_address(const char *text, struct nl_addr **ret, struct error *err)
{
        int r = strchr(text, '/') ? nl_addr_parse(text, AF_UNSPEC, ret) : -NLE_INVAL;
        int family = r == 0 ? nl_addr_get_family(*ret) : AF_UNSPEC;

        if (family == AF_INET || family == AF_INET6)
                return 0;
        if (r == 0)
                nl_addr_put(*ret);
        *ret = NULL;
        return fail(err, EINVAL, "'%.64s' is no address with its prefix, as in 192.0.2.1/24", text);
}

int link_address_check(const char *address, struct error *err)
{
        _cleanup_(nl_addr_putp) struct nl_addr *parsed = NULL;

        return parse_address(address, &parsed, err);
}

static int make_address(int index, const char *text, struct rtnl_addr **ret, struct error *err)
{
        _cleanup_(nl_addr_putp) struct nl_addr *address = NULL;
        struct rtnl_addr *row;
        int r = parse_address(text, &address, err);

        if (r < 0)
                return r;
        row = rtnl_addr_alloc();
        if (!row || rtnl_addr_set_local(row, address) < 0) {
                if (row)
                        rtnl_addr_put(row);
                return fail(err, ENOMEM, "no memory for an address");
        }
        rtnl_addr_set_ifindex(row, index);
        *ret = row;
        return 0;
}

int links_add_address(struct links *links, int index, const char *address, struct error *err)
{
        _cleanup_(rtnl_addr_putp) struct rtnl_addr *row = NULL;
        int r = make_address(index, address, &row, err);

        if (r < 0)
                return r;
        r = rtnl_addr_add(links->socket, row, 0);
        if (r < 0 && r != -NLE_EXIST)
                return fail_nl(err, r, EIO, "cannot give the host its address on a switch");
        return 0;
}

int links_remove_address(struct links *links, int index, const char *address, struct error *err)
{
        _cleanup_(rtnl_addr_putp) struct rtnl_addr *row = NULL;
        int r = make_address(index, address, &row, err);

        if (r < 0)
                return r;
        r = rtnl_addr_delete(links->socket, row, 0);
        if (r < 0 && r != -NLE_NOADDR && r != -NLE_OBJ_NOTFOUND)
                return fail_nl(err, r, EIO, "cannot take an address of the host away");
        return 0;
}

/* --- whose connection --- */

static int device_of_address(struct links *links, const char *text, int *ret, struct error *err)
{
        _cleanup_(nl_cache_freep) struct nl_cache *cache = NULL;
        _cleanup_(nl_addr_putp) struct nl_addr *wanted = NULL;
        int r = all_addresses(links, &cache, err);

        if (r < 0)
                return r;
        if (nl_addr_parse(text, AF_UNSPEC, &wanted) < 0)
                return fail(err, ENODEV, "'%.64s' is no address", text);
        FOR_EACH_OBJECT(cache, object)
        {
                struct rtnl_addr *row = (struct rtnl_addr *)object;
                struct nl_addr *address = rtnl_addr_get_local(row);
                size_t length = nl_addr_get_len(wanted);

                if (!address || nl_addr_get_family(address) != nl_addr_get_family(wanted) ||
                        memcmp(nl_addr_get_binary_addr(address), nl_addr_get_binary_addr(wanted),
                                length) != 0)
                        continue;
                *ret = rtnl_addr_get_ifindex(row);
                return 0;
        }
        return fail(err, ENODEV, "'%.64s' is no address of this host", text);
}

/* The kernel chooses our address when a socket for datagrams is connected; nothing is sent. */
static int our_address_to(const char *remote, char ret[INET6_ADDRSTRLEN], struct error *err)
{
        struct sockaddr_storage address = {0};
        struct sockaddr_in *v4 = (struct sockaddr_in *)&address;
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address;
        socklen_t size = sizeof(*v4);
        _cleanup_fd_ int fd = -1;
        bool is_v4 = inet_pton(AF_INET, remote, &v4->sin_addr) == 1;

        if (is_v4) {
                v4->sin_family = AF_INET;
                v4->sin_port = htons(9);
        } else if (inet_pton(AF_INET6, remote, &v6->sin6_addr) == 1) {
                v6->sin6_family = AF_INET6;
                v6->sin6_port = htons(9);
                size = sizeof(*v6);
        } else
                return fail(err, ENODEV, "'%.64s' is no address", remote);
        fd = socket(address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, size) < 0)
                return fail_os(err, ENODEV, "no way leads to '%.64s'", remote);
        size = sizeof(address);
        if (getsockname(fd, (struct sockaddr *)&address, &size) < 0)
                return fail_os(err, errno, "cannot tell by what address we speak");
        inet_ntop(address.ss_family, is_v4 ? (void *)&v4->sin_addr : (void *)&v6->sin6_addr, ret,
                INET6_ADDRSTRLEN);
        return 0;
}

/* A VLAN of an adapter is that adapter, when it goes. */
static int lowest(struct links *links, int index)
{
        for (int i = 0; i < MAX_STOREYS; i++) {
                struct net_link link;

                if (links_find_index(links, index, &link, NULL) < 0 || !link.lower ||
                        strcmp(link.kind, "veth") == 0)
                        break;
                index = link.lower;
        }
        return index;
}

int links_of_connection(
        struct links *links, const char *local, const char *remote, int *ret, struct error *err)
{
        char address[INET6_ADDRSTRLEN];
        int index, r = device_of_address(links, local, &index, err);

        if (r < 0) {
                r = our_address_to(remote, address, err);
                if (r == 0)
                        r = device_of_address(links, address, &index, err);
        }
        if (r < 0)
                return r;
        *ret = lowest(links, index);
        return 0;
}

/* --- watching --- */

struct links_watch {
        struct nl_sock *socket;
        sd_event_source *source;
        void (*changed)(void *opaque, const char *name, int index);
        void *opaque;
};

static void on_link_object(struct nl_object *object, void *opaque)
{
        struct links_watch *watch = opaque;
        struct net_link link;

        if (strcmp(nl_object_get_type(object), "route/link") != 0)
                return;
        read_link((struct rtnl_link *)object, &link);
        watch->changed(watch->opaque, link.name, link.index);
}

static int on_link_message(struct nl_msg *message, void *opaque)
{
        if (nlmsg_hdr(message)->nlmsg_type == RTM_NEWLINK)
                nl_msg_parse(message, on_link_object, opaque);
        return NL_OK;
}

static int on_link_event(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
        struct links_watch *watch = opaque;

        /* Messages that were lost because there were too many: the next ones come all the same. */
        nl_recvmsgs_default(watch->socket);
        return 0;
}

int links_watch(sd_event *event, void (*changed)(void *opaque, const char *name, int index),
        void *opaque, struct links_watch **ret, struct error *err)
{
        struct links_watch *watch = calloc(1, sizeof(*watch));
        int r;

        if (watch)
                watch->socket = nl_socket_alloc();
        if (!watch || !watch->socket) {
                free(watch);
                return fail(err, ENOMEM, "no memory for a netlink socket");
        }
        watch->changed = changed;
        watch->opaque = opaque;
        nl_socket_disable_seq_check(watch->socket);
        nl_socket_modify_cb(watch->socket, NL_CB_VALID, NL_CB_CUSTOM, on_link_message, watch);
        r = nl_connect(watch->socket, NETLINK_ROUTE);
        if (r == 0)
                r = nl_socket_add_memberships(watch->socket, RTNLGRP_LINK, 0);
        if (r == 0)
                r = nl_socket_set_nonblocking(watch->socket);
        if (r < 0) {
                links_watch_end(watch);
                return fail_nl(err, r, EIO, "cannot watch the network interfaces");
        }
        r = sd_event_add_io(event, &watch->source, nl_socket_get_fd(watch->socket), EPOLLIN,
                on_link_event, watch);
        if (r < 0) {
                links_watch_end(watch);
                return fail_os(err, -r, "cannot watch the network interfaces");
        }
        *ret = watch;
        return 0;
}

struct links_watch *links_watch_end(struct links_watch *watch)
{
        if (!watch)
                return NULL;
        sd_event_source_disable_unref(watch->source);
        nl_socket_free(watch->socket);
        free(watch);
        return NULL;
}
