/* SPDX-License-Identifier: Apache-2.0 */
/* Exports come and go while clients are served.
 *
 *      add -> there <-> hidden
 *               \-> leaving: no new client; those that have it leave or are cut off -> gone
 *
 * A client counts in its export from the moment it is promoted until it has left the list, with
 * nothing in flight; whoever negotiates holds copies only. So when the count is zero and nobody can be
 * promoted any more, the export is unused, and with the last export of a chain the chain is. */
#include <assert.h>
#include <string.h>

#include "base/arith.h"
#include "base/utf16.h"
#include "nbd/server/private.h"

static struct export *find_named_locked(
        struct nbd_server *server, const char *name, size_t name_length)
{
        for (size_t i = 0; i < server->n_exports; i++) {
                struct export *export = server->exports[i];

                if (export->name_length == name_length &&
                        memcmp(export->name, name, name_length) == 0)
                        return export;
        }
        return NULL;
}

static struct export *find_default_locked(struct nbd_server *server)
{
        for (size_t i = 0; i < server->n_exports; i++)
                if (server->exports[i]->is_default)
                        return server->exports[i];
        return NULL;
}

/* What a client's name means. */
static struct export *find_locked(struct nbd_server *server, const char *name, size_t name_length)
{
        struct export *export = find_named_locked(server, name, name_length);

        if (!export && name_length == 0)
                export = find_default_locked(server);
        return export && !export->leaving ? export : NULL;
}

static int find_for_owner_locked(
        struct nbd_server *server, const char *name, struct export **ret, struct error *err)
{
        *ret = find_named_locked(server, name, strlen(name));
        if (!*ret || (*ret)->leaving)
                return fail(err, ENOENT, "there is no export named '%s'", name);
        return 0;
}

/* ---- snapshots since which changes are told ---- */

static void free_changed(struct changed *changed, size_t n)
{
        for (size_t i = 0; i < n; i++)
                free(changed[i].name);
        free(changed);
}

static bool is_snapshot_name(const char *name)
{
        size_t length = strlen(name);

        for (size_t i = 0; i < length; i++)
                if ((uint8_t)name[i] < 0x20 || name[i] == 0x7f)
                        return false;
        return length >= 1 && length <= NBD_CHANGED_NAME_MAX && utf8_is_valid(name, length);
}

static int find_layer(const struct chain *chain, const char *path, unsigned *ret, struct error *err)
{
        for (unsigned layer = 0; layer < chain_depth(chain); layer++) {
                if (strcmp(chain_layer_path(chain, layer), path) == 0) {
                        *ret = layer;
                        return 0;
                }
        }
        return fail(err, ENOENT, "'%s' is no layer of '%s'", path,
                chain_layer_path(chain, chain_depth(chain) - 1));
}

static int copy_changed(const struct chain *chain, const struct nbd_changed *from, size_t n,
        struct changed **ret, struct error *err)
{
        struct changed *copy = NULL;
        int r = 0;

        if (n > NBD_EXPORT_MAX_CHANGED)
                return fail(err, EINVAL,
                        "an export tells of the changes since %u snapshots at most",
                        NBD_EXPORT_MAX_CHANGED);
        if (n > 0 && !(copy = calloc(n, sizeof(*copy))))
                return fail(err, ENOMEM, "no memory for a list of snapshots");
        for (size_t i = 0; r == 0 && i < n; i++) {
                if (!is_snapshot_name(from[i].name))
                        r = fail(err, EINVAL, "a snapshot's name is UTF-8 of 1 to %u bytes",
                                NBD_CHANGED_NAME_MAX);
                else if (!(copy[i].name = strdup(from[i].name)))
                        r = fail(err, ENOMEM, "no memory for a list of snapshots");
                else
                        r = find_layer(chain, from[i].layer, &copy[i].layer, err);
        }
        if (r < 0) {
                free_changed(copy, n);
                return r;
        }
        *ret = copy;
        return 0;
}

/* ---- add ---- */

static struct volume *find_volume_locked(struct nbd_server *server, const struct chain *chain)
{
        for (size_t i = 0; i < server->n_volumes; i++)
                if (server->volumes[i]->chain == chain)
                        return server->volumes[i];
        return NULL;
}

/* The volume of a chain: made at its first export. NULL: no memory. */
static struct volume *need_volume_locked(struct nbd_server *server, struct chain *chain)
{
        struct volume *volume = find_volume_locked(server, chain);
        struct volume **volumes;

        if (volume)
                return volume;
        volumes = reallocarray(server->volumes, server->n_volumes + 1, sizeof(*volumes));
        if (!volumes)
                return NULL;
        server->volumes = volumes;
        volume = malloc(sizeof(*volume));
        if (!volume)
                return NULL;
        volume_init(volume, server, chain);
        volumes[server->n_volumes++] = volume;
        return volume;
}

static void free_export(struct export *export)
{
        if (!export)
                return;
        free_changed(export->changed, export->n_changed);
        free(export->name);
        free(export->description);
        free(export);
}
DEFINE_CLEANUP(struct export *, free_export)

static int check_options(const struct nbd_export_options *options, struct error *err)
{
        size_t length = strlen(options->name);

        if (length > NBD_EXPORT_NAME_MAX || !utf8_is_valid(options->name, length))
                return fail(err, EINVAL, "an export's name is UTF-8 of at most %u bytes",
                        NBD_EXPORT_NAME_MAX);
        if (options->description &&
                (strlen(options->description) > NBD_STRING_MAX ||
                        !utf8_is_valid(options->description, strlen(options->description))))
                return fail(err, EINVAL, "an export's description is UTF-8 of at most %u bytes",
                        NBD_STRING_MAX);
        return 0;
}

/* Everything but its volume and number. */
static int make_export(
        const struct nbd_export_options *options, struct export **ret, struct error *err)
{
        _cleanup_(free_exportp) struct export *export = calloc(1, sizeof(*export));
        int r = check_options(options, err);

        if (r < 0)
                return r;
        if (!export || !(export->name = strdup(options->name)) ||
                (options->description && !(export->description = strdup(options->description))))
                return fail(err, ENOMEM, "no memory for the export '%s'", options->name);
        r = copy_changed(
                options->chain, options->changed, options->n_changed, &export->changed, err);
        if (r < 0)
                return r;
        export->n_changed = options->n_changed;
        export->name_length = strlen(export->name);
        export->read_only = options->read_only || !chain_is_writable(options->chain);
        export->is_default = options->is_default;
        export->size = chain_size(options->chain);
        export->preferred_size = chain_preferred_size(options->chain);
        *ret = TAKE_PTR(export);
        return 0;
}

static int add_locked(
        struct nbd_server *server, struct export *export, struct chain *chain, struct error *err)
{
        struct export **exports;
        struct volume *volume;

        if (find_named_locked(server, export->name, export->name_length))
                return fail(err, EEXIST, "there is an export named '%s' already", export->name);
        if ((export->is_default || export->name_length == 0) && find_default_locked(server))
                return fail(err, EEXIST, "the empty name stands for another export already");
        if (export->is_default && find_named_locked(server, "", 0))
                return fail(err, EEXIST, "the empty name stands for another export already");
        if (server->n_exports == NBD_SERVER_MAX_EXPORTS)
                return fail(err, ENOSPC, "more than %u exports", NBD_SERVER_MAX_EXPORTS);
        exports = reallocarray(server->exports, server->n_exports + 1, sizeof(struct export *));
        if (exports)
                server->exports = exports;
        volume = exports ? need_volume_locked(server, chain) : NULL;
        if (!volume)
                return fail(err, ENOMEM, "no memory for the export '%s'", export->name);
        volume->n_exports++;
        export->volume = volume;
        export->number = ++server->next_export;
        exports[server->n_exports++] = export;
        return 0;
}

int nbd_server_add_export(
        struct nbd_server *server, const struct nbd_export_options *options, struct error *err)
{
        _cleanup_(free_exportp) struct export *export = NULL;
        int r = make_export(options, &export, err);

        if (r < 0)
                return r;
        MUTEX_GUARD(&server->lock);
        r = add_locked(server, export, options->chain, err);
        if (r == 0)
                TAKE_PTR(export);
        return r;
}

/* ---- remove ---- */

static bool is_unused(const void *arg)
{
        const struct export *export = arg;

        return export->n_clients == 0;
}

/* Nobody has it, and nobody gets it. Answers its volume if that is not used any more. */
static struct volume *take_out_locked(struct nbd_server *server, struct export *export)
{
        struct volume *volume = export->volume;
        size_t i = 0;

        while (server->exports[i] != export)
                i++;
        server->n_exports--;
        memmove(&server->exports[i], &server->exports[i + 1],
                (server->n_exports - i) * sizeof(server->exports[0]));

        if (--volume->n_exports > 0)
                return NULL;
        for (i = 0; server->volumes[i] != volume; i++)
                ;
        server->volumes[i] = server->volumes[--server->n_volumes];
        return volume;
}

/* One that negotiated elsewhere for it is here, and its thread has not come to it yet. It either gets it, or
 * leaves at once. */
static bool is_awaited_locked(const struct nbd_server *server, const struct export *export)
{
        for (const struct client *c = server->clients; c; c = c->next)
                if (c->handoff && c->state == NBD_CLIENT_GREETING && !c->evicted &&
                        strcmp((const char *)c->handoff->export_name, export->name) == 0)
                        return true;
        return false;
}

/* Waits for those who have it. */
static int empty_locked(struct nbd_server *server, struct export *export, bool force,
        unsigned timeout_ms, struct error *err)
{
        if (force)
                server_shut_clients_locked(server, export, false);
        if (server_wait_fewer_locked(server, is_unused, export, timeout_ms))
                return 0;
        if (!force)
                return fail(err, EBUSY, "%u %s the export '%s'", export->n_clients,
                        export->n_clients == 1 ? "client uses" : "clients use", export->name);
        server_shut_clients_locked(server, export, true);
        /* What still runs is the disk's, and has no deadline. */
        while (!is_unused(export))
                pthread_cond_wait(&server->fewer, &server->lock);
        return 0;
}

int nbd_server_remove_export(struct nbd_server *server, const char *name, bool force,
        unsigned timeout_ms, struct error *err)
{
        struct volume *unused;
        struct export *export;
        int r;

        pthread_mutex_lock(&server->lock);
        r = find_for_owner_locked(server, name, &export, err);
        /* Whoever handed it over looked that the export is there, and let go of it. */
        if (r == 0 && !force && timeout_ms == 0 && is_awaited_locked(server, export))
                r = fail(err, EBUSY, "a client is on its way to the export '%s'", export->name);
        if (r == 0) {
                export->leaving = true;
                r = empty_locked(server, export, force, timeout_ms, err);
                export->leaving = r == 0;
        }
        unused = r == 0 ? take_out_locked(server, export) : NULL;
        pthread_mutex_unlock(&server->lock);
        if (r < 0)
                return r;
        free_export(export);
        if (unused) {
                volume_done(unused);
                free(unused);
        }
        return 0;
}

void server_exports_done(struct nbd_server *server)
{
        for (size_t i = 0; i < server->n_exports; i++)
                free_export(server->exports[i]);
        for (size_t i = 0; i < server->n_volumes; i++) {
                volume_done(server->volumes[i]);
                free(server->volumes[i]);
        }
        free(server->exports);
        free(server->volumes);
}

/* ---- change and look ---- */

int nbd_server_hide_export(
        struct nbd_server *server, const char *name, bool hidden, struct error *err)
{
        struct export *export;
        int r;
        MUTEX_GUARD(&server->lock);

        r = find_for_owner_locked(server, name, &export, err);
        if (r == 0)
                export->hidden = hidden;
        return r;
}

int nbd_server_set_changed(struct nbd_server *server, const char *name,
        const struct nbd_changed *changed, size_t n_changed, struct error *err)
{
        struct changed *copy = NULL;
        struct export *export;
        int r;
        MUTEX_GUARD(&server->lock);

        r = find_for_owner_locked(server, name, &export, err);
        if (r == 0)
                r = copy_changed(export->volume->chain, changed, n_changed, &copy, err);
        if (r < 0)
                return r;
        free_changed(export->changed, export->n_changed);
        export->changed = copy;
        export->n_changed = n_changed;
        return 0;
}

/* Nothing that a snapshot froze is among the layers that leave for the one below them, but the topmost
 * one, whose content that one has then; or among those that leave for the one above. */
static unsigned layer_after(unsigned layer, unsigned first, unsigned last)
{
        if (layer > last)
                return layer - (last - first + 1);
        return layer >= first && first > 0 ? first - 1 : layer;
}

static void merge_layers_of_client(struct client *client, unsigned first, unsigned last)
{
        for (unsigned i = 0; i < NBD_CHANGED_MAX; i++) {
                unsigned *layer = &client->agreement.changed_layers[i];

                __atomic_store_n(layer, layer_after(*layer, first, last), __ATOMIC_RELEASE);
        }
}

void nbd_server_merge_layers(
        struct nbd_server *server, const struct chain *chain, unsigned first, unsigned last)
{
        MUTEX_GUARD(&server->lock);

        for (size_t i = 0; i < server->n_exports; i++) {
                struct export *export = server->exports[i];

                if (export->volume->chain != chain)
                        continue;
                for (size_t k = 0; k < export->n_changed; k++)
                        export->changed[k].layer =
                                layer_after(export->changed[k].layer, first, last);
        }
        for (struct client *client = server->clients; client; client = client->next)
                if (client->agreement.export && client->agreement.export->volume->chain == chain)
                        merge_layers_of_client(client, first, last);
}

int nbd_server_export_clients(struct nbd_server *server, const char *name)
{
        struct export *export;
        int r;
        MUTEX_GUARD(&server->lock);

        r = find_for_owner_locked(server, name, &export, NULL);
        return r < 0 ? r : (int)export->n_clients;
}

static void add_stats(struct nbd_export_stats *sum, const struct nbd_export_stats *stats)
{
        for (unsigned i = 0; i < NBD_N_KINDS; i++) {
                const struct nbd_kind_stats *from = &stats->kinds[i];
                struct nbd_kind_stats *to = &sum->kinds[i];

                to->requests += from->requests;
                to->errors += from->errors;
                to->bytes += from->bytes;
                to->latency_us += from->latency_us;
                for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++)
                        to->latency[b] += from->latency[b];
        }
}

void nbd_server_chain_stats_get(
        struct nbd_server *server, const struct chain *chain, struct nbd_export_stats *ret)
{
        MUTEX_GUARD(&server->lock);

        *ret = (struct nbd_export_stats){0};
        for (size_t i = 0; i < server->n_exports; i++) {
                struct nbd_export_stats one;

                if (server->exports[i]->volume->chain != chain)
                        continue;
                stats_get(&server->exports[i]->stats, &one);
                add_stats(ret, &one);
        }
}

int nbd_server_export_stats_get(
        struct nbd_server *server, const char *name, struct nbd_export_stats *ret)
{
        struct export *export;
        int r;
        MUTEX_GUARD(&server->lock);

        r = find_for_owner_locked(server, name, &export, NULL);
        if (r == 0)
                stats_get(&export->stats, ret);
        return r;
}

/* ---- for those who negotiate ---- */

void nbd_export_facts_done(struct nbd_export_facts *facts)
{
        free(facts->name);
        free(facts->description);
        for (size_t i = 0; i < facts->n_changed; i++)
                free(facts->changed[i]);
        free(facts->changed);
        *facts = (struct nbd_export_facts){0};
}

void nbd_export_list_done(struct nbd_export_list *list)
{
        for (size_t i = 0; i < list->n_entries; i++) {
                free(list->entries[i].name);
                free(list->entries[i].description);
        }
        free(list->entries);
        *list = (struct nbd_export_list){0};
}

static int copy_facts_locked(const struct export *export, struct nbd_export_facts *ret)
{
        ret->size = export->size;
        ret->preferred_size = export->preferred_size;
        ret->read_only = export->read_only;
        ret->name = strdup(export->name);
        if (!ret->name)
                return -ENOMEM;
        if (export->description && !(ret->description = strdup(export->description)))
                return -ENOMEM;
        if (export->n_changed == 0)
                return 0;
        ret->changed = calloc(export->n_changed, sizeof(*ret->changed));
        if (!ret->changed)
                return -ENOMEM;
        ret->n_changed = export->n_changed;
        for (size_t i = 0; i < export->n_changed; i++)
                if (!(ret->changed[i] = strdup(export->changed[i].name)))
                        return -ENOMEM;
        return 0;
}

int server_export_facts(struct nbd_server *server, const char *name, size_t name_length,
        struct nbd_export_facts *ret)
{
        struct nbd_export_facts facts = {0};
        const struct export *export;
        int r;
        MUTEX_GUARD(&server->lock);

        export = find_locked(server, name, name_length);
        if (!export || export->hidden)
                return export ? -EAGAIN : -ENOENT;
        r = copy_facts_locked(export, &facts);
        if (r < 0)
                nbd_export_facts_done(&facts);
        else
                *ret = facts;
        return r;
}

/* The place of the oldest export younger than number @after. */
static size_t place_after_locked(const struct nbd_server *server, uint64_t after)
{
        size_t low = 0, high = server->n_exports;

        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if (server->exports[middle]->number <= after)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low;
}

int server_export_next(struct nbd_server *server, uint64_t after, uint64_t *ret_number,
        char **ret_name, char **ret_description)
{
        MUTEX_GUARD(&server->lock);

        for (size_t i = place_after_locked(server, after); i < server->n_exports; i++) {
                const struct export *export = server->exports[i];
                _cleanup_free_ char *name = NULL;

                if (export->hidden || export->leaving)
                        continue;
                name = strdup(export->name);
                *ret_description = export->description ? strdup(export->description) : NULL;
                if (!name || (export->description && !*ret_description))
                        return -ENOMEM;
                *ret_name = TAKE_PTR(name);
                *ret_number = export->number;
                return 0;
        }
        return -ENOENT;
}

/* The layer that a snapshot of this name froze. */
static bool find_changed(const struct export *export, const char *name, unsigned *ret)
{
        for (size_t i = 0; i < export->n_changed; i++) {
                if (strcmp(export->changed[i].name, name) == 0) {
                        *ret = export->changed[i].layer;
                        return true;
                }
        }
        return false;
}

int server_agree_locked(
        struct nbd_server *server, const struct choice *choice, struct agreement *ret)
{
        struct agreement agreement = {
                .export = find_locked(server, choice->export_name, choice->export_name_length),
                .structured = choice->structured,
                .contexts = choice->contexts,
        };

        if (!agreement.export)
                return -ENOENT;
        if (agreement.export->hidden)
                return -EAGAIN;
        for (unsigned i = 0; i < choice->n_changed; i++) {
                if (!find_changed(agreement.export, (const char *)choice->changed[i],
                            &agreement.changed_layers[i]))
                        return -ESTALE;
                agreement.contexts |= 1u << CONTEXT_CHANGED(i);
        }
        *ret = agreement;
        return 0;
}
