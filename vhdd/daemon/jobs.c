/* SPDX-License-Identifier: Apache-2.0 */
/* jobs.c - what is noted to be done: the merges of what deleted snapshots left. */
#include <string.h>

#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/vms.h"

static json_t *job_to_json(struct broker *broker, const struct job_row *job)
{
        json_auto_t *payload = json_loads(job->payload, 0, NULL);
        _cleanup_(vm_row_done) struct vm_row vm = {0};
        const char *image = param_text(payload, "image");
        const char *merge = param_text(payload, "merge");
        char time[TIME_TEXT_MAX], what[1200];

        snprintf(what, sizeof(what), "merge '%s' into the image it stands on or its child%s",
                image ? image : "?",
                merge && strcmp(merge, "deferred") == 0 ? ", once the vm is off" : "");
        (void)catalog_vm_find(broker->catalog, job->vm, &vm, NULL);
        return json_pack("{s:I, s:s, s:s?, s:s, s:s, s:s, s:s?}", "id", (json_int_t)job->id, "kind",
                job->kind, "vm", vm.name, "state", job->state, "created",
                time_to_text(job->created_us, time), "what", what, "file", image);
}

static int job_list(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        const char *name = param_text(params, "vm");
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        struct job_row *rows = NULL;
        size_t n = 0;
        int r = name ? vm_peek(broker, name, &vm, NULL, err) : 0;

        if (r == 0)
                r = catalog_job_list(broker->catalog, vm ? vm->id : NULL, &rows, &n, err);
        if (r < 0)
                return r;
        *ret = json_array();
        for (size_t i = 0; *ret && i < n; i++)
                json_array_append_new(*ret, job_to_json(broker, &rows[i]));
        job_rows_free(rows, n);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int job_show(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(job_row_done) struct job_row row = {0};
        json_int_t id = param_int(params, "id", 0);
        int r = catalog_job_find(broker->catalog, id, &row, err);

        if (r == -ENOENT) {
                error_clear(err);
                return fail(err, ENOENT, "there is no job %" JSON_INTEGER_FORMAT, id);
        }
        if (r < 0)
                return r;
        *ret = job_to_json(broker, &row);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

const struct method job_methods[] = {
        {"job.list", job_list, false},
        {"job.show", job_show, false},
        {NULL, NULL, false},
};
