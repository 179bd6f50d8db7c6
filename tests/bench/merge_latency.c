/* SPDX-License-Identifier: Apache-2.0 */
/* merge-latency - what a guest feels while the active leaf of its disk is merged down.
 *
 * In one process: a disk of two layers, the leaf full of data; threads that write 4 KiB at random as fast
 * as they can, each with a flush now and then; first alone, then while the leaf is merged into its
 * parent, then alone again. Told are the latencies of the writes (and flushes) in each of these
 * times, how long the merge took, and the ratio of the 99th percentiles, the merge's by the mean of the
 * two without it. The merge backs off by what the threads measured in the last 200 ms, as the
 * daemon's does; with --no-back-off it does not.
 *
 * Exit status: 0 done, 2 usage, 3 it failed (a byte that reads otherwise too). */
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "chain/push.h"
#include "formats/vhd/create.h"
#include "merge/merge.h"

#define UNIT        4096u
#define MAX_THREADS 64u
#define MAX_SAMPLES (16u << 20) /* of a thread */
#define WINDOW_US   200000u
#define BUCKETS     400u /* a twentieth more each: 1 us .. 300 s */
#define FILL        (2u << 20)

/* immutable once the threads run */
static struct {
        const char *directory;
        uint64_t data, disk;
        unsigned n_threads, flush_every;
        double seconds;
        bool back_off;
        uint64_t rate;
} options = {
        .data = UINT64_C(1024) << 20,
        .n_threads = 4,
        .flush_every = 64,
        .seconds = 5,
        .back_off = true,
};

enum phase { BEFORE, DURING, AFTER, N_PHASES };
static const char *const phase_names[] = {"before", "during", "after"};

struct sample {
        uint32_t us, at_ms; /* begun, since the program's start */
        uint8_t phase;
        bool flush;
};

struct guest {
        unsigned index;
        pthread_t thread;
        uint64_t random;
        struct sample *samples;
        _Atomic size_t n;
        uint64_t *model; /* what each of its units was last filled with; 0: as it was */
};

static struct chain *chain;
static uint64_t started;
static struct guest guests[MAX_THREADS];
static _Atomic int phase_now;
static uint32_t phase_began_ms[N_PHASES];
static _Atomic bool done;

/* The last full window's distribution, and the one that fills. */
static _Atomic uint32_t windows[2][BUCKETS];
static _Atomic unsigned window_now;
static _Atomic uint64_t window_ends;
static _Atomic uint64_t recent_p99, alone_p99;

static char folder[256], base[300], leaf[300];

static void clean_up(void)
{
        unlink(base);
        unlink(leaf);
        rmdir(folder);
}

static void stop(const char *what, int r, const struct error *err)
{
        fprintf(stderr, "merge-latency: %s: %s\n", what,
                err && err->message[0] ? err->message : strerror(-r));
        exit(3);
}

static uint64_t now_us(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static uint64_t next_random(uint64_t *state)
{
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        return *state;
}

/* --- the latest latencies */

/* Eight to each power of two. */
static unsigned bucket_of(uint64_t us)
{
        unsigned power;

        if (us < 8)
                return (unsigned)us;
        power = 63 - (unsigned)__builtin_clzll(us);
        return MIN_OF((power - 2) * 8 + (unsigned)(us >> (power - 3) & 7), BUCKETS - 1);
}

static uint64_t edge_of(unsigned bucket)
{
        if (bucket < 8)
                return bucket;
        return (UINT64_C(8) + bucket % 8) << (bucket / 8 - 1);
}

/* Who comes first behind a window's end turns it over. */
static void turn_window(uint64_t now)
{
        uint64_t ends = atomic_load(&window_ends), sum = 0, above = 0;
        unsigned full = atomic_load(&window_now) % 2;

        if (now < ends || !atomic_compare_exchange_strong(&window_ends, &ends, now + WINDOW_US))
                return;
        for (unsigned i = 0; i < BUCKETS; i++)
                atomic_store(&windows[!full][i], 0);
        atomic_store(&window_now, !full);
        for (unsigned i = 0; i < BUCKETS; i++)
                sum += atomic_load(&windows[full][i]);
        for (unsigned i = BUCKETS; i-- > 0;) {
                above += atomic_load(&windows[full][i]);
                if (above * 100 > sum) {
                        atomic_store(&recent_p99, edge_of(i) + 1);
                        return;
                }
        }
}

/* --- the guest */

static void note(struct guest *guest, uint64_t begun, int phase, bool flush)
{
        uint64_t now = now_us(), us = now - begun;

        if (guest->n < MAX_SAMPLES) {
                guest->samples[guest->n] = (struct sample){
                        (uint32_t)us, (uint32_t)((begun - started) / 1000), (uint8_t)phase, flush};
                atomic_fetch_add(&guest->n, 1);
        }
        if (!flush)
                atomic_fetch_add(&windows[atomic_load(&window_now) % 2][bucket_of(us)], 1);
        turn_window(now);
}

static void *guest_main(void *opaque)
{
        struct guest *guest = opaque;
        uint64_t n_units = options.disk / UNIT / options.n_threads, number = 0;
        uint64_t words[UNIT / 8];

        while (!atomic_load(&done)) {
                uint64_t unit = next_random(&guest->random) % n_units;
                int phase = atomic_load(&phase_now), r;
                uint64_t begun;

                number++;
                for (unsigned i = 0; i < UNIT / 8; i++)
                        words[i] = number * 64 + guest->index;
                begun = now_us();
                r = chain_write(
                        chain, words, UNIT, (unit * options.n_threads + guest->index) * UNIT, 0);
                if (r < 0)
                        stop("a guest's write", r, NULL);
                note(guest, begun, phase, false);
                guest->model[unit] = words[0];
                if (options.flush_every == 0 || number % options.flush_every != 0)
                        continue;
                begun = now_us();
                r = chain_flush(chain);
                if (r < 0)
                        stop("a guest's flush", r, NULL);
                note(guest, begun, phase, true);
        }
        return NULL;
}

/* --- numbers */

static int compare(const void *a, const void *b)
{
        const uint32_t *x = a, *y = b;

        return *x < *y ? -1 : *x > *y;
}

struct quantiles {
        uint64_t n;
        uint32_t p50, p99, p999, max, max_at_ms;
};

static struct quantiles quantiles_of(int phase, bool flush)
{
        size_t counts[MAX_THREADS], n = 0;
        struct quantiles q = {0};
        uint32_t *all;

        for (unsigned t = 0; t < options.n_threads; t++)
                n += counts[t] = atomic_load(&guests[t].n); /* they go on */
        all = malloc((n + 1) * sizeof(*all));
        n = 0;
        for (unsigned t = 0; all && t < options.n_threads; t++)
                for (size_t i = 0; i < counts[t]; i++)
                        if (guests[t].samples[i].phase == phase &&
                                guests[t].samples[i].flush == flush) {
                                if (guests[t].samples[i].us >= q.max) {
                                        q.max = guests[t].samples[i].us;
                                        q.max_at_ms = guests[t].samples[i].at_ms;
                                }
                                all[n++] = guests[t].samples[i].us;
                        }
        if (n > 0) {
                qsort(all, n, sizeof(*all), compare);
                q.n = n;
                q.p50 = all[n / 2];
                q.p99 = all[MIN_OF(n - 1, n * 99 / 100)];
                q.p999 = all[MIN_OF(n - 1, n * 999 / 1000)];
        }
        free(all);
        return q;
}

static void print_phase(int phase, double seconds)
{
        for (int flush = 0; flush < 2; flush++) {
                struct quantiles q = quantiles_of(phase, flush);

                printf(" \"%s-%s\": {\"seconds\": %.3f, \"requests\": %" PRIu64
                       ", \"p50-us\": %u, \"p99-us\": %u, \"p999-us\": %u, \"max-us\": %u, "
                       "\"max-at-ms\": %u},\n",
                        phase_names[phase], flush ? "flushes" : "writes", seconds, q.n, q.p50,
                        q.p99, q.p999, q.max,
                        q.max_at_ms > phase_began_ms[phase] ? q.max_at_ms - phase_began_ms[phase]
                                                            : 0);
        }
}

/* --- the merge */

static bool tell_latency(void *opaque, uint64_t *ret_now_us, uint64_t *ret_alone_us)
{
        (void)opaque;
        *ret_now_us = atomic_load(&recent_p99);
        *ret_alone_us = atomic_load(&alone_p99);
        return true;
}

static uint64_t tell_rate(void *opaque)
{
        (void)opaque;
        return options.rate;
}

static uint64_t bytes_moved;

static void note_progress(void *opaque, const struct merge_progress *progress)
{
        (void)opaque;
        bytes_moved = progress->bytes_done;
}

static void merge_leaf(void)
{
        const struct merge_controls controls = {
                .progress = note_progress,
                .rate = tell_rate,
                .latency = options.back_off ? tell_latency : NULL,
        };
        const struct merge_params params = {0};
        struct error err = ERROR_INIT;
        struct merge_plan plan;
        struct merge *merge;
        int r = merge_plan(chain, 1, 1, MERGE_DOWN, false, &plan, &err);

        if (r == 0)
                r = merge_begin(chain, &plan, &params, &merge, &err);
        if (r == 0)
                r = merge_run(merge, &controls, &err);
        if (r == 0)
                r = merge_finish(merge, NULL, 0, &err);
        if (r < 0)
                stop("the merge", r, &err);
}

/* --- the disk */

static void make_disk(void)
{
        struct vhd_create_params params = {.type = VHD_TYPE_DYNAMIC, .size = options.disk};
        struct chain_options chain_options = {.writable = true};
        static const uint8_t any_id[16];
        struct error err = ERROR_INIT;
        uint64_t *data = malloc(FILL), random = 5;
        struct file *file = NULL;
        int r = file_open(host_fs(), base, FILE_WRITE | FILE_CREATE, &file, &err);

        if (r == 0)
                r = vhd_create(file, &params, &err);
        file_close(file);
        if (r == 0)
                r = chain_open(base, &chain_options, &chain, &err);
        if (r == 0)
                r = chain_child_create(chain, leaf, any_id, &err);
        if (r == 0)
                r = chain_close(chain, &err);
        if (r == 0)
                r = chain_open(leaf, &chain_options, &chain, &err);
        for (uint64_t at = 0; r == 0 && data && at < options.data; at += FILL) {
                for (unsigned i = 0; i < FILL / 8; i++)
                        data[i] = next_random(&random);
                r = chain_write(chain, data, FILL, at, 0);
        }
        free(data);
        if (r == 0)
                r = chain_flush(chain);
        if (r < 0)
                stop("making the disk", r, &err);
        sync();
}

/* What a guest wrote is there, whatever moved meanwhile. */
static void check_disk(void)
{
        uint64_t words[UNIT / 8], n_units = options.disk / UNIT / options.n_threads;

        for (unsigned t = 0; t < options.n_threads; t++)
                for (uint64_t unit = 0; unit < n_units; unit++) {
                        if (!guests[t].model[unit])
                                continue;
                        if (chain_read(chain, words, UNIT, (unit * options.n_threads + t) * UNIT,
                                    0) < 0)
                                stop("reading what was written", -EIO, NULL);
                        for (unsigned i = 0; i < UNIT / 8; i++)
                                if (words[i] != guests[t].model[unit])
                                        stop("a guest reads otherwise than it wrote", -EIO, NULL);
                }
}

static double run_phase(enum phase phase)
{
        uint64_t begun = now_us();

        phase_began_ms[phase] = (uint32_t)((begun - started) / 1000);

        atomic_store(&phase_now, phase);
        if (phase == DURING)
                merge_leaf();
        else
                usleep((useconds_t)(options.seconds * 1e6));
        if (phase == BEFORE)
                atomic_store(&alone_p99, quantiles_of(BEFORE, false).p99);
        return (double)(now_us() - begun) / 1e6;
}

static void parse(int argc, char **argv)
{
        static const struct option known[] = {{"data", required_argument, NULL, 'd'},
                {"threads", required_argument, NULL, 't'},
                {"flush-every", required_argument, NULL, 'f'},
                {"seconds", required_argument, NULL, 's'}, {"no-back-off", no_argument, NULL, 'n'},
                {"rate", required_argument, NULL, 'r'}, {"quick", no_argument, NULL, 'q'}, {0}};
        int c;

        while ((c = getopt_long(argc, argv, "", known, NULL)) != -1)
                switch (c) {
                case 'd': options.data = strtoull(optarg, NULL, 0) << 20; break;
                case 't': options.n_threads = (unsigned)strtoul(optarg, NULL, 0); break;
                case 'f': options.flush_every = (unsigned)strtoul(optarg, NULL, 0); break;
                case 's': options.seconds = strtod(optarg, NULL); break;
                case 'n': options.back_off = false; break;
                case 'r': options.rate = strtoull(optarg, NULL, 0) << 20; break;
                case 'q':
                        options.data = 32u << 20;
                        options.seconds = 0.5;
                        break;
                default: exit(2);
                }
        if (optind < argc)
                options.directory = argv[optind];
        if (options.n_threads < 1 || options.n_threads > MAX_THREADS) {
                fprintf(stderr,
                        "merge-latency [--data MIB] [--threads N] [--flush-every N] [--seconds S] "
                        "[--rate MIB] [--no-back-off] [--quick] [FOLDER]\n");
                exit(2);
        }
        options.disk = round_up_to(options.data, FILL) + options.data / 4 + FILL;
        options.disk = round_down_to(options.disk, (uint64_t)UNIT * options.n_threads * 512);
}

int main(int argc, char **argv)
{
        double seconds[N_PHASES], alone;
        struct quantiles during;
        struct error err = ERROR_INIT;

        parse(argc, argv);
        if (!options.directory)
                options.directory = getenv("TMPDIR") ? getenv("TMPDIR") : "/var/tmp";
        snprintf(folder, sizeof(folder), "%s/vhdd-merge-latency.XXXXXX", options.directory);
        if (!mkdtemp(folder))
                stop(folder, -errno, NULL);
        atexit(clean_up);
        snprintf(base, sizeof(base), "%s/base.vhd", folder);
        snprintf(leaf, sizeof(leaf), "%s/leaf.avhd", folder);
        make_disk();
        started = now_us();
        atomic_store(&window_ends, started + WINDOW_US);
        for (unsigned t = 0; t < options.n_threads; t++) {
                guests[t] = (struct guest){.index = t, .random = t + 1};
                guests[t].samples = malloc(MAX_SAMPLES * sizeof(struct sample));
                guests[t].model = calloc(options.disk / UNIT / options.n_threads, sizeof(uint64_t));
                if (!guests[t].samples || !guests[t].model ||
                        pthread_create(&guests[t].thread, NULL, guest_main, &guests[t]) != 0)
                        stop("a thread", -ENOMEM, NULL);
        }
        for (int phase = BEFORE; phase < N_PHASES; phase++)
                seconds[phase] = run_phase((enum phase)phase);
        atomic_store(&done, true);
        for (unsigned t = 0; t < options.n_threads; t++)
                pthread_join(guests[t].thread, NULL);
        check_disk();

        alone = (quantiles_of(BEFORE, false).p99 + quantiles_of(AFTER, false).p99) / 2.0;
        during = quantiles_of(DURING, false);
        printf("{\"threads\": %u, \"flush-every\": %u, \"bytes-moved\": %" PRIu64
               ", \"back-off\": %s,\n",
                options.n_threads, options.flush_every, bytes_moved,
                options.back_off ? "true" : "false");
        for (int phase = BEFORE; phase < N_PHASES; phase++)
                print_phase(phase, seconds[phase]);
        printf(" \"p99-during-by-alone\": %.3f}\n", (double)during.p99 / alone);
        printf("summary: the active leaf merged down under %u threads of 4 KiB random writes: %.0f MiB in "
               "%.1f s, %.0f writes/s meanwhile (%.0f without); p99 %.0f us, %.0f without: %.2f times%s\n",
                options.n_threads, (double)bytes_moved / 1048576.0, seconds[DURING],
                (double)during.n / seconds[DURING],
                (double)(quantiles_of(BEFORE, false).n + quantiles_of(AFTER, false).n) /
                        (seconds[BEFORE] + seconds[AFTER]),
                (double)during.p99, alone, (double)during.p99 / alone,
                options.back_off ? "" : " (no back-off)");
        if (chain_close(chain, &err) < 0)
                stop("closing", -err.code, &err);
        for (unsigned t = 0; t < options.n_threads; t++) {
                free(guests[t].samples);
                free(guests[t].model);
        }
        return 0;
}
