/* SPDX-License-Identifier: Apache-2.0 */
/* Layers are pushed on a live disk and merged away again, down and up, the leaf and those beneath it,
 * while threads write, read, zero, trim and flush it without a pause, and another chain reads a snapshot
 * over the layers that go. What could go wrong in the world: a guest reads back something else than it
 * wrote, a snapshot changes under its reader, a merge never ends, or somebody uses a layer that has left. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "chain/push.h"
#include "formats/vhd/create.h"
#include "merge/merge.h"

#define N_WRITERS  3
#define N_ROUNDS   24
#define MOST       8 /* layers */
#define UNIT       4096u
#define DISK_SIZE  (UINT64_C(2) << 20)
#define BLOCK_SIZE (32u * 1024)
#define N_UNITS    (DISK_SIZE / UNIT / N_WRITERS)

#define CHECK(condition)                                                                           \
        do {                                                                                       \
                if (!(condition)) {                                                                \
                        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)
#define OK(call)                                                                                   \
        do {                                                                                       \
                if ((call) < 0) {                                                                  \
                        fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call,              \
                                err.message);                                                      \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)

struct writer {
        unsigned index;
        uint64_t random;
        uint8_t model[N_UNITS]; /* the byte that fills each unit */
};

static struct chain *chain;
static struct chain_family *family;
static char directory[] = "/tmp/vhdd-merge-XXXXXX";
static _Atomic bool done;
static _Atomic uint64_t n_writes, n_flushes, n_trims, n_looks;

/* The snapshot that is read beside the disk. */
static pthread_mutex_t snapshot_lock = PTHREAD_MUTEX_INITIALIZER;
static struct chain *snapshot;
static uint8_t *snapshot_holds;

static uint64_t next_random(uint64_t *state)
{
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        return *state;
}

static uint64_t place_of(const struct writer *w, uint64_t unit)
{
        return (unit * N_WRITERS + w->index) * UNIT;
}

static void check_unit(const struct writer *w, uint64_t unit)
{
        uint8_t buffer[UNIT];

        CHECK(chain_read(chain, buffer, UNIT, place_of(w, unit), 0) == 0);
        for (unsigned i = 0; i < UNIT; i++)
                CHECK(buffer[i] == w->model[unit]);
}

/* What it reads as afterwards is the disk's to say: zeros or as before, sector by sector. */
static void trim_unit(struct writer *w, uint64_t unit)
{
        uint8_t buffer[UNIT];

        CHECK(chain_trim(chain, UNIT, place_of(w, unit), 0) == 0);
        CHECK(chain_read(chain, buffer, UNIT, place_of(w, unit), 0) == 0);
        for (unsigned i = 0; i < UNIT; i++)
                CHECK(buffer[i] == w->model[unit] || buffer[i] == 0);
        CHECK(chain_zero(chain, UNIT, place_of(w, unit), 0) == 0);
        w->model[unit] = 0;
        atomic_fetch_add(&n_trims, 1);
}

static void change_unit(struct writer *w, uint64_t unit)
{
        uint64_t offset = place_of(w, unit), kind = next_random(&w->random) % 14;
        uint64_t part = next_random(&w->random) % 4 ? UNIT : 100;
        uint8_t byte = (uint8_t)(next_random(&w->random) >> 40), buffer[UNIT];

        if (kind == 0) {
                w->model[unit] = 0;
                CHECK(chain_zero(chain, UNIT, offset, 0) == 0);
                return;
        }
        if (kind == 1) {
                trim_unit(w, unit);
                return;
        }
        w->model[unit] = byte;
        memset(buffer, byte, UNIT);
        CHECK(chain_write(chain, buffer, part, offset, kind == 2 ? CHAIN_FUA : 0) == 0);
        if (part < UNIT)
                CHECK(chain_write(chain, buffer, UNIT - part, offset + part, 0) == 0);
        atomic_fetch_add(&n_writes, 1);
}

static void *write_main(void *opaque)
{
        struct writer *w = opaque;

        while (!atomic_load(&done)) {
                uint64_t unit = next_random(&w->random) % N_UNITS;

                change_unit(w, unit);
                check_unit(w, unit);
                /* Old units, found through many layers, again and again. */
                check_unit(w, next_random(&w->random) % 4);
                check_unit(w, next_random(&w->random) % N_UNITS);
        }
        return NULL;
}

static void *flush_main(void *opaque)
{
        (void)opaque;
        while (!atomic_load(&done)) {
                CHECK(chain_flush(chain) == 0);
                atomic_fetch_add(&n_flushes, 1);
                usleep(500);
        }
        return NULL;
}

static void *status_main(void *opaque)
{
        uint64_t random = 99;

        (void)opaque;
        while (!atomic_load(&done)) {
                struct chain_extent extent;
                uint64_t offset = next_random(&random) % (DISK_SIZE / 512) * 512;
                uint64_t ticket = chain_ticket_get(chain);

                CHECK(chain_status(chain, offset, DISK_SIZE - offset, 0, &extent) == 0);
                CHECK(extent.depth <= MOST);
                chain_ticket_put(chain, ticket);
                usleep(50);
        }
        return NULL;
}

static void *snapshot_main(void *opaque)
{
        uint64_t random = 98;

        (void)opaque;
        while (!atomic_load(&done)) {
                uint8_t buffer[UNIT];
                uint64_t offset = next_random(&random) % (DISK_SIZE / UNIT) * UNIT;

                usleep(50);
                MUTEX_GUARD(&snapshot_lock);
                if (!snapshot)
                        continue;
                CHECK(chain_read(snapshot, buffer, UNIT, offset, 0) == 0);
                CHECK(memcmp(buffer, snapshot_holds + offset, UNIT) == 0);
                atomic_fetch_add(&n_looks, 1);
        }
        return NULL;
}

static void open_snapshot(const char *path)
{
        struct chain_options options = {.family = family};
        struct error err = ERROR_INIT;
        struct chain *opened;

        OK(chain_open(path, &options, &opened, &err));
        CHECK(chain_read(opened, snapshot_holds, DISK_SIZE, 0, 0) == 0);
        MUTEX_GUARD(&snapshot_lock);
        snapshot = opened;
}

static void close_snapshot(void)
{
        struct error err = ERROR_INIT;
        struct chain *opened;

        pthread_mutex_lock(&snapshot_lock);
        opened = snapshot;
        snapshot = NULL;
        pthread_mutex_unlock(&snapshot_lock);
        if (opened)
                OK(chain_close(opened, &err));
}

static void push(unsigned number)
{
        static const uint8_t any_id[16];
        struct error err = ERROR_INIT;
        struct image *child;
        char path[128];

        snprintf(path, sizeof(path), "%s/%u.vhd", directory, number);
        OK(chain_child_create(chain, path, any_id, &err));
        OK(chain_child_open(chain, path, &child, &err));
        chain_hold(chain);
        chain_push(chain, child);
        chain_release(chain);
        OK(chain_flush_frozen(chain, &err));
}

/* Layers @first to @last go; their files too. */
static void merge_layers(unsigned first, unsigned last, enum merge_direction wanted)
{
        const struct merge_params params = {0};
        const struct merge_controls controls = {0};
        struct error err = ERROR_INIT;
        char paths[MOST][128];
        struct merge_plan plan;
        struct merge *merge;
        unsigned depth = chain_depth(chain);

        for (unsigned i = first; i <= last; i++)
                snprintf(paths[i], sizeof(paths[i]), "%s", chain_layer_path(chain, i));
        OK(merge_plan(chain, first, last, wanted, false, &plan, &err));
        OK(merge_begin(chain, &plan, &params, &merge, &err));
        OK(merge_run(merge, &controls, &err));
        OK(merge_finish(merge, NULL, 0, &err));
        CHECK(chain_depth(chain) == depth - (last - first + 1));
        for (unsigned i = first; i <= last; i++)
                CHECK(unlink(paths[i]) == 0);
}

/* Something of everything: the leaf, with those beneath it or alone; the middle; up into the leaf; the
 * root too. */
static void one_round(unsigned round, unsigned *number, uint64_t *random)
{
        unsigned depth, first, last;
        const char *tip = NULL;
        char path[128];

        while (chain_depth(chain) < 4) {
                usleep(3000);
                push((*number)++);
        }
        depth = chain_depth(chain);
        usleep(3000);
        switch (round % 4) {
        case 0:
                last = depth - 1;
                first = 1 + (unsigned)(next_random(random) % (depth - 1));
                merge_layers(first, last, MERGE_DOWN);
                break;
        case 1: /* beneath a snapshot that is read */
                snprintf(path, sizeof(path), "%s", chain_layer_path(chain, depth - 2));
                tip = path;
                open_snapshot(tip);
                merge_layers(1, depth - 3, MERGE_DOWN);
                close_snapshot();
                break;
        case 2: merge_layers(1, depth - 2, MERGE_UP); break;
        default:
                /* The root stays as it is, and the leaf needs it no more. */
                merge_layers(0, depth - 2, MERGE_UP);
        }
}

static void make_disk(char *path, size_t size)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC, .size = DISK_SIZE, .block_size = BLOCK_SIZE};
        struct chain_options options = {.writable = true, .family = family};
        struct error err = ERROR_INIT;
        struct file *file;

        snprintf(path, size, "%s/0.vhd", directory);
        OK(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE, &file, &err));
        OK(vhd_create(file, &params, &err));
        file_close(file);
        OK(chain_open(path, &options, &chain, &err));
}

static void run(struct writer *writers)
{
        pthread_t threads[N_WRITERS], others[3];
        uint64_t random = 5;
        unsigned number = 1;

        for (unsigned i = 0; i < N_WRITERS; i++)
                CHECK(pthread_create(&threads[i], NULL, write_main, &writers[i]) == 0);
        CHECK(pthread_create(&others[0], NULL, flush_main, NULL) == 0);
        CHECK(pthread_create(&others[1], NULL, status_main, NULL) == 0);
        CHECK(pthread_create(&others[2], NULL, snapshot_main, NULL) == 0);
        for (unsigned round = 0; round < N_ROUNDS; round++)
                one_round(round, &number, &random);
        atomic_store(&done, true);
        for (unsigned i = 0; i < N_WRITERS; i++)
                pthread_join(threads[i], NULL);
        for (unsigned i = 0; i < 3; i++)
                pthread_join(others[i], NULL);
        printf("%u merges of %u layers, %llu writes, %llu trims, %llu flushes, %llu looks at snapshots\n",
                N_ROUNDS, number, (unsigned long long)atomic_load(&n_writes),
                (unsigned long long)atomic_load(&n_trims),
                (unsigned long long)atomic_load(&n_flushes),
                (unsigned long long)atomic_load(&n_looks));
}

static void check_disk(const struct writer *writers)
{
        for (unsigned i = 0; i < N_WRITERS; i++)
                for (uint64_t unit = 0; unit < N_UNITS; unit++)
                        check_unit(&writers[i], unit);
}

int main(void)
{
        struct writer *writers = calloc(N_WRITERS, sizeof(*writers));
        struct chain_options options = {.writable = true};
        struct error err = ERROR_INIT;
        char path[128];

        snapshot_holds = malloc(DISK_SIZE);
        family = chain_family_new();
        CHECK(writers && snapshot_holds && family && mkdtemp(directory));
        for (unsigned i = 0; i < N_WRITERS; i++) {
                writers[i].index = i;
                writers[i].random = i + 1;
        }
        make_disk(path, sizeof(path));
        run(writers);
        check_disk(writers);
        snprintf(path, sizeof(path), "%s", chain_layer_path(chain, chain_depth(chain) - 1));
        OK(chain_close(chain, &err));
        chain_family_free(family);
        /* What is left on disk reads the same to whoever comes next. */
        OK(chain_open(path, &options, &chain, &err));
        check_disk(writers);
        for (unsigned i = 0; i < chain_depth(chain); i++)
                unlink(chain_layer_path(chain, i));
        OK(chain_close(chain, &err));
        CHECK(rmdir(directory) == 0);
        free(writers);
        free(snapshot_holds);
        return 0;
}
