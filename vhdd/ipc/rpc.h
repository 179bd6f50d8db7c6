/* SPDX-License-Identifier: Apache-2.0 */
/* rpc.h - questions and answers over a channel, in both directions at once.
 *
 *      question  {"id": N, "method": M, "params": {...}}     answer  {"id": N, "result": {...}}
 *      event     {"event": NAME, ...}                                {"id": N, "error": {...}}
 *
 * Either end may ask; ids count for the end that asks. One thread runs rpc_run(), which hands
 * questions and events to the table and answers to whoever waits for them.
 *
 * Units      timeouts in milliseconds, 0: for ever.
 * Ownership  counted references; rpc_new takes the socket over.
 * Errors     0 or -errno with one sentence: the other end's own, or -EHOSTDOWN (it is gone, or
 *            rpc_shutdown was called, before the answer), -ETIMEDOUT, -EPROTO.
 * Threads    call, send_event, reply, shutdown, ref, unref: any thread, also one in a callback of
 *            the table, but rpc_call never from a callback (its answer would wait behind it).
 */
#pragma once

#include <jansson.h>
#include <stdint.h>

#include "base/error.h"
#include "vhdd/ipc/channel.h"

struct rpc;

struct rpc_handlers {
        /* Required. On rpc_run's thread; should not block for long. The question is answered by
         * rpc_reply or rpc_reply_error with @id, now or later from any thread, exactly once.
         * @params is an object and the message's: json_incref() what is kept, message_take_fd(). */
        void (*request)(void *opaque, struct rpc *rpc, int64_t id, const char *method,
                json_t *params, struct message *message);
        /* Optional. On rpc_run's thread. */
        void (*event)(void *opaque, struct rpc *rpc, const char *name, const json_t *event);
        void *opaque;
};

int rpc_new(int fd, const struct rpc_handlers *handlers, struct rpc **ret, struct error *err);
struct rpc *rpc_ref(struct rpc *rpc);
struct rpc *rpc_unref(struct rpc *rpc); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct rpc *, rpc_unref)

/* Reads until the channel ends; then every waiting rpc_call fails with -EHOSTDOWN. 0: the other end
 * closed in good order, or rpc_shutdown. */
int rpc_run(struct rpc *rpc, struct error *err);
void rpc_shutdown(struct rpc *rpc);

/* @params (may be NULL: {}) is taken over in any case; @fds stay the caller's. *ret is the result, an
 * object, with the descriptors that came; message_done() it. @ret may be NULL. */
int rpc_call(struct rpc *rpc, const char *method, json_t *params, const int *fds, unsigned n_fds,
        unsigned timeout_ms, struct message *ret, struct error *err);
/* @result (NULL: {}) is taken over in any case. An answer that cannot be sent any more is dropped. */
void rpc_reply(struct rpc *rpc, int64_t id, json_t *result, const int *fds, unsigned n_fds);
void rpc_reply_error(struct rpc *rpc, int64_t id, const struct error *err);
/* @event (taken over) is an object; "event": @name is added. Dropped when nobody is there. */
void rpc_send_event(struct rpc *rpc, const char *name, json_t *event);
