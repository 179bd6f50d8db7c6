/* SPDX-License-Identifier: Apache-2.0 */
/* merges - layers of a chain are merged, down or up, under writes and flushes on a simulated disk, and
 * at each step what a power cut and what a process's death would leave there.
 *
 * Options and exit status: tests/crash/driver.h.
 *
 * A seed is a chain of two to four images with data of their own, at times with one more that stands
 * on a layer that goes and is known, or on one that changes and is not; which layers go, and where to;
 * and what up to two threads do meanwhile. In some seeds the merge is stopped and begun again, or a
 * life ends by a death or a cut and the next one goes on. Of every state must hold:
 *   - the disk reads as after all that was answered (a death) or flushed (a cut), as enumerate asks;
 *   - the known child reads as it always did; the unknown one too, or it does not open;
 *   - it opens for writing, the merge, begun again, ends, and the disk reads the same; the chain has
 *     so many images less, which are sound, with nothing left over; and a cut changes nothing more;
 *   - a tool that is used on one image of it, before the chain is opened, takes nothing away.
 * In some seeds a sync of an image fails once (E5): then the answered ones may be lost, and the disk may
 * be for reading only.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "chain/push.h"
#include "chain/relink.h"
#include "formats/vhd/check.h"
#include "formats/vhd/create.h"
#include "formats/vhd/raw.h"
#include "merge/merge.h"
#include "merge/resize.h"
#include "tests/crash/driver.h"
#include "tests/crash/guest.h"
#include "tests/crash/instants.h"
#include "tests/crash/model.h"
#include "tests/crash/schedule.h"
#include "tests/crash/simdisk.h"

#define MAX_LAYERS     4u
#define MAX_THREADS    2u /* that write; and one that reads */
#define MAX_LIVES      2u
#define MAX_INSTANTS   6000u
#define FULL_STATES    32u /* of an instant with no more, all are looked at */
#define SAMPLES        8u
#define AFTER_SAMPLES  3u /* cuts after a recovery */
#define DEEP_DEATHS    60u
#define INSIDE_STEPS   1500u
#define ASIDE_INSTANTS 60u
#define POINTS         3000u /* about so many has a run */
#define REGION_BYTES   (4096u + 16384u)
#define VALUE_OTHER    (VALUE_LAYER + MAX_LAYERS) /* what only the other child has */

struct run;
static struct run *running;
static bool is_where_to_step_aside(const char *name);
static void note_aside(struct run *run);

static bool at_step(const char *name)
{
        if (!is_where_to_step_aside(name))
                return false;
        if (driver_options.trace)
                fprintf(stderr, "  [%u] steps aside\n", schedule_self());
        note_aside(running);
        schedule_step_aside();
        return true;
}

/* ---- what a seed stands for ---- */

enum flavour {
        FLAVOUR_PLAIN,
        FLAVOUR_NARROW, /* a few sectors, again and again, half of it FUA */
        FLAVOUR_PULL,   /* into the leaf, up, while whole blocks of it become zeros */
};

struct scene {
        uint64_t seed;
        unsigned n_layers, n_threads, n_lives;
        bool flat_root;
        bool has_known;    /* one more image stands on the topmost layer that goes (down) */
        bool has_stranger; /* one more stands on an image whose content changes, and nobody knows */
        uint32_t block_sizes[MAX_LAYERS + 1], size;
        enum merge_direction direction;
        unsigned first, last, destination;
        bool ends_by_cut; /* a life that is not the last; else the process dies */
        unsigned stops;   /* go_on says no at this question, 0: never */
        bool split_writes, nowait_again, no_punch, has_fault;
        struct sim_fault fault; /* a sync that fails */
        unsigned fault_life;
        enum flavour flavour;
        enum schedule_policy policy;
        unsigned inside_step; /* of SCHEDULE_INSIDE: where in the merge all others run, or, */
        bool inside_guest;    /* where in the first guest's work all others do */
        bool has_reader;      /* a thread of its own reads */
        const char *aside;    /* of SCHEDULE_PRIORITY: who comes by this step, */
        unsigned aside_at;    /* for this time, lets all others go first */
        struct model model;
        char paths[MAX_LAYERS][32], other[32]; /* root first; the other child */
        uint8_t other_initial[MODEL_MAX_CELLS];
};

static const char *old_leaf(const struct scene *scene)
{
        return scene->paths[scene->n_layers - 1];
}

/* Of the chain when the layers are gone. */
static const char *new_leaf(const struct scene *scene)
{
        return scene->paths[scene->last == scene->n_layers - 1 ? scene->destination
                                                               : scene->n_layers - 1];
}

static unsigned n_left(const struct scene *scene)
{
        return scene->n_layers - (scene->last - scene->first + 1);
}

static bool is_gone(const struct scene *scene, unsigned layer)
{
        return layer >= scene->first && layer <= scene->last;
}

/* Where a content that is a point in time for somebody else can change. */
static unsigned strangers_parent(const struct scene *scene)
{
        return scene->direction == MERGE_DOWN ? scene->destination : scene->first;
}

static uint32_t largest_block(const struct scene *scene)
{
        uint32_t largest = 0;

        for (unsigned i = 0; i < scene->n_layers; i++)
                largest = MAX_OF(largest, scene->block_sizes[i]);
        return largest;
}

static void choose_range(const struct scene *scene, struct random *random, uint32_t *ret_offset,
        uint32_t *ret_length)
{
        uint32_t block = largest_block(scene), n = scene->size / SIM_SECTOR;
        uint32_t at = (uint32_t)random_below(random, n) * SIM_SECTOR, length = SIM_SECTOR;

        switch (random_below(random, 5)) {
        case 0:
                at = at / block * block;
                length = block;
                break;
        case 1: length = (uint32_t)random_between(random, 1, 12) * SIM_SECTOR; break;
        case 2: length = MODEL_CELL; break;
        default: break;
        }
        if (scene->flavour == FLAVOUR_NARROW) {
                at = (uint32_t)random_below(random, 2) * SIM_SECTOR;
                length = SIM_SECTOR;
        }
        *ret_offset = at;
        *ret_length = MIN_OF(length, scene->size - at);
}

/* The guests do nothing until somebody steps aside, and then nothing that makes it durable. */
static bool is_quiet(const struct scene *scene)
{
        return scene->aside && strcmp(scene->aside, "drain-up-frees") == 0;
}

static void choose_ops(struct scene *scene, struct random *random)
{
        unsigned n = scene->n_threads ? (unsigned)random_between(random, 3, 18) : 0;
        struct op op = {0};

        for (unsigned i = 0; i < n; i++) {
                uint32_t offset = op.offset, length = op.length;
                uint64_t kind = random_below(random, 100);

                op = (struct op){
                        .kind = kind < 20 && !is_quiet(scene) ? OP_FLUSH
                                : kind < 30                   ? OP_TRIM
                                : kind < 43                   ? OP_ZERO
                                : kind < 53                   ? OP_READ
                                                              : OP_WRITE,
                        .thread = (uint8_t)random_below(random, scene->n_threads),
                        .life = (uint8_t)(i * scene->n_lives / n),
                };
                if (scene->has_reader && (op.kind == OP_READ || i % 3 == 2)) {
                        op.kind = OP_READ;
                        op.thread = (uint8_t)scene->n_threads;
                }
                choose_range(scene, random, &op.offset, &op.length);
                if (scene->flavour == FLAVOUR_PULL && (op.kind == OP_ZERO || op.kind == OP_TRIM)) {
                        op.offset -= op.offset % largest_block(scene);
                        op.length = MIN_OF(largest_block(scene), scene->size - op.offset);
                } else if (length && random_chance(random, 40)) {
                        op.offset = offset;
                        op.length = length;
                }
                op.fua = op.kind != OP_READ && op.kind != OP_FLUSH &&
                        random_chance(random, scene->flavour != FLAVOUR_PLAIN ? 50 : 20);
                op.fua &= !is_quiet(scene);
                op.no_hole = op.kind == OP_ZERO && random_chance(random, 30);
                op.nowait = random_chance(random, 20);
                model_add(&scene->model, &op);
        }
}

static void choose_merge(struct scene *scene, struct random *random)
{
        unsigned n = scene->n_layers;

        if (random_chance(random, 60)) {
                scene->direction = MERGE_DOWN;
                scene->first = (unsigned)random_between(random, 1, n - 1);
                scene->last = (unsigned)random_between(random, scene->first, n - 1);
                if (random_chance(random, 40)) /* the leaf goes, too */
                        scene->last = n - 1;
                scene->destination = scene->first - 1;
        } else {
                scene->direction = MERGE_UP;
                scene->last = (unsigned)random_below(random, n - 1);
                scene->first = (unsigned)random_between(random, 0, scene->last);
                if (scene->last > 0 && scene->first == 0 && random_chance(random, 60))
                        scene->first = 1; /* a root keeps its bytes: less to see */
                scene->destination = scene->last + 1;
        }
        if (random_chance(random, 15))
                scene->has_known = scene->direction == MERGE_DOWN && scene->last + 1 < n;
        else if (random_chance(random, 20))
                scene->has_stranger = scene->direction == MERGE_DOWN || scene->first > 0;
}

static void be_a_pull(struct scene *scene)
{
        scene->n_layers = MAX_OF(scene->n_layers, 3u);
        scene->n_threads = MAX_OF(scene->n_threads, 1u);
        scene->direction = MERGE_UP;
        scene->first = 1;
        scene->last = scene->n_layers - 2;
        scene->destination = scene->n_layers - 1;
        scene->size = MIN_OF(scene->size, 8192u);
        scene->has_known = false;
}

static void be_a_push_of_the_leaf(struct scene *scene)
{
        scene->direction = MERGE_DOWN;
        scene->first = 1;
        scene->last = scene->n_layers - 1;
        scene->destination = 0;
        scene->has_known = false;
}

static void choose_troubles(struct scene *scene, struct random *random)
{
        static const enum schedule_policy policies[] = {
                SCHEDULE_RANDOM, SCHEDULE_PRIORITY, SCHEDULE_INSIDE};
        /* Where a thread has looked and has not acted yet. */
        static const char *const asides[] = {
                "drain-no-grace-up", "drain-up-frees", "stale-owner", "drain-fua-dsync"};

        scene->split_writes = random_chance(random, 50);
        scene->nowait_again = random_chance(random, 20);
        scene->no_punch = random_chance(random, 10);
        scene->stops = random_chance(random, 20) ? (unsigned)random_between(random, 1, 6) : 0;
        scene->policy = policies[random_below(random, 3)];
        scene->has_reader = scene->n_threads > 0 && random_chance(random, 50);
        scene->inside_guest = scene->n_threads > 0 && random_chance(random, 50);
        scene->inside_step = 1 +
                (unsigned)random_below(
                        random, scene->inside_guest ? INSIDE_STEPS / 10 : INSIDE_STEPS);
        if (random_chance(random, 30)) {
                scene->policy = SCHEDULE_PRIORITY;
                scene->aside = scene->flavour == FLAVOUR_PULL
                        ? asides[random_below(random, 2)]
                        : asides[random_between(random, 2, 3)];
                scene->aside_at = (unsigned)random_between(random, 1, is_quiet(scene) ? 2 : 5);
                if (is_quiet(scene))
                        scene->flat_root = false;
                scene->has_reader = scene->n_threads > 0;
                if (strcmp(scene->aside, "stale-owner") == 0)
                        be_a_push_of_the_leaf(scene);
        }
        if (!random_chance(random, 18))
                return;
        scene->has_fault = true;
        scene->fault_life = (unsigned)random_below(random, scene->n_lives);
        scene->fault = (struct sim_fault){
                .call = SIM_SYNC,
                .failure = SIM_LOSE,
                .error = EIO,
                .at = (unsigned)random_below(random, 12),
                .path = scene->paths[random_chance(random, 50)
                                ? scene->destination
                                : random_below(random, scene->n_layers)],
        };
}

static void scene_init(struct scene *scene, uint64_t seed)
{
        static const uint32_t block_sizes[] = {4096, 4096, 2048, 8192};
        struct random random = {.state = random_mix(seed + 1)};
        bool mixed = random_chance(&random, 30);
        uint64_t flavour = random_below(&random, 100);

        memset(scene, 0, sizeof(*scene));
        scene->seed = seed;
        scene->flavour = flavour < 20 ? FLAVOUR_NARROW
                : flavour < 40        ? FLAVOUR_PULL
                                      : FLAVOUR_PLAIN;
        scene->n_layers = (unsigned)random_between(&random, 2, MAX_LAYERS);
        scene->n_threads = (unsigned)random_below(&random, MAX_THREADS + 1);
        scene->n_lives = random_chance(&random, 35) ? 2 : 1;
        scene->ends_by_cut = random_chance(&random, 50);
        scene->flat_root = random_chance(&random, 15);
        for (unsigned i = 0; i <= MAX_LAYERS; i++)
                scene->block_sizes[i] = mixed ? block_sizes[random_below(&random, 4)] : 4096;
        scene->size = (uint32_t)random_between(&random, 1, 4) * 4096;
        if (random_chance(&random, 20)) /* the last block ends early */
                scene->size -= SIM_SECTOR * (uint32_t)random_between(&random, 1, 3);
        choose_merge(scene, &random);
        if (scene->flavour == FLAVOUR_PULL)
                be_a_pull(scene);
        for (unsigned i = 0; i < MAX_LAYERS; i++)
                snprintf(scene->paths[i], sizeof(scene->paths[i]), "/d/layer%u.vhd", i);
        snprintf(scene->other, sizeof(scene->other), "/d/other.vhd");
        choose_troubles(scene, &random);
        model_init(&scene->model, seed, scene->size / MODEL_CELL);
        choose_ops(scene, &random);
}

static void image_id(const struct scene *scene, unsigned layer, uint8_t ret[16])
{
        memset(ret, 0x11, 16);
        memcpy(ret, &scene->seed, sizeof(scene->seed));
        ret[15] = (uint8_t)layer;
}

static void scene_print(const struct scene *scene, FILE *to)
{
        char text[96];

        fprintf(to, "seed %" PRIu64 ": %u layers, blocks of", scene->seed, scene->n_layers);
        for (unsigned i = 0; i < scene->n_layers; i++)
                fprintf(to, " %u", scene->block_sizes[i]);
        fprintf(to, "%s, %u bytes; %u to %u go %s into %u%s%s%s%s%s",
                scene->flat_root ? ", fixed root" : "", scene->size, scene->first, scene->last,
                merge_direction_to_string(scene->direction), scene->destination,
                scene->has_known ? ", a known child" : "",
                scene->has_stranger ? ", a stranger" : "",
                scene->split_writes ? ", torn writes" : "",
                scene->nowait_again ? ", nothing without waiting" : "",
                scene->no_punch ? ", no holes" : "");
        if (scene->aside)
                fprintf(to, ", steps aside at %s number %u", scene->aside, scene->aside_at);
        if (scene->stops)
                fprintf(to, ", stopped at question %u", scene->stops);
        if (scene->has_fault)
                fprintf(to, ", sync number %u of %s fails in life %u", scene->fault.at,
                        scene->fault.path, scene->fault_life);
        fputc('\n', to);
        for (uint32_t i = 0; i < scene->model.n_ops; i++)
                fprintf(to, "  operation %2u, life %u, thread %u: %s\n", i,
                        scene->model.ops[i].life, scene->model.ops[i].thread,
                        model_op_name(&scene->model.ops[i], text));
}

/* ---- a run ---- */

/* What opening a world found. */
struct outcome {
        uint64_t key;
        bool bad, poisoned, merged;
        uint8_t values[MODEL_MAX_CELLS];
        char sentence[512];
};

struct run {
        struct scene scene;
        struct random random;
        struct instants instants;
        bool merged; /* whoever keeps the books knows that the layers are gone */
        unsigned life;
        struct sim_fs *fs;
        struct chain *chain;
        unsigned n_questions, n_asides, aside_instant;
        bool moves; /* the merge has begun to move blocks, or is over */
        struct outcome *outcomes;
        size_t n_outcomes, room, n_spent;
};

static bool is_where_to_step_aside(const char *name)
{
        return running && running->scene.aside && strcmp(running->scene.aside, name) == 0 &&
                ++running->n_asides == running->scene.aside_at;
}

__attribute__((format(printf, 2, 3))) static int wrong(char sentence[512], const char *format, ...)
{
        va_list list;

        va_start(list, format);
        vsnprintf(sentence, 512, format, list);
        va_end(list);
        return -1;
}

/* ---- the images ---- */

static int create_image(
        struct scene *scene, struct sim_fs *fs, const char *path, unsigned number, int parent)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC,
                .size = scene->size,
                .block_size = scene->block_sizes[number],
                .now = 1700000000,
        };
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;
        int r = file_open(&fs->fs, path, FILE_WRITE | FILE_CREATE, &file, &err);

        image_id(scene, number, params.unique_id);
        if (parent >= 0) {
                params.type = VHD_TYPE_DIFFERENCING;
                image_id(scene, (unsigned)parent, params.parent_id);
                params.parent_name = params.parent_relative =
                        strrchr(scene->paths[parent], '/') + 1;
        } else if (scene->flat_root) {
                params.type = VHD_TYPE_FIXED;
                params.block_size = 0;
        }
        return r < 0 ? r : vhd_create(file, &params, &err);
}

/* The image gets data of its own; @values: what the disk of this leaf reads as. */
static int fill_image(struct scene *scene, struct sim_fs *fs, const char *path, uint8_t value,
        uint8_t values[], struct random *random)
{
        struct chain_options chain_options = {.fs = &fs->fs, .writable = true};
        /* A root with nothing in it: what is drained is all there is. */
        unsigned n = value == VALUE_LAYER && scene->aside ? 0 : (unsigned)random_below(random, 6);
        struct error err = ERROR_INIT;
        struct chain *chain;
        int r = chain_open(path, &chain_options, &chain, &err);

        for (unsigned i = 0; i < n && r == 0; i++) {
                uint32_t offset, length;

                choose_range(scene, random, &offset, &length);
                if (random_chance(random, 15)) { /* zeros that hide what is below */
                        memset(values + offset / MODEL_CELL, VALUE_ZERO, length / MODEL_CELL);
                        r = chain_zero(chain, length, offset, 0);
                        continue;
                }
                for (uint32_t at = offset; at < offset + length && r == 0; at += MODEL_CELL) {
                        uint8_t bytes[MODEL_CELL];
                        uint32_t cell = at / MODEL_CELL;

                        values[cell] = value;
                        model_fill(&scene->model, cell, value, bytes);
                        r = chain_write(chain, bytes, MODEL_CELL, at, 0);
                }
        }
        return r < 0 ? r : chain_close(chain, &err);
}

static int make_other(
        struct scene *scene, struct sim_fs *fs, unsigned parent, struct random *random)
{
        int r = create_image(scene, fs, scene->other, MAX_LAYERS, (int)parent);

        return r < 0
                ? r
                : fill_image(scene, fs, scene->other, VALUE_OTHER, scene->other_initial, random);
}

static struct sim_world *make_world(struct scene *scene)
{
        struct random random = {.state = random_mix(~scene->seed)};
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        uint8_t *values = scene->model.initial;
        int r = 0;

        fs->fs.single_threaded = true;
        for (unsigned i = 0; i < scene->n_layers && r == 0; i++) {
                r = create_image(scene, fs, scene->paths[i], i, (int)i - 1);
                if (r == 0)
                        r = fill_image(scene, fs, scene->paths[i], (uint8_t)(VALUE_LAYER + i),
                                values, &random);
                if ((scene->has_known && i == scene->last) ||
                        (scene->has_stranger && i == strangers_parent(scene)))
                        memcpy(scene->other_initial, values, scene->model.n_cells);
        }
        if (r == 0 && scene->has_known)
                r = make_other(scene, fs, scene->last, &random);
        if (r == 0 && scene->has_stranger)
                r = make_other(scene, fs, strangers_parent(scene), &random);
        assert(r == 0);
        sim_world_settle(fs->world);
        return sim_fs_snapshot(fs);
}

static int open_chain(
        struct sim_fs *fs, const char *path, bool writable, struct chain **ret, char sentence[512])
{
        struct chain_options chain_options = {.fs = &fs->fs, .writable = writable};
        struct error err = ERROR_INIT;

        if (chain_open(path, &chain_options, ret, &err) < 0)
                return wrong(sentence, "'%s' does not open for %s: %s", path,
                        writable ? "writing" : "reading", err.message);
        return 0;
}

/* ---- the merge ---- */

static void note_moving(struct run *run)
{
        run->moves = true;
        schedule_wake(&run->moves);
}

static void note_aside(struct run *run)
{
        run->aside_instant = run->instants.n;
        note_moving(run);
}

static bool go_on(void *opaque)
{
        struct run *run = opaque;

        if (!is_quiet(&run->scene))
                note_moving(run);
        return !run->scene.stops || ++run->n_questions != run->scene.stops;
}

/* Begins, or begins again, and comes to the end, or to where it is stopped (1). */
static int do_merge(const struct scene *scene, struct chain *chain,
        const struct merge_controls *controls, struct error *err)
{
        struct merge_params params = {0};
        struct merge_child child = {.path = scene->other};
        struct merge_plan plan;
        struct merge *merge;
        int r = merge_plan(chain, scene->first, scene->last, scene->direction, false, &plan, err);

        if (r == 0 && plan.destination != scene->destination)
                r = fail(err, EINVAL, "the plan's destination is %u", plan.destination);
        image_id(scene, 0x80, params.new_id);
        if (r == 0)
                r = merge_begin(chain, &plan, &params, &merge, err);
        if (r < 0)
                return fail_prefix(err, r, "beginning");
        r = merge_run(merge, controls, err);
        if (r < 0) {
                merge_free(merge);
                return r == -ECANCELED ? 1 : fail_prefix(err, r, "running");
        }
        r = merge_finish(merge, &child, scene->has_known ? 1 : 0, err);
        return r < 0 ? fail_prefix(err, r, "finishing") : 0;
}

/* The layers' files, and what lies beside them, are the caller's to remove. */
static void remove_layers(const struct scene *scene, struct sim_fs *fs)
{
        for (unsigned i = scene->first; i <= scene->last; i++)
                if (chain_forget_image(&fs->fs, scene->paths[i], NULL) == 0)
                        fs_unlink(&fs->fs, scene->paths[i]);
}

static void merge_alone(struct run *run)
{
        const struct merge_controls controls = {.opaque = run, .go_on = go_on};
        struct error err = ERROR_INIT;
        int r;

        do {
                r = do_merge(&run->scene, run->chain, &controls, &err);
                instants_take(&run->instants);
                if (driver_options.trace)
                        fprintf(stderr, "  [%u] merge: %s\n", schedule_self(),
                                r < 0       ? err.message
                                        : r ? "stopped"
                                            : "finished");
        } while (r == 1);
        if (r < 0) {
                if (!instants_may_fail(&run->instants))
                        driver_violation("the merge fails: %s", err.message);
                return;
        }
        instants_take(&run->instants);
        if (chain_depth(run->chain) != n_left(&run->scene))
                driver_violation(
                        "the chain has %u layers after the merge", chain_depth(run->chain));
        run->merged = true; /* it is in the books, durably */
        run->instants.stage = 1;
        driver_result->counters[0]++;
        instants_take(&run->instants);
        remove_layers(&run->scene, run->fs);
}

static void *merge_main(void *argument)
{
        merge_alone(argument);
        note_moving(argument);
        return NULL;
}

/* ---- the guest ---- */

static void *guest_thread(void *argument)
{
        const struct guest *guest = argument;
        struct run *run = running;

        while (run->scene.aside && !run->moves)
                schedule_wait(&run->moves);
        return guest_main((void *)(uintptr_t)guest);
}

/* ---- what was left: reading it ---- */

static int read_chain(
        const struct scene *scene, struct chain *chain, uint8_t values[], char sentence[512])
{
        static uint8_t bytes[MODEL_MAX_CELLS * MODEL_CELL];
        int r = chain_read(chain, bytes, scene->size, 0, 0);

        if (chain_size(chain) != scene->size)
                return wrong(sentence, "the disk has %" PRIu64 " bytes and should have %u",
                        chain_size(chain), scene->size);
        if (r < 0)
                return wrong(sentence, "it cannot be read: %s", strerror(-r));
        for (uint32_t c = 0; c < scene->model.n_cells; c++)
                values[c] = model_value(&scene->model, c, bytes + c * MODEL_CELL);
        return 0;
}

static int compare(const struct scene *scene, const uint8_t want[], const uint8_t got[],
        const char *what, char sentence[512])
{
        char a[32], b[32];

        for (uint32_t c = 0; c < scene->model.n_cells; c++)
                if (want[c] != got[c])
                        return wrong(sentence, "cell %u is %s, and %s %s", c,
                                model_value_name(want[c], a), what, model_value_name(got[c], b));
        return 0;
}

/* The other child: what it reads as is as it was; a stranger may be refused for its parent's id. */
static int read_other(const struct scene *scene, struct sim_fs *fs, char sentence[512])
{
        uint8_t got[MODEL_MAX_CELLS];
        struct chain *chain = NULL;
        int r;

        if (!scene->has_known && !scene->has_stranger)
                return 0;
        r = open_chain(fs, scene->other, false, &chain, sentence);
        if (r < 0) {
                if (scene->has_known)
                        return r;
                sentence[0] = '\0';
                return 0;
        }
        r = read_chain(scene, chain, got, sentence);
        chain_abandon(chain);
        if (r == 0)
                r = compare(scene, scene->other_initial, got, "the other child now has", sentence);
        return r;
}

/* A reader's view, which changes nothing. */
static int read_world(const struct scene *scene, const struct sim_world *world, bool merged,
        uint8_t values[], char sentence[512])
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        _cleanup_(sim_world_freep) struct sim_world *after = NULL;
        struct chain *chain = NULL;
        int r;

        fs->fs.single_threaded = true;
        r = open_chain(fs, merged ? new_leaf(scene) : old_leaf(scene), false, &chain, sentence);
        if (r == 0)
                r = read_chain(scene, chain, values, sentence);
        chain_abandon(chain);
        if (r == 0)
                r = read_other(scene, fs, sentence);
        if (r < 0)
                return r;
        after = sim_fs_snapshot(fs);
        if (sim_world_hash(after) != sim_world_hash(world))
                return wrong(sentence, "a reader changed it");
        return 0;
}

static int compare_cuts(struct run *run, const struct sim_world *world, bool merged,
        const uint8_t want[], char sentence[512])
{
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
        uint8_t got[MODEL_MAX_CELLS];

        for (unsigned i = 0; i < AFTER_SAMPLES; i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        i == 0 ? sim_world_cut(world, false) : sim_cut_sample(cut, &run->random);

                if (read_world(&run->scene, state, merged, got, sentence) < 0 ||
                        compare(&run->scene, want, got, "after its flush and a cut", sentence) < 0)
                        return -1;
        }
        return 0;
}

/* ---- what was left: recovery, and the end of the merge ---- */

static void note_finding(void *opaque, const struct vhd_finding *finding)
{
        if (finding->severity != VHD_INFO)
                wrong(opaque, "check: %.400s", finding->sentence);
}

static int check_image(struct sim_fs *fs, const char *path, char sentence[512])
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_raw_footer footer;
        struct vhd_check_result checked;
        struct error err = ERROR_INIT;
        char found[512] = "";
        uint64_t size;
        int r = file_open(&fs->fs, path, FILE_READ, &file, &err);

        if (r == 0)
                r = vhd_check(file, VHD_CHECK_DEEP, note_finding, found, &checked, &err);
        if (r < 0)
                return wrong(sentence, "it cannot be checked: %s", err.message);
        if (found[0])
                return wrong(sentence, "'%s': %.400s", path, found);
        r = file_size_get(file, &size);
        if (r == 0)
                r = file_read_exact(file, &footer, sizeof(footer), size - sizeof(footer));
        if (r < 0)
                return wrong(sentence, "the footer of '%s' cannot be read", path);
        return footer.hidden ? wrong(sentence, "'%s' has the mark of a merge still", path) : 0;
}

static void note_name(void *opaque, const char *path, uint64_t size)
{
        size_t n = strlen(path);

        if (n < 4 || strcmp(path + n - 4, ".vhd") != 0)
                wrong(opaque, "'%s' of %" PRIu64 " bytes is left over", path, size);
}

static int check_end(struct run *run, const struct sim_world *world, char sentence[512])
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        char found[512] = "";

        if (sim_world_n_regions(world) != 0)
                return wrong(sentence, "a region is left over after a clean close");
        sim_world_each(world, note_name, found);
        if (found[0])
                return wrong(sentence, "%.500s", found);
        for (unsigned i = 0; i < run->scene.n_layers; i++)
                if (!is_gone(&run->scene, i) && check_image(fs, run->scene.paths[i], sentence) < 0)
                        return -1;
        return run->scene.has_known ? check_image(fs, run->scene.other, sentence) : 0;
}

struct watch {
        struct {
                struct sim_world *world;
                bool merged;
        } seen[DEEP_DEATHS];
        unsigned n, every, n_changes;
        bool merged;
};

static void watch_change(struct sim_fs *fs, enum sim_call call)
{
        struct watch *watch = fs->opaque;

        (void)call;
        if (watch->n == DEEP_DEATHS || watch->n_changes++ % watch->every)
                return;
        watch->seen[watch->n].world = sim_fs_snapshot(fs);
        watch->seen[watch->n++].merged = watch->merged;
}

/* Two cells again, as they are, with FUA: a cut right after must leave these, whatever looked durable
 * and was not. */
static int judge_fua(struct run *run, struct sim_fs *fs, struct chain *chain, bool merged,
        const uint8_t values[], char sentence[512])
{
        const struct model *model = &run->scene.model;
        uint32_t cell = (uint32_t)random_below(&run->random, model->n_cells / 2) * 2;
        _cleanup_(sim_world_freep) struct sim_world *world = NULL, *cut = NULL;
        uint8_t bytes[2 * MODEL_CELL], got[MODEL_MAX_CELLS];
        char a[32], b[32];
        int r;

        model_fill(model, cell, values[cell], bytes);
        model_fill(model, cell + 1, values[cell + 1], bytes + MODEL_CELL);
        r = chain_write(chain, bytes, sizeof(bytes), cell * MODEL_CELL, CHAIN_FUA);
        if (r < 0)
                return wrong(sentence, "it takes no FUA write: %s", strerror(-r));
        world = sim_fs_snapshot(fs);
        cut = sim_world_cut(world, false);
        if (read_world(&run->scene, cut, merged, got, sentence) < 0)
                return -1;
        for (uint32_t c = cell; c < cell + 2; c++)
                if (got[c] != values[c])
                        return wrong(sentence,
                                "cell %u is written as %s with FUA, and after a cut it is %s", c,
                                model_value_name(values[c], a), model_value_name(got[c], b));
        return 0;
}

/* The layers are gone, or go now. */
static int end_merge(struct run *run, struct sim_fs *fs, struct chain *chain, struct watch *watch,
        char sentence[512])
{
        const struct merge_controls controls = {0};
        const struct scene *scene = &run->scene;
        struct error err = ERROR_INIT;

        if (!watch->merged && chain_depth(chain) == scene->n_layers) {
                if (do_merge(scene, chain, &controls, &err) < 0)
                        return wrong(sentence, "the merge does not go on: %s", err.message);
                driver_result->counters[1]++;
        }
        if (chain_depth(chain) != n_left(scene))
                return wrong(sentence, "the chain has %u layers", chain_depth(chain));
        watch->merged = true;
        remove_layers(scene, fs);
        return 0;
}

/* 1: poisoned, so it is for reading only. */
static int open_and_go_on(struct run *run, struct sim_fs *fs, struct outcome *want,
        struct chain **ret, struct watch *watch)
{
        const char *path = want->merged ? new_leaf(&run->scene) : old_leaf(&run->scene);
        uint8_t got[MODEL_MAX_CELLS];
        char *sentence = want->sentence;
        int r;

        if (open_chain(fs, path, true, ret, sentence) < 0 ||
                read_chain(&run->scene, *ret, got, sentence) < 0 ||
                compare(&run->scene, want->values, got, "for a writer", sentence) < 0)
                return -1;
        if (!chain_is_writable(*ret))
                return want->poisoned ? 1 : wrong(sentence, "it opens read-only");
        if (random_chance(&run->random, 20) &&
                judge_fua(run, fs, *ret, want->merged, want->values, sentence) < 0)
                return -1;
        if (random_chance(&run->random, 50)) {
                _cleanup_(sim_world_freep) struct sim_world *flushed = NULL;

                r = chain_flush(*ret);
                if (r < 0)
                        return wrong(sentence, "it cannot be flushed: %s", strerror(-r));
                flushed = sim_fs_snapshot(fs);
                if (compare_cuts(run, flushed, want->merged, want->values, sentence) < 0)
                        return -1;
        }
        if (end_merge(run, fs, *ret, watch, sentence) < 0)
                return -1;
        if (read_chain(&run->scene, *ret, got, sentence) < 0)
                return -1;
        return compare(&run->scene, want->values, got, "after the merge", sentence);
}

static int recover(struct run *run, struct sim_fs *fs, struct outcome *want, struct watch *watch)
{
        _cleanup_(chain_abandonp) struct chain *chain = NULL;
        _cleanup_(sim_world_freep) struct sim_world *flushed = NULL, *closed = NULL;
        struct error err = ERROR_INIT;
        char *sentence = want->sentence;
        int r = open_and_go_on(run, fs, want, &chain, watch);

        if (r != 0)
                return MIN_OF(r, 0);
        r = chain_flush(chain);
        if (r < 0)
                return wrong(sentence, "it cannot be flushed after the merge: %s", strerror(-r));
        flushed = sim_fs_snapshot(fs);
        if (compare_cuts(run, flushed, true, want->values, sentence) < 0)
                return -1;
        if (chain_close(TAKE_PTR(chain), &err) < 0)
                return wrong(sentence, "it does not close: %s", err.message);
        closed = sim_fs_snapshot(fs);
        if (check_end(run, closed, sentence) < 0)
                return -1;
        return compare_cuts(run, closed, true, want->values, sentence);
}

static int64_t find_wrong(
        const struct run *run, const uint8_t values[], uint64_t begun, uint64_t required)
{
        const struct model *model = &run->scene.model;

        for (uint32_t c = 0; c < model->n_cells; c++)
                if (!model_allows(model, c, values[c], begun, required))
                        return c;
        return -1;
}

/* The process may die in its recovery, too, and finds the same the next time; or the power goes. */
static int judge_inside(
        struct run *run, struct watch *watch, const struct instant *instant, struct outcome *want)
{
        uint8_t got[MODEL_MAX_CELLS];
        char text[32];

        for (unsigned i = 0; i < watch->n; i++) {
                const struct sim_world *world = watch->seen[i].world;
                _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
                _cleanup_(sim_world_freep) struct sim_world *state =
                        sim_cut_sample(cut, &run->random);
                int64_t cell;

                if (read_world(&run->scene, world, watch->seen[i].merged, got, want->sentence) <
                                0 ||
                        compare(&run->scene, want->values, got, "after a death in the recovery",
                                want->sentence) < 0 ||
                        read_world(&run->scene, state, watch->seen[i].merged, got, want->sentence) <
                                0)
                        return -1;
                cell = find_wrong(run, got, instant->moment.begun, instant->moment.covered);
                if (cell >= 0)
                        return wrong(want->sentence,
                                "after a cut in its recovery cell %" PRIi64 " is %s", cell,
                                model_value_name(got[cell], text));
        }
        return 0;
}

static void use_tool(struct run *run, struct sim_fs *fs, bool merged)
{
        const struct scene *scene = &run->scene;
        unsigned i = (unsigned)random_between(&run->random, 1, scene->n_layers - 1);
        struct chain_options chain_options = {.fs = &fs->fs};
        struct relink_params relinking = {.fs = &fs->fs};
        struct resize_params resizing = {.size = scene->size, .shrink = true};
        struct resize_report report;

        if (merged && is_gone(scene, i))
                return;
        switch (random_below(&run->random, 3)) {
        case 0: relink(scene->paths[i], scene->paths[i - 1], &relinking, NULL, NULL); break;
        case 1: resize(scene->paths[i], &chain_options, &resizing, &report, NULL); break;
        default: chain_settle_image(&fs->fs, scene->paths[i], NULL, NULL); break;
        }
}

/* Before the chain is opened a tool is used on one image of it, and does what it is asked or refuses. Then
 * the process dies, or the power goes. */
static int judge_tool(struct run *run, const struct sim_world *world, const struct instant *instant,
        struct outcome *want)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        _cleanup_(sim_world_freep) struct sim_world *used = NULL, *state = NULL;
        _cleanup_(sim_cut_freep) struct sim_cut *cut = NULL;
        uint8_t got[MODEL_MAX_CELLS];
        char text[32];
        int64_t cell;

        fs->fs.single_threaded = true;
        fs->region_limit = REGION_BYTES;
        use_tool(run, fs, want->merged);
        used = sim_fs_snapshot(fs);
        cut = sim_cut_new(used);
        state = sim_cut_sample(cut, &run->random);
        if (read_world(&run->scene, used, want->merged, got, want->sentence) < 0 ||
                compare(&run->scene, want->values, got, "after a tool's use of one image",
                        want->sentence) < 0 ||
                read_world(&run->scene, state, want->merged, got, want->sentence) < 0)
                return -1;
        cell = find_wrong(run, got, instant->moment.begun, instant->moment.covered);
        if (cell < 0)
                return 0;
        return wrong(want->sentence,
                "after a tool's use of one image, and a cut, cell %" PRIi64 " is %s", cell,
                model_value_name(got[cell], text));
}

/* What a world holds, as it is and when all that was not synced is lost. */
static int judge_twice(struct run *run, const struct sim_world *world,
        const struct instant *instant, bool merged, const char *what, char sentence[512])
{
        for (unsigned i = 0; i < 2; i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        i == 0 ? sim_world_clone(world) : sim_world_cut(world, false);
                uint8_t got[MODEL_MAX_CELLS];
                char text[32];
                int64_t cell;

                if (read_world(&run->scene, state, merged, got, sentence) < 0)
                        return -1;
                cell = find_wrong(run, got, instant->moment.begun, instant->moment.covered);
                if (cell >= 0)
                        return wrong(sentence, "%s%s cell %" PRIi64 " is %s", what,
                                i == 0 ? "" : ", and a cut,", cell,
                                model_value_name(got[cell], text));
        }
        return 0;
}

/* A sync fails while the chain is opened, once: whoever opens it next must know (E5). */
static int judge_failing_sync(struct run *run, const struct sim_world *world,
        const struct instant *instant, struct outcome *want)
{
        const struct scene *scene = &run->scene;
        const char *path = want->merged ? new_leaf(scene) : old_leaf(scene);
        struct sim_fault fault = {
                .call = SIM_SYNC,
                .failure = SIM_LOSE,
                .error = EIO,
                .at = (unsigned)random_below(&run->random, 2),
                .path = scene->paths[random_below(&run->random, scene->n_layers)],
        };
        _cleanup_(sim_world_freep) struct sim_world *left = sim_world_clone(world);

        for (unsigned i = 0; i < 2; i++) {
                _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(TAKE_PTR(left));
                _cleanup_(chain_abandonp) struct chain *chain = NULL;

                fs->fs.single_threaded = true;
                fs->region_limit = REGION_BYTES;
                if (i == 0)
                        sim_fs_arm(fs, &fault);
                if (open_chain(fs, path, true, &chain, want->sentence) == 0 &&
                        chain_is_writable(chain))
                        (void)chain_flush(chain);
                left = sim_fs_snapshot(fs);
                if (i == 0 && !fs->fault_hit)
                        return 0;
        }
        return judge_twice(run, left, instant, want->merged, "after a failed sync", want->sentence);
}

static int judge_world(struct run *run, const struct sim_world *world,
        const struct instant *instant, struct outcome *ret)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = NULL;
        struct watch watch = {
                .merged = ret->merged, .every = (unsigned)random_between(&run->random, 1, 4)};
        int r = read_world(&run->scene, world, ret->merged, ret->values, ret->sentence);

        if (r == 0 && random_chance(&run->random, 15))
                r = judge_tool(run, world, instant, ret);
        if (r == 0 && random_chance(&run->random, 15))
                r = judge_failing_sync(run, world, instant, ret);
        if (r < 0)
                return r;
        fs = sim_fs_new(sim_world_clone(world));
        fs->fs.single_threaded = random_chance(&run->random, 50);
        fs->region_limit = REGION_BYTES;
        fs->opaque = &watch;
        if (random_chance(&run->random, 10))
                fs->on_change = watch_change;
        r = recover(run, fs, ret, &watch);
        fs->on_change = NULL;
        if (r == 0)
                r = judge_inside(run, &watch, instant, ret);
        for (unsigned i = 0; i < watch.n; i++)
                sim_world_free(watch.seen[i].world);
        return r;
}

/* ---- what may be there ---- */

static struct outcome *outcome_of(struct run *run, const struct sim_world *world,
        const struct instant *instant, bool poisoned)
{
        uint64_t key = random_mix(sim_world_hash(world)) + sim_world_durable_hash(world) + poisoned;
        struct outcome *outcome;

        for (size_t i = 0; i < run->n_outcomes; i++)
                if (run->outcomes[i].key == key)
                        return &run->outcomes[i];
        if (run->n_outcomes == run->room) {
                run->room = 2 * run->room + 64;
                run->outcomes = realloc(run->outcomes, run->room * sizeof(*run->outcomes));
                assert(run->outcomes != NULL);
        }
        outcome = &run->outcomes[run->n_outcomes++];
        memset(outcome, 0, sizeof(*outcome));
        outcome->key = key;
        outcome->poisoned = poisoned;
        outcome->merged = instant->stage;
        outcome->bad = judge_world(run, world, instant, outcome) < 0;
        driver_result->states++;
        return outcome;
}

static void judge_state(struct run *run, const struct sim_world *world, unsigned index,
        const char *what, uint64_t required, bool poisoned)
{
        const struct instant *instant = &run->instants.all[index];
        const struct outcome *outcome = outcome_of(run, world, instant, poisoned);
        int64_t cell;
        char text[32];

        if (outcome->bad) {
                driver_violation(
                        "life %u, instant %u, %s: %s", run->life, index, what, outcome->sentence);
                return;
        }
        cell = find_wrong(run, outcome->values, instant->moment.begun, required);
        if (cell >= 0)
                driver_violation("life %u, instant %u, %s: cell %" PRIi64 " is %s, begun %#" PRIx64
                                 ", required %#" PRIx64,
                        run->life, index, what, cell, model_value_name(outcome->values[cell], text),
                        instant->moment.begun, required);
}

static uint64_t required_after_death(const struct instant *instant)
{
        return instant->poisoned ? instant->moment.covered : instant->moment.answered;
}

/* A death between two stores: nothing was answered or seen by anybody in between. */
static void judge_torn_death(struct run *run, unsigned index)
{
        const struct instant *instant = &run->instants.all[index], *before = instant - 1;
        _cleanup_(sim_world_freep) struct sim_world *torn = NULL;

        if (index == 0 || sim_world_same_regions(before->world, instant->world))
                return;
        torn = sim_world_torn_regions(before->world, instant->world, &run->random);
        if (torn)
                judge_state(run, torn, index, "a death within a record",
                        instant->poisoned ? instant->moment.covered : before->moment.answered,
                        instant->poisoned);
}

static void judge_instant(struct run *run, unsigned index)
{
        const struct instant *instant = &run->instants.all[index];
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(instant->world);
        uint64_t n_states = sim_cut_n_states(cut);
        bool all = n_states <= FULL_STATES;

        if (!instant->unnoted)
                judge_state(run, instant->world, index, "the process's death",
                        required_after_death(instant), instant->poisoned);
        if (!instant->unnoted && !driver_result->violated)
                judge_torn_death(run, index);
        for (uint64_t i = 0; i < (all ? n_states : SAMPLES) && !driver_result->violated; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world =
                        all ? sim_cut_state(cut, i) : sim_cut_sample(cut, &run->random);

                judge_state(run, world, index, "a power cut", instant->moment.covered, false);
        }
}

/* In an order of chance, until the life's share of states is used up. */
static void judge_instants(struct run *run)
{
        unsigned n = run->instants.n;
        _cleanup_free_ unsigned *order = malloc((n + 1) * sizeof(unsigned));
        size_t stop = run->n_outcomes + driver_options.budget / run->scene.n_lives;

        for (unsigned i = 0; i < n; i++)
                order[i] = i;
        for (unsigned i = n; i > 1; i--) {
                unsigned k = (unsigned)random_below(&run->random, i), last = order[i - 1];

                order[i - 1] = order[k];
                order[k] = last;
        }
        /* What came right after a step aside is what it was for. */
        for (unsigned i = 0, first = 0; run->aside_instant && i < n; i++) {
                unsigned instant = order[i];

                if (instant < run->aside_instant || instant >= run->aside_instant + ASIDE_INSTANTS)
                        continue;
                order[i] = order[first];
                order[first++] = instant;
        }
        for (unsigned i = 0; i < n && !driver_result->violated && run->n_outcomes < stop; i++)
                judge_instant(run, order[i]);
        driver_result->instants += n;
}

/* ---- lives ---- */

static void work(struct run *run)
{
        unsigned n = run->scene.n_threads + run->scene.has_reader;
        struct guest guests[MAX_THREADS + 1];
        pthread_t merger;
        bool merges = !run->merged && chain_depth(run->chain) == run->scene.n_layers;

        run->moves = !merges;

        if (run->scene.policy == SCHEDULE_INSIDE)
                schedule_set_policy(SCHEDULE_INSIDE, run->scene.seed, run->scene.inside_step);
        /* The first to be made is the one inside whose steps the others run. */
        if (merges && !run->scene.inside_guest &&
                pthread_create(&merger, NULL, merge_main, run) != 0)
                abort();
        for (unsigned i = n; i-- > 0;) {
                guests[i] = (struct guest){.chain = run->chain,
                        .model = &run->scene.model,
                        .instants = &run->instants,
                        .thread = i,
                        .life = run->life};
                if (pthread_create(&guests[i].id, NULL, guest_thread, &guests[i]) != 0)
                        abort();
        }
        if (merges && run->scene.inside_guest &&
                pthread_create(&merger, NULL, merge_main, run) != 0)
                abort();
        for (unsigned i = 0; i < n; i++)
                pthread_join(guests[i].id, NULL);
        if (merges)
                pthread_join(merger, NULL);
}

/* When all have come to their end the living see everything that was answered. */
static void read_living(struct run *run)
{
        const struct moment *now = &run->scene.model.now;
        uint8_t values[MODEL_MAX_CELLS];
        char sentence[512], text[32];
        int64_t cell;

        if (read_chain(&run->scene, run->chain, values, sentence) < 0) {
                driver_violation("life %u at its end: %s", run->life, sentence);
                return;
        }
        cell = find_wrong(run, values, now->begun, now->answered);
        if (cell >= 0)
                driver_violation("life %u at its end: cell %" PRIi64 " reads as %s", run->life,
                        cell, model_value_name(values[cell], text));
}

static bool open_life(struct run *run, struct sim_world *world)
{
        struct sim_fs *fs = run->fs = sim_fs_new(world);
        char sentence[512];
        bool good;

        instants_watch(&run->instants, fs, &run->scene.model, MAX_INSTANTS);
        fs->split_writes = run->scene.split_writes;
        fs->nowait_again = run->scene.nowait_again;
        fs->no_punch = run->scene.no_punch;
        fs->region_limit = REGION_BYTES;
        fs->random.state = run->scene.seed + run->life;
        fs->trace = driver_options.trace ? stderr : NULL;
        if (run->scene.has_fault && run->scene.fault_life == run->life)
                sim_fs_arm(fs, &run->scene.fault);
        good = open_chain(fs, run->merged ? new_leaf(&run->scene) : old_leaf(&run->scene), true,
                       &run->chain, sentence) == 0;
        if (good && chain_is_writable(run->chain))
                return true;
        if (!instants_may_fail(&run->instants))
                driver_violation("life %u does not open for writing: %s", run->life,
                        good ? "it is for reading only" : sentence);
        return false;
}

/* The disk on which the next life begins. */
static struct sim_world *next_world(struct run *run)
{
        unsigned index = (unsigned)random_below(&run->random, run->instants.n);
        const struct instant *instant = &run->instants.all[index];
        struct model *model = &run->scene.model;
        _cleanup_(sim_cut_freep) struct sim_cut *cut = NULL;
        uint8_t values[MODEL_MAX_CELLS];
        struct sim_world *world;
        char sentence[512];

        if (driver_options.trace)
                fprintf(stderr, "life %u ends at instant %u\n", run->life, index);
        model->now = instant->moment;
        model->now.ended = model->now.begun;
        run->merged = instant->stage;
        run->instants.stage = instant->stage;
        if (!run->scene.ends_by_cut && !instant->unnoted) {
                run->instants.poisoned = instant->poisoned;
                return sim_world_clone(instant->world);
        }
        run->instants.poisoned = false;
        cut = sim_cut_new(instant->world);
        world = sim_cut_sample(cut, &run->random);
        if (read_world(&run->scene, world, run->merged, values, sentence) < 0)
                driver_violation(
                        "life %u, instant %u, a power cut: %s", run->life, index, sentence);
        else
                model_restart(model, values);
        return world;
}

/* Takes @world over; answers the next life's, or NULL. */
static struct sim_world *live(struct run *run, struct sim_world *world)
{
        bool last = run->life + 1 == run->scene.n_lives;
        struct sim_world *next = NULL;

        run->n_questions = run->n_asides = run->aside_instant = 0;
        running = run;
        if (run->scene.policy != SCHEDULE_INSIDE)
                schedule_set_policy(run->scene.policy, run->scene.seed * 4 + run->life, POINTS);
        driver_mutants_on = true;
        if (open_life(run, world)) {
                work(run);
                if (!driver_result->violated)
                        read_living(run);
        }
        instants_rest(&run->instants);
        running = NULL;
        schedule_set_policy(SCHEDULE_STAY, run->scene.seed, 0);
        run->chain = chain_abandon(run->chain);
        if (!driver_result->violated)
                judge_instants(run);
        if (!last && !driver_result->violated && run->instants.n > 0)
                next = next_world(run);
        driver_mutants_on = false;
        instants_clear(&run->instants);
        run->fs = sim_fs_free(run->fs);
        return next;
}

static void run_seed(uint64_t seed)
{
        struct run *run = calloc(1, sizeof(*run));
        struct sim_world *world;

        assert(run != NULL);
        run->random.state = random_mix(seed + 7);
        run->instants.trace = driver_options.trace;
        scene_init(&run->scene, seed);
        if (driver_options.trace)
                scene_print(&run->scene, stderr);
        schedule_begin();
        schedule_set_policy(SCHEDULE_STAY, seed, 0);
        world = make_world(&run->scene);
        for (run->life = 0; run->life < run->scene.n_lives && world && !driver_result->violated;
                run->life++)
                world = live(run, world);
        sim_world_free(world);
        schedule_end();
        free(run->outcomes);
        free(run);
}

#define MUTANT_ENTRY(name, what) {name, what},
static const struct driver_mutant mutants[] = {MUTANT_LIST_MERGE(MUTANT_ENTRY)};

int main(int argc, char **argv)
{
        static const struct driver driver = {
                .name = "merges",
                .run_seed = run_seed,
                .counters = {"merges that ended", "begun again"},
                .mutants = mutants,
                .n_mutants = sizeof(mutants) / sizeof(mutants[0]),
                .at_step = at_step,
        };

        return driver_main(argc, argv, &driver);
}
