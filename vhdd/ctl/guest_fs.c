/* SPDX-License-Identifier: Apache-2.0 */
#include "vhdd/ctl/guest_fs.h"

#include <blkid.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "vhdd/ctl/loop.h"
#include "vhdd/ctl/mounts.h"
#include "vhdd/ctl/program.h"

#define MAX_ARGUMENTS 12
#define OPTIONS_SIZE  1024u

/* --- what there is */

static void cleanup_probe(blkid_probe *probe)
{
        blkid_free_probe(*probe); /* takes NULL */
}

static void copy_value(blkid_probe probe, const char *name, char *ret, size_t size)
{
        const char *value;

        ret[0] = '\0';
        if (blkid_probe_lookup_value(probe, name, &value, NULL) == 0)
                snprintf(ret, size, "%s", value);
}

int guest_fs_probe(const char *path, struct guest_fs *ret, struct error *err)
{
        _cleanup_(cleanup_probe) blkid_probe probe = blkid_new_probe();
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        char usage[32];
        int r;

        *ret = (struct guest_fs){0};
        if (fd < 0)
                return fail_os(err, errno, "cannot look into '%s'", path);
        if (!probe || blkid_probe_set_device(probe, fd, 0, 0) < 0)
                return fail(err, ENOMEM, "cannot look into '%s'", path);
        blkid_probe_enable_superblocks(probe, 1);
        blkid_probe_set_superblocks_flags(
                probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE | BLKID_SUBLKS_LABEL);
        r = blkid_do_safeprobe(probe);
        if (r == -2)
                return fail(err, EUCLEAN, "it looks like more than one file system");
        if (r < 0)
                return fail_os(err, errno ? errno : EIO, "cannot look into '%s'", path);
        if (r > 0)
                return 0;
        copy_value(probe, "TYPE", ret->type, sizeof(ret->type));
        copy_value(probe, "LABEL", ret->label, sizeof(ret->label));
        copy_value(probe, "USAGE", usage, sizeof(usage));
        if (ret->type[0])
                ret->content = strcmp(usage, "filesystem") == 0 ? GUEST_FILE_SYSTEM : GUEST_OTHER;
        return 0;
}

const char *guest_fs_describe(const struct guest_fs *fs)
{
        static const char *const words[][2] = {
                {"swap", "Linux swap"},
                {"LVM2_member", "part of an LVM volume group"},
                {"LVM1_member", "part of an LVM volume group"},
                {"crypto_LUKS", "encrypted by LUKS"},
                {"BitLocker", "encrypted by BitLocker"},
                {"linux_raid_member", "part of a Linux RAID"},
                {"zfs_member", "part of a ZFS pool"},
                {"VMFS_volume_member", "part of a VMFS volume"},
        };

        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
                if (strcmp(fs->type, words[i][0]) == 0)
                        return words[i][1];
        return fs->content == GUEST_NOTHING ? "nothing that is known" : fs->type;
}

/* --- options */

static void add_option(char *list, size_t size, const char *option)
{
        size_t used = strlen(list);

        if (option && option[0])
                snprintf(list + used, size - used, "%s%s", used > 0 ? "," : "", option);
}

int guest_fs_options(const char *text, bool *ret_exec, char *ret, size_t size, struct error *err)
{
        _cleanup_free_ char *copy = strdup(text ? text : "");
        char *rest = copy, *option;

        *ret_exec = false;
        ret[0] = '\0';
        if (!copy)
                return fail(err, ENOMEM, "no memory for options");
        while ((option = strsep(&rest, ","))) {
                if (strcmp(option, "exec") == 0 || strcmp(option, "noexec") == 0)
                        *ret_exec = option[0] == 'e';
                else if (strcmp(option, "suid") == 0 || strcmp(option, "dev") == 0)
                        return fail(err, EINVAL,
                                "-o %s is not to be had: what is in an image is not to be trusted",
                                option);
                else if (strcmp(option, "rw") == 0 || strcmp(option, "ro") == 0)
                        return fail(err, EINVAL, "-o %s: say --writable, or do not", option);
                else if (strcmp(option, "nosuid") != 0 && strcmp(option, "nodev") != 0)
                        add_option(ret, size, option);
        }
        return 0;
}

/* --- by the kernel */

static bool is_ext(const char *type)
{
        return strcmp(type, "ext2") == 0 || strcmp(type, "ext3") == 0 || strcmp(type, "ext4") == 0;
}

/* What the kernel calls it. */
static const char *kernel_type(const char *type)
{
        return strcmp(type, "ntfs") == 0 ? "ntfs3" : type;
}

/* A superblock can say that an error is to stop the machine. A copy of the host's own xfs has the host's
 * UUID. */
static const char *kernel_options(const char *type)
{
        return is_ext(type) ? "errors=remount-ro" : strcmp(type, "xfs") == 0 ? "nouuid" : "";
}

/* This kernel, or what it lets us do, is not enough: a program of the user's own may be. */
static bool is_beyond_kernel(int r)
{
        return r == -ENODEV || r == -EPERM || r == -EACCES || r == -ENOENT || r == -ENXIO;
}

static int mount_by_kernel(const struct guest_fs_mount *m, struct error *err)
{
        unsigned long flags =
                MS_NOSUID | MS_NODEV | (m->exec ? 0 : MS_NOEXEC) | (m->writable ? 0 : MS_RDONLY);
        const struct loop_part part = {.path = m->file};
        char device[LOOP_NAME_SIZE], options[OPTIONS_SIZE] = "";
        _cleanup_fd_ int loop = loop_attach(&part, device);
        int r;

        if (loop < 0)
                return fail_os(err, -loop, "no loop device can be had for %s", m->what);
        r = m->about_to(m->opaque, device, err);
        if (r < 0)
                return r;
        add_option(options, sizeof(options), kernel_options(m->type));
        add_option(options, sizeof(options), m->options);
        if (mount(device, m->point, kernel_type(m->type), flags, options) == 0)
                return 0;
        r = fail_os(err, errno, "cannot mount %s, %s", m->what, m->type);
        if (r == -EINVAL)
                error_set_hint(err,
                        "dmesg may say why: a damaged file system, or an option that %s does "
                        "not have",
                        kernel_type(m->type));
        return r;
}

/* --- by a program */

static const struct program {
        const char *type, *name, *package;
} programs[] = {
        {"ext2", "fuse2fs", "fuse2fs"},
        {"ext3", "fuse2fs", "fuse2fs"},
        {"ext4", "fuse2fs", "fuse2fs"},
        {"ntfs", "ntfs-3g", "ntfs-3g"},
        {"vfat", "fusefat", "fusefat"},
};

static const struct program *find_program(const char *type)
{
        for (size_t i = 0; i < sizeof(programs) / sizeof(programs[0]); i++)
                if (strcmp(programs[i].type, type) == 0)
                        return &programs[i];
        return NULL;
}

/* Does the journal hold what the file system does not have yet? */
static bool needs_recovery(const char *path)
{
        _cleanup_fd_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        uint8_t features[4];

        return fd >= 0 && pread(fd, features, sizeof(features), 1024 + 0x60) == 4 &&
                (features[0] & 0x04) != 0;
}

/* fuse2fs does not do it, or not well. */
static int replay_journal(const struct guest_fs_mount *m, struct error *err)
{
        char *const argv[] = {(char *)"e2fsck", (char *)"-y", (char *)"-E", (char *)"journal_only",
                (char *)(uintptr_t)m->file, NULL};
        int code, r = program_run(argv, &code, err);

        if (r == 0 && code > 1)
                r = fail(err, EIO, "e2fsck ended with %d", code);
        return r < 0 ? fail_prefix(err, r, "cannot replay the journal of %s", m->what) : 0;
}

/* FUSE 2 takes no folder that holds something, and some programs do not even say so. */
static int refuse_full_folder(
        const struct guest_fs_mount *m, const struct program *program, struct error *err)
{
        DIR *dir = opendir(m->point);
        const struct dirent *entry;
        bool full = false;

        while (dir && (entry = readdir(dir)))
                full |= strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
        if (!dir)
                return fail_os(err, errno, "cannot mount at '%s'", m->point);
        closedir(dir);
        return full ? fail(err, ENOTEMPTY, "'%s' is not empty, and %s mounts at empty folders only",
                              m->point, program->name)
                    : 0;
}

/* Some end well in any case. */
static int make_sure(const struct guest_fs_mount *m, const char *name, struct error *err)
{
        struct mount_table table;
        int r = mount_table_read(&table, err);

        if (r == 0 && !mount_table_at(&table, m->point))
                r = fail(err, EIO, "%s did not say why it mounted nothing", name);
        mount_table_done(&table);
        return r;
}

static int mount_by_program(
        const struct guest_fs_mount *m, const struct program *program, struct error *err)
{
        char options[OPTIONS_SIZE] = "";
        char *argv[MAX_ARGUMENTS] = {(char *)(uintptr_t)program->name};
        size_t n = 1;
        int r = refuse_full_folder(m, program, err);

        if (r == 0 && is_ext(m->type) && needs_recovery(m->file))
                r = replay_journal(m, err);
        if (r == 0)
                r = m->about_to(m->opaque, m->file, err);
        if (r < 0)
                return r;
        /* fusefat only reads unless it is told so emphatically. */
        if (strcmp(program->name, "fusefat") == 0)
                add_option(options, sizeof(options), m->writable ? "rw+" : "ro");
        else
                add_option(options, sizeof(options), m->writable ? "rw" : "ro");
        add_option(options, sizeof(options), m->exec ? "nosuid,nodev" : "nosuid,nodev,noexec");
        /* Root's mount is as the kernel's would be: the files' modes say who may. Another user's is his alone,
         * and who has the image can read all of it anyhow. */
        if (is_ext(m->type))
                add_option(options, sizeof(options),
                        geteuid() == 0 ? "allow_other,default_permissions" : "fakeroot");
        add_option(options, sizeof(options), m->options);
        argv[n++] = (char *)(uintptr_t)m->file;
        argv[n++] = (char *)(uintptr_t)m->point;
        argv[n++] = (char *)"-o";
        argv[n++] = options;
        argv[n] = NULL;
        r = program_do(argv, err);
        if (r == 0)
                r = make_sure(m, program->name, err);
        return r < 0 ? fail_prefix(err, r, "cannot mount %s, %s", m->what, m->type) : 0;
}

static int fail_no_program(
        const struct guest_fs_mount *m, const struct program *program, struct error *err)
{
        bool root = geteuid() == 0;

        if (!program)
                return fail(err, ENOPKG, "%s is %s, which %s", m->what, m->type,
                        root ? "this kernel does not know" : "only root can mount");
        fail(err, ENOPKG, "%s is %s, %s, and %s is not installed", m->what, m->type,
                root ? "which this kernel does not mount" : "which only root can mount otherwise",
                program->name);
        error_set_hint(err, "the package %s has it", program->package);
        return -ENOPKG;
}

int guest_fs_mount(struct guest_fs_mount *m, struct error *err)
{
        const struct program *program = find_program(m->type);
        int r;

        m->by_kernel = true;
        if (geteuid() == 0) {
                r = mount_by_kernel(m, err);
                if (!is_beyond_kernel(r))
                        return r;
        }
        m->by_kernel = false;
        if (!program || !program_find(program->name, NULL, 0))
                return fail_no_program(m, program, err);
        error_clear(err);
        return mount_by_program(m, program, err);
}
