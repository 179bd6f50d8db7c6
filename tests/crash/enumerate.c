/* SPDX-License-Identifier: Apache-2.0 */
/* enumerate - runs seeded sequences of operations on the real engine over a simulated disk, and at
 * each step opens what a power cut and what a process's death would leave there.
 *
 *   enumerate [--seeds FIRST[-LAST] | --inside] [--states N] [--jobs N] [--long] [--budget N]
 *             [--seconds N] [--mutant NAME] [--ops MASK] [--trace] [--all-mutants]
 *
 *   --seeds        which ones (default 1-400; with --long as many as --states needs)
 *   --inside       instead: a write, a flush and more inside each step of a flush
 *   --states       how many distinct states there have to be at the end, or it fails
 *   --budget       how many of them one seed opens at most
 *   --seconds      stop after that long (a mutant that was not seen by then was not seen)
 *   --ops          only these operations of the seed, a bit each: what a failure prints
 *   --trace        print the images, the operations and each call to the disk
 *   --mutant       take this step out (base/mutant.h); it succeeds if that is noticed
 *   --all-mutants  each of them in turn
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
#include "tests/crash/judge.h"
#include "tests/crash/scene.h"

#define ALL_OPS        UINT64_MAX
#define MAX_MOMENTS    4000u
#define FULL_STATES    256u /* eight independent choices: all their combinations are looked at */
#define SAMPLES        24u /* of an instant that has more, */
#define LONG_SAMPLES   96u /* and with --long */
#define MAX_JOBS       16u
#define REGION_BYTES   (4096u + 16384u)
#define SHRINK_SECONDS 20.0

/* ---- what is asked for ---- */

static struct {
        uint64_t first_seed, last_seed, states, budget, ops;
        unsigned jobs;
        double seconds;
        bool is_long, trace, all_mutants;
        const char *mutant;
} options = {
        .first_seed = 1, .last_seed = 400, .states = 0, .budget = 400, .ops = ALL_OPS, .jobs = 2};

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

/* ---- what came out: shared between the jobs and their parent ---- */

struct result {
        uint64_t seeds, states, cuts, deaths, opened, moments;
        uint64_t seed; /* the one under way */
        bool violated;
        uint64_t shrunk_ops;
        char text[2048];
};

static struct result *result; /* this job's */

/* Hashes of all states seen so far. */
struct set {
        uint64_t *keys;
        uint8_t *kinds;
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

static struct set seen_states;

/* ---- a run ---- */

struct instant {
        struct sim_world *world;
        struct moment moment;
        bool poisoned;
        bool unnoted; /* a sync has failed, and its caller could not yet note it anywhere */
};

struct known {
        uint64_t key;
        bool bad;
        struct outcome outcome;
};

struct run {
        struct scene scene;
        struct judge judge;
        uint64_t ops; /* the operations that take part */
        bool trace, violated;
        char text[2048];
        struct random random;
        /* the life under way */
        uint32_t life;
        struct sim_fs *fs;
        struct chain *chain;
        struct instant instants[MAX_MOMENTS];
        uint32_t n_instants;
        bool poisoned, watching, unnoted;
        unsigned failed_thread; /* whose sync failed */
        /* outcomes of this seed's states, by key */
        struct known *known;
        uint32_t n_known, room_known;
        uint32_t *slots; /* by key: index + 1, twice as many as there is room */
        uint64_t n_opened;
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

static void on_deadlock(void)
{
        result->violated = true;
        result->shrunk_ops = running ? running->ops : ALL_OPS;
        snprintf(result->text, sizeof(result->text), "the engine waits for ever");
        _exit(4);
}

/* An instant to judge later: the disk, the regions, and how far the operations are. */
static void take_instant(struct run *run)
{
        struct instant *instant;

        if (!run->watching || run->n_instants == MAX_MOMENTS)
                return;
        /* A round that meets any error poisons the image; whether this call belonged to one is not
         * ours to know, so from here on only what was covered is asked for. */
        run->poisoned |= run->fs->fault_hit;
        instant = &run->instants[run->n_instants++];
        instant->world = sim_fs_snapshot(run->fs);
        instant->moment = run->scene.model.now;
        instant->poisoned = run->poisoned;
        instant->unnoted = run->unnoted;
        if (run->trace)
                fprintf(stderr, "  [%u] -- instant %u%s%s\n", schedule_self(), run->n_instants - 1,
                        instant->poisoned ? " (poisoned)" : "",
                        instant->unnoted ? " (not noted)" : "");
}

/* Linux tells of a lost writeback once. A process that dies between being told and noting it takes
 * the news along; nothing can be asked of what it leaves. The note is the first thing that the
 * thread does, so its next step of any kind says that it is made. */
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

/* ---- operations ---- */

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

/* The living see every answered write, and nothing that nobody wrote. */
static int do_read(struct run *run, const struct op *op, uint32_t i, unsigned flags)
{
        struct model *model = &run->scene.model;
        /* What a poisoned process had answered is not replayed (E5). */
        uint64_t required =
                chain_is_writable(run->chain) ? model->now.answered : model->now.covered;
        uint8_t *bytes = malloc(op->length);
        int r = chain_read(run->chain, bytes, op->length, op->offset, flags);

        for (uint32_t at = 0; at < op->length && r == 0; at += MODEL_CELL) {
                uint32_t cell = (op->offset + at) / MODEL_CELL;
                uint8_t value = model_value(model, cell, bytes + at);
                char text[32];

                if (!model_allows(model, cell, value, model->now.begun, required))
                        violation(run, "operation %u reads cell %u as %s", i, cell,
                                model_value_name(value, text));
        }
        free(bytes);
        return r;
}

static int do_op(struct run *run, uint32_t i, unsigned flags)
{
        const struct op *op = &run->scene.model.ops[i];

        if (op->fua)
                flags |= CHAIN_FUA;
        if (op->no_hole)
                flags |= CHAIN_NO_HOLE;
        switch (op->kind) {
        case OP_WRITE: return do_write(run, op, i, flags);
        case OP_ZERO: return chain_zero(run->chain, op->length, op->offset, flags);
        case OP_TRIM: return chain_trim(run->chain, op->length, op->offset, flags);
        case OP_READ: return do_read(run, op, i, flags);
        case OP_FLUSH: return chain_flush(run->chain);
        }
        return -EINVAL;
}

/* What may fail, and when. */
static bool may_fail(const struct run *run)
{
        return run->poisoned || run->fs->fault_hit || run->scene.space ||
                !chain_is_writable(run->chain);
}

static void perform(struct run *run, uint32_t i)
{
        struct model *model = &run->scene.model;
        const struct op *op = &model->ops[i];
        uint64_t answered = model->now.answered;
        char text[96];
        int r = -EAGAIN;

        if (run->trace)
                fprintf(stderr, "  [%u] operation %u begins: %s\n", schedule_self(), i,
                        model_op_name(op, text));
        model_begin(model, i);
        if (op->nowait && op->kind != OP_FLUSH)
                r = do_op(run, i, CHAIN_NOWAIT);
        if (r == -EAGAIN)
                r = do_op(run, i, 0);
        if (r < 0 && !may_fail(run))
                violation(run, "operation %u (%s) fails: %s", i, model_op_name(op, text),
                        strerror(-r));
        model_end(model, i, r == 0, answered);
        if (run->trace)
                fprintf(stderr, "  [%u] operation %u: %s\n", schedule_self(), i,
                        r == 0 ? "answered" : strerror(-r));
        follow_failed_sync(run, false);
        take_instant(run);
}

struct worker {
        struct run *run;
        uint32_t thread;
        pthread_t id;
};

static void *worker_main(void *argument)
{
        struct worker *worker = argument;
        struct run *run = worker->run;

        for (uint32_t i = 0; i < run->scene.model.n_ops; i++) {
                const struct op *op = &run->scene.model.ops[i];

                if (op->thread == worker->thread && op->life == run->life && run->ops >> i & 1)
                        perform(run, i);
        }
        return NULL;
}

/* ---- judging ---- */

static uint32_t *slot_of(struct run *run, uint64_t key)
{
        uint32_t n = 2 * run->room_known, at = (uint32_t)(random_mix(key) % n);

        while (run->slots[at] && run->known[run->slots[at] - 1].key != key)
                at = (at + 1) % n;
        return &run->slots[at];
}

static void grow_known(struct run *run)
{
        if (run->n_known < run->room_known)
                return;
        run->room_known = 2 * run->room_known + 256;
        run->known = realloc(run->known, run->room_known * sizeof(struct known));
        free(run->slots);
        run->slots = calloc(2 * (size_t)run->room_known, sizeof(uint32_t));
        assert(run->known != NULL);
        assert(run->slots != NULL);
        for (uint32_t i = 0; i < run->n_known; i++)
                *slot_of(run, run->known[i].key) = i + 1;
}

static struct known *known_outcome(struct run *run, const struct sim_world *world, bool after_cut,
        const struct instant *instant, bool *is_new)
{
        uint64_t content = sim_world_hash(world);
        uint64_t key = after_cut
                ? content
                : random_mix(content) + sim_world_durable_hash(world) + instant->poisoned;
        struct known *known;
        uint32_t *slot;

        *is_new = false;
        grow_known(run);
        slot = slot_of(run, key);
        if (*slot)
                return &run->known[*slot - 1];
        *slot = run->n_known + 1;
        known = &run->known[run->n_known++];
        known->key = key;
        run->judge.begun = instant->moment.begun;
        run->judge.covered = instant->moment.covered;
        known->bad = judge_world(&run->judge, world, after_cut, instant->poisoned,
                             random_chance(&run->random, 12), &known->outcome) < 0;
        *is_new = true;
        run->n_opened++;
        if (set_add(&seen_states, content)) {
                result->states++;
                *(after_cut ? &result->cuts : &result->deaths) += 1;
        }
        return known;
}

static bool judge_state(struct run *run, const struct sim_world *world, uint32_t index,
        const char *what, bool after_cut, uint64_t required)
{
        const struct instant *instant = &run->instants[index];
        char value[32];
        bool is_new;
        const struct known *known = known_outcome(run, world, after_cut, instant, &is_new);
        int64_t cell;

        if (known->bad) {
                violation(run, "life %u, instant %u, %s: %s", run->life, index, what,
                        known->outcome.sentence);
                return is_new;
        }
        cell = judge_values(&run->scene, known->outcome.values, instant->moment.begun, required);
        if (cell >= 0)
                violation(run,
                        "life %u, instant %u, %s: cell %lld (byte %lld) reads as %s, begun %#" PRIx64
                        ", required %#" PRIx64,
                        run->life, index, what, (long long)cell, (long long)cell * MODEL_CELL,
                        model_value_name(known->outcome.values[cell], value), instant->moment.begun,
                        required);
        return is_new;
}

static void judge_death(struct run *run, uint32_t index)
{
        const struct instant *instant = &run->instants[index];

        if (instant->unnoted)
                return;
        judge_state(run, instant->world, index, "the process's death", false,
                instant->poisoned ? instant->moment.covered : instant->moment.answered);
}

/* A death between two stores: nothing was answered or seen by anybody in between. */
static void judge_torn_death(struct run *run, uint32_t index)
{
        const struct instant *before, *instant = &run->instants[index];
        _cleanup_(sim_world_freep) struct sim_world *torn = NULL;

        if (index == 0 || instant->unnoted)
                return;
        before = &run->instants[index - 1];
        if (sim_world_same_regions(before->world, instant->world))
                return;
        torn = sim_world_torn_regions(before->world, instant->world, &run->random);
        if (torn)
                judge_state(run, torn, index, "a death within a record", false,
                        instant->poisoned ? instant->moment.covered : before->moment.answered);
}

static void judge_cuts(struct run *run, uint32_t index)
{
        const struct instant *instant = &run->instants[index];
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(instant->world);
        uint64_t n_states = sim_cut_n_states(cut);
        bool all =
                n_states <= SAMPLES || (n_states <= FULL_STATES && random_chance(&run->random, 30));
        uint64_t n = all ? n_states : SAMPLES;

        for (uint64_t i = 0; i < n && !run->violated; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world =
                        all ? sim_cut_state(cut, i) : sim_cut_sample(cut, &run->random);

                judge_state(run, world, index, "a power cut", true, instant->moment.covered);
        }
}

/* All instants of a life in an order of chance, until the seed's share of states is used up. */
static void judge_life(struct run *run)
{
        uint64_t budget = options.budget / run->scene.n_lives;
        uint64_t stop = run->n_opened + budget;
        uint32_t n = run->n_instants;
        _cleanup_free_ uint32_t *order = malloc((n + 1) * sizeof(uint32_t));

        for (uint32_t i = 0; i < n; i++)
                order[i] = i;
        for (uint32_t i = n; i > 1; i--) {
                uint32_t k = (uint32_t)random_below(&run->random, i), last = order[i - 1];

                order[i - 1] = order[k];
                order[k] = last;
        }
        for (uint32_t i = 0; i < n && !run->violated && run->n_opened < stop; i++) {
                judge_death(run, order[i]);
                if (!run->violated)
                        judge_torn_death(run, order[i]);
                if (!run->violated)
                        judge_cuts(run, order[i]);
        }
        result->moments += n;
}

/* ---- lives ---- */

static bool open_life(struct run *run, struct sim_world *world)
{
        struct chain_options chain_options = {.writable = true};
        struct error err = ERROR_INIT;
        struct sim_fs *fs = run->fs = sim_fs_new(world);
        int r;

        fs->opaque = run;
        fs->on_change = on_change;
        fs->split_writes = run->scene.split_writes;
        fs->nowait_again = run->scene.nowait_again;
        fs->no_punch = run->scene.no_punch;
        fs->space = run->scene.space;
        fs->region_limit = run->scene.region_limit ? run->scene.region_limit : REGION_BYTES;
        fs->random.state = run->scene.seed + run->life;
        fs->trace = run->trace ? stderr : NULL;
        if (run->scene.has_fault && run->scene.fault_life == run->life)
                sim_fs_arm(fs, &run->scene.fault);
        chain_options.fs = &fs->fs;
        if (run->scene.leaf_type == LEAF_RAW)
                chain_options.format = "raw";
        r = chain_open(scene_leaf_path(&run->scene), &chain_options, &run->chain, &err);
        if (r < 0) {
                if (!run->poisoned && !fs->fault_hit && !run->scene.space)
                        violation(run, "life %u does not open: %s", run->life, err.message);
                return false;
        }
        if (!chain_is_writable(run->chain) && !run->poisoned && !fs->fault_hit)
                violation(run, "life %u opens read-only: %s", run->life,
                        chain_layer(run->chain, run->scene.n_layers - 1)->warning);
        return true;
}

static void work(struct run *run)
{
        struct worker workers[SCENE_MAX_THREADS];

        if (run->scene.policy == SCHEDULE_INSIDE)
                schedule_set_policy(SCHEDULE_INSIDE, run->scene.seed, run->scene.inside_step);
        for (uint32_t i = 0; i < run->scene.n_threads; i++) {
                workers[i] = (struct worker){.run = run, .thread = i};
                if (pthread_create(&workers[i].id, NULL, worker_main, &workers[i]) != 0)
                        abort();
        }
        for (uint32_t i = 0; i < run->scene.n_threads; i++)
                pthread_join(workers[i].id, NULL);
        if (run->scene.policy == SCHEDULE_INSIDE)
                schedule_set_policy(SCHEDULE_STAY, run->scene.seed, 0);
}

static void close_life(struct run *run, bool clean)
{
        struct moment *now = &run->scene.model.now;
        struct error err = ERROR_INIT;
        uint64_t answered = now->answered;
        int r;

        if (!run->chain)
                return;
        if (!chain_is_writable(run->chain))
                answered = 0; /* poisoned: nothing was flushed */
        if (!clean) {
                run->watching = false;
                run->chain = chain_abandon(run->chain);
                return;
        }
        r = chain_close(TAKE_PTR(run->chain), &err);
        if (r == 0)
                now->covered |= answered;
        else if (!run->poisoned && !run->fs->fault_hit && !run->scene.space)
                violation(run, "life %u does not close: %s", run->life, err.message);
        if (run->trace)
                fprintf(stderr, "  closed: %s\n", r == 0 ? "clean" : err.message);
        take_instant(run);
}

/* The disk on which the next life begins. */
static struct sim_world *next_world(struct run *run)
{
        const struct instant *instant;
        struct model *model = &run->scene.model;
        uint8_t values[MODEL_MAX_CELLS];
        struct sim_world *world;
        char sentence[512];
        uint32_t index;

        if (run->n_instants == 0 || run->scene.ends[run->life] == END_CLOSE)
                return sim_fs_snapshot(run->fs);
        index = (uint32_t)random_below(&run->random, run->n_instants);
        if (random_chance(&run->random, 50)) /* late ones have more to lose */
                index = run->n_instants - 1 -
                        (uint32_t)random_below(&run->random, MIN_OF(run->n_instants, 8u));
        instant = &run->instants[index];
        if (run->trace)
                fprintf(stderr, "life %u ends at instant %u\n", run->life, index);
        model->now = instant->moment;
        model->now.ended = model->now.begun;
        if (run->scene.ends[run->life] == END_DEATH && !instant->unnoted) {
                run->poisoned = instant->poisoned;
                return sim_world_clone(instant->world);
        }
        run->poisoned = false;
        {
                _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(instant->world);

                world = sim_cut_sample(cut, &run->random);
        }
        if (judge_read(&run->judge, world, values, sentence) < 0)
                violation(run, "life %u, instant %u, a power cut: %s", run->life, index, sentence);
        else
                model_restart(model, values);
        return world;
}

static void forget_instants(struct run *run)
{
        for (uint32_t i = 0; i < run->n_instants; i++)
                sim_world_free(run->instants[i].world);
        run->n_instants = 0;
}

/* Takes @world over; answers the next life's, or NULL. */
static struct sim_world *live(struct run *run, struct sim_world *world)
{
        bool last = run->life + 1 == run->scene.n_lives;
        enum scene_end end =
                last ? (run->scene.abandon ? END_DEATH : END_CLOSE) : run->scene.ends[run->life];
        struct sim_world *next = NULL;
        bool opened;

        if (run->trace)
                fprintf(stderr, "life %u begins\n", run->life);
        run->unnoted = false;
        running = run;
        schedule_on_point = on_point;
        if (run->scene.policy != SCHEDULE_INSIDE)
                schedule_set_policy(run->scene.policy, run->scene.seed * 4 + run->life, 600);
        mutants_on = true;
        run->watching = true;
        opened = open_life(run, world);
        if (opened && !run->violated)
                work(run);
        close_life(run, end == END_CLOSE && !run->violated);
        run->watching = false;
        running = NULL;
        schedule_on_point = NULL;
        schedule_set_policy(SCHEDULE_STAY, run->scene.seed, 0);
        if (!run->violated)
                judge_life(run);
        if (!last && !run->violated)
                next = next_world(run);
        forget_instants(run);
        run->fs = sim_fs_free(run->fs);
        mutants_on = false;
        return next;
}

static void run_free(struct run *run)
{
        free(run->known);
        free(run->slots);
        free(run);
}

/* One seed, or the part of it that @ops says. The caller ends the run. */
static struct run *run_seed(uint64_t seed, uint64_t ops, bool trace)
{
        struct run *run = calloc(1, sizeof(*run));
        struct error err = ERROR_INIT;
        struct sim_world *world = NULL;

        assert(run != NULL);
        run->ops = ops;
        run->trace = trace;
        run->random.state = random_mix(seed + 7);
        scene_init(&run->scene, seed);
        result->seed = seed;
        schedule_begin();
        schedule_set_policy(SCHEDULE_STAY, seed, 0);
        if (trace)
                scene_print(&run->scene, ops, stderr);
        if (scene_make_world(&run->scene, &world, &err) < 0) {
                violation(run, "the images cannot be made: %s", err.message);
        } else {
                judge_init(&run->judge, &run->scene, world);
                for (run->life = 0; run->life < run->scene.n_lives && world && !run->violated;
                        run->life++)
                        world = live(run, world);
                if (run->violated)
                        world = sim_world_free(world);
        }
        schedule_end();
        result->opened += run->judge.n_opened;
        return run;
}

/* ---- shrinking ---- */

/* Leaves out every operation without which it still goes wrong. */
static uint64_t shrink(uint64_t seed, uint64_t ops, uint32_t n_ops)
{
        double until = now_seconds() + SHRINK_SECONDS;
        bool smaller = true;

        while (smaller) {
                smaller = false;
                for (uint32_t i = 0; i < n_ops && now_seconds() < until; i++) {
                        uint64_t fewer = ops & ~(UINT64_C(1) << i);
                        struct run *run;

                        if (fewer == ops)
                                continue;
                        run = run_seed(seed, fewer, false);
                        if (run->violated) {
                                ops = fewer;
                                smaller = true;
                        }
                        run_free(run);
                }
        }
        return ops;
}

static void report(struct run *run)
{
        uint64_t seed = run->scene.seed, ops = run->ops;
        uint32_t n_ops = run->scene.model.n_ops;

        result->violated = true;
        memcpy(result->text, run->text, sizeof(run->text));
        result->shrunk_ops = ops & ((UINT64_C(1) << (n_ops - 1) << 1) - 1);
        if (options.mutant)
                return;
        ops = shrink(seed, result->shrunk_ops, n_ops);
        run = run_seed(seed, ops, true);
        result->shrunk_ops = ops;
        if (run->violated)
                memcpy(result->text, run->text, sizeof(run->text));
        run_free(run);
}

/* ---- jobs ---- */

static void job_main(unsigned job, double until)
{
        schedule_on_deadlock = on_deadlock;
        schedule_on_one_processor(job);
        for (uint64_t seed = options.first_seed + job; seed <= options.last_seed;
                seed += options.jobs) {
                struct run *run = run_seed(seed, options.ops, options.trace);

                result->seeds++;
                if (run->violated) {
                        report(run);
                        _exit(1);
                }
                run_free(run);
                if (until > 0 && now_seconds() > until)
                        break;
                if (options.is_long && result->states * options.jobs >= options.states)
                        break;
        }
        fflush(NULL);
        free(seen_states.keys);
        exit(0);
}

static struct result *new_results(void)
{
        void *memory = mmap(NULL, MAX_JOBS * sizeof(struct result), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);

        assert(memory != MAP_FAILED);
        return memory;
}

/* One job ended: was it good? A crash of the engine is a violation too. */
static bool job_was_good(struct result *of, int status)
{
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
                return true;
        if (!of->violated) {
                snprintf(of->text, sizeof(of->text), "the engine crashes: %s",
                        WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "it exits");
                of->shrunk_ops = options.ops;
                of->violated = true;
        }
        return false;
}

static void print_violation(const struct result *of)
{
        fprintf(stderr, "violation: seed %" PRIu64 ": %s\n", of->seed, of->text);
        fprintf(stderr,
                "again: enumerate --seeds %" PRIu64 " --ops %#" PRIx64 " --budget %" PRIu64
                " --trace%s%s\n",
                of->seed, of->shrunk_ops, options.budget, options.mutant ? " --mutant " : "",
                options.mutant ? options.mutant : "");
}

/* Runs the jobs; the first violation ends them all. */
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
                        if (!good || job_was_good(&results[i], status))
                                continue;
                        good = false;
                        for (unsigned k = 0; k < options.jobs; k++)
                                if (pids[k] > 0)
                                        kill(pids[k], SIGKILL);
                }
        }
        return good;
}

static struct result sum_of(const struct result *results)
{
        struct result sum = {0};

        for (unsigned i = 0; i < options.jobs; i++) {
                sum.seeds += results[i].seeds;
                sum.states += results[i].states;
                sum.cuts += results[i].cuts;
                sum.deaths += results[i].deaths;
                sum.opened += results[i].opened;
                sum.moments += results[i].moments;
        }
        return sum;
}

static int enumerate(void)
{
        struct result *results = new_results(), sum;
        double start = now_seconds();
        bool good = run_jobs(results, false);

        sum = sum_of(results);
        for (unsigned i = 0; i < options.jobs; i++)
                if (results[i].violated)
                        print_violation(&results[i]);
        printf("summary: %" PRIu64 " distinct states (%" PRIu64 " after a power cut, %" PRIu64
               " after a process's death) at %" PRIu64 " instants of %" PRIu64
               " seeds, opened %" PRIu64 " times in %.0f s: %s\n",
                sum.states, sum.cuts, sum.deaths, sum.moments, sum.seeds, sum.opened,
                now_seconds() - start, good ? "no violation" : "VIOLATED");
        if (good && sum.states < options.states) {
                fprintf(stderr, "enumerate: %" PRIu64 " states are fewer than %" PRIu64 "\n",
                        sum.states, options.states);
                return 1;
        }
        return good ? 0 : 1;
}

/* ---- mutants ---- */

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
        for (unsigned i = 0; i < options.jobs && !good; i++)
                if (results[i].violated) {
                        printf("mutant %s: seen at seed %" PRIu64 " after %" PRIu64
                               " states, %.1f s: %s\n",
                                name, results[i].seed, sum.states, now_seconds() - start,
                                results[i].text);
                        break;
                }
        fflush(stdout);
        munmap(results, MAX_JOBS * sizeof(*results));
        return good ? 1 : 0;
}

struct mutant {
        const char *name, *what;
};

#define MUTANT_ENTRY(name, what) {name, what},
static const struct mutant mutants[] = {MUTANT_LIST(MUTANT_ENTRY)};

static int hunt_all(void)
{
        unsigned n = sizeof(mutants) / sizeof(mutants[0]), missed = 0;

        for (unsigned i = 0; i < n; i++)
                missed += (unsigned)hunt(mutants[i].name, mutants[i].what);
        printf("summary: %u of %u mutants seen\n", n - missed, n);
        return missed ? 1 : 0;
}

static int hunt_one(void)
{
        for (unsigned i = 0; i < sizeof(mutants) / sizeof(mutants[0]); i++)
                if (strcmp(mutants[i].name, options.mutant) == 0)
                        return hunt(mutants[i].name, mutants[i].what);
        fprintf(stderr, "enumerate: there is no mutant '%s' in base/mutant.h\n", options.mutant);
        return 2;
}

/* ---- the command line ---- */

static int usage(void)
{
        fprintf(stderr,
                "usage: enumerate [--seeds FIRST[-LAST]] [--states N] [--jobs N] [--long] "
                "[--budget N] [--seconds N] [--mutant NAME] [--ops MASK] [--trace] "
                "[--all-mutants]\n");
        return 2;
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
                return *end == '\0';
        }
        if (strcmp(name, "--seeds") == 0) {
                options.first_seed = options.last_seed = strtoull(value, &end, 0);
                if (*end == '-')
                        options.last_seed = strtoull(end + 1, &end, 0);
                if (options.first_seed == options.last_seed)
                        options.jobs = 1;
        } else if (strcmp(name, "--states") == 0) {
                options.states = strtoull(value, &end, 0);
        } else if (strcmp(name, "--budget") == 0) {
                options.budget = strtoull(value, &end, 0);
        } else if (strcmp(name, "--ops") == 0) {
                options.ops = strtoull(value, &end, 0);
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
                else if (strcmp(argv[i], "--inside") == 0)
                        options.first_seed = SCENE_INSIDE, options.last_seed = SCENE_INSIDE_LAST;
                else if (strcmp(argv[i], "--long") == 0)
                        options.is_long = true;
                else if (i + 1 < argc && parse_value(argv[i], argv[i + 1]))
                        i++;
                else
                        return usage();
        }
        if (getenv("VHDD_LONG") && !options.mutant && !options.all_mutants &&
                options.last_seed > options.first_seed && options.last_seed < SCENE_INSIDE)
                options.is_long = true;
        if (options.is_long) {
                options.states = MAX_OF(options.states, UINT64_C(5000000));
                options.budget = MAX_OF(options.budget, UINT64_C(2000));
                options.last_seed = SCENE_INSIDE - 1;
        }
        if (options.all_mutants)
                return hunt_all();
        return options.mutant ? hunt_one() : enumerate();
}
