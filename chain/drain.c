/* SPDX-License-Identifier: Apache-2.0 */
/* Draining; D1 to D7 are in drain.h. */
#include "chain/drain.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/mutant.h"
#include "chain/internal.h"
#include "chain/push.h"

#define FLAT_UNIT     (UINT64_C(2) << 20)
#define BUFFER_SIZE   (UINT64_C(2) << 20)
#define CLONE_UNIT    UINT64_C(4096) /* what file systems share is whole blocks of theirs */
#define CLONE_MIN     (UINT64_C(64) << 10)
#define COMPARE_FIRST UINT64_C(4096)
#define ZERO_STEP     (UINT64_C(64) << 10) /* zeros are looked for in pieces of this size */

struct chain_drain {
        struct chain *chain;
        unsigned flags;
        unsigned n_sources;
        struct image **sources; /* the lowest first */
        struct image *destination;
        uint64_t unit, n_units;
        struct view_drain view; /* what changes go by, if the leaf is a source */
        bool started;
        bool clones; /* the file system shares blocks between files, as far as we know */
        uint8_t *buffer;
        uint64_t written_from, written_to; /* the unit that is copied, in the destination's file */
        uint8_t found[64 << 10];           /* by the destination, where it has something */
};

static bool is_up(const struct chain_drain *drain)
{
        return drain->flags & DRAIN_UP;
}

/* --- opening images for writing, and back */

/* The same file, the same content; only the way in is another. */
static int open_writer(
        struct chain *chain, struct image *reader, struct image **ret, struct error *err)
{
        struct file *file;
        int r = file_upgrade(reader->file, chain->direct ? FILE_DIRECT : 0, &file, err);

        if (r < 0)
                return r;
        r = image_open(file, reader->format->name, IMAGE_WRITABLE | IMAGE_NO_LOCK, ret, err);
        if (r == 0 && !(*ret)->writable) {
                r = fail(err, EROFS, "%s", (*ret)->warning);
                file = NULL;
                *ret = image_abandon(*ret);
        }
        if (r == 0)
                return 0;
        file_close(file);
        file_lock_set(reader->file, FILE_LOCK_READ, NULL);
        return r;
}

int chain_drain_upgrade(struct chain *chain, struct image **image, struct error *err)
{
        struct image *reader = *image, *writer = NULL;
        int r;

        if (atomic_load(&reader->flushes))
                return 0;
        r = open_writer(chain, reader, &writer, err);
        if (r < 0) {
                error_set_file(err, reader->file->path);
                return r;
        }
        image_lend_places(writer, chain->places);
        atomic_store(&writer->in_merge, true);
        atomic_store(&writer->flushes, true);
        r = chain_family_replace(chain->family, reader, writer, err);
        if (r < 0) {
                image_close(writer, NULL);
                file_lock_set(reader->file, FILE_LOCK_READ, NULL);
                return r;
        }
        image_abandon(reader);
        *image = writer;
        return 0;
}

int chain_drain_settle(struct chain *chain, struct image *image, struct error *err)
{
        MUTEX_GUARD(&chain->family->lock);
        atomic_store(&image->in_merge, false);
        if (!atomic_load(&image->flushes) || image == chain_leaf(chain))
                return 0;
        return chain_settle_layer(image, err);
}

int chain_drain_find(struct chain *chain, const char *path, struct image **ret, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct file_stat st;
        int r = file_open(chain->fs, path, FILE_READ | FILE_NOFOLLOW, &file, err);

        *ret = NULL;
        if (r < 0)
                return r;
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", path);
        MUTEX_GUARD(&chain->family->lock);
        *ret = chain_family_find(chain->family, &st, true);
        return 0;
}

/* --- opening */

static void drain_free(struct chain_drain *drain)
{
        atomic_fetch_sub(&drain->chain->family->n_drains, 1);
        free((void *)drain->view.done);
        free(drain->sources);
        free(drain->buffer);
        free(drain);
}

static uint64_t block_of(const struct image *image)
{
        return image->block_size ? image->block_size : FLAT_UNIT;
}

static int check_layers(
        const struct chain *chain, unsigned first, unsigned last, unsigned flags, struct error *err)
{
        unsigned n = chain_n_layers(chain);
        bool up = flags & DRAIN_UP;

        if (!chain->writable || chain->scratch || chain->leaf_only)
                return fail(
                        err, EROFS, "'%s' is not open for writing", chain_leaf(chain)->file->path);
        if (first > last || last >= n || (up ? last + 1 >= n : first == 0))
                return fail(err, EINVAL, "the chain has %u layers: no room to move %u to %u %s", n,
                        first, last, up ? "up" : "down");
        return 0;
}

static int fill(struct chain_drain *drain, unsigned first, unsigned last, struct error *err)
{
        const struct chain_view *view = chain_view(drain->chain);

        drain->n_sources = last - first + 1;
        drain->sources = calloc(drain->n_sources, sizeof(struct image *));
        drain->buffer = malloc(BUFFER_SIZE);
        if (!drain->sources || !drain->buffer)
                return fail(err, ENOMEM, "no memory to merge");
        drain->destination = view->layers[is_up(drain) ? last + 1 : first - 1];
        drain->unit = block_of(drain->destination);
        for (unsigned i = 0; i < drain->n_sources; i++) {
                struct image *source = view->layers[first + i];

                drain->sources[i] = source;
                drain->unit = MAX_OF(drain->unit, block_of(source));
                if (!source->block_size && !(drain->flags & DRAIN_KEEP))
                        return fail(err, ENOTSUP,
                                "'%s' cannot be emptied: nothing says what of it is "
                                "there",
                                source->file->path);
        }
        drain->n_units = div_round_up(drain->chain->size, drain->unit);
        drain->view.done = calloc(drain->n_units + 1, sizeof(*drain->view.done));
        return drain->view.done ? 0 : fail(err, ENOMEM, "no memory to merge");
}

static int upgrade_all(struct chain_drain *drain, struct error *err)
{
        int r = chain_drain_upgrade(drain->chain, &drain->destination, err);

        for (unsigned i = 0; r == 0 && i < drain->n_sources && !(drain->flags & DRAIN_KEEP); i++)
                r = chain_drain_upgrade(drain->chain, &drain->sources[i], err);
        return r;
}

static void mark(struct chain_drain *drain, bool in_merge)
{
        MUTEX_GUARD(&drain->chain->family->lock);
        atomic_store(&drain->destination->in_merge, in_merge);
        for (unsigned i = 0; i < drain->n_sources; i++)
                atomic_store(&drain->sources[i]->in_merge, in_merge);
}

int chain_drain_expect(struct chain *chain, unsigned patience_ms, struct error *err)
{
        atomic_fetch_add(&chain->family->n_drains, 1);
        if (grace_wait_for(chain->places, patience_ms))
                return 0;
        chain_drain_unexpect(chain);
        return fail(err, EBUSY, "a client has not taken yet what it asked for");
}

void chain_drain_unexpect(struct chain *chain)
{
        atomic_fetch_sub(&chain->family->n_drains, 1);
}

int chain_drain_open(struct chain *chain, unsigned first, unsigned last, unsigned flags,
        struct chain_drain **ret, struct error *err)
{
        struct chain_drain *drain;
        int r = check_layers(chain, first, last, flags, err);

        if (r < 0)
                return r;
        drain = calloc(1, sizeof(*drain));
        if (!drain)
                return fail(err, ENOMEM, "no memory to merge");
        drain->chain = chain;
        drain->flags = flags;
        drain->clones = true;
        atomic_fetch_add(&chain->family->n_drains, 1);
        r = fill(drain, first, last, err);
        if (r < 0) {
                drain_free(drain);
                return r;
        }
        mark(drain, true);
        r = upgrade_all(drain, err);
        if (r < 0) {
                chain_drain_close(drain);
                return r;
        }
        *ret = drain;
        return 0;
}

unsigned chain_drain_n_sources(const struct chain_drain *drain)
{
        return drain->n_sources;
}

struct image *chain_drain_source(const struct chain_drain *drain, unsigned index)
{
        return drain->sources[index];
}

struct image *chain_drain_destination(const struct chain_drain *drain)
{
        return drain->destination;
}

static unsigned index_of(const struct chain *chain, const struct image *image)
{
        const struct chain_view *view = chain_view(chain);
        unsigned i = 0;

        while (i < view_n_layers(view) && view->layers[i] != image)
                i++;
        return i;
}

static struct image *top_of(const struct chain_drain *drain)
{
        return is_up(drain) ? drain->destination : drain->sources[drain->n_sources - 1];
}

struct image *chain_drain_child(const struct chain_drain *drain)
{
        const struct chain_view *view = chain_view(drain->chain);
        unsigned above = index_of(drain->chain, top_of(drain)) + 1;

        return above < view_n_layers(view) ? view->layers[above] : NULL;
}

struct image *chain_drain_below(const struct chain_drain *drain)
{
        const struct chain_view *view = chain_view(drain->chain);
        unsigned lowest =
                index_of(drain->chain, is_up(drain) ? drain->sources[0] : drain->destination);

        return lowest > 0 ? view->layers[lowest - 1] : NULL;
}

/* --- starting and stopping */

static bool clears_below(const struct chain_drain *drain)
{
        return is_up(drain) && !(drain->flags & DRAIN_KEEP);
}

/* The present layers with the drain's gates, or without any of it. */
static int change_view(struct chain_drain *drain, bool begin, struct error *err)
{
        struct chain *chain = drain->chain;
        struct chain_view *old, *view = chain_view_new();
        int r;

        if (!view)
                return fail(err, ENOMEM, "no memory to merge");
        pthread_mutex_lock(&chain->family->lock);
        old = chain_view(chain);
        for (unsigned i = 0; i < view_n_layers(old); i++)
                view->layers[view->n_layers++] = old->layers[i];
        if (begin) {
                view->gate_size = drain->unit;
                view->keeps_blocks = clears_below(drain) ? drain->destination : NULL; /* D8 */
                view->drain = drain->view.unit ? &drain->view : NULL;
        }
        r = chain_view_complete(chain, view, err);
        if (r == 0)
                chain_view_put(chain, view);
        pthread_mutex_unlock(&chain->family->lock);
        if (r == 0)
                grace_wait(chain->places);
        chain_view_free(r == 0 ? old : view);
        return r;
}

static void link_rounds(const struct chain_drain *drain, bool link)
{
        struct image *below = drain->destination;

        if (is_up(drain))
                return;
        for (unsigned i = 0; i < drain->n_sources; i++) { /* D3 */
                atomic_store(&drain->sources[i]->flush_first, link ? below : NULL);
                below = drain->sources[i];
        }
}

int chain_drain_start(struct chain_drain *drain, struct error *err)
{
        struct chain *chain = drain->chain;
        int r;

        link_rounds(drain, true);
        /* Every flush from here on is one of them all. What was not durable before is now: then an
         * entry that is not there in memory is not there in the file. */
        r = chain_drain_flush(drain, err);
        if (r < 0)
                return r;
        if (!is_up(drain) && top_of(drain) == chain_leaf(chain)) {
                drain->view.first = index_of(chain, drain->sources[0]);
                drain->view.target = index_of(chain, drain->destination);
                drain->view.unit = drain->unit;
        }
        r = change_view(drain, true, err);
        drain->started = r == 0;
        return r;
}

static void settle_quietly(struct chain *chain, struct image *image)
{
        struct error why = ERROR_INIT;

        /* One that cannot be settled goes on as a layer that is not: flushes cover it, and closing
         * the chain tries again. */
        (void)chain_drain_settle(chain, image, &why);
}

void chain_drain_close(struct chain_drain *drain)
{
        struct error why = ERROR_INIT;

        if (!drain)
                return;
        if (drain->started && change_view(drain, false, &why) < 0)
                return; /* it lives on as the chain does */
        /* D3 holds for as long as a clear is not durable: after a failure here for good. */
        if (drain->started && chain_drain_flush(drain, &why) < 0) {
                mark(drain, false);
                drain_free(drain);
                return;
        }
        link_rounds(drain, false);
        settle_quietly(drain->chain, drain->destination);
        for (unsigned i = 0; i < drain->n_sources; i++)
                settle_quietly(drain->chain, drain->sources[i]);
        drain_free(drain);
}

/* --- units */

uint64_t chain_drain_unit_size(const struct chain_drain *drain)
{
        return drain->unit;
}

uint64_t chain_drain_n_units(const struct chain_drain *drain)
{
        return drain->n_units;
}

bool chain_drain_has(const struct chain_drain *drain, uint64_t unit)
{
        for (unsigned i = 0; i < drain->n_sources; i++)
                if (!drain->sources[i]->block_size ||
                        drain_holds(drain->sources[i], unit * drain->unit, drain->unit))
                        return true;
        return false;
}

/* What the sources have at @offset: of @source, at @file_offset of its file; or nothing (NULL). */
struct piece {
        struct image *source;
        uint64_t length, file_offset;
        bool zero;
};

static int find_piece(
        const struct chain_drain *drain, uint64_t offset, uint64_t length, struct piece *ret)
{
        *ret = (struct piece){.length = length};
        for (unsigned i = drain->n_sources; i-- > 0;) {
                struct image *source = drain->sources[i];
                struct extent extent;
                int r;

                if (offset >= source->size)
                        continue;
                ret->length = MIN_OF(ret->length, source->size - offset);
                if (source->block_size) {
                        ret->length = MIN_OF(
                                ret->length, source->block_size - offset % source->block_size);
                        if (!source->format->holds(source, offset))
                                continue;
                }
                r = source->format->map(source, offset, ret->length, MAP_HOLES, &extent);
                if (r < 0)
                        return r;
                ret->length = extent.length;
                if (extent.kind == EXTENT_ABSENT)
                        continue;
                ret->source = source;
                ret->zero = extent.kind == EXTENT_ZERO;
                ret->file_offset = extent.file_offset;
                return 0;
        }
        return 0;
}

/* Asking for what is there already is not for nothing: it waits for punches of the same file. */
static bool is_cached(struct file *file, uint64_t offset, uint64_t length)
{
        uint8_t byte;

        return file_read(file, &byte, 1, offset, FILE_NOWAIT) == 1 &&
                file_read(file, &byte, 1, offset + length - 1, FILE_NOWAIT) == 1;
}

void chain_drain_prefetch(const struct chain_drain *drain, uint64_t unit)
{
        uint64_t offset = unit * drain->unit;
        uint64_t end = MIN_OF(offset + drain->unit, drain->chain->size);

        while (offset < end) {
                struct piece piece;

                if (find_piece(drain, offset, end - offset, &piece) < 0)
                        return;
                if (piece.source && !piece.zero && piece.source->file->fd >= 0 &&
                        !is_cached(piece.source->file, piece.file_offset, piece.length))
                        posix_fadvise(piece.source->file->fd, (off_t)piece.file_offset,
                                (off_t)piece.length, POSIX_FADV_WILLNEED);
                offset += piece.length;
        }
}

/* --- putting into the destination */

/* The first piece of [offset, offset + length) that lies in one block of the destination. */
static uint64_t inside_block(const struct chain_drain *drain, uint64_t offset, uint64_t length)
{
        uint64_t block = block_of(drain->destination);

        return MIN_OF(length, block - offset % block);
}

static int put_done(struct chain_drain *drain, uint64_t offset, uint64_t length)
{
        struct image *to = drain->destination;
        bool changed;

        return to->format->complete(to, offset, length, &changed);
}

/* Has the destination these very bytes? A different beginning tells for the price of a page. */
static bool has_already(
        struct chain_drain *drain, const uint8_t *data, uint64_t offset, uint64_t length)
{
        struct image *to = drain->destination;
        struct extent extent;
        uint64_t step = MIN_OF(length, COMPARE_FIRST);

        if (to->format->holds && !to->format->holds(to, offset))
                return false;
        if (to->format->map(to, offset, length, MAP_HOLES, &extent) < 0 ||
                extent.kind != EXTENT_DATA || extent.length < length)
                return false;
        for (uint64_t at = 0; at < length; at += step) {
                step = MIN_OF(length - at, at == 0 ? COMPARE_FIRST : sizeof(drain->found));
                if (file_read_exact(to->file, drain->found, step, extent.file_offset + at) < 0 ||
                        memcmp(drain->found, data + at, step) != 0)
                        return false;
        }
        return true;
}

static void note_written(struct chain_drain *drain, uint64_t file_offset, uint64_t length)
{
        if (drain->written_to == 0)
                drain->written_from = file_offset;
        drain->written_from = MIN_OF(drain->written_from, file_offset);
        drain->written_to = MAX_OF(drain->written_to, file_offset + length);
}

/* Only a hint, so that the disk is busy before the round waits for it. Not inside a gate: it may wait. */
static void begin_to_write_back(struct chain_drain *drain)
{
        struct file *file = drain->destination->file;

        if (drain->written_to > 0 && file->fd >= 0)
                sync_file_range(file->fd, (off_t)drain->written_from,
                        (off_t)(drain->written_to - drain->written_from), SYNC_FILE_RANGE_WRITE);
        drain->written_from = drain->written_to = 0;
}

/* *ret_bytes: how much of it had to be written. */
static int put_data(struct chain_drain *drain, const uint8_t *data, uint64_t offset,
        uint64_t length, uint64_t *ret_bytes)
{
        struct image *to = drain->destination;

        while (length > 0) {
                uint64_t n = inside_block(drain, offset, length), file_offset;
                bool zero;
                int r = 0;

                if (!has_already(drain, data, offset, n)) {
                        r = to->format->prepare(to, offset, n, 0, &file_offset, &zero);
                        if (r == 0)
                                r = file_write(to->file, data, n, file_offset, 0);
                        if (r == 0)
                                note_written(drain, file_offset, n);
                        if (r == 0)
                                r = put_done(drain, offset, n);
                        *ret_bytes += n;
                }
                if (r < 0)
                        return r;
                data += n;
                offset += n;
                length -= n;
        }
        return 0;
}

/* E9: zeros over a destination that has a parent are stored, as a hole. */
static int store_zeros(struct chain_drain *drain, uint64_t offset, uint64_t length)
{
        struct image *to = drain->destination;
        uint64_t file_offset;
        bool zero;
        int r = to->format->prepare(to, offset, length, 0, &file_offset, &zero);

        if (r == 0 && !zero)
                r = file_punch(to->file, file_offset, length);
        return r == 0 ? put_done(drain, offset, length) : r;
}

/* In a root only what it has need become zeros. */
static int punch_what_is_there(struct chain_drain *drain, uint64_t offset, uint64_t length)
{
        struct image *to = drain->destination;

        while (length > 0) {
                struct extent extent;
                int r = to->format->map(to, offset, length, MAP_HOLES, &extent);

                if (r == 0 && extent.kind == EXTENT_DATA)
                        r = file_punch(to->file, extent.file_offset, extent.length);
                if (r < 0)
                        return r;
                offset += extent.length;
                length -= extent.length;
        }
        return 0;
}

static bool is_root(const struct chain_drain *drain)
{
        return chain_view(drain->chain)->layers[0] == drain->destination;
}

static int put_zeros(struct chain_drain *drain, uint64_t offset, uint64_t length)
{
        while (length > 0) {
                uint64_t n = inside_block(drain, offset, length);
                int r = is_root(drain) ? punch_what_is_there(drain, offset, n)
                                       : store_zeros(drain, offset, n);

                if (r < 0)
                        return r;
                offset += n;
                length -= n;
        }
        return 0;
}

/* How much of the buffer, from its beginning, is alike: zeros, or not (@ret). */
static uint64_t run_of(const uint8_t *data, uint64_t length, bool *ret)
{
        uint64_t n = MIN_OF(length, ZERO_STEP);

        *ret = bytes_are_zero(data, n);
        while (n < length) {
                uint64_t step = MIN_OF(length - n, ZERO_STEP);

                if (bytes_are_zero(data + n, step) != *ret)
                        break;
                n += step;
        }
        return n;
}

/* A root and its blocks that hold nothing: nothing is to be done there, and nothing was. */
static int put(struct chain_drain *drain, const uint8_t *data, uint64_t offset, uint64_t length,
        uint64_t *ret_bytes)
{
        while (length > 0) {
                bool zero;
                uint64_t n = run_of(data, length, &zero);
                int r = zero ? put_zeros(drain, offset, n)
                             : put_data(drain, data, offset, n, ret_bytes);

                if (r < 0)
                        return r;
                data += n;
                offset += n;
                length -= n;
        }
        return 0;
}

static int failed_piece(
        const struct image *image, uint64_t offset, int r, const char *what, struct error *err)
{
        error_set_file(err, image->file->path);
        error_set_offset(err, offset);
        return fail_os(err, -r, "cannot %s '%s' for the disk's offset %llu", what,
                image->file->path, (unsigned long long)offset);
}

/* The destination shares the source's bytes: nothing is read, and nothing written. 1: so it is. */
static int clone_piece(struct chain_drain *drain, const struct piece *piece, uint64_t offset)
{
        struct image *to = drain->destination;
        uint64_t file_offset;
        bool zero;
        int r;

        if (!drain->clones || piece->file_offset % CLONE_UNIT || piece->length % CLONE_UNIT ||
                piece->length < CLONE_MIN ||
                inside_block(drain, offset, piece->length) < piece->length)
                return 0;
        r = to->format->prepare(to, offset, piece->length, 0, &file_offset, &zero);
        if (r < 0)
                return r;
        if (file_offset % CLONE_UNIT)
                return 0;
        r = file_clone(
                to->file, file_offset, piece->source->file, piece->file_offset, piece->length);
        if (r == -EOPNOTSUPP) {
                drain->clones = false;
                return 0;
        }
        if (r == 0)
                r = put_done(drain, offset, piece->length);
        return r < 0 ? r : 1;
}

static int copy_piece(struct chain_drain *drain, const struct piece *piece, uint64_t offset,
        uint64_t *ret_bytes, struct error *err)
{
        uint64_t length = piece->length, from = piece->file_offset;
        int r = 0;

        if (piece->zero) {
                r = put_zeros(drain, offset, length);
                return r < 0 ? failed_piece(drain->destination, offset, r, "write", err) : 0;
        }
        r = clone_piece(drain, piece, offset);
        if (r == 1) {
                *ret_bytes += length;
                return 0;
        }
        if (r < 0)
                return failed_piece(drain->destination, offset, r, "write", err);
        while (length > 0) {
                uint64_t n = MIN_OF(length, BUFFER_SIZE);

                r = file_read_exact(piece->source->file, drain->buffer, n, from);
                if (r < 0)
                        return failed_piece(piece->source, offset, r, "read", err);
                r = put(drain, drain->buffer, offset, n, ret_bytes);
                if (r < 0)
                        return failed_piece(drain->destination, offset, r, "write", err);
                from += n;
                offset += n;
                length -= n;
        }
        return 0;
}

/* --- one unit */

static int copy_range(struct chain_drain *drain, uint64_t offset, uint64_t end, uint64_t *ret_bytes,
        struct error *err)
{
        while (offset < end) {
                struct piece piece;
                int r = find_piece(drain, offset, end - offset, &piece);

                if (r < 0)
                        return failed_piece(
                                drain->sources[drain->n_sources - 1], offset, r, "look at", err);
                if (piece.source)
                        r = copy_piece(drain, &piece, offset, ret_bytes, err);
                if (r < 0)
                        return r;
                offset += piece.length;
        }
        return 0;
}

/* What the destination itself has at @offset, within one block of it. */
static int look_at_destination(struct chain_drain *drain, uint64_t offset, uint64_t end,
        struct extent *ret, struct error *err)
{
        struct image *to = drain->destination;
        uint64_t n = inside_block(drain, offset, end - offset);
        int r = 0;

        *ret = (struct extent){.kind = EXTENT_ABSENT, .length = n};
        if (to->format->holds(to, offset))
                r = to->format->map(to, offset, n, 0, ret);
        return r < 0 ? failed_piece(to, offset, r, "look at", err) : 0;
}

/* What the destination has stays; what it lacks and a source has comes into it. */
static int pull_range(struct chain_drain *drain, uint64_t offset, uint64_t end, uint64_t *ret_bytes,
        struct error *err)
{
        while (offset < end) {
                struct extent extent;
                int r = look_at_destination(drain, offset, end, &extent, err);

                if (r == 0 && extent.kind == EXTENT_ABSENT)
                        r = copy_range(drain, offset, offset + extent.length, ret_bytes, err);
                if (r < 0)
                        return r;
                offset += extent.length;
        }
        return 0;
}

/* After pull_range: where nobody has anything a block of a root must hold zeros, because not everybody
 * looks at bitmaps there. */
static int fill_range(struct chain_drain *drain, uint64_t offset, uint64_t end, struct error *err)
{
        struct image *to = drain->destination;

        while (drain->flags & DRAIN_ROOT && offset < end) {
                struct extent extent;
                int r = look_at_destination(drain, offset, end, &extent, err);

                if (r < 0)
                        return r;
                if (extent.kind == EXTENT_ABSENT && to->format->holds(to, offset))
                        r = store_zeros(drain, offset, extent.length);
                if (r < 0)
                        return failed_piece(to, offset, r, "write", err);
                offset += extent.length;
        }
        return 0;
}

static int clear_source(struct image *source, uint64_t offset, uint64_t end)
{
        int r = 0;

        for (; r == 0 && offset < end && offset < source->size; offset += source->block_size)
                if (source->format->holds(source, offset))
                        r = source->format->release(source, offset);
        return r;
}

static int clear_unit(struct chain_drain *drain, uint64_t unit, struct error *err)
{
        uint64_t offset = unit * drain->unit,
                 end = MIN_OF(offset + drain->unit, drain->chain->size);
        struct image *source = NULL;
        int r = 0;

        for (unsigned i = 0; r == 0 && i < drain->n_sources; i++) { /* D2 */
                unsigned k = MUTANT("drain-top-first") ? drain->n_sources - 1 - i : i;

                source = drain->sources[k];
                r = clear_source(source, offset, end);
        }
        /* Also where the last ones were not cleared: who read before knows places of the first. */
        chain_family_forget(drain->chain->family, offset, end - offset);
        (void)MUTANT("drain-up-frees"); /* here another thread may run */
        return r < 0 ? failed_piece(source, offset, r, "free a block of", err) : 0;
}

int chain_drain_clear(struct chain_drain *drain, uint64_t unit, struct error *err)
{
        int r = clear_unit(drain, unit, err);

        while (r == -ENOBUFS) {
                error_clear(err);
                r = chain_drain_flush(drain, err);
                if (r == 0)
                        r = clear_unit(drain, unit, err);
        }
        return r;
}

static int copy_closed(
        struct chain_drain *drain, uint64_t unit, uint64_t *ret_bytes, struct error *err)
{
        uint64_t offset = unit * drain->unit,
                 end = MIN_OF(offset + drain->unit, drain->chain->size);
        int r;

        if (!is_up(drain)) {
                r = copy_range(drain, offset, end, ret_bytes, err);
                if (r == 0)
                        return clear_unit(drain, unit, err);
                /* What there is of the copy is seen where the source is asked to forget its block. */
                chain_family_forget(drain->chain->family, offset, end - offset);
                return r;
        }
        r = pull_range(drain, offset, end, ret_bytes, err);
        if (r == 0)
                r = fill_range(drain, offset, end, err);
        /* Readers find the copy from here on; before, an owner below was as good. */
        chain_family_forget(drain->chain->family, offset, end - offset);
        return r;
}

static int copy_once(
        struct chain_drain *drain, uint64_t unit, uint64_t *ret_bytes, struct error *err)
{
        bool open = MUTANT("drain-gate-open");
        int r;

        *ret_bytes = 0;
        if (!open)
                gate_close(drain->chain->gates, unit); /* D1; the view's gates are of this size */
        r = copy_closed(drain, unit, ret_bytes, err);
        if (!open)
                gate_open(drain->chain->gates, unit);
        begin_to_write_back(drain);
        return r;
}

/* A redo file that is full wants a round, and a round is nothing to do inside a gate. What was copied
 * and not cleared is copied again: the source is what counts until then. */
int chain_drain_copy(
        struct chain_drain *drain, uint64_t unit, uint64_t *ret_bytes, struct error *err)
{
        int r = copy_once(drain, unit, ret_bytes, err);

        while (r == -ENOBUFS) {
                error_clear(err);
                r = chain_drain_flush(drain, err);
                if (r == 0)
                        r = copy_once(drain, unit, ret_bytes, err);
        }
        return r;
}

void chain_drain_grace(const struct chain_drain *drain)
{
        if (!MUTANT("drain-no-grace-up"))
                grace_wait(drain->chain->places); /* D5 */
}

static int flush_one(struct image *image, struct error *err)
{
        int r = image->format->flush(image);

        if (r == 0)
                return 0;
        error_set_file(err, image->file->path);
        return fail_os(err, -r, "cannot flush '%s'", image->file->path);
}

/* Down: the round of a source has those of the images below in its middle (D3). */
int chain_drain_flush(struct chain_drain *drain, struct error *err)
{
        int r;

        if (drain->n_sources > 0 && !is_up(drain))
                return flush_one(drain->sources[drain->n_sources - 1], err);
        r = flush_one(drain->destination, err);
        for (unsigned i = 0; r == 0 && i < drain->n_sources && !(drain->flags & DRAIN_KEEP); i++)
                r = flush_one(drain->sources[i], err);
        return r;
}

void chain_drain_reclaim(struct chain_drain *drain)
{
        struct error ignored = ERROR_INIT; /* the space is given back with the file at the latest */

        for (unsigned i = 0; i < drain->n_sources; i++)
                if (!(drain->flags & DRAIN_KEEP))
                        drain->sources[i]->format->reclaim(drain->sources[i], false, &ignored);
}

bool chain_is_moving(const struct chain *chain)
{
        return atomic_load_explicit(&chain->family->n_drains, memory_order_relaxed) > 0;
}

/* --- the end */

/* Empty and durable, or as it always was: it goes in any case. */
static void close_source(struct image *source)
{
        atomic_store(&source->flush_first, NULL);
        image_leave_places(source);
        if (source->writable)
                (void)image_close(source, NULL);
        else
                image_abandon(source);
}

/* Sources that keep their bytes may have other children: they go from beneath this one, in whatever chain, and what
 * is theirs afterwards is nothing to it. */
static const struct image *remains_beside(const struct chain_drain *drain)
{
        return drain->flags & DRAIN_KEEP ? drain->destination : NULL;
}

int chain_drain_may_end(struct chain_drain *drain, struct error *err)
{
        if (!chain_family_moves(
                    drain->chain, remains_beside(drain), drain->sources, drain->n_sources))
                return 0;
        return fail(
                err, EBUSY, "another merge is at work over '%s'", drain->sources[0]->file->path);
}

int chain_drain_remove(struct chain_drain *drain, struct error *err)
{
        struct chain *chain = drain->chain;
        unsigned n = drain->n_sources;
        int r = chain_family_remove(chain->family, remains_beside(drain), drain->sources, n, err);

        if (r < 0)
                return r;
        mark(drain, false);
        while (n-- > 0) /* the uppermost first: its close is a round */
                if (drain->sources[n]->n_holders == 0)
                        close_source(drain->sources[n]);
        drain->n_sources = 0;
        chain_drain_close(drain);
        return 0;
}
