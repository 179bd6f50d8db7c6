/* SPDX-License-Identifier: Apache-2.0 */
/* The operations of a mount over its tree. Each runs on a thread of its own and may block.
 *
 * What the kernel may keep: names and attributes for a second (what changes is told, too), the bytes of
 * files in its page cache unless they are VHDFUSE_UNCACHED; whoever changes bytes by another way says so
 * (vhdfuse_tree_changed). There is no cache of writes: a write was made when it is answered. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/arith.h"
#include "fuse/internal.h"

#define CACHE_SECONDS 1.0
#define PAGE_SIZE     4096u

/* What fi->fh points to. */
struct open_file {
        struct vhdfuse_node *node; /* a reference */
        void *handle;              /* the file's own */
};

struct open_directory {
        struct vhdfuse_node **children; /* as they were at opening, with references */
        uint64_t parent_number;
};

static struct vhdfuse_tree *tree_of(fuse_req_t req)
{
        return ((struct vhdfuse_mount *)fuse_req_userdata(req))->tree;
}

static struct vhdfuse_node *node_of(fuse_req_t req, fuse_ino_t id)
{
        return vhdfuse_node_of(tree_of(req), id);
}

static struct open_file *file_of(const struct fuse_file_info *fi)
{
        return (struct open_file *)(uintptr_t)fi->fh;
}

/* --- a buffer for reads, one a thread, as long as the longest of them
 *
 * Copying through memory that is there already is quickest: splicing the page cache's pages costs more
 * for each page than copying it does, and new memory costs a page fault a page (docs/fuse.md). */

static pthread_key_t buffer_key;

static void make_buffer_key(void)
{
        pthread_key_create(&buffer_key, free);
}

static void *thread_buffer(void)
{
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        void *buffer;

        pthread_once(&once, make_buffer_key);
        buffer = pthread_getspecific(buffer_key);
        if (!buffer && posix_memalign(&buffer, PAGE_SIZE, VHDFUSE_IO_MAX) == 0)
                pthread_setspecific(buffer_key, buffer);
        return buffer;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
        conn->max_write = VHDFUSE_IO_MAX;
        conn->max_read = VHDFUSE_IO_MAX; /* and the mount option says so too */
        conn->max_readahead = VHDFUSE_IO_MAX;
        conn->max_background = VHDFUSE_MAX_BACKGROUND;
        conn->congestion_threshold = VHDFUSE_MAX_BACKGROUND * 3 / 4;
        /* What is written is copied once in any case: a pipe in between only costs. */
        conn->want &= ~(unsigned)FUSE_CAP_SPLICE_READ;
}

/* --- names and attributes */

static void fill_entry(
        struct vhdfuse_tree *tree, struct vhdfuse_node *node, struct fuse_entry_param *ret)
{
        *ret = (struct fuse_entry_param){
                .ino = vhdfuse_node_id(tree, node),
                .generation = node->number,
                .attr_timeout = CACHE_SECONDS,
                .entry_timeout = CACHE_SECONDS,
        };
        vhdfuse_node_stat(tree, node, &ret->attr);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
        struct vhdfuse_tree *tree = tree_of(req);
        struct vhdfuse_node *node = vhdfuse_node_lookup(tree, node_of(req, parent), name);
        struct fuse_entry_param entry;

        if (!node) {
                fuse_reply_err(req, ENOENT);
                return;
        }
        fill_entry(tree, node, &entry);
        if (fuse_reply_entry(req, &entry) < 0)
                vhdfuse_node_forget(tree, node, 1);
}

static void op_forget(fuse_req_t req, fuse_ino_t id, uint64_t n)
{
        vhdfuse_node_forget(tree_of(req), node_of(req, id), n);
        fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
        for (size_t i = 0; i < count; i++)
                vhdfuse_node_forget(tree_of(req), node_of(req, forgets[i].ino), forgets[i].nlookup);
        fuse_reply_none(req);
}

static void reply_attr(fuse_req_t req, fuse_ino_t id)
{
        struct stat st;

        vhdfuse_node_stat(tree_of(req), node_of(req, id), &st);
        fuse_reply_attr(req, &st, CACHE_SECONDS);
}

static void op_getattr(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
        reply_attr(req, id);
}

/* A disk has the size that it has. Being cut to just that is what some programs do first. */
static void op_setattr(
        fuse_req_t req, fuse_ino_t id, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
        const struct vhdfuse_node *node = node_of(req, id);
        uint64_t size;

        if (node_is_directory(node) || !(to_set & FUSE_SET_ATTR_SIZE)) {
                fuse_reply_err(req, EPERM);
                return;
        }
        if (!node->ops->write) {
                fuse_reply_err(req, EROFS);
                return;
        }
        size = node->ops->size(node->closure);
        if ((uint64_t)attr->st_size == size)
                reply_attr(req, id);
        else
                fuse_reply_err(req, (uint64_t)attr->st_size > size ? EFBIG : EPERM);
}

static void op_statfs(fuse_req_t req, fuse_ino_t id)
{
        const struct vhdfuse_mount *mount = fuse_req_userdata(req);
        struct statvfs st = {.f_bsize = PAGE_SIZE, .f_frsize = PAGE_SIZE, .f_namemax = 255};

        if (mount->statfs)
                mount->statfs(mount->opaque, &st);
        fuse_reply_statfs(req, &st);
}

/* --- directories */

static void free_directory(struct vhdfuse_tree *tree, struct open_directory *directory)
{
        for (size_t i = 0; directory->children && directory->children[i]; i++)
                vhdfuse_node_unref(tree, directory->children[i]);
        free(directory->children);
        free(directory);
}

static void op_opendir(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
        struct vhdfuse_tree *tree = tree_of(req);
        struct open_directory *directory = calloc(1, sizeof(*directory));

        if (directory)
                directory->children =
                        vhdfuse_node_children(tree, node_of(req, id), &directory->parent_number);
        if (!directory || !directory->children) {
                free(directory);
                fuse_reply_err(req, ENOMEM);
                return;
        }
        fi->fh = (uintptr_t)directory;
        if (fuse_reply_open(req, fi) < 0)
                free_directory(tree, directory);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
        free_directory(tree_of(req), (struct open_directory *)(uintptr_t)fi->fh);
        fuse_reply_err(req, 0);
}

/* "." and "..", which are never looked up by these names: they carry no lookup. */
static size_t add_dots(fuse_req_t req, char *buffer, size_t size, const char *name, uint64_t number,
        off_t next, bool plus)
{
        struct fuse_entry_param entry = {.attr = {.st_ino = number, .st_mode = S_IFDIR}};

        return plus ? fuse_add_direntry_plus(req, buffer, size, name, &entry, next)
                    : fuse_add_direntry(req, buffer, size, name, &entry.attr, next);
}

static size_t add_child(
        fuse_req_t req, char *buffer, size_t size, struct vhdfuse_node *node, off_t next, bool plus)
{
        struct vhdfuse_tree *tree = tree_of(req);
        struct fuse_entry_param entry;
        bool looked_up = false;
        size_t used;

        if (!plus) {
                struct stat st = {.st_ino = node->number,
                        .st_mode = node_is_directory(node) ? S_IFDIR : S_IFREG};

                return fuse_add_direntry(req, buffer, size, node->name, &st, next);
        }
        fill_entry(tree, node, &entry);
        if (fuse_add_direntry_plus(req, NULL, 0, node->name, NULL, 0) <= size)
                looked_up = vhdfuse_node_looked_up(tree, node);
        if (!looked_up)
                entry.ino = 0; /* removed meanwhile: a name, and nothing that the kernel may use */
        used = fuse_add_direntry_plus(req, buffer, size, node->name, &entry, next);
        return used;
}

static void read_directory(fuse_req_t req, fuse_ino_t id, size_t size, off_t offset,
        struct fuse_file_info *fi, bool plus)
{
        const struct open_directory *directory = (struct open_directory *)(uintptr_t)fi->fh;
        char *buffer = thread_buffer();
        size_t used = 0, n = 0;

        size = MIN_OF(size, (size_t)VHDFUSE_IO_MAX);
        if (!buffer) {
                fuse_reply_err(req, ENOMEM);
                return;
        }
        while (directory->children[n])
                n++;
        for (size_t at = (size_t)offset; at < n + 2; at++) {
                off_t next = (off_t)at + 1;
                size_t left = size - used, needed;

                if (at < 2)
                        needed = add_dots(req, buffer + used, left, at == 0 ? "." : "..",
                                at == 0 ? node_of(req, id)->number : directory->parent_number, next,
                                plus);
                else
                        needed = add_child(
                                req, buffer + used, left, directory->children[at - 2], next, plus);
                if (needed > left)
                        break;
                used += needed;
        }
        fuse_reply_buf(req, buffer, used);
}

static void op_readdir(
        fuse_req_t req, fuse_ino_t id, size_t size, off_t offset, struct fuse_file_info *fi)
{
        read_directory(req, id, size, offset, fi, false);
}

static void op_readdirplus(
        fuse_req_t req, fuse_ino_t id, size_t size, off_t offset, struct fuse_file_info *fi)
{
        read_directory(req, id, size, offset, fi, true);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t id, int data_only, struct fuse_file_info *fi)
{
        fuse_reply_err(req, 0);
}

/* --- files */

static int open_file(
        fuse_req_t req, struct vhdfuse_node *node, bool writable, struct open_file **ret)
{
        struct open_file *file;
        int r = 0;

        if (writable && !node->ops->write)
                return -EROFS;
        file = calloc(1, sizeof(*file));
        if (!file)
                return -ENOMEM;
        if (node->ops->open)
                r = node->ops->open(node->closure, writable, &file->handle);
        if (r < 0) {
                free(file);
                return r;
        }
        file->node = vhdfuse_node_ref(tree_of(req), node);
        *ret = file;
        return 0;
}

static void release_file(struct vhdfuse_tree *tree, struct open_file *file)
{
        struct vhdfuse_node *node = file->node;

        if (node->ops->release)
                node->ops->release(node->closure, file->handle);
        vhdfuse_node_unref(tree, node);
        free(file);
}

static void op_open(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
        struct vhdfuse_tree *tree = tree_of(req);
        struct vhdfuse_node *node = node_of(req, id);
        struct open_file *file;
        int r = open_file(req, node, (fi->flags & O_ACCMODE) != O_RDONLY, &file);

        if (r < 0) {
                fuse_reply_err(req, -r);
                return;
        }
        fi->fh = (uintptr_t)file;
        fi->direct_io = (node->flags & VHDFUSE_UNCACHED) != 0;
        fi->keep_cache = !fi->direct_io;
        if (fuse_reply_open(req, fi) < 0)
                release_file(tree, file);
}

static void op_release(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
        release_file(tree_of(req), file_of(fi));
        fuse_reply_err(req, 0);
}

static uint64_t size_of(const struct open_file *file)
{
        const struct vhdfuse_node *node = file->node;

        return node->ops->open_size ? node->ops->open_size(node->closure, file->handle)
                                    : node->ops->size(node->closure);
}

static void op_read(
        fuse_req_t req, fuse_ino_t id, size_t length, off_t offset, struct fuse_file_info *fi)
{
        const struct open_file *file = file_of(fi);
        const struct vhdfuse_node *node = file->node;
        uint64_t size = size_of(file), at = (uint64_t)offset;
        void *buffer;
        int r;

        length = MIN_OF(length, (size_t)VHDFUSE_IO_MAX);
        if (at >= size) {
                fuse_reply_buf(req, NULL, 0);
                return;
        }
        length = MIN_OF(length, size - at);
        buffer = thread_buffer();
        r = buffer ? node->ops->read(node->closure, file->handle, buffer, length, at) : -ENOMEM;
        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_buf(req, buffer, length);
}

/* Beyond the end there is no space, as on a block device. */
static void op_write(fuse_req_t req, fuse_ino_t id, const char *data, size_t length, off_t offset,
        struct fuse_file_info *fi)
{
        const struct open_file *file = file_of(fi);
        const struct vhdfuse_node *node = file->node;
        uint64_t size = node->ops->size(node->closure), at = (uint64_t)offset;
        int r;

        if (at >= size) {
                fuse_reply_err(req, ENOSPC);
                return;
        }
        length = MIN_OF(length, size - at);
        r = node->ops->write(node->closure, file->handle, data, length, at);
        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_write(req, length);
}

static void op_fsync(fuse_req_t req, fuse_ino_t id, int data_only, struct fuse_file_info *fi)
{
        const struct open_file *file = file_of(fi);
        const struct vhdfuse_node *node = file->node;
        int r = node->ops->flush ? node->ops->flush(node->closure, file->handle) : 0;

        fuse_reply_err(req, -r);
}

static void op_fallocate(fuse_req_t req, fuse_ino_t id, int mode, off_t offset, off_t length,
        struct fuse_file_info *fi)
{
        const struct open_file *file = file_of(fi);
        const struct vhdfuse_node *node = file->node;
        uint64_t size = node->ops->size(node->closure), at = (uint64_t)offset;
        bool punch = mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
        bool zero = (mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE;
        uint64_t part;
        int r = 0;

        if (!node->ops->write) {
                fuse_reply_err(req, EROFS);
                return;
        }
        if (!node->ops->zero || (!punch && !zero)) {
                fuse_reply_err(req, EOPNOTSUPP);
                return;
        }
        if (!(mode & FALLOC_FL_KEEP_SIZE) && !range_inside(at, (uint64_t)length, size)) {
                fuse_reply_err(req, EFBIG);
                return;
        }
        part = at < size ? MIN_OF((uint64_t)length, size - at) : 0;
        if (part > 0)
                r = node->ops->zero(node->closure, file->handle, part, at, punch);
        fuse_reply_err(req, -r);
}

/* The next data or hole; -ENXIO behind the last data, and behind the end. */
static int seek(const struct open_file *file, uint64_t at, bool want_data, uint64_t *ret)
{
        const struct vhdfuse_node *node = file->node;
        uint64_t size = node->ops->size(node->closure);

        if (at >= size)
                return -ENXIO;
        if (!node->ops->map) {
                *ret = want_data ? at : size;
                return 0;
        }
        while (at < size) {
                uint64_t length = 0;
                bool is_data = true;
                int r = node->ops->map(
                        node->closure, file->handle, size - at, at, &is_data, &length);

                if (r < 0)
                        return r;
                if (is_data == want_data) {
                        *ret = at;
                        return 0;
                }
                at += MIN_OF(length, size - at);
        }
        *ret = size; /* the end is a hole */
        return want_data ? -ENXIO : 0;
}

static void op_lseek(
        fuse_req_t req, fuse_ino_t id, off_t offset, int whence, struct fuse_file_info *fi)
{
        uint64_t found;
        int r;

        if (whence != SEEK_DATA && whence != SEEK_HOLE) {
                fuse_reply_err(req, EINVAL);
                return;
        }
        r = seek(file_of(fi), (uint64_t)offset, whence == SEEK_DATA, &found);
        if (r < 0)
                fuse_reply_err(req, -r);
        else
                fuse_reply_lseek(req, (off_t)found);
}

/* --- what files and directories nobody can make or take away here */

static void op_create(
        fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
        fuse_reply_err(req, EPERM);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t device)
{
        fuse_reply_err(req, EPERM);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
        fuse_reply_err(req, EPERM);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
        fuse_reply_err(req, EPERM);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
        const char *new_name, unsigned flags)
{
        fuse_reply_err(req, EPERM);
}

static void op_symlink(fuse_req_t req, const char *text, fuse_ino_t parent, const char *name)
{
        fuse_reply_err(req, EPERM);
}

static void op_link(fuse_req_t req, fuse_ino_t id, fuse_ino_t new_parent, const char *name)
{
        fuse_reply_err(req, EPERM);
}

const struct fuse_lowlevel_ops vhdfuse_ops = {
        .init = op_init,
        .lookup = op_lookup,
        .forget = op_forget,
        .forget_multi = op_forget_multi,
        .getattr = op_getattr,
        .setattr = op_setattr,
        .statfs = op_statfs,
        .opendir = op_opendir,
        .readdir = op_readdir,
        .readdirplus = op_readdirplus,
        .releasedir = op_releasedir,
        .fsyncdir = op_fsyncdir,
        .open = op_open,
        .release = op_release,
        .read = op_read,
        .write = op_write,
        .fsync = op_fsync,
        .fallocate = op_fallocate,
        .lseek = op_lseek,
        .create = op_create,
        .mknod = op_mknod,
        .mkdir = op_mkdir,
        .unlink = op_unlink,
        .rmdir = op_unlink,
        .rename = op_rename,
        .symlink = op_symlink,
        .link = op_link,
};
