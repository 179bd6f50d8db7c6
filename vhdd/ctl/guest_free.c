/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/guest_free.h"

#include <blkid.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "vhdd/ctl/loop.h"
#include "vhdd/ctl/output.h"

#define PATH_SIZE      128u
#define WAIT_MS        20000 /* for a server or a file to be there */
#define PAUSE_NS       10000000L
#define MAX_ARGUMENTS  256u
#define MAX_PARTITIONS 256

struct guest {
        const struct ctl *ctl;
        const char *path;
        char directory[PATH_SIZE];
        char socket[PATH_SIZE], fuse[PATH_SIZE], disk[PATH_SIZE], mount[PATH_SIZE];
        pid_t server, nbdfuse; /* 0: not running */
        bool fuse_mounted;
        struct guest_free_report report;
};

static void pause_a_little(void)
{
        struct timespec ts = {.tv_nsec = PAUSE_NS};

        nanosleep(&ts, NULL);
}

/* --- processes that end with us */

/* @fd: becomes its stdout. */
static pid_t start(const char *file, char *const argv[], int fd)
{
        pid_t parent = getpid(), pid;

        fflush(NULL);
        pid = fork();
        if (pid != 0)
                return pid;
        /* Our death ends it; if that came before this call, nobody is there to wait for. */
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent)
                _exit(127);
        if (dup2(fd, 1) >= 0)
                execvp(file, argv);
        _exit(127);
}

/* Waits for its end. 0, or why it was no good one. */
static int end(pid_t *pid, int signal_number)
{
        int status = 0;
        pid_t r;

        if (*pid <= 0)
                return 0;
        kill(*pid, signal_number);
        do
                r = waitpid(*pid, &status, 0);
        while (r < 0 && errno == EINTR);
        *pid = 0;
        return r > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

static bool has_ended(pid_t *pid)
{
        if (waitpid(*pid, NULL, WNOHANG) != *pid)
                return false;
        *pid = 0;
        return true;
}

/* --- the disk as a file */

static void add_option(char *argv[], size_t *n, const char *option, const char *value)
{
        if (*n + 3 < MAX_ARGUMENTS) {
                argv[(*n)++] = (char *)(uintptr_t)option;
                argv[(*n)++] = (char *)(uintptr_t)value;
        }
}

/* Ours, with the chain's options; it prints its URI when it listens. */
static int start_server(struct guest *g, struct error *err)
{
        char *argv[MAX_ARGUMENTS] = {(char *)"vhdctl", (char *)"serve", (char *)"--quiet"};
        size_t n = 3;
        int fds[2];
        struct pollfd ready;
        char byte;

        for (size_t i = 0; i < g->ctl->n_image_roots; i++)
                add_option(argv, &n, "--image-root", g->ctl->image_roots[i]);
        for (size_t i = 0; i < g->ctl->n_parents; i++)
                add_option(argv, &n, "--parent", g->ctl->parents[i]);
        if (g->ctl->format)
                add_option(argv, &n, "--format", g->ctl->format);
        add_option(argv, &n, "--socket", g->socket);
        add_option(argv, &n, "--", g->path);
        argv[n] = NULL;
        if (pipe2(fds, O_CLOEXEC) < 0)
                return fail_os(err, errno, "cannot serve '%s'", g->path);
        g->server = start("/proc/self/exe", argv, fds[1]);
        close(fds[1]);
        ready = (struct pollfd){.fd = fds[0], .events = POLLIN};
        if (g->server > 0 && poll(&ready, 1, WAIT_MS) == 1 && read(fds[0], &byte, 1) == 1) {
                close(fds[0]);
                return 0;
        }
        close(fds[0]);
        return fail(err, EIO, "'%s' cannot be served to look inside", g->path);
}

static int start_nbdfuse(struct guest *g, struct error *err)
{
        char uri[PATH_SIZE + 64];
        char *argv[] = {(char *)"nbdfuse", g->disk, uri, NULL};
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        struct stat st;

        snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s", g->socket);
        g->nbdfuse = null < 0 ? -1 : start("nbdfuse", argv, null);
        if (null >= 0)
                close(null);
        for (int ms = 0; ms < WAIT_MS && g->nbdfuse > 0; ms += 10) {
                if (stat(g->disk, &st) == 0 && st.st_size > 0) {
                        g->fuse_mounted = true;
                        return 0;
                }
                if (has_ended(&g->nbdfuse))
                        break;
                pause_a_little();
        }
        fail(err, ENOENT, "nbdfuse does not show the disk: is it installed?");
        error_set_hint(err, "it comes with libnbd (Debian: libnbd-bin, Fedora: nbdfuse)");
        return -ENOENT;
}

/* --- one file system */

/* What the kernel calls it. */
static const char *kernel_type(const char *type)
{
        return strcmp(type, "ntfs") == 0 ? "ntfs3" : type;
}

static int trim(const char *directory, uint64_t *ret)
{
        struct fstrim_range range = {.len = UINT64_MAX};
        int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;

        if (fd < 0)
                return -errno;
        r = ioctl(fd, FITRIM, &range) < 0 ? -errno : 0;
        if (r == 0 && syncfs(fd) < 0)
                r = -errno;
        close(fd);
        *ret = range.len;
        return r;
}

/* What is on the device now: libblkid's cache goes by its name, which another partition may have had a moment
 * ago. Allocated; NULL: nothing that is known. */
static char *type_of(const char *device)
{
        blkid_probe probe = blkid_new_probe_from_filename(device);
        const char *type = NULL;
        char *copy;

        if (!probe)
                return NULL;
        blkid_probe_enable_superblocks(probe, 1);
        blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE);
        if (blkid_do_safeprobe(probe) != 0 ||
                blkid_probe_lookup_value(probe, "TYPE", &type, NULL) < 0)
                type = NULL;
        copy = type ? strdup(type) : NULL;
        blkid_free_probe(probe);
        return copy;
}

/* Windows that hibernated, or shut down fast, goes on from what it knows of its file systems. */
static bool windows_sleeps(const char *directory)
{
        static const char *const asleep[] = {"hibr", "HIBR", "rstr", "RSTR"};
        char path[PATH_MAX], magic[5] = "";
        int fd;
        bool sleeps = false;

        snprintf(path, sizeof(path), "%s/hiberfil.sys", directory);
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
                return false;
        if (read(fd, magic, 4) == 4)
                for (size_t i = 0; i < sizeof(asleep) / sizeof(asleep[0]); i++)
                        sleeps = sleeps || strcmp(magic, asleep[i]) == 0;
        close(fd);
        return sleeps;
}

/* Looked at before anything is replayed or written. */
static bool is_asleep(const struct guest *g, const char *device, const char *type)
{
        bool asleep;

        if (strcmp(type, "ntfs") != 0 ||
                mount(device, g->mount, kernel_type(type),
                        MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "") < 0)
                return false;
        asleep = windows_sleeps(g->mount);
        if (umount2(g->mount, 0) < 0)
                umount2(g->mount, MNT_DETACH);
        return asleep;
}

static int mount_and_trim(
        const struct guest *g, const char *device, const char *type, uint64_t *ret, bool *mounted)
{
        int r;

        *mounted = mount(device, g->mount, kernel_type(type),
                           MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, "") == 0;
        if (!*mounted)
                return -errno;
        r = trim(g->mount, ret);
        if (umount2(g->mount, 0) < 0) {
                if (r == 0)
                        r = -errno;
                umount2(g->mount, MNT_DETACH);
        }
        return r;
}

static void leave(struct guest *g, const char *what, const char *why)
{
        ctl_warn(g->ctl, "%s of '%s' is left as it is: %s", what, g->path, why);
        g->report.n_left++;
}

/* The file system at [offset, offset + size) of the disk, which a person calls @what. */
static void free_inside(struct guest *g, uint64_t offset, uint64_t size, const char *what)
{
        const struct loop_part part = {.path = g->disk, .offset = offset, .size = size};
        char device[LOOP_NAME_SIZE], why[256];
        uint64_t bytes = 0;
        bool mounted;
        char *type;
        int loop = loop_attach(&part, device), r;

        if (loop < 0) {
                snprintf(why, sizeof(why), "no loop device: %s", strerror(-loop));
                leave(g, what, why);
                return;
        }
        type = type_of(device);
        if (!type) {
                leave(g, what, "no file system was found there");
                close(loop);
                return;
        }
        if (is_asleep(g, device, type)) {
                leave(g, what, "its Windows is hibernated: shut it down, and not fast");
                free(type);
                close(loop);
                return;
        }
        r = mount_and_trim(g, device, type, &bytes, &mounted);
        if (r < 0) {
                snprintf(why, sizeof(why), "its %s cannot be %s: %s", type,
                        mounted ? "trimmed" : "mounted", strerror(-r));
                leave(g, what, why);
        } else {
                g->report.n_trimmed++;
                g->report.bytes += bytes;
        }
        free(type);
        close(loop);
}

/* --- the partitions */

static void free_partitions(struct guest *g, blkid_partlist list)
{
        int n = MIN_OF(blkid_partlist_numof_partitions(list), MAX_PARTITIONS);

        for (int i = 0; i < n; i++) {
                blkid_partition partition = blkid_partlist_get_partition(list, i);
                char what[32];

                if (!partition || blkid_partition_is_extended(partition))
                        continue;
                snprintf(what, sizeof(what), "partition %d", blkid_partition_get_partno(partition));
                free_inside(g, (uint64_t)blkid_partition_get_start(partition) * SECTOR_SIZE,
                        (uint64_t)blkid_partition_get_size(partition) * SECTOR_SIZE, what);
        }
}

/* A Linux that hibernated goes on from what it knows of all its file systems. */
static bool linux_sleeps(const struct guest *g, uint64_t offset, uint64_t size)
{
        const struct loop_part part = {.path = g->disk, .offset = offset, .size = size};
        char device[LOOP_NAME_SIZE];
        int loop = loop_attach(&part, device);
        char *type = loop < 0 ? NULL : type_of(device);
        bool sleeps = type && strcmp(type, "swsuspend") == 0;

        free(type);
        if (loop >= 0)
                close(loop);
        return sleeps;
}

static int refuse_sleeping(const struct guest *g, blkid_partlist list, struct error *err)
{
        int n = MIN_OF(blkid_partlist_numof_partitions(list), MAX_PARTITIONS);

        for (int i = 0; i < n; i++) {
                blkid_partition partition = blkid_partlist_get_partition(list, i);

                if (!partition || blkid_partition_is_extended(partition) ||
                        !linux_sleeps(g,
                                (uint64_t)blkid_partition_get_start(partition) * SECTOR_SIZE,
                                (uint64_t)blkid_partition_get_size(partition) * SECTOR_SIZE))
                        continue;
                fail(err, EBUSY, "the guest in '%s' is hibernated (partition %d)", g->path,
                        blkid_partition_get_partno(partition));
                error_set_hint(err, "start it, shut it down, and compact it then");
                return -EBUSY;
        }
        return 0;
}

static int look_inside(struct guest *g, struct error *err)
{
        int r = 0;
        blkid_probe probe = blkid_new_probe_from_filename(g->disk);
        blkid_partlist list;

        if (!probe)
                return fail(err, EIO, "'%s' cannot be looked into", g->path);
        blkid_probe_enable_partitions(probe, 1);
        list = blkid_probe_get_partitions(probe);
        if (list && blkid_partlist_numof_partitions(list) > 0) {
                r = refuse_sleeping(g, list, err);
                if (r == 0)
                        free_partitions(g, list);
        } else {
                free_inside(g, 0, 0, "the disk");
        }
        blkid_free_probe(probe);
        if (r < 0)
                return r;
        if (g->report.n_trimmed > 0)
                return 0;
        return fail(err, ENOTSUP,
                "nothing inside '%s' could be trimmed: run fstrim in the guest, and compact it then",
                g->path);
}

/* --- putting it together */

static int need(const struct guest *g, struct error *err)
{
        if (geteuid() != 0) {
                fail(err, EPERM,
                        "--guest-free mounts the file systems inside '%s', which only root may",
                        g->path);
                error_set_hint(err, "run fstrim in the guest instead, and compact without it");
                return -EPERM;
        }
        if (access("/dev/fuse", R_OK | W_OK) < 0)
                return fail_os(err, errno, "--guest-free needs /dev/fuse");
        if (access("/dev/loop-control", R_OK | W_OK) < 0)
                return fail_os(err, errno, "--guest-free needs loop devices");
        return 0;
}

static int make_places(struct guest *g, struct error *err)
{
        snprintf(g->directory, sizeof(g->directory), "/run/vhdctl-inside-XXXXXX");
        if (!mkdtemp(g->directory)) {
                g->directory[0] = '\0';
                return fail_os(err, errno, "cannot make a folder in /run");
        }
        snprintf(g->socket, sizeof(g->socket), "%.60s/nbd.sock", g->directory);
        snprintf(g->fuse, sizeof(g->fuse), "%.60s/fuse", g->directory);
        snprintf(g->disk, sizeof(g->disk), "%.60s/fuse/disk", g->directory);
        snprintf(g->mount, sizeof(g->mount), "%.60s/mount", g->directory);
        if (mkdir(g->fuse, 0700) < 0 || mkdir(g->mount, 0700) < 0)
                return fail_os(err, errno, "cannot make a folder in '%s'", g->directory);
        /* Nobody else sees what is mounted here, and nothing of it outlives us. */
        if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
                return fail_os(err, errno, "no mount namespace can be had");
        return 0;
}

/* The server's end is the one that counts: it has flushed then. */
static int take_down(struct guest *g)
{
        int r;

        if (g->fuse_mounted)
                umount2(g->fuse, MNT_DETACH);
        end(&g->nbdfuse, SIGTERM);
        r = end(&g->server, SIGTERM);
        if (g->directory[0]) {
                unlink(g->socket);
                rmdir(g->fuse);
                rmdir(g->mount);
                rmdir(g->directory);
        }
        return r;
}

int guest_free(
        const struct ctl *ctl, const char *path, struct guest_free_report *ret, struct error *err)
{
        struct guest *g = calloc(1, sizeof(*g));
        int r, down;

        if (!g)
                return fail(err, ENOMEM, "no memory to look into '%s'", path);
        g->ctl = ctl;
        g->path = path;
        r = need(g, err);
        if (r == 0)
                r = make_places(g, err);
        if (r == 0)
                r = start_server(g, err);
        if (r == 0)
                r = start_nbdfuse(g, err);
        if (r == 0)
                r = look_inside(g, err);
        down = take_down(g);
        if (r == 0 && down < 0)
                r = fail(err, EIO, "the server of '%s' did not end well: look at it with check",
                        path);
        *ret = g->report;
        free(g);
        if (r < 0)
                error_set_file(err, path);
        return r;
}
