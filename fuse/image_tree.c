/* SPDX-License-Identifier: Apache-2.0 */
#include "fuse/image_tree.h"

#include <sys/stat.h>

#include "fuse/span.h"

struct image_tree {
        /* immutable after making */
        struct vhdfuse_tree *tree;
        struct chain *chain;
        struct vhdfuse_node *disk;
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

static int add_span(struct image_tree *image, struct vhdfuse_node *directory, const char *name,
        uint64_t start, uint64_t size, struct vhdfuse_node **ret)
{
        const struct span_options options = {.chain = image->chain, .start = start, .size = size};
        bool writable = chain_is_writable(image->chain);
        void *span = span_new(&options);
        int r = -ENOMEM;

        if (span)
                r = vhdfuse_tree_add_file(image->tree, directory, name,
                        writable ? &span_ops : &span_read_only_ops, span, 0, ret);
        if (r < 0)
                free(span);
        return r;
}

int image_tree_new(
        struct vhdfuse_tree *tree, struct chain *chain, struct image_tree **ret, struct error *err)
{
        _cleanup_(image_tree_freep) struct image_tree *image = calloc(1, sizeof(*image));
        int r = image ? 0 : -ENOMEM;

        if (r == 0) {
                image->tree = tree;
                image->chain = chain;
                r = add_span(
                        image, vhdfuse_tree_root(tree), "disk", 0, chain_size(chain), &image->disk);
        }
        if (r < 0)
                return fail_os(err, -r, "cannot make the files of the mount");
        *ret = TAKE_PTR(image);
        return 0;
}

struct image_tree *image_tree_free(struct image_tree *image)
{
        free(image);
        return NULL;
}

void image_tree_statfs(struct image_tree *image, struct statvfs *ret)
{
        struct statvfs st;

        if (leaf_file(image->chain)->fd >= 0 && fstatvfs(leaf_file(image->chain)->fd, &st) == 0)
                *ret = st;
}
