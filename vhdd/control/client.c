/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/control/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "vhdd/control/server.h"
#include "vhdd/control/socket.h"
#include "vhdd/control/wire.h"

/* An answer may be longer than a request: the extents of a large disk. */
#define MAX_ANSWER (256u << 20)
/* Events that wait while an answer is awaited. */
#define MAX_EVENTS 4096u

struct control {
        struct wire *wire;
        char *path;
        json_int_t next_id;
        json_t *events; /* array: notifications that nobody has asked for yet */
        int timeout_ms; /* for an answer */
        bool is_silent;
};

/* --- connecting --- */

static int explain_no_daemon(const char *path, int r, struct error *err)
{
        if (r == -EACCES) {
                fail(err, EACCES,
                        "you may not speak to the daemon at '%s': only root and the members of its "
                        "group may",
                        path);
                error_set_hint(err, "ls -l '%s' shows the group", path);
                return r;
        }
        if (r != -ENOENT && r != -ECONNREFUSED)
                return r;
        fail(err, -r, "no daemon listens at '%s'", path);
        error_set_hint(err,
                "start one: systemctl start vhdd, or vhdd --state-dir DIR (and then "
                "--control DIR/control.sock here)");
        return r;
}

static int connect_at(const char *path, int *ret, struct error *err)
{
        int r = control_socket_connect(path, ret, err);

        return r < 0 ? explain_no_daemon(path, r, err) : 0;
}

/* Where a daemon listens if nobody says otherwise: the first of these at which one does. */
static int connect_anywhere(int *ret, const char **ret_path, struct error *err)
{
        static const char *const paths[] = {CONTROL_DEFAULT_PATH, CONTROL_STATE_PATH};
        struct error other = ERROR_INIT;
        int r;

        *ret_path = paths[0];
        r = connect_at(paths[0], ret, err);
        if (r != -ENOENT && r != -ECONNREFUSED)
                return r;
        if (control_socket_connect(paths[1], ret, &other) == 0) {
                *ret_path = paths[1];
                return 0;
        }
        if (other.code == EACCES)
                return explain_no_daemon(paths[1], -EACCES, err);
        return r;
}

int control_connect(const char *path, struct control **ret, struct error *err)
{
        _cleanup_(control_closep) struct control *control = calloc(1, sizeof(*control));
        _cleanup_fd_ int fd = -1;
        int r;

        if (!control)
                return fail(err, ENOMEM, "no memory to connect to the daemon");
        if (!path || !path[0])
                path = secure_getenv("VHDD_CONTROL");
        if (path && path[0])
                r = connect_at(path, &fd, err);
        else
                r = connect_anywhere(&fd, &path, err);
        if (r < 0)
                return r;
        control->timeout_ms = -1;
        control->path = strdup(path);
        control->events = json_array();
        control->wire = wire_new(fd, MAX_ANSWER);
        if (!control->wire)
                return fail(err, ENOMEM, "no memory to connect to the daemon");
        fd = -1;
        *ret = TAKE_PTR(control);
        return 0;
}

struct control *control_close(struct control *control)
{
        if (!control)
                return NULL;
        wire_free(control->wire);
        json_decref(control->events);
        free(control->path);
        free(control);
        return NULL;
}

int control_fd(const struct control *control)
{
        return wire_fd(control->wire);
}

pid_t control_peer_pid(const struct control *control)
{
        struct error ignored = ERROR_INIT;
        struct peer peer;

        return control_peer(control_fd(control), &peer, &ignored) == 0 ? peer.pid : 0;
}

/* --- reading --- */

static int64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return ts.tv_sec * INT64_C(1000) + ts.tv_nsec / 1000000;
}

/* 0: there is something to read. */
static int wait_readable(struct control *control, int64_t end_ms, struct error *err)
{
        for (;;) {
                struct pollfd fd = {.fd = control_fd(control), .events = POLLIN};
                int64_t left = end_ms < 0 ? -1 : end_ms - now_ms();
                int n;

                if (end_ms >= 0 && left < 0)
                        left = 0;
                n = poll(&fd, 1, left > INT32_MAX ? INT32_MAX : (int)left);
                if (n > 0)
                        return 0;
                if (n == 0)
                        return fail(
                                err, ETIMEDOUT, "the daemon at '%s' says nothing", control->path);
                if (errno != EINTR)
                        return fail_os(
                                err, errno, "cannot wait for the daemon at '%s'", control->path);
        }
}

/* The next message, an object. @end_ms < 0: whenever it comes. */
static int read_message(struct control *control, int64_t end_ms, json_t **ret, struct error *err)
{
        json_error_t where;
        size_t length;
        char *line;
        int r;

        while (!(line = wire_line(control->wire, &length))) {
                r = wait_readable(control, end_ms, err);
                if (r < 0)
                        return r;
                r = wire_receive(control->wire);
                if (r == 0)
                        return fail(err, ECONNRESET,
                                "the daemon at '%s' ended the connection before it answered",
                                control->path);
                if (r < 0)
                        return fail_os(
                                err, -r, "cannot read from the daemon at '%s'", control->path);
        }
        *ret = json_loadb(line, length, 0, &where);
        if (json_is_object(*ret))
                return 0;
        json_decref(*ret);
        return fail(err, EPROTO, "what listens at '%s' does not speak the control API: %s",
                control->path, where.text);
}

/* --- answers --- */

static int errno_of(const char *name)
{
        for (int code = 1; name && code < 200; code++) {
                const char *known = strerrorname_np(code);

                if (known && strcmp(known, name) == 0)
                        return code;
        }
        return EIO;
}

/* The daemon's sentence, with what machines want apart from it. */
static int take_error(const json_t *error, struct error *err)
{
        const json_t *data = json_object_get(error, "data");
        const char *message = json_string_value(json_object_get(error, "message"));
        const char *file = json_string_value(json_object_get(data, "file"));
        const char *hint = json_string_value(json_object_get(data, "hint"));
        const char *hyperv = json_string_value(json_object_get(data, "hyperv"));
        const json_t *offset = json_object_get(data, "offset");
        json_int_t rpc = json_integer_value(json_object_get(error, "code"));
        int code = rpc == CONTROL_INVALID_PARAMS
                ? EINVAL
                : errno_of(json_string_value(json_object_get(data, "code")));

        if (code == EINVAL && rpc != CONTROL_INVALID_PARAMS)
                code = EPROTO; /* not the user's fault: our own request was malformed */
        fail(err, code, "%s", message ? message : "the daemon refused, and did not say why");
        if (file)
                error_set_file(err, file);
        if (hint)
                error_set_hint(err, "%s", hint);
        if (json_is_integer(offset))
                error_set_offset(err, (uint64_t)json_integer_value(offset));
        if (hyperv)
                error_set_hyperv(err, (uint32_t)strtoul(hyperv, NULL, 16));
        return -code;
}

static bool is_notification(const json_t *message)
{
        return json_object_get(message, "method") != NULL;
}

/* Keeps the newest; a caller that never asks must not grow without end. */
static void keep_event(struct control *control, json_t *message)
{
        if (json_array_size(control->events) == MAX_EVENTS)
                json_array_remove(control->events, 0);
        json_array_append_new(control->events, message);
}

void control_set_timeout(struct control *control, int timeout_ms)
{
        control->timeout_ms = timeout_ms;
}

bool control_is_silent(const struct control *control)
{
        return control->is_silent;
}

static int await_answer(struct control *control, json_int_t id, json_t **ret, struct error *err)
{
        int64_t end_ms = control->timeout_ms < 0 ? -1 : now_ms() + control->timeout_ms;

        for (;;) {
                json_t *message, *said;
                int r = read_message(control, end_ms, &message, err);

                control->is_silent |= r == -ETIMEDOUT;
                if (r < 0)
                        return r;
                if (is_notification(message)) {
                        keep_event(control, message);
                        continue;
                }
                said = json_object_get(message, "error");
                if (said) {
                        r = take_error(said, err);
                        json_decref(message);
                        return r;
                }
                if (json_integer_value(json_object_get(message, "id")) == id) {
                        *ret = json_incref(json_object_get(message, "result"));
                        json_decref(message);
                        return *ret
                                ? 0
                                : fail(err, EPROTO, "the daemon at '%s' answered without a result",
                                          control->path);
                }
                json_decref(message);
        }
}

/* A daemon that refuses the connection says why before it closes it: worth reading even if it did not
 * take the request. */
static int send_all(
        struct control *control, const char *text, size_t length, const int *fds, size_t n_fds)
{
        for (size_t sent = 0; sent < length;) {
                long n = wire_send(control_fd(control), text + sent, length - sent, fds,
                        sent == 0 ? n_fds : 0, 0);

                if (n < 0)
                        return (int)n;
                sent += (size_t)n;
        }
        return 0;
}

static int send_request(
        struct control *control, json_t *message, const int *fds, size_t n_fds, struct error *err)
{
        _cleanup_free_ char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;
        size_t length;
        int r;

        json_decref(message);
        if (!text)
                return fail(err, EINVAL, "the request holds text that is no UTF-8");
        length = strlen(text);
        text[length] = '\n'; /* in place of the NUL */
        r = send_all(control, text, length + 1, fds, n_fds);
        if (r < 0 && r != -EPIPE && r != -ECONNRESET)
                return fail_os(err, -r, "cannot write to the daemon at '%s'", control->path);
        return 0;
}

int control_call_with(struct control *control, const char *method, json_t *params, const int *fds,
        size_t n_fds, json_t **ret, struct error *err)
{
        json_int_t id = ++control->next_id;
        json_t *message = json_pack("{s:s, s:I, s:s, s:o}", "jsonrpc", "2.0", "id", id, "method",
                method, "params", params ? params : json_object());
        int r;

        if (message && n_fds > 0)
                json_object_set_new(message, "descriptors", json_integer((json_int_t)n_fds));
        r = send_request(control, message, fds, n_fds, err);
        return r < 0 ? r : await_answer(control, id, ret, err);
}

int control_call(struct control *control, const char *method, json_t *params, json_t **ret,
        struct error *err)
{
        return control_call_with(control, method, params, NULL, 0, ret, err);
}

/* --- notifications --- */

static int hand_out_descriptors(struct control *control, const json_t *message, int *ret_fds,
        size_t *ret_n_fds, struct error *err)
{
        json_int_t n = json_integer_value(json_object_get(message, "descriptors"));
        int fds[CONTROL_MAX_DESCRIPTORS];

        if (n < 0 || n > (json_int_t)CONTROL_MAX_DESCRIPTORS ||
                wire_claim(control->wire, (size_t)n, fds) < 0)
                return fail(err, EPROTO, "descriptors of the daemon at '%s' are missing",
                        control->path);
        for (json_int_t i = 0; i < n && !ret_fds; i++)
                close(fds[i]);
        if (ret_fds) {
                memcpy(ret_fds, fds, (size_t)n * sizeof(int));
                *ret_n_fds = (size_t)n;
        }
        return 0;
}

int control_next(struct control *control, int timeout_ms, json_t **ret, int *ret_fds,
        size_t *ret_n_fds, struct error *err)
{
        int64_t end_ms = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
        json_t *message = NULL;
        int r;

        if (json_array_size(control->events) > 0) {
                message = json_incref(json_array_get(control->events, 0));
                json_array_remove(control->events, 0);
        }
        while (!message) {
                r = read_message(control, end_ms, &message, err);
                if (r < 0)
                        return r;
                if (json_object_get(message, "error") && !is_notification(message)) {
                        r = take_error(json_object_get(message, "error"), err);
                        json_decref(message);
                        return r;
                }
                if (!is_notification(message)) {
                        json_decref(message); /* an answer that nobody waits for */
                        message = NULL;
                }
        }
        r = hand_out_descriptors(control, message, ret_fds, ret_n_fds, err);
        if (r < 0) {
                json_decref(message);
                return r;
        }
        *ret = message;
        return 0;
}
