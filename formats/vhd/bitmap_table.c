/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/vhd/bitmap_table.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#define FIRST_SLOTS 16u
#define GRAVE       ((struct vhd_bitmap *)1) /* somebody was here: a probe goes on */

struct slots {
        struct grace_call call;
        uint32_t mask;
        uint32_t n_taken; /* with graves */
        uint32_t n_used;
        _Atomic(struct vhd_bitmap *) at[];
};

struct bitmap_table {
        _Atomic(struct slots *) slots;
};

static uint32_t hash(uint32_t block)
{
        return block * UINT32_C(0x9e3779b1) >> 7;
}

static struct slots *slots_new(uint32_t n)
{
        struct slots *slots = calloc(1, sizeof(*slots) + n * sizeof(slots->at[0]));

        if (slots)
                slots->mask = n - 1;
        return slots;
}

static void slots_end(struct grace_call *call)
{
        free((char *)call - offsetof(struct slots, call));
}

struct bitmap_table *bitmap_table_new(void)
{
        struct bitmap_table *table = calloc(1, sizeof(*table));
        struct slots *slots = slots_new(FIRST_SLOTS);

        if (!table || !slots) {
                free(table);
                free(slots);
                return NULL;
        }
        atomic_init(&table->slots, slots);
        return table;
}

struct bitmap_table *bitmap_table_free(struct bitmap_table *table)
{
        if (table) {
                free(atomic_load(&table->slots));
                free(table);
        }
        return NULL;
}

/* The slot that holds @block, or NULL. */
static _Atomic(struct vhd_bitmap *) *find(struct slots *slots, uint32_t block)
{
        for (uint32_t i = hash(block);; i++) {
                _Atomic(struct vhd_bitmap *) *at = &slots->at[i & slots->mask];
                const struct vhd_bitmap *bitmap = atomic_load_explicit(at, memory_order_acquire);

                if (!bitmap)
                        return NULL; /* there always is a free one: see bitmap_table_reserve */
                if (bitmap != GRAVE && bitmap->block == block)
                        return at;
        }
}

struct vhd_bitmap *bitmap_table_get(const struct bitmap_table *table, uint32_t block)
{
        struct slots *slots = atomic_load_explicit(&table->slots, memory_order_acquire);

        for (uint32_t i = hash(block);; i++) {
                struct vhd_bitmap *bitmap =
                        atomic_load_explicit(&slots->at[i & slots->mask], memory_order_acquire);

                if (!bitmap || (bitmap != GRAVE && bitmap->block == block))
                        return bitmap;
        }
}

static void put(struct slots *slots, struct vhd_bitmap *bitmap)
{
        uint32_t i = hash(bitmap->block);

        while (atomic_load_explicit(&slots->at[i & slots->mask], memory_order_relaxed))
                i++;
        slots->n_taken++;
        slots->n_used++;
        atomic_store_explicit(&slots->at[i & slots->mask], bitmap, memory_order_release);
}

int bitmap_table_reserve(struct bitmap_table *table)
{
        struct slots *slots = atomic_load_explicit(&table->slots, memory_order_relaxed);
        uint32_t n = slots->mask + 1;
        struct slots *larger;

        if (slots->n_taken + 1 < n / 4 * 3)
                return 0;
        while (n / 2 < slots->n_used + 1) /* else only the graves go */
                n *= 2;
        larger = slots_new(n);
        if (!larger)
                return -ENOMEM;
        for (uint32_t i = 0; i <= slots->mask; i++) {
                struct vhd_bitmap *bitmap = atomic_load(&slots->at[i]);

                if (bitmap && bitmap != GRAVE)
                        put(larger, bitmap);
        }
        atomic_store_explicit(&table->slots, larger, memory_order_release);
        slots->call.run = slots_end;
        grace_defer(grace_readers(), &slots->call);
        return 0;
}

void bitmap_table_add(struct bitmap_table *table, struct vhd_bitmap *bitmap)
{
        put(atomic_load_explicit(&table->slots, memory_order_relaxed), bitmap);
}

void bitmap_table_remove(struct bitmap_table *table, uint32_t block)
{
        struct slots *slots = atomic_load_explicit(&table->slots, memory_order_relaxed);
        _Atomic(struct vhd_bitmap *) *at = find(slots, block);

        if (!at)
                return;
        slots->n_used--;
        atomic_store_explicit(at, GRAVE, memory_order_release);
}
