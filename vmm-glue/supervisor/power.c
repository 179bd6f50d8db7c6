/* SPDX-License-Identifier: Apache-2.0 */
/* power.c - off, reset, pause: what is done to a vm as if by its switches. */
#include <stdlib.h>
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"
#include "vmm-glue/supervisor/relay.h"

#define QUIT_MS            10000
#define SHUTDOWN_DEFAULT_S 120
#define PRESS_AGAIN_MS     15000

static json_t *state_answer(struct supervisor *supervisor)
{
        return json_pack("{s:s}", "state", machine_state(supervisor));
}

static void note_end(struct supervisor *supervisor, const char *how)
{
        json_decref(supervisor->last_end);
        supervisor->last_end = json_pack("{s:s, s:s}", "how", how, "message", "it was asked for");
}

/* --- stop: the plug is pulled --- */

int step_stop(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        if (is_process_there(supervisor)) {
                if (operation->phase == 0) {
                        note_end(supervisor, "stopped");
                        machine_quit(supervisor);
                        operation->phase = 1;
                        operation->end_ms = monotonic_ms() + 2 * QUIT_MS;
                } else if (operation->phase == 1 && monotonic_ms() > operation->end_ms - QUIT_MS) {
                        process_kill(supervisor);
                        operation->phase = 2;
                }
                return 0;
        }
        if (supervisor->has_saved) {
                saved_drop(supervisor);
                agent_tell_on(supervisor);
                host_link_tell_state(supervisor);
        }
        *ret = state_answer(supervisor);
        return 1;
}

/* --- shutdown: the guest is asked --- */

static void press(struct supervisor *supervisor)
{
        struct error err = ERROR_INIT;

        if (guest_has_agent(supervisor) && guest_shutdown(supervisor, &err) == 0)
                return;
        error_clear(&err);
        if (supervisor->qmp && qmp_call(supervisor->qmp, "system_powerdown", NULL, NULL, &err) < 0)
                log_error(&err);
}

/* Its end is reckoned with here and not by operation.c, which has another sentence and switches nothing off. */
struct shutting {
        int64_t pressed_ms, end_ms;
};

static int64_t shutdown_limit_s(const struct operation *operation)
{
        const json_t *limit = json_object_get(operation->params, "timeout");

        return json_is_integer(limit) ? json_integer_value(limit) : SHUTDOWN_DEFAULT_S;
}

int step_shutdown(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        struct shutting *shutting = operation->data;
        int64_t now = monotonic_ms();
        int r;

        if (!is_process_there(supervisor)) {
                if (operation->phase == 0 && supervisor->has_saved)
                        return machine_must(supervisor, err);
                *ret = state_answer(supervisor);
                return 1;
        }
        if (operation->phase == 0) {
                r = machine_must(supervisor, err);
                if (r < 0)
                        return r;
                if (!machine_is_running(supervisor) && supervisor->is_ending) {
                        machine_quit(supervisor);
                        return 0;
                }
                if (!machine_is_running(supervisor)) {
                        fail(err, EBUSY, "the guest does not run (%s), so it cannot shut down",
                                machine_state(supervisor));
                        error_set_hint(err, "vhdctl vm resume '%s', or vhdctl vm stop '%s'",
                                supervisor->name, supervisor->name);
                        return -EBUSY;
                }
                operation->data = shutting = malloc(sizeof(*shutting));
                operation->free_data = free;
                if (!shutting)
                        return fail(err, ENOMEM, "no memory for a time");
                shutting->pressed_ms = now;
                shutting->end_ms = now + 1000 * shutdown_limit_s(operation);
                operation->phase = 1;
                press(supervisor);
                return 0;
        }
        if (now >= shutting->end_ms && supervisor->is_ending) {
                log_warning("the guest did not shut down in time: it is switched off");
                shutting->end_ms = INT64_MAX;
                machine_quit(supervisor);
                return 0;
        }
        if (now >= shutting->end_ms) {
                fail(err, ETIMEDOUT, "the guest did not shut down within %lld s, and is on still",
                        (long long)shutdown_limit_s(operation));
                error_set_hint(err, "vhdctl vm stop '%s' switches it off", supervisor->name);
                return -ETIMEDOUT;
        }
        /* A guest that was booting when it was pressed first did not see it. */
        if (now - shutting->pressed_ms > PRESS_AGAIN_MS && !supervisor->saw_end) {
                shutting->pressed_ms = now;
                press(supervisor);
        }
        return 0;
}

/* --- reset, pause, resume --- */

int step_reset(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        int r = machine_must(supervisor, err);

        if (r == 0)
                r = qmp_call(supervisor->qmp, "system_reset", NULL, NULL, err);
        if (r < 0)
                return r;
        /* One that had crashed runs again. */
        if (!machine_is_running(supervisor) && !supervisor->user_paused &&
                supervisor->hold == HOLD_NONE)
                r = qmp_call(supervisor->qmp, "cont", NULL, NULL, err);
        if (r < 0)
                return r;
        machine_look(supervisor);
        *ret = state_answer(supervisor);
        return 1;
}

int step_pause(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        const char *purpose = json_string_value(json_object_get(operation->params, "for"));
        bool is_for_snapshot = purpose && strcmp(purpose, "snapshot") == 0;
        int r;

        /* Saved memory stands still as it is: a snapshot takes a copy of it. */
        if (!is_process_there(supervisor) && supervisor->has_saved) {
                *ret = state_answer(supervisor);
                return 1;
        }
        /* Who would let it go on is gone already: it is not made to stand still. */
        if (is_for_snapshot && !operation->from_link && operation->number < 0)
                return fail(err, ECANCELED, "the daemon that takes the snapshot is gone");
        /* A save that was given up has to end first: not while the guest stands still for us. */
        if (is_for_snapshot && relay_is_running(supervisor))
                return 0;
        r = machine_must(supervisor, err);
        if (r == 0 && is_for_snapshot)
                r = hold_set(supervisor, HOLD_PAUSE, err);
        if (r == 0)
                r = qmp_call(supervisor->qmp, "stop", NULL, NULL, err);
        if (r < 0)
                return r;
        supervisor->user_paused = !is_for_snapshot;
        if (!is_for_snapshot && supervisor->hold == HOLD_PAUSE)
                hold_end(supervisor);
        machine_look(supervisor);
        *ret = state_answer(supervisor);
        return 1;
}

int step_resume(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        int r;

        if (!is_process_there(supervisor) && supervisor->has_saved) {
                *ret = state_answer(supervisor);
                return 1;
        }
        r = machine_must(supervisor, err);
        if (r < 0)
                return r;
        if (strcmp(supervisor->status, "guest-panicked") == 0) {
                fail(err, EBUSY, "the guest's kernel has crashed");
                error_set_hint(err, "vhdctl vm reset '%s'", supervisor->name);
                return -EBUSY;
        }
        supervisor->user_paused = false;
        if (!machine_is_running(supervisor))
                r = qmp_call(supervisor->qmp, "cont", NULL, NULL, err);
        if (r < 0)
                return r;
        if (supervisor->hold == HOLD_PAUSE)
                hold_end(supervisor);
        machine_look(supervisor);
        *ret = state_answer(supervisor);
        return 1;
}
