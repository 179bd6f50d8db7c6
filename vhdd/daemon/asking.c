/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/asking.h"

#include <errno.h>
#include <time.h>

#include "base/cleanup.h"
#include "vhdd/control/server.h"
#include "vhdd/daemon/params.h"

/* On the asker's stack, in the list while it waits. */
struct asking_question {
        struct asking_question *next;
        json_int_t number;
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

static void enter(struct asking *asking, struct asking_question *question)
{
        pthread_condattr_t clock;
        MUTEX_GUARD(&asking->lock);

        pthread_condattr_init(&clock);
        pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
        pthread_cond_init(&question->answered, &clock);
        pthread_condattr_destroy(&clock);
        question->number = ++asking->last_number;
        question->next = asking->questions;
        asking->questions = question;
}

static void leave(struct asking *asking, struct asking_question *question)
{
        MUTEX_GUARD(&asking->lock);

        for (struct asking_question **p = &asking->questions; *p; p = &(*p)->next)
                if (*p == question) {
                        *p = question->next;
                        break;
                }
        pthread_cond_destroy(&question->answered);
}

static int wait_for(struct asking *asking, struct asking_question *question, unsigned timeout_s)
{
        struct timespec until;
        MUTEX_GUARD(&asking->lock);

        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += timeout_s;
        while (!question->answer && !asking->gone)
                if (pthread_cond_timedwait(&question->answered, &asking->lock, &until) == ETIMEDOUT)
                        break;
        if (question->answer)
                return 0;
        return asking->gone ? -EPIPE : -ETIMEDOUT;
}

int asking_ask(struct asking *asking, const char *method, json_t *params, const int *fds,
        size_t n_fds, unsigned timeout_s, json_t **ret, struct error *err)
{
        struct asking_question question = {0};
        int r;

        if (!params)
                return fail(err, ENOMEM, "no memory for a question");
        enter(asking, &question);
        json_object_set_new(params, "request", json_integer(question.number));
        r = control_client_notify(asking->client, method, params, fds, n_fds, err);
        if (r == 0)
                r = wait_for(asking, &question, timeout_s ? timeout_s : asking->timeout_s);
        leave(asking, &question);
        if (r == 0)
                *ret = question.answer;
        else
                json_decref(question.answer); /* it came in the last moment */
        return r;
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
