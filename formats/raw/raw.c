/* SPDX-License-Identifier: Apache-2.0 */
/* raw - a file or a block device whose bytes are the guest's. There is no metadata and no limit of
 * 2040 GiB; the size is the file's to the byte, whole sectors or not. What a flat disk does is in
 * formats/flat.c, what a block device needs of the host in formats/raw/device.c. */
#include <stdlib.h>
#include <string.h>

#include "formats/flat.h"
#include "formats/format.h"
#include "formats/raw/device.h"

struct raw_image {
        struct image image; /* first: the two are cast into each other */
        struct flat flat;
        struct device *device; /* NULL: a file, or a device that is only read */
};

static struct raw_image *raw_of(struct image *image)
{
        return (struct raw_image *)image;
}

static int take_device(struct raw_image *raw, struct file *file, bool writable, struct error *err)
{
        if (writable)
                return device_claim(file, &raw->device, raw->image.warning, err);
        device_look(file, raw->image.warning);
        return 0;
}

static int raw_open(struct file *file, unsigned flags, struct image **ret, struct error *err)
{
        _cleanup_free_ struct raw_image *raw = calloc(1, sizeof(*raw));
        bool writable = flags & IMAGE_WRITABLE;
        struct file_stat st;
        int r;

        if (!raw)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        if (writable && !(file->flags & FILE_WRITE))
                return fail(err, EROFS, "'%s' is not open for writing", file->path);
        if (st.is_block) {
                r = take_device(raw, file, writable, err);
                if (r < 0)
                        return r;
        }
        r = flat_open(&raw->flat, file, st.size, writable, &writable, raw->image.warning, err);
        if (r < 0) {
                device_release(raw->device, NULL);
                return r;
        }
        raw->image.format = &raw_format;
        raw->image.file = file;
        raw->image.type = IMAGE_RAW;
        raw->image.size = st.size;
        raw->image.writable = writable;
        raw->image.unclean = raw->flat.unclean;
        raw->image.lost_records = raw->flat.lost;
        *ret = &TAKE_PTR(raw)->image;
        return 0;
}

/* The flush comes before the host may look at the disk again. */
static int raw_close(struct image *image, bool clean, struct error *err)
{
        _cleanup_free_ struct raw_image *raw = raw_of(image);
        int r = flat_close(&raw->flat, clean, err);

        if (clean) {
                int r2 = device_release(raw->device, r == 0 ? err : NULL);

                if (r == 0)
                        r = r2;
        } else {
                device_abandon(raw->device);
        }
        file_close(image->file);
        return r;
}

static int raw_map(
        struct image *image, uint64_t offset, uint64_t length, unsigned flags, struct extent *ret)
{
        return flat_map(&raw_of(image)->flat, offset, length, flags, ret);
}

static int raw_prepare(struct image *image, uint64_t offset, uint64_t length, unsigned flags,
        uint64_t *ret_file_offset, bool *ret_zero)
{
        return flat_prepare(&raw_of(image)->flat, offset, length, ret_file_offset, ret_zero);
}

static int raw_complete(struct image *image, uint64_t offset, uint64_t length, bool *ret_changed)
{
        return flat_complete(&raw_of(image)->flat, offset, length, ret_changed);
}

static bool raw_is_durable(struct image *image, uint64_t offset, uint64_t length)
{
        return flat_is_durable(&raw_of(image)->flat, offset, length);
}

static int raw_flush(struct image *image)
{
        return flat_flush(&raw_of(image)->flat);
}

static void raw_poison(struct image *image, int code)
{
        flat_poison(&raw_of(image)->flat, code);
}

/* A device stays claimed until it is closed. */
static int raw_settle(struct image *image, struct error *err)
{
        int r = flat_settle(&raw_of(image)->flat, err);

        if (r == 0)
                image->writable = false;
        return r;
}

const struct format raw_format = {
        .name = "raw",
        .open = raw_open,
        .close = raw_close,
        .map = raw_map,
        .prepare = raw_prepare,
        .complete = raw_complete,
        .is_durable = raw_is_durable,
        .flush = raw_flush,
        .poison = raw_poison,
        .settle = raw_settle,
};
