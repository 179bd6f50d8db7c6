/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing: from the leaf to the root, each parent found, locked and checked. */
#include "chain/chain.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/mutant.h"
#include "base/uuid.h"
#include "chain/internal.h"
#include "chain/locate.h"
#include "chain/push.h"
#include "chain/recover.h"
#include "chain/scratch.h"
#include "chain/seal.h"
#include "formats/intent.h"
#include "formats/raw/device.h"
#include "formats/vhd/hyperv.h"
#include "formats/vhd/metadata.h"

#define PREFERRED_SIZE 4096u

struct opening {
        const struct chain_options *options;
        struct fs *fs;
        struct chain *chain;
        struct chain_view *view; /* layers leaf first until all are open */
        bool shared;             /* the last one is open already: so are those below it */
        struct error *err;
        bool read_only; /* a parent is not what it should be */
};

static void warn(const struct opening *o, const char *sentence)
{
        if (o->options->warn && sentence[0])
                o->options->warn(o->options->opaque, sentence);
}

static void add_layer(struct opening *o, struct image *image)
{
        o->view->layers[o->view->n_layers++] = image;
        warn(o, image->warning);
}

static unsigned image_flags_of(const struct opening *o, bool is_leaf)
{
        const struct chain_options *options = o->options;
        unsigned flags = options->force ? IMAGE_FORCE : 0;

        if (is_leaf && options->writable && !options->scratch && !options->force)
                flags |= IMAGE_WRITABLE;
        if (options->loose_lock)
                flags |= IMAGE_LOOSE_LOCK;
        return flags;
}

/* A parent that was changed behind its children's back has the same id as before. */
static void check_seal(const struct opening *o, struct image *image)
{
        char sentence[ERROR_MESSAGE_MAX];

        seal_warning(image, sentence, sizeof(sentence));
        warn(o, sentence);
}

/* Takes @file over in any case. */
static int open_image(const struct opening *o, struct file *file, const char *format,
        unsigned flags, struct image **ret)
{
        int r = image_open(file, format, flags, ret, o->err);

        if (r < 0)
                file_close(file);
        return r;
}

/* The same file once more, now that it was changed; not another that got its name meanwhile. */
static int open_again(const struct opening *o, const char *path, const struct file_stat *st,
        unsigned flags, struct file **ret)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct file_stat now;
        int r = file_open(o->fs, path, flags | FILE_NOFOLLOW, &file, o->err);

        if (r < 0)
                return r;
        r = file_stat_get(file, &now);
        if (r < 0)
                return fail_os(o->err, -r, "cannot look at '%s'", path);
        if (now.device != st->device || now.inode != st->inode)
                return fail(o->err, ESTALE, "'%s' was replaced while it was opened", path);
        *ret = TAKE_PTR(file);
        return 0;
}

/* An image that a chain of the family has open is that one's, too: what a merge does to it is seen by
 * both. */
static bool open_shared(struct opening *o, struct file *file)
{
        struct image *image = NULL;
        struct file_stat st;

        if (file_stat_get(file, &st) == 0)
                image = chain_family_find(o->chain->family, &st, false);
        if (!image)
                return false;
        file_close(file);
        add_layer(o, image);
        o->shared = true;
        return true;
}

static struct locate_roots roots_of(const struct opening *o)
{
        return (struct locate_roots){
                .roots = o->options->image_roots, .n_roots = o->options->n_image_roots};
}

/* E13: what was cut off in the middle of several images is completed before one of them is looked at, by
 * who may write. */
static int complete_intent(
        struct opening *o, const char *path, const struct file_stat *st, struct error *err)
{
        struct locate_roots roots = roots_of(o);
        _cleanup_(file_closep) struct file *file = NULL;
        int r = open_again(o, path, st, FILE_WRITE, &file);

        return r < 0 ? r : recover_intent(file, &roots, err);
}

static bool is_for_writing(const struct opening *o)
{
        return image_flags_of(o, true) & IMAGE_WRITABLE;
}

/* *@file is then another reader's: whoever gives out files may have given the lock to the writer. */
static int complete_intent_of_parent(struct opening *o, struct file **file)
{
        struct file *again = NULL;
        struct file_stat st;
        int r;

        r = file_stat_get(*file, &st);
        if (r < 0)
                return fail_os(o->err, -r, "cannot look at '%s'", (*file)->path);
        r = complete_intent(o, (*file)->path, &st, o->err);
        if (r == 0)
                r = open_again(o, (*file)->path, &st, FILE_READ, &again);
        if (r < 0)
                return r;
        file_close(*file);
        *file = again;
        return 0;
}

/* Others stand on an image with a mark, and what is written to it would change them. In the middle of a
 * merge it is not even a disk without them (E12). */
static int check_mark(const struct opening *o, const struct image *leaf)
{
        const char *path = leaf->file->path;
        struct error err = ERROR_INIT;

        if (!leaf->hidden || (!leaf->merging && !leaf->writable))
                return 0;
        if (leaf->merging)
                fail(&err, EROFS,
                        "a merge into '%s' was cut off: alone it reads as a mixture of old and new; "
                        "`vhdctl merge` of the image that stands on it goes on",
                        path);
        else if (o->options->for_merge)
                return 0;
        else
                fail(&err, EROFS,
                        "'%s' is hidden, an inner node of a XenServer tree: it is not written to, "
                        "because others stand on it",
                        path);
        if (!leaf->writable) {
                warn(o, err.message);
                return 0;
        }
        error_set_file(&err, path);
        error_set_hint(&err, "write to the image that stands on it, or to a copy; it can be read");
        if (o->err)
                *o->err = err;
        return -EROFS;
}

/* Takes @file over in any case. */
static int open_layer(struct opening *o, struct file *file, const char *format, bool is_leaf)
{
        struct locate_roots roots = roots_of(o);
        struct image *image;
        int found, r = 0;

        if (!(is_leaf && is_for_writing(o)) && open_shared(o, file))
                return 0;
        found = is_for_writing(o) ? intent_look(file, NULL) : 0;
        if (found == 1)
                r = is_leaf ? recover_intent(file, &roots, o->err)
                            : complete_intent_of_parent(o, &file);
        if (r < 0) {
                file_close(file);
                return r;
        }
        r = open_image(o, file, format, image_flags_of(o, is_leaf), &image);
        if (r < 0)
                return r;
        if (found == 2 && !is_leaf)
                intent_tidy(image->file);
        if (is_leaf)
                r = check_mark(o, image);
        if (r < 0) {
                image_close(image, NULL); /* cleanly: it has not been touched */
                return r;
        }
        add_layer(o, image);
        if (!is_leaf)
                check_seal(o, image);
        return 0;
}

/* The same file or the same id twice: the chain comes back to itself. */
static int check_loop(struct opening *o, struct file *parent, const struct image *child)
{
        struct file_stat st, other;
        int r = file_stat_get(parent, &st);

        for (unsigned i = 0; r == 0 && i < o->view->n_layers; i++) {
                r = file_stat_get(o->view->layers[i]->file, &other);
                if (r == 0 && other.device == st.device && other.inode == st.inode) {
                        fail(o->err, ELOOP,
                                "'%s' asks for the parent '%s', which stands on it: the chain is a loop",
                                child->file->path, parent->path);
                        error_set_file(o->err, child->file->path);
                        error_set_hyperv(o->err, HYPERV_CHAIN_CYCLE);
                        return -ELOOP;
                }
        }
        if (r < 0)
                return fail_os(o->err, -r, "cannot look at '%s'", parent->path);
        if (o->view->n_layers < CHAIN_MAX_DEPTH)
                return 0;
        return fail(o->err, ELOOP, "the chain of '%s' is deeper than %u images",
                o->view->layers[0]->file->path, CHAIN_MAX_DEPTH);
}

static int open_parent(struct opening *o, struct image *child)
{
        const struct chain_options *options = o->options;
        unsigned index = o->view->n_layers - 1;
        const char *named = index < options->n_parents ? options->parents[index] : NULL;
        struct locate_roots roots = roots_of(o);
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        struct file *file;
        int r;

        if (!metadata)
                return fail(
                        o->err, ENOMEM, "no memory to open the parent of '%s'", child->file->path);
        r = vhd_metadata_read(child->file, options->force ? VHD_READ_FORCE : 0, metadata, o->err);
        if (r == 0)
                r = locate_parent(child->file, metadata, &roots, named, &file, o->err);
        if (r < 0)
                return r;
        r = check_loop(o, file, child);
        if (r < 0) {
                file_close(file);
                return r;
        }
        /* tapdisk's way to ask for a raw parent is to ask for no id. */
        r = open_layer(o, file, uuid_is_zero(child->parent_id) ? "raw" : "vhd", false);
        if (r < 0)
                return fail_prefix(o->err, r, "opening the parent of '%s'", child->file->path);
        return 0;
}

/* The rest of the chain that the last layer is shared with. */
static int share_parents(struct opening *o)
{
        struct image *last = o->view->layers[o->view->n_layers - 1];

        for (struct chain *chain = o->chain->family->chains; chain; chain = chain->next_in_family) {
                const struct chain_view *view = chain_view(chain);
                unsigned n = view_n_layers(view), i = 0;

                while (i < n && view->layers[i] != last)
                        i++;
                if (i == n)
                        continue;
                if (o->view->n_layers + i > CHAIN_MAX_DEPTH)
                        return fail(o->err, ELOOP, "the chain of '%s' is deeper than %u images",
                                o->view->layers[0]->file->path, CHAIN_MAX_DEPTH);
                o->chain->leaf_only = chain->leaf_only;
                while (i-- > 0)
                        add_layer(o, view->layers[i]);
                return 0;
        }
        return 0;
}

static int open_parents(struct opening *o)
{
        struct chain *chain = o->chain;

        for (;;) {
                struct image *last = o->view->layers[o->view->n_layers - 1];
                int r;

                if (o->shared)
                        return share_parents(o);
                if (last->type != IMAGE_DIFFERENCING)
                        return 0;
                if (o->options->leaf_only) {
                        chain->leaf_only = true;
                        return 0;
                }
                r = open_parent(o, last);
                if (r < 0)
                        return r;
        }
}

/* P5: a parent whose last writer died was the leaf when a snapshot was switched, or a disk of its own.
 * What was answered for it comes into its file first: a flush of this chain promises that, too. Where
 * nobody may write it any more (E5) the chain is for reading. */
static int settle_parent(
        struct opening *o, const char *path, const char *format, unsigned more_flags)
{
        int r = chain_settle_next(o->fs, path, format, more_flags, o->err);

        if (r == 0)
                return 0;
        if (r != -EROFS)
                return fail_prefix(o->err, r,
                        "its last server died, and what it left in '%s' cannot be completed", path);
        error_clear(o->err);
        o->read_only = true;
        return 0;
}

/* How an image that is open has to be opened once more. */
struct once_more {
        bool is_leaf;
        bool settles;   /* settle_parent() in between */
        bool distrusts; /* without what its last server left (IMAGE_DISTRUST) */
};

static int open_once_more(struct opening *o, struct image **image, struct once_more how)
{
        _cleanup_free_ char *path = strdup((*image)->file->path);
        const char *format = (*image)->format->name;
        unsigned file_flags = (*image)->file->flags,
                 more_flags = how.distrusts ? IMAGE_DISTRUST : 0;
        struct file *file = NULL;
        struct file_stat st;
        int r = file_stat_get((*image)->file, &st);

        *image = image_abandon(*image);
        if (!path)
                return fail(o->err, ENOMEM, "no memory to open an image again");
        if (r < 0)
                return fail_os(o->err, -r, "cannot look at '%s'", path);
        if (how.settles)
                r = settle_parent(o, path, format, more_flags);
        if (r == 0)
                r = open_again(o, path, &st, file_flags, &file);
        return r < 0
                ? r
                : open_image(o, file, format, image_flags_of(o, how.is_leaf) | more_flags, image);
}

/* From the root up: what was cleared in a layer by a merge is durably gone only after what took its
 * place below is there, and not at all if that was lost (E11, E5). */
static int settle_parents(struct opening *o)
{
        bool settles = is_for_writing(o) && !MUTANT("parent-not-settled"), lost = false;
        int r = 0;

        for (unsigned k = o->view->n_layers; r == 0 && k-- > 0;) {
                unsigned i = MUTANT("settle-from-top") ? o->view->n_layers - 1 - k : k;
                struct image **image = &o->view->layers[i];
                struct once_more how = {
                        .is_leaf = i == 0,
                        .settles = i > 0 && settles && (*image)->unclean,
                        .distrusts =
                                lost && (*image)->replayed_frees && !MUTANT("replay-over-poison"),
                };

                if ((*image)->n_holders > 0)
                        continue;
                if (how.settles || how.distrusts)
                        r = open_once_more(o, image, how);
                if (r == 0 && how.distrusts)
                        warn(o, (*image)->warning);
                if (r == 0)
                        lost |= (*image)->lost_records;
        }
        return r;
}

/* From leaf-first, as they were found, to root-first, as everything else counts. */
static void turn_round(struct chain *chain, struct chain_view *view)
{
        for (unsigned i = 0, k = view->n_layers - 1; i < k; i++, k--) {
                struct image *other = view->layers[i];

                view->layers[i] = view->layers[k];
                view->layers[k] = other;
        }
        chain->size = view_leaf(view)->size;
}

/* E4: what a dead process wrote into any image of the chain looks durable and may not be. */
static int sync_all(struct opening *o)
{
        if (MUTANT("no-sync-at-open"))
                return 0;
        for (unsigned i = 0; i < o->view->n_layers; i++) {
                struct file *file = o->view->layers[i]->file;
                int r = file_sync(file);

                if (r < 0) {
                        /* E5: whoever opens next must hear of it, and the kernel has told us. */
                        o->view->layers[0]->format->poison(o->view->layers[0], -r);
                        error_set_file(o->err, file->path);
                        return fail_os(
                                o->err, -r, "cannot sync '%s' before it is written to", file->path);
                }
        }
        return 0;
}

static int open_scratch(struct opening *o)
{
        struct image *image;
        int r = scratch_make(
                o->fs, o->options->scratch_directory, o->view->layers[0], &image, o->err);

        if (r < 0)
                return r;
        add_layer(o, image);
        o->chain->scratch = true;
        /* It was found last and is the leaf: to the front of a leaf-first list. */
        for (unsigned i = o->view->n_layers - 1; i > 0; i--) {
                o->view->layers[i] = o->view->layers[i - 1];
                o->view->layers[i - 1] = image;
        }
        return 0;
}

/* What requests pass through, on the chain as it was found. */
static int prepare_requests(struct opening *o)
{
        struct chain *chain = o->chain;
        struct image *leaf = view_leaf(o->view);

        /* A leaf that is shared is one that somebody else merges into: to be read here. */
        chain->writable = leaf->writable && leaf->n_holders == 0 && !o->read_only;
        chain->gates = gates_new();
        chain->hold = gates_new_small();
        if (!chain->gates || !chain->hold)
                return -ENOMEM;
        if (chain->writable) {
                image_lend_places(leaf, chain->places);
                atomic_store(&leaf->flushes, true);
        }
        return 0;
}

static int open_all(struct opening *o, const char *path)
{
        struct file *file;
        unsigned flags = (is_for_writing(o) ? FILE_WRITE : FILE_READ) |
                (o->options->direct ? FILE_DIRECT : 0);
        int r = device_open(o->fs, path, flags, &file, o->err);

        if (r == -EINVAL && o->options->direct)
                error_set_hint(o->err,
                        "its file system may have no direct I/O: leave out "
                        "--cache direct");
        if (r == 0)
                r = open_layer(o, file, o->options->format, true);
        if (r == 0)
                r = open_parents(o);
        if (r == 0)
                r = settle_parents(o);
        if (r == 0 && is_for_writing(o) && o->view->layers[0]->writable)
                r = sync_all(o);
        if (r == 0 && o->options->scratch)
                r = open_scratch(o);
        if (r < 0)
                return r;
        turn_round(o->chain, o->view);
        r = prepare_requests(o);
        if (r < 0)
                return fail(o->err, -r, "no memory to open '%s'", path);
        return chain_view_complete(o->chain, o->view, o->err);
}

static int new_chain(struct opening *o)
{
        struct chain *chain = o->chain;

        o->view = chain_view_new();
        if (!o->view)
                return -ENOMEM;
        chain->view = o->view;
        chain->family = o->options->family;
        if (!chain->family) {
                chain->family = chain_family_new();
                chain->family_is_own = true;
        }
        if (!chain->family)
                return -ENOMEM;
        chain->places = chain->family->places;
        return 0;
}

static void chain_free(struct chain *chain)
{
        chain_view_free(chain_view(chain));
        chain->gates = gates_free(chain->gates);
        chain->hold = gates_free(chain->hold);
        if (chain->family_is_own)
                chain_family_free(chain->family);
        pthread_mutex_destroy(&chain->commit_lock);
        pthread_cond_destroy(&chain->commit_ended);
        free(chain);
}

/* What a failed opening leaves: images of others stay theirs. */
static void abandon_opened(struct chain_view *view)
{
        for (unsigned i = 0; i < view->n_layers; i++)
                if (view->layers[i] &&
                        view->layers[i]->n_holders == 0) /* NULL: it failed to settle */
                        image_abandon(view->layers[i]);
        view->n_layers = 0;
}

static int open_in_family(struct opening *o, const char *path)
{
        int r;

        MUTEX_GUARD(&o->chain->family->lock);
        r = open_all(o, path);
        if (r < 0)
                abandon_opened(o->view);
        else
                chain_family_join(o->chain);
        return r;
}

int chain_open(const char *path, const struct chain_options *options, struct chain **ret,
        struct error *err)
{
        struct opening o = {
                .options = options,
                .fs = options->fs ? options->fs : host_fs(),
                .chain = calloc(1, sizeof(struct chain)),
                .err = err,
        };
        int r;

        if (!o.chain)
                return fail(err, ENOMEM, "no memory to open '%s'", path);
        pthread_mutex_init(&o.chain->commit_lock, NULL);
        pthread_cond_init(&o.chain->commit_ended, NULL);
        o.chain->fs = o.fs;
        o.chain->direct = options->direct;
        r = new_chain(&o);
        if (r < 0)
                fail(err, ENOMEM, "no memory to open '%s'", path);
        else
                r = open_in_family(&o, path);
        if (r < 0) {
                chain_free(o.chain);
                return r;
        }
        o.chain->downgraded = options->writable && !options->force && !o.chain->writable;
        *ret = o.chain;
        return 0;
}

/* The leaf first, as its flush is the one that can fail; but what is flushed in another one's round
 * after that one. */
static struct image *take_next(struct chain_view *view)
{
        for (unsigned i = view->n_layers; i-- > 0;)
                if (view->layers[i] && !view_is_flushed_first(view, view->layers[i]))
                        return TAKE_PTR(view->layers[i]);
        return NULL;
}

int chain_settle_layer(struct image *image, struct error *err)
{
        int r = image_settle(image, err);

        /* One that cannot be settled stays a writer that others read along with, as one in a merge is: it is not
         * opened a second time. */
        atomic_store(&image->in_merge, r < 0);
        if (r == 0)
                atomic_store(&image->flushes, false);
        return r;
}

/* Our leaf, which others read: for them it is a layer among others from here on. */
static void leave_to_others(struct chain *chain, struct image *image)
{
        struct error ignored = ERROR_INIT;

        if (chain->writable && image->writable && !chain->scratch && atomic_load(&image->flushes))
                (void)chain_settle_layer(image, &ignored);
}

static int close_layers(struct chain *chain, struct error *err)
{
        struct chain_view *view = chain_view(chain);
        struct image *image, *leaf = view_leaf(view);
        int result = 0;

        MUTEX_GUARD(&chain->family->lock);
        chain_family_leave(chain);
        while ((image = take_next(view))) {
                int r = 0;

                if (!chain_family_drop(chain->family, image)) {
                        if (image == leaf)
                                leave_to_others(chain, image);
                        continue;
                }
                if (image->writable && !chain->scratch) {
                        image_leave_places(image);
                        r = image_close(image, result == 0 ? err : NULL);
                } else {
                        image_abandon(image);
                }
                if (r < 0 && result == 0)
                        result = r;
        }
        view->n_layers = 0;
        return result;
}

int chain_close(struct chain *chain, struct error *err)
{
        int result = close_layers(chain, err);

        chain_free(chain);
        return result;
}

static void abandon_layers(struct chain *chain)
{
        struct chain_view *view = chain_view(chain);

        MUTEX_GUARD(&chain->family->lock);
        chain_family_leave(chain);
        for (unsigned i = view->n_layers; i-- > 0;)
                if (chain_family_drop(chain->family, view->layers[i]))
                        image_abandon(view->layers[i]);
        view->n_layers = 0;
}

struct chain *chain_abandon(struct chain *chain)
{
        if (!chain)
                return NULL;
        abandon_layers(chain);
        chain_free(chain);
        return NULL;
}

uint64_t chain_size(const struct chain *chain)
{
        return chain->size;
}

bool chain_is_writable(const struct chain *chain)
{
        return chain->writable;
}

unsigned chain_depth(const struct chain *chain)
{
        return chain_n_layers(chain);
}

const struct image *chain_layer(const struct chain *chain, unsigned layer)
{
        return chain_view(chain)->layers[layer];
}

const char *chain_layer_path(const struct chain *chain, unsigned layer)
{
        return chain_layer(chain, layer)->file->path;
}

uint32_t chain_preferred_size(const struct chain *chain)
{
        return PREFERRED_SIZE;
}

void chain_counters_get(const struct chain *chain, struct chain_counters *ret)
{
        *ret = (struct chain_counters){
                .reads = atomic_load(&chain->reads),
                .writes = atomic_load(&chain->writes),
                .zeros = atomic_load(&chain->zeros),
                .trims = atomic_load(&chain->trims),
                .flushes = atomic_load(&chain->flushes),
                .bytes_read = atomic_load(&chain->bytes_read),
                .bytes_written = atomic_load(&chain->bytes_written),
        };
}
