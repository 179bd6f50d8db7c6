/* SPDX-License-Identifier: Apache-2.0 */
/* beneath.h - opening a file that a stranger named, only beneath a directory that the user named.
 *
 * openat2 with RESOLVE_BENEATH, no symbolic and no magic links; where the kernel or a container's
 * seccomp profile has no openat2, one component at a time with O_NOFOLLOW, which comes to the same
 * because the paths here hold no "..". What is no regular file is never opened at all: it is looked
 * at through O_PATH first (opening a FIFO can hang, opening a device can do anything).
 *
 * Units      none.
 * Ownership  the descriptor that is answered is the caller's.
 * Errors     0 or -errno. -ENOENT: not there. -ELOOP: a symbolic link is on the way. -EXDEV: it leads
 *            out. -ENOTUNIQ: several names fit but for their case. -EISDIR: a directory.
 *            -ENXIO: neither file nor directory (a FIFO, a socket, a device).
 * Threads    pure functions but for the files.
 */
#pragma once

#include <stddef.h>

/* The directory @path, as O_PATH: only good for beneath_open(). */
int beneath_open_root(const char *path, int *ret_fd);

/* Opens @path (relative, normalised) beneath @root_fd for reading. Windows does not tell a name's
 * cases apart, so where the exact name is missing a single one that differs in case alone is taken.
 * @ret_path (of @ret_path_size bytes): the path as it is really spelled. */
int beneath_open(int root_fd, const char *path, int *ret_fd, char *ret_path, size_t ret_path_size);
