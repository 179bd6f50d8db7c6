/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of an intent, and finding it. What is read here may come from an enemy. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/utf16.h"
#include "formats/intent_internal.h"

#define COOKIE       "vhddint1"
#define HEAD_SIZE    32u
#define IMAGE_SIZE   34u
#define CHANGE_SIZE  24u
#define SUM_SIZE     8u
#define PATH_MAX_ALL 8192u

char *intent_path_of(struct file *file)
{
        char link[64], path[PATH_MAX_ALL];
        ssize_t n = -1;

        if (file->fd >= 0) {
                snprintf(link, sizeof(link), "/proc/self/fd/%d", file->fd);
                n = readlink(link, path, sizeof(path) - 1);
        }
        if (n <= 0 || path[0] != '/')
                return strdup(file->path);
        path[n] = '\0';
        return strdup(path);
}

/* ---- paths ---- */

/* Length of the folder in @path, without the slash; 0: none. */
static size_t folder_length(const char *path)
{
        const char *slash = strrchr(path, '/');

        return slash ? (size_t)(slash - path) : 0;
}

/* @to as seen from the folder of @from; both absolute, or both relative without "..". */
static char *path_relative(const char *from, const char *to)
{
        size_t folder = folder_length(from), common = 0;
        char *ret, *p;
        size_t ups = 0;

        /* How much of the folder, in whole names, @to shares. */
        for (size_t i = 0; i <= folder; i++) {
                bool ends_from = i == folder || from[i] == '/';

                if (ends_from && to[i] == '/')
                        common = i + 1;
                if (i == folder || from[i] != to[i])
                        break;
        }
        for (size_t i = common; i < folder; i++)
                ups += i == common || from[i] == '/';
        ret = malloc(ups * 3 + strlen(to + common) + 1);
        if (!ret)
                return NULL;
        for (p = ret; ups > 0; ups--, p += 3)
                memcpy(p, "../", 3);
        strcpy(p, to + common);
        return ret;
}

/* The folder of @from and @relative, with "." and ".." taken out. NULL if it leads out of everything,
 * or there is no memory. */
static char *path_join(const char *from, const char *relative)
{
        size_t folder = folder_length(from);
        char *ret = malloc(folder + 1 + strlen(relative) + 1);
        size_t used = folder;

        if (!ret)
                return NULL;
        memcpy(ret, from, folder);
        for (const char *p = relative; *p;) {
                size_t n = strcspn(p, "/");

                if (n == 2 && p[0] == '.' && p[1] == '.') {
                        if (used == 0) {
                                free(ret);
                                return NULL;
                        }
                        while (used > 0 && ret[used - 1] != '/')
                                used--;
                        used -= used > 0;
                } else if (n > 0 && !(n == 1 && p[0] == '.')) {
                        if (used > 0 || from[0] == '/')
                                ret[used++] = '/';
                        memcpy(ret + used, p, n);
                        used += n;
                }
                p += n + (p[n] == '/');
        }
        ret[used] = '\0';
        return ret;
}

/* ---- writing ---- */

static uint8_t *put(uint8_t *p, const void *data, size_t size)
{
        memcpy(p, data, size);
        return p + size;
}

static uint8_t *put_32(uint8_t *p, uint32_t n)
{
        be32 v = be32_make(n);

        return put(p, &v, sizeof(v));
}

static uint8_t *put_64(uint8_t *p, uint64_t n)
{
        be64 v = be64_make(n);

        return put(p, &v, sizeof(v));
}

static size_t encoded_size(const struct intent *intent, char *const *paths)
{
        size_t size = HEAD_SIZE + SUM_SIZE;

        for (uint32_t i = 0; i < intent->n_images; i++)
                size += IMAGE_SIZE + strlen(paths[i]);
        for (uint32_t i = 0; i < intent->n_changes; i++)
                size += CHANGE_SIZE + (size_t)intent->changes[i].length +
                        intent->changes[i].old_length;
        return size;
}

static uint8_t *encode_with(const struct intent *intent, char *const *paths, size_t *ret_size)
{
        size_t size = encoded_size(intent, paths);
        uint8_t *bytes = malloc(size), *p = bytes;

        if (!bytes)
                return NULL;
        p = put(p, COOKIE, 8);
        p = put(p, intent->id, 16);
        p = put_32(p, intent->n_images);
        p = put_32(p, intent->n_changes);
        for (uint32_t i = 0; i < intent->n_images; i++) {
                be16 length = be16_make((uint16_t)strlen(paths[i]));

                p = put(p, intent->images[i].id_before, 16);
                p = put(p, intent->images[i].id_after, 16);
                p = put(p, &length, sizeof(length));
                p = put(p, paths[i], strlen(paths[i]));
        }
        for (uint32_t i = 0; i < intent->n_changes; i++) {
                const struct intent_change *change = &intent->changes[i];

                p = put_32(p, change->image);
                p = put_32(p, change->length);
                p = put_32(p, change->old_length);
                p = put_32(p, 0);
                p = put_64(p, change->offset);
                p = put(p, change->bytes, change->length);
                p = put(p, change->bytes + change->length, change->old_length);
        }
        p = put_64(p, XXH3_64bits(bytes, size - SUM_SIZE));
        assert(p == bytes + size);
        *ret_size = size;
        return bytes;
}

uint8_t *intent_encode(const struct intent *intent, uint32_t index, size_t *ret_size)
{
        char **paths = calloc(intent->n_images, sizeof(*paths));
        uint8_t *bytes = NULL;
        bool ok = paths != NULL;

        for (uint32_t i = 0; ok && i < intent->n_images; i++) {
                paths[i] = path_relative(intent->images[index].path, intent->images[i].path);
                ok = paths[i] && strlen(paths[i]) <= INTENT_MAX_IMAGE_PATH;
        }
        if (ok)
                bytes = encode_with(intent, paths, ret_size);
        for (uint32_t i = 0; paths && i < intent->n_images; i++)
                free(paths[i]);
        free(paths);
        return bytes;
}

/* ---- reading ---- */

/* What is left of the bytes; p is NULL once something was missing. */
struct reader {
        const uint8_t *p;
        size_t left;
};

static const uint8_t *take(struct reader *reader, size_t size)
{
        const uint8_t *p = reader->p;

        if (!p || size > reader->left) {
                reader->p = NULL;
                return NULL;
        }
        reader->p += size;
        reader->left -= size;
        return p;
}

static uint32_t take_32(struct reader *reader)
{
        const uint8_t *p = take(reader, 4);
        be32 v = {{0}};

        if (p)
                memcpy(&v, p, sizeof(v));
        return be32_get(v);
}

static uint64_t take_64(struct reader *reader)
{
        const uint8_t *p = take(reader, 8);
        be64 v = {{0}};

        if (p)
                memcpy(&v, p, sizeof(v));
        return be64_get(v);
}

static int take_image(struct reader *reader, const char *beside, struct intent_image *ret)
{
        const uint8_t *ids = take(reader, 32), *length_bytes = take(reader, 2), *text;
        char relative[INTENT_MAX_IMAGE_PATH + 1];
        be16 length;

        if (!ids || !length_bytes)
                return -EBADMSG;
        memcpy(ret->id_before, ids, 16);
        memcpy(ret->id_after, ids + 16, 16);
        memcpy(&length, length_bytes, sizeof(length));
        if (be16_get(length) > INTENT_MAX_IMAGE_PATH)
                return -EBADMSG;
        text = take(reader, be16_get(length));
        if (!text || be16_get(length) == 0 || text[0] == '/' ||
                memchr(text, '\0', be16_get(length)))
                return -EBADMSG;
        memcpy(relative, text, be16_get(length));
        relative[be16_get(length)] = '\0';
        ret->path = path_join(beside, relative);
        return ret->path ? 0 : -EBADMSG;
}

static int take_change(struct reader *reader, uint32_t n_images, struct intent_change *ret)
{
        const uint8_t *new_bytes, *old_bytes;
        uint64_t end;

        ret->image = take_32(reader);
        ret->length = take_32(reader);
        ret->old_length = take_32(reader);
        take_32(reader);
        ret->offset = take_64(reader);
        new_bytes = take(reader, ret->length);
        old_bytes = take(reader, ret->old_length);
        if (!new_bytes || !old_bytes || ret->length == 0 || ret->old_length > ret->length ||
                ret->image >= n_images || __builtin_add_overflow(ret->offset, ret->length, &end) ||
                end > INT64_MAX)
                return -EBADMSG;
        ret->bytes = calloc(2, ret->length);
        if (!ret->bytes)
                return -ENOMEM;
        memcpy(ret->bytes, new_bytes, ret->length);
        memcpy(ret->bytes + ret->length, old_bytes, ret->old_length);
        return 0;
}

int intent_grow(struct intent *intent, uint32_t n_images, uint32_t n_changes)
{
        struct intent_image *images =
                reallocarray(intent->images, n_images ? n_images : 1, sizeof(*images));
        struct intent_change *changes;

        if (!images)
                return -ENOMEM;
        intent->images = images;
        changes = reallocarray(intent->changes, n_changes ? n_changes : 1, sizeof(*changes));
        if (!changes)
                return -ENOMEM;
        intent->changes = changes;
        return 0;
}

static int decode(const uint8_t *bytes, size_t size, const char *beside, struct intent *intent)
{
        struct reader reader = {bytes, size - SUM_SIZE};
        const uint8_t *id;
        uint32_t n_images, n_changes;
        int r;

        take(&reader, 8);
        id = take(&reader, 16);
        n_images = take_32(&reader);
        n_changes = take_32(&reader);
        if (!id || n_images == 0 || n_images > INTENT_MAX_IMAGES || n_changes > INTENT_MAX_CHANGES)
                return -EBADMSG;
        memcpy(intent->id, id, 16);
        r = intent_grow(intent, n_images, n_changes);
        if (r < 0)
                return r;
        for (uint32_t i = 0; i < n_images; i++) {
                intent->images[i] = (struct intent_image){0};
                r = take_image(&reader, beside, &intent->images[i]);
                if (r < 0)
                        return r;
                intent->n_images++;
        }
        for (uint32_t i = 0; i < n_changes; i++) {
                intent->changes[i] = (struct intent_change){0};
                r = take_change(&reader, n_images, &intent->changes[i]);
                if (r < 0)
                        return r;
                intent->n_changes++;
        }
        return reader.left == 0 ? 0 : -EBADMSG;
}

static bool is_whole(const uint8_t *bytes, size_t size)
{
        be64 sum;

        if (size < HEAD_SIZE + SUM_SIZE || memcmp(bytes, COOKIE, 8) != 0)
                return false;
        memcpy(&sum, bytes + size - SUM_SIZE, sizeof(sum));
        return be64_get(sum) == XXH3_64bits(bytes, size - SUM_SIZE);
}

static int read_whole(struct file *file, uint8_t **ret, size_t *ret_size)
{
        uint64_t size;
        uint8_t *bytes;
        int r;

        r = file_size_get(file, &size);
        if (r < 0)
                return r;
        if (size > INTENT_MAX_SIZE || size < HEAD_SIZE + SUM_SIZE)
                return -EBADMSG;
        bytes = malloc(size);
        if (!bytes)
                return -ENOMEM;
        r = file_read_exact(file, bytes, size, 0);
        if (r < 0) {
                free(bytes);
                return r == -ENODATA ? -EBADMSG : r;
        }
        *ret = bytes;
        *ret_size = size;
        return 0;
}

/* Whoever may write into the folder could leave an intent there; it is obeyed only if it comes from
 * somebody who may change the image anyway. */
static bool owner_may_decide(const struct file_stat *st, uint32_t image_owner)
{
        return st->is_regular &&
                (st->owner == 0 || st->owner == image_owner || st->owner == (uint32_t)geteuid());
}

int intent_load(struct fs *fs, const char *path, uint32_t image_owner, struct intent **ret,
        struct error *err)
{
        _cleanup_(intent_freep) struct intent *intent = NULL;
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ uint8_t *bytes = NULL;
        struct error why = ERROR_INIT;
        char name[PATH_MAX_ALL];
        struct file_stat st;
        size_t size = 0;
        int r;

        if (snprintf(name, sizeof(name), "%s" INTENT_ENDING, path) >= (int)sizeof(name))
                return -ENOENT;
        r = file_open(fs, name, FILE_READ | FILE_NOFOLLOW, &file, &why);
        if (r == -ENOENT || r == -ENOTDIR || r == -ENAMETOOLONG)
                return -ENOENT;
        if (r < 0) {
                if (err)
                        *err = why;
                return r;
        }
        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", name);
        if (!owner_may_decide(&st, image_owner)) {
                r = fail(err, EPERM,
                        "'%s' belongs to user %u, who may not decide about the image beside it",
                        name, st.owner);
                error_set_hint(err, "if nobody trusted made it, remove it");
                return r;
        }
        r = read_whole(file, &bytes, &size);
        if (r == 0)
                r = is_whole(bytes, size) ? 0 : -EBADMSG;
        if (r == -EBADMSG)
                return r;
        if (r < 0)
                return fail_os(err, -r, "cannot read '%s'", name);
        intent = intent_new();
        if (!intent)
                return fail(err, ENOMEM, "no memory for '%s'", name);
        r = decode(bytes, size, path, intent);
        if (r == -EBADMSG)
                return fail(err, EUCLEAN, "'%s' is whole and makes no sense", name);
        if (r < 0)
                return fail_os(err, -r, "cannot read '%s'", name);
        *ret = TAKE_PTR(intent);
        return 0;
}
