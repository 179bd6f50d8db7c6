/* SPDX-License-Identifier: Apache-2.0 */
/* The catalog's tables, and how an older catalog becomes this version's.
 *
 * Step i brings version i to i + 1 (PRAGMA user_version), each in a transaction of its own. A step
 * that was released is never changed: a new one is put behind it.
 */
#include <stdio.h>

#include "vhdd/daemon/catalog_internal.h"

#define APPLICATION_ID 0x76686464 /* "vhdd" */

/* References between rows that one transaction may change in any order are checked at its end
 * (DEFERRABLE). A name is free again once its snapshot is hidden; a file that is only read may be
 * the disk of several vms. */
static const char step_0[] =
        "CREATE TABLE vm ("
        "  id TEXT NOT NULL PRIMARY KEY,"
        "  name TEXT NOT NULL UNIQUE,"
        "  created_us INTEGER NOT NULL,"
        "  settings TEXT NOT NULL,"
        "  directory TEXT,"
        "  snapshot_dir TEXT,"
        "  \"current\" TEXT REFERENCES snapshot (id) DEFERRABLE INITIALLY DEFERRED,"
        "  is_on_by_agent INTEGER NOT NULL,"
        "  undo TEXT"
        ") STRICT, WITHOUT ROWID;"

        "CREATE TABLE disk ("
        "  id TEXT NOT NULL PRIMARY KEY,"
        "  vm TEXT NOT NULL REFERENCES vm (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,"
        "  name TEXT NOT NULL,"
        "  file TEXT NOT NULL,"
        "  controller INTEGER NOT NULL,"
        "  bus INTEGER NOT NULL,"
        "  unit INTEGER NOT NULL,"
        "  kind TEXT NOT NULL,"
        "  read_only INTEGER NOT NULL,"
        "  size INTEGER NOT NULL,"
        "  created_us INTEGER NOT NULL,"
        "  UNIQUE (vm, name),"
        "  UNIQUE (vm, controller, bus, unit)"
        ") STRICT, WITHOUT ROWID;"
        "CREATE UNIQUE INDEX disk_file ON disk (file) WHERE read_only = 0;"
        "CREATE INDEX disk_any_file ON disk (file);"

        "CREATE TABLE image ("
        "  path TEXT NOT NULL PRIMARY KEY,"
        "  device INTEGER NOT NULL,"
        "  inode INTEGER NOT NULL,"
        "  birth_ns INTEGER NOT NULL,"
        "  uuid BLOB NOT NULL CHECK (length(uuid) = 16),"
        "  parent TEXT REFERENCES image (path) DEFERRABLE INITIALLY DEFERRED,"
        "  format TEXT NOT NULL,"
        "  made_by_us INTEGER NOT NULL,"
        "  state TEXT NOT NULL,"
        "  delete_after_us INTEGER NOT NULL,"
        "  sealed_size INTEGER NOT NULL,"
        "  sealed_mtime_ns INTEGER NOT NULL"
        ") STRICT, WITHOUT ROWID;"
        "CREATE INDEX image_parent ON image (parent);"

        "CREATE TABLE snapshot ("
        "  id TEXT NOT NULL PRIMARY KEY,"
        "  vm TEXT NOT NULL REFERENCES vm (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,"
        "  name TEXT NOT NULL,"
        "  parent TEXT REFERENCES snapshot (id) DEFERRABLE INITIALLY DEFERRED,"
        "  created_us INTEGER NOT NULL,"
        "  note TEXT,"
        "  settings TEXT NOT NULL,"
        "  state TEXT NOT NULL,"
        "  memory TEXT"
        ") STRICT, WITHOUT ROWID;"
        "CREATE UNIQUE INDEX snapshot_name ON snapshot (vm, name) WHERE state <> 'hidden';"
        "CREATE INDEX snapshot_vm ON snapshot (vm);"
        "CREATE INDEX snapshot_parent ON snapshot (parent);"
        "CREATE INDEX snapshot_memory ON snapshot (memory);"

        "CREATE TABLE snapshot_disk ("
        "  snapshot TEXT NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE"
        "    DEFERRABLE INITIALLY DEFERRED,"
        "  disk TEXT NOT NULL,"
        "  name TEXT NOT NULL,"
        "  file TEXT,"
        "  controller INTEGER NOT NULL,"
        "  bus INTEGER NOT NULL,"
        "  unit INTEGER NOT NULL,"
        "  kind TEXT NOT NULL,"
        "  read_only INTEGER NOT NULL,"
        "  size INTEGER NOT NULL,"
        "  skipped INTEGER NOT NULL,"
        "  PRIMARY KEY (snapshot, disk)"
        ") STRICT, WITHOUT ROWID;"
        "CREATE INDEX snapshot_disk_file ON snapshot_disk (file);"

        /* No reference to the vm: what was begun is undone whether its vm is there or not. */
        "CREATE TABLE operation ("
        "  id INTEGER PRIMARY KEY AUTOINCREMENT,"
        "  kind TEXT NOT NULL,"
        "  vm TEXT,"
        "  state TEXT NOT NULL CHECK (state IN ('begin', 'finish')),"
        "  payload TEXT NOT NULL"
        ") STRICT;"

        "CREATE TABLE job ("
        "  id INTEGER PRIMARY KEY AUTOINCREMENT,"
        "  kind TEXT NOT NULL,"
        "  vm TEXT REFERENCES vm (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,"
        "  payload TEXT NOT NULL,"
        "  state TEXT NOT NULL,"
        "  created_us INTEGER NOT NULL"
        ") STRICT;"
        "CREATE INDEX job_vm ON job (vm);";

/* What a snapshot's disks are worth by themselves, and whose memory the next start goes on from. */
static const char step_1[] =
        "ALTER TABLE snapshot ADD COLUMN consistency TEXT;"
        "ALTER TABLE vm ADD COLUMN resume TEXT REFERENCES snapshot (id) ON DELETE SET NULL"
        "  DEFERRABLE INITIALLY DEFERRED;"
        "CREATE INDEX vm_resume ON vm (resume);";

static const char *const steps[] = {step_0, step_1};
#define N_STEPS (sizeof(steps) / sizeof(steps[0]))

static int run_script(struct catalog *catalog, const char *sql, struct error *err)
{
        int code = sqlite3_exec(catalog->db, sql, NULL, NULL, NULL);

        return code == SQLITE_OK ? 0 : catalog_fail(catalog, code, "cannot make its tables", err);
}

static int migrate_one(struct catalog *catalog, size_t version, struct error *err)
{
        _cleanup_(catalog_rollbackp) __attribute__((unused)) struct catalog *transaction = catalog;
        char pragmas[128];
        int r;

        r = catalog_begin(catalog, err);
        if (r < 0)
                return r;
        r = run_script(catalog, steps[version], err);
        if (r < 0)
                return r;
        snprintf(pragmas, sizeof(pragmas), "PRAGMA user_version = %zu; PRAGMA application_id = %d;",
                version + 1, APPLICATION_ID);
        r = run_script(catalog, pragmas, err);
        if (r < 0)
                return r;
        return catalog_commit(catalog, err);
}

/* An empty data base is ours to fill; one that somebody else filled is not. */
static int check_ours(struct catalog *catalog, int64_t version, struct error *err)
{
        int64_t application = 0, n_tables = 0;
        int r;

        r = rows_number(catalog, "PRAGMA application_id", NULL, 0, &application, err);
        if (r < 0)
                return r;
        if (application == APPLICATION_ID)
                return 0;
        r = rows_number(catalog, "SELECT count(*) FROM sqlite_schema", NULL, 0, &n_tables, err);
        if (r < 0)
                return r;
        if (application != 0 || n_tables != 0 || version != 0)
                return fail(
                        err, ENOTSUP, "'%s' is a data base, but no catalog of vhdd", catalog->path);
        return 0;
}

int catalog_migrate(struct catalog *catalog, struct error *err)
{
        int64_t version = 0;
        int r;

        r = rows_number(catalog, "PRAGMA user_version", NULL, 0, &version, err);
        if (r < 0)
                return r;
        r = check_ours(catalog, version, err);
        if (r < 0)
                return r;
        if (version < 0 || version > (int64_t)N_STEPS) {
                fail(err, ENOTSUP,
                        "the catalog '%s' was written by a newer vhdd (its version is %lld; this "
                        "one knows %zu)",
                        catalog->path, (long long)version, N_STEPS);
                error_set_hint(err, "install the newer vhdd again");
                return -ENOTSUP;
        }
        for (size_t i = (size_t)version; i < N_STEPS; i++) {
                r = migrate_one(catalog, i, err);
                if (r < 0)
                        return fail_prefix(err, r, "cannot bring the catalog '%s' to version %zu",
                                catalog->path, i + 1);
        }
        return 0;
}
