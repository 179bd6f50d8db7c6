/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong: a worker that was taken over asks for what it was not granted, by a name with a
 * link in it, for a file that somebody put in the place of the granted one, for another image's redo
 * file; a lock has a gap when a successor opens the image, or stays when the grant ends. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "vhdd/daemon/files.h"
#include "vhdd/daemon/link.h"

#define VM "f11e5000-0000-4000-8000-000000000001"

static char dir[64], image[128];
static struct files *files;
static struct error err;

static void write_text(const char *path, const char *text)
{
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

        cr_assert(ge(int, fd, 0));
        cr_assert(eq(long, write(fd, text, strlen(text)), (long)strlen(text)));
        close(fd);
}

static void setup(void)
{
        snprintf(dir, sizeof(dir), "/tmp/vhdd-files-XXXXXX");
        cr_assert(mkdtemp(dir) != NULL);
        snprintf(image, sizeof(image), "%s/a.vhd", dir);
        write_text(image, "image");
        cr_assert(eq(int, files_new(VM, &files, &err), 0));
}

static void teardown(void)
{
        char command[96];

        files_free(files);
        snprintf(command, sizeof(command), "rm -rf '%s'", dir);
        cr_expect(eq(int, system(command), 0));
}

TestSuite(files, .init = setup, .fini = teardown, .timeout = 20);

static const char *beside(const char *name)
{
        static char path[4][160];
        static unsigned at;

        at = (at + 1) % 4;
        snprintf(path[at], sizeof(path[at]), "%s/%s", dir, name);
        return path[at];
}

static void grant(const char *path, unsigned access)
{
        cr_assert(eq(int, files_grant(files, path, access, 0, 0, &err), 0), "%s", err.message);
}

/* The worker's question; the descriptor, or the -errno. */
static int ask(const char *method, json_t *params)
{
        struct files_answer answer = {0};
        int r, fd = 0;

        error_clear(&err);
        r = files_answer(files, method, params, &answer, &err);
        json_decref(params);
        if (r < 0) {
                cr_expect(err.message[0] != '\0');
                return r;
        }
        if (answer.n_fds > 0)
                fd = fcntl(answer.fds[0], F_DUPFD_CLOEXEC, 3);
        files_answer_done(&answer);
        return fd;
}

static int ask_open(const char *path, unsigned flags)
{
        return ask("fs.open",
                json_pack("{s:s, s:i, s:i}", "path", path, "flags", (int)flags, "mode", 0644));
}

/* Can another program have the file in this way? */
static int lock_from_outside(enum file_lock mode)
{
        struct file *file;
        int r;

        cr_assert(eq(int, file_open(host_fs(), image, FILE_WRITE, &file, &err), 0));
        r = file->ops->lock(file, mode);
        file_close(file);
        return r;
}

Test(files, only_what_was_granted_and_only_as_it_was)
{
        int fd;

        cr_expect(eq(int, ask_open(image, FILE_READ), -EPERM));
        cr_expect(strstr(err.message, image) != NULL, "%s", err.message);
        grant(image, LINK_READ);
        cr_expect(eq(int, ask_open(image, FILE_WRITE), -EPERM));
        cr_expect(eq(int, ask_open(image, FILE_WRITE | FILE_CREATE), -EPERM));
        cr_expect(eq(int, ask("fs.unlink", json_pack("{s:s}", "path", image)), -EPERM));
        fd = ask_open(image, FILE_READ);
        cr_assert(ge(int, fd, 3));
        cr_expect(eq(int, fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY));
        close(fd);
        cr_expect(eq(int, ask_open("/etc/passwd", FILE_READ), -EPERM));
        cr_expect(eq(int, ask_open(beside("../x"), FILE_READ), -EPERM));
        cr_expect(eq(int, ask_open(beside("./a.vhd"), FILE_READ), -EPERM), "exactly this path");
        cr_expect(eq(int, ask_open(image, 1u << 20), -EPROTO));
        cr_expect(eq(int, ask("fs.format", json_object()), -EPROTO));
        cr_expect(eq(int, ask("fs.open", json_object()), -EPROTO));
        files_revoke(files, image);
        cr_expect(eq(int, ask_open(image, FILE_READ), -EPERM));
}

Test(files, what_takes_the_place_of_the_granted_file_is_refused)
{
        struct stat st;

        cr_assert(eq(int, stat(image, &st), 0));
        cr_assert(eq(int, files_grant(files, image, LINK_WRITE, st.st_dev, st.st_ino, &err), 0));
        write_text(beside("b.vhd"), "another");
        cr_assert(eq(int, rename(beside("b.vhd"), image), 0));
        cr_expect(eq(int, ask_open(image, FILE_WRITE), -ESTALE), "%s", err.message);
        unlink(image);
        cr_assert(eq(int, symlink("/etc/passwd", image), 0));
        cr_expect(eq(int, ask_open(image, FILE_READ), -ELOOP));
        unlink(image);
        cr_assert(eq(int, mkfifo(image, 0600), 0));
        cr_expect(eq(int, ask_open(image, FILE_READ), -EMEDIUMTYPE), "and it does not hang");
        unlink(image);
        cr_expect(eq(int, ask_open(image, FILE_READ), -ENOENT));
}

Test(files, an_image_brings_its_own_sidecars_and_no_others)
{
        char intent[160], seal[160], new_seal[160];
        int fd;

        snprintf(intent, sizeof(intent), "%s.vhdd-intent", image);
        snprintf(seal, sizeof(seal), "%s.vhdd-seal", image);
        snprintf(new_seal, sizeof(new_seal), "%s.vhdd-seal.new", image);
        grant(image, LINK_READ);
        cr_expect(eq(int, ask_open(intent, FILE_READ), -ENOENT));
        cr_expect(
                eq(int, ask_open(intent, FILE_WRITE | FILE_CREATE), -EPERM), "a reader looks only");
        cr_expect(eq(int, ask_open(new_seal, FILE_WRITE | FILE_CREATE), -EPERM));
        grant(image, LINK_READ | LINK_SEAL);
        fd = ask_open(new_seal, FILE_WRITE | FILE_CREATE);
        cr_assert(ge(int, fd, 3), "one that is read can be sealed");
        close(fd);
        cr_expect(eq(int, ask_open(seal, FILE_WRITE | FILE_CREATE), -EPERM), "by the broker");
        cr_expect(eq(int, ask_open(image, FILE_WRITE), -EPERM));
        cr_expect(eq(int,
                ask("fs.rename",
                        json_pack("{s:s, s:s, s:b}", "from", new_seal, "to", seal, "replace", 1)),
                -EPERM));
        cr_expect(eq(int, ask("fs.unlink", json_pack("{s:s}", "path", new_seal)), 0));
        grant(image, LINK_WRITE);
        fd = ask_open(new_seal, FILE_WRITE | FILE_CREATE | FILE_TRUNCATE);
        cr_assert(ge(int, fd, 3));
        close(fd);
        cr_expect(eq(int,
                ask("fs.rename",
                        json_pack("{s:s, s:s, s:b}", "from", new_seal, "to", seal, "replace", 1)),
                0));
        cr_expect(eq(int, access(seal, F_OK), 0));
        cr_expect(eq(int,
                ask("fs.rename",
                        json_pack("{s:s, s:s, s:b}", "from", seal, "to", image, "replace", 1)),
                -EPERM));
        cr_expect(eq(int, ask("fs.unlink", json_pack("{s:s}", "path", seal)), 0));
        cr_expect(eq(int, ask("fs.sync-directory", json_pack("{s:s}", "path", seal)), 0));
        cr_expect(eq(int, ask_open(beside("b.vhd.vhdd-intent"), FILE_READ), -EPERM));
        cr_assert(eq(int, symlink("/etc/passwd", intent), 0));
        cr_expect(eq(int, ask_open(intent, FILE_READ), -ELOOP));
}

Test(files, regions_are_those_of_the_image_and_of_the_vm)
{
        char mine[96], others[96];
        struct stat st;
        int fd;

        cr_assert(eq(int, stat(image, &st), 0));
        snprintf(mine, sizeof(mine), "vhdd-redo-%llx-%llx", (unsigned long long)st.st_dev,
                (unsigned long long)st.st_ino);
        snprintf(others, sizeof(others), "vhdd-redo-%llx-%llx", (unsigned long long)st.st_dev,
                (unsigned long long)st.st_ino + 1);
        grant(image, LINK_WRITE);
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3));
        close(fd);
#define REGION(name, create)                                                                       \
        json_pack("{s:s, s:s, s:i, s:b}", "name", name, "beside", image, "size", 8192, "create",   \
                create)
        cr_expect(eq(int, ask("fs.region-remove", REGION(mine, 0)), 0), "of an inode before");
        cr_expect(eq(int, ask("fs.region-open", REGION(mine, 0)), -ENOENT));
        fd = ask("fs.region-open", REGION(mine, 1));
        cr_assert(ge(int, fd, 3));
        close(fd);
        cr_expect(eq(int, ask("fs.region-open", REGION(others, 1)), -EPERM));
        cr_expect(eq(int, ask("fs.region-open", REGION("../../etc/passwd", 0)), -EPERM));
        cr_expect(eq(int, ask("fs.region-open", REGION("vhdd-switch-other", 1)), -EPERM));
        grant(image, LINK_READ);
        fd = ask("fs.region-open", REGION(mine, 0));
        cr_assert(ge(int, fd, 3));
        cr_expect(eq(int, fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY));
        close(fd);
        cr_expect(eq(int, ask("fs.region-remove", REGION(mine, 0)), -EPERM));
        grant(image, LINK_WRITE);
        fd = ask("fs.region-open", REGION("vhdd-switch-" VM, 1));
        cr_assert(ge(int, fd, 3));
        close(fd);
        grant(image, LINK_READ);
        fd = ask("fs.region-open", REGION("vhdd-switch-" VM, 0));
        cr_assert(ge(int, fd, 3));
        cr_expect(
                eq(int, fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR), "the record outlives its writer");
        close(fd);
        grant(image, LINK_WRITE);
        cr_expect(eq(int, ask("fs.region-remove", REGION("vhdd-switch-" VM, 0)), 0));
        cr_expect(eq(int, ask("fs.region-remove", REGION(mine, 0)), 0));
        cr_expect(eq(int, ask("fs.region-open", REGION(mine, 0)), -ENOENT));
}

/* The image beside which it was made may be gone when the worker ends. */
Test(files, the_switch_record_goes_though_its_image_went)
{
        int fd;

        grant(image, LINK_WRITE);
        fd = ask("fs.region-open", REGION("vhdd-switch-" VM, 1));
        cr_assert(ge(int, fd, 3));
        close(fd);
        files_revoke(files, image);
        cr_expect(eq(int, ask("fs.region-open", REGION("vhdd-switch-" VM, 0)), -EPERM));
        cr_expect(eq(int, ask("fs.region-remove", REGION("vhdd-switch-" VM, 0)), 0));
        grant(image, LINK_READ);
        cr_expect(eq(int, ask("fs.region-open", REGION("vhdd-switch-" VM, 0)), -ENOENT));
}

/* The writer died, and the image is only a parent by now: it is settled, and then read. */
static void settle_one_with(const char *kind)
{
        char mine[96];
        struct stat st;
        int fd;

        cr_assert(eq(int, stat(image, &st), 0));
        snprintf(mine, sizeof(mine), "vhdd-%s-%llx-%llx", kind, (unsigned long long)st.st_dev,
                (unsigned long long)st.st_ino);
        grant(image, LINK_WRITE);
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3));
        close(fd);
        cr_expect(eq(int, ask("fs.region-remove", REGION(mine, 0)), 0), "of an inode before");
        fd = ask("fs.region-open", REGION(mine, 1));
        cr_assert(ge(int, fd, 3));
        close(fd);
        grant(image, LINK_READ);
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3), "%s", err.message);
        close(fd);
        cr_expect(eq(int, ask("fs.region-remove", REGION(mine, 0)), 0));
        fd = ask_open(image, FILE_READ);
        cr_assert(ge(int, fd, 3));
        close(fd);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), 0), "others may read it, too");
        cr_expect(eq(int, ask_open(image, FILE_WRITE), -EPERM));
}

Test(files, a_parent_with_a_redo_file_may_be_settled)
{
        settle_one_with("redo");
}

Test(files, a_flat_parent_with_a_mark_may_be_settled)
{
        settle_one_with("mark");
}

/* QEMU's locks: held from the first opening to the end of the grant, whoever of the worker and its
 * successor lives; less of it when the grant becomes less. */
Test(files, the_lock_lasts_as_long_as_the_grant)
{
        int fd;

        grant(image, LINK_WRITE);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), 0));
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3));
        close(fd); /* the worker dies */
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), -EAGAIN));
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3));
        close(fd);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), -EAGAIN));
        grant(image, LINK_READ);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), 0));
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), -EAGAIN));
        files_revoke(files, image);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), 0));
}

Test(files, a_reader_becomes_a_writer)
{
        int reader, writer;

        grant(image, LINK_READ);
        reader = ask_open(image, FILE_READ);
        cr_assert(ge(int, reader, 3));
        grant(image, LINK_WRITE);
        writer = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, writer, 3), "%s", err.message);
        cr_expect(eq(int, fcntl(writer, F_GETFL) & O_ACCMODE, O_RDWR));
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), -EAGAIN));
        close(reader);
        close(writer);
}

/* After a broker's death: what the worker gives back counts only for what it really is. */
Test(files, what_comes_back_is_looked_at)
{
        struct stat st;
        int fd, wrong;

        cr_assert(eq(int, stat(image, &st), 0));
        write_text(beside("b.vhd"), "another");
        wrong = open(beside("b.vhd"), O_RDWR | O_CLOEXEC);
        cr_assert(ge(int, wrong, 0));
        files_give_back(files, image, wrong);
        cr_assert(eq(int, files_grant(files, image, LINK_WRITE, st.st_dev, st.st_ino, &err), 0));
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3));
        cr_assert(eq(int, fstat(fd, &st), 0));
        cr_expect(eq(long, st.st_size, (long)strlen("image")));
        /* And the right one, with the lock that rides on it. */
        files_free(files);
        cr_assert(eq(int, files_new(VM, &files, &err), 0));
        files_give_back(files, image, fd);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), -EAGAIN));
        grant(image, LINK_WRITE);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), -EAGAIN));
        files_revoke(files, image);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), 0));
}

/* A worker that writes gives its descriptor, with the lock on it, to the next broker. */
static void outlive_the_broker(void)
{
        int fd;

        grant(image, LINK_WRITE);
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3));
        files_free(files);
        cr_assert(eq(int, files_new(VM, &files, &err), 0));
        files_give_back(files, image, fd);
}

Test(files, what_came_back_and_is_not_used_is_let_go)
{
        outlive_the_broker();
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), -EAGAIN));
        files_drop_returned(files);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), 0));
}

/* The broker died between the end of a merge and taking the writer's grant of its destination back. */
Test(files, a_lock_that_comes_back_is_no_more_than_the_grant)
{
        outlive_the_broker();
        grant(image, LINK_READ);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), -EAGAIN)); /* a grant may follow */
        files_drop_returned(files);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_READ), 0));
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), -EAGAIN));
}

static bool is_the_image(void *opaque, const char *path)
{
        return strcmp(path, opaque) == 0;
}

/* A child that was relinked and is in no chain that is open would stay locked. */
Test(files, the_locks_of_what_nobody_uses_go)
{
        int fd;

        grant(image, LINK_WRITE);
        fd = ask_open(image, FILE_WRITE);
        cr_assert(ge(int, fd, 3));
        close(fd);
        files_revoke_others(files, is_the_image, image);
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), -EAGAIN));
        files_revoke_others(files, is_the_image, (char *)(uintptr_t)beside("b.vhd"));
        cr_expect(eq(int, lock_from_outside(FILE_LOCK_WRITE), 0));
        cr_expect(eq(int, ask_open(image, FILE_READ), -EPERM));
}

Test(files, a_new_image_is_made_once)
{
        const char *child = beside("child.avhd");
        int fd;

        grant(child, LINK_WRITE);
        cr_expect(eq(int, ask_open(child, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE), -EPERM));
        grant(child, LINK_WRITE | LINK_CREATE | LINK_UNLINK);
        fd = ask_open(child, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE);
        cr_assert(ge(int, fd, 3), "%s", err.message);
        close(fd);
        cr_expect(eq(int, ask_open(child, FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE), -EPERM));
        cr_expect(eq(int, ask("fs.unlink", json_pack("{s:s}", "path", child)), 0));
        cr_expect(eq(int, access(child, F_OK), -1));
}
