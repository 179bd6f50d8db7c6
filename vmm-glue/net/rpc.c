/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm-glue/net/rpc.h"

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#define READ_SIZE 65536u

struct ovs_rpc {
        int fd; /* -1 after a failure that ended it */
        json_int_t last_id;
        char *text; /* what has come, [0, length) */
        size_t length, room;
        size_t scanned; /* of it; the scanner's state is behind this byte */
        size_t depth;
        bool in_string, is_escaped;
};

static int64_t now_ms(void)
{
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- connecting --- */

/* The folder by a descriptor, so that its path may be of any length. */
static int address_of(const char *path, int *ret_folder, struct sockaddr_un *ret, struct error *err)
{
        _cleanup_free_ char *folder = strdup(path), *name = strdup(path);
        int n;

        if (!folder || !name)
                return fail(err, ENOMEM, "no memory for a path");
        *ret_folder = open(dirname(folder), O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (*ret_folder < 0)
                return fail_os(err, errno, "cannot open the folder of '%s'", path);
        *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
        n = snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/%s", *ret_folder,
                basename(name));
        if (n < 0 || (size_t)n >= sizeof(ret->sun_path))
                return fail(err, ENAMETOOLONG, "the name of the socket '%s' is too long", path);
        return 0;
}

int ovs_rpc_open(const char *path, struct ovs_rpc **ret, struct error *err)
{
        _cleanup_fd_ int folder = -1, fd = -1;
        struct sockaddr_un address;
        struct ovs_rpc *rpc;
        int r = address_of(path, &folder, &address, err);

        if (r < 0)
                return r;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return fail_os(err, errno, "cannot make a socket");
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                return fail_os(err, errno, "cannot connect to '%s'", path);
        rpc = calloc(1, sizeof(*rpc));
        if (!rpc)
                return fail(err, ENOMEM, "no memory for a connection");
        rpc->fd = TAKE_FD(fd);
        *ret = rpc;
        return 0;
}

struct ovs_rpc *ovs_rpc_close(struct ovs_rpc *rpc)
{
        if (!rpc)
                return NULL;
        cleanup_fd(&rpc->fd);
        free(rpc->text);
        free(rpc);
        return NULL;
}

bool ovs_rpc_is_alive(const struct ovs_rpc *rpc)
{
        return rpc && rpc->fd >= 0;
}

pid_t ovs_rpc_peer(const struct ovs_rpc *rpc)
{
        struct ucred cred = {0};
        socklen_t size = sizeof(cred);

        if (!ovs_rpc_is_alive(rpc) ||
                getsockopt(rpc->fd, SOL_SOCKET, SO_PEERCRED, &cred, &size) < 0)
                return 0;
        return cred.pid;
}

/* What it still says belongs to nobody: nothing more is read. */
static int give_up(struct ovs_rpc *rpc, int r)
{
        cleanup_fd(&rpc->fd);
        rpc->fd = -1;
        return r;
}

static int wait_until(struct ovs_rpc *rpc, short events, int64_t end_ms, struct error *err)
{
        for (;;) {
                struct pollfd pollfd = {.fd = rpc->fd, .events = events};
                int64_t left_ms = end_ms - now_ms();
                int n = left_ms > 0 ? poll(&pollfd, 1, left_ms > INT_MAX ? INT_MAX : (int)left_ms)
                                    : 0;

                if (n > 0)
                        return 0;
                if (n < 0 && errno == EINTR)
                        continue;
                return n < 0 ? fail_os(err, errno, "cannot wait for Open vSwitch")
                             : fail(err, ETIMEDOUT, "Open vSwitch does not answer");
        }
}

/* --- sending --- */

static int send_text(struct ovs_rpc *rpc, const json_t *message, int64_t end_ms, struct error *err)
{
        _cleanup_free_ char *text = json_dumps(message, JSON_COMPACT);
        size_t length = text ? strlen(text) : 0, done = 0;
        int r;

        if (!text)
                return fail(err, ENOMEM, "no memory for a request");
        while (done < length) {
                ssize_t n = send(rpc->fd, text + done, length - done, MSG_NOSIGNAL);

                if (n >= 0) {
                        done += (size_t)n;
                        continue;
                }
                if (errno == EINTR)
                        continue;
                if (errno != EAGAIN)
                        return fail(err, EPIPE, "Open vSwitch ended in the middle");
                r = wait_until(rpc, POLLOUT, end_ms, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* --- receiving --- */

static int receive_some(struct ovs_rpc *rpc, int64_t end_ms, struct error *err)
{
        int r = wait_until(rpc, POLLIN, end_ms, err);
        ssize_t n;

        if (r < 0)
                return r;
        if (rpc->room - rpc->length < READ_SIZE) {
                size_t room = rpc->room ? 2 * rpc->room : 2 * READ_SIZE;
                char *text = room > OVS_RPC_MAX_TEXT ? NULL : realloc(rpc->text, room);

                if (!text)
                        return fail(err, EPROTO, "Open vSwitch says more than %u bytes at once",
                                OVS_RPC_MAX_TEXT);
                rpc->text = text;
                rpc->room = room;
        }
        n = recv(rpc->fd, rpc->text + rpc->length, rpc->room - rpc->length, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
                return 0;
        if (n <= 0)
                return fail(err, EPIPE, "Open vSwitch ended in the middle");
        rpc->length += (size_t)n;
        return 0;
}

/* Takes one byte: true when it ends the text that began outside of everything. */
static bool scan(struct ovs_rpc *rpc, char c)
{
        if (rpc->in_string) {
                if (rpc->is_escaped)
                        rpc->is_escaped = false;
                else if (c == '\\')
                        rpc->is_escaped = true;
                else if (c == '"')
                        rpc->in_string = false;
                return false;
        }
        if (c == '"')
                rpc->in_string = true;
        else if (c == '{' || c == '[')
                rpc->depth++;
        else if ((c == '}' || c == ']') && rpc->depth > 0)
                return --rpc->depth == 0;
        return false;
}

static int take_text(struct ovs_rpc *rpc, json_t **ret, struct error *err)
{
        json_error_t why;
        json_t *message = json_loadb(rpc->text, rpc->scanned, 0, &why);

        memmove(rpc->text, rpc->text + rpc->scanned, rpc->length - rpc->scanned);
        rpc->length -= rpc->scanned;
        rpc->scanned = 0;
        if (!json_is_object(message)) {
                json_decref(message);
                return fail(err, EPROTO, "Open vSwitch says what is no JSON-RPC: %s", why.text);
        }
        *ret = message;
        return 0;
}

static int receive_text(struct ovs_rpc *rpc, int64_t end_ms, json_t **ret, struct error *err)
{
        for (;;) {
                int r;

                while (rpc->scanned < rpc->length)
                        if (scan(rpc, rpc->text[rpc->scanned++]))
                                return take_text(rpc, ret, err);
                r = receive_some(rpc, end_ms, err);
                if (r < 0)
                        return r;
        }
}

/* "echo" asks whether we live (RFC 7047, 4.1.11); there is nothing else that we answer. */
static int answer(struct ovs_rpc *rpc, const json_t *message, int64_t end_ms, struct error *err)
{
        const char *method = json_string_value(json_object_get(message, "method"));
        json_t *id = json_object_get(message, "id"), *params = json_object_get(message, "params");
        json_auto_t *reply = NULL;

        if (!method || strcmp(method, "echo") != 0 || !id || !params)
                return 0;
        reply = json_pack("{s:O,s:n,s:O}", "result", params, "error", "id", id);
        return reply ? send_text(rpc, reply, end_ms, err) : fail(err, ENOMEM, "no memory");
}

static int refusal(const json_t *error, const char *method, struct error *err)
{
        _cleanup_free_ char *text = json_dumps(error, JSON_COMPACT | JSON_ENCODE_ANY);
        const char *words = json_string_value(error);

        if (!words)
                words = json_string_value(json_object_get(error, "details"));
        if (!words)
                words = json_string_value(json_object_get(error, "error"));
        return fail(err, EREMOTEIO, "Open vSwitch refuses '%s': %.*s", method,
                (int)strcspn(words     ? words
                                : text ? text
                                       : "",
                        "\n"),
                words          ? words
                        : text ? text
                               : "");
}

static int await_answer(
        struct ovs_rpc *rpc, const char *method, int64_t end_ms, json_t **ret, struct error *err)
{
        for (;;) {
                json_auto_t *message = NULL;
                const json_t *id, *error;
                int r = receive_text(rpc, end_ms, &message, err);

                if (r < 0)
                        return r;
                id = json_object_get(message, "id");
                if (json_object_get(message, "method")) {
                        r = answer(rpc, message, end_ms, err);
                        if (r < 0)
                                return r;
                        continue;
                }
                if (!json_is_integer(id) || json_integer_value(id) != rpc->last_id)
                        continue;
                error = json_object_get(message, "error");
                if (error && !json_is_null(error))
                        return refusal(error, method, err);
                if (ret)
                        *ret = json_incref(json_object_get(message, "result"));
                return 0;
        }
}

int ovs_rpc_call(struct ovs_rpc *rpc, const char *method, json_t *params, unsigned timeout_ms,
        json_t **ret, struct error *err)
{
        int64_t end_ms = now_ms() + timeout_ms;
        json_auto_t *request = NULL;
        int r;

        if (!ovs_rpc_is_alive(rpc)) {
                json_decref(params);
                return fail(err, EPIPE, "there is no connection to Open vSwitch");
        }
        request = json_pack(
                "{s:s,s:o,s:I}", "method", method, "params", params, "id", ++rpc->last_id);
        if (!request)
                return fail(err, ENOMEM, "no memory for a request");
        r = send_text(rpc, request, end_ms, err);
        if (r == 0)
                r = await_answer(rpc, method, end_ms, ret, err);
        return r < 0 && r != -EREMOTEIO ? give_up(rpc, r) : r;
}
