/* SPDX-License-Identifier: Apache-2.0 */
/* client.h - the control API's other end: vhdctl, agents.
 *
 * Units      milliseconds where a name says _ms; -1 waits for ever.
 * Ownership  control_connect hands out, control_close ends. json_t values are new references.
 * Errors     0 or -errno with one sentence; a failure that the daemon answered comes with its code,
 *            file, offset and hint. -EINVAL from control_call: wrong usage. -ECONNREFUSED, -ENOENT: no
 *            daemon listens there; -EACCES: it does not speak to this user; -ECONNRESET: it ended in
 *            the middle.
 * Threads    a connection belongs to one thread at a time.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/error.h"

struct control;

#define CONTROL_DEFAULT_PATH "/run/vhdd/control.sock"
#define CONTROL_STATE_PATH   "/var/lib/vhdd/control.sock"

/* @path: NULL looks where $VHDD_CONTROL says, else at the default places, in this order. */
int control_connect(const char *path, struct control **ret, struct error *err);
struct control *control_close(struct control *control); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct control *, control_close)

/* The longest that an answer is waited for, then: -ETIMEDOUT, and the connection is of no more use. Without
 * this: for ever. */
void control_set_timeout(struct control *control, int timeout_ms);
/* That has happened: it is not the daemon's own word. */
bool control_is_silent(const struct control *control);

/* One request and its answer. @params (NULL: none) is taken over. Events that arrive meanwhile wait for
 * control_next(). */
int control_call(struct control *control, const char *method, json_t *params, json_t **ret,
        struct error *err);
/* The same with descriptors, which stay the caller's. */
int control_call_with(struct control *control, const char *method, json_t *params, const int *fds,
        size_t n_fds, json_t **ret, struct error *err);

/* The next notification: {"method", "params"}. Its descriptors (at most CONTROL_MAX_DESCRIPTORS) go to
 * @ret_fds, which may be NULL: then they are closed.   -ETIMEDOUT nothing came */
int control_next(struct control *control, int timeout_ms, json_t **ret, int *ret_fds,
        size_t *ret_n_fds, struct error *err);

/* The process at the other end, by the kernel's word: the daemon, or the service manager that made its
 * socket. 0: not known. */
pid_t control_peer_pid(const struct control *control);

/* To poll for control_next(). */
int control_fd(const struct control *control);
