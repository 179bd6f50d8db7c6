/* SPDX-License-Identifier: Apache-2.0 */
/* Invariants of a flush (E3, E5), cited below:
 *   I1  one sync at a time. Linux hands the error of a lost writeback to one caller only, so of two
 *       syncs side by side one could answer 0 for data that the other was told is lost.
 *   I2  a flush is answered by a sync that began after it came.
 *   I3  a failed sync is noted where the process's death leaves it before anybody is answered, and
 *       none is tried after it: the kernel has told all it will ever tell.
 */
#include "formats/flat.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"

static void sync_after_death(struct flat *flat);
static int poison_of_reader(struct file *file, bool *ret_unclean);
static void warn_poisoned(const struct flat *flat, int code, char *warning);

int flat_open(struct flat *flat, struct file *file, uint64_t size, bool writable,
        bool *ret_writable, char *warning, struct error *err)
{
        bool unclean = false;
        int code;
        int r;

        *flat = (struct flat){.file = file, .size = size};
        if (writable) {
                r = poison_hold(file, &flat->poison, &unclean, err);
                if (r < 0)
                        return r;
                if (unclean)
                        sync_after_death(flat);
                code = poison_get(flat->poison);
        } else {
                code = poison_of_reader(file, &flat->unclean);
        }
        if (code != 0) {
                warn_poisoned(flat, code, warning);
                flat->lost = true;
                flat->poison = poison_release(flat->poison, false);
        }

        pthread_mutex_init(&flat->lock, NULL);
        pthread_cond_init(&flat->round_ended, NULL);
        *ret_writable = flat->poison != NULL;
        return 0;
}

int flat_close(struct flat *flat, bool clean, struct error *err)
{
        int r = 0;

        if (clean && flat->poison) {
                r = flat_flush(flat);
                if (r < 0)
                        r = fail_os(err, -r, "cannot flush '%s'", flat->file->path);
        }
        flat->poison = poison_release(flat->poison, clean && r == 0);
        pthread_cond_destroy(&flat->round_ended);
        pthread_mutex_destroy(&flat->lock);
        return r;
}

int flat_settle(struct flat *flat, struct error *err)
{
        int r = flat_flush(flat);

        if (r < 0)
                return fail_os(err, -r, "cannot flush '%s'", flat->file->path);
        MUTEX_GUARD(&flat->lock);
        while (flat->running)
                pthread_cond_wait(&flat->round_ended, &flat->lock);
        if (flat->first_failed != 0) /* a flush beside ours */
                return fail_os(err, EIO, "cannot flush '%s'", flat->file->path);
        flat->poison = poison_release(flat->poison, true);
        return 0;
}

int flat_map(
        struct flat *flat, uint64_t offset, uint64_t length, unsigned flags, struct extent *ret)
{
        struct extent extent = {.kind = EXTENT_DATA, .length = length, .file_offset = offset};
        uint64_t edge;
        int r;

        assert(range_inside(offset, length, flat->size));

        if (flags & MAP_HOLES) {
                /* The file system may have to read its own tables to tell. */
                if (flags & MAP_NOWAIT)
                        return -EAGAIN;
                r = file_seek_data(flat->file, offset, &edge);
                if (r < 0)
                        return r;
                if (edge > offset) {
                        extent.kind = EXTENT_ZERO;
                        extent.file_offset = 0;
                } else {
                        r = file_seek_hole(flat->file, offset, &edge);
                        if (r < 0)
                                return r;
                        /* Punched between the two looks: a hole of unknown length. Data it was. */
                        if (edge <= offset)
                                edge = offset + length;
                }
                extent.length = MIN_OF(length, edge - offset);
        }
        *ret = extent;
        return 0;
}

int flat_prepare(struct flat *flat, uint64_t offset, uint64_t length, uint64_t *ret_file_offset,
        bool *ret_zero)
{
        assert(range_inside(offset, length, flat->size));

        if (!flat->poison)
                return -EROFS;
        if (poison_get(flat->poison) != 0)
                return -EIO;
        *ret_file_offset = offset;
        *ret_zero = false;
        return 0;
}

int flat_complete(struct flat *flat, uint64_t offset, uint64_t length, bool *ret_changed)
{
        assert(range_inside(offset, length, flat->size));

        *ret_changed = false;
        return 0;
}

bool flat_is_durable(struct flat *flat, uint64_t offset, uint64_t length)
{
        assert(range_inside(offset, length, flat->size));

        return flat->poison && poison_get(flat->poison) == 0;
}

/* The round that a flush which comes now may take: the next one to begin (I2). Called with the
 * lock held; so is the return. */
static void run_round_locked(struct flat *flat)
{
        uint64_t round = ++flat->started;
        int r;

        flat->running = true;
        pthread_mutex_unlock(&flat->lock);
        r = file_sync(flat->file);
        if (r < 0)
                flat_poison(flat, -r); /* I3 */
        pthread_mutex_lock(&flat->lock);
        flat->running = false;
        flat->ended = round;
        if (r < 0 && flat->first_failed == 0)
                flat->first_failed = round;
        pthread_cond_broadcast(&flat->round_ended);
}

int flat_flush(struct flat *flat)
{
        uint64_t mine;

        MUTEX_GUARD(&flat->lock);
        mine = flat->started + 1;
        while (flat->ended < mine) {
                if (!flat->poison)
                        return 0; /* nothing of ours can be unsynced */
                if (flat->first_failed != 0 && !MUTANT("retry-sync"))
                        return -EIO; /* I3 */
                if (poison_get(flat->poison) != 0 && !MUTANT("retry-sync"))
                        return -EIO; /* a durable write failed */
                if (flat->running)
                        pthread_cond_wait(&flat->round_ended, &flat->lock); /* I1 */
                else
                        run_round_locked(flat);
        }
        return flat->first_failed != 0 && flat->first_failed <= mine ? -EIO : 0;
}

void flat_poison(struct flat *flat, int code)
{
        if (flat->poison && !MUTANT("forget-poison"))
                poison_set(flat->poison, code);
}

/* E4: what a dead process wrote may still be on its way, and its error with it. Nothing counts as
 * durable before this sync. If it fails the image opens all the same, to be read. */
static void sync_after_death(struct flat *flat)
{
        int r;

        if (poison_get(flat->poison) != 0 || MUTANT("no-sync-at-open"))
                return;
        r = file_sync(flat->file);
        if (r < 0)
                poison_set(flat->poison, -r);
        /* E13: an intent that is gone must not come back over what we write. A device has none. */
        if (!MUTANT("intent-comes-back"))
                (void)fs_sync_directory(flat->file->fs, flat->file->path);
}

/* A mark that we may not read (another user's) is no reason to keep a reader from the data. */
static int poison_of_reader(struct file *file, bool *ret_unclean)
{
        struct error ignored = ERROR_INIT;
        int code = 0;

        *ret_unclean = false;
        return poison_look(file, &code, ret_unclean, &ignored) < 0 ? 0 : code;
}

static void warn_poisoned(const struct flat *flat, int code, char *warning)
{
        snprintf(warning, ERROR_MESSAGE_MAX,
                "'%s' is read-only: the kernel could not write all of it to disk (%s), so some of "
                "the latest writes may be lost; look at its content, then run vhdctl check --repair",
                flat->file->path, strerror(code));
}
