/* SPDX-License-Identifier: Apache-2.0 */
/* The method `doctor`: what catalog and files say, and what only the running daemon knows. */
#include <string.h>

#include "vhdd/daemon/doctor.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/vms.h"
#include "vhdd/daemon/worker_link.h"

static int resolve(void *opaque, const char *path, const char *format, char *const *roots,
        size_t n_roots, struct resolved_layer **ret, size_t *ret_n, struct error *err)
{
        return resolve_chain(opaque, path, format, roots, n_roots, ret, ret_n, err);
}

/* ---- workers ---- */

static void examine_worker(struct broker *broker, const struct vm_row *row, json_t *findings)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;

        if (vm_peek(broker, row->id, &vm, NULL, NULL) < 0)
                return;
        pthread_rwlock_rdlock(&vm->link_lock);
        if (!vm->up && vm->trouble)
                doctor_add(findings, "worker-failed", "warning", row->name, NULL, "vhdctl restart",
                        "the worker of vm '%s' does not serve: %s", row->name, vm->trouble);
        for (size_t i = 0; i < vm->n_chains; i++)
                if (vm->chains[i].trouble)
                        doctor_add(findings, "worker-failed", "warning", row->name, NULL,
                                "it is tried again from time to time; vhdctl restart tries it now",
                                "a disk of vm '%s' is not served: %s", row->name,
                                vm->chains[i].trouble);
        pthread_rwlock_unlock(&vm->link_lock);
}

static int examine_workers(struct broker *broker, json_t *findings, struct error *err)
{
        struct vm_row *rows = NULL;
        size_t n = 0;
        int r = catalog_vm_list(broker->catalog, &rows, &n, err);

        for (size_t i = 0; i < n; i++)
                examine_worker(broker, &rows[i], findings);
        vm_rows_free(rows, n);
        return r;
}

/* ---- rebuilding ---- */

static void serve(struct broker *broker, const char *id, json_t *findings)
{
        _cleanup_(vm_unrefp) struct vm *added = NULL;
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        struct error why = ERROR_INIT;

        if (vm_add(broker, id, &added, &why) < 0 || vm_get(broker, id, &vm, NULL, &why) < 0) {
                doctor_add(findings, "worker-failed", "warning", NULL, NULL, "vhdctl restart", "%s",
                        why.message);
                return;
        }
        vm_changed(vm, "vm-created", NULL);
        if (worker_up(vm, &why) < 0)
                vm_set_down(vm, why.message); /* the examination tells of it */
}

static int rebuild(const struct doctor *doctor, struct broker *broker, bool dry_run,
        json_t *findings, json_t **ret, struct error *err)
{
        struct doctor_rebuilt rebuilt = {0};
        json_t *id;
        size_t i;
        int r;

        if (doctor->n_roots == 0) {
                fail(err, EINVAL, "where do the vms' folders lie?");
                error_set_hint(err, "start vhdd with --image-root DIR for each folder to look in");
                return -EINVAL;
        }
        r = doctor_rebuild(doctor, dry_run, findings, &rebuilt, err);
        if (r < 0)
                return r;
        json_array_foreach(rebuilt.ids, i, id)
        {
                if (!dry_run)
                        serve(broker, json_string_value(id), findings);
        }
        json_decref(rebuilt.ids);
        *ret = json_pack("{s:i, s:i, s:i}", "vms", (int)rebuilt.n_vms, "disks",
                (int)rebuilt.n_disks, "snapshots", (int)rebuilt.n_snapshots);
        return 0;
}

static int run_doctor(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        struct doctor doctor = {
                .catalog = broker->catalog,
                .roots = broker->options.image_roots,
                .n_roots = broker->options.n_image_roots,
                .resolve = resolve,
                .opaque = broker,
        };
        json_auto_t *findings = json_array();
        json_t *rebuilt = NULL;
        int r = findings ? 0 : fail(err, ENOMEM, "no memory for what the doctor finds");

        if (r == 0 && param_bool(params, "rebuild"))
                r = rebuild(
                        &doctor, broker, param_bool(params, "dry-run"), findings, &rebuilt, err);
        if (r == 0)
                r = examine_workers(broker, findings, err);
        if (r == 0)
                r = doctor_examine(&doctor, findings, err);
        if (r < 0) {
                json_decref(rebuilt);
                return r;
        }
        *ret = json_pack("{s:O, s:o*}", "findings", findings, "rebuilt", rebuilt);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

const struct method doctor_methods[] = {
        {"doctor", run_doctor, true},
        {NULL, NULL, false},
};
