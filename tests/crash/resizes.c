/* SPDX-License-Identifier: Apache-2.0 */
/* resizes - resizing images on a simulated disk; at each step what a power cut and what a process's
 * death would leave there is opened.
 *
 * Options and exit status: tests/crash/driver.h.
 *
 * Each state must open, for readers and writers, with the old size or the new one; read as before up
 * to the smaller of the two, and as zeros behind; be sound for `check --deep`; and resizing it once
 * more must end with the new size, nothing left beside the image, the same contents, also after
 * another cut. In some seeds a call to the disk fails. A root that grows may have a child that is
 * so large already, as one that is to be merged into it: that reads the same in each state.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/mutant.h"
#include "chain/chain.h"
#include "formats/intent.h"
#include "formats/vhd/check.h"
#include "formats/vhd/create.h"
#include "merge/resize.h"
#include "tests/crash/driver.h"
#include "tests/crash/schedule.h"
#include "tests/crash/simdisk.h"

#define ROOT        "/d/root.vhd"
#define LEAF        "/d/leaf.vhd"
#define ABOVE       "/d/above.vhd" /* the larger child */
#define BLOCK       1024u
#define MAX_SIZE    (700u * BLOCK)
#define MAX_MOMENTS 3000u
#define FULL_STATES 64u
#define SAMPLES     12u

enum kind { FIXED, DYNAMIC, CHILD, RAW };

struct scene {
        uint64_t seed;
        enum kind kind;
        bool slack, tapdisk, tight, empty, no_reserve, no_punch, has_fault;
        struct sim_fault fault;
        uint32_t old, new;
        uint8_t *content; /* of the disk, MAX_SIZE bytes */
};

struct run {
        struct scene scene;
        struct sim_fs *fs;
        struct sim_world **instants;
        uint32_t n_instants;
        bool watching;
        uint64_t n_opened;
        struct random random;
};

static struct driver_set seen_states, seen_here;

/* ---- what a seed stands for ---- */

static uint32_t some_size(struct random *random, uint32_t blocks_from, uint32_t blocks_to)
{
        uint32_t size = BLOCK * (uint32_t)random_between(random, blocks_from, blocks_to);

        return random_chance(random, 40) ? size + 512 * (uint32_t)random_below(random, 8) : size;
}

static void choose_sizes(struct scene *scene, struct random *random)
{
        if (scene->kind == FIXED || scene->kind == RAW) {
                scene->old = some_size(random, 1, 8);
                scene->new = random_chance(random, 50) ? some_size(random, 9, 20)
                                                       : some_size(random, 1, 20);
        } else {
                scene->old = some_size(random, 20, 250);
                scene->new = random_chance(random, 60) ? some_size(random, 251, 690)
                                                       : some_size(random, 20, 690);
        }
        if (random_chance(random, 10))
                scene->new = scene->old + 512;
}

static void choose_fault(struct scene *scene, struct random *random)
{
        static const enum sim_call calls[] = {SIM_WRITE, SIM_WRITE, SIM_WRITE, SIM_SYNC, SIM_OPEN,
                SIM_TRUNCATE, SIM_RESERVE, SIM_UNLINK, SIM_SYNC_DIRECTORY, SIM_READ};
        unsigned i = (unsigned)random_below(random, sizeof(calls) / sizeof(calls[0]));

        scene->has_fault = true;
        scene->fault = (struct sim_fault){
                .call = calls[i],
                .failure = SIM_FAIL,
                .error = random_chance(random, 50) ? ENOSPC : EIO,
                .at = (unsigned)random_below(random, calls[i] == SIM_WRITE ? 20 : 6),
        };
}

static void scene_init(struct scene *scene, uint64_t seed)
{
        struct random random = {random_mix(seed)};

        scene->seed = seed;
        scene->kind = (enum kind)random_below(&random, 14);
        scene->kind = scene->kind < 4        ? FIXED
                : (unsigned)scene->kind < 9  ? DYNAMIC
                : (unsigned)scene->kind < 13 ? CHILD
                                             : RAW;
        scene->slack = random_chance(&random, 30);
        scene->tapdisk = random_chance(&random, 20);
        scene->tight = random_chance(&random, 30);
        scene->empty = random_chance(&random, 15);
        scene->no_reserve = random_chance(&random, 20);
        scene->no_punch = random_chance(&random, 20);
        choose_sizes(scene, &random);
        scene->content = calloc(1, MAX_SIZE);
        assert(scene->content != NULL);
        if (random_chance(&random, 25))
                choose_fault(scene, &random);
}

/* ---- the images ---- */

static int put_zeros_or_data(const struct scene *scene, struct file *file, struct random *random)
{
        uint8_t junk[512];
        int r = 0;

        for (uint32_t at = 0; at < scene->old && r == 0; at += 512) {
                bool in_tail = at >= scene->new; /* what is cut off is empty */

                if (!in_tail && random_chance(random, 60))
                        memset(scene->content + at, 1 + (int)(at / 512 % 200), 512);
                r = file_write(file, scene->content + at, 512, at, 0);
        }
        /* A file of another writer may be longer than its disk, with anything there. */
        memset(junk, 0xdb, sizeof(junk));
        for (uint32_t i = 0; scene->slack && i < 5 && r == 0 && scene->kind == FIXED; i++)
                r = file_write(file, junk, 512, scene->old + i * 512, 0);
        return r;
}

static int make_fixed(
        struct scene *scene, struct sim_fs *fs, struct random *random, struct error *err)
{
        struct vhd_create_params params = {.type = VHD_TYPE_FIXED,
                .size = scene->old,
                .now = 1700000000,
                .unique_id = {2},
                .sparse = true};
        _cleanup_(file_closep) struct file *file = NULL;
        uint8_t footer[512];
        int r = file_open(&fs->fs, LEAF, FILE_WRITE | FILE_CREATE, &file, err);

        if (r == 0 && scene->kind == FIXED)
                r = vhd_create(file, &params, err);
        if (r == 0 && scene->kind == FIXED)
                r = file_read_exact(file, footer, 512, scene->old);
        if (r == 0)
                r = put_zeros_or_data(scene, file, random);
        if (r == 0 && scene->kind == FIXED)
                r = file_write(file, footer, 512, scene->old + (scene->slack ? 5 * 512 : 0), 0);
        return r;
}

static uint8_t data_of(uint32_t at)
{
        return (uint8_t)(1 + at / 512 * 7 % 250);
}

/* Blocks of the leaf from the first free byte on, so that a longer BAT meets them. */
static int put_blocks(
        struct scene *scene, struct file *file, const struct vhd_metadata *m, struct random *random)
{
        uint64_t at = m->metadata_end;
        uint8_t sector[512], zeros[512] = {0};
        int r = file_write(file, zeros, 512, m->tail_offset, 0);

        for (uint32_t b = 0; b < m->n_blocks && r == 0; b++) {
                bool tail = b * BLOCK >= scene->new, zero = tail || random_chance(random, 20);
                bool dirty = random_chance(random, 50);
                be32 entry;

                if (scene->empty || !random_chance(random, tail ? 5 : b < 6 ? 50 : 4))
                        continue;
                if (!scene->tight)
                        at = round_up_to(at + 512, 4096) - 512;
                for (uint32_t k = 0; k < BLOCK / 512 && r == 0; k++) {
                        uint32_t in_disk = b * BLOCK + k * 512;
                        bool inside = in_disk < scene->old;
                        bool empty = zero || (in_disk >= scene->new &&inside);

                        /* what lies behind the disk's end is anything */
                        memset(sector, empty ? 0 : data_of(in_disk), 512);
                        if (!inside)
                                memset(sector, dirty ? 0xdb : 0, 512);
                        if (inside)
                                memcpy(scene->content + in_disk, sector, 512);
                        r = file_write(file, sector, 512, at + 512 + k * 512, 0);
                }
                memset(sector, 0xff, 512);
                if (r == 0)
                        r = file_write(file, sector, 512, at, 0);
                entry = be32_make((uint32_t)(at / 512));
                if (r == 0)
                        r = file_write(file, &entry, 4, m->header.table_offset + b * 4, 0);
                at += 512 + BLOCK;
        }
        if (r == 0)
                r = file_write(file, &m->footer.raw, 512, MAX_OF(at, m->tail_offset), 0);
        return r;
}

/* A batmap behind the BAT, as tapdisk writes it; its promises are believed by nobody here. */
static int make_tapdisk(struct file *file, struct vhd_metadata *m, struct error *err)
{
        struct vhd_raw_footer footer = m->footer.raw;
        struct vhd_raw_batmap batmap = {0};
        uint64_t at = m->header.table_offset + round_up_to(m->header.max_table_entries * 4, 512);
        uint8_t ones[512];
        int r;

        memcpy(footer.creator_app, "tap", 4);
        footer.creator_version = be32_make(0x00010003);
        footer.checksum = be32_make(vhd_footer_checksum(&footer));
        memcpy(batmap.cookie, VHD_BATMAP_COOKIE, 8);
        batmap.map_offset = be64_make(at + 512);
        batmap.map_sectors = be32_make(1);
        batmap.version = be32_make(0x00010002);
        memset(ones, 0x11, sizeof(ones));
        r = file_write(file, &footer, 512, 0, 0);
        if (r == 0)
                r = file_write(file, &batmap, 512, at, 0);
        if (r == 0)
                r = file_write(file, ones, 512, at + 512, 0);
        if (r == 0)
                r = file_write(file, &footer, 512, MAX_OF(m->tail_offset, at + 1024), 0);
        return r < 0 ? r : vhd_metadata_read(file, 0, m, err);
}

static int make_sparse(
        struct scene *scene, struct sim_fs *fs, struct random *random, struct error *err)
{
        struct vhd_create_params params = {
                .type = scene->kind == CHILD ? VHD_TYPE_DIFFERENCING : VHD_TYPE_DYNAMIC,
                .size = scene->old,
                .block_size = BLOCK,
                .now = 1700000000,
                .unique_id = {2},
                .parent_id = {1},
                .parent_name = "root.vhd",
                .parent_relative = "./root.vhd",
                .parent_absolute = "/d/root.vhd",
        };
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_metadata m;
        int r = file_open(&fs->fs, LEAF, FILE_WRITE | FILE_CREATE, &file, err);

        if (r == 0)
                r = vhd_create(file, &params, err);
        if (r == 0)
                r = vhd_metadata_read(file, 0, &m, err);
        if (r == 0 && scene->tapdisk && scene->kind == DYNAMIC)
                r = make_tapdisk(file, &m, err);
        return r < 0 ? r : put_blocks(scene, file, &m, random);
}

static int make_root(struct scene *scene, struct sim_fs *fs, struct error *err)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC,
                .size = MAX_OF(scene->old, scene->new),
                .block_size = BLOCK,
                .now = 1700000000,
                .unique_id = {1},
        };
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(&fs->fs, ROOT, FILE_WRITE | FILE_CREATE, &file, err);

        return r < 0 ? r : vhd_create(file, &params, err);
}

static bool has_above(const struct scene *scene)
{
        return scene->new > scene->old && (scene->kind == FIXED || scene->kind == DYNAMIC);
}

static int make_above(struct scene *scene, struct sim_fs *fs, struct error *err)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DIFFERENCING,
                .size = scene->new,
                .block_size = BLOCK,
                .now = 1700000000,
                .unique_id = {3},
                .parent_id = {2},
                .parent_name = "leaf.vhd",
                .parent_relative = "./leaf.vhd",
                .parent_absolute = LEAF,
        };
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(&fs->fs, ABOVE, FILE_WRITE | FILE_CREATE, &file, err);

        return r < 0 ? r : vhd_create(file, &params, err);
}

static struct sim_world *make_world(struct scene *scene, struct error *err)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        struct random random = {random_mix(scene->seed + 1)};
        int r = scene->kind == CHILD ? make_root(scene, fs, err) : 0;

        if (r == 0)
                r = scene->kind == FIXED || scene->kind == RAW
                        ? make_fixed(scene, fs, &random, err)
                        : make_sparse(scene, fs, &random, err);
        if (r == 0 && has_above(scene))
                r = make_above(scene, fs, err);
        sim_world_settle(fs->world);
        return r < 0 ? NULL : sim_world_clone(fs->world);
}

/* ---- a run ---- */

static void prepare_fs(const struct run *run, struct sim_fs *fs)
{
        fs->fs.single_threaded = true;
        fs->no_reserve = run->scene.no_reserve;
        fs->no_punch = run->scene.no_punch;
}

static int do_resize(const struct run *run, struct sim_fs *fs, struct error *err)
{
        struct chain_options chain_options = {
                .fs = &fs->fs, .format = run->scene.kind == RAW ? "raw" : NULL};
        struct resize_params params = {.size = run->scene.new, .shrink = true, .force = true};
        struct resize_report report = {0};
        int r = resize(LEAF, &chain_options, &params, &report, err);

        if (run->watching) {
                driver_result->counters[0] += report.n_moved;
                driver_result->counters[1] += report.size_after < report.size_before;
        }
        return r;
}

static void on_change(struct sim_fs *fs, enum sim_call call)
{
        struct run *run = fs->opaque;

        (void)call;
        if (run->watching && run->n_instants < MAX_MOMENTS)
                run->instants[run->n_instants++] = sim_fs_snapshot(fs);
}

/* ---- judging ---- */

static bool check_chain(struct run *run, struct chain *chain, uint64_t want, const char *what)
{
        const struct scene *scene = &run->scene;
        uint64_t size = chain_size(chain), kept = MIN_OF(scene->old, scene->new);
        static uint8_t bytes[MAX_SIZE + 4096];
        int r;

        if (want ? size != want : size != scene->old && size != scene->new) {
                driver_violation("%s: the disk has %" PRIu64 " bytes (%u to become %u)", what, size,
                        scene->old, scene->new);
                return false;
        }
        r = chain_read(chain, bytes, size, 0, 0);
        if (r < 0) {
                driver_violation("%s: it cannot be read: %s", what, strerror(-r));
                return false;
        }
        if (memcmp(bytes, scene->content, MIN_OF(size, kept)) == 0 &&
                (size <= kept || bytes_are_zero(bytes + kept, size - kept)))
                return true;
        for (uint64_t i = 0; i < size; i++)
                if (bytes[i] != (i < kept ? scene->content[i] : 0)) {
                        driver_violation("%s: byte %" PRIu64 " of %" PRIu64
                                         " (%u to become %u) is %#x",
                                what, i, size, scene->old, scene->new, bytes[i]);
                        return false;
                }
        return true;
}

static bool open_and_check(struct run *run, const struct sim_world *world, bool writable,
        uint64_t want, const char *what, bool *ret_read_only)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        struct chain_options chain_options = {.fs = &fs->fs,
                .writable = writable,
                .format = run->scene.kind == RAW ? "raw" : NULL};
        struct chain *chain = NULL;
        struct error err = ERROR_INIT;

        prepare_fs(run, fs);
        run->n_opened++;
        if (chain_open(LEAF, &chain_options, &chain, &err) < 0) {
                driver_violation("%s: it does not open%s: %s", what, writable ? " for writing" : "",
                        err.message);
                return false;
        }
        if (writable && !chain_is_writable(chain)) {
                if (ret_read_only)
                        *ret_read_only = true;
                else
                        driver_violation("%s: it opens read-only", what);
        }
        check_chain(run, chain, want, what);
        if (writable)
                chain_close(chain, &err);
        else
                chain_abandon(chain);
        return !driver_result->violated;
}

/* Through it nobody sees whether what it stands on has grown yet. */
static bool check_above(struct run *run, const struct sim_world *world, const char *what)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        struct chain_options chain_options = {.fs = &fs->fs};
        struct chain *chain = NULL;
        struct error err = ERROR_INIT;
        char of_child[128];

        if (!has_above(&run->scene))
                return true;
        prepare_fs(run, fs);
        run->n_opened++;
        snprintf(of_child, sizeof(of_child), "%s, the child", what);
        if (chain_open(ABOVE, &chain_options, &chain, &err) < 0) {
                driver_violation("%s: it does not open: %s", of_child, err.message);
                return false;
        }
        check_chain(run, chain, run->scene.new, of_child);
        chain_abandon(chain);
        return !driver_result->violated;
}

static void note_finding(void *opaque, const struct vhd_finding *finding)
{
        char *sentence = opaque;

        if (finding->severity != VHD_INFO && !strstr(finding->id, "redo") &&
                !strstr(finding->id, "intent"))
                snprintf(sentence, 512, "%s: %.400s", finding->id, finding->sentence);
}

static bool check_file(struct run *run, const struct sim_world *world, const char *what)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_check_result checked;
        struct error err = ERROR_INIT;
        char found[512] = "";

        if (run->scene.kind == RAW)
                return true;
        if (file_open(&fs->fs, LEAF, FILE_READ, &file, &err) < 0 ||
                vhd_check(file, 0, note_finding, found, &checked, &err) < 0)
                driver_violation("%s: it cannot be checked: %s", what, err.message);
        else if (found[0])
                driver_violation("%s: %s", what, found);
        return !driver_result->violated;
}

static void judge_world(
        struct run *run, const struct sim_world *world, bool may_be_poisoned, const char *what)
{
        _cleanup_(sim_world_freep) struct sim_world *done = NULL, *cut = NULL;
        _cleanup_(sim_fs_freep) struct sim_fs *fs = NULL;
        uint64_t content = sim_world_hash(world);
        struct error err = ERROR_INIT;
        bool read_only = false;

        if (!driver_set_add(&seen_here, content))
                return;
        driver_result->states += driver_set_add(&seen_states, content);
        if (!check_above(run, world, what) || !open_and_check(run, world, false, 0, what, NULL) ||
                !open_and_check(run, world, true, 0, what, may_be_poisoned ? &read_only : NULL) ||
                read_only)
                return;
        fs = sim_fs_new(sim_world_clone(world));
        prepare_fs(run, fs);
        if (do_resize(run, fs, &err) < 0) {
                driver_violation("%s: it cannot be resized once more: %s", what, err.message);
                return;
        }
        done = sim_fs_snapshot(fs);
        cut = sim_world_cut(done, false);
        if (sim_world_n_regions(done) != 0 || sim_world_has(done, LEAF INTENT_ENDING))
                driver_violation("%s: resized once more it leaves something", what);
        if (open_and_check(run, done, false, run->scene.new, "resized once more", NULL) &&
                open_and_check(
                        run, cut, false, run->scene.new, "resized once more, and a cut", NULL))
                (void)(check_above(run, cut, "resized once more, and a cut") &&
                        check_file(run, done, "resized once more"));
}

static void judge_instant(struct run *run, uint32_t index)
{
        const struct sim_world *world = run->instants[index];
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
        uint64_t n_states = sim_cut_n_states(cut);
        bool all = n_states <= FULL_STATES;
        uint64_t n = all ? n_states : SAMPLES;
        char what[64];

        snprintf(what, sizeof(what), "instant %u, the process's death", index);
        /* E5: a sync that failed, or a write of a round that did, may have poisoned it. */
        judge_world(run, world, run->fs->fault_hit, what);
        snprintf(what, sizeof(what), "instant %u, a power cut", index);
        for (uint64_t i = 0; i < n && !driver_result->violated; i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        all ? sim_cut_state(cut, i) : sim_cut_sample(cut, &run->random);

                judge_world(run, state, false, what);
        }
}

static void judge_all(struct run *run)
{
        uint32_t n = run->n_instants;
        uint32_t first = (uint32_t)random_below(&run->random, n + 1);

        for (uint32_t i = 0;
                i < n && !driver_result->violated && run->n_opened < 4 * driver_options.budget; i++)
                judge_instant(run, (first + i * 7919) % n);
        driver_result->instants += n;
}

static void work(struct run *run, struct sim_world *world)
{
        struct error err = ERROR_INIT;
        int r;

        run->fs = sim_fs_new(world);
        run->fs->opaque = run;
        run->fs->on_change = on_change;
        run->fs->trace = driver_options.trace ? stderr : NULL;
        prepare_fs(run, run->fs);
        if (run->scene.has_fault)
                sim_fs_arm(run->fs, &run->scene.fault);
        run->watching = driver_mutants_on = true;
        r = do_resize(run, run->fs, &err);
        run->instants[run->n_instants++] = sim_fs_snapshot(run->fs);
        run->watching = driver_mutants_on = false;
        if (driver_options.trace)
                fprintf(stderr, "kind %u, %u to %u: %d %s\n", run->scene.kind, run->scene.old,
                        run->scene.new, r, r < 0 ? err.message : "");
        if (r < 0 && !run->fs->fault_hit)
                driver_violation("resizing fails: %s", err.message);
        if (!driver_result->violated)
                judge_all(run);
}

static void run_seed(uint64_t seed)
{
        struct run *run = calloc(1, sizeof(*run));
        struct error err = ERROR_INIT;
        struct sim_world *world;

        assert(run != NULL);
        run->instants = calloc(MAX_MOMENTS + 1, sizeof(struct sim_world *));
        assert(run->instants != NULL);
        run->random.state = random_mix(seed + 99);
        scene_init(&run->scene, seed);
        world = make_world(&run->scene, &err);
        if (world)
                work(run, world);
        else
                driver_violation("the images cannot be made: %s", err.message);
        for (uint32_t i = 0; i < run->n_instants; i++)
                sim_world_free(run->instants[i]);
        sim_fs_free(run->fs);
        free(run->instants);
        free(run->scene.content);
        free(run);
        driver_set_done(&seen_here);
}

#define MUTANT_ENTRY(name, what) {name, what},
static const struct driver_mutant mutants[] = {MUTANT_LIST_RESIZE(MUTANT_ENTRY)};

int main(int argc, char **argv)
{
        static const struct driver driver = {
                .name = "resizes",
                .run_seed = run_seed,
                .counters = {"blocks moved", "shrinks"},
                .mutants = mutants,
                .n_mutants = sizeof(mutants) / sizeof(mutants[0]),
        };

        return driver_main(argc, argv, &driver);
}
