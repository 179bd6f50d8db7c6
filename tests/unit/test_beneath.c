/* SPDX-License-Identifier: Apache-2.0 */
/* A name that leads out of its directory opens somebody else's file. The same has to hold where the
 * kernel or a container's profile has no openat2: every case runs both ways. */
#include "chain/beneath.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "tests/unit/vhd_sample.h"

/* From here on openat2 answers @code, as in a container that does not know the call. */
static void take_openat2_away(int code)
{
        struct sock_filter filter[] = {
                BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
                BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)code),
                BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog program = {sizeof(filter) / sizeof(filter[0]), filter};

        cr_assert_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
                cr_skip_test("no seccomp here");
        cr_assert_eq(syscall(SYS_openat2, -1, "", NULL, 0), -1);
        cr_assert_eq(errno, code);
}

static void put_file(struct folder *folder, const char *name)
{
        int fd = open(folder_path(folder, "%s", name), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

        cr_assert(fd >= 0);
        cr_assert_eq(write(fd, name, strlen(name)), (ssize_t)strlen(name));
        close(fd);
}

/* The file's content is its name, so that it tells which one was opened. */
static void expect_opened(int root, const char *path, const char *spelled)
{
        char real[4096], content[256] = "";
        int fd = -1;
        int r = beneath_open(root, path, &fd, real, sizeof(real));

        cr_assert_eq(r, 0, "%s: %d", path, r);
        cr_expect_str_eq(real, spelled);
        cr_expect(read(fd, content, sizeof(content) - 1) > 0);
        cr_expect_str_eq(content, spelled);
        /* io_uring would not wait for the disk */
        cr_expect_eq(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
        close(fd);
}

static void expect_error(int root, const char *path, int code)
{
        char real[4096];
        int fd = -1;
        int r = beneath_open(root, path, &fd, real, sizeof(real));

        cr_expect_eq(r, -code, "%s: %d", path, r);
        cr_expect_eq(fd, -1);
}

static void run_all_cases(void)
{
        char outside[512];
        int root = -1;
        WITH_FOLDER(other);
        WITH_FOLDER(folder);

        put_file(other, "secret");
        put_file(folder, "plain");
        folder_mkdir(folder, "Sub");
        put_file(folder, "Sub/Deep.vhd");
        put_file(folder, "Two");
        put_file(folder, "TWO");
        snprintf(outside, sizeof(outside), "%s/secret", other->path);
        cr_assert_eq(symlink(outside, folder_path(folder, "link")), 0);
        cr_assert_eq(symlink(other->path, folder_path(folder, "away")), 0);
        cr_assert_eq(symlink("plain", folder_path(folder, "near")), 0);
        cr_assert_eq(mkfifo(folder_path(folder, "fifo"), 0644), 0);
        cr_assert_eq(beneath_open_root(folder->path, &root), 0);

        expect_opened(root, "plain", "plain");
        expect_opened(root, "Sub/Deep.vhd", "Sub/Deep.vhd");
        expect_opened(root, "SUB/deep.VHD", "Sub/Deep.vhd");
        expect_opened(root, "Two", "Two");
        expect_error(root, "two", ENOTUNIQ);
        expect_error(root, "none", ENOENT);
        expect_error(root, "Sub/none", ENOENT);
        expect_error(root, "plain/below", ENOTDIR);
        expect_error(root, "link", ELOOP);
        expect_error(root, "near", ELOOP);
        expect_error(root, "away/secret", ELOOP);
        expect_error(root, "AWAY/secret", ELOOP);
        expect_error(root, "LINK", ELOOP);
        expect_error(root, "Sub", EISDIR);
        expect_error(root, "fifo", ENXIO);
        expect_error(root, "../secret", EXDEV);
        expect_error(root, "Sub/../../secret", EXDEV);
        close(root);
}

Test(beneath_open, stays_inside_with_openat2, .timeout = 10)
{
        run_all_cases();
}

Test(beneath_open, stays_inside_without_openat2, .timeout = 10)
{
        take_openat2_away(ENOSYS);
        run_all_cases();
}

/* Older container profiles answer EPERM to what they do not know. */
Test(beneath_open, stays_inside_where_openat2_is_forbidden, .timeout = 10)
{
        take_openat2_away(EPERM);
        run_all_cases();
}

Test(beneath_open_root, wants_a_directory)
{
        int root = -1;
        WITH_FOLDER(folder);

        put_file(folder, "plain");
        cr_expect_eq(beneath_open_root(folder_path(folder, "plain"), &root), -ENOTDIR);
        cr_expect_eq(beneath_open_root(folder_path(folder, "none"), &root), -ENOENT);
        cr_expect_eq(root, -1);
}
