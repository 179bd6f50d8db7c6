/* SPDX-License-Identifier: Apache-2.0 */
/* instants.h - each step of a run on a simulated disk, kept to be looked at afterwards.
 *
 * One is taken after each change of the world, each change of a region that the engine makes without a
 * call, and whenever the test says so.
 *
 * Units      none.
 * Ownership  the world of each instant is the list's, until instants_clear().
 * Threads    under tests/crash/schedule.h.
 */
#pragma once

#include <stdbool.h>

#include "tests/crash/model.h"
#include "tests/crash/simdisk.h"

struct instant {
        struct sim_world *world;
        struct moment moment;
        bool poisoned;  /* a call has failed */
        bool unnoted;   /* it was a sync, and its caller could not yet note it anywhere */
        unsigned stage; /* the test's own */
};

struct instants {
        struct sim_fs *fs;         /* the test's */
        const struct model *model; /* the test's */
        struct instant *all;
        unsigned n, most;
        unsigned stage; /* of those to come */
        bool watching, poisoned, unnoted, trace;
        unsigned failed_thread; /* whose sync failed */
};

/* From here on @fs is watched; its `opaque` and `on_change` are taken. @most: how many are kept. */
void instants_watch(
        struct instants *instants, struct sim_fs *fs, const struct model *model, unsigned most);
void instants_rest(struct instants *instants); /* until the next instants_watch() */
/* One now. The running thread is past whatever it was doing. */
void instants_take(struct instants *instants);
/* Has a call failed, or may one fail for want of space? */
bool instants_may_fail(const struct instants *instants);
void instants_clear(struct instants *instants);
