/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ipc/rpc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct waiter {
        struct waiter *next;
        int64_t id;
        pthread_cond_t answered;
        bool done;
        struct message answer;
};

struct rpc {
        /* immutable after new */
        struct channel *channel;
        struct rpc_handlers handlers;

        _Atomic unsigned refs;
        pthread_mutex_t lock;
        /* guarded by lock */
        struct waiter *waiters;
        int64_t last_id;
        bool ended;
};

int rpc_new(int fd, const struct rpc_handlers *handlers, struct rpc **ret, struct error *err)
{
        _cleanup_free_ struct rpc *rpc = calloc(1, sizeof(*rpc));
        int r;

        if (!rpc)
                return fail(err, ENOMEM, "no memory for a channel");
        r = channel_new(fd, &rpc->channel, err);
        if (r < 0)
                return r;
        rpc->handlers = *handlers;
        atomic_init(&rpc->refs, 1);
        pthread_mutex_init(&rpc->lock, NULL);
        *ret = TAKE_PTR(rpc);
        return 0;
}

struct rpc *rpc_ref(struct rpc *rpc)
{
        atomic_fetch_add(&rpc->refs, 1);
        return rpc;
}

struct rpc *rpc_unref(struct rpc *rpc)
{
        if (!rpc || atomic_fetch_sub(&rpc->refs, 1) > 1)
                return NULL;
        channel_free(rpc->channel);
        pthread_mutex_destroy(&rpc->lock);
        free(rpc);
        return NULL;
}

/* --- asking --- */

static int fail_gone(struct error *err)
{
        return fail(err, EHOSTDOWN, "the process at the other end is gone");
}

static int add_waiter(struct rpc *rpc, struct waiter *waiter, struct error *err)
{
        pthread_condattr_t attr;

        *waiter = (struct waiter){.answer = MESSAGE_INIT};
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&waiter->answered, &attr);
        pthread_condattr_destroy(&attr);
        MUTEX_GUARD(&rpc->lock);
        if (rpc->ended)
                return fail_gone(err);
        waiter->id = ++rpc->last_id;
        waiter->next = rpc->waiters;
        rpc->waiters = waiter;
        return 0;
}

/* From here on nobody else knows it. */
static void remove_waiter(struct rpc *rpc, struct waiter *waiter)
{
        MUTEX_GUARD(&rpc->lock);
        for (struct waiter **at = &rpc->waiters; *at; at = &(*at)->next) {
                if (*at == waiter) {
                        *at = waiter->next;
                        return;
                }
        }
}

static int wait_for_answer(
        struct rpc *rpc, struct waiter *waiter, unsigned timeout_ms, struct error *err)
{
        struct timespec until;

        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
        }
        MUTEX_GUARD(&rpc->lock);
        while (!waiter->done && !rpc->ended) {
                if (timeout_ms == 0)
                        pthread_cond_wait(&waiter->answered, &rpc->lock);
                else if (pthread_cond_timedwait(&waiter->answered, &rpc->lock, &until) == ETIMEDOUT)
                        break;
        }
        if (waiter->done)
                return 0;
        if (rpc->ended)
                return fail_gone(err);
        return fail(err, ETIMEDOUT, "no answer within %u ms", timeout_ms);
}

/* What the other end said: its result in *ret, or its error. */
static int take_answer(struct waiter *waiter, struct message *ret, struct error *err)
{
        json_t *error = json_object_get(waiter->answer.json, "error");
        json_t *result = json_object_get(waiter->answer.json, "result");

        if (error)
                return error_from_json(error, err);
        if (!json_is_object(result))
                return fail(err, EPROTO, "an answer has neither a result nor an error");
        if (!ret)
                return 0;
        *ret = waiter->answer;
        ret->json = json_incref(result);
        json_decref(waiter->answer.json);
        waiter->answer = MESSAGE_INIT;
        return 0;
}

int rpc_call(struct rpc *rpc, const char *method, json_t *params, const int *fds, unsigned n_fds,
        unsigned timeout_ms, struct message *ret, struct error *err)
{
        struct waiter waiter;
        json_t *question;
        int r = add_waiter(rpc, &waiter, err);

        if (r < 0) {
                json_decref(params);
                pthread_cond_destroy(&waiter.answered);
                return r;
        }
        question = json_pack("{s:I, s:s, s:o}", "id", (json_int_t)waiter.id, "method", method,
                "params", params ? params : json_object());
        if (!question)
                r = fail(err, ENOMEM, "no memory for a message");
        else
                r = channel_send(rpc->channel, question, fds, n_fds, err);
        json_decref(question);
        if (r == 0)
                r = wait_for_answer(rpc, &waiter, timeout_ms, err);
        remove_waiter(rpc, &waiter);
        if (r == 0)
                r = take_answer(&waiter, ret, err);
        message_done(&waiter.answer);
        pthread_cond_destroy(&waiter.answered);
        return r;
}

/* --- answering --- */

static void send_answer(
        struct rpc *rpc, int64_t id, const char *key, json_t *value, const int *fds, unsigned n_fds)
{
        json_t *answer = json_pack("{s:I, s:o}", "id", (json_int_t)id, key, value);
        struct error err = ERROR_INIT;

        if (!answer)
                return;
        if (channel_send(rpc->channel, answer, fds, n_fds, &err) == -EMSGSIZE) {
                struct error shorter = ERROR_INIT;

                fail(&shorter, EMSGSIZE, "the answer is too long: %s", err.message);
                rpc_reply_error(rpc, id, &shorter);
        }
        json_decref(answer);
}

void rpc_reply(struct rpc *rpc, int64_t id, json_t *result, const int *fds, unsigned n_fds)
{
        send_answer(rpc, id, "result", result ? result : json_object(), fds, n_fds);
}

void rpc_reply_error(struct rpc *rpc, int64_t id, const struct error *err)
{
        send_answer(rpc, id, "error", error_to_json(err), NULL, 0);
}

void rpc_send_event(struct rpc *rpc, const char *name, json_t *event)
{
        if (event && json_object_set_new(event, "event", json_string(name)) == 0)
                channel_send(rpc->channel, event, NULL, 0, NULL);
        json_decref(event);
}

/* --- reading --- */

static void hand_answer(struct rpc *rpc, int64_t id, struct message *message)
{
        MUTEX_GUARD(&rpc->lock);
        for (struct waiter *waiter = rpc->waiters; waiter; waiter = waiter->next) {
                if (waiter->id != id || waiter->done)
                        continue;
                waiter->answer = *message;
                *message = MESSAGE_INIT;
                waiter->done = true;
                pthread_cond_signal(&waiter->answered);
                return;
        }
        /* Nobody waits: its asker's time ran out. */
}

static int hand_on(struct rpc *rpc, struct message *message, struct error *err)
{
        const char *event = json_string_value(json_object_get(message->json, "event"));
        const char *method = json_string_value(json_object_get(message->json, "method"));
        const json_t *id = json_object_get(message->json, "id");
        json_t *params = json_object_get(message->json, "params");

        /* First: what an event tells of may have an id, too, and is no answer to a question of ours. */
        if (event) {
                if (rpc->handlers.event)
                        rpc->handlers.event(rpc->handlers.opaque, rpc, event, message->json);
                return 0;
        }
        if (!json_is_integer(id))
                return fail(err, EPROTO, "a message is neither an event nor has it an id");
        if (!method) {
                hand_answer(rpc, json_integer_value(id), message);
                return 0;
        }
        if (!json_is_object(params))
                return fail(err, EPROTO, "the question '%.64s' has no parameters", method);
        rpc->handlers.request(
                rpc->handlers.opaque, rpc, json_integer_value(id), method, params, message);
        return 0;
}

static void end_all(struct rpc *rpc)
{
        MUTEX_GUARD(&rpc->lock);
        rpc->ended = true;
        for (struct waiter *waiter = rpc->waiters; waiter; waiter = waiter->next)
                pthread_cond_signal(&waiter->answered);
}

int rpc_run(struct rpc *rpc, struct error *err)
{
        int r;

        do {
                struct message message = MESSAGE_INIT;

                r = channel_receive(rpc->channel, &message, err);
                if (r == 1) {
                        int bad = hand_on(rpc, &message, err);

                        if (bad < 0)
                                r = bad;
                        message_done(&message);
                }
        } while (r == 1);
        channel_shutdown(rpc->channel);
        end_all(rpc);
        return r;
}

void rpc_shutdown(struct rpc *rpc)
{
        channel_shutdown(rpc->channel);
        end_all(rpc);
}
