/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots - snapshots of one or two disks under writes and flushes on a simulated disk, and at each
 * step what a power cut and what a process's death would leave there.
 *
 *   snapshots [--seeds FIRST[-LAST]] [--states N] [--budget N] [--seconds N] [--mutant NAME]
 *             [--all-mutants] [--trace]
 *
 *   --mutant       any step of base/mutant.h; --all-mutants: those that only a snapshot meets
 *
 * The catalog is a file of one sector that says how many snapshots are committed. After a crash it and
 * the switch record say which images are the leaves; then must hold:
 *   - the disks read as after all that was answered (a death) or flushed (a cut), as enumerate asks;
 *   - a snapshot that is committed, or rolled forward, reads the same whenever it is read, and as both
 *     disks were at one instant: with all that was answered before it was asked for, and with a write
 *     all that was answered before that began;
 *   - one that was switched and not committed vanishes after a cut, and never after a death;
 *   - the recovery ends in sound images with nothing left over, and what it flushed outlives a cut.
 * In some seeds a sync of an image fails once (E5): then the answered ones may be lost, the disk may
 * be for reading only, and a snapshot that was not committed need not be whole.
 *
 * Exit status: 0 no violation (or every mutant seen), 1 otherwise, 2 usage.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
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
#include "chain/push.h"
#include "formats/vhd/check.h"
#include "formats/vhd/create.h"
#include "tests/crash/model.h"
#include "tests/crash/schedule.h"
#include "tests/crash/simdisk.h"

#define MAX_DISKS     2u
#define MAX_SNAPSHOTS 2u
#define MAX_BASE      2u
#define MAX_LEVELS    (MAX_BASE + MAX_SNAPSHOTS)
#define MAX_THREADS   3u
#define MAX_BLOCKS    4u
#define MAX_CELLS     (MAX_DISKS * MAX_BLOCKS * BLOCK / MODEL_CELL)
#define MAX_INSTANTS  4000u
#define BLOCK         4096u
#define CATALOG       "/d/catalog"
#define FULL_STATES   32u /* of an instant with no more, all are looked at */
#define SAMPLES       10u
#define AFTER_SAMPLES 3u /* cuts after a recovery */
#define DEEP_DEATHS   40u
#define INSIDE_STEPS  400u
#define POINTS        1500u /* about so many has a run */

static const uint8_t vm[16] = {0x5e, 0xed};

static struct {
        uint64_t first_seed, last_seed, states, budget;
        double seconds;
        const char *mutant;
        bool all_mutants, trace;
} options = {.first_seed = 1, .last_seed = 200, .budget = 250};

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
        uint64_t seeds, states, instants, seed, rolled_forward, vanished;
        bool violated;
        char text[1024];
};

static struct result *result;

/* ---- what a seed stands for ---- */

/* The cells of both disks stand one behind the other in one model, so "began after it had ended" holds
 * across disks. */
struct scene {
        uint64_t seed;
        unsigned n_disks, n_base, n_threads, n_snapshots;
        bool narrow; /* a few sectors, again and again: FUA finds them durable in the new leaf */
        bool flat_root, split_writes, nowait_again, has_fault;
        struct sim_fault fault; /* a sync that fails */
        uint32_t disk_size;
        enum schedule_policy policy;
        unsigned inside_step; /* of SCHEDULE_INSIDE: where in a snapshot all others run */
        struct model model;
        uint64_t of_disk[MAX_DISKS]; /* operations */
        char paths[MAX_DISKS][MAX_LEVELS][32];
};

static unsigned disk_of(const struct scene *scene, const struct op *op)
{
        return op->offset / scene->disk_size;
}

static void choose_op(struct scene *scene, struct random *random)
{
        struct op op = {
                .kind = OP_WRITE, .thread = (uint8_t)random_below(random, scene->n_threads)};
        uint32_t disk = (uint32_t)random_below(random, scene->n_disks) * scene->disk_size, at;
        uint64_t kind = random_below(random, 100);

        op.offset = disk;
        if (kind < 25) {
                op.kind = OP_FLUSH;
        } else if (scene->narrow) {
                op.offset += (uint32_t)random_below(random, 2) * SIM_SECTOR;
                op.length = SIM_SECTOR;
                op.fua = random_chance(random, 50);
        } else {
                op.kind = kind < 35 ? OP_ZERO : kind < 40 ? OP_READ : OP_WRITE;
                at = (uint32_t)random_below(random, scene->disk_size / SIM_SECTOR) * SIM_SECTOR;
                if (random_chance(random, 25))
                        at = at / BLOCK * BLOCK;
                op.length = random_chance(random, 25) ? BLOCK : SIM_SECTOR;
                if (random_chance(random, 10))
                        op.length = MODEL_CELL;
                op.length = MIN_OF(op.length, scene->disk_size - at);
                op.offset += at;
                op.fua = op.kind != OP_READ && random_chance(random, 20);
                op.nowait = random_chance(random, 30);
        }
        scene->of_disk[disk_of(scene, &op)] |= UINT64_C(1) << scene->model.n_ops;
        model_add(&scene->model, &op);
}

static void scene_init(struct scene *scene, uint64_t seed)
{
        static const enum schedule_policy policies[] = {
                SCHEDULE_RANDOM, SCHEDULE_PRIORITY, SCHEDULE_INSIDE};
        struct random random = {.state = random_mix(seed + 1)};
        unsigned n_ops;

        memset(scene, 0, sizeof(*scene));
        scene->seed = seed;
        scene->n_disks = random_chance(&random, 60) ? 2 : 1;
        scene->n_base = (unsigned)random_between(&random, 1, MAX_BASE);
        scene->flat_root = random_chance(&random, 20);
        scene->disk_size = (uint32_t)random_between(&random, 2, MAX_BLOCKS) * BLOCK;
        scene->narrow = random_chance(&random, 30);
        scene->n_threads =
                scene->narrow ? MAX_THREADS : (unsigned)random_between(&random, 1, MAX_THREADS);
        scene->n_snapshots = random_chance(&random, 30) ? 2 : 1;
        scene->split_writes = random_chance(&random, 50);
        scene->nowait_again = random_chance(&random, 30);
        scene->policy = policies[random_below(&random, 3)];
        scene->inside_step = 1 + (unsigned)random_below(&random, INSIDE_STEPS);
        model_init(&scene->model, seed, scene->n_disks * scene->disk_size / MODEL_CELL);
        n_ops = (unsigned)random_between(&random, 6, 18);
        for (unsigned i = 0; i < n_ops; i++)
                choose_op(scene, &random);
        for (unsigned d = 0; d < MAX_DISKS; d++)
                for (unsigned l = 0; l < MAX_LEVELS; l++)
                        snprintf(scene->paths[d][l], sizeof(scene->paths[d][l]), "/d/%u-%u.vhd", d,
                                l);
        if (random_chance(&random, 20)) {
                unsigned level = scene->n_base - 1 + (unsigned)random_below(&random, 2);

                scene->has_fault = true;
                scene->fault = (struct sim_fault){
                        .call = SIM_SYNC,
                        .failure = SIM_LOSE,
                        .error = EIO,
                        .at = (unsigned)random_below(&random, 12),
                        .path = scene->paths[random_below(&random, scene->n_disks)][level],
                };
        }
}

static void image_id(const struct scene *scene, unsigned disk, unsigned level, uint8_t ret[16])
{
        memset(ret, 0x11, 16);
        memcpy(ret, &scene->seed, sizeof(scene->seed));
        ret[14] = (uint8_t)disk;
        ret[15] = (uint8_t)level;
}

/* ---- a run ---- */

struct instant {
        struct sim_world *world;
        struct moment moment;
        bool poisoned; /* a sync has failed */
        bool unnoted;  /* and its caller could not yet note it anywhere */
};

/* What opening a world found. */
struct outcome {
        uint64_t key;
        bool bad, poisoned;
        unsigned committed,
                level; /* snapshots: by the catalog; with the one that is rolled forward */
        uint8_t live[MAX_CELLS];
        uint8_t kept[MAX_SNAPSHOTS][MAX_CELLS];
        char sentence[512];
};

struct taken {
        uint64_t answered_before, begun_after;
        bool was_read;
        uint8_t values[MAX_CELLS];
};

struct run {
        struct scene scene;
        struct random random;
        bool violated, watching, poisoned, unnoted;
        unsigned failed_thread; /* whose sync failed */
        char text[1024];
        struct sim_fs *fs;
        struct chain *chains[MAX_DISKS];
        struct taken taken[MAX_SNAPSHOTS];
        struct instant instants[MAX_INSTANTS];
        unsigned n_instants;
        struct outcome *outcomes;
        size_t n_outcomes, room;
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
        vsnprintf(run->text, sizeof(run->text), format, list);
        va_end(list);
}

__attribute__((format(printf, 2, 3))) static int wrong(char sentence[512], const char *format, ...)
{
        va_list list;

        va_start(list, format);
        vsnprintf(sentence, 512, format, list);
        va_end(list);
        return -1;
}

static void on_deadlock(void)
{
        result->violated = true;
        snprintf(result->text, sizeof(result->text), "the engine waits for ever");
        _exit(1);
}

static void take_instant(struct run *run)
{
        struct instant *instant;

        if (!run->watching || run->n_instants == MAX_INSTANTS)
                return;
        run->poisoned |= run->fs->fault_hit;
        instant = &run->instants[run->n_instants++];
        instant->world = sim_fs_snapshot(run->fs);
        instant->moment = run->scene.model.now;
        instant->poisoned = run->poisoned;
        instant->unnoted = run->unnoted;
        if (options.trace)
                fprintf(stderr, "  [%u] -- instant %u\n", schedule_self(), run->n_instants - 1);
}

/* Linux tells of a lost writeback once. Of a process that dies between being told and noting it
 * nothing can be asked; the note is the first thing that the thread makes, so its next step of any
 * kind says that it is there. */
static void follow_failed_sync(struct run *run, bool inside_sync)
{
        if (run->fs->fault_hit && !run->poisoned) {
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

/* ---- the catalog ---- */

static int catalog_write(struct sim_fs *fs, unsigned n_committed)
{
        _cleanup_(file_closep) struct file *file = NULL;
        uint8_t sector[SIM_SECTOR] = {'c', 'a', 't', (uint8_t)n_committed};
        int r = file_open(&fs->fs, CATALOG, FILE_WRITE | FILE_CREATE, &file, NULL);

        if (r == 0)
                r = file_write(file, sector, sizeof(sector), 0, 0);
        return r < 0 ? r : file_sync(file);
}

static unsigned catalog_read(const struct sim_world *world)
{
        uint8_t sector[SIM_SECTOR];

        sim_world_read(world, CATALOG, sector, sizeof(sector), 0);
        assert(sector[0] == 'c');
        return sector[3];
}

/* ---- the disks ---- */

static int create_base(struct scene *scene, struct sim_fs *fs, unsigned d, unsigned level)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC,
                .size = scene->disk_size,
                .block_size = BLOCK,
                .now = 1700000000,
        };
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;
        int r = file_open(&fs->fs, scene->paths[d][level], FILE_WRITE | FILE_CREATE, &file, &err);

        image_id(scene, d, level, params.unique_id);
        if (level == 0 && scene->flat_root) {
                params.type = VHD_TYPE_FIXED;
                params.block_size = 0;
        } else if (level > 0) {
                params.type = VHD_TYPE_DIFFERENCING;
                image_id(scene, d, level - 1, params.parent_id);
                params.parent_name = params.parent_relative =
                        strrchr(scene->paths[d][level - 1], '/') + 1;
        }
        return r < 0 ? r : vhd_create(file, &params, &err);
}

static int fill_base(
        struct scene *scene, struct sim_fs *fs, unsigned d, unsigned level, struct random *random)
{
        struct chain_options chain_options = {.fs = &fs->fs, .writable = true};
        unsigned n = (unsigned)random_below(random, 4);
        struct error err = ERROR_INIT;
        struct chain *chain;
        int r = chain_open(scene->paths[d][level], &chain_options, &chain, &err);

        if (r < 0)
                return r;
        for (unsigned i = 0; i < n && r == 0; i++) {
                uint32_t at = (uint32_t)random_below(random, scene->disk_size / SIM_SECTOR);
                uint8_t bytes[MODEL_CELL];

                for (unsigned k = 0; k < SIM_SECTOR / MODEL_CELL && r == 0; k++) {
                        uint32_t local = at * SIM_SECTOR + k * MODEL_CELL;
                        uint32_t cell = (d * scene->disk_size + local) / MODEL_CELL;

                        scene->model.initial[cell] = (uint8_t)(VALUE_LAYER + level);
                        model_fill(&scene->model, cell, scene->model.initial[cell], bytes);
                        r = chain_write(chain, bytes, MODEL_CELL, local, 0);
                }
        }
        return r < 0 ? r : chain_close(chain, &err);
}

static struct sim_world *make_world(struct scene *scene)
{
        struct random random = {.state = random_mix(~scene->seed)};
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        int r = catalog_write(fs, 0);

        fs->fs.single_threaded = true;
        for (unsigned d = 0; d < scene->n_disks; d++)
                for (unsigned level = 0; level < scene->n_base && r == 0; level++) {
                        r = create_base(scene, fs, d, level);
                        if (r == 0)
                                r = fill_base(scene, fs, d, level, &random);
                }
        assert(r == 0);
        sim_world_settle(fs->world);
        return sim_fs_snapshot(fs);
}

/* ---- the threads ---- */

static int do_op(struct run *run, uint32_t i, unsigned flags)
{
        const struct model *model = &run->scene.model;
        const struct op *op = &model->ops[i];
        struct chain *chain = run->chains[disk_of(&run->scene, op)];
        uint32_t local = op->offset % run->scene.disk_size;
        uint8_t bytes[BLOCK];

        if (op->fua)
                flags |= CHAIN_FUA;
        switch (op->kind) {
        case OP_FLUSH: return chain_flush(chain);
        case OP_ZERO: return chain_zero(chain, op->length, local, flags);
        case OP_READ: return chain_read(chain, bytes, op->length, local, flags);
        default: break;
        }
        for (uint32_t at = 0; at < op->length; at += MODEL_CELL)
                model_fill(
                        model, (op->offset + at) / MODEL_CELL, (uint8_t)(VALUE_OP + i), bytes + at);
        return chain_write(chain, bytes, op->length, local, flags);
}

static void perform(struct run *run, uint32_t i)
{
        struct model *model = &run->scene.model;
        const struct op *op = &model->ops[i];
        unsigned d = disk_of(&run->scene, op);
        uint64_t answered = model->now.answered & run->scene.of_disk[d];
        char text[96];
        int r = -EAGAIN;

        if (options.trace)
                fprintf(stderr, "  [%u] operation %u begins: disk %u, %s\n", schedule_self(), i, d,
                        model_op_name(op, text));
        model_begin(model, i);
        if (op->nowait && op->kind != OP_FLUSH)
                r = do_op(run, i, CHAIN_NOWAIT);
        if (r == -EAGAIN)
                r = do_op(run, i, 0);
        if (r < 0 && !run->poisoned && !run->fs->fault_hit)
                violation(run, "operation %u fails: %s", i, strerror(-r));
        model_end(model, i, r == 0, answered);
        if (options.trace)
                fprintf(stderr, "  [%u] operation %u: %s\n", schedule_self(), i,
                        r == 0 ? "answered" : strerror(-r));
        follow_failed_sync(run, false);
        take_instant(run);
}

struct worker {
        struct run *run;
        unsigned thread;
        pthread_t id;
};

static void *worker_main(void *argument)
{
        struct worker *worker = argument;
        struct run *run = worker->run;

        for (uint32_t i = 0; i < run->scene.model.n_ops; i++)
                if (run->scene.model.ops[i].thread == worker->thread)
                        perform(run, i);
        return NULL;
}

static int make_children(
        struct run *run, unsigned level, struct chain_switch *disks, struct error *err)
{
        int r = 0;

        for (unsigned d = 0; d < run->scene.n_disks && r == 0; d++) {
                const char *path = run->scene.paths[d][level];
                uint8_t id[16];

                image_id(&run->scene, d, level, id);
                disks[d] = (struct chain_switch){.chain = run->chains[d], .id = {(uint8_t)d}};
                r = chain_child_create(run->chains[d], path, id, err);
                if (r == 0)
                        r = chain_child_open(run->chains[d], path, &disks[d].child, err);
        }
        return r;
}

/* As a worker and its broker would, one after the other. */
static int take_snapshot(
        struct run *run, unsigned number, struct switch_region *region, struct error *err)
{
        unsigned n = run->scene.n_disks;
        uint8_t snapshot[16] = {(uint8_t)number};
        struct taken *taken = &run->taken[number - 1];
        struct chain_switch disks[MAX_DISKS] = {0};
        uint64_t stall_ns;
        int r = make_children(run, run->scene.n_base - 1 + number, disks, err);

        taken->answered_before = run->scene.model.now.answered;
        if (r == 0)
                r = chain_switch(disks, n, region, snapshot, &stall_ns, err);
        if (r < 0) {
                for (unsigned d = 0; d < n; d++)
                        chain_child_close(disks[d].child);
                return r;
        }
        taken->begun_after = run->scene.model.now.begun;
        if (options.trace)
                fprintf(stderr, "  [%u] snapshot %u switched\n", schedule_self(), number);
        take_instant(run);
        for (unsigned d = 0; d < n && r == 0; d++)
                r = chain_flush_frozen(run->chains[d], err);
        if (r < 0) { /* E5: there is nothing to commit, and nobody may wait for it */
                for (unsigned d = 0; d < n; d++)
                        chain_commits_abort(run->chains[d]);
                return r;
        }
        r = catalog_write(run->fs, number);
        if (options.trace)
                fprintf(stderr, "  [%u] snapshot %u committed\n", schedule_self(), number);
        for (unsigned d = 0; d < n && r == 0; d++)
                chain_committed(run->chains[d]);
        switch_clear(region);
        take_instant(run);
        return r;
}

static void *snapshot_main(void *argument)
{
        struct run *run = argument;
        struct switch_region *region;
        struct error err = ERROR_INIT;
        int r = switch_open(&run->fs->fs, vm, CATALOG, true, &region, &err);

        for (unsigned i = 1; i <= run->scene.n_snapshots && r == 0; i++)
                r = take_snapshot(run, i, region, &err);
        if (r < 0 && !run->poisoned && !run->fs->fault_hit)
                violation(run, "no snapshot is taken: %s", err.message);
        switch_close(region, r == 0);
        return NULL;
}

/* ---- opening what a crash left ---- */

/* Which images are the leaves: what the catalog says, and the record beyond it. */
static int find_level(struct run *run, struct sim_fs *fs, struct outcome *ret)
{
        _cleanup_free_ struct switch_record *record = malloc(sizeof(*record));
        struct switch_region *region = NULL;
        unsigned n;

        ret->committed = ret->level = catalog_read(fs->world);
        if (switch_open(&fs->fs, vm, CATALOG, false, &region, NULL) < 0)
                return 0;
        if (switch_read(region, record) < 0 || record->snapshot[0] <= ret->committed) {
                switch_close(region, false);
                return 0;
        }
        switch_close(region, false);
        n = record->snapshot[0];
        if (n != ret->committed + 1 || record->n_disks != run->scene.n_disks)
                return wrong(ret->sentence, "the record speaks of snapshot %u of %u disks", n,
                        record->n_disks);
        for (unsigned d = 0; d < run->scene.n_disks; d++) {
                _cleanup_(file_closep) struct file *file = NULL;
                const char *path = run->scene.paths[d][run->scene.n_base - 1 + n];
                struct file_stat st;

                if (file_open(&fs->fs, path, FILE_READ, &file, NULL) < 0 ||
                        file_stat_get(file, &st) < 0 ||
                        switch_find_leaf(record, &st) != &record->disks[d])
                        return wrong(ret->sentence, "the record does not know '%s'", path);
        }
        ret->level = n;
        return 0;
}

static int open_disk(struct run *run, struct sim_fs *fs, unsigned d, unsigned n_snapshots,
        bool writable, struct chain **ret, char sentence[512])
{
        struct chain_options chain_options = {.fs = &fs->fs, .writable = writable};
        const char *path = run->scene.paths[d][run->scene.n_base - 1 + n_snapshots];
        struct error err = ERROR_INIT;

        fs->fs.single_threaded = true;
        if (chain_open(path, &chain_options, ret, &err) < 0)
                return wrong(sentence, "'%s' does not open for %s: %s", path,
                        writable ? "writing" : "reading", err.message);
        return 0;
}

static int read_disk(
        struct run *run, struct chain *chain, unsigned d, uint8_t values[], char sentence[512])
{
        uint32_t size = run->scene.disk_size, first = d * size / MODEL_CELL;
        uint8_t bytes[MAX_BLOCKS * BLOCK];
        int r = chain_read(chain, bytes, size, 0, 0);

        if (r < 0)
                return wrong(sentence, "disk %u cannot be read: %s", d, strerror(-r));
        for (uint32_t c = 0; c < size / MODEL_CELL; c++)
                values[first + c] =
                        model_value(&run->scene.model, first + c, bytes + c * MODEL_CELL);
        return 0;
}

static int read_level(struct run *run, struct sim_fs *fs, unsigned n_snapshots, uint8_t values[],
        char sentence[512])
{
        for (unsigned d = 0; d < run->scene.n_disks; d++) {
                struct chain *chain = NULL;
                int r = open_disk(run, fs, d, n_snapshots, false, &chain, sentence);

                if (r == 0)
                        r = read_disk(run, chain, d, values, sentence);
                chain_abandon(chain);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int read_world(struct run *run, const struct sim_world *world, struct outcome *ret)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        int r = find_level(run, fs, ret);

        if (r == 0)
                r = read_level(run, fs, ret->level, ret->live, ret->sentence);
        for (unsigned s = 0; s < ret->level && r == 0; s++)
                r = read_level(run, fs, s, ret->kept[s], ret->sentence);
        return r;
}

static int compare(struct run *run, const uint8_t want[], const uint8_t got[], const char *what,
        char sentence[512])
{
        char a[32], b[32];

        for (uint32_t c = 0; c < run->scene.model.n_cells; c++)
                if (want[c] != got[c])
                        return wrong(sentence, "cell %u is %s, and %s %s", c,
                                model_value_name(want[c], a), what, model_value_name(got[c], b));
        return 0;
}

/* @world is one in which the recovery has ended or has died on its way. */
static int compare_world(struct run *run, const struct sim_world *world, const struct outcome *want,
        const char *what, char sentence[512])
{
        struct outcome got = {0};

        if (read_world(run, world, &got) < 0)
                return wrong(sentence, "%s: %.400s", what, got.sentence);
        if (got.level != want->level)
                return wrong(sentence, "%s there are %u snapshots, and there were %u", what,
                        got.level, want->level);
        if (compare(run, want->live, got.live, what, sentence) < 0)
                return -1;
        for (unsigned s = 0; s < want->level; s++)
                if (compare(run, want->kept[s], got.kept[s], what, sentence) < 0)
                        return -1;
        return 0;
}

static int compare_cuts(struct run *run, const struct sim_world *world, const struct outcome *want,
        char sentence[512])
{
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);

        for (unsigned i = 0; i < AFTER_SAMPLES; i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        i == 0 ? sim_world_cut(world, false) : sim_cut_sample(cut, &run->random);

                if (compare_world(
                            run, state, want, "after the recovery's flush and a cut", sentence) < 0)
                        return -1;
        }
        return 0;
}

/* ---- recovery ---- */

/* What the broker does with a child that never became a leaf. */
static void drop_children(struct run *run, struct sim_fs *fs, unsigned level)
{
        for (unsigned d = 0; d < run->scene.n_disks; d++)
                for (unsigned s = level + 1; s <= run->scene.n_snapshots; s++) {
                        const char *path = run->scene.paths[d][run->scene.n_base - 1 + s];

                        if (chain_forget_image(&fs->fs, path, NULL) == 0)
                                fs_unlink(&fs->fs, path);
                }
}

static int finish_record(struct sim_fs *fs, const struct outcome *outcome, char sentence[512])
{
        struct switch_region *region = NULL;

        /* Also where it says so already: what a dead process wrote is not durable. */
        if (catalog_write(fs, outcome->level) < 0)
                return wrong(sentence, "the catalog cannot be written");
        if (switch_open(&fs->fs, vm, CATALOG, false, &region, NULL) == 0) {
                switch_clear(region);
                switch_close(region, true);
        }
        return 0;
}

/* 1: poisoned, so one of them is for reading only. */
static int open_and_flush(struct run *run, struct sim_fs *fs, const struct outcome *want,
        struct chain *chains[MAX_DISKS], char sentence[512])
{
        uint8_t got[MAX_CELLS];

        for (unsigned d = 0; d < run->scene.n_disks; d++)
                if (open_disk(run, fs, d, want->level, true, &chains[d], sentence) < 0 ||
                        read_disk(run, chains[d], d, got, sentence) < 0)
                        return -1;
        if (compare(run, want->live, got, "for a writer", sentence) < 0)
                return -1;
        for (unsigned d = 0; d < run->scene.n_disks; d++) {
                int r;

                if (!chain_is_writable(chains[d]))
                        return want->poisoned ? 1 : wrong(sentence, "disk %u opens read-only", d);
                r = chain_flush(chains[d]);
                if (r < 0)
                        return wrong(sentence, "disk %u cannot be flushed: %s", d, strerror(-r));
        }
        return 0;
}

static void note_finding(void *opaque, const struct vhd_finding *finding)
{
        if (finding->severity != VHD_INFO)
                wrong(opaque, "check: %.400s", finding->sentence);
}

static int check_images(
        struct run *run, const struct sim_world *world, unsigned level, char sentence[512])
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));

        for (unsigned d = 0; d < run->scene.n_disks; d++)
                for (unsigned l = 0; l < run->scene.n_base + level; l++) {
                        _cleanup_(file_closep) struct file *file = NULL;
                        struct vhd_check_result checked;
                        struct error err = ERROR_INIT;
                        char found[512] = "";

                        if (file_open(&fs->fs, run->scene.paths[d][l], FILE_READ, &file, &err) <
                                        0 ||
                                vhd_check(file, VHD_CHECK_DEEP, note_finding, found, &checked,
                                        &err) < 0)
                                return wrong(sentence, "it cannot be checked: %s", err.message);
                        if (found[0])
                                return wrong(
                                        sentence, "'%s': %.400s", run->scene.paths[d][l], found);
                }
        return 0;
}

static int close_all(struct run *run, struct chain *chains[MAX_DISKS], char sentence[512])
{
        struct error err = ERROR_INIT;

        for (unsigned d = 0; d < run->scene.n_disks; d++)
                if (chain_close(TAKE_PTR(chains[d]), &err) < 0)
                        return wrong(sentence, "disk %u does not close: %s", d, err.message);
        return 0;
}

struct watch {
        struct sim_world *worlds[DEEP_DEATHS];
        unsigned n;
};

static void watch_change(struct sim_fs *fs, enum sim_call call)
{
        struct watch *watch = fs->opaque;

        if (watch->n < DEEP_DEATHS)
                watch->worlds[watch->n++] = sim_fs_snapshot(fs);
}

static int recover(struct run *run, struct sim_fs *fs, struct outcome *want)
{
        struct chain *chains[MAX_DISKS] = {0};
        _cleanup_(sim_world_freep) struct sim_world *flushed = NULL, *closed = NULL;
        int r = open_and_flush(run, fs, want, chains, want->sentence);

        if (r == 0)
                r = finish_record(fs, want, want->sentence);
        if (r == 0) {
                flushed = sim_fs_snapshot(fs);
                r = compare_cuts(run, flushed, want, want->sentence);
        }
        if (r == 0)
                r = close_all(run, chains, want->sentence);
        for (unsigned d = 0; d < MAX_DISKS; d++)
                chain_abandon(chains[d]);
        if (r != 0)
                return MIN_OF(r, 0);
        drop_children(run, fs, want->level);
        closed = sim_fs_snapshot(fs);
        if (sim_world_n_regions(closed) != 0)
                return wrong(want->sentence, "a region is left over after a clean close");
        r = check_images(run, closed, want->level, want->sentence);
        return r < 0 ? r : compare_cuts(run, closed, want, want->sentence);
}

/* The process may die in its recovery, too: the next one finds the same. */
static int judge_inside(
        struct run *run, struct watch *watch, const struct outcome *want, char sentence[512])
{
        int r = 0;

        for (unsigned i = 0; i < watch->n && r == 0; i++)
                r = compare_world(
                        run, watch->worlds[i], want, "after a death in the recovery", sentence);
        return r;
}

static int judge_world(struct run *run, const struct sim_world *world, struct outcome *ret)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = NULL;
        struct watch watch = {.n = 0};
        int r = read_world(run, world, ret);

        if (r < 0)
                return r;
        fs = sim_fs_new(sim_world_clone(world));
        fs->opaque = &watch;
        if (random_chance(&run->random, 15))
                fs->on_change = watch_change;
        r = recover(run, fs, ret);
        fs->on_change = NULL;
        if (r == 0)
                r = judge_inside(run, &watch, ret, ret->sentence);
        for (unsigned i = 0; i < watch.n; i++)
                sim_world_free(watch.worlds[i]);
        return r;
}

/* ---- what may be there ---- */

/* All that a snapshot with these values must have: what was answered before it was asked for, and
 * before anything that it has began. */
static uint64_t implied_by(const struct run *run, const struct taken *taken, const uint8_t values[])
{
        const struct model *model = &run->scene.model;
        uint64_t required = taken->answered_before;

        for (uint32_t c = 0; c < model->n_cells; c++)
                if (values[c] >= VALUE_OP && values[c] < VALUE_OP + model->n_ops)
                        required |= model->before[values[c] - VALUE_OP];
        return required;
}

static void judge_values(struct run *run, const char *what, unsigned index, const uint8_t values[],
        uint64_t begun, uint64_t required)
{
        const struct model *model = &run->scene.model;
        char text[32];

        for (uint32_t c = 0; c < model->n_cells; c++)
                if (!model_allows(model, c, values[c], begun, required)) {
                        violation(run,
                                "instant %u: %s: cell %u of disk %u is %s, begun %#" PRIx64
                                ", required %#" PRIx64,
                                index, what, c * MODEL_CELL % run->scene.disk_size / MODEL_CELL,
                                c * MODEL_CELL / run->scene.disk_size,
                                model_value_name(values[c], text), begun, required);
                        return;
                }
}

static void judge_kept(struct run *run, unsigned index, unsigned s, const uint8_t values[])
{
        struct taken *taken = &run->taken[s];
        char sentence[512];

        if (!taken->was_read) {
                taken->was_read = true;
                memcpy(taken->values, values, sizeof(taken->values));
                judge_values(run, "a snapshot", index, values, taken->begun_after,
                        implied_by(run, taken, values));
        } else if (compare(run, taken->values, values, "in the snapshot later", sentence) < 0) {
                violation(run, "instant %u: snapshot %u: %s", index, s + 1, sentence);
        }
}

static struct outcome *outcome_of(struct run *run, const struct sim_world *world, bool poisoned)
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
        outcome->bad = judge_world(run, world, outcome) < 0;
        result->states++;
        result->rolled_forward += outcome->level > outcome->committed;
        return outcome;
}

static void judge_state(struct run *run, const struct sim_world *world, unsigned index,
        const char *what, uint64_t required, bool poisoned)
{
        const struct outcome *outcome = outcome_of(run, world, poisoned);
        unsigned n_whole = poisoned ? outcome->committed : outcome->level;

        if (outcome->bad) {
                violation(run, "instant %u, %s: %s", index, what, outcome->sentence);
                return;
        }
        judge_values(run, what, index, outcome->live, run->instants[index].moment.begun, required);
        for (unsigned s = 0; s < n_whole; s++)
                judge_kept(run, index, s, outcome->kept[s]);
}

static void judge_instant(struct run *run, unsigned index)
{
        const struct instant *instant = &run->instants[index];
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(instant->world);
        uint64_t n_states = sim_cut_n_states(cut);
        bool all = n_states <= FULL_STATES;

        if (!instant->unnoted)
                judge_state(run, instant->world, index, "the process's death",
                        instant->poisoned ? instant->moment.covered : instant->moment.answered,
                        instant->poisoned);
        for (uint64_t i = 0; i < (all ? n_states : SAMPLES) && !run->violated; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world =
                        all ? sim_cut_state(cut, i) : sim_cut_sample(cut, &run->random);

                judge_state(run, world, index, "a power cut", instant->moment.covered, false);
        }
}

/* In an order of chance, until the seed's share of states is used up. */
static void judge_instants(struct run *run)
{
        unsigned n = run->n_instants;
        _cleanup_free_ unsigned *order = malloc((n + 1) * sizeof(unsigned));

        for (unsigned i = 0; i < n; i++)
                order[i] = i;
        for (unsigned i = n; i > 1; i--) {
                unsigned k = (unsigned)random_below(&run->random, i), last = order[i - 1];

                order[i - 1] = order[k];
                order[k] = last;
        }
        for (unsigned i = 0; i < n && !run->violated && run->n_outcomes < options.budget; i++)
                judge_instant(run, order[i]);
        result->instants += n;
}

/* ---- a seed ---- */

static void work(struct run *run)
{
        struct worker workers[MAX_THREADS];
        pthread_t snapshots;

        if (run->scene.policy == SCHEDULE_INSIDE)
                schedule_set_policy(SCHEDULE_INSIDE, run->scene.seed, run->scene.inside_step);
        if (pthread_create(&snapshots, NULL, snapshot_main, run) != 0)
                abort();
        for (unsigned i = 0; i < run->scene.n_threads; i++) {
                workers[i] = (struct worker){.run = run, .thread = i};
                if (pthread_create(&workers[i].id, NULL, worker_main, &workers[i]) != 0)
                        abort();
        }
        for (unsigned i = 0; i < run->scene.n_threads; i++)
                pthread_join(workers[i].id, NULL);
        pthread_join(snapshots, NULL);
}

static bool open_live(struct run *run)
{
        char sentence[512];

        for (unsigned d = 0; d < run->scene.n_disks; d++) {
                bool good = open_disk(run, run->fs, d, 0, true, &run->chains[d], sentence) == 0;

                if (good && chain_is_writable(run->chains[d]))
                        continue;
                if (!run->fs->fault_hit)
                        violation(run, "disk %u does not open for writing: %s", d,
                                good ? "it is for reading only" : sentence);
                return false;
        }
        return true;
}

static void live(struct run *run)
{
        running = run;
        schedule_on_point = on_point;
        if (run->scene.policy != SCHEDULE_INSIDE)
                schedule_set_policy(run->scene.policy, run->scene.seed * 4, POINTS);
        mutants_on = run->watching = true;
        if (open_live(run))
                work(run);
        run->watching = false;
        running = NULL;
        schedule_on_point = NULL;
        schedule_set_policy(SCHEDULE_STAY, run->scene.seed, 0);
        for (unsigned d = 0; d < MAX_DISKS; d++)
                run->chains[d] = chain_abandon(run->chains[d]);
        if (!run->violated)
                judge_instants(run);
        mutants_on = false;
}

static bool run_seed(uint64_t seed)
{
        struct run *run = calloc(1, sizeof(*run));
        bool good;

        assert(run != NULL);
        run->random.state = random_mix(seed + 7);
        scene_init(&run->scene, seed);
        result->seed = seed;
        schedule_begin();
        schedule_set_policy(SCHEDULE_STAY, seed, 0);
        run->fs = sim_fs_new(make_world(&run->scene));
        run->fs->opaque = run;
        run->fs->on_change = on_change;
        run->fs->split_writes = run->scene.split_writes;
        run->fs->nowait_again = run->scene.nowait_again;
        run->fs->random.state = seed;
        if (run->scene.has_fault)
                sim_fs_arm(run->fs, &run->scene.fault);
        run->fs->trace = options.trace ? stderr : NULL;
        live(run);
        for (unsigned i = 0; i < run->n_instants; i++)
                sim_world_free(run->instants[i].world);
        sim_fs_free(run->fs);
        schedule_end();
        good = !run->violated;
        if (!good) {
                result->violated = true;
                memcpy(result->text, run->text, sizeof(result->text));
        }
        free(run->outcomes);
        free(run);
        return good;
}

/* In a process of its own: a mutant may crash it or hang it. True: no violation. */
static bool run_seeds(bool quiet)
{
        double until = options.seconds > 0 ? now_seconds() + options.seconds : 0;
        int status;
        pid_t pid;

        memset(result, 0, sizeof(*result));
        fflush(NULL);
        pid = fork();
        if (pid == 0) {
                if (quiet && !freopen("/dev/null", "w", stderr))
                        _exit(3);
                schedule_on_deadlock = on_deadlock;
                for (uint64_t seed = options.first_seed; seed <= options.last_seed; seed++) {
                        if (!run_seed(seed))
                                _exit(1);
                        result->seeds++;
                        if (until > 0 && now_seconds() > until)
                                break;
                }
                exit(0);
        }
        if (waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0)
                return true;
        if (!result->violated)
                snprintf(result->text, sizeof(result->text), "the engine crashes: %s",
                        WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "it exits");
        return false;
}

static int enumerate(void)
{
        double start = now_seconds();
        bool good = run_seeds(false);

        if (!good)
                fprintf(stderr,
                        "violation: seed %" PRIu64 ": %s\nagain: snapshots --seeds %" PRIu64
                        " --budget %" PRIu64 " --trace\n",
                        result->seed, result->text, result->seed, options.budget);
        printf("summary: %" PRIu64 " states (%" PRIu64 " rolled forward) at %" PRIu64
               " instants of %" PRIu64 " seeds in %.0f s: %s\n",
                result->states, result->rolled_forward, result->instants, result->seeds,
                now_seconds() - start, good ? "no violation" : "VIOLATED");
        if (good && result->states < options.states) {
                fprintf(stderr, "snapshots: %" PRIu64 " states are fewer than %" PRIu64 "\n",
                        result->states, options.states);
                return 1;
        }
        return good ? 0 : 1;
}

struct mutant {
        const char *name, *what;
};

#define MUTANT_ENTRY(name, what) {name, what},
static const struct mutant mutants[] = {
        MUTANT_LIST_SNAPSHOT(MUTANT_ENTRY) MUTANT_LIST(MUTANT_ENTRY)};
#define N_OURS (sizeof((struct mutant[]){MUTANT_LIST_SNAPSHOT(MUTANT_ENTRY)}) / sizeof(mutants[0]))

static int hunt(const struct mutant *mutant)
{
        double start = now_seconds();
        bool good;

        options.mutant = mutant->name;
        good = run_seeds(true);
        if (good)
                printf("mutant %s: NOT SEEN after %" PRIu64 " states of %" PRIu64
                       " seeds, %.1f s (%s)\n",
                        mutant->name, result->states, result->seeds, now_seconds() - start,
                        mutant->what);
        else
                printf("mutant %s: seen at seed %" PRIu64 " after %" PRIu64 " states, %.1f s: %s\n",
                        mutant->name, result->seed, result->states, now_seconds() - start,
                        result->text);
        fflush(stdout);
        return good ? 1 : 0;
}

static int hunt_mutants(void)
{
        unsigned n = sizeof(mutants) / sizeof(mutants[0]), n_hunted = 0, missed = 0;
        const char *only = options.mutant;

        for (unsigned i = 0; i < n; i++) {
                if (only ? strcmp(only, mutants[i].name) != 0 : i >= N_OURS)
                        continue;
                n_hunted++;
                missed += (unsigned)hunt(&mutants[i]);
        }
        printf("summary: %u of %u mutants seen\n", n_hunted - missed, n_hunted);
        return n_hunted == 0 ? 2 : missed ? 1 : 0;
}

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
        } else if (strcmp(name, "--states") == 0) {
                options.states = strtoull(value, &end, 0);
        } else if (strcmp(name, "--budget") == 0) {
                options.budget = strtoull(value, &end, 0);
        } else {
                return false;
        }
        return *end == '\0';
}

int main(int argc, char **argv)
{
        for (int i = 1; i < argc; i++) {
                if (strcmp(argv[i], "--trace") == 0) {
                        options.trace = true;
                } else if (strcmp(argv[i], "--all-mutants") == 0) {
                        options.all_mutants = true;
                } else if (i + 1 < argc && parse_value(argv[i], argv[i + 1])) {
                        i++;
                } else {
                        fprintf(stderr,
                                "usage: snapshots [--seeds FIRST[-LAST]] [--states N] [--budget N] "
                                "[--seconds N] [--mutant NAME] [--all-mutants] [--trace]\n");
                        return 2;
                }
        }
        result = mmap(
                NULL, sizeof(*result), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        assert(result != MAP_FAILED);
        return options.all_mutants || options.mutant ? hunt_mutants() : enumerate();
}
