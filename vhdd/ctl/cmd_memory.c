/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl memory - how the host's memory is shared out among the running vms. */
#include <inttypes.h>
#include <string.h>

#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/show.h"

/* What a null, or a member that an older daemon lacks, looks like. */
static const char *size_or_dash(const json_t *vm, const char *key, char buf[SIZE_TEXT_MAX])
{
        return json_is_integer(json_object_get(vm, key)) ? show_size(vm, key, buf) : "-";
}

static const char *percent_or_dash(const json_t *vm, const char *key, char *buf, size_t size)
{
        if (!json_is_integer(json_object_get(vm, key)))
                return "-";
        snprintf(buf, size, "%" PRId64 "%%", show_number(vm, key));
        return buf;
}

static void show_host(const json_t *host)
{
        bool is_said = strcmp(show_text(host, "budget-from"), "option") == 0;
        const char *judgment = show_flag(host, "over") ? " (the startup memory alone is more)"
                : show_flag(host, "short")             ? " (more than there is: shared by weight)"
                                                       : "";
        char size[SIZE_TEXT_MAX];

        show_line(0, "budget", "%s (%s)", show_size(host, "budget", size),
                is_said ? "--host-memory" : "what the host can give");
        show_line(0, "physical", "%s", show_size(host, "physical", size));
        show_line(0, "available", "%s", show_size(host, "available", size));
        show_line(0, "wanted", "%s%s", show_size(host, "wanted", size), judgment);
        show_line(0, "added", "%s", show_size(host, "added", size));
        show_line(0, "removed", "%s", show_size(host, "removed", size));
        show_line(0, "operations", "%" PRId64 " (%" PRId64 " to add, %" PRId64 " to remove)",
                show_number(host, "operations"), show_number(host, "add-operations"),
                show_number(host, "remove-operations"));
}

/* What is not as it was asked or set to be, a line each. */
static void show_remarks(const json_t *vm)
{
        _cleanup_free_ char *name = text_safe(show_text(vm, "vm"));
        const char *refuses = show_text(vm, "refuses");
        char size[SIZE_TEXT_MAX];

        if (refuses[0])
                printf("%s %s than it has; it is asked again in %" PRId64 " s\n", name,
                        strcmp(refuses, "takes-no-more") == 0
                                ? "takes no more memory"
                                : "gives no memory back, and keeps no less",
                        show_number(vm, "asked-again-in"));
        if (json_is_integer(json_object_get(vm, "next-startup")))
                printf("%s has a startup memory of %s from its next start on\n", name,
                        show_size(vm, "next-startup", size));
        if (json_is_integer(json_object_get(vm, "next-max")))
                printf("%s has a max of %s from its next start on\n", name,
                        show_size(vm, "next-max", size));
}

static void show_guests(const json_t *vms)
{
        static const char *const columns[] = {"VM", "STATUS", ">PHYSICAL", ">DEMAND", ">PRESSURE",
                ">TARGET", ">STARTUP", ">MAX", ">BUFFER", ">WEIGHT", NULL};
        _cleanup_(table_freep) struct table *table = table_new(columns);
        char size[SIZE_TEXT_MAX], percent[32];
        json_t *vm;
        size_t i;

        json_array_foreach((json_t *)vms, i, vm)
        {
                table_cell(table, "%s", show_text(vm, "vm"));
                table_cell(table, "%s", show_text(vm, "status"));
                table_cell(table, "%s", size_or_dash(vm, "physical", size));
                table_cell(table, "%s", size_or_dash(vm, "demand", size));
                table_cell(table, "%s", percent_or_dash(vm, "pressure", percent, sizeof(percent)));
                table_cell(table, "%s", size_or_dash(vm, "target", size));
                table_cell(table, "%s", size_or_dash(vm, "startup", size));
                table_cell(table, "%s", size_or_dash(vm, "max", size));
                table_cell(table, "%s", percent_or_dash(vm, "buffer", percent, sizeof(percent)));
                table_cell(table, "%" PRId64, show_number(vm, "weight"));
        }
        table_print(table, stdout);
        json_array_foreach((json_t *)vms, i, vm) show_remarks(vm);
}

static void show_guest(const json_t *vm)
{
        static const char *const sizes[] = {"physical", "demand", "target", "startup", "max"};
        char size[SIZE_TEXT_MAX], percent[32];

        show_line(0, "vm", "%s", show_text(vm, "vm"));
        show_line(0, "status", "%s", show_text(vm, "status"));
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
                show_line(0, sizes[i], "%s", size_or_dash(vm, sizes[i], size));
        show_line(0, "pressure", "%s", percent_or_dash(vm, "pressure", percent, sizeof(percent)));
        show_line(0, "buffer", "%s", percent_or_dash(vm, "buffer", percent, sizeof(percent)));
        show_line(0, "weight", "%" PRId64, show_number(vm, "weight"));
        show_line(0, "added", "%s", show_size(vm, "added", size));
        show_line(0, "removed", "%s", show_size(vm, "removed", size));
        show_line(0, "operations", "%" PRId64 " to add, %" PRId64 " to remove",
                show_number(vm, "add-operations"), show_number(vm, "remove-operations"));
        show_remarks(vm);
}

static int show_memory(const struct ctl *ctl, const json_t *params, const json_t *result)
{
        const json_t *vms = json_object_get(result, "vms");

        if (json_object_get(params, "vm")) {
                show_guest(json_array_get(vms, 0));
                return CTL_DONE;
        }
        show_host(json_object_get(result, "host"));
        if (json_array_size(vms) > 0)
                printf("\n");
        show_guests(vms);
        return CTL_DONE;
}

const struct command command_memory = {
        .name = "memory",
        .operands = "[VM]",
        .summary = "how memory is shared out among running vms",
        .doc = "Show what the balancer of the vmm-host does (Dynamic Memory): what the host has for its "
               "guests, and of each guest what it has, needs and is to have. With VM: this one, with "
               "what was added to it and removed from it."
               "\v"
               "Examples:\n"
               "  vhdctl memory\n"
               "  vhdctl memory web\n"
               "  vhdctl memory --json | jq '.vms[] | select(.status == \"warning\").vm'",
        .n_operands_max = 1,
        .run = daemon_run,
        .daemon = &(const struct daemon_verb){.method = "memory.show",
                .operands = (const struct param[]){{"vm", PARAM_TEXT, NULL, NULL, NULL}, {0}},
                .show = show_memory},
};
