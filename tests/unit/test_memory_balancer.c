/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a vm is brought below its startup memory or above its max; vms are promised more than
 * the host has; memory that is still to be given back is given away; a vm that does not follow makes the
 * others' shares wrong. tests/memory compares the numbers themselves with a computation of its own. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include "vmm-glue/memory/balancer.h"

#define MiB (UINT64_C(1) << 20)
#define GiB (UINT64_C(1) << 30)

enum { N_ROUNDS = 20000, N_MAX = 7 };

static struct memory_vm vm_with(uint64_t startup, uint64_t max, uint64_t demand, uint64_t assigned)
{
        return (struct memory_vm){
                .settings = {.startup = startup, .max = max, .buffer = 20, .weight = 50},
                .demand_known = true,
                .demand = demand,
                .assigned = assigned,
        };
}

static uint64_t random_below(uint64_t *state, uint64_t bound)
{
        *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        return (*state >> 24) % bound;
}

static size_t random_vms(uint64_t *state, struct memory_vm *vms)
{
        size_t n = 1 + random_below(state, N_MAX);

        for (size_t i = 0; i < n; i++) {
                uint64_t startup = MEMORY_BLOCK + random_below(state, 600 * MiB);
                uint64_t max = startup + random_below(state, 3) * random_below(state, GiB);

                vms[i] = vm_with(startup, max, random_below(state, 2 * GiB), 0);
                vms[i].settings.buffer = (uint32_t)random_below(state, 100);
                vms[i].settings.weight = 1 + (uint32_t)random_below(state, MEMORY_MAX_WEIGHT);
                vms[i].assigned = startup +
                        random_below(state, (max - startup) / MEMORY_BLOCK + 1) * MEMORY_BLOCK;
        }
        return n;
}

static uint64_t sum_startups(const struct memory_vm *vms, size_t n)
{
        uint64_t sum = 0;

        for (size_t i = 0; i < n; i++)
                sum += vms[i].settings.startup;
        return sum;
}

static uint64_t sum_targets(const struct memory_vm *vms, size_t n)
{
        uint64_t sum = 0;

        for (size_t i = 0; i < n; i++)
                sum += vms[i].target;
        return sum;
}

Test(balancer, target_is_demand_and_buffer_between_startup_and_max)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 2 * GiB, 100 * MiB, 512 * MiB),
                vm_with(512 * MiB, 2 * GiB, 1000 * MiB, 512 * MiB),
                vm_with(512 * MiB, 2 * GiB, 3 * GiB, 512 * MiB),
                vm_with(512 * MiB, 512 * MiB, 3 * GiB, 512 * MiB),
        };
        struct memory_host host = {.budget = 64 * GiB};

        memory_balance(&host, vms, 4);
        cr_expect(eq(u64, vms[0].target, 512 * MiB));
        cr_expect(eq(u64, vms[1].target, 1200 * MiB));
        cr_expect(eq(u64, vms[2].target, 2 * GiB));
        cr_expect(eq(u64, vms[3].target, 512 * MiB));
        cr_expect(not(host.is_short));
        cr_expect(eq(u64, host.available, 62 * GiB));
}

/* Startups 512 each; 1024 are left for wishes of 1536 and 1536: 3/4 and 1/4 of it. */
Test(balancer, shortage_is_shared_by_weight_above_startup)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 2 * GiB, 4 * GiB, 512 * MiB),
                vm_with(512 * MiB, 2 * GiB, 4 * GiB, 512 * MiB),
        };
        struct memory_host host = {.budget = 2 * GiB};

        vms[0].settings.weight = 75;
        vms[1].settings.weight = 25;
        memory_balance(&host, vms, 2);
        cr_expect(host.is_short);
        cr_expect(eq(u64, vms[0].target, (512 + 768) * MiB));
        cr_expect(eq(u64, vms[1].target, (512 + 256) * MiB));
}

Test(balancer, nobody_falls_below_startup_when_not_even_that_fits)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 2 * GiB, 4 * GiB, 512 * MiB),
                vm_with(1024 * MiB, 2 * GiB, 4 * GiB, 1024 * MiB),
        };
        struct memory_host host = {.budget = 1 * GiB};

        memory_balance(&host, vms, 2);
        cr_expect(host.is_over);
        cr_expect(eq(u64, vms[0].target, 512 * MiB));
        cr_expect(eq(u64, vms[1].target, 1024 * MiB));
        cr_expect(eq(u64, host.available, 0));
}

Test(balancer, status_and_pressure)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 2 * GiB, 1000 * MiB, 1200 * MiB),
                vm_with(512 * MiB, 2 * GiB, 1000 * MiB, 1198 * MiB),
                vm_with(512 * MiB, 2 * GiB, 1000 * MiB, 1000 * MiB),
                vm_with(512 * MiB, 2 * GiB, 1000 * MiB, 998 * MiB),
                vm_with(512 * MiB, 2 * GiB, 1000 * MiB, 512 * MiB),
        };
        struct memory_host host = {.budget = 64 * GiB};

        vms[4].demand_known = false;
        memory_balance(&host, vms, 5);
        cr_expect(eq(int, vms[0].status, MEMORY_OK));
        cr_expect(eq(u64, vms[0].pressure, 83));
        cr_expect(eq(int, vms[1].status, MEMORY_LOW));
        cr_expect(eq(int, vms[2].status, MEMORY_LOW));
        cr_expect(eq(u64, vms[2].pressure, 100));
        cr_expect(eq(int, vms[3].status, MEMORY_WARNING));
        cr_expect(eq(int, vms[4].status, MEMORY_UNKNOWN));
        cr_expect(eq(u64, vms[4].pressure, 0));
}

/* A guest that says nothing keeps what it has, even if others are short. */
Test(balancer, without_a_known_demand_memory_stays)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 2 * GiB, 0, 1024 * MiB),
                vm_with(512 * MiB, 2 * GiB, 4 * GiB, 512 * MiB),
        };
        struct memory_host host = {.budget = 2 * GiB};

        vms[0].demand_known = false;
        memory_balance(&host, vms, 2);
        cr_expect(eq(u64, vms[0].target, 1024 * MiB));
        cr_expect(eq(u64, vms[1].target, 1024 * MiB));
}

Test(balancer, what_one_does_not_take_or_give_is_reckoned_with)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 4 * GiB, 3 * GiB, 600 * MiB),    /* takes no more */
                vm_with(512 * MiB, 4 * GiB, 100 * MiB, 1024 * MiB), /* gives none */
                vm_with(512 * MiB, 4 * GiB, 3 * GiB, 512 * MiB),
        };
        struct memory_host host = {.budget = 3 * GiB};

        vms[0].holds = MEMORY_TAKES_NO_MORE;
        vms[1].holds = MEMORY_GIVES_NONE;
        memory_balance(&host, vms, 3);
        cr_expect(eq(u64, vms[0].target, 600 * MiB));
        cr_expect(eq(u64, vms[1].target, 1024 * MiB));
        cr_expect(eq(u64, vms[2].target, (3072 - 1624) * MiB));
}

/* Nobody knows yet whether the first can take memory: the others wait for no more than a trial's worth. */
Test(balancer, on_trial_wants_little)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 4 * GiB, 3 * GiB, 512 * MiB),
                vm_with(512 * MiB, 4 * GiB, 3 * GiB, 512 * MiB),
        };
        struct memory_host host = {.budget = 2 * GiB};

        vms[0].holds = MEMORY_ON_TRIAL;
        memory_balance(&host, vms, 2);
        cr_expect(eq(u64, vms[0].target, 528 * MiB));
        cr_expect(eq(u64, vms[1].target, (2048 - 528) * MiB));
        vms[0].demand = 430 * MiB;
        memory_balance(&host, vms, 2);
        cr_expect(eq(u64, vms[0].target, 516 * MiB));
}

/* max was lowered under a running vm that does not give back: its target obeys, the sum reckons with it. */
Test(balancer, a_lowered_max_is_obeyed)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 768 * MiB, 2 * GiB, 1024 * MiB),
                vm_with(512 * MiB, 4 * GiB, 3 * GiB, 512 * MiB),
        };
        struct memory_host host = {.budget = 2 * GiB};

        vms[0].holds = MEMORY_GIVES_NONE;
        memory_balance(&host, vms, 2);
        cr_expect(eq(u64, vms[0].target, 768 * MiB));
        cr_expect(eq(u64, vms[1].target, 1024 * MiB));
}

Test(balancer, only_memory_that_is_there_is_granted)
{
        struct memory_vm vms[] = {
                vm_with(512 * MiB, 2 * GiB, 100 * MiB, 1280 * MiB), /* is to shrink */
                vm_with(512 * MiB, 2 * GiB, 1000 * MiB, 512 * MiB), /* is to grow to 1200 */
        };
        struct memory_host host = {.budget = 2 * GiB};

        memory_balance(&host, vms, 2);
        cr_expect(eq(u64, vms[1].target, 1200 * MiB));
        memory_grant(&host, vms, 2);
        cr_expect(eq(u64, vms[0].goal, 512 * MiB));
        cr_expect(eq(u64, vms[1].goal, 768 * MiB), "256 MiB are free before the other has shrunk");
        vms[0].asked = 512 * MiB;
        vms[1].asked = vms[1].assigned = 768 * MiB;
        memory_balance(&host, vms, 2);
        memory_grant(&host, vms, 2);
        cr_expect(eq(u64, vms[1].goal, 768 * MiB), "what was asked back is not back yet");
        vms[0].assigned = 600 * MiB;
        memory_balance(&host, vms, 2);
        memory_grant(&host, vms, 2);
        cr_expect(eq(u64, vms[1].goal, 1200 * MiB));
}

Test(balancer, targets_keep_startup_max_and_budget)
{
        uint64_t state = 1;

        for (unsigned round = 0; round < N_ROUNDS; round++) {
                struct memory_vm vms[N_MAX];
                size_t n = random_vms(&state, vms);
                struct memory_host host = {.budget = random_below(&state, 6 * GiB)};
                uint64_t startups = sum_startups(vms, n), wanted = 0;

                memory_balance(&host, vms, n);
                for (size_t i = 0; i < n; i++) {
                        cr_assert(ge(u64, vms[i].target, vms[i].settings.startup));
                        cr_assert(le(u64, vms[i].target, vms[i].settings.max));
                        cr_assert(le(u64, vms[i].target, vms[i].wanted));
                        wanted += vms[i].wanted;
                }
                if (startups > host.budget)
                        cr_assert(eq(u64, sum_targets(vms, n), startups));
                else if (wanted <= host.budget)
                        cr_assert(eq(u64, sum_targets(vms, n), wanted), "all get what they want");
                else /* work conserving: less than a block is left */
                        cr_assert(sum_targets(vms, n) <= host.budget &&
                                sum_targets(vms, n) + MEMORY_BLOCK > host.budget);
        }
}

Test(balancer, a_higher_weight_or_budget_takes_nothing_away)
{
        uint64_t state = 2;

        for (unsigned round = 0; round < N_ROUNDS; round++) {
                struct memory_vm vms[N_MAX];
                size_t n = random_vms(&state, vms), i = random_below(&state, n);
                struct memory_host host = {.budget = random_below(&state, 6 * GiB)};
                uint64_t before, sum;
                uint32_t weight = vms[i].settings.weight;

                memory_balance(&host, vms, n);
                before = vms[i].target;
                vms[i].settings.weight +=
                        (uint32_t)random_below(&state, MEMORY_MAX_WEIGHT + 1 - weight);
                memory_balance(&host, vms, n);
                cr_assert(ge(u64, vms[i].target, before));
                sum = sum_targets(vms, n);
                host.budget += random_below(&state, GiB);
                memory_balance(&host, vms, n);
                cr_assert(ge(u64, sum_targets(vms, n), sum));
        }
}

/* Whatever was asked before: what vms have and are promised passes the budget only if it did already. */
Test(balancer, grants_keep_the_budget_at_every_step)
{
        uint64_t state = 3;

        for (unsigned round = 0; round < N_ROUNDS; round++) {
                struct memory_vm vms[N_MAX];
                size_t n = random_vms(&state, vms);
                struct memory_host host = {.budget = random_below(&state, 8 * GiB)};
                uint64_t before = 0, after = 0;

                for (size_t i = 0; i < n; i++) {
                        vms[i].asked = random_below(&state, 2) ? vms[i].assigned : 0;
                        vms[i].holds = (enum memory_holds)random_below(&state, 4);
                        vms[i].demand_known = random_below(&state, 8) != 0;
                        before += vms[i].assigned;
                }
                memory_balance(&host, vms, n);
                memory_grant(&host, vms, n);
                for (size_t i = 0; i < n; i++) {
                        uint64_t goal = vms[i].goal;

                        cr_assert(goal >= vms[i].settings.startup || vms[i].assigned < goal);
                        cr_assert(le(u64, goal, vms[i].target));
                        after += goal > vms[i].assigned ? goal : vms[i].assigned;
                }
                cr_assert(le(u64, after, before > host.budget ? before : host.budget));
        }
}

Test(balancer, settings_have_defaults_and_are_put_right)
{
        struct memory_settings none = memory_settings_from_json(NULL), odd;
        json_t *json = json_pack("{s:I, s:I, s:i, s:i}", "startup", (json_int_t)(600 * MiB), "max",
                (json_int_t)(100 * MiB), "buffer", -3, "weight", 0);

        cr_expect(eq(u64, none.startup, MEMORY_DEFAULT_STARTUP));
        cr_expect(eq(u64, none.max, none.startup));
        cr_expect(eq(u32, none.buffer, 20));
        cr_expect(eq(u32, none.weight, 50));
        odd = memory_settings_from_json(json);
        cr_expect(eq(u64, odd.max, 600 * MiB));
        cr_expect(eq(u32, odd.buffer, 0));
        cr_expect(eq(u32, odd.weight, 1));
        json_decref(json);
        json = json_pack("{s:I, s:I}", "startup", (json_int_t)(600 * MiB + 4096), "max",
                (json_int_t)(605 * MiB));
        odd = memory_settings_from_json(json);
        cr_expect(eq(u64, odd.startup, 600 * MiB), "downward to a MiB");
        cr_expect(eq(u64, odd.max, 604 * MiB), "and to whole blocks");
        json_object_del(json, "startup");
        odd = memory_settings_from_json(json);
        cr_expect(eq(u64, odd.startup, 605 * MiB), "without startup it is max");
        json_decref(json);
        odd.max = odd.startup + 3 * MEMORY_BLOCK + 4096;
        cr_expect(eq(u64, memory_settings_top(&odd), odd.startup + 3 * MEMORY_BLOCK));
}
