/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/link.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "vhdd/control/wire.h"
#include "vmm-glue/log.h"

struct outgoing {
        struct outgoing *next;
        char *data;
        size_t length, sent;
        int fds[LINK_MAX_FDS];
        size_t n_fds;
};

struct waiting {
        struct waiting *next;
        json_int_t id;
        uint64_t end_us; /* CLOCK_MONOTONIC */
        link_reply_fn reply;
        void *opaque;
};

struct link {
        struct wire *wire;
        sd_event *event;
        sd_event_source *io, *timer;
        struct link_callbacks callbacks;
        json_int_t next_id;
        struct outgoing *first, **last;
        size_t n_bytes;
        struct waiting *waiting;
        unsigned depth; /* callbacks that are under way */
        bool is_gone, is_freed;
};

/* --- errors as JSON --- */

json_t *error_to_object(const struct error *err)
{
        json_t *object = json_pack("{s:s, s:s?}", "message", err->message, "code",
                strerrorname_np(err->code ? err->code : EIO));

        if (object && err->hint[0])
                json_object_set_new(object, "hint", json_string(err->hint));
        return object;
}

int error_from_object(const json_t *object, struct error *err)
{
        const char *message = json_string_value(json_object_get(object, "message"));
        const char *name = json_string_value(json_object_get(object, "code"));
        const char *hint = json_string_value(json_object_get(object, "hint"));
        int code = EIO;

        for (int i = 1; name && i < 200; i++) {
                const char *known = strerrorname_np(i);

                if (known && strcmp(known, name) == 0)
                        code = i;
        }
        fail(err, code, "%s", message ? message : "it was refused without a reason");
        if (hint)
                error_set_hint(err, "%s", hint);
        return -code;
}

/* --- going --- */

static void drop_outgoing(struct link *link)
{
        while (link->first) {
                struct outgoing *out = link->first;

                link->first = out->next;
                for (size_t i = 0; i < out->n_fds; i++)
                        close(out->fds[i]);
                free(out->data);
                free(out);
        }
        link->last = &link->first;
        link->n_bytes = 0;
}

static void tell(
        struct waiting *one, const json_t *result, int *fds, size_t n_fds, const struct error *err)
{
        if (one->reply)
                one->reply(one->opaque, result, fds, n_fds, err);
        for (size_t i = 0; !one->reply && i < n_fds; i++)
                close(fds[i]);
        free(one);
}

static void refuse_waiting(struct link *link)
{
        struct error err = ERROR_INIT;

        fail(&err, EPIPE, "the other end of the link is gone");
        while (link->waiting) {
                struct waiting *one = link->waiting;

                link->waiting = one->next;
                tell(one, NULL, NULL, 0, &err);
        }
}

static void link_destroy(struct link *link)
{
        drop_outgoing(link);
        sd_event_source_disable_unref(link->io);
        sd_event_source_disable_unref(link->timer);
        wire_free(link->wire);
        sd_event_unref(link->event);
        free(link);
}

static void enter(struct link *link)
{
        link->depth++;
}

static void leave(struct link *link)
{
        if (--link->depth == 0 && link->is_freed)
                link_destroy(link);
}

struct link *link_free(struct link *link)
{
        if (!link || link->is_freed)
                return NULL;
        link->is_freed = link->is_gone = true;
        sd_event_source_set_enabled(link->io, SD_EVENT_OFF);
        sd_event_source_set_enabled(link->timer, SD_EVENT_OFF);
        enter(link);
        refuse_waiting(link);
        leave(link);
        return NULL;
}

static void go(struct link *link)
{
        if (link->is_gone)
                return;
        link->is_gone = true;
        sd_event_source_set_enabled(link->io, SD_EVENT_OFF);
        sd_event_source_set_enabled(link->timer, SD_EVENT_OFF);
        drop_outgoing(link);
        refuse_waiting(link);
        if (!link->is_freed)
                link->callbacks.gone(link->callbacks.opaque, link);
}

/* --- sending --- */

static void watch_io(struct link *link)
{
        sd_event_source_set_io_events(link->io, EPOLLIN | (link->first ? (uint32_t)EPOLLOUT : 0));
}

static int send_some(struct link *link)
{
        while (link->first) {
                struct outgoing *out = link->first;
                long n = wire_send(wire_fd(link->wire), out->data + out->sent,
                        out->length - out->sent, out->fds, out->n_fds, MSG_DONTWAIT);

                if (n < 0)
                        return n == -EAGAIN ? 0 : (int)n;
                for (size_t i = 0; i < out->n_fds; i++)
                        close(out->fds[i]);
                out->n_fds = 0;
                out->sent += (size_t)n;
                if (out->sent < out->length)
                        return 0;
                link->first = out->next;
                if (!link->first)
                        link->last = &link->first;
                link->n_bytes -= out->length;
                free(out->data);
                free(out);
        }
        return 0;
}

static int copy_fds(struct outgoing *out, const int *fds, size_t n_fds, struct error *err)
{
        if (n_fds > LINK_MAX_FDS)
                return fail(err, EINVAL, "%zu descriptors are too many for one message", n_fds);
        for (; out->n_fds < n_fds; out->n_fds++) {
                out->fds[out->n_fds] = fcntl(fds[out->n_fds], F_DUPFD_CLOEXEC, 3);
                if (out->fds[out->n_fds] < 0)
                        return fail_os(err, errno, "cannot pass a descriptor on");
        }
        return 0;
}

/* Takes @message over. What goes wrong with the socket is seen by the loop. */
static int put(struct link *link, json_t *message, const int *fds, size_t n_fds, struct error *err)
{
        struct outgoing *out = calloc(1, sizeof(*out));
        int r = 0;

        if (message && n_fds > 0)
                json_object_set_new(message, "descriptors", json_integer((json_int_t)n_fds));
        if (out && message)
                out->data = json_dumps(message, JSON_COMPACT);
        json_decref(message);
        if (!out || !out->data)
                r = fail(err, ENOMEM, "no memory for a message");
        if (r == 0)
                r = copy_fds(out, fds, n_fds, err);
        if (r == 0 && link->is_gone)
                r = fail(err, EPIPE, "the other end of the link is gone");
        if (r == 0) {
                out->length = strlen(out->data);
                out->data[out->length++] = '\n'; /* in the place of the NUL */
                if (out->length > LINK_MAX_LINE || link->n_bytes + out->length > LINK_MAX_BACKLOG)
                        r = fail(err, EMSGSIZE, "the other end of the link does not read");
        }
        if (r < 0) {
                for (size_t i = 0; out && i < out->n_fds; i++)
                        close(out->fds[i]);
                free(out ? out->data : NULL);
                free(out);
                return r;
        }
        link->n_bytes += out->length;
        *link->last = out;
        link->last = &out->next;
        watch_io(link);
        return 0;
}

/* --- asking and answering --- */

static uint64_t now_us(struct link *link)
{
        uint64_t now = 0;

        sd_event_now(link->event, CLOCK_MONOTONIC, &now);
        return now;
}

static void set_timer(struct link *link)
{
        uint64_t next = UINT64_MAX;

        for (const struct waiting *one = link->waiting; one; one = one->next)
                if (one->end_us < next)
                        next = one->end_us;
        if (next != UINT64_MAX)
                sd_event_source_set_time(link->timer, next);
        sd_event_source_set_enabled(
                link->timer, next != UINT64_MAX ? SD_EVENT_ONESHOT : SD_EVENT_OFF);
}

int link_ask(struct link *link, const char *verb, json_t *message, const int *fds, size_t n_fds,
        unsigned timeout_ms, link_reply_fn reply, void *opaque, struct error *err)
{
        struct waiting *one = calloc(1, sizeof(*one));
        int r;

        if (!one || !message) {
                json_decref(message);
                free(one);
                return fail(err, ENOMEM, "no memory for a request");
        }
        one->id = ++link->next_id;
        one->reply = reply;
        one->opaque = opaque;
        one->end_us = now_us(link) + timeout_ms * UINT64_C(1000);
        json_object_set_new(message, "id", json_integer(one->id));
        json_object_set_new(message, "do", json_string(verb));
        r = put(link, message, fds, n_fds, err);
        if (r < 0) {
                free(one);
                return r;
        }
        one->next = link->waiting;
        link->waiting = one;
        set_timer(link);
        return 0;
}

void link_answer(struct link *link, json_int_t id, json_t *result, const int *fds, size_t n_fds)
{
        struct error err = ERROR_INIT;

        if (put(link, json_pack("{s:I, s:o}", "id", id, "result", result ? result : json_object()),
                    fds, n_fds, &err) < 0 &&
                err.code != EPIPE)
                log_error(&err);
}

void link_refuse(struct link *link, json_int_t id, const struct error *said)
{
        struct error err = ERROR_INIT;

        if (put(link, json_pack("{s:I, s:o}", "id", id, "error", error_to_object(said)), NULL, 0,
                    &err) < 0 &&
                err.code != EPIPE)
                log_error(&err);
}

void link_note(struct link *link, const char *name, json_t *message)
{
        struct error err = ERROR_INIT;

        if (message)
                json_object_set_new(message, "note", json_string(name));
        if (put(link, message, NULL, 0, &err) < 0 && err.code != EPIPE)
                log_error(&err);
}

/* --- receiving --- */

static struct waiting *take_waiting(struct link *link, json_int_t id)
{
        for (struct waiting **p = &link->waiting; *p; p = &(*p)->next)
                if ((*p)->id == id) {
                        struct waiting *one = *p;

                        *p = one->next;
                        set_timer(link);
                        return one;
                }
        return NULL;
}

static void close_all(int *fds, size_t n)
{
        for (size_t i = 0; i < n; i++)
                close(fds[i]);
}

static void take_answer(struct link *link, const json_t *message, int *fds, size_t n_fds)
{
        struct waiting *one =
                take_waiting(link, json_integer_value(json_object_get(message, "id")));
        const json_t *result = json_object_get(message, "result");
        struct error err = ERROR_INIT;

        if (!one) { /* came too late */
                close_all(fds, n_fds);
                return;
        }
        if (json_is_object(result)) {
                tell(one, result, fds, n_fds, &err);
        } else {
                close_all(fds, n_fds);
                error_from_object(json_object_get(message, "error"), &err);
                tell(one, NULL, NULL, 0, &err);
        }
}

static int take_message(struct link *link, const json_t *message)
{
        const char *verb = json_string_value(json_object_get(message, "do"));
        const char *note = json_string_value(json_object_get(message, "note"));
        json_int_t n = json_integer_value(json_object_get(message, "descriptors"));
        int fds[LINK_MAX_FDS];

        if (n < 0 || n > (json_int_t)LINK_MAX_FDS || wire_claim(link->wire, (size_t)n, fds) < 0)
                return -EPROTO;
        if (verb) {
                link->callbacks.request(link->callbacks.opaque, link,
                        json_integer_value(json_object_get(message, "id")), verb, message, fds,
                        (size_t)n);
        } else if (note) {
                close_all(fds, (size_t)n);
                if (link->callbacks.note)
                        link->callbacks.note(link->callbacks.opaque, link, note, message);
        } else {
                take_answer(link, message, fds, (size_t)n);
        }
        return 0;
}

static int take_lines(struct link *link)
{
        size_t length;
        char *line;
        int r = 0;

        while (r == 0 && !link->is_gone && (line = wire_line(link->wire, &length))) {
                json_auto_t *message = json_loadb(line, length, 0, NULL);

                r = json_is_object(message) ? take_message(link, message) : -EPROTO;
        }
        return r;
}

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *opaque)
{
        struct link *link = opaque;
        int r = 0;

        enter(link);
        if (revents & EPOLLOUT)
                r = send_some(link);
        if (r == 0)
                watch_io(link);
        if (r == 0 && revents & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                r = wire_receive(link->wire);
                if (r == 0)
                        r = -EPIPE;
                if (r > 0 || r == -EAGAIN)
                        r = take_lines(link);
        }
        if (r < 0)
                go(link);
        leave(link);
        return 0;
}

static int on_time(sd_event_source *source, uint64_t usec, void *opaque)
{
        struct link *link = opaque;
        struct error err = ERROR_INIT;

        fail(&err, ETIMEDOUT, "there was no answer in time");
        enter(link);
        for (;;) {
                struct waiting *one = link->waiting;

                while (one && one->end_us > usec)
                        one = one->next;
                if (!one)
                        break;
                take_waiting(link, one->id);
                tell(one, NULL, NULL, 0, &err);
        }
        if (!link->is_gone)
                set_timer(link);
        leave(link);
        return 0;
}

/* --- making --- */

int link_new(sd_event *event, int fd, const struct link_callbacks *callbacks, struct link **ret,
        struct error *err)
{
        struct link *link = calloc(1, sizeof(*link));
        int r;

        if (!link)
                return fail(err, ENOMEM, "no memory for a link");
        link->callbacks = *callbacks;
        link->last = &link->first;
        link->wire = wire_new(fd, LINK_MAX_LINE);
        if (!link->wire) {
                free(link);
                return fail(err, ENOMEM, "no memory for a link");
        }
        link->event = sd_event_ref(event);
        r = sd_event_add_io(event, &link->io, fd, EPOLLIN, on_io, link);
        if (r >= 0)
                r = sd_event_add_time(
                        event, &link->timer, CLOCK_MONOTONIC, UINT64_MAX, 1000, on_time, link);
        if (r >= 0)
                r = sd_event_source_set_enabled(link->timer, SD_EVENT_OFF);
        if (r < 0) {
                link_destroy(link);
                return fail_os(err, -r, "cannot watch a link");
        }
        *ret = link;
        return 0;
}

static int make_socket(
        const char *path, struct sockaddr_un *ret_address, int *ret, struct error *err)
{
        *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
        if (strlen(path) >= sizeof(ret_address->sun_path))
                return fail(err, ENAMETOOLONG,
                        "'%s' is too long for a socket's path, which may have %zu bytes", path,
                        sizeof(ret_address->sun_path) - 1);
        memcpy(ret_address->sun_path, path, strlen(path));
        *ret = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        return *ret < 0 ? fail_os(err, errno, "cannot make a socket") : 0;
}

int link_listen(const char *path, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct sockaddr_un address;
        mode_t old;
        int r = make_socket(path, &address, &fd, err);

        if (r < 0)
                return r;
        /* Whoever calls holds a lock that says that nobody else listens here. */
        unlink(path);
        old = umask(0177);
        r = bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
        umask(old);
        if (r == 0 && listen(fd, 8) < 0)
                r = -errno;
        if (r < 0)
                return fail_os(err, -r, "cannot listen at '%s'", path);
        *ret = TAKE_FD(fd);
        return 0;
}

int link_connect(const char *path, int *ret, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        struct sockaddr_un address;
        int r = make_socket(path, &address, &fd, err);

        if (r < 0)
                return r;
        if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
                return fail_os(err, errno, "cannot connect to '%s'", path);
        *ret = TAKE_FD(fd);
        return 0;
}
