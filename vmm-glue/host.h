/* SPDX-License-Identifier: Apache-2.0 */
/* host.h - vmm-host: the one process that knows all vms that are run here, and what hangs on it.
 *
 * A vm whose settings have "memory" is run by us and gets a supervisor process, whether it is on or
 * off; without them it belongs to somebody else's VMM and is left alone. Supervisors outlive this
 * process: the next one finds them by their sockets.
 *
 *      no supervisor --spawned, or its socket is there--> connecting --hello--> linked --gone--> no supervisor
 *
 * What else vmm-host does is a module: the balancer, the switches. A module gets what supervisors tell
 * and ask, and has methods of the control API that the daemon hands on (vmm.request).
 *
 * Units      bytes; milliseconds where a name ends in _ms.
 * Ownership  host_new hands out, host_free ends. A host_vm lives as long as the vm is run by us; what it
 *            points to changes with every look at the daemon, so copy what is kept over a callback.
 * Errors     0 or -errno with one sentence.
 * Threads    all on the event loop's thread. No callback may block for long: some 100 ms for a plug.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/uuid.h"
#include "vmm-glue/connection.h"
#include "vmm-glue/link.h"
#include "vmm-glue/options.h"

struct host;

struct host_vm {
        struct host_vm *next;
        struct host *host;
        char id[UUID_TEXT_SIZE];
        char *name;
        json_t *settings;  /* as vm.show has them */
        bool is_gone;      /* removed, or not ours any more: the supervisor is to end */
        bool is_on;        /* the supervisor says that a QEMU runs */
        bool is_running;   /* and that the guest does: not paused, not saved, not stopped */
        struct link *link; /* NULL: there is no supervisor just now */
        /* host_vms.c's own */
        sd_event_source *retry, *child;
        unsigned n_deaths;
        bool has_started; /* since the last death: wait for its socket, start no other */
        unsigned n_tries;
        /* One pointer for each module, indexed by its place in host_modules[]: the module's own. */
        void *data[4];
};

/* A method of the control API that the daemon hands on. */
struct host_call;
struct host_method {
        const char *name; /* "memory.show" */
        /* 0 and a result (taken over), or -errno with one sentence; or -EINPROGRESS: then
         * host_call_answer() is called once, later. */
        int (*run)(void *module, struct host_call *call, const json_t *params, json_t **ret,
                struct error *err);
};

struct host_module {
        const char *name;
        size_t index; /* in host_vm.data */
        /* Required. @ret is handed to every other function. */
        int (*start)(struct host *host, void **ret, struct error *err);
        /* Required. Supervisors and their guests go on, or have ended. */
        void (*stop)(void *module);

        /* All others are optional. */

        /* Each second while a guest runs, as the supervisor tells it: {"startup", "max", "actual",
         * "plugged", "free", "total", "available", ...}, sizes in bytes. */
        void (*memory)(void *module, struct host_vm *vm, const json_t *note);
        /* The vm was switched on or off, paused or resumed (is_on, is_running), or its settings or its
         * name changed. Also once when it is first seen. */
        void (*changed)(void *module, struct host_vm *vm);
        /* It is not ours any more; @vm is freed behind this. */
        void (*forgotten)(void *module, struct host_vm *vm);

        /* A guest is about to start with so much memory that nobody can take from it. Refused with one sentence
         * where that cannot be. unplug() follows when it does not start after all. */
        int (*admit)(void *module, struct host_vm *vm, uint64_t startup, struct error *err);

        /* A guest with cards is about to start (or was adopted: @again, then only what is missing is made): one tap
         * for each member of @networks (schema.json's "network"). @ret is a list with one object for
         * each, in order: {"mac": TEXT, "descriptors": N, "vhost": M, ...}; @fds get all the descriptors
         * in the same order, first the N queues' taps, then the M /dev/vhost-net of each, at most
         * @max_fds. Descriptors are taken over. */
        int (*plug)(void *module, struct host_vm *vm, const json_t *networks, bool again,
                json_t **ret, int *fds, size_t max_fds, size_t *ret_n_fds, struct error *err);
        /* The guest has ended, or did not start. Also when there was nothing plugged. */
        void (*unplug)(void *module, struct host_vm *vm);

        /* The daemon's events of all kinds, {"type", "vm", ...}. */
        void (*event)(void *module, const char *type, const json_t *params);

        const struct host_method *methods; /* ended by {NULL}, or NULL */
};

/* All modules, ended by NULL: host_modules.c. */
extern const struct host_module *const host_modules[];

int host_new(const struct glue_options *options, struct host **ret, struct error *err);
/* Until SIGTERM has ended all guests, or SIGINT; supervisors go on after SIGHUP. */
int host_run(struct host *host, struct error *err);
struct host *host_free(struct host *host); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct host *, host_free)

/* --- what modules use --- */

sd_event *host_event(struct host *host);
/* True when all guests were ended, and nobody is to go on. */
bool host_is_ending(const struct host *host);
const struct glue_options *host_options(struct host *host);
/* The connection to the daemon: connection_call() waits for the answer. */
struct connection *host_connection(struct host *host);
struct host_vm *host_vms(struct host *host); /* the first; then ->next */
/* By name or id; NULL: none that is run by us. */
struct host_vm *host_vm_find(struct host *host, const char *name_or_id);
/* The data of the module in this vm. */
static inline void **host_vm_data(struct host_vm *vm, const struct host_module *module)
{
        return &vm->data[module->index];
}

/* @result is taken over; NULL: @err says why. */
void host_call_answer(struct host_call *call, json_t *result, const struct error *err);

/* Asks the vm's supervisor. @message and @reply as link_ask() has them.  -ENXIO there is none now */
int host_vm_ask(struct host_vm *vm, const char *verb, json_t *message, const int *fds, size_t n_fds,
        unsigned timeout_ms, link_reply_fn reply, void *opaque, struct error *err);
/* The guest's memory is to become @target bytes: the supervisor moves balloon and virtio-mem there, as
 * far as the guest lets it, and tells in "memory" notes how far it came. Nothing waits. */
int host_vm_set_memory(struct host_vm *vm, uint64_t target, struct error *err);
