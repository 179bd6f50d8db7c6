/* SPDX-License-Identifier: Apache-2.0 */
/* The note is written before the first node goes, and goes after the last node is back: a death in
 * between leaves a note that says more than is needed, and putting back what is there changes
 * nothing. It has two slots, so that a death while it is written again leaves the one before. */
#include "formats/raw/partitions.h"

#include <assert.h>
#include <blkid.h>
#include <dirent.h>
#include <limits.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <xxhash.h>

#include "base/arith.h"
#include "formats/raw/holders.h"

#define PARTITIONS_MAX 256u /* the kernel's own bound (DISK_MAX_PARTS) */
#define NOTE_MAGIC     "vhddpart"
#define NOTE_VERSION   1u
#define NOTE_SLOT_SIZE 8192u
#define NOTE_NAME_MAX  64u
#define EXTENDED_SIZE  1024u /* what Linux shows of a DOS extended partition: two sectors */
#define BUSY_TRIES     100
#define BUSY_PAUSE_NS  20000000L /* udev looks at a new node for a moment; 100 x 20 ms */

struct partition {
        uint64_t number, start, size;
};

struct list {
        uint64_t n;
        struct partition items[PARTITIONS_MAX];
};

/* Never leaves the machine, so it is in the machine's byte order. */
struct note {
        char magic[8];
        uint32_t version;
        uint32_t from_table;            /* the disk had a partition table when we took it */
        uint64_t turn;                  /* the slot with the higher one counts */
        uint64_t device, disk_sequence; /* the second tells a loop device's disks apart */
        uint8_t boot_id[16];
        struct list list;
        uint64_t checksum; /* of all before */
};
static_assert(sizeof(struct note) <= NOTE_SLOT_SIZE, "a note fits its slot");

struct partitions {
        struct file *disk;
        struct region *region;
        struct note note;
};

static int read_nodes(struct file *disk, struct list *ret, struct error *err);
static bool read_table(struct file *disk, struct list *ret);
static int find_note(struct file *disk, bool create, struct region **ret_region, struct note *ret,
        struct error *err);
static void write_note(struct region *region, struct note *note);
static int remove_nodes(struct partitions *p, const struct list *nodes, struct error *err);

/* What was there and what a dead process took away before: both come back. */
static void add_missing(struct list *list, const struct list *more)
{
        for (uint64_t i = 0; i < more->n && list->n < PARTITIONS_MAX; i++) {
                bool known = false;

                for (uint64_t j = 0; j < list->n; j++)
                        known |= list->items[j].number == more->items[i].number;
                if (!known)
                        list->items[list->n++] = more->items[i];
        }
}

int partitions_hide(struct file *disk, struct partitions **ret, struct error *err)
{
        _cleanup_free_ struct partitions *p = calloc(1, sizeof(*p));
        _cleanup_free_ struct list *nodes = calloc(1, sizeof(*nodes));
        _cleanup_free_ struct list *table = calloc(1, sizeof(*table));
        struct list *list;
        bool owed;
        int r;

        if (!p || !nodes || !table)
                return fail(err, ENOMEM, "no memory for the partitions of '%s'", disk->path);
        p->disk = disk;
        r = read_nodes(disk, nodes, err);
        if (r < 0)
                return r;
        r = find_note(disk, nodes->n > 0, &p->region, &p->note, err);
        if (r == -ENOENT) { /* no nodes, and nothing owed */
                error_clear(err);
                *ret = NULL;
                return 0;
        }
        if (r < 0)
                return r;

        list = &p->note.list;
        owed = list->n > 0;
        if (!owed && nodes->n == 0) {
                region_close(p->region, true);
                *ret = NULL;
                return 0;
        }
        if (!owed)
                p->note.from_table = read_table(disk, table);
        add_missing(nodes, list);
        *list = *nodes;
        write_note(p->region, &p->note);
        r = read_nodes(disk, nodes, err);
        if (r == 0)
                r = remove_nodes(p, nodes, err);
        if (r < 0) {
                partitions_show(TAKE_PTR(p), NULL);
                return r;
        }
        *ret = TAKE_PTR(p);
        return 0;
}

static int change_node(struct file *disk, int op, const struct partition *partition)
{
        struct blkpg_partition data = {
                .pno = (int)partition->number,
                .start = (long long)partition->start,
                .length = (long long)partition->size,
        };
        struct blkpg_ioctl_arg arg = {.op = op, .datalen = sizeof(data), .data = &data};

        return ioctl(disk->fd, BLKPG, &arg) < 0 ? -errno : 0;
}

static int remove_node(struct file *disk, const struct partition *partition)
{
        const struct timespec pause = {.tv_nsec = BUSY_PAUSE_NS};
        int r = change_node(disk, BLKPG_DEL_PARTITION, partition);

        for (int i = 0; r == -EBUSY && i < BUSY_TRIES; i++) {
                nanosleep(&pause, NULL);
                r = change_node(disk, BLKPG_DEL_PARTITION, partition);
        }
        return r == -ENXIO ? 0 : r; /* gone already */
}

static void sys_folder(struct file *disk, char *ret, size_t size)
{
        struct file_stat st;

        ret[0] = '\0';
        if (file_stat_get(disk, &st) == 0)
                snprintf(ret, size, "/sys/dev/block/%u:%u", major((dev_t)st.device),
                        minor((dev_t)st.device));
}

/* Numbers that the kernel writes into @file of a partition's folder. */
static bool read_number(const char *folder, const char *node, const char *file, uint64_t *ret)
{
        char path[NAME_MAX + 128];
        unsigned long long number;
        FILE *f;
        bool ok;

        snprintf(path, sizeof(path), "%s/%s/%s", folder, node, file);
        f = fopen(path, "re");
        if (!f)
                return false;
        ok = fscanf(f, "%llu", &number) == 1;
        fclose(f);
        *ret = number;
        return ok;
}

/* The name and the device number of partition @number's node; false if there is no such node. */
static bool find_node(struct file *disk, uint64_t number, char *name, size_t size, dev_t *ret)
{
        unsigned major_number = 0, minor_number = 0;
        char folder[64], path[NAME_MAX + 128];
        struct dirent *entry;
        bool found = false;
        uint64_t have;
        DIR *dir;
        FILE *f;

        sys_folder(disk, folder, sizeof(folder));
        dir = opendir(folder);
        while (dir && !found && (entry = readdir(dir))) {
                if (!read_number(folder, entry->d_name, "partition", &have) || have != number)
                        continue;
                snprintf(name, size, "%s", entry->d_name);
                snprintf(path, sizeof(path), "%s/%s/dev", folder, entry->d_name);
                f = fopen(path, "re");
                found = f && fscanf(f, "%u:%u", &major_number, &minor_number) == 2;
                if (f)
                        fclose(f);
        }
        if (dir)
                closedir(dir);
        *ret = makedev(major_number, minor_number);
        return found;
}

static int fail_remove(struct file *disk, uint64_t number, int code, struct error *err)
{
        char name[NAME_MAX + 1] = "", who[HOLDERS_TEXT_MAX] = "another program";
        dev_t device;

        if (code == EACCES || code == EPERM) /* the kernel says EACCES */
                return fail(err, EPERM,
                        "taking the partitions of '%s' away from the host needs root", disk->path);
        if (code != EBUSY || !find_node(disk, number, name, sizeof(name), &device))
                return fail_os(err, code, "cannot take partition %llu of '%s' away from the host",
                        (unsigned long long)number, disk->path);
        holders_find_process(device, who, sizeof(who));
        fail(err, EBUSY, "'%s' is in use: %s is open in %s", disk->path, name, who);
        error_set_hint(err, "end %s first", who);
        return -EBUSY;
}

static int remove_nodes(struct partitions *p, const struct list *nodes, struct error *err)
{
        for (uint64_t i = 0; i < nodes->n; i++) {
                int r = remove_node(p->disk, &nodes->items[i]);

                if (r < 0)
                        return fail_remove(p->disk, nodes->items[i].number, -r, err);
        }
        return 0;
}

/* One partition back. It being there already is fine: udev may have been quicker. */
static int add_node(struct file *disk, const struct partition *partition)
{
        int r = change_node(disk, BLKPG_ADD_PARTITION, partition);
        char name[NAME_MAX + 1];
        dev_t device;

        if (r == -EBUSY && find_node(disk, partition->number, name, sizeof(name), &device))
                return 0;
        return r;
}

/* The guest may have written a table that no kernel takes: overlapping, off the disk's blocks. Then
 * the host has no such node, and nothing failed. */
static bool is_nonsense(int r)
{
        return r == -EBUSY || r == -EINVAL || r == -ENXIO || r == -EOVERFLOW;
}

int partitions_show(struct partitions *partitions, struct error *err)
{
        _cleanup_free_ struct partitions *p = partitions;
        _cleanup_free_ struct list *table = calloc(1, sizeof(*table));
        const struct list *wanted;
        int first_failure = 0;
        uint64_t number = 0;

        if (!p)
                return 0;
        /* Without memory the old nodes are better than none. */
        wanted =
                table && (read_table(p->disk, table) || p->note.from_table) ? table : &p->note.list;
        for (uint64_t i = 0; i < wanted->n; i++) {
                int r = add_node(p->disk, &wanted->items[i]);

                if (wanted == table && is_nonsense(r))
                        continue;
                if (r < 0 && first_failure == 0) {
                        first_failure = -r;
                        number = wanted->items[i].number;
                }
        }
        region_close(p->region, true);
        if (first_failure == 0)
                return 0;
        fail_os(err, first_failure, "cannot give partition %llu of '%s' back to the host",
                (unsigned long long)number, p->disk->path);
        error_set_hint(err, "partprobe %s", p->disk->path);
        return -first_failure;
}

struct partitions *partitions_forget(struct partitions *partitions)
{
        if (partitions)
                region_close(partitions->region, false);
        free(partitions);
        return NULL;
}

int partitions_show_owed(struct file *disk, struct error *err)
{
        _cleanup_free_ struct partitions *p = calloc(1, sizeof(*p));
        int r;

        if (!p)
                return fail(err, ENOMEM, "no memory for the partitions of '%s'", disk->path);
        p->disk = disk;
        r = find_note(disk, false, &p->region, &p->note, err);
        if (r == -ENOENT) {
                error_clear(err);
                return 0;
        }
        if (r < 0)
                return r;
        if (p->note.list.n == 0) { /* another disk's, or an older boot's */
                region_close(p->region, true);
                return 0;
        }
        return partitions_show(TAKE_PTR(p), err);
}

static int read_nodes(struct file *disk, struct list *ret, struct error *err)
{
        struct dirent *entry;
        char folder[64];
        DIR *dir;

        ret->n = 0;
        sys_folder(disk, folder, sizeof(folder));
        dir = opendir(folder);
        if (!dir)
                return fail_os(
                        err, errno, "cannot see the partitions of '%s' in %s", disk->path, folder);
        while ((entry = readdir(dir)) && ret->n < PARTITIONS_MAX) {
                struct partition *item = &ret->items[ret->n];

                if (read_number(folder, entry->d_name, "partition", &item->number) &&
                        read_number(folder, entry->d_name, "start", &item->start) &&
                        read_number(folder, entry->d_name, "size", &item->size)) {
                        item->start *= SECTOR_SIZE;
                        item->size *= SECTOR_SIZE;
                        ret->n++;
                }
        }
        closedir(dir);
        return 0;
}

static void read_table_items(blkid_partlist partlist, uint64_t disk_size, struct list *ret)
{
        int n = blkid_partlist_numof_partitions(partlist);

        for (int i = 0; i < n && ret->n < PARTITIONS_MAX; i++) {
                blkid_partition entry = blkid_partlist_get_partition(partlist, i);
                struct partition item;

                item.number = (uint64_t)blkid_partition_get_partno(entry);
                if (__builtin_mul_overflow(
                            (uint64_t)blkid_partition_get_start(entry), SECTOR_SIZE, &item.start) ||
                        __builtin_mul_overflow(
                                (uint64_t)blkid_partition_get_size(entry), SECTOR_SIZE, &item.size))
                        continue;
                if (blkid_partition_is_extended(entry))
                        item.size = MIN_OF(item.size, (uint64_t)EXTENDED_SIZE);
                /* A guest may have written anything there. */
                if (item.number < 1 || item.number >= PARTITIONS_MAX || item.size == 0 ||
                        !range_inside(item.start, item.size, disk_size))
                        continue;
                ret->items[ret->n++] = item;
        }
}

/* The partition table as it is on the disk now; false if there is none. The kernel is not asked
 * (BLKRRPART): it knows fewer kinds than libblkid, on some machines none. */
static bool read_table(struct file *disk, struct list *ret)
{
        blkid_probe probe = blkid_new_probe();
        blkid_partlist partlist = NULL;
        uint64_t size;
        bool found;

        ret->n = 0;
        if (!probe)
                return false;
        found = file_size_get(disk, &size) == 0 &&
                blkid_probe_set_device(probe, disk->fd, 0, 0) == 0 &&
                blkid_probe_enable_superblocks(probe, 0) == 0 &&
                blkid_probe_enable_partitions(probe, 1) == 0 && blkid_do_safeprobe(probe) == 0 &&
                blkid_probe_has_value(probe, "PTTYPE");
        if (found)
                partlist = blkid_probe_get_partitions(probe);
        if (partlist)
                read_table_items(partlist, size, ret);
        blkid_free_probe(probe);
        return partlist != NULL;
}

static uint64_t note_checksum(const struct note *note)
{
        return XXH3_64bits(note, offsetof(struct note, checksum));
}

static bool note_is_valid(const struct note *note)
{
        return memcmp(note->magic, NOTE_MAGIC, sizeof(note->magic)) == 0 &&
                note->version == NOTE_VERSION && note->list.n <= PARTITIONS_MAX &&
                note->checksum == note_checksum(note);
}

static void *slot_of(struct region *region, uint64_t turn)
{
        return (char *)region->data + (turn % 2) * NOTE_SLOT_SIZE;
}

/* Which disk of which boot the note is for. */
static int bind_note(struct file *disk, struct note *note, struct error *err)
{
        struct file_stat st;
        int r = file_stat_get(disk, &st);

        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", disk->path);
        memcpy(note->magic, NOTE_MAGIC, sizeof(note->magic));
        note->version = NOTE_VERSION;
        note->device = st.device;
        if (ioctl(disk->fd, BLKGETDISKSEQ, &note->disk_sequence) < 0)
                note->disk_sequence = 0; /* before Linux 5.15 */
        fs_boot_id(disk->fs, note->boot_id);
        return 0;
}

/* The note's region, and the note in it; one that is of another disk or boot, or half written, is an
 * empty one. */
static int find_note(struct file *disk, bool create, struct region **ret_region, struct note *ret,
        struct error *err)
{
        char name[NOTE_NAME_MAX], beside[PATH_MAX];
        struct region *region = NULL;
        int r;

        r = bind_note(disk, ret, err);
        if (r < 0)
                return r;
        snprintf(name, sizeof(name), "vhdd-partitions-%llx", (unsigned long long)ret->device);
        snprintf(beside, sizeof(beside), "%s.partitions", disk->path);
        r = region_open(disk->fs, name, beside, 2 * NOTE_SLOT_SIZE, false, &region, err);
        if (r == -ENOENT && create) {
                error_clear(err);
                r = region_open(disk->fs, name, beside, 2 * NOTE_SLOT_SIZE, true, &region, err);
        }
        if (r < 0)
                return r;
        if (region->size < 2 * NOTE_SLOT_SIZE) {
                r = fail(err, EUCLEAN, "'%s' is no note of ours: it has %llu bytes instead of %u",
                        region->path, (unsigned long long)region->size, 2 * NOTE_SLOT_SIZE);
                region_close(region, false);
                return r;
        }
        for (uint64_t i = 0; i < 2; i++) {
                struct note found;

                memcpy(&found, slot_of(region, i), sizeof(found));
                if (note_is_valid(&found) && found.device == ret->device &&
                        found.disk_sequence == ret->disk_sequence &&
                        memcmp(found.boot_id, ret->boot_id, sizeof(found.boot_id)) == 0 &&
                        found.turn >= ret->turn)
                        *ret = found;
        }
        *ret_region = region;
        return 0;
}

static void write_note(struct region *region, struct note *note)
{
        note->turn++;
        note->checksum = note_checksum(note);
        memcpy(slot_of(region, note->turn), note, sizeof(*note));
}
