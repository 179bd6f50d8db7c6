/* SPDX-License-Identifier: Apache-2.0 */
/* balancer.c - the formulae of balancer.h. */
#include <assert.h>

#include "vmm-glue/memory/balancer.h"
#include "vmm-glue/memory/sums.h"

static_assert(MEMORY_MAX_SIZE / MEMORY_BLOCK <= SHARE_MAX_BLOCKS, "one vm's need can be shared");
static_assert(MEMORY_MAX_WEIGHT <= SHARE_MAX_WEIGHT, "weights are in share.h's range");

const char *memory_holds_to_string(enum memory_holds holds)
{
        switch (holds) {
        case MEMORY_FOLLOWS: return "follows";
        case MEMORY_ON_TRIAL: return "on-trial";
        case MEMORY_TAKES_NO_MORE: return "takes-no-more";
        case MEMORY_GIVES_NONE: return "gives-none";
        }
        return "?";
}

const char *memory_status_to_string(enum memory_status status)
{
        switch (status) {
        case MEMORY_UNKNOWN: return "unknown";
        case MEMORY_OK: return "ok";
        case MEMORY_LOW: return "low";
        case MEMORY_WARNING: return "warning";
        }
        return "?";
}

/* Demand and buffer; the fraction of a byte counts as one. */
static uint64_t demand_and_buffer(const struct memory_vm *vm)
{
        uint64_t demand = least(vm->demand, MEMORY_MAX_SIZE);

        return demand + (demand * vm->settings.buffer + 99) / 100;
}

/* @size between startup and max, upward to whole blocks above startup. */
static uint64_t fit(const struct memory_settings *settings, uint64_t size)
{
        uint64_t blocks = (beyond(size, settings->startup) + MEMORY_BLOCK - 1) / MEMORY_BLOCK;

        return least(settings->startup + blocks * MEMORY_BLOCK, memory_settings_top(settings));
}

/* Likewise, downward: what is still within @size. */
static uint64_t fit_within(const struct memory_settings *settings, uint64_t size)
{
        uint64_t more = beyond(size, settings->startup);

        return least(settings->startup + more - more % MEMORY_BLOCK, memory_settings_top(settings));
}

/* What the vm has whatever is decided. It can be more than its max, when that was lowered. */
static uint64_t keeps(const struct memory_vm *vm)
{
        if (vm->holds == MEMORY_GIVES_NONE || !vm->demand_known)
                return most(vm->settings.startup, vm->assigned);
        return vm->settings.startup;
}

static uint64_t wants(const struct memory_vm *vm)
{
        uint64_t has = fit_within(&vm->settings, vm->assigned);

        if (!vm->demand_known)
                return has;
        if (vm->holds == MEMORY_TAKES_NO_MORE)
                return least(fit(&vm->settings, demand_and_buffer(vm)), has);
        if (vm->holds == MEMORY_ON_TRIAL)
                return fit(&vm->settings, least(demand_and_buffer(vm), has + MEMORY_TRIAL));
        return fit(&vm->settings, demand_and_buffer(vm));
}

static enum memory_status judge(const struct memory_vm *vm)
{
        if (!vm->demand_known)
                return MEMORY_UNKNOWN;
        if (vm->assigned >= demand_and_buffer(vm))
                return MEMORY_OK;
        return vm->assigned >= vm->demand ? MEMORY_LOW : MEMORY_WARNING;
}

/* To the nearest percent. */
static uint64_t press(const struct memory_vm *vm)
{
        uint64_t demand = least(vm->demand, MEMORY_MAX_SIZE);

        if (!vm->demand_known || vm->assigned == 0)
                return 0;
        return (100 * demand + vm->assigned / 2) / vm->assigned;
}

static uint64_t blocks_up(uint64_t size)
{
        return (size + MEMORY_BLOCK - 1) / MEMORY_BLOCK;
}

/* What the vm has or was promised: what it was asked to give back it still has. */
static uint64_t holds_now(const struct memory_vm *vm)
{
        return vm->holds == MEMORY_TAKES_NO_MORE ? vm->assigned : most(vm->assigned, vm->asked);
}

void memory_balance(struct memory_host *host, struct memory_vm *vms, size_t n)
{
        struct share_claim claims[MEMORY_MAX_VMS];
        uint64_t kept = 0, held = 0;

        assert(n <= MEMORY_MAX_VMS);
        host->assigned = host->wanted = 0;
        for (size_t i = 0; i < n; i++) {
                struct memory_vm *vm = &vms[i];

                vm->wanted = wants(vm);
                vm->pressure = press(vm);
                vm->status = judge(vm);
                claims[i].weight = vm->settings.weight;
                claims[i].need_blocks = blocks_up(beyond(vm->wanted, keeps(vm)));
                kept += keeps(vm);
                held += holds_now(vm);
                host->assigned += vm->assigned;
                host->wanted += most(vm->wanted, keeps(vm));
        }
        host->available = beyond(host->budget, held);
        host->is_short = host->wanted > host->budget;
        host->is_over = kept > host->budget;
        share_by_weight(claims, n, beyond(host->budget, kept) / MEMORY_BLOCK);
        for (size_t i = 0; i < n; i++)
                vms[i].target =
                        least(fit_within(&vms[i].settings,
                                      keeps(&vms[i]) + claims[i].given_blocks * MEMORY_BLOCK),
                                most(vms[i].wanted, keeps(&vms[i])));
}

void memory_grant(const struct memory_host *host, struct memory_vm *vms, size_t n)
{
        struct share_claim claims[MEMORY_MAX_VMS];

        assert(n <= MEMORY_MAX_VMS);
        for (size_t i = 0; i < n; i++) {
                claims[i].weight = vms[i].settings.weight;
                claims[i].need_blocks = blocks_up(beyond(vms[i].target, holds_now(&vms[i])));
        }
        share_by_weight(claims, n, host->available / MEMORY_BLOCK);
        for (size_t i = 0; i < n; i++) {
                struct memory_vm *vm = &vms[i];
                uint64_t within = holds_now(vm) + claims[i].given_blocks * MEMORY_BLOCK;

                vm->goal = least(vm->target, fit_within(&vm->settings, within));
        }
}
