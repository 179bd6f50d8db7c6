/* SPDX-License-Identifier: Apache-2.0 */
/* A tree whose nodes come and go under whoever looks at them. What could go wrong in the world: a file
 * that is read after it was removed is memory of somebody else's; a name is there twice; a closure is
 * freed too early, twice, or never. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "fuse/internal.h"
#include "fuse/session.h"

static unsigned n_freed;

static uint64_t get_size(void *closure)
{
        return *(uint64_t *)closure;
}

static void get_mtime(void *closure, struct timespec *ret)
{
        *ret = (struct timespec){.tv_sec = 7};
}

static int read_bytes(void *closure, void *handle, void *data, size_t length, uint64_t offset)
{
        memset(data, 'x', length);
        return 0;
}

static void count_free(void *closure)
{
        n_freed++;
}

static const struct vhdfuse_file_ops ops = {
        .size = get_size, .mtime = get_mtime, .read = read_bytes, .free = count_free};

static struct vhdfuse_tree *make_tree(void)
{
        const struct vhdfuse_owner owner = {.uid = 1, .gid = 2, .mode = 0640};
        struct vhdfuse_tree *tree = NULL;

        n_freed = 0;
        cr_assert_eq(vhdfuse_tree_new(&owner, &tree), 0);
        return tree;
}

Test(fuse_tree, takes_names_that_are_names_once)
{
        struct vhdfuse_tree *tree = make_tree();
        struct vhdfuse_node *root = vhdfuse_tree_root(tree), *directory, *file;
        uint64_t size = 5;
        char longest[300];

        cr_assert_eq(vhdfuse_tree_add_directory(tree, root, "d", &directory), 0);
        cr_assert_eq(vhdfuse_tree_add_file(tree, directory, "f", &ops, &size, 0, &file), 0);
        cr_expect_eq(vhdfuse_tree_add_file(tree, directory, "f", &ops, &size, 0, NULL), -EEXIST);
        cr_expect_eq(vhdfuse_tree_add_directory(tree, directory, "f", NULL), -EEXIST);
        cr_expect_eq(n_freed, 0, "a closure that was not taken over is its owner's");
        memset(longest, 'n', sizeof(longest));
        longest[256] = '\0';
        cr_expect_eq(vhdfuse_tree_add_directory(tree, root, longest, NULL), -EINVAL);
        longest[255] = '\0';
        cr_expect_eq(vhdfuse_tree_add_directory(tree, root, longest, NULL), 0);
        cr_expect_eq(vhdfuse_tree_add_directory(tree, root, "", NULL), -EINVAL);
        cr_expect_eq(vhdfuse_tree_add_directory(tree, root, "..", NULL), -EINVAL);
        cr_expect_eq(vhdfuse_tree_add_directory(tree, root, "a/b", NULL), -EINVAL);
        cr_expect_eq(vhdfuse_tree_find(tree, directory, "f"), file);
        cr_expect_null(vhdfuse_tree_find(tree, root, "f"));
        vhdfuse_tree_free(tree);
        cr_expect_eq(n_freed, 1);
}

Test(fuse_tree, a_removed_file_lives_until_the_last_who_has_it)
{
        struct vhdfuse_tree *tree = make_tree();
        struct vhdfuse_node *root = vhdfuse_tree_root(tree), *directory, *file;
        uint64_t size = 5;

        vhdfuse_tree_add_directory(tree, root, "d", &directory);
        vhdfuse_tree_add_file(tree, directory, "f", &ops, &size, 0, &file);
        cr_assert_eq(vhdfuse_node_lookup(tree, directory, "f"), file);
        cr_assert_eq(vhdfuse_node_lookup(tree, directory, "f"), file);
        vhdfuse_node_ref(tree, file); /* open */

        vhdfuse_tree_remove(tree, directory);
        cr_expect_null(vhdfuse_tree_find(tree, root, "d"));
        cr_expect_not(vhdfuse_node_looked_up(tree, file), "what is gone is not found any more");
        vhdfuse_node_forget(tree, file, 2);
        cr_expect_eq(n_freed, 0);
        vhdfuse_node_unref(tree, file);
        cr_expect_eq(n_freed, 1);
        vhdfuse_tree_free(tree);
        cr_expect_eq(n_freed, 1);
}

Test(fuse_tree, a_directory_goes_with_all_that_is_in_it)
{
        struct vhdfuse_tree *tree = make_tree();
        struct vhdfuse_node *root = vhdfuse_tree_root(tree), *outer, *inner, *other;
        struct vhdfuse_node **children;
        uint64_t size = 5, number;

        vhdfuse_tree_add_directory(tree, root, "outer", &outer);
        vhdfuse_tree_add_directory(tree, outer, "inner", &inner);
        vhdfuse_tree_add_file(tree, outer, "a", &ops, &size, 0, NULL);
        vhdfuse_tree_add_file(tree, inner, "b", &ops, &size, 0, NULL);
        vhdfuse_tree_add_file(tree, root, "other", &ops, &size, 0, &other);
        vhdfuse_node_ref(tree, inner);
        vhdfuse_tree_remove(tree, outer);
        cr_expect_eq(n_freed, 2);
        cr_expect_eq(vhdfuse_tree_add_file(tree, inner, "c", &ops, &size, 0, NULL), -ENOENT);
        vhdfuse_node_unref(tree, inner);

        children = vhdfuse_node_children(tree, root, &number);
        cr_assert_not_null(children);
        cr_expect_eq(children[0], other);
        cr_expect_null(children[1]);
        vhdfuse_node_unref(tree, other);
        free(children);
        vhdfuse_tree_free(tree);
        cr_expect_eq(n_freed, 3);
}

Test(fuse_tree, says_what_files_and_directories_are)
{
        struct vhdfuse_tree *tree = make_tree();
        struct vhdfuse_node *root = vhdfuse_tree_root(tree), *file, *text;
        uint64_t size = 1000;
        struct stat st;

        vhdfuse_tree_add_file(tree, root, "f", &ops, &size, 0, &file);
        vhdfuse_node_stat(tree, file, &st);
        cr_expect_eq(st.st_size, 1000);
        cr_expect_eq(st.st_blocks, 2);
        cr_expect_eq(st.st_mtim.tv_sec, 7);
        cr_expect_eq(st.st_mode, S_IFREG | 0440, "%o: nobody can write to it", st.st_mode);
        cr_expect_eq(st.st_uid, 1);
        cr_expect_eq(st.st_gid, 2);
        vhdfuse_node_stat(tree, root, &st);
        cr_expect_eq(st.st_mode, S_IFDIR | 0550, "%o", st.st_mode);
        cr_assert_eq(vhdfuse_tree_add_text(tree, root, "t", "hello", &text), 0);
        vhdfuse_node_stat(tree, text, &st);
        cr_expect_eq(st.st_size, 5);
        cr_expect_neq(st.st_ino, file->number);
        vhdfuse_tree_free(tree);
}

static unsigned n_made;

/* Each is longer by one than the one before. */
static char *make_text(void *opaque)
{
        unsigned n = n_made++;
        char *text;

        return asprintf(&text, "text %u%.*s", n, (int)n, "...............") < 0 ? NULL : text;
}

/* Who has it open reads one text, although it is made anew for the next. */
Test(fuse_tree, a_made_text_stays_for_who_has_it_open)
{
        struct vhdfuse_tree *tree = make_tree();
        struct vhdfuse_node *node;
        void *first, *second;
        char bytes[16];

        n_made = 0;
        cr_assert_eq(vhdfuse_tree_add_made_text(
                             tree, vhdfuse_tree_root(tree), "t", make_text, NULL, &node),
                0);
        cr_assert_eq(node->ops->open(node->closure, false, &first), 0);
        cr_assert_eq(node->ops->open(node->closure, false, &second), 0);
        cr_expect_eq(node->ops->open_size(node->closure, first) + 1,
                node->ops->open_size(node->closure, second));
        cr_assert_eq(node->ops->read(node->closure, first, bytes, 6, 0), 0);
        cr_expect_eq(memcmp(bytes, "text 1", 6), 0);
        node->ops->release(node->closure, first);
        node->ops->release(node->closure, second);
        vhdfuse_tree_free(tree);
}

Test(fuse_tree, finds_a_whole_word_in_options)
{
        cr_expect(vhdfuse_options_have("a,allow_other", "allow_other"));
        cr_expect(vhdfuse_options_have("allow_other", "allow_other"));
        cr_expect_not(vhdfuse_options_have("allow_others,b", "allow_other"));
        cr_expect_not(vhdfuse_options_have("", "allow_other"));
        cr_expect_not(vhdfuse_options_have(NULL, "allow_other"));
}
