/* SPDX-License-Identifier: Apache-2.0 */
/* bytes.h - numbers as they lie on disk or travel on the wire: big-endian bytes.
 *
 * The types have alignment 1 and no padding, and arithmetic on them does not compile: read with
 * beNN_get(), make with beNN(). leNN for the few little-endian places (UTF-16 locators).
 *
 * Threads    pure functions.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
        uint8_t b[2];
} be16;
typedef struct {
        uint8_t b[4];
} be32;
typedef struct {
        uint8_t b[8];
} be64;

static inline uint16_t be16_get(be16 v)
{
        uint16_t n;

        __builtin_memcpy(&n, v.b, sizeof(n));
        return __builtin_bswap16(n);
}

static inline uint32_t be32_get(be32 v)
{
        uint32_t n;

        __builtin_memcpy(&n, v.b, sizeof(n));
        return __builtin_bswap32(n);
}

static inline uint64_t be64_get(be64 v)
{
        uint64_t n;

        __builtin_memcpy(&n, v.b, sizeof(n));
        return __builtin_bswap64(n);
}

static inline be16 be16_make(uint16_t n)
{
        be16 v;

        n = __builtin_bswap16(n);
        __builtin_memcpy(v.b, &n, sizeof(n));
        return v;
}

static inline be32 be32_make(uint32_t n)
{
        be32 v;

        n = __builtin_bswap32(n);
        __builtin_memcpy(v.b, &n, sizeof(n));
        return v;
}

static inline be64 be64_make(uint64_t n)
{
        be64 v;

        n = __builtin_bswap64(n);
        __builtin_memcpy(v.b, &n, sizeof(n));
        return v;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the swaps above assume little-endian");

/* Are all @size bytes zero? */
bool bytes_are_zero(const void *data, size_t size);
