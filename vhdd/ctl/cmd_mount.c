/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl mount - a disk as a file, the file systems in it, or the daemon's disks. vhdfuse does it: this becomes
 * that program, or, for file systems, starts it and goes on from there (mount_files.h). */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/mount_files.h"
#include "vhdd/ctl/mounts.h"
#include "vhdd/ctl/program.h"
#include "vhdd/describe/values.h"

enum {
        KEY_WRITABLE = CTL_KEY_FIRST,
        KEY_FOREGROUND,
        KEY_FILES,
        KEY_PARTITION,
        KEY_LIVE,
        KEY_CONTROL,
};

struct mount_options {
        bool writable, foreground, files, live;
        unsigned partition;  /* 0: all */
        const char *control; /* the daemon's socket; NULL: look */
        char *mount_options; /* of all -o, joined; NULL: none */
};

static const struct argp_option options[] = {
        {"writable", KEY_WRITABLE, NULL, 0, "Writes go into the image (else it is read-only)", 0},
        {"foreground", KEY_FOREGROUND, NULL, 0, "Stay in the foreground until it is unmounted", 0},
        {"options", 'o', "OPT[,OPT...]", 0,
                "Options of the mount: allow_other, ...; mount.fuse3(8)", 0},
        {"files", KEY_FILES, NULL, 0, "Mount the file systems inside: their files, not the disk",
                0},
        {"partition", KEY_PARTITION, "N", 0, "With --files: only partition N, at DIR itself", 0},
        {"live", KEY_LIVE, NULL, 0, "Show the disks and snapshots of the daemon's vms", 0},
        {"control", KEY_CONTROL, "PATH", 0,
                "With --live: the daemon's socket (else $VHDD_CONTROL, else where it is)", 0},
        {0},
};

static void add_mount_options(struct mount_options *mount, const char *text)
{
        char *joined;

        if (asprintf(&joined, "%s%s%s", mount->mount_options ?: "", mount->mount_options ? "," : "",
                    text) < 0)
                joined = NULL;
        free(mount->mount_options);
        mount->mount_options = must(joined);
}

static int take_partition(struct mount_options *mount, const char *text, struct error *err)
{
        char *end;
        unsigned long n = strtoul(text, &end, 10);

        if (text[0] < '0' || text[0] > '9' || *end || n < 1 || n > 255)
                return fail(
                        err, EINVAL, "--partition takes a number from 1 to 255, not '%s'", text);
        mount->partition = (unsigned)n;
        return 0;
}

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct mount_options *mount = opaque;

        switch (key) {
        case KEY_WRITABLE: mount->writable = true; return 0;
        case KEY_FOREGROUND: mount->foreground = true; return 0;
        case KEY_FILES: mount->files = true; return 0;
        case KEY_PARTITION: return take_partition(mount, arg, err);
        case KEY_LIVE: mount->live = true; return 0;
        case KEY_CONTROL: mount->control = arg; return 0;
        case 'o': add_mount_options(mount, arg); return 0;
        default: return -EINVAL;
        }
}

/* Words for vhdfuse. */
struct words {
        const char **words;
        size_t n;
};

static void add_word(struct words *words, const char *word)
{
        words->words = must(reallocarray(words->words, words->n + 2, sizeof(*words->words)));
        words->words[words->n++] = word;
        words->words[words->n] = NULL;
}

static void add_value(struct words *words, const char *option, const char *value)
{
        add_word(words, option);
        add_word(words, value);
}

/* How to find and read the image. */
static void say_chain(const struct ctl *ctl, struct words *words)
{
        for (size_t i = 0; i < ctl->n_image_roots; i++)
                add_value(words, "--image-root", ctl->image_roots[i]);
        for (size_t i = 0; i < ctl->n_parents; i++)
                add_value(words, "--parent", ctl->parents[i]);
        if (ctl->format)
                add_value(words, "--format", ctl->format);
        if (ctl->force)
                add_word(words, "--force");
}

/* @directory: absolute, where that can be had: whoever unmounts it finds vhdfuse by it. */
static void say_it(const struct ctl *ctl, const char *directory, struct words *words)
{
        const struct mount_options *mount = ctl->options;

        add_word(words, "vhdfuse");
        add_word(words, "--for-vhdctl");
        if (mount->writable)
                add_word(words, "--writable");
        if (mount->live)
                add_word(words, "--live");
        if (mount->control)
                add_value(words, "--control", mount->control);
        if (mount->foreground)
                add_word(words, "--foreground");
        if (mount->mount_options)
                add_value(words, "-o", mount->mount_options);
        say_chain(ctl, words);
        if (ctl->quiet)
                add_word(words, "--quiet");
        if (ctl->json)
                add_word(words, "--json");
        if (ctl->dry_run)
                add_word(words, "--dry-run");
        add_word(words, "--");
        if (!mount->live)
                add_word(words, ctl->operands[0]);
        add_word(words, directory);
}

/* Beside vhdctl, as it is installed; else where a build has it. */
static int find_vhdfuse(char *ret, size_t size, struct error *err)
{
        static const char *const places[] = {"vhdfuse", "../vhdfuse/vhdfuse"};
        char own[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", own, sizeof(own) - 1);
        char *slash;

        own[n < 0 ? 0 : n] = '\0';
        slash = strrchr(own, '/');
        if (slash)
                slash[1] = '\0';
        for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
                struct stat st;

                snprintf(ret, size, "%s%s", own, places[i]);
                if (stat(ret, &st) == 0 && S_ISREG(st.st_mode))
                        return 0;
        }
        fail(err, ENOENT, "there is no vhdfuse, which mounts images");
        error_set_hint(err, "it belongs beside vhdctl, in '%s'", own);
        return -ENOENT;
}

static int become_vhdfuse(const struct ctl *ctl, struct error *err)
{
        struct words words = {0};
        _cleanup_free_ char *absolute = NULL;
        const char *directory = ctl->operands[ctl->n_operands - 1];
        char path[PATH_MAX + 32];
        int r = find_vhdfuse(path, sizeof(path), err);

        if (r < 0)
                return r;
        if (mount_path(directory, &absolute, NULL) == 0)
                directory = absolute;
        say_it(ctl, directory, &words);
        execv(path, (char *const *)words.words);
        free(words.words);
        return fail_os(err, errno, "cannot run '%s'", path);
}

/* For --files: the disk at a private folder. */
static int start_vhdfuse(const struct ctl *ctl, const char *image, const char *directory,
        bool writable, const char *report, struct error *err)
{
        struct words words = {0};
        char path[PATH_MAX + 32];
        int r = find_vhdfuse(path, sizeof(path), err);

        if (r < 0)
                return r;
        add_word(&words, "vhdfuse");
        add_word(&words, "--for-vhdctl");
        add_word(&words, "--quiet");
        add_word(&words, writable ? "--writable" : "--scratch");
        add_value(&words, "--report", report);
        say_chain(ctl, &words);
        add_word(&words, "--");
        add_word(&words, image);
        add_word(&words, directory);
        r = program_run_ours(path, (char *const *)words.words, err);
        free(words.words);
        return r;
}

static int run_files(const struct ctl *ctl, struct error *err)
{
        const struct mount_options *mount = ctl->options;
        const struct mount_files files = {
                .image = ctl->operands[0],
                .directory = ctl->operands[1],
                .options = mount->mount_options,
                .partition = mount->partition,
                .writable = mount->writable,
                .start = start_vhdfuse,
        };

        if (mount->foreground)
                return ctl_usage(ctl, "--files has nothing in the foreground: umount ends it");
        return mount_files(ctl, &files, err);
}

static int mount_it(const struct ctl *ctl, struct error *err)
{
        const struct mount_options *mount = ctl->options;

        if (mount->live && ctl->n_operands != 1)
                return ctl_usage(
                        ctl, "--live shows the daemon's vms: it takes a directory, and no image");
        if (mount->live && (mount->files || mount->writable))
                return ctl_usage(
                        ctl, "--live shows disks, read-only: without --files and --writable");
        if (!mount->live && ctl->n_operands != 2)
                return ctl_usage(ctl, "one more operand is needed: FILE DIR");
        if (!mount->live && mount->control)
                return ctl_usage(ctl, "--control goes with --live: an image needs no daemon");
        if (mount->partition && !mount->files)
                return ctl_usage(ctl, "--partition goes with --files");
        return mount->files ? run_files(ctl, err) : become_vhdfuse(ctl, err);
}

static int run(struct ctl *ctl, struct error *err)
{
        int r = mount_it(ctl, err);

        free(((struct mount_options *)ctl->options)->mount_options);
        return r;
}

const struct command command_mount = {
        .name = "mount",
        .operands = "FILE DIR\n--live DIR",
        .summary = "show a disk as a file",
        .doc = "Mount FILE at the directory DIR: DIR/disk is the disk that it and its parents are. "
               "With --files the file systems in it are mounted: one at DIR itself, several at "
               "DIR/1, DIR/2, named after their partitions. With --live DIR has the disks and snapshots "
               "of the daemon's vms: VM/DISK/now, VM/DISK/@SNAPSHOT. Read-only unless --writable. "
               "`vhdctl umount DIR' ends it, with everything flushed."
               "\v"
               "Examples:\n"
               "  vhdctl mount disk_GUID.avhd /mnt && fdisk -l /mnt/disk\n"
               "  vhdctl mount --writable disk.vhd /mnt\n"
               "  vhdctl mount --files --partition 2 backup.vhd /mnt\n"
               "  vhdctl mount --live /mnt && ls /mnt/web/*",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 2,
        .options = options,
        .options_size = sizeof(struct mount_options),
        .take_option = take_option,
        .run = run,
};
