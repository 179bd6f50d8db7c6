/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot's part in the worker (E10): the broker has made and named the children; the switch is
 * ours; the commit is the catalog's, and we are told of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/uuid.h"
#include "chain/push.h"
#include "vhdd/worker/internal.h"

struct one {
        struct worker_chain *chain;
        char *frozen; /* the path of the leaf before */
};

struct taking {
        struct chain_switch *disks;
        struct one *ones;
        unsigned n;
};

static void taking_done(struct taking *taking)
{
        for (unsigned i = 0; i < taking->n; i++) {
                chain_child_close(taking->disks[i].child);
                free(taking->ones[i].frozen);
        }
        free(taking->disks);
        free(taking->ones);
}

static const char *leaf_path(const struct chain *chain)
{
        return chain_layer_path(chain, chain_depth(chain) - 1);
}

static int add_disk(
        struct worker *worker, struct taking *taking, const json_t *disk, struct error *err)
{
        const char *name = param_text(disk, "chain", err);
        const char *path = param_text(disk, "path", err);
        const char *id = param_text_or(disk, "disk", name);
        struct chain_switch *to = &taking->disks[taking->n];
        struct one *one = &taking->ones[taking->n];
        int r;

        if (!name || !path)
                return -EINVAL;
        r = find_chain(worker, name, &one->chain, err);
        if (r < 0)
                return r;
        if (!uuid_parse(id, to->id))
                return fail(err, EINVAL, "'%.64s' is no disk's id", id);
        to->chain = one->chain->chain;
        r = chain_child_open(to->chain, path, &to->child, err);
        if (r < 0)
                return r;
        one->frozen = strdup(leaf_path(to->chain));
        taking->n++;
        return one->frozen ? 0 : fail(err, ENOMEM, "no memory for a snapshot");
}

static int collect(
        struct worker *worker, const json_t *list, struct taking *taking, struct error *err)
{
        size_t n = json_array_size(list);
        int r = 0;

        if (n == 0 || n > SWITCH_MAX_DISKS)
                return fail(err, EINVAL, "a snapshot of %zu disks", n);
        taking->disks = calloc(n, sizeof(*taking->disks));
        taking->ones = calloc(n, sizeof(*taking->ones));
        if (!taking->disks || !taking->ones)
                return fail(err, ENOMEM, "no memory for a snapshot of %zu disks", n);
        for (size_t i = 0; r == 0 && i < n; i++)
                r = add_disk(worker, taking, json_array_get(list, i), err);
        return r;
}

static int have_region(struct worker *worker, const char *beside, bool create, struct error *err)
{
        if (worker->switch_region)
                return 0;
        return switch_open(
                proxy_fs_get(worker->fs), worker->vm, beside, create, &worker->switch_region, err);
}

int verb_snapshot_switch(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *snapshot = param_text(params, "snapshot", err);
        _cleanup_(taking_done) struct taking taking = {0};
        uint64_t stall_ns = 0;
        uint8_t id[16];
        json_t *list;
        int r;

        if (!snapshot)
                return -EINVAL;
        if (!uuid_parse(snapshot, id))
                return fail(err, EINVAL, "'%.64s' is no snapshot's id", snapshot);
        if (worker->switched[0])
                return fail(err, EBUSY, "snapshot %s is not committed yet", worker->switched);
        r = collect(worker, json_object_get(params, "chains"), &taking, err);
        if (r == 0)
                r = have_region(worker, leaf_path(taking.disks[0].chain), true, err);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < taking.n; i++)
                merges_hold(worker, taking.ones[i].chain);
        r = chain_switch(taking.disks, taking.n, worker->switch_region, id, &stall_ns, err);
        for (unsigned i = 0; r < 0 && i < taking.n; i++)
                merges_let(worker, taking.ones[i].chain);
        if (r < 0)
                return r;
        snprintf(worker->switched, sizeof(worker->switched), "%s", snapshot);
        list = json_array();
        for (unsigned i = 0; i < taking.n; i++) {
                taking.disks[i].child = NULL; /* the chain's now */
                taking.ones[i].chain->uncommitted = true;
                json_array_append_new(list,
                        json_pack("{s:s, s:s}", "chain", taking.ones[i].chain->name, "frozen",
                                taking.ones[i].frozen));
        }
        *ret = json_pack("{s:I, s:o}", "stall-us", (json_int_t)(stall_ns / 1000), "chains", list);
        return 0;
}

int verb_snapshot_flush(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        int result = 0;

        /* All of them: it is there for every disk, whatever became of one's flush. */
        for (struct worker_chain *chain = worker->chains; chain; chain = chain->next) {
                struct error why = ERROR_INIT;
                int r;

                if (chain_n_frozen(chain->chain) == 0)
                        continue;
                r = chain_flush_frozen(chain->chain, &why);
                if (r == 0 || result < 0)
                        continue;
                result = fail_prefix(&why, r, "disk %s", chain->name);
                if (err)
                        *err = why;
        }
        return result;
}

int verb_snapshot_commit(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *snapshot = param_text(params, "snapshot", err);

        if (!snapshot)
                return -EINVAL;
        if (!worker->switched[0])
                return 0; /* told twice */
        if (strcasecmp(worker->switched, snapshot) != 0)
                return fail(err, ESTALE, "snapshot %s is switched, and not %.64s", worker->switched,
                        snapshot);
        for (struct worker_chain *chain = worker->chains; chain; chain = chain->next) {
                if (!chain->uncommitted)
                        continue;
                chain_committed(chain->chain);
                chain->uncommitted = false;
                merges_let(worker, chain);
        }
        if (worker->switch_region)
                switch_clear(worker->switch_region);
        worker->switched[0] = '\0';
        return 0;
}

/* 1: *ret is a record. */
static int read_record(
        struct worker *worker, const char *beside, struct switch_record *ret, struct error *err)
{
        struct error local = ERROR_INIT;
        int r = beside || worker->switch_region ? have_region(worker, beside, false, &local)
                                                : -ENOENT;

        if (r == 0)
                r = switch_read(worker->switch_region, ret);
        if (r == -ENOENT)
                return 0;
        if (r < 0 && err)
                *err = local;
        return r < 0 ? r : 1;
}

int join_switch(struct worker *worker, struct worker_chain *chain, struct error *err)
{
        _cleanup_free_ struct switch_record *record = malloc(sizeof(*record));
        const struct chain *c = chain->chain;
        struct file_stat st;
        int r;

        if (!record)
                return fail(err, ENOMEM, "no memory to open a chain");
        r = read_record(worker, leaf_path(c), record, err);
        if (r <= 0)
                return r;
        r = file_stat_get(chain_layer(c, chain_depth(c) - 1)->file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", leaf_path(c));
        if (!switch_find_leaf(record, &st))
                return 0;
        r = chain_uncommitted(chain->chain);
        if (r < 0)
                return fail_os(err, -r, "cannot hold the flushes of '%s'", leaf_path(c));
        chain->uncommitted = true;
        uuid_format(record->snapshot, worker->switched);
        return 0;
}

void forget_switch(struct worker *worker)
{
        worker->switch_region = switch_close(worker->switch_region, !worker->switched[0]);
}

static json_t *identity(const struct switch_image *image)
{
        return json_pack("{s:I, s:I}", "device", (json_int_t)image->device, "inode",
                (json_int_t)image->inode);
}

int verb_snapshot_switched(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err)
{
        const char *beside = param_text_or(params, "beside", NULL);
        _cleanup_free_ struct switch_record *record = malloc(sizeof(*record));
        char text[UUID_TEXT_SIZE];
        json_t *disks;
        int r;

        if (!record)
                return fail(err, ENOMEM, "no memory for a switch record");
        r = read_record(worker, beside, record, err);
        if (r < 0)
                return r;
        disks = json_array();
        for (unsigned i = 0; r == 1 && i < record->n_disks; i++)
                json_array_append_new(disks,
                        json_pack("{s:s, s:o, s:o}", "disk", uuid_format(record->disks[i].id, text),
                                "frozen", identity(&record->disks[i].frozen), "leaf",
                                identity(&record->disks[i].leaf)));
        *ret = json_pack("{s:o, s:o}", "snapshot",
                r == 1 ? json_string(uuid_format(record->snapshot, text)) : json_null(), "disks",
                disks);
        return 0;
}
