/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdio.h>

#include "tests/unit/vhd_make.h"

static struct vhd_raw_footer footer_of(uint32_t type)
{
        struct vhd_raw_footer raw;

        make_footer(&raw, type, 67108864);
        return raw;
}

/* Worked out by hand from the specification's words, not by this code. */
Test(vhd_footer, checksum_of_known_bytes)
{
        struct vhd_raw_footer fixed = footer_of(2), dynamic = footer_of(3);
        struct vhd_raw_header header;

        cr_expect(vhd_footer_checksum(&fixed) == 0xFFFFF028);
        cr_expect(vhd_footer_checksum(&dynamic) == 0xFFFFF81D);
        make_header(&header, 32, 0x200000);
        cr_expect(vhd_header_checksum(&header) == 0xFFFFF457);
}

Test(vhd_footer, decodes_every_field)
{
        struct vhd_raw_footer raw = footer_of(3);
        struct vhd_footer footer;
        uint32_t problems = 0;

        cr_assert(vhd_footer_decode(&raw, 0, &footer, &problems, NULL) == 0);
        cr_expect(problems == 0);
        cr_expect(footer.features == 2);
        cr_expect(footer.data_offset == 512);
        cr_expect(strcmp(footer.creator_app, "test") == 0);
        cr_expect(footer.creator_version == 0x10000);
        cr_expect(strcmp(footer.creator_os, "Wi2k") == 0);
        cr_expect(footer.original_size == 67108864);
        cr_expect(footer.current_size == 67108864);
        cr_expect(footer.cylinders == 963 && footer.heads == 8);
        cr_expect(footer.sectors_per_track == 17);
        cr_expect(footer.type == VHD_TYPE_DYNAMIC);
        cr_expect(footer.unique_id[15] == 15);
        cr_expect(!footer.saved_state && !footer.hidden);
}

/* Reserved bytes belong to other programs: a rewrite keeps them. */
Test(vhd_footer, encodes_what_it_decoded_bit_for_bit)
{
        struct vhd_raw_footer raw = footer_of(4), again;
        struct vhd_footer footer;
        uint32_t problems = 0;

        for (size_t i = 0; i < sizeof(raw.reserved); i++)
                raw.reserved[i] = (uint8_t)(i * 7);
        raw.hidden = 1;
        raw.saved_state = 3;
        raw.checksum = be32_make(vhd_footer_checksum(&raw));
        cr_assert(vhd_footer_decode(&raw, 0, &footer, &problems, NULL) == 0);
        cr_expect(problems == VHD_PROBLEM_SAVED_STATE);
        cr_expect(footer.hidden);
        vhd_footer_encode(&footer, &again);
        cr_expect(memcmp(&raw, &again, sizeof(raw)) == 0);

        footer.hidden = false;
        footer.current_size = 4096;
        vhd_footer_encode(&footer, &again);
        cr_expect(again.hidden == 0);
        cr_expect(be64_get(again.current_size) == 4096);
        cr_expect(memcmp(again.reserved, raw.reserved, sizeof(raw.reserved)) == 0);
        cr_expect(be32_get(again.checksum) == vhd_footer_checksum(&again));
}

/* A torn or edited footer is not believed; with force it is, and says so. */
Test(vhd_footer, wrong_checksum_names_both_sums)
{
        struct vhd_raw_footer raw = footer_of(2);
        struct error err = ERROR_INIT;
        struct vhd_footer footer;
        uint32_t problems = 0;

        raw.reserved[100] ^= 0x10;
        cr_assert(vhd_footer_decode(&raw, 0, &footer, &problems, &err) == -EUCLEAN);
        cr_expect(strstr(err.message, "fffff028") && strstr(err.message, "fffff018"), "%s",
                err.message);
        cr_expect(err.hyperv == 0xC03A0002);
        cr_expect(problems == 0);
        cr_assert(vhd_footer_decode(&raw, VHD_READ_FORCE, &footer, &problems, NULL) == 0);
        cr_expect(problems == VHD_PROBLEM_FOOTER_CHECKSUM);
}

/* Early tapdisk set `hidden` and forgot the sum. Nothing else may hide behind that excuse. */
Test(vhd_footer, accepts_a_sum_from_before_hidden_was_set)
{
        struct vhd_raw_footer raw = footer_of(3);
        struct vhd_footer footer;
        uint32_t problems = 0;

        raw.hidden = 1;
        cr_assert(vhd_footer_decode(&raw, 0, &footer, &problems, NULL) == 0);
        cr_expect(problems == VHD_PROBLEM_HIDDEN_CHECKSUM);
        cr_expect(footer.hidden);

        raw.reserved[0] = 1;
        cr_expect(vhd_footer_decode(&raw, 0, &footer, &problems, NULL) == -EUCLEAN);
}

/* Each of these passes the checksum and must still be refused. */
Test(vhd_footer, refuses_values_that_make_no_sense)
{
        struct vhd_footer footer;
        uint32_t problems = 0;
        struct error err = ERROR_INIT;
#define REFUSED(statement, code, words)                                                            \
        do {                                                                                       \
                struct vhd_raw_footer raw = footer_of(3);                                          \
                statement;                                                                         \
                raw.checksum = be32_make(vhd_footer_checksum(&raw));                               \
                cr_expect(vhd_footer_decode(&raw, 0, &footer, &problems, &err) == -(code));        \
                cr_expect(strstr(err.message, words) != NULL, "%s", err.message);                  \
        } while (0)

        REFUSED(raw.cookie[0] = 'C', ENOMEDIUM, "no VHD footer");
        REFUSED(memcpy(raw.cookie, "v_poison", 8), EUCLEAN, "v_poison");
        cr_expect(strstr(err.hint, "vhd-util revert") != NULL);
        REFUSED(raw.format_version = be32_make(0x20000), ENOTSUP, "version 2.0");
        REFUSED(raw.type = be32_make(0), ENOTSUP, "type 0");
        REFUSED(raw.type = be32_make(1), ENOTSUP, "type 1");
        REFUSED(raw.type = be32_make(5), ENOTSUP, "type 5");
        REFUSED(raw.type = be32_make(UINT32_MAX), ENOTSUP, "type 4294967295");
        REFUSED(raw.current_size = be64_make(0), EUCLEAN, "size of 0 bytes");
        REFUSED(raw.current_size = be64_make(513), EUCLEAN, "size of 513 bytes");
        REFUSED(raw.current_size = be64_make(UINT64_C(1) << 63), EUCLEAN, "size of");
}

/* The real thing: a footer that Windows 10 wrote. */
Test(vhd_footer, reads_a_footer_of_windows_10)
{
        const char *shared = getenv("VHDD_SHARED");
        const char *source = getenv("VHDD_SOURCE");
        struct vhd_raw_footer raw, again;
        struct vhd_footer footer;
        uint32_t problems = 0;
        char path[4096];
        int fd;

        if (shared)
                snprintf(path, sizeof(path), "%s/images/vectors/footer.bin", shared);
        else
                snprintf(path, sizeof(path), "%s/../shared/images/vectors/footer.bin",
                        source ? source : ".");
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                cr_skip_test("skipped: '%s' is not there", path);
        cr_assert(read(fd, &raw, sizeof(raw)) == sizeof(raw));
        close(fd);
        cr_assert(vhd_footer_decode(&raw, 0, &footer, &problems, NULL) == 0);
        cr_expect(problems == 0);
        cr_expect(footer.type == VHD_TYPE_FIXED);
        cr_expect(strcmp(footer.creator_app, "win ") == 0);
        vhd_footer_encode(&footer, &again);
        cr_expect(memcmp(&raw, &again, sizeof(raw)) == 0);
}
