/* SPDX-License-Identifier: Apache-2.0 */
/* socket.h - the control API's unix socket: making it, finding it, and who stands at its other end.
 *
 * Ownership  descriptors are the caller's.
 * Errors     0 or -errno with one sentence that names the path.
 * Threads    all functions from all threads.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"

#define CONTROL_GROUP    "vhdd"
#define CONTROL_NO_GROUP ((gid_t)-1)

/* The gid of @name; NULL: of CONTROL_GROUP, or CONTROL_NO_GROUP if there is no such group. */
int control_group_find(const char *name, gid_t *ret, struct error *err);

/* Listens at @path: 0660 and @group's, or 0600 without one. Nobody can connect before that holds. A file
 * that a dead daemon left is replaced.   -EADDRINUSE somebody listens there */
int control_listen(const char *path, gid_t group, int *ret, struct error *err);

int control_socket_connect(const char *path, int *ret, struct error *err);

/* Who is at the other end of @fd, by the kernel's word, and whether it is root, our own user, or in
 * @group: -EACCES with the sentence for it if not. */
struct peer {
        uid_t uid;
        gid_t gid;
        pid_t pid;
};
int control_peer(int fd, struct peer *ret, struct error *err);
int control_peer_may_speak(int fd, const struct peer *peer, gid_t group, struct error *err);
