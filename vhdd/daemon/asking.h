/* SPDX-License-Identifier: Apache-2.0 */
/* asking.h - who is at the other end of a control connection is asked by a notification, and answers
 * with a call of its own that carries the question's number: the agents of vms, and the vmm-host.
 *
 * Units      seconds where a name ends in _s.
 * Ownership  as a member of what belongs to the connection; asking_done() when nobody can ask any more.
 * Errors     0 or -errno. -EPIPE (it went away) and -ETIMEDOUT (it did not answer in its time) come
 *            without a sentence: the caller knows what it asked for.
 * Threads    any. The lock is held for no longer than it takes to look; no other is taken under it.
 */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/error.h"

struct asking_question;
struct control_client;

struct asking {
        /* immutable */
        struct control_client *client;
        unsigned timeout_s;

        pthread_mutex_t lock;
        /* guarded by lock */
        bool gone;
        json_int_t last_number;
        struct asking_question *questions;
};

/* Takes a reference to @client. */
void asking_init(struct asking *asking, struct control_client *client, unsigned timeout_s);
void asking_done(struct asking *asking);

/* Sends @method with @params (taken over) and the question's number as their member "request", and
 * waits for @timeout_s at most (0: as long as was said at the beginning). @ret: the params of the
 * answer, the caller's. @fds stay the caller's. */
int asking_ask(struct asking *asking, const char *method, json_t *params, const int *fds,
        size_t n_fds, unsigned timeout_s, json_t **ret, struct error *err);

/* The same in two halves, for one who has something to do meanwhile. The time runs from the beginning.
 * asking_end() ends the question in any case; with @ret == NULL it does not wait. */
int asking_begin(struct asking *asking, const char *method, json_t *params, const int *fds,
        size_t n_fds, unsigned timeout_s, struct asking_question **ret, struct error *err);
int asking_end(struct asking *asking, struct asking_question *question, json_t **ret);

/* An answer has come: @params with "request".  -ENOENT nobody waits for it */
int asking_answer(struct asking *asking, const json_t *params, struct error *err);

/* The connection has ended: whoever waits is told so, and whoever asks from now on. */
void asking_gone(struct asking *asking);
