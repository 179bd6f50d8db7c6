/* SPDX-License-Identifier: Apache-2.0 */
/* A power cut, or the process's death, in the middle of a relink: every opener afterwards finds the old
 * parent or the new one in header and locators alike, a whole image and every byte of its data. With
 * the new footer not synced before the old one is written over, some state must be wrong. */
#include <criterion/criterion.h>
#include <string.h>

#include "base/arith.h"
#include "base/uuid.h"
#include "chain/locate.h"
#include "chain/relink.h"
#include "formats/format.h"
#include "formats/intent.h"
#include "formats/vhd/create.h"
#include "tests/crash/simdisk.h"

#define CHILD  "/d/c.vhd"
#define OLD    "/d/old.vhd"
#define SIZE   (64 * KIB)
#define BLOCK  4096u
#define MARKED (2 * BLOCK) /* where the guest's data is */

static const uint8_t parent_id[16] = {1};
static char new_path[2560];
static const char *new_name;
static unsigned states_a_cut;

static uint64_t n_states, n_bad;
static char first_bad[ERROR_MESSAGE_MAX];

/* --- a disk that leaves out the sync of the footer ahead */

static bool lying;
static struct file_ops lying_file_ops;
static struct fs_ops lying_fs_ops;
static const struct fs_ops *true_fs_ops;
static const struct file_ops *true_file_ops;

static int lying_sync(struct file *file)
{
        struct sim_fs *fs = (struct sim_fs *)file->fs;

        if (lying && strcmp(file->path, CHILD) == 0 &&
                !sim_world_has(fs->world, CHILD INTENT_ENDING))
                return 0;
        return true_file_ops->sync(file);
}

static int lying_open(
        struct fs *fs, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        int r = true_fs_ops->open(fs, path, flags, mode, ret);

        if (r == 0) {
                true_file_ops = (*ret)->ops;
                lying_file_ops = *true_file_ops;
                lying_file_ops.sync = lying_sync;
                (*ret)->ops = &lying_file_ops;
        }
        return r;
}

static struct sim_fs *fs_over(struct sim_world *world)
{
        struct sim_fs *fs = sim_fs_new(world);

        true_fs_ops = fs->fs.ops;
        lying_fs_ops = *true_fs_ops;
        lying_fs_ops.open = lying_open;
        fs->fs.ops = &lying_fs_ops;
        return fs;
}

/* --- the images */

static void make_image(struct sim_fs *fs, const char *path, const struct vhd_create_params *params)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;

        cr_assert(file_open(&fs->fs, path, FILE_WRITE | FILE_CREATE, &file, &err) == 0, "%s",
                err.message);
        cr_assert(vhd_create(file, params, &err) == 0, "%s", err.message);
}

static void write_data(struct sim_fs *fs)
{
        struct file *file = NULL;
        struct image *image = NULL;
        struct error err = ERROR_INIT;
        uint8_t data[BLOCK];
        uint64_t at;
        bool zero, changed;

        memset(data, 'g', sizeof(data));
        cr_assert(file_open(&fs->fs, CHILD, FILE_WRITE, &file, &err) == 0);
        cr_assert(image_open(file, "vhd", IMAGE_WRITABLE, &image, &err) == 0, "%s", err.message);
        cr_assert(image->format->prepare(image, MARKED, BLOCK, 0, &at, &zero) == 0);
        cr_assert(file_write(file, data, sizeof(data), at, 0) == 0);
        cr_assert(image->format->complete(image, MARKED, BLOCK, &changed) == 0);
        cr_assert(image_close(image, &err) == 0, "%s", err.message);
}

static struct sim_world *world_before(void)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        struct vhd_create_params base = {
                .type = VHD_TYPE_DYNAMIC, .size = SIZE, .block_size = BLOCK};
        struct vhd_create_params child = {
                .type = VHD_TYPE_DIFFERENCING,
                .size = SIZE,
                .block_size = BLOCK,
                .parent_name = "old.vhd",
                .parent_relative = "./old.vhd",
                .parent_absolute = OLD,
        };

        memcpy(base.unique_id, parent_id, 16);
        memcpy(child.parent_id, parent_id, 16);
        make_image(fs, new_path, &base);
        make_image(fs, CHILD, &child);
        write_data(fs);
        sim_world_settle(fs->world);
        return sim_world_clone(fs->world);
}

/* --- judging */

static void bad(const char *why)
{
        if (n_bad++ == 0)
                snprintf(first_bad, sizeof(first_bad), "%s", why);
}

static bool ends_in(const char *text, const char *end)
{
        size_t n = strlen(text), m = strlen(end);

        return n >= m && strcmp(text + n - m, end) == 0;
}

/* 'o' all of it names the old parent, 'n' the new one, '?' a mixture. */
static char named_parent(struct file *file)
{
        struct vhd_metadata metadata;
        struct error err = ERROR_INIT;
        unsigned n_old = 0, n_new = 0, n_locators = 0;

        if (vhd_metadata_read(file, 0, &metadata, &err) < 0) {
                bad(err.message);
                return '?';
        }
        if (metadata.problems)
                bad("the metadata has problems");
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                char text[4096];

                if (!metadata.header.locators[i].code[0])
                        continue;
                n_locators++;
                if (vhd_locator_read(file, &metadata.header, i, text, sizeof(text), &err) < 0)
                        bad(err.message);
                n_old += ends_in(text, "\\old.vhd");
                n_new += ends_in(text, new_name);
        }
        n_old += strcmp(metadata.header.parent_name, "old.vhd") == 0;
        n_new += strcmp(metadata.header.parent_name, new_name) == 0;
        if (!uuid_equal(metadata.header.parent_id, parent_id))
                return '?';
        return n_old == n_locators + 1 ? 'o' : n_new == n_locators + 1 ? 'n' : '?';
}

static void check_data(struct image *image)
{
        struct extent extent;
        uint8_t data[BLOCK];

        if (image->format->map(image, MARKED, BLOCK, 0, &extent) < 0 ||
                extent.kind != EXTENT_DATA || extent.length != BLOCK ||
                file_read_exact(image->file, data, BLOCK, extent.file_offset) < 0) {
                bad("the guest's block is gone");
                return;
        }
        for (size_t i = 0; i < BLOCK; i++)
                if (data[i] != 'g') {
                        bad("the guest's data was written over");
                        return;
                }
}

static void check_opener(const struct sim_world *state, bool writable)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = fs_over(sim_world_clone(state));
        struct file *file = NULL;
        struct image *image = NULL;
        struct error err = ERROR_INIT;

        cr_assert(file_open(&fs->fs, CHILD, writable ? FILE_WRITE : FILE_READ, &file, &err) == 0);
        if (image_open(file, "vhd", writable ? IMAGE_WRITABLE : 0, &image, &err) < 0) {
                bad(err.message);
                file_close(file);
                return;
        }
        if (writable && !image->writable)
                bad(image->warning);
        if (named_parent(image->file) == '?')
                bad("header and locators name two parents");
        check_data(image);
        if (image_close(image, &err) < 0)
                bad(err.message);
}

static void check_state(const struct sim_world *state)
{
        bool was_lying = lying;

        lying = false;
        n_states++;
        check_opener(state, false);
        check_opener(state, true);
        lying = was_lying;
}

static void cut_here(struct sim_fs *fs, enum sim_call call)
{
        _cleanup_(sim_world_freep) struct sim_world *world = NULL;
        _cleanup_(sim_cut_freep) struct sim_cut *cut = NULL;
        struct random random = {n_states};
        uint64_t n;

        (void)call;
        fs->on_change = NULL;
        world = sim_fs_snapshot(fs);
        check_state(world);
        cut = sim_cut_new(world);
        n = sim_cut_n_states(cut);
        for (uint64_t i = 0; i < MIN_OF(n, (uint64_t)states_a_cut); i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        n <= states_a_cut ? sim_cut_state(cut, i) : sim_cut_sample(cut, &random);

                check_state(state);
        }
        fs->on_change = cut_here;
}

static uint64_t run(unsigned length, bool lie, unsigned states)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = NULL;
        struct relink_report report;
        struct relink_params params = {0};
        struct error err = ERROR_INIT;
        struct file *file = NULL;
        size_t used = (size_t)snprintf(new_path, sizeof(new_path), "/d");

        /* Folders that make the path as long as it has to be. */
        while (used < length) {
                used += (size_t)snprintf(new_path + used, sizeof(new_path) - used, "/");
                memset(new_path + used, 'x', 200);
                used += 200;
        }
        snprintf(new_path + used, sizeof(new_path) - used, "/new.vhd");
        new_name = "new.vhd";
        states_a_cut = states;
        n_bad = n_states = 0;
        first_bad[0] = '\0';

        fs = fs_over(world_before());
        params.fs = &fs->fs;
        fs->on_change = cut_here;
        lying = lie;
        cr_assert(relink(CHILD, new_path, &params, &report, &err) == 0, "%s", err.message);
        lying = false;
        fs->on_change = NULL;
        cr_assert(report.appended == (length > 600));
        cr_assert(file_open(&fs->fs, CHILD, FILE_READ, &file, &err) == 0);
        cr_expect(named_parent(file) == 'n');
        file_close(file);
        cr_expect(!sim_world_has(fs->world, CHILD INTENT_ENDING));
        return n_bad;
}

TestSuite(relink_cut, .timeout = 900);

Test(relink_cut, leaves_the_old_parent_or_the_new_in_the_slots_that_were_there)
{
        cr_expect(run(0, false, 2000) == 0, "%llu of %llu states are wrong: %s",
                (unsigned long long)n_bad, (unsigned long long)n_states, first_bad);
        cr_expect(n_states > 60, "%llu states", (unsigned long long)n_states);
}

Test(relink_cut, leaves_the_old_parent_or_the_new_behind_the_last_block)
{
        cr_expect(run(1900, false, 2000) == 0, "%llu of %llu states are wrong: %s",
                (unsigned long long)n_bad, (unsigned long long)n_states, first_bad);
        cr_expect(n_states > 60, "%llu states", (unsigned long long)n_states);
}

Test(relink_cut, notices_a_footer_that_was_not_synced_ahead)
{
        cr_expect(run(1900, true, 200) > 0);
}
