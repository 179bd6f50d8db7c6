/* SPDX-License-Identifier: Apache-2.0 */
/* The tree in memory. A node's id, which the kernel hands back with each request, is its address; that
 * is sound because the kernel uses an id only while it has lookups of it, and these are references. */
#include "fuse/tree.h"

#include <assert.h>
#include <string.h>
#include <sys/stat.h>

#include "fuse/internal.h"

#define NAME_LENGTH_MAX 255u
#define STAT_BLOCK      512u /* what st_blocks counts */

static void set_to_now(struct timespec *ret)
{
        clock_gettime(CLOCK_REALTIME, ret);
}

static struct vhdfuse_node *node_new(const char *name)
{
        struct vhdfuse_node *node = calloc(1, sizeof(*node));

        if (!node)
                return NULL;
        node->name = strdup(name);
        if (!node->name) {
                free(node);
                return NULL;
        }
        node->n_refs = 1;
        set_to_now(&node->changed);
        return node;
}

static void node_free(struct vhdfuse_node *node)
{
        if (node->ops && node->ops->free)
                node->ops->free(node->closure);
        free(node->name);
        free(node);
}

/* Gives up @n references; true: it was the last, and the caller frees the node without the lock. */
static bool drop_locked(struct vhdfuse_node *node, uint64_t n)
{
        assert(node->n_refs >= n);
        node->n_refs -= n;
        return node->n_refs == 0;
}

int vhdfuse_tree_new(const struct vhdfuse_owner *owner, struct vhdfuse_tree **ret)
{
        struct vhdfuse_tree *tree = calloc(1, sizeof(*tree));

        if (!tree)
                return -ENOMEM;
        tree->root = node_new("");
        if (!tree->root) {
                free(tree);
                return -ENOMEM;
        }
        tree->owner = *owner;
        tree->root->number = ++tree->last_number;
        pthread_mutex_init(&tree->lock, NULL);
        pthread_cond_init(&tree->told, NULL);
        *ret = tree;
        return 0;
}

/* The session is over: whatever the kernel had looked up or opened is gone. */
static void free_whole(struct vhdfuse_node *node)
{
        while (node->first_child) {
                struct vhdfuse_node *child = node->first_child;

                node->first_child = child->next;
                free_whole(child);
        }
        node_free(node);
}

struct vhdfuse_tree *vhdfuse_tree_free(struct vhdfuse_tree *tree)
{
        if (!tree)
                return NULL;
        assert(!tree->session);
        free_whole(tree->root);
        pthread_cond_destroy(&tree->told);
        pthread_mutex_destroy(&tree->lock);
        free(tree);
        return NULL;
}

struct vhdfuse_node *vhdfuse_tree_root(struct vhdfuse_tree *tree)
{
        return tree->root;
}

/* --- telling the kernel */

void vhdfuse_tree_set_session(struct vhdfuse_tree *tree, struct fuse_session *session)
{
        MUTEX_GUARD(&tree->lock);
        tree->session = session;
        while (!session && tree->n_telling > 0)
                pthread_cond_wait(&tree->told, &tree->lock);
}

/* The session, which stays until telling_ends(); NULL: nobody is to be told. */
static struct fuse_session *telling_begins_locked(struct vhdfuse_tree *tree)
{
        if (tree->session)
                tree->n_telling++;
        return tree->session;
}

static void telling_ends(struct vhdfuse_tree *tree)
{
        MUTEX_GUARD(&tree->lock);
        if (--tree->n_telling == 0)
                pthread_cond_broadcast(&tree->told);
}

/* --- nodes */

fuse_ino_t vhdfuse_node_id(const struct vhdfuse_tree *tree, const struct vhdfuse_node *node)
{
        return node == tree->root ? FUSE_ROOT_ID : (fuse_ino_t)(uintptr_t)node;
}

struct vhdfuse_node *vhdfuse_node_of(struct vhdfuse_tree *tree, fuse_ino_t id)
{
        return id == FUSE_ROOT_ID ? tree->root : (struct vhdfuse_node *)(uintptr_t)id;
}

static struct vhdfuse_node *find_locked(const struct vhdfuse_node *parent, const char *name)
{
        for (struct vhdfuse_node *child = parent->first_child; child; child = child->next)
                if (strcmp(child->name, name) == 0)
                        return child;
        return NULL;
}

struct vhdfuse_node *vhdfuse_tree_find(
        struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name)
{
        MUTEX_GUARD(&tree->lock);
        return find_locked(parent, name);
}

struct vhdfuse_node *vhdfuse_node_lookup(
        struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name)
{
        struct vhdfuse_node *child;

        MUTEX_GUARD(&tree->lock);
        child = find_locked(parent, name);
        if (child) {
                child->n_lookups++;
                child->n_refs++;
        }
        return child;
}

bool vhdfuse_node_looked_up(struct vhdfuse_tree *tree, struct vhdfuse_node *node)
{
        MUTEX_GUARD(&tree->lock);
        if (!node->parent)
                return false;
        node->n_lookups++;
        node->n_refs++;
        return true;
}

void vhdfuse_node_forget(struct vhdfuse_tree *tree, struct vhdfuse_node *node, uint64_t n)
{
        bool last;

        if (node == tree->root)
                return;
        pthread_mutex_lock(&tree->lock);
        assert(node->n_lookups >= n);
        node->n_lookups -= n;
        last = drop_locked(node, n);
        pthread_mutex_unlock(&tree->lock);
        if (last)
                node_free(node);
}

struct vhdfuse_node *vhdfuse_node_ref(struct vhdfuse_tree *tree, struct vhdfuse_node *node)
{
        MUTEX_GUARD(&tree->lock);
        node->n_refs++;
        return node;
}

void vhdfuse_node_unref(struct vhdfuse_tree *tree, struct vhdfuse_node *node)
{
        bool last;

        pthread_mutex_lock(&tree->lock);
        last = drop_locked(node, 1);
        pthread_mutex_unlock(&tree->lock);
        if (last)
                node_free(node);
}

struct vhdfuse_node **vhdfuse_node_children(
        struct vhdfuse_tree *tree, struct vhdfuse_node *directory, uint64_t *ret_parent)
{
        struct vhdfuse_node **list;
        size_t n = 0;

        MUTEX_GUARD(&tree->lock);
        for (struct vhdfuse_node *child = directory->first_child; child; child = child->next)
                n++;
        list = calloc(n + 1, sizeof(*list));
        if (!list)
                return NULL;
        n = 0;
        for (struct vhdfuse_node *child = directory->first_child; child; child = child->next) {
                child->n_refs++;
                list[n++] = child;
        }
        *ret_parent = directory->parent ? directory->parent->number : directory->number;
        return list;
}

static mode_t directory_mode(mode_t mode)
{
        mode &= 0444;
        return S_IFDIR | mode | mode >> 2;
}

static void stat_directory(struct vhdfuse_tree *tree, struct vhdfuse_node *node, struct stat *ret)
{
        MUTEX_GUARD(&tree->lock);
        ret->st_mode = directory_mode(tree->owner.mode);
        ret->st_nlink = 2;
        for (const struct vhdfuse_node *child = node->first_child; child; child = child->next)
                ret->st_nlink += node_is_directory(child);
        ret->st_mtim = node->changed;
}

static void stat_file(struct vhdfuse_tree *tree, struct vhdfuse_node *node, struct stat *ret)
{
        uint64_t size = node->ops->size(node->closure), allocated = size;

        if (node->ops->allocated)
                allocated = node->ops->allocated(node->closure);
        ret->st_mode = S_IFREG | (tree->owner.mode & (node->ops->write ? 0666 : 0444));
        ret->st_nlink = 1;
        ret->st_size = (off_t)size;
        ret->st_blocks = (blkcnt_t)((allocated + STAT_BLOCK - 1) / STAT_BLOCK);
        node->ops->mtime(node->closure, &ret->st_mtim);
}

void vhdfuse_node_stat(struct vhdfuse_tree *tree, struct vhdfuse_node *node, struct stat *ret)
{
        *ret = (struct stat){
                .st_ino = node->number,
                .st_uid = tree->owner.uid,
                .st_gid = tree->owner.gid,
                .st_blksize = VHDFUSE_IO_MAX,
        };
        if (node_is_directory(node))
                stat_directory(tree, node, ret);
        else
                stat_file(tree, node, ret);
        ret->st_ctim = ret->st_mtim;
        ret->st_atim = ret->st_mtim;
}

/* --- adding and removing */

static bool is_name(const char *name)
{
        return name[0] && strlen(name) <= NAME_LENGTH_MAX && !strchr(name, '/') &&
                strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static void link_locked(struct vhdfuse_node *parent, struct vhdfuse_node *node)
{
        node->parent = parent;
        node->previous = parent->last_child;
        if (parent->last_child)
                parent->last_child->next = node;
        else
                parent->first_child = node;
        parent->last_child = node;
        set_to_now(&parent->changed);
}

static void unlink_locked(struct vhdfuse_node *node)
{
        struct vhdfuse_node *parent = node->parent;

        *(node->previous ? &node->previous->next : &parent->first_child) = node->next;
        *(node->next ? &node->next->previous : &parent->last_child) = node->previous;
        node->parent = node->previous = node->next = NULL;
        set_to_now(&parent->changed);
}

/* Takes @node over on success. */
static int add(struct vhdfuse_tree *tree, struct vhdfuse_node *parent, struct vhdfuse_node *node)
{
        struct fuse_session *session;
        int r = 0;

        pthread_mutex_lock(&tree->lock);
        if (parent != tree->root && !parent->parent)
                r = -ENOENT;
        else if (find_locked(parent, node->name))
                r = -EEXIST;
        if (r < 0) {
                pthread_mutex_unlock(&tree->lock);
                return r;
        }
        node->number = ++tree->last_number;
        link_locked(parent, node);
        session = telling_begins_locked(tree);
        if (session)
                parent->n_refs++;
        pthread_mutex_unlock(&tree->lock);
        if (session) {
                /* That it was not there is not remembered by the kernel; the time of the directory is. */
                fuse_lowlevel_notify_inval_inode(session, vhdfuse_node_id(tree, parent), -1, 0);
                vhdfuse_node_unref(tree, parent);
                telling_ends(tree);
        }
        return 0;
}

int vhdfuse_tree_add_file(struct vhdfuse_tree *tree, struct vhdfuse_node *parent, const char *name,
        const struct vhdfuse_file_ops *ops, void *closure, unsigned flags,
        struct vhdfuse_node **ret)
{
        struct vhdfuse_node *node;
        int r;

        if (!is_name(name))
                return -EINVAL;
        node = node_new(name);
        if (!node)
                return -ENOMEM;
        node->ops = ops;
        node->closure = closure;
        node->flags = flags;
        r = add(tree, parent, node);
        if (r < 0) {
                node->ops = NULL; /* the closure stays the caller's */
                node_free(node);
                return r;
        }
        if (ret)
                *ret = node;
        return 0;
}

int vhdfuse_tree_add_directory(struct vhdfuse_tree *tree, struct vhdfuse_node *parent,
        const char *name, struct vhdfuse_node **ret)
{
        return vhdfuse_tree_add_file(tree, parent, name, NULL, NULL, 0, ret);
}

/* Says to the kernel that a node is gone, with all of its cached names; needs no lock. */
static void tell_removed(
        struct fuse_session *session, fuse_ino_t parent, fuse_ino_t id, const char *name)
{
        size_t length = strlen(name);

        /* A directory that somebody is in cannot be deleted for him: then its name is forgotten. */
        if (fuse_lowlevel_notify_delete(session, parent, id, name, length) < 0)
                fuse_lowlevel_notify_inval_entry(session, parent, name, length);
        fuse_lowlevel_notify_inval_inode(session, parent, -1, 0);
}

/* Takes the node's deepest first descendant out, or itself; true: it was itself. */
static bool remove_one(struct vhdfuse_tree *tree, struct vhdfuse_node *node)
{
        struct vhdfuse_node *leaf = node, *parent;
        struct fuse_session *session;

        pthread_mutex_lock(&tree->lock);
        while (leaf->first_child)
                leaf = leaf->first_child;
        parent = leaf->parent;
        assert(parent);
        unlink_locked(leaf);
        session = telling_begins_locked(tree);
        parent->n_refs++;
        pthread_mutex_unlock(&tree->lock);
        if (session) {
                tell_removed(session, vhdfuse_node_id(tree, parent), vhdfuse_node_id(tree, leaf),
                        leaf->name);
                telling_ends(tree);
        }
        vhdfuse_node_unref(tree, parent);
        vhdfuse_node_unref(tree, leaf); /* its place's */
        return leaf == node;
}

void vhdfuse_tree_remove(struct vhdfuse_tree *tree, struct vhdfuse_node *node)
{
        assert(node != tree->root);
        while (!remove_one(tree, node))
                ;
}

void vhdfuse_tree_changed(
        struct vhdfuse_tree *tree, struct vhdfuse_node *file, uint64_t offset, uint64_t length)
{
        struct fuse_session *session;

        pthread_mutex_lock(&tree->lock);
        /* What was never looked up, the kernel has nothing of. */
        session = file->n_lookups > 0 ? telling_begins_locked(tree) : NULL;
        if (session)
                file->n_refs++;
        pthread_mutex_unlock(&tree->lock);
        if (!session)
                return;
        fuse_lowlevel_notify_inval_inode(
                session, vhdfuse_node_id(tree, file), (off_t)offset, (off_t)length);
        vhdfuse_node_unref(tree, file);
        telling_ends(tree);
}
