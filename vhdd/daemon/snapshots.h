/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots.h - points in time of a vm: taking, going back, deleting.
 *
 * Units      microseconds where a name ends in _us; bytes.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    with the vm's lock held, but for snapshot_to_json.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/vms.h"

struct operation;

/* What a snapshot's disks are: as after a power cut, with file systems that were frozen, or together
 * with the memory. */
#define SNAPSHOT_CRASH      "crash"
#define SNAPSHOT_FILESYSTEM "filesystem"
#define SNAPSHOT_MEMORY     "memory"

/* After the switch: makes the frozen images durable, writes the catalog, lets the flushes go (E10).
 * @operation: a snapshot's, whose data says all. Ends it. Also for one that was cut off. */
int snapshot_finish(struct vm *vm, struct operation *operation, struct error *err);

/* A pending one, whose memory was not saved: as if it were deleted, live. @ret_jobs: of the merges that
 * follow. */
int snapshot_delete_pending(struct vm *vm, const char *id, size_t *ret_jobs, struct error *err);
/* All of these that nobody is about to save: of a daemon before us. */
void snapshots_settle_pending(struct vm *vm);

/* As the API shows it. */
int snapshot_to_json(struct vm *vm, const struct vm_row *row, const struct snapshot_row *snapshot,
        json_t **ret, struct error *err);

/* The one of that name or id, committed. */
int snapshot_find(struct vm *vm, const struct vm_row *row, const char *name,
        struct snapshot_row *ret, struct error *err);
/* The name may be given to a new one. */
int snapshot_check_name(
        struct vm *vm, const struct vm_row *row, const char *name, struct error *err);
/* The vm's settings and disks as they are, for a snapshot's row: {"settings", "disks"}. */
json_t *snapshot_settings(const struct vm_row *row, const struct disk_row *disks, size_t n);

/* A row for @disk as a snapshot holds it; its strings are lent. */
struct snapshot_disk_row snapshot_disk_of(
        const char *snapshot, const struct disk_row *disk, bool skipped);

/* snapshot.* */
struct caller;
int snapshot_take(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
/* For another method; @params is taken over. */
int snapshot_take_with(struct broker *broker, const struct caller *caller, json_t *params,
        json_t **ret, struct error *err);
int snapshot_apply(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
int snapshot_revert(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
int snapshot_undo(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
int snapshot_delete(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
int snapshot_prune(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
int snapshot_diff(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
