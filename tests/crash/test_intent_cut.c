/* SPDX-License-Identifier: Apache-2.0 */
/* A power cut in the middle of a change of two images (rule E13): whatever of it reached the disk,
 * the openers find both old or both new, in whichever order they open them; and a cut in the middle
 * of their completing it changes nothing of that. Each step's sync taken out must be noticed. */
#include <criterion/criterion.h>
#include <string.h>

#include "formats/intent.h"
#include "tests/crash/simdisk.h"

#define A           "/d/a.vhd"
#define B           "/d/b.vhd"
#define SECTORS     4u /* of each, before */
#define NEW_LENGTH  6u /* of A, after: the intent makes it grow */
#define MAX_STATES  600u
#define VOID_LENGTH 8u /* of the write that makes an intent that cannot be removed say nothing */

/* What the lying disk leaves out. */
enum lie {
        TRUTH,
        NO_COPY_SYNC,  /* the intents' own bytes */
        NO_COPY_NAMES, /* their directory, when they come */
        NO_IMAGE_SYNC, /* the images, before the intents go */
        EARLY_REMOVE,  /* the intents go before the images are written */
        ONE_COPY,      /* none beside the child */
        NO_VOID,       /* what says that an intent counts no more */
};

static enum lie lie;
static bool lying; /* only the first run lies, not the openers after the cut */
static struct file_ops lying_file_ops;
static struct fs_ops lying_fs_ops;
static const struct fs_ops *true_fs_ops;
static const struct file_ops *true_file_ops;

static uint64_t n_states, n_bad;
static bool alone; /* the change is one of A */

static bool is_copy(const char *path)
{
        return strstr(path, INTENT_ENDING) != NULL;
}

static int lying_sync(struct file *file)
{
        if (lying && lie == NO_COPY_SYNC && is_copy(file->path))
                return 0;
        if (lying && lie == NO_IMAGE_SYNC && !is_copy(file->path))
                return 0;
        return true_file_ops->sync(file);
}

static ssize_t lying_writev(
        struct file *file, const struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        if (lying && lie == NO_VOID && is_copy(file->path) && iov[0].iov_len == VOID_LENGTH)
                return VOID_LENGTH;
        return true_file_ops->writev(file, iov, n, offset, flags);
}

static int lying_open(
        struct fs *fs, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        int r = true_fs_ops->open(fs, path, flags, mode, ret);

        if (r == 0) {
                true_file_ops = (*ret)->ops;
                lying_file_ops = *true_file_ops;
                lying_file_ops.sync = lying_sync;
                lying_file_ops.writev = lying_writev;
                (*ret)->ops = &lying_file_ops;
        }
        return r;
}

static int lying_sync_directory(struct fs *fs, const char *path)
{
        if (lying && lie == NO_COPY_NAMES)
                return 0;
        return true_fs_ops->sync_directory(fs, path);
}

static struct sim_fs *fs_over(struct sim_world *world)
{
        struct sim_fs *fs = sim_fs_new(world);

        true_fs_ops = fs->fs.ops;
        lying_fs_ops = *true_fs_ops;
        lying_fs_ops.open = lying_open;
        lying_fs_ops.sync_directory = lying_sync_directory;
        fs->fs.ops = &lying_fs_ops;
        return fs;
}

static struct file *open_image(struct sim_fs *fs, const char *path)
{
        struct file *file = NULL;

        cr_assert(file_open(&fs->fs, path, FILE_WRITE, &file, NULL) == 0);
        return file;
}

static struct sim_world *world_before(void)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = sim_fs_new(sim_world_new());
        static const char *const paths[] = {A, B};

        for (int i = 0; i < 2; i++) {
                _cleanup_(file_closep) struct file *file = NULL;
                uint8_t bytes[SECTORS * SIM_SECTOR];

                memset(bytes, 'o', sizeof(bytes));
                cr_assert(file_open(&fs->fs, paths[i], FILE_WRITE | FILE_CREATE, &file, NULL) == 0);
                cr_assert(file_write(file, bytes, sizeof(bytes), 0, 0) == 0);
        }
        sim_world_settle(fs->world);
        return sim_world_clone(fs->world);
}

/* A's sectors 0 and 1 and one behind its end, B's sectors 1 and 2. */
static struct intent *intent_over(struct file *a, struct file *b)
{
        struct intent *intent = intent_new();
        uint8_t bytes[2 * SIM_SECTOR];
        const uint8_t id[16] = {0};

        memset(bytes, 'n', sizeof(bytes));
        cr_assert(intent_add_image(intent, a, id, id, NULL) == 0);
        cr_assert(intent_add(intent, 0, 0, bytes, sizeof(bytes), NULL) == 0);
        cr_assert(
                intent_add(intent, 0, (NEW_LENGTH - 1) * SIM_SECTOR, bytes, SIM_SECTOR, NULL) == 0);
        if (b) {
                cr_assert(intent_add_image(intent, b, id, id, NULL) == 1);
                cr_assert(intent_add(intent, 1, SIM_SECTOR, bytes, sizeof(bytes), NULL) == 0);
        }
        return intent;
}

/* 'o' all old, 'n' all new, '?' a mixture. */
static char content(struct file *file, const unsigned *sectors, unsigned n)
{
        char found = 0;

        for (unsigned i = 0; i < n; i++) {
                uint8_t bytes[SIM_SECTOR] = {0};
                ssize_t r =
                        file_read(file, bytes, sizeof(bytes), (uint64_t)sectors[i] * SIM_SECTOR, 0);
                char letter = 'o';

                cr_assert(r >= 0);
                if (bytes[0] == 'n' && bytes[SIM_SECTOR - 1] == 'n')
                        letter = 'n';
                if (found && found != letter)
                        return '?';
                found = letter;
        }
        return found;
}

static char content_a(struct file *file)
{
        static const unsigned sectors[] = {0, 1, NEW_LENGTH - 1};

        return content(file, sectors, 3);
}

static char content_b(struct file *file)
{
        static const unsigned sectors[] = {1, 2};

        return content(file, sectors, 2);
}

static void bad(void)
{
        n_bad++;
}

/* Openers for writing, in the given order; then both are old or both new, and nothing is left. */
static void check_writers(const struct sim_world *state, bool b_first,
        void (*on_change)(struct sim_fs *fs, enum sim_call call))
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = fs_over(sim_world_clone(state));
        const char *const order[2] = {b_first ? B : A, b_first ? A : B};
        char a = 0, b = 0;

        fs->on_change = on_change;
        for (int i = 0; i < 2; i++) {
                struct file *file = open_image(fs, order[i]), *view = NULL;

                if (intent_recover(file, true, NULL, &view, NULL) < 0 || view)
                        bad();
                /* Alone, too, no opener finds a mixture. */
                if ((strcmp(order[i], A) == 0 ? content_a(file) : content_b(file)) == '?')
                        bad();
                file_close(file);
        }
        fs->on_change = NULL;
        for (int i = 0; i < 2; i++) {
                struct file *file = open_image(fs, order[i]);

                if (strcmp(order[i], A) == 0)
                        a = content_a(file);
                else
                        b = content_b(file);
                file_close(file);
        }
        if (a == '?' || (!alone && a != b))
                bad();
        if (sim_world_has(fs->world, A INTENT_ENDING)) {
                struct file *file = open_image(fs, A);

                if (intent_look(file, NULL) != 2)
                        bad();
                file_close(file);
        }
}

static void check_readers(const struct sim_world *state)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = fs_over(sim_world_clone(state));
        uint64_t before = sim_world_hash(fs->world);
        static const char *const paths[] = {A, B};

        for (int i = 0; i < 2; i++) {
                struct file *file = open_image(fs, paths[i]), *view = NULL;
                struct file *shown;

                if (intent_recover(file, false, NULL, &view, NULL) < 0)
                        bad();
                shown = view ? view : file;
                if ((i == 0 ? content_a(shown) : content_b(shown)) == '?')
                        bad();
                file_close(shown);
        }
        cr_assert(sim_world_hash(fs->world) == before, "a reader wrote");
}

static void check_state(
        const struct sim_world *state, void (*on_change)(struct sim_fs *fs, enum sim_call call))
{
        bool was_lying = lying;

        n_states++;
        lying = false;
        check_writers(state, false, on_change);
        check_writers(state, true, on_change);
        check_readers(state);
        lying = was_lying;
}

/* Every cut of this instant, or many of them; and the death of the process. */
static void cut_here(struct sim_fs *fs, unsigned max_states,
        void (*on_change)(struct sim_fs *fs, enum sim_call call))
{
        _cleanup_(sim_world_freep) struct sim_world *world = sim_fs_snapshot(fs);
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
        uint64_t n = sim_cut_n_states(cut);
        struct random random = {n_states};

        check_state(world, on_change);
        for (uint64_t i = 0; i < (n <= max_states ? n : max_states); i++) {
                _cleanup_(sim_world_freep) struct sim_world *state =
                        n <= max_states ? sim_cut_state(cut, i) : sim_cut_sample(cut, &random);

                check_state(state, on_change);
        }
}

static void cut_again(struct sim_fs *fs, enum sim_call call)
{
        fs->on_change = NULL;
        cut_here(fs, 4, NULL);
        fs->on_change = cut_again;
}

static void cut_once(struct sim_fs *fs, enum sim_call call)
{
        fs->on_change = NULL;
        cut_here(fs, MAX_STATES, n_states % 7 == 0 ? cut_again : NULL);
        fs->on_change = cut_once;
}

/* The change, with a cut at every instant of it. Answers how many states were wrong. */
static uint64_t run(enum lie which)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = fs_over(world_before());
        struct file *a = open_image(fs, A), *b = open_image(fs, B);
        struct intent *intent = intent_over(a, b);

        lie = which;
        lying = true;
        n_bad = n_states = 0;
        fs->on_change = cut_once;
        if (which == EARLY_REMOVE) {
                cr_assert(intent_write(intent, NULL) == 0);
                cr_assert(intent_remove(intent, NULL) == 0);
                cr_assert(intent_apply(intent, NULL) == 0);
        } else if (which == ONE_COPY) {
                cr_assert(intent_write(intent, NULL) == 0);
                cr_assert(fs_unlink(&fs->fs, B INTENT_ENDING) == 0);
                cr_assert(intent_apply(intent, NULL) == 0);
        } else {
                cr_assert(intent_run(intent, NULL) == 0);
        }
        fs->on_change = NULL;
        lying = false;
        cut_here(fs, MAX_STATES, NULL);
        cr_expect(content_a(a) == 'n' && content_b(b) == 'n');
        intent_free(intent);
        file_close(a);
        file_close(b);
        return n_bad;
}

TestSuite(intent_cut, .timeout = 600);

Test(intent_cut, every_cut_leaves_both_old_or_both_new)
{
        cr_expect(run(TRUTH) == 0, "%llu states are wrong", (unsigned long long)n_bad);
        cr_expect(n_states > 200, "%llu states", (unsigned long long)n_states);
}

Test(intent_cut, notices_intents_that_are_not_synced)
{
        cr_expect(run(NO_COPY_SYNC) > 0);
}

Test(intent_cut, notices_names_that_are_not_synced)
{
        cr_expect(run(NO_COPY_NAMES) > 0);
}

Test(intent_cut, notices_images_that_are_not_synced)
{
        cr_expect(run(NO_IMAGE_SYNC) > 0);
}

Test(intent_cut, notices_intents_that_go_too_early)
{
        cr_expect(run(EARLY_REMOVE) > 0);
}

Test(intent_cut, notices_a_child_without_its_copy)
{
        cr_expect(run(ONE_COPY) > 0);
}

/* The change, whose call number @at of the kind fails. Was there such a call? */
static bool run_failing(enum sim_call kind, enum sim_failure failure, unsigned at)
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = fs_over(world_before());
        struct file *a = open_image(fs, A), *b = open_image(fs, B);
        struct intent *intent = intent_over(a, alone ? NULL : b);
        struct sim_fault fault = {.call = kind, .failure = failure, .error = EIO, .at = at};
        struct error err = ERROR_INIT;
        bool hit;
        int r;

        sim_fs_arm(fs, &fault);
        r = intent_run(intent, &err);
        hit = fs->fault_hit;
        fs->fault_armed = false;
        /* Names that cannot be removed: what stands under them was made to say nothing. */
        cr_expect(hit || r == 0);
        cr_expect(!hit || r < 0 || kind == SIM_UNLINK || kind == SIM_SYNC_DIRECTORY);
        cr_expect(r == 0 || err.message[0]);
        cr_expect(r < 0 || !intent_is_left(intent));
        cut_here(fs, 200, failure == SIM_LOSE ? cut_again : NULL);
        intent_free(intent);
        file_close(a);
        file_close(b);
        return hit;
}

/* A write or sync that fails: the sentence comes, and the openers after it still find both old or
 * both new. */
Test(intent_cut, survives_errors_at_every_call)
{
        static const enum sim_call kinds[] = {
                SIM_OPEN, SIM_WRITE, SIM_SYNC, SIM_UNLINK, SIM_SYNC_DIRECTORY, SIM_READ};

        lying = false;
        n_bad = 0;
        for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++)
                for (unsigned at = 0; run_failing(kinds[k], SIM_FAIL, at); at++)
                        ;
        cr_expect(n_bad == 0, "%llu states are wrong", (unsigned long long)n_bad);
}

/* Linux tells of a lost writeback once: what a sync lost, of an image or of an intent beside it, is not
 * there although the next one succeeds. */
Test(intent_cut, survives_a_sync_that_loses_what_it_was_for)
{
        lying = false;
        n_bad = 0;
        for (unsigned i = 0; i < 2; i++) {
                alone = i == 1;
                for (unsigned at = 0; run_failing(SIM_SYNC, SIM_LOSE, at); at++)
                        ;
        }
        alone = false;
        cr_expect(n_bad == 0, "%llu states are wrong", (unsigned long long)n_bad);
}

/* Somebody else's bytes, in the middle of what the intent was about: the sectors of a footer that moves on. */
static void write_later(struct file *file)
{
        uint8_t bytes[SIM_SECTOR];

        memset(bytes, 'l', sizeof(bytes));
        cr_assert(file_write(file, bytes, sizeof(bytes), SIM_SECTOR, 0) == 0);
        cr_assert(file_sync(file) == 0);
}

static void check_later(const struct sim_world *state)
{
        for (int i = 0; i < 2; i++) {
                _cleanup_(sim_fs_freep) struct sim_fs *fs = fs_over(sim_world_clone(state));
                struct file *file = open_image(fs, i == 0 ? A : B), *view = NULL;
                struct error err = ERROR_INIT;
                uint8_t byte = 0;

                if (intent_recover(file, true, NULL, &view, &err) < 0 ||
                        file_read(file, &byte, 1, SIM_SECTOR, 0) != 1 || byte != 'l')
                        bad();
                intent_tidy(file);
                if (sim_world_has(fs->world, i == 0 ? A INTENT_ENDING : B INTENT_ENDING))
                        bad();
                file_close(file);
        }
}

/* What the next process sees is the page cache of the one that died here; the power goes after it changed the
 * images. */
static void die_here(struct sim_fs *fs, enum sim_call call)
{
        _cleanup_(sim_fs_freep) struct sim_fs *next = fs_over(sim_fs_snapshot(fs));
        struct random random = {n_states++};
        bool was_lying = lying;

        lying = false;
        for (int i = 0; i < 2; i++) {
                struct file *file = open_image(next, i == 0 ? A : B), *view = NULL;

                if (intent_recover(file, true, NULL, &view, NULL) < 0)
                        bad();
                write_later(file);
                file_close(file);
        }
        for (unsigned i = 0; i < 20; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world = sim_fs_snapshot(next);
                _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
                _cleanup_(sim_world_freep) struct sim_world *state = sim_cut_sample(cut, &random);

                check_later(state);
        }
        lying = was_lying;
}

/* Nothing can be removed: the intent is cut at every instant as any other, and once it is over both images
 * are changed by others, who are not stopped by it. */
static uint64_t run_unremovable(
        enum lie which, void (*on_change)(struct sim_fs *fs, enum sim_call call))
{
        _cleanup_(sim_fs_freep) struct sim_fs *fs = fs_over(world_before());
        struct file *a = open_image(fs, A), *b = open_image(fs, B);
        struct intent *intent = intent_over(a, b);
        struct sim_fault fault = {.call = SIM_UNLINK, .error = EHOSTDOWN, .forever = true};
        struct random random = {1};

        lie = which;
        lying = true;
        n_bad = n_states = 0;
        sim_fs_arm(fs, &fault);
        fs->on_change = on_change;
        cr_expect(intent_run(intent, NULL) == 0);
        cr_expect(!intent_is_left(intent));
        fs->on_change = NULL;
        lying = false;
        cr_expect(sim_world_has(fs->world, A INTENT_ENDING), "it was removed all the same");
        write_later(a);
        write_later(b);
        for (unsigned i = 0; i < 50; i++) {
                _cleanup_(sim_world_freep) struct sim_world *world = sim_fs_snapshot(fs);
                _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
                _cleanup_(sim_world_freep) struct sim_world *state = sim_cut_sample(cut, &random);

                check_later(i == 0 ? world : state);
        }
        intent_free(intent);
        file_close(a);
        file_close(b);
        return n_bad;
}

Test(intent_cut, what_cannot_be_removed_says_nothing_any_more)
{
        cr_expect(run_unremovable(TRUTH, cut_once) == 0, "%llu states are wrong",
                (unsigned long long)n_bad);
        cr_expect(n_states > 200, "%llu states", (unsigned long long)n_states);
}

Test(intent_cut, what_a_dead_process_could_not_remove_does_not_come_back)
{
        cr_expect(run_unremovable(TRUTH, die_here) == 0, "%llu states are wrong",
                (unsigned long long)n_bad);
        cr_expect(n_states > 10, "%llu instants", (unsigned long long)n_states);
}

Test(intent_cut, notices_one_that_cannot_be_removed_and_counts)
{
        cr_expect(run_unremovable(NO_VOID, cut_once) > 0);
}
