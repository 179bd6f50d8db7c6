/* SPDX-License-Identifier: Apache-2.0 */
/* machine.c - what QEMU tells by its monitor, and what the vm is because of it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define RESET_ONCE_MS 2000 /* one reboot is told two or three times */

static int64_t now_us(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000000) + ts.tv_nsec / 1000;
}

/* --- what it is --- */

bool machine_is_running(const struct supervisor *supervisor)
{
        return strcmp(supervisor->status, "running") == 0;
}

const char *machine_state(const struct supervisor *supervisor)
{
        if (!is_process_there(supervisor)) {
                if (operation_is_running(supervisor, "start", NULL))
                        return "starting";
                return supervisor->has_saved ? "saved" : "off";
        }
        if (operation_is_running(supervisor, "start", NULL) || !supervisor->status[0])
                return "starting";
        if (strcmp(supervisor->status, "guest-panicked") == 0)
                return "crashed";
        if (strcmp(supervisor->status, "shutdown") == 0)
                return "ending";
        return supervisor->status;
}

int machine_must(struct supervisor *supervisor, struct error *err)
{
        if (!is_process_there(supervisor)) {
                fail(err, ENXIO, supervisor->has_saved ? "the vm is saved" : "the vm is off");
                error_set_hint(err, "vhdctl vm start '%s'", supervisor->name);
                return -ENXIO;
        }
        if (!supervisor->qmp)
                return fail(err, EAGAIN, "the vm's QEMU cannot be asked just now");
        if (supervisor->saw_end)
                return fail(err, ENXIO, "the vm is ending");
        return 0;
}

static void set_status(struct supervisor *supervisor, const char *status)
{
        if (strcmp(supervisor->status, status) == 0)
                return;
        snprintf(supervisor->status, sizeof(supervisor->status), "%s", status);
        host_link_tell_state(supervisor);
}

void machine_look(struct supervisor *supervisor)
{
        json_auto_t *answer = NULL;
        struct error err = ERROR_INIT;
        const char *status;

        if (!supervisor->qmp || supervisor->saw_end)
                return;
        if (qmp_call(supervisor->qmp, "query-status", NULL, &answer, &err) < 0) {
                log_error(&err);
                return;
        }
        status = json_string_value(json_object_get(answer, "status"));
        set_status(supervisor, status ? status : "unknown");
}

void machine_quit(struct supervisor *supervisor)
{
        struct error err = ERROR_INIT;

        supervisor->saw_end = true;
        if (supervisor->qmp && qmp_call(supervisor->qmp, "quit", NULL, NULL, &err) == 0)
                return;
        process_kill(supervisor);
}

/* --- events --- */

static void on_shutdown(struct supervisor *supervisor, const json_t *data)
{
        const char *reason = json_string_value(json_object_get(data, "reason"));

        set_status(supervisor, "shutdown");
        if (supervisor->saw_end)
                return;
        json_decref(supervisor->last_end);
        supervisor->last_end = json_pack(
                "{s:s, s:s}", "how", "power-off", "message", reason ? reason : "guest-shutdown");
        log_info("the guest powered off (%s)", reason ? reason : "guest-shutdown");
        machine_quit(supervisor);
}

static void on_reset(struct supervisor *supervisor, const json_t *data)
{
        int64_t now = monotonic_ms();

        if (now - supervisor->last_reset_ms > RESET_ONCE_MS) {
                supervisor->n_resets++;
                log_info("the guest was reset%s",
                        json_is_true(json_object_get(data, "guest")) ? " by itself" : "");
        }
        supervisor->last_reset_ms = now;
        guest_was_reset(supervisor);
}

static void on_io_error(struct supervisor *supervisor, const json_t *data)
{
        const char *node = json_string_value(json_object_get(data, "node-name"));
        const char *reason = json_string_value(json_object_get(data, "reason"));
        json_t *disk;
        size_t i;

        if (supervisor->n_io_errors++ > 0 && supervisor->n_io_errors % 60 != 0)
                return; /* once a second for as long as the outage lasts */
        json_array_foreach(json_object_get(supervisor->config, "disks"), i, disk)
        {
                char name[CONFIG_NODE_MAX];

                config_node(disk, name);
                if (node && strcmp(name, node) == 0)
                        log_warning(
                                "disk '%s' answers with an error (%s): the guest waits until it is "
                                "back",
                                json_string_value(json_object_get(disk, "name")),
                                reason ? reason : "?");
        }
}

static void on_stop_or_resume(struct supervisor *supervisor, bool runs)
{
        struct error err = ERROR_INIT;

        if (!runs)
                supervisor->stop_us = now_us();
        else if (supervisor->stop_us > 0)
                supervisor->pause_us = now_us() - supervisor->stop_us;
        if (runs)
                supervisor->stop_us = 0;
        if (runs && supervisor->stop_again) {
                supervisor->stop_again = false;
                if (qmp_call(supervisor->qmp, "stop", NULL, NULL, &err) < 0)
                        log_error(&err);
        }
        machine_look(supervisor);
        if (!runs || !machine_is_running(supervisor))
                return;
        supervisor->n_io_errors = 0;
        if (supervisor->hold == HOLD_PAUSE)
                hold_end(supervisor);
}

static void on_event(void *opaque, const char *name, const json_t *data)
{
        struct supervisor *supervisor = opaque;
        const char *device = json_string_value(json_object_get(data, "device"));
        const char *status = json_string_value(json_object_get(data, "status"));

        if (strcmp(name, "SHUTDOWN") == 0)
                on_shutdown(supervisor, data);
        else if (strcmp(name, "STOP") == 0 || strcmp(name, "RESUME") == 0)
                on_stop_or_resume(supervisor, name[0] == 'R');
        else if (strcmp(name, "RESET") == 0)
                on_reset(supervisor, data);
        else if (strcmp(name, "BLOCK_IO_ERROR") == 0)
                on_io_error(supervisor, data);
        else if (strcmp(name, "DEVICE_DELETED") == 0 && device)
                json_object_set_new(supervisor->deleted, device, json_true());
        else if (strcmp(name, "MIGRATION") == 0 && status)
                snprintf(supervisor->migration, sizeof(supervisor->migration), "%s", status);
        else if (strcmp(name, "VSERPORT_CHANGE") == 0)
                guest_channel(supervisor, json_is_true(json_object_get(data, "open")));
        else if (strcmp(name, "GUEST_PANICKED") == 0)
                log_warning("the guest's kernel crashed");
        operations_kick(supervisor);
}

/* Its process says whether it has ended; else we come back to it. */
static void on_gone(void *opaque)
{
        struct supervisor *supervisor = opaque;

        supervisor->qmp = qmp_close(supervisor->qmp);
        if (!supervisor->saw_end)
                log_warning("lost QEMU's monitor");
        operations_kick(supervisor);
}

int machine_connect(struct supervisor *supervisor, struct error *err)
{
        const struct qmp_callbacks callbacks = {
                .event = on_event, .gone = on_gone, .opaque = supervisor};
        _cleanup_free_ char *path = NULL;
        int r;

        if (supervisor->qmp)
                return 0;
        r = vm_path(&supervisor->options, supervisor->id, "qmp.sock", &path, err);
        if (r == 0)
                r = qmp_open(supervisor->event, path, &callbacks, &supervisor->qmp, err);
        if (r == -ENOENT || r == -ECONNREFUSED)
                return -EAGAIN;
        if (r < 0)
                return r;
        machine_look(supervisor);
        return 0;
}

/* --- its end --- */

static const char *how_it_ended(
        struct supervisor *supervisor, int status, bool is_known, char *text, size_t size)
{
        char words[320];

        if (is_known && WIFSIGNALED(status)) {
                snprintf(text, size, "QEMU was ended by signal %d (%s)", WTERMSIG(status),
                        sigdescr_np(WTERMSIG(status)) ? sigdescr_np(WTERMSIG(status)) : "?");
                return text;
        }
        process_last_words(supervisor, words, sizeof(words));
        if (is_known)
                snprintf(text, size, "QEMU ended with status %d: %s", WEXITSTATUS(status), words);
        else
                snprintf(text, size, "QEMU ended: %s", words);
        return text;
}

void machine_ended(struct supervisor *supervisor, int status, bool is_known)
{
        char text[512];
        struct error err = ERROR_INIT;

        if (!supervisor->saw_end) {
                how_it_ended(supervisor, status, is_known, text, sizeof(text));
                log_line(LOG_ERR_LINE, "%s", text);
                json_decref(supervisor->last_end);
                supervisor->last_end = json_pack("{s:s, s:s}", "how", "crash", "message", text);
        } else {
                log_info("QEMU has ended");
        }
        supervisor->qmp = qmp_close(supervisor->qmp);
        guest_done(supervisor);
        supervisor->memory_is_set_up = false;
        supervisor->memory_target = 0;
        supervisor->balloon = (struct balloon){0};
        supervisor->balloon_asked = 0;
        supervisor->user_paused = false;
        supervisor->stop_again = false;
        hold_end(supervisor);
        supervisor->saw_end = false;
        supervisor->n_io_errors = 0;
        supervisor->last_reset_ms = 0;
        supervisor->status[0] = '\0';
        supervisor->config = (json_decref(supervisor->config), NULL);
        json_object_clear(supervisor->deleted);
        if (supervisor->link &&
                link_ask(supervisor->link, "unplug", json_object(), NULL, 0, 10000, NULL, NULL,
                        &err) < 0)
                log_error(&err);
        if (!supervisor->kept_saved)
                agent_tell_on(supervisor);
        supervisor->kept_saved = false;
        host_link_tell_state(supervisor);
        operations_kick(supervisor);
}

void machine_done(struct supervisor *supervisor)
{
        supervisor->qmp = qmp_close(supervisor->qmp);
        json_decref(supervisor->deleted);
        json_decref(supervisor->last_end);
}
