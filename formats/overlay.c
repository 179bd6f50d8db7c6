/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/overlay.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"

struct overlay_sector {
        uint64_t number;
        uint8_t bytes[SECTOR_SIZE];
};

void overlay_done(struct overlay *overlay)
{
        free(overlay->sectors);
}

static int overlay_sector(
        struct overlay *overlay, uint64_t number, struct overlay_sector **ret, struct error *err)
{
        struct overlay_sector *sectors;
        ssize_t n;

        for (size_t i = 0; i < overlay->n; i++)
                if (overlay->sectors[i].number == number) {
                        *ret = &overlay->sectors[i];
                        return 0;
                }
        sectors = reallocarray(overlay->sectors, overlay->n + 1, sizeof(*sectors));
        if (!sectors)
                return fail(err, ENOMEM, "no memory to change '%s'", overlay->file->path);
        overlay->sectors = sectors;
        sectors[overlay->n] = (struct overlay_sector){.number = number};
        n = file_read(
                overlay->file, sectors[overlay->n].bytes, SECTOR_SIZE, number * SECTOR_SIZE, 0);
        if (n < 0)
                return fail_os(err, (int)-n, "cannot read '%s' at offset %" PRIu64,
                        overlay->file->path, number * SECTOR_SIZE);
        *ret = &sectors[overlay->n++];
        return 0;
}

int overlay_put(struct overlay *overlay, const void *bytes, size_t length, uint64_t offset,
        struct error *err)
{
        const uint8_t *from = bytes;

        while (length > 0) {
                struct overlay_sector *sector = NULL;
                size_t at = (size_t)(offset % SECTOR_SIZE);
                size_t part = MIN_OF(length, (size_t)SECTOR_SIZE - at);
                int r = overlay_sector(overlay, offset / SECTOR_SIZE, &sector, err);

                if (r < 0)
                        return r;
                memcpy(sector->bytes + at, from, part);
                from += part;
                offset += part;
                length -= part;
        }
        return 0;
}

static int compare_sectors(const void *a, const void *b)
{
        const struct overlay_sector *x = a, *y = b;

        return x->number < y->number ? -1 : x->number > y->number;
}

int overlay_add(struct overlay *overlay, struct intent *intent, unsigned image, struct error *err)
{
        int r = 0;

        if (overlay->n)
                qsort(overlay->sectors, overlay->n, sizeof(*overlay->sectors), compare_sectors);
        for (size_t i = 0; r == 0 && i < overlay->n; i++)
                r = intent_add(intent, image, overlay->sectors[i].number * SECTOR_SIZE,
                        overlay->sectors[i].bytes, SECTOR_SIZE, err);
        return r;
}
