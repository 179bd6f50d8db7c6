/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots of two disks while threads write, read, zero and flush them without a pause. One thread
 * writes a counter to the one disk and then to the other, so the two images that a snapshot freezes
 * may differ by one at most. What could go wrong in the world: a snapshot that is two instants, an
 * answered write that is on neither side of it, a flush that waits for ever. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "chain/push.h"
#include "formats/vhd/create.h"

#define N_DISKS     2
#define N_WRITERS   3
#define N_SNAPSHOTS 16
#define UNIT        4096u
#define DISK_SIZE   (UINT64_C(2) << 20)
#define BLOCK_SIZE  (32u * 1024)
#define N_UNITS     (DISK_SIZE / UNIT / N_WRITERS - 1)
#define COUNTER     (DISK_SIZE - UNIT) /* its place on each disk */

#define CHECK(condition)                                                                           \
        do {                                                                                       \
                if (!(condition)) {                                                                \
                        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)

struct disk {
        struct chain *chain;
        char paths[N_SNAPSHOTS + 1][128];
};

static struct disk disks[N_DISKS];
static _Atomic bool done;
static _Atomic uint64_t answered; /* of the counter, on both disks */
static _Atomic uint64_t n_flushes, n_writes;

struct writer {
        unsigned index;
        uint64_t random;
        uint8_t model[N_DISKS][N_UNITS]; /* the byte that fills each unit */
};

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

static void check_unit(
        const struct writer *w, struct chain *chain, const uint8_t *model, uint64_t unit)
{
        uint8_t buffer[UNIT];

        CHECK(chain_read(chain, buffer, UNIT, place_of(w, unit), 0) == 0);
        for (unsigned i = 0; i < UNIT; i++)
                CHECK(buffer[i] == model[unit]);
}

static void change_unit(struct writer *w, unsigned d, uint64_t unit)
{
        struct chain *chain = disks[d].chain;
        uint64_t offset = place_of(w, unit), kind = next_random(&w->random) % 12;
        uint64_t part = next_random(&w->random) % 4 ? UNIT : 100;
        uint8_t byte = (uint8_t)(next_random(&w->random) >> 40), buffer[UNIT];

        if (kind == 0) {
                w->model[d][unit] = 0;
                CHECK(chain_zero(chain, UNIT, offset, 0) == 0);
                return;
        }
        w->model[d][unit] = byte;
        memset(buffer, byte, UNIT);
        CHECK(chain_write(chain, buffer, part, offset, kind == 1 ? CHAIN_FUA : 0) == 0);
        if (part < UNIT)
                CHECK(chain_write(chain, buffer, UNIT - part, offset + part, 0) == 0);
        atomic_fetch_add(&n_writes, 1);
}

static void *write_main(void *opaque)
{
        struct writer *w = opaque;

        while (!atomic_load(&done)) {
                unsigned d = (unsigned)(next_random(&w->random) % N_DISKS);
                uint64_t unit = next_random(&w->random) % N_UNITS;

                change_unit(w, d, unit);
                check_unit(w, disks[d].chain, w->model[d], unit);
                /* Old units, found through many layers, again and again. */
                check_unit(w, disks[d].chain, w->model[d], next_random(&w->random) % 4);
        }
        return NULL;
}

static void *count_main(void *opaque)
{
        for (uint64_t i = 1; !atomic_load(&done); i++) {
                for (unsigned d = 0; d < N_DISKS; d++)
                        CHECK(chain_write(disks[d].chain, &i, sizeof(i), COUNTER, 0) == 0);
                atomic_store(&answered, i);
        }
        return NULL;
}

static void *flush_main(void *opaque)
{
        struct disk *disk = opaque;

        while (!atomic_load(&done)) {
                CHECK(chain_flush(disk->chain) == 0);
                atomic_fetch_add(&n_flushes, 1);
                usleep(500);
        }
        return NULL;
}

static void *status_main(void *opaque)
{
        uint64_t random = 99;

        while (!atomic_load(&done)) {
                struct chain *chain = disks[next_random(&random) % N_DISKS].chain;
                struct chain_extent extent;
                uint64_t offset = next_random(&random) % (DISK_SIZE / 512) * 512;
                uint64_t ticket = chain_ticket_get(chain);

                CHECK(chain_status(chain, offset, DISK_SIZE - offset, 0, &extent) == 0);
                CHECK(extent.depth <= chain_depth(chain));
                chain_ticket_put(chain, ticket);
                CHECK(chain_n_frozen(chain) < N_SNAPSHOTS);
        }
        return NULL;
}

static void make_disk(struct disk *disk, unsigned d, const char *directory)
{
        struct vhd_create_params params = {.type = d ? VHD_TYPE_FIXED : VHD_TYPE_DYNAMIC,
                .size = DISK_SIZE,
                .block_size = d ? 0 : BLOCK_SIZE};
        struct chain_options options = {.writable = true};
        struct error err = ERROR_INIT;
        struct file *file;

        for (unsigned i = 0; i <= N_SNAPSHOTS; i++)
                snprintf(disk->paths[i], sizeof(disk->paths[i]), "%s/%u-%u.vhd", directory, d, i);
        CHECK(file_open(host_fs(), disk->paths[0], FILE_WRITE | FILE_CREATE, &file, &err) == 0);
        CHECK(vhd_create(file, &params, &err) == 0);
        file_close(file);
        CHECK(chain_open(disk->paths[0], &options, &disk->chain, &err) == 0);
}

static uint64_t counter_of(const char *path)
{
        struct chain_options options = {0};
        struct error err = ERROR_INIT;
        struct chain *chain;
        uint64_t value;

        if (chain_open(path, &options, &chain, &err) < 0) {
                fprintf(stderr, "%s\n", err.message);
                abort();
        }
        CHECK(chain_read(chain, &value, sizeof(value), COUNTER, 0) == 0);
        CHECK(chain_close(chain, &err) == 0);
        return value;
}

static void take_snapshot(struct switch_region *region, unsigned number, uint64_t *ret_stall_ns)
{
        static const uint8_t any_id[16];
        struct chain_switch switches[N_DISKS] = {0};
        uint64_t before, values[N_DISKS];
        struct error err = ERROR_INIT;

        for (unsigned d = 0; d < N_DISKS; d++) {
                const char *path = disks[d].paths[number + 1];

                switches[d].chain = disks[d].chain;
                CHECK(chain_child_create(disks[d].chain, path, any_id, &err) == 0);
                CHECK(chain_child_open(disks[d].chain, path, &switches[d].child, &err) == 0);
        }
        before = atomic_load(&answered);
        CHECK(chain_switch(switches, N_DISKS, region, any_id, ret_stall_ns, &err) == 0);
        for (unsigned d = 0; d < N_DISKS; d++)
                CHECK(chain_flush_frozen(disks[d].chain, &err) == 0);
        for (unsigned d = 0; d < N_DISKS; d++)
                chain_committed(disks[d].chain);
        switch_clear(region);
        for (unsigned d = 0; d < N_DISKS; d++)
                values[d] = counter_of(disks[d].paths[number]);
        CHECK(values[0] == values[1] || values[0] == values[1] + 1);
        CHECK(values[1] >= before);
}

static void run(struct writer *writers)
{
        pthread_t threads[N_WRITERS], counter, flushers[N_DISKS], status;
        static const uint8_t vm[16] = {0xaa, 0x55};
        uint64_t longest_ns = 0;
        struct switch_region *region;
        struct error err = ERROR_INIT;

        CHECK(switch_open(host_fs(), vm, disks[0].paths[0], true, &region, &err) == 0);
        for (unsigned i = 0; i < N_WRITERS; i++)
                CHECK(pthread_create(&threads[i], NULL, write_main, &writers[i]) == 0);
        CHECK(pthread_create(&counter, NULL, count_main, NULL) == 0);
        CHECK(pthread_create(&status, NULL, status_main, NULL) == 0);
        for (unsigned d = 0; d < N_DISKS; d++)
                CHECK(pthread_create(&flushers[d], NULL, flush_main, &disks[d]) == 0);
        for (unsigned i = 0; i < N_SNAPSHOTS; i++) {
                uint64_t stall_ns;

                usleep(5000);
                take_snapshot(region, i, &stall_ns);
                longest_ns = MAX_OF(longest_ns, stall_ns);
        }
        atomic_store(&done, true);
        for (unsigned i = 0; i < N_WRITERS; i++)
                pthread_join(threads[i], NULL);
        pthread_join(counter, NULL);
        pthread_join(status, NULL);
        for (unsigned d = 0; d < N_DISKS; d++)
                pthread_join(flushers[d], NULL);
        switch_close(region, true);
        printf("%u snapshots, longest stall %llu us, %llu writes, %llu flushes, counter %llu\n",
                N_SNAPSHOTS, (unsigned long long)longest_ns / 1000,
                (unsigned long long)atomic_load(&n_writes),
                (unsigned long long)atomic_load(&n_flushes),
                (unsigned long long)atomic_load(&answered));
}

static void check_disk(struct writer *writers, unsigned d)
{
        for (unsigned i = 0; i < N_WRITERS; i++)
                for (uint64_t unit = 0; unit < N_UNITS; unit++)
                        check_unit(&writers[i], disks[d].chain, writers[i].model[d], unit);
}

int main(void)
{
        char directory[] = "/tmp/vhdd-push-XXXXXX";
        struct writer *writers = calloc(N_WRITERS, sizeof(*writers));

        CHECK(writers && mkdtemp(directory));
        for (unsigned i = 0; i < N_WRITERS; i++) {
                writers[i].index = i;
                writers[i].random = i + 1;
        }
        for (unsigned d = 0; d < N_DISKS; d++)
                make_disk(&disks[d], d, directory);
        run(writers);
        for (unsigned d = 0; d < N_DISKS; d++) {
                struct chain_options options = {.writable = true};
                struct error err = ERROR_INIT;

                check_disk(writers, d);
                CHECK(chain_close(disks[d].chain, &err) == 0);
                CHECK(chain_open(disks[d].paths[N_SNAPSHOTS], &options, &disks[d].chain, &err) ==
                        0);
                CHECK(chain_depth(disks[d].chain) == N_SNAPSHOTS + 1);
                check_disk(writers, d);
                CHECK(chain_close(disks[d].chain, &err) == 0);
                for (unsigned i = 0; i <= N_SNAPSHOTS; i++)
                        unlink(disks[d].paths[i]);
        }
        CHECK(rmdir(directory) == 0);
        free(writers);
        return 0;
}
