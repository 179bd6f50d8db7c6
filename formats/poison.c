/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/poison.h"

#include <assert.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <xxhash.h>

#define POISON_MAGIC       "vhddmark"
#define POISON_VERSION     1u
#define POISON_REGION_SIZE 4096u
#define POISON_NAME_MAX    64u
#define POISON_CODE_MAX    4095u

/* What the mark is bound to. Never leaves the machine, so it is in the machine's byte order. */
struct poison_bond {
        uint64_t device, inode;
        uint64_t generation; /* tells a recycled inode or loop device from the one before */
        uint8_t boot_id[16];
};

struct poison_page {
        char magic
                [8]; /* written last: a page without it is one whose writer died while making it */
        uint32_t version;
        _Atomic uint32_t code; /* errno of the first failed sync, or 0 */
        struct poison_bond bond;
        uint64_t checksum; /* of the bond */
};
static_assert(sizeof(struct poison_page) <= POISON_REGION_SIZE, "the mark is one page");

struct poison {
        struct region *region;
        struct poison_page *page; /* in the region */
};

static int bond_of(struct file *file, struct poison_bond *ret, struct error *err);
static int find_page(struct file *file, const struct poison_bond *bond, bool create,
        struct region **ret, struct error *err);
static bool page_is_bound(const struct poison_page *page, const struct poison_bond *bond);
static uint32_t page_code(const struct poison_page *page);
static void page_write(struct poison_page *page, const struct poison_bond *bond);

int poison_hold(struct file *file, struct poison **ret, bool *ret_unclean, struct error *err)
{
        _cleanup_free_ struct poison *poison = calloc(1, sizeof(*poison));
        struct poison_bond bond;
        bool unclean;
        int r;

        if (!poison)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        r = bond_of(file, &bond, err);
        if (r < 0)
                return r;
        r = find_page(file, &bond, true, &poison->region, err);
        if (r < 0)
                return r;

        poison->page = poison->region->data;
        unclean = page_is_bound(poison->page, &bond);
        if (!unclean)
                page_write(poison->page, &bond);

        *ret_unclean = unclean;
        *ret = TAKE_PTR(poison);
        return 0;
}

int poison_find(struct file *file, struct poison **ret, struct error *err)
{
        _cleanup_free_ struct poison *poison = calloc(1, sizeof(*poison));
        struct poison_bond bond;
        int r;

        *ret = NULL;
        if (!poison)
                return fail(err, ENOMEM, "no memory to open '%s'", file->path);
        r = bond_of(file, &bond, err);
        if (r == 0)
                r = find_page(file, &bond, false, &poison->region, err);
        if (r == -ENOENT) {
                error_clear(err);
                return 0;
        }
        if (r < 0)
                return r;
        poison->page = poison->region->data;
        if (page_is_bound(poison->page, &bond))
                *ret = TAKE_PTR(poison);
        else
                region_close(poison->region, false);
        return 0;
}

void poison_set(struct poison *poison, int code)
{
        uint32_t none = 0;

        assert(code > 0);
        assert((uint32_t)code <= POISON_CODE_MAX);
        atomic_compare_exchange_strong(&poison->page->code, &none, (uint32_t)code);
}

int poison_get(const struct poison *poison)
{
        return (int)page_code(poison->page);
}

struct poison *poison_release(struct poison *poison, bool clean)
{
        if (!poison)
                return NULL;
        region_close(poison->region, clean && poison_get(poison) == 0);
        free(poison);
        return NULL;
}

int poison_look(struct file *file, int *ret_code, bool *ret_held, struct error *err)
{
        struct region *region = NULL;
        struct poison_bond bond = {0};
        bool held = false;
        int code = 0;
        int r;

        r = bond_of(file, &bond, err);
        if (r < 0)
                return r;
        r = find_page(file, &bond, false, &region, err);
        if (r < 0 && r != -ENOENT)
                return r;
        if (r == 0) {
                const struct poison_page *page = region->data;

                held = page_is_bound(page, &bond);
                if (held)
                        code = (int)page_code(page);
                region_close(region, false);
        }
        if (err)
                error_clear(err);
        *ret_code = code;
        if (ret_held)
                *ret_held = held;
        return 0;
}

int poison_lift(struct file *file, struct error *err)
{
        struct region *region = NULL;
        struct poison_bond bond = {0};
        int r;

        r = bond_of(file, &bond, err);
        if (r < 0)
                return r;
        r = find_page(file, &bond, false, &region, err);
        if (r == -ENOENT) {
                error_clear(err);
                return 0;
        }
        if (r < 0)
                return r;
        region_close(region, true);
        return 0;
}

/* An inode's number comes back after its file is gone, a loop device's with the next file. The
 * handle carries the file system's generation of the inode, and the kernel counts the disks. Where
 * neither is offered (old kernels, odd file systems) the numbers have to do. */
static uint64_t generation_of(const struct file *file, const struct file_stat *st)
{
        union {
                struct file_handle handle;
                uint8_t bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
        } h = {.handle.handle_bytes = MAX_HANDLE_SZ};
        uint64_t sequence;
        int mount;

        if (file->fd < 0)
                return 0;
        if (st->is_block)
                return ioctl(file->fd, BLKGETDISKSEQ, &sequence) == 0 ? sequence : 0;
        if (name_to_handle_at(file->fd, "", &h.handle, &mount, AT_EMPTY_PATH) < 0)
                return 0;
        return XXH3_64bits(h.handle.f_handle, h.handle.handle_bytes);
}

static int bond_of(struct file *file, struct poison_bond *ret, struct error *err)
{
        struct poison_bond bond = {0};
        struct file_stat st;
        int r;

        r = file_stat_get(file, &st);
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        bond.device = st.device;
        bond.inode = st.inode;
        bond.generation = generation_of(file, &st);
        fs_boot_id(file->fs, bond.boot_id);
        *ret = bond;
        return 0;
}

static int find_page(struct file *file, const struct poison_bond *bond, bool create,
        struct region **ret, struct error *err)
{
        struct region *region = NULL;
        char name[POISON_NAME_MAX];
        int r;

        snprintf(name, sizeof(name), "vhdd-mark-%llx-%llx", (unsigned long long)bond->device,
                (unsigned long long)bond->inode);
        r = region_open(file->fs, name, file->path, POISON_REGION_SIZE, false, &region, err);
        if (r == -ENOENT && create) {
                error_clear(err);
                r = region_open(file->fs, name, file->path, POISON_REGION_SIZE, true, &region, err);
        }
        if (r < 0)
                return r;
        if (region->size < POISON_REGION_SIZE) {
                r = fail(err, EUCLEAN, "'%s' is no mark of ours: it has %llu bytes instead of %u",
                        region->path, (unsigned long long)region->size, POISON_REGION_SIZE);
                region_close(region, false);
                return r;
        }
        *ret = region;
        return 0;
}

static uint64_t bond_checksum(const struct poison_bond *bond)
{
        return XXH3_64bits(bond, sizeof(*bond));
}

/* A bond whose sum is wrong is taken for the one we ask about: what cannot be read might be the
 * note of a failed sync, and a wrong "yes" costs a check where a wrong "no" costs data. */
static bool page_is_bound(const struct poison_page *page, const struct poison_bond *bond)
{
        if (memcmp(page->magic, POISON_MAGIC, sizeof(page->magic)) != 0)
                return false;
        if (page->version != POISON_VERSION || page->checksum != bond_checksum(&page->bond))
                return true;
        return memcmp(&page->bond, bond, sizeof(*bond)) == 0;
}

static uint32_t page_code(const struct poison_page *page)
{
        uint32_t code = atomic_load(&page->code);

        if (page->version != POISON_VERSION || page->checksum != bond_checksum(&page->bond) ||
                code > POISON_CODE_MAX)
                return EIO;
        return code;
}

static void page_write(struct poison_page *page, const struct poison_bond *bond)
{
        memset(page->magic, 0, sizeof(page->magic));
        atomic_thread_fence(memory_order_seq_cst);
        page->version = POISON_VERSION;
        atomic_store(&page->code, 0);
        page->bond = *bond;
        page->checksum = bond_checksum(bond);
        atomic_thread_fence(memory_order_seq_cst);
        memcpy(page->magic, POISON_MAGIC, sizeof(page->magic));
}
