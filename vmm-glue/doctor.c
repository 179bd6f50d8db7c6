/* SPDX-License-Identifier: Apache-2.0 */
/* doctor.c - what host and QEMU offer is looked at by a child of vmm-host: some of it takes seconds. */
#include "vmm-glue/doctor.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vmm-glue/qemu.h"

#define LOOK_LIMIT_US UINT64_C(60000000)
#define DESCRIBE_MS   5000
#define OUTPUT_MAX    65536

struct doctor {
        struct host *host;
};

/* A vm.doctor that is under way. */
struct visit {
        struct doctor *doctor;
        struct host_call *call;
        char *vm; /* its id, or NULL */
        sd_event_source *io, *child, *limit;
        int fd;
        char text[OUTPUT_MAX];
        size_t length;
        json_t *checks;
};

/* --- in the child --- */

static void add(json_t *checks, const char *name, bool ok, const char *hint, const char *format,
        ...) __attribute__((format(printf, 5, 6)));
static void add(
        json_t *checks, const char *name, bool ok, const char *hint, const char *format, ...)
{
        _cleanup_free_ char *text = NULL;
        va_list args;

        va_start(args, format);
        if (vasprintf(&text, format, args) < 0)
                text = NULL;
        va_end(args);
        json_array_append_new(checks,
                json_pack("{s:s, s:b, s:s, s:s?}", "name", name, "ok", ok, "message",
                        text ? text : "", "hint", ok ? NULL : hint));
}

static void check_hyperv(json_t *checks, const struct qemu *qemu, bool kvm_works)
{
        struct kvm_hyperv hyperv;
        bool all;

        kvm_hyperv_look(&hyperv);
        all = kvm_works && hyperv.is_there && hyperv.synic && hyperv.vp_index;
        add(checks, "hyperv", all, "guests run without --hyperv; see docs/vmm.md",
                all ? "KVM offers Hyper-V's interfaces: --hyperv turns the enlightenments on"
                    : "KVM does not offer Hyper-V's interfaces (hypercalls %s, synthetic interrupts %s, "
                      "processor index %s)",
                hyperv.is_there ? "yes" : "no", hyperv.synic ? "yes" : "no",
                hyperv.vp_index ? "yes" : "no");
        add(checks, "vmbus-bridge", all, "it needs KVM's Hyper-V interfaces",
                all ? "guests with --hyperv get a VMBus"
                    : "no VMBus for guests: QEMU builds one on KVM's Hyper-V interfaces only");
        add(checks, "hv-balloon", all && qemu->has_hv_balloon, "it comes with QEMU 8.2",
                qemu->has_hv_balloon ? "this QEMU has Hyper-V's balloon"
                                     : "this QEMU has no Hyper-V balloon; virtio's is used");
}

static void check_qemu(json_t *checks, const char *cache)
{
        struct error err = ERROR_INIT;
        struct qemu qemu;
        struct kvm kvm;
        int r = qemu_find(&qemu, &err);

        if (r == 0)
                r = qemu_look(&qemu, &err);
        if (r < 0) {
                add(checks, "qemu", false, err.hint[0] ? err.hint : NULL, "%s", err.message);
                return;
        }
        add(checks, "qemu", true, NULL, "'%s' is QEMU %s", qemu.program, qemu.version);
        kvm_try(&qemu, cache, &kvm);
        add(checks, "kvm", kvm.works, "guests are emulated (--accel tcg), which is slow",
                kvm.works ? "KVM runs guests" : "KVM does not run guests here: %s", kvm.why);
        check_hyperv(checks, &qemu, kvm.works);
        add(checks, "spice", qemu.has_spice, "apt install qemu-system-modules-spice",
                qemu.has_spice ? "--display spice is possible" : "this QEMU has no SPICE");
}

static bool in_path(const char *name)
{
        const char *path = getenv("PATH");
        char full[4096];

        while (path && *path) {
                size_t n = strcspn(path, ":");

                snprintf(full, sizeof(full), "%.*s/%s", (int)n, path, name);
                if (n > 0 && access(full, X_OK) == 0)
                        return true;
                path += n + (path[n] == ':');
        }
        snprintf(full, sizeof(full), "/usr/sbin/%s", name);
        return access(full, X_OK) == 0;
}

static void check_host(json_t *checks)
{
        struct error err = ERROR_INIT;
        bool ok = userfaultfd_try(&err) == 0;
        bool ovs = in_path("ovs-vswitchd");

        add(checks, "background-save", ok,
                "run as root, or sysctl vm.unprivileged_userfaultfd=1; else guests stand still while "
                "their memory is saved",
                ok ? "memory is saved while the guest runs" : "%s", err.message);
        ok = access("/dev/vhost-net", R_OK | W_OK) == 0;
        add(checks, "vhost-net", ok, "modprobe vhost_net; else QEMU itself carries the packets",
                ok ? "the kernel carries guests' packets" : "/dev/vhost-net: %s", strerror(errno));
        add(checks, "open-vswitch", ovs, "apt install openvswitch-switch",
                ovs ? "switches are possible" : "ovs-vswitchd is not installed");
        ok = access("/sys/module/openvswitch", F_OK) == 0;
        add(checks, "open-vswitch-kernel", ok, "modprobe openvswitch; else a user-space datapath",
                ok ? "the kernel switches packets"
                   : "the kernel has no Open vSwitch datapath: packets pass through user space");
}

static void look(int fd, const char *cache) __attribute__((noreturn));
static void look(int fd, const char *cache)
{
        json_t *checks = json_array();
        sigset_t none;

        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        check_qemu(checks, cache);
        check_host(checks);
        _exit(json_dumpfd(checks, fd, JSON_COMPACT) < 0);
}

/* --- in vmm-host --- */

static void visit_free(struct visit *visit)
{
        sd_event_source_disable_unref(visit->io);
        sd_event_source_disable_unref(visit->child);
        sd_event_source_disable_unref(visit->limit);
        if (visit->fd >= 0)
                close(visit->fd);
        json_decref(visit->checks);
        free(visit->vm);
        free(visit);
}

static void answer(struct visit *visit)
{
        host_call_answer(visit->call, json_pack("{s:O}", "checks", visit->checks), NULL);
        visit_free(visit);
}

static void add_vm(json_t *checks, const json_t *described)
{
        const json_t *guest = json_object_get(described, "guest");
        const char *state = json_string_value(json_object_get(described, "state"));
        const char *beat = json_string_value(json_object_get(guest, "heartbeat"));
        const char *end = json_string_value(
                json_object_get(json_object_get(described, "last-end"), "message"));
        bool runs = state && strcmp(state, "running") == 0;
        bool agent = json_is_true(json_object_get(guest, "agent"));

        add(checks, "vm", runs, "vhdctl vm start, or vm resume", "it is %s%s%s",
                state ? state : "?", end ? "; its last end: " : "", end ? end : "");
        add(checks, "guest-agent", agent, "install qemu-guest-agent in the guest",
                agent ? "the guest's agent answers: heartbeat, shutdown, time, freeze"
                      : "no agent of the guest answers (heartbeat: %s)",
                beat ? beat : "none");
}

static void on_described(
        void *opaque, const json_t *result, int *fds, size_t n_fds, const struct error *err)
{
        struct visit *visit = opaque;

        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (result)
                add_vm(visit->checks, result);
        else
                add(visit->checks, "vm", false, NULL, "%s", err->message);
        answer(visit);
}

static void end_visit(struct visit *visit)
{
        struct host_vm *vm = visit->vm ? host_vm_find(visit->doctor->host, visit->vm) : NULL;
        struct error err = ERROR_INIT;

        visit->checks = json_loadb(visit->text, visit->length, 0, NULL);
        if (!json_is_array(visit->checks)) {
                fail(&err, EIO, "looking at the host broke off");
                host_call_answer(visit->call, NULL, &err);
                visit_free(visit);
                return;
        }
        if (!visit->vm) {
                answer(visit);
                return;
        }
        if (!vm)
                fail(&err, ENOENT, "the vm is not there any more");
        else if (host_vm_ask(vm, "describe", json_object(), NULL, 0, DESCRIBE_MS, on_described,
                         visit, &err) == 0)
                return;
        add(visit->checks, "vm", false, NULL, "%s", err.message);
        answer(visit);
}

static int on_output(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
        struct visit *visit = opaque;
        ssize_t n = read(fd, visit->text + visit->length, sizeof(visit->text) - visit->length);

        if (n > 0) {
                visit->length += (size_t)n;
                return 0;
        }
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        visit->io = sd_event_source_disable_unref(visit->io);
        visit->limit = sd_event_source_disable_unref(visit->limit);
        end_visit(visit);
        return 0;
}

static int on_child(sd_event_source *source, const siginfo_t *info, void *opaque)
{
        return 0; /* its output says all; this only takes it off the list */
}

static int on_limit(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct visit *visit = opaque;

        sd_event_source_send_child_signal(visit->child, SIGKILL, NULL, 0);
        return 0;
}

static int send_child(struct visit *visit, struct error *err)
{
        struct host *host = visit->doctor->host;
        _cleanup_free_ char *cache = NULL;
        int pipes[2], r;
        pid_t pid;

        if (asprintf(&cache, "%s/vmm", host_options(host)->run_dir) < 0) {
                cache = NULL;
                return fail(err, ENOMEM, "no memory for a path");
        }
        if (pipe2(pipes, O_CLOEXEC) < 0)
                return fail_os(err, errno, "cannot make a pipe");
        pid = fork();
        if (pid == 0)
                look(pipes[1], cache);
        close(pipes[1]);
        visit->fd = pipes[0];
        if (pid < 0)
                return fail_os(err, errno, "cannot start a process");
        fcntl(visit->fd, F_SETFL, O_NONBLOCK);
        r = sd_event_add_child(host_event(host), &visit->child, pid, WEXITED, on_child, NULL);
        if (r >= 0) /* ended and reaped with the visit */
                r = sd_event_source_set_child_process_own(visit->child, true);
        if (r >= 0)
                r = sd_event_add_io(
                        host_event(host), &visit->io, visit->fd, EPOLLIN, on_output, visit);
        if (r >= 0)
                r = sd_event_add_time_relative(host_event(host), &visit->limit, CLOCK_MONOTONIC,
                        LOOK_LIMIT_US, 0, on_limit, visit);
        return r < 0 ? fail_os(err, -r, "cannot watch a process") : 0;
}

static int find_vm(
        struct doctor *doctor, const json_t *params, struct host_vm **ret, struct error *err)
{
        const char *name = json_string_value(json_object_get(params, "vm"));
        struct host_vm *vm = name ? host_vm_find(doctor->host, name) : NULL;

        if (!vm) {
                fail(err, ENOENT, "vm '%s' is not run by this host's vmm-host", name ? name : "");
                error_set_hint(err, "vhdctl vm set '%s' --memory startup=512M", name ? name : "VM");
                return -err->code;
        }
        *ret = vm;
        return 0;
}

/* Where its screen is, as a viewer wants it; null: it has none. */
static json_t *display_of(struct doctor *doctor, struct host_vm *vm)
{
        const char *kind = json_string_value(json_object_get(vm->settings, "display"));
        const struct glue_options *options = host_options(doctor->host);

        if (kind && strcmp(kind, "vnc") == 0)
                return json_sprintf("vnc+unix://%s/vmm/%s/vnc.sock", options->run_dir, vm->id);
        if (kind && strcmp(kind, "spice") == 0)
                return json_sprintf("spice+unix://%s/vmm/%s/spice.sock", options->run_dir, vm->id);
        return json_null();
}

static int vm_console(
        void *module, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct doctor *doctor = module;
        _cleanup_free_ char *path = NULL;
        struct host_vm *vm = NULL;
        int r = find_vm(doctor, params, &vm, err);

        if (r == 0)
                r = vm_path(host_options(doctor->host), vm->id, "console.sock", &path, err);
        /* One that was started just now is on although its supervisor's word of it is still under way. */
        if (r == 0 && !vm->is_on && access(path, F_OK) < 0)
                r = fail(err, ENXIO, "vm '%s' is off, so it has no console", vm->name);
        if (r < 0)
                return r;
        *ret = json_pack("{s:s, s:s, s:o}", "vm", vm->name, "socket", path, "display",
                display_of(doctor, vm));
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

static int vm_doctor(
        void *module, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        struct doctor *doctor = module;
        struct host_vm *vm = NULL;
        struct visit *visit;
        int r = json_object_get(params, "vm") ? find_vm(doctor, params, &vm, err) : 0;

        if (r < 0)
                return r;
        visit = calloc(1, sizeof(*visit));
        if (!visit)
                return fail(err, ENOMEM, "no memory to look at the host");
        visit->doctor = doctor;
        visit->call = call;
        visit->fd = -1;
        visit->vm = vm ? strdup(vm->id) : NULL;
        r = send_child(visit, err);
        if (r < 0) {
                visit_free(visit);
                return r;
        }
        return -EINPROGRESS;
}

static int start(struct host *host, void **ret, struct error *err)
{
        struct doctor *doctor = calloc(1, sizeof(*doctor));

        if (!doctor)
                return fail(err, ENOMEM, "no memory for a module");
        doctor->host = host;
        *ret = doctor;
        return 0;
}

static void stop(void *module)
{
        free(module);
}

static const struct host_method methods[] = {
        {"vm.console", vm_console},
        {"vm.doctor", vm_doctor},
        {NULL, NULL},
};

const struct host_module doctor_module = {
        .name = "doctor",
        .index = 0,
        .start = start,
        .stop = stop,
        .methods = methods,
};
