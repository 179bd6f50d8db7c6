/* SPDX-License-Identifier: Apache-2.0 */
/* switches.c - making, showing, changing and removing switches. */
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/net/net_internal.h"

#define MAX_HOST_ADDRESSES 16u

/* What a switch is to be. */
struct wish {
        const char *name;
        enum switch_type type;
        const char *uplink; /* "": none */
        bool share_host, force, dry_run;
        int64_t host_vlan;
        char *host_addresses; /* parted by blanks */
        const char *connection;
};

static void wish_done(struct wish *wish)
{
        free(wish->host_addresses);
}

/* --- reading params --- */

static const char *text_in(const json_t *params, const char *key)
{
        const char *text = json_string_value(json_object_get(params, key));

        return text ? text : "";
}

/* The host's port has the switch's name, so it is one that a network device can have. */
static int check_name(const char *name, struct error *err)
{
        static const char allowed[] =
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

        if (strlen(name) >= IF_NAMESIZE || strspn(name, allowed) != strlen(name) || !name[0] ||
                strchr("-.", name[0]) || strncmp(name, "ovs-", 4) == 0)
                return fail(err, EINVAL,
                        "a switch's name is a network device's too: 1 to %d letters, digits, '_', '-' and '.', and '%.64s' is not",
                        IF_NAMESIZE - 1, name);
        return 0;
}

static int join_addresses(const json_t *list, char **ret, struct error *err)
{
        char *text = NULL;
        size_t size, i;
        json_t *address;
        FILE *file;
        int r = 0;

        if (json_array_size(list) > MAX_HOST_ADDRESSES)
                return fail(err, EINVAL, "the host has at most %u addresses on a switch",
                        MAX_HOST_ADDRESSES);
        file = open_memstream(&text, &size);
        if (!file)
                return fail(err, ENOMEM, "no memory for addresses");
        json_array_foreach((json_t *)list, i, address)
        {
                const char *one = json_string_value(address);

                r = r < 0 ? r : link_address_check(one ? one : "", err);
                fprintf(file, "%s%s", i ? " " : "", one ? one : "");
        }
        if (fclose(file) != 0 && r == 0)
                r = fail(err, ENOMEM, "no memory for addresses");
        if (r < 0) {
                free(text);
                return r;
        }
        free(*ret);
        *ret = text;
        return 0;
}

/* What @params give; the rest stays as it is in @wish. */
static int read_params(const json_t *params, struct wish *wish, struct error *err)
{
        const json_t *share = json_object_get(params, "share-host");
        const json_t *vlan = json_object_get(params, "host-vlan");
        const json_t *addresses = json_object_get(params, "host-addresses");

        wish->force = json_is_true(json_object_get(params, "force"));
        wish->dry_run = json_is_true(json_object_get(params, "dry-run"));
        wish->connection = json_string_value(json_object_get(params, "connection"));
        if (text_in(params, "type")[0] && !switch_type_parse(text_in(params, "type"), &wish->type))
                return fail(err, EINVAL, "'%.64s' is none of private, internal, external",
                        text_in(params, "type"));
        if (text_in(params, "uplink")[0])
                wish->uplink = text_in(params, "uplink");
        if (share)
                wish->share_host = json_is_true(share);
        if (vlan)
                wish->host_vlan = json_integer_value(vlan);
        return addresses ? join_addresses(addresses, &wish->host_addresses, err) : 0;
}

static int check_wish(const struct wish *wish, struct error *err)
{
        bool is_external = wish->type == SWITCH_EXTERNAL;
        bool has_host = wish->type == SWITCH_INTERNAL || (is_external && wish->share_host);

        if (is_external && !wish->uplink[0]) {
                fail(err, EINVAL, "an external switch needs an uplink");
                error_set_hint(err, "--uplink IFACE");
                return -EINVAL;
        }
        if (!is_external && wish->uplink[0])
                return fail(err, EINVAL, "only an external switch has an uplink, and '%s' is %s",
                        wish->name, switch_type_to_string(wish->type));
        if (!is_external && wish->share_host)
                return fail(err, EINVAL,
                        "only the uplink of an external switch is shared, and '%s' is %s",
                        wish->name, switch_type_to_string(wish->type));
        if (wish->host_vlan < 0 || wish->host_vlan > (int64_t)SWITCH_MAX_VLAN)
                return fail(err, EINVAL, "a VLAN is a number of 1 to %u, or 0 for none",
                        SWITCH_MAX_VLAN);
        if (!has_host && (wish->host_vlan || (wish->host_addresses && wish->host_addresses[0])))
                return fail(err, EINVAL,
                        "the host has no port on the switch '%s', so it has no VLAN and no address there",
                        wish->name);
        return 0;
}

/* --- showing --- */

static json_t *words_to_list(const char *words)
{
        json_t *list = json_array();

        while (*words) {
                size_t length = strcspn(words, " ");

                if (length)
                        json_array_append_new(list, json_stringn(words, length));
                words += length + (words[length] == ' ');
        }
        return list;
}

static json_t *port_to_json(const struct net_port *port)
{
        return json_pack("{s:s, s:s, s:s, s:I, s:b, s:s?}", "vm", port->vm, "device", port->device,
                "mac", port->mac, "vlan", (json_int_t)port->vlan, "mac-spoofing",
                (int)port->may_spoof, "error",
                port->number < 0 ? (port->error[0] ? port->error : "it could not be made a port")
                                 : NULL);
}

static json_t *switch_to_json(const struct net_switch *s, json_t *notes)
{
        json_t *ports = json_array();
        bool has_host = switch_has_host(s);

        for (size_t i = 0; i < s->n_ports; i++) {
                const struct net_port *port = &s->ports[i];

                if (port->vm[0])
                        json_array_append_new(ports, port_to_json(port));
                else if (port->number < 0)
                        json_array_append_new(notes,
                                json_sprintf("'%s' is no port: %s", port->device,
                                        port->error[0] ? port->error : "it is not there"));
        }
        return json_pack("{s:s, s:s, s:s?, s:b, s:s?, s:I, s:o, s:s, s:o, s:O}", "name", s->name,
                "type", switch_type_to_string(s->type), "uplink", s->uplink[0] ? s->uplink : NULL,
                "share-host", (int)s->share_host, "host-port", has_host ? s->name : NULL,
                "host-vlan", (json_int_t)s->host_vlan, "host-addresses",
                words_to_list(s->host_addresses), "datapath",
                strcmp(s->datapath, "netdev") == 0 ? "user-space" : "kernel", "ports", ports,
                "notes", notes);
}

static int show(const struct net_switch *s, json_t *notes, json_t **ret, struct error *err)
{
        *ret = switch_to_json(s, notes);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int no_switch(const char *name, struct error *err)
{
        fail(err, ENOENT, "there is no switch '%s'", name);
        error_set_hint(err, "vhdctl switch list");
        return -ENOENT;
}

int net_switch_list(struct net *net, json_t **ret, struct error *err)
{
        struct picture picture = {0};
        struct ovs_rpc *rpc;
        int r = net_look_if_there(net, &rpc, &picture, err);

        if (r < 0)
                return r;
        *ret = json_array();
        for (size_t i = 0; i < picture.n_switches; i++) {
                json_auto_t *notes = json_array();

                json_array_append_new(*ret, switch_to_json(&picture.switches[i], notes));
        }
        picture_done(&picture);
        return 0;
}

int net_switch_show(struct net *net, const char *name, json_t **ret, struct error *err)
{
        json_auto_t *notes = json_array();
        struct picture picture = {0};
        struct net_switch *s;
        struct ovs_rpc *rpc;
        int r = net_look_if_there(net, &rpc, &picture, err);

        if (r < 0)
                return r;
        s = picture_find(&picture, name);
        r = s ? show(s, notes, ret, err) : no_switch(name, err);
        picture_done(&picture);
        return r;
}

/* --- rows --- */

static json_t *external_ids(struct net *net, const struct wish *wish, const char *restore)
{
        return ovsdb_map(json_pack("{s:s, s:s, s:s, s:s, s:o, s:s, s:s}", "vhdd-instance",
                instance_owner(net->instance), "vhdd-type", switch_type_to_string(wish->type),
                "vhdd-uplink", wish->uplink, "vhdd-share-host", wish->share_host ? "true" : "false",
                "vhdd-host-vlan",
                json_sprintf("%" JSON_INTEGER_FORMAT, (json_int_t)wish->host_vlan),
                "vhdd-host-addresses", wish->host_addresses ? wish->host_addresses : "",
                "vhdd-restore", restore));
}

static int64_t host_tag(const struct wish *wish)
{
        bool has_host = wish->type == SWITCH_INTERNAL ||
                (wish->type == SWITCH_EXTERNAL && wish->share_host);

        return has_host ? wish->host_vlan : SWITCH_DARK_VLAN;
}

static void insert_interface(
        json_t *operations, const char *name, const char *device, const char *type)
{
        ovsdb_insert(operations, "Interface", name,
                json_pack("{s:s, s:s}", "name", device, "type", type));
}

/* No tag: it carries all VLANs, and the untagged frames are VLAN 0's. */
void net_insert_uplink(json_t *operations, const char *device)
{
        insert_interface(operations, "uplink_interface", device, "");
        ovsdb_insert(operations, "Port", "uplink_port",
                json_pack("{s:s, s:s, s:o}", "name", device, "vlan_mode", "trunk", "interfaces",
                        ovsdb_new("uplink_interface")));
}

static void insert_switch(struct net *net, json_t *operations, const struct wish *wish,
        const char *mac, const char *restore)
{
        json_t *ports = json_pack("[o]", ovsdb_new("host_port"));

        insert_interface(operations, "host_interface", wish->name, "internal");
        ovsdb_insert(operations, "Port", "host_port",
                json_pack("{s:s, s:s, s:I, s:o}", "name", wish->name, "vlan_mode", "access", "tag",
                        (json_int_t)host_tag(wish), "interfaces", ovsdb_new("host_interface")));
        if (wish->uplink[0]) {
                net_insert_uplink(operations, wish->uplink);
                json_array_append_new(ports, ovsdb_new("uplink_port"));
        }
        ovsdb_insert(operations, "Bridge", "bridge",
                json_pack("{s:s, s:s, s:s, s:o, s:o, s:o}", "name", wish->name, "datapath_type",
                        instance_is_own(net->instance) ? "netdev" : "system", "fail_mode", "secure",
                        "ports", ovsdb_set(ports), "external_ids", external_ids(net, wish, restore),
                        "other_config",
                        ovsdb_map(json_pack(
                                "{s:s, s:s}", "hwaddr", mac, "disable-in-band", "true"))));
        ovsdb_mutate(operations, "Open_vSwitch", NULL, "bridges", "insert", ovsdb_new("bridge"));
}

static void delete_switch(json_t *operations, const char *uuid)
{
        ovsdb_mutate(operations, "Open_vSwitch", NULL, "bridges", "delete", ovsdb_uuid(uuid));
}

static const struct net_port *port_of(const struct net_switch *s, const char *device)
{
        for (size_t i = 0; i < s->n_ports; i++)
                if (strcmp(s->ports[i].device, device) == 0)
                        return &s->ports[i];
        return NULL;
}

/* --- the uplink's own state --- */

static int prepare_uplink(
        struct net *net, const char *device, char **ret_restore, struct error *err)
{
        struct net_link link;
        int r;

        if (!device[0] || !instance_is_own(net->instance)) {
                *ret_restore = strdup("");
                return *ret_restore ? 0 : fail(err, ENOMEM, "no memory");
        }
        r = links_find(net->links, device, &link, err);
        return r < 0 ? r : guard_plain_frames(net->links, &link, ret_restore, err);
}

static void release_uplink(struct net *net, const char *device, const char *restore)
{
        struct error err = ERROR_INIT;
        struct net_link link;

        if (!device[0] || links_find(net->links, device, &link, NULL) < 0)
                return;
        guard_restore(net->links, &link, restore);
        if (instance_is_own(net->instance) && guard_let_host_in(net->links, &link, &err) < 0)
                log_error(&err);
}

/* --- making --- */

static int check_new(
        struct net *net, const struct picture *picture, const struct wish *wish, struct error *err)
{
        struct net_link link;

        if (picture_find(picture, wish->name))
                return fail(err, EEXIST, "there is a switch '%s' already", wish->name);
        if (links_find(net->links, wish->name, &link, NULL) == 0)
                return fail(err, EEXIST,
                        "this host has a network interface '%s', and the switch's port would have the same name",
                        wish->name);
        return 0;
}

static int check_uplink(struct net *net, const struct picture *picture, const struct wish *wish,
        const char *self, json_t *notes, struct error *err)
{
        struct uplink_wish uplink = {
                .device = wish->uplink,
                .connection = wish->connection,
                .self = self,
                .share_host = wish->share_host,
                .force = wish->force,
                .is_own = instance_is_own(net->instance),
        };

        return wish->uplink[0] ? uplink_check(net, picture, &uplink, notes, err) : 0;
}

static int take_nothing(json_t **ret, const struct wish *wish, json_t *notes)
{
        *ret = json_pack("{s:s, s:s, s:s?, s:b, s:O}", "name", wish->name, "type",
                switch_type_to_string(wish->type), "uplink", wish->uplink[0] ? wish->uplink : NULL,
                "share-host", (int)wish->share_host, "notes", notes);
        return 0;
}

static int bad_port(const struct net_switch *s, struct error *err)
{
        for (size_t i = 0; i < s->n_ports; i++)
                if (!s->ports[i].vm[0] && s->ports[i].number < 0)
                        return fail(err, EIO, "Open vSwitch cannot make '%s' a port: %s",
                                s->ports[i].device,
                                s->ports[i].error[0] ? s->ports[i].error : "its log says why");
        return 0;
}

/* What hangs on the rows; @ret is how it is now. */
static int finish(struct net *net, struct ovs_rpc *rpc, const char *name, json_t *notes,
        json_t **ret, struct error *err)
{
        struct picture picture = {0};
        struct net_switch *s;
        int r = picture_take(rpc, instance_owner(net->instance), &picture, err);

        if (r < 0)
                return r;
        s = picture_find(&picture, name);
        r = s ? bad_port(s, err) : no_switch(name, err);
        if (r == 0)
                r = net_set_flows(net, s, err);
        if (r == 0)
                r = net_set_host(net, s, err);
        if (r == 0)
                r = show(s, notes, ret, err);
        picture_done(&picture);
        return r;
}

/* The row goes, whatever came of it. */
static void undo_create(struct net *net, struct ovs_rpc *rpc, const struct wish *wish)
{
        struct picture picture = {0};
        struct net_switch *s;
        json_t *operations;
        bool committed;

        if (picture_take(rpc, instance_owner(net->instance), &picture, NULL) < 0)
                return;
        s = picture_find(&picture, wish->name);
        if (s) {
                operations = json_array();
                delete_switch(operations, s->uuid);
                ovsdb_carry_out(rpc, operations, &committed, NULL);
        }
        picture_done(&picture);
}

/* No switch is left: nothing needs our own Open vSwitch. */
static void rest(struct net *net, struct ovs_rpc *rpc)
{
        struct picture picture = {0};

        if (picture_take(rpc, instance_owner(net->instance), &picture, NULL) < 0)
                return;
        if (picture.n_switches == 0)
                instance_stop(net->instance, true);
        picture_done(&picture);
}

static int create(struct net *net, struct ovs_rpc *rpc, const struct wish *wish, json_t *notes,
        json_t **ret, struct error *err)
{
        _cleanup_free_ char *restore = NULL;
        json_t *operations = json_array();
        char mac[MAC_TEXT_SIZE];
        bool committed = false;
        int r = mac_pick(instance_owner(net->instance), NULL, mac, err);

        if (r == 0)
                r = prepare_uplink(net, wish->uplink, &restore, err);
        if (r < 0) {
                json_decref(operations);
                return r;
        }
        insert_switch(net, operations, wish, mac, restore);
        ovsdb_make_durable(operations);
        r = ovsdb_carry_out(rpc, operations, &committed, err);
        if (r == 0)
                r = finish(net, rpc, wish->name, notes, ret, err);
        if (r < 0) {
                if (committed)
                        undo_create(net, rpc, wish);
                release_uplink(net, wish->uplink, restore);
        }
        return r;
}

static int check_and_create(
        struct net *net, const struct wish *wish, json_t **ret, struct error *err)
{
        json_auto_t *notes = json_array();
        struct picture picture = {0};
        struct ovs_rpc *rpc;
        int r = net_look(net, &rpc, &picture, err);

        if (r < 0)
                return r;
        r = check_new(net, &picture, wish, err);
        if (r == 0)
                r = check_uplink(net, &picture, wish, NULL, notes, err);
        picture_done(&picture);
        if (r == 0)
                r = wish->dry_run ? take_nothing(ret, wish, notes)
                                  : create(net, rpc, wish, notes, ret, err);
        /* One that came to nothing, or was never meant, needs no Open vSwitch. */
        rest(net, rpc);
        return r;
}

int net_switch_create(struct net *net, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_(wish_done) struct wish wish = {.name = text_in(params, "name"), .uplink = ""};
        int r = check_name(wish.name, err);

        if (r == 0)
                r = read_params(params, &wish, err);
        if (r == 0)
                r = check_wish(&wish, err);
        return r < 0 ? r : check_and_create(net, &wish, ret, err);
}

/* --- changing --- */

static int start_wish(
        const struct net_switch *s, const json_t *params, struct wish *wish, struct error *err)
{
        *wish = (struct wish){
                .name = s->name,
                .type = s->type,
                .uplink = s->uplink,
                .share_host = s->share_host,
                .host_vlan = s->host_vlan,
                .host_addresses = strdup(s->host_addresses),
        };
        if (!wish->host_addresses)
                return fail(err, ENOMEM, "no memory for addresses");
        if (read_params(params, wish, err) < 0)
                return -err->code;
        /* What the new type has not goes with the old one, unless it was asked for. */
        if (wish->type != SWITCH_EXTERNAL) {
                if (!json_object_get(params, "uplink"))
                        wish->uplink = "";
                if (!json_object_get(params, "share-host"))
                        wish->share_host = false;
        }
        if (wish->type == SWITCH_PRIVATE || (wish->type == SWITCH_EXTERNAL && !wish->share_host)) {
                if (!json_object_get(params, "host-vlan"))
                        wish->host_vlan = 0;
                if (!json_object_get(params, "host-addresses"))
                        wish->host_addresses[0] = '\0';
        }
        return check_wish(wish, err);
}

static void change_rows(struct net *net, json_t *operations, const struct net_switch *s,
        const struct wish *wish, const char *restore)
{
        const struct net_port *host = port_of(s, s->name), *old = port_of(s, s->uplink);

        ovsdb_demand(operations, "Bridge", s->uuid);
        if (strcmp(s->uplink, wish->uplink) != 0) {
                if (old && s->uplink[0])
                        net_drop_port(operations, s->uuid, old->uuid);
                if (wish->uplink[0]) {
                        net_insert_uplink(operations, wish->uplink);
                        ovsdb_mutate(operations, "Bridge", s->uuid, "ports", "insert",
                                ovsdb_new("uplink_port"));
                }
        }
        ovsdb_update(operations, "Bridge", s->uuid,
                json_pack("{s:o}", "external_ids", external_ids(net, wish, restore)));
        if (host)
                ovsdb_update(operations, "Port", host->uuid,
                        json_pack("{s:I}", "tag", (json_int_t)host_tag(wish)));
}

static bool list_has(const char *words, const char *word, size_t length)
{
        while (*words) {
                size_t n = strcspn(words, " ");

                if (n == length && strncmp(words, word, n) == 0)
                        return true;
                words += n + (words[n] == ' ');
        }
        return false;
}

/* Addresses that were given by us and are not wished for any more. */
static void remove_addresses(struct net *net, const struct net_switch *s, const struct wish *wish)
{
        json_auto_t *old = words_to_list(s->host_addresses);
        struct net_link link;
        json_t *address;
        size_t i;

        if (links_find(net->links, s->name, &link, NULL) < 0)
                return;
        json_array_foreach(old, i, address)
        {
                const char *text = json_string_value(address);

                if (!list_has(wish->host_addresses, text, strlen(text)))
                        links_remove_address(net->links, link.index, text, NULL);
        }
}

/* Back to how it was, as far as it goes. */
static void undo_change(struct net *net, struct ovs_rpc *rpc, const struct net_switch *before)
{
        struct wish wish = {
                .name = before->name,
                .type = before->type,
                .uplink = before->uplink,
                .share_host = before->share_host,
                .host_vlan = before->host_vlan,
                .host_addresses = (char *)before->host_addresses,
        };
        json_auto_t *notes = json_array();
        struct picture picture = {0};
        struct net_switch *now;
        json_t *ignored = NULL;
        bool committed;

        if (picture_take(rpc, instance_owner(net->instance), &picture, NULL) < 0)
                return;
        now = picture_find(&picture, before->name);
        if (now) {
                json_t *operations = json_array();

                change_rows(net, operations, now, &wish, before->restore);
                if (ovsdb_carry_out(rpc, operations, &committed, NULL) == 0)
                        finish(net, rpc, before->name, notes, &ignored, NULL);
                json_decref(ignored);
        }
        picture_done(&picture);
}

static int change(struct net *net, struct ovs_rpc *rpc, const struct net_switch *s,
        const struct wish *wish, json_t *notes, json_t **ret, struct error *err)
{
        bool other_uplink = strcmp(s->uplink, wish->uplink) != 0, committed = false;
        _cleanup_free_ char *restore = NULL;
        json_t *operations;
        int r = 0;

        if (other_uplink)
                r = prepare_uplink(net, wish->uplink, &restore, err);
        if (r < 0)
                return r;
        operations = json_array();
        change_rows(net, operations, s, wish, restore ? restore : s->restore);
        ovsdb_make_durable(operations);
        r = ovsdb_carry_out(rpc, operations, &committed, err);
        if (r == 0)
                r = finish(net, rpc, s->name, notes, ret, err);
        if (r < 0) {
                if (committed)
                        undo_change(net, rpc, s);
                if (other_uplink)
                        release_uplink(net, wish->uplink, restore);
                return r;
        }
        if (other_uplink)
                release_uplink(net, s->uplink, s->restore);
        remove_addresses(net, s, wish);
        return 0;
}

int net_switch_set(struct net *net, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_(wish_done) struct wish wish = {0};
        json_auto_t *notes = json_array();
        struct picture picture = {0};
        struct net_switch *s = NULL;
        struct ovs_rpc *rpc;
        int r = net_look_if_there(net, &rpc, &picture, err);

        if (r < 0)
                return r;
        s = picture_find(&picture, text_in(params, "name"));
        r = s ? start_wish(s, params, &wish, err) : no_switch(text_in(params, "name"), err);
        if (r == 0)
                r = check_uplink(net, &picture, &wish, s->name, notes, err);
        if (r == 0)
                r = wish.dry_run ? take_nothing(ret, &wish, notes)
                                 : change(net, rpc, s, &wish, notes, ret, err);
        picture_done(&picture);
        return r;
}

/* --- removing --- */

static int check_unused(const struct net_switch *s, bool force, struct error *err)
{
        const char *first = NULL;
        size_t n = 0;

        for (size_t i = 0; i < s->n_ports; i++)
                if (s->ports[i].vm[0]) {
                        first = first ? first : s->ports[i].vm;
                        n++;
                }
        if (n == 0 || force)
                return 0;
        fail(err, EBUSY, "%zu network card%s plugged into the switch '%s', one of vm %s", n,
                n == 1 ? " is" : "s are", s->name, first);
        error_set_hint(
                err, "vhdctl switch show %s; --force takes the switch away from them", s->name);
        return -EBUSY;
}

static int remove_switch(
        struct net *net, struct ovs_rpc *rpc, const struct net_switch *s, struct error *err)
{
        json_t *operations = json_array();
        bool committed;
        int r;

        delete_switch(operations, s->uuid);
        ovsdb_make_durable(operations);
        r = ovsdb_carry_out(rpc, operations, &committed, err);
        if (r < 0 && !committed)
                return r;
        release_uplink(net, s->uplink, s->restore);
        rest(net, rpc);
        return r;
}

int net_switch_remove(struct net *net, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = text_in(params, "name");
        struct picture picture = {0};
        struct net_switch *s;
        struct ovs_rpc *rpc;
        int r = net_look_if_there(net, &rpc, &picture, err);

        if (r < 0)
                return r;
        s = picture_find(&picture, name);
        r = s ? check_unused(s, json_is_true(json_object_get(params, "force")), err)
              : no_switch(name, err);
        if (r == 0 && !json_is_true(json_object_get(params, "dry-run")))
                r = remove_switch(net, rpc, s, err);
        picture_done(&picture);
        if (r == 0)
                *ret = json_object();
        return r;
}
