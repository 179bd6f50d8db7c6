/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/supervisor/qga.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "vhdd/control/wire.h"
#include "vmm-glue/link.h"

#define MAX_LINE    (256u << 10)
#define MAX_WAITING 32u

struct waiting {
        struct waiting *next;
        json_int_t id;
        uint64_t end_us;
        qga_reply_fn reply;
        void *opaque;
};

struct qga {
        struct wire *wire;
        sd_event *event;
        sd_event_source *io, *timer;
        void (*gone)(void *opaque);
        void *opaque;
        json_int_t next_id;
        struct waiting *waiting; /* the oldest first */
        bool is_gone, is_closed;
        unsigned depth;
};

static void tell(struct waiting *one, const json_t *result, const struct error *err)
{
        if (one->reply)
                one->reply(one->opaque, result, err);
        free(one);
}

static void destroy(struct qga *qga)
{
        struct error err = ERROR_INIT;

        fail(&err, EPIPE, "the guest's agent is gone");
        while (qga->waiting) {
                struct waiting *one = qga->waiting;

                qga->waiting = one->next;
                tell(one, NULL, &err);
        }
        sd_event_source_disable_unref(qga->io);
        sd_event_source_disable_unref(qga->timer);
        sd_event_unref(qga->event);
        wire_free(qga->wire);
        free(qga);
}

static void leave(struct qga *qga)
{
        if (--qga->depth == 0 && qga->is_closed)
                destroy(qga);
}

struct qga *qga_close(struct qga *qga)
{
        if (!qga || qga->is_closed)
                return NULL;
        qga->is_closed = true;
        qga->depth++;
        leave(qga);
        return NULL;
}

static void go(struct qga *qga)
{
        if (qga->is_gone || qga->is_closed)
                return;
        qga->is_gone = true;
        sd_event_source_set_enabled(qga->io, SD_EVENT_OFF);
        qga->gone(qga->opaque);
}

/* --- time --- */

static void set_timer(struct qga *qga)
{
        uint64_t next = UINT64_MAX;

        for (const struct waiting *one = qga->waiting; one; one = one->next)
                if (one->end_us < next)
                        next = one->end_us;
        if (next != UINT64_MAX)
                sd_event_source_set_time(qga->timer, next);
        sd_event_source_set_enabled(
                qga->timer, next != UINT64_MAX ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
}

static int on_time(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct qga *qga = opaque;
        struct error err = ERROR_INIT;

        fail(&err, ETIMEDOUT, "the guest's agent does not answer");
        qga->depth++;
        for (struct waiting **p = &qga->waiting; *p;) {
                struct waiting *one = *p;

                if (one->end_us > usec) {
                        p = &one->next;
                        continue;
                }
                *p = one->next;
                tell(one, NULL, &err);
                p = &qga->waiting; /* a callback may have asked more */
        }
        set_timer(qga);
        leave(qga);
        return 0;
}

/* --- answers --- */

/* Older agents leave the id out: then it is the oldest command's. */
static struct waiting *take_waiting(struct qga *qga, const json_t *id)
{
        for (struct waiting **p = &qga->waiting; *p; p = &(*p)->next) {
                if (json_is_integer(id) && json_integer_value(id) != (*p)->id)
                        continue;
                struct waiting *one = *p;

                *p = one->next;
                set_timer(qga);
                return one;
        }
        return NULL;
}

static void take_answer(struct qga *qga, const json_t *message)
{
        const json_t *error = json_object_get(message, "error");
        const json_t *result = json_object_get(message, "return");
        const char *said = json_string_value(json_object_get(error, "desc"));
        struct waiting *one = take_waiting(qga, json_object_get(message, "id"));
        struct error err = ERROR_INIT;

        if (!one)
                return;
        if (!result)
                fail(&err, EREMOTEIO, "the guest's agent refuses: %.200s",
                        said ? said : "without a reason");
        tell(one, result, &err);
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
        struct qga *qga = opaque;
        size_t length;
        char *line;
        int r = wire_receive(qga->wire);

        qga->depth++;
        while (r > 0 && !qga->is_closed && (line = wire_line(qga->wire, &length))) {
                json_auto_t *message = NULL;

                /* A sync answer begins with a byte that is in no JSON. */
                while (length > 0 && (unsigned char)*line == 0xff) {
                        line++;
                        length--;
                }
                message = json_loadb(line, length, 0, NULL);
                if (json_is_object(message))
                        take_answer(qga, message);
        }
        if (r <= 0 && r != -EAGAIN)
                go(qga);
        leave(qga);
        return 0;
}

/* --- asking --- */

int qga_ask(struct qga *qga, const char *command, json_t *arguments, unsigned timeout_ms,
        qga_reply_fn reply, void *opaque, struct error *err)
{
        json_auto_t *message = json_pack("{s:s, s:I}", "execute", command, "id", qga->next_id + 1);
        _cleanup_free_ char *text = NULL;
        struct waiting *one = NULL, **last = &qga->waiting;
        unsigned n = 0;
        uint64_t now;
        size_t length;
        long sent;

        if (arguments && json_object_set_new(message, "arguments", arguments) < 0)
                return fail(err, ENOMEM, "no memory for a command");
        for (; *last; last = &(*last)->next)
                n++;
        if (qga->is_gone || n >= MAX_WAITING)
                return fail(err, EPIPE, "the guest's agent does not answer");
        text = json_dumps(message, JSON_COMPACT);
        one = calloc(1, sizeof(*one));
        if (!text || !one) {
                free(one);
                return fail(err, ENOMEM, "no memory for a command");
        }
        length = strlen(text);
        text[length++] = '\n'; /* in the place of the NUL */
        sent = wire_send(wire_fd(qga->wire), text, length, NULL, 0, MSG_DONTWAIT);
        if (sent != (long)length) { /* it takes nothing: half a line is of no use either */
                free(one);
                go(qga);
                return fail(err, EPIPE, "the guest's agent does not listen");
        }
        sd_event_now(qga->event, CLOCK_MONOTONIC, &now);
        one->id = ++qga->next_id;
        one->end_us = now + timeout_ms * UINT64_C(1000);
        one->reply = reply;
        one->opaque = opaque;
        *last = one;
        set_timer(qga);
        return 0;
}

int qga_open(sd_event *event, const char *path, void (*gone)(void *opaque), void *opaque,
        struct qga **ret, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct qga *qga;
        int r = link_connect(path, &fd, err);

        if (r < 0)
                return r;
        qga = calloc(1, sizeof(*qga));
        if (!qga || !(qga->wire = wire_new(fd, MAX_LINE))) {
                free(qga);
                return fail(err, ENOMEM, "no memory for the guest's agent");
        }
        TAKE_FD(fd);
        qga->event = sd_event_ref(event);
        qga->gone = gone;
        qga->opaque = opaque;
        qga->depth = 1;
        r = sd_event_add_io(event, &qga->io, wire_fd(qga->wire), EPOLLIN, on_io, qga);
        if (r >= 0)
                r = sd_event_add_time(
                        event, &qga->timer, CLOCK_MONOTONIC, UINT64_MAX, 1000, on_time, qga);
        if (r >= 0)
                r = sd_event_source_set_enabled(qga->timer, SD_EVENT_OFF);
        qga->depth = 0;
        if (r < 0) {
                destroy(qga);
                return fail_os(err, -r, "cannot watch the guest's agent");
        }
        *ret = qga;
        return 0;
}
