/* SPDX-License-Identifier: Apache-2.0 */
/* A row that comes back changed, a name that two rows have, a commit that was none: each makes the
 * daemon serve the wrong file. So: what is written is read back, also by the next process; what
 * must not be is refused in one sentence; what a thread has not committed nobody sees. */
#include "vhdd/daemon/catalog.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define VM_1   "11111111-1111-4111-8111-111111111111"
#define VM_2   "22222222-2222-4222-8222-222222222222"
#define DISK_1 "aaaaaaaa-0000-4000-8000-000000000001"
#define DISK_2 "aaaaaaaa-0000-4000-8000-000000000002"
#define SNAP_1 "bbbbbbbb-0000-4000-8000-000000000001"
#define SNAP_2 "bbbbbbbb-0000-4000-8000-000000000002"

static char folder[64], path[128];
static struct catalog *catalog;
static struct error err;

static void reopen(void)
{
        catalog = catalog_close(catalog);
        cr_assert_eq(catalog_open(path, &catalog, &err), 0, "%s", err.message);
}

static void setup(void)
{
        strcpy(folder, "/tmp/vhdd-catalog-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        snprintf(path, sizeof(path), "%s/catalog.sqlite", folder);
        reopen();
}

static void teardown(void)
{
        static const char *const endings[] = {"", "-wal", "-shm", "-journal"};
        char name[160];

        catalog = catalog_close(catalog);
        for (size_t i = 0; i < 4; i++) {
                snprintf(name, sizeof(name), "%s%s", path, endings[i]);
                unlink(name);
        }
        rmdir(folder);
}

TestSuite(catalog, .init = setup, .fini = teardown);

static struct vm_row a_vm(const char *id, const char *name)
{
        struct vm_row row = {.name = (char *)name,
                .created_us = 1700000000123456,
                .settings = (char *)"{\"cpus\":2}"};

        strcpy(row.id, id);
        return row;
}

static struct disk_row a_disk(const char *id, const char *vm, const char *name, int unit)
{
        static char file[64];
        struct disk_row row = {.name = (char *)name,
                .file = file,
                .controller = 1,
                .unit = unit,
                .kind = "vhd",
                .size = UINT64_C(2040) << 30,
                .created_us = 5};

        snprintf(file, sizeof(file), "/srv/%s.vhd", name);
        strcpy(row.id, id);
        strcpy(row.vm, vm);
        return row;
}

static struct snapshot_row a_snapshot(const char *id, const char *name, const char *parent)
{
        struct snapshot_row row = {.vm = VM_1,
                .name = (char *)name,
                .created_us = 7,
                .settings = (char *)"{}",
                .state = "committed"};

        strcpy(row.id, id);
        strcpy(row.parent, parent);
        return row;
}

static void insert_vm(const char *id, const char *name)
{
        struct vm_row row = a_vm(id, name);

        cr_assert_eq(catalog_vm_insert(catalog, &row, &err), 0, "%s", err.message);
}

static int insert_snapshot(const char *id, const char *name, const char *parent)
{
        struct snapshot_row row = a_snapshot(id, name, parent);

        return catalog_snapshot_insert(catalog, &row, &err);
}

Test(catalog, gives_a_vm_back_to_the_next_process_as_it_was)
{
        struct vm_row row = a_vm(VM_1, "web 07 ü"), back;

        row.directory = (char *)"/srv/vm";
        row.is_on_by_agent = true;
        cr_assert_eq(catalog_vm_insert(catalog, &row, &err), 0, "%s", err.message);
        reopen();
        cr_assert_eq(catalog_vm_find(catalog, "web 07 ü", &back, &err), 0, "%s", err.message);
        cr_expect_str_eq(back.id, VM_1);
        cr_expect_eq(back.created_us, 1700000000123456);
        cr_expect_str_eq(back.settings, "{\"cpus\":2}");
        cr_expect_str_eq(back.directory, "/srv/vm");
        cr_expect(back.snapshot_dir == NULL);
        cr_expect_str_eq(back.current, "");
        cr_expect(back.is_on_by_agent);
        vm_row_done(&back);
}

/* An operation has the row in its hands for seconds, while the agent says that the vm is on now. */
Test(catalog, what_an_agent_says_and_what_an_operation_writes_do_not_undo_each_other)
{
        struct vm_row row = a_vm(VM_1, "a"), back;

        insert_vm(VM_1, "a");
        cr_assert_eq(catalog_vm_set_on(catalog, VM_1, true, &err), 0, "%s", err.message);
        row.settings = (char *)"{}";
        cr_assert_eq(catalog_vm_update(catalog, &row, &err), 0, "%s", err.message);
        reopen();
        cr_assert_eq(catalog_vm_find(catalog, VM_1, &back, &err), 0);
        cr_expect(back.is_on_by_agent);
        cr_expect_str_eq(back.settings, "{}");
        vm_row_done(&back);
        cr_assert_eq(catalog_vm_set_on(catalog, VM_1, false, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_vm_find(catalog, VM_1, &back, &err), 0);
        cr_expect_not(back.is_on_by_agent);
        cr_expect_str_eq(back.settings, "{}");
        vm_row_done(&back);
        cr_expect_eq(catalog_vm_set_on(catalog, VM_2, true, &err), -ENOENT);
}

Test(catalog, takes_an_id_wherever_a_name_is_in_either_case)
{
        struct vm_row back;

        insert_vm(VM_1, "a");
        insert_vm(VM_2, VM_1); /* somebody's idea of a name: the id wins */
        cr_assert_eq(catalog_vm_find(catalog, VM_1, &back, &err), 0);
        cr_expect_str_eq(back.name, "a");
        vm_row_done(&back);
        cr_assert_eq(catalog_vm_find(catalog, "A", &back, &err), -ENOENT);
        cr_expect_str_eq(err.message, "there is no vm 'A'");
}

Test(catalog, refuses_a_name_a_place_and_a_file_that_are_taken)
{
        struct vm_row vm = a_vm(VM_2, "a");
        struct disk_row row;

        insert_vm(VM_1, "a");
        cr_assert_eq(catalog_vm_insert(catalog, &vm, &err), -EEXIST);
        cr_expect_str_eq(err.message, "there is a vm of this name already");
        row = a_disk(DISK_1, VM_1, "d", 0);
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), 0, "%s", err.message);
        row = a_disk(DISK_2, VM_1, "d", 1);
        row.file = (char *)"/srv/other.vhd";
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), -EEXIST);
        cr_expect_str_eq(err.message, "the vm has a disk of this name already");
        row = a_disk(DISK_2, VM_1, "e", 0);
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), -EEXIST);
        cr_expect_str_eq(err.message, "the place is taken by another disk of the vm");
        row = a_disk(DISK_2, VM_1, "e", 1);
        row.file = (char *)"/srv/d.vhd";
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), -EEXIST);
        cr_expect_str_eq(err.message, "the file is a vm's disk already");
        row.read_only = true;
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), 0, "%s", err.message);
}

Test(catalog, lists_disks_by_place_and_finds_the_writable_one_of_a_file)
{
        struct disk_row row, *rows;
        size_t n;

        insert_vm(VM_1, "a");
        row = a_disk(DISK_1, VM_1, "late", 9);
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), 0);
        row = a_disk(DISK_2, VM_1, "early", 2);
        row.file = (char *)"/srv/late.vhd";
        row.read_only = true;
        cr_assert_eq(catalog_disk_insert(catalog, &row, &err), 0);
        cr_assert_eq(catalog_disk_list(catalog, VM_1, &rows, &n, &err), 0);
        cr_assert_eq(n, 2);
        cr_expect_str_eq(rows[0].name, "early");
        cr_expect_eq(rows[1].size, UINT64_C(2040) << 30);
        disk_rows_free(rows, n);
        cr_assert_eq(catalog_disk_find_file(catalog, "/srv/late.vhd", &row, &err), 0);
        cr_expect_str_eq(row.name, "late");
        disk_row_done(&row);
}

Test(catalog, keeps_all_sixty_four_bits_of_an_inode)
{
        struct image_row row = {.path = (char *)"/srv/x.vhd",
                                 .device = 65024,
                                 .inode = UINT64_MAX - 1,
                                 .birth_ns = -3,
                                 .uuid = {1, 0, 255},
                                 .format = "vhd",
                                 .state = "in-use",
                                 .sealed_mtime_ns = 1700000000123456789},
                         back;

        cr_assert_eq(catalog_image_put(catalog, &row, &err), 0, "%s", err.message);
        row.made_by_us = true;
        cr_assert_eq(catalog_image_put(catalog, &row, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_image_find(catalog, "/srv/x.vhd", &back, &err), 0);
        cr_expect_eq(back.inode, UINT64_MAX - 1);
        cr_expect_eq(back.birth_ns, -3);
        cr_expect_eq(back.sealed_mtime_ns, 1700000000123456789);
        cr_expect(memcmp(back.uuid, row.uuid, 16) == 0);
        cr_expect(back.made_by_us);
        cr_expect(back.parent == NULL);
        image_row_done(&back);
}

/* An image goes only when no other stands on it: whoever forgets to look is stopped here. */
Test(catalog, does_not_give_up_an_image_that_another_stands_on)
{
        struct image_row base = {
                .path = (char *)"/srv/base.vhd", .format = "vhd", .state = "in-use"};
        struct image_row child = {.path = (char *)"/srv/child.avhd",
                .parent = base.path,
                .format = "vhd",
                .state = "in-use"};
        bool named = false;

        cr_assert_eq(catalog_image_insert(catalog, &base, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_image_insert(catalog, &child, &err), 0, "%s", err.message);
        cr_expect_eq(catalog_image_delete(catalog, base.path, &err), -EBUSY);
        cr_assert_eq(catalog_begin(catalog, &err), 0);
        cr_expect_eq(catalog_image_delete(catalog, base.path, &err), 0);
        cr_expect_eq(catalog_image_delete(catalog, child.path, &err), 0);
        cr_expect_eq(catalog_commit(catalog, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_names_path(catalog, base.path, &named, &err), 0);
        cr_expect_not(named);
}

Test(catalog, frees_a_snapshots_name_when_it_is_hidden)
{
        struct snapshot_row row;

        insert_vm(VM_1, "a");
        cr_assert_eq(insert_snapshot(SNAP_1, "s", ""), 0, "%s", err.message);
        cr_assert_eq(insert_snapshot(SNAP_2, "s", SNAP_1), -EEXIST);
        row = a_snapshot(SNAP_1, "s", "");
        strcpy(row.state, "hidden");
        cr_assert_eq(catalog_snapshot_update(catalog, &row, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_snapshot_find(catalog, VM_1, "s", &row, &err), -ENOENT);
        cr_assert_eq(catalog_snapshot_find(catalog, VM_1, SNAP_1, &row, &err), 0);
        snapshot_row_done(&row);
        cr_assert_eq(insert_snapshot(SNAP_2, "s", SNAP_1), 0, "%s", err.message);
        cr_expect_eq(catalog_snapshot_delete(catalog, SNAP_1, &err), -EBUSY);
}

Test(catalog, removes_a_vm_with_its_disks_and_snapshots)
{
        struct disk_row disk = a_disk(DISK_1, VM_1, "d", 0), *disks;
        struct snapshot_disk_row held = {.snapshot = SNAP_1,
                .disk = DISK_1,
                .name = (char *)"d",
                .file = (char *)"/srv/frozen.vhd",
                .kind = "vhd"};
        struct vm_row vm = a_vm(VM_1, "a");
        struct job_row job = {
                .kind = (char *)"merge", .vm = VM_1, .payload = (char *)"{}", .state = "waiting"};
        int64_t id;
        bool named = false;
        size_t n;

        insert_vm(VM_1, "a");
        cr_assert_eq(catalog_disk_insert(catalog, &disk, &err), 0);
        cr_assert_eq(insert_snapshot(SNAP_1, "s", ""), 0, "%s", err.message);
        cr_assert_eq(catalog_snapshot_disk_insert(catalog, &held, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_job_insert(catalog, &job, &id, &err), 0, "%s", err.message);
        strcpy(vm.current, SNAP_1);
        cr_assert_eq(catalog_vm_update(catalog, &vm, &err), 0);
        cr_assert_eq(catalog_names_path(catalog, "/srv/frozen.vhd", &named, &err), 0);
        cr_expect(named);
        cr_assert_eq(catalog_vm_delete(catalog, VM_1, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_names_path(catalog, "/srv/frozen.vhd", &named, &err), 0);
        cr_expect_not(named);
        cr_assert_eq(catalog_disk_list(catalog, NULL, &disks, &n, &err), 0);
        cr_expect_eq(n, 0);
        disk_rows_free(disks, n);
        cr_expect_eq(catalog_job_delete(catalog, id, &err), -ENOENT);
        cr_expect_eq(catalog_vm_delete(catalog, VM_1, &err), -ENOENT);
}

Test(catalog, takes_back_what_was_not_committed)
{
        struct vm_row row;

        cr_assert_eq(catalog_begin(catalog, &err), 0, "%s", err.message);
        insert_vm(VM_1, "a");
        cr_expect(catalog_in_transaction(catalog));
        catalog_rollback(catalog);
        catalog_rollback(catalog); /* as a scope's end does */
        cr_expect_not(catalog_in_transaction(catalog));
        cr_expect_eq(catalog_vm_find(catalog, "a", &row, &err), -ENOENT);
        /* A refused statement leaves the transaction whole. */
        cr_assert_eq(catalog_begin(catalog, &err), 0);
        insert_vm(VM_1, "a");
        row = a_vm(VM_2, "a");
        cr_expect_eq(catalog_vm_insert(catalog, &row, &err), -EEXIST);
        cr_assert_eq(catalog_commit(catalog, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_vm_find(catalog, "a", &row, &err), 0);
        vm_row_done(&row);
}

static void *insert_in_steps(void *name)
{
        struct vm_row row = a_vm(strcmp(name, "one") == 0 ? VM_1 : VM_2, name);

        for (int i = 0; i < 50; i++) {
                struct error e;

                cr_assert_eq(catalog_begin(catalog, &e), 0, "%s", e.message);
                cr_assert_eq(catalog_vm_insert(catalog, &row, &e), 0, "%s", e.message);
                cr_assert_eq(catalog_vm_delete(catalog, row.id, &e), 0, "%s", e.message);
                if (i % 2)
                        catalog_rollback(catalog);
                else
                        cr_assert_eq(catalog_commit(catalog, &e), 0, "%s", e.message);
        }
        return NULL;
}

Test(catalog, shows_no_thread_anothers_transaction)
{
        pthread_t one, two;
        struct vm_row *rows;
        size_t n;

        pthread_create(&one, NULL, insert_in_steps, (void *)"one");
        pthread_create(&two, NULL, insert_in_steps, (void *)"two");
        for (int i = 0; i < 200; i++) {
                cr_assert_eq(catalog_vm_list(catalog, &rows, &n, &err), 0, "%s", err.message);
                cr_assert_eq(n, 0);
                vm_rows_free(rows, n);
        }
        pthread_join(one, NULL);
        pthread_join(two, NULL);
}

Test(catalog, holds_an_operation_until_it_ends)
{
        struct operation_row *rows;
        int64_t first, second;
        size_t n;

        cr_assert_eq(catalog_operation_begin(catalog, "take", VM_1, "{}", &first, &err), 0);
        cr_assert_eq(catalog_operation_begin(catalog, "attach", NULL, "{}", &second, &err), 0);
        cr_assert_eq(catalog_operation_finish_state(catalog, first, "{\"a\":1}", &err), 0);
        cr_expect_eq(catalog_operation_payload(catalog, first, "{}", &err), -ENOENT);
        reopen();
        cr_assert_eq(catalog_operation_list(catalog, &rows, &n, &err), 0);
        cr_assert_eq(n, 2);
        cr_expect_eq(rows[0].id, first);
        cr_expect_str_eq(rows[0].state, "finish");
        cr_expect_str_eq(rows[0].payload, "{\"a\":1}");
        cr_expect_str_eq(rows[0].vm, VM_1);
        cr_expect_str_eq(rows[1].state, "begin");
        cr_expect_str_eq(rows[1].vm, "");
        operation_rows_free(rows, n);
        cr_expect_eq(catalog_operation_end(catalog, first, &err), 0);
        cr_expect_eq(catalog_operation_end(catalog, first, &err), -ENOENT);
}

/* ---- opening ---- */

Test(catalog, is_one_process_at_a_time)
{
        pid_t child = fork();
        int status;

        if (child == 0) {
                struct catalog *second = NULL;
                struct error e;

                _exit(catalog_open(path, &second, &e) == -EBUSY ? 0 : 1);
        }
        cr_assert_eq(waitpid(child, &status, 0), child);
        cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
}

Test(catalog, survives_the_death_of_its_process_after_each_answer)
{
        pid_t child;
        int status;
        struct vm_row row;

        catalog = catalog_close(catalog);
        child = fork();
        if (child == 0) {
                struct error e;

                row = a_vm(VM_1, "a");
                if (catalog_open(path, &catalog, &e) < 0 ||
                        catalog_vm_insert(catalog, &row, &e) < 0)
                        _exit(1);
                kill(getpid(), SIGKILL);
        }
        cr_assert_eq(waitpid(child, &status, 0), child);
        cr_assert(WIFSIGNALED(status));
        reopen();
        cr_assert_eq(catalog_vm_find(catalog, "a", &row, &err), 0, "%s", err.message);
        vm_row_done(&row);
}

static void change_with_sqlite(const char *sql)
{
        sqlite3 *db;

        catalog = catalog_close(catalog);
        cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
        cr_assert_eq(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
        sqlite3_close(db);
}

/* Whoever updates the daemon keeps vms and snapshots. */
Test(catalog, brings_one_of_the_first_version_up_to_date)
{
        struct snapshot_row snapshot;
        struct vm_row vm;

        insert_vm(VM_1, "a");
        cr_assert_eq(insert_snapshot(SNAP_1, "s", ""), 0, "%s", err.message);
        change_with_sqlite("PRAGMA foreign_keys = OFF;"
                           "DROP INDEX vm_resume;"
                           "ALTER TABLE snapshot DROP COLUMN consistency;"
                           "CREATE TABLE first ("
                           "  id TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
                           "  created_us INTEGER NOT NULL, settings TEXT NOT NULL, directory TEXT,"
                           "  snapshot_dir TEXT, \"current\" TEXT REFERENCES snapshot (id)"
                           "  DEFERRABLE INITIALLY DEFERRED, is_on_by_agent INTEGER NOT NULL,"
                           "  undo TEXT) STRICT, WITHOUT ROWID;"
                           "INSERT INTO first SELECT id, name, created_us, settings, directory,"
                           "  snapshot_dir, 'bbbbbbbb-0000-4000-8000-000000000001',"
                           "  is_on_by_agent, undo FROM vm;"
                           "DROP TABLE vm;"
                           "PRAGMA legacy_alter_table = ON;"
                           "ALTER TABLE first RENAME TO vm;"
                           "PRAGMA user_version = 1;");
        reopen();
        cr_assert_eq(catalog_vm_find(catalog, "a", &vm, &err), 0, "%s", err.message);
        cr_expect_str_eq(vm.current, SNAP_1);
        cr_expect_str_eq(vm.settings, "{\"cpus\":2}");
        cr_expect_str_eq(vm.resume, "");
        vm_row_done(&vm);
        cr_assert_eq(catalog_snapshot_find(catalog, VM_1, "s", &snapshot, &err), 0);
        cr_expect_str_eq(snapshot.consistency, "");
        snapshot_row_done(&snapshot);
        cr_expect_eq(catalog_vm_set_resume(catalog, VM_1, SNAP_1, &err), 0, "%s", err.message);
        reopen();
        cr_assert_eq(catalog_vm_find(catalog, "a", &vm, &err), 0, "%s", err.message);
        cr_expect_str_eq(vm.resume, SNAP_1);
        vm_row_done(&vm);
}

/* A memory that is used twice meets disks that have moved on. */
Test(catalog, a_vm_that_is_on_or_whose_snapshot_is_gone_resumes_from_nothing)
{
        struct vm_row row = a_vm(VM_1, "a"), back;

        insert_vm(VM_1, "a");
        cr_assert_eq(insert_snapshot(SNAP_1, "s", ""), 0, "%s", err.message);
        cr_assert_eq(catalog_vm_set_resume(catalog, VM_1, SNAP_1, &err), 0, "%s", err.message);
        /* An operation that had read the row before does not put it back, nor take it away. */
        cr_assert_eq(catalog_vm_update(catalog, &row, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_vm_find(catalog, VM_1, &back, &err), 0);
        cr_expect_str_eq(back.resume, SNAP_1);
        cr_assert_eq(catalog_vm_set_on(catalog, VM_1, false, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_vm_set_on(catalog, VM_1, true, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_vm_update(catalog, &back, &err), 0, "%s", err.message);
        vm_row_done(&back);
        cr_assert_eq(catalog_vm_find(catalog, VM_1, &back, &err), 0);
        cr_expect_str_eq(back.resume, "");
        vm_row_done(&back);
        cr_assert_eq(catalog_vm_set_resume(catalog, VM_1, SNAP_1, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_snapshot_delete(catalog, SNAP_1, &err), 0, "%s", err.message);
        cr_assert_eq(catalog_vm_find(catalog, VM_1, &back, &err), 0);
        cr_expect_str_eq(back.resume, "");
        vm_row_done(&back);
        cr_expect_eq(catalog_vm_set_resume(catalog, VM_2, NULL, &err), -ENOENT);
        cr_expect_eq(catalog_vm_set_resume(catalog, VM_1, SNAP_2, &err), -EBUSY);
}

Test(catalog, refuses_one_that_a_newer_vhdd_wrote)
{
        change_with_sqlite("PRAGMA user_version = 1000");
        cr_expect_eq(catalog_open(path, &catalog, &err), -ENOTSUP);
        cr_expect(strstr(err.message, "newer vhdd") != NULL, "%s", err.message);
}

Test(catalog, refuses_a_data_base_that_is_no_catalog)
{
        change_with_sqlite("PRAGMA application_id = 77; CREATE TABLE other (x)");
        cr_expect_eq(catalog_open(path, &catalog, &err), -ENOTSUP);
        cr_expect(strstr(err.message, "no catalog of vhdd") != NULL, "%s", err.message);
}

Test(catalog, says_that_it_is_damaged_and_what_to_do)
{
        int fd;

        insert_vm(VM_1, "a");
        catalog = catalog_close(catalog);
        fd = open(path, O_WRONLY | O_CLOEXEC);
        cr_assert(fd >= 0);
        for (off_t at = 100; at < 3 * 4096; at += 64)
                cr_assert_eq(pwrite(fd, "\xff\xfe\xfd\xfc\xfb\xfa", 6, at), 6);
        close(fd);
        cr_expect_eq(catalog_open(path, &catalog, &err), -EUCLEAN, "%s", err.message);
        cr_expect(strstr(err.hint, "doctor --rebuild") != NULL, "%s", err.hint);
        cr_expect_eq(catalog, NULL);
}
