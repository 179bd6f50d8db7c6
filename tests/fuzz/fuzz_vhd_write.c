/* SPDX-License-Identifier: Apache-2.0 */
/* A whole file that lies, and somebody writes to it. Where it may be written, what is written comes
 * back, also after closing and opening again. */
#include <assert.h>
#include <string.h>

#include "base/arith.h"
#include "formats/format.h"
#include "formats/vhd/metadata.h"
#include "tests/fuzz/fuzz.h"

#define N_WRITES 6

static uint8_t buffer[512];

static struct image *open_image(struct memfs *memfs, unsigned flags)
{
        struct file *file = fuzz_reopen(memfs);
        struct error err = ERROR_INIT;
        struct image *image = NULL;

        if (image_open(file, "vhd", flags, &image, &err) == 0)
                return image;
        assert(err.code != 0);
        assert(err.message[0] != '\0');
        file_close(file);
        return NULL;
}

static void read_back(struct image *image, uint64_t offset, const uint8_t *sector)
{
        struct extent extent;

        assert(image->format->map(image, offset, 512, 0, &extent) == 0);
        assert(extent.kind == EXTENT_DATA);
        assert(file_read_exact(image->file, buffer, 512, extent.file_offset) == 0);
        assert(memcmp(buffer, sector, 512) == 0);
}

static bool write_sector(struct image *image, uint64_t offset, const uint8_t *sector)
{
        uint64_t place;
        bool zero, changed;

        if (image->format->prepare(image, offset, 512, 0, &place, &zero) < 0)
                return false;
        if (file_write(image->file, sector, 512, place, 0) < 0)
                return false;
        return image->format->complete(image, offset, 512, &changed) == 0;
}

static void write_some(struct memfs *memfs, struct image *image, uint32_t seed)
{
        uint64_t n_sectors = image->size / 512;
        uint64_t offsets[N_WRITES];
        uint8_t sector[512];
        struct error err = ERROR_INIT;
        int n = 0;

        for (int i = 0; i < N_WRITES; i++) {
                uint64_t offset;

                seed = seed * 1103515245 + 12345;
                offset = ((uint64_t)seed << 16 | seed >> 16) % n_sectors * 512;
                memset(sector, (int)(offset / 512 % 251) + 1, sizeof(sector));
                if (!write_sector(image, offset, sector))
                        break;
                offsets[n++] = offset;
                read_back(image, offset, sector);
                if (i == N_WRITES / 2 && image->format->flush(image) < 0)
                        break;
        }
        if (image_close(image, &err) < 0)
                return;
        if (n == 0)
                return;
        image = open_image(memfs, 0);
        assert(image != NULL);
        for (int i = 0; i < n; i++) {
                memset(sector, (int)(offsets[i] / 512 % 251) + 1, sizeof(sector));
                read_back(image, offsets[i], sector);
        }
        image_abandon(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct memfs *memfs = memfs_new();
        unsigned flags = 0;
        struct file *file = fuzz_image(memfs, data, size, &flags);
        struct image *image;

        if (file) {
                file_close(file);
                image = open_image(memfs, IMAGE_WRITABLE);
                if (image && image->writable && image->size >= 512)
                        write_some(memfs, image, (uint32_t)size * 2654435761u ^ data[size / 2]);
                else if (image)
                        image_abandon(image);
        }
        memfs_free(memfs);
        return 0;
}
