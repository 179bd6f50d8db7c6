/* SPDX-License-Identifier: Apache-2.0 */
/* memory_drive - the balancer over lines of JSON, for a computation of its own to be held against.
 *
 * Reads one object a line and answers with one:
 *   {"budget", "vms": [{startup, max, buffer, weight, demand (null: unknown), assigned, asked, holds}]}
 *      -> {"available", "short", "over", "vms": [{wanted, target, goal, pressure, status}]}
 *   {"stats": [{startup, given, inflated, total, available, swapped-in, major-faults, elapsed}]}
 *      -> {"demands": [{now, slow}]}, of one guest from its beginning
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/memory/balancer.h"
#include "vmm-glue/memory/demand.h"

static uint64_t number(const json_t *object, const char *key)
{
        return (uint64_t)json_integer_value(json_object_get(object, key));
}

static struct memory_vm read_vm(const json_t *json)
{
        return (struct memory_vm){
                .settings = memory_settings_from_json(json),
                .demand_known = json_is_integer(json_object_get(json, "demand")),
                .demand = number(json, "demand"),
                .assigned = number(json, "assigned"),
                .asked = number(json, "asked"),
                .holds = (enum memory_holds)number(json, "holds"),
        };
}

static json_t *vm_to_json(const struct memory_vm *vm)
{
        return json_pack("{s:I, s:I, s:I, s:I, s:s}", "wanted", (json_int_t)vm->wanted, "target",
                (json_int_t)vm->target, "goal", (json_int_t)vm->goal, "pressure",
                (json_int_t)vm->pressure, "status", memory_status_to_string(vm->status));
}

static json_t *balance(const json_t *in)
{
        static struct memory_vm vms[MEMORY_MAX_VMS];
        struct memory_host host = {.budget = number(in, "budget")};
        const json_t *list = json_object_get(in, "vms");
        json_t *out = json_array();
        size_t n = json_array_size(list);

        if (n > MEMORY_MAX_VMS)
                abort();
        for (size_t i = 0; i < n; i++)
                vms[i] = read_vm(json_array_get(list, i));
        memory_balance(&host, vms, n);
        memory_grant(&host, vms, n);
        for (size_t i = 0; i < n; i++)
                json_array_append_new(out, vm_to_json(&vms[i]));
        return json_pack("{s:I, s:b, s:b, s:o}", "available", (json_int_t)host.available, "short",
                host.is_short, "over", host.is_over, "vms", out);
}

static json_t *demands(const json_t *in)
{
        struct demand demand = {0};
        json_t *out = json_array(), *stats;
        size_t i;

        json_array_foreach((json_t *)in, i, stats)
        {
                struct demand_stats now = {
                        .startup = number(stats, "startup"),
                        .given = number(stats, "given"),
                        .inflated = number(stats, "inflated"),
                        .total = number(stats, "total"),
                        .available = number(stats, "available"),
                        .swapped_in = number(stats, "swapped-in"),
                        .major_faults = number(stats, "major-faults"),
                };

                demand_update(&demand, &now, number(stats, "elapsed"));
                json_array_append_new(out,
                        json_pack("{s:I, s:I}", "now", (json_int_t)demand.now, "slow",
                                (json_int_t)demand.slow));
        }
        return json_pack("{s:o}", "demands", out);
}

int main(void)
{
        char *line = NULL;
        size_t size = 0;

        while (getline(&line, &size, stdin) > 0) {
                json_t *in = json_loads(line, 0, NULL);
                const json_t *stats = json_object_get(in, "stats");
                json_t *out = stats ? demands(stats) : balance(in);

                json_dumpf(out, stdout, JSON_COMPACT);
                putchar('\n');
                fflush(stdout);
                json_decref(in);
                json_decref(out);
        }
        free(line);
        return 0;
}
