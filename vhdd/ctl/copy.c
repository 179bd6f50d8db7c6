/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/copy.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "vhdd/ctl/newfile.h"

/* Large enough that a system call costs nothing, small enough to stay in the second-level cache
 * between the read and the write. */
#define CHUNK_SIZE (512 * KIB)
/* An NBD server far away wants many large requests under way. */
#define NBD_CHUNK_SIZE MIB
#define NBD_DEPTH      16u
#define NBD_WAIT_MS    200 /* between looks at whether a signal came */
/* A run of zeros inside data is left out from this length on: shorter holes cost more than they save. */
#define ZERO_RUN  (32 * KIB)
#define ZERO_UNIT (4 * KIB)
/* The kernel is asked to begin writing back after so many bytes, so that the last sync is short. */
#define WRITEBACK_STEP (32 * MIB)

struct piece {
        uint64_t offset;
        size_t length;
        struct file *file; /* all of it lies in one run there, or NULL */
        uint64_t file_offset;
};

struct copy {
        /* immutable while threads run */
        struct source *source;
        const struct sink *sink;
        struct progress *progress;
        uint64_t size;
        size_t chunk;
        struct file *sink_file;
        atomic_bool may_clone;
        atomic_uint_fast64_t unsynced;
        /* guarded by lock */
        pthread_mutex_t lock;
        uint64_t next;        /* all before it was taken or is zero */
        uint64_t known_start; /* what the source said last: a run at known_start */
        struct source_extent known;
        struct error err; /* of the first thread that failed */
        atomic_bool failed;
};

struct worker {
        struct copy *copy;
        unsigned lane;
};

static void give_up(struct copy *copy, const struct error *err)
{
        MUTEX_GUARD(&copy->lock);
        if (!atomic_exchange(&copy->failed, true))
                copy->err = *err;
}

static bool is_over(const struct copy *copy)
{
        return atomic_load_explicit(&copy->failed, memory_order_relaxed);
}

/* The source's run that holds @offset, from @offset on. Call with lock held. */
static int run_at(struct copy *copy, unsigned lane, uint64_t offset, struct source_extent *ret,
        struct error *err)
{
        uint64_t into;
        int r;

        if (offset < copy->known_start || offset - copy->known_start >= copy->known.length) {
                r = source_extent_get(
                        copy->source, lane, offset, copy->size - offset, &copy->known, err);
                if (r < 0)
                        return r;
                copy->known_start = offset;
        }
        into = offset - copy->known_start;
        *ret = copy->known;
        ret->length -= into;
        ret->file_offset += into;
        return 0;
}

/* From copy->next on: the end of the last run of data before @limit. Call with lock held. */
static int measure_piece(
        struct copy *copy, unsigned lane, uint64_t limit, struct piece *piece, struct error *err)
{
        uint64_t offset = copy->next, end = copy->next;
        unsigned n_runs = 0;

        while (offset < limit) {
                struct source_extent run;
                int r = run_at(copy, lane, offset, &run, err);

                if (r < 0)
                        return r;
                offset = MIN_OF(offset + run.length, limit);
                if (run.zero)
                        continue;
                if (n_runs++ == 0) {
                        piece->file = run.file;
                        piece->file_offset = run.file_offset;
                }
                end = offset;
        }
        piece->length = (size_t)(end - piece->offset);
        if (n_runs != 1)
                piece->file = NULL;
        copy->next = limit;
        return 0;
}

/* The next piece that is not known to be zero, never across a multiple of the chunk's size. Answers
 * 1, 0 at the end, or -errno. */
static int take_piece(struct copy *copy, unsigned lane, struct piece *piece, struct error *err)
{
        MUTEX_GUARD(&copy->lock);
        uint64_t before = copy->next;
        int r;

        while (copy->next < copy->size && !is_over(copy)) {
                struct source_extent run;

                r = run_at(copy, lane, copy->next, &run, err);
                if (r < 0)
                        return r;
                if (run.zero) {
                        copy->next += run.length;
                        continue;
                }
                *piece = (struct piece){.offset = copy->next};
                r = measure_piece(copy, lane,
                        MIN_OF(round_down_to(copy->next, copy->chunk) + copy->chunk, copy->size),
                        piece, err);
                if (r < 0)
                        return r;
                progress_add(copy->progress, copy->next - before - piece->length);
                return 1;
        }
        progress_add(copy->progress, copy->next - before);
        return 0;
}

static int write_run(
        struct copy *copy, const uint8_t *data, size_t length, uint64_t offset, struct error *err)
{
        const struct sink *sink = copy->sink;
        int r;

        if (sink->chain)
                r = chain_write(sink->chain, data, length, offset, 0);
        else
                r = file_write(sink->file, data, length, offset, 0);
        if (r < 0) {
                r = fail_os(err, -r, "cannot write %zu bytes at offset %llu of '%s'", length,
                        (unsigned long long)offset, sink->name);
                error_set_file(err, sink->name);
                error_set_offset(err, offset);
                return r;
        }
        /* Only a hint, so nothing is said of a failure: the sync at the end tells. */
        if (copy->sink_file->fd >= 0 &&
                atomic_fetch_add(&copy->unsynced, length) + length >= WRITEBACK_STEP) {
                atomic_store(&copy->unsynced, 0);
                sync_file_range(copy->sink_file->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        }
        return 0;
}

/* Length of the run at @data of units that are all zero, or (@zero false) all not. */
static size_t run_length(const uint8_t *data, size_t length, bool zero)
{
        size_t at = 0;

        while (at < length) {
                size_t unit = MIN_OF(ZERO_UNIT, length - at);

                if (bytes_are_zero(data + at, unit) != zero)
                        break;
                at += unit;
        }
        return at;
}

/* Writes what is not zero. */
static int write_data(
        struct copy *copy, const uint8_t *data, size_t length, uint64_t offset, struct error *err)
{
        size_t at = 0;

        while (at < length) {
                size_t begin, end;
                int r;

                begin = end = at + run_length(data + at, length - at, true);
                while (end < length) {
                        size_t zeros;

                        end += run_length(data + end, length - end, false);
                        zeros = run_length(data + end, length - end, true);
                        at = end + zeros;
                        if (zeros >= ZERO_RUN || at == length)
                                break;
                        end = at;
                }
                if (begin == length)
                        return 0;
                r = write_run(copy, data + begin, end - begin, offset + begin, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* Lets the destination share the source's blocks. False: it must be copied. */
static bool clone_piece(struct copy *copy, const struct piece *piece)
{
        struct file_clone_range range;

        if (!piece->file || piece->file->fd < 0 || !copy->sink->file ||
                !atomic_load_explicit(&copy->may_clone, memory_order_relaxed))
                return false;
        if ((piece->offset | piece->file_offset | piece->length) % ZERO_UNIT != 0)
                return false;
        range = (struct file_clone_range){
                .src_fd = piece->file->fd,
                .src_offset = piece->file_offset,
                .src_length = piece->length,
                .dest_offset = piece->offset,
        };
        if (ioctl(copy->sink->file->fd, FICLONERANGE, &range) == 0)
                return true;
        /* Another file system, or one that cannot: no further piece can either. */
        if (errno == EOPNOTSUPP || errno == EXDEV || errno == ENOTTY)
                atomic_store(&copy->may_clone, false);
        return false;
}

static int copy_piece(struct copy *copy, unsigned lane, const struct piece *piece, uint8_t *buffer,
        struct error *err)
{
        int r;

        if (clone_piece(copy, piece))
                return 0;
        r = source_read(copy->source, lane, buffer, piece->length, piece->offset, err);
        if (r < 0)
                return r;
        return write_data(copy, buffer, piece->length, piece->offset, err);
}

static void *copy_in_turn(void *opaque)
{
        struct worker *worker = opaque;
        struct copy *copy = worker->copy;
        _cleanup_free_ uint8_t *buffer = aligned_alloc(ZERO_UNIT, copy->chunk);
        struct error err = ERROR_INIT;
        struct piece piece;
        int r = buffer ? 1 : fail(&err, ENOMEM, "no memory for a buffer");

        while (r > 0) {
                if (newfile_stopped()) {
                        r = fail(&err, EINTR, "stopped by a signal");
                        break;
                }
                r = take_piece(copy, worker->lane, &piece, &err);
                if (r <= 0)
                        break;
                r = copy_piece(copy, worker->lane, &piece, buffer, &err);
                if (r < 0)
                        break;
                progress_add(copy->progress, piece.length);
                r = 1;
        }
        if (r < 0)
                give_up(copy, &err);
        return NULL;
}

/* One request of a lane that has many under way. */
struct slot {
        struct piece piece;
        uint8_t *buffer;
        bool busy, arrived;
        int result;
};

struct lane_state {
        struct slot slots[NBD_DEPTH];
        unsigned n_busy;
};

static void slot_done(void *opaque, int result)
{
        struct slot *slot = opaque;

        slot->arrived = true;
        slot->result = result;
}

static int submit_all(struct copy *copy, unsigned lane, struct lane_state *state, bool *ret_end,
        struct error *err)
{
        for (unsigned i = 0; i < NBD_DEPTH && !*ret_end; i++) {
                struct slot *slot = &state->slots[i];
                int r;

                if (slot->busy)
                        continue;
                r = take_piece(copy, lane, &slot->piece, err);
                if (r < 0)
                        return r;
                if (r == 0) {
                        *ret_end = true;
                        break;
                }
                if (!slot->buffer && !(slot->buffer = aligned_alloc(ZERO_UNIT, copy->chunk)))
                        return fail(err, ENOMEM, "no memory for a buffer");
                slot->arrived = false;
                r = source_submit(copy->source, lane, slot->buffer, slot->piece.length,
                        slot->piece.offset, slot_done, slot, err);
                if (r < 0)
                        return r;
                slot->busy = true;
                state->n_busy++;
        }
        return 0;
}

static int take_in(struct copy *copy, struct lane_state *state, struct error *err)
{
        for (unsigned i = 0; i < NBD_DEPTH; i++) {
                struct slot *slot = &state->slots[i];
                int r;

                if (!slot->busy || !slot->arrived)
                        continue;
                slot->busy = false;
                state->n_busy--;
                if (slot->result < 0) {
                        r = fail_os(err, -slot->result,
                                "cannot read %zu bytes at offset %llu of '%s'", slot->piece.length,
                                (unsigned long long)slot->piece.offset, source_name(copy->source));
                        error_set_file(err, source_name(copy->source));
                        error_set_offset(err, slot->piece.offset);
                        return r;
                }
                r = write_data(copy, slot->buffer, slot->piece.length, slot->piece.offset, err);
                if (r < 0)
                        return r;
                progress_add(copy->progress, slot->piece.length);
        }
        return 0;
}

static void *copy_many_at_once(void *opaque)
{
        struct worker *worker = opaque;
        struct copy *copy = worker->copy;
        struct lane_state state = {0};
        struct error err = ERROR_INIT;
        bool end = false;
        int r;

        do {
                r = submit_all(copy, worker->lane, &state, &end, &err);
                if (r == 0 && state.n_busy > 0)
                        r = source_wait(copy->source, worker->lane, NBD_WAIT_MS, &err);
                if (r == 0)
                        r = take_in(copy, &state, &err);
                if (r == 0 && newfile_stopped())
                        r = fail(&err, EINTR, "stopped by a signal");
        } while (r == 0 && !is_over(copy) && (state.n_busy > 0 || !end));

        if (r < 0)
                give_up(copy, &err);
        /* Requests that are still under way after a failure touch neither slot nor buffer any more:
         * only this thread's calls move bytes of its lane, and closing forgets them. */
        for (unsigned i = 0; i < NBD_DEPTH; i++)
                free(state.slots[i].buffer);
        return NULL;
}

int copy_run(struct source *source, const struct sink *sink, struct progress *progress,
        struct error *err)
{
        struct copy copy = {
                .source = source,
                .sink = sink,
                .progress = progress,
                .size = source_size(source),
                .chunk = CHUNK_SIZE,
                .lock = PTHREAD_MUTEX_INITIALIZER,
        };
        struct worker workers[SOURCE_MAX_LANES];
        pthread_t threads[SOURCE_MAX_LANES];
        void *(*work)(void *) = copy_in_turn;
        unsigned n = 0;

        if (source_is_async(source)) {
                work = copy_many_at_once;
                copy.chunk = NBD_CHUNK_SIZE;
                while (copy.chunk > source_max_request(source))
                        copy.chunk /= 2;
        }
        copy.sink_file = sink->file;
        if (sink->chain)
                copy.sink_file = chain_layer(sink->chain, chain_depth(sink->chain) - 1)->file;
        atomic_init(&copy.may_clone, true);
        for (unsigned i = 0; i < source_lanes(source); i++) {
                workers[i] = (struct worker){&copy, i};
                /* The last one works here: with one lane there is no thread at all. */
                if (i + 1 == source_lanes(source))
                        work(&workers[i]);
                else if (pthread_create(&threads[n], NULL, work, &workers[i]) == 0)
                        n++;
        }
        for (unsigned i = 0; i < n; i++)
                pthread_join(threads[i], NULL);
        if (is_over(&copy)) {
                if (err)
                        *err = copy.err;
                return -copy.err.code;
        }
        return 0;
}

int copy_count_data(struct source *source, uint64_t enough, uint64_t *ret, struct error *err)
{
        uint64_t sum = 0, offset = 0, size = source_size(source);

        while (offset < size && sum <= enough) {
                struct source_extent run;
                int r = source_extent_get(source, 0, offset, size - offset, &run, err);

                if (r < 0)
                        return r;
                offset += run.length;
                if (!run.zero)
                        sum += run.length;
        }
        *ret = sum;
        return 0;
}
