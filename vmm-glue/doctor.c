/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/doctor.h"

#include <stdlib.h>
#include <unistd.h>

struct doctor {
        struct host *host;
};

static int find_vm(
        struct doctor *doctor, const json_t *params, struct host_vm **ret, struct error *err)
{
        const char *name = json_string_value(json_object_get(params, "vm"));
        struct host_vm *vm = name ? host_vm_find(doctor->host, name) : NULL;

        if (!vm) {
                fail(err, ENOENT, "vm '%s' is not run by this host's vmm-host", name ? name : "");
                error_set_hint(err, "vhdctl vm set '%s' --memory startup=512M", name ? name : "VM");
                return -err->code;
        }
        *ret = vm;
        return 0;
}

static int vm_console(void *module, struct host_call *call, const json_t *params, json_t **ret,
        struct error *err)
{
        struct doctor *doctor = module;
        _cleanup_free_ char *path = NULL;
        struct host_vm *vm = NULL;
        int r = find_vm(doctor, params, &vm, err);

        if (r == 0 && !vm->is_on)
                r = fail(err, ENXIO, "vm '%s' is off, so it has no console", vm->name);
        if (r == 0)
                r = vm_path(host_options(doctor->host), vm->id, "console.sock", &path, err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:s}", "vm", vm->name, "socket", path);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int start(struct host *host, void **ret, struct error *err)
{
        struct doctor *doctor = calloc(1, sizeof(*doctor));

        if (!doctor)
                return fail(err, ENOMEM, "no memory for a module");
        doctor->host = host;
        *ret = doctor;
        return 0;
}

static void stop(void *module)
{
        free(module);
}

static const struct host_method methods[] = {
        {"vm.console", vm_console},
        {NULL, NULL},
};

const struct host_module doctor_module = {
        .name = "doctor",
        .index = 0,
        .start = start,
        .stop = stop,
        .methods = methods,
};
