/* SPDX-License-Identifier: Apache-2.0 */
/* An intent lies where others may write. With a right checksum and any content it must not crash, and
 * must touch nothing but the image it lies beside and files of the same folder. */
#include <assert.h>
#include <string.h>
#include <xxhash.h>

#include "formats/intent.h"
#include "tests/fuzz/fuzz.h"

static void add_intent(struct memfs *memfs, const uint8_t *data, size_t size)
{
        uint8_t *bytes = malloc(size + 8);
        uint64_t sum;

        assert(bytes);
        memcpy(bytes, data, size);
        memcpy(bytes, "vhddint1", size < 8 ? size : 8);
        sum = __builtin_bswap64(XXH3_64bits(bytes, size));
        memcpy(bytes + size, &sum, 8);
        memfs_add(memfs, FUZZ_PATH INTENT_ENDING, bytes, size + 8, "", 0, size + 8);
        free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct memfs *memfs = memfs_new();
        struct file *file, *view = NULL;
        uint8_t old[4096];
        uint64_t other, image;
        int r;

        memset(old, 'o', sizeof(old));
        memfs_add(memfs, FUZZ_PATH, old, sizeof(old), "", 0, sizeof(old));
        memfs_add(memfs, "/other/image.vhd", old, sizeof(old), "", 0, sizeof(old));
        if (size <= FUZZ_MAX_SIZE)
                add_intent(memfs, data, size);
        other = memfs_hash(memfs, "/other/image.vhd");
        image = memfs_hash(memfs, FUZZ_PATH);

        file = fuzz_reopen(memfs);
        r = intent_recover(file, false, NULL, &view, NULL);
        assert(memfs_hash(memfs, FUZZ_PATH) == image);
        if (view) {
                uint8_t bytes[8192];

                assert(r == 0);
                assert(file_read(view, bytes, sizeof(bytes), 0, 0) >= (ssize_t)sizeof(old));
                intent_view_dismiss(view);
        }
        r = intent_recover(file, true, NULL, &view, NULL);
        assert(!view);
        assert(r == 0 || memfs_hash(memfs, FUZZ_PATH) == image || r == -ENOSPC || r == -EFBIG);
        assert(memfs_hash(memfs, "/other/image.vhd") == other);
        file_close(file);
        memfs_free(memfs);
        return 0;
}
