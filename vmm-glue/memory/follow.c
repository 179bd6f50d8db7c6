/* SPDX-License-Identifier: Apache-2.0 */
/* follow.c - the arrows of follow.h. */
#include <assert.h>

#include "vmm-glue/memory/follow.h"

static uint64_t distance(uint64_t a, uint64_t b)
{
        return a > b ? a - b : b - a;
}

static uint64_t swing(uint64_t size)
{
        uint64_t part = size / FOLLOW_SWING_PART;

        return part > FOLLOW_SWING ? part : FOLLOW_SWING;
}

static void rest(struct memory_follow *follow)
{
        follow->state = FOLLOW_IDLE;
        follow->asked = 0;
        follow->promised = 0;
        follow->ms = 0;
        follow->is_to_withdraw = false;
}

void memory_follow_adopt(
        struct memory_follow *follow, uint64_t startup, uint64_t assigned, uint64_t asked)
{
        *follow = (struct memory_follow){.has_taken = assigned >= startup + MEMORY_BLOCK};
        if (asked > 0 && distance(asked, assigned) >= MEMORY_BLOCK) {
                follow->state = FOLLOW_PENDING;
                follow->asked = asked;
                follow->up = asked > assigned;
                follow->mark = assigned;
        }
}

static void hold(struct memory_follow *follow, uint64_t assigned)
{
        uint32_t doublings = follow->n_refused < 6 ? follow->n_refused : 6;
        uint64_t pause = (uint64_t)FOLLOW_PAUSE_MS << doublings;

        follow->state = FOLLOW_HELD;
        follow->promised = 0;
        follow->is_to_withdraw = follow->up;
        if (follow->up)
                follow->has_taken = false;
        follow->mark = assigned;
        follow->ms = pause < FOLLOW_PAUSE_MAX_MS ? pause : FOLLOW_PAUSE_MAX_MS;
        follow->n_refused++;
}

static void look_pending(struct memory_follow *follow, uint64_t assigned, uint64_t elapsed_ms)
{
        bool nearer = follow->up ? assigned >= follow->mark + MEMORY_BLOCK
                                 : assigned + MEMORY_BLOCK <= follow->mark;

        if (nearer && follow->up)
                follow->has_taken = true;
        if (distance(assigned, follow->asked) < MEMORY_BLOCK) {
                follow->state = FOLLOW_SETTLED;
                follow->promised = 0;
                follow->n_refused = 0;
        } else if (nearer) {
                if (!follow->up)
                        follow->promised = 0;
                follow->mark = assigned;
                follow->ms = 0;
        } else {
                follow->ms += elapsed_ms;
                if (follow->ms >= FOLLOW_LIMIT_MS)
                        hold(follow, assigned);
        }
}

void memory_follow_look(struct memory_follow *follow, uint64_t assigned, uint64_t elapsed_ms)
{
        switch (follow->state) {
        case FOLLOW_IDLE: break;
        case FOLLOW_PENDING: look_pending(follow, assigned, elapsed_ms); break;
        case FOLLOW_SETTLED:
                if (distance(assigned, follow->asked) >= swing(follow->asked))
                        rest(follow);
                break;
        case FOLLOW_HELD:
                if (distance(assigned, follow->mark) >= MEMORY_BLOCK || follow->ms <= elapsed_ms)
                        rest(follow);
                else
                        follow->ms -= elapsed_ms;
                break;
        }
}

enum memory_holds memory_follow_holds(const struct memory_follow *follow)
{
        if (follow->state != FOLLOW_HELD)
                return follow->has_taken ? MEMORY_FOLLOWS : MEMORY_ON_TRIAL;
        return follow->up ? MEMORY_TAKES_NO_MORE : MEMORY_GIVES_NONE;
}

static void ask(struct memory_follow *follow, uint64_t assigned, uint64_t goal)
{
        bool up = goal > assigned;

        /* Blocks that are being plugged arrive behind the request to give some back. */
        if (follow->state == FOLLOW_PENDING && follow->up && goal < follow->asked)
                follow->promised = follow->asked;
        else if (up)
                follow->promised = 0;

        /* A goal that is moved on is no new beginning: a vm that never follows is found out all the same. */
        if (follow->state != FOLLOW_PENDING || follow->up != up) {
                follow->mark = assigned;
                follow->ms = 0;
        }
        follow->state = FOLLOW_PENDING;
        follow->up = up;
        follow->is_to_withdraw = false;
        follow->asked = goal;
}

bool memory_follow_ask(
        struct memory_follow *follow, uint64_t assigned, uint64_t goal, bool eager, uint64_t *ret)
{
        uint64_t from = follow->state == FOLLOW_PENDING ? follow->asked : assigned;
        bool is_held = follow->state == FOLLOW_HELD;

        if (goal > from) {
                if (goal - from < MEMORY_BLOCK || (is_held && follow->up))
                        goal = from;
        } else if (from - goal < (eager ? MEMORY_BLOCK : swing(from)) || (is_held && !follow->up)) {
                goal = from;
        }
        if (goal == from && !follow->is_to_withdraw)
                return false;
        if (goal == from) {
                follow->is_to_withdraw = false;
                follow->asked = assigned;
        } else {
                ask(follow, assigned, goal);
        }
        *ret = goal;
        return true;
}

void memory_follow_failed(struct memory_follow *follow)
{
        rest(follow);
}
