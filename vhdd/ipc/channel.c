/* SPDX-License-Identifier: Apache-2.0 */
/* A packet is a head of 16 bytes and a part of the text:
 *
 *      magic u32 | length of the whole text u32 | where this part begins u32 | descriptors u32
 *
 * in the machine's byte order: both ends run on it. */
#include "vhdd/ipc/channel.h"

#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>

#include "base/arith.h"

#define PACKET_MAGIC UINT32_C(0x31766876) /* "vhv1" */
#define PART_MAX     (64u << 10)          /* well below the smallest send buffer in use */

struct packet_head {
        uint32_t magic, length, offset, n_fds;
};

struct channel {
        /* immutable after new */
        int fd;
        pthread_mutex_t send_lock; /* the parts of one message follow each other */
        /* guarded by send_lock: a message was cut off in its middle, so none can follow */
        bool broken;
        /* owner: the receiving thread */
        char *packet;
};

int channel_pair(int ret[2], struct error *err)
{
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ret) < 0)
                return fail_os(err, errno, "cannot make a pair of sockets");
        return 0;
}

int channel_new(int fd, struct channel **ret, struct error *err)
{
        const struct timeval timeout = {.tv_sec = CHANNEL_SEND_MS / 1000};
        _cleanup_free_ struct channel *channel = calloc(1, sizeof(*channel));
        int type = 0;
        socklen_t size = sizeof(type);

        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0)
                return fail_os(err, errno, "cannot use descriptor %d as a channel", fd);
        if (type != SOCK_SEQPACKET)
                return fail(err, EINVAL, "descriptor %d is no SOCK_SEQPACKET socket", fd);
        if (channel)
                channel->packet = malloc(sizeof(struct packet_head) + PART_MAX);
        if (!channel || !channel->packet)
                return fail(err, ENOMEM, "no memory for a channel");
        /* Whoever takes nothing for so long must not hold up those who have others to serve. */
        if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0) {
                free(channel->packet);
                return fail_os(err, errno, "cannot set up a channel");
        }
        channel->fd = fd;
        pthread_mutex_init(&channel->send_lock, NULL);
        *ret = TAKE_PTR(channel);
        return 0;
}

struct channel *channel_free(struct channel *channel)
{
        if (!channel)
                return NULL;
        close(channel->fd);
        pthread_mutex_destroy(&channel->send_lock);
        free(channel->packet);
        free(channel);
        return NULL;
}

int channel_fd(const struct channel *channel)
{
        return channel->fd;
}

void channel_shutdown(struct channel *channel)
{
        shutdown(channel->fd, SHUT_RDWR);
}

/* --- sending --- */

/* One packet, whole or not at all. */
static int send_packet(const struct channel *channel, const struct packet_head *head,
        const char *part, size_t size, const int *fds)
{
        union {
                struct cmsghdr head;
                char space[CMSG_SPACE(CHANNEL_MAX_FDS * sizeof(int))];
        } control;
        struct iovec iov[] = {
                {.iov_base = (void *)(uintptr_t)head, .iov_len = sizeof(*head)},
                {.iov_base = (void *)(uintptr_t)part, .iov_len = size},
        };
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
        ssize_t sent;

        if (head->n_fds > 0) {
                struct cmsghdr *c;

                memset(&control, 0, sizeof(control));
                msg.msg_control = &control;
                msg.msg_controllen = CMSG_SPACE(head->n_fds * sizeof(int));
                c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(head->n_fds * sizeof(int));
                memcpy(CMSG_DATA(c), fds, head->n_fds * sizeof(int));
        }
        do {
                sent = sendmsg(channel->fd, &msg, MSG_NOSIGNAL);
        } while (sent < 0 && errno == EINTR);
        return sent < 0 ? -errno : 0;
}

static int fail_send(int code, struct error *err)
{
        switch (code) {
        case EPIPE:
        case ECONNRESET:
        case ENOTCONN: return fail(err, EHOSTDOWN, "the process at the other end is gone");
        case EAGAIN: return fail(err, ETIMEDOUT, "the process at the other end takes no messages");
        default: return fail_os(err, code, "cannot send a message");
        }
}

int channel_send(struct channel *channel, const json_t *json, const int *fds, unsigned n_fds,
        struct error *err)
{
        _cleanup_free_ char *text = json_dumps(json, JSON_COMPACT);
        struct packet_head head = {.magic = PACKET_MAGIC};
        size_t length;
        int r = 0;

        if (!text)
                return fail(err, ENOMEM, "no memory for a message");
        length = strlen(text);
        if (length > CHANNEL_MAX_MESSAGE || n_fds > CHANNEL_MAX_FDS)
                return fail(err, EMSGSIZE,
                        "a message of %zu bytes and %u descriptors is more than %u and %u", length,
                        n_fds, CHANNEL_MAX_MESSAGE, CHANNEL_MAX_FDS);
        head.length = (uint32_t)length;
        MUTEX_GUARD(&channel->send_lock);
        if (channel->broken)
                return fail(err, EHOSTDOWN, "the process at the other end is gone");
        for (size_t offset = 0; r == 0 && offset < length;) {
                size_t n = MIN_OF(length - offset, (size_t)PART_MAX);

                head.offset = (uint32_t)offset;
                head.n_fds = offset == 0 ? n_fds : 0;
                r = send_packet(channel, &head, text + offset, n, fds);
                if (r < 0 && offset > 0)
                        channel->broken = true;
                offset += n;
        }
        return r < 0 ? fail_send(-r, err) : 0;
}

/* --- receiving --- */

static void collect_fds(struct msghdr *msg, struct message *message, unsigned *dropped)
{
        for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
                size_t n;

                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (size_t i = 0; i < n; i++) {
                        int fd;

                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                        if (message->n_fds < CHANNEL_MAX_FDS) {
                                message->fds[message->n_fds++] = fd;
                        } else {
                                close(fd);
                                (*dropped)++;
                        }
                }
        }
}

/* The number of bytes behind the head, 0 at the end, or -errno. */
static ssize_t receive_packet(struct channel *channel, struct packet_head *head,
        struct message *message, struct error *err)
{
        union {
                struct cmsghdr head;
                char space[CMSG_SPACE(CHANNEL_MAX_FDS * sizeof(int))];
        } control;
        struct iovec iov = {
                .iov_base = channel->packet, .iov_len = sizeof(struct packet_head) + PART_MAX};
        struct msghdr msg = {.msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = &control,
                .msg_controllen = sizeof(control)};
        unsigned had = message->n_fds, dropped = 0;
        ssize_t got;

        do {
                got = recvmsg(channel->fd, &msg, MSG_CMSG_CLOEXEC);
        } while (got < 0 && errno == EINTR);
        if (got < 0 && errno != ECONNRESET)
                return fail_os(err, errno, "cannot receive a message");
        if (got <= 0)
                return 0;
        collect_fds(&msg, message, &dropped);
        if (got < (ssize_t)sizeof(*head) || msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || dropped > 0)
                return fail(err, EPROTO, "a packet of %zd bytes is none of ours", got);
        memcpy(head, channel->packet, sizeof(*head));
        got -= (ssize_t)sizeof(*head);
        if (head->magic != PACKET_MAGIC || head->n_fds != message->n_fds - had || got == 0)
                return fail(err, EPROTO, "a packet with the head %08x, %u is none of ours",
                        head->magic, head->n_fds);
        return got;
}

static int parse(const char *text, size_t length, struct message *ret, struct error *err)
{
        json_error_t why;

        ret->json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &why);
        if (!ret->json)
                return fail(err, EPROTO, "a message is no JSON: %s", why.text);
        if (!json_is_object(ret->json))
                return fail(err, EPROTO, "a message is no JSON object");
        return 1;
}

/* The text grows with what has come, not with what the head promises. */
static int receive_whole(struct channel *channel, struct message *message, struct error *err)
{
        _cleanup_free_ char *text = NULL;
        size_t have = 0, length = 0;

        do {
                struct packet_head head;
                ssize_t got = receive_packet(channel, &head, message, err);
                char *more;

                if (got < 0)
                        return (int)got;
                if (got == 0)
                        return have == 0 ? 0 : fail(err, EPROTO, "a message was cut off");
                if (have == 0)
                        length = head.length;
                if (length > CHANNEL_MAX_MESSAGE || head.length != length || head.offset != have ||
                        (size_t)got > length - have || (have > 0 && head.n_fds > 0))
                        return fail(err, EPROTO, "a part of a message does not fit it");
                more = realloc(text, have + (size_t)got);
                if (!more)
                        return fail(err, ENOMEM, "no memory for a message of %zu bytes", length);
                text = more;
                memcpy(text + have, channel->packet + sizeof(head), (size_t)got);
                have += (size_t)got;
        } while (have < length);
        return parse(text, length, message, err);
}

int channel_receive(struct channel *channel, struct message *ret, struct error *err)
{
        struct message message = MESSAGE_INIT;
        int r = receive_whole(channel, &message, err);

        if (r == 1)
                *ret = message;
        else
                message_done(&message);
        return r;
}

void message_done(struct message *message)
{
        json_decref(message->json);
        message->json = NULL;
        for (unsigned i = 0; i < message->n_fds; i++)
                if (message->fds[i] >= 0)
                        close(message->fds[i]);
        message->n_fds = 0;
}

int message_take_fd(struct message *message, unsigned index)
{
        return index < message->n_fds ? TAKE_FD(message->fds[index]) : -1;
}

/* --- errors as they travel --- */

static void set_text(json_t *object, const char *key, const char *text)
{
        json_t *value;

        if (!text[0])
                return;
        value = json_string(text);
        /* A name that is no UTF-8 cannot stand in JSON: its bytes are for people only. */
        json_object_set_new(object, key, value ? value : json_string("(not printable)"));
}

json_t *error_to_json(const struct error *err)
{
        json_t *object = json_pack("{s:i}", "code", err->code ? err->code : EIO);

        if (!object)
                return NULL;
        set_text(object, "message", err->message);
        set_text(object, "file", err->file);
        set_text(object, "hint", err->hint);
        if (err->hyperv)
                json_object_set_new(object, "hyperv", json_integer(err->hyperv));
        if (err->offset != ERROR_NO_OFFSET && err->offset <= INT64_MAX)
                json_object_set_new(object, "offset", json_integer((json_int_t)err->offset));
        return object;
}

int error_from_json(const json_t *json, struct error *err)
{
        json_int_t code = json_integer_value(json_object_get(json, "code"));
        json_int_t hyperv = json_integer_value(json_object_get(json, "hyperv"));
        const char *message = json_string_value(json_object_get(json, "message"));
        const char *file = json_string_value(json_object_get(json, "file"));
        const char *hint = json_string_value(json_object_get(json, "hint"));
        const json_t *offset = json_object_get(json, "offset");

        if (code <= 0 || code > 4095)
                code = EPROTO;
        fail(err, (int)code, "%s", message ? message : "the other process gave no reason");
        if (file)
                error_set_file(err, file);
        if (hint)
                error_set_hint(err, "%s", hint);
        if (hyperv > 0 && hyperv <= UINT32_MAX)
                error_set_hyperv(err, (uint32_t)hyperv);
        if (json_is_integer(offset) && json_integer_value(offset) >= 0)
                error_set_offset(err, (uint64_t)json_integer_value(offset));
        return -(int)code;
}
