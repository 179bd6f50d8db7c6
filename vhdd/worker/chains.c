/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/uuid.h"
#include "chain/push.h"
#include "vhdd/worker/internal.h"
#include "vhdd/worker/layers.h"

#define MAX_EXTENTS 4096u /* of one answer of `changed` */

int find_chain(
        struct worker *worker, const char *name, struct worker_chain **ret, struct error *err)
{
        for (struct worker_chain *chain = worker->chains; name && chain; chain = chain->next) {
                if (strcmp(chain->name, name) != 0)
                        continue;
                *ret = chain;
                return 0;
        }
        return fail(err, ENOENT, "the worker has no chain '%s'", name ? name : "");
}

/* Leaf first. */
static json_t *paths_to_json(const struct chain *chain)
{
        json_t *paths = json_array();

        for (unsigned i = chain_depth(chain); i-- > 0;)
                json_array_append_new(paths, json_string(chain_layer_path(chain, i)));
        return paths;
}

json_t *chains_to_json(const struct worker *worker)
{
        json_t *list = json_array();

        for (const struct worker_chain *chain = worker->chains; chain; chain = chain->next)
                json_array_append_new(list,
                        json_pack("{s:s, s:o, s:b, s:I, s:i, s:s, s:i}", "chain", chain->name,
                                "paths", paths_to_json(chain->chain), "writable", chain->writable,
                                "size", (json_int_t)chain_size(chain->chain), "block-size",
                                (int)chain_preferred_size(chain->chain), "root-type",
                                root_type_text(chain->chain), "frozen",
                                (int)chain_n_frozen(chain->chain)));
        return list;
}

/* --- opening --- */

struct paths {
        const char *leaf;
        const char **parents;
        size_t n_parents;
};

static int get_paths(const json_t *params, const char *key, struct paths *ret, struct error *err)
{
        const json_t *list = json_object_get(params, key);
        size_t n = json_array_size(list);
        const char **texts;

        if (n == 0 || n > CHAIN_MAX_DEPTH)
                return fail(err, EINVAL, "'%s' names %zu images", key, n);
        texts = calloc(n, sizeof(*texts));
        if (!texts)
                return fail(err, ENOMEM, "no memory for %zu paths", n);
        for (size_t i = 0; i < n; i++) {
                texts[i] = json_string_value(json_array_get(list, i));
                if (!texts[i]) {
                        free(texts);
                        return fail(err, EINVAL, "'%s' holds something that is no path", key);
                }
        }
        ret->leaf = texts[0];
        ret->parents = texts + 1;
        ret->n_parents = n - 1;
        return 0;
}

static void paths_done(struct paths *paths)
{
        if (paths->parents)
                free(paths->parents - 1);
}

struct warnings {
        struct worker *worker;
        char first[ERROR_MESSAGE_MAX];
};

static void on_warning(void *opaque, const char *sentence)
{
        struct warnings *warnings = opaque;

        worker_log(warnings->worker, LOG_WARNING, sentence);
        if (!warnings->first[0])
                snprintf(warnings->first, sizeof(warnings->first), "%s", sentence);
}

static int open_chain(struct worker *worker, const struct paths *paths, const json_t *params,
        bool writable, struct warnings *warnings, struct chain **ret, struct error *err)
{
        struct chain_options options = {
                .fs = proxy_fs_get(worker->fs),
                .family = worker->family,
                .writable = writable,
                .direct = param_bool(params, "direct"),
                .format = param_text_or(params, "format", NULL),
                .parents = paths->parents,
                .n_parents = paths->n_parents,
                .warn = on_warning,
                .opaque = warnings,
        };
        int r;

        *warnings = (struct warnings){.worker = worker};
        r = chain_open(paths->leaf, &options, ret, err);
        if (r < 0)
                return r;
        if (chain_depth(*ret) == paths->n_parents + 1)
                return 0;
        fail(err, ESTALE, "the chain of '%s' has %u images, and %zu were recorded", paths->leaf,
                chain_depth(*ret), paths->n_parents + 1);
        chain_abandon(*ret);
        return -ESTALE;
}

static int add_chain(struct worker *worker, const char *name, struct chain *chain,
        struct worker_chain **ret, struct error *err)
{
        struct worker_chain *new = calloc(1, sizeof(*new));

        if (new)
                new->name = strdup(name);
        if (!new || !new->name) {
                free(new);
                return fail(err, ENOMEM, "no memory for the chain '%s'", name);
        }
        new->chain = chain;
        new->writable = chain_is_writable(chain);
        new->next = worker->chains;
        worker->chains = new;
        worker->used = true;
        *ret = new;
        return 0;
}

static void drop_chain(struct worker *worker, struct worker_chain *chain)
{
        for (struct worker_chain **at = &worker->chains; *at; at = &(*at)->next) {
                if (*at != chain)
                        continue;
                *at = chain->next;
                break;
        }
        free(chain->name);
        free(chain);
}

/* The catalog's word has not come and will not: what a flush promised would be lost. */
void release_flushes(struct worker_chain *chain)
{
        if (chain->uncommitted)
                chain_commits_abort(chain->chain);
        chain->uncommitted = false;
}

int chain_end(struct worker *worker, struct worker_chain *chain, struct error *err)
{
        int r;

        release_flushes(chain);
        merges_stop(worker, chain);
        seal_stop(worker, chain);
        r = chain_close(chain->chain, err);
        drop_chain(worker, chain);
        return r;
}

int verb_chain_open(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "chain", err);
        _cleanup_(paths_done) struct paths paths = {0};
        struct worker_chain *known = NULL;
        struct warnings warnings;
        struct chain *chain;
        int r;

        if (!name)
                return -EINVAL;
        if (find_chain(worker, name, &known, NULL) == 0)
                return fail(err, EEXIST, "the chain '%s' is open already", name);
        r = get_paths(params, "paths", &paths, err);
        if (r == 0)
                r = open_chain(worker, &paths, params, param_bool(params, "writable"), &warnings,
                        &chain, err);
        if (r < 0)
                return r;
        r = add_chain(worker, name, chain, &known, err);
        if (r < 0) {
                chain_close(chain, NULL);
                return r;
        }
        if (known->writable)
                r = join_switch(worker, known, err);
        if (r < 0) {
                chain_end(worker, known, NULL);
                return r;
        }
        *ret = json_pack("{s:I, s:i, s:s, s:b, s:o}", "size", (json_int_t)chain_size(chain),
                "block-size", (int)chain_preferred_size(chain), "root-type", root_type_text(chain),
                "writable", known->writable, "layers", layers_to_json(chain));
        if (warnings.first[0])
                json_object_set_new(*ret, "warning", json_string(warnings.first));
        return 0;
}

int verb_chain_close(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "chain", err);
        struct worker_chain *chain;

        if (!name)
                return -EINVAL;
        if (find_chain(worker, name, &chain, err) < 0)
                return -ENOENT;
        if (chain_is_exported(worker, chain))
                return fail(err, EBUSY, "the chain '%s' is exported", name);
        return chain_end(worker, chain, err);
}

int close_all(struct worker *worker, struct error *err)
{
        int result = 0;

        while (worker->chains) {
                int r = chain_end(worker, worker->chains, result == 0 ? err : NULL);

                if (result == 0)
                        result = r;
        }
        return result;
}

/* --- new images --- */

static int get_uuid(const json_t *params, uint8_t ret[16], struct error *err)
{
        const char *text = param_text_or(params, "uuid", NULL);

        memset(ret, 0, 16);
        if (text && !uuid_parse(text, ret))
                return fail(err, EINVAL, "'%.64s' is no uuid", text);
        return 0;
}

static int create_child(struct worker *worker, struct chain *chain, const json_t *params,
        json_t **ret, struct error *err)
{
        const char *path = param_text(params, "path", err);
        char id_text[UUID_TEXT_SIZE];
        uint8_t id[16];
        int r;

        if (!path)
                return -EINVAL;
        r = get_uuid(params, id, err);
        if (r < 0)
                return r;
        if (uuid_is_zero(id))
                uuid_random(id);
        r = chain_child_create(chain, path, id, err);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:I}", "uuid", uuid_format(id, id_text), "size",
                (json_int_t)chain_size(chain));
        return 0;
}

int verb_chain_create_child(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "chain", err);
        struct worker_chain *chain;

        if (!name)
                return -EINVAL;
        if (find_chain(worker, name, &chain, err) < 0)
                return -ENOENT;
        return create_child(worker, chain->chain, params, ret, err);
}

int verb_image_create_child(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_(paths_done) struct paths paths = {0};
        struct warnings warnings;
        struct chain *chain;
        int r = get_paths(params, "parents", &paths, err);

        if (r == 0)
                r = open_chain(worker, &paths, params, false, &warnings, &chain, err);
        if (r < 0)
                return r;
        r = create_child(worker, chain, params, ret, err);
        chain_close(chain, NULL);
        return r;
}

int verb_image_settle(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *path = param_text(params, "path", err);

        if (!path)
                return -EINVAL;
        return chain_settle_image(
                proxy_fs_get(worker->fs), path, param_text_or(params, "format", NULL), err);
}

int verb_image_forget(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *path = param_text(params, "path", err);

        if (!path)
                return -EINVAL;
        return chain_forget_image(proxy_fs_get(worker->fs), path, err);
}

/* --- what changed --- */

/* How many layers, from the leaf down, lie above the image @path. */
static int layers_above(
        const struct chain *chain, const char *path, unsigned *ret, struct error *err)
{
        unsigned depth = chain_depth(chain);

        *ret = depth;
        if (!path)
                return 0;
        for (unsigned i = 0; i < depth; i++) {
                if (strcmp(chain_layer_path(chain, i), path) != 0)
                        continue;
                *ret = depth - 1 - i;
                return 0;
        }
        return fail(err, ENOENT, "'%s' is no layer of this chain", path);
}

static void add_extent(json_t *list, uint64_t start, uint64_t length)
{
        size_t n = json_array_size(list);
        json_t *last = n ? json_array_get(list, n - 1) : NULL;

        if (last &&
                (uint64_t)json_integer_value(json_array_get(last, 0)) +
                                (uint64_t)json_integer_value(json_array_get(last, 1)) ==
                        start) {
                json_array_set_new(last, 1,
                        json_integer(
                                json_integer_value(json_array_get(last, 1)) + (json_int_t)length));
                return;
        }
        json_array_append_new(list, json_pack("[I, I]", (json_int_t)start, (json_int_t)length));
}

int verb_changed(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "chain", err);
        uint64_t offset = param_number(params, "offset", 0), size;
        uint64_t limit = param_number(params, "limit", MAX_EXTENTS);
        struct worker_chain *chain;
        unsigned above = 0;
        json_t *list;
        int r;

        if (!name)
                return -EINVAL;
        r = find_chain(worker, name, &chain, err);
        if (r == 0)
                r = layers_above(
                        chain->chain, param_text_or(params, "from-layer", NULL), &above, err);
        if (r < 0)
                return r;
        size = chain_size(chain->chain);
        limit = limit == 0 || limit > MAX_EXTENTS ? MAX_EXTENTS : limit;
        list = json_array();
        while (offset < size && json_array_size(list) <= limit) {
                struct chain_extent extent;

                r = chain_status(chain->chain, offset, size - offset, 0, &extent);
                if (r < 0) {
                        json_decref(list);
                        return fail_os(err, -r, "cannot tell what '%s' holds at %llu", name,
                                (unsigned long long)offset);
                }
                if (extent.kind != EXTENT_ABSENT && extent.depth < above) {
                        if (json_array_size(list) == limit)
                                break;
                        add_extent(list, offset, extent.length);
                }
                offset += extent.length;
        }
        *ret = json_pack("{s:o, s:o}", "extents", list, "next",
                offset < size ? json_integer((json_int_t)offset) : json_null());
        return 0;
}
