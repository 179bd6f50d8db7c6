/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/raw/device.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "formats/raw/holders.h"
#include "formats/raw/partitions.h"

#define FLOCK_TRIES    250
#define FLOCK_PAUSE_NS 20000000L /* 250 x 20 ms: udev may be reading a disk that has just come */

struct device {
        /* immutable after the claim */
        struct file *file;
        int claim_fd; /* holds O_EXCL, or -1: @file does */
        bool foreign; /* whoever opened @file for us has made the claim, too */
        struct partitions *partitions;
};

static int fail_busy(const char *path, dev_t device, struct error *err);

int device_open(
        struct fs *fs, const char *path, unsigned flags, struct file **ret, struct error *err)
{
        char who[HOLDERS_TEXT_MAX];
        struct stat st;

        /* Known to be busy: not even opened, as closing it again would make udev look at it. */
        if (fs == host_fs() && (flags & FILE_WRITE) && stat(path, &st) == 0 &&
                S_ISBLK(st.st_mode)) {
                int r;

                if (holders_find(&holders_host, st.st_rdev, who, sizeof(who)))
                        return fail_busy(path, st.st_rdev, err);
                r = file_open(fs, path, flags | FILE_EXCLUSIVE, ret, err);
                return r == -EBUSY ? fail_busy(path, st.st_rdev, err) : r;
        }
        return file_open(fs, path, flags, ret, err);
}

static int fail_busy(const char *path, dev_t device, struct error *err)
{
        char who[HOLDERS_TEXT_MAX];

        error_clear(err);
        if (holders_find(&holders_host, device, who, sizeof(who))) {
                fail(err, EBUSY, "'%s' is in use: %s", path, who);
                error_set_hint(err,
                        "what the machine itself uses cannot be a guest's disk: end that use first "
                        "(umount, swapoff, ...)");
        } else if (holders_find_process(device, who, sizeof(who))) {
                fail(err, EBUSY, "'%s' is in use by %s", path, who);
                error_set_hint(err, "end the other program first");
        } else {
                fail(err, EBUSY,
                        "'%s' is in use by something that this process cannot see (perhaps mounted "
                        "in a container)",
                        path);
        }
        error_set_file(err, path);
        return -EBUSY;
}

/* O_EXCL is a claim of the open file: where the file came without it, a second one holds it. */
static int claim_exclusively(struct device *device, dev_t number, struct error *err)
{
        char path[64];

        if (device->file->flags & FILE_EXCLUSIVE)
                return 0;
        snprintf(path, sizeof(path), "/proc/self/fd/%d", device->file->fd);
        device->claim_fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
        if (device->claim_fd >= 0)
                return 0;
        if (errno == EBUSY)
                return fail_busy(device->file->path, number, err);
        return fail_os(err, errno, "cannot claim '%s'", device->file->path);
}

static bool is_whole_disk(dev_t number)
{
        char path[64];

        snprintf(
                path, sizeof(path), "/sys/dev/block/%u:%u/partition", major(number), minor(number));
        return access(path, F_OK) < 0;
}

/* udev and well-behaved tools (mkfs, sfdisk --lock) leave a disk alone whose node is locked. */
static int lock_against_udev(struct file *file, struct error *err)
{
        const struct timespec pause = {.tv_nsec = FLOCK_PAUSE_NS};

        for (int i = 0; flock(file->fd, LOCK_EX | LOCK_NB) < 0; i++) {
                if (errno != EWOULDBLOCK)
                        return fail_os(err, errno, "cannot lock '%s' against udev", file->path);
                if (i == FLOCK_TRIES) {
                        fail(err, EBUSY, "'%s' is locked (flock) by another program", file->path);
                        error_set_hint(err, "lslocks shows which; end it first");
                        return -EBUSY;
                }
                nanosleep(&pause, NULL);
        }
        return 0;
}

/* Without root the nodes stay. Nobody can mount them meanwhile (the claim of the disk covers its
 * partitions), so this is worth a word and no more. */
static int hide_partitions(struct device *device, char *warning, struct error *err)
{
        struct error local = ERROR_INIT;
        int r = partitions_hide(device->file, &device->partitions, &local);

        if (r == -EPERM) {
                snprintf(warning, ERROR_MESSAGE_MAX,
                        "%.900s; they stay visible, but cannot be mounted", local.message);
                return 0;
        }
        if (r < 0 && err)
                *err = local;
        return r;
}

/* /dev/sdb may be another disk after the next boot; a name of the hardware is told where there is one. */
static void warn_of_name(const char *path, char *warning)
{
        struct error ignored = ERROR_INIT;
        char name[DEVICE_NAME_MAX];

        if (warning[0] || strncmp(path, "/dev/disk/", strlen("/dev/disk/")) == 0 ||
                device_stable_name(path, name, sizeof(name), &ignored) < 0)
                return;
        snprintf(warning, ERROR_MESSAGE_MAX,
                "'%.300s' may be another disk after a reboot; '%.600s' stays this one", path, name);
}

int device_claim(struct file *file, struct device **ret, char *warning, struct error *err)
{
        struct device *device = calloc(1, sizeof(*device));
        char who[HOLDERS_TEXT_MAX];
        struct file_stat st;
        dev_t number;
        int r;

        if (!device)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        *device = (struct device){.file = file, .claim_fd = -1};
        if (file->fs != host_fs()) {
                device->foreign = true;
                *ret = device;
                return 0;
        }
        r = file_stat_get(file, &st);
        if (r < 0) {
                device_abandon(device);
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        }
        number = (dev_t)st.device;
        if (holders_find(&holders_host, number, who, sizeof(who)))
                r = fail_busy(file->path, number, err);
        if (r == 0)
                r = claim_exclusively(device, number, err);
        if (r == 0 && is_whole_disk(number)) {
                r = lock_against_udev(file, err);
                if (r == 0)
                        r = hide_partitions(device, warning, err);
        }
        if (r < 0) {
                device_abandon(device);
                return r;
        }
        warn_of_name(file->path, warning);
        *ret = device;
        return 0;
}

int device_release(struct device *device, struct error *err)
{
        int r;

        if (!device)
                return 0;
        r = partitions_show(TAKE_PTR(device->partitions), err);
        device_abandon(device);
        return r;
}

struct device *device_abandon(struct device *device)
{
        if (!device)
                return NULL;
        partitions_forget(device->partitions);
        if (!device->foreign)
                flock(device->file->fd, LOCK_UN);
        if (device->claim_fd >= 0)
                close(device->claim_fd);
        free(device);
        return NULL;
}

/* Only where nobody holds the disk: a living server's note is not ours to settle. */
static void show_owed_partitions(struct file *file)
{
        struct error ignored = ERROR_INIT;
        _cleanup_fd_ int claim = -1;
        char path[64];

        if (flock(file->fd, LOCK_EX | LOCK_NB) < 0)
                return;
        snprintf(path, sizeof(path), "/proc/self/fd/%d", file->fd);
        claim = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
        if (claim >= 0)
                partitions_show_owed(file, &ignored); /* no right to: the next writer does it */
        flock(file->fd, LOCK_UN);
}

void device_look(struct file *file, char *warning)
{
        char who[HOLDERS_TEXT_MAX];
        struct file_stat st;

        if (file->fs != host_fs() || file_stat_get(file, &st) < 0)
                return;
        if (holders_find(&holders_host, (dev_t)st.device, who, sizeof(who)))
                snprintf(warning, ERROR_MESSAGE_MAX,
                        "'%s' is in use (%s), so it may change while it is read", file->path, who);
        else if (is_whole_disk((dev_t)st.device))
                show_owed_partitions(file);
}

/* Names that the hardware carries come before those made of model and serial, and those before
 * names of what lies on the disk. Lower is better. */
static int name_rank(const char *name)
{
        static const char *const best_first[] = {
                "wwn-",
                "nvme-eui.",
                "nvme-uuid.",
                "nvme-",
                "ata-",
                "scsi-",
                "virtio-",
                "usb-",
                "mmc-",
                "dm-uuid-",
                "md-uuid-",
                "dm-name-",
                "md-name-",
        };
        const int n = (int)(sizeof(best_first) / sizeof(best_first[0]));

        for (int i = 0; i < n; i++)
                if (strncmp(name, best_first[i], strlen(best_first[i])) == 0)
                        return i;
        return n;
}

static bool is_better_name(const char *name, const char *than)
{
        int a = name_rank(name), b = name_rank(than);

        return than[0] == '\0' || a < b || (a == b && strcmp(name, than) < 0);
}

int device_stable_name_in(
        const char *folder, const char *path, char *ret, size_t size, struct error *err)
{
        char best[NAME_MAX + 1] = "";
        struct dirent *entry;
        struct stat wanted;
        DIR *dir;

        if (stat(path, &wanted) < 0)
                return fail_os(err, errno, "cannot look at '%s'", path);
        if (!S_ISBLK(wanted.st_mode))
                return fail(err, ENOTBLK, "'%s' is no block device", path);
        dir = opendir(folder);
        while (dir && (entry = readdir(dir))) {
                struct stat st;

                if (entry->d_name[0] != '.' && fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 &&
                        S_ISBLK(st.st_mode) && st.st_rdev == wanted.st_rdev &&
                        is_better_name(entry->d_name, best))
                        snprintf(best, sizeof(best), "%s", entry->d_name);
        }
        if (dir)
                closedir(dir);
        if (best[0] == '\0')
                return fail(err, ENOENT,
                        "'%s' has no name under %s, so it may have another one after a reboot",
                        path, folder);
        if ((size_t)snprintf(ret, size, "%s/%s", folder, best) >= size)
                return fail(
                        err, ENAMETOOLONG, "the name of '%s' under %s is too long", path, folder);
        return 0;
}

int device_stable_name(const char *path, char *ret, size_t size, struct error *err)
{
        return device_stable_name_in("/dev/disk/by-id", path, ret, size, err);
}
