/* SPDX-License-Identifier: Apache-2.0 */
/* agent.c - the supervisor as the vm's agent: it registers, again after the daemon was restarted. */
#include <string.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define AGENT_NAME      "vmm-glue"
#define AGENT_TIMEOUT_S 600

static json_t *offered_verbs(void)
{
        return json_array();
}

static int on_up(void *opaque, struct connection *connection, struct error *err)
{
        struct supervisor *supervisor = opaque;

        supervisor->connection = connection;
        /* -EBUSY: our own old connection, of which the daemon has not seen the end. Tried again. */
        return connection_call(connection, "agent.register",
                json_pack("{s:s, s:s, s:b, s:o, s:i}", "vm", supervisor->id, "name", AGENT_NAME,
                        "on", 0, "verbs", offered_verbs(), "timeout", AGENT_TIMEOUT_S),
                NULL, err);
}

static void on_notification(void *opaque, const char *method, const json_t *params, int *fds,
        size_t n_fds)
{
        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
}

int agent_start(struct supervisor *supervisor, struct error *err)
{
        const struct connection_callbacks callbacks = {
                .up = on_up, .notification = on_notification, .opaque = supervisor};

        return connection_new(supervisor->event, supervisor->options.control, &callbacks,
                &supervisor->connection, err);
}
