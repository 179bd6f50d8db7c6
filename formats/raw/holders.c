/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/raw/holders.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/quote.h"

#define FAMILY_MAX 512 /* a disk and its partitions: the kernel numbers 256 of them */
#define NAME_SIZE  64

/* A device, the disk that it is part of, and its own partitions: using one is using them all. */
struct member {
        dev_t device;
        char name[NAME_SIZE]; /* as under /sys/block: "sdb1" */
        char *path;           /* its folder in /sys */
};
struct family {
        struct member *members;
        size_t n;
};

static void cleanup_family(struct family *family)
{
        for (size_t i = 0; i < family->n; i++)
                free(family->members[i].path);
        free(family->members);
}

static bool host_device_of(const struct holders_root *root, const char *path, dev_t *ret)
{
        struct stat st;

        if (path[0] != '/' || stat(path, &st) < 0 || !S_ISBLK(st.st_mode))
                return false;
        *ret = st.st_rdev;
        return true;
}

const struct holders_root holders_host = {.path = "", .device_of = host_device_of};

/* The first line of a small file without its newline. */
static bool read_line(const char *directory, const char *name, char *ret, size_t size)
{
        _cleanup_stream_ FILE *file = NULL;
        char path[2 * PATH_MAX];

        snprintf(path, sizeof(path), "%s/%s", directory, name);
        file = fopen(path, "re");
        if (!file || !fgets(ret, (int)size, file))
                return false;
        ret[strcspn(ret, "\n")] = '\0';
        return true;
}

static void add_member(struct family *family, const char *path)
{
        struct member *m = &family->members[family->n];
        unsigned major_number, minor_number;
        const char *slash = strrchr(path, '/');
        char text[NAME_SIZE];

        if (family->n == FAMILY_MAX || !slash || !read_line(path, "dev", text, sizeof(text)) ||
                sscanf(text, "%u:%u", &major_number, &minor_number) != 2)
                return;
        m->path = strdup(path);
        if (!m->path)
                return;
        m->device = makedev(major_number, minor_number);
        snprintf(m->name, sizeof(m->name), "%.*s", NAME_SIZE - 1, slash + 1);
        family->n++;
}

static bool is_partition(const char *path)
{
        char number[NAME_SIZE];

        return read_line(path, "partition", number, sizeof(number));
}

static void add_partitions(struct family *family, const char *disk)
{
        _cleanup_dir_ DIR *dir = opendir(disk);
        struct dirent *entry;

        while (dir && (entry = readdir(dir))) {
                char path[PATH_MAX + NAME_MAX + 2];

                if (entry->d_name[0] == '.')
                        continue;
                snprintf(path, sizeof(path), "%s/%s", disk, entry->d_name);
                if (is_partition(path))
                        add_member(family, path);
        }
}

static bool find_family(const struct holders_root *root, dev_t device, struct family *ret)
{
        char link[PATH_MAX], path[PATH_MAX];

        ret->members = calloc(FAMILY_MAX, sizeof(*ret->members));
        if (!ret->members)
                return false;
        snprintf(link, sizeof(link), "%s/sys/dev/block/%u:%u", root->path, major(device),
                minor(device));
        if (!realpath(link, path))
                return false;
        add_member(ret, path);
        if (is_partition(path)) {
                *strrchr(path, '/') = '\0'; /* a disk's folder holds those of its partitions */
                add_member(ret, path);
        } else {
                add_partitions(ret, path);
        }
        return ret->n > 0;
}

static const struct member *member_of(const struct family *family, dev_t device)
{
        for (size_t i = 0; i < family->n; i++)
                if (family->members[i].device == device)
                        return &family->members[i];
        return NULL;
}

/* The device behind "ext4 /dev/sdb1 rw": what stands behind the dash of a line of mountinfo. */
static bool source_device(const struct holders_root *root, char *text, dev_t *ret)
{
        strsep(&text, " "); /* the file system's name */
        if (!text)
                return false;
        text[strcspn(text, " \n")] = '\0';
        proc_unescape(text);
        return root->device_of(root, text, ret);
}

/* "36 35 8:17 / /home rw,noatime master:1 - ext4 /dev/sdb1 rw": the number is the file system's,
 * which for btrfs is none of a device; then the source tells. */
static const struct member *mounted_member(
        const struct holders_root *root, const struct family *family, char *line, char **ret_where)
{
        unsigned major_number, minor_number;
        char *dash = strstr(line, " - ");
        const struct member *m = NULL;
        char *fields[5], *rest = line;
        dev_t device;

        for (int i = 0; i < 5; i++) {
                fields[i] = strsep(&rest, " ");
                if (!rest)
                        return NULL;
        }
        if (sscanf(fields[2], "%u:%u", &major_number, &minor_number) == 2)
                m = member_of(family, makedev(major_number, minor_number));
        if (!m && dash && source_device(root, dash + 3, &device))
                m = member_of(family, device);
        if (!m)
                return NULL;
        proc_unescape(fields[4]);
        *ret_where = fields[4];
        return m;
}

static FILE *open_list(const struct holders_root *root, const char *name)
{
        char path[PATH_MAX];

        snprintf(path, sizeof(path), "%s/proc/%s", root->path, name);
        return fopen(path, "re");
}

static bool find_mount(
        const struct holders_root *root, const struct family *family, char *ret, size_t size)
{
        _cleanup_stream_ FILE *file = open_list(root, "self/mountinfo");
        _cleanup_free_ char *line = NULL;
        size_t room = 0;

        while (file && getline(&line, &room, file) > 0) {
                char *where;
                const struct member *m = mounted_member(root, family, line, &where);

                if (m) {
                        snprintf(ret, size, "%s is mounted at '%s'", m->name, where);
                        return true;
                }
        }
        return false;
}

static bool find_swap(
        const struct holders_root *root, const struct family *family, char *ret, size_t size)
{
        _cleanup_stream_ FILE *file = open_list(root, "swaps");
        _cleanup_free_ char *line = NULL;
        size_t room = 0;

        while (file && getline(&line, &room, file) > 0) {
                const struct member *m;
                dev_t device;

                line[strcspn(line, " \t\n")] = '\0';
                proc_unescape(line);
                if (!root->device_of(root, line, &device))
                        continue;
                m = member_of(family, device);
                if (m) {
                        snprintf(ret, size, "the machine swaps to %s", m->name);
                        return true;
                }
        }
        return false;
}

/* What a device that stands on another is, for people. */
static void describe_holder(const char *path, const char *holder, char *ret, size_t size)
{
        char name[2 * NAME_SIZE];

        if (read_line(path, "dm/name", name, sizeof(name)))
                snprintf(ret, size, "the device-mapper volume '%s'", name);
        else if (read_line(path, "md/level", name, sizeof(name)))
                snprintf(ret, size, "the RAID array %s", holder);
        else
                snprintf(ret, size, "%s", holder);
}

static bool is_stacked(const struct member *m, char *ret, size_t size)
{
        _cleanup_dir_ DIR *dir = NULL;
        char path[PATH_MAX + NAME_SIZE];
        struct dirent *entry;

        snprintf(path, sizeof(path), "%s/holders", m->path);
        dir = opendir(path);
        while (dir && (entry = readdir(dir))) {
                char holder[sizeof(path) + NAME_MAX + 2], who[NAME_MAX + NAME_SIZE];

                if (entry->d_name[0] == '.')
                        continue;
                snprintf(holder, sizeof(holder), "%s/%s", path, entry->d_name);
                describe_holder(holder, entry->d_name, who, sizeof(who));
                snprintf(ret, size, "%s is part of %s", m->name, who);
                return true;
        }
        return false;
}

static bool find_stacked(const struct family *family, char *ret, size_t size)
{
        for (size_t i = 0; i < family->n; i++)
                if (is_stacked(&family->members[i], ret, size))
                        return true;
        return false;
}

/* A loop device claims nothing of what it stands on; only its backing file tells. */
static bool find_loop(
        const struct holders_root *root, const struct family *family, char *ret, size_t size)
{
        _cleanup_dir_ DIR *dir = NULL;
        char block[PATH_MAX], backing[PATH_MAX];
        struct dirent *entry;

        snprintf(block, sizeof(block), "%s/sys/block", root->path);
        dir = opendir(block);
        while (dir && (entry = readdir(dir))) {
                char path[sizeof(block) + NAME_MAX + 2];
                const struct member *m;
                dev_t device;

                snprintf(path, sizeof(path), "%s/%s", block, entry->d_name);
                if (strncmp(entry->d_name, "loop", 4) != 0 ||
                        !read_line(path, "loop/backing_file", backing, sizeof(backing)) ||
                        !root->device_of(root, backing, &device))
                        continue;
                m = member_of(family, device);
                if (m) {
                        snprintf(ret, size, "%s stands under the loop device %s", m->name,
                                entry->d_name);
                        return true;
                }
        }
        return false;
}

bool holders_find(const struct holders_root *root, dev_t device, char *ret, size_t size)
{
        _cleanup_(cleanup_family) struct family family = {0};

        if (!find_family(root, device, &family))
                return false;
        return find_mount(root, &family, ret, size) || find_swap(root, &family, ret, size) ||
                find_stacked(&family, ret, size) || find_loop(root, &family, ret, size);
}

static bool process_has_open(const char *pid, dev_t device)
{
        _cleanup_dir_ DIR *dir = NULL;
        struct dirent *entry;
        char path[NAME_SIZE];

        snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
        dir = opendir(path);
        while (dir && (entry = readdir(dir))) {
                struct stat st;

                if (entry->d_name[0] != '.' && fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 &&
                        S_ISBLK(st.st_mode) && st.st_rdev == device)
                        return true;
        }
        return false;
}

bool holders_find_process(dev_t device, char *ret, size_t size)
{
        _cleanup_dir_ DIR *proc = opendir("/proc");
        struct dirent *entry;

        while (proc && (entry = readdir(proc))) {
                char path[NAME_SIZE], name[NAME_SIZE];

                if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid() ||
                        !process_has_open(entry->d_name, device))
                        continue;
                snprintf(path, sizeof(path), "/proc/%.20s", entry->d_name);
                if (!read_line(path, "comm", name, sizeof(name)))
                        snprintf(name, sizeof(name), "a process");
                snprintf(ret, size, "%s (pid %.20s)", name, entry->d_name);
                return true;
        }
        return false;
}
