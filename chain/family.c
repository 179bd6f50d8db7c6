/* SPDX-License-Identifier: Apache-2.0 */
/* Chains that share images, and the one way in which the layers of an open chain become others. */
#include <stdlib.h>
#include <string.h>

#include "chain/internal.h"
#include "chain/push.h"

/* --- views */

struct chain_view *chain_view_new(void)
{
        size_t n = CHAIN_MAX_DEPTH + 1;

        return calloc(1, sizeof(struct chain_view) + n * sizeof(struct image *));
}

struct chain_view *chain_view_free(struct chain_view *view)
{
        if (view)
                resolver_free(view->resolver);
        free(view);
        return NULL;
}

int chain_view_complete(struct chain *chain, struct chain_view *view, struct error *err)
{
        return resolver_new(
                view->layers, &view->n_layers, chain->writable, chain->size, &view->resolver, err);
}

void chain_view_put(struct chain *chain, struct chain_view *view)
{
        chain_hold(chain);
        atomic_store(&chain->view, view);
        chain_release(chain);
}

/* --- families */

struct chain_family *chain_family_new(void)
{
        struct chain_family *family = calloc(1, sizeof(*family));

        if (!family)
                return NULL;
        family->places = grace_new();
        if (!family->places) {
                free(family);
                return NULL;
        }
        pthread_mutex_init(&family->lock, NULL);
        pthread_mutex_init(&family->list_lock, NULL);
        return family;
}

struct chain_family *chain_family_free(struct chain_family *family)
{
        if (!family)
                return NULL;
        grace_free(family->places);
        pthread_mutex_destroy(&family->lock);
        pthread_mutex_destroy(&family->list_lock);
        free(family);
        return NULL;
}

void chain_family_join(struct chain *chain)
{
        struct chain_family *family = chain->family;
        struct chain_view *view = chain_view(chain);

        for (unsigned i = 0; i < view_n_layers(view); i++)
                view->layers[i]->n_holders++;
        MUTEX_GUARD(&family->list_lock);
        chain->next_in_family = family->chains;
        family->chains = chain;
}

void chain_family_leave(struct chain *chain)
{
        struct chain_family *family = chain->family;

        MUTEX_GUARD(&family->list_lock);
        for (struct chain **at = &family->chains; *at; at = &(*at)->next_in_family) {
                if (*at != chain)
                        continue;
                *at = chain->next_in_family;
                return;
        }
}

static struct image *find_in(const struct chain *chain, const struct file_stat *st, bool leaves_too)
{
        const struct chain_view *view = chain_view(chain);

        for (unsigned i = 0; i < view_n_layers(view); i++) {
                struct image *image = view->layers[i];
                struct file_stat other;

                if (image->flushes && !image->in_merge && !leaves_too)
                        continue; /* a leaf: nobody else's */
                if (file_stat_get(image->file, &other) == 0 && other.device == st->device &&
                        other.inode == st->inode)
                        return image;
        }
        return NULL;
}

struct image *chain_family_find(
        struct chain_family *family, const struct file_stat *st, bool leaves_too)
{
        struct image *image = NULL;

        for (struct chain *chain = family->chains; chain && !image; chain = chain->next_in_family)
                image = find_in(chain, st, leaves_too);
        return image;
}

bool chain_family_drop(struct chain_family *family, struct image *image)
{
        return --image->n_holders == 0;
}

/* --- replacing */

/* What is to become of one chain. */
struct exchange {
        struct exchange *next;
        struct chain *chain;
        struct chain_view *view, *old;
};

static void exchanges_free(struct exchange *list)
{
        while (list) {
                struct exchange *next = list->next;

                chain_view_free(list->view);
                free(list);
                list = next;
        }
}

/* What goes, and what comes in its place: one for one, or nothing. */
struct change_of_layers {
        const struct image *with; /* in the chains that have it, too; NULL: in every chain */
        struct image *const *old;
        unsigned n_old;
        struct image *new;
};

static bool goes(const struct change_of_layers *change, const struct image *image)
{
        for (unsigned i = 0; i < change->n_old; i++)
                if (change->old[i] == image)
                        return true;
        return false;
}

static bool concerns(const struct change_of_layers *change, const struct chain *chain)
{
        const struct chain_view *view = chain_view(chain);
        bool has_one = false, has_with = !change->with;

        for (unsigned i = 0; i < view_n_layers(view); i++) {
                has_one = has_one || goes(change, view->layers[i]);
                has_with = has_with || view->layers[i] == change->with;
        }
        return has_one && has_with;
}

/* The chain as it is now, but for what changes. */
static int exchange_add(struct exchange **list, struct chain *chain,
        const struct change_of_layers *change, struct error *err)
{
        struct exchange *exchange = calloc(1, sizeof(*exchange));
        unsigned n = 0;

        if (!exchange)
                return fail(err, ENOMEM, "no memory to change a chain");
        exchange->next = *list;
        *list = exchange;
        exchange->chain = chain;
        exchange->old = chain_view(chain);
        exchange->view = chain_view_new();
        if (!exchange->view)
                return fail(err, ENOMEM, "no memory to change a chain");
        for (unsigned i = 0; i < view_n_layers(exchange->old); i++) {
                struct image *image = exchange->old->layers[i];

                if (goes(change, image))
                        image = change->new;
                if (image)
                        exchange->view->layers[n++] = image;
        }
        exchange->view->n_layers = n;
        exchange->view->gate_size = exchange->old->gate_size;
        exchange->view->keeps_blocks = exchange->old->keeps_blocks;
        if (change->new) /* layers count as before */
                exchange->view->drain = exchange->old->drain;
        return chain_view_complete(chain, exchange->view, err);
}

static void exchange_run(struct exchange *exchange, const struct change_of_layers *change)
{
        struct chain *chain = exchange->chain;
        struct chain_view *old = exchange->old;

        for (unsigned i = 0; i < view_n_layers(old); i++) {
                if (!goes(change, old->layers[i]))
                        continue;
                old->layers[i]->n_holders--;
                if (change->new)
                        change->new->n_holders++;
        }
        chain_view_put(chain, exchange->view);
        exchange->view = old; /* what exchanges_free() ends, when nobody has it */
}

static int change_layers(
        struct chain_family *family, const struct change_of_layers *change, struct error *err)
{
        struct exchange *list = NULL;
        int r = 0;

        pthread_mutex_lock(&family->lock);
        for (struct chain *chain = family->chains; chain && r == 0; chain = chain->next_in_family)
                if (concerns(change, chain))
                        r = exchange_add(&list, chain, change, err);
        for (struct exchange *exchange = list; exchange && r == 0; exchange = exchange->next)
                exchange_run(exchange, change);
        pthread_mutex_unlock(&family->lock);
        if (r == 0)
                grace_wait(family->places);
        exchanges_free(list);
        return r;
}

int chain_family_replace(
        struct chain_family *family, struct image *old, struct image *new, struct error *err)
{
        return change_layers(family, &(struct change_of_layers){NULL, &old, 1, new}, err);
}

int chain_family_remove(struct chain_family *family, const struct image *with,
        struct image *const *old, unsigned n, struct error *err)
{
        return change_layers(family, &(struct change_of_layers){with, old, n, NULL}, err);
}

bool chain_family_moves(const struct chain *but, const struct image *with,
        struct image *const *old, unsigned n)
{
        const struct change_of_layers change = {with, old, n, NULL};
        bool moves = false;

        MUTEX_GUARD(&but->family->lock);
        for (struct chain *chain = but->family->chains; chain && !moves;
                chain = chain->next_in_family)
                moves = chain != but && chain_view(chain)->gate_size && concerns(&change, chain);
        return moves;
}

void chain_family_forget(struct chain_family *family, uint64_t offset, uint64_t length)
{
        uint64_t ticket = grace_enter(family->places);

        pthread_mutex_lock(&family->list_lock);
        for (struct chain *chain = family->chains; chain; chain = chain->next_in_family)
                if (offset < chain->size)
                        resolver_dropped(chain_view(chain)->resolver, offset,
                                length < chain->size - offset ? length : chain->size - offset);
        pthread_mutex_unlock(&family->list_lock);
        grace_leave(family->places, ticket);
}
