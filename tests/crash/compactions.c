/* SPDX-License-Identifier: Apache-2.0 */
/* compactions - compaction on a simulated disk, alone and beside requests of two other threads; at each step
 * what a power cut and what a process's death would leave there is opened.
 *
 * Options and exit status: tests/crash/driver.h.
 *
 * Each state must read as the model of tests/crash/model.h allows (where nobody else writes: as ever),
 * for readers and writers; be sound for `check --deep`; and compacting it once more must end in an
 * image that reads the same, also after another cut, and in which a third run finds nothing to do.
 * In some seeds a call to the disk fails once, a sync among them (E5); in some the disk is nearly full.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "chain/chain.h"
#include "formats/vhd/check.h"
#include "formats/vhd/create.h"
#include "merge/compact.h"
#include "tests/crash/driver.h"
#include "tests/crash/guest.h"
#include "tests/crash/instants.h"
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
#define N_WRITERS   2u

/* ---- what a seed stands for ---- */

struct scene {
        uint64_t seed;
        bool has_parent, tight, junk, live, no_punch, split_writes, has_fault, small_redo;
        struct sim_fault fault;
        uint32_t room; /* so many bytes are free on the disk; 0: any number */
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
        else if (random_chance(&random, 15))
                scene->room = (uint32_t)random_between(&random, 1, 6) * 4096;
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

struct run {
        struct scene scene;
        struct sim_fs *fs;
        struct chain *chain;
        struct instants instants;
        uint64_t parent_hash, n_opened;
        struct random random;
};

static void *job_thread(void *argument)
{
        struct run *run = argument;
        struct compact *compact = NULL;
        struct compact_report report;
        struct error err = ERROR_INIT;
        int r = compact_new(run->chain, 2 * run->scene.block_size, &compact, &err);

        while (r >= 0) {
                r = compact_step(compact, &err);
                if (driver_options.trace)
                        fprintf(stderr, "  [%u] step: %d %s\n", schedule_self(), r,
                                r < 0 ? err.message : "");
                instants_take(&run->instants);
                if (r <= 0)
                        break;
        }
        if (r < 0 && !instants_may_fail(&run->instants))
                driver_violation("compacting fails: %s", err.message);
        if (compact) {
                compact_report_get(compact, &report);
                driver_result->counters[0] += report.n_released;
                driver_result->counters[1] += report.n_moved;
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
        struct guest guests[N_WRITERS];
        unsigned n = run->scene.live ? N_WRITERS : 0;
        pthread_t job;
        struct error err = ERROR_INIT;
        uint64_t answered;
        int r = open_chain(run->fs, true, &run->chain, &err);

        if (r < 0) {
                if (!run->fs->fault_hit)
                        driver_violation("it does not open: %s", err.message);
                return;
        }
        schedule_set_policy(run->scene.policy, run->scene.seed, 600);
        if (pthread_create(&job, NULL, job_thread, run) != 0)
                abort();
        for (unsigned i = 0; i < n; i++) {
                guests[i] = (struct guest){.chain = run->chain,
                        .model = &run->scene.model,
                        .instants = &run->instants,
                        .thread = i};
                if (pthread_create(&guests[i].id, NULL, guest_main, &guests[i]) != 0)
                        abort();
        }
        pthread_join(job, NULL);
        for (unsigned i = 0; i < n; i++)
                pthread_join(guests[i].id, NULL);
        schedule_set_policy(SCHEDULE_STAY, run->scene.seed, 0);
        answered = run->scene.model.now.answered;
        r = chain_close(TAKE_PTR(run->chain), &err);
        if (r == 0)
                run->scene.model.now.covered |= answered;
        else if (!instants_may_fail(&run->instants))
                driver_violation("it does not close: %s", err.message);
        instants_take(&run->instants);
}

/* ---- judging ---- */

static struct driver_set seen_states; /* of all seeds */
static struct driver_set seen_here;   /* of this one, with what was required of them */

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
                driver_violation("%s: a reader: %s", what, err.message);
        return r == 0;
}

static bool same_values(
        struct run *run, const uint8_t want[], const uint8_t got[], const char *what)
{
        char a[32], b[32];

        for (uint32_t c = 0; c < run->scene.model.n_cells; c++)
                if (want[c] != got[c]) {
                        driver_violation("cell %u reads as %s, and %s as %s", c,
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
                driver_violation("%s: the parent was changed", what);
        if (file_open(&fs->fs, LEAF, FILE_READ, &file, &err) < 0 ||
                vhd_check(file, run->scene.junk ? 0 : VHD_CHECK_DEEP, note_finding, found, &checked,
                        &err) < 0)
                driver_violation("%s: it cannot be checked: %s", what, err.message);
        else if (found[0])
                driver_violation("%s: %s", what, found);
        return !driver_result->violated;
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
                driver_violation("%s: a writer: %s", what,
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
                driver_violation(
                        "%s: compacting once more: %s %s", what, strerror(-r), err.message);
        if (again && r == 0 &&
                (report.n_released || report.n_moved || report.file_size_after != report.file_size))
                driver_violation("%s: a third run frees %" PRIu64 ", moves %" PRIu64
                                 ", size %" PRIu64 " to %" PRIu64,
                        what, report.n_released, report.n_moved, report.file_size,
                        report.file_size_after);
        if (chain_close(chain, &err) < 0)
                driver_violation("%s: closing: %s", what, err.message);
        return !driver_result->violated;
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

        if (!driver_set_add(&seen_here, key))
                return;
        driver_result->states += driver_set_add(&seen_states, content);
        if ((!instant->poisoned && !check_world(run, world, what)) ||
                !read_world(run, world, what, values))
                return;
        for (uint32_t c = 0; c < run->scene.model.n_cells; c++)
                if (!model_allows(
                            &run->scene.model, c, values[c], instant->moment.begun, required)) {
                        driver_violation("%s: cell %u reads as %s", what, c,
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
                driver_violation("%s: a clean close leaves a redo file", what);
        complete(run, fs, values, what, true);
}

static void judge_instant(struct run *run, uint32_t index)
{
        const struct instant *instant = &run->instants.all[index];
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
        for (uint64_t i = 0; i < n && !driver_result->violated; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world =
                        all ? sim_cut_state(cut, i) : sim_cut_sample(cut, &run->random);

                judge_world(run, world, instant, true, instant->moment.covered, what);
        }
}

static void judge_all(struct run *run)
{
        uint32_t n = run->instants.n;
        uint32_t *order = malloc((n + 1) * sizeof(uint32_t));

        for (uint32_t i = 0; i < n; i++)
                order[i] = i;
        for (uint32_t i = n; i > 1; i--) {
                uint32_t k = (uint32_t)random_below(&run->random, i), last = order[i - 1];

                order[i - 1] = order[k];
                order[k] = last;
        }
        for (uint32_t i = 0;
                i < n && !driver_result->violated && run->n_opened < 2 * driver_options.budget; i++)
                judge_instant(run, order[i]);
        free(order);
        driver_result->instants += n;
}

/* What the images take now, and a little. */
static uint64_t space_for(const struct scene *scene, struct sim_fs *fs)
{
        static const char *const paths[] = {ROOT, LEAF};
        uint64_t sum = scene->room;

        for (unsigned i = scene->has_parent ? 0 : 1; i < 2 && scene->room; i++) {
                struct file *file = NULL;
                struct file_stat st;

                if (file_open(&fs->fs, paths[i], FILE_READ, &file, NULL) < 0 ||
                        file_stat_get(file, &st) < 0)
                        abort();
                sum += st.allocated;
                file_close(file);
        }
        return sum;
}

/* The step is one of those that come after the crash. */
static bool is_of_replay(void)
{
        return driver_options.mutant && strcmp(driver_options.mutant, "move-voids-nothing") == 0;
}

static void run_seed(uint64_t seed)
{
        struct run *run = calloc(1, sizeof(*run));
        struct error err = ERROR_INIT;
        struct sim_world *world;

        assert(run != NULL);
        run->random.state = random_mix(seed + 99);
        scene_init(&run->scene, seed);
        schedule_begin();
        schedule_set_policy(SCHEDULE_STAY, seed, 0);
        world = make_world(&run->scene, &err);
        if (!world) {
                driver_violation("the images cannot be made: %s", err.message);
        } else {
                run->parent_hash = sim_world_file_hash(world, ROOT);
                run->fs = sim_fs_new(world);
                run->fs->space = space_for(&run->scene, run->fs);
                run->fs->split_writes = run->scene.split_writes;
                run->fs->no_punch = run->scene.no_punch;
                run->fs->region_limit = run->scene.small_redo ? 4096 + 40 * 32 : 0;
                run->fs->random.state = seed;
                run->fs->trace = driver_options.trace ? stderr : NULL;
                if (run->scene.has_fault)
                        sim_fs_arm(run->fs, &run->scene.fault);
                driver_mutants_on = true;
                instants_watch(&run->instants, run->fs, &run->scene.model, MAX_MOMENTS);
                live(run);
                instants_rest(&run->instants);
                driver_mutants_on = is_of_replay();
                if (!driver_result->violated)
                        judge_all(run);
                driver_mutants_on = false;
        }
        schedule_end();
        instants_clear(&run->instants);
        sim_fs_free(run->fs);
        free(run);
        driver_set_done(&seen_here);
}

#define MUTANT_ENTRY(name, what) {name, what},
static const struct driver_mutant mutants[] = {MUTANT_LIST_COMPACT(MUTANT_ENTRY)};

int main(int argc, char **argv)
{
        static const struct driver driver = {
                .name = "compactions",
                .run_seed = run_seed,
                .counters = {"blocks released", "moved"},
                .mutants = mutants,
                .n_mutants = sizeof(mutants) / sizeof(mutants[0]),
        };

        return driver_main(argc, argv, &driver);
}
