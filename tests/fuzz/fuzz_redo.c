/* SPDX-License-Identifier: Apache-2.0 */
/* A process dies in the middle of its writes, and what it left in its redo file is whole, or bent by
 * somebody who may write there. Whole: every answered write is there after the next opening. Bent:
 * the image opens, read-only perhaps, or it is refused with a sentence; nothing crashes, and the disk
 * keeps its size. */
#include <assert.h>
#include <string.h>

#include "formats/format.h"
#include "formats/vhd/create.h"
#include "formats/vhd/metadata.h"
#include "tests/fuzz/fuzz.h"

#define BLOCK_SIZE 4096u
#define DISK_SIZE  (32u * BLOCK_SIZE)
#define N_SECTORS  (DISK_SIZE / 512)
#define MOVE_STEP  0x7a

static uint8_t model[N_SECTORS]; /* what each sector is filled with; 0: never written */

/* Numbers out of an input's bytes; zeros when they are used up. */
struct script {
        const uint8_t *data;
        size_t size;
};

static uint8_t next(struct script *script)
{
        if (script->size == 0)
                return 0;
        script->size--;
        return *script->data++;
}

static void make_empty(struct memfs *memfs)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DYNAMIC,
                .size = DISK_SIZE,
                .block_size = BLOCK_SIZE,
                .unique_id = {1},
        };
        struct file *file = NULL;

        assert(file_open(memfs_fs(memfs), FUZZ_PATH, FILE_WRITE | FILE_CREATE, &file, NULL) == 0);
        assert(vhd_create(file, &params, NULL) == 0);
        file_close(file);
}

static struct image *open_image(struct memfs *memfs, unsigned flags)
{
        struct file *file = fuzz_reopen(memfs);
        struct error err = ERROR_INIT;
        struct image *image = NULL;

        if (image_open(file, "vhd", flags, &image, &err) == 0)
                return image;
        assert(err.message[0] != '\0');
        file_close(file);
        return NULL;
}

static void write_sector(struct image *image, uint32_t sector, uint8_t fill)
{
        uint64_t offset = (uint64_t)sector * 512, place;
        uint8_t data[512];
        bool zero, changed;

        memset(data, fill, sizeof(data));
        assert(image->format->prepare(image, offset, 512, 0, &place, &zero) == 0);
        assert(file_write(image->file, data, 512, place, 0) == 0);
        assert(image->format->complete(image, offset, 512, &changed) == 0);
        model[sector] = fill;
}

static void discard_block(struct image *image, uint32_t sector)
{
        uint32_t first = sector - sector % (BLOCK_SIZE / 512);

        assert(image->format->discard(image, (uint64_t)first * 512) == 0);
        memset(model + first, 0, BLOCK_SIZE / 512);
}

/* Into the first hole before it, if there is one. */
static void move_block(struct image *image, uint32_t sector)
{
        uint64_t offset = (uint64_t)(sector - sector % (BLOCK_SIZE / 512)) * 512;
        struct block_move move;
        uint8_t data[BLOCK_SIZE];
        int r;

        assert(image->format->find_holes(image) == 0);
        r = image->format->move_begin(image, offset, 0, &move);
        assert(r == 0 || r == 1);
        if (r == 0)
                return;
        assert(file_read_exact(image->file, data, sizeof(data), move.from) == 0);
        assert(file_write(image->file, data, sizeof(data), move.to, 0) == 0);
        assert(image->format->move_end(image, &move, true) == 0);
}

/* Steps until the first that bends the redo file. */
static void live(struct image *image, struct script *in)
{
        while (in->size > 0 && in->data[0] < 0x80) {
                uint8_t what = next(in);
                uint32_t sector = next(in) % N_SECTORS;

                if (what % 8 == 0)
                        assert(image->format->flush(image) == 0);
                else if (what == MOVE_STEP)
                        move_block(image, sector);
                else if (what % 8 == 1)
                        discard_block(image, sector);
                else
                        write_sector(image, sector, (uint8_t)(next(in) | 1));
        }
}

/* The rest of the input: which region, where in it, and with what. */
static bool bend(struct memfs *memfs, struct script *in)
{
        bool bent = false;

        while (in->size >= 4) {
                uint64_t size;
                uint8_t *region = memfs_region(memfs, next(in) % MEMFS_MAX_REGIONS, &size);
                uint64_t at = next(in);
                uint8_t with;

                at = at << 8 | next(in);
                with = next(in);
                if (!region || with == 0)
                        continue;
                region[at % size] ^= with;
                bent = true;
        }
        return bent;
}

static void check_whole(struct image *image)
{
        struct extent extent;
        uint8_t data[512];

        for (uint32_t i = 0; i < N_SECTORS; i++) {
                assert(image->format->map(image, (uint64_t)i * 512, 512, 0, &extent) == 0);
                if (extent.kind != EXTENT_DATA) {
                        assert(model[i] == 0);
                        continue;
                }
                assert(file_read_exact(image->file, data, 512, extent.file_offset) == 0);
                assert(data[0] == model[i] && data[511] == model[i]);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct script in = {data, size};
        struct memfs *memfs;
        struct image *image;
        bool bent;

        if (size > 4096)
                return 0;
        memset(model, 0, sizeof(model));
        memfs = memfs_new();
        make_empty(memfs);
        image = open_image(memfs, IMAGE_WRITABLE);
        assert(image);
        live(image, &in);
        image_abandon(image);

        bent = bend(memfs, &in);
        image = open_image(memfs, 0);
        assert(image || bent);
        image_abandon(image);
        image = open_image(memfs, IMAGE_WRITABLE);
        assert(image || bent);
        if (image && !bent) {
                assert(image->writable);
                check_whole(image);
                assert(image_close(image, NULL) == 0);
                image = open_image(memfs, 0);
                assert(image);
                check_whole(image);
        }
        if (image)
                assert(image->size == DISK_SIZE);
        image_abandon(image);
        memfs_free(memfs);
        return 0;
}
