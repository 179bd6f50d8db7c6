/* SPDX-License-Identifier: Apache-2.0 */
/* balancer.h - how much memory each running vm is to have.
 *
 *   buffer   = demand x buffer %
 *   wanted   = min(max, max(startup, demand + buffer))     upward to a whole block
 *   target   = wanted, if all wanted together fit into the host's budget; else every vm keeps its startup
 *              memory and the rest is shared by weight, nobody above its wanted (share.h)
 *   pressure = 100 x demand / assigned
 *   status   = ok: assigned covers demand and buffer; low: the demand; warning: not even that
 *
 * If the startup memory alone is more than the budget everybody has its startup memory: no vm gets less.
 *
 * A vm that did not do what it was asked (follow.h) counts with what it holds: one that gives nothing back
 * keeps what it has, and one that takes no more wants no more than it has. So does one whose demand
 * nobody knows: its target is what it has, downward to a whole block. One that has not shown yet that it
 * takes memory is on trial: it wants at most MEMORY_TRIAL more than it has, so that a guest without a
 * driver takes no more than that from the others.
 *
 * Units      bytes, in whole blocks of MEMORY_BLOCK above startup where this module chooses them.
 * Ownership  the caller's array. The order of the vms settles who gets a block that cannot be divided;
 *            keep it the same from step to step.
 * Errors     none.
 * Threads    pure functions: no clock, no file, no socket.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm-glue/memory/settings.h"
#include "vmm-glue/memory/share.h"

#define MEMORY_MAX_VMS SHARE_MAX_CLAIMS

#define MEMORY_TRIAL (4 * MEMORY_BLOCK)

enum memory_holds {
        MEMORY_FOLLOWS,
        MEMORY_ON_TRIAL,
        MEMORY_TAKES_NO_MORE,
        MEMORY_GIVES_NONE,
};
const char *memory_holds_to_string(enum memory_holds holds); /* "follows", "takes-no-more", ... */

enum memory_status {
        MEMORY_UNKNOWN, /* no word from the guest */
        MEMORY_OK,
        MEMORY_LOW,
        MEMORY_WARNING,
};
const char *memory_status_to_string(enum memory_status status); /* "unknown", "ok", ... */

struct memory_vm {
        struct memory_settings settings;
        bool demand_known;
        uint64_t demand;
        uint64_t assigned; /* what the guest has now */
        uint64_t asked;    /* what it was last asked to come to; 0: nothing yet */
        enum memory_holds holds;

        /* Filled by memory_balance(). */
        uint64_t wanted, target;
        uint64_t pressure; /* percent; 0 while the demand is unknown */
        enum memory_status status;
        /* Filled by memory_grant(): what it can be brought to in this step. */
        uint64_t goal;
};

struct memory_host {
        uint64_t budget; /* for all vms */

        /* Filled by memory_balance(). */
        uint64_t assigned;  /* all vms together */
        uint64_t wanted;    /* likewise */
        uint64_t available; /* of the budget: what no vm has or was promised */
        bool is_short;      /* not everybody's wanted fits */
        bool is_over;       /* not even what cannot be taken away does */
};

/* Targets, pressure and status of all @n vms (at most MEMORY_MAX_VMS) out of what is known of them. */
void memory_balance(struct memory_host *host, struct memory_vm *vms, size_t n);

/* Turns targets into goals for this step. Down at once; up only with memory that is there now: what others
 * are still to give back has not been given back yet. What is there is shared by weight, too. So the sum
 * of what vms have or were promised does not pass the budget, unless it did before. */
void memory_grant(const struct memory_host *host, struct memory_vm *vms, size_t n);
