/* SPDX-License-Identifier: Apache-2.0 */
/* vmm-host and a supervisor hold on to each other by a socket, and either can die, hang or come back at any
 * time: whoever asked must hear that, once, and no descriptor may be lost. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm-glue/link.h"

struct side {
        struct link *link;
        unsigned n_requests, n_notes, n_gone, n_replies;
        int reply_code; /* of the last error, or 0 */
        json_int_t number;
        int fd;         /* that came */
        bool is_silent; /* answers nothing */
        bool frees;     /* its link, from within a callback */
};

static void on_request(void *opaque, struct link *link, json_int_t id, const char *verb,
        const json_t *message, int *fds, size_t n_fds)
{
        struct side *side = opaque;
        struct error err = ERROR_INIT;

        side->n_requests++;
        for (size_t i = 0; i < n_fds; i++)
                close(fds[i]);
        if (side->is_silent)
                return;
        if (side->frees) {
                side->link = link_free(side->link);
                return;
        }
        if (strcmp(verb, "add") == 0) {
                link_answer(link, id,
                        json_pack("{s:I}", "n",
                                json_integer_value(json_object_get(message, "n")) + 1),
                        (const int[]){STDOUT_FILENO}, 1);
                return;
        }
        fail(&err, ENOSYS, "no such verb");
        error_set_hint(&err, "another");
        link_refuse(link, id, &err);
}

static void on_note(void *opaque, struct link *link, const char *name, const json_t *message)
{
        struct side *side = opaque;

        side->n_notes++;
        side->number = json_integer_value(json_object_get(message, "n"));
}

static void on_gone(void *opaque, struct link *link)
{
        struct side *side = opaque;

        side->n_gone++;
}

static void on_reply(
        void *opaque, const json_t *result, int *fds, size_t n_fds, const struct error *err)
{
        struct side *side = opaque;

        side->n_replies++;
        side->reply_code = result ? 0 : err->code;
        side->number = json_integer_value(json_object_get(result, "n"));
        for (size_t i = 0; i < n_fds; i++)
                side->fd = fds[i];
}

struct pair {
        sd_event *event;
        struct side a, b;
        struct error err;
};

static void join(struct pair *pair)
{
        int fds[2];
        struct link_callbacks callbacks = {.request = on_request, .note = on_note, .gone = on_gone};

        *pair = (struct pair){.a.fd = -1, .b.fd = -1, .err = ERROR_INIT};
        cr_assert(eq(int, sd_event_new(&pair->event), 0));
        cr_assert(eq(
                int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0));
        callbacks.opaque = &pair->a;
        cr_assert(eq(int, link_new(pair->event, fds[0], &callbacks, &pair->a.link, &pair->err), 0));
        callbacks.opaque = &pair->b;
        cr_assert(eq(int, link_new(pair->event, fds[1], &callbacks, &pair->b.link, &pair->err), 0));
}

static void run(struct pair *pair)
{
        for (int i = 0; i < 30; i++)
                sd_event_run(pair->event, 5000);
}

static void part(struct pair *pair)
{
        link_free(pair->a.link);
        link_free(pair->b.link);
        sd_event_unref(pair->event);
}

static void ask(struct pair *pair, const char *verb, unsigned timeout_ms)
{
        cr_assert(eq(int,
                link_ask(pair->a.link, verb, json_pack("{s:i}", "n", 41), NULL, 0, timeout_ms,
                        on_reply, &pair->a, &pair->err),
                0));
}

Test(glue_link, answers_with_a_descriptor)
{
        struct pair pair;

        join(&pair);
        ask(&pair, "add", 5000);
        run(&pair);
        cr_expect(eq(int, (int)pair.a.n_replies, 1));
        cr_expect(eq(int, (int)pair.a.number, 42));
        cr_expect(ge(int, fcntl(pair.a.fd, F_GETFD), 0));
        close(pair.a.fd);
        part(&pair);
}

Test(glue_link, refuses_with_the_code_of_the_other_side)
{
        struct pair pair;

        join(&pair);
        ask(&pair, "subtract", 5000);
        run(&pair);
        cr_expect(eq(int, pair.a.reply_code, ENOSYS));
        part(&pair);
}

Test(glue_link, gives_up_on_who_does_not_answer)
{
        struct pair pair;

        join(&pair);
        pair.b.is_silent = true;
        ask(&pair, "add", 20);
        run(&pair);
        cr_expect(eq(int, (int)pair.a.n_replies, 1));
        cr_expect(eq(int, pair.a.reply_code, ETIMEDOUT));
        part(&pair);
}

Test(glue_link, tells_who_waits_that_the_other_end_died)
{
        struct pair pair;

        join(&pair);
        pair.b.frees = true;
        ask(&pair, "add", 5000);
        ask(&pair, "add", 5000);
        run(&pair);
        cr_expect(eq(int, (int)pair.a.n_replies, 2));
        cr_expect(eq(int, pair.a.reply_code, EPIPE));
        cr_expect(eq(int, (int)pair.a.n_gone, 1));
        cr_expect(eq(int, (int)pair.b.n_gone, 0)); /* it freed its own */
        part(&pair);
}

Test(glue_link, tells_who_waits_when_it_is_freed)
{
        struct pair pair;

        join(&pair);
        ask(&pair, "add", 5000);
        pair.a.link = link_free(pair.a.link);
        cr_expect(eq(int, (int)pair.a.n_replies, 1));
        cr_expect(eq(int, pair.a.reply_code, EPIPE));
        part(&pair);
}

Test(glue_link, carries_notes)
{
        struct pair pair;

        join(&pair);
        for (int i = 0; i < 1000; i++)
                link_note(pair.a.link, "memory", json_pack("{s:i}", "n", i));
        run(&pair);
        cr_expect(eq(int, (int)pair.b.n_notes, 1000));
        cr_expect(eq(int, (int)pair.b.number, 999));
        part(&pair);
}

Test(glue_link, ends_with_who_speaks_no_json)
{
        struct pair pair;
        struct link_callbacks callbacks = {
                .request = on_request, .note = on_note, .gone = on_gone, .opaque = &pair.a};
        int fds[2];

        pair = (struct pair){.err = ERROR_INIT};
        cr_assert(eq(int, sd_event_new(&pair.event), 0));
        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0));
        cr_assert(eq(int, link_new(pair.event, fds[0], &callbacks, &pair.a.link, &pair.err), 0));
        cr_assert(eq(int, (int)write(fds[1], "hello\n", 6), 6));
        run(&pair);
        cr_expect(eq(int, (int)pair.a.n_gone, 1));
        link_note(pair.a.link, "memory", json_object()); /* is dropped */
        close(fds[1]);
        part(&pair);
}

Test(glue_link, wants_no_descriptor_that_was_not_sent)
{
        struct pair pair;
        struct link_callbacks callbacks = {
                .request = on_request, .note = on_note, .gone = on_gone, .opaque = &pair.a};
        static const char lie[] = "{\"id\":1,\"do\":\"add\",\"descriptors\":3}\n";
        int fds[2];

        pair = (struct pair){.err = ERROR_INIT};
        cr_assert(eq(int, sd_event_new(&pair.event), 0));
        cr_assert(eq(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0));
        cr_assert(eq(int, link_new(pair.event, fds[0], &callbacks, &pair.a.link, &pair.err), 0));
        cr_assert(eq(int, (int)write(fds[1], lie, strlen(lie)), (int)strlen(lie)));
        run(&pair);
        cr_expect(eq(int, (int)pair.a.n_requests, 0));
        cr_expect(eq(int, (int)pair.a.n_gone, 1));
        close(fds[1]);
        part(&pair);
}
