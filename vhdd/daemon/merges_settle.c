/* SPDX-License-Identifier: Apache-2.0 */
/* Of a merge that was told to end, and perhaps did not: what its files say, and the catalog after them. */
#include <stdlib.h>
#include <string.h>

#include "base/uuid.h"
#include "vhdd/daemon/merges_commit.h"
#include "vhdd/daemon/merges_internal.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/resolver.h"
#include "vhdd/daemon/worker_link.h"

#define STOP_MS (5 * 60000u)

void merges_drop_in_worker(struct vm *vm, int64_t job)
{
        struct error err = ERROR_INIT;

        merging_forget(vm, job, NULL);
        if (vm->link &&
                worker_call(vm, "merge.free", json_pack("{s:I}", "job", (json_int_t)job), STOP_MS,
                        NULL, &err) < 0)
                broker_log_error(vm->broker, vm->id, &err);
}

/* Does @witness stand on none of the images that go? Its layers are added to @layers. */
static int ask_witness(struct vm *vm, const char *witness, const json_t *images, json_t *to,
        bool *ret_without, struct error *err)
{
        struct resolved_layer *layers = NULL;
        size_t n = 0;
        int r = resolve_chain(vm->broker, witness, "vhd", vm->broker->options.image_roots,
                vm->broker->options.n_image_roots, &layers, &n, err);

        *ret_without = r == 0;
        for (size_t i = 0; r == 0 && i < n; i++) {
                char text[UUID_TEXT_SIZE];

                if (json_has_text(images, layers[i].path))
                        *ret_without = false;
                json_array_append_new(to,
                        json_pack("{s:s, s:s}", "path", layers[i].path, "uuid",
                                uuid_format(layers[i].uuid, text)));
        }
        resolved_layers_free(layers, n);
        return r;
}

struct files_say {
        bool finished;
        json_t *layers; /* of the chains that were looked at */
        json_t *moved;  /* children that stand on what stays */
};

static void files_say_done(struct files_say *said)
{
        json_decref(said->layers);
        json_decref(said->moved);
        *said = (struct files_say){0};
}

static bool is_for_now(int r)
{
        return r == -ENOMEM || r == -EMFILE || r == -ENFILE || r == -EHOSTDOWN || r == -ETIMEDOUT;
}

/* They change one after the other. */
static int ask_children(struct vm *vm, const char *top, const json_t *images, struct files_say *ret,
        struct error *err)
{
        struct image_row *children = NULL;
        size_t n = 0;
        int r = catalog_image_children(vm->broker->catalog, top, &children, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                bool without = false;

                r = ask_witness(vm, children[i].path, images, ret->layers, &without, err);
                if (r < 0 && !is_for_now(r)) { /* what is wrong with it the merge will say */
                        error_clear(err);
                        r = 0;
                        continue;
                }
                if (r == 0 && without &&
                        json_array_append_new(ret->moved, json_string(children[i].path)) < 0)
                        r = fail(err, ENOMEM, "no memory for a list of images");
        }
        ret->finished = r == 0 && n > 0 && json_array_size(ret->moved) == n;
        image_rows_free(children, n);
        return r;
}

/* What the files say of a merge that the worker was told to finish, and nobody knows whether it did: who
 * stands on what goes, stands on what stays afterwards. */
static int ask_files(
        struct vm *vm, const struct merge_job *job, struct files_say *ret, struct error *err)
{
        const json_t *run = merge_job_run(job), *images = json_object_get(run, "images");
        const char *direction = json_string_value(json_object_get(run, "direction"));
        const char *top = json_string_value(json_object_get(run, "top"));
        int r;

        *ret = (struct files_say){.layers = json_array(), .moved = json_array()};
        if (!ret->layers || !ret->moved)
                return fail(err, ENOMEM, "no memory for a list of layers");
        if (direction && strcmp(direction, "down") == 0)
                return ask_children(vm, top, images, ret, err);
        r = ask_witness(vm, top, images, ret->layers, &ret->finished, err);
        if (r < 0 && !is_for_now(r)) {
                error_clear(err);
                r = 0;
        }
        return r;
}

/* To their heads something may still be to be completed. */
static void note_moved(struct merge_job *job, const json_t *moved)
{
        json_t *run = merge_job_run(job), *list = json_object_get(run, "moved");

        if (!list && json_array_size(moved) > 0) {
                list = json_array();
                json_object_set_new(run, "moved", list);
        }
        merges_add_paths(list, moved);
}

/* What it has open stands on what the files and the catalog do not name any more: so it opens all anew. */
static void restart_worker(struct vm *vm)
{
        struct error err = ERROR_INIT;

        broker_log(vm->broker, BROKER_LOG_WARNING, vm->id,
                "a merge has stopped in the middle of its end: the vm's worker is started anew");
        if (worker_down(vm, STOP_MS, &err) < 0)
                broker_log_error(vm->broker, vm->id, &err);
}

/* It did not end: it runs again. What it has done of that the catalog follows, so that each chain opens. */
static int settle_children(
        struct vm *vm, struct merge_job *job, const json_t *moved, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        r = merges_move_children(catalog, job, moved, err);
        merge_job_set(job, JOB_RUNNING);
        note_moved(job, moved);
        if (r == 0)
                r = merge_job_save(catalog, job, err);
        r = catalog_end(catalog, r, err);
        if (r == 0 && json_array_size(moved) > 0 && vm->up)
                restart_worker(vm);
        return r;
}

/* Of one that was told to end: the catalog follows, or it runs again. */
int merges_settle(struct vm *vm, struct merge_job *job, bool *ret_finished, struct error *err)
{
        _cleanup_(files_say_done) struct files_say said = {0};
        int64_t id = job->row.id;
        struct merging merging;
        int r = 0;

        *ret_finished = false;
        /* One that failed may have failed after all that counts was done, or after a part of that. */
        if (merges_look(vm, job->row.id, &merging) && strcmp(merging.state, "finished") == 0)
                said.finished = true;
        else
                r = ask_files(vm, job, &said, err);
        if (r < 0)
                return fail_prefix(err, r, "job %lld was cut off in its end", (long long)id);
        if (!said.finished)
                return settle_children(vm, job, said.moved, err);
        broker_log(vm->broker, BROKER_LOG_INFO, vm->id,
                "job %lld was cut off after its end: the catalog follows", (long long)id);
        r = merges_commit(vm, job, said.layers, NULL, err);
        if (r == 0)
                merges_drop_in_worker(vm, id);
        *ret_finished = r == 0;
        return r;
}

int merges_follow_files(struct vm *vm, struct merge_job *job, struct error *err)
{
        _cleanup_(files_say_done) struct files_say said = {0};
        int r = ask_files(vm, job, &said, err);

        return r == 0 ? settle_children(vm, job, said.moved, err) : r;
}
