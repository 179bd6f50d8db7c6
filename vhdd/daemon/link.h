/* SPDX-License-Identifier: Apache-2.0 */
/* link.h - the broker's end of one worker: starts it, talks to it, answers what it asks for, starts it
 * again, adopts one that an earlier broker left.
 *
 * A worker opens nothing by itself. What it may have is granted by path here; descriptors that it was
 * given stay open in the broker, with their locks, until the grant ends: so a successor gets the same
 * open file description, and nobody slips in between (DESIGN "The processes").
 *
 * Units      milliseconds; device and inode as stat(2) gives them.
 * Ownership  link_start hands out, link_free ends. Paths are copied.
 * Errors     0 or -errno with one sentence. -EHOSTDOWN: the worker died before it answered.
 *            -ETIMEDOUT: it lives and has not answered. Else the worker's own error.
 * Threads    call, send_client, grant, revoke: any thread, also at the same time. start, restart,
 *            quit and free: one at a time (the vm's lock). The callbacks run on the link's own
 *            thread; they may block but must not call link_call, link_restart, link_quit or
 *            link_free themselves: hand that to a thread of yours.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "vhdd/daemon/broker.h"

struct link;
struct nbd_handoff;

struct link_events {
        /* Required. The worker is dead, surely (its pidfd said so): @status as waitpid gives it, -1
         * when it was not our child. Everything that waited for it has failed. Once for each life. */
        void (*died)(void *opaque, int status);
        /* Optional. {"event": "client" | "poisoned" | "full" | "log", ...} */
        void (*event)(void *opaque, const json_t *event);
        void *opaque;
};

/* What a worker may do with a path. WRITE brings with it the image's own NAME.vhdd-intent,
 * NAME.vhdd-seal and redo region; READ lets it look at them. */
enum link_access {
        LINK_READ = 0,
        LINK_WRITE = 1u << 0,
        LINK_CREATE = 1u << 1, /* make it, with WRITE: it must not exist yet */
        LINK_UNLINK = 1u << 2,
        LINK_SEAL = 1u << 3, /* write the image's NAME.vhdd-seal.new, whatever else it may */
};

/* Starts the vm's worker or, when RUN/VMID.sock answers, adopts the one that is there. One that is
 * dying is waited for. *ret_hello (may be NULL): what it said, see vhdd/worker/worker.h. */
int link_start(struct broker *broker, const char *vm_id, const struct link_events *events,
        bool *ret_adopted, json_t **ret_hello, struct link **ret, struct error *err);
/* An earlier broker left a worker of the vm, and it lives. */
bool link_is_left(struct broker *broker, const char *vm_id);
/* After died(): a new process, with the same grants and files. Some that died soon after their start,
 * one after the other, make this wait, longer each time (up to 5 s); after LINK_MAX_DEATHS of them
 * -EAGAIN, until link_forgive(). *ret_hello may be NULL. */
int link_restart(struct link *link, json_t **ret_hello, struct error *err);
void link_forgive(struct link *link);
#define LINK_MAX_DEATHS 10

/* One question. @params (NULL: none) is taken over in any case; *ret (may be NULL) is the caller's. */
int link_call(struct link *link, const char *method, json_t *params, unsigned timeout_ms,
        json_t **ret, struct error *err);
/* A client that the greeter has negotiated; @fd is taken over on success. */
int link_send_client(
        struct link *link, const struct nbd_handoff *handoff, int fd, struct error *err);

/* From now on the worker may open @path, as long as it is the file with @device and @inode (both 0:
 * whatever is there). Granting again changes the access: to less, also of the lock that is held; to
 * more, at the next opening. */
int link_grant(struct link *link, const char *path, unsigned access, uint64_t device,
        uint64_t inode, struct error *err);
/* The grant ends and, with it, the lock, once the worker has closed the file. */
void link_revoke(struct link *link, const char *path);
/* The same, for all that @keep says no to (asked under a lock: it asks nothing back). */
void link_revoke_others(
        struct link *link, bool (*keep)(void *opaque, const char *path), void *opaque);

/* After adopting: everything that is used was granted. What else the worker gave back, and had closed
 * by now, is let go with its locks. */
void link_adopted(struct link *link);

pid_t link_pid(const struct link *link); /* of the worker, 0: none lives */
bool link_is_alive(struct link *link);

/* Lets go of a worker and leaves it running (restart). NULL is fine; always returns NULL. */
struct link *link_free(struct link *link);
/* Asks it to drain, flush and close within @timeout_ms, waits until it is dead (one that does not end
 * is killed: answered writes survive that, E4), takes its socket away. Without callbacks. The link is
 * still to be freed. */
int link_quit(struct link *link, unsigned timeout_ms, struct error *err);
/* SIGKILL; died() follows. For tests, and for a worker that must not go on. */
void link_kill(struct link *link);
