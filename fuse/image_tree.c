/* SPDX-License-Identifier: Apache-2.0 */
#include "fuse/image_tree.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fuse/layer.h"
#include "fuse/span.h"

struct image_tree {
        /* immutable after making */
        struct vhdfuse_tree *tree;
        struct image_tree_options options;
        struct chain *chain;
        bool writable;
        struct vhdfuse_node *disk, *partitions, *layers;

        _Atomic bool table_written;  /* somebody wrote where the partition table is */
        pthread_rwlock_t table_lock; /* held for moments: nothing that may wait for the kernel */
        struct partition_table
                *table; /* guarded by table_lock; replaced by the showing lock's holder */

        pthread_mutex_t showing_lock; /* only ever tried for */
        /* guarded by showing_lock */
        struct vhdfuse_node *nodes[PARTITION_TABLE_MAX]; /* of its entries; NULL: it has no file */
        struct vhdfuse_node *table_info;
};

static struct file *leaf_file(struct chain *chain)
{
        return chain_layer(chain, chain_depth(chain) - 1)->file;
}

void image_tree_owner(struct chain *chain, struct vhdfuse_owner *ret)
{
        struct stat st;

        *ret = (struct vhdfuse_owner){.uid = getuid(), .gid = getgid(), .mode = 0600};
        if (leaf_file(chain)->fd >= 0 && fstat(leaf_file(chain)->fd, &st) == 0)
                *ret = (struct vhdfuse_owner){st.st_uid, st.st_gid, st.st_mode & 0666};
}

/* --- what is done through the files */

static void note_table(struct image_tree *image, uint64_t offset, uint64_t length)
{
        bool touched;

        pthread_rwlock_rdlock(&image->table_lock);
        touched = partition_table_touches(image->table, offset, length);
        pthread_rwlock_unlock(&image->table_lock);
        if (touched)
                atomic_store(&image->table_written, true);
}

static void disk_changed(void *opaque, uint64_t offset, uint64_t length)
{
        note_table(opaque, offset, length);
}

static void partition_changed(void *opaque, uint64_t offset, uint64_t length)
{
        struct image_tree *image = opaque;

        vhdfuse_tree_changed(image->tree, image->disk, offset, length);
        note_table(image, offset, length);
}

static void look_at_table(void *opaque);

static int add_span(struct image_tree *image, struct vhdfuse_node *directory, const char *name,
        uint64_t start, uint64_t size, bool is_disk, struct vhdfuse_node **ret)
{
        const struct span_options options = {
                .chain = image->chain,
                .start = start,
                .size = size,
                .changed = is_disk ? disk_changed : partition_changed,
                .flushed = is_disk ? look_at_table : NULL,
                .released = look_at_table,
                .opaque = image,
        };
        void *span = span_new(&options);
        int r = -ENOMEM;

        if (span)
                r = vhdfuse_tree_add_file(image->tree, directory, name,
                        image->writable ? &span_ops : &span_read_only_ops, span,
                        image->writable && !is_disk ? VHDFUSE_UNCACHED : 0, ret);
        if (r < 0)
                free(span);
        return r;
}

/* --- partitions */

static int show_table(struct image_tree *image)
{
        const struct partition_table *table = image->table;
        _cleanup_free_ char *text = image->options.partitions_info(image->options.opaque, table);
        int r = vhdfuse_tree_add_text(
                image->tree, image->partitions, "info.json", text ? text : "", &image->table_info);

        for (uint32_t i = 0; r == 0 && i < table->n; i++) {
                const struct partition_entry *entry = &table->entries[i];
                char name[16];

                image->nodes[i] = NULL;
                if (!entry->inside || entry->extended)
                        continue;
                snprintf(name, sizeof(name), "%u", entry->number);
                r = add_span(image, image->partitions, name, entry->start, entry->size, false,
                        &image->nodes[i]);
                if (r == -EEXIST)
                        r = 0;
        }
        return r;
}

static void hide_table(struct image_tree *image)
{
        for (uint32_t i = 0; i < image->table->n; i++) {
                if (image->nodes[i])
                        vhdfuse_tree_remove(image->tree, image->nodes[i]);
                image->nodes[i] = NULL;
        }
        if (image->table_info)
                vhdfuse_tree_remove(image->tree, image->table_info);
        image->table_info = NULL;
}

static bool is_same_table(const struct partition_table *a, const struct partition_table *b)
{
        return strcmp(a->type, b->type) == 0 && strcmp(a->id, b->id) == 0 && a->n == b->n &&
                memcmp(a->entries, b->entries, a->n * sizeof(a->entries[0])) == 0;
}

/* Answers the one before, which is the caller's. */
static struct partition_table *put_table(struct image_tree *image, struct partition_table *table)
{
        struct partition_table *before = image->table;

        pthread_rwlock_wrlock(&image->table_lock);
        image->table = table;
        pthread_rwlock_unlock(&image->table_lock);
        return before;
}

static void read_table_again(struct image_tree *image)
{
        struct partition_table *table = malloc(sizeof(*table));
        struct error err = ERROR_INIT;
        bool same;

        if (!table || partition_table_read(image->chain, table, &err) < 0) {
                free(table); /* what was known is better than nothing */
                return;
        }
        same = is_same_table(image->table, table);
        if (!same)
                hide_table(image);
        free(put_table(image, table));
        if (!same && show_table(image) < 0)
                image->options.warn(image->options.opaque, "no memory for the partitions' files");
}

/* Tried for, because the kernel may wait, while nodes come and go, for somebody who is here as well. Who
 * does not get it leaves it to the holder, who looks again. */
static void look_at_table(void *opaque)
{
        struct image_tree *image = opaque;

        while (atomic_load(&image->table_written) &&
                pthread_mutex_trylock(&image->showing_lock) == 0) {
                atomic_store(&image->table_written, false);
                read_table_again(image);
                pthread_mutex_unlock(&image->showing_lock);
        }
}

static int add_partitions(struct image_tree *image)
{
        struct error err = ERROR_INIT;
        int r = vhdfuse_tree_add_directory(
                image->tree, vhdfuse_tree_root(image->tree), "partitions", &image->partitions);

        image->table = calloc(1, sizeof(*image->table));
        if (r < 0 || !image->table)
                return -ENOMEM;
        if (partition_table_read(image->chain, image->table, &err) < 0) {
                image->options.warn(image->options.opaque, err.message);
                image->table->n = 0;
        }
        return show_table(image);
}

/* --- the rest */

static int add_layers(struct image_tree *image)
{
        unsigned n = chain_depth(image->chain);
        int r = vhdfuse_tree_add_directory(
                image->tree, vhdfuse_tree_root(image->tree), "layers", &image->layers);

        for (unsigned depth = 0; r == 0 && depth < n; depth++) {
                void *layer = layer_new(image->chain, n - 1 - depth);
                char name[16];

                snprintf(name, sizeof(name), "%u", depth);
                r = layer
                        ? vhdfuse_tree_add_file(image->tree, image->layers, name, &layer_ops, layer,
                                  image->writable && depth == 0 ? VHDFUSE_UNCACHED : 0, NULL)
                        : -ENOMEM;
                if (r < 0)
                        free(layer);
        }
        return r;
}

/* What an image that is written to is changes with each write. */
static int add_info(struct image_tree *image)
{
        struct vhdfuse_node *root = vhdfuse_tree_root(image->tree);
        _cleanup_free_ char *text = NULL;

        if (image->writable)
                return vhdfuse_tree_add_made_text(image->tree, root, "info.json",
                        image->options.info, image->options.opaque, NULL);
        text = image->options.info(image->options.opaque);
        return vhdfuse_tree_add_text(image->tree, root, "info.json", text ? text : "", NULL);
}

int image_tree_new(struct vhdfuse_tree *tree, const struct image_tree_options *options,
        struct image_tree **ret, struct error *err)
{
        _cleanup_(image_tree_freep) struct image_tree *image = calloc(1, sizeof(*image));
        int r;

        if (!image)
                return fail(err, ENOMEM, "no memory for the files of the mount");
        image->tree = tree;
        image->options = *options;
        image->chain = options->chain;
        image->writable = chain_is_writable(options->chain);
        pthread_rwlock_init(&image->table_lock, NULL);
        pthread_mutex_init(&image->showing_lock, NULL);
        r = add_span(image, vhdfuse_tree_root(tree), "disk", 0, chain_size(image->chain), true,
                &image->disk);
        if (r == 0)
                r = add_partitions(image);
        if (r == 0)
                r = add_layers(image);
        if (r == 0)
                r = add_info(image);
        if (r < 0)
                return fail_os(err, -r, "cannot make the files of the mount");
        *ret = TAKE_PTR(image);
        return 0;
}

struct image_tree *image_tree_free(struct image_tree *image)
{
        if (!image)
                return NULL;
        pthread_mutex_destroy(&image->showing_lock);
        pthread_rwlock_destroy(&image->table_lock);
        free(image->table);
        free(image);
        return NULL;
}

void image_tree_statfs(struct image_tree *image, struct statvfs *ret)
{
        struct statvfs st;

        if (leaf_file(image->chain)->fd >= 0 && fstatvfs(leaf_file(image->chain)->fd, &st) == 0)
                *ret = st;
}
