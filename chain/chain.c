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
#include "chain/scratch.h"
#include "chain/seal.h"
#include "formats/raw/device.h"
#include "formats/vhd/hyperv.h"
#include "formats/vhd/metadata.h"

#define PREFERRED_SIZE 4096u

struct opening {
        const struct chain_options *options;
        struct fs *fs;
        struct chain *chain; /* layers leaf first until all are open */
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
        struct chain *chain = o->chain;

        chain->layers[chain->n_layers++] = image;
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
static int open_again(
        const struct opening *o, const char *path, const struct file_stat *st, struct file **ret)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct file_stat now;
        int r = file_open(o->fs, path, FILE_READ | FILE_NOFOLLOW, &file, o->err);

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

/* P5: a parent whose last writer died was the leaf when a snapshot was switched, or a disk of its own.
 * What was answered for it comes into its file first: a flush of this chain promises that, too. Where
 * nobody may write it any more (E5) the chain is for reading. */
static int settle_parent(struct opening *o, const char *format, struct image **image)
{
        _cleanup_free_ char *path = strdup((*image)->file->path);
        unsigned flags = image_flags_of(o, false);
        struct file *file = NULL;
        struct file_stat st;
        int r = file_stat_get((*image)->file, &st);

        *image = image_abandon(*image);
        if (!path)
                return fail(o->err, ENOMEM, "no memory to open a parent");
        if (r < 0)
                return fail_os(o->err, -r, "cannot look at '%s'", path);
        r = chain_settle_image(o->fs, path, format, o->err);
        if (r == -EROFS) {
                error_clear(o->err);
                o->read_only = true;
        } else if (r < 0) {
                return fail_prefix(o->err, r, "its last server died, and what it left in '%s' cannot "
                        "be completed", path);
        }
        r = open_again(o, path, &st, &file);
        return r < 0 ? r : open_image(o, file, format, flags, image);
}

/* Takes @file over in any case. */
static int open_layer(struct opening *o, struct file *file, const char *format, bool is_leaf)
{
        bool for_writing = image_flags_of(o, true) & IMAGE_WRITABLE;
        struct image *image;
        int r = open_image(o, file, format, image_flags_of(o, is_leaf), &image);

        if (r == 0 && !is_leaf && for_writing && image->unclean && !MUTANT("parent-not-settled"))
                r = settle_parent(o, format, &image);
        if (r < 0)
                return r;
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

        for (unsigned i = 0; r == 0 && i < o->chain->n_layers; i++) {
                r = file_stat_get(o->chain->layers[i]->file, &other);
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
        if (o->chain->n_layers < CHAIN_MAX_DEPTH)
                return 0;
        return fail(o->err, ELOOP, "the chain of '%s' is deeper than %u images",
                o->chain->layers[0]->file->path, CHAIN_MAX_DEPTH);
}

static int open_parent(struct opening *o, struct image *child)
{
        const struct chain_options *options = o->options;
        unsigned index = o->chain->n_layers - 1;
        const char *named = index < options->n_parents ? options->parents[index] : NULL;
        struct locate_roots roots = {
                .roots = options->image_roots, .n_roots = options->n_image_roots};
        _cleanup_free_ struct vhd_metadata *metadata = malloc(sizeof(*metadata));
        struct file *file;
        int r;

        if (!metadata)
                return fail(o->err, ENOMEM, "no memory to open the parent of '%s'",
                        child->file->path);
        r = vhd_metadata_read(
                child->file, options->force ? VHD_READ_FORCE : 0, metadata, o->err);
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

static int open_parents(struct opening *o)
{
        struct chain *chain = o->chain;

        for (;;) {
                struct image *last = chain->layers[chain->n_layers - 1];
                int r;

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

/* From leaf-first, as they were found, to root-first, as everything else counts. */
static void turn_round(struct chain *chain)
{
        for (unsigned i = 0, k = chain->n_layers - 1; i < k; i++, k--) {
                struct image *other = chain->layers[i];

                chain->layers[i] = chain->layers[k];
                chain->layers[k] = other;
        }
        chain->size = chain_leaf(chain)->size;
}

/* E4: what a dead process wrote into any image of the chain looks durable and may not be. */
static int sync_all(struct opening *o)
{
        if (MUTANT("no-sync-at-open"))
                return 0;
        for (unsigned i = 0; i < o->chain->n_layers; i++) {
                struct file *file = o->chain->layers[i]->file;
                int r = file_sync(file);

                if (r < 0) {
                        /* E5: whoever opens next must hear of it, and the kernel has told us. */
                        o->chain->layers[0]->format->poison(o->chain->layers[0], -r);
                        error_set_file(o->err, file->path);
                        return fail_os(o->err, -r, "cannot sync '%s' before it is written to",
                                file->path);
                }
        }
        return 0;
}

static int open_scratch(struct opening *o)
{
        struct image *image;
        int r = scratch_make(
                o->fs, o->options->scratch_directory, o->chain->layers[0], &image, o->err);

        if (r < 0)
                return r;
        add_layer(o, image);
        o->chain->scratch = true;
        /* It was found last and is the leaf: to the front of a leaf-first list. */
        for (unsigned i = o->chain->n_layers - 1; i > 0; i--) {
                o->chain->layers[i] = o->chain->layers[i - 1];
                o->chain->layers[i - 1] = image;
        }
        return 0;
}

/* What requests pass through, on the chain as it was found. */
static int prepare_requests(struct opening *o)
{
        struct chain *chain = o->chain;
        struct image *leaf = chain_leaf(chain);

        chain->writable = leaf->writable && !o->read_only;
        chain->n_settled = chain->n_layers - 1;
        chain->gates = gates_new();
        chain->hold = gates_new_small();
        if (!chain->gates || !chain->hold)
                return -ENOMEM;
        if (!chain->writable)
                return 0;
        chain->places = grace_new();
        if (!chain->places)
                return -ENOMEM;
        image_lend_places(leaf, chain->places);
        return 0;
}

static int open_all(struct opening *o, const char *path)
{
        bool for_writing = image_flags_of(o, true) & IMAGE_WRITABLE;
        struct file *file;
        unsigned flags = (for_writing ? FILE_WRITE : FILE_READ) |
                         (o->options->direct ? FILE_DIRECT : 0);
        int r = device_open(o->fs, path, flags, &file, o->err);

        if (r == -EINVAL && o->options->direct)
                error_set_hint(o->err, "its file system may have no direct I/O: leave out "
                                       "--cache direct");
        if (r == 0)
                r = open_layer(o, file, o->options->format, true);
        if (r == 0)
                r = open_parents(o);
        if (r == 0 && o->chain->layers[0]->writable)
                r = sync_all(o);
        if (r == 0 && o->options->scratch)
                r = open_scratch(o);
        if (r < 0)
                return r;
        turn_round(o->chain);
        r = prepare_requests(o);
        if (r < 0)
                return fail(o->err, -r, "no memory to open '%s'", path);
        return resolver_new(o->chain->layers, &o->chain->n_layers, o->chain->writable,
                o->chain->size, &o->chain->resolver, o->err);
}

int chain_open(const char *path, const struct chain_options *options, struct chain **ret,
        struct error *err)
{
        _cleanup_(chain_abandonp) struct chain *chain = calloc(1, sizeof(*chain));
        struct opening o = {
                .options = options,
                .fs = options->fs ? options->fs : host_fs(),
                .chain = chain,
                .err = err,
        };
        int r;

        if (chain)
                chain->layers = calloc(CHAIN_MAX_DEPTH + 1, sizeof(struct image *));
        if (!chain || !chain->layers) {
                free(TAKE_PTR(chain));
                return fail(err, ENOMEM, "no memory to open '%s'", path);
        }
        chain->fs = o.fs;
        chain->direct = options->direct;
        pthread_mutex_init(&chain->commit_lock, NULL);
        pthread_cond_init(&chain->commit_ended, NULL);
        r = open_all(&o, path);
        if (r < 0)
                return r;
        chain->downgraded = options->writable && !options->force && !chain->writable;
        *ret = TAKE_PTR(chain);
        return 0;
}

static void chain_free(struct chain *chain)
{
        chain->resolver = resolver_free(chain->resolver);
        chain->gates = gates_free(chain->gates);
        chain->hold = gates_free(chain->hold);
        chain->places = grace_free(chain->places);
        pthread_mutex_destroy(&chain->commit_lock);
        pthread_cond_destroy(&chain->commit_ended);
        free((void *)chain->layers);
        free(chain);
}

int chain_close(struct chain *chain, struct error *err)
{
        int result = 0;

        /* The leaf first: its flush is the one that can fail. */
        for (unsigned i = chain->n_layers; i-- > 0;) {
                struct image *image = chain->layers[i];
                int r = 0;

                if (image->writable && !chain->scratch)
                        r = image_close(image, result == 0 ? err : NULL);
                else
                        image_abandon(image);
                if (r < 0 && result == 0)
                        result = r;
        }
        chain->n_layers = 0;
        chain_free(chain);
        return result;
}

struct chain *chain_abandon(struct chain *chain)
{
        if (!chain)
                return NULL;
        for (unsigned i = chain->n_layers; i-- > 0;)
                image_abandon(chain->layers[i]);
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
        return chain->layers[layer];
}

const char *chain_layer_path(const struct chain *chain, unsigned layer)
{
        return chain->layers[layer]->file->path;
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
