/* SPDX-License-Identifier: Apache-2.0 */
/* agent.c - the supervisor as the vm's agent: it registers, again after the daemon was restarted. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define AGENT_NAME      "vmm-glue"
#define AGENT_TIMEOUT_S 600

/* Saved memory belongs to the disks as they are: who changes them has to ask us, as if it ran. */
static bool is_on(const struct supervisor *supervisor)
{
        return is_process_there(supervisor) || supervisor->has_saved;
}

void supervisor_set_name(struct supervisor *supervisor, const char *name)
{
        char *copy = name ? strdup(name) : NULL;

        if (!copy)
                return;
        log_about(copy);
        free(supervisor->name);
        supervisor->name = copy;
}

static int on_up(void *opaque, struct connection *connection, struct error *err)
{
        struct supervisor *supervisor = opaque;
        json_auto_t *answer = NULL;
        int r;

        supervisor->connection = connection;
        /* -EBUSY: our own old connection, of which the daemon has not seen the end. Tried again. */
        r = connection_call(connection, "agent.register",
                json_pack("{s:s, s:s, s:b, s:o, s:i}", "vm", supervisor->id, "name", AGENT_NAME,
                        "on", is_on(supervisor), "verbs", verbs_offered(), "timeout",
                        AGENT_TIMEOUT_S),
                &answer, err);
        if (r == 0)
                supervisor_set_name(supervisor, json_string_value(json_object_get(answer, "vm")));
        if (r == 0)
                r = connection_call(connection, "events.subscribe",
                        json_pack(
                                "{s:[s, s, s]}", "types", "merged", "snapshot-taken", "vm-removed"),
                        NULL, err);
        supervisor->is_registered = r == 0;
        operations_kick(supervisor);
        return r;
}

static void on_down(void *opaque)
{
        struct supervisor *supervisor = opaque;

        supervisor->is_registered = false;
        /* Whoever asked is gone with it. */
        for (struct operation *one = supervisor->operations; one; one = one->next)
                if (!one->from_link)
                        one->number = -1;
        hold_forsake(supervisor);
}

void agent_tell_on(struct supervisor *supervisor)
{
        struct error err = ERROR_INIT;

        if (!supervisor->is_registered)
                return;
        if (connection_call(supervisor->connection, "agent.state",
                    json_pack("{s:s, s:b}", "vm", supervisor->id, "on", is_on(supervisor)), NULL,
                    &err) < 0)
                log_error(&err);
}

void agent_reply(
        struct supervisor *supervisor, json_int_t number, json_t *result, const struct error *said)
{
        json_t *reply = json_pack("{s:I}", "request", number);
        struct error err = ERROR_INIT;

        if (result) {
                json_object_set_new(reply, "result", result);
        } else {
                _cleanup_free_ char *text = NULL;

                if (asprintf(&text, "%s%s%s%s", said->message, said->hint[0] ? " (" : "",
                            said->hint, said->hint[0] ? ")" : "") < 0)
                        text = NULL;
                json_object_set_new(reply, "error", json_string(text ? text : said->message));
        }
        if (connection_call(supervisor->connection, "agent.reply", reply, NULL, &err) < 0)
                log_error(&err);
}

static void on_request(struct supervisor *supervisor, const json_t *params, int *fds, size_t n_fds)
{
        const char *verb = json_string_value(json_object_get(params, "verb"));
        json_int_t number = json_integer_value(json_object_get(params, "request"));

        operation_begin(
                supervisor, verb ? verb : "", json_deep_copy(params), fds, n_fds, false, number);
}

static void on_event(struct supervisor *supervisor, const json_t *params)
{
        const char *type = json_string_value(json_object_get(params, "type"));
        const char *vm = json_string_value(json_object_get(params, "vm"));
        const char *id = json_string_value(json_object_get(params, "vm-id"));

        if (!type)
                return;
        /* Whoever is registered for it is so no more; and it may come back with the same id, by an import,
         * before vmm-host has looked: then another supervisor is started. */
        if (strcmp(type, "vm-removed") == 0 && id && strcmp(id, supervisor->id) == 0) {
                supervisor->is_ending = true;
                operations_kick(supervisor);
        } else if (vm && strcmp(vm, supervisor->name) == 0) {
                saved_event(supervisor, type);
        }
}

static void on_notification(
        void *opaque, const char *method, const json_t *params, int *fds, size_t n_fds)
{
        struct supervisor *supervisor = opaque;

        if (strcmp(method, "agent.request") == 0) {
                on_request(supervisor, params, fds, n_fds);
                return;
        }
        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (strcmp(method, "event") == 0)
                on_event(supervisor, params);
}

int agent_start(struct supervisor *supervisor, struct error *err)
{
        const struct connection_callbacks callbacks = {.up = on_up,
                .down = on_down,
                .notification = on_notification,
                .opaque = supervisor};

        return connection_new(supervisor->event, supervisor->options.control, &callbacks,
                &supervisor->connection, err);
}
