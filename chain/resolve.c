/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/resolve.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"
#include "base/grace.h"
#include "base/mutant.h"

#define PAGE_BLOCKS    64u
#define NOBODY         0xffffu /* an owner: layer + 1, or nobody, or 0 or one from here on: unknown */
#define UNKNOWN        0x8000u
#define N_UNKNOWN      (NOBODY - UNKNOWN)
#define N_STRIPES      64u
#define N_HEATS        1024u /* counters of reads that went through many layers, by block */
#define HOT            3u    /* so many, and the block gets its resolved map */
#define MANY_LAYERS    2u
#define MAX_MAP_BYTES  (12 * MIB) /* of resolved maps, in the whole process */
#define MAX_FLAT_BLOCK (UINT64_C(1) << 21)

static _Atomic uint64_t map_bytes;

/* The layer of each sector of one block (layer + 1, or NOBODY), and where the block begins in the
 * file of each layer that has sectors of it: a block's data lies in one piece (formats/format.h). */
struct resolved {
        struct grace_call call;
        uint64_t block;
        uint32_t n_sectors;
        uint32_t index;    /* in the resolver's list */
        uint32_t n_layers; /* as many as there were when it was built */
        _Atomic bool used;
        uint64_t *starts; /* by layer, behind owners; not of the one that was the leaf */
        _Atomic uint16_t owners[];
};

struct page {
        _Atomic uint16_t owners[PAGE_BLOCKS];
        _Atomic(struct resolved *) maps[PAGE_BLOCKS];
};

struct resolver {
        /* immutable after new */
        struct image *const *layers;
        const _Atomic unsigned *n_layers;
        bool may_grow; /* the leaf changes, and there may be another */
        uint64_t size, n_blocks;
        unsigned shift; /* of the smallest block */
        _Atomic(struct page *) *pages;
        _Atomic uint32_t n_dropped; /* times that something became unknown again */

        pthread_mutex_t stripes[N_STRIPES]; /* by block: building and changing its resolved map */
        _Atomic uint8_t heats[N_HEATS];

        pthread_mutex_t list_lock; /* after a stripe */
        /* guarded by list_lock */
        struct resolved **list;
        uint32_t n_list, list_capacity, hand;
        _Atomic unsigned n_building; /* maps */
};

static pthread_mutex_t *stripe_of(struct resolver *r, uint64_t block)
{
        return &r->stripes[block % N_STRIPES];
}

static unsigned smallest_shift(struct image *const *layers, unsigned n_layers)
{
        uint64_t smallest = MAX_FLAT_BLOCK;

        for (unsigned i = 0; i < n_layers; i++)
                if (layers[i]->block_size && layers[i]->block_size < smallest)
                        smallest = layers[i]->block_size;
        return log2_of(smallest);
}

static unsigned count_layers(const struct resolver *r)
{
        return atomic_load_explicit(r->n_layers, memory_order_acquire);
}

int resolver_new(struct image *const *layers, const _Atomic unsigned *count, bool may_grow,
        uint64_t size, struct resolver **ret, struct error *err)
{
        _cleanup_free_ struct resolver *r = calloc(1, sizeof(*r));
        unsigned n_layers = atomic_load(count);

        if (!r || !grace_readers())
                return fail(err, ENOMEM, "no memory for a chain of %u layers", n_layers);
        r->layers = layers;
        r->n_layers = count;
        r->may_grow = may_grow;
        r->size = size;
        r->shift = smallest_shift(layers, n_layers);
        r->n_blocks = div_round_up(size, UINT64_C(1) << r->shift);
        if (n_layers > 1 || may_grow) {
                r->pages = calloc(div_round_up(r->n_blocks, PAGE_BLOCKS) + 1, sizeof(*r->pages));
                if (!r->pages)
                        return fail(err, ENOMEM, "no memory for the owner map of %llu blocks",
                                (unsigned long long)r->n_blocks);
        }
        for (unsigned i = 0; i < N_STRIPES; i++)
                pthread_mutex_init(&r->stripes[i], NULL);
        pthread_mutex_init(&r->list_lock, NULL);
        *ret = TAKE_PTR(r);
        return 0;
}

static size_t owners_size(uint32_t n_sectors)
{
        return round_up_to(n_sectors * sizeof(uint16_t), sizeof(uint64_t));
}

uint64_t resolver_block_size(const struct resolver *r)
{
        return UINT64_C(1) << r->shift;
}

static size_t size_for(uint32_t n_sectors, uint32_t n_layers)
{
        return sizeof(struct resolved) + owners_size(n_sectors) + n_layers * sizeof(uint64_t);
}

static size_t resolved_size(const struct resolved *map)
{
        return size_for(map->n_sectors, map->n_layers);
}

static struct resolved *resolved_new(uint64_t block, uint32_t n_sectors, uint32_t n_layers)
{
        struct resolved *map = calloc(1, size_for(n_sectors, n_layers));

        if (!map)
                return NULL;
        map->n_layers = n_layers;
        map->block = block;
        map->n_sectors = n_sectors;
        map->starts = (uint64_t *)((char *)map->owners + owners_size(n_sectors));
        return map;
}

static void free_map(struct grace_call *call)
{
        free((char *)call - offsetof(struct resolved, call));
}

struct resolver *resolver_free(struct resolver *r)
{
        if (!r)
                return NULL;
        for (uint32_t i = 0; i < r->n_list; i++) {
                atomic_fetch_sub(&map_bytes, resolved_size(r->list[i]));
                free(r->list[i]);
        }
        for (uint64_t i = 0; r->pages && i * PAGE_BLOCKS < r->n_blocks; i++)
                free(atomic_load(&r->pages[i]));
        for (unsigned i = 0; i < N_STRIPES; i++)
                pthread_mutex_destroy(&r->stripes[i]);
        pthread_mutex_destroy(&r->list_lock);
        free((void *)r->pages);
        free(r->list);
        free(r);
        return NULL;
}

static struct page *page_of(const struct resolver *r, uint64_t block)
{
        return atomic_load_explicit(&r->pages[block / PAGE_BLOCKS], memory_order_acquire);
}

/* NULL without memory: then there are no hints, and everything is found by looking. */
static struct page *page_make(struct resolver *r, uint64_t block)
{
        struct page *page = page_of(r, block), *other = NULL;

        if (page)
                return page;
        page = calloc(1, sizeof(*page));
        if (!page)
                return NULL;
        if (atomic_compare_exchange_strong(&r->pages[block / PAGE_BLOCKS], &other, page)) {
                atomic_thread_fence(memory_order_seq_cst); /* see for_each_block */
                return page;
        }
        free(page);
        return other;
}

/* --- looking through the layers */

static struct chain_extent absent(uint64_t length, unsigned n_layers)
{
        return (struct chain_extent){.length = length, .kind = EXTENT_ABSENT, .depth = n_layers};
}

static bool has_block(const struct image *image, uint64_t offset)
{
        if (offset >= image->size)
                return false; /* a parent smaller than its child */
        return !image->format->holds || image->format->holds(image, offset);
}

/* From layer @top down; the range lies inside one block of the smallest size. *n_looked: layers
 * that have a block there and were asked. A child smaller than the disk ends the run; what no layer
 * has is absent. Depths are those in a chain of @n_layers, of which @top is one. */
static int walk(struct resolver *r, unsigned n_layers, unsigned top, uint64_t offset,
        uint64_t length, unsigned map_flags, struct chain_extent *ret, unsigned *n_looked)
{
        *n_looked = 0;
        for (unsigned i = top + 1; i-- > 0;) {
                struct image *image = r->layers[i];
                struct extent extent;
                int result;

                (void)MUTANT("drain-no-grace-up"); /* here another thread may run */
                if (!has_block(image, offset))
                        continue;
                length = MIN_OF(length, image->size - offset);
                result = image->format->map(image, offset, length, map_flags, &extent);
                if (result < 0)
                        return result;
                ++*n_looked;
                length = extent.length;
                if (extent.kind == EXTENT_ABSENT)
                        continue;
                *ret = (struct chain_extent){
                        .length = length,
                        .kind = extent.kind,
                        .depth = n_layers - 1 - i,
                        .file = image->file,
                        .file_offset = extent.file_offset,
                };
                return 0;
        }
        *ret = absent(length, n_layers);
        return 0;
}

static uint64_t block_rest(const struct resolver *r, uint64_t offset, uint64_t length)
{
        uint64_t rest = (UINT64_C(1) << r->shift) - (offset & ((UINT64_C(1) << r->shift) - 1));

        return MIN_OF(length, rest);
}

/* The topmost layer with a block there, + 1, or NOBODY. */
static uint16_t find_owner(const struct resolver *r, uint64_t offset)
{
        for (unsigned i = count_layers(r); i-- > 0;)
                if (has_block(r->layers[i], offset))
                        return (uint16_t)(i + 1);
        return NOBODY;
}

static bool is_unknown(uint16_t owner)
{
        return owner == 0 || (owner >= UNKNOWN && owner != NOBODY);
}

static uint16_t owner_of(struct resolver *r, uint64_t block)
{
        struct page *page = page_make(r, block);
        _Atomic uint16_t *at = page ? &page->owners[block % PAGE_BLOCKS] : NULL;
        uint16_t seen = at ? atomic_load_explicit(at, memory_order_acquire) : 0, owner;

        if (!is_unknown(seen))
                return seen;
        /* The layers are counted in there, with the page in view: a writer in a leaf that came later
         * sees the page and corrects what we put into it. */
        owner = find_owner(r, block << r->shift);
        (void)MUTANT("stale-owner"); /* no mutant yet: here another thread may run */
        /* Only over the "unknown" that we saw: a writer that was quicker knows better, and where a block
         * moved meanwhile to another layer (E11) it is another "unknown". */
        if (at && !atomic_compare_exchange_strong(at, &seen, owner) && !is_unknown(seen))
                owner = seen;
        return owner;
}

/* --- resolved maps */

static struct resolved *map_of(const struct resolver *r, uint64_t block)
{
        struct page *page = page_of(r, block);

        if (!page)
                return NULL;
        return atomic_load_explicit(&page->maps[block % PAGE_BLOCKS], memory_order_acquire);
}

/* Under list_lock and, unless the map cannot change, its stripe. */
static void map_remove(struct resolver *r, struct resolved *map)
{
        struct page *page = page_of(r, map->block);
        struct resolved *last = r->list[--r->n_list];

        atomic_store(&page->maps[map->block % PAGE_BLOCKS], NULL);
        r->list[map->index] = last;
        last->index = map->index;
        atomic_fetch_sub(&map_bytes, resolved_size(map));
        map->call.run = free_map;
        grace_defer(grace_readers(), &map->call);
}

/* The clock's hand: what was not read since it last came by goes. A map whose stripe somebody else
 * holds is passed over. */
static void evict_maps(struct resolver *r, uint64_t keep_block)
{
        for (uint32_t looked = 0; looked < 2 * r->n_list && r->n_list > 1; looked++) {
                struct resolved *map;
                pthread_mutex_t *stripe;

                if (atomic_load(&map_bytes) <= MAX_MAP_BYTES)
                        return;
                r->hand = r->hand + 1 < r->n_list ? r->hand + 1 : 0;
                map = r->list[r->hand];
                if (map->block == keep_block || atomic_exchange(&map->used, false))
                        continue;
                stripe = stripe_of(r, map->block);
                if (stripe == stripe_of(r, keep_block)) { /* held by us */
                        map_remove(r, map);
                } else if (pthread_mutex_trylock(stripe) == 0) {
                        map_remove(r, map);
                        pthread_mutex_unlock(stripe);
                }
        }
}

static int map_add(struct resolver *r, struct resolved *map)
{
        struct page *page = page_make(r, map->block);

        MUTEX_GUARD(&r->list_lock);
        if (!page)
                return -ENOMEM;
        if (r->n_list == r->list_capacity) {
                uint32_t capacity = r->list_capacity ? 2 * r->list_capacity : 64;
                struct resolved **list = reallocarray(r->list, capacity, sizeof(*list));

                if (!list)
                        return -ENOMEM;
                r->list = list;
                r->list_capacity = capacity;
        }
        map->index = r->n_list;
        r->list[r->n_list++] = map;
        atomic_fetch_add(&map_bytes, resolved_size(map));
        atomic_store_explicit(&page->maps[map->block % PAGE_BLOCKS], map, memory_order_release);
        evict_maps(r, map->block);
        return 0;
}

static int fill_map(struct resolver *r, struct resolved *map)
{
        uint64_t start = map->block << r->shift;
        uint64_t length = (uint64_t)map->n_sectors * SECTOR_SIZE;

        for (uint64_t at = 0; at < length;) {
                struct chain_extent extent;
                unsigned n_looked;
                uint16_t owner;
                int result = walk(r, map->n_layers, map->n_layers - 1, start + at, length - at, 0,
                        &extent, &n_looked);

                if (result < 0)
                        return result;
                owner = extent.kind == EXTENT_DATA ? (uint16_t)(map->n_layers - extent.depth)
                                                   : NOBODY;
                if (extent.kind == EXTENT_ZERO)
                        return -ENOTSUP; /* no VHD says so */
                if ((at + extent.length) % SECTOR_SIZE)
                        return -ENOTSUP; /* a raw root that ends inside a sector: two have it */
                for (uint64_t s = at / SECTOR_SIZE;
                        s < div_round_up(at + extent.length, SECTOR_SIZE); s++)
                        atomic_store_explicit(&map->owners[s], owner, memory_order_relaxed);
                if (owner != NOBODY)
                        map->starts[owner - 1] = extent.file_offset - at;
                at += extent.length;
        }
        return 0;
}

/* Under the stripe's lock nobody's bits get into the leaf without passing by here: a writer sets
 * them first and then waits for the lock, so either fill_map() sees them or the writer sees the
 * map. */
static void build_map(struct resolver *r, uint64_t block)
{
        uint64_t size = MIN_OF(r->size - (block << r->shift), UINT64_C(1) << r->shift);
        struct resolved *map;

        MUTEX_GUARD(stripe_of(r, block));
        if (map_of(r, block) || size % SECTOR_SIZE)
                return;
        map = resolved_new(block, (uint32_t)(size / SECTOR_SIZE), count_layers(r));
        if (!map)
                return;
        atomic_fetch_add(&r->n_building, 1); /* before the first bit is looked at: is_behind() */
        /* Failures are no harm: the next read finds its way without a map. */
        if (fill_map(r, map) < 0 || map_add(r, map) < 0)
                free(map);
        atomic_fetch_sub(&r->n_building, 1);
}

static bool is_hot(struct resolver *r, uint64_t block)
{
        _Atomic uint8_t *heat = &r->heats[block % N_HEATS];
        uint8_t seen = atomic_load_explicit(heat, memory_order_relaxed);

        if (seen >= HOT)
                return true;
        atomic_store_explicit(heat, (uint8_t)(seen + 1), memory_order_relaxed);
        return false;
}

/* A block was found through many layers. One that is read often gets its map now; building may
 * read bitmaps, so who must not wait is sent away to come back as somebody who may. */
static int note_walk(struct resolver *r, uint64_t block, unsigned map_flags)
{
        if (!is_hot(r, block))
                return 0;
        if (map_flags & MAP_NOWAIT)
                return -EAGAIN;
        atomic_store_explicit(&r->heats[block % N_HEATS], 0, memory_order_relaxed);
        build_map(r, block);
        return 0;
}

/* A layer that was frozen when the map was built keeps what it has, where it has it. The one that was
 * the leaf then has to be asked each time: the map knows of its sectors, and not of its places. */
static int from_layer(struct image *layer, uint64_t offset, uint64_t length, unsigned map_flags,
        struct chain_extent *ret)
{
        struct extent extent;
        int result = layer->format->map(layer, offset, length, map_flags, &extent);

        if (result < 0)
                return result;
        ret->length = extent.length;
        ret->file_offset = extent.file_offset;
        return extent.kind == EXTENT_DATA; /* else freed meanwhile */
}

/* 1: answered from the map. 0: there is none, or it does not help. */
static int from_map(struct resolver *r, uint64_t offset, uint64_t length, unsigned map_flags,
        struct chain_extent *ret)
{
        uint64_t block = offset >> r->shift;
        uint32_t first = (uint32_t)((offset - (block << r->shift)) / SECTOR_SIZE), n = 1;
        uint32_t last = (uint32_t)((offset + length - 1 - (block << r->shift)) / SECTOR_SIZE);
        struct resolved *map = map_of(r, block);
        unsigned n_layers;
        uint64_t end;
        uint16_t owner;

        if (!map || last >= map->n_sectors)
                return 0;
        if (!atomic_load_explicit(&map->used, memory_order_relaxed))
                atomic_store_explicit(&map->used, true, memory_order_relaxed);
        owner = atomic_load_explicit(&map->owners[first], memory_order_acquire);
        while (first + n <= last &&
                atomic_load_explicit(&map->owners[first + n], memory_order_relaxed) == owner)
                n++;
        end = (block << r->shift) + (uint64_t)(first + n) * SECTOR_SIZE;
        length = MIN_OF(length, end - offset);
        n_layers = count_layers(r);
        if (owner == NOBODY) {
                *ret = absent(length, n_layers);
                return 1;
        }
        *ret = (struct chain_extent){
                .length = length,
                .kind = EXTENT_DATA,
                .depth = n_layers - owner,
                .file = r->layers[owner - 1]->file,
                .file_offset = map->starts[owner - 1] + (offset - (block << r->shift)),
        };
        if (!r->may_grow || owner < map->n_layers)
                return 1;
        return from_layer(r->layers[owner - 1], offset, length, map_flags, ret);
}

/* --- public */

int resolve_below(struct resolver *r, unsigned top, uint64_t offset, uint64_t length,
        unsigned map_flags, struct chain_extent *ret)
{
        unsigned n_looked;

        return walk(r, count_layers(r), top, offset, block_rest(r, offset, length), map_flags, ret,
                &n_looked);
}

int resolve(struct resolver *r, uint64_t offset, uint64_t length, unsigned map_flags,
        struct chain_extent *ret)
{
        uint64_t block = offset >> r->shift, ticket;
        unsigned n_layers = count_layers(r), n_looked;
        uint16_t owner;
        int result;

        length = block_rest(r, offset, length);
        if (n_layers == 1)
                return walk(r, 1, 0, offset, length, map_flags, ret, &n_looked);
        if (!(map_flags & MAP_HOLES)) {
                ticket = grace_enter(grace_readers());
                result = from_map(r, offset, length, map_flags | MAP_NOWAIT, ret);
                grace_leave(grace_readers(), ticket);
                if (result == 1)
                        return 0;
        }
        owner = owner_of(r, block);
        n_layers = count_layers(r); /* again: the owner may be one that was put on top since */
        if (owner == NOBODY) {
                *ret = absent(length, n_layers);
                return 0;
        }
        result = walk(r, n_layers, owner - 1u, offset, length, map_flags, ret, &n_looked);
        if (result == 0 && n_looked > MANY_LAYERS)
                result = note_walk(r, block, map_flags);
        return result;
}

/* Calls @each for every block of [offset, offset + length) that has a page, with its stripe held. */
static void for_each_block(struct resolver *r, uint64_t offset, uint64_t length,
        void (*each)(
                struct resolver *r, struct page *page, uint64_t block, uint64_t from, uint64_t to))
{
        uint64_t end = offset + length;

        /* The leaf's bits are set; a reader that makes a page after we saw none looks at them
         * after that (page_make): one of the two sees the other. */
        atomic_thread_fence(memory_order_seq_cst);
        for (uint64_t block = offset >> r->shift; block << r->shift < end; block++) {
                uint64_t start = block << r->shift;
                struct page *page = page_of(r, block);

                if (!page)
                        continue; /* nothing is known of it, so nothing can be wrong */
                MUTEX_GUARD(stripe_of(r, block));
                each(r, page, block, MAX_OF(offset, start) - start,
                        MIN_OF(end, start + (UINT64_C(1) << r->shift)) - start);
        }
}

static void drop_map(struct resolver *r, struct resolved *map)
{
        MUTEX_GUARD(&r->list_lock);
        map_remove(r, map);
}

static void note_change(
        struct resolver *r, struct page *page, uint64_t block, uint64_t from, uint64_t to)
{
        struct resolved *map = atomic_load(&page->maps[block % PAGE_BLOCKS]);
        unsigned n_layers = count_layers(r);

        atomic_store_explicit(
                &page->owners[block % PAGE_BLOCKS], (uint16_t)n_layers, memory_order_release);
        if (map && map->n_layers < n_layers) { /* it has no place for the new leaf (E10) */
                drop_map(r, map);
                return;
        }
        for (uint64_t s = from / SECTOR_SIZE; map && s < div_round_up(to, SECTOR_SIZE); s++)
                atomic_store_explicit(&map->owners[s], (uint16_t)n_layers, memory_order_release);
}

void resolver_changed(struct resolver *r, uint64_t offset, uint64_t length)
{
        if (count_layers(r) > 1)
                for_each_block(r, offset, length, note_change);
}

/* Does what is known of the block say that somebody else has some of it, or nothing? */
static bool is_behind(
        struct resolver *r, const struct page *page, uint64_t block, uint64_t from, uint64_t to)
{
        unsigned n_layers = count_layers(r);
        const struct resolved *map;
        bool behind = false;
        uint64_t ticket;

        /* A map that is being built may have been before the bits: whoever waits for its stripe comes after it. */
        if (atomic_load(&r->n_building) > 0 ||
                atomic_load_explicit(&page->owners[block % PAGE_BLOCKS], memory_order_acquire) !=
                        n_layers)
                return true;
        if (!atomic_load_explicit(&page->maps[block % PAGE_BLOCKS], memory_order_acquire))
                return false;
        ticket = grace_enter(grace_readers());
        map = atomic_load_explicit(&page->maps[block % PAGE_BLOCKS], memory_order_acquire);
        for (uint64_t s = from / SECTOR_SIZE; map && !behind && s < div_round_up(to, SECTOR_SIZE);
                s++)
                behind = s >= map->n_sectors ||
                        atomic_load_explicit(&map->owners[s], memory_order_relaxed) != n_layers;
        grace_leave(grace_readers(), ticket);
        return behind;
}

void resolver_confirm(struct resolver *r, uint64_t offset, uint64_t length)
{
        uint64_t end = offset + length;

        for (uint64_t block = offset >> r->shift; count_layers(r) > 1 && block << r->shift < end;
                block++) {
                uint64_t start = block << r->shift, size = UINT64_C(1) << r->shift;
                const struct page *page = page_of(r, block);

                if (page &&
                        is_behind(r, page, block, MAX_OF(offset, start) - start,
                                MIN_OF(end, start + size) - start)) {
                        resolver_changed(r, offset, length);
                        return;
                }
        }
}

static void note_drop(
        struct resolver *r, struct page *page, uint64_t block, uint64_t from, uint64_t to)
{
        struct resolved *map = atomic_load(&page->maps[block % PAGE_BLOCKS]);

        atomic_store(&page->owners[block % PAGE_BLOCKS],
                (uint16_t)(UNKNOWN + atomic_fetch_add(&r->n_dropped, 1) % N_UNKNOWN));
        if (map)
                drop_map(r, map);
}

void resolver_dropped(struct resolver *r, uint64_t offset, uint64_t length)
{
        if (count_layers(r) > 1)
                for_each_block(r, offset, length, note_drop);
}
