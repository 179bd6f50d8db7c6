/* SPDX-License-Identifier: Apache-2.0 */
/* A sidecar's rows for another place, or for another vm. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vhdd/daemon/notes.h"
#include "vhdd/daemon/sidecar.h"

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for a vm's rows");
}

/* ---- in the settings of a snapshot ---- */

static const struct snapshot_disk_row *find_held(
        const struct sidecar *sidecar, const char *snapshot, const char *disk)
{
        for (size_t i = 0; i < sidecar->n_held; i++)
                if (strcmp(sidecar->held[i].snapshot, snapshot) == 0 &&
                        strcmp(sidecar->held[i].disk, disk) == 0)
                        return &sidecar->held[i];
        return NULL;
}

/* @settings NULL: there was no memory to read them. */
static int put_settings(struct snapshot_row *snapshot, const json_t *settings, struct error *err)
{
        char *text = settings ? json_dumps(settings, JSON_COMPACT) : NULL;

        if (!text)
                return no_memory(err);
        free(snapshot->settings);
        snapshot->settings = text;
        return 0;
}

/* What stands in the rows is the truth for the disks that the settings list. */
static int renew_settings(
        const struct sidecar *sidecar, struct snapshot_row *snapshot, struct error *err)
{
        json_auto_t *settings = json_loads(snapshot->settings, 0, NULL);
        json_t *disks = json_object_get(settings, "disks"), *disk;
        size_t i;

        json_array_foreach(disks, i, disk)
        {
                const char *id = json_string_value(json_object_get(disk, "id"));
                const struct snapshot_disk_row *held =
                        id ? find_held(sidecar, snapshot->id, id) : NULL;

                if (held && held->file &&
                        json_object_set_new(disk, "file", json_string(held->file)) < 0)
                        return no_memory(err);
        }
        return put_settings(snapshot, settings, err);
}

/* ---- paths ---- */

struct renaming {
        char *(*to)(void *opaque, const char *path);
        void *opaque;
        bool failed;
};

static void rename_one(struct renaming *renaming, char **path)
{
        char *now = *path ? renaming->to(renaming->opaque, *path) : NULL;

        if (*path && !now)
                renaming->failed = true;
        if (now) {
                free(*path);
                *path = now;
        }
}

int sidecar_rename(struct sidecar *sidecar, char *(*to)(void *opaque, const char *path),
        void *opaque, struct error *err)
{
        struct renaming renaming = {.to = to, .opaque = opaque};
        int r = 0;

        for (size_t i = 0; i < sidecar->n_disks; i++)
                rename_one(&renaming, &sidecar->disks[i].file);
        for (size_t i = 0; i < sidecar->n_held; i++)
                rename_one(&renaming, &sidecar->held[i].file);
        for (size_t i = 0; i < sidecar->n_snapshots; i++)
                rename_one(&renaming, &sidecar->snapshots[i].memory);
        for (size_t i = 0; i < sidecar->n_images; i++) {
                rename_one(&renaming, &sidecar->images[i].path);
                rename_one(&renaming, &sidecar->images[i].parent);
        }
        if (renaming.failed)
                return no_memory(err);
        for (size_t i = 0; r == 0 && i < sidecar->n_snapshots; i++)
                r = renew_settings(sidecar, &sidecar->snapshots[i], err);
        return r;
}

/* ---- ids ---- */

/* The new id of an old one, made when it is asked for first. */
static void renew_id(json_t *ids, char id[UUID_TEXT_SIZE])
{
        const char *known = json_string_value(json_object_get(ids, id));
        char made[UUID_TEXT_SIZE];
        uint8_t bytes[16];

        if (!id[0])
                return;
        if (!known) {
                uuid_random(bytes);
                uuid_format(bytes, made);
                json_object_set_new(ids, id, json_string(made));
                known = made;
        }
        memcpy(id, known, UUID_TEXT_SIZE);
}

static int renew_settings_ids(json_t *ids, struct snapshot_row *snapshot, struct error *err)
{
        json_auto_t *settings = json_loads(snapshot->settings, 0, NULL);
        json_t *disk;
        size_t i;

        json_array_foreach(json_object_get(settings, "disks"), i, disk)
        {
                const char *old = json_string_value(json_object_get(disk, "id"));
                char id[UUID_TEXT_SIZE] = "";

                if (!old || strlen(old) >= sizeof(id))
                        continue;
                strcpy(id, old);
                renew_id(ids, id);
                json_object_set_new(disk, "id", json_string(id));
        }
        return put_settings(snapshot, settings, err);
}

int sidecar_new_ids(struct sidecar *sidecar, struct error *err)
{
        json_auto_t *ids = json_object();
        int r = ids ? 0 : no_memory(err);

        if (r < 0)
                return r;
        renew_id(ids, sidecar->vm.id);
        renew_id(ids, sidecar->vm.current);
        renew_id(ids, sidecar->vm.resume);
        for (size_t i = 0; i < sidecar->n_disks; i++) {
                renew_id(ids, sidecar->disks[i].id);
                renew_id(ids, sidecar->disks[i].vm);
        }
        for (size_t i = 0; i < sidecar->n_held; i++) {
                renew_id(ids, sidecar->held[i].snapshot);
                renew_id(ids, sidecar->held[i].disk);
        }
        for (size_t i = 0; r == 0 && i < sidecar->n_snapshots; i++) {
                struct snapshot_row *row = &sidecar->snapshots[i];

                renew_id(ids, row->id);
                renew_id(ids, row->vm);
                renew_id(ids, row->parent);
                r = renew_settings_ids(ids, row, err);
        }
        return r;
}

/* ---- less ---- */

static void drop_held(struct sidecar *sidecar, const char *snapshot)
{
        size_t n = 0;

        for (size_t i = 0; i < sidecar->n_held; i++) {
                if (strcmp(sidecar->held[i].snapshot, snapshot) == 0)
                        snapshot_disk_row_done(&sidecar->held[i]);
                else
                        sidecar->held[n++] = sidecar->held[i];
        }
        sidecar->n_held = n;
}

static void give_parent(struct sidecar *sidecar, const struct snapshot_row *gone)
{
        for (size_t i = 0; i < sidecar->n_snapshots; i++)
                if (strcmp(sidecar->snapshots[i].parent, gone->id) == 0)
                        memcpy(sidecar->snapshots[i].parent, gone->parent, UUID_TEXT_SIZE);
        if (strcmp(sidecar->vm.current, gone->id) == 0)
                memcpy(sidecar->vm.current, gone->parent, UUID_TEXT_SIZE);
        if (strcmp(sidecar->vm.resume, gone->id) == 0)
                sidecar->vm.resume[0] = '\0';
}

void sidecar_drop_snapshots(struct sidecar *sidecar, const char *but)
{
        for (size_t i = 0; i < sidecar->n_snapshots;) {
                struct snapshot_row gone = sidecar->snapshots[i];

                if (strcmp(gone.id, but) != 0 && strcmp(gone.state, "committed") == 0) {
                        i++;
                        continue;
                }
                memmove(&sidecar->snapshots[i], &sidecar->snapshots[i + 1],
                        (--sidecar->n_snapshots - i) * sizeof(gone));
                drop_held(sidecar, gone.id);
                give_parent(sidecar, &gone);
                snapshot_row_done(&gone);
        }
}

static bool is_needed(const struct sidecar *sidecar, const char *path)
{
        for (size_t i = 0; i < sidecar->n_disks; i++)
                if (strcmp(sidecar->disks[i].file, path) == 0)
                        return true;
        for (size_t i = 0; i < sidecar->n_held; i++)
                if (sidecar->held[i].file && strcmp(sidecar->held[i].file, path) == 0)
                        return true;
        for (size_t i = 0; i < sidecar->n_images; i++)
                if (sidecar->images[i].parent && strcmp(sidecar->images[i].parent, path) == 0)
                        return true;
        return false;
}

/* A child goes before what it stood on: again until nothing goes. */
void sidecar_drop_unneeded(struct sidecar *sidecar)
{
        size_t before;

        do {
                size_t n = 0;

                before = sidecar->n_images;
                for (size_t i = 0; i < before; i++) {
                        struct image_row row = sidecar->images[i];

                        /* The rows behind i are where they were. */
                        if (is_needed(sidecar, row.path)) {
                                sidecar->images[i] = sidecar->images[n];
                                sidecar->images[n++] = row;
                        }
                }
                for (size_t i = n; i < before; i++)
                        image_row_done(&sidecar->images[i]);
                sidecar->n_images = n;
        } while (sidecar->n_images < before);
}

/* ---- no more than its writer may have ---- */

struct confining {
        struct sidecar *sidecar;
        char *const *roots;
        size_t n_roots;
        json_t *notes;
};

/* Beneath a root by its real name: nothing on the way to it is a link. */
static bool is_inside(const struct confining *c, const char *path)
{
        _cleanup_free_ char *real = realpath(path, NULL);

        for (size_t i = 0; real && strcmp(real, path) == 0 && i < c->n_roots; i++) {
                _cleanup_free_ char *root = realpath(c->roots[i], NULL);
                size_t n = root ? strlen(root) : 0;

                if (n > 0 && strncmp(path, root, n) == 0 && (path[n] == '/' || n == 1))
                        return true;
        }
        return false;
}

static int confine_images(const struct confining *c, struct error *err)
{
        for (size_t i = 0; i < c->sidecar->n_images; i++) {
                const char *path = c->sidecar->images[i].path;
                bool there = access(path, F_OK) == 0;

                if (there && is_inside(c, path))
                        continue;
                fail(err, there ? EUCLEAN : ENOENT,
                        there ? "the sidecar names '%s', which lies in none of the folders that are "
                                "allowed"
                              : "the sidecar names '%s', which is not there",
                        path);
                error_set_file(err, path);
                error_set_hint(err, "a folder more is allowed by: vhdd --image-root DIR");
                return there ? -EUCLEAN : -ENOENT;
        }
        return 0;
}

static void drop_devices(struct confining *c)
{
        struct sidecar *sidecar = c->sidecar;
        size_t n = 0;

        for (size_t i = 0; i < sidecar->n_disks; i++) {
                struct disk_row *disk = &sidecar->disks[i];

                if (strcmp(disk->kind, "pass-through") != 0) {
                        sidecar->disks[n++] = *disk;
                        continue;
                }
                note_add(c->notes, "the pass-through disk '%s' (%s) is left out: attach it again",
                        disk->name, disk->file);
                disk_row_done(disk);
        }
        sidecar->n_disks = n;
        for (size_t i = 0; i < sidecar->n_held; i++) {
                struct snapshot_disk_row *held = &sidecar->held[i];

                if (strcmp(held->kind, "pass-through") == 0 || held->skipped) {
                        held->skipped = true;
                        free(held->file);
                        held->file = NULL;
                }
        }
}

/* Going back to a snapshot attaches what its settings list. */
static int confine_settings(struct confining *c, struct snapshot_row *snapshot, struct error *err)
{
        json_auto_t *settings = json_loads(snapshot->settings, 0, NULL);
        json_t *disks = json_object_get(settings, "disks");

        for (size_t i = json_array_size(disks); i-- > 0;) {
                json_t *disk = json_array_get(disks, i);
                const char *id = json_string_value(json_object_get(disk, "id"));
                const struct snapshot_disk_row *held =
                        id ? find_held(c->sidecar, snapshot->id, id) : NULL;

                if (held && held->file)
                        json_object_set_new(disk, "file", json_string(held->file));
                else
                        json_array_remove(disks, i);
        }
        return put_settings(snapshot, settings, err);
}

static void confine_text(struct confining *c, char **path, const char *what)
{
        if (!*path || is_inside(c, *path))
                return;
        note_add(c->notes, "%s '%s' is left out: it lies in none of the folders that are allowed", what,
                *path);
        free(*path);
        *path = NULL;
}

int sidecar_confine(struct sidecar *sidecar, char *const *roots, size_t n_roots, json_t *notes,
        struct error *err)
{
        struct confining c = {
                .sidecar = sidecar, .roots = roots, .n_roots = n_roots, .notes = notes};
        int r = confine_images(&c, err);

        if (r < 0)
                return r;
        drop_devices(&c);
        confine_text(&c, &sidecar->vm.snapshot_dir, "the folder for saved memory");
        for (size_t i = 0; r == 0 && i < sidecar->n_snapshots; i++) {
                confine_text(&c, &sidecar->snapshots[i].memory, "the saved memory");
                r = confine_settings(&c, &sidecar->snapshots[i], err);
        }
        return r;
}
