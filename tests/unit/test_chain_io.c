/* SPDX-License-Identifier: Apache-2.0 */
/* Random requests of any size and place against a model in memory, over chains of every depth and
 * block size, with clean closes, "deaths" (abandon) and openings in between. What could go wrong in
 * the world: a guest reads back something else than it wrote. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/arith.h"
#include "base/uuid.h"
#include "chain/chain.h"
#include "formats/vhd/create.h"

#define MAX_LAYERS 5

struct world {
        char directory[64];
        char paths[MAX_LAYERS][128];
        unsigned n_layers;
        uint32_t block_size;
        uint64_t size;
        uint8_t *model;
        uint8_t *buffer;
        struct chain *chain;
        uint64_t random;
        bool direct;
};

static uint64_t next_random(struct world *w)
{
        w->random ^= w->random << 13;
        w->random ^= w->random >> 7;
        w->random ^= w->random << 17;
        return w->random;
}

static uint64_t below(struct world *w, uint64_t n)
{
        return next_random(w) % n;
}

static void make_image(struct world *w, unsigned layer)
{
        struct vhd_create_params params = {
                .type = layer ? VHD_TYPE_DIFFERENCING : VHD_TYPE_DYNAMIC,
                .size = w->size,
                .block_size = w->block_size,
        };
        struct error err = ERROR_INIT;
        struct file *file;
        char name[16], directory[64];

        memcpy(directory, w->directory, sizeof(directory)); /* of its own, says the compiler */
        snprintf(w->paths[layer], sizeof(w->paths[layer]), "%s/%u.vhd", directory, layer);
        cr_assert(file_open(host_fs(), w->paths[layer], FILE_WRITE | FILE_CREATE, &file, &err) == 0,
                "%s", err.message);
        params.unique_id[0] = (uint8_t)(layer + 1);
        params.unique_id[15] = (uint8_t)below(w, 256);
        if (layer) {
                struct file *parent;
                struct vhd_metadata metadata;

                cr_assert(file_open(host_fs(), w->paths[layer - 1], FILE_READ, &parent, &err) == 0);
                cr_assert(vhd_metadata_read(parent, 0, &metadata, &err) == 0, "%s", err.message);
                memcpy(params.parent_id, metadata.footer.unique_id, 16);
                file_close(parent);
                snprintf(name, sizeof(name), "%u.vhd", layer - 1);
                params.parent_name = name;
                params.parent_relative = name;
        }
        cr_assert(vhd_create(file, &params, &err) == 0, "%s", err.message);
        file_close(file);
}

static void open_tip(struct world *w)
{
        struct chain_options options = {.writable = true, .direct = w->direct};
        struct error err = ERROR_INIT;

        cr_assert(chain_open(w->paths[w->n_layers - 1], &options, &w->chain, &err) == 0, "%s",
                err.message);
        cr_assert(chain_depth(w->chain) == w->n_layers);
        cr_assert(chain_is_writable(w->chain));
}

static void close_tip(struct world *w, bool clean)
{
        struct error err = ERROR_INIT;

        if (clean)
                cr_assert(chain_close(w->chain, &err) == 0, "%s", err.message);
        else
                chain_abandon(w->chain);
        w->chain = NULL;
}

static void compare_all(struct world *w)
{
        cr_assert(chain_read(w->chain, w->buffer, w->size, 0, 0) == 0);
        for (uint64_t i = 0; i < w->size; i++)
                cr_assert(w->buffer[i] == w->model[i], "byte %llu is %02x, not %02x",
                        (unsigned long long)i, w->buffer[i], w->model[i]);
}

/* Any place; lengths from a byte to some blocks; half of them whole sectors. */
static void pick(struct world *w, uint64_t *offset, uint64_t *length)
{
        *offset = below(w, w->size);
        *length = 1 + below(w, below(w, 4) ? 9000 : 3 * (uint64_t)w->block_size);
        if (below(w, 2)) {
                *offset = round_down_to(*offset, SECTOR_SIZE);
                *length = round_up_to(*length, SECTOR_SIZE);
        }
        if (below(w, 8) == 0) {
                *offset = round_down_to(*offset, w->block_size);
                *length = w->block_size;
        }
        *length = MIN_OF(*length, w->size - *offset);
}

static void one_operation(struct world *w)
{
        unsigned flags = below(w, 16) == 0 ? CHAIN_FUA : 0;
        uint64_t offset, length;

        pick(w, &offset, &length);
        switch (below(w, 8)) {
        case 0:
        case 1:
        case 2:
                for (uint64_t i = 0; i < length; i++)
                        w->model[offset + i] = w->buffer[i] = (uint8_t)(next_random(w) >> 32);
                cr_assert(chain_write(w->chain, w->buffer, length, offset, flags) == 0);
                break;
        case 3:
                flags |= below(w, 4) ? 0 : CHAIN_NO_HOLE;
                memset(w->model + offset, 0, length);
                cr_assert(chain_zero(w->chain, length, offset, flags) == 0);
                break;
        case 4:
                cr_assert(chain_trim(w->chain, length, offset, flags) == 0);
                /* Either is allowed, within a range that nobody may rely on: take what it is. */
                cr_assert(chain_read(w->chain, w->model + offset, length, offset, 0) == 0);
                break;
        case 5:
                cr_assert(chain_flush(w->chain) == 0);
                break;
        default:
                cr_assert(chain_read(w->chain, w->buffer, length, offset, 0) == 0);
                cr_assert(memcmp(w->buffer, w->model + offset, length) == 0,
                        "read of %llu at %llu differs", (unsigned long long)length,
                        (unsigned long long)offset);
        }
}

static void run_world(struct world world, unsigned n_layers, uint32_t block_size, uint64_t size, unsigned n_operations,
        uint64_t seed)
{
        struct world w = world;

        w.block_size = block_size;
        w.size = size;
        w.random = seed * 2 + 1;
        strcpy(w.directory, "/tmp/vhdd-test-XXXXXX");
        cr_assert(mkdtemp(w.directory) != NULL);
        w.model = calloc(1, size);
        w.buffer = malloc(size + 3 * (uint64_t)block_size + 16384);
        for (unsigned layer = 0; layer < n_layers; layer++) {
                w.n_layers = layer + 1;
                make_image(&w, layer);
                open_tip(&w);
                for (unsigned i = 0; i < n_operations; i++) {
                        one_operation(&w);
                        if (below(&w, n_operations / 3) == 0) {
                                close_tip(&w, below(&w, 2));
                                open_tip(&w);
                                compare_all(&w);
                        }
                }
                compare_all(&w);
                close_tip(&w, true);
        }
        open_tip(&w);
        compare_all(&w);
        close_tip(&w, true);
        for (unsigned layer = 0; layer < n_layers; layer++)
                unlink(w.paths[layer]);
        cr_assert(rmdir(w.directory) == 0, "something was left in %s", w.directory);
        free(w.model);
        free(w.buffer);
}

static void run(unsigned n_layers, uint32_t block_size, uint64_t size, unsigned n_operations,
        uint64_t seed)
{
        run_world((struct world){0}, n_layers, block_size, size, n_operations, seed);
}

/* Past the page cache and through it by turns, as offset and length fall: one must see the other. */
Test(chain_io, direct_io_and_the_page_cache_agree)
{
        struct world world = {.direct = true};
        struct file *file;
        int r = file_open(host_fs(), "/tmp", FILE_READ | FILE_DIRECT, &file, NULL);

        cr_assert(r == -EMEDIUMTYPE);
        run_world(world, 2, 64 * 1024, 1000 * 1024, 300, 9);
}

Test(chain_io, reads_back_what_was_written_on_one_image)
{
        run(1, 4096, 100 * 1024, 1500, 1);
        run(1, 2 << 20, 5 << 20, 300, 2);
}

Test(chain_io, reads_back_what_was_written_on_small_blocks)
{
        run(1, 512, 20 * 1024 + 512, 1000, 3);
        run(3, 1024, 33 * 1024, 400, 4);
}

Test(chain_io, reads_back_what_was_written_on_chains)
{
        run(5, 4096, 160 * 1024, 500, 5);
        run(4, 64 * 1024, 1000 * 1024, 300, 6);
        run(3, 512 * 1024, 3 << 20, 200, 7);
}

Test(chain_io, large_blocks_have_bitmaps_of_many_sectors)
{
        run(2, 16 << 20, 20 << 20, 60, 8);
}
