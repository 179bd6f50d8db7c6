/* SPDX-License-Identifier: Apache-2.0 */
/* listeners.h - the sockets that the broker listens on, and how they outlive its program: systemd hands
 * them in (LISTEN_FDS; FileDescriptorName= "control" or "nbd"), an earlier broker leaves them over
 * execve, or they are made.
 *
 * Sockets that came from outside replace the defaults of their kind, and nobody removes their names.
 *
 * Units      none.
 * Ownership  listeners_open fills, listeners_close ends.
 * Errors     0 or -errno with one sentence.
 * Threads    one.
 */
#pragma once

#include <stdbool.h>

#include "vhdd/daemon/broker.h"

#define LISTENERS_MAX_NBD 32u

struct listeners {
        int lock_fd; /* the state directory's lock, kept over execve; -1: none */
        int control_fd;
        bool control_is_own; /* its name goes with us */
        int nbd_fds[LISTENERS_MAX_NBD];
        bool nbd_is_own[LISTENERS_MAX_NBD];
        unsigned n_nbd;
};
#define LISTENERS_INIT ((struct listeners){.lock_fd = -1, .control_fd = -1})

/* What was handed in; and the environment that told of it is forgotten. Once, at the beginning. */
int listeners_take(struct listeners *listeners, struct error *err);
/* Makes what was not handed in. Afterwards the options' control_path, nbd_paths and nbd_addresses say what
 * is listened at. @group: who may connect beside us, CONTROL_NO_GROUP: nobody. */
int listeners_open(struct listeners *listeners, struct broker_options *options, gid_t group,
        struct error *err);
/* They survive execve(), and the environment tells the next program of them. */
int listeners_keep(const struct listeners *listeners, struct error *err);
/* Closes them, and removes the names that we made. */
void listeners_close(struct listeners *listeners);
