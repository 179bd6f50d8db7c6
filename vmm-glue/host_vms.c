/* SPDX-License-Identifier: Apache-2.0 */
/* host_vms.c - which vms are run here, and their supervisors: started, found again, ended. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "vmm-glue/host_internal.h"
#include "vmm-glue/log.h"

#define SOCKET_NAME   "supervisor.sock"
#define RETRY_US      UINT64_C(50000)
#define RETRIES       200u /* of RETRY_US: how long a new supervisor may take to listen */
#define PAUSE_MOST_US UINT64_C(10000000)
#define HELLO_MS      10000u
#define ASK_MS        10000u
#define PLUG_MAX_FDS  LINK_MAX_FDS

static void vm_free(struct host_vm *vm)
{
        sd_event_source_disable_unref(vm->retry);
        sd_event_source_disable_unref(vm->child);
        link_free(vm->link);
        json_decref(vm->settings);
        free(vm->name);
        free(vm);
}

static void forget(struct host_vm *vm)
{
        struct host *host = vm->host;

        for (struct host_vm **p = &host->vms; *p; p = &(*p)->next)
                if (*p == vm) {
                        *p = vm->next;
                        break;
                }
        FOR_EACH_MODULE(host, i, module)
        {
                if (module->forgotten)
                        module->forgotten(host->modules[i], vm);
        }
        vm_free(vm);
        if (host->is_ending && !host->vms)
                sd_event_exit(host->event, 0);
}

static void tell_changed(struct host_vm *vm)
{
        FOR_EACH_MODULE(vm->host, i, module)
        {
                if (module->changed)
                        module->changed(vm->host->modules[i], vm);
        }
}

static void retry_in(struct host_vm *vm, uint64_t us)
{
        sd_event_source_set_time_relative(vm->retry, us);
        sd_event_source_set_enabled(vm->retry, SD_EVENT_ONESHOT);
}

/* --- a supervisor's process --- */

static void become_supervisor(const struct glue_options *options, const char *id)
        __attribute__((noreturn));
static void become_supervisor(const struct glue_options *options, const char *id)
{
        sigset_t none;

        /* It outlives us, and what a terminal or a service manager sends to our group. */
        setsid();
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execl(options->program, "vmm-host", "--supervise", id, "--control", options->control,
                "--run-dir", options->run_dir, "--state-dir", options->state_dir, (char *)NULL);
        _exit(127);
}

static int on_child(sd_event_source *source, const siginfo_t *info, void *opaque)
{
        struct host_vm *vm = opaque;
        bool failed = info->si_code != CLD_EXITED || info->si_status != 0;

        vm->child = sd_event_source_disable_unref(vm->child);
        vm->has_started = false;
        if (failed)
                log_warning("the supervisor of vm '%s' ended (%s %d)", vm->name,
                        info->si_code == CLD_EXITED ? "status" : "signal", info->si_status);
        return 0;
}

static int spawn(struct host_vm *vm, struct error *err)
{
        pid_t pid;
        int r = vm_folder_make(&vm->host->options, vm->id, err);

        if (r < 0)
                return r;
        pid = fork();
        if (pid < 0)
                return fail_os(err, errno, "cannot start a supervisor for vm '%s'", vm->name);
        if (pid == 0)
                become_supervisor(&vm->host->options, vm->id);
        r = sd_event_add_child(vm->host->event, &vm->child, pid, WEXITED, on_child, vm);
        if (r < 0)
                return fail_os(err, -r, "cannot watch the supervisor of vm '%s'", vm->name);
        vm->has_started = true;
        vm->n_tries = 0;
        return 0;
}

/* --- what it says --- */

static void tell_unplug(struct host_vm *vm)
{
        FOR_EACH_MODULE(vm->host, i, module)
        {
                if (module->unplug)
                        module->unplug(vm->host->modules[i], vm);
        }
}

static int admit(struct host_vm *vm, const json_t *startup, struct error *err)
{
        int r = 0;

        FOR_EACH_MODULE(vm->host, i, module)
        {
                if (r == 0 && json_is_integer(startup) && module->admit)
                        r = module->admit(vm->host->modules[i], vm,
                                (uint64_t)json_integer_value(startup), err);
        }
        return r;
}

static int plug(struct host_vm *vm, const json_t *networks, bool again, json_t **ret, int *fds,
        size_t *ret_n_fds, struct error *err)
{
        int r = fail(err, ENOSYS, "this vmm-host has no switches");

        if (json_array_size(networks) == 0) {
                error_clear(err);
                *ret = json_array();
                return 0;
        }
        FOR_EACH_MODULE(vm->host, i, module)
        {
                if (!module->plug)
                        continue;
                error_clear(err);
                r = module->plug(vm->host->modules[i], vm, networks, again, ret, fds, PLUG_MAX_FDS,
                        ret_n_fds, err);
        }
        return r < 0 ? fail_prefix(err, r, "cannot plug the vm's networks in") : 0;
}

static void answer_plug(struct host_vm *vm, struct link *link, json_int_t id, const json_t *message)
{
        struct error err = ERROR_INIT;
        int fds[PLUG_MAX_FDS];
        size_t n_fds = 0;
        json_t *list = NULL;
        int r = admit(vm, json_object_get(message, "startup"), &err);

        if (r == 0)
                r = plug(vm, json_object_get(message, "networks"),
                        json_is_true(json_object_get(message, "again")), &list, fds, &n_fds, &err);
        if (r < 0)
                link_refuse(link, id, &err);
        else
                link_answer(link, id, json_pack("{s:o}", "networks", list), fds, n_fds);
        for (size_t i = 0; r == 0 && i < n_fds; i++)
                close(fds[i]);
}

static void on_request(void *opaque, struct link *link, json_int_t id, const char *verb,
        const json_t *message, int *fds, size_t n_fds)
{
        struct host_vm *vm = opaque;
        struct error err = ERROR_INIT;

        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (strcmp(verb, "plug") == 0) {
                answer_plug(vm, link, id, message);
        } else if (strcmp(verb, "unplug") == 0) {
                tell_unplug(vm);
                link_answer(link, id, NULL, NULL, 0);
        } else {
                fail(&err, ENOSYS, "vmm-host does not know '%.64s'", verb);
                link_refuse(link, id, &err);
        }
}

static void take_state(struct host_vm *vm, const json_t *message)
{
        vm->is_on = json_is_true(json_object_get(message, "on"));
        vm->is_running = vm->is_on && json_is_true(json_object_get(message, "running"));
        tell_changed(vm);
}

static void on_note(void *opaque, struct link *link, const char *name, const json_t *message)
{
        struct host_vm *vm = opaque;

        if (strcmp(name, "state") == 0) {
                take_state(vm, message);
        } else if (strcmp(name, "memory") == 0) {
                FOR_EACH_MODULE(vm->host, i, module)
                {
                        if (module->memory)
                                module->memory(vm->host->modules[i], vm, message);
                }
        }
}

static void on_gone(void *opaque, struct link *link)
{
        struct host_vm *vm = opaque;
        uint64_t pause;

        vm->link = link_free(link);
        vm->is_on = vm->is_running = false;
        if (vm->is_gone || vm->host->is_ending) {
                forget(vm);
                return;
        }
        tell_changed(vm);
        pause = RETRY_US << (vm->n_deaths < 8 ? vm->n_deaths : 8);
        vm->n_deaths++;
        retry_in(vm, pause < PAUSE_MOST_US ? pause : PAUSE_MOST_US);
}

/* Off already: it ends at once. Else it shuts the guest down first (@shutdown), or waits for that. */
static void ask_end(struct host_vm *vm, bool shutdown)
{
        struct error err = ERROR_INIT;

        if (vm->link &&
                link_ask(vm->link, "end", json_pack("{s:b}", "shutdown", shutdown), NULL, 0, ASK_MS,
                        NULL, NULL, &err) < 0)
                log_error(&err);
}

static void on_hello(
        void *opaque, const json_t *result, int *fds, size_t n_fds, const struct error *err)
{
        struct host_vm *vm = opaque;

        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (!result)
                return; /* gone, or about to */
        vm->n_deaths = 0;
        take_state(vm, result);
}

/* --- finding it --- */

static int connect_link(struct host_vm *vm, struct error *err)
{
        const struct link_callbacks callbacks = {
                .request = on_request, .note = on_note, .gone = on_gone, .opaque = vm};
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        int r = vm_path(&vm->host->options, vm->id, SOCKET_NAME, &path, err);

        if (r == 0)
                r = link_connect(path, &fd, err);
        if (r == 0)
                r = link_new(vm->host->event, fd, &callbacks, &vm->link, err);
        if (r < 0)
                return r;
        TAKE_FD(fd);
        r = link_ask(vm->link, "hello", json_pack("{s:i}", "pid", (int)getpid()), NULL, 0, HELLO_MS,
                on_hello, vm, err);
        if (r < 0)
                vm->link = link_free(vm->link);
        else if (vm->is_gone || vm->host->is_ending)
                ask_end(vm, vm->host->is_ending);
        return r;
}

static bool is_nobody(int r)
{
        return r == -ENOENT || r == -ECONNREFUSED || r == -ENOTDIR;
}

static int on_retry(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct host_vm *vm = opaque;
        struct error err = ERROR_INIT;
        int r;

        if (vm->link)
                return 0;
        r = connect_link(vm, &err);
        if (r == 0)
                return 0;
        if (is_nobody(r) && (vm->is_gone || vm->host->is_ending)) {
                forget(vm);
                return 0;
        }
        if (is_nobody(r) && vm->has_started && vm->n_tries++ < RETRIES) {
                retry_in(vm, RETRY_US);
                return 0;
        }
        if (is_nobody(r) && !vm->has_started) {
                error_clear(&err);
                r = spawn(vm, &err);
                if (r == 0) {
                        vm->n_deaths++;
                        retry_in(vm, RETRY_US << (vm->n_deaths < 8 ? vm->n_deaths - 1 : 7));
                        return 0;
                }
        }
        log_error(&err);
        retry_in(vm, PAUSE_MOST_US);
        return 0;
}

/* --- the daemon's list --- */

static int vm_new(struct host *host, const char *id, struct host_vm **ret, struct error *err)
{
        struct host_vm *vm = calloc(1, sizeof(*vm));
        int r;

        if (!vm)
                return fail(err, ENOMEM, "no memory for a vm");
        vm->host = host;
        snprintf(vm->id, sizeof(vm->id), "%s", id);
        vm->settings = json_object();
        vm->name = strdup(id);
        r = sd_event_add_time_relative(
                host->event, &vm->retry, CLOCK_MONOTONIC, 0, 1000, on_retry, vm);
        if (r < 0 || !vm->settings || !vm->name) {
                vm_free(vm);
                return fail_os(err, r < 0 ? -r : ENOMEM, "cannot watch vm '%s'", id);
        }
        vm->next = host->vms;
        host->vms = vm;
        *ret = vm;
        return 0;
}

static struct host_vm *find_id(struct host *host, const char *id)
{
        for (struct host_vm *vm = host->vms; vm; vm = vm->next)
                if (strcmp(vm->id, id) == 0)
                        return vm;
        return NULL;
}

static int take_shown(struct host *host, const json_t *shown, struct error *err)
{
        const char *id = json_string_value(json_object_get(shown, "id"));
        const char *name = json_string_value(json_object_get(shown, "name"));
        json_t *settings = json_object_get(shown, "settings");
        struct host_vm *vm = find_id(host, id);
        bool is_new = !vm;
        char *copy;
        int r;

        if (is_new) {
                r = vm_new(host, id, &vm, err);
                if (r < 0)
                        return r;
        } else if (!vm->is_gone && strcmp(vm->name, name) == 0 &&
                json_equal(vm->settings, settings)) {
                return 0;
        }
        copy = strdup(name);
        if (!copy)
                return fail(err, ENOMEM, "no memory for a name");
        free(vm->name);
        vm->name = copy;
        json_decref(vm->settings);
        vm->settings = json_incref(settings);
        vm->is_gone = false;
        if (vm->link && !is_new)
                link_note(vm->link, "changed", json_pack("{s:s}", "name", name));
        tell_changed(vm);
        return 0;
}

static void let_go(struct host_vm *vm)
{
        if (vm->is_gone)
                return;
        vm->is_gone = true;
        ask_end(vm, false);
        if (!vm->link && !vm->has_started)
                retry_in(vm, 0);
}

static int show_all(struct host *host, const json_t *list, json_t *ours, struct error *err)
{
        json_t *item;
        size_t i;

        json_array_foreach(list, i, item)
        {
                json_auto_t *shown = NULL;
                const char *id = json_string_value(json_object_get(item, "id"));
                int r = connection_call(
                        host->connection, "vm.show", json_pack("{s:s}", "vm", id), &shown, err);

                if (r == -ENOENT) { /* removed meanwhile */
                        error_clear(err);
                        continue;
                }
                if (r < 0)
                        return r;
                if (!json_is_object(json_object_get(json_object_get(shown, "settings"), "memory")))
                        continue;
                json_object_set_new(ours, id, json_true());
                r = take_shown(host, shown, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Supervisors of vms that were removed while no vmm-host was there to see it. */
static void find_forgotten(struct host *host)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_dir_ DIR *dir = NULL;
        const struct dirent *entry;
        uint8_t id[16];

        if (asprintf(&path, "%s/vmm", host->options.run_dir) < 0)
                path = NULL;
        dir = path ? opendir(path) : NULL;
        while (dir && (entry = readdir(dir))) {
                struct host_vm *vm;

                if (strlen(entry->d_name) == UUID_TEXT_SIZE - 1 && uuid_parse(entry->d_name, id) &&
                        !find_id(host, entry->d_name) &&
                        vm_new(host, entry->d_name, &vm, NULL) == 0)
                        vm->is_gone = true;
        }
}

int host_vms_look(struct host *host, struct error *err)
{
        json_auto_t *list = NULL, *ours = json_object();
        struct host_vm *next;
        int r;

        if (host->is_ending)
                return 0;
        r = connection_call(host->connection, "vm.list", NULL, &list, err);
        if (r == 0)
                r = show_all(host, list, ours, err);
        if (r < 0)
                return r;
        for (struct host_vm *vm = host->vms; vm; vm = next) {
                next = vm->next;
                if (!json_object_get(ours, vm->id))
                        let_go(vm);
        }
        if (!host->has_looked)
                find_forgotten(host);
        host->has_looked = true;
        return 0;
}

void host_vms_end(struct host *host)
{
        struct host_vm *next;

        for (struct host_vm *vm = host->vms; vm; vm = next) {
                next = vm->next;
                ask_end(vm, true);
                if (!vm->link && !vm->has_started)
                        retry_in(vm, 0);
        }
        if (!host->vms)
                sd_event_exit(host->event, 0);
}

void host_vms_free(struct host *host)
{
        while (host->vms) {
                struct host_vm *vm = host->vms;

                host->vms = vm->next;
                FOR_EACH_MODULE(host, i, module)
                {
                        if (module->forgotten)
                                module->forgotten(host->modules[i], vm);
                }
                vm_free(vm);
        }
}

/* --- what modules use --- */

int host_vm_ask(struct host_vm *vm, const char *verb, json_t *message, const int *fds, size_t n_fds,
        unsigned timeout_ms, link_reply_fn reply, void *opaque, struct error *err)
{
        if (!vm->link) {
                json_decref(message);
                return fail(err, ENXIO, "vm '%s' has no supervisor just now", vm->name);
        }
        return link_ask(vm->link, verb, message, fds, n_fds, timeout_ms, reply, opaque, err);
}

int host_vm_set_memory(struct host_vm *vm, uint64_t target, struct error *err)
{
        return host_vm_ask(vm, "set-memory", json_pack("{s:I}", "target", (json_int_t)target), NULL,
                0, ASK_MS, NULL, NULL, err);
}
