/* SPDX-License-Identifier: Apache-2.0 */
/* One thread hears the daemon's events and changes the tree. An event says only where to look: what there is
 * is asked for, of one vm or of all, and compared with what is shown. So one that was missed, or heard twice,
 * does no harm, and coming back after a restart is asking for all.
 */
#include "vhdd/vhdfuse/live.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <syslog.h>

#include "vhdd/control/client.h"
#include "vhdd/describe/values.h"
#include "vhdd/vhdfuse/live_file.h"

#define RETRY_MS   500 /* to a daemon that is away */
#define INFO_NAME  "@info.json"
#define NOW_NAME   "now"
#define EXPORT_MAX 1024u

/* What a vm shows: one file. */
struct live_entry {
        char *disk, *name; /* of the folder, and in it */
        char *key;         /* tells a snapshot from another of the same name */
        char *export_name;
        uint64_t size;
        struct timespec mtime;
        /* shown */
        struct vhdfuse_node *node;
        struct live_file *file; /* the node's */
};

struct live_entries {
        struct live_entry *items;
        size_t n;
};

struct live_vm {
        char *name, *id;
        struct vhdfuse_node *node;
        struct live_entries entries;
        bool seen;
};

struct live {
        /* immutable after new */
        struct vhdfuse_tree *tree;
        char *path; /* of the control socket, NULL: looked for */
        int stop;   /* eventfd */
        pthread_t thread;
        bool is_running;

        struct live_daemon daemon;

        int control_fd; /* guarded by daemon.lock: of control, for live_stop; -1: there is none */

        /* the thread's; before it was started, the main one's */
        struct control *control;
        struct live_vm *vms;
        size_t n_vms;
        struct vhdfuse_node *info;
};

/* --- small things */

static const char *text_of(const json_t *object, const char *key)
{
        const char *text = json_string_value(json_object_get(object, key));

        return text ? text : "";
}

static struct timespec time_of(const json_t *object, const char *key)
{
        struct tm utc = {0};
        struct timespec ret = {0};
        const char *rest = strptime(text_of(object, key), "%Y-%m-%dT%H:%M:%S", &utc);

        if (!rest)
                return ret;
        ret.tv_sec = timegm(&utc);
        if (*rest == '.')
                ret.tv_nsec = (long)(strtod(rest, NULL) * 1e9);
        return ret;
}

static void entry_done(struct live_entry *entry)
{
        free(entry->disk);
        free(entry->name);
        free(entry->key);
        free(entry->export_name);
}

static void entries_done(struct live_entries *entries)
{
        for (size_t i = 0; i < entries->n; i++)
                entry_done(&entries->items[i]);
        free(entries->items);
        *entries = (struct live_entries){0};
}

static int no_memory(struct error *err)
{
        return fail(err, ENOMEM, "no memory for the list of the daemon's disks");
}

/* --- what the daemon has */

static int add_entry(
        struct live_entries *entries, const struct live_entry *entry, struct error *err)
{
        struct live_entry *grown = reallocarray(
                                  entries->items, entries->n + 1, sizeof(*entries->items)),
                          *added;

        if (!grown)
                return no_memory(err);
        entries->items = grown;
        added = &grown[entries->n++];
        *added = *entry;
        added->disk = strdup(entry->disk);
        added->name = strdup(entry->name);
        added->key = strdup(entry->key);
        added->export_name = strdup(entry->export_name);
        return added->disk && added->name && added->key && added->export_name ? 0 : no_memory(err);
}

static int add_disk(
        const struct live_vm *vm, const json_t *disk, struct live_entries *ret, struct error *err)
{
        char export_name[EXPORT_MAX];
        const struct live_entry entry = {
                .disk = (char *)text_of(disk, "name"),
                .name = (char *)NOW_NAME,
                .key = (char *)text_of(disk, "id"),
                .export_name = export_name,
                .size = (uint64_t)json_integer_value(json_object_get(disk, "size")),
        };

        snprintf(export_name, sizeof(export_name), "%s/%s@now", vm->id, entry.key);
        return add_entry(ret, &entry, err);
}

static int add_snapshot(const struct live_vm *vm, const json_t *snapshot, struct live_entries *ret,
        struct error *err)
{
        char export_name[EXPORT_MAX], name[EXPORT_MAX];
        const char *id = text_of(snapshot, "id"), *state = text_of(snapshot, "state");
        const json_t *disk;
        size_t i;
        int r = 0;

        /* One that is being taken is there when it is taken. */
        if (state[0] && strcmp(state, "committed") != 0)
                return 0;
        snprintf(name, sizeof(name), "@%s", text_of(snapshot, "name"));
        json_array_foreach(json_object_get(snapshot, "disks"), i, disk)
        {
                const struct live_entry entry = {
                        .disk = (char *)text_of(disk, "name"),
                        .name = name,
                        .key = (char *)id,
                        .export_name = export_name,
                        .size = (uint64_t)json_integer_value(json_object_get(disk, "size")),
                        .mtime = time_of(snapshot, "created"),
                };

                if (!json_is_string(json_object_get(disk, "file")))
                        continue; /* a pass-through disk that was left out */
                snprintf(export_name, sizeof(export_name), "%s/%s@%s", vm->id, entry.disk, id);
                r = add_entry(ret, &entry, err);
                if (r < 0)
                        break;
        }
        return r;
}

/*   -ENOENT the vm is gone */
static int fetch_vm(
        struct live *live, const struct live_vm *vm, struct live_entries *ret, struct error *err)
{
        _cleanup_json_ json_t *disks = NULL;
        _cleanup_json_ json_t *snapshots = NULL;
        const json_t *item;
        size_t i;
        int r = control_call(
                live->control, "disk.list", json_pack("{s:s}", "vm", vm->id), &disks, err);

        if (r == 0)
                r = control_call(live->control, "snapshot.list", json_pack("{s:s}", "vm", vm->id),
                        &snapshots, err);
        json_array_foreach(disks, i, item)
        {
                if (r == 0)
                        r = add_disk(vm, item, ret, err);
        }
        json_array_foreach(snapshots, i, item)
        {
                if (r == 0)
                        r = add_snapshot(vm, item, ret, err);
        }
        return r;
}

/* --- showing it */

static bool is_same(const struct live_entry *a, const struct live_entry *b)
{
        return strcmp(a->disk, b->disk) == 0 && strcmp(a->name, b->name) == 0 &&
                strcmp(a->key, b->key) == 0;
}

static struct live_entry *find_entry(
        const struct live_entries *entries, const struct live_entry *like)
{
        for (size_t i = 0; i < entries->n; i++)
                if (is_same(&entries->items[i], like))
                        return &entries->items[i];
        return NULL;
}

static bool has_disk(const struct live_entries *entries, const char *disk)
{
        for (size_t i = 0; i < entries->n; i++)
                if (strcmp(entries->items[i].disk, disk) == 0)
                        return true;
        return false;
}

static void hide_gone(struct live *live, struct live_vm *vm, const struct live_entries *want)
{
        for (size_t i = 0; i < vm->entries.n; i++) {
                struct live_entry *entry = &vm->entries.items[i];
                struct vhdfuse_node *folder;

                if (find_entry(want, entry))
                        continue;
                vhdfuse_tree_remove(live->tree, entry->node);
                if (has_disk(want, entry->disk))
                        continue;
                folder = vhdfuse_tree_find(live->tree, vm->node, entry->disk);
                if (folder)
                        vhdfuse_tree_remove(live->tree, folder);
        }
}

static int show_new(struct live *live, struct live_vm *vm, struct live_entry *entry)
{
        struct vhdfuse_node *folder = vhdfuse_tree_find(live->tree, vm->node, entry->disk);
        bool now = strcmp(entry->name, NOW_NAME) == 0;
        int r = 0;

        if (!folder)
                r = vhdfuse_tree_add_directory(live->tree, vm->node, entry->disk, &folder);
        if (r == 0)
                r = live_file_new(&live->daemon, entry->export_name, now, entry->size,
                        &entry->mtime, &entry->file);
        if (r < 0)
                return r;
        r = vhdfuse_tree_add_file(live->tree, folder, entry->name, &live_file_ops, entry->file,
                now ? (unsigned)VHDFUSE_UNCACHED : 0u, &entry->node);
        if (r < 0)
                entry->file = live_file_free(entry->file);
        return r;
}

static void show_again(struct live *live, const struct live_entry *old, struct live_entry *entry)
{
        entry->node = old->node;
        entry->file = old->file;
        if (live_file_set_size(entry->file, entry->size))
                vhdfuse_tree_changed(live->tree, entry->node, 0, 0);
}

/* @want is what the vm shows afterwards, and is emptied. What cannot be shown is left out. */
static void show_vm(struct live *live, struct live_vm *vm, struct live_entries *want)
{
        size_t kept = 0;

        hide_gone(live, vm, want);
        for (size_t i = 0; i < want->n; i++) {
                struct live_entry *entry = &want->items[i];
                const struct live_entry *old = find_entry(&vm->entries, entry);
                int r = 0;

                if (old)
                        show_again(live, old, entry);
                else
                        r = show_new(live, vm, entry);
                if (r == 0) {
                        want->items[kept++] = *entry;
                } else {
                        syslog(LOG_WARNING, "'%s/%s/%s' is not shown: %s", vm->name, entry->disk,
                                entry->name, strerror(-r));
                        entry_done(entry);
                }
        }
        want->n = kept;
        entries_done(&vm->entries);
        vm->entries = *want;
        *want = (struct live_entries){0};
}

static struct live_vm *find_vm(const struct live *live, const char *name_or_id)
{
        for (size_t i = 0; i < live->n_vms; i++)
                if (strcmp(live->vms[i].id, name_or_id) == 0 ||
                        strcmp(live->vms[i].name, name_or_id) == 0)
                        return &live->vms[i];
        return NULL;
}

static void remove_vm(struct live *live, struct live_vm *vm)
{
        size_t at = (size_t)(vm - live->vms);

        vhdfuse_tree_remove(live->tree, vm->node);
        entries_done(&vm->entries);
        free(vm->name);
        free(vm->id);
        live->n_vms--;
        memmove(vm, vm + 1, (live->n_vms - at) * sizeof(*vm));
}

static int add_vm(struct live *live, const char *name, const char *id, struct error *err)
{
        struct live_vm *grown = reallocarray(live->vms, live->n_vms + 1, sizeof(*live->vms)), *vm;
        int r;

        if (!grown)
                return no_memory(err);
        live->vms = grown;
        vm = &grown[live->n_vms];
        *vm = (struct live_vm){.name = strdup(name), .id = strdup(id), .seen = true};
        r = vm->name && vm->id ? vhdfuse_tree_add_directory(
                                         live->tree, vhdfuse_tree_root(live->tree), name, &vm->node)
                               : -ENOMEM;
        if (r < 0) {
                free(vm->name);
                free(vm->id);
                return fail_os(err, -r, "the vm '%s' cannot be shown", name);
        }
        live->n_vms++;
        return 0;
}

static int sync_vm(struct live *live, struct live_vm *vm, struct error *err)
{
        struct live_entries want = {0};
        int r = fetch_vm(live, vm, &want, err);

        if (r == 0)
                show_vm(live, vm, &want);
        entries_done(&want);
        if (r != -ENOENT)
                return r;
        remove_vm(live, vm);
        error_clear(err);
        return 0;
}

/* One that has another name now goes and comes: its open files go on. All that goes is gone before anything
 * comes, which may have its name. */
static void remove_unseen(struct live *live, const json_t *list)
{
        const json_t *item;
        size_t i;

        for (size_t k = 0; k < live->n_vms; k++)
                live->vms[k].seen = false;
        json_array_foreach(list, i, item)
        {
                struct live_vm *vm = find_vm(live, text_of(item, "id"));

                if (vm && strcmp(vm->name, text_of(item, "name")) == 0)
                        vm->seen = true;
        }
        for (size_t k = live->n_vms; k > 0; k--)
                if (!live->vms[k - 1].seen)
                        remove_vm(live, &live->vms[k - 1]);
}

static int sync_all(struct live *live, struct error *err)
{
        _cleanup_json_ json_t *list = NULL;
        const json_t *item;
        size_t i;
        int r = control_call(live->control, "vm.list", NULL, &list, err);

        if (r < 0)
                return r;
        remove_unseen(live, list);
        json_array_foreach(list, i, item)
        {
                const char *id = text_of(item, "id");

                if (r == 0 && !find_vm(live, id))
                        r = add_vm(live, text_of(item, "name"), id, err);
        }
        for (size_t k = live->n_vms; r == 0 && k > 0; k--)
                r = sync_vm(live, &live->vms[k - 1], err);
        return r;
}

/* --- @info.json */

static json_t *list_files(const struct live *live)
{
        json_t *list = json_array();

        for (size_t i = 0; i < live->n_vms; i++)
                for (size_t k = 0; k < live->vms[i].entries.n; k++) {
                        const struct live_vm *vm = &live->vms[i];
                        const struct live_entry *entry = &vm->entries.items[k];
                        bool now = strcmp(entry->name, NOW_NAME) == 0;

                        json_array_append_new(list,
                                json_pack("{s:s, s:s, s:s, s:s*, s:I}", "vm", vm->name, "disk",
                                        entry->disk, "file", entry->name, "snapshot-id",
                                        now ? NULL : entry->key, "size", (json_int_t)entry->size));
                }
        return list;
}

/* A new file each time: who reads the old one reads it to its end. */
static void show_info(struct live *live)
{
        struct vhdfuse_node *root = vhdfuse_tree_root(live->tree);
        _cleanup_json_ json_t *info = NULL;
        _cleanup_free_ char *text = NULL, *line = NULL;
        struct tm utc;
        char since[32];

        pthread_mutex_lock(&live->daemon.lock);
        gmtime_r(&live->daemon.since.tv_sec, &utc);
        strftime(since, sizeof(since), "%Y-%m-%dT%H:%M:%SZ", &utc);
        info = json_pack("{s:{s:b, s:s, s:o*, s:s*, s:o*, s:s*}, s:o}", "daemon", "connected",
                live->daemon.is_there, "since", since, "control",
                live->path ? json_text(live->path) : NULL, "nbd", live->daemon.uri, "error",
                live->daemon.why[0] ? json_text(live->daemon.why) : NULL, "hint",
                live->daemon.is_there
                        ? NULL
                        : "the daemon is away: reads fail with EIO until it is back; vhdctl status",
                "files", list_files(live));
        pthread_mutex_unlock(&live->daemon.lock);
        text = info ? json_dumps(info, JSON_INDENT(2)) : NULL;
        if (!text || asprintf(&line, "%s\n", text) < 0) {
                line = NULL;
                return;
        }
        if (live->info)
                vhdfuse_tree_remove(live->tree, live->info);
        if (vhdfuse_tree_add_text(live->tree, root, INFO_NAME, line, &live->info) < 0)
                live->info = NULL;
}

/* --- the daemon comes and goes */

static void set_daemon(struct live *live, bool is_there, char *uri)
{
        struct live_daemon *daemon = &live->daemon;

        pthread_mutex_lock(&daemon->lock);
        if (daemon->is_there != is_there || daemon->since.tv_sec == 0)
                clock_gettime(CLOCK_REALTIME, &daemon->since);
        daemon->is_there = is_there;
        if (uri) {
                free(daemon->uri);
                daemon->uri = uri;
        }
        pthread_mutex_unlock(&daemon->lock);
}

/* A unix socket before anything that goes over a network. */
static char *choose_uri(const json_t *status)
{
        const json_t *list = json_object_get(status, "nbd"), *item;
        const char *best = NULL;
        size_t i;

        json_array_foreach((json_t *)list, i, item)
        {
                const char *uri = json_string_value(item);

                if (uri && (!best || (!strstr(best, "+unix:") && strstr(uri, "+unix:"))))
                        best = uri;
        }
        return best ? strdup(best) : NULL;
}

static int subscribe(struct live *live, struct error *err)
{
        _cleanup_json_ json_t *answer = NULL;
        json_t *params = json_pack("{s:[s,s,s,s,s,s,s,s,s,s,s]}", "types", "vm-created",
                "vm-changed", "vm-removed", "vm-imported", "disk-attached", "disk-detached",
                "snapshot-taken", "snapshot-renamed", "snapshot-applied", "snapshot-undone",
                "snapshot-deleted");

        return control_call(live->control, "events.subscribe", params, &answer, err);
}

/* live_stop() ends a request that a daemon does not answer. */
static void set_control_fd(struct live *live, int fd)
{
        MUTEX_GUARD(&live->daemon.lock);
        live->control_fd = fd;
}

static void drop_control(struct live *live)
{
        set_control_fd(live, -1);
        live->control = control_close(live->control);
}

/* The events first: what changes while we ask is told. */
static int connect_daemon(struct live *live, struct error *err)
{
        _cleanup_json_ json_t *status = NULL;
        int r = control_connect(live->path, &live->control, err);

        if (r == 0) {
                set_control_fd(live, control_fd(live->control));
                r = subscribe(live, err);
        }
        if (r == 0)
                r = control_call(live->control, "status", NULL, &status, err);
        if (r == 0) {
                set_daemon(live, true, choose_uri(status));
                r = sync_all(live, err);
        }
        if (r < 0) {
                drop_control(live);
                return r;
        }
        show_info(live);
        return 0;
}

static void lose_daemon(struct live *live, const struct error *err)
{
        drop_control(live);
        syslog(LOG_WARNING, "%s; files cannot be read until it is back", err->message);
        set_daemon(live, false, NULL);
        show_info(live);
}

/* True: the end. */
static bool wait_for_stop(struct live *live, int timeout_ms)
{
        struct pollfd fds[3] = {
                {.fd = live->stop, .events = POLLIN},
                {.fd = live->daemon.changed, .events = POLLIN},
                {.fd = live->control ? control_fd(live->control) : -1, .events = POLLIN},
        };
        eventfd_t times;

        while (poll(fds, 3, timeout_ms) < 0 && errno == EINTR)
                ;
        if (fds[1].revents && eventfd_read(live->daemon.changed, &times) == 0)
                show_info(live);
        return fds[0].revents != 0;
}

/* What has come, without waiting. *ret_vm: the one that it is about, NULL for several: then all. */
static int take_events(struct live *live, bool *ret_any, char **ret_vm, struct error *err)
{
        bool all = false;
        char *vm = NULL;
        int r;

        *ret_any = false;
        for (;;) {
                _cleanup_json_ json_t *message = NULL;
                const json_t *event;
                const char *type, *name;

                r = control_next(live->control, 0, &message, NULL, NULL, err);
                if (r < 0)
                        break;
                event = json_object_get(message, "params");
                type = text_of(event, "type");
                name = text_of(event, "vm");
                *ret_any = true;
                /* Of these the list of vms tells. */
                all |= strncmp(type, "vm-", 3) == 0 || !name[0] || (vm && strcmp(vm, name) != 0);
                if (!vm)
                        vm = strdup(name);
        }
        if (all) {
                free(vm);
                vm = NULL;
        }
        *ret_vm = vm;
        if (r != -ETIMEDOUT)
                return r;
        error_clear(err);
        return 0;
}

/* Until the connection ends (-errno) or we do (0). */
static int follow(struct live *live, struct error *err)
{
        while (!wait_for_stop(live, -1)) {
                _cleanup_free_ char *name = NULL;
                struct live_vm *vm;
                bool any;
                int r;

                if (wait_for_stop(live, 0))
                        break;
                r = take_events(live, &any, &name, err);
                while (r == 0 && any) {
                        vm = name ? find_vm(live, name) : NULL;
                        r = vm ? sync_vm(live, vm, err) : sync_all(live, err);
                        free(name);
                        name = NULL;
                        /* Those that came while answers were awaited are with us, not in the socket. */
                        if (r == 0)
                                show_info(live);
                        if (r == 0)
                                r = take_events(live, &any, &name, err);
                }
                if (r < 0)
                        return r;
        }
        return 0;
}

static void *run(void *opaque)
{
        struct live *live = opaque;
        struct error err = ERROR_INIT;

        for (;;) {
                int r = live->control ? follow(live, &err) : connect_daemon(live, &err);

                if (wait_for_stop(live, r < 0 && !live->control ? RETRY_MS : 0))
                        return NULL;
                if (r < 0 && live->control)
                        lose_daemon(live, &err);
                else if (r == 0)
                        syslog(LOG_INFO, "the daemon is back");
        }
}

/* --- from new to free */

int live_new(struct vhdfuse_tree *tree, const char *control, struct live **ret, struct error *err)
{
        _cleanup_(live_freep) struct live *live = calloc(1, sizeof(*live));
        int r;

        if (!live)
                return no_memory(err);
        live->tree = tree;
        live->control_fd = -1;
        live->stop = eventfd(0, EFD_CLOEXEC);
        live->daemon.changed = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        pthread_mutex_init(&live->daemon.lock, NULL);
        live->path = control ? strdup(control) : NULL;
        if (live->stop < 0 || live->daemon.changed < 0 || (control && !live->path))
                return no_memory(err);
        r = connect_daemon(live, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(live);
        return 0;
}

int live_start(struct live *live, struct error *err)
{
        int r = pthread_create(&live->thread, NULL, run, live);

        if (r > 0)
                return fail_os(err, r, "cannot follow the daemon");
        live->is_running = true;
        return 0;
}

void live_stop(struct live *live)
{
        if (!live->is_running)
                return;
        eventfd_write(live->stop, 1);
        pthread_mutex_lock(&live->daemon.lock);
        if (live->control_fd >= 0)
                shutdown(live->control_fd, SHUT_RDWR);
        pthread_mutex_unlock(&live->daemon.lock);
        pthread_join(live->thread, NULL);
        live->is_running = false;
}

struct live *live_free(struct live *live)
{
        if (!live)
                return NULL;
        live_stop(live);
        control_close(live->control);
        for (size_t i = 0; i < live->n_vms; i++) {
                entries_done(&live->vms[i].entries);
                free(live->vms[i].name);
                free(live->vms[i].id);
        }
        free(live->vms);
        if (live->stop >= 0)
                close(live->stop);
        if (live->daemon.changed >= 0)
                close(live->daemon.changed);
        pthread_mutex_destroy(&live->daemon.lock);
        free(live->daemon.uri);
        free(live->path);
        free(live);
        return NULL;
}
