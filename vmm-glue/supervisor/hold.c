/* SPDX-License-Identifier: Apache-2.0 */
/* hold.c - why a guest stands still, in a file: so that it does not for ever when who would let it go on has died.
 *
 *      RUN/vmm/ID/held     while                                                           a later supervisor
 *      "start"             QEMU is started, and the guest has not run an instruction       ends QEMU
 *      "pause"             a snapshot, or a save of ours, has stopped the guest            lets it go on; or ends
 *                          QEMU, when all of its memory is saved as the vm's own
 *
 * It is written before QEMU is asked, and goes once the guest runs. A pause that a person asked for is not held:
 * it stays. A supervisor that lives lets a snapshot's guest go on when the daemon's connection ends.
 */
#include <string.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"
#include "vmm-glue/supervisor/relay.h"

static const char *const words[] = {[HOLD_START] = "start", [HOLD_PAUSE] = "pause"};

int hold_set(struct supervisor *supervisor, enum hold hold, struct error *err)
{
        int r = mark_set(supervisor, HOLD_NAME, words[hold], err);

        if (r < 0)
                return r;
        supervisor->hold = hold;
        supervisor->is_hold_orphan = false;
        return 0;
}

void hold_end(struct supervisor *supervisor)
{
        if (supervisor->hold == HOLD_NONE)
                return;
        supervisor->hold = HOLD_NONE;
        supervisor->is_hold_orphan = false;
        mark_end(supervisor, HOLD_NAME);
}

void hold_forsake(struct supervisor *supervisor)
{
        supervisor->is_hold_orphan = supervisor->hold == HOLD_PAUSE;
}

static void look(struct supervisor *supervisor)
{
        char text[16];

        if (!mark_get(supervisor, HOLD_NAME, text, sizeof(text)))
                return;
        for (enum hold hold = HOLD_START; hold <= HOLD_PAUSE; hold++)
                if (strcmp(text, words[hold]) == 0)
                        supervisor->hold = hold;
}

static void end_qemu(struct supervisor *supervisor, const char *how, const char *message)
{
        log_info("%s", message);
        json_decref(supervisor->last_end);
        supervisor->last_end = json_pack("{s:s, s:s}", "how", how, "message", message);
        supervisor->kept_saved = supervisor->has_saved;
        machine_quit(supervisor);
}

static bool saves_in_background(struct supervisor *supervisor)
{
        json_auto_t *answer = NULL;
        json_t *one;
        size_t i;

        if (qmp_call(supervisor->qmp, "query-migrate-capabilities", NULL, &answer, NULL) < 0)
                return false;
        json_array_foreach(answer, i, one)
        {
                const char *name = json_string_value(json_object_get(one, "capability"));

                if (name && strcmp(name, "background-snapshot") == 0)
                        return json_is_true(json_object_get(one, "state"));
        }
        return false;
}

/* What an earlier supervisor was saving goes to nobody. In the background it must not be cancelled, and somebody
 * has to read it: its relay does, unless that has died, too. */
static void end_saving(struct supervisor *supervisor)
{
        json_auto_t *answer = NULL;
        struct error err = ERROR_INIT;
        const char *status;

        if (qmp_call(supervisor->qmp, "query-migrate", NULL, &answer, NULL) < 0)
                return;
        status = json_string_value(json_object_get(answer, "status"));
        if (!status || (strcmp(status, "setup") != 0 && strcmp(status, "active") != 0))
                return;
        if (!saves_in_background(supervisor))
                qmp_call(supervisor->qmp, "migrate_cancel", NULL, NULL, NULL);
        else if (relay_discard(supervisor, &err) < 0)
                log_error(&err);
}

void hold_adopt(struct supervisor *supervisor)
{
        look(supervisor);
        if (supervisor->hold == HOLD_START) {
                end_qemu(supervisor, "stopped", "the vm's start was cut off, and is taken back");
                return;
        }
        if (supervisor->hold == HOLD_PAUSE && supervisor->has_saved &&
                !machine_is_running(supervisor)) {
                end_qemu(supervisor, "saved", "the vm's memory was saved");
                return;
        }
        end_saving(supervisor);
        hold_forsake(supervisor);
}

void hold_tick(struct supervisor *supervisor)
{
        struct error err = ERROR_INIT;

        /* A save that goes on without its asker knows by itself when the guest may. */
        if (!supervisor->is_hold_orphan || !supervisor->qmp || supervisor->saw_end ||
                operation_is_running(supervisor, "save", NULL))
                return;
        if (strcmp(supervisor->status, "guest-panicked") == 0) {
                hold_end(supervisor);
                return;
        }
        log_info("the guest goes on: nobody is there any more for whom it stood still");
        if (!machine_is_running(supervisor) &&
                qmp_call(supervisor->qmp, "cont", NULL, NULL, &err) < 0) {
                log_error(&err);
                return;
        }
        machine_look(supervisor);
        if (machine_is_running(supervisor))
                hold_end(supervisor);
}
