/* SPDX-License-Identifier: Apache-2.0 */
/* The crash tests are worth what the simulated disk is worth: a disk that forgets too little hides
 * a missing sync, one that forgets too much cries wolf. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <string.h>

#include "tests/crash/schedule.h"
#include "tests/crash/simdisk.h"

#define F "/d/f"

static struct file *open_file(struct sim_fs *fs, const char *path, unsigned flags)
{
        struct file *file = NULL;

        cr_assert(eq(int, file_open(&fs->fs, path, flags, &file, NULL), 0));
        return file;
}

/* A file of @sectors, each filled with 'a', durable with its name. */
static struct sim_fs *disk_with_file(unsigned sectors)
{
        struct sim_fs *fs = sim_fs_new(sim_world_new());
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE | FILE_CREATE);
        char bytes[SIM_SECTOR];

        memset(bytes, 'a', sizeof(bytes));
        for (unsigned i = 0; i < sectors; i++)
                cr_assert(eq(int, file_write(file, bytes, sizeof(bytes), i * SIM_SECTOR, 0), 0));
        sim_world_settle(fs->world);
        return fs;
}

static void put(struct file *file, unsigned sector, unsigned n, char letter, unsigned flags)
{
        char bytes[16 * SIM_SECTOR];

        memset(bytes, letter, sizeof(bytes));
        cr_assert(eq(int, file_write(file, bytes, n * SIM_SECTOR, sector * SIM_SECTOR, flags), 0));
}

/* The first letter of each sector, '.' for zeros, '|' where the file ends. */
static const char *letters(const struct sim_world *world, const char *path)
{
        static char text[128];
        uint64_t n = sim_world_size(world, path) / SIM_SECTOR;
        uint64_t i;

        if (!sim_world_has(world, path))
                return "none";
        for (i = 0; i < n; i++) {
                sim_world_read(world, path, &text[i], 1, i * SIM_SECTOR);
                if (text[i] == 0)
                        text[i] = '.';
        }
        text[i] = 0;
        return text;
}

/* Is this one of the worlds that a cut here may leave? */
static bool may_leave(struct sim_fs *fs, const char *path, const char *want)
{
        _cleanup_(sim_world_freep) struct sim_world *now = sim_fs_snapshot(fs);
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(now);
        uint64_t n = sim_cut_n_states(cut);

        cr_assert(n <= 4096);
        for (uint64_t i = 0; i < n; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world = sim_cut_state(cut, i);

                if (strcmp(letters(world, path), want) == 0)
                        return true;
        }
        return false;
}

static uint64_t n_states(struct sim_fs *fs)
{
        _cleanup_(sim_world_freep) struct sim_world *now = sim_fs_snapshot(fs);
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(now);

        return sim_cut_n_states(cut);
}

Test(simdisk, any_subset_of_unsynced_writes_may_be_lost)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(4);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        put(file, 0, 1, 'b', 0);
        put(file, 2, 1, 'c', 0);
        put(file, 0, 1, 'd', 0);
        cr_expect(eq(u64, n_states(fs), 6));
        cr_expect(may_leave(fs, F, "aaaa"));
        cr_expect(may_leave(fs, F, "baaa"));
        cr_expect(may_leave(fs, F, "baca"));
        cr_expect(may_leave(fs, F, "daaa"));
        cr_expect(may_leave(fs, F, "aaca"));
        cr_expect(may_leave(fs, F, "daca"));
}

Test(simdisk, a_sync_makes_what_was_written_before_it_durable)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(2);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        put(file, 0, 1, 'b', 0);
        cr_assert(eq(int, file_sync(file), 0));
        cr_expect(eq(u64, n_states(fs), 1));
        cr_expect(may_leave(fs, F, "ba"));
        put(file, 1, 1, 'c', 0);
        cr_expect(may_leave(fs, F, "ba"));
        cr_expect(not(may_leave(fs, F, "ac")));
}

static void write_inside_sync(struct sim_fs *fs, enum sim_call call)
{
        struct file *file = fs->opaque;

        if (call == SIM_SYNC && fs->calls[SIM_WRITE] < 100) {
                fs->calls[SIM_WRITE] = 100;
                put(file, 1, 1, 'c', 0);
        }
}

Test(simdisk, a_write_inside_a_sync_is_not_covered_by_it)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(2);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        put(file, 0, 1, 'b', 0);
        fs->opaque = file;
        fs->on_change = write_inside_sync;
        cr_assert(eq(int, file_sync(file), 0));
        fs->on_change = NULL;
        cr_expect(may_leave(fs, F, "ba"));
        cr_expect(may_leave(fs, F, "bc"));
        cr_expect(eq(u64, n_states(fs), 2));
}

Test(simdisk, two_files_are_synced_apart)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(1);
        _cleanup_(file_closep) struct file *other = open_file(fs, "/d/g", FILE_WRITE | FILE_CREATE);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        put(other, 0, 1, 'x', 0);
        sim_world_settle(fs->world);
        put(other, 0, 1, 'y', 0);
        put(file, 0, 1, 'b', 0);
        cr_assert(eq(int, file_sync(file), 0));
        cr_expect(may_leave(fs, "/d/g", "x"));
        cr_expect(not(may_leave(fs, F, "a")));
}

Test(simdisk, growth_is_durable_only_with_its_last_sector)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(1);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        put(file, 1, 3, 'b', 0);
        cr_expect(may_leave(fs, F, "a"));
        cr_expect(may_leave(fs, F, "a..b"));
        cr_expect(may_leave(fs, F, "abbb"));
        cr_expect(not(may_leave(fs, F, "abb")));
        cr_expect(not(may_leave(fs, F, "a...")));
        put(file, 3, 1, 'c', 0);
        cr_expect(may_leave(fs, F, "a..c"));
}

Test(simdisk, a_truncation_may_be_lost_but_not_before_a_later_growth)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(4);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        cr_assert(eq(int, file_truncate(file, SIM_SECTOR), 0));
        cr_expect(may_leave(fs, F, "aaaa"));
        cr_expect(may_leave(fs, F, "a"));
        put(file, 2, 1, 'c', 0);
        cr_expect(may_leave(fs, F, "aaaa"));
        cr_expect(may_leave(fs, F, "a.c"));
        cr_expect(not(may_leave(fs, F, "aaca")));
        cr_expect(not(may_leave(fs, F, "a.ca")));
        cr_assert(eq(int, file_sync(file), 0));
        cr_expect(may_leave(fs, F, "a.c"));
        cr_expect(eq(u64, n_states(fs), 1));
}

Test(simdisk, dsync_covers_its_own_sectors_alone)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(3);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        put(file, 0, 1, 'b', 0);
        put(file, 1, 3, 'c', FILE_DSYNC);
        cr_expect(may_leave(fs, F, "accc"));
        cr_expect(may_leave(fs, F, "bccc"));
        cr_expect(eq(u64, n_states(fs), 2));
}

Test(simdisk, a_failed_sync_loses_for_good_what_it_should_have_written)
{
        static const struct sim_fault fault = {.call = SIM_SYNC, .failure = SIM_LOSE, .error = 5};
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(3);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);

        put(file, 0, 2, 'b', 0);
        sim_fs_arm(fs, &fault);
        /* The disk itself: file_sync() would not ask it again (E5). */
        cr_expect(eq(int, file->ops->sync(file), -5));
        put(file, 2, 1, 'c', 0);
        cr_expect(eq(int, file->ops->sync(file), 0));
        cr_expect(eq(str, (char *)letters(fs->world, F), (char *)"bbc"));
        cr_expect(may_leave(fs, F, "aac"));
        cr_expect(may_leave(fs, F, "bbc"));
        /* Only writing it again helps. */
        put(file, 0, 2, 'd', 0);
        cr_expect(eq(int, file->ops->sync(file), 0));
        cr_expect(may_leave(fs, F, "ddc"));
        cr_expect(eq(u64, n_states(fs), 1));
}

Test(simdisk, holes_may_be_lost_and_take_no_space)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(16);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);
        struct file_stat before, after;
        uint64_t hole = 0;

        cr_assert(eq(int, file_stat_get(file, &before), 0));
        cr_assert(eq(int, file_punch(file, 8 * SIM_SECTOR, 8 * SIM_SECTOR), 0));
        cr_assert(eq(int, file_stat_get(file, &after), 0));
        cr_expect(lt(u64, after.allocated, before.allocated));
        cr_expect(eq(int, file_seek_hole(file, 0, &hole), 0));
        cr_expect(eq(u64, hole, 8 * SIM_SECTOR));
        cr_expect(may_leave(fs, F, "aaaaaaaaaaaaaaaa"));
        cr_expect(may_leave(fs, F, "aaaaaaaa........"));
}

Test(simdisk, names_are_durable_only_with_their_directory)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(1);
        _cleanup_(file_closep) struct file *file = open_file(fs, "/d/n", FILE_WRITE | FILE_CREATE);

        put(file, 0, 1, 'n', 0);
        cr_assert(eq(int, file_sync(file), 0));
        cr_expect(may_leave(fs, "/d/n", "none"));
        cr_assert(eq(int, fs_sync_directory(&fs->fs, "/d/n"), 0));
        cr_expect(not(may_leave(fs, "/d/n", "none")));
        cr_assert(eq(int, fs_rename(&fs->fs, "/d/n", F, true), 0));
        cr_expect(may_leave(fs, F, "a"));
        cr_expect(may_leave(fs, F, "n"));
        cr_assert(eq(int, fs_sync_directory(&fs->fs, F), 0));
        cr_expect(not(may_leave(fs, F, "a")));
        cr_expect(may_leave(fs, "/d/n", "none"));
        cr_assert(eq(int, fs_unlink(&fs->fs, F), 0));
        cr_expect(may_leave(fs, F, "n"));
        cr_expect(may_leave(fs, F, "none"));
}

/* The cache of a dead process looks durable and is not: a cut after the death still loses it. */
Test(simdisk, regions_outlive_a_death_and_not_a_cut)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(1);
        struct region *region = NULL, *again = NULL;
        struct file *file = open_file(fs, F, FILE_WRITE);
        uint8_t boot[16], other_boot[16];

        cr_assert(eq(int, region_open(&fs->fs, "redo", F, 4096, true, &region, NULL), 0));
        cr_expect(eq(int, region_open(&fs->fs, "redo", F, 4096, true, &again, NULL), -EEXIST));
        memcpy(region->data, "record", 6);
        put(file, 0, 1, 'b', 0);
        {
                _cleanup_(sim_fs_freep) struct sim_fs *dead = sim_fs_new(sim_fs_snapshot(fs));
                _cleanup_(sim_fs_freep) struct sim_fs *cut =
                        sim_fs_new(sim_world_cut(dead->world, false));

                cr_assert(eq(int, region_open(&dead->fs, "redo", F, 0, false, &again, NULL), 0));
                cr_expect(eq(int, memcmp(again->data, "record", 6), 0));
                region_close(again, false);
                cr_expect(
                        eq(int, region_open(&cut->fs, "redo", F, 0, false, &again, NULL), -ENOENT));
                cr_expect(eq(str, (char *)letters(cut->world, F), (char *)"a"));
                fs_boot_id(&fs->fs, boot);
                fs_boot_id(&dead->fs, other_boot);
                cr_expect(eq(int, memcmp(boot, other_boot, 16), 0));
                fs_boot_id(&cut->fs, other_boot);
                cr_expect(ne(int, memcmp(boot, other_boot, 16), 0));
        }
        region_close(region, true);
        cr_expect(eq(int, region_open(&fs->fs, "redo", F, 0, false, &again, NULL), -ENOENT));
        file_close(file);
}

Test(simdisk, calls_fail_on_demand)
{
        struct sim_fault fault = {
                .call = SIM_WRITE, .failure = SIM_SHORT, .error = ENOSPC, .at = 1};
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(4);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);
        char bytes[4 * SIM_SECTOR] = {0};

        sim_fs_arm(fs, &fault);
        cr_expect(eq(int, file_write(file, bytes, SIM_SECTOR, 0, 0), 0));
        /* Continued by file_write. */
        cr_expect(eq(int, file_write(file, bytes, sizeof(bytes), 0, 0), 0));
        cr_expect(fs->fault_hit);
        fault.failure = SIM_FAIL;
        fault.at = 0;
        sim_fs_arm(fs, &fault);
        cr_expect(eq(int, file_write(file, bytes, sizeof(bytes), 0, 0), -ENOSPC));
        fs->space = SIM_PAGE;
        cr_expect(eq(int, file_write(file, bytes, SIM_SECTOR, SIM_PAGE, 0), -ENOSPC));
        cr_expect(eq(int, file_write(file, bytes, SIM_SECTOR, 0, 0), 0));
        fs->nowait_again = true;
        cr_expect(eq(int, (int)file_read(file, bytes, 1, 0, FILE_NOWAIT), -EAGAIN));
}

struct writer {
        struct file *file;
        char letter;
};

static void *write_two_pages(void *argument)
{
        struct writer *writer = argument;

        put(writer->file, 0, 16, writer->letter, 0);
        return NULL;
}

/* What two writers leave, and whether somebody could see half of one. */
static void run_two_writers(uint64_t seed, char text[17], bool *seen_half);

static struct sim_fs *watched;
static bool half;

static void look_for_half(struct sim_fs *fs, enum sim_call call)
{
        const char *text = letters(fs->world, F);

        half |= text[0] != text[15];
}

static void run_two_writers(uint64_t seed, char text[17], bool *seen_half)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = disk_with_file(16);
        _cleanup_(file_closep) struct file *file = open_file(fs, F, FILE_WRITE);
        struct writer a = {file, 'b'}, b = {file, 'c'};
        pthread_t threads[2];

        watched = fs;
        half = false;
        fs->split_writes = true;
        fs->on_change = look_for_half;
        schedule_begin();
        schedule_set_policy(SCHEDULE_RANDOM, seed, 20);
        pthread_create(&threads[0], NULL, write_two_pages, &a);
        pthread_create(&threads[1], NULL, write_two_pages, &b);
        pthread_join(threads[0], NULL);
        pthread_join(threads[1], NULL);
        schedule_end();
        memcpy(text, letters(fs->world, F), 17);
        *seen_half = half;
}

/* Half a write is what a death may leave, but two writes are never mixed, and a seed is an order. */
Test(simdisk, threads_take_turns_as_the_seed_says)
{
        bool seen[2] = {false, false}, seen_half;
        char text[17], again[17];

        for (uint64_t seed = 0; seed < 50; seed++) {
                run_two_writers(seed, text, &seen_half);
                cr_expect(seen_half);
                cr_assert(strcmp(text, "bbbbbbbbbbbbbbbb") == 0 ||
                                strcmp(text, "cccccccccccccccc") == 0,
                        "%s", text);
                seen[text[0] == 'c'] = true;
                run_two_writers(seed, again, &seen_half);
                cr_expect(eq(str, again, text));
        }
        cr_expect(seen[0]);
        cr_expect(seen[1]);
}
