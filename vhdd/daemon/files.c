/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/daemon/files.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/host_fs.h"
#include "formats/intent.h"
#include "formats/raw/device.h"
#include "vhdd/daemon/link.h"

#define OPEN_FLAGS                                                                                 \
        (FILE_WRITE | FILE_CREATE | FILE_EXCLUSIVE | FILE_TRUNCATE | FILE_NOFOLLOW | FILE_DIRECT)

/* A file that may be opened. */
struct grant {
        struct grant *next;
        char *path;
        unsigned access;
        uint64_t device, inode; /* both 0: whatever is there */
        int fd;                 /* what the worker has of it, with the locks; -1: nothing yet */
        bool fd_writes;
        bool settling; /* a reader's, that may be written to until it has no redo file any more */
        struct file *disk; /* a block device open for writing: the claim on it */
        struct device *device_claim;
};

/* What an adopted worker gave back and nobody has granted yet. */
struct returned {
        struct returned *next;
        char *path;
        int fd;
};

struct files {
        char vm[VHDD_VM_ID_SIZE];
        pthread_mutex_t lock;
        /* guarded by lock */
        struct grant *grants;
        struct returned *returned;
        char *switch_beside; /* where the vm's switch record was opened or made; NULL: not by us */
};

int files_new(const char *vm_id, struct files **ret, struct error *err)
{
        struct files *files = calloc(1, sizeof(*files));

        if (!files)
                return fail(err, ENOMEM, "no memory for a vm's files");
        snprintf(files->vm, sizeof(files->vm), "%s", vm_id);
        pthread_mutex_init(&files->lock, NULL);
        *ret = files;
        return 0;
}

/* The worker's own descriptor keeps what it still needs of it. */
static void let_go(struct grant *grant)
{
        if (grant->device_claim) {
                device_release(grant->device_claim, NULL);
                grant->device_claim = NULL;
        }
        grant->disk = file_close(grant->disk);
        if (grant->fd >= 0)
                close(grant->fd);
        grant->fd = -1;
        grant->fd_writes = false;
}

static void grant_free(struct grant *grant)
{
        let_go(grant);
        free(grant->path);
        free(grant);
}

static void returned_free(struct returned *returned)
{
        if (returned->fd >= 0)
                close(returned->fd);
        free(returned->path);
        free(returned);
}

struct files *files_free(struct files *files)
{
        if (!files)
                return NULL;
        while (files->grants) {
                struct grant *grant = files->grants;

                files->grants = grant->next;
                grant_free(grant);
        }
        files_drop_returned(files);
        pthread_mutex_destroy(&files->lock);
        free(files->switch_beside);
        free(files);
        return NULL;
}

/* --- which file a path means --- */

/* As struct file_stat has it: a block device's own number, and no inode. */
static void identity_of(const struct stat *st, uint64_t *device, uint64_t *inode)
{
        *device = S_ISBLK(st->st_mode) ? st->st_rdev : st->st_dev;
        *inode = S_ISBLK(st->st_mode) ? 0 : st->st_ino;
}

static int check_identity(const struct grant *grant, const struct stat *st, struct error *err)
{
        uint64_t device, inode;

        if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
                return fail(err, EMEDIUMTYPE, "'%s' is neither a regular file nor a block device",
                        grant->path);
        identity_of(st, &device, &inode);
        if ((grant->device == 0 && grant->inode == 0) ||
                (grant->device == device && grant->inode == inode))
                return 0;
        return fail(err, ESTALE,
                "'%s' is another file than the one that was attached (inode %llu, it was %llu)",
                grant->path, (unsigned long long)inode, (unsigned long long)grant->inode);
}

/* Looks without opening: opening a FIFO can hang, opening a device can do anything. Only a block
 * device's name may be a link (/dev/disk/by-id). */
static int look_at(const struct grant *grant, struct stat *ret, struct error *err)
{
        _cleanup_fd_ int fd = open(grant->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);

        if (fd < 0 || fstat(fd, ret) < 0)
                return fail_os(err, errno, "cannot open '%s'", grant->path);
        if (S_ISLNK(ret->st_mode) && (stat(grant->path, ret) < 0 || !S_ISBLK(ret->st_mode)))
                return fail(err, ELOOP, "'%s' is a symbolic link, and links are not followed",
                        grant->path);
        return check_identity(grant, ret, err);
}

static struct grant *find_grant(const struct files *files, const char *path)
{
        for (struct grant *grant = files->grants; grant; grant = grant->next)
                if (!strcmp(grant->path, path))
                        return grant;
        return NULL;
}

/* The image that @path belongs to as its intent or seal. */
static struct grant *find_owner(const struct files *files, const char *path)
{
        static const char *const endings[] = {".vhdd-intent", ".vhdd-seal", ".vhdd-seal.new"};

        for (struct grant *grant = files->grants; grant; grant = grant->next) {
                size_t n = strlen(grant->path);

                if (strncmp(grant->path, path, n) != 0)
                        continue;
                for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++)
                        if (!strcmp(path + n, endings[i]))
                                return grant;
        }
        return NULL;
}

static int refuse(const char *path, const char *what, struct error *err)
{
        fail(err, EPERM, "a worker may not %s '%s': it was not granted", what, path);
        error_set_file(err, path);
        return -EPERM;
}

/* --- what a dead writer left --- */

/* Memory that a dead writer left for this file: a redo file, or a flat image's mark. Only a writer's
 * grant makes such a thing. */
static bool has_region(const struct grant *grant, const char *kind)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        char name[96];
        struct stat st;
        uint64_t device, inode;

        if (look_at(grant, &st, NULL) < 0)
                return false;
        identity_of(&st, &device, &inode);
        snprintf(name, sizeof(name), "vhdd-%s-%llx-%llx", kind, (unsigned long long)device,
                (unsigned long long)inode);
        return host_region_open_fd(name, grant->path, 0, false, &fd, &path, NULL) == 0;
}

/* A change of heads that was cut off: only a writer's grant makes such a thing. */
static bool has_intent(const struct grant *grant)
{
        _cleanup_free_ char *path = NULL;
        struct stat st;

        return asprintf(&path, "%s" INTENT_ENDING, grant->path) >= 0 && lstat(path, &st) == 0;
}

/* A parent that a dead process left unsettled is settled before anybody stands on it (E4, E10), and one
 * that it left an intent is completed (E13), so it is written to once more, although it is only read from
 * then on. */
static bool may_write(struct grant *grant)
{
        if (grant->access & LINK_WRITE)
                return true;
        if (!grant->settling)
                grant->settling =
                        has_region(grant, "redo") || has_region(grant, "mark") || has_intent(grant);
        return grant->settling;
}

/* --- granting --- */

static void take_returned(struct files *files, struct grant *grant)
{
        for (struct returned **at = &files->returned; *at;) {
                struct returned *returned = *at;
                struct stat st;
                int mode;

                if (strcmp(returned->path, grant->path) != 0) {
                        at = &returned->next;
                        continue;
                }
                mode = fcntl(returned->fd, F_GETFL);
                if (mode >= 0 && (grant->fd < 0 || !grant->fd_writes) &&
                        fstat(returned->fd, &st) == 0 && check_identity(grant, &st, NULL) == 0) {
                        let_go(grant);
                        grant->fd = TAKE_FD(returned->fd);
                        grant->fd_writes = (mode & O_ACCMODE) == O_RDWR;
                }
                *at = returned->next;
                returned_free(returned);
        }
}

int files_grant(struct files *files, const char *path, unsigned access, uint64_t device,
        uint64_t inode, struct error *err)
{
        struct grant *grant;

        if (path[0] != '/')
                return fail(err, EINVAL, "'%s' is no absolute path", path);
        MUTEX_GUARD(&files->lock);
        grant = find_grant(files, path);
        if (!grant) {
                grant = calloc(1, sizeof(*grant));
                if (grant)
                        grant->path = strdup(path);
                if (!grant || !grant->path) {
                        free(grant);
                        return fail(err, ENOMEM, "no memory to grant '%s'", path);
                }
                grant->fd = -1;
                grant->next = files->grants;
                files->grants = grant;
        }
        if (grant->fd >= 0 && (device || inode) &&
                (grant->device != device || grant->inode != inode) &&
                (grant->device || grant->inode))
                let_go(grant); /* the path means another file now */
        if (!(access & LINK_WRITE) && grant->access & LINK_WRITE && grant->fd >= 0)
                host_lock_reduce(grant->fd, FILE_LOCK_READ);
        grant->access = access;
        if (device || inode) {
                grant->device = device;
                grant->inode = inode;
        }
        take_returned(files, grant);
        return 0;
}

void files_revoke(struct files *files, const char *path)
{
        MUTEX_GUARD(&files->lock);
        for (struct grant **at = &files->grants; *at; at = &(*at)->next) {
                struct grant *grant = *at;

                if (strcmp(grant->path, path) != 0)
                        continue;
                *at = grant->next;
                grant_free(grant);
                break;
        }
        for (struct returned **at = &files->returned; *at;) {
                struct returned *returned = *at;

                if (strcmp(returned->path, path) != 0) {
                        at = &returned->next;
                        continue;
                }
                *at = returned->next;
                returned_free(returned);
        }
}

void files_revoke_others(
        struct files *files, bool (*keep)(void *opaque, const char *path), void *opaque)
{
        MUTEX_GUARD(&files->lock);
        for (struct grant **at = &files->grants; *at;) {
                struct grant *grant = *at;

                if (keep(opaque, grant->path)) {
                        at = &grant->next;
                        continue;
                }
                *at = grant->next;
                grant_free(grant);
        }
}

void files_give_back(struct files *files, const char *path, int fd)
{
        struct returned *returned = calloc(1, sizeof(*returned));

        if (returned)
                returned->path = strdup(path);
        if (!returned || !returned->path) {
                free(returned);
                close(fd);
                return;
        }
        returned->fd = fd;
        MUTEX_GUARD(&files->lock);
        returned->next = files->returned;
        files->returned = returned;
        for (struct grant *grant = files->grants; grant; grant = grant->next)
                if (!strcmp(grant->path, path))
                        take_returned(files, grant);
}

void files_drop_returned(struct files *files)
{
        MUTEX_GUARD(&files->lock);
        while (files->returned) {
                struct returned *returned = files->returned;

                files->returned = returned->next;
                returned_free(returned);
        }
        /* The broker that had granted more died before it took that back. */
        for (struct grant *grant = files->grants; grant; grant = grant->next)
                if (grant->fd >= 0 && !may_write(grant))
                        host_lock_reduce(grant->fd, FILE_LOCK_READ);
}

/* --- opening --- */

/* The lock belongs to the open file description, so that any file around any copy of the descriptor
 * can set it. One that is held already is taken again, which changes nothing. */
static int lock_fd(int fd, const char *path, enum file_lock mode, struct error *err)
{
        _cleanup_(file_closep) struct file *file = NULL;
        _cleanup_fd_ int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        int r;

        if (copy < 0)
                return fail_os(err, errno, "cannot lock '%s'", path);
        r = file_from_fd(copy, path, FILE_READ, &file, err);
        if (r < 0)
                return r;
        TAKE_FD(copy);
        return file_lock_set(file, mode, err);
}

/* A reader's lock becomes a writer's: meanwhile the new description holds a reader's, so that no other
 * writer can come between. */
static int change_lock(struct grant *grant, int new_fd, struct error *err)
{
        int r = lock_fd(new_fd, grant->path, FILE_LOCK_READ, err);

        if (r < 0)
                return r;
        host_lock_reduce(grant->fd, FILE_LOCK_NONE);
        r = lock_fd(new_fd, grant->path, FILE_LOCK_WRITE, err);
        if (r < 0)
                lock_fd(grant->fd, grant->path, FILE_LOCK_READ, NULL);
        return r;
}

static int open_disk(struct grant *grant, bool write, int *ret_fd, struct error *err)
{
        char warning[ERROR_MESSAGE_MAX] = "";
        int r = device_open(
                host_fs(), grant->path, write ? FILE_WRITE : FILE_READ, &grant->disk, err);

        if (r == 0 && write)
                r = device_claim(grant->disk, &grant->device_claim, warning, err);
        if (r == 0) {
                *ret_fd = fcntl(grant->disk->fd, F_DUPFD_CLOEXEC, 3);
                if (*ret_fd >= 0)
                        return 0;
                r = fail_os(err, errno, "cannot open '%s'", grant->path);
        }
        let_go(grant);
        return r;
}

static int open_regular(const struct grant *grant, bool write, int *ret_fd, struct error *err)
{
        int fd = open(grant->path,
                (write ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
        struct stat st;
        int r;

        if (fd < 0)
                return fail_os(err, errno, "cannot open '%s'", grant->path);
        if (fstat(fd, &st) < 0)
                r = fail_os(err, errno, "cannot look at '%s'", grant->path);
        else
                r = check_identity(grant, &st, err);
        if (r < 0)
                close(fd);
        else
                *ret_fd = fd;
        return r;
}

/* A new layer belongs to whom its neighbours belong to, and others see no more of it. */
static void make_like_neighbours(const struct files *files, const struct grant *new, int fd)
{
        size_t n = (size_t)(strrchr(new->path, '/') - new->path) + 1;

        for (const struct grant *grant = files->grants; grant; grant = grant->next) {
                struct stat st;

                if (grant == new || grant->fd < 0 || strncmp(grant->path, new->path, n) != 0 ||
                        strchr(grant->path + n, '/') || fstat(grant->fd, &st) < 0 ||
                        !S_ISREG(st.st_mode))
                        continue;
                if (geteuid() == 0 && fchown(fd, st.st_uid, st.st_gid) < 0)
                        return;
                if (fchmod(fd, (st.st_mode & 0666) | 0600) < 0)
                        return;
                return;
        }
}

static int make_image(
        const struct files *files, struct grant *grant, int *ret_fd, struct error *err)
{
        struct stat st;
        int fd = open(grant->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);

        if (fd < 0)
                return fail_os(err, errno, "cannot make '%s'", grant->path);
        if (fstat(fd, &st) < 0) {
                close(fd);
                return fail_os(err, errno, "cannot look at '%s'", grant->path);
        }
        make_like_neighbours(files, grant, fd);
        identity_of(&st, &grant->device, &grant->inode);
        grant->access &= ~(unsigned)LINK_CREATE;
        *ret_fd = fd;
        return 0;
}

static bool has_enough(const struct grant *grant, bool write)
{
        return grant->fd >= 0 && (grant->fd_writes || !write);
}

/* Afterwards grant->fd is the image, open at least as asked, and locked. */
static int have_image(
        const struct files *files, struct grant *grant, unsigned flags, struct error *err)
{
        bool write = flags & FILE_WRITE, upgrade;
        enum file_lock mode = write ? FILE_LOCK_WRITE : FILE_LOCK_READ;
        _cleanup_fd_ int fd = -1;
        struct stat st;
        int r;

        if (has_enough(grant, write) && !(flags & FILE_CREATE))
                return lock_fd(grant->fd, grant->path, mode, err);
        if (flags & FILE_CREATE) {
                let_go(grant);
                r = make_image(files, grant, &fd, err);
        } else {
                r = look_at(grant, &st, err);
                if (r < 0)
                        return r;
                if (S_ISBLK(st.st_mode))
                        let_go(grant);
                r = S_ISBLK(st.st_mode) ? open_disk(grant, write, &fd, err)
                                        : open_regular(grant, write, &fd, err);
        }
        if (r < 0)
                return r;
        upgrade = grant->fd >= 0;
        r = upgrade ? change_lock(grant, fd, err) : lock_fd(fd, grant->path, mode, err);
        if (r < 0) {
                if (!upgrade)
                        let_go(grant);
                return r;
        }
        if (upgrade)
                close(grant->fd);
        grant->fd = TAKE_FD(fd);
        grant->fd_writes = write;
        return 0;
}

static int lend(struct files_answer *ret, int fd, struct error *err)
{
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

        if (copy < 0)
                return fail_os(err, errno, "no descriptor is left");
        ret->fds[ret->n_fds++] = copy;
        return 0;
}

static int lend_direct(struct files_answer *ret, int fd, bool write, struct error *err)
{
        _cleanup_fd_ int direct = -1;
        char path[64];

        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        direct = open(path, (write ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
        if (direct < 0)
                return fail_os(err, errno, "cannot open the image for direct I/O");
        return lend(ret, direct, err);
}

static int open_image(const struct files *files, struct grant *grant, unsigned flags,
        struct files_answer *ret, struct error *err)
{
        bool write = flags & FILE_WRITE;
        int r;

        if (write && !may_write(grant))
                return refuse(grant->path, "write to", err);
        if (flags & FILE_TRUNCATE)
                return refuse(grant->path, "empty", err);
        if (flags & FILE_CREATE && !(grant->access & LINK_CREATE))
                return refuse(grant->path, "make", err);
        r = have_image(files, grant, flags, err);
        if (r == 0 && !write && grant->settling) {
                grant->settling = false;
                host_lock_reduce(grant->fd, FILE_LOCK_READ);
        }
        if (r == 0)
                r = lend(ret, grant->fd, err);
        if (r == 0 && flags & FILE_DIRECT)
                r = lend_direct(ret, grant->fd, write, err);
        if (r < 0) {
                error_set_file(err, grant->path);
                return r;
        }
        ret->result = json_pack("{s:b}", "exclusive", grant->device_claim != NULL);
        return 0;
}

/* A seal that is being made of an image that is only read. */
static bool may_seal(const struct grant *owner, const char *path)
{
        return owner->access & LINK_SEAL &&
                strcmp(path + strlen(owner->path), ".vhdd-seal.new") == 0;
}

/* An intent, a seal: small files of our own beside an image. */
static int open_sidecar(struct grant *owner, const char *path, unsigned flags, unsigned mode,
        struct files_answer *ret, struct error *err)
{
        _cleanup_fd_ int fd = -1;
        int o = O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
        struct stat st;

        if (flags & (FILE_WRITE | FILE_CREATE | FILE_TRUNCATE) && !may_seal(owner, path) &&
                !may_write(owner))
                return refuse(path, "write", err);
        o |= flags & FILE_WRITE ? O_RDWR : O_RDONLY;
        o |= flags & FILE_CREATE ? O_CREAT : 0;
        o |= flags & FILE_EXCLUSIVE ? O_EXCL : 0;
        fd = open(path, o, mode & 0666);
        if (fd < 0)
                return fail_os(err, errno, "cannot open '%s'", path);
        if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
                return fail(err, EMEDIUMTYPE, "'%s' is no regular file", path);
        if (flags & FILE_TRUNCATE && ftruncate(fd, 0) < 0)
                return fail_os(err, errno, "cannot empty '%s'", path);
        return lend(ret, fd, err);
}

static const char *text_of(const json_t *params, const char *key, struct error *err)
{
        const char *text = json_string_value(json_object_get(params, key));

        if (!text)
                fail(err, EPROTO, "a worker's question has no '%s'", key);
        return text;
}

static unsigned number_of(const json_t *params, const char *key)
{
        json_int_t n = json_integer_value(json_object_get(params, key));

        return n < 0 || n > INT32_MAX ? 0 : (unsigned)n;
}

static int answer_open(
        struct files *files, const json_t *params, struct files_answer *ret, struct error *err)
{
        const char *path = text_of(params, "path", err);
        unsigned flags = number_of(params, "flags");
        struct grant *grant;

        if (!path)
                return -EPROTO;
        if (flags & ~(unsigned)OPEN_FLAGS)
                return fail(err, EPROTO, "'%s' cannot be opened with the flags %#x", path, flags);
        grant = find_grant(files, path);
        if (grant)
                return open_image(files, grant, flags, ret, err);
        grant = find_owner(files, path);
        if (grant)
                return open_sidecar(grant, path, flags, number_of(params, "mode"), ret, err);
        return refuse(path, "open", err);
}

/* --- names --- */

static int answer_rename(
        struct files *files, const json_t *params, struct files_answer *ret, struct error *err)
{
        const char *from = text_of(params, "from", err);
        const char *to = text_of(params, "to", err);
        struct grant *owner;
        int r;

        if (!from || !to)
                return -EPROTO;
        owner = find_owner(files, from);
        if (!owner || owner != find_owner(files, to) || !(owner->access & LINK_WRITE))
                return refuse(from, "rename", err);
        r = fs_rename(host_fs(), from, to, json_is_true(json_object_get(params, "replace")));
        return r < 0 ? fail_os(err, -r, "cannot rename '%s' to '%s'", from, to) : 0;
}

static int answer_unlink(
        struct files *files, const json_t *params, struct files_answer *ret, struct error *err)
{
        const char *path = text_of(params, "path", err);
        struct grant *grant, *owner;
        struct stat st;
        int r = 0;

        if (!path)
                return -EPROTO;
        grant = find_grant(files, path);
        owner = grant ? NULL : find_owner(files, path);
        if (!(grant && grant->access & LINK_UNLINK) &&
                !(owner && (may_seal(owner, path) || may_write(owner))))
                return refuse(path, "remove", err);
        if (grant)
                r = look_at(grant, &st, err);
        if (r < 0)
                return r;
        r = fs_unlink(host_fs(), path);
        if (r < 0)
                return fail_os(err, -r, "cannot remove '%s'", path);
        if (grant)
                let_go(grant);
        return 0;
}

static int answer_sync_directory(
        struct files *files, const json_t *params, struct files_answer *ret, struct error *err)
{
        const char *path = text_of(params, "path", err);
        int r;

        if (!path)
                return -EPROTO;
        if (!find_grant(files, path) && !find_owner(files, path))
                return refuse(path, "sync the directory of", err);
        r = fs_sync_directory(host_fs(), path);
        return r < 0 ? fail_os(err, -r, "cannot sync the directory of '%s'", path) : 0;
}

/* --- regions (E4, E5) --- */

/* The vm's switch record (E10): the worker's to write, whatever image it is asked for beside. */
static bool is_switch_region(const struct files *files, const char *name)
{
        char wanted[96];

        snprintf(wanted, sizeof(wanted), "vhdd-switch-%s", files->vm);
        return strcmp(name, wanted) == 0;
}

/* May the worker have the region @name as one that lies beside the image? */
static bool is_region_of(const struct files *files, const struct grant *grant, const char *name)
{
        static const char *const kinds[] = {"redo", "mark"};
        char wanted[96];
        struct stat st;
        uint64_t device, inode;

        if (is_switch_region(files, name))
                return true;
        if (grant->fd < 0 || fstat(grant->fd, &st) < 0)
                return false;
        identity_of(&st, &device, &inode);
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
                snprintf(wanted, sizeof(wanted), "vhdd-%s-%llx-%llx", kinds[i],
                        (unsigned long long)device, (unsigned long long)inode);
                if (!strcmp(name, wanted))
                        return true;
        }
        return false;
}

static int region_of(const struct files *files, const json_t *params, const char **ret_name,
        struct grant **ret, struct error *err)
{
        const char *name = text_of(params, "name", err);
        const char *beside = text_of(params, "beside", err);
        struct grant *grant;

        if (!name || !beside)
                return -EPROTO;
        grant = find_grant(files, beside);
        if (!grant || !is_region_of(files, grant, name))
                return refuse(name, "open the region", err);
        *ret_name = name;
        *ret = grant;
        return 0;
}

/* The switch record lasts as long as the worker; the image beside which it was made may be gone by then,
 * or not used any more. Then it is looked for where we opened it, else beside any other: the place counts
 * only where there is no tmpfs. */
static const char *switch_place(const struct files *files, const json_t *params)
{
        const char *name = json_string_value(json_object_get(params, "name"));
        const char *beside = json_string_value(json_object_get(params, "beside"));

        if (!name || !beside || find_grant(files, beside) || !is_switch_region(files, name))
                return NULL;
        if (files->switch_beside)
                return files->switch_beside;
        return files->grants ? files->grants->path : NULL;
}

static int remove_region(const char *name, const char *beside, struct error *err)
{
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        int r = host_region_open_fd(name, beside, 0, false, &fd, &path, err);

        if (r == -ENOENT) {
                error_clear(err);
                return 0;
        }
        if (r < 0)
                return r;
        return unlink(path) < 0 ? fail_os(err, errno, "cannot remove '%s'", path) : 0;
}

static int answer_region_open(
        struct files *files, const json_t *params, struct files_answer *ret, struct error *err)
{
        json_int_t size = json_integer_value(json_object_get(params, "size"));
        bool create = json_is_true(json_object_get(params, "create"));
        _cleanup_free_ char *path = NULL;
        _cleanup_fd_ int fd = -1;
        struct grant *grant;
        const char *name;
        int r = region_of(files, params, &name, &grant, err);

        if (r < 0)
                return r;
        if (create && !(grant->access & LINK_WRITE) && !grant->settling)
                return refuse(name, "make the region", err);
        if (size < 0 || (uint64_t)size > FILES_MAX_REGION)
                return fail(err, EPROTO, "a region of %lld bytes is too large", (long long)size);
        r = host_region_open_fd(name, grant->path, (uint64_t)size, create, &fd, &path, err);
        if (r < 0)
                return r == -ENOENT ? fail(err, ENOENT, "there is no region '%s'", name) : r;
        /* A mapping of what can only be read is the reader's own copy; a record written there would be
         * lost with the worker, which is what it is for. */
        if (!(grant->access & LINK_WRITE) && !grant->settling && !is_switch_region(files, name)) {
                char link[64];
                int reader;

                snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
                reader = open(link, O_RDONLY | O_CLOEXEC);
                if (reader < 0)
                        return fail_os(err, errno, "cannot open the region '%s'", path);
                close(fd);
                fd = reader;
        }
        if (is_switch_region(files, name)) {
                free(files->switch_beside);
                files->switch_beside = strdup(grant->path); /* NULL: as if we did not know */
        }
        r = lend(ret, fd, err);
        if (r < 0)
                return r;
        ret->result = json_pack("{s:s}", "path", path);
        return 0;
}

static int answer_region_remove(
        struct files *files, const json_t *params, struct files_answer *ret, struct error *err)
{
        const char *place = switch_place(files, params);
        struct grant *grant;
        const char *name;
        int r;

        if (place)
                return remove_region(
                        json_string_value(json_object_get(params, "name")), place, err);
        r = region_of(files, params, &name, &grant, err);
        if (r < 0)
                return r;
        if (!(grant->access & LINK_WRITE) && !grant->settling && !is_switch_region(files, name))
                return refuse(name, "remove the region", err);
        return remove_region(name, grant->path, err);
}

int files_answer(struct files *files, const char *method, const json_t *params,
        struct files_answer *ret, struct error *err)
{
        static const struct {
                const char *method;
                int (*answer)(
                        struct files *, const json_t *, struct files_answer *, struct error *);
        } table[] = {
                {"fs.open", answer_open},
                {"fs.rename", answer_rename},
                {"fs.unlink", answer_unlink},
                {"fs.sync-directory", answer_sync_directory},
                {"fs.region-open", answer_region_open},
                {"fs.region-remove", answer_region_remove},
        };
        struct files_answer answer = {.fds = {-1, -1}};
        int r = fail(err, EPROTO, "a worker asks for '%.64s', which nobody knows", method);

        MUTEX_GUARD(&files->lock);
        for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
                if (strcmp(table[i].method, method) != 0)
                        continue;
                error_clear(err);
                r = table[i].answer(files, params, &answer, err);
                break;
        }
        if (r < 0)
                files_answer_done(&answer);
        else
                *ret = answer;
        return r;
}

void files_answer_done(struct files_answer *answer)
{
        for (unsigned i = 0; i < answer->n_fds; i++)
                close(answer->fds[i]);
        answer->n_fds = 0;
        json_decref(answer->result);
        answer->result = NULL;
}
