/* SPDX-License-Identifier: Apache-2.0 */
/* request.c - one line of JSON-RPC: understood, checked, run, answered. */
#include <errno.h>
#include <string.h>

#include "vhdd/control/internal.h"

/* Everything that one request needs on its way. */
struct request {
        struct control_client *client;
        const json_t *message, *id; /* id: NULL for a notification, which gets no answer */
        const char *name;
        json_t *params; /* an object; a reference of ours */
        int fds[CONTROL_MAX_DESCRIPTORS];
        size_t n_fds;
        int code; /* of a failure */
};

static void cleanup_reference(json_t **value)
{
        json_decref(*value); /* takes NULL */
}

static void set_text(json_t *object, const char *key, const char *text)
{
        json_t *value = json_string(text);

        /* A file's name need not be UTF-8: what cannot be said is shown, not left out. */
        if (!value) {
                _cleanup_free_ char *plain = strdup(text);

                for (char *p = plain; p && *p; p++)
                        if ((unsigned char)*p >= 0x80)
                                *p = '?';
                value = plain ? json_string(plain) : NULL;
        }
        json_object_set_new(object, key, value);
}

json_t *control_error_message(const json_t *id, int code, const struct error *err)
{
        const char *name = strerrorname_np(err->code);
        json_t *data = json_object(), *error = json_object();
        char hyperv[16];

        set_text(data, "code", name ? name : "EIO");
        if (err->file[0])
                set_text(data, "file", err->file);
        if (err->offset != ERROR_NO_OFFSET && err->offset <= INT64_MAX)
                json_object_set_new(data, "offset", json_integer((json_int_t)err->offset));
        if (err->hint[0])
                set_text(data, "hint", err->hint);
        if (err->hyperv) {
                snprintf(hyperv, sizeof(hyperv), "0x%08X", (unsigned)err->hyperv);
                set_text(data, "hyperv", hyperv);
        }
        json_object_set_new(error, "code", json_integer(code));
        set_text(error, "message", err->message);
        json_object_set_new(error, "data", data);
        return json_pack("{s:s, s:O?, s:o}", "jsonrpc", "2.0", "id", id, "error", error);
}

void control_refuse(struct control_client *client, int code, const struct error *err, bool close)
{
        control_client_send(client, control_error_message(NULL, code, err), false, NULL, 0);
        if (close)
                client->closing = true;
}

/* --- what the server answers itself --- */

static void subscribe(struct request *request)
{
        struct control_client *client = request->client;
        const json_t *types = json_object_get(request->params, "types");
        const char *vm = json_string_value(json_object_get(request->params, "vm"));

        MUTEX_GUARD(&client->lock);
        json_decref(client->types);
        client->types = types ? json_deep_copy(types) : NULL;
        snprintf(client->vm, sizeof(client->vm), "%s", vm ? vm : "");
        client->subscribed = true;
}

static json_t *list_methods(const struct control_server *server)
{
        static const char *const own[] = {"events.subscribe", "rpc.methods", "rpc.schema"};
        json_t *list = json_array();

        for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
                json_array_append_new(list, json_string(own[i]));
        for (size_t i = 0; i < server->n_methods; i++)
                json_array_append_new(list, json_string(server->methods[i]->name));
        return list;
}

/* Whether @request is for one of these. */
static bool run_own(struct request *request, json_t **ret)
{
        struct control_server *server = request->client->server;

        if (strcmp(request->name, "events.subscribe") == 0) {
                subscribe(request);
                *ret = json_object();
        } else if (strcmp(request->name, "rpc.methods") == 0) {
                *ret = list_methods(server);
        } else if (strcmp(request->name, "rpc.schema") == 0) {
                *ret = json_incref((json_t *)control_schema_json(server->schema));
        } else {
                return false;
        }
        return true;
}

/* --- reading a request --- */

static bool is_id(const json_t *id)
{
        return json_is_string(id) || json_is_number(id) || json_is_null(id);
}

static int read_envelope(struct request *request, struct error *err)
{
        const json_t *message = request->message;
        const char *version;

        request->code = CONTROL_INVALID_REQUEST;
        if (json_is_array(message))
                return fail(err, EINVAL,
                        "batches are not taken: send each request on a line of its own");
        if (!json_is_object(message))
                return fail(err, EINVAL, "a request is an object");
        request->id = json_object_get(message, "id");
        if (request->id && !is_id(request->id)) {
                request->id = NULL;
                return fail(err, EINVAL, "'id' is a string or a number");
        }
        version = json_string_value(json_object_get(message, "jsonrpc"));
        if (!version || strcmp(version, "2.0") != 0)
                return fail(err, EINVAL, "'jsonrpc' must be \"2.0\"");
        request->name = json_string_value(json_object_get(message, "method"));
        if (!request->name)
                return fail(err, EINVAL, "'method' must be a string");
        return 0;
}

static int read_descriptors(struct request *request, struct error *err)
{
        const json_t *count = json_object_get(request->message, "descriptors");
        json_int_t n = json_integer_value(count);

        request->code = CONTROL_INVALID_REQUEST;
        if (!count)
                return 0;
        if (!json_is_integer(count) || n < 0 || n > (json_int_t)CONTROL_MAX_DESCRIPTORS)
                return fail(err, EINVAL, "'descriptors' is a number from 0 to %u",
                        CONTROL_MAX_DESCRIPTORS);
        if (wire_claim(request->client->wire, (size_t)n, request->fds) < 0)
                return fail(err, EINVAL, "'descriptors' says %d, and fewer have come", (int)n);
        request->n_fds = (size_t)n;
        return 0;
}

static int read_params(struct request *request, struct error *err)
{
        const struct control_server *server = request->client->server;
        json_t *params = json_object_get(request->message, "params");
        int r;

        request->code = CONTROL_INVALID_PARAMS;
        if (params && !json_is_object(params))
                return fail(err, EINVAL, "'params' is an object: its members are named");
        request->params = params ? json_incref(params) : json_object();
        if (!request->params)
                return fail(err, ENOMEM, "no memory for the request");
        r = control_schema_check_params(server->schema, request->name, request->params, err);
        if (r == -ENOSYS)
                request->code = CONTROL_NO_METHOD;
        return r < 0 ? fail_prefix(err, r, "%.60s", request->name) : 0;
}

/* --- running it --- */

static int run_method(struct request *request, json_t **ret, struct error *err)
{
        struct control_client *client = request->client;
        const struct method *method;
        struct caller caller = {
                .uid = client->peer.uid,
                .gid = client->peer.gid,
                .pid = client->peer.pid,
                .client = client,
                .fds = request->fds,
                .n_fds = request->n_fds,
        };
        int r;

        if (run_own(request, ret))
                return 0;
        method = control_method_find(client->server, request->name);
        if (!method) {
                request->code = CONTROL_NO_METHOD;
                return fail(err, ENOSYS, "this daemon has no method '%.60s'", request->name);
        }
        r = method->run(client->server->options.broker, &caller, request->params, ret, err);
        request->code = r == -EINVAL ? CONTROL_INVALID_PARAMS : CONTROL_FAILED;
        return r;
}

/* What we answer keeps what the schema promises; a program's mistake is logged, not sent away. A dry
 * run answers what can be known. */
static void hold_to_schema(const struct request *request, const json_t *result)
{
        const struct control_server *server = request->client->server;
        struct error err = ERROR_INIT;

        if (json_is_true(json_object_get(request->params, "dry-run")))
                return;
        if (control_schema_check_result(server->schema, request->name, result, &err) < 0)
                control_log(server, "the answer of %s disagrees with the schema: %s", request->name,
                        err.message);
}

static void answer(struct request *request, int r, json_t *result, struct error *err)
{
        struct control_client *client = request->client;
        json_t *message;

        if (r < 0 && err->code == 0)
                fail_os(err, -r, "%s failed", request->name ? request->name : "the request");
        /* A request that could not be understood is answered although nobody knows its id. */
        if (!request->id && request->code != CONTROL_INVALID_REQUEST)
                return;
        if (r < 0)
                message = control_error_message(request->id, request->code, err);
        else
                message = json_pack(
                        "{s:s, s:O?, s:O}", "jsonrpc", "2.0", "id", request->id, "result", result);
        if (control_client_send(client, message, false, NULL, 0) == -ENOMEM)
                client->closing = true;
}

void control_request(struct control_client *client, char *line, size_t length)
{
        _cleanup_(cleanup_reference) json_t *message = NULL, *result = NULL;
        struct request request = {.client = client};
        struct error err = ERROR_INIT;
        json_error_t where;
        int r;

        message = json_loadb(line, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &where);
        if (!message) {
                fail(&err, EINVAL, "this is no JSON: %s", where.text);
                control_refuse(client, CONTROL_PARSE_ERROR, &err, false);
                return;
        }
        request.message = message;
        r = read_envelope(&request, &err);
        if (r == 0) {
                r = read_descriptors(&request, &err);
                if (r < 0)
                        client->closing = true; /* whose they are nobody knows any more */
        }
        if (r == 0)
                r = read_params(&request, &err);
        if (r == 0)
                r = run_method(&request, &result, &err);
        if (r == 0) {
                if (!result)
                        result = json_object();
                hold_to_schema(&request, result);
                request.code = 0;
        }
        answer(&request, r, result, &err);
        json_decref(request.params);
        for (size_t i = 0; i < request.n_fds; i++)
                if (request.fds[i] >= 0)
                        close(request.fds[i]);
}
