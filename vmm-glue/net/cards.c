/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/cards.h"

#include <string.h>

static const char *mac_of(const json_t *network)
{
        const char *mac = json_string_value(json_object_get(network, "mac"));

        return mac ? mac : "";
}

/* --- who has which --- */

/* Addresses as people wrote them are brought to one form; what is none is nobody's. */
static void take_networks(json_t *taken, const json_t *networks, const char *vm)
{
        char mac[MAC_TEXT_SIZE];
        json_t *network;
        size_t i;

        json_array_foreach(
                (json_t *)networks, i, network) if (mac_parse(mac_of(network), mac, NULL) == 0)
                json_object_set_new(taken, mac, json_string(vm));
}

/* Address -> the name of the vm that has it, over all vms of the daemon. */
static int all_taken(struct connection *connection, json_t **ret, struct error *err)
{
        json_auto_t *vms = NULL, *taken = json_object();
        json_t *vm;
        size_t i;
        int r = connection_call(connection, "vm.list", NULL, &vms, err);

        if (r < 0)
                return r;
        json_array_foreach(vms, i, vm)
        {
                const char *name = json_string_value(json_object_get(vm, "name"));
                json_auto_t *networks = NULL;

                if (!name || cards_of(connection, name, &networks, NULL) < 0)
                        continue; /* it was removed meanwhile */
                take_networks(taken, networks, name);
        }
        *ret = TAKE_PTR(taken);
        return 0;
}

/* --- the settings --- */

int cards_of(struct connection *connection, const char *vm, json_t **ret, struct error *err)
{
        json_auto_t *shown = NULL;
        json_t *networks;
        int r = connection_call(connection, "vm.show", json_pack("{s:s}", "vm", vm), &shown, err);

        if (r < 0)
                return r;
        networks = json_object_get(json_object_get(shown, "settings"), "networks");
        *ret = networks ? json_deep_copy(networks) : json_array();
        return *ret ? 0 : fail(err, ENOMEM, "no memory for a vm's network cards");
}

/* What a supervisor knows of a card besides is none of the settings' business. */
static json_t *settings_of(const json_t *networks)
{
        static const char *const kept[] = {"switch", "vlan", "mac", "queues", "mac-spoofing"};
        json_t *list = json_array(), *network;
        size_t i;

        json_array_foreach((json_t *)networks, i, network)
        {
                json_t *one = json_object();

                for (size_t k = 0; k < sizeof(kept) / sizeof(kept[0]); k++)
                        if (json_object_get(network, kept[k]))
                                json_object_set(one, kept[k], json_object_get(network, kept[k]));
                json_array_append_new(list, one);
        }
        return list;
}

int cards_store(
        struct connection *connection, const char *vm, const json_t *networks, struct error *err)
{
        json_t *params = json_pack(
                "{s:s, s:{s:o}}", "vm", vm, "settings", "networks", settings_of(networks));

        if (!params)
                return fail(err, ENOMEM, "no memory for a vm's network cards");
        return connection_call(connection, "vm.set", params, NULL, err);
}

/* --- completing --- */

static bool is_complete(const json_t *networks)
{
        json_t *network;
        size_t i;

        json_array_foreach((json_t *)networks, i, network) if (!mac_of(network)[0]) return false;
        return true;
}

static int give_address(const char *owner, json_t *taken, json_t *network, struct error *err)
{
        char mac[MAC_TEXT_SIZE];
        int r = mac_pick(owner, taken, mac, err);

        if (r < 0)
                return r;
        json_object_set_new(taken, mac, json_true());
        json_object_set_new(network, "mac", json_string(mac));
        return 0;
}

int cards_complete(struct connection *connection, const char *owner, const char *vm,
        const json_t *networks, json_t **ret, struct error *err)
{
        json_auto_t *taken = NULL, *list = json_deep_copy(networks);
        json_t *network;
        size_t i;
        int r;

        if (!list)
                list = json_array();
        if (is_complete(list)) {
                *ret = TAKE_PTR(list);
                return 0;
        }
        r = all_taken(connection, &taken, err);
        json_array_foreach(list, i, network) if (r == 0 && !mac_of(network)[0]) r =
                give_address(owner, taken, network, err);
        if (r == 0)
                r = cards_store(connection, vm, list, err);
        if (r < 0)
                return fail_prefix(
                        err, r, "cannot give the vm's network cards their MAC addresses");
        *ret = TAKE_PTR(list);
        return 0;
}

int cards_prepare(struct connection *connection, const char *owner, const json_t *network,
        json_t **ret, struct error *err)
{
        json_auto_t *taken = NULL, *copy = json_deep_copy(network);
        char mac[MAC_TEXT_SIZE] = "";
        const char *who;
        int r = 0;

        if (!copy)
                return fail(err, ENOMEM, "no memory for a network card");
        if (mac_of(copy)[0])
                r = mac_parse(mac_of(copy), mac, err);
        if (r == 0)
                r = all_taken(connection, &taken, err);
        if (r < 0)
                return r;
        who = mac[0] ? json_string_value(json_object_get(taken, mac)) : NULL;
        if (who)
                return fail(err, EEXIST, "vm '%s' has a network card with the MAC address %s", who,
                        mac);
        if (mac[0])
                json_object_set_new(copy, "mac", json_string(mac));
        else
                r = give_address(owner, taken, copy, err);
        if (r == 0)
                *ret = TAKE_PTR(copy);
        return r;
}

/* --- which one --- */

int cards_find(const json_t *networks, const char *which, size_t *ret, struct error *err)
{
        char wanted[MAC_TEXT_SIZE] = "", mac[MAC_TEXT_SIZE];
        size_t i, n = 0;
        json_t *network;

        mac_parse(which, wanted, NULL);
        json_array_foreach((json_t *)networks, i, network)
        {
                const char *on = json_string_value(json_object_get(network, "switch"));
                bool is_it = wanted[0]
                        ? mac_parse(mac_of(network), mac, NULL) == 0 && strcmp(mac, wanted) == 0
                        : on && strcmp(on, which) == 0;

                if (!is_it)
                        continue;
                *ret = i;
                n++;
        }
        if (n == 1)
                return 0;
        if (n > 1)
                return fail(err, EINVAL,
                        "the vm has %zu network cards on the switch '%s': name one by its MAC address",
                        n, which);
        return wanted[0]
                ? fail(err, ENOENT, "the vm has no network card with the MAC address %s", wanted)
                : fail(err, ENOENT, "the vm has no network card on a switch '%.64s'", which);
}
