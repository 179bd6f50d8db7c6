/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/vmm.h"

#include <stdlib.h>
#include <string.h>

#include "vhdd/control/server.h"
#include "vhdd/daemon/asking.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/vms.h"

#define DEFAULT_SECONDS 60

struct host {
        /* immutable */
        struct vmm *vmm;
        struct asking asking;

        /* guarded by vmm->lock */
        unsigned refs;
};

struct vmm {
        pthread_mutex_t lock;
        struct host *host; /* guarded by lock */
};

static struct host *host_unref(struct host *host)
{
        struct vmm *vmm = host->vmm;
        bool last;

        pthread_mutex_lock(&vmm->lock);
        last = --host->refs == 0;
        pthread_mutex_unlock(&vmm->lock);
        if (last) {
                asking_done(&host->asking);
                free(host);
        }
        return NULL;
}
DEFINE_CLEANUP(struct host *, host_unref)

static struct host *host_get(struct vmm *vmm)
{
        MUTEX_GUARD(&vmm->lock);

        if (vmm->host)
                vmm->host->refs++;
        return vmm->host;
}

/* ---- it comes, and goes ---- */

/* On the connection's thread, once. */
static void host_gone(void *opaque)
{
        struct host *host = opaque;
        struct vmm *vmm = host->vmm;
        bool was;

        asking_gone(&host->asking);
        pthread_mutex_lock(&vmm->lock);
        was = vmm->host == host;
        if (was)
                vmm->host = NULL;
        pthread_mutex_unlock(&vmm->lock);
        host_unref(host);
        if (was)
                host_unref(host);
}

static int vmm_register(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        struct vmm *vmm = broker->vmm;
        struct host *host;
        bool taken;

        host = calloc(1, sizeof(*host));
        if (!host)
                return fail(err, ENOMEM, "no memory for the vmm-host");
        host->vmm = vmm;
        asking_init(&host->asking, caller->client,
                (unsigned)param_int(params, "timeout", DEFAULT_SECONDS));
        pthread_mutex_lock(&vmm->lock);
        taken = vmm->host != NULL;
        if (!taken && !param_bool(params, "dry-run")) {
                host->refs = 2; /* the broker's, and the connection's */
                vmm->host = host;
        }
        pthread_mutex_unlock(&vmm->lock);
        if (host->refs == 0) {
                asking_done(&host->asking);
                free(host);
        } else {
                control_client_on_gone(caller->client, host_gone, host);
        }
        if (taken)
                return fail(err, EBUSY, "there is a vmm-host already");
        *ret = json_object();
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int vmm_reply(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(host_unrefp) struct host *host = host_get(broker->vmm);
        int r;

        if (!host || host->asking.client != caller->client)
                return fail(err, ENXIO, "this connection is not the vmm-host's");
        r = asking_answer(&host->asking, params, err);
        if (r < 0)
                return r;
        *ret = json_object();
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

/* ---- what is asked of it ---- */

/* The errno of that name, as the API writes it. */
static int code_of(const char *name)
{
        for (int code = 1; name && code < 134; code++) {
                const char *one = strerrorname_np(code);

                if (one && strcmp(one, name) == 0)
                        return code;
        }
        return EREMOTEIO;
}

static int refusal(const json_t *error, struct error *err)
{
        const char *message = param_text(error, "message"), *hint = param_text(error, "hint");
        int r = fail(err, code_of(param_text(error, "code")), "%.700s",
                message ? message : "the vmm-host could not do it");

        if (hint)
                error_set_hint(err, "%.400s", hint);
        return r;
}

static int no_host(const struct broker *broker, struct error *err)
{
        if (broker->options.vmm_command) {
                fail(err, ENXIO, "the vmm-host does not run just now");
                error_set_hint(err, "the daemon's log says why; it is started again by itself");
        } else {
                fail(err, ENXIO, "no vmm-host runs: memory and networks are nobody's here");
                error_set_hint(err, "start the daemon with --vmm-command vmm-host, or the service vhdd-vmm");
        }
        return -ENXIO;
}

/* What it is told: the params, with the vm by its id. */
static int told_params(struct broker *broker, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        const char *name = param_text(params, "vm");
        json_t *copy;
        int r = name ? vm_peek(broker, name, &vm, NULL, err) : 0;

        if (r < 0)
                return r;
        copy = json_copy((json_t *)params);
        if (!copy || (vm && json_object_set_new(copy, "vm", json_string(vm->id)) < 0)) {
                json_decref(copy);
                return fail(err, ENOMEM, "no memory for a question");
        }
        *ret = copy;
        return 0;
}

/* @told and @caller (NULL: it is the broker that asks) are taken over. */
static int ask_host(struct broker *broker, const char *method, json_t *told, json_t *caller,
        unsigned timeout_s, json_t **ret, struct error *err)
{
        _cleanup_(host_unrefp) struct host *host = host_get(broker->vmm);
        json_auto_t *answer = NULL;
        const json_t *error;
        int r;

        if (!host) {
                json_decref(told);
                json_decref(caller);
                return no_host(broker, err);
        }
        r = asking_ask(&host->asking, "vmm.request",
                json_pack("{s:s, s:o, s:o*}", "method", method, "params", told, "caller", caller),
                NULL, 0, timeout_s, &answer, err);
        if (r == -EPIPE)
                return fail(err, EPIPE, "the vmm-host went away while it was asked");
        if (r == -ETIMEDOUT)
                return fail(err, ETIMEDOUT, "the vmm-host did not answer within %u s",
                        timeout_s > 0 ? timeout_s : host->asking.timeout_s);
        if (r < 0)
                return r;
        error = json_object_get(answer, "error");
        if (error)
                return refusal(error, err);
        *ret = json_incref(json_object_get(answer, "result"));
        if (!*ret)
                *ret = json_object();
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

int vmm_ask(struct broker *broker, const char *method, json_t *params, unsigned timeout_s,
        json_t **ret, struct error *err)
{
        return ask_host(broker, method, params ? params : json_object(), NULL, timeout_s, ret, err);
}

static int forward(struct broker *broker, const struct caller *caller, const char *method,
        const json_t *params, json_t **ret, struct error *err)
{
        json_t *told = NULL;
        int r = told_params(broker, params, &told, err);

        if (r < 0)
                return r;
        return ask_host(broker, method, told,
                json_pack("{s:i, s:i}", "uid", (int)caller->uid, "pid", (int)caller->pid), 0, ret,
                err);
}

#define FORWARDED(function, method)                                                                \
        static int function(struct broker *broker, const struct caller *caller,                    \
                const json_t *params, json_t **ret, struct error *err)                             \
        {                                                                                          \
                return forward(broker, caller, method, params, ret, err);                          \
        }
FORWARDED(memory_show, "memory.show")
FORWARDED(switch_create, "switch.create")
FORWARDED(switch_list, "switch.list")
FORWARDED(switch_show, "switch.show")
FORWARDED(switch_set, "switch.set")
FORWARDED(switch_remove, "switch.remove")
FORWARDED(vm_console, "vm.console")
FORWARDED(vm_doctor, "vm.doctor")
FORWARDED(vm_network_attach, "vm.network.attach")
FORWARDED(vm_network_detach, "vm.network.detach")

const struct method vmm_methods[] = {
        {"vmm.register", vmm_register, true},
        {"vmm.reply", vmm_reply, false},
        {"memory.show", memory_show, false},
        {"switch.create", switch_create, true},
        {"switch.list", switch_list, false},
        {"switch.show", switch_show, false},
        {"switch.set", switch_set, true},
        {"switch.remove", switch_remove, true},
        {"vm.console", vm_console, false},
        {"vm.doctor", vm_doctor, false},
        {"vm.network.attach", vm_network_attach, true},
        {"vm.network.detach", vm_network_detach, true},
        {NULL, NULL, false},
};

/* ---- its place in the broker ---- */

int vmm_new(struct broker *broker, struct vmm **ret, struct error *err)
{
        struct vmm *vmm = calloc(1, sizeof(*vmm));

        if (!vmm)
                return fail(err, ENOMEM, "no memory for the vmm-host's place");
        pthread_mutex_init(&vmm->lock, NULL);
        *ret = vmm;
        return 0;
}

struct vmm *vmm_free(struct vmm *vmm)
{
        if (!vmm)
                return NULL;
        pthread_mutex_destroy(&vmm->lock);
        free(vmm);
        return NULL;
}
