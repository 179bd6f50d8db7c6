/* SPDX-License-Identifier: Apache-2.0 */
/* vms.h - every vm of the daemon: its lock, its worker, and what is served of it.
 *
 * What a vm is, the catalog says; here is what lives only as long as the process. An operation on a
 * vm holds its lock from the first check to the end, so that two never mix; what only looks does
 * not take it.
 *
 *      no worker --worker_up--> up --died (link's thread)--> down --worker_up (a thread of ours)--> up
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  vms are counted: vm_get hands out a reference, vm_release gives it back.
 * Errors     0 or -errno with one sentence.
 * Threads    fields say what guards them. Lock order: vm.lock, link_lock, vms.lock, catalog.
 */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "vhdd/control/method.h"
#include "vhdd/daemon/broker.h"
#include "vhdd/daemon/catalog.h"
#include "vhdd/daemon/link.h"

struct agent;
struct merging;
struct operation;
struct sealing;
struct transfer;

/* An open chain of a worker: a live disk's is called by the disk's id, a snapshot's by
 * DISKID@SNAPSHOTID. */
struct vm_chain {
        char *name;
        char **paths; /* the leaf first */
        size_t n_paths;
        bool writable;
        uint64_t size;
        char root_type[16]; /* of layer 0, as the worker says; "": not known */
        uint32_t preferred; /* block size, as the worker says; 0: not known */
        char *export_name;  /* of a snapshot's chain: its export, or NULL */
        char *trouble;      /* it could not be opened: why. Then the rest is empty. */
};

struct vm {
        struct vms *vms;
        struct broker *broker;
        char id[UUID_TEXT_SIZE]; /* immutable */

        /* Held over a whole operation. */
        pthread_mutex_t lock;

        /* guarded by lock */
        bool removed;
        char saving[UUID_TEXT_SIZE]; /* the pending snapshot whose memory is being saved, or "" */
        json_t *rolling; /* a snapshot that was switched and is not committed: its operation's data */
        struct operation *rolling_operation;
        bool forgotten_noted; /* hidden images without a job were looked for */
        json_t *merge_paths;  /* of runs that were begun (merges.h) */
        uint64_t stall_us;    /* of the last snapshot */
        bool has_stall;
        unsigned n_retries; /* of disks that could not be opened */

        /* Written with lock and link_lock (for writing) held; read with either. */
        pthread_rwlock_t link_lock;
        struct link *link;
        struct vm_chain *chains; /* that the worker has open */
        size_t n_chains;
        bool up;       /* the worker has every chain and export that the catalog says */
        char *trouble; /* why it is not, or NULL */

        _Atomic bool lets_clients_in; /* vm_let_clients_in() */
        _Atomic bool has_merges;      /* there are jobs that are not done, as far as we know */

        /* guarded by vms->lock */
        unsigned refs;
        bool reviving;            /* a thread is on its way to bring the worker up */
        bool revive_again;        /* and was asked for once more meanwhile */
        bool tidying;             /* a thread is on its way to close what nobody reads */
        bool merger;              /* one looks after the merges, */
        bool merge_again;         /*      and has to look once more */
        struct merging *mergings; /* what the worker tells of them; changed with lock held, too */
        struct sealing
                *sealing;       /* the image that it seals (seals.h); changed with lock held, too */
        pthread_cond_t changed; /* up, or trouble, or an agent */
        struct agent *agent;
};

struct vms {
        struct broker *broker;
        struct metrics_server *metrics;
        pthread_mutex_t lock;
        /* guarded by lock */
        struct vm **items;
        size_t n_items;
        struct transfer *transfers; /* that are at work (transfers.h) */
        unsigned n_threads;         /* of ours that run */
        bool stopping;
        pthread_cond_t idle;   /* n_threads became 0 */
        pthread_cond_t wakeup; /* stopping, for those who sleep */
};

/* Reads the catalog, starts or adopts each vm's worker, finishes or undoes what was cut off. Several at
 * once. One vm's trouble is logged and shown in its state; it does not stop the others. */
int vms_start(struct broker *broker, struct error *err);
/* Ends every worker (drain, flush, clean close) and frees; with @leave_workers they go on. */
void vms_stop(struct broker *broker, bool leave_workers, unsigned timeout_ms);

/* The vm of that name or id, locked. With @row (may be NULL) what the catalog says, for
 * vm_row_done().  -ENOENT there is none   -ESHUTDOWN the daemon ends   -EBUSY an export has it */
int vm_get(struct broker *broker, const char *name_or_id, struct vm **ret, struct vm_row *row,
        struct error *err);
/* The same, but gives up after @timeout_ms: -EBUSY. */
int vm_get_within(struct broker *broker, const char *name_or_id, unsigned timeout_ms,
        struct vm **ret, struct vm_row *row, struct error *err);
struct vm *vm_release(struct vm *vm); /* unlocks; NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct vm *, vm_release)

/* Gives the lock up for something that takes long, and has it again. What the row said is to be looked at
 * again then.  -ENOENT it was removed meanwhile; it is locked all the same */
void vm_unlock(struct vm *vm);
int vm_lock_again(struct vm *vm, struct error *err);

/* The lock's holder waits for somebody who opens what is served as it is (a machine that starts): clients
 * are let in although he has the lock, until he says that it is over. */
static inline void vm_let_clients_in(struct vm *vm, bool in)
{
        atomic_store(&vm->lets_clients_in, in);
}

/* Without its lock, for those who only look. */
int vm_peek(struct broker *broker, const char *name_or_id, struct vm **ret, struct vm_row *row,
        struct error *err);
struct vm *vm_unref(struct vm *vm); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct vm *, vm_unref)

/* A new one, not locked, one reference for the caller. */
int vm_add(struct broker *broker, const char *id, struct vm **ret, struct error *err);
/* What the catalog says of it now, in the place of what @row said. */
int vm_row_again(struct vm *vm, struct vm_row *row, struct error *err);
/* Out of the table: no name finds it any more. Locked by the caller. */
void vm_drop(struct vm *vm);

/* Is it on? By its agent's word; without an agent: somebody has a live disk open. */
int vm_is_on(struct vm *vm, const struct vm_row *row, bool *ret, struct error *err);
/* The same; on a worker that does not answer at once: false. For lists. */
bool vm_looks_on(struct vm *vm, const struct vm_row *row, const json_t *clients);

/* What the catalog says of it has changed: its sidecar is written anew, and @event is told to those
 * who subscribed (with "vm" and @details, which may be NULL and is taken over). */
void vm_changed(struct vm *vm, const char *event, json_t *details);

/* The second half of that: what has changed is nothing that lasts. Any thread, without the lock. */
void vm_publish(struct vm *vm, const char *event, json_t *details);

/* Whatever its merges wait for may have come. Any thread, without the lock or with it. */
void vm_may_merge(struct vm *vm);

/* Runs a method that undoes itself when the worker dies in its middle (-EHOSTDOWN): then once more,
 * and with luck the client never knows. */
int vm_try_again(method_fn run, struct broker *broker, const struct caller *caller,
        const json_t *params, json_t **ret, struct error *err);

/* The vm as the API shows it. */
int vm_to_json(struct vm *vm, const struct vm_row *row, bool full, json_t **ret, struct error *err);

/* For worker_link.c: how the worker is. down also sends a thread to bring it up. */
void vm_set_up(struct vm *vm);
void vm_set_down(struct vm *vm, const char *why);
void vm_worker_died(struct vm *vm, int status);           /* on the link's thread */
void vm_worker_event(struct vm *vm, const json_t *event); /* on the link's thread */
/* Waits until the worker is up, without the vm's lock.  -ETIMEDOUT it is not; says why */
int vm_wait_up(struct vm *vm, unsigned timeout_ms, struct error *err);

/* A thread that vms_stop() waits for. */
int vms_spawn(struct vms *vms, void (*run)(void *opaque), void *opaque, struct error *err);
/* Sleeps, but not beyond the beginning of the end: then it answers false. */
bool vms_sleep(struct vms *vms, unsigned ms);

/* Now, in microseconds since 1970. */
int64_t now_us(void);
/* RFC 3339 in UTC. */
#define TIME_TEXT_MAX 32
const char *time_to_text(int64_t us, char ret[TIME_TEXT_MAX]);
