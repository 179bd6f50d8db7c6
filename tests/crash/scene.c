/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/scene.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "chain/chain.h"
#include "formats/vhd/create.h"
#include "tests/crash/random.h"

/* ---- what a seed decides ---- */

static uint32_t pick(struct random *random, const uint32_t *from, size_t n)
{
        return from[random_below(random, n)];
}

static void choose_images(struct scene *scene, struct random *random)
{
        static const uint32_t layers[] = {1, 1, 1, 2, 2, 2, 2, 3, 4};
        static const uint32_t block_sizes[] = {4096, 4096, 4096, 4096, 4096, 2048, 8192};
        uint32_t n_blocks = (uint32_t)random_between(random, 2, 8);

        scene->n_layers = pick(random, layers, 9);
        scene->block_size = pick(random, block_sizes, 7);
        scene->size = n_blocks * scene->block_size;
        if (random_chance(random, 30)) /* the last block ends early */
                scene->size -= (uint32_t)random_between(random, 1, 3) * SIM_SECTOR;
        if (scene->n_layers == 1 && random_chance(random, 15))
                scene->leaf_type = random_chance(random, 50) ? LEAF_FIXED : LEAF_RAW;
}

static void name_images(struct scene *scene)
{
        for (uint32_t i = 0; i < SCENE_MAX_LAYERS; i++)
                snprintf(scene->paths[i], sizeof(scene->paths[i]), "/d/layer%u.%s", i,
                        scene->leaf_type == LEAF_RAW ? "raw" : "vhd");
}

static void choose_range(struct scene *scene, struct random *random, struct op *op)
{
        uint32_t unit = random_chance(random, 85) ? SIM_SECTOR : MODEL_CELL;
        uint32_t n_blocks = (scene->size + scene->block_size - 1) / scene->block_size;
        uint32_t block = (uint32_t)random_below(random, n_blocks) * scene->block_size;
        uint32_t end;

        switch (random_below(random, 8)) {
        case 0:
        case 1: /* a whole block */
                op->offset = block;
                end = block + scene->block_size;
                break;
        case 2: /* over a border */
                op->offset = (uint32_t)random_below(random, scene->size / unit) * unit;
                end = op->offset + (uint32_t)random_between(random, 1, 20) * unit;
                break;
        case 3: /* two blocks */
                op->offset = block;
                end = block + 2 * scene->block_size;
                break;
        default:
                op->offset =
                        block + (uint32_t)random_below(random, scene->block_size / unit) * unit;
                end = op->offset + (uint32_t)random_between(random, 1, 3) * unit;
                break;
        }
        op->offset = MIN_OF(op->offset, scene->size - unit);
        op->length = MIN_OF(end, scene->size) - op->offset;
}

/* Of a hundred operations, how many are what; the rest are writes. */
struct mix {
        unsigned flushes, reads, trims, zeros;
};

static const struct mix mixes[] = {
        [FLAVOUR_PLAIN] = {20, 6, 10, 10},
        [FLAVOUR_FREEING] = {20, 4, 30, 20}, /* places come free and are used again */
        [FLAVOUR_BUSY] = {30, 4, 4, 4},      /* many small writes and flushes of two blocks */
};

static void choose_flavoured_range(struct scene *scene, struct random *random, struct op *op)
{
        choose_range(scene, random, op);
        if (scene->flavour == FLAVOUR_BUSY) {
                uint32_t within = op->offset % scene->block_size;
                uint32_t block = (uint32_t)random_below(random, 2);

                op->offset = block * scene->block_size + within / SIM_SECTOR * SIM_SECTOR;
                op->offset = MIN_OF(op->offset, scene->size - SIM_SECTOR);
                op->length = SIM_SECTOR;
        } else if (scene->flavour == FLAVOUR_FREEING && op->kind != OP_WRITE) {
                op->offset -= op->offset % scene->block_size;
                op->length = MIN_OF(scene->block_size, scene->size - op->offset);
        }
}

static struct op choose_op(struct scene *scene, struct random *random)
{
        const struct mix *mix = &mixes[scene->flavour];
        struct op op = {.kind = OP_WRITE};
        uint64_t kind = random_below(random, 100);

        op.thread = (uint8_t)random_below(random, scene->n_threads);
        if (kind < mix->flushes) {
                op.kind = OP_FLUSH;
                return op;
        }
        kind -= mix->flushes;
        if (kind < mix->reads)
                op.kind = OP_READ;
        else if (kind < mix->reads + mix->trims)
                op.kind = OP_TRIM;
        else if (kind < mix->reads + mix->trims + mix->zeros)
                op.kind = OP_ZERO;
        choose_flavoured_range(scene, random, &op);
        op.fua = op.kind != OP_READ && random_chance(random, 15);
        op.no_hole = op.kind == OP_ZERO && random_chance(random, 30);
        op.nowait = random_chance(random, 20);
        return op;
}

/* Some seeds come back to a few blocks again and again: bits over bits, places used again. */
static void choose_ops(struct scene *scene, struct random *random)
{
        uint32_t n = (uint32_t)random_between(random, 8, 24);
        struct op op = {0};

        for (uint32_t i = 0; i < n; i++) {
                uint32_t offset = op.offset, length = op.length;

                op = choose_op(scene, random);
                if (length && op.length && random_chance(random, 35)) {
                        op.offset = offset;
                        op.length = length;
                }
                if (op.length == 0) {
                        op.offset = offset;
                        op.length = length;
                }
                op.life = (uint8_t)(i * scene->n_lives / n);
                model_add(&scene->model, &op);
        }
}

static void choose_troubles(struct scene *scene, struct random *random)
{
        static const enum sim_call calls[] = {SIM_WRITE, SIM_SYNC, SIM_SYNC, SIM_PUNCH, SIM_READ};
        uint64_t kind = random_below(random, 100);

        scene->split_writes = random_chance(random, 70);
        scene->nowait_again = random_chance(random, 30);
        scene->no_punch = random_chance(random, 10);
        if (random_chance(random, 15))
                scene->region_limit = 4096 + 2048;
        if (kind < 6) {
                scene->space = (uint64_t)random_between(random, 4, 24) * SIM_PAGE;
        } else if (kind < 24) {
                scene->has_fault = true;
                scene->fault.call = calls[random_below(random, 5)];
                scene->fault.failure = scene->fault.call == SIM_SYNC ? SIM_LOSE
                        : scene->fault.call == SIM_WRITE             ? SIM_SHORT
                                                                     : SIM_FAIL;
                if (scene->fault.call == SIM_WRITE && random_chance(random, 50))
                        scene->fault.failure = SIM_FAIL;
                scene->fault.error = random_chance(random, 60) ? EIO : ENOSPC;
                scene->fault.at = (unsigned)random_below(random, 20);
                scene->fault.path = scene_leaf_path(scene);
                scene->fault_life = (uint32_t)random_below(random, scene->n_lives);
        }
}

#define BLOCK 4096u

/* What the flush is of: more bits of a block that is there, a new block, a freed one. Block 0 has data
 * in the leaf, block 1 in the parent, block 2 in both, block 3 nowhere. */
static const struct op outer_ops[SCENE_N_OUTER] = {
        {.kind = OP_WRITE, .offset = 2 * SIM_SECTOR, .length = 2 * SIM_SECTOR},
        {.kind = OP_WRITE, .offset = BLOCK + SIM_SECTOR, .length = SIM_SECTOR},
        {.kind = OP_TRIM, .offset = 3 * BLOCK, .length = BLOCK},
};

/* What comes in between. */
static const struct op inner_ops[SCENE_N_INNER] = {
        {.kind = OP_WRITE, .offset = 4 * SIM_SECTOR, .length = SIM_SECTOR},
        {.kind = OP_WRITE, .offset = 2 * SIM_SECTOR, .length = 2 * SIM_SECTOR},
        {.kind = OP_WRITE, .offset = 2 * SIM_SECTOR, .length = SIM_SECTOR, .fua = true},
        {.kind = OP_WRITE, .offset = BLOCK + SIM_SECTOR, .length = SIM_SECTOR, .fua = true},
        {.kind = OP_WRITE, .offset = BLOCK + 3 * SIM_SECTOR, .length = 2 * SIM_SECTOR},
        {.kind = OP_WRITE, .offset = 3 * BLOCK, .length = 2 * SIM_SECTOR},
        {.kind = OP_TRIM, .offset = 3 * BLOCK, .length = BLOCK},
        {.kind = OP_ZERO, .offset = 0, .length = 2 * BLOCK},
        {.kind = OP_ZERO, .offset = 3 * BLOCK, .length = BLOCK, .fua = true},
        {.kind = OP_WRITE, .offset = BLOCK + MODEL_CELL, .length = 2 * MODEL_CELL},
};

static void scene_init_inside(struct scene *scene, uint64_t number)
{
        uint64_t variant = number / SCENE_INSIDE_STEPS;
        struct op outer = outer_ops[variant / SCENE_N_INNER % SCENE_N_OUTER];
        struct op inner = inner_ops[variant % SCENE_N_INNER], last = inner;
        struct op flush = {.kind = OP_FLUSH};

        scene->policy = SCHEDULE_INSIDE;
        scene->inside_step = 1 + (unsigned)(number % SCENE_INSIDE_STEPS);
        scene->n_threads = 3;
        scene->n_lives = 1;
        scene->n_layers = 2;
        scene->block_size = BLOCK;
        scene->size = 4 * BLOCK;
        scene->split_writes = true;
        model_add(&scene->model, &outer);
        model_add(&scene->model, &flush);
        inner.thread = 1;
        model_add(&scene->model, &inner);
        flush.thread = 2;
        model_add(&scene->model, &flush);
        last.thread = 2; /* once more, when the flush is over */
        model_add(&scene->model, &last);
}

void scene_init(struct scene *scene, uint64_t seed)
{
        struct random random = {.state = random_mix(seed + 1)};

        memset(scene, 0, sizeof(*scene));
        scene->seed = seed;
        if (seed >= SCENE_INSIDE) {
                model_init(&scene->model, seed, 4 * BLOCK / MODEL_CELL);
                name_images(scene);
                scene_init_inside(scene, seed - SCENE_INSIDE);
                return;
        }
        choose_images(scene, &random);
        name_images(scene);
        scene->flavour = (enum scene_flavour)random_below(&random, 3);
        scene->n_threads = (uint32_t)random_between(
                &random, scene->flavour == FLAVOUR_BUSY ? 2 : 1, SCENE_MAX_THREADS);
        scene->n_lives = (uint32_t)random_between(&random, 1, SCENE_MAX_LIVES);
        for (uint32_t i = 0; i + 1 < scene->n_lives; i++)
                scene->ends[i] = (enum scene_end)random_below(&random, 3);
        scene->abandon = random_chance(&random, 30);
        scene->policy = random_chance(&random, 50) ? SCHEDULE_RANDOM : SCHEDULE_PRIORITY;
        model_init(&scene->model, seed, scene->size / MODEL_CELL);
        choose_ops(scene, &random);
        choose_troubles(scene, &random);
}

/* ---- the images ---- */

static int create_vhd(struct scene *scene, struct sim_fs *fs, uint32_t layer, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_create_params params = {.type = VHD_TYPE_DYNAMIC,
                .size = scene->size,
                .block_size = scene->block_size,
                .now = 1700000000};
        char relative[64];
        int r = file_open(&fs->fs, scene->paths[layer], FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE,
                &file, err);

        if (r < 0)
                return r;
        /* The id carries the seed, so that two seeds never come to the same content. */
        memset(params.unique_id, 0x11, sizeof(params.unique_id));
        memcpy(params.unique_id, &scene->seed, sizeof(scene->seed));
        params.unique_id[15] = (uint8_t)layer;
        if (scene->leaf_type == LEAF_FIXED)
                params.type = VHD_TYPE_FIXED;
        if (layer > 0) {
                params.type = VHD_TYPE_DIFFERENCING;
                memcpy(params.parent_id, params.unique_id, sizeof(params.parent_id));
                params.parent_id[15] = (uint8_t)(layer - 1);
                params.parent_name = strrchr(scene->paths[layer - 1], '/') + 1;
                snprintf(relative, sizeof(relative), ".\\%s", params.parent_name);
                params.parent_relative = relative;
        }
        return vhd_create(file, &params, err);
}

static int create_raw(struct scene *scene, struct sim_fs *fs, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(&fs->fs, scene->paths[0], FILE_WRITE | FILE_CREATE, &file, err);

        return r < 0 ? r : file_truncate(file, scene->size);
}

/* Layers have data of their own, in whole blocks and in single sectors. */
static void choose_content(
        struct scene *scene, uint32_t layer, uint32_t i, struct random *random, struct op *ret)
{
        static const struct op inside[2][2] = {
                {{.offset = BLOCK, .length = BLOCK}, {.offset = 2 * BLOCK, .length = BLOCK}},
                {{.offset = 0, .length = 2 * SIM_SECTOR},
                        {.offset = 2 * BLOCK, .length = 4 * SIM_SECTOR}},
        };

        if (scene->policy == SCHEDULE_INSIDE)
                *ret = inside[layer][i];
        else
                choose_range(scene, random, ret);
}

static int fill_layer(struct scene *scene, struct sim_fs *fs, uint32_t layer, struct random *random,
        struct error *err)
{
        struct chain_options options = {.fs = &fs->fs, .writable = true};
        uint32_t n_ranges =
                scene->policy == SCHEDULE_INSIDE ? 2 : (uint32_t)random_below(random, 6);
        struct chain *chain = NULL;
        int r;

        if (scene->leaf_type == LEAF_RAW)
                options.format = "raw";
        r = chain_open(scene->paths[layer], &options, &chain, err);
        if (r < 0)
                return r;
        for (uint32_t i = 0; i < n_ranges && r == 0; i++) {
                struct op op = {0};

                choose_content(scene, layer, i, random, &op);
                for (uint32_t at = op.offset; at < op.offset + op.length && r == 0;
                        at += MODEL_CELL) {
                        uint8_t bytes[MODEL_CELL];
                        uint32_t cell = at / MODEL_CELL;

                        scene->model.initial[cell] = (uint8_t)(VALUE_LAYER + layer);
                        model_fill(&scene->model, cell, scene->model.initial[cell], bytes);
                        r = chain_write(chain, bytes, MODEL_CELL, at, 0);
                }
        }
        if (r < 0) {
                chain_abandon(chain);
                return fail_os(err, -r, "cannot write the images' first content");
        }
        return chain_close(chain, err);
}

int scene_make_world(struct scene *scene, struct sim_world **ret, struct error *err)
{
        struct random random = {.state = random_mix(~scene->seed)};
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        int r = 0;

        fs->fs.single_threaded = true;
        for (uint32_t i = 0; i < scene->n_layers && r == 0; i++) {
                r = scene->leaf_type == LEAF_RAW ? create_raw(scene, fs, err)
                                                 : create_vhd(scene, fs, i, err);
                /* An empty leaf is as common as one that was used. */
                if (r == 0 &&
                        (i + 1 < scene->n_layers || scene->policy == SCHEDULE_INSIDE ||
                                random_chance(&random, 50)))
                        r = fill_layer(scene, fs, i, &random, err);
        }
        if (r < 0)
                return r;
        sim_world_settle(fs->world);
        *ret = sim_fs_snapshot(fs);
        return 0;
}

void scene_print(const struct scene *scene, uint64_t mask, FILE *to)
{
        static const char *const types[] = {"dynamic", "fixed", "raw"};
        static const char *const ends[] = {"closes", "dies", "loses power"};
        char text[96];

        fprintf(to, "seed %llu: %u layers, root %s, blocks of %u, %u bytes, %u threads%s%s%s%s",
                (unsigned long long)scene->seed, scene->n_layers, types[scene->leaf_type],
                scene->block_size, scene->size, scene->n_threads,
                scene->split_writes ? ", torn writes" : "",
                scene->nowait_again ? ", nothing without waiting" : "",
                scene->no_punch ? ", no holes" : "", scene->region_limit ? ", small redo" : "");
        if (scene->space)
                fprintf(to, ", %llu bytes of space", (unsigned long long)scene->space);
        if (scene->has_fault)
                fprintf(to, ", %s number %u of life %u fails with %d",
                        sim_call_to_string(scene->fault.call), scene->fault.at, scene->fault_life,
                        scene->fault.error);
        fputc('\n', to);
        for (uint32_t i = 0; i < scene->model.n_ops; i++)
                if (mask >> i & 1)
                        fprintf(to, "  operation %2u, life %u, thread %u: %s\n", i,
                                scene->model.ops[i].life, scene->model.ops[i].thread,
                                model_op_name(&scene->model.ops[i], text));
        for (uint32_t i = 0; i + 1 < scene->n_lives; i++)
                fprintf(to, "  life %u ends: the process %s\n", i, ends[scene->ends[i]]);
}
