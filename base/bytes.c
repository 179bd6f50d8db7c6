/* SPDX-License-Identifier: Apache-2.0 */
#include "base/bytes.h"

#include <string.h>

bool bytes_are_zero(const void *data, size_t size)
{
        const uint8_t *p = data;

        /* The first sixteen by hand; then each byte equals the one sixteen before it, which memcmp
         * checks at the speed of memory. */
        for (; size > 0 && ((uintptr_t)p & 15); p++, size--)
                if (*p)
                        return false;
        if (size < 16) {
                for (size_t i = 0; i < size; i++)
                        if (p[i])
                                return false;
                return true;
        }
        for (size_t i = 0; i < 16; i++)
                if (p[i])
                        return false;
        return memcmp(p, p + 16, size - 16) == 0;
}
