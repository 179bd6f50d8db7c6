/* SPDX-License-Identifier: Apache-2.0 */
/* gate.h - what a write passes through, and what can be closed against writes (rules E7, E10).
 *
 * Every write, zero and trim enters the gate of its block from mapping to completion; whoever must
 * have the block alone closes the gate and waits until all inside have left. Gates are striped: two
 * blocks may share one, so a thread holds at most one gate of one set at a time.
 *
 * A set can also be shut as a whole, against everybody. Where that is what it is for, the key is the
 * thread's own (gate_own_key), so that threads do not meet in a stripe.
 *
 * Units      key: any number that stands for the block.
 * Ownership  gates_new hands out, gates_free ends (nobody may be inside).
 * Errors     gates_new answers NULL without memory; nothing else fails.
 * Threads    all functions from all threads; close and open on one thread each. gates_shut and
 *            gates_reopen belong to one thread at a time, and a set that is shut as a whole has no
 *            single gate closed by others.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct gates;

struct gates *gates_new(void);       /* stripes enough for blocks */
struct gates *gates_new_small(void); /* for keys that stand for threads */
struct gates *gates_free(struct gates *gates); /* NULL is fine; always returns NULL */

void gate_enter(struct gates *gates, uint64_t key);     /* waits while it is closed */
bool gate_try_enter(struct gates *gates, uint64_t key); /* false: closed */
void gate_leave(struct gates *gates, uint64_t key);

void gate_close(struct gates *gates, uint64_t key);     /* waits until nobody is inside */
bool gate_try_close(struct gates *gates, uint64_t key); /* false: closed, or somebody is inside */
void gate_open(struct gates *gates, uint64_t key);

uint64_t gate_own_key(void); /* the calling thread's; small numbers, given out in turn */

/* From here on nobody enters any gate of the set; who is inside may be so still. */
void gates_shut(struct gates *gates);
void gates_drain(struct gates *gates); /* of a shut set: waits until nobody is inside */
void gates_reopen(struct gates *gates);
