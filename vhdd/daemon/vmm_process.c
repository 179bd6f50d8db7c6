/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/vmm_process.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "vhdd/daemon/names.h"
#include "vhdd/daemon/process.h"

#define PAUSE_MS      250u
#define PAUSE_MAX_MS  30000u
#define SOON_MS       60000 /* what lived longer is started again at once */
#define MAX_VARIABLES 5

struct vmm_process {
        struct broker *broker;
        char *lock_path;
        char **environment; /* what it gets beside ours */
        int stop_fd;        /* an eventfd */
        pthread_t thread;

        pthread_mutex_t lock;
        /* guarded by lock */
        int pidfd; /* of the one that lives, or -1 */
        bool stopping;
};

/* ---- who holds the lock ---- */

static pid_t holder_of(const struct vmm_process *process)
{
        _cleanup_fd_ int fd = open(process->lock_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

        if (fd < 0 || fcntl(fd, F_GETLK, &lock) < 0 || lock.l_type == F_UNLCK)
                return 0;
        return lock.l_pid;
}

/* The one that runs already. A number may be another's by the time that it is opened: who still holds
 * the lock then is the one. */
static int find_running(const struct vmm_process *process, pid_t *ret_pid, int *ret_pidfd)
{
        _cleanup_fd_ int pidfd = -1;
        pid_t pid = holder_of(process);

        if (pid <= 0 || process_open(pid, process_start_time(pid), &pidfd) < 0 ||
                holder_of(process) != pid)
                return -ESRCH;
        *ret_pid = pid;
        *ret_pidfd = TAKE_FD(pidfd);
        return 0;
}

/* ---- one of them, from beginning to end ---- */

static int begin(struct vmm_process *process, int *ret_pidfd, struct error *err)
{
        _cleanup_free_ char *line = NULL;
        pid_t pid;
        int r;

        if (find_running(process, &pid, ret_pidfd) == 0) {
                broker_log(process->broker, BROKER_LOG_INFO, "vmm-host",
                        "process %d goes on: it is the one of before", (int)pid);
                return 0;
        }
        if (asprintf(&line, "exec %s", process->broker->options.vmm_command) < 0) {
                line = NULL;
                return fail(err, ENOMEM, "no memory for a command");
        }
        r = process_spawn_command("/bin/sh", (const char *const[]){"sh", "-c", line, NULL},
                (const char *const *)process->environment, &pid, ret_pidfd, err);
        if (r == 0)
                broker_log(process->broker, BROKER_LOG_INFO, "vmm-host", "process %d is started",
                        (int)pid);
        return r;
}

static void log_end(const struct vmm_process *process, int status)
{
        if (status == -1)
                broker_log(process->broker, BROKER_LOG_ERROR, "vmm-host", "it has ended");
        else if (WIFSIGNALED(status))
                broker_log(process->broker, BROKER_LOG_ERROR, "vmm-host",
                        "it died of signal %d; another is started", WTERMSIG(status));
        else
                broker_log(process->broker, BROKER_LOG_ERROR, "vmm-host",
                        "it ended with status %d; another is started", WEXITSTATUS(status));
}

/* Who is to be told when the end comes. False: it has come. */
static bool set_pidfd(struct vmm_process *process, int pidfd)
{
        MUTEX_GUARD(&process->lock);

        process->pidfd = pidfd;
        return !process->stopping;
}

/* False: the end has come, which speaks to it itself. */
static bool watch(struct vmm_process *process, int pidfd)
{
        struct pollfd fds[] = {
                {.fd = pidfd, .events = POLLIN}, {.fd = process->stop_fd, .events = POLLIN}};
        bool goes_on;
        int status;

        while (poll(fds, 2, -1) < 0 && errno == EINTR) {
        }
        if (fds[1].revents || process_wait(pidfd, -1, &status) == 0)
                return false;
        goes_on = set_pidfd(process, -1);
        close(pidfd);
        if (goes_on)
                log_end(process, status);
        return goes_on;
}

/* ---- the thread ---- */

static uint64_t clock_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* False: the end has come. */
static bool rest(const struct vmm_process *process, unsigned ms)
{
        struct pollfd fd = {.fd = process->stop_fd, .events = POLLIN};

        return poll(&fd, 1, (int)ms) <= 0;
}

static void *keep_alive(void *opaque)
{
        struct vmm_process *process = opaque;
        unsigned pause_ms = 0;

        pthread_setname_np(pthread_self(), "vmm-keep");
        do {
                struct error err = ERROR_INIT;
                uint64_t begun_ms = clock_ms();
                int pidfd = -1;

                if (begin(process, &pidfd, &err) < 0)
                        broker_log_error(process->broker, "vmm-host", &err);
                else if (!set_pidfd(process, pidfd) || !watch(process, pidfd))
                        break;
                if (clock_ms() - begun_ms >= SOON_MS)
                        pause_ms = 0;
                pause_ms = pause_ms ? MIN_OF(pause_ms * 2, PAUSE_MAX_MS) : PAUSE_MS;
        } while (rest(process, pause_ms));
        return NULL;
}

/* ---- start and stop ---- */

static void process_free(struct vmm_process *process)
{
        for (char **entry = process->environment; entry && *entry; entry++)
                free(*entry);
        free(process->environment);
        free(process->lock_path);
        if (process->stop_fd >= 0)
                close(process->stop_fd);
        pthread_mutex_destroy(&process->lock);
        free(process);
}

static int add_variable(struct vmm_process *process, const char *name, const char *value)
{
        char **list = process->environment;

        while (*list)
                list++;
        if (asprintf(list, "%s=%s", name, value) < 0) {
                *list = NULL;
                return -ENOMEM;
        }
        return 0;
}

static int make_environment(struct vmm_process *process)
{
        const struct broker_options *options = &process->broker->options;
        char size[24];
        int r;

        process->environment = calloc(MAX_VARIABLES + 1, sizeof(*process->environment));
        if (!process->environment)
                return -ENOMEM;
        r = add_variable(process, "VHDD_CONTROL", options->control_path);
        if (r == 0)
                r = add_variable(process, "VHDD_NBD_SOCKET", options->nbd_paths[0]);
        if (r == 0)
                r = add_variable(process, "VHDD_STATE_DIR", options->state_dir);
        if (r == 0)
                r = add_variable(process, "VHDD_RUN_DIR", process->broker->run_dir);
        if (r == 0 && options->host_memory) {
                snprintf(size, sizeof(size), "%" PRIu64, options->host_memory);
                r = add_variable(process, "VHDD_HOST_MEMORY", size);
        }
        return r;
}

static int make(struct broker *broker, struct vmm_process **ret, struct error *err)
{
        struct vmm_process *process = calloc(1, sizeof(*process));
        _cleanup_free_ char *directory = NULL;

        if (!process)
                return fail(err, ENOMEM, "no memory for the vmm-host");
        pthread_mutex_init(&process->lock, NULL);
        process->broker = broker;
        process->pidfd = -1;
        process->stop_fd = eventfd(0, EFD_CLOEXEC);
        *ret = process;
        if (process->stop_fd < 0)
                return fail_os(err, errno, "cannot make an event descriptor");
        if (make_environment(process) < 0 ||
                asprintf(&process->lock_path, "%s/vmm/host.lock", broker->run_dir) < 0) {
                process->lock_path = NULL;
                return fail(err, ENOMEM, "no memory for the vmm-host");
        }
        directory = name_directory(process->lock_path);
        if (!directory)
                return fail(err, ENOMEM, "no memory for the vmm-host");
        if (mkdir(directory, 0700) < 0 && errno != EEXIST)
                return fail_os(err, errno, "cannot make the folder '%s'", directory);
        return 0;
}

int vmm_process_start(struct broker *broker, struct vmm_process **ret, struct error *err)
{
        struct vmm_process *process = NULL;
        int r;

        if (!broker->options.vmm_command)
                return 0;
        r = make(broker, &process, err);
        if (r == 0) {
                r = -pthread_create(&process->thread, NULL, keep_alive, process);
                if (r < 0)
                        fail_os(err, -r, "cannot start a thread for the vmm-host");
        }
        if (r < 0) {
                if (process)
                        process_free(process);
                return r;
        }
        *ret = process;
        return 0;
}

static void end(struct vmm_process *process, int pidfd, unsigned timeout_ms)
{
        int status;

        process_terminate(pidfd);
        if (process_wait(pidfd, (int)timeout_ms, &status))
                return;
        broker_log(process->broker, BROKER_LOG_ERROR, "vmm-host",
                "it did not end within %u ms and is killed; guests that run go on", timeout_ms);
        process_kill(pidfd);
        process_wait(pidfd, -1, &status);
}

struct vmm_process *vmm_process_stop(struct vmm_process *process, bool leave, unsigned timeout_ms)
{
        uint64_t one = 1;

        if (!process)
                return NULL;
        pthread_mutex_lock(&process->lock);
        process->stopping = true;
        pthread_mutex_unlock(&process->lock);
        if (write(process->stop_fd, &one, sizeof(one)) < 0)
                broker_log(process->broker, BROKER_LOG_ERROR, "vmm-host", "cannot wake its thread");
        pthread_join(process->thread, NULL);
        if (process->pidfd >= 0) {
                if (!leave)
                        end(process, process->pidfd, timeout_ms);
                close(process->pidfd);
        }
        process_free(process);
        return NULL;
}
