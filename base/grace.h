/* SPDX-License-Identifier: Apache-2.0 */
/* grace.h - "when everybody who could still see it has left": for memory that lock-free readers
 * walk (rule E2) and for places in a file that a reply may still be sent from (rule E8).
 *
 * A reader enters and leaves; what it may have seen when something was taken out of view is dealt
 * with only after it left. Epochs: a call put off in epoch e runs in e + 2, and an epoch ends only
 * when nobody who entered in the one before is inside.
 *
 * Units      none.
 * Ownership  grace_new hands out; grace_free runs every call that is still put off, and ends it
 *            (nobody may be inside).
 * Errors     grace_new answers NULL without memory. grace_defer cannot fail: the caller brings the
 *            memory (struct grace_call, inside its own struct).
 * Threads    all functions from all threads. A put-off call runs on whichever thread polls, with no
 *            lock of grace's held.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct grace;

struct grace_call {
        void (*run)(struct grace_call *call);
        struct grace_call *next; /* grace's own */
        uint64_t epoch;          /* grace's own */
};

struct grace *grace_new(void);
struct grace *grace_free(struct grace *grace); /* NULL is fine; always returns NULL */

/* The process's own, for memory that lock-free readers walk: held for the walk only, never over
 * I/O. Lives for ever. NULL without memory (then nothing that needs it opens). */
struct grace *grace_readers(void);

uint64_t grace_enter(struct grace *grace); /* the ticket that grace_leave wants */
void grace_leave(struct grace *grace, uint64_t ticket);

/* @call->run runs once all who are inside now have left. Take the thing out of view first. */
void grace_defer(struct grace *grace, struct grace_call *call);
/* Runs what is due. Called by grace_defer; call it where waiting for more would be a pity. */
void grace_poll(struct grace *grace);
/* Returns when all who were inside when it was called have left. The caller is not inside. */
void grace_wait(struct grace *grace);
/* The same, but gives up after so many milliseconds: false. */
bool grace_wait_for(struct grace *grace, unsigned timeout_ms);
/* Runs all that is put off; nobody is inside. Before memory goes that calls speak of. */
void grace_drain(struct grace *grace);
