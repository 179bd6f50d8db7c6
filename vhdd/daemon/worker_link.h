/* SPDX-License-Identifier: Apache-2.0 */
/* worker_link.h - what a vm's worker has open and serves, kept in step with the catalog.
 *
 * Units      milliseconds where a name ends in _ms; bytes.
 * Ownership  paths and rows are copied.
 * Errors     0 or -errno with one sentence: the worker's own. -EHOSTDOWN: it died meanwhile; then
 *            whoever holds the lock may call worker_up(), which finds out what it still did.
 * Threads    all with the vm's lock held, but for worker_ask, worker_clients and
 *            worker_has_trouble.
 */
#pragma once

#include "vhdd/daemon/images.h"
#include "vhdd/daemon/vms.h"

#define WORKER_CALL_MS 60000

/* The vm's worker is alive and has exactly the chains and exports that the catalog says; what was cut
 * off is finished or undone first. Quick when it is so already. */
int worker_up(struct vm *vm, struct error *err);
/* Is there a disk that is not served because its image could not be opened? Any thread, without the lock. */
bool worker_has_trouble(struct vm *vm);
/* Such a one is tried again, if it is time: the 1st, 2nd, 4th, 8th ... call. 1: all are served now. What is wrong with
 * one still is no error of this. */
int worker_retry(struct vm *vm, struct error *err);
/* Ends it in good order: nothing is served any more. */
int worker_down(struct vm *vm, unsigned timeout_ms, struct error *err);

/* One question. @params is taken over. @ret may be NULL. */
int worker_call(struct vm *vm, const char *method, json_t *params, unsigned timeout_ms,
        json_t **ret, struct error *err);
/* The same without the vm's lock: -EHOSTDOWN when there is no worker just now. */
int worker_ask(struct vm *vm, const char *method, json_t *params, unsigned timeout_ms, json_t **ret,
        struct error *err);

/* Everybody who has an export of the vm open: an array as the worker answers it. */
int worker_clients(struct vm *vm, unsigned timeout_ms, json_t **ret, struct error *err);
/* Those of @export_name, or, with NULL, those of live disks (not of snapshots, not of @now). */
size_t clients_count(const json_t *clients, const char *export_name);

/* Opens a chain of these images; grants what is needed. @writable: the leaf. */
int worker_chain_open(struct vm *vm, const char *name, const struct image_chain *images,
        bool writable, struct error *err);
int worker_chain_close(struct vm *vm, const char *name, struct error *err);
/* Another size for the leaf, while no export has it: the chain is closed, and opened again. What it has
 * then, also after a failure, worker_stale() and worker_up() find out. */
int worker_chain_resize(struct vm *vm, const char *name, const struct image_chain *images,
        uint64_t size, bool shrink, bool force, struct error *err);
struct vm_chain *worker_chain_find(struct vm *vm, const char *name);
/* Is @path one of its images? NULL has none. */
bool worker_chain_has(const struct vm_chain *chain, const char *path);
/* A snapshot put @path on top. */
int worker_chain_pushed(struct vm *vm, const char *name, const char *path, struct error *err);

/* A merge took the images @gone out of the chains that have @with, or, with NULL, out of all. */
void worker_chain_merged(struct vm *vm, const char *with, const json_t *gone);

/* A live disk's two exports: VM/DISK and VM/DISK@now. Adding again renews what they say. */
int worker_disk_serve(
        struct vm *vm, const struct vm_row *row, const struct disk_row *disk, struct error *err);
/* Takes them away: -EBUSY while clients are there after @timeout_ms, unless @force. On failure both
 * are there as before. */
int worker_disk_withdraw(struct vm *vm, const struct vm_row *row, const char *disk_name, bool force,
        unsigned timeout_ms, struct error *err);

/* VM/DISK@SNAPSHOT: opened when it is not. */
int worker_snapshot_serve(struct vm *vm, const struct vm_row *row,
        const struct snapshot_row *snapshot, const struct snapshot_disk_row *disk,
        struct error *err);
/* Closes snapshots' chains that nobody reads. @snapshot: only this one's, NULL: all. Answers how many
 * of them stay because somebody does. */
size_t worker_snapshots_close(struct vm *vm, const char *snapshot, bool force);

/* The chain of a snapshot's disk, opened for a while (diff): its name in @ret. */
#define CHAIN_NAME_MAX 80
int worker_snapshot_chain(struct vm *vm, const struct snapshot_disk_row *disk,
        char ret[CHAIN_NAME_MAX], struct error *err);

/* Before its file is unlinked: what a dead process left for it in memory goes too. No chain has it. */
void worker_image_forget(struct vm *vm, const char *path);

/* The paths, leaf first, as the worker wants them. NULL: no memory. */
json_t *worker_image_paths(const struct image_chain *images);
/* The worker's process runs, whatever it serves. */
int worker_start(struct vm *vm, struct error *err);
/* Every live export's list of what changed since which snapshot is as the catalog has it. */
int worker_renew_exports(struct vm *vm, struct error *err);
/* Nothing is open any more, as far as we know. */
void worker_forget(struct vm *vm);
/* VM/DISK or VM/DISK@SNAPSHOT; allocated. NULL: no memory. */
char *export_name(const char *vm, const char *disk, const char *snapshot);

/* Grants that the chains now open call for, and no others. */
int worker_grants_renew(struct vm *vm, struct error *err);
int worker_grant(struct vm *vm, const char *path, unsigned access, struct error *err);
/* The same, as long as it is the file that the row means. */
int worker_grant_image(
        struct vm *vm, const struct image_row *row, unsigned access, struct error *err);
/* An image that will stand under a new one: what its chain allows already, else to be read. */
int worker_grant_parent(struct vm *vm, const struct image_row *row, struct error *err);
/* What is served may not be what the catalog says: the next worker_up() compares. */
void worker_stale(struct vm *vm);
