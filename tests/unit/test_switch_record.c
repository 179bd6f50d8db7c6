/* SPDX-License-Identifier: Apache-2.0 */
/* What could go wrong in the world: a process dies while it writes the record, or another vm's, another
 * boot's or a spoilt one is taken for ours, and a snapshot that never was is rolled forward. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "chain/switch_record.h"

#define BESIDE "/tmp/vhdd-test-switch"

static const uint8_t vm[16] = {0x77, 1}, other_vm[16] = {0x77, 2};

static void fill(struct switch_record *record, uint8_t salt)
{
        memset(record, 0, sizeof(*record));
        memcpy(record->vm, vm, sizeof(vm));
        memset(record->snapshot, salt, sizeof(record->snapshot));
        record->n_disks = SWITCH_MAX_DISKS;
        for (unsigned i = 0; i < SWITCH_MAX_DISKS; i++) {
                record->disks[i].frozen.inode = 1000 + i;
                record->disks[i].leaf.inode = 5000 + i * salt;
        }
}

static struct switch_region *open_region(const uint8_t id[16], bool create)
{
        struct error err = ERROR_INIT;
        struct switch_region *region;

        cr_assert_eq(
                switch_open(host_fs(), id, BESIDE, create, &region, &err), 0, "%s", err.message);
        return region;
}

Test(switch_record, another_process_reads_what_was_written)
{
        struct switch_record *record = malloc(sizeof(*record)), *got = malloc(sizeof(*got));
        struct switch_region *region = open_region(vm, true);

        fill(record, 3);
        cr_assert_eq(switch_read(region, got), -ENOENT);
        switch_write(region, record);
        switch_close(region, false); /* as a death would */
        region = open_region(vm, false);
        cr_assert_eq(switch_read(region, got), 0);
        cr_assert(memcmp(record, got, sizeof(*got)) == 0);
        switch_close(region, false);
        region = open_region(vm, true); /* taken over, with what it says */
        cr_assert_eq(switch_read(region, got), 0);
        fill(record, 4);
        record->n_disks = 1;
        switch_write(region, record);
        cr_assert_eq(switch_read(region, got), 0);
        cr_assert_eq(got->snapshot[0], 4);
        cr_assert_eq(got->n_disks, 1);
        switch_clear(region);
        cr_assert_eq(switch_read(region, got), -ENOENT);
        switch_close(region, true);
        free(record);
        free(got);
}

/* Each byte of the region in turn is another one than was written. */
Test(switch_record, a_record_with_any_byte_wrong_is_none)
{
        struct switch_record *record = malloc(sizeof(*record)), *got = malloc(sizeof(*got));
        struct switch_region *region = open_region(vm, true);
        struct error err = ERROR_INIT;
        struct region *raw;
        char name[SWITCH_NAME_MAX];
        unsigned accepted = 0;
        uint8_t *bytes;

        fill(record, 3);
        record->n_disks = 3;
        switch_write(region, record);
        switch_region_name(vm, name);
        cr_assert_eq(region_open(host_fs(), name, BESIDE, 0, false, &raw, &err), 0);
        bytes = raw->data;
        for (unsigned i = 0; i < 40 + 36 + 3 * sizeof(struct switch_disk); i++) {
                bytes[i] ^= 0x10;
                if (switch_read(region, got) == 0)
                        accepted++;
                bytes[i] ^= 0x10;
        }
        cr_assert(
                accepted <= 8, "%u bytes could be changed", accepted); /* reserved ones, padding */
        cr_assert_eq(switch_read(region, got), 0);
        memcpy(got, record, sizeof(*got));
        region_close(raw, false);
        switch_close(region, true);
        free(record);
        free(got);
}

Test(switch_record, each_vm_has_its_own)
{
        struct switch_record *record = malloc(sizeof(*record));
        struct switch_region *a = open_region(vm, true), *b = open_region(other_vm, true);
        char name[SWITCH_NAME_MAX];

        fill(record, 3);
        switch_write(a, record);
        cr_assert_eq(switch_read(b, record), -ENOENT);
        switch_region_name(other_vm, name);
        cr_assert(strstr(name, "vhdd-switch-7702") == name, "%s", name);
        switch_close(a, true);
        switch_close(b, true);
        free(record);
}
