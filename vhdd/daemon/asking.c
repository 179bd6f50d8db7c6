/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/asking.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"
#include "vhdd/control/server.h"
#include "vhdd/daemon/params.h"

/* In the list while somebody waits for its answer. */
struct asking_question {
        struct asking_question *next;
        json_int_t number;
        struct timespec until; /* CLOCK_MONOTONIC */
        json_t *answer;
        pthread_cond_t answered;
};

void asking_init(struct asking *asking, struct control_client *client, unsigned timeout_s)
{
        *asking = (struct asking){
                .client = control_client_ref(client),
                .timeout_s = timeout_s,
        };
        pthread_mutex_init(&asking->lock, NULL);
}

void asking_done(struct asking *asking)
{
        control_client_unref(asking->client);
        pthread_mutex_destroy(&asking->lock);
}

static struct asking_question *question_new(unsigned timeout_s)
{
        struct asking_question *question = calloc(1, sizeof(*question));
        pthread_condattr_t clock;

        if (!question)
                return NULL;
        pthread_condattr_init(&clock);
        pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
        pthread_cond_init(&question->answered, &clock);
        pthread_condattr_destroy(&clock);
        clock_gettime(CLOCK_MONOTONIC, &question->until);
        question->until.tv_sec += timeout_s;
        return question;
}

static void enter(struct asking *asking, struct asking_question *question)
{
        MUTEX_GUARD(&asking->lock);

        question->number = ++asking->last_number;
        question->next = asking->questions;
        asking->questions = question;
}

static void leave(struct asking *asking, struct asking_question *question)
{
        pthread_mutex_lock(&asking->lock);
        for (struct asking_question **p = &asking->questions; *p; p = &(*p)->next)
                if (*p == question) {
                        *p = question->next;
                        break;
                }
        pthread_mutex_unlock(&asking->lock);
        pthread_cond_destroy(&question->answered);
        json_decref(question->answer); /* it came in the last moment */
        free(question);
}

static int wait_for(struct asking *asking, struct asking_question *question, json_t **ret)
{
        MUTEX_GUARD(&asking->lock);

        while (!question->answer && !asking->gone)
                if (pthread_cond_timedwait(&question->answered, &asking->lock, &question->until) ==
                        ETIMEDOUT)
                        break;
        if (!question->answer)
                return asking->gone ? -EPIPE : -ETIMEDOUT;
        *ret = question->answer;
        question->answer = NULL;
        return 0;
}

int asking_begin(struct asking *asking, const char *method, json_t *params, const int *fds,
        size_t n_fds, unsigned timeout_s, struct asking_question **ret, struct error *err)
{
        struct asking_question *question = question_new(timeout_s ? timeout_s : asking->timeout_s);
        int r;

        if (!params || !question) {
                json_decref(params);
                free(question);
                return fail(err, ENOMEM, "no memory for a question");
        }
        enter(asking, question);
        json_object_set_new(params, "request", json_integer(question->number));
        r = control_client_notify(asking->client, method, params, fds, n_fds, err);
        if (r < 0) {
                leave(asking, question);
                return r;
        }
        *ret = question;
        return 0;
}

int asking_end(struct asking *asking, struct asking_question *question, json_t **ret)
{
        int r = ret ? wait_for(asking, question, ret) : 0;

        leave(asking, question);
        return r;
}

int asking_ask(struct asking *asking, const char *method, json_t *params, const int *fds,
        size_t n_fds, unsigned timeout_s, json_t **ret, struct error *err)
{
        struct asking_question *question;
        int r = asking_begin(asking, method, params, fds, n_fds, timeout_s, &question, err);

        return r < 0 ? r : asking_end(asking, question, ret);
}

int asking_answer(struct asking *asking, const json_t *params, struct error *err)
{
        json_int_t number = param_int(params, "request", 0);
        MUTEX_GUARD(&asking->lock);

        for (struct asking_question *question = asking->questions; question;
                question = question->next) {
                if (question->number != number || question->answer)
                        continue;
                question->answer = json_incref((json_t *)params);
                pthread_cond_broadcast(&question->answered);
                return 0;
        }
        return fail(
                err, ENOENT, "nobody waits for an answer to request %" JSON_INTEGER_FORMAT, number);
}

void asking_gone(struct asking *asking)
{
        MUTEX_GUARD(&asking->lock);

        asking->gone = true;
        for (struct asking_question *question = asking->questions; question;
                question = question->next)
                pthread_cond_broadcast(&question->answered);
}
