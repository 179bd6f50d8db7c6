/* SPDX-License-Identifier: Apache-2.0 */
/* Two programs that write one image destroy it: our locks must be the ones that QEMU takes, in both
 * directions. And the bytes must be where they were put. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/file.h"

static char folder[64], path[96], other[96];

static void make_folder(void)
{
        strcpy(folder, "/tmp/vhdd-host-XXXXXX");
        cr_assert(ne(ptr, mkdtemp(folder), NULL));
        snprintf(path, sizeof(path), "%s/a.raw", folder);
        snprintf(other, sizeof(other), "%s/b.raw", folder);
}

static void remove_folder(void)
{
        unlink(path);
        unlink(other);
        rmdir(folder);
}

TestSuite(host_fs, .init = make_folder, .fini = remove_folder, .timeout = 60);
TestSuite(host_lock, .init = make_folder, .fini = remove_folder, .timeout = 60);

static struct file *open_file(unsigned flags)
{
        struct error err = ERROR_INIT;
        struct file *file = NULL;

        cr_assert(eq(int, file_open(host_fs(), path, flags, &file, &err), 0), "%s", err.message);
        return file;
}

static struct file *open_new(uint64_t size)
{
        struct file *file = open_file(FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE);

        cr_assert(eq(int, file_truncate(file, size), 0));
        return file;
}

Test(host_fs, opens_as_it_is_asked_to)
{
        struct error err = ERROR_INIT;
        struct file *none = NULL;
        struct file *file;

        cr_expect(eq(int, file_open(host_fs(), path, FILE_READ, &none, &err), -ENOENT));
        cr_expect(ne(ptr, strstr(err.message, path), NULL));
        file = open_new(1000);
        cr_expect(eq(int,
                file_open(host_fs(), path, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE, &none, &err),
                -EEXIST));
        cr_assert(eq(int, symlink(path, other), 0));
        cr_expect(lt(int, file_open(host_fs(), other, FILE_NOFOLLOW, &none, &err), 0));
        cr_expect(eq(int, file_open(host_fs(), folder, FILE_READ, &none, &err), -EMEDIUMTYPE));
        cr_expect(eq(ptr, none, NULL));
        file_close(file);
        file = open_file(FILE_WRITE | FILE_TRUNCATE);
        {
                struct file_stat st;

                cr_expect(eq(int, file_stat_get(file, &st), 0));
                cr_expect(eq(u64, st.size, 0));
                cr_expect(st.is_regular);
                cr_expect(not(st.is_block));
        }
        file_close(file);
}

/* A FIFO in a folder of images must not hang whoever looks. */
Test(host_fs, refuses_a_fifo_at_once)
{
        struct file *file = NULL;

        cr_assert(eq(int, mkfifo(path, 0600), 0));
        cr_expect(eq(int, file_open(host_fs(), path, FILE_READ, &file, NULL), -EMEDIUMTYPE));
}

Test(host_fs, reads_what_was_written)
{
        _cleanup_(file_closep) struct file *file = open_new(0);
        char one[] = "one", two[] = "two";
        struct iovec parts[3];
        char text[16] = {0};

        parts[0] = (struct iovec){one, 3};
        parts[1] = (struct iovec){one, 0};
        parts[2] = (struct iovec){two, 3};
        cr_assert(eq(int, file_writev(file, parts, 3, 5000, 0), 0));
        cr_assert(eq(int, file_sync(file), 0));
        cr_expect(eq(int, (int)file_read(file, text, sizeof(text), 5000, 0), 6));
        cr_expect(eq(str, text, (char *)"onetwo"));
        cr_expect(eq(int, file_read_exact(file, text, 6, 5000), 0));
        cr_expect(eq(int, file_read_exact(file, text, 7, 5000), -ENODATA));
        cr_expect(eq(int, (int)file_read(file, text, 1, 6000, 0), 0));
}

Test(host_fs, holes_come_and_are_found)
{
        _cleanup_(file_closep) struct file *file = open_new(0);
        struct file_stat before, after;
        uint64_t at = 0, size = 0;
        char bytes[64 * 1024];

        memset(bytes, 'x', sizeof(bytes));
        for (unsigned i = 0; i < 4; i++)
                cr_assert(eq(int, file_write(file, bytes, sizeof(bytes), i * sizeof(bytes), 0), 0));
        cr_assert(eq(int, file_sync(file), 0));
        cr_assert(eq(int, file_stat_get(file, &before), 0));
        cr_assert(eq(int, file_punch(file, 64 * KIB, 64 * KIB), 0));
        cr_assert(eq(int, file_stat_get(file, &after), 0));
        cr_expect(eq(u64, after.size, before.size));
        cr_expect(le(u64, after.allocated, before.allocated));
        cr_assert(eq(int, file_read_exact(file, bytes, sizeof(bytes), 64 * KIB), 0));
        cr_expect(eq(int, bytes[0] | bytes[sizeof(bytes) - 1], 0));
        cr_assert(eq(int, file_read_exact(file, bytes, 1, 128 * KIB), 0));
        cr_expect(eq(int, bytes[0], 'x'));
        cr_expect(eq(int, file_seek_data(file, 300 * KIB, &at), 0));
        cr_expect(eq(u64, at, 256 * KIB));
        if (after.allocated < before.allocated) {
                cr_expect(eq(int, file_seek_hole(file, 0, &at), 0));
                cr_expect(eq(u64, at, 64 * KIB));
                cr_expect(eq(int, file_seek_data(file, 64 * KIB, &at), 0));
                cr_expect(eq(u64, at, 128 * KIB));
        }
        /* Behind the end there is nothing to punch, and the file does not grow. */
        cr_expect(eq(int, file_punch(file, 200 * KIB, 1 * MIB), 0));
        cr_expect(eq(int, file_size_get(file, &size), 0));
        cr_expect(eq(u64, size, 256 * KIB));
}

Test(host_fs, names_are_moved_and_kept)
{
        struct file *file = open_new(512);

        file_close(file);
        cr_expect(eq(int, fs_rename(host_fs(), path, other, false), 0));
        file = open_new(0);
        file_close(file);
        cr_expect(eq(int, fs_rename(host_fs(), path, other, false), -EEXIST));
        cr_expect(eq(int, fs_rename(host_fs(), path, other, true), 0));
        cr_expect(eq(int, fs_sync_directory(host_fs(), other), 0));
        cr_expect(eq(int, fs_unlink(host_fs(), other), 0));
        cr_expect(eq(int, fs_unlink(host_fs(), other), -ENOENT));
}

/* ---- locks ---- */

static bool has_qemu(void)
{
        return access("/usr/bin/qemu-img", X_OK) == 0 && access("/usr/bin/qemu-io", X_OK) == 0;
}

/* Runs it, quietly; answers its exit code. */
static int run(const char *program, const char *const arguments[])
{
        pid_t pid = fork();
        int status;

        if (pid == 0) {
                int null = open("/dev/null", O_RDWR);

                dup2(null, 0);
                dup2(null, 1);
                dup2(null, 2);
                execv(program, (char *const *)(uintptr_t)arguments);
                _exit(127);
        }
        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* A VHD, as QEMU lets others write a raw file under its readers. */
static void make_vhd(void)
{
        const char *const arguments[] = {"qemu-img", "create", "-f", "vpc", path, "1M", NULL};

        cr_assert(eq(int, run("/usr/bin/qemu-img", arguments), 0));
}

static int qemu_info(bool force_share)
{
        const char *const plain[] = {"qemu-img", "info", "-f", "vpc", path, NULL};
        const char *const shared[] = {"qemu-img", "info", "-U", "-f", "vpc", path, NULL};

        return run("/usr/bin/qemu-img", force_share ? shared : plain);
}

static int qemu_write(void)
{
        const char *const arguments[] = {"qemu-io", "-f", "vpc", "-c", "write 0 512", path, NULL};

        return run("/usr/bin/qemu-io", arguments);
}

Test(host_lock, of_ours_are_seen_by_qemu)
{
        struct error err = ERROR_INIT;
        struct file *file;

        if (!has_qemu())
                cr_skip_test("qemu-img and qemu-io are not installed");
        make_vhd();
        file = open_file(FILE_WRITE);
        cr_expect(eq(int, qemu_write(), 0));
        cr_assert(eq(int, file_lock_set(file, FILE_LOCK_READ, &err), 0), "%s", err.message);
        cr_expect(eq(int, qemu_info(false), 0));
        cr_expect(ne(int, qemu_write(), 0));
        cr_assert(eq(int, file_lock_set(file, FILE_LOCK_WRITE, &err), 0), "%s", err.message);
        cr_expect(ne(int, qemu_info(false), 0));
        cr_expect(eq(int, qemu_info(true), 0));
        cr_expect(ne(int, qemu_write(), 0));
        cr_assert(eq(int, file_lock_set(file, FILE_LOCK_READ_LOOSE, &err), 0));
        cr_expect(eq(int, qemu_write(), 0));
        cr_assert(eq(int, file_lock_set(file, FILE_LOCK_WRITE, &err), 0));
        cr_assert(eq(int, file_lock_set(file, FILE_LOCK_NONE, &err), 0));
        cr_expect(eq(int, qemu_write(), 0));
        file_close(file);
}

/* A QEMU that has the file open, until it is killed. */
static pid_t start_qemu(bool writable)
{
        pid_t pid = fork();

        if (pid == 0) {
                int null = open("/dev/null", O_RDWR);

                prctl(PR_SET_PDEATHSIG, SIGKILL);
                dup2(null, 0);
                dup2(null, 1);
                dup2(null, 2);
                if (writable)
                        execl("/usr/bin/qemu-io", "qemu-io", "-f", "vpc", "-c", "sleep 60000", path,
                                (char *)NULL);
                else
                        execl("/usr/bin/qemu-io", "qemu-io", "-r", "-f", "vpc", "-c", "sleep 60000",
                                path, (char *)NULL);
                _exit(127);
        }
        cr_assert(gt(int, pid, 0));
        return pid;
}

/* Tries one mode until it is refused (the other program has come up), at most ten seconds. */
static bool becomes_refused(struct file *file, enum file_lock mode)
{
        for (int i = 0; i < 1000; i++) {
                int r = file->ops->lock(file, mode);

                if (r < 0)
                        return r == -EAGAIN || r == -EBUSY;
                cr_assert(eq(int, file->ops->lock(file, FILE_LOCK_NONE), 0));
                usleep(10000);
        }
        return false;
}

static void end_qemu(pid_t pid)
{
        int status;

        kill(pid, SIGKILL);
        cr_assert(eq(int, waitpid(pid, &status, 0), pid));
}

Test(host_lock, of_qemu_are_seen_by_us)
{
        _cleanup_(file_closep) struct file *file = NULL;
        struct error err = ERROR_INIT;
        pid_t qemu;

        if (!has_qemu())
                cr_skip_test("qemu-img and qemu-io are not installed");
        make_vhd();
        file = open_file(FILE_WRITE);
        qemu = start_qemu(true);
        cr_expect(becomes_refused(file, FILE_LOCK_READ));
        cr_expect(lt(int, file->ops->lock(file, FILE_LOCK_WRITE), 0));
        cr_expect(eq(int, file->ops->lock(file, FILE_LOCK_READ_LOOSE), 0));
        cr_expect(eq(int, file->ops->lock(file, FILE_LOCK_NONE), 0));
        /* Who has it is named, after some patience. */
        cr_expect(eq(int, file_lock_set(file, FILE_LOCK_WRITE, &err), -EBUSY));
        cr_expect(ne(ptr, strstr(err.message, "in use"), NULL), "%s", err.message);
        cr_expect(ne(str, err.hint, (char *)""));
        end_qemu(qemu);
        cr_expect(eq(int, file_lock_set(file, FILE_LOCK_WRITE, &err), 0), "%s", err.message);
        cr_expect(eq(int, file_lock_set(file, FILE_LOCK_NONE, &err), 0));
        qemu = start_qemu(false);
        cr_expect(becomes_refused(file, FILE_LOCK_WRITE));
        cr_expect(eq(int, file->ops->lock(file, FILE_LOCK_READ), 0));
        end_qemu(qemu);
}

static struct file *open_again(void)
{
        return open_file(FILE_WRITE);
}

Test(host_lock, one_writer_many_readers)
{
        _cleanup_(file_closep) struct file *a = open_new(512);
        _cleanup_(file_closep) struct file *b = open_again();

        cr_expect(eq(int, a->ops->lock(a, FILE_LOCK_READ), 0));
        cr_expect(eq(int, b->ops->lock(b, FILE_LOCK_READ), 0));
        cr_expect(lt(int, b->ops->lock(b, FILE_LOCK_WRITE), 0));
        /* A refused upgrade keeps what it had. */
        cr_expect(eq(int, a->ops->lock(a, FILE_LOCK_NONE), 0));
        cr_expect(lt(int, a->ops->lock(a, FILE_LOCK_WRITE), 0));
        cr_expect(eq(int, b->ops->lock(b, FILE_LOCK_WRITE), 0));
        cr_expect(lt(int, a->ops->lock(a, FILE_LOCK_READ), 0));
        cr_expect(lt(int, a->ops->lock(a, FILE_LOCK_WRITE), 0));
        cr_expect(eq(int, b->ops->lock(b, FILE_LOCK_READ), 0));
        cr_expect(eq(int, a->ops->lock(a, FILE_LOCK_READ), 0));
}

static void hold_and_die(int told)
{
        struct file *file = open_file(FILE_WRITE);

        if (file->ops->lock(file, FILE_LOCK_WRITE) == 0 && write(told, "x", 1) == 1)
                pause();
        _exit(1);
}

/* kill -9, and the next server starts at once. */
Test(host_lock, a_dead_holder_is_waited_for)
{
        _cleanup_(file_closep) struct file *file = open_new(512);
        struct error err = ERROR_INIT;
        int told[2], status;
        char byte;
        pid_t pid;

        cr_assert(eq(int, pipe(told), 0));
        pid = fork();
        if (pid == 0)
                hold_and_die(told[1]);
        cr_assert(eq(int, (int)read(told[0], &byte, 1), 1));
        cr_expect(lt(int, file->ops->lock(file, FILE_LOCK_WRITE), 0));
        kill(pid, SIGKILL);
        cr_expect(eq(int, file_lock_set(file, FILE_LOCK_WRITE, &err), 0), "%s", err.message);
        waitpid(pid, &status, 0);
        close(told[0]);
        close(told[1]);
}
