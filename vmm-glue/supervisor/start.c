/* SPDX-License-Identifier: Apache-2.0 */
/* start.c - a vm is switched on, from its disk or from saved memory.
 *
 *      S1  what it is to have: vm.show, disk.list; with memory: as it was when that was saved
 *      S2  which QEMU, which accelerator
 *      S3  vmm-host looks whether there is memory for it, and plugs its networks
 *      S4  QEMU is started, stopped as yet (-S); the daemon is told that the vm is on
 *      S5  its monitor answers
 *      S6  memory is loaded; disks that were attached after it was saved are added
 *      S7  a vm's own saved memory is removed, durably: after a cut it must not meet newer disks
 *      S8  the guest runs
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmm-glue/log.h"
#include "vmm-glue/supervisor/disks.h"
#include "vmm-glue/supervisor/internal.h"
#include "vmm-glue/supervisor/memory_image.h"

#define LINK_MS 10000
#define ROOM_MS                                                                                    \
        2000 /* what another vm has just given up is told to vmm-host by its own supervisor */
#define PLUG_MS 60000

enum phase { PREPARE, PLUGGING, SPAWN, CONNECT, LOADING, MORE_DISKS, GO };

struct start;

/* Outlives the operation, for an answer that comes too late. */
struct plugging {
        struct supervisor *supervisor;
        struct start *start; /* NULL: nobody waits */
};

struct start {
        struct qemu qemu;
        json_t *config, *more;
        int memory;  /* descriptor, or -1 */
        bool is_own; /* the vm's own saved memory */
        struct plugging *plugging;
        int64_t link_end_ms; /* until then vmm-host is waited for */
        int64_t room_end_ms; /* until then it is asked again when it has no memory */
        bool is_plugged;
        struct error plug_error;
        int fds[LINK_MAX_FDS];
        size_t n_fds, next_more;
        bool is_spawned;
};

static void close_fds(struct start *start)
{
        for (size_t i = 0; i < start->n_fds; i++)
                close(start->fds[i]);
        start->n_fds = 0;
}

static void start_free(void *data)
{
        struct start *start = data;

        if (start->plugging)
                start->plugging->start = NULL;
        close_fds(start);
        if (start->memory >= 0)
                close(start->memory);
        json_decref(start->config);
        json_decref(start->more);
        free(start);
}

/* --- S1, S2 --- */

static int look_at_daemon(struct supervisor *supervisor, json_t **ret, struct error *err)
{
        json_auto_t *shown = NULL, *disks = NULL;
        int r = connection_call(supervisor->connection, "vm.show",
                json_pack("{s:s}", "vm", supervisor->id), &shown, err);

        if (r == 0)
                r = connection_call(supervisor->connection, "disk.list",
                        json_pack("{s:s}", "vm", supervisor->id), &disks, err);
        if (r < 0)
                return r;
        supervisor_set_name(supervisor, json_string_value(json_object_get(shown, "name")));
        return config_from_daemon(shown, disks, ret, err);
}

static int choose_accel(struct supervisor *supervisor, struct start *start, struct error *err)
{
        const char *asked = json_string_value(json_object_get(start->config, "accel"));
        bool hyperv = json_is_true(json_object_get(start->config, "hyperv"));
        _cleanup_free_ char *cache = NULL;
        struct kvm_hyperv offered;
        struct kvm kvm;

        if (strcmp(asked, "tcg") == 0) {
                if (hyperv)
                        log_warning("without KVM there are no enlightenments for Hyper-V's guests");
                return 0;
        }
        if (asprintf(&cache, "%s/vmm", supervisor->options.run_dir) < 0)
                cache = NULL;
        kvm_try(&start->qemu, cache, &kvm);
        if (strcmp(asked, "kvm") == 0 && !kvm.works) {
                fail(err, ENOTSUP, "KVM does not run guests here: %s", kvm.why);
                error_set_hint(err, "vhdctl vm set '%s' --accel tcg", supervisor->name);
                return -ENOTSUP;
        }
        if (!kvm.works)
                log_info("emulates the processor, because KVM does not run guests here: %s",
                        kvm.why);
        json_object_set_new(start->config, "accel", json_string(kvm.works ? "kvm" : "tcg"));
        kvm_hyperv_look(&offered);
        if (hyperv && kvm.works && !(offered.is_there && offered.synic && offered.vp_index)) {
                log_warning("KVM does not offer Hyper-V's interfaces here: no enlightenments");
                json_object_set_new(start->config, "hyperv", json_false());
        } else if (hyperv && kvm.works) {
                json_object_set_new(start->config, "vmbus", json_true());
        }
        return 0;
}

static int check_screen(struct start *start, struct error *err)
{
        int r;

        if (strcmp(json_string_value(json_object_get(start->config, "display")), "spice") != 0)
                return 0;
        r = qemu_look(&start->qemu, err);
        if (r < 0 || start->qemu.has_spice)
                return r;
        fail(err, ENOTSUP, "'%s' has no SPICE", start->qemu.program);
        error_set_hint(err, "apt install qemu-system-modules-spice, or --display vnc");
        return -ENOTSUP;
}

static int open_own(struct supervisor *supervisor, struct start *start, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        int r = saved_check(supervisor, err);

        if (r == 0)
                r = saved_path(supervisor, &path, err);
        if (r < 0)
                return r;
        start->memory = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (start->memory < 0)
                return fail_os(err, errno, "cannot open the saved memory '%s'", path);
        start->is_own = true;
        return 0;
}

static int take_memory(struct supervisor *supervisor, struct operation *operation,
        struct start *start, struct error *err)
{
        json_auto_t *saved = NULL, *today = NULL;
        int r = 0;

        if (operation->n_fds > 0) {
                start->memory = operation->fds[0];
                operation->fds[0] = -1;
        } else if (supervisor->has_saved) {
                r = open_own(supervisor, start, err);
        }
        if (r < 0 || start->memory < 0)
                return r;
        r = memory_image_read(start->memory, &saved, err);
        if (r < 0)
                return r;
        today = TAKE_PTR(start->config);
        return config_for_memory(saved, today, json_object_get(operation->params, "disks"),
                &start->config, &start->more, err);
}

static int prepare(struct supervisor *supervisor, struct operation *operation, struct start *start,
        struct error *err)
{
        int r = 0;

        if (supervisor->is_ending)
                return fail(err, ESHUTDOWN, "the host ends");
        if (is_process_there(supervisor)) {
                fail(err, EBUSY, "vm '%s' is on already", supervisor->name);
                return -EBUSY;
        }
        if (operation_is_running(supervisor, "start", operation))
                return fail(err, EBUSY, "vm '%s' is being started", supervisor->name);
        r = look_at_daemon(supervisor, &start->config, err);
        if (r == 0)
                r = qemu_find(&start->qemu, err);
        if (r == 0)
                r = take_memory(supervisor, operation, start, err);
        if (r == 0)
                r = check_screen(start, err);
        if (r == 0 && start->memory < 0)
                r = choose_accel(supervisor, start, err);
        return r;
}

/* --- S3 --- */

/* A card that was taken away under the guest has left an empty place (null) in the saved list. */
static json_t *cards_to_plug(const json_t *networks)
{
        json_t *list = json_array(), *network;
        size_t i;

        json_array_foreach(networks, i, network)
        {
                if (!json_is_null(network))
                        json_array_append(list, network);
        }
        return list;
}

static int take_plugged(struct start *start, const json_t *plugged, struct error *err)
{
        json_t *networks = json_object_get(start->config, "networks"), *network;
        size_t n = 0, i;

        json_array_foreach(networks, i, network)
        {
                if (!json_is_null(network))
                        json_array_set(networks, i, json_array_get(plugged, n++));
        }
        return n == json_array_size(plugged)
                ? 0
                : fail(err, EPROTO, "not every network card was plugged");
}

static void on_plugged(
        void *opaque, const json_t *result, int *fds, size_t n_fds, const struct error *err)
{
        struct plugging *plugging = opaque;
        struct start *start = plugging->start;

        if (start) {
                start->plugging = NULL;
                start->is_plugged = true;
                if (!result)
                        start->plug_error = *err;
                else
                        take_plugged(
                                start, json_object_get(result, "networks"), &start->plug_error);
                memcpy(start->fds, fds, n_fds * sizeof(int));
                start->n_fds = n_fds;
                operations_kick(plugging->supervisor);
        }
        for (size_t i = 0; !start && i < n_fds; i++)
                close(fds[i]);
        free(plugging);
}

static int plug(struct supervisor *supervisor, struct start *start, struct error *err)
{
        json_auto_t *networks = cards_to_plug(json_object_get(start->config, "networks"));
        int r;

        if (!supervisor->link) {
                fail(err, ENXIO, "no vmm-host is there to plug the vm's networks in");
                error_set_hint(err, "it is started again by itself: try again");
                return -ENXIO;
        }
        start->plugging = calloc(1, sizeof(*start->plugging));
        if (!start->plugging)
                return fail(err, ENOMEM, "no memory to plug networks in");
        start->plugging->supervisor = supervisor;
        start->plugging->start = start;
        r = link_ask(supervisor->link, "plug",
                json_pack("{s:O, s:O}", "networks", networks, "startup",
                        json_object_get(start->config, "startup")),
                NULL, 0, PLUG_MS, on_plugged, start->plugging, err);
        if (r < 0) {
                free(start->plugging);
                start->plugging = NULL;
        }
        return r;
}

/* A vmm-host that is just coming has its time. Where none comes, a vm without cards needs none. */
static int plug_when_linked(struct supervisor *supervisor, struct start *start, struct error *err)
{
        json_auto_t *networks = cards_to_plug(json_object_get(start->config, "networks"));
        int r = plug(supervisor, start, err);

        if (r != -ENXIO)
                return r;
        if (monotonic_ms() >= start->link_end_ms && json_array_size(networks) > 0)
                return r;
        error_clear(err);
        if (monotonic_ms() >= start->link_end_ms) {
                log_warning("no vmm-host is there that knows how much memory the vms may have");
                start->is_plugged = true;
        }
        return 0;
}

/* --- S4, S5 --- */

static int spawn(struct supervisor *supervisor, struct start *start, struct error *err)
{
        const struct command_options options = {
                .program = start->qemu.program,
                .incoming = start->memory >= 0,
                .has_spice = start->qemu.has_spice,
                .fds = start->fds,
                .n_fds = start->n_fds,
        };
        int r = process_spawn(supervisor, start->config, &options, err);

        close_fds(start);
        if (r < 0)
                return r;
        start->is_spawned = true;
        agent_tell_on(supervisor);
        return 0;
}

static int note_machine(struct supervisor *supervisor, struct error *err)
{
        static const char suffix[] = "-machine";
        json_auto_t *type = NULL;
        _cleanup_free_ char *name = NULL;
        size_t n;
        int r = qmp_call(supervisor->qmp, "qom-get",
                json_pack("{s:s, s:s}", "path", "/machine", "property", "type"), &type, err);

        if (r < 0)
                return r;
        name = strdup(json_is_string(type) ? json_string_value(type) : "");
        n = name ? strlen(name) : 0;
        if (n <= strlen(suffix) || strcmp(name + n - strlen(suffix), suffix) != 0)
                return fail(err, EPROTO, "QEMU does not say what machine it is");
        name[n - strlen(suffix)] = '\0';
        json_object_set_new(supervisor->config, "machine", json_string(name));
        json_object_set_new(supervisor->config, "qemu", json_string(qmp_version(supervisor->qmp)));
        return process_note_config(supervisor, err);
}

/* --- S6 --- */

static int begin_loading(struct supervisor *supervisor, struct start *start, struct error *err)
{
        int r = qmp_call(supervisor->qmp, "migrate-set-capabilities",
                json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "events", "state", 1),
                NULL, err);

        supervisor->migration[0] = '\0';
        if (r == 0)
                r = qmp_call_with(supervisor->qmp, "getfd", json_pack("{s:s}", "fdname", "memory"),
                        start->memory, QMP_CALL_MS, NULL, err);
        if (r == 0)
                r = qmp_call(supervisor->qmp, "migrate-incoming",
                        json_pack("{s:s}", "uri", "fd:memory"), NULL, err);
        return r;
}

static int add_more_disks(struct supervisor *supervisor, struct start *start, struct error *err)
{
        while (start->next_more < json_array_size(start->more)) {
                int r = disk_plug(supervisor, json_array_get(start->more, start->next_more), err);

                if (r < 0)
                        return r;
                start->next_more++;
        }
        return 0;
}

/* --- S7, S8 --- */

static int go(struct supervisor *supervisor, struct start *start, json_t **ret, struct error *err)
{
        /* From here on there may be no other memory to start from. */
        int r = hold_set(supervisor, HOLD_PAUSE, err);

        if (r < 0)
                return r;
        if (start->is_own)
                saved_drop(supervisor);
        r = qmp_call(supervisor->qmp, "cont", NULL, NULL, err);
        if (r < 0)
                return r;
        hold_end(supervisor);
        supervisor->set_time = start->memory >= 0;
        machine_look(supervisor);
        *ret = json_pack("{s:i, s:s, s:O, s:b}", "pid", (int)supervisor->pid, "qemu",
                qmp_version(supervisor->qmp), "accel", json_object_get(supervisor->config, "accel"),
                "from-memory", start->memory >= 0);
        log_info("the guest runs (QEMU %s, %s)", qmp_version(supervisor->qmp),
                json_string_value(json_object_get(supervisor->config, "accel")));
        return 1;
}

static int ended_early(struct supervisor *supervisor, struct error *err)
{
        char words[320];

        if (supervisor->last_end &&
                strcmp(json_string_value(json_object_get(supervisor->last_end, "how")), "crash") !=
                        0)
                return fail(err, ECANCELED, "the vm was switched off while it started");
        process_last_words(supervisor, words, sizeof(words));
        return fail(err, EIO, "QEMU ended while the vm started: %s", words);
}

static int start_new(struct operation *operation, struct start **ret, struct error *err)
{
        struct start *start = calloc(1, sizeof(*start));

        if (!start)
                return fail(err, ENOMEM, "no memory to start a vm");
        start->memory = -1;
        operation->data = start;
        operation->free_data = start_free;
        *ret = start;
        return 0;
}

int step_start(
        struct supervisor *supervisor, struct operation *operation, json_t **ret, struct error *err)
{
        struct start *start = operation->data;
        int r;

        if (start && start->is_spawned && !is_process_there(supervisor))
                return ended_early(supervisor, err);
        switch ((enum phase)operation->phase) {
        case PREPARE:
                r = start_new(operation, &start, err);
                if (r == 0)
                        r = prepare(supervisor, operation, start, err);
                if (r < 0)
                        return r;
                operation->phase = PLUGGING;
                start->link_end_ms = monotonic_ms() + LINK_MS;
                start->room_end_ms = monotonic_ms() + ROOM_MS;
                __attribute__((fallthrough));
        case PLUGGING:
                r = start->is_plugged || start->plugging ? 0
                                                         : plug_when_linked(supervisor, start, err);
                if (r < 0)
                        return r;
                if (!start->is_plugged)
                        return 0;
                if (start->plug_error.code == ENOMEM && monotonic_ms() < start->room_end_ms) {
                        error_clear(&start->plug_error);
                        start->is_plugged = false;
                        return 0;
                }
                if (start->plug_error.code) {
                        *err = start->plug_error;
                        return err->code == EPIPE || err->code == ETIMEDOUT
                                ? fail_prefix(err, -err->code, "asking the vmm-host")
                                : -err->code;
                }
                operation->phase = SPAWN;
                __attribute__((fallthrough));
        case SPAWN:
                r = spawn(supervisor, start, err);
                if (r < 0)
                        return r;
                operation->phase = CONNECT;
                return 0;
        case CONNECT:
                r = machine_connect(supervisor, err);
                if (r == -EAGAIN)
                        return 0;
                if (r == 0)
                        r = note_machine(supervisor, err);
                if (r < 0)
                        return r;
                operation->phase = LOADING;
                r = start->memory >= 0 ? begin_loading(supervisor, start, err) : 0;
                if (r < 0)
                        return r;
                __attribute__((fallthrough));
        case LOADING:
                if (start->memory >= 0 && strcmp(supervisor->migration, "failed") == 0)
                        return fail(err, EIO, "QEMU cannot load the saved memory");
                if (start->memory >= 0 && strcmp(supervisor->migration, "completed") != 0)
                        return 0;
                operation->phase = MORE_DISKS;
                __attribute__((fallthrough));
        case MORE_DISKS:
                r = add_more_disks(supervisor, start, err);
                if (r == -EAGAIN)
                        return 0;
                if (r < 0)
                        return r;
                operation->phase = GO;
                __attribute__((fallthrough));
        case GO: return go(supervisor, start, ret, err);
        }
        return fail(err, EINVAL, "a start has lost its way");
}

void undo_start(struct supervisor *supervisor, struct operation *operation)
{
        struct start *start = operation->data;
        struct error err = ERROR_INIT;

        if (!start)
                return;
        if (start->is_spawned && is_process_there(supervisor)) {
                supervisor->saw_end = true;
                process_kill(supervisor); /* its end does the rest */
        } else if (start->is_plugged && !start->is_spawned && supervisor->link) {
                if (link_ask(supervisor->link, "unplug", json_object(), NULL, 0, PLUG_MS, NULL,
                            NULL, &err) < 0)
                        log_error(&err);
        }
}
