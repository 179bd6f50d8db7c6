/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl mount - a disk as a file. vhdfuse does it: this becomes that program. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "vhdd/ctl/ctl.h"
#include "vhdd/describe/values.h"

enum { KEY_WRITABLE = CTL_KEY_FIRST, KEY_FOREGROUND };

struct mount_options {
        bool writable, foreground;
        char *mount_options; /* of all -o, joined; NULL: none */
};

static const struct argp_option options[] = {
        {"writable", KEY_WRITABLE, NULL, 0, "Writes go into the image (else it is read-only)", 0},
        {"foreground", KEY_FOREGROUND, NULL, 0, "Stay in the foreground until it is unmounted", 0},
        {"options", 'o', "OPT[,OPT...]", 0,
                "Options of the mount: allow_other, ...; mount.fuse3(8)", 0},
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

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct mount_options *mount = opaque;

        switch (key) {
        case KEY_WRITABLE: mount->writable = true; return 0;
        case KEY_FOREGROUND: mount->foreground = true; return 0;
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

static void say_it(const struct ctl *ctl, struct words *words)
{
        const struct mount_options *mount = ctl->options;

        add_word(words, "vhdfuse");
        add_word(words, "--for-vhdctl");
        if (mount->writable)
                add_word(words, "--writable");
        if (mount->foreground)
                add_word(words, "--foreground");
        if (mount->mount_options)
                add_value(words, "-o", mount->mount_options);
        for (size_t i = 0; i < ctl->n_image_roots; i++)
                add_value(words, "--image-root", ctl->image_roots[i]);
        for (size_t i = 0; i < ctl->n_parents; i++)
                add_value(words, "--parent", ctl->parents[i]);
        if (ctl->format)
                add_value(words, "--format", ctl->format);
        if (ctl->force)
                add_word(words, "--force");
        if (ctl->quiet)
                add_word(words, "--quiet");
        if (ctl->json)
                add_word(words, "--json");
        if (ctl->dry_run)
                add_word(words, "--dry-run");
        add_word(words, "--");
        add_word(words, ctl->operands[0]);
        add_word(words, ctl->operands[1]);
}

/* Beside vhdctl, as it is installed; else where a build has it. */
static int run_vhdfuse(char *const *argv, struct error *err)
{
        static const char *const places[] = {"vhdfuse", "../vhdfuse/vhdfuse"};
        char own[PATH_MAX], path[PATH_MAX + 32];
        ssize_t n = readlink("/proc/self/exe", own, sizeof(own) - 1);
        char *slash;

        own[n < 0 ? 0 : n] = '\0';
        slash = strrchr(own, '/');
        if (slash)
                slash[1] = '\0';
        for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
                snprintf(path, sizeof(path), "%s%s", own, places[i]);
                execv(path, argv);
                if (errno != ENOENT && errno != ENOTDIR)
                        break;
        }
        fail_os(err, errno, "cannot run vhdfuse, which mounts images");
        error_set_hint(err, "it belongs beside vhdctl, in '%s'", own);
        return -err->code;
}

static int run(struct ctl *ctl, struct error *err)
{
        struct words words = {0};
        int r;

        say_it(ctl, &words);
        r = run_vhdfuse((char *const *)words.words, err);
        free(words.words);
        return r;
}

const struct command command_mount = {
        .name = "mount",
        .operands = "FILE DIR",
        .summary = "show a disk as a file",
        .doc = "Mount FILE at the directory DIR: DIR/disk is the disk that it and its parents are. "
               "Read-only unless --writable. fusermount3 -u DIR ends it, with everything flushed."
               "\v"
               "Examples:\n"
               "  vhdctl mount disk_GUID.avhd /mnt && fdisk -l /mnt/disk\n"
               "  vhdctl mount --writable disk.vhd /mnt\n"
               "  vhdctl mount -o allow_other backup.vhd /mnt",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .options = options,
        .options_size = sizeof(struct mount_options),
        .take_option = take_option,
        .run = run,
};
