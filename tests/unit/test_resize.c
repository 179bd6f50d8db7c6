/* SPDX-License-Identifier: Apache-2.0 */
/* Another size for a disk. What could go wrong in the world: Hyper-V finds a BAT, a geometry or a size
 * that do not fit together; old bytes show up at the new end; a child loses its parent; data is cut off.
 * (Cuts and deaths: tests/crash/resizes.c.) */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "formats/vhd/bat.h"
#include "formats/vhd/create.h"
#include "merge/resize.h"

#define OK(call) cr_assert((call) == 0, "%s", err.message)

struct world {
        char directory[64], root[96], leaf[96];
};

static void make(const char *path, const struct vhd_create_params *params)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;

        OK(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE, &file, &err));
        OK(vhd_create(file, params, &err));
}

static void begin(struct world *w, enum vhd_type type, uint64_t size, uint32_t block_size)
{
        struct vhd_create_params params = {
                .type = type, .size = size, .block_size = block_size, .unique_id = {1}};

        *w = (struct world){.directory = "/tmp/vhdd-test-XXXXXX"};
        cr_assert(mkdtemp(w->directory) != NULL);
        snprintf(w->root, sizeof(w->root), "%.40s/root.vhd", w->directory);
        snprintf(w->leaf, sizeof(w->leaf), "%.40s/leaf.vhd", w->directory);
        make(w->root, &params);
}

static void add_child(struct world *w, uint64_t size, uint32_t block_size)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DIFFERENCING,
                .size = size,
                .block_size = block_size,
                .parent_id = {1},
                .parent_name = "root.vhd",
                .parent_relative = "./root.vhd",
                .parent_absolute = w->root,
        };

        make(w->leaf, &params);
}

static void end(struct world *w)
{
        unlink(w->root);
        unlink(w->leaf);
        cr_assert_eq(rmdir(w->directory), 0);
}

static int try_resize(const char *path, const struct resize_params *params,
        struct resize_report *ret, struct error *err)
{
        struct chain_options options = {0};

        return resize(path, &options, params, ret, err);
}

static void resize_to(const char *path, uint64_t size, struct resize_report *ret)
{
        struct resize_params params = {.size = size, .shrink = true};
        struct error err = ERROR_INIT;

        OK(try_resize(path, &params, ret, &err));
        cr_assert_eq(ret->size_after, size);
}

static void read_metadata(const char *path, struct vhd_metadata *ret)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;

        OK(file_open(host_fs(), path, FILE_READ, &file, &err));
        OK(vhd_metadata_read(file, 0, ret, &err));
}

static void write_at(const char *path, uint64_t offset, int value, size_t length)
{
        struct chain_options options = {.writable = true};
        _cleanup_free_ uint8_t *bytes = malloc(length);
        struct chain *chain = NULL;
        struct error err = ERROR_INIT;

        memset(bytes, value, length);
        OK(chain_open(path, &options, &chain, &err));
        cr_assert_eq(chain_write(chain, bytes, length, offset, 0), 0);
        OK(chain_close(chain, &err));
}

static uint8_t byte_at(const char *path, uint64_t offset)
{
        struct chain_options options = {0};
        struct chain *chain = NULL;
        struct error err = ERROR_INIT;
        uint8_t byte = 0;

        OK(chain_open(path, &options, &chain, &err));
        cr_assert_eq(chain_read(chain, &byte, 1, offset, 0), 0);
        chain_abandon(chain);
        return byte;
}

TestSuite(resize, .timeout = 30);

Test(resize, sizes_geometry_and_table_fit_together)
{
        struct resize_report report;
        struct vhd_geometry chs = vhd_geometry_of(300 * GIB);
        struct vhd_metadata m;
        struct world w;

        begin(&w, VHD_TYPE_DYNAMIC, 100 * MIB, 0);
        write_at(w.root, 0, 1, 512);
        write_at(w.root, 99 * MIB, 2, 512);
        resize_to(w.root, 300 * GIB, &report);
        cr_expect_eq(report.n_moved, 1);
        read_metadata(w.root, &m);
        cr_expect_eq(m.footer.current_size, 300 * GIB);
        cr_expect_eq(m.footer.original_size, 100 * MIB);
        cr_expect_eq(m.header.max_table_entries, 150 * KIB);
        cr_expect_eq(m.footer.cylinders, chs.cylinders);
        cr_expect_eq(m.footer.heads, chs.heads);
        cr_expect_eq(m.footer.sectors_per_track, chs.sectors_per_track);
        cr_expect_eq(m.problems, 0);
        cr_expect_eq(byte_at(w.root, 0), 1);
        cr_expect_eq(byte_at(w.root, 99 * MIB), 2);
        cr_expect_eq(byte_at(w.root, 300 * GIB - 1), 0);
        resize_to(w.root, 100 * MIB, &report);
        read_metadata(w.root, &m);
        cr_expect_eq(m.header.max_table_entries, 50);
        cr_expect_eq(byte_at(w.root, 99 * MIB), 2);
        end(&w);
}

Test(resize, exact_limits)
{
        struct resize_params over = {.size = VHD_MAX_SIZE + 512};
        struct resize_params over_small = {.size = 2032 * GIB + 512};
        struct resize_params odd = {.size = 1000};
        struct resize_report report;
        struct error err = ERROR_INIT;
        struct world w, small;

        begin(&w, VHD_TYPE_DYNAMIC, 1 * MIB, 0);
        begin(&small, VHD_TYPE_DYNAMIC, 1 * MIB, 512 * 1024);
        cr_expect_eq(try_resize(w.root, &odd, &report, &err), -EINVAL);
        cr_expect_eq(try_resize(w.root, &over, &report, &err), -EINVAL);
        cr_expect(strstr(err.message, "2040 GiB"), "%s", err.message);
        cr_expect_eq(try_resize(small.root, &over_small, &report, &err), -EINVAL);
        cr_expect(strstr(err.message, "2032 GiB"), "%s", err.message);
        resize_to(w.root, VHD_MAX_SIZE, &report);
        resize_to(small.root, 2032 * GIB, &report);
        write_at(small.root, 2032 * GIB - 512, 3, 512);
        cr_expect_eq(byte_at(small.root, 2032 * GIB - 1), 3);
        end(&w);
        end(&small);
}

Test(resize, a_tail_with_data_stays)
{
        static const enum vhd_type types[] = {VHD_TYPE_DYNAMIC, VHD_TYPE_FIXED};

        for (unsigned i = 0; i < 2; i++) {
                struct resize_params params = {.size = 1 * MIB};
                struct resize_report report;
                struct error err = ERROR_INIT;
                struct world w;

                begin(&w, types[i], 3 * MIB, types[i] == VHD_TYPE_FIXED ? 0 : 4096);
                write_at(w.root, 2 * MIB, 0, 4096);
                write_at(w.root, 2 * MIB + 1536, 4, 512);
                cr_expect_eq(try_resize(w.root, &params, &report, &err), -EINVAL);
                params.shrink = true;
                cr_expect_eq(try_resize(w.root, &params, &report, &err), -ENOTEMPTY);
                cr_expect_eq(err.offset, 2 * MIB + 1536);
                params.size = 2 * MIB + 1536 + 512;
                OK(try_resize(w.root, &params, &report, &err));
                cr_expect_eq(byte_at(w.root, 2 * MIB + 2047), 4);
                end(&w);
        }
}

/* What another program left in the last block behind the end of the disk was on no disk. */
Test(resize, old_bytes_behind_the_end_do_not_show)
{
        struct resize_report report;
        struct world w;

        begin(&w, VHD_TYPE_DYNAMIC, 64 * KIB, 32 * 1024);
        write_at(w.root, 33 * KIB, 9, 31 * 1024);
        {
                struct vhd_metadata m;
                struct vhd_raw_footer footer;
                _cleanup_(file_closep) struct file *file = NULL;
                struct error err = ERROR_INIT;

                OK(file_open(host_fs(), w.root, FILE_WRITE, &file, &err));
                OK(vhd_metadata_read(file, 0, &m, &err));
                m.footer.current_size = 40 * KIB; /* cut by somebody who does not look */
                vhd_footer_encode(&m.footer, &footer);
                OK(file_write(file, &footer, 512, 0, 0));
                OK(file_write(file, &footer, 512, m.tail_offset, 0));
        }
        resize_to(w.root, 64 * KIB, &report);
        cr_expect_eq(byte_at(w.root, 40 * KIB - 1), 9);
        cr_expect_eq(byte_at(w.root, 40 * KIB), 0);
        cr_expect_eq(byte_at(w.root, 64 * KIB - 1), 0);
        end(&w);
}

Test(resize, a_child_keeps_its_parent_and_stays_no_larger)
{
        struct resize_params params = {.size = 300 * MIB};
        struct resize_report report;
        struct error err = ERROR_INIT;
        struct world w;
        struct vhd_metadata m;

        begin(&w, VHD_TYPE_DYNAMIC, 200 * MIB, 0);
        add_child(&w, 200 * MIB, 0);
        write_at(w.root, 4 * MIB, 5, 512);
        write_at(w.leaf, 150 * MIB, 6, 512);
        cr_expect_eq(try_resize(w.leaf, &params, &report, &err), -EINVAL);
        cr_expect(strstr(err.message, "larger than its parent"), "%s", err.message);
        params.force = true;
        params.size = 1000 * GIB; /* the BAT grows over the locators */
        OK(try_resize(w.leaf, &params, &report, &err));
        cr_expect_eq(report.n_moved, 1);
        cr_expect_eq(byte_at(w.leaf, 4 * MIB), 5);
        cr_expect_eq(byte_at(w.leaf, 150 * MIB), 6);
        cr_expect_eq(byte_at(w.leaf, 1000 * GIB - 1), 0);
        read_metadata(w.leaf, &m);
        cr_expect_eq(m.problems, 0);
        cr_expect_gt(m.header.locators[0].data_offset,
                m.header.table_offset + m.header.max_table_entries * 4 - 1);
        end(&w);
}

Test(resize, a_dry_run_writes_nothing)
{
        struct resize_params params = {.add = 1 * TIB, .dry_run = true};
        struct resize_report report;
        struct error err = ERROR_INIT;
        struct vhd_metadata m;
        struct world w;

        begin(&w, VHD_TYPE_DYNAMIC, 200 * MIB, 0);
        write_at(w.root, 0, 5, 512);
        OK(try_resize(w.root, &params, &report, &err));
        cr_expect_eq(report.n_moved, 1);
        cr_expect_eq(report.size_after, 1 * TIB + 200 * MIB);
        read_metadata(w.root, &m);
        cr_expect_eq(m.footer.current_size, 200 * MIB);
        end(&w);
}
