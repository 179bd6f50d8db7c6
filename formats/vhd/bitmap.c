/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/vhd/bitmap.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/arith.h"

#define WORD_BITS 64u

struct vhd_bitmap *vhd_bitmap_new(uint32_t block, uint32_t place, uint32_t size)
{
        struct vhd_bitmap *bitmap = calloc(1, sizeof(*bitmap) + size);

        if (!bitmap)
                return NULL;
        bitmap->block = block;
        bitmap->place = place;
        bitmap->size = size;
        return bitmap;
}

void vhd_bitmap_free(struct vhd_bitmap *bitmap)
{
        free(bitmap);
}

static void free_call(struct grace_call *call)
{
        vhd_bitmap_free((struct vhd_bitmap *)((char *)call - offsetof(struct vhd_bitmap, call)));
}

void vhd_bitmap_retire(struct vhd_bitmap *bitmap, struct grace *grace)
{
        bitmap->call.run = free_call;
        grace_defer(grace, &bitmap->call);
}

/* The word with sector 0 of it in the most significant bit. */
static uint64_t word_at(const struct vhd_bitmap *bitmap, uint32_t index)
{
        return __builtin_bswap64(atomic_load_explicit(&bitmap->words[index], memory_order_acquire));
}

uint32_t vhd_bitmap_run(
        const struct vhd_bitmap *bitmap, uint32_t first, uint32_t count, bool *present)
{
        uint32_t done = 0;
        bool want = false;

        while (done < count) {
                uint32_t at = first + done, bit = at % WORD_BITS;
                uint64_t word = word_at(bitmap, at / WORD_BITS) << bit;
                uint32_t here = MIN_OF(WORD_BITS - bit, count - done);
                uint32_t alike;

                if (done == 0)
                        want = word >> 63;
                if (want)
                        word = ~word;
                alike = word ? (uint32_t)__builtin_clzll(word) : WORD_BITS;
                if (alike < here) {
                        done += alike;
                        break;
                }
                done += here;
        }
        *present = want;
        return done;
}

bool vhd_bitmap_all_set(const struct vhd_bitmap *bitmap, uint32_t first, uint32_t count)
{
        bool present;

        return vhd_bitmap_run(bitmap, first, count, &present) == count && (present || count == 0);
}

bool vhd_bitmap_none_set(const struct vhd_bitmap *bitmap, uint32_t count)
{
        bool present;

        return vhd_bitmap_run(bitmap, 0, count, &present) == count && !present;
}

void vhd_bitmap_set(struct vhd_bitmap *bitmap, uint32_t first, uint32_t count)
{
        while (count > 0) {
                uint32_t bit = first % WORD_BITS;
                uint32_t here = MIN_OF(WORD_BITS - bit, count);
                uint64_t mask = here == WORD_BITS
                        ? UINT64_MAX
                        : ((UINT64_C(1) << here) - 1) << (WORD_BITS - bit - here);

                /* Release: the data of these sectors was written before. */
                atomic_fetch_or_explicit(&bitmap->words[first / WORD_BITS], __builtin_bswap64(mask),
                        memory_order_release);
                first += here;
                count -= here;
        }
}

void vhd_bitmap_copy_out(const struct vhd_bitmap *bitmap, void *ret)
{
        for (uint32_t i = 0; i < bitmap->size / 8; i++) {
                uint64_t word = atomic_load_explicit(&bitmap->words[i], memory_order_relaxed);

                memcpy((char *)ret + i * 8, &word, 8);
        }
}

void vhd_bitmap_copy_in(struct vhd_bitmap *bitmap, const void *data)
{
        for (uint32_t i = 0; i < bitmap->size / 8; i++) {
                uint64_t word;

                memcpy(&word, (const char *)data + i * 8, 8);
                atomic_store_explicit(&bitmap->words[i], word, memory_order_relaxed);
        }
}
