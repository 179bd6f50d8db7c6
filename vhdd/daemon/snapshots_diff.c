/* SPDX-License-Identifier: Apache-2.0 */
/* snapshots_diff.c - which ranges of a disk may differ between two states.
 *
 * Each state is a chain of images. What both have in common, from the root up, is the same in both;
 * what the layers above that hold on either side may differ. So it works between any two states of a
 * tree, not only along one branch. */
#include <stdlib.h>
#include <string.h>

#include "vhdd/daemon/disks.h"
#include "vhdd/daemon/images.h"
#include "vhdd/daemon/methods.h"
#include "vhdd/daemon/params.h"
#include "vhdd/daemon/snapshots.h"
#include "vhdd/daemon/worker_link.h"

#define CHANGED_LIMIT 8192    /* extents of one answer of the worker */
#define CHANGED_MAX   1000000 /* of one side of a diff */

struct range {
        uint64_t start, length;
};
struct ranges {
        struct range *items;
        size_t n, room;
};

/* A state of the disk. */
struct side {
        const char *name; /* of the snapshot; NULL: the live disk */
        char *shown;
        struct snapshot_disk_row *disks;
        size_t n_disks;
        struct snapshot_disk_row *disk;
        struct image_chain images;
        char chain[CHAIN_NAME_MAX];
        uint64_t size;
};

static void side_done(struct side *side)
{
        free(side->shown);
        snapshot_disk_rows_free(side->disks, side->n_disks);
        image_chain_done(&side->images);
}

static void ranges_done(struct ranges *ranges)
{
        free(ranges->items);
}

static int add_range(struct ranges *ranges, uint64_t start, uint64_t length, struct error *err)
{
        if (ranges->n == ranges->room) {
                size_t room = ranges->room ? ranges->room * 2 : 1024;
                struct range *larger;

                if (ranges->n >= CHANGED_MAX)
                        return fail(err, E2BIG, "more than %d ranges differ", CHANGED_MAX);
                larger = realloc(ranges->items, room * sizeof(*larger));
                if (!larger)
                        return fail(err, ENOMEM, "no memory for a list of ranges");
                ranges->items = larger;
                ranges->room = room;
        }
        ranges->items[ranges->n++] = (struct range){start, length};
        return 0;
}

/* ---- the two sides ---- */

static int find_side(struct vm *vm, const struct vm_row *row, const char *disk, struct side *side,
        struct error *err)
{
        struct catalog *catalog = vm->broker->catalog;
        _cleanup_(snapshot_row_done) struct snapshot_row snapshot = {0};
        _cleanup_(disk_row_done) struct disk_row live = {0};
        int r;

        if (!side->name) {
                r = disk_find(vm, row, disk, &live, err);
                if (r < 0)
                        return r;
                memcpy(side->chain, live.id, sizeof(live.id));
                side->size = live.size;
                return image_chain_get(catalog, live.file, &side->images, err);
        }
        r = snapshot_find(vm, row, side->name, &snapshot, err);
        if (r == 0)
                r = catalog_snapshot_disk_list(
                        catalog, snapshot.id, &side->disks, &side->n_disks, err);
        if (r < 0)
                return r;
        side->shown = strdup(snapshot.name);
        for (size_t i = 0; i < side->n_disks; i++)
                if (strcmp(side->disks[i].name, disk) == 0 ||
                        strcmp(side->disks[i].disk, disk) == 0)
                        side->disk = &side->disks[i];
        if (!side->disk || !side->disk->file)
                return fail(err, ENOENT, "snapshot '%s' has no disk '%.160s'", snapshot.name, disk);
        side->size = side->disk->size;
        return image_chain_get(catalog, side->disk->file, &side->images, err);
}

static int open_side(struct vm *vm, struct side *side, struct error *err)
{
        if (side->disk)
                return worker_snapshot_chain(vm, side->disk, side->chain, err);
        if (!worker_chain_find(vm, side->chain))
                return fail(err, EIO, "the disk is not served, so it cannot be read");
        return 0;
}

/* The topmost image that both stand on, or NULL. */
static const char *common_image(const struct side *a, const struct side *b)
{
        for (size_t i = 0; i < a->images.n; i++)
                for (size_t k = 0; k < b->images.n; k++)
                        if (strcmp(a->images.rows[i].path, b->images.rows[k].path) == 0)
                                return a->images.rows[i].path;
        return NULL;
}

/* ---- asking ---- */

static int take_extents(const json_t *answer, struct ranges *ranges, struct error *err)
{
        json_t *extent;
        size_t i;

        json_array_foreach(json_object_get(answer, "extents"), i, extent)
        {
                json_int_t start = json_integer_value(json_array_get(extent, 0));
                json_int_t length = json_integer_value(json_array_get(extent, 1));
                int r;

                if (start < 0 || length <= 0)
                        return fail(err, EPROTO, "the vm's worker answers an extent of %lld bytes",
                                (long long)length);
                r = add_range(ranges, (uint64_t)start, (uint64_t)length, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int ask_changed(struct vm *vm, const struct side *side, const char *from, struct ranges *ret,
        struct error *err)
{
        json_int_t offset = 0;

        for (;;) {
                json_auto_t *answer = NULL;
                const json_t *next;
                int r = worker_call(vm, "changed",
                        json_pack("{s:s, s:s?, s:I, s:i}", "chain", side->chain, "from-layer", from,
                                "offset", offset, "limit", CHANGED_LIMIT),
                        WORKER_CALL_MS, &answer, err);

                if (r == 0)
                        r = take_extents(answer, ret, err);
                if (r < 0)
                        return r;
                next = json_object_get(answer, "next");
                if (!json_is_integer(next))
                        return 0;
                if (json_integer_value(next) <= offset)
                        return fail(err, EPROTO, "the vm's worker does not get on with a diff");
                offset = json_integer_value(next);
        }
}

static int compare_ranges(const void *a, const void *b)
{
        const struct range *x = a, *y = b;

        return x->start < y->start ? -1 : x->start > y->start;
}

/* Sorted, and what touches joined. */
static void join_ranges(struct ranges *ranges)
{
        size_t n = 0;

        qsort(ranges->items, ranges->n, sizeof(ranges->items[0]), compare_ranges);
        for (size_t i = 0; i < ranges->n; i++) {
                struct range *last = n > 0 ? &ranges->items[n - 1] : NULL;
                struct range this = ranges->items[i];

                if (!last || this.start > last->start + last->length)
                        ranges->items[n++] = this;
                else if (this.start + this.length > last->start + last->length)
                        last->length = this.start + this.length - last->start;
        }
        ranges->n = n;
}

static int ask_both(
        struct vm *vm, struct side *from, struct side *to, struct ranges *ranges, struct error *err)
{
        const char *common = from->name ? common_image(from, to) : NULL;
        int r = open_side(vm, to, err);

        if (r == 0)
                r = ask_changed(vm, to, common, ranges, err);
        /* The other branch's own layers; none when it is an ancestor. */
        if (r == 0 && from->name && (!common || strcmp(common, from->images.rows[0].path) != 0)) {
                r = open_side(vm, from, err);
                if (r == 0)
                        r = ask_changed(vm, from, common, ranges, err);
        }
        /* What one of them does not reach at all. */
        if (r == 0 && from->name && from->size != to->size) {
                uint64_t low = from->size < to->size ? from->size : to->size;
                uint64_t high = from->size < to->size ? to->size : from->size;

                r = add_range(ranges, low, high - low, err);
        }
        if (ranges->n > 0)
                join_ranges(ranges);
        return r;
}

static int diff_answer(const struct vm_row *row, const char *disk, const struct side *from,
        const struct side *to, const struct ranges *ranges, json_t **ret, struct error *err)
{
        json_t *list = json_array();
        uint64_t changed = 0;

        for (size_t i = 0; i < ranges->n; i++) {
                changed += ranges->items[i].length;
                json_array_append_new(list,
                        json_pack("[I, I]", (json_int_t)ranges->items[i].start,
                                (json_int_t)ranges->items[i].length));
        }
        *ret = json_pack("{s:s, s:s, s:s?, s:s?, s:I, s:I, s:o}", "vm", row->name, "disk", disk,
                "from", from->shown, "to", to->shown, "size", (json_int_t)to->size, "changed",
                (json_int_t)changed, "extents", list);
        return *ret ? 0 : fail(err, ENOMEM, "no memory for the answer");
}

int snapshot_diff(struct broker *broker, const struct caller *caller, const json_t *params,
        json_t **ret, struct error *err)
{
        _cleanup_(vm_releasep) struct vm *vm = NULL;
        _cleanup_(vm_row_done) struct vm_row row = {0};
        _cleanup_(side_done) struct side from = {.name = param_text(params, "from")};
        _cleanup_(side_done) struct side to = {.name = param_text(params, "to")};
        _cleanup_(ranges_done) struct ranges ranges = {0};
        const char *disk = param_text(params, "disk");
        int r = vm_get(broker, param_text(params, "vm"), &vm, &row, err);

        if (r == 0)
                r = find_side(vm, &row, disk, &to, err);
        if (r == 0 && from.name)
                r = find_side(vm, &row, disk, &from, err);
        if (r == 0)
                r = worker_up(vm, err);
        if (r < 0)
                return r;
        r = ask_both(vm, &from, &to, &ranges, err);
        worker_snapshots_close(vm, NULL, false);
        return r < 0 ? r : diff_answer(&row, disk, &from, &to, &ranges, ret, err);
}
