/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/latency.h"

#include <string.h>
#include <time.h>

/* What a guest waits for. */
static const enum nbd_request_kind kinds[] = {NBD_KIND_READ, NBD_KIND_WRITE, NBD_KIND_FLUSH};
#define N_WAITED (sizeof(kinds) / sizeof(kinds[0]))
/* So many that were alone are remembered: then half of them are forgotten, that it follows the times. */
#define ALONE_MOST 100000u

#define STAND_MS      60u   /* so long a thread stands still to see what clients are used to */
#define STAND_EACH_MS 1000u /* and not more often */
#define KNOWN_MS      3000u /* so long a latency that was seen is taken for the present one */

static void count_all(const struct nbd_export_stats *stats, uint64_t ret[NBD_LATENCY_BUCKETS])
{
        memset(ret, 0, NBD_LATENCY_BUCKETS * sizeof(ret[0]));
        for (unsigned k = 0; k < N_WAITED; k++)
                for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++)
                        ret[b] += stats->kinds[kinds[k]].latency[b];
}

static uint64_t sum_of(const uint64_t counts[NBD_LATENCY_BUCKETS])
{
        uint64_t sum = 0;

        for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++)
                sum += counts[b];
        return sum;
}

/* Within a bucket they are taken to be spread evenly. */
static uint64_t percentile_99(const uint64_t counts[NBD_LATENCY_BUCKETS])
{
        uint64_t sum = sum_of(counts), below = 0;
        uint64_t wanted = sum - sum / 100;

        for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++) {
                uint64_t low = b > 0 ? UINT64_C(1) << (b - 1) : 0, high = UINT64_C(1) << b;

                if (counts[b] > 0 && below + counts[b] >= wanted)
                        return low + (high - low) * (wanted - below) / counts[b];
                below += counts[b];
        }
        return 0;
}

/* An export that was taken away takes its counts with it: then all begins anew. */
static void difference(const uint64_t all[NBD_LATENCY_BUCKETS],
        const uint64_t last[NBD_LATENCY_BUCKETS], uint64_t ret[NBD_LATENCY_BUCKETS])
{
        for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++)
                ret[b] = all[b] >= last[b] ? all[b] - last[b] : 0;
}

void latency_alone(struct latency *latency, const struct nbd_export_stats *stats)
{
        uint64_t all[NBD_LATENCY_BUCKETS], since[NBD_LATENCY_BUCKETS];

        count_all(stats, all);
        difference(all, latency->last, since);
        for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++)
                latency->alone[b] += since[b];
        memcpy(latency->last, all, sizeof(all));
        while (sum_of(latency->alone) > ALONE_MOST)
                for (unsigned b = 0; b < NBD_LATENCY_BUCKETS; b++)
                        latency->alone[b] /= 2;
}

bool latency_now(struct latency *latency, const struct nbd_export_stats *stats, uint64_t *ret_us)
{
        uint64_t all[NBD_LATENCY_BUCKETS], since[NBD_LATENCY_BUCKETS];

        count_all(stats, all);
        difference(all, latency->last, since);
        if (sum_of(since) < LATENCY_WINDOW_LEAST)
                return false;
        memcpy(latency->last, all, sizeof(all));
        *ret_us = percentile_99(since);
        return true;
}

bool latency_usual(const struct latency *latency, uint64_t *ret_us)
{
        if (sum_of(latency->alone) < LATENCY_WINDOW_LEAST)
                return false;
        *ret_us = percentile_99(latency->alone);
        return true;
}

static uint64_t now_ms(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

void latency_watch_begin(struct latency_watch *watch)
{
        watch->stood_ms = now_ms();
}

/* What clients are used to is not known when they came after the work began: it stands still for a moment,
 * and looks. */
static bool learn_usual(struct latency_watch *watch, uint64_t now, uint64_t *ret_us)
{
        const struct timespec moment = {.tv_nsec = STAND_MS * 1000000L};
        struct nbd_export_stats stats;

        if (latency_usual(&watch->latency, ret_us))
                return true;
        if (now - watch->stood_ms < STAND_EACH_MS)
                return false;
        nanosleep(&moment, NULL);
        watch->stood_ms = now_ms();
        if (!watch->look(watch->opaque, &stats))
                return false;
        latency_alone(&watch->latency, &stats);
        return latency_usual(&watch->latency, ret_us);
}

bool latency_watch_ask(struct latency_watch *watch, uint64_t *ret_now_us, uint64_t *ret_usual_us)
{
        struct nbd_export_stats stats;
        uint64_t now = now_ms();

        if (!watch->look(watch->opaque, &stats))
                return false;
        if (latency_now(&watch->latency, &stats, &watch->seen_us))
                watch->seen_ms = now;
        if (watch->seen_ms == 0 || now - watch->seen_ms > KNOWN_MS)
                return false;
        if (!learn_usual(watch, now, ret_usual_us))
                return false;
        *ret_now_us = watch->seen_us;
        return true;
}
