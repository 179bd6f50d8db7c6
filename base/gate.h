/* SPDX-License-Identifier: Apache-2.0 */
/* gate.h - what a write passes through, and what can be closed against writes (rule E7).
 *
 * Every write, zero and trim enters the gate of its block from mapping to completion; whoever must
 * have the block alone closes the gate and waits until all inside have left. Gates are striped: two
 * blocks may share one, so a thread holds at most one gate at a time.
 *
 * Units      key: any number that stands for the block.
 * Ownership  gates_new hands out, gates_free ends (nobody may be inside).
 * Errors     gates_new answers NULL without memory; nothing else fails.
 * Threads    all functions from all threads; close and open on one thread each.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct gates;

struct gates *gates_new(void);
struct gates *gates_free(struct gates *gates); /* NULL is fine; always returns NULL */

void gate_enter(struct gates *gates, uint64_t key);     /* waits while it is closed */
bool gate_try_enter(struct gates *gates, uint64_t key); /* false: closed */
void gate_leave(struct gates *gates, uint64_t key);

void gate_close(struct gates *gates, uint64_t key);     /* waits until nobody is inside */
bool gate_try_close(struct gates *gates, uint64_t key); /* false: closed, or somebody is inside */
void gate_open(struct gates *gates, uint64_t key);
