/* SPDX-License-Identifier: Apache-2.0 */
/* A rule too many lets a guest speak as another, or a host into a private switch. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/net/flows.h"

static struct net_port ports[] = {
        {.device = "lan", .number = 65534, .error = "", .vm = "", .mac = ""},
        {.device = "eth1", .number = 1, .error = "", .vm = "", .mac = ""},
        {.device = "vhdd1", .number = 2, .error = "", .vm = "a", .mac = "5a:00:00:00:00:01"},
        {.device = "vhdd2",
                .number = 3,
                .error = "",
                .vm = "b",
                .mac = "5a:00:00:00:00:02",
                .may_spoof = true},
        {.device = "vhdd3", .number = -1, .error = "gone", .vm = "c", .mac = "5a:00:00:00:00:03"},
        {.device = "vhdd4", .number = 5, .error = "", .vm = "d", .mac = ""},
};

static char *flows_for(enum switch_type type, bool share_host)
{
        struct net_switch net_switch = {.name = "lan",
                .type = type,
                .share_host = share_host,
                .uplink = "eth1",
                .ports = ports,
                .n_ports = sizeof(ports) / sizeof(ports[0])};
        char *flows = flows_of(&net_switch);

        cr_assert(flows != NULL);
        return flows;
}

Test(flows_of, lets_a_guest_speak_as_itself_alone)
{
        char *flows = flows_for(SWITCH_EXTERNAL, false);

        cr_expect(strstr(flows, "in_port=2,dl_src=5a:00:00:00:00:01,actions=NORMAL\n") != NULL);
        cr_expect(strstr(flows, "in_port=2,actions") == NULL);
        cr_expect(strstr(flows, "in_port=3,actions=NORMAL\n") != NULL, "this one may");
        cr_expect(strstr(flows, "in_port=1,actions=NORMAL\n") != NULL, "the uplink may");
        cr_expect(strstr(flows, "in_port=-1") == NULL, "one that is no port");
        cr_expect(strstr(flows, "in_port=5") == NULL, "one without an address");
        cr_expect(strstr(flows, "priority=0,actions=drop\n") != NULL);
        free(flows);
}

Test(flows_of, lets_the_host_in_where_it_has_a_port)
{
        static const struct {
                enum switch_type type;
                bool share_host, has_host;
        } cases[] = {
                {SWITCH_PRIVATE, false, false},
                {SWITCH_INTERNAL, false, true},
                {SWITCH_EXTERNAL, false, false},
                {SWITCH_EXTERNAL, true, true},
        };

        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
                char *flows = flows_for(cases[i].type, cases[i].share_host);

                cr_expect(eq(int, strstr(flows, "in_port=LOCAL,") != NULL, cases[i].has_host), "%s",
                        switch_type_to_string(cases[i].type));
                cr_expect(strstr(flows, "in_port=65534") == NULL);
                cr_expect(strstr(flows, "dl_vlan=4095,actions=drop\n") != NULL);
                free(flows);
        }
}
