/* SPDX-License-Identifier: Apache-2.0 */
/* wire.h - lines and descriptors on a stream socket, for both ends of the control API.
 *
 * Descriptors wait in a queue until a message claims them by number: on a stream they arrive with
 * whatever bytes the kernel read together, so their place says nothing.
 *
 * Units      bytes.
 * Ownership  wire_new takes the socket over; wire_free closes it and what nobody claimed. A line lives
 *            until the next call.
 * Errors     0 or -errno: -E2BIG a line is longer than the limit; -EPROTO too many descriptors.
 * Threads    the receiving half belongs to one thread; wire_send may be called by another that holds
 *            whatever keeps messages whole.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"

struct wire;

struct wire *wire_new(
        int fd, size_t max_line);          /* NULL: no memory; @fd is then still the caller's */
struct wire *wire_free(struct wire *wire); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct wire *, wire_free)

int wire_fd(const struct wire *wire);

/* Reads what is there: 1 something came, 0 the other end is done, -EAGAIN on a socket that does not
 * wait. */
int wire_receive(struct wire *wire);

/* The next whole line without its newline, NUL behind it; NULL if there is none yet. */
char *wire_line(struct wire *wire, size_t *ret_length);

/* True while there is a line that wire_line would answer. */
bool wire_has_line(const struct wire *wire);

/* The @n oldest descriptors, which are the caller's from now on. -EPROTO: so many have not come. */
int wire_claim(struct wire *wire, size_t n, int *ret);

/* Sends some of @data, descriptors with its first byte: bytes sent, or -errno. */
long wire_send(int fd, const void *data, size_t length, const int *fds, size_t n_fds, int flags);
