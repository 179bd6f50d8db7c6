/* SPDX-License-Identifier: Apache-2.0 */
/* A relink that goes wrong half-way, or writes over a block, costs a disk; one that writes a path
 * that leads elsewhere mixes two disks. */
#include "chain/relink.h"

#include "base/utf16.h"
#include "formats/format.h"
#include "tests/unit/vhd_sample.h"

struct opened {
        struct file *file;
        struct vhd_metadata metadata;
};

static void opened_close(struct opened *opened)
{
        file_close(opened->file);
}

static void open_it(struct folder *folder, const char *name, struct opened *ret)
{
        struct error err = ERROR_INIT;

        cr_assert_eq(
                file_open(host_fs(), folder_path(folder, "%s", name), FILE_READ, &ret->file, &err),
                0);
        cr_assert_eq(vhd_metadata_read(ret->file, 0, &ret->metadata, &err), 0, "%s", err.message);
}

static int relink_with(struct folder *folder, const char *child, const char *parent, bool force,
        struct relink_report *report, struct error *err)
{
        struct relink_params params = {.force = force};
        char child_path[512], parent_path[512];

        snprintf(child_path, sizeof(child_path), "%s", folder_path(folder, "%s", child));
        snprintf(parent_path, sizeof(parent_path), "%s", folder_path(folder, "%s", parent));
        *err = ERROR_INIT;
        return relink(child_path, parent_path, &params, report, err);
}

/* The child leads to folder/@parent by itself, with @root or without (NULL). */
static void expect_leads_to(
        struct folder *folder, const char *child, const char *parent, const char *root)
{
        _cleanup_(opened_close) struct opened opened;
        _cleanup_(file_closep) struct file *found = NULL;
        struct locate_roots roots = {.roots = &root, .n_roots = root ? 1 : 0};
        struct error err = ERROR_INIT;

        open_it(folder, child, &opened);
        cr_expect_eq(opened.metadata.problems, 0, "%x", opened.metadata.problems);
        cr_assert_eq(locate_parent(opened.file, &opened.metadata, &roots, NULL, &found, &err), 0,
                "%s", err.message);
        cr_expect_str_eq(found->path, folder_path(folder, "%s", parent));
}

static void expect_text(
        struct folder *folder, const char *child, const char *code, const char *expected)
{
        _cleanup_(opened_close) struct opened opened;
        char text[4096];

        open_it(folder, child, &opened);
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++) {
                if (strcmp(opened.metadata.header.locators[i].code, code) != 0)
                        continue;
                cr_assert_eq(vhd_locator_read(opened.file, &opened.metadata.header, i, text,
                                     sizeof(text), NULL),
                        0);
                cr_expect_str_eq(text, expected ? expected : "(none)");
                return;
        }
        cr_expect_null(expected, "no %s", code);
}

/* All of block 0 is still what the sample put there. */
static void expect_fill(struct folder *folder, const char *name, uint8_t fill)
{
        struct file *file = NULL;
        _cleanup_(image_abandonp) struct image *image = NULL;
        uint8_t *data = malloc(SAMPLE_BLOCK_SIZE);
        struct extent extent;
        struct error err = ERROR_INIT;

        cr_assert_eq(
                file_open(host_fs(), folder_path(folder, "%s", name), FILE_READ, &file, &err), 0);
        cr_assert_eq(image_open(file, "vhd", 0, &image, &err), 0, "%s", err.message);
        cr_assert_eq(image->format->map(image, 0, SAMPLE_BLOCK_SIZE, 0, &extent), 0);
        cr_assert_eq(extent.kind, EXTENT_DATA);
        cr_assert_eq(extent.length, SAMPLE_BLOCK_SIZE);
        cr_assert_eq(file_read_exact(file, data, SAMPLE_BLOCK_SIZE, extent.file_offset), 0);
        for (size_t i = 0; i < SAMPLE_BLOCK_SIZE; i++)
                cr_assert_eq(data[i], fill, "byte %zu is %02x", i, data[i]);
        free(data);
}

static void write_child(struct folder *folder, const char *name, uint8_t parent)
{
        struct sample sample = {.id = 2,
                .parent = parent,
                .name = "gone.vhd",
                .fill = 0x5a,
                .locators = {{"W2ku", "C:\\VMs\\gone.vhd"}, {"W2ru", ".\\gone.vhd"}}};

        sample_write(folder_path(folder, "%s", name), &sample);
}

Test(relink, writes_the_new_place_and_leaves_the_blocks)
{
        struct relink_report report;
        struct error err;
        char absolute[512];
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base 1.vhd"), &(struct sample){.id = 1});
        write_child(folder, "c.vhd", 1);
        cr_assert_eq(relink_with(folder, "c.vhd", "base 1.vhd", false, &report, &err), 0, "%s",
                err.message);
        cr_expect_str_eq(report.relative, "./base 1.vhd");
        cr_expect_str_eq(report.image_root, "");
        cr_expect_not(report.appended);
        expect_leads_to(folder, "c.vhd", "base 1.vhd", NULL);
        expect_fill(folder, "c.vhd", 0x5a);
        expect_text(folder, "c.vhd", "W2ru", ".\\base 1.vhd");
        snprintf(absolute, sizeof(absolute), "%s", folder_path(folder, "base 1.vhd"));
        for (char *p = absolute; *p; p++)
                if (*p == '/')
                        *p = '\\';
        expect_text(folder, "c.vhd", "W2ku", absolute);
        /* nothing beside it is left over */
        cr_expect_neq(access(folder_path(folder, "c.vhd.vhdd-intent"), F_OK), 0);
}

Test(relink, names_the_root_that_a_parent_elsewhere_needs)
{
        struct relink_report report;
        struct error err;
        WITH_FOLDER(folder);

        folder_mkdir(folder, "bases");
        folder_mkdir(folder, "children");
        sample_write(folder_path(folder, "bases/base.vhd"), &(struct sample){.id = 1});
        write_child(folder, "children/c.vhd", 1);
        cr_assert_eq(relink_with(folder, "children/c.vhd", "bases/base.vhd", false, &report, &err),
                0, "%s", err.message);
        cr_expect_str_eq(report.relative, "../bases/base.vhd");
        cr_expect_str_eq(report.image_root, folder_path(folder, "bases"));
        expect_text(folder, "children/c.vhd", "W2ru", ".\\..\\bases\\base.vhd");
        expect_leads_to(folder, "children/c.vhd", "bases/base.vhd", folder_path(folder, "bases"));
}

Test(relink, keeps_tapdisks_own_locator_in_step_and_drops_the_deprecated_ones)
{
        struct sample sample = {.id = 2,
                .parent = 1,
                .locators = {{"MacX", "file://./gone.vhd"}, {"W2ku", ".\\gone.vhd"},
                        {"W2ru", ".\\gone.vhd"}, {"Wi2r", ".\\gone.vhd"}, {"Wi2k", "C:\\gone.vhd"},
                        {"Mac ", "alias"}, {"Xxxx", "kept"}}};
        _cleanup_(opened_close) struct opened opened = {0};
        struct relink_report report;
        struct error err;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base.vhd"), &(struct sample){.id = 1});
        sample_write(folder_path(folder, "c.vhd"), &sample);
        cr_assert_eq(relink_with(folder, "c.vhd", "base.vhd", false, &report, &err), 0, "%s",
                err.message);
        expect_text(folder, "c.vhd", "MacX", "file://./base.vhd");
        expect_text(folder, "c.vhd", "W2ru", ".\\base.vhd");
        expect_text(folder, "c.vhd", "Wi2r", NULL);
        expect_text(folder, "c.vhd", "Wi2k", NULL);
        expect_text(folder, "c.vhd", "Mac ", NULL);
        open_it(folder, "c.vhd", &opened);
        cr_expect_str_eq(opened.metadata.header.locators[6].code, "Xxxx");
        cr_expect_str_eq(opened.metadata.header.parent_name, "base.vhd");
}

/* Without any locator there is no room before the first block: the paths go behind the last one, and
 * the footer behind them. */
Test(relink, makes_the_file_longer_where_there_is_no_room)
{
        struct sample sample = {.id = 2, .parent = 1, .name = "gone.vhd", .fill = 0xa5};
        struct relink_report report;
        struct error err;
        struct stat before, after;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base.vhd"), &(struct sample){.id = 1});
        sample_write(folder_path(folder, "c.vhd"), &sample);
        cr_assert_eq(stat(folder_path(folder, "c.vhd"), &before), 0);
        cr_assert_eq(relink_with(folder, "c.vhd", "base.vhd", false, &report, &err), 0, "%s",
                err.message);
        cr_expect(report.appended);
        cr_assert_eq(stat(folder_path(folder, "c.vhd"), &after), 0);
        cr_expect_gt(after.st_size, before.st_size);
        expect_leads_to(folder, "c.vhd", "base.vhd", NULL);
        expect_fill(folder, "c.vhd", 0xa5);
        /* and again: now there is room */
        cr_assert_eq(rename(folder_path(folder, "base.vhd"), folder_path(folder, "b.vhd")), 0);
        cr_assert_eq(
                relink_with(folder, "c.vhd", "b.vhd", false, &report, &err), 0, "%s", err.message);
        cr_expect_not(report.appended);
        expect_leads_to(folder, "c.vhd", "b.vhd", NULL);
        expect_fill(folder, "c.vhd", 0xa5);
}

/* Slots grow, shrink and grow again, and never over a block or each other. */
Test(relink, fits_paths_of_every_length)
{
        struct relink_report report;
        struct error err;
        WITH_FOLDER(folder);

        write_child(folder, "c.vhd", 1);
        for (unsigned length = 1; length < 250; length += 31) {
                char name[300];

                memset(name, 'x', length);
                name[length] = '\0';
                folder_mkdir(folder, name);
                strcat(name, "/base.vhd");
                sample_write(folder_path(folder, "%s", name), &(struct sample){.id = 1});
                cr_assert_eq(relink_with(folder, "c.vhd", name, false, &report, &err), 0, "%s",
                        err.message);
                expect_leads_to(folder, "c.vhd", name, NULL);
                expect_fill(folder, "c.vhd", 0x5a);
        }
}

static void expect_unchanged(
        struct folder *folder, const char *child, const char *parent, int code, const char *words)
{
        char before[SAMPLE_BLOCK_SIZE * 2], after[sizeof(before)];
        struct relink_report report;
        struct error err;
        ssize_t n;
        int fd = open(folder_path(folder, "%s", child), O_RDONLY | O_CLOEXEC);
        int r;

        n = pread(fd, before, sizeof(before), 0);
        r = relink_with(folder, child, parent, false, &report, &err);
        cr_expect_eq(r, -code, "%d: %s", r, err.message);
        cr_expect_not_null(strstr(err.message, words), "%s", err.message);
        cr_expect_eq(pread(fd, after, sizeof(after), 0), n);
        cr_expect_eq(memcmp(before, after, (size_t)n), 0);
        close(fd);
}

Test(relink, refuses_another_id_unless_forced)
{
        struct relink_report report;
        struct error err;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "other.vhd"), &(struct sample){.id = 9});
        sample_write(folder_path(folder, "bigger.vhd"),
                &(struct sample){.id = 8, .size = 2 * SAMPLE_SIZE});
        write_child(folder, "c.vhd", 1);
        expect_unchanged(folder, "c.vhd", "other.vhd", ESTALE, "09090909-0909");
        cr_expect_eq(relink_with(folder, "c.vhd", "bigger.vhd", true, &report, &err), -EINVAL);
        cr_expect_eq(err.hyperv, 0xC03A0017u);
        cr_assert_eq(relink_with(folder, "c.vhd", "other.vhd", true, &report, &err), 0, "%s",
                err.message);
        expect_leads_to(folder, "c.vhd", "other.vhd", NULL);
}

Test(relink, refuses_loops)
{
        struct relink_report report;
        struct error err;
        struct sample grandchild = {
                .id = 3, .parent = 2, .fill = 1, .locators = {{"W2ru", ".\\c.vhd"}}};
        WITH_FOLDER(folder);

        write_child(folder, "c.vhd", 1);
        sample_write(folder_path(folder, "g.vhd"), &grandchild);
        expect_unchanged(folder, "c.vhd", "c.vhd", ELOOP, "stands on it");
        cr_assert_eq(link(folder_path(folder, "c.vhd"), folder_path(folder, "name2.vhd")), 0);
        expect_unchanged(folder, "c.vhd", "name2.vhd", ELOOP, "stands on it");
        cr_expect_eq(relink_with(folder, "c.vhd", "g.vhd", true, &report, &err), -ELOOP);
        cr_expect_eq(err.hyperv, 0xC03A0018u);
}

Test(relink, refuses_what_cannot_be_child_or_parent)
{
        int fd;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base.vhd"), &(struct sample){.id = 1});
        sample_write(folder_path(folder, "back\\slash.vhd"), &(struct sample){.id = 1});
        sample_write(folder_path(folder, "not utf8 \xff.vhd"), &(struct sample){.id = 1});
        write_child(folder, "c.vhd", 1);
        expect_unchanged(folder, "base.vhd", "base.vhd", EINVAL, "it has no parent");
        expect_unchanged(folder, "c.vhd", "back\\slash.vhd", EINVAL, "backslash");
        expect_unchanged(folder, "c.vhd", "not utf8 \xff.vhd", EINVAL, "UTF-8");
        expect_unchanged(folder, "c.vhd", "none.vhd", ENOENT, "none.vhd");
        fd = open(folder_path(folder, "disk.raw"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        cr_assert_eq(ftruncate(fd, (off_t)SAMPLE_SIZE), 0);
        close(fd);
        expect_unchanged(folder, "c.vhd", "disk.raw", ESTALE, "is no VHD");
}

Test(relink, changes_nothing_in_a_dry_run)
{
        struct relink_params params = {.dry_run = true};
        struct relink_report report;
        struct error err = ERROR_INIT;
        struct stat before, after;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base.vhd"), &(struct sample){.id = 1});
        write_child(folder, "c.vhd", 1);
        cr_assert_eq(stat(folder_path(folder, "c.vhd"), &before), 0);
        cr_assert_eq(relink(folder_path(folder, "c.vhd"), folder_path(folder, "base.vhd"), &params,
                             &report, &err),
                0, "%s", err.message);
        cr_expect_str_eq(report.relative, "./base.vhd");
        cr_assert_eq(stat(folder_path(folder, "c.vhd"), &after), 0);
        cr_expect_eq(before.st_mtim.tv_sec, after.st_mtim.tv_sec);
        cr_expect_eq(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
        expect_text(folder, "c.vhd", "W2ru", ".\\gone.vhd");
}

Test(relink, waits_for_nobody_who_has_the_child_open, .timeout = 20)
{
        _cleanup_(file_closep) struct file *other = NULL;
        struct relink_report report;
        struct error err = ERROR_INIT;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base.vhd"), &(struct sample){.id = 1});
        write_child(folder, "c.vhd", 1);
        cr_assert_eq(
                file_open(host_fs(), folder_path(folder, "c.vhd"), FILE_READ, &other, &err), 0);
        cr_assert_eq(file_lock_set(other, FILE_LOCK_READ, &err), 0);
        cr_expect_eq(relink_with(folder, "c.vhd", "base.vhd", false, &report, &err), -EBUSY, "%s",
                err.message);
        expect_text(folder, "c.vhd", "W2ru", ".\\gone.vhd");
}
