/* SPDX-License-Identifier: Apache-2.0 */
/* In three steps: collect the names; read what each file says and find its parent, on a few threads,
 * because a cold disk answers many questions at once as fast as one; then link, on one thread, by
 * device and inode, because a file can have many names. */
#include "chain/tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/quote.h"
#include "base/uuid.h"
#include "chain/paths.h"
#include "formats/vhd/hyperv.h"

#define TREE_THREADS   8u
#define TREE_MAX_DEPTH 64u /* of folders in folders */

static void close_directory(DIR **directory)
{
        if (*directory)
                closedir(*directory);
}

static void node_free(struct tree_node *node)
{
        free(node->path);
        free(node->parent_says);
        free(node->parent_path);
        free(node);
}

struct tree *tree_free(struct tree *tree)
{
        if (!tree)
                return NULL;
        for (size_t i = 0; i < tree->n_nodes; i++)
                node_free(tree->nodes[i]);
        for (size_t i = 0; i < tree->n_notes; i++)
                free(tree->notes[i]);
        free(tree->nodes);
        free(tree->notes);
        free(tree);
        return NULL;
}

/* --- collecting names --- */

/* @array with room for one pointer more than the @n it holds; NULL: no memory. It grows at powers of
 * two, so that a million names are not a million copies, and so that an array that lost some of its
 * items meanwhile still has the room that is expected of it. */
static void *array_for_one_more(void *array, size_t n)
{
        if (n & (n - 1))
                return array;
        return reallocarray(array, n ? 2 * n : 1, sizeof(void *));
}

static int add_node(struct tree *tree, const char *path, struct tree_node **ret)
{
        struct tree_node **nodes = array_for_one_more(tree->nodes, tree->n_nodes);
        struct tree_node *node = nodes ? calloc(1, sizeof(*node)) : NULL;

        if (nodes)
                tree->nodes = nodes;
        if (node)
                node->path = strdup(path);
        if (!node || !node->path) {
                free(node);
                return -ENOMEM;
        }
        node->error = ERROR_INIT;
        tree->nodes[tree->n_nodes++] = node;
        *ret = node;
        return 0;
}

static int add_note(struct tree *tree, int code, const char *path)
{
        char **notes = array_for_one_more(tree->notes, tree->n_notes);
        struct error err = ERROR_INIT;

        if (!notes)
                return -ENOMEM;
        tree->notes = notes;
        fail_os(&err, code, "cannot look into '%s'", path);
        notes[tree->n_notes] = strdup(err.message);
        if (!notes[tree->n_notes])
                return -ENOMEM;
        tree->n_notes++;
        return 0;
}

static int collect_folder(struct tree *tree, const char *path, unsigned depth, bool recurse);

static int collect_entry(struct tree *tree, const char *folder, DIR *directory,
        const struct dirent *entry, unsigned depth, bool recurse)
{
        _cleanup_free_ char *path = NULL;
        struct tree_node *node;
        size_t n = strlen(folder);
        struct stat st;

        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
                return 0;
        if (fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                return errno == ENOENT ? 0 : add_note(tree, errno, folder);
        if (!S_ISREG(st.st_mode) && !(S_ISDIR(st.st_mode) && recurse))
                return 0;
        if (asprintf(&path, "%s%s%s", folder, n && folder[n - 1] == '/' ? "" : "/", entry->d_name) <
                0)
                return -ENOMEM;
        if (S_ISDIR(st.st_mode))
                return collect_folder(tree, path, depth + 1, recurse);
        return add_node(tree, path, &node);
}

static int collect_folder(struct tree *tree, const char *path, unsigned depth, bool recurse)
{
        _cleanup_(close_directory) DIR *directory = NULL;
        struct dirent *entry;
        /* The folder that was named may be a link; those in it are not followed. */
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (depth > 0 ? O_NOFOLLOW : 0));

        if (fd < 0)
                return add_note(tree, errno, path);
        directory = fdopendir(fd);
        if (!directory) {
                close(fd);
                return -ENOMEM;
        }
        if (depth >= TREE_MAX_DEPTH)
                return add_note(tree, ELOOP, path);
        while ((errno = 0, entry = readdir(directory))) {
                int r = collect_entry(tree, path, directory, entry, depth, recurse);

                if (r < 0)
                        return r;
        }
        return errno ? add_note(tree, errno, path) : 0;
}

/* --- reading what a file says --- */

static int open_quietly(const char *path, struct file **ret, struct error *err)
{
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        int r;

        if (fd < 0) {
                fail_os(err, errno, "cannot open '%s'", path);
                error_set_file(err, path);
                return -err->code;
        }
        r = file_from_fd(fd, path, FILE_READ, ret, err);
        if (r == 0)
                fd = -1;
        return r;
}

static bool has_vhd_ending(const char *path)
{
        const char *dot = strrchr(path, '.');

        return dot &&
                (strcasecmp(dot, ".vhd") == 0 || strcasecmp(dot, ".avhd") == 0 ||
                        strcasecmp(dot, ".vud") == 0);
}

static void read_parent(struct tree_node *node, struct file *file,
        const struct vhd_metadata *metadata, const struct locate_roots *roots)
{
        _cleanup_free_ struct locate_candidate *candidates =
                calloc(LOCATE_MAX_CANDIDATES, sizeof(struct locate_candidate));
        _cleanup_(file_closep) struct file *parent = NULL;
        struct file_stat st;
        int r;

        if (!candidates) {
                fail(&node->error, ENOMEM, "no memory to look for a parent");
                return;
        }
        if (locate_candidates(file, &metadata->header, candidates) > 0)
                node->parent_says = strdup(candidates[0].text);
        r = locate_parent(file, metadata, roots, NULL, &parent, &node->error);
        if (r == 0) {
                r = file_stat_get(parent, &st);
                if (r < 0)
                        fail_os(&node->error, -r, "cannot look at '%s'", parent->path);
        }
        if (r < 0)
                return;
        node->parent_device = st.device;
        node->parent_inode = st.inode;
        node->parent_path = strdup(parent->path);
        if (!node->parent_path)
                fail(&node->error, ENOMEM, "no memory for the name of a parent");
}

static void take_metadata(struct tree_node *node, const struct vhd_metadata *metadata)
{
        node->readable = true;
        node->type = metadata->footer.type;
        node->size = metadata->footer.current_size;
        node->block_size = metadata->header.block_size;
        memcpy(node->id, metadata->footer.unique_id, 16);
        node->created = vhd_time_to_unix(metadata->footer.timestamp);
        memcpy(node->creator_app, metadata->footer.creator_app, sizeof(node->creator_app));
        node->problems = metadata->problems;
        node->saved_state = metadata->footer.saved_state;
        node->hidden = metadata->footer.hidden;
        node->merging = metadata->footer.merging;
        if (node->type == VHD_TYPE_DIFFERENCING)
                memcpy(node->parent_id, metadata->header.parent_id, 16);
}

/* Whatever is wrong with the file becomes node->error. */
static void read_node(struct tree_node *node, const struct locate_roots *roots)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        int r;

        if (!metadata) {
                fail(&node->error, ENOMEM, "no memory to read '%s'", node->path);
                return;
        }
        if (open_quietly(node->path, &file, &node->error) < 0)
                return;
        r = file_stat_get(file, &node->stat);
        if (r < 0) {
                fail_os(&node->error, -r, "cannot look at '%s'", node->path);
                return;
        }
        r = locate_read_metadata(file, VHD_READ_FORCE, metadata, &node->error);
        error_set_file(&node->error, node->path);
        if (r < 0) {
                error_set_hint(&node->error, "restore it from a copy");
                return;
        }
        error_clear(&node->error);
        take_metadata(node, metadata);
        if (node->type == VHD_TYPE_DIFFERENCING)
                read_parent(node, file, metadata, roots);
}

struct reading {
        struct tree_node **nodes;
        size_t n_nodes;
        const struct locate_roots *roots;
        atomic_size_t next;
};

static void *reading_thread(void *opaque)
{
        struct reading *reading = opaque;

        for (;;) {
                size_t i = atomic_fetch_add(&reading->next, 1);

                if (i >= reading->n_nodes)
                        return NULL;
                read_node(reading->nodes[i], reading->roots);
        }
}

/* Where no thread can be had, this one does it all. */
static void read_nodes(struct tree *tree, const struct locate_roots *roots)
{
        struct reading reading = {.nodes = tree->nodes, .n_nodes = tree->n_nodes, .roots = roots};
        pthread_t threads[TREE_THREADS - 1];
        unsigned n = 0;

        while (n < TREE_THREADS - 1 && n + 1 < tree->n_nodes &&
                pthread_create(&threads[n], NULL, reading_thread, &reading) == 0)
                n++;
        reading_thread(&reading);
        while (n > 0)
                pthread_join(threads[--n], NULL);
}

/* A file that is no VHD, and that nobody said was one. */
static bool is_other(const struct tree_node *node)
{
        return !node->readable && !node->named && node->error.code == ENOMEDIUM &&
                !has_vhd_ending(node->path);
}

static void drop_others(struct tree *tree)
{
        size_t kept = 0;

        for (size_t i = 0; i < tree->n_nodes; i++) {
                if (is_other(tree->nodes[i])) {
                        node_free(tree->nodes[i]);
                        tree->n_other++;
                } else {
                        tree->nodes[kept++] = tree->nodes[i];
                }
        }
        tree->n_nodes = kept;
}

/* --- linking --- */

struct index {
        struct tree_node **buckets;
        size_t mask;
};

static size_t bucket_of(const struct index *index, uint64_t device, uint64_t inode)
{
        return (size_t)((inode * UINT64_C(0x9e3779b97f4a7c15) ^ device) >> 16) & index->mask;
}

static struct tree_node *index_find(const struct index *index, uint64_t device, uint64_t inode)
{
        struct tree_node *node = index->buckets[bucket_of(index, device, inode)];

        while (node && (node->stat.device != device || node->stat.inode != inode))
                node = node->next_in_bucket;
        return node;
}

static void index_add(struct index *index, struct tree_node *node)
{
        size_t bucket = bucket_of(index, node->stat.device, node->stat.inode);

        node->next_in_bucket = index->buckets[bucket];
        index->buckets[bucket] = node;
}

static int compare_paths(const void *a, const void *b)
{
        const struct tree_node *const *x = a, *const *y = b;

        return strcmp((*x)->path, (*y)->path);
}

static int compare_ids(const void *a, const void *b)
{
        const struct tree_node *const *x = a, *const *y = b;
        int order = memcmp((*x)->id, (*y)->id, 16);

        return order ? order : strcmp((*x)->path, (*y)->path);
}

/* Not another name for the file, but another way to say the same one ("./a" and "a"). */
static bool is_same_name(const struct tree_node *a, const struct tree_node *b)
{
        char x[PATH_TEXT_MAX], y[PATH_TEXT_MAX];

        return path_absolute(a->path, x, sizeof(x)) == 0 &&
                path_absolute(b->path, y, sizeof(y)) == 0 && strcmp(x, y) == 0;
}

static int build_index(struct tree *tree, struct index *index)
{
        size_t kept = 0;
        size_t n = 64;

        while (n < 2 * tree->n_nodes)
                n *= 2;
        index->mask = n - 1;
        index->buckets = calloc(n, sizeof(struct tree_node *));
        if (!index->buckets)
                return -ENOMEM;
        for (size_t i = 0; i < tree->n_nodes; i++) {
                struct tree_node *node = tree->nodes[i];

                if (node->readable)
                        node->alias = index_find(index, node->stat.device, node->stat.inode);
                if (node->alias && is_same_name(node, node->alias)) {
                        node_free(node);
                        continue;
                }
                if (node->readable && !node->alias)
                        index_add(index, node);
                tree->nodes[kept++] = node;
        }
        tree->n_nodes = kept;
        return 0;
}

/* Parents that lie in none of the paths, and theirs: n_nodes grows while we go. */
static int link_parents(struct tree *tree, struct index *index, const struct locate_roots *roots)
{
        for (size_t i = 0; i < tree->n_nodes; i++) {
                struct tree_node *node = tree->nodes[i];
                struct tree_node *parent;

                if (!node->parent_path || node->alias || node->error.code)
                        continue;
                parent = index_find(index, node->parent_device, node->parent_inode);
                if (!parent) {
                        int r = add_node(tree, node->parent_path, &parent);

                        if (r < 0)
                                return r;
                        parent->outside = true;
                        read_node(parent, roots);
                        /* It was this file a moment ago; if it is another by now, so be it. */
                        parent->stat.device = node->parent_device;
                        parent->stat.inode = node->parent_inode;
                        index_add(index, parent);
                }
                node->parent = parent;
        }
        return 0;
}

/* A chain that comes back to itself is cut at its first name, so that it can be drawn. */
static void break_cycle(struct tree_node *first)
{
        struct tree_node *cut = first, *node = first;
        char quoted[QUOTE_TEXT_MAX];

        do {
                node->in_cycle = true;
                if (strcmp(node->path, cut->path) < 0)
                        cut = node;
                node = node->parent;
        } while (node != first);
        fail(&cut->error, ELOOP, "the parents of '%s' lead back to itself, through '%s'", cut->path,
                cut->parent->path);
        error_set_file(&cut->error, cut->path);
        error_set_hyperv(&cut->error, HYPERV_CHAIN_CYCLE);
        error_set_hint(&cut->error, "vhdctl relink %s --parent FILE, or bring back a copy of it",
                shell_quote(cut->path, quoted, sizeof(quoted)));
        cut->parent = NULL;
}

static void find_cycles(struct tree *tree)
{
        for (size_t i = 0; i < tree->n_nodes; i++) {
                struct tree_node *node = tree->nodes[i];
                unsigned color = (unsigned)i + 1;

                while (node && node->color == 0) {
                        node->color = color;
                        node = node->parent;
                }
                if (node && node->color == color)
                        break_cycle(node);
        }
}

/* Every node into its parent's list, or among the roots; from the back, so that lists stand by path. */
static void hang_up(struct tree *tree)
{
        for (size_t i = tree->n_nodes; i > 0; i--) {
                struct tree_node *node = tree->nodes[i - 1];

                if (node->parent) {
                        node->next_sibling = node->parent->children;
                        node->parent->children = node;
                        node->parent->n_children++;
                } else if (!node->alias) {
                        node->next_root = tree->roots;
                        tree->roots = node;
                }
        }
}

static struct tree_node *find_broken(struct tree_node *node)
{
        while (node && node->error.code == 0)
                node = node->parent;
        return node;
}

static struct tree_node **nodes_by_id(const struct tree *tree, size_t *ret_n)
{
        struct tree_node **sorted = calloc(tree->n_nodes + 1, sizeof(struct tree_node *));

        *ret_n = 0;
        for (size_t i = 0; sorted && i < tree->n_nodes; i++)
                if (tree->nodes[i]->readable && !tree->nodes[i]->alias)
                        sorted[(*ret_n)++] = tree->nodes[i];
        if (sorted)
                qsort(sorted, *ret_n, sizeof(*sorted), compare_ids);
        return sorted;
}

static struct tree_node *find_id(struct tree_node **sorted, size_t n, const uint8_t id[16])
{
        size_t low = 0, high = n;

        while (low < high) {
                size_t middle = low + (high - low) / 2;

                if (memcmp(sorted[middle]->id, id, 16) < 0)
                        low = middle + 1;
                else
                        high = middle;
        }
        return low < n && uuid_equal(sorted[low]->id, id) ? sorted[low] : NULL;
}

static void find_copies(struct tree_node **sorted, size_t n)
{
        for (size_t first = 0, end; first < n; first = end) {
                end = first + 1;
                while (end < n && uuid_equal(sorted[first]->id, sorted[end]->id))
                        end++;
                if (end - first < 2 || uuid_is_zero(sorted[first]->id))
                        continue;
                for (size_t i = first; i < end; i++)
                        sorted[i]->same_id = sorted[i + 1 < end ? i + 1 : first];
        }
}

/* The command that mends a broken link, now that all files are known. */
static void improve_hint(struct tree_node *node, struct tree_node **sorted, size_t n)
{
        char child[QUOTE_TEXT_MAX], quoted[QUOTE_TEXT_MAX], id[UUID_TEXT_SIZE];
        struct tree_node *right;

        if (!node->readable || !node->error.code || node->type != VHD_TYPE_DIFFERENCING ||
                uuid_is_zero(node->parent_id))
                return;
        if (node->error.code == ELOOP ||
                (node->error.code == EPERM && strncmp(node->error.hint, "--image-root", 12) == 0))
                return;
        shell_quote(node->path, child, sizeof(child));
        right = find_id(sorted, n, node->parent_id);
        node->error.hint[0] = '\0';
        if (right && right != node)
                error_set_hint(&node->error, "vhdctl relink %s --parent %s", child,
                        shell_quote(right->path, quoted, sizeof(quoted)));
        else
                error_set_hint(&node->error,
                        "bring back the image with id %s, or vhdctl relink %s --parent FILE",
                        uuid_format(node->parent_id, id), child);
}

/* An image that everybody refuses to open breaks the chains over it. Only what headers tell: blocks are
 * not looked at here. */
static void note_damage(struct tree_node *node)
{
        uint32_t damage = node->problems & VHD_PROBLEMS_REFUSED;
        char quoted[QUOTE_TEXT_MAX];

        if (!damage || node->error.code)
                return;
        fail(&node->error, EUCLEAN, "'%s' %s", node->path,
                vhd_problem_to_string((enum vhd_problem)(damage & -damage)));
        error_set_file(&node->error, node->path);
        error_set_hint(
                &node->error, "vhdctl check %s", shell_quote(node->path, quoted, sizeof(quoted)));
}

static int link_nodes(struct tree *tree, const struct locate_roots *roots)
{
        _cleanup_free_ struct tree_node **buckets = NULL;
        _cleanup_free_ struct tree_node **sorted = NULL;
        struct index index = {0};
        size_t n_inside, n;
        int r;

        qsort(tree->nodes, tree->n_nodes, sizeof(*tree->nodes), compare_paths);
        r = build_index(tree, &index);
        buckets = index.buckets;
        n_inside = tree->n_nodes;
        if (r == 0)
                r = link_parents(tree, &index, roots);
        if (r < 0)
                return r;
        qsort(tree->nodes + n_inside, tree->n_nodes - n_inside, sizeof(*tree->nodes),
                compare_paths);
        sorted = nodes_by_id(tree, &n);
        if (!sorted)
                return -ENOMEM;
        find_cycles(tree);
        find_copies(sorted, n);
        for (size_t i = 0; i < tree->n_nodes; i++)
                improve_hint(tree->nodes[i], sorted, n);
        for (size_t i = 0; i < tree->n_nodes; i++)
                note_damage(tree->nodes[i]);
        hang_up(tree);
        for (size_t i = 0; i < tree->n_nodes; i++)
                tree->nodes[i]->broken_at = find_broken(tree->nodes[i]);
        return 0;
}

/* --- the doors --- */

/* The caller's roots and, where @paths are folders, those; where they are files, their folders. */
struct root_list {
        const char **roots;
        char **own; /* of those, what we made */
        size_t n, n_own;
};

static void root_list_done(struct root_list *list)
{
        for (size_t i = 0; i < list->n_own; i++)
                free(list->own[i]);
        free(list->own);
        free(list->roots);
}

static int root_list_fill(struct root_list *list, const char *const *paths, size_t n_paths,
        const struct locate_roots *given)
{
        size_t n_given = given ? given->n_roots : 0;

        list->roots = calloc(n_given + n_paths + 1, sizeof(*list->roots));
        list->own = calloc(n_paths + 1, sizeof(*list->own));
        if (!list->roots || !list->own)
                return -ENOMEM;
        for (size_t i = 0; i < n_given; i++)
                list->roots[list->n++] = given->roots[i];
        for (size_t i = 0; i < n_paths; i++) {
                struct stat st;
                char *root = malloc(PATH_TEXT_MAX);

                if (!root)
                        return -ENOMEM;
                if (stat(paths[i], &st) == 0 && S_ISDIR(st.st_mode))
                        snprintf(root, PATH_TEXT_MAX, "%s", paths[i]);
                else
                        path_directory(paths[i], root, PATH_TEXT_MAX);
                list->own[list->n_own++] = root;
                list->roots[list->n++] = root;
        }
        return 0;
}

static int collect_path(struct tree *tree, const char *path, bool recurse, struct error *err)
{
        struct tree_node *node;
        struct stat st;
        int r;

        if (stat(path, &st) < 0) {
                r = -errno;
                fail_os(err, -r, "cannot look at '%s'", path);
                error_set_file(err, path);
                return r;
        }
        if (S_ISDIR(st.st_mode)) {
                r = collect_folder(tree, path, 0, recurse);
        } else if (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) {
                r = add_node(tree, path, &node);
                if (r == 0)
                        node->named = true;
        } else {
                fail(err, EINVAL, "'%s' is neither a file, nor a folder, nor a block device", path);
                error_set_file(err, path);
                return -EINVAL;
        }
        return r < 0 ? fail(err, ENOMEM, "no memory to list '%s'", path) : 0;
}

/* The same file named twice, or beneath two of the paths, is one node. */
static void drop_repeated_names(struct tree *tree)
{
        size_t kept = 0;

        qsort(tree->nodes, tree->n_nodes, sizeof(*tree->nodes), compare_paths);
        for (size_t i = 0; i < tree->n_nodes; i++) {
                struct tree_node *last = kept ? tree->nodes[kept - 1] : NULL;

                if (last && strcmp(last->path, tree->nodes[i]->path) == 0) {
                        last->named |= tree->nodes[i]->named;
                        node_free(tree->nodes[i]);
                } else {
                        tree->nodes[kept++] = tree->nodes[i];
                }
        }
        tree->n_nodes = kept;
}

int tree_scan(const char *const *paths, size_t n_paths, const struct locate_roots *roots,
        struct tree **ret, struct error *err)
{
        _cleanup_(tree_freep) struct tree *tree = calloc(1, sizeof(*tree));
        _cleanup_(root_list_done) struct root_list list = {0};
        struct locate_roots all;
        int r = 0;

        if (!tree || root_list_fill(&list, paths, n_paths, roots) < 0)
                return fail(err, ENOMEM, "no memory for a tree");
        for (size_t i = 0; i < n_paths; i++) {
                r = collect_path(tree, paths[i], true, err);
                if (r < 0)
                        return r;
        }
        drop_repeated_names(tree);
        all = (struct locate_roots){.roots = list.roots, .n_roots = list.n, .quick = true};
        read_nodes(tree, &all);
        drop_others(tree);
        r = link_nodes(tree, &all);
        if (r < 0)
                return fail(err, -r, "no memory for a tree of %zu files", tree->n_nodes);
        *ret = TAKE_PTR(tree);
        return 0;
}

bool tree_is_tip(const struct tree_node *node)
{
        return node->readable && !node->children && !node->alias;
}

unsigned tree_depth(const struct tree_node *node)
{
        unsigned depth = 0;

        for (; node; node = node->parent)
                depth++;
        return depth;
}

int tree_image_root(const struct tree_node *node, char *ret, size_t ret_size)
{
        char path[PATH_TEXT_MAX], directory[PATH_TEXT_MAX], common[PATH_TEXT_MAX];
        bool needed = false;
        int r;

        ret[0] = '\0';
        r = path_absolute(node->path, path, sizeof(path));
        if (r < 0)
                return r;
        path_directory(path, directory, sizeof(directory));
        memcpy(common, directory, sizeof(common));
        for (; node->parent; node = node->parent) {
                char joined[PATH_TEXT_MAX];
                const char *rest;

                /* Each image's own directory is a root for its parent. The parent by the name that
                 * was found: as a hard link it may have others elsewhere. */
                needed |= !path_is_beneath(node->parent_path, directory, &rest);
                path_directory(node->parent_path, directory, sizeof(directory));
                path_common_directory(common, directory, joined, sizeof(joined));
                memcpy(common, joined, sizeof(common));
        }
        if (needed)
                snprintf(ret, ret_size, "%s", common);
        return 0;
}

/* --- who stands on this image --- */

static int read_identity(const char *path, struct tree_node *node, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        int r;

        if (!metadata)
                return fail(err, ENOMEM, "no memory to read '%s'", path);
        r = open_quietly(path, &file, err);
        if (r == 0) {
                r = file_stat_get(file, &node->stat);
                if (r < 0)
                        fail_os(err, -r, "cannot look at '%s'", path);
        }
        if (r == 0 && locate_read_metadata(file, VHD_READ_FORCE, metadata, NULL) == 0)
                take_metadata(node, metadata);
        return r;
}

/* Raw files, and images that are too damaged to have an id, are known by their place alone. */
static bool names_as_parent(const struct tree_node *child, const struct tree_node *parent)
{
        bool finds_it = child->parent_path && child->parent_device == parent->stat.device &&
                child->parent_inode == parent->stat.inode;

        if (!child->readable || child->type != VHD_TYPE_DIFFERENCING)
                return false;
        if (finds_it)
                return true;
        /* It asks for this id and finds nothing: it may be ours. A copy is another's. */
        return !child->parent_path && parent->readable && !uuid_is_zero(parent->id) &&
                uuid_equal(child->parent_id, parent->id);
}

static bool same_inode(const struct tree_node *a, const struct tree_node *b)
{
        return a->stat.device == b->stat.device && a->stat.inode == b->stat.inode;
}

static void strings_free(char **strings, size_t n)
{
        for (size_t i = 0; i < n; i++)
                free(strings[i]);
        free(strings);
}

static int collect_around(
        struct tree *tree, const char *path, const struct locate_roots *roots, struct error *err)
{
        char real[PATH_TEXT_MAX], folder[PATH_TEXT_MAX];
        int r = path_absolute(path, real, sizeof(real));

        if (r < 0)
                return fail_os(err, -r, "cannot tell the folder of '%s'", path);
        path_directory(real, folder, sizeof(folder));
        /* A folder that cannot be listed may hide a child. */
        if (access(folder, R_OK | X_OK) < 0)
                return fail_os(err, errno, "cannot tell whether an image stands on '%s', in '%s'",
                        path, folder);
        r = collect_path(tree, folder, false, err);
        for (size_t i = 0; r == 0 && roots && i < roots->n_roots; i++) {
                if (path_absolute(roots->roots[i], real, sizeof(real)) < 0)
                        continue;
                r = collect_path(tree, real, true, err);
        }
        return r;
}

int tree_children_of(const char *path, const struct locate_roots *roots, char ***ret, size_t *ret_n,
        struct error *err)
{
        _cleanup_(tree_freep) struct tree *tree = calloc(1, sizeof(*tree));
        struct locate_roots quick = {.quick = true};
        struct tree_node parent = {0};
        char **found = NULL, **more;
        size_t n = 0;
        int r;

        if (!tree)
                return fail(err, ENOMEM, "no memory for a tree");
        r = read_identity(path, &parent, err);
        if (r == 0)
                r = collect_around(tree, path, roots, err);
        if (r < 0)
                return r;
        drop_repeated_names(tree);
        if (roots) {
                quick.roots = roots->roots;
                quick.n_roots = roots->n_roots;
        }
        read_nodes(tree, &quick);
        for (size_t i = 0; i < tree->n_nodes; i++) {
                struct tree_node *node = tree->nodes[i];

                if (same_inode(node, &parent) || !names_as_parent(node, &parent))
                        continue;
                more = array_for_one_more(found, n);
                if (!more) {
                        strings_free(found, n);
                        return fail(err, ENOMEM, "no memory for a list of children");
                }
                found = more;
                found[n++] = TAKE_PTR(node->path);
        }
        *ret = found;
        *ret_n = n;
        return 0;
}

int tree_refuse_if_parent(const char *path, const struct locate_roots *roots, struct error *err)
{
        char list[ERROR_MESSAGE_MAX / 2] = "";
        char **children = NULL;
        size_t n = 0, used = 0;
        int r;

        r = tree_children_of(path, roots, &children, &n, err);
        if (r < 0 || n == 0)
                return r;
        for (size_t i = 0; i < n && used < sizeof(list); i++) {
                int more = snprintf(
                        list + used, sizeof(list) - used, "%s'%s'", i ? ", " : "", children[i]);

                used += more > 0 ? (size_t)more : 0;
        }
        if (used >= sizeof(list))
                memcpy(list + sizeof(list) - 5, " ...", 5);
        r = fail(err, EBUSY, "refused: %zu image%s on '%s', and would change with it: %s", n,
                n == 1 ? " stands" : "s stand", path, list);
        error_set_file(err, path);
        error_set_hint(err, "write to the last image of the chain, or to a copy");
        strings_free(children, n);
        return r;
}
