/* SPDX-License-Identifier: Apache-2.0 */
/* qmp.h - QEMU's monitor: commands that are answered at once, events, descriptors.
 *
 * qmp_call waits for the answer (QEMU answers what we ask in milliseconds, and a limit stands behind
 * that); events that come meanwhile are handed out by the loop afterwards, in their order. The other end
 * is not trusted to keep the rules: a line has a limit, and who breaks them is gone.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  qmp_open hands out, qmp_close ends. JSON in callbacks is lent. Arguments are taken over.
 * Errors     0 or -errno with one sentence. -EREMOTEIO: QEMU refused, in its words. -ETIMEDOUT. -EPIPE: it is
 *            gone.
 * Threads    all on the event loop's thread. Callbacks come from the loop only.
 * Spec       QEMU Machine Protocol, as of QEMU 7.2.
 */
#pragma once

#include <jansson.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "base/error.h"

#define QMP_CALL_MS 20000

struct qmp;

struct qmp_callbacks {
        void (*event)(void *opaque, const char *name, const json_t *data); /* required */
        void (*gone)(void *opaque); /* required: it waits for qmp_close() */
        void *opaque;
};

/* Connects to the socket at @path, takes the greeting and leaves negotiation mode.
 * -ENOENT, -ECONNREFUSED: nobody listens there yet */
int qmp_open(sd_event *event, const char *path, const struct qmp_callbacks *callbacks,
        struct qmp **ret, struct error *err);
struct qmp *qmp_close(struct qmp *qmp); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct qmp *, qmp_close)

/* QEMU's version, as the greeting has it: "7.2.22". */
const char *qmp_version(const struct qmp *qmp);

/* @arguments and @ret may be NULL. @fd: a descriptor that goes with it, or -1. */
int qmp_call(
        struct qmp *qmp, const char *command, json_t *arguments, json_t **ret, struct error *err);
int qmp_call_with(struct qmp *qmp, const char *command, json_t *arguments, int fd, int timeout_ms,
        json_t **ret, struct error *err);
