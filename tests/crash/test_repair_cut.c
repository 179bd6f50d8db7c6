/* SPDX-License-Identifier: Apache-2.0 */
/* A power cut in the middle of check --repair: the next opener finds the image as it was or as it is
 * to be, and as soon as any byte of it has changed, all the old bytes are safe beside it. */
#include "tests/unit/vhd_make.h"

#include "formats/intent.h"
#include "formats/vhd/check.h"
#include "tests/crash/simdisk.h"

#define PATH       "/d/image.vhd"
#define MAX_STATES 150u

struct content {
        uint8_t *bytes;
        uint64_t size;
};

static struct content before, after, backup;
static char backup_path[4096];
static uint64_t n_states, n_old, n_new;

static struct content content_of(const struct sim_world *world, const char *path)
{
        struct content content = {.size = sim_world_size(world, path)};

        content.bytes = calloc(1, content.size + 1);
        sim_world_read(world, path, content.bytes, content.size, 0);
        return content;
}

static bool same(const struct content *a, const struct content *b)
{
        return a->size == b->size && memcmp(a->bytes, b->bytes, a->size) == 0;
}

static void forget(struct content *content)
{
        free(content->bytes);
        *content = (struct content){NULL, 0};
}

static struct sim_world *world_with(const struct make *make)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        struct file *file = NULL;

        cr_assert(file_open(&fs->fs, PATH, FILE_WRITE | FILE_CREATE, &file, NULL) == 0);
        cr_assert(file_write(file, make->bytes, make->size, 0, 0) == 0);
        file_close(file);
        sim_world_settle(fs->world);
        return sim_world_clone(fs->world);
}

static void check_state(const struct sim_world *state)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_clone(state));
        struct content found = content_of(state, PATH), kept;
        struct file *file = NULL, *view = NULL;

        n_states++;
        if (!same(&found, &before)) {
                cr_assert(sim_world_has(state, backup_path), "changed, and no copy of the bytes");
                kept = content_of(state, backup_path);
                cr_assert(same(&kept, &backup));
                forget(&kept);
        }
        forget(&found);
        cr_assert(file_open(&fs->fs, PATH, FILE_WRITE, &file, NULL) == 0);
        cr_assert(intent_recover(file, true, NULL, &view, NULL) == 0);
        file_close(file);
        found = content_of(fs->world, PATH);
        n_old += same(&found, &before);
        n_new += same(&found, &after);
        cr_assert(same(&found, &before) || same(&found, &after), "a mixture");
        forget(&found);
}

static void cut_here(struct sim_fs *fs, enum sim_call call)
{
        _cleanup_(sim_world_freep) struct sim_world *world = sim_fs_snapshot(fs);
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
        uint64_t n = sim_cut_n_states(cut);
        struct random random = {n_states};

        fs->on_change = NULL;
        check_state(world);
        for (uint64_t i = 0; i < (n <= MAX_STATES ? n : MAX_STATES); i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        n <= MAX_STATES ? sim_cut_state(cut, i) : sim_cut_sample(cut, &random);

                check_state(state);
        }
        fs->on_change = cut_here;
}

/* One repair; with @cut, every instant of it is looked at. */
static void repair(const struct make *make, unsigned flags, bool cut)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(world_with(make));
        struct vhd_repair_result result;
        struct error err = ERROR_INIT;
        struct file *file = NULL;

        fs->time = 1800000000;
        cr_assert(file_open(&fs->fs, PATH, FILE_WRITE, &file, NULL) == 0);
        fs->on_change = cut ? cut_here : NULL;
        cr_assert(vhd_repair(file, flags, NULL, NULL, &result, &err) == 0, "%s", err.message);
        fs->on_change = NULL;
        file_close(file);
        cr_assert(result.backup[0]);
        if (cut)
                return;
        strcpy(backup_path, result.backup);
        after = content_of(fs->world, PATH);
        backup = content_of(fs->world, backup_path);
}

static void every_cut(const struct make *make, unsigned flags)
{
        n_states = n_old = n_new = 0;
        before = (struct content){make->bytes, make->size};
        repair(make, flags, false);
        cr_assert(!same(&before, &after));
        repair(make, flags, true);
        cr_expect(n_states > 20);
        cr_expect(n_old > 0);
        cr_expect(n_new > 0);
        forget(&after);
        forget(&backup);
}

TestSuite(repair_cut, .timeout = 600);

Test(repair_cut, the_tail_from_the_head)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

        make.size -= 512;
        every_cut(&make, VHD_CHECK_USE_HEAD);
}

Test(repair_cut, footers_that_differ)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

        MAKE_CHANGE_FOOTER(&make, true, false, footer.current_size = be64_make(4096 * 7));
        every_cut(&make, VHD_CHECK_USE_TAIL);
        every_cut(&make, VHD_CHECK_USE_HEAD);
}

Test(repair_cut, everything_at_once)
{
        _cleanup_make_ struct make make = make_sparse(3, 128, 4096, 2);
        be32 bad = be32_make(900000);

        make_put(&make, MAKE_BAT + 40, &bad, 4);
        make_put(&make, MAKE_BAT + 400, &bad, 4);
        make.bytes[MAKE_HEADER + 900] ^= 1;
        make.bytes[200] ^= 1;
        make.size = MAKE_FIRST + 8192 + 512 + 2048;
        make.bytes[200] ^= 1;
        every_cut(&make, VHD_CHECK_USE_HEAD | VHD_CHECK_FORCE);
}

/* A full disk, an I/O error, in every call: told, and the image old or new for the next opener. */
Test(repair_cut, errors_at_every_call)
{
        static const enum sim_call kinds[] = {
                SIM_OPEN, SIM_WRITE, SIM_SYNC, SIM_UNLINK, SIM_SYNC_DIRECTORY};
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

        make.size -= 512;
        before = (struct content){make.bytes, make.size};
        repair(&make, VHD_CHECK_USE_HEAD, false);
        for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
                bool hit = true;

                for (unsigned at = 0; hit; at++) {
                        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(world_with(&make));
                        struct sim_fault fault = {
                                .call = kinds[k], .failure = SIM_FAIL, .error = ENOSPC, .at = at};
                        struct vhd_repair_result result;
                        struct error err = ERROR_INIT;
                        struct file *file = NULL;
                        int r;

                        fs->time = 1800000000;
                        cr_assert(file_open(&fs->fs, PATH, FILE_WRITE, &file, NULL) == 0);
                        sim_fs_arm(fs, &fault);
                        r = vhd_repair(file, VHD_CHECK_USE_HEAD, NULL, NULL, &result, &err);
                        hit = fs->fault_hit;
                        fs->fault_armed = false;
                        cr_expect(r == 0 || err.message[0]);
                        cr_expect(hit || r == 0, "%s", err.message);
                        file_close(file);
                        check_state(fs->world);
                }
        }
        forget(&after);
        forget(&backup);
}
