/* SPDX-License-Identifier: Apache-2.0 */
#include "chain/switch_record.h"

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mutant.h"
#include "base/uuid.h"

#define SWITCH_MAGIC   UINT64_C(0x6863746977736476) /* "vdswitch" */
#define SWITCH_VERSION 1u

/* Never leaves the machine, so it is in the machine's byte order. */
struct switch_page {
        _Atomic uint64_t magic; /* written last, taken out first */
        uint32_t version;
        uint32_t reserved;
        uint64_t sum; /* of the boot id and the record's used part */
        uint8_t boot_id[16];
        struct switch_record record;
};

struct switch_region {
        struct region *region;
        struct switch_page *page; /* in the region */
        uint8_t vm[16];
};

void switch_region_name(const uint8_t vm[16], char *ret)
{
        char text[UUID_TEXT_SIZE];

        uuid_format(vm, text);
        snprintf(ret, SWITCH_NAME_MAX, "vhdd-switch-%s", text);
}

int switch_open(struct fs *fs, const uint8_t vm[16], const char *beside, bool create,
        struct switch_region **ret, struct error *err)
{
        _cleanup_free_ struct switch_region *sw = calloc(1, sizeof(*sw));
        char name[SWITCH_NAME_MAX];
        int r;

        if (!sw)
                return fail(err, ENOMEM, "no memory for the record of a snapshot");
        memcpy(sw->vm, vm, sizeof(sw->vm));
        switch_region_name(vm, name);
        r = region_open(fs, name, beside, 0, false, &sw->region, err);
        if (r == 0 && sw->region->size < sizeof(struct switch_page))
                sw->region = region_close(sw->region, create); /* no region of ours */
        if (r < 0 && r != -ENOENT)
                return r;
        if (!sw->region && !create)
                return fail(err, ENOENT, "there is no region '%s'", name);
        if (!sw->region) {
                error_clear(err);
                r = region_open(
                        fs, name, beside, sizeof(struct switch_page), true, &sw->region, err);
                if (r < 0)
                        return fail_prefix(err, r, "no record can be made of a snapshot");
        }
        if (sw->region->size < sizeof(struct switch_page)) {
                region_close(sw->region, true);
                return fail(err, ENOSPC, "the region '%s' is too small for a record", name);
        }
        sw->page = sw->region->data;
        *ret = TAKE_PTR(sw);
        return 0;
}

void switch_region_vm(const struct switch_region *sw, uint8_t ret[16])
{
        memcpy(ret, sw->vm, sizeof(sw->vm));
}

struct switch_region *switch_close(struct switch_region *sw, bool remove)
{
        if (!sw)
                return NULL;
        region_close(sw->region, remove);
        free(sw);
        return NULL;
}

static uint64_t page_sum(const struct switch_page *page)
{
        size_t size = offsetof(struct switch_record, disks) +
                page->record.n_disks * sizeof(page->record.disks[0]);

        return XXH3_64bits_withSeed(
                &page->record, size, XXH3_64bits(page->boot_id, sizeof(page->boot_id)));
}

void switch_write(struct switch_region *sw, const struct switch_record *record)
{
        struct switch_page *page = sw->page;

        assert(record->n_disks <= SWITCH_MAX_DISKS);
        assert(memcmp(record->vm, sw->vm, sizeof(sw->vm)) == 0);
        switch_clear(sw);
        page->version = SWITCH_VERSION;
        fs_boot_id(sw->region->fs, page->boot_id);
        memcpy(&page->record, record,
                offsetof(struct switch_record, disks) + record->n_disks * sizeof(record->disks[0]));
        page->sum = page_sum(page);
        (void)MUTANT("no-switch-record"); /* a test lets the process die here, too */
        /* A kill keeps program order, and the compiler must too. */
        atomic_thread_fence(memory_order_seq_cst);
        atomic_store(&page->magic, SWITCH_MAGIC);
}

int switch_read(const struct switch_region *sw, struct switch_record *ret)
{
        const struct switch_page *page = sw->page;
        uint8_t boot_id[16];

        if (atomic_load(&page->magic) != SWITCH_MAGIC || page->version != SWITCH_VERSION ||
                page->record.n_disks > SWITCH_MAX_DISKS || page->sum != page_sum(page))
                return -ENOENT;
        fs_boot_id(sw->region->fs, boot_id);
        if (memcmp(boot_id, page->boot_id, sizeof(boot_id)) != 0 ||
                memcmp(page->record.vm, sw->vm, sizeof(sw->vm)) != 0)
                return -ENOENT;
        *ret = page->record;
        return 0;
}

void switch_clear(struct switch_region *sw)
{
        atomic_store(&sw->page->magic, 0);
        atomic_thread_fence(memory_order_seq_cst);
}

static bool is_image(const struct switch_image *image, const struct file_stat *st)
{
        return image->device == st->device && image->inode == st->inode;
}

const struct switch_disk *switch_find_leaf(
        const struct switch_record *record, const struct file_stat *st)
{
        for (uint32_t i = 0; i < record->n_disks; i++)
                if (is_image(&record->disks[i].leaf, st))
                        return &record->disks[i];
        return NULL;
}

const struct switch_disk *switch_find_frozen(
        const struct switch_record *record, const struct file_stat *st)
{
        for (uint32_t i = 0; i < record->n_disks; i++)
                if (is_image(&record->disks[i].frozen, st))
                        return &record->disks[i];
        return NULL;
}
