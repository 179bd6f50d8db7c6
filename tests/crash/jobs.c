/* SPDX-License-Identifier: Apache-2.0 */
/* jobs - compaction on a simulated disk, alone and beside requests of two other threads; at each step
 * what a power cut and what a process's death would leave there is opened.
 *
 *   jobs [--seeds FIRST[-LAST]] [--states N] [--budget N] [--seconds N] [--jobs N]
 *        [--mutant NAME] [--all-mutants] [--trace]
 *
 * Each state must read as the model of tests/crash/model.h allows (where nobody else writes: as ever),
 * for readers and writers; be sound for `check --deep`; and compacting it once more must end in an
 * image that reads the same, also after another cut, and in which a third run finds nothing to do.
 * In some seeds a call to the disk fails once, a sync among them (E5), or the disk is full.
 *
 * Exit status: 0 no violation (or every mutant seen), 1 otherwise, 2 usage.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "chain/chain.h"
#include "formats/vhd/check.h"
#include "formats/vhd/create.h"
#include "merge/compact.h"
#include "tests/crash/model.h"
#include "tests/crash/schedule.h"
#include "tests/crash/simdisk.h"

#define ROOT        "/d/root.vhd"
#define LEAF        "/d/leaf.vhd"
#define MAX_BLOCKS  12u
#define MAX_OPS     14u
#define MAX_MOMENTS 3000u
#define FULL_STATES 32u
#define SAMPLES     8u
#define MAX_JOBS    16u
#define N_WRITERS   2u

static struct {
        uint64_t first_seed, last_seed, states, budget;
        double seconds;
        unsigned jobs;
        const char *mutant;
        bool all_mutants, trace;
} options = {.first_seed = 1, .last_seed = 200, .budget = 250, .jobs = 2};

static bool mutants_on;

bool mutant_is(const char *name)
{
        schedule_point();
        return mutants_on && options.mutant && strcmp(options.mutant, name) == 0;
}

static double now_seconds(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Shared with the parent process. */
struct result {
        uint64_t seeds, states, instants, seed, released, moved;
        bool violated;
        char text[1024];
};

static struct result *result;

/* ---- what a seed stands for ---- */

struct scene {
        uint64_t seed;
        bool has_parent, tight, junk, live, no_punch, split_writes, has_fault, small_redo;
        struct sim_fault fault;
        uint64_t space;
        uint32_t block_size, n_blocks, size;
        enum schedule_policy policy;
        struct model model;
};

static void choose_fault(struct scene *scene, struct random *random)
{
        static const enum sim_call calls[] = {
                SIM_WRITE, SIM_WRITE, SIM_SYNC, SIM_TRUNCATE, SIM_PUNCH, SIM_READ};
        unsigned i = (unsigned)random_below(random, sizeof(calls) / sizeof(calls[0]));

        scene->has_fault = true;
        scene->fault = (struct sim_fault){
                .call = calls[i],
                .failure = calls[i] == SIM_SYNC                              ? SIM_LOSE
                        : random_chance(random, 30) && calls[i] == SIM_WRITE ? SIM_SHORT
                                                                             : SIM_FAIL,
                .error = random_chance(random, 50) ? ENOSPC : EIO,
                .at = (unsigned)random_below(random, calls[i] == SIM_WRITE ? 60 : 12),
        };
}

static void add_ops(struct scene *scene, struct random *random)
{
        uint32_t n = (uint32_t)random_between(random, 3, MAX_OPS);

        for (uint32_t i = 0; i < n; i++) {
                static const enum op_kind kinds[] = {
                        OP_WRITE, OP_WRITE, OP_WRITE, OP_ZERO, OP_TRIM, OP_READ, OP_FLUSH};
                struct op op = {
                        .kind = kinds[random_below(random, 7)],
                        .fua = random_chance(random, 25),
                        .thread = (uint8_t)random_below(random, N_WRITERS),
                };
                uint32_t block = (uint32_t)random_below(random, scene->n_blocks);
                uint32_t sectors = scene->block_size / 512;
                uint32_t first = (uint32_t)random_below(random, sectors);

                op.offset = block * scene->block_size + first * 512;
                op.length = 512 * (uint32_t)random_between(random, 1, sectors - first);
                if (random_chance(random, 30)) {
                        op.offset = block * scene->block_size;
                        op.length = scene->block_size;
                }
                op.length = MIN_OF(op.length, scene->size - op.offset);
                if (op.offset >= scene->size)
                        continue;
                model_add(&scene->model, &op);
        }
}

static void scene_init(struct scene *scene, uint64_t seed)
{
        struct random random = {random_mix(seed)};

        memset(scene, 0, sizeof(*scene));
        scene->seed = seed;
        scene->has_parent = random_chance(&random, 60);
        scene->tight = random_chance(&random, 30);
        scene->junk = random_chance(&random, 30);
        scene->live = random_chance(&random, 60);
        scene->no_punch = random_chance(&random, 10);
        scene->split_writes = random_chance(&random, 20);
        scene->small_redo = random_chance(&random, 20);
        scene->block_size = random_chance(&random, 70) ? 4096 : 8192;
        scene->n_blocks = (uint32_t)random_between(&random, 4, MAX_BLOCKS);
        scene->size = scene->n_blocks * scene->block_size;
        if (random_chance(&random, 30))
                scene->size -= 512 * (uint32_t)random_between(&random, 1, 7);
        scene->policy = random_chance(&random, 50) ? SCHEDULE_RANDOM : SCHEDULE_PRIORITY;
        model_init(&scene->model, seed, scene->size / MODEL_CELL);
        if (scene->live)
                add_ops(scene, &random);
        if (random_chance(&random, 12))
                choose_fault(scene, &random);
}

/* ---- the images ---- */

/* What the images have before: of each sector whether the layer has it, and its value. */
struct content {
        uint8_t present[2][MAX_BLOCKS * 16], value[2][MAX_BLOCKS * 16];
        bool allocated[MAX_BLOCKS];
};

static void fill_sector(const struct scene *scene, uint32_t sector, uint8_t value, uint8_t *ret)
{
        for (uint32_t k = 0; k < 512 / MODEL_CELL; k++)
                model_fill(&scene->model, sector * (512 / MODEL_CELL) + k, value,
                        ret + k * MODEL_CELL);
}

static void choose_block(
        const struct scene *scene, struct content *c, uint32_t block, struct random *random)
{
        uint32_t n = scene->block_size / 512, kind = (uint32_t)random_below(random, 9);

        c->allocated[block] = kind != 8;
        for (uint32_t i = 0; i < n && c->allocated[block]; i++) {
                uint32_t s = block * n + i;
                uint8_t parent = c->present[0][s] ? c->value[0][s] : VALUE_ZERO;
                bool half = i < n / 2;

                /* whole or in part: data, zeros, the parent's bytes; nothing; half zeros; mixed */
                c->present[1][s] = kind < 3 || kind == 7 ||
                        (kind < 6 && random_chance(random, 50)) || (kind == 6 && i == 0 && half);
                c->value[1][s] = kind % 3 == 1 ? VALUE_ZERO
                        : kind % 3 == 2        ? parent
                        : kind == 6            ? parent
                                               : VALUE_LAYER + 1;
                if (kind == 7)
                        c->value[1][s] = half ? VALUE_LAYER + 1 : VALUE_ZERO;
        }
}

static void choose_content(const struct scene *scene, struct content *c, struct random *random)
{
        uint32_t n = scene->block_size / 512;

        memset(c, 0, sizeof(*c));
        for (uint32_t s = 0; s < scene->n_blocks * n && scene->has_parent; s++) {
                bool first = s % n == 0;

                c->present[0][s] = first ? random_chance(random, 60) : c->present[0][s - 1];
                c->value[0][s] = VALUE_LAYER;
        }
        for (uint32_t b = 0; b < scene->n_blocks; b++)
                choose_block(scene, c, b, random);
}

static void set_initial(struct scene *scene, const struct content *c)
{
        for (uint32_t cell = 0; cell < scene->model.n_cells; cell++) {
                uint32_t s = cell / (512 / MODEL_CELL);

                scene->model.initial[cell] = c->present[1][s] ? c->value[1][s]
                        : c->present[0][s]                    ? c->value[0][s]
                                                              : VALUE_ZERO;
        }
}

/* Blocks in an order of chance, with holes between them; on 4 KiB or as other writers pack them. */
static int write_blocks(const struct scene *scene, const struct content *c, unsigned layer,
        struct file *file, struct random *random, struct error *err)
{
        uint32_t order[MAX_BLOCKS], n = scene->block_size / 512;
        struct vhd_metadata metadata;
        uint8_t sector[512], zeros[512] = {0};
        uint64_t at;
        int r = vhd_metadata_read(file, 0, &metadata, err);

        if (r < 0)
                return r;
        at = metadata.metadata_end;
        for (uint32_t i = 0; i < scene->n_blocks; i++)
                order[i] = i;
        for (uint32_t i = scene->n_blocks; i > 1 && layer == 1; i--) {
                uint32_t k = (uint32_t)random_below(random, i), last = order[i - 1];

                order[i - 1] = order[k];
                order[k] = last;
        }
        file_write(file, zeros, 512, metadata.tail_offset, 0);
        for (uint32_t i = 0; i < scene->n_blocks; i++) {
                uint32_t b = order[i];
                bool any = layer == 1 ? c->allocated[b] : c->present[0][b * n];
                uint8_t bitmap[512] = {0};
                be32 entry;

                if (!any)
                        continue;
                if (layer == 1 && random_chance(random, 25))
                        at += scene->tight ? 512 + scene->block_size : 4096 + scene->block_size;
                if (!scene->tight)
                        at = round_up_to(at + 512, 4096) - 512;
                for (uint32_t k = 0; k < n; k++) {
                        uint32_t s = b * n + k;
                        bool inside = (s + 1) * 512 <= scene->size;

                        if (c->present[layer][s])
                                bitmap[k / 8] |= (uint8_t)(0x80 >> (k % 8));
                        memset(sector, scene->junk && layer == 1 ? 0xee : 0, 512);
                        if (c->present[layer][s] && inside)
                                fill_sector(scene, s, c->value[layer][s], sector);
                        file_write(file, sector, 512, at + 512 + k * 512, 0);
                }
                file_write(file, bitmap, 512, at, 0);
                entry = be32_make((uint32_t)(at / 512));
                file_write(file, &entry, 4, metadata.header.table_offset + b * 4, 0);
                at += 512 + scene->block_size;
        }
        return file_write(file, &metadata.footer.raw, 512, MAX_OF(at, metadata.tail_offset), 0);
}

static int make_image(const struct scene *scene, const struct content *c, struct sim_fs *fs,
        unsigned layer, struct random *random, struct error *err)
{
        struct vhd_create_params params = {
                .type = layer == 1 && scene->has_parent ? VHD_TYPE_DIFFERENCING : VHD_TYPE_DYNAMIC,
                .size = scene->size,
                .block_size = scene->block_size,
                .unique_id = {(uint8_t)(layer + 1)},
                .now = 1700000000,
        };
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(&fs->fs, layer ? LEAF : ROOT, FILE_WRITE | FILE_CREATE, &file, err);

        if (layer == 1 && scene->has_parent) {
                params.parent_id[0] = 1;
                params.parent_name = "root.vhd";
                params.parent_relative = "./root.vhd";
        }
        if (r == 0)
                r = vhd_create(file, &params, err);
        return r < 0 ? r : write_blocks(scene, c, layer, file, random, err);
}

static struct sim_world *make_world(struct scene *scene, struct error *err)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        struct random random = {random_mix(scene->seed + 1)};
        struct content *c = calloc(1, sizeof(*c));
        int r = 0;

        choose_content(scene, c, &random);
        set_initial(scene, c);
        if (scene->has_parent)
                r = make_image(scene, c, fs, 0, &random, err);
        if (r == 0)
                r = make_image(scene, c, fs, 1, &random, err);
        free(c);
        sim_world_settle(fs->world);
        return r < 0 ? NULL : sim_world_clone(fs->world);
}

/* ---- a run ---- */

struct instant {
        struct sim_world *world;
        struct moment moment;
        bool poisoned, unnoted;
};

struct run {
        struct scene scene;
        struct sim_fs *fs;
        struct chain *chain;
        struct instant instants[MAX_MOMENTS];
        uint32_t n_instants;
        uint64_t parent_hash, n_opened;
        bool violated, watching, poisoned, unnoted;
        unsigned failed_thread;
        struct random random;
};

static struct run *running;

__attribute__((format(printf, 2, 3))) static void violation(
        struct run *run, const char *format, ...)
{
        va_list list;

        if (run->violated)
                return;
        run->violated = true;
        va_start(list, format);
        vsnprintf(result->text, sizeof(result->text), format, list);
        va_end(list);
}

static void on_deadlock(void)
{
        result->violated = true;
        snprintf(result->text, sizeof(result->text), "the engine waits for ever");
        _exit(4);
}

static void take_instant(struct run *run)
{
        struct instant *instant;

        if (!run->watching || run->n_instants == MAX_MOMENTS)
                return;
        run->poisoned |= run->fs->fault_hit;
        instant = &run->instants[run->n_instants++];
        instant->world = sim_fs_snapshot(run->fs);
        instant->moment = run->scene.model.now;
        instant->poisoned = run->poisoned;
        instant->unnoted = run->unnoted;
}

/* As in enumerate.c: a process that dies between a sync's bad news and its note takes them along. */
static void follow_failed_sync(struct run *run, bool inside_sync)
{
        if (run->fs->fault_hit && run->fs->fault.call == SIM_SYNC && !run->poisoned) {
                run->unnoted = true;
                run->failed_thread = schedule_self();
        } else if (run->unnoted && !inside_sync && schedule_self() == run->failed_thread) {
                run->unnoted = false;
        }
}

static void on_change(struct sim_fs *fs, enum sim_call call)
{
        follow_failed_sync(fs->opaque, call == SIM_SYNC);
        take_instant(fs->opaque);
}

static void on_point(void)
{
        if (running && running->watching && sim_fs_regions_changed(running->fs))
                take_instant(running);
}

static bool may_fail(const struct run *run)
{
        return run->poisoned || run->fs->fault_hit;
}

static int do_read(struct run *run, const struct op *op)
{
        struct model *model = &run->scene.model;
        uint64_t required = model->now.answered; /* what is answered meanwhile may be missed */
        uint8_t *bytes = malloc(op->length);
        int r = chain_read(run->chain, bytes, op->length, op->offset, 0);

        for (uint32_t at = 0; at < op->length && r == 0; at += MODEL_CELL) {
                uint32_t cell = (op->offset + at) / MODEL_CELL;
                uint8_t value = model_value(model, cell, bytes + at);
                char text[32];

                if (!model_allows(model, cell, value, model->now.begun, required))
                        violation(run, "a read of cell %u finds %s", cell,
                                model_value_name(value, text));
        }
        free(bytes);
        return r;
}

static int do_write(struct run *run, const struct op *op, uint32_t i, unsigned flags)
{
        uint8_t *bytes = malloc(op->length);
        int r;

        for (uint32_t at = 0; at < op->length; at += MODEL_CELL)
                model_fill(&run->scene.model, (op->offset + at) / MODEL_CELL,
                        (uint8_t)(VALUE_OP + i), bytes + at);
        r = chain_write(run->chain, bytes, op->length, op->offset, flags);
        free(bytes);
        return r;
}

static void perform(struct run *run, uint32_t i)
{
        struct model *model = &run->scene.model;
        const struct op *op = &model->ops[i];
        unsigned flags = op->fua ? CHAIN_FUA : 0;
        uint64_t answered = model->now.answered;
        char text[96];
        int r = -EINVAL;

        if (options.trace)
                fprintf(stderr, "  [%u] operation %u: %s\n", schedule_self(), i,
                        model_op_name(op, text));
        model_begin(model, i);
        switch (op->kind) {
        case OP_WRITE: r = do_write(run, op, i, flags); break;
        case OP_ZERO: r = chain_zero(run->chain, op->length, op->offset, flags); break;
        case OP_TRIM: r = chain_trim(run->chain, op->length, op->offset, flags); break;
        case OP_READ: r = do_read(run, op); break;
        case OP_FLUSH: r = chain_flush(run->chain); break;
        }
        if (r < 0 && !may_fail(run))
                violation(run, "operation %u (%s) fails: %s", i, model_op_name(op, text),
                        strerror(-r));
        model_end(model, i, r == 0, answered);
        if (options.trace)
                fprintf(stderr, "  [%u] operation %u ended: %d\n", schedule_self(), i, r);
        follow_failed_sync(run, false);
        take_instant(run);
}

struct worker {
        struct run *run;
        uint32_t thread;
        pthread_t id;
};

static void *writer_main(void *argument)
{
        struct worker *worker = argument;
        struct run *run = worker->run;

        for (uint32_t i = 0; i < run->scene.model.n_ops; i++)
                if (run->scene.model.ops[i].thread == worker->thread)
                        perform(run, i);
        return NULL;
}

static void *job_thread(void *argument)
{
        struct worker *worker = argument;
        struct run *run = worker->run;
        struct compact *compact = NULL;
        struct compact_report report;
        struct error err = ERROR_INIT;
        int r = compact_new(run->chain, 2 * run->scene.block_size, &compact, &err);

        while (r >= 0) {
                r = compact_step(compact, &err);
                if (options.trace)
                        fprintf(stderr, "  [%u] step: %d %s\n", schedule_self(), r,
                                r < 0 ? err.message : "");
                follow_failed_sync(run, false);
                take_instant(run);
                if (r <= 0)
                        break;
        }
        if (r < 0 && !may_fail(run))
                violation(run, "compacting fails: %s", err.message);
        if (compact) {
                compact_report_get(compact, &report);
                result->released += report.n_released;
                result->moved += report.n_moved;
        }
        compact_free(compact);
        return NULL;
}

static int open_chain(struct sim_fs *fs, bool writable, struct chain **ret, struct error *err)
{
        struct chain_options chain_options = {.fs = &fs->fs, .writable = writable};

        fs->fs.single_threaded = true;
        return chain_open(LEAF, &chain_options, ret, err);
}

static void live(struct run *run)
{
        struct worker workers[N_WRITERS + 1];
        unsigned n = run->scene.live ? N_WRITERS + 1 : 1;
        struct error err = ERROR_INIT;
        uint64_t answered;
        int r = open_chain(run->fs, true, &run->chain, &err);

        if (r < 0) {
                if (!run->fs->fault_hit)
                        violation(run, "it does not open: %s", err.message);
                return;
        }
        schedule_set_policy(run->scene.policy, run->scene.seed, 600);
        for (unsigned i = 0; i < n; i++) {
                workers[i] = (struct worker){.run = run, .thread = i ? i - 1 : N_WRITERS};
                if (pthread_create(
                            &workers[i].id, NULL, i ? writer_main : job_thread, &workers[i]) != 0)
                        abort();
        }
        for (unsigned i = 0; i < n; i++)
                pthread_join(workers[i].id, NULL);
        schedule_set_policy(SCHEDULE_STAY, run->scene.seed, 0);
        answered = run->scene.model.now.answered;
        r = chain_close(TAKE_PTR(run->chain), &err);
        if (r == 0)
                run->scene.model.now.covered |= answered;
        else if (!may_fail(run))
                violation(run, "it does not close: %s", err.message);
        take_instant(run);
}

/* ---- judging ---- */

struct set {
        uint64_t *keys;
        uint64_t n, room;
};

static bool set_add(struct set *set, uint64_t key)
{
        uint64_t at;

        key |= 1;
        if (2 * set->n >= set->room) {
                struct set old = *set;

                set->room = old.room ? 2 * old.room : 4096;
                set->n = 0;
                set->keys = calloc(set->room, sizeof(uint64_t));
                assert(set->keys != NULL);
                for (uint64_t i = 0; i < old.room; i++)
                        if (old.keys[i])
                                set_add(set, old.keys[i]);
                free(old.keys);
        }
        for (at = random_mix(key) % set->room; set->keys[at]; at = (at + 1) % set->room)
                if (set->keys[at] == key)
                        return false;
        set->keys[at] = key;
        set->n++;
        return true;
}

static struct set seen_states; /* of all seeds */
static struct set seen_here;   /* of this one, with what was required of them */

static int read_values(struct run *run, struct chain *chain, uint8_t values[])
{
        const struct model *model = &run->scene.model;
        static uint8_t bytes[MODEL_MAX_CELLS * MODEL_CELL];
        int r = chain_size(chain) == run->scene.size
                ? chain_read(chain, bytes, run->scene.size, 0, 0)
                : -ERANGE;

        for (uint32_t c = 0; r == 0 && c < model->n_cells; c++)
                values[c] = model_value(model, c, bytes + c * MODEL_CELL);
        return r;
}

static bool read_world(
        struct run *run, const struct sim_world *world, const char *what, uint8_t values[])
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        struct chain *chain = NULL;
        struct error err = ERROR_INIT;
        int r = open_chain(fs, false, &chain, &err);

        run->n_opened++;
        if (r == 0) {
                r = read_values(run, chain, values);
                fail_os(&err, r < 0 ? -r : 0, "reading");
                chain_abandon(chain);
        }
        if (r < 0)
                violation(run, "%s: a reader: %s", what, err.message);
        return r == 0;
}

static bool same_values(
        struct run *run, const uint8_t want[], const uint8_t got[], const char *what)
{
        char a[32], b[32];

        for (uint32_t c = 0; c < run->scene.model.n_cells; c++)
                if (want[c] != got[c]) {
                        violation(run, "cell %u reads as %s, and %s as %s", c,
                                model_value_name(want[c], a), what, model_value_name(got[c], b));
                        return false;
                }
        return true;
}

static void note_finding(void *opaque, const struct vhd_finding *finding)
{
        char *sentence = opaque;

        if (finding->severity != VHD_INFO && !strstr(finding->id, "redo") &&
                !strstr(finding->id, "align"))
                snprintf(sentence, 512, "%s: %.400s", finding->id, finding->sentence);
}

static bool check_world(struct run *run, const struct sim_world *world, const char *what)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_check_result checked;
        struct error err = ERROR_INIT;
        char found[512] = "";

        if (run->scene.has_parent && sim_world_file_hash(world, ROOT) != run->parent_hash)
                violation(run, "%s: the parent was changed", what);
        if (file_open(&fs->fs, LEAF, FILE_READ, &file, &err) < 0 ||
                vhd_check(file, run->scene.junk ? 0 : VHD_CHECK_DEEP, note_finding, found, &checked,
                        &err) < 0)
                violation(run, "%s: it cannot be checked: %s", what, err.message);
        else if (found[0])
                violation(run, "%s: %s", what, found);
        return !run->violated;
}

/* Opens for writing, compacts to the end, closes. */
static bool complete(
        struct run *run, struct sim_fs *fs, const uint8_t values[], const char *what, bool again)
{
        struct compact_report report;
        struct chain *chain = NULL;
        uint8_t got[MODEL_MAX_CELLS];
        struct error err = ERROR_INIT;
        int r = open_chain(fs, true, &chain, &err);

        if (r < 0 || !chain_is_writable(chain)) {
                violation(run, "%s: a writer: %s", what,
                        r < 0 ? err.message : chain_layer(chain, chain_depth(chain) - 1)->warning);
                chain_abandon(chain);
                return false;
        }
        r = read_values(run, chain, got);
        if (r == 0)
                r = compact_run(chain, NULL, &report, &err);
        if (r == 0 && same_values(run, values, got, "for a writer"))
                r = read_values(run, chain, got);
        if (r == 0)
                same_values(run, values, got, "when compacted");
        if (r < 0)
                violation(run, "%s: compacting once more: %s %s", what, strerror(-r), err.message);
        if (again && r == 0 &&
                (report.n_released || report.n_moved || report.file_size_after != report.file_size))
                violation(run,
                        "%s: a third run frees %" PRIu64 ", moves %" PRIu64 ", size %" PRIu64
                        " to %" PRIu64,
                        what, report.n_released, report.n_moved, report.file_size,
                        report.file_size_after);
        if (chain_close(chain, &err) < 0)
                violation(run, "%s: closing: %s", what, err.message);
        return !run->violated;
}

static void judge_world(struct run *run, const struct sim_world *world,
        const struct instant *instant, bool after_cut, uint64_t required, const char *what)
{
        uint64_t content = sim_world_hash(world);
        uint64_t key = random_mix(content + 3 * required + 7 * instant->moment.begun) +
                (after_cut ? 0 : sim_world_durable_hash(world) + instant->poisoned);
        uint8_t values[MODEL_MAX_CELLS], got[MODEL_MAX_CELLS];
        _cleanup_(sim_fs_freep) struct sim_fs *fs = NULL;
        _cleanup_(sim_world_freep) struct sim_world *closed = NULL, *cut = NULL;
        char text[32];

        if (!set_add(&seen_here, key))
                return;
        result->states += set_add(&seen_states, content);
        if ((!instant->poisoned && !check_world(run, world, what)) ||
                !read_world(run, world, what, values))
                return;
        for (uint32_t c = 0; c < run->scene.model.n_cells; c++)
                if (!model_allows(
                            &run->scene.model, c, values[c], instant->moment.begun, required)) {
                        violation(run, "%s: cell %u reads as %s", what, c,
                                model_value_name(values[c], text));
                        return;
                }
        if (!after_cut && instant->poisoned)
                return; /* it may be for reading only */
        fs = sim_fs_new(sim_world_clone(world));
        fs->region_limit = run->scene.small_redo ? 4096 + 40 * 32 : 0;
        fs->no_punch = run->scene.no_punch;
        if (!complete(run, fs, values, what, false))
                return;
        closed = sim_fs_snapshot(fs);
        cut = sim_world_cut(closed, false);
        if (!read_world(run, cut, "after it was compacted, and a cut", got) ||
                !same_values(run, values, got, "after it was compacted, and a cut") ||
                !check_world(run, closed, "after it was compacted"))
                return;
        if (sim_world_n_regions(closed) != 0)
                violation(run, "%s: a clean close leaves a redo file", what);
        complete(run, fs, values, what, true);
}

static void judge_instant(struct run *run, uint32_t index)
{
        const struct instant *instant = &run->instants[index];
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(instant->world);
        uint64_t n_states = sim_cut_n_states(cut);
        bool all =
                n_states <= SAMPLES || (n_states <= FULL_STATES && random_chance(&run->random, 40));
        uint64_t n = all ? n_states : SAMPLES;
        char what[64];

        snprintf(what, sizeof(what), "instant %u, the process's death", index);
        if (!instant->unnoted)
                judge_world(run, instant->world, instant, false,
                        instant->poisoned ? instant->moment.covered : instant->moment.answered,
                        what);
        snprintf(what, sizeof(what), "instant %u, a power cut", index);
        for (uint64_t i = 0; i < n && !run->violated; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world =
                        all ? sim_cut_state(cut, i) : sim_cut_sample(cut, &run->random);

                judge_world(run, world, instant, true, instant->moment.covered, what);
        }
}

static void judge_all(struct run *run)
{
        uint32_t n = run->n_instants;
        uint32_t *order = malloc((n + 1) * sizeof(uint32_t));

        for (uint32_t i = 0; i < n; i++)
                order[i] = i;
        for (uint32_t i = n; i > 1; i--) {
                uint32_t k = (uint32_t)random_below(&run->random, i), last = order[i - 1];

                order[i - 1] = order[k];
                order[k] = last;
        }
        for (uint32_t i = 0; i < n && !run->violated && run->n_opened < 2 * options.budget; i++)
                judge_instant(run, order[i]);
        free(order);
        result->instants += n;
}

static bool run_seed(uint64_t seed)
{
        struct run *run = calloc(1, sizeof(*run));
        struct error err = ERROR_INIT;
        struct sim_world *world;
        bool violated;

        assert(run != NULL);
        result->seed = seed;
        run->random.state = random_mix(seed + 99);
        scene_init(&run->scene, seed);
        schedule_begin();
        schedule_set_policy(SCHEDULE_STAY, seed, 0);
        world = make_world(&run->scene, &err);
        if (!world) {
                violation(run, "the images cannot be made: %s", err.message);
        } else {
                run->parent_hash = sim_world_file_hash(world, ROOT);
                run->fs = sim_fs_new(world);
                run->fs->opaque = run;
                run->fs->on_change = on_change;
                run->fs->split_writes = run->scene.split_writes;
                run->fs->no_punch = run->scene.no_punch;
                run->fs->region_limit = run->scene.small_redo ? 4096 + 40 * 32 : 0;
                run->fs->random.state = seed;
                run->fs->trace = options.trace ? stderr : NULL;
                if (run->scene.has_fault)
                        sim_fs_arm(run->fs, &run->scene.fault);
                mutants_on = true;
                running = run;
                schedule_on_point = on_point;
                run->watching = true;
                live(run);
                run->watching = false;
                schedule_on_point = NULL;
                running = NULL;
                mutants_on = false;
                if (!run->violated)
                        judge_all(run);
        }
        schedule_end();
        violated = run->violated;
        for (uint32_t i = 0; i < run->n_instants; i++)
                sim_world_free(run->instants[i].world);
        sim_fs_free(run->fs);
        free(run);
        free(seen_here.keys);
        memset(&seen_here, 0, sizeof(seen_here));
        return !violated;
}

/* ---- jobs and mutants ---- */

static void job_main(unsigned job, double until)
{
        schedule_on_deadlock = on_deadlock;
        for (uint64_t seed = options.first_seed + job; seed <= options.last_seed;
                seed += options.jobs) {
                if (!run_seed(seed)) {
                        result->violated = true;
                        _exit(1);
                }
                result->seeds++;
                if (until > 0 && now_seconds() > until)
                        break;
                if (options.states && result->states * options.jobs >= options.states)
                        break;
        }
        fflush(NULL);
        free(seen_states.keys);
        exit(0);
}

/* The first violation ends them all. */
static bool run_jobs(struct result *results, bool quiet)
{
        double until = options.seconds > 0 ? now_seconds() + options.seconds : 0;
        pid_t pids[MAX_JOBS];
        bool good = true;

        memset(results, 0, MAX_JOBS * sizeof(*results));
        fflush(NULL);
        for (unsigned i = 0; i < options.jobs; i++) {
                pids[i] = fork();
                if (pids[i] == 0) {
                        result = &results[i];
                        if (quiet && !options.trace && !freopen("/dev/null", "w", stderr))
                                _exit(3);
                        job_main(i, until);
                }
        }
        for (unsigned left = options.jobs; left > 0; left--) {
                int status;
                pid_t pid = wait(&status);

                for (unsigned i = 0; i < options.jobs; i++) {
                        if (pids[i] != pid)
                                continue;
                        pids[i] = -1;
                        if (!good || (WIFEXITED(status) && WEXITSTATUS(status) == 0))
                                continue;
                        good = false;
                        if (!results[i].violated)
                                snprintf(results[i].text, sizeof(results[i].text),
                                        "the engine crashes: %s",
                                        WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit");
                        results[i].violated = true;
                        for (unsigned k = 0; k < options.jobs; k++)
                                if (pids[k] > 0)
                                        kill(pids[k], SIGKILL);
                }
        }
        return good;
}

static struct result *new_results(void)
{
        void *memory = mmap(NULL, MAX_JOBS * sizeof(struct result), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        assert(memory != MAP_FAILED);
        return memory;
}

static struct result sum_of(const struct result *results)
{
        struct result sum = {0};

        for (unsigned i = 0; i < options.jobs; i++) {
                sum.seeds += results[i].seeds;
                sum.states += results[i].states;
                sum.instants += results[i].instants;
                sum.released += results[i].released;
                sum.moved += results[i].moved;
                if (results[i].violated && !sum.violated) {
                        sum.violated = true;
                        sum.seed = results[i].seed;
                        memcpy(sum.text, results[i].text, sizeof(sum.text));
                }
        }
        return sum;
}

static int enumerate(void)
{
        struct result *results = new_results(), sum;
        double start = now_seconds();
        bool good = run_jobs(results, false);

        sum = sum_of(results);
        if (!good)
                fprintf(stderr, "violation: seed %" PRIu64 ": %s\n", sum.seed, sum.text);
        printf("summary: compact: %" PRIu64 " distinct states at %" PRIu64 " instants of %" PRIu64
               " seeds (%" PRIu64 " blocks released, %" PRIu64 " moved) in %.0f s: %s\n",
                sum.states, sum.instants, sum.seeds, sum.released, sum.moved, now_seconds() - start,
                good ? "no violation" : "VIOLATED");
        if (good && sum.states < options.states) {
                fprintf(stderr, "jobs: %" PRIu64 " states are fewer than %" PRIu64 "\n", sum.states,
                        options.states);
                return 1;
        }
        return good ? 0 : 1;
}

static int hunt(const char *name, const char *what)
{
        struct result *results = new_results(), sum;
        double start = now_seconds();
        bool good;

        options.mutant = name;
        good = run_jobs(results, true);
        sum = sum_of(results);
        if (good)
                printf("mutant %s: NOT SEEN after %" PRIu64 " states of %" PRIu64
                       " seeds, %.1f s (%s)\n",
                        name, sum.states, sum.seeds, now_seconds() - start, what);
        else
                printf("mutant %s: seen at seed %" PRIu64 " after %" PRIu64 " states, %.1f s: %s\n",
                        name, sum.seed, sum.states, now_seconds() - start, sum.text);
        fflush(stdout);
        munmap(results, MAX_JOBS * sizeof(*results));
        return good ? 1 : 0;
}

static int hunt_all(void)
{
#define MUTANT_ENTRY(name, what) {name, what},
        static const struct {
                const char *name, *what;
        } mutants[] = {MUTANT_LIST_COMPACT(MUTANT_ENTRY)};
        unsigned n = sizeof(mutants) / sizeof(mutants[0]), missed = 0;

        for (unsigned i = 0; i < n; i++)
                missed += (unsigned)hunt(mutants[i].name, mutants[i].what);
        printf("summary: %u of %u mutants of compact seen\n", n - missed, n);
        return missed ? 1 : 0;
}

/* ---- the command line ---- */

static bool parse_value(const char *name, const char *value)
{
        char *end;

        if (strcmp(name, "--mutant") == 0) {
                options.mutant = value;
                return true;
        }
        if (strcmp(name, "--seconds") == 0) {
                options.seconds = strtod(value, &end);
        } else if (strcmp(name, "--seeds") == 0) {
                options.first_seed = options.last_seed = strtoull(value, &end, 0);
                if (*end == '-')
                        options.last_seed = strtoull(end + 1, &end, 0);
                if (options.first_seed == options.last_seed)
                        options.jobs = 1;
        } else if (strcmp(name, "--states") == 0) {
                options.states = strtoull(value, &end, 0);
        } else if (strcmp(name, "--budget") == 0) {
                options.budget = strtoull(value, &end, 0);
        } else if (strcmp(name, "--jobs") == 0) {
                options.jobs = (unsigned)strtoul(value, &end, 0);
        } else {
                return false;
        }
        return *end == '\0' && options.jobs >= 1 && options.jobs <= MAX_JOBS;
}

int main(int argc, char **argv)
{
        for (int i = 1; i < argc; i++) {
                if (strcmp(argv[i], "--trace") == 0)
                        options.trace = true;
                else if (strcmp(argv[i], "--all-mutants") == 0)
                        options.all_mutants = true;
                else if (i + 1 < argc && parse_value(argv[i], argv[i + 1]))
                        i++;
                else {
                        fprintf(stderr,
                                "usage: jobs [--seeds FIRST[-LAST]] [--states N] "
                                "[--budget N] [--seconds N] [--jobs N] [--mutant NAME] "
                                "[--all-mutants] [--trace]\n");
                        return 2;
                }
        }
        if (getenv("VHDD_LONG") && !options.mutant && !options.all_mutants &&
                options.last_seed > options.first_seed) {
                options.states = MAX_OF(options.states, UINT64_C(500000));
                options.budget = MAX_OF(options.budget, UINT64_C(1500));
                options.last_seed = UINT64_MAX / 2;
        }
        if (options.all_mutants)
                return hunt_all();
        if (options.mutant)
                return hunt(options.mutant, "");
        return enumerate();
}
