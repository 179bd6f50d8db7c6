/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/qmp.h"

#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "vhdd/control/wire.h"
#include "vmm-glue/link.h"

#define MAX_LINE    (4u << 20) /* query-block of 256 disks has some 200 KiB */
#define MAX_EVENTS  65536u
#define GREETING_MS 10000

struct qmp {
        struct wire *wire;
        sd_event_source *io, *pending;
        struct qmp_callbacks callbacks;
        json_int_t next_id;
        json_t *events; /* array: not handed out yet */
        char version[64];
        bool is_broken; /* said so, or about to */
        bool is_told;
        bool is_dispatching, is_closed;
};

static int64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

static void wake(struct qmp *qmp)
{
        sd_event_source_set_enabled(qmp->pending, SD_EVENT_ONESHOT);
}

static int broken(struct qmp *qmp, struct error *err, int r, const char *what)
{
        qmp->is_broken = true;
        if (qmp->io)
                sd_event_source_set_enabled(qmp->io, SD_EVENT_OFF);
        if (qmp->pending)
                wake(qmp);
        return fail_os(err, r < 0 ? -r : EPIPE, "%s", what);
}

/* --- lines --- */

/* QEMU writes "not known" as an unsigned 64-bit -1, which jansson refuses: what does not fit becomes -1. */
static void tame_numbers(char *line, size_t length)
{
        bool in_text = false;

        for (size_t i = 0; i < length; i++) {
                size_t n = 0;

                if (in_text && line[i] == '\\') {
                        i++;
                        continue;
                }
                if (line[i] == '"')
                        in_text = !in_text;
                if (in_text)
                        continue;
                while (i + n < length && line[i + n] >= '0' && line[i + n] <= '9')
                        n++;
                if (n > 19 || (n == 19 && memcmp(line + i, "9223372036854775807", 19) > 0)) {
                        memset(line + i, ' ', n);
                        memcpy(line + i, "-1", 2);
                }
                if (n > 0)
                        i += n - 1;
        }
}

/* A message is an event, an answer, or the greeting. */
static int parse(struct qmp *qmp, char *line, size_t length, json_t **ret, struct error *err)
{
        json_t *message;

        tame_numbers(line, length);
        message = json_loadb(line, length, 0, NULL);
        if (!json_is_object(message)) {
                json_decref(message);
                return broken(qmp, err, -EPROTO, "QEMU's monitor does not speak JSON");
        }
        if (json_is_string(json_object_get(message, "event"))) {
                if (json_array_size(qmp->events) >= MAX_EVENTS) {
                        json_decref(message);
                        return broken(qmp, err, -EPROTO, "QEMU's monitor floods us with events");
                }
                json_array_append_new(qmp->events, message);
                wake(qmp);
                message = NULL;
        }
        *ret = message;
        return 0;
}

/* Waits for the next message that is no event. */
static int await(struct qmp *qmp, int64_t end_ms, json_t **ret, struct error *err)
{
        for (;;) {
                size_t length;
                char *line = wire_line(qmp->wire, &length);
                int r;

                if (line) {
                        json_t *message = NULL;

                        r = parse(qmp, line, length, &message, err);
                        if (r < 0)
                                return r;
                        if (message) {
                                *ret = message;
                                return 0;
                        }
                        continue;
                }
                struct pollfd fd = {.fd = wire_fd(qmp->wire), .events = POLLIN};
                int64_t left = end_ms - now_ms();

                r = left > 0 ? poll(&fd, 1, (int)left) : 0;
                if (r == 0)
                        return fail(err, ETIMEDOUT, "QEMU's monitor does not answer");
                if (r < 0 && errno != EINTR)
                        return fail_os(err, errno, "cannot wait for QEMU's monitor");
                if (r < 0)
                        continue;
                r = wire_receive(qmp->wire);
                if (r == -EAGAIN)
                        continue;
                if (r <= 0)
                        return broken(qmp, err, r, "QEMU's monitor is gone");
        }
}

/* --- calling --- */

static int send_line(struct qmp *qmp, json_t *message, int fd, int64_t end_ms, struct error *err)
{
        _cleanup_free_ char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
        size_t length, sent = 0;

        json_decref(message);
        if (!text)
                return fail(err, ENOMEM, "no memory for a command");
        length = strlen(text);
        text[length++] = '\n'; /* in the place of the NUL */
        while (sent < length) {
                long n = wire_send(wire_fd(qmp->wire), text + sent, length - sent, &fd,
                        fd >= 0 && sent == 0 ? 1 : 0, MSG_DONTWAIT);

                if (n == -EAGAIN && now_ms() < end_ms) {
                        struct pollfd p = {.fd = wire_fd(qmp->wire), .events = POLLOUT};

                        poll(&p, 1, 100);
                        continue;
                }
                if (n < 0)
                        return broken(qmp, err, (int)n, "cannot write to QEMU's monitor");
                sent += (size_t)n;
        }
        return 0;
}

static int judge(const char *command, json_t *answer, json_t **ret, struct error *err)
{
        const json_t *error = json_object_get(answer, "error");
        const char *said = json_string_value(json_object_get(error, "desc"));

        if (error)
                return fail(err, EREMOTEIO, "QEMU refuses '%s': %.500s", command,
                        said ? said : "without a reason");
        if (ret)
                *ret = json_incref(json_object_get(answer, "return"));
        return 0;
}

int qmp_call_with(struct qmp *qmp, const char *command, json_t *arguments, int fd, int timeout_ms,
        json_t **ret, struct error *err)
{
        int64_t end_ms = now_ms() + timeout_ms;
        json_int_t id = ++qmp->next_id;
        json_t *message = json_pack("{s:s, s:I}", "execute", command, "id", id);
        int r;

        if (message && arguments)
                json_object_set_new(message, "arguments", arguments);
        else
                json_decref(arguments);
        if (qmp->is_broken) {
                json_decref(message);
                return fail(err, EPIPE, "QEMU's monitor is gone");
        }
        r = send_line(qmp, message, fd, end_ms, err);
        while (r == 0) {
                json_auto_t *answer = NULL;

                r = await(qmp, end_ms, &answer, err);
                if (r < 0)
                        break;
                /* Others are late answers to calls that were given up. */
                if (json_integer_value(json_object_get(answer, "id")) == id)
                        return judge(command, answer, ret, err);
        }
        return fail_prefix(err, r, "QEMU did not '%s'", command);
}

int qmp_call(
        struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, struct error *err)
{
        return qmp_call_with(qmp, command, arguments, -1, QMP_CALL_MS, ret, err);
}

/* --- events --- */

static void destroy(struct qmp *qmp)
{
        sd_event_source_disable_unref(qmp->io);
        sd_event_source_disable_unref(qmp->pending);
        wire_free(qmp->wire);
        json_decref(qmp->events);
        free(qmp);
}

static void hand_out(struct qmp *qmp)
{
        qmp->is_dispatching = true;
        while (!qmp->is_closed && json_array_size(qmp->events) > 0) {
                json_auto_t *event = json_incref(json_array_get(qmp->events, 0));

                json_array_remove(qmp->events, 0);
                qmp->callbacks.event(qmp->callbacks.opaque,
                        json_string_value(json_object_get(event, "event")),
                        json_object_get(event, "data"));
        }
        if (!qmp->is_closed && qmp->is_broken && !qmp->is_told) {
                qmp->is_told = true;
                qmp->callbacks.gone(qmp->callbacks.opaque);
        }
        qmp->is_dispatching = false;
        if (qmp->is_closed)
                destroy(qmp);
}

static int on_pending(sd_event_source *source, void *opaque)
{
        hand_out(opaque);
        return 0;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
        struct qmp *qmp = opaque;
        struct error err = ERROR_INIT;
        size_t length;
        char *line;
        int r = wire_receive(qmp->wire);

        if (r <= 0 && r != -EAGAIN)
                broken(qmp, &err, r, "QEMU's monitor is gone");
        while (!qmp->is_broken && (line = wire_line(qmp->wire, &length))) {
                json_t *message = NULL;

                if (parse(qmp, line, length, &message, &err) == 0)
                        json_decref(message); /* an answer that nobody waits for any more */
        }
        hand_out(qmp);
        return 0;
}

struct qmp *qmp_close(struct qmp *qmp)
{
        if (!qmp || qmp->is_closed)
                return NULL;
        qmp->is_closed = true;
        if (!qmp->is_dispatching)
                destroy(qmp);
        return NULL;
}

/* --- opening --- */

static int take_greeting(struct qmp *qmp, struct error *err)
{
        json_auto_t *greeting = NULL;
        json_int_t major = -1, minor = -1, micro = -1;
        int r = await(qmp, now_ms() + GREETING_MS, &greeting, err);

        if (r < 0)
                return r;
        if (json_unpack(greeting, "{s:{s:{s:{s:I, s:I, s:I}}}}", "QMP", "version", "qemu", "major",
                    &major, "minor", &minor, "micro", &micro) < 0)
                return fail(err, EPROTO, "what listens there is not QEMU's monitor");
        snprintf(qmp->version, sizeof(qmp->version),
                "%" JSON_INTEGER_FORMAT ".%" JSON_INTEGER_FORMAT ".%" JSON_INTEGER_FORMAT, major,
                minor, micro);
        return qmp_call(qmp, "qmp_capabilities", NULL, NULL, err);
}

int qmp_open(sd_event *event, const char *path, const struct qmp_callbacks *callbacks,
        struct qmp **ret, struct error *err)
{
        _cleanup_(qmp_closep) struct qmp *qmp = calloc(1, sizeof(*qmp));
        _cleanup_fd_ int fd = -1;
        int r;

        if (!qmp || !(qmp->events = json_array()))
                return fail(err, ENOMEM, "no memory for QEMU's monitor");
        r = link_connect(path, &fd, err);
        if (r < 0)
                return r;
        qmp->callbacks = *callbacks;
        qmp->wire = wire_new(fd, MAX_LINE);
        if (!qmp->wire)
                return fail(err, ENOMEM, "no memory for QEMU's monitor");
        TAKE_FD(fd);
        r = sd_event_add_defer(event, &qmp->pending, on_pending, qmp);
        if (r >= 0)
                r = sd_event_source_set_enabled(qmp->pending, SD_EVENT_OFF);
        if (r < 0)
                return fail_os(err, -r, "cannot watch QEMU's monitor");
        r = take_greeting(qmp, err);
        if (r < 0)
                return r;
        r = sd_event_add_io(event, &qmp->io, wire_fd(qmp->wire), EPOLLIN, on_io, qmp);
        if (r < 0)
                return fail_os(err, -r, "cannot watch QEMU's monitor");
        *ret = TAKE_PTR(qmp);
        return 0;
}

const char *qmp_version(const struct qmp *qmp)
{
        return qmp->version;
}
