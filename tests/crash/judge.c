/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/crash/judge.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "chain/chain.h"
#include "formats/vhd/check.h"
#include "formats/vhd/raw.h"

#define DEEP_SAMPLES 3u /* crashes inside a recovery that are looked at, for each change it makes */

__attribute__((format(printf, 2, 3))) static int wrong(char sentence[512], const char *format, ...)
{
        va_list list;

        va_start(list, format);
        vsnprintf(sentence, 512, format, list);
        va_end(list);
        return -1;
}

void judge_init(struct judge *judge, const struct scene *scene, const struct sim_world *start)
{
        memset(judge, 0, sizeof(*judge));
        judge->scene = scene;
        judge->random.state = random_mix(scene->seed + 77);
        for (uint32_t i = 0; i < scene->n_layers; i++)
                judge->parents[i] = sim_world_file_hash(start, scene->paths[i]);
}

static int open_chain(struct judge *judge, struct sim_fs *fs, bool writable, struct chain **ret,
        struct error *err)
{
        struct chain_options options = {.fs = &fs->fs, .writable = writable};

        judge->n_opened++;
        fs->fs.single_threaded = true;
        if (judge->scene->leaf_type == LEAF_RAW)
                options.format = "raw";
        return chain_open(scene_leaf_path(judge->scene), &options, ret, err);
}

static int read_cells(
        struct judge *judge, struct chain *chain, uint8_t values[], char sentence[512])
{
        const struct model *model = &judge->scene->model;
        static uint8_t bytes[MODEL_MAX_CELLS * MODEL_CELL];
        int r = chain_read(chain, bytes, judge->scene->size, 0, 0);

        if (chain_size(chain) != judge->scene->size)
                return wrong(sentence, "the disk has %llu bytes and should have %u",
                        (unsigned long long)chain_size(chain), judge->scene->size);
        if (r < 0)
                return wrong(sentence, "it cannot be read: %s", strerror(-r));
        for (uint32_t c = 0; c < model->n_cells; c++)
                values[c] = model_value(model, c, bytes + c * MODEL_CELL);
        return 0;
}

int judge_read(
        struct judge *judge, const struct sim_world *world, uint8_t values[], char sentence[512])
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        uint64_t before = sim_world_hash(world);
        _cleanup_(sim_world_freep) struct sim_world *after = NULL;
        struct error err = ERROR_INIT;
        struct chain *chain = NULL;

        if (open_chain(judge, fs, false, &chain, &err) < 0)
                return wrong(sentence, "it does not open for reading: %s", err.message);
        if (read_cells(judge, chain, values, sentence) < 0) {
                chain_abandon(chain);
                return -1;
        }
        if (chain_close(chain, &err) < 0)
                return wrong(sentence, "it does not close after reading: %s", err.message);
        after = sim_fs_snapshot(fs);
        if (sim_world_hash(after) != before)
                return wrong(sentence, "a reader changed it");
        return 0;
}

/* ---- the bytes of the leaf ---- */

static bool footer_is_valid(const uint8_t *sector)
{
        struct vhd_raw_footer footer;
        uint32_t sum = 0;

        memcpy(&footer, sector, sizeof(footer));
        for (uint32_t i = 0; i < VHD_FOOTER_SIZE; i++)
                if (i < 64 || i > 67)
                        sum += sector[i];
        return memcmp(footer.cookie, VHD_COOKIE, 8) == 0 && be32_get(footer.checksum) == ~sum;
}

static int compare_u64(const void *a, const void *b)
{
        const uint64_t *x = a, *y = b;

        return *x < *y ? -1 : *x > *y;
}

/* The BAT names whole blocks between the metadata and the end footer that share no byte. */
static int check_bat(const uint8_t *bytes, uint64_t size, char sentence[512])
{
        struct vhd_raw_header header;
        uint64_t places[256], table, end, n_places = 0;
        uint32_t n, block, bitmap;

        memcpy(&header, bytes + 512, sizeof(header));
        table = be64_get(header.table_offset);
        n = be32_get(header.max_table_entries);
        block = be32_get(header.block_size);
        bitmap = (uint32_t)round_up_to(div_round_up(block / 512, 8), 512);
        end = table + round_up_to(4 * (uint64_t)n, 512);
        if (n > 256 || end > size)
                return wrong(sentence, "the header is damaged");
        for (uint32_t i = 0; i < n; i++) {
                be32 entry;
                uint64_t place;

                memcpy(&entry, bytes + table + 4 * (uint64_t)i, sizeof(entry));
                if (be32_get(entry) == VHD_BAT_UNUSED)
                        continue;
                place = (uint64_t)be32_get(entry) * 512;
                if (place < end)
                        return wrong(sentence, "block %u lies in the metadata", i);
                if (place + bitmap + block > size - VHD_FOOTER_SIZE)
                        return wrong(sentence, "block %u at %llu lies past the end footer at %llu",
                                i, (unsigned long long)place,
                                (unsigned long long)(size - VHD_FOOTER_SIZE));
                if ((place + bitmap) % 4096 != 0)
                        return wrong(sentence, "the data of block %u is not on 4 KiB", i);
                places[n_places++] = place;
        }
        qsort(places, n_places, sizeof(places[0]), compare_u64);
        for (uint64_t i = 1; i < n_places; i++)
                if (places[i] < places[i - 1] + bitmap + block)
                        return wrong(sentence, "two blocks share bytes at %llu",
                                (unsigned long long)places[i]);
        return 0;
}

/* At every instant a footer ends the file (E6), and what the metadata says holds together. */
static int check_leaf(struct judge *judge, const struct sim_world *world, char sentence[512])
{
        const char *path = scene_leaf_path(judge->scene);
        uint64_t size = sim_world_size(world, path);
        _cleanup_free_ uint8_t *bytes = NULL;

        if (judge->scene->leaf_type == LEAF_RAW)
                return 0;
        if (size < 512 || size % 512 != 0 || size > 16 * MIB)
                return wrong(sentence, "the leaf has %llu bytes", (unsigned long long)size);
        bytes = malloc(size);
        sim_world_read(world, path, bytes, size, 0);
        if (!footer_is_valid(bytes + size - 512))
                return wrong(sentence, "the leaf does not end in a footer");
        if (judge->scene->leaf_type == LEAF_FIXED)
                return 0;
        if (memcmp(bytes, bytes + size - 512, 512) != 0)
                return wrong(sentence, "the leaf's two footers differ");
        return check_bat(bytes, size, sentence);
}

static void note_finding(void *opaque, const struct vhd_finding *finding)
{
        char *sentence = opaque;

        if (finding->severity != VHD_INFO && !strstr(finding->id, "redo"))
                wrong(sentence, "check: %s: %.400s", vhd_severity_to_string(finding->severity),
                        finding->sentence);
}

/* What `vhdctl check --deep` says: nothing worse than that there is a redo file. @poisoned: nor that
 * a sync failed. */
static int check_as_a_user(
        struct judge *judge, const struct sim_world *world, bool poisoned, char sentence[512])
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_check_result result;
        struct error err = ERROR_INIT;
        char found[512] = "";
        int r;

        if (judge->scene->leaf_type == LEAF_RAW)
                return 0;
        r = file_open(&fs->fs, scene_leaf_path(judge->scene), FILE_READ, &file, &err);
        if (r == 0)
                r = vhd_check(file, VHD_CHECK_DEEP, note_finding, found, &result, &err);
        if (r < 0)
                return wrong(sentence, "it cannot be checked: %s", err.message);
        if (found[0] && !poisoned)
                return wrong(sentence, "%.500s", found);
        return 0;
}

static int check_files(struct judge *judge, const struct sim_world *world, char sentence[512])
{
        for (uint32_t i = 0; i + 1 < judge->scene->n_layers; i++)
                if (sim_world_file_hash(world, judge->scene->paths[i]) != judge->parents[i])
                        return wrong(sentence, "parent %u was changed", i);
        return check_leaf(judge, world, sentence);
}

/* ---- recovery ---- */

struct watch {
        struct judge *judge;
        struct sim_world *worlds[64];
        unsigned n;
};

/* A recovery makes few changes; of one that makes many the first ones are looked at. */
static void watch_change(struct sim_fs *fs, enum sim_call call)
{
        struct watch *watch = fs->opaque;

        if (watch->n < 64)
                watch->worlds[watch->n++] = sim_fs_snapshot(fs);
}

static void watch_done(struct watch *watch)
{
        for (unsigned i = 0; i < watch->n; i++)
                sim_world_free(watch->worlds[i]);
}

static int same_values(struct judge *judge, const uint8_t want[], const uint8_t got[],
        const char *what, char sentence[512])
{
        char a[32], b[32];

        for (uint32_t c = 0; c < judge->scene->model.n_cells; c++)
                if (want[c] != got[c])
                        return wrong(sentence, "cell %u reads as %s and %s as %s", c,
                                model_value_name(want[c], a), what, model_value_name(got[c], b));
        return 0;
}

/* A cut inside the recovery: what was covered before it, and nothing that was never written. */
static int judge_inner_cut(struct judge *judge, const struct sim_world *world, char sentence[512])
{
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
        _cleanup_(sim_world_freep) struct sim_world *state = sim_cut_sample(cut, &judge->random);
        uint8_t got[MODEL_MAX_CELLS];
        int64_t cell;
        char text[32];

        if (judge_read(judge, state, got, sentence) < 0)
                return -1;
        cell = judge_values(judge->scene, got, judge->begun, judge->covered);
        if (cell >= 0)
                return wrong(sentence, "after a cut in its recovery cell %lld reads as %s",
                        (long long)cell, model_value_name(got[cell], text));
        return 0;
}

/* Every death inside the recovery leaves what the recovery was to keep (@values): nobody has written
 * anything. */
static int judge_inside(
        struct judge *judge, struct watch *watch, const uint8_t values[], char sentence[512])
{
        uint8_t got[MODEL_MAX_CELLS];

        for (unsigned i = 0; i < watch->n; i++) {
                if (judge_read(judge, watch->worlds[i], got, sentence) < 0 ||
                        same_values(judge, values, got, "after a death in its recovery", sentence) <
                                0 ||
                        judge_inner_cut(judge, watch->worlds[i], sentence) < 0)
                        return -1;
        }
        return 0;
}

/* Flushed by the opener: durable, whatever was before. */
static int judge_flushed(struct judge *judge, const struct sim_world *world, const uint8_t values[],
        char sentence[512])
{
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
        uint8_t got[MODEL_MAX_CELLS];
        uint64_t n = MIN_OF(sim_cut_n_states(cut), (uint64_t)DEEP_SAMPLES);

        for (uint64_t i = 0; i < n; i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        i == 0 ? sim_world_cut(world, false) : sim_cut_sample(cut, &judge->random);

                if (judge_read(judge, state, got, sentence) < 0 ||
                        same_values(judge, values, got, "after its flush and a cut", sentence) < 0)
                        return -1;
        }
        return 0;
}

/* The first thing that the opener does is to write two cells again, as they are, with FUA: a cut
 * right after must leave these, whatever looked durable and was not. */
static int judge_fua(struct judge *judge, struct sim_fs *fs, struct chain *chain,
        const uint8_t values[], char sentence[512])
{
        const struct model *model = &judge->scene->model;
        uint32_t cell = (uint32_t)random_below(&judge->random, model->n_cells / 2) * 2;
        _cleanup_(sim_world_freep) struct sim_world *world = NULL;
        _cleanup_(sim_cut_freep) struct sim_cut *cut = NULL;
        uint8_t bytes[2 * MODEL_CELL], got[MODEL_MAX_CELLS];
        char a[32], b[32];
        int r;

        model_fill(model, cell, values[cell], bytes);
        model_fill(model, cell + 1, values[cell + 1], bytes + MODEL_CELL);
        r = chain_write(chain, bytes, sizeof(bytes), cell * MODEL_CELL, CHAIN_FUA);
        if (r < 0)
                return wrong(sentence, "it takes no FUA write: %s", strerror(-r));
        world = sim_fs_snapshot(fs);
        cut = sim_cut_new(world);
        for (unsigned i = 0; i < DEEP_SAMPLES; i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        i == 0 ? sim_world_cut(world, false) : sim_cut_sample(cut, &judge->random);

                if (judge_read(judge, state, got, sentence) < 0)
                        return -1;
                for (uint32_t c = cell; c < cell + 2; c++)
                        if (got[c] != values[c])
                                return wrong(sentence,
                                        "cell %u is written as %s with FUA, and after a cut it is "
                                        "%s",
                                        c, model_value_name(values[c], a),
                                        model_value_name(got[c], b));
        }
        return 0;
}

static int recover(struct judge *judge, struct sim_fs *fs, const uint8_t values[], bool must_write,
        struct outcome *ret)
{
        _cleanup_(chain_abandonp) struct chain *chain = NULL;
        _cleanup_(sim_world_freep) struct sim_world *flushed = NULL;
        uint8_t got[MODEL_MAX_CELLS];
        struct error err = ERROR_INIT;
        int r = open_chain(judge, fs, true, &chain, &err);

        if (r < 0 && must_write)
                return wrong(ret->sentence, "it does not open for writing: %s", err.message);
        if (r < 0)
                return 0;
        ret->writable = chain_is_writable(chain);
        if (must_write && !ret->writable)
                return wrong(ret->sentence, "it opens read-only: %s",
                        chain_layer(chain, judge->scene->n_layers - 1)->warning);
        if (read_cells(judge, chain, got, ret->sentence) < 0 ||
                same_values(judge, values, got, "for a writer", ret->sentence) < 0)
                return -1;
        if (!ret->writable)
                return 0;
        if (random_chance(&judge->random, 30) &&
                judge_fua(judge, fs, chain, values, ret->sentence) < 0)
                return -1;
        r = chain_flush(chain);
        if (r < 0)
                return wrong(ret->sentence, "it cannot be flushed: %s", strerror(-r));
        flushed = sim_fs_snapshot(fs);
        if (judge_flushed(judge, flushed, values, ret->sentence) < 0)
                return -1;
        if (chain_close(TAKE_PTR(chain), &err) < 0)
                return wrong(ret->sentence, "it does not close: %s", err.message);
        return 0;
}

int judge_world(struct judge *judge, const struct sim_world *world, bool after_cut, bool poisoned,
        bool deep, struct outcome *ret)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(world));
        _cleanup_(sim_world_freep) struct sim_world *closed = NULL;
        struct watch watch _cleanup_(watch_done) = {.judge = judge};
        uint8_t got[MODEL_MAX_CELLS];

        memset(ret, 0, sizeof(*ret));
        if (check_files(judge, world, ret->sentence) < 0 ||
                check_as_a_user(judge, world, poisoned, ret->sentence) < 0 ||
                judge_read(judge, world, ret->values, ret->sentence) < 0)
                return -1;
        if (deep) {
                fs->opaque = &watch;
                fs->on_change = watch_change;
        }
        if (recover(judge, fs, ret->values, after_cut || !poisoned, ret) < 0)
                return -1;
        fs->on_change = NULL;
        if (!ret->writable)
                return 0;
        closed = sim_fs_snapshot(fs);
        if (sim_world_n_regions(closed) != 0)
                return wrong(ret->sentence, "a clean close leaves a redo file");
        if (check_files(judge, closed, ret->sentence) < 0 ||
                check_as_a_user(judge, closed, false, ret->sentence) < 0 ||
                judge_flushed(judge, closed, ret->values, ret->sentence) < 0)
                return -1;
        if (judge_read(judge, closed, got, ret->sentence) < 0 ||
                same_values(judge, ret->values, got, "after a clean close", ret->sentence) < 0)
                return -1;
        return judge_inside(judge, &watch, ret->values, ret->sentence);
}

int64_t judge_values(
        const struct scene *scene, const uint8_t values[], uint64_t begun, uint64_t required)
{
        for (uint32_t c = 0; c < scene->model.n_cells; c++)
                if (!model_allows(&scene->model, c, values[c], begun, required))
                        return c;
        return -1;
}
