/* SPDX-License-Identifier: Apache-2.0 */
/* resizes.c - another size for a live disk's leaf. An open image's size never changes: so the chain is
 * closed cleanly, the file gets its size as a file that nobody has open does (merge/resize.h), and the
 * chain is opened again under its name, also when it failed. Who dies on the way leaves the file with
 * the old size or the new one, and the next worker opens it. */
#include <string.h>

#include "merge/resize.h"
#include "vhdd/worker/internal.h"

static int read_params(const json_t *params, struct resize_params *ret, struct error *err)
{
        *ret = (struct resize_params){
                .size = param_number(params, "size", 0),
                .shrink = param_bool(params, "shrink"),
                .force = param_bool(params, "force"),
        };
        return ret->size ? 0 : fail(err, EINVAL, "the question has no 'size'");
}

static int find_for_resize(
        struct worker *worker, const char *name, struct worker_chain **ret, struct error *err)
{
        int r = find_chain(worker, name, ret, err);

        if (r < 0)
                return r;
        if (!(*ret)->writable)
                return fail(err, EROFS, "the chain '%s' is read-only", name);
        if ((*ret)->uncommitted)
                return fail(err, EBUSY, "a snapshot of the chain '%s' is not committed", name);
        return chain_is_exported(worker, *ret)
                ? fail(err, EBUSY, "the chain '%s' is exported", name)
                : 0;
}

/* The images below the leaf, by their paths: the file that is changed is looked at with them. */
static int resize_file(struct worker *worker, const json_t *params,
        const struct resize_params *wanted, struct resize_report *ret, struct error *err)
{
        const json_t *paths = json_object_get(params, "paths");
        const char *parents[CHAIN_MAX_DEPTH];
        struct chain_options options = {
                .fs = proxy_fs_get(worker->fs),
                .format = param_text_or(params, "format", NULL),
                .parents = parents,
        };
        size_t n = json_array_size(paths);

        for (size_t i = 1; i < n; i++)
                parents[options.n_parents++] = json_string_value(json_array_get(paths, i));
        return resize(json_string_value(json_array_get(paths, 0)), &options, wanted, ret, err);
}

static int check_paths(const json_t *params, struct error *err)
{
        const json_t *paths = json_object_get(params, "paths"), *path;
        size_t i, n = json_array_size(paths);

        if (n == 0 || n > CHAIN_MAX_DEPTH)
                return fail(err, EINVAL, "'paths' names %zu images", n);
        json_array_foreach((json_t *)paths, i, path)
        {
                if (!json_is_string(path))
                        return fail(err, EINVAL, "'paths' holds something that is no path");
        }
        return 0;
}

int verb_chain_resize(struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *name = param_text(params, "chain", err);
        struct resize_report report = {0};
        struct error why = ERROR_INIT;
        struct worker_chain *chain;
        struct resize_params wanted;
        json_t *opened = NULL;
        int r, r_open;

        if (!name)
                return -EINVAL;
        r = read_params(params, &wanted, err);
        if (r == 0)
                r = check_paths(params, err);
        if (r == 0)
                r = find_for_resize(worker, name, &chain, err);
        if (r < 0)
                return r;
        r = chain_end(worker, chain, err);
        if (r == 0)
                r = resize_file(worker, params, &wanted, &report, err);
        r_open = verb_chain_open(worker, params, &opened, r == 0 ? err : &why);
        if (r == 0)
                r = r_open;
        if (r < 0) {
                json_decref(opened);
                return r;
        }
        json_object_set_new(opened, "size-before", json_integer((json_int_t)report.size_before));
        *ret = opened;
        return 0;
}
