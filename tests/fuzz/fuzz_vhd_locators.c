/* SPDX-License-Identifier: Apache-2.0 */
/* A child names its parent in eight ways, in texts of its choice. Looking at them opens nothing, and
 * what they come to is a plain path or nothing. */
#include <assert.h>
#include <string.h>

#include "base/utf16.h"
#include "chain/locate.h"
#include "tests/fuzz/fuzz.h"

static char text[VHD_MAX_LOCATOR_LENGTH * 2];
static struct locate_candidate candidates[LOCATE_MAX_CANDIDATES];

static void check_path(const char *path)
{
        size_t length = strlen(path);

        if (length == 0)
                return;
        assert(path[0] == '/');
        assert(!strstr(path, "//"));
        assert(!strstr(path, "/../"));
        assert(!strstr(path, "/./"));
        assert(length < 3 || strcmp(path + length - 3, "/..") != 0);
        assert(length == 1 || path[length - 1] != '/');
}

static void check(struct file *file, unsigned flags)
{
        struct vhd_metadata metadata;
        struct error err = ERROR_INIT;
        size_t n;

        if (vhd_metadata_read(file, flags, &metadata, &err) < 0) {
                assert(err.message[0] != '\0');
                return;
        }
        if (metadata.footer.type != VHD_TYPE_DIFFERENCING)
                return;
        for (unsigned i = 0; i < VHD_N_LOCATORS; i++)
                if (vhd_locator_read(file, &metadata.header, i, text, sizeof(text), &err) == 0)
                        assert(utf8_is_valid(text, strlen(text)));
        n = locate_candidates(file, &metadata.header, candidates);
        assert(n <= LOCATE_MAX_CANDIDATES);
        for (size_t i = 0; i < n; i++)
                check_path(candidates[i].path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
        struct memfs *memfs = memfs_new();
        unsigned flags = 0;
        struct file *file = fuzz_image(memfs, data, size, &flags);

        if (file) {
                check(file, 0);
                check(file, VHD_READ_FORCE);
                check(file, VHD_READ_USE_HEAD);
                file_close(file);
        }
        memfs_free(memfs);
        return 0;
}
