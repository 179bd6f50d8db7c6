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

/* What matters to those who open the image. */
struct seen {
        unsigned n_damages;
        bool read_only; /* whole, and yet nobody may write */
};

static void see(void *opaque, const struct vhd_finding *finding)
{
        struct seen *seen = opaque;

        /* The geometry is a matter between other programs. */
        if (finding->severity == VHD_DAMAGE && strcmp(finding->id, "geometry") != 0)
                seen->n_damages++;
        if (strcmp(finding->id, "saved-state") == 0 || strcmp(finding->id, "encrypted") == 0)
                seen->read_only = true;
}

static struct seen look(struct file *file, bool *ret_checked)
{
        struct vhd_check_result unused;
        struct seen seen = {0};

        *ret_checked = vhd_check(file, 0, see, &seen, &unused, NULL) == 0;
        return seen;
}

/* What check finds whole, everybody opens; what nobody opens, check finds damaged. And what was
 * open for writing and closed again is as whole as before. */
static void compare_with_opening(const uint8_t *data, size_t size)
{
        struct memfs *memfs = memfs_new();
        unsigned flags = 0;
        struct file *file = fuzz_image(memfs, data, size, &flags);
        struct image *image = NULL;
        bool checked;
        struct seen seen = look(file, &checked);

        if (image_open(file, "vhd", 0, &image, NULL) < 0) {
                assert(!checked || seen.n_damages > 0);
        } else {
                assert(checked);
                image_abandon(image);
                file = fuzz_reopen(memfs);
        }
        if (checked && image_open(file, "vhd", IMAGE_WRITABLE, &image, NULL) == 0) {
                assert(seen.n_damages == 0 || !image->writable);
                assert(image_close(image, NULL) == 0);
                file = fuzz_reopen(memfs);
                seen = look(file, &checked);
                assert(checked);
                assert(seen.n_damages == 0);
        } else {
                assert(!checked || seen.n_damages > 0 || seen.read_only);
        }
        file_close(file);
        memfs_free(memfs);
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
        compare_with_opening(data, size);
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
