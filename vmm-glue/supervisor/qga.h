/* SPDX-License-Identifier: Apache-2.0 */
/* qga.h - the agent in the guest (qemu-guest-agent), over virtio-serial.
 *
 * Who answers there is the guest: an enemy, a dead man, or slow. So nothing waits for it: each command has
 * a limit, and its answer, or the lack of one, comes by a callback.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  qga_open hands out, qga_close ends, and tells those who still wait. JSON in callbacks is lent,
 *            arguments are taken over.
 * Errors     0 or -errno with one sentence. -EREMOTEIO: the agent refused, in its words.
 * Threads    all on the event loop's thread.
 * Spec       QEMU Guest Agent Protocol, as of QEMU 7.2.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "base/error.h"

struct qga;

/* @result is NULL if there is an error, which then is in @err. */
typedef void (*qga_reply_fn)(void *opaque, const json_t *result, const struct error *err);

/* @path: QEMU's end of the channel. @gone: it was closed, or talks nonsense; waits for qga_close(). */
int qga_open(sd_event *event, const char *path, void (*gone)(void *opaque), void *opaque,
        struct qga **ret, struct error *err);
struct qga *qga_close(struct qga *qga); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct qga *, qga_close)

/* @arguments may be NULL. @reply (may be NULL) is called once, unless this fails. */
int qga_ask(struct qga *qga, const char *command, json_t *arguments, unsigned timeout_ms,
        qga_reply_fn reply, void *opaque, struct error *err);
