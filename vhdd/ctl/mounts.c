/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/mounts.h"

#include <ctype.h>
#include <dirent.h>
#include <libgen.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/quote.h"
#include "vhdd/ctl/program.h"

#define SERVER_NAME "vhdfuse"
#define WHO_SIZE    (PATH_MAX + 256)

/* --- the table */

static char *field(char **rest)
{
        char *text = strsep(rest, " ");

        if (text)
                proc_unescape(text);
        return strdup(text ? text : "");
}

/* "36 35 8:17 / /home rw,noatime master:1 - ext4 /dev/sdb1 rw" */
static bool parse(char *line, struct mount_entry *ret)
{
        char *dash = strstr(line, " - "), *behind = dash ? dash + 3 : NULL, *rest = line;
        int n = 0;

        line[strcspn(line, "\n")] = '\0';
        if (!dash ||
                sscanf(line, "%d %d %u:%u %n", &ret->id, &ret->parent, &ret->major_number,
                        &ret->minor_number, &n) != 4 ||
                n == 0)
                return false;
        rest += n;
        strsep(&rest, " "); /* what of the file system it shows */
        ret->point = field(&rest);
        ret->type = field(&behind);
        ret->source = field(&behind);
        return ret->point && ret->type && ret->source;
}

static void entry_done(struct mount_entry *entry)
{
        free(entry->point);
        free(entry->type);
        free(entry->source);
}

void mount_table_done(struct mount_table *table)
{
        for (size_t i = 0; i < table->n; i++)
                entry_done(&table->items[i]);
        free(table->items);
        *table = (struct mount_table){0};
}

int mount_table_read(struct mount_table *ret, struct error *err)
{
        _cleanup_stream_ FILE *file = fopen("/proc/self/mountinfo", "re");
        _cleanup_free_ char *line = NULL;
        size_t room = 0;

        *ret = (struct mount_table){0};
        if (!file)
                return fail_os(err, errno, "cannot see what is mounted: /proc/self/mountinfo");
        while (getline(&line, &room, file) > 0) {
                struct mount_entry *grown = reallocarray(ret->items, ret->n + 1, sizeof(*grown));
                struct mount_entry entry = {0};

                if (!grown) {
                        mount_table_done(ret);
                        return fail(err, ENOMEM, "no memory for what is mounted");
                }
                ret->items = grown;
                if (parse(line, &entry))
                        grown[ret->n++] = entry;
                else
                        entry_done(&entry);
        }
        return 0;
}

const struct mount_entry *mount_table_at(const struct mount_table *table, const char *path)
{
        for (size_t i = table->n; i > 0; i--)
                if (strcmp(table->items[i - 1].point, path) == 0)
                        return &table->items[i - 1];
        return NULL;
}

bool mount_is_ours(const struct mount_entry *entry)
{
        return strcmp(entry->type, "fuse." SERVER_NAME) == 0;
}

int mount_path(const char *folder, char **ret, struct error *err)
{
        _cleanup_free_ char *for_place = strdup(folder), *for_name = strdup(folder);
        char place[PATH_MAX];
        const char *name;

        *ret = realpath(folder, NULL);
        if (*ret)
                return 0;
        if (errno == ENOENT || errno == ENOTDIR)
                return fail_os(err, errno, "cannot find the folder '%s'", folder);
        if (!for_place || !for_name)
                return fail(err, ENOMEM, "no memory for a path");
        name = basename(for_name);
        if (!realpath(dirname(for_place), place))
                return fail_os(err, errno, "cannot find the folder '%s'", folder);
        if (asprintf(ret, "%s/%s", strcmp(place, "/") == 0 ? "" : place, name) < 0) {
                *ret = NULL;
                return fail(err, ENOMEM, "no memory for a path");
        }
        return 0;
}

/* --- processes */

/* The number behind "NAME:" in /proc/PID/fdinfo/FD; -1: there is none. */
static long fd_number(const char *pid, const char *fd, const char *name)
{
        _cleanup_stream_ FILE *file = NULL;
        char path[128], line[256];
        size_t length = strlen(name);

        snprintf(path, sizeof(path), "/proc/%.20s/fdinfo/%.20s", pid, fd);
        file = fopen(path, "re");
        while (file && fgets(line, sizeof(line), file))
                if (strncmp(line, name, length) == 0 && line[length] == ':')
                        return strtol(line + length + 1, NULL, 10);
        return -1;
}

static bool has_fd(const char *pid, const char *name, long number)
{
        _cleanup_dir_ DIR *dir = NULL;
        struct dirent *entry;
        char path[64];

        snprintf(path, sizeof(path), "/proc/%.20s/fdinfo", pid);
        dir = opendir(path);
        while (dir && (entry = readdir(dir)))
                if (entry->d_name[0] != '.' && fd_number(pid, entry->d_name, name) == number)
                        return true;
        return false;
}

/* A kernel before 6.18 does not say which connection a descriptor of /dev/fuse is: the command line does. */
static bool serves_by_name(const char *pid, const struct mount_entry *entry)
{
        _cleanup_stream_ FILE *file = NULL;
        _cleanup_free_ char *word = NULL;
        char path[64], name[32];
        size_t room = 0;

        if (strcmp(process_name((pid_t)atoi(pid), name, sizeof(name)), SERVER_NAME) != 0)
                return false;
        snprintf(path, sizeof(path), "/proc/%.20s/cmdline", pid);
        file = fopen(path, "re");
        while (file && getdelim(&word, &room, '\0', file) > 0)
                if (strcmp(word, entry->point) == 0)
                        return true;
        return false;
}

pid_t mount_server(const struct mount_entry *entry)
{
        _cleanup_dir_ DIR *proc = opendir("/proc");
        struct dirent *process;

        if (strncmp(entry->type, "fuse", 4) != 0)
                return 0;
        while (proc && (process = readdir(proc))) {
                const char *pid = process->d_name;

                if (isdigit((unsigned char)pid[0]) &&
                        (has_fd(pid, "fuse_connection", (long)entry->minor_number) ||
                                serves_by_name(pid, entry)))
                        return (pid_t)atoi(pid);
        }
        return 0;
}

/* --- who keeps it busy */

static bool is_inside(const char *path, const char *point)
{
        size_t length = strlen(point);

        return strncmp(path, point, length) == 0 && (path[length] == '\0' || path[length] == '/');
}

static bool link_is_inside(const char *pid, const char *name, const char *point)
{
        char path[64], target[PATH_MAX];
        ssize_t n;

        snprintf(path, sizeof(path), "/proc/%.20s/%s", pid, name);
        n = readlink(path, target, sizeof(target) - 1);
        if (n <= 0)
                return false;
        target[n] = '\0';
        return is_inside(target, point);
}

static bool has_mapped(const char *pid, const struct mount_entry *entry)
{
        _cleanup_stream_ FILE *file = NULL;
        _cleanup_free_ char *line = NULL;
        char path[64];
        size_t room = 0;

        snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
        file = fopen(path, "re");
        while (file && getline(&line, &room, file) > 0) {
                unsigned major_number, minor_number;

                if (sscanf(line, "%*s %*s %*s %x:%x", &major_number, &minor_number) == 2 &&
                        major_number == entry->major_number && minor_number == entry->minor_number)
                        return true;
        }
        return false;
}

static bool find_process(const struct mount_entry *entry, char *ret, size_t size)
{
        _cleanup_dir_ DIR *proc = opendir("/proc");
        struct dirent *process;

        while (proc && (process = readdir(proc))) {
                const char *pid = process->d_name;
                char name[64];

                if (!isdigit((unsigned char)pid[0]) || atoi(pid) == getpid())
                        continue;
                if (!has_fd(pid, "mnt_id", entry->id) &&
                        !link_is_inside(pid, "cwd", entry->point) &&
                        !link_is_inside(pid, "root", entry->point) && !has_mapped(pid, entry))
                        continue;
                process_name((pid_t)atoi(pid), name, sizeof(name));
                snprintf(ret, size, "%s (pid %.20s) uses it", name, pid);
                return true;
        }
        return false;
}

static bool find_mount_on(
        const struct mount_table *table, const struct mount_entry *entry, char *ret, size_t size)
{
        for (size_t i = 0; i < table->n; i++)
                if (table->items[i].parent == entry->id) {
                        snprintf(ret, size, "'%s' is mounted in it", table->items[i].point);
                        return true;
                }
        return false;
}

static bool find_loop(const struct mount_entry *entry, char *ret, size_t size)
{
        _cleanup_dir_ DIR *dir = opendir("/sys/block");
        struct dirent *device;

        while (dir && (device = readdir(dir))) {
                _cleanup_stream_ FILE *file = NULL;
                char path[128], backing[PATH_MAX];

                if (strncmp(device->d_name, "loop", 4) != 0)
                        continue;
                snprintf(path, sizeof(path), "/sys/block/%.20s/loop/backing_file", device->d_name);
                file = fopen(path, "re");
                if (!file || !fgets(backing, sizeof(backing), file))
                        continue;
                backing[strcspn(backing, "\n")] = '\0';
                if (is_inside(backing, entry->point)) {
                        snprintf(ret, size, "/dev/%.20s stands on '%s'", device->d_name, backing);
                        return true;
                }
        }
        return false;
}

/* --- how it goes */

static int umount_as_root(const char *path, bool lazy)
{
        return umount2(path, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) < 0 ? -errno : 0;
}

/* Whoever is not root has fusermount3 take FUSE mounts off: it knows whose they are. */
static int umount_as_user(
        const struct mount_table *table, const char *path, bool lazy, struct error *err)
{
        char *const argv[] = {(char *)"fusermount3", (char *)(lazy ? "-uz" : "-u"),
                (char *)(uintptr_t)path, NULL};
        const struct mount_entry *entry = mount_table_at(table, path);
        char who[WHO_SIZE];
        int r;

        if (entry && strncmp(entry->type, "fuse", 4) != 0)
                return fail(err, EPERM, "'%s' is a mount of %s, which only root may take off", path,
                        entry->type);
        r = program_do(argv, err);
        if (r == -ENOENT) {
                fail(err, ENOENT, "'%s' stays mounted: fusermount3 is not installed", path);
                error_set_hint(err, "the package fuse3 has it");
                return -ENOENT;
        }
        /* It says "Device or resource busy" and means it; anything else is told as it said it. */
        if (r < 0 && !lazy && entry &&
                (strstr(err->message, "busy") || find_process(entry, who, sizeof(who))))
                return -EBUSY;
        return r;
}

static int fail_busy(const struct mount_table *table, const char *path, struct error *err)
{
        const struct mount_entry *entry = mount_table_at(table, path);
        char who[WHO_SIZE];

        if (!entry ||
                (!find_mount_on(table, entry, who, sizeof(who)) &&
                        !find_loop(entry, who, sizeof(who)) &&
                        !find_process(entry, who, sizeof(who))))
                snprintf(who, sizeof(who), "somebody who cannot be seen from here uses it");
        fail(err, EBUSY, "'%s' is busy: %s", path, who);
        error_set_hint(err,
                "end what uses it first; --force takes it out of sight now, and it ends with its "
                "last user");
        return -EBUSY;
}

int mount_remove(const struct mount_table *table, const char *path, bool lazy, struct error *err)
{
        int r;

        if (geteuid() != 0) {
                r = umount_as_user(table, path, lazy, err);
                return r == -EBUSY ? fail_busy(table, path, err) : r;
        }
        r = umount_as_root(path, lazy);
        if (r == -EBUSY)
                return fail_busy(table, path, err);
        return r < 0 ? fail_os(err, -r, "cannot unmount '%s'", path) : 0;
}
