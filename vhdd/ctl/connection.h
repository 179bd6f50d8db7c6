/* SPDX-License-Identifier: Apache-2.0 */
/* connection.h - by which connection the person at this vhdctl has come to this host.
 *
 * sshd tells it to what it starts ($SSH_CONNECTION); su and sudo forget it. So where our own environment has
 * it not, those of our parents are looked at, as far as we may.
 *
 * Units      none.
 * Ownership  the caller's buffer.
 * Errors     false: not by ssh, or nobody says so.
 * Threads    the main thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#define SSH_CONNECTION_MAX 200u

/* "CLIENT PORT SERVER PORT". */
bool connection_find(char ret[SSH_CONNECTION_MAX]);
