/* SPDX-License-Identifier: Apache-2.0 */
/* A whole file that lies. Opened, mapped, read; and where it may be written, what is written comes
 * back, also after closing and opening again. */
#include <errno.h>
#include <string.h>

#include "base/arith.h"
#include "formats/format.h"
#include "formats/vhd/metadata.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memfs.h"

#define N_EXTENTS 256
#define N_WRITES  6

static uint8_t buffer[65536];

static struct image *open_image(struct memfs *memfs, unsigned flags)
{
        struct file *file =
                memfs_open(memfs, "/f.vhd", flags & IMAGE_WRITABLE ? FILE_WRITE : FILE_READ);
        struct error err = ERROR_INIT;
        struct image *image = NULL;

        if (image_open(file, "vhd", flags, &image, &err) == 0)
                return image;
        HOLDS(err.code != 0);
        HOLDS(err.message[0] != '\0');
        file_close(file);
        return NULL;
}

/* Some extents from @offset on, each read as far as the buffer goes. */
static void walk(struct image *image, uint64_t offset)
{
        struct extent extent;

        for (int i = 0; i < N_EXTENTS && offset < image->size; i++) {
                uint64_t asked = MIN_OF(image->size - offset, UINT64_C(1) << 30);
                int r = image->format->map(image, offset, asked, 0, &extent);

                if (r < 0) {
                        HOLDS(r == -EIO || r == -EUCLEAN);
                        return;
                }
                HOLDS(extent.length > 0);
                HOLDS(extent.length <= asked);
                if (extent.kind == EXTENT_DATA)
                        HOLDS(file_read(image->file, buffer, MIN_OF(extent.length, sizeof(buffer)),
                                      extent.file_offset, 0) >= 0);
                offset += extent.length;
        }
}

static void read_back(struct image *image, uint64_t offset, const uint8_t *sector)
{
        struct extent extent;

        HOLDS(image->format->map(image, offset, 512, 0, &extent) == 0);
        HOLDS(extent.kind == EXTENT_DATA);
        HOLDS(file_read_exact(image->file, buffer, 512, extent.file_offset) == 0);
        HOLDS(memcmp(buffer, sector, 512) == 0);
}

/* Fills the block's other sectors where the place is not known to be zero, as the chain does. */
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
        HOLDS(image != NULL);
        for (int i = 0; i < n; i++) {
                memset(sector, (int)(offsets[i] / 512 % 251) + 1, sizeof(sector));
                read_back(image, offsets[i], sector);
        }
        image_abandon(image);
}

static void use(const uint8_t *data, size_t size, unsigned flags)
{
        struct memfs memfs;
        struct image *image;

        memfs_init(&memfs, data, size);
        image = open_image(&memfs, flags);
        if (image) {
                walk(image, 0);
                if (image->size > 65536)
                        walk(image, round_down_to(image->size - 65536, 512));
                if (image->writable && image->size >= 512)
                        write_some(&memfs, image, (uint32_t)size * 2654435761u ^ data[size / 2]);
                else
                        image_abandon(image);
        }
        if (!(flags & IMAGE_WRITABLE)) {
                /* Who only reads leaves every byte as it was. */
                HOLDS(memfs.size == size);
                HOLDS(memcmp(memfs.data, data, size) == 0);
        }
        memfs_done(&memfs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        if (size == 0)
                return 0;
        use(data, size, 0);
        use(data, size, IMAGE_FORCE);
        use(data, size, IMAGE_WRITABLE);
        return 0;
}
