/* SPDX-License-Identifier: Apache-2.0 */
/* save.c - memory to a descriptor of the daemon's (a snapshot), or to a file of the vm's own (vm save).
 *
 * To a descriptor: QEMU write-protects the guest's memory, lets the guest run on, and copies a page before
 * it is written (background-snapshot). So what is saved is the instant at which the guest was stopped, and
 * it stands still for milliseconds. Once begun that must come to an end, whatever becomes of the file: see
 * relay.c. Where the kernel does not let us (userfaultfd), the guest stands still until all is written.
 *
 * To the vm's own file, STATE/vmm/ID/saved: the guest is stopped, all is written and synced, QEMU ends. The
 * vm counts as on: its disks belong to that memory, and the daemon asks us before it does anything to
 * them. saved.json beside it names the disks' images, so that memory never meets others.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/internal.h"
#include "vmm-glue/supervisor/memory_image.h"
#include "vmm-glue/supervisor/relay.h"

#define BANDWIDTH   (INT64_C(1) << 34) /* bytes a second: none that matters */
#define COPY_CHUNK  (4u << 20)
#define COPY_CHUNKS 16u /* a step */

enum phase { BEGIN, COPYING, MIGRATING, ENDING };

struct save {
        int fd; /* where it goes */
        bool is_own, is_background, was_running;
        bool is_users;  /* paused by a person, and stays so */
        char *new_path; /* of our own */
        int from;       /* COPYING: of our own, to a snapshot */
        uint64_t bytes;
};

static void save_free(void *data)
{
        struct save *save = data;

        if (save->fd >= 0)
                close(save->fd);
        if (save->from >= 0)
                close(save->from);
        free(save->new_path);
        free(save);
}

/* --- the vm's own --- */

static int own_path(
        const struct supervisor *supervisor, const char *name, char **ret, struct error *err)
{
        if (asprintf(ret, "%s/vmm/%s%s%s", supervisor->options.state_dir, supervisor->id,
                    name ? "/" : "", name ? name : "") < 0)
                return fail(err, ENOMEM, "no memory for a path");
        return 0;
}

int saved_path(const struct supervisor *supervisor, char **ret, struct error *err)
{
        return own_path(supervisor, "saved", ret, err);
}

static int sync_folder(const char *path, struct error *err)
{
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r = 0;

        if (fd < 0 || fsync(fd) < 0)
                r = fail_os(err, errno, "cannot make the folder '%s' durable", path);
        if (fd >= 0)
                close(fd);
        return r;
}

static int make_folders(const struct supervisor *supervisor, struct error *err)
{
        _cleanup_free_ char *all = NULL, *own = NULL;
        int r = own_path(supervisor, NULL, &own, err);

        if (r == 0 && asprintf(&all, "%s/vmm", supervisor->options.state_dir) < 0) {
                all = NULL;
                r = fail(err, ENOMEM, "no memory for a path");
        }
        if (r == 0 && mkdir(all, 0700) < 0 && errno != EEXIST)
                r = fail_os(err, errno, "cannot make the folder '%s'", all);
        if (r == 0)
                r = sync_folder(supervisor->options.state_dir, err);
        if (r == 0 && mkdir(own, 0700) < 0 && errno != EEXIST)
                r = fail_os(err, errno, "cannot make the folder '%s'", own);
        return r == 0 ? sync_folder(all, err) : r;
}

/* The images under the vm's disks, by the disk's id. */
static int images_now(struct supervisor *supervisor, json_t **ret, struct error *err)
{
        json_auto_t *disks = NULL;
        json_t *images, *disk;
        size_t i;
        int r = connection_call(supervisor->connection, "disk.list",
                json_pack("{s:s}", "vm", supervisor->id), &disks, err);

        if (r < 0)
                return r;
        images = json_object();
        json_array_foreach(disks, i, disk)
        {
                json_object_set(images, json_string_value(json_object_get(disk, "id")),
                        json_object_get(disk, "file"));
        }
        *ret = images;
        return 0;
}

static int note_images(struct supervisor *supervisor, struct error *err)
{
        json_auto_t *images = NULL;
        _cleanup_free_ char *path = NULL, *new = NULL, *text = NULL, *folder = NULL;
        _cleanup_fd_ int fd = -1;
        int r = images_now(supervisor, &images, err);

        if (r == 0)
                r = own_path(supervisor, "saved.json", &path, err);
        if (r == 0)
                r = own_path(supervisor, "saved.json.new", &new, err);
        if (r == 0)
                r = own_path(supervisor, NULL, &folder, err);
        if (r < 0)
                return r;
        text = json_dumps(images, JSON_INDENT(1));
        fd = open(new, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (!text || fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) ||
                fdatasync(fd) < 0 || rename(new, path) < 0)
                return fail_os(err, errno ? errno : EIO, "cannot write '%s'", path);
        return sync_folder(folder, err);
}

int saved_check(struct supervisor *supervisor, struct error *err)
{
        json_auto_t *images = NULL, *noted = NULL;
        _cleanup_free_ char *path = NULL;
        const char *id;
        json_t *file;
        int r = images_now(supervisor, &images, err);

        if (r == 0)
                r = own_path(supervisor, "saved.json", &path, err);
        if (r < 0)
                return r;
        noted = json_load_file(path, 0, NULL);
        json_object_foreach(noted, id, file)
        {
                if (json_equal(file, json_object_get(images, id)))
                        continue;
                fail(err, ESTALE,
                        "the vm's memory was saved over '%s', and the disk's image is another one now",
                        json_string_value(file));
                error_set_hint(
                        err, "vhdctl vm stop '%s' gives the saved memory up", supervisor->name);
                return -ESTALE;
        }
        return noted ? 0 : fail(err, ESTALE, "'%s' is not there, or damaged", path);
}

/* A merge or a snapshot changes the images and not what the guest sees. An apply asks us to stop before. */
void saved_event(struct supervisor *supervisor, const char *type)
{
        struct error err = ERROR_INIT;

        if (!supervisor->has_saved ||
                (strcmp(type, "merged") != 0 && strcmp(type, "snapshot-taken") != 0))
                return;
        if (note_images(supervisor, &err) < 0)
                log_error(&err);
}

void saved_drop(struct supervisor *supervisor)
{
        static const char *const names[] = {"saved", "saved.json", "saved.new", "saved.json.new"};
        _cleanup_free_ char *folder = NULL;
        struct error err = ERROR_INIT;

        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
                _cleanup_free_ char *path = NULL;

                if (own_path(supervisor, names[i], &path, NULL) == 0)
                        unlink(path);
        }
        supervisor->has_saved = false;
        if (own_path(supervisor, NULL, &folder, NULL) == 0 && access(folder, F_OK) == 0 &&
                sync_folder(folder, &err) < 0)
                log_error(&err);
}

void saved_look(struct supervisor *supervisor)
{
        _cleanup_free_ char *path = NULL, *new = NULL;

        if (own_path(supervisor, "saved.new", &new, NULL) == 0)
                unlink(new); /* half of one: its guest has ended with its supervisor or goes on */
        supervisor->has_saved = saved_path(supervisor, &path, NULL) == 0 && access(path, F_OK) == 0;
}

/* The file's name, whoever opened it. */
static void name_of(const struct save *save, char ret[PATH_MAX])
{
        char link[64];
        ssize_t n;

        snprintf(link, sizeof(link), "/proc/self/fd/%d", save->fd);
        n = readlink(link, ret, PATH_MAX - 1);
        ret[n > 0 ? n : 0] = '\0';
}

static int hint_room(
        struct supervisor *supervisor, const struct save *save, int r, struct error *err)
{
        if (save->is_own)
                error_set_hint(err, "make room there: it takes as much as the guest uses");
        else
                error_set_hint(err, "make room there, or: vhdctl vm set '%s' --snapshot-dir DIR",
                        supervisor->name);
        return r;
}

/* What the relay could not write. */
static int unwritten(struct supervisor *supervisor, const struct save *save, struct error *err)
{
        int code = -supervisor->relay_result;
        char path[PATH_MAX];

        if (code == RELAY_DIED)
                return fail(err, EIO, "the process that writes the memory was ended");
        name_of(save, path);
        fail_os(err, code, "cannot write '%.400s'", path);
        return code == ENOSPC || code == EDQUOT ? hint_room(supervisor, save, -code, err) : -code;
}

/* --- beginning --- */

static int save_new(struct supervisor *supervisor, struct operation *operation, struct save **ret,
        struct error *err)
{
        struct save *save = calloc(1, sizeof(*save));
        int r = 0;

        if (!save)
                return fail(err, ENOMEM, "no memory to save memory");
        save->fd = save->from = -1;
        operation->data = save;
        operation->free_data = save_free;
        save->is_own = operation->n_fds == 0;
        if (!save->is_own) {
                save->fd = operation->fds[0];
                operation->fds[0] = -1;
        } else {
                r = make_folders(supervisor, err);
                if (r == 0)
                        r = own_path(supervisor, "saved.new", &save->new_path, err);
                if (r < 0)
                        return r;
                save->fd = open(
                        save->new_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
                if (save->fd < 0)
                        return fail_os(err, errno, "cannot make '%s'", save->new_path);
        }
        *ret = save;
        return 0;
}

static int set_capability(struct supervisor *supervisor, bool background, struct error *err)
{
        return qmp_call(supervisor->qmp, "migrate-set-capabilities",
                json_pack("{s:[{s:s, s:b}, {s:s, s:b}]}", "capabilities", "capability", "events",
                        "state", 1, "capability", "background-snapshot", "state", background),
                NULL, err);
}

static bool can_in_background(struct supervisor *supervisor)
{
        struct error why = ERROR_INIT;

        if (userfaultfd_try(&why) == 0 && set_capability(supervisor, true, &why) == 0)
                return true;
        log_info("saves memory while the guest stands still: %s", why.message);
        return false;
}

/* What QEMU is to write to: *ret is -1 if that is the file itself. */
static int choose_end(struct supervisor *supervisor, struct save *save, int *ret, struct error *err)
{
        return save->is_background ? relay_start(supervisor, save->fd, ret, err) : 0;
}

static int begin_migration(struct supervisor *supervisor, struct save *save, struct error *err)
{
        _cleanup_fd_ int end = -1;
        int r = memory_image_write(save->fd, supervisor->config, err);

        if (r < 0)
                return r == -ENOSPC ? hint_room(supervisor, save, r, err) : r;
        save->was_running = machine_is_running(supervisor);
        save->is_users = !save->was_running && supervisor->hold == HOLD_NONE;
        save->is_background = !save->is_own && can_in_background(supervisor);
        /* In the background QEMU lets every guest run, one that was paused as well. */
        supervisor->stop_again = save->is_background && save->is_users;
        if (!save->is_background) {
                r = set_capability(supervisor, false, err);
                if (r == 0 && save->was_running)
                        r = hold_set(supervisor, HOLD_PAUSE, err);
                if (r == 0)
                        r = qmp_call(supervisor->qmp, "stop", NULL, NULL, err);
        }
        if (r == 0)
                r = qmp_call(supervisor->qmp, "migrate-set-parameters",
                        json_pack("{s:I}", "max-bandwidth", (json_int_t)BANDWIDTH), NULL, err);
        if (r == 0)
                r = choose_end(supervisor, save, &end, err);
        if (r == 0)
                r = qmp_call_with(supervisor->qmp, "getfd", json_pack("{s:s}", "fdname", "memory"),
                        end >= 0 ? end : save->fd, QMP_CALL_MS, NULL, err);
        supervisor->migration[0] = '\0';
        supervisor->pause_us = 0;
        if (r == 0)
                r = qmp_call(supervisor->qmp, "migrate", json_pack("{s:s}", "uri", "fd:memory"),
                        NULL, err);
        return r;
}

static int begin(struct supervisor *supervisor, struct operation *operation, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        struct save *save;
        int r = 0;

        if (operation_is_running(supervisor, "save", operation))
                return fail(err, EBUSY, "the vm's memory is being saved already");
        if (!is_process_there(supervisor) && supervisor->has_saved && operation->n_fds > 0) {
                r = save_new(supervisor, operation, &save, err);
                if (r == 0)
                        r = saved_path(supervisor, &path, err);
                if (r < 0)
                        return r;
                save->from = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
                if (save->from < 0)
                        return fail_os(err, errno, "cannot open '%s'", path);
                operation->phase = COPYING;
                return 0;
        }
        r = machine_must(supervisor, err);
        if (r < 0)
                return r;
        if (relay_is_running(supervisor))
                return 0; /* one that was given up has to end first */
        if (!machine_is_running(supervisor) && strcmp(supervisor->status, "paused") != 0)
                return fail(err, EBUSY, "the vm is '%s': its memory cannot be saved now",
                        machine_state(supervisor));
        r = save_new(supervisor, operation, &save, err);
        if (r == 0)
                r = begin_migration(supervisor, save, err);
        if (r == 0)
                operation->phase = MIGRATING;
        return r;
}

/* --- going on --- */

static int copy_some(struct save *save, struct error *err)
{
        for (unsigned i = 0; i < COPY_CHUNKS; i++) {
                ssize_t n = copy_file_range(save->from, NULL, save->fd, NULL, COPY_CHUNK, 0);

                /* Not between every two file systems. */
                if (n < 0 &&
                        (errno == EXDEV || errno == EOPNOTSUPP || errno == ENOSYS ||
                                errno == EINVAL))
                        n = sendfile(save->fd, save->from, NULL, COPY_CHUNK);
                if (n < 0)
                        return fail_os(err, errno, "cannot copy the saved memory");
                if (n == 0)
                        return 1;
                save->bytes += (uint64_t)n;
        }
        return 0;
}

static int failed(struct supervisor *supervisor, struct save *save, struct error *err)
{
        json_auto_t *answer = NULL;
        char path[PATH_MAX];
        const char *why;
        int r;

        if (supervisor->qmp)
                qmp_call(supervisor->qmp, "query-migrate", NULL, &answer, NULL);
        why = json_string_value(json_object_get(answer, "error-desc"));
        name_of(save, path);
        r = fail(err, EIO, "QEMU could not save the memory in '%.400s': %.300s", path,
                why ? why : "the file cannot be written (is the disk full?)");
        return hint_room(supervisor, save, r, err);
}

static uint64_t written(struct supervisor *supervisor)
{
        json_auto_t *answer = NULL;

        qmp_call(supervisor->qmp, "query-migrate", NULL, &answer, NULL);
        return (uint64_t)json_integer_value(
                json_object_get(json_object_get(answer, "ram"), "transferred"));
}

static int keep_own(struct supervisor *supervisor, struct save *save, struct error *err)
{
        _cleanup_free_ char *path = NULL, *folder = NULL;
        int r = saved_path(supervisor, &path, err);

        if (r == 0)
                r = own_path(supervisor, NULL, &folder, err);
        if (r == 0 && fdatasync(save->fd) < 0)
                r = fail_os(err, errno, "cannot make the saved memory durable");
        if (r == 0)
                r = note_images(supervisor, err);
        if (r == 0 && rename(save->new_path, path) < 0)
                r = fail_os(err, errno, "cannot name '%s'", path);
        if (r == 0)
                r = sync_folder(folder, err);
        if (r < 0) {
                saved_drop(supervisor); /* the guest goes on: memory of before must not stay */
                return r;
        }
        supervisor->has_saved = supervisor->kept_saved = true;
        json_decref(supervisor->last_end);
        supervisor->last_end = json_pack("{s:s, s:s}", "how", "saved", "message", path);
        machine_quit(supervisor);
        return 0;
}

/* What has been saved by a QEMU that stood still is "postmigrate", and cannot be saved again until it has
 * run. One that a person paused is paused again at once. */
static int go_on(struct supervisor *supervisor, struct save *save, struct error *err)
{
        int r;

        supervisor->stop_again = false;
        if (save->is_background || supervisor->saw_end || (!save->was_running && !save->is_users))
                return 0;
        r = qmp_call(supervisor->qmp, "cont", NULL, NULL, err);
        if (r == 0 && save->is_users)
                r = qmp_call(supervisor->qmp, "stop", NULL, NULL, err);
        return r;
}

static int answer(struct supervisor *supervisor, struct save *save, json_t **ret)
{
        *ret = json_pack("{s:b, s:I, s:I, s:s}", "background", save->is_background, "bytes",
                (json_int_t)save->bytes, "pause-us", (json_int_t)supervisor->pause_us, "state",
                machine_state(supervisor));
        return 1;
}

static int step_migrating(struct supervisor *supervisor, struct operation *operation,
        struct save *save, json_t **ret, struct error *err)
{
        int r;

        if (!is_process_there(supervisor) || !supervisor->qmp)
                return fail(err, EPIPE, "QEMU ended while it saved the memory");
        if (strcmp(supervisor->migration, "failed") == 0 ||
                strcmp(supervisor->migration, "cancelled") == 0)
                return failed(supervisor, save, err);
        if (strcmp(supervisor->migration, "completed") != 0 || relay_is_running(supervisor))
                return 0;
        if (save->is_background && supervisor->relay_result < 0)
                return unwritten(supervisor, save, err);
        save->bytes = written(supervisor);
        if (save->is_own) {
                r = keep_own(supervisor, save, err);
                operation->phase = ENDING;
                return r;
        }
        r = go_on(supervisor, save, err);
        if (r < 0)
                return r;
        if (save->is_background)
                set_capability(supervisor, false, NULL);
        machine_look(supervisor);
        return answer(supervisor, save, ret);
}

int step_save(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        struct save *save = operation->data;
        int r;

        switch ((enum phase)operation->phase) {
        case BEGIN: return begin(supervisor, operation, err);
        case COPYING: r = copy_some(save, err); return r > 0 ? answer(supervisor, save, ret) : r;
        case MIGRATING: return step_migrating(supervisor, operation, save, ret, err);
        case ENDING: return is_process_there(supervisor) ? 0 : answer(supervisor, save, ret);
        }
        return fail(err, EINVAL, "a save has lost its way");
}

/* Nothing is kept of it, and the guest goes on. */
void undo_save(struct supervisor *supervisor, struct operation *operation)
{
        struct save *save = operation->data;
        struct error err = ERROR_INIT;

        if (!save)
                return;
        if (save->new_path)
                unlink(save->new_path);
        supervisor->stop_again = false;
        if (operation->phase == COPYING || !supervisor->qmp || supervisor->saw_end)
                return;
        if (operation->phase == MIGRATING && !save->is_background &&
                strcmp(supervisor->migration, "completed") != 0 &&
                strcmp(supervisor->migration, "failed") != 0)
                qmp_call(supervisor->qmp, "migrate_cancel", NULL, NULL, NULL);
        if (operation->phase == BEGIN)
                qmp_call(supervisor->qmp, "closefd", json_pack("{s:s}", "fdname", "memory"), NULL,
                        NULL);
        set_capability(supervisor, false, NULL);
        machine_look(supervisor);
        if (save->was_running && !machine_is_running(supervisor) &&
                qmp_call(supervisor->qmp, "cont", NULL, NULL, &err) < 0)
                log_error(&err);
        machine_look(supervisor);
}
