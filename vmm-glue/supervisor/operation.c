/* SPDX-License-Identifier: Apache-2.0 */
/* operation.c - what was asked for and is under way; and the one list of what can be asked. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"

/* Steps are called when something has happened; and, because QEMU has no event for everything that we
 * wait for, so often while there are operations. */
#define POLL_US UINT64_C(50000)

#define MINUTE_MS 60000u

static const struct verb verbs[] = {
        {"start", step_start, 5 * MINUTE_MS, undo_start, true},
        {"stop", step_stop, MINUTE_MS, NULL, true},
        {"shutdown", step_shutdown, 0, NULL, true}, /* its limit is a parameter, its own to keep */
        {"reset", step_reset, MINUTE_MS, NULL, true},
        {"pause", step_pause, MINUTE_MS, NULL, true},
        {"resume", step_resume, MINUTE_MS, NULL, true},
        {"save", step_save, 9 * MINUTE_MS, undo_save, true},
        {"disk-add", step_disk_add, MINUTE_MS / 2, NULL, true},
        {"disk-remove", step_disk_remove, MINUTE_MS / 2, NULL, true},
        {"disk-resize", step_disk_resize, MINUTE_MS / 2, NULL, true},
        {"freeze", step_freeze, MINUTE_MS / 6, NULL, true},
        {"thaw", step_thaw, MINUTE_MS / 6, NULL, true},
        {"describe", step_describe, MINUTE_MS, NULL, true},
        {"network-add", step_network_add, MINUTE_MS / 2, NULL, false},
        {"network-remove", step_network_remove, MINUTE_MS / 2, NULL, false},
        {"set-memory", step_set_memory, MINUTE_MS, NULL, false},
        {0},
};

int64_t monotonic_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

const struct verb *verb_find(const char *name)
{
        for (const struct verb *verb = verbs; verb->name; verb++)
                if (strcmp(verb->name, name) == 0)
                        return verb;
        return NULL;
}

json_t *verbs_offered(void)
{
        json_t *list = json_array();

        for (const struct verb *verb = verbs; verb->name; verb++)
                if (verb->is_offered)
                        json_array_append_new(list, json_string(verb->name));
        return list;
}

bool operation_is_running(
        const struct supervisor *supervisor, const char *verb, const struct operation *but)
{
        for (const struct operation *one = supervisor->operations; one; one = one->next)
                if (one != but && !one->is_over && strcmp(one->verb->name, verb) == 0)
                        return true;
        return false;
}

/* --- answering --- */

static void answer(struct supervisor *supervisor, bool from_link, json_int_t number, json_t *result,
        const struct error *err)
{
        if (number < 0) {
                if (!result)
                        log_error(err);
                json_decref(result);
        } else if (!from_link) {
                agent_reply(supervisor, number, result, err);
        } else if (!supervisor->link) {
                json_decref(result);
        } else if (result) {
                link_answer(supervisor->link, number, result, NULL, 0);
        } else {
                link_refuse(supervisor->link, number, err);
        }
}

static void operation_free(struct operation *operation)
{
        for (size_t i = 0; i < operation->n_fds; i++)
                if (operation->fds[i] >= 0)
                        close(operation->fds[i]);
        if (operation->free_data)
                operation->free_data(operation->data);
        json_decref(operation->params);
        free(operation);
}

static void run_step(struct supervisor *supervisor, struct operation *operation)
{
        struct error err = ERROR_INIT;
        json_t *result = NULL;
        int r = operation->verb->step(supervisor, operation, &result, &err);

        if (r == 0 && monotonic_ms() >= operation->end_ms)
                r = fail(&err, ETIMEDOUT, "'%s' did not come to an end in time",
                        operation->verb->name);
        if (r == 0)
                return;
        operation->is_over = true;
        if (r < 0 && operation->verb->undo)
                operation->verb->undo(supervisor, operation);
        if (r > 0 && !result)
                result = json_object();
        answer(supervisor, operation->from_link, operation->number, r > 0 ? result : NULL, &err);
}

static void sweep(struct supervisor *supervisor)
{
        for (struct operation **p = &supervisor->operations; *p;) {
                struct operation *one = *p;

                if (!one->is_over) {
                        p = &one->next;
                        continue;
                }
                *p = one->next;
                operation_free(one);
        }
        sd_event_source_set_enabled(
                supervisor->poll, supervisor->operations ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
        if (supervisor->operations)
                sd_event_source_set_time_relative(supervisor->poll, POLL_US);
}

static int on_kick(sd_event_source *source, void *opaque)
{
        struct supervisor *supervisor = opaque;

        for (struct operation *one = supervisor->operations; one; one = one->next)
                if (!one->is_over)
                        run_step(supervisor, one);
        sweep(supervisor);
        if (supervisor->is_ending && !is_process_there(supervisor) && !supervisor->operations)
                sd_event_exit(supervisor->event, 0);
        return 0;
}

static int on_poll(sd_event_source *source, uint64_t usec, void *opaque)
{
        return on_kick(source, opaque);
}

void operations_kick(struct supervisor *supervisor)
{
        sd_event_source_set_enabled(supervisor->kick, SD_EVENT_ONESHOT);
}

/* --- beginning --- */

void operation_begin(struct supervisor *supervisor, const char *name, json_t *params, int *fds,
        size_t n_fds, bool from_link, json_int_t number)
{
        const struct verb *verb = verb_find(name);
        struct operation *operation = verb && params ? calloc(1, sizeof(*operation)) : NULL;
        struct operation **last;
        struct error err = ERROR_INIT;

        if (!operation) {
                if (verb)
                        fail(&err, ENOMEM, "no memory for a request");
                else
                        fail(&err, ENOSYS, "this vmm-glue does not know '%.64s'", name);
                json_decref(params);
                for (size_t i = 0; i < n_fds; i++)
                        close(fds[i]);
                answer(supervisor, from_link, number, NULL, &err);
                return;
        }
        operation->verb = verb;
        operation->params = params;
        for (size_t i = 0; i < n_fds; i++) {
                if (i < OPERATION_MAX_FDS)
                        operation->fds[operation->n_fds++] = fds[i];
                else
                        close(fds[i]);
        }
        operation->from_link = from_link;
        operation->number = number;
        operation->end_ms = verb->limit_ms ? monotonic_ms() + verb->limit_ms : INT64_MAX;
        for (last = &supervisor->operations; *last; last = &(*last)->next)
                ;
        *last = operation;
        operations_kick(supervisor);
}

void operation_begin_own(struct supervisor *supervisor, const char *verb, json_t *params)
{
        operation_begin(supervisor, verb, params, NULL, 0, false, -1);
}

int operations_start(struct supervisor *supervisor, struct error *err)
{
        int r = sd_event_add_defer(supervisor->event, &supervisor->kick, on_kick, supervisor);

        if (r >= 0)
                r = sd_event_source_set_enabled(supervisor->kick, SD_EVENT_OFF);
        if (r >= 0)
                r = sd_event_add_time(supervisor->event, &supervisor->poll, CLOCK_MONOTONIC,
                        UINT64_MAX, 1000, on_poll, supervisor);
        if (r >= 0)
                r = sd_event_source_set_enabled(supervisor->poll, SD_EVENT_OFF);
        return r < 0 ? fail_os(err, -r, "cannot watch what is under way") : 0;
}

void operations_done(struct supervisor *supervisor)
{
        while (supervisor->operations) {
                struct operation *one = supervisor->operations;

                supervisor->operations = one->next;
                operation_free(one);
        }
        sd_event_source_disable_unref(supervisor->kick);
        sd_event_source_disable_unref(supervisor->poll);
}
