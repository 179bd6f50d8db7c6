/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/instants.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/crash/schedule.h"

static struct instants *watched;

static void take(struct instants *instants)
{
        struct instant *instant;

        if (!instants->watching || instants->n == instants->most)
                return;
        instants->poisoned |= instants->fs->fault_hit;
        instant = &instants->all[instants->n++];
        instant->world = sim_fs_snapshot(instants->fs);
        instant->moment = instants->model->now;
        instant->poisoned = instants->poisoned;
        instant->unnoted = instants->unnoted;
        instant->stage = instants->stage;
        if (instants->trace)
                fprintf(stderr, "  [%u] -- instant %u%s%s\n", schedule_self(), instants->n - 1,
                        instant->poisoned ? " (poisoned)" : "",
                        instant->unnoted ? " (not noted)" : "");
}

/* Linux tells of a lost writeback once. Of a process that dies between being told and noting it
 * nothing can be asked; the note is the first thing that the thread makes, so its next step of any
 * kind says that it is there. */
static void follow_failed_sync(struct instants *instants, bool inside_sync)
{
        if (instants->fs->fault_hit && instants->fs->fault.call == SIM_SYNC &&
                !instants->poisoned) {
                instants->unnoted = true;
                instants->failed_thread = schedule_self();
        } else if (instants->unnoted && !inside_sync &&
                schedule_self() == instants->failed_thread) {
                instants->unnoted = false;
        }
}

static void on_change(struct sim_fs *fs, enum sim_call call)
{
        struct instants *instants = fs->opaque;

        follow_failed_sync(instants, call == SIM_SYNC);
        take(instants);
}

/* A region that changed: the note is one, too. */
static void on_point(void)
{
        if (!watched || !watched->watching || !sim_fs_regions_changed(watched->fs))
                return;
        follow_failed_sync(watched, false);
        take(watched);
}

void instants_watch(
        struct instants *instants, struct sim_fs *fs, const struct model *model, unsigned most)
{
        if (!instants->all)
                instants->all = calloc(most, sizeof(*instants->all));
        assert(instants->all != NULL);
        instants->most = most;
        instants->fs = fs;
        instants->model = model;
        instants->unnoted = false;
        instants->watching = true;
        fs->opaque = instants;
        fs->on_change = on_change;
        watched = instants;
        schedule_on_point = on_point;
}

void instants_rest(struct instants *instants)
{
        instants->watching = false;
        watched = NULL;
        schedule_on_point = NULL;
}

void instants_take(struct instants *instants)
{
        follow_failed_sync(instants, false);
        take(instants);
}

bool instants_may_fail(const struct instants *instants)
{
        return instants->poisoned || instants->fs->fault_hit || instants->fs->space;
}

void instants_clear(struct instants *instants)
{
        for (unsigned i = 0; i < instants->n; i++)
                sim_world_free(instants->all[i].world);
        free(instants->all);
        instants->all = NULL;
        instants->n = 0;
}
