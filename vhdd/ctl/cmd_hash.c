/* SPDX-License-Identifier: Apache-2.0 */
/* vhdctl hash - a checksum of what the guest sees. */
#include <nettle/sha2.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"
#include "vhdd/ctl/output.h"
#include "vhdd/ctl/progress.h"
#include "vhdd/ctl/source.h"

#define CHUNK_SIZE ((size_t)(512 * KIB))
/* Pieces that may wait between the thread that reads and the one that sums. */
#define N_PIECES 4u

enum algorithm { ALGORITHM_XXH3, ALGORITHM_SHA256 };
enum { KEY_ALGORITHM = CTL_KEY_FIRST };

struct hash_options {
        enum algorithm algorithm;
};

static const struct argp_option options[] = {
        {"algorithm", KEY_ALGORITHM, "NAME", 0, "xxh3 (the default: fast) or sha256", 0},
        {0},
};

static const char *const algorithm_names[] = {"xxh3", "sha256"};

static int take_option(void *opaque, int key, const char *arg, struct error *err)
{
        struct hash_options *hash = opaque;

        if (key != KEY_ALGORITHM)
                return -EINVAL;
        for (int i = 0; i < 2; i++)
                if (strcmp(arg, algorithm_names[i]) == 0) {
                        hash->algorithm = (enum algorithm)i;
                        return 0;
                }
        return fail(err, EINVAL, "--algorithm takes xxh3 or sha256, not '%s'", arg);
}

struct summer {
        enum algorithm algorithm;
        struct sha256_ctx sha256;
        XXH3_state_t *xxh3;
};

static void summer_update(struct summer *summer, const void *data, size_t length)
{
        if (summer->algorithm == ALGORITHM_SHA256)
                sha256_update(&summer->sha256, length, data);
        else
                XXH3_64bits_update(summer->xxh3, data, length);
}

/* Hexadecimal, as sha256sum and xxhsum -H3 print it. */
static void summer_end(struct summer *summer, char text[2 * SHA256_DIGEST_SIZE + 1])
{
        uint8_t digest[SHA256_DIGEST_SIZE];

        if (summer->algorithm == ALGORITHM_XXH3) {
                snprintf(text, 2 * SHA256_DIGEST_SIZE + 1, "%016llx",
                        (unsigned long long)XXH3_64bits_digest(summer->xxh3));
                return;
        }
        sha256_digest(&summer->sha256, sizeof(digest), digest);
        for (size_t i = 0; i < sizeof(digest); i++)
                sprintf(text + 2 * i, "%02x", digest[i]);
}

/* One run of the disk, in its order: zeros of any length, or up to a chunk of data. */
struct piece {
        uint64_t length;
        bool zero;
        uint8_t *data;
};

/* The reader fills pieces[n_filled % N_PIECES], the summer takes pieces[n_taken % N_PIECES]. */
struct line {
        struct source *source;
        struct piece pieces[N_PIECES];
        pthread_mutex_t lock;
        pthread_cond_t changed;
        /* guarded by lock */
        uint64_t n_filled, n_taken;
        bool ended; /* the reader fills no more */
        struct error err;
};

static int fill(
        struct line *line, struct piece *piece, uint64_t offset, uint64_t size, struct error *err)
{
        struct source_extent extent;
        int r = source_extent_get(line->source, 0, offset, size - offset, &extent, err);

        if (r < 0)
                return r;
        piece->zero = extent.zero;
        piece->length = extent.length;
        if (extent.zero)
                return 0;
        /* Short runs are not worth a call each: read on to the chunk's end, whatever is there. */
        piece->length = MIN_OF(CHUNK_SIZE - offset % CHUNK_SIZE, size - offset);
        return source_read(line->source, 0, piece->data, (size_t)piece->length, offset, err);
}

static void *read_all(void *opaque)
{
        struct line *line = opaque;
        uint64_t offset = 0, size = source_size(line->source), n = 0;
        struct error err = ERROR_INIT;
        int r = 0;

        while (r == 0 && offset < size) {
                struct piece *piece = &line->pieces[n % N_PIECES];

                pthread_mutex_lock(&line->lock);
                while (n - line->n_taken >= N_PIECES)
                        pthread_cond_wait(&line->changed, &line->lock);
                pthread_mutex_unlock(&line->lock);

                r = fill(line, piece, offset, size, &err);
                if (r < 0)
                        break;
                offset += piece->length;

                pthread_mutex_lock(&line->lock);
                line->n_filled = ++n;
                pthread_cond_broadcast(&line->changed);
                pthread_mutex_unlock(&line->lock);
        }
        pthread_mutex_lock(&line->lock);
        line->ended = true;
        line->err = err;
        pthread_cond_broadcast(&line->changed);
        pthread_mutex_unlock(&line->lock);
        return NULL;
}

static struct piece *take(struct line *line, uint64_t n)
{
        MUTEX_GUARD(&line->lock);
        while (line->n_filled <= n && !line->ended)
                pthread_cond_wait(&line->changed, &line->lock);
        return line->n_filled > n ? &line->pieces[n % N_PIECES] : NULL;
}

static void give_back(struct line *line, uint64_t n)
{
        MUTEX_GUARD(&line->lock);
        line->n_taken = n + 1;
        pthread_cond_broadcast(&line->changed);
}

static void sum_all(struct line *line, struct summer *summer, struct progress *progress)
{
        static const uint8_t zeros[64 * KIB];
        struct piece *piece;

        for (uint64_t n = 0; (piece = take(line, n)) != NULL; n++) {
                uint64_t left = piece->zero ? piece->length : 0;

                if (!piece->zero) {
                        summer_update(summer, piece->data, (size_t)piece->length);
                        progress_add(progress, piece->length);
                }
                while (left > 0) {
                        size_t part = (size_t)MIN_OF(left, sizeof(zeros));

                        summer_update(summer, zeros, part);
                        progress_add(progress, part);
                        left -= part;
                }
                give_back(line, n);
        }
}

static int hash_source(
        const struct ctl *ctl, struct source *source, struct summer *summer, struct error *err)
{
        struct line line = {
                .source = source,
                .lock = PTHREAD_MUTEX_INITIALIZER,
                .changed = PTHREAD_COND_INITIALIZER,
        };
        _cleanup_free_ uint8_t *buffers = aligned_alloc(4096, N_PIECES * CHUNK_SIZE);
        struct progress *progress;
        pthread_t reader;
        int r;

        if (!buffers)
                return fail(err, ENOMEM, "no memory for buffers");
        for (size_t i = 0; i < N_PIECES; i++)
                line.pieces[i].data = buffers + i * CHUNK_SIZE;
        r = pthread_create(&reader, NULL, read_all, &line);
        if (r != 0)
                return fail_os(err, r, "cannot start a thread");
        progress = progress_new(ctl, "hashing", source_size(source));
        sum_all(&line, summer, progress);
        pthread_join(reader, NULL);
        progress_end(progress, line.err.code == 0);
        if (line.err.code == 0)
                return 0;
        *err = line.err;
        return -line.err.code;
}

static int run(struct ctl *ctl, struct error *err)
{
        const struct hash_options *hash = ctl->options;
        _cleanup_(source_closep) struct source *source = NULL;
        struct summer summer = {.algorithm = hash->algorithm};
        char text[2 * SHA256_DIGEST_SIZE + 1];
        int r = source_open(ctl, ctl->operands[0], 1, &source, err);

        if (r < 0)
                return r;
        sha256_init(&summer.sha256);
        summer.xxh3 = XXH3_createState();
        if (!summer.xxh3)
                return fail(err, ENOMEM, "no memory for a checksum");
        XXH3_64bits_reset(summer.xxh3);
        r = hash_source(ctl, source, &summer, err);
        if (r == 0)
                summer_end(&summer, text);
        XXH3_freeState(summer.xxh3);
        if (r < 0)
                return r;
        if (ctl->json) {
                json_t *object = json_object();

                json_object_set_new(object, "filename", json_text(ctl->operands[0]));
                json_object_set_new(
                        object, "algorithm", json_text(algorithm_names[hash->algorithm]));
                json_object_set_new(object, "hash", json_text(text));
                json_object_set_new(object, "virtual-size", json_size(source_size(source)));
                json_print(object);
        } else {
                _cleanup_free_ char *safe = text_safe(ctl->operands[0]);

                printf("%s  %s\n", text, safe);
        }
        return CTL_DONE;
}

const struct command command_hash = {
        .name = "hash",
        .operands = "FILE",
        .summary = "print a checksum of what the guest sees",
        .doc = "Sum the disk that FILE (an image with its parents, a block device, an NBD URI) is, from "
               "first byte to last: what a flat raw copy of it would give."
               "\v"
               "Examples:\n"
               "  vhdctl hash disk.vhd\n"
               "  vhdctl hash --algorithm sha256 disk_GUID.avhd",
        .flags = COMMAND_CHAIN,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .options = options,
        .options_size = sizeof(struct hash_options),
        .take_option = take_option,
        .run = run,
};
