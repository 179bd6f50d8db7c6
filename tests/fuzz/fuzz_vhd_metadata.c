/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever vhd_metadata_read() answers with 0 has been checked: nothing that it names lies outside
 * the file, and an open image maps nothing outside either. */
#include <assert.h>
#include <string.h>

#include "base/arith.h"
#include "formats/format.h"
#include "formats/vhd/metadata.h"
#include "tests/fuzz/fuzz.h"

#define MAX_MAPS 4096

static void check_metadata(struct file *file, const struct vhd_metadata *m)
{
        struct vhd_range ranges[VHD_MAX_RANGES];
        size_t n = vhd_metadata_ranges(m, ranges);
        static char text[4096];

        assert(m->footer.current_size > 0);
        assert(m->footer.current_size % SECTOR_SIZE == 0);
        if (m->footer.type == VHD_TYPE_FIXED) {
                assert(n == 0);
                assert(m->footer.current_size <= m->file_size);
                return;
        }
        assert(is_power_of_2(m->header.block_size));
        assert(m->n_blocks <= VHD_MAX_BLOCKS);
        assert((uint64_t)m->n_blocks * m->header.block_size >= m->footer.current_size);
        assert(m->metadata_end >= VHD_FOOTER_SIZE + VHD_HEADER_SIZE);
        for (size_t i = 0; i < n; i++)
                assert(range_inside(ranges[i].offset, ranges[i].length, m->file_size));
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++)
                if (vhd_locator_read(file, &m->header, i, text, sizeof(text), NULL) == 0)
                        assert(strlen(text) < sizeof(text));
}

static void check_image(struct file *file, bool force)
{
        struct image *image = NULL;
        struct extent extent;
        uint64_t offset = 0, size;

        if (image_open(file, NULL, force ? IMAGE_FORCE : 0, &image, NULL) < 0) {
                file_close(file);
                return;
        }
        assert(file_size_get(file, &size) == 0);
        for (unsigned i = 0; i < MAX_MAPS && offset < image->size; i++) {
                int r = image->format->map(image, offset, image->size - offset, 0, &extent);

                if (r < 0) {
                        /* Only a block that damage made unreadable. */
                        assert(force);
                        offset = round_down_to(offset, image->block_size) + image->block_size;
                        continue;
                }
                assert(extent.length > 0);
                assert(extent.length <= image->size - offset);
                /* By force also what was cut off is read, as far as it is there. */
                if (extent.kind == EXTENT_DATA && !force)
                        assert(range_inside(extent.file_offset, extent.length, size));
                offset += extent.length;
        }
        image_abandon(image);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct memfs *memfs = memfs_new();
        unsigned flags = 0, read_flags;
        struct file *file = fuzz_image(memfs, data, size, &flags);
        struct error err = ERROR_INIT;
        struct vhd_metadata m;
        uint64_t before;
        int r;

        if (!file) {
                memfs_free(memfs);
                return 0;
        }
        before = memfs_hash(memfs, FUZZ_PATH);
        read_flags = (flags & FUZZ_FORCE ? VHD_READ_FORCE : 0) |
                (flags & FUZZ_USE_HEAD ? VHD_READ_USE_HEAD : 0);
        r = vhd_metadata_read(file, read_flags, &m, &err);
        assert(r == 0 || (err.message[0] && err.code == -r));
        if (r == 0)
                check_metadata(file, &m);
        check_image(file, flags & FUZZ_FORCE);
        assert(memfs_hash(memfs, FUZZ_PATH) == before);
        memfs_free(memfs);
        return 0;
}
