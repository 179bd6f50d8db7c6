/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/guard.h"

#include <linux/bpf_common.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Our filter's place among an interface's others, so that we find it again and no one else's. */
#define FILTER_PRIORITY 0x7664u
#define FILTER_HANDLE   1u

DEFINE_CLEANUP(struct nl_msg *, nlmsg_free)

/* --- the filter --- */

static int tc_message(int type, int flags, const struct tcmsg *tc, const char *kind,
        struct nl_msg **ret, struct error *err)
{
        struct nl_msg *message = nlmsg_alloc_simple(type, flags);

        if (!message || nlmsg_append(message, (void *)tc, sizeof(*tc), NLMSG_ALIGNTO) < 0 ||
                nla_put_string(message, TCA_KIND, kind) < 0) {
                nlmsg_free(message);
                return fail(err, ENOMEM, "no memory for a message to the kernel");
        }
        *ret = message;
        return 0;
}

/* libnl frees the message, and answers its own numbers. */
static int tell(struct links *links, struct nl_msg **message)
{
        return nl_send_sync(links_socket(links), TAKE_PTR(*message));
}

static int add_place(struct links *links, const struct net_link *uplink, struct error *err)
{
        struct tcmsg tc = {
                .tcm_ifindex = uplink->index,
                .tcm_handle = TC_H_MAKE(TC_H_CLSACT, 0),
                .tcm_parent = TC_H_CLSACT,
        };
        _cleanup_(nlmsg_freep) struct nl_msg *message = NULL;
        int r = tc_message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &tc, "clsact", &message, err);

        if (r < 0)
                return r;
        r = tell(links, &message);
        if (r < 0 && r != -NLE_EXIST)
                return fail(err, EIO, "cannot filter what comes in on '%s' (clsact): %s",
                        uplink->name, nl_geterror(r));
        return 0;
}

static struct tcmsg filter_header(const struct net_link *uplink)
{
        return (struct tcmsg){
                .tcm_ifindex = uplink->index,
                .tcm_handle = FILTER_HANDLE,
                .tcm_parent = TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS),
                .tcm_info = TC_H_MAKE(FILTER_PRIORITY << 16, htons(ETH_P_ALL)),
        };
}

static int put_program(struct nl_msg *message)
{
        const struct sock_filter drop = BPF_STMT(BPF_RET | BPF_K, TC_ACT_SHOT);
        struct nlattr *options = nla_nest_start(message, TCA_OPTIONS);

        if (!options || nla_put_u16(message, TCA_BPF_OPS_LEN, 1) < 0 ||
                nla_put(message, TCA_BPF_OPS, sizeof(drop), &drop) < 0 ||
                nla_put_u32(message, TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT) < 0)
                return -ENOMEM;
        nla_nest_end(message, options);
        return 0;
}

int guard_keep_host_out(struct links *links, const struct net_link *uplink, struct error *err)
{
        struct tcmsg tc = filter_header(uplink);
        _cleanup_(nlmsg_freep) struct nl_msg *message = NULL;
        int r = add_place(links, uplink, err);

        if (r == 0)
                r = tc_message(RTM_NEWTFILTER, NLM_F_CREATE, &tc, "bpf", &message, err);
        if (r < 0)
                return r;
        if (put_program(message) < 0)
                return fail(err, ENOMEM, "no memory for a message to the kernel");
        r = tell(links, &message);
        if (r < 0 && r != -NLE_EXIST)
                return fail(err, EIO, "cannot keep the host out of '%s' (cls_bpf): %s",
                        uplink->name, nl_geterror(r));
        return 0;
}

int guard_let_host_in(struct links *links, const struct net_link *uplink, struct error *err)
{
        struct tcmsg tc = filter_header(uplink);
        _cleanup_(nlmsg_freep) struct nl_msg *message = NULL;
        int r = tc_message(RTM_DELTFILTER, 0, &tc, "bpf", &message, err);

        if (r < 0)
                return r;
        r = tell(links, &message);
        /* There is no filter, or not even a place for one. */
        if (r < 0 && r != -NLE_OBJ_NOTFOUND && r != -NLE_INVAL && r != -NLE_NODEV &&
                r != -NLE_OPNOTSUPP)
                return fail(err, EIO, "cannot let the host use '%s' again: %s", uplink->name,
                        nl_geterror(r));
        return 0;
}

/* --- frames as they were on the wire --- */

static const struct feature {
        const char *name;
        uint32_t get, set;
        uint32_t flag; /* of many in one word; 0: the word is the answer */
        bool on_other_end;
} features[] = {
        {"gro", ETHTOOL_GGRO, ETHTOOL_SGRO, 0, false},
        {"lro", ETHTOOL_GFLAGS, ETHTOOL_SFLAGS, ETH_FLAG_LRO, false},
        {"peer-tx", ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM, 0, true},
};
#define N_FEATURES (sizeof(features) / sizeof(features[0]))

static int ethtool(const char *device, uint32_t command, uint32_t *value)
{
        _cleanup_fd_ int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        struct ethtool_value request = {.cmd = command, .data = *value};
        struct ifreq ifreq = {0};

        if (fd < 0)
                return -errno;
        snprintf(ifreq.ifr_name, sizeof(ifreq.ifr_name), "%s", device);
        ifreq.ifr_data = (void *)&request;
        if (ioctl(fd, SIOCETHTOOL, &ifreq) < 0)
                return -errno;
        *value = request.data;
        return 0;
}

/* True when it was the other way. */
static bool switch_feature(const char *device, const struct feature *feature, bool on)
{
        uint32_t value = 0, wanted;
        bool is_on;

        if (ethtool(device, feature->get, &value) < 0)
                return false;
        is_on = feature->flag ? value & feature->flag : value;
        if (is_on == on)
                return false;
        wanted = !feature->flag ? on : on ? value | feature->flag : value & ~feature->flag;
        return ethtool(device, feature->set, &wanted) == 0;
}

/* The device that it is about; NULL: there is none within reach. */
static const char *device_of(struct links *links, const struct net_link *uplink,
        const struct feature *feature, struct net_link *other)
{
        if (!feature->on_other_end)
                return uplink->name;
        if (strcmp(uplink->kind, "veth") != 0 || !uplink->lower ||
                links_find_index(links, uplink->lower, other, NULL) < 0)
                return NULL;
        return other->name;
}

int guard_plain_frames(
        struct links *links, const struct net_link *uplink, char **ret_was_on, struct error *err)
{
        char words[64] = "";

        for (size_t i = 0; i < N_FEATURES; i++) {
                struct net_link other;
                const char *device = device_of(links, uplink, &features[i], &other);
                size_t length = strlen(words);

                if (device && switch_feature(device, &features[i], false))
                        snprintf(words + length, sizeof(words) - length, "%s%s", length ? " " : "",
                                features[i].name);
        }
        *ret_was_on = strdup(words);
        return *ret_was_on ? 0 : fail(err, ENOMEM, "no memory");
}

static bool has_word(const char *words, const char *word)
{
        size_t length = strlen(word);

        for (const char *p = words; (p = strstr(p, word)); p += length)
                if ((p == words || p[-1] == ' ') && (p[length] == ' ' || !p[length]))
                        return true;
        return false;
}

void guard_restore(struct links *links, const struct net_link *uplink, const char *was_on)
{
        for (size_t i = 0; i < N_FEATURES; i++) {
                struct net_link other;
                const char *device = has_word(was_on, features[i].name)
                        ? device_of(links, uplink, &features[i], &other)
                        : NULL;

                if (device)
                        switch_feature(device, &features[i], true);
        }
}
