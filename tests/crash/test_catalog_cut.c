/* SPDX-License-Identifier: Apache-2.0 */
/* A power cut, or the daemon's death, at every step of what changes the catalog and files together:
 * attach, take, rename, apply, revert, delete, detach. After the next start there is the state
 * before or the one after, never one between; each file that a row names is there and whole; and no
 * file is there that no row names. SQLite itself runs over the simulated disk (simvfs.h).
 *
 * The sequences are those of the daemon, with the worker's part (writing an empty child) done here.
 * Left out on purpose, in turn: the sync of the directories, the journal's row ahead of the files,
 * the commit ahead of the unlink. Each must be noticed. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "tests/crash/simdisk.h"
#include "tests/crash/simvfs.h"
#include "vhdd/daemon/catalog.h"
#include "vhdd/daemon/journal.h"

#define CATALOG    "/s/catalog.sqlite"
#define VM         "11111111-1111-4111-8111-111111111111"
#define IMAGE_SIZE 2048u
#define MAX_WORLDS 4096u
#define DUMP_MAX   8192u

/* Of the states of one step. A sanitizer looks for wrong memory, for which fewer will do. */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define SAMPLES 4u
#else
#define SAMPLES 24u
#endif

static struct sim_fs *disk;
static struct catalog *catalog;
static struct error err;

/* What is left out. */
static enum { NOTHING, NAME_SYNC, JOURNAL_AHEAD, COMMIT_AHEAD } left_out;

static uint64_t n_states, n_bad;
static char first_bad[3 * DUMP_MAX];

/* ---- what the world looks like ---- */

struct dump {
        char text[DUMP_MAX];
        size_t used;
};

__attribute__((format(printf, 2, 3))) static void add(struct dump *dump, const char *format, ...)
{
        va_list ap;
        int n;

        va_start(ap, format);
        n = vsnprintf(dump->text + dump->used, sizeof(dump->text) - dump->used, format, ap);
        va_end(ap);
        cr_assert(n >= 0 && dump->used + (size_t)n < sizeof(dump->text));
        dump->used += (size_t)n;
}

static void dump_snapshot(struct catalog *from, struct dump *dump, const struct snapshot_row *row)
{
        struct snapshot_disk_row *disks;
        size_t n;

        add(dump, "snapshot %s %s parent %s %s\n", row->id, row->name, row->parent, row->state);
        cr_assert_eq(catalog_snapshot_disk_list(from, row->id, &disks, &n, &err), 0);
        for (size_t i = 0; i < n; i++)
                add(dump, "  %s %s\n", disks[i].name, disks[i].file);
        snapshot_disk_rows_free(disks, n);
}

static void dump_images(struct catalog *from, struct dump *dump)
{
        struct image_row *images;
        size_t n;

        cr_assert_eq(catalog_image_list(from, NULL, &images, &n, &err), 0);
        for (size_t i = 0; i < n; i++)
                add(dump, "image %s on %s %s\n", images[i].path,
                        images[i].parent ? images[i].parent : "-", images[i].state);
        image_rows_free(images, n);
}

static void dump_catalog(struct catalog *from, struct dump *dump)
{
        struct vm_row vm;
        struct disk_row *disks;
        struct snapshot_row *snapshots;
        size_t n;

        *dump = (struct dump){.used = 0};
        cr_assert_eq(catalog_vm_find(from, VM, &vm, &err), 0, "%s", err.message);
        add(dump, "vm %s current %s\n", vm.name, vm.current);
        vm_row_done(&vm);
        cr_assert_eq(catalog_disk_list(from, VM, &disks, &n, &err), 0);
        for (size_t i = 0; i < n; i++)
                add(dump, "disk %s %s\n", disks[i].name, disks[i].file);
        disk_rows_free(disks, n);
        cr_assert_eq(catalog_snapshot_list(from, VM, &snapshots, &n, &err), 0);
        for (size_t i = 0; i < n; i++)
                dump_snapshot(from, dump, &snapshots[i]);
        snapshot_rows_free(snapshots, n);
        dump_images(from, dump);
}

/* ---- the daemon's sequences ---- */

static const char *id_of(char letter)
{
        static char ids[4][UUID_TEXT_SIZE];
        static unsigned next;
        char *id = ids[next++ % 4];

        snprintf(id, UUID_TEXT_SIZE, "00000000-0000-4000-8000-00000000000%c", letter);
        return id;
}

/* The worker's part: an image, written and synced. */
static void write_image(const char *path)
{
        _cleanup_(file_closep) struct file *file = NULL;
        uint8_t data[IMAGE_SIZE];

        memset(data, 'i', sizeof(data));
        cr_assert_eq(
                file_open(&disk->fs, path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE, &file, &err),
                0, "%s", err.message);
        cr_assert_eq(file_write(file, data, sizeof(data), 0, 0), 0);
        cr_assert_eq(file_sync(file), 0);
}

static struct operation *begin(const char *kind, const char *const *make, size_t n)
{
        struct operation *operation = NULL;

        if (left_out != JOURNAL_AHEAD)
                cr_assert_eq(operation_begin(
                                     catalog, &disk->fs, kind, VM, make, n, NULL, &operation, &err),
                        0, "%s", err.message);
        for (size_t i = 0; i < n; i++)
                write_image(make[i]);
        if (left_out == JOURNAL_AHEAD) {
                cr_assert_eq(operation_begin(
                                     catalog, &disk->fs, kind, VM, NULL, 0, NULL, &operation, &err),
                        0, "%s", err.message);
                for (size_t i = 0; i < n; i++)
                        cr_assert_eq(fs_sync_directory(&disk->fs, make[i]), 0);
        }
        cr_assert_eq(operation_made(operation, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_begin(catalog, &err), 0, "%s", err.message);
        return operation;
}

static void finish(struct operation *operation)
{
        cr_assert_eq(operation_commit(operation, &err), 0, "%s", err.message);
        cr_assert_eq(operation_end(operation, &err), 0, "%s", err.message);
        operation_free(operation);
}

static void put_image(const char *path, const char *parent)
{
        struct image_row row = {.path = (char *)path,
                .parent = (char *)parent,
                .format = "vhd",
                .state = "in-use",
                .made_by_us = true};

        cr_assert_eq(catalog_image_insert(catalog, &row, &err), 0, "%s", err.message);
}

static void drop_image(struct operation *operation, const char *path)
{
        cr_assert_eq(catalog_image_delete(catalog, path, &err), 0, "%s", err.message);
        if (left_out == COMMIT_AHEAD)
                fs_unlink(&disk->fs, path);
        cr_assert_eq(operation_will_remove(operation, path, &err), 0);
}

static void put_disk(char letter, const char *name, const char *file)
{
        struct disk_row row = {.name = (char *)name,
                .file = (char *)file,
                .controller = 1,
                .unit = letter - 'a',
                .kind = "vhd"};

        strcpy(row.id, id_of(letter));
        strcpy(row.vm, VM);
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), 0, "%s", err.message);
}

static void set_leaf(char letter, const char *file)
{
        struct disk_row row;

        cr_assert_eq(catalog_disk_find(catalog, VM, id_of(letter), &row, &err), 0);
        free(row.file);
        row.file = strdup(file);
        cr_assert_eq(catalog_disk_update(catalog, &row, &err), 0, "%s", err.message);
        disk_row_done(&row);
}

static void set_current(const char *snapshot)
{
        struct vm_row row;

        cr_assert_eq(catalog_vm_find(catalog, VM, &row, &err), 0);
        strcpy(row.current, snapshot);
        cr_assert_eq(catalog_vm_update(catalog, &row, &err), 0, "%s", err.message);
        vm_row_done(&row);
}

static void put_snapshot(
        char letter, const char *name, const char *parent, const char *file_a, const char *file_b)
{
        struct snapshot_row row = {.name = (char *)name,
                .created_us = letter,
                .settings = (char *)"{}",
                .state = "committed"};
        struct snapshot_disk_row held = {.kind = "vhd"};

        strcpy(row.id, id_of(letter));
        strcpy(row.vm, VM);
        strcpy(row.parent, parent);
        cr_assert_eq(catalog_snapshot_insert(catalog, &row, &err), 0, "%s", err.message);
        strcpy(held.snapshot, id_of(letter));
        for (int i = 0; i < 2; i++) {
                strcpy(held.disk, id_of((char)('a' + i)));
                held.name = (char *)(i ? "b" : "a");
                held.file = (char *)(i ? file_b : file_a);
                held.unit = i;
                cr_assert_eq(
                        catalog_snapshot_disk_insert(catalog, &held, &err), 0, "%s", err.message);
        }
}

/* A vm with one disk; the second is attached under the cuts. */
static void make_vm(void)
{
        struct vm_row row = {.id = VM, .name = (char *)"v", .settings = (char *)"{}"};
        static const char *const make[] = {"/d/a.vhd"};
        struct operation *operation = begin("attach", make, 1);

        cr_assert_eq(catalog_vm_insert(catalog, &row, &err), 0, "%s", err.message);
        put_image("/d/a.vhd", NULL);
        put_disk('a', "a", "/d/a.vhd");
        finish(operation);
}

static void attach_create(void)
{
        static const char *const make[] = {"/d/b.vhd"};
        struct operation *operation = begin("attach", make, 1);

        put_image("/d/b.vhd", NULL);
        put_disk('b', "b", "/d/b.vhd");
        finish(operation);
}

static void take(char letter, const char *name, const char *parent, const char *const old[2],
        const char *const new[2])
{
        struct operation *operation = begin("take", new, 2);

        put_snapshot(letter, name, parent, old[0], old[1]);
        for (int i = 0; i < 2; i++) {
                put_image(new[i], old[i]);
                set_leaf((char)('a' + i), new[i]);
        }
        set_current(id_of(letter));
        finish(operation);
}

static const char *const roots[2] = {"/d/a.vhd", "/d/b.vhd"};
static const char *const first[2] = {"/d/a_1.avhd", "/d/b_1.avhd"};
static const char *const second[2] = {"/d/a_2.avhd", "/d/b_2.avhd"};
static const char *const third[2] = {"/d/a_3.avhd", "/d/b_3.avhd"};
static const char *const fourth[2] = {"/d/a_4.avhd", "/d/b_4.avhd"};

static void take_first(void)
{
        take('1', "s1", "", roots, first);
}

static void rename_first(void)
{
        struct snapshot_row row;

        cr_assert_eq(catalog_snapshot_find(catalog, VM, "s1", &row, &err), 0, "%s", err.message);
        free(row.name);
        row.name = strdup("new name");
        cr_assert_eq(catalog_snapshot_update(catalog, &row, &err), 0, "%s", err.message);
        snapshot_row_done(&row);
}

/* The leaves on @old go, new ones stand on @base. */
static void apply(const char *snapshot, const char *const base[2], const char *const old[2],
        const char *const new[2])
{
        struct operation *operation = begin("apply", new, 2);

        for (int i = 0; i < 2; i++) {
                put_image(new[i], base[i]);
                set_leaf((char)('a' + i), new[i]);
                drop_image(operation, old[i]);
        }
        set_current(snapshot);
        finish(operation);
}

static void apply_first(void)
{
        apply(id_of('1'), roots, first, second);
}

static void take_second(void)
{
        take('2', "s2", id_of('1'), second, third);
}

static void revert(void)
{
        apply(id_of('2'), second, third, fourth);
}

/* Back to the first, so that nothing stands on the second any more. */
static void apply_first_again(void)
{
        apply(id_of('1'), roots, fourth, third);
}

static void delete_second(void)
{
        struct operation *operation = begin("delete", NULL, 0);

        cr_assert_eq(catalog_snapshot_delete(catalog, id_of('2'), &err), 0, "%s", err.message);
        for (int i = 0; i < 2; i++)
                drop_image(operation, second[i]);
        finish(operation);
}

static void detach(void)
{
        struct image_row row;

        cr_assert_eq(catalog_begin(catalog, &err), 0);
        cr_assert_eq(catalog_disk_delete(catalog, id_of('b'), &err), 0);
        cr_assert_eq(catalog_image_find(catalog, third[1], &row, &err), 0);
        strcpy(row.state, "detached");
        cr_assert_eq(catalog_image_update(catalog, &row, &err), 0);
        image_row_done(&row);
        cr_assert_eq(catalog_commit(catalog, &err), 0, "%s", err.message);
}

static const struct {
        const char *name;
        void (*run)(void);
} sequences[] = {
        {"attach", attach_create},
        {"take", take_first},
        {"rename", rename_first},
        {"apply", apply_first},
        {"take on a branch", take_second},
        {"revert", revert},
        {"apply across", apply_first_again},
        {"delete", delete_second},
        {"detach", detach},
};
#define N_SEQUENCES (sizeof(sequences) / sizeof(sequences[0]))

/* ---- judging ---- */

static void bad(const char *sequence, const char *why, const char *what)
{
        if (n_bad++ == 0)
                snprintf(first_bad, sizeof(first_bad), "%s: %s: %s", sequence, why, what);
}

struct look {
        struct catalog *catalog;
        const char *sequence;
};

static void look_at_file(void *opaque, const char *path, uint64_t size)
{
        struct look *look = opaque;
        bool named = false;

        if (strncmp(path, "/d/", 3) != 0)
                return;
        cr_assert_eq(catalog_names_path(look->catalog, path, &named, &err), 0);
        if (!named)
                bad(look->sequence, "a file that nobody names", path);
}

static void check_images(struct look *look, struct sim_fs *fs)
{
        struct image_row *images;
        size_t n;

        cr_assert_eq(catalog_image_list(look->catalog, NULL, &images, &n, &err), 0);
        for (size_t i = 0; i < n; i++) {
                uint8_t data[IMAGE_SIZE] = {0};

                if (!sim_world_has(fs->world, images[i].path)) {
                        bad(look->sequence, "a file that a row names is gone", images[i].path);
                        continue;
                }
                sim_world_read(fs->world, images[i].path, data, sizeof(data), 0);
                if (data[0] != 'i' || data[IMAGE_SIZE - 1] != 'i')
                        bad(look->sequence, "an image is not whole", images[i].path);
        }
        image_rows_free(images, n);
}

/* The next start over @state (taken over): a clone of what it left goes to *ret_half if it was cut
 * once more, in its middle (@half: after so many changes). */
static unsigned n_changes, cut_at;
static struct sim_world *half_way;

static void count_change(struct sim_fs *fs, enum sim_call call)
{
        (void)call;
        if (++n_changes == cut_at)
                half_way = sim_fs_snapshot(fs);
}

static void start_over(struct sim_world *state, const char *sequence, const struct dump *before,
        const struct dump *after)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(state);
        struct look look = {.sequence = sequence};
        struct journal_report report;
        struct dump now;

        n_states++;
        n_changes = 0;
        fs->on_change = count_change;
        simvfs_use(&fs->fs);
        if (catalog_open_on(&fs->fs, SIMVFS_NAME, CATALOG, &look.catalog, &err) < 0) {
                bad(sequence, "the catalog does not open", err.message);
                return;
        }
        if (journal_recover(look.catalog, &fs->fs, NULL, &report, &err) < 0)
                bad(sequence, "the journal cannot be read", err.message);
        else if (report.n_left)
                bad(sequence, "an operation is left", report.first.message);
        fs->on_change = NULL;
        dump_catalog(look.catalog, &now);
        if (strcmp(now.text, before->text) != 0 && strcmp(now.text, after->text) != 0)
                bad(sequence, "neither before nor after", now.text);
        check_images(&look, fs);
        sim_world_each(fs->world, look_at_file, &look);
        catalog_close(look.catalog);
}

/* And a start that is itself cut off: what the next one finds then. */
static void start_twice(struct sim_world *state, struct random *random, const char *sequence,
        const struct dump *before, const struct dump *after)
{
        cut_at = 1 + (unsigned)random_below(random, 24);
        start_over(state, sequence, before, after);
        cut_at = 0;
        if (half_way) {
                _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(half_way);

                start_over(sim_cut_sample(cut, random), sequence, before, after);
        }
        half_way = sim_world_free(half_way);
}

/* ---- a disk that leaves out the sync of the images' directory ---- */

static struct fs_ops lying_ops;
static const struct fs_ops *true_ops;

static int lying_sync_directory(struct fs *fs, const char *path)
{
        return strncmp(path, "/d/", 3) == 0 ? 0 : true_ops->sync_directory(fs, path);
}

static void lie(struct sim_fs *fs)
{
        true_ops = fs->fs.ops;
        lying_ops = *true_ops;
        lying_ops.sync_directory = lying_sync_directory;
        fs->fs.ops = &lying_ops;
}

/* ---- running ---- */

static struct sim_world *worlds[MAX_WORLDS];
static size_t n_worlds;

static void keep_world(struct sim_fs *fs, enum sim_call call)
{
        (void)call;
        cr_assert(n_worlds < MAX_WORLDS);
        worlds[n_worlds++] = sim_fs_snapshot(fs);
}

static void judge(
        unsigned samples, const char *sequence, const struct dump *before, const struct dump *after)
{
        struct random random = {n_worlds};

        for (size_t i = 0; i < n_worlds; i++) {
                _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(worlds[i]);
                uint64_t n = sim_cut_n_states(cut);

                /* A death leaves what was not yet durable for the next start to see, and a cut may
                 * take it away after that start has acted on it. */
                for (unsigned k = 0; k < 1 + samples / 4; k++)
                        start_twice(sim_world_clone(worlds[i]), &random, sequence, before, after);
                start_over(sim_world_cut(worlds[i], false), sequence, before, after);
                for (uint64_t k = 0; k < MIN_OF(n, (uint64_t)samples); k++)
                        start_twice(
                                n <= samples ? sim_cut_state(cut, k) : sim_cut_sample(cut, &random),
                                &random, sequence, before, after);
                worlds[i] = sim_world_free(worlds[i]);
        }
        n_worlds = 0;
        simvfs_use(&disk->fs);
}

/* @n sequences under the cuts, @samples states for each step. */
static void run(size_t n, unsigned samples)
{
        struct dump before, after;

        n_states = n_bad = 0;
        first_bad[0] = '\0';
        disk = sim_fs_new(sim_world_new());
        simvfs_use(&disk->fs);
        cr_assert_eq(catalog_open_on(&disk->fs, SIMVFS_NAME, CATALOG, &catalog, &err), 0, "%s",
                err.message);
        make_vm();
        dump_catalog(catalog, &after);
        for (size_t i = 0; i < n; i++) {
                before = after;
                disk->on_change = keep_world;
                if (left_out == NAME_SYNC && disk->fs.ops != &lying_ops)
                        lie(disk);
                sequences[i].run();
                disk->on_change = NULL;
                dump_catalog(catalog, &after);
                cr_expect_str_neq(before.text, after.text);
                judge(samples, sequences[i].name, &before, &after);
                /* What was answered is durable: from here on nothing leads back. */
                start_over(sim_world_cut(disk->world, false), sequences[i].name, &after, &after);
                simvfs_use(&disk->fs);
        }
        catalog = catalog_close(catalog);
        disk = sim_fs_free(disk);
}

TestSuite(catalog_cut, .timeout = 900);

Test(catalog_cut, leaves_the_state_before_or_the_state_after_and_no_file_unnamed)
{
        run(N_SEQUENCES, SAMPLES);
        cr_expect_eq(n_bad, 0, "%llu of %llu states are wrong: %s", (unsigned long long)n_bad,
                (unsigned long long)n_states, first_bad);
        cr_expect(n_states > 300 * SAMPLES, "%llu states", (unsigned long long)n_states);
        cr_log_info("%llu states", (unsigned long long)n_states);
}

/* A cut while the catalog is made: the next start makes it, whatever was there. */
Test(catalog_cut, leaves_a_catalog_that_opens_or_none)
{
        disk = sim_fs_new(sim_world_new());
        simvfs_use(&disk->fs);
        disk->on_change = keep_world;
        cr_assert_eq(catalog_open_on(&disk->fs, SIMVFS_NAME, CATALOG, &catalog, &err), 0);
        disk->on_change = NULL;
        cr_expect(n_worlds > 10);
        for (size_t i = 0; i < n_worlds; i++) {
                _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(worlds[i]);
                struct random random = {i};

                for (unsigned k = 0; k < 40; k++) {
                        _cleanup_(sim_fs_freep) struct sim_fs *fs =
                                sim_fs_new(sim_cut_sample(cut, &random));
                        struct catalog *again = NULL;
                        struct vm_row row = {
                                .id = VM, .name = (char *)"v", .settings = (char *)"{}"};

                        simvfs_use(&fs->fs);
                        cr_assert_eq(catalog_open_on(&fs->fs, SIMVFS_NAME, CATALOG, &again, &err),
                                0, "%s", err.message);
                        cr_assert_eq(catalog_vm_insert(again, &row, &err), 0, "%s", err.message);
                        catalog_close(again);
                }
                worlds[i] = sim_world_free(worlds[i]);
        }
        simvfs_use(&disk->fs);
        catalog = catalog_close(catalog);
        disk = sim_fs_free(disk);
}

static uint64_t run_without(int what, size_t n)
{
        left_out = what;
        run(n, 12);
        return n_bad;
}

Test(catalog_cut, notices_a_directory_that_was_not_synced)
{
        cr_expect_gt(run_without(NAME_SYNC, 2), 0);
}

Test(catalog_cut, notices_a_file_that_was_made_before_the_journal_named_it)
{
        cr_expect_gt(run_without(JOURNAL_AHEAD, 1), 0);
}

Test(catalog_cut, notices_a_file_that_went_before_its_row)
{
        cr_expect_gt(run_without(COMMIT_AHEAD, 4), 0);
}

static int insert_vm(void)
{
        struct vm_row row = {.id = VM, .name = (char *)"v", .settings = (char *)"{}"};

        return catalog_vm_insert(catalog, &row, &err);
}

static void open_over_a_new_disk(void)
{
        disk = sim_fs_new(sim_world_new());
        simvfs_use(&disk->fs);
        cr_assert_eq(catalog_open_on(&disk->fs, SIMVFS_NAME, CATALOG, &catalog, &err), 0);
}

static void close_all(void)
{
        catalog = catalog_close(catalog);
        disk = sim_fs_free(disk);
}

/* Linux tells of a lost writeback once; who goes on after it builds on what may be gone. */
Test(catalog_cut, answers_nothing_after_a_sync_that_failed_until_it_is_opened_again)
{
        const struct sim_fault fault = {
                .call = SIM_SYNC, .failure = SIM_LOSE, .error = EIO, .path = CATALOG "-wal"};
        struct vm_row *rows;
        size_t n;

        open_over_a_new_disk();
        sim_fs_arm(disk, &fault);
        cr_assert_eq(insert_vm(), -EIO);
        cr_expect(disk->fault_hit);
        cr_expect(catalog_has_failed(catalog));
        cr_assert_eq(catalog_vm_list(catalog, &rows, &n, &err), -EIO);
        cr_expect(strstr(err.message, "a sync failed") != NULL, "%s", err.message);
        cr_assert_eq(catalog_begin(catalog, &err), -EIO);
        catalog = catalog_close(catalog);
        cr_assert_eq(catalog_open_on(&disk->fs, SIMVFS_NAME, CATALOG, &catalog, &err), 0);
        cr_assert_eq(catalog_vm_list(catalog, &rows, &n, &err), 0, "%s", err.message);
        vm_rows_free(rows, n);
        close_all();
}

Test(catalog_cut, changes_nothing_on_a_full_disk_and_goes_on_when_there_is_space)
{
        struct vm_row *rows;
        size_t n;

        open_over_a_new_disk();
        disk->space = 1;
        cr_assert_eq(insert_vm(), -ENOSPC, "%s", err.message);
        cr_expect(strstr(err.message, "no space is left") != NULL, "%s", err.message);
        cr_assert_eq(catalog_vm_list(catalog, &rows, &n, &err), 0, "%s", err.message);
        cr_expect_eq(n, 0);
        vm_rows_free(rows, n);
        disk->space = 0;
        cr_assert_eq(insert_vm(), 0, "%s", err.message);
        close_all();
}
