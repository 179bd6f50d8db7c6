/* SPDX-License-Identifier: Apache-2.0 */
/* push.h - a snapshot's part in the engine (rule E10): an empty layer is put on live chains.
 *
 *      chain_child_create   the new leaf's file, for each disk: empty, synced
 *      chain_child_open     open and ready, for each disk
 *      chain_switch         flush ahead; hold; push; switch record; release
 *      chain_flush_frozen   for each disk: what was the leaf becomes durable, and is settled
 *      (the catalog's commit, which is the caller's)
 *      chain_committed      for each disk: the flushes that waited are answered
 *      switch_clear         the record has said all it had to say
 *
 *   P1  A change is inside `hold` from before it asks which image is the leaf until it is complete,
 *       so each change is in the frozen images or in the new leaves, and of two changes the second of
 *       which began after the first was answered never the second alone is in the frozen ones.
 *   P2  The record is whole before any change can reach a new leaf: after a process's death it alone
 *       says that the switch was made, for all disks.
 *   P3  Between switch and commit no flush and no FUA change is answered: what they promise would
 *       lie in leaves that a power cut takes away.
 *   P4  The commit comes after every frozen image is durable as it was at the switch.
 *   P5  A parent is never stood on before what a dead process recorded of it is in its file:
 *       chain_open() settles such a parent first (chain_settle_image).
 *
 * Units      times in nanoseconds.
 * Ownership  a child is its opener's until it was pushed, then the chain's.
 * Errors     0 or -errno and a sentence.
 * Threads    reads, changes and flushes of a chain go on all the while, on any thread. The functions
 *            here belong to one thread at a time for each chain, as chain_close does, but for
 *            chain_commits_abort and chain_n_frozen, which may come from any.
 */
#pragma once

#include "chain/chain.h"
#include "chain/switch_record.h"

/* Makes the file @path (absolute, and there must be none): an empty differencing VHD with the id
 * @unique_id (zeros: a random one) whose parent is the chain's leaf, with relative locators. It is
 * synced, and so is its directory. On failure nothing is left. The chain may be open for reading. */
int chain_child_create(
        struct chain *chain, const char *path, const uint8_t unique_id[16], struct error *err);

/* Opens @path for writing, to become the leaf: its parent's id is that of the chain's leaf, its size
 * the chain's, its blocks are not smaller than resolving has room for, it is empty.
 *   -EROFS    the chain is not open for writing, or is a scratch one
 *   -ELOOP    it has CHAIN_MAX_DEPTH images already
 *   -ENOTSUP  the leaf is a block device, or its size is not whole sectors
 *   -ESTALE   the file stands on another image */
int chain_child_open(struct chain *chain, const char *path, struct image **ret, struct error *err);
/* One that was not pushed: closed cleanly. The file stays. NULL is fine. */
void chain_child_close(struct image *child);

/* Every change that comes waits from here on (-EAGAIN with CHAIN_NOWAIT), and those that had begun
 * have ended when it returns. Reads, flushes and replies go on. */
void chain_hold(struct chain *chain);
void chain_release(struct chain *chain);
/* The child becomes the leaf. Only while the chain is held. */
void chain_push(struct chain *chain, struct image *child);

/* From here to chain_committed() every flush and every FUA change that is done is answered only then.
 * Waits for the end of the one before.
 *   -ESHUTDOWN  chain_commits_abort() was called
 *   -EIO        a frozen image's sync failed (E5); who waits already is answered so, too */
int chain_uncommitted(struct chain *chain);
void chain_committed(struct chain *chain);
/* The commit will not come from this process: what waits for it, and will, answers -ESHUTDOWN. */
void chain_commits_abort(struct chain *chain);

/* One disk of a switch. */
struct chain_switch {
        struct chain *chain;
        struct image *child; /* the chain's afterwards, unless it failed */
        uint8_t id[16];      /* the disk's, for the record */
};

/* All chains at one instant: flushes ahead, begins chain_uncommitted() for each, holds all, pushes
 * all, writes the record of @snapshot into @region, releases. On failure nothing was changed and no
 * change was held. *ret_stall_ns: for how long changes were held. */
int chain_switch(const struct chain_switch *disks, unsigned n_disks, struct switch_region *region,
        const uint8_t snapshot[16], uint64_t *ret_stall_ns, struct error *err);

/* A round of every frozen layer that is not settled; then each is settled: what is on disk is as
 * after a clean close, the lock is a reader's, and it is a parent like any other. 0: all of them are
 * durable; one for which there was no space to settle stays as it is (chain_n_frozen), and the next
 * call or chain_close tries again.
 *   -EIO    a sync failed (E5): the chain can be read, and all else of it fails with -EIO. There is
 *           nothing to commit; what waits on the vm's other chains wants chain_commits_abort()
 *   others  not durable yet, try again: -ENOSPC */
int chain_flush_frozen(struct chain *chain, struct error *err);
/* How many layers below the leaf are not settled. */
unsigned chain_n_frozen(const struct chain *chain);

/* The image at @path alone: opened for writing, with what a dead process left replayed into it, made
 * durable and closed cleanly. @format: as in struct chain_options.
 *   -EROFS  it can only be read, because of a failed sync (E5) or of what another program wrote
 *   -EBUSY  only together with its chain (alone.h) */
int chain_settle_image(struct fs *fs, const char *path, const char *format, struct error *err);

/* Before a file that no chain stands on any more is unlinked: what memory outlives a process for it
 * goes. (Bound to the file as it is; a rolled back snapshot's child has some.) */
int chain_forget_image(struct fs *fs, const char *path, struct error *err);
