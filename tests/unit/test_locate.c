/* SPDX-License-Identifier: Apache-2.0 */
/* A parent that is not found is a disk that cannot be used; a parent that an enemy's image chose is
 * somebody else's file in a guest's hands. */
#include "chain/locate.h"

#include <sys/sysmacros.h>

#include "base/uuid.h"
#include "tests/unit/vhd_sample.h"

/* Finds the parent of folder/@child under @root (NULL: none but the child's own directory). The
 * answer: 0 and the parent's path in @ret_path, or the error. */
static int locate(struct folder *folder, const char *child, const char *root, const char *named,
        char ret_path[4096], struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_(file_closep) struct file *parent = NULL;
        struct locate_roots roots = {.roots = &root, .n_roots = root ? 1 : 0};
        struct vhd_metadata metadata;
        int r;

        *err = ERROR_INIT;
        cr_assert_eq(file_open(host_fs(), folder_path(folder, "%s", child), FILE_READ, &file, err),
                0, "%s", err->message);
        cr_assert_eq(vhd_metadata_read(file, 0, &metadata, err), 0, "%s", err->message);
        r = locate_parent(file, &metadata, &roots, named, &parent, err);
        if (r == 0)
                snprintf(ret_path, 4096, "%s", parent->path);
        else
                cr_expect_null(parent);
        return r;
}

static void expect_found(
        struct folder *folder, const char *child, const char *root, const char *expected)
{
        char path[4096] = "", wanted[4096];
        struct error err;
        int r = locate(folder, child, root, NULL, path, &err);

        cr_expect_eq(r, 0, "%s", err.message);
        snprintf(wanted, sizeof(wanted), "%s", folder_path(folder, "%s", expected));
        cr_expect_str_eq(path, wanted);
}

static void expect_refused(struct folder *folder, const char *child, const char *root, int code,
        uint32_t hyperv, const char *words)
{
        char path[4096];
        struct error err;
        int r = locate(folder, child, root, NULL, path, &err);

        cr_expect_eq(r, -code, "%s: %d: %s", child, r, r ? err.message : path);
        if (r == 0)
                return;
        cr_expect_eq(err.hyperv, hyperv, "%x: %s", err.hyperv, err.message);
        cr_expect_not_null(strstr(err.message, words), "%s", err.message);
        cr_expect_not_null(strstr(err.file, child), "%s", err.file);
        cr_expect(err.hint[0] != '\0');
}

static void write_child(struct folder *folder, const char *name, const char *code, const char *text)
{
        struct sample sample = {.id = 2, .parent = 1, .locators = {{code, text}}};

        sample_write(folder_path(folder, "%s", name), &sample);
}

static void write_base(struct folder *folder, const char *name)
{
        sample_write(folder_path(folder, "%s", name), &(struct sample){.id = 1});
}

Test(locate_parent, follows_each_kind_of_locator)
{
        static const struct sample_locator rows[] = {
                {"W2ru", ".\\base.vhd"},
                {"W2ru", "base.vhd"},
                {"W2ku", ".\\base.vhd"},       /* tapdisk's */
                {"MacX", "file://./base.vhd"}, /* tapdisk's */
                {"MacX", "file://localhost/nowhere/ba%73e.vhd"},
                {"Wi2r", ".\\base.vhd"},
                {"Wi2k", "D:\\Virtual PC\\base.vhd"},
                {"W2ku", "C:\\VMs\\base.vhd"}, /* the bare name, beside the child */
                {"W2ku", "\\\\server\\share\\base.vhd"},
                {"W2ku", "\\\\?\\C:\\VMs\\base.vhd"},
        };
        WITH_FOLDER(folder);

        write_base(folder, "base.vhd");
        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
                write_child(folder, "child.vhd", rows[i].code, rows[i].text);
                expect_found(folder, "child.vhd", NULL, "base.vhd");
        }
}

Test(locate_parent, takes_the_headers_name_when_there_is_no_locator)
{
        WITH_FOLDER(folder);

        write_base(folder, "base.vhd");
        sample_write(folder_path(folder, "plain.vhd"),
                &(struct sample){.id = 2, .parent = 1, .name = "base.vhd"});
        sample_write(folder_path(folder, "whole.vhd"),
                &(struct sample){.id = 2, .parent = 1, .name = "C:\\VMs\\base.vhd"});
        expect_found(folder, "plain.vhd", NULL, "base.vhd");
        expect_found(folder, "whole.vhd", NULL, "base.vhd");
}

Test(locate_parent, goes_on_to_the_next_hint_when_one_leads_nowhere)
{
        struct sample sample = {.id = 2,
                .parent = 1,
                .name = "renamed.vhd",
                .locators = {{"W2ku", "/nowhere/base.vhd"}, {"W2ru", ".\\gone.vhd"}}};
        WITH_FOLDER(folder);

        write_base(folder, "renamed.vhd");
        sample_write(folder_path(folder, "child.vhd"), &sample);
        expect_found(folder, "child.vhd", NULL, "renamed.vhd");
}

Test(locate_parent, ignores_the_case_of_names_as_windows_does)
{
        WITH_FOLDER(folder);

        folder_mkdir(folder, "Disks");
        write_base(folder, "Disks/Base.VHD");
        write_child(folder, "child.vhd", "W2ru", ".\\DISKS\\base.vhd");
        expect_found(folder, "child.vhd", NULL, "Disks/Base.VHD");

        /* With two that fit but for their case, guessing would be wrong in one of two folders. */
        write_base(folder, "Disks/BASE.vhd");
        expect_refused(folder, "child.vhd", NULL, ENOENT, 0xC03A0016, "upper and lower case");
        /* The exact name is no guess. */
        write_base(folder, "Disks/base.vhd");
        write_child(folder, "child.vhd", "W2ru", ".\\Disks\\base.vhd");
        expect_found(folder, "child.vhd", NULL, "Disks/base.vhd");
}

Test(locate_parent, follows_hyperv_layout_under_one_root_and_names_it_when_it_is_missing)
{
        struct error err;
        char path[4096], hint[4096];
        WITH_FOLDER(folder);

        folder_mkdir(folder, "Virtual Hard Disks");
        folder_mkdir(folder, "Snapshots");
        folder_mkdir(folder, "Snapshots/7D3A");
        write_base(folder, "Virtual Hard Disks/base.vhd");
        write_child(
                folder, "Snapshots/7D3A/c.avhd", "W2ru", "..\\..\\Virtual Hard Disks\\base.vhd");

        cr_expect_eq(locate(folder, "Snapshots/7D3A/c.avhd", NULL, NULL, path, &err), -EPERM);
        cr_expect_eq(err.hyperv, 0xC03A0016u);
        snprintf(hint, sizeof(hint), "--image-root %s", folder->path);
        cr_expect_str_eq(err.hint, hint);
        expect_found(folder, "Snapshots/7D3A/c.avhd", folder->path, "Virtual Hard Disks/base.vhd");
        expect_found(folder, "Snapshots/7D3A/c.avhd", folder_path(folder, "Virtual Hard Disks"),
                "Virtual Hard Disks/base.vhd");
}

Test(locate_parent, finds_bare_names_in_the_roots)
{
        WITH_FOLDER(folder);

        folder_mkdir(folder, "bases");
        folder_mkdir(folder, "children");
        write_base(folder, "bases/base.vhd");
        write_child(folder, "children/c.vhd", "W2ku", "C:\\VMs\\base.vhd");
        expect_refused(folder, "children/c.vhd", NULL, ENOENT, 0xC03A000D, "looked for");
        expect_found(folder, "children/c.vhd", folder_path(folder, "bases"), "bases/base.vhd");
}

Test(locate_parent, refuses_another_id_and_says_both)
{
        char path[4096];
        struct error err;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base.vhd"), &(struct sample){.id = 0x33});
        write_child(folder, "child.vhd", "W2ru", ".\\base.vhd");
        cr_expect_eq(locate(folder, "child.vhd", NULL, NULL, path, &err), -ESTALE);
        cr_expect_eq(err.hyperv, 0xC03A000Eu);
        cr_expect_not_null(strstr(err.message, "33333333-3333-3333-3333-333333333333"));
        cr_expect_not_null(strstr(err.message, "01010101-0101-0101-0101-010101010101"));
}

/* The right one may have another name: it is named in the hint, and not used unasked. */
Test(locate_parent, names_a_file_with_the_right_id_in_the_hint)
{
        char path[4096], hint[4096];
        struct error err;
        WITH_FOLDER(folder);

        write_base(folder, "it was renamed.vhd");
        write_child(folder, "child.vhd", "W2ru", ".\\base.vhd");
        cr_expect_eq(locate(folder, "child.vhd", NULL, NULL, path, &err), -ENOENT);
        snprintf(hint, sizeof(hint), "vhdctl relink %s/child.vhd --parent '%s/it was renamed.vhd'",
                folder->path, folder->path);
        cr_expect_str_eq(err.hint, hint);
}

/* Every way out that an enemy's image can ask for. What lies outside is a VHD with the right id, so
 * that nothing but the rule about places keeps it out. */
Test(locate_parent, opens_nothing_outside_the_roots)
{
        char outside[512], windows[600], url[600], found[4096];
        struct error err;
        WITH_FOLDER(other);
        WITH_FOLDER(folder);

        write_base(other, "base.vhd");
        snprintf(outside, sizeof(outside), "%s/base.vhd", other->path);
        snprintf(windows, sizeof(windows), "..\\%s\\base.vhd", other->path + strlen("/tmp/"));
        snprintf(url, sizeof(url), "file://%s", outside);

        write_child(folder, "c.vhd", "W2ru", windows);
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, outside);
        write_child(folder, "c.vhd", "W2ku", outside);
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, outside);
        write_child(folder, "c.vhd", "MacX", url);
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, outside);
        cr_assert_eq(locate(folder, "c.vhd", other->path, NULL, found, &err), 0, "%s", err.message);
        cr_expect_str_eq(found, outside);
}

Test(locate_parent, refuses_the_usual_targets)
{
        static const struct sample_locator rows[] = {
                {"W2ru", "..\\..\\..\\..\\..\\..\\etc\\shadow"},
                {"W2ru", "a\\..\\..\\..\\..\\etc\\shadow"},
                {"W2ru", "../../../../etc/shadow"},
                {"W2ru", ".\\../\\..\\/../etc/shadow"},
        };
        WITH_FOLDER(folder);

        for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
                write_child(folder, "c.vhd", rows[i].code, rows[i].text);
                expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "/etc/shadow");
        }
        write_child(folder, "c.vhd", "W2ku", "/etc/shadow");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "/etc/shadow");
        write_child(folder, "c.vhd", "W2ku", "/proc/self/root/etc/shadow");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "/proc/self");
        write_child(folder, "c.vhd", "Mac ", "alias");
        expect_refused(folder, "c.vhd", NULL, ENOENT, 0xC03A000D, "does not say where");
        write_child(folder, "c.vhd", "W2ku", "C:\\");
        expect_refused(folder, "c.vhd", NULL, ENOENT, 0xC03A000D, "means nothing here");
}

/* On NTFS base.vhd::$DATA is base.vhd by another name; here it is a name that nobody has. */
Test(locate_parent, knows_no_alternate_data_streams)
{
        WITH_FOLDER(folder);

        write_base(folder, "base.vhd");
        write_child(folder, "c.vhd", "W2ru", ".\\base.vhd::$DATA");
        expect_refused(folder, "c.vhd", NULL, ENOENT, 0xC03A000D, "base.vhd::$DATA");
        write_child(folder, "c.vhd", "W2ru", ".\\base.vhd. ");
        expect_refused(folder, "c.vhd", NULL, ENOENT, 0xC03A000D, "base.vhd. ");
}

Test(locate_parent, follows_no_symbolic_link)
{
        char target[512];
        WITH_FOLDER(other);
        WITH_FOLDER(folder);

        write_base(other, "base.vhd");
        write_base(folder, "inside.vhd");
        snprintf(target, sizeof(target), "%s/base.vhd", other->path);
        cr_assert_eq(symlink(target, folder_path(folder, "out.vhd")), 0);
        cr_assert_eq(symlink(other->path, folder_path(folder, "dir")), 0);
        cr_assert_eq(symlink("inside.vhd", folder_path(folder, "in.vhd")), 0);

        write_child(folder, "c.vhd", "W2ru", ".\\out.vhd");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "symbolic link");
        write_child(folder, "c.vhd", "W2ru", ".\\dir\\base.vhd");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "symbolic link");
        write_child(folder, "c.vhd", "W2ru", ".\\in.vhd");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "symbolic link");
        /* the same through the search that ignores case */
        write_child(folder, "c.vhd", "W2ru", ".\\DIR\\base.vhd");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "symbolic link");
        write_child(folder, "c.vhd", "W2ru", ".\\OUT.vhd");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "symbolic link");
}

/* Opening a FIFO without a writer hangs for ever; the test's time limit would tell. */
Test(locate_parent, opens_only_regular_files, .timeout = 10)
{
        WITH_FOLDER(folder);

        cr_assert_eq(mkfifo(folder_path(folder, "fifo.vhd"), 0644), 0);
        folder_mkdir(folder, "folder.vhd");
        write_child(folder, "c.vhd", "W2ru", ".\\fifo.vhd");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "a device, a FIFO");
        write_child(folder, "c.vhd", "W2ru", ".\\folder.vhd");
        expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "a directory");
        if (mknod(folder_path(folder, "zero.vhd"), S_IFCHR | 0644, makedev(1, 5)) == 0) {
                write_child(folder, "c.vhd", "W2ru", ".\\zero.vhd");
                expect_refused(folder, "c.vhd", NULL, EPERM, 0xC03A0016, "a device, a FIFO");
        }
}

Test(locate_parent, opens_only_vhds)
{
        char path[4096];
        struct error err;
        int fd;
        WITH_FOLDER(folder);

        fd = open(folder_path(folder, "passwords"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        cr_assert_eq(write(fd, "root:x:0:0", 10), 10);
        close(fd);
        write_child(folder, "c.vhd", "W2ru", ".\\passwords");
        cr_expect_eq(
                locate(folder, "c.vhd", NULL, NULL, path, &err), -ENOMEDIUM, "%s", err.message);
        cr_expect_null(strstr(err.message, "root:x"));
}

Test(locate_parent, notices_an_image_that_is_its_own_parent)
{
        struct sample sample = {.id = 1, .parent = 1, .locators = {{"W2ru", ".\\c.vhd"}}};
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "c.vhd"), &sample);
        expect_refused(folder, "c.vhd", NULL, ELOOP, 0xC03A0018, "itself");
        /* the same file by another name */
        sample.locators[0].text = ".\\d.vhd";
        sample_write(folder_path(folder, "c.vhd"), &sample);
        cr_assert_eq(link(folder_path(folder, "c.vhd"), folder_path(folder, "d.vhd")), 0);
        expect_refused(folder, "c.vhd", NULL, ELOOP, 0xC03A0018, "itself");
}

Test(locate_parent, finds_the_parent_of_a_child_that_was_opened_by_a_link)
{
        WITH_FOLDER(other);
        WITH_FOLDER(folder);

        write_base(folder, "base.vhd");
        write_child(folder, "c.vhd", "W2ru", ".\\base.vhd");
        cr_assert_eq(symlink(folder_path(folder, "c.vhd"), folder_path(other, "link.vhd")), 0);
        {
                char path[4096] = "";
                struct error err;

                cr_expect_eq(
                        locate(other, "link.vhd", NULL, NULL, path, &err), 0, "%s", err.message);
                cr_expect_str_eq(path, folder_path(folder, "base.vhd"));
        }
}

Test(locate_parent_named, takes_any_place_and_still_checks_the_id)
{
        char path[4096] = "";
        struct error err;
        WITH_FOLDER(other);
        WITH_FOLDER(folder);

        write_base(other, "base.vhd");
        sample_write(folder_path(other, "else.vhd"), &(struct sample){.id = 9});
        write_child(folder, "c.vhd", "W2ru", ".\\gone.vhd");
        cr_expect_eq(locate(folder, "c.vhd", NULL, folder_path(other, "base.vhd"), path, &err), 0,
                "%s", err.message);
        cr_expect_str_eq(path, folder_path(other, "base.vhd"));
        cr_expect_eq(
                locate(folder, "c.vhd", NULL, folder_path(other, "else.vhd"), path, &err), -ESTALE);
        cr_expect_eq(err.hyperv, 0xC03A000Eu);
        cr_expect_eq(
                locate(folder, "c.vhd", NULL, folder_path(folder, "c.vhd"), path, &err), -ELOOP);
        cr_expect_eq(locate(folder, "c.vhd", NULL, other->path, path, &err), -EINVAL);
        cr_expect_eq(locate(folder, "c.vhd", NULL, "/dev/zero", path, &err), -EINVAL);
        cr_expect_eq(
                locate(folder, "c.vhd", NULL, folder_path(other, "none"), path, &err), -ENOENT);
}

/* A raw file has no id to check: it is a parent of a child that asks for none, by name, or never. */
Test(locate_parent_named, takes_a_raw_file_only_where_the_child_asks_for_no_id)
{
        struct sample child = {.type = VHD_TYPE_DIFFERENCING,
                .id = 2,
                .parent = 0,
                .locators = {{"W2ru", ".\\disk.raw"}}};
        char path[4096] = "";
        struct error err;
        int fd;
        WITH_FOLDER(folder);

        fd = open(folder_path(folder, "disk.raw"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        cr_assert_eq(ftruncate(fd, (off_t)SAMPLE_SIZE), 0);
        close(fd);
        sample_write(folder_path(folder, "c.vhd"), &child);
        expect_refused(folder, "c.vhd", NULL, ENOENT, 0xC03A000D, "raw");
        cr_expect_eq(locate(folder, "c.vhd", NULL, folder_path(folder, "disk.raw"), path, &err), 0,
                "%s", err.message);

        child.parent = 1;
        sample_write(folder_path(folder, "c.vhd"), &child);
        cr_expect_eq(locate(folder, "c.vhd", NULL, folder_path(folder, "disk.raw"), path, &err),
                -ESTALE);
}

Test(locate_candidates, says_what_each_hint_means_and_opens_nothing)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ struct locate_candidate *candidates =
                calloc(LOCATE_MAX_CANDIDATES, sizeof(struct locate_candidate));
        struct sample sample = {.id = 2,
                .parent = 1,
                .name = "base.vhd",
                .locators = {{"W2ku", "C:\\VMs\\old.vhd"}, {"W2ru", ".\\sub\\base.vhd"},
                        {"MacX", "file:///srv/a%20b.vhd"}}};
        struct vhd_metadata metadata;
        size_t n;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "c.vhd"), &sample);
        cr_assert_eq(file_open(host_fs(), folder_path(folder, "c.vhd"), FILE_READ, &file, NULL), 0);
        cr_assert_eq(vhd_metadata_read(file, 0, &metadata, NULL), 0);
        n = locate_candidates(file, &metadata.header, candidates);

        cr_assert_eq(n, 6);
        cr_expect_str_eq(candidates[0].source, "W2ru");
        cr_expect_str_eq(candidates[0].path, folder_path(folder, "sub/base.vhd"));
        cr_expect_str_eq(candidates[1].source, "name");
        cr_expect_str_eq(candidates[1].path, folder_path(folder, "base.vhd"));
        cr_expect_str_eq(candidates[2].source, "W2ku");
        cr_expect_str_eq(candidates[2].text, "C:\\VMs\\old.vhd");
        cr_expect_str_eq(candidates[2].path, "");
        cr_expect_str_eq(candidates[3].source, "MacX");
        cr_expect_str_eq(candidates[3].path, "/srv/a b.vhd");
        cr_expect_str_eq(candidates[4].path, folder_path(folder, "old.vhd"));
        cr_expect_str_eq(candidates[5].path, folder_path(folder, "a b.vhd"));
}
