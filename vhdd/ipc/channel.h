/* SPDX-License-Identifier: Apache-2.0 */
/* channel.h - messages between the daemon's processes: one JSON object and up to 32 descriptors each,
 * over a connected unix socket of kind SOCK_SEQPACKET.
 *
 * A message that is longer than a packet is sent in parts, one after the other; the descriptors go
 * with the first. What the other end sends is never trusted: whatever is no message ends the channel
 * with a sentence, and the descriptors that came with it are closed.
 *
 * Units      bytes.
 * Ownership  channel_new takes the socket over, channel_free closes it. Descriptors that are sent
 *            stay the sender's. A received message is the receiver's: message_done().
 * Errors     0 or -errno with one sentence. -EPROTO: the other end does not keep to the form, and
 *            nothing more can be read. -EMSGSIZE: longer than CHANNEL_MAX_MESSAGE, not sent.
 *            -EHOSTDOWN: the other end is gone. -ETIMEDOUT: it takes nothing for CHANNEL_SEND_MS.
 * Threads    send: any, also at the same time. receive: one. shutdown: any. free: when nobody else
 *            is inside.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/cleanup.h"
#include "base/error.h"

#define CHANNEL_MAX_MESSAGE (8u << 20) /* the JSON text */
#define CHANNEL_MAX_FDS     32u
#define CHANNEL_SEND_MS     30000

struct channel;

struct message {
        json_t *json; /* an object */
        int fds[CHANNEL_MAX_FDS];
        unsigned n_fds;
};
#define MESSAGE_INIT ((struct message){.json = NULL})

int channel_new(int fd, struct channel **ret, struct error *err);
/* Two ends that are connected with each other. */
int channel_pair(int ret[2], struct error *err);
struct channel *channel_free(struct channel *channel); /* NULL is fine; always returns NULL */
DEFINE_CLEANUP(struct channel *, channel_free)

int channel_send(struct channel *channel, const json_t *json, const int *fds, unsigned n_fds,
        struct error *err);
/* Waits for the next message. 1: *ret is one. 0: the other end closed in good order. */
int channel_receive(struct channel *channel, struct message *ret, struct error *err);
/* Both directions end: receive answers 0, send fails. The socket stays until channel_free. */
void channel_shutdown(struct channel *channel);
int channel_fd(const struct channel *channel); /* to poll for reading; lives as the channel */

/* Lets go of the JSON, and closes the descriptors that nobody took. */
void message_done(struct message *message);
/* The descriptor at @index is the caller's now; -1 if there is none. */
int message_take_fd(struct message *message, unsigned index);

/* An error as it travels: {"code": errno, "message", "file", "hint", "offset"}. */
json_t *error_to_json(const struct error *err); /* NULL: no memory */
/* Always answers a -errno; @json may be anything. */
int error_from_json(const json_t *json, struct error *err);
