/* SPDX-License-Identifier: Apache-2.0 */
/* What we write, others must read: the values of the checklist, in the places where Windows puts
 * them, and whole before anybody is told that the file exists. */
#include <fcntl.h>

#include "tests/unit/vhd_make.h"

#include "base/arith.h"
#include "base/uuid.h"
#include "formats/vhd/create.h"

static struct file *empty_file(void)
{
        struct make nothing = {NULL, 0};

        return make_file(&nothing);
}

static struct vhd_metadata read_back(struct file *file)
{
        struct error err = ERROR_INIT;
        struct vhd_metadata m;

        cr_assert(vhd_metadata_read(file, 0, &m, &err) == 0, "%s", err.message);
        cr_assert(m.problems == 0);
        return m;
}

Test(vhd_create, fixed_takes_its_space_unless_sparse)
{
        for (int sparse = 0; sparse < 2; sparse++) {
                struct vhd_create_params params = {
                        .type = VHD_TYPE_FIXED, .size = 3 * MIB, .sparse = sparse};
                _cleanup_(file_closep) struct file *file = empty_file();
                struct vhd_metadata m;
                struct file_stat st;

                cr_assert(vhd_create(file, &params, NULL) == 0);
                m = read_back(file);
                cr_expect(m.file_size == 3 * MIB + 512);
                cr_expect(m.footer.type == VHD_TYPE_FIXED);
                cr_expect(m.footer.data_offset == UINT64_MAX);
                cr_expect(m.footer.features == 2);
                cr_expect(m.footer.cylinders == 90);
                cr_expect(strcmp(m.footer.creator_app, "win ") == 0);
                cr_expect(!uuid_is_zero(m.footer.unique_id));
                cr_assert(file_stat_get(file, &st) == 0);
                if (sparse)
                        cr_expect(st.allocated < 1 * MIB);
                else
                        cr_expect(st.allocated >= 3 * MIB);
        }
}

Test(vhd_create, dynamic_has_every_structure_in_its_place)
{
        struct vhd_create_params params = {.type = VHD_TYPE_DYNAMIC,
                .size = 2 * GIB,
                .now = VHD_EPOCH + 77,
                .unique_id = {1, 2, 3}};
        _cleanup_(file_closep) struct file *file = empty_file();
        uint8_t bytes[512], head[512], tail[512];
        struct vhd_metadata m;

        cr_assert(vhd_create(file, &params, NULL) == 0);
        m = read_back(file);
        cr_expect(m.footer.type == VHD_TYPE_DYNAMIC);
        cr_expect(m.footer.current_size == 2 * GIB && m.footer.original_size == 2 * GIB);
        cr_expect(m.footer.timestamp == 77);
        cr_expect(m.footer.unique_id[2] == 3);
        cr_expect(m.header.table_offset == 1536);
        cr_expect(m.header.max_table_entries == 1024);
        cr_expect(m.header.block_size == 2 * MIB);
        cr_expect(be64_get(m.header.raw.data_offset) == UINT64_MAX);
        cr_expect(m.file_size == 8192, "a footer in the last sector of its page");
        cr_assert(file_read_exact(file, head, 512, 0) == 0);
        cr_assert(file_read_exact(file, tail, 512, 8192 - 512) == 0);
        cr_expect(memcmp(head, tail, 512) == 0);
        for (uint64_t at = 1536; at < 1536 + 4096; at += 512) {
                cr_assert(file_read_exact(file, bytes, 512, at) == 0);
                for (int i = 0; i < 512; i++)
                        cr_assert(bytes[i] == 0xff);
        }
}

Test(vhd_create, differencing_names_its_parent_three_ways)
{
        struct vhd_create_params params = {.type = VHD_TYPE_DIFFERENCING,
                .size = 10 * MIB,
                .block_size = 512 * KIB,
                .parent_id = {9, 9},
                .parent_timestamp = 1234,
                .parent_name = "b\xc3\xa4se.vhd",
                .parent_relative = "../Virtual Hard Disks/b\xc3\xa4se.vhd",
                .parent_absolute = "/srv/b\xc3\xa4se.vhd"};
        _cleanup_(file_closep) struct file *file = empty_file();
        struct vhd_metadata m;
        char text[128];

        cr_assert(vhd_create(file, &params, NULL) == 0);
        m = read_back(file);
        cr_expect(m.header.max_table_entries == 20);
        cr_expect(m.header.parent_id[0] == 9);
        cr_expect(m.header.parent_timestamp == 1234);
        cr_expect(strcmp(m.header.parent_name, "b\xc3\xa4se.vhd") == 0);
        cr_expect(strcmp(m.header.locators[0].code, "W2ru") == 0);
        cr_expect(m.header.locators[0].data_space == 1024);
        cr_assert(vhd_locator_read(file, &m.header, 0, text, sizeof(text), NULL) == 0);
        cr_expect(strcmp(text, ".\\..\\Virtual Hard Disks\\b\xc3\xa4se.vhd") == 0, "%s", text);
        cr_expect(strcmp(m.header.locators[1].code, "W2ku") == 0);
        cr_assert(vhd_locator_read(file, &m.header, 1, text, sizeof(text), NULL) == 0);
        cr_expect(strcmp(text, "\\srv\\b\xc3\xa4se.vhd") == 0, "%s", text);
        cr_expect(m.metadata_end == 2048 + 2048);
        cr_expect(m.file_size % 4096 == 0);
}

/* A path longer than a slot's 1024 bytes gets a larger slot; one longer than anything is refused. */
Test(vhd_create, long_paths_get_room)
{
        _cleanup_(file_closep) struct file *file = empty_file();
        _cleanup_free_ char *path = malloc(70000);
        struct vhd_create_params params = {
                .type = VHD_TYPE_DIFFERENCING, .size = MIB, .parent_name = "p"};
        struct error err = ERROR_INIT;
        struct vhd_metadata m;

        memset(path, 'a', 70000);
        path[700] = '\0';
        params.parent_relative = path;
        cr_assert(vhd_create(file, &params, NULL) == 0);
        m = read_back(file);
        cr_expect(m.header.locators[0].data_length == 1404);
        cr_expect(m.header.locators[0].data_space == 1536);

        path[700] = 'a';
        path[69999] = '\0';
        cr_expect(vhd_create(file, &params, &err) == -EINVAL);
        cr_expect(strstr(err.message, "too long") != NULL);
        path[300] = '\0';
        params.parent_name = path;
        cr_expect(vhd_create(file, &params, &err) == -EINVAL);
        cr_expect(strstr(err.message, "256 UTF-16 units") != NULL, "%.100s", err.message);
        params.parent_name = "\xff";
        cr_expect(vhd_create(file, &params, &err) == -EINVAL);
}

/* 512 bytes more than a BAT can address are refused before anything is written. */
Test(vhd_create, refuses_sizes_that_cannot_be)
{
        static const struct {
                enum vhd_type type;
                uint64_t size;
                uint32_t block_size;
                const char *words;
        } bad[] = {
                {VHD_TYPE_FIXED, 2040 * GIB + 512, 0, "2190433320960 (2040 GiB) is the most"},
                {VHD_TYPE_DYNAMIC, 2040 * GIB + 512, 0, "2190433320960 (2040 GiB) is the most"},
                {VHD_TYPE_DYNAMIC, 2032 * GIB + 512, 512 << 10, "2181843386368 (2032 GiB)"},
                {VHD_TYPE_DYNAMIC, 0, 0, "0 bytes"},
                {VHD_TYPE_FIXED, 513, 0, "513 bytes"},
                {VHD_TYPE_DYNAMIC, MIB, 3 << 20, "block size of 3145728"},
                {VHD_TYPE_DYNAMIC, MIB, 256, "block size of 256"},
                {VHD_TYPE_NONE, MIB, 0, "type 0"},
        };

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                _cleanup_(file_closep) struct file *file = empty_file();
                struct vhd_create_params params = {
                        .type = bad[i].type, .size = bad[i].size, .block_size = bad[i].block_size};
                struct error err = ERROR_INIT;
                uint64_t size;

                cr_expect(vhd_create(file, &params, &err) == -EINVAL, "case %zu", i);
                cr_expect(strstr(err.message, bad[i].words) != NULL, "%s", err.message);
                cr_assert(file_size_get(file, &size) == 0);
                cr_expect(size == 0);
        }
}

/* The largest disk of every block size: its last block still has a sector number. */
Test(vhd_create, largest_disks_fit_32_bit_sectors)
{
        for (uint32_t block = 512; block <= VHD_MAX_BLOCK_SIZE && block; block *= 2) {
                uint64_t most = vhd_max_size(block);
                uint64_t stride = round_up_to(block + vhd_bitmap_size(block), 4096);
                uint64_t n = most / block;

                cr_expect(most >= GIB);
                cr_expect(n <= VHD_MAX_BLOCKS);
                cr_expect((1536 + n * 4 + 8192 + n * stride) / 512 < 0xfffffffe, "%u", block);
        }
        cr_expect(vhd_max_size(2 << 20) == 2040 * GIB);
        cr_expect(vhd_max_size(512 << 10) == 2032 * GIB);
}

/* A full disk must be told at once, not at the last footer. */
Test(vhd_create, tells_a_write_that_fails)
{
        struct vhd_create_params params = {.type = VHD_TYPE_DYNAMIC, .size = MIB};
        struct error err = ERROR_INIT;
        struct file *file = NULL;
        int r;

        if (file_open(host_fs(), "/dev/full", FILE_WRITE, &file, NULL) == 0) {
                r = vhd_create(file, &params, &err);
                file_close(file);
                cr_expect(r < 0);
                return;
        }
        cr_assert(file_from_fd(memfd_create("sealed", MFD_ALLOW_SEALING | MFD_CLOEXEC), "sealed",
                          FILE_WRITE, &file, NULL) == 0);
        cr_assert(fcntl(file->fd, F_ADD_SEALS, F_SEAL_GROW) == 0);
        r = vhd_create(file, &params, &err);
        cr_expect(r == -EPERM);
        cr_expect(strstr(err.message, "cannot write the footer's copy at offset 0") != NULL, "%s",
                err.message);
        cr_expect(strcmp(err.file, "sealed") == 0);
        file_close(file);
}
