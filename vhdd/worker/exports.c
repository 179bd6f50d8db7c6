/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chain/push.h"
#include "vhdd/worker/internal.h"

static struct worker_export *find_export(const struct worker *worker, const char *name)
{
        for (struct worker_export *export = worker->exports; export; export = export->next)
                if (!strcmp(export->name, name))
                        return export;
        return NULL;
}

json_t *exports_to_json(const struct worker *worker)
{
        json_t *list = json_array();

        for (const struct worker_export *export = worker->exports; export; export = export->next)
                json_array_append_new(list,
                        json_pack("{s:s, s:s, s:b, s:i}", "name", export->name, "chain",
                                export->chain->name, "read-only", export->read_only, "clients",
                                nbd_server_export_clients(worker->server, export->name)));
        return list;
}

bool chain_is_exported(const struct worker *worker, const struct worker_chain *chain)
{
        for (const struct worker_export *export = worker->exports; export; export = export->next)
                if (export->chain == chain)
                        return true;
        return false;
}

/* --- adding and removing --- */

/* The strings are the params'. */
static int get_changed(
        const json_t *params, struct nbd_changed **ret, size_t *ret_n, struct error *err)
{
        const json_t *list = json_object_get(params, "changed");
        size_t n = json_array_size(list);
        struct nbd_changed *changed;

        *ret = NULL;
        *ret_n = 0;
        if (n == 0)
                return 0;
        changed = calloc(n, sizeof(*changed));
        if (!changed)
                return fail(err, ENOMEM, "no memory for %zu snapshots", n);
        for (size_t i = 0; i < n; i++) {
                const json_t *one = json_array_get(list, i);

                changed[i].name = param_text(one, "name", err);
                changed[i].layer = param_text(one, "layer", err);
                if (!changed[i].name || !changed[i].layer) {
                        free(changed);
                        return -EINVAL;
                }
        }
        *ret = changed;
        *ret_n = n;
        return 0;
}

int verb_export_add(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "name", err);
        _cleanup_free_ struct nbd_changed *changed = NULL;
        struct nbd_export_options options = {.name = name};
        struct worker_export *export;
        struct worker_chain *chain;
        int r;

        if (!name)
                return -EINVAL;
        r = find_chain(worker, param_text_or(params, "chain", NULL), &chain, err);
        if (r == 0)
                r = get_changed(params, &changed, &options.n_changed, err);
        if (r < 0)
                return r;
        options.description = param_text_or(params, "description", NULL);
        options.chain = chain->chain;
        options.read_only = param_bool(params, "read-only") || !chain->writable;
        options.changed = changed;
        export = calloc(1, sizeof(*export));
        if (export)
                export->name = strdup(name);
        if (!export || !export->name) {
                free(export);
                return fail(err, ENOMEM, "no memory for the export '%s'", name);
        }
        r = nbd_server_add_export(worker->server, &options, err);
        if (r < 0) {
                free(export->name);
                free(export);
                return r;
        }
        export->chain = chain;
        export->read_only = options.read_only;
        export->next = worker->exports;
        worker->exports = export;
        return 0;
}

int verb_export_remove(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "name", err);
        uint64_t timeout_ms = param_number(params, "timeout-ms", 0);
        int r;

        if (!name)
                return -EINVAL;
        r = nbd_server_remove_export(worker->server, name, param_bool(params, "force"),
                timeout_ms > UINT32_MAX ? UINT32_MAX : (unsigned)timeout_ms, err);
        if (r < 0)
                return r;
        for (struct worker_export **at = &worker->exports; *at; at = &(*at)->next) {
                struct worker_export *export = *at;

                if (strcmp(export->name, name) != 0)
                        continue;
                *at = export->next;
                free(export->name);
                free(export);
                break;
        }
        return 0;
}

int verb_export_hide(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "name", err);

        if (!name)
                return -EINVAL;
        return nbd_server_hide_export(worker->server, name, param_bool(params, "hidden"), err);
}

int verb_export_changed(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "name", err);
        _cleanup_free_ struct nbd_changed *changed = NULL;
        size_t n;
        int r;

        if (!name)
                return -EINVAL;
        r = get_changed(params, &changed, &n, err);
        return r < 0 ? r : nbd_server_set_changed(worker->server, name, changed, n, err);
}

int verb_export_clients(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "name", err);

        if (!name)
                return -EINVAL;
        if (!find_export(worker, name))
                return fail(err, ENOENT, "there is no export '%s'", name);
        *ret = json_pack("{s:i}", "clients", nbd_server_export_clients(worker->server, name));
        return 0;
}

/* --- looking --- */

static json_t *client_to_json(const struct nbd_client_info *client)
{
        return json_pack("{s:I, s:s, s:s, s:b, s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I}", "id",
                (json_int_t)client->id, "peer", client->peer, "export", client->export_name,
                "served", client->state == NBD_CLIENT_SERVED, "read-only", client->read_only,
                "structured", client->structured, "age-ms", (json_int_t)client->age_ms, "requests",
                (json_int_t)client->requests, "errors", (json_int_t)client->errors, "bytes-read",
                (json_int_t)client->bytes_read, "bytes-written", (json_int_t)client->bytes_written,
                "bytes-in-flight", (json_int_t)client->bytes_in_flight);
}

int verb_clients(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        enum { MAX_CLIENTS = 1024 };
        _cleanup_free_ struct nbd_client_info *clients = calloc(MAX_CLIENTS, sizeof(*clients));
        json_t *list;
        size_t n;

        if (!clients)
                return fail(err, ENOMEM, "no memory for a list of clients");
        n = nbd_server_clients_get(worker->server, clients, MAX_CLIENTS);
        list = json_array();
        for (size_t i = 0; i < n && i < MAX_CLIENTS; i++) {
                json_t *one = client_to_json(&clients[i]);

                if (one) /* a name that was cut inside a letter is none */
                        json_array_append_new(list, one);
        }
        *ret = json_pack("{s:o, s:I}", "clients", list, "n", (json_int_t)n);
        return 0;
}

static json_t *counters_to_json(struct nbd_server *server)
{
        struct nbd_server_counters c;

        nbd_server_counters_get(server, &c);
        return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "served",
                (json_int_t)c.served, "clients", (json_int_t)c.clients, "requests",
                (json_int_t)c.requests, "errors", (json_int_t)c.errors, "bytes-read",
                (json_int_t)c.bytes_read, "bytes-written", (json_int_t)c.bytes_written, "receives",
                (json_int_t)c.receives, "sends", (json_int_t)c.sends, "flushes-asked",
                (json_int_t)c.flushes_asked, "flushes-done", (json_int_t)c.flushes_done, "io-uring",
                c.io_uring);
}

static json_t *kind_to_json(const struct nbd_kind_stats *kind)
{
        json_t *latency = json_array();

        for (unsigned i = 0; i < NBD_LATENCY_BUCKETS; i++)
                json_array_append_new(latency, json_integer((json_int_t)kind->latency[i]));
        return json_pack("{s:I, s:I, s:I, s:I, s:o}", "requests", (json_int_t)kind->requests,
                "errors", (json_int_t)kind->errors, "bytes", (json_int_t)kind->bytes, "latency-us",
                (json_int_t)kind->latency_us, "latency", latency);
}

/* What clients asked of each export: the kinds of requests that came. */
static json_t *stats_to_json(const struct worker *worker)
{
        json_t *list = json_array();

        for (const struct worker_export *export = worker->exports; export; export = export->next) {
                json_t *kinds = json_object();
                struct nbd_export_stats stats;

                if (nbd_server_export_stats_get(worker->server, export->name, &stats) < 0)
                        stats = (struct nbd_export_stats){0};
                for (unsigned i = 0; i < NBD_N_KINDS; i++)
                        if (stats.kinds[i].requests > 0)
                                json_object_set_new(kinds,
                                        nbd_request_kind_to_string((enum nbd_request_kind)i),
                                        kind_to_json(&stats.kinds[i]));
                json_array_append_new(list,
                        json_pack("{s:s, s:s, s:o}", "name", export->name, "chain",
                                export->chain->name, "kinds", kinds));
        }
        return list;
}

static uint64_t allocated_of(const struct chain *chain)
{
        uint64_t sum = 0;

        for (unsigned i = 0; i < chain_depth(chain); i++) {
                struct file_stat st;

                if (file_stat_get(chain_layer(chain, i)->file, &st) == 0)
                        sum += st.allocated;
        }
        return sum;
}

int verb_metrics(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        json_t *chains = json_array();

        for (const struct worker_chain *chain = worker->chains; chain; chain = chain->next) {
                struct chain_counters c;

                chain_counters_get(chain->chain, &c);
                json_array_append_new(chains,
                        json_pack(
                                "{s:s, s:i, s:i, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
                                "chain", chain->name, "depth", (int)chain_depth(chain->chain),
                                "frozen", (int)chain_n_frozen(chain->chain), "writable",
                                chain->writable, "size", (json_int_t)chain_size(chain->chain),
                                "allocated", (json_int_t)allocated_of(chain->chain), "reads",
                                (json_int_t)c.reads, "writes", (json_int_t)c.writes, "zeros",
                                (json_int_t)c.zeros, "trims", (json_int_t)c.trims, "flushes",
                                (json_int_t)c.flushes, "bytes-read", (json_int_t)c.bytes_read,
                                "bytes-written", (json_int_t)c.bytes_written));
        }
        *ret = json_pack("{s:o, s:o, s:o}", "server", counters_to_json(worker->server), "chains",
                chains, "exports", stats_to_json(worker));
        return 0;
}

void on_client_event(void *opaque, enum nbd_event event, const struct nbd_client_info *client)
{
        static const char *const words[] = {
                [NBD_EVENT_CONNECTED] = "connected",
                [NBD_EVENT_SERVED] = "served",
                [NBD_EVENT_GONE] = "gone",
        };
        struct worker *worker = opaque;
        _cleanup_(rpc_unrefp) struct rpc *rpc = worker_broker(worker);
        json_t *json;

        if (!rpc)
                return;
        json = client_to_json(client);
        if (json)
                json_object_set_new(json, "what", json_string(words[event]));
        rpc_send_event(rpc, "client", json);
}
