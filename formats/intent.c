/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of an intent. Rules that the crash test holds it to:
 *
 *   I1  No image is written before the copy beside every image is whole and durable.
 *   I2  No copy is removed before every image is synced.
 *   I3  The copy beside image 0 is the first to come and the last to go: as long as any image may
 *       hold a mixture, its opener finds the intent beside it, or beside the parent it opens next.
 *   I4  So a copy that some other image lacks says nothing (it was not begun, or all of it is durable)
 *       as long as its own image is whole: it is not shown, and goes.
 *   I5  A copy is gone when its name is, or when what it says is: who cannot remove it any more (a
 *       daemon's worker whose broker died) makes it a torn one, through the descriptor that it wrote it
 *       with. While neither could be done the bytes it names do not change (E13).
 */
#include "formats/intent.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "base/uuid.h"
#include "formats/intent_internal.h"
#include "formats/sync_note.h"
#include "formats/vhd/metadata.h"

#define VOID_SIZE 8u /* of the cookie */

struct intent *intent_new(void)
{
        struct intent *intent = calloc(1, sizeof(*intent));

        if (intent)
                uuid_random(intent->id);
        return intent;
}

struct intent *intent_free(struct intent *intent)
{
        if (!intent)
                return NULL;
        for (uint32_t i = 0; i < intent->n_images; i++) {
                if (intent->images[i].own_file)
                        file_close(intent->images[i].file);
                file_close(intent->images[i].copy);
                free(intent->images[i].path);
        }
        for (uint32_t i = 0; i < intent->n_changes; i++)
                free(intent->changes[i].bytes);
        free(intent->images);
        free(intent->changes);
        free(intent);
        return NULL;
}

/* ---- building ---- */

int intent_add_image(struct intent *intent, struct file *file, const uint8_t id_before[16],
        const uint8_t id_after[16], struct error *err)
{
        struct intent_image image = {.file = file};

        if (intent->n_images >= INTENT_MAX_IMAGES)
                return fail(err, E2BIG, "more than %u images in one step", INTENT_MAX_IMAGES);
        if (intent_grow(intent, intent->n_images + 1, intent->n_changes) < 0)
                return fail(err, ENOMEM, "no memory for an intent");
        image.path = intent_path_of(file);
        if (!image.path)
                return fail(err, ENOMEM, "no memory for an intent");
        memcpy(image.id_before, id_before, 16);
        memcpy(image.id_after, id_after, 16);
        intent->images[intent->n_images] = image;
        return (int)intent->n_images++;
}

int intent_add(struct intent *intent, unsigned image, uint64_t offset, const void *bytes,
        size_t length, struct error *err)
{
        struct intent_change change = {.image = image, .offset = offset};
        struct file *file = intent->images[image].file;
        ssize_t n;

        assert(image < intent->n_images);
        assert(length > 0);
        assert(length <= INTENT_MAX_SIZE);
        if (intent->n_changes >= INTENT_MAX_CHANGES)
                return fail(err, E2BIG, "more than %u changes in one step", INTENT_MAX_CHANGES);
        if (intent_grow(intent, intent->n_images, intent->n_changes + 1) < 0)
                return fail(err, ENOMEM, "no memory for an intent");
        change.length = (uint32_t)length;
        change.bytes = calloc(2, length);
        if (!change.bytes)
                return fail(err, ENOMEM, "no memory for an intent");
        memcpy(change.bytes, bytes, length);
        n = file_read(file, change.bytes + length, length, offset, 0);
        if (n < 0) {
                free(change.bytes);
                return fail_os(
                        err, (int)-n, "cannot read '%s' at offset %" PRIu64, file->path, offset);
        }
        change.old_length = (uint32_t)n;
        intent->changes[intent->n_changes++] = change;
        return 0;
}

/* ---- the copies beside the images ---- */

static int copy_name(
        const struct intent *intent, uint32_t index, char *ret, size_t size, struct error *err)
{
        const char *path = intent->images[index].path;

        if (snprintf(ret, size, "%s" INTENT_ENDING, path) >= (int)size)
                return fail(err, ENAMETOOLONG, "the name of '%s' is too long", path);
        return 0;
}

/* Does each change of the image read as the new bytes all over, or, not @new, as the old ones? */
static int image_holds(
        const struct intent *intent, uint32_t index, struct file *file, bool new, struct error *err)
{
        for (uint32_t i = 0; i < intent->n_changes; i++) {
                const struct intent_change *change = &intent->changes[i];
                const uint8_t *bytes = change->bytes + (new ? 0 : change->length);
                uint32_t n_least = new ? change->length : change->old_length;
                _cleanup_free_ uint8_t *found = NULL;
                ssize_t n;

                if (change->image != index)
                        continue;
                found = malloc(change->length);
                if (!found)
                        return fail(err, ENOMEM, "no memory to compare '%s'", file->path);
                n = file_read(file, found, change->length, change->offset, 0);
                if (n < 0)
                        return fail_os(err, (int)-n, "cannot read '%s' at offset %" PRIu64,
                                file->path, change->offset);
                /* Behind the old bytes @bytes has zeros, and so has a file that grew. */
                if ((uint64_t)n < n_least || memcmp(found, bytes, (size_t)n) != 0)
                        return 0;
        }
        return 1;
}

static int copy_remove(struct intent *intent, uint32_t index, struct error *err);

/* Do all images of @there hold its new bytes, or, not @new, the old ones? 0 also if one is not ours. */
static int all_hold(const struct intent *there, bool new, struct error *err)
{
        int r = 1;

        for (uint32_t i = 0; r == 1 && i < there->n_images; i++)
                r = there->images[i].file ? image_holds(there, i, there->images[i].file, new, err)
                                          : 0;
        return r;
}

/* Somebody who had these images open, and could not go on (a daemon's worker without its broker), left
 * @there, whose files were lent to it. They are ours now, as they are: if nothing of it was written, or
 * all, it has nothing more to say. 1: it is gone. */
static int drop_left(struct intent *there, struct error *err)
{
        int r = all_hold(there, false, err);

        if (r == 0)
                r = all_hold(there, true, err);
        for (uint32_t i = there->n_images; r == 1 && i > 0; i--) {
                int removed = copy_remove(there, i - 1, err);

                if (removed < 0)
                        r = removed;
        }
        return r;
}

static void lend_file(struct intent *there, const char *path, struct file *file)
{
        for (uint32_t i = 0; path && i < there->n_images; i++)
                if (strcmp(there->images[i].path, path) == 0)
                        there->images[i].file = file;
}

static int clear_one(struct file *file, struct file *const *files, size_t n, struct error *err)
{
        _cleanup_(intent_freep) struct intent *there = NULL;
        _cleanup_free_ char *path = intent_path_of(file);
        struct file_stat st;
        int r = path ? file_stat_get(file, &st) : -ENOMEM;

        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        r = intent_load(file->fs, path, st.owner, &there, NULL);
        if (r < 0)
                return 0; /* none; or one that the next change of the image will be told of */
        for (size_t i = 0; i < n; i++) {
                _cleanup_free_ char *other = intent_path_of(files[i]);

                lend_file(there, other, files[i]);
        }
        r = drop_left(there, err);
        return r < 0 ? r : 0;
}

int intent_clear(struct file *const *files, size_t n, struct error *err)
{
        int r = 0;

        for (size_t i = 0; r == 0 && i < n; i++)
                r = clear_one(files[i], files, n, err);
        return r;
}

/* Is this intent's own copy there already (1), none or a torn one (0), or another's (-EBUSY)? */
static int copy_look(const struct intent *intent, uint32_t index, struct error *err)
{
        const struct intent_image *image = &intent->images[index];
        _cleanup_(intent_freep) struct intent *there = NULL;
        struct file_stat st;
        int r;

        r = file_stat_get(image->file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", image->path);
        r = intent_load(image->file->fs, image->path, st.owner, &there, err);
        if (r == -ENOENT || r == -EBADMSG)
                return 0;
        if (r < 0)
                return r;
        if (memcmp(there->id, intent->id, sizeof(intent->id)) == 0)
                return 1;
        for (uint32_t i = 0; i < intent->n_images; i++)
                lend_file(there, intent->images[i].path, intent->images[i].file);
        r = drop_left(there, err);
        if (r != 0)
                return r < 0 ? r : 0;
        return fail(err, EBUSY, "another change of '%s' is not complete: '%s" INTENT_ENDING "'",
                image->path, image->path);
}

/* One that a dead process wrote looks durable, and may not be: neither it nor its name. Its sync may have
 * failed, which is told once (E5), so the same bytes are written anew: in place, where a cut changes
 * nothing. */
static int copy_sync(struct fs *fs, const char *name, struct file **ret, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ uint8_t *bytes = NULL;
        uint64_t size = 0;
        int r = file_open(fs, name, FILE_WRITE | FILE_NOFOLLOW, &file, err);

        if (r < 0)
                return r;
        r = file_size_get(file, &size);
        if (r == 0 && size <= INTENT_MAX_SIZE)
                bytes = malloc(size + 1);
        if (r == 0 && !bytes)
                r = -ENOMEM;
        if (r == 0)
                r = file_read_exact(file, bytes, size, 0);
        if (r == 0)
                r = file_write(file, bytes, size, 0, 0);
        if (r == 0)
                r = file_sync(file);
        if (r == 0)
                r = fs_sync_directory(fs, name);
        if (r < 0)
                return fail_os(err, -r, "cannot sync '%s'", name);
        *ret = TAKE_PTR(file);
        return 0;
}

static int copy_write(struct intent *intent, uint32_t index, struct error *err)
{
        struct intent_image *image = &intent->images[index];
        struct fs *fs = image->file->fs;
        _cleanup_free_ uint8_t *bytes = NULL;
        char name[INTENT_MAX_IMAGE_PATH + 32];
        bool is_there;
        size_t size;
        int r;

        r = copy_look(intent, index, err);
        if (r < 0)
                return r;
        is_there = r == 1;
        r = copy_name(intent, index, name, sizeof(name), err);
        if (r < 0)
                return r;
        if (is_there)
                return copy_sync(fs, name, &image->copy, err);
        bytes = intent_encode(intent, index, &size);
        if (!bytes || size > INTENT_MAX_SIZE)
                return fail(err, bytes ? E2BIG : ENOMEM, "the intent '%s' cannot be made", name);
        r = file_open(fs, name, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE | FILE_NOFOLLOW,
                &image->copy, err);
        if (r < 0)
                return r;
        r = file_write(image->copy, bytes, size, 0, 0);
        if (r == 0)
                r = file_sync(image->copy);
        if (r == 0)
                r = fs_sync_directory(fs, name);
        if (r < 0) {
                copy_remove(intent, index, NULL); /* whole in the cache, and who knows where else */
                return fail_os(err, -r, "cannot write '%s'", name);
        }
        return 0;
}

/* I5. Without its cookie it is none; a sector does not tear. Its name stays, and is the next opener's or
 * the next intent's to take. Never by its name: who knows what has that by now. */
static int copy_void(struct file *copy)
{
        static const uint8_t nothing[VOID_SIZE];
        int r = copy ? file_write(copy, nothing, sizeof(nothing), 0, 0) : -EBADF;

        return r == 0 ? file_sync(copy) : r;
}

static int copy_remove(struct intent *intent, uint32_t index, struct error *err)
{
        struct intent_image *image = &intent->images[index];
        struct fs *fs = image->file->fs;
        char name[INTENT_MAX_IMAGE_PATH + 32];
        int r;

        r = copy_name(intent, index, name, sizeof(name), err);
        if (r < 0)
                return r;
        r = fs_unlink(fs, name);
        if (r == -ENOENT)
                r = 0;
        if (r == 0)
                r = fs_sync_directory(fs, name);
        if (r < 0 && copy_void(image->copy) < 0)
                return fail_os(err, -r, "cannot remove '%s'", name);
        image->copy = file_close(image->copy);
        return 0;
}

/* The copies that are not there yet. *ret_n: how many images have theirs. */
static int copies_write(struct intent *intent, uint32_t *ret_n, struct error *err)
{
        for (*ret_n = 0; *ret_n < intent->n_images; ++*ret_n) {
                int r = copy_write(intent, *ret_n, err);

                if (r < 0)
                        return r;
        }
        return 0;
}

int intent_write(struct intent *intent, struct error *err)
{
        uint32_t n;
        int r;

        assert(intent->n_images > 0);
        r = copies_write(intent, &n, err);
        if (r < 0)
                while (n > 0)
                        copy_remove(intent, --n, NULL);
        return r;
}

bool intent_is_left(const struct intent *intent)
{
        for (uint32_t i = 0; i < intent->n_images; i++)
                if (intent->images[i].copy)
                        return true;
        return false;
}

int intent_remove(struct intent *intent, struct error *err)
{
        for (uint32_t i = intent->n_images; i > 0; i--) {
                int r = copy_remove(intent, i - 1, err);

                if (r < 0)
                        return r;
        }
        return 0;
}

/* ---- comparing and writing ---- */

/* One sector's part of a change: [at, at + length) of it. Does the file hold the new bytes there, or
 * the old ones? Where the old file ended there was nothing, or, once it grew, zeros. */
static bool piece_is_known(const struct intent_change *change, uint32_t at, uint32_t length,
        const uint8_t *found, uint32_t n_found)
{
        const uint8_t *new_bytes = change->bytes + at;
        const uint8_t *old_bytes = change->bytes + change->length + at;
        uint32_t n_old = change->old_length > at ? MIN_OF(change->old_length - at, length) : 0;

        if (n_found == length && memcmp(found, new_bytes, length) == 0)
                return true;
        return n_found >= n_old && memcmp(found, old_bytes, n_old) == 0 &&
                bytes_are_zero(found + n_old, n_found - n_old);
}

/* Does each sector hold the old or the new bytes? 1 yes, 0 no (@ret_offset says where). */
static int change_is_known(struct file *file, const struct intent_change *change,
        uint64_t *ret_offset, struct error *err)
{
        _cleanup_free_ uint8_t *found = malloc(change->length);
        ssize_t n;

        if (!found)
                return fail(err, ENOMEM, "no memory to compare '%s'", file->path);
        n = file_read(file, found, change->length, change->offset, 0);
        if (n < 0)
                return fail_os(err, (int)-n, "cannot read '%s' at offset %" PRIu64, file->path,
                        change->offset);
        for (uint32_t at = 0, length; at < change->length; at += length) {
                uint32_t n_found = (uint64_t)n > at ? (uint32_t)n - at : 0;

                length = (uint32_t)MIN_OF((uint64_t)change->length - at,
                        SECTOR_SIZE - (change->offset + at) % SECTOR_SIZE);
                if (!piece_is_known(change, at, length, found + at, MIN_OF(n_found, length))) {
                        *ret_offset = change->offset + at;
                        return 0;
                }
        }
        return 1;
}

/* 1: image @index may be written. 0: it was changed since, at *ret_offset. */
static int image_is_known(const struct intent *intent, uint32_t index, struct file *file,
        uint64_t *ret_offset, struct error *err)
{
        for (uint32_t i = 0; i < intent->n_changes; i++) {
                int r = 1;

                if (intent->changes[i].image == index)
                        r = change_is_known(file, &intent->changes[i], ret_offset, err);
                if (r != 1)
                        return r;
        }
        return 1;
}

static int compare_all(const struct intent *intent, struct error *err)
{
        for (uint32_t i = 0; i < intent->n_images; i++) {
                struct file *file = intent->images[i].file;
                uint64_t offset = 0;
                int r = image_is_known(intent, i, file, &offset, err);

                if (r < 0)
                        return r;
                if (r == 1)
                        continue;
                r = fail(err, EUCLEAN,
                        "a change of '%s' was cut off, and the sector at offset %" PRIu64
                        " was changed by somebody else since",
                        file->path, offset);
                error_set_file(err, file->path);
                error_set_offset(err, offset);
                error_set_hint(err,
                        "if the image is right as it is, remove '%s" INTENT_ENDING "' beside it",
                        intent->images[i].path);
                return r;
        }
        return 0;
}

static int sync_image(struct file *file, const struct sync_note *note, struct error *err)
{
        int r = file_sync(file);

        if (r == 0)
                return 0;
        if (note)
                sync_note_set(note, -r);
        return fail_os(err, -r, "cannot sync '%s'", file->path);
}

/* @notes: of the images by number, or NULL: their syncs can tell of nothing but this change, or somebody
 * else notes them. */
static int apply(const struct intent *intent, const struct sync_note *notes, struct error *err)
{
        int r = compare_all(intent, err);

        for (uint32_t i = 0; i < intent->n_changes && r == 0; i++) {
                const struct intent_change *change = &intent->changes[i];
                struct file *file = intent->images[change->image].file;

                r = file_write(file, change->bytes, change->length, change->offset, 0);
                if (r < 0)
                        fail_os(err, -r, "cannot write '%s' at offset %" PRIu64, file->path,
                                change->offset);
        }
        for (uint32_t i = 0; i < intent->n_images && r == 0; i++)
                r = sync_image(intent->images[i].file, notes ? &notes[i] : NULL, err);
        return r;
}

int intent_apply(struct intent *intent, struct error *err)
{
        return apply(intent, NULL, err);
}

int intent_run(struct intent *intent, struct error *err)
{
        int r = intent_write(intent, err);

        if (r == 0)
                r = intent_apply(intent, err);
        if (r == 0)
                r = intent_remove(intent, err);
        return r;
}

/* ---- completing what is found ---- */

/* The number of the image that the intent lies beside; a single one may have been renamed. */
static int own_index(const struct intent *intent, const char *path)
{
        if (intent->n_images == 1)
                return 0;
        for (uint32_t i = 0; i < intent->n_images; i++)
                if (strcmp(intent->images[i].path, path) == 0)
                        return (int)i;
        return -1;
}

static bool is_same_folder(const char *a, const char *b)
{
        const char *slash_a = strrchr(a, '/'), *slash_b = strrchr(b, '/');
        size_t folder_a = slash_a ? (size_t)(slash_a - a) : 0;
        size_t folder_b = slash_b ? (size_t)(slash_b - b) : 0;

        return folder_a == folder_b && strncmp(a, b, folder_a) == 0;
}

/* Without other rules: files of the same folder, never through a link. */
static int open_in_folder(
        void *opaque, struct fs *fs, const char *path, struct file **ret, struct error *err)
{
        int r;

        if (!is_same_folder(path, opaque))
                return fail(err, EPERM, "'%s' lies in another folder", path);
        r = file_open(fs, path, FILE_WRITE | FILE_NOFOLLOW, ret, err);
        if (r == 0) {
                r = file_lock_set(*ret, FILE_LOCK_WRITE, err);
                if (r < 0)
                        *ret = file_close(*ret);
        }
        return r;
}

/* Is the file the image that the intent means? One without a valid footer is left to the comparison
 * of its bytes. */
static int check_identity(const struct intent_image *image, struct error *err)
{
        struct vhd_footer_copy head, tail;
        const struct vhd_footer_copy *copy = &tail;
        const uint8_t *id;
        int r = vhd_footers_read(image->file, &head, &tail, err);

        if (r < 0)
                return r;
        if (tail.result < 0)
                copy = &head;
        id = copy->footer.unique_id;
        if (copy->result < 0 || uuid_equal(id, image->id_before) || uuid_equal(id, image->id_after))
                return 0;
        return fail(err, ESTALE, "'%s' is another image than the one that the change is for",
                image->path);
}

static int open_others(struct intent *intent, int self, struct file *file, const char *path,
        const struct intent_opener *others, struct error *err)
{
        struct intent_opener in_folder = {open_in_folder, (void *)(uintptr_t)path};
        const struct intent_opener *opener = others ? others : &in_folder;

        for (uint32_t i = 0; i < intent->n_images; i++) {
                struct intent_image *image = &intent->images[i];
                int r;

                if ((int)i == self) {
                        image->file = file;
                        continue;
                }
                r = opener->open(opener->opaque, file->fs, image->path, &image->file, err);
                if (r == 0) {
                        image->own_file = true;
                        r = check_identity(image, err);
                }
                if (r < 0) {
                        fail_prefix(err, r,
                                "a change of '%s' and other images was cut off, and cannot be "
                                "completed",
                                path);
                        error_set_hint(err,
                                "open it read-only, or open the whole chain with "
                                "--image-root for each folder that its files are in");
                        return r;
                }
        }
        return 0;
}

static int apply_noted(const struct intent *intent, struct error *err)
{
        _cleanup_free_ struct sync_note *notes = calloc(intent->n_images, sizeof(*notes));
        int r = 0;

        if (!notes)
                return fail(err, ENOMEM, "no memory to complete a change");
        for (uint32_t i = 0; r == 0 && i < intent->n_images; i++)
                r = sync_note_open(intent->images[i].file, &notes[i], err);
        if (r == 0)
                r = apply(intent, MUTANT("intent-sync-unnoted") ? NULL : notes, err);
        for (uint32_t i = 0; i < intent->n_images; i++)
                sync_note_done(&notes[i]);
        return r;
}

static int complete(struct intent *intent, int self, struct file *file, const char *path,
        const struct intent_opener *others, struct error *err)
{
        uint32_t n;
        int r = open_others(intent, self, file, path, others, err);

        /* A renamed image keeps its intent beside it, under the new name. */
        if (r == 0 && strcmp(intent->images[self].path, path) != 0) {
                free(intent->images[self].path);
                intent->images[self].path = strdup(path);
                if (!intent->images[self].path)
                        r = fail(err, ENOMEM, "no memory to complete a change");
        }
        /* The comparison comes before the copies, so that a stale intent is not spread. */
        if (r == 0)
                r = compare_all(intent, err);
        /* I1: first the copies that are missing. If one cannot be had, those that are there stay:
         * the images may hold a mixture already. */
        if (r == 0)
                r = copies_write(intent, &n, err);
        if (r == 0)
                r = apply_noted(intent, err);
        if (r == 0)
                r = intent_remove(intent, err);
        return r;
}

/* I4: 1 if some other image has no copy of the intent, and this one is not a mixture. One that cannot be
 * looked at, or lies elsewhere, is taken to have it. */
static int says_nothing(const struct intent *intent, int self, struct file *file, const char *path,
        uint32_t owner, struct error *err)
{
        bool all_have = true;
        int r = 0;

        for (uint32_t i = 0; i < intent->n_images && all_have; i++) {
                _cleanup_(intent_freep) struct intent *there = NULL;

                if ((int)i == self || !is_same_folder(intent->images[i].path, path))
                        continue;
                r = intent_load(file->fs, intent->images[i].path, owner, &there, NULL);
                all_have = r < 0 ? r != -ENOENT && r != -EBADMSG
                                 : memcmp(there->id, intent->id, sizeof(there->id)) == 0;
        }
        if (all_have || MUTANT("intent-half-shown"))
                return 0;
        r = image_holds(intent, (uint32_t)self, file, false, err);
        return r == 0 ? image_holds(intent, (uint32_t)self, file, true, err) : r;
}

static int forget_copy(struct intent *intent, int self, struct file *file, struct error *err)
{
        struct sync_note note;
        int r = sync_note_open(file, &note, err);

        /* A dead process's page cache: what looks applied is durable now. */
        if (r == 0)
                r = sync_image(file, MUTANT("intent-sync-unnoted") ? NULL : &note, err);
        sync_note_done(&note);
        if (r < 0)
                return r;
        intent->images[self].file = file;
        return copy_remove(intent, (uint32_t)self, err);
}

/* One that was made to say nothing goes (I5). A dead process's page cache may be all that says so: the disk does,
 * before anybody changes the image. What is torn otherwise never said anything, and stays for who wonders. */
static int forget_void(struct fs *fs, const char *path, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        char name[INTENT_MAX_IMAGE_PATH + 32];
        uint8_t head[VOID_SIZE];
        ssize_t n;
        int r;

        if (snprintf(name, sizeof(name), "%s" INTENT_ENDING, path) >= (int)sizeof(name))
                return fail(err, ENAMETOOLONG, "the name of '%s' is too long", path);
        r = file_open(fs, name, FILE_READ | FILE_NOFOLLOW, &file, err);
        if (r < 0)
                return r;
        n = file_read(file, head, sizeof(head), 0, 0);
        if (n < 0)
                return fail_os(err, (int)-n, "cannot read '%s'", name);
        if (!bytes_are_zero(head, (size_t)n))
                return 0;
        r = file_sync(file);
        if (r < 0)
                return fail_os(err, -r, "cannot sync '%s'", name);
        (void)fs_unlink(fs, name); /* if it stays it is in nobody's way */
        return 0;
}

static int show(struct intent *intent, int self, struct file *file, struct file **ret_view,
        struct error *err)
{
        uint64_t offset;
        int r = image_is_known(intent, (uint32_t)self, file, &offset, err);

        if (r < 0)
                return r;
        if (r == 0)
                return 0; /* changed since: as it is */
        return intent_view_new(file, intent, (uint32_t)self, ret_view, err);
}

int intent_recover(struct file *file, bool writable, const struct intent_opener *others,
        struct file **ret_view, struct error *err)
{
        _cleanup_free_ char *path = intent_path_of(file);
        _cleanup_(intent_freep) struct intent *intent = NULL;
        struct file_stat st;
        int self, r;

        *ret_view = NULL;
        if (!path)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        if (!st.is_regular)
                return 0;
        r = intent_load(file->fs, path, st.owner, &intent, err);
        if (r == -ENOENT || (r == -EBADMSG && !writable))
                return 0;
        if (r == -EBADMSG)
                r = forget_void(file->fs, path, err);
        else if (r == 0) {
                self = own_index(intent, path);
                if (self < 0)
                        r = fail(err, EUCLEAN, "'%s" INTENT_ENDING "' is a change of other images",
                                path);
                else
                        r = says_nothing(intent, self, file, path, st.owner, err);
                if (r == 0 && writable)
                        r = complete(intent, self, file, path, others, err);
                else if (r == 0)
                        r = show(intent, self, file, ret_view, err);
                else if (r == 1)
                        r = writable ? forget_copy(intent, self, file, err) : 0;
        }
        if (r < 0)
                error_set_file(err, file->path);
        return r;
}

int intent_look(struct file *file, struct error *err)
{
        _cleanup_free_ char *path = intent_path_of(file);
        _cleanup_(intent_freep) struct intent *intent = NULL;
        struct file_stat st;
        int r;

        if (!path)
                return fail(err, ENOMEM, "no memory");
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        if (!st.is_regular)
                return 0;
        r = intent_load(file->fs, path, st.owner, &intent, err);
        if (r == -ENOENT)
                return 0;
        if (r == -EBADMSG)
                return 2;
        return r < 0 ? r : 1;
}

void intent_tidy(struct file *file)
{
        _cleanup_free_ char *path = intent_path_of(file);

        if (path && intent_look(file, NULL) == 2)
                (void)forget_void(file->fs, path, NULL);
}
