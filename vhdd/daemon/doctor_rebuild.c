/* SPDX-License-Identifier: Apache-2.0 */
/* A catalog anew, out of sidecars and headers. A sidecar was written by anybody: an image's row is
 * made only when the resolver finds that image, with that id, on that parent. */
#include <stdio.h>
#include <string.h>

#include "base/folders.h"
#include "vhdd/daemon/doctor.h"
#include "vhdd/daemon/sidecar.h"

#define FOLDERS_DEEP 16u
#define SIDECARS_MAX 100000u

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for rebuilding the catalog");
}

/* ---- finding them ---- */

static bool is_sidecar(const char *name)
{
        size_t n = strlen(name), m = strlen(SIDECAR_ENDING);

        return n > m && strcmp(name + n - m, SIDECAR_ENDING) == 0;
}

struct search {
        json_t *paths, *findings;
};

static int note_unreadable(void *opaque, const char *path, int why, struct error *err)
{
        struct search *search = opaque;

        (void)err;
        doctor_add(search->findings, "folder-unreadable", "warning", NULL, path, NULL,
                "cannot look into the folder '%s': %s", path, strerror(why));
        return 0;
}

static int note_sidecar(void *opaque, const char *path, const char *name, struct error *err)
{
        struct search *search = opaque;

        (void)err;
        if (is_sidecar(name) && json_array_size(search->paths) < SIDECARS_MAX)
                json_array_append_new(search->paths, json_string(path));
        return 0;
}

/* ---- believing one ---- */

static struct image_row *find_image(struct sidecar *sidecar, const char *path)
{
        for (size_t i = 0; path && i < sidecar->n_images; i++)
                if (strcmp(sidecar->images[i].path, path) == 0)
                        return &sidecar->images[i];
        return NULL;
}

static bool is_parent(const struct sidecar *sidecar, const char *path)
{
        for (size_t i = 0; i < sidecar->n_images; i++)
                if (sidecar->images[i].parent && strcmp(sidecar->images[i].parent, path) == 0)
                        return true;
        return false;
}

static int confirm_layer(struct image_row *image, const struct resolved_layer *layer,
        const struct resolved_layer *below, struct error *err)
{
        const char *parent = below ? below->path : NULL;

        if (strcmp(image->format, "vhd") == 0 && !uuid_equal(image->uuid, layer->uuid))
                return fail(err, EUCLEAN, "'%s' has another id than its sidecar says", layer->path);
        if (!parent != !image->parent || (parent && strcmp(parent, image->parent) != 0))
                return fail(err, EUCLEAN, "'%s' stands on '%s', and its sidecar says on '%s'",
                        layer->path, parent ? parent : "nothing",
                        image->parent ? image->parent : "nothing");
        image->device = layer->device;
        image->inode = layer->inode;
        image->birth_ns = layer->birth_ns;
        return 0;
}

static int confirm_tip(const struct doctor *doctor, struct sidecar *sidecar, const char *path,
        const char *format, struct error *err)
{
        struct resolved_layer *layers = NULL;
        size_t n = 0;
        int r = doctor->resolve(
                doctor->opaque, path, format, doctor->roots, doctor->n_roots, &layers, &n, err);

        for (size_t i = 0; r == 0 && i < n; i++) {
                struct image_row *image = find_image(sidecar, layers[i].path);

                r = image ? confirm_layer(image, &layers[i], i + 1 < n ? &layers[i + 1] : NULL, err)
                          : fail(err, EUCLEAN, "the sidecar does not know the image '%s'",
                                    layers[i].path);
        }
        resolved_layers_free(layers, n);
        return r;
}

/* Every image that a disk or a snapshot names is among those that are confirmed. */
static int confirm_names(struct sidecar *sidecar, struct error *err)
{
        for (size_t i = 0; i < sidecar->n_disks; i++) {
                const struct disk_row *disk = &sidecar->disks[i];

                if (strcmp(disk->kind, "pass-through") != 0 && !find_image(sidecar, disk->file))
                        return fail(err, EUCLEAN, "the sidecar does not know the image '%s'",
                                disk->file);
        }
        for (size_t i = 0; i < sidecar->n_held; i++)
                if (sidecar->held[i].file && !find_image(sidecar, sidecar->held[i].file))
                        return fail(err, EUCLEAN, "the sidecar does not know the image '%s'",
                                sidecar->held[i].file);
        return 0;
}

int doctor_confirm(const struct doctor *doctor, struct sidecar *sidecar, struct error *err)
{
        int r = confirm_names(sidecar, err);

        for (size_t i = 0; r == 0 && i < sidecar->n_images; i++)
                if (!is_parent(sidecar, sidecar->images[i].path))
                        r = confirm_tip(doctor, sidecar, sidecar->images[i].path,
                                sidecar->images[i].format, err);
        /* Images that stand on one another in a ring have no tip. */
        for (size_t i = 0; r == 0 && i < sidecar->n_images; i++)
                if (sidecar->images[i].inode == 0)
                        r = fail(err, EUCLEAN, "no chain leads to '%s'", sidecar->images[i].path);
        return r;
}

/* ---- bringing it back ---- */

static int insert(struct catalog *catalog, const struct sidecar *sidecar, struct error *err)
{
        _cleanup_(catalog_rollbackp) struct catalog *transaction = catalog;
        int r = catalog_begin(transaction, err);

        if (r == 0)
                r = sidecar_insert(transaction, sidecar, err);
        return r == 0 ? catalog_commit(transaction, err) : r;
}

static bool is_known(struct catalog *catalog, const char *id)
{
        struct vm_row row;

        if (catalog_vm_find(catalog, id, &row, NULL) < 0)
                return false;
        vm_row_done(&row);
        return true;
}

/* Nobody but the catalog could say which of two folders with the same vm is the one that ran. */
static int count_id(const json_t *found, const char *id, const char **ret_other, const char *path)
{
        const json_t *one;
        int n = 0;
        size_t i;

        json_array_foreach(found, i, one)
        {
                if (strcmp(json_string_value(json_object_get(one, "id")), id) != 0)
                        continue;
                n++;
                if (strcmp(json_string_value(json_object_get(one, "path")), path) != 0)
                        *ret_other = json_string_value(json_object_get(one, "path"));
        }
        return n;
}

static void tell_notes(json_t *findings, const char *vm, const char *path, const json_t *notes)
{
        const json_t *note;
        size_t i;

        json_array_foreach(notes, i, note) doctor_add(findings, "sidecar-incomplete", "warning", vm,
                path, NULL, "%s", json_string_value(note));
}

static int rebuild_one(const struct doctor *doctor, const char *path, bool dry_run,
        json_t *findings, struct doctor_rebuilt *rebuilt, struct error *err)
{
        _cleanup_(sidecar_done) struct sidecar sidecar = {0};
        json_auto_t *notes = json_array();
        int r = notes ? sidecar_read(host_fs(), path, &sidecar, err) : no_memory(err);

        if (r == 0)
                r = sidecar_confine(&sidecar, doctor->roots, doctor->n_roots, notes, err);
        if (r == 0)
                r = doctor_confirm(doctor, &sidecar, err);
        if (r == 0 && !dry_run)
                r = insert(doctor->catalog, &sidecar, err);
        if (r < 0)
                return fail_prefix(err, r, "the vm '%s' cannot be brought back",
                        sidecar.vm.name ? sidecar.vm.name : path);
        tell_notes(findings, sidecar.vm.name, path, notes);
        rebuilt->n_vms++;
        rebuilt->n_disks += (unsigned)sidecar.n_disks;
        rebuilt->n_snapshots += (unsigned)sidecar.n_snapshots;
        if (json_array_append_new(rebuilt->ids, json_string(sidecar.vm.id)) < 0)
                return no_memory(err);
        return 0;
}

/* {"path", "id"} of each sidecar of a vm that the catalog does not have. What an export made lies
 * beside copies, and has the id of the vm that it is a copy of. */
static void read_ids(
        const struct doctor *doctor, const json_t *paths, json_t *found, json_t *findings)
{
        const json_t *path;
        size_t i;

        json_array_foreach(paths, i, path)
        {
                _cleanup_(sidecar_done) struct sidecar sidecar = {0};
                const char *text = json_string_value(path);
                struct error why = ERROR_INIT;

                if (sidecar_read(host_fs(), text, &sidecar, &why) < 0)
                        doctor_add(findings, "sidecar-unusable", "warning", NULL, text, why.hint,
                                "%s", why.message);
                else if (!sidecar.exported && !is_known(doctor->catalog, sidecar.vm.id))
                        json_array_append_new(
                                found, json_pack("{s:s, s:s}", "path", text, "id", sidecar.vm.id));
        }
}

static void rebuild_all(const struct doctor *doctor, bool dry_run, const json_t *found,
        json_t *findings, struct doctor_rebuilt *rebuilt)
{
        const json_t *one;
        size_t i;

        json_array_foreach(found, i, one)
        {
                const char *path = json_string_value(json_object_get(one, "path"));
                const char *id = json_string_value(json_object_get(one, "id")), *other = NULL;
                struct error why = ERROR_INIT;

                if (count_id(found, id, &other, path) > 1)
                        doctor_add(findings, "sidecar-unusable", "warning", NULL, path,
                                "move away the one that is a copy",
                                "'%s' and '%s' say that they are the same vm", path, other);
                else if (rebuild_one(doctor, path, dry_run, findings, rebuilt, &why) < 0)
                        doctor_add(findings, "sidecar-unusable", "warning", NULL, path, why.hint,
                                "%s", why.message);
        }
}

int doctor_rebuild(const struct doctor *doctor, bool dry_run, json_t *findings,
        struct doctor_rebuilt *ret, struct error *err)
{
        json_auto_t *paths = json_array(), *ids = json_array(), *found = json_array();
        struct search search = {.paths = paths, .findings = findings};
        const struct folder_walk walk = {
                .opaque = &search, .file = note_sidecar, .unreadable = note_unreadable};
        struct doctor_rebuilt rebuilt = {.ids = ids};
        int r = paths && ids && found ? 0 : no_memory(err);

        for (size_t k = 0; r == 0 && k < doctor->n_roots; k++)
                r = folder_walk(doctor->roots[k], FOLDERS_DEEP, &walk, err);
        if (r < 0)
                return r;
        read_ids(doctor, paths, found, findings);
        rebuild_all(doctor, dry_run, found, findings, &rebuilt);
        *ret = rebuilt;
        ids = NULL;
        return 0;
}
