/* SPDX-License-Identifier: Apache-2.0 */
#include "base/uuid.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/bytes.h"

/* Is there a hyphen before byte @index of the text form? */
static bool hyphen_before(unsigned index)
{
        return index == 4 || index == 6 || index == 8 || index == 10;
}

char *uuid_format(const uint8_t id[16], char ret[UUID_TEXT_SIZE])
{
        static const char digits[] = "0123456789abcdef";
        char *p = ret;

        for (unsigned i = 0; i < 16; i++) {
                if (hyphen_before(i))
                        *p++ = '-';
                *p++ = digits[id[i] >> 4];
                *p++ = digits[id[i] & 15];
        }
        *p = '\0';
        return ret;
}

static int digit_value(char c)
{
        if (c >= '0' && c <= '9')
                return c - '0';
        if (c >= 'a' && c <= 'f')
                return c - 'a' + 10;
        if (c >= 'A' && c <= 'F')
                return c - 'A' + 10;
        return -1;
}

bool uuid_parse(const char *text, uint8_t ret[16])
{
        bool braces = text[0] == '{';
        const char *p = text + braces;
        uint8_t id[16];
        bool hyphens = strnlen(p, 9) == 9 && p[8] == '-';

        for (unsigned i = 0; i < 16; i++) {
                int high, low;

                if (hyphens && hyphen_before(i) && *p++ != '-')
                        return false;
                high = digit_value(p[0]);
                low = high < 0 ? -1 : digit_value(p[1]);
                if (low < 0)
                        return false;
                id[i] = (uint8_t)(high << 4 | low);
                p += 2;
        }
        if (braces && *p++ != '}')
                return false;
        if (*p != '\0')
                return false;
        memcpy(ret, id, sizeof(id));
        return true;
}

void uuid_random(uint8_t ret[16])
{
        ssize_t n;

        /* Up to 256 bytes come whole or, before the kernel's pool is ready, not at all. */
        do
                n = getrandom(ret, 16, 0);
        while (n < 0 && errno == EINTR);
        assert(n == 16);
        ret[6] = (uint8_t)((ret[6] & 0x0f) | 0x40); /* version 4, */
        ret[8] = (uint8_t)((ret[8] & 0x3f) | 0x80); /* variant of RFC 4122 */
}

bool uuid_is_zero(const uint8_t id[16])
{
        return bytes_are_zero(id, 16);
}

bool uuid_equal(const uint8_t a[16], const uint8_t b[16])
{
        return memcmp(a, b, 16) == 0;
}
