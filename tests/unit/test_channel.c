/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a hostile process at the other end sends something that is no message, or half
 * of one, or more descriptors than we look for; a long message arrives in the wrong order; a question
 * waits for ever because the one who was to answer is dead, or takes an event for its answer. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#include "vhdd/ipc/rpc.h"

static void make_pair(struct channel *ret[2])
{
        int fds[2];
        struct error err = ERROR_INIT;

        cr_assert(eq(int, channel_pair(fds, &err), 0));
        cr_assert(eq(int, channel_new(fds[0], &ret[0], &err), 0));
        cr_assert(eq(int, channel_new(fds[1], &ret[1], &err), 0));
}

static bool same_file(int a, int b)
{
        char name[2][64], target[2][64] = {"", ""};

        snprintf(name[0], sizeof(name[0]), "/proc/self/fd/%d", a);
        snprintf(name[1], sizeof(name[1]), "/proc/self/fd/%d", b);
        cr_assert(ge(long, readlink(name[0], target[0], sizeof(target[0]) - 1), 1));
        cr_assert(ge(long, readlink(name[1], target[1], sizeof(target[1]) - 1), 1));
        return !strcmp(target[0], target[1]);
}

Test(channel, carries_text_and_descriptors)
{
        struct channel *ends[2];
        struct message got = MESSAGE_INIT;
        struct error err = ERROR_INIT;
        int pipes[2], fd;
        json_t *json = json_pack("{s:s}", "name", "web-07/disk");

        make_pair(ends);
        cr_assert(eq(int, pipe2(pipes, O_CLOEXEC), 0));
        cr_assert(eq(int, channel_send(ends[0], json, pipes, 2, &err), 0));
        cr_assert(eq(int, channel_receive(ends[1], &got, &err), 1));
        cr_expect(json_equal(got.json, json));
        cr_assert(eq(uint, got.n_fds, 2));
        fd = message_take_fd(&got, 1);
        cr_expect(same_file(fd, pipes[1]));
        cr_expect(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        cr_expect(eq(int, message_take_fd(&got, 1), -1), "taken once");
        cr_expect(eq(int, message_take_fd(&got, 7), -1));
        message_done(&got);
        cr_expect(ge(int, fcntl(fd, F_GETFD), 0), "what was taken stays open");
        channel_free(ends[0]);
        cr_expect(eq(int, channel_receive(ends[1], &got, &err), 0), "the end is no error");
        channel_free(ends[1]);
        json_decref(json);
}

static void *receive_one(void *end)
{
        static struct message got;
        struct error err = ERROR_INIT;

        got = MESSAGE_INIT;
        return channel_receive(end, &got, &err) == 1 ? &got : NULL;
}

Test(channel, carries_a_message_of_many_packets_and_refuses_one_that_is_too_long, .timeout = 20)
{
        struct channel *ends[2];
        struct error err = ERROR_INIT;
        struct message *got;
        void *result;
        size_t length = 3u << 20;
        char *text = malloc(CHANNEL_MAX_MESSAGE + 1);
        json_t *json;
        pthread_t thread;

        make_pair(ends);
        cr_assert(text != NULL);
        for (size_t i = 0; i < length; i++)
                text[i] = (char)('a' + i % 23);
        text[length] = '\0';
        json = json_pack("{s:s}", "long", text);
        cr_assert(eq(int, pthread_create(&thread, NULL, receive_one, ends[1]), 0));
        cr_assert(eq(int, channel_send(ends[0], json, NULL, 0, &err), 0));
        pthread_join(thread, &result);
        got = result;
        cr_assert(got != NULL);
        cr_expect(json_equal(got->json, json));
        message_done(got);
        json_decref(json);

        memset(text, 'x', CHANNEL_MAX_MESSAGE);
        text[CHANNEL_MAX_MESSAGE] = '\0';
        json = json_pack("{s:s}", "long", text);
        cr_expect(eq(int, channel_send(ends[0], json, NULL, 0, &err), -EMSGSIZE));
        json_decref(json);
        free(text);
        json = json_pack("{s:i}", "next", 1);
        cr_assert(
                eq(int, channel_send(ends[0], json, NULL, 0, &err), 0), "the channel still works");
        got = receive_one(ends[1]);
        cr_assert(got != NULL);
        cr_expect(json_equal(got->json, json));
        message_done(got);
        json_decref(json);
        channel_free(ends[0]);
        channel_free(ends[1]);
}

struct packet {
        uint32_t magic, length, offset, n_fds;
        char text[48];
};
#define MAGIC UINT32_C(0x31766876)

/* Sends what a hostile process might, and answers what our end says to it. */
static int receive_packets(const struct packet *packets, size_t n, size_t size)
{
        struct message got = MESSAGE_INIT;
        struct error err = ERROR_INIT;
        struct channel *ours;
        int fds[2], r;

        cr_assert(eq(int, channel_pair(fds, &err), 0));
        cr_assert(eq(int, channel_new(fds[0], &ours, &err), 0));
        for (size_t i = 0; i < n; i++)
                cr_assert(ge(long, send(fds[1], &packets[i], size, MSG_NOSIGNAL), 0));
        close(fds[1]);
        r = channel_receive(ours, &got, &err);
        cr_expect(r >= 0 || err.message[0] != '\0');
        cr_expect(r == 1 || got.json == NULL);
        message_done(&got);
        channel_free(ours);
        return r;
}

Test(channel, what_is_no_message_is_an_error)
{
        static const struct packet good[] = {{MAGIC, 8, 0, 0, "{\"a\":1} "}};
        static const struct packet bad[][2] = {
                {{MAGIC + 1, 48, 0, 0, "{}"}},     /* another program's */
                {{MAGIC, 0, 0, 0, "{}"}},          /* longer than it says */
                {{MAGIC, UINT32_MAX, 0, 0, "{}"}}, /* 4 GiB are promised */
                {{MAGIC, 48, 1, 0, "{}"}},         /* begins in its middle */
                {{MAGIC, 48, 0, 3, "{}"}},         /* descriptors that are not there */
                {{MAGIC, 48, 0, 0, "[1, 2, 3]"}},  /* NULs behind, and no object */
                {{MAGIC, 96, 0, 0, "{"}, {MAGIC, 97, 48, 0, ""}}, /* two that disagree */
                {{MAGIC, 96, 0, 0, "{"}, {MAGIC, 96, 47, 0, ""}}, /* parts that overlap */
        };

        cr_expect(eq(int, receive_packets(good, 1, 16 + 8), 1), "the test's own form is right");
        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
                cr_expect(
                        eq(int, receive_packets(bad[i], bad[i][1].magic ? 2 : 1, sizeof(bad[i][0])),
                                -EPROTO),
                        "form %zu", i);
        cr_expect(eq(int, receive_packets(good, 1, 7), -EPROTO), "half a head");
        cr_expect(eq(int, receive_packets(good, 1, 16), -EPROTO), "a head and nothing behind it");
}

/* Descriptors of a message that is refused must not stay open here. */
Test(channel, a_refused_message_leaves_no_descriptor)
{
        struct channel *ends[2];
        struct message got = MESSAGE_INIT;
        struct error err = ERROR_INIT;
        union {
                struct cmsghdr head;
                char space[CMSG_SPACE(40 * sizeof(int))];
        } control = {.head = {.cmsg_level = SOL_SOCKET,
                             .cmsg_type = SCM_RIGHTS,
                             .cmsg_len = CMSG_LEN(40 * sizeof(int))}};
        struct packet packet = {MAGIC, 2, 0, 32, "{}"};
        struct iovec iov = {&packet, 18};
        struct msghdr msg = {.msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = &control,
                .msg_controllen = sizeof(control)};
        int before, after;

        make_pair(ends);
        for (int i = 0; i < 40; i++)
                memcpy(CMSG_DATA(&control.head) + (size_t)i * sizeof(int), &(int){0}, sizeof(int));
        before = dup(0);
        close(before);
        cr_assert(ge(long, sendmsg(channel_fd(ends[0]), &msg, 0), 0));
        cr_expect(eq(int, channel_receive(ends[1], &got, &err), -EPROTO));
        after = dup(0);
        close(after);
        cr_expect(eq(int, after, before));
        channel_free(ends[0]);
        channel_free(ends[1]);
}

Test(channel, an_error_keeps_its_facts_on_the_way)
{
        struct error err = ERROR_INIT, got = ERROR_INIT;
        json_t *json;

        fail(&err, ESTALE, "the parent changed");
        error_set_file(&err, "/sr/base.vhd");
        error_set_offset(&err, 1536);
        error_set_hint(&err, "vhdctl relink");
        json = error_to_json(&err);
        cr_expect(eq(int, error_from_json(json, &got), -ESTALE));
        json_decref(json);
        cr_expect(strcmp(got.message, "the parent changed") == 0, "%s", got.message);
        cr_expect(strcmp(got.file, "/sr/base.vhd") == 0, "%s", got.file);
        cr_expect(strcmp(got.hint, "vhdctl relink") == 0, "%s", got.hint);
        cr_expect(eq(u64, got.offset, 1536));
        json = json_pack("{s:i}", "code", -5);
        cr_expect(eq(int, error_from_json(json, &got), -EPROTO), "a code must be one");
        json_decref(json);
        cr_expect(eq(int, error_from_json(NULL, &got), -EPROTO));
}

/* --- questions and answers --- */

static atomic_uint n_events;

static void answer(void *opaque, struct rpc *rpc, int64_t id, const char *method, json_t *params,
        struct message *message)
{
        if (!strcmp(method, "echo")) {
                rpc_reply(rpc, id, json_incref(params), message->fds, message->n_fds);
        } else if (!strcmp(method, "fail")) {
                struct error err = ERROR_INIT;

                fail(&err, ENOSPC, "the disk is full");
                rpc_reply_error(rpc, id, &err);
        } else if (!strcmp(method, "die")) {
                rpc_shutdown(rpc);
        } else if (!strcmp(method, "tell")) {
                rpc_send_event(rpc, "client", json_pack("{s:I}", "id", (json_int_t)id));
                rpc_reply(rpc, id, NULL, NULL, 0);
        } /* "silence" is not answered */
}

static void count_event(void *opaque, struct rpc *rpc, const char *name, const json_t *event)
{
        atomic_fetch_add(&n_events, !strcmp(name, "client"));
}

static void *run(void *rpc)
{
        rpc_run(rpc, NULL);
        return NULL;
}

struct two {
        struct rpc *ends[2];
        pthread_t threads[2];
};

static void two_start(struct two *two)
{
        const struct rpc_handlers handlers = {.request = answer, .event = count_event};
        int fds[2];
        struct error err = ERROR_INIT;

        cr_assert(eq(int, channel_pair(fds, &err), 0));
        for (int i = 0; i < 2; i++) {
                cr_assert(eq(int, rpc_new(fds[i], &handlers, &two->ends[i], &err), 0));
                cr_assert(eq(int, pthread_create(&two->threads[i], NULL, run, two->ends[i]), 0));
        }
}

static void two_end(struct two *two)
{
        rpc_shutdown(two->ends[0]);
        for (int i = 0; i < 2; i++) {
                pthread_join(two->threads[i], NULL);
                rpc_unref(two->ends[i]);
        }
}

Test(rpc, both_ends_ask_and_answer, .timeout = 20)
{
        struct two two;
        struct error err = ERROR_INIT;

        two_start(&two);
        for (int i = 0; i < 200; i++) {
                struct message got = MESSAGE_INIT;
                int out = 1, r;

                r = rpc_call(two.ends[i % 2], "echo", json_pack("{s:i}", "n", i), &out, 1, 5000,
                        &got, &err);
                cr_assert(eq(int, r, 0), "%s", err.message);
                cr_expect(eq(int, (int)json_integer_value(json_object_get(got.json, "n")), i));
                cr_expect(eq(uint, got.n_fds, 1));
                message_done(&got);
        }
        cr_expect(eq(int, rpc_call(two.ends[0], "fail", NULL, NULL, 0, 5000, NULL, &err), -ENOSPC));
        cr_expect(strcmp(err.message, "the disk is full") == 0, "%s", err.message);
        two_end(&two);
}

/* A client has an id, too. */
Test(rpc, an_event_with_an_id_is_no_answer, .timeout = 20)
{
        struct two two;
        struct error err = ERROR_INIT;

        two_start(&two);
        for (unsigned i = 1; i <= 5; i++) {
                int r = rpc_call(two.ends[0], "tell", NULL, NULL, 0, 5000, NULL, &err);

                cr_expect(eq(int, r, 0), "%s", err.message);
                cr_expect(eq(uint, atomic_load(&n_events), i));
        }
        two_end(&two);
}

Test(rpc, nobody_waits_for_the_silent_or_the_dead, .timeout = 20)
{
        struct two two;
        struct error err = ERROR_INIT;

        two_start(&two);
        cr_expect(eq(
                int, rpc_call(two.ends[0], "silence", NULL, NULL, 0, 30, NULL, &err), -ETIMEDOUT));
        cr_expect(eq(int, rpc_call(two.ends[0], "die", NULL, NULL, 0, 0, NULL, &err), -EHOSTDOWN));
        cr_expect(eq(int, rpc_call(two.ends[0], "echo", NULL, NULL, 0, 0, NULL, &err), -EHOSTDOWN));
        two_end(&two);
}
