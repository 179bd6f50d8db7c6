/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that outlives the process: a mapped file on tmpfs, or beside the image where there is none
 * (rule E4). */
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/host_fs.h"

#define N_PLACES 4

struct places {
        char path[N_PLACES][4096];
        int n;
};

static bool is_tmpfs(const char *directory)
{
        struct statfs st;

        return statfs(directory, &st) == 0 && st.f_type == TMPFS_MAGIC;
}

static void add_tmpfs_place(struct places *places, const char *directory, const char *name)
{
        if (directory && directory[0] == '/' && is_tmpfs(directory))
                snprintf(places->path[places->n++], sizeof(places->path[0]), "%s/%s", directory,
                        name);
}

/* "vhdd-redo-..." lies in IMAGE.vhdd-redo, "vhdd-switch-..." in IMAGE.vhdd-switch: one image may have one of each
 * kind at a time. */
static void add_place_beside(struct places *places, const char *beside, const char *name)
{
        char kind[16] = "redo";

        (void)sscanf(name, "vhdd-%15[a-z]", kind);
        snprintf(places->path[places->n++], sizeof(places->path[0]), "%s.vhdd-%s", beside, kind);
}

static void find_places(const char *name, const char *beside, bool create, struct places *ret)
{
        ret->n = 0;
        if (create && geteuid() == 0 && is_tmpfs("/run"))
                mkdir("/run/vhdd", 0755); /* there already is fine; anything else shows below */
        add_tmpfs_place(ret, "/run/vhdd", name);
        add_tmpfs_place(ret, getenv("XDG_RUNTIME_DIR"), name);
        add_tmpfs_place(ret, "/dev/shm", name);
        add_place_beside(ret, beside, name);
}

/* Root's, ours or the image owner's, and nobody else may have written it. */
static bool is_trusted(int fd, const char *beside)
{
        struct stat st, image;

        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (st.st_mode & 07777) != 0600)
                return false;
        if (st.st_uid == 0 || st.st_uid == geteuid())
                return true;
        return stat(beside, &image) == 0 && image.st_uid == st.st_uid;
}

/* Is there a region that an opener would take? A stranger's file in the way is none. */
static bool counts(const char *path, const char *beside)
{
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
        struct stat st;

        return fd >= 0 && is_trusted(fd, beside) && fstat(fd, &st) == 0 && st.st_size > 0;
}

int host_region_map(struct fs *fs, int fd, const char *path, struct region **ret, struct error *err)
{
        _cleanup_free_ struct region *region = calloc(1, sizeof(*region));
        _cleanup_free_ char *copy = strdup(path);
        int mode = fcntl(fd, F_GETFL);
        struct stat st;
        void *data;

        if (!region || !copy)
                return fail(err, ENOMEM, "no memory for the redo file '%s'", path);
        if (mode < 0 || fstat(fd, &st) < 0)
                return fail_os(err, errno, "cannot look at the redo file '%s'", path);
        if (st.st_size <= 0)
                return fail(err, ENODATA, "the redo file '%s' is empty", path);
        data = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE,
                (mode & O_ACCMODE) == O_RDWR ? MAP_SHARED : MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
                return fail_os(err, errno, "cannot map the redo file '%s'", path);
        *region = (struct region){
                .fs = fs, .data = data, .size = (uint64_t)st.st_size, .path = TAKE_PTR(copy)};
        *ret = TAKE_PTR(region);
        return 0;
}

static int give(int *fd, const char *path, int *ret_fd, char **ret_path, struct error *err)
{
        char *copy = strdup(path);

        if (!copy)
                return fail(err, ENOMEM, "no memory for the redo file '%s'", path);
        *ret_path = copy;
        *ret_fd = TAKE_FD(*fd);
        return 0;
}

static int open_existing(const struct places *places, const char *beside, int *ret_fd,
        char **ret_path, struct error *err)
{
        for (int i = 0; i < places->n; i++) {
                const char *path = places->path[i];
                _cleanup_fd_ int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
                struct stat st;

                if (fd < 0 && (errno == ENOENT || errno == ELOOP || errno == ENOTDIR))
                        continue;
                if (fd < 0) {
                        fail_os(err, errno,
                                "there is a redo file '%s' with answered writes, and it cannot be "
                                "read",
                                path);
                        error_set_file(err, path);
                        error_set_hint(
                                err, "run as the user who served the image last, or as root");
                        return -err->code;
                }
                if (!is_trusted(fd, beside))
                        continue;
                if (fstat(fd, &st) < 0 || st.st_size == 0)
                        continue; /* its maker died before it held anything */
                return give(&fd, path, ret_fd, ret_path, err);
        }
        return -ENOENT;
}

/* The space is taken now: a full tmpfs is this error and not a SIGBUS later. */
static int make_at(const char *path, uint64_t size, int *ret_fd, char **ret_path, struct error *err)
{
        _cleanup_fd_ int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        int r;

        if (fd < 0)
                return fail_os(err, errno, "cannot make the redo file '%s'", path);
        r = fchmod(fd, 0600) < 0 ? errno : posix_fallocate(fd, 0, (off_t)size);
        if (r == 0) {
                r = give(&fd, path, ret_fd, ret_path, err);
                if (r < 0)
                        unlink(path);
                return r;
        }
        unlink(path);
        return fail_os(err, r, "cannot take %llu bytes for the redo file '%s'",
                (unsigned long long)size, path);
}

int host_region_open_fd(const char *name, const char *beside, uint64_t size, bool create,
        int *ret_fd, char **ret_path, struct error *err)
{
        struct error local = ERROR_INIT;
        struct places places;
        int r = -ENOENT;

        find_places(name, beside, create, &places);
        if (!create)
                return open_existing(&places, beside, ret_fd, ret_path, err ? err : &local);
        for (int i = 0; i < places.n; i++) {
                r = make_at(places.path[i], size, ret_fd, ret_path, err);
                if (r == 0 || (r == -EEXIST && counts(places.path[i], beside)))
                        return r;
        }
        error_set_file(err, beside);
        return r;
}

int host_region_open(struct fs *fs, const char *name, const char *beside, uint64_t size,
        bool create, struct region **ret, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        int r = host_region_open_fd(name, beside, size, create, &fd, &path, err);

        if (r < 0)
                return r;
        r = host_region_map(fs, fd, path, ret, err);
        if (r < 0 && create)
                unlink(path);
        return r;
}

void host_region_close(struct region *region, bool remove)
{
        munmap(region->data, region->size);
        if (remove)
                unlink(region->path);
        free(region->path);
        free(region);
}
