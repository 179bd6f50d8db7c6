/* SPDX-License-Identifier: Apache-2.0 */
/* explore.h - every state that a small model of a rule can reach, breadth first: a trace that it
 * prints is a shortest one.
 *
 * A model is a struct of plain bytes (zeroed before use, so that padding compares), a step() that
 * calls explore_emit() with every successor of a state, and a check() that names the property which
 * a state breaks. A run switches steps of the rule off; the model is worth something only because
 * such a run fails.
 *
 * Units      states.
 * Ownership  nothing is handed out.
 * Errors     memory that runs out, or more states than the bound, ends the program with 2: a model
 *            that was not explored whole has shown nothing.
 * Threads    one.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct model {
        size_t size;                   /* of a state; at most EXPLORE_MAX_STATE */
        bool (*init)(unsigned number); /* emits the start of this number; false: there is none */
        void (*step)(const void *state);
        const char *(*check)(const void *state); /* NULL: nothing is wrong with it */
};

#define EXPLORE_MAX_STATE  256u
#define EXPLORE_MAX_STATES (40u * 1000 * 1000)

struct run {
        const char *name;
        unsigned flags; /* the model's own */
        bool must_fail;
};

/* From init() and step(): a state to look at, and in a word how it came about. */
void explore_emit(const void *state, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Explores the model under each run's flags, which *flags then holds, and prints a line for each.
 * The program's exit status: 0, or 1 if one of them came out other than it must. */
int explore_runs(const struct model *model, const struct run *runs, size_t n_runs, unsigned *flags);

/* VHDD_LONG is set: larger bounds. */
bool explore_is_long(void);

/* --- one sector of a file: what the page cache shows, and what a power cut may leave of it --- */

struct item {
        uint8_t cached;
        uint8_t possible; /* a bit for each value */
        uint8_t since;    /* the values from the start of the sync that is under way, 0: none is */
};

static inline void item_init(struct item *item, unsigned value)
{
        item->cached = (uint8_t)value;
        item->possible = (uint8_t)(1u << value);
        item->since = 0;
}

static inline void item_write(struct item *item, unsigned value)
{
        item->cached = (uint8_t)value;
        item->possible |= (uint8_t)(1u << value);
        if (item->since)
                item->since |= (uint8_t)(1u << value);
}

static inline void item_sync_begin(struct item *item)
{
        item->since = (uint8_t)(1u << item->cached);
}

static inline void item_sync_end(struct item *item)
{
        if (item->since)
                item->possible &= item->since;
        item->since = 0;
}

static inline void item_sync(struct item *item)
{
        item->possible = (uint8_t)(1u << item->cached);
        item->since = 0;
}
