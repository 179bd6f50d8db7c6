/* SPDX-License-Identifier: Apache-2.0 */
/* memory.c - one step of the balancer each second. */
#include "vmm-glue/memory/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/size.h"
#include "vmm-glue/log.h"
#include "vmm-glue/memory/guest.h"
#include "vmm-glue/memory/host_memory.h"
#include "vmm-glue/memory/memory_show.h"
#include "vmm-glue/supervisor/supervisor.h"

#define STEP_US UINT64_C(1000000)

static struct memory_guest *guest_of(struct host_vm *vm)
{
        return *host_vm_data(vm, &memory_module);
}

static uint64_t now_us(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* What the vm's QEMU occupies. 0: there is none, or nobody knows. */
static uint64_t occupied_by(struct memory *memory, const struct host_vm *vm)
{
        pid_t pid = supervisor_qemu_of(host_options(memory->host), vm->id);
        uint64_t size;

        return pid > 0 && host_memory_of(pid, &size, NULL) == 0 ? size : 0;
}

/* --- who takes part --- */

struct part {
        struct host_vm *vm;
        struct memory_guest *guest;
};

static int compare_ids(const void *a, const void *b)
{
        return strcmp(((const struct part *)a)->vm->id, ((const struct part *)b)->vm->id);
}

/* The guests that are on, always in the same order: who gets a block that does not divide stays so. */
static size_t gather(struct memory *memory, struct part *parts)
{
        size_t n = 0;

        for (struct host_vm *vm = host_vms(memory->host); vm && n < MEMORY_MAX_VMS; vm = vm->next) {
                struct memory_guest *guest = guest_of(vm);

                /* A supervisor that does not answer: its guest's memory is not free for that. */
                if (guest && !guest->is_known)
                        memory_guest_guess(guest, occupied_by(memory, vm));
                if (guest && guest->is_on)
                        parts[n++] = (struct part){vm, guest};
        }
        qsort(parts, n, sizeof(*parts), compare_ids);
        return n;
}

static bool is_awaited(struct memory *memory, uint64_t now)
{
        for (struct host_vm *vm = host_vms(memory->host); vm; vm = vm->next) {
                const struct memory_guest *guest = guest_of(vm);

                if (guest && memory_guest_is_awaited(guest, now))
                        return true;
        }
        return false;
}

/* --- the budget --- */

/* Without a word about it: what the host could give. What cannot be read leaves it as it was. */
static uint64_t find_budget(struct memory *memory, struct part *parts, size_t n)
{
        const struct glue_options *options = host_options(memory->host);
        struct host_memory host;
        struct error err = ERROR_INIT;
        uint64_t resident = 0;

        if (options->host_memory > 0)
                return options->host_memory;
        for (size_t i = 0; i < n; i++) {
                uint64_t occupied = occupied_by(memory, parts[i].vm);

                resident += occupied > 0 ? occupied : parts[i].guest->assigned;
        }
        if (host_memory_read(&host, &err) < 0) {
                log_error(&err);
                return memory->last.budget;
        }
        return host_memory_settle(memory->last.budget, host_memory_budget(&host, resident));
}

/* --- may it start? --- */

static int refuse(struct memory *memory, const struct host_vm *vm, uint64_t startup,
        uint64_t budget, uint64_t kept, size_t n, struct error *err)
{
        const char *from = host_options(memory->host)->host_memory > 0
                ? "--host-memory"
                : "what the host has to give";
        char need[SIZE_TEXT_MAX], all[SIZE_TEXT_MAX], size[SIZE_TEXT_MAX], others[96] = "";

        if (n > 0)
                snprintf(others, sizeof(others), ", %zu other vm%s with %s", n, n == 1 ? "" : "s",
                        size_to_text(kept, size));
        fail(err, ENOMEM, "vm '%s' starts with %s%s, and all together may have %s (%s)", vm->name,
                size_to_text(startup, need), others, size_to_text(budget, all), from);
        error_set_hint(err,
                "stop or save another vm, lower its memory (vhdctl vm set VM --memory startup=SIZE), or "
                "give all more (--host-memory)");
        return -ENOMEM;
}

/* What the others have above their startup memory they give back; that itself they keep. */
static int admit(void *module, struct host_vm *vm, uint64_t startup, struct error *err)
{
        static struct part parts[MEMORY_MAX_VMS];
        struct memory *memory = module;
        struct memory_guest *guest = guest_of(vm);
        uint64_t budget = find_budget(memory, parts, gather(memory, parts)), kept = 0;
        size_t n = 0;

        for (struct host_vm *other = host_vms(memory->host); other; other = other->next) {
                uint64_t keeps =
                        other != vm && guest_of(other) ? memory_guest_keeps(guest_of(other)) : 0;

                kept += keeps;
                n += keeps > 0;
        }
        if (startup > budget || kept > budget - startup)
                return refuse(memory, vm, startup, budget, kept, n, err);
        if (guest)
                guest->admitted = startup;
        return 0;
}

/* Its end is told by changed(), too; that it did not start is not. */
static void unplug(void *module, struct host_vm *vm)
{
        if (guest_of(vm))
                guest_of(vm)->admitted = 0;
}

/* --- asking --- */

static void tell_held(const struct part *part)
{
        bool up = part->guest->follow.up;

        log_warning(
                "vm '%s' does not %s: it was asked to come to %llu MiB, and has %llu MiB; it is "
                "asked again in %llu s",
                part->vm->name, up ? "take more memory" : "give memory back",
                (unsigned long long)(part->guest->follow.asked >> 20),
                (unsigned long long)(part->guest->assigned >> 20),
                (unsigned long long)(part->guest->follow.ms / 1000));
}

static void look(struct part *part, uint64_t elapsed_ms, uint64_t now)
{
        struct memory_follow *follow = &part->guest->follow;
        bool was_held = follow->state == FOLLOW_HELD;

        if (!memory_guest_can_be_asked(part->guest, now))
                return; /* time in which it cannot do anything does not count */
        memory_follow_look(follow, part->guest->assigned, elapsed_ms);
        if (!was_held && follow->state == FOLLOW_HELD)
                tell_held(part);
}

static uint64_t between(const struct memory_settings *settings, uint64_t size)
{
        uint64_t top = memory_settings_top(settings);

        if (size < settings->startup)
                return settings->startup;
        return size < top ? size : top;
}

static void ask(struct memory *memory, struct part *part, bool eager, uint64_t now)
{
        struct memory_guest *guest = part->guest;
        uint64_t before = guest->follow.asked > 0 ? guest->follow.asked : guest->assigned, size;
        struct error err = ERROR_INIT;

        if (!memory_guest_can_be_asked(guest, now) || !guest->demand.known ||
                !memory_follow_ask(&guest->follow, guest->assigned, guest->step.goal, eager, &size))
                return;
        /* To stay where it is can be less or more than what it may be asked for: a balloon that gave way. */
        size = between(&guest->step.settings, size);
        if (host_vm_set_memory(part->vm, size, &err) < 0) {
                memory_follow_failed(&guest->follow);
                log_error(&err);
                return;
        }
        if (size > before) {
                guest->n_added++;
                memory->n_added++;
        } else {
                guest->n_removed++;
                memory->n_removed++;
        }
}

/* Somebody is to have more, and it is not there yet: then every block that can come back counts. */
static bool is_wanting(const struct memory_vm *vms, size_t n)
{
        for (size_t i = 0; i < n; i++)
                if (vms[i].goal < vms[i].target)
                        return true;
        return false;
}

static void step(struct memory *memory)
{
        static struct part parts[MEMORY_MAX_VMS];
        static struct memory_vm vms[MEMORY_MAX_VMS];
        uint64_t now = now_us(), elapsed_ms = (now - memory->stepped_us) / 1000;
        size_t n = gather(memory, parts);
        bool eager, early = is_awaited(memory, now);
        struct memory_host host = {.budget = find_budget(memory, parts, n)};

        for (size_t i = 0; i < n; i++) {
                look(&parts[i], elapsed_ms, now);
                vms[i] = memory_guest_to_vm(parts[i].guest, now);
        }
        memory_balance(&host, vms, n);
        memory->last = host;
        if (early)
                host.available = 0;
        memory_grant(&host, vms, n);
        eager = !early && is_wanting(vms, n);
        for (size_t i = 0; i < n; i++) {
                parts[i].guest->step = vms[i];
                parts[i].guest->step_now = parts[i].guest->demand.now;
                ask(memory, &parts[i], eager, now);
        }
        memory->stepped_us = now;
        memory->n_steps++;
}

static int on_time(sd_event_source *source, uint64_t usec, void *opaque)
{
        step(opaque);
        sd_event_source_set_time_relative(source, STEP_US);
        return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

/* --- the module --- */

static int start(struct host *host, void **ret, struct error *err)
{
        struct memory *memory = calloc(1, sizeof(*memory));
        int r;

        if (!memory)
                return fail(err, ENOMEM, "no memory for the balancer");
        memory->host = host;
        memory->stepped_us = now_us();
        r = sd_event_add_time_relative(
                host_event(host), &memory->timer, CLOCK_MONOTONIC, 0, 1000, on_time, memory);
        if (r < 0) {
                free(memory);
                return fail_os(err, -r, "cannot wake the balancer");
        }
        *ret = memory;
        return 0;
}

static void stop(void *module)
{
        struct memory *memory = module;

        sd_event_source_disable_unref(memory->timer);
        free(memory);
}

static void changed(void *module, struct host_vm *vm)
{
        void **data = host_vm_data(vm, &memory_module);

        if (!*data)
                *data = calloc(1, sizeof(struct memory_guest));
        if (*data) /* else it is not balanced: what it has it keeps */
                memory_guest_changed(
                        *data, vm->settings, vm->is_on, vm->is_running, !vm->link, now_us());
}

static void told(void *module, struct host_vm *vm, const json_t *note)
{
        struct memory *memory = module;
        struct memory_guest *guest = guest_of(vm);

        if (guest && guest->is_on)
                memory_guest_told(guest, note, now_us(), &memory->added, &memory->removed);
}

static void forgotten(void *module, struct host_vm *vm)
{
        void **data = host_vm_data(vm, &memory_module);

        free(*data);
        *data = NULL;
}

static int show(
        void *module, struct host_call *call, const json_t *params, json_t **ret, struct error *err)
{
        return memory_show(
                module, json_string_value(json_object_get(params, "vm")), &memory_module, ret, err);
}

static const struct host_method methods[] = {{"memory.show", show}, {NULL, NULL}};

const struct host_module memory_module = {
        .name = "memory",
        .index = 2,
        .start = start,
        .stop = stop,
        .memory = told,
        .changed = changed,
        .forgotten = forgotten,
        .admit = admit,
        .unplug = unplug,
        .methods = methods,
};
