/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/host_internal.h"
#include "vmm-glue/log.h"

struct host_call {
        struct host *host;
        json_t *request; /* its number */
};

static int run_method(struct host *host, struct host_call *call, const char *name,
        const json_t *params, json_t **ret, struct error *err)
{
        FOR_EACH_MODULE(host, i, module)
        {
                for (const struct host_method *m = module->methods; m && m->name; m++)
                        if (strcmp(m->name, name) == 0)
                                return m->run(host->modules[i], call, params, ret, err);
        }
        return fail(err, ENOSYS, "this vmm-host does not know '%.64s'", name);
}

void host_call_answer(struct host_call *call, json_t *result, const struct error *said)
{
        json_t *reply = json_pack("{s:o}", "request", call->request);
        struct error err = ERROR_INIT;

        if (result)
                json_object_set_new(reply, "result", result);
        else
                json_object_set_new(reply, "error", error_to_object(said));
        if (connection_call(call->host->connection, "vmm.reply", reply, NULL, &err) < 0)
                log_error(&err);
        free(call);
}

void host_request(struct host *host, const json_t *params)
{
        const char *method = json_string_value(json_object_get(params, "method"));
        const json_t *given = json_object_get(params, "params");
        json_auto_t *empty = json_object();
        struct host_call *call = calloc(1, sizeof(*call));
        struct error err = ERROR_INIT;
        json_t *result = NULL;
        int r;

        if (!call) /* the daemon gives up waiting */
                return;
        call->host = host;
        call->request = json_incref(json_object_get(params, "request"));
        r = run_method(host, call, method ? method : "", given ? given : empty, &result, &err);
        if (r == -EINPROGRESS)
                return;
        host_call_answer(call, r == 0 ? result : NULL, &err);
}
