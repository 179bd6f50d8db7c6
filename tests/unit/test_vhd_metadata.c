/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/vhd_make.h"

/* Reads the image under @flags; answers the result. */
static int read_make(
        const struct make *make, unsigned flags, struct vhd_metadata *ret, struct error *err)
{
        _cleanup_(file_closep) struct file *file = make_file(make);

        return vhd_metadata_read(file, flags, ret, err);
}

/* Refused without force and, unless @problem is 0, read with force as having this problem. */
#define EXPECT_REFUSED(make, code, words, problem)                                                 \
        do {                                                                                       \
                struct vhd_metadata m_;                                                            \
                struct error err_ = ERROR_INIT;                                                    \
                int r_ = read_make(make, 0, &m_, &err_);                                           \
                cr_expect(r_ == -(code), "%d: %s", r_, err_.message);                              \
                cr_expect(strstr(err_.message, words) != NULL, "%s", err_.message);                \
                cr_expect(strcmp(err_.file, "image.vhd") == 0);                                    \
                r_ = read_make(make, VHD_READ_FORCE, &m_, &err_);                                  \
                if (problem) {                                                                     \
                        cr_expect(r_ == 0, "%s", err_.message);                                    \
                        cr_expect((m_.problems & (problem)) == (problem));                         \
                } else {                                                                           \
                        cr_expect(r_ < 0);                                                         \
                }                                                                                  \
        } while (0)

Test(vhd_metadata, reads_a_fixed_disk_by_its_tail)
{
        _cleanup_make_ struct make make = make_fixed(65536);
        struct vhd_metadata m;

        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.footer.type == VHD_TYPE_FIXED);
        cr_expect(m.problems == 0);
        cr_expect(m.tail_offset == 65536 && m.tail_size == 512);
        cr_expect(m.n_blocks == 0);
}

/* A guest may write anything at its disk's head; the disk stays what its tail says. */
Test(vhd_metadata, head_of_a_fixed_disk_is_its_guests)
{
        _cleanup_make_ struct make make = make_fixed(65536);
        _cleanup_make_ struct make fake = make_sparse(4, 8, 4096, 2);
        struct vhd_metadata m;

        make_put(&make, 0, fake.bytes, 8192);
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.footer.type == VHD_TYPE_FIXED);
        cr_expect(m.problems == 0);

        /* With a tail that is damaged and still says "fixed", force believes the tail. */
        make.bytes[65536 + 200] ^= 1;
        EXPECT_REFUSED(&make, EUCLEAN, "footer checksum", VHD_PROBLEM_FOOTER_CHECKSUM);
        cr_assert(read_make(&make, VHD_READ_FORCE, &m, NULL) == 0);
        cr_expect(m.footer.type == VHD_TYPE_FIXED);

        /* Nor does a guest's "v_poison" count. */
        memcpy(make.bytes, "v_poison", 8);
        EXPECT_REFUSED(&make, EUCLEAN, "footer checksum", VHD_PROBLEM_FOOTER_CHECKSUM);
        memcpy(make.bytes, "conectix", 8);

        /* With no tail at all nobody believes the head unasked. */
        memset(make.bytes + 65536, 0, 512);
        EXPECT_REFUSED(&make, EUCLEAN, "the head claims a differencing disk", VHD_PROBLEM_NO_TAIL);
}

Test(vhd_metadata, refuses_a_fixed_disk_that_lost_its_data)
{
        _cleanup_make_ struct make make = make_fixed(65536);

        MAKE_CHANGE_FOOTER(&make, false, true, footer.current_size = be64_make(65536 + 512));
        EXPECT_REFUSED(&make, EUCLEAN, "only 65536 are in the file", 0);
}

Test(vhd_metadata, reads_a_differencing_disk)
{
        _cleanup_make_ struct make make = make_sparse(4, 8, 4096, 2);
        struct vhd_range ranges[VHD_MAX_RANGES];
        struct vhd_metadata m;

        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.problems == 0);
        cr_expect(m.n_blocks == 8);
        cr_expect(m.bitmap_size == 512);
        cr_expect(m.metadata_end == MAKE_LOCATOR_1 + 1024);
        cr_expect(m.tail_offset == make_tail(&make));
        cr_expect(strcmp(m.header.parent_name, "p.vhd") == 0);
        cr_expect(m.header.parent_id[3] == 0x77);
        cr_expect(m.batmap_offset == 0);
        cr_assert(vhd_metadata_ranges(&m, ranges) == 5);
        cr_expect(ranges[2].offset == MAKE_BAT && ranges[2].length == 32);
        cr_expect(ranges[3].offset == MAKE_LOCATOR_0 && ranges[3].length == 14);
}

/* Virtual PC before 2004 wrote 511 bytes. */
Test(vhd_metadata, accepts_a_footer_of_511_bytes)
{
        _cleanup_make_ struct make fixed = make_fixed(65536);
        _cleanup_make_ struct make sparse = make_sparse(3, 8, 4096, 2);
        struct vhd_metadata m;

        fixed.size--;
        cr_assert(read_make(&fixed, 0, &m, NULL) == 0);
        cr_expect(m.problems == VHD_PROBLEM_OLD_FOOTER);
        cr_expect(m.tail_size == 511 && m.tail_offset == 65536);
        sparse.size--;
        cr_assert(read_make(&sparse, 0, &m, NULL) == 0);
        cr_expect(m.problems == VHD_PROBLEM_OLD_FOOTER);
        sparse.size--;
        EXPECT_REFUSED(&sparse, EUCLEAN, "no VHD footer at the end", VHD_PROBLEM_NO_TAIL);
}

Test(vhd_metadata, tells_a_lost_tail_and_what_the_head_claims)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        struct error err = ERROR_INIT;
        struct vhd_metadata m;

        make.size -= 512;
        EXPECT_REFUSED(&make, EUCLEAN, "claims a dynamic disk of 32768 bytes", VHD_PROBLEM_NO_TAIL);
        cr_assert(read_make(&make, 0, &m, &err) < 0);
        cr_expect(strstr(err.hint, "--use head image.vhd") != NULL, "%s", err.hint);
        cr_expect(err.hyperv == 0xC03A0001);
        cr_assert(read_make(&make, VHD_READ_USE_HEAD, &m, NULL) == 0);
        cr_expect(m.tail_offset == make.size && m.tail_size == 0);

        /* What was cut in the middle of a sector ends at the next. */
        make.size -= 100;
        cr_assert(read_make(&make, VHD_READ_FORCE, &m, NULL) == 0);
        cr_expect(m.tail_offset == make.size + 100);
}

Test(vhd_metadata, knows_tapdisks_mark)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

        memset(make.bytes + make_tail(&make), 0xc7, 512);
        EXPECT_REFUSED(&make, EUCLEAN, "tapdisk", VHD_PROBLEM_NO_TAIL | VHD_PROBLEM_TAPDISK_OPEN);
}

Test(vhd_metadata, refuses_poison_at_either_end_even_by_force)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

        MAKE_CHANGE_FOOTER(&make, true, false, memcpy(footer.cookie, "v_poison", 8));
        EXPECT_REFUSED(&make, EUCLEAN, "v_poison", 0);
        MAKE_CHANGE_FOOTER(&make, false, true, memcpy(footer.cookie, "v_poison", 8));
        EXPECT_REFUSED(&make, EUCLEAN, "v_poison", 0);
        MAKE_CHANGE_FOOTER(&make, true, false, memcpy(footer.cookie, "conectix", 8));
        EXPECT_REFUSED(&make, EUCLEAN, "v_poison", 0);
}

/* Another program changed one copy and died: the tail counts, and nobody writes. */
Test(vhd_metadata, footers_that_differ_are_read_by_the_tail_and_read_only)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        struct vhd_metadata m;

        MAKE_CHANGE_FOOTER(&make, true, false, footer.current_size = be64_make(4096));
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.problems == VHD_PROBLEM_FOOTERS_DIFFER);
        cr_expect(m.footer.current_size == 32768);
        cr_expect(m.problems & VHD_PROBLEMS_READ_ONLY);
        cr_assert(read_make(&make, VHD_READ_USE_HEAD, &m, NULL) == 0);
        cr_expect(m.footer.current_size == 4096);

        memset(make.bytes, 0, 512);
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.problems == VHD_PROBLEM_NO_HEAD);
}

Test(vhd_metadata, both_checksums_wrong)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

        make.bytes[40] ^= 1;
        make.bytes[make_tail(&make) + 40] ^= 1;
        EXPECT_REFUSED(&make, EUCLEAN, "footer checksum is",
                VHD_PROBLEM_FOOTER_CHECKSUM | VHD_PROBLEM_NO_TAIL | VHD_PROBLEM_NO_HEAD);
        make.bytes[MAKE_HEADER + 900] ^= 1;
        EXPECT_REFUSED(&make, EUCLEAN, "footer checksum is", VHD_PROBLEM_HEADER_CHECKSUM);
}

Test(vhd_metadata, what_is_no_vhd_is_told_apart_from_a_damaged_one)
{
        _cleanup_make_ struct make make = {calloc(1, MAKE_MAX), 0};

        EXPECT_REFUSED(&make, ENOMEDIUM, "too short", 0);
        make.size = 8;
        EXPECT_REFUSED(&make, ENOMEDIUM, "too short", 0);
        make.size = 511;
        EXPECT_REFUSED(&make, ENOMEDIUM, "no VHD footer", 0);
        make.size = 8192;
        EXPECT_REFUSED(&make, ENOMEDIUM, "no VHD footer", 0);
}

/* A fixed disk's footer at the head is nobody's copy. */
Test(vhd_metadata, does_not_take_a_fixed_footer_from_the_head)
{
        _cleanup_make_ struct make make = make_fixed(65536);

        memcpy(make.bytes, make.bytes + 65536, 512);
        memset(make.bytes + 65536, 0, 512);
        EXPECT_REFUSED(&make, EUCLEAN, "no VHD footer at the end", 0);
}

/* Offsets that an enemy chose: every sum wraps somewhere for somebody. */
Test(vhd_metadata, refuses_structures_outside_the_file)
{
        static const uint64_t bad_headers[] = {
                0, 1, 256, 513, UINT64_MAX, UINT64_MAX - 511, UINT64_C(1) << 62, UINT64_C(1) << 63};
        static const uint64_t bad_tables[] = {
                0, 512, 1024, UINT64_MAX & ~UINT64_C(511), UINT64_C(1) << 62, UINT64_C(1) << 63};

        for (size_t i = 0; i < sizeof(bad_headers) / sizeof(bad_headers[0]); i++) {
                _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

                MAKE_CHANGE_FOOTER(
                        &make, true, true, footer.data_offset = be64_make(bad_headers[i]));
                EXPECT_REFUSED(&make, EUCLEAN, "dynamic header at offset", 0);
        }
        for (size_t i = 0; i < sizeof(bad_tables) / sizeof(bad_tables[0]); i++) {
                _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

                MAKE_CHANGE_HEADER(&make, header.table_offset = be64_make(bad_tables[i]));
                EXPECT_REFUSED(&make, EUCLEAN, "BAT ", 0);
        }
        {
                _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

                MAKE_CHANGE_HEADER(&make, header.table_offset = be64_make(make_tail(&make)));
                EXPECT_REFUSED(&make, EUCLEAN, "BAT of 8 entries", 0);
        }
        {
                _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);

                MAKE_CHANGE_HEADER(&make, header.max_table_entries = be32_make(4177920));
                EXPECT_REFUSED(&make, EUCLEAN, "BAT of 4177920 entries", 0);
        }
}

/* The size in blocks does not fit 32 bits: cut off, it would look like a small disk. */
Test(vhd_metadata, refuses_a_size_whose_blocks_wrap)
{
        _cleanup_make_ struct make make = make_sparse(3, 25, 4096, 1);

        MAKE_CHANGE_FOOTER(&make, true, true,
                footer.current_size = be64_make(((UINT64_C(1) << 32) + 25) * 4096));
        EXPECT_REFUSED(&make, EUCLEAN, "4294967321 blocks", 0);
}

Test(vhd_metadata, table_shorter_or_longer_than_the_disk)
{
        _cleanup_make_ struct make make = make_sparse(3, 8, 4096, 2);
        struct vhd_metadata m;

        MAKE_CHANGE_HEADER(&make, header.max_table_entries = be32_make(7));
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.problems == VHD_PROBLEM_BAT_SHORT);
        MAKE_CHANGE_HEADER(&make, header.max_table_entries = be32_make(0));
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.problems == VHD_PROBLEM_BAT_SHORT);
        MAKE_CHANGE_HEADER(&make, header.max_table_entries = be32_make(100));
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.problems == 0);
        cr_expect(m.n_blocks == 8);
}

Test(vhd_metadata, refuses_locators_that_cannot_be_right)
{
        static const struct {
                uint64_t offset;
                uint32_t length;
                const char *words;
        } bad[] = {
                {UINT64_MAX, 2, "outside the file"},
                {UINT64_MAX - 1, 4, "outside the file"},
                {UINT64_C(1) << 62, 2, "outside the file"},
                {2048, 65537, "65537 bytes long"},
                {2048, UINT32_MAX, "4294967295 bytes long"},
                {0, 100, "over the footer's copy"},
                {1000, 100, "over the dynamic header"},
                {1500, 100, "over the dynamic header"},
                {MAKE_BAT, 8, "over the BAT"},
        };

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                _cleanup_make_ struct make make = make_sparse(4, 8, 4096, 2);
                struct vhd_metadata m;

                MAKE_CHANGE_HEADER(&make, {
                        header.locators[0].data_offset = be64_make(bad[i].offset);
                        header.locators[0].data_length = be32_make(bad[i].length);
                });
                EXPECT_REFUSED(&make, EUCLEAN, bad[i].words, VHD_PROBLEM_BAD_LOCATOR);
                cr_assert(read_make(&make, VHD_READ_FORCE, &m, NULL) == 0);
                cr_expect(m.header.locators[0].data_length == 0, "nobody is to follow it");
                cr_expect(m.header.locators[1].data_length == 16);
        }
}

/* A slot's space is only believed inside the file: it decides where new blocks go. */
Test(vhd_metadata, space_of_a_locator_moves_the_end_of_metadata)
{
        _cleanup_make_ struct make make = make_sparse(4, 8, 4096, 2);
        struct vhd_metadata m;

        MAKE_CHANGE_HEADER(&make, header.locators[1].data_space = be32_make(8192));
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.metadata_end == MAKE_LOCATOR_1 + 8192);
        MAKE_CHANGE_HEADER(&make, header.locators[1].data_space = be32_make(UINT32_MAX));
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.metadata_end == MAKE_LOCATOR_0 + 1024 + 512);
}

static struct make make_tapdisk(void)
{
        struct make make = make_sparse(3, 8, 4096, 2);
        struct vhd_raw_batmap batmap = {.key_flag = 0};

        MAKE_CHANGE_FOOTER(&make, true, true, {
                memcpy(footer.creator_app, "tap\0", 4);
                footer.creator_version = be32_make(0x10003);
        });
        memcpy(batmap.cookie, "tdbatmap", 8);
        batmap.map_offset = be64_make(MAKE_BAT + 1024);
        batmap.map_sectors = be32_make(1);
        batmap.version = be32_make(0x10002);
        batmap.checksum = be32_make(UINT32_MAX);
        make_put(&make, MAKE_BAT + 512, &batmap, sizeof(batmap));
        return make;
}

Test(vhd_metadata, finds_tapdisks_batmap_and_key)
{
        _cleanup_make_ struct make make = make_tapdisk();
        struct vhd_metadata m;

        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.problems == 0);
        cr_expect(m.batmap_offset == MAKE_BAT + 512);
        cr_expect(m.metadata_end == MAKE_BAT + 1536);
        cr_expect(!m.encrypted);
        make.bytes[MAKE_BAT + 512 + 29] = 1;
        cr_assert(read_make(&make, 0, &m, NULL) == 0);
        cr_expect(m.encrypted);
}

/* We zero the map before the first write: one that points elsewhere would destroy what is there. */
Test(vhd_metadata, batmap_that_lies_makes_the_image_read_only)
{
        static const uint64_t bad[] = {0, 512, 1024, MAKE_BAT, MAKE_BAT + 512, MAKE_BAT + 1,
                UINT64_MAX - 511, UINT64_C(1) << 40};

        for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
                _cleanup_make_ struct make make = make_tapdisk();
                be64 offset = be64_make(bad[i]);
                struct vhd_metadata m;

                make_put(&make, MAKE_BAT + 512 + 8, &offset, 8);
                cr_assert(read_make(&make, 0, &m, NULL) == 0);
                cr_expect(m.problems == VHD_PROBLEM_BATMAP, "case %zu", i);
                cr_expect(m.batmap_offset == 0);
        }
        {
                _cleanup_make_ struct make make = make_tapdisk();
                struct vhd_metadata m;

                make.bytes[MAKE_BAT + 512] = 'T';
                cr_assert(read_make(&make, 0, &m, NULL) == 0);
                cr_expect(m.problems == VHD_PROBLEM_BATMAP);
        }
}

Test(vhd_metadata, refuses_tapdisk_0_1)
{
        _cleanup_make_ struct make make = make_tapdisk();

        MAKE_CHANGE_FOOTER(&make, true, true, footer.creator_version = be32_make(1));
        EXPECT_REFUSED(&make, ENOTSUP, "tapdisk 0.1", 0);
}

Test(vhd_locator, reads_texts_and_refuses_what_is_none)
{
        _cleanup_make_ struct make make = make_sparse(4, 8, 4096, 2);
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;
        struct vhd_metadata m;
        char text[64];

        MAKE_CHANGE_HEADER(&make, {
                memcpy(header.locators[2].code, "MacX", 4);
                header.locators[2].data_offset = be64_make(2600);
                header.locators[2].data_length = be32_make(9);
                memcpy(header.locators[3].code, "W2ru", 4);
                header.locators[3].data_offset = be64_make(2620);
                header.locators[3].data_length = be32_make(4);
                memcpy(header.locators[4].code, "Mac ", 4);
                header.locators[4].data_offset = be64_make(2620);
                header.locators[4].data_length = be32_make(4);
                memcpy(header.locators[5].code, "W2ku", 4);
                header.locators[5].data_offset = be64_make(2640);
                header.locators[5].data_length = be32_make(6);
        });
        make_put(&make, 2600, "file://p\0", 9);
        make_put(&make, 2620, "a\0\0\xd8", 4);  /* half a surrogate pair */
        make_put(&make, 2640, "a\0\0\0b\0", 6); /* a NUL inside */
        file = make_file(&make);
        cr_assert(vhd_metadata_read(file, 0, &m, NULL) == 0);
        cr_assert(vhd_locator_read(file, &m.header, 0, text, sizeof(text), &err) == 0);
        cr_expect(strcmp(text, ".\\p.vhd") == 0, "%s", text);
        cr_assert(vhd_locator_read(file, &m.header, 1, text, sizeof(text), &err) == 0);
        cr_expect(strcmp(text, "C:\\p.vhd") == 0, "%s", text);
        cr_assert(vhd_locator_read(file, &m.header, 2, text, sizeof(text), &err) == 0);
        cr_expect(strcmp(text, "file://p") == 0, "%s", text);
        cr_expect(vhd_locator_read(file, &m.header, 3, text, sizeof(text), &err) == -EUCLEAN);
        cr_expect(vhd_locator_read(file, &m.header, 4, text, sizeof(text), &err) == -ENOENT);
        cr_expect(vhd_locator_read(file, &m.header, 5, text, sizeof(text), &err) == -EUCLEAN);
        cr_expect(vhd_locator_read(file, &m.header, 7, text, sizeof(text), &err) == -ENOENT);
        cr_expect(vhd_locator_read(file, &m.header, 0, text, 5, &err) == -EUCLEAN);
}
