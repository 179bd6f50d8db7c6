/* SPDX-License-Identifier: Apache-2.0 */
/* Fixed VHDs: the disk as it is, and a footer behind it. Told by that footer alone: what lies at the
 * head belongs to the guest. */
#include <stdlib.h>
#include <string.h>

#include "formats/flat.h"
#include "formats/vhd/image.h"

struct fixed {
        struct image image;
        struct flat flat;
};

static struct fixed *fixed_of(struct image *image)
{
        return (struct fixed *)image;
}

static int fixed_map(
        struct image *image, uint64_t offset, uint64_t length, unsigned flags, struct extent *ret)
{
        return flat_map(&fixed_of(image)->flat, offset, length, flags, ret);
}

static int fixed_prepare(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
        uint64_t *ret_file_offset, bool *ret_zero)
{
        return flat_prepare(&fixed_of(image)->flat, offset, length, ret_file_offset, ret_zero);
}

static int fixed_complete(struct image *image, uint64_t offset, uint64_t length, bool *ret_changed)
{
        return flat_complete(&fixed_of(image)->flat, offset, length, ret_changed);
}

static bool fixed_is_durable(struct image *image, uint64_t offset, uint64_t length)
{
        return flat_is_durable(&fixed_of(image)->flat, offset, length);
}

static int fixed_flush(struct image *image)
{
        return flat_flush(&fixed_of(image)->flat);
}

static void fixed_poison(struct image *image, int code)
{
        flat_poison(&fixed_of(image)->flat, code);
}

static int fixed_settle(struct image *image, struct error *err)
{
        int r = flat_settle(&fixed_of(image)->flat, err);

        if (r == 0)
                image->writable = false;
        return r;
}

static int fixed_close(struct image *image, bool clean, struct error *err)
{
        struct file *file = image->file;
        int r = flat_close(&fixed_of(image)->flat, clean, err);

        free(image);
        file_close(file);
        return r;
}

/* A fixed image under the same driver's name: only the way to its bytes differs. */
static const struct format fixed_format = {
        .name = "vhd",
        .open = NULL, /* vhd_format opens */
        .close = fixed_close,
        .map = fixed_map,
        .prepare = fixed_prepare,
        .complete = fixed_complete,
        .is_durable = fixed_is_durable,
        .flush = fixed_flush,
        .poison = fixed_poison,
        .settle = fixed_settle,
};

/* A footer of 511 bytes becomes one of 512: the same bytes and a zero behind. */
int vhd_renew_old_footer(struct file *file, const struct vhd_metadata *metadata, struct error *err)
{
        int r;

        if (metadata->tail_size != VHD_OLD_FOOTER_SIZE)
                return 0;
        r = file_write(file, &metadata->footer.raw, VHD_FOOTER_SIZE, metadata->tail_offset, 0);
        if (r == 0)
                r = file_sync(file);
        return r < 0 ? fail_os(err, -r, "cannot renew the footer of '%s'", file->path) : 0;
}

int vhd_open_fixed(struct file *file, const struct vhd_metadata *metadata, unsigned flags,
        struct image **ret, struct error *err)
{
        bool writable = flags & IMAGE_WRITABLE;
        _cleanup_free_ struct fixed *fixed = calloc(1, sizeof(*fixed));
        int r = 0;

        if (!fixed)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        if (writable)
                r = vhd_check_writable(file, metadata, flags, err);
        if (r == 0 && writable)
                r = vhd_renew_old_footer(file, metadata, err);
        if (r < 0)
                return r;
        fixed->image.format = &fixed_format;
        fixed->image.file = file;
        fixed->image.type = IMAGE_FIXED;
        fixed->image.size = metadata->footer.current_size;
        fixed->image.hidden = metadata->footer.hidden;
        fixed->image.merging = metadata->footer.merging;
        memcpy(fixed->image.id, metadata->footer.unique_id, sizeof(fixed->image.id));
        r = flat_open(&fixed->flat, file, fixed->image.size, writable, &fixed->image.writable,
                fixed->image.warning, err);
        if (r < 0)
                return r;
        fixed->image.unclean = fixed->flat.unclean;
        fixed->image.lost_records = fixed->flat.lost;
        *ret = &TAKE_PTR(fixed)->image;
        return 0;
}
