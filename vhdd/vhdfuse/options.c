/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/vhdfuse/options.h"

#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vhdd/describe/values.h"

#define EXIT_USAGE 2

enum {
        KEY_WRITABLE = 0x400,
        KEY_SCRATCH,
        KEY_LIVE,
        KEY_CONTROL,
        KEY_IMAGE_ROOT,
        KEY_PARENT,
        KEY_FORMAT,
        KEY_FORCE,
        KEY_QUIET,
        KEY_JSON,
        KEY_DRY_RUN,
        KEY_FOR_VHDCTL,
        KEY_REPORT,
};

static const struct argp_option argp_options[] = {
        {"writable", KEY_WRITABLE, NULL, 0, "Writes go into the image (else it is read-only)", 0},
        {"scratch", KEY_SCRATCH, NULL, 0, "Writes go to a child that is thrown away at the end", 0},
        {"live", KEY_LIVE, NULL, 0, "Show the daemon's vms, their disks and snapshots at DIR", 0},
        {"control", KEY_CONTROL, "PATH", 0, "With --live: the daemon's socket", 0},
        {"foreground", 'f', NULL, 0, "Stay in the foreground until it is unmounted", 0},
        {NULL, 'o', "OPT[,OPT...]", 0,
                "Options of the mount: rw (as --writable), allow_other, ...; mount.fuse3(8)", 0},
        {"image-root", KEY_IMAGE_ROOT, "DIR", 0,
                "Parents may also lie beneath DIR (again for more)", 0},
        {"parent", KEY_PARENT, "FILE", 0,
                "FILE is the parent, wherever it lies (again: its parent, and so on)", 0},
        {"format", KEY_FORMAT, "NAME", 0, "The image is vhd or raw, whatever it looks like", 0},
        {"force", KEY_FORCE, NULL, 0, "Read a damaged image", 0},
        {"quiet", KEY_QUIET, NULL, 0, "No warnings, no closing line", 0},
        {"json", KEY_JSON, NULL, 0, "Answer with JSON on stdout", 0},
        {"dry-run", KEY_DRY_RUN, NULL, 0, "Open the image, look at the directory, mount nothing",
                0},
        {"for-vhdctl", KEY_FOR_VHDCTL, NULL, OPTION_HIDDEN, NULL, 0},
        {"report", KEY_REPORT, "FILE", OPTION_HIDDEN, NULL, 0},
        {0},
};

static void append(const char ***list, size_t *n, const char *text)
{
        *list = must(reallocarray(*list, *n + 1, sizeof(**list)));
        (*list)[(*n)++] = text;
}

/* One of the words behind -o: ours, what fstab has for others, or one for the mount. */
static void take_mount_option(struct options *options, const char *word)
{
        char *joined;

        if (strcmp(word, "rw") == 0) {
                options->writable = true;
        } else if (strcmp(word, "ro") == 0) {
                options->writable = false;
        } else if (word[0] && strcmp(word, "defaults") != 0 && strcmp(word, "_netdev") != 0 &&
                strcmp(word, "auto") != 0 && strcmp(word, "noauto") != 0 &&
                strcmp(word, "nofail") != 0 && strncmp(word, "x-", 2) != 0) {
                if (asprintf(&joined, "%s%s%s", options->mount_options ?: "",
                            options->mount_options ? "," : "", word) < 0)
                        joined = NULL;
                must(joined);
                free(options->mount_options);
                options->mount_options = joined;
        }
}

static void take_mount_options(struct options *options, const char *text)
{
        _cleanup_free_ char *copy = must(strdup(text));
        char *rest = copy, *word;

        while ((word = strsep(&rest, ",")))
                take_mount_option(options, word);
}

/* With --live there is no image, and the one operand is the directory. */
static void check_operands(struct options *options, const struct argp_state *state)
{
        if (options->live && options->directory)
                argp_error(state, "--live shows the daemon's vms and takes no image");
        if (options->live) {
                options->directory = options->file;
                options->file = NULL;
        }
        if (options->live && (options->writable || options->scratch))
                argp_error(state, "--live takes no writes");
        if (options->writable && options->scratch)
                argp_error(state, "--writable or --scratch: which of the two?");
        if (!options->directory)
                argp_error(state,
                        options->file || options->live ? "at which directory?" : "which image?");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
        struct options *options = state->input;

        switch (key) {
        case KEY_WRITABLE: options->writable = true; return 0;
        case KEY_SCRATCH: options->scratch = true; return 0;
        case KEY_LIVE: options->live = true; return 0;
        case KEY_CONTROL: options->control = arg; return 0;
        case 'f': options->foreground = true; return 0;
        case 'o': take_mount_options(options, arg); return 0;
        case KEY_IMAGE_ROOT: append(&options->image_roots, &options->n_image_roots, arg); return 0;
        case KEY_PARENT: append(&options->parents, &options->n_parents, arg); return 0;
        case KEY_FORMAT:
                if (strcmp(arg, "vhd") != 0 && strcmp(arg, "raw") != 0)
                        argp_error(state, "--format takes vhd or raw, not '%s'", arg);
                options->format = arg;
                return 0;
        case KEY_FORCE: options->force = true; return 0;
        case KEY_QUIET: options->quiet = true; return 0;
        case KEY_JSON: options->json = true; return 0;
        case KEY_DRY_RUN: options->dry_run = true; return 0;
        case KEY_REPORT: options->report = arg; return 0;
        case KEY_FOR_VHDCTL: options->program = "vhdctl"; return 0;
        case ARGP_KEY_ARG:
                if (options->directory)
                        argp_error(state, "'%s' is one operand too many", arg);
                *(options->file ? &options->directory : &options->file) = arg;
                return 0;
        case ARGP_KEY_END: check_operands(options, state); return 0;
        default: return ARGP_ERR_UNKNOWN;
        }
}

void options_read(int argc, char **argv, struct options *ret)
{
        static const struct argp argp = {
                .options = argp_options,
                .parser = parse,
                .args_doc = "FILE DIR\n--live DIR",
                .doc = "Show the disk that FILE and its parents are as a file, DIR/disk. `vhdctl mount' "
                       "runs this program; mount(8) does, too, for the type fuse.vhdfuse.",
        };

        argp_program_version = "vhdfuse " VHDD_VERSION;
        argp_err_exit_status = EXIT_USAGE;
        *ret = (struct options){.program = "vhdfuse"};
        argp_parse(&argp, argc, argv, 0, NULL, ret);
}
