/* SPDX-License-Identifier: Apache-2.0 */
/* Compaction of images in use. What could go wrong in the world: a reader meets a place that was given
 * away under it, a block goes that is not what lies below, a job cannot be stopped, or a file keeps its
 * size for ever. (Cuts and deaths: tests/crash/compactions.c.) */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "chain/blocks.h"
#include "chain/push.h"
#include "formats/vhd/create.h"
#include "merge/compact.h"

#define BLOCK  8192u
#define BLOCKS 16u
#define SIZE   (BLOCK * BLOCKS)

#define OK(call) cr_assert((call) == 0, "%s", err.message)

struct world {
        char directory[64], root[96], leaf[96];
        struct chain *chain;
};

static void make(const char *path, const struct vhd_create_params *params)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;

        OK(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE, &file, &err));
        OK(vhd_create(file, params, &err));
}

static void open_world(struct world *w, bool writable)
{
        struct chain_options options = {.writable = writable};
        struct error err = ERROR_INIT;

        OK(chain_open(w->leaf, &options, &w->chain, &err));
}

static void close_world(struct world *w)
{
        struct error err = ERROR_INIT;

        OK(chain_close(TAKE_PTR(w->chain), &err));
}

/* A root alone, or with a child that is the leaf. */
static void begin(struct world *w, bool child)
{
        struct vhd_create_params root = {
                .type = VHD_TYPE_DYNAMIC, .size = SIZE, .block_size = BLOCK, .unique_id = {1}};
        struct vhd_create_params leaf = {
                .type = VHD_TYPE_DIFFERENCING,
                .size = SIZE,
                .block_size = BLOCK,
                .parent_id = {1},
                .parent_name = "root.vhd",
                .parent_relative = "./root.vhd",
        };

        *w = (struct world){.directory = "/tmp/vhdd-test-XXXXXX"};
        cr_assert(mkdtemp(w->directory) != NULL);
        snprintf(w->root, sizeof(w->root), "%.40s/root.vhd", w->directory);
        snprintf(w->leaf, sizeof(w->leaf), "%.40s/%s.vhd", w->directory, child ? "leaf" : "root");
        make(w->root, &root);
        if (child)
                make(w->leaf, &leaf);
}

static void end(struct world *w)
{
        chain_abandon(w->chain);
        unlink(w->root);
        unlink(w->leaf);
        cr_assert_eq(rmdir(w->directory), 0);
}

static void put(struct world *w, uint32_t block, int value)
{
        uint8_t bytes[BLOCK];

        memset(bytes, value, sizeof(bytes));
        cr_assert_eq(chain_write(w->chain, bytes, BLOCK, (uint64_t)block * BLOCK, 0), 0);
}

static void expect_value(struct world *w, uint32_t block, int value)
{
        uint8_t bytes[BLOCK], want[BLOCK];

        memset(want, value, sizeof(want));
        cr_assert_eq(chain_read(w->chain, bytes, BLOCK, (uint64_t)block * BLOCK, 0), 0);
        cr_assert_arr_eq(bytes, want, BLOCK, "block %u", block);
}

static uint64_t file_size_of(const struct chain *chain, unsigned layer)
{
        uint64_t size;

        cr_assert_eq(file_size_get(chain_layer(chain, layer)->file, &size), 0);
        return size;
}

static uint64_t file_size(const struct world *w)
{
        return file_size_of(w->chain, chain_depth(w->chain) - 1);
}

static void compact_all(struct world *w, struct compact_report *report)
{
        struct error err = ERROR_INIT;

        OK(compact_run(w->chain, NULL, report, &err));
}

TestSuite(compact, .timeout = 30);

Test(compact, frees_zeros_moves_the_rest_and_cuts_the_file)
{
        struct compact_report report;
        struct world w;
        uint64_t before;

        begin(&w, false);
        open_world(&w, true);
        for (uint32_t b = 0; b < BLOCKS; b++)
                put(&w, b, b % 2 ? (int)b : 0);
        cr_assert_eq(chain_flush(w.chain), 0);
        before = file_size(&w);
        compact_all(&w, &report);
        cr_expect_eq(report.n_blocks, BLOCKS);
        cr_expect_eq(report.n_released, BLOCKS / 2);
        cr_expect_eq(report.n_moved, BLOCKS / 4);
        cr_expect_lt(file_size(&w), before - BLOCKS / 2 * BLOCK);
        for (uint32_t b = 0; b < BLOCKS; b++)
                expect_value(&w, b, b % 2 ? (int)b : 0);
        close_world(&w);
        open_world(&w, true);
        for (uint32_t b = 0; b < BLOCKS; b++)
                expect_value(&w, b, b % 2 ? (int)b : 0);
        compact_all(&w, &report);
        cr_expect_eq(report.n_released + report.n_moved, 0);
        end(&w);
}

/* One byte that differs keeps the block. */
Test(compact, frees_what_the_parent_has_and_nothing_else)
{
        struct compact_report report;
        uint8_t bytes[512] = {0};
        struct world w, parent;

        begin(&w, true);
        parent = w;
        memcpy(parent.leaf, w.root, sizeof(parent.leaf));
        open_world(&parent, true);
        put(&parent, 3, 5);
        put(&parent, 4, 5);
        close_world(&parent);
        open_world(&w, true);
        put(&w, 3, 5);
        put(&w, 4, 5);
        put(&w, 5, 0);
        put(&w, 6, 1);
        memset(bytes, 5, sizeof(bytes));
        bytes[511] = 6;
        cr_assert_eq(chain_write(w.chain, bytes, 512, 4 * BLOCK + 512, 0), 0);
        compact_all(&w, &report);
        cr_expect_eq(report.n_blocks, 4);
        cr_expect_eq(report.n_released, 2);
        expect_value(&w, 3, 5);
        expect_value(&w, 5, 0);
        expect_value(&w, 6, 1);
        cr_assert_eq(chain_read(w.chain, bytes, 512, 4 * BLOCK + 512, 0), 0);
        cr_expect_eq(bytes[511], 6);
        end(&w);
}

/* E8: who holds a ticket may still send what is at the old places: the bytes stay, and the file's end. */
Test(compact, leaves_old_places_alone_while_somebody_reads_there)
{
        struct chain_extent extent;
        struct compact_report report;
        uint8_t bytes[BLOCK], want[BLOCK];
        struct world w;
        uint64_t ticket, during;

        begin(&w, false);
        open_world(&w, true);
        for (uint32_t b = 0; b < 4; b++)
                put(&w, b, b < 3 ? 0 : 9);
        cr_assert_eq(chain_flush(w.chain), 0);
        ticket = chain_ticket_get(w.chain);
        cr_assert_eq(chain_map(w.chain, 3 * BLOCK, BLOCK, 0, &extent), 0);
        compact_all(&w, &report);
        during = file_size(&w);
        cr_expect_geq(during, extent.file_offset + BLOCK);
        memset(want, 9, sizeof(want));
        cr_assert_eq(file_read_exact(extent.file, bytes, BLOCK, extent.file_offset), 0);
        cr_expect_arr_eq(bytes, want, BLOCK);
        chain_ticket_put(w.chain, ticket);
        compact_all(&w, &report);
        cr_expect_lt(file_size(&w), during);
        expect_value(&w, 3, 9);
        end(&w);
}

/* A place that was begun and given up is free again, and the block where it was. */
Test(compact, gives_a_place_back)
{
        const struct image *leaf;
        struct block_move move, again;
        struct image *image;
        struct world w;
        uint64_t at;

        begin(&w, false);
        open_world(&w, true);
        put(&w, 0, 0);
        put(&w, 1, 7);
        leaf = chain_layer(w.chain, 0);
        image = (struct image *)(uintptr_t)leaf;
        at = leaf->format->place(leaf, BLOCK);
        cr_assert_eq(leaf->format->release(image, 0), 0);
        cr_assert_eq(leaf->format->find_holes(image), 0);
        cr_assert_eq(leaf->format->move_begin(image, BLOCK, 0, &move), 1);
        cr_expect_lt(move.to, move.from);
        cr_assert_eq(leaf->format->move_end(image, &move, false), 0);
        cr_expect_eq(leaf->format->place(leaf, BLOCK), at);
        expect_value(&w, 1, 7);
        cr_assert_eq(leaf->format->find_holes(image), 0);
        cr_assert_eq(leaf->format->move_begin(image, BLOCK, 0, &again), 1);
        cr_expect_eq(again.to, move.to);
        cr_assert_eq(leaf->format->move_end(image, &again, false), 0);
        end(&w);
}

struct counting {
        uint64_t last, total;
        unsigned calls, stop_after;
};

static void count(void *opaque, uint64_t done, uint64_t total)
{
        struct counting *counting = opaque;

        cr_assert_geq(done, counting->last);
        cr_assert_leq(done, total);
        cr_assert(counting->total == 0 || counting->total == total);
        counting->last = done;
        counting->total = total;
        counting->calls++;
}

static bool is_enough(void *opaque)
{
        const struct counting *counting = opaque;

        return counting->calls >= counting->stop_after;
}

Test(compact, tells_how_far_it_is_and_stops_when_asked)
{
        struct counting counting = {.stop_after = UINT32_MAX};
        struct compact_watcher watcher = {
                .opaque = &counting, .progress = count, .cancelled = is_enough};
        struct compact_report report;
        struct error err = ERROR_INIT;
        struct world w;

        begin(&w, false);
        open_world(&w, true);
        for (uint32_t b = 0; b < BLOCKS; b++)
                put(&w, b, b % 4 ? 0 : 8);
        OK(compact_run(w.chain, &watcher, &report, &err));
        cr_expect_eq(counting.last, counting.total);
        counting = (struct counting){.stop_after = 1};
        cr_expect_eq(compact_run(w.chain, &watcher, &report, &err), -ECANCELED);
        for (uint32_t b = 0; b < BLOCKS; b++)
                expect_value(&w, b, b % 4 ? 0 : 8);
        close_world(&w);
        end(&w);
}

/* The daemon takes a snapshot in the middle: neither what is frozen nor the new leaf is touched. */
Test(compact, ends_when_another_image_becomes_the_leaf)
{
        struct compact *compact;
        struct error err = ERROR_INIT;
        struct image *child;
        struct world w;
        char path[96];
        uint64_t size;
        int r;

        begin(&w, false);
        snprintf(path, sizeof(path), "%.40s/child.vhd", w.directory);
        for (unsigned steps = 0; steps < 2u * BLOCKS; steps++) {
                open_world(&w, true);
                for (uint32_t b = 0; b < BLOCKS; b++)
                        put(&w, b, b % 4 ? 0 : 8);
                OK(compact_new(w.chain, BLOCK, &compact, &err));
                r = 1;
                for (unsigned i = 0; i < steps && r > 0; i++)
                        r = compact_step(compact, &err);
                cr_assert_geq(r, 0, "%s", err.message);
                OK(chain_child_create(w.chain, path, (const uint8_t[16]){2}, &err));
                OK(chain_child_open(w.chain, path, &child, &err));
                size = file_size(&w);
                chain_hold(w.chain);
                chain_push(w.chain, child);
                chain_release(w.chain);
                put(&w, 0, 8); /* as below: a compaction would free it */
                put(&w, 1, 3);
                cr_assert_eq(compact_step(compact, &err), -ESTALE);
                compact_free(compact);
                error_clear(&err);
                for (uint32_t b = 0; b < BLOCKS; b++)
                        expect_value(&w, b, b == 1 ? 3 : b % 4 ? 0 : 8);
                cr_assert_neq(chain_layer(w.chain, 1)->format->place(chain_layer(w.chain, 1), 0),
                        UINT64_MAX);
                cr_assert_eq(file_size_of(w.chain, 0), size);
                close_world(&w);
                cr_assert_eq(unlink(path), 0);
        }
        end(&w);
}

Test(compact, plans_without_a_write)
{
        struct compact_report plan, report;
        struct error err = ERROR_INIT;
        struct world w;

        begin(&w, false);
        open_world(&w, true);
        for (uint32_t b = 0; b < BLOCKS; b++)
                put(&w, b, b % 2 ? (int)b : 0);
        close_world(&w);
        open_world(&w, false);
        cr_expect_eq(compact_run(w.chain, NULL, &report, &err), -EROFS);
        OK(compact_plan(w.chain, NULL, &plan, &err));
        cr_expect_eq(plan.n_released, BLOCKS / 2);
        cr_expect_lt(plan.file_size_after, plan.file_size);
        close_world(&w);
        open_world(&w, true);
        compact_all(&w, &report);
        cr_expect_eq(plan.n_released, report.n_released);
        cr_expect_geq(plan.file_size_after + 2 * BLOCK, report.file_size_after);
        end(&w);
}

Test(compact, refuses_what_has_no_blocks)
{
        struct vhd_create_params params = {.type = VHD_TYPE_FIXED, .size = SIZE};
        struct compact_report report;
        struct error err = ERROR_INIT;
        struct world w;

        begin(&w, false);
        cr_assert_eq(unlink(w.root), 0);
        make(w.root, &params);
        open_world(&w, true);
        cr_expect_eq(compact_run(w.chain, NULL, &report, &err), -ENOTSUP);
        cr_expect(strstr(err.message, "no blocks that could be freed"), "%s", err.message);
        end(&w);
}

/* --- beside requests */

struct load {
        struct world *w;
        uint32_t first; /* blocks first, first + 2, ... are this thread's */
        uint8_t values[BLOCKS];
        _Atomic bool *stop;
        pthread_t id;
};

static void *write_and_read(void *opaque)
{
        struct load *load = opaque;
        uint64_t state = load->first + 1;

        for (unsigned i = 0; !atomic_load(load->stop) || i < 50; i++) {
                uint32_t b;

                state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
                b = load->first + 2 * (uint32_t)((state >> 33) % (BLOCKS / 2));
                expect_value(load->w, b, load->values[b]);
                load->values[b] = (state >> 50) % 3 ? 0 : (uint8_t)(state >> 40);
                put(load->w, b, load->values[b]);
        }
        return NULL;
}

Test(compact, goes_on_beside_readers_and_writers)
{
        _Atomic bool stop = false;
        struct load loads[2];
        struct compact_report report;
        struct world w;

        begin(&w, true);
        open_world(&w, true);
        for (uint32_t i = 0; i < 2; i++) {
                loads[i] = (struct load){.w = &w, .first = i, .stop = &stop};
                cr_assert_eq(pthread_create(&loads[i].id, NULL, write_and_read, &loads[i]), 0);
        }
        for (unsigned i = 0; i < 12; i++)
                compact_all(&w, &report);
        atomic_store(&stop, true);
        for (uint32_t i = 0; i < 2; i++)
                cr_assert_eq(pthread_join(loads[i].id, NULL), 0);
        compact_all(&w, &report);
        close_world(&w);
        open_world(&w, false);
        for (uint32_t b = 0; b < BLOCKS; b++)
                expect_value(&w, b, loads[b % 2].values[b]);
        close_world(&w);
        end(&w);
}
