/* SPDX-License-Identifier: Apache-2.0 */
/* A raw image has no field that could be wrong, but a size that must be kept to the byte; a block
 * device has users that must be seen, or two kernels write to one file system. What really happens
 * on devices is in tests/interop/blockdev.sh; here /proc and /sys are a folder. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/arith.h"
#include "formats/format.h"
#include "formats/raw/device.h"
#include "formats/raw/holders.h"

static char top[64];

static void make_top(void)
{
        strcpy(top, "/tmp/vhdd-raw-XXXXXX");
        cr_assert(ne(ptr, mkdtemp(top), NULL));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
        return remove(path);
}

static void remove_top(void)
{
        nftw(top, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Makes the file and the folders that lead to it. */
static void put(const char *name, const char *text)
{
        char path[256];
        FILE *f;

        snprintf(path, sizeof(path), "%s/%s", top, name);
        for (char *p = path + strlen(top) + 1; (p = strchr(p, '/')); p++) {
                *p = '\0';
                mkdir(path, 0755);
                *p = '/';
        }
        if (name[strlen(name) - 1] == '/')
                return;
        f = fopen(path, "w");
        cr_assert(ne(ptr, f, NULL), "%s", path);
        fputs(text, f);
        fclose(f);
}

static void put_link(const char *name, const char *to)
{
        char path[256];

        snprintf(path, sizeof(path), "%s/%s", top, name);
        cr_assert(eq(int, symlink(to, path), 0), "%s", path);
}

TestSuite(raw, .init = make_top, .fini = remove_top, .timeout = 20);
TestSuite(holders, .init = make_top, .fini = remove_top, .timeout = 20);
TestSuite(stable_name, .init = make_top, .fini = remove_top, .timeout = 20);

static struct image *open_raw(uint64_t size, unsigned flags)
{
        struct error err = ERROR_INIT;
        struct image *image = NULL;
        struct file *file = NULL;
        char path[256];

        put("disk", "");
        snprintf(path, sizeof(path), "%s/disk", top);
        cr_assert(eq(int, truncate(path, (off_t)size), 0));
        cr_assert(eq(int,
                          file_open(host_fs(), path, flags & IMAGE_WRITABLE ? FILE_WRITE : 0, &file,
                                  &err),
                          0),
                "%s", err.message);
        cr_assert(eq(int, raw_format.open(file, flags, &image, &err), 0), "%s", err.message);
        return image;
}

Test(raw, keeps_a_size_that_is_no_whole_sector)
{
        struct image *image = open_raw(1000003, IMAGE_WRITABLE);
        struct extent extent;
        uint64_t at;
        bool zero;

        cr_expect(eq(u64, image->size, 1000003));
        cr_expect(eq(u32, image->block_size, 0));
        cr_expect(eq(int, (int)image->type, IMAGE_RAW));
        cr_expect(image->writable);
        cr_assert(eq(int, raw_format.map(image, 1000000, 3, 0, &extent), 0));
        cr_expect(eq(u64, extent.length, 3));
        cr_expect(eq(u64, extent.file_offset, 1000000));
        cr_assert(eq(int, raw_format.prepare(image, 1000002, 1, 0, &at, &zero), 0));
        cr_expect(eq(u64, at, 1000002));
        cr_expect(eq(int, raw_format.close(image, true, NULL), 0));
}

Test(raw, is_larger_than_any_vhd)
{
        struct image *image = open_raw(3 * TIB, IMAGE_WRITABLE);
        struct extent extent;
        char back[4] = "";
        bool changed, zero;
        uint64_t at;

        cr_expect(eq(u64, image->size, 3 * TIB));
        cr_assert(eq(int, raw_format.prepare(image, 3 * TIB - 4096, 4, 0, &at, &zero), 0));
        cr_assert(eq(int, file_write(image->file, "tail", 4, at, 0), 0));
        cr_assert(eq(int, raw_format.complete(image, 3 * TIB - 4096, 4, &changed), 0));
        cr_assert(eq(int, raw_format.map(image, 0, 3 * TIB, MAP_HOLES, &extent), 0));
        cr_expect(eq(int, (int)extent.kind, EXTENT_ZERO));
        cr_expect(eq(u64, extent.length, 3 * TIB - 4096));
        cr_assert(eq(int, raw_format.map(image, 3 * TIB - 4096, 4, 0, &extent), 0));
        cr_assert(eq(int, file_read_exact(image->file, back, 4, extent.file_offset), 0));
        cr_expect(eq(int, memcmp(back, "tail", 4), 0));
        cr_expect(eq(int, raw_format.flush(image), 0));
        cr_expect(eq(int, raw_format.close(image, true, NULL), 0));
}

Test(raw, may_be_empty)
{
        struct image *image = open_raw(0, 0);

        cr_expect(eq(u64, image->size, 0));
        cr_expect(not(image->writable));
        cr_expect(eq(int, raw_format.close(image, true, NULL), 0));
}

Test(raw, writing_needs_a_file_open_for_writing)
{
        struct error err = ERROR_INIT;
        struct image *image = NULL;
        struct file *file = NULL;
        char path[256];

        put("disk", "bytes");
        snprintf(path, sizeof(path), "%s/disk", top);
        cr_assert(eq(int, file_open(host_fs(), path, FILE_READ, &file, &err), 0));
        cr_expect(eq(int, raw_format.open(file, IMAGE_WRITABLE, &image, &err), -EROFS));
        cr_expect(eq(ptr, image, NULL));
        cr_expect(ne(ptr, strstr(err.message, path), NULL), "%s", err.message);
        file_close(file);
}

/* Device 8:16 is sdb with partitions sdb1 (8:17) and sdb2 (8:18); 8:32 is sdc. */
static bool device_of(const struct holders_root *root, const char *path, dev_t *ret)
{
        unsigned number;

        if (sscanf(path, "/dev/sdb%u", &number) == 1)
                *ret = makedev(8, 16 + number);
        else if (strcmp(path, "/dev/sdb") == 0)
                *ret = makedev(8, 16);
        else
                return false;
        return true;
}
static const struct holders_root fake = {.path = top, .device_of = device_of};

static void make_machine(void)
{
        put("sys/dev/block/", NULL);
        put("sys/devices/sdb/dev", "8:16\n");
        put("sys/devices/sdb/holders/", NULL);
        put("sys/devices/sdb/sdb1/dev", "8:17\n");
        put("sys/devices/sdb/sdb1/partition", "1\n");
        put("sys/devices/sdb/sdb1/holders/", NULL);
        put("sys/devices/sdb/sdb2/dev", "8:18\n");
        put("sys/devices/sdb/sdb2/partition", "2\n");
        put("sys/devices/sdc/dev", "8:32\n");
        put_link("sys/dev/block/8:16", "../../devices/sdb");
        put_link("sys/dev/block/8:17", "../../devices/sdb/sdb1");
        put_link("sys/dev/block/8:18", "../../devices/sdb/sdb2");
        put_link("sys/dev/block/8:32", "../../devices/sdc");
        put("proc/self/mountinfo",
                "22 1 0:21 / /proc rw,nosuid - proc proc rw\n"
                "broken line\n\n- - -\n"
                "25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n");
        put("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
}

static void expect_holder(unsigned number, const char *wanted)
{
        char who[HOLDERS_TEXT_MAX] = "nobody";

        holders_find(&fake, makedev(8, number), who, sizeof(who));
        cr_expect(
                eq(int, strcmp(who, wanted), 0), "8:%u: '%s' instead of '%s'", number, who, wanted);
}

Test(holders, an_idle_disk_has_none)
{
        make_machine();
        expect_holder(16, "nobody");
        expect_holder(17, "nobody");
        expect_holder(32, "nobody");
        expect_holder(99, "nobody"); /* no such device */
}

Test(holders, a_mounted_partition_holds_its_disk_and_not_its_neighbour)
{
        make_machine();
        put("proc/self/mountinfo",
                "25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
                "26 25 8:17 /sub /mnt/my\\040disk rw shared:2 - ext4 /dev/sdb1 rw\n");
        expect_holder(16, "sdb1 is mounted at '/mnt/my disk'");
        expect_holder(17, "sdb1 is mounted at '/mnt/my disk'");
        expect_holder(18, "nobody");
        expect_holder(32, "nobody");
}

Test(holders, a_mounted_disk_holds_its_partitions)
{
        make_machine();
        put("proc/self/mountinfo", "26 25 8:16 / /mnt rw - ext4 /dev/sdb rw\n");
        expect_holder(17, "sdb is mounted at '/mnt'");
}

Test(holders, btrfs_is_known_by_its_source)
{
        make_machine();
        put("proc/self/mountinfo", "26 25 0:44 / /mnt rw - btrfs /dev/sdb2 rw,subvolid=5\n");
        expect_holder(16, "sdb2 is mounted at '/mnt'");
        expect_holder(17, "nobody");
}

Test(holders, swap_counts)
{
        make_machine();
        put("proc/swaps", "Filename\tType\n/dev/sdb2                partition\t1024\t0\t-2\n");
        expect_holder(16, "the machine swaps to sdb2");
        expect_holder(17, "nobody");
}

Test(holders, volumes_and_arrays_are_named)
{
        make_machine();
        put("sys/devices/sdb/sdb1/holders/dm-3/dm/name", "vg-home\n");
        expect_holder(16, "sdb1 is part of the device-mapper volume 'vg-home'");
        put("sys/devices/sdc/holders/md0/md/level", "raid1\n");
        expect_holder(32, "sdc is part of the RAID array md0");
}

Test(holders, a_loop_device_on_top_counts)
{
        make_machine();
        put("sys/block/loop3/loop/backing_file", "/dev/sdb1\n");
        put("sys/block/loop4/loop/backing_file", "/srv/a file\n");
        put("sys/block/loop5/size", "0\n");
        expect_holder(16, "sdb1 stands under the loop device loop3");
        expect_holder(32, "nobody");
}

/* Any block device's node will do: nothing is opened. */
static bool find_node(char *ret, size_t size)
{
        struct dirent *entry;
        bool found = false;
        struct stat st;
        DIR *dir = opendir("/dev");

        while (dir && !found && (entry = readdir(dir)))
                if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
                        S_ISBLK(st.st_mode)) {
                        snprintf(ret, size, "/dev/%s", entry->d_name);
                        found = true;
                }
        if (dir)
                closedir(dir);
        return found;
}

Test(stable_name, prefers_what_the_hardware_says)
{
        struct error err = ERROR_INIT;
        char node[300], name[512] = "", wanted[512];

        if (!find_node(node, sizeof(node)))
                cr_skip_test("no block device on this machine");
        put_link("by-partlabel-like", node);
        put_link("scsi-SATA_disk_123", node);
        put_link("ata-DISK_123", node);
        put_link("wwn-0x5000", node);
        put_link("wwn-0x9999", "/dev/null");
        put_link("wwn-0x0000", "/nowhere");
        snprintf(wanted, sizeof(wanted), "%s/wwn-0x5000", top);
        cr_assert(eq(int, device_stable_name_in(top, node, name, sizeof(name), &err), 0), "%s",
                err.message);
        cr_expect(eq(int, strcmp(name, wanted), 0), "%s", name);
}

Test(stable_name, says_when_there_is_none)
{
        struct error err = ERROR_INIT;
        char node[300], name[512] = "";

        cr_expect(eq(
                int, device_stable_name_in(top, "/dev/null", name, sizeof(name), &err), -ENOTBLK));
        cr_expect(
                eq(int, device_stable_name_in(top, "/nowhere", name, sizeof(name), &err), -ENOENT));
        if (!find_node(node, sizeof(node)))
                cr_skip_test("no block device on this machine");
        cr_expect(eq(int, device_stable_name_in(top, node, name, sizeof(name), &err), -ENOENT));
        cr_expect(ne(ptr, strstr(err.message, "reboot"), NULL), "%s", err.message);
        cr_expect(eq(int, device_stable_name_in(top, node, name, 4, &err), -ENOENT));
}
