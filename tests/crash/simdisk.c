/* SPDX-License-Identifier: Apache-2.0 */
/* Design: a file is two page maps, what the cache shows and what is durable, and between them a list
 * of versions: one a sector a change, in order, that a completed sync folds into the durable map.
 * Pages are shared and copied when written, so a version is a pointer to the page as it was then,
 * and a clone of the world is a handful of pointers. */
#include "tests/crash/simdisk_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"
#include "base/bytes.h"

void *must(void *memory)
{
        assert(memory != NULL);
        return memory;
}

/* ---- names: one string a path for the whole program ---- */

const char *sim_intern(const char *path)
{
        static char *table[4 * MAX_NAMES];
        uint64_t at = XXH3_64bits(path, strlen(path)) % (4 * MAX_NAMES);

        while (table[at] && strcmp(table[at], path) != 0)
                at = (at + 1) % (4 * MAX_NAMES);
        if (!table[at])
                table[at] = must(strdup(path));
        return table[at];
}

/* ---- pages ---- */

static struct page *page_ref(struct page *page)
{
        if (page)
                page->refs++;
        return page;
}

static void page_unref(struct page *page)
{
        if (page && --page->refs == 0)
                free(page);
}

static uint64_t page_hash(struct page *page)
{
        if (!page->hashed) {
                page->hash = bytes_are_zero(page->data, SIM_PAGE)
                        ? 0
                        : XXH3_64bits(page->data, SIM_PAGE) | 1;
                page->hashed = true;
        }
        return page->hash;
}

static void map_copy(struct page_map *to, const struct page_map *from)
{
        to->n = from->n;
        to->pages = must(malloc((from->n + 1) * sizeof(struct page *)));
        for (uint32_t i = 0; i < from->n; i++)
                to->pages[i] = page_ref(from->pages[i]);
}

static void map_done(struct page_map *map)
{
        for (uint32_t i = 0; i < map->n; i++)
                page_unref(map->pages[i]);
        free(map->pages);
}

struct page *map_get(const struct page_map *map, uint64_t index)
{
        return index < map->n ? map->pages[index] : NULL;
}

/* The page, for writing, with nobody else looking at it. */
static struct page *map_own(struct page_map *map, uint64_t index)
{
        struct page *page;

        if (index >= map->n) {
                uint32_t n = (uint32_t)index + 1;

                map->pages = must(realloc(map->pages, (n + 1) * sizeof(struct page *)));
                memset(map->pages + map->n, 0, (n - map->n) * sizeof(struct page *));
                map->n = n;
        }
        page = map->pages[index];
        if (!page || page->refs > 1) {
                struct page *copy = must(malloc(sizeof(*copy)));

                if (page)
                        memcpy(copy->data, page->data, SIM_PAGE);
                else
                        memset(copy->data, 0, SIM_PAGE);
                page_unref(page);
                copy->refs = 1;
                page = map->pages[index] = copy;
        }
        page->hashed = false;
        return page;
}

void map_read(const struct page_map *map, uint8_t *data, size_t length, uint64_t offset)
{
        while (length > 0) {
                size_t in = offset % SIM_PAGE, part = MIN_OF(length, (size_t)SIM_PAGE - in);
                struct page *page = map_get(map, offset / SIM_PAGE);

                if (page)
                        memcpy(data, page->data + in, part);
                else
                        memset(data, 0, part);
                data += part;
                offset += part;
                length -= part;
        }
}

static void map_set_sector(struct page_map *map, uint32_t sector, const uint8_t *bytes)
{
        uint32_t at = sector % SECTORS_A_PAGE * SIM_SECTOR;

        if (!bytes && !map_get(map, sector / SECTORS_A_PAGE))
                return;
        if (bytes)
                memcpy(map_own(map, sector / SECTORS_A_PAGE)->data + at, bytes, SIM_SECTOR);
        else
                memset(map_own(map, sector / SECTORS_A_PAGE)->data + at, 0, SIM_SECTOR);
}

/* Nothing is left at and behind @size. */
static void map_cut(struct page_map *map, uint64_t size)
{
        uint32_t n = (uint32_t)div_round_up(size, SIM_PAGE);

        for (uint32_t i = n; i < map->n; i++)
                page_unref(map->pages[i]);
        map->n = MIN_OF(map->n, n);
        if (size % SIM_PAGE && map_get(map, size / SIM_PAGE))
                memset(map_own(map, size / SIM_PAGE)->data + size % SIM_PAGE, 0,
                        SIM_PAGE - size % SIM_PAGE);
}

static uint64_t map_hash(const struct page_map *map, uint64_t size)
{
        uint64_t hash = random_mix(size + 1);

        for (uint32_t i = 0; i < map->n; i++) {
                uint64_t h = map->pages[i] ? page_hash(map->pages[i]) : 0;

                if (h)
                        hash += random_mix(h + i * UINT64_C(0x9e3779b97f4a7c15));
        }
        return hash;
}

static const uint8_t *version_bytes(const struct version *version)
{
        return version->page ? version->page->data + version->sector % SECTORS_A_PAGE * SIM_SECTOR
                             : NULL;
}

/* ---- inodes ---- */

static struct inode *inode_ref(struct inode *inode)
{
        if (inode)
                inode->refs++;
        return inode;
}

static void inode_unref(struct inode *inode)
{
        if (!inode || --inode->refs > 0)
                return;
        map_done(&inode->cache);
        map_done(&inode->durable);
        for (uint32_t i = 0; i < inode->n_versions; i++)
                page_unref(inode->versions[i].page);
        free(inode->versions);
        free(inode->sizes);
        free(inode);
}

struct inode *inode_new(void)
{
        struct inode *inode = must(calloc(1, sizeof(*inode)));

        inode->refs = 1;
        return inode;
}

static struct inode *inode_clone(const struct inode *from)
{
        struct inode *inode = inode_new();

        inode->size = from->size;
        inode->durable_size = from->durable_size;
        map_copy(&inode->cache, &from->cache);
        map_copy(&inode->durable, &from->durable);
        inode->n_versions = inode->room_versions = from->n_versions;
        inode->versions = must(malloc((from->n_versions + 1) * sizeof(struct version)));
        for (uint32_t i = 0; i < from->n_versions; i++) {
                inode->versions[i] = from->versions[i];
                page_ref(inode->versions[i].page);
        }
        inode->n_sizes = inode->room_sizes = from->n_sizes;
        inode->sizes = must(malloc((from->n_sizes + 1) * sizeof(struct size_change)));
        if (from->n_sizes)
                memcpy(inode->sizes, from->sizes, from->n_sizes * sizeof(struct size_change));
        return inode;
}

static bool inode_is_settled(const struct inode *inode)
{
        return inode->n_versions == 0 && inode->n_sizes == 0;
}

static void inode_settle(struct inode *inode)
{
        for (uint32_t i = 0; i < inode->n_versions; i++)
                page_unref(inode->versions[i].page);
        inode->n_versions = inode->n_sizes = 0;
        map_done(&inode->durable);
        map_copy(&inode->durable, &inode->cache);
        inode->durable_size = inode->size;
}

static void add_version(
        struct inode *inode, uint32_t sector, uint32_t seq, struct page *page, uint32_t truncation)
{
        if (inode->n_versions == inode->room_versions) {
                inode->room_versions = 2 * inode->room_versions + 16;
                inode->versions = must(
                        realloc(inode->versions, inode->room_versions * sizeof(struct version)));
        }
        inode->versions[inode->n_versions++] = (struct version){
                .sector = sector, .seq = seq, .page = page_ref(page), .truncation = truncation};
}

static void add_size(struct inode *inode, uint32_t seq, bool is_set, uint32_t sector, uint64_t size)
{
        if (inode->n_sizes == inode->room_sizes) {
                inode->room_sizes = 2 * inode->room_sizes + 4;
                inode->sizes =
                        must(realloc(inode->sizes, inode->room_sizes * sizeof(struct size_change)));
        }
        inode->sizes[inode->n_sizes++] =
                (struct size_change){.seq = seq, .is_set = is_set, .sector = sector, .size = size};
}

/* One piece of a write reaches the cache. */
void inode_write(
        struct inode *inode, uint32_t seq, const uint8_t *data, size_t length, uint64_t offset)
{
        uint64_t end = offset + length;

        for (uint64_t at = offset; at < end;) {
                size_t in = at % SIM_PAGE, part = MIN_OF(end - at, SIM_PAGE - in);
                struct page *page = map_own(&inode->cache, at / SIM_PAGE);

                memcpy(page->data + in, data, part);
                data += part;
                for (uint64_t s = at / SIM_SECTOR; s * SIM_SECTOR < at + part; s++)
                        add_version(inode, (uint32_t)s, seq, page, 0);
                at += part;
        }
        if (end > inode->size) {
                inode->size = end;
                add_size(inode, seq, false, (uint32_t)((end - 1) / SIM_SECTOR), end);
        }
}

/* Has this sector ever been anything but zeros since the last sync? */
static bool sector_is_hole(const struct inode *inode, uint64_t sector)
{
        if (map_get(&inode->cache, sector / SECTORS_A_PAGE) ||
                map_get(&inode->durable, sector / SECTORS_A_PAGE))
                return false;
        for (uint32_t i = 0; i < inode->n_versions; i++)
                if (inode->versions[i].sector == sector)
                        return false;
        return true;
}

void inode_zero(
        struct inode *inode, uint32_t seq, uint64_t offset, uint64_t end, uint32_t truncation)
{
        for (uint64_t s = offset / SIM_SECTOR; s * SIM_SECTOR < end; s++) {
                uint64_t index = s / SECTORS_A_PAGE;
                uint64_t from = MAX_OF(offset, s * SIM_SECTOR);
                uint64_t to = MIN_OF(end, (s + 1) * SIM_SECTOR);
                struct page *page = NULL;

                if (sector_is_hole(inode, s))
                        continue;
                if (map_get(&inode->cache, index)) {
                        page = map_own(&inode->cache, index);
                        memset(page->data + from % SIM_PAGE, 0, to - from);
                }
                add_version(inode, (uint32_t)s, seq, page, truncation);
        }
        /* Whole pages of nothing take no space. */
        for (uint64_t i = div_round_up(offset, SIM_PAGE); (i + 1) * SIM_PAGE <= end; i++)
                if (map_get(&inode->cache, i)) {
                        page_unref(inode->cache.pages[i]);
                        inode->cache.pages[i] = NULL;
                }
}

void inode_truncate(struct inode *inode, uint32_t seq, uint64_t size)
{
        if (size < inode->size)
                inode_zero(inode, seq, size, inode->size, seq);
        if (size != inode->size)
                add_size(inode, seq, true, 0, size);
        inode->size = size;
        map_cut(&inode->cache, size);
}

/* Does anything that is folded make the truncation @seq durable: a later growth of the file? */
static bool truncation_is_forced(
        const struct inode *inode, uint32_t seq, uint32_t upto, uint32_t first, uint32_t last)
{
        for (uint32_t i = 0; i < inode->n_sizes; i++) {
                const struct size_change *size = &inode->sizes[i];

                if (size->is_set || size->seq <= seq || size->seq > upto)
                        continue;
                if (size->sector >= first && size->sector <= last)
                        return true;
        }
        return false;
}

void inode_fold(struct inode *inode, uint32_t upto, uint32_t first, uint32_t last, bool all)
{
        uint32_t n = 0, n_sizes = 0, cut = 0;
        bool *folded = must(calloc(inode->n_versions + 1, sizeof(bool)));

        for (uint32_t i = 0; i < inode->n_sizes; i++)
                if (inode->sizes[i].is_set && inode->sizes[i].seq <= upto &&
                        (all ||
                                truncation_is_forced(
                                        inode, inode->sizes[i].seq, upto, first, last)))
                        cut = inode->sizes[i].seq;
        for (uint32_t i = 0; i < inode->n_versions; i++) {
                struct version *v = &inode->versions[i];

                if (v->seq > upto || v->lost)
                        continue;
                if (v->truncation ? v->truncation > cut : v->sector < first || v->sector > last)
                        continue;
                map_set_sector(&inode->durable, v->sector, version_bytes(v));
                folded[i] = true;
        }
        /* A growth is durable with any durable version of its last sector since. */
        for (uint32_t i = 0; i < inode->n_sizes; i++) {
                struct size_change *size = &inode->sizes[i];
                bool done = size->seq <= cut;

                for (uint32_t k = 0; !size->is_set && k < inode->n_versions && !done; k++)
                        done = folded[k] && inode->versions[k].sector == size->sector &&
                                inode->versions[k].seq >= size->seq;
                if (!done) {
                        inode->sizes[n_sizes++] = *size;
                        continue;
                }
                if (size->is_set)
                        inode->durable_size = size->size;
                else
                        inode->durable_size = MAX_OF(inode->durable_size, size->size);
        }
        inode->n_sizes = n_sizes;
        map_cut(&inode->durable, inode->durable_size);
        /* Gone are the folded ones, and what they lie over. */
        for (uint32_t i = 0; i < inode->n_versions; i++) {
                bool gone = folded[i];

                for (uint32_t k = i + 1; k < inode->n_versions && !gone; k++)
                        gone = folded[k] && inode->versions[k].sector == inode->versions[i].sector;
                if (gone)
                        page_unref(inode->versions[i].page);
                else
                        inode->versions[n++] = inode->versions[i];
        }
        inode->n_versions = n;
        free(folded);
}

/* ---- worlds ---- */

struct sim_world *sim_world_new(void)
{
        struct sim_world *world = must(calloc(1, sizeof(*world)));

        world->seq = 1;
        world->names = must(calloc(MAX_NAMES, sizeof(struct name)));
        world->durable_names = must(calloc(MAX_NAMES, sizeof(struct name)));
        world->name_events = must(calloc(MAX_NAMES, sizeof(struct name_event)));
        return world;
}

struct blob *blob_ref(struct blob *blob)
{
        blob->refs++;
        return blob;
}

void blob_unref(struct blob *blob)
{
        if (--blob->refs == 0)
                free(blob);
}

/* All but the regions; @durable_only: no name event either. */
static struct sim_world *world_copy(const struct sim_world *from)
{
        struct sim_world *world = must(malloc(sizeof(*world)));

        *world = *from;
        world->room_inodes = from->n_inodes + 1;
        world->inodes = must(malloc(world->room_inodes * sizeof(struct inode *)));
        for (uint32_t i = 0; i < from->n_inodes; i++)
                world->inodes[i] = inode_ref(from->inodes[i]);
        world->names = must(malloc(MAX_NAMES * sizeof(struct name)));
        memcpy(world->names, from->names, from->n_names * sizeof(struct name));
        world->durable_names = must(malloc(MAX_NAMES * sizeof(struct name)));
        memcpy(world->durable_names, from->durable_names,
                from->n_durable_names * sizeof(struct name));
        world->name_events = must(malloc(MAX_NAMES * sizeof(struct name_event)));
        memcpy(world->name_events, from->name_events,
                from->n_name_events * sizeof(struct name_event));
        world->n_regions = 0;
        return world;
}

struct sim_world *sim_world_clone(const struct sim_world *from)
{
        struct sim_world *world = world_copy(from);

        world->n_regions = from->n_regions;
        for (uint32_t i = 0; i < from->n_regions; i++)
                blob_ref(world->regions[i].blob);
        return world;
}

struct sim_world *sim_world_free(struct sim_world *world)
{
        if (!world)
                return NULL;
        for (uint32_t i = 0; i < world->n_inodes; i++)
                inode_unref(world->inodes[i]);
        for (uint32_t i = 0; i < world->n_regions; i++)
                blob_unref(world->regions[i].blob);
        free(world->inodes);
        free(world->names);
        free(world->durable_names);
        free(world->name_events);
        free(world);
        return NULL;
}

struct inode *world_own(struct sim_world *world, uint32_t index)
{
        struct inode *inode = world->inodes[index];

        if (inode->refs > 1) {
                world->inodes[index] = inode_clone(inode);
                inode_unref(inode);
        }
        return world->inodes[index];
}

int64_t find_name(const struct name *names, uint32_t n, const char *path)
{
        for (uint32_t i = 0; i < n; i++)
                if (names[i].path == path)
                        return i;
        return -1;
}

static void set_name(struct name *names, uint32_t *n, const char *path, uint32_t inode)
{
        int64_t i = find_name(names, *n, path);

        if (i < 0) {
                assert(*n < MAX_NAMES);
                i = (*n)++;
        }
        names[i] = (struct name){.path = path, .inode = inode};
}

static void remove_name(struct name *names, uint32_t *n, const char *path)
{
        int64_t i = find_name(names, *n, path);

        if (i >= 0)
                names[i] = names[--*n];
}

static void apply_name_event(struct name *names, uint32_t *n, const struct name_event *event)
{
        switch (event->kind) {
        case NAME_LINK: set_name(names, n, event->path, event->inode); break;
        case NAME_UNLINK: remove_name(names, n, event->path); break;
        case NAME_RENAME:
                remove_name(names, n, event->path);
                set_name(names, n, event->to, event->inode);
                break;
        }
}

void add_name_event(struct sim_world *world, enum name_event_kind kind, const char *path,
        const char *to, uint32_t inode)
{
        struct name_event event = {
                .seq = ++world->seq, .kind = kind, .path = path, .to = to, .inode = inode};

        assert(world->n_name_events < MAX_NAMES);
        world->name_events[world->n_name_events++] = event;
        apply_name_event(world->names, &world->n_names, &event);
}

static size_t directory_length(const char *path)
{
        const char *slash = strrchr(path, '/');

        return slash ? (size_t)(slash - path) : 0;
}

static bool same_directory(const char *a, const char *b)
{
        size_t n = directory_length(a);

        return n == directory_length(b) && memcmp(a, b, n) == 0;
}

void fold_names(struct sim_world *world, const char *path, uint32_t upto)
{
        uint32_t n = 0;

        for (uint32_t i = 0; i < world->n_name_events; i++) {
                struct name_event *event = &world->name_events[i];

                if (event->seq <= upto && (!path || same_directory(event->path, path)))
                        apply_name_event(world->durable_names, &world->n_durable_names, event);
                else
                        world->name_events[n++] = *event;
        }
        world->n_name_events = n;
}

void sim_world_settle(struct sim_world *world)
{
        for (uint32_t i = 0; i < world->n_inodes; i++)
                if (world->inodes[i] && !inode_is_settled(world->inodes[i]))
                        inode_settle(world_own(world, i));
        fold_names(world, NULL, UINT32_MAX);
}

static const struct inode *world_find(const struct sim_world *world, const char *path)
{
        int64_t i = find_name(world->names, world->n_names, sim_intern(path));

        return i < 0 ? NULL : world->inodes[world->names[i].inode];
}

uint64_t sim_world_hash(const struct sim_world *world)
{
        uint64_t hash = 0;

        for (uint32_t i = 0; i < world->n_names; i++) {
                const struct inode *inode = world->inodes[world->names[i].inode];
                const char *path = world->names[i].path;

                hash += random_mix(
                        XXH3_64bits(path, strlen(path)) ^ map_hash(&inode->cache, inode->size));
        }
        for (uint32_t i = 0; i < world->n_regions; i++)
                hash += random_mix(world->regions[i].blob->hash ^
                        XXH3_64bits(world->regions[i].name, strlen(world->regions[i].name)));
        return hash;
}

uint64_t sim_world_durable_hash(const struct sim_world *world)
{
        uint64_t hash = 0;

        for (uint32_t i = 0; i < world->n_inodes; i++) {
                const struct inode *inode = world->inodes[i];

                if (!inode)
                        continue;
                hash += random_mix(map_hash(&inode->durable, inode->durable_size) + i);
                for (uint32_t k = 0; k < inode->n_versions; k++)
                        hash += random_mix(inode->versions[k].lost + 2 * inode->versions[k].sector);
        }
        return hash;
}

uint64_t sim_world_file_hash(const struct sim_world *world, const char *path)
{
        const struct inode *inode = world_find(world, path);

        return inode ? map_hash(&inode->cache, inode->size) : 0;
}

bool sim_world_has(const struct sim_world *world, const char *path)
{
        return world_find(world, path) != NULL;
}

uint64_t sim_world_size(const struct sim_world *world, const char *path)
{
        const struct inode *inode = world_find(world, path);

        return inode ? inode->size : 0;
}

void sim_world_read(
        const struct sim_world *world, const char *path, void *data, size_t length, uint64_t offset)
{
        const struct inode *inode = world_find(world, path);

        assert(inode != NULL);
        map_read(&inode->cache, data, length, offset);
}

void sim_world_each(const struct sim_world *world,
        void (*call)(void *opaque, const char *path, uint64_t size), void *opaque)
{
        for (uint32_t i = 0; i < world->n_names; i++)
                call(opaque, world->names[i].path, world->inodes[world->names[i].inode]->size);
}

/* ---- regions ---- */

struct blob *blob_new(const uint8_t *data, uint64_t size)
{
        uint64_t used = size;
        struct blob *blob;

        while (used >= 64 && bytes_are_zero(data + used - 64, 64))
                used -= 64;
        blob = must(malloc(sizeof(*blob) + used));
        blob->refs = 1;
        blob->size = size;
        blob->used = used;
        memcpy(blob->data, data, used);
        blob->hash = XXH3_64bits(blob->data, used) + size;
        return blob;
}

bool blob_shows(const struct blob *blob, const uint8_t *data, uint64_t size)
{
        return blob->size == size && memcmp(blob->data, data, blob->used) == 0 &&
                bytes_are_zero(data + blob->used, size - blob->used);
}

int find_region(const struct sim_world *world, const char *name)
{
        for (uint32_t i = 0; i < world->n_regions; i++)
                if (world->regions[i].name == name)
                        return (int)i;
        return -1;
}

unsigned sim_world_n_regions(const struct sim_world *world)
{
        return world->n_regions;
}

bool sim_world_same_regions(const struct sim_world *a, const struct sim_world *b)
{
        if (a->n_regions != b->n_regions)
                return false;
        for (uint32_t i = 0; i < a->n_regions; i++) {
                int k = find_region(b, a->regions[i].name);

                if (k < 0 || b->regions[k].blob->hash != a->regions[i].blob->hash)
                        return false;
        }
        return true;
}

static uint64_t blob_word(const struct blob *blob, uint64_t index)
{
        uint64_t word = 0, at = index * sizeof(word);

        if (at < blob->used)
                memcpy(&word, blob->data + at, MIN_OF(sizeof(word), blob->used - at));
        return word;
}

#define RECORD_WORDS 8u

/* Stores of a program that is killed stop at one of them. Within one record a compiler may order
 * them as it likes (its checksum tells), so any of the changed words may be the old one; a region
 * that is being made, or more than one record, keeps the program's own order and is not torn. */
static struct blob *blob_torn(
        const struct blob *before, const struct blob *now, struct random *random)
{
        uint64_t n = now->size / sizeof(uint64_t), changed = 0, first = n, last = 0;
        _cleanup_free_ uint64_t *words = must(malloc(now->size + 8));
        unsigned way = (unsigned)random_below(random, 3);
        uint64_t stop;

        for (uint64_t i = 0; i < n; i++) {
                words[i] = blob_word(now, i);
                if (words[i] == blob_word(before, i))
                        continue;
                first = MIN_OF(first, i);
                last = i;
                changed++;
        }
        if (changed < 2 || last - first >= RECORD_WORDS || before->used == 0)
                return NULL;
        stop = random_between(random, 1, changed - 1);
        for (uint64_t i = 0, k = 0; i < n; i++) {
                uint64_t old = blob_word(before, i);

                if (words[i] == old)
                        continue;
                if (way == 0               ? k >= stop
                                : way == 1 ? k < changed - stop
                                           : random_chance(random, 50))
                        words[i] = old;
                k++;
        }
        return blob_new((const uint8_t *)words, now->size);
}

struct sim_world *sim_world_torn_regions(
        const struct sim_world *before, const struct sim_world *now, struct random *random)
{
        for (uint32_t i = 0; i < now->n_regions; i++) {
                int k = find_region(before, now->regions[i].name);
                struct sim_world *world;
                struct blob *blob;

                if (k < 0 || before->regions[k].blob == now->regions[i].blob ||
                        before->regions[k].blob->size != now->regions[i].blob->size)
                        continue;
                blob = blob_torn(before->regions[k].blob, now->regions[i].blob, random);
                if (!blob)
                        return NULL;
                world = sim_world_clone(now);
                blob_unref(world->regions[i].blob);
                world->regions[i].blob = blob;
                return world;
        }
        return NULL;
}

/* ---- cuts ---- */

/* One sector's values in order: durable, then versions[0 ... n - 1]. */
struct history {
        uint32_t inode;
        uint32_t sector;
        const struct version **versions;
        uint32_t n;
};

enum unit_kind { UNIT_SECTORS, UNIT_TRUNCATION, UNIT_NAME };

struct unit {
        enum unit_kind kind;
        uint32_t first, n;  /* sectors: histories; else: which size change or name event */
        uint32_t inode;     /* of a truncation */
        uint32_t n_choices; /* 2 or more */
        uint32_t seq;       /* of truncations and name events */
};

struct sim_cut {
        struct sim_world *world;
        struct history *histories;
        uint32_t n_histories;
        const struct version **versions; /* sorted; the histories point into it */
        uint32_t n_versions;
        struct unit *units;
        uint32_t n_units;
        uint32_t first_seq;
};

/* What is chosen: per history how many of its versions, per other unit 0 or 1. */
struct choice {
        uint32_t *versions; /* by history */
        uint32_t *units;    /* by unit, only of the other kinds */
};

static int compare_versions(const void *a, const void *b)
{
        const struct version *x = *(const struct version *const *)a;
        const struct version *y = *(const struct version *const *)b;

        if (x->sector != y->sector)
                return x->sector < y->sector ? -1 : 1;
        return x->seq < y->seq ? -1 : x->seq > y->seq;
}

/* A sector with which a growth of the file becomes durable is a unit of its own. */
static bool is_last_of_growth(const struct inode *inode, uint32_t sector)
{
        for (uint32_t i = 0; i < inode->n_sizes; i++)
                if (!inode->sizes[i].is_set && inode->sizes[i].sector == sector)
                        return true;
        return false;
}

static bool same_history(const struct history *a, const struct history *b)
{
        if (a->inode != b->inode || a->sector + 1 != b->sector || a->n != b->n)
                return false;
        for (uint32_t i = 0; i < a->n; i++)
                if (a->versions[i]->seq != b->versions[i]->seq ||
                        a->versions[i]->truncation != b->versions[i]->truncation)
                        return false;
        return true;
}

static void cut_add_unit(struct sim_cut *cut, struct unit unit)
{
        cut->units = must(realloc(cut->units, (cut->n_units + 1) * sizeof(struct unit)));
        cut->units[cut->n_units++] = unit;
}

/* Histories of one file's sectors, sorted by sector. */
static void cut_add_histories(struct sim_cut *cut, uint32_t index, const struct inode *inode)
{
        uint32_t start = cut->n_versions;

        for (uint32_t i = 0; i < inode->n_versions; i++)
                cut->versions[cut->n_versions++] = &inode->versions[i];
        qsort(cut->versions + start, inode->n_versions, sizeof(*cut->versions), compare_versions);
        for (uint32_t i = start; i < cut->n_versions;) {
                uint32_t end = i + 1;

                while (end < cut->n_versions &&
                        cut->versions[end]->sector == cut->versions[i]->sector)
                        end++;
                cut->histories[cut->n_histories++] = (struct history){.inode = index,
                        .sector = cut->versions[i]->sector,
                        .versions = cut->versions + i,
                        .n = end - i};
                i = end;
        }
}

static void cut_add_inode(struct sim_cut *cut, uint32_t index)
{
        const struct inode *inode = cut->world->inodes[index];
        uint32_t start = cut->n_histories;

        if (!inode || inode_is_settled(inode))
                return;
        cut_add_histories(cut, index, inode);
        for (uint32_t i = start; i < cut->n_histories;) {
                bool alone = is_last_of_growth(inode, cut->histories[i].sector);
                uint32_t end = i + 1;

                while (!alone && end < cut->n_histories &&
                        same_history(&cut->histories[end - 1], &cut->histories[end]) &&
                        !is_last_of_growth(inode, cut->histories[end].sector))
                        end++;
                cut_add_unit(cut,
                        (struct unit){.kind = UNIT_SECTORS,
                                .first = i,
                                .n = end - i,
                                .inode = index,
                                .n_choices = cut->histories[i].n + 1});
                i = end;
        }
        for (uint32_t i = 0; i < inode->n_sizes; i++)
                if (inode->sizes[i].is_set)
                        cut_add_unit(cut,
                                (struct unit){.kind = UNIT_TRUNCATION,
                                        .first = i,
                                        .inode = index,
                                        .n_choices = 2,
                                        .seq = inode->sizes[i].seq});
}

struct sim_cut *sim_cut_new(const struct sim_world *world)
{
        struct sim_cut *cut = must(calloc(1, sizeof(*cut)));
        uint32_t n = 0;

        cut->world = sim_world_clone(world);
        for (uint32_t i = 0; i < world->n_inodes; i++)
                n += world->inodes[i] ? world->inodes[i]->n_versions : 0;
        cut->versions = must(calloc(n + 1, sizeof(*cut->versions)));
        cut->histories = must(calloc(n + 1, sizeof(*cut->histories)));
        for (uint32_t i = 0; i < world->n_inodes; i++)
                cut_add_inode(cut, i);
        for (uint32_t i = 0; i < world->n_name_events; i++)
                cut_add_unit(cut,
                        (struct unit){.kind = UNIT_NAME,
                                .first = i,
                                .n_choices = 2,
                                .seq = world->name_events[i].seq});
        cut->first_seq = world->seq;
        for (uint32_t i = 0; i < cut->n_versions; i++)
                cut->first_seq = MIN_OF(cut->first_seq, cut->versions[i]->seq);
        return cut;
}

struct sim_cut *sim_cut_free(struct sim_cut *cut)
{
        if (!cut)
                return NULL;
        sim_world_free(cut->world);
        free(cut->versions);
        free(cut->histories);
        free(cut->units);
        free(cut);
        return NULL;
}

unsigned sim_cut_n_units(const struct sim_cut *cut)
{
        return cut->n_units;
}

uint64_t sim_cut_n_states(const struct sim_cut *cut)
{
        uint64_t n = 1;

        for (uint32_t i = 0; i < cut->n_units; i++)
                if (__builtin_mul_overflow(n, cut->units[i].n_choices, &n))
                        return UINT64_MAX;
        return n;
}

/* The highest seq of the file that this choice makes durable by growing it. */
static uint32_t last_growth(const struct sim_cut *cut, const struct choice *choice, uint32_t index)
{
        const struct inode *inode = cut->world->inodes[index];
        uint32_t seq = 0;

        for (uint32_t h = 0; h < cut->n_histories; h++) {
                const struct history *history = &cut->histories[h];
                uint32_t k = choice->versions[h];

                if (history->inode != index || k == 0)
                        continue;
                for (uint32_t i = 0; i < inode->n_sizes; i++) {
                        const struct size_change *size = &inode->sizes[i];

                        if (!size->is_set && size->sector == history->sector &&
                                size->seq <= history->versions[k - 1]->seq)
                                seq = MAX_OF(seq, size->seq);
                }
        }
        return seq;
}

/* Seq of the last truncation that this choice has: a later growth or truncation implies it. */
static uint32_t last_truncation(
        const struct sim_cut *cut, const struct choice *choice, uint32_t index)
{
        uint32_t seq = last_growth(cut, choice, index), last = 0;

        for (uint32_t u = 0; u < cut->n_units; u++) {
                const struct unit *unit = &cut->units[u];

                if (unit->kind == UNIT_TRUNCATION && unit->inode == index &&
                        (choice->units[u] || unit->seq < seq))
                        last = MAX_OF(last, unit->seq);
        }
        return last;
}

/* The version that the choice gives a sector, once truncations have had their say. */
static const struct version *chosen_version(
        const struct history *history, uint32_t k, uint32_t truncation)
{
        for (uint32_t i = k; i < history->n; i++)
                if (history->versions[i]->truncation &&
                        history->versions[i]->truncation <= truncation)
                        k = i + 1;
        while (k > 0 && history->versions[k - 1]->truncation > truncation)
                k--;
        return k > 0 ? history->versions[k - 1] : NULL;
}

static uint64_t chosen_size(
        const struct sim_cut *cut, const struct choice *choice, uint32_t index, uint32_t truncation)
{
        const struct inode *inode = cut->world->inodes[index];
        uint64_t bytes = inode->durable_size;

        for (uint32_t i = 0; i < inode->n_sizes; i++) {
                const struct size_change *size = &inode->sizes[i];

                if (size->is_set) {
                        if (size->seq <= truncation)
                                bytes = size->size;
                        continue;
                }
                for (uint32_t h = 0; h < cut->n_histories; h++) {
                        const struct history *history = &cut->histories[h];
                        const struct version *v;

                        if (history->inode != index || history->sector != size->sector)
                                continue;
                        v = chosen_version(history, choice->versions[h], truncation);
                        if (v && v->seq >= size->seq)
                                bytes = MAX_OF(bytes, size->size);
                }
        }
        return bytes;
}

static struct inode *cut_inode(
        const struct sim_cut *cut, const struct choice *choice, uint32_t index)
{
        const struct inode *from = cut->world->inodes[index];
        uint32_t truncation = last_truncation(cut, choice, index);
        struct inode *inode = inode_new();

        map_copy(&inode->cache, &from->durable);
        for (uint32_t h = 0; h < cut->n_histories; h++) {
                const struct history *history = &cut->histories[h];
                const struct version *v;

                if (history->inode != index)
                        continue;
                v = chosen_version(history, choice->versions[h], truncation);
                if (v)
                        map_set_sector(&inode->cache, v->sector, version_bytes(v));
        }
        inode->size = chosen_size(cut, choice, index, truncation);
        map_cut(&inode->cache, inode->size);
        map_copy(&inode->durable, &inode->cache);
        inode->durable_size = inode->size;
        return inode;
}

static struct sim_world *cut_build(const struct sim_cut *cut, const struct choice *choice)
{
        struct sim_world *world = world_copy(cut->world);

        world->boot++;
        for (uint32_t i = 0; i < world->n_inodes; i++)
                if (world->inodes[i] && !inode_is_settled(world->inodes[i])) {
                        inode_unref(world->inodes[i]);
                        world->inodes[i] = cut_inode(cut, choice, i);
                }
        for (uint32_t u = 0; u < cut->n_units; u++)
                if (cut->units[u].kind == UNIT_NAME && choice->units[u])
                        apply_name_event(world->durable_names, &world->n_durable_names,
                                &world->name_events[cut->units[u].first]);
        world->n_name_events = 0;
        world->n_names = world->n_durable_names;
        memcpy(world->names, world->durable_names, world->n_names * sizeof(struct name));
        return world;
}

static void choose(const struct sim_cut *cut, struct choice *choice, uint32_t u, uint32_t value)
{
        const struct unit *unit = &cut->units[u];

        choice->units[u] = value;
        if (unit->kind == UNIT_SECTORS)
                for (uint32_t i = 0; i < unit->n; i++)
                        choice->versions[unit->first + i] = value;
}

static struct choice choice_new(const struct sim_cut *cut)
{
        return (struct choice){
                .versions = must(calloc(cut->n_histories + 1, sizeof(uint32_t))),
                .units = must(calloc(cut->n_units + 1, sizeof(uint32_t))),
        };
}

static void choice_done(struct choice *choice)
{
        free(choice->versions);
        free(choice->units);
}

struct sim_world *sim_cut_state(const struct sim_cut *cut, uint64_t index)
{
        struct choice choice _cleanup_(choice_done) = choice_new(cut);

        for (uint32_t u = 0; u < cut->n_units; u++) {
                choose(cut, &choice, u, (uint32_t)(index % cut->units[u].n_choices));
                index /= cut->units[u].n_choices;
        }
        return cut_build(cut, &choice);
}

/* Every unit as it was when change number @seq had just been made. */
static void choose_instant(const struct sim_cut *cut, struct choice *choice, uint32_t seq)
{
        for (uint32_t u = 0; u < cut->n_units; u++) {
                const struct unit *unit = &cut->units[u];
                uint32_t k = 0;

                if (unit->kind == UNIT_SECTORS)
                        while (k < cut->histories[unit->first].n &&
                                cut->histories[unit->first].versions[k]->seq <= seq)
                                k++;
                else
                        k = unit->seq <= seq;
                choose(cut, choice, u, k);
        }
}

static void choose_each(const struct sim_cut *cut, struct choice *choice, struct random *random)
{
        static const unsigned chances[] = {10, 30, 50, 70, 90};
        unsigned newest = chances[random_below(random, 5)];

        for (uint32_t u = 0; u < cut->n_units; u++) {
                uint32_t n = cut->units[u].n_choices;

                choose(cut, choice, u,
                        random_chance(random, newest) ? n - 1 : (uint32_t)random_below(random, n));
        }
}

static void choose_one_apart(
        const struct sim_cut *cut, struct choice *choice, struct random *random, bool newest)
{
        uint32_t apart = (uint32_t)random_below(random, cut->n_units);

        for (uint32_t u = 0; u < cut->n_units; u++) {
                uint32_t last = cut->units[u].n_choices - 1;

                if (u == apart)
                        choose(cut, choice, u, (uint32_t)random_below(random, last + 1));
                else
                        choose(cut, choice, u, newest ? last : 0);
        }
}

static void choose_torn(const struct sim_cut *cut, struct choice *choice, struct random *random)
{
        for (uint32_t h = 0; h < cut->n_histories; h++)
                if (random_chance(random, 30))
                        choice->versions[h] =
                                (uint32_t)random_below(random, cut->histories[h].n + 1);
}

struct sim_world *sim_cut_sample(const struct sim_cut *cut, struct random *random)
{
        struct choice choice _cleanup_(choice_done) = choice_new(cut);
        uint32_t instant = (uint32_t)random_between(random, cut->first_seq - 1, cut->world->seq);

        if (cut->n_units == 0)
                return cut_build(cut, &choice);
        switch (random_below(random, 8)) {
        case 0:
        case 1: choose_each(cut, &choice, random); break;
        case 2: choose_one_apart(cut, &choice, random, true); break;
        case 3: choose_one_apart(cut, &choice, random, false); break;
        case 4: choose_instant(cut, &choice, instant); break;
        case 5:
                choose_instant(cut, &choice, instant);
                choose(cut, &choice, (uint32_t)random_below(random, cut->n_units), 1);
                break;
        case 6:
                choose_instant(cut, &choice, instant);
                choose_torn(cut, &choice, random);
                break;
        default:
                choose_each(cut, &choice, random);
                choose_torn(cut, &choice, random);
                break;
        }
        return cut_build(cut, &choice);
}

struct sim_world *sim_world_cut(const struct sim_world *world, bool kept)
{
        _cleanup_(sim_cut_freep) struct sim_cut *cut = sim_cut_new(world);
        struct choice choice _cleanup_(choice_done) = choice_new(cut);

        for (uint32_t u = 0; kept && u < cut->n_units; u++)
                choose(cut, &choice, u, cut->units[u].n_choices - 1);
        return cut_build(cut, &choice);
}
