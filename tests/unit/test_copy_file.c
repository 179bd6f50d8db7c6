/* SPDX-License-Identifier: Apache-2.0 */
/* A copy that fills holes makes a terabyte of nothing; one that writes over what is there takes
 * somebody's disk; one that goes on while another writes is no copy of anything. */
#include "vhdd/daemon/copy_file.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/file.h"

static char folder[64], from[96], to[128];
static struct error err;

static void setup(void)
{
        strcpy(folder, "/tmp/vhdd-copy-XXXXXX");
        cr_assert(mkdtemp(folder) != NULL);
        snprintf(from, sizeof(from), "%s/from.vhd", folder);
        snprintf(to, sizeof(to), "%s/a/b/to.vhd", folder);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
        return remove(path);
}

static void teardown(void)
{
        nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(copy_file, .init = setup, .fini = teardown);

/* Data at the start, in the middle and at the end of 64 MiB that end on no boundary. */
static const off_t places[] = {0, 20 * (off_t)MIB + 512, 64 * (off_t)MIB - 100};

static void make_source(void)
{
        int fd = open(from, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

        cr_assert(fd >= 0);
        for (size_t i = 0; i < 3; i++)
                cr_assert_eq(pwrite(fd, "data!", 5, places[i]), 5);
        close(fd);
}

static void expect_copy(void)
{
        struct stat a, b;
        char bytes[6] = "";
        int fd = open(to, O_RDONLY | O_CLOEXEC);

        cr_assert(fd >= 0);
        cr_assert_eq(stat(from, &a), 0);
        cr_assert_eq(fstat(fd, &b), 0);
        cr_expect_eq(a.st_size, b.st_size);
        cr_expect_leq(b.st_blocks, a.st_blocks + 64);
        for (size_t i = 0; i < 3; i++) {
                cr_assert_eq(pread(fd, bytes, 5, places[i]), 5);
                cr_expect_str_eq(bytes, "data!");
        }
        close(fd);
}

Test(copy_file, keeps_bytes_size_and_holes)
{
        make_source();
        cr_assert_eq(make_folders(to, NULL, &err), 0, "%s", err.message);
        cr_assert_eq(make_folders(to, NULL, &err), 0, "%s", err.message);
        cr_assert_eq(copy_file(from, to, NULL, &err), 0, "%s", err.message);
        expect_copy();
}

Test(copy_file, writes_over_nothing)
{
        make_source();
        cr_assert_eq(make_folders(to, NULL, &err), 0);
        close(open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        cr_expect_eq(copy_file(from, to, NULL, &err), -EEXIST);
        cr_expect_eq(access(to, F_OK), 0);
}

static int stop_at_once(void *opaque, uint64_t bytes)
{
        return -ECANCELED;
}

Test(copy_file, leaves_nothing_when_it_is_broken_off)
{
        const struct copy_watch stop = {.step = stop_at_once};

        make_source();
        cr_assert_eq(make_folders(to, NULL, &err), 0);
        cr_expect_eq(copy_file(from, to, &stop, &err), -ECANCELED);
        cr_expect_neq(access(to, F_OK), 0);
}

Test(copy_file, refuses_what_somebody_writes_to)
{
        struct file *writer = NULL;

        make_source();
        cr_assert_eq(make_folders(to, NULL, &err), 0);
        cr_assert_eq(file_open(host_fs(), from, FILE_WRITE, &writer, &err), 0);
        cr_assert_eq(file_lock_set(writer, FILE_LOCK_WRITE, &err), 0, "%s", err.message);
        cr_expect_eq(copy_file(from, to, NULL, &err), -EBUSY);
        cr_expect_neq(access(to, F_OK), 0);
        file_close(writer);
}
