/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl compare - do two disks read the same? */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/size.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"
#include "vhdd/ctl/source.h"

#define N_LANES    2u
#define CHUNK_SIZE ((size_t)MIB)

enum { KEY_STRICT = CTL_KEY_FIRST };

struct compare_options {
        bool strict;
};

static const struct argp_option options[] = {
        {"strict", KEY_STRICT, NULL, 0, "Disks of different sizes are different", 0},
        {0},
};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct compare_options *compare = opaque;

        if (key != KEY_STRICT)
                return -EINVAL;
        compare->strict = true;
        return 0;
}

/* One of the two disks. */
struct side {
        struct source *source;
        uint64_t size;
};

struct comparison {
        /* immutable while threads run */
        struct side a, b;
        uint64_t size; /* of the longer one */
        struct progress *progress;
        /* chunks are given out in order; a difference ends those behind it */
        atomic_uint_fast64_t next, first_difference;
        /* guarded by lock */
        pthread_mutex_t lock;
        struct error err;
        atomic_bool failed;
};

struct worker {
        struct comparison *comparison;
        unsigned lane;
};

/* What lies at @offset of one side; beyond its end: zeros. */
static int look(const struct side *side, unsigned lane, uint64_t offset, uint64_t length,
        struct source_extent *ret, struct error *err)
{
        if (offset < side->size)
                return source_extent_get(
                        side->source, lane, offset, MIN_OF(length, side->size - offset), ret, err);
        *ret = (struct source_extent){.length = length, .zero = true};
        return 0;
}

static bool is_same_place(const struct source_extent *a, const struct source_extent *b)
{
        struct file_stat in_a, in_b;

        if (!a->file || !b->file || a->file_offset != b->file_offset)
                return false;
        if (a->file == b->file)
                return true;
        return file_stat_get(a->file, &in_a) == 0 && file_stat_get(b->file, &in_b) == 0 &&
                in_a.device == in_b.device && in_a.inode == in_b.inode && in_a.inode != 0;
}

static size_t first_difference_in(const uint8_t *a, const uint8_t *b, size_t length)
{
        size_t low = 0;

        /* memcmp is fast and says only that there is one: halve until it stands alone. */
        while (length > 1) {
                size_t half = length / 2;

                if (memcmp(a + low, b + low, half) != 0) {
                        length = half;
                } else {
                        low += half;
                        length -= half;
                }
        }
        return low;
}

static void found(struct comparison *comparison, uint64_t offset)
{
        uint_fast64_t known = atomic_load(&comparison->first_difference);

        while (offset < known &&
                !atomic_compare_exchange_weak(&comparison->first_difference, &known, offset))
                ;
}

struct buffers {
        uint8_t a[CHUNK_SIZE], b[CHUNK_SIZE];
};

static int fetch(const struct side *side, unsigned lane, const struct source_extent *extent,
        uint8_t *data, size_t length, uint64_t offset, struct error *err)
{
        if (!extent->zero)
                return source_read(side->source, lane, data, length, offset, err);
        memset(data, 0, length);
        return 0;
}

/* Compares [offset, offset + length): at most a chunk. */
static int compare_range(struct comparison *comparison, unsigned lane, struct buffers *buffers,
        uint64_t offset, uint64_t length, struct error *err)
{
        uint64_t end = offset + length;

        while (offset < end) {
                struct source_extent a, b;
                size_t part;
                int r = look(&comparison->a, lane, offset, end - offset, &a, err);

                if (r == 0)
                        r = look(&comparison->b, lane, offset, end - offset, &b, err);
                if (r < 0)
                        return r;
                part = (size_t)MIN_OF(a.length, b.length);
                if ((a.zero && b.zero) || is_same_place(&a, &b)) {
                        offset += part;
                        continue;
                }
                r = fetch(&comparison->a, lane, &a, buffers->a, part, offset, err);
                if (r == 0)
                        r = fetch(&comparison->b, lane, &b, buffers->b, part, offset, err);
                if (r < 0)
                        return r;
                if (memcmp(buffers->a, buffers->b, part) != 0) {
                        found(comparison,
                                offset + first_difference_in(buffers->a, buffers->b, part));
                        return 0;
                }
                offset += part;
        }
        return 0;
}

static void *compare_in_turn(void *opaque)
{
        struct worker *worker = opaque;
        struct comparison *comparison = worker->comparison;
        _cleanup_free_ struct buffers *buffers = malloc(sizeof(*buffers));
        struct error err = ERROR_INIT;
        int r = buffers ? 0 : fail(&err, ENOMEM, "no memory for buffers");

        while (r == 0 && !atomic_load(&comparison->failed)) {
                uint64_t offset = atomic_fetch_add(&comparison->next, CHUNK_SIZE);
                uint64_t length;

                if (offset >= comparison->size ||
                        offset >= atomic_load(&comparison->first_difference))
                        break;
                length = MIN_OF(CHUNK_SIZE, comparison->size - offset);
                r = compare_range(comparison, worker->lane, buffers, offset, length, &err);
                progress_add(comparison->progress, length);
        }
        if (r < 0) {
                MUTEX_GUARD(&comparison->lock);
                if (!atomic_exchange(&comparison->failed, true))
                        comparison->err = err;
        }
        return NULL;
}

static int compare_all(struct comparison *comparison, struct error *err)
{
        unsigned lanes =
                MIN_OF(source_lanes(comparison->a.source), source_lanes(comparison->b.source));
        struct worker workers[SOURCE_MAX_LANES];
        pthread_t threads[SOURCE_MAX_LANES];
        unsigned n = 0;

        for (unsigned i = 0; i < lanes; i++) {
                workers[i] = (struct worker){comparison, i};
                if (i + 1 == lanes)
                        compare_in_turn(&workers[i]);
                else if (pthread_create(&threads[n], NULL, compare_in_turn, &workers[i]) == 0)
                        n++;
        }
        for (unsigned i = 0; i < n; i++)
                pthread_join(threads[i], NULL);
        if (!atomic_load(&comparison->failed))
                return 0;
        *err = comparison->err;
        return -comparison->err.code;
}

static void report(
        const struct ctl *ctl, const struct comparison *comparison, bool equal, bool sizes_differ)
{
        uint64_t offset = atomic_load(&comparison->first_difference);

        if (ctl->json) {
                json_t *object = json_object();

                json_object_set_new(object, "equal", json_boolean(equal));
                json_object_set_new(object, "first-difference",
                        offset == UINT64_MAX ? json_null() : json_size(offset));
                json_object_set_new(object, "sizes-differ", json_boolean(sizes_differ));
                json_object_set_new(object, "a", json_text(source_name(comparison->a.source)));
                json_object_set_new(object, "a-size", json_size(comparison->a.size));
                json_object_set_new(object, "b", json_text(source_name(comparison->b.source)));
                json_object_set_new(object, "b-size", json_size(comparison->b.size));
                json_print(object);
        } else if (ctl->quiet) {
                return;
        } else if (offset != UINT64_MAX) {
                printf("The disks differ, first at offset %" PRIu64 ".\n", offset);
        } else if (!equal) {
                printf("The disks differ in size: %" PRIu64 " and %" PRIu64 " bytes.\n",
                        comparison->a.size, comparison->b.size);
        } else if (sizes_differ) {
                printf("The disks read the same; the longer one (%" PRIu64
                       " bytes) ends in zeros.\n",
                        comparison->size);
        } else {
                printf("The disks read the same.\n");
        }
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct compare_options *compare = ctl->options;
        _cleanup_(source_closep) struct source *a = NULL, *b = NULL;
        struct comparison comparison = {.lock = PTHREAD_MUTEX_INITIALIZER};
        bool sizes_differ, equal;
        int r = source_open(ctl, ctl->operands[0], N_LANES, &a, err);

        if (r == 0)
                r = source_open(ctl, ctl->operands[1], N_LANES, &b, err);
        if (r < 0)
                return r;
        comparison.a = (struct side){a, source_size(a)};
        comparison.b = (struct side){b, source_size(b)};
        comparison.size = MAX_OF(comparison.a.size, comparison.b.size);
        atomic_init(&comparison.first_difference, UINT64_MAX);
        sizes_differ = comparison.a.size != comparison.b.size;
        if (!sizes_differ || !compare->strict) {
                comparison.progress = progress_new(ctl, "comparing", comparison.size);
                r = compare_all(&comparison, err);
                progress_end(comparison.progress,
                        r == 0 && atomic_load(&comparison.first_difference) == UINT64_MAX);
        }
        if (r < 0)
                return r;
        equal = atomic_load(&comparison.first_difference) == UINT64_MAX &&
                !(sizes_differ && compare->strict);
        report(ctl, &comparison, equal, sizes_differ);
        return equal ? CTL_DONE : CTL_NO;
}

const struct command command_compare = {
        .name = "compare",
        .operands = "A B",
        .summary = "say whether two disks read the same",
        .doc = "Compare what a guest would see of two disks, each an image with its parents, a block "
               "device or an NBD URI. A longer one whose tail is zeros is equal unless --strict."
               "\v"
               "Examples:\n"
               "  vhdctl compare disk.vhd disk.raw\n"
               "  vhdctl compare --strict old.vhd new.vhd\n"
               "  vhdctl compare --quiet a.vhd b.vhd || echo different",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .options = options,
        .options_size = sizeof(struct compare_options),
        .take_option = take_option,
        .run = run,
};
