/* SPDX-License-Identifier: Apache-2.0 */
/* What was cut off must be undone or finished, and neither may take a file that a row names or that
 * was there before: here each way once, over real files; tests/crash/test_catalog_cut.c cuts each at
 * every step. */
#include "vhdd/daemon/journal.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vhdd/daemon/catalog.h"

static char folder[64], database[128];
static struct catalog *catalog;
static struct error err;
static char paths[8][128];

static const char *path_of(const char *name)
{
        static unsigned next;
        char *path = paths[next++ % 8];

        snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
        return path;
}

static void setup(void)
{
        strcpy(folder, "/tmp/vhdd-journal-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        snprintf(database, sizeof(database), "%s/catalog.sqlite", folder);
        cr_assert_eq(catalog_open(database, &catalog, &err), 0, "%s", err.message);
}

static void teardown(void)
{
        static const char *const names[] = {
                "a.avhd", "a.avhd.vhdd-intent", "b.avhd", "catalog.sqlite", "catalog.sqlite-wal"};

        catalog = catalog_close(catalog);
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
                unlink(path_of(names[i]));
        cr_expect_eq(rmdir(folder), 0, "something is left in '%s'", folder);
}

TestSuite(journal, .init = setup, .fini = teardown);

static void make_file(const char *path)
{
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

        cr_assert(fd >= 0);
        close(fd);
}

static bool is_there(const char *path)
{
        return access(path, F_OK) == 0;
}

static struct operation *begin(const char *path)
{
        struct operation *operation = NULL;
        json_t *data = json_pack("{s:s}", "snapshot", "s1");

        cr_assert_eq(
                operation_begin(catalog, host_fs(), "take", NULL, &path, 1, data, &operation, &err),
                0, "%s", err.message);
        json_decref(data);
        return operation;
}

static struct image_row an_image(const char *path)
{
        return (struct image_row){
                .path = (char *)path, .format = "vhd", .state = "in-use", .made_by_us = true};
}

static void commit_image(struct operation *operation, const char *path)
{
        struct image_row row = an_image(path);

        cr_assert_eq(operation_made(operation, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_begin(catalog, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_image_insert(catalog, &row, &err), 0, "%s", err.message);
        cr_assert_eq(operation_commit(operation, &err), 0, "%s", err.message);
}

static size_t n_rows(void)
{
        struct operation_row *rows;
        size_t n;

        cr_assert_eq(catalog_operation_list(catalog, &rows, &n, &err), 0, "%s", err.message);
        operation_rows_free(rows, n);
        return n;
}

static struct journal_report recover(const char *const *but)
{
        struct journal_report report;

        cr_assert_eq(journal_recover(catalog, host_fs(), but, &report, &err), 0, "%s", err.message);
        return report;
}

Test(journal, undoes_what_was_not_committed_with_its_company)
{
        const char *a = path_of("a.avhd");
        struct operation *operation = begin(a);

        make_file(a);
        make_file(path_of("a.avhd.vhdd-intent"));
        operation_abandon(operation);
        cr_expect_eq(recover(NULL).n_undone, 1);
        cr_expect_not(is_there(a));
        cr_expect_not(is_there(path_of("a.avhd.vhdd-intent")));
        cr_expect_eq(n_rows(), 0);
}

Test(journal, finishes_what_was_committed)
{
        const char *a = path_of("a.avhd"), *b = path_of("b.avhd");
        struct operation *operation;

        make_file(b);
        operation = begin(a);
        make_file(a);
        cr_assert_eq(operation_will_remove(operation, b, &err), 0);
        commit_image(operation, a);
        cr_expect(operation_is_committed(operation));
        operation_abandon(operation);
        cr_expect_eq(recover(NULL).n_finished, 1);
        cr_expect(is_there(a));
        cr_expect_not(is_there(b));
        cr_expect_eq(n_rows(), 0);
        cr_expect_eq(recover(NULL).n_finished, 0);
}

Test(journal, never_removes_a_file_that_a_row_names)
{
        const char *a = path_of("a.avhd"), *b = path_of("b.avhd");
        struct image_row row = an_image(b);
        struct operation *operation;

        make_file(b);
        cr_assert_eq(catalog_image_insert(catalog, &row, &err), 0);
        operation = begin(a);
        make_file(a);
        row = an_image(a);
        cr_assert_eq(catalog_image_insert(catalog, &row, &err), 0);
        cr_assert_eq(operation_undo(operation, &err), 0, "%s", err.message);
        cr_expect(is_there(a));
        operation_free(operation);

        cr_assert_eq(operation_begin(
                             catalog, host_fs(), "delete", NULL, NULL, 0, NULL, &operation, &err),
                0);
        cr_assert_eq(operation_will_remove(operation, b, &err), 0);
        cr_assert_eq(catalog_begin(catalog, &err), 0);
        cr_assert_eq(operation_commit(operation, &err), 0, "%s", err.message);
        cr_assert_eq(operation_end(operation, &err), 0, "%s", err.message);
        cr_expect(is_there(b));
        operation_free(operation);
        cr_expect_eq(n_rows(), 0);
}

/* `disk attach --create` over a user's file: refusing it must not be what removes it. */
Test(journal, refuses_to_make_what_is_there_and_leaves_it_alone)
{
        const char *a = path_of("a.avhd"), *b = path_of("b.avhd");
        struct operation *operation = NULL;

        make_file(a);
        cr_assert_eq(
                operation_begin(catalog, host_fs(), "attach", NULL, &a, 1, NULL, &operation, &err),
                -EEXIST);
        cr_expect(strstr(err.message, "is there already") != NULL, "%s", err.message);
        cr_expect_eq(operation, NULL);
        cr_expect_eq(n_rows(), 0);

        operation = begin(b);
        make_file(b); /* somebody was quicker */
        cr_assert_eq(operation_not_made(operation, b, &err), 0, "%s", err.message);
        operation_free(operation);
        cr_expect(is_there(a));
        cr_expect(is_there(b));
        cr_expect_eq(n_rows(), 0);
}

Test(journal, leaves_a_kind_to_its_owner_who_finds_it_again)
{
        static const char *const but[] = {"take", NULL};
        const char *a = path_of("a.avhd");
        struct operation *operation = begin(a);
        int64_t id = operation_id(operation);

        make_file(a);
        operation_abandon(operation);
        cr_expect_eq(recover(but).n_undone, 0);
        cr_assert_eq(
                operation_load(catalog, host_fs(), id, &operation, &err), 0, "%s", err.message);
        cr_expect_str_eq(operation_kind(operation), "take");
        cr_expect_str_eq(
                json_string_value(json_object_get(operation_data(operation), "snapshot")), "s1");
        commit_image(operation, a);
        operation_free(operation);
        cr_expect(is_there(a));
        cr_expect_eq(n_rows(), 0);
        cr_expect_eq(operation_load(catalog, host_fs(), id, &operation, &err), -ENOENT);
}

Test(journal, takes_a_transaction_back_that_it_cannot_commit)
{
        const char *a = path_of("a.avhd");
        struct image_row row = an_image("/srv/child.avhd");
        struct operation *operation = begin(a);
        bool named = true;

        row.parent = (char *)"/srv/no such parent.vhd";
        make_file(a);
        cr_assert_eq(operation_made(operation, &err), 0);
        cr_assert_eq(catalog_begin(catalog, &err), 0);
        cr_assert_eq(catalog_image_insert(catalog, &row, &err), 0);
        cr_expect_eq(operation_commit(operation, &err), -EBUSY);
        cr_expect_not(catalog_in_transaction(catalog));
        operation_free(operation);
        cr_expect_not(is_there(a));
        cr_assert_eq(catalog_names_path(catalog, row.path, &named, &err), 0);
        cr_expect_not(named);
}

Test(journal, leaves_a_damaged_row_and_goes_on)
{
        int64_t id;
        struct journal_report report;
        struct operation *operation;

        cr_assert_eq(catalog_operation_begin(
                             catalog, "take", NULL, "{\"make\":[\"relative\"]}", &id, &err),
                0);
        operation = begin(path_of("a.avhd"));
        operation_abandon(operation);
        report = recover(NULL);
        cr_expect_eq(report.n_left, 1);
        cr_expect_eq(report.n_undone, 1);
        cr_expect(strstr(report.first.message, "is damaged") != NULL, "%s", report.first.message);
}

Test(journal, removes_the_folders_that_it_made_and_no_other)
{
        const char *outer = path_of("outer"), *inner = path_of("outer/inner");
        const char *a = path_of("outer/inner/a.avhd"), *theirs = path_of("outer/theirs");
        struct operation *operation = NULL;

        cr_assert_eq(
                operation_begin(catalog, host_fs(), "export", NULL, NULL, 0, NULL, &operation, &err),
                0, "%s", err.message);
        cr_assert_eq(operation_will_make_folder(operation, outer, &err), 0, "%s", err.message);
        cr_assert_eq(mkdir(outer, 0700), 0);
        cr_assert_eq(operation_will_make_folder(operation, inner, &err), 0, "%s", err.message);
        cr_assert_eq(mkdir(inner, 0700), 0);
        cr_assert_eq(operation_will_make(operation, a, &err), 0, "%s", err.message);
        make_file(a);
        make_file(theirs);
        operation_abandon(operation);
        cr_expect_eq(recover(NULL).n_undone, 1);
        cr_expect_not(is_there(inner));
        cr_expect(is_there(theirs), "somebody else's file was removed");
        cr_expect_eq(n_rows(), 0);
        unlink(theirs);
        cr_expect_eq(rmdir(outer), 0);
}
