/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/mount_files.h"

#include <ctype.h>
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vhdd/ctl/guest_fs.h"
#include "vhdd/ctl/mount_note.h"
#include "vhdd/ctl/mount_undo.h"
#include "vhdd/ctl/mounts.h"
#include "vhdd/ctl/open.h"
#include "vhdd/ctl/output.h"

#define MAX_PARTITIONS 256u
#define OPTIONS_SIZE   1024u
#define WHAT_SIZE      (PATH_MAX + 64)

/* A partition, or the whole disk where there are none. */
struct part {
        unsigned number; /* 0: the disk */
        char file[PATH_MAX];
        char point[PATH_MAX];
        struct guest_fs fs;
        bool mounted, by_kernel;
        char why[ERROR_MESSAGE_MAX]; /* it is not */
};

struct work {
        const struct ctl *ctl;
        const struct mount_files *files;
        struct mount_note *note;
        char *target; /* absolute */
        char *image;  /* absolute: the server holds no folder busy */
        struct part *parts;
        size_t n_parts;
        char options[OPTIONS_SIZE];
        bool exec;
        const struct part *now; /* that is mounted */
};

static void describe(const struct work *work, const struct part *part, char ret[WHAT_SIZE])
{
        if (part->number > 0)
                snprintf(ret, WHAT_SIZE, "partition %u of '%s'", part->number, work->files->image);
        else
                snprintf(ret, WHAT_SIZE, "'%s'", work->files->image);
}

/* --- what is in it */

static int compare_parts(const void *a, const void *b)
{
        const struct part *x = a, *y = b;

        return x->number < y->number ? -1 : x->number > y->number;
}

static void add_part(struct work *work, unsigned number, const char *name)
{
        struct part *part = &work->parts[work->n_parts];
        int n = snprintf(part->file, sizeof(part->file), "%s/%s", work->note->image, name);

        if (n > 0 && (size_t)n < sizeof(part->file)) {
                part->number = number;
                work->n_parts++;
        }
}

static int list_partitions(struct work *work, struct error *err)
{
        char path[PATH_MAX], name[64];
        struct dirent *entry;
        DIR *dir;

        work->parts = calloc(MAX_PARTITIONS + 1, sizeof(*work->parts));
        if (!work->parts)
                return fail(err, ENOMEM, "no memory for a list of partitions");
        snprintf(path, sizeof(path), "%.4000s/partitions", work->note->image);
        dir = opendir(path);
        while (dir && (entry = readdir(dir)) && work->n_parts < MAX_PARTITIONS) {
                if (!isdigit((unsigned char)entry->d_name[0]))
                        continue;
                snprintf(name, sizeof(name), "partitions/%.40s", entry->d_name);
                add_part(work, (unsigned)strtoul(entry->d_name, NULL, 10), name);
        }
        if (dir)
                closedir(dir);
        if (work->n_parts == 0)
                add_part(work, 0, "disk");
        qsort(work->parts, work->n_parts, sizeof(*work->parts), compare_parts);
        return 0;
}

static int keep_one(struct work *work, struct error *err)
{
        unsigned wanted = work->files->partition;
        const char *image = work->files->image;

        if (wanted == 0)
                return 0;
        for (size_t i = 0; i < work->n_parts; i++)
                if (work->parts[i].number == wanted) {
                        work->parts[0] = work->parts[i];
                        work->n_parts = 1;
                        return 0;
                }
        if (work->parts[0].number == 0)
                return fail(err, ENOENT, "'%s' has no partitions", image);
        return fail(err, ENOENT, "'%s' has no partition %u: its last is %u", image, wanted,
                work->parts[work->n_parts - 1].number);
}

static int probe_parts(struct work *work, struct error *err)
{
        int r = list_partitions(work, err);

        if (r == 0)
                r = keep_one(work, err);
        for (size_t i = 0; r == 0 && i < work->n_parts; i++) {
                struct part *part = &work->parts[i];
                struct error why = ERROR_INIT;

                if (guest_fs_probe(part->file, &part->fs, &why) < 0)
                        snprintf(part->why, sizeof(part->why), "%.900s", why.message);
                else if (part->fs.content != GUEST_FILE_SYSTEM)
                        snprintf(part->why, sizeof(part->why), "it is %s",
                                guest_fs_describe(&part->fs));
        }
        return r;
}

/* --- where */

static size_t count_file_systems(const struct work *work)
{
        size_t n = 0;

        for (size_t i = 0; i < work->n_parts; i++)
                n += work->parts[i].fs.content == GUEST_FILE_SYSTEM;
        return n;
}

static int make_folder(struct work *work, const char *path, struct error *err)
{
        int r = note_add(work->note, "folders", json_string(path), err);

        if (r < 0)
                return r;
        if (mkdir(path, 0755) == 0)
                return 0;
        r = fail_os(err, errno, "cannot make the folder '%s'", path);
        if (r == -EEXIST)
                error_set_hint(
                        err, "take an empty folder, or --partition for one file system at it");
        return r;
}

/* One file system stands at the folder itself, several in folders of their numbers. */
static int choose_points(struct work *work, struct error *err)
{
        bool several = count_file_systems(work) > 1;

        for (size_t i = 0; i < work->n_parts; i++) {
                struct part *part = &work->parts[i];
                int r, n;

                if (part->fs.content != GUEST_FILE_SYSTEM)
                        continue;
                n = several ? snprintf(part->point, sizeof(part->point), "%s/%u", work->target,
                                      part->number)
                            : snprintf(part->point, sizeof(part->point), "%s", work->target);
                if (n < 0 || (size_t)n >= sizeof(part->point))
                        return fail(err, ENAMETOOLONG, "the name of a folder in '%s' is too long",
                                work->target);
                r = several && !work->ctl->dry_run ? make_folder(work, part->point, err) : 0;
                if (r < 0)
                        return r;
        }
        return 0;
}

/* A folder that exists in the note and was somebody's before is not ours to remove. */
static int refuse_taken_folders(const struct work *work, struct error *err)
{
        char path[PATH_MAX];

        if (count_file_systems(work) < 2)
                return 0;
        for (size_t i = 0; i < work->n_parts; i++) {
                snprintf(path, sizeof(path), "%.4000s/%u", work->target, work->parts[i].number);
                if (work->parts[i].fs.content != GUEST_FILE_SYSTEM || access(path, F_OK) < 0)
                        continue;
                fail(err, EEXIST, "partition %u would be mounted at '%s', which is there already",
                        work->parts[i].number, path);
                error_set_hint(
                        err, "take an empty folder, or --partition for one file system at it");
                return -EEXIST;
        }
        return 0;
}

/* --- mounting */

static int about_to(void *opaque, const char *source, struct error *err)
{
        struct work *work = opaque;

        return note_add(work->note, "mounts",
                json_pack("{s:s, s:s}", "directory", work->now->point, "source", source), err);
}

/* Not every program puts its file into the table of mounts: the number of the mount tells in any case. */
static int note_number(struct work *work, struct error *err)
{
        json_t *mounts = json_object_get(work->note->what, "mounts");
        json_t *last = json_array_get(mounts, json_array_size(mounts) - 1);
        const struct mount_entry *entry;
        struct mount_table table;
        int r = mount_table_read(&table, err);

        if (r < 0)
                return r;
        entry = mount_table_at(&table, work->now->point);
        if (entry) {
                json_object_set_new(last, "number", json_integer(entry->id));
                json_object_set_new(last, "major", json_integer(entry->major_number));
                json_object_set_new(last, "minor", json_integer(entry->minor_number));
        }
        mount_table_done(&table);
        return note_set(work->note, "mounts", json_incref(mounts), err);
}

static int mount_part(struct work *work, struct part *part, struct error *err)
{
        char what[WHAT_SIZE];
        struct guest_fs_mount mount = {
                .file = part->file,
                .point = part->point,
                .what = what,
                .type = part->fs.type,
                .options = work->options[0] ? work->options : NULL,
                .writable = work->files->writable,
                .exec = work->exec,
                .about_to = about_to,
                .opaque = work,
        };
        int r;

        describe(work, part, what);
        work->now = part;
        r = guest_fs_mount(&mount, err);
        if (r == 0)
                r = note_number(work, err);
        part->mounted = r == 0;
        part->by_kernel = mount.by_kernel;
        return r;
}

/* One that cannot be mounted leaves the others; that none can is a failure, the first one's. */
static int mount_parts(struct work *work, struct error *err)
{
        size_t n = 0;
        int first = 0;

        for (size_t i = 0; i < work->n_parts; i++) {
                struct part *part = &work->parts[i];
                struct error why = ERROR_INIT;
                int r;

                if (part->fs.content != GUEST_FILE_SYSTEM)
                        continue;
                r = mount_part(work, part, &why);
                n += r == 0;
                if (r == 0)
                        continue;
                if (strcmp(part->point, work->target) != 0)
                        rmdir(part->point);
                snprintf(part->why, sizeof(part->why), "%.600s%s%.300s", why.message,
                        why.hint[0] ? "; " : "", why.hint);
                if (first == 0) {
                        first = r;
                        if (err)
                                *err = why;
                }
        }
        if (n > 0) {
                error_clear(err);
                return 0;
        }
        return first;
}

static int fail_nothing(const struct work *work, struct error *err)
{
        const struct part *part = &work->parts[0];
        char what[WHAT_SIZE];

        describe(work, part, what);
        if (work->n_parts == 1)
                fail(err, ENOTSUP, "there is no file system to mount in %.600s: %.300s", what,
                        part->why);
        else
                fail(err, ENOTSUP, "none of the %zu partitions of '%s' has a file system to mount",
                        work->n_parts, work->files->image);
        error_set_hint(
                err, "without --files its partitions are there as files, whatever they hold");
        return -ENOTSUP;
}

/* --- the disk under it */

static int start_disk(struct work *work, struct error *err)
{
        const struct mount_files *files = work->files;
        const struct mount_entry *entry;
        struct mount_table table;
        int r = files->start(work->ctl, work->image, work->note->image, files->writable,
                work->note->report, err);

        if (r == 0)
                r = mount_table_read(&table, err);
        if (r < 0)
                return r;
        entry = mount_table_at(&table, work->note->image);
        r = entry ? note_set_server(work->note, mount_server(entry), err)
                  : fail(err, EIO, "'%s' was mounted, and is not", files->image);
        mount_table_done(&table);
        return r;
}

/* Who uses its files keeps it; with the last of them it ends. */
static int hide_disk(struct work *work, struct error *err)
{
        struct mount_table table;
        int r = mount_table_read(&table, err);

        if (r < 0)
                return r;
        r = mount_remove(&table, work->note->image, true, err);
        mount_table_done(&table);
        if (r == 0)
                rmdir(work->note->image);
        return r;
}

/* --- what is told */

static void tell_left(const struct work *work, const struct part *part)
{
        char what[WHAT_SIZE];

        describe(work, part, what);
        ctl_warn(work->ctl, "%.800s is left out: %.200s", what, part->why);
}

/* It is mounted; in a trial: it would be tried. */
static bool is_shown(const struct work *work, const struct part *part)
{
        return part->mounted || (work->ctl->dry_run && part->fs.content == GUEST_FILE_SYSTEM);
}

static void tell_text(const struct work *work)
{
        for (size_t i = 0; i < work->n_parts; i++) {
                const struct part *part = &work->parts[i];
                _cleanup_free_ char *point = text_safe(part->point);
                _cleanup_free_ char *label = text_safe(part->fs.label);

                if (!is_shown(work, part)) {
                        tell_left(work, part);
                        continue;
                }
                if (work->ctl->quiet)
                        continue;
                printf("%s: ", point);
                if (part->number > 0)
                        printf("partition %u, ", part->number);
                printf("%s%s%s%s%s\n", part->fs.type, label[0] ? " '" : "", label,
                        label[0] ? "'" : "", work->files->writable ? ", writable" : "");
        }
}

static void tell_json(const struct work *work)
{
        json_t *answer = json_object(), *mounts = json_array(), *left = json_array();

        for (size_t i = 0; i < work->n_parts; i++) {
                const struct part *part = &work->parts[i];
                json_t *one = json_object();

                json_object_set_new(one, "partition",
                        part->number > 0 ? json_integer(part->number) : json_null());
                json_object_set_new(
                        one, "type", part->fs.type[0] ? json_text(part->fs.type) : json_null());
                json_object_set_new(
                        one, "label", part->fs.label[0] ? json_text(part->fs.label) : json_null());
                if (is_shown(work, part)) {
                        json_object_set_new(one, "directory", json_text(part->point));
                        json_object_set_new(one, "read-only", json_boolean(!work->files->writable));
                        if (part->mounted)
                                json_object_set_new(one, "kernel", json_boolean(part->by_kernel));
                } else {
                        json_object_set_new(one, "why", json_text(part->why));
                }
                json_array_append_new(is_shown(work, part) ? mounts : left, one);
        }
        json_object_set_new(answer, "filename", json_text(work->files->image));
        json_object_set_new(answer, "directory", json_text(work->target));
        json_object_set_new(answer, "mounts", mounts);
        json_object_set_new(answer, "left-out", left);
        json_print(answer);
}

/* --- putting it together */

static int find_image(struct work *work, struct error *err)
{
        const char *image = work->files->image;
        char here[PATH_MAX];

        if (image[0] == '/')
                work->image = strdup(image);
        else if (!getcwd(here, sizeof(here)))
                return fail_os(err, errno, "cannot find '%s' from here", image);
        else if (asprintf(&work->image, "%s/%s", strcmp(here, "/") == 0 ? "" : here, image) < 0)
                work->image = NULL;
        return work->image ? 0 : fail(err, ENOMEM, "no memory for a path");
}

static int check_target(struct work *work, struct error *err)
{
        struct stat st;
        int r = mount_path(work->files->directory, &work->target, err);

        if (r == 0 && !work->ctl->dry_run)
                r = mount_clear(work->ctl, work->target, err);
        if (r < 0)
                return r;
        if (stat(work->target, &st) < 0)
                return fail_os(err, errno, "cannot mount at '%s'", work->target);
        if (!S_ISDIR(st.st_mode))
                return fail(err, ENOTDIR, "cannot mount at '%s': it is no folder", work->target);
        return 0;
}

static int build(struct work *work, struct error *err)
{
        bool dry = work->ctl->dry_run;
        int r = note_set(work->note, "image", json_text(work->image), err);

        if (r == 0)
                r = start_disk(work, err);
        if (r == 0)
                r = probe_parts(work, err);
        if (r == 0 && count_file_systems(work) == 0)
                r = fail_nothing(work, err);
        if (r == 0)
                r = refuse_taken_folders(work, err);
        if (r == 0)
                r = choose_points(work, err);
        if (r == 0 && !dry)
                r = mount_parts(work, err);
        if (r == 0 && !dry)
                r = hide_disk(work, err);
        return r == 0 && !dry ? note_set(work->note, "done", json_true(), err) : r;
}

/* A trial has a note of its own: what is mounted there now, or died there, is left alone. */
static int make_note(struct work *work, struct error *err)
{
        _cleanup_free_ char *trial = NULL;
        int r;

        if (work->ctl->dry_run &&
                asprintf(&trial, "%s\n--dry-run %d", work->target, (int)getpid()) < 0) {
                trial = NULL;
                return fail(err, ENOMEM, "no memory for a note");
        }
        r = note_make(trial ? trial : work->target, &work->note, err);
        if (r == -EEXIST)
                fail(err, EBUSY, "another vhdctl mounts at '%s' just now", work->target);
        return r;
}

int mount_files(const struct ctl *ctl, const struct mount_files *files, struct error *err)
{
        struct work work = {.ctl = ctl, .files = files};
        struct error ignored = ERROR_INIT;
        int r = guest_fs_options(
                files->options, &work.exec, work.options, sizeof(work.options), err);

        if (r == 0)
                r = find_image(&work, err);
        if (r == 0)
                r = check_target(&work, err);
        if (r == 0)
                r = make_note(&work, err);
        if (r == 0) {
                r = build(&work, err);
                if (r < 0 || ctl->dry_run)
                        mount_undo_note(ctl, TAKE_PTR(work.note), false, &ignored);
        }
        if (r == 0 && ctl->json)
                tell_json(&work);
        else if (r == 0)
                tell_text(&work);
        note_close(work.note);
        free(work.target);
        free(work.image);
        free(work.parts);
        return r;
}
