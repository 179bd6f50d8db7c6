/* SPDX-License-Identifier: Apache-2.0 */
/* cards.h - the network cards in vms' settings, which the daemon keeps: their MAC addresses, who has which.
 *
 * A card that has no address gets one of the pool before its vm starts, and it is written into the vm's
 * settings at once: a vm keeps its addresses for life, and no two vms of this daemon share one.
 *
 * Units      none.
 * Ownership  json_t values that a function answers are new references.
 * Errors     0 or -errno with one sentence.
 * Threads    the event loop's; each function waits for the daemon's answers.
 */
#pragma once

#include <jansson.h>

#include "vmm-glue/connection.h"
#include "vmm-glue/net/mac.h"

/* @networks with an address in each; when one was missing the vm's settings are changed first. @owner: of the
 * pool. */
int cards_complete(struct connection *connection, const char *owner, const char *vm,
        const json_t *networks, json_t **ret, struct error *err);

/* The vm's own list, as the daemon has it. */
int cards_of(struct connection *connection, const char *vm, json_t **ret, struct error *err);
int cards_store(
        struct connection *connection, const char *vm, const json_t *networks, struct error *err);

/* One more card: @network with its address, or one of the pool. -EEXIST: another card has it. */
int cards_prepare(struct connection *connection, const char *owner, const json_t *network,
        json_t **ret, struct error *err);
/* The place in @networks of the card that @which means: an address, or a switch that only one card is on. */
int cards_find(const json_t *networks, const char *which, size_t *ret, struct error *err);
