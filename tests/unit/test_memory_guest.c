/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a supervisor that restarts makes its guest's memory look free; what is set for the next
 * start is taken for this one's; a guest that stands still, or says nothing, is asked and found not to follow. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "vmm-glue/memory/guest.h"

#define MiB     (UINT64_C(1) << 20)
#define S       UINT64_C(1000000)
#define STARTED (100 * S)

static struct memory_guest guest_with(uint64_t startup, uint64_t max)
{
        struct memory_guest guest = {0};
        json_t *settings = json_pack(
                "{s:{s:I, s:I}}", "memory", "startup", (json_int_t)startup, "max", (json_int_t)max);

        memory_guest_changed(&guest, settings, true, true, false, STARTED);
        json_decref(settings);
        return guest;
}

static void set(struct memory_guest *guest, uint64_t startup, uint64_t max)
{
        json_t *settings = json_pack(
                "{s:{s:I, s:I}}", "memory", "startup", (json_int_t)startup, "max", (json_int_t)max);

        memory_guest_changed(guest, settings, true, true, false, STARTED);
        json_decref(settings);
}

/* Uses 100 MiB, and 48 more that its kernel keeps. */
static void tell(struct memory_guest *guest, uint64_t actual, uint64_t now_us, uint64_t *added,
        uint64_t *removed)
{
        json_t *note = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "startup",
                (json_int_t)(512 * MiB), "max", (json_int_t)(2048 * MiB), "plugged",
                (json_int_t)(actual > 512 * MiB ? actual - 512 * MiB : 0), "actual",
                (json_int_t)actual, "total", (json_int_t)(actual - 48 * MiB), "available",
                (json_int_t)(actual - 148 * MiB));

        memory_guest_told(guest, note, now_us, added, removed);
        json_decref(note);
}

Test(guest, what_it_tells_reaches_the_balancer)
{
        struct memory_guest guest = guest_with(512 * MiB, 2048 * MiB);
        uint64_t added = 0, removed = 0;
        struct memory_vm vm;

        tell(&guest, 512 * MiB, STARTED, &added, &removed);
        tell(&guest, 900 * MiB, STARTED + S, &added, &removed);
        tell(&guest, 800 * MiB, STARTED + 2 * S, &added, &removed);
        vm = memory_guest_to_vm(&guest, STARTED + 2 * S);
        cr_expect(eq(u64, vm.assigned, 800 * MiB));
        cr_expect(vm.demand_known);
        cr_expect(eq(u64, vm.demand, 148 * MiB));
        cr_expect(eq(u64, added, 388 * MiB));
        cr_expect(eq(u64, removed, 100 * MiB));
        cr_expect(eq(u64, guest.added, added));
}

Test(guest, before_its_driver_speaks_nobody_knows_its_demand)
{
        struct memory_guest guest = guest_with(512 * MiB, 2048 * MiB);
        json_t *note = json_pack(
                "{s:i, s:i, s:i}", "startup", 512 << 20, "plugged", 0, "actual", 512 << 20);
        uint64_t none = 0;

        cr_expect(memory_guest_is_awaited(&guest, STARTED));
        cr_expect(not(memory_guest_is_awaited(&guest, STARTED + 11 * S)), "not for ever");
        memory_guest_told(&guest, note, STARTED, &none, &none);
        json_decref(note);
        cr_expect(not(memory_guest_is_awaited(&guest, STARTED)));
        cr_expect(not(memory_guest_to_vm(&guest, STARTED).demand_known));
        cr_expect(eq(u64, memory_guest_to_vm(&guest, STARTED).assigned, 512 * MiB));
}

Test(guest, keeps_its_memory_while_its_supervisor_is_away)
{
        struct memory_guest guest = guest_with(512 * MiB, 2048 * MiB);
        uint64_t none = 0;

        tell(&guest, 900 * MiB, STARTED, &none, &none);
        memory_guest_changed(&guest, NULL, false, false, true, STARTED + S);
        cr_expect(guest.is_on);
        cr_expect(not(memory_guest_can_be_asked(&guest, STARTED + S)));
        cr_expect(eq(u64, memory_guest_to_vm(&guest, STARTED + S).assigned, 900 * MiB));
        cr_expect(eq(int, memory_guest_to_vm(&guest, STARTED + S).holds, MEMORY_GIVES_NONE));
        memory_guest_changed(&guest, NULL, false, false, false, STARTED + 2 * S);
        cr_expect(not(guest.is_on));
        cr_expect(eq(u64, guest.assigned, 0), "now somebody says that it is off");
}

Test(guest, one_that_stands_still_or_is_silent_is_not_asked)
{
        struct memory_guest guest = guest_with(512 * MiB, 2048 * MiB);
        uint64_t none = 0;

        tell(&guest, 900 * MiB, STARTED, &none, &none);
        cr_expect(memory_guest_can_be_asked(&guest, STARTED + S));
        cr_expect(not(memory_guest_can_be_asked(&guest, STARTED + 11 * S)));
        memory_guest_changed(&guest, NULL, true, false, false, STARTED + S);
        cr_expect(not(memory_guest_can_be_asked(&guest, STARTED + S)), "paused");
        cr_expect(eq(u64, guest.assigned, 900 * MiB));
}

Test(guest, what_is_set_later_counts_within_what_it_was_started_with)
{
        struct memory_guest guest = guest_with(512 * MiB, 2048 * MiB);
        uint64_t none = 0;
        struct memory_vm vm;

        tell(&guest, 900 * MiB, STARTED, &none, &none);
        set(&guest, 640 * MiB, 4096 * MiB);
        vm = memory_guest_to_vm(&guest, STARTED);
        cr_expect(eq(u64, vm.settings.startup, 512 * MiB));
        cr_expect(eq(u64, vm.settings.max, 2048 * MiB));
        set(&guest, 640 * MiB, 768 * MiB);
        vm = memory_guest_to_vm(&guest, STARTED);
        cr_expect(eq(u64, vm.settings.max, 768 * MiB), "less counts at once");
        set(&guest, 256 * MiB, 256 * MiB);
        vm = memory_guest_to_vm(&guest, STARTED);
        cr_expect(eq(u64, vm.settings.max, 512 * MiB), "and never less than startup");
}

/* A new vmm-host, and a supervisor that hangs: nobody says that the guest is on, but its QEMU is there. */
Test(guest, what_its_qemu_occupies_is_not_free)
{
        struct memory_guest guest = {0};
        struct memory_vm vm;
        uint64_t none = 0;

        memory_guest_changed(&guest, NULL, false, false, true, STARTED);
        memory_guest_guess(&guest, 0);
        cr_expect(not(guest.is_on));
        memory_guest_guess(&guest, 900 * MiB);
        vm = memory_guest_to_vm(&guest, STARTED + 20 * S);
        cr_expect(guest.is_on);
        cr_expect(eq(u64, vm.assigned, 900 * MiB));
        cr_expect(eq(int, vm.holds, MEMORY_GIVES_NONE));
        set(&guest, 512 * MiB, 2048 * MiB);
        tell(&guest, 1000 * MiB, STARTED + 21 * S, &none, &none);
        memory_guest_guess(&guest, 1);
        cr_expect(eq(u64, memory_guest_to_vm(&guest, STARTED + 21 * S).assigned, 1000 * MiB));
}

/* A supervisor is a program like any other: what it says can be nonsense. */
Test(guest, nonsense_is_not_taken)
{
        static const char *const notes[] = {"{}", "{\"startup\":1}",
                "{\"startup\":\"x\",\"actual\":1}",
                "{\"startup\":-1,\"actual\":-1,\"max\":-5,\"total\":-1,\"available\":-1}",
                "{\"startup\":9223372036854775807,\"actual\":9223372036854775807,"
                "\"plugged\":9223372036854775807,\"total\":9223372036854775807,\"available\":1,"
                "\"swap-in\":9223372036854775807,\"major-faults\":9223372036854775807}"};
        struct memory_guest guest = guest_with(512 * MiB, 2048 * MiB);
        uint64_t none = 0;

        for (size_t i = 0; i < sizeof(notes) / sizeof(notes[0]); i++) {
                json_t *note = json_loads(notes[i], 0, NULL);
                struct memory_vm vm;

                memory_guest_told(&guest, note, STARTED + i * S, &none, &none);
                vm = memory_guest_to_vm(&guest, STARTED + i * S);
                cr_expect(le(u64, vm.assigned, MEMORY_MAX_SIZE));
                cr_expect(le(u64, vm.settings.startup, vm.settings.max));
                json_decref(note);
        }
}

static void switch_to(struct memory_guest *guest, bool is_on, bool is_lost)
{
        json_t *settings = json_pack("{s:{s:I}}", "memory", "startup", (json_int_t)(640 * MiB));

        memory_guest_changed(guest, settings, is_on, is_on, is_lost, STARTED);
        json_decref(settings);
}

/* What a start was promised stays promised until it runs or does not, whatever else is set meanwhile: or two
 * starts at once get the same memory. What was set for the next start is not what the guest keeps. */
Test(guest, keeps_what_it_is_started_with)
{
        struct memory_guest guest = {0};
        uint64_t added = 0, removed = 0;

        switch_to(&guest, false, false);
        cr_expect(eq(u64, memory_guest_keeps(&guest), 0));
        guest.admitted = 512 * MiB;
        switch_to(&guest, false, false);
        cr_expect(eq(u64, memory_guest_keeps(&guest), 512 * MiB));
        switch_to(&guest, true, false);
        tell(&guest, 900 * MiB, STARTED, &added, &removed);
        cr_expect(eq(u64, memory_guest_keeps(&guest), 512 * MiB));
        switch_to(&guest, false, false);
        cr_expect(eq(u64, memory_guest_keeps(&guest), 0), "an admission outlives its guest");
        guest.admitted = 512 * MiB;
        switch_to(&guest, false, true);
        cr_expect(eq(u64, memory_guest_keeps(&guest), 0), "nobody is there who would start it");
}
