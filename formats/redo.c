/* SPDX-License-Identifier: Apache-2.0 */
/* The region: a page of head, then slots of 32 bytes. A slot is valid if it carries the sequence
 * number that its place in the ring asks for, and the right sum; so the end of the ring needs no
 * pointer that could disagree with it. */
#include "formats/redo.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/arith.h"
#include "base/mutant.h"

#define REDO_MAGIC        UINT64_C(0x6f64657264646876) /* "vhddredo" */
#define REDO_VERSION      2u
#define HEAD_SIZE         4096u
#define REGION_SIZE       (HEAD_SIZE + MIB)
#define NAME_SIZE         64u                    /* of a region */
#define SMALL_REGION_SIZE (HEAD_SIZE + 16 * KIB) /* a simulated disk copies it for every state */

/* What the image's head says; its sum is right, or the place is empty. */
struct redo_head_ident {
        uint8_t image_id[16];
        uint64_t metadata_hash;
        uint32_t block_size;
        uint32_t reserved;
        uint64_t sum;
};

struct redo_head {
        uint64_t magic;
        uint32_t version;
        uint32_t n_slots;
        uint8_t boot_id[16];
        uint64_t device, inode;
        int64_t birth_ns;
        uint64_t sum; /* of all above */
        /* Two while the head is being changed (redo_ident_also), and either fits. */
        struct redo_head_ident idents[2];
        _Atomic uint64_t tail;  /* sequence number of the oldest record that counts */
        _Atomic uint32_t state; /* 0, or POISONED */
};
#define POISONED 1u
static_assert(sizeof(struct redo_head) <= HEAD_SIZE, "the head is one page");

struct slot {
        uint64_t sequence;
        uint32_t block;
        uint32_t place;
        uint32_t first; /* kind in the top two bits */
        uint32_t count;
        uint64_t sum;
};
static_assert(sizeof(struct slot) == 32, "two slots a cache line");

struct redo {
        /* immutable after open */
        struct region *region; /* NULL: volatile */
        struct redo_head *head;
        struct slot *slots;
        uint32_t n_slots;
        /* guarded by the caller's lock */
        uint64_t next; /* sequence number of the next record */
};

uint64_t redo_hash(const void *sector)
{
        return XXH3_64bits(sector, SECTOR_SIZE);
}

static uint64_t head_sum(const struct redo_head *head)
{
        return XXH3_64bits(head, offsetof(struct redo_head, sum));
}

static uint64_t ident_sum(const struct redo_head_ident *ident)
{
        return XXH3_64bits(ident, offsetof(struct redo_head_ident, sum));
}

static void ident_set(struct redo_head_ident *to, const struct redo_ident *ident)
{
        to->sum = 0;
        atomic_thread_fence(memory_order_seq_cst);
        memcpy(to->image_id, ident->image_id, sizeof(to->image_id));
        to->metadata_hash = ident->metadata_hash;
        to->block_size = ident->block_size;
        to->reserved = 0;
        atomic_thread_fence(memory_order_seq_cst);
        to->sum = ident_sum(to); /* from here on it counts */
}

static bool ident_fits(const struct redo_head_ident *have, const struct redo_ident *ident)
{
        return have->sum == ident_sum(have) &&
                !memcmp(have->image_id, ident->image_id, sizeof(have->image_id)) &&
                have->metadata_hash == ident->metadata_hash &&
                have->block_size == ident->block_size;
}

static uint64_t slot_sum(const struct slot *slot)
{
        return XXH3_64bits(slot, offsetof(struct slot, sum));
}

static void region_name(const struct file_stat *st, char *ret, size_t size)
{
        snprintf(ret, size, "vhdd-redo-%llx-%llx", (unsigned long long)st->device,
                (unsigned long long)st->inode);
}

static void fill_head(struct redo_head *head, struct file *file, const struct file_stat *st,
        const struct redo_ident *ident, uint32_t n_slots)
{
        memset(head, 0, sizeof(*head));
        head->magic = REDO_MAGIC;
        head->version = REDO_VERSION;
        head->n_slots = n_slots;
        fs_boot_id(file->fs, head->boot_id);
        head->device = st->device;
        head->inode = st->inode;
        head->birth_ns = st->birth_ns;
        ident_set(&head->idents[0], ident);
        atomic_store(&head->tail, 1);
        atomic_store(&head->state, 0);
        head->sum = head_sum(head);
}

/* Does the region speak of this boot and this file? If not it is as good as absent: a power cut, or
 * the inode of a file that is gone. */
static bool is_current(const struct region *region, struct file *file, const struct file_stat *st)
{
        const struct redo_head *head = region->data;
        uint8_t boot_id[16];

        if (region->size < HEAD_SIZE + sizeof(struct slot) || head->magic != REDO_MAGIC ||
                head->version != REDO_VERSION || head->sum != head_sum(head) ||
                head->n_slots == 0 ||
                head->n_slots > (region->size - HEAD_SIZE) / sizeof(struct slot))
                return false;
        fs_boot_id(file->fs, boot_id);
        return !memcmp(head->boot_id, boot_id, sizeof(boot_id)) && head->device == st->device &&
                head->inode == st->inode && head->birth_ns == st->birth_ns;
}

static struct slot *slot_of(const struct redo *redo, uint64_t sequence)
{
        return &redo->slots[(sequence - 1) % redo->n_slots];
}

static bool slot_is_valid(const struct redo *redo, uint64_t sequence)
{
        const struct slot *slot = slot_of(redo, sequence);

        return slot->sequence == sequence && slot->sum == slot_sum(slot);
}

static uint64_t find_end(const struct redo *redo)
{
        uint64_t sequence = atomic_load(&redo->head->tail);

        for (uint32_t i = 0; i < redo->n_slots && slot_is_valid(redo, sequence); i++)
                sequence++;
        return sequence;
}

static struct redo *wrap(struct region *region)
{
        struct redo *redo = calloc(1, sizeof(*redo));

        if (!redo)
                return NULL;
        redo->region = region;
        redo->head = region->data;
        redo->slots = (struct slot *)((char *)region->data + HEAD_SIZE);
        redo->n_slots = redo->head->n_slots;
        redo->next = find_end(redo);
        return redo;
}

static enum redo_found judge(const struct redo *redo, const struct redo_ident *ident)
{
        const struct redo_head *head = redo->head;

        if (atomic_load(&head->state) == POISONED && !MUTANT("forget-poison"))
                return REDO_POISONED;
        if (redo->next == atomic_load(&head->tail))
                return REDO_REPLAY; /* nothing to replay; the file may still not be synced */
        if (!ident_fits(&head->idents[0], ident) && !ident_fits(&head->idents[1], ident))
                return REDO_FOREIGN;
        return REDO_REPLAY;
}

static int make_new(struct file *file, const struct file_stat *st, const char *name,
        const struct redo_ident *ident, struct redo **ret, struct error *err)
{
        struct region *region;
        struct redo *redo;
        uint64_t size = file->fs->single_threaded ? SMALL_REGION_SIZE : REGION_SIZE;
        int r = region_open(file->fs, name, file->path, size, true, &region, err);

        if (r < 0)
                return fail_prefix(err, r, "'%s' cannot be opened for writing", file->path);
        fill_head(region->data, file, st, ident,
                (uint32_t)((region->size - HEAD_SIZE) / sizeof(struct slot)));
        redo = wrap(region);
        if (!redo) {
                region_close(region, true);
                return fail(err, ENOMEM, "no memory for the redo file of '%s'", file->path);
        }
        *ret = redo;
        return 0;
}

/* What lies there under the file's name; *ret is NULL if nothing does. */
static int find_region(struct file *file, struct file_stat *ret_st, char ret_name[NAME_SIZE],
        struct region **ret, struct error *err)
{
        int r = file_stat_get(file, ret_st);

        *ret = NULL;
        if (r < 0)
                return fail_os(err, -r, "cannot look at '%s'", file->path);
        region_name(ret_st, ret_name, NAME_SIZE);
        r = region_open(file->fs, ret_name, file->path, 0, false, ret, err);
        return r == -ENOENT ? 0 : r;
}

int redo_open(struct file *file, const struct redo_ident *ident, bool writable, struct redo **ret,
        enum redo_found *found, struct error *err)
{
        struct region *region = NULL;
        struct file_stat st;
        struct redo *redo;
        char name[NAME_SIZE];
        int r = find_region(file, &st, name, &region, err);

        if (r < 0)
                return r;
        if (region && !is_current(region, file, &st))
                region = region_close(region, writable);
        if (!region) {
                *found = REDO_NONE;
                *ret = NULL;
                return writable ? make_new(file, &st, name, ident, ret, err) : 0;
        }
        redo = wrap(region);
        if (!redo) {
                region_close(region, false);
                return fail(err, ENOMEM, "no memory for the redo file of '%s'", file->path);
        }
        *found = judge(redo, ident);
        if (*found == REDO_REPLAY && redo->next == atomic_load(&redo->head->tail)) {
                /* Empty: it may carry on for this image as it is now. */
                if (writable)
                        fill_head(redo->head, file, &st, ident, redo->n_slots);
                redo->next = 1;
                if (writable)
                        memset(redo->slots, 0, (size_t)redo->n_slots * sizeof(*redo->slots));
        }
        *ret = redo;
        return 0;
}

int redo_find(struct file *file, struct redo **ret, struct error *err)
{
        struct region *region = NULL;
        struct file_stat st;
        char name[NAME_SIZE];
        int r = find_region(file, &st, name, &region, err);

        *ret = NULL;
        if (!region)
                return r;
        if (is_current(region, file, &st)) {
                *ret = wrap(region);
                if (*ret)
                        return 0;
                r = fail(err, ENOMEM, "no memory for the redo file of '%s'", file->path);
        }
        region_close(region, false);
        return r;
}

void redo_ident_also(struct redo *redo, const struct redo_ident *now, const struct redo_ident *soon)
{
        if (redo && redo->region)
                ident_set(
                        &redo->head->idents[ident_fits(&redo->head->idents[0], now) ? 1 : 0], soon);
}

void redo_ident_only(struct redo *redo, const struct redo_ident *ident)
{
        if (!redo || !redo->region)
                return;
        for (unsigned i = 0; i < 2; i++)
                if (!ident_fits(&redo->head->idents[i], ident))
                        redo->head->idents[i].sum = 0;
}

int redo_open_volatile(struct redo **ret, struct error *err)
{
        uint32_t n_slots = (uint32_t)((REGION_SIZE - HEAD_SIZE) / sizeof(struct slot));
        struct redo *redo = calloc(1, sizeof(*redo));
        char *data = calloc(1, REGION_SIZE);

        if (!redo || !data) {
                free(redo);
                free(data);
                return fail(err, ENOMEM, "no memory for a scratch image");
        }
        redo->head = (struct redo_head *)data;
        redo->slots = (struct slot *)(data + HEAD_SIZE);
        redo->n_slots = n_slots;
        redo->next = 1;
        atomic_store(&redo->head->tail, 1);
        *ret = redo;
        return 0;
}

struct redo *redo_close(struct redo *redo, bool remove)
{
        if (!redo)
                return NULL;
        if (redo->region)
                region_close(redo->region, remove);
        else
                free(redo->head);
        free(redo);
        return NULL;
}

int redo_forget(struct file *file, struct error *err)
{
        struct region *region = NULL;
        struct file_stat st;
        char name[NAME_SIZE];
        int r = find_region(file, &st, name, &region, err);

        if (region)
                region_close(region, true);
        return r;
}

int redo_each(struct redo *redo, int (*each)(void *opaque, const struct redo_record *record),
        void *opaque)
{
        for (uint64_t s = atomic_load(&redo->head->tail); s < redo->next; s++) {
                const struct slot *slot = slot_of(redo, s);
                struct redo_record record = {
                        .kind = (enum redo_kind)(slot->first >> 30),
                        .block = slot->block,
                        .place = slot->place,
                        .first = slot->first & 0x3fffffff,
                        .count = slot->count,
                };
                int r;

                if (record.kind == REDO_EXPECT)
                        record.hash = (uint64_t)slot->block << 32 | slot->count;
                r = each(opaque, &record);
                if (r != 0)
                        return r;
        }
        return 0;
}

uint64_t redo_free_slots(const struct redo *redo)
{
        return redo->n_slots - (redo->next - atomic_load(&redo->head->tail));
}

uint64_t redo_total_slots(const struct redo *redo)
{
        return redo->n_slots;
}

int redo_append(struct redo *redo, const struct redo_record *record)
{
        bool expect = record->kind == REDO_EXPECT;
        struct slot slot = {
                .sequence = redo->next,
                .block = expect ? (uint32_t)(record->hash >> 32) : record->block,
                .place = record->place,
                .first = (uint32_t)record->kind << 30 | (expect ? 0 : record->first),
                .count = expect ? (uint32_t)record->hash : record->count,
        };

        if (MUTANT("no-redo"))
                return 0;
        if (redo_free_slots(redo) == 0)
                return -ENOBUFS;
        slot.sum = slot_sum(&slot);
        *slot_of(redo, redo->next) = slot;
        /* The record is whole before anything that follows: a kill keeps program order, and the
         * compiler must too. */
        atomic_thread_fence(memory_order_seq_cst);
        redo->next++;
        return 0;
}

uint64_t redo_mark(const struct redo *redo)
{
        return redo->next;
}

void redo_drop(struct redo *redo, uint64_t mark)
{
        atomic_store(&redo->head->tail, MUTANT("empty-all-redo") ? redo->next : mark);
}

void redo_poison(struct redo *redo)
{
        if (redo)
                atomic_store(&redo->head->state, POISONED);
}
