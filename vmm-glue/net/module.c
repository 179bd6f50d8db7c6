/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/module.h"

#include <string.h>

#include "vmm-glue/connection.h"
#include "vmm-glue/log.h"
#include "vmm-glue/net/cards.h"
#include "vmm-glue/net/net.h"

#define HOT_TIMEOUT_MS 15000u
#define CARD_MAX_FDS   32u

struct module {
        struct host *host;
        struct net *net;
};

static const char *owner_of(struct module *module)
{
        return host_options(module->host)->state_dir;
}

/* --- switches --- */

static int switch_create(
        void *opaque, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct module *module = opaque;

        return net_switch_create(module->net, params, ret, err);
}

/* People call vms by their names. */
static void add_vm_names(struct module *module, json_t *shown)
{
        json_t *port;
        size_t i;

        json_array_foreach(json_object_get(shown, "ports"), i, port)
        {
                const char *id = json_string_value(json_object_get(port, "vm"));
                struct host_vm *vm = id ? host_vm_find(module->host, id) : NULL;

                if (vm && vm->name)
                        json_object_set_new(port, "vm", json_string(vm->name));
        }
}

static int switch_list(
        void *opaque, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct module *module = opaque;
        int r = net_switch_list(module->net, ret, err);
        json_t *shown;
        size_t i;

        if (r == 0)
                json_array_foreach(*ret, i, shown) add_vm_names(module, shown);
        return r;
}

static int switch_show(
        void *opaque, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct module *module = opaque;
        const char *name = json_string_value(json_object_get(params, "name"));
        int r = net_switch_show(module->net, name ? name : "", ret, err);

        if (r == 0)
                add_vm_names(module, *ret);
        return r;
}

static int switch_set(
        void *opaque, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct module *module = opaque;
        int r = net_switch_set(module->net, params, ret, err);

        if (r == 0)
                add_vm_names(module, *ret);
        return r;
}

static int switch_remove(
        void *opaque, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct module *module = opaque;

        return net_switch_remove(module->net, params, ret, err);
}

/* --- a card more, a card less --- */

/* A change of a running vm's cards, while its supervisor is asked. */
struct change {
        struct module *module;
        struct host_call *call;
        char vm[UUID_TEXT_SIZE];
        json_t *networks; /* the settings as they are to be */
        json_t *card;     /* the one that it is about */
        bool is_removal;
};

static struct change *change_free(struct change *change)
{
        json_decref(change->networks);
        json_decref(change->card);
        free(change);
        return NULL;
}
DEFINE_CLEANUP(struct change *, change_free)

static const char *card_mac(const struct change *change)
{
        return json_string_value(json_object_get(change->card, "mac"));
}

static json_t *card_answer(const struct change *change, bool now)
{
        return json_pack("{s:O, s:b}", "network", change->card, "now", (int)now);
}

/* Nobody hot-plugs here: the settings say what the next start has. */
static bool is_for_next_start(int r)
{
        return r == -ENOSYS || r == -ENOTSUP || r == -ENXIO;
}

static int take_back(const struct change *change, struct error *err)
{
        return net_unplug(change->module->net, change->vm, card_mac(change), err);
}

static void on_hot_answer(
        void *opaque, const json_t *result, int *fds, size_t n_fds, const struct error *said)
{
        _cleanup_(change_freep) struct change *change = opaque;
        struct error err = ERROR_INIT;
        int r = result ? 0 : -said->code;
        bool now = r == 0;

        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if ((r == 0) == change->is_removal || (r < 0 && !change->is_removal))
                if (take_back(change, &err) < 0)
                        log_error(&err);
        error_clear(&err);
        if (r < 0 && !is_for_next_start(r)) {
                host_call_answer(change->call, NULL, said);
                return;
        }
        r = cards_store(host_connection(change->module->host), change->vm, change->networks, &err);
        host_call_answer(change->call, r < 0 ? NULL : card_answer(change, now), &err);
}

/* The supervisor gets the card as the plug made it, and its descriptors. -EINPROGRESS when it was asked. */
static int add_hot(struct change *change, struct host_vm *vm, struct error *err)
{
        json_auto_t *one = json_pack("[O]", change->card), *plugged = NULL;
        int fds[CARD_MAX_FDS];
        size_t n_fds = 0;
        int r = net_plug(
                change->module->net, change->vm, one, &plugged, fds, CARD_MAX_FDS, &n_fds, err);

        if (r < 0)
                return r;
        r = host_vm_ask(vm, "network-add",
                json_pack("{s:O}", "network", json_array_get(plugged, 0)), fds, n_fds,
                HOT_TIMEOUT_MS, on_hot_answer, change, err);
        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (r < 0)
                take_back(change, NULL);
        return r < 0 ? r : -EINPROGRESS;
}

static int remove_hot(struct change *change, struct host_vm *vm, struct error *err)
{
        int r = host_vm_ask(vm, "network-remove", json_pack("{s:s}", "mac", card_mac(change)), NULL,
                0, HOT_TIMEOUT_MS, on_hot_answer, change, err);

        return r < 0 ? r : -EINPROGRESS;
}

/* Under a running guest if there is one, else in the settings. */
static int carry_out(struct change *change, json_t **ret, struct error *err)
{
        struct host_vm *vm = host_vm_find(change->module->host, change->vm);
        int r = -ENXIO;

        if (vm && vm->is_on)
                r = change->is_removal ? remove_hot(change, vm, err) : add_hot(change, vm, err);
        if (!is_for_next_start(r))
                return r;
        error_clear(err);
        r = cards_store(host_connection(change->module->host), change->vm, change->networks, err);
        if (r == 0)
                *ret = card_answer(change, !vm || !vm->is_on);
        return r;
}

static int change_new(struct module *module, struct host_call *call, const json_t *params,
        struct change **ret, struct error *err)
{
        const char *vm = json_string_value(json_object_get(params, "vm"));
        struct change *change = calloc(1, sizeof(*change));
        int r;

        if (!change)
                return fail(err, ENOMEM, "no memory for a network card");
        change->module = module;
        change->call = call;
        snprintf(change->vm, sizeof(change->vm), "%s", vm ? vm : "");
        r = cards_of(host_connection(module->host), change->vm, &change->networks, err);
        if (r < 0) {
                change_free(change);
                return r;
        }
        *ret = change;
        return 0;
}

/* What carry_out() has asked a supervisor for owns the change from then on. */
static int finish_change(
        struct change *change, const json_t *params, json_t **ret, struct error *err)
{
        int r;

        if (json_is_true(json_object_get(params, "dry-run"))) {
                *ret = card_answer(change, true);
                r = 0;
        } else {
                r = carry_out(change, ret, err);
        }
        if (r != -EINPROGRESS)
                change_free(change);
        return r;
}

static int must_have_switch(struct module *module, const json_t *network, struct error *err)
{
        const char *name = json_string_value(json_object_get(network, "switch"));
        json_t *shown = NULL;
        int r = net_switch_show(module->net, name ? name : "", &shown, err);

        json_decref(shown);
        return r;
}

static int network_attach(
        void *opaque, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct module *module = opaque;
        const json_t *network = json_object_get(params, "network");
        struct change *change = NULL;
        int r = must_have_switch(module, network, err);

        if (r == 0)
                r = change_new(module, call, params, &change, err);
        if (r == 0)
                r = cards_prepare(host_connection(module->host), owner_of(module), network,
                        &change->card, err);
        if (r < 0) {
                if (change)
                        change_free(change);
                return r;
        }
        json_array_append(change->networks, change->card);
        return finish_change(change, params, ret, err);
}

static int network_detach(
        void *opaque, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct module *module = opaque;
        const char *which = json_string_value(json_object_get(params, "network"));
        struct change *change = NULL;
        size_t i = 0;
        int r = change_new(module, call, params, &change, err);

        if (r == 0)
                r = cards_find(change->networks, which ? which : "", &i, err);
        if (r < 0) {
                if (change)
                        change_free(change);
                return r;
        }
        change->is_removal = true;
        change->card = json_incref(json_array_get(change->networks, i));
        json_array_remove(change->networks, i);
        return finish_change(change, params, ret, err);
}

/* --- what supervisors ask --- */

/* The guest has its taps already: only their ports may be missing. */
static int plug_again(struct module *module, struct host_vm *vm, json_t *networks, json_t **ret,
        struct error *err)
{
        int r = net_adjust(module->net, vm->id, networks, err);
        json_t *network;
        size_t i;

        if (r < 0)
                return r;
        *ret = json_array();
        json_array_foreach(networks, i, network) json_array_append_new(*ret,
                json_pack("{s:O, s:i, s:i}", "mac", json_object_get(network, "mac"), "descriptors",
                        0, "vhost", 0));
        return 0;
}

static int plug(void *opaque, struct host_vm *vm, const json_t *networks, bool again, json_t **ret,
        int *fds, size_t max_fds, size_t *ret_n_fds, struct error *err)
{
        struct module *module = opaque;
        json_auto_t *complete = NULL;
        int r = cards_complete(
                host_connection(module->host), owner_of(module), vm->id, networks, &complete, err);

        *ret_n_fds = 0;
        if (r < 0)
                return r;
        if (again)
                return plug_again(module, vm, complete, ret, err);
        /* Of a guest that was killed. */
        r = net_unplug(module->net, vm->id, NULL, err);
        return r < 0 ? r
                     : net_plug(module->net, vm->id, complete, ret, fds, max_fds, ret_n_fds, err);
}

static void unplug(void *opaque, struct host_vm *vm)
{
        struct module *module = opaque;
        struct error err = ERROR_INIT;

        if (net_unplug(module->net, vm->id, NULL, &err) < 0)
                log_error(&err);
}

/* Another VLAN, another switch: at once, as one pulls a cable and plugs it in elsewhere. */
static void changed(void *opaque, struct host_vm *vm)
{
        struct module *module = opaque;
        struct error err = ERROR_INIT;

        if (vm->is_on &&
                net_adjust(module->net, vm->id, json_object_get(vm->settings, "networks"), &err) <
                        0)
                log_error(&err);
}

/* --- life --- */

static int start(struct host *host, void **ret, struct error *err)
{
        const struct glue_options *options = host_options(host);
        struct net_options net_options = {
                .state_dir = options->state_dir,
                .run_dir = options->run_dir,
                .event = host_event(host),
        };
        struct error why = ERROR_INIT;
        struct module *module = calloc(1, sizeof(*module));
        int r;

        if (!module)
                return fail(err, ENOMEM, "no memory for a module");
        module->host = host;
        r = net_new(&net_options, &module->net, err);
        if (r < 0) {
                free(module);
                return r;
        }
        /* Vms without a network are run all the same. */
        if (net_adopt(module->net, &why) < 0)
                log_error(&why);
        *ret = module;
        return 0;
}

static void stop(void *opaque)
{
        struct module *module = opaque;

        if (host_is_ending(module->host))
                net_stop(module->net);
        net_free(module->net);
        free(module);
}

static const struct host_method methods[] = {
        {"switch.create", switch_create},
        {"switch.list", switch_list},
        {"switch.show", switch_show},
        {"switch.set", switch_set},
        {"switch.remove", switch_remove},
        {"vm.network.attach", network_attach},
        {"vm.network.detach", network_detach},
        {NULL, NULL},
};

const struct host_module net_module = {
        .name = "networks",
        .index = 1,
        .start = start,
        .stop = stop,
        .changed = changed,
        .plug = plug,
        .unplug = unplug,
        .methods = methods,
};
