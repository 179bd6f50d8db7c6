/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl switch ... - virtual switches, which the network cards of vms are plugged into. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "vhdd/ctl/connection.h"
#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"

#define NAME_OPERAND                                                                               \
        {                                                                                          \
                "name", PARAM_TEXT, NULL, NULL, NULL                                               \
        }

static const struct param name_operands[] = {NAME_OPERAND, {0}};

/* --- options --- */

static int take_host_address(json_t *params, const char *value, struct error *err)
{
        json_t *list = json_object_get(params, "host-addresses");

        if (!list) {
                list = json_array();
                json_object_set_new(params, "host-addresses", list);
        }
        if (strcmp(value, "none") != 0)
                json_array_append_new(list, json_string(value));
        return 0;
}

static int take_no_share(json_t *params, const char *value, struct error *err)
{
        json_object_set_new(params, "share-host", json_false());
        return 0;
}

/* clang-format off */
#define SWITCH_OPTIONS                                                                             \
        {"type", PARAM_TEXT, "private|internal|external",                                          \
                "Vms alone; with the host; with the network of an uplink", NULL},                  \
        {"uplink", PARAM_TEXT, "IFACE", "The host's network interface, of an external one", NULL}, \
        {"share-host", PARAM_FLAG, NULL, "The host has a port on an external one, too", NULL},     \
        {"host-vlan", PARAM_NUMBER, "N", "The VLAN of the host's port (0: none)", NULL},           \
        {"host-address", PARAM_OWN, "ADDRESS/LENGTH",                                              \
                "An address of the host's port (again for more; none: no one)", take_host_address}
/* clang-format on */

static const struct param create_options[] = {SWITCH_OPTIONS, {0}};
static const struct param set_options[] = {SWITCH_OPTIONS,
        {"no-share-host", PARAM_OWN, NULL, "The host has no port any more", take_no_share}, {0}};

/* Who takes the uplink away by which he has come is told so first. */
static int add_connection(const struct ctl *ctl, json_t *params, struct error *err)
{
        char connection[SSH_CONNECTION_MAX];

        if (json_object_get(params, "uplink") || json_object_get(params, "share-host"))
                if (connection_find(connection))
                        json_object_set_new(params, "connection", json_string(connection));
        return 0;
}

static int check_create(const struct ctl *ctl, json_t *params, struct error *err)
{
        if (!json_object_get(params, "type"))
                return fail(err, EINVAL, "which one: --type private, internal or external");
        return add_connection(ctl, params, err);
}

/* --- showing --- */

static const char *dash(const char *text)
{
        return text[0] ? text : "-";
}

static int show_switches(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        static const char *const columns[] = {
                "SWITCH", "TYPE", "UPLINK", "HOST'S PORT", ">CARDS", "DATAPATH", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        json_t *one;
        size_t i;

        json_array_foreach((json_t *)result, i, one)
        {
                table_cell(table, "%s", show_text(one, "name"));
                table_cell(table, "%s", show_text(one, "type"));
                table_cell(table, "%s", dash(show_text(one, "uplink")));
                table_cell(table, "%s", dash(show_text(one, "host-port")));
                table_cell(table, "%zu", json_array_size(json_object_get(one, "ports")));
                table_cell(table, "%s", dash(show_text(one, "datapath")));
        }
        table_print(table, stdout);
        if (json_array_size(result) == 0 && !ctl->quiet)
                printf("no switches; `vhdctl switch create NAME --type private' makes one\n");
        return CTL_DONE;
}

static void show_ports(const json_t *ports)
{
        static const char *const columns[] = {
                "VM", "MAC", ">VLAN", "OTHER MACS", "DEVICE", "ERROR", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        json_t *port;
        size_t i;

        json_array_foreach((json_t *)ports, i, port)
        {
                table_cell(table, "%s", show_text(port, "vm"));
                table_cell(table, "%s", show_text(port, "mac"));
                if (show_number(port, "vlan"))
                        table_cell(table, "%" PRId64, show_number(port, "vlan"));
                else
                        table_cell(table, "-");
                table_cell(table, "%s", show_flag(port, "mac-spoofing") ? "allowed" : "dropped");
                table_cell(table, "%s", show_text(port, "device"));
                table_cell(table, "%s", show_text(port, "error"));
        }
        table_print(table, stdout);
}

static int show_switch(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        const json_t *ports = json_object_get(result, "ports");

        show_line(0, "name", "%s", show_text(result, "name"));
        show_line(0, "type", "%s", show_text(result, "type"));
        if (show_text(result, "uplink")[0])
                show_line(0, "uplink", "%s", show_text(result, "uplink"));
        show_line(0, "host's port", "%s",
                show_text(result, "host-port")[0] ? show_text(result, "host-port") : "none");
        if (show_number(result, "host-vlan"))
                show_line(0, "host's vlan", "%" PRId64, show_number(result, "host-vlan"));
        show_list("host's address ", json_object_get(result, "host-addresses"));
        show_line(0, "datapath", "%s", show_text(result, "datapath"));
        show_list("note: ", json_object_get(result, "notes"));
        if (json_array_size(ports) > 0) {
                printf("\n");
                show_ports(ports);
        }
        return CTL_DONE;
}

static void say(const struct ctl *ctl, const json_t *params, const json_t *result, const char *done,
        const char *would)
{
        _cleanup_free_ char *name = text_safe(show_text(params, "name"));

        printf("%s %s\n", name, ctl->dry_run ? would : done);
        show_list("note: ", json_object_get(result, "notes"));
}

static int show_created(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        say(ctl, params, result, "created", "would be created");
        return CTL_DONE;
}

static int show_changed(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        say(ctl, params, result, "changed", "would be changed");
        return CTL_DONE;
}

static int show_removed(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        say(ctl, params, result, "removed", "would be removed");
        return CTL_DONE;
}

/* --- the verbs --- */

const struct command command_switch_create = {
        .name = "switch create",
        .operands = "NAME --type private|internal|external",
        .summary = "make a virtual switch",
        .doc = "Make a switch that network cards of vms are plugged into. On a private one vms are among "
               "themselves. On an internal one the host has a port, too: its network interface NAME. "
               "An external one leads to the network of --uplink; the host has no part in it unless "
               "--share-host gives it a port. An uplink serves one switch. One that the host needs (for "
               "its default route, or for the connection that you have come by) is refused without "
               "--share-host or --force."
               "\v"
               "Examples:\n"
               "  vhdctl switch create lab --type private\n"
               "  vhdctl switch create inside --type internal --host-address 192.0.2.1/24\n"
               "  vhdctl switch create lan --type external --uplink eth1",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "switch.create",
                .operands = name_operands,
                .options = create_options,
                .takes_force = true,
                .changes = true,
                .prepare = check_create,
                .show = show_created},
};

const struct command command_switch_set = {
        .name = "switch set",
        .operands = "NAME",
        .summary = "change a virtual switch",
        .doc = "Change what is given; the rest of the switch stays, and so do the network cards that are "
               "plugged in. A --host-address replaces those that there were. The uplink is looked at as by "
               "`vhdctl switch create'."
               "\v"
               "Examples:\n"
               "  vhdctl switch set lab --type internal\n"
               "  vhdctl switch set lan --share-host --host-vlan 20\n"
               "  vhdctl switch set lan --uplink eth2",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "switch.set",
                .operands = name_operands,
                .options = set_options,
                .takes_force = true,
                .changes = true,
                .prepare = add_connection,
                .show = show_changed},
};

const struct command command_switch_list = {
        .name = "switch list",
        .operands = "",
        .summary = "all virtual switches",
        .doc = "List the switches: type, uplink, the host's port, how many network cards are plugged in, and "
               "whether the kernel or a program moves the frames."
               "\v"
               "Examples:\n"
               "  vhdctl switch list",
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "switch.list", .show = show_switches},
};

const struct command command_switch_show = {
        .name = "switch show",
        .operands = "NAME",
        .summary = "one virtual switch, and who is plugged in",
        .doc = "Show a switch and the network cards of running vms that are plugged into it."
               "\v"
               "Examples:\n"
               "  vhdctl switch show lan",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon =
                &(const struct daemon_verb){
                        .method = "switch.show", .operands = name_operands, .show = show_switch},
};

const struct command command_switch_remove = {
        .name = "switch remove",
        .operands = "NAME",
        .summary = "take a virtual switch away",
        .doc = "Remove a switch; its uplink is the host's again. One with network cards plugged in is kept "
               "unless --force takes it away from them."
               "\v"
               "Examples:\n"
               "  vhdctl switch remove lab",
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "switch.remove",
                .operands = name_operands,
                .takes_force = true,
                .changes = true,
                .show = show_removed},
};
