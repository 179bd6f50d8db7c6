/* SPDX-License-Identifier: Apache-2.0 */
/* greeter.h - the broker's end of the process that negotiates with NBD clients: starts it with the
 * sockets that listen, answers what it asks, starts it again when it dies.
 *
 * A client that connects while there is no greeter waits in its socket's queue for the next one.
 *
 * Ownership  greeter_start hands out, greeter_stop ends. The sockets stay the caller's, and open until
 *            greeter_stop has returned.
 * Errors     0 or -errno with one sentence.
 * Threads    start and stop: one thread. counters: any, between the two. What it asks is answered on
 *            threads of its own, many at a time; they may block, and have ended when stop returns.
 */
#pragma once

#include <jansson.h>
#include <stddef.h>

#include "base/error.h"
#include "vhdd/daemon/broker.h"

struct greeter;
struct nbd_handoff;

#define GREETER_MAX_SOCKETS 32u

/* All are required; what they answer is in vhdd/greeter/greeter.h, and the caller's. */
struct greeter_answers {
        int (*lookup)(struct broker *broker, const char *name, json_t **ret, struct error *err);
        int (*list)(struct broker *broker, json_t **ret, struct error *err);
        /* @fd stays the caller's, who closes it. */
        int (*hand_over)(struct broker *broker, const struct nbd_handoff *handoff, int fd,
                struct error *err);
};

/* Returns when clients are answered. */
int greeter_start(struct broker *broker, const int *fds, size_t n_fds,
        const struct greeter_answers *answers, struct greeter **ret, struct error *err);
/* No more clients are greeted; those who negotiate are cut off. NULL is fine; always returns NULL. */
struct greeter *greeter_stop(struct greeter *greeter);

/* {accepted, refused, failed, handed-over, greeting}, of the process that runs now. */
int greeter_counters(struct greeter *greeter, json_t **ret, struct error *err);
