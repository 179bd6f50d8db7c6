/* SPDX-License-Identifier: Apache-2.0 */
/* Many threads on one chain: each owns every n-th 4 KiB of the disk, so blocks are shared and their
 * sectors are not, and holds what it reads against what it wrote; another flushes without end.
 * What could go wrong in the world: two requests of a guest meet in one block and one is lost. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "chain/chain.h"
#include "formats/vhd/create.h"

#define N_THREADS 4
#define UNIT 4096u
#define DISK_SIZE (UINT64_C(4) << 20)
#define BLOCK_SIZE (64u * 1024)
#define N_UNITS (DISK_SIZE / UNIT / N_THREADS)
#define N_OPERATIONS 4000
#define N_LAYERS 3

static struct chain *chain;
static _Atomic bool done;

#define CHECK(condition)                                                                           \
        do {                                                                                       \
                if (!(condition)) {                                                                \
                        fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
                        abort();                                                                   \
                }                                                                                  \
        } while (0)

struct worker {
        unsigned index;
        uint64_t random;
        uint8_t model[N_UNITS]; /* the byte that fills each unit */
};

static uint64_t next_random(struct worker *w)
{
        w->random ^= w->random << 13;
        w->random ^= w->random >> 7;
        w->random ^= w->random << 17;
        return w->random;
}

static void check_unit(struct worker *w, uint64_t unit, uint8_t *buffer)
{
        uint64_t offset = (unit * N_THREADS + w->index) * UNIT;

        CHECK(chain_read(chain, buffer, UNIT, offset, 0) == 0);
        for (unsigned i = 0; i < UNIT; i++)
                CHECK(buffer[i] == w->model[unit]);
}

static void write_unit(struct worker *w, uint64_t unit, uint8_t *buffer, unsigned flags)
{
        uint64_t offset = (unit * N_THREADS + w->index) * UNIT;
        uint64_t part = next_random(w) % 4 ? UNIT : 100;

        w->model[unit] = (uint8_t)(next_random(w) >> 40);
        memset(buffer, w->model[unit], UNIT);
        /* Some of it in odd pieces: the gate is closed for those. */
        CHECK(chain_write(chain, buffer, part, offset, flags) == 0);
        if (part < UNIT)
                CHECK(chain_write(chain, buffer, UNIT - part, offset + part, flags) == 0);
}

static void *work(void *opaque)
{
        struct worker *w = opaque;
        uint8_t *buffer = malloc(UNIT);

        CHECK(buffer);
        for (unsigned i = 0; i < N_OPERATIONS; i++) {
                uint64_t unit = next_random(w) % N_UNITS, kind = next_random(w) % 16;

                if (kind < 6) {
                        write_unit(w, unit, buffer, kind == 0 ? CHAIN_FUA : 0);
                } else if (kind < 8) {
                        w->model[unit] = 0;
                        CHECK(chain_zero(chain, UNIT, (unit * N_THREADS + w->index) * UNIT, 0) ==
                                0);
                }
                check_unit(w, unit, buffer);
        }
        free(buffer);
        return NULL;
}

static void *flush(void *opaque)
{
        while (!atomic_load(&done)) {
                CHECK(chain_flush(chain) == 0);
                usleep(1000);
        }
        return NULL;
}

static void make_layers(const char *directory, char paths[N_LAYERS][128])
{
        for (unsigned i = 0; i < N_LAYERS; i++) {
                struct vhd_create_params params = {
                        .type = i ? VHD_TYPE_DIFFERENCING : VHD_TYPE_DYNAMIC,
                        .size = DISK_SIZE,
                        .block_size = BLOCK_SIZE,
                        .unique_id = {(uint8_t)(i + 1)},
                        .parent_id = {(uint8_t)i},
                        .parent_name = i == 1 ? "0.vhd" : "1.vhd",
                };
                struct error err = ERROR_INIT;
                struct file *file;

                snprintf(paths[i], 128, "%s/%u.vhd", directory, i);
                CHECK(file_open(host_fs(), paths[i], FILE_WRITE | FILE_CREATE, &file, &err) == 0);
                CHECK(vhd_create(file, &params, &err) == 0);
                file_close(file);
        }
}

static void run(struct worker *workers)
{
        pthread_t threads[N_THREADS], flusher;

        atomic_store(&done, false);
        CHECK(pthread_create(&flusher, NULL, flush, NULL) == 0);
        for (unsigned i = 0; i < N_THREADS; i++)
                CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
        for (unsigned i = 0; i < N_THREADS; i++)
                pthread_join(threads[i], NULL);
        atomic_store(&done, true);
        pthread_join(flusher, NULL);
}

int main(void)
{
        char directory[] = "/tmp/vhdd-threads-XXXXXX", paths[N_LAYERS][128];
        struct worker *workers = calloc(N_THREADS, sizeof(*workers));
        uint8_t buffer[UNIT];

        CHECK(workers && mkdtemp(directory));
        for (unsigned i = 0; i < N_THREADS; i++)
                workers[i] = (struct worker){.index = i, .random = i + 1};
        make_layers(directory, paths);
        /* Each layer in turn is the leaf, so every block ends up in several. */
        for (unsigned layer = 0; layer < N_LAYERS; layer++) {
                struct chain_options options = {.writable = true};
                struct error err = ERROR_INIT;

                CHECK(chain_open(paths[layer], &options, &chain, &err) == 0);
                run(workers);
                if (layer == 1) { /* as after kill -9 */
                        chain_abandon(chain);
                        CHECK(chain_open(paths[layer], &options, &chain, &err) == 0);
                }
                for (unsigned i = 0; i < N_THREADS; i++)
                        for (uint64_t unit = 0; unit < N_UNITS; unit++)
                                check_unit(&workers[i], unit, buffer);
                CHECK(chain_close(chain, &err) == 0);
        }
        for (unsigned i = 0; i < N_LAYERS; i++)
                unlink(paths[i]);
        CHECK(rmdir(directory) == 0);
        free(workers);
        return 0;
}
