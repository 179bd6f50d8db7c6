/* SPDX-License-Identifier: Apache-2.0 */
/* vhd_sample.h - small VHDs made by hand, byte by byte as the specification says, so that tests of
 * chain/ do not lean on our own writer; and a folder to put them in.
 *
 * A sample has 2 blocks of 64 KiB. Layout: footer copy 0, header 512, BAT 1536, locators 2048 (1 KiB
 * each), blocks behind.
 *
 * Ownership  the folder goes with folder_remove().
 * Threads    one thread at a time.
 */
#pragma once

#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "formats/vhd/metadata.h"
#include "formats/vhd/raw.h"

#define SAMPLE_BLOCK_SIZE 65536u
#define SAMPLE_N_BLOCKS   2u
#define SAMPLE_SIZE       ((uint64_t)SAMPLE_BLOCK_SIZE * SAMPLE_N_BLOCKS)
#define SAMPLE_LOCATORS   2048u

struct sample_locator {
        const char *code;
        const char *text; /* ASCII; UTF-16 for the codes that want it */
};

struct sample {
        enum vhd_type type; /* 0: differencing if parent is set, else dynamic */
        uint8_t id;         /* all sixteen bytes; 0: a null id */
        uint8_t parent;     /* the parent's id, as above */
        const char *name;   /* the header's parent name, ASCII */
        uint64_t size;      /* 0: SAMPLE_SIZE */
        uint8_t fill;       /* not 0: block 0 is there, full of this byte */
        struct sample_locator locators[VHD_N_LOCATORS];
};

static inline size_t sample_utf16(const char *text, uint8_t *out, bool big)
{
        size_t n = strlen(text);

        for (size_t i = 0; i < n; i++) {
                out[2 * i + (big ? 1 : 0)] = (uint8_t)text[i];
                out[2 * i + (big ? 0 : 1)] = 0;
        }
        return 2 * n;
}

static inline void sample_put(int fd, const void *data, size_t size, uint64_t offset)
{
        cr_assert_eq(pwrite(fd, data, size, (off_t)offset), (ssize_t)size);
}

static inline void sample_footer(
        const struct sample *sample, enum vhd_type type, struct vhd_raw_footer *ret)
{
        uint64_t size = sample->size ? sample->size : SAMPLE_SIZE;

        memset(ret, 0, sizeof(*ret));
        memcpy(ret->cookie, VHD_COOKIE, 8);
        ret->features = be32_make(2);
        ret->format_version = be32_make(0x10000);
        ret->data_offset = be64_make(type == VHD_TYPE_FIXED ? UINT64_MAX : 512);
        ret->timestamp = be32_make(400000000);
        memcpy(ret->creator_app, "win ", 4);
        ret->creator_version = be32_make(0x60001);
        memcpy(ret->creator_os, "Wi2k", 4);
        ret->original_size = be64_make(size);
        ret->current_size = be64_make(size);
        ret->cylinders = be16_make(1);
        ret->heads = 4;
        ret->sectors_per_track = 17;
        ret->type = be32_make(type);
        memset(ret->unique_id, sample->id, 16);
        ret->checksum = be32_make(vhd_footer_checksum(ret));
}

static inline uint64_t sample_locators(
        int fd, const struct sample *sample, struct vhd_raw_header *header)
{
        uint64_t at = SAMPLE_LOCATORS;

        for (unsigned i = 0; i < VHD_N_LOCATORS && sample->locators[i].code; i++) {
                const struct sample_locator *from = &sample->locators[i];
                struct vhd_raw_locator *to = &header->locators[i];
                uint8_t bytes[1024] = {0};
                size_t n = strlen(from->text);

                if (from->code[0] == 'W' && from->code[1] == '2')
                        n = sample_utf16(from->text, bytes, false);
                else
                        memcpy(bytes, from->text, n);
                memcpy(to->code, from->code, 4);
                to->data_space = be32_make(1024);
                to->data_length = be32_make((uint32_t)n);
                to->data_offset = be64_make(at);
                sample_put(fd, bytes, sizeof(bytes), at);
                at += sizeof(bytes);
        }
        return at;
}

static inline uint64_t sample_block(int fd, const struct sample *sample, uint64_t at)
{
        uint8_t bitmap[512];
        uint8_t *data = malloc(SAMPLE_BLOCK_SIZE);

        memset(bitmap, 0xff, sizeof(bitmap));
        memset(data, sample->fill, SAMPLE_BLOCK_SIZE);
        sample_put(fd, bitmap, sizeof(bitmap), at);
        sample_put(fd, data, SAMPLE_BLOCK_SIZE, at + 512);
        free(data);
        return at + 512 + SAMPLE_BLOCK_SIZE;
}

/* Makes the file @path, or makes it anew. */
static inline void sample_write(const char *path, const struct sample *sample)
{
        int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        enum vhd_type type = sample->type;
        struct vhd_raw_footer footer;
        struct vhd_raw_header header = {0};
        uint8_t bat[512];
        uint64_t end;

        cr_assert(fd >= 0, "%s", path);
        if (type == VHD_TYPE_NONE)
                type = sample->parent ? VHD_TYPE_DIFFERENCING : VHD_TYPE_DYNAMIC;
        sample_footer(sample, type, &footer);
        if (type == VHD_TYPE_FIXED) {
                uint64_t size = be64_get(footer.current_size);

                cr_assert_eq(ftruncate(fd, (off_t)size), 0);
                sample_put(fd, &footer, sizeof(footer), size);
                close(fd);
                return;
        }
        memcpy(header.cookie, VHD_HEADER_COOKIE, 8);
        header.data_offset = be64_make(UINT64_MAX);
        header.table_offset = be64_make(1536);
        header.header_version = be32_make(0x10000);
        header.max_table_entries =
                be32_make((uint32_t)(be64_get(footer.current_size) / SAMPLE_BLOCK_SIZE));
        header.block_size = be32_make(SAMPLE_BLOCK_SIZE);
        memset(header.parent_id, sample->parent, 16);
        if (sample->name)
                sample_utf16(sample->name, header.parent_name, true);
        memset(bat, 0xff, sizeof(bat));
        end = sample_locators(fd, sample, &header);
        if (sample->fill) {
                be32 sector = be32_make((uint32_t)(end / 512));

                memcpy(bat, &sector, sizeof(sector));
                end = sample_block(fd, sample, end);
        }
        header.checksum = be32_make(vhd_header_checksum(&header));
        sample_put(fd, &footer, sizeof(footer), 0);
        sample_put(fd, &header, sizeof(header), 512);
        sample_put(fd, bat, sizeof(bat), 1536);
        sample_put(fd, &footer, sizeof(footer), end);
        close(fd);
}

/* --- a folder of its own for a test --- */

struct folder {
        char *path;
        char name[4][512]; /* of folder_path(), in turn */
        unsigned next;
};

static inline void folder_make(struct folder *folder)
{
        char temporary[] = "/tmp/vhdd-unit-XXXXXX";

        memset(folder, 0, sizeof(*folder));
        cr_assert(mkdtemp(temporary) != NULL);
        folder->path = strdup(temporary);
        cr_assert_not_null(folder->path);
}

/* A path in the folder. Good until the fourth call after this one. */
static inline const char *__attribute__((format(printf, 2, 3)))
folder_path(struct folder *folder, const char *format, ...)
{
        char *name = folder->name[folder->next++ % 4];
        int n = snprintf(name, sizeof(folder->name[0]), "%s/", folder->path);
        va_list ap;

        va_start(ap, format);
        vsnprintf(name + n, sizeof(folder->name[0]) - (size_t)n, format, ap);
        va_end(ap);
        return name;
}

static inline void folder_mkdir(struct folder *folder, const char *name)
{
        cr_assert_eq(mkdir(folder_path(folder, "%s", name), 0755), 0, "%s", name);
}

static inline int folder_remove_one(
        const char *path, const struct stat *st, int type, struct FTW *ftw)
{
        (void)st, (void)type, (void)ftw;
        return remove(path);
}

static inline void folder_remove(struct folder *folder)
{
        nftw(folder->path, folder_remove_one, 16, FTW_DEPTH | FTW_PHYS);
        free(folder->path);
}
DEFINE_CLEANUP(struct folder *, folder_remove)

/* Declares @name, which goes with the scope. */
#define WITH_FOLDER(name)                                                                          \
        struct folder name##_storage;                                                              \
        struct folder *name _cleanup_(folder_removep) = &name##_storage;                           \
        folder_make(name)
