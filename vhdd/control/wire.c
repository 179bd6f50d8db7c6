/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/control/wire.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "vhdd/control/method.h"

#define START_SIZE (4u << 10)

struct wire {
        int fd;
        size_t max_line;
        char *buffer;
        size_t capacity, begin, end; /* unread bytes are [begin, end) */
        size_t looked;               /* no newline in [begin, looked) */
        int fds[CONTROL_MAX_DESCRIPTORS];
        size_t n_fds;
};

union control_data {
        char data[CMSG_SPACE(CONTROL_MAX_DESCRIPTORS * sizeof(int))];
        struct cmsghdr align;
};

struct wire *wire_new(int fd, size_t max_line)
{
        struct wire *wire = calloc(1, sizeof(*wire));

        if (!wire)
                return NULL;
        wire->fd = fd;
        wire->max_line = max_line;
        return wire;
}

struct wire *wire_free(struct wire *wire)
{
        if (!wire)
                return NULL;
        for (size_t i = 0; i < wire->n_fds; i++)
                close(wire->fds[i]);
        close(wire->fd);
        free(wire->buffer);
        free(wire);
        return NULL;
}

int wire_fd(const struct wire *wire)
{
        return wire->fd;
}

/* Makes room behind the unread bytes: by moving them to the front, then by growing. */
static int make_room(struct wire *wire)
{
        size_t grown = wire->capacity ? wire->capacity * 2 : START_SIZE;
        char *buffer;

        if (wire->begin > 0) {
                memmove(wire->buffer, wire->buffer + wire->begin, wire->end - wire->begin);
                wire->end -= wire->begin;
                wire->looked -= wire->begin;
                wire->begin = 0;
        }
        if (wire->end < wire->capacity)
                return 0;
        if (grown > wire->max_line + 1)
                grown = wire->max_line + 1;
        if (grown <= wire->capacity)
                return -E2BIG;
        buffer = realloc(wire->buffer, grown);
        if (!buffer)
                return -ENOMEM;
        wire->buffer = buffer;
        wire->capacity = grown;
        return 0;
}

/* All that came are taken, so that none leaks; whether they were too many is said behind. */
static int take_descriptors(struct wire *wire, struct msghdr *message)
{
        bool too_many = message->msg_flags & MSG_CTRUNC;

        for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
                size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                for (size_t i = 0; i < n; i++) {
                        int fd;

                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                        if (wire->n_fds < CONTROL_MAX_DESCRIPTORS) {
                                wire->fds[wire->n_fds++] = fd;
                        } else {
                                close(fd);
                                too_many = true;
                        }
                }
        }
        return too_many ? -EPROTO : 0;
}

int wire_receive(struct wire *wire)
{
        union control_data control;
        struct iovec iov;
        struct msghdr message = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = control.data,
                .msg_controllen = sizeof(control.data),
        };
        ssize_t n;
        int r = make_room(wire);

        if (r < 0)
                return r;
        iov.iov_base = wire->buffer + wire->end;
        iov.iov_len = wire->capacity - wire->end;
        do
                n = recvmsg(wire->fd, &message, MSG_CMSG_CLOEXEC);
        while (n < 0 && errno == EINTR);
        if (n < 0)
                return -errno;
        r = take_descriptors(wire, &message);
        if (r < 0)
                return r;
        wire->end += (size_t)n;
        return n > 0;
}

static char *find_newline(const struct wire *wire)
{
        if (wire->looked == wire->end)
                return NULL;
        return memchr(wire->buffer + wire->looked, '\n', wire->end - wire->looked);
}

bool wire_has_line(const struct wire *wire)
{
        return find_newline(wire) != NULL;
}

char *wire_line(struct wire *wire, size_t *ret_length)
{
        char *newline = find_newline(wire), *line;

        if (!newline) {
                wire->looked = wire->end;
                return NULL;
        }
        line = wire->buffer + wire->begin;
        *newline = '\0';
        wire->begin = wire->looked = (size_t)(newline + 1 - wire->buffer);
        *ret_length = (size_t)(newline - line);
        return line;
}

int wire_claim(struct wire *wire, size_t n, int *ret)
{
        if (n > wire->n_fds)
                return -EPROTO;
        memcpy(ret, wire->fds, n * sizeof(int));
        wire->n_fds -= n;
        memmove(wire->fds, wire->fds + n, wire->n_fds * sizeof(int));
        return 0;
}

long wire_send(int fd, const void *data, size_t length, const int *fds, size_t n_fds, int flags)
{
        union control_data control;
        struct iovec iov = {.iov_base = (void *)data, .iov_len = length};
        struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n;

        if (n_fds > 0) {
                struct cmsghdr *c;

                memset(&control, 0, sizeof(control));
                message.msg_control = control.data;
                message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
                c = CMSG_FIRSTHDR(&message);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
                memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
        }
        do
                n = sendmsg(fd, &message, flags | MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        return n < 0 ? -errno : (long)n;
}
