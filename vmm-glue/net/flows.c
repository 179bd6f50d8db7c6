/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/flows.h"

#include <inttypes.h>
#include <string.h>

static void write_port(FILE *file, const struct net_switch *net_switch, const struct net_port *port)
{
        if (strcmp(port->device, net_switch->name) == 0) {
                if (switch_has_host(net_switch))
                        fprintf(file, "priority=10,in_port=LOCAL,actions=NORMAL\n");
        } else if (port->number < 0) {
                return; /* could not be made a port */
        } else if (!port->vm[0]) {
                fprintf(file, "priority=10,in_port=%" PRId64 ",actions=NORMAL\n", port->number);
        } else if (port->may_spoof) {
                fprintf(file, "priority=20,in_port=%" PRId64 ",actions=NORMAL\n", port->number);
        } else if (port->mac[0]) {
                fprintf(file, "priority=20,in_port=%" PRId64 ",dl_src=%s,actions=NORMAL\n",
                        port->number, port->mac);
        }
}

char *flows_of(const struct net_switch *net_switch)
{
        char *text = NULL;
        size_t size;
        FILE *file = open_memstream(&text, &size);

        if (!file)
                return NULL;
        fprintf(file, "priority=40,dl_vlan=%d,actions=drop\npriority=0,actions=drop\n",
                SWITCH_DARK_VLAN);
        for (size_t i = 0; i < net_switch->n_ports; i++)
                write_port(file, net_switch, &net_switch->ports[i]);
        if (fclose(file) != 0) {
                free(text);
                return NULL;
        }
        return text;
}
