/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/flatten.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/host_fs.h"
#include "base/uuid.h"
#include "chain/chain.h"
#include "formats/vhd/create.h"

#define PIECE     (1 * MIB)
#define ZERO_UNIT (64 * KIB) /* what is zero in such units is not written */
#define STEP      (8 * MIB)  /* between two questions whether to go on */

/* A file system of two parts: the new file, which we have, and everything else, which is the broker's. */
struct out_fs {
        struct fs fs;
        struct fs *proxy;
        const char *path;
        int fd;
};

static struct out_fs *out_of(struct fs *fs)
{
        return (struct out_fs *)fs;
}

static int out_open(struct fs *fs, const char *path, unsigned flags, unsigned mode,
        struct file **ret, struct error *err)
{
        struct out_fs *out = out_of(fs);
        size_t n = strlen(out->path);
        int fd, r;

        if (strncmp(path, out->path, n) != 0)
                return file_open(out->proxy, path, flags, ret, err);
        if (path[n]) /* what may lie beside an image does not lie beside this one */
                return fail_os(err, ENOENT, "cannot open '%s'", path);
        fd = fcntl(out->fd, F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
                return fail_os(err, errno, "cannot open '%s'", path);
        r = host_file_wrap(fs, fd, -1, path, flags & ~(unsigned)FILE_DIRECT, ret);
        if (r < 0) {
                close(fd);
                return fail_os(err, -r, "cannot use '%s'", path);
        }
        return 0;
}

static int out_rename(struct fs *fs, const char *from, const char *to, bool replace)
{
        return -EPERM;
}

static int out_unlink(struct fs *fs, const char *path)
{
        return -ENOENT;
}

static int out_sync_directory(struct fs *fs, const char *path)
{
        return 0; /* its name is the broker's to make durable */
}

/* Memory that ends with us: there is nobody who would look for it. */
static int out_region_open(struct fs *fs, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err)
{
        struct out_fs *out = out_of(fs);
        struct region *region;

        if (strcmp(beside, out->path) != 0)
                return region_open(out->proxy, name, beside, size, create, ret, err);
        if (!create)
                return fail(err, ENOENT, "there is no region '%s'", name);
        region = calloc(1, sizeof(*region));
        if (!region)
                return fail(err, ENOMEM, "no memory for the region '%s'", name);
        region->fs = fs;
        region->size = size;
        region->path = strdup(name);
        region->data = mmap(
                NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (region->data == MAP_FAILED || !region->path) {
                if (region->data != MAP_FAILED)
                        munmap(region->data, size);
                free(region->path);
                free(region);
                return fail(err, ENOMEM, "no memory for the region '%s'", name);
        }
        *ret = region;
        return 0;
}

static void out_region_close(struct region *region, bool remove)
{
        munmap(region->data, region->size);
        free(region->path);
        free(region);
}

static void out_boot_id(struct fs *fs, uint8_t ret[16])
{
        fs_boot_id(out_of(fs)->proxy, ret);
}

static int64_t out_now(struct fs *fs)
{
        return fs_now(out_of(fs)->proxy);
}

static const struct fs_ops out_ops = {
        .open_told = out_open,
        .rename = out_rename,
        .unlink = out_unlink,
        .sync_directory = out_sync_directory,
        .region_open = out_region_open,
        .region_close = out_region_close,
        .boot_id = out_boot_id,
        .now = out_now,
};

/* ---- copying ---- */

struct flattening {
        struct chain *from, *to;
        struct rpc *rpc;
        uint64_t size, told, done;
        uint8_t *buffer;
        struct error *err;
};

static int ask(struct flattening *f, bool end)
{
        int r;

        if (f->done - f->told < STEP && !end)
                return 0;
        r = rpc_call(f->rpc, "flatten.step",
                json_pack("{s:I}", "bytes", (json_int_t)(f->done - f->told)), NULL, 0, 0, NULL,
                f->err);
        f->told = f->done;
        return r;
}

/* The runs of it that are not zero. */
static int write_piece(struct flattening *f, uint64_t offset, size_t length)
{
        size_t at = 0;

        while (at < length) {
                size_t end = at, unit;
                int r;

                for (; end < length; end += unit) {
                        unit = MIN_OF(ZERO_UNIT, length - end);
                        if (bytes_are_zero(f->buffer + end, unit))
                                break;
                }
                if (end > at) {
                        r = chain_write(f->to, f->buffer + at, end - at, offset + at, 0);
                        if (r < 0)
                                return fail_os(f->err, -r,
                                        "cannot write %zu bytes at offset %llu of '%s'", end - at,
                                        (unsigned long long)(offset + at),
                                        chain_layer_path(f->to, 0));
                }
                at = end < length ? end + MIN_OF(ZERO_UNIT, length - end) : end;
        }
        return 0;
}

static int copy_run(struct flattening *f, uint64_t offset, uint64_t length)
{
        while (length > 0) {
                size_t n = (size_t)MIN_OF(PIECE, length);
                int r = chain_read(f->from, f->buffer, n, offset, 0);

                if (r < 0)
                        return fail_os(f->err, -r, "cannot read %zu bytes at offset %llu of '%s'",
                                n, (unsigned long long)offset,
                                chain_layer_path(f->from, chain_depth(f->from) - 1));
                r = write_piece(f, offset, n);
                offset += n;
                length -= n;
                f->done = offset;
                if (r == 0)
                        r = ask(f, false);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int copy_all(struct flattening *f)
{
        uint64_t offset = 0;
        int r = 0;

        while (r == 0 && offset < f->size) {
                struct chain_extent extent;

                r = chain_status(f->from, offset, f->size - offset, CHAIN_HOLES, &extent);
                if (r < 0)
                        return fail_os(f->err, -r, "cannot map offset %llu of '%s'",
                                (unsigned long long)offset,
                                chain_layer_path(f->from, chain_depth(f->from) - 1));
                if (extent.kind == EXTENT_DATA)
                        r = copy_run(f, offset, extent.length);
                offset += extent.length;
                f->done = offset;
        }
        return r == 0 ? ask(f, true) : r;
}

/* ---- opening ---- */

static int open_source(
        struct fs *fs, const json_t *params, struct chain **ret, struct error *err)
{
        const json_t *list = json_object_get(params, "parents");
        _cleanup_free_ const char **parents = calloc(json_array_size(list) + 1, sizeof(*parents));
        struct chain_options options = {
                .fs = fs,
                .format = json_string_value(json_object_get(params, "format")),
                .parents = parents,
        };
        const char *path = json_string_value(json_object_get(params, "path"));
        int r;

        if (!parents)
                return fail(err, ENOMEM, "no memory for a chain");
        for (size_t i = 0; i < json_array_size(list); i++) {
                parents[i] = json_string_value(json_array_get(list, i));
                if (!parents[i])
                        return fail(err, EINVAL, "a parent's name is no text");
        }
        options.n_parents = json_array_size(list);
        if (!path)
                return fail(err, EINVAL, "the question has no 'path'");
        r = chain_open(path, &options, ret, err);
        if (r < 0 || chain_depth(*ret) == options.n_parents + 1)
                return r;
        fail(err, ESTALE, "the chain of '%s' has %u images, and %zu were recorded", path,
                chain_depth(*ret), options.n_parents + 1);
        *ret = chain_abandon(*ret);
        return -ESTALE;
}

static int make_empty(
        struct out_fs *out, const json_t *params, uint64_t size, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct vhd_create_params create = {.type = VHD_TYPE_DYNAMIC, .size = size};
        const char *uuid = json_string_value(json_object_get(params, "uuid"));
        int r = file_open(&out->fs, out->path, FILE_WRITE, &file, err);

        if (r < 0)
                return r;
        if (!uuid || !uuid_parse(uuid, create.unique_id))
                return fail(err, EINVAL, "the question has no 'uuid'");
        return vhd_create(file, &create, err);
}

static int run(struct out_fs *out, struct rpc *rpc, struct chain *from, const json_t *params,
        struct error *err)
{
        struct chain_options options = {.fs = &out->fs, .writable = true, .format = "vhd"};
        struct flattening f = {.from = from, .rpc = rpc, .size = chain_size(from), .err = err};
        int r = make_empty(out, params, f.size, err);

        if (r == 0)
                r = chain_open(out->path, &options, &f.to, err);
        if (r < 0)
                return r;
        f.buffer = malloc(PIECE);
        r = f.buffer ? copy_all(&f) : fail(err, ENOMEM, "no memory for a buffer");
        free(f.buffer);
        if (r == 0)
                return chain_close(f.to, err);
        chain_abandon(f.to);
        return r;
}

int flatten(struct fs *fs, struct rpc *rpc, const json_t *params, int fd, json_t **ret,
        struct error *err)
{
        struct out_fs out = {
                .fs = {.ops = &out_ops, .single_threaded = fs->single_threaded},
                .proxy = fs,
                .path = json_string_value(json_object_get(params, "output")),
                .fd = fd,
        };
        struct chain *from = NULL;
        int r;

        if (!out.path || fd < 0)
                return fail(err, EINVAL, "the question has no 'output'");
        r = open_source(fs, params, &from, err);
        if (r < 0)
                return r;
        r = run(&out, rpc, from, params, err);
        *ret = r == 0 ? json_pack("{s:I}", "size", (json_int_t)chain_size(from)) : NULL;
        chain_abandon(from);
        return r;
}
