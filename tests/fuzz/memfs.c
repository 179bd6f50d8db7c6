/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/memfs.h"

#include <assert.h>
#include <pthread.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"

#define PAGE      4096u
#define MAX_NODES 16

struct page {
        uint64_t number;
        uint8_t bytes[PAGE];
};

/* A file's content: the pages that were written, in no order. */
struct node {
        char path[512];
        uint64_t size;
        struct page *pages;
        size_t n_pages;
        bool gone;
};

/* Memory that outlives its mapping, until it is removed. */
struct slot {
        char name[512];
        uint8_t *data; /* NULL: free */
        uint64_t size;
};

struct memfs {
        struct fs fs; /* first: the two are cast into each other */
        struct node nodes[MAX_NODES];
        unsigned n_nodes;
        struct slot slots[MEMFS_MAX_REGIONS];
        pthread_mutex_t lock;
};

struct mem_file {
        struct file file; /* first: the two are cast into each other */
        struct node *node;
};

static struct memfs *memfs_of(struct file *file)
{
        return (struct memfs *)file->fs;
}

static struct node *node_of(struct file *file)
{
        return ((struct mem_file *)file)->node;
}

static struct node *find(struct memfs *memfs, const char *path)
{
        for (unsigned i = 0; i < memfs->n_nodes; i++)
                if (!memfs->nodes[i].gone && strcmp(memfs->nodes[i].path, path) == 0)
                        return &memfs->nodes[i];
        return NULL;
}

static struct page *page_at(struct node *node, uint64_t number, bool make)
{
        struct page *pages;

        for (size_t i = 0; i < node->n_pages; i++)
                if (node->pages[i].number == number)
                        return &node->pages[i];
        if (!make || node->n_pages >= MEMFS_MAX_BYTES / PAGE)
                return NULL;
        pages = reallocarray(node->pages, node->n_pages + 1, sizeof(*pages));
        assert(pages);
        node->pages = pages;
        pages[node->n_pages] = (struct page){.number = number};
        return &pages[node->n_pages++];
}

/* The part of [offset, offset + length) that lies in the first page it touches. */
static size_t part_of(uint64_t offset, size_t length)
{
        return MIN_OF(length, PAGE - (size_t)(offset % PAGE));
}

static void read_node(struct node *node, uint8_t *data, size_t length, uint64_t offset)
{
        for (size_t n; length > 0; data += n, offset += n, length -= n) {
                struct page *page = page_at(node, offset / PAGE, false);

                n = part_of(offset, length);
                if (page)
                        memcpy(data, page->bytes + offset % PAGE, n);
                else
                        memset(data, 0, n);
        }
}

static int write_node(struct node *node, const uint8_t *data, size_t length, uint64_t offset)
{
        node->size = MAX_OF(node->size, offset + length);
        for (size_t n; length > 0; offset += n, length -= n) {
                struct page *page;

                n = part_of(offset, length);
                page = page_at(node, offset / PAGE, data != NULL);
                if (!page && data)
                        return -ENOSPC;
                if (page && data)
                        memcpy(page->bytes + offset % PAGE, data, n);
                else if (page)
                        memset(page->bytes + offset % PAGE, 0, n);
                if (data)
                        data += n;
        }
        return 0;
}

static ssize_t mem_readv(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        struct node *node = node_of(file);
        ssize_t total = 0;

        if (offset > INT64_MAX)
                return -EINVAL;
        pthread_mutex_lock(&memfs_of(file)->lock);
        for (int i = 0; i < n_iov && offset < node->size; i++) {
                size_t n = MIN_OF(iov[i].iov_len, node->size - offset);

                read_node(node, iov[i].iov_base, n, offset);
                offset += n;
                total += (ssize_t)n;
        }
        pthread_mutex_unlock(&memfs_of(file)->lock);
        return total;
}

static ssize_t mem_writev(
        struct file *file, const struct iovec *iov, int n_iov, uint64_t offset, unsigned flags)
{
        ssize_t total = 0;
        int r = 0;

        if (!(file->flags & FILE_WRITE))
                return -EBADF;
        if (offset > INT64_MAX / 2)
                return -EFBIG;
        pthread_mutex_lock(&memfs_of(file)->lock);
        for (int i = 0; i < n_iov && r == 0; i++) {
                r = write_node(node_of(file), iov[i].iov_base, iov[i].iov_len, offset);
                offset += iov[i].iov_len;
                total += (ssize_t)iov[i].iov_len;
        }
        pthread_mutex_unlock(&memfs_of(file)->lock);
        return r < 0 ? r : total;
}

static int mem_sync(struct file *file)
{
        return 0;
}

static int mem_truncate(struct file *file, uint64_t size)
{
        struct node *node = node_of(file);

        pthread_mutex_lock(&memfs_of(file)->lock);
        if (size < node->size)
                write_node(node, NULL, (size_t)(node->size - size), size);
        node->size = size;
        pthread_mutex_unlock(&memfs_of(file)->lock);
        return 0;
}

static int mem_punch(struct file *file, uint64_t offset, uint64_t length)
{
        struct node *node = node_of(file);

        pthread_mutex_lock(&memfs_of(file)->lock);
        if (offset < node->size)
                write_node(node, NULL, (size_t)MIN_OF(length, node->size - offset), offset);
        pthread_mutex_unlock(&memfs_of(file)->lock);
        return 0;
}

static int mem_reserve(struct file *file, uint64_t offset, uint64_t length)
{
        return -EOPNOTSUPP;
}

static int mem_seek(struct file *file, uint64_t offset, bool data, uint64_t *ret)
{
        *ret = data ? MIN_OF(offset, node_of(file)->size) : node_of(file)->size;
        return 0;
}

static int mem_stat(struct file *file, struct file_stat *ret)
{
        struct node *node = node_of(file);

        *ret = (struct file_stat){.size = node->size,
                .allocated = node->n_pages * PAGE,
                .device = 1,
                .inode = (uint64_t)(node - memfs_of(file)->nodes) + 1,
                .owner = (uint32_t)geteuid(),
                .is_regular = true};
        return 0;
}

static int mem_lock(struct file *file, enum file_lock mode)
{
        return 0;
}

static void mem_close(struct file *file)
{
        free(file->path);
        free(file);
}

static const struct file_ops mem_file_ops = {
        .readv = mem_readv,
        .writev = mem_writev,
        .sync = mem_sync,
        .truncate = mem_truncate,
        .punch = mem_punch,
        .reserve = mem_reserve,
        .seek = mem_seek,
        .stat = mem_stat,
        .lock = mem_lock,
        .close = mem_close,
};

static struct node *add_node(struct memfs *memfs, const char *path)
{
        struct node *node;

        if (memfs->n_nodes == MAX_NODES || strlen(path) >= sizeof(node->path))
                return NULL;
        node = &memfs->nodes[memfs->n_nodes++];
        strcpy(node->path, path);
        return node;
}

static int mem_open(
        struct fs *fs, const char *path, unsigned flags, unsigned mode, struct file **ret)
{
        struct memfs *memfs = (struct memfs *)fs;
        struct node *node = find(memfs, path);
        struct mem_file *file;

        if (node && flags & FILE_EXCLUSIVE)
                return -EEXIST;
        if (!node && !(flags & FILE_CREATE))
                return -ENOENT;
        if (!node)
                node = add_node(memfs, path);
        if (!node)
                return -ENOSPC;
        file = calloc(1, sizeof(*file));
        assert(file);
        file->file = (struct file){
                .ops = &mem_file_ops, .fs = fs, .path = strdup(path), .fd = -1, .flags = flags};
        file->node = node;
        if (flags & FILE_TRUNCATE)
                mem_truncate(&file->file, 0);
        *ret = &file->file;
        return 0;
}

static int mem_rename(struct fs *fs, const char *from, const char *to, bool replace)
{
        return -EOPNOTSUPP;
}

static int mem_unlink(struct fs *fs, const char *path)
{
        struct node *node = find((struct memfs *)fs, path);

        if (!node)
                return -ENOENT;
        node->gone = true;
        return 0;
}

static int mem_sync_directory(struct fs *fs, const char *path)
{
        return 0;
}

static struct slot *find_slot(struct memfs *memfs, const char *name)
{
        for (unsigned i = 0; i < MEMFS_MAX_REGIONS; i++)
                if (memfs->slots[i].data && strcmp(memfs->slots[i].name, name) == 0)
                        return &memfs->slots[i];
        return NULL;
}

static struct slot *make_slot(struct memfs *memfs, const char *name, uint64_t size)
{
        unsigned i = 0;

        while (i < MEMFS_MAX_REGIONS && memfs->slots[i].data)
                i++;
        assert(i < MEMFS_MAX_REGIONS);
        assert(strlen(name) < sizeof(memfs->slots[i].name));
        strcpy(memfs->slots[i].name, name);
        memfs->slots[i].size = size;
        memfs->slots[i].data = calloc(1, size);
        assert(memfs->slots[i].data);
        return &memfs->slots[i];
}

static int mem_region_open(struct fs *fs, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err)
{
        struct memfs *memfs = (struct memfs *)fs;
        struct slot *slot = find_slot(memfs, name);
        struct region *region;

        if (!slot && !create)
                return -ENOENT;
        if (slot && create)
                return -EEXIST;
        if (!slot)
                slot = make_slot(memfs, name, size);
        region = calloc(1, sizeof(*region));
        assert(region);
        *region = (struct region){
                .fs = fs, .data = slot->data, .size = slot->size, .path = strdup(name)};
        *ret = region;
        return 0;
}

static void mem_region_close(struct region *region, bool remove)
{
        struct slot *slot = find_slot((struct memfs *)region->fs, region->path);

        if (remove && slot) {
                free(slot->data);
                slot->data = NULL;
        }
        free(region->path);
        free(region);
}

static void mem_boot_id(struct fs *fs, uint8_t ret[16])
{
        memset(ret, 1, 16);
}

static int64_t mem_now(struct fs *fs)
{
        return INT64_C(1790000000);
}

static const struct fs_ops mem_fs_ops = {
        .open = mem_open,
        .rename = mem_rename,
        .unlink = mem_unlink,
        .sync_directory = mem_sync_directory,
        .region_open = mem_region_open,
        .region_close = mem_region_close,
        .boot_id = mem_boot_id,
        .now = mem_now,
};

struct memfs *memfs_new(void)
{
        struct memfs *memfs = calloc(1, sizeof(*memfs));

        assert(memfs);
        memfs->fs.ops = &mem_fs_ops;
        pthread_mutex_init(&memfs->lock, NULL);
        return memfs;
}

void memfs_free(struct memfs *memfs)
{
        for (unsigned i = 0; i < memfs->n_nodes; i++)
                free(memfs->nodes[i].pages);
        for (unsigned i = 0; i < MEMFS_MAX_REGIONS; i++)
                free(memfs->slots[i].data);
        pthread_mutex_destroy(&memfs->lock);
        free(memfs);
}

struct fs *memfs_fs(struct memfs *memfs)
{
        return &memfs->fs;
}

void memfs_add(struct memfs *memfs, const char *path, const void *head, size_t head_size,
        const void *tail, size_t tail_size, uint64_t size)
{
        struct node *node = add_node(memfs, path);

        assert(node);
        assert(tail_size <= size);
        write_node(node, head, head_size, 0);
        write_node(node, tail, tail_size, size - tail_size);
        node->size = size;
}

uint64_t memfs_hash(struct memfs *memfs, const char *path)
{
        struct node *node = find(memfs, path);
        uint64_t hash = node->size;

        /* Pages come in no order: their hashes are added up. */
        for (size_t i = 0; i < node->n_pages; i++)
                hash += XXH3_64bits_withSeed(node->pages[i].bytes, PAGE, node->pages[i].number + 1);
        return hash;
}

bool memfs_has(struct memfs *memfs, const char *path)
{
        return find(memfs, path) != NULL;
}

uint8_t *memfs_region(struct memfs *memfs, unsigned index, uint64_t *ret_size)
{
        assert(index < MEMFS_MAX_REGIONS);
        *ret_size = memfs->slots[index].size;
        return memfs->slots[index].data;
}
