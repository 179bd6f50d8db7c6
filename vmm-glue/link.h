/* SPDX-License-Identifier: Apache-2.0 */
/* link.h - what vmm-host and a supervisor say to each other: JSON, one object a line, on a unix socket.
 *
 *      request       {"id": N, "do": VERB, ...}            either side asks
 *      answer        {"id": N, "result": {...}}            or {"id": N, "error": {"message", "code", "hint"}}
 *      notification  {"note": NAME, ...}                   nobody answers
 *
 * A message with descriptors (SCM_RIGHTS) says how many in its member "descriptors". A request that is
 * not answered in its time, and those that wait when the other end goes, are answered by an error here.
 *
 * Units      milliseconds where a name ends in _ms.
 * Ownership  link_new takes the socket over; link_free ends, and answers what still waits. JSON that a
 *            callback gets is lent; descriptors are the callback's to close. Results are taken over.
 * Errors     0 or -errno with one sentence. -EPIPE: the other end is gone. A peer that breaks the rules
 *            or leaves LINK_MAX_BACKLOG unread is gone.
 * Threads    all on the event loop's thread. No function calls back before the loop runs again, but
 *            link_free, which may be called in a callback of this link.
 */
#pragma once

#include <jansson.h>
#include <systemd/sd-event.h>

#include "base/cleanup.h"
#include "base/error.h"

#define LINK_MAX_LINE    (1u << 20)
#define LINK_MAX_BACKLOG (4u << 20)
#define LINK_MAX_FDS     32u

struct link;

struct link_callbacks {
        /* Required. The other side asks @verb (member "do" of @message); it is answered with
         * link_answer or link_refuse, at once or later, once. */
        void (*request)(void *opaque, struct link *link, json_int_t id, const char *verb,
                const json_t *message, int *fds, size_t n_fds);
        /* Optional. */
        void (*note)(void *opaque, struct link *link, const char *name, const json_t *message);
        /* Required. The other end is gone; the link answers nothing any more and waits for link_free. */
        void (*gone)(void *opaque, struct link *link);
        void *opaque;
};

/* @result is lent, NULL if there is an error, which then is in @err. */
typedef void (*link_reply_fn)(
        void *opaque, const json_t *result, int *fds, size_t n_fds, const struct error *err);

int link_new(sd_event *event, int fd, const struct link_callbacks *callbacks, struct link **ret,
        struct error *err);
struct link *link_free(struct link *link); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct link *, link_free)

/* @message (taken over) gets "id" and "do". @fds stay the caller's. @reply (NULL: nobody
 * wants to know) is called once, unless this fails. */
int link_ask(struct link *link, const char *verb, json_t *message, const int *fds, size_t n_fds,
        unsigned timeout_ms, link_reply_fn reply, void *opaque, struct error *err);
/* Takes @result over. What cannot be sent any more is dropped. */
void link_answer(struct link *link, json_int_t id, json_t *result, const int *fds, size_t n_fds);
void link_refuse(struct link *link, json_int_t id, const struct error *err);
/* Takes @message over. */
void link_note(struct link *link, const char *name, json_t *message);

/* Listens at, or connects to, the socket at @path: the process owner's alone. */
int link_listen(const char *path, int *ret, struct error *err);
int link_connect(const char *path, int *ret, struct error *err);

/* An error as JSON, and back. */
json_t *error_to_object(const struct error *err);
int error_from_object(const json_t *object, struct error *err);
