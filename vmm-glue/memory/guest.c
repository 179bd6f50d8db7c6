/* SPDX-License-Identifier: Apache-2.0 */
/* guest.c - notes of a supervisor, and what the balancer makes of them. */
#include "vmm-glue/memory/guest.h"

/* A guest that has said nothing for so long is not asked for anything. */
#define FRESH_US   UINT64_C(10000000)
#define AWAITED_US UINT64_C(10000000)

static uint64_t least(uint64_t a, uint64_t b)
{
        return a < b ? a : b;
}

static uint64_t most(uint64_t a, uint64_t b)
{
        return a > b ? a : b;
}

static bool has(const json_t *note, const char *key)
{
        return json_is_integer(json_object_get(note, key));
}

/* A size out of a note; nobody has more than the largest vm. */
static uint64_t size_of(const json_t *note, const char *key)
{
        json_int_t value = json_integer_value(json_object_get(note, key));

        return value < 0 ? 0 : least((uint64_t)value, MEMORY_MAX_SIZE);
}

static uint64_t count_of(const json_t *note, const char *key)
{
        json_int_t value = json_integer_value(json_object_get(note, key));

        return value < 0 ? 0 : (uint64_t)value;
}

/* What concerns the guest that has ended. */
static void forget_guest(struct memory_guest *guest, uint64_t now_us)
{
        *guest = (struct memory_guest){.settings = guest->settings,
                .is_known = true,
                .since_us = now_us,
                .admitted = guest->admitted};
}

void memory_guest_changed(struct memory_guest *guest, const json_t *settings, bool is_on,
        bool is_running, bool is_lost, uint64_t now_us)
{
        guest->settings = memory_settings_from_json(json_object_get(settings, "memory"));
        guest->is_running = is_running && !is_lost;
        if (guest->since_us == 0)
                guest->since_us = now_us;
        if (is_lost || is_on) /* there is nobody who starts it, or it has started */
                guest->admitted = 0;
        if (is_lost)
                return;
        if (!is_on || !guest->is_on || !guest->is_known)
                forget_guest(guest, now_us);
        guest->is_on = is_on;
        guest->is_running = is_running;
}

bool memory_guest_is_awaited(const struct memory_guest *guest, uint64_t now_us)
{
        bool is_silent = !guest->is_known || (guest->is_on && !guest->has_told);

        return is_silent && now_us - guest->since_us < AWAITED_US;
}

static void take_demand(struct memory_guest *guest, const json_t *note, uint64_t elapsed_ms)
{
        uint64_t given = guest->startup + size_of(note, "plugged");
        const struct demand_stats stats = {
                .startup = guest->startup,
                .given = given,
                .inflated = given > guest->assigned ? given - guest->assigned : 0,
                .total = size_of(note, "total"),
                .available = size_of(note, "available"),
                .swapped_in = count_of(note, "swap-in"),
                .major_faults = count_of(note, "major-faults"),
        };

        if (has(note, "total") && has(note, "available") && stats.total > 0)
                demand_update(&guest->demand, &stats, elapsed_ms);
}

void memory_guest_told(struct memory_guest *guest, const json_t *note, uint64_t now_us,
        uint64_t *added, uint64_t *removed)
{
        uint64_t before = guest->assigned;
        uint64_t elapsed_ms = guest->has_told ? (now_us - guest->told_us) / 1000 : 0;

        if (!has(note, "startup") || !has(note, "actual"))
                return;
        guest->startup = size_of(note, "startup");
        guest->max = most(guest->startup, size_of(note, "max"));
        guest->assigned = size_of(note, "actual");
        take_demand(guest, note, elapsed_ms);
        if (guest->has_told && guest->assigned > before) {
                guest->added += guest->assigned - before;
                *added += guest->assigned - before;
        } else if (guest->has_told) {
                guest->removed += before - guest->assigned;
                *removed += before - guest->assigned;
        }
        if (!guest->has_told) /* it may have been here before us */
                memory_follow_adopt(
                        &guest->follow, guest->startup, guest->assigned, size_of(note, "target"));
        guest->has_told = true;
        guest->told_us = now_us;
}

void memory_guest_guess(struct memory_guest *guest, uint64_t occupied)
{
        if (guest->is_known)
                return;
        guest->is_on = occupied > 0;
        guest->occupied = least(occupied, MEMORY_MAX_SIZE);
}

bool memory_guest_can_be_asked(const struct memory_guest *guest, uint64_t now_us)
{
        return guest->is_running && guest->has_told && now_us - guest->told_us < FRESH_US;
}

/* Startup and the most are the running guest's; what was set since counts within them. */
static struct memory_settings in_force(const struct memory_guest *guest)
{
        struct memory_settings settings = guest->settings;

        if (guest->has_told) {
                settings.startup = guest->startup;
                settings.max = most(guest->startup, least(guest->max, settings.max));
        }
        return settings;
}

uint64_t memory_guest_keeps(const struct memory_guest *guest)
{
        return guest->is_on ? in_force(guest).startup : guest->admitted;
}

struct memory_vm memory_guest_to_vm(const struct memory_guest *guest, uint64_t now_us)
{
        struct memory_vm vm = {
                .settings = in_force(guest),
                .demand_known = guest->demand.known,
                .demand = guest->demand.slow,
                .assigned = guest->assigned,
                .asked = most(guest->follow.asked, guest->follow.promised),
                .holds = memory_follow_holds(&guest->follow),
        };

        if (!guest->has_told)
                vm.assigned = most(vm.settings.startup, guest->occupied);
        if (!memory_guest_can_be_asked(guest, now_us))
                vm.holds = MEMORY_GIVES_NONE;
        return vm;
}
