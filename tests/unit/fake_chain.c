/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/fake_chain.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/arith.h"

struct chain {
        uint64_t size;
        atomic_uint depth;
        bool writable;
        struct file *file, *other_file;
        uint8_t *bytes;

        pthread_mutex_t lock;
        /* guarded by lock */
        uint8_t *kinds;
        uint8_t *depths;
        struct chain_counters counters;
        uint64_t fua_writes, caches, next_ticket;
        unsigned tickets;

        struct fake_switches switches;
};

struct chain *fake_chain_new(uint64_t size, unsigned depth, bool writable)
{
        struct chain *chain = calloc(1, sizeof(*chain));
        uint64_t n_blocks = div_round_up(size, FAKE_BLOCK);
        int fd = memfd_create("disk", MFD_CLOEXEC);
        struct error err;

        assert(chain);
        assert(fd >= 0);
        assert(ftruncate(fd, (off_t)(n_blocks * FAKE_BLOCK)) == 0);
        chain->bytes = mmap(NULL, n_blocks * FAKE_BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert(chain->bytes != MAP_FAILED);
        assert(file_from_fd(fd, "disk", FILE_WRITE, &chain->file, &err) == 0);
        fd = memfd_create("other", MFD_CLOEXEC);
        assert(fd >= 0);
        assert(file_from_fd(fd, "other", FILE_WRITE, &chain->other_file, &err) == 0);
        chain->size = size;
        atomic_init(&chain->depth, depth);
        chain->writable = writable;
        chain->kinds = calloc(n_blocks, 1);
        chain->depths = calloc(n_blocks, 1);
        pthread_mutex_init(&chain->lock, NULL);
        atomic_store(&chain->switches.bad_offset, UINT64_MAX);
        return chain;
}

struct chain *chain_abandon(struct chain *chain)
{
        if (!chain)
                return NULL;
        assert(chain->tickets == 0);
        munmap(chain->bytes, round_up_to(chain->size, FAKE_BLOCK));
        file_close(chain->file);
        file_close(chain->other_file);
        free(chain->kinds);
        free(chain->depths);
        pthread_mutex_destroy(&chain->lock);
        free(chain);
        return NULL;
}

int chain_close(struct chain *chain, struct error *err)
{
        int r = chain_flush(chain);

        chain_abandon(chain);
        return r < 0 ? fail_os(err, -r, "flush") : 0;
}

struct fake_switches *fake_chain_switches(struct chain *chain)
{
        return &chain->switches;
}

struct file *fake_chain_other_file(struct chain *chain)
{
        return chain->other_file;
}

uint8_t *fake_chain_bytes(struct chain *chain)
{
        return chain->bytes;
}

static void set_locked(struct chain *chain, uint64_t offset, uint64_t length, enum extent_kind kind,
        unsigned depth)
{
        for (uint64_t b = offset / FAKE_BLOCK; b * FAKE_BLOCK < offset + length; b++) {
                chain->kinds[b] = (uint8_t)kind;
                chain->depths[b] = (uint8_t)depth;
        }
}

void fake_chain_set(struct chain *chain, uint64_t offset, uint64_t length, enum extent_kind kind,
        unsigned depth)
{
        MUTEX_GUARD(&chain->lock);

        set_locked(chain, offset, length, kind, depth);
        if (kind != EXTENT_DATA)
                memset(chain->bytes + offset, 0, length);
}

void fake_chain_push(struct chain *chain)
{
        uint64_t n_blocks = div_round_up(chain->size, FAKE_BLOCK);
        MUTEX_GUARD(&chain->lock);

        atomic_fetch_add(&chain->depth, 1);
        for (uint64_t b = 0; b < n_blocks; b++)
                if (chain->kinds[b] != EXTENT_ABSENT)
                        chain->depths[b]++;
}

unsigned fake_chain_tickets(struct chain *chain)
{
        MUTEX_GUARD(&chain->lock);

        return chain->tickets;
}

uint64_t fake_chain_fua_writes(struct chain *chain)
{
        MUTEX_GUARD(&chain->lock);

        return chain->fua_writes;
}

uint64_t fake_chain_caches(struct chain *chain)
{
        MUTEX_GUARD(&chain->lock);

        return chain->caches;
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
        return atomic_load(&chain->depth);
}

const char *chain_layer_path(const struct chain *chain, unsigned layer)
{
        static const char *const paths[] = {"layer 0", "layer 1", "layer 2", "layer 3", "layer 4"};

        assert(layer < sizeof(paths) / sizeof(paths[0]));
        return paths[layer];
}

uint32_t chain_preferred_size(const struct chain *chain)
{
        return 65536;
}

static void hold(atomic_bool *held, atomic_int *n)
{
        atomic_fetch_add(n, 1);
        while (atomic_load(held))
                nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        atomic_fetch_sub(n, 1);
}

int chain_read(struct chain *chain, void *data, size_t length, uint64_t offset, unsigned flags)
{
        struct fake_switches *s = &chain->switches;
        uint64_t bad = atomic_load(&s->bad_offset);
        int error = atomic_load(&s->read_error);

        if (!range_inside(offset, length, chain->size))
                return -EINVAL;
        if (flags & CHAIN_NOWAIT && (atomic_load(&s->cold_reads) || atomic_load(&s->cold_pages)))
                return -EAGAIN;
        if (!(flags & CHAIN_NOWAIT) && atomic_load(&s->hold_reads))
                hold(&s->hold_reads, &s->reads_held);
        if (error && (bad == UINT64_MAX || (bad >= offset && bad - offset < length)))
                return error;
        MUTEX_GUARD(&chain->lock);
        memcpy(data, chain->bytes + offset, length);
        chain->counters.reads++;
        chain->counters.bytes_read += length;
        return 0;
}

static int end_change(struct chain *chain, unsigned flags)
{
        if (!(flags & CHAIN_FUA))
                return 0;
        chain->fua_writes++;
        return flags & CHAIN_LATER && atomic_load(&chain->switches.uncommitted) ? -EINPROGRESS : 0;
}

int chain_write(
        struct chain *chain, const void *data, size_t length, uint64_t offset, unsigned flags)
{
        if (!chain->writable)
                return -EROFS;
        if (!range_inside(offset, length, chain->size))
                return -EINVAL;
        if (flags & CHAIN_NOWAIT && atomic_load(&chain->switches.cold_writes))
                return -EAGAIN;
        if (atomic_load(&chain->switches.write_error))
                return atomic_load(&chain->switches.write_error);
        MUTEX_GUARD(&chain->lock);
        set_locked(chain, offset, length, EXTENT_DATA, 0);
        memcpy(chain->bytes + offset, data, length);
        chain->counters.writes++;
        chain->counters.bytes_written += length;
        return end_change(chain, flags);
}

static int clear(
        struct chain *chain, uint64_t length, uint64_t offset, unsigned flags, uint64_t *counter)
{
        if (!chain->writable)
                return -EROFS;
        if (!range_inside(offset, length, chain->size))
                return -EINVAL;
        if (flags & CHAIN_FAST_ZERO && atomic_load(&chain->switches.no_fast_zero))
                return -EOPNOTSUPP;
        MUTEX_GUARD(&chain->lock);
        memset(chain->bytes + offset, 0, length);
        for (uint64_t b = div_round_up(offset, FAKE_BLOCK); (b + 1) * FAKE_BLOCK <= offset + length;
                b++)
                chain->kinds[b] = flags & CHAIN_NO_HOLE ? EXTENT_DATA : EXTENT_ZERO;
        ++*counter;
        return end_change(chain, flags);
}

int chain_zero(struct chain *chain, uint64_t length, uint64_t offset, unsigned flags)
{
        return clear(chain, length, offset, flags, &chain->counters.zeros);
}

int chain_trim(struct chain *chain, uint64_t length, uint64_t offset, unsigned flags)
{
        return clear(chain, length, offset, flags, &chain->counters.trims);
}

int chain_flush(struct chain *chain)
{
        if (atomic_load(&chain->switches.hold_flushes))
                hold(&chain->switches.hold_flushes, &chain->switches.flushes_held);
        MUTEX_GUARD(&chain->lock);
        chain->counters.flushes++;
        return atomic_load(&chain->switches.flush_error);
}

int chain_cache(struct chain *chain, uint64_t length, uint64_t offset)
{
        if (!range_inside(offset, length, chain->size))
                return -EINVAL;
        MUTEX_GUARD(&chain->lock);
        chain->caches++;
        return 0;
}

int chain_map(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
        struct chain_extent *ret)
{
        uint64_t first = offset / FAKE_BLOCK, b = first;

        if (flags & CHAIN_NOWAIT && atomic_load(&chain->switches.cold_reads))
                return -EAGAIN;
        if (atomic_load(&chain->switches.map_error))
                return atomic_load(&chain->switches.map_error);
        if (length == 0 || !range_inside(offset, length, chain->size))
                return -EINVAL;
        MUTEX_GUARD(&chain->lock);
        while (b * FAKE_BLOCK < offset + length && chain->kinds[b] == chain->kinds[first] &&
                chain->depths[b] == chain->depths[first])
                b++;
        *ret = (struct chain_extent){
                .length = MIN_OF(offset + length, b * FAKE_BLOCK) - offset,
                .kind = (enum extent_kind)chain->kinds[first],
                .depth = chain->kinds[first] == EXTENT_ABSENT ? atomic_load(&chain->depth)
                                                              : chain->depths[first],
                .file_offset = offset,
        };
        if (ret->kind == EXTENT_DATA)
                ret->file =
                        atomic_load(&chain->switches.other_file) ? chain->other_file : chain->file;
        return 0;
}

int chain_status(struct chain *chain, uint64_t offset, uint64_t length, unsigned flags,
        struct chain_extent *ret)
{
        return chain_map(chain, offset, length, flags, ret);
}

uint64_t chain_ticket_get(struct chain *chain)
{
        MUTEX_GUARD(&chain->lock);

        chain->tickets++;
        return ++chain->next_ticket;
}

void chain_ticket_put(struct chain *chain, uint64_t ticket)
{
        MUTEX_GUARD(&chain->lock);

        assert(chain->tickets > 0);
        assert(ticket <= chain->next_ticket);
        chain->tickets--;
}

void chain_counters_get(const struct chain *chain, struct chain_counters *ret)
{
        struct chain *c = (struct chain *)chain;
        MUTEX_GUARD(&c->lock);

        *ret = c->counters;
}

bool chain_is_moving(const struct chain *chain)
{
        return false;
}
