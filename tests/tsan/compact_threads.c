/* SPDX-License-Identifier: Apache-2.0 */
/* A disk is compacted again and again under threads that read, write, zero, trim and flush, each in
 * blocks of its own. What could go wrong in the world: a block moves away under a request that has
 * just looked where it is. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "formats/vhd/create.h"
#include "merge/compact.h"

#define N_THREADS    3u
#define BLOCK        (16u * 1024)
#define N_BLOCKS     48u
#define N_OPERATIONS 3000u

static struct chain *chain;
static _Atomic unsigned n_done;

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
        uint8_t model[N_BLOCKS]; /* the byte that fills each block of ours */
        pthread_t id;
};

static uint32_t below(struct worker *w, uint32_t n)
{
        w->random = w->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        return (uint32_t)(w->random >> 33) % n;
}

static void expect(const struct worker *w, uint32_t block)
{
        static const uint8_t zeros[BLOCK];
        uint8_t bytes[BLOCK], want[BLOCK];

        memset(want, w->model[block], BLOCK);
        CHECK(chain_read(chain, bytes, BLOCK, (uint64_t)block * BLOCK, 0) == 0);
        CHECK(memcmp(bytes, w->model[block] ? want : zeros, BLOCK) == 0);
}

static void operate(struct worker *w)
{
        uint32_t block = below(w, N_BLOCKS / N_THREADS) * N_THREADS + w->index;
        uint64_t offset = (uint64_t)block * BLOCK;
        uint8_t bytes[BLOCK];

        expect(w, block);
        switch (below(w, 8)) {
        case 0: CHECK(chain_flush(chain) == 0); break;
        case 1:
                CHECK(chain_zero(chain, BLOCK, offset, 0) == 0);
                w->model[block] = 0;
                break;
        case 2: /* alone over a root that has nothing a trimmed block reads as zeros */
                CHECK(chain_trim(chain, BLOCK, offset, 0) == 0);
                w->model[block] = 0;
                break;
        default:
                w->model[block] = (uint8_t)below(w, 4);
                memset(bytes, w->model[block], BLOCK);
                CHECK(chain_write(chain, bytes, BLOCK, offset, 0) == 0);
        }
}

static void *work(void *opaque)
{
        struct worker *w = opaque;

        for (unsigned i = 0; i < N_OPERATIONS; i++)
                operate(w);
        atomic_fetch_add(&n_done, 1);
        return NULL;
}

static void make(const char *path)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC, .size = (uint64_t)N_BLOCKS * BLOCK, .block_size = BLOCK};
        struct chain_options options = {.writable = true};
        struct error err = ERROR_INIT;
        struct file *file;

        CHECK(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE, &file, &err) == 0);
        CHECK(vhd_create(file, &params, &err) == 0);
        file_close(file);
        CHECK(chain_open(path, &options, &chain, &err) == 0);
}

int main(void)
{
        char directory[] = "/tmp/vhdd-tsan-XXXXXX", path[64];
        struct worker workers[N_THREADS];
        struct compact_report report;
        struct error err = ERROR_INIT;
        uint64_t moved = 0, released = 0;

        CHECK(mkdtemp(directory) != NULL);
        snprintf(path, sizeof(path), "%s/disk.vhd", directory);
        make(path);
        for (unsigned i = 0; i < N_THREADS; i++) {
                workers[i] = (struct worker){.index = i, .random = i + 1};
                CHECK(pthread_create(&workers[i].id, NULL, work, &workers[i]) == 0);
        }
        do {
                CHECK(compact_run(chain, NULL, &report, &err) == 0);
                moved += report.n_moved;
                released += report.n_released;
        } while (atomic_load(&n_done) < N_THREADS);
        for (unsigned i = 0; i < N_THREADS; i++)
                CHECK(pthread_join(workers[i].id, NULL) == 0);
        CHECK(compact_run(chain, NULL, &report, &err) == 0);
        for (uint32_t b = 0; b < N_BLOCKS; b++)
                expect(&workers[b % N_THREADS], b);
        CHECK(chain_close(chain, &err) == 0);
        CHECK(moved > 0);
        CHECK(released > 0);
        unlink(path);
        CHECK(rmdir(directory) == 0);
        printf("%llu blocks moved, %llu released under %u threads\n", (unsigned long long)moved,
                (unsigned long long)released, N_THREADS);
        return 0;
}
