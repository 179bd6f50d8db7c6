/* SPDX-License-Identifier: Apache-2.0 */
/* catalog.h - what the daemon knows beside what the images say themselves (rule E14): which file is
 * a disk's leaf, names, snapshots, and what is being done.
 *
 * SQLite in WAL mode with synchronous=FULL: a call that answers 0 is durable. One process has it
 * open at a time. A commit whose outcome the system did not tell (a failed sync) closes the door:
 * nothing is read or changed any more until the catalog is opened again, because only what is then
 * found in the file says what happened (as E5 has it for images).
 *
 * Units      bytes; times are microseconds since 1970 UTC (_us), or nanoseconds (_ns).
 * Ownership  catalog_open hands out, catalog_close ends. Rows that are answered are the caller's,
 *            who ends one with its _row_done and a list with its _rows_free. A row that is given to
 *            _insert or _update stays the caller's, and is copied.
 * Errors     0 or -errno with one sentence.
 *              -ENOENT   there is no such row
 *              -EEXIST   the name, the place or the file is taken
 *              -EBUSY    other rows stand on this one; or another program has the catalog open
 *              -EUCLEAN  the data base is damaged (the hint says what to do)
 *              -ENOSPC   no space; nothing was changed
 *              -EIO      see above; the catalog wants to be opened again
 * Threads    every function from every thread (one lock inside). A transaction belongs to the
 *            thread that began it; the others wait for its end. Never call a worker inside one.
 *            Lock order: a vm's lock, then the catalog, then nothing.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/file.h"
#include "base/uuid.h"

struct catalog;

/* Opens the catalog at @path or makes it, and brings an older one to this version's schema.
 *   -EBUSY    another program has it open      -EUCLEAN  damaged
 *   -ENOTSUP  a newer vhdd has written it, or it is no catalog of ours */
int catalog_open(const char *path, struct catalog **ret, struct error *err);
/* The same over another place for files: @fs with SQLite's VFS of the name @vfs (tests). */
int catalog_open_on(
        struct fs *fs, const char *vfs, const char *path, struct catalog **ret, struct error *err);
struct catalog *catalog_close(struct catalog *catalog); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct catalog *, catalog_close)

/* BEGIN IMMEDIATE .. COMMIT. Without one each call is a transaction of its own. A transaction is
 * not begun inside another. A commit that fails has changed nothing, or, with -EIO, see above. */
int catalog_begin(struct catalog *catalog, struct error *err);
int catalog_commit(struct catalog *catalog, struct error *err);
/* Commits if @r is 0, else rolls back. Answers @r, or what the commit came back with. */
int catalog_end(struct catalog *catalog, int r, struct error *err);
/* Nothing if no transaction is open on this thread: so it may stand at the end of a scope. */
void catalog_rollback(struct catalog *catalog);
DEFINE_CLEANUP(struct catalog *, catalog_rollback)
/* Does this thread have one open? */
bool catalog_in_transaction(const struct catalog *catalog);
/* Whether a commit's outcome is unknown (-EIO above): nobody may undo or finish anything now. */
bool catalog_has_failed(struct catalog *catalog);

/* Is there a row of any kind (a disk, a snapshot's disk or memory, an image that was not given
 * up) that names @path? Such a file is never removed by anyone but who takes the row away. */
int catalog_names_path(struct catalog *catalog, const char *path, bool *ret, struct error *err);

/* ---- vms ---- */

struct vm_row {
        char id[UUID_TEXT_SIZE];
        char *name;
        int64_t created_us;
        char *settings;               /* a JSON object's text */
        char *directory;              /* of its first disk, where the sidecar lies; NULL: none */
        char *snapshot_dir;           /* for settings and memory; NULL: Snapshots/ beside */
        char current[UUID_TEXT_SIZE]; /* the snapshot the running state descends from, or "" */
        bool is_on_by_agent;
        char resume
                [UUID_TEXT_SIZE]; /* the snapshot from whose memory the next start goes on, or "" */
        char *undo;               /* JSON: what `snapshot undo` brings back, or NULL */
};

void vm_row_done(struct vm_row *row);
struct vm_row *vm_rows_free(struct vm_row *rows, size_t n);
int catalog_vm_list(struct catalog *catalog, struct vm_row **ret, size_t *ret_n,
        struct error *err); /* by name */
int catalog_vm_find(
        struct catalog *catalog, const char *name_or_id, struct vm_row *ret, struct error *err);
int catalog_vm_insert(struct catalog *catalog, const struct vm_row *row, struct error *err);
/* All but is_on_by_agent and resume, which their own functions change. */
int catalog_vm_update(struct catalog *catalog, const struct vm_row *row, struct error *err);
/* One that is on goes on from no memory any more. */
int catalog_vm_set_on(struct catalog *catalog, const char *id, bool on, struct error *err);
/* @snapshot: its id, or NULL. */
int catalog_vm_set_resume(
        struct catalog *catalog, const char *id, const char *snapshot, struct error *err);
/* With its disks, snapshots and jobs. Its images' rows stay: they are about files. */
int catalog_vm_delete(struct catalog *catalog, const char *id, struct error *err);

/* ---- disks ---- */

struct disk_row {
        char id[UUID_TEXT_SIZE];
        char vm[UUID_TEXT_SIZE];
        char *name;
        char *file;     /* absolute path of the leaf as it is now */
        int controller; /* 0 ide, 1 scsi */
        int bus, unit;
        char kind[16]; /* "vhd", "raw", "pass-through" */
        bool read_only;
        uint64_t size;
        int64_t created_us;
};

void disk_row_done(struct disk_row *row);
struct disk_row *disk_rows_free(struct disk_row *rows, size_t n);
/* Of one vm, or of all (@vm NULL); by controller, bus and unit. */
int catalog_disk_list(struct catalog *catalog, const char *vm, struct disk_row **ret, size_t *ret_n,
        struct error *err);
int catalog_disk_find(struct catalog *catalog, const char *vm, const char *name_or_id,
        struct disk_row *ret, struct error *err);
/* The disk whose leaf is @file (the writable one, if several read it). */
int catalog_disk_find_file(
        struct catalog *catalog, const char *file, struct disk_row *ret, struct error *err);
int catalog_disk_insert(struct catalog *catalog, const struct disk_row *row, struct error *err);
int catalog_disk_update(struct catalog *catalog, const struct disk_row *row, struct error *err);
int catalog_disk_delete(struct catalog *catalog, const char *id, struct error *err);

/* ---- images ---- */

/* An image that some disk or snapshot uses, as it was when it was resolved: a running worker gets
 * exactly these. */
struct image_row {
        char *path;
        uint64_t device, inode;
        int64_t birth_ns;
        uint8_t uuid[16];
        char *parent; /* path of an image that has a row, or NULL */
        char format[8];
        bool made_by_us;
        char state[12];          /* "in-use", "hidden" (waits for a merge), "discarded" */
        int64_t delete_after_us; /* of discarded: when it goes; 0: at once */
        uint64_t sealed_size;    /* as it was when it was frozen; mtime 0: it is not */
        int64_t sealed_mtime_ns;
};

void image_row_done(struct image_row *row);
struct image_row *image_rows_free(struct image_row *rows, size_t n);
/* All, or those in @state; by path. */
int catalog_image_list(struct catalog *catalog, const char *state, struct image_row **ret,
        size_t *ret_n, struct error *err);
/* Those that name @path as their parent. */
int catalog_image_children(struct catalog *catalog, const char *path, struct image_row **ret,
        size_t *ret_n, struct error *err);
int catalog_image_find(
        struct catalog *catalog, const char *path, struct image_row *ret, struct error *err);
int catalog_image_insert(struct catalog *catalog, const struct image_row *row, struct error *err);
int catalog_image_update(struct catalog *catalog, const struct image_row *row, struct error *err);
/* Inserted, or updated where there is one. */
int catalog_image_put(struct catalog *catalog, const struct image_row *row, struct error *err);
/* Refused at the transaction's end (-EBUSY) while another image names it as its parent. */
int catalog_image_delete(struct catalog *catalog, const char *path, struct error *err);

/* ---- snapshots ---- */

struct snapshot_row {
        char id[UUID_TEXT_SIZE];
        char vm[UUID_TEXT_SIZE];
        char *name;
        char parent[UUID_TEXT_SIZE]; /* or "" */
        int64_t created_us;
        char *note;     /* or NULL */
        char *settings; /* JSON: the vm's settings and disks as they were */
        char state[12]; /* "pending", "committed", "hidden" (deleted; its name is free again) */
        char *memory;   /* path of the saved memory, or NULL */
        char consistency[12]; /* "filesystem": they were frozen; "memory"; "crash" or "": neither */
};

struct snapshot_disk_row {
        char snapshot[UUID_TEXT_SIZE];
        char disk[UUID_TEXT_SIZE]; /* as it was called then; that disk may be gone */
        char *name;
        char *file; /* the frozen image; NULL if it was left out */
        int controller, bus, unit;
        char kind[16];
        bool read_only;
        uint64_t size;
        bool skipped; /* a pass-through disk that was left out */
};

void snapshot_row_done(struct snapshot_row *row);
struct snapshot_row *snapshot_rows_free(struct snapshot_row *rows, size_t n);
/* In every state; oldest first. */
int catalog_snapshot_list(struct catalog *catalog, const char *vm, struct snapshot_row **ret,
        size_t *ret_n, struct error *err);
/* By name (not of hidden ones) or by id (of any). */
int catalog_snapshot_find(struct catalog *catalog, const char *vm, const char *name_or_id,
        struct snapshot_row *ret, struct error *err);
int catalog_snapshot_children(struct catalog *catalog, const char *id, struct snapshot_row **ret,
        size_t *ret_n, struct error *err);
int catalog_snapshot_insert(
        struct catalog *catalog, const struct snapshot_row *row, struct error *err);
int catalog_snapshot_update(
        struct catalog *catalog, const struct snapshot_row *row, struct error *err);
/* With its disks' rows. Refused at the transaction's end (-EBUSY) while another snapshot, or its
 * vm's current, names it. */
int catalog_snapshot_delete(struct catalog *catalog, const char *id, struct error *err);

void snapshot_disk_row_done(struct snapshot_disk_row *row);
struct snapshot_disk_row *snapshot_disk_rows_free(struct snapshot_disk_row *rows, size_t n);
/* Of one snapshot; by controller, bus and unit. */
int catalog_snapshot_disk_list(struct catalog *catalog, const char *snapshot,
        struct snapshot_disk_row **ret, size_t *ret_n, struct error *err);
/* Of every snapshot that has @file frozen. */
int catalog_snapshot_disk_list_file(struct catalog *catalog, const char *file,
        struct snapshot_disk_row **ret, size_t *ret_n, struct error *err);
int catalog_snapshot_disk_insert(
        struct catalog *catalog, const struct snapshot_disk_row *row, struct error *err);
int catalog_snapshot_disk_update(
        struct catalog *catalog, const struct snapshot_disk_row *row, struct error *err);

/* ---- operations under way (vhdd/daemon/journal.h writes them) ---- */

struct operation_row {
        int64_t id;
        char *kind;
        char vm[UUID_TEXT_SIZE]; /* or "" */
        char state[8];           /* "begin": to be undone; "finish": to be finished */
        char *payload;           /* JSON */
};

void operation_row_done(struct operation_row *row);
struct operation_row *operation_rows_free(struct operation_row *rows, size_t n);
int catalog_operation_list(struct catalog *catalog, struct operation_row **ret, size_t *ret_n,
        struct error *err); /* oldest first */
int catalog_operation_begin(struct catalog *catalog, const char *kind, const char *vm /* or NULL */,
        const char *payload, int64_t *ret_id, struct error *err);
/* State "begin" still: more paths than were known at first. */
int catalog_operation_payload(
        struct catalog *catalog, int64_t id, const char *payload, struct error *err);
/* State "finish" with a new payload: inside the transaction that is the point of no return. */
int catalog_operation_finish_state(
        struct catalog *catalog, int64_t id, const char *payload, struct error *err);
int catalog_operation_end(struct catalog *catalog, int64_t id, struct error *err);

/* ---- jobs ---- */

struct job_row {
        int64_t id;
        char *kind; /* "merge" */
        char vm[UUID_TEXT_SIZE];
        char *payload;  /* JSON */
        char state[12]; /* "waiting", ... */
        int64_t created_us;
};

void job_row_done(struct job_row *row);
struct job_row *job_rows_free(struct job_row *rows, size_t n);
/* Of one vm, or of all (@vm NULL); oldest first. */
int catalog_job_list(struct catalog *catalog, const char *vm, struct job_row **ret, size_t *ret_n,
        struct error *err);
int catalog_job_find(struct catalog *catalog, int64_t id, struct job_row *ret, struct error *err);
/* Answers the new row's id; row->id is not looked at. */
int catalog_job_insert(
        struct catalog *catalog, const struct job_row *row, int64_t *ret_id, struct error *err);
int catalog_job_update(struct catalog *catalog, const struct job_row *row, struct error *err);
int catalog_job_delete(struct catalog *catalog, int64_t id, struct error *err);
