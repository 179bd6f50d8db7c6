/* SPDX-License-Identifier: Apache-2.0 */
/* follow.h - whether and what one vm is asked, and whether it does it.
 *
 *   idle ──ask──> pending ──it has come there──> settled ──it drifts away──> idle
 *                  │  ^ └─another goal: asks again, the time goes on
 *                  │  └────────────────────── a goal in the other direction: asks ───────┐
 *                  └─no block nearer for FOLLOW_LIMIT_MS──> held ──────────────────────────┤
 *                                                            └─it moved, or the pause is over──> idle
 *
 * memory_follow_look() takes the arrows that time and the guest's memory cause, memory_follow_ask() those
 * that a goal causes.
 *
 * So that memory does not swing: upward is asked for as soon as a whole block is missing; downward only
 * when FOLLOW_SWING, and 1/32 of what the vm has, could go, or when others wait for it (eager).
 *
 * A vm that does not follow is left alone for a minute, then for two, four, up to an hour. One that takes
 * no more (a guest without a driver for virtio-mem) is first asked to stay where it is: otherwise it
 * could take, at a time of its own choice, what was given to another by then. One that gives none keeps
 * the request: what it gives back later is welcome.
 *
 * Before a guest has taken a block when it was asked to, and again after it did not, it is on trial
 * (balancer.h): it is asked for a little first.
 *
 * Units      bytes; milliseconds.
 * Ownership  plain values; all zeroes is the beginning.
 * Errors     none.
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "vmm-glue/memory/balancer.h"

#define FOLLOW_SWING        (UINT64_C(16) << 20)
#define FOLLOW_SWING_PART   32u
#define FOLLOW_LIMIT_MS     30000u
#define FOLLOW_PAUSE_MS     60000u
#define FOLLOW_PAUSE_MAX_MS 3600000u

struct memory_follow {
        enum { FOLLOW_IDLE, FOLLOW_PENDING, FOLLOW_SETTLED, FOLLOW_HELD } state;
        uint64_t asked; /* 0: nothing that still holds */
        uint64_t
                promised; /* pending, for less than before: what it was on its way up to, and may still take */
        bool up;             /* pending, held: the direction of what was asked */
        bool has_taken;      /* memory, when it was asked to */
        bool is_to_withdraw; /* held: it is still to be asked to stay where it is */
        uint64_t mark;       /* pending, held: what it had when it last moved */
        uint64_t ms;         /* pending: since then; held: of the pause that are left */
        uint32_t n_refused;  /* how often in a row it did not follow */
};

/* A guest that is there already: one with more than it was started with has shown that it takes memory, and
 * what it was asked to come to by somebody before (@asked; 0: nothing) still holds. */
void memory_follow_adopt(
        struct memory_follow *follow, uint64_t startup, uint64_t assigned, uint64_t asked);

/* What the vm has now, @elapsed_ms after the last look. */
void memory_follow_look(struct memory_follow *follow, uint64_t assigned, uint64_t elapsed_ms);

/* How the balancer is to count the vm. */
enum memory_holds memory_follow_holds(const struct memory_follow *follow);

/* Whether to ask the vm now, and for what. When it says so the request counts as made. */
bool memory_follow_ask(
        struct memory_follow *follow, uint64_t assigned, uint64_t goal, bool eager, uint64_t *ret);

/* The request could not be brought to the vm: as if it had not been made. */
void memory_follow_failed(struct memory_follow *follow);
