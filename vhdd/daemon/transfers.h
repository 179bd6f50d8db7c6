/* SPDX-License-Identifier: Apache-2.0 */
/* transfers.h - jobs that make files out of a vm, or a vm out of files: export, import, and a snapshot's
 * export. Each has a thread of the broker's.
 *
 *      {"directory": PATH          where the files come to lie   "what": TEXT   for people
 *       "rate": bytes a second     "done": N, "total": N         bytes, as last noted
 *       "snapshot": NAME           taken for it alone, and to be deleted when it is over
 *       "error": TEXT, "code": ERRNO   why it failed}
 *
 *      running --> done | failed | cancelled         paused: running, as far as the catalog knows
 *
 * A transfer is all or nothing (its operation in the journal), so nothing goes on after a death: whoever
 * starts next takes back what was made, and calls the job failed. "done" is in the catalog in the same
 * transaction as what it did.
 *
 * One transfer at a time has a vm. One that needs it still (an export of a vm that is off) has it alone:
 * vm_get() refuses everybody else (-EBUSY) until it is over. Under the other (of a running vm) no merge
 * begins.
 *
 * Units      bytes.
 * Ownership  answers are the caller's.
 * Errors     0 or -errno with one sentence.
 * Threads    any, without the vm's lock unless it says otherwise.
 */
#pragma once

#include "vhdd/daemon/merge_job.h"
#include "vhdd/daemon/vms.h"

#define JOB_EXPORT "export"
#define JOB_IMPORT "import"

struct transfer;

struct transfer_work {
        const char *kind;      /* JOB_EXPORT, JOB_IMPORT */
        struct vm *vm;         /* NULL: none yet */
        bool alone;            /* nobody else may use the vm */
        const char *directory; /* copied, as is @what */
        const char *what;
        uint64_t total;
        uint64_t rate; /* bytes a second at most; 0: as many as it can */
        /* Required. On the transfer's own thread; it may block for as long as it takes, and asks
         * transfer_step() now and then. In the transaction that makes its work last it calls
         * transfer_done(). */
        int (*run)(struct transfer *transfer, void *opaque, struct error *err);
        /* Optional. When the job is over, whatever came of it. */
        void (*after)(struct transfer *transfer, void *opaque);
        void (*free)(void *opaque); /* Required. At the end, also if it was never begun. */
        void *opaque;
};

/* A job's row, and its thread. @ret: the job as the API shows it.
 *   -EBUSY  the vm has another one */
int transfer_begin(struct broker *broker, const struct transfer_work *work, json_t **ret,
        struct error *err);
/* May one begin? The same refusal, for a dry run and before anything else is done. */
int transfer_refuse(struct vm *vm, struct error *err);

/* ---- for the one that runs, on its thread ---- */

/* @bytes more are done. Waits as long as it is paused or faster than its limit.
 *   -ECANCELED  it is to end: somebody said so, or the daemon ends */
int transfer_step(struct transfer *transfer, uint64_t bytes);
void transfer_set_total(struct transfer *transfer, uint64_t total);
struct broker *transfer_broker(const struct transfer *transfer);
int64_t transfer_job(const struct transfer *transfer);
/* Before a snapshot is taken for it, durable; NULL: it is gone again. */
int transfer_note_snapshot(struct transfer *transfer, const char *name, struct error *err);
/* That snapshot, by its name, if it is there still. */
int transfer_delete_snapshot(
        struct broker *broker, const char *vm, const char *name, struct error *err);
/* Inside the transaction that commits its work. */
int transfer_done(struct transfer *transfer, struct error *err);

/* ---- of others ---- */

bool job_is_transfer(const struct job_row *row);
/* NULL: no memory. */
json_t *transfer_to_json(struct broker *broker, const struct job_row *row);
/* @verb: "pause", "resume", "cancel", "limit" (@rate). Answers at once; a cancelled one may go on for a
 * moment.   -EINVAL  it is over */
int transfer_change(struct broker *broker, const struct job_row *row, const char *verb,
        uint64_t rate, struct error *err);

/* Refuses (-EBUSY) when one has the vm for itself. */
int transfer_refuse_held(struct vm *vm, struct error *err);
/* Is one at work that must not see the vm's images change? */
bool transfer_has(struct vm *vm);

/* At the start, after the journal was settled and the vms are there: those that a death cut off have
 * failed; the snapshots that were taken for them go. */
void transfers_recover(struct broker *broker);

/* A file is about to be made at @path: the folders that are missing above it are made, and all of it is noted. */
int transfer_will_make(struct operation *operation, const char *path, struct error *err);
