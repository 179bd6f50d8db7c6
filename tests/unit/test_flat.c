/* SPDX-License-Identifier: Apache-2.0 */
/* Raw images and fixed VHDs have no metadata to lose, but a lost writeback they have: Linux tells of
 * it once, to one caller. A flush that is answered with 0 after that, in this process or the next,
 * is a lie that costs the guest its file system. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "formats/flat.h"

static char directory[] = "/tmp/vhdd-flat-XXXXXX";
static char path[64];

static void make_file(void)
{
        FILE *f;

        strcpy(directory, "/tmp/vhdd-flat-XXXXXX");
        cr_assert(ne(ptr, mkdtemp(directory), NULL));
        snprintf(path, sizeof(path), "%s/disk", directory);
        f = fopen(path, "w");
        cr_assert(ne(ptr, f, NULL));
        fclose(f);
        cr_assert(eq(int, truncate(path, (off_t)(4 * MIB)), 0));
}

static void remove_file(void)
{
        unlink(path);
        rmdir(directory);
}

TestSuite(flat, .init = make_file, .fini = remove_file, .timeout = 20);

static struct file *open_disk(unsigned flags)
{
        struct error err = ERROR_INIT;
        struct file *file = NULL;

        cr_assert(eq(int, file_open(host_fs(), path, flags, &file, &err), 0), "%s", err.message);
        return file;
}

/* Opens for writing; answers whether it may be written to. */
static bool open_flat(struct flat *flat, struct file *file, char *warning)
{
        struct error err = ERROR_INIT;
        bool writable = false;

        warning[0] = '\0';
        cr_assert(eq(int, flat_open(flat, file, 4 * MIB, true, &writable, warning, &err), 0), "%s",
                err.message);
        return writable;
}

/* A file whose sync fails a given number of times and then "succeeds", as Linux' does. */
static const struct file_ops *real_ops;
static struct file_ops broken_ops;
static atomic_int n_syncs, n_failures_left;

static int broken_sync(struct file *file)
{
        atomic_fetch_add(&n_syncs, 1);
        if (atomic_fetch_sub(&n_failures_left, 1) > 0)
                return -EIO;
        return real_ops->sync(file);
}

static void break_sync(struct file *file, int n_failures)
{
        real_ops = file->ops;
        broken_ops = *file->ops;
        broken_ops.sync = broken_sync;
        file->ops = &broken_ops;
        atomic_store(&n_syncs, 0);
        atomic_store(&n_failures_left, n_failures);
}

/* Leaves no mark behind for the next test, whose file may get the same inode. */
static void lift(struct file *file)
{
        struct error err = ERROR_INIT;

        cr_expect(eq(int, poison_lift(file, &err), 0), "%s", err.message);
        file_close(file);
}

Test(flat, maps_each_byte_to_itself)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        struct extent extent;
        uint64_t at = 0;
        bool zero = true, changed = true;
        struct flat flat;

        cr_assert(open_flat(&flat, file, warning));
        cr_assert(eq(int, flat_map(&flat, 12345, 4 * MIB - 12345, MAP_NOWAIT, &extent), 0));
        cr_expect(eq(int, (int)extent.kind, EXTENT_DATA));
        cr_expect(eq(u64, extent.file_offset, 12345));
        cr_expect(eq(u64, extent.length, 4 * MIB - 12345));
        cr_assert(eq(int, flat_prepare(&flat, 777, 3, &at, &zero), 0));
        cr_expect(eq(u64, at, 777));
        cr_expect(not(zero));
        cr_assert(eq(int, flat_complete(&flat, 777, 3, &changed), 0));
        cr_expect(not(changed));
        cr_expect(flat_is_durable(&flat, 777, 3));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        file_close(file);
}

Test(flat, holes_are_zeros_only_when_asked_for)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        struct extent extent;
        uint64_t at = 0, n_data = 0;
        struct flat flat;

        cr_assert(eq(int, file_write(file, "data", 4, MIB, 0), 0));
        cr_assert(open_flat(&flat, file, warning));
        cr_expect(eq(int, flat_map(&flat, 0, 4 * MIB, MAP_HOLES | MAP_NOWAIT, &extent), -EAGAIN));
        while (at < 4 * MIB) {
                cr_assert(eq(int, flat_map(&flat, at, 4 * MIB - at, MAP_HOLES, &extent), 0));
                cr_assert(gt(u64, extent.length, 0));
                if (extent.kind == EXTENT_DATA) {
                        cr_expect(eq(u64, extent.file_offset, at));
                        cr_expect(le(u64, at, MIB));
                        cr_expect(gt(u64, at + extent.length, MIB));
                        n_data++;
                } else {
                        cr_expect(eq(int, (int)extent.kind, EXTENT_ZERO));
                }
                at += extent.length;
        }
        cr_expect(eq(u64, at, 4 * MIB));
        cr_expect(eq(u64, n_data, 1));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        file_close(file);
}

Test(flat, failed_sync_is_never_tried_again)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        struct error err = ERROR_INIT;
        struct flat flat;
        uint64_t at;
        bool zero;

        cr_assert(open_flat(&flat, file, warning));
        break_sync(file, 1);
        cr_expect(eq(int, flat_flush(&flat), -EIO));
        cr_expect(eq(int, flat_flush(&flat), -EIO));
        cr_expect(eq(int, flat_prepare(&flat, 0, 512, &at, &zero), -EIO));
        cr_expect(not(flat_is_durable(&flat, 0, 512)));
        cr_expect(eq(int, flat_close(&flat, true, &err), -EIO));
        cr_expect(ne(ptr, strstr(err.message, "cannot flush"), NULL), "%s", err.message);
        cr_expect(eq(int, atomic_load(&n_syncs), 1));
        lift(file);
}

Test(flat, failed_durable_write_poisons_too)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        struct flat flat;

        cr_assert(open_flat(&flat, file, warning));
        break_sync(file, 0);
        flat_poison(&flat, EIO);
        cr_expect(eq(int, flat_flush(&flat), -EIO));
        cr_expect(eq(int, atomic_load(&n_syncs), 0));
        flat_close(&flat, false, NULL);
        cr_expect(not(open_flat(&flat, file, warning)));
        flat_close(&flat, false, NULL);
        lift(file);
}

Test(flat, poison_outlives_the_process_until_lifted)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX] = "";
        struct error err = ERROR_INIT;
        bool writable = true;
        struct flat flat;

        cr_assert(open_flat(&flat, file, warning));
        break_sync(file, 1);
        cr_expect(eq(int, flat_flush(&flat), -EIO));
        flat_close(&flat, false, NULL);
        file_close(file);

        /* The next writer may only read, and is told why; so is a reader. */
        file = open_disk(FILE_WRITE);
        cr_expect(not(open_flat(&flat, file, warning)));
        cr_expect(ne(ptr, strstr(warning, "read-only"), NULL), "%s", warning);
        cr_expect(ne(ptr, strstr(warning, path), NULL), "%s", warning);
        cr_expect(eq(int, flat_flush(&flat), 0));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        warning[0] = '\0';
        cr_assert(eq(int, flat_open(&flat, file, 4 * MIB, false, &writable, warning, &err), 0));
        cr_expect(not(writable));
        cr_expect(ne(chr, warning[0], '\0'));
        flat_close(&flat, true, NULL);
        lift(file);

        file = open_disk(FILE_WRITE);
        cr_expect(open_flat(&flat, file, warning));
        cr_expect(eq(chr, warning[0], '\0'));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        file_close(file);
}

Test(flat, dead_writer_leaves_a_sync_to_do)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        struct flat flat;

        cr_assert(open_flat(&flat, file, warning));
        flat_close(&flat, false, NULL);
        break_sync(file, 0);
        cr_expect(open_flat(&flat, file, warning));
        cr_expect(eq(int, atomic_load(&n_syncs), 1));
        flat_close(&flat, false, NULL);

        /* What it wrote was lost: the next one is told so instead of being let in to write. */
        break_sync(file, 1);
        cr_expect(not(open_flat(&flat, file, warning)));
        cr_expect(ne(chr, warning[0], '\0'));
        flat_close(&flat, true, NULL);
        lift(file);
}

Test(flat, clean_end_leaves_nothing)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        struct flat flat;

        cr_assert(open_flat(&flat, file, warning));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        break_sync(file, 0);
        cr_expect(open_flat(&flat, file, warning));
        cr_expect(eq(int, atomic_load(&n_syncs), 0));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        file_close(file);
}

Test(flat, mark_of_another_file_counts_for_nothing)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        struct stat before, after;
        struct flat flat;

        /* An inode's number comes back with the next file that is made: tmpfs and ext4 do so. */
        cr_assert(open_flat(&flat, file, warning));
        break_sync(file, 1);
        cr_expect(eq(int, flat_flush(&flat), -EIO));
        flat_close(&flat, false, NULL);
        cr_assert(eq(int, fstat(file->fd, &before), 0));
        file_close(file);
        for (int i = 0; i < 16; i++) {
                remove_file();
                make_file();
                cr_assert(eq(int, stat(path, &after), 0));
                if (after.st_ino == before.st_ino)
                        break;
        }
        file = open_disk(FILE_WRITE);
        cr_expect(open_flat(&flat, file, warning), "%s", warning);
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        if (after.st_ino != before.st_ino)
                cr_log_info("this file system did not use the inode again");
        file_close(file);
}

/* Slow syncs, many flushers: each is answered by a sync that began after it came (I2), never two at
 * once (I1), and fewer syncs than flushes. */
static atomic_int n_inside, n_together;
static atomic_uint_fast64_t clock_ticks, last_sync_began;

static int slow_sync(struct file *file)
{
        if (atomic_fetch_add(&n_inside, 1) != 0)
                atomic_store(&n_together, 1);
        atomic_store(&last_sync_began, atomic_fetch_add(&clock_ticks, 1) + 1);
        usleep(2000);
        atomic_fetch_sub(&n_inside, 1);
        atomic_fetch_add(&n_syncs, 1);
        return 0;
}

#define N_FLUSHERS 8
#define N_FLUSHES  10

static void *flush_often(void *opaque)
{
        struct flat *flat = opaque;
        intptr_t bad = 0;

        for (int i = 0; i < N_FLUSHES; i++) {
                uint64_t came = atomic_fetch_add(&clock_ticks, 1) + 1;

                bad += flat_flush(flat) != 0;
                bad += atomic_load(&last_sync_began) <= came;
        }
        return (void *)bad;
}

Test(flat, flushes_share_a_sync_that_began_after_them)
{
        struct file *file = open_disk(FILE_WRITE);
        char warning[ERROR_MESSAGE_MAX];
        pthread_t threads[N_FLUSHERS];
        struct flat flat;

        cr_assert(open_flat(&flat, file, warning));
        break_sync(file, 0);
        broken_ops.sync = slow_sync;
        for (int i = 0; i < N_FLUSHERS; i++)
                cr_assert(eq(int, pthread_create(&threads[i], NULL, flush_often, &flat), 0));
        for (int i = 0; i < N_FLUSHERS; i++) {
                void *bad;

                pthread_join(threads[i], &bad);
                cr_expect(eq(ptr, bad, NULL));
        }
        cr_expect(eq(int, atomic_load(&n_together), 0));
        cr_expect(lt(int, atomic_load(&n_syncs), N_FLUSHERS *N_FLUSHES));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        file_close(file);
}

Test(flat, read_only_refuses_writes)
{
        struct file *file = open_disk(FILE_READ);
        char warning[ERROR_MESSAGE_MAX] = "";
        struct error err = ERROR_INIT;
        bool writable = true;
        struct flat flat;
        uint64_t at;
        bool zero;

        cr_assert(eq(int, flat_open(&flat, file, 4 * MIB, false, &writable, warning, &err), 0));
        cr_expect(not(writable));
        cr_expect(eq(int, flat_prepare(&flat, 0, 512, &at, &zero), -EROFS));
        cr_expect(eq(int, flat_flush(&flat), 0));
        cr_expect(eq(int, flat_close(&flat, true, NULL), 0));
        file_close(file);
}
