/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/main.h"

#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vhdd/control/server.h"
#include "vhdd/control/socket.h"
#include "vhdd/daemon/broker.h"
#include "vhdd/daemon/catalog.h"
#include "vhdd/daemon/exports.h"
#include "vhdd/daemon/greeter.h"
#include "vhdd/daemon/listeners.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/options.h"
#include "vhdd/daemon/state.h"
#include "vhdd/daemon/vmm.h"
#include "vhdd/daemon/vmm_process.h"
#include "vhdd/daemon/vms.h"

#define EXIT_FAILED     3
#define WORKER_USER     "vhdd-worker"
#define NOBODY          65534u
#define VMM_END_MS      15000 /* for the vmm-host, to let its guests go */
#define REQUESTS_END_MS 5000  /* control requests under way, before workers are told to end */
#define WORKERS_END_MS  20000 /* for workers to drain, flush and close */
#define LAST_RESORT_S   29    /* nothing holds a stop up longer than this */

/* What somebody asked for; the greater wins. */
enum request { REQUEST_NONE, REQUEST_RESTART, REQUEST_STOP };

/* One for each process. */
struct daemon {
        struct broker broker;
        struct listeners listeners;
        char *program; /* what execve() is given to run an upgraded program, too */
        char **argv;
        struct vmm_process *vmm_process;
        int signal_fd;
        int request_fd; /* an eventfd: somebody asked for something */
        _Atomic int request;
};

static struct daemon *daemon_of(struct broker *broker)
{
        return (struct daemon *)broker; /* its first member */
}

/* --- asked from any thread --- */

static void request(struct broker *broker, enum request what)
{
        struct daemon *daemon = daemon_of(broker);
        int before = atomic_load(&daemon->request);
        uint64_t one = 1;

        while (before < (int)what &&
                !atomic_compare_exchange_weak(&daemon->request, &before, (int)what)) {
        }
        if (write(daemon->request_fd, &one, sizeof(one)) < 0)
                broker_log(broker, BROKER_LOG_ERROR, NULL, "cannot wake the main thread");
}

void broker_request_stop(struct broker *broker)
{
        request(broker, REQUEST_STOP);
}

void broker_request_restart(struct broker *broker)
{
        request(broker, REQUEST_RESTART);
}

void broker_publish(struct broker *broker, const char *name, json_t *event)
{
        if (!event)
                return;
        json_object_set_new(event, "type", json_string(name));
        if (broker->control)
                control_server_publish(broker->control, event);
        else
                json_decref(event);
}

/* --- who we are --- */

static int64_t real_now_us(void)
{
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

/* Whom workers become. Not root: as we are, there is nothing to give up. */
static int find_worker_user(struct broker *broker, struct error *err)
{
        const char *name = broker->options.user;
        const struct passwd *user;

        broker->worker_uid = geteuid();
        broker->worker_gid = getegid();
        if (geteuid() != 0)
                return name ? fail(err, EPERM, "--user '%s' needs root", name) : 0;
        user = getpwnam(name ? name : WORKER_USER);
        if (!user && name)
                return fail(err, ENOENT, "there is no user '%s'", name);
        if (!user)
                user = getpwnam("nobody");
        broker->worker_uid = user ? user->pw_uid : NOBODY;
        broker->worker_gid = user ? user->pw_gid : NOBODY;
        return broker->worker_uid != 0
                ? 0
                : fail(err, EPERM, "processes that read images do not run as root");
}

/* The path of our program; of one that was replaced meanwhile, the new one's. */
static char *find_program(void)
{
        static const char deleted[] = " (deleted)";
        char path[PATH_MAX];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
        char *end;

        if (n < 0)
                return strdup("/proc/self/exe");
        path[n] = '\0';
        end = path + n - (sizeof(deleted) - 1);
        if (end > path && strcmp(end, deleted) == 0)
                *end = '\0';
        return strdup(path);
}

/* A broker has the descriptors of every vm's layers open. */
static void raise_descriptors(void)
{
        struct rlimit limit;

        if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
                return;
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
}

static int prepare(struct daemon *daemon, struct error *err)
{
        struct broker *broker = &daemon->broker;

        umask(0077);
        raise_descriptors();
        broker->started_us = real_now_us();
        broker->executable = strdup("/proc/self/exe");
        daemon->program = find_program();
        if (asprintf(&broker->run_dir, "%s/run", broker->options.state_dir) < 0)
                broker->run_dir = NULL;
        if (!broker->executable || !daemon->program || !broker->run_dir)
                return fail(err, ENOMEM, "no memory to start");
        return find_worker_user(broker, err);
}

/* Every thread inherits the mask: signals come to the main thread alone, when it asks. */
static int take_signals(struct daemon *daemon, struct error *err)
{
        sigset_t signals;

        signal(SIGPIPE, SIG_IGN);
        sigemptyset(&signals);
        sigaddset(&signals, SIGTERM);
        sigaddset(&signals, SIGINT);
        sigaddset(&signals, SIGHUP);
        sigprocmask(SIG_BLOCK, &signals, NULL);
        daemon->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
        daemon->request_fd = eventfd(0, EFD_CLOEXEC);
        if (daemon->signal_fd < 0 || daemon->request_fd < 0)
                return fail_os(err, errno, "cannot watch signals");
        return 0;
}

/* --- the start --- */

static int open_state(struct daemon *daemon, struct error *err)
{
        const struct broker_options *options = &daemon->broker.options;
        gid_t group;
        int r;

        r = listeners_take(&daemon->listeners, err);
        if (r == 0)
                r = control_group_find(options->group, &group, err);
        if (r == 0)
                r = state_make(options->state_dir, daemon->broker.run_dir, group, err);
        if (r == 0)
                r = state_lock(options->state_dir, daemon->listeners.lock_fd,
                        &daemon->listeners.lock_fd, err);
        if (r == 0)
                r = listeners_open(&daemon->listeners, &daemon->broker.options, group, err);
        return r;
}

static int open_catalog(struct broker *broker, struct error *err)
{
        _cleanup_free_ char *path = NULL;

        if (asprintf(&path, "%s/catalog.sqlite", broker->options.state_dir) < 0) {
                path = NULL;
                return fail(err, ENOMEM, "no memory for a path");
        }
        return catalog_open(path, &broker->catalog, err);
}

static void log_control(void *opaque, const char *sentence)
{
        broker_log(opaque, BROKER_LOG_INFO, "control", "%s", sentence);
}

static int start_control(struct daemon *daemon, struct error *err)
{
        static const struct method *const tables[] = {
                daemon_methods,
                vm_methods,
                disk_methods,
                compact_methods,
                snapshot_methods,
                agent_methods,
                vmm_methods,
                doctor_methods,
                import_methods,
                job_methods,
                metrics_methods,
                NULL,
        };
        struct control_options options = {
                .group = daemon->broker.options.group,
                .broker = &daemon->broker,
                .tables = tables,
                .log = log_control,
                .opaque = &daemon->broker,
        };

        /* Its own copy: ours stays open for the next program. */
        options.listen_fd = fcntl(daemon->listeners.control_fd, F_DUPFD_CLOEXEC, 3);
        if (options.listen_fd < 0)
                return fail_os(err, errno, "cannot listen for control");
        return control_server_new(&options, &daemon->broker.control, err);
}

static int start(struct daemon *daemon, struct error *err)
{
        static const struct greeter_answers answers = {
                .lookup = exports_lookup, .list = exports_list, .hand_over = exports_hand_over};
        struct broker *broker = &daemon->broker;
        int r = prepare(daemon, err);

        if (r == 0)
                r = take_signals(daemon, err);
        if (r == 0)
                r = open_state(daemon, err);
        if (r == 0)
                r = open_catalog(broker, err);
        if (r == 0)
                r = vms_start(broker, err);
        if (r == 0)
                r = greeter_start(broker, daemon->listeners.nbd_fds, daemon->listeners.n_nbd,
                        &answers, &broker->greeter, err);
        if (r == 0)
                r = vmm_new(broker, &broker->vmm, err);
        if (r == 0)
                r = start_control(daemon, err);
        if (r == 0)
                r = vmm_process_start(broker, &daemon->vmm_process, err);
        return r;
}

static void tell_ready(struct daemon *daemon)
{
        const struct broker_options *options = &daemon->broker.options;

        sd_notifyf(0, "READY=1\nSTATUS=Control at %s\nMAINPID=%d", options->control_path,
                (int)getpid());
        broker_log(&daemon->broker, BROKER_LOG_INFO, NULL, "version %s is ready: control at '%s'",
                VHDD_VERSION, options->control_path);
}

/* --- the end --- */

/* Of the whole process, whatever hangs. */
static void *last_resort_main(void *opaque)
{
        sleep(LAST_RESORT_S);
        broker_log(opaque, BROKER_LOG_ERROR, NULL,
                "ending took longer than %d seconds; workers that have not ended go on, and the next "
                "daemon adopts them",
                LAST_RESORT_S);
        _exit(EXIT_FAILED);
        return NULL;
}

static void begin_end(struct daemon *daemon)
{
        pthread_t thread;

        atomic_store(&daemon->broker.stopping, true);
        if (pthread_create(&thread, NULL, last_resort_main, &daemon->broker) == 0)
                pthread_detach(thread);
}

/* The vmm-host first, whose guests need all the rest until they are off. Then in the order in which
 * things come in: no new clients, no new requests, then the workers. */
static void stop(struct daemon *daemon, bool leave_workers)
{
        struct broker *broker = &daemon->broker;

        daemon->vmm_process = vmm_process_stop(daemon->vmm_process, leave_workers, VMM_END_MS);
        broker->greeter = greeter_stop(broker->greeter);
        if (broker->control)
                control_server_stop(broker->control, REQUESTS_END_MS);
        if (broker->vms)
                vms_stop(broker, leave_workers, WORKERS_END_MS);
        broker->control = control_server_free(broker->control);
        broker->vmm = vmm_free(broker->vmm);
        broker->catalog = catalog_close(broker->catalog);
}

static void daemon_done(struct daemon *daemon)
{
        struct broker *broker = &daemon->broker;

        listeners_close(&daemon->listeners);
        free(broker->run_dir);
        free(broker->executable);
        free(daemon->program);
        options_done(&broker->options);
}

static int64_t monotonic_us(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * INT64_C(1000000) + now.tv_nsec / 1000;
}

/* Comes back only if it fails. */
static void execute_anew(struct daemon *daemon)
{
        struct error err = ERROR_INIT;
        sigset_t none;

        if (listeners_keep(&daemon->listeners, &err) < 0) {
                broker_log_error(&daemon->broker, NULL, &err);
                return;
        }
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execv(daemon->program, daemon->argv);
        broker_log(&daemon->broker, BROKER_LOG_ERROR, NULL, "cannot execute '%s' anew: %s",
                daemon->program, strerror(errno));
}

static int restart(struct daemon *daemon)
{
        sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRId64 "\nSTATUS=Restarting", monotonic_us());
        broker_log(&daemon->broker, BROKER_LOG_INFO, NULL, "executing '%s' anew; workers go on",
                daemon->program);
        begin_end(daemon);
        stop(daemon, true);
        execute_anew(daemon);
        return EXIT_FAILED;
}

static int end(struct daemon *daemon)
{
        sd_notify(0, "STOPPING=1\nSTATUS=Ending the workers");
        broker_log(&daemon->broker, BROKER_LOG_INFO, NULL, "ending");
        begin_end(daemon);
        stop(daemon, false);
        broker_log(&daemon->broker, BROKER_LOG_INFO, NULL, "ended");
        return EXIT_SUCCESS;
}

/* --- in between --- */

static enum request signal_request(struct daemon *daemon)
{
        struct signalfd_siginfo info;

        if (read(daemon->signal_fd, &info, sizeof(info)) != sizeof(info))
                return REQUEST_NONE;
        return info.ssi_signo == SIGHUP ? REQUEST_RESTART : REQUEST_STOP;
}

static enum request said_request(struct daemon *daemon)
{
        uint64_t times;

        if (read(daemon->request_fd, &times, sizeof(times)) != sizeof(times))
                return REQUEST_NONE;
        return (enum request)atomic_exchange(&daemon->request, REQUEST_NONE);
}

int daemon_can_restart(struct broker *broker, struct error *err)
{
        const struct daemon *daemon = daemon_of(broker);

        if (access(daemon->program, X_OK) == 0)
                return 0;
        return fail_os(
                err, errno, "cannot execute '%s' anew, so this one goes on", daemon->program);
}

static bool can_restart(struct daemon *daemon)
{
        struct error err = ERROR_INIT;

        if (daemon_can_restart(&daemon->broker, &err) == 0)
                return true;
        broker_log_error(&daemon->broker, NULL, &err);
        return false;
}

static enum request wait_for_request(struct daemon *daemon)
{
        struct pollfd fds[] = {
                {.fd = daemon->signal_fd, .events = POLLIN},
                {.fd = daemon->request_fd, .events = POLLIN},
        };
        enum request asked, said;

        do {
                if (poll(fds, 2, -1) < 0 && errno != EINTR)
                        return REQUEST_STOP;
                asked = fds[0].revents ? signal_request(daemon) : REQUEST_NONE;
                said = fds[1].revents ? said_request(daemon) : REQUEST_NONE;
                asked = asked < said ? said : asked;
                if (asked == REQUEST_RESTART && !can_restart(daemon))
                        asked = REQUEST_NONE;
        } while (asked == REQUEST_NONE);
        return asked;
}

int daemon_main(int argc, char **argv)
{
        static struct daemon daemon = {.listeners = {.lock_fd = -1, .control_fd = -1}};
        struct error err = ERROR_INIT;
        int status;

        daemon.argv = argv;
        options_read(argc, argv, &daemon.broker.options);
        if (start(&daemon, &err) < 0) {
                broker_log_error(&daemon.broker, NULL, &err);
                stop(&daemon, true);
                daemon_done(&daemon);
                return EXIT_FAILED;
        }
        tell_ready(&daemon);
        status = wait_for_request(&daemon) == REQUEST_RESTART ? restart(&daemon) : end(&daemon);
        daemon_done(&daemon);
        return status;
}
