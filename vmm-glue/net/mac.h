/* SPDX-License-Identifier: Apache-2.0 */
/* mac.h - the addresses of network cards, and the pool that new ones come from.
 *
 * The pool is 5A:xx:xx:00:00:00 to 5A:xx:xx:FF:FF:FF: a locally administered prefix, two bytes that differ
 * from daemon to daemon, so that two hosts on one wire hardly ever share a pool, and a random rest that
 * nobody has yet.
 *
 * Units      an address is text: six bytes in lower case with colons, MAC_TEXT_SIZE with the NUL.
 * Ownership  plain values.
 * Errors     0 or -errno with one sentence.
 * Threads    any.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"

#define MAC_TEXT_SIZE 18u

/* "5A-76-01-02-03-04" or with colons; one that can be a card's: no multicast, not all zeros. */
int mac_parse(const char *text, char ret[MAC_TEXT_SIZE], struct error *err);
/* One of the pool of @owner (any text that is this daemon's own) that is not among the keys of @taken, an object. */
int mac_pick(const char *owner, const json_t *taken, char ret[MAC_TEXT_SIZE], struct error *err);
