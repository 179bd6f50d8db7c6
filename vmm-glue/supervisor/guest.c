/* SPDX-License-Identifier: Apache-2.0 */
/* guest.c - what the guest does for us: heartbeat, shutdown, time, freezing its file systems.
 *
 * A frozen guest is thawed THAW_MS later whatever happens to whoever froze it: RUN/vmm/ID/frozen, written before
 * it is frozen, tells the next supervisor until when. An agent that does not answer is told again, ever more seldom.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

#define PING_TICKS  5u /* seconds */
#define PING_MS     4000u
#define LOST_MS     20000 /* a heartbeat older than that */
#define INFO_MS     10000u
#define FREEZE_MS   8000u
#define THAW_MS     10000
#define SHUTDOWN_MS 3000u
#define THAW_SELDOM 6u /* the time between two tries doubles that often */

static bool is_heard(const struct supervisor *supervisor)
{
        return supervisor->heartbeat_ms > 0 && monotonic_ms() - supervisor->heartbeat_ms < LOST_MS;
}

bool guest_has_agent(const struct supervisor *supervisor)
{
        return supervisor->qga && is_heard(supervisor);
}

void guest_done(struct supervisor *supervisor)
{
        supervisor->qga = qga_close(supervisor->qga);
        supervisor->guest = (json_decref(supervisor->guest), NULL);
        supervisor->heartbeat_ms = 0;
        supervisor->is_frozen = false;
        supervisor->set_time = false;
}

/* --- the channel --- */

static void on_gone(void *opaque)
{
        struct supervisor *supervisor = opaque;

        supervisor->qga = qga_close(supervisor->qga);
        supervisor->heartbeat_ms = 0;
}

static void connect_agent(struct supervisor *supervisor)
{
        _cleanup_free_ char *path = NULL;
        struct error err = ERROR_INIT;

        if (!supervisor->qga &&
                vm_path(&supervisor->options, supervisor->id, "qga.sock", &path, &err) == 0)
                qga_open(supervisor->event, path, on_gone, supervisor, &supervisor->qga, &err);
}

void guest_channel(struct supervisor *supervisor, bool is_open)
{
        if (is_open)
                supervisor->tick_count = 0; /* ask at once */
        else
                supervisor->heartbeat_ms = 0;
}

/* An event tells too, but not after an adoption. What is sent to a port that nobody has open waits there. */
static bool channel_is_open(struct supervisor *supervisor)
{
        json_auto_t *answer = NULL;
        json_t *item;
        size_t i;

        if (!supervisor->qmp || qmp_call(supervisor->qmp, "query-chardev", NULL, &answer, NULL) < 0)
                return false;
        json_array_foreach(answer, i, item)
        {
                const char *label = json_string_value(json_object_get(item, "label"));

                if (label && strcmp(label, "qga") == 0)
                        return json_is_true(json_object_get(item, "frontend-open"));
        }
        return false;
}

/* --- heartbeat --- */

static void on_os(void *opaque, const json_t *result, const struct error *err)
{
        struct supervisor *supervisor = opaque;
        json_t *name = json_object_get(result, "pretty-name");

        if (json_is_string(name) && supervisor->guest)
                json_object_set(supervisor->guest, "os", name);
}

static void on_info(void *opaque, const json_t *result, const struct error *err)
{
        struct supervisor *supervisor = opaque;
        json_t *version = json_object_get(result, "version");

        if (!json_is_string(version))
                return;
        json_decref(supervisor->guest);
        supervisor->guest = json_pack("{s:O}", "version", version);
        if (supervisor->qga)
                qga_ask(supervisor->qga, "guest-get-osinfo", NULL, INFO_MS, on_os, supervisor,
                        NULL);
}

/* Memory was loaded: the guest's clock stands where it was saved. */
static void send_time(struct supervisor *supervisor)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        if (qga_ask(supervisor->qga, "guest-set-time",
                    json_pack("{s:I}", "time", (json_int_t)now.tv_sec * 1000000000 + now.tv_nsec),
                    INFO_MS, NULL, NULL, NULL) == 0)
                supervisor->set_time = false;
}

static void on_pong(void *opaque, const json_t *result, const struct error *err)
{
        struct supervisor *supervisor = opaque;

        if (!result && err->code != EREMOTEIO)
                return;
        supervisor->heartbeat_ms = monotonic_ms();
        if (supervisor->qga && supervisor->set_time)
                send_time(supervisor);
        if (supervisor->qga && !supervisor->guest)
                qga_ask(supervisor->qga, "guest-info", NULL, INFO_MS, on_info, supervisor, NULL);
}

/* --- frozen until --- */

static int note_frozen(struct supervisor *supervisor, struct error *err)
{
        int64_t until = monotonic_ms() + THAW_MS;
        char text[32];
        int r;

        snprintf(text, sizeof(text), "%" PRId64, until);
        r = mark_set(supervisor, FROZEN_NAME, text, err);
        if (r < 0)
                return r;
        supervisor->is_frozen = true;
        supervisor->thaw_ms = until;
        supervisor->n_late_thaws = 0;
        return 0;
}

static void note_thawed(struct supervisor *supervisor)
{
        supervisor->is_frozen = false;
        mark_end(supervisor, FROZEN_NAME);
}

void guest_look(struct supervisor *supervisor)
{
        int64_t latest = monotonic_ms() + THAW_MS;
        char text[32];

        if (!is_process_there(supervisor) ||
                !mark_get(supervisor, FROZEN_NAME, text, sizeof(text)))
                return;
        supervisor->is_frozen = true;
        supervisor->thaw_ms = strtoll(text, NULL, 10);
        if (supervisor->thaw_ms > latest)
                supervisor->thaw_ms = latest;
}

void guest_was_reset(struct supervisor *supervisor)
{
        if (supervisor->is_frozen)
                note_thawed(supervisor);
}

static void on_late_thaw(void *opaque, const json_t *result, const struct error *err)
{
        if (result)
                note_thawed(opaque);
        else
                log_line(LOG_ERR_LINE, "the guest's file systems may be frozen still: %s",
                        err->message);
}

static void thaw_if_late(struct supervisor *supervisor)
{
        if (!supervisor->is_frozen || monotonic_ms() < supervisor->thaw_ms || !supervisor->qga)
                return;
        if (supervisor->n_late_thaws == 0)
                log_warning("the guest's file systems were frozen for too long: they are thawed");
        supervisor->thaw_ms = monotonic_ms() + (THAW_MS << supervisor->n_late_thaws);
        if (supervisor->n_late_thaws < THAW_SELDOM)
                supervisor->n_late_thaws++;
        qga_ask(supervisor->qga, "guest-fsfreeze-thaw", NULL, FREEZE_MS, on_late_thaw, supervisor,
                NULL);
}

void guest_tick(struct supervisor *supervisor)
{
        /* Always: to a guest whose agent opens the port before we do, it reads as ended. */
        connect_agent(supervisor);
        thaw_if_late(supervisor);
        if (supervisor->tick_count++ % PING_TICKS != 0 || !machine_is_running(supervisor))
                return;
        /* A frozen agent answers a few commands only, and this one is among them. */
        if (supervisor->qga && channel_is_open(supervisor))
                qga_ask(supervisor->qga, "guest-ping", NULL, PING_MS, on_pong, supervisor, NULL);
}

json_t *guest_describe(struct supervisor *supervisor)
{
        bool heard = is_heard(supervisor);
        json_t *object = json_pack("{s:b, s:s}", "agent", heard, "heartbeat",
                heard                              ? "ok"
                        : supervisor->heartbeat_ms ? "lost"
                                                   : "none");

        if (supervisor->guest)
                json_object_update(object, supervisor->guest);
        return object;
}

/* --- shutdown --- */

int guest_shutdown(struct supervisor *supervisor, struct error *err)
{
        if (!supervisor->qga)
                return fail(err, ENXIO, "the guest has no agent");
        return qga_ask(supervisor->qga, "guest-shutdown", NULL, SHUTDOWN_MS, NULL, NULL, err);
}

/* --- freeze, thaw --- */

/* Outlives the operation, for an answer that comes too late. */
struct answer {
        struct supervisor *supervisor;
        bool is_there, is_orphan;
        json_t *result;
        struct error err;
};

static void answer_free(void *data)
{
        struct answer *answer = data;

        if (!answer->is_there) {
                answer->is_orphan = true;
                return;
        }
        json_decref(answer->result);
        free(answer);
}

static void on_answer(void *opaque, const json_t *result, const struct error *err)
{
        struct answer *answer = opaque;

        answer->is_there = true;
        if (answer->is_orphan) {
                answer_free(answer);
                return;
        }
        answer->result = json_incref((json_t *)result);
        answer->err = *err;
        operations_kick(answer->supervisor);
}

/* 1 when @command was answered; its answer is in operation->data. */
static int ask(struct supervisor *supervisor, struct operation *operation, const char *command,
        struct error *err)
{
        struct answer *answer = operation->data;
        int r;

        if (answer) {
                if (!answer->is_there)
                        return 0;
                if (answer->result)
                        return 1;
                *err = answer->err;
                return -err->code;
        }
        r = machine_must(supervisor, err);
        if (r < 0)
                return r;
        if (!guest_has_agent(supervisor)) {
                fail(err, ENXIO, "the guest has no agent that answers");
                error_set_hint(err, "install qemu-guest-agent in the guest");
                return -ENXIO;
        }
        answer = calloc(1, sizeof(*answer));
        if (!answer)
                return fail(err, ENOMEM, "no memory for a command");
        answer->supervisor = supervisor;
        r = qga_ask(supervisor->qga, command, NULL, FREEZE_MS, on_answer, answer, err);
        if (r < 0) {
                free(answer);
                return r;
        }
        operation->data = answer;
        operation->free_data = answer_free;
        return 0;
}

static int tell_count(struct operation *operation, json_t **ret)
{
        struct answer *answer = operation->data;

        *ret = json_pack("{s:O}", "file-systems", answer->result);
        return 1;
}

int step_freeze(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        int r;

        /* From now on, since nobody knows when in the guest it begins. */
        if (!operation->data && !supervisor->is_frozen) {
                r = note_frozen(supervisor, err);
                if (r == 0)
                        r = ask(supervisor, operation, "guest-fsfreeze-freeze", err);
                if (r < 0)
                        note_thawed(supervisor);
                return r;
        }
        if (!operation->data)
                return fail(err, EBUSY, "the guest's file systems are frozen already");
        r = ask(supervisor, operation, "guest-fsfreeze-freeze", err);
        if (r > 0)
                return tell_count(operation, ret);
        if (r < 0) /* it may have frozen some */
                supervisor->thaw_ms = monotonic_ms();
        return r;
}

int step_thaw(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        int r = ask(supervisor, operation, "guest-fsfreeze-thaw", err);

        if (r <= 0)
                return r;
        note_thawed(supervisor);
        return tell_count(operation, ret);
}

/* --- describe --- */

int step_describe(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        json_t *object = json_pack("{s:s, s:o, s:i}", "state", machine_state(supervisor), "guest",
                guest_describe(supervisor), "resets", (int)supervisor->n_resets);

        if (!object)
                return fail(err, ENOMEM, "no memory for the answer");
        if (is_process_there(supervisor)) {
                json_object_set_new(object, "pid", json_integer(supervisor->pid));
                json_object_set(object, "accel", json_object_get(supervisor->config, "accel"));
                json_object_set(object, "machine", json_object_get(supervisor->config, "machine"));
                json_object_set(object, "qemu", json_object_get(supervisor->config, "qemu"));
                json_object_set(object, "display", json_object_get(supervisor->config, "display"));
        }
        if (supervisor->last_end)
                json_object_set(object, "last-end", supervisor->last_end);
        *ret = object;
        return 1;
}
