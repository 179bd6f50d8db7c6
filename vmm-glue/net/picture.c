/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/picture.h"

#include <string.h>

/* Places in the results of the one transaction that picture_take makes. */
enum { RESULT_BRIDGES, RESULT_PORTS, RESULT_INTERFACES };

static const char *const type_names[] = {
        [SWITCH_PRIVATE] = "private",
        [SWITCH_INTERNAL] = "internal",
        [SWITCH_EXTERNAL] = "external",
};

const char *switch_type_to_string(enum switch_type type)
{
        return type_names[type];
}

bool switch_type_parse(const char *text, enum switch_type *ret)
{
        for (size_t i = 0; i < sizeof(type_names) / sizeof(type_names[0]); i++)
                if (strcmp(text, type_names[i]) == 0) {
                        *ret = (enum switch_type)i;
                        return true;
                }
        return false;
}

bool switch_has_host(const struct net_switch *net_switch)
{
        return net_switch->type == SWITCH_INTERNAL ||
                (net_switch->type == SWITCH_EXTERNAL && net_switch->share_host);
}

static const json_t *rows_of(const struct picture *picture, size_t result)
{
        return json_object_get(json_array_get(picture->results, result), "rows");
}

static const char *own(const json_t *row, const char *key)
{
        return ovsdb_entry(row, "external_ids", key);
}

/* --- reading rows --- */

static void read_interface(const struct picture *picture, const json_t *port, struct net_port *ret)
{
        json_t *row;
        size_t i;

        ret->number = -1;
        ret->error = "";
        json_array_foreach((json_t *)rows_of(picture, RESULT_INTERFACES), i, row)
        {
                if (!ovsdb_refers(port, "interfaces", ovsdb_row_uuid(row)))
                        continue;
                ret->number = ovsdb_number(row, "ofport", -1);
                ret->error = ovsdb_text(row, "error");
                return;
        }
}

static void read_port(const struct picture *picture, const json_t *row, struct net_port *ret)
{
        snprintf(ret->uuid, sizeof(ret->uuid), "%s", ovsdb_row_uuid(row));
        snprintf(ret->device, sizeof(ret->device), "%s", ovsdb_text(row, "name"));
        ret->vlan = ovsdb_number(row, "tag", 0);
        ret->vm = own(row, "vhdd-vm");
        ret->mac = own(row, "vhdd-mac");
        ret->may_spoof = strcmp(own(row, "vhdd-spoofing"), "true") == 0;
        read_interface(picture, row, ret);
}

static int read_ports(const struct picture *picture, const json_t *bridge, struct net_switch *ret,
        struct error *err)
{
        const json_t *rows = rows_of(picture, RESULT_PORTS);
        json_t *row;
        size_t i;

        ret->ports = calloc(json_array_size(rows) + 1, sizeof(*ret->ports));
        if (!ret->ports)
                return fail(err, ENOMEM, "no memory for a switch's ports");
        json_array_foreach(
                (json_t *)rows, i, row) if (ovsdb_refers(bridge, "ports", ovsdb_row_uuid(row)))
                read_port(picture, row, &ret->ports[ret->n_ports++]);
        return 0;
}

static int read_switch(
        const struct picture *picture, const json_t *row, struct net_switch *ret, struct error *err)
{
        const char *type = own(row, "vhdd-type"), *vlan = own(row, "vhdd-host-vlan");

        snprintf(ret->uuid, sizeof(ret->uuid), "%s", ovsdb_row_uuid(row));
        ret->name = ovsdb_text(row, "name");
        if (!switch_type_parse(type, &ret->type))
                return fail(err, EUCLEAN,
                        "the bridge '%s' in Open vSwitch's database has the type '%s'", ret->name,
                        type);
        ret->uplink = own(row, "vhdd-uplink");
        ret->share_host = strcmp(own(row, "vhdd-share-host"), "true") == 0;
        ret->host_vlan = strtol(vlan, NULL, 10);
        ret->host_addresses = own(row, "vhdd-host-addresses");
        ret->restore = own(row, "vhdd-restore");
        ret->datapath = ovsdb_text(row, "datapath_type");
        return read_ports(picture, row, ret, err);
}

int picture_take(struct ovs_rpc *rpc, const char *instance, struct picture *ret, struct error *err)
{
        static const char *const bridge[] = {
                "_uuid", "name", "ports", "external_ids", "datapath_type", NULL};
        static const char *const port[] = {
                "_uuid", "name", "tag", "interfaces", "external_ids", NULL};
        static const char *const interface[] = {"_uuid", "name", "ofport", "error", NULL};
        struct picture picture = {0};
        json_t *operations = json_array(), *row;
        size_t i;
        int r;

        ovsdb_select(operations, "Bridge", bridge);
        ovsdb_select(operations, "Port", port);
        ovsdb_select(operations, "Interface", interface);
        r = ovsdb_transact(rpc, operations, &picture.results, err);
        if (r < 0)
                return r;
        picture.switches = calloc(
                json_array_size(rows_of(&picture, RESULT_BRIDGES)) + 1, sizeof(*picture.switches));
        if (!picture.switches)
                r = fail(err, ENOMEM, "no memory for the switches");
        json_array_foreach((json_t *)rows_of(&picture, RESULT_BRIDGES), i, row)
        {
                if (r < 0 || strcmp(own(row, "vhdd-instance"), instance) != 0)
                        continue;
                r = read_switch(&picture, row, &picture.switches[picture.n_switches++], err);
        }
        if (r < 0) {
                picture_done(&picture);
                return r;
        }
        *ret = picture;
        return 0;
}

void picture_done(struct picture *picture)
{
        for (size_t i = 0; i < picture->n_switches; i++)
                free(picture->switches[i].ports);
        free(picture->switches);
        json_decref(picture->results);
        *picture = (struct picture){0};
}

/* --- looking --- */

struct net_switch *picture_find(const struct picture *picture, const char *name)
{
        for (size_t i = 0; i < picture->n_switches; i++)
                if (strcmp(picture->switches[i].name, name) == 0)
                        return &picture->switches[i];
        return NULL;
}

struct net_switch *picture_uplink(const struct picture *picture, const char *device)
{
        for (size_t i = 0; i < picture->n_switches; i++)
                if (picture->switches[i].uplink[0] &&
                        strcmp(picture->switches[i].uplink, device) == 0)
                        return &picture->switches[i];
        return NULL;
}

static const json_t *row_named(const json_t *rows, const char *name)
{
        json_t *row;
        size_t i;

        json_array_foreach(
                (json_t *)rows, i, row) if (strcmp(ovsdb_text(row, "name"), name) == 0) return row;
        return NULL;
}

static const json_t *bridge_of(const struct picture *picture, const json_t *port)
{
        json_t *row;
        size_t i;

        json_array_foreach((json_t *)rows_of(picture, RESULT_BRIDGES), i,
                row) if (port && ovsdb_refers(row, "ports", ovsdb_row_uuid(port))) return row;
        return NULL;
}

const char *picture_owner(const struct picture *picture, const char *device)
{
        const json_t *port = row_named(rows_of(picture, RESULT_PORTS), device);

        return ovsdb_text(bridge_of(picture, port), "name");
}

const char *picture_port_row(
        const struct picture *picture, const char *device, const char **ret_bridge)
{
        const json_t *port = row_named(rows_of(picture, RESULT_PORTS), device);

        *ret_bridge = ovsdb_row_uuid(bridge_of(picture, port));
        return ovsdb_row_uuid(port);
}
