/* SPDX-License-Identifier: Apache-2.0 */
/* Somebody mounts a parent read-write "just to look", and its children are rubbish from then on: a
 * seal has to notice every byte of that, and nothing that is not. */
#include "chain/seal.h"

#include <time.h>

#include "formats/vhd/create.h"
#include "tests/unit/vhd_sample.h"

#define BLOCK_DATA 2560 /* of a sample without locators: bitmap at 2048 */

static struct image *open_image(struct folder *folder, const char *name, const char *format)
{
        struct file *file = NULL;
        struct image *image = NULL;
        struct error err = ERROR_INIT;

        cr_assert_eq(file_open(host_fs(), folder_path(folder, "%s", name), FILE_READ, &file, &err),
                0, "%s", err.message);
        cr_assert_eq(image_open(file, format, IMAGE_NO_LOCK, &image, &err), 0, "%s", err.message);
        return image;
}

static void seal_it(struct folder *folder, const char *name, const char *format)
{
        _cleanup_(image_abandonp) struct image *image = open_image(folder, name, format);
        struct seal_facts facts;
        struct error err = ERROR_INIT;

        cr_assert_eq(seal_make(image, false, NULL, &facts, &err), 0, "%s", err.message);
        cr_assert_eq(access(facts.path, R_OK), 0);
}

static void remember(void *opaque, const char *sentence)
{
        char *all = opaque;

        strncat(all, sentence, 4000 - strlen(all));
        strncat(all, "\n", 4000 - strlen(all));
}

/* How many differences there are, and the sentences in @ret. */
static uint64_t differences(
        struct folder *folder, const char *name, const char *format, bool deep, char ret[4096])
{
        _cleanup_(image_abandonp) struct image *image = open_image(folder, name, format);
        struct seal_watcher watcher = {.opaque = ret, .differs = remember};
        struct error err = ERROR_INIT;
        uint64_t n = 0;

        ret[0] = '\0';
        cr_assert_eq(seal_compare(image, deep, &watcher, &n, &err), 0, "%s", err.message);
        return n;
}

/* Changes a byte, and puts the time of change back, as one does who hides it. */
static void change_byte(struct folder *folder, const char *name, off_t offset, bool hide)
{
        const char *path = folder_path(folder, "%s", name);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        struct timespec times[2];
        struct stat st;
        uint8_t byte;

        cr_assert_eq(fstat(fd, &st), 0);
        cr_assert_eq(pread(fd, &byte, 1, offset), 1);
        byte ^= 0x40;
        cr_assert_eq(pwrite(fd, &byte, 1, offset), 1);
        times[0] = st.st_atim;
        times[1] = st.st_mtim;
        if (hide)
                cr_assert_eq(futimens(fd, times), 0);
        close(fd);
}

Test(seal_compare, is_content_with_an_image_that_nobody_touched)
{
        char told[4096];
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        seal_it(folder, "a.vhd", NULL);
        cr_expect_eq(differences(folder, "a.vhd", NULL, true, told), 0, "%s", told);
        cr_expect_eq(differences(folder, "a.vhd", NULL, false, told), 0, "%s", told);
}

Test(seal_compare, notices_a_byte_of_data_even_with_the_old_time)
{
        char told[4096];
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        seal_it(folder, "a.vhd", NULL);
        change_byte(folder, "a.vhd", BLOCK_DATA + 12345, true);
        cr_expect_eq(differences(folder, "a.vhd", NULL, false, told), 0, "%s", told);
        cr_expect_eq(differences(folder, "a.vhd", NULL, true, told), 1, "%s", told);
        cr_expect_not_null(
                strstr(told, "block 0 (offset 0 of the disk) holds other data"), "%s", told);
}

/* A bit of the bitmap decides whose sector is read: the data is the same, the disk is not. */
Test(seal_compare, notices_a_bit_of_a_bitmap)
{
        char told[4096];
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        seal_it(folder, "a.vhd", NULL);
        change_byte(folder, "a.vhd", 2048 + 3, true);
        cr_expect_eq(differences(folder, "a.vhd", NULL, true, told), 1, "%s", told);
}

Test(seal_compare, notices_metadata_without_reading_blocks)
{
        char told[4096];
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        seal_it(folder, "a.vhd", NULL);
        /* the same disk under another id */
        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 2, .fill = 0x11});
        cr_expect_geq(differences(folder, "a.vhd", NULL, false, told), 2);
        cr_expect_not_null(strstr(told, "its id is 02020202"), "%s", told);
        cr_expect_not_null(strstr(told, "its metadata"), "%s", told);
}

Test(seal_compare, notices_the_time_of_a_change_alone)
{
        char told[4096], warning[1024];
        _cleanup_(image_abandonp) struct image *image = NULL;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        seal_it(folder, "a.vhd", NULL);
        change_byte(folder, "a.vhd", BLOCK_DATA, false);
        cr_expect_eq(differences(folder, "a.vhd", NULL, false, told), 1, "%s", told);
        cr_expect_not_null(strstr(told, "it was changed at"), "%s", told);
        image = open_image(folder, "a.vhd", NULL);
        seal_warning(image, warning, sizeof(warning));
        cr_expect_not_null(strstr(warning, "is not what its seal says"), "%s", warning);
}

Test(seal_warning, says_nothing_without_a_seal_and_nothing_of_a_good_one)
{
        char warning[1024] = "before";
        _cleanup_(image_abandonp) struct image *image = NULL;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1});
        image = open_image(folder, "a.vhd", NULL);
        cr_expect_not(seal_exists(image));
        seal_warning(image, warning, sizeof(warning));
        cr_expect_str_eq(warning, "");
        seal_it(folder, "a.vhd", NULL);
        cr_expect(seal_exists(image));
        seal_warning(image, warning, sizeof(warning));
        cr_expect_str_eq(warning, "");
}

/* cp makes holes and fills them as it likes: the guest sees the same, and the seal says so. */
Test(seal_compare, does_not_care_about_holes_of_flat_images)
{
        const char *path;
        char told[4096], zeros[4096] = {0};
        struct timespec times[2];
        struct stat st;
        int fd;
        WITH_FOLDER(folder);

        path = folder_path(folder, "a.raw");
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        cr_assert_eq(ftruncate(fd, 5 << 20), 0);
        cr_assert_eq(pwrite(fd, "data", 4, 3 << 20), 4);
        seal_it(folder, "a.raw", "raw");
        cr_assert_eq(fstat(fd, &st), 0);
        cr_assert_eq(pwrite(fd, zeros, sizeof(zeros), 0), (ssize_t)sizeof(zeros));
        times[0] = st.st_atim;
        times[1] = st.st_mtim;
        cr_assert_eq(futimens(fd, times), 0);
        close(fd);
        cr_expect_eq(differences(folder, "a.raw", "raw", true, told), 0, "%s", told);
        change_byte(folder, "a.raw", (5 << 20) - 1, true);
        cr_expect_eq(differences(folder, "a.raw", "raw", true, told), 1, "%s", told);
        cr_expect_not_null(strstr(told, "held no data and holds some"), "%s", told);
}

Test(seal_make, replaces_a_seal_only_when_told)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct error err = ERROR_INIT;
        char told[4096];
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        seal_it(folder, "a.vhd", NULL);
        change_byte(folder, "a.vhd", BLOCK_DATA, false);
        image = open_image(folder, "a.vhd", NULL);
        cr_expect_eq(seal_make(image, false, NULL, NULL, &err), -EEXIST);
        cr_expect_geq(differences(folder, "a.vhd", NULL, true, told), 2);
        cr_expect_eq(seal_make(image, true, NULL, NULL, &err), 0, "%s", err.message);
        cr_expect_eq(differences(folder, "a.vhd", NULL, true, told), 0, "%s", told);
        cr_expect_neq(access(folder_path(folder, "a.vhd.vhdd-seal.new"), F_OK), 0);
}

Test(seal_compare, says_that_there_is_none)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct error err = ERROR_INIT;
        uint64_t n;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1});
        image = open_image(folder, "a.vhd", NULL);
        cr_expect_eq(seal_compare(image, true, NULL, &n, &err), -ENOENT);
        cr_expect_not_null(strstr(err.message, "no seal"), "%s", err.message);
}

/* A seal that was cut off, emptied or edited is no evidence of anything. */
Test(seal_compare, does_not_believe_a_damaged_seal)
{
        static const char *const heads[] = {"", "{", "[]\n", "{}\n", "{\"vhdd-seal\":2}\n",
                "{\"vhdd-seal\":1,\"block-size\":65536}\n{\"first\":9,\"xxh3\":\"00\"}\n"};
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct error err = ERROR_INIT;
        struct stat st;
        uint64_t n;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        seal_it(folder, "a.vhd", NULL);
        image = open_image(folder, "a.vhd", NULL);
        cr_assert_eq(stat(folder_path(folder, "a.vhd.vhdd-seal"), &st), 0);
        for (off_t size = st.st_size - 1; size >= 0; size -= 7) {
                cr_assert_eq(truncate(folder_path(folder, "a.vhd.vhdd-seal"), size), 0);
                cr_expect_eq(seal_compare(image, true, NULL, &n, &err), -EUCLEAN, "%d", (int)size);
        }
        for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
                int fd = open(
                        folder_path(folder, "a.vhd.vhdd-seal"), O_WRONLY | O_TRUNC | O_CLOEXEC);

                cr_assert_eq(write(fd, heads[i], strlen(heads[i])), (ssize_t)strlen(heads[i]));
                close(fd);
                cr_expect_lt(seal_compare(image, true, NULL, &n, &err), 0, "%s", heads[i]);
        }
}

static struct image *open_writable(struct folder *folder, const char *name)
{
        struct file *file = NULL;
        struct image *image = NULL;
        struct error err = ERROR_INIT;

        cr_assert_eq(
                file_open(host_fs(), folder_path(folder, "%s", name), FILE_WRITE, &file, &err), 0);
        cr_assert_eq(image_open(file, NULL, IMAGE_WRITABLE, &image, &err), 0, "%s", err.message);
        return image;
}

/* What the dead process answered comes into the file later; a seal of the file as it is would call
 * that a change. */
Test(seal_make, refuses_an_image_whose_writer_died)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct error err = ERROR_INIT;
        uint8_t data[512] = {1};
        uint64_t at;
        bool zero, changed;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1});
        image = open_writable(folder, "a.vhd");
        cr_assert_eq(image->format->prepare(image, 0, sizeof(data), 0, &at, &zero), 0);
        cr_assert_eq(file_write(image->file, data, sizeof(data), at, 0), 0);
        cr_assert_eq(image->format->complete(image, 0, sizeof(data), &changed), 0);
        image = image_abandon(image);

        image = open_image(folder, "a.vhd", NULL);
        cr_expect_eq(seal_make(image, false, NULL, NULL, &err), -EBUSY, "%s", err.message);
        cr_expect_not(seal_exists(image));
        image = image_abandon(image);

        image = open_writable(folder, "a.vhd");
        cr_assert_eq(image_close(TAKE_PTR(image), &err), 0, "%s", err.message);
        seal_it(folder, "a.vhd", NULL);
}

static int stop_at_once(void *opaque, uint64_t bytes, struct error *err)
{
        *(uint64_t *)opaque += bytes;
        return fail(err, ECANCELED, "stopped");
}

static int touch_it(void *opaque, uint64_t bytes, struct error *err)
{
        (void)bytes;
        (void)err;
        change_byte(opaque, "a.vhd", BLOCK_DATA, false);
        return 0;
}

/* One who is told to stop, or finds the image changed under it, has vouched for nothing. */
Test(seal_write, leaves_nothing_when_it_does_not_come_to_its_end)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct seal_watcher watcher = {.pace = stop_at_once};
        struct error err = ERROR_INIT;
        struct seal_facts facts;
        uint64_t bytes = 0;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "a.vhd"), &(struct sample){.id = 1, .fill = 0x11});
        image = open_image(folder, "a.vhd", NULL);
        watcher.opaque = &bytes;
        cr_expect_eq(seal_write(image, &watcher, &facts, &err), -ECANCELED);
        cr_expect_gt(bytes, 0);
        watcher = (struct seal_watcher){.opaque = folder, .pace = touch_it};
        cr_expect_eq(seal_write(image, &watcher, &facts, &err), -ESTALE, "%s", err.message);
        cr_expect_not_null(strstr(err.message, "was changed while"), "%s", err.message);
        cr_expect_neq(access(folder_path(folder, "a.vhd.vhdd-seal.new"), F_OK), 0);
        cr_expect_not(seal_exists(image));
}

Test(seal_put, comes_in_two_halves_and_goes_as_a_whole)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        struct seal_watcher beside = {.beside = true};
        struct error err = ERROR_INIT;
        struct seal_facts facts;
        char told[4096], path[512];
        WITH_FOLDER(folder);

        snprintf(path, sizeof(path), "%s", folder_path(folder, "a.vhd"));
        sample_write(path, &(struct sample){.id = 1, .fill = 0x11});
        image = open_image(folder, "a.vhd", NULL);
        cr_assert_eq(seal_write(image, &beside, &facts, &err), 0, "%s", err.message);
        cr_expect_not(seal_exists(image), "nobody looks at what is not in place");
        cr_assert_eq(seal_put(host_fs(), path, false, &err), 0, "%s", err.message);
        cr_expect_eq(differences(folder, "a.vhd", NULL, true, told), 0, "%s", told);
        cr_assert_eq(seal_write(image, &beside, &facts, &err), 0, "%s", err.message);
        cr_assert_eq(seal_remove(host_fs(), path, &err), 0, "%s", err.message);
        cr_expect_not(seal_exists(image));
        cr_expect_neq(access(folder_path(folder, "a.vhd.vhdd-seal.new"), F_OK), 0);
        cr_expect_eq(seal_remove(host_fs(), path, &err), 0, "there was none");
}
