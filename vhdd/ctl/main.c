/* SPDX-License-Identifier: Apache-2.0 */
/* main.c - the frame of vhdctl: finds the verb, reads its command line, runs it, says how it ended. */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/quote.h"
#include "vhdd/ctl/ctl.h"
#include "vhdd/ctl/daemon.h"
#include "vhdd/ctl/output.h"

/* The verbs, in the order in which --help lists them. */
/* clang-format off */
#define COMMANDS(X)  \
        X(create)    \
        X(tree)      \
        X(info)      \
        X(map)       \
        X(check)     \
        X(seal)      \
        X(relink)    \
        X(resize)    \
        X(compact)   \
        X(convert)   \
        X(merge)     \
        X(compare)   \
        X(hash)      \
        X(serve)     \
        X(mount)     \
        X(umount)

#define DAEMON_COMMANDS(X)    \
        X(vm_create)          \
        X(vm_set)             \
        X(vm_list)            \
        X(vm_show)            \
        X(vm_remove)          \
        X(vm_start)           \
        X(vm_stop)            \
        X(vm_shutdown)        \
        X(vm_reset)           \
        X(vm_pause)           \
        X(vm_resume)          \
        X(vm_save)            \
        X(vm_console)         \
        X(vm_doctor)          \
        X(vm_network)         \
        X(vm_import)          \
        X(vm_export)          \
        X(disk_attach)        \
        X(disk_detach)        \
        X(disk_compact)       \
        X(disk_resize)        \
        X(disk_list)          \
        X(disk_show)          \
        X(disk_uri)           \
        X(snippet)            \
        X(snapshot_take)      \
        X(snapshot_memory)    \
        X(snapshot_list)      \
        X(snapshot_tree)      \
        X(snapshot_show)      \
        X(snapshot_rename)    \
        X(snapshot_apply)     \
        X(snapshot_revert)    \
        X(snapshot_undo)      \
        X(snapshot_delete)    \
        X(snapshot_prune)     \
        X(snapshot_diff)      \
        X(snapshot_export)    \
        X(switch_create)      \
        X(switch_set)         \
        X(switch_list)        \
        X(switch_show)        \
        X(switch_remove)      \
        X(job_list)           \
        X(job_show)           \
        X(job_wait)           \
        X(job_pause)          \
        X(job_resume)         \
        X(job_cancel)         \
        X(job_limit)          \
        X(memory)             \
        X(status)             \
        X(events)             \
        X(metrics)            \
        X(doctor)             \
        X(restart)            \
        X(shutdown)
/* clang-format on */
#define DECLARE(name) extern const struct command command_##name;
COMMANDS(DECLARE)
DAEMON_COMMANDS(DECLARE)
#define ADDRESS(name) &command_##name,
static const struct command *const commands[] = {COMMANDS(ADDRESS) DAEMON_COMMANDS(ADDRESS) NULL};

enum common_key {
        KEY_JSON = 0x200,
        KEY_PROGRESS,
        KEY_FORCE,
        KEY_QUIET,
        KEY_IMAGE_ROOT,
        KEY_PARENT,
        KEY_FORMAT,
        KEY_CONTROL,
};

static const struct argp_option common_options[] = {
        {"json", KEY_JSON, NULL, 0, "Answer with JSON on stdout", 0},
        {"dry-run", 'n', NULL, 0, "Say what would be done and change nothing", 0},
        {"progress", KEY_PROGRESS, "HOW", 0,
                "Long work: auto (a bar on a terminal), bar, json (a line a second on stderr), none",
                0},
        {"force", KEY_FORCE, NULL, 0, "Overwrite an existing file; read a damaged image", 0},
        {"quiet", KEY_QUIET, NULL, 0, "No warnings, no progress, no closing line", 0},
        {0},
};

static const struct argp_option chain_options[] = {
        {"image-root", KEY_IMAGE_ROOT, "DIR", 0,
                "Parents may also lie beneath DIR (again for more)", 0},
        {"parent", KEY_PARENT, "FILE", 0,
                "FILE is the parent, wherever it lies (again: its parent, and so on)", 0},
        {"format", KEY_FORMAT, "NAME", 0, "The image is vhd or raw, whatever it looks like", 0},
        {0},
};

/* The same, in words that fit the daemon's verbs. */
static const struct argp_option daemon_options_of_all[] = {
        {"json", KEY_JSON, NULL, 0, "Answer with JSON on stdout", 0},
        {"dry-run", 'n', NULL, 0, "Say what would be done and change nothing", 0},
        {"progress", KEY_PROGRESS, "HOW", 0,
                "Long work: auto (a bar on a terminal), bar, json (a line a second on stderr), none",
                0},
        {"force", KEY_FORCE, NULL, 0, "Although clients have a disk open (where that is refused)",
                0},
        {"quiet", KEY_QUIET, NULL, 0, "Nothing but errors and what was asked for", 0},
        {0},
};

static const struct argp_option daemon_socket_options[] = {
        {"control", KEY_CONTROL, "PATH", 0,
                "The daemon's socket (else $VHDD_CONTROL, else " CONTROL_DEFAULT_PATH
                ", else " CONTROL_STATE_PATH ")",
                0},
        {0},
};

/* Everything that reading one command line fills. */
struct reading {
        struct ctl ctl;
        const char **image_roots, **parents;
        const char **operands;
        const char **roots;
};

static void append(const char ***list, size_t *count, const char *text)
{
        const char **grown = reallocarray(*list, *count + 2, sizeof(**list));

        if (!grown) {
                fprintf(stderr, "vhdctl: no memory for the command line\n");
                exit(CTL_FAILED);
        }
        grown[(*count)++] = text;
        grown[*count] = NULL;
        *list = grown;
}

/* The directory that the user pointed at by naming @operand: it, or the one that it lies in. */
static char *directory_of(const char *operand)
{
        const char *slash = strrchr(operand, '/');
        struct stat st;

        if (stat(operand, &st) == 0 && S_ISDIR(st.st_mode))
                return strdup(operand);
        if (!slash)
                return strdup(".");
        return strndup(operand, slash == operand ? 1 : (size_t)(slash - operand));
}

static void gather_roots(struct reading *reading)
{
        struct ctl *ctl = &reading->ctl;

        for (size_t i = 0; i < ctl->n_image_roots; i++)
                append(&reading->roots, &ctl->n_roots, reading->image_roots[i]);
        for (size_t i = 0; i < ctl->n_operands; i++) {
                char *directory;

                if (strstr(ctl->operands[i], "://"))
                        continue;
                directory = directory_of(ctl->operands[i]);
                if (!directory) {
                        fprintf(stderr, "vhdctl: no memory for the command line\n");
                        exit(CTL_FAILED);
                }
                append(&reading->roots, &ctl->n_roots, directory);
        }
        ctl->roots = reading->roots;
}

static void free_reading(struct reading *reading)
{
        for (size_t i = reading->ctl.n_image_roots; i < reading->ctl.n_roots; i++)
                free((char *)reading->roots[i]);
        free(reading->roots);
        free(reading->image_roots);
        free(reading->parents);
        free(reading->operands);
}

/* Wrong usage found while reading the command line: says so as getopt would, and ends. */
static void reject(const struct argp_state *state, const struct ctl *ctl, const char *format, ...)
        __attribute__((format(printf, 3, 4), noreturn));

static void reject(const struct argp_state *state, const struct ctl *ctl, const char *format, ...)
{
        struct error err = ERROR_INIT;
        va_list ap;

        err.code = EINVAL;
        va_start(ap, format);
        vsnprintf(err.message, sizeof(err.message), format, ap);
        va_end(ap);
        for (int i = 1; i < state->argc && strcmp(state->argv[i], "--") != 0; i++)
                if (ctl->json || strcmp(state->argv[i], "--json") == 0) {
                        json_print(error_to_json(&err));
                        break;
                }
        argp_error(state, "%s", err.message);
        exit(CTL_USAGE);
}

static int progress_from_text(const char *text)
{
        static const char *const names[] = {"auto", "bar", "json", "none"};

        for (int i = 0; i < 4; i++)
                if (strcmp(text, names[i]) == 0)
                        return i;
        return -1;
}

static error_t parse_common(int key, char *arg, struct argp_state *state)
{
        struct reading *reading = state->input;
        struct ctl *ctl = &reading->ctl;
        int progress;

        switch (key) {
        case KEY_JSON: ctl->json = true; return 0;
        case 'n': ctl->dry_run = true; return 0;
        case KEY_FORCE: ctl->force = true; return 0;
        case KEY_QUIET: ctl->quiet = true; return 0;
        case KEY_PROGRESS:
                progress = progress_from_text(arg);
                if (progress < 0)
                        reject(state, ctl, "--progress takes auto, bar, json or none, not '%s'",
                                arg);
                ctl->progress = (enum ctl_progress)progress;
                return 0;
        default: return ARGP_ERR_UNKNOWN;
        }
}

static error_t parse_chain(int key, char *arg, struct argp_state *state)
{
        struct reading *reading = state->input;
        struct ctl *ctl = &reading->ctl;

        switch (key) {
        case KEY_IMAGE_ROOT: append(&reading->image_roots, &ctl->n_image_roots, arg); return 0;
        case KEY_PARENT: append(&reading->parents, &ctl->n_parents, arg); return 0;
        case KEY_FORMAT:
                if (strcmp(arg, "vhd") != 0 && strcmp(arg, "raw") != 0)
                        reject(state, ctl, "--format takes vhd or raw, not '%s'", arg);
                ctl->format = arg;
                return 0;
        default: return ARGP_ERR_UNKNOWN;
        }
}

static error_t parse_daemon(int key, char *arg, struct argp_state *state)
{
        struct reading *reading = state->input;

        if (key != KEY_CONTROL)
                return ARGP_ERR_UNKNOWN;
        reading->ctl.control = arg;
        return 0;
}

static const struct argp common_argp = {.options = common_options, .parser = parse_common};
static const struct argp daemon_common_argp = {
        .options = daemon_options_of_all, .parser = parse_common};
static const struct argp chain_argp = {.options = chain_options, .parser = parse_chain};
static const struct argp daemon_argp = {.options = daemon_socket_options, .parser = parse_daemon};

static void check_operands(struct argp_state *state, const struct ctl *ctl)
{
        const struct command *command = ctl->command;
        size_t n = ctl->n_operands;

        if (n < command->n_operands_min)
                reject(state, ctl, n == 0 ? "which %.*s?" : "one more operand is needed: %.*s",
                        (int)strcspn(command->operands, "\n"), command->operands);
        if (n > command->n_operands_max)
                reject(state, ctl, "'%s' is one operand too many", ctl->operands[n - 1]);
}

static error_t parse_verb(int key, char *arg, struct argp_state *state)
{
        struct reading *reading = state->input;
        struct ctl *ctl = &reading->ctl;
        struct error err = ERROR_INIT;
        int r;

        switch (key) {
        case ARGP_KEY_INIT:
                state->child_inputs[0] = reading;
                if (ctl->command->flags & COMMAND_CHAIN || ctl->command->daemon)
                        state->child_inputs[1] = reading;
                return 0;
        case ARGP_KEY_ARG:
                append(&reading->operands, &ctl->n_operands, arg);
                ctl->operands = (char **)reading->operands;
                return 0;
        case ARGP_KEY_END: check_operands(state, ctl); return 0;
        default: break;
        }
        if (key >= ARGP_KEY_END || (!ctl->command->take_option && !ctl->command->daemon))
                return ARGP_ERR_UNKNOWN; /* of argp's own */
        if (ctl->command->daemon)
                r = daemon_take_option(ctl->command->daemon, ctl->params, key, arg, &err);
        else
                r = ctl->command->take_option(ctl->options, key, arg, &err);
        if (r < 0)
                reject(state, ctl, "%s%s%s", err.message, err.hint[0] ? "; " : "", err.hint);
        return 0;
}

int ctl_usage(const struct ctl *ctl, const char *format, ...)
{
        struct error err = ERROR_INIT;
        va_list ap;

        va_start(ap, format);
        vsnprintf(err.message, sizeof(err.message), format, ap);
        va_end(ap);
        err.code = EINVAL;
        ctl_print_error(ctl, &err);
        fprintf(stderr, "Try `vhdctl %s --help' for more information.\n", ctl->command->name);
        if (ctl->json)
                json_print(error_to_json(&err));
        return CTL_USAGE;
}

void ctl_print_error(const struct ctl *ctl, const struct error *err)
{
        (void)ctl;
        error_print("vhdctl", err);
}

void ctl_warn(const struct ctl *ctl, const char *format, ...)
{
        _cleanup_free_ char *safe = NULL;
        char sentence[ERROR_MESSAGE_MAX];
        va_list ap;

        if (ctl->quiet)
                return;
        va_start(ap, format);
        vsnprintf(sentence, sizeof(sentence), format, ap);
        va_end(ap);
        safe = text_safe(sentence);
        fprintf(stderr, "vhdctl: warning: %s\n", safe);
}

void ctl_warn_chain(void *opaque, const char *sentence)
{
        ctl_warn(opaque, "%s", sentence);
}

static const struct command *command_find(const char *name)
{
        for (size_t i = 0; commands[i]; i++)
                if (strcmp(commands[i]->name, name) == 0)
                        return commands[i];
        return NULL;
}

/* Whether @word is the first of verbs with two words: "vm", "disk", "snapshot", "job". */
static bool is_group(const char *word)
{
        size_t length = strlen(word);

        for (size_t i = 0; commands[i]; i++)
                if (strncmp(commands[i]->name, word, length) == 0 &&
                        commands[i]->name[length] == ' ')
                        return true;
        return false;
}

/* The verb that begins at argv[0], and how many words it has; NULL: there is no such verb. */
static const struct command *command_of_words(int argc, char **argv, int *ret_n)
{
        char name[64];

        *ret_n = 1;
        if (argc < 1)
                return NULL;
        if (argc < 2 || !is_group(argv[0]))
                return command_find(argv[0]);
        snprintf(name, sizeof(name), "%s %s", argv[0], argv[1]);
        *ret_n = 2;
        return command_find(name);
}

/* What was asked for has not been said while it still stands in stdout's buffer. */
static int close_stdout(int status)
{
        if ((fflush(stdout) != 0 || ferror(stdout)) && errno != EPIPE) {
                fprintf(stderr, "vhdctl: cannot write the answer to stdout: %s\n", strerror(errno));
                return CTL_FAILED;
        }
        return status;
}

/* A hint that is only the option that was missing becomes the whole command, ready to be pasted. */
static void complete_hint(struct error *err, int argc, char **argv)
{
        static const char option[] = "--image-root ";
        char missing[ERROR_MESSAGE_MAX], quoted[QUOTE_TEXT_MAX];
        size_t used;

        if (strncmp(err->hint, option, sizeof(option) - 1) != 0)
                return;
        memcpy(missing, err->hint, sizeof(missing));
        used = (size_t)snprintf(err->hint, sizeof(err->hint), "%s %s", argv[0], missing);
        for (int i = 1; i < argc && used < sizeof(err->hint); i++)
                used += (size_t)snprintf(err->hint + used, sizeof(err->hint) - used, " %s",
                        shell_quote(argv[i], quoted, sizeof(quoted)));
        if (used >= sizeof(err->hint)) /* too long to be pasted: the option alone */
                memcpy(err->hint, missing, sizeof(missing));
}

/* A failure as the exit code that it means. What the daemon calls invalid is what the user typed. */
static int finish_failure(struct ctl *ctl, int r, int argc, char **argv, struct error *err)
{
        if (ctl->n_operands == 1 && !ctl->command->daemon)
                error_set_file(err, ctl->operands[0]);
        complete_hint(err, argc, argv);
        ctl_print_error(ctl, err);
        if (ctl->json)
                json_print(error_to_json(err));
        return r == -EINVAL && ctl->command->daemon ? CTL_USAGE : CTL_FAILED;
}

static int run_command(const struct command *command, int argc, char **argv)
{
        struct reading reading = {.ctl = {.command = command}};
        _cleanup_free_ struct argp_option *own =
                command->daemon ? daemon_options(command->daemon) : NULL;
        _cleanup_free_ void *options =
                command->options_size ? calloc(1, command->options_size) : NULL;
        struct argp_child children[3] = {0};
        struct argp argp = {
                .options = command->daemon ? own : command->options,
                .parser = parse_verb,
                .args_doc = command->operands,
                .doc = command->doc,
                .children = children,
        };
        struct error err = ERROR_INIT;
        char title[64];
        int r;

        children[0] = (struct argp_child){
                command->daemon ? &daemon_common_argp : &common_argp, 0, "Common options:", 20};
        if (command->flags & COMMAND_CHAIN)
                children[1] =
                        (struct argp_child){&chain_argp, 0, "Finding the image's parents:", 10};
        else if (command->daemon)
                children[1] = (struct argp_child){&daemon_argp, 0, "Finding the daemon:", 10};

        append(&reading.operands, &reading.ctl.n_operands, NULL);
        reading.ctl.n_operands = 0;
        reading.ctl.operands = (char **)reading.operands;
        reading.ctl.options = options;
        reading.ctl.params = command->daemon ? json_object() : NULL;
        snprintf(title, sizeof(title), "vhdctl %s", command->name);
        argv[0] = title;
        argp_parse(&argp, argc, argv, 0, NULL, &reading);
        reading.ctl.image_roots = reading.image_roots;
        reading.ctl.parents = reading.parents;
        if (!command->daemon)
                gather_roots(&reading);

        r = command->run(&reading.ctl, &err);
        if (r < 0)
                r = finish_failure(&reading.ctl, r, argc, argv, &err);
        daemon_disconnect();
        json_decref(reading.ctl.params);
        free_reading(&reading);
        return close_stdout(r);
}

static void print_verbs(FILE *out, bool daemon, const char *group)
{
        size_t length = group ? strlen(group) : 0;

        for (size_t i = 0; commands[i]; i++) {
                const struct command *command = commands[i];

                if (group ? strncmp(command->name, group, length) == 0 &&
                                        command->name[length] == ' '
                          : (command->daemon != NULL) == daemon)
                        fprintf(out, "  %-*s %s\n", daemon ? 16 : 10, command->name,
                                command->summary);
        }
}

static void print_help(FILE *out)
{
        fprintf(out,
                "Usage: vhdctl VERB [OPTION...] [OPERAND...]\n"
                "Virtual hard disks: VHD chains of Hyper-V and others, raw images, disks.\n\n"
                "Images, without a daemon:\n");
        print_verbs(out, false, NULL);
        fprintf(out, "\nThe daemon's vms, disks and snapshots:\n");
        print_verbs(out, true, NULL);
        fprintf(out,
                "\n"
                "`vhdctl VERB --help' tells each one's options and examples; `man vhdctl-VERB'\n"
                "tells more. `vhdctl --version' prints the version.\n"
                "Exit status: 0 yes or done, 1 the answer is no, 2 wrong usage, 3 it failed.\n");
}

static void print_group_help(const char *group, FILE *out)
{
        fprintf(out, "Usage: vhdctl %s VERB [OPTION...] [OPERAND...]\n\n", group);
        print_verbs(out, true, group);
        fprintf(out, "\n`vhdctl %s VERB --help' tells each one's options and examples.\n", group);
}

/* For the shell's completion, which so never grows stale: the verbs, or a verb's long options, one
 * a line. An option that takes a value ends with '='. */
static void print_options(const struct argp_option *options)
{
        for (; options && (options->name || options->key); options++)
                if (options->name)
                        printf("--%s%s\n", options->name, options->arg ? "=" : "");
}

static void print_all_options(const struct command *command)
{
        _cleanup_free_ struct argp_option *own =
                command->daemon ? daemon_options(command->daemon) : NULL;

        print_options(command->daemon ? own : command->options);
        if (command->flags & COMMAND_CHAIN)
                print_options(chain_options);
        if (command->daemon)
                print_options(daemon_socket_options);
        print_options(common_options);
        puts("--help");
}

/* The first words of all verbs, the second ones of a group, or a verb's options. */
static int print_words(int argc, char **argv)
{
        const char *before = "";
        const struct command *command;
        int n;

        if (argc == 0) {
                for (size_t i = 0; commands[i]; i++) {
                        int length = (int)strcspn(commands[i]->name, " ");

                        if (strncmp(commands[i]->name, before, (size_t)length) != 0 ||
                                before[length] != commands[i]->name[length])
                                printf("%.*s\n", length, commands[i]->name);
                        before = commands[i]->name;
                }
                return close_stdout(CTL_DONE);
        }
        if (argc == 1 && is_group(argv[0])) {
                for (size_t i = 0; commands[i]; i++)
                        if (strncmp(commands[i]->name, argv[0], strlen(argv[0])) == 0 &&
                                commands[i]->name[strlen(argv[0])] == ' ')
                                puts(commands[i]->name + strlen(argv[0]) + 1);
                return close_stdout(CTL_DONE);
        }
        command = command_of_words(argc, argv, &n);
        if (!command)
                return CTL_NO;
        print_all_options(command);
        return close_stdout(CTL_DONE);
}

static int unknown_verb(int argc, char **argv)
{
        bool group = is_group(argv[0]);
        _cleanup_free_ char *safe = text_safe(argv[0]);
        _cleanup_free_ char *second = text_safe(argc > 1 ? argv[1] : "");

        if (group && argc < 2) {
                print_group_help(argv[0], stderr);
                return CTL_USAGE;
        }
        fprintf(stderr, "vhdctl: there is no verb '%s%s%s'\n", safe, group ? " " : "",
                group ? second : "");
        fprintf(stderr, "Try `vhdctl %s%s--help' for the list.\n", group ? argv[0] : "",
                group ? " " : "");
        return CTL_USAGE;
}

static bool is_help(const char *word)
{
        return strcmp(word, "--help") == 0 || strcmp(word, "-?") == 0 || strcmp(word, "-h") == 0;
}

/* `vhdctl help`, `vhdctl help VERB`; @argv begins behind the word. */
static int help(int argc, char **argv)
{
        static char program[] = "vhdctl", option[] = "--help";
        char *help_argv[] = {program, option, NULL};
        const struct command *command;
        int n;

        if (argc < 1) {
                print_help(stdout);
                return close_stdout(CTL_DONE);
        }
        if (argc == 1 && is_group(argv[0])) {
                print_group_help(argv[0], stdout);
                return close_stdout(CTL_DONE);
        }
        command = command_of_words(argc, argv, &n);
        return command ? run_command(command, 2, help_argv) : unknown_verb(argc, argv);
}

int main(int argc, char **argv)
{
        const struct command *command;
        const char *verb = argc > 1 ? argv[1] : NULL;
        int n;

        setlocale(LC_CTYPE, "");
        unsetenv("POSIXLY_CORRECT"); /* options may stand behind operands */
        signal(SIGPIPE, SIG_IGN);    /* a reader that left is an EPIPE, not a death in mid-work */
        signal(SIGXFSZ, SIG_IGN);    /* and so is a limit on the size of files: EFBIG */
        argp_program_version = "vhdctl " VHDD_VERSION;
        argp_err_exit_status = CTL_USAGE;

        if (!verb) {
                print_help(stderr);
                return CTL_USAGE;
        }
        if (is_help(verb) || strcmp(verb, "help") == 0)
                return help(argc - 2, argv + 2);
        if (strcmp(verb, "--version") == 0 || strcmp(verb, "-V") == 0) {
                puts(argp_program_version);
                return close_stdout(CTL_DONE);
        }
        if (strcmp(verb, "--words") == 0)
                return print_words(argc - 2, argv + 2);
        if (argc == 3 && is_group(verb) && is_help(argv[2]))
                return help(1, argv + 1);
        command = command_of_words(argc - 1, argv + 1, &n);
        if (!command)
                return unknown_verb(argc - 1, argv + 1);
        return run_command(command, argc - n, argv + n);
}
