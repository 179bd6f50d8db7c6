/* SPDX-License-Identifier: Apache-2.0 */
/* journal.h - operations that change files and catalog together, all or nothing.
 *
 *      operation_begin    every path that will be made is in a durable row of the catalog
 *   -> the files are made, written and synced (by whoever can: a worker, usually)
 *   -> operation_made     their directories are synced
 *   -> catalog_begin, the rows as they shall be, operation_commit     the point of no return
 *   -> what else follows (the worker closes what goes)
 *   -> operation_end      what goes is unlinked, the directories synced, the journal's row deleted
 *
 * Invariants
 *   J1  a file that the daemon makes is named by a durable row from before it exists until it is
 *       gone: first the journal's, then disk's, snapshot's or image's.
 *   J2  a row names a file only after the file's directory is synced (E14).
 *   J3  a file is unlinked only when no row but the journal's names it (E14); looked up again right
 *       before the unlink, whatever the journal says.
 *   J4  the journal's row goes last, after the unlinks are durable.
 * So whatever is cut off in the middle is undone (not committed) or finished (committed) by
 * journal_recover() at the next start, from what the row says, without a question.
 *
 * When a commit's outcome is unknown (catalog_has_failed()) an operation does nothing more: the next
 * opening of the catalog finds it committed or not.
 *
 * Units      none.
 * Ownership  operation_begin and operation_load hand out; operation_free ends, and undoes what was
 *            not committed or finishes what was. Paths are copied.
 * Errors     0 or -errno with one sentence. A file that is gone already is no error.
 * Threads    an operation belongs to one thread at a time.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/file.h"

struct catalog;
struct operation;

/* @make: absolute paths that will be made. One that is there already is refused (-EEXIST), because
 * undoing would take somebody's file; so whoever makes them makes them exclusively, and tells of one
 * that was there by then with operation_not_made(). @data (may be NULL): what the kind's owner wants
 * to find again; copied. Not inside a transaction.   -EINVAL a path is no UTF-8 */
int operation_begin(struct catalog *catalog, struct fs *fs, const char *kind,
        const char *vm /* id, or NULL */, const char *const *make, size_t n_make,
        const json_t *data, struct operation **ret, struct error *err);
/* One more path, before it is made. */
int operation_will_make(struct operation *operation, const char *path, struct error *err);
/* One more folder, before it is made: undoing removes it, after the files, if nothing else is in it. */
int operation_will_make_folder(struct operation *operation, const char *path, struct error *err);
/* Somebody else made it, in the meantime. */
int operation_not_made(struct operation *operation, const char *path, struct error *err);
/* Goes, once this is committed. Not durable before. */
int operation_will_remove(struct operation *operation, const char *path, struct error *err);

/* The files are there, written and synced: makes their names durable (J2). */
int operation_made(struct operation *operation, struct error *err);
/* Inside the transaction that this thread began, after its last change: commits it, and with it that
 * the operation is to be finished. Refuses when operation_made() is wanting. A failure rolls the
 * transaction back. */
int operation_commit(struct operation *operation, struct error *err);
/* After the commit: unlinks what was to go, and deletes the row. A failure leaves the row for the
 * next start; the operation itself has succeeded. */
int operation_end(struct operation *operation, struct error *err);
/* Before the commit: unlinks what was made and is named by no row, and deletes the row. */
int operation_undo(struct operation *operation, struct error *err);
/* Also when it has ended since. */
bool operation_is_committed(const struct operation *operation);

/* Undoes or ends what still stands, and forgets it. NULL is fine; always returns NULL. */
struct operation *operation_free(struct operation *operation);
/* Forgets it and leaves the row as it is: what a process that dies does. Always returns NULL. */
struct operation *operation_abandon(struct operation *operation);
DEFINE_CLEANUP(struct operation *, operation_free)

int64_t operation_id(const struct operation *operation);
const char *operation_kind(const struct operation *operation);
const char *operation_vm(const struct operation *operation); /* id, or "" */
const json_t *operation_data(
        const struct operation *operation); /* NULL: none. Lives as long as it */

/* One that an earlier process left.   -ENOENT there is none   -EUCLEAN its payload is damaged */
int operation_load(struct catalog *catalog, struct fs *fs, int64_t id, struct operation **ret,
        struct error *err);

struct journal_report {
        unsigned n_undone, n_finished;
        unsigned n_left; /* could not be undone or finished: their rows stay for the next start */
        struct error first; /* why not, of the first of these */
};
/* At the start: undoes or finishes each operation that was cut off, except, not yet committed, those
 * of the kinds @but (ended by NULL; may be NULL), whose owner settles them with operation_load():
 * a snapshot that a worker may have switched already is rolled forward (E10). Answers 0 unless the
 * catalog itself cannot be read. */
int journal_recover(struct catalog *catalog, struct fs *fs, const char *const *but,
        struct journal_report *ret, struct error *err);
