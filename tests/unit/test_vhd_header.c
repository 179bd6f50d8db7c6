/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/vhd_make.h"

Test(vhd_header, encodes_what_it_decoded_bit_for_bit)
{
        struct vhd_raw_header raw, again;
        struct vhd_header header;
        uint32_t problems = 0;

        make_header(&raw, 32, 0x200000);
        memset(raw.reserved_2, 0x5a, sizeof(raw.reserved_2));
        raw.data_offset = be64_make(12345);
        memcpy(raw.parent_name, "\0a\0\xe4\0\0\0garbage", 14);
        memcpy(raw.locators[6].code, "W2ru", 4);
        raw.locators[6].data_space = be32_make(2); /* sectors */
        raw.locators[6].data_length = be32_make(20);
        raw.locators[6].data_offset = be64_make(2048);
        raw.locators[6].reserved = be32_make(9);
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        cr_assert(vhd_header_decode(&raw, 0, &header, &problems, NULL) == 0);
        cr_expect(problems == 0);
        cr_expect(header.table_offset == 1536);
        cr_expect(header.max_table_entries == 32);
        cr_expect(header.block_size == 0x200000);
        cr_expect(strcmp(header.parent_name, "a\xc3\xa4") == 0);
        cr_expect(strcmp(header.locators[6].code, "W2ru") == 0);
        cr_expect(header.locators[6].data_space == 1024);
        cr_expect(header.locators[6].data_length == 20);
        vhd_header_encode(&header, &again);
        cr_expect(memcmp(&raw, &again, sizeof(raw)) == 0);

        strcpy(header.parent_name, "b");
        header.locators[6].data_length = 8;
        vhd_header_encode(&header, &again);
        cr_expect(memcmp(again.parent_name, "\0b\0\0\0\0\0", 8) == 0);
        cr_expect(be32_get(again.locators[6].data_length) == 8);
        cr_expect(be32_get(again.locators[6].data_space) == 2);
        cr_expect(be32_get(again.checksum) == vhd_header_checksum(&again));
}

/* A name of 256 units has no end mark; one with half a surrogate pair is no name. */
Test(vhd_header, parent_name_at_its_limits)
{
        struct vhd_raw_header raw;
        struct vhd_header header;
        uint32_t problems = 0;

        make_header(&raw, 1, 4096);
        for (int i = 0; i < 512; i += 2) {
                raw.parent_name[i] = 0x65;
                raw.parent_name[i + 1] = 0xe5;
        }
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        cr_assert(vhd_header_decode(&raw, 0, &header, &problems, NULL) == 0);
        cr_expect(strlen(header.parent_name) == 768);
        raw.parent_name[510] = 0xd8;
        raw.checksum = be32_make(vhd_header_checksum(&raw));
        cr_assert(vhd_header_decode(&raw, 0, &header, &problems, NULL) == 0);
        cr_expect(header.parent_name[0] == '\0');
}

/* Each of these passes the checksum; a division by such a block size ended QEMU once. */
Test(vhd_header, refuses_values_that_make_no_sense)
{
        struct vhd_header header;
        uint32_t problems = 0;
        struct error err = ERROR_INIT;
#define REFUSED(statement, code, words)                                                            \
        do {                                                                                       \
                struct vhd_raw_header raw;                                                         \
                make_header(&raw, 32, 0x200000);                                                   \
                statement;                                                                         \
                raw.checksum = be32_make(vhd_header_checksum(&raw));                               \
                cr_expect(vhd_header_decode(&raw, 0, &header, &problems, &err) == -(code));        \
                cr_expect(strstr(err.message, words) != NULL, "%s", err.message);                  \
        } while (0)

        REFUSED(raw.cookie[7] = 'E', EUCLEAN, "no dynamic header");
        REFUSED(raw.header_version = be32_make(0x30001), ENOTSUP, "version 3.1");
        REFUSED(raw.block_size = be32_make(0), EUCLEAN, "block size of 0 bytes");
        REFUSED(raw.block_size = be32_make(1), EUCLEAN, "block size of 1 bytes");
        REFUSED(raw.block_size = be32_make(256), EUCLEAN, "block size of 256 bytes");
        REFUSED(raw.block_size = be32_make(3u << 20), EUCLEAN, "block size of 3145728 bytes");
        REFUSED(raw.block_size = be32_make(512u << 20), EUCLEAN, "block size of 536870912");
        REFUSED(raw.block_size = be32_make(1u << 31), EUCLEAN, "block size of 2147483648");
        REFUSED(raw.max_table_entries = be32_make(4177921), EUCLEAN, "4177921 blocks");
        REFUSED(raw.max_table_entries = be32_make(UINT32_MAX), EUCLEAN, "4294967295 blocks");
        REFUSED(raw.table_offset = be64_make(1537), EUCLEAN, "offset 1537");
}

Test(vhd_header, wrong_checksum_names_both_sums)
{
        struct vhd_raw_header raw;
        struct vhd_header header;
        uint32_t problems = 0;
        struct error err = ERROR_INIT;

        make_header(&raw, 32, 0x200000);
        raw.reserved_2[0] = 1;
        cr_assert(vhd_header_decode(&raw, 0, &header, &problems, &err) == -EUCLEAN);
        cr_expect(strstr(err.message, "fffff457") && strstr(err.message, "fffff456"), "%s",
                err.message);
        cr_assert(vhd_header_decode(&raw, VHD_READ_FORCE, &header, &problems, NULL) == 0);
        cr_expect(problems == VHD_PROBLEM_HEADER_CHECKSUM);
}

Test(vhd_header, bitmap_is_whole_sectors)
{
        cr_expect(vhd_bitmap_size(512) == 512);
        cr_expect(vhd_bitmap_size(4096) == 512);
        cr_expect(vhd_bitmap_size(512u << 10) == 512);
        cr_expect(vhd_bitmap_size(2u << 20) == 512);
        cr_expect(vhd_bitmap_size(4u << 20) == 1024);
        cr_expect(vhd_bitmap_size(256u << 20) == 65536);
}
