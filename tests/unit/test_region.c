/* SPDX-License-Identifier: Apache-2.0 */
/* The redo file holds answered writes: it must be found by the next server after a kill, and never be
 * one that an enemy laid there. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"

static char folder[64], image[96], name[64];

static void make_folder(void)
{
        FILE *file;

        strcpy(folder, "/tmp/vhdd-region-XXXXXX");
        cr_assert(ne(ptr, mkdtemp(folder), NULL));
        snprintf(image, sizeof(image), "%s/a.vhd", folder);
        snprintf(name, sizeof(name), "vhdd-redo-%s", folder + strlen("/tmp/vhdd-region-"));
        file = fopen(image, "w");
        cr_assert(ne(ptr, file, NULL));
        fclose(file);
}

static void remove_folder(void)
{
        char beside[160];

        snprintf(beside, sizeof(beside), "%s.vhdd-redo", image);
        unlink(beside);
        unlink(image);
        rmdir(folder);
}

TestSuite(region, .init = make_folder, .fini = remove_folder, .timeout = 30);

static struct region *make(uint64_t size)
{
        struct region *region = NULL;
        struct error err = ERROR_INIT;

        cr_assert(eq(int, region_open(host_fs(), name, image, size, true, &region, &err), 0), "%s",
                err.message);
        return region;
}

static int find(struct region **ret)
{
        struct error err = ERROR_INIT;

        return region_open(host_fs(), name, image, 0, false, ret, &err);
}

Test(region, is_made_once_and_found_with_what_it_holds)
{
        struct region *region = NULL, *again = NULL;
        struct error err = ERROR_INIT;
        struct stat st;

        cr_expect(eq(int, find(&region), -ENOENT));
        region = make(8192);
        cr_expect(eq(u64, region->size, 8192));
        cr_assert(eq(int, stat(region->path, &st), 0));
        cr_expect(eq(u32, st.st_mode & 07777, 0600));
        cr_expect(ge(u64, (uint64_t)st.st_blocks * 512, 8192), "its space is not reserved");
        memcpy(region->data, "record", 6);
        cr_expect(eq(int, region_open(host_fs(), name, image, 8192, true, &again, &err), -EEXIST));
        region_close(region, false);
        cr_assert(eq(int, find(&again), 0));
        cr_expect(eq(u64, again->size, 8192));
        cr_expect(eq(int, memcmp(again->data, "record", 6), 0));
        cr_expect(eq(ptr, region_close(again, true), NULL));
        cr_expect(eq(int, find(&again), -ENOENT));
        cr_expect(eq(ptr, region_close(NULL, true), NULL));
}

/* No sync, no system call: what a killed process stored is there. */
Test(region, outlives_its_process)
{
        struct region *region = NULL;
        int status, told[2];
        char byte;
        pid_t pid;

        cr_assert(eq(int, pipe(told), 0));
        pid = fork();
        if (pid == 0) {
                region = make(4096);
                strcpy(region->data, "the last words");
                if (write(told[1], "x", 1) == 1)
                        pause();
                _exit(1);
        }
        cr_assert(eq(int, (int)read(told[0], &byte, 1), 1));
        kill(pid, SIGKILL);
        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
        cr_assert(eq(int, find(&region), 0));
        cr_expect(eq(str, (char *)region->data, (char *)"the last words"));
        region_close(region, true);
        close(told[0]);
        close(told[1]);
}

/* Somebody else could have written it: others may read or write it, or it is only a link. */
Test(region, takes_no_file_that_others_may_write)
{
        struct region *region = make(4096), *found = NULL;
        char path[512], moved[512];

        snprintf(path, sizeof(path), "%s", region->path);
        snprintf(moved, sizeof(moved), "%s/moved", folder);
        region_close(region, false);
        cr_assert(eq(int, chmod(path, 0666), 0));
        cr_expect(eq(int, find(&found), -ENOENT));
        cr_assert(eq(int, chmod(path, 0600), 0));
        cr_assert(eq(int, find(&found), 0));
        region_close(found, true);

        cr_assert(eq(int, mkfifo(path, 0600), 0));
        cr_expect(eq(int, find(&found), -ENOENT));
        cr_assert(eq(int, unlink(path), 0));

        {
                int fd = open(moved, O_RDWR | O_CREAT, 0600);

                cr_assert(ge(int, fd, 0));
                cr_assert(eq(int, ftruncate(fd, 4096), 0));
                close(fd);
        }
        cr_assert(eq(int, symlink(moved, path), 0));
        cr_expect(eq(int, find(&found), -ENOENT));
        unlink(path);
        unlink(moved);
}

Test(region, of_a_stranger_is_not_taken)
{
        struct region *region, *found = NULL;
        char path[512];

        if (geteuid() != 0)
                cr_skip_test("only root can give a file away");
        region = make(4096);
        snprintf(path, sizeof(path), "%s", region->path);
        region_close(region, false);
        cr_assert(eq(int, chown(path, 12345, 12345), 0));
        cr_expect(eq(int, find(&found), -ENOENT));
        /* The image's owner may well have served it last. */
        cr_assert(eq(int, chown(image, 12345, 12345), 0));
        cr_assert(eq(int, find(&found), 0));
        region_close(found, true);
}

Test(region, the_boot_has_a_name)
{
        uint8_t a[16] = {0}, b[16] = {1};
        static const uint8_t none[16];

        fs_boot_id(host_fs(), a);
        fs_boot_id(host_fs(), b);
        cr_expect(eq(int, memcmp(a, b, 16), 0));
        cr_expect(ne(int, memcmp(a, none, 16), 0));
}
