/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot's part in the engine; P1 to P5 are in push.h. */
#include "chain/push.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "base/uuid.h"
#include "chain/alone.h"
#include "chain/internal.h"
#include "chain/paths.h"
#include "formats/poison.h"
#include "formats/redo.h"
#include "formats/vhd/create.h"

/* --- making the new leaf's file */

static const char *base_name(const char *path)
{
        const char *slash = strrchr(path, '/');

        return slash ? slash + 1 : path;
}

struct child_texts {
        char parent[PATH_TEXT_MAX], child[PATH_TEXT_MAX], directory[PATH_TEXT_MAX];
        char relative[PATH_TEXT_MAX];
};

static int fill_texts(const char *parent, const char *child, struct child_texts *ret)
{
        int r = parent[0] == '/' && child[0] == '/' ? 0 : -EINVAL;

        if (r == 0)
                r = path_resolve("/", parent, ret->parent, sizeof(ret->parent));
        if (r == 0)
                r = path_resolve("/", child, ret->child, sizeof(ret->child));
        if (r < 0)
                return r;
        path_directory(ret->child, ret->directory, sizeof(ret->directory));
        return path_relative(ret->directory, ret->parent, ret->relative, sizeof(ret->relative));
}

static int write_child(struct chain *chain, const char *path, const uint8_t unique_id[16],
        const struct child_texts *texts, struct error *err)
{
        const struct image *leaf = chain_leaf(chain);
        struct vhd_create_params params = {
                .type = VHD_TYPE_DIFFERENCING,
                .size = chain->size,
                .block_size = leaf->block_size,
                .parent_timestamp = vhd_time_from_unix(fs_now(chain->fs)),
                .parent_name = base_name(texts->parent),
                .parent_relative = texts->relative,
                .parent_absolute = texts->parent,
        };
        _cleanup_(file_closep) struct file *file = NULL;
        int r;

        memcpy(params.unique_id, unique_id, sizeof(params.unique_id));
        memcpy(params.parent_id, leaf->id, sizeof(params.parent_id));
        r = file_open(chain->fs, path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE | FILE_NOFOLLOW,
                &file, err);
        if (r < 0)
                return r;
        r = vhd_create(file, &params, err);
        if (r < 0)
                fs_unlink(chain->fs, path);
        return r;
}

int chain_child_create(
        struct chain *chain, const char *path, const uint8_t unique_id[16], struct error *err)
{
        const char *parent = chain_leaf(chain)->file->path;
        _cleanup_free_ struct child_texts *texts = calloc(1, sizeof(*texts));
        int r;

        if (!texts)
                return fail(err, ENOMEM, "no memory to make '%s'", path);
        r = fill_texts(parent, path, texts);
        if (r < 0)
                return fail_os(err, -r, "cannot write down in '%s' where '%s' lies", path, parent);
        r = write_child(chain, path, unique_id, texts, err);
        if (r < 0)
                return r;
        r = fs_sync_directory(chain->fs, path);
        if (r == 0)
                return 0;
        fs_unlink(chain->fs, path);
        error_set_file(err, path);
        return fail_os(err, -r, "cannot make the name of '%s' durable", path);
}

/* --- getting it ready */

static int check_leaf(const struct chain *chain, struct error *err)
{
        const struct image *leaf = chain_leaf(chain);
        struct file_stat st;
        int r;

        if (!chain->writable || chain->scratch)
                return fail(err, EROFS, "'%s' is not open for writing", leaf->file->path);
        if (chain_n_layers(chain) >= CHAIN_MAX_DEPTH)
                return fail(err, ELOOP, "the chain of '%s' has %u images already", leaf->file->path,
                        CHAIN_MAX_DEPTH);
        r = file_stat_get(leaf->file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", leaf->file->path);
        if (st.is_block)
                return fail(err, ENOTSUP, "'%s' is a disk that is passed through, and no image",
                        leaf->file->path);
        if (chain->size % SECTOR_SIZE)
                return fail(err, ENOTSUP, "'%s' ends inside a sector, and a VHD cannot",
                        leaf->file->path);
        return 0;
}

static bool is_empty(const struct image *image)
{
        for (uint64_t at = 0; at < image->size; at += image->block_size)
                if (image->format->holds(image, at))
                        return false;
        return true;
}

static int check_child(const struct chain *chain, const struct image *child, struct error *err)
{
        const struct image *leaf = chain_leaf(chain);
        const char *path = child->file->path;

        if (child->type != IMAGE_DIFFERENCING || !uuid_equal(child->parent_id, leaf->id))
                return fail(err, ESTALE, "'%s' does not stand on '%s'", path, leaf->file->path);
        if (!child->writable)
                return fail(err, EROFS, "'%s' cannot take writes", path);
        if (child->size != chain->size)
                return fail(err, EINVAL, "'%s' has %llu bytes, and the disk %llu", path,
                        (unsigned long long)child->size, (unsigned long long)chain->size);
        if (child->block_size < resolver_block_size(chain_view(chain)->resolver))
                return fail(err, EINVAL,
                        "'%s' has blocks of %u bytes, smaller than the chain's %llu", path,
                        child->block_size,
                        (unsigned long long)resolver_block_size(chain_view(chain)->resolver));
        if (!is_empty(child))
                return fail(err, EINVAL, "'%s' is not empty", path);
        return 0;
}

/* Right after the switch every write wants a place. */
static int make_room(struct image *child, struct error *err)
{
        int r = child->format->make_room(child);

        return r < 0 ? fail_os(err, -r, "cannot make room in '%s'", child->file->path) : 0;
}

int chain_child_open(struct chain *chain, const char *path, struct image **ret, struct error *err)
{
        unsigned flags = FILE_WRITE | FILE_NOFOLLOW | (chain->direct ? FILE_DIRECT : 0);
        struct image *child = NULL;
        struct file *file;
        int r = check_leaf(chain, err);

        if (r == 0)
                r = file_open(chain->fs, path, flags, &file, err);
        if (r < 0)
                return r;
        r = image_open(file, "vhd", IMAGE_WRITABLE, &child, err);
        if (r < 0) {
                file_close(file);
                return r;
        }
        r = check_child(chain, child, err);
        if (r == 0)
                r = make_room(child, err);
        if (r < 0) {
                error_set_file(err, path);
                chain_child_close(child);
                return r;
        }
        *ret = child;
        return 0;
}

void chain_child_close(struct image *child)
{
        if (child)
                image_close(child, NULL);
}

/* --- the switch */

void chain_hold(struct chain *chain)
{
        gates_shut(chain->hold);
        gates_drain(chain->hold);
}

void chain_release(struct chain *chain)
{
        gates_reopen(chain->hold);
}

void chain_push(struct chain *chain, struct image *child)
{
        struct chain_view *view = chain_view(chain);
        unsigned n_layers = view_n_layers(view);

        assert(n_layers < CHAIN_MAX_DEPTH);
        assert(uuid_equal(child->parent_id, view_leaf(view)->id));
        image_lend_places(child, chain->places);
        child->n_holders = 1;
        atomic_store(&child->flushes, true);
        view->drain = NULL; /* what was the leaf takes no writes any more; draining it goes on */
        view->layers[n_layers] = child;
        atomic_store(&view->n_layers, n_layers + 1);
}

static void name_image(
        const struct image *image, const struct file_stat *st, struct switch_image *ret)
{
        ret->device = st->device;
        ret->inode = st->inode;
        memcpy(ret->id, image->id, sizeof(ret->id));
}

static int name_disk(const struct chain_switch *disk, struct switch_disk *ret, struct error *err)
{
        const struct image *leaf = chain_leaf(disk->chain);
        struct file_stat frozen_st, child_st;
        int r = file_stat_get(leaf->file, &frozen_st);

        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", leaf->file->path);
        r = file_stat_get(disk->child->file, &child_st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", disk->child->file->path);
        memcpy(ret->id, disk->id, sizeof(ret->id));
        name_image(leaf, &frozen_st, &ret->frozen);
        name_image(disk->child, &child_st, &ret->leaf);
        return 0;
}

/* All that can fail, and all that takes its time: before anybody has to wait. */
static int prepare_switch(const struct chain_switch *disks, unsigned n_disks,
        struct switch_record *record, struct error *err)
{
        if (n_disks > SWITCH_MAX_DISKS)
                return fail(err, EINVAL, "%u disks are more than a vm can have", n_disks);
        record->n_disks = n_disks;
        for (unsigned i = 0; i < n_disks; i++) {
                struct chain *chain = disks[i].chain;
                int r = name_disk(&disks[i], &record->disks[i], err);

                if (r < 0)
                        return r;
                r = chain_flush_layers(chain);
                if (r < 0)
                        return fail_os(err, -r, "cannot flush '%s' before the snapshot",
                                chain_leaf(chain)->file->path);
        }
        return 0;
}

static int begin_uncommitted(const struct chain_switch *disks, unsigned n_disks, struct error *err)
{
        for (unsigned i = 0; i < n_disks; i++) {
                int r = chain_uncommitted(disks[i].chain);

                if (r == 0)
                        continue;
                while (i-- > 0)
                        chain_committed(disks[i].chain);
                return fail_os(err, -r, "cannot take a snapshot");
        }
        return 0;
}

static uint64_t now_ns(void)
{
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* No merge begins or ends in between. */
static void lock_families(const struct chain_switch *disks, unsigned n_disks, bool lock)
{
        for (unsigned i = 0; i < n_disks; i++) {
                struct chain_family *family = disks[i].chain->family;
                unsigned k = 0;

                while (disks[k].chain->family != family)
                        k++;
                if (k < i)
                        continue; /* the same as an earlier one's */
                if (lock)
                        pthread_mutex_lock(&family->lock);
                else
                        pthread_mutex_unlock(&family->lock);
        }
}

static int check_leaves(const struct chain_switch *disks, unsigned n_disks, struct error *err)
{
        for (unsigned i = 0; i < n_disks; i++) {
                const struct image *leaf = chain_leaf(disks[i].chain);

                if (!uuid_equal(disks[i].child->parent_id, leaf->id))
                        return fail(err, ESTALE,
                                "'%s' does not stand on '%s', which is the leaf by now",
                                disks[i].child->file->path, leaf->file->path);
        }
        return 0;
}

static void hold_all(const struct chain_switch *disks, unsigned n_disks)
{
        for (unsigned i = 0; i < n_disks; i++)
                gates_shut(disks[i].chain->hold);
        for (unsigned i = 0; i < n_disks && !MUTANT("hold-no-wait"); i++)
                gates_drain(disks[i].chain->hold);
}

/* P1: nobody is let in again before the last one has its new leaf. */
static void push_all(const struct chain_switch *disks, unsigned n_disks)
{
        for (unsigned i = 0; i < n_disks; i++) {
                chain_push(disks[i].chain, disks[i].child);
                if (MUTANT("switch-one-by-one"))
                        chain_release(disks[i].chain);
        }
}

static void release_all(const struct chain_switch *disks, unsigned n_disks)
{
        for (unsigned i = 0; i < n_disks; i++)
                chain_release(disks[i].chain);
}

int chain_switch(const struct chain_switch *disks, unsigned n_disks, struct switch_region *region,
        const uint8_t snapshot[16], uint64_t *ret_stall_ns, struct error *err)
{
        _cleanup_free_ struct switch_record *record = calloc(1, sizeof(*record));
        uint64_t start;
        int r;

        if (!record)
                return fail(err, ENOMEM, "no memory to take a snapshot");
        switch_region_vm(region, record->vm);
        memcpy(record->snapshot, snapshot, sizeof(record->snapshot));
        r = prepare_switch(disks, n_disks, record, err);
        if (r == 0)
                r = begin_uncommitted(disks, n_disks, err);
        if (r < 0)
                return r;
        lock_families(disks, n_disks, true);
        r = check_leaves(disks, n_disks, err);
        if (r < 0) {
                lock_families(disks, n_disks, false);
                for (unsigned i = 0; i < n_disks; i++)
                        chain_committed(disks[i].chain);
                return r;
        }
        start = now_ns();
        hold_all(disks, n_disks);
        push_all(disks, n_disks);
        if (!MUTANT("no-switch-record") && !MUTANT("switch-record-late"))
                switch_write(region, record); /* P2 */
        release_all(disks, n_disks);
        *ret_stall_ns = now_ns() - start;
        lock_families(disks, n_disks, false);
        if (MUTANT("switch-record-late"))
                switch_write(region, record);
        return 0;
}

/* --- flushes */

/* E5, of an image that is the leaf no more: its commit never comes (P4), and nobody waits for it. */
static void fail_chain(struct chain *chain)
{
        MUTEX_GUARD(&chain->commit_lock);
        atomic_store(&chain->failed, true);
        pthread_cond_broadcast(&chain->commit_ended);
}

static int flush_layer(struct chain *chain, struct image *image)
{
        int r = image->format->flush(image);

        if (r == -EIO && image != chain_leaf(chain))
                fail_chain(chain);
        return r;
}

/* Layers that a round of another one flushes are left to that one (E11). */
static int flush_view(struct chain *chain, unsigned n_layers, struct image **ret_failed)
{
        const struct chain_view *view = chain_view(chain);

        for (unsigned i = 0; i < n_layers; i++) {
                struct image *image = view->layers[i];
                int r;

                if (!atomic_load(&image->flushes) || view_is_flushed_first(view, image))
                        continue;
                r = flush_layer(chain, image);
                if (r < 0) {
                        *ret_failed = image;
                        return r;
                }
        }
        return 0;
}

int chain_flush_layers(struct chain *chain)
{
        struct image *failed;
        uint64_t ticket;
        int r;

        if (chain->downgraded)
                return -EIO; /* E5: what a server before us answered may not be on the disk */
        if (!chain->writable || chain->scratch)
                return 0;
        ticket = chain_ticket_get(chain);
        r = flush_view(chain, chain_n_layers(chain), &failed);
        chain_ticket_put(chain, ticket);
        return r;
}

static bool is_frozen(const struct image *image)
{
        return atomic_load(&image->flushes) && !atomic_load(&image->in_merge);
}

unsigned chain_n_frozen(const struct chain *chain)
{
        uint64_t ticket = grace_enter(chain->places);
        const struct chain_view *view = chain_view(chain);
        unsigned n = 0;

        for (unsigned i = 0; i + 1 < view_n_layers(view); i++)
                n += is_frozen(view->layers[i]);
        grace_leave(chain->places, ticket);
        return n;
}

static int flush_failed(const struct image *image, int r, struct error *err)
{
        error_set_file(err, image->file->path);
        return fail_os(
                err, -r, "cannot flush '%s', which a snapshot is to keep", image->file->path);
}

/* 1: all of it is durable; to settle one of them is for later. */
static int settle_view(struct chain *chain, unsigned n_layers, struct error *err)
{
        const struct chain_view *view = chain_view(chain);

        for (unsigned i = 0; i + 1 < n_layers; i++) {
                struct image *image = view->layers[i];
                struct error why = ERROR_INIT;
                int r;

                /* One that a merge could not finish with is still flushed by another's rounds. */
                if (!is_frozen(image) || view_is_flushed_first(view, image))
                        continue;
                r = image_settle(image, &why);
                if (r == -EIO) {
                        fail_chain(chain);
                        if (err)
                                *err = why;
                        return r;
                }
                if (r < 0)
                        return 1;
                atomic_store(&image->flushes, false);
        }
        return 0;
}

int chain_flush_frozen(struct chain *chain, struct error *err)
{
        struct image *failed = NULL;
        unsigned n_layers;
        int r;

        if (MUTANT("frozen-not-flushed"))
                return 0;
        /* No merge begins or ends meanwhile. */
        MUTEX_GUARD(&chain->family->lock);
        n_layers = chain_n_layers(chain);
        r = flush_view(chain, n_layers - 1, &failed); /* P4 */
        if (r < 0)
                return flush_failed(failed, r, err);
        r = settle_view(chain, n_layers, err);
        return r < 0 ? r : 0;
}

/* --- waiting for the commit */

static bool is_hopeless(const struct chain *chain)
{
        return chain->commits_aborted || chain->failed;
}

int chain_uncommitted(struct chain *chain)
{
        MUTEX_GUARD(&chain->commit_lock);
        while (chain->switches_ended < chain->switches_begun && !is_hopeless(chain))
                pthread_cond_wait(&chain->commit_ended, &chain->commit_lock);
        if (is_hopeless(chain))
                return chain->failed ? -EIO : -ESHUTDOWN;
        atomic_fetch_add(&chain->switches_begun, 1);
        return 0;
}

void chain_committed(struct chain *chain)
{
        MUTEX_GUARD(&chain->commit_lock);
        atomic_store(&chain->switches_ended, atomic_load(&chain->switches_begun));
        pthread_cond_broadcast(&chain->commit_ended);
}

void chain_commits_abort(struct chain *chain)
{
        MUTEX_GUARD(&chain->commit_lock);
        atomic_store(&chain->commits_aborted, true);
        pthread_cond_broadcast(&chain->commit_ended);
}

int chain_wait_committed_slowly(struct chain *chain)
{
        uint64_t mine;

        MUTEX_GUARD(&chain->commit_lock);
        mine = chain->switches_begun; /* later ones are not waited for: that might never end */
        while (chain->switches_ended < mine && !is_hopeless(chain))
                pthread_cond_wait(&chain->commit_ended, &chain->commit_lock);
        if (chain->failed)
                return -EIO;
        return chain->switches_ended < mine ? -ESHUTDOWN : 0;
}

/* --- images alone */

static int settle_opened(struct image *image, const char *path, struct error *err)
{
        int r;

        if (image->writable)
                return image_close(image, err);
        r = fail(err, EROFS, "%s", image->warning);
        error_set_file(err, path);
        image_abandon(image);
        return r;
}

int chain_settle_image(struct fs *fs, const char *path, const char *format, struct error *err)
{
        struct image *image;
        struct file *file;
        int r = file_open(fs, path, FILE_WRITE | FILE_NOFOLLOW, &file, err);

        if (r == 0)
                r = alone_open(file, format, 0, &image, err);
        return r < 0 ? r : settle_opened(image, path, err);
}

int chain_settle_next(struct fs *fs, const char *path, const char *format, unsigned image_flags,
        struct error *err)
{
        struct image *image;
        struct file *file;
        int r = file_open(fs, path, FILE_WRITE | FILE_NOFOLLOW, &file, err);

        if (r < 0)
                return r;
        r = image_open(file, format, IMAGE_WRITABLE | image_flags, &image, err);
        if (r < 0) {
                file_close(file);
                return r;
        }
        return settle_opened(image, path, err);
}

int chain_forget_image(struct fs *fs, const char *path, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        int r = file_open(fs, path, FILE_READ | FILE_NOFOLLOW, &file, err);

        if (r == 0)
                r = redo_forget(file, err);
        if (r == 0)
                r = poison_lift(file, err);
        return r;
}
