/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's monitor talks while we ask: events come before answers, answers come too late, numbers are larger
 * than any of ours, and a QEMU that a guest has broken into says what it likes. A fake one plays each. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vmm-glue/link.h"
#include "vmm-glue/qmp.h"

#define GREETING                                                                                    \
        "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":22,\"minor\":2,\"major\":7},\"package\":\"\"}," \
        "\"capabilities\":[]}}\n"
#define OK(id) "{\"return\":{},\"id\":" #id "}\n"

struct fake {
        int listen_fd;
        char path[64];
        /* Lines; each is sent when one command has come, the first when somebody connects. */
        const char *const *script;
        int got_fd; /* a descriptor came with a command */
        pthread_t thread;
};

static ssize_t take_command(struct fake *fake, int fd)
{
        union {
                char data[CMSG_SPACE(sizeof(int))];
                struct cmsghdr align;
        } control;
        char text[4096];
        struct iovec iov = {.iov_base = text, .iov_len = sizeof(text)};
        struct msghdr message = {.msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = control.data,
                .msg_controllen = sizeof(control.data)};
        ssize_t n = recvmsg(fd, &message, 0);
        struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;

        if (c && c->cmsg_type == SCM_RIGHTS)
                memcpy(&fake->got_fd, CMSG_DATA(c), sizeof(int));
        return n;
}

static void *serve(void *opaque)
{
        struct fake *fake = opaque;
        int fd = accept(fake->listen_fd, NULL, NULL);

        for (size_t i = 0; fd >= 0 && fake->script[i]; i++) {
                if (write(fd, fake->script[i], strlen(fake->script[i])) < 0)
                        break;
                if (take_command(fake, fd) <= 0)
                        break;
        }
        close(fd);
        return NULL;
}

struct seen {
        unsigned n_events, n_gone;
        char last[64];
        json_int_t number;
};

static void on_event(void *opaque, const char *name, const json_t *data)
{
        struct seen *seen = opaque;

        seen->n_events++;
        snprintf(seen->last, sizeof(seen->last), "%s", name);
        seen->number = json_integer_value(json_object_get(data, "n"));
}

static void on_gone(void *opaque)
{
        struct seen *seen = opaque;

        seen->n_gone++;
}

struct stage {
        struct fake fake;
        struct seen seen;
        sd_event *event;
        struct qmp *qmp;
        struct error err;
        int r;
};

static void play(struct stage *stage, const char *const *script)
{
        const struct qmp_callbacks callbacks = {
                .event = on_event, .gone = on_gone, .opaque = &stage->seen};

        *stage = (struct stage){.fake = {.script = script, .got_fd = -1}, .err = ERROR_INIT};
        snprintf(stage->fake.path, sizeof(stage->fake.path), "/tmp/vhdd-qmp-%d", (int)getpid());
        cr_assert(eq(int, link_listen(stage->fake.path, &stage->fake.listen_fd, &stage->err), 0));
        fcntl(stage->fake.listen_fd, F_SETFL, 0); /* the fake one waits */
        cr_assert(eq(int, sd_event_new(&stage->event), 0));
        pthread_create(&stage->fake.thread, NULL, serve, &stage->fake);
        stage->r = qmp_open(stage->event, stage->fake.path, &callbacks, &stage->qmp, &stage->err);
}

static void end(struct stage *stage)
{
        qmp_close(stage->qmp);
        shutdown(stage->fake.listen_fd, SHUT_RDWR);
        pthread_join(stage->fake.thread, NULL);
        close(stage->fake.listen_fd);
        unlink(stage->fake.path);
        sd_event_unref(stage->event);
}

static void run_loop(struct stage *stage)
{
        for (int i = 0; i < 20; i++)
                sd_event_run(stage->event, 20000);
}

Test(glue_qmp, takes_the_version_and_answers)
{
        static const char *const script[] = {
                GREETING, OK(1), "{\"return\":{\"a\":5},\"id\":2}\n", NULL};
        json_auto_t *answer = NULL;
        struct stage stage;

        play(&stage, script);
        cr_assert(eq(int, stage.r, 0), "%s", stage.err.message);
        cr_expect(eq(str, (char *)qmp_version(stage.qmp), (char *)"7.2.22"));
        cr_assert(eq(int, qmp_call(stage.qmp, "x", json_object(), &answer, &stage.err), 0));
        cr_expect(eq(int, (int)json_integer_value(json_object_get(answer, "a")), 5));
        end(&stage);
}

Test(glue_qmp, keeps_events_that_come_before_an_answer)
{
        static const char *const script[] = {GREETING, OK(1),
                "{\"event\":\"STOP\",\"data\":{\"n\":1}}\n{\"event\":\"RESUME\",\"data\":{\"n\":2}}\n" OK(
                        2),
                NULL};
        struct stage stage;

        play(&stage, script);
        cr_assert(eq(int, qmp_call(stage.qmp, "x", NULL, NULL, &stage.err), 0));
        cr_expect(eq(int, (int)stage.seen.n_events, 0)); /* not from inside the call */
        run_loop(&stage);
        cr_expect(eq(int, (int)stage.seen.n_events, 2));
        cr_expect(eq(str, (char *)stage.seen.last, (char *)"RESUME"));
        end(&stage);
}

/* Whoever sends an empty line is no QEMU. */
Test(glue_qmp, is_through_with_who_speaks_no_json)
{
        static const char *const script[] = {GREETING, OK(1), "\n" OK(2), NULL};
        json_auto_t *answer = NULL;
        struct stage stage;
        int r;

        play(&stage, script);
        r = qmp_call(stage.qmp, "x", NULL, &answer, &stage.err);
        cr_expect(eq(int, r, -EPROTO), "%s", stage.err.message);
        end(&stage);
}

Test(glue_qmp, passes_over_an_answer_that_came_too_late)
{
        static const char *const script[] = {
                GREETING, OK(1), OK(1) "{\"return\":7,\"id\":2}\n", NULL};
        json_auto_t *answer = NULL;
        struct stage stage;

        play(&stage, script);
        cr_assert(eq(int, qmp_call(stage.qmp, "x", NULL, &answer, &stage.err), 0));
        cr_expect(eq(int, (int)json_integer_value(answer), 7));
        end(&stage);
}

/* "Not known" is an unsigned 64-bit -1, in the balloon's statistics. Digits in a text stay. */
Test(glue_qmp, reads_numbers_that_are_too_large)
{
        static const char *const script[] = {GREETING, OK(1),
                "{\"return\":{\"big\":18446744073709551615,\"most\":9223372036854775807,"
                "\"text\":\"\\\"18446744073709551615\",\"s\":3},\"id\":2}\n",
                NULL};
        json_auto_t *answer = NULL;
        struct stage stage;

        play(&stage, script);
        cr_assert(eq(int, qmp_call(stage.qmp, "x", NULL, &answer, &stage.err), 0), "%s",
                stage.err.message);
        cr_expect(eq(i64, json_integer_value(json_object_get(answer, "big")), -1));
        cr_expect(eq(i64, json_integer_value(json_object_get(answer, "most")), INT64_MAX));
        cr_expect(eq(i64, json_integer_value(json_object_get(answer, "s")), 3));
        cr_expect(eq(str, (char *)json_string_value(json_object_get(answer, "text")),
                (char *)"\"18446744073709551615"));
        end(&stage);
}

Test(glue_qmp, says_what_qemu_refuses)
{
        static const char *const script[] = {GREETING, OK(1),
                "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such thing\"},\"id\":2}\n",
                NULL};
        struct stage stage;

        play(&stage, script);
        cr_assert(eq(int, qmp_call(stage.qmp, "do-it", NULL, NULL, &stage.err), -EREMOTEIO));
        cr_expect(strstr(stage.err.message, "do-it") != NULL);
        cr_expect(strstr(stage.err.message, "no such thing") != NULL);
        end(&stage);
}

Test(glue_qmp, tells_once_that_it_is_gone)
{
        static const char *const script[] = {GREETING, OK(1), NULL};
        struct stage stage;

        play(&stage, script);
        run_loop(&stage);
        cr_expect(eq(int, (int)stage.seen.n_gone, 0)); /* the fake one waits for a command */
        cr_expect(eq(int, qmp_call(stage.qmp, "x", NULL, NULL, &stage.err), -EPIPE));
        run_loop(&stage);
        cr_expect(eq(int, (int)stage.seen.n_gone, 1));
        cr_expect(eq(int, qmp_call(stage.qmp, "y", NULL, NULL, &stage.err), -EPIPE));
        end(&stage);
}

Test(glue_qmp, refuses_what_is_no_qemu)
{
        static const char *const script[] = {"{\"hello\":1}\n", NULL};
        struct stage stage;

        play(&stage, script);
        cr_expect(eq(int, stage.r, -EPROTO));
        cr_expect(eq(ptr, stage.qmp, NULL));
        end(&stage);
}

Test(glue_qmp, passes_a_descriptor)
{
        static const char *const script[] = {GREETING, OK(1), OK(2), NULL};
        struct stage stage;

        play(&stage, script);
        cr_assert(eq(int,
                qmp_call_with(stage.qmp, "getfd", NULL, STDOUT_FILENO, 5000, NULL, &stage.err), 0));
        cr_expect(ge(int, stage.fake.got_fd, 0));
        close(stage.fake.got_fd);
        end(&stage);
}
