/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/hot.h"

#include <stdio.h>
#include <string.h>

#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/disks.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/worker_link.h"

bool hot_is_offered(struct vm *vm, const struct vm_row *row, const char *verb)
{
        return row->is_on_by_agent && agent_offers(vm, verb);
}

int hot_refuse_saved(struct vm *vm, const struct vm_row *row, struct error *err)
{
        json_auto_t *answer = NULL;
        const char *state;
        int r;

        if (!hot_is_offered(vm, row, "describe"))
                return 0;
        r = agent_ask(vm, "describe", json_object(), NULL, 0, &answer, err);
        state = r == 0 ? param_text(answer, "state") : NULL;
        if (!state || strcmp(state, "saved") != 0)
                return r;
        r = fail(err, EBUSY, "vm '%s' is saved, and its disks stay as its memory knows them",
                row->name);
        error_set_hint(err, "vhdctl vm start '%s' goes on, vhdctl vm stop '%s' gives the memory up",
                row->name, row->name);
        return r;
}

/* The disk as disk.list shows it, and how to get at it. */
static json_t *describe(struct vm *vm, const struct vm_row *row, const struct disk_row *disk)
{
        const struct broker_options *options = &vm->broker->options;
        _cleanup_free_ char *export = export_name(row->name, disk->name, NULL);
        json_t *shown = NULL;

        if (!export || disk_to_json(vm, row, disk, NULL, false, &shown, NULL) < 0)
                return NULL;
        return json_pack("{s:o, s:s, s:s?}", "disk", shown, "export", export, "socket",
                options->n_nbd_paths > 0 ? options->nbd_paths[0] : NULL);
}

static int ask(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        const char *verb, char guest[HOT_GUEST_MAX], struct error *err)
{
        json_auto_t *answer = NULL;
        const char *said;
        int r;

        guest[0] = '\0';
        if (!hot_is_offered(vm, row, verb))
                return 0;
        vm_let_clients_in(vm, true);
        r = agent_ask(vm, verb, describe(vm, row, disk), NULL, 0, &answer, err);
        vm_let_clients_in(vm, false);
        said = r == 0 ? param_text(answer, "guest") : NULL;
        if (said)
                snprintf(guest, HOT_GUEST_MAX, "%s", said);
        return r;
}

/* An agent that did not answer may have done it, or do it still. */
static void take_back(
        struct vm *vm, const struct vm_row *row, const struct disk_row *disk, const char *verb)
{
        struct error err = ERROR_INIT;
        char ignored[HOT_GUEST_MAX];

        if (ask(vm, row, disk, verb, ignored, &err) < 0)
                broker_log_error(vm->broker, row->name, &err);
}

int hot_add(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        char guest[HOT_GUEST_MAX], struct error *err)
{
        int r = ask(vm, row, disk, "disk-add", guest, err);

        if (r == -ETIMEDOUT)
                take_back(vm, row, disk, "disk-remove");
        return r < 0 ? fail_prefix(err, r, "disk '%s' was not attached", disk->name) : 0;
}

int hot_remove(
        struct vm *vm, const struct vm_row *row, const struct disk_row *disk, struct error *err)
{
        char ignored[HOT_GUEST_MAX];
        int r = ask(vm, row, disk, "disk-remove", ignored, err);

        if (r == -ETIMEDOUT)
                take_back(vm, row, disk, "disk-add");
        return r < 0 ? fail_prefix(err, r, "disk '%s' was not detached", disk->name) : 0;
}

int hot_resize(struct vm *vm, const struct vm_row *row, const struct disk_row *disk,
        char guest[HOT_GUEST_MAX], struct error *err)
{
        return ask(vm, row, disk, "disk-resize", guest, err);
}
