/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots_apply.c - going back: apply, revert, undo. In this order:
 *
 *   A1  the vm is off, or is made so: the agent stops it, clients are waited for or cut off
 *   A2  a row in the journal that names the new images; they are made and synced
 *   A3  the live disks are withdrawn and their chains closed, cleanly
 *   A4  one transaction: disks, settings and `current` are the snapshot's, and what was is a snapshot
 *       (--save-current), kept for an undo, or named to be removed
 *   A5  the new chains are opened and served, the old leaves removed, the agent starts the vm
 *
 * Before A4 everything is as it was; after it, everything is done, whoever dies in between. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "vhdd/daemon/agents.h"
#include "vhdd/daemon/disks.h"
#include "vhdd/daemon/journal.h"
#include "vhdd/daemon/memory_file.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/release.h"
#include "vhdd/daemon/snapshots.h"
#include "vhdd/daemon/worker_link.h"

#define LEAVING_MS 5000

/* A disk as it will be. */
struct wanted {
        struct disk_row row; /* file: what it will be */
        char *over;          /* the frozen image under a new one, or NULL: row.file as it is */
        uint8_t uuid[16];
        bool resolved; /* it comes back from outside the catalog: layers are its images */
        struct resolved_layer *layers;
        size_t n_layers;
};

struct applying {
        struct vm *vm;
        struct vm_row row;
        const json_t *params;
        struct disk_row *now; /* the disks as they are */
        size_t n_now;
        struct wanted *wanted;
        size_t n_wanted;
        json_t *settings;             /* as they will be; NULL: as they are */
        char current[UUID_TEXT_SIZE]; /* as it will be */
        char *name;                   /* of what the vm will stand on: for the answer */
        struct snapshot_row snapshot; /* empty for an undo */
        const char *save_name;
        char save_id[UUID_TEXT_SIZE];
        json_int_t keep_s; /* of what is given up; 0: not */
        bool is_undo, force, dry, was_on_by_agent;
        int64_t until_us;
        struct operation *operation;
        struct release release;
        struct error not_started; /* why */
};

static void applying_done(struct applying *applying)
{
        operation_free(applying->operation);
        release_done(&applying->release);
        for (size_t i = 0; i < applying->n_wanted; i++) {
                disk_row_done(&applying->wanted[i].row);
                free(applying->wanted[i].over);
                resolved_layers_free(applying->wanted[i].layers, applying->wanted[i].n_layers);
        }
        free(applying->wanted);
        free(applying->name);
        json_decref(applying->settings);
        disk_rows_free(applying->now, applying->n_now);
        snapshot_row_done(&applying->snapshot);
        vm_row_done(&applying->row);
        vm_release(applying->vm);
}

static const struct disk_row *find_now(const struct applying *applying, const char *id)
{
        for (size_t i = 0; i < applying->n_now; i++)
                if (strcmp(applying->now[i].id, id) == 0)
                        return &applying->now[i];
        return NULL;
}

static const struct wanted *find_wanted(const struct applying *applying, const char *id)
{
        for (size_t i = 0; i < applying->n_wanted; i++)
                if (strcmp(applying->wanted[i].row.id, id) == 0)
                        return &applying->wanted[i];
        return NULL;
}

/* ---- what shall be ---- */

/* A disk without snapshots (raw, pass-through) that was detached since: its file comes from the user
 * again, and is looked at as at an attach. */
static int look_again(struct applying *applying, struct wanted *wanted, struct error *err)
{
        struct broker *broker = applying->vm->broker;
        int r = resolve_chain(broker, wanted->row.file,
                strcmp(wanted->row.kind, "vhd") == 0 ? "vhd" : "raw", broker->options.image_roots,
                broker->options.n_image_roots, &wanted->layers, &wanted->n_layers, err);

        if (r == 0)
                r = images_refuse_used(broker->catalog, applying->vm->id, wanted->layers,
                        wanted->n_layers, !wanted->row.read_only, err);
        wanted->resolved = r == 0;
        return r < 0 ? fail_prefix(err, r, "disk '%s' cannot come back", wanted->row.name) : 0;
}

static bool has_image(struct applying *applying, const char *path)
{
        _cleanup_(image_row_done) struct image_row row = {0};

        return catalog_image_find(applying->vm->broker->catalog, path, &row, NULL) == 0;
}

/* The file is there, and the one that the catalog means. */
static int check_image(struct applying *applying, const char *path, struct error *err)
{
        _cleanup_(image_row_done) struct image_row row = {0};
        struct stat st;
        int r = catalog_image_find(applying->vm->broker->catalog, path, &row, err);

        if (r < 0)
                return r;
        if (stat(path, &st) < 0) {
                error_set_file(err, path);
                return fail_os(err, errno, "the image '%s' is missing", path);
        }
        if (S_ISREG(st.st_mode) && row.inode && st.st_ino != row.inode)
                return fail(err, ESTALE, "'%s' is another file than the one that was frozen", path);
        return 0;
}

/* A disk that the vm does not have now comes back to the file that it had, which nobody has taken
 * since: neither as a disk of another vm's, nor in a snapshot, nor to stand on it. */
static int refuse_kept(const struct applying *applying, const struct disk_row *disk,
        const struct image_row *row, struct error *err)
{
        int r = image_refuse_kept(applying->vm->broker->catalog, row, err);

        return r < 0 ? fail_prefix(err, r, "disk '%s' cannot come back", disk->name) : 0;
}

static int check_free(struct applying *applying, const struct disk_row *disk, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        _cleanup_(image_row_done) struct image_row row = {0};
        struct resolved_layer layer = {0};
        int r = catalog_image_find(catalog, disk->file, &row, err);

        /* What is kept for an undo is refused to everybody else already. */
        if (r < 0 || strcmp(row.state, IMAGE_DISCARDED) == 0)
                return r;
        for (size_t i = 0; i < applying->n_now; i++)
                if (strcmp(applying->now[i].file, disk->file) == 0)
                        return disk->read_only ? 0 : refuse_kept(applying, disk, &row, err);
        layer.path = row.path; /* lent */
        layer.device = row.device;
        layer.inode = row.inode;
        r = images_refuse_used(catalog, applying->vm->id, &layer, 1, !disk->read_only, err);
        return r < 0 ? fail_prefix(err, r, "disk '%s' cannot come back", disk->name) : 0;
}

static int want_disk(struct applying *applying, const json_t *was, struct error *err)
{
        struct wanted *wanted = &applying->wanted[applying->n_wanted];
        const struct disk_row *now;
        bool frozen;
        char *child;
        int r = disk_row_from_json(was, applying->vm->id, &wanted->row, err);

        if (r < 0)
                return r;
        applying->n_wanted++;
        now = find_now(applying, wanted->row.id);
        frozen = strcmp(wanted->row.kind, "vhd") == 0 && !wanted->row.read_only;
        if (!frozen || applying->is_undo) {
                if (now && strcmp(now->file, wanted->row.file) == 0)
                        return 0;
                if (!has_image(applying, wanted->row.file))
                        return look_again(applying, wanted, err);
                r = check_image(applying, wanted->row.file, err);
                return r == 0 ? check_free(applying, &wanted->row, err) : r;
        }
        r = check_image(applying, wanted->row.file, err);
        if (r < 0)
                return r;
        uuid_random(wanted->uuid);
        r = name_of_avhd(wanted->row.file, wanted->row.name, wanted->uuid, &child, err);
        if (r < 0)
                return r;
        wanted->over = wanted->row.file;
        wanted->row.file = child;
        return 0;
}

static int want_disks(struct applying *applying, const json_t *disks, struct error *err)
{
        json_t *was;
        size_t i;
        int r = 0;

        applying->wanted = calloc(json_array_size(disks) + 1, sizeof(applying->wanted[0]));
        if (!applying->wanted)
                return fail(err, ENOMEM, "no memory for the disks");
        json_array_foreach(disks, i, was)
        {
                if (r == 0)
                        r = want_disk(applying, was, err);
        }
        return r;
}

static int want_snapshot(struct applying *applying, const char *name, struct error *err)
{
        json_auto_t *was = NULL;
        int r = snapshot_find(applying->vm, &applying->row, name, &applying->snapshot, err);

        if (r < 0)
                return r;
        was = json_loads(applying->snapshot.settings, 0, NULL);
        if (!was || !json_is_array(json_object_get(was, "disks")))
                return fail(err, EUCLEAN, "the settings of snapshot '%s' are damaged",
                        applying->snapshot.name);
        memcpy(applying->current, applying->snapshot.id, sizeof(applying->current));
        applying->name = strdup(applying->snapshot.name);
        if (!param_bool(applying->params, "disks-only"))
                applying->settings = json_incref(json_object_get(was, "settings"));
        return want_disks(applying, json_object_get(was, "disks"), err);
}

static int want_undo(struct applying *applying, struct error *err)
{
        json_auto_t *undo = applying->row.undo ? json_loads(applying->row.undo, 0, NULL) : NULL;
        _cleanup_(snapshot_row_done) struct snapshot_row current = {0};
        const char *id = param_text(undo, "current");

        if (!undo || param_int(undo, "until", 0) <= now_us()) {
                fail(err, ENOENT, "vm '%s' has nothing to undo", applying->row.name);
                error_set_hint(err,
                        "snapshot apply and revert keep what they discard with "
                        "--keep-discarded TIME only");
                return -ENOENT;
        }
        if (id && id[0] &&
                catalog_snapshot_find(
                        applying->vm->broker->catalog, applying->vm->id, id, &current, NULL) == 0)
                memcpy(applying->current, current.id, sizeof(applying->current));
        applying->name = strdup(current.name ? current.name : "");
        applying->settings = json_incref(json_object_get(undo, "settings"));
        applying->is_undo = true;
        return want_disks(applying, json_object_get(undo, "disks"), err);
}

static int apply_begin(
        struct broker *broker, const json_t *params, struct applying *applying, struct error *err)
{
        int r = release_init(&applying->release, err);

        applying->release.merge = "live";
        applying->params = params;
        applying->dry = param_bool(params, "dry-run");
        applying->force = param_bool(params, "force");
        applying->save_name = param_text(params, "save-current");
        applying->keep_s = param_int(params, "keep-discarded", 0);
        if (r == 0)
                r = vm_get(broker, param_text(params, "vm"), &applying->vm, &applying->row, err);
        /* What was cut off before is settled before: it may have changed disks and current. */
        if (r == 0)
                r = worker_up(applying->vm, err);
        if (r == 0)
                r = vm_row_again(applying->vm, &applying->row, err);
        if (r == 0)
                r = catalog_disk_list(
                        broker->catalog, applying->vm->id, &applying->now, &applying->n_now, err);
        if (r == 0 && applying->save_name)
                r = snapshot_check_name(applying->vm, &applying->row, applying->save_name, err);
        if (r == 0 && applying->save_name && applying->keep_s)
                r = fail(err, EINVAL,
                        "what becomes a snapshot is not discarded: --save-current or "
                        "--keep-discarded, not both");
        return r;
}

/* Disks that nobody has open, places and names that do not clash: the catalog would refuse them at
 * the end, and this says so before anything happens. */
static int check_wanted(struct applying *applying, struct error *err)
{
        for (size_t i = 0; i < applying->n_wanted; i++)
                for (size_t k = 0; k < i; k++)
                        if (strcmp(applying->wanted[i].row.name, applying->wanted[k].row.name) ==
                                        0 ||
                                place_equal(disk_place(&applying->wanted[i].row),
                                        disk_place(&applying->wanted[k].row)))
                                return fail(err, EUCLEAN,
                                        "the settings of '%s' hold two disks in one place",
                                        applying->name);
        return 0;
}

/* ---- A1: off ---- */

static int live_clients(struct applying *applying, size_t *ret, struct error *err)
{
        json_auto_t *clients = NULL;
        int r = worker_clients(applying->vm, WORKER_CALL_MS, &clients, err);

        *ret = r == 0 ? clients_count(clients, NULL) : 0;
        return r;
}

static int make_off(struct applying *applying, struct error *err)
{
        size_t n = 0;
        int r = 0;

        applying->was_on_by_agent = agent_is_there(applying->vm) && applying->row.is_on_by_agent;
        if (applying->was_on_by_agent) {
                r = agent_must(applying->vm, &applying->row, "stop", err);
                if (r == 0 && !applying->dry)
                        r = agent_ask(applying->vm, "stop", json_object(), NULL, 0, NULL, err);
                return r;
        }
        /* Those who are about to leave get their time; a dry run waits for nobody. */
        for (int waited_ms = 0; r == 0; waited_ms += 50) {
                r = live_clients(applying, &n, err);
                if (r < 0 || n == 0 || applying->force || applying->dry ||
                        waited_ms >= LEAVING_MS || !vms_sleep(applying->vm->vms, 50))
                        break;
        }
        if (r < 0 || n == 0 || applying->force)
                return r;
        fail(err, EBUSY, "%zu client%s a live disk of vm '%s' open", n, n == 1 ? " has" : "s have",
                applying->row.name);
        error_set_hint(err, "end them, or cut them off with --force");
        return -EBUSY;
}

/* ---- A2: the new images ---- */

static int make_images(struct applying *applying, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < applying->n_wanted; i++) {
                struct wanted *wanted = &applying->wanted[i];
                _cleanup_(image_chain_done) struct image_chain images = {0};
                char text[UUID_TEXT_SIZE];

                if (!wanted->over)
                        continue;
                r = image_chain_get(applying->vm->broker->catalog, wanted->over, &images, err);
                for (size_t k = 0; r == 0 && k < images.n; k++)
                        r = worker_grant_parent(applying->vm, &images.rows[k], err);
                if (r == 0)
                        r = worker_grant(
                                applying->vm, wanted->row.file, LINK_WRITE | LINK_CREATE, err);
                if (r == 0)
                        r = worker_call(applying->vm, "image.create-child",
                                json_pack("{s:o*, s:s, s:s}", "parents",
                                        worker_image_paths(&images), "path", wanted->row.file,
                                        "uuid", uuid_format(wanted->uuid, text)),
                                WORKER_CALL_MS, NULL, err);
        }
        return r == 0 ? operation_made(applying->operation, err) : r;
}

static int begin_operation(struct applying *applying, struct error *err)
{
        _cleanup_free_ const char **make = calloc(applying->n_wanted + 1, sizeof(*make));
        size_t n = 0;

        if (!make)
                return fail(err, ENOMEM, "no memory for a list of files");
        for (size_t i = 0; i < applying->n_wanted; i++)
                if (applying->wanted[i].over)
                        make[n++] = applying->wanted[i].row.file;
        return operation_begin(applying->vm->broker->catalog, host_fs(), "snapshot.apply",
                applying->vm->id, make, n, NULL, &applying->operation, err);
}

/* ---- A3: nothing is served ---- */

static int close_disks(struct applying *applying, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < applying->n_now; i++) {
                const struct disk_row *disk = &applying->now[i];

                if (!worker_chain_find(applying->vm, disk->id))
                        continue;
                r = worker_disk_withdraw(applying->vm, &applying->row, disk->name,
                        applying->force || applying->was_on_by_agent,
                        applying->was_on_by_agent ? LEAVING_MS : 0, err);
                if (r == 0)
                        r = worker_chain_close(applying->vm, disk->id, err);
        }
        return r;
}

/* ---- A4: the rows ---- */

static int insert_saved(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        json_auto_t *was = snapshot_settings(&applying->row, applying->now, applying->n_now);
        _cleanup_free_ char *settings = was ? json_dumps(was, JSON_COMPACT) : NULL;
        struct snapshot_row row = {
                .name = (char *)applying->save_name,
                .created_us = now_us(),
                .settings = settings,
                .state = "committed",
        };
        uint8_t id[16];
        int r;

        if (!settings)
                return fail(err, ENOMEM, "no memory for a snapshot");
        uuid_random(id);
        uuid_format(id, applying->save_id);
        memcpy(row.id, applying->save_id, sizeof(row.id));
        memcpy(row.vm, applying->vm->id, sizeof(row.vm));
        memcpy(row.parent, applying->row.current, sizeof(row.parent));
        r = catalog_snapshot_insert(catalog, &row, err);
        for (size_t i = 0; r == 0 && i < applying->n_now; i++) {
                struct snapshot_disk_row disk = snapshot_disk_of(
                        row.id, &applying->now[i], strcmp(applying->now[i].kind, "vhd") != 0);

                r = catalog_snapshot_disk_insert(catalog, &disk, err);
        }
        return r;
}

static bool is_wanted_file(const struct applying *applying, const char *path)
{
        for (size_t i = 0; i < applying->n_wanted; i++)
                if (strcmp(applying->wanted[i].row.file, path) == 0)
                        return true;
        return false;
}

/* The leaf of a disk that goes on from elsewhere. */
static bool is_given_up(const struct applying *applying, const struct disk_row *disk)
{
        return find_wanted(applying, disk->id) && !disk->read_only &&
                strcmp(disk->kind, "vhd") == 0 && !is_wanted_file(applying, disk->file);
}

/* What an undo would need. */
static int note_undo(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        json_t *undo = snapshot_settings(&applying->row, applying->now, applying->n_now);
        json_t *discarded = json_array();
        int r = 0;

        applying->until_us = now_us() + applying->keep_s * 1000000;
        for (size_t i = 0; r == 0 && i < applying->n_now; i++) {
                _cleanup_(image_row_done) struct image_row image = {0};

                if (!is_given_up(applying, &applying->now[i]))
                        continue;
                r = catalog_image_find(catalog, applying->now[i].file, &image, err);
                if (r == 0) {
                        snprintf(image.state, sizeof(image.state), IMAGE_DISCARDED);
                        image.delete_after_us = applying->until_us;
                        r = catalog_image_update(catalog, &image, err);
                }
                json_array_append_new(discarded, json_string(applying->now[i].file));
        }
        if (undo) {
                json_object_set_new(undo, "until", json_integer(applying->until_us));
                json_object_set_new(undo, "current", json_string(applying->row.current));
                json_object_set_new(undo, "discarded", discarded);
                free(applying->row.undo);
                applying->row.undo = json_dumps(undo, JSON_COMPACT);
                json_decref(undo);
        }
        if (r == 0 && (!undo || !applying->row.undo))
                r = fail(err, ENOMEM, "no memory for an undo");
        return r;
}

/* An undo's own leaves are wanted again. */
static int reclaim(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        int r = 0;

        for (size_t i = 0; r == 0 && applying->is_undo && i < applying->n_wanted; i++) {
                _cleanup_(image_row_done) struct image_row row = {0};

                r = catalog_image_find(catalog, applying->wanted[i].row.file, &row, err);
                if (r == -ENOENT && applying->wanted[i].resolved) {
                        error_clear(err);
                        r = 0;
                        continue;
                }
                if (r == 0 && strcmp(row.state, IMAGE_IN_USE) != 0) {
                        snprintf(row.state, sizeof(row.state), IMAGE_IN_USE);
                        row.delete_after_us = 0;
                        r = catalog_image_update(catalog, &row, err);
                }
        }
        return r;
}

static int remove_now(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        int r = 0;

        /* All rows go and come anew: names and places may have moved between disks. */
        for (size_t i = 0; r == 0 && i < applying->n_now; i++)
                r = catalog_disk_delete(catalog, applying->now[i].id, err);
        return r;
}

static int insert_wanted(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        int r = 0;

        for (size_t i = 0; r == 0 && i < applying->n_wanted; i++) {
                struct wanted *wanted = &applying->wanted[i];

                if (wanted->over)
                        r = image_put_child(
                                catalog, wanted->row.file, wanted->uuid, wanted->over, err);
                else if (wanted->resolved)
                        r = images_put_layers(
                                catalog, wanted->layers, wanted->n_layers, false, err);
                if (r == 0)
                        r = catalog_disk_insert(catalog, &wanted->row, err);
        }
        return r;
}

/* Where the leaves of before stay: as files of the user's, or as what may go. */
static int give_up(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        int r = 0;

        for (size_t i = 0; r == 0 && i < applying->n_now; i++) {
                const struct disk_row *disk = &applying->now[i];

                if (!find_wanted(applying, disk->id))
                        r = image_detach(catalog, disk->file, err);
                else if (is_given_up(applying, disk))
                        r = release_candidate(&applying->release, disk->file, err);
        }
        return r;
}

static bool has_memory(const struct applying *applying)
{
        return applying->snapshot.memory && !param_bool(applying->params, "disks-only");
}

static int set_vm(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        int r;

        memcpy(applying->row.current, applying->current, sizeof(applying->row.current));
        if (applying->settings) {
                char *text = json_dumps(applying->settings, JSON_COMPACT);

                if (!text)
                        return fail(err, ENOMEM, "no memory for the vm's settings");
                free(applying->row.settings);
                applying->row.settings = text;
        }
        r = catalog_vm_update(catalog, &applying->row, err);
        if (r == 0 && applying->was_on_by_agent)
                r = catalog_vm_set_on(catalog, applying->vm->id, false, err);
        if (r == 0)
                r = catalog_vm_set_resume(catalog, applying->vm->id,
                        has_memory(applying) ? applying->snapshot.id : NULL, err);
        return r;
}

/* Once more, where no other vm can come between. */
static int check_again(struct applying *applying, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < applying->n_wanted; i++) {
                const struct wanted *wanted = &applying->wanted[i];
                const struct disk_row *now = find_now(applying, wanted->row.id);

                if (wanted->over || (now && strcmp(now->file, wanted->row.file) == 0))
                        continue;
                r = wanted->resolved
                        ? images_refuse_used(applying->vm->broker->catalog, applying->vm->id,
                                  wanted->layers, wanted->n_layers, !wanted->row.read_only, err)
                        : check_free(applying, &wanted->row, err);
        }
        return r;
}

static int apply_rows(struct applying *applying, struct error *err)
{
        int r = check_again(applying, err);

        if (r == 0 && applying->save_name)
                r = insert_saved(applying, err);

        if (r == 0)
                r = reclaim(applying, err);
        /* The undo of before: another apply has taken its place, or it is what happens here. */
        if (r == 0 && applying->is_undo) {
                free(applying->row.undo);
                applying->row.undo = NULL;
        } else if (r == 0) {
                r = release_undo(applying->vm, &applying->row, &applying->release, err);
        }
        if (r == 0 && applying->keep_s > 0)
                r = note_undo(applying, err);
        if (r == 0)
                r = remove_now(applying, err);
        if (r == 0)
                r = insert_wanted(applying, err);
        if (r == 0)
                r = give_up(applying, err);
        if (r == 0)
                r = set_vm(applying, err);
        return r == 0 ? release_images(applying->vm, &applying->release, err) : r;
}

static int apply_commit(struct applying *applying, struct error *err)
{
        struct catalog *catalog = applying->vm->broker->catalog;
        json_t *path;
        size_t i;
        int r = catalog_begin(catalog, err);

        if (r < 0)
                return r;
        r = apply_rows(applying, err);
        json_array_foreach(applying->release.files, i, path)
        {
                if (r == 0)
                        r = operation_will_remove(
                                applying->operation, json_string_value(path), err);
        }
        if (r == 0)
                r = operation_commit(applying->operation, err);
        if (r < 0)
                catalog_rollback(catalog);
        return r;
}

/* ---- A5 ---- */

static void forget_files(struct applying *applying)
{
        json_t *path;
        size_t i;

        json_array_foreach(applying->release.files, i, path)
                worker_image_forget(applying->vm, json_string_value(path));
}

/* One that was on goes on: from the snapshot's memory, or, without it, as after a power cut. */
static void start_again(struct applying *applying)
{
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r;

        if (!applying->was_on_by_agent || !agent_offers(applying->vm, "start"))
                return;
        r = catalog_vm_find(
                applying->vm->broker->catalog, applying->vm->id, &row, &applying->not_started);
        if (r == 0)
                r = memory_start(applying->vm, &row, NULL, &applying->not_started);
        if (r < 0)
                broker_log_error(applying->vm->broker, applying->row.name, &applying->not_started);
}

/* The worker serves what the catalog says, whatever it had before. */
static void serve_again(struct applying *applying)
{
        struct error err = ERROR_INIT;

        worker_stale(applying->vm);
        if (worker_up(applying->vm, &err) < 0)
                broker_log_error(applying->vm->broker, applying->row.name, &err);
}

static int apply_run(struct applying *applying, struct error *err)
{
        struct error why = ERROR_INIT;
        int r = worker_up(applying->vm, err);

        if (r == 0)
                r = worker_start(applying->vm, err);
        if (r == 0)
                r = begin_operation(applying, err);
        if (r == 0)
                r = make_images(applying, err);
        if (r < 0) {
                if (applying->was_on_by_agent)
                        serve_again(applying);
                start_again(applying);
                return r;
        }
        r = close_disks(applying, err);
        if (r == 0)
                r = apply_commit(applying, err);
        if (r < 0) {
                applying->operation = operation_free(applying->operation);
                serve_again(applying);
                start_again(applying);
                return r;
        }
        serve_again(applying);
        forget_files(applying);
        if (operation_end(applying->operation, &why) < 0)
                broker_log_error(applying->vm->broker, applying->row.name, &why);
        start_again(applying);
        return 0;
}

/* ---- the answer ---- */

static const char *saved_name(const struct applying *applying)
{
        const char *before = param_text(applying->params, "saved");

        return before ? before : applying->save_name;
}

static int apply_answer(struct applying *applying, json_t **ret, struct error *err)
{
        json_t *attached = json_array(), *detached = json_array();
        char time[TIME_TEXT_MAX];

        for (size_t i = 0; i < applying->n_wanted; i++)
                if (!find_now(applying, applying->wanted[i].row.id))
                        json_array_append_new(attached, json_string(applying->wanted[i].row.name));
        for (size_t i = 0; i < applying->n_now; i++)
                if (!find_wanted(applying, applying->now[i].id))
                        json_array_append_new(detached,
                                json_pack("{s:s, s:s}", "name", applying->now[i].name, "file",
                                        applying->now[i].file));
        *ret = json_pack("{s:s, s:s, s:s?, s:b, s:s?, s:o, s:o, s:O, s:s?}", "vm",
                applying->row.name, "snapshot", applying->name, "saved", saved_name(applying),
                "memory", has_memory(applying), "error",
                applying->not_started.code ? applying->not_started.message : NULL, "attached",
                attached, "detached", detached, "discarded", applying->release.files, "undo-until",
                applying->until_us ? time_to_text(applying->until_us, time) : NULL);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

/* A dry run does all but the images and the commit. */
static int apply_dry(struct applying *applying, struct error *err)
{
        for (size_t i = 0; i < applying->n_now && !applying->save_name; i++)
                if (is_given_up(applying, &applying->now[i]) && applying->keep_s == 0)
                        json_array_append_new(
                                applying->release.files, json_string(applying->now[i].file));
        return 0;
}

static int apply_rest(struct applying *applying, const char *event, json_t **ret, struct error *err)
{
        int r = check_wanted(applying, err);

        if (r == 0)
                r = make_off(applying, err);
        if (r == 0)
                r = applying->dry ? apply_dry(applying, err) : apply_run(applying, err);
        if (r < 0)
                return r;
        if (!applying->dry)
                vm_changed(applying->vm, event, json_pack("{s:s}", "snapshot", applying->name));
        return apply_answer(applying, ret, err);
}

static int apply_params(
        struct broker *broker, const json_t *params, json_t **ret, struct error *err)
{
        _cleanup_(applying_done) struct applying applying = {0};
        const char *name = param_text(params, "name");
        int r = apply_begin(broker, params, &applying, err);

        if (!name) { /* revert */
                name = applying.row.current;
                if (r == 0 && !name[0])
                        r = fail(err, ENOENT, "vm '%s' has no snapshot to go back to",
                                applying.row.name);
        }
        if (r == 0)
                r = want_snapshot(&applying, name, err);
        return r < 0 ? r : apply_rest(&applying, "snapshot-applied", ret, err);
}

static int would_apply(struct broker *broker, const json_t *params, struct error *err)
{
        json_auto_t *dry = json_copy((json_t *)params), *ignored = NULL;

        if (!dry || json_object_set_new(dry, "dry-run", json_true()) < 0)
                return fail(err, ENOMEM, "no memory for a question");
        return apply_params(broker, dry, &ignored, err);
}

/* What would be lost of a vm that is on is its memory, too: it becomes a snapshot as any other, before it
 * is stopped. *ret_params: what remains to be done. */
static int save_first(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret_params, struct error *err)
{
        const char *name = param_text(params, "save-current");
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        json_auto_t *taken = NULL;
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r < 0 || !name || param_bool(params, "dry-run") || !row.is_on_by_agent ||
                !agent_is_there(vm)) {
                *ret_params = json_incref((json_t *)params);
                return r;
        }
        /* What says no to the apply does so before anything is made. */
        r = would_apply(broker, params, err);
        if (r == 0)
                r = snapshot_take_with(broker, caller,
                        json_pack("{s:s, s:s, s:b}", "vm", vm->id, "name", name,
                                "skip-pass-through", true),
                        &taken, err);
        if (r < 0)
                return r;
        *ret_params = json_copy((json_t *)params);
        if (!*ret_params || json_object_set_new(*ret_params, "saved", json_string(name)) < 0)
                return fail(err, ENOMEM, "no memory for a snapshot");
        json_object_del(*ret_params, "save-current");
        return 0;
}

/* Which one is current is asked before another one becomes it. */
static int name_current(struct broker *broker, json_t *params, struct error *err)
{
        _cleanup_(vm_unrefp) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        int r = vm_peek(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0 && row.current[0] &&
                json_object_set_new(params, "name", json_string(row.current)) < 0)
                r = fail(err, ENOMEM, "no memory for a name");
        return r;
}

int snapshot_apply(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        json_auto_t *rest = NULL;
        int r = save_first(broker, caller, params, &rest, err);

        return r < 0 ? r : apply_params(broker, rest, ret, err);
}

int snapshot_revert(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        json_auto_t *named = json_copy((json_t *)params);
        int r = named ? name_current(broker, named, err)
                      : fail(err, ENOMEM, "no memory for a snapshot");

        return r < 0 ? r : snapshot_apply(broker, caller, named, ret, err);
}

int snapshot_undo(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(applying_done) struct applying applying = {0};
        int r = apply_begin(broker, params, &applying, err);

        if (r == 0)
                r = want_undo(&applying, err);
        return r < 0 ? r : apply_rest(&applying, "snapshot-undone", ret, err);
}
