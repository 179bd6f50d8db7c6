/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/mount_undo.h"

#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "vhdd/ctl/mounts.h"
#include "vhdd/ctl/program.h"

#define SLOW_MS     5000   /* then it is told what we wait for */
#define END_MS      600000 /* a disk that is flushed to a slow store takes its time */
#define AGAIN_TIMES 100
#define AGAIN_NS    10000000L
#define LAZY_MS     1000 /* in which one that nobody uses any more ends */

/* --- the process that has the image open */

static int open_process(pid_t pid)
{
        return (int)syscall(SYS_pidfd_open, pid, 0);
}

static bool ends_within(int process, int timeout_ms)
{
        struct pollfd fd = {.fd = process, .events = POLLIN};
        int n;

        do
                n = poll(&fd, 1, timeout_ms);
        while (n < 0 && errno == EINTR);
        return n > 0;
}

/* @process: its pidfd, -1 if it has ended. */
static int wait_for_end(const struct ctl *ctl, int process, pid_t pid, const char *target,
        bool lazy, struct error *err)
{
        if (process < 0 || ends_within(process, lazy ? LAZY_MS : SLOW_MS))
                return 0;
        if (lazy) {
                ctl_warn(ctl,
                        "'%s' is out of sight, and its disk stays open (pid %d) until its last user is "
                        "gone",
                        target, (int)pid);
                return 0;
        }
        ctl_warn(ctl, "waiting for pid %d to close the disk of '%s'", (int)pid, target);
        if (ends_within(process, END_MS))
                return 0;
        fail(err, ETIMEDOUT, "'%s' is unmounted, but pid %d still has its disk open", target,
                (int)pid);
        error_set_hint(err, "look what it does before you end it: kill %d", (int)pid);
        return -ETIMEDOUT;
}

/* --- of a note */

/* Is @entry the mount that was noted, and not what somebody mounted there since? */
static bool is_noted(
        const struct mount_note *note, const json_t *mount, const struct mount_entry *entry)
{
        const char *source = json_string_value(json_object_get(mount, "source"));

        if (source && strcmp(entry->source, source) == 0)
                return true;
        if (json_object_get(mount, "number"))
                return json_integer_value(json_object_get(mount, "number")) == entry->id &&
                        json_integer_value(json_object_get(mount, "major")) ==
                        (json_int_t)entry->major_number &&
                        json_integer_value(json_object_get(mount, "minor")) ==
                        (json_int_t)entry->minor_number;
        /* The maker died before it noted the number. */
        return !json_is_true(json_object_get(note->what, "done")) &&
                strncmp(entry->type, "fuse", 4) == 0;
}

static int undo_mount(const struct mount_note *note, const struct mount_table *table,
        const json_t *mount, bool lazy, struct error *err)
{
        const char *point = json_string_value(json_object_get(mount, "directory"));
        const struct mount_entry *entry = point ? mount_table_at(table, point) : NULL;

        return entry && is_noted(note, mount, entry) ? mount_remove(table, point, lazy, err) : 0;
}

static int undo_mounts(const struct mount_note *note, bool lazy, struct error *err)
{
        const json_t *mounts = json_object_get(note->what, "mounts");
        struct mount_table table;
        int r = mount_table_read(&table, err);

        for (size_t i = json_array_size(mounts); r == 0 && i > 0; i--)
                r = undo_mount(note, &table, json_array_get(mounts, i - 1), lazy, err);
        /* Nobody has any business there but the mounts that are gone now. */
        if (r == 0 && mount_table_at(&table, note->image))
                r = mount_remove(&table, note->image, true, err);
        mount_table_done(&table);
        return r;
}

static void remove_folders(const struct mount_note *note)
{
        const json_t *folders = json_object_get(note->what, "folders");

        for (size_t i = json_array_size(folders); i > 0; i--) {
                const char *path = json_string_value(json_array_get(folders, i - 1));

                if (path)
                        rmdir(path);
        }
}

/* A mount whose maker died before it could note who serves it. */
static pid_t find_server(const struct mount_note *note)
{
        const struct mount_entry *entry;
        struct mount_table table;
        pid_t pid = note_server(note);

        if (pid > 0 || mount_table_read(&table, NULL) < 0)
                return pid;
        entry = mount_table_at(&table, note->image);
        pid = entry ? mount_server(entry) : 0;
        mount_table_done(&table);
        return pid;
}

/* A vhdfuse whose starter died can mount just now, behind our look: then its folder cannot be removed. */
static int undo_all(const struct mount_note *note, bool lazy, pid_t *ret_pid, int *ret_process,
        struct error *err)
{
        const struct timespec pause = {.tv_nsec = AGAIN_NS};
        int r = 0;

        *ret_process = -1;
        for (int i = 0; r == 0 && i < AGAIN_TIMES; i++) {
                if (*ret_process < 0) {
                        *ret_pid = find_server(note);
                        *ret_process = *ret_pid > 0 ? open_process(*ret_pid) : -1;
                }
                r = undo_mounts(note, lazy, err);
                if (r == 0 && (rmdir(note->image) == 0 || errno != EBUSY))
                        return 0;
                nanosleep(&pause, NULL);
        }
        return r < 0 ? r : fail(err, EBUSY, "'%s' stays mounted", note->image);
}

int mount_undo_note(const struct ctl *ctl, struct mount_note *note, bool lazy, struct error *err)
{
        const char *text = json_string_value(json_object_get(note->what, "target"));
        _cleanup_free_ char *target = strdup(text ? text : note->folder);
        _cleanup_fd_ int process = -1;
        char report[ERROR_MESSAGE_MAX];
        pid_t pid = 0;
        int r = undo_all(note, lazy, &pid, &process, err);

        if (r == 0 && target)
                r = wait_for_end(ctl, process, pid, target, lazy, err);
        if (r < 0) {
                note_close(note);
                return r;
        }
        note_read_report(note, report, sizeof(report));
        remove_folders(note);
        note_remove(note);
        if (!report[0])
                return 0;
        return fail(err, EIO, "'%s' is unmounted, and its image did not end well: %.800s",
                target ? target : "it", report);
}

/* --- without one */

static int fail_not_ours(const struct mount_entry *entry, const char *target, struct error *err)
{
        if (!entry)
                return fail(err, EINVAL, "nothing is mounted at '%s'", target);
        fail(err, EINVAL, "'%s' is no mount of vhdctl's: %s of '%s' is mounted there", target,
                entry->type, entry->source);
        error_set_hint(err, "umount(8) takes it off");
        return -EINVAL;
}

static int undo_plain(const struct ctl *ctl, const char *target, bool lazy, struct error *err)
{
        const struct mount_entry *entry;
        struct mount_table table;
        pid_t pid;
        int process, r = mount_table_read(&table, err);

        if (r < 0)
                return r;
        entry = mount_table_at(&table, target);
        if (!entry || !mount_is_ours(entry)) {
                r = fail_not_ours(entry, target, err);
                mount_table_done(&table);
                return r;
        }
        pid = mount_server(entry);
        process = pid > 0 ? open_process(pid) : -1;
        r = mount_remove(&table, target, lazy, err);
        mount_table_done(&table);
        if (r == 0)
                r = wait_for_end(ctl, process, pid, target, lazy, err);
        if (process >= 0)
                close(process);
        return r;
}

int mount_undo(const struct ctl *ctl, const char *target, bool lazy, struct error *err)
{
        struct mount_note *note;
        int r = note_find(target, &note, err);

        if (r == -ENOENT)
                return undo_plain(ctl, target, lazy, err);
        if (r < 0)
                return fail_prefix(err, r, "cannot unmount '%s'", target);
        return mount_undo_note(ctl, note, lazy, err);
}

int mount_look(const char *target, struct error *err)
{
        const struct mount_entry *entry;
        struct mount_table table;
        struct mount_note *note;
        int r = note_find(target, &note, err);

        if (r == 0) {
                note_close(note);
                return 0;
        }
        if (r == -ENOENT)
                r = mount_table_read(&table, err);
        if (r < 0)
                return r;
        entry = mount_table_at(&table, target);
        r = entry && mount_is_ours(entry) ? 0 : fail_not_ours(entry, target, err);
        mount_table_done(&table);
        return r;
}

/* --- before another one */

static bool note_is_whole(const struct mount_note *note)
{
        const json_t *mounts = json_object_get(note->what, "mounts");
        struct mount_table table;
        bool there = false;

        if (!json_is_true(json_object_get(note->what, "done")) || note_server(note) == 0 ||
                mount_table_read(&table, NULL) < 0)
                return false;
        for (size_t i = 0; i < json_array_size(mounts); i++) {
                const char *point =
                        json_string_value(json_object_get(json_array_get(mounts, i), "directory"));

                there |= point && mount_table_at(&table, point);
        }
        mount_table_done(&table);
        return there;
}

static int fail_mounted(const char *target, const char *what, struct error *err)
{
        fail(err, EBUSY, "'%s' is taken: %s is mounted there", target, what);
        error_set_hint(err, "vhdctl umount %s", target);
        return -EBUSY;
}

/* One of ours that nobody answers for any more hides the folder. */
static int clear_plain(const char *target, struct error *err)
{
        const struct mount_entry *entry;
        struct mount_table table;
        int r = mount_table_read(&table, err);

        if (r < 0)
                return r;
        entry = mount_table_at(&table, target);
        if (entry && mount_is_ours(entry)) {
                if (access(target, F_OK) < 0 && errno == ENOTCONN)
                        r = mount_remove(&table, target, true, err);
                else
                        r = fail_mounted(target, entry->source, err);
        }
        mount_table_done(&table);
        return r;
}

int mount_clear(const struct ctl *ctl, const char *target, struct error *err)
{
        struct mount_note *note;
        int r = note_find(target, &note, err);

        if (r == -ENOENT)
                return clear_plain(target, err);
        if (r < 0)
                return fail_prefix(err, r, "cannot mount at '%s'", target);
        if (note_is_whole(note)) {
                const char *image = json_string_value(json_object_get(note->what, "image"));

                r = fail_mounted(target, image ? image : "a disk", err);
                note_close(note);
                return r;
        }
        return mount_undo_note(ctl, note, false, err);
}
