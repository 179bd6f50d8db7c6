/* SPDX-License-Identifier: Apache-2.0 */
/* The data base itself: opening, transactions, prepared statements, SQLite's errors as ours. */
#include "vhdd/daemon/catalog.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "vhdd/daemon/catalog_internal.h"

#define BUSY_TIMEOUT_MS 2000 /* as for an image's lock: a dead process's may outlive it a little */

/* The catalog whose transaction this thread is in, and so holds the lock of. */
static _Thread_local struct catalog *my_transaction;

/* ---- errors ---- */

/* "UNIQUE constraint failed: vm.name", and what it means. */
static const struct {
        const char *columns, *sentence;
} taken[] = {
        {": vm.name", "there is a vm of this name already"},
        {": vm.id", "there is a vm with this id already"},
        {": disk.vm, disk.name", "the vm has a disk of this name already"},
        {": disk.vm, disk.controller", "the place is taken by another disk of the vm"},
        {": disk.file", "the file is a vm's disk already"},
        {": disk.id", "there is a disk with this id already"},
        {": image.path", "the image is in the catalog already"},
        {": snapshot.vm, snapshot.name", "the vm has a snapshot of this name already"},
        {": snapshot.id", "there is a snapshot with this id already"},
        {": snapshot_disk.", "the snapshot holds this disk already"},
};

static int fail_constraint(struct catalog *catalog, int code, const char *doing, struct error *err)
{
        const char *words = sqlite3_errmsg(catalog->db);

        if (code == SQLITE_CONSTRAINT_FOREIGNKEY)
                return fail(err, EBUSY,
                        "%s: another row of the catalog stands on it, or what it names is not "
                        "there",
                        doing);
        if (code != SQLITE_CONSTRAINT_UNIQUE && code != SQLITE_CONSTRAINT_PRIMARYKEY)
                return fail(err, EINVAL, "%s: %s", doing, words);
        for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++)
                if (strstr(words, taken[i].columns))
                        return fail(err, EEXIST, "%s", taken[i].sentence);
        return fail(err, EEXIST, "%s: %s", doing, words);
}

int catalog_fail(struct catalog *catalog, int code, const char *doing, struct error *err)
{
        const char *words = sqlite3_errmsg(catalog->db);
        int r;

        switch (code & 0xff) {
        case SQLITE_CONSTRAINT: return fail_constraint(catalog, code, doing, err);
        case SQLITE_FULL:
                r = fail(err, ENOSPC, "%s: no space is left for '%s'", doing, catalog->path);
                break;
        case SQLITE_BUSY:
        case SQLITE_LOCKED:
                r = fail(err, EBUSY, "%s: another program has '%s' open", doing, catalog->path);
                break;
        case SQLITE_CORRUPT:
        case SQLITE_NOTADB:
                r = fail(err, EUCLEAN, "%s: '%s' is damaged: %s", doing, catalog->path, words);
                error_set_hint(err,
                        "move it and its -wal file away, start vhdd, and run: vhdctl doctor "
                        "--rebuild");
                break;
        case SQLITE_NOMEM: r = fail(err, ENOMEM, "%s: no memory", doing); break;
        case SQLITE_CANTOPEN:
                r = fail(err, EACCES, "%s: cannot open '%s'", doing, catalog->path);
                break;
        case SQLITE_READONLY:
                r = fail(err, EROFS, "%s: '%s' cannot be written", doing, catalog->path);
                break;
        default: r = fail(err, EIO, "%s: '%s': %s", doing, catalog->path, words); break;
        }
        error_set_file(err, catalog->path);
        return r;
}

/* ---- the lock, and statements ---- */

pthread_mutex_t *catalog_lock(struct catalog *catalog)
{
        return my_transaction == catalog ? NULL : mutex_lock(&catalog->lock);
}

int catalog_check_locked(struct catalog *catalog, struct error *err)
{
        if (!catalog->failed)
                return 0;
        fail(err, EIO,
                "whether the last change of the catalog '%s' is durable is not known: a sync failed",
                catalog->path);
        error_set_file(err, catalog->path);
        error_set_hint(err, "look after the disk, then: vhdctl restart");
        return -EIO;
}

bool catalog_has_failed(struct catalog *catalog)
{
        pthread_mutex_t *lock _cleanup_(cleanup_unlock) = catalog_lock(catalog);

        (void)lock;
        return catalog->failed;
}

int catalog_prepare_locked(
        struct catalog *catalog, const char *sql, sqlite3_stmt **ret, struct error *err)
{
        _cleanup_free_ char *copy = NULL;
        size_t n = catalog->n_statements;
        int code;

        for (size_t i = 0; i < n; i++)
                if (strcmp(catalog->statements[i].sql, sql) == 0) {
                        *ret = catalog->statements[i].statement;
                        return 0;
                }
        assert(n < STATEMENTS_MAX);
        copy = strdup(sql);
        if (!copy)
                return fail(err, ENOMEM, "no memory for a statement of the catalog");
        code = sqlite3_prepare_v3(catalog->db, sql, -1, SQLITE_PREPARE_PERSISTENT,
                &catalog->statements[n].statement, NULL);
        if (code != SQLITE_OK)
                return catalog_fail(catalog, code, "cannot read the catalog", err);
        catalog->statements[n].sql = TAKE_PTR(copy);
        *ret = catalog->statements[n].statement;
        catalog->n_statements = n + 1;
        return 0;
}

/* ---- transactions ---- */

int catalog_begin(struct catalog *catalog, struct error *err)
{
        int r;

        assert(!my_transaction);
        mutex_lock(&catalog->lock);
        my_transaction = catalog;
        r = rows_run(catalog, "BEGIN IMMEDIATE", NULL, 0, NULL, err);
        if (r < 0) {
                my_transaction = NULL;
                pthread_mutex_unlock(&catalog->lock);
        }
        return r;
}

static void leave(struct catalog *catalog)
{
        my_transaction = NULL;
        pthread_mutex_unlock(&catalog->lock);
}

int catalog_commit(struct catalog *catalog, struct error *err)
{
        int r;

        assert(my_transaction == catalog);
        r = rows_run(catalog, "COMMIT", NULL, 0, NULL, err);
        if (r < 0) {
                /* Its frames may lie in the log, whole, and be found there after a power cut. */
                if (r == -EIO)
                        catalog->failed = true;
                catalog_rollback(catalog);
                return r;
        }
        leave(catalog);
        return 0;
}

int catalog_end(struct catalog *catalog, int r, struct error *err)
{
        if (r == 0)
                r = catalog_commit(catalog, err);
        if (r != 0)
                catalog_rollback(catalog);
        return r;
}

void catalog_rollback(struct catalog *catalog)
{
        if (my_transaction != catalog)
                return;
        /* A failure may have rolled it back already. */
        if (!sqlite3_get_autocommit(catalog->db))
                sqlite3_exec(catalog->db, "ROLLBACK", NULL, NULL, NULL);
        leave(catalog);
}

bool catalog_in_transaction(const struct catalog *catalog)
{
        return my_transaction == catalog;
}

/* ---- opening ---- */

/* Exclusive before WAL: nobody else reads along, and so the log's index is memory of ours and no
 * file that is mapped (a full disk under a mapping is a SIGBUS). */
static int configure(struct catalog *catalog, struct error *err)
{
        static const char pragmas[] = "PRAGMA locking_mode = EXCLUSIVE;"
                                      "PRAGMA journal_mode = WAL;"
                                      "PRAGMA synchronous = FULL;"
                                      "PRAGMA foreign_keys = ON;"
                                      "PRAGMA trusted_schema = OFF;"
                                      "PRAGMA cell_size_check = ON;"
                                      "PRAGMA temp_store = MEMORY;"
                                      "PRAGMA mmap_size = 0;"
                                      "PRAGMA journal_size_limit = 4194304;";
        int code;

        sqlite3_extended_result_codes(catalog->db, 1);
        sqlite3_busy_timeout(catalog->db, BUSY_TIMEOUT_MS);
        sqlite3_db_config(catalog->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
        code = sqlite3_exec(catalog->db, pragmas, NULL, NULL, NULL);
        if (code != SQLITE_OK)
                return catalog_fail(catalog, code, "cannot open the catalog", err);
        return 0;
}

/* What a dead process committed may lie in the page cache alone, and is read all the same: whoever
 * acted on it (removed the files that a row no longer names) and was then cut off would find the rows
 * back and the files gone. So the log is synced before anything is believed; a checkpoint does that
 * first. That there is no space to move its pages then is no harm: they stay in the log. */
static int make_durable(struct catalog *catalog, struct error *err)
{
        int code = sqlite3_wal_checkpoint_v2(
                catalog->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);

        if (code == SQLITE_OK || (code & 0xff) == SQLITE_FULL)
                return 0;
        return catalog_fail(catalog, code, "cannot make the catalog durable", err);
}

/* The catalog is small: looking through all of it costs milliseconds, and finds what a bad disk did
 * before a wrong row becomes somebody's leaf. */
static int check_whole(struct catalog *catalog, struct error *err)
{
        sqlite3_stmt *statement = NULL;
        const char *words;
        int code, r = 0;

        code = sqlite3_prepare_v2(catalog->db, "PRAGMA quick_check(1)", -1, &statement, NULL);
        if (code == SQLITE_OK)
                code = sqlite3_step(statement);
        words = code == SQLITE_ROW ? (const char *)sqlite3_column_text(statement, 0) : NULL;
        if (code != SQLITE_ROW)
                r = catalog_fail(catalog, code, "cannot check the catalog", err);
        else if (!words || strcmp(words, "ok") != 0) {
                fail(err, EUCLEAN, "the catalog '%s' is damaged: %s", catalog->path,
                        words ? words : "no memory to say how");
                error_set_file(err, catalog->path);
                error_set_hint(err,
                        "move it and its -wal file away, start vhdd, and run: vhdctl doctor "
                        "--rebuild");
                r = -EUCLEAN;
        }
        sqlite3_finalize(statement);
        return r;
}

int catalog_open_on(
        struct fs *fs, const char *vfs, const char *path, struct catalog **ret, struct error *err)
{
        _cleanup_(catalog_closep) struct catalog *catalog = calloc(1, sizeof(*catalog));
        int code, r;

        if (!catalog)
                return fail(err, ENOMEM, "no memory for the catalog");
        pthread_mutex_init(&catalog->lock, NULL);
        catalog->fs = fs;
        catalog->path = strdup(path);
        if (!catalog->path)
                return fail(err, ENOMEM, "no memory for the catalog");
        code = sqlite3_open_v2(path, &catalog->db,
                SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                        SQLITE_OPEN_NOFOLLOW,
                vfs);
        if (!catalog->db)
                return fail(err, ENOMEM, "no memory for the catalog");
        if (code != SQLITE_OK)
                return catalog_fail(catalog, code, "cannot open the catalog", err);
        r = configure(catalog, err);
        if (r == 0)
                r = make_durable(catalog, err);
        if (r == 0)
                r = check_whole(catalog, err);
        if (r == 0)
                r = catalog_migrate(catalog, err);
        if (r < 0)
                return r;
        r = fs_sync_directory(fs, path);
        if (r < 0)
                return fail_os(err, -r, "cannot sync the folder of the catalog '%s'", path);
        *ret = TAKE_PTR(catalog);
        return 0;
}

int catalog_open(const char *path, struct catalog **ret, struct error *err)
{
        return catalog_open_on(host_fs(), NULL, path, ret, err);
}

struct catalog *catalog_close(struct catalog *catalog)
{
        if (!catalog)
                return NULL;
        catalog_rollback(catalog);
        for (size_t i = 0; i < catalog->n_statements; i++) {
                sqlite3_finalize(catalog->statements[i].statement);
                free(catalog->statements[i].sql);
        }
        sqlite3_close(catalog->db);
        pthread_mutex_destroy(&catalog->lock);
        free(catalog->path);
        free(catalog);
        return NULL;
}
