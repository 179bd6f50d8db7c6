/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/supervisor/supervisor.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"
#include "vmm-glue/supervisor/relay.h"

#define TICK_US UINT64_C(1000000)

static int on_signal(sd_event_source *source, const struct signalfd_siginfo *info, void *opaque)
{
        struct supervisor *supervisor = opaque;

        return sd_event_exit(supervisor->event, 0);
}

static int watch_signals(struct supervisor *supervisor, struct error *err)
{
        static const int numbers[] = {SIGTERM, SIGINT};
        sigset_t set;
        int r = 0;

        sigemptyset(&set);
        for (size_t i = 0; i < 2; i++)
                sigaddset(&set, numbers[i]);
        sigaddset(&set, SIGCHLD);
        sigprocmask(SIG_BLOCK, &set, NULL);
        for (size_t i = 0; r >= 0 && i < 2; i++)
                r = sd_event_add_signal(supervisor->event, &supervisor->signals[i], numbers[i],
                        on_signal, supervisor);
        return r < 0 ? fail_os(err, -r, "cannot watch for signals") : 0;
}

/* --- each second --- */

/* A guest that stands because its disks were away: QEMU tries again once, and fails at once while its
 * connection waits for its own next try. */
static void continue_after_outage(struct supervisor *supervisor)
{
        if (strcmp(supervisor->status, "io-error") != 0 || supervisor->user_paused ||
                supervisor->saw_end)
                return;
        qmp_call(supervisor->qmp, "cont", NULL, NULL, NULL);
}

static void come_back(struct supervisor *supervisor)
{
        struct error err = ERROR_INIT;
        int r = machine_connect(supervisor, &err);

        if (r == 0) {
                log_info("found the vm's QEMU again, process %d: %s", (int)supervisor->pid,
                        machine_state(supervisor));
                if (strcmp(supervisor->status, "shutdown") == 0)
                        machine_quit(supervisor);
                else
                        hold_adopt(supervisor);
        } else if (r != -EAGAIN) {
                log_error(&err);
        }
}

static int on_tick(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct supervisor *supervisor = opaque;

        sd_event_source_set_time(source, usec + TICK_US);
        if (is_process_there(supervisor) && !operation_is_running(supervisor, "start", NULL)) {
                if (!supervisor->qmp)
                        come_back(supervisor);
                if (supervisor->qmp) {
                        hold_tick(supervisor);
                        continue_after_outage(supervisor);
                        memory_tick(supervisor);
                        guest_tick(supervisor);
                }
        }
        return 0;
}

static int add_tick(struct supervisor *supervisor, struct error *err)
{
        int r = sd_event_add_time_relative(supervisor->event, &supervisor->tick, CLOCK_MONOTONIC, 0,
                1000, on_tick, supervisor);

        if (r >= 0)
                r = sd_event_source_set_enabled(supervisor->tick, SD_EVENT_ON);
        return r < 0 ? fail_os(err, -r, "cannot make a timer") : 0;
}

/* --- life --- */

static int take_lock(struct supervisor *supervisor, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = vm_folder_make(&supervisor->options, supervisor->id, err);

        if (r == 0)
                r = vm_path(&supervisor->options, supervisor->id, "supervisor.lock", &path, err);
        if (r == 0)
                r = lock_take(path, LOCK_WAIT_MS, &supervisor->lock_fd, err);
        return r;
}

int supervisor_new(const struct glue_options *options, struct supervisor **ret, struct error *err)
{
        _cleanup_(supervisor_freep) struct supervisor *supervisor = calloc(1, sizeof(*supervisor));
        int r;

        if (!supervisor)
                return fail(err, ENOMEM, "no memory for a supervisor");
        supervisor->options = *options;
        supervisor->lock_fd = supervisor->listen_fd = -1;
        supervisor->id = options->supervise;
        supervisor->pidfd = -1;
        supervisor->name = strdup(supervisor->id);
        supervisor->deleted = json_object();
        r = vm_path(options, supervisor->id, NULL, &supervisor->folder, err);
        if (r < 0 || !supervisor->name || !supervisor->deleted)
                return fail(err, ENOMEM, "no memory for a supervisor");
        log_about(supervisor->name);
        r = take_lock(supervisor, err);
        if (r < 0)
                return r;
        r = sd_event_new(&supervisor->event);
        if (r < 0)
                return fail_os(err, -r, "cannot make an event loop");
        r = watch_signals(supervisor, err);
        if (r == 0)
                r = operations_start(supervisor, err);
        if (r == 0)
                r = add_tick(supervisor, err);
        if (r == 0)
                r = process_adopt(supervisor, err);
        if (r == 0)
                saved_look(supervisor);
        if (r == 0)
                guest_look(supervisor);
        if (r == 0)
                r = agent_start(supervisor, err);
        if (r == 0)
                r = host_link_start(supervisor, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(supervisor);
        return 0;
}

int supervisor_run(struct supervisor *supervisor, struct error *err)
{
        int r = sd_event_loop(supervisor->event);

        return r < 0 ? fail_os(err, -r, "the event loop ended") : 0;
}

struct supervisor *supervisor_free(struct supervisor *supervisor)
{
        if (!supervisor)
                return NULL;
        operations_done(supervisor);
        link_free(supervisor->link);
        guest_done(supervisor);
        machine_done(supervisor);
        relay_done(supervisor);
        process_done(supervisor);
        connection_free(supervisor->connection);
        sd_event_source_disable_unref(supervisor->listen);
        sd_event_source_disable_unref(supervisor->tick);
        for (size_t i = 0; i < 2; i++)
                sd_event_source_disable_unref(supervisor->signals[i]);
        sd_event_unref(supervisor->event);
        if (supervisor->listen_fd >= 0)
                close(supervisor->listen_fd);
        if (supervisor->lock_fd >= 0)
                close(supervisor->lock_fd);
        log_about(NULL);
        free(supervisor->name);
        free(supervisor->folder);
        free(supervisor);
        return NULL;
}
