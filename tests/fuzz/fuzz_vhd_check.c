/* SPDX-License-Identifier: Apache-2.0 */
/* A check writes nothing. A repair does what the check promised, leaves nothing beside the image but
 * the copy of the old bytes, and what it leaves is no worse than before. */
#include <assert.h>
#include <string.h>

#include "formats/format.h"
#include "formats/intent.h"
#include "formats/vhd/check.h"
#include "tests/fuzz/fuzz.h"

static void take(void *opaque, const struct vhd_finding *finding)
{
        assert(finding->sentence[0]);
        assert(finding->id[0]);
        assert(!strchr(finding->sentence, '\n'));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct memfs *memfs = memfs_new();
        unsigned flags = 0, check_flags;
        struct file *file = fuzz_image(memfs, data, size, &flags);
        struct vhd_check_result before, after;
        struct vhd_repair_result repaired;
        struct error err = ERROR_INIT;
        uint64_t hash;
        int r;

        if (!file)
                goto out;
        check_flags = (flags & FUZZ_FORCE ? VHD_CHECK_FORCE : 0) |
                (flags & FUZZ_USE_HEAD ? VHD_CHECK_USE_HEAD : 0) |
                (flags & FUZZ_USE_TAIL ? VHD_CHECK_USE_TAIL : 0) |
                (flags & FUZZ_DEEP ? VHD_CHECK_DEEP : 0);
        hash = memfs_hash(memfs, FUZZ_PATH);
        r = vhd_check(file, check_flags, take, NULL, &before, &err);
        assert(memfs_hash(memfs, FUZZ_PATH) == hash);
        if (r < 0) {
                assert(err.message[0]);
                goto out;
        }
        r = vhd_repair(file, check_flags | VHD_CHECK_DRY_RUN, NULL, NULL, &repaired, &err);
        assert(memfs_hash(memfs, FUZZ_PATH) == hash);
        if (r < 0)
                goto out;
        r = vhd_repair(file, check_flags, take, NULL, &repaired, &err);
        if (r == -ENOSPC || r == -EFBIG)
                goto out; /* the fuzzer's own limits */
        assert(r == 0);
        assert(repaired.backup[0] || memfs_hash(memfs, FUZZ_PATH) == hash);
        assert(!memfs_has(memfs, FUZZ_PATH INTENT_ENDING));
        assert(vhd_check(file, check_flags, take, NULL, &after, &err) == 0);
        assert(after.n_repairable == 0);
        assert(after.n_damages <= before.n_damages);
out:
        file_close(file);
        memfs_free(memfs);
        return 0;
}
