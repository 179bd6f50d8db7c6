/* SPDX-License-Identifier: Apache-2.0 */
/* latency.h - how long the clients of a chain wait, with a merge under way and without.
 *
 * The server counts each request in a bucket of latencies (nbd/server/server.h) and forgets nothing; so
 * what happened in a span of time is the difference of two looks. What did not happen while a merge
 * moved blocks is what the clients are used to.
 *
 * Units      microseconds.
 * Ownership  plain values.
 * Errors     none.
 * Threads    one at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "nbd/server/server.h"

#define LATENCY_WINDOW_LEAST 32u /* requests that say something about a span */

struct latency {
        uint64_t last[NBD_LATENCY_BUCKETS];  /* all that were counted at the last look */
        uint64_t alone[NBD_LATENCY_BUCKETS]; /* those that no merge was in the way of */
};

/* Before the merge, and again when it stood still: all since the last look were alone. */
void latency_alone(struct latency *latency, const struct nbd_export_stats *stats);
/* The 99th of a hundred since the last look, which the merge was in the way of. False: too few; they
 * count at the next look. */
bool latency_now(struct latency *latency, const struct nbd_export_stats *stats, uint64_t *ret_us);
/* The same of those that were alone. False: too few. */
bool latency_usual(const struct latency *latency, uint64_t *ret_us);

/* A thread that works beside the clients, and wants to know now and then how they fare. */
struct latency_watch {
        struct latency latency;
        /* All that were counted up to now. False: there is nobody to look at any more. */
        bool (*look)(void *opaque, struct nbd_export_stats *ret);
        void *opaque;
        uint64_t seen_us, seen_ms; /* the last latency that was seen, and when */
        uint64_t stood_ms;         /* when it stood still last */
};

/* On that thread, before it begins. */
void latency_watch_begin(struct latency_watch *watch);
/* False: nobody waits for anything, or what they are used to is not known. May stand still for a moment. */
bool latency_watch_ask(struct latency_watch *watch, uint64_t *ret_now_us, uint64_t *ret_usual_us);
