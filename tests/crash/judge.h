/* SPDX-License-Identifier: Apache-2.0 */
/* judge.h - opens what a crash left, as the next user of the images would, and says what it found.
 *
 * Units      cells of model.h.
 * Ownership  worlds stay the caller's.
 * Errors     0, or -1 with a sentence in the outcome.
 * Threads    one at a time, under a schedule.
 */
#pragma once

#include "tests/crash/scene.h"

/* What a world is when it is opened. */
struct outcome {
        uint8_t values[MODEL_MAX_CELLS]; /* what it reads as */
        bool writable;                   /* it also opens for writing */
        char sentence[512];              /* what is wrong with it, whatever was required, or "" */
};

struct judge {
        const struct scene *scene;
        uint64_t parents[SCENE_MAX_LAYERS]; /* hashes of what must never change */
        struct random random;
        uint64_t begun, covered; /* of the instant that is judged, for cuts inside a recovery */
        uint64_t n_opened;
};

void judge_init(struct judge *judge, const struct scene *scene, const struct sim_world *start);

/* Opens a clone of @world read-only and for writing, flushes, closes, and looks at the result:
 * both read the same, the images are sound, nothing is left to recover, what was flushed then
 * outlives another cut, parents are what they were. @after_cut: no process's death, so nothing
 * keeps it from being writable. @deep: also the crashes inside this recovery. */
int judge_world(struct judge *judge, const struct sim_world *world, bool after_cut, bool poisoned,
                bool deep, struct outcome *ret);
/* Reads all cells of an open disk's world, read-only. */
int judge_read(struct judge *judge, const struct sim_world *world, uint8_t values[],
               char sentence[512]);

/* The first cell that may not hold what it holds, or -1. */
int64_t judge_values(const struct scene *scene, const uint8_t values[], uint64_t begun,
                     uint64_t required);
