/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/options.h"

#include <argp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"

#define EXIT_USAGE      2
#define DEFAULT_STATE   "/var/lib/vhdd"
#define MAX_THREADS     1024
#define MAX_LISTENERS   32u
#define MAX_IMAGE_ROOTS 1024u
#define MIN_HOST_MEMORY (64u << 20)

enum key {
        KEY_STATE_DIR = 0x100,
        KEY_CONTROL,
        KEY_NBD_SOCKET,
        KEY_NBD_LISTEN,
        KEY_INSECURE,
        KEY_TLS,
        KEY_IMAGE_ROOT,
        KEY_METRICS,
        KEY_THREADS,
        KEY_USER,
        KEY_GROUP,
        KEY_VMM,
        KEY_HOST_MEMORY,
};

static const struct argp_option table[] = {
        {"state-dir", KEY_STATE_DIR, "DIR", 0,
                "Where the catalog and the sockets are (" DEFAULT_STATE
                "); made if it is not there",
                0},
        {"control", KEY_CONTROL, "PATH", 0,
                "The socket that vhdctl talks to (control.sock in the state directory)", 0},
        {"nbd-socket", KEY_NBD_SOCKET, "PATH", 0,
                "A unix socket for NBD clients (nbd.sock in the state directory); again for more",
                0},
        {"nbd-listen", KEY_NBD_LISTEN, "HOST:PORT", 0,
                "TCP for NBD clients, too; again for more; needs --insecure", 0},
        {"insecure", KEY_INSECURE, NULL, 0,
                "Allow TCP without encryption, on loopback addresses only", 0},
        {"image-root", KEY_IMAGE_ROOT, "DIR", 0,
                "Parents of images may also lie beneath DIR (again for more)", 0},
        {"metrics-socket", KEY_METRICS, "PATH", 0,
                "Serve metrics on this unix socket (HTTP, OpenMetrics)", 0},
        {"threads", KEY_THREADS, "N", 0,
                "At most so many requests of a vm wait for the disk at a time", 0},
        {"user", KEY_USER, "NAME", 0,
                "What the processes become that read images, when started as root (vhdd-worker, else "
                "nobody)",
                0},
        {"group", KEY_GROUP, "NAME", 0,
                "Who may use the sockets beside root and the daemon's user (vhdd, if there is such a "
                "group)",
                0},
        {"vmm-command", KEY_VMM, "CMD", 0,
                "Start this program beside the daemon, and again whenever it ends: it runs the vms that "
                "have memory (vmm-host)",
                0},
        {"host-memory", KEY_HOST_MEMORY, "SIZE", 0,
                "What guests may have in all (what the host has); for --vmm-command", 0},
        {"tls", KEY_TLS, "DIR", OPTION_HIDDEN, NULL, 0},
        {0},
};

static void refuse(const char *what, const char *value) __attribute__((noreturn));
static void refuse(const char *what, const char *value)
{
        fprintf(stderr, "vhdd: %s%s%s%s\n", what, value ? " '" : "", value ? value : "",
                value ? "'" : "");
        fprintf(stderr, "Try 'vhdd --help'.\n");
        exit(EXIT_USAGE);
}

static void no_memory(void) __attribute__((noreturn));
static void no_memory(void)
{
        fprintf(stderr, "vhdd: no memory for the command line\n");
        exit(3);
}

static char *copy(const char *text)
{
        char *ret = strdup(text);

        if (!ret)
                no_memory();
        return ret;
}

/* By its text alone: it need not be there yet, and links in it stay. */
static char *absolute(const char *path)
{
        _cleanup_free_ char *cwd = NULL;
        char *ret;

        if (path[0] == '/')
                return copy(path);
        cwd = getcwd(NULL, 0);
        if (!cwd || asprintf(&ret, "%s/%s", cwd, path) < 0)
                no_memory();
        return ret;
}

static void append(char ***list, size_t *count, char *text)
{
        char **grown = reallocarray(*list, *count + 2, sizeof(**list));

        if (!grown)
                no_memory();
        grown[(*count)++] = text;
        grown[*count] = NULL;
        *list = grown;
}

static unsigned threads_of(const char *text)
{
        char *end;
        unsigned long n;

        errno = 0;
        n = strtoul(text, &end, 10);
        if (text[0] < '0' || text[0] > '9' || *end || errno || n < 1 || n > MAX_THREADS)
                refuse("--threads takes a number from 1 to 1024, not", text);
        return (unsigned)n;
}

static uint64_t memory_of(const char *text)
{
        struct error err = ERROR_INIT;
        uint64_t size;

        if (size_parse(text, &size, &err) < 0 || size < MIN_HOST_MEMORY)
                refuse("--host-memory takes a size of 64M or more, not", text);
        return size;
}

static void take_path(char **slot, const char *arg)
{
        free(*slot);
        *slot = absolute(arg);
}

static error_t take(int key, char *arg, struct argp_state *state)
{
        struct broker_options *options = state->input;

        if (arg && !arg[0])
                refuse("an option's value is empty", NULL);
        switch (key) {
        case KEY_STATE_DIR: take_path(&options->state_dir, arg); return 0;
        case KEY_CONTROL: take_path(&options->control_path, arg); return 0;
        case KEY_METRICS: take_path(&options->metrics_path, arg); return 0;
        case KEY_NBD_SOCKET:
                append(&options->nbd_paths, &options->n_nbd_paths, absolute(arg));
                return 0;
        case KEY_NBD_LISTEN:
                append(&options->nbd_addresses, &options->n_nbd_addresses, copy(arg));
                return 0;
        case KEY_IMAGE_ROOT:
                append(&options->image_roots, &options->n_image_roots, absolute(arg));
                return 0;
        case KEY_INSECURE: options->insecure = true; return 0;
        case KEY_THREADS: options->threads = threads_of(arg); return 0;
        case KEY_USER:
                free(options->user);
                options->user = copy(arg);
                return 0;
        case KEY_GROUP:
                free(options->group);
                options->group = copy(arg);
                return 0;
        case KEY_VMM:
                free(options->vmm_command);
                options->vmm_command = copy(arg);
                return 0;
        case KEY_HOST_MEMORY: options->host_memory = memory_of(arg); return 0;
        case KEY_TLS:
                refuse("this version has no TLS; for TCP on a loopback address say --insecure, and "
                       "lead it through a tunnel",
                        NULL);
        case ARGP_KEY_ARG: refuse("there is no argument beside options, but here is", arg);
        }
        return ARGP_ERR_UNKNOWN;
}

static void fill_in(struct broker_options *options)
{
        char *path;

        if (!options->state_dir)
                options->state_dir = copy(DEFAULT_STATE);
        if (!options->control_path &&
                asprintf(&options->control_path, "%s/control.sock", options->state_dir) < 0)
                no_memory();
        if (options->n_nbd_paths == 0) {
                if (asprintf(&path, "%s/nbd.sock", options->state_dir) < 0)
                        no_memory();
                append(&options->nbd_paths, &options->n_nbd_paths, path);
        }
}

static void check(const struct broker_options *options)
{
        if (options->n_nbd_addresses > 0 && !options->insecure)
                refuse("--nbd-listen is not encrypted: say --insecure too, which allows loopback "
                       "addresses only",
                        NULL);
        for (size_t i = 0; i < options->n_nbd_addresses; i++)
                if (!strrchr(options->nbd_addresses[i], ':'))
                        refuse("--nbd-listen takes HOST:PORT, not", options->nbd_addresses[i]);
        if (options->n_nbd_addresses + options->n_nbd_paths > MAX_LISTENERS)
                refuse("there are more than 32 sockets for NBD clients", NULL);
        if (options->n_image_roots > MAX_IMAGE_ROOTS)
                refuse("there are more than 1024 image roots", NULL);
        if (options->host_memory && !options->vmm_command)
                refuse("--host-memory is the vmm-host's: say --vmm-command, too", NULL);
}

void options_read(int argc, char **argv, struct broker_options *ret)
{
        static const struct argp argp = {
                .options = table,
                .parser = take,
                .doc = "The storage daemon: owns virtual hard disks and their snapshots, and serves them "
                       "to virtual machines over NBD. It stays in the foreground; vhdctl tells it what "
                       "to do.\v"
                       "Example:\n"
                       "  vhdd --state-dir ~/vms &\n"
                       "  export VHDD_CONTROL=~/vms/control.sock\n"
                       "  vhdctl vm create web\n"
                       "  vhdctl disk attach web web.vhd --name root\n"
                       "  nbdinfo \"$(vhdctl disk uri web root)\"\n"
                       "\n"
                       "SIGTERM ends it with all its workers; SIGHUP executes it anew, and vms go on.",
        };

        argp_program_version = "vhdd " VHDD_VERSION;
        argp_err_exit_status = EXIT_USAGE;
        *ret = (struct broker_options){0};
        if (argp_parse(&argp, argc, argv, 0, NULL, ret) != 0)
                exit(EXIT_USAGE);
        fill_in(ret);
        check(ret);
}

static void free_list(char **list, size_t n)
{
        for (size_t i = 0; i < n; i++)
                free(list[i]);
        free(list);
}

void options_done(struct broker_options *options)
{
        free(options->state_dir);
        free(options->control_path);
        free_list(options->nbd_paths, options->n_nbd_paths);
        free_list(options->nbd_addresses, options->n_nbd_addresses);
        free_list(options->image_roots, options->n_image_roots);
        free(options->metrics_path);
        free(options->user);
        free(options->group);
        free(options->vmm_command);
        *options = (struct broker_options){0};
}
