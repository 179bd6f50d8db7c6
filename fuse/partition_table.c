/* SPDX-License-Identifier: Apache-2.0 */
#include "fuse/partition_table.h"

#include <blkid.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/arith.h"
#include "base/cleanup.h"

#define END_LENGTH      (UINT64_C(1) << 20) /* of the disk, at each end: a GPT, and most others */
#define NESTED_LENGTH   (UINT64_C(64) << 10) /* at a partition's start: a table within (BSD, Minix) */
#define GPT_ENTRIES_MAX (UINT64_C(4) << 20)
#define LINKS_MAX       256u

/* An MBR, or a link of the list of logical partitions. */
#define MBR_ENTRIES    446u
#define MBR_ENTRY_SIZE 16u
#define MBR_SIGNATURE  510u

struct copy {
        struct chain *chain;
        struct partition_table *table;
        int fd; /* the file in memory */
        void *buffer;
};

static uint64_t le_get(const uint8_t *bytes, unsigned n)
{
        uint64_t value = 0;

        while (n-- > 0)
                value = value << 8 | bytes[n];
        return value;
}

/* The part of the range that is on the disk, into the file in memory. */
static int copy_area(struct copy *copy, uint64_t offset, uint64_t length)
{
        uint64_t size = chain_size(copy->chain);

        if (offset >= size)
                return 0;
        length = MIN_OF(length, size - offset);
        if (copy->table->n_areas < PARTITION_AREAS_MAX) {
                copy->table->areas[copy->table->n_areas].offset = offset;
                copy->table->areas[copy->table->n_areas++].length = length;
        }
        while (length > 0) {
                size_t part = MIN_OF(length, END_LENGTH);
                int r = chain_read(copy->chain, copy->buffer, part, offset, 0);

                if (r < 0)
                        return r;
                if (pwrite(copy->fd, copy->buffer, part, (off_t)offset) != (ssize_t)part)
                        return -errno;
                offset += part;
                length -= part;
        }
        return 0;
}

static int read_copied(struct copy *copy, void *data, size_t length, uint64_t offset)
{
        return pread(copy->fd, data, length, (off_t)offset) == (ssize_t)length ? 0 : -EIO;
}

static bool is_extended(uint8_t type)
{
        return type == 0x05 || type == 0x0f || type == 0x85;
}

static bool is_mbr(const uint8_t sector[SECTOR_SIZE])
{
        return sector[MBR_SIGNATURE] == 0x55 && sector[MBR_SIGNATURE + 1] == 0xaa;
}

/* Each link names a partition and the next link, in sectors from the list's beginning. */
static int copy_links(struct copy *copy, uint64_t first)
{
        uint64_t at = first;

        for (unsigned i = 0; i < LINKS_MAX; i++) {
                uint8_t sector[SECTOR_SIZE];
                uint64_t next = 0;
                int r = copy_area(copy, at, SECTOR_SIZE);

                if (r < 0)
                        return r;
                if (read_copied(copy, sector, sizeof(sector), at) < 0 || !is_mbr(sector))
                        return 0;
                for (unsigned e = 0; e < 4; e++) {
                        const uint8_t *entry = sector + MBR_ENTRIES + e * MBR_ENTRY_SIZE;

                        if (is_extended(entry[4]) && !next)
                                next = le_get(entry + 8, 4) * SECTOR_SIZE;
                }
                if (!next)
                        return 0;
                at = first + next;
        }
        return 0;
}

static int copy_partitions_of_mbr(struct copy *copy)
{
        uint8_t sector[SECTOR_SIZE];

        if (read_copied(copy, sector, sizeof(sector), 0) < 0 || !is_mbr(sector))
                return 0;
        for (unsigned e = 0; e < 4; e++) {
                const uint8_t *entry = sector + MBR_ENTRIES + e * MBR_ENTRY_SIZE;
                uint64_t start = le_get(entry + 8, 4) * SECTOR_SIZE;
                int r = 0;

                if (start > 0)
                        r = is_extended(entry[4]) ? copy_links(copy, start)
                                                  : copy_area(copy, start, NESTED_LENGTH);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* The entries that the header at @at speak of lie behind it or before it, mostly. */
static int copy_entries_of_gpt(struct copy *copy, uint64_t at)
{
        uint8_t header[SECTOR_SIZE];
        uint64_t start, length;

        if (read_copied(copy, header, sizeof(header), at) < 0 || memcmp(header, "EFI PART", 8) != 0)
                return 0;
        length = le_get(header + 80, 4) * le_get(header + 84, 4);
        if (__builtin_mul_overflow(le_get(header + 72, 8), (uint64_t)SECTOR_SIZE, &start))
                return 0;
        return copy_area(copy, start, MIN_OF(length, GPT_ENTRIES_MAX));
}

static int copy_areas(struct copy *copy)
{
        uint64_t size = chain_size(copy->chain);
        uint64_t end = size > END_LENGTH ? round_down_to(size - END_LENGTH, SECTOR_SIZE) : 0;
        int r = copy_area(copy, 0, END_LENGTH);

        if (r == 0 && size > END_LENGTH)
                r = copy_area(copy, end, size - end);
        if (r == 0)
                r = copy_partitions_of_mbr(copy);
        if (r == 0 && size >= 2 * SECTOR_SIZE)
                r = copy_entries_of_gpt(copy, SECTOR_SIZE);
        if (r == 0 && size >= 2 * SECTOR_SIZE)
                r = copy_entries_of_gpt(copy, round_down_to(size, SECTOR_SIZE) - SECTOR_SIZE);
        return r;
}

/* --- what libblkid makes of it */

static void take_text(char *ret, size_t size, const char *text)
{
        snprintf(ret, size, "%s", text ? text : "");
}

static void take_entry(blkid_partition from, uint64_t disk_size, struct partition_table *table)
{
        struct partition_entry *entry = &table->entries[table->n];
        int number = blkid_partition_get_partno(from);
        const char *type = blkid_partition_get_type_string(from);

        *entry = (struct partition_entry){
                .number = (uint32_t)number,
                .extended = blkid_partition_is_extended(from),
                .logical = blkid_partition_is_logical(from),
                .flags = blkid_partition_get_flags(from),
        };
        if (number < 1 ||
                __builtin_mul_overflow((uint64_t)blkid_partition_get_start(from),
                        (uint64_t)SECTOR_SIZE, &entry->start) ||
                __builtin_mul_overflow((uint64_t)blkid_partition_get_size(from),
                        (uint64_t)SECTOR_SIZE, &entry->size))
                return;
        entry->inside = entry->size > 0 && range_inside(entry->start, entry->size, disk_size);
        if (type)
                take_text(entry->type, sizeof(entry->type), type);
        else
                snprintf(entry->type, sizeof(entry->type), "0x%02x",
                        (unsigned)blkid_partition_get_type(from));
        take_text(entry->uuid, sizeof(entry->uuid), blkid_partition_get_uuid(from));
        take_text(entry->name, sizeof(entry->name), blkid_partition_get_name(from));
        for (uint32_t i = 0; i < table->n; i++)
                if (table->entries[i].number == entry->number)
                        return; /* the first one of that number has it */
        table->n++;
}

static void take_table(blkid_partlist list, uint64_t disk_size, struct partition_table *ret)
{
        blkid_parttable table = blkid_partlist_get_table(list);
        int n = blkid_partlist_numof_partitions(list);

        if (table) {
                take_text(ret->type, sizeof(ret->type), blkid_parttable_get_type(table));
                take_text(ret->id, sizeof(ret->id), blkid_parttable_get_id(table));
        }
        for (int i = 0; i < n && ret->n < PARTITION_TABLE_MAX; i++)
                take_entry(blkid_partlist_get_partition(list, i), disk_size, ret);
}

static int probe(int fd, uint64_t disk_size, struct partition_table *ret)
{
        blkid_probe probe = blkid_new_probe();
        blkid_partlist list = NULL;

        if (!probe)
                return -ENOMEM;
        if (blkid_probe_set_device(probe, fd, 0, 0) == 0 &&
                blkid_probe_enable_superblocks(probe, 0) == 0 &&
                blkid_probe_enable_partitions(probe, 1) == 0 && blkid_do_safeprobe(probe) == 0 &&
                blkid_probe_has_value(probe, "PTTYPE"))
                list = blkid_probe_get_partitions(probe);
        if (list)
                take_table(list, disk_size, ret);
        blkid_free_probe(probe);
        return 0;
}

int partition_table_read(struct chain *chain, struct partition_table *ret, struct error *err)
{
        _cleanup_free_ void *buffer = malloc(END_LENGTH);
        _cleanup_fd_ int fd = memfd_create("partition-table", MFD_CLOEXEC);
        struct copy copy = {.chain = chain, .table = ret, .fd = fd, .buffer = buffer};
        int r = 0;

        memset(ret, 0, sizeof(*ret));
        if (!buffer)
                return fail(err, ENOMEM, "no memory for the partition table");
        if (fd < 0 || ftruncate(fd, (off_t)chain_size(chain)) < 0)
                r = -errno;
        if (r == 0)
                r = copy_areas(&copy);
        if (r == 0)
                r = probe(fd, chain_size(chain), ret);
        return r < 0 ? fail_os(err, -r, "cannot read the partition table") : 0;
}

bool partition_table_touches(const struct partition_table *table, uint64_t offset, uint64_t length)
{
        for (uint32_t i = 0; i < table->n_areas; i++)
                if (offset < table->areas[i].offset + table->areas[i].length &&
                        table->areas[i].offset < offset + length)
                        return true;
        return false;
}
