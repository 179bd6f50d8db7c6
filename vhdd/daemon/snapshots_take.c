/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots_take.c - a snapshot of all disks at one instant (E10), in this order:
 *
 *   T1  a row in the journal that names the new images, durable; one that names the memory's file
 *   T2  the new images, made and synced by the worker, and their directories; the memory's file
 *   T3  the agent lets the guest pause (for its memory), or freeze its file systems (--quiesce)
 *   T4  the switch, in the worker: from here on writes go to the new images, and a record in memory
 *       that outlives processes says so. No flush is answered any more. The agent thaws, or begins to
 *       save and lets the guest go on
 *   T5  the frozen images are flushed and settled
 *   T6  one transaction of the catalog: the snapshot is there; with memory: it is pending
 *   T7  the flushes are answered, the record goes
 *   T8  without the vm's lock: the memory is saved, the agent resumes. One transaction: it is committed
 *
 * Before T4 everything is undone; after it, everything is finished, here or by recover.c at the next
 * start of the worker or the daemon. What died at T4 is known by the record alone. A pending snapshot
 * whose memory was not saved, for whatever reason, is deleted as a snapshot is: nobody has seen it, and
 * what its disks have been written since goes back into the images below. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/file.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/disks.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/merges.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/recover.h"
#include "vhdd/daemon/seals.h"
#include "vhdd/daemon/snapshots.h"
#include "vhdd/daemon/worker_link.h"

#define SWITCH_MS 60000
#define FLUSH_MS  (10 * 60000u)

/* What is frozen thaws by itself after 10 s, whoever died: what was not switched by then is no snapshot of
 * frozen file systems. */
#define DESCRIBE_S       5
#define FREEZE_S         10
#define THAW_S           5
#define FROZEN_SWITCH_MS 8000
#define FROZEN_US        (9 * INT64_C(1000000))

/* ---- what every snapshot knows of its disks ---- */

struct snapshot_disk_row snapshot_disk_of(
        const char *snapshot, const struct disk_row *disk, bool skipped)
{
        struct snapshot_disk_row row = {
                .name = disk->name,
                .file = skipped ? NULL : disk->file,
                .controller = disk->controller,
                .bus = disk->bus,
                .unit = disk->unit,
                .read_only = disk->read_only,
                .size = disk->size,
                .skipped = skipped,
        };

        snprintf(row.snapshot, sizeof(row.snapshot), "%s", snapshot);
        snprintf(row.disk, sizeof(row.disk), "%s", disk->id);
        memcpy(row.kind, disk->kind, sizeof(row.kind));
        return row;
}

json_t *snapshot_settings(const struct vm_row *row, const struct disk_row *disks, size_t n)
{
        json_t *settings = json_loads(row->settings, 0, NULL);
        json_t *list = json_array();

        for (size_t i = 0; i < n; i++)
                if (json_array_append_new(list, disk_row_to_json(&disks[i])) < 0) {
                        json_decref(list);
                        list = NULL;
                        break;
                }
        return json_pack("{s:o*, s:o}", "settings", settings, "disks", list);
}

int snapshot_check_name(
        struct vm *vm, const struct vm_row *row, const char *name, struct error *err)
{
        struct snapshot_row found = {0};
        int r = name_check("snapshot", name, err);

        if (r < 0)
                return r;
        r = catalog_snapshot_find(vm->broker->catalog, vm->id, name, &found, err);
        snapshot_row_done(&found);
        if (r == 0)
                return fail(err, EEXIST, "vm '%s' has a snapshot '%s' already", row->name, name);
        if (r == -ENOENT)
                error_clear(err);
        return r == -ENOENT ? 0 : r;
}

/* ---- one being taken ---- */

struct taking {
        struct vm *vm;
        struct vm_row row;
        struct disk_row *disks;
        size_t n_disks;
        char id[UUID_TEXT_SIZE];
        const char *name, *note;
        json_t *data; /* the operation's */
        char **make;
        size_t n_make;
        struct operation *operation;
        bool on, want_memory, want_frozen;
        uint64_t stall_us;

        /* what the agent does meanwhile */
        struct memory_saving memory;
        struct agent_call *saving;
        uint64_t pauser; /* the agent's registration: only it knows how the guest stands */
        bool paused, frozen, was_paused;
        int64_t paused_us, frozen_us; /* CLOCK_MONOTONIC: since when */
        uint64_t pause_us;            /* how long it stood still; 0: not at all */
};

static void taking_done(struct taking *taking)
{
        agent_call_drop(taking->saving);
        memory_done(&taking->memory);
        operation_free(taking->operation);
        json_decref(taking->data);
        for (size_t i = 0; i < taking->n_make; i++)
                free(taking->make[i]);
        free(taking->make);
        disk_rows_free(taking->disks, taking->n_disks);
        vm_row_done(&taking->row);
        vm_release(taking->vm);
}

static int64_t monotonic_us(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

/* Only a VHD can be frozen under a child: a child knows its parent by an id. */
static bool can_freeze(const struct disk_row *disk)
{
        return strcmp(disk->kind, "vhd") == 0;
}

static int refuse_pass_through(const struct taking *taking, bool skip, struct error *err)
{
        size_t n = 0;

        for (size_t i = 0; i < taking->n_disks; i++) {
                int r;

                n += can_freeze(&taking->disks[i]);
                if (can_freeze(&taking->disks[i]) || skip)
                        continue;
                r = fail(err, ENOTSUP, "disk '%s' of vm '%s' is %s, and has no snapshots",
                        taking->disks[i].name, taking->row.name,
                        disk_is_pass_through(&taking->disks[i]) ? "a pass-through disk" : "raw");
                error_set_hint(err, "--skip-pass-through takes one of the other disks alone");
                return r;
        }
        if (n == 0 && taking->n_disks > 0)
                return fail(err, ENOTSUP, "vm '%s' has no disk that can have a snapshot",
                        taking->row.name);
        return 0;
}

/* The names of the new images: read-only disks need none, nobody writes to them. */
static int plan_disk(
        struct taking *taking, const struct disk_row *disk, json_t *list, struct error *err)
{
        uint8_t uuid[16];
        char text[UUID_TEXT_SIZE];
        char *child;
        int r;

        if (!can_freeze(disk) || disk->read_only)
                return 0;
        uuid_random(uuid);
        r = name_of_avhd(disk->file, disk->name, uuid, &child, err);
        if (r < 0)
                return r;
        taking->make[taking->n_make++] = child;
        if (json_array_append_new(list,
                    json_pack("{s:s, s:s, s:s, s:s}", "disk", disk->id, "frozen", disk->file,
                            "child", child, "uuid", uuid_format(uuid, text))) < 0)
                return fail(err, ENOMEM, "no memory for a snapshot");
        return 0;
}

static const char *consistency(const struct taking *taking)
{
        if (taking->want_memory)
                return SNAPSHOT_MEMORY;
        return taking->want_frozen ? SNAPSHOT_FILESYSTEM : SNAPSHOT_CRASH;
}

static int plan(struct taking *taking, struct error *err)
{
        json_t *list = json_array();
        uint8_t id[16];
        int r = 0;

        uuid_random(id);
        uuid_format(id, taking->id);
        taking->make = calloc(taking->n_disks + 1, sizeof(*taking->make));
        if (!taking->make)
                r = fail(err, ENOMEM, "no memory for a snapshot");
        for (size_t i = 0; r == 0 && i < taking->n_disks; i++)
                r = plan_disk(taking, &taking->disks[i], list, err);
        taking->data = json_pack("{s:s, s:s, s:s, s:I, s:s?, s:b, s:s, s:o, s:o}", "snapshot",
                taking->id, "name", taking->name, "parent", taking->row.current, "created",
                (json_int_t)now_us(), "note", taking->note, "pending", taking->want_memory,
                "consistency", consistency(taking), "was",
                snapshot_settings(&taking->row, taking->disks, taking->n_disks), "disks", list);
        if (r == 0 && !taking->data)
                r = fail(err, ENOMEM, "no memory for a snapshot");
        return r;
}

/* What the agent shall do: memory, or frozen file systems. Memory holds what the guest had not written
 * yet; frozen disks need none, and a guest that went on from both would have to be thawed. */
static int choose_kind(struct taking *taking, const json_t *params, struct error *err)
{
        struct vm *vm = taking->vm;
        int r = 0;

        taking->want_frozen = taking->on && param_bool(params, "quiesce");
        if (taking->want_frozen) {
                r = agent_must(vm, &taking->row, "freeze", err);
                if (r == 0)
                        r = agent_must(vm, &taking->row, "thaw", err);
                return r;
        }
        taking->want_memory = taking->on && !param_bool(params, "disks-only") &&
                agent_offers(vm, "save") && agent_offers(vm, "pause") && agent_offers(vm, "resume");
        if (taking->want_memory && vm->saving[0])
                return fail(err, EBUSY, "the memory of vm '%s' is being saved for another snapshot",
                        taking->row.name);
        return 0;
}

static int take_begin(
        struct broker *broker, const json_t *params, struct taking *taking, struct error *err)
{
        int r = vm_get(broker, param_text(params, "vm"), &taking->vm, &taking->row, err);

        taking->name = param_text(params, "name");
        taking->note = param_text(params, "note");
        /* What was cut off before is settled before: it may have this name, and these disks. */
        if (r == 0)
                r = worker_up(taking->vm, err);
        if (r == 0)
                r = vm_row_again(taking->vm, &taking->row, err);
        if (r == 0)
                r = snapshot_check_name(taking->vm, &taking->row, taking->name, err);
        if (r == 0)
                r = catalog_disk_list(
                        broker->catalog, taking->vm->id, &taking->disks, &taking->n_disks, err);
        if (r == 0)
                r = refuse_pass_through(taking, param_bool(params, "skip-pass-through"), err);
        if (r == 0)
                r = vm_is_on(taking->vm, &taking->row, &taking->on, err);
        return r == 0 ? choose_kind(taking, params, err) : r;
}

/* ---- the steps ---- */

static int make_children(struct taking *taking, struct error *err)
{
        json_t *disk;
        size_t i;
        int r = 0;

        json_array_foreach(json_object_get(taking->data, "disks"), i, disk)
        {
                const char *child = param_text(disk, "child");

                r = worker_grant(taking->vm, child, LINK_WRITE | LINK_CREATE, err);
                if (r == 0)
                        r = worker_call(taking->vm, "chain.create-child",
                                json_pack("{s:s, s:s, s:s}", "chain", param_text(disk, "disk"),
                                        "path", child, "uuid", param_text(disk, "uuid")),
                                WORKER_CALL_MS, NULL, err);
                if (r < 0)
                        return fail_prefix(err, r, "cannot take snapshot '%s'", taking->name);
        }
        return operation_made(taking->operation, err);
}

static int do_switch(struct taking *taking, struct error *err)
{
        json_auto_t *answer = NULL;
        json_t *chains = json_array(), *disk;
        unsigned timeout_ms = taking->want_frozen ? FROZEN_SWITCH_MS : SWITCH_MS;
        size_t i;
        int r;

        json_array_foreach(json_object_get(taking->data, "disks"), i, disk)
        {
                json_array_append_new(chains,
                        json_pack("{s:s, s:s, s:s}", "chain", param_text(disk, "disk"), "disk",
                                param_text(disk, "disk"), "path", param_text(disk, "child")));
        }
        if (json_array_size(chains) == 0) { /* no disk that could be written to */
                json_decref(chains);
                return 0;
        }
        r = worker_call(taking->vm, "snapshot.switch",
                json_pack("{s:s, s:o}", "snapshot", taking->id, "chains", chains), timeout_ms,
                &answer, err);
        if (r < 0)
                return r;
        taking->stall_us = (uint64_t)param_int(answer, "stall-us", 0);
        json_array_foreach(json_object_get(taking->data, "disks"), i, disk)
        {
                /* Without memory for this the worker is asked anew what it has. */
                r = worker_chain_pushed(
                        taking->vm, param_text(disk, "disk"), param_text(disk, "child"), err);
                if (r < 0)
                        vm_set_down(taking->vm, "no memory to note a snapshot");
        }
        return 0;
}

static const json_t *find_planned(const json_t *data, const char *disk)
{
        json_t *item;
        size_t i;

        json_array_foreach(json_object_get(data, "disks"), i, item)
        {
                if (strcmp(param_text(item, "disk"), disk) == 0)
                        return item;
        }
        return NULL;
}

/* The seal: what the frozen image looked like, for those who ask whether it was changed since. */
static int seal_row(struct catalog *catalog, const char *path, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        bool merging = false;
        struct stat st;
        int r = catalog_image_find(catalog, path, &row, err);

        if (r < 0)
                return r;
        if (stat(path, &st) < 0)
                return fail_os(err, errno, "cannot look at '%s'", path);
        r = merge_jobs_have_begun(catalog, path, &merging, err);
        if (r < 0 || merging)
                return r; /* it changes still: what it is to become is the merge's to say */
        row.sealed_size = (uint64_t)st.st_size;
        row.sealed_mtime_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        return catalog_image_update(catalog, &row, err);
}

static int write_disk(struct vm *vm, const json_t *data, const json_t *was, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        _cleanup_(disk_row_done) struct disk_row disk = {0};
        struct snapshot_disk_row row;
        const json_t *planned;
        uint8_t uuid[16] = {0};
        int r = disk_row_from_json(was, vm->id, &disk, err);

        if (r < 0)
                return r;
        row = snapshot_disk_of(param_text(data, "snapshot"), &disk, !can_freeze(&disk));
        r = catalog_snapshot_disk_insert(catalog, &row, err);
        planned = find_planned(data, disk.id);
        if (r < 0 || !planned)
                return r;
        if (!uuid_parse(param_text(planned, "uuid"), uuid))
                return fail(err, EUCLEAN, "the journal names a new image without an id");
        r = seal_row(catalog, disk.file, err);
        if (r == 0)
                r = image_put_child(catalog, param_text(planned, "child"), uuid, disk.file, err);
        if (r == 0) {
                free(disk.file);
                disk.file = strdup(param_text(planned, "child"));
                r = disk.file ? catalog_disk_update(catalog, &disk, err)
                              : fail(err, ENOMEM, "no memory for a path");
        }
        return r == 0 ? seals_note(catalog, vm->id, param_text(planned, "frozen"), err) : r;
}

static int write_snapshot(struct vm *vm, const json_t *data, struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        const json_t *was = json_object_get(data, "was");
        _cleanup_free_ char *settings = was ? json_dumps(was, JSON_COMPACT) : NULL;
        _cleanup_(vm_row_done) struct vm_row vm_row = {0};
        struct snapshot_row row = {
                .name = (char *)param_text(data, "name"),
                .created_us = param_int(data, "created", 0),
                .note = (char *)param_text(data, "note"),
                .settings = settings,
        };
        const char *kind = param_text(data, "consistency");
        json_t *disk;
        size_t i;
        int r;

        snprintf(row.state, sizeof(row.state), "%s",
                param_bool(data, "pending") ? "pending" : "committed");
        snprintf(row.consistency, sizeof(row.consistency), "%s", kind ? kind : SNAPSHOT_CRASH);
        if (!settings || !row.name)
                return fail(err, EUCLEAN, "the journal's row of a snapshot is damaged");
        snprintf(row.id, sizeof(row.id), "%s", param_text(data, "snapshot"));
        snprintf(row.vm, sizeof(row.vm), "%s", vm->id);
        snprintf(row.parent, sizeof(row.parent), "%s", param_text(data, "parent"));
        r = catalog_snapshot_insert(catalog, &row, err);
        json_array_foreach(json_object_get(was, "disks"), i, disk)
        {
                if (r == 0)
                        r = write_disk(vm, data, disk, err);
        }
        if (r == 0)
                r = catalog_vm_find(catalog, vm->id, &vm_row, err);
        if (r == 0) {
                memcpy(vm_row.current, row.id, sizeof(vm_row.current));
                r = catalog_vm_update(catalog, &vm_row, err);
        }
        return r;
}

int snapshot_finish(struct vm *vm, struct operation *operation, struct error *err)
{
        const json_t *data = operation_data(operation);
        const char *id = param_text(data, "snapshot");
        bool any = json_array_size(json_object_get(data, "disks")) > 0;
        struct error unflushed = ERROR_INIT;
        int r, flushed = 0;

        if (any) /* T5 */
                flushed = worker_call(vm, "snapshot.flush", json_pack("{s:s}", "snapshot", id),
                        FLUSH_MS, NULL, &unflushed);
        if (flushed == -EHOSTDOWN || flushed == -ETIMEDOUT) {
                if (err)
                        *err = unflushed;
                return flushed;
        }
        if (!operation_is_committed(operation)) {
                r = operation_made(operation, err);
                if (r == 0)
                        r = catalog_begin(vm->broker->catalog, err);
                if (r < 0)
                        return r;
                r = write_snapshot(vm, data, err); /* T6 */
                if (r == 0)
                        r = operation_commit(operation, err);
                if (r < 0) {
                        catalog_rollback(vm->broker->catalog);
                        return r;
                }
        }
        if (any) { /* T7 */
                r = worker_call(vm, "snapshot.commit", json_pack("{s:s}", "snapshot", id),
                        WORKER_CALL_MS, NULL, err);
                if (r < 0 && r != -EHOSTDOWN && r != -ETIMEDOUT)
                        vm_set_down(vm, "a snapshot was not committed in the worker");
        }
        r = operation_end(operation, err);
        if (r < 0)
                broker_log_error(vm->broker, vm->id, err);
        /* Nothing can be taken back after a switch: it is there, but whoever asked must know. */
        if (flushed < 0) {
                if (err)
                        *err = unflushed;
                return fail_prefix(err, flushed, "snapshot '%s' was taken, but it is not durable",
                        param_text(data, "name"));
        }
        return 0;
}

/* ---- the agent's part ---- */

static void resume(struct taking *taking)
{
        struct error err = ERROR_INIT;
        int r;

        if (!taking->paused)
                return;
        taking->paused = false;
        r = agent_ask(taking->vm, "resume", json_object(), NULL, 0, NULL, &err);
        if (r < 0)
                broker_log_error(taking->vm->broker, taking->row.name, &err);
        else if (taking->pause_us == 0)
                taking->pause_us = (uint64_t)(monotonic_us() - taking->paused_us);
}

/* By a person, as far as its agent tells: then it stays so. */
static bool is_paused_already(struct taking *taking)
{
        json_auto_t *answer = NULL;
        const char *state;

        if (!agent_offers(taking->vm, "describe") ||
                agent_ask_within(taking->vm, "describe", json_object(), NULL, 0, DESCRIBE_S,
                        &answer, NULL) < 0)
                return false;
        state = param_text(answer, "state");
        return state && strcmp(state, "paused") == 0;
}

static int pause_agent(struct taking *taking, struct error *err)
{
        int r;

        taking->pauser = agent_registration(taking->vm);
        if (is_paused_already(taking)) {
                taking->was_paused = true;
                return 0;
        }
        /* Whether it did, when it does not say so in time, is not known: it is asked to resume. */
        taking->paused = true;
        r = agent_ask(
                taking->vm, "pause", json_pack("{s:s}", "for", "snapshot"), NULL, 0, NULL, err);
        taking->paused_us = monotonic_us();
        return r;
}

/* The agent's own timer thaws as well: who dies here leaves nothing frozen. */
static void thaw(struct taking *taking)
{
        struct error err = ERROR_INIT;

        if (!taking->frozen)
                return;
        taking->frozen = false;
        if (agent_ask_within(taking->vm, "thaw", json_object(), NULL, 0, THAW_S, NULL, &err) < 0)
                broker_log_error(taking->vm->broker, taking->row.name, &err);
}

static int freeze_agent(struct taking *taking, struct error *err)
{
        /* As with a pause. */
        taking->frozen = true;
        taking->frozen_us = monotonic_us();
        return agent_ask_within(taking->vm, "freeze", json_object(), NULL, 0, FREEZE_S, NULL, err);
}

static int hold_guest(struct taking *taking, struct error *err)
{
        int r = 0;

        if (taking->want_memory)
                r = pause_agent(taking, err);
        else if (taking->want_frozen)
                r = freeze_agent(taking, err);
        return r < 0 ? fail_prefix(err, r, "cannot take snapshot '%s'", taking->name) : 0;
}

/* The switch is done: nothing else needs the guest to stand still. */
static int let_guest_go(struct taking *taking, struct error *err)
{
        bool in_time = monotonic_us() - taking->frozen_us < FROZEN_US;

        if (taking->frozen) {
                thaw(taking);
                return in_time
                        ? 0
                        : fail(err, ETIMEDOUT,
                                  "the disks were not switched before the guest's file systems "
                                  "thawed");
        }
        if (!taking->want_memory || taking->saving)
                return 0;
        return agent_call_begin(taking->vm, taking->pauser, "save", json_object(),
                &taking->memory.fd, 1, &taking->saving, err);
}

/* ---- all of it ---- */

/* The worker died on the way: what it left says whether the snapshot is there. */
static int take_after_death(struct taking *taking, struct error *err)
{
        struct snapshot_row found = {0};
        struct error why = err ? *err : ERROR_INIT;
        int r;

        taking->operation = operation_abandon(taking->operation);
        r = worker_up(taking->vm, err);
        if (r < 0) {
                /* Not -EHOSTDOWN: nobody may try again what may be there already. */
                fail_prefix(err, r,
                        "whether snapshot '%s' was taken is known when the vm's worker runs again",
                        taking->name);
                return -EINPROGRESS;
        }
        r = catalog_snapshot_find(
                taking->vm->broker->catalog, taking->vm->id, taking->id, &found, err);
        snapshot_row_done(&found);
        if (r == 0) {
                error_clear(err);
                return 0;
        }
        if (r != -ENOENT)
                return r;
        if (err)
                *err = why;
        return fail_prefix(err, -EHOSTDOWN, "snapshot '%s' was not taken", taking->name);
}

static bool is_death(int r)
{
        return r == -EHOSTDOWN || r == -ETIMEDOUT;
}

/* Nothing was switched: the new images go, and with them what the worker may do with them. */
static void take_back(struct taking *taking)
{
        for (size_t i = 0; i < taking->n_make; i++)
                worker_image_forget(taking->vm, taking->make[i]);
        taking->operation = operation_free(taking->operation);
}

/* The same, and if it is there the guest is let go. */
static int take_at_last(
        struct taking *taking, int *ret_agent, struct error *ret_why, struct error *err)
{
        int r = take_after_death(taking, err);

        if (r == 0)
                *ret_agent = let_guest_go(taking, ret_why);
        return r;
}

static int make_files(struct taking *taking, struct error *err)
{
        int r = make_children(taking, err);

        if (r == 0 && taking->want_memory) {
                r = memory_begin(taking->vm, &taking->row, taking->id,
                        json_object_get(taking->data, "was"), &taking->memory, err);
                if (r < 0)
                        fail_prefix(err, r, "cannot take snapshot '%s'", taking->name);
        }
        return r;
}

/* *ret_why: what the agent did not do after the switch: then there is a snapshot that is not to be. */
static int take_disks(
        struct taking *taking, int *ret_agent, struct error *ret_why, struct error *err)
{
        int r = operation_begin(taking->vm->broker->catalog, host_fs(), OPERATION_TAKE,
                taking->vm->id, (const char *const *)taking->make, taking->n_make, taking->data,
                &taking->operation, err);

        if (r == 0)
                r = make_files(taking, err);
        if (is_death(r))
                return take_at_last(taking, ret_agent, ret_why, err);
        if (r == 0)
                r = hold_guest(taking, err);
        if (r == 0) {
                r = do_switch(taking, err);
                if (is_death(r))
                        return take_at_last(taking, ret_agent, ret_why, err);
                if (r < 0)
                        fail_prefix(err, r, "cannot take snapshot '%s'", taking->name);
        }
        if (r < 0) {
                take_back(taking);
                return r;
        }
        *ret_agent = let_guest_go(taking, ret_why);
        r = snapshot_finish(taking->vm, taking->operation, err);
        if (is_death(r) && !operation_is_committed(taking->operation))
                return take_at_last(taking, ret_agent, ret_why, err);
        if (r < 0 && !operation_is_committed(taking->operation)) {
                /* Switched, and the catalog does not know: the record and the journal do. */
                taking->operation = operation_abandon(taking->operation);
                vm_set_down(taking->vm, "a snapshot is to be finished");
        }
        return r;
}

/* What the agent answers when all is saved. Without the vm's lock: it may take minutes, and what is served
 * goes on, workers that die get successors, and jobs go on. */
static int wait_for_memory(struct taking *taking, struct error *err)
{
        struct vm *vm = taking->vm;
        json_auto_t *answer = NULL;
        struct error why = ERROR_INIT;
        int r, r_lock;

        vm_unlock(vm);
        r = agent_call_end(TAKE_PTR(taking->saving), &answer, err);
        if (!taking->was_paused)
                taking->pause_us = (uint64_t)param_int(answer, "pause-us", 0);
        resume(taking);
        if (r == 0)
                r = memory_sync(&taking->memory, err);
        r_lock = vm_lock_again(vm, r == 0 ? err : &why);
        return r == 0 ? r_lock : r;
}

static int save_memory(struct taking *taking, struct error *err)
{
        int r = wait_for_memory(taking, err);

        return r == 0 ? memory_commit(taking->vm, &taking->memory, taking->id, err) : r;
}

/* The guest goes on, on images that go back into those below. */
static int undo(struct taking *taking, int r, struct error *err)
{
        struct error why = ERROR_INIT;
        size_t n_jobs = 0;
        int undone;

        fail_prefix(err, r, "snapshot '%s' was not taken", taking->name);
        if (taking->vm->removed || taking->vm->broker->stopping)
                return r; /* the next start of the daemon finds it */
        undone = snapshot_delete_pending(taking->vm, taking->id, &n_jobs, &why);
        if (undone < 0)
                broker_log_error(taking->vm->broker, taking->row.name, &why);
        if (n_jobs > 0)
                error_set_hint(err, "the vm's disks are merged back: vhdctl job list '%s'",
                        taking->row.name);
        vm_changed(taking->vm, "vm-changed", NULL); /* nobody had seen it */
        return r;
}

static void renew(struct taking *taking)
{
        struct error why = ERROR_INIT;
        int r = taking->vm->up ? worker_grants_renew(taking->vm, &why) : 0;

        if (r == 0 && taking->vm->up)
                r = worker_renew_exports(taking->vm, &why);
        if (r < 0)
                vm_set_down(taking->vm, why.message);
}

static int take_steps(struct taking *taking, struct error *err)
{
        struct error why = ERROR_INIT;
        int r, agent = 0;

        r = take_disks(taking, &agent, &why, err);
        if (r < 0) {
                thaw(taking);
                resume(taking);
                /* One that is committed and not durable is there, and with memory it is pending still. */
                return taking->want_memory && taking->operation &&
                                operation_is_committed(taking->operation)
                        ? undo(taking, r, err)
                        : r;
        }
        thaw(taking);
        taking->vm->stall_us = taking->stall_us;
        taking->vm->has_stall = true;
        renew(taking);
        if (agent < 0) {
                resume(taking);
                if (err)
                        *err = why;
                return undo(taking, agent, err);
        }
        r = taking->want_memory ? save_memory(taking, err) : 0;
        resume(taking);
        return r < 0 ? undo(taking, r, err) : 0;
}

static int take_run(struct taking *taking, struct error *err)
{
        int r = worker_up(taking->vm, err);

        for (size_t i = 0; r == 0 && i < taking->n_disks; i++)
                if (can_freeze(&taking->disks[i]) &&
                        !worker_chain_find(taking->vm, taking->disks[i].id))
                        r = fail(err, EIO, "disk '%s' of vm '%s' is not served: nothing to freeze",
                                taking->disks[i].name, taking->row.name);
        if (r < 0)
                return r;
        if (taking->want_memory)
                memcpy(taking->vm->saving, taking->id, sizeof(taking->vm->saving));
        r = take_steps(taking, err);
        if (taking->want_memory)
                taking->vm->saving[0] = '\0';
        return r;
}

/* What it would be. */
static int dry_answer(struct taking *taking, json_t **ret, struct error *err)
{
        json_t *disks = json_array();
        char time[TIME_TEXT_MAX];

        for (size_t i = 0; i < taking->n_disks; i++) {
                const struct disk_row *disk = &taking->disks[i];

                json_array_append_new(disks,
                        json_pack("{s:s, s:s?, s:I, s:I, s:b}", "name", disk->name, "file",
                                can_freeze(disk) ? disk->file : NULL, "size",
                                (json_int_t)disk->size, "allocated",
                                (json_int_t)file_allocated(disk->file), "skipped",
                                !can_freeze(disk)));
        }
        *ret = json_pack("{s:s, s:s, s:s?, s:s, s:b, s:s?, s:o, s:b, s:s, s:i}", "name",
                taking->name, "id", taking->id, "parent",
                taking->row.current[0] ? taking->row.current : NULL, "created",
                time_to_text(now_us(), time), "current", true, "note", taking->note, "disks", disks,
                "memory", taking->want_memory, "consistency", consistency(taking), "size", 0);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

int snapshot_take(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(taking_done) struct taking taking = {.memory = MEMORY_SAVING_INIT};
        _cleanup_(snapshot_row_done) struct snapshot_row row = {0};
        _cleanup_(vm_row_done) struct vm_row vm_row = {0};
        int r = take_begin(broker, params, &taking, err);

        if (r == 0)
                r = plan(&taking, err);
        if (r < 0)
                return r;
        if (param_bool(params, "dry-run"))
                return dry_answer(&taking, ret, err);
        r = take_run(&taking, err);
        if (r < 0)
                return r;
        merges_kick(taking.vm); /* what was frozen is sealed */
        vm_changed(taking.vm, "snapshot-taken",
                json_pack("{s:s, s:s}", "snapshot", taking.name, "id", taking.id));
        r = catalog_snapshot_find(broker->catalog, taking.vm->id, taking.id, &row, err);
        if (r == 0)
                r = catalog_vm_find(broker->catalog, taking.vm->id, &vm_row, err);
        if (r == 0)
                r = snapshot_to_json(taking.vm, &vm_row, &row, ret, err);
        if (r == 0)
                json_object_set_new(*ret, "stall-us", json_integer((json_int_t)taking.stall_us));
        if (r == 0 && taking.pause_us)
                json_object_set_new(*ret, "pause-us", json_integer((json_int_t)taking.pause_us));
        return r;
}

int snapshot_take_with(struct broker *broker, const struct caller *caller, json_t *params,
        json_t **ret, struct error *err)
{
        json_auto_t *own = params;

        return own ? vm_try_again(snapshot_take, broker, caller, own, ret, err)
                   : fail(err, ENOMEM, "no memory for a snapshot");
}
