/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/agents.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/control/server.h"
#include "vhdd/daemon/asking.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"

#define AGENT_VERBS_MAX       32u
#define AGENT_DEFAULT_SECONDS 60

struct agent {
        /* immutable */
        struct vm *vm;
        uint64_t registration;
        char *name;
        char *verbs[AGENT_VERBS_MAX];
        size_t n_verbs;

        struct asking asking;

        /* guarded by vms->lock */
        unsigned refs;
};

static void agent_free(struct agent *agent)
{
        for (size_t i = 0; i < agent->n_verbs; i++)
                free(agent->verbs[i]);
        free(agent->name);
        asking_done(&agent->asking);
        vm_unref(agent->vm);
        free(agent);
}

static void agent_unref(struct agent *agent)
{
        struct vms *vms = agent->vm->vms;
        bool last;

        pthread_mutex_lock(&vms->lock);
        last = --agent->refs == 0;
        pthread_mutex_unlock(&vms->lock);
        if (last)
                agent_free(agent);
}
DEFINE_CLEANUP(struct agent *, agent_unref)

static struct agent *agent_get(struct vm *vm)
{
        struct agent *agent;

        /* A vm that is only shown (a dry run's) is in no table. */
        if (!vm->refs)
                return NULL;
        pthread_mutex_lock(&vm->vms->lock);
        agent = vm->agent;
        if (agent)
                agent->refs++;
        pthread_mutex_unlock(&vm->vms->lock);
        return agent;
}

bool agent_is_there(struct vm *vm)
{
        _cleanup_(agent_unrefp) struct agent *agent = agent_get(vm);

        return agent != NULL;
}

uint64_t agent_registration(struct vm *vm)
{
        _cleanup_(agent_unrefp) struct agent *agent = agent_get(vm);

        return agent ? agent->registration : 0;
}

bool agent_offers(struct vm *vm, const char *verb)
{
        _cleanup_(agent_unrefp) struct agent *agent = agent_get(vm);

        for (size_t i = 0; agent && i < agent->n_verbs; i++)
                if (strcmp(agent->verbs[i], verb) == 0)
                        return true;
        return false;
}

const char *agent_name(struct vm *vm, char *ret, size_t size)
{
        _cleanup_(agent_unrefp) struct agent *agent = agent_get(vm);

        if (!agent)
                return NULL;
        snprintf(ret, size, "%s", agent->name);
        return ret;
}

/* One with memory among its settings is ours to run, where there is a vmm-host. */
static bool is_for_vmm_host(const struct vm_row *row)
{
        json_auto_t *settings = row->settings ? json_loads(row->settings, 0, NULL) : NULL;

        return json_object_get(settings, "memory") != NULL;
}

int agent_must(struct vm *vm, const struct vm_row *row, const char *verb, struct error *err)
{
        int r;

        if (agent_offers(vm, verb))
                return 0;
        if (agent_is_there(vm))
                return fail(err, EOPNOTSUPP, "the agent of vm '%s' does not offer '%s'", row->name,
                        verb);
        r = fail(err, ENXIO, "no agent is registered for vm '%s'", row->name);
        error_set_hint(err, "%s",
                is_for_vmm_host(row)
                        ? "vmm-host runs it: vhdd --vmm-command vmm-host, or the service vhdd-vmm"
                        : "the daemon has the disks only; whoever runs the vm does this (vmm-host "
                          "does once it has memory: vhdctl vm set --memory)");
        return r;
}

/* ---- asking ---- */

/* @r: of the asking. @answer is taken over. */
static int judge(const char *verb, unsigned timeout_s, int r, json_t *answer, json_t **ret,
        struct error *err)
{
        json_auto_t *said = answer;
        const char *text = param_text(said, "error");

        if (r == -EPIPE)
                return fail(err, EPIPE, "the vm's agent went away while it was asked to %s", verb);
        if (r == -ETIMEDOUT)
                return fail(
                        err, ETIMEDOUT, "the vm's agent did not %s within %u s", verb, timeout_s);
        if (r < 0)
                return r;
        if (text) {
                r = fail(err, EREMOTEIO, "the vm's agent could not %s: %.400s", verb, text);
                if (param_text(said, "hint"))
                        error_set_hint(err, "%.400s", param_text(said, "hint"));
                return r;
        }
        if (ret) {
                *ret = json_incref(json_object_get(said, "result"));
                if (!*ret)
                        *ret = json_object();
                if (!*ret)
                        return fail(err, ENOMEM, "no memory for the agent's answer");
        }
        return 0;
}

int agent_ask_within(struct vm *vm, const char *verb, json_t *params, const int *fds, size_t n_fds,
        unsigned timeout_s, json_t **ret, struct error *err)
{
        _cleanup_(agent_unrefp) struct agent *agent = agent_get(vm);
        json_t *answer = NULL;
        int r;

        if (!agent || !params) {
                json_decref(params);
                return fail(err, agent ? ENOMEM : ENXIO, "no agent is registered for the vm");
        }
        if (timeout_s == 0)
                timeout_s = agent->asking.timeout_s;
        json_object_set_new(params, "vm", json_string(vm->id));
        json_object_set_new(params, "verb", json_string(verb));
        r = asking_ask(
                &agent->asking, "agent.request", params, fds, n_fds, timeout_s, &answer, err);
        return judge(verb, timeout_s, r, answer, ret, err);
}

int agent_ask(struct vm *vm, const char *verb, json_t *params, const int *fds, size_t n_fds,
        json_t **ret, struct error *err)
{
        return agent_ask_within(vm, verb, params, fds, n_fds, 0, ret, err);
}

struct agent_call {
        struct agent *agent;
        const char *verb;
        struct asking_question *question;
};

int agent_call_begin(struct vm *vm, uint64_t registration, const char *verb, json_t *params,
        const int *fds, size_t n_fds, struct agent_call **ret, struct error *err)
{
        struct agent_call *call = calloc(1, sizeof(*call));
        int r;

        if (call)
                call->agent = agent_get(vm);
        if (!call || !call->agent || !params) {
                json_decref(params);
                r = fail(err, call && params ? ENXIO : ENOMEM, "no agent is registered for the vm");
                agent_call_drop(call);
                return r;
        }
        if (registration && call->agent->registration != registration) {
                json_decref(params);
                agent_call_drop(call);
                return judge(verb, 0, -EPIPE, NULL, NULL, err);
        }
        call->verb = verb;
        json_object_set_new(params, "vm", json_string(vm->id));
        json_object_set_new(params, "verb", json_string(verb));
        r = asking_begin(
                &call->agent->asking, "agent.request", params, fds, n_fds, 0, &call->question, err);
        if (r < 0) {
                agent_call_drop(call);
                return judge(verb, 0, r, NULL, NULL, err);
        }
        *ret = call;
        return 0;
}

int agent_call_end(struct agent_call *call, json_t **ret, struct error *err)
{
        json_t *answer = NULL;
        int r = asking_end(&call->agent->asking, call->question, &answer);

        r = judge(call->verb, call->agent->asking.timeout_s, r, answer, ret, err);
        call->question = NULL;
        agent_call_drop(call);
        return r;
}

struct agent_call *agent_call_drop(struct agent_call *call)
{
        if (!call)
                return NULL;
        if (call->question)
                asking_end(&call->agent->asking, call->question, NULL);
        if (call->agent)
                agent_unref(call->agent);
        free(call);
        return NULL;
}

/* ---- coming, going, answering ---- */

static int set_on(struct vm *vm, bool on, struct error *err)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = catalog_vm_find(vm->broker->catalog, vm->id, &row, err);

        if (r < 0 || row.is_on_by_agent == on)
                return r;
        return catalog_vm_set_on(vm->broker->catalog, vm->id, on, err);
}

/* On the connection's thread, once. */
static void agent_gone(void *opaque)
{
        struct agent *agent = opaque;
        struct vm *vm = agent->vm;
        bool was;

        asking_gone(&agent->asking);
        pthread_mutex_lock(&vm->vms->lock);
        was = vm->agent == agent;
        if (was)
                vm->agent = NULL;
        pthread_mutex_unlock(&vm->vms->lock);
        if (was)
                vm_publish(vm, "agent-gone", json_pack("{s:s}", "agent", agent->name));
        agent_unref(agent);
        if (was)
                agent_unref(agent);
}

static int agent_new(struct vm *vm, const json_t *params, struct control_client *client,
        struct agent **ret, struct error *err)
{
        static atomic_uint_least64_t last_registration;
        struct agent *agent = calloc(1, sizeof(*agent));
        const char *name = param_text(params, "name");
        json_t *verb;
        size_t i;

        if (!agent)
                return fail(err, ENOMEM, "no memory for an agent");
        pthread_mutex_lock(&vm->vms->lock);
        vm->refs++;
        pthread_mutex_unlock(&vm->vms->lock);
        agent->vm = vm;
        agent->registration = atomic_fetch_add(&last_registration, 1) + 1;
        asking_init(&agent->asking, client,
                (unsigned)param_int(params, "timeout", AGENT_DEFAULT_SECONDS));
        agent->name = strdup(name ? name : "agent");
        json_array_foreach(json_object_get(params, "verbs"), i, verb)
        {
                char *text = strdup(json_string_value(verb));

                if (text && agent->n_verbs < AGENT_VERBS_MAX)
                        agent->verbs[agent->n_verbs++] = text;
                else
                        free(text);
        }
        if (!agent->name) {
                agent_free(agent);
                return fail(err, ENOMEM, "no memory for an agent");
        }
        *ret = agent;
        return 0;
}

static int agent_register(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        struct agent *agent = NULL;
        bool taken;
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0 && agent_is_there(vm))
                r = fail(err, EBUSY, "vm '%s' has an agent already", row.name);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:s}", "vm", row.name, "id", row.id);
        if (!*ret)
                return fail(err, ENOMEM, "no memory for the answer");
        if (param_bool(params, "dry-run"))
                return 0;
        r = agent_new(vm, params, caller->client, &agent, err);
        if (r == 0)
                r = set_on(vm, param_bool(params, "on"), err);
        if (r < 0) {
                if (agent)
                        agent_free(agent);
                json_decref(*ret);
                *ret = NULL;
                return r;
        }
        pthread_mutex_lock(&vm->vms->lock);
        taken = vm->agent != NULL;
        if (!taken) {
                agent->refs = 2; /* the vm's, and the connection's */
                vm->agent = agent;
        }
        pthread_mutex_unlock(&vm->vms->lock);
        if (taken) {
                agent_free(agent);
                json_decref(*ret);
                *ret = NULL;
                return fail(err, EBUSY, "vm '%s' has an agent already", row.name);
        }
        control_client_on_gone(caller->client, agent_gone, agent);
        vm_publish(vm, "agent-registered", json_pack("{s:s}", "agent", agent->name));
        return 0;
}

/* The agent whose connection this is; requests are numbered for each agent. */
static struct agent *agent_of(struct broker *broker, const struct caller *caller)
{
        struct agent *found = NULL;

        pthread_mutex_lock(&broker->vms->lock);
        for (size_t i = 0; i < broker->vms->n_items; i++) {
                struct agent *agent = broker->vms->items[i]->agent;

                if (agent && agent->asking.client == caller->client) {
                        found = agent;
                        found->refs++;
                        break;
                }
        }
        pthread_mutex_unlock(&broker->vms->lock);
        return found;
}

static int agent_reply(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(agent_unrefp) struct agent *agent = agent_of(broker, caller);
        int r;

        if (!agent)
                return fail(err, ENXIO, "this connection is no vm's agent");
        r = asking_answer(&agent->asking, params, err);
        if (r < 0)
                return r;
        *ret = json_object();
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int agent_state(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(agent_unrefp) struct agent *agent = agent_of(broker, caller);
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        bool on = param_bool(params, "on");
        int r = vm_peek(broker, param_text(params, "vm"), &vm, NULL, err);

        if (r < 0)
                return r;
        if (!agent || agent->vm != vm)
                return fail(err, EPERM, "only a vm's own agent says whether it is on");
        r = set_on(vm, on, err);
        if (r < 0)
                return r;
        vm_publish(vm, "vm-state", json_pack("{s:b}", "on", on));
        vm_may_merge(vm);
        *ret = json_object();
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

const struct method agent_methods[] = {
        {"agent.register", agent_register, true},
        {"agent.reply", agent_reply, false},
        {"agent.state", agent_state, false},
        {NULL, NULL, false},
};
