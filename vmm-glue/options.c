/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/options.h"

#include <argp.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "base/uuid.h"

#define EXIT_USAGE    2
#define DEFAULT_STATE "/var/lib/vhdd"
#define DELETED       " (deleted)"
#define LOCK_STEP_MS  20u

enum key { KEY_CONTROL = 0x100, KEY_RUN_DIR, KEY_STATE_DIR, KEY_HOST_MEMORY, KEY_SUPERVISE };

static const struct argp_option table[] = {
        {"control", KEY_CONTROL, "PATH", 0,
                "The daemon's control socket ($VHDD_CONTROL; control.sock in the state directory)",
                0},
        {"state-dir", KEY_STATE_DIR, "DIR", 0,
                "The daemon's state directory ($VHDD_STATE_DIR; " DEFAULT_STATE ")", 0},
        {"run-dir", KEY_RUN_DIR, "DIR", 0,
                "Where sockets and locks are ($VHDD_RUN_DIR; run/ in the state directory)", 0},
        {"host-memory", KEY_HOST_MEMORY, "SIZE", 0,
                "What all vms together may have ($VHDD_HOST_MEMORY; what the host has)", 0},
        {"supervise", KEY_SUPERVISE, "ID", 0,
                "Look after this one vm, as the processes do that vmm-host starts", 0},
        {0},
};

static void refuse(const char *what, const char *value) __attribute__((noreturn));
static void refuse(const char *what, const char *value)
{
        fprintf(stderr, "vmm-host: %s%s%s%s\n", what, value ? " '" : "", value ? value : "",
                value ? "'" : "");
        fprintf(stderr, "Try 'vmm-host --help'.\n");
        exit(EXIT_USAGE);
}

static char *must(char *text)
{
        if (!text) {
                fprintf(stderr, "vmm-host: no memory for the command line\n");
                exit(3);
        }
        return text;
}

static void take_path(char **slot, const char *arg)
{
        _cleanup_free_ char *cwd = NULL;

        free(*slot);
        *slot = NULL;
        if (arg[0] == '/') {
                *slot = must(strdup(arg));
                return;
        }
        cwd = must(getcwd(NULL, 0));
        if (asprintf(slot, "%s/%s", cwd, arg) < 0)
                must(NULL);
}

static void take_memory(struct glue_options *options, const char *arg)
{
        struct error err = ERROR_INIT;

        if (size_parse(arg, &options->host_memory, &err) < 0)
                refuse(err.message, NULL);
        if (options->host_memory == 0)
                refuse("--host-memory takes a size above 0, not", arg);
}

static void take_vm(struct glue_options *options, const char *arg)
{
        uint8_t id[16];
        char text[UUID_TEXT_SIZE];

        if (!uuid_parse(arg, id) || strcmp(uuid_format(id, text), arg) != 0)
                refuse("--supervise takes a vm's id, not", arg);
        free(options->supervise);
        options->supervise = must(strdup(arg));
}

static error_t take(int key, char *arg, struct argp_state *state)
{
        struct glue_options *options = state->input;

        if (arg && !arg[0])
                refuse("an option's value is empty", NULL);
        switch (key) {
        case KEY_CONTROL: take_path(&options->control, arg); return 0;
        case KEY_RUN_DIR: take_path(&options->run_dir, arg); return 0;
        case KEY_STATE_DIR: take_path(&options->state_dir, arg); return 0;
        case KEY_HOST_MEMORY: take_memory(options, arg); return 0;
        case KEY_SUPERVISE: take_vm(options, arg); return 0;
        case ARGP_KEY_ARG: refuse("there is no argument beside options, but here is", arg);
        }
        return ARGP_ERR_UNKNOWN;
}

static void take_environment(struct glue_options *options)
{
        const char *control = getenv("VHDD_CONTROL"), *run = getenv("VHDD_RUN_DIR");
        const char *state = getenv("VHDD_STATE_DIR"), *memory = getenv("VHDD_HOST_MEMORY");

        if (control && control[0] && !options->control)
                take_path(&options->control, control);
        if (state && state[0] && !options->state_dir)
                take_path(&options->state_dir, state);
        if (run && run[0] && !options->run_dir)
                take_path(&options->run_dir, run);
        if (memory && memory[0] && options->host_memory == 0)
                take_memory(options, memory);
}

static void fill_in(struct glue_options *options)
{
        char program[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);

        if (n <= 0)
                refuse("cannot tell where this program is: is /proc mounted?", NULL);
        program[n] = '\0';
        /* It was replaced by a newer one meanwhile, which is the one to start from now on. */
        if ((size_t)n > strlen(DELETED) && strcmp(program + n - strlen(DELETED), DELETED) == 0)
                program[(size_t)n - strlen(DELETED)] = '\0';
        options->program = must(strdup(program));
        if (!options->state_dir)
                options->state_dir = must(strdup(DEFAULT_STATE));
        if (!options->control &&
                asprintf(&options->control, "%s/control.sock", options->state_dir) < 0)
                must(NULL);
        if (!options->run_dir && asprintf(&options->run_dir, "%s/run", options->state_dir) < 0)
                must(NULL);
}

void options_read(int argc, char **argv, struct glue_options *ret)
{
        static const struct argp argp = {
                .options = table,
                .parser = take,
                .doc = "Runs the daemon's vms in QEMU: every vm that has memory settings gets a "
                       "supervisor process, which starts, watches and ends its QEMU. The daemon starts "
                       "this program itself if it is told so.\v"
                       "Example:\n"
                       "  vhdd --state-dir ~/vms --vmm-command vmm-host &\n"
                       "or, beside a daemon that runs already:\n"
                       "  vmm-host --state-dir ~/vms &\n"
                       "\n"
                       "SIGTERM shuts all guests down and ends it; after any other death of it the guests "
                       "go on, and the next vmm-host finds them.",
        };

        argp_program_version = "vmm-host " VHDD_VERSION;
        argp_err_exit_status = EXIT_USAGE;
        *ret = (struct glue_options){0};
        if (argp_parse(&argp, argc, argv, 0, NULL, ret) != 0)
                exit(EXIT_USAGE);
        take_environment(ret);
        fill_in(ret);
}

void options_done(struct glue_options *options)
{
        free(options->control);
        free(options->run_dir);
        free(options->state_dir);
        free(options->supervise);
        free(options->program);
        *options = (struct glue_options){0};
}

int vm_path(const struct glue_options *options, const char *id, const char *name, char **ret,
        struct error *err)
{
        if (asprintf(ret, "%s/vmm/%s%s%s", options->run_dir, id, name ? "/" : "",
                    name ? name : "") < 0)
                return fail(err, ENOMEM, "no memory for a path");
        return 0;
}

static int make_folder(const char *path, struct error *err)
{
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
                return fail_os(err, errno, "cannot make the folder '%s'", path);
        return 0;
}

int vm_folder_make(const struct glue_options *options, const char *id, struct error *err)
{
        _cleanup_free_ char *all = NULL, *one = NULL;
        int r = 0;

        if (asprintf(&all, "%s/vmm", options->run_dir) < 0)
                all = NULL;
        if (!all)
                return fail(err, ENOMEM, "no memory for a path");
        r = make_folder(all, err);
        if (r == 0 && id)
                r = vm_path(options, id, NULL, &one, err);
        if (r == 0 && id)
                r = make_folder(one, err);
        return r;
}

static int try_flock(int fd)
{
        return flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
}

static int try_own(int fd)
{
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

        if (fcntl(fd, F_SETLK, &lock) == 0)
                return 0;
        return errno == EACCES ? -EWOULDBLOCK : -errno;
}

static int take_lock(
        const char *path, int (*try)(int fd), unsigned wait_ms, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        int r;

        if (fd < 0)
                return fail_os(err, errno, "cannot open the lock '%s'", path);
        while ((r = try(fd)) < 0) {
                if (r != -EWOULDBLOCK && r != -EINTR)
                        return fail_os(err, -r, "cannot lock '%s'", path);
                if (wait_ms == 0)
                        return fail(err, EBUSY, "another process holds the lock '%s'", path);
                usleep(LOCK_STEP_MS * 1000);
                wait_ms -= wait_ms < LOCK_STEP_MS ? wait_ms : LOCK_STEP_MS;
        }
        *ret = TAKE_FD(fd);
        return 0;
}

int lock_take(const char *path, unsigned wait_ms, int *ret, struct error *err)
{
        return take_lock(path, try_flock, wait_ms, ret, err);
}

int lock_take_own(const char *path, unsigned wait_ms, int *ret, struct error *err)
{
        return take_lock(path, try_own, wait_ms, ret, err);
}
