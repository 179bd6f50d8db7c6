/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/worker/fs.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/host_fs.h"

#define CALL_MS    30000
#define HEAD_BYTES 4096u /* of a region: what makes it count stands here */

struct open_file {
        struct open_file *next;
        struct file *file;
};

struct proxy_fs {
        struct fs fs; /* first: what is handed around */
        /* immutable after new */
        uint8_t boot_id[16];
        struct file_ops file_ops; /* the host's, but for closing */

        pthread_mutex_t lock;
        /* guarded by lock */
        struct rpc *rpc;
        struct open_file *files;
};

/* What closing a region must know to remove it. */
struct proxy_region {
        struct region region; /* first */
        struct region *mapping;
        char *name, *beside;
};

static struct proxy_fs *proxy_of(struct fs *fs)
{
        return (struct proxy_fs *)fs;
}

static int ask(
        struct fs *fs, const char *method, json_t *params, struct message *ret, struct error *err)
{
        struct proxy_fs *proxy = proxy_of(fs);
        _cleanup_(rpc_unrefp) struct rpc *rpc = NULL;

        pthread_mutex_lock(&proxy->lock);
        if (proxy->rpc)
                rpc = rpc_ref(proxy->rpc);
        pthread_mutex_unlock(&proxy->lock);
        if (!params || !rpc) {
                json_decref(params);
                return params ? fail(err, EHOSTDOWN, "the daemon does not run")
                              : fail(err, EINVAL, "a path that is no UTF-8 cannot be used");
        }
        return rpc_call(rpc, method, params, NULL, 0, CALL_MS, ret, err);
}

/* --- files --- */

static void proxy_close(struct file *file)
{
        struct proxy_fs *proxy = proxy_of(file->fs);
        struct open_file *gone = NULL;

        pthread_mutex_lock(&proxy->lock);
        for (struct open_file **at = &proxy->files; *at; at = &(*at)->next) {
                if ((*at)->file != file)
                        continue;
                gone = *at;
                *at = gone->next;
                break;
        }
        pthread_mutex_unlock(&proxy->lock);
        free(gone);
        host_file_ops_get()->close(file);
}

static int remember(struct proxy_fs *proxy, struct file *file)
{
        struct open_file *open_file = calloc(1, sizeof(*open_file));

        if (!open_file)
                return -ENOMEM;
        open_file->file = file;
        MUTEX_GUARD(&proxy->lock);
        open_file->next = proxy->files;
        proxy->files = open_file;
        return 0;
}

static int wrap(struct fs *fs, struct message *got, const char *path, unsigned flags,
        struct file **ret, struct error *err)
{
        struct proxy_fs *proxy = proxy_of(fs);
        _cleanup_fd_ int fd = message_take_fd(got, 0);
        _cleanup_fd_ int direct_fd = message_take_fd(got, 1);
        const char *real = json_string_value(json_object_get(got->json, "path"));
        struct file *file;
        int r;

        if (fd < 0 || (flags & FILE_DIRECT && direct_fd < 0))
                return fail(err, EPROTO, "the daemon sent no descriptor for '%s'", path);
        if (json_is_true(json_object_get(got->json, "exclusive")))
                flags |= FILE_EXCLUSIVE;
        /* The broker may know it by the name as it is really spelled. */
        r = host_file_wrap(fs, fd, direct_fd, real ? real : path, flags, &file);
        if (r < 0)
                return fail_os(err, -r, "cannot use '%s'", path);
        TAKE_FD(fd);
        TAKE_FD(direct_fd);
        r = remember(proxy, file);
        if (r < 0) {
                host_file_ops_get()->close(file);
                return fail(err, ENOMEM, "no memory to open '%s'", path);
        }
        file->ops = &proxy->file_ops;
        *ret = file;
        return 0;
}

static int proxy_open(struct fs *fs, const char *path, unsigned flags, unsigned mode,
        struct file **ret, struct error *err)
{
        struct message got = MESSAGE_INIT;
        int r = ask(fs, "fs.open",
                json_pack("{s:s, s:i, s:i}", "path", path, "flags", (int)flags, "mode", (int)mode),
                &got, err);

        if (r == 0)
                r = wrap(fs, &got, path, flags, ret, err);
        message_done(&got);
        return r;
}

/* --- names --- */

static int proxy_rename(struct fs *fs, const char *from, const char *to, bool replace)
{
        return ask(fs, "fs.rename",
                json_pack("{s:s, s:s, s:b}", "from", from, "to", to, "replace", replace), NULL,
                NULL);
}

static int proxy_unlink(struct fs *fs, const char *path)
{
        return ask(fs, "fs.unlink", json_pack("{s:s}", "path", path), NULL, NULL);
}

static int proxy_sync_directory(struct fs *fs, const char *path)
{
        return ask(fs, "fs.sync-directory", json_pack("{s:s}", "path", path), NULL, NULL);
}

/* --- regions --- */

static void free_region(struct proxy_region *region)
{
        if (!region)
                return;
        if (region->mapping) {
                munmap(region->mapping->data, region->mapping->size);
                free(region->mapping->path);
                free(region->mapping);
        }
        free(region->name);
        free(region->beside);
        free(region);
}

static int map_answer(struct fs *fs, struct message *got, const char *name, const char *beside,
        struct region **ret, struct error *err)
{
        const char *path = json_string_value(json_object_get(got->json, "path"));
        _cleanup_fd_ int fd = message_take_fd(got, 0);
        struct proxy_region *region;
        int r;

        if (fd < 0 || !path)
                return fail(err, EPROTO, "the daemon sent no descriptor for '%s'", name);
        region = calloc(1, sizeof(*region));
        if (region) {
                region->name = strdup(name);
                region->beside = strdup(beside);
        }
        if (!region || !region->name || !region->beside) {
                free_region(region);
                return fail(err, ENOMEM, "no memory for the region '%s'", name);
        }
        r = host_region_map(fs, fd, path, &region->mapping, err);
        if (r < 0) {
                free_region(region);
                return r;
        }
        region->region = *region->mapping;
        *ret = &region->region;
        return 0;
}

static int proxy_region_open(struct fs *fs, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err)
{
        struct message got = MESSAGE_INIT;
        int r = ask(fs, "fs.region-open",
                json_pack("{s:s, s:s, s:I, s:b}", "name", name, "beside", beside, "size",
                        (json_int_t)size, "create", create),
                &got, err);

        if (r == 0)
                r = map_answer(fs, &got, name, beside, ret, err);
        message_done(&got);
        return r;
}

static void proxy_region_close(struct region *head, bool remove)
{
        struct proxy_region *region = (struct proxy_region *)head;

        /* Nothing is left to be told: whoever finds the file must see that, also if it stays because
         * there is no broker now. It is removed by the next who opens the image for writing. */
        if (remove)
                memset(head->data, 0, head->size < HEAD_BYTES ? head->size : HEAD_BYTES);
        if (remove)
                ask(head->fs, "fs.region-remove",
                        json_pack("{s:s, s:s}", "name", region->name, "beside", region->beside),
                        NULL, NULL);
        free_region(region);
}

/* --- the rest --- */

static void proxy_boot_id(struct fs *fs, uint8_t ret[16])
{
        memcpy(ret, proxy_of(fs)->boot_id, 16);
}

static int64_t proxy_now(struct fs *fs)
{
        return time(NULL);
}

static const struct fs_ops proxy_ops = {
        .open_told = proxy_open,
        .rename = proxy_rename,
        .unlink = proxy_unlink,
        .sync_directory = proxy_sync_directory,
        .region_open = proxy_region_open,
        .region_close = proxy_region_close,
        .boot_id = proxy_boot_id,
        .now = proxy_now,
};

int proxy_fs_new(struct proxy_fs **ret, struct error *err)
{
        struct proxy_fs *proxy = calloc(1, sizeof(*proxy));

        if (!proxy)
                return fail(err, ENOMEM, "no memory for a file system");
        proxy->fs.ops = &proxy_ops;
        proxy->file_ops = *host_file_ops_get();
        proxy->file_ops.close = proxy_close;
        fs_boot_id(host_fs(), proxy->boot_id);
        pthread_mutex_init(&proxy->lock, NULL);
        *ret = proxy;
        return 0;
}

struct proxy_fs *proxy_fs_free(struct proxy_fs *proxy)
{
        if (!proxy)
                return NULL;
        rpc_unref(proxy->rpc);
        pthread_mutex_destroy(&proxy->lock);
        free(proxy);
        return NULL;
}

struct fs *proxy_fs_get(struct proxy_fs *proxy)
{
        return &proxy->fs;
}

void proxy_fs_connect(struct proxy_fs *proxy, struct rpc *rpc)
{
        MUTEX_GUARD(&proxy->lock);
        rpc_unref(proxy->rpc);
        proxy->rpc = rpc ? rpc_ref(rpc) : NULL;
}

unsigned proxy_fs_list(struct proxy_fs *proxy, size_t offset, json_t *paths, int *fds, unsigned max)
{
        unsigned n = 0;
        size_t i = 0;

        MUTEX_GUARD(&proxy->lock);
        for (const struct open_file *at = proxy->files; at && n < max; at = at->next) {
                if (i++ < offset)
                        continue;
                fds[n] = fcntl(at->file->fd, F_DUPFD_CLOEXEC, 3);
                if (fds[n] < 0)
                        break;
                json_array_append_new(paths, json_string(at->file->path));
                n++;
        }
        return n;
}
