/* SPDX-License-Identifier: Apache-2.0 */
/* Resizing: the chain is opened and looked at, then the file alone is changed under one lock. What a dead
 * server left comes into the images of the chain before (chain/alone.h).
 *
 *   Z1  What lies behind the old end of the disk (in its last block, or in a fixed disk's file) is
 *       zeros, durably, before any footer speaks of it.
 *   Z2  Blocks leave the way of the BAT as blocks move (formats/vhd/move.c), and the image is closed
 *       cleanly before its metadata changes: no redo file speaks of the old one.
 *   Z3  A dynamic image's metadata changes in one intent (merge/table.c).
 *   Z4  A fixed disk has one footer, one sector, which no cut can tear. The file grows by a copy of
 *       the old footer at the new end; then the space is taken; then Z1; then that copy becomes the
 *       new footer. A smaller one: the footer first speaks of the smaller disk, then stands at its
 *       end, too, and then the file is cut.
 */
#include "merge/resize.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/mutant.h"
#include "chain/alone.h"
#include "chain/blocks.h"
#include "formats/vhd/bat.h"
#include "formats/vhd/create.h"
#include "formats/vhd/hyperv.h"
#include "formats/vhd/metadata.h"
#include "merge/table.h"

#define READ_SIZE (256 * KIB)

struct resizing {
        const char *path;
        struct fs *fs;
        const struct resize_params *params;
        const char *format;
        uint32_t block_size;
        uint64_t old, new; /* sizes of the disk */
        struct file *file; /* ours for writing, with the lock */
        struct vhd_metadata metadata;
        struct resize_report report;
};

static void resizing_free(struct resizing *z)
{
        if (z)
                file_close(z->file);
        free(z);
}
DEFINE_CLEANUP(struct resizing *, resizing_free)

/* --- may it be? */

static int check_limits(const struct resizing *z, struct error *err)
{
        uint64_t most = vhd_max_size(z->block_size);
        int r;

        if (z->new == 0 || z->new % SECTOR_SIZE)
                return fail(err, EINVAL, "%" PRIu64 " bytes are no whole sectors, or none", z->new);
        if (z->report.type == IMAGE_RAW || z->new <= most || z->new <= z->old)
                return 0;
        r = fail(err, EINVAL,
                "a disk of %" PRIu64 " bytes cannot be made: %" PRIu64 " (%" PRIu64
                " GiB) is the most%s",
                z->new, most, most / GIB, most < VHD_MAX_SIZE ? " with this block size" : "");
        error_set_hyperv(err, HYPERV_INVALID_SIZE);
        return r;
}

/* The first byte from @from on that is not zero, of a piece of data. */
static int first_in_data(const struct chain_extent *extent, uint8_t *buffer, uint64_t *ret)
{
        uint64_t at = 0;

        while (at < extent->length) {
                uint64_t data, n;
                int r = file_seek_data(extent->file, extent->file_offset + at, &data);

                if (r < 0)
                        return r;
                if (data > extent->file_offset + at)
                        at = data - extent->file_offset;
                if (at >= extent->length)
                        break;
                n = MIN_OF(extent->length - at, READ_SIZE);
                r = file_read_exact(extent->file, buffer, n, extent->file_offset + at);
                if (r < 0)
                        return r;
                for (uint64_t i = 0; i < n && !bytes_are_zero(buffer, n); i++)
                        if (buffer[i]) {
                                *ret = at + i;
                                return 1;
                        }
                at += n;
        }
        return 0;
}

/* 1: *ret is the first byte of the disk from @from on that is not zero. */
static int first_data(struct chain *chain, uint64_t from, uint64_t end, uint64_t *ret)
{
        _cleanup_free_ uint8_t *buffer = malloc(READ_SIZE);

        if (!buffer)
                return -ENOMEM;
        while (from < end) {
                struct chain_extent extent;
                uint64_t found = 0;
                int r = chain_map(chain, from, end - from, CHAIN_HOLES, &extent);

                if (r == 0 && extent.kind == EXTENT_DATA)
                        r = first_in_data(&extent, buffer, &found);
                if (r != 0) {
                        *ret = from + found;
                        return r;
                }
                from += extent.length;
        }
        return 0;
}

static int check_shrink(const struct resizing *z, struct chain *chain, struct error *err)
{
        uint64_t found = 0;
        int r;

        if (!z->params->shrink) {
                fail(err, EINVAL, "'%s' has %" PRIu64 " bytes and would lose %" PRIu64 " of them",
                        z->path, z->old, z->old - z->new);
                error_set_hint(err, "--shrink cuts off a tail that reads as zeros");
                return -EINVAL;
        }
        r = first_data(chain, z->new, z->old, &found);
        if (r < 0)
                return fail_os(err, -r, "cannot read '%s' from offset %" PRIu64 " of the disk on",
                        z->path, z->new);
        if (r == 0)
                return 0;
        fail(err, ENOTEMPTY,
                "'%s' cannot become %" PRIu64
                " bytes: the disk holds data behind, at offset %" PRIu64 " first",
                z->path, z->new, found);
        error_set_offset(err, found);
        error_set_hint(err,
                "make its partitions smaller first, and let the guest trim, or write "
                "zeros to, what they leave");
        return -ENOTEMPTY;
}

/* A child that was made smaller: what it does not have is its parent's. */
static int refuse_to_show(const struct resizing *z, const struct image *below, struct error *err)
{
        fail(err, EINVAL,
                "'%s' stands on '%s', which is larger: what that has behind the first %" PRIu64
                " bytes would be seen in the new space",
                z->path, below->file->path, z->old);
        error_set_hint(err,
                "--force does it all the same; or make a copy with vhdctl convert, and resize that");
        return -EINVAL;
}

static int check_parent(const struct resizing *z, struct chain *chain, struct error *err)
{
        unsigned depth = chain_depth(chain);
        uint64_t parent;

        if (depth < 2 || z->params->force)
                return 0;
        for (unsigned i = 0; i + 1 < depth && z->new > z->old; i++)
                if (chain_layer(chain, i)->size > z->old)
                        return refuse_to_show(z, chain_layer(chain, i), err);
        parent = chain_layer(chain, depth - 2)->size;
        if (z->new <= parent || z->new <= z->old)
                return 0;
        fail(err, EINVAL,
                "'%s' would be larger than its parent of %" PRIu64
                " bytes, and Hyper-V opens no such "
                "chain",
                z->path, parent);
        error_set_hyperv(err, HYPERV_PARENT_SIZE);
        error_set_hint(err, "--force does it: vhdd reads such a child");
        return -EINVAL;
}

static int find_new_size(struct resizing *z, struct error *err)
{
        z->new = z->params->size;
        if (z->params->add && __builtin_add_overflow(z->old, z->params->add, &z->new))
                return fail(err, EINVAL, "'%s' cannot become so much larger", z->path);
        return 0;
}

/* What the chain says, open for reading. */
static int look(struct resizing *z, const struct chain_options *options, struct error *err)
{
        _cleanup_(chain_abandonp) struct chain *chain = NULL;
        struct chain_options reading = *options;
        const struct image *leaf;
        struct file_stat st;
        int r;

        reading.writable = reading.scratch = reading.force = false;
        r = chain_open(z->path, &reading, &chain, err);
        if (r < 0)
                return r;
        leaf = chain_layer(chain, chain_depth(chain) - 1);
        z->report.type = leaf->type;
        z->block_size = leaf->block_size;
        z->old = z->report.size_before = leaf->size;
        r = file_stat_get(leaf->file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", z->path);
        if (!st.is_regular)
                return fail(err, ENOTSUP, "'%s' is a device: it is as large as it is", z->path);
        z->report.file_size = z->report.file_size_after = st.size;
        r = find_new_size(z, err);
        if (r == 0)
                r = check_limits(z, err);
        if (r == 0)
                r = check_parent(z, chain, err);
        if (r == 0 && z->new < z->old)
                r = check_shrink(z, chain, err);
        z->report.size_after = z->new;
        return r;
}

/* --- the file, under the lock */

static int open_again(const struct resizing *z, struct image **ret, struct error *err)
{
        struct file *file = NULL;
        int r = file_open(z->fs, z->path, FILE_WRITE, &file, err);

        if (r == 0)
                r = alone_open(file, z->format, IMAGE_NO_LOCK, ret, err);
        if (r < 0)
                return r;
        if ((*ret)->writable)
                return 0;
        fail(err, EROFS, "'%s' may not be changed: %s", z->path,
                (*ret)->warning[0] ? (*ret)->warning : "it opens read-only");
        *ret = image_abandon(*ret);
        return -EROFS;
}

static int open_file(struct resizing *z, struct error *err)
{
        int r = file_open(
                z->fs, z->path, z->params->dry_run ? FILE_READ : FILE_WRITE, &z->file, err);

        if (r == 0)
                r = file_lock_set(
                        z->file, z->params->dry_run ? FILE_LOCK_READ : FILE_LOCK_WRITE, err);
        return r;
}

static int read_metadata(struct resizing *z, struct error *err)
{
        return vhd_metadata_read(z->file, 0, &z->metadata, err);
}

/* Somebody may have written between the look and the lock. */
static int check_same(const struct resizing *z, const struct image *image, struct error *err)
{
        if (image->size == z->old && image->type == z->report.type)
                return 0;
        return fail(err, ESTALE, "'%s' was changed meanwhile", z->path);
}

/* --- dynamic and differencing */

static bool is_in_the_way(
        const struct table_plan *plan, const struct vhd_metadata *m, uint64_t place)
{
        return place != UINT64_MAX && plan->end > plan->old_end &&
                ranges_overlap(place - m->bitmap_size,
                        m->bitmap_size + (uint64_t)m->header.block_size, plan->old_end,
                        plan->end - plan->old_end);
}

static int move_away(
        struct resizing *z, struct image *image, const struct table_plan *plan, struct error *err)
{
        int r = 0;

        for (uint64_t at = 0; at < image->size && r >= 0;) {
                uint64_t length = MIN_OF((uint64_t)image->block_size, image->size - at), written;

                if (!is_in_the_way(plan, &z->metadata, image->format->place(image, at))) {
                        at += image->block_size;
                        continue;
                }
                r = image_block_move(image, at, length, plan->end, &written);
                if (r == -ENOBUFS)
                        r = image->format->flush(image); /* and once more */
                else if (r > 0)
                        z->report.n_moved++, at += image->block_size;
                else if (r == 0)
                        r = -EUCLEAN;
        }
        return r < 0
                ? fail_os(err, -r, "cannot move blocks of '%s' out of the way of its BAT", z->path)
                : 0;
}

/* Z1, in the file: a range that nobody reads yet. */
static int make_zero(struct file *file, uint64_t offset, uint64_t length)
{
        _cleanup_free_ uint8_t *buffer = malloc(READ_SIZE);
        uint64_t end = offset + length;

        if (!buffer)
                return -ENOMEM;
        if (MUTANT("resize-tail-kept"))
                return 0;
        for (uint64_t at = offset, n; at < end; at += n) {
                ssize_t got;
                int r = 0;

                n = MIN_OF(end - at, READ_SIZE);
                got = file_read(file, buffer, n, at, 0);
                if (got > 0 && !bytes_are_zero(buffer, (size_t)got)) {
                        memset(buffer, 0, (size_t)got);
                        r = file_write(file, buffer, (size_t)got, at, 0);
                }
                if (got < 0 || r < 0)
                        return got < 0 ? (int)got : r;
        }
        return 0;
}

/* Z1: the part of the last block that the disk did not have. */
static int zero_behind_end(struct resizing *z, struct image *image, struct error *err)
{
        uint64_t inside = z->old % image->block_size, place;
        int r;

        if (z->new <= z->old || inside == 0)
                return 0;
        place = image->format->place(image, z->old - inside);
        if (place == UINT64_MAX)
                return 0;
        r = make_zero(image->file, place + inside, image->block_size - inside);
        return r < 0 ? fail_os(err, -r, "cannot clear the last block of '%s'", z->path) : 0;
}

/* The leaf's own part of check_shrink(), now that nobody else writes. */
static int check_leaf_tail(struct resizing *z, struct image *image, struct error *err)
{
        _cleanup_free_ uint8_t *buffer = malloc(READ_SIZE);
        uint64_t at = z->new;

        if (!buffer)
                return fail(err, ENOMEM, "no memory to look at '%s'", z->path);
        while (at < z->old) {
                struct extent extent;
                uint64_t found = 0;
                int r = image->format->map(image, at, z->old - at, MAP_HOLES, &extent);

                if (r == 0 && extent.kind == EXTENT_DATA) {
                        struct chain_extent piece = {
                                .length = extent.length,
                                .file = image->file,
                                .file_offset = extent.file_offset,
                        };

                        r = first_in_data(&piece, buffer, &found);
                }
                if (r < 0)
                        return fail_os(err, -r, "cannot read '%s'", z->path);
                if (r == 1)
                        return fail(err, ESTALE, "'%s' was written to meanwhile", z->path);
                at += extent.length;
        }
        return 0;
}

/* Z2: afterwards the range that the plan wants is nobody's, and the image is as if never open. */
static int settle(struct resizing *z, struct table_plan *plan, struct error *err)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        int r = open_again(z, &image, err);

        if (r == 0)
                r = check_same(z, image, err);
        if (r == 0 && z->new < z->old)
                r = check_leaf_tail(z, image, err);
        if (r < 0 || !z->block_size)
                return r < 0 ? r : image_close(TAKE_PTR(image), err);
        r = read_metadata(z, err);
        if (r == 0)
                r = table_plan(&z->metadata, z->new, plan, err);
        if (r == 0 && !MUTANT("resize-blocks-stay"))
                r = move_away(z, image, plan, err);
        if (r == 0)
                r = zero_behind_end(z, image, err);
        if (r < 0 || MUTANT("resize-not-settled"))
                return r;
        return image_close(TAKE_PTR(image), err);
}

/* Another way round, before the intent: does no block lie where the table goes? */
static int check_way(struct resizing *z, const struct table_plan *plan, struct error *err)
{
        _cleanup_(vhd_bat_freep) struct vhd_bat *bat = NULL;
        uint32_t problems = 0;
        int r = vhd_bat_load(z->file, &z->metadata, &bat, &problems, err);

        if (r < 0)
                return r;
        for (uint32_t b = 0; b < z->metadata.n_blocks && !MUTANT("resize-blocks-stay"); b++) {
                uint32_t place = vhd_bat_get(bat, b);

                if (place == VHD_BAT_UNUSED || place == VHD_BAT_BAD)
                        continue;
                if (is_in_the_way(plan, &z->metadata,
                            (uint64_t)place * SECTOR_SIZE + z->metadata.bitmap_size))
                        return fail(err, EUCLEAN, "block %u of '%s' is still in the way of its BAT",
                                b, z->path);
        }
        return 0;
}

/* Blocks that the table does not name any more: the file ends where the others do. */
static int cut_file(struct resizing *z, struct error *err)
{
        _cleanup_(image_abandonp) struct image *image = NULL;
        int r = open_again(z, &image, err);

        if (r == 0)
                r = image->format->reclaim(image, true, err);
        return r < 0 ? r : image_close(TAKE_PTR(image), err);
}

static int resize_dynamic(struct resizing *z, struct error *err)
{
        struct table_plan plan;
        int r = settle(z, &plan, err);

        if (r < 0 || z->new == z->old) /* what was cut off before is complete now */
                return r;
        r = read_metadata(z, err); /* the footer may be elsewhere now */
        if (r == 0)
                r = table_plan(&z->metadata, z->new, &plan, err);
        if (r == 0)
                r = check_way(z, &plan, err);
        if (r == 0)
                r = table_change(z->file, &z->metadata, &plan, err);
        if (r == 0 && z->new < z->old)
                r = cut_file(z, err);
        return r;
}

static int plan_dynamic(struct resizing *z, struct error *err)
{
        _cleanup_(vhd_bat_freep) struct vhd_bat *bat = NULL;
        uint32_t problems = 0;
        struct table_plan plan;
        int r = read_metadata(z, err);

        if (r == 0)
                r = table_plan(&z->metadata, z->new, &plan, err);
        if (r == 0)
                r = vhd_bat_load(z->file, &z->metadata, &bat, &problems, err);
        for (uint32_t b = 0; r == 0 && b < z->metadata.n_blocks; b++) {
                uint32_t place = vhd_bat_get(bat, b);

                if (place != VHD_BAT_UNUSED && place != VHD_BAT_BAD)
                        z->report.n_moved += is_in_the_way(&plan, &z->metadata,
                                (uint64_t)place * SECTOR_SIZE + z->metadata.bitmap_size);
        }
        return r;
}

/* --- fixed (Z4) */

static int write_footer(
        struct resizing *z, const struct vhd_raw_footer *footer, uint64_t offset, struct error *err)
{
        int r = file_write(z->file, footer, sizeof(*footer), offset, 0);

        if (r == 0)
                r = file_sync(z->file);
        return r < 0 ? fail_os(err, -r, "cannot write the footer of '%s' at offset %" PRIu64,
                               z->path, offset)
                     : 0;
}

static int cut_behind(struct resizing *z, uint64_t size, struct error *err)
{
        int r = file_truncate(z->file, size);

        if (r == 0)
                r = file_sync(z->file);
        return r < 0 ? fail_os(err, -r, "cannot cut '%s' to %" PRIu64 " bytes", z->path, size) : 0;
}

/* Takes the space, or writes it where the file system cannot promise any. */
static int take_space(struct resizing *z, uint64_t from, uint64_t end, struct error *err)
{
        _cleanup_free_ uint8_t *zeros = NULL;
        int r = end > from ? file_reserve(z->file, from, end - from) : 0;

        if (r == -EOPNOTSUPP) {
                r = 0;
                zeros = calloc(1, READ_SIZE);
                if (!zeros)
                        return fail(err, ENOMEM, "no memory to resize '%s'", z->path);
                for (uint64_t at = from, n; at < end && r == 0; at += n) {
                        n = MIN_OF(end - at, READ_SIZE);
                        r = file_write(z->file, zeros, n, at, 0);
                }
        }
        return r < 0 ? fail_os(err, -r, "cannot take %" PRIu64 " bytes of space for '%s'",
                               end - from, z->path)
                     : 0;
}

static int grow_fixed(struct resizing *z, struct error *err)
{
        uint64_t old_tail = z->metadata.tail_offset, tail = MAX_OF(old_tail, z->new);
        struct vhd_raw_footer footer;
        int r = 0;

        if (tail > old_tail && !MUTANT("resize-footer-late"))
                r = write_footer(z, &z->metadata.footer.raw, tail, err);
        if (r < 0)
                return r;
        if (tail > old_tail) {
                r = take_space(z, old_tail + VHD_FOOTER_SIZE, tail, err);
                if (r < 0) {
                        cut_behind(z, old_tail + VHD_FOOTER_SIZE, NULL); /* as it was */
                        return r;
                }
        }
        table_footer(&z->metadata, z->new, &footer);
        if (MUTANT("resize-size-early") && tail > old_tail)
                r = write_footer(z, &footer, tail, err);
        if (r == 0)
                r = make_zero(z->file, z->old,
                        tail > old_tail ? old_tail + VHD_FOOTER_SIZE - z->old : z->new - z->old);
        if (r == 0)
                r = take_space(z, z->old, MIN_OF(old_tail, z->new), err);
        if (r == 0)
                r = file_sync(z->file);
        if (r < 0)
                return err && err->code ? r : fail_os(err, -r, "cannot write '%s'", z->path);
        return write_footer(z, &footer, tail, err);
}

/* The footer at the end already speaks of the size that it is to have: to its place, and the file's
 * end behind it. */
static int end_fixed(struct resizing *z, uint64_t tail, struct error *err)
{
        struct vhd_raw_footer footer;
        int r = 0;

        if (tail <= z->new)
                return 0;
        table_footer(&z->metadata, z->new, &footer);
        if (tail >= z->new + VHD_FOOTER_SIZE && !MUTANT("resize-cut-first"))
                r = write_footer(z, &footer, z->new, err);
        else if (tail < z->new + VHD_FOOTER_SIZE)
                return 0; /* they would overlap: less than a sector is not worth it */
        return r < 0 ? r : cut_behind(z, z->new + VHD_FOOTER_SIZE, err);
}

static int resize_fixed(struct resizing *z, struct error *err)
{
        struct table_plan unused;
        struct vhd_raw_footer footer;
        uint64_t tail;
        int r = settle(z, &unused, err);

        if (r == 0)
                r = read_metadata(z, err);
        if (r < 0)
                return r;
        tail = z->metadata.tail_offset;
        table_footer(&z->metadata, z->new, &footer);
        if (z->new > z->old)
                r = grow_fixed(z, err);
        else if (z->new < z->old)
                r = write_footer(z, &footer, tail, err);
        return r < 0 ? r : end_fixed(z, tail, err);
}

/* --- raw */

static int resize_raw(struct resizing *z, struct error *err)
{
        struct table_plan unused;
        int r = settle(z, &unused, err);

        return r < 0 ? r : cut_behind(z, z->new, err);
}

/* --- public */

static int change(struct resizing *z, struct error *err)
{
        int r = open_file(z, err);

        if (r < 0)
                return r;
        if (z->params->dry_run)
                return z->block_size ? plan_dynamic(z, err) : 0;
        if (z->report.type == IMAGE_RAW)
                r = resize_raw(z, err);
        else if (z->report.type == IMAGE_FIXED)
                r = resize_fixed(z, err);
        else
                r = resize_dynamic(z, err);
        return r < 0 ? r : file_size_get(z->file, &z->report.file_size_after);
}

int resize(const char *path, const struct chain_options *options,
        const struct resize_params *params, struct resize_report *ret, struct error *err)
{
        _cleanup_(resizing_freep) struct resizing *z = calloc(1, sizeof(*z));
        int r;

        if (!z)
                return fail(err, ENOMEM, "no memory to resize '%s'", path);
        z->path = path;
        z->fs = options->fs ? options->fs : host_fs();
        z->params = params;
        z->format = options->format;
        r = params->dry_run ? 0 : alone_settle(path, options, err);
        if (r == 0)
                r = look(z, options, err);
        if (r == 0)
                r = change(z, err);
        if (r < 0) {
                error_set_file(err, path);
                return r;
        }
        *ret = z->report;
        return 0;
}
