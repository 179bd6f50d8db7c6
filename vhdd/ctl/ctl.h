/* SPDX-License-Identifier: Apache-2.0 */
/* ctl.h - what a verb of vhdctl is made of, and what it gets from the frame.
 *
 * A verb is one file cmd_NAME.c with one `const struct command command_NAME`, and one line in the
 * table of main.c; the daemon's verbs, many of which differ in a few words only, stand together by what
 * they are about (cmd_vm.c has `vm create` to `vm export`). The frame reads the command line (options stand before or after operands, `--`
 * ends them), gives --help and --version, prints failures, and turns results into exit codes.
 *
 * Units      bytes.
 * Ownership  operands and option arguments live as long as the process.
 * Errors     a verb answers CTL_DONE, CTL_NO, what ctl_usage() gave, or -errno with err filled:
 *            the frame prints that once and ends with 3 (with 2 if the daemon said -EINVAL).
 * Threads    the main thread only, unless a function says otherwise.
 */
#pragma once

#include <argp.h>
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* Exit codes: part of the command line's contract. */
enum ctl_result {
        CTL_DONE = 0,   /* yes, or done */
        CTL_NO = 1,     /* the answer is no: images differ, damage remains */
        CTL_USAGE = 2,  /* wrong usage */
        CTL_FAILED = 3, /* it failed; what and why went to stderr */
};

enum ctl_progress { CTL_PROGRESS_AUTO, CTL_PROGRESS_BAR, CTL_PROGRESS_JSON, CTL_PROGRESS_NONE };

struct ctl {
        /* immutable while a verb runs */
        const struct command *command;
        bool json, dry_run, force, quiet;
        enum ctl_progress progress;
        char **operands; /* NULL behind the last */
        size_t n_operands;
        void *options; /* the verb's own, command->options_size bytes, zeros where not given */
        /* of the daemon's verbs */
        const char *control; /* its socket; NULL: look */
        json_t *params;      /* what the options said, for the request */
        /* of the verbs that open chains (COMMAND_CHAIN) */
        const char *format; /* NULL: look */
        const char *const *image_roots;
        size_t n_image_roots;
        const char *const *roots; /* image_roots, and the directories of all operands */
        size_t n_roots;
        const char *const *parents;
        size_t n_parents;
};

enum command_flags {
        COMMAND_CHAIN = 1u << 0, /* opens chains: takes --image-root, --parent, --format */
};

#define COMMAND_ANY_NUMBER SIZE_MAX

struct daemon_verb; /* vhdd/ctl/daemon.h */

struct command {
        const char *name;     /* "info", "vm create" */
        const char *operands; /* for the usage line: "FILE --size SIZE"; several parted by \n */
        const char *summary;  /* for the list of verbs: a few words, no full stop */
        const char *doc;      /* what it does, then examples; lines of at most 79 columns */
        unsigned flags;
        size_t n_operands_min, n_operands_max;
        const struct argp_option *options; /* the verb's own, ended by {0}; NULL: none. Keys without
                                            * a letter begin at CTL_KEY_FIRST */
        size_t options_size;               /* of the struct that take_option fills */
        /* Optional (options NULL): one of the verb's own options. -EINVAL with a sentence in err
         * is wrong usage. */
        int (*take_option)(void *options, int key, const char *arg, struct error *err);
        int (*run)(struct ctl *ctl, struct error *err);
        const struct daemon_verb *daemon; /* NULL: needs no daemon */
};

#define CTL_KEY_FIRST 0x400

/* Wrong usage that the frame cannot see by itself: prints the sentence and where help is. */
int ctl_usage(const struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A failure of one of several operands, when the verb goes on with the next: the sentence goes to
 * stderr as the frame would print it. With --json the verb puts error_to_json() in its answer. */
void ctl_print_error(const struct ctl *ctl, const struct error *err);

/* "vhdctl: warning: ..." on stderr; dropped with --quiet. The second has the form of the callback
 * in struct chain_options; opaque is the struct ctl. */
void ctl_warn(const struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));
void ctl_warn_chain(void *opaque, const char *sentence);
