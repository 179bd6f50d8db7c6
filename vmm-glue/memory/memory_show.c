/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/memory/memory_show.h"

#include <string.h>

static void put_size(json_t *object, const char *key, uint64_t value)
{
        json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void put_size_if(json_t *object, const char *key, bool is_there, uint64_t value)
{
        json_object_set_new(object, key, is_there ? json_integer((json_int_t)value) : json_null());
}

static json_t *host_to_json(struct memory *memory)
{
        const struct memory_host *host = &memory->last;
        bool is_said = host_options(memory->host)->host_memory > 0;
        json_t *object = json_object();

        put_size(object, "budget", host->budget);
        json_object_set_new(object, "budget-from", json_string(is_said ? "option" : "host"));
        put_size(object, "physical", host->assigned);
        put_size(object, "wanted", host->wanted);
        put_size(object, "available", host->available);
        json_object_set_new(object, "short", json_boolean(host->is_short));
        json_object_set_new(object, "over", json_boolean(host->is_over));
        put_size(object, "added", memory->added);
        put_size(object, "removed", memory->removed);
        put_size(object, "operations", memory->n_added + memory->n_removed);
        put_size(object, "add-operations", memory->n_added);
        put_size(object, "remove-operations", memory->n_removed);
        put_size(object, "steps", memory->n_steps);
        return object;
}

/* What the balancer made of a guest that is on. */
static void put_step(json_t *object, const struct memory_guest *guest)
{
        const struct memory_vm *step = &guest->step;
        enum memory_holds holds = memory_follow_holds(&guest->follow);
        bool is_held = holds != MEMORY_FOLLOWS;

        put_size(object, "physical", step->assigned);
        put_size_if(object, "demand", step->demand_known, step->demand);
        put_size_if(object, "demand-now", step->demand_known, guest->step_now);
        put_size(object, "wanted", step->wanted);
        put_size(object, "target", step->target);
        put_size_if(object, "asked", guest->follow.asked > 0, guest->follow.asked);
        put_size_if(object, "pressure", step->demand_known, step->pressure);
        json_object_set_new(object, "status", json_string(memory_status_to_string(step->status)));
        json_object_set_new(object, "reckoned", json_string(memory_holds_to_string(step->holds)));
        json_object_set_new(object, "refuses",
                is_held ? json_string(memory_holds_to_string(holds)) : json_null());
        put_size_if(object, "asked-again-in", is_held, guest->follow.ms / 1000);
}

/* Of one that is off, or was switched on since the last step. */
static void put_none(json_t *object, bool is_on)
{
        static const char *const nothing[] = {"demand", "demand-now", "asked", "pressure",
                "reckoned", "refuses", "asked-again-in"};
        static const char *const zero[] = {"physical", "wanted", "target"};

        for (size_t i = 0; i < sizeof(nothing) / sizeof(nothing[0]); i++)
                json_object_set_new(object, nothing[i], json_null());
        for (size_t i = 0; i < sizeof(zero) / sizeof(zero[0]); i++)
                put_size(object, zero[i], 0);
        json_object_set_new(object, "status", json_string(is_on ? "unknown" : "off"));
}

static json_t *vm_to_json(const struct host_vm *vm, const struct memory_guest *guest)
{
        bool is_started = guest->is_on && guest->has_told;
        bool is_counted = guest->is_on && guest->step.settings.startup > 0;
        const struct memory_settings *next = &guest->settings;
        const struct memory_settings *settings = is_counted ? &guest->step.settings : next;
        json_t *object = json_object();

        json_object_set_new(object, "vm", json_string(vm->name));
        json_object_set_new(object, "id", json_string(vm->id));
        json_object_set_new(object, "on", json_boolean(guest->is_on));
        put_size(object, "startup", settings->startup);
        put_size(object, "max", settings->max);
        put_size(object, "buffer", settings->buffer);
        put_size(object, "weight", settings->weight);
        put_size_if(object, "started-max", is_started, guest->max);
        put_size_if(object, "next-startup", is_started && guest->startup != next->startup,
                next->startup);
        put_size_if(object, "next-max", is_started && guest->max < next->max, next->max);
        if (is_counted)
                put_step(object, guest);
        else
                put_none(object, guest->is_on);
        put_size(object, "added", guest->added);
        put_size(object, "removed", guest->removed);
        put_size(object, "add-operations", guest->n_added);
        put_size(object, "remove-operations", guest->n_removed);
        return object;
}

int memory_show(struct memory *memory, const char *name, const struct host_module *module,
        json_t **ret, struct error *err)
{
        struct host_vm *only = name ? host_vm_find(memory->host, name) : NULL;
        json_t *list;

        if (name && !only) { /* the daemon has put its id for its name */
                fail(err, ENOENT, "the vmm-host does not run this vm: it has no memory settings");
                error_set_hint(err, "vhdctl vm set VM --memory startup=512M,max=2G");
                return -ENOENT;
        }
        list = json_array();
        for (struct host_vm *vm = host_vms(memory->host); vm; vm = vm->next) {
                const struct memory_guest *guest = vm->data[module->index];

                if (guest && (!only || vm == only))
                        json_array_append_new(list, vm_to_json(vm, guest));
        }
        *ret = json_pack("{s:o, s:o}", "host", host_to_json(memory), "vms", list);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}
