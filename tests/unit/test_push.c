/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots of live chains: an empty layer is put on top while requests run. What could go wrong in the
 * world: a guest reads what is not on its disk any more, a snapshot holds what was written after it, a
 * flush is answered whose data a power cut takes away, or a change waits for ever. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "chain/push.h"
#include "formats/vhd/create.h"

#define MAX_FILES 12
#define SIZE      (200u * 1024)
#define BLOCK     4096u
#define PAUSE_US  30000 /* what must not happen gets so long to happen */

struct world {
        char directory[64];
        char paths[MAX_FILES][96];
        unsigned n;
        struct chain *chain;
        uint8_t *model, *buffer;
        uint8_t *kept[MAX_FILES]; /* what each snapshot's image reads as */
        uint64_t random;
        const char *format;
};

static const uint8_t vm[16] = {1, 2, 3, 4, 5, 6, 7, 8}, snapshot[16] = {9, 9, 9}, any_id[16];

#define OK(call) cr_assert((call) == 0, "%s", err.message)

static uint64_t below(struct world *w, uint64_t n)
{
        w->random = w->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
        return (w->random >> 33) % n;
}

static void make_root(struct world *w, enum vhd_type type)
{
        struct vhd_create_params params = {
                .type = type, .size = SIZE, .block_size = type == VHD_TYPE_DYNAMIC ? BLOCK : 0};
        struct error err = ERROR_INIT;
        struct file *file;

        OK(file_open(host_fs(), w->paths[0], FILE_WRITE | FILE_CREATE, &file, &err));
        if (w->format)
                OK(file_truncate(file, SIZE));
        else
                OK(vhd_create(file, &params, &err));
        file_close(file);
}

static void open_tip(struct world *w)
{
        struct chain_options options = {.writable = true};
        struct error err = ERROR_INIT;

        if (w->n == 1)
                options.format = w->format;
        OK(chain_open(w->paths[w->n - 1], &options, &w->chain, &err));
        cr_assert(chain_is_writable(w->chain));
        cr_assert_eq(chain_depth(w->chain), w->n);
}

static void begin_type(struct world *w, enum vhd_type type, const char *format)
{
        *w = (struct world){.directory = "/tmp/vhdd-test-XXXXXX", .n = 1, .random = 7};
        cr_assert(mkdtemp(w->directory) != NULL);
        w->format = format;
        for (unsigned i = 0; i < MAX_FILES; i++)
                snprintf(w->paths[i], sizeof(w->paths[i]), "%.40s/%u.%s", w->directory, i,
                        format && i == 0 ? "raw" : "vhd");
        w->model = calloc(1, SIZE);
        w->buffer = calloc(1, SIZE);
        make_root(w, type);
        open_tip(w);
}

static void begin(struct world *w)
{
        begin_type(w, VHD_TYPE_DYNAMIC, NULL);
}

static void end(struct world *w)
{
        struct error err = ERROR_INIT;

        if (w->chain)
                OK(chain_close(w->chain, &err));
        for (unsigned i = 0; i < MAX_FILES; i++) {
                unlink(w->paths[i]);
                free(w->kept[i]);
        }
        cr_assert(rmdir(w->directory) == 0, "something was left in %s", w->directory);
        free(w->model);
        free(w->buffer);
}

static void check_all(struct world *w, struct chain *chain, const uint8_t *model)
{
        cr_assert_eq(chain_read(chain, w->buffer, SIZE, 0, 0), 0);
        for (unsigned i = 0; i < SIZE; i++)
                cr_assert(w->buffer[i] == model[i], "byte %u is %02x, not %02x", i, w->buffer[i],
                        model[i]);
}

static void write_at(struct world *w, uint64_t offset, uint64_t length, uint8_t byte)
{
        memset(w->model + offset, byte, length);
        cr_assert_eq(chain_write(w->chain, w->model + offset, length, offset, 0), 0);
}

/* Reads of a few sectors again and again make the resolved maps that a push has to bear with. */
static void read_often(struct world *w)
{
        for (unsigned i = 0; i < 200; i++) {
                uint64_t offset = below(w, SIZE - 2 * SECTOR_SIZE);

                cr_assert_eq(chain_read(w->chain, w->buffer, 2 * SECTOR_SIZE, offset, 0), 0);
                cr_assert(memcmp(w->buffer, w->model + offset, 2 * SECTOR_SIZE) == 0);
        }
}

static void change_some(struct world *w, unsigned n)
{
        for (unsigned i = 0; i < n; i++) {
                uint64_t offset = below(w, SIZE), length = 1 + below(w, below(w, 3) ? 2000 : 9000);

                if (below(w, 4) == 0) {
                        offset = round_down_to(offset, BLOCK);
                        length = BLOCK;
                }
                length = MIN_OF(length, SIZE - offset);
                switch (below(w, 6)) {
                case 0:
                        memset(w->model + offset, 0, length);
                        cr_assert_eq(chain_zero(w->chain, length, offset, 0), 0);
                        break;
                case 1: /* what a trimmed range reads as is the disk's to say */
                        cr_assert_eq(chain_trim(w->chain, length, offset, 0), 0);
                        cr_assert_eq(chain_read(w->chain, w->model + offset, length, offset, 0), 0);
                        break;
                default: write_at(w, offset, length, (uint8_t)below(w, 256));
                }
        }
}

static struct image *open_child(struct world *w)
{
        struct error err = ERROR_INIT;
        struct image *child;

        OK(chain_child_create(w->chain, w->paths[w->n], any_id, &err));
        OK(chain_child_open(w->chain, w->paths[w->n], &child, &err));
        return child;
}

static void push(struct world *w)
{
        struct image *child = open_child(w);

        chain_hold(w->chain);
        chain_push(w->chain, child);
        chain_release(w->chain);
        w->kept[w->n - 1] = malloc(SIZE);
        memcpy(w->kept[w->n - 1], w->model, SIZE);
        w->n++;
        cr_assert_eq(chain_depth(w->chain), w->n);
}

static void flush_frozen(struct world *w)
{
        struct error err = ERROR_INIT;

        OK(chain_flush_frozen(w->chain, &err));
        cr_assert_eq(chain_n_frozen(w->chain), 0);
}

/* Opens each frozen image as a reader of its own, beside the live chain. */
static void check_snapshots(struct world *w)
{
        for (unsigned i = 0; i + 1 < w->n; i++) {
                const char *parents[MAX_FILES];
                struct chain_options options = {
                        .format = i == 0 ? w->format : NULL, .parents = parents, .n_parents = i};
                struct error err = ERROR_INIT;
                struct chain *chain;

                for (unsigned k = 0; k < i; k++) /* a raw one has to be named */
                        parents[k] = w->paths[i - 1 - k];
                OK(chain_open(w->paths[i], &options, &chain, &err));
                check_all(w, chain, w->kept[i]);
                OK(chain_close(chain, &err));
        }
}

static void run_pushes(enum vhd_type type, const char *format, bool deaths)
{
        struct error err = ERROR_INIT;
        struct world w;

        begin_type(&w, type, format);
        change_some(&w, 60);
        while (w.n < 8) {
                read_often(&w);
                push(&w);
                check_all(&w, w.chain, w.model);
                change_some(&w, 50);
                read_often(&w);
                if (below(&w, 2) || w.n == 8)
                        flush_frozen(&w);
                change_some(&w, 20);
                check_all(&w, w.chain, w.model);
                if (deaths && below(&w, 2) && !(format && w.n > 1)) {
                        w.chain = chain_abandon(w.chain);
                        open_tip(&w);
                        cr_assert_eq(chain_n_frozen(w.chain), 0);
                        check_all(&w, w.chain, w.model);
                }
        }
        check_snapshots(&w);
        if (!format) {
                OK(chain_close(w.chain, &err));
                open_tip(&w);
                check_all(&w, w.chain, w.model);
        }
        end(&w);
}

Test(push, the_disk_goes_on_and_each_snapshot_stays_what_it_was)
{
        run_pushes(VHD_TYPE_DYNAMIC, NULL, false);
}

Test(push, what_frozen_images_had_not_written_survives_a_death)
{
        run_pushes(VHD_TYPE_DYNAMIC, NULL, true);
}

/* Its blocks, steps and gates are others than those of the leaf that comes. */
Test(push, a_flat_leaf_becomes_a_parent)
{
        run_pushes(VHD_TYPE_FIXED, NULL, true);
        run_pushes(VHD_TYPE_FIXED, "raw", false);
}

/* --- holding */

struct late_write {
        struct world *world;
        pthread_t thread;
        atomic_bool done;
        unsigned flags;
        int result;
        bool flush;
};

static void *late_main(void *opaque)
{
        struct late_write *late = opaque;
        uint8_t bytes[SECTOR_SIZE];

        memset(bytes, 0x5a, sizeof(bytes));
        late->result = late->flush
                ? chain_flush(late->world->chain)
                : chain_write(late->world->chain, bytes, sizeof(bytes), 0, late->flags);
        atomic_store(&late->done, true);
        return NULL;
}

static void late_begin(struct late_write *late)
{
        atomic_store(&late->done, false);
        cr_assert(pthread_create(&late->thread, NULL, late_main, late) == 0);
}

Test(push, changes_wait_while_it_is_held_and_reads_and_flushes_do_not)
{
        struct world w;
        struct late_write late = {.world = &w};

        begin(&w);
        write_at(&w, 0, 4 * BLOCK, 0x11);
        chain_hold(w.chain);
        cr_assert_eq(chain_write(w.chain, w.buffer, 512, 0, CHAIN_NOWAIT), -EAGAIN);
        cr_assert_eq(chain_zero(w.chain, BLOCK, 0, CHAIN_NOWAIT), -EAGAIN);
        cr_assert_eq(chain_trim(w.chain, BLOCK, 0, CHAIN_NOWAIT), -EAGAIN);
        late_begin(&late);
        check_all(&w, w.chain, w.model);
        cr_assert_eq(chain_flush(w.chain), 0);
        usleep(PAUSE_US);
        cr_assert(!atomic_load(&late.done));
        check_all(&w, w.chain, w.model);
        chain_release(w.chain);
        pthread_join(late.thread, NULL);
        cr_assert_eq(late.result, 0);
        memset(w.model, 0x5a, SECTOR_SIZE);
        check_all(&w, w.chain, w.model);
        cr_assert_eq(chain_write(w.chain, w.model, 512, 0, CHAIN_NOWAIT), 0);
        end(&w);
}

/* --- the commit */

Test(push, flushes_and_fua_are_answered_after_the_commit)
{
        struct world w;
        struct late_write flush = {.world = &w, .flush = true},
                          fua = {.world = &w, .flags = CHAIN_FUA},
                          again = {.world = &w, .flush = true};

        begin(&w);
        write_at(&w, 0, 2 * BLOCK, 0x11);
        cr_assert_eq(chain_flush(w.chain), 0);
        cr_assert_eq(chain_uncommitted(w.chain), 0);
        late_begin(&flush); /* finds nothing dirty */
        late_begin(&fua);   /* needs no round */
        cr_assert_eq(chain_write(w.chain, w.model, 512, BLOCK, 0), 0);
        usleep(PAUSE_US);
        cr_assert(!atomic_load(&flush.done));
        cr_assert(!atomic_load(&fua.done));
        cr_assert_eq(chain_write(w.chain, w.model, 512, 0, CHAIN_FUA | CHAIN_LATER), -EINPROGRESS);
        cr_assert_eq(chain_zero(w.chain, BLOCK, BLOCK, CHAIN_FUA | CHAIN_LATER), -EINPROGRESS);
        chain_committed(w.chain);
        cr_assert_eq(chain_write(w.chain, w.model, 512, 0, CHAIN_FUA | CHAIN_LATER), 0);
        pthread_join(flush.thread, NULL);
        pthread_join(fua.thread, NULL);
        cr_assert_eq(flush.result, 0);
        cr_assert_eq(fua.result, 0);
        cr_assert_eq(chain_flush(w.chain), 0);

        cr_assert_eq(chain_uncommitted(w.chain), 0);
        late_begin(&again);
        usleep(PAUSE_US);
        cr_assert(!atomic_load(&again.done));
        chain_commits_abort(w.chain);
        pthread_join(again.thread, NULL);
        cr_assert_eq(again.result, -ESHUTDOWN);
        cr_assert_eq(chain_flush(w.chain), -ESHUTDOWN);
        cr_assert_eq(chain_uncommitted(w.chain), -ESHUTDOWN);
        end(&w);
}

static void *uncommitted_main(void *opaque)
{
        struct late_write *late = opaque;

        late->result = chain_uncommitted(late->world->chain);
        atomic_store(&late->done, true);
        return NULL;
}

Test(push, a_second_snapshot_waits_for_the_first_ones_commit)
{
        struct world w;
        struct late_write second = {.world = &w};

        begin(&w);
        cr_assert_eq(chain_uncommitted(w.chain), 0);
        cr_assert(pthread_create(&second.thread, NULL, uncommitted_main, &second) == 0);
        usleep(PAUSE_US);
        cr_assert(!atomic_load(&second.done));
        chain_committed(w.chain);
        pthread_join(second.thread, NULL);
        cr_assert_eq(second.result, 0);
        chain_committed(w.chain);
        cr_assert_eq(chain_flush(w.chain), 0);
        end(&w);
}

/* --- settling */

static uint64_t file_size(const char *path)
{
        struct stat st;

        cr_assert(stat(path, &st) == 0);
        return (uint64_t)st.st_size;
}

static unsigned redo_state(const char *path)
{
        struct error err = ERROR_INIT;
        struct file *file;
        struct image *image;
        unsigned unclean;

        OK(file_open(host_fs(), path, FILE_READ, &file, &err));
        OK(image_open(file, NULL, 0, &image, &err));
        unclean = image->unclean;
        image_abandon(image);
        return unclean;
}

/* A snapshot's image is one that others may open, as long as nobody writes it. */
Test(push, a_settled_image_is_as_after_a_clean_close)
{
        struct error err = ERROR_INIT;
        uint64_t before, after;
        struct file *file;
        struct image *image;
        struct world w;

        begin(&w);
        write_at(&w, 0, 8 * BLOCK, 0x31);
        before = file_size(w.paths[0]);
        push(&w);
        OK(file_open(host_fs(), w.paths[0], FILE_READ, &file, &err));
        cr_assert_eq(image_open(file, NULL, 0, &image, &err), -EBUSY);
        flush_frozen(&w);
        after = file_size(w.paths[0]);
        cr_assert(after < before, "the footer is still %llu bytes out",
                (unsigned long long)(after - before));
        cr_assert_eq(redo_state(w.paths[0]), 0);
        OK(image_open(file, NULL, 0, &image, &err));
        image_abandon(image);
        OK(file_open(host_fs(), w.paths[0], FILE_WRITE, &file, &err));
        cr_assert_eq(image_open(file, NULL, IMAGE_WRITABLE, &image, &err), -EBUSY);
        file_close(file);
        cr_assert_eq(chain_flush(w.chain), 0);
        check_all(&w, w.chain, w.model);
        flush_frozen(&w); /* nothing to do is fine */
        end(&w);
}

/* A sender may still read where the frozen image had a block: its end is not cut off under it. */
Test(push, settling_leaves_freed_places_to_those_who_read_there)
{
        struct chain_extent extent;
        struct world w;
        uint64_t ticket;

        begin(&w);
        write_at(&w, 0, 8 * BLOCK, 0x31);
        cr_assert_eq(chain_flush(w.chain), 0);
        ticket = chain_ticket_get(w.chain);
        cr_assert_eq(chain_map(w.chain, 7 * BLOCK, BLOCK, 0, &extent), 0);
        cr_assert_eq(extent.kind, EXTENT_DATA);
        cr_assert_eq(chain_trim(w.chain, BLOCK, 7 * BLOCK, 0), 0);
        memset(w.model + 7 * BLOCK, 0, BLOCK);
        push(&w);
        flush_frozen(&w);
        cr_assert(file_size(w.paths[0]) >= extent.file_offset + BLOCK + 512);
        chain_ticket_put(w.chain, ticket);
        end(&w);
}

/* E8: a ticket from before the push covers the leaf that came after it. */
Test(push, a_ticket_covers_leaves_that_come_later)
{
        struct chain_extent extent;
        struct world w;
        uint64_t ticket;

        begin(&w);
        ticket = chain_ticket_get(w.chain);
        push(&w);
        write_at(&w, 0, BLOCK, 0x31);
        cr_assert_eq(chain_map(w.chain, 0, BLOCK, 0, &extent), 0);
        cr_assert_eq(chain_trim(w.chain, BLOCK, 0, 0), 0);
        memset(w.model, 0, BLOCK);
        for (unsigned i = 0; i < 3; i++) /* committed, and nobody's but the ticket's */
                cr_assert_eq(chain_flush(w.chain), 0);
        for (unsigned i = 1; i < 8; i++) {
                struct chain_extent other;

                write_at(&w, i * BLOCK, BLOCK, (uint8_t)i);
                cr_assert_eq(chain_map(w.chain, i * BLOCK, BLOCK, 0, &other), 0);
                cr_assert(other.file != extent.file || other.file_offset != extent.file_offset,
                        "block %u is where a ticket's holder reads", i);
        }
        chain_ticket_put(w.chain, ticket);
        check_all(&w, w.chain, w.model);
        end(&w);
}

/* E5: the sync of a frozen image fails. */
static int failing_sync(struct file *file)
{
        return -EIO;
}

Test(push, a_failed_sync_of_a_frozen_image_ends_writing)
{
        struct error err = ERROR_INIT;
        struct file_ops ops;
        struct file *file;
        struct world w;
        struct late_write fua = {.world = &w, .flags = CHAIN_FUA};

        begin(&w);
        write_at(&w, 0, 2 * BLOCK, 0x31);
        push(&w);
        write_at(&w, 0, 2 * BLOCK, 0x5a);
        cr_assert_eq(chain_flush(w.chain), 0); /* from here FUA needs no round */
        file = chain_layer(w.chain, 0)->file;
        ops = *file->ops;
        ops.sync = failing_sync;
        file->ops = &ops;
        /* One who waits for the commit already hears of it. */
        cr_assert_eq(chain_uncommitted(w.chain), 0);
        late_begin(&fua);
        usleep(PAUSE_US);
        cr_assert(!atomic_load(&fua.done));
        cr_assert_eq(chain_flush_frozen(w.chain, &err), -EIO);
        pthread_join(fua.thread, NULL);
        cr_assert_eq(fua.result, -EIO);
        cr_assert_eq(chain_uncommitted(w.chain), -EIO);
        cr_assert(strstr(err.message, w.paths[0]) != NULL, "%s", err.message);
        cr_assert_eq(chain_flush(w.chain), -EIO);
        cr_assert_eq(chain_flush(w.chain), -EIO);
        cr_assert_eq(chain_write(w.chain, w.model, 512, BLOCK, CHAIN_FUA), -EIO);
        cr_assert_eq(chain_write(w.chain, w.model, 512, BLOCK, 0), -EIO);
        check_all(&w, w.chain, w.model);
        cr_assert_eq(chain_n_frozen(w.chain), 1);
        w.chain = chain_abandon(w.chain);

        /* And not lifted by the process's end. */
        {
                struct chain_options options = {.writable = true};

                OK(chain_open(w.paths[1], &options, &w.chain, &err));
                cr_assert(!chain_is_writable(w.chain));
                cr_assert_eq(chain_flush(w.chain), -EIO);
                chain_abandon(w.chain);
                w.chain = NULL;
        }
        for (unsigned i = 0; i < 2; i++)
                OK(chain_forget_image(host_fs(), w.paths[i], &err));
        end(&w);
}

/* --- after a death */

Test(push, a_parent_that_was_left_unfinished_is_settled_before_it_is_stood_on)
{
        struct world w;

        begin(&w);
        write_at(&w, 0, 3 * BLOCK, 0x41);
        push(&w);
        write_at(&w, BLOCK, 100, 0x42);
        w.chain = chain_abandon(w.chain);
        cr_assert_eq(redo_state(w.paths[0]), 1);
        open_tip(&w);
        cr_assert_eq(redo_state(w.paths[0]), 0);
        check_all(&w, w.chain, w.model);
        end(&w);
}

Test(push, an_image_is_settled_alone)
{
        struct error err = ERROR_INIT;
        struct world w;

        begin(&w);
        write_at(&w, 0, 3 * BLOCK, 0x41);
        w.chain = chain_abandon(w.chain);
        cr_assert_eq(redo_state(w.paths[0]), 1);
        OK(chain_settle_image(host_fs(), w.paths[0], NULL, &err));
        cr_assert_eq(redo_state(w.paths[0]), 0);
        open_tip(&w);
        check_all(&w, w.chain, w.model);
        end(&w);
}

/* --- what is refused */

static void make_other(
        struct world *w, const char *path, uint64_t size, uint32_t block_size, uint8_t parent_bit)
{
        struct vhd_create_params params = {.type = VHD_TYPE_DIFFERENCING,
                .size = size,
                .block_size = block_size,
                .parent_name = "0.vhd",
                .parent_relative = "0.vhd"};
        struct error err = ERROR_INIT;
        struct file *file;

        memcpy(params.parent_id, chain_layer(w->chain, 0)->id, 16);
        params.parent_id[3] ^= parent_bit;
        OK(file_open(host_fs(), path, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE, &file, &err));
        OK(vhd_create(file, &params, &err));
        file_close(file);
}

static void refuse(struct world *w, const char *path, int code, const char *words)
{
        struct error err = ERROR_INIT;
        struct image *child = NULL;

        cr_assert_eq(chain_child_open(w->chain, path, &child, &err), code, "%s", err.message);
        cr_assert(strstr(err.message, words) != NULL, "%s", err.message);
        cr_assert_null(child);
}

Test(push, only_an_empty_child_of_the_leaf_may_become_the_leaf)
{
        struct chain_options options = {.writable = true};
        struct error err = ERROR_INIT;
        struct image *child;
        struct chain *other;
        struct world w;

        begin(&w);
        make_other(&w, w.paths[1], SIZE, BLOCK, 0x80);
        refuse(&w, w.paths[1], -ESTALE, "does not stand on");
        make_other(&w, w.paths[1], SIZE + 1024, BLOCK, 0);
        refuse(&w, w.paths[1], -EINVAL, "bytes, and the disk");
        make_other(&w, w.paths[1], SIZE, BLOCK / 2, 0);
        refuse(&w, w.paths[1], -EINVAL, "smaller than the chain's");
        refuse(&w, w.paths[5], -ENOENT, w.paths[5]);
        cr_assert_eq(chain_child_create(w.chain, w.paths[1], any_id, &err), -EEXIST);
        cr_assert_eq(chain_child_create(w.chain, "x.vhd", any_id, &err), -EINVAL);
        unlink(w.paths[1]);

        /* One that has a sector of its own already. */
        OK(chain_child_create(w.chain, w.paths[1], any_id, &err));
        OK(chain_close(w.chain, &err));
        OK(chain_open(w.paths[1], &options, &other, &err));
        cr_assert_eq(chain_write(other, w.buffer, 512, 3 * BLOCK, 0), 0);
        OK(chain_close(other, &err));
        open_tip(&w);
        refuse(&w, w.paths[1], -EINVAL, "is not empty");

        /* One that was made ready and not used leaves nothing behind. */
        unlink(w.paths[1]);
        child = open_child(&w);
        chain_child_close(child);
        cr_assert_eq(redo_state(w.paths[1]), 0);
        end(&w);
}

Test(push, a_chain_that_takes_no_writes_takes_no_child)
{
        struct chain_options options = {0}, scratch = {.writable = true, .scratch = true};
        struct error err = ERROR_INIT;
        struct world w;

        begin(&w);
        OK(chain_close(w.chain, &err));
        OK(chain_open(w.paths[0], &options, &w.chain, &err));
        OK(chain_child_create(w.chain, w.paths[1], any_id, &err));
        refuse(&w, w.paths[1], -EROFS, "not open for writing");
        OK(chain_close(w.chain, &err));
        OK(chain_open(w.paths[0], &scratch, &w.chain, &err));
        refuse(&w, w.paths[1], -EROFS, "not open for writing");
        end(&w);
}

/* --- all disks of a vm */

Test(push, a_switch_is_recorded_for_all_disks)
{
        struct chain_switch disks[2] = {{.id = {1}}, {.id = {2}}};
        struct switch_record *record = calloc(1, sizeof(*record));
        struct error err = ERROR_INIT;
        struct switch_region *region;
        struct file_stat st;
        uint64_t stall_ns = 0;
        struct world w[2];

        for (unsigned i = 0; i < 2; i++) {
                begin(&w[i]);
                write_at(&w[i], 0, BLOCK, (uint8_t)(0x20 + i));
                disks[i].chain = w[i].chain;
                disks[i].child = open_child(&w[i]);
        }
        OK(switch_open(host_fs(), vm, w[0].paths[0], true, &region, &err));
        cr_assert_eq(switch_read(region, record), -ENOENT);
        OK(chain_switch(disks, 2, region, snapshot, &stall_ns, &err));
        cr_assert(stall_ns > 0);
        OK(switch_read(region, record));
        cr_assert_eq(record->n_disks, 2);
        cr_assert(memcmp(record->snapshot, snapshot, 16) == 0);
        for (unsigned i = 0; i < 2; i++) {
                cr_assert_eq(chain_depth(w[i].chain), 2);
                cr_assert_eq(record->disks[i].id[0], i + 1);
                OK(file_stat_get(chain_layer(w[i].chain, 0)->file, &st));
                cr_assert_eq(switch_find_frozen(record, &st), &record->disks[i]);
                cr_assert_null(switch_find_leaf(record, &st));
                OK(file_stat_get(chain_layer(w[i].chain, 1)->file, &st));
                cr_assert_eq(switch_find_leaf(record, &st), &record->disks[i]);
                cr_assert(!memcmp(record->disks[i].leaf.id, chain_layer(w[i].chain, 1)->id, 16));
                OK(chain_flush_frozen(w[i].chain, &err));
                chain_committed(w[i].chain);
                cr_assert_eq(chain_flush(w[i].chain), 0);
                end(&w[i]);
        }
        switch_clear(region);
        cr_assert_eq(switch_read(region, record), -ENOENT);
        switch_close(region, true);
        cr_assert_eq(switch_open(host_fs(), vm, "/tmp/none", false, &region, &err), -ENOENT);
        free(record);
}

/* A flush ahead that fails, or a commit that will not come: nobody was held, nothing is switched. */
Test(push, a_switch_that_cannot_be_changes_nothing)
{
        struct chain_switch disks[2] = {0};
        struct error err = ERROR_INIT;
        struct switch_region *region;
        uint64_t stall_ns = 0;
        struct world w[2];

        for (unsigned i = 0; i < 2; i++) {
                begin(&w[i]);
                disks[i].chain = w[i].chain;
                disks[i].child = open_child(&w[i]);
        }
        OK(switch_open(host_fs(), vm, w[0].paths[0], true, &region, &err));
        chain_commits_abort(w[1].chain);
        cr_assert_eq(chain_switch(disks, 2, region, snapshot, &stall_ns, &err), -ESHUTDOWN);
        for (unsigned i = 0; i < 2; i++) {
                cr_assert_eq(chain_depth(w[i].chain), 1);
                cr_assert_eq(chain_write(w[i].chain, w[i].buffer, 512, 0, CHAIN_NOWAIT), -EAGAIN);
                write_at(&w[i], 0, BLOCK, 0x77); /* not held: only its place took I/O */
                cr_assert_eq(chain_flush(w[i].chain), 0, "a flush waits for no commit");
                chain_child_close(disks[i].child);
                end(&w[i]);
        }
        switch_close(region, true);
}
