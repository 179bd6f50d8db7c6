/* SPDX-License-Identifier: Apache-2.0 */
/* internal.h - what the parts of a worker share.
 *
 * Ownership  one worker for each process; it ends with it.
 * Threads    `jobs`, `rpc` and what is marked are guarded by lock; chains belong to the thread that
 *            runs the verbs.
 */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "chain/chain.h"
#include "chain/switch_record.h"
#include "nbd/server/server.h"
#include "vhdd/ipc/rpc.h"
#include "vhdd/worker/fs.h"
#include "vhdd/worker/latency.h"

/* A chain that is open, under the name that the broker gave it. */
struct worker_chain {
        struct worker_chain *next;
        char *name;
        struct chain *chain;
        bool writable;
        bool uncommitted;       /* between a snapshot's switch and its commit */
        struct latency latency; /* as the last merge left it */
};

struct worker_export {
        struct worker_export *next;
        char *name;
        struct worker_chain *chain;
        bool read_only;
};

struct worker_merge;
struct worker_seal;

struct job {
        struct job *next;
        struct rpc *rpc; /* who asked */
        int64_t id;
        char *method;
        json_t *params;
};

struct worker {
        /* immutable after start */
        char vm_text[37];
        uint8_t vm[16];
        struct proxy_fs *fs;
        struct nbd_server *server;
        struct chain_family *family; /* every chain is of it: a merge is right in all of them */
        unsigned parent_uid;         /* who may be our broker, beside root */

        /* owner: the thread that runs the verbs */
        struct worker_chain *chains;
        struct worker_export *exports;
        struct worker_merge *merges;
        struct worker_seal *seal; /* the one that is being made, or NULL */
        bool used;                /* a chain was opened in this life */
        struct switch_region *switch_region;
        char switched[37]; /* the snapshot that is switched and not committed, or "" */

        pthread_mutex_t lock;
        pthread_cond_t more_jobs;
        /* guarded by lock */
        struct rpc *rpc; /* the broker, or NULL */
        struct job *jobs, **jobs_end;
};

/* A verb answers 0 and *ret (NULL: {}), or -errno. */
typedef int (*verb_fn)(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);

int verb_hello(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_quit(struct worker *worker, const json_t *params, json_t **ret, struct error *err);

int verb_chain_open(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_chain_close(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_chain_resize(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_chain_create_child(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_image_create_child(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_image_settle(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_image_forget(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_changed(struct worker *worker, const json_t *params, json_t **ret, struct error *err);

int verb_snapshot_switch(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_snapshot_flush(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_snapshot_commit(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_snapshot_switched(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);

int verb_merge_plan(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_merge_begin(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_compact_begin(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_merge_pause(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_merge_resume(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_merge_limit(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_merge_status(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_merge_finish(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_merge_free(struct worker *worker, const json_t *params, json_t **ret, struct error *err);

int verb_seal_begin(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_seal_limit(struct worker *worker, const json_t *params, json_t **ret, struct error *err);

int verb_export_add(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_export_remove(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_export_hide(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_export_changed(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_export_clients(
        struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_clients(struct worker *worker, const json_t *params, json_t **ret, struct error *err);
int verb_metrics(struct worker *worker, const json_t *params, json_t **ret, struct error *err);

/* --- chains.c --- */

/* -ENOENT */
int find_chain(
        struct worker *worker, const char *name, struct worker_chain **ret, struct error *err);
json_t *chains_to_json(const struct worker *worker);
/* If a snapshot that is not committed switched this chain, its flushes wait. */
int join_switch(struct worker *worker, struct worker_chain *chain, struct error *err);
/* Flushes that wait for a commit are answered with an error. */
void release_flushes(struct worker_chain *chain);
/* Nothing is switched and not committed: the record's file goes. (Else it is for the next worker.) */
void forget_switch(struct worker *worker);
/* Closes it cleanly; what was done to it stops, and its name is free. */
int chain_end(struct worker *worker, struct worker_chain *chain, struct error *err);
int close_all(struct worker *worker, struct error *err);

/* --- exports.c --- */

json_t *exports_to_json(const struct worker *worker);
bool chain_is_exported(const struct worker *worker, const struct worker_chain *chain);
void on_client_event(void *opaque, enum nbd_event event, const struct nbd_client_info *client);

/* --- merges.c --- */

json_t *merges_to_json(const struct worker *worker);
/* Those of the chain, or all of them (NULL), stop and are gone: before it is closed. */
void merges_stop(struct worker *worker, const struct worker_chain *chain);
/* The chain's compaction, if it has one, stands still from here: a snapshot is switched. Until it is let
 * go on, or its chain is closed. */
void merges_hold(struct worker *worker, const struct worker_chain *chain);
void merges_let(struct worker *worker, const struct worker_chain *chain);

/* --- seals.c --- */

/* Before the chain is closed: the seal that it was opened for is given up; one that heeds its clients does
 * so no more. */
void seal_stop(struct worker *worker, const struct worker_chain *chain);

/* --- params --- */

/* NULL and err filled, if there is no such text. */
const char *param_text(const json_t *params, const char *key, struct error *err);
const char *param_text_or(const json_t *params, const char *key, const char *otherwise);
bool param_bool(const json_t *params, const char *key);
uint64_t param_number(const json_t *params, const char *key, uint64_t otherwise);

/* The broker, for an event (a new reference); NULL: there is none. Any thread. */
struct rpc *worker_broker(struct worker *worker);
/* For the log: to the broker, else to stderr. @level: enum broker_log_level's number. */
enum { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };
void worker_log(struct worker *worker, int level, const char *sentence);
