/* SPDX-License-Identifier: Apache-2.0 */
/* A sidecar's rows for another place, or for another vm. */
#include <string.h>

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

/* What stands in the rows is the truth for the disks that the settings list. */
static int renew_settings(
        const struct sidecar *sidecar, struct snapshot_row *snapshot, struct error *err)
{
        json_auto_t *settings = json_loads(snapshot->settings, 0, NULL);
        json_t *disks = json_object_get(settings, "disks"), *disk;
        char *text;
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
        text = settings ? json_dumps(settings, JSON_COMPACT) : NULL;
        if (!text)
                return no_memory(err);
        free(snapshot->settings);
        snapshot->settings = text;
        return 0;
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
        char *text;
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
        text = settings ? json_dumps(settings, JSON_COMPACT) : NULL;
        if (!text)
                return no_memory(err);
        free(snapshot->settings);
        snapshot->settings = text;
        return 0;
}

int sidecar_new_ids(struct sidecar *sidecar, struct error *err)
{
        json_auto_t *ids = json_object();
        int r = ids ? 0 : no_memory(err);

        if (r < 0)
                return r;
        renew_id(ids, sidecar->vm.id);
        renew_id(ids, sidecar->vm.current);
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
