/* SPDX-License-Identifier: Apache-2.0 */
/* macs.h - the addresses of a copied vm's network cards: one that another vm of this daemon has is left
 * out, in the settings and in those of each snapshot, and the card gets a new one when it is plugged in.
 *
 * Ownership  the rows stay the caller's.
 * Errors     0 or -errno with one sentence. What was left out is told in @notes (an array).
 * Threads    as the catalog's.
 */
#pragma once

#include <jansson.h>

#include "vhdd/daemon/sidecar.h"

int macs_make_unique(
        struct catalog *catalog, struct sidecar *rows, json_t *notes, struct error *err);
