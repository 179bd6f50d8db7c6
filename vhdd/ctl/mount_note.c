/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/mount_note.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "vhdd/ctl/program.h"

#define TRIES 100

/* --- where */

/* Ours, and nobody else's to write to: what a note says is carried out. */
static bool is_private(const char *path)
{
        struct stat st;

        return lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
                (st.st_mode & 022) == 0;
}

static bool make_private(const char *path)
{
        return (mkdir(path, 0700) == 0 || errno == EEXIST) && is_private(path);
}

/* The @i-th place where notes may be; false: there are no more. */
static bool place(unsigned i, char *ret, size_t size)
{
        const char *runtime = getenv("XDG_RUNTIME_DIR");

        if (geteuid() == 0) {
                snprintf(ret, size, "/run/vhdd");
                return i == 0;
        }
        if (i == 0 && runtime && runtime[0] == '/')
                snprintf(ret, size, "%s/vhdd", runtime);
        else
                snprintf(ret, size, "/tmp/vhdd-%u", (unsigned)geteuid());
        return i <= 1;
}

/* In a place's own folder: the daemon has files in /run/vhdd. */
static int folder_of(const char *where, const char *target, char *ret, size_t size)
{
        uint64_t hash = XXH3_64bits(target, strlen(target));
        int n = snprintf(ret, size, "%s/mounts/%016llx", where, (unsigned long long)hash);

        return n > 0 && (size_t)n < size ? 0 : -ENAMETOOLONG;
}

static bool make_place(char *ret, size_t size)
{
        char where[PATH_MAX - 64], mounts[PATH_MAX];

        for (unsigned i = 0; place(i, where, sizeof(where)); i++) {
                snprintf(mounts, sizeof(mounts), "%s/mounts", where);
                /* The daemon's folder belongs to its group also: only what is in it is private. */
                if ((mkdir(where, geteuid() == 0 ? 0755 : 0700) == 0 || errno == EEXIST) &&
                        (geteuid() == 0 || is_private(where)) && make_private(mounts)) {
                        snprintf(ret, size, "%s", where);
                        return true;
                }
        }
        return false;
}

/* --- one */

struct mount_note *note_close(struct mount_note *note)
{
        if (!note)
                return NULL;
        if (note->lock >= 0)
                close(note->lock);
        json_decref(note->what);
        free(note->folder);
        free(note->image);
        free(note->report);
        free(note);
        return NULL;
}

void note_remove(struct mount_note *note)
{
        char path[PATH_MAX];
        char *slash;

        rmdir(note->image);
        unlink(note->report);
        snprintf(path, sizeof(path), "%s/note", note->folder);
        unlink(path);
        snprintf(path, sizeof(path), "%s/note.new", note->folder);
        unlink(path);
        rmdir(note->folder);
        /* The folders above, if this was the last. */
        snprintf(path, sizeof(path), "%s", note->folder);
        for (int i = 0; i < 2 && (slash = strrchr(path, '/')); i++) {
                *slash = '\0';
                if (strcmp(path, "/run/vhdd") == 0 || rmdir(path) < 0)
                        break;
        }
        note_close(note);
}

static int note_new(const char *folder, struct mount_note **ret, struct error *err)
{
        _cleanup_(note_closep) struct mount_note *note = calloc(1, sizeof(*note));

        if (!note)
                return fail(err, ENOMEM, "no memory for a note");
        note->lock = -1;
        note->folder = strdup(folder);
        if (!note->folder || asprintf(&note->image, "%s/image", folder) < 0) {
                note->image = NULL;
                return fail(err, ENOMEM, "no memory for a note");
        }
        if (asprintf(&note->report, "%s/report", folder) < 0) {
                note->report = NULL;
                return fail(err, ENOMEM, "no memory for a note");
        }
        note->what = json_object();
        if (!note->what)
                return fail(err, ENOMEM, "no memory for a note");
        *ret = TAKE_PTR(note);
        return 0;
}

/* The lock of the folder that is there now: another may have removed the one that was there.
 *   -ENOENT it is gone   -EBUSY */
static int lock_folder(struct mount_note *note, struct error *err)
{
        struct stat mine, there;

        for (int i = 0; i < TRIES; i++) {
                int fd = open(note->folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

                if (fd < 0)
                        return -errno;
                if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
                        close(fd);
                        return fail(err, EBUSY, "another vhdctl mounts or unmounts there just now");
                }
                if (fstat(fd, &mine) == 0 && lstat(note->folder, &there) == 0 &&
                        mine.st_ino == there.st_ino && mine.st_dev == there.st_dev) {
                        note->lock = fd;
                        return 0;
                }
                close(fd);
        }
        return -ENOENT;
}

static int make_folder(const char *target, char *ret, size_t size, struct error *err)
{
        char where[PATH_MAX - 64];
        int r;

        for (int i = 0; i < TRIES; i++) {
                if (!make_place(where, sizeof(where)))
                        break;
                r = folder_of(where, target, ret, size);
                if (r < 0)
                        return fail_os(err, -r, "cannot make a note of the mount at '%s'", target);
                if (mkdir(ret, 0700) == 0)
                        return 0;
                if (errno == EEXIST)
                        return -EEXIST;
                if (errno != ENOENT) /* the folder above went with somebody's last note */
                        return fail_os(err, errno, "cannot make '%s'", ret);
        }
        fail(err, EACCES, "there is no place for a private folder");
        if (geteuid() != 0)
                error_set_hint(err, "set XDG_RUNTIME_DIR to a folder of yours");
        return -EACCES;
}

int note_make(const char *target, struct mount_note **ret, struct error *err)
{
        _cleanup_(note_closep) struct mount_note *note = NULL;
        char folder[PATH_MAX];
        int r = make_folder(target, folder, sizeof(folder), err);

        if (r == 0)
                r = note_new(folder, &note, err);
        if (r == 0) {
                r = lock_folder(note, err);
                if (r == -ENOENT)
                        fail(err, EBUSY, "another vhdctl mounts or unmounts at '%s'", target);
        }
        if (r == 0 && mkdir(note->image, 0700) < 0)
                r = fail_os(err, errno, "cannot make '%s'", note->image);
        if (r == 0)
                r = note_set(note, "target", json_string(target), err);
        if (r == 0)
                *ret = TAKE_PTR(note);
        return r;
}

/* One that was not whole when its writer died says nothing, and nothing was made then. */
static void read_what(struct mount_note *note)
{
        char path[PATH_MAX];
        json_t *what;

        snprintf(path, sizeof(path), "%s/note", note->folder);
        what = json_load_file(path, 0, NULL);
        if (json_is_object(what)) {
                json_decref(note->what);
                note->what = what;
        } else {
                json_decref(what);
        }
}

int note_find(const char *target, struct mount_note **ret, struct error *err)
{
        _cleanup_(note_closep) struct mount_note *note = NULL;
        char where[PATH_MAX - 64], folder[PATH_MAX];
        int r = -ENOENT;

        for (unsigned i = 0; r == -ENOENT && place(i, where, sizeof(where)); i++) {
                if (folder_of(where, target, folder, sizeof(folder)) < 0 || !is_private(folder))
                        continue;
                note = note_close(note);
                r = note_new(folder, &note, err);
                if (r == 0)
                        r = lock_folder(note, err);
        }
        if (r < 0)
                return r;
        read_what(note);
        *ret = TAKE_PTR(note);
        return 0;
}

void note_read_report(const struct mount_note *note, char *ret, size_t size)
{
        FILE *file = fopen(note->report, "re");

        ret[0] = '\0';
        if (!file)
                return;
        if (fgets(ret, (int)size, file))
                ret[strcspn(ret, "\n")] = '\0';
        fclose(file);
}

static int note_write(const struct mount_note *note, struct error *err)
{
        char path[PATH_MAX], new[PATH_MAX];

        snprintf(path, sizeof(path), "%s/note", note->folder);
        snprintf(new, sizeof(new), "%s/note.new", note->folder);
        if (json_dump_file(note->what, new, JSON_COMPACT) < 0 || rename(new, path) < 0)
                return fail_os(err, errno, "cannot write '%s'", path);
        return 0;
}

int note_set(struct mount_note *note, const char *name, json_t *value, struct error *err)
{
        if (json_object_set_new(note->what, name, value) < 0)
                return fail(err, EINVAL, "cannot note the %s: it is no UTF-8", name);
        return note_write(note, err);
}

int note_add(struct mount_note *note, const char *name, json_t *value, struct error *err)
{
        json_t *list = json_object_get(note->what, name);

        if (!list) {
                list = json_array();
                json_object_set_new(note->what, name, list);
        }
        if (json_array_append_new(list, value) < 0)
                return fail(err, EINVAL, "cannot note one of the %s: it is no UTF-8", name);
        return note_write(note, err);
}

int note_set_server(struct mount_note *note, pid_t pid, struct error *err)
{
        return note_set(note, "server",
                json_pack(
                        "{s:i, s:I}", "pid", (int)pid, "started", (json_int_t)process_started(pid)),
                err);
}

pid_t note_server(const struct mount_note *note)
{
        const json_t *server = json_object_get(note->what, "server");
        pid_t pid = (pid_t)json_integer_value(json_object_get(server, "pid"));
        json_int_t started = json_integer_value(json_object_get(server, "started"));

        return pid > 0 && started > 0 && (json_int_t)process_started(pid) == started ? pid : 0;
}
