/* SPDX-License-Identifier: Apache-2.0 */
/* A file that says nothing of something leaves it out of the answer; what it says that is no number where
 * one belongs, or out of bounds, is left out and listed among the unknown. */
#include "vhdd/worker/hyperv.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/arith.h"
#include "vhdd/worker/hyperv_tree.h"

#define IDE_CONTROLLER  "83f8638b-8dca-4152-9eda-2ca8b33039b4"
#define SCSI_CONTROLLER "d422512d-2bf2-4752-809d-7b82b5fcb1b4"
#define SYNTHETIC_CARD  "2fc216b0-d2e2-4967-9b6d-b8a5c9ca2778"
#define TEXT_MAX        4096u
#define MAX_SCSI        64u   /* controllers */
#define MAX_INSTANCES   2048u /* objects of a file */

struct reading {
        struct hyperv_node *root;
        json_t *answer, *disks, *networks, *saved, *unknown;
        int r;
        struct error *err;
};

static void no_memory(struct reading *reading)
{
        if (reading->r == 0)
                reading->r = fail(reading->err, ENOMEM, "no memory for a configuration");
}

static void put(struct reading *reading, json_t *object, const char *key, json_t *value)
{
        if (json_object_set_new(object, key, value) < 0)
                no_memory(reading);
}

static void append(struct reading *reading, json_t *list, json_t *value)
{
        if (json_array_append_new(list, value) < 0)
                no_memory(reading);
}

static void note_unknown(struct reading *reading, const char *what)
{
        if (json_array_size(reading->unknown) < HYPERV_MAX_UNKNOWN)
                append(reading, reading->unknown, json_string(what));
}

/* ---- values ---- */

static void put_text(struct reading *reading, json_t *object, const char *key, const char *text)
{
        if (text)
                put(reading, object, key, json_stringn(text, strnlen(text, TEXT_MAX)));
}

static bool read_number(const char *text, uint64_t most, uint64_t *ret)
{
        char *end;

        if (!text || !isdigit((unsigned char)text[0]))
                return false;
        errno = 0;
        *ret = strtoull(text, &end, 10);
        return *end == '\0' && errno == 0 && *ret <= most;
}

/* @unit: what one of them is in the answer's unit. */
static void put_number(struct reading *reading, json_t *object, const char *key, const char *text,
        uint64_t most, uint64_t unit)
{
        char what[128];
        uint64_t number;

        if (!text)
                return;
        if (read_number(text, most, &number)) {
                put(reading, object, key, json_integer((json_int_t)(number * unit)));
                return;
        }
        snprintf(what, sizeof(what), "%s: '%.64s' is no number that it can have", key, text);
        note_unknown(reading, what);
}

static bool is_true(const char *text)
{
        return text && (strcasecmp(text, "true") == 0 || strcmp(text, "1") == 0);
}

static void put_flag(struct reading *reading, json_t *object, const char *key, const char *text)
{
        if (text)
                put(reading, object, key, json_boolean(is_true(text)));
}

#define MIB_MOST (UINT64_C(1) << 32) /* of memory: 4 PiB */

static void add_disk(struct reading *reading, int controller, unsigned bus, unsigned unit,
        const char *kind, const char *path)
{
        if (json_array_size(reading->disks) >= HYPERV_MAX_DISKS)
                return;
        append(reading, reading->disks,
                json_pack("{s:i, s:i, s:i, s:s, s:s}", "controller", controller, "bus", (int)bus,
                        "unit", (int)unit, "kind", kind ? kind : "", "path", path ? path : ""));
}

/* ---- the layout "configuration": devices ---- */

/* The number behind @prefix: "drive12". */
static bool numbered(const struct hyperv_node *node, const char *prefix, unsigned *ret)
{
        size_t n = strlen(prefix);
        uint64_t number;

        if (strncasecmp(node->name, prefix, n) != 0 || !read_number(node->name + n, 4095, &number))
                return false;
        *ret = (unsigned)number;
        return true;
}

/* All of @node, itself first, without recursion: how deep it is the file says. */
static struct hyperv_node *next_in(const struct hyperv_node *node, const struct hyperv_node *at)
{
        if (at->first)
                return at->first;
        while (at != node && !at->next)
                at = at->parent;
        return at == node ? NULL : at->next;
}

static void use_all(struct hyperv_node *node)
{
        for (struct hyperv_node *at = node; at; at = next_in(node, at))
                at->used = true;
}

static void read_drive(struct reading *reading, struct hyperv_node *drive, int controller,
        unsigned bus, unsigned unit)
{
        static const char *const nothing_here[] = {"iops_limit", "iops_reservation",
                "persistent_reservations_supported", "weight", "pool_id", "disk_write_hardening",
                "qos_id"};
        const char *kind = hyperv_text(hyperv_child(drive, "type"));
        const char *path = hyperv_text(hyperv_child(drive, "pathname"));

        for (size_t i = 0; i < sizeof(nothing_here) / sizeof(nothing_here[0]); i++)
                (void)hyperv_text(hyperv_child(drive, nothing_here[i]));
        if (!kind && !path)
                return;
        if (kind && strcasecmp(kind, "NONE") == 0)
                return;
        /* An empty drive for removable media. */
        if (!path && (strcasecmp(kind, "ISO") == 0 || strcasecmp(kind, "VFD") == 0))
                return;
        add_disk(reading, controller, bus, unit, kind, path);
}

/* @ide: two controllers in one device; else each device is one. */
static void read_controllers(
        struct reading *reading, struct hyperv_node *device, bool ide, unsigned scsi_bus)
{
        (void)hyperv_text(hyperv_child(device, "VDEVVersion"));
        (void)hyperv_text(hyperv_child(device, "ChannelInstanceGuid"));
        for (struct hyperv_node *at = device->first; at; at = at->next) {
                unsigned bus, unit;

                if (!numbered(at, "controller", &bus))
                        continue;
                for (struct hyperv_node *drive = at->first; drive; drive = drive->next)
                        if (numbered(drive, "drive", &unit))
                                read_drive(reading, drive, ide ? 0 : 1, ide ? bus : scsi_bus, unit);
        }
        device->used = true;
}

static bool is_card(struct hyperv_node *node)
{
        return hyperv_child(node, "MacAddress") &&
                (hyperv_child(node, "SwitchName") || hyperv_child(node, "PortName"));
}

/* Of a vdev of the manifest: a text. */
static const char *vdev_text(struct hyperv_node *vdev, const char *name)
{
        return hyperv_text(hyperv_child(vdev, name));
}

/* The vdev whose instance the device's element is named after. */
static struct hyperv_node *find_vdev(struct hyperv_node *root, const struct hyperv_node *device)
{
        size_t n = strlen(device->name);

        struct hyperv_node *manifest = hyperv_child(root, "manifest");

        for (struct hyperv_node *at = manifest ? manifest->first : NULL; at; at = at->next) {
                const char *instance = vdev_text(at, "instance");

                if (instance && n > 2 && strncasecmp(device->name + 1, instance, n - 2) == 0 &&
                        instance[n - 2] == '\0')
                        return at;
        }
        return NULL;
}

static void read_card(struct reading *reading, struct hyperv_node *device)
{
        static const char *const nothing_here[] = {"VDEVVersion", "ChannelInstanceGuid",
                "ClusterMonitored", "IsConnected", "PortName", "VpciInstanceGuid",
                "Connection/AltPortName", "Connection/AuthorizationScope",
                "Connection/ChimneyOffloadWeight", "Connection/PoolId",
                "Connection/PreventIPSpoofing", "Connection/TestReplicaPoolId",
                "Connection/TestReplicaSwitchName", "AllowPacketDirect", "DeviceNamingEnabled"};
        struct hyperv_node *vdev;
        const char *type;
        const char *name = hyperv_text(hyperv_child(device, "SwitchName"));
        const char *alternative = hyperv_text(hyperv_find(device, "Connection/AltSwitchName"));
        json_t *card;

        if (json_array_size(reading->networks) >= HYPERV_MAX_CARDS)
                return;
        vdev = find_vdev(reading->root, device);
        type = vdev_text(vdev, "device");
        for (size_t i = 0; i < sizeof(nothing_here) / sizeof(nothing_here[0]); i++)
                (void)hyperv_text(hyperv_find(device, nothing_here[i]));
        card = json_object();
        put_text(reading, card, "name", hyperv_text(hyperv_child(device, "FriendlyName")));
        put_text(reading, card, "kind",
                !type || strcasecmp(type, SYNTHETIC_CARD) == 0 ? "synthetic" : "emulated");
        put(reading, card, "switch", json_string(alternative ? alternative : name ? name : ""));
        put_text(reading, card, "mac", hyperv_text(hyperv_child(device, "MacAddress")));
        put_flag(reading, card, "static", hyperv_text(hyperv_child(device, "MacAddressIsStatic")));
        put_number(
                reading, card, "vlan", hyperv_text(hyperv_child(device, "VlanId")), 4094, 1);
        append(reading, reading->networks, card);
        device->used = true;
}

/* Devices that say nothing that is of use here: by the GUID of their kind. */
static bool means_nothing(const char *guid)
{
        static const char *const guids[] = {
                "2497f4de-e9fa-4204-80e4-4b75c46419c0", /* time synchronization */
                "2a34b1c2-fd73-4043-8a5b-dd2159bc743f", /* key-value pairs */
                "58f75a6d-d949-4320-99e1-a2a2576d581c", /* mouse */
                "197f74e3-b84b-46de-8ae6-82f1cd181cdc", /* keyboard */
                "5ced1297-4598-4915-a5fc-ad21bb4d02a4", /* volume shadow copies */
                "6c09bb55-d683-4da0-8931-c9bf705f6480", /* guest interface */
                "6c5addb9-a11a-4e8e-84cb-e6208201db63", /* RDV */
                "84eaae65-2f2e-45f5-9bb5-0e857dc8eb47", /* heartbeat */
                "9f8233ac-be49-4c79-8ee3-e7e1985b2077", /* shutdown */
                "bc12c717-8898-4688-8ee4-2cd14894f8ea", /* activation */
                "f3cf6965-e8d3-44a9-9b7d-a04245ea7525", /* video */
                "8e3a359f-559a-4b6a-98a9-1690a6100ed7", /* serial ports */
        };
        size_t n = strlen(guid);

        for (size_t i = 0; i < sizeof(guids) / sizeof(guids[0]); i++)
                if (n > 2 && strncasecmp(guid + 1, guids[i], n - 2) == 0 && !guids[i][n - 2])
                        return true;
        return false;
}

static void read_devices(struct reading *reading)
{
        struct hyperv_node *manifest = hyperv_child(reading->root, "manifest");
        unsigned n_scsi = 0;

        for (struct hyperv_node *at = manifest ? manifest->first : NULL; at; at = at->next) {
                const char *device = vdev_text(at, "device"), *instance = vdev_text(at, "instance");
                struct hyperv_node *node;
                char name[80];

                if (!device || !instance || strcasecmp(device, SCSI_CONTROLLER) != 0 ||
                        n_scsi == MAX_SCSI)
                        continue;
                snprintf(name, sizeof(name), "_%.64s_", instance);
                node = hyperv_child(reading->root, name);
                if (node)
                        read_controllers(reading, node, false, n_scsi);
                n_scsi++;
        }
        for (struct hyperv_node *at = reading->root->first; at; at = at->next) {
                if (strcasecmp(at->name, "_" IDE_CONTROLLER "_") == 0)
                        read_controllers(reading, at, true, 0);
                else if (is_card(at))
                        read_card(reading, at);
                else if (means_nothing(at->name))
                        use_all(at);
        }
        use_all(manifest);
}

/* ---- the layout "configuration": the rest ---- */

static const char *text_at(struct reading *reading, const char *path)
{
        return hyperv_text(hyperv_find(reading->root, path));
}

static void read_memory(struct reading *reading)
{
        json_t *memory = json_object_get(reading->answer, "memory");

        put_number(reading, memory, "startup", text_at(reading, "settings/memory/bank/size"),
                MIB_MOST, MIB);
        put_number(reading, memory, "max", text_at(reading, "settings/memory/bank/limit"), MIB_MOST,
                MIB);
        put_number(reading, memory, "reservation",
                text_at(reading, "settings/memory/bank/reservation"), MIB_MOST, MIB);
        put_number(reading, memory, "buffer",
                text_at(reading, "settings/memory/bank/target_memory_buffer"), 2000, 1);
        put_number(reading, memory, "priority", text_at(reading, "settings/memory/bank/priority"),
                10000, 1);
        put_flag(reading, memory, "dynamic",
                text_at(reading, "settings/memory/bank/dynamic_memory_enabled"));
}

static void read_boot(struct reading *reading)
{
        struct hyperv_node *bios = hyperv_child(
                reading->root, "_ac6b8dc1-3257-4a70-b1b2-a9c9215659ad_");
        struct hyperv_node *boot = hyperv_child(bios, "boot");
        json_t *list = json_array();

        put(reading, reading->answer, "boot", list);
        for (struct hyperv_node *at = boot ? boot->first : NULL; at; at = at->next) {
                const char *text = hyperv_text(at);

                if (text && json_array_size(list) < 16)
                        append(reading, list, json_stringn(text, strnlen(text, 64)));
        }
        use_all(bios);
}

static void read_saved(struct reading *reading)
{
        struct hyperv_node *saved = hyperv_child(reading->root, "savedstate");

        for (struct hyperv_node *at = saved ? saved->first : NULL; at; at = at->next) {
                const char *text = hyperv_text(at);

                if (text && json_array_size(reading->saved) < 16 &&
                        (strstr(text, ".bin") || strstr(text, ".vsv") || strstr(text, ".BIN") ||
                                strstr(text, ".VSV")))
                        append(reading, reading->saved,
                                json_stringn(text, strnlen(text, TEXT_MAX)));
        }
        use_all(saved);
}

static void read_properties(struct reading *reading)
{
        static const char *const nothing_here[] = {"properties/highly_available",
                "properties/last_powered_off_time", "properties/last_powered_on_time",
                "properties/last_state_change_time", "properties/subtype",
                "settings/global/logical_id", "settings/stopped_at_host_shutdown",
                "settings/processors/limit", "settings/processors/limit_cpuid",
                "settings/processors/reservation", "settings/processors/weight"};
        static const char *const nothing_in[] = {"global_settings", "settings/vnuma",
                "settings/memory/vnuma", "settings/processors/vnuma",
                "settings/processors/features", "settings/topology",
                "_8f0d2762-0b00-4e04-af4f-19010527cb93_" /* floppy */};
        const char *type = text_at(reading, "properties/type_id");

        put_text(reading, reading->answer, "id", text_at(reading, "properties/global_id"));
        put_text(reading, reading->answer, "name", text_at(reading, "properties/name"));
        put_text(reading, reading->answer, "notes", text_at(reading, "properties/notes"));
        put_text(reading, reading->answer, "created", text_at(reading, "properties/creation_time"));
        put_number(reading, reading->answer, "version", text_at(reading, "properties/version"),
                UINT32_MAX, 1);
        put(reading, reading->answer, "snapshot",
                json_boolean(type && strncasecmp(type, "snapshot", 8) == 0));
        put_number(reading, reading->answer, "cpus",
                text_at(reading, "settings/processors/count"), 1024, 1);
        for (size_t i = 0; i < sizeof(nothing_here) / sizeof(nothing_here[0]); i++)
                (void)text_at(reading, nothing_here[i]);
        for (size_t i = 0; i < sizeof(nothing_in) / sizeof(nothing_in[0]); i++)
                use_all(hyperv_find(reading->root, nothing_in[i]));
}

static bool any_used(const struct hyperv_node *node)
{
        for (const struct hyperv_node *at = node; at; at = next_in(node, at))
                if (at->used)
                        return true;
        return false;
}

/* The highest elements in which nothing was used, as paths. */
static void list_unknown(struct reading *reading, struct hyperv_node *node, const char *path)
{
        for (struct hyperv_node *at = node->first; at; at = at->next) {
                char name[512];

                snprintf(name, sizeof(name), "%.350s%s%.120s", path, path[0] ? "/" : "", at->name);
                if (!any_used(at))
                        note_unknown(reading, name);
                else
                        list_unknown(reading, at, name);
        }
}

static void read_configuration(struct reading *reading)
{
        read_properties(reading);
        read_memory(reading);
        read_boot(reading);
        read_saved(reading);
        read_devices(reading);
        list_unknown(reading, reading->root, "");
}

/* ---- the layout "cim" ---- */

struct instances {
        struct hyperv_node **items;
        size_t n;
};

static void find_instances(struct reading *reading, struct instances *ret)
{
        struct hyperv_node *at = reading->root;

        ret->items = calloc(MAX_INSTANCES, sizeof(*ret->items));
        if (!ret->items) {
                no_memory(reading);
                return;
        }
        while (at) {
                if (strcmp(at->name, "INSTANCE") == 0 && at->label) {
                        if (ret->n == MAX_INSTANCES) {
                                reading->r = fail(reading->err, E2BIG,
                                        "it has more than %u objects", MAX_INSTANCES);
                                return;
                        }
                        ret->items[ret->n++] = at;
                }
                if (at->first) {
                        at = at->first;
                        continue;
                }
                while (at && !at->next)
                        at = at->parent;
                at = at ? at->next : NULL;
        }
}

/* The value of a property, or the first of an array's. */
static const char *property(struct hyperv_node *instance, const char *name)
{
        for (struct hyperv_node *at = instance->first; at; at = at->next) {
                struct hyperv_node *value;

                if (!at->label || strcasecmp(at->label, name) != 0)
                        continue;
                value = hyperv_child(at, "VALUE");
                if (!value)
                        value = hyperv_find(at, "VALUE.ARRAY/VALUE");
                return hyperv_text(value);
        }
        return NULL;
}

static bool is_class(const struct hyperv_node *instance, const char *name)
{
        return strcasecmp(instance->label, name) == 0;
}

/* What stands behind KEY=" in a path of WMI, without its escapes: the last of them, as the paths of
 * ports name their switch behind themselves. */
static bool key_of(const char *path, const char *key, char *ret, size_t size)
{
        size_t n = strlen(key), used = 0;
        const char *found = NULL;

        for (const char *at = path; at && (at = strcasestr(at, key)); at += n)
                if (at[n] == '=' && at[n + 1] == '"' &&
                        (at == path || !isalnum((unsigned char)at[-1])))
                        found = at + n + 2;
        for (; found && *found && *found != '"' && used + 1 < size; found++) {
                if (*found == '\\' && (found[1] == '\\' || found[1] == '"'))
                        found++;
                ret[used++] = *found;
        }
        ret[used] = '\0';
        return used > 0;
}

/* Whom a "Parent" means: by the id in the path, or the id itself. */
static struct hyperv_node *find_parent(const struct instances *all, struct hyperv_node *child)
{
        const char *parent = property(child, "Parent");
        char id[512];

        if (!parent)
                return NULL;
        if (!key_of(parent, "InstanceID", id, sizeof(id)))
                snprintf(id, sizeof(id), "%s", parent);
        for (size_t i = 0; i < all->n; i++) {
                const char *own = property(all->items[i], "InstanceID");

                if (own && strcasecmp(own, id) == 0 && all->items[i] != child)
                        return all->items[i];
        }
        return NULL;
}

static bool is_subtype(struct hyperv_node *instance, const char *what)
{
        const char *type = property(instance, "ResourceSubType");

        return type && strcasestr(type, what);
}

/* Of the SCSI controllers, in the file's order. */
static unsigned scsi_number(const struct instances *all, const struct hyperv_node *controller)
{
        unsigned n = 0;

        for (size_t i = 0; i < all->n && all->items[i] != controller; i++)
                n += is_subtype(all->items[i], "SCSI Controller");
        return n;
}

/* A disk's file is a resource whose parent is a drive, whose parent is a controller. */
static void read_cim_disk(
        struct reading *reading, const struct instances *all, struct hyperv_node *disk)
{
        struct hyperv_node *drive = find_parent(all, disk);
        struct hyperv_node *controller = drive ? find_parent(all, drive) : NULL;
        const char *path = property(disk, "Connection");
        uint64_t bus = 0, unit = 0;
        bool ide;

        if (!path)
                path = property(disk, "HostResource");
        if (!controller || !path || !read_number(property(drive, "Address"), 4095, &unit)) {
                note_unknown(reading, "a virtual hard disk without a controller or an address");
                return;
        }
        ide = is_subtype(controller, "IDE Controller");
        if (ide && !read_number(property(controller, "Address"), 4095, &bus))
                bus = 0;
        if (!ide)
                bus = scsi_number(all, controller);
        add_disk(reading, ide ? 0 : 1, (unsigned)bus, (unsigned)unit,
                is_subtype(disk, "Virtual Hard Disk") ? "VHD" : "ISO", path);
}

/* A drive that is a disk of the host's. */
static void read_cim_physical(
        struct reading *reading, const struct instances *all, struct hyperv_node *drive)
{
        struct hyperv_node *controller = find_parent(all, drive);
        uint64_t bus = 0, unit = 0;
        const char *path = property(drive, "HostResource");
        bool ide = controller && is_subtype(controller, "IDE Controller");

        (void)read_number(property(drive, "Address"), 4095, &unit);
        if (ide)
                (void)read_number(property(controller, "Address"), 4095, &bus);
        else if (controller)
                bus = scsi_number(all, controller);
        add_disk(reading, ide ? 0 : 1, (unsigned)bus, (unsigned)unit, "PHYSICAL", path);
}

static const char *switch_name(const struct instances *all, const char *id)
{
        for (size_t i = 0; i < all->n; i++) {
                const char *name = is_class(all->items[i], "Msvm_VirtualSwitch")
                        ? property(all->items[i], "Name")
                        : NULL;

                if (name && strcasecmp(name, id) == 0)
                        return property(all->items[i], "ElementName");
        }
        return NULL;
}

/* Of the port: in 2008 R2 a VLAN is the port's, not the card's. */
static const char *vlan_of(const struct instances *all, const char *port)
{
        for (size_t i = 0; i < all->n; i++) {
                struct hyperv_node *at = all->items[i];
                const char *id = is_class(at, "Msvm_VLANEndpointSettingData")
                        ? property(at, "InstanceID")
                        : NULL;

                if (id && port[0] && strcasestr(id, port))
                        return property(at, "AccessVLAN");
        }
        return NULL;
}

static void read_cim_card(
        struct reading *reading, const struct instances *all, struct hyperv_node *instance)
{
        const char *connection = property(instance, "Connection"), *name = NULL;
        char id[512] = "", port[512] = "";
        json_t *card;

        if (json_array_size(reading->networks) >= HYPERV_MAX_CARDS)
                return;
        if (connection) {
                key_of(connection, "SystemName", id, sizeof(id));
                key_of(connection, "Name", port, sizeof(port));
                name = switch_name(all, id);
        }
        card = json_object();
        put_text(reading, card, "name", property(instance, "ElementName"));
        put_text(reading, card, "kind",
                is_class(instance, "Msvm_SyntheticEthernetPortSettingData") ? "synthetic"
                                                                            : "emulated");
        put(reading, card, "switch", json_string(name ? name : id));
        put_text(reading, card, "mac", property(instance, "Address"));
        put_flag(reading, card, "static", property(instance, "StaticMacAddress"));
        put_number(reading, card, "vlan", vlan_of(all, port), 4094, 1);
        append(reading, reading->networks, card);
}

static void read_cim_memory(struct reading *reading, struct hyperv_node *instance)
{
        json_t *memory = json_object_get(reading->answer, "memory");

        put_number(
                reading, memory, "startup", property(instance, "VirtualQuantity"), MIB_MOST, MIB);
        put_number(reading, memory, "max", property(instance, "Limit"), MIB_MOST, MIB);
        put_number(
                reading, memory, "reservation", property(instance, "Reservation"), MIB_MOST, MIB);
        put_number(reading, memory, "buffer", property(instance, "TargetMemoryBuffer"), 2000, 1);
        put_number(reading, memory, "priority", property(instance, "Weight"), 10000, 1);
        put_flag(reading, memory, "dynamic", property(instance, "DynamicMemoryEnabled"));
}

/* "Microsoft:GUID", of a vm or of a snapshot; the system that both belong to is the vm. */
static void put_cim_id(struct reading *reading, struct hyperv_node *instance)
{
        const char *id = property(instance, "InstanceID");
        const char *colon = id ? strchr(id, ':') : NULL;

        if (colon && strlen(colon + 1) >= 36 &&
                is_class(instance, "Msvm_VirtualSystemSettingData"))
                put(reading, reading->answer, "id", json_stringn(colon + 1, 36));
        else if (!json_object_get(reading->answer, "id"))
                put_text(reading, reading->answer, "id", property(instance, "SystemName"));
}

static void read_cim_system(struct reading *reading, struct hyperv_node *instance)
{
        const char *type = property(instance, "SettingType"), *name;
        json_t *answer = reading->answer;

        /* The vm's name; a snapshot's settings have the snapshot's. */
        name = property(instance, "ElementName");
        if (name && (is_class(instance, "Msvm_VirtualSystemSettingData") ||
                            !json_object_get(answer, "name")))
                put_text(reading, answer, "name", name);
        put_cim_id(reading, instance);
        put_text(reading, answer, "notes", property(instance, "Notes"));
        put_text(reading, answer, "created", property(instance, "CreationTime"));
        put_number(reading, answer, "version", property(instance, "Version"), UINT32_MAX, 1);
        if (is_class(instance, "Msvm_VirtualSystemSettingData"))
                put(reading, answer, "snapshot", json_boolean(type && strcmp(type, "5") == 0));
}

static void read_resource(
        struct reading *reading, const struct instances *all, struct hyperv_node *instance)
{
        static const char *const nothing_here[] = {"IDE Controller", "SCSI Controller",
                "Disk Drive", "DVD Drive", "Diskette", "Serial", "Mouse", "Keyboard", "Display",
                "Processor", "Memory", "ISO"};
        const char *type = property(instance, "ResourceSubType");
        char what[160];

        if (is_subtype(instance, "Virtual Hard Disk")) {
                read_cim_disk(reading, all, instance);
                return;
        }
        if (is_subtype(instance, "Physical Disk Drive")) {
                read_cim_physical(reading, all, instance);
                return;
        }
        for (size_t i = 0; i < sizeof(nothing_here) / sizeof(nothing_here[0]); i++)
                if (type && strcasestr(type, nothing_here[i]))
                        return;
        snprintf(what, sizeof(what), "a resource of the type '%.100s'", type ? type : "");
        note_unknown(reading, what);
}

static bool is_component(const char *name)
{
        return strcasestr(name, "ComponentSettingData") || strcasestr(name, "ExportSettingData") ||
                strcasestr(name, "ControllerSettingData") ||
                strcasecmp(name, "Msvm_SwitchPort") == 0 ||
                strcasecmp(name, "Msvm_VirtualSwitch") == 0 ||
                strcasecmp(name, "Msvm_VLANEndpointSettingData") == 0;
}

static void read_instance(
        struct reading *reading, const struct instances *all, struct hyperv_node *instance)
{
        uint64_t count;

        if (is_class(instance, "Msvm_VirtualSystemGlobalSettingData") ||
                is_class(instance, "Msvm_VirtualSystemSettingData"))
                read_cim_system(reading, instance);
        else if (is_class(instance, "Msvm_MemorySettingData"))
                read_cim_memory(reading, instance);
        else if (is_class(instance, "Msvm_ProcessorSettingData"))
                put_number(reading, reading->answer, "cpus",
                        read_number(property(instance, "VirtualQuantity"), 1024, &count)
                                ? property(instance, "VirtualQuantity")
                                : NULL,
                        1024, 1);
        else if (strcasestr(instance->label, "EthernetPortSettingData"))
                read_cim_card(reading, all, instance);
        else if (is_class(instance, "Msvm_ResourceAllocationSettingData"))
                read_resource(reading, all, instance);
        else if (!is_component(instance->label))
                note_unknown(reading, instance->label);
}

static void read_cim(struct reading *reading)
{
        struct instances all = {0};

        find_instances(reading, &all);
        put(reading, reading->answer, "snapshot", json_false());
        put(reading, reading->answer, "boot", json_array());
        for (size_t i = 0; reading->r == 0 && i < all.n; i++)
                read_instance(reading, &all, all.items[i]);
        if (reading->r == 0 && all.n == 0)
                reading->r = fail(reading->err, EUCLEAN,
                        "it is neither a <configuration> nor a list of <INSTANCE CLASSNAME=...>");
        free(all.items);
}

/* ---- both ---- */

int hyperv_parse(const void *data, size_t size, json_t **ret, struct error *err)
{
        _cleanup_(hyperv_tree_freep) struct hyperv_node *root = NULL;
        json_auto_t *answer = json_object();
        struct reading reading = {.answer = answer, .err = err};
        bool configuration;
        int r = hyperv_tree_parse(data, size, &root, err);

        if (r < 0)
                return r;
        configuration = strcmp(root->name, "configuration") == 0;
        reading.root = root;
        reading.disks = json_array();
        reading.networks = json_array();
        reading.saved = json_array();
        reading.unknown = json_array();
        put(&reading, answer, "layout", json_string(configuration ? "configuration" : "cim"));
        put(&reading, answer, "memory", json_object());
        put(&reading, answer, "disks", reading.disks);
        put(&reading, answer, "networks", reading.networks);
        put(&reading, answer, "saved", reading.saved);
        put(&reading, answer, "unknown", reading.unknown);
        if (reading.r == 0 && configuration)
                read_configuration(&reading);
        else if (reading.r == 0)
                read_cim(&reading);
        if (reading.r < 0)
                return reading.r;
        *ret = json_incref(answer);
        return 0;
}
