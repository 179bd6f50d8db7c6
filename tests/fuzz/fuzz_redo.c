/* SPDX-License-Identifier: Apache-2.0 */
/* A process dies in the middle of its writes, and what it left in its redo file is whole, or bent by
 * somebody who may write there. Whole: every answered write is there after the next opening. Bent:
 * the image opens, read-only perhaps, or it is refused with a sentence; nothing crashes, and the disk
 * keeps its size. */
#include <string.h>

#include "formats/format.h"
#include "formats/vhd/create.h"
#include "formats/vhd/metadata.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/memfs.h"

#define BLOCK_SIZE 4096u
#define DISK_SIZE  (32u * BLOCK_SIZE)
#define N_SECTORS  (DISK_SIZE / 512)

static uint8_t empty[65536];
static size_t empty_size;
static uint8_t model[N_SECTORS]; /* what each sector is filled with; 0: never written */

/* An empty dynamic image, made once. */
static void make_empty(void)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC,
                .size = DISK_SIZE,
                .block_size = BLOCK_SIZE,
                .unique_id = {1},
        };
        struct error err = ERROR_INIT;
        struct memfs memfs;
        struct file *file;

        memfs_init(&memfs, "", 0);
        file = memfs_open(&memfs, "/f.vhd", FILE_WRITE);
        HOLDS(vhd_create(file, &params, &err) == 0);
        HOLDS(memfs.size <= sizeof(empty));
        memcpy(empty, memfs.data, memfs.size);
        empty_size = memfs.size;
        file_close(file);
        memfs_done(&memfs);
}

static struct image *open_image(struct memfs *memfs, unsigned flags)
{
        struct file *file =
                memfs_open(memfs, "/f.vhd", flags & IMAGE_WRITABLE ? FILE_WRITE : FILE_READ);
        struct error err = ERROR_INIT;
        struct image *image = NULL;

        if (image_open(file, "vhd", flags, &image, &err) == 0)
                return image;
        HOLDS(err.message[0] != '\0');
        file_close(file);
        return NULL;
}

static void write_sector(struct image *image, uint32_t sector, uint8_t fill)
{
        uint64_t offset = (uint64_t)sector * 512, place;
        uint8_t data[512];
        bool zero, changed;

        memset(data, fill, sizeof(data));
        HOLDS(image->format->prepare(image, offset, 512, 0, &place, &zero) == 0);
        HOLDS(file_write(image->file, data, 512, place, 0) == 0);
        HOLDS(image->format->complete(image, offset, 512, &changed) == 0);
        model[sector] = fill;
}

static void discard_block(struct image *image, uint32_t sector)
{
        uint32_t first = sector - sector % (BLOCK_SIZE / 512);

        HOLDS(image->format->discard(image, (uint64_t)first * 512) == 0);
        memset(model + first, 0, BLOCK_SIZE / 512);
}

/* Steps until the first that bends the redo file. */
static void live(struct image *image, struct fuzz_bytes *in)
{
        while (in->size > 0 && in->data[0] < 0x80) {
                uint8_t what = fuzz_u8(in);
                uint32_t sector = fuzz_u8(in) % N_SECTORS;

                if (what % 8 == 0)
                        HOLDS(image->format->flush(image) == 0);
                else if (what % 8 == 1)
                        discard_block(image, sector);
                else
                        write_sector(image, sector, (uint8_t)(fuzz_u8(in) | 1));
        }
}

/* The rest of the input: which region, where in it (more often near its head), and with what. */
static bool bend(struct memfs *memfs, struct fuzz_bytes *in)
{
        bool bent = false;

        while (in->size >= 4) {
                struct memfs_region *region;
                uint64_t at;
                uint8_t with;

                region = &memfs->regions[fuzz_u8(in) % MEMFS_REGIONS];
                at = fuzz_u8(in);
                at = at << 8 | fuzz_u8(in);
                with = fuzz_u8(in);
                if (!region->data || with == 0)
                        continue;
                region->data[at % region->size] ^= with;
                bent = true;
        }
        return bent;
}

static void check_whole(struct image *image)
{
        struct extent extent;
        uint8_t data[512];

        for (uint32_t i = 0; i < N_SECTORS; i++) {
                HOLDS(image->format->map(image, (uint64_t)i * 512, 512, 0, &extent) == 0);
                if (extent.kind != EXTENT_DATA) {
                        HOLDS(model[i] == 0);
                        continue;
                }
                HOLDS(file_read_exact(image->file, data, 512, extent.file_offset) == 0);
                HOLDS(data[0] == model[i] && data[511] == model[i]);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct fuzz_bytes in = {data, size};
        struct error err = ERROR_INIT;
        struct memfs memfs;
        struct image *image;
        bool bent;

        if (size > 4096)
                return 0;
        if (empty_size == 0)
                make_empty();
        memset(model, 0, sizeof(model));
        memfs_init(&memfs, empty, empty_size);
        image = open_image(&memfs, IMAGE_WRITABLE);
        HOLDS(image != NULL);
        live(image, &in);
        image_abandon(image);

        bent = bend(&memfs, &in);
        image = open_image(&memfs, 0);
        HOLDS(image || bent);
        image = image_abandon(image);
        image = open_image(&memfs, IMAGE_WRITABLE);
        HOLDS(image || bent);
        if (image) {
                HOLDS(image->size == DISK_SIZE);
                if (!bent)
                        check_whole(image);
                if (image->writable && !bent) {
                        HOLDS(image_close(image, &err) == 0);
                        image = open_image(&memfs, 0);
                        HOLDS(image != NULL);
                        check_whole(image);
                }
                image_abandon(image);
        }
        memfs_done(&memfs);
        return 0;
}
