/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "formats/vhd/create.h"

/* A file with no name: it is gone with its last descriptor. */
static int make_file(struct fs *fs, const char *directory, char *path, size_t size,
        struct file **ret, struct error *err)
{
        if (!directory)
                directory = getenv("TMPDIR");
        snprintf(path, size, "%s/vhdd-scratch-%d-%llx.vhd", directory ? directory : "/var/tmp",
                (int)getpid(), (unsigned long long)(uintptr_t)path);
        return file_open(fs, path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE | FILE_NOFOLLOW, ret,
                err);
}

int scratch_make(struct fs *fs, const char *directory, const struct image *parent,
        struct image **ret, struct error *err)
{
        struct vhd_create_params params = {
                .type = VHD_TYPE_DIFFERENCING,
                .size = round_up_to(parent->size, SECTOR_SIZE),
                .parent_name = "",
        };
        _cleanup_(file_closep) struct file *file = NULL;
        char path[4096];
        int r = make_file(fs, directory, path, sizeof(path), &file, err);

        if (r < 0)
                return r;
        fs_unlink(fs, path);
        memcpy(params.parent_id, parent->id, sizeof(params.parent_id));
        r = vhd_create(file, &params, err);
        if (r == 0)
                r = image_open(file, "vhd", IMAGE_WRITABLE | IMAGE_VOLATILE, ret, err);
        if (r < 0)
                return fail_prefix(err, r, "cannot make a scratch image over '%s'",
                        parent->file->path);
        TAKE_PTR(file);
        (*ret)->size = parent->size;
        return 0;
}
