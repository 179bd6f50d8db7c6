/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/host.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/host_internal.h"
#include "vmm-glue/log.h"

#define LOOK_AGAIN_US      UINT64_C(50000)
#define END_LIMIT_US       UINT64_C(14000000)
#define REGISTER_TIMEOUT_S 120

/* --- the daemon --- */

static bool concerns_vms(const char *type)
{
        return strncmp(type, "vm-", 3) == 0;
}

static void tell_event(struct host *host, const json_t *params)
{
        const char *type = json_string_value(json_object_get(params, "type"));

        if (!type)
                return;
        /* Several come together: one look for all. */
        if (concerns_vms(type) && strcmp(type, "vm-state") != 0) {
                sd_event_source_set_time_relative(host->look, LOOK_AGAIN_US);
                sd_event_source_set_enabled(host->look, SD_EVENT_ONESHOT);
        }
        FOR_EACH_MODULE(host, i, module)
        {
                if (module->event)
                        module->event(host->modules[i], type, params);
        }
}

static void on_notification(
        void *opaque, const char *method, const json_t *params, int *fds, size_t n_fds)
{
        struct host *host = opaque;

        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (strcmp(method, "event") == 0)
                tell_event(host, params);
        else if (strcmp(method, "vmm.request") == 0)
                host_request(host, params);
}

/* A daemon that knows of no vmm.register is served all the same: it just hands nothing on. */
static int register_host(struct host *host, struct error *err)
{
        struct error why = ERROR_INIT;
        int r = connection_call(host->connection, "vmm.register",
                json_pack("{s:i}", "timeout", REGISTER_TIMEOUT_S), NULL, &why);

        host->is_registered = r == 0;
        if (r == 0)
                return 0;
        /* -EBUSY: our own old connection, of which the daemon has not seen the end. Tried again. */
        if (r == -EBUSY || r == -ECONNRESET || r == -EPIPE || r == -EPROTO) {
                *err = why;
                return r;
        }
        log_warning("the daemon hands no calls on: %s", why.message);
        return 0;
}

static int on_up(void *opaque, struct connection *connection, struct error *err)
{
        struct host *host = opaque;
        int r;

        host->connection = connection;
        r = register_host(host, err);
        if (r == 0)
                r = connection_call(connection, "events.subscribe", NULL, NULL, err);
        if (r == 0)
                r = host_vms_look(host, err);
        return r;
}

static int on_look(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct host *host = opaque;
        struct error err = ERROR_INIT;

        if (connection_is_up(host->connection) && host_vms_look(host, &err) < 0)
                log_error(&err);
        return 0;
}

/* --- the end --- */

static int on_deadline(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct host *host = opaque;

        log_warning("some guests did not end in time; their supervisors see to it");
        return sd_event_exit(host->event, 0);
}

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *info, void *opaque)
{
        struct host *host = opaque;

        if (info->ssi_signo != SIGTERM) {
                log_info("ends; supervisors and guests go on");
                return sd_event_exit(host->event, 0);
        }
        if (host->is_ending)
                return 0;
        host->is_ending = true;
        sd_event_source_set_time_relative(host->deadline, END_LIMIT_US);
        sd_event_source_set_enabled(host->deadline, SD_EVENT_ONESHOT);
        host_vms_end(host);
        return 0;
}

/* --- life --- */

static int watch_signals(struct host *host, struct error *err)
{
        static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
        sigset_t set;
        int r = 0;

        sigemptyset(&set);
        for (size_t i = 0; i < 3; i++)
                sigaddset(&set, numbers[i]);
        sigaddset(&set, SIGCHLD); /* supervisors are waited for by their pidfds */
        sigprocmask(SIG_BLOCK, &set, NULL);
        for (size_t i = 0; r >= 0 && i < 3; i++)
                r = sd_event_add_signal(
                        host->event, &host->signals[i], numbers[i], on_signal, host);
        return r < 0 ? fail_os(err, -r, "cannot watch for signals") : 0;
}

static int start_modules(struct host *host, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && host_modules[i]; i++) {
                r = host_modules[i]->start(host, &host->modules[i], err);
                if (r < 0)
                        return fail_prefix(err, r, "cannot start '%s'", host_modules[i]->name);
                host->n_modules++;
        }
        return 0;
}

static int take_lock(struct host *host, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = vm_folder_make(&host->options, NULL, err);

        if (r == 0 && asprintf(&path, "%s/vmm/host.lock", host->options.run_dir) < 0) {
                path = NULL;
                r = fail(err, ENOMEM, "no memory for a path");
        }
        if (r == 0)
                r = lock_take_own(path, LOCK_WAIT_MS, &host->lock_fd, err);
        if (r == -EBUSY)
                fail(err, EBUSY, "a vmm-host runs for this daemon already: it holds '%s'", path);
        return r;
}

static int add_timers(struct host *host, struct error *err)
{
        int r = sd_event_add_time(
                host->event, &host->look, CLOCK_MONOTONIC, UINT64_MAX, 1000, on_look, host);

        if (r >= 0)
                r = sd_event_add_time(host->event, &host->deadline, CLOCK_MONOTONIC, UINT64_MAX,
                        1000, on_deadline, host);
        if (r >= 0)
                r = sd_event_source_set_enabled(host->look, SD_EVENT_OFF);
        if (r >= 0)
                r = sd_event_source_set_enabled(host->deadline, SD_EVENT_OFF);
        return r < 0 ? fail_os(err, -r, "cannot make a timer") : 0;
}

int host_new(const struct glue_options *options, struct host **ret, struct error *err)
{
        _cleanup_(host_freep) struct host *host = calloc(1, sizeof(*host));
        struct connection_callbacks callbacks = {
                .up = on_up, .notification = on_notification, .opaque = host};
        int r;

        if (!host)
                return fail(err, ENOMEM, "no memory for vmm-host");
        host->options = *options;
        host->lock_fd = -1;
        r = take_lock(host, err);
        if (r < 0)
                return r;
        r = sd_event_new(&host->event);
        if (r < 0)
                return fail_os(err, -r, "cannot make an event loop");
        r = watch_signals(host, err);
        if (r == 0)
                r = add_timers(host, err);
        if (r == 0)
                r = start_modules(host, err);
        if (r == 0)
                r = connection_new(
                        host->event, options->control, &callbacks, &host->connection, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(host);
        return 0;
}

int host_run(struct host *host, struct error *err)
{
        int r = sd_event_loop(host->event);

        return r < 0 ? fail_os(err, -r, "the event loop ended") : 0;
}

struct host *host_free(struct host *host)
{
        if (!host)
                return NULL;
        host_vms_free(host);
        while (host->n_modules > 0) {
                host->n_modules--;
                host_modules[host->n_modules]->stop(host->modules[host->n_modules]);
        }
        connection_free(host->connection);
        for (size_t i = 0; i < 3; i++)
                sd_event_source_disable_unref(host->signals[i]);
        sd_event_source_disable_unref(host->look);
        sd_event_source_disable_unref(host->deadline);
        sd_event_unref(host->event);
        if (host->lock_fd >= 0)
                close(host->lock_fd);
        free(host);
        return NULL;
}

/* --- what modules use --- */

sd_event *host_event(struct host *host)
{
        return host->event;
}

bool host_is_ending(const struct host *host)
{
        return host->is_ending;
}

const struct glue_options *host_options(struct host *host)
{
        return &host->options;
}

struct connection *host_connection(struct host *host)
{
        return host->connection;
}

struct host_vm *host_vms(struct host *host)
{
        return host->vms;
}

struct host_vm *host_vm_find(struct host *host, const char *name_or_id)
{
        for (struct host_vm *vm = host->vms; vm; vm = vm->next)
                if (!vm->is_gone &&
                        (strcmp(vm->id, name_or_id) == 0 ||
                                (vm->name && strcmp(vm->name, name_or_id) == 0)))
                        return vm;
        return NULL;
}
