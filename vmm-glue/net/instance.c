/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/instance.h"

#include <fcntl.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/netlink.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "vmm-glue/log.h"
#include "vmm-glue/net/ovsdb.h"
#include "vmm-glue/net/program.h"

#define SCHEMA_PATH      "/usr/share/openvswitch/vswitch.ovsschema"
#define SYSTEM_RUN_DIR   "/run/openvswitch"
#define DATAPATH_DEVICE  "ovs-netdev" /* one in a namespace: the user-space datapath's own */
#define START_TIMEOUT_MS 20000u
#define STOP_TIMEOUT_MS  5000u
#define FLOWS_TIMEOUT_MS 10000u
/* A program that dies again and again is started again after a pause, up to this one. */
#define MAX_PAUSE_US   UINT64_C(10000000)
#define FIRST_PAUSE_US UINT64_C(100000)
#define LONG_LIFE_US   UINT64_C(30000000)
#define SYSTEM_LOOK_US UINT64_C(2000000)

enum { SERVER, VSWITCHD, N_PROGRAMS };
static const char *const program_names[] = {[SERVER] = "ovsdb-server", [VSWITCHD] = "ovs-vswitchd"};

/* One of our own two. */
struct ovs_program {
        struct instance *instance;
        int which;
        int pidfd; /* -1: does not run, as far as we know */
        sd_event_source *watch, *retry;
        uint64_t started_us, pause_us;
};

struct instance {
        struct instance_options options; /* its texts are ours */
        char *folder;                    /* where sockets are: our own's, or the system's */
        char *database;                  /* our own file */
        bool is_own, is_chosen;
        bool is_wanted; /* its programs are to run: started again when they die */
        struct ovs_rpc *rpc;
        struct ovs_program programs[N_PROGRAMS];
        pid_t system_pid; /* the system's ovs-vswitchd, to see that it is another one */
        sd_event_source *system_look;
};

static uint64_t now_us(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static int path_in(
        const char *folder, const char *name, const char *ending, char **ret, struct error *err)
{
        if (asprintf(ret, "%s/%s%s", folder, name, ending) < 0) {
                *ret = NULL;
                return fail(err, ENOMEM, "no memory for a path");
        }
        return 0;
}

/* --- which one --- */

static bool kernel_has_datapath(void)
{
        struct nl_sock *socket = nl_socket_alloc();
        bool has = socket && genl_connect(socket) == 0 &&
                genl_ctrl_resolve(socket, "ovs_datapath") >= 0;

        nl_socket_free(socket);
        return has;
}

static bool in_our_network(pid_t pid)
{
        char path[64];
        struct stat ours, theirs;

        snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
        return pid > 0 && stat("/proc/self/ns/net", &ours) == 0 && stat(path, &theirs) == 0 &&
                ours.st_ino == theirs.st_ino && ours.st_dev == theirs.st_dev;
}

static bool system_is_usable(void)
{
        _cleanup_(ovs_rpc_closep) struct ovs_rpc *rpc = NULL;

        return ovs_rpc_open(SYSTEM_RUN_DIR "/db.sock", &rpc, NULL) == 0 &&
                in_our_network(ovs_rpc_peer(rpc)) && kernel_has_datapath();
}

static bool own_is_there(const struct instance *instance)
{
        return access(instance->database, F_OK) == 0;
}

static int choose(struct instance *instance, struct error *err)
{
        if (instance->is_chosen)
                return 0;
        instance->is_own = own_is_there(instance) || !system_is_usable();
        free(instance->folder);
        instance->folder = NULL;
        if (instance->is_own) {
                int r = path_in(instance->options.run_dir, "vmm/ovs", "", &instance->folder, err);

                if (r < 0)
                        return r;
        } else {
                instance->folder = strdup(SYSTEM_RUN_DIR);
                if (!instance->folder)
                        return fail(err, ENOMEM, "no memory for a path");
        }
        instance->is_chosen = true;
        return 0;
}

bool instance_may_have_switches(struct instance *instance)
{
        return own_is_there(instance) || system_is_usable();
}

bool instance_is_own(const struct instance *instance)
{
        return instance->is_own;
}

const char *instance_owner(const struct instance *instance)
{
        return instance->options.state_dir;
}

/* --- our own database --- */

static int make_folder(const char *path, struct error *err)
{
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
                return fail_os(err, errno, "cannot make the folder '%s'", path);
        return 0;
}

static int make_folders(struct instance *instance, struct error *err)
{
        _cleanup_free_ char *vmm = NULL, *ovs = NULL, *run = NULL;
        int r = path_in(instance->options.state_dir, "vmm", "", &vmm, err);

        if (r == 0)
                r = path_in(vmm, "ovs", "", &ovs, err);
        if (r == 0)
                r = path_in(instance->options.run_dir, "vmm", "", &run, err);
        if (r == 0)
                r = make_folder(vmm, err);
        if (r == 0)
                r = make_folder(ovs, err);
        if (r == 0)
                r = make_folder(run, err);
        return r < 0 ? r : make_folder(instance->folder, err);
}

static int sync_path(const char *path, struct error *err)
{
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);

        if (fd < 0 || fsync(fd) < 0)
                return fail_os(err, errno, "cannot make '%s' durable", path);
        return 0;
}

/* Under another name first: a cut leaves a whole database or none. */
static int create_database(struct instance *instance, struct error *err)
{
        _cleanup_free_ char *new = NULL, *folder = NULL;
        int r = path_in(instance->options.state_dir, "vmm", "/ovs", &folder, err);

        if (r == 0)
                r = path_in(instance->options.state_dir, "vmm/ovs/conf.db", ".new", &new, err);
        if (r < 0)
                return r;
        const char *const arguments[] = {"ovsdb-tool", "create", new, SCHEMA_PATH, NULL};

        unlink(new);
        r = program_run(arguments, instance->folder, NULL, START_TIMEOUT_MS, NULL, err);
        if (r == 0)
                r = sync_path(new, err);
        if (r == 0 && rename(new, instance->database) < 0)
                r = fail_os(err, errno, "cannot rename '%s'", new);
        if (r < 0) {
                unlink(new);
                return fail_prefix(err, r, "cannot make the switches' database");
        }
        return sync_path(folder, err);
}

/* After Open vSwitch was upgraded. */
static int convert_database(struct instance *instance, struct error *err)
{
        const char *const ask[] = {
                "ovsdb-tool", "needs-conversion", instance->database, SCHEMA_PATH, NULL};
        const char *const convert[] = {
                "ovsdb-tool", "convert", instance->database, SCHEMA_PATH, NULL};
        _cleanup_free_ char *answer = NULL;
        int r = program_run(ask, instance->folder, NULL, START_TIMEOUT_MS, &answer, err);

        if (r == 0 && strncmp(answer, "yes", 3) == 0)
                r = program_run(convert, instance->folder, NULL, START_TIMEOUT_MS, NULL, err);
        return r < 0 ? fail_prefix(err, r, "cannot use the switches' database") : 0;
}

static int prepare_database(struct instance *instance, struct error *err)
{
        return own_is_there(instance) ? convert_database(instance, err)
                                      : create_database(instance, err);
}

/* --- our own programs --- */

static int on_death(sd_event_source *source, int fd, uint32_t events, void *opaque);
static int on_retry(sd_event_source *source, uint64_t usec, void *opaque);

static void forget_program(struct ovs_program *program)
{
        program->watch = sd_event_source_disable_unref(program->watch);
        if (program->pidfd >= 0)
                close(program->pidfd);
        program->pidfd = -1;
}

static bool is_alive(struct ovs_program *program)
{
        struct pollfd pollfd = {.fd = program->pidfd, .events = POLLIN};

        return program->pidfd >= 0 && poll(&pollfd, 1, 0) == 0;
}

static int open_control(
        struct instance *instance, int which, struct ovs_rpc **ret, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = path_in(instance->folder, program_names[which], ".ctl", &path, err);

        return r < 0 ? r : ovs_rpc_open(path, ret, err);
}

/* Who listens at its control socket, in our own folder, is it. */
static int adopt(struct ovs_program *program, struct error *err)
{
        _cleanup_(ovs_rpc_closep) struct ovs_rpc *rpc = NULL;
        int r = open_control(program->instance, program->which, &rpc, err);

        if (r < 0)
                return r;
        forget_program(program);
        program->pidfd = (int)syscall(SYS_pidfd_open, ovs_rpc_peer(rpc), 0);
        if (program->pidfd < 0)
                return fail_os(err, errno, "cannot watch %s", program_names[program->which]);
        r = sd_event_add_io(program->instance->options.event, &program->watch, program->pidfd,
                EPOLLIN, on_death, program);
        if (r < 0) {
                forget_program(program);
                return fail_os(err, -r, "cannot watch %s", program_names[program->which]);
        }
        program->started_us = now_us();
        return 0;
}

/* Another one in this namespace holds the one device that a user-space datapath has. It outlives its
 * process, as the host's ports do: then nobody has it open. */
static int check_datapath(struct instance *instance, struct error *err)
{
        struct net_link link;

        if (links_find(instance->options.links, DATAPATH_DEVICE, &link, NULL) < 0 ||
                !link.has_carrier)
                return 0;
        fail(err, EBUSY,
                "another Open vSwitch has a user-space datapath here already (the device '%s')",
                DATAPATH_DEVICE);
        error_set_hint(err, "one daemon with switches in each network namespace");
        return -EBUSY;
}

static int launch(struct ovs_program *program, struct error *err)
{
        struct instance *instance = program->instance;
        const char *name = program_names[program->which];
        _cleanup_free_ char *socket = NULL, *pid_file = NULL, *control = NULL, *log = NULL;
        const char *folder = instance->folder;

        if (asprintf(&socket, "%s:%s/db.sock", program->which == SERVER ? "--remote=punix" : "unix",
                    folder) < 0)
                socket = NULL;
        if (asprintf(&pid_file, "--pidfile=%s/%s.pid", folder, name) < 0)
                pid_file = NULL;
        if (asprintf(&control, "--unixctl=%s/%s.ctl", folder, name) < 0)
                control = NULL;
        if (asprintf(&log, "--log-file=%s/%s.log", folder, name) < 0)
                log = NULL;
        if (!socket || !pid_file || !control || !log)
                return fail(err, ENOMEM, "no memory for a command line");
        const char *const server[] = {name, instance->database, socket, pid_file, control, log,
                "--detach", "-vconsole:emer", "-vsyslog:off", NULL};
        const char *const vswitchd[] = {name, socket, pid_file, control, log, "--detach",
                "-vconsole:emer", "-vsyslog:off", NULL};

        return program_run(program->which == SERVER ? server : vswitchd, folder, NULL,
                START_TIMEOUT_MS, NULL, err);
}

/* Runs behind this: it did, or was found, or started. */
static int ensure_program(struct ovs_program *program, struct error *err)
{
        struct instance *instance = program->instance;
        bool was_there;
        int r = 0;

        if (is_alive(program) || adopt(program, NULL) == 0)
                return 0;
        if (program->which == SERVER)
                r = prepare_database(instance, err);
        else
                r = check_datapath(instance, err);
        was_there = program->started_us > 0;
        if (r == 0)
                r = launch(program, err);
        if (r == 0)
                r = adopt(program, err);
        if (r == 0)
                log_info("%s was started", program_names[program->which]);
        /* We have seen it dead before the event loop has. */
        if (r == 0 && was_there && program->which == VSWITCHD && !program->retry)
                sd_event_add_time_relative(instance->options.event, &program->retry,
                        CLOCK_MONOTONIC, 0, 0, on_retry, program);
        return r;
}

static int ensure_own(struct instance *instance, struct error *err)
{
        int r = make_folders(instance, err);

        for (int i = 0; r == 0 && i < N_PROGRAMS; i++)
                r = ensure_program(&instance->programs[i], err);
        if (r == 0)
                instance->is_wanted = true;
        return r;
}

/* --- dying, and coming back --- */

static void lengthen_pause(struct ovs_program *program, uint64_t first_us)
{
        program->pause_us = program->pause_us ? 2 * program->pause_us : first_us;
        if (program->pause_us > MAX_PAUSE_US)
                program->pause_us = MAX_PAUSE_US;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct ovs_program *program = opaque;
        struct instance *instance = program->instance;
        struct error err = ERROR_INIT;

        if (instance->is_wanted && ensure_own(instance, &err) < 0) {
                log_error(&err);
                lengthen_pause(program, FIRST_PAUSE_US);
                sd_event_source_set_time_relative(source, program->pause_us);
                sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
                return 0;
        }
        program->retry = sd_event_source_disable_unref(program->retry);
        if (instance->is_wanted && program->which == VSWITCHD)
                instance->options.again(instance->options.opaque);
        return 0;
}

static int on_death(sd_event_source *source, int fd, uint32_t events, void *opaque)
{
        struct ovs_program *program = opaque;
        struct instance *instance = program->instance;
        bool lived_long = now_us() - program->started_us > LONG_LIFE_US;

        forget_program(program);
        if (program->which == SERVER)
                instance->rpc = ovs_rpc_close(instance->rpc);
        if (!instance->is_wanted || program->retry)
                return 0;
        log_warning("%s has died, and is started again", program_names[program->which]);
        /* At once, unless it did so a moment ago. */
        if (lived_long)
                program->pause_us = 0;
        lengthen_pause(program, 1000);
        sd_event_add_time_relative(instance->options.event, &program->retry, CLOCK_MONOTONIC,
                program->pause_us, 0, on_retry, program);
        return 0;
}

/* --- the system's --- */

static pid_t system_vswitchd(void)
{
        _cleanup_stream_ FILE *file = fopen(SYSTEM_RUN_DIR "/ovs-vswitchd.pid", "re");
        int pid = 0;

        return file && fscanf(file, "%d", &pid) == 1 ? (pid_t)pid : 0;
}

/* Nobody tells us when the system's ovs-vswitchd is another one: its flow tables are empty then. */
static int on_system_look(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct instance *instance = opaque;
        pid_t pid = system_vswitchd();

        sd_event_source_set_time_relative(source, SYSTEM_LOOK_US);
        sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
        if (pid > 0 && pid != instance->system_pid) {
                instance->system_pid = pid;
                instance->options.again(instance->options.opaque);
        }
        return 0;
}

static int watch_system(struct instance *instance, struct error *err)
{
        int r;

        if (instance->system_look)
                return 0;
        instance->system_pid = system_vswitchd();
        r = sd_event_add_time_relative(instance->options.event, &instance->system_look,
                CLOCK_MONOTONIC, SYSTEM_LOOK_US, 0, on_system_look, instance);
        return r < 0 ? fail_os(err, -r, "cannot make a timer") : 0;
}

/* --- the database --- */

static int connect_database(struct instance *instance, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r;

        if (ovs_rpc_is_alive(instance->rpc)) {
                /* A server that was restarted has closed it: that shows when it is used. */
                json_t *probe = json_array();

                r = ovs_rpc_call(instance->rpc, "echo", probe, OVSDB_TIMEOUT_MS, NULL, NULL);
                if (r == 0)
                        return 0;
        }
        instance->rpc = ovs_rpc_close(instance->rpc);
        r = path_in(instance->folder, "db", ".sock", &path, err);
        if (r == 0)
                r = ovs_rpc_open(path, &instance->rpc, err);
        return r < 0 || !instance->is_own ? r : ovsdb_init(instance->rpc, err);
}

int instance_database(struct instance *instance, struct ovs_rpc **ret, struct error *err)
{
        int r = choose(instance, err);

        if (r == 0)
                r = instance->is_own ? ensure_own(instance, err) : watch_system(instance, err);
        if (r == 0)
                r = connect_database(instance, err);
        if (r == 0)
                *ret = instance->rpc;
        return r;
}

int instance_database_if_there(struct instance *instance, struct ovs_rpc **ret, struct error *err)
{
        *ret = NULL;
        return instance_may_have_switches(instance) ? instance_database(instance, ret, err) : 0;
}

/* --- the end --- */

static void stop_program(struct ovs_program *program)
{
        struct pollfd pollfd = {.fd = program->pidfd, .events = POLLIN};
        struct ovs_rpc *rpc = NULL;

        if (!is_alive(program) && adopt(program, NULL) < 0)
                return;
        pollfd.fd = program->pidfd;
        if (open_control(program->instance, program->which, &rpc, NULL) == 0) {
                json_t *how =
                        program->which == VSWITCHD ? json_pack("[s]", "--cleanup") : json_array();

                ovs_rpc_call(rpc, "exit", how, STOP_TIMEOUT_MS, NULL, NULL);
                ovs_rpc_close(rpc);
        }
        if (poll(&pollfd, 1, STOP_TIMEOUT_MS) == 0) {
                log_warning("%s does not end, and is killed", program_names[program->which]);
                syscall(SYS_pidfd_send_signal, program->pidfd, SIGKILL, NULL, 0);
                poll(&pollfd, 1, STOP_TIMEOUT_MS);
        }
        forget_program(program);
        program->started_us = 0;
}

void instance_stop(struct instance *instance, bool forget)
{
        if (!instance->is_chosen || !instance->is_own)
                return;
        instance->is_wanted = false;
        instance->rpc = ovs_rpc_close(instance->rpc);
        for (int i = N_PROGRAMS - 1; i >= 0; i--) {
                instance->programs[i].retry =
                        sd_event_source_disable_unref(instance->programs[i].retry);
                stop_program(&instance->programs[i]);
        }
        /* What Open vSwitch itself leaves. */
        links_delete(instance->options.links, DATAPATH_DEVICE, NULL);
        if (forget)
                unlink(instance->database);
        instance->is_chosen = false;
}

/* --- flows --- */

int instance_set_flows(
        struct instance *instance, const char *bridge, const char *flows, struct error *err)
{
        _cleanup_free_ char *target = NULL;
        int r;

        if (asprintf(&target, "unix:%s/%s.mgmt", instance->folder, bridge) < 0) {
                target = NULL;
                return fail(err, ENOMEM, "no memory for a path");
        }
        const char *const arguments[] = {
                "ovs-ofctl", "--bundle", "replace-flows", target, "-", NULL};

        r = program_run(arguments, instance->folder, flows, FLOWS_TIMEOUT_MS, NULL, err);
        return r < 0 ? fail_prefix(err, r, "cannot set what the switch '%s' lets through", bridge)
                     : 0;
}

/* --- life --- */

int instance_new(const struct instance_options *options, struct instance **ret, struct error *err)
{
        _cleanup_(instance_freep) struct instance *instance = calloc(1, sizeof(*instance));
        int r;

        if (!instance)
                return fail(err, ENOMEM, "no memory for Open vSwitch");
        instance->options = *options;
        for (int i = 0; i < N_PROGRAMS; i++)
                instance->programs[i] =
                        (struct ovs_program){.instance = instance, .which = i, .pidfd = -1};
        instance->options.state_dir = strdup(options->state_dir);
        instance->options.run_dir = strdup(options->run_dir);
        if (!instance->options.state_dir || !instance->options.run_dir)
                return fail(err, ENOMEM, "no memory for a path");
        r = path_in(options->state_dir, "vmm/ovs/conf", ".db", &instance->database, err);
        if (r < 0)
                return r;
        *ret = TAKE_PTR(instance);
        return 0;
}

struct instance *instance_free(struct instance *instance)
{
        if (!instance)
                return NULL;
        for (int i = 0; i < N_PROGRAMS; i++) {
                sd_event_source_disable_unref(instance->programs[i].retry);
                forget_program(&instance->programs[i]);
        }
        sd_event_source_disable_unref(instance->system_look);
        ovs_rpc_close(instance->rpc);
        free((char *)instance->options.state_dir);
        free((char *)instance->options.run_dir);
        free(instance->folder);
        free(instance->database);
        free(instance);
        return NULL;
}
