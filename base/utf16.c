/* SPDX-License-Identifier: Apache-2.0 */
#include "base/utf16.h"

#include <errno.h>

static bool is_high_surrogate(uint32_t unit)
{
        return unit >= 0xd800 && unit <= 0xdbff;
}

static bool is_low_surrogate(uint32_t unit)
{
        return unit >= 0xdc00 && unit <= 0xdfff;
}

static uint32_t unit_get(const uint8_t *p, enum utf16_order order)
{
        return order == UTF16_BIG ? (uint32_t)p[0] << 8 | p[1] : (uint32_t)p[1] << 8 | p[0];
}

static void unit_put(uint8_t *p, uint32_t unit, enum utf16_order order)
{
        p[order == UTF16_BIG ? 0 : 1] = (uint8_t)(unit >> 8);
        p[order == UTF16_BIG ? 1 : 0] = (uint8_t)unit;
}

/* Bytes that the code point takes in UTF-8, written to @p. */
static size_t utf8_put(uint8_t p[4], uint32_t point)
{
        if (point < 0x80) {
                p[0] = (uint8_t)point;
                return 1;
        }
        if (point < 0x800) {
                p[0] = (uint8_t)(0xc0 | point >> 6);
                p[1] = (uint8_t)(0x80 | (point & 0x3f));
                return 2;
        }
        if (point < 0x10000) {
                p[0] = (uint8_t)(0xe0 | point >> 12);
                p[1] = (uint8_t)(0x80 | (point >> 6 & 0x3f));
                p[2] = (uint8_t)(0x80 | (point & 0x3f));
                return 3;
        }
        p[0] = (uint8_t)(0xf0 | point >> 18);
        p[1] = (uint8_t)(0x80 | (point >> 12 & 0x3f));
        p[2] = (uint8_t)(0x80 | (point >> 6 & 0x3f));
        p[3] = (uint8_t)(0x80 | (point & 0x3f));
        return 4;
}

size_t utf8_get(const uint8_t *p, size_t left, uint32_t *ret)
{
        static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
        uint32_t point;
        size_t n;

        if (p[0] < 0x80) {
                *ret = p[0];
                return 1;
        }
        if (p[0] >= 0xc2 && p[0] <= 0xdf)
                n = 2;
        else if ((p[0] & 0xf0) == 0xe0)
                n = 3;
        else if (p[0] >= 0xf0 && p[0] <= 0xf4)
                n = 4;
        else
                return 0;
        if (left < n)
                return 0;
        point = p[0] & (0xffu >> (n + 1));
        for (size_t i = 1; i < n; i++) {
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
                point = point << 6 | (p[i] & 0x3f);
        }
        if (point < smallest[n] || point > 0x10ffff || is_high_surrogate(point) ||
                is_low_surrogate(point))
                return 0;
        *ret = point;
        return n;
}

ssize_t utf16_to_utf8(
        const void *text, size_t size, enum utf16_order order, char *ret, size_t ret_size)
{
        const uint8_t *p = text;
        size_t used = 0;

        if (size % 2 != 0)
                return -EILSEQ;
        for (size_t i = 0; i < size; i += 2) {
                uint32_t point = unit_get(p + i, order);
                uint8_t bytes[4];
                size_t n;

                if (is_low_surrogate(point))
                        return -EILSEQ;
                if (is_high_surrogate(point)) {
                        uint32_t low = i + 2 < size ? unit_get(p + i + 2, order) : 0;

                        if (!is_low_surrogate(low))
                                return -EILSEQ;
                        point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
                        i += 2;
                }
                n = utf8_put(bytes, point);
                if (n >= ret_size - used) /* the NUL wants a byte too */
                        return -ENOSPC;
                __builtin_memcpy(ret + used, bytes, n);
                used += n;
        }
        if (used >= ret_size)
                return -ENOSPC;
        ret[used] = '\0';
        return (ssize_t)used;
}

ssize_t utf16_from_utf8(
        const char *text, size_t length, enum utf16_order order, void *ret, size_t ret_size)
{
        const uint8_t *p = (const uint8_t *)text;
        uint8_t *out = ret;
        size_t used = 0;

        for (size_t i = 0; i < length;) {
                uint32_t point = 0;
                size_t n = utf8_get(p + i, length - i, &point);
                size_t wanted = point >= 0x10000 ? 4 : 2;

                if (n == 0)
                        return -EILSEQ;
                if (ret_size - used < wanted)
                        return -ENOSPC;
                if (wanted == 4) {
                        unit_put(out + used, 0xd800 + ((point - 0x10000) >> 10), order);
                        unit_put(out + used + 2, 0xdc00 + ((point - 0x10000) & 0x3ff), order);
                } else {
                        unit_put(out + used, point, order);
                }
                used += wanted;
                i += n;
        }
        return (ssize_t)used;
}

bool utf8_is_valid(const char *text, size_t length)
{
        const uint8_t *p = (const uint8_t *)text;
        uint32_t point;

        for (size_t i = 0, n; i < length; i += n) {
                n = utf8_get(p + i, length - i, &point);
                if (n == 0)
                        return false;
        }
        return true;
}
