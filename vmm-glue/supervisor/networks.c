/* SPDX-License-Identifier: Apache-2.0 */
/* networks.c - network cards that come and go under a running guest.
 *
 *      network-add     {"network": as a plug has it}, with the descriptors of its taps and vhosts
 *      network-remove  {"mac": TEXT}
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/control/names.h"
#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define SLOT_FIRST 0x10u /* as command.c has them */
#define SLOTS      8u
#define REMOVE_MS  10000

static size_t number_of(const json_t *network, const char *name)
{
        json_int_t n = json_integer_value(json_object_get(network, name));

        return n > 0 && n <= (json_int_t)LINK_MAX_FDS ? (size_t)n : 0;
}

static const char *mac_of(const json_t *network)
{
        const char *mac = json_string_value(json_object_get(network, "mac"));

        return mac ? mac : "";
}

/* Its place among the cards is its slot; a card that was taken away leaves its place empty (null). */
static size_t find_mac(struct supervisor *supervisor, const char *mac)
{
        json_t *list = json_object_get(supervisor->config, "networks"), *network;
        size_t i;

        json_array_foreach(list, i, network)
        {
                if (strcasecmp(mac_of(network), mac) == 0)
                        return i;
        }
        return SLOTS;
}

static size_t free_slot(struct supervisor *supervisor)
{
        json_t *list = json_object_get(supervisor->config, "networks");
        size_t i = 0;

        while (i < json_array_size(list) && !json_is_null(json_array_get(list, i)))
                i++;
        return i;
}

static void note_card(struct supervisor *supervisor, size_t slot, json_t *network)
{
        json_t *list = json_object_get(supervisor->config, "networks");
        struct error err = ERROR_INIT;

        if (slot < json_array_size(list))
                json_array_set_new(list, slot, network);
        else
                json_array_append_new(list, network);
        /* Places behind the last card are none. */
        while (json_array_size(list) > 0 &&
                json_is_null(json_array_get(list, json_array_size(list) - 1)))
                json_array_remove(list, json_array_size(list) - 1);
        if (process_note_config(supervisor, &err) < 0)
                log_error(&err);
}

/* --- adding --- */

/* Hands @n descriptors over; their names, with ':' between, to @ret. */
static int hand_over(struct supervisor *supervisor, const char *what, size_t slot, const int *fds,
        size_t n, char *ret, size_t size, struct error *err)
{
        size_t length = 0;

        ret[0] = '\0';
        for (size_t i = 0; i < n; i++) {
                char name[32];
                int r;

                snprintf(name, sizeof(name), "%s%zu-%zu", what, slot, i);
                r = qmp_call_with(supervisor->qmp, "getfd", json_pack("{s:s}", "fdname", name),
                        fds[i], QMP_CALL_MS, NULL, err);
                if (r < 0)
                        return r;
                length += (size_t)snprintf(ret + length, size - length, "%s%s", i ? ":" : "", name);
        }
        return 0;
}

static int add_netdev(struct supervisor *supervisor, size_t slot, const json_t *network,
        const int *fds, struct error *err)
{
        size_t n_taps = number_of(network, "descriptors"), n_vhost = number_of(network, "vhost");
        char taps[1024], vhosts[1024], id[16];
        json_t *arguments;
        int r = hand_over(supervisor, "tap", slot, fds, n_taps, taps, sizeof(taps), err);

        if (r == 0)
                r = hand_over(supervisor, "vhost", slot, fds + n_taps, n_vhost, vhosts,
                        sizeof(vhosts), err);
        if (r < 0)
                return r;
        snprintf(id, sizeof(id), "net%zu", slot);
        arguments = json_pack(
                "{s:s, s:s, s:s}", "type", "tap", "id", id, n_taps == 1 ? "fd" : "fds", taps);
        if (n_vhost > 0) {
                json_object_set_new(arguments, "vhost", json_true());
                json_object_set_new(
                        arguments, n_taps == 1 ? "vhostfd" : "vhostfds", json_string(vhosts));
        }
        return qmp_call(supervisor->qmp, "netdev_add", arguments, NULL, err);
}

static int add_card(
        struct supervisor *supervisor, size_t slot, const json_t *network, struct error *err)
{
        size_t n_taps = number_of(network, "descriptors");
        char id[16], netdev[16], address[16];

        snprintf(id, sizeof(id), "nic%zu", slot);
        snprintf(netdev, sizeof(netdev), "net%zu", slot);
        snprintf(address, sizeof(address), "0x%zx", SLOT_FIRST + slot);
        return qmp_call(supervisor->qmp, "device_add",
                json_pack("{s:s, s:s, s:s, s:s, s:b, s:I, s:s, s:s, s:s}", "driver",
                        "virtio-net-pci", "id", id, "netdev", netdev, "mac", mac_of(network), "mq",
                        n_taps > 1, "vectors", (json_int_t)(2 * n_taps + 2), "romfile", "", "bus",
                        "pci.0", "addr", address),
                NULL, err);
}

static void remove_netdev(struct supervisor *supervisor, size_t slot)
{
        char id[16];

        snprintf(id, sizeof(id), "net%zu", slot);
        qmp_call(supervisor->qmp, "netdev_del", json_pack("{s:s}", "id", id), NULL, NULL);
}

int step_network_add(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        json_t *network = json_object_get(operation->params, "network");
        size_t n_taps = number_of(network, "descriptors"), n_vhost = number_of(network, "vhost");
        size_t slot = free_slot(supervisor);
        int r = machine_must(supervisor, err);

        if (r == 0)
                r = control_mac_check(mac_of(network), err);
        if (r < 0)
                return r;
        if (n_taps == 0 || n_taps + n_vhost != operation->n_fds)
                return fail(err, EPROTO, "a network card came without its descriptors");
        if (slot >= SLOTS)
                return fail(err, ENOSPC,
                        "the vm has %u network cards, and there is room for no more", SLOTS);
        r = add_netdev(supervisor, slot, network, operation->fds, err);
        if (r < 0)
                return r;
        r = add_card(supervisor, slot, network, err);
        if (r < 0) {
                remove_netdev(supervisor, slot);
                return r;
        }
        note_card(supervisor, slot, json_deep_copy(network));
        *ret = json_object();
        return 1;
}

/* --- removing --- */

int step_network_remove(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        const char *mac = json_string_value(json_object_get(operation->params, "mac"));
        size_t slot = find_mac(supervisor, mac ? mac : "");
        int r = machine_must(supervisor, err);
        char id[16];

        if (r < 0)
                return r;
        if (slot >= SLOTS)
                return fail(err, ENXIO, "the running vm has no card with the address '%s'",
                        mac ? mac : "");
        snprintf(id, sizeof(id), "nic%zu", slot);
        if (operation->phase == 0) {
                json_object_del(supervisor->deleted, id);
                r = qmp_call(
                        supervisor->qmp, "device_del", json_pack("{s:s}", "id", id), NULL, err);
                if (r < 0)
                        return r;
                operation->phase = 1;
                operation->end_ms = monotonic_ms() + REMOVE_MS;
        }
        /* A PCI card goes when the guest has let go of it. */
        if (!json_object_get(supervisor->deleted, id)) {
                if (monotonic_ms() < operation->end_ms)
                        return 0;
                return fail(
                        err, ETIMEDOUT, "the guest does not let go of its network card '%s'", mac);
        }
        remove_netdev(supervisor, slot);
        note_card(supervisor, slot, json_null());
        *ret = json_object();
        return 1;
}
