/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vhdd/daemon/broker.h"
#include "vhdd/daemon/catalog.h"
#include "vhdd/daemon/main.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/worker_link.h"

/* A worker that is slower is not counted. */
#define CLIENTS_MS 1000

static void add_time(json_t *status, const char *key, int64_t us)
{
        time_t s = (time_t)(us / 1000000);
        char text[32];
        struct tm tm;

        if (gmtime_r(&s, &tm) && strftime(text, sizeof(text), "%FT%TZ", &tm) > 0)
                json_object_set_new(status, key, json_string(text));
}

/* "nbd+unix://?socket=/run/x", "nbd://127.0.0.1:10809" */
static json_t *nbd_places(const struct broker_options *options)
{
        json_t *ret = json_array();

        for (size_t i = 0; i < options->n_nbd_paths; i++)
                json_array_append_new(
                        ret, json_sprintf("nbd+unix:///?socket=%s", options->nbd_paths[i]));
        for (size_t i = 0; i < options->n_nbd_addresses; i++)
                json_array_append_new(ret, json_sprintf("nbd://%s/", options->nbd_addresses[i]));
        return ret;
}

/* How many there are. */
struct census {
        size_t vms, disks, snapshots, jobs, workers, clients;
};

static int count_vm(struct broker *broker, const char *id, struct census *census, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        struct snapshot_row *snapshots = NULL;
        struct disk_row *disks = NULL;
        json_t *clients = NULL;
        size_t n = 0;
        int r = catalog_disk_list(broker->catalog, id, &disks, &n, err);

        if (r < 0)
                return r;
        census->disks += n;
        disk_rows_free(disks, n);
        r = catalog_snapshot_list(broker->catalog, id, &snapshots, &n, err);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                census->snapshots += strcmp(snapshots[i].state, "committed") == 0;
        snapshot_rows_free(snapshots, n);

        /* Gone meanwhile, or without a worker: it has no clients. */
        if (vm_peek(broker, id, &vm, NULL, NULL) == 0 &&
                worker_clients(vm, CLIENTS_MS, &clients, NULL) == 0) {
                census->workers++;
                census->clients += json_array_size(clients);
                json_decref(clients);
        }
        return 0;
}

static int count_all(struct broker *broker, struct census *ret, struct error *err)
{
        struct vm_row *rows = NULL;
        struct job_row *jobs = NULL;
        size_t n = 0;
        int r = catalog_job_list(broker->catalog, NULL, &jobs, &n, err);

        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++)
                ret->jobs += strcmp(jobs[i].state, JOB_DONE) != 0 && !job_is_quiet(&jobs[i]);
        job_rows_free(jobs, n);
        r = catalog_vm_list(broker->catalog, &rows, &ret->vms, err);
        for (size_t i = 0; r == 0 && i < ret->vms; i++)
                r = count_vm(broker, rows[i].id, ret, err);
        vm_rows_free(rows, ret->vms);
        return r;
}

static int run_status(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        const struct broker_options *options = &broker->options;
        struct census census = {0};
        json_t *status;
        int r = count_all(broker, &census, err);

        if (r < 0)
                return r;
        status = json_pack("{s:s, s:i, s:s, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I}", "version",
                VHDD_VERSION, "pid", (int)getpid(), "state-dir", options->state_dir, "control",
                options->control_path, "nbd", nbd_places(options), "vms", (json_int_t)census.vms,
                "disks", (json_int_t)census.disks, "snapshots", (json_int_t)census.snapshots,
                "clients", (json_int_t)census.clients, "workers", (json_int_t)census.workers,
                "jobs", (json_int_t)census.jobs);
        if (!status)
                return fail(err, ENOMEM, "no memory for the answer");
        add_time(status, "started", broker->started_us);
        *ret = status;
        return 0;
}

static int run_shutdown(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        *ret = json_object();
        if (!json_is_true(json_object_get(params, "dry-run")))
                broker_request_stop(broker);
        return 0;
}

static int run_restart(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        int r = daemon_can_restart(broker, err);

        if (r < 0)
                return r;
        *ret = json_object();
        if (!json_is_true(json_object_get(params, "dry-run")))
                broker_request_restart(broker);
        return 0;
}

const struct method daemon_methods[] = {
        {"status", run_status, false},
        {"shutdown", run_shutdown, true},
        {"restart", run_restart, true},
        {NULL, NULL, false},
};
