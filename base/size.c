/* SPDX-License-Identifier: Apache-2.0 */
#include "base/size.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"

#define SIZE_MAX_DECIMALS 18

/* log2 of the unit that @suffix names, or -1. */
static int unit_shift(const char *suffix)
{
        static const char letters[] = "KMGT";
        const char *found;

        if (suffix[0] == '\0' || strcasecmp(suffix, "B") == 0)
                return 0;
        found = strchr(letters, toupper((unsigned char)suffix[0]));
        if (!found)
                return -1;
        if (suffix[1] != '\0' && strcasecmp(suffix + 1, "iB") != 0)
                return -1;
        return (int)(found - letters + 1) * 10;
}

static int bad_size(struct error *err, const char *text)
{
        int r = fail(err, EINVAL, "'%s' is no size", text);

        error_set_hint(
                err, "a number of bytes, or one with K, M, G or T (powers of 1024): 64M, 10G");
        return r;
}

int size_parse(const char *text, uint64_t *ret, struct error *err)
{
        const char *p = text;
        uint64_t whole = 0, decimals = 0, power_of_10 = 1;
        unsigned __int128 sum, part;
        int shift;

        if (!isdigit((unsigned char)*p))
                return bad_size(err, text);
        for (; isdigit((unsigned char)*p); p++)
                if (__builtin_mul_overflow(whole, 10, &whole) ||
                        __builtin_add_overflow(whole, (uint64_t)(*p - '0'), &whole))
                        return fail(err, ERANGE, "the size '%s' needs more than 64 bits", text);
        if (*p == '.') {
                const char *first = ++p;

                for (; isdigit((unsigned char)*p); p++) {
                        if (p - first >= SIZE_MAX_DECIMALS)
                                return bad_size(err, text);
                        decimals = decimals * 10 + (uint64_t)(*p - '0');
                        power_of_10 *= 10;
                }
                if (p == first)
                        return bad_size(err, text);
        }
        shift = unit_shift(p);
        if (shift < 0)
                return bad_size(err, text);

        part = (unsigned __int128)decimals << shift;
        if (part % power_of_10 != 0)
                return fail(err, EINVAL, "the size '%s' is no whole number of bytes", text);
        sum = ((unsigned __int128)whole << shift) + part / power_of_10;
        if (sum > UINT64_MAX)
                return fail(err, ERANGE, "the size '%s' needs more than 64 bits", text);
        *ret = (uint64_t)sum;
        return 0;
}

const char *size_to_text(uint64_t size, char buf[SIZE_TEXT_MAX])
{
        static const struct {
                uint64_t size;
                const char *name;
        } units[] = {{TIB, "TiB"}, {GIB, "GiB"}, {MIB, "MiB"}, {KIB, "KiB"}};
        uint64_t unit = 0, tenths;
        const char *name = NULL;

        for (size_t i = 0; i < sizeof(units) / sizeof(units[0]) && !unit; i++)
                if (size >= units[i].size) {
                        /* 2040 GiB, a VHD's limit, says more than 1.9 TiB. */
                        if (units[i].size == TIB && size < 10 * TIB && size % GIB == 0 &&
                                size % TIB != 0)
                                i++;
                        unit = units[i].size;
                        name = units[i].name;
                }
        if (!unit) {
                snprintf(buf, SIZE_TEXT_MAX, "%" PRIu64 " %s", size, size == 1 ? "byte" : "bytes");
                return buf;
        }
        /* Rounded down, so that what is not full never looks full. */
        tenths = (uint64_t)((unsigned __int128)(size % unit) * 10 / unit);
        if (size % unit == 0)
                snprintf(buf, SIZE_TEXT_MAX, "%" PRIu64 " %s", size / unit, name);
        else
                snprintf(buf, SIZE_TEXT_MAX, "%" PRIu64 ".%" PRIu64 " %s", size / unit, tenths,
                        name);
        return buf;
}
