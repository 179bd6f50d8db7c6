/* SPDX-License-Identifier: Apache-2.0 */
/* vhd_make.h - small VHDs in memory for the unit tests, to be spoilt one byte at a time.
 *
 * Written out by hand from the specification and not by formats/vhd/create.c, so that the readers
 * are not tested against our own writer.
 *
 * Layout of a dynamic image: footer's copy 0, header 512, BAT 1536 (padded with 0xFF to a sector),
 * locators at 2048 and 3072 (differencing), first bitmap at 4096 - 512, footer at the end.
 */
#pragma once

#include <criterion/criterion.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "formats/vhd/metadata.h"

#define MAKE_HEADER    512u
#define MAKE_BAT       1536u
#define MAKE_LOCATOR_0 2048u
#define MAKE_LOCATOR_1 3072u
#define MAKE_FIRST     (4096u - 512u + 4096u) /* bitmap of the first block: data at 8192 */
#define MAKE_MAX       (1u << 20)

/* The bytes of a file on its way. */
struct make {
        uint8_t *bytes;
        size_t size;
};

static inline void make_free(struct make *make)
{
        free(make->bytes);
}
#define _cleanup_make_ _cleanup_(make_free)

static inline void make_footer(struct vhd_raw_footer *raw, uint32_t type, uint64_t size)
{
        struct vhd_geometry chs = vhd_geometry_of(size);

        memset(raw, 0, sizeof(*raw));
        memcpy(raw->cookie, "conectix", 8);
        raw->features = be32_make(2);
        raw->format_version = be32_make(0x10000);
        raw->data_offset = be64_make(type == 2 ? UINT64_MAX : MAKE_HEADER);
        memcpy(raw->creator_app, "test", 4);
        raw->creator_version = be32_make(0x10000);
        memcpy(raw->creator_os, "Wi2k", 4);
        raw->original_size = be64_make(size);
        raw->current_size = be64_make(size);
        raw->cylinders = be16_make((uint16_t)chs.cylinders);
        raw->heads = (uint8_t)chs.heads;
        raw->sectors_per_track = (uint8_t)chs.sectors_per_track;
        raw->type = be32_make(type);
        for (int i = 0; i < 16; i++)
                raw->unique_id[i] = (uint8_t)i;
        raw->checksum = be32_make(vhd_footer_checksum(raw));
}

static inline void make_header(struct vhd_raw_header *raw, uint32_t n_entries, uint32_t block_size)
{
        memset(raw, 0, sizeof(*raw));
        memcpy(raw->cookie, "cxsparse", 8);
        raw->data_offset = be64_make(UINT64_MAX);
        raw->table_offset = be64_make(MAKE_BAT);
        raw->header_version = be32_make(0x10000);
        raw->max_table_entries = be32_make(n_entries);
        raw->block_size = be32_make(block_size);
        raw->checksum = be32_make(vhd_header_checksum(raw));
}

static inline void make_get(const struct make *make, uint64_t offset, void *ret, size_t size)
{
        cr_assert(offset + size <= make->size);
        memcpy(ret, make->bytes + offset, size);
}

static inline void make_put(struct make *make, uint64_t offset, const void *data, size_t size)
{
        cr_assert(offset + size <= MAKE_MAX);
        memcpy(make->bytes + offset, data, size);
        if (make->size < offset + size)
                make->size = offset + size;
}

static inline struct make make_fixed(uint64_t size)
{
        struct make make = {calloc(1, MAKE_MAX), 0};
        struct vhd_raw_footer footer;

        make_footer(&footer, 2, size);
        make_put(&make, size, &footer, sizeof(footer));
        return make;
}

/* @n_blocks blocks of @block_size, the first @n_allocated of them in the file, one after the other,
 * data on 4 KiB, every sector present and holding the block's number + 1. */
static inline struct make make_sparse(
        uint32_t type, uint32_t n_blocks, uint32_t block_size, uint32_t n_allocated)
{
        struct make make = {calloc(1, MAKE_MAX), 0};
        uint32_t bitmap = vhd_bitmap_size(block_size);
        uint64_t place = MAKE_FIRST + 512 - bitmap;
        struct vhd_raw_footer footer;
        struct vhd_raw_header header;
        uint8_t table[512];

        make_footer(&footer, type, (uint64_t)n_blocks * block_size);
        make_header(&header, n_blocks, block_size);
        cr_assert(n_blocks <= 128);
        memset(table, 0xff, sizeof(table));
        for (uint32_t i = 0; i < n_allocated; i++) {
                be32 entry = be32_make((uint32_t)(place / 512));

                memcpy(table + i * 4, &entry, 4);
                memset(make.bytes + place, 0xff, bitmap);
                memset(make.bytes + place + bitmap, (int)i + 1, block_size);
                place += bitmap + block_size;
                place = (place + bitmap + 4095) / 4096 * 4096 - bitmap;
        }
        if (type == 4) {
                static const char relative[] = ".\0\\\0p\0.\0v\0h\0d\0";
                static const char absolute[] = "C\0:\0\\\0p\0.\0v\0h\0d\0";

                memset(header.parent_id, 0x77, 16);
                memcpy(header.parent_name, "\0p\0.\0v\0h\0d", 10);
                memcpy(header.locators[0].code, "W2ru", 4);
                header.locators[0].data_space = be32_make(1024);
                header.locators[0].data_length = be32_make(14);
                header.locators[0].data_offset = be64_make(MAKE_LOCATOR_0);
                memcpy(header.locators[1].code, "W2ku", 4);
                header.locators[1].data_space = be32_make(1024);
                header.locators[1].data_length = be32_make(16);
                header.locators[1].data_offset = be64_make(MAKE_LOCATOR_1);
                header.checksum = be32_make(vhd_header_checksum(&header));
                make_put(&make, MAKE_LOCATOR_0, relative, 14);
                make_put(&make, MAKE_LOCATOR_1, absolute, 16);
        }
        make_put(&make, 0, &footer, sizeof(footer));
        make_put(&make, MAKE_HEADER, &header, sizeof(header));
        make_put(&make, MAKE_BAT, table, sizeof(table));
        make_put(&make, place, &footer, sizeof(footer));
        return make;
}

static inline uint64_t make_tail(const struct make *make)
{
        return make->size - 512;
}

/* Changes the footer's copies at the head, the tail or both, and mends their sums. */
#define MAKE_CHANGE_FOOTER(make, at_head, at_tail, statement)                                      \
        do {                                                                                       \
                const uint64_t places_[2] = {0, make_tail(make)};                                  \
                const bool wanted_[2] = {at_head, at_tail};                                        \
                for (int i_ = 0; i_ < 2; i_++) {                                                   \
                        struct vhd_raw_footer footer;                                              \
                        if (!wanted_[i_])                                                          \
                                continue;                                                          \
                        make_get(make, places_[i_], &footer, sizeof(footer));                      \
                        statement;                                                                 \
                        footer.checksum = be32_make(vhd_footer_checksum(&footer));                 \
                        make_put(make, places_[i_], &footer, sizeof(footer));                      \
                }                                                                                  \
        } while (0)

#define MAKE_CHANGE_HEADER(make, statement)                                                        \
        do {                                                                                       \
                struct vhd_raw_header header;                                                      \
                make_get(make, MAKE_HEADER, &header, sizeof(header));                              \
                statement;                                                                         \
                header.checksum = be32_make(vhd_header_checksum(&header));                         \
                make_put(make, MAKE_HEADER, &header, sizeof(header));                              \
        } while (0)

/* A file of the host that nobody else can see. */
static inline struct file *make_file(const struct make *make)
{
        struct file *file = NULL;
        int fd = memfd_create("image.vhd", MFD_CLOEXEC);

        cr_assert(fd >= 0);
        cr_assert(write(fd, make->bytes, make->size) == (ssize_t)make->size);
        cr_assert(file_from_fd(fd, "image.vhd", FILE_WRITE, &file, NULL) == 0);
        return file;
}
