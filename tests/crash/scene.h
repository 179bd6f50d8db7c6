/* SPDX-License-Identifier: Apache-2.0 */
/* scene.h - what a seed stands for: a chain of images on a simulated disk, and what threads do to it.
 *
 * Units      bytes.
 * Ownership  scene_world's world is the caller's.
 * Threads    one at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "tests/crash/model.h"
#include "tests/crash/schedule.h"
#include "tests/crash/simdisk.h"

#define SCENE_MAX_LAYERS  4u
#define SCENE_MAX_THREADS 3u
#define SCENE_MAX_LIVES   3u

/* Seeds from here on stand for one thread's write and flush, with another thread's operation and a
 * third one's flush inside each of its steps in turn. */
#define SCENE_INSIDE       1000000u
#define SCENE_INSIDE_STEPS 100u
#define SCENE_N_OUTER      3u
#define SCENE_N_INNER      10u
#define SCENE_INSIDE_LAST  (SCENE_INSIDE + SCENE_INSIDE_STEPS * SCENE_N_OUTER * SCENE_N_INNER - 1)

enum scene_leaf { LEAF_DYNAMIC, LEAF_FIXED, LEAF_RAW };

/* How a life ends and the next one begins. */
enum scene_end { END_CLOSE, END_DEATH, END_CUT };

enum scene_flavour { FLAVOUR_PLAIN, FLAVOUR_FREEING, FLAVOUR_BUSY };

struct scene {
        uint64_t seed;
        enum scene_flavour flavour;
        /* the images */
        enum scene_leaf leaf_type; /* a root that is not dynamic; only alone */
        uint32_t n_layers, block_size, size;
        char paths[SCENE_MAX_LAYERS][32]; /* root first */
        /* what happens */
        uint32_t n_threads, n_lives;
        enum scene_end ends[SCENE_MAX_LIVES];
        bool abandon; /* the last life ends without closing */
        enum schedule_policy policy;
        unsigned inside_step; /* of SCHEDULE_INSIDE */
        bool split_writes, nowait_again, no_punch, has_fault;
        uint32_t region_limit;
        uint64_t space;
        struct sim_fault fault;
        uint32_t fault_life;
        struct model model;
};

/* Everything that @seed decides; touches no disk. */
void scene_init(struct scene *scene, uint64_t seed);
static inline const char *scene_leaf_path(const struct scene *scene)
{
        return scene->paths[scene->n_layers - 1];
}
/* The disk with the images on it, durable; scene->model.initial is filled. */
int scene_make_world(struct scene *scene, struct sim_world **ret, struct error *err);
void scene_print(const struct scene *scene, uint64_t mask, FILE *to);
