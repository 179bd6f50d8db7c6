/* SPDX-License-Identifier: Apache-2.0 */
/* A forest that hides a broken link, or a child, is worse than none: somebody deletes or writes what
 * others stand on. */
#include "chain/tree.h"

#include <time.h>

#include "tests/unit/vhd_sample.h"

static void scan_with(const char *path, const char *root, struct tree **ret)
{
        struct locate_roots roots = {.roots = &root, .n_roots = root ? 1 : 0};
        struct error err = ERROR_INIT;

        cr_assert_eq(tree_scan(&path, 1, &roots, ret, &err), 0, "%s", err.message);
}

static const struct tree_node *node_of(const struct tree *tree, const char *path)
{
        for (size_t i = 0; i < tree->n_nodes; i++)
                if (strcmp(tree->nodes[i]->path, path) == 0)
                        return tree->nodes[i];
        cr_assert_fail("no node '%s' of %zu", path, tree->n_nodes);
        return NULL;
}

static void write_link(
        struct folder *folder, const char *name, uint8_t id, uint8_t parent, const char *text)
{
        struct sample sample = {.id = id, .parent = parent};

        if (text)
                sample.locators[0] = (struct sample_locator){"W2ru", text};
        sample_write(folder_path(folder, "%s", name), &sample);
}

Test(tree_scan, hangs_every_image_under_its_parent)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        const struct tree_node *root;
        char image_root[4096];
        WITH_FOLDER(folder);

        folder_mkdir(folder, "Virtual Hard Disks");
        folder_mkdir(folder, "Snapshots");
        folder_mkdir(folder, "Snapshots/7D3A");
        write_link(folder, "Virtual Hard Disks/base", 1, 0, NULL);
        write_link(folder, "Virtual Hard Disks/b.avhd", 2, 1, ".\\base");
        write_link(folder, "Virtual Hard Disks/a.avhd", 3, 1, ".\\base");
        write_link(folder, "Snapshots/7D3A/c.avhd", 4, 2, "..\\..\\Virtual Hard Disks\\b.avhd");
        scan_with(folder->path, NULL, &tree);

        cr_assert_eq(tree->n_nodes, 4);
        root = tree->roots;
        cr_expect_str_eq(root->path, folder_path(folder, "Virtual Hard Disks/base"));
        cr_expect_null(tree_next_root(root));
        cr_expect_eq(root->n_children, 2);
        cr_expect_str_eq(root->children->path, folder_path(folder, "Virtual Hard Disks/a.avhd"));
        cr_expect(tree_is_tip(root->children));
        cr_expect_not(tree_is_tip(root->children->next_sibling));
        cr_expect_str_eq(root->children->next_sibling->children->path,
                folder_path(folder, "Snapshots/7D3A/c.avhd"));
        cr_expect_eq(tree_depth(root->children->next_sibling->children), 3);
        cr_assert_eq(tree_image_root(root->children->next_sibling->children, image_root,
                             sizeof(image_root)),
                0);
        cr_expect_str_eq(image_root, folder->path);
        cr_assert_eq(tree_image_root(root->children, image_root, sizeof(image_root)), 0);
        cr_expect_str_eq(image_root, "");
}

Test(tree_scan, knows_images_by_content_and_ignores_the_rest)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        const struct tree_node *empty;
        int fd;
        WITH_FOLDER(folder);

        write_link(folder, "no ending", 1, 0, NULL);
        fd = open(folder_path(folder, "notes.txt"), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        cr_assert_eq(write(fd, "hello", 5), 5);
        close(fd);
        fd = open(folder_path(folder, "empty.vhd"), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        close(fd);
        cr_assert_eq(mkfifo(folder_path(folder, "fifo.vhd"), 0644), 0);
        cr_assert_eq(symlink("no ending", folder_path(folder, "link.vhd")), 0);
        scan_with(folder->path, NULL, &tree);

        cr_expect_eq(tree->n_nodes, 2);
        cr_expect_eq(tree->n_other, 1);
        cr_expect(node_of(tree, folder_path(folder, "no ending"))->readable);
        empty = node_of(tree, folder_path(folder, "empty.vhd"));
        cr_expect_not(empty->readable);
        cr_expect_neq(empty->error.code, 0);
}

Test(tree_scan, says_why_a_link_is_broken_and_what_mends_it)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        const struct tree_node *gone, *moved, *wrong, *above;
        char hint[1024];
        WITH_FOLDER(folder);

        folder_mkdir(folder, "archive");
        write_link(folder, "archive/moved base.vhd", 1, 0, NULL);
        write_link(folder, "other.vhd", 9, 0, NULL);
        write_link(folder, "a-moved.vhd", 2, 1, ".\\base.vhd");
        write_link(folder, "b-gone.vhd", 3, 8, ".\\never.vhd");
        write_link(folder, "c-wrong.vhd", 4, 1, ".\\other.vhd");
        write_link(folder, "d-above.vhd", 5, 3, ".\\b-gone.vhd");
        scan_with(folder->path, NULL, &tree);

        moved = node_of(tree, folder_path(folder, "a-moved.vhd"));
        cr_expect_eq(moved->error.code, ENOENT, "%s", moved->error.message);
        snprintf(hint, sizeof(hint),
                "vhdctl relink %s/a-moved.vhd --parent '%s/archive/moved base.vhd'", folder->path,
                folder->path);
        cr_expect_str_eq(moved->error.hint, hint);
        gone = node_of(tree, folder_path(folder, "b-gone.vhd"));
        cr_expect_eq(gone->error.code, ENOENT);
        cr_expect_not_null(strstr(gone->error.hint, "08080808-0808"), "%s", gone->error.hint);
        cr_expect_not_null(strstr(gone->error.hint, "vhdctl relink "), "%s", gone->error.hint);
        wrong = node_of(tree, folder_path(folder, "c-wrong.vhd"));
        cr_expect_eq(wrong->error.code, ESTALE);
        cr_expect_not_null(strstr(wrong->error.hint, "moved base.vhd"), "%s", wrong->error.hint);
        above = node_of(tree, folder_path(folder, "d-above.vhd"));
        cr_expect_eq(above->error.code, 0);
        cr_expect_eq(above->broken_at, gone);
}

/* A parent that every verb refuses breaks the chains over it, though its id can still be read. */
Test(tree_scan, calls_a_damaged_image_broken)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        const struct tree_node *base, *child;
        WITH_FOLDER(folder);

        sample_write(folder_path(folder, "base.vhd"), &(struct sample){.id = 1, .fill = 7});
        write_link(folder, "c.vhd", 2, 1, ".\\base.vhd");
        {
                struct stat st;

                cr_assert_eq(stat(folder_path(folder, "base.vhd"), &st), 0);
                cr_assert_eq(truncate(folder_path(folder, "base.vhd"), st.st_size - 512), 0);
        }
        scan_with(folder->path, NULL, &tree);
        base = node_of(tree, folder_path(folder, "base.vhd"));
        child = node_of(tree, folder_path(folder, "c.vhd"));
        cr_expect_eq(base->error.code, EUCLEAN, "%s", base->error.message);
        cr_expect_not_null(strstr(base->error.hint, "vhdctl check "), "%s", base->error.hint);
        cr_expect_eq(child->parent, base);
        cr_expect_eq(child->error.code, 0);
        cr_expect_eq(child->broken_at, base);
}

Test(tree_scan, names_the_root_that_a_parent_outside_needs)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        _cleanup_(tree_freep) struct tree *with_root = NULL;
        const struct tree_node *node;
        char hint[1024];
        WITH_FOLDER(folder);

        folder_mkdir(folder, "bases");
        folder_mkdir(folder, "vm");
        write_link(folder, "bases/base.vhd", 1, 0, NULL);
        write_link(folder, "vm/c.vhd", 2, 1, "..\\bases\\base.vhd");
        scan_with(folder_path(folder, "vm"), NULL, &tree);
        node = node_of(tree, folder_path(folder, "vm/c.vhd"));
        cr_expect_eq(node->error.code, EPERM);
        snprintf(hint, sizeof(hint), "--image-root %s", folder->path);
        cr_expect_str_eq(node->error.hint, hint);

        scan_with(folder_path(folder, "vm"), folder->path, &with_root);
        node = node_of(with_root, folder_path(folder, "vm/c.vhd"));
        cr_expect_eq(node->error.code, 0, "%s", node->error.message);
        cr_assert_not_null(node->parent);
        cr_expect(node->parent->outside);
        cr_expect_str_eq(node->parent->path, folder_path(folder, "bases/base.vhd"));
        cr_expect_eq(with_root->roots, node->parent);
}

Test(tree_scan, draws_a_single_file_with_its_chain)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        WITH_FOLDER(folder);

        write_link(folder, "base.vhd", 1, 0, NULL);
        write_link(folder, "b.vhd", 2, 1, ".\\base.vhd");
        write_link(folder, "c.vhd", 3, 2, ".\\b.vhd");
        write_link(folder, "elsewhere.vhd", 4, 1, ".\\base.vhd");
        scan_with(folder_path(folder, "c.vhd"), NULL, &tree);
        cr_expect_eq(tree->n_nodes, 3);
        cr_expect_eq(tree_depth(node_of(tree, folder_path(folder, "c.vhd"))), 3);
}

/* A ring of @n images. */
static void expect_ring(unsigned n)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        unsigned n_broken = 0;
        WITH_FOLDER(folder);

        for (unsigned i = 0; i < n; i++) {
                char name[32], text[64];

                snprintf(name, sizeof(name), "ring%02u.vhd", i);
                snprintf(text, sizeof(text), ".\\ring%02u.vhd", (i + 1) % n);
                write_link(folder, name, (uint8_t)(i + 1), (uint8_t)((i + 1) % n + 1), text);
        }
        write_link(folder, "tip.vhd", 200, 1, ".\\ring00.vhd");
        scan_with(folder->path, NULL, &tree);

        cr_assert_eq(tree->n_nodes, n + 1);
        for (size_t i = 0; i < tree->n_nodes; i++) {
                n_broken += tree->nodes[i]->error.code == ELOOP;
                cr_expect_not_null(tree->nodes[i]->broken_at);
        }
        cr_expect_eq(n_broken, 1);
        cr_expect_str_eq(tree->roots->path, folder_path(folder, "ring00.vhd"));
        cr_expect_null(tree_next_root(tree->roots));
        cr_expect_eq(tree->roots->error.hyperv, 0xC03A0018u);
}

Test(tree_scan, cuts_loops_and_says_so, .timeout = 20)
{
        expect_ring(1);
        expect_ring(2);
        expect_ring(64);
}

Test(tree_scan, tells_copies_from_other_names)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        const struct tree_node *base, *copy, *other_name;
        WITH_FOLDER(folder);

        write_link(folder, "a-base.vhd", 1, 0, NULL);
        write_link(folder, "b-copy.vhd", 1, 0, NULL);
        write_link(folder, "c-child.vhd", 2, 1, ".\\d-link.vhd");
        cr_assert_eq(link(folder_path(folder, "a-base.vhd"), folder_path(folder, "d-link.vhd")), 0);
        write_link(folder, "e-child.vhd", 3, 1, ".\\a-base.vhd");
        scan_with(folder->path, NULL, &tree);

        base = node_of(tree, folder_path(folder, "a-base.vhd"));
        copy = node_of(tree, folder_path(folder, "b-copy.vhd"));
        other_name = node_of(tree, folder_path(folder, "d-link.vhd"));
        cr_expect_eq(other_name->alias, base);
        cr_expect_eq(base->same_id, copy);
        cr_expect_eq(copy->same_id, base);
        cr_expect_null(other_name->same_id);
        /* a diamond by hard link: both are children of the one file */
        cr_expect_eq(base->n_children, 2);
        cr_expect_not(tree_is_tip(other_name));
}

Test(tree_scan, takes_a_path_once_however_it_is_said)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        struct error err = ERROR_INIT;
        const char *paths[3];
        char dotted[512];
        WITH_FOLDER(folder);

        write_link(folder, "a.vhd", 1, 0, NULL);
        snprintf(dotted, sizeof(dotted), "%s/./a.vhd", folder->path);
        paths[0] = folder->path;
        paths[1] = folder_path(folder, "a.vhd");
        paths[2] = dotted;
        cr_assert_eq(tree_scan(paths, 3, NULL, &tree, &err), 0, "%s", err.message);
        cr_expect_eq(tree->n_nodes, 1);
        cr_expect_null(tree->nodes[0]->alias);
}

Test(tree_scan, fails_only_for_a_path_that_is_not_there)
{
        struct tree *tree = NULL;
        struct error err = ERROR_INIT;
        const char *path;
        WITH_FOLDER(folder);

        path = folder_path(folder, "none");
        cr_expect_eq(tree_scan(&path, 1, NULL, &tree, &err), -ENOENT);
        cr_expect_null(tree);
        cr_expect_not_null(strstr(err.message, path));
}

Test(tree_scan, reads_a_thousand_files_in_seconds, .timeout = 60)
{
        _cleanup_(tree_freep) struct tree *tree = NULL;
        struct timespec before, after;
        WITH_FOLDER(folder);

        write_link(folder, "000.vhd", 1, 0, NULL);
        for (unsigned i = 1; i < 1000; i++) {
                struct sample sample = {.id = (uint8_t)(2 + i % 250), .parent = 1};
                char name[32];

                /* every tenth is broken, which takes the longest way */
                sample.locators[0].code = "W2ru";
                sample.locators[0].text = i % 10 ? ".\\000.vhd" : ".\\gone.vhd";
                snprintf(name, sizeof(name), "%03u.avhd", i);
                sample_write(folder_path(folder, "%s", name), &sample);
        }
        clock_gettime(CLOCK_MONOTONIC, &before);
        scan_with(folder->path, NULL, &tree);
        clock_gettime(CLOCK_MONOTONIC, &after);
        cr_expect_eq(tree->n_nodes, 1000);
        cr_expect_eq(node_of(tree, folder_path(folder, "000.vhd"))->n_children, 900);
        cr_expect_lt(after.tv_sec - before.tv_sec, 30); /* each against each would take minutes */
}

static unsigned count_children(const char *path, const char *root)
{
        struct locate_roots roots = {.roots = &root, .n_roots = root ? 1 : 0};
        struct error err = ERROR_INIT;
        char **children = NULL;
        size_t n = 0;

        cr_assert_eq(tree_children_of(path, &roots, &children, &n, &err), 0, "%s", err.message);
        for (size_t i = 0; i < n; i++)
                free(children[i]);
        free(children);
        return (unsigned)n;
}

Test(tree_children_of, looks_beside_the_image_and_beneath_the_roots)
{
        WITH_FOLDER(folder);

        folder_mkdir(folder, "disks");
        folder_mkdir(folder, "snapshots");
        folder_mkdir(folder, "snapshots/7D3A");
        write_link(folder, "disks/base.vhd", 1, 0, NULL);
        write_link(folder, "disks/a.avhd", 2, 1, ".\\base.vhd");
        write_link(folder, "snapshots/7D3A/b.avhd", 3, 1, "..\\..\\disks\\base.vhd");
        cr_expect_eq(count_children(folder_path(folder, "disks/base.vhd"), NULL), 1);
        cr_expect_eq(count_children(folder_path(folder, "disks/base.vhd"), folder->path), 2);
        cr_expect_eq(count_children(folder_path(folder, "disks/a.avhd"), folder->path), 0);
}

/* A child whose locator leads nowhere may be ours; one that finds a copy stands on the copy. */
Test(tree_children_of, counts_a_child_that_cannot_find_us_and_not_a_copys)
{
        WITH_FOLDER(folder);

        write_link(folder, "base.vhd", 1, 0, NULL);
        write_link(folder, "copy.vhd", 1, 0, NULL);
        write_link(folder, "lost.vhd", 2, 1, ".\\moved-away.vhd");
        write_link(folder, "others.vhd", 3, 1, ".\\copy.vhd");
        cr_expect_eq(count_children(folder_path(folder, "base.vhd"), NULL), 1);
        cr_expect_eq(count_children(folder_path(folder, "copy.vhd"), NULL), 2);
}

Test(tree_refuse_if_parent, says_who_stands_on_it)
{
        struct error err = ERROR_INIT;
        WITH_FOLDER(folder);

        write_link(folder, "base.vhd", 1, 0, NULL);
        cr_expect_eq(tree_refuse_if_parent(folder_path(folder, "base.vhd"), NULL, &err), 0);
        write_link(folder, "a.vhd", 2, 1, ".\\base.vhd");
        write_link(folder, "b.vhd", 3, 1, ".\\base.vhd");
        cr_expect_eq(tree_refuse_if_parent(folder_path(folder, "base.vhd"), NULL, &err), -EBUSY);
        cr_expect_not_null(strstr(err.message, "2 images stand on"), "%s", err.message);
        cr_expect_not_null(strstr(err.message, "a.vhd"));
        cr_expect_not_null(strstr(err.message, "b.vhd"));
        cr_expect_eq(tree_refuse_if_parent(folder_path(folder, "a.vhd"), NULL, &err), 0);
}
