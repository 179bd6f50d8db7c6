/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/doctor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/quote.h"
#include "vhdd/daemon/doctor_internal.h"

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for what the doctor finds");
}

/* A file's name is bytes, and JSON is UTF-8: what is none is still to be seen. */
static json_t *readable(const char *text)
{
        json_t *json = text && text[0] ? json_string(text) : json_null();
        _cleanup_free_ char *masked = json ? NULL : strdup(text);

        if (json)
                return json;
        for (char *p = masked; p && *p; p++)
                if ((unsigned char)*p >= 0x80)
                        *p = '?';
        return masked ? json_string(masked) : NULL;
}

int doctor_add(json_t *findings, const char *id, const char *severity, const char *vm,
        const char *file, const char *hint, const char *format, ...)
{
        char message[ERROR_MESSAGE_MAX];
        va_list ap;

        va_start(ap, format);
        vsnprintf(message, sizeof(message), format, ap);
        va_end(ap);
        return json_array_append_new(findings,
                json_pack("{s:s, s:s, s:o, s:o, s:o, s:o}", "id", id, "severity", severity,
                        "message", readable(message), "vm", readable(vm), "file", readable(file),
                        "hint", readable(hint)));
}

static void records_done(struct records *records)
{
        vm_rows_free(records->vms, records->n_vms);
        disk_rows_free(records->disks, records->n_disks);
        image_rows_free(records->images, records->n_images);
        operation_rows_free(records->operations, records->n_operations);
        merge_jobs_done(&records->jobs);
        free(records->facts);
        *records = (struct records){0};
}

/* ---- whose a file is ---- */

static const char *vm_name(const struct records *records, const char *id)
{
        for (size_t i = 0; i < records->n_vms; i++)
                if (strcmp(records->vms[i].id, id) == 0)
                        return records->vms[i].name;
        return NULL;
}

static int compare_path(const void *path, const void *image)
{
        return strcmp(path, ((const struct image_row *)image)->path);
}

static const struct image_row *find_image(const struct records *records, const char *path)
{
        return path && records->n_images ? bsearch(path, records->images, records->n_images,
                                                   sizeof(*records->images), compare_path)
                                         : NULL;
}

static size_t index_of(const struct records *records, const struct image_row *image)
{
        return (size_t)(image - records->images);
}

static const char *vm_of_image(const struct records *records, const char *path)
{
        const struct image_row *image = find_image(records, path);

        return image ? records->facts[index_of(records, image)].vm : NULL;
}

static bool is_parent(const struct records *records, const struct image_row *image)
{
        return records->facts[index_of(records, image)].is_parent;
}

/* Down from each leaf, as far as nobody has been. */
static void learn_owner(struct records *records, const struct disk_row *disk)
{
        const struct image_row *image = find_image(records, disk->file);
        const char *vm = vm_name(records, disk->vm);

        while (image && vm && !records->facts[index_of(records, image)].vm) {
                records->facts[index_of(records, image)].vm = vm;
                image = find_image(records, image->parent);
        }
}

static int learn_facts(struct records *records, struct error *err)
{
        records->facts = calloc(records->n_images + 1, sizeof(*records->facts));
        if (!records->facts)
                return no_memory(err);
        for (size_t i = 0; i < records->n_images; i++) {
                const struct image_row *parent = find_image(records, records->images[i].parent);

                if (parent)
                        records->facts[index_of(records, parent)].is_parent = true;
        }
        for (size_t i = 0; i < records->n_disks; i++)
                learn_owner(records, &records->disks[i]);
        return 0;
}

static int records_read(struct catalog *catalog, struct records *records, struct error *err)
{
        int r = catalog_vm_list(catalog, &records->vms, &records->n_vms, err);

        if (r == 0)
                r = catalog_disk_list(catalog, NULL, &records->disks, &records->n_disks, err);
        if (r == 0)
                r = catalog_image_list(catalog, NULL, &records->images, &records->n_images, err);
        if (r == 0)
                r = catalog_operation_list(
                        catalog, &records->operations, &records->n_operations, err);
        if (r == 0)
                r = merge_jobs_load_all(catalog, NULL, &records->jobs, err);
        return r == 0 ? learn_facts(records, err) : r;
}

/* ---- files that are not what they were ---- */

static int64_t mtime_ns(const struct stat *st)
{
        return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

static void examine_seal(
        struct examination *x, const struct image_row *image, const struct stat *st)
{
        char hint[ERROR_MESSAGE_MAX], word[QUOTE_TEXT_MAX];

        if (image->sealed_mtime_ns == 0 ||
                (image->sealed_mtime_ns == mtime_ns(st) &&
                        image->sealed_size == (uint64_t)st->st_size))
                return;
        snprintf(hint, sizeof(hint), "vhdctl check --chain --deep %s",
                shell_quote(image->path, word, sizeof(word)));
        doctor_add(x->findings, "parent-changed", "damage", vm_of_image(&x->records, image->path),
                image->path, hint,
                "'%s' was changed after it was frozen: what stands on it may read wrong data",
                image->path);
}

static void examine_image(struct examination *x, const struct image_row *image)
{
        const char *vm = vm_of_image(&x->records, image->path);
        struct stat st;

        if (lstat(image->path, &st) < 0) {
                doctor_add(x->findings, "missing-file", "damage", vm, image->path,
                        "bring it back from a backup to this place",
                        "the image '%s' cannot be looked at: %s", image->path, strerror(errno));
                return;
        }
        if (image->inode && (image->inode != st.st_ino || image->device != st.st_dev)) {
                doctor_add(x->findings, "replaced-file", "damage", vm, image->path,
                        "put the file back that was there, or detach the disk and attach it again",
                        "'%s' is another file than the one that was attached", image->path);
                return;
        }
        examine_seal(x, image, &st);
}

static void examine_pass_through(struct examination *x, const struct disk_row *disk)
{
        char hint[ERROR_MESSAGE_MAX], vm[QUOTE_TEXT_MAX], name[QUOTE_TEXT_MAX];
        const char *of = vm_name(&x->records, disk->vm);

        if (find_image(&x->records, disk->file) || access(disk->file, F_OK) == 0)
                return;
        snprintf(hint, sizeof(hint), "vhdctl disk detach %s %s",
                shell_quote(of ? of : disk->vm, vm, sizeof(vm)),
                shell_quote(disk->name, name, sizeof(name)));
        doctor_add(x->findings, "missing-file", "damage", of, disk->file, hint,
                "'%s' of disk '%s' is not there", disk->file, disk->name);
}

/* ---- chains ---- */

static unsigned depth_of(const struct records *records, const char *path)
{
        unsigned depth = 0;

        for (const struct image_row *image = find_image(records, path);
                image && depth <= records->n_images; image = find_image(records, image->parent))
                depth++;
        return depth;
}

static void compare_layer(
        struct examination *x, const struct image_row *image, const struct resolved_layer *layer)
{
        char stored[UUID_TEXT_SIZE], found[UUID_TEXT_SIZE];
        char hint[ERROR_MESSAGE_MAX], word[QUOTE_TEXT_MAX];

        if (strcmp(image->format, "vhd") != 0 || uuid_equal(image->uuid, layer->uuid))
                return;
        snprintf(
                hint, sizeof(hint), "vhdctl tree %s", shell_quote(image->path, word, sizeof(word)));
        doctor_add(x->findings, "wrong-id", "damage", vm_of_image(&x->records, image->path),
                image->path, hint, "'%s' has the id %s, and had %s when it was attached",
                image->path, uuid_format(layer->uuid, found), uuid_format(image->uuid, stored));
}

static bool is_in_merge(const struct records *records, const char *path)
{
        for (size_t i = 0; i < records->jobs.n; i++)
                if (!merge_job_is(&records->jobs.items[i], JOB_DONE) &&
                        merge_job_touches(&records->jobs.items[i], path))
                        return true;
        return false;
}

/* A merge that was cut off in its end: who stood on what goes may stand on what stays already, and the catalog
 * follows when it goes on. Down from @image to @path, or NULL: that is no such thing. */
static const struct image_row *skip_merged(
        const struct records *records, const struct image_row *image, const char *path)
{
        while (image && strcmp(image->path, path) != 0)
                image = is_in_merge(records, image->path) ? find_image(records, image->parent)
                                                          : NULL;
        return image;
}

/* Layer by layer what the headers say against what the catalog says. */
static void compare_chain(struct examination *x, const struct image_row *tip,
        const struct resolved_layer *layers, size_t n)
{
        const struct image_row *image = tip, *merged;

        for (size_t i = 0; i < n && image; i++) {
                compare_layer(x, image, &layers[i]);
                image = find_image(&x->records, image->parent);
                merged = i + 1 < n ? skip_merged(&x->records, image, layers[i + 1].path) : NULL;
                if (merged)
                        image = merged;
                if ((i + 1 < n) != (image != NULL) ||
                        (image && strcmp(image->path, layers[i + 1].path) != 0)) {
                        doctor_add(x->findings, "broken-chain", "damage",
                                vm_of_image(&x->records, tip->path), layers[i].path, NULL,
                                "'%s' stands on '%s', and the catalog says on '%s'", layers[i].path,
                                i + 1 < n ? layers[i + 1].path : "nothing",
                                image ? image->path : "nothing");
                        return;
                }
        }
}

static void examine_tip(struct examination *x, const struct image_row *tip)
{
        const struct doctor *doctor = x->doctor;
        struct resolved_layer *layers = NULL;
        struct error err = ERROR_INIT;
        unsigned depth = depth_of(&x->records, tip->path);
        const char *vm = vm_of_image(&x->records, tip->path);
        size_t n = 0;

        if (depth > DOCTOR_LONG_CHAIN)
                doctor_add(x->findings, "long-chain", "warning", vm, tip->path,
                        "delete snapshots that nobody needs: vhdctl snapshot prune",
                        "'%s' stands on %u images", tip->path, depth - 1);
        if (access(tip->path, F_OK) != 0)
                return; /* said already */
        if (doctor->resolve(doctor->opaque, tip->path, tip->format, doctor->roots, doctor->n_roots,
                    &layers, &n, &err) < 0) {
                doctor_add(x->findings, "broken-chain", "damage", vm,
                        err.file[0] ? err.file : tip->path, err.hint, "%s", err.message);
                return;
        }
        compare_chain(x, tip, layers, n);
        resolved_layers_free(layers, n);
}

/* ---- space, jobs, the journal ---- */

static void examine_space(struct examination *x, json_t *seen, const struct disk_row *disk)
{
        struct stat st;
        struct statvfs fs;
        char key[32];
        uint64_t left, size;

        if (disk->read_only || stat(disk->file, &st) < 0 || !S_ISREG(st.st_mode) ||
                statvfs(disk->file, &fs) < 0)
                return;
        snprintf(key, sizeof(key), "%llx", (unsigned long long)st.st_dev);
        if (json_object_get(seen, key))
                return;
        json_object_set_new(seen, key, json_true());
        left = (uint64_t)fs.f_bavail * fs.f_frsize;
        size = (uint64_t)fs.f_blocks * fs.f_frsize;
        if (left >= DOCTOR_SPACE_LEAST && left >= size / DOCTOR_SPACE_SHARE)
                return;
        doctor_add(x->findings, "low-space", "warning", vm_name(&x->records, disk->vm), disk->file,
                "free space, or delete snapshots: writes fail when it is used up",
                "the file system of '%s' has %llu MiB left of %llu MiB", disk->file,
                (unsigned long long)(left >> 20), (unsigned long long)(size >> 20));
}

static int64_t age_s(const struct merge_job *job)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return (int64_t)now.tv_sec - job->row.created_us / 1000000;
}

static void examine_failed(struct examination *x, const struct merge_job *job, const char *vm)
{
        const char *error = merge_job_text(job, "error"), *image = merge_job_text(job, "image");
        bool full = json_object_get(job->payload, "space");
        char hint[64];

        snprintf(hint, sizeof(hint), "vhdctl job resume %lld%s", (long long)job->row.id,
                merge_job_number(job, "code") == ESTALE ? " --force" : "");
        doctor_add(x->findings, full ? "merge-paused" : "merge-failed", "warning", vm, image,
                full ? "free space: it goes on by itself" : hint, "job %lld %s: %s",
                (long long)job->row.id, full ? "is paused" : "failed", error ? error : "?");
}

static void examine_job(struct examination *x, const struct merge_job *job)
{
        const char *vm = vm_name(&x->records, job->row.vm), *image = merge_job_text(job, "image");
        const char *reason = merge_job_text(job, "reason");
        bool resumable = merge_job_is(job, JOB_PAUSED) || merge_job_is(job, JOB_CANCELLED);
        char hint[64];

        if (merge_job_is(job, JOB_FAILED) || json_object_get(job->payload, "space")) {
                examine_failed(x, job, vm);
                return;
        }
        snprintf(hint, sizeof(hint), "vhdctl job %s %lld", resumable ? "resume" : "show",
                (long long)job->row.id);
        if (resumable)
                doctor_add(x->findings, "merge-stopped", "info", vm, image, hint, "job %lld is %s",
                        (long long)job->row.id, job->row.state);
        else if (merge_job_is(job, JOB_WAITING))
                doctor_add(x->findings, "job-waiting",
                        age_s(job) > DOCTOR_LONG_WAIT_S ? "warning" : "info", vm, image, hint,
                        "job %lld (%s) waits%s%s", (long long)job->row.id, job->row.kind,
                        reason ? ": " : "", reason ? reason : "");
}

static void examine_operations(struct examination *x)
{
        for (size_t i = 0; i < x->records.n_operations; i++) {
                const struct operation_row *row = &x->records.operations[i];

                doctor_add(x->findings, "unfinished-operation", "warning",
                        vm_name(&x->records, row->vm), NULL,
                        "if it does not end by itself: vhdctl restart",
                        "the operation '%s' has begun and is not yet %s", row->kind,
                        strcmp(row->state, "finish") == 0 ? "finished" : "committed");
        }
}

/* ---- all of it ---- */

static int rank(const json_t *finding)
{
        const char *severity = json_string_value(json_object_get(finding, "severity"));

        return !severity                           ? 3
                : strcmp(severity, "damage") == 0  ? 0
                : strcmp(severity, "warning") == 0 ? 1
                                                   : 2;
}

/* Stable: by severity, then as they were found. */
static int sort_findings(json_t *findings, struct error *err)
{
        json_auto_t *sorted = json_array();
        json_t *finding;
        size_t i;

        for (int wanted = 0; wanted < 4; wanted++)
                json_array_foreach(findings, i, finding)
                {
                        if (rank(finding) == wanted && json_array_append(sorted, finding) < 0)
                                return no_memory(err);
                }
        json_array_clear(findings);
        return json_array_extend(findings, sorted) == 0 ? 0 : no_memory(err);
}

static void examine_rows(struct examination *x, json_t *seen)
{
        const struct records *records = &x->records;

        for (size_t i = 0; i < records->n_images; i++) {
                const struct image_row *image = &records->images[i];

                examine_image(x, image);
                if (strcmp(image->state, "hidden") == 0)
                        doctor_add(x->findings, "image-hidden", "info",
                                vm_of_image(records, image->path), image->path, NULL,
                                "'%s' of a deleted snapshot waits for its merge", image->path);
                if (!is_parent(records, image))
                        examine_tip(x, image);
        }
        for (size_t i = 0; i < records->n_disks; i++) {
                examine_pass_through(x, &records->disks[i]);
                examine_space(x, seen, &records->disks[i]);
        }
        examine_operations(x);
}

int doctor_examine(const struct doctor *doctor, json_t *findings, struct error *err)
{
        struct examination x = {.doctor = doctor, .findings = findings};
        json_auto_t *seen = json_object();
        int r = seen ? records_read(doctor->catalog, &x.records, err) : no_memory(err);

        if (r == 0) {
                examine_rows(&x, seen);
                r = doctor_examine_folders(&x, err);
        }
        for (size_t i = 0; r == 0 && i < x.records.jobs.n; i++)
                examine_job(&x, &x.records.jobs.items[i]);
        if (r == 0)
                r = sort_findings(findings, err);
        records_done(&x.records);
        return r;
}
