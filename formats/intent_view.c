/* SPDX-License-Identifier: Apache-2.0 */
/* A file as it will be when the intent beside it is completed, for openers that may not write. */
#include <string.h>

#include "base/arith.h"
#include "formats/intent_internal.h"

struct piece {
        uint64_t offset;
        uint32_t length;
        uint8_t *bytes;
};

struct view {
        struct file file; /* first: the two are cast into each other */
        struct file *inner;
        struct piece *pieces;
        size_t n_pieces;
        uint64_t end; /* of the last piece: the file is at least so long */
};

static struct view *view_of(struct file *file)
{
        return (struct view *)file;
}

/* Lays [offset, offset + length) of the vector's bytes, which begin at @start, over with @bytes. */
static void patch(const struct iovec *iov, int n_iov, uint64_t start, uint64_t offset,
        uint64_t length, const uint8_t *bytes)
{
        for (int i = 0; i < n_iov; start += iov[i].iov_len, i++) {
                uint64_t from = MAX_OF(start, offset);
                uint64_t to = MIN_OF(start + iov[i].iov_len, offset + length);

                if (from >= to)
                        continue;
                if (bytes)
                        memcpy((uint8_t *)iov[i].iov_base + (from - start), bytes + (from - offset),
                                to - from);
                else
                        memset((uint8_t *)iov[i].iov_base + (from - start), 0, to - from);
        }
}

static uint64_t iov_total(const struct iovec *iov, int n_iov)
{
        uint64_t total = 0;

        for (int i = 0; i < n_iov; i++)
                total += iov[i].iov_len;
        return total;
}

static ssize_t view_readv(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        struct view *view = view_of(file);
        ssize_t n = view->inner->ops->readv(view->inner, iov, n_iov, offset, flags);
        uint64_t wanted, end;

        if (n < 0)
                return n;
        wanted = iov_total(iov, n_iov);
        end = offset + (uint64_t)n;
        if ((uint64_t)n < wanted && end < view->end && !(flags & FILE_NOWAIT)) {
                uint64_t size;
                int r = file_size_get(view->inner, &size);

                if (r < 0)
                        return r;
                /* Short because the file is: what is missing up to the last piece is zeros. */
                if (end >= size) {
                        end = MIN_OF(offset + wanted, view->end);
                        patch(iov, n_iov, offset, offset + (uint64_t)n, end - offset - (uint64_t)n,
                                NULL);
                }
        }
        for (size_t i = 0; i < view->n_pieces; i++) {
                const struct piece *piece = &view->pieces[i];

                if (piece->offset < end)
                        patch(iov, n_iov, offset, piece->offset,
                                MIN_OF((uint64_t)piece->length, end - piece->offset), piece->bytes);
        }
        return (ssize_t)(end - offset);
}

static ssize_t view_writev(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        return -EROFS;
}

static int view_sync(struct file *file)
{
        return 0;
}

static int view_truncate(struct file *file, uint64_t size)
{
        return -EROFS;
}

static int view_range(struct file *file, uint64_t offset, uint64_t length)
{
        return -EROFS;
}

/* Where the pieces lie is data, whatever the file beneath has there; they are few and small, so the
 * answer is that of the file beneath. What it calls a hole is only asked of guest data. */
static int view_seek(struct file *file, uint64_t offset, bool data, uint64_t *ret)
{
        struct view *view = view_of(file);

        return view->inner->ops->seek(view->inner, offset, data, ret);
}

static int view_stat(struct file *file, struct file_stat *ret)
{
        struct view *view = view_of(file);
        int r = view->inner->ops->stat(view->inner, ret);

        if (r == 0)
                ret->size = MAX_OF(ret->size, view->end);
        return r;
}

static int view_lock(struct file *file, enum file_lock mode)
{
        struct view *view = view_of(file);

        return view->inner->ops->lock(view->inner, mode);
}

static void view_free(struct view *view)
{
        for (size_t i = 0; i < view->n_pieces; i++)
                free(view->pieces[i].bytes);
        free(view->pieces);
        free(view->file.path);
        free(view);
}

static void view_close(struct file *file)
{
        file_close(view_of(file)->inner);
        view_free(view_of(file));
}

static const struct file_ops view_ops = {
        .readv = view_readv,
        .writev = view_writev,
        .sync = view_sync,
        .truncate = view_truncate,
        .punch = view_range,
        .reserve = view_range,
        .seek = view_seek,
        .stat = view_stat,
        .lock = view_lock,
        .close = view_close,
};

void intent_view_dismiss(struct file *file)
{
        if (!file)
                return;
        pthread_cond_destroy(&file->sync_ended);
        pthread_mutex_destroy(&file->sync_lock);
        view_free(view_of(file));
}

static int add_pieces(struct view *view, const struct intent *intent, uint32_t image)
{
        view->pieces = calloc(intent->n_changes ? intent->n_changes : 1, sizeof(*view->pieces));
        if (!view->pieces)
                return -ENOMEM;
        for (uint32_t i = 0; i < intent->n_changes; i++) {
                const struct intent_change *change = &intent->changes[i];
                struct piece *piece = &view->pieces[view->n_pieces];

                if (change->image != image)
                        continue;
                piece->bytes = malloc(change->length);
                if (!piece->bytes)
                        return -ENOMEM;
                memcpy(piece->bytes, change->bytes, change->length);
                piece->offset = change->offset;
                piece->length = change->length;
                view->end = MAX_OF(view->end, change->offset + change->length);
                view->n_pieces++;
        }
        return 0;
}

int intent_view_new(struct file *file, const struct intent *intent, uint32_t image,
        struct file **ret, struct error *err)
{
        struct view *view = calloc(1, sizeof(*view));

        if (!view)
                return fail(err, ENOMEM, "no memory for a view of '%s'", file->path);
        view->file = (struct file){.ops = &view_ops,
                .fs = file->fs,
                .path = strdup(file->path),
                .fd = file->fd,
                .flags = file->flags & ~(unsigned)FILE_WRITE};
        pthread_mutex_init(&view->file.sync_lock, NULL);
        pthread_cond_init(&view->file.sync_ended, NULL);
        view->inner = file;
        if (!view->file.path || add_pieces(view, intent, image) < 0) {
                view_free(view);
                return fail(err, ENOMEM, "no memory for a view of '%s'", file->path);
        }
        *ret = &view->file;
        return 0;
}
