/* SPDX-License-Identifier: Apache-2.0 */
/* Partition tables that guests wrote, honest ones and others. What could go wrong in the world: a
 * partition is missing, or has other bounds; a list of logical partitions that leads back to itself
 * never ends; an entry that points beyond the disk becomes a file there. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/arith.h"
#include "fuse/partition_table.h"

#define DISK_SIZE (UINT64_C(64) << 20)

static char path[64];
static struct chain *chain;
static struct partition_table *table;

static void setup(void)
{
        int fd;

        snprintf(path, sizeof(path), "/tmp/test-partition-table-XXXXXX");
        fd = mkstemp(path);
        cr_assert(fd >= 0);
        cr_assert_eq(ftruncate(fd, (off_t)DISK_SIZE), 0);
        close(fd);
        table = calloc(1, sizeof(*table));
}

static void teardown(void)
{
        chain_abandon(chain);
        free(table);
        unlink(path);
}

static void put(uint64_t offset, const void *data, size_t length)
{
        int fd = open(path, O_WRONLY);

        cr_assert_eq(pwrite(fd, data, length, (off_t)offset), (ssize_t)length);
        close(fd);
}

static void put_le(uint8_t *bytes, uint64_t value, unsigned n)
{
        for (unsigned i = 0; i < n; i++)
                bytes[i] = (uint8_t)(value >> (8 * i));
}

struct entry {
        uint8_t type;
        uint32_t start, count;
};

/* An MBR, or a link: entries in sectors as they stand there. */
static void put_mbr(uint64_t sector, const struct entry *entries, unsigned n)
{
        uint8_t bytes[SECTOR_SIZE] = {0};

        for (unsigned i = 0; i < n; i++) {
                bytes[446 + 16 * i + 4] = entries[i].type;
                put_le(bytes + 446 + 16 * i + 8, entries[i].start, 4);
                put_le(bytes + 446 + 16 * i + 12, entries[i].count, 4);
        }
        bytes[510] = 0x55;
        bytes[511] = 0xaa;
        put(sector * SECTOR_SIZE, bytes, sizeof(bytes));
}

static void read_table(void)
{
        const struct chain_options options = {.format = "raw"};
        struct error err = ERROR_INIT;

        cr_assert_eq(chain_open(path, &options, &chain, &err), 0, "%s", err.message);
        cr_assert_eq(partition_table_read(chain, table, &err), 0, "%s", err.message);
}

static const struct partition_entry *entry_of(uint32_t number)
{
        for (uint32_t i = 0; i < table->n; i++)
                if (table->entries[i].number == number)
                        return &table->entries[i];
        return NULL;
}

TestSuite(partition_table, .init = setup, .fini = teardown);

Test(partition_table, finds_primary_and_logical_ones_wherever_the_links_lie)
{
        const struct entry mbr[] = {{0x83, 2048, 8192}, {0x05, 20480, 100000}};
        /* Links in the middle of the disk, far from both of its ends. */
        const struct entry first[] = {{0x07, 2048, 4096}, {0x05, 40960, 10000}};
        const struct entry second[] = {{0x82, 2048, 1024}};

        put_mbr(0, mbr, 2);
        put_mbr(20480, first, 2);
        put_mbr(20480 + 40960, second, 1);
        read_table();
        cr_expect_str_eq(table->type, "dos");
        cr_assert_eq(table->n, 4, "%u", table->n);
        cr_expect_eq(entry_of(1)->start, 2048 * SECTOR_SIZE);
        cr_expect(entry_of(2)->extended);
        cr_assert_not_null(entry_of(5));
        cr_expect_eq(entry_of(5)->start, (20480 + 2048) * SECTOR_SIZE);
        cr_expect_eq(entry_of(5)->size, 4096 * SECTOR_SIZE);
        cr_assert_not_null(entry_of(6));
        cr_expect_eq(entry_of(6)->start, (20480 + 40960 + 2048) * SECTOR_SIZE);
        cr_expect_str_eq(entry_of(6)->type, "0x82");
        cr_expect(entry_of(6)->logical && entry_of(6)->inside);
        /* A change of a link is a change of the table; one of data is not. */
        cr_expect(partition_table_touches(table, (20480 + 40960) * SECTOR_SIZE, 1));
        cr_expect_not(partition_table_touches(table, (20480 + 40960 + 4096) * SECTOR_SIZE, 4096));
}

Test(partition_table, a_list_that_leads_to_itself_ends)
{
        const struct entry mbr[] = {{0x05, 4096, 100000}};
        const struct entry to_itself[] = {{0x83, 2048, 1024}, {0x0f, 8192, 10000}};

        put_mbr(0, mbr, 1);
        put_mbr(4096, to_itself, 2);
        put_mbr(4096 + 8192, to_itself, 2);
        read_table();
        cr_expect_leq(table->n, PARTITION_TABLE_MAX);
        cr_expect_leq(table->n_areas, PARTITION_AREAS_MAX);
}

Test(partition_table, what_is_not_on_the_disk_is_not_inside)
{
        const struct entry mbr[] = {
                {0x83, 2048, UINT32_MAX}, {0x83, UINT32_MAX, 4}, {0x83, 63, 64}};

        put_mbr(0, mbr, 3);
        read_table();
        for (uint32_t i = 0; i < table->n; i++)
                cr_expect_eq(table->entries[i].inside,
                        range_inside(table->entries[i].start, table->entries[i].size, DISK_SIZE) &&
                                table->entries[i].size > 0);
        cr_expect(!entry_of(1) || !entry_of(1)->inside);
        cr_assert_not_null(entry_of(3));
        cr_expect(entry_of(3)->inside);
}

Test(partition_table, noise_and_nothing_have_none)
{
        uint8_t noise[8192];

        read_table();
        cr_expect_eq(table->n, 0);
        cr_expect_str_eq(table->type, "");
        chain = chain_abandon(chain);
        for (size_t i = 0; i < sizeof(noise); i++)
                noise[i] = (uint8_t)(i * 2654435761u >> 13);
        put(0, noise, sizeof(noise));
        read_table();
        cr_expect_eq(table->n, 0);
}

/* A GPT header's numbers are the guest's: entries beyond the disk, more than there can be. */
Test(partition_table, a_header_that_lies_costs_nothing)
{
        uint8_t header[SECTOR_SIZE] = "EFI PART";
        const struct entry mbr[] = {{0xee, 1, UINT32_MAX}};

        put_mbr(0, mbr, 1);
        put_le(header + 72, UINT64_MAX / 2, 8);
        put_le(header + 80, UINT32_MAX, 4);
        put_le(header + 84, UINT32_MAX, 4);
        put(SECTOR_SIZE, header, sizeof(header));
        put_le(header + 72, 1000, 8);
        put(DISK_SIZE - SECTOR_SIZE, header, sizeof(header));
        read_table();
        cr_expect_leq(table->n, PARTITION_TABLE_MAX);
}
