/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/supervisor/supervisor.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

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

static int take_lock(struct supervisor *supervisor, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = vm_folder_make(&supervisor->options, supervisor->id, err);

        if (r == 0)
                r = vm_path(&supervisor->options, supervisor->id, "supervisor.lock", &path, err);
        if (r == 0)
                r = lock_take(path, &supervisor->lock_fd, err);
        return r;
}

int supervisor_new(
        const struct glue_options *options, struct supervisor **ret, struct error *err)
{
        _cleanup_(supervisor_freep) struct supervisor *supervisor = calloc(1, sizeof(*supervisor));
        int r;

        if (!supervisor)
                return fail(err, ENOMEM, "no memory for a supervisor");
        supervisor->options = *options;
        supervisor->lock_fd = supervisor->listen_fd = -1;
        supervisor->id = options->supervise;
        supervisor->name = strdup(supervisor->id);
        if (!supervisor->name)
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
        link_free(supervisor->link);
        connection_free(supervisor->connection);
        sd_event_source_disable_unref(supervisor->listen);
        for (size_t i = 0; i < 2; i++)
                sd_event_source_disable_unref(supervisor->signals[i]);
        sd_event_unref(supervisor->event);
        if (supervisor->listen_fd >= 0)
                close(supervisor->listen_fd);
        if (supervisor->lock_fd >= 0)
                close(supervisor->lock_fd);
        log_about(NULL);
        free(supervisor->name);
        free(supervisor);
        return NULL;
}
