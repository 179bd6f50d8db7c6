/* SPDX-License-Identifier: Apache-2.0 */
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vhdd/daemon/broker.h"
#include "vhdd/daemon/catalog.h"
#include "vhdd/daemon/methods.h"

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

static int run_status(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        const struct broker_options *options = &broker->options;
        json_t *status = json_pack("{s:s, s:i, s:s, s:s, s:o}", "version", VHDD_VERSION, "pid",
                (int)getpid(), "state-dir", options->state_dir, "control", options->control_path,
                "nbd", nbd_places(options));

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
