/* SPDX-License-Identifier: Apache-2.0 */
/* Linux tells of a lost writeback once, to one caller. Whoever syncs after that is answered 0 for data
 * that is gone, and so is one who syncs at the same time. And a write that found no space must not be
 * taken for such a loss: nothing is lost by it.
 * And a kill in the middle of a write leaves it cut where a page of its source begins that was not in
 * memory: were that within a sector of the file, the sector would be neither old nor new. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/bytes.h"
#include "base/file.h"

static struct file *file;
static const struct file_ops *real_ops;
static struct file_ops odd_ops; /* the host's, but for what a test puts in their place */
static atomic_int n_syncs, n_durable_writes, n_inside, n_together;
static atomic_bool writes_crooked; /* from an address at which no sector begins */
static atomic_int sync_fails_with, plain_fails_with, durable_fails_with;

static int odd_sync(struct file *f)
{
        atomic_fetch_add(&n_syncs, 1);
        if (atomic_fetch_add(&n_inside, 1) != 0)
                atomic_store(&n_together, 1);
        usleep(1000);
        atomic_fetch_sub(&n_inside, 1);
        return -atomic_exchange(&sync_fails_with, 0); /* once, and then "success" */
}

static ssize_t odd_writev(
        struct file *f, const struct iovec *iov, int n, uint64_t offset, unsigned flags)
{
        int code;

        for (int i = 0; i < n; i++)
                if (((uintptr_t)iov[i].iov_base - offset) % SECTOR_SIZE != 0)
                        atomic_store(&writes_crooked, true);
        if (!(flags & FILE_DSYNC)) {
                code = atomic_load(&plain_fails_with);
                return code ? -code : real_ops->writev(f, iov, n, offset, 0);
        }
        atomic_fetch_add(&n_durable_writes, 1);
        if (atomic_fetch_add(&n_inside, 1) != 0)
                atomic_store(&n_together, 1);
        usleep(500);
        atomic_fetch_sub(&n_inside, 1);
        code = atomic_load(&durable_fails_with);
        return code ? -code : real_ops->writev(f, iov, n, offset, 0);
}

static void open_odd_file(void)
{
        char path[] = "/tmp/vhdd-file-XXXXXX";
        struct error err = ERROR_INIT;
        int fd = mkstemp(path);

        cr_assert(ge(int, fd, 0));
        unlink(path);
        cr_assert(eq(int, ftruncate(fd, (off_t)MIB), 0));
        cr_assert(eq(int, file_from_fd(fd, path, FILE_WRITE, &file, &err), 0), "%s", err.message);
        real_ops = file->ops;
        odd_ops = *real_ops;
        odd_ops.sync = odd_sync;
        odd_ops.writev = odd_writev;
        file->ops = &odd_ops;
}

static void close_odd_file(void)
{
        file = file_close(file);
}

TestSuite(file_sync, .init = open_odd_file, .fini = close_odd_file, .timeout = 20);
TestSuite(file_write_zeros, .init = open_odd_file, .fini = close_odd_file, .timeout = 20);
TestSuite(file_write_durable, .init = open_odd_file, .fini = close_odd_file, .timeout = 20);

Test(file_sync, is_not_tried_after_one_that_failed)
{
        cr_expect(eq(int, file_sync(file), 0));
        cr_expect(eq(int, file_sync_error(file), 0));
        atomic_store(&sync_fails_with, ENOSPC);
        cr_expect(eq(int, file_sync(file), -ENOSPC));
        cr_expect(eq(int, file_sync(file), -ENOSPC));
        cr_expect(eq(int, file_sync_error(file), -ENOSPC));
        cr_expect(eq(int, atomic_load(&n_syncs), 2));
        cr_expect(eq(int, file_write_durable(file, "x", 1, 0), -ENOSPC));
        cr_expect(eq(int, atomic_load(&n_durable_writes), 0));
}

Test(file_write_durable, writes_and_syncs)
{
        char back[5] = "";

        cr_expect(eq(int, file_write_durable(file, "data", 4, 4096), 0));
        cr_expect(eq(int, atomic_load(&n_durable_writes), 1));
        cr_assert(eq(int, file_read_exact(file, back, 4, 4096), 0));
        cr_expect(eq(int, strcmp(back, "data"), 0));
}

Test(file_write_durable, want_of_space_loses_nothing)
{
        atomic_store(&plain_fails_with, ENOSPC);
        cr_expect(eq(int, file_write_durable(file, "data", 4, 0), -ENOSPC));
        cr_expect(eq(int, file_sync_error(file), 0));
        cr_expect(eq(int, file_sync(file), 0));
}

Test(file_write_durable, its_own_sync_may_fail)
{
        atomic_store(&durable_fails_with, EIO);
        cr_expect(eq(int, file_write_durable(file, "data", 4, 0), -EIO));
        cr_expect(eq(int, file_sync_error(file), -EIO));
        cr_expect(eq(int, file_sync(file), -EIO));
        cr_expect(eq(int, atomic_load(&n_syncs), 0));
}

Test(file_write_zeros, tears_no_sector)
{
        static uint8_t back[300 * 1024], ones[sizeof(back)];

        memset(ones, 1, sizeof(ones));
        cr_assert(eq(int, file_write(file, ones, sizeof(ones), 0, 0), 0));
        atomic_store(&writes_crooked, false);
        cr_assert(eq(int, file_write_zeros(file, SECTOR_SIZE, sizeof(back) - 4096), 0));
        cr_expect(not(atomic_load(&writes_crooked)));
        cr_assert(eq(int, file_read_exact(file, back, sizeof(back), 0), 0));
        cr_expect(bytes_are_zero(back + SECTOR_SIZE, sizeof(back) - 4096));
        cr_expect(eq(int, back[SECTOR_SIZE - 1], 1));
        cr_expect(eq(int, back[SECTOR_SIZE + sizeof(back) - 4096], 1));
}

#define N_THREADS 6
#define N_ROUNDS  20

static void *sync_and_write(void *opaque)
{
        intptr_t bad = 0;

        for (int i = 0; i < N_ROUNDS; i++) {
                int r = file_write_durable(file, "data", 4, (uint64_t)i * 4096);

                bad += r != 0 && r != -EINPROGRESS;
                bad += file_sync(file) != 0;
        }
        return (void *)bad;
}

Test(file_sync, of_one_file_takes_turns)
{
        pthread_t threads[N_THREADS];

        for (int i = 0; i < N_THREADS; i++)
                cr_assert(eq(int, pthread_create(&threads[i], NULL, sync_and_write, NULL), 0));
        for (int i = 0; i < N_THREADS; i++) {
                void *bad;

                pthread_join(threads[i], &bad);
                cr_expect(eq(ptr, bad, NULL));
        }
        cr_expect(eq(int, atomic_load(&n_together), 0));
        cr_expect(gt(int, atomic_load(&n_syncs), 0));
}
