/* SPDX-License-Identifier: Apache-2.0 */
/* An intent lies in a folder that others may write to, and says "write these bytes into those files".
 * It must be obeyed when it is ours, and do nothing when it is not. What a power cut leaves of one is
 * tests/crash/test_intent_cut.c's part. */
#include "tests/unit/vhd_make.h"

#include <stdio.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "formats/format.h"
#include "formats/intent.h"
#include "formats/intent_internal.h"

static char directory[64];
static char a_path[128], b_path[128], copy_path[128];

static void write_bytes(const char *path, const void *bytes, size_t size)
{
        _cleanup_(file_closep) struct file *file = NULL;

        cr_assert(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, &file,
                          NULL) == 0);
        cr_assert(file_write(file, bytes, size, 0, 0) == 0);
}

static size_t read_bytes(const char *path, void *bytes, size_t size)
{
        _cleanup_(file_closep) struct file *file = NULL;

        cr_assert(file_open(host_fs(), path, 0, &file, NULL) == 0);
        return (size_t)file_read(file, bytes, size, 0, 0);
}

static void make_directory(void)
{
        char old[2048];

        memset(old, 'o', sizeof(old));
        strcpy(directory, "/tmp/vhdd-intent-XXXXXX");
        cr_assert(mkdtemp(directory) != NULL);
        snprintf(a_path, sizeof(a_path), "%s/a.vhd", directory);
        snprintf(b_path, sizeof(b_path), "%s/b.vhd", directory);
        snprintf(copy_path, sizeof(copy_path), "%s/a.vhd" INTENT_ENDING, directory);
        write_bytes(a_path, old, sizeof(old));
        write_bytes(b_path, old, sizeof(old));
}

static void remove_directory(void)
{
        char command[128];

        snprintf(command, sizeof(command), "rm -rf %s", directory);
        cr_assert(system(command) == 0);
}

TestSuite(intent, .init = make_directory, .fini = remove_directory, .timeout = 20);

static struct file *open_path(const char *path)
{
        struct file *file = NULL;

        cr_assert(file_open(host_fs(), path, FILE_WRITE, &file, NULL) == 0);
        return file;
}

static bool exists(const char *path)
{
        return access(path, F_OK) == 0;
}

/* 'n' over sectors 1 and 2 of A, and of B if it takes part. */
static struct intent *new_intent(struct file *a, struct file *b)
{
        struct intent *intent = intent_new();
        const uint8_t id[16] = {0};
        char bytes[1024];

        memset(bytes, 'n', sizeof(bytes));
        cr_assert(intent_add_image(intent, a, id, id, NULL) == 0);
        cr_assert(intent_add(intent, 0, 512, bytes, sizeof(bytes), NULL) == 0);
        if (b) {
                cr_assert(intent_add_image(intent, b, id, id, NULL) == 1);
                cr_assert(intent_add(intent, 1, 512, bytes, sizeof(bytes), NULL) == 0);
        }
        return intent;
}

/* Leaves the intent's copies behind, as a process that died after writing them. */
static void leave_intent(bool with_b)
{
        _cleanup_(file_closep) struct file *a = open_path(a_path);
        _cleanup_(file_closep) struct file *b = with_b ? open_path(b_path) : NULL;
        _cleanup_(intent_freep) struct intent *intent = new_intent(a, b);
        struct error err = ERROR_INIT;

        cr_assert(intent_write(intent, &err) == 0, "%s", err.message);
}

static char letter_at(const char *path, size_t offset)
{
        char bytes[4096] = {0};

        cr_assert(read_bytes(path, bytes, sizeof(bytes)) > offset);
        return bytes[offset];
}

static int recover(const char *path, bool writable, struct file **view, struct error *err)
{
        struct file *file = open_path(path), *shown = NULL;
        int r = intent_recover(file, writable, NULL, &shown, err);

        if (view && shown)
                *view = shown;
        else
                file_close(shown ? shown : file);
        return r;
}

Test(intent, run_changes_the_images_and_leaves_nothing)
{
        _cleanup_(file_closep) struct file *a = open_path(a_path), *b = open_path(b_path);
        _cleanup_(intent_freep) struct intent *intent = new_intent(a, b);

        cr_assert(intent_run(intent, NULL) == 0);
        cr_expect(letter_at(a_path, 511) == 'o' && letter_at(a_path, 512) == 'n');
        cr_expect(letter_at(b_path, 1535) == 'n' && letter_at(b_path, 1536) == 'o');
        cr_expect(!exists(copy_path));
}

Test(intent, an_opener_completes_all_images)
{
        struct error err = ERROR_INIT;

        leave_intent(true);
        cr_assert(recover(b_path, true, NULL, &err) == 0, "%s", err.message);
        cr_expect(letter_at(a_path, 512) == 'n');
        cr_expect(letter_at(b_path, 512) == 'n');
        cr_expect(!exists(copy_path));
}

/* Half of it is written already: sector 1 new, sector 2 old. */
Test(intent, completes_what_was_half_done)
{
        char bytes[2048];

        leave_intent(false);
        memset(bytes, 'o', sizeof(bytes));
        memset(bytes + 512, 'n', 512);
        write_bytes(a_path, bytes, sizeof(bytes));
        cr_assert(recover(a_path, true, NULL, NULL) == 0);
        cr_expect(letter_at(a_path, 1024) == 'n');
        cr_expect(!exists(copy_path));
}

Test(intent, a_reader_sees_it_done_and_writes_nothing)
{
        struct file *view = NULL;
        char bytes[2048], shown[2048];
        struct file_stat st;

        leave_intent(false);
        cr_assert(recover(a_path, false, &view, NULL) == 0);
        cr_assert(view != NULL);
        cr_assert(file_read(view, shown, sizeof(shown), 0, 0) == 2048);
        cr_expect(shown[511] == 'o' && shown[512] == 'n' && shown[1535] == 'n');
        cr_expect(shown[1536] == 'o');
        cr_assert(file_read(view, shown, 700, 700, 0) == 700);
        cr_expect(shown[0] == 'n' && shown[699] == 'n');
        cr_expect(file_write(view, shown, 1, 0, 0) == -EROFS);
        cr_expect(file_stat_get(view, &st) == 0 && st.size == 2048);
        file_close(view);
        cr_expect(read_bytes(a_path, bytes, sizeof(bytes)) == 2048);
        cr_expect(bytes[512] == 'o');
        cr_expect(exists(copy_path));
}

/* The intent makes the file longer; what is between reads as zeros. */
Test(intent, a_view_may_be_longer_than_the_file)
{
        _cleanup_(intent_freep) struct intent *intent = intent_new();
        struct file *a = open_path(a_path), *view = NULL;
        const uint8_t id[16] = {0};
        char shown[8192];

        cr_assert(intent_add_image(intent, a, id, id, NULL) == 0);
        cr_assert(intent_add(intent, 0, 4096, "footer", 6, NULL) == 0);
        cr_assert(intent_write(intent, NULL) == 0);
        cr_assert(recover(a_path, false, &view, NULL) == 0);
        memset(shown, 'x', sizeof(shown));
        cr_assert(file_read(view, shown, sizeof(shown), 0, 0) == 4102);
        cr_expect(shown[2047] == 'o' && shown[2048] == 0 && shown[4095] == 0);
        cr_expect(memcmp(shown + 4096, "footer", 6) == 0);
        cr_expect(file_read(view, shown, 10, 3000, 0) == 10);
        cr_expect(file_read(view, shown, 10, 5000, 0) == 0);
        file_close(view);
        cr_assert(intent_apply(intent, NULL) == 0);
        cr_assert(file_read(a, shown, sizeof(shown), 0, 0) == 4102);
        cr_expect(memcmp(shown + 4096, "footer", 6) == 0);
        file_close(a);
}

/* Somebody changed the image since: completing would undo that. */
Test(intent, refuses_sectors_that_are_neither_old_nor_new)
{
        char bytes[2048];
        struct error err = ERROR_INIT;
        struct file *view = NULL;

        leave_intent(true);
        memset(bytes, 'o', sizeof(bytes));
        bytes[1030] = 'x';
        write_bytes(b_path, bytes, sizeof(bytes));
        cr_assert(recover(a_path, true, NULL, &err) == -EUCLEAN);
        cr_expect(strstr(err.message, "offset 1024") && strstr(err.message, "b.vhd"), "%s",
                err.message);
        cr_expect(strstr(err.hint, "remove") != NULL);
        cr_expect(letter_at(a_path, 512) == 'o', "nothing was written");
        cr_assert(recover(b_path, false, &view, NULL) == 0);
        cr_expect(view == NULL, "shown as it is");
}

/* Every length that a power cut can leave of the copy, and every byte of it changed. */
Test(intent, ignores_one_that_is_not_whole)
{
        uint8_t bytes[8192], broken[8192];
        size_t size;

        leave_intent(false);
        size = read_bytes(copy_path, bytes, sizeof(bytes));
        cr_assert(size > 2048);
        for (size_t i = 0; i < size; i += i < 100 || i > size - 20 ? 1 : 61) {
                struct file *a = open_path(a_path);

                write_bytes(copy_path, bytes, i);
                cr_assert(recover(a_path, true, NULL, NULL) == 0);
                cr_assert(letter_at(a_path, 512) == 'o', "cut at %zu", i);
                cr_expect(intent_look(a, NULL) == (i == 0 ? 0 : 2));
                memcpy(broken, bytes, size);
                broken[i] ^= 0x20;
                write_bytes(copy_path, broken, size);
                cr_assert(recover(a_path, true, NULL, NULL) == 0);
                cr_assert(letter_at(a_path, 512) == 'o', "changed at %zu", i);
                file_close(a);
        }
        write_bytes(copy_path, bytes, size);
        cr_assert(recover(a_path, true, NULL, NULL) == 0);
        cr_expect(letter_at(a_path, 512) == 'n');
}

/* The first bytes of what an intent is to write. */
static void write_new(struct file *file, size_t length)
{
        char bytes[1024];

        memset(bytes, 'n', sizeof(bytes));
        cr_assert(file_write(file, bytes, length, 512, 0) == 0);
}

/* Whoever had the images open could not go on (a daemon's worker without its broker): what was not begun to
 * be written, or was written wholly, is in nobody's way. */
Test(intent, takes_the_place_of_one_that_has_nothing_more_to_say)
{
        for (int written = 0; written < 2; written++) {
                _cleanup_(file_closep) struct file *a = open_path(a_path), *b = open_path(b_path);
                _cleanup_(intent_freep) struct intent *intent = new_intent(b, a);

                leave_intent(false);
                if (written)
                        write_new(a, 1024);
                cr_expect(intent_write(intent, NULL) == 0);
                cr_expect(intent_remove(intent, NULL) == 0);
                cr_expect(!exists(copy_path));
        }
}

/* Two changes at a time would each take the other's bytes for damage. */
Test(intent, refuses_to_begin_over_another)
{
        _cleanup_(file_closep) struct file *a = open_path(a_path), *b = open_path(b_path);
        _cleanup_(intent_freep) struct intent *intent = new_intent(b, a);
        struct error err = ERROR_INIT;
        char name[160];

        leave_intent(false);
        write_new(a, 512);
        cr_expect(intent_write(intent, &err) == -EBUSY);
        cr_expect(strstr(err.message, "not complete") != NULL, "%s", err.message);
        cr_expect(exists(copy_path));
        snprintf(name, sizeof(name), "%s" INTENT_ENDING, b_path);
        cr_expect(!exists(name), "the copy that was written is gone again");
}

/* With a right sum, as an enemy would write it. */
static void forge(uint8_t *bytes, size_t size)
{
        uint64_t sum = __builtin_bswap64(XXH3_64bits(bytes, size - 8));

        memcpy(bytes + size - 8, &sum, 8);
        write_bytes(copy_path, bytes, size);
}

/* The intent of a folder that somebody shares with us names our other files. */
Test(intent, never_follows_a_path_out_of_the_folder)
{
        static const char *const paths[] = {"/etc/xx", "../xxxx", "../../x"};
        uint8_t bytes[8192], forged[8192];
        size_t size, at = 0;

        leave_intent(true);
        size = read_bytes(copy_path, bytes, sizeof(bytes));
        for (size_t i = 0; i + 5 < size && !at; i++)
                if (memcmp(bytes + i, "b.vhd", 5) == 0)
                        at = i;
        cr_assert(at > 0);
        for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
                struct error err = ERROR_INIT;
                uint16_t length = __builtin_bswap16((uint16_t)strlen(paths[i]));
                size_t shift = strlen(paths[i]);

                memcpy(forged, bytes, at);
                memcpy(forged + at - 2, &length, 2);
                memcpy(forged + at, paths[i], shift);
                memcpy(forged + at + shift, bytes + at + 5, size - at - 5);
                forge(forged, size + shift - 5);
                cr_expect(recover(a_path, true, NULL, &err) < 0, "%s", paths[i]);
                cr_expect(letter_at(a_path, 512) == 'o');
        }
        {
                struct error err = ERROR_INIT;

                /* A link in the folder. */
                cr_assert(rename(b_path, "/tmp/vhdd-intent-outside") == 0);
                cr_assert(symlink("/tmp/vhdd-intent-outside", b_path) == 0);
                forge(bytes, size);
                cr_expect(recover(a_path, true, NULL, &err) < 0);
                cr_expect(letter_at("/tmp/vhdd-intent-outside", 512) == 'o');
                unlink("/tmp/vhdd-intent-outside");
        }
}

/* A cut between the first copy and the second, or between the removal of the second and the first: the
 * images are all old or all new. If the one copy counted, a reader would see one image changed, and the
 * other not; and a writer that has the other open could not complete it. */
Test(intent, counts_only_when_it_lies_beside_all_of_them)
{
        struct file *view = NULL;
        struct error err = ERROR_INIT;
        char name[160];

        leave_intent(true);
        snprintf(name, sizeof(name), "%s" INTENT_ENDING, b_path);
        cr_assert(unlink(name) == 0);
        cr_assert(recover(a_path, false, &view, &err) == 0);
        cr_expect(view == NULL, "nothing of it is shown");
        cr_expect(exists(copy_path), "a reader changes nothing");
        cr_assert(recover(a_path, true, NULL, &err) == 0);
        cr_expect(letter_at(a_path, 512) == 'o');
        cr_expect(letter_at(b_path, 512) == 'o');
        cr_expect(!exists(copy_path));
}

/* Numbers that an enemy chose, under a right sum. */
Test(intent, survives_numbers_that_lie)
{
        uint8_t bytes[8192], forged[8192], old[2048];
        size_t size;

        memset(old, 'o', sizeof(old));
        leave_intent(false);
        size = read_bytes(copy_path, bytes, sizeof(bytes));
        for (size_t i = 24; i < 120; i++) {
                static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};

                for (size_t k = 0; k < sizeof(values); k++) {
                        memcpy(forged, bytes, size);
                        forged[i] = values[k];
                        forge(forged, size);
                        recover(a_path, true, NULL, NULL);
                        write_bytes(a_path, old, sizeof(old));
                }
        }
}

Test(intent, of_another_user_is_not_obeyed)
{
        struct error err = ERROR_INIT;

        leave_intent(false);
        if (geteuid() != 0)
                cr_skip_test("skipped: only root can give a file away");
        cr_assert(chown(copy_path, 12345, 12345) == 0);
        cr_expect(recover(a_path, true, NULL, &err) == -EPERM);
        cr_expect(strstr(err.message, "12345") != NULL, "%s", err.message);
        /* The image is the same user's: then it is. */
        cr_assert(chown(a_path, 12345, 12345) == 0);
        cr_expect(recover(a_path, true, NULL, &err) == 0);
        cr_expect(letter_at(a_path, 512) == 'n');
}

Test(intent, follows_a_renamed_image)
{
        char copy[160];

        leave_intent(false);
        cr_assert(rename(a_path, b_path) == 0);
        snprintf(copy, sizeof(copy), "%s" INTENT_ENDING, b_path);
        cr_assert(rename(copy_path, copy) == 0);
        cr_assert(recover(b_path, true, NULL, NULL) == 0);
        cr_expect(letter_at(b_path, 512) == 'n');
        cr_expect(!exists(copy));
}

static int open_anything(
        void *opaque, struct fs *fs, const char *path, struct file **ret, struct error *err)
{
        ++*(int *)opaque;
        return file_open(fs, path, FILE_WRITE, ret, err);
}

/* Hyper-V's layout: the parent in one folder, the child in another. */
Test(intent, reaches_other_folders_by_the_callers_opener)
{
        char sub[128], child[160];
        _cleanup_(file_closep) struct file *a = open_path(a_path), *c = NULL;
        _cleanup_(intent_freep) struct intent *intent = NULL;
        struct error err = ERROR_INIT;
        int opened = 0;
        struct intent_opener opener = {open_anything, &opened};
        struct file *view = NULL;
        char bytes[2048];

        memset(bytes, 'o', sizeof(bytes));
        snprintf(sub, sizeof(sub), "%s/Snap shots", directory);
        snprintf(child, sizeof(child), "%s/c.avhd", sub);
        cr_assert(mkdir(sub, 0755) == 0);
        write_bytes(child, bytes, sizeof(bytes));
        c = open_path(child);
        intent = new_intent(a, c);
        cr_assert(intent_write(intent, NULL) == 0);

        cr_expect(intent_recover(c, true, NULL, &view, &err) < 0);
        cr_expect(strstr(err.message, "another folder") != NULL, "%s", err.message);
        cr_expect(strstr(err.hint, "--image-root") != NULL, "%s", err.hint);
        cr_expect(exists(copy_path));
        cr_assert(intent_recover(c, true, &opener, &view, &err) == 0, "%s", err.message);
        cr_expect(opened == 1);
        cr_expect(letter_at(a_path, 512) == 'n' && letter_at(child, 512) == 'n');
        cr_expect(!exists(copy_path));
}

/* The first thing that opening an image does, also before it asks what the file is. */
Test(intent, image_open_completes_or_shows_it)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        struct vhd_raw_footer footer;
        struct image *image = NULL;
        struct error err = ERROR_INIT;
        uint8_t id[16] = {0};

        write_bytes(a_path, make.bytes, make.size);
        {
                _cleanup_(file_closep) struct file *a = open_path(a_path);
                _cleanup_(intent_freep) struct intent *intent = intent_new();

                make_get(&make, 0, &footer, sizeof(footer));
                memset(footer.unique_id, 0x99, 16);
                footer.checksum = be32_make(vhd_footer_checksum(&footer));
                cr_assert(intent_add_image(intent, a, id, id, NULL) == 0);
                cr_assert(intent_add(intent, 0, 0, &footer, 512, NULL) == 0);
                cr_assert(intent_add(intent, 0, make_tail(&make), &footer, 512, NULL) == 0);
                cr_assert(intent_write(intent, NULL) == 0);
                /* Half of it: the footers differ. */
                cr_assert(file_write(a, &footer, 512, 0, 0) == 0);
        }
        cr_assert(image_open(open_path(a_path), NULL, 0, &image, &err) == 0, "%s", err.message);
        cr_expect(image->id[0] == 0x99);
        cr_expect(image->warning[0] == '\0', "%s", image->warning);
        image_abandon(image);
        cr_expect(exists(copy_path));
        cr_assert(image_open(open_path(a_path), NULL, IMAGE_WRITABLE, &image, &err) == 0, "%s",
                err.message);
        cr_expect(image->id[0] == 0x99);
        cr_expect(image->writable);
        cr_assert(image_close(image, &err) == 0);
        cr_expect(!exists(copy_path));
}
