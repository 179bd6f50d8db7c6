/* SPDX-License-Identifier: Apache-2.0 */
/* memory_file.h - the saved memory of a vm, beside its snapshots: SNAPSHOT-DIR/ID/memory. Beside it the
 * vm's settings and disks as they were then, ID/settings.json, for people and other programs.
 *
 *      memory_begin    the files are named by the journal, and made
 *   -> its agent writes into it
 *   -> memory_sync     it is durable
 *   -> memory_commit   one transaction: it is the snapshot's, and the snapshot is there
 *   -> memory_done     without the commit: the files are gone
 *
 * A snapshot's memory is read, and never written or used up: each start from it gets a descriptor to
 * read. Which one the next start goes on from is the vm's `resume`: as long as its disks are as that
 * memory knows them.
 *
 * Ownership  as the functions say.
 * Errors     0 or -errno with one sentence: the agent's among them.
 * Threads    with the vm's lock held, but for memory_sync.
 */
#pragma once

#include "vhdd/daemon/vms.h"

struct memory_saving {
        struct operation *operation;
        char *path;
        int fd;
};
#define MEMORY_SAVING_INIT                                                                         \
        {                                                                                          \
                .fd = -1                                                                           \
        }

/* @settings: what the snapshot's row will say of them. */
int memory_begin(struct vm *vm, const struct vm_row *row, const char *snapshot,
        const json_t *settings, struct memory_saving *ret, struct error *err);
int memory_sync(struct memory_saving *saving, struct error *err);
/* @snapshot: its id; pending until then. -ENOENT it is not there any more. */
int memory_commit(
        struct vm *vm, struct memory_saving *saving, const char *snapshot, struct error *err);
void memory_done(struct memory_saving *saving);

/* The settings beside @memory, which is a copy of @snapshot's, as the row has them: what they say of the
 * disks is of the place where the copy lies. @operation takes them back. */
int memory_settings_copy(struct operation *operation, const struct snapshot_row *snapshot,
        const char *memory, struct error *err);
int memory_settings_path(const char *memory, char **ret, struct error *err);

/* The files of @snapshot's memory, if it has one, onto the array @files: to be removed with its row. */
int memory_files_of(const struct snapshot_row *snapshot, json_t *files, struct error *err);
/* The folders of those of @files (gone by now) that were saved memory, if nothing else is in them. */
void memory_folders_remove(const json_t *files);

/* Its disks change under it: the next start is from nothing. */
int memory_forget(struct vm *vm, const struct vm_row *row, struct error *err);
/* The vm's agent starts it, from the memory that row->resume names or, without one, from nothing. What
 * the guest may have gone on from is not used again, unless the agent says that it has not. @ret may
 * be NULL. */
int memory_start(struct vm *vm, const struct vm_row *row, json_t **ret, struct error *err);

/* snapshot.memory */
struct caller;
int memory_copy_out(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err);
